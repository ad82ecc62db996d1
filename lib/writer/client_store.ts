/** The log and the database that a client writes to. Never triggers a permission prompt. @module */
import { hasCode, TelemetryError } from "../errors.ts";
import { assertGranted, isFolder, isGranted, locate, readEnv } from "../fs/locate.ts";
import { HOME, HOME_STORES, shellFlags } from "../fs/permissions.ts";
import { candidateFolders, homeFolderOf, type Layout, layoutOf, STORE_VARIABLES } from "../layout.ts";
import { EventLog } from "../log/append.ts";
import type { LogRecord, RunRecord } from "../records.ts";
import { createStorage } from "../store/folders.ts";
import { findStaleRuns } from "../store/stale_runs.ts";
import { DatabaseWriter } from "./database_writer.ts";
import type { Warnings } from "./warnings.ts";
import { pause, WriteQueue } from "./write_queue.ts";

/** How long to wait before a store that could not be opened is tried again, in milliseconds. */
const REOPEN_AFTER_MS = 10_000;
/** How long to wait for the lock of the log at the end of the process, in milliseconds. */
const EXIT_LOCK_MS = 1000;
/** The length of a text in the log when its run is over the limit of a line: all columns of that length always fit. */
const MAX_LOGGED_TEXT = 100_000;

/** Writes to the log and, through a queue, to the database. Its methods never throw: they warn. */
export class ClientStore {
  readonly #base: string | undefined;
  readonly #warnings: Warnings;
  readonly #queue: WriteQueue;
  #open: { log: EventLog; writer: DatabaseWriter } | undefined;
  /** Which store it is, and which others there may be. */
  #found: Layout | undefined;
  /** Why it could not be opened, and when to try again. */
  #failure: unknown;
  #reopenAt = 0;
  /** Whether the log has every run that was recorded. */
  #isLogComplete = true;

