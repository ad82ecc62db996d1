/**
 * SQLite as the contract wants it opened, and its errors told apart. The only module that knows the binding.
 *
 * Rows are read with `get` and `all`: the binding's `iterate` ends without an error at a damaged page.
 * @module
 */
import { backup, DatabaseSync, type DatabaseSyncOptions, type SQLInputValue, type StatementSync } from "node:sqlite";
import { type ErrorCode, errorMessage, hasCode, TelemetryError } from "../errors.ts";
import { sidecarsOf } from "../layout.ts";
import { sizeOf, statIfExists } from "../fs/locate.ts";

/** What can be bound to a parameter. Booleans and undefined cannot. */
export type SqlValue = SQLInputValue;
/** A row by column name. */
export type Row = Record<string, SqlValue>;

/** Told of work as it goes on. */
export type OnProgress = (done: number, total: number) => void;

/** How {@linkcode Connection.open} opens. */
export interface OpenOptions {
  /** Never writes, and fails when there is no file. @default false */
  readOnly?: boolean;
  /** How long SQLite itself waits for a lock, in milliseconds. @default 5000 (contract, "Pragmas") */
  busyTimeoutMs?: number;
}

/** How the binding is asked to open, on this thread and on others. */
export function bindingOptions({ readOnly = false, busyTimeoutMs = 5000 }: OpenOptions = {}): DatabaseSyncOptions {
  return { readOnly, timeout: busyTimeoutMs, enableForeignKeyConstraints: false };
}

/** The pragmas of every writing connection (contract, "Pragmas"); the busy timeout is set on opening. */
const PRAGMAS = ["PRAGMA synchronous=NORMAL", "PRAGMA wal_autocheckpoint=1000"];

/** The waits between the tries of a write that finds the database locked, in milliseconds (contract, "Pragmas"). */
const LOCK_RETRY_DELAYS_MS: readonly number[] = [100, 200];

/**
 * A connection whose errors are {@linkcode TelemetryError}s. Foreign keys are not enforced: the contract's
 * other programs do not enforce them either, so orphans are real.
 *
 * @example
 * ```ts
 * import { Connection } from "./connection.ts";
 *
 * using db = Connection.open(":memory:");
 * console.log(db.get("SELECT 1 AS one")?.["one"]); // 1
 * ```
 */
export class Connection implements Disposable {
  /** The file. */
  readonly path: string;
  readonly #db: DatabaseSync;

  private constructor(path: string, db: DatabaseSync) {
    this.path = path;
    this.#db = db;
  }

  /**
   * @param path a file, which is made when it is not there (unless `readOnly`), or `:memory:`
   * @throws {TelemetryError} `permission`, `not_a_database`, `locked`, `io` …
   */
  static open(path: string, options: OpenOptions = {}): Connection {
    return attempt(path, () => {
      const db = new DatabaseSync(path, bindingOptions(options));
      try {
        // Prepared, because errors of `exec` carry no code.
        for (const pragma of options.readOnly ? [] : PRAGMAS) db.prepare(pragma).run();
      } catch (error) {
        // Else its file stays open: an agent that tries again and again would run out of them.
        db.close();
        throw error;
      }
      return new Connection(path, db);
    });
  }

  /**
   * Opens an existing database to look at it, without changing a byte of its content. Where nothing may be written
   * beside it, SQLite refuses a database in WAL mode: then its content is read into memory, which is right as long as
   * nothing is in its WAL.
   *
   * @throws {TelemetryError} as `open` does, and `no_storage` when there is no such file
   */
  static openToRead(path: string): Connection {
    const stat = statIfExists(path);
    if (stat === undefined) throw noDatabase(path);
    if (stat.isDirectory) throw folderAtDatabasePath(path);
    let db: Connection | undefined;
    try {
      db = retryWhileLocked(() => Connection.open(path, { readOnly: isReadOnlyToRead(path) }));
      db.get("SELECT count(*) FROM sqlite_schema");
    } catch (error) {
      if (hasCode(error, "permission") && (sizeOf(sidecarsOf(path).wal) ?? 0) === 0) {
        db?.close();
        return Connection.#inMemory(path, error);
      }
      // What is wrong with an open one shows where it is used.
      if (db === undefined) throw error;
    }
    return db;
  }

