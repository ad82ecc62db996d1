/**
 * Reads and writes the runs of the SQLite database (contract, "Writer").
 * @module
 */
import { TelemetryError } from "../errors.ts";
import { ensureFolder } from "../fs/atomic_file.ts";
import { isSameFile, statIfExists } from "../fs/locate.ts";
import { type Layout } from "../layout.ts";
import { RUN_COLUMNS, type RunRecord, SCHEMA_VERSION } from "../records.ts";
import { Connection, retryWhileLocked, type Row, type SqlValue, type Statement } from "../sqlite/connection.ts";
import { inspect, newerSchema } from "../sqlite/migrate.ts";
import { jsonObjectOf, rowidOf } from "../sqlite/rows.ts";
import { createDatabase } from "../store/database.ts";

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
const WHOLE_RUN = `SELECT ${jsonObjectOf(RUN_COLUMNS)} AS run FROM agent_runs`;
/** Ended runs. A run whose id is not text could never be marked as posted. */
const POSTABLE = "status<>'running' AND typeof(run_id)='text'";
/** All values of the column `status` through its index; null comes last, also when no row has it. */
const STATUSES = `WITH RECURSIVE found(status) AS (SELECT min(status) FROM agent_runs UNION ALL
  SELECT (SELECT min(status) FROM agent_runs WHERE status>found.status) FROM found WHERE status IS NOT NULL)
  SELECT status FROM found`;
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
    return this.#runs(`${WHOLE_RUN} WHERE run_id=?`, runId)[0];
  }

  /** Marks a run as accepted by the web API at a time (ISO 8601 in UTC). Returns whether the run exists. */
  markApiPosted(runId: string, at: string): boolean {
    const sql = "UPDATE agent_runs SET api_posted=1, api_posted_at=?, updated_at=datetime('now') WHERE run_id=?";
    return this.#write(sql, at, runId) > 0;
  }

  /** Adds 1 to the count of failed attempts to post a run. Returns whether the run exists. */
  incrementApiRetryCount(runId: string): boolean {
    const sql = "UPDATE agent_runs SET api_retry_count=coalesce(api_retry_count, 0)+1, updated_at=datetime('now') " +
      "WHERE run_id=?";
    return this.#write(sql, runId) > 0;
  }

  /**
   * Returns ended runs that the web API has not accepted: those with the fewest failed posts first, and of these the
   * newest first. Runs that the API always refuses therefore do not stand in the way of the others.
   *
   * @param limit the maximum number of runs; the default is 100
   * @param since only runs that started at or after this time, ISO 8601; the default is all runs
   */
  getPendingApiPosts(limit = 100, since?: string): RunRecord[] {
    return finish(this.pendingInSteps(limit, since));
  }

  /** Counts all runs. */
  getRunStats(): RunStats {
    return finish(this.statsInSteps());
  }

  /** As {@linkcode getPendingApiPosts}, in short steps, for a thread that must not be blocked. */
  *pendingInSteps(limit: number, since?: string): Generator<void, RunRecord[]> {
    const { rowid } = this.#connected();
    const sql = `SELECT CAST(${rowid} AS TEXT) AS at, coalesce(api_retry_count, 0) AS tries, start_time FROM agent_runs
      WHERE api_posted IS ? AND ${rowid}>=? AND ${rowid}<? AND ${POSTABLE}
        AND (?4 IS NULL OR julianday(start_time)>=julianday(?4)) AND (tries<?5 OR tries=?5 AND start_time>?6)
      ORDER BY tries, start_time DESC LIMIT ?7`;
    let found: Row[] = [];
    for (const posted of [0, null]) {
      for (const { first, before } of this.#ranges("api_posted", posted)) {
        // Only those that come before the last one that is found already.
        const { tries = 2 ** 60, start_time = "" } = found[limit - 1] ?? {};
        found.push(...this.#read(sql, posted, first, before, since ?? null, tries, start_time, limit));
        found = found.sort(fewestTriesFirst).slice(0, limit);
        yield;
      }
    }
    const runs: RunRecord[] = [];
    for (const [i, { at }] of found.entries()) {
      runs.push(...this.#runs(`${WHOLE_RUN} WHERE ${rowid}=?`, at!));
      if (i % 100 === 99) yield;
    }
    return runs;
  }

  /** As {@linkcode getRunStats}, in short steps. A run that is written meanwhile may be counted in either state, or not. */
  *statsInSteps(): Generator<void, RunStats> {
    const stats: RunStats = { total_runs: 0, status_counts: {}, pending_api_posts: 0 };
    for (const { status } of this.#read(STATUSES)) {
      for (const { rows } of this.#ranges("status", status!)) {
        stats.total_runs += rows;
        stats.status_counts[String(status)] = (stats.status_counts[String(status)] ?? 0) + rows;
        yield;
      }
    }
    const { rowid } = this.#connected();
    const sql = "SELECT count(*) AS runs FROM agent_runs " +
      `WHERE api_posted IS ? AND ${rowid}>=? AND ${rowid}<? AND ${POSTABLE}`;
    for (const posted of [0, null]) {
      for (const { first, before } of this.#ranges("api_posted", posted)) {
        stats.pending_api_posts += Number(this.#read(sql, posted, first, before)[0]!["runs"]);
        yield;
      }
    }
    return stats;
  }

  /** Finds the rows with a value through the index of its column: ranges of row numbers, last first. */
  *#ranges(
    column: "status" | "api_posted",
    value: SqlValue,
  ): Generator<{ first: string; before: string; rows: number }> {
    const { rowid } = this.#connected();
    const sql = `SELECT count(*) AS rows, CAST(min(at) AS TEXT) AS first FROM (SELECT ${rowid} AS at FROM agent_runs
      WHERE ${column} IS ? AND ${rowid}<? ORDER BY ${rowid} DESC LIMIT ${STEP_ROWS})`;
    // As text, because row numbers can be larger than the integers of JavaScript.
    for (let before = rowid === "run_id" ? "\u{10ffff}" : "1e19";;) {
      const { rows, first } = this.#read(sql, value, before)[0] as { rows: number; first: string | null };
      if (first === null) return;
      yield { first, before, rows };
      before = first;
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

  #runs(sql: string, ...values: SqlValue[]): RunRecord[] {
    return this.#read(sql, ...values).map(({ run }) => JSON.parse(run as string) as RunRecord);
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
    hint: "run setup_database to upgrade the database, then recover_database --force to add the runs of the log",
  });
}