  constructor(base: string | undefined, warnings: Warnings) {
    this.#base = base;
    this.#warnings = warnings;
    this.#queue = new WriteQueue({
      onFailure: (error) => warnings.fail("database", error),
      onDrop: () =>
        warnings.warn(
          "unsaved",
          `too many changes wait for the database: the oldest are dropped, and ${this.#inLog("are only in the log")}`,
        ),
    });
    this.#opened();
  }

  /** Resolves when the record is on the disk or has failed. A run that is too long is logged with its texts cut. */
  async append(record: LogRecord): Promise<void> {
    try {
      await this.#opened()?.log.append(record);
    } catch (error) {
      const shorter = hasCode(error, "invalid_record") ? truncateForLog(record) : undefined;
      if (shorter === undefined) {
        if (record.record_type === "run") this.#isLogComplete = false;
        return this.#warnings.fail("log", this.#withOtherStores(error));
      }
      this.#warnings.warn("long", "a run is too long for the log: its long texts are only in the database");
      await this.append(shorter);
    }
  }

  /** Writes to the database now or as soon as possible, instead of a waiting write of the same key. */
  save(key: string, write: (writer: DatabaseWriter) => void): void {
    const writer = this.#open?.writer;
    if (writer) this.#queue.add(key, () => write(writer));
    if (writer && this.#queue.state === "stopped") closeIfUnused(writer);
  }

  /** Whether a write with this key waits. */
  isSaving(key: string): boolean {
    return this.#queue.has(key);
  }

  /** Reads from the database. Resolves to undefined when that fails. */
  async read<T>(read: (writer: DatabaseWriter) => T | Promise<T>): Promise<T | undefined> {
    const writer = this.#open?.writer;
    const result = writer && await this.#queue.read(() => read(writer));
    if (writer && this.#queue.state === "stopped") closeIfUnused(writer);
    return result;
  }

  /** As {@linkcode findStaleRuns}. */
  async findStale(running: RunRecord[], olderThanMs: number): Promise<RunRecord[]> {
    return this.#found === undefined ? [] : await findStaleRuns(running, this.#found.raw, olderThanMs);
  }

  /** Resolves when the log has nothing more to write. */
  async logged(): Promise<void> {
    await this.#open?.log.idle();
    // What continues after an append, such as the write to the database, runs before the next turn.
    await pause(0);
  }

  /** Resolves when the database has everything, or cannot be written. */
  saved(): Promise<void> {
    return this.#queue.flush();
  }

  /** Whether the database has every change. */
  isSaved(): boolean {
    return this.#queue.size === 0;
  }

  /** Writes synchronously what waits for the log. For the end of the process. */
  flushLog(): void {
    try {
      this.#open?.log.flushSync(EXIT_LOCK_MS);
    } catch (error) {
      this.#warnings.fail("log", error);
    }
  }

  /** Writes synchronously what waits for the database. For the end of the process. */
  flushDatabase(): void {
    this.#queue.flushSync();
    this.#warnOfUnsaved("the process");
  }

  /** Makes what waits for the lock of the log fail. */
  abandonLog(): void {
    this.#open?.log.abandon();
  }

  /** Writes what can be written to the database without waiting, then closes it. */
  close(): void {
    this.#queue.stop();
    this.#warnOfUnsaved("close()");
    if (this.#open !== undefined) release(this.#open.writer);
  }

  /** When the store cannot be written, the hint names the other ones that exist. */
  #withOtherStores(error: unknown): unknown {
    if (this.#base !== undefined || !(error instanceof TelemetryError)) return error;
    const others = (this.#found?.choice.others ?? []).filter((other) => {
      const { raw, db } = layoutOf(other);
      return isFolder(raw) || isFolder(db);
    });
    if (others.length === 0) return error;
    const instead = `other stores exist, choose one with TELEMETRY_BASE_DIR or the option base: ${others.join(", ")}`;
    const hint = error.hint === undefined ? instead : `${error.hint}; ${instead}`;
    return new TelemetryError(error.code, error.message, { hint, cause: error });
  }

  #warnOfUnsaved(what: string): void {
    if (this.isSaved()) return;
    const message = `${what} ended before the database had all changes of runs (missing: ${this.#queue.size})`;
    this.#warnings.warn("unsaved", `${message}; ${this.#inLog("recover_database --force adds them from the log")}`);
  }

  /** What to say of changes that only the log has: some may be lost when the log could not be written. */
  #inLog(complete: string): string {
    return this.#isLogComplete ? complete : "some of them may be missing in the log, too";
  }

  /** The open store. One that could not be opened is tried again later: its disk may be mounted late. */
  #opened(): { log: EventLog; writer: DatabaseWriter } | undefined {
    const now = performance.now();
    if (this.#open === undefined && now >= this.#reopenAt) {
      this.#reopenAt = now + REOPEN_AFTER_MS;
      try {
        this.#found = findStore(this.#base, this.#warnings);
        this.#open = open(this.#found, this.#warnings);
      } catch (error) {
        this.#failure = this.#withOtherStores(error);
      }
    }
    if (this.#open === undefined) this.#warnings.fail("storage", this.#failure);
    return this.#open;
  }
}

/** Refuses a base folder that no shell would pass, as the scripts do. */
function assertBase(base: unknown): void {
  if (typeof base !== "string") {
    throw new TelemetryError("usage", "the option base is not a text: nothing is recorded", {
      hint: "name the folder of the store",
    });
  }
  if (base === "") {
    throw new TelemetryError("usage", "the option base is empty: nothing is recorded", {
      hint: "name the folder of the store, or leave the option out to use that of the environment",
    });
  }
  if (!base.startsWith("~")) return;
  throw new TelemetryError("usage", `the option base is ${base}, and "~" was not expanded: nothing is recorded`, {
    hint: "name the whole path",
  });
}

