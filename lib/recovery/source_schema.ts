/**
 * What the schema of a damaged database declares, and how the rows of its tables are stored.
 * @module
 */
import { errorMessage, hasCode } from "../errors.ts";
import { sizeOf } from "../fs/locate.ts";
import { sidecarsOf } from "../layout.ts";
import { RUN_COLUMNS, RUN_STATUSES, SCHEMA_VERSION } from "../records.ts";
import { isOfContract, type TableName, TABLES } from "../schema.ts";
import { Connection, retryWhileLocked, type SqlValue } from "../sqlite/connection.ts";
import { quotedName } from "../sqlite/rows.ts";
import type { PageFile } from "./page_reader.ts";

/** One page of the smallest size. */
const MIN_DATABASE_BYTES = 512;

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

/** A row with the table and the columns that its cells belong to. */
export interface Row {
  table: string;
  columns: string[];
  /** Undefined in a table WITHOUT ROWID. */
  rowid: number | bigint | undefined;
  cells: SqlValue[];
}

export interface Declared {
  /** The columns of the contract's tables and of plain user-defined tables. */
  tables: Map<string, Column[]>;
  /** The other tables and the computed columns, each with what to do about it. */
  unusual: Map<string, string>;
}

/** Calls `work` with a database file as far as SQLite can read it. The file is not changed. */
export function readThroughSqlite(path: string, work: (db: Connection) => void): void {
  // SQLite takes an empty file for a new database, and deletes its WAL.
  if ((sizeOf(path) ?? 0) < MIN_DATABASE_BYTES) return;
  const { wal, journal } = sidecarsOf(path);
  // A writing connection would put what its WAL or journal holds into the file.
  const readOnly = [wal, journal].some((sidecar) => (sizeOf(sidecar) ?? 0) > 0);
  try {
    using db = readOnly ? Connection.open(path, { readOnly }) : Connection.openToRead(path);
    work(db);
  } catch (error) {
    if (!isUnreadable(error)) throw error;
  }
}

export function isUnreadable(error: unknown): boolean {
  return hasCode(error, "damaged", "not_a_database", "empty_database", "no_storage", "permission");
}

/** The version in `schema_migrations`, for the message about a later product. */
export function versionOf(db: Connection): number {
  try {
    return Number(db.get("SELECT max(version) AS version FROM schema_migrations")?.["version"] ?? SCHEMA_VERSION + 1);
  } catch {
    return SCHEMA_VERSION + 1;
  }
}

export function readSchema(db: Connection): SchemaObject[] {
  return retryWhileLocked(() => db.all("SELECT type, name, tbl_name, rootpage, sql FROM sqlite_schema"))
    .map(({ type, name, tbl_name, rootpage, sql }) => schemaObject([type!, name!, tbl_name!, rootpage!, sql!]));
}

