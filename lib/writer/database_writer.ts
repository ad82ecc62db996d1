/**
 * Reads and writes the runs of the SQLite database (contract, "Writer").
 * @module
 */
import { assertNonNegative, TelemetryError } from "../errors.ts";
import { ensureFolder } from "../fs/atomic_file.ts";
import { isSameFile, statIfExists } from "../fs/locate.ts";
import type { Layout } from "../layout.ts";
import { RUN_COLUMNS, type RunRecord, SCHEMA_VERSION } from "../records.ts";
import { Connection, retryWhileLocked, type Row, type SqlValue, type Statement } from "../sqlite/connection.ts";
import { inspect, newerSchema } from "../sqlite/migrate.ts";
import { jsonObjectOf, rowidOf } from "../sqlite/rows.ts";
import { createDatabase } from "../store/database.ts";
import { parseTimestamp } from "../time.ts";

/** The result of {@linkcode DatabaseWriter.getRunStats}. */
export interface RunStats {
  /** How many runs the database has. */
  total_runs: number;
  /** How many runs have each status. */
  status_counts: Record<string, number>;
  /** How many ended runs the web API has not accepted yet. */
  pending_api_posts: number;
}

/** Options of a {@linkcode DatabaseWriter}. */
export interface DatabaseWriterOptions {
  /**
   * Whether to wait for a locked database, which blocks the thread: three attempts of 5 s, with pauses of 100 ms and
   * 200 ms. With `false`, a method throws `locked` at once.
   * @default true
   */
  wait?: boolean;
}

interface OpenDatabase {
  db: Connection;
  /** By SQL text. */
  statements: Map<string, Statement>;
  /** The column that numbers the rows: `run_id` in a table WITHOUT ROWID. */
  rowid: string;
  /** Which file is open. */
  stat: Deno.FileInfo | undefined;
}

/** Only `markApiPosted` and `incrementApiRetryCount` change these columns, so that no later write resets them. */
const MARKERS: readonly (keyof RunRecord)[] = ["api_posted", "api_posted_at", "api_retry_count"];
/** The database sets these columns. */
const ROW_TIMES: readonly (keyof RunRecord)[] = ["created_at", "updated_at"];

const INSERTED = RUN_COLUMNS.filter((column) => !ROW_TIMES.includes(column));
const UPDATED = INSERTED.filter((column) => column !== "run_id" && !MARKERS.includes(column));

const INSERT = `INSERT INTO agent_runs (${INSERTED}) VALUES (${INSERTED.map(() => "?")})`;
const UPSERT = `${INSERT} ON CONFLICT(run_id) DO UPDATE SET ` +
  `${UPDATED.map((column) => `${column}=excluded.${column}`)}, updated_at=datetime('now')`;
/** Ended runs. A run whose id is not text could never be marked as posted. */
const POSTABLE = "(status<>'running' AND typeof(run_id)='text')";
/** All values of the column `status` through its index; null comes last, also when no row has it. */
const STATUSES = `WITH RECURSIVE found(status) AS (SELECT min(status) FROM agent_runs UNION ALL
  SELECT (SELECT min(status) FROM agent_runs WHERE status>found.status) FROM found WHERE status IS NOT NULL)
  SELECT status FROM found`;
/** The values of `api_posted` in runs that the API has not accepted. */
const NOT_POSTED = [0, null];
/** How many rows are looked at in one step. Even on a slow machine this takes less than 50 ms. */
const STEP_ROWS = 5000;

/**
 * Writes runs to the database of a store, synchronously. It opens the database at the first use, creates it when there
 * is none, and opens it again when another file has replaced it, for example after a recovery.
 *
 * Every method except `close` throws a {@linkcode TelemetryError}: `locked`, `older_schema` (run `setup_database`),
 * `newer_schema`, `invalid_record` (the run violates a constraint), `damaged`, `not_a_database`, `disk_full`,
 * `permission`, `no_storage`, `io`.
 *
 * @example
 * ```ts
 * import { DatabaseWriter } from "./database_writer.ts";
 * import { locate } from "../fs/locate.ts";
 * import { newRun, runId } from "../records.ts";
 * import { timestamp } from "../time.ts";
 * import { createStorage } from "../store/folders.ts";
 *
 * const { layout } = createStorage(locate("/tmp/telemetry"));
 * using writer = new DatabaseWriter(layout);
 * const id = runId("indexer");
 * writer.insertRun(newRun({ run_id: id, agent_name: "indexer", start_time: timestamp() }));
 * console.log(writer.getRun(id)?.status); // "running"
 * ```
 */