/** Finds the store. While permissions hide which one is meant, an existing store is used, but none is created. */
function findStore(base: string | undefined, warnings: Warnings): Layout {
  const hidden: string[] = [];
  const exists = (folder: string) => {
    if (isGranted({ name: "read", path: folder })) return isFolder(folder);
    hidden.push(folder);
    return false;
  };
  if (base !== undefined) assertBase(base);
  const found = locate(base, { env: readEnv, exists });
  if (base !== undefined) return found;
  // The store in the home folder is the last candidate: it matters only when there is no other one.
  const variables = found.choice.source === "default" ? [...STORE_VARIABLES, HOME] : STORE_VARIABLES;
  const unread = variables.filter((variable) => !isGranted({ name: "env", variable }));
  if (hidden.length + unread.length === 0) return found;

  const isHomeHidden = found.choice.source === "default" && !isGranted({ name: "env", variable: HOME });
  const candidates = candidateFolders(Deno.build.os, homeFolderOf(readEnv, Deno.build.os));
  const folders = hidden.length === 0 ? [] : isHomeHidden ? [...candidates, ...HOME_STORES] : candidates;
  const flags = shellFlags({ env: unread, read: folders, write: folders });
  const hint = `set the option base, or run the program with ${flags.join(" ")}`;
  if (hidden.length > 0 && found.choice.source === "default") {
    const message = `no permission to check whether the telemetry store is ${hidden[0]}`;
    throw new TelemetryError("permission", message, { hint });
  }
  const unknown = [...unread, ...hidden].join(", ");
  warnings.warn("environment", `using the store ${found.base} without permission to read ${unknown} (${hint})`);
  return found;
}

/** Opens the log and the database, and creates missing folders, with a warning. */
function open(found: Layout, warnings: Warnings): { log: EventLog; writer: DatabaseWriter } {
  let layout = found;
  if (!isFolder(layout.raw) || !isFolder(layout.db)) {
    try {
      layout = createStorage(layout).layout;
      warnings.warn("storage:made", `created the missing folders of the telemetry store ${layout.base}`);
    } catch (error) {
      // The log needs only its own folder: db/ may be on a disk that is not mounted.
      if (!isFolder(layout.raw)) throw error;
      warnings.fail("storage", error);
    }
  }
  assertGranted([layout.base, layout.raw, layout.db]);
  const onFolderCreated = (folder: string) => warnings.warn("storage:made", `created the missing folder ${folder}`);
  return { log: new EventLog(layout, { onFolderCreated }), writer: sharedWriter(layout) };
}

/** The writers of this process by database, and how many stores use each. */
const writers = new Map<string, { writer: DatabaseWriter; users: number }>();

/** The clients of a process share the open database: those that are never closed would use up its open files. */
function sharedWriter(layout: Layout): DatabaseWriter {
  const key = `${layout.database}\n${layout.base}`;
  const shared = writers.get(key) ?? { writer: new DatabaseWriter(layout, { wait: false }), users: 0 };
  shared.users++;
  writers.set(key, shared);
  return shared.writer;
}

/** Closes the database when no other store uses it. */
function release(writer: DatabaseWriter): void {
  const [key, shared] = writers.entries().find(([, shared]) => shared.writer === writer) ?? [];
  if (shared !== undefined && --shared.users > 0) return;
  if (key !== undefined) writers.delete(key);
  writer.close();
}

/** Closes the database after a use that came after `release`. */
function closeIfUnused(writer: DatabaseWriter): void {
  if (!writers.values().some((shared) => shared.writer === writer)) writer.close();
}

/** Cuts the long texts of a run, or returns undefined. A part of `metrics_json` would not be JSON: it is left out. */
function truncateForLog(record: LogRecord): LogRecord | undefined {
  if (record.record_type === "event") return undefined;
  const isLong = ([name, value]: [string, unknown]) => name !== "run_id" && String(value).length > MAX_LOGGED_TEXT;
  const cut = Object.entries(record).filter(isLong).map((
    [name, value],
  ) => [name, name === "metrics_json" ? null : value.slice(0, MAX_LOGGED_TEXT).toWellFormed()]);
  return cut.length === 0 ? undefined : { ...record, ...Object.fromEntries(cut) };
}
