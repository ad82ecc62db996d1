/**
 * Merges runs into a database: from the log, and from another database. The log's last line of a run is its state, but no
 * source takes back an ended status or an `api_posted` marker of another one.
 * @module
 */
import { hasCode, TelemetryError } from "../errors.ts";
import { readLogs, type ReadProgress, type Rejection } from "../log/read.ts";
import { asPythonJson, sourceOf } from "../log/json_source.ts";
import { isOverwrittenId, LATER_STATUSES, type LogRecord, newRun, RUN_COLUMNS, SCHEMA_VERSION } from "../records.ts";
import { isInteger } from "../schema.ts";
import { Connection, retryWhileLocked, type SqlValue, type Statement } from "../sqlite/connection.ts";
import { columnNames } from "../sqlite/migrate.ts";
import { parametersFor, readRows } from "../sqlite/rows.ts";
import { parseTimestamp } from "../time.ts";

/** The columns that a log can fill: the contract's, and one that only older lines have. */
export const LOG_COLUMNS: readonly string[] = [...RUN_COLUMNS, "custom_metadata"];
/** How many runs are held until their end is read. */
const MAX_HELD = 20_000;

type Run = LogRecord & { record_type: "run" };

/** What a read of the log has found so far. */
export interface StatesRead extends ReadProgress {
  /** The schema version of a line that a later product wrote, if there is one. */
  laterVersion?: number;
  /** How many runs ended with each of `LATER_STATUSES`. They are `failed` here. */
  laterStatuses: Record<string, number>;
}

/** Nothing read yet. */
export function nothingRead(): StatesRead {
  return { files: 0, lines: 0, bytes: 0, laterStatuses: {} };
}

/** Some states of runs. */
export interface RunStates {
  /** The cells of each state, in the order of `LOG_COLUMNS`. */
  rows: SqlValue[][];
  rejections: Rejection[];
}

/**
 * The states of runs in logs. Most states that do not last are left out, but a run may come more than once. Merged in order
 * by a {@linkcode StateWriter}, they give the last state of each run. Holds a bounded number of runs. Updates `read`.
 */
export async function* readRunStates(
  files: Iterable<string>,
  read: StatesRead = nothingRead(),
): AsyncGenerator<RunStates, void> {
  /** The start of each run whose end is not read yet. */
  const held = new Map<string, Run>();
  for await (const batch of readLogs(files, { only: "run", progress: read })) {
    const rejections = batch.filter((found) => "rejected" in found);
    const rows: SqlValue[][] = [];
    for (const found of batch) {
      if ("rejected" in found || found.record.record_type !== "run") continue;
      const run = found.record;
      const before = held.get(run.run_id);
      held.delete(run.run_id);
      // A marker must not be lost with the state that has it.
      if (Number(before?.api_posted) === 1) rows.push(rowOf(before!, read));
      // A line without a status is a start, too.
      if (run.status && run.status !== "running") rows.push(rowOf(run, read));
      else held.set(run.run_id, run);
      if (held.size <= MAX_HELD) continue;
      const oldest = held.values().next().value!;
      held.delete(oldest.run_id);
      rows.push(rowOf(oldest, read));
    }
    yield { rows, rejections };
  }
  yield { rows: held.values().map((run) => rowOf(run, read)).toArray(), rejections: [] };
}

