/**
 * Checks whether the database is healthy, and compares it with the log. Changes neither.
 * @module
 */
import { errorMessage, hasCode, TelemetryError } from "../errors.ts";
import { type Layout, sidecarsOf } from "../layout.ts";
import { sizeOf } from "../fs/locate.ts";
import { logFiles } from "../log/read.ts";
import { SCHEMA_VERSION } from "../records.ts";
import { NO_DATABASE } from "../store/replace_database.ts";
import { compareRuns, type RunComparison } from "../store/merge.ts";
import { inspect, newerSchema } from "../sqlite/migrate.ts";
import { Connection, retryWhileLocked } from "../sqlite/connection.ts";

/** What {@linkcode checkHealth} found. */
export interface Health {
  /** Whether SQLite's check passes and all tables of the contract are there. */
  healthy: boolean;
  /** What is wrong, as text. */
  problems: string[];
  /** The tables of the contract that are missing. */
  missing_tables: string[];
  /** The schema version by the columns of the tables; null when it cannot be determined. */
  schema_version: number | null;
  /** How log and database compare; null when that was not requested, or the database is damaged. */
  runs: RunComparison | null;
}

/** Options of {@linkcode checkHealth}. */
export interface HealthOptions {
  /** Whether to compare log and database. @default false */
  compare?: boolean;
  /**
   * Whether SQLite may roll back an interrupted transaction, as every program does that opens the database. Without this,
   * no byte of database, WAL or log changes. @default false
   */
  mayUndo?: boolean;
}

/**
 * Checks the database, also on a read-only file system when its WAL is empty.
 *
 * @param layout where the database is
 * @throws {TelemetryError} `newer_schema` when a later product created it; `locked`, `permission` or `io` when it could not
 * be checked, which is no reason for a recovery
 *
 * @example
 * ```ts no-eval
 * import { checkHealth } from "./health.ts";
 * import { locate } from "../fs/locate.ts";
 *
 * const { healthy, problems } = await checkHealth(locate());
 * if (!healthy) console.log(problems);
 * ```
 */
export async function checkHealth(layout: Layout, options: HealthOptions = {}): Promise<Health> {
  const { database } = layout;
  const lost = (problem: string): Health => ({
    healthy: false,
    problems: [problem],
    missing_tables: [],
    schema_version: null,
    runs: null,
  });
  if (sizeOf(database) === undefined) return lost(`there is no database ${database}`);
  if (sizeOf(database) === 0) return lost(`${database} is empty`);
  try {
    if (!options.mayUndo) assertNotInterrupted(database);
    using db = Connection.openToRead(database);
    const problems = retryWhileLocked(() => db.check("quick"));
    const { version, missing } = inspect(db);
    // In a damaged database, the columns may be wrong. Recovery examines it closely.
    if (version > SCHEMA_VERSION && problems.length === 0) throw newerSchema(database, version);
    const missing_tables = missing.filter((name) => !name.includes(".") && !name.startsWith("idx_"));
    problems.push(...missing_tables.map((table) => `the table ${table} is missing`));
    const runs = options.compare && problems.length === missing_tables.length
      ? await compareRuns(db, logFiles(layout.raw))
      : null;
    return { healthy: problems.length === 0, problems, missing_tables, schema_version: version, runs };
  } catch (error) {
    if (hasCode(error, ...NO_DATABASE)) return lost(errorMessage(error));
    if (!(error instanceof TelemetryError) || error.code === "newer_schema") throw error;
    throw new TelemetryError(error.code, `the database could not be checked: ${error.message}`, {
      hint: error.hint,
      cause: error.cause,
    });
  }
}

function assertNotInterrupted(database: string): void {
  if ((sizeOf(sidecarsOf(database).journal) ?? 0) === 0) return;
  throw new TelemetryError(
    "locked",
    "a transaction was interrupted, and the next program that opens the database rolls it back",
    {
      hint: "run setup_database, which opens the database, or recover_database without --check-only",
    },
  );
}
