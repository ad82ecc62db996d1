/**
 * The SQLite schema of the contract as data: create it, tell which version a database has, upgrade it, print it.
 * @module
 */
import { hasCode, TelemetryError } from "./errors.ts";
import { RUN_COLUMNS, RUN_STATUSES, type RunRecord, SCHEMA_VERSION, TRIGGER_TYPES } from "./records.ts";
import type { Connection } from "./sqlite/connection.ts";

/** The tables that the contract names. */
export type TableName = "agent_runs" | "run_events" | "commits" | "schema_migrations";

const NOW = "TEXT DEFAULT (datetime('now'))";
const oneOf = (values: readonly string[]) => values.map((value) => `'${value}'`).join(",");

/** The declaration of every column of `agent_runs`; their order is that of `RUN_COLUMNS`. */
const RUN_DECLARATIONS: Record<keyof RunRecord, string> = {
  run_id: "TEXT PRIMARY KEY",
  schema_version: `INTEGER DEFAULT ${SCHEMA_VERSION}`,
  agent_name: "TEXT NOT NULL",
  agent_owner: "TEXT",
  job_type: "TEXT",
  trigger_type: `TEXT CHECK(trigger_type IN (${oneOf(TRIGGER_TYPES)}))`,
  start_time: "TEXT NOT NULL",
  end_time: "TEXT",
  status: `TEXT CHECK(status IN (${oneOf(RUN_STATUSES)}))`,
  items_discovered: "INTEGER DEFAULT 0",
  items_succeeded: "INTEGER DEFAULT 0",
  items_failed: "INTEGER DEFAULT 0",
  duration_ms: "INTEGER",
  input_summary: "TEXT",
  output_summary: "TEXT",
  error_summary: "TEXT",
  metrics_json: "TEXT",
  insight_id: "TEXT",
  product: "TEXT",
  platform: "TEXT",
  product_family: "TEXT",
  subdomain: "TEXT",
  git_repo: "TEXT",
  git_branch: "TEXT",
  git_run_tag: "TEXT",
  host: "TEXT",
  api_posted: "INTEGER DEFAULT 0",
  api_posted_at: "TEXT",
  api_retry_count: "INTEGER DEFAULT 0",
  created_at: NOW,
  updated_at: NOW,
};

/** Every table with the declarations of its columns, in the contract's order. */
const TABLES: Record<TableName, Record<string, string>> = {
  agent_runs: Object.fromEntries(RUN_COLUMNS.map((column) => [column, RUN_DECLARATIONS[column]])),
  run_events: {
    id: "INTEGER PRIMARY KEY AUTOINCREMENT",
    run_id: "TEXT NOT NULL REFERENCES agent_runs(run_id)",
    event_type: "TEXT NOT NULL",
    timestamp: "TEXT NOT NULL",
    payload_json: "TEXT",
  },
  commits: {
    commit_hash: "TEXT PRIMARY KEY",
    run_id: "TEXT REFERENCES agent_runs(run_id)",
    agent_name: "TEXT",
    repo: "TEXT",
    branch: "TEXT",
    commit_date: "TEXT",
    author: "TEXT",
    message: "TEXT",
    files_changed: "INTEGER",
    insertions: "INTEGER",
    deletions: "INTEGER",
    created_at: NOW,
  },
  schema_migrations: {
    version: "INTEGER PRIMARY KEY",
    applied_at: NOW,
    description: "TEXT",
  },
};

const TABLE_NAMES = Object.keys(TABLES) as TableName[];

/** The columns of `agent_runs` that schema v2 does not have. */
const ADDED_IN_V3: readonly string[] = ["product_family", "subdomain"];

/** Every index with its table and column. */
const INDEXES: Record<string, [table: TableName, column: string]> = {
  idx_runs_agent: ["agent_runs", "agent_name"],
  idx_runs_status: ["agent_runs", "status"],
  idx_runs_start: ["agent_runs", "start_time"],
  idx_runs_api_posted: ["agent_runs", "api_posted"],
  idx_runs_insight: ["agent_runs", "insight_id"],
  idx_events_run: ["run_events", "run_id"],
  idx_commits_run: ["commits", "run_id"],
};

/** `ALTER TABLE … ADD COLUMN` takes neither keys nor NOT NULL nor a default that is an expression. */
const CANNOT_BE_ADDED = /PRIMARY KEY|NOT NULL|datetime/;

function tableSql(table: TableName): string {
  const columns = Object.entries(TABLES[table]).map(([name, declaration]) => `  ${name} ${declaration}`);
  return `CREATE TABLE IF NOT EXISTS ${table} (\n${columns.join(",\n")}\n)`;
}

function indexSql(name: string): string {
  const [table, column] = INDEXES[name]!;
  return `CREATE INDEX IF NOT EXISTS ${name} ON ${table}(${column})`;
}

