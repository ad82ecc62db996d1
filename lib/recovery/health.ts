/**
 * Whether the database is sound, and what log and database say of each other, without changing either.
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
  /** Whether the check passes and all tables of the contract are there. */
  healthy: boolean;
  /** What is wrong, in words. */
  problems: string[];
  /** The tables of the contract that are missing. */
  missing_tables: string[];
  /** Its schema version, by its columns; null where it cannot be told. */
  schema_version: number | null;
  /** How log and database compare; null where that was not asked for, or the database is damaged. */
  runs: RunComparison | null;
}

/** How {@linkcode checkHealth} looks. */
export interface HealthOptions {
  /** Whether to go through the log too, and see what it and the database say of each other. @default false */
  compare?: boolean;
  /**
   * Whether a change that was broken off may be undone, as every program does that opens the database. Without it no
   * byte of database, WAL or log changes. @default false
   */
  mayUndo?: boolean;
}

/**
 * Looks at the database; on a read-only file system too, as long as its WAL is empty.
 *
 * @param layout whose database
 * @param options how
 * @throws {TelemetryError} `newer_schema`: it is a later product's; `locked`, `permission`, `io`: it could not be
 * checked, which is no reason to recover anything
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
    if (!options.mayUndo) refuseBrokenOff(database);
    using db = Connection.openToRead(database);
    const problems = retryWhileLocked(() => db.check("quick"));
    const { version, missing } = inspect(db);
    // Of a damaged one, a page may say any version: recovery looks closer.
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

function refuseBrokenOff(database: string): void {
  if ((sizeOf(sidecarsOf(database).journal) ?? 0) === 0) return;
  throw new TelemetryError("locked", "a change was broken off, and whoever opens it undoes that", {
    hint: "let any program open the database (setup_database does), or run recover_database without --check-only",
  });
}