/** Reads `sqlite_schema` without SQLite: only from the b-tree of page 1, since user-defined tables can hold similar rows. */
export function readSchemaFromPages(file: PageFile): SchemaObject[] {
  const found = new Map<string, SchemaObject>();
  for (const row of file.rows(new Map([["sqlite_schema", 1]]), (_, cells) => isSchemaRow(cells), { onlyTrees: true })) {
    if ("broken" in row || !isSchemaRow(row.cells)) continue;
    const object = schemaObject(row.cells);
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

/** Creates the tables of a schema in memory, so that SQLite itself shows what each one is. */
export function declareTables(objects: SchemaObject[]): Declared {
  using memory = Connection.open(":memory:");
  const kindOf = (table: string) => memory.get("SELECT type, wr FROM pragma_table_list(?)", table) ?? {};
  const declared: Declared = { tables: new Map(), unusual: new Map() };
  const tables = objects.filter(({ type, name, sql }) => type === "table" && sql !== null && !/^sqlite_/i.test(name));
  // Virtual tables first: each creates its shadow tables, which are then known as such.
  for (const { name, sql } of tables.toSorted((a, b) => Math.sign(a.root) - Math.sign(b.root))) {
    if (kindOf(name)["type"] === "shadow") continue;
    try {
      memory.run(sql!);
    } catch (error) {
      declared.unusual.set(`table ${name}`, errorMessage((error as Error).cause ?? error));
      continue;
    }
    const { type, wr } = kindOf(name);
    const computed = memory.all("SELECT name FROM pragma_table_xinfo(?) WHERE hidden > 0", name);
    const kind = type === "virtual" ? "a virtual table" : wr === 1 ? "WITHOUT ROWID" : "a table with computed columns";
    const isPlain = type === "table" && wr === 0 && computed.length === 0;
    if (!isPlain && !isOfContract(name)) {
      declared.unusual.set(`table ${name}`, `it is ${kind}: create it again from the kept database`);
      continue;
    }
    for (const column of computed) {
      declared.unusual.set(`column ${name}.${column["name"]}`, "it is computed: add it again");
    }
    declared.tables.set(name, readColumns(memory, name));
  }
  return declared;
}

/** The columns of a table, without computed ones. */
export function readColumns(db: Connection, table: string): Column[] {
  const rows = db.all("SELECT * FROM pragma_table_info(?)", table);
  // A key with an index of its own is no alias of the row number: INTEGER PRIMARY KEY DESC.
  const isIndexed = db.get("SELECT 1 FROM pragma_index_list(?) WHERE origin='pk'", table) !== undefined;
  const hasOneKey = rows.filter(({ pk }) => Number(pk) > 0).length === 1;
  return rows.map(({ name, type, notnull, dflt_value, pk }) => {
    const plain = String(name).toLowerCase();
    return {
      name: declarationOf(table, plain) === undefined ? String(name) : plain,
      type: String(type),
      notNull: notnull === 1,
      defaultValue: dflt_value as string | null,
      isRowid: pk === 1 && hasOneKey && !isIndexed && String(type).toUpperCase() === "INTEGER",
      isCopied: true,
    };
  });
}

/**
 * Proves that all that a write to a table uses exists. Preparing a statement also compiles the triggers that it fires.
 *
 * @throws {TelemetryError} what SQLite refuses
 */
export function assertWritable(db: Connection, table: string): void {
  const name = quotedName(table);
  const columns = readColumns(db, table).map((column) => quotedName(column.name));
  db.prepare(`INSERT INTO ${name} DEFAULT VALUES`);
  db.prepare(`UPDATE ${name} SET ${columns.map((column) => `${column}=${column}`)}`);
  db.prepare(`DELETE FROM ${name}`);
}

/** How the contract declares a column; undefined for other columns. */
export function declarationOf(table: string, column: string): string | undefined {
  if (!isOfContract(table)) return undefined;
  const columns = TABLES[table as TableName];
  return column === "custom_metadata" ? "TEXT" : Object.hasOwn(columns, column) ? columns[column] : undefined;
}

/** How rows of a table are stored. */
interface RowShape {
  table: string;
  columns: Column[];
  /** Whether a value can be in a cell of each column. */
  checks: ((cell: SqlValue) => boolean)[];
  /** How many cells a row has at least. An old row lacks the columns that were added later. */
  minimum: number;
}

/** Identifies rows that were found in pages. A page has no checksum, so the types of the cells must exclude garbage. */
export class RowShapes {
  readonly #known = new Map<string, RowShape>();
  /** For pages that no tree leads to. Rows of `schema_migrations` are too short to be identified like that. */
  readonly #contract: RowShape[];

  constructor(tables: Map<string, Column[]>) {
    for (const [table, columns] of tables) this.#known.set(table, shapeOf(table, columns));
    this.#contract = (["agent_runs", "commits", "run_events"] as const).flatMap((table) =>
      this.#known.get(table) ?? columnOrders(table).map((columns) => shapeOf(table, columns))
    );
  }

  /**
   * Identifies a row by the table whose tree has its page. Where none has it, or a WAL can be another database's, by its
   * likeness to the rows of the contract's tables.
   */
  identify(table: string | undefined, rowid: number, cells: SqlValue[]): Row | undefined {
    const known = table === undefined ? undefined : this.#known.get(table);
    if (known !== undefined && fits(known, cells)) return rowOf(known, rowid, cells);
    if (table !== undefined && !isOfContract(table)) return undefined;
    const candidates = this.#contract.filter((shape) =>
      // Rows of commits and events are mostly text, like many others: they must have all cells and their time.
      fits(shape, cells) &&
      (shape.table === "agent_runs" || cells.length === shape.columns.length && isDated(shape, cells))
    );
    const shape = candidates.find((shape) => isDated(shape, cells)) ?? candidates[0];
    return shape && rowOf(shape, rowid, cells);
  }
}

