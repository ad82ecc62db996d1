/**
 * Reads the rows of a table through SQLite, around damaged pages.
 * @module
 */
import { hasCode } from "../errors.ts";
import type { Connection, SqlValue } from "./connection.ts";

export interface ReadRow {
  /** Undefined in a table WITHOUT ROWID. */
  rowid: number | bigint | undefined;
  /** In the order in which the columns were asked for. */
  cells: SqlValue[];
}

const CHUNK_ROWS = 500;
/** Limit of bisecting: where the end of a table is damaged, all beyond it is unreadable. */
const MAX_DAMAGED_RANGES = 2000;

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
 * @param options with `exact`, integers are `bigint`, and each cell has its stored type. This is slower, and needed only
 * where the declaration of a column does not determine the type
 * @throws {TelemetryError} every error but damage: `locked`, `io`
 */
export function* readRows(
  db: Connection,
  table: string,
  columns: string[],
  { exact = false } = {},
): Generator<ReadRow[], void> {
  const rowid = rowidOf(db, table);
  if (rowid === undefined) {
    const readAll = exactReader(db, columns, `FROM ${quotedName(table)}`);
    return yield unlessDamaged(readAll)?.map((cells) => ({ rowid, cells })) ?? [];
  }
  // Not through an index, which may be damaged.
  const from = `FROM ${quotedName(table)} NOT INDEXED`;
  const read = rangeReader(db, rowid, columns, from, exact);
  const bound = (which: "min" | "max") => {
    const statement = db.prepare(`SELECT ${which}(${rowid}) AS rowid ${from}`);
    statement.readBigInts();
    return unlessDamaged(() => statement.get()!["rowid"] as bigint | null ?? 0n);
  };
  // Where damage hides the last row, up to a number that no table reaches.
  const pending: [first: bigint, last: bigint][] = [[bound("min") ?? 0n, bound("max") ?? 2n ** 40n]];
  let damaged = 0;
  for (let range; (range = pending.pop()) !== undefined;) {
    const [first, last] = range;
    const rows = unlessDamaged(() => read(first, last));
    if (rows === undefined) {
      if (first >= last || ++damaged > MAX_DAMAGED_RANGES) continue;
      const middle = first + (last - first) / 2n;
      pending.push([middle + 1n, last], [first, middle]);
    } else if (rows.length > 0) {
      yield rows;
      if (rows.length === CHUNK_ROWS) pending.push([BigInt(rows.at(-1)!.rowid!) + 1n, last]);
    }
  }
}

export function countRows(db: Connection, table: string): number {
  return Number(db.get(`SELECT count(*) AS rows FROM ${table}`)!["rows"]);
}

function unlessDamaged<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if (hasCode(error, "damaged")) return undefined;
    throw error;
  }
}

/** Reads cells with their types. Text comes as bytes, because the binding cuts it at a NUL and replaces what is not UTF-8. */
function exactReader(db: Connection, columns: string[], from: string): (...values: SqlValue[]) => SqlValue[][] {
  const cells = columns.map(quotedName).flatMap((name, i) => [
    `CASE typeof(${name}) WHEN 'text' THEN CAST(${name} AS BLOB) ELSE ${name} END AS c${i}`,
    `typeof(${name})='text' AS t${i}`,
  ]);
  const statement = db.prepare(`SELECT ${cells} ${from}`);
  statement.readBigInts();
  const decoder = textDecoder(String(db.get("PRAGMA encoding")!["encoding"]));
  return (...values) =>
    statement.all(...values).map((row) =>
      columns.map((_, i) => {
        const cell = row[`c${i}`] ?? null;
        return row[`t${i}`] ? decodeText(cell as Uint8Array, decoder) : cell;
      })
    );
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
export function toNumber<T extends SqlValue>(value: T): T | number {
  return typeof value === "bigint" && Number.isSafeInteger(Number(value)) ? Number(value) : value;
}

/** Reads the first rows of a range. */
function rangeReader(
  db: Connection,
  rowid: string,
  columns: string[],
  from: string,
  exact: boolean,
): (first: bigint, last: bigint) => ReadRow[] {
  const names = columns.map(quotedName);
  // `json_array` cannot hold a BLOB: such a row is read alone.
  const isReadAlone = exact ? "true" : names.map((name) => `typeof(${name})='blob'`).join(" OR ");
  const chunk = db.prepare(
    `SELECT ${rowid} AS at, CASE WHEN ${isReadAlone} THEN NULL ELSE json_array(${names}) END AS cells ${from}
    WHERE ${rowid} BETWEEN ? AND ? ORDER BY ${rowid} LIMIT ${CHUNK_ROWS}`,
  );
  chunk.readBigInts();
  const readOne = exactReader(db, columns, `${from} WHERE ${rowid}=?`);
  return (first, last) =>
    chunk.all(first, last).flatMap(({ at, cells: json }) => {
      const rowid = toNumber(at as bigint);
      // The binding replaces bytes that are not UTF-8.
      const isText = typeof json === "string" && !json.includes("\ufffd");
      const parsed = isText ? JSON.parse(json) as SqlValue[] : undefined;
      if (parsed !== undefined && !parsed.some(isInexact)) return { rowid, cells: parsed };
      // There is no row when another process has deleted it meanwhile.
      return readOne(at!).map((cells) => ({ rowid, cells: exact ? cells : cells.map(toNumber) }));
    });
}
