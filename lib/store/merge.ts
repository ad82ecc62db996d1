/**
 * Brings what the log says of runs into a database.
 * @module
 */
import { hasCode, TelemetryError } from "../errors.ts";
import { parseTimestamp } from "../time.ts";
import { type Rejection, type ScanProgress, scanRuns } from "../log/read.ts";
import { isOverwrittenId, type LogRecord, newRun, RUN_COLUMNS } from "../records.ts";
import { readRows, rowidOf } from "../sqlite/rows.ts";
import { isInteger } from "../schema.ts";
import { columnNames } from "../sqlite/migrate.ts";
import type { Connection, SqlValue } from "../sqlite/connection.ts";

/** The columns that the log has something to say of: the contract's, and one that only older lines have. */
export const LOG_COLUMNS: readonly string[] = [...RUN_COLUMNS, "custom_metadata"];
/** How many runs whose end is yet to come are kept in mind; the rest is handed on as it is. */
const MAX_HELD = 20_000;

/** States of runs, as {@linkcode readRunStates} yields them. */
export interface LogStates {
  /** The cells of one row after the other, each as long as `LOG_COLUMNS`. */
  cells: SqlValue[];
  /** Those of these runs that were posted: when, and the run. */
  posted: [api_posted_at: SqlValue, run_id: string][];
  /** What was no record. */
  rejections: Rejection[];
}

/**
 * The states of runs in some logs, so that with {@linkcode upsertSql} the last one counts, but an ended state is not
 * taken back by a `running`. Most states that do not last are left out; a run may come more than once. Holds a bounded
 * number of runs, however many there are.
 *
 * @param files the logs, in order
 * @param progress is kept up to date
 */
export async function* readRunStates(
  files: Iterable<string>,
  progress?: ScanProgress,
): AsyncGenerator<LogStates, void> {
  const states = new States();
  for await (const batch of scanRuns(files, progress)) {
    for (const found of batch) {
      if ("rejected" in found) states.found.rejections.push(found);
      else if (found.record.record_type === "run") states.take(found.record);
    }
    if (states.found.cells.length > 0 || states.found.rejections.length > 0) yield states.next();
  }
  yield states.end();
}

type Run = LogRecord & { record_type: "run" };

/** Holds the start of each run until its end is found. */
class States {
  found: LogStates = { cells: [], posted: [], rejections: [] };
  readonly #held = new Map<string, Run>();

  take(run: Run): void {
    const before = this.#held.get(run.run_id);
    if (before !== undefined) {
      this.#held.delete(run.run_id);
      // Its mark must not be lost with it.
      if (Number(before.api_posted) === 1) this.#put(before);
    }
    // A line without a status says the same.
    if (run.status && run.status !== "running") return this.#put(run);
    this.#held.set(run.run_id, run);
    if (this.#held.size > MAX_HELD) {
      const [longest] = this.#held.values();
      this.#held.delete(longest!.run_id);
      this.#put(longest!);
    }
  }

  next(): LogStates {
    const { found } = this;
    this.found = { cells: [], posted: [], rejections: [] };
    return found;
  }

  /** Those that never ended. */
  end(): LogStates {
    for (const run of this.#held.values()) this.#put(run);
    return this.next();
  }

  #put(run: Run): void {
    const fields = run as unknown as Record<string, unknown>;
    const { cells } = this.found;
    const first = cells.length;
    for (const column of LOG_COLUMNS) cells.push(cellOf(fields[column], column));
    if (cells[first + POSTED] === 1) this.found.posted.push([cells[first + POSTED + 1]!, run.run_id]);
    cells[first + METRICS] ??= cellOf(fields["metrics"] ?? null, "metrics_json");
    // As the database itself would have noted them: the log has none.
    cells[first + CREATED] ??= databaseTime(fields["start_time"]);
    cells[first + CREATED + 1] ??= databaseTime(fields["end_time"] ?? fields["start_time"]);
  }
}

/** Asked for each cell of millions of lines. */
const INTEGERS = new Set(LOG_COLUMNS.filter((column) => isInteger("agent_runs", column)));
const METRICS = LOG_COLUMNS.indexOf("metrics_json");
const POSTED = LOG_COLUMNS.indexOf("api_posted");
const CREATED = LOG_COLUMNS.indexOf("created_at");
/** What a line that lacks a field says of it. */
const DEFAULTS = newRun({ run_id: "", agent_name: "", start_time: "" }) as unknown as Record<string, SqlValue>;