function rowOf(run: Run, read: StatesRead): SqlValue[] {
  const fields = run as unknown as Record<string, unknown>;
  const row = LOG_COLUMNS.map((column) => cellOf(fields, column));
  const version = Number(row[VERSION]);
  if (version > SCHEMA_VERSION || fields["event_id"] !== undefined) {
    read.laterVersion = Math.max(version, SCHEMA_VERSION + 1);
  }
  if (LATER_STATUSES.includes(row[STATUS])) {
    const status = String(row[STATUS]);
    read.laterStatuses[status] = (read.laterStatuses[status] ?? 0) + 1;
    row[ERROR] = row[ERROR] ? `${status}: ${row[ERROR]}` : status;
    row[STATUS] = "failed";
  }
  row[METRICS] ??= fields["metrics"] === undefined ? null : cellOf(fields, "metrics");
  return row;
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
/** The values of fields that a line lacks. */
const DEFAULTS = newRun({ run_id: "", agent_name: "", start_time: "" }) as unknown as Record<string, SqlValue>;

function cellOf(fields: Record<string, unknown>, column: string): SqlValue {
  const given = fields[column];
  if (typeof given === "string" || given === null) return given;
  if (given === undefined) return DEFAULTS[column] ?? null;
  const value = typeof given === "boolean" ? Number(given) : given;
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

/** The columns that are not in every schema version. */
const NOT_ALWAYS: readonly string[] = ["insight_id", "product_family", "subdomain", "custom_metadata"];

/** Marks a run as posted, unless it is. Parameters: `api_posted_at`, `run_id`. */
export const MARK_POSTED_SQL = "UPDATE agent_runs SET api_posted=1, api_posted_at=coalesce(api_posted_at, ?) " +
  "WHERE run_id=? AND coalesce(api_posted, 0)=0";

/** The parameters of {@linkcode MARK_POSTED_SQL} for the states that have a marker. */
export function markersOf(rows: SqlValue[][]): SqlValue[][] {
  return rows.filter((row) => row[POSTED] === 1).map((row) => [row[POSTED + 1]!, row[0]!]);
}

/** Merges states of runs from the log into a database. */
export class StateWriter {
  readonly #columns: readonly string[];
  readonly #upsert: Statement;
  readonly #mark: Statement;

  /** `columns` are those of `LOG_COLUMNS`, from the first one on, that the table has. */
  constructor(db: Connection, columns: readonly string[]) {
    this.#columns = columns;
    this.#upsert = db.prepare(upsertSql(columns));
    this.#mark = db.prepare(MARK_POSTED_SQL);
  }

  /** The fields of the log win, except that an ended status, a marker and the times of the row are not taken back. */
  writeState(row: SqlValue[]): void {
    // Unlike `run`, it creates no object for a result.
    this.#upsert.get(...row.slice(0, this.#columns.length));
  }

  /** Marks the run as posted, if it was. */
  writeMarker(row: SqlValue[]): void {
    for (const marker of markersOf([row])) this.#mark.get(...marker);
  }
}

/** Merges a state. `columns` are those of `LOG_COLUMNS`, from the first one on, that the table has. */
export function upsertSql(columns: readonly string[]): string {
  const parameter = (column: string) => `?${columns.indexOf(column) + 1}`;
  // Logs have neither time of a row. These are what the database would have set.
  const otherwise: Record<string, string> = {
    created_at: `datetime(${parameter("start_time")})`,
    updated_at: `datetime(coalesce(${parameter("end_time")}, ${parameter("start_time")}))`,
  };
  const values = columns.map((column) =>
    column in otherwise ? `coalesce(${parameter(column)}, ${otherwise[column]})` : parameter(column)
  );
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
  return `INSERT INTO agent_runs (${columns}) VALUES (${values})
    ON CONFLICT(run_id) DO UPDATE SET ${updates}
    WHERE excluded.status<>'running' OR agent_runs.status IS NULL OR agent_runs.status='running'`;
}

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
  const writer = new StateWriter(db, RUN_COLUMNS);
  const done: Replayed = { newer: 0, refused: 0, unreadable_logs: [] };
  for await (const { rows, rejections } of readRunStates(files)) {
    for (const { rejected, file } of rejections) if (rejected === "cannot be read") done.unreadable_logs.push(file);
    // A write is repeated where a trigger rolls back the transaction.
    const outcomes = new Map<SqlValue[], "newer" | "refused">();
    const writes = rows.flatMap((row) => [
      () => {
        const before = known.get(row[0]!);
        outcomes.delete(row);
        if (before === undefined && isLeftToAgent(row)) return;
        if (!isStored(() => writer.writeState(row))) outcomes.set(row, "refused");
        else if (before === undefined || before["status"] === "running" && row[STATUS] !== "running") {
          outcomes.set(row, "newer");
        }
      },
      () => void isStored(() => writer.writeMarker(row)),
    ]);
    writeAll(db, writes);
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
  if (writes.length === 0) return;
  retryWhileLocked(() => db.run("BEGIN IMMEDIATE"));
  try {
    const isWhole = writes.every((write) => (write(), db.isInTransaction));
    if (isWhole) return void db.run("COMMIT");
  } catch (error) {
    db.rollback();
    throw error;
  }
  for (const write of writes) retryWhileLocked(write);
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
    const refused = new Set<SqlValue[]>();
    const writes = rows.map(({ cells }) => () => {
      const [id] = cells;
      // SQLite accepts NULL and BLOBs as a key; no run has such an id.
      if (typeof id !== "string") return void refused.add(cells);
      if (isOverwrittenId(id) && !isInIndex(replaced, id)) return;
      const parameters = parametersFor(cells);
      const insert = parameters.some((parameter) => parameter !== "?") ? db.prepare(insertSql(parameters)) : insertText;
      if (!isStored(() => insert.run(...cells))) refused.add(cells);
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
