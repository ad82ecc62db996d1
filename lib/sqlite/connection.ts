/**
 * Connections to SQLite, opened as the contract requires. Only this module and `writer_thread.ts` import `node:sqlite`.
 *
 * Rows are read with `get` and `all`: the binding's `iterate` ends without an error at a damaged page.
 * @module
 */
import { backup, DatabaseSync, type SQLInputValue, type StatementSync } from "node:sqlite";
import { setTimeout as pause } from "node:timers/promises";
import { errorMessage, hasCode } from "../errors.ts";
import { sidecarsOf } from "../layout.ts";
import { readFull } from "../fs/atomic_file.ts";
import { isGranted, sizeOf, statIfExists } from "../fs/locate.ts";
import { sleepSync } from "../fs/wait.ts";
import { folderAtDatabasePath, isRefused, noDatabase, sqliteError } from "./errors.ts";

export { damagedDatabase, folderAtDatabasePath, isRefused, noDatabase } from "./errors.ts";

/** A value that can be bound to a parameter. Booleans and undefined cannot. */
export type SqlValue = SQLInputValue;
/** A row by column name. */
export type Row = Record<string, SqlValue>;

/** Called while work goes on. */
export type OnProgress = (done: number, total: number) => void;

/** How {@linkcode Connection.open} opens. */
export interface OpenOptions {
  /** Never writes, and fails when the file does not exist. @default false */
  readOnly?: boolean;
  /** How long SQLite waits for a lock, in milliseconds. @default 5000 (contract, "Pragmas") */
  busyTimeoutMs?: number;
  /** The file that errors name. @default the file itself */
  shownAs?: string;
}

/** Python's SQLite and the sqlite3 program accept text in double quotes, so schemas in the field have it. */
export const DIALECT = { enableForeignKeyConstraints: false, enableDoubleQuotedStringLiterals: true };

/** The pragmas of every writing connection (contract, "Pragmas"); the busy timeout is set on opening. */
const PRAGMAS = ["PRAGMA synchronous=NORMAL", "PRAGMA wal_autocheckpoint=1000"];

/** The pauses between attempts to write to a locked database, in milliseconds (contract, "Pragmas"). */
const LOCK_RETRY_DELAYS_MS: readonly number[] = [100, 200];
/** How long a thread that is not blocked waits for a lock, in milliseconds: as long as the others with their timeouts. */
export const LOCKED_FOR_MS = 15_300;
/** The pause between its attempts, in milliseconds. */
export const LOCKED_PAUSE_MS = 25;

/**
 * A connection whose errors are {@linkcode TelemetryError}s. Foreign keys are not enforced: the contract's other programs
 * do not enforce them, so there are orphans.
 */
export class Connection implements Disposable {
  /** The database file, as errors name it. */
  readonly path: string;
  readonly #db: DatabaseSync;

  private constructor(path: string, db: DatabaseSync) {
    this.path = path;
    this.#db = db;
  }

  /** Opens a file, which is created unless `readOnly`, or `:memory:`. */
  static open(path: string, options: OpenOptions = {}): Connection {
    const { readOnly = false, busyTimeoutMs = 5000, shownAs = path } = options;
    return attempt(shownAs, () => {
      const db = new DatabaseSync(path, { ...DIALECT, readOnly, timeout: busyTimeoutMs });
      try {
        // Prepared, because errors of `exec` carry no code.
        for (const pragma of readOnly ? [] : PRAGMAS) db.prepare(pragma).run();
      } catch (error) {
        // Otherwise its file stays open, and an agent that tries again and again runs out of them.
        db.close();
        throw error;
      }
      return new Connection(shownAs, db);
    });
  }

