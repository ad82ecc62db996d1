/**
 * The client that agents record their runs with: first in the log, then in the database, then at the web API.
 * @module
 */
import { readEnv } from "../fs/locate.ts";
import { within } from "../fs/wait.ts";
import { newRun, runId, type RunRecord } from "../records.ts";
import { parseTimestamp, timestamp } from "../time.ts";
import { apiFromEnvironment } from "./api_client.ts";
import { ClientStore } from "./client_store.ts";
import type { RunStats } from "./database_writer.ts";
import {
  copyOf,
  type EndFields,
  errorSummary,
  hostName,
  type RunFields,
  toColumns,
  toColumnText,
  toEndStatus,
} from "./fields.ts";
import { jsonOf } from "./json.ts";
import {
  checkOptions,
  checkPending,
  checkStale,
  type ClientOptions,
  type ClientStats,
  type EndStaleOptions,
  type PostPendingOptions,
  type PostPendingResult,
  type TrackedRun,
} from "./options.ts";
import { PostQueue } from "./post_queue.ts";
import { toText, Warnings } from "./warnings.ts";
import { inTurns } from "./write_queue.ts";

export { CLIENT_COLUMNS, type EndFields, type RunFields } from "./fields.ts";
export type * from "./options.ts";

/** A run of this client that has not ended. */
interface OpenRun {
  run: RunRecord;
  /** By the monotonic clock, in milliseconds. */
  started: number;
  /** The fields for its end. Only a run of `trackRun` has them. */
  results?: EndFields | undefined;
}

/** The work of a run that is recorded. */
type Work<T> = (run: TrackedRun) => T | Promise<T>;

/** What happens when the process ends by `Deno.exit`, by itself, or by an uncaught error, which skips `unload`. */
const EXIT_EVENTS = ["unload", "error", "unhandledrejection"];
/** Whether the process is ending. What is recorded now, in handlers of the agent, is written synchronously. */
let isEnding = false;
for (const event of EXIT_EVENTS) {
  globalThis.addEventListener(event, () => {
    isEnding = true;
    // The agent may prevent the end by an error.
    if (event !== "unload") queueMicrotask(() => isEnding = false);
  });
}
/** How long `close()` waits for the log and the API after it has stopped them, in milliseconds. */
const LAST_MOMENT_MS = 250;

/**
 * Records the runs of an agent. No method throws or rejects because of telemetry: a failure is counted, and the first
 * one of each cause calls `onWarning`. A promise resolves when the record is on the disk in the log, or has failed.
 * The database follows immediately or, while it is locked, in the background. The API follows in the background.
 *
 * @example
 * ```ts
 * import { TelemetryClient } from "./client.ts";
 *
 * await using telemetry = new TelemetryClient({ base: "/tmp/telemetry" });
 * const runId = await telemetry.startRun("indexer", "index_files");
 * await telemetry.logEvent(runId, "checkpoint", { files: 12 });
 * await telemetry.endRun(runId, { status: "success", items_discovered: 12, items_succeeded: 12 });
 * ```
 */
