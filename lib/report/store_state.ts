/** What a report says of the store beside its runs: sizes, backups, and whether log and database agree. @module */
import { sizeOf } from "../fs/locate.ts";
import { type Layout, sidecarsOf } from "../layout.ts";
import { isLive, logFiles, sizeOfLog, unreadableLogs } from "../log/read.ts";
import { readTail } from "../log/tail.ts";
import { listCopies } from "../sqlite/snapshot.ts";
import { parseTimestamp, timestamp } from "../time.ts";
import type { RunOrigin, Runs } from "./source.ts";

/** The state of the store beside its runs. */
export interface StoreState {
  /** The path of the database. */
  database: string;
  /** With the WAL, in bytes; null when there is no database. */
  database_bytes: number | null;
  /** How many log files there are. */
  log_files: number;
  /** Their size in bytes. */
  log_bytes: number;
  /** The logs that cannot be read, because of a missing permission or their compression. */
  unreadable_logs: string[];
  /** The newest backup: its path, its time, and its age in milliseconds; null when there is none. */
  newest_backup: { path: string; time: string; age_ms: number } | null;
  /** How many backups there are. */
  backups: number;
  /** Ended runs that were not posted to the web API. */
  pending_posts: number;
  /** Runs that started before the window and are still `running`. */
  running_before: number;
  /** How the newest runs of the log compare with the database. Null when there is nothing to compare. */
  log_check: { checked: number; missing: number; older: number } | null;
}

/** How much of each of the newest two logs is compared with the database. */
const TAIL_BYTES = 1024 * 1024;
/** For so long a client may wait for the database after it has written the log. */
const GRACE_MS = 20_000;

/** The state of a store whose runs are open. */
export function stateOf(
  { database, backups: folder, raw }: Layout,
  runs: Runs,
  { source }: RunOrigin,
  now: Date,
): Omit<StoreState, "running_before"> {
  const backups = listCopies(folder, ["daily_backup", "full_backup"]);
  const newest = backups.find(({ time }) => time <= now) ?? backups[0];
  const logs = logFiles(raw);
  const unreadable = unreadableLogs(logs);
  const live = logs.filter((path) => isLive(path) && !unreadable.includes(path));
  const bytes = sizeOf(database);
  // Each count is all of an index, or one range of it.
  const ended = runs.count("true") - runs.count("status='running'") - runs.count("status IS NULL");
  const posted = runs.count("api_posted=1") - runs.count("status='running' AND +api_posted=1");
  return {
    database,
    database_bytes: bytes === undefined ? null : bytes + (sizeOf(sidecarsOf(database).wal) ?? 0),
    log_files: logs.length,
    log_bytes: logs.reduce((sum, path) => sum + sizeOfLog(path), 0),
    unreadable_logs: unreadable,
    newest_backup: newest
      ? { path: newest.path, time: timestamp(newest.time), age_ms: now.getTime() - newest.time.getTime() }
      : null,
    backups: backups.length,
    pending_posts: ended - posted,
    log_check: source === "log" ? null : checkTail(runs, live.slice(-2), now),
  };
}

/** Looks up the newest runs of some logs in the database. */
function checkTail(runs: Runs, logs: string[], now: Date): StoreState["log_check"] {
  if (logs.length === 0) return null;
  const states = new Map<string, string | null>();
  for (const found of logs.flatMap((log) => readTail(log, TAIL_BYTES))) {
    if (!("record" in found) || found.record.record_type !== "run") continue;
    const { run_id, status, start_time, end_time } = found.record;
    const written = (parseTimestamp(String(end_time ?? start_time)) ?? 0) / 1000;
    if (now.getTime() - written > GRACE_MS) states.set(run_id, status);
  }
  const find = runs.db.prepare("SELECT status FROM agent_runs WHERE run_id=?");
  const check = { checked: states.size, missing: 0, older: 0 };
  for (const [id, status] of states) {
    const row = find.get(id);
    if (row === undefined) check.missing++;
    else if (row["status"] === "running" && status !== "running") check.older++;
  }
  return check;
}
