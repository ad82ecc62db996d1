/**
 * Reads the rows of a table through SQLite, around damaged pages.
 * @module
 */
import { hasCode } from "../errors.ts";
import type { Connection, SqlValue, Statement } from "./connection.ts";

export interface ReadRow {
  /** Undefined in a table WITHOUT ROWID. */
  rowid: number | bigint | undefined;
  /** In the order in which the columns were asked for. */
  cells: SqlValue[];
}

export interface ReadOptions {
  /**
   * Returns each cell with its stored type, integers as `bigint`. This is slower, and needed only where the declaration
   * of a column does not determine the type. @default false
   */
  exact?: boolean;
}

const CHUNK_ROWS = 500;
/** Limits of bisecting, before and after the first row: where the end of a table is damaged, all beyond it is unreadable. */
const MAX_DAMAGED_RANGES_WITHOUT_ROWS = 200, MAX_DAMAGED_RANGES = 20_000;

/** Quotes a name for SQL. */
export function quotedName(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

/** Text that cannot be decoded, as its bytes in the encoding of its database. SQLite keeps them when they are cast to text. */
export class TextBytes extends Uint8Array {}

/** The parameter of a statement for each cell. */
export function parametersFor(cells: readonly SqlValue[]): string[] {
  return cells.map((cell) => cell instanceof TextBytes ? "CAST(? AS TEXT)" : "?");
}

/**
 * SQL for a cell that `json_array` accepts. That function refuses some BLOBs and takes others for JSON (SQLite's "JSON
 * Functions", "JSONB"), so BLOBs are cast to text. All other values sort before BLOBs; comparing is faster than `typeof`.
 */
export function blobAsText(cell: string): string {
  return `CASE WHEN ${cell} >= x'' THEN CAST(${cell} AS TEXT) ELSE ${cell} END`;
}

/** SQL for the row of a table as a JSON object. The binding would cut text at a NUL. */
export function jsonObjectOf(columns: readonly string[]): string {
  return `json_object(${columns.map((column) => `'${column}', ${blobAsText(column)}`)})`;
}

/** Whether `JSON.parse` may have rounded this integer. */
export function isInexact(value: unknown): boolean {
  return typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value);
}

/**
 * The name by which a table's row number can be read, which columns can hide. Undefined in a table WITHOUT ROWID.
 */
export function rowidOf(db: Connection, table: string): string | undefined {
  const taken = db.all("SELECT lower(name) AS name FROM pragma_table_xinfo(?)", table).map(({ name }) => name);
  const isWithoutRowid = db.get("SELECT wr FROM pragma_table_list(?)", table)?.["wr"] === 1;
  return isWithoutRowid ? undefined : ["rowid", "_rowid_", "oid"].find((name) => !taken.includes(name));
}

/**
 * Yields every row of a table that SQLite can read, in chunks. Text with NUL, text that is not UTF-8 (as
 * {@linkcode TextBytes}), integers over 2^53 (as `bigint`) and BLOBs are exact. A row can come twice. Damage in
 * a table WITHOUT ROWID makes the whole table unreadable.
 *
 * @throws {TelemetryError} every error but damage: `locked`, `io`
 */
export function* readRows(
  db: Connection,
  table: string,
  columns: string[],
  options: ReadOptions = {},
): Generator<ReadRow[], void> {
  const rowid = rowidOf(db, table);
  if (rowid === undefined) return yield* readWithoutRowid(db, table, columns);
  const reader = rangeReader(db, table, rowid, columns, options);
  let damaged = 0, found = false;
  // Leftmost range first, so that intact rows are read before the limit of damaged ranges is reached.
  const pending: [from: bigint, to: bigint][] = [[reader.bound("min"), reader.bound("max")]];
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
      if (from >= to || ++damaged > (found ? MAX_DAMAGED_RANGES : MAX_DAMAGED_RANGES_WITHOUT_ROWS)) continue;
      const middle = from + (to - from) / 2n;
      pending.push([middle + 1n, to], [from, middle]);
    }
  }
}