function shapeOf(table: string, columns: Column[]): RowShape {
  const last = columns.findLastIndex(({ name }) => isRequired(declarationOf(table, name)));
  return { table, columns, checks: columns.map((column) => checkOf(table, column)), minimum: Math.max(1, last + 1) };
}

function isRequired(declaration: string | undefined): boolean {
  return /NOT NULL|TEXT PRIMARY KEY/.test(declaration ?? "");
}

function checkOf(table: string, { name, isRowid }: Column): (cell: SqlValue) => boolean {
  const declaration = declarationOf(table, name);
  if (declaration === undefined) return () => true;
  if (isRowid) return (cell) => cell === null;
  if (isRequired(declaration)) return (cell) => typeof cell === "string" && cell !== "";
  if (name === "status") return (cell) => cell === null || (RUN_STATUSES as readonly unknown[]).includes(cell);
  if (name === "api_posted") return (cell) => cell === null || cell === 0n || cell === 1n;
  if (declaration.includes("datetime")) return (cell) => cell === null || isDate(cell);
  return (cell) => cell === null || typeof cell === (declaration.startsWith("INTEGER") ? "bigint" : "string");
}

function isDate(cell: SqlValue | undefined): boolean {
  return typeof cell === "string" && /^\d{4}-\d\d/.test(cell);
}

function fits({ columns, checks, minimum }: RowShape, cells: SqlValue[]): boolean {
  return cells.length >= minimum && cells.length <= columns.length && cells.every((cell, i) => checks[i]!(cell));
}

/** Whether the time of a row is where it should be: most other cells are text, in any order of the columns. */
function isDated({ columns }: RowShape, cells: SqlValue[]): boolean {
  return isDate(cells[columns.findIndex(({ name }) => name === "created_at" || name === "timestamp")]);
}

function rowOf({ table, columns }: RowShape, rowid: number, cells: SqlValue[]): Row {
  const copied = [...cells.keys()].filter((i) => columns[i]!.isCopied);
  return {
    table,
    columns: copied.map((i) => columns[i]!.name),
    rowid,
    cells: copied.map((i) => columns[i]!.isRowid ? rowid : cells[i]!),
  };
}

/** The orders that the columns of a table have in the field (contract, "Databases in the field"). */
function columnOrders(table: TableName): Column[][] {
  const later = ["product_family", "subdomain"];
  const v2 = RUN_COLUMNS.filter((column) => !later.includes(column)) as string[];
  const recovered = v2.toSpliced(v2.indexOf("created_at"), 0, "custom_metadata");
  const v1 = v2.filter((column) => column !== "insight_id");
  const orders = table === "agent_runs"
    ? [[...RUN_COLUMNS], [...v2, ...later], [...recovered, ...later], [...v1, "insight_id", ...later]]
    : [Object.keys(TABLES[table])];
  return orders.map((names) =>
    names.map((name) => {
      const type = declarationOf(table, name)!;
      const isRowid = type.startsWith("INTEGER PRIMARY KEY");
      return { name, type, notNull: false, defaultValue: null, isRowid, isCopied: true };
    })
  );
}
