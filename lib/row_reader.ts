/**
 * Reads the rows of a table through SQLite, around what is damaged.
 * @module
 */
import { hasCode } from "./errors.ts";
import type { Connection, SqlValue, Statement } from "./sqlite.ts";

/** A row that was read. */
export interface ReadRow {
  /** Its number in the table. */
  rowid: number;
  /** Its cells, in the order in which the columns were asked for. */
  cells: SqlValue[];
}

/** How many rows are read at a time. */
const CHUNK_ROWS = 500;
/** How many places may be unreadable before the rest of the table is left: beyond its end, all of it is one such place. */
const MAX_DAMAGED_PLACES = 20_000;

/** A name as SQL takes it. */
export function quotedName(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

/**
 * Every row of a table that SQLite can read, in chunks. Cells come back exactly: text with NUL, integers over 2^53 (as
 * `bigint`) and BLOBs included. A row may come twice.
 *
 * @param db where
 * @param table a table with row numbers
 * @param columns which columns
 * @param onDamage called for each place that cannot be read
 * @throws {TelemetryError} what is no damage: `locked`, `io`
 *
 * @example
 * ```ts
 * import { readRows } from "./row_reader.ts";
 * import { Connection } from "./sqlite.ts";
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
  onDamage: () => void = () => {},
): Generator<ReadRow[], void> {
  const reader = new ChunkReader(db, table, columns);
  let places = 0;
  // Depth first from the left, so that what is whole is read before the places run out.
  const pending: [from: number, to: number][] = [[firstOrLast(db, table, "min"), firstOrLast(db, table, "max")]];
  for (let range; (range = pending.pop()) !== undefined;) {
    let [from, to] = range;
    try {
      for (;;) {
        const rows = reader.read(from, to);
        if (rows.length > 0) yield rows;
        if (rows.length < CHUNK_ROWS) break;
        from = rows.at(-1)!.rowid + 1;
      }
    } catch (error) {
      if (!hasCode(error, "damaged")) throw error;
      onDamage();
      if (from >= to || ++places > MAX_DAMAGED_PLACES) continue;
      const middle = from + Math.floor((to - from) / 2);
      pending.push([middle + 1, to], [from, middle]);
    }
  }
}

/** The first or last row number; where damage hides it, one that no table reaches. */
function firstOrLast(db: Connection, table: string, which: "min" | "max"): number {
  try {
    return Number(db.get(`SELECT ${which}(rowid) AS rowid FROM ${quotedName(table)} NOT INDEXED`)!["rowid"] ?? 0);
  } catch (error) {
    if (!hasCode(error, "damaged")) throw error;
    return which === "min" ? 0 : 2 ** 40;
  }
}

class ChunkReader {
  readonly #chunk: Statement;
  readonly #rowids: Statement;
  readonly #exact: Statement;
  readonly #width: number;

  constructor(db: Connection, table: string, columns: string[]) {
    const names = columns.map(quotedName);
    // Not by an index: that may be what is damaged.
    const where = `FROM ${
      quotedName(table)
    } NOT INDEXED WHERE rowid BETWEEN ? AND ? ORDER BY rowid LIMIT ${CHUNK_ROWS}`;
    // As JSON, because the binding cuts text at a NUL.
    this.#chunk = db.prepare(`SELECT rowid AS at, json_array(${names}) AS cells ${where}`);
    this.#rowids = db.prepare(`SELECT rowid AS at ${where}`);
    const exact = names.flatMap((name, i) => [
      `CASE typeof(${name}) WHEN 'text' THEN json_quote(${name}) ELSE ${name} END AS c${i}`,
      `typeof(${name}) AS t${i}`,
    ]);
    this.#exact = db.prepare(`SELECT ${exact} FROM ${quotedName(table)} NOT INDEXED WHERE rowid=?`);
    this.#exact.readBigInts();
    this.#width = columns.length;
  }

  read(from: number, to: number): ReadRow[] {
    let found;
    try {
      found = this.#chunk.all(from, to);
    } catch (error) {
      // JSON refuses BLOBs, and one that somebody has put there must not cost all other rows.
      if (!hasCode(error, "io")) throw error;
      return this.#rowids.all(from, to).map(({ at }) => this.#readExactly(Number(at)));
    }
    return found.map(({ at, cells }) => {
      const values = JSON.parse(cells as string) as SqlValue[];
      return values.some(isRounded) ? this.#readExactly(Number(at)) : { rowid: Number(at), cells: values };
    });
  }

  #readExactly(rowid: number): ReadRow {
    const row = this.#exact.get(rowid) ?? {};
    const cells = Array.from({ length: this.#width }, (_, i) => {
      const cell = row[`c${i}`] ?? null;
      if (row[`t${i}`] === "text") return JSON.parse(cell as string) as string;
      return typeof cell === "bigint" && Number.isSafeInteger(Number(cell)) ? Number(cell) : cell;
    });
    return { rowid, cells };
  }
}

/** Whether JSON has made a number of this that may not be the one that was there. */
function isRounded(value: SqlValue): boolean {
  return typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value);
}
