/** The log and the database that a client writes to. Never triggers a permission prompt. @module */
import { setTimeout as pause } from "node:timers/promises";
import { hasCode, TelemetryError, withHint } from "../errors.ts";
import { plural } from "../format.ts";
import { isFolder, isGranted, locate, readEnv } from "../fs/locate.ts";
import { assertGranted, HOME, HOME_STORES, shellFlags } from "../fs/permissions.ts";
import { candidateFolders, type Layout, layoutOf, STORE_VARIABLES } from "../layout.ts";
import { EventLog } from "../log/append.ts";
import type { LogRecord, RunRecord } from "../records.ts";
import { createStorage } from "../store/folders.ts";
import { endStaleRuns, type StaleOptions } from "../store/stale_runs.ts";
import { DatabaseWriter } from "./database_writer.ts";
import type { Warnings } from "./warnings.ts";
import { ExitWait, WriteQueue } from "./write_queue.ts";

/** How long to wait before a store that could not be opened is tried again, in milliseconds. */
const REOPEN_AFTER_MS = 10_000;
/** For the lock of the log at the end of the process. */
const exitWait = new ExitWait();
/** The length of a text in the log when its run is over the limit of a line: all columns of that length always fit. */
const MAX_LOGGED_TEXT = 100_000;

/** Writes to the log and, through a queue, to the database. Its methods never throw: they warn. */
export class ClientStore {
  /** The writes that wait for the database. */
  readonly queue: WriteQueue;
  readonly #base: string | undefined;
  readonly #warnings: Warnings;
  #open: OpenStore | undefined;
  /** Why it could not be opened, and when to try again. */
  #failure: unknown;
  #reopenAt = 0;
  /** The runs that wait for the log before they are written to the database, by id. */
  readonly #logging = new Map<string, RunRecord>();
  /** How many dropped events were reported. */
  #reported = 0;

  constructor(base: string | undefined, warnings: Warnings) {
    this.#base = base;
    this.#warnings = warnings;
    this.queue = new WriteQueue({
      onFailure: (error) => warnings.fail("database", error),
      onDrop: () => this.#warnOfUnsaved("too many changes wait for the database: the oldest are dropped"),
    });
    this.#opened();
  }

  /** Writes a run to the log, then to the database, which also gets what the log rejects. */
  async record(run: RunRecord): Promise<void> {
    this.#logging.set(run.run_id, run);
    await this.append({ ...run, record_type: "run" });
    // The map has a later state when the run ended meanwhile, and none when it is already saved.
    if (this.#logging.get(run.run_id) === run) this.#logging.delete(run.run_id);
    this.#saveRun(run);
  }

  /** Whether a state of this run waits for the log or the database. */
  isRecording(runId: string): boolean {
    return this.#logging.has(runId) || this.queue.has(`run ${runId}`);
  }

  /** Resolves when the record is on the disk or has failed. What is too long for the log is cut or left out. */
  async append(record: LogRecord): Promise<void> {
    const store = this.#opened();
    try {
      await store?.log.append(record);
    } catch (error) {
      if (hasCode(error, "queue_full") && record.record_type === "event") {
        await store?.log.idle();
        return this.#warnOfDropped();
      }
      const shorter = hasCode(error, "invalid_record") ? truncateForLog(record) : undefined;
      if (shorter === undefined) return this.#warnings.fail("log", withOtherStores(error, store?.layout));
      const type = record.record_type;
      this.#warnings.warn(
        `long:${type}`,
        `a record (${type}) is too long for the log: its long texts are cut or left out there`,
      );
      await this.append(shorter);
    }
  }

  /** Writes to the database now or as soon as possible, instead of a waiting write of the same key. */
  save(key: string, write: (writer: DatabaseWriter) => void): void {
    const layout = this.#open?.layout;
    if (layout === undefined) return;
    this.queue.add(key, () => {
      using database = shareDatabase(layout);
      write(database.writer);
    });
  }

