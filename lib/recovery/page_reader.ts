/**
 * Reads rows from the pages of a database file and its WAL without SQLite, which cannot reach them when the header, the
 * schema or an interior page is destroyed. Pages have no checksum, so callers must validate: a row may hold garbage, or
 * an old version. The terms are those of SQLite's "Database File Format" (sqlite.org/fileformat2.html).
 * @module
 */
import { readFull } from "../fs/atomic_file.ts";
import { sidecarsOf } from "../layout.ts";
import { sizeOf } from "../fs/locate.ts";
import type { SqlValue } from "../sqlite/connection.ts";
import { decodeText, textDecoder } from "../sqlite/rows.ts";

export interface FoundRow {
  /** The table whose b-tree has this page; undefined where no tree leads to it. */
  table: string | undefined;
  rowid: number;
  /** In the order of the stored columns. Old rows lack the columns that were added later. */
  cells: SqlValue[];
}

/** Whether cells can be a row of a table, or where that is undefined, of any table. */
export type IsRow = (table: string | undefined, cells: SqlValue[]) => boolean;

/** A row that cannot be read. */
export interface BrokenRow {
  /** Counted from 1. */
  page: number;
  broken: string;
}

/** One version of a page in the WAL. */
interface Frame {
  page: number;
  /** The offset of the page in the WAL. */
  at: number;
}

const INTERIOR_TABLE = 5, LEAF_TABLE = 13;
const PAGE_TYPES = [2, INTERIOR_TABLE, 10, LEAF_TABLE];
/** In page 1, the file header precedes the page header. */
const FILE_HEADER_BYTES = 100;
const LEAF_HEADER_BYTES = 8, INTERIOR_HEADER_BYTES = 12;
const WAL_HEADER_BYTES = 32, FRAME_HEADER_BYTES = 24;
/** The default first. */
const PAGE_SIZES = [4096, 1024, 2048, 8192, 16384, 32768, 65536, 512];
/** How much of a file without a header is searched for its page size. */
const SAMPLE_BYTES = 1024 * 1024;
/** SQLITE_MAX_LENGTH, by default. */
const MAX_ROW_BYTES = 1_000_000_000;
/** In an intact file, each page is an overflow page of one row at most. Stale rows add some, hostile files many. */
const MAX_READS_PER_OVERFLOW_PAGE = 8;

const LATIN1 = new TextDecoder("latin1");

/**
 * A database file and its WAL as pages. Nothing in this process may have the file open in SQLite: closing these handles
 * drops the process's POSIX locks on it.
 */
export class PageFile implements Disposable {
  readonly pageSize: number;
  readonly #main: RandomFile;
  readonly #wal: RandomFile;
  /** The bytes of a page without the reserved ones at its end. */
  readonly #usable: number;
  readonly #text: TextDecoder;
  /** The frames of each commit in the WAL. */
  readonly #commits: Frame[][];
  /** Which WAL offset `#page` reads a page from, instead of the file. */
  readonly #inWal = new Map<number, number>();
  /** How many more overflow pages may be read: bounds the time that a hostile file takes. */
  #overflowReads = 0;

  /** Either file may be missing. */
  static open(path: string): PageFile {
    return new PageFile(new RandomFile(path), new RandomFile(sidecarsOf(path).wal));
  }

  private constructor(main: RandomFile, wal: RandomFile) {
    this.#main = main;
    this.#wal = wal;
    const header = main.read(0, FILE_HEADER_BYTES);
    const hasHeader = LATIN1.decode(header.subarray(0, 16)) === "SQLite format 3\0";
    const size = hasHeader ? numberAt(header, 16, 2) : 0;
    this.pageSize = PAGE_SIZES.find((known) => known === (size === 1 ? 65536 : size)) ?? this.#guessPageSize();
    this.#usable = this.pageSize - (hasHeader ? header[20]! : 0);
    const encoding = hasHeader ? numberAt(header, 56, 4) : this.#guessEncoding();
    this.#text = textDecoder(encoding === 2 ? "utf-16le" : encoding === 3 ? "utf-16be" : "utf-8");
    this.#commits = this.#readCommits();
  }

  [Symbol.dispose](): void {
    this.#main.close();
    this.#wal.close();
  }

