/**
 * Loads the runs of the log into the database that a recovery builds.
 * @module
 */
import type { Layout } from "../layout.ts";
import { logFiles, type Rejection, sizeOfLog } from "../log/read.ts";
import type { Connection, OnProgress, SqlValue } from "../sqlite/connection.ts";
import { countRows, rowidOf } from "../sqlite/rows.ts";
import { TelemetryError } from "../errors.ts";
import { SCHEMA_VERSION } from "../records.ts";
import {
  isLeftToAgent,
  LOG_COLUMNS,
  nothingRead,
  readRunStates,
  type StatesRead,
  StateWriter,
} from "../store/merge.ts";

/** How many states are written in one transaction. SQLite holds the changed pages in memory until it ends. */
const TRANSACTION_STATES = 6400;

/** What {@linkcode loadLog} read and wrote. */
export interface LoadedLog extends StatesRead {
  /** The size of each log in bytes, from before it was read. */
  sizes: Map<string, number>;
  /** How many runs that the database had before are in the log, too. */
  inBoth: number;
  /** The runs that have just started. They are left to their agents, as in a replay. */
  justStarted: Set<SqlValue>;
}

interface LoadOptions {
  onProgress?: OnProgress | undefined;
  /** Whether the schema version of the lost database is unknown. Then the log must be of this product. */
  isVersionUnknown: boolean;
}

/**
 * Loads all logs into a database that nobody else writes to. A second thread for the rows took an eighth less time where a
 * processor was idle, and none elsewhere, with a quarter more processor time and 30 MB more memory.
 *
 * @throws {TelemetryError} `newer_schema` for the log of a later product, where the version is unknown
 */
export async function loadLog(
  db: Connection,
  { raw }: Layout,
  onRejected: (rejection: Rejection) => void,
  { onProgress, isVersionUnknown }: LoadOptions,
): Promise<LoadedLog> {
  const read = nothingRead();
  const sizes = new Map(logFiles(raw).map((file) => [file, sizeOfLog(file)]));
  const total = sizes.values().reduce((sum, size) => sum + size, 0);
  const hadRuns = db.get("SELECT 1 FROM agent_runs") !== undefined;
  // The records are validated: without CHECKs it takes half the time.
  db.exec("PRAGMA ignore_check_constraints=ON");
  if (hadRuns) db.exec(noteUpdatedRunsSql(rowidOf(db, "agent_runs")));
  const writer = new StateWriter(db, LOG_COLUMNS);
  const justStarted = new Set<SqlValue>();
  let states = 0;
  db.exec("BEGIN");
  for await (const { rows, rejections } of readRunStates(sizes.keys(), read)) {
    rejections.forEach(onRejected);
    if (isVersionUnknown && read.laterVersion !== undefined) throw newerLog(raw, read.laterVersion);
    for (const row of rows) {
      if (isLeftToAgent(row)) {
        justStarted.add(row[0]!);
        continue;
      }
      writer.writeState(row);
      writer.writeMarker(row);
      if (++states % TRANSACTION_STATES === 0) db.exec("COMMIT; BEGIN");
    }
    onProgress?.(Math.min(read.bytes, total - 1), total);
  }
  db.exec("COMMIT; PRAGMA ignore_check_constraints=OFF");
  const inBoth = hadRuns ? countRows(db, "updated_runs") : 0;
  if (hadRuns) db.exec("DROP TRIGGER note_updated_run");
  onProgress?.(total, total);
  return { ...read, sizes, inBoth, justStarted };
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
