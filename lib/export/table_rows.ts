/**
 * Reads whole tables of any size in order, in chunks of JSON: the fastest way to get many rows out of SQLite, and the only
 * one by which text with NUL stays complete.
 * @module
 */
import { Connection, damagedDatabase } from "../sqlite/connection.ts";
import { blobAsText, isInexact, rowidOf } from "../sqlite/rows.ts";
import type { Cell } from "./csv.ts";

/** Some rows of a table. */
export interface JsonRows {
  /** The JSON arrays of the rows, separated by commas, in UTF-8 unless the database has text that is not UTF-8. */
  json: Uint8Array;
  /** How many rows these are. */
  count: number;
  /** How many rows have been read. */
  done: number;
  /** How many rows there are. */
  total: number;
}

/** What {@linkcode tableRows} reads. */
export interface TableQuery {
  table: string;
  /** A column that the table lacks is null in each row. */
  columns: readonly string[];
  order: readonly [first: string, second: string];
}

const CHUNK_ROWS = 500;
/** How long the text of a chunk should be at most. */
const CHUNK_BYTES = 512 * 1024;

/**
 * Yields all rows of a table in order, as one consistent snapshot. The read transaction blocks no writer in WAL mode.
 *
 * @throws {TelemetryError} `damaged`, `locked` …
 */
export function* tableRows(db: Connection, { table, columns, order }: TableQuery): Generator<JsonRows, void> {
  db.exec("PRAGMA temp_store=MEMORY");
  db.run("BEGIN");
  try {
    const described = db.all("SELECT lower(name) AS name, upper(type) AS type FROM pragma_table_xinfo(?)", table);
    if (described.length === 0) return;
    const types = new Map(described.map(({ name, type }) => [name, type]));
    const cells = columns.map((column) => {
      if (!types.has(column)) return "NULL";
      // In a TEXT column this changes BLOBs only, and it is faster.
      return types.get(column) === "TEXT" ? `CAST(t.${column} AS TEXT)` : blobAsText(`t.${column}`);
    });
    const { total, bytes } = db.get(
      `SELECT (SELECT count(*) FROM ${table}) AS total, page_count * page_size AS bytes FROM pragma_page_count, pragma_page_size`,
    ) as { total: number; bytes: number };
    const rows = Math.max(1, Math.min(CHUNK_ROWS, Math.floor(CHUNK_BYTES * total / bytes)));
    // As bytes, text has the encoding of the database.
    const { encoding } = db.get("PRAGMA encoding")!;
    const json = encoding === "UTF-8" ? "CAST(group_concat(cells) AS BLOB)" : "group_concat(cells)";
    // Ordered in a subquery: `group_concat(… ORDER BY …)` would sort again.
    const chunk = db.prepare(
      `SELECT count(*) AS count, ${json} AS json FROM (SELECT json_array(${cells}) AS cells ${
        chunkSql(db, table, order)
      })`,
    );
    let done = 0;
    while (done < total) {
      const { count, json } = chunk.get(rows, done)!;
      if (Number(count) === 0) break;
      done += Number(count);
      yield {
        json: typeof json === "string" ? UTF8.encode(json) : json as Uint8Array,
        count: Number(count),
        done,
        total,
      };
    }
    if (done === total) return;
    throw damagedDatabase(`${db.path} is damaged (${table} has ${total} rows, of which ${done} were found)`);
  } finally {
    db.rollback();
  }
}

/** What follows the columns: a chunk of so many rows from a position. */
function chunkSql(db: Connection, table: string, order: TableQuery["order"]): string {
  const rowid = rowidOf(db, table);
  if (rowid === undefined) return `FROM ${table} AS t ORDER BY ${order} LIMIT ?1 OFFSET ?2`;
  // The order, kept as row numbers: with any number of equal keys, NULLs and BLOBs, each chunk is read directly. Where no
  // two rows have the same first key, its index has the order, and nothing is sorted.
  const tie = db.get(`SELECT 1 FROM ${table} GROUP BY ${order[0]} HAVING count(*) > 1 LIMIT 1`);
  db.exec(`CREATE TEMP TABLE in_order AS SELECT ${rowid} AS at FROM ${table} ORDER BY ${tie ? order : order[0]}`);
  return `FROM temp.in_order AS o CROSS JOIN ${table} AS t ON t.${rowid}=o.at
    WHERE o.rowid > ?2 AND o.rowid <= ?2 + ?1 ORDER BY o.rowid`;
}

const UTF8 = new TextEncoder();
const LENIENT = new TextDecoder();

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
