/** Ends runs whose agent died without ending them. @module */
import { setTimeout as pause } from "node:timers/promises";
import { TelemetryError } from "../errors.ts";
import { statIfExists } from "../fs/locate.ts";
import { fileNameOf, type Layout, parseFileName } from "../layout.ts";
import { EventLog } from "../log/append.ts";
import { logFiles, readLogs } from "../log/read.ts";
import { newRun, RUN_COLUMNS, type RunRecord, SCHEMA_VERSION } from "../records.ts";
import { Connection, waitWhileLocked } from "../sqlite/connection.ts";
import { columnNames, inspect, newerSchema } from "../sqlite/migrate.ts";
import { jsonObjectOf, rowidOf } from "../sqlite/rows.ts";
import { type Instant, parseTimestamp, timestamp } from "../time.ts";

const DAY_US = 86_400_000_000;

/** How many rows are read before other code of this process gets its turn. */
const STEP_ROWS = 250;

/** The runs that are `running` in a database of schema v1 to v3, by default those of all agents. */
async function runningRuns(db: Connection, agent?: string): Promise<RunRecord[]> {
  const existing = columnNames(db, "agent_runs");
  const columns = RUN_COLUMNS.filter((column) => existing.has(column));
  const rowid = rowidOf(db, "agent_runs");
  const key = rowid ?? "run_id";
  // As text, because row numbers can be larger than the integers of JavaScript.
  const sql = `SELECT CAST(${key} AS TEXT) AS key, ${jsonObjectOf(columns)} AS run FROM agent_runs
    WHERE status='running' AND typeof(run_id)='text' AND (?1 IS NULL OR agent_name=?1) AND ${key}>?2
    ORDER BY ${key} LIMIT ${STEP_ROWS}`;
  const runs: RunRecord[] = [];
  for (let after = rowid ? "-1e19" : "";;) {
    const rows = await waitWhileLocked(() => db.all(sql, agent ?? null, after));
    // The log has no times of rows.
    for (const { run } of rows) runs.push(newRun({ ...JSON.parse(run as string), created_at: null, updated_at: null }));
    if (rows.length < STEP_ROWS) return runs;
    after = rows.at(-1)!["key"] as string;
    await pause(0);
  }
}

/** A run with the times of its start and of its last record. */
interface StaleRun {
  run: RunRecord;
  start: Instant;
  last: Instant;
}

/**
 * Finds the runs whose last record in the log is older than `olderThanMs`; where no log has a record, the start of the run
 * counts. Runs whose end is in the log are left out.
 * Throws when a log cannot be read: the run may have a record there.
 */
async function findStaleRuns(running: RunRecord[], raw: string, olderThanMs: number): Promise<StaleRun[]> {
  const limit = (Date.now() - olderThanMs) * 1000;
  // 1. Runs that started before.
  const silent = new Map<string, StaleRun>();
  for (const run of running) {
    const start = parseTimestamp(run.start_time);
    if (start !== undefined && start < limit) silent.set(run.run_id, { run, start, last: start });
  }
  if (silent.size === 0) return [];
  // 2. Their last records. Logs of earlier days have none.
  const first = Math.min(...silent.values().map(({ start }) => start)) - 2 * DAY_US;
  const files = logFiles(raw).filter((path) =>
    (parseFileName(fileNameOf(path))?.time.getTime() ?? Infinity) * 1000 >= first
  );
  for await (const batch of readLogs(files)) {
    for (const found of batch) {
      if ("rejected" in found) {
        if (found.rejected === "cannot be read") throw unreadableLog(found.file, found.text);
        continue;
      }
      const { record } = found;
      const known = silent.get(record.run_id);
      if (known === undefined) continue;
      if (record.record_type === "run" && record.status && record.status !== "running") silent.delete(record.run_id);
      const at = parseTimestamp(record.record_type === "event" ? record.timestamp : record.start_time);
      known.last = Math.max(known.last, at ?? known.last);
    }
  }
  // 3. Those without a newer one.
  return silent.values().filter(({ last }) => last < limit).toArray();
}

/** The run as it ends, `failed`, at the time of its last record. */
function ended({ run, start, last }: StaleRun): RunRecord {
  const end_time = timestamp(new Date(last / 1000));
  const duration_ms = Math.round((last - start) / 1000);
  const error_summary = run.error_summary ?? `stale: nothing in the log after ${end_time}`;
  return { ...run, status: "failed", end_time, duration_ms, error_summary };
}

function unreadableLog(file: string, reason: string): TelemetryError {
  return new TelemetryError("io", `${file} cannot be read, so no run was ended: ${reason}`, {
    hint: "make the log readable, or move it out of the folder",
  });
}

/** Which runs {@linkcode endStaleRuns} ends. */
export interface StaleOptions {
  /** How old the last record of a run is at least, in milliseconds. */
  olderThanMs: number;
  /** Only runs of this agent. @default all agents */
  agent?: string | undefined;
  /** Which runs are left out. @default none */
  isLeftOut?: (runId: string) => boolean;
  /** Whether to find them only, without a change. @default false */
  dryRun?: boolean;
}

/**
 * Ends the stale runs of a store, in the log and in the database. A run that lives after all overrides this by its own end.
 * Returns the runs as they ended.
 */
export async function endStaleRuns(
  layout: Layout,
  { olderThanMs, agent, isLeftOut = () => false, dryRun = false }: StaleOptions,
): Promise<RunRecord[]> {
  const { database, raw } = layout;
  if (!dryRun && statIfExists(database) === undefined) return [];
  using db = dryRun
    ? Connection.openToRead(database)
    : await waitWhileLocked(() => Connection.open(database, { busyTimeoutMs: 0 }));
  const { version } = await waitWhileLocked(() => inspect(db));
  if (version > SCHEMA_VERSION) throw newerSchema(database, version);
  const running = await runningRuns(db, agent);
  const found = await findStaleRuns(running.filter(({ run_id }) => !isLeftOut(run_id)), raw, olderThanMs);
  if (dryRun) return found.map(ended);
  const log = new EventLog(layout);
  const all: RunRecord[] = [];
  for (const run of found.values().map(ended)) {
    // Reading the log takes its time. An agent that ends the run in this very moment is still overridden in the log.
    const now = await waitWhileLocked(() => db.get("SELECT status FROM agent_runs WHERE run_id=?", run.run_id));
    if (now?.["status"] !== "running") continue;
    await log.append({ ...run, record_type: "run" });
    await waitWhileLocked(() =>
      db.run(
        `UPDATE agent_runs SET status='failed', end_time=?, duration_ms=?, error_summary=?, updated_at=datetime('now')
        WHERE run_id=? AND status='running'`,
        ...[run.end_time, run.duration_ms, run.error_summary, run.run_id],
      )
    );
    all.push(run);
  }
  return all;
}
