/**
 * Which schema version a database has, and its upgrade to the contract's.
 * @module
 */
import { hasCode, TelemetryError } from "../errors.ts";
import { RUN_COLUMNS, type RunRecord, SCHEMA_VERSION } from "../records.ts";
import { INDEXES, indexSql, MIGRATION_SQL, TABLE_NAMES, type TableName, TABLES, tableSql } from "../schema.ts";
import type { Connection } from "./connection.ts";

/** The schema of a database. */
export interface Inspection {
  /** The version by the columns: 1, 2 or 3; for a later product the recorded version, or 4 when none is recorded. */
  version: number;
  /** The highest version in `schema_migrations`, which may be wrong; null when there is none. */
  recorded: number | null;
  /** What the database lacks, such as `commits`, `agent_runs.subdomain` or `idx_runs_insight`. */
  missing: string[];
  /** Whether the journal mode is WAL. */
  wal: boolean;
}

/** Determines the schema of a database by its columns: the old setup recorded version 3 without adding any. */
export function inspect(db: Connection): Inspection {
  const objects = db.all("SELECT type, lower(name) AS name FROM sqlite_schema");
  const names = new Set(objects.map(({ name }) => name as string));
  const tables = new Set(objects.filter(({ type }) => type === "table").map(({ name }) => name as string));
  if (tables.size === 0) throw emptyDatabase(db.path);
  const view = objects.find(({ type, name }) => type === "view" && (TABLE_NAMES as unknown[]).includes(name));
  if (view) {
    // A recovery would put an empty table in its place.
    throw new TelemetryError(
      "in_the_way",
      `${db.path} has a view ${view["name"]}, but a table of that name is needed`,
      {
        hint: "drop or rename that view, then run this again",
      },
    );
  }
  if (!tables.has("agent_runs")) {
    throw new TelemetryError("not_a_database", `${db.path} is not a telemetry database: it has no table agent_runs`, {
      hint: "if it belongs to another application, move it away, then run this again",
    });
  }
  const recorded = tables.has("schema_migrations")
    ? db.get("SELECT max(version) AS version FROM schema_migrations")?.["version"] as number | null
    : null;
  const version = versionOf(columnNames(db, "agent_runs"), recorded);
  const missing = version > SCHEMA_VERSION ? [] : [
    ...TABLE_NAMES.flatMap((table) =>
      tables.has(table) ? missingColumns(db, table).map((column) => `${table}.${column}`) : [table]
    ),
    ...Object.keys(INDEXES).filter((index) => !names.has(index)),
  ];
  return { version, recorded, missing, wal: db.get("PRAGMA journal_mode")?.["journal_mode"] === "wal" };
}

/** The error for a database without content. This is a sign of loss, which a new schema would only hide. */
export function emptyDatabase(path: string): TelemetryError {
  return new TelemetryError("empty_database", `${path} is empty: it has no tables`, {
    hint:
      "run recover_database, which rebuilds it from the log; if nothing was ever recorded, delete it and run this again",
  });
}

function versionOf(runColumns: Set<string>, recorded: number | null): number {
  if (recorded !== null && recorded > SCHEMA_VERSION) return recorded;
  if (runColumns.has("event_id")) return SCHEMA_VERSION + 1;
  if (!runColumns.has("insight_id")) return 1;
  return runColumns.has("product_family") && runColumns.has("subdomain") ? SCHEMA_VERSION : 2;
}

function missingColumns(db: Connection, table: TableName): string[] {
  const there = columnNames(db, table);
  return Object.keys(TABLES[table]).filter((column) => !there.has(column));
}

/** The names of a table's columns in lower case, as SQLite compares them. Empty when the table does not exist. */
export function columnNames(db: Connection, table: string): Set<string> {
  const rows = db.all("SELECT lower(name) AS name FROM pragma_table_xinfo(?)", table);
  return new Set(rows.map((row) => row["name"] as string));
}

/** The error for the database of a later product. */
export function newerSchema(path: string, version: number | string): TelemetryError {
  return new TelemetryError(
    "newer_schema",
    `${path} has schema v${version}, but this toolkit writes v${SCHEMA_VERSION}; nothing was changed`,
    { hint: "use the later product with this database, or another folder (--base DIR) with this toolkit" },
  );
}

/**
 * Upgrades a database to v3, or creates the schema in a new one: adds tables, columns and indexes, and never rebuilds a
 * table, since users add columns, indexes and tables of their own. Call it in a transaction.
 */
export function applySchema(db: Connection): void {
  // Indexes are sorted in memory: SQLite's temporary files would be outside of the store, where nothing may be writable.
  db.exec("PRAGMA temp_store=MEMORY");
  for (const table of TABLE_NAMES) {
    db.exec(tableSql(table));
    for (const column of missingColumns(db, table)) {
      db.run(`ALTER TABLE ${table} ADD COLUMN ${column} ${TABLES[table][column]}`);
    }
  }
  for (const index of Object.keys(INDEXES)) db.exec(indexSql(index));
  db.exec(MIGRATION_SQL);
  assertAcceptsRuns(db);
}

/** Writes a run as agents do and rolls that back: user-defined objects must not make later writes fail. */
export function assertAcceptsRuns(db: Connection): void {
  const run: Partial<RunRecord> = { run_id: crypto.randomUUID(), agent_name: "setup", start_time: "" };
  const values = RUN_COLUMNS.map((column) => run[column] ?? null);
  db.exec("SAVEPOINT proof");
  try {
    db.run(`INSERT INTO agent_runs (${RUN_COLUMNS}) VALUES (${RUN_COLUMNS.map(() => "?")})`, ...values);
    const changes = RUN_COLUMNS.map((column) => `${column}=${column === "status" ? "'success'" : column}`);
    db.run(`UPDATE agent_runs SET ${changes} WHERE run_id=?`, run.run_id!);
    // A trigger can ignore a write without an error (`RAISE(IGNORE)`).
    const isWritten =
      db.get("SELECT 1 FROM agent_runs WHERE run_id=? AND status IS NOT NULL", run.run_id!) !== undefined;
    if (!isWritten) throw new TelemetryError("invalid_record", "a trigger ignores writes to agent_runs");
  } catch (error) {
    if (!hasCode(error, "invalid_record")) throw error;
    throw new TelemetryError("invalid_record", `after the upgrade the database would refuse runs: ${error.message}`, {
      hint: "a user-defined column, index or trigger of agent_runs causes this: change it, then run this again",
      cause: error.cause,
    });
  }
  db.exec("ROLLBACK TO proof; RELEASE proof");
}

/** Drops the indexes that slow down a bulk load. {@linkcode applySchema} creates them again. The others only grow at the end. */
export function dropSlowIndexes(db: Connection): void {
  for (const index of ["idx_runs_agent", "idx_runs_status", "idx_runs_insight"]) {
    db.exec(`DROP INDEX IF EXISTS ${index}`);
  }
}
