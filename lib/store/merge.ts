/**
 * Merges runs into a database: from the log, and from another database. The log's last line of a run is its state, but no
 * source takes back an ended status or an `api_posted` marker of another one.
 * @module
 */
import { hasCode, TelemetryError } from "../errors.ts";
import { parseStartLine, readLogs, type ReadProgress, type Rejection, type StartLine } from "../log/read.ts";
import { asPythonJson, sourceOf } from "../log/json_source.ts";
import { isOverwrittenId, LATER_STATUSES, type LogRecord, newRun, RUN_COLUMNS, SCHEMA_VERSION } from "../records.ts";
import { isInteger } from "../schema.ts";
import { Connection, retryWhileLocked, type SqlValue } from "../sqlite/connection.ts";
import { columnNames } from "../sqlite/migrate.ts";
import { parametersFor, readRows } from "../sqlite/rows.ts";
import { parseTimestamp } from "../time.ts";

/** The columns that a log can fill: the contract's, and one that only older lines have. */
export const LOG_COLUMNS: readonly string[] = [...RUN_COLUMNS, "custom_metadata"];
/** How many runs are held until their end is read. */
const MAX_HELD = 20_000;

/** Some states of runs, as {@linkcode readRunStates} yields them. */
export interface RunStates {
  /** The cells of each state, in the order of `LOG_COLUMNS`. */
  rows: SqlValue[][];
  /** The values of `MARK_POSTED_SQL` for those of these runs that were posted. */
  posted: [api_posted_at: SqlValue, run_id: string][];
  rejections: Rejection[];
  /** The schema version of a line that a later product wrote, if there is one. */
  laterVersion?: number;
  /** How many runs ended with each of `LATER_STATUSES`. They are `failed` here. */
  laterStatuses: Record<string, number>;
}

/**
 * The states of runs in logs. Most states that do not last are left out, but a run may come more than once. Applied in
 * order with `upsertSql` and `MARK_POSTED_SQL`, they give the last state of each run. Holds a bounded number of runs.
 */
export async function* readRunStates(
  files: Iterable<string>,
  progress?: ReadProgress,
): AsyncGenerator<RunStates, void> {
  const held = new HeldStarts();
  for await (const batch of readLogs(files, { only: "run", ...progress && { progress } })) {
    for (const found of batch) {
      if ("rejected" in found) held.out.rejections.push(found);
      else if ("start" in found) held.add(found.start, found);
      else if (found.record.record_type === "run") held.add(found.record.run_id, found.record);
    }
    if (held.out.rows.length > 0 || held.out.rejections.length > 0) yield held.take();
  }
  held.release();
  yield held.take();
}

type Run = LogRecord & { record_type: "run" };

function noStates(): RunStates {
  return { rows: [], posted: [], rejections: [], laterStatuses: {} };
}

/** Holds the start of each run until its end is read. */
class HeldStarts {
  out = noStates();
  readonly #held = new Map<string, Run | StartLine>();
  /** The starts of which no copy was made yet. */
  #added: StartLine[] = [];

