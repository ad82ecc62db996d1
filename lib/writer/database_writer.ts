/**
 * Reads and writes the runs of the SQLite database (contract, "Writer"). Synchronous.
 * @module
 */
import { createDatabase } from "../store/database.ts";
import { ensureFolder } from "../fs/atomic_file.ts";
import { TelemetryError } from "../errors.ts";
import { type Layout } from "../layout.ts";
import { statIfExists } from "../fs/locate.ts";
import { RUN_COLUMNS, type RunRecord, SCHEMA_VERSION } from "../records.ts";
import { blobAsText } from "../sqlite/rows.ts";
import { inspect, newerSchema } from "../sqlite/migrate.ts";
import { Connection, retryWhileLocked, type Statement } from "../sqlite/connection.ts";

/** Counts over all runs. */
export interface RunStats {
  /** How many runs there are. */
  total_runs: number;
  /** How many there are of each status. */
  status_counts: Record<string, number>;
  /** How many ended runs the web API has not accepted yet. */
  pending_api_posts: number;
}

/** How a {@linkcode DatabaseWriter} behaves. */
export interface DatabaseWriterOptions {
  /**
   * Whether a write that finds the database locked waits for it, and blocks the thread: three tries of 5 s, 100 ms and
   * 200 ms apart (contract, "Pragmas"). Without, it fails at once with `locked`.
   * @default true
   */
  wait?: boolean;
}

/** A connection, its prepared statements, and which file it has open. */
interface OpenDatabase {
  db: Connection;
  statements: Map<string, Statement>;
  dev: number;
  ino: number | null;
}

/** The columns that say how posting went: only the marks change them, so that no later write takes them back. */
const MARKS: readonly (keyof RunRecord)[] = ["api_posted", "api_posted_at", "api_retry_count"];
/** The columns that the database fills itself. */
const OWN_TIMES: readonly (keyof RunRecord)[] = ["created_at", "updated_at"];

const INSERTED = RUN_COLUMNS.filter((column) => !OWN_TIMES.includes(column));
const UPDATED = INSERTED.filter((column) => column !== "run_id" && !MARKS.includes(column));

const INSERT = `INSERT INTO agent_runs (${INSERTED}) VALUES (${INSERTED.map(() => "?")})`;
const UPSERT = `${INSERT} ON CONFLICT(run_id) DO UPDATE SET ` +
  `${UPDATED.map((column) => `${column}=excluded.${column}`)}, updated_at=datetime('now')`;
/** As JSON: SQLite's binding cuts text at a NUL. */
const WHOLE_RUN = `SELECT json_array(${RUN_COLUMNS.map(blobAsText)}) AS run FROM agent_runs`;