  /**
   * Yields the rows of all leaf pages of tables: those of the file, then those of the WAL, oldest commit first. Free
   * pages are skipped while the free list is intact. A leaf page whose header is destroyed is searched for rows.
   *
   * @param roots the known root page of each table
   * @param isRow judges what a search finds
   * @param options with `onlyTrees`, skips the pages that no root leads to
   */
  *rows(
    roots: Map<string, number>,
    isRow: IsRow,
    { onlyTrees = false } = {},
  ): Generator<FoundRow | BrokenRow, void> {
    // 1. Find the table of each page: in the newest state, then in the file alone, whose WAL may be another database's.
    for (const { page, at } of this.#commits.flat()) this.#inWal.set(page, at);
    const tables = this.#walk(roots);
    this.#inWal.clear();
    for (const [page, table] of this.#walk(roots)) if (!tables.has(page)) tables.set(page, table);
    const isWanted = (page: number) => tables.has(page) || !onlyTrees;
    // 2. The file.
    const free = this.#freePages();
    const pages = Math.ceil(this.#main.size / this.pageSize);
    this.#overflowReads = MAX_READS_PER_OVERFLOW_PAGE * pages;
    for (let page = 1; page <= pages; page++) {
      if (!free.has(page) && isWanted(page)) yield* this.#rowsIn(page, tables.get(page), isRow);
    }
    // 3. The WAL. A row can continue in a later frame of its commit, so apply all frames before reading any.
    for (const frames of this.#commits) {
      for (const { page, at } of frames) this.#inWal.set(page, at);
      this.#overflowReads = MAX_READS_PER_OVERFLOW_PAGE * (pages + frames.length);
      for (const { page } of frames) if (isWanted(page)) yield* this.#rowsIn(page, tables.get(page), isRow);
    }
  }

  /** A page as the frames applied so far have it; empty where there is none. */
  #page(page: number): Uint8Array {
    const at = this.#inWal.get(page);
    return at === undefined
      ? this.#main.read((page - 1) * this.pageSize, this.pageSize)
      : this.#wal.read(at, this.pageSize);
  }

  /**
   * The frames of the WAL's newest generation. SQLite ignores frames behind a torn one, and those without a commit, but
   * intact frames there may have been acknowledged.
   */
  #readCommits(): Frame[][] {
    const header = this.#wal.read(0, WAL_HEADER_BYTES);
    const hasHeader = (numberAt(header, 0, 4) & ~1) === 0x377f0682;
    // The WAL of another database can have another page size.
    if (hasHeader && numberAt(header, 8, 4) !== this.pageSize) return [];
    const salt = hasHeader ? header.subarray(16, 24) : this.#wal.read(WAL_HEADER_BYTES + 8, 8);
    const frameBytes = FRAME_HEADER_BYTES + this.pageSize;
    const commits: Frame[][] = [[]];
    for (let at = WAL_HEADER_BYTES; at + frameBytes <= this.#wal.size; at += frameBytes) {
      const frame = this.#wal.read(at, 16);
      const page = numberAt(frame, 0, 4);
      if (page === 0 || !salt.every((byte, i) => byte === frame[8 + i])) continue;
      commits.at(-1)!.push({ page, at: at + FRAME_HEADER_BYTES });
      const isCommit = numberAt(frame, 4, 4) > 0;
      if (isCommit) commits.push([]);
    }
    return commits;
  }

  /** The table of each page that intact interior pages lead to. */
  #walk(roots: Map<string, number>): Map<number, string> {
    const tables = new Map<number, string>();
    for (const [table, root] of roots) {
      const pending = [root];
      for (let page; (page = pending.pop()) !== undefined;) {
        if (tables.has(page)) continue;
        tables.set(page, table);
        pending.push(...childrenOf(this.#page(page), startOf(page)));
      }
    }
    return tables;
  }

  /** The pages on the free list, which hold deleted rows. */
  #freePages(): Set<number> {
    const free = new Set<number>();
    for (let trunk = numberAt(this.#main.read(0, FILE_HEADER_BYTES), 32, 4); trunk > 0 && !free.has(trunk);) {
      const bytes = this.#page(trunk);
      const count = numberAt(bytes, 4, 4);
      // A damaged list leads to pages that are no trunks, or to none.
      if (bytes.length === 0 || bytes[0] === LEAF_TABLE || count > this.#usable / 4 - 2) break;
      free.add(trunk);
      for (let i = 0; i < count; i++) free.add(numberAt(bytes, 8 + 4 * i, 4));
      trunk = numberAt(bytes, 0, 4);
    }
    return free;
  }

  *#rowsIn(page: number, table: string | undefined, isRow: IsRow): Generator<FoundRow | BrokenRow> {
    const bytes = this.#page(page);
    const start = startOf(page);
    const type = bytes[start] ?? 0;
    const places = type === LEAF_TABLE ? cellsOf(bytes, start) : [];
    const firstPlace = start + LEAF_HEADER_BYTES + 2 * places.length;
    const found = places.map((at): FoundRow | BrokenRow => {
      const row = at < firstPlace || at >= this.#usable ? "its page gives an invalid place" : this.#row(bytes, at);
      return typeof row === "string" ? { page, broken: row } : { table, rowid: row.rowid, cells: row.cells };
    });
    // Outside of all trees, a page that starts with 0 is an overflow page.
    const isDestroyed = !PAGE_TYPES.includes(type) && (table !== undefined || type > 0);
    // Rows at known places come last: a search also finds deleted rows and old versions.
    if (isDestroyed || found.some((row) => "broken" in row)) yield* this.#search(bytes, start, table, isRow);
    yield* found;
  }

  /** Yields the rows in a page that does not give their places, by trying every byte. */
  *#search(bytes: Uint8Array, start: number, table: string | undefined, isRow: IsRow): Generator<FoundRow> {
    for (let at = start; at < this.#usable - 4; at++) {
      const row = this.#row(bytes, at);
      if (typeof row === "string" || row.rowid < 1 || !isRow(table, row.cells)) continue;
      yield { table, rowid: row.rowid, cells: row.cells };
      at = row.end - 1;
    }
  }

  /** The row in a cell of a leaf page, and where the cell ends; or what is wrong with it. */
  #row(bytes: Uint8Array, at: number): { rowid: number; cells: SqlValue[]; end: number } | string {
    const [size, afterSize] = varintAt(bytes, at);
    const [rowid, start] = varintAt(bytes, afterSize);
    if (!(size > 0 && size <= MAX_ROW_BYTES && Number.isSafeInteger(rowid))) return "its length is invalid";
    const payload = this.#payload(bytes, start, size);
    if (payload === undefined) return "its end is missing";
    const cells = this.#record(payload.bytes);
    return cells === undefined ? "its cells are invalid" : { rowid, cells, end: payload.end };
  }