  static #inMemory(path: string, refusal: TelemetryError): Connection {
    const before = statIfExists(path);
    let bytes: Uint8Array<ArrayBuffer>;
    try {
      bytes = Deno.readFileSync(path);
    } catch {
      throw refusal;
    }
    const after = statIfExists(path);
    if ((sizeOf(sidecarsOf(path).wal) ?? 0) > 0 || String(before?.mtime) !== String(after?.mtime)) throw refusal;
    // Header bytes 18 and 19: the file is not in WAL mode, which memory does not have (SQLite's file format).
    bytes.fill(1, 18, 20);
    const db = new DatabaseSync(":memory:", bindingOptions());
    return attempt(path, () => {
      db.deserialize(bytes);
      return new Connection(path, db);
    });
  }

  /** Runs statements that give no rows. */
  exec(sql: string): void {
    attempt(this.path, () => this.#db.exec(sql));
  }

  /** A statement to run many times. */
  prepare(sql: string): Statement {
    return attempt(this.path, () => new Statement(this.path, this.#db.prepare(sql)));
  }

  /** The first row, if any. */
  get(sql: string, ...values: SqlValue[]): Row | undefined {
    return this.prepare(sql).get(...values);
  }

  /** All rows. */
  all(sql: string, ...values: SqlValue[]): Row[] {
    return this.prepare(sql).all(...values);
  }

  /** Runs one statement; the number of rows it changed. */
  run(sql: string, ...values: SqlValue[]): number {
    return this.prepare(sql).run(...values);
  }

  /**
   * Runs one statement for each row.
   *
   * @param sql with as many parameters as a row has cells
   * @param width how many cells a row has
   * @param cells those of all rows, one row after the other
   */
  runAll(sql: string, width: number, cells: SqlValue[]): void {
    const statement = this.prepare(sql);
    for (let at = 0; at < cells.length; at += width) statement.run(...cells.slice(at, at + width));
  }

  /**
   * Runs `work` in one transaction that holds the write lock from its start: all of it happens, or nothing.
   *
   * @throws {TelemetryError} `locked` when another process has the lock for longer than the timeouts
   */
  transaction<T>(work: () => T): T {
    retryWhileLocked(() => this.run("BEGIN IMMEDIATE"));
    try {
      const result = work();
      this.run("COMMIT");
      return result;
    } catch (error) {
      this.rollback();
      throw error;
    }
  }

  /** Ends a transaction without its changes; does nothing where SQLite has ended it already. */
  rollback(): void {
    try {
      this.#db.exec("ROLLBACK");
    } catch { /* a full disk or an I/O error has rolled it back */ }
  }

  /** The content as the bytes of a database file. */
  serialize(): Uint8Array {
    return attempt(this.path, () => this.#db.serialize());
  }

  /**
   * Copies one consistent snapshot to a file with SQLite's online backup. Writers go on meanwhile: the read
   * transaction that is opened first holds none up in WAL mode, and keeps their commits from starting the copy anew.
   *
   * @param path the copy; what was there is replaced
   * @param onProgress told from time to time how many pages are copied, of how many: the first time when SQLite has the
   * copy locked and before it is done; at the end 1 of 1
   * @param isFollowed whether what is written here meanwhile gets into the copy, instead of being kept out of it
   * @throws {TelemetryError} `disk_full`, `damaged` …
   */
  async copyTo(path: string, onProgress?: OnProgress, isFollowed: boolean = false): Promise<void> {
    if (!isFollowed) this.run("BEGIN");
    try {
      this.get("SELECT count(*) FROM sqlite_schema");
      // All pages in one step where nobody watches: that is a tenth faster. Else at least two.
      const pages = Number(this.get("PRAGMA page_count")!["page_count"]);
      const watched = onProgress && {
        rate: Math.max(1, Math.min(5000, pages >> 1)),
        progress: ({ totalPages, remainingPages }: { totalPages: number; remainingPages: number }) =>
          onProgress(totalPages - remainingPages, totalPages),
      };
      await backup(this.#db, path, watched ?? { rate: -1 });
      onProgress?.(1, 1);
    } catch (error) {
      throw sqliteError(error, path);
    } finally {
      this.rollback();
    }
  }

  /**
   * What SQLite's own check finds wrong; nothing when the file is sound. It proves the structure, not that the
   * contract's tables are there: a file of 0 bytes passes.
   *
   * @param depth `quick` leaves out that indexes and tables agree
   * @throws {TelemetryError} when the check itself could not be made (`locked`, `io`, `permission`)
   */
  check(depth: "quick" | "full"): string[] {
    try {
      const rows = this.all(depth === "quick" ? "PRAGMA quick_check" : "PRAGMA integrity_check");
      const found = rows.map((row) => String(Object.values(row)[0]));
      return found.length === 1 && found[0] === "ok" ? [] : found;
    } catch (error) {
      if (hasCode(error, "damaged")) return [errorMessage(error.cause)];
      throw error;
    }
  }

  /** Closes the file. Closing twice does nothing. */
  close(): void {
    if (this.#db.isOpen) this.#db.close();
  }

  /** Closes the file. */
  [Symbol.dispose](): void {
    this.close();
  }
}

/**
 * Whether to open a database with `readOnly` in order to read it: where its WAL holds something, since the last other
 * connection to close would put that into the file. Elsewhere not, since `readOnly` leaves an empty WAL behind; with a
 * journal beside it neither, since SQLite has to undo a change first, or refuses.
 */
export function isReadOnlyToRead(path: string): boolean {
  const { wal, journal } = sidecarsOf(path);
  return (sizeOf(wal) ?? 0) > 0 && (sizeOf(journal) ?? 0) === 0;
}

/** The error for a database that is not there. */
export function noDatabase(path: string): TelemetryError {
  return new TelemetryError("no_storage", `there is no database ${path}`, {
    hint: "run setup_database; if there was one, recover_database fills a new one from the log",
  });
}

/** The error for a folder that stands where the database belongs. */
export function folderAtDatabasePath(path: string): TelemetryError {
  return new TelemetryError("in_the_way", `${path} is a folder, but the database belongs there`, {
    hint: "move that folder away and run this again",
  });
}

/**
 * The error for a database that is damaged.
 *
 * @param what is damaged, as the start of a sentence
 */
export function damagedDatabase(what: string): TelemetryError {
  return new TelemetryError("damaged", what, { hint: HINTS.damaged });
}

/** A prepared statement of a {@linkcode Connection}. */
export class Statement {
  readonly #path: string;
  readonly #statement: StatementSync;

  /** Made by {@linkcode Connection.prepare}. */
  constructor(path: string, statement: StatementSync) {
    this.#path = path;
    this.#statement = statement;
  }

  /** Has integers come back as `bigint` from now on: those over 2^53 cannot be read else. */
  readBigInts(): void {
    this.#statement.setReadBigInts(true);
  }

  /** Runs it; the number of rows it changed. */
  run(...values: SqlValue[]): number {
    return attempt(this.#path, () => Number(this.#statement.run(...values).changes));
  }

  /** The first row, if any. */
  get(...values: SqlValue[]): Row | undefined {
    return attempt(this.#path, () => this.#statement.get(...values));
  }

  /** All rows. */
  all(...values: SqlValue[]): Row[] {
    return attempt(this.#path, () => this.#statement.all(...values));
  }
}

/**
 * Tries a write again when the database is locked (contract, "Pragmas"). Blocks the thread meanwhile.
 *
 * @throws {TelemetryError} `locked` when the last try failed too; any other error at once
 */
export function retryWhileLocked<T>(write: () => T): T {
  for (const delayMs of LOCK_RETRY_DELAYS_MS) {
    try {
      return write();
    } catch (error) {
      if (!hasCode(error, "locked")) throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, delayMs);
    }
  }
  return write();
}

function attempt<T>(path: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw sqliteError(error, path);
  }
}

/** SQLite's primary result codes that mean something to a caller (SQLite documentation, "Result and Error Codes"). */
const CODES: Record<number, ErrorCode> = {
  3: "permission",
  5: "locked",
  6: "locked",
  8: "permission",
  11: "damaged",
  13: "disk_full",
  14: "permission",
  19: "invalid_record",
  20: "invalid_record",
  26: "not_a_database",
  // A page is beyond the end of the file (SQLITE_IOERR_SHORT_READ): the file was cut.
  522: "damaged",
  // The -shm file could not be made larger (SQLITE_IOERR_SHMSIZE): how a full disk shows first in WAL mode.
  4874: "disk_full",
};

/** The same by text, for what the binding throws without a code: `exec`, opening, `backup`. */
const TEXTS: [RegExp, ErrorCode][] = [
  [/is locked/, "locked"],
  [/malformed/, "damaged"],
  [/not a database/, "not_a_database"],
  [/is full/, "disk_full"],
  [/readonly database|unable to open/, "permission"],
  [/constraint failed|cannot be bound|out of range|BigInt value is too large/, "invalid_record"],
];

const MEANINGS: Partial<Record<ErrorCode, string>> = {
  locked: "is locked by another process",
  damaged: "is damaged",
  not_a_database: "is not a SQLite database",
  permission: "cannot be opened for this",
};

const HINTS: Partial<Record<ErrorCode, string>> = {
  locked: "wait until the other program is done, or stop it, and run this again",
  damaged: "run recover_database: it rebuilds the database from the log and from what can still be read",
  not_a_database:
    "run recover_database: it keeps that file and takes what can still be read of it (if it is another program's, move it away)",
  disk_full: "free some space on that disk and run it again",
  permission: "run it as the user who owns the file, and see that its folder can be written",
  invalid_record: "see which rule of the table refuses it",
  io: "see whether the disk is full or failing, and run it again",
};

/** What the binding threw, told apart. */
export function sqliteError(thrown: unknown, path: string): TelemetryError {
  if (thrown instanceof TelemetryError) return thrown;
  const text = errorMessage(thrown);
  const errcode = (thrown as { errcode?: unknown }).errcode;
  const code: ErrorCode = thrown instanceof Deno.errors.NotCapable
    ? "permission"
    : typeof errcode === "number"
    ? CODES[errcode] ?? CODES[errcode & 0xff] ?? "io"
    : TEXTS.find(([pattern]) => pattern.test(text))?.[1] ?? "io";
  const meaning = MEANINGS[code];
  return new TelemetryError(code, meaning ? `${path} ${meaning} (${text})` : `${path}: ${text}`, {
    cause: thrown,
    hint: HINTS[code],
  });
}