/**
 * The runs of a `{base}`'s database. Opens it at the first use, makes it when there is none, and opens it again when
 * the file was replaced, so that a live agent goes on in the database that a recovery has put in place.
 *
 * Every method throws a {@linkcode TelemetryError}: `locked`, `older_schema` (run `setup_database`), `newer_schema`,
 * `invalid_record` (a CHECK or NOT NULL refuses it), `damaged`, `disk_full`, `permission` …
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

  /**
   * A writer that opens the database at its first use.
   *
   * @param layout where the database is
   * @param options how it behaves
   */
  constructor(layout: Layout, options: DatabaseWriterOptions = {}) {
    this.#layout = layout;
    this.#wait = options.wait ?? true;
  }

  /** Inserts a run. One that is there already is refused with `invalid_record`. */
  insertRun(run: RunRecord): void {
    this.#write(INSERT, ...INSERTED.map((column) => run[column]));
  }

  /**
   * Writes the state of a run, and inserts it when its start never reached the database.
   * The marks of posting stay as they are in a row that is there.
   */
  updateRun(run: RunRecord): void {
    this.#write(UPSERT, ...INSERTED.map((column) => run[column]));
  }

  /** A run, whole; undefined when there is none of that id. */
  getRun(runId: string): RunRecord | undefined {
    return this.#runs(`${WHOLE_RUN} WHERE run_id=?`, runId)[0];
  }

  /**
   * Marks a run as accepted by the web API.
   *
   * @param at when, ISO 8601 in UTC
   * @returns whether there is such a run
   */
  markApiPosted(runId: string, at: string): boolean {
    const sql = "UPDATE agent_runs SET api_posted=1, api_posted_at=?, updated_at=datetime('now') WHERE run_id=?";
    return this.#write(sql, at, runId) > 0;
  }

  /**
   * Counts a failed attempt to post a run.
   *
   * @returns whether there is such a run
   */
  incrementApiRetryCount(runId: string): boolean {
    const sql = "UPDATE agent_runs SET api_retry_count=coalesce(api_retry_count, 0)+1, updated_at=datetime('now') " +
      "WHERE run_id=?";
    return this.#write(sql, runId) > 0;
  }

  /**
   * Ended runs that the web API has not accepted yet, newest first.
   *
   * @param limit how many at most
   * @param since only those that started at or after this time, ISO 8601
   * @default limit 100 (contract, "Writer")
   */
  getPendingApiPosts(limit = 100, since?: string): RunRecord[] {
    const started = since === undefined ? "" : "AND julianday(start_time)>=julianday(?)";
    const values = since === undefined ? [limit] : [since, limit];
    return this.#runs(`${WHOLE_RUN} WHERE ${PENDING} ${started} ORDER BY start_time DESC LIMIT ?`, ...values);
  }

  /** Counts over all runs. */
  getRunStats(): RunStats {
    const counts = this.#read("SELECT status, count(*) AS runs FROM agent_runs GROUP BY status");
    const status_counts = Object.fromEntries(counts.map((row) => [String(row["status"]), Number(row["runs"])]));
    const total_runs = Object.values(status_counts).reduce((sum, runs) => sum + runs, 0);
    const pending = this.#read(`SELECT count(*) AS runs FROM agent_runs WHERE ${PENDING}`);
    return { total_runs, status_counts, pending_api_posts: Number(pending[0]!["runs"]) };
  }

  /**
   * What SQLite's own check finds wrong; nothing when the file is sound.
   *
   * @param depth `quick` leaves out that indexes and tables agree
   * @default depth "quick"
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

  #write(sql: string, ...values: (string | number | null)[]): number {
    const write = () => this.#statement(sql).run(...values);
    return this.#wait ? retryWhileLocked(write) : write();
  }

  #read(sql: string, ...values: (string | number | null)[]): ReturnType<Statement["all"]> {
    const read = () => this.#statement(sql).all(...values);
    return this.#wait ? retryWhileLocked(read) : read();
  }

  #runs(sql: string, ...values: (string | number | null)[]): RunRecord[] {
    return this.#read(sql, ...values).map((row) => {
      const cells = JSON.parse(row["run"] as string) as unknown[];
      return Object.fromEntries(RUN_COLUMNS.map((column, i) => [column, cells[i]])) as unknown as RunRecord;
    });
  }

  #statement(sql: string): Statement {
    const { db, statements } = this.#connected();
    let statement = statements.get(sql);
    if (statement === undefined) statements.set(sql, statement = db.prepare(sql));
    return statement;
  }

  #connected(): OpenDatabase {
    const { database } = this.#layout;
    let there = statIfExists(database);
    if (this.#open && there && there.ino === this.#open.ino && there.dev === this.#open.dev) return this.#open;
    this.close();
    if (there === undefined) {
      ensureFolder(this.#layout.base, this.#layout.db);
      createDatabase(this.#layout, this.#wait);
      there = statIfExists(database);
    }
    const db = Connection.open(database, { busyTimeoutMs: this.#wait ? 5000 : 0 });
    try {
      requireV3(db);
    } catch (error) {
      db.close();
      throw error;
    }
    return this.#open = { db, statements: new Map(), dev: there?.dev ?? 0, ino: there?.ino ?? null };
  }
}

/** The runs that wait to be posted: ended, and not accepted yet. One whose id is no text could never be marked. */
const PENDING = "coalesce(api_posted, 0)=0 AND status<>'running' AND typeof(run_id)='text'";

/** Refuses a database that would refuse our rows. */
function requireV3(db: Connection): void {
  const { version, missing } = inspect(db);
  if (version > SCHEMA_VERSION) throw newerSchema(db.path, version);
  if (missing.every((what) => !what.startsWith("agent_runs."))) return;
  throw new TelemetryError("older_schema", `${db.path} has schema v${version}: runs are kept in the log alone`, {
    hint: "run setup_database: it upgrades the database; then recover_database --force adds what is in the log",
  });
}