  /** A row's bytes, including those in overflow pages ("Cell Payload Overflow Pages"). */
  #payload(bytes: Uint8Array, at: number, size: number): { bytes: Uint8Array; end: number } | undefined {
    const usable = this.#usable;
    const most = usable - 35;
    const least = Math.floor((usable - 12) * 32 / 255) - 23;
    const spilled = least + (size - least) % (usable - 4);
    const local = size <= most ? size : spilled <= most ? spilled : least;
    if (at + local > bytes.length) return undefined;
    if (local === size) return { bytes: bytes.subarray(at, at + size), end: at + size };
    if (size > this.#main.size + this.#wal.size) return undefined;
    // Follow the chain to its end before allocating: garbage can claim any length, and chains can be circular.
    const chain = new Set<number>();
    let next = numberAt(bytes, at + local, 4);
    for (let left = size - local; left > 0; left -= usable - 4) {
      const overflow = chain.has(next) ? undefined : this.#page(next);
      if (overflow === undefined || overflow.length < usable || --this.#overflowReads < 0) return undefined;
      chain.add(next);
      next = numberAt(overflow, 0, 4);
    }
    const payload = new Uint8Array(size);
    payload.set(bytes.subarray(at, at + local));
    let filled = local;
    for (const page of chain) {
      const part = this.#page(page).subarray(4, Math.min(usable, 4 + size - filled));
      payload.set(part, filled);
      filled += part.length;
    }
    return { bytes: payload, end: at + local + 4 };
  }

  /** The cells of a record ("Record Format"); undefined when its lengths do not add up. */
  #record(payload: Uint8Array): SqlValue[] | undefined {
    const [headerSize, firstType] = varintAt(payload, 0);
    if (!(headerSize > 0 && headerSize <= payload.length)) return undefined;
    const cells: SqlValue[] = [];
    let at = headerSize;
    let header = firstType;
    while (header < headerSize) {
      const [type, end] = varintAt(payload, header);
      const length = lengthOf(type);
      if (Number.isNaN(length) || at + length > payload.length) return undefined;
      cells.push(this.#cell(type, payload.subarray(at, at + length)));
      at += length;
      header = end;
    }
    return header === headerSize && at === payload.length ? cells : undefined;
  }

  /** Integers are `bigint`, because a number binds as REAL. */
  #cell(type: number, bytes: Uint8Array): SqlValue {
    if (type === 0) return null;
    if (type === 8 || type === 9) return BigInt(type - 8);
    if (type === 7) return new DataView(bytes.buffer, bytes.byteOffset).getFloat64(0);
    if (type < 12) return BigInt.asIntN(8 * bytes.length, bytes.reduce((sum, byte) => sum << 8n | BigInt(byte), 0n));
    return type % 2 === 1 ? decodeText(bytes, this.#text) : bytes.slice();
  }

  /** The code of the encoding in which page 1 has the schema. */
  #guessEncoding(): number {
    const text = LATIN1.decode(this.#main.read(0, this.pageSize));
    return text.includes("C\0R\0E\0A\0T\0E\0") ? 2 : text.includes("\0C\0R\0E\0A\0T\0E") ? 3 : 1;
  }

  /** The size in the header of the WAL, or the one with which the largest share of the file looks like pages. */
  #guessPageSize(): number {
    const inWal = numberAt(this.#wal.read(0, WAL_HEADER_BYTES), 8, 4);
    if (PAGE_SIZES.includes(inWal)) return inWal;
    const bytes = this.#main.read(0, SAMPLE_BYTES);
    const shares = PAGE_SIZES.map((size) => {
      let pages = 0;
      // Not page 1: its header is destroyed.
      for (let at = size; at + size <= bytes.length; at += size) if (isPage(bytes.subarray(at, at + size))) pages++;
      return pages / Math.max(1, Math.floor(bytes.length / size) - 1);
    });
    return PAGE_SIZES[shares.indexOf(Math.max(...shares))]!;
  }
}

/** Whether these bytes look like one page: its cells are within it, and one of them near its end. */
function isPage(bytes: Uint8Array): boolean {
  if (!PAGE_TYPES.includes(bytes[0]!) || numberAt(bytes, 3, 2) > bytes.length / 4) return false;
  const last = Math.max(0, ...cellsOf(bytes, 0));
  return last >= bytes.length / 2 && last < bytes.length;
}

function startOf(page: number): number {
  return page === 1 ? FILE_HEADER_BYTES : 0;
}

/** The places of a page's cells, each of which takes at least four bytes. */
function cellsOf(bytes: Uint8Array, start: number): number[] {
  const isLeaf = bytes[start]! >= 10;
  const first = start + (isLeaf ? LEAF_HEADER_BYTES : INTERIOR_HEADER_BYTES);
  const length = Math.floor(Math.min(numberAt(bytes, start + 3, 2), bytes.length / 4));
  return Array.from({ length }, (_, i) => numberAt(bytes, first + 2 * i, 2));
}

function childrenOf(bytes: Uint8Array, start: number): number[] {
  if (bytes[start] !== INTERIOR_TABLE) return [];
  return [numberAt(bytes, start + 8, 4), ...cellsOf(bytes, start).map((cell) => numberAt(bytes, cell, 4))];
}

/** How many bytes a cell of a serial type takes; NaN for the two reserved types. */
function lengthOf(type: number): number {
  return type >= 12 ? Math.floor((type - 12) / 2) : [0, 1, 2, 3, 4, 6, 8, 8, 0, 0][type] ?? NaN;
}

/** A big-endian number; bytes beyond the end count as 0. */
function numberAt(bytes: Uint8Array, at: number, length: 2 | 4): number {
  let value = 0;
  for (let i = 0; i < length; i++) value = value * 256 + (bytes[at + i] ?? 0);
  return value;
}

/** A variable-length integer, and where it ends; NaN where it is cut off. */
function varintAt(bytes: Uint8Array, at: number): [value: number, end: number] {
  // Most have one byte, and arithmetic on `bigint` is slow.
  if (bytes[at]! < 0x80) return [bytes[at]!, at + 1];
  let value = 0n;
  for (let i = 0; i < 9 && at + i < bytes.length; i++) {
    const byte = bytes[at + i]!;
    // All bits of a ninth byte count.
    value = i === 8 ? value << 8n | BigInt(byte) : value << 7n | BigInt(byte & 0x7f);
    if (byte < 0x80 || i === 8) return [Number(BigInt.asIntN(64, value)), at + i + 1];
  }
  return [NaN, bytes.length];
}

/** A file that is read at any place; a missing one is empty. */
class RandomFile {
  readonly size: number;
  readonly #file: Deno.FsFile | undefined;

  constructor(path: string) {
    this.size = sizeOf(path) ?? 0;
    if (this.size > 0) this.#file = Deno.openSync(path);
  }

  /** Fewer bytes at the end, none elsewhere: some file systems refuse to seek as far as garbage leads. */
  read(at: number, length: number): Uint8Array {
    if (this.#file === undefined || at < 0 || at >= this.size) return new Uint8Array(0);
    this.#file.seekSync(at, Deno.SeekMode.Start);
    const bytes = new Uint8Array(Math.min(length, this.size - at));
    return bytes.subarray(0, readFull(this.#file, bytes));
  }

  close(): void {
    this.#file?.close();
  }
}
