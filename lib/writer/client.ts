/**
 * What agents record their runs with: the log first, then the database, then the web API.
 * @module
 */
import { type ApiClient, apiFromEnvironment } from "./api_client.ts";
import { DatabaseWriter, type RunStats } from "./database_writer.ts";
import { errorMessage, hasCode, TelemetryError } from "../errors.ts";
import { EventLog } from "../log/append.ts";
import { candidateFolders, homeFolderOf, type Layout, STORE_VARIABLES } from "../layout.ts";
import { assertGranted, isFolder, isGranted, locate, readEnv } from "../fs/locate.ts";
import {
  type LogRecord,
  MAX_LINE_BYTES,
  newRun,
  RUN_COLUMNS,
  RUN_STATUSES,
  runId,
  type RunRecord,
  type RunStatus,
  toJson,
  type TriggerType,
} from "../records.ts";
import { timestamp } from "../time.ts";
import { createStorage } from "../store/folders.ts";

/** How a {@linkcode TelemetryClient} behaves. */
export interface ClientOptions {
  /** The folder of the store. @default what the environment says, or the first of the usual folders that exists */
  base?: string;
  /** Told once for each cause of trouble. @default a line on stderr */
  onWarning?: (message: string) => void;
  /** How long `close()` waits for what is not written or posted yet, in milliseconds. @default 5000 */
  closeTimeoutMs?: number;
}

/** The columns that the client fills itself, or takes in another form. */
export type OwnColumns =
  | "run_id"
  | "schema_version"
  | "agent_name"
  | "job_type"
  | "status"
  | "trigger_type"
  | "metrics_json"
  | "api_posted"
  | "api_posted_at"
  | "api_retry_count"
  | "created_at"
  | "updated_at";

/**
 * What an agent may say of its run: the contract's columns by their names. What has another name, where the compiler
 * lets it pass, goes into `metrics_json`.
 */
export type RunFields =
  & Partial<Omit<RunRecord, OwnColumns>>
  & {
    /** What started the run. @default "cli" */
    trigger_type?: TriggerType;
    /** Anything else that was measured: JSON text, or an object that becomes JSON. */
    metrics_json?: string | Record<string, unknown> | null;
  };

/** How a run ended. */
export type EndFields = RunFields & {
  /** The state it ended in. @default "success" */
  status?: Exclude<RunStatus, "running">;
};

/** The run that {@linkcode TelemetryClient.trackRun} hands to the work. */
export interface TrackedRun {
  /** Its id. */
  readonly runId: string;
  /** Records that something happened. */
  logEvent(eventType: string, payload?: unknown): Promise<void>;
  /**
   * Notes results for the end of the run: the contract's columns by their names, anything else into `metrics_json`.
   * May be called often; later values replace earlier ones.
   */
  setMetrics(metrics: RunFields & Record<string, unknown>): void;
}

/** Which runs {@linkcode TelemetryClient.postPending} posts. */
export interface PostPendingOptions {
  /** How many at most, the newest first. @default 100 */
  limit?: number;
  /** Only runs that started at or after this time, ISO 8601. */
  since?: string;
}

/** What {@linkcode TelemetryClient.postPending} did. */
export interface PostPendingResult {
  /** How many runs the API accepted. */
  posted: number;
  /** How many it did not; they stay pending. */
  failed: number;
}

/** What {@linkcode TelemetryClient.getStats} tells. */
export interface ClientStats extends RunStats {
  /** How often each cause of trouble came up in this client, the first of which was warned of. */
  failures: Record<string, number>;
}

/** What records are written to. */
interface Store {
  log: EventLog;
  writer: DatabaseWriter;
}

/** A run of this client that has not ended. */
interface OpenRun {
  run: RunRecord;
  started: number;
}