/**
 * The v2 layout that recovery fills (contract, "Databases in the field"): without a CHECK on `trigger_type`, since the
 * log holds runs of other triggers, and with `custom_metadata`, which old lines have. {@linkcode applySchema} makes a v3
 * of it.
 */
export function recoveryLayoutSql(): string {
  const columns = Object.entries(TABLES.agent_runs).filter(([name]) => !ADDED_IN_V3.includes(name)).map((
    [name, declaration],
  ) => `  ${name} ${name === "trigger_type" ? "TEXT" : declaration}`);
  columns.splice(columns.findIndex((column) => column.includes(" created_at ")), 0, "  custom_metadata TEXT");
  return `CREATE TABLE agent_runs (\n${columns.join(",\n")}\n)`;
}

/**
 * Takes away those of the contract's indexes that slow a bulk load down; {@linkcode applySchema} makes them again.
 * Those that grow at their end alone are as fast while the table is filled.
 */
export function dropSlowIndexes(db: Connection): void {
  for (const index of ["idx_runs_agent", "idx_runs_status", "idx_runs_insight"]) {
    db.exec(`DROP INDEX IF EXISTS ${index}`);
  }
}

/** Whether the contract names a table or an index of this name. */
export function isOfContract(name: string): boolean {
  return Object.hasOwn(TABLES, name) || Object.hasOwn(INDEXES, name);
}

/** The columns of a contract table in schema v3, in order, with their declarations. */
export function columnsOf(table: TableName): Readonly<Record<string, string>> {
  return TABLES[table];
}

/** Whether a column of a contract table is declared as INTEGER. */
export function isInteger(table: TableName, column: string): boolean {
  return TABLES[table][column]?.startsWith("INTEGER") ?? false;
}

/** Which column of which table each index of the contract is for. */
export function indexes(): Readonly<Record<string, readonly [table: TableName, column: string]>> {
  return INDEXES;
}

const MIGRATION_SQL = `INSERT OR IGNORE INTO schema_migrations (version, description) ` +
  `VALUES (${SCHEMA_VERSION}, 'Schema v${SCHEMA_VERSION}')`;

/**
 * The whole schema as SQL that makes a database of the contract; safe to run on one that is there.
 *
 * @example
 * ```ts
 * import { schemaSql } from "./schema.ts";
 *
 * console.log(schemaSql().split("\n")[0]); // "-- Local Telemetry Toolkit: SQLite schema v3"
 * ```
 */
export function schemaSql(): string {
  const tables = TABLE_NAMES.map(tableSql);
  const statements = [...tables, ...Object.keys(INDEXES).map(indexSql), MIGRATION_SQL];
  return `-- Local Telemetry Toolkit: SQLite schema v${SCHEMA_VERSION}\nPRAGMA journal_mode=WAL;\n\n` +
    statements.map((statement) => `${statement};\n`).join("\n");
}

/** What {@linkcode inspect} finds. */
export interface Inspection {
  /** The version that the columns show: 1, 2 or 3; a later product's number; 4 where only its columns tell. */
  version: number;
  /** The highest version in `schema_migrations`, which is not always true; null without any. */
  recorded: number | null;
  /** What the contract wants and the database lacks, as `commits`, `agent_runs.subdomain`, `idx_runs_insight`. */
  missing: string[];
  /** Whether the journal mode is WAL. */
  wal: boolean;
}

/**
 * Which schema a database has. Believes the columns: the old setup recorded version 3 and added no column.
 *
 * @throws {TelemetryError} `empty_database` without any table, `not_a_database` without `agent_runs` or with one
 * that cannot be made whole by adding columns
 */
export function inspect(db: Connection): Inspection {
  const names = namesIn(db);
  if (names.size === 0) throw emptyDatabase(db.path);
  const view = db.get(
    "SELECT name FROM sqlite_schema WHERE type='view' AND lower(name) IN (?, ?, ?, ?)",
    ...TABLE_NAMES,
  );
  if (view) {
    throw new TelemetryError(
      "in_the_way",
      `${db.path} has a view ${view["name"]}, but a table of that name is needed`,
      {
        hint: "drop or rename that view and run this again",
      },
    );
  }
  const runColumns = columnsThere(db, "agent_runs");
  if (runColumns.size === 0) {
    throw new TelemetryError("not_a_database", `${db.path} is not a telemetry database: it has no table agent_runs`, {
      hint: "see whether it belongs to another program; move it away and run this again",
    });
  }
  const recorded = names.has("schema_migrations")
    ? db.get("SELECT max(version) AS version FROM schema_migrations")?.["version"] as number | null
    : null;
  const version = versionOf(runColumns, recorded);
  const missing = version > SCHEMA_VERSION ? [] : missingIn(db, names);
  return { version, recorded, missing, wal: db.get("PRAGMA journal_mode")?.["journal_mode"] === "wal" };
}