  add(id: string, run: Run | StartLine): void {
    const before = this.#held.get(id);
    if (before !== undefined) {
      this.#held.delete(id);
      // A marker must not be lost with the state that has it.
      if ("run_id" in before && Number(before.api_posted) === 1) this.#put(before);
    }
    // A line without a status is a start, too.
    if ("run_id" in run && run.status && run.status !== "running") return this.#put(run);
    this.#held.set(id, run);
    if ("start" in run) this.#added.push(run);
    if (this.#held.size <= MAX_HELD) return;
    const [[oldest, start]] = this.#held as Iterable<[string, Run | StartLine]> as [[string, Run | StartLine]];
    this.#held.delete(oldest);
    this.#putStart(start);
  }

  take(): RunStates {
    // The strings are slices, each of which keeps a whole chunk of the log in memory. Appending copies them.
    for (const start of this.#added) {
      if (this.#held.get(start.start) === start) start.text = (" " + start.text).slice(1);
    }
    this.#added = [];
    const { out } = this;
    this.out = noStates();
    return out;
  }

  /** Puts out the runs whose end was not found. */
  release(): void {
    for (const start of this.#held.values()) this.#putStart(start);
  }

  #putStart(start: Run | StartLine): void {
    if ("run_id" in start) return this.#put(start);
    for (const found of parseStartLine(start)) {
      if ("rejected" in found) this.out.rejections.push(found);
      else if (found.record.record_type === "run") this.#put(found.record);
    }
  }

  #put(run: Run): void {
    const fields = run as unknown as Record<string, unknown>;
    const row = LOG_COLUMNS.map((column) => cellOf(fields, column));
    const version = Number(row[VERSION]);
    if (version > SCHEMA_VERSION || fields["event_id"] !== undefined) {
      this.out.laterVersion = Math.max(version, SCHEMA_VERSION + 1);
    }
    if (LATER_STATUSES.includes(row[STATUS])) {
      const status = String(row[STATUS]);
      this.out.laterStatuses[status] = (this.out.laterStatuses[status] ?? 0) + 1;
      row[ERROR] = row[ERROR] ? `${status}: ${row[ERROR]}` : status;
      row[STATUS] = "failed";
    }
    if (row[POSTED] === 1) this.out.posted.push([row[POSTED + 1]!, run.run_id]);
    row[METRICS] ??= fields["metrics"] === undefined ? null : cellOf(fields, "metrics");
    // Logs have neither time. These are what the database would have set.
    row[CREATED] ??= databaseTime(fields["start_time"]);
    row[CREATED + 1] ??= databaseTime(fields["end_time"] ?? fields["start_time"]);
    this.out.rows.push(row);
  }
}

const INTEGERS = new Set(LOG_COLUMNS.filter((column) => isInteger("agent_runs", column)));
/** The position of the status in a row of {@linkcode RunStates}. */
export const STATUS: number = LOG_COLUMNS.indexOf("status");
/** The position of the start time. */
export const START: number = LOG_COLUMNS.indexOf("start_time");
const VERSION = LOG_COLUMNS.indexOf("schema_version");
const ERROR = LOG_COLUMNS.indexOf("error_summary");
const METRICS = LOG_COLUMNS.indexOf("metrics_json");
const POSTED = LOG_COLUMNS.indexOf("api_posted");
const CREATED = LOG_COLUMNS.indexOf("created_at");
/** The values of fields that a line lacks. */
const DEFAULTS = newRun({ run_id: "", agent_name: "", start_time: "" }) as unknown as Record<string, SqlValue>;

function cellOf(fields: Record<string, unknown>, column: string): SqlValue {
  const value = fields[column];
  if (typeof value === "string" || value === null) return value;
  if (value === undefined) return DEFAULTS[column] ?? null;
  if (typeof value === "boolean") return Number(value);
  const source = typeof value === "number" && Number.isSafeInteger(value) ? undefined : sourceOf(fields, column);
  if (typeof value === "object") return asPythonJson(source ?? JSON.stringify(value));
  // A number that is bound to a TEXT column becomes "5.0".
  if (!INTEGERS.has(column)) return source ?? String(value);
  return source !== undefined && isInt64(source) ? BigInt(source) : value as number;
}

/** Whether this is an integer that SQLite can store. */
function isInt64(source: string): boolean {
  return /^-?\d{1,19}$/.test(source) && BigInt.asIntN(64, BigInt(source)) === BigInt(source);
}

/** `YYYY-MM-DD HH:MM:SS`, as SQLite's `datetime('now')` writes it; null for anything that is not a time. */
function databaseTime(time: unknown): string | null {
  if (typeof time !== "string") return null;
  if (PLAIN_TIME.test(time)) return `${time.slice(0, 10)} ${time.slice(11, 19)}`;
  const at = parseTimestamp(time);
  return at === undefined ? null : new Date(at / 1000).toISOString().slice(0, 19).replace("T", " ");
}

/** A time in UTC as the clients write it. Cutting it is much faster than parsing it. */
const PLAIN_TIME = /^\d{4}-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-5]\d(?:\.\d+)?(?:\+00:00|Z)$/;

/** The columns that are not in every schema version. */
const NOT_ALWAYS: readonly string[] = ["insight_id", "product_family", "subdomain", "custom_metadata"];

/**
 * The one statement that merges a state from the log. Its fields win, except that an ended status, a marker and the times of
 * the row are not taken back.
 *
 * @param columns those of `LOG_COLUMNS` that the table has
 */
