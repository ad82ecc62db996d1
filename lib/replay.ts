/**
 * Brings what the log says of runs into a database.
 * @module
 */
import { TelemetryError } from "./errors.ts";
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

/** How many runs the log has that a database lacks, or has in an older state. */
export function countNewer(db: Connection, { runs }: LoggedRuns): number {
  const known = db.prepare("SELECT status FROM agent_runs WHERE run_id=?");
  let newer = 0;
  for (const run of runs.values()) {
    const row = known.get(run.run_id);
    const isKnown = row !== undefined && (row["status"] !== "running" || run.status === "running");
    if (!isKnown) newer++;
  }
  return newer;
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
    `${column}=excluded.${column}`
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
      if (!(error instanceof TelemetryError) || error.code !== "invalid_record") throw error;
      done.refused++;
    }
  }
  return done;
}

const MARK = "UPDATE agent_runs SET api_posted=1, api_posted_at=coalesce(api_posted_at, ?) " +
  "WHERE run_id=? AND coalesce(api_posted, 0)=0";

/** A run that the web API has accepted. */
export interface PostedMark {
  /** The run. */
  run_id: string;
  /** When it was accepted. */
  api_posted_at: string | null;
}

/** The marks of posting in a database, of whatever version. */
export function readMarks(db: Connection): PostedMark[] {
  const marks: PostedMark[] = [];
  const page = db.prepare(
    "SELECT rowid AS at, run_id, api_posted_at FROM agent_runs WHERE rowid>? AND api_posted=1 ORDER BY rowid LIMIT 10000",
  );
  for (let at = 0;;) {
    const rows = page.all(at);
    if (rows.length === 0) return marks;
    at = Number(rows.at(-1)!["at"]);
    for (const row of rows) {
      marks.push({ run_id: String(row["run_id"]), api_posted_at: row["api_posted_at"] as string | null });
    }
  }
}

/** Brings marks of posting into a database: a run that lost its mark would be posted twice. */
export function applyMarks(db: Connection, marks: PostedMark[]): number {
  const mark = db.prepare(MARK);
  return marks.reduce((sum, { run_id, api_posted_at }) => sum + mark.run(api_posted_at, run_id), 0);
}
