/**
 * Loads the runs of the log into the database that a recovery builds.
 * @module
 */
import { sizeOf } from "../fs/locate.ts";
import type { Layout } from "../layout.ts";
import { logFiles, type ReadProgress, type Rejection } from "../log/read.ts";
import type { Connection, OnProgress } from "../sqlite/connection.ts";
import { rowidOf } from "../sqlite/rows.ts";
import { LOG_COLUMNS, MARK_POSTED_SQL, readRunStates, upsertSql } from "../store/merge.ts";

/** How many states are written in one transaction. SQLite holds the changed pages in memory until it ends. */
const TRANSACTION_STATES = 10_000;

/** What {@linkcode loadLog} read and wrote. */
export interface LoadedLog extends ReadProgress {
  /** The size of each log in bytes, from before it was read. */
  sizes: Map<string, number>;
  /** How many runs that the database had before are in the log, too. */
  inBoth: number;
}

/** Loads all logs into a database that nobody else has open. */
export async function loadLog(
  db: Connection,
  { raw }: Layout,
  onRejected: (rejection: Rejection) => void,
  onProgress?: OnProgress,
): Promise<LoadedLog> {
  const progress: ReadProgress = { files: 0, lines: 0, bytes: 0 };
  const sizes = new Map(logFiles(raw).map((file) => [file, sizeOf(file) ?? 0]));
  const total = sizes.values().reduce((sum, size) => sum + size, 0);
  const hadRuns = db.get("SELECT 1 FROM agent_runs") !== undefined;
  if (hadRuns) noteUpdatedRuns(db);
  // The records are validated already. Without the CHECKs, loading takes half the time.
  db.exec("PRAGMA ignore_check_constraints=ON");
  const upsert = db.prepare(upsertSql(LOG_COLUMNS));
  const mark = db.prepare(MARK_POSTED_SQL);
  let states = 0;
  db.run("BEGIN");
  for await (const { rows, posted, rejections } of readRunStates(sizes.keys(), progress)) {
    rejections.forEach(onRejected);
    // Unlike `run`, `get` creates no result object.
    for (const row of rows) upsert.get(...row);
    for (const values of posted) mark.run(...values);
    states += rows.length;
    if (states >= TRANSACTION_STATES) {
      db.exec("COMMIT; BEGIN");
      states = 0;
    }
    onProgress?.(Math.min(progress.bytes, total - 1), total);
  }
  db.run("COMMIT");
  onProgress?.(total, total);
  db.exec("PRAGMA ignore_check_constraints=OFF");
  const inBoth = hadRuns ? Number(db.get("SELECT count(*) AS runs FROM updated_runs")!["runs"]) : 0;
  if (hadRuns) db.exec("DROP TRIGGER temp.note_updated_run");
  return { ...progress, sizes, inBoth };
}

/** Notes which of the existing runs are in the log, also where the log changes nothing. */
function noteUpdatedRuns(db: Connection): void {
  const rowid = rowidOf(db, "agent_runs");
  db.exec(`
    PRAGMA temp_store=MEMORY;
    CREATE TEMP TABLE updated_runs (run INTEGER PRIMARY KEY);
    CREATE TEMP TABLE before_load AS SELECT max(${rowid}) AS last FROM agent_runs;
    CREATE TEMP TRIGGER note_updated_run BEFORE INSERT ON agent_runs BEGIN
      INSERT OR IGNORE INTO updated_runs SELECT ${rowid} FROM agent_runs
        WHERE run_id=new.run_id AND ${rowid}<=(SELECT last FROM before_load);
    END;`);
}