  /**
   * Opens an existing database to read it, without changing its content.
   *
   * It is opened read-write where possible, since a read-only connection leaves an empty WAL behind. A WAL with content
   * needs a read-only one: the last connection to close would write that content into the file. A journal needs a read-write
   * one: SQLite must roll it back before anything can be read.
   */
  static openToRead(path: string): Connection {
    const stat = statIfExists(path);
    if (stat === undefined) throw noDatabase(path);
    if (stat.isDirectory) throw folderAtDatabasePath(path);
    const { wal, journal } = sidecarsOf(path);
    const isWritable = isGranted({ name: "write", path });
    const readOnly = !isWritable || (sizeOf(wal) ?? 0) > 0 && (sizeOf(journal) ?? 0) === 0;
    return retryWhileLocked(() => Connection.open(path, { readOnly }));
  }

  /** Runs statements that give no rows. */
  exec(sql: string): void {
    attempt(this.path, () => this.#db.exec(sql));
  }

  /** A statement to run many times. */
  prepare(sql: string): Statement {
    return attempt(this.path, () => new Statement(this.path, this.#db.prepare(sql)));
  }

  get(sql: string, ...values: SqlValue[]): Row | undefined {
    return this.prepare(sql).get(...values);
  }

  all(sql: string, ...values: SqlValue[]): Row[] {
    return this.prepare(sql).all(...values);
  }

  /** Runs one statement; the number of rows it changed. */
  run(sql: string, ...values: SqlValue[]): number {
    return this.prepare(sql).run(...values);
  }

  /** Runs `work` in one transaction, which holds the write lock from its start. */
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

  /** False after a trigger (`RAISE(ROLLBACK)`), a full disk or an I/O error has rolled the transaction back. */
  get isInTransaction(): boolean {
    return this.#db.isTransaction;
  }

  /** Rolls back a transaction, unless SQLite has done so already. */
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
   * Copies one consistent snapshot to a file, replacing its content. Writers go on meanwhile: the read transaction blocks no
   * writer in WAL mode, and keeps their commits from restarting the copy.
   */
  async copyTo(path: string, onProgress: OnProgress = () => {}): Promise<void> {
    this.run("BEGIN");
    try {
      await this.#backup(path, onProgress);
    } finally {
      this.rollback();
    }
  }

  /**
   * Replaces the content of a live database by that of this one, in one transaction. Calls `onLocked` once when no other
   * process can write any more, while readers still see the old content. What is written to this database then, by any
   * connection, is copied, too. When it throws, the other database is unchanged.
   */
  async copyOver(path: string, onLocked: () => void, onProgress?: OnProgress): Promise<void> {
    {
      // A lock that another program holds would make `backup` wait without end.
      using live = retryWhileLocked(() => Connection.open(path));
      // Without WAL, a reader is enough to keep a writer from committing.
      retryWhileLocked(() => live.run("BEGIN EXCLUSIVE"));
      live.rollback();
    }
    let isLocked = false;
    await this.#backup(path, (done, total) => {
      if (!isLocked && done < total) onLocked();
      isLocked = true;
      onProgress?.(done, total);
    });
  }

  async #backup(path: string, onProgress: OnProgress): Promise<void> {
    try {
      this.get("SELECT count(*) FROM sqlite_schema");
      // The first call of `progress` comes when the destination is locked, and none when the copy is complete: so at least
      // two steps are needed. More are slower.
      const pages = Number(this.get("PRAGMA page_count")!["page_count"]);
      await backup(this.#db, path, {
        rate: Math.max(1, Math.min(2500, pages >> 1)),
        progress: ({ totalPages, remainingPages }: { totalPages: number; remainingPages: number }) =>
          onProgress(totalPages - remainingPages, totalPages),
      });
      onProgress(1, 1);
    } catch (error) {
      throw sqliteError(error, path);
    }
  }

  /**
   * What SQLite's check finds wrong; nothing when the database is intact. A file of 0 bytes is intact, too. A table
   * with a function or collation that this SQLite lacks is checked as far as possible. `full` also checks that indexes
   * and tables agree.
   */
  check(depth: "quick" | "full"): string[] {
    const problems = this.#check(depth);
    if (problems !== undefined) return problems;
    // One table with an unknown function or collation stops the check of the whole file.
    const tables = this.all("SELECT json_quote(name) AS name FROM sqlite_schema WHERE type='table'");
    const torn = this.all("SELECT name, pageno FROM dbstat WHERE pagetype='corrupted'");
    return [
      ...tables.flatMap(({ name }) => this.#check(depth, `(${name})`) ?? []),
      ...torn.map(({ name, pageno }) => `page ${pageno} of ${name} is damaged`),
    ];
  }

  /** The result of a check; undefined when SQLite refuses it. */
  #check(depth: "quick" | "full", table = ""): string[] | undefined {
    try {
      const pragma = depth === "full" ? "integrity_check" : "quick_check";
      const found = this.all(`PRAGMA ${pragma}${table}`).flatMap((row) => String(Object.values(row)[0]).split("\n"));
      // A row can have several lines, the first of which names the database.
      return found.filter((line) => line !== "ok" && !line.startsWith("***"));
    } catch (error) {
      if (hasCode(error, "damaged")) return [errorMessage(error.cause)];
      if (!isRefused(error)) throw error;
      // An index with an unknown function stops the full check only.
      return depth === "full" ? this.#check("quick", table) : undefined;
    }
  }

  /** Closes the file. Closing twice does nothing. */
  close(): void {
    if (this.#db.isOpen) this.#db.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** The first bytes of a rollback journal that has content (SQLite's file format, "The Rollback Journal"). */
const JOURNAL_MAGIC = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];

/** Whether a database has an unfinished transaction, which whoever opens it rolls back. */
export function hasHotJournal(database: string): boolean {
  const { journal } = sidecarsOf(database);
  if ((sizeOf(journal) ?? 0) === 0) return false;
  try {
    using file = Deno.openSync(journal);
    const magic = new Uint8Array(JOURNAL_MAGIC.length);
    return readFull(file, magic) === magic.length && JOURNAL_MAGIC.every((byte, i) => magic[i] === byte);
  } catch {
    return true; // SQLite says what is wrong with it
  }
}

/** A prepared statement of a {@linkcode Connection}. */
export class Statement {
  readonly #path: string;
  readonly #statement: StatementSync;

  constructor(path: string, statement: StatementSync) {
    this.#path = path;
    this.#statement = statement;
  }

  /** Returns integers as `bigint` from now on. Those over 2^53 cannot be read otherwise. */
  readBigInts(): void {
    this.#statement.setReadBigInts(true);
  }

  /** Runs it; the number of rows it changed. */
  run(...values: SqlValue[]): number {
    return attempt(this.#path, () => Number(this.#statement.run(...values).changes));
  }

  get(...values: SqlValue[]): Row | undefined {
    return attempt(this.#path, () => this.#statement.get(...values));
  }

  all(...values: SqlValue[]): Row[] {
    return attempt(this.#path, () => this.#statement.all(...values));
  }
}

/** Tries a write again while the database is locked (contract, "Pragmas"). Blocks the thread meanwhile. */
export function retryWhileLocked<T>(write: () => T): T {
  for (const delayMs of LOCK_RETRY_DELAYS_MS) {
    try {
      return write();
    } catch (error) {
      if (!hasCode(error, "locked")) throw error;
      sleepSync(delayMs);
    }
  }
  return write();
}

/**
 * The same without blocking the thread, for work that does not wait for a lock itself. The last error is thrown at once when
 * `isStopped` returns true.
 */
export async function waitWhileLocked<T>(
  work: () => T | Promise<T>,
  options: { lockedForMs?: number; isStopped?: () => boolean } = {},
): Promise<T> {
  const deadline = performance.now() + (options.lockedForMs ?? LOCKED_FOR_MS);
  for (;;) {
    try {
      return await work();
    } catch (error) {
      if (!hasCode(error, "locked") || options.isStopped?.() || performance.now() > deadline) throw error;
    }
    await pause(LOCKED_PAUSE_MS);
  }
}

function attempt<T>(path: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw sqliteError(error, path);
  }
}
