/** What callers give to a client and get from it. @module */
import type { RunStats } from "./database_writer.ts";
import type { EndFields } from "./fields.ts";

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
  /** The maximum number of runs: those with the fewest failed posts first, then the newest. @default 100 */
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