export function upsertSql(columns: readonly string[]): string {
  const ends = "agent_runs.status='running' AND excluded.status<>'running'";
  const updates = columns.filter((column) => !["run_id", "api_posted", "api_posted_at"].includes(column)).map(
    (column) => {
      const [old, logged] = [`agent_runs.${column}`, `excluded.${column}`];
      // A line that is older than the column has no value for it.
      if (NOT_ALWAYS.includes(column)) return `${column}=coalesce(${logged}, ${old})`;
      if (column === "api_retry_count") return `${column}=coalesce(max(${old}, ${logged}), ${old}, ${logged})`;
      if (column === "created_at") return `${column}=coalesce(${old}, ${logged})`;
      // The time in the database is exact, unless the log has a later change.
      if (column === "updated_at") {
        return `${column}=CASE WHEN ${ends} THEN ${logged} ELSE coalesce(${old}, ${logged}) END`;
      }
      return `${column}=${logged}`;
    },
  );
  return `INSERT INTO agent_runs (${columns}) VALUES (${columns.map(() => "?")})
    ON CONFLICT(run_id) DO UPDATE SET ${updates}
    WHERE excluded.status<>'running' OR agent_runs.status IS NULL OR agent_runs.status='running'`;
}

/** Marks a run as posted, unless it is. Parameters: `api_posted_at`, `run_id`. */
export const MARK_POSTED_SQL = "UPDATE agent_runs SET api_posted=1, api_posted_at=coalesce(api_posted_at, ?) " +
  "WHERE run_id=? AND coalesce(api_posted, 0)=0";

/** Whether a run started before a time, in SQL. NULL where its start is not a time. */
export function startedBeforeSql(since: Date, table = "agent_runs"): string {
  return `unixepoch(${table}.start_time, 'subsec') < ${since.getTime() / 1000}`;
}

/** Makes a connection insert no run that started before a time, and note its id in `left_behind`. */
export function leaveBehindSql(since: Date): string {
  return `
    CREATE TEMP TABLE left_behind (run_id PRIMARY KEY) WITHOUT ROWID;
    CREATE TEMP TRIGGER leave_behind BEFORE INSERT ON agent_runs WHEN ${startedBeforeSql(since, "new")} BEGIN
      INSERT OR IGNORE INTO left_behind VALUES (new.run_id);
      SELECT RAISE(IGNORE);
    END;`;
}

/** What {@linkcode replayLog} did. */
export interface Replayed {
  /** How many runs the database lacked, or had in an older state. */
  newer: number;
  /** How many states violate a constraint of the table. They remain in the log only. */
  refused: number;
  /** The logs that cannot be read. */
  unreadable_logs: string[];
}

/** Merges the runs of logs into a v3 database, in short transactions, since it may be live. */
export async function replayLog(db: Connection, files: Iterable<string>): Promise<Replayed> {
  const known = db.prepare("SELECT status FROM agent_runs WHERE run_id=?");
  const upsert = db.prepare(upsertSql(RUN_COLUMNS));
  const mark = db.prepare(MARK_POSTED_SQL);
  const done: Replayed = { newer: 0, refused: 0, unreadable_logs: [] };
  for await (const { rows, posted, rejections } of readRunStates(files)) {
    for (const { rejected, file } of rejections) if (rejected === "cannot be read") done.unreadable_logs.push(file);
    // A write is repeated where a trigger rolls back the transaction.
    const outcomes = new Map<SqlValue[], "newer" | "refused">();
    const states = rows.map((row) => () => {
      const before = known.get(row[0]!);
      outcomes.delete(row);
      if (before === undefined && isLeftToAgent(row)) return;
      if (!isStored(() => upsert.run(...row.slice(0, RUN_COLUMNS.length)))) outcomes.set(row, "refused");
      else if (before === undefined || before["status"] === "running" && row[STATUS] !== "running") {
        outcomes.set(row, "newer");
      }
    });
    const marks = posted.map((values) => () => void isStored(() => mark.run(...values)));
    writeAll(db, [...states, ...marks]);
    for (const outcome of outcomes.values()) done[outcome]++;
  }
  return done;
}

/** How long a Python agent may take from its line in the log to its row in the database, in microseconds. */
const MAX_START_DELAY_US = 20_000_000;