export class DatabaseWriter implements Disposable {
  readonly #layout: Layout;
  readonly #wait: boolean;
  #open: OpenDatabase | undefined;

  /** Creates a writer for the database of `layout`. It does not open the database. */
  constructor(layout: Layout, options: DatabaseWriterOptions = {}) {
    this.#layout = layout;
    this.#wait = options.wait ?? true;
  }

  /** Inserts a run. Throws `invalid_record` when the database has a run with this id. */
  insertRun(run: RunRecord): void {
    this.#write(INSERT, ...INSERTED.map((column) => run[column]));
  }

  /** Updates a run, or inserts it when the database does not have it. An update keeps the `api_posted` markers. */
  updateRun(run: RunRecord): void {
    this.#write(UPSERT, ...INSERTED.map((column) => run[column]));
  }

  /** Returns the run with this id, or undefined. */
  getRun(runId: string): RunRecord | undefined {
    const row = this.#read(`SELECT ${jsonObjectOf(RUN_COLUMNS)} AS run FROM agent_runs WHERE run_id=?`, runId)[0];
    return row && JSON.parse(row["run"] as string) as RunRecord;
  }

  /** Marks a run as accepted by the web API at a time (ISO 8601 in UTC). Returns whether the run exists. */
  markApiPosted(runId: string, at: string): boolean {
    const sql = "UPDATE agent_runs SET api_posted=1, api_posted_at=?, updated_at=datetime('now') WHERE run_id=?";
    return this.#write(sql, at, runId) > 0;
  }

  /** Adds 1 to the count of failed attempts to post a run. Returns whether the run exists. */
  incrementApiRetryCount(runId: string): boolean {
    const count = "api_retry_count=coalesce(api_retry_count, 0)+1";
    return this.#write(`UPDATE agent_runs SET ${count}, updated_at=datetime('now') WHERE run_id=?`, runId) > 0;
  }

  /**
   * Returns ended runs that the web API has not accepted: those with the fewest failed posts first, and of these the
   * newest first. Runs that the API always refuses therefore do not stand in the way of the others.
   *
   * @param limit the maximum number of runs; the default is 100
   * @param since only runs that started at or after this time, ISO 8601; the default is all runs
   * @throws {TelemetryError} `usage` when the limit is not a number, or the time is not one
   */
  getPendingApiPosts(limit = 100, since?: string): RunRecord[] {
    assertNonNegative({ limit });
    if (since !== undefined && parseTimestamp(since) === undefined) {
      throw new TelemetryError("usage", `since is not a time: ${String(since)}`, { hint: "use ISO 8601" });
    }
    return finish(this.pendingInSteps(limit, since)).flatMap((runId) => this.getRun(runId) ?? []);
  }

  /** Counts all runs. */
  getRunStats(): RunStats {
    return finish(this.statsInSteps());
  }

  /** The ids of these runs, found in short steps, for a thread that must not be blocked. */
  *pendingInSteps(limit: number, since?: string): Generator<void, string[]> {
    const query = `SELECT json_quote(run_id) AS id, coalesce(api_retry_count, 0) AS tries, start_time FROM agent_runs
      WHERE ${POSTABLE} AND (?4 IS NULL OR julianday(start_time)>=julianday(?4))`;
    let found: Row[] = [];
    for (const { rows } of this.#steps("api_posted", NOT_POSTED, query, since ?? null)) {
      found = [...found, ...rows].sort(fewestTriesFirst).slice(0, limit);
      yield;
    }
    // The binding would cut an id at a NUL.
    return found.map(({ id }) => JSON.parse(id as string) as string);
  }

  /** As {@linkcode getRunStats}, in short steps. A run that is written meanwhile may be counted in either state, or not. */
  *statsInSteps(): Generator<void, RunStats> {
    const stats: RunStats = { total_runs: 0, status_counts: {}, pending_api_posts: 0 };
    const query = "SELECT count(*) AS runs FROM agent_runs WHERE";
    const statuses = this.#read(STATUSES).map(({ status }) => status!);
    for (const { value, rows } of this.#steps("status", statuses, `${query} true`)) {
      const runs = Number(rows[0]!["runs"]);
      stats.total_runs += runs;
      stats.status_counts[`${value}`] = (stats.status_counts[`${value}`] ?? 0) + runs;
      yield;
    }
    for (const { rows } of this.#steps("api_posted", NOT_POSTED, `${query} ${POSTABLE}`)) {
      stats.pending_api_posts += Number(rows[0]!["runs"]);
      yield;
    }
    return stats;
  }

