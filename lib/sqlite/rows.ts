/**
 * Reads the rows of a table through SQLite, around what is damaged.
 * @module
 */
import { hasCode } from "../errors.ts";
import type { Connection, Row, SqlValue, Statement } from "./connection.ts";

/** A row that was read. */
export interface ReadRow {
  /** Its number in the table; undefined where the table has none. */
  rowid: number | bigint | undefined;
  /** Its cells, in the order in which the columns were asked for. */
  cells: SqlValue[];
}

/** How many rows are read at a time. */
const CHUNK_ROWS = 500;
/** How many places may be unreadable before the rest of the table is left: beyond its end, all of it is one such place. */
const MAX_DAMAGED_PLACES = 20_000;
/** As above, as long as no row was found at all. */
const MAX_PLACES_WITHOUT_ROWS = 200;

/** A name as SQL takes it. */
export function quotedName(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

/**
 * A cell as `json_array` takes it: a BLOB, some of which that function refuses and others takes for JSON (SQLite's "JSON
 * Functions", "JSONB"), as the text that its bytes say. Whatever is no BLOB sorts before all BLOBs, and to see that is
 * faster than to ask for the type.
 *
 * @param cell the name of a column
 */
export function blobAsText(cell: string): string {
  return `CASE WHEN ${cell} < x'' THEN ${cell} ELSE CAST(${cell} AS TEXT) END`;
}

/** How {@linkcode readRows} reads. */
export interface ReadOptions {
  /** Called for each place that cannot be read. */
  onDamage?: () => void;
  /**
   * Whether each cell is to come back with the very type that it has: slower, and of use where a column's declaration
   * does not say the type. Integers are then `bigint`. @default false
   */
  exact?: boolean;
}

/**
 * Every row of a table that SQLite can read, in chunks: text with NUL, integers over 2^53 (as `bigint`) and BLOBs
 * included. A row may come twice. What is damaged in a table `WITHOUT ROWID` costs the whole table.
 *
 * @param db where
 * @param table its name
 * @param columns which columns
 * @param options how
 * @throws {TelemetryError} what is no damage: `locked`, `io`
 *
 * @example
 * ```ts
 * import { readRows } from "./rows.ts";
 * import { Connection } from "./connection.ts";
 *
 * using db = Connection.open(":memory:");
 * db.exec("CREATE TABLE t (a); INSERT INTO t VALUES (1)");
 * console.log([...readRows(db, "t", ["a"])]); // [[{ rowid: 1, cells: [1] }]]
 * ```
 */
export function* readRows(
  db: Connection,
  table: string,
  columns: string[],
  options: ReadOptions = {},
): Generator<ReadRow[], void> {
  const { onDamage = () => {}, exact = false } = options;
  const rowid = rowidOf(db, table);
  if (rowid === undefined) return yield* readWhole(db, table, columns, onDamage);
  const reader = new ChunkReader(db, table, rowid, columns, exact);
  let places = 0;
  let found = false;
  // Depth first from the left, so that what is whole is read before the places run out.
  const pending: [from: bigint, to: bigint][] = [[reader.end("min"), reader.end("max")]];
  for (let range; (range = pending.pop()) !== undefined;) {
    let [from, to] = range;
    try {
      for (;;) {
        const rows = reader.read(from, to);
        if (rows.length > 0) yield rows;
        found ||= rows.length > 0;
        if (rows.length < CHUNK_ROWS) break;
        from = BigInt(rows.at(-1)!.rowid!) + 1n;
      }
    } catch (error) {
      if (!hasCode(error, "damaged")) throw error;
      onDamage();
      if (from >= to || ++places > (found ? MAX_DAMAGED_PLACES : MAX_PLACES_WITHOUT_ROWS)) continue;
      const middle = from + (to - from) / 2n;
      pending.push([middle + 1n, to], [from, middle]);
    }
  }
}

/** What a table calls its row numbers: a column may have taken one of the names. Undefined where it has none. */
export function rowidOf(db: Connection, table: string): string | undefined {
  const taken = db.all("SELECT lower(name) AS name FROM pragma_table_xinfo(?)", table).map(({ name }) => name);
  const name = ["rowid", "_rowid_", "oid"].find((name) => !taken.includes(name));
  const isWithout = db.get("SELECT wr FROM pragma_table_list(?)", table)?.["wr"] === 1;
  return isWithout ? undefined : name;
}

/** A table that cannot be read by row numbers. */
function* readWhole(
  db: Connection,
  table: string,
  columns: string[],
  onDamage: () => void,
): Generator<ReadRow[], void> {
  try {
    const rows = exactly(db, columns, `FROM ${quotedName(table)}`).all();
    yield rows.map((row) => ({ rowid: undefined, cells: cellsOf(row, columns.length, true) }));
  } catch (error) {
    if (!hasCode(error, "damaged")) throw error;
    onDamage();
  }
}

/** A statement whose cells come with their types. */
function exactly(db: Connection, columns: string[], from: string): Statement {
  const cells = columns.map(quotedName).flatMap((name, i) => [
    // The binding cuts text at a NUL.
    `CASE typeof(${name}) WHEN 'text' THEN json_quote(${name}) ELSE ${name} END AS c${i}`,
    `typeof(${name}) AS t${i}`,
  ]);
  const statement = db.prepare(`SELECT ${cells} ${from}`);
  statement.readBigInts();
  return statement;
}

function cellsOf(row: Row, width: number, exact: boolean): SqlValue[] {
  return Array.from({ length: width }, (_, i) => {
    const cell = row[`c${i}`] ?? null;
    if (row[`t${i}`] === "text") return JSON.parse(cell as string) as string;
    return !exact && Number.isSafeInteger(Number(cell)) && typeof cell === "bigint" ? Number(cell) : cell;
  });
}

class ChunkReader {
  readonly #db: Connection;
  readonly #from: string;
  readonly #rowid: string;
  readonly #chunk: Statement;
  readonly #exact: Statement;
  readonly #width: number;
  readonly #isExact: boolean;

  constructor(db: Connection, table: string, rowid: string, columns: string[], exact: boolean) {
    this.#db = db;
    // Not by an index: that may be what is damaged.
    this.#from = `FROM ${quotedName(table)} NOT INDEXED`;
    this.#rowid = rowid;
    this.#width = columns.length;
    this.#isExact = exact;
    const names = columns.map(quotedName);
    // See `blobAsText`.
    const isBlob = exact ? "true" : names.map((name) => `typeof(${name})='blob'`).join(" OR ");
    this.#chunk = db.prepare(
      `SELECT ${rowid} AS at, CASE WHEN ${isBlob} THEN NULL ELSE json_array(${names}) END AS cells ${this.#from}
      WHERE ${rowid} BETWEEN ? AND ? ORDER BY ${rowid} LIMIT ${CHUNK_ROWS}`,
    );
    this.#chunk.readBigInts();
    this.#exact = exactly(db, columns, `${this.#from} WHERE ${rowid}=?`);
  }

  /** The first or last row number; where damage hides it, one that no table reaches. */
  end(which: "min" | "max"): bigint {
    try {
      const statement = this.#db.prepare(`SELECT ${which}(${this.#rowid}) AS rowid ${this.#from}`);
      statement.readBigInts();
      return statement.get()!["rowid"] as bigint | null ?? 0n;
    } catch (error) {
      if (!hasCode(error, "damaged")) throw error;
      return which === "min" ? 0n : 2n ** 40n;
    }
  }

  read(from: bigint, to: bigint): ReadRow[] {
    return this.#chunk.all(from, to).map(({ at, cells }) => {
      const rowid = Number.isSafeInteger(Number(at)) ? Number(at) : at as bigint;
      const values = typeof cells === "string" ? JSON.parse(cells) as SqlValue[] : undefined;
      if (values !== undefined && !values.some(isRounded)) return { rowid, cells: values };
      return { rowid, cells: cellsOf(this.#exact.get(at!) ?? {}, this.#width, this.#isExact) };
    });
  }
}

/** Whether JSON has made a number of this that may not be the one that was there. */
function isRounded(value: SqlValue): boolean {
  return typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value);
}
