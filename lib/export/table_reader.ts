/**
 * Reads whole tables of any size in order, as one consistent snapshot, in chunks that the next one overtakes: while one
 * is worked on, SQLite makes the next ones on a thread of its own.
 *
 * As JSON, which is the fastest way to get many rows out of SQLite, and the only one by which text with NUL stays whole.
 * @module
 */
import type { Cell } from "./csv.ts";
import { hasCode } from "../errors.ts";
import { blobAsText, isInexact, rowidOf } from "../sqlite/rows.ts";
import { Connection, damagedDatabase, isReadOnlyToRead, type Row } from "../sqlite/connection.ts";
import { ThreadConnection } from "../sqlite/thread.ts";

/** Some rows of a table, and how far they bring it. */
export interface JsonRows {
  /** The JSON arrays of the rows, with commas between them, as UTF-8 (text that is no UTF-8 in the database aside). */
  json: Uint8Array;
  /** How many they are. */
  count: number;
  /** How many rows are read with these. */
  done: number;
  /** How many there are. */
  total: number;
}

/** What {@linkcode tableRows} reads. */
export interface TableQuery {
  /** The table. */
  table: string;
  /** Its columns; one that the table lacks is null in each row. */
  columns: readonly string[];
  /** The columns that the rows are ordered by, the first one with an index if there is one. */
  order: readonly [first: string, second: string];
}

/** A connection on this thread or on another. */
type Reader = Pick<Connection | ThreadConnection, "path" | "exec" | "all">;

/** A part of the table: what follows `SELECT … `, as far as it differs, and the values in it. */
interface Chunk {
  from: string;
  order: string;
  values: number[];
}

/** How many rows a chunk has, and how long its text should be at most. */
const CHUNK_ROWS = 500;
const CHUNK_BYTES = 512 * 1024;
/** How many chunks are asked for at a time: so many wait in memory. */
const AHEAD = 3;
/** A table with fewer pages is read in less time than a thread takes to start. */
const SMALL_PAGES = 2000;

/**
 * All rows of a table, in order. Holds a read transaction, which holds up no writer in WAL mode.
 *
 * @param db open for reading; where it is a large file, the file is read on another thread
 * @param query what is read
 * @throws {TelemetryError} `damaged`, `locked` …
 */
export async function* tableRows(db: Connection, query: TableQuery): AsyncGenerator<JsonRows, void> {
  const pages = Number(db.get("PRAGMA page_count")!["page_count"]);
  await using thread = pages < SMALL_PAGES ? undefined : await threadOn(db.path);
  yield* readAll(thread ?? db, query, rowidOf(db, query.table) ?? "rowid");
}

/** Opens as `Connection.openToRead` does; undefined where that had to read the file into memory. */
async function threadOn(path: string): Promise<ThreadConnection | undefined> {
  let thread: ThreadConnection | undefined;
  try {
    thread = await ThreadConnection.open(path, { readOnly: isReadOnlyToRead(path) });
    await thread.all("SELECT count(*) FROM sqlite_schema");
    return thread;
  } catch (error) {
    await thread?.close();
    if (hasCode(error, "permission")) return undefined;
    throw error;
  }
}

async function* readAll(
  reader: Reader,
  { table, columns, order }: TableQuery,
  rowid: string,
): AsyncGenerator<JsonRows, void> {
  await reader.exec("BEGIN");
  const described = await reader.all(
    "SELECT lower(name) AS name, upper(type) AS type FROM pragma_table_info(?)",
    table,
  );
  if (described.length === 0) return;
  const types = new Map(described.map(({ name, type }) => [name, type]));
  const cells = columns.map((column) => {
    if (!types.has(column)) return "NULL";
    // Which is faster, and changes nothing else in a column of text.
    return types.get(column) === "TEXT" ? `CAST(t.${column} AS TEXT)` : blobAsText(`t.${column}`);
  });
  const total = numberIn(await reader.all(`SELECT count(*) FROM ${table}`));
  const bytes = numberIn(await reader.all("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"));
  const rows = Math.max(1, Math.min(CHUNK_ROWS, Math.floor(CHUNK_BYTES * total / bytes)));
  const chunks = await chunksByIndex(reader, table, rowid, order, rows) ??
    await chunksBySorting(reader, table, rowid, order, rows, total);
  // As bytes, it is in the encoding of the database.
  const { encoding } = (await reader.all("PRAGMA encoding"))[0]!;
  const json = encoding === "UTF-8" ? "CAST(group_concat(cells) AS BLOB)" : "group_concat(cells)";
  let done = 0;
  for await (const { count, json: rows } of ahead(chunks, (chunk) => readChunk(reader, json, cells, chunk))) {
    done += Number(count);
    const bytes = typeof rows === "string" ? UTF8.encode(rows) : rows;
    if (bytes instanceof Uint8Array) yield { json: bytes, count: Number(count), done, total };
  }
  if (done === total) return;
  throw damagedDatabase(`${reader.path} is damaged (${table} has ${total} rows, of which ${done} are found)`);
}