function cellOf(value: unknown, column: string): SqlValue {
  if (typeof value === "string" || value === null) return value;
  // Bound as it is, a number in a column of text would become "5.0".
  if (typeof value === "number") return INTEGERS.has(column) ? value : String(value);
  if (value === undefined) return DEFAULTS[column] ?? null;
  return typeof value === "boolean" ? Number(value) : pythonJson(value);
}

/** JSON as Python's `json.dumps` writes it: what the Python client put into the database for this object. */
function pythonJson(value: unknown): string {
  // No newline of the indented form is inside of a string.
  const spaced = JSON.stringify(value, null, 1).replace(/,\n\s*/g, ", ").replace(/\n\s*/g, "");
  return spaced.replace(/[\x7f-\uffff]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** `YYYY-MM-DD HH:MM:SS`, as SQLite's `datetime('now')` writes it; null for what is no time. */
function databaseTime(time: unknown): string | null {
  if (typeof time !== "string") return null;
  if (PLAIN_TIME.test(time)) return `${time.slice(0, 10)} ${time.slice(11, 19)}`;
  const at = parseTimestamp(time);
  return at === undefined ? null : new Date(at / 1000).toISOString().slice(0, 19).replace("T", " ");
}

/** A time in UTC as the clients write it, which is cut much faster than it is parsed. */
const PLAIN_TIME = /^\d{4}-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-5]\d(?:\.\d+)?(?:\+00:00|Z)$/;

/** The columns that schema v1 or v2 did not have, and the one that only they have. */
const NOT_ALWAYS: readonly string[] = ["insight_id", "product_family", "subdomain", "custom_metadata"];

/**
 * The statement that writes a state from the log: its fields win, but neither an ended state nor a mark of posting that
 * the database has is taken back.
 *
 * @param columns which ones the table has, of `LOG_COLUMNS`
 */
export function upsertSql(columns: readonly string[]): string {
  const changed = columns.filter((column) => !["run_id", "api_posted", "api_posted_at"].includes(column)).map(
    (column) => {
      const [was, is] = [`agent_runs.${column}`, `excluded.${column}`];
      // A line that is older than the column says nothing of it.
      if (NOT_ALWAYS.includes(column)) return `${column}=coalesce(${is}, ${was})`;
      if (column === "api_retry_count") return `${column}=coalesce(max(${was}, ${is}), ${was}, ${is})`;
      if (column === "created_at") return `${column}=coalesce(${was}, ${is})`;
      // The database knows better when its row was changed, unless the log knows of a later change.
      if (column === "updated_at") {
        return `${column}=CASE WHEN ${HAS_ENDED} THEN ${is} ELSE coalesce(${was}, ${is}) END`;
      }
      return `${column}=${is}`;
    },
  );
  return `INSERT INTO agent_runs (${columns}) VALUES (${columns.map(() => "?")})
    ON CONFLICT(run_id) DO UPDATE SET ${changed}
    WHERE excluded.status<>'running' OR agent_runs.status IS NULL OR agent_runs.status='running'`;
}

const HAS_ENDED = "agent_runs.status='running' AND excluded.status<>'running'";

/** The statement that marks a run as posted, unless it is: when, and which. */
export const MARK_POSTED_SQL = "UPDATE agent_runs SET api_posted=1, api_posted_at=coalesce(api_posted_at, ?) " +
  "WHERE run_id=? AND coalesce(api_posted, 0)=0";

/** What {@linkcode replayLog} did. */
export interface Applied {
  /** How many runs the database lacked, or had in an older state. */
  newer: number;
  /** How many states the table refuses: they stay in the log alone. */
  refused: number;
}

/**
 * Writes what the log says of runs into a v3 database, in short transactions: it may be live.
 *
 * @param db the database
 * @param files the logs, in order
 */
export async function replayLog(db: Connection, files: Iterable<string>): Promise<Applied> {
  return await apply(db, files, (work) => db.transaction(work));
}

/**
 * How many runs the log has that a v3 database lacks, or has in an older state, and could take. What the table refuses
 * would be counted for ever, and only trying tells: nothing else can write to the database meanwhile.
 */
export async function countUnreplayed(db: Connection, files: Iterable<string>): Promise<Applied> {
  db.run("BEGIN IMMEDIATE");
  try {
    return await apply(db, files, (work) => work());
  } finally {
    db.rollback();
  }
}

async function apply(db: Connection, files: Iterable<string>, write: (work: () => void) => void): Promise<Applied> {
  const known = db.prepare("SELECT status FROM agent_runs WHERE run_id=?");
  const upsert = db.prepare(upsertSql(RUN_COLUMNS));
  const mark = db.prepare(MARK_POSTED_SQL);
  const done: Applied = { newer: 0, refused: 0 };
  const put = (row: SqlValue[]) => {
    const before = known.get(row[0]!);
    try {
      upsert.run(...row);
      if (before === undefined || before["status"] === "running" && row[STATUS] !== "running") done.newer++;
    } catch (error) {
      if (!hasCode(error, "invalid_record")) throw error;
      done.refused++;
    }
  };
  for await (const { cells, posted } of readRunStates(files)) {
    write(() => {
      for (let at = 0; at < cells.length; at += LOG_COLUMNS.length) put(cells.slice(at, at + RUN_COLUMNS.length));
      for (const values of posted) mark.run(...values);
    });
  }
  return done;
}

const STATUS = LOG_COLUMNS.indexOf("status");

/**
 * Brings runs of the database that is about to be replaced into the one that comes: those that it lacks, and all marks
 * of posting, since a run that lost its mark would be posted twice. What is damaged is left out.
 *
 * @param db what comes in its place
 * @param replaced of whatever version
 * @returns how many runs the table refuses
 */
export function mergeRuns(db: Connection, replaced: Connection): number {
  const there = columnNames(replaced, "agent_runs");
  const columns = RUN_COLUMNS.filter((column) => there.has(column));
  const posted = columns.indexOf("api_posted");
  const insert = db.prepare(
    `INSERT INTO agent_runs (${columns}) VALUES (${columns.map(() => "?")}) ON CONFLICT(run_id) DO NOTHING`,
  );
  const mark = db.prepare(MARK_POSTED_SQL);
  let refused = 0;
  for (const rows of readRows(replaced, "agent_runs", columns)) {
    db.transaction(() => {
      for (const { cells } of rows) {
        // SQLite takes NULL for a key, and a BLOB; no run has such an id.
        if (typeof cells[0] !== "string") continue;
        if (isOverwrittenId(cells[0]) && !isInIndex(replaced, cells[0])) continue;
        try {
          insert.run(...cells);
        } catch (error) {
          if (!hasCode(error, "invalid_record")) throw error;
          refused++;
        }
        if (cells[posted] === 1) mark.run(cells[posted + 1]!, cells[0]!);
      }
    });
  }
  db.transaction(() => {
    for (const run_id of readMarkedIds(replaced)) mark.run(null, run_id);
  });
  return refused;
}

/** Whether the index of the ids has one, too. */
export function isInIndex(db: Connection, id: string): boolean {
  try {
    return db.get(`SELECT 1 FROM agent_runs INDEXED BY sqlite_autoindex_agent_runs_1 WHERE run_id=?`, id) !== undefined;
  } catch (error) {
    if (error instanceof TelemetryError) return false;
    throw error;
  }
}

/**
 * The ids of the runs that are marked as posted, by the indexes alone: they may be whole where the table is damaged.
 * Empty where they are not.
 */
export function readMarkedIds(db: Connection): string[] {
  try {
    const select = `SELECT ${rowidOf(db, "agent_runs")} AS at`;
    const ids = new Map(
      db.all(`${select}, run_id FROM agent_runs INDEXED BY sqlite_autoindex_agent_runs_1 WHERE run_id>=''`)
        .map((row) => [row["at"], String(row["run_id"])]),
    );
    return db.all(`${select} FROM agent_runs INDEXED BY idx_runs_api_posted WHERE api_posted=1`)
      .flatMap((row) => ids.get(row["at"]) ?? []);
  } catch (error) {
    if (error instanceof TelemetryError) return [];
    throw error;
  }
}
