/**
 * The SQLite schema of the contract as data, and as SQL.
 * @module
 */
import { RUN_COLUMNS, RUN_STATUSES, type RunRecord, SCHEMA_VERSION, TRIGGER_TYPES } from "./records.ts";

/** The tables that the contract names. */
export type TableName = "agent_runs" | "run_events" | "commits" | "schema_migrations";

const NOW = "TEXT DEFAULT (datetime('now'))";
const oneOf = (values: readonly string[]) => values.map((value) => `'${value}'`).join(",");

/** The declaration of each column of `agent_runs`. `RUN_COLUMNS` has their order. */
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

/** The declarations of each table's columns, in the contract's order. */
export const TABLES: Record<TableName, Record<string, string>> = {
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

export const TABLE_NAMES = Object.keys(TABLES) as TableName[];

/** The columns of `agent_runs` that schema v2 lacks. */
const ADDED_IN_V3: readonly string[] = ["product_family", "subdomain"];

/** The table and the column of each index. */
export const INDEXES: Record<string, [table: TableName, column: string]> = {
  idx_runs_agent: ["agent_runs", "agent_name"],
  idx_runs_status: ["agent_runs", "status"],
  idx_runs_start: ["agent_runs", "start_time"],
  idx_runs_api_posted: ["agent_runs", "api_posted"],
  idx_runs_insight: ["agent_runs", "insight_id"],
  idx_events_run: ["run_events", "run_id"],
  idx_commits_run: ["commits", "run_id"],
};

export function tableSql(table: TableName): string {
  const columns = Object.entries(TABLES[table]).map(([name, declaration]) => `  ${name} ${declaration}`);
  return `CREATE TABLE IF NOT EXISTS ${table} (\n${columns.join(",\n")}\n)`;
}

export function indexSql(name: string): string {
  const [table, column] = INDEXES[name]!;
  return `CREATE INDEX IF NOT EXISTS ${name} ON ${table}(${column})`;
}

/**
 * The table that a recovery fills, in the v2 layout (contract, "Databases in the field"). It has no CHECK on
 * `trigger_type`, since logs have runs with other values, and it has `custom_metadata`, which old lines have.
 */
export function recoverySchemaSql(): string {
  const columns = Object.entries(TABLES.agent_runs).filter(([name]) => !ADDED_IN_V3.includes(name)).map((
    [name, declaration],
  ) => `  ${name} ${name === "trigger_type" ? "TEXT" : declaration}`);
  columns.splice(columns.findIndex((column) => column.includes(" created_at ")), 0, "  custom_metadata TEXT");
  return `CREATE TABLE agent_runs (\n${columns.join(",\n")}\n)`;
}

/** Whether a table or an index belongs to the contract. */
export function isOfContract(name: string): boolean {
  return isContractTable(name) || Object.hasOwn(INDEXES, name);
}

/** Whether a table of this name belongs to the contract. */
export function isContractTable(name: string): name is TableName {
  return Object.hasOwn(TABLES, name);
}

/** Whether a column is declared as INTEGER. */
export function isInteger(table: TableName, column: string): boolean {
  return TABLES[table][column]?.startsWith("INTEGER") ?? false;
}

export const MIGRATION_SQL = `INSERT OR IGNORE INTO schema_migrations (version, description) ` +
  `VALUES (${SCHEMA_VERSION}, 'Schema v${SCHEMA_VERSION}')`;

/**
 * The complete schema as SQL. It creates a database, and can be run again on an existing one.
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
