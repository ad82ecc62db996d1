/**
 * Posts runs to the web API. A failure is a result, never an exception, and nothing in it tells a secret:
 * people keep secrets in the URL's path, query and user as well, so a URL is shown by its host alone.
 * @module
 */
import { errorMessage, TelemetryError } from "../errors.ts";
import { readEnv } from "../fs/locate.ts";
import { type RunRecord, toJson } from "../records.ts";

/** Where and how to post. */
export interface ApiClientOptions {
  /** Address of the API: https, or http to this machine. A user and password in it are not sent. */
  url: string;
  /** Goes out as `Authorization: Bearer`, to the origin of `url` alone. */
  token: string;
  /**
   * The waits between the tries, so there is one try more than there are waits.
   * @default [1000, 2000]
   */
  delaysMs?: readonly number[];
  /**
   * How long one try may take, with its redirects and the reading of the answer.
   * @default 10000
   */
  timeoutMs?: number;
}

/** What became of a run. `final`: the same run would be refused again; `reason`: one line for people. */
export type PostResult =
  | { posted: true; tries: number }
  | { posted: false; tries: number; final: boolean; reason: string };

/** Why one try failed. */
interface Failure {
  final: boolean;
  reason: string;
  retryAfter?: string | null;
}

/** One request on the way through the redirects. */
interface Hop {
  url: URL;
  method: "POST" | "GET";
  /** Whether the token goes along. Once a redirect has left the origin it stays at home, also on the way back. */
  trusted: boolean;
}

const MAX_REDIRECTS = 10;
const MAX_RETRY_AFTER_MS = 60_000;
const MAX_BODY_BYTES = 64 * 1024;

// deno-fmt-ignore
const API_FIELDS = [
  "run_id", "agent_name", "job_type", "trigger_type", "start_time", "status", "agent_owner", "end_time",
  "items_discovered", "items_succeeded", "items_failed", "duration_ms", "error_summary",
  "product", "platform", "product_family", "git_repo", "git_branch", "host",
] as const satisfies readonly (keyof RunRecord)[];

/** What the API gets of a run: the contract's fields in the contract's order, nulls left out. */
export function apiPayload(run: RunRecord): Record<string, unknown> {
  return Object.fromEntries(
    API_FIELDS.map((field) => [field, run[field]] as const).filter(([, value]) => (value ?? null) !== null),
  );
}

/**
 * Posts runs to one API.
 *
 * @example
 * ```ts
 * import { ApiClient } from "./api_client.ts";
 * import { newRun, runId } from "../records.ts";
 * import { timestamp } from "../time.ts";
 *
 * const api = new ApiClient({ url: "https://api.example/runs", token: "secret" });
 * const run = newRun({ run_id: runId("indexer"), agent_name: "indexer", start_time: timestamp() });
 * const result = await api.post(run);
 * if (!result.posted) console.warn(result.reason); // "api.example answered 401"
 * ```
 */
export class ApiClient {
  /** The API's host, with the port if it is not the usual one: all that may be shown of the URL. */
  readonly host: string;
  // Private to the language, not just to the compiler: these do not show when the object is printed.
  readonly #url: URL;
  readonly #token: string;
  readonly #delaysMs: readonly number[];
  readonly #timeoutMs: number;

  /**
   * A client for one API. Sends nothing yet.
   *
   * @param options where and how to post
   * @throws {TelemetryError} `usage`: the URL is neither https nor this machine's, or the token cannot be a header
   */
  constructor({ url, token, delaysMs = [1000, 2000], timeoutMs = 10_000 }: ApiClientOptions) {
    this.#url = checkedUrl(url);
    this.#token = checkedToken(token);
    this.#delaysMs = delaysMs;
    this.#timeoutMs = timeoutMs;
    this.host = this.#url.host;
  }

