/**
 * Brings what the log says of runs into a database.
 * @module
 */
import { hasCode, TelemetryError } from "./errors.ts";
import { scanBatches } from "./log_scanner.ts";
import { type LogRecord, newRun, RUN_COLUMNS, type RunRecord } from "./records.ts";
import type { Connection } from "./sqlite.ts";

/** The last state of each run in some logs. */
export interface LoggedRuns {
  /** By run id. */
  runs: Map<string, RunRecord>;
  /** How many lines, or parts of lines, are no records. */
  rejected: number;
}

/**
 * Reads the last state of each run. The last line of a run counts, but an ended state is not taken back by a `running`,
 * nor a mark of posting by a line without it. Holds one record for each run.
 *
 * @param files the logs, in order
 */
export async function readRuns(files: Iterable<string>): Promise<LoggedRuns> {
  const runs = new Map<string, RunRecord>();
  let rejected = 0;
  for await (const batch of scanBatches(files)) {
    for (const found of batch) {
      if ("rejected" in found) rejected++;
      else if (found.record.record_type === "run") {
        const run = asRun(found.record);
        runs.set(run.run_id, laterOf(runs.get(run.run_id), run));
      }
    }
  }
  return { runs, rejected };
}

/** A line of any age as today's columns have it. */
function asRun(line: LogRecord & { record_type: "run" }): RunRecord {
  const { metrics, ...fields } = line as unknown as Record<string, unknown>;
  const cells = Object.entries(fields).filter(([name]) => COLUMNS.has(name)).map((
    [name, value],
  ) => [name, cellOf(value)]);
  const run = newRun(Object.fromEntries(cells));
  if (run.metrics_json === null && metrics !== undefined) run.metrics_json = cellOf(metrics) as string | null;
  // As the database itself would have noted them: the log has none.
  run.created_at ??= databaseTime(run.start_time);
  run.updated_at ??= databaseTime(run.end_time ?? run.start_time);
  return run;
}

const COLUMNS = new Set<string>(RUN_COLUMNS);

function cellOf(value: unknown): unknown {
  if (typeof value === "boolean") return Number(value);
  return typeof value === "object" && value !== null ? JSON.stringify(value) : value;
}

/** `YYYY-MM-DD HH:MM:SS`, as SQLite's `datetime('now')` writes it; null for what is no time. */
function databaseTime(time: string): string | null {
  const at = new Date(time);
  return isNaN(at.getTime()) ? null : at.toISOString().slice(0, 19).replace("T", " ");
}

function laterOf(before: RunRecord | undefined, now: RunRecord): RunRecord {
  if (before === undefined) return now;
  const state = now.status === "running" && before.status !== "running" ? before : now;
  const marked = [now, before].find(({ api_posted }) => api_posted === 1);
  if (marked === undefined || state.api_posted === 1) return state;
  return { ...state, api_posted: 1, api_posted_at: marked.api_posted_at };
}

/** How many runs the log has that a v3 database lacks, or has in an older state, and could take. */
export function countNewer(db: Connection, { runs }: LoggedRuns): number {
  const known = db.prepare("SELECT status FROM agent_runs WHERE run_id=?");
  const newer = [...runs.values()].filter((run) => {
    const row = known.get(run.run_id);
    return row === undefined || (row["status"] === "running" && run.status !== "running");
  });
  // What the table refuses would be counted for ever: only trying tells.
  db.exec("SAVEPOINT counting");
  const { applied } = applyRuns(db, { runs: new Map(newer.map((run) => [run.run_id, run])), rejected: 0 });
  db.exec("ROLLBACK TO counting; RELEASE counting");
  return applied;
}

/** What {@linkcode applyRuns} did. */
export interface Applied {
  /** How many runs were written. */
  applied: number;
  /** How many the table refuses: they stay in the log alone. */
  refused: number;
}

/**
 * Writes the runs of the log into a v3 database. The log's fields win, but neither an ended state nor a mark of posting
 * that the database has is taken back. To be called in a transaction.
 */
export function applyRuns(db: Connection, { runs }: LoggedRuns): Applied {
  const keep: readonly string[] = ["run_id", "api_posted", "api_posted_at", "api_retry_count", "created_at"];
  const changed = RUN_COLUMNS.filter((column) => !keep.includes(column)).map((column) =>
    // A line that is older than the column says nothing of it.
    ADDED_LATER.includes(column)
      ? `${column}=coalesce(excluded.${column}, agent_runs.${column})`
      : `${column}=excluded.${column}`
  );
  const upsert = db.prepare(
    `INSERT INTO agent_runs (${RUN_COLUMNS}) VALUES (${RUN_COLUMNS.map(() => "?")})
    ON CONFLICT(run_id) DO UPDATE SET ${changed}
    WHERE excluded.status<>'running' OR agent_runs.status IS NULL OR agent_runs.status='running'`,
  );
  const mark = db.prepare(MARK);
  const done: Applied = { applied: 0, refused: 0 };
  for (const run of runs.values()) {
    try {
      upsert.run(...RUN_COLUMNS.map((column) => run[column]));
      if (run.api_posted === 1) mark.run(run.api_posted_at, run.run_id);
      done.applied++;
    } catch (error) {
      if (!hasCode(error, "invalid_record")) throw error;
      done.refused++;
    }
  }
  return done;
}