/**
 * The table cut by an index on the first column: known at once, also for millions of rows. Undefined where there is no
 * such index, or where a value comes so often that it does not fit into a chunk.
 *
 * A chunk is named by the rows at its ends, not by their values: text with NUL would not come through whole.
 */
async function chunksByIndex(
  reader: Reader,
  table: string,
  rowid: string,
  [first, second]: TableQuery["order"],
  rows: number,
): Promise<Chunk[] | undefined> {
  const plan = await reader.all(`EXPLAIN QUERY PLAN SELECT ${rowid} FROM ${table} ORDER BY ${first}`);
  if (plan.some(({ detail }) => String(detail).includes("TEMP B-TREE"))) return undefined;
  if ((await reader.all(`SELECT 1 FROM ${table} WHERE ${first} IS NULL LIMIT 1`)).length > 0) return undefined;
  const valueAt = (row: string) => `(SELECT ${first} FROM ${table} WHERE ${rowid}=${row})`;
  const next = (where: string) =>
    `(SELECT ${rowid} FROM ${table} ${where} ORDER BY ${first} LIMIT 1 OFFSET ${rows - 1})`;
  const cuts = await reader.all(
    `WITH RECURSIVE cut(after, upto) AS (
      SELECT NULL, ${next("")} UNION ALL
      SELECT upto, ${next(`WHERE ${first} > ${valueAt("cut.upto")}`)} FROM cut WHERE upto IS NOT NULL)
    SELECT after, upto,
      (SELECT count(*) FROM ${table} WHERE ${first} = ${valueAt("cut.upto")}) AS same,
      (SELECT count(*) FROM (SELECT DISTINCT ${first} FROM ${table}
        WHERE ${first} > ${valueAt("cut.after")} AND ${first} <= ${valueAt("cut.upto")})) AS different
    FROM cut`,
  );
  if (cuts.some(({ same }) => Number(same) > 4 * CHUNK_ROWS)) return undefined;
  return cuts.map(({ after, upto, different }) => {
    const bounds = [
      after === null ? "" : `t.${first} > ${valueAt("?")}`,
      upto === null ? "" : `t.${first} <= ${valueAt("?")}`,
    ];
    return {
      from: `${table} AS t WHERE ${bounds.filter((bound) => bound !== "").join(" AND ") || "true"}`,
      // Where the index alone gives the order, it costs nothing.
      order: different === rows ? `t.${first}` : `t.${first}, t.${second}`,
      values: [after, upto].filter((row) => row !== null).map(Number),
    };
  });
}

/** The table cut by a sorted list of its rows, which SQLite keeps, on the disk when it grows. */
async function chunksBySorting(
  reader: Reader,
  table: string,
  rowid: string,
  order: TableQuery["order"],
  rows: number,
  total: number,
): Promise<Chunk[]> {
  await reader.exec(`CREATE TEMP TABLE in_order AS SELECT ${rowid} AS at FROM ${table} ORDER BY ${order}`);
  return Array.from({ length: Math.ceil(total / rows) }, (_, i) => ({
    from: `temp.in_order AS o CROSS JOIN ${table} AS t ON t.${rowid}=o.at WHERE o.rowid BETWEEN ? AND ?`,
    order: "o.rowid",
    values: [i * rows + 1, (i + 1) * rows],
  }));
}

/** What the chunks become, in order; the next ones are asked for before one is wanted. */
async function* ahead<T>(chunks: Chunk[], read: (chunk: Chunk) => Promise<T>): AsyncGenerator<T, void> {
  const asked: Promise<T>[] = [];
  for (const chunk of chunks) {
    const reading = read(chunk);
    // Whoever stops at the error of one does not wait for the others.
    reading.catch(() => {});
    asked.push(reading);
    if (asked.length >= AHEAD) yield await asked.shift()!;
  }
  for (const reading of asked) yield await reading;
}

async function readChunk(reader: Reader, json: string, cells: string[], { from, order, values }: Chunk): Promise<Row> {
  // Ordered in a subquery, where an index saves the sorting; in `group_concat(… ORDER BY …)` it would not.
  const rows = await reader.all(
    `SELECT count(*) AS count, ${json} AS json
    FROM (SELECT json_array(${cells}) AS cells FROM ${from} ORDER BY ${order})`,
    ...values,
  );
  return rows[0]!;
}

const UTF8 = new TextEncoder();
const LENIENT = new TextDecoder();

/**
 * The rows as values. Integers that JavaScript cannot hold as numbers are told by the digits that stand there.
 *
 * @param json from {@linkcode tableRows}
 */
export function parsedRows(json: Uint8Array): Cell[][] {
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

function numberIn(rows: Row[]): number {
  return Number(Object.values(rows[0]!)[0]);
}
