/**
 * Posts runs to the web API. No result or error shows a secret: people put secrets into the path, the query and the
 * user of a URL, so a URL is shown only by its host.
 * @module
 */
import { setTimeout as delay } from "node:timers/promises";
import { assertNonNegative, errorMessage, TelemetryError } from "../errors.ts";
import { readEnv } from "../fs/locate.ts";
import { type RunRecord, toJson } from "../records.ts";

/** Options of an {@linkcode ApiClient}. */
export interface ApiClientOptions {
  /** The URL of the API: https, or http to this machine. A user and password in it are not sent. */
  url: string;
  /** The token for the header `Authorization: Bearer`. It is sent only to the origin of `url`. */
  token: string;
  /** The pauses between attempts, in milliseconds. There is one attempt more than pauses. @default [1000, 2000] */
  delaysMs?: readonly number[];
  /** The timeout of an attempt in milliseconds, with its redirects and its response. @default 10000 */
  timeoutMs?: number;
}

/**
 * The result of a post. `tries` counts the attempts. `final` means that another attempt would fail, too. `reason` is
 * one line of text.
 */
export type PostResult =
  | { posted: true; tries: number }
  | { posted: false; tries: number; final: boolean; reason: string };

/** Why an attempt failed. */
interface Failure {
  final: boolean;
  reason: string;
  /** The header `Retry-After`. */
  retryAfter?: string | null;
}

const MAX_REDIRECTS = 10;
const MAX_RETRY_AFTER_MS = 60_000;
/** How much of a response is read, in characters. */
const MAX_BODY_TEXT = 64 * 1024;
const HTML_TAGS =
  "html|head|body|title|meta|link|base|script|noscript|style|h\\d|p|br|b|i|a|em|strong|pre|div|span|center|" +
  "font|form|table|ul|ol|img|iframe|main|nav|header|section|article";
/** The start of an HTML page. */
const HTML = new RegExp(`^\\s*(?:<\\?xml[^>]*>\\s*)?<(?:!--|(?:!doctype\\s+html|${HTML_TAGS})\\b)`, "i");

// deno-fmt-ignore
const API_FIELDS = [
  "run_id", "agent_name", "job_type", "trigger_type", "start_time", "status", "agent_owner", "end_time",
  "items_discovered", "items_succeeded", "items_failed", "duration_ms", "error_summary",
  "product", "platform", "product_family", "subdomain", "git_repo", "git_branch", "host",
] as const satisfies readonly (keyof RunRecord)[];

