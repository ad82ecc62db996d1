/**
 * Loads the runs of the event log into the database that a recovery builds.
 * @module
 */
import type { Layout } from "../layout.ts";
import { logFiles, type Rejection, type ScanProgress } from "../log/read.ts";
import { sizeOf } from "../fs/locate.ts";
import { Connection, type OnProgress } from "../sqlite/connection.ts";
import { rowidOf } from "../sqlite/rows.ts";
import { ThreadConnection } from "../sqlite/thread.ts";
import { LOG_COLUMNS, MARK_POSTED_SQL, readRunStates, upsertSql } from "../store/merge.ts";

/** A smaller log is loaded in less time than a thread takes to start. */
const SMALL_LOG_BYTES = 1024 * 1024;
/** How many batches of rows may wait for the thread that writes them. */
const MAX_IN_FLIGHT = 4;
/** How many batches are written in one transaction. SQLite keeps what it changes in memory until the transaction ends. */
const TRANSACTION_BATCHES = 50;
/** For a database that is discarded unless it is completed. */
export const SCRAP_PRAGMAS = "PRAGMA journal_mode=MEMORY; PRAGMA synchronous=OFF; PRAGMA cache_size=-32000;";

/** What {@linkcode loadLog} read and wrote. */
export interface LoadedLog extends ScanProgress {
  /** The size of each log file, in bytes, when reading began. */
  sizes: Map<string, number>;
  /** The number of runs of the log that were in the database before. */
  inBoth: number;
}

/** Loads the whole log into the database `recovering`. A large log is written on another thread. */
export async function loadLog(
  { raw, recovering }: Layout,
  onRejected: (rejection: Rejection) => void,
  onProgress?: OnProgress,
): Promise<LoadedLog> {
  const progress: ScanProgress = { files: 0, lines: 0, bytes: 0 };
  const sizes = new Map(logFiles(raw).map((file) => [file, sizeOf(file) ?? 0]));
  const total = sizes.values().reduce((sum, size) => sum + size, 0);
  const touched = noteTouched(recovering);
  await using writer = total < SMALL_LOG_BYTES ? Connection.open(recovering) : await ThreadConnection.open(recovering);
  // The records are validated already. Without the CHECKs, loading takes half the time.
  await writer.exec(`${SCRAP_PRAGMAS} PRAGMA ignore_check_constraints=ON;`);
  if (touched !== undefined) await writer.exec(touched);
  await writer.exec("BEGIN");
  const upsert = upsertSql(LOG_COLUMNS);
  const inFlight: Promise<void>[] = [];
  let batches = 0;
  for await (const { cells, posted, rejections } of readRunStates(sizes.keys(), progress)) {
    rejections.forEach(onRejected);
    const written = [writer.runAll(upsert, LOG_COLUMNS.length, cells)];
    if (posted.length > 0) written.push(writer.runAll(MARK_POSTED_SQL, 2, posted.flat()));
    if (++batches % TRANSACTION_BATCHES === 0) written.push(writer.exec("COMMIT; BEGIN"));
    const all = Promise.all(written).then(() => {});
    // A rejection is handled where the promise is awaited.
    all.catch(() => {});
    inFlight.push(all);
    if (inFlight.length > MAX_IN_FLIGHT) await inFlight.shift();
    onProgress?.(Math.min(progress.bytes, total - 1), total);
  }
  await Promise.all(inFlight);
  onProgress?.(total, total);
  await writer.exec("COMMIT");
  const inBoth = touched === undefined
    ? 0
    : Number((await writer.all("SELECT count(*) AS runs FROM touched"))[0]!["runs"]);
  return { ...progress, sizes, inBoth };
}

/** SQL that records which of the present runs the log names too; undefined where there are no runs. */
function noteTouched(path: string): string | undefined {
  using db = Connection.open(path);
  if (db.get("SELECT 1 FROM agent_runs LIMIT 1") === undefined) return undefined;
  const rowid = rowidOf(db, "agent_runs");
  return `
    PRAGMA temp_store=MEMORY;
    CREATE TEMP TABLE touched (run INTEGER PRIMARY KEY);
    CREATE TEMP TABLE before AS SELECT max(${rowid}) AS last FROM agent_runs;
    CREATE TEMP TRIGGER touch BEFORE INSERT ON agent_runs BEGIN
      INSERT OR IGNORE INTO touched
        SELECT ${rowid} FROM agent_runs WHERE run_id=new.run_id AND ${rowid}<=(SELECT last FROM before);
    END;`;
}