  /** Runs a query for the rows with these values of an indexed column, up to 5,000 rows at a time. */
  *#steps(column: "status" | "api_posted", columnValues: readonly SqlValue[], query: string, ...values: SqlValue[]) {
    const { rowid } = this.#connected();
    // As text, because row numbers can be larger than the integers of JavaScript.
    const first = `SELECT CAST(min(at) AS TEXT) AS first FROM (SELECT ${rowid} AS at FROM agent_runs
      WHERE ${column} IS ? AND ${rowid}<? ORDER BY ${rowid} DESC LIMIT ${STEP_ROWS})`;
    const step = `${query} AND ${column} IS ?1 AND ${rowid}<?2 AND ${rowid}>=?3`;
    for (const value of columnValues) {
      for (let before: SqlValue = rowid === "run_id" ? "\u{10ffff}" : "1e19";;) {
        const from: SqlValue = this.#read(first, value, before)[0]!["first"]!;
        if (from === null) break;
        yield { value, rows: this.#read(step, value, before, from, ...values) };
        before = from;
      }
    }
  }

  /**
   * Runs SQLite's check of the file. Returns the defects, or an empty list when the file is intact.
   *
   * @param depth `full` also compares indexes with their tables; the default is `quick`
   */
  checkIntegrity(depth: "quick" | "full" = "quick"): string[] {
    return this.#connected().db.check(depth);
  }

  /** Closes the database. The next use opens it again. */
  close(): void {
    this.#open?.db.close();
    this.#open = undefined;
  }

  /** Closes the database. */
  [Symbol.dispose](): void {
    this.close();
  }

  #write(sql: string, ...values: SqlValue[]): number {
    return this.#attempt(() => this.#statement(sql).run(...values));
  }

  #read(sql: string, ...values: SqlValue[]): Row[] {
    return this.#attempt(() => this.#statement(sql).all(...values));
  }

  #attempt<T>(work: () => T): T {
    return this.#wait ? retryWhileLocked(work) : work();
  }

  #statement(sql: string): Statement {
    const { db, statements } = this.#connected();
    let statement = statements.get(sql);
    if (statement === undefined) statements.set(sql, statement = db.prepare(sql));
    return statement;
  }

  #connected(): OpenDatabase {
    const { base, db: folder, database } = this.#layout;
    let stat = statIfExists(database);
    if (this.#open?.stat && stat && isSameFile(stat, this.#open.stat)) return this.#open;
    this.close();
    if (stat === undefined) {
      ensureFolder(base, folder);
      createDatabase(this.#layout, { wait: this.#wait });
      stat = statIfExists(database);
    }
    const db = Connection.open(database, { busyTimeoutMs: this.#wait ? 5000 : 0 });
    try {
      assertSchemaV3(db);
      const rowid = rowidOf(db, "agent_runs") ?? "run_id";
      return this.#open = { db, statements: new Map(), rowid, stat };
    } catch (error) {
      db.close();
      throw error;
    }
  }
}

/** The result of steps that nothing needs to come between. */
function finish<T>(steps: Generator<void, T>): T {
  for (;;) {
    const step = steps.next();
    if (step.done) return step.value;
  }
}

function fewestTriesFirst(a: Row, b: Row): number {
  return Number(a["tries"]) - Number(b["tries"]) || (String(a["start_time"]) > String(b["start_time"]) ? -1 : 1);
}

/** Refuses a database whose table does not have all columns of a run. */
function assertSchemaV3(db: Connection): void {
  const { version, missing } = inspect(db);
  if (version > SCHEMA_VERSION) throw newerSchema(db.path, version);
  if (missing.every((what) => !what.startsWith("agent_runs."))) return;
  throw new TelemetryError("older_schema", `${db.path} has schema v${version}, which cannot store runs`, {
    hint: "run setup_database to upgrade the database, then run recover_database --force to add the runs of the log",
  });
}
