/**
 * Identifies rows that were found in pages. A page has no checksum, so the types of the cells must exclude garbage.
 * @module
 */
import { RUN_COLUMNS } from "../records.ts";
import { isContractTable, type TableName, TABLES } from "../schema.ts";
import type { SqlValue } from "../sqlite/connection.ts";
import { TextBytes } from "../sqlite/rows.ts";
import type { FoundRow, PageFile } from "./page_reader.ts";
import { type Column, declarationOf, type SchemaObject } from "./source_schema.ts";

/** A row with the table and the columns that its cells belong to. */
export interface Row {
  table: string;
  columns: string[];
  /** Undefined in a table WITHOUT ROWID. */
  rowid: number | bigint | undefined;
  cells: SqlValue[];
}

type StoredColumn = Pick<Column, "name" | "isRowid" | "isCopied">;

/** How rows of a table are stored. */
interface RowShape {
  table: string;
  columns: StoredColumn[];
  /** Whether a value can be in a cell of each column. Old rows lack the columns that were added later: null. */
  checks: ((cell: SqlValue) => boolean)[];
}

export class RowShapes {
  readonly #known = new Map<string, RowShape>();
  /** For pages that no tree leads to. Rows of `schema_migrations` are too short to be identified like that. */
  readonly #contract: RowShape[];

  /** @param tables the columns of each table whose schema is known */
  constructor(tables: Map<string, Column[]>) {
    for (const [table, columns] of tables) this.#known.set(table, shapeOf(table, columns));
    this.#contract = contractShapes().map((shape) => this.#known.get(shape.table) ?? shape);
  }

  /**
   * Identifies a row by the table whose tree has its page. Where none has it, or a WAL can be another database's, by its
   * likeness to the rows of the contract's tables.
   */
  identify(table: string | undefined, rowid: number | bigint, cells: SqlValue[]): Row | undefined {
    const known = table === undefined ? undefined : this.#known.get(table);
    if (known !== undefined && fits(known, cells)) return rowOf(known, rowid, cells);
    if (table !== undefined && !isContractTable(table)) return undefined;
    const candidates = this.#contract.filter((shape) =>
      // Rows of commits and events are mostly text, like many others: they must have all cells and their time.
      fits(shape, cells) &&
      (shape.table === "agent_runs" || cells.length === shape.columns.length && isDated(shape, cells))
    );
    const shape = candidates.find((shape) => isDated(shape, cells)) ?? candidates[0];
    return shape && rowOf(shape, rowid, cells);
  }
}

/** Reads the rows of a file, each with the table that it belongs to, where that can be determined. */
export function* rowsInPages(
  file: PageFile,
  objects: SchemaObject[],
  shapes: RowShapes,
): Generator<FoundRow & { row: Row | undefined }> {
  const roots = objects.filter(({ type, root }) => type === "table" && root > 0)
    .map(({ name, root }) => [name, root] as const);
  const isRow = (table: string | undefined, cells: SqlValue[]) => shapes.identify(table, 0, cells) !== undefined;
  for (const found of file.rows(new Map(roots), isRow)) {
    yield { ...found, row: found.cells && shapes.identify(found.table, found.rowid, found.cells) };
  }
}

function shapeOf(table: string, columns: StoredColumn[]): RowShape {
  return { table, columns, checks: columns.map((column) => checkOf(table, column)) };
}

function checkOf(table: string, { name, isRowid }: StoredColumn): (cell: SqlValue) => boolean {
  const declaration = declarationOf(table, name);
  if (declaration === undefined) return () => true;
  if (isRowid) return (cell) => cell === null;
  if (/NOT NULL|TEXT PRIMARY KEY/.test(declaration)) {
    // Names can be in another encoding. Keys and times are what garbage is told by.
    const isName = /_name$|_type$/.test(name);
    return (cell) => typeof cell === "string" && cell !== "" || isName && cell instanceof TextBytes;
  }
  if (name === "api_posted") return (cell) => cell === null || cell === 0n || cell === 1n;
  // SQLite converts what it can, and stores the rest as it is.
  if (declaration.startsWith("INTEGER")) return (cell) => !(cell instanceof Uint8Array);
  return (cell) => cell === null || typeof cell === "string" || cell instanceof TextBytes;
}

function isDate(cell: SqlValue | undefined): boolean {
  return typeof cell === "string" && /^\d{4}-\d\d/.test(cell);
}

function fits({ columns, checks }: RowShape, cells: SqlValue[]): boolean {
  return cells.length > 0 && cells.length <= columns.length && checks.every((check, i) => check(cells[i] ?? null));
}

/** Whether the time of a row is where it should be: most other cells are text, in any order of the columns. */
function isDated({ columns }: RowShape, cells: SqlValue[]): boolean {
  return isDate(cells[columns.findIndex(({ name }) => name === "created_at" || name === "timestamp")]);
}

function rowOf({ table, columns }: RowShape, rowid: number | bigint, cells: SqlValue[]): Row {
  const copied = [...cells.keys()].filter((i) => columns[i]!.isCopied);
  return {
    table,
    columns: copied.map((i) => columns[i]!.name),
    rowid,
    cells: copied.map((i) => columns[i]!.isRowid ? rowid : cells[i]!),
  };
}

/** The orders that the columns of the tables have in the field (contract, "Databases in the field"). */
function contractShapes(): RowShape[] {
  const later = ["product_family", "subdomain"];
  const v2 = RUN_COLUMNS.filter((column) => !later.includes(column)) as string[];
  const recovered = v2.toSpliced(v2.indexOf("created_at"), 0, "custom_metadata");
  const v1 = v2.filter((column) => column !== "insight_id");
  const orders: [TableName, string[]][] = [
    ["agent_runs", [...RUN_COLUMNS]],
    ["agent_runs", [...v2, ...later]],
    ["agent_runs", [...recovered, ...later]],
    ["agent_runs", [...v1, "insight_id", ...later]],
    ["commits", Object.keys(TABLES.commits)],
    ["run_events", Object.keys(TABLES.run_events)],
  ];
  return orders.map(([table, names]) =>
    shapeOf(table, names.map((name) => ({ name, isRowid: name === "id", isCopied: true })))
  );
}