/** What `status` a run gets whose agent gave one that the contract does not know. */
const UNKNOWN_STATUS: RunStatus = "partial";
/** How many characters of a text the log gets where a run is too long for it: as many as fit, were all of them so long. */
const MAX_TEXT = 100_000;
/** How long a write tries to get past a locked database, in milliseconds: as long as one that waits would. */
const LOCKED_FOR_MS = 15_300;
const LOCKED_PAUSE_MS = 25;
/** How many writes are kept for a database that cannot be written now; the log has them all. */
const MAX_UNSAVED = 1000;
/** How many of them are written before the agent gets its turn again. */
const SAVED_AT_ONCE = 50;
/** How long `close()` waits at its end for what has been told to stop, in milliseconds. */
const LAST_MOMENT_MS = 250;
/** How long a store that cannot be opened is left alone before it is tried again, in milliseconds. */
const REOPEN_AFTER_MS = 10_000;
/** How many runs are posted at the same time, and how many wait for it; the others stay pending in the database. */
const MAX_POSTING = 4;
const MAX_TO_POST = 1000;

const OWN_COLUMNS: readonly string[] = [
  "run_id",
  "schema_version",
  "agent_name",
  "job_type",
  "status",
  "api_posted",
  "api_posted_at",
  "api_retry_count",
  "created_at",
  "updated_at",
] satisfies OwnColumns[];
const FIELDS = new Set<string>(RUN_COLUMNS.filter((column) => !OWN_COLUMNS.includes(column)));
const NUMBERS = new Set<string>(
  ["items_discovered", "items_succeeded", "items_failed", "duration_ms"] satisfies (keyof RunRecord)[],
);