/**
 * Whether the agent of this run may be about to insert it. An INSERT that is refused because the run is there already makes a
 * Python agent hold the write lock until it ends.
 */
export function isLeftToAgent(row: SqlValue[]): boolean {
  const start = row[STATUS] === "running" ? parseTimestamp(String(row[START])) : undefined;
  return start !== undefined && Math.abs(Date.now() * 1000 - start) < MAX_START_DELAY_US;
}

/**
 * Writes in one transaction. Where a user-defined trigger rolls it back (`RAISE(ROLLBACK)`), each write gets its own one,
 * so that the trigger stops no write but its own.
 */
function writeAll(db: Connection, writes: (() => void)[]): void {
  const begin = () => db.isInTransaction || retryWhileLocked(() => db.run("BEGIN IMMEDIATE"));
  const commit = () => db.isInTransaction && db.run("COMMIT");
  try {
    begin();
    for (const write of writes) {
      write();
      if (db.isInTransaction) continue;
      for (const again of writes) {
        begin();
        again();
        commit();
      }
      return;
    }
    commit();
  } catch (error) {
    db.rollback();
    throw error;
  }
}

/**
 * Adds what agents have written to the log while the database was replaced. The database is complete otherwise, and the log
 * has these runs, so a failure is only a warning. Leaves out runs that started before `since`.
 */
export async function catchUp(database: string, files: () => string[], since?: Date): Promise<string[]> {
  try {
    const grown = files();
    if (grown.length === 0) return [];
    using db = Connection.open(database);
    if (since) db.exec(leaveBehindSql(since));
    await replayLog(db, grown);
    return [];
  } catch (error) {
    if (!(error instanceof TelemetryError)) throw error;
    return [
      `what agents wrote to the log in the meantime is not in the database yet (${error.message}): ` +
      `run recover_database --force later`,
    ];
  }
}

/** Whether a row was stored; false when it violates a constraint of the table, or a trigger refuses it. */
function isStored(write: () => void): boolean {
  try {
    write();
    return true;
  } catch (error) {
    if (hasCode(error, "invalid_record")) return false;
    throw error;
  }
}

/**
 * Merges the runs of a database that is about to be replaced: those that `db` lacks, and all `api_posted` markers, since a
 * run without its marker would be posted twice. Damaged rows are left out.
 *
 * @param db what replaces it, schema v3
 * @param replaced any schema version
 * @returns how many runs violate a constraint of the table
 */
export function mergeRuns(db: Connection, replaced: Connection): number {
  const existing = columnNames(replaced, "agent_runs");
  if (!existing.has("run_id")) return 0;
  const columns = RUN_COLUMNS.filter((column) => existing.has(column));
  const posted = columns.indexOf("api_posted");
  const insertSql = (parameters: string[]) =>
    `INSERT INTO agent_runs (${columns}) VALUES (${parameters}) ON CONFLICT(run_id) DO NOTHING`;
  const insertText = db.prepare(insertSql(columns.map(() => "?")));
  const mark = db.prepare(MARK_POSTED_SQL);
  let count = 0;
  for (const rows of readRows(replaced, "agent_runs", columns)) {
    const refused = new Set<SqlValue>();
    const writes = rows.map(({ cells }) => () => {
      const [id] = cells;
      // SQLite accepts NULL and BLOBs as a key; no run has such an id.
      if (typeof id !== "string" || isOverwrittenId(id) && !isInIndex(replaced, id)) return;
      const parameters = parametersFor(cells);
      const insert = parameters.some((parameter) => parameter !== "?") ? db.prepare(insertSql(parameters)) : insertText;
      if (!isStored(() => insert.run(...cells))) refused.add(id);
      if (cells[posted] === 1) isStored(() => mark.run(cells[posted + 1]!, id));
    });
    writeAll(db, writes);
    count += refused.size;
  }
  return count;
}

/** Whether the index of the primary key has this id: in a damaged file, data may have overwritten the id in the table. */
export function isInIndex(db: Connection, id: string): boolean {
  try {
    return db.get("SELECT 1 FROM agent_runs INDEXED BY sqlite_autoindex_agent_runs_1 WHERE run_id=?", id) !== undefined;
  } catch (error) {
    if (error instanceof TelemetryError) return false;
    throw error;
  }
}
