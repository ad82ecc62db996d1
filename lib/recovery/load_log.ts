/**
 * Loads the runs of the log into the database that a recovery builds.
 * @module
 */
import type { Layout } from "../layout.ts";
import { logFiles, type Rejection, sizeOfLog } from "../log/read.ts";
import type { Connection, OnProgress, SqlValue } from "../sqlite/connection.ts";
import { rowidOf } from "../sqlite/rows.ts";
import { WriterThread } from "../sqlite/writer_thread.ts";
import { TelemetryError } from "../errors.ts";
import { SCHEMA_VERSION } from "../records.ts";
import {
  isLeftToAgent,
  leaveBehindSql,
  LOG_COLUMNS,
  MARK_POSTED_SQL,
  markersOf,
  nothingRead,
  readRunStates,
  type StatesRead,
  upsertSql,
} from "../store/merge.ts";

/** For a database that is discarded unless it is completed. */
export const SCRAP_PRAGMAS = "PRAGMA journal_mode=MEMORY; PRAGMA synchronous=OFF;";
/** How many states are written in one transaction. SQLite holds the changed pages in memory until it ends. */
const TRANSACTION_STATES = 6400;

/** What {@linkcode loadLog} read and wrote. */
export interface LoadedLog extends StatesRead {
  /** The size of each log in bytes, from before it was read. */
  sizes: Map<string, number>;
  /** How many runs that the database had before are in the log, too. */
  inBoth: number;
  /** How many runs of the log are left out because they started before `since`. */
  leftBehind: number;
  /** The runs that have just started. They are left to their agents, as in a replay. */
  justStarted: Set<SqlValue>;
}

interface LoadOptions {
  onProgress?: OnProgress | undefined;
  /** Whether the schema version of the lost database is unknown. Then the log must be of this product. */
  isVersionUnknown: boolean;
  /** Leave out runs that started before. */
  since?: Date | undefined;
}

/**
 * Loads all logs into a database that nobody else writes to. Another thread writes the rows: with two processors, this
 * takes a fifth less time than one thread.
 *
 * @throws {TelemetryError} `newer_schema` for the log of a later product, where the version is unknown
 */
export async function loadLog(
  db: Connection,
  { raw }: Layout,
  onRejected: (rejection: Rejection) => void,
  { onProgress, isVersionUnknown, since }: LoadOptions,
): Promise<LoadedLog> {
  const read = nothingRead();
  const sizes = new Map(logFiles(raw).map((file) => [file, sizeOfLog(file)]));
  const total = sizes.values().reduce((sum, size) => sum + size, 0);
  const hadRuns = db.get("SELECT 1 FROM agent_runs") !== undefined;
  await using writer = new WriterThread(db.path);
  // The records are validated: without CHECKs it takes half the time.
  await writer.write(`${SCRAP_PRAGMAS} PRAGMA ignore_check_constraints=ON`);
  if (hadRuns) await writer.write(noteUpdatedRunsSql(rowidOf(db, "agent_runs")));
  if (since) await writer.write(leaveBehindSql(since));
  await writer.write("BEGIN");
  const upsert = upsertSql(LOG_COLUMNS);
  const justStarted = new Set<SqlValue>();
  let written = 0;
  for await (const { rows, rejections } of readRunStates(sizes.keys(), read)) {
    rejections.forEach(onRejected);
    if (isVersionUnknown && read.laterVersion !== undefined) throw newerLog(raw, read.laterVersion);
    const states: SqlValue[][] = [];
    for (const row of rows) {
      if (isLeftToAgent(row)) justStarted.add(row[0]!);
      else states.push(row);
    }
    await writer.write(upsert, states);
    await writer.write(MARK_POSTED_SQL, markersOf(states));
    written += states.length;
    if (written >= TRANSACTION_STATES) {
      await writer.write("COMMIT; BEGIN");
      written = 0;
    }
    onProgress?.(Math.min(read.bytes, total - 1), total);
  }
  await writer.exec("COMMIT");
  const countIn = async (table: string) => Number((await writer.get(`SELECT count(*) AS n FROM ${table}`))!["n"]);
  const inBoth = hadRuns ? await countIn("updated_runs") : 0;
  const leftBehind = since ? await countIn("left_behind") : 0;
  onProgress?.(total, total);
  return { ...read, sizes, inBoth, leftBehind, justStarted };
}

/** The error where the database is lost, and the log shows that a later product wrote it. */
function newerLog(raw: string, version: number): TelemetryError {
  return new TelemetryError(
    "newer_schema",
    `the database is lost, and the log in ${raw} has records of v${version}, but this toolkit writes v${SCHEMA_VERSION}; ` +
      `nothing was changed`,
    {
      hint:
        "recover it with the later product; if the database was v3, run setup_database, then run recover_database --force",
    },
  );
}

/** Notes which of the existing runs are in the log, also where the log changes nothing. */
function noteUpdatedRunsSql(rowid: string | undefined): string {
  return `
    CREATE TEMP TABLE updated_runs (run INTEGER PRIMARY KEY);
    CREATE TEMP TABLE before_load AS SELECT max(${rowid}) AS last FROM agent_runs;
    CREATE TEMP TRIGGER note_updated_run BEFORE INSERT ON agent_runs BEGIN
      INSERT OR IGNORE INTO updated_runs SELECT ${rowid} FROM agent_runs
        WHERE run_id=new.run_id AND ${rowid}<=(SELECT last FROM before_load);
    END;`;
}