function* readWithoutRowid(db: Connection, table: string, columns: string[]): Generator<ReadRow[], void> {
  try {
    const rows = new ExactReader(db, columns, `FROM ${quotedName(table)}`).all();
    yield rows.map((cells) => ({ rowid: undefined, cells }));
  } catch (error) {
    if (!hasCode(error, "damaged")) throw error;
  }
}

/** Reads cells with their types. Text comes as bytes, because the binding cuts it at a NUL and replaces what is not UTF-8. */
class ExactReader {
  readonly #statement: Statement;
  readonly #width: number;
  readonly #decoder: TextDecoder;

  constructor(db: Connection, columns: string[], from: string) {
    const cells = columns.map(quotedName).flatMap((name, i) => [
      `CASE typeof(${name}) WHEN 'text' THEN CAST(${name} AS BLOB) ELSE ${name} END AS c${i}`,
      `typeof(${name})='text' AS t${i}`,
    ]);
    this.#statement = db.prepare(`SELECT ${cells} ${from}`);
    this.#statement.readBigInts();
    this.#width = columns.length;
    this.#decoder = textDecoder(String(db.get("PRAGMA encoding")!["encoding"]));
  }

  all(...values: SqlValue[]): SqlValue[][] {
    return this.#statement.all(...values).map((row) =>
      Array.from({ length: this.#width }, (_, i) => {
        const cell = row[`c${i}`] ?? null;
        return row[`t${i}`] ? decodeText(cell as Uint8Array, this.#decoder) : cell;
      })
    );
  }
}

/** A decoder for text of a database. `encoding` is as `PRAGMA encoding` returns it. */
export function textDecoder(encoding: string): TextDecoder {
  return new TextDecoder(encoding, { fatal: true, ignoreBOM: true });
}

export function decodeText(bytes: Uint8Array, decoder: TextDecoder): string | TextBytes {
  try {
    return decoder.decode(bytes);
  } catch {
    return new TextBytes(bytes);
  }
}

/** A number where that is exact. */
function toNumber<T extends SqlValue>(value: T): T | number {
  return typeof value === "bigint" && Number.isSafeInteger(Number(value)) ? Number(value) : value;
}

/** How {@linkcode readRows} reads a table. */
function rangeReader(db: Connection, table: string, rowid: string, columns: string[], { exact }: ReadOptions) {
  // Not through an index, which may be damaged.
  const from = `FROM ${quotedName(table)} NOT INDEXED`;
  const names = columns.map(quotedName);
  // `json_array` cannot hold a BLOB: such a row is read alone.
  const isReadAlone = exact ? "true" : names.map((name) => `typeof(${name})='blob'`).join(" OR ");
  const chunk = db.prepare(
    `SELECT ${rowid} AS at, CASE WHEN ${isReadAlone} THEN NULL ELSE json_array(${names}) END AS cells ${from}
    WHERE ${rowid} BETWEEN ? AND ? ORDER BY ${rowid} LIMIT ${CHUNK_ROWS}`,
  );
  chunk.readBigInts();
  const one = new ExactReader(db, columns, `${from} WHERE ${rowid}=?`);
  return {
    /** The first or last row number; where damage hides it, a number that no table reaches. */
    bound(which: "min" | "max"): bigint {
      try {
        const statement = db.prepare(`SELECT ${which}(${rowid}) AS rowid ${from}`);
        statement.readBigInts();
        return statement.get()!["rowid"] as bigint | null ?? 0n;
      } catch (error) {
        if (!hasCode(error, "damaged")) throw error;
        return which === "min" ? 0n : 2n ** 40n;
      }
    },
    /** The first rows of a range. */
    read(first: bigint, last: bigint): ReadRow[] {
      return chunk.all(first, last).flatMap(({ at, cells: json }) => {
        const rowid = toNumber(at as bigint);
        // The binding replaces bytes that are not UTF-8.
        const isText = typeof json === "string" && !json.includes("\ufffd");
        const parsed = isText ? JSON.parse(json) as SqlValue[] : undefined;
        if (parsed !== undefined && !parsed.some(isInexact)) return { rowid, cells: parsed };
        // There is no row when another process has deleted it meanwhile.
        return one.all(at!).map((cells) => ({ rowid, cells: exact ? cells : cells.map(toNumber) }));
      });
    },
  };
}