/**
 * Records the runs of an agent. Nothing it does throws into the agent or makes it wait without need: what fails is
 * warned of once and counted. A promise of it resolves when the record is in the log, on the disk; the database
 * follows at once or, when it is locked, as soon as it can be written; the API in the background.
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
  readonly #onWarning: (message: string) => void;
  readonly #closeTimeoutMs: number;
  readonly #failures = new Map<string, number>();
  readonly #runs = new Map<string, OpenRun>();
  /** What the database does not have yet, oldest first; a newer state of a run takes the place of an older one. */
  readonly #unsaved = new Map<string, (writer: DatabaseWriter) => void>();
  readonly #toPost: RunRecord[] = [];
  readonly #posting = new Map<string, Promise<unknown>>();
  readonly #stopPosting = new AbortController();
  #store: Store | undefined;
  /** Why there is no store, and when that may have changed. */
  #noStore: unknown;
  #openAgainAt = 0;
  readonly #base: string | undefined;
  #api: ApiClient | undefined;
  /** The call of `postPending` that is at work. */
  #postingPending: Promise<unknown> = Promise.resolve();
  #isSaving = false;
  /** Whether the last write to the database failed: only then is what waits for it bounded. */
  #isStuck = false;
  #saving: Promise<void> | undefined;
  #closed: Promise<void> | undefined;
  #outOfTime = false;

  /**
   * Finds the store, and makes what is missing of it, with a warning. Never throws.
   *
   * @param options where and how
   */
  constructor(options: ClientOptions = {}) {
    this.#onWarning = printWarning;
    const { base, onWarning, closeTimeoutMs } = this.#copyOf(options) as ClientOptions;
    if (typeof onWarning === "function") this.#onWarning = onWarning;
    // A timer takes no more than 31 bits, and anything else for no time at all.
    const isTime = typeof closeTimeoutMs === "number" && closeTimeoutMs >= 0;
    this.#closeTimeoutMs = isTime ? Math.min(closeTimeoutMs, 2 ** 31 - 1) : 5000;
    this.#base = base;
    this.#openStore();
    this.#try("api", () => this.#api = apiFromEnvironment());
  }

  /**
   * Records that a run has started.
   *
   * @param agentName who runs
   * @param jobType what kind of work it is
   * @param fields what is known of it already
   * @returns the run's id, when the record is on the disk (or has failed to get there, which is warned of)
   */
  async startRun(agentName: string, jobType: string, fields: RunFields = {}): Promise<string> {
    const now = new Date();
    const name = textOf(agentName);
    const id = runId(name, now);
    const run = newRun({
      run_id: id,
      agent_name: name,
      job_type: textOf(jobType),
      start_time: timestamp(now),
      trigger_type: "cli",
      agent_owner: readEnv("AGENT_OWNER") || null,
      host: hostName(),
      ...this.#cleaned(fields, null),
    });
    if (this.#refusesWhenClosed()) return id;
    this.#runs.set(id, { run, started: performance.now() });
    await this.#record(run);
    return id;
  }

  /**
   * Records that something happened in a run. Events are in the log alone.
   *
   * @param runId the run
   * @param eventType what happened
   * @param payload details, anything that JSON can carry
   * @returns resolves when the record is on the disk; agents need not wait for it, the order is kept
   */
  async logEvent(runId: string, eventType: string, payload?: unknown): Promise<void> {
    if (this.#refusesWhenClosed()) return;
    const payload_json = payload === undefined || payload === null
      ? null
      : this.#try("event", () => toJson(payload, "payload"));
    if (payload_json === undefined) return;
    await this.#append({
      run_id: textOf(runId),
      event_type: textOf(eventType),
      timestamp: timestamp(),
      payload_json,
      id: null,
      record_type: "event",
    });
  }

  /**
   * Records that a run has ended. An id that this client did not start, or has ended already, is warned of.
   *
   * @param runId the run
   * @param fields how it ended; `duration_ms` and `end_time` default to now
   * @returns resolves when the record is on the disk; it does not wait for the API
   */
  async endRun(runId: string, fields: EndFields = {}): Promise<void> {
    if (this.#refusesWhenClosed()) return;
    const open = this.#runs.get(runId);
    if (open === undefined) {
      this.#warn(
        "unknown_run",
        `run ${textOf(runId)} was not started by this client, or has ended: its end is not recorded`,
      );
      return;
    }
    this.#runs.delete(runId);
    const { status = "success", ...rest } = this.#copyOf(fields);
    const run: RunRecord = {
      ...open.run,
      end_time: timestamp(),
      duration_ms: Math.round(performance.now() - open.started),
      ...this.#cleaned(rest, open.run.metrics_json),
      status: this.#endStatus(status),
    };
    await this.#record(run);
    this.#post(run);
  }

  /**
   * Runs `work` as a recorded run. It ends as `success`; when `work` throws, as `failed` with `error_summary`
   * `Type: message`, and the error goes on to the caller.
   *
   * @param agentName who runs
   * @param jobType what kind of work it is
   * @param fields what is known of it already
   * @param work the work; what it returns is returned
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
  async trackRun<T>(
    agentName: string,
    jobType: string,
    ...rest: [RunFields, (run: TrackedRun) => T | Promise<T>] | [(run: TrackedRun) => T | Promise<T>]
  ): Promise<T> {
    const [fields, work] = rest.length === 1 ? [{}, rest[0]] : rest;
    const runId = await this.startRun(agentName, jobType, fields);
    const metrics: EndFields = {};
    const run: TrackedRun = {
      runId,
      logEvent: (eventType, payload) => this.logEvent(runId, eventType, payload),
      setMetrics: (more) => void Object.assign(metrics, this.#copyOf(more)),
    };
    let result: T;
    try {
      result = await work(run);
    } catch (error) {
      await this.endRun(runId, { ...metrics, status: "failed", error_summary: errorSummary(error) });
      throw error;
    }
    await this.endRun(runId, { ...metrics, status: "success" });
    return result;
  }

  /**
   * Posts what earlier runs have left pending in the database. At least once: after a crash at the wrong moment the
   * API sees a run twice, and should tell by its `run_id`.
   *
   * @param options which runs
   */
  postPending(options?: PostPendingOptions): Promise<PostPendingResult> {
    // One after the other: what both would read as pending would be posted twice.
    const chosen = this.#copyOf(options) as PostPendingOptions;
    const turn = this.#postingPending.then(() => this.#postPending(chosen));
    this.#postingPending = turn;
    return turn;
  }

  async #postPending({ limit = 100, since }: PostPendingOptions): Promise<PostPendingResult> {
    const done: PostPendingResult = { posted: 0, failed: 0 };
    if (this.#api === undefined || this.#refusesWhenClosed()) return done;
    const pending = await this.#read((writer) =>
      // Asked in the same moment as the database: later, its post may be over and no longer be known here.
      writer.getPendingApiPosts(limit, since).filter(({ run_id }) => !this.#isInHand(run_id))
    ) ?? [];
    for (const run of pending) {
      if (this.#stopPosting.signal.aborted) break;
      done[await this.#postNow(run, this.#api) ? "posted" : "failed"] += 1;
    }
    return done;
  }

  /** Counts over all runs in the database, and what went wrong in this client. */
  async getStats(): Promise<ClientStats> {
    const none: RunStats = { total_runs: 0, status_counts: {}, pending_api_posts: 0 };
    const stats = await this.#read((writer) => writer.getRunStats()) ?? none;
    return { ...stats, failures: Object.fromEntries(this.#failures) };
  }

  /**
   * Waits for what is not written or posted yet, for at most `closeTimeoutMs`. What the log has is safe then; what is
   * not posted stays pending in the database. Closing twice does nothing.
   */
  close(): Promise<void> {
    return this.#closed ??= this.#close();
  }

  /** Closes, as {@linkcode close} does. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    await this.#within(this.#closeTimeoutMs, this.#settled());
    this.#outOfTime = true;
    this.#stopPosting.abort();
    this.#store?.log.abandon();
    await this.#within(LAST_MOMENT_MS, this.#settled());
    if (this.#unsaved.size > 0) {
      this.#warn(
        "unsaved",
        `the log has everything, but ${this.#unsaved.size} changes of runs are not in the database`,
      );
    }
    this.#store?.writer.close();
  }

  /** Resolves when log, database and posts have nothing left to do, or can do nothing more. */
  async #settled(): Promise<void> {
    await this.#store?.log.idle();
    if (this.#unsaved.size > 0) this.#startSaving();
    while (this.#posting.size > 0) await Promise.all(this.#posting.values());
    if (this.#unsaved.size > 0) this.#startSaving();
    await this.#saving;
  }

  async #within(ms: number, work: Promise<void>): Promise<void> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    await Promise.race([work, new Promise((resolve) => timer = setTimeout(resolve, ms))]);
    clearTimeout(timer);
  }

  /** Opens the store, now or, where that cannot be done, with a later record: its disk may be mounted late. */
  #openStore(): void {
    this.#openAgainAt = performance.now() + REOPEN_AFTER_MS;
    try {
      this.#store = this.#storeIn(this.#find());
    } catch (error) {
      this.#noStore = error;
      this.#fail("storage", error);
    }
  }

  /** Finds the store. Where one may be that Deno hides, another one is used if it is there, but not made. */
  #find(): Layout {
    const hidden: string[] = [];
    const found = locate(this.#base, {
      env: readEnv,
      exists: (folder) => {
        if (isGranted({ name: "read", path: folder })) return isFolder(folder);
        hidden.push(folder);
        return false;
      },
    });
    if (this.#base !== undefined) return found;
    const unread = STORE_VARIABLES.filter((variable) => !isGranted({ name: "env", variable }));
    if (hidden.length + unread.length === 0) return found;
    const folders = candidateFolders(Deno.build.os, homeFolderOf(readEnv, Deno.build.os));
    const flags = [
      ...unread.length > 0 ? [`--allow-env=${unread}`] : [],
      ...hidden.length > 0 ? [`--allow-read=${folders}`, `--allow-write=${folders}`] : [],
    ];
    const hint = `name the store with the option base, or run it with ${flags.join(" ")}`;
    if (hidden.length > 0 && found.choice.source === "default") {
      throw new TelemetryError("permission", `Deno does not let this program see whether the store is ${hidden[0]}`, {
        hint,
      });
    }
    const what = `${found.base} is taken for the telemetry store, though Deno hides what may name another`;
    this.#warn("environment", `${what} (${[...unread, ...hidden]}): ${hint}`);
    return found;
  }

  /** Makes what is missing of a store. Never lets Deno ask for a permission: that stops the agent. */
  #storeIn(found: Layout): Store {
    let layout = found;
    if (!isFolder(layout.raw) || !isFolder(layout.db)) {
      try {
        layout = createStorage(found).layout;
        this.#warn("storage:made", `folders of the telemetry store in ${layout.base} were missing and have been made`);
      } catch (error) {
        // Where the log's folder is there, what is wrong with the others (db/ on a disk that is not mounted) must not
        // cost the log.
        if (!isFolder(layout.raw)) throw error;
        this.#fail("storage", error);
      }
    }
    assertGranted([layout.base, layout.raw, layout.db]);
    const log = new EventLog(layout, {
      onFolderMade: (folder) => this.#warn("storage:made", `${folder} was missing and has been made again`),
    });
    return { log, writer: new DatabaseWriter(layout, { wait: false }) };
  }

  /** Log first, then database. What the log refuses may still get into the database. */
  async #record(run: RunRecord): Promise<void> {
    await this.#append({ ...this.#fitting(run), record_type: "run" });
    this.#save(`run ${run.run_id}`, (writer) => writer.updateRun(run));
  }

  /** The run as it fits into a line of the log: to lose all of its end there would be worse than to cut a text. */
  #fitting(run: RunRecord): RunRecord {
    const texts = Object.entries(run).filter((field): field is [string, string] => typeof field[1] === "string");
    // No character takes more than six bytes of JSON.
    if (texts.reduce((sum, [, text]) => sum + text.length, 0) * 6 < MAX_LINE_BYTES / 2 || fitsLine(run)) return run;
    const long = texts.filter(([name, text]) => text.length > MAX_TEXT && name !== "metrics_json");
    const cut = {
      ...run,
      ...Object.fromEntries(long.map(([name, text]) => [name, text.slice(0, MAX_TEXT).toWellFormed()])),
    };
    const isJsonToo = !fitsLine(cut);
    const what = [...long.map(([name]) => name), ...isJsonToo ? ["metrics_json"] : []];
    this.#warn("long", `a run is too long for the log, which gets less of ${what}; the database gets all of it`);
    // Half of it would be no JSON.
    return isJsonToo ? { ...cut, metrics_json: null } : cut;
  }

  async #append(record: LogRecord): Promise<void> {
    if (this.#store === undefined && performance.now() > this.#openAgainAt) this.#openStore();
    if (this.#store === undefined) return this.#fail("storage", this.#noStore);
    try {
      await this.#store.log.append(record);
    } catch (error) {
      this.#fail("log", error);
    }
  }

  /**
   * Writes to the database now, or as soon as it can be written.
   *
   * @param key a later write of the same key takes the place of one that has not been made yet
   */
  #save(key: string, write: (writer: DatabaseWriter) => void): void {
    while (this.#isStuck && this.#unsaved.size >= MAX_UNSAVED && !this.#unsaved.has(key)) {
      const [oldest] = this.#unsaved.keys();
      this.#unsaved.delete(oldest!);
      this.#warn("unsaved", `more than ${MAX_UNSAVED} changes wait for the database: the oldest are in the log alone`);
    }
    this.#unsaved.set(key, write);
    this.#startSaving();
  }

  #startSaving(): void {
    const store = this.#store;
    if (store === undefined) this.#unsaved.clear();
    else if (!this.#isSaving) this.#saving = this.#saveAll(store.writer);
  }

  /** Makes the writes that wait, those included that come meanwhile. The first of them is made before this returns. */
  async #saveAll(writer: DatabaseWriter): Promise<void> {
    let saved = 0;
    this.#isSaving = true;
    try {
      for (const key of this.#unsaved.keys()) {
        const error = await this.#unlessLocked(() => this.#saveOne(key, writer));
        // Not whether the key is there: a newer state may have come since, which is at the end of the queue.
        if (error !== undefined) return this.#fail("database", error);
        if (++saved % SAVED_AT_ONCE === 0) await pause(0);
      }
    } finally {
      this.#isSaving = false;
    }
  }

  /** What the table refuses it will always refuse; anything else is tried again with the next write. */
  #saveOne(key: string, writer: DatabaseWriter): void {
    this.#isStuck = true;
    try {
      this.#unsaved.get(key)?.(writer);
    } catch (error) {
      if (!hasCode(error, "invalid_record")) throw error;
      this.#fail("database", error);
    }
    this.#isStuck = false;
    this.#unsaved.delete(key);
  }

  async #read<T>(read: (writer: DatabaseWriter) => T): Promise<T | undefined> {
    const writer = this.#store?.writer;
    if (writer === undefined) return undefined;
    let result: T | undefined;
    const error = await this.#unlessLocked(() => result = read(writer));
    if (error !== undefined) this.#fail("database", error);
    // It may have opened the database again.
    if (this.#closed) writer.close();
    return result;
  }

  /** Does something with the database, again and again while that is locked, without blocking the agent. */
  async #unlessLocked(work: () => void): Promise<unknown> {
    const deadline = performance.now() + LOCKED_FOR_MS;
    for (;;) {
      try {
        return void work();
      } catch (error) {
        if (!hasCode(error, "locked") || this.#outOfTime || performance.now() > deadline) return error;
      }
      await pause(LOCKED_PAUSE_MS);
    }
  }

  #post(run: RunRecord): void {
    if (this.#api === undefined) return;
    if (this.#toPost.length < MAX_TO_POST) this.#toPost.push(run);
    else this.#warn("api:backlog", `more than ${MAX_TO_POST} runs wait for the API: the others stay pending`);
    this.#postNext(this.#api);
  }

  /** Whether a run is being posted, will be, or has been and the database does not know it yet. */
  #isInHand(id: string): boolean {
    return this.#posting.has(id) || this.#unsaved.has(`posted ${id}`) ||
      this.#toPost.some(({ run_id }) => run_id === id);
  }

  #postNext(api: ApiClient): void {
    while (this.#posting.size < MAX_POSTING && !this.#stopPosting.signal.aborted) {
      const run = this.#toPost.shift();
      if (run === undefined) return;
      this.#postNow(run, api);
    }
  }

  /** Posts one run. Never rejects; whether the API accepted it. */
  async #postNow(run: RunRecord, api: ApiClient): Promise<boolean> {
    const posting = this.#postAndMark(run, api);
    this.#posting.set(run.run_id, posting);
    const posted = await posting;
    this.#posting.delete(run.run_id);
    this.#postNext(api);
    return posted;
  }

  async #postAndMark(run: RunRecord, api: ApiClient): Promise<boolean> {
    const { run_id } = run;
    const result = await api.post(run, this.#stopPosting.signal);
    if (result.posted) {
      // The log first, so that a database rebuilt from it does not post the run again.
      const api_posted_at = timestamp();
      const marked = this.#fitting({ ...run, ...NO_OWN_TIMES, api_posted: 1, api_posted_at });
      await this.#append({ ...marked, record_type: "run" });
      this.#save(`posted ${run_id}`, (writer) => void writer.markApiPosted(run_id, api_posted_at));
      return true;
    }
    if (this.#stopPosting.signal.aborted) return false;
    this.#warn("api", `a run could not be posted and stays pending: ${result.reason}`);
    if (result.tries > 0) {
      this.#save(`not posted ${run_id} ${crypto.randomUUID()}`, (writer) => void writer.incrementApiRetryCount(run_id));
    }
    return false;
  }

  #endStatus(status: unknown): RunStatus {
    if (status !== "running" && (RUN_STATUSES as readonly unknown[]).includes(status)) return status as RunStatus;
    this.#warn("status", `a run cannot end as ${textOf(status)}: it is recorded as ${UNKNOWN_STATUS}`);
    return UNKNOWN_STATUS;
  }

  /** What of the agent's fields can be recorded, as the columns have it. What is no column goes into the metrics. */
  #cleaned(fields: object, metricsBefore: string | null): Partial<RunRecord> {
    const cells: Record<string, string | number | null> = {};
    const metrics: Record<string, unknown> = {};
    for (const [name, value] of Object.entries(this.#copyOf(fields))) {
      if (value === undefined || (value === null && name === "start_time")) continue;
      if (OWN_COLUMNS.includes(name)) this.#warn("field", `${name} is filled by the client: it cannot be set`);
      else if (FIELDS.has(name)) this.#try("field", () => cells[name] = cellOf(name, value));
      else metrics[name] = value;
    }
    if (Object.keys(metrics).length > 0) {
      const before = cells["metrics_json"] ?? metricsBefore ?? "null";
      this.#try("field", () => cells["metrics_json"] = toJson({ ...objectOf(before), ...metrics }, "metrics_json"));
    }
    return cells;
  }

  /** What an agent gave, read once: a getter of it may throw. */
  #copyOf(given: unknown): Record<string, unknown> {
    return this.#try("field", () => ({ ...(given as object) })) ?? {};
  }

  #refusesWhenClosed(): boolean {
    if (this.#closed) this.#warn("closed", "the telemetry client has been closed: what comes later is not recorded");
    return this.#closed !== undefined;
  }

  #try<T>(area: string, work: () => T): T | undefined {
    try {
      return work();
    } catch (error) {
      this.#fail(area, error);
      return undefined;
    }
  }

  #fail(area: string, error: unknown): void {
    if (!(error instanceof TelemetryError)) return this.#warn(`${area}:unexpected`, `${area}: ${errorMessage(error)}`);
    this.#warn(`${area}:${error.code}`, error.hint ? `${error.message} (${error.hint})` : error.message);
  }

  /** Warns of a cause of trouble once, and counts it every time. */
  #warn(cause: string, message: string): void {
    const before = this.#failures.get(cause) ?? 0;
    this.#failures.set(cause, before + 1);
    if (before > 0) return;
    try {
      Promise.resolve(this.#onWarning(message) as unknown).catch(() => {});
    } catch { /* the agent's own handler: its failures are not the agent's either */ }
  }
}