/** The fields of a run that the API receives, without nulls (contract, "Client and API"). */
export function apiPayload(run: RunRecord): Record<string, unknown> {
  const fields = API_FIELDS.map((field) => [field, run[field]] as const);
  return Object.fromEntries(fields.filter(([, value]) => value !== null && value !== undefined));
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
  /** The host of the API, with a port that is not the default one. */
  readonly host: string;
  /** Whether the last post was answered with 401 or 403: no other run would be accepted either. */
  isTokenRefused = false;
  // Private fields do not show when the object is printed.
  readonly #url: URL;
  readonly #token: string;
  readonly #delaysMs: readonly number[];
  readonly #timeoutMs: number;

  /**
   * Creates a client. It sends nothing yet.
   *
   * @throws {TelemetryError} `usage` when the URL is neither https nor http to this machine, when a header cannot
   * contain the token, or when a time is not valid
   */
  constructor({ url, token, delaysMs = [1000, 2000], timeoutMs = 10_000 }: ApiClientOptions) {
    assertNonNegative({ timeoutMs });
    for (const delayMs of delaysMs) assertNonNegative({ delayMs });
    this.#url = parseApiUrl(url);
    this.#token = parseToken(token);
    this.#delaysMs = delaysMs;
    this.#timeoutMs = timeoutMs;
    this.host = this.#url.host;
  }

  /**
   * Posts a run, with the retries that the options set. Never rejects, and never triggers a permission prompt.
   *
   * @param run the run
   * @param signal ends the post immediately, also during a pause; the default is none
   * @param aliveForMs how long the post may keep a process alive that has nothing else to do, in milliseconds: that
   * bounds the first attempt, and the pauses keep no process alive; the default is no limit
   */
  async post(run: RunRecord, signal?: AbortSignal, aliveForMs?: number): Promise<PostResult> {
    let body: string;
    try {
      body = toJson(apiPayload(run), "run");
    } catch (error) {
      return { posted: false, tries: 0, final: true, reason: errorMessage(error) };
    }
    const missing = missingPermission(this.#url);
    if (missing) return { posted: false, tries: 0, final: true, reason: missing };

    for (let tries = 0;;) {
      if (signal?.aborted) return { posted: false, tries, final: false, reason: "posting was stopped" };
      const timeoutMs = tries === 0 ? Math.min(this.#timeoutMs, aliveForMs ?? Infinity) : this.#timeoutMs;
      const failure = await this.#attempt(body, timeoutMs, signal);
      const delayMs = this.#delaysMs[tries++];
      if (!failure) return { posted: true, tries };
      if (signal?.aborted) continue; // The attempt failed because of the signal.
      const { final, reason, retryAfter = null } = failure;
      if (final || delayMs === undefined) return { posted: false, tries, final, reason };
      const waitMs = retryWaitMs(delayMs, retryAfter);
      await delay(waitMs, undefined, { signal, ref: aliveForMs === undefined }).catch(() => {});
    }
  }

  /**
   * Makes one attempt. Returns undefined on success. It follows redirects itself, because each target must be checked
   * before anything is sent to it: for https, for the permission, and for whether it may receive the token.
   */
  async #attempt(body: string, timeoutMs: number, stop?: AbortSignal): Promise<Failure | undefined> {
    const timeout = AbortSignal.timeout(timeoutMs);
    const signal = stop ? AbortSignal.any([stop, timeout]) : timeout;
    let [url, method, isTrusted] = [this.#url, "POST", true];
    try {
      for (let redirects = 0; redirects <= MAX_REDIRECTS; redirects++) {
        // `fetch` sends a user and password as `Authorization: Basic`, joined to the token by a comma.
        url.username = url.password = "";
        const headers = new Headers();
        if (isTrusted) headers.set("authorization", `Bearer ${this.#token}`);
        if (method === "POST") headers.set("content-type", "application/json");
        using direct = directClient(url);
        const request: RequestInit = { method, headers, redirect: "manual", signal, ...method === "POST" && { body } };
        const response = await fetch(url, { ...request, ...direct && { client: direct } });
        const { status } = response;
        this.isTokenRefused = status === 401 || status === 403;
        const location = [301, 302, 303, 307, 308].includes(status) ? response.headers.get("location") : null;
        const next = location === null ? null : URL.parse(location, url);
        if (!next) return await checkResponse(response, url.host);

        await response.body?.cancel().catch(() => {});
        if (!isSafe(next)) return { final: true, reason: `${url.host} redirects to an address that is not https` };
        const missing = missingPermission(next);
        if (missing) return { final: true, reason: `${missing} (${url.host} redirects there)` };
        if (status < 307) method = "GET";
        // Once it is false, it stays false, also after a redirect back.
        isTrusted &&= next.origin === url.origin;
        url = next;
      }
      return { final: false, reason: `${url.host} redirects too often` };
    } catch (error) {
      const timedOut = `did not answer within ${Math.round(timeoutMs) / 1000} s`;
      return { final: false, reason: `${url.host} ${signal.aborted ? timedOut : describeFetchError(error)}` };
    }
  }
}

/**
 * Creates the client that the environment configures (contract, "Where `{base}` is", other variables). Returns
 * undefined when posting is off: no URL or token, `METRICS_API_ENABLED` not true, or `TELEMETRY_TEST_MODE` is `mock`.
 *
 * @param onNoToken called with a warning when only the token is missing
 * @throws {TelemetryError} `usage` when posting is on, but the URL or the token is invalid
 */
export function apiFromEnvironment(onNoToken: (message: string) => void = () => {}): ApiClient | undefined {
  const isOn = /^(true|1|yes|on)$/i.test(readEnv("METRICS_API_ENABLED") ?? "true");
  const url = readEnv("METRICS_API_URL")?.trim();
  if (!isOn || !url || readEnv("TELEMETRY_TEST_MODE") === "mock") return undefined;
  const token = readEnv("METRICS_API_TOKEN")?.trim();
  if (token) return new ApiClient({ url, token });
  const message = "METRICS_API_URL is set without METRICS_API_TOKEN: nothing is posted to the API";
  onNoToken(`${message} (set it, and run the program with --allow-env=METRICS_API_TOKEN)`);
  return undefined;
}

/** The pause before the next attempt: `delayMs`, or a longer `Retry-After` (seconds or a date) of up to a minute. */
export function retryWaitMs(delayMs: number, retryAfter: string | null, now: number = Date.now()): number {
  const text = retryAfter?.trim() ?? "";
  const askedMs = /^\d+$/.test(text) ? Number(text) * 1000 : Date.parse(text) - now;
  return Number.isNaN(askedMs) ? delayMs : Math.max(delayMs, Math.min(askedMs, MAX_RETRY_AFTER_MS));
}

function parseApiUrl(text: string): URL {
  // Not `new URL`: its error contains the text.
  const url = URL.parse(text);
  if (url && isSafe(url)) return url;
  throw new TelemetryError("usage", `the API URL is not https: ${url?.host || "no host"}`, {
    hint: "METRICS_API_URL must start with https://, or with http://localhost",
  });
}

/** A token that was read from a file may end in a newline. */
function parseToken(text: string): string {
  const token = typeof text === "string" ? text.trim() : "";
  if (/^[ -~\xA0-\xFF]+$/.test(token)) return token;
  throw new TelemetryError("usage", "the API token is empty or has characters that a header cannot contain", {
    hint: "METRICS_API_TOKEN must be one line of plain text",
  });
}

/** Whether no one else can read the request: https, or a host name that always means this machine. */
function isSafe({ protocol, hostname }: URL): boolean {
  if (protocol === "https:") return true;
  return protocol === "http:" && /^(?:(?:.+\.)?localhost|127\.\d+\.\d+\.\d+|\[::1\])$/.test(hostname);
}

/** The permission that is missing to connect, or undefined. `fetch` would show a prompt, which stops the agent. */
function missingPermission({ protocol, hostname, port, host }: URL): string | undefined {
  try {
    const address = `${hostname}:${port || (protocol === "https:" ? 443 : 80)}`;
    if (Deno.permissions.querySync({ name: "net", host: address }).state === "granted") return undefined;
  } catch { /* A URL can have a host that a permission cannot name, such as `a..b`. */ }
  return `no permission: --allow-net=${host}`;
}

/**
 * A client that connects to this machine itself, whatever the variables for proxies are: `fetch` would show the token to
 * the proxy of `HTTP_PROXY`. Undefined for https, where a proxy sees only the name of the host.
 */
function directClient({ protocol, hostname, port }: URL): Deno.HttpClient | undefined {
  if (protocol === "https:") return undefined;
  return Deno.createHttpClient({ proxy: { transport: "tcp", hostname, port: Number(port || 80) } });
}

/** Checks the last response. Returns undefined on success. */
async function checkResponse(response: Response, host: string): Promise<Failure | undefined> {
  const { status, headers } = response;
  const retryAfter = headers.get("retry-after");
  if (status !== 200) {
    await response.body?.cancel().catch(() => {});
    const final = status >= 400 && status < 500 && status !== 408 && status !== 429;
    return { final, reason: `${host} answered ${status}`, retryAfter };
  }
  // Always read: only a connection whose response was read to its end can be used again.
  let start = "";
  for await (const text of response.body?.pipeThrough(new TextDecoderStream()) ?? []) {
    start += text;
    if (start.length >= MAX_BODY_TEXT) break;
  }
  // By its content: PHP, Flask and CGI label JSON as text/html.
  return HTML.test(start) ? { final: false, reason: `${host} answered 200 with an HTML page`, retryAfter } : undefined;
}

/** Describes an error of `fetch`. Its own text can contain the whole URL, and it has no code. */
function describeFetchError(thrown: unknown): string {
  const cause = thrown instanceof Error ? thrown.cause : undefined;
  const text = `${errorMessage(thrown)} ${errorMessage(cause)}`.replace(/\S*:\/\/\S*/g, "");
  if (/dns error/.test(text)) return "cannot be found";
  if (/certificate/.test(text)) return "has a certificate that is not trusted";
  if (/refused/.test(text)) return "refused the connection";
  if (/closed before|reset by peer|broken pipe|reading a body/i.test(text)) return "broke off the connection";
  return "cannot be reached";
}