/** The columns that schema v1 or v2 did not have. */
const ADDED_LATER: readonly string[] = ["insight_id", "product_family", "subdomain"];

const MARK = "UPDATE agent_runs SET api_posted=1, api_posted_at=coalesce(api_posted_at, ?) " +
  "WHERE run_id=? AND coalesce(api_posted, 0)=0";

/**
 * Every run of a database that can still be read, of whatever version; a damaged page costs the runs that are on it.
 *
 * @param db what is about to be replaced
 */
export function readDatabaseRuns(db: Connection): RunRecord[] {
  const there = new Set(db.all("SELECT name FROM pragma_table_info('agent_runs')").map((row) => String(row["name"])));
  const columns = RUN_COLUMNS.filter((column) => there.has(column));
  // As JSON: SQLite's binding cuts text at a NUL. Not by an index: that may be what is damaged.
  const rows = db.prepare(
    `SELECT rowid AS at, json_array(${columns.map(asText)}) AS run FROM agent_runs NOT INDEXED
    WHERE rowid BETWEEN ? AND ? ORDER BY rowid LIMIT ${CHUNK_ROWS}`,
  );
  const runs: RunRecord[] = [];
  const read = (from: number, to: number) => {
    for (let at = from; at <= to;) {
      const chunk = rows.all(at, to);
      for (const row of chunk) {
        const cells = JSON.parse(row["run"] as string) as unknown[];
        runs.push(newRun(Object.fromEntries(columns.map((column, i) => [column, cells[i]])) as unknown as RunRecord));
      }
      if (chunk.length < CHUNK_ROWS) return;
      at = Number(chunk.at(-1)!["at"]) + 1;
    }
  };
  around(read, 1, lastRow(db));
  return runs;
}

const CHUNK_ROWS = 5000;

/** JSON refuses BLOBs, and one that somebody has put there must not cost all other runs. */
function asText(column: string): string {
  return `CASE WHEN typeof(${column})='blob' THEN CAST(${column} AS TEXT) ELSE ${column} END`;
}

/**
 * The ids of the runs that are marked as posted, by the indexes alone: they may be whole where the table is damaged.
 * Empty where they are not.
 */
export function readMarkedIds(db: Connection): string[] {
  try {
    const ids = new Map(
      db.all("SELECT rowid AS at, run_id FROM agent_runs INDEXED BY sqlite_autoindex_agent_runs_1 WHERE run_id>=''")
        .map((row) => [row["at"], String(row["run_id"])]),
    );
    return db.all("SELECT rowid AS at FROM agent_runs INDEXED BY idx_runs_api_posted WHERE api_posted=1")
      .flatMap((row) => ids.get(row["at"]) ?? []);
  } catch (error) {
    if (error instanceof TelemetryError) return [];
    throw error;
  }
}

/** Reads what is to the left and to the right of damage. */
function around(read: (from: number, to: number) => void, from: number, to: number): void {
  try {
    return read(from, to);
  } catch (error) {
    if (!hasCode(error, "damaged")) throw error;
  }
  if (from >= to) return;
  const middle = Math.floor((from + to) / 2);
  around(read, from, middle);
  around(read, middle + 1, to);
}

/** The highest row number, or one that no table of runs reaches where the last page is damaged. */
function lastRow(db: Connection): number {
  try {
    return Number(db.get("SELECT max(rowid) AS last FROM agent_runs")!["last"] ?? 0);
  } catch (error) {
    if (!hasCode(error, "damaged")) throw error;
    return 2 ** 24;
  }
}

/**
 * Brings runs of the database that is replaced into the one that comes: those that neither backup nor log has, and all
 * marks of posting, since a run that lost its mark would be posted twice. To be called in a transaction.
 *
 * @param db what comes in its place
 * @param runs from {@linkcode readDatabaseRuns}
 * @param marked from {@linkcode readMarkedIds}, for what could not be read
 * @returns how many runs the table refuses
 */
export function keepRuns(db: Connection, runs: RunRecord[], marked: string[] = []): number {
  const insert = db.prepare(
    `INSERT INTO agent_runs (${RUN_COLUMNS}) VALUES (${RUN_COLUMNS.map(() => "?")}) ON CONFLICT(run_id) DO NOTHING`,
  );
  const mark = db.prepare(MARK);
  let refused = 0;
  for (const run of runs) {
    try {
      insert.run(...RUN_COLUMNS.map((column) => run[column]));
    } catch (error) {
      if (!hasCode(error, "invalid_record")) throw error;
      refused++;
    }
    if (run.api_posted === 1) mark.run(run.api_posted_at, run.run_id);
  }
  for (const run_id of marked) mark.run(null, run_id);
  return refused;
}