/** The log has no `created_at` and `updated_at`: a run that was read from the database must not bring them along. */
const NO_OWN_TIMES = { created_at: null, updated_at: null };

/** Whether a run is no longer than a line of the log may be. */
function fitsLine(run: RunRecord): boolean {
  try {
    return new TextEncoder().encode(JSON.stringify(run)).length < MAX_LINE_BYTES - 100;
  } catch {
    return false; // longer than a string may be
  }
}

function printWarning(message: string): void {
  Deno.stderr.writeSync(new TextEncoder().encode(`telemetry: ${message}\n`));
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** The name of this machine, as far as Deno lets us know it. */
function hostName(): string | null {
  if (isGranted({ name: "sys", kind: "hostname" })) return Deno.hostname();
  return readEnv("HOSTNAME") || readEnv("COMPUTERNAME") || null;
}

/** Anything as text; never throws. */
function textOf(value: unknown): string {
  try {
    return String(value);
  } catch {
    return "unknown";
  }
}

/** A value as its column has it. Programs that TypeScript does not check give all kinds of things. */
function cellOf(name: string, value: unknown): string | number | null {
  if (value === null) return null;
  if (NUMBERS.has(name)) {
    const number = typeof value === "object" ? NaN : Number(value);
    if (Number.isFinite(number)) return number;
    throw new TelemetryError("invalid_record", `${name} is not a number: it is not recorded`);
  }
  if (value instanceof Date) return timestamp(value);
  return typeof value === "object" ? toJson(value, name) : String(value);
}

/** The object in a JSON text. What is there but is no object is kept under its column's name. */
function objectOf(text: unknown): object {
  try {
    const value: unknown = JSON.parse(String(text));
    if (value === null) return {};
    return typeof value === "object" && !Array.isArray(value) ? value : { metrics_json: value };
  } catch {
    return { metrics_json: text };
  }
}

/** Python's `Type: message`, which the contract wants for a run that failed. */
function errorSummary(thrown: unknown): string {
  try {
    if (!(thrown instanceof Error)) return `${typeof thrown}: ${textOf(thrown)}`;
    const type = thrown.name === "Error" ? thrown.constructor.name : thrown.name;
    return `${textOf(type)}: ${textOf(thrown.message)}`;
  } catch {
    // What was thrown goes on to the caller, not what its getters throw.
    return "Error: unknown";
  }
}
