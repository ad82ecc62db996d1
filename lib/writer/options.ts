/** What callers give to a client and get from it. @module */
import { TelemetryError } from "../errors.ts";
import { parseDurationFlag, parseTimestamp } from "../time.ts";
import type { RunStats } from "./database_writer.ts";
import { copyOf, type EndFields } from "./fields.ts";
import { toText, type Warnings } from "./warnings.ts";

/** Options of a `TelemetryClient`. */
export interface ClientOptions {
  /**
   * The base folder of the store.
   * @default the folder that the environment names, or the first of the usual folders that exists
   */
  base?: string;
  /** Called once for each cause of a failure. @default prints one line to stderr */
  onWarning?: (message: string) => void;
  /** How long `close()` waits for the log, the database and the API, in milliseconds. @default 5000 */
  closeTimeoutMs?: number;
}

/** The run that `TelemetryClient.trackRun` passes to the work. */
export interface TrackedRun {
  /** The id of the run. */
  readonly runId: string;
  /** Records an event, as `TelemetryClient.logEvent` does. */
  logEvent(eventType: string, payload?: unknown): Promise<void>;
  /** Sets the status with which the run ends. When the work throws, the run ends as `failed` whatever is set. */
  setStatus(status: NonNullable<EndFields["status"]>): void;
  /**
   * Sets fields for the end of the run. A field that is not a column goes into `metrics_json`. A later value replaces
   * an earlier one.
   */
  setMetrics(metrics: EndFields & Record<string, unknown>): void;
}

/** Which runs `TelemetryClient.postPending` posts. */
export interface PostPendingOptions {
  /** The maximum number of runs, up to 10,000: those with the fewest failed posts first, then the newest. @default 100 */
  limit?: number;
  /** Only runs that started at or after this time, ISO 8601. @default all runs */
  since?: string;
}

/** The result of `TelemetryClient.postPending`. */
export interface PostPendingResult {
  /** How many runs the API accepted. */
  posted: number;
  /** How many runs the API did not accept. They stay pending. */
  failed: number;
  /** How many of these the API refused for good, with a 4xx. They are tried after all others. */
  refused: number;
}

/** Which runs `TelemetryClient.endStale` ends. */
export interface EndStaleOptions {
  /** How long ago the last record of a run was written at least, such as `24h` or `7d`. */
  olderThan: string;
  /** Only runs of this agent. @default all agents */
  agent?: string;
}

/** The result of `TelemetryClient.getStats`. */
export interface ClientStats extends RunStats {
  /** How often each cause of a failure occurred in this client, by `area:code`. */
  failures: Record<string, number>;
}

const MAX_PENDING = 10_000;
/** The longest time of a timer, in milliseconds. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/** Checks the options of a client. Warns of those that are not used. The store checks `base`. */
export function checkOptions(given: unknown, warnings: Warnings): { base: string | undefined; closeTimeoutMs: number } {
  const { base, onWarning, closeTimeoutMs = 5000, ...unknown } = copyOf(given, warnings);
  if (typeof onWarning === "function") warnings.onWarning = onWarning as Warnings["onWarning"];
  const wrong = Object.keys(unknown).map((name) => `there is no option ${name}`);
  if (onWarning !== undefined && typeof onWarning !== "function") wrong.push("the option onWarning is not a function");
  const isTime = typeof closeTimeoutMs === "number" && closeTimeoutMs >= 0;
  if (!isTime) wrong.push(`the option closeTimeoutMs takes milliseconds, not ${toText(closeTimeoutMs)}: 5000 are used`);
  for (const message of wrong) warnings.warn(`options:${message}`, message);
  return { base: base as string | undefined, closeTimeoutMs: isTime ? Math.min(closeTimeoutMs, MAX_TIMER_MS) : 5000 };
}

/** Checks which runs to end. Throws `usage`. */
export function checkStale(options: EndStaleOptions): { olderThanMs: number; agent: string | undefined } {
  const { olderThan, agent, ...unknown } = options ?? {};
  assertNone(unknown);
  if (agent !== undefined && (typeof agent !== "string" || agent === "")) {
    throw new TelemetryError("usage", `agent is not a name: ${toText(agent)}`, { hint: "leave it out for all agents" });
  }
  return { olderThanMs: parseDurationFlag("olderThan", toText(olderThan)), agent };
}

function assertNone(unknown: object): void {
  const [name] = Object.keys(unknown);
  if (name !== undefined) throw new TelemetryError("usage", `there is no option ${name}`, { hint: "correct its name" });
}

/** Checks which runs to post. Throws `usage`. */
export function checkPending(options: PostPendingOptions): { limit: number; since: string | undefined } {
  const { limit = 100, since, ...unknown } = options ?? {};
  assertNone(unknown);
  const isLimit = Number.isInteger(limit) && limit >= 1 && limit <= MAX_PENDING;
  const isTime = since === undefined || typeof since === "string" && parseTimestamp(since) !== undefined;
  if (isLimit && isTime) return { limit, since };
  throw new TelemetryError("usage", `nothing is posted: not a limit and a time (${toText(limit)}, ${toText(since)})`, {
    hint: `limit is a whole number from 1 to ${MAX_PENDING}, since a time in ISO 8601 such as 2025-12-10T12:00:00Z`,
  });
}
