/**
 * Reads whole tables of any size in order, in chunks of JSON: the fastest way to get many rows out of SQLite, and the only
 * one by which text with NUL stays complete.
 * @module
 */
import { Connection, damagedDatabase } from "../sqlite/connection.ts";
import { isInteger } from "../schema.ts";
import { columnNames, inspect } from "../sqlite/migrate.ts";
import { blobAsText, isInexact, rowidOf } from "../sqlite/rows.ts";
import type { Cell } from "./csv.ts";
import type { Definition } from "./request.ts";

/** Some rows of a table, valid until the next ones are read. */
export interface JsonRows {
  /** The JSON arrays of the rows, separated by commas, in UTF-8 unless the database has text that is not UTF-8. */
  json: Uint8Array;
  /** How many rows these are. */
  count: number;
  /** Whether the text may have escapes above U+007F, which SQLite never writes. */
  hasEscapes?: boolean;
  /** The share of the table that has been read. */
  share: number;
}

const LENIENT = new TextDecoder();
const CHUNK_ROWS = 500;
/** How long the text of a chunk should be at most. */
const CHUNK_BYTES = 512 * 1024;

/**
 * Yields all rows of a table in order, as one consistent snapshot. The read transaction blocks no writer in WAL mode. A
 * column that the table lacks is null in each row.
 *
 * @throws {TelemetryError} `damaged`, `locked` …
 */
export function* tableRows(
  database: string,
  { table, order }: Pick<Definition, "table" | "order">,
  columns: readonly string[],
): Generator<JsonRows, void> {
  using db = Connection.openToRead(database);
  inspect(db);
  db.exec("PRAGMA temp_store=MEMORY; BEGIN");
  const existing = columnNames(db, table);
  if (existing.size === 0) return;
  const cells = columns.map((column) => {
    if (!existing.has(column)) return "NULL";
    // In a TEXT column this changes BLOBs only, and it is faster.
    return isInteger(table, column) ? blobAsText(`t.${column}`) : `CAST(t.${column} AS TEXT)`;
  });
  // As bytes, text has the encoding of the database.
  const { encoding } = db.get("PRAGMA encoding")!;
  const json = encoding === "UTF-8" ? "CAST(group_concat(cells) AS BLOB)" : "group_concat(cells)";
  // Ordered in a subquery: `group_concat(… ORDER BY …)` would sort again.
  const chunk = db.prepare(
    `SELECT count(*) AS count, ${json} AS json
    FROM (SELECT json_array(${cells}) AS cells ${chunkSql(db, table, order)})`,
  );
  const { total, bytes } = db.get(
    `SELECT (SELECT count(*) FROM ${table}) AS total, page_count * page_size AS bytes
    FROM pragma_page_count, pragma_page_size`,
  ) as { total: number; bytes: number };
  const rows = Math.max(1, Math.min(CHUNK_ROWS, Math.floor(CHUNK_BYTES * total / bytes)));
  for (let done = 0; done < total;) {
    const { count, json } = chunk.get(rows, done) as { count: number; json: string | Uint8Array };
    done += count;
    if (count === 0 || done > total) {
      throw damagedDatabase(`${db.path} is damaged (${table} has ${total} rows, of which ${done} were found)`);
    }
    const bytes = typeof json === "string" ? new TextEncoder().encode(json) : json as Uint8Array<ArrayBuffer>;
    yield { json: bytes, count, share: done / total };
    // Released now: otherwise hundreds of them wait for the next garbage collection.
    bytes.buffer.transfer(0);
  }
}

/** What follows the columns: a chunk of so many rows from a position. */
function chunkSql(db: Connection, table: string, order: readonly string[]): string {
  const rowid = rowidOf(db, table);
  if (rowid === undefined) return `FROM ${table} AS t ORDER BY ${order} LIMIT ?1 OFFSET ?2`;
  // The order, kept as row numbers: with any number of equal keys, NULLs and BLOBs, each chunk is read directly. Where no
  // two rows have the same first key, its index has the order, and nothing is sorted.
  const tie = db.get(`SELECT 1 FROM ${table} GROUP BY ${order[0]} HAVING count(*) > 1 LIMIT 1`);
  db.exec(`CREATE TEMP TABLE in_order AS SELECT ${rowid} AS at FROM ${table} ORDER BY ${tie ? order : order[0]}`);
  return `FROM temp.in_order AS o CROSS JOIN ${table} AS t ON t.${rowid}=o.at
    WHERE o.rowid > ?2 AND o.rowid <= ?2 + ?1 ORDER BY o.rowid`;
}

/** Parses the rows of {@linkcode tableRows}. Integers that are not safe in JavaScript become BigInts. */
export function parseRows(json: Uint8Array): Cell[][] {
  const text = `[${LENIENT.decode(json)}]`;
  const rows: Cell[][] = JSON.parse(text);
  if (!rows.some((row) => row.some(isInexact))) return rows;
  return parseWithSource(
    text,
    (_, value, { source }) => isInexact(value) && /^-?\d+$/.test(source!) ? BigInt(source!) : value,
  );
}

const parseWithSource = JSON.parse as (
  text: string,
  revive: (key: string, value: unknown, context: { source?: string }) => unknown,
) => Cell[][];