  /**
   * Posts a run, with as many tries as the options allow. Never rejects, and never asks for a permission.
   *
   * @param run what to post
   * @param signal stops at once, also in the middle of a wait
   */
  async post(run: RunRecord, signal?: AbortSignal): Promise<PostResult> {
    let body: string;
    try {
      body = toJson(apiPayload(run), "run");
    } catch (error) {
      return { posted: false, tries: 0, final: true, reason: errorMessage(error) };
    }
    for (let tries = 0;;) {
      if (signal?.aborted) return { posted: false, tries, final: false, reason: "posting was stopped" };
      const reason = missingPermission(this.#url);
      if (reason) return { posted: false, tries, final: true, reason };

      const failure = await this.#try(body, signal);
      const delayMs = this.#delaysMs[tries++];
      if (!failure) return { posted: true, tries };
      if (signal?.aborted) continue; // the try failed because it was stopped
      const { final, retryAfter = null } = failure;
      if (final || delayMs === undefined) return { posted: false, tries, final, reason: failure.reason };
      await wait(retryWaitMs(delayMs, retryAfter), signal);
    }
  }

  /**
   * One try. Undefined is success. Redirects are followed by hand: where one leads must be looked at before
   * anything is sent there, for the permission, for https, and for whether the token may go along.
   */
  async #try(body: string, signal: AbortSignal | undefined): Promise<Failure | undefined> {
    const stop = new AbortController();
    const abort = () => stop.abort();
    const timer = setTimeout(abort, this.#timeoutMs);
    signal?.addEventListener("abort", abort);
    let hop: Hop = { url: this.#url, method: "POST", trusted: true };
    try {
      for (let redirects = 0; redirects <= MAX_REDIRECTS; redirects++) {
        const response = await this.#send(hop, body, stop.signal);
        const next = nextHop(response, hop);
        if (!next) return await verdict(response, hop.url.host);
        await discard(response);
        if ("reason" in next) return next;
        hop = next;
      }
      return { final: false, reason: `${hop.url.host} redirects too often` };
    } catch (error) {
      const late = `did not answer within ${this.#timeoutMs / 1000} s`;
      return { final: false, reason: `${hop.url.host} ${stop.signal.aborted ? late : whatBroke(error)}` };
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", abort);
    }
  }

  #send({ url, method, trusted }: Hop, body: string, signal: AbortSignal): Promise<Response> {
    const headers = new Headers();
    if (trusted) headers.set("authorization", `Bearer ${this.#token}`);
    if (method === "GET") return fetch(url, { headers, redirect: "manual", signal });
    headers.set("content-type", "application/json");
    return fetch(url, { method, headers, body, redirect: "manual", signal });
  }
}

/**
 * The API that the environment names (contract, "Where `{base}` is", other variables), or undefined where
 * posting is off: no URL or token, switched off, or a test.
 *
 * @throws {TelemetryError} `usage`: posting is on, but the URL or the token cannot be used
 */
export function apiFromEnvironment(): ApiClient | undefined {
  const url = readEnv("METRICS_API_URL")?.trim();
  const token = readEnv("METRICS_API_TOKEN")?.trim();
  const enabled = readEnv("METRICS_API_ENABLED") ?? "true";
  if (!url || !token || !/^(true|1|yes|on)$/i.test(enabled)) return undefined;
  if (readEnv("TELEMETRY_TEST_MODE") === "mock") return undefined;
  return new ApiClient({ url, token });
}

/**
 * How long to wait before the next try: our own delay, or what the server asked for up to a minute, if that is longer.
 *
 * @param delayMs our own delay
 * @param retryAfter the answer's `Retry-After`: seconds, or a date
 * @param now milliseconds, as of `Date.now()`
 */
export function retryWaitMs(delayMs: number, retryAfter: string | null, now: number = Date.now()): number {
  const asked = retryAfter?.trim() ?? "";
  const askedMs = /^\d+$/.test(asked) ? Number(asked) * 1000 : Date.parse(asked) - now;
  return Number.isNaN(askedMs) ? delayMs : Math.max(delayMs, Math.min(askedMs, MAX_RETRY_AFTER_MS));
}

function checkedUrl(text: string): URL {
  const hint = "METRICS_API_URL must start with https://, or with http://localhost";
  // Not `new URL`: its error quotes the text.
  const url = URL.parse(text);
  if (!url) throw new TelemetryError("usage", "the API's URL cannot be understood", { hint });
  if (!isSafe(url)) throw new TelemetryError("usage", `the API's URL is not https: ${url.host || "no host"}`, { hint });
  return withoutLogin(url);
}

/** A token may have been read from a file with its newline. */
function checkedToken(text: string): string {
  const token = text.trim();
  if (/^[ -~\xA0-\xFF]+$/.test(token)) return token;
  throw new TelemetryError("usage", "the API token is empty or has characters that cannot be sent in a header", {
    hint: "METRICS_API_TOKEN must be one line of plain text",
  });
}

/**
 * Whether nobody on the way can read along: https, or a host that is this machine by its name.
 * (Deno's fetch sends even loopback through HTTP_PROXY, where the operator has set that without a NO_PROXY.)
 */
function isSafe({ protocol, hostname }: URL): boolean {
  if (protocol === "https:") return true;
  return protocol === "http:" && /^(?:(?:.+\.)?localhost|127\.\d+\.\d+\.\d+|\[::1\])$/.test(hostname);
}

/** Deno's fetch turns a URL's user and password into `Authorization: Basic`, joined to ours by a comma. */
function withoutLogin(url: URL): URL {
  url.username = "";
  url.password = "";
  return url;
}

/**
 * What to tell the operator when Deno does not let us connect.
 * Asked before each request, for fetch itself would prompt, and stop the agent until somebody answers.
 */
function missingPermission({ protocol, hostname, port, host }: URL): string | undefined {
  try {
    const address = `${hostname}:${port || (protocol === "https:" ? 443 : 80)}`;
    if (Deno.permissions.querySync({ name: "net", host: address }).state === "granted") return undefined;
  } catch {
    // A host that a URL may have and a permission may not, such as `a..b`.
  }
  return `no permission: --allow-net=${host}`;
}

/** Where an answer sends us; a failure when we do not go there; undefined when it is no redirect. */
function nextHop({ status, headers }: Response, hop: Hop): Hop | Failure | undefined {
  if (![301, 302, 303, 307, 308].includes(status)) return undefined;
  const location = headers.get("location");
  const url = location === null ? null : URL.parse(location, hop.url);
  if (!url) return undefined;
  const from = hop.url.host;
  if (!isSafe(url)) return { final: true, reason: `${from} redirects to an address that is not https` };
  const missing = missingPermission(url);
  if (missing) return { final: true, reason: `${missing} (${from} redirects there)` };
  return {
    url: withoutLogin(url),
    method: status >= 307 ? hop.method : "GET",
    trusted: hop.trusted && url.origin === hop.url.origin,
  };
}

/** What the answer at the end of the redirects means. Undefined is success. */
async function verdict(response: Response, host: string): Promise<Failure | undefined> {
  const { status, headers } = response;
  const retryAfter = headers.get("retry-after");
  if (status !== 200) {
    await discard(response);
    const final = status >= 400 && status < 500 && status !== 408 && status !== 429;
    return { final, reason: `${host} answered ${status}`, retryAfter };
  }
  // Read also when the type says enough: a connection that was read to its end can be used again.
  const start = await startOf(response);
  const html = /^text\/html\b/i.test(headers.get("content-type") ?? "") ||
    /^\s*<(?:!doctype\s+html|html)\b/i.test(start);
  return html ? { final: false, reason: `${host} answered 200 with an HTML page`, retryAfter } : undefined;
}

/** The first 64 KiB of the body, as text; leaving the loop cancels the rest. */
async function startOf(response: Response): Promise<string> {
  const decoder = new TextDecoder();
  let text = "";
  let length = 0;
  for await (const chunk of response.body ?? []) {
    text += decoder.decode(chunk, { stream: true });
    length += chunk.length;
    if (length >= MAX_BODY_BYTES) break;
  }
  return text;
}

/** Lets go of a body that nobody reads. */
async function discard(response: Response): Promise<void> {
  await response.body?.cancel().catch(() => {});
}

/**
 * What a failed fetch means, in words of ours. Its own words are only looked at: they quote the whole URL,
 * secrets included, in the message or in the `cause`, and there is no code to go by.
 */
function whatBroke(thrown: unknown): string {
  const cause = thrown instanceof Error ? thrown.cause : undefined;
  const text = `${errorMessage(thrown)} ${errorMessage(cause)}`.replace(/\S*:\/\/\S*/g, "");
  if (/dns error/.test(text)) return "cannot be found";
  if (/certificate/.test(text)) return "has a certificate that is not trusted";
  if (/refused/.test(text)) return "refused the connection";
  if (/closed before|reset by peer|broken pipe|reading a body/i.test(text)) return "broke off the connection";
  return "cannot be reached";
}

/** Waits, unless and until the signal aborts. Leaves no timer behind. */
function wait(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted) return resolve();
    const done = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal?.addEventListener("abort", done);
  });
}