/** The error for a database without bytes or tables: a sign of loss, which a fresh schema would only hide. */
export function emptyDatabase(path: string): TelemetryError {
  return new TelemetryError("empty_database", `${path} is empty: it holds no tables`, {
    hint: "run recover_database to fill it from the log; if nothing was ever recorded, delete it and run this again",
  });
}

function versionOf(runColumns: Set<string>, recorded: number | null): number {
  if (recorded !== null && recorded > SCHEMA_VERSION) return recorded;
  if (runColumns.has("event_id")) return SCHEMA_VERSION + 1;
  if (!runColumns.has("insight_id")) return 1;
  return runColumns.has("product_family") && runColumns.has("subdomain") ? SCHEMA_VERSION : 2;
}

function missingIn(db: Connection, names: Set<string>): string[] {
  const missing: string[] = [];
  for (const [table, columns] of Object.entries(TABLES)) {
    if (!names.has(table)) {
      missing.push(table);
      continue;
    }
    const there = columnsThere(db, table);
    missing.push(...Object.keys(columns).filter((column) => !there.has(column)).map((column) => `${table}.${column}`));
  }
  missing.push(...Object.keys(INDEXES).filter((index) => !names.has(index)));
  return missing;
}

/** The names of all tables and indexes, in lower case, as SQLite compares them. */
function namesIn(db: Connection): Set<string> {
  const rows = db.all("SELECT lower(name) AS name FROM sqlite_schema WHERE type IN ('table', 'index')");
  return new Set(rows.map((row) => row["name"] as string));
}

/** The names of the columns that a table has, in lower case, as SQLite compares them; none where there is no such table. */
export function columnsThere(db: Connection, table: string): Set<string> {
  const rows = db.all("SELECT lower(name) AS name FROM pragma_table_info(?)", table);
  return new Set(rows.map((row) => row["name"] as string));
}

/** The error for a database of a later product: this toolkit changes nothing in it. */
export function newerSchema(path: string, version: number): TelemetryError {
  return new TelemetryError(
    "newer_schema",
    `${path} has schema v${version}, and this toolkit writes v${SCHEMA_VERSION}: nothing was changed`,
    { hint: "use the newer product with this database, or another folder (--base DIR) with this toolkit" },
  );
}

/**
 * Makes a v3 of an older or incomplete database, or the schema in a new one: adds tables, columns and indexes, and
 * never rebuilds a table, since people have columns, indexes and tables of their own in there. Run it in a
 * transaction; it proves at its end that a row with every v3 column is accepted.
 *
 * @throws {TelemetryError} `newer_schema`, `not_a_database`, or what SQLite says
 */
export function applySchema(db: Connection): void {
  for (const table of TABLE_NAMES) {
    db.exec(tableSql(table));
    const there = columnsThere(db, table);
    for (const [column, declaration] of Object.entries(TABLES[table])) {
      if (!there.has(column)) addColumn(db, table, column, declaration);
    }
  }
  for (const index of Object.keys(INDEXES)) db.exec(indexSql(index));
  db.exec(MIGRATION_SQL);
  proveInsert(db);
}

function addColumn(db: Connection, table: TableName, column: string, declaration: string): void {
  if (CANNOT_BE_ADDED.test(declaration)) {
    throw new TelemetryError("not_a_database", `${db.path} is no telemetry database: ${table} has no ${column}`, {
      hint: "move it away and run recover_database, which fills a new one from the log",
    });
  }
  db.exec(`ALTER TABLE ${table} ADD COLUMN ${column} ${declaration}`);
}

/**
 * Inserts a row with every v3 column, and takes it back: what people added must not make later inserts fail.
 *
 * @throws {TelemetryError} `invalid_record` when they would
 */
export function proveInsert(db: Connection): void {
  const run: Partial<RunRecord> = { run_id: crypto.randomUUID(), agent_name: "setup", start_time: "" };
  db.exec("SAVEPOINT proof");
  const values = RUN_COLUMNS.map((column) => run[column] ?? null);
  try {
    db.run(`INSERT INTO agent_runs (${RUN_COLUMNS}) VALUES (${RUN_COLUMNS.map(() => "?")})`, ...values);
  } catch (error) {
    if (!hasCode(error, "invalid_record")) throw error;
    throw new TelemetryError("invalid_record", `after the upgrade the database would refuse runs: ${error.message}`, {
      hint: "a column, index or trigger that was added to agent_runs does that: change it and run this again",
      cause: error,
    });
  }
  db.exec("ROLLBACK TO proof; RELEASE proof");
}