export class TelemetryClient implements AsyncDisposable {
  readonly #warnings = new Warnings();
  readonly #closeTimeoutMs: number;
  readonly #store: ClientStore;
  /** Undefined when posting is off. */
  readonly #posts: PostQueue | undefined;
  readonly #runs = new Map<string, OpenRun>();
  /** How many calls are recording something. */
  #recording = 0;
  readonly #atExit = (event: Event) => {
    if (!event.defaultPrevented) this.#recordExit();
  };
  #closed: Promise<void> | undefined;

  /** Finds the store, and creates missing folders with a warning. Never throws. */
  constructor(options: ClientOptions = {}) {
    const { base, closeTimeoutMs } = checkOptions(options, this.#warnings);
    this.#closeTimeoutMs = closeTimeoutMs;
    this.#store = new ClientStore(base, this.#warnings);
    try {
      const api = apiFromEnvironment((message) => this.#warnings.warn("api:off", message));
      if (api !== undefined) this.#posts = new PostQueue(api, this.#store, this.#warnings);
    } catch (error) {
      this.#warnings.fail("api", error);
    }
  }

  /**
   * Records that a run has started.
   *
   * @param fields other columns; `agent_owner` defaults to the variable `AGENT_OWNER`, `host` to the host name
   * @returns the id of the run, when the record is on the disk or has failed
   */
  startRun(agentName: string, jobType: string, fields: RunFields = {}): Promise<string> {
    return this.#startRun(agentName, jobType, fields);
  }

  async #startRun(agentName: string, jobType: string, fields: RunFields, results?: EndFields): Promise<string> {
    const now = new Date();
    const name = toColumnText("agent_name", agentName, this.#warnings);
    const id = runId(name, now);
    await this.#enter("run", async () => {
      if (name === "") this.#warnings.warn("field:agent_name", "agent_name is empty");
      const run = newRun({
        run_id: id,
        agent_name: name,
        job_type: toColumnText("job_type", jobType, this.#warnings),
        start_time: timestamp(now),
        trigger_type: "cli",
        agent_owner: readEnv("AGENT_OWNER") || null,
        host: hostName(),
        ...toColumns(copyOf(fields, this.#warnings), this.#warnings),
      });
      this.#runs.set(id, { run, started: performance.now(), results });
      await this.#record(run);
    });
    return id;
  }

  /**
   * Records an event of a run. Events are stored only in the log. The order of calls is kept without waiting for them.
   *
   * @param runId the run; it is not checked
   * @param payload any value; what JSON cannot represent is recorded as text, with a warning
   */
  logEvent(runId: string, eventType: string, payload?: unknown): Promise<void> {
    return this.#enter("event", () =>
      this.#store.append({
        run_id: toColumnText("run_id", runId, this.#warnings),
        event_type: toColumnText("event_type", eventType, this.#warnings),
        timestamp: timestamp(),
        payload_json: payload === undefined || payload === null ? null : jsonOf(payload, "payload", this.#warnings),
        id: null,
        record_type: "event",
      }));
  }

  /**
   * Records that a run has ended. The run may be one of an earlier process, if the database has it as `running`. For
   * any other run that this client did not start, or that has ended, it only warns.
   *
   * @param fields `status` defaults to `success`, `end_time` to now, `duration_ms` to the milliseconds since the start.
   * A `status` that the contract does not know is recorded as `partial`, with a warning
   */
  endRun(runId: string, fields: EndFields = {}): Promise<void> {
    return this.#enter("run", async () => {
      // Copied before the first wait: the caller may change the fields.
      const given = copyOf(fields, this.#warnings);
      const own = this.#runs.get(runId);
      this.#runs.delete(runId);
      const end = (open: OpenRun) => this.#record(this.#ended(open, given));
      if (own !== undefined) return await end(own);
      if (await this.#endRunOfDatabase(toText(runId), end)) return;
      const what = `run ${toText(runId)} was not started by this client or has already ended`;
      this.#warnings.warn("unknown_run", `${what}: its end is not recorded`);
    });
  }

  /** The state of a run that ends now. */
  #ended({ run, started }: OpenRun, { status: given = "success", ...fields }: Record<string, unknown>): RunRecord {
    const { status, original } = toEndStatus(given, this.#warnings);
    return {
      ...run,
      end_time: timestamp(),
      duration_ms: Math.round(performance.now() - started),
      ...toColumns(fields, this.#warnings, run.metrics_json, original),
      status,
    };
  }

  /**
   * Ends a run that an earlier process started and did not end, in the turn in which it is read: the process may exit in
   * the next one. Returns whether there is one.
   */
  async #endRunOfDatabase(runId: string, end: (open: OpenRun) => Promise<void>): Promise<boolean | undefined> {
    return await this.#store.read(async (writer) => {
      const run = writer.getRun(runId);
      // Another call may have ended it.
      if (run?.status !== "running" || this.#store.isRecording(runId)) return false;
      const age = Date.now() - (parseTimestamp(run.start_time) ?? Date.now() * 1000) / 1000;
      // The log has no times of rows.
      await end({ run: { ...run, created_at: null, updated_at: null }, started: performance.now() - Math.max(0, age) });
      return true;
    });
  }

  /**
   * Runs `work` as a recorded run. The run ends as `success`, or with the status that the work sets. When `work`
   * throws, the run ends as `failed` with the `error_summary` `Type: message`. When the process ends by `Deno.exit` or
   * an uncaught error meanwhile, the run ends as `failed`, too.
   *
   * @param fields other columns, as for `startRun`; they can be left out
   * @returns what `work` returns
   * @throws what `work` throws
   *
   * @example
   * ```ts
   * import { TelemetryClient } from "./client.ts";
   *
   * await using telemetry = new TelemetryClient({ base: "/tmp/telemetry" });
   * await telemetry.trackRun("indexer", "index_files", { product: "docs" }, async (run) => {
   *   await run.logEvent("checkpoint", { folder: "lib" });
   *   run.setMetrics({ items_discovered: 12, items_succeeded: 12, pages: 3 });
   * });
   * ```
   */
  trackRun<T>(
    agentName: string,
    jobType: string,
    fields: RunFields,
    work: (run: TrackedRun) => T | Promise<T>,
  ): Promise<T>;
  /** The same without fields. */
  trackRun<T>(agentName: string, jobType: string, work: (run: TrackedRun) => T | Promise<T>): Promise<T>;
  async trackRun<T>(agentName: string, jobType: string, ...rest: [RunFields, Work<T>] | [Work<T>]): Promise<T> {
    const [fields, work] = rest.length === 1 ? [{}, rest[0]] : rest;
    // Without a prototype: a metric can be named __proto__.
    const results: EndFields = Object.create(null);
    const runId = await this.#startRun(agentName, jobType, fields, results);
    try {
      const result = await work({
        runId,
        logEvent: (eventType, payload) => this.logEvent(runId, eventType, payload),
        setStatus: (status) => void (results.status = status),
        setMetrics: (metrics) => void Object.assign(results, copyOf(metrics, this.#warnings)),
      });
      await this.endRun(runId, { ...results });
      return result;
    } catch (error) {
      await this.endRun(runId, { ...results, status: "failed", error_summary: errorSummary(error, this.#warnings) });
      throw error;
    }
  }

  /**
   * Posts runs that are pending in the database, one after the other. A run is posted at least once: after a crash the
   * API can receive it again, and should recognise it by its `run_id`. Does nothing when posting is off. Stops when the
   * API is down or refuses the token.
   *
   * @example
   * ```ts
   * import { TelemetryClient } from "./client.ts";
   *
   * await using telemetry = new TelemetryClient({ base: "/tmp/telemetry" });
   * const { posted, failed } = await telemetry.postPending({ limit: 100 });
   * console.log(`${posted} posted, ${failed} still pending`);
   * ```
   */
  async postPending(options: PostPendingOptions = {}): Promise<PostPendingResult> {
    let result: PostPendingResult = { posted: 0, failed: 0, refused: 0 };
    await this.#enter("api", async () => {
      const { limit, since } = checkPending(options);
      if (this.#posts !== undefined) result = await this.#posts.addPending(limit, since);
    });
    return result;
  }

  /**
   * Ends runs as `failed` that are `running` and have logged nothing for a time, because their agents died: at the time
   * of their last record, in the log and in the database. A run that lives after all overrides this when it ends.
   * Open runs of this client are left out.
   *
   * @returns the runs that were ended
   *
   * @example
   * ```ts
   * import { TelemetryClient } from "./client.ts";
   *
   * await using telemetry = new TelemetryClient({ base: "/tmp/telemetry" });
   * for (const { run_id } of await telemetry.endStale({ olderThan: "24h" })) console.log(`${run_id} has died`);
   * ```
   */
  async endStale(options: EndStaleOptions): Promise<RunRecord[]> {
    let ended: RunRecord[] = [];
    await this.#enter("stale", async () => {
      ended = await this.#store.endStale({ ...checkStale(options), isLeftOut: (id) => this.#runs.has(id) });
      for (const run of ended) this.#posts?.add(run);
    });
    return ended;
  }

  /** Counts the runs in the database, and the failures in this client. Works after `close()`, too. */
  async getStats(): Promise<ClientStats> {
    const none: RunStats = { total_runs: 0, status_counts: {}, pending_api_posts: 0 };
    const stats = await this.#store.read((writer) => inTurns(writer.statsInSteps())) ?? none;
    return { ...stats, failures: this.#warnings.counts() };
  }

  /**
   * Waits at most `closeTimeoutMs` for the log, the database and the API, then closes. Records that come later are
   * ignored, with a warning. Runs that were not posted stay pending. A second call returns the same promise.
   */
  close(): Promise<void> {
    return this.#closed ??= this.#close();
  }

  /** Closes, as {@linkcode close} does. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    await within(this.#closeTimeoutMs, this.#settled());
    this.#posts?.stop();
    this.#store.abandonLog();
    await within(LAST_MOMENT_MS, this.#settled());
    this.#store.close();
    this.#stopListening();
    // A pause that began before ends.
    await this.#store.queue.flush();
  }

  /**
   * Records synchronously what waits, since nothing asynchronous continues at the end of the process. The runs of
   * `trackRun` that are open are recorded as failed. The agent can still prevent the end by an uncaught error: they stay open.
   */
  #recordExit(): void {
    try {
      const summary = { error_summary: "the process exited before the run ended", status: "failed" };
      for (const open of this.#runs.values()) {
        if (open.results) void this.#store.record(this.#ended(open, { ...open.results, ...summary }));
      }
      this.#store.flushSync();
    } catch (error) {
      this.#warnings.fail("exit", error);
    }
  }

  #stopListening(): void {
    for (const event of EXIT_EVENTS) globalThis.removeEventListener(event, this.#atExit);
  }

  /** Resolves when log, API and database have no more to do, or cannot do it. */
  async #settled(): Promise<void> {
    await this.#store.logged();
    await this.#posts?.idle();
    await this.#store.queue.flush();
  }

  /** The door of every method that records: ignores calls after `close()`, and turns exceptions into warnings. */
  async #enter(area: string, work: () => Promise<void>): Promise<void> {
    if (this.#closed) {
      return this.#warnings.warn("closed", "the telemetry client is closed: later records are ignored");
    }
    if (this.#recording++ === 0) {
      for (const event of EXIT_EVENTS) globalThis.addEventListener(event, this.#atExit);
    }
    try {
      const recording = work();
      if (isEnding) this.#store.flushSync();
      await recording;
    } catch (error) {
      this.#warnings.fail(area, error);
    }
    const isIdle = --this.#recording === 0 && this.#store.queue.size === 0;
    // Only a client that has something to record is kept in memory.
    if (isIdle && !this.#runs.values().some(({ results }) => results)) this.#stopListening();
  }

  /** Writes to the log, then the database, then the API. */
  async #record(run: RunRecord): Promise<void> {
    await this.#store.record(run);
    if (run.status !== "running") this.#posts?.add(run);
  }
}
