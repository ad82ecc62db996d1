/**
 * What the schema of a damaged database declares.
 * @module
 */
import { hasCode } from "../errors.ts";
import { sizeOf } from "../fs/locate.ts";
import { isContractTable, isOfContract, TABLES } from "../schema.ts";
import { Connection, retryWhileLocked, type SqlValue } from "../sqlite/connection.ts";
import { quotedName } from "../sqlite/rows.ts";
import type { PageFile } from "./page_reader.ts";

/** A row of `sqlite_schema`. */
export interface SchemaObject {
  type: string;
  name: string;
  table: string;
  /** 0 for views, triggers and virtual tables. */
  root: number;
  sql: string | null;
}

export interface Column {
  name: string;
  type: string;
  notNull: boolean;
  defaultValue: string | null;
  /** Whether it is an alias of the row number, and stored as NULL. */
  isRowid: boolean;
  /** Whether the new database has the column. */
  isCopied: boolean;
}

/** Calls `work` with a database file as far as SQLite can read it. The content of the file is not changed. */
export function readThroughSqlite(path: string, work: (db: Connection) => void): void {
  // SQLite takes an empty file for a new database, and deletes its WAL.
  if ((sizeOf(path) ?? 0) === 0) return;
  try {
    using db = Connection.openToRead(path);
    work(db);
  } catch (error) {
    if (!hasCode(error, "damaged", "not_a_database", "permission")) throw error;
  }
}

export function readSchema(db: Connection): SchemaObject[] {
  return retryWhileLocked(() => db.all("SELECT type, name, tbl_name, rootpage, sql FROM sqlite_schema"))
    .map((row) => schemaObject(Object.values(row)));
}

/** Reads `sqlite_schema` without SQLite: only from the b-tree of page 1, since user-defined tables can hold similar rows. */
export function readSchemaFromPages(file: PageFile): SchemaObject[] {
  const found = new Map<string, SchemaObject>();
  const rows = file.rows(new Map([["sqlite_schema", 1]]), (_, cells) => isSchemaRow(cells), { onlyTrees: true });
  for (const { cells } of rows) {
    if (cells === undefined || !isSchemaRow(cells)) continue;
    const object = schemaObject(cells);
    found.set(`${object.type} ${object.name}`, object);
  }
  return [...found.values()];
}

function isSchemaRow(cells: SqlValue[]): boolean {
  const [type, name, table, root, sql] = cells;
  return cells.length === 5 && ["table", "index", "view", "trigger"].includes(type as string) &&
    typeof name === "string" && typeof table === "string" && typeof root === "bigint" &&
    (sql === null || typeof sql === "string" && /^CREATE /i.test(sql));
}

function schemaObject([type, name, table, root, sql]: SqlValue[]): SchemaObject {
  return {
    type: String(type),
    name: contractName(String(name)),
    table: contractName(String(table)),
    root: Number(root),
    sql: sql as string | null,
  };
}

/** SQLite ignores the case of names. The contract's are in lower case. */
function contractName(name: string): string {
  return isOfContract(name.toLowerCase()) ? name.toLowerCase() : name;
}

/**
 * Returns the columns of the contract's tables and of plain user-defined tables. Creates the tables in memory, so that
 * SQLite itself shows what each one is. Unusual tables and computed columns are left out.
 */
export function declareTables(
  objects: SchemaObject[],
  leaveOut: (object: string, reason: unknown) => void,
): Map<string, Column[]> {
  using memory = Connection.open(":memory:");
  const describe = memory.prepare(
    `SELECT type, wr, (SELECT group_concat(name) FROM pragma_table_xinfo(?1) WHERE hidden > 0) AS computed
    FROM pragma_table_list(?1)`,
  );
  const declared = new Map<string, Column[]>();
  const tables = objects.filter(({ type, name, sql }) => type === "table" && sql !== null && !/^sqlite_/i.test(name));
  // Virtual tables first: each creates its shadow tables, which are then skipped.
  for (const { name, sql } of tables.toSorted((a, b) => Math.sign(a.root) - Math.sign(b.root))) {
    if (describe.get(name) !== undefined) continue;
    try {
      memory.run(sql!);
    } catch (error) {
      leaveOut(`${isContractTable(name) ? "user-defined columns of " : ""}table ${name}`, error);
      continue;
    }
    const { type, wr, computed } = describe.get(name)!;
    const kind = type === "virtual" ? "a virtual table" : wr === 1 ? "WITHOUT ROWID" : "a table with computed columns";
    const isPlain = type === "table" && wr === 0 && computed === null;
    if (isPlain || isContractTable(name)) declared.set(name, readColumns(memory, name));
    else leaveOut(`table ${name}`, `it is ${kind}: create it again from the kept database`);
    if (isContractTable(name) && computed !== null) {
      leaveOut(`column ${name}.${computed}`, "it is computed: add it again");
    }
  }
  return declared;
}

/** The columns of a table, without computed ones. */
export function readColumns(db: Connection, table: string): Column[] {
  // The primary key is an alias of the row number if it has no index of its own, as INTEGER PRIMARY KEY DESC has.
  const rows = db.all(
    `SELECT *, pk > 0 AND NOT EXISTS (SELECT 1 FROM pragma_index_list(?1) WHERE origin='pk') AS is_rowid
    FROM pragma_table_info(?1)`,
    table,
  );
  return rows.map(({ name, type, notnull, dflt_value, is_rowid }) => {
    const plain = String(name).toLowerCase();
    return {
      name: declarationOf(table, plain) === undefined ? String(name) : plain,
      type: String(type),
      notNull: notnull === 1,
      defaultValue: dflt_value as string | null,
      isRowid: is_rowid === 1,
      isCopied: true,
    };
  });
}

/** Whether a later product wrote these tables. Only this column proves it: a damaged page can hold any version. */
export function isLaterProducts(tables: Map<string, Column[]>): boolean {
  return tables.get("agent_runs")?.some(({ name }) => name === "event_id") ?? false;
}

/** Proves that all that a write to a table uses exists. Preparing a statement also compiles the triggers that it fires. */
export function assertWritable(db: Connection, table: string): void {
  const name = quotedName(table);
  const columns = readColumns(db, table).map((column) => quotedName(column.name));
  db.prepare(`INSERT INTO ${name} DEFAULT VALUES`);
  db.prepare(`UPDATE ${name} SET ${columns.map((column) => `${column}=${column}`)}`);
  db.prepare(`DELETE FROM ${name}`);
}

/** How the contract declares a column; undefined for other columns. */
export function declarationOf(table: string, column: string): string | undefined {
  if (!isContractTable(table)) return undefined;
  const columns = TABLES[table];
  return column === "custom_metadata" ? "TEXT" : Object.hasOwn(columns, column) ? columns[column] : undefined;
}