  #saveRun(run: RunRecord): void {
    this.save(`run ${run.run_id}`, (writer) => writer.updateRun(run));
  }

  /** Reads from the database, also after `close`. Resolves to undefined when that fails. */
  async read<T>(read: (writer: DatabaseWriter) => T | Promise<T>): Promise<T | undefined> {
    if (this.#open === undefined) return undefined;
    using database = shareDatabase(this.#open.layout);
    return await this.queue.read(() => read(database.writer));
  }

  /** As {@linkcode endStaleRuns}: unlike the other methods, it throws. */
  async endStale(options: StaleOptions): Promise<RunRecord[]> {
    return this.#open ? await endStaleRuns(this.#open.layout, options) : [];
  }

  /** Resolves when the log has nothing more to write. */
  async logged(): Promise<void> {
    await this.#open?.log.idle();
    // What continues after an append, such as the write to the database, runs before the next turn.
    await pause(0);
  }

  /** Writes synchronously what waits for the log and the database. For the end of the process. */
  flushSync(): void {
    try {
      this.#open?.log.flushSync(exitWait.ms);
    } catch (error) {
      if (hasCode(error, "locked")) exitWait.noteGivenUp();
      this.#warnings.fail("log", error);
    }
    this.#warnOfDropped();
    for (const run of this.#logging.values()) this.#saveRun(run);
    this.#logging.clear();
    this.queue.flushSync();
    this.#warnOfWaiting("the process");
  }

  /** Makes what waits for the lock of the log fail. */
  abandonLog(): void {
    this.#open?.log.abandon();
  }

  /** Writes what can be written to the database without waiting, then closes it. */
  close(): void {
    this.queue.stop();
    this.#warnOfWaiting("close()");
    this.#open?.database[Symbol.dispose]();
  }

  #warnOfDropped(): void {
    const count = (this.#open?.log.dropped ?? 0) - this.#reported;
    if (count === 0) return;
    this.#reported += count;
    const message = `${plural(count, "event")} came faster than the log could be written: the oldest are dropped`;
    this.#warnings.warn("log:queue_full", `${message} (await logEvent to slow down)`, count);
  }

  #warnOfWaiting(what: string): void {
    const { size } = this.queue;
    if (size > 0) this.#warnOfUnsaved(`${what} ended before the database had all changes of runs (missing: ${size})`);
  }

  #warnOfUnsaved(what: string): void {
    this.#warnings.warn("unsaved", `${what}; recover_database --force adds what the log has of them`);
  }

  /** The open store. One that could not be opened is tried again later: its disk may be mounted late. */
  #opened(): OpenStore | undefined {
    const now = performance.now();
    if (this.#open === undefined && now >= this.#reopenAt) {
      this.#reopenAt = now + REOPEN_AFTER_MS;
      let layout: Layout | undefined;
      try {
        layout = findStore(this.#base, this.#warnings);
        this.#open = openStore(layout, this.#warnings);
      } catch (error) {
        this.#failure = withOtherStores(error, layout);
      }
    }
    if (this.#open === undefined) this.#warnings.fail("storage", this.#failure);
    return this.#open;
  }
}

interface OpenStore {
  layout: Layout;
  log: EventLog;
  /** Keeps the database open. */
  database: Disposable;
}

/** Finds the store. While permissions hide which one is meant, an existing store is used, but none is created. */
function findStore(base: string | undefined, warnings: Warnings): Layout {
  if (base !== undefined) return locate(base);
  const hidden: string[] = [];
  const exists = (folder: string) => {
    if (!isGranted({ name: "read", path: folder })) hidden.push(folder);
    return isFolder(folder);
  };
  const found = locate(undefined, { env: readEnv, exists });
  const isDefault = found.choice.source === "default";
  // The store in the home folder is the last candidate: it matters only when there is no other one.
  const variables = isDefault ? [...STORE_VARIABLES, HOME] : STORE_VARIABLES;
  const unread = variables.filter((variable) => !isGranted({ name: "env", variable }));
  if (hidden.length + unread.length === 0) return found;

  const folders = hidden.length === 0 ? [] : [...candidateFolders(Deno.build.os, undefined), ...HOME_STORES];
  const flags = shellFlags({ env: unread, read: folders, write: folders });
  const hint = `set the option base, or run the program with ${flags.join(" ")}`;
  if (isDefault && hidden.length > 0) {
    const message = `no permission to check whether the telemetry store is ${hidden[0]}`;
    throw new TelemetryError("permission", message, { hint });
  }
  const unknown = [...unread, ...hidden].join(", ");
  warnings.warn("environment", `using the store ${found.base} without permission to read ${unknown} (${hint})`);
  return found;
}

/** Opens the log and the database, and creates missing folders, with a warning. */
function openStore(layout: Layout, warnings: Warnings): OpenStore {
  if (!isFolder(layout.raw) || !isFolder(layout.db)) {
    try {
      layout = createStorage(layout).layout;
      warnings.warn("storage:made", `created the missing folders of the telemetry store ${layout.base}`, 0);
    } catch (error) {
      // The log needs only its own folder: db/ may be on a disk that is not mounted.
      if (!isFolder(layout.raw)) throw error;
      warnings.fail("storage", error);
    }
  }
  assertGranted([layout.base, layout.raw, layout.db]);
  const onFolderCreated = (folder: string) => warnings.warn("storage:made", `created the missing folder ${folder}`, 0);
  return { layout, log: new EventLog(layout, { onFolderCreated }), database: shareDatabase(layout) };
}

/** The error, with the other stores that exist in its hint, when nobody named the one that cannot be written. */
function withOtherStores(error: unknown, layout: Layout | undefined): unknown {
  const others = (layout?.choice.others ?? []).filter((base) => {
    const { raw, db } = layoutOf(base);
    return isFolder(raw) || isFolder(db);
  });
  if (!(error instanceof TelemetryError) || others.length === 0) return error;
  const instead = `other stores exist, choose one with TELEMETRY_BASE_DIR or the option base: ${others.join(", ")}`;
  return withHint(error, error.hint === undefined ? instead : `${error.hint}; ${instead}`);
}

/** The writers of this process by database, and how many use each. */
const shared = new Map<string, { writer: DatabaseWriter; users: number }>();

/** The clients of a process share the open database: those that are never closed would use up its open files. */
function shareDatabase(layout: Layout): { writer: DatabaseWriter } & Disposable {
  const entry = shared.get(layout.database) ?? { writer: new DatabaseWriter(layout, { wait: false }), users: 0 };
  shared.set(layout.database, entry);
  entry.users++;
  // A writer that is used again opens its database again.
  return { writer: entry.writer, [Symbol.dispose]: () => --entry.users === 0 && entry.writer.close() };
}

/** The record without what makes it too long, or undefined. A part of a JSON text would not be JSON: it is left out. */
function truncateForLog(record: LogRecord): LogRecord | undefined {
  const isLong = ([name, value]: [string, unknown]) => name !== "run_id" && String(value).length > MAX_LOGGED_TEXT;
  const cut = Object.entries(record).filter(isLong).map(([name, value]) => [
    name,
    name.endsWith("_json") ? null : String(value).slice(0, MAX_LOGGED_TEXT).toWellFormed(),
  ]);
  return cut.length === 0 ? undefined : { ...record, ...Object.fromEntries(cut) };
}
