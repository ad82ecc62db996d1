/**
 * Checks the database, and compares it with the log, without changing either.
 * @module
 */
import { assertTimes, errorMessage, TelemetryError } from "../errors.ts";
import type { Layout } from "../layout.ts";
import { logFiles } from "../log/read.ts";
import { SCHEMA_VERSION } from "../records.ts";
import { Connection, hasHotJournal, isRefused, retryWhileLocked } from "../sqlite/connection.ts";
import { newerSchema } from "../sqlite/migrate.ts";
import { compareRuns, type RunComparison } from "../store/compare.ts";
import { inspectCurrent } from "../store/replace_database.ts";
import { assertWritable } from "./source_schema.ts";

/** The state of a database. */
export interface Health {
  /** Whether SQLite's check passes and all tables of the contract exist. */
  healthy: boolean;
  /** What is wrong. */
  problems: string[];
  /** The tables of the contract that are missing. */
  missing_tables: string[];
  /** The schema version by the columns; null when it cannot be determined. */
  schema_version: number | null;
  /** The tables that programs of this toolkit cannot write to, each with what their SQLite lacks. */
  unusable_tables: string[];
  /** How log and database compare; null when that was not asked for, or the database is damaged. */
  runs: RunComparison | null;
}

/** Options of {@linkcode checkHealth}. */
export interface HealthOptions {
  /** Whether to read the log, too, and compare. @default false */
  compare?: boolean;
  /** Compare only runs that started then or later. @default all */
  since?: Date | undefined;
  /**
   * Whether an unfinished transaction may be rolled back, as every program does that opens the database. Without it no byte
   * of database, WAL or log changes. @default false
   */
  mayRollBack?: boolean;
}

/**
 * Checks the database, and compares it with the log.
 *
 * @param layout from `locate()`
 * @param options what to check
 * @throws {TelemetryError} `newer_schema` for the database of a later product; `locked`, `permission`, `io` when it could not
 * be checked, which is never a reason to recover it; `usage` for an option that is not valid
 *
 * @example
 * ```ts no-eval
 * import { locate } from "../fs/locate.ts";
 * import { checkHealth } from "./health.ts";
 *
 * const { healthy, problems } = await checkHealth(locate());
 * if (!healthy) console.log(problems);
 * ```
 */
export async function checkHealth(layout: Layout, options: HealthOptions = {}): Promise<Health> {
  const { database } = layout;
  assertTimes({ since: options.since });
  if (!options.mayRollBack && hasHotJournal(database)) {
    throw new TelemetryError("locked", `the database could not be checked: ${database} has an unfinished transaction`, {
      hint: "run setup_database, which opens it for writing, or run recover_database without --check-only",
    });
  }
  const current = inspectCurrent(database);
  if (current.state !== "intact") {
    const problems = current.state === "damaged" ? current.problems : [`${database} does not exist`];
    return { healthy: false, problems, missing_tables: [], schema_version: null, unusable_tables: [], runs: null };
  }
  const { version: schema_version, missingTables: missing_tables } = current;
  if (schema_version > SCHEMA_VERSION) throw newerSchema(database, schema_version);
  using db = Connection.openToRead(database);
  const unusable_tables = retryWhileLocked(() => unusableTables(db));
  const runs = options.compare ? await compareRuns(db, logFiles(layout.raw), options.since) : null;
  const problems = missing_tables.map((table) => `the table ${table} is missing`);
  return { healthy: problems.length === 0, problems, missing_tables, schema_version, unusable_tables, runs };
}

function unusableTables(db: Connection): string[] {
  return db.all("SELECT name FROM pragma_table_list WHERE schema='main' AND type='table'").flatMap(({ name }) => {
    try {
      assertWritable(db, String(name));
      return [];
    } catch (error) {
      return isRefused(error) && !/^sqlite_/.test(String(name)) ? [`${name} (${errorMessage(error.cause)})`] : [];
    }
  });
}
