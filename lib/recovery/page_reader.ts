/**
 * Reads rows from the pages of a database file and its WAL without SQLite, which cannot reach them when the header, the
 * schema or an interior page is destroyed. Pages have no checksum, so callers must validate: a row may hold garbage, or
 * an old version. The terms are those of SQLite's "Database File Format" (sqlite.org/fileformat2.html).
 * @module
 */
import { Buffer } from "node:buffer";
import { readFull } from "../fs/atomic_file.ts";
import { sidecarsOf } from "../layout.ts";
import { sizeOf } from "../fs/locate.ts";
import type { SqlValue } from "../sqlite/connection.ts";
import { decodeText, textDecoder, toNumber } from "../sqlite/rows.ts";

export interface FoundRow {
  /** Counted from 1. */
  page: number;
  /** The table whose b-tree has this page; undefined where no tree leads to it. */
  table: string | undefined;
  rowid: number | bigint;
  /** In the order of the stored columns. Old rows lack the columns that were added later. Undefined: unreadable. */
  cells: SqlValue[] | undefined;
}

/** Whether cells can be a row of a table, or where that is undefined, of any table. */
export type IsRow = (table: string | undefined, cells: SqlValue[]) => boolean;

/** A version of a page in the WAL, and its offset there. */
type Frame = [page: number, at: number];

const INTERIOR_TABLE = 5, LEAF_TABLE = 13;
const PAGE_TYPES = [2, INTERIOR_TABLE, 10, LEAF_TABLE];
/** In page 1, the file header precedes the page header. */
const FILE_HEADER_BYTES = 100;
const LEAF_HEADER_BYTES = 8, INTERIOR_HEADER_BYTES = 12;
const WAL_HEADER_BYTES = 32, FRAME_HEADER_BYTES = 24;
/** The default first. */
const PAGE_SIZES = [4096, 1024, 2048, 8192, 16384, 32768, 65536, 512];
/** How much of a file without a header is read with each page size. */
const SAMPLE_BYTES = 1024 * 1024;
/** The values of the header's text encoding. */
const ENCODINGS = ["", "utf-8", "utf-16le", "utf-16be"];

/**
 * A database file and its WAL as pages. Nothing in this process may have the file open in SQLite: closing these handles
 * drops the process's POSIX locks on it.
 */
export class PageFile implements Disposable {
  /** Where the header is destroyed, the size in the WAL, or the one with which most rows can be read. */
  readonly pageSize: number;
  /** How many bytes at the end of each page SQLite does not use. macOS reserves some. */
  readonly #reserved: number;
  readonly #main: RandomFile;
  readonly #wal: RandomFile;
  readonly #text: TextDecoder;
  /** The frames of each commit in the WAL. */
  readonly #commits: Frame[][];
  /** Which WAL offset `#page` reads a page from, instead of the file. */
  readonly #inWal = new Map<number, number>();

  /** Opens a database file and its WAL. Either may be missing. */
  constructor(path: string) {
    this.#main = new RandomFile(path);
    this.#wal = new RandomFile(sidecarsOf(path).wal);
    const header = this.#main.read(0, FILE_HEADER_BYTES);
    const hasHeader = new TextDecoder().decode(header.subarray(0, 16)) === "SQLite format 3\0";
    this.#reserved = hasHeader ? header[20]! : 0;
    this.#text = textDecoder(hasHeader && ENCODINGS[numberAt(header, 56, 4)] || "utf-8");
    const sizes = [hasHeader ? numberAt(header, 16, 2) : 0, numberAt(this.#wal.read(0, WAL_HEADER_BYTES), 8, 4)];
    const known = sizes.map((size) => size === 1 ? 65536 : size).find((size) => PAGE_SIZES.includes(size));
    let best = { size: known ?? PAGE_SIZES[0]!, rows: 0 };
    for (const size of known === undefined ? PAGE_SIZES : []) {
      this.pageSize = size;
      const rows = this.#countRows();
      if (rows > best.rows) best = { size, rows };
    }
    this.pageSize = best.size;
    this.#commits = this.#readCommits();
  }

  [Symbol.dispose](): void {
    this.#main.close();
    this.#wal.close();
  }

  /**
   * Yields the rows of all leaf pages of tables: those of pages that no tree leads to first, and those of the WAL after
   * those of the file. Free pages are skipped while the free list is intact. A leaf page whose header is destroyed is
   * searched for what `isRow` accepts. `onlyTrees` skips the pages that no root leads to.
   */
  *rows(roots: Map<string, number>, isRow: IsRow, { onlyTrees = false } = {}): Generator<FoundRow, void> {
    // 1. Find the table of each page: in the newest state, then in the file alone, whose WAL may be another database's.
    for (const [page, at] of this.#commits.flat()) this.#inWal.set(page, at);
    const tables = this.#walk(roots);
    this.#inWal.clear();
    for (const [page, table] of this.#walk(roots)) if (!tables.has(page)) tables.set(page, table);
    const free = this.#freePages();
    const pages = Math.ceil(this.#main.size / this.pageSize);
    for (const isInTree of onlyTrees ? [true] : [false, true]) {
      this.#inWal.clear();
      // 2. The file.
      for (let page = 1; page <= pages; page++) {
        if (!free.has(page) && tables.has(page) === isInTree) yield* this.#rowsIn(page, tables.get(page), isRow);
      }
      // 3. The WAL. A row can continue in a later frame of its commit, so apply all frames before reading any.
      for (const frames of this.#commits) {
        for (const [page, at] of frames) this.#inWal.set(page, at);
        for (const [page] of frames) {
          if (tables.has(page) === isInTree) yield* this.#rowsIn(page, tables.get(page), isRow);
        }
      }
    }
  }

  /** A page as the frames applied so far have it; empty where there is none. */
  #page(page: number): Uint8Array {
    const at = this.#inWal.get(page);
    return at === undefined
      ? this.#main.read((page - 1) * this.pageSize, this.pageSize)
      : this.#wal.read(at, this.pageSize);
  }

  /** How many rows of a part of the file can be read. Not page 1, whose header is destroyed. */
  #countRows(): number {
    let rows = 0;
    for (let page = 2; page <= SAMPLE_BYTES / this.pageSize; page++) {
      const bytes = this.#page(page);
      if (bytes[0] === LEAF_TABLE) rows += cellsOf(bytes, 0).filter((at) => this.#row(bytes, at)).length;
    }
    return rows;
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
      commits.at(-1)!.push([page, at + FRAME_HEADER_BYTES]);
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
      if (bytes.length === 0 || bytes[0] === LEAF_TABLE || count > this.pageSize / 4 - 2) break;
      free.add(trunk);
      for (let i = 0; i < count; i++) free.add(numberAt(bytes, 8 + 4 * i, 4));
      trunk = numberAt(bytes, 0, 4);
    }
    return free;
  }

  *#rowsIn(page: number, table: string | undefined, isRow: IsRow): Generator<FoundRow> {
    const bytes = this.#page(page);
    const start = startOf(page);
    const type = bytes[start] ?? 0;
    const places = type === LEAF_TABLE ? cellsOf(bytes, start) : [];
    const firstPlace = start + LEAF_HEADER_BYTES + 2 * places.length;
    const found = places.map((at) => at < firstPlace ? undefined : this.#row(bytes, at));
    // Outside of all trees, a page that starts with 0 is an overflow page.
    const isDestroyed = !PAGE_TYPES.includes(type) && (table !== undefined || type > 0);
    // Rows at known places come last: a search also finds deleted rows and old versions.
    if (isDestroyed || found.includes(undefined)) {
      // The places are unknown, so try every byte.
      for (let at = start; at < this.pageSize - 4; at++) {
        const row = this.#row(bytes, at);
        if (row === undefined || typeof row.rowid === "bigint" || row.rowid < 1 || !isRow(table, row.cells)) continue;
        yield { page, table, rowid: row.rowid, cells: row.cells };
        at = row.end - 1;
      }
    }
    for (const row of found) yield { page, table, rowid: row?.rowid ?? 0, cells: row?.cells };
  }

  /** The row in a cell of a leaf page, and where the cell ends; undefined when there is none. */
  #row(bytes: Uint8Array, at: number): { rowid: number | bigint; cells: SqlValue[]; end: number } | undefined {
    const [size, afterSize] = varintAt(bytes, at);
    const [rowid, start] = exactVarintAt(bytes, afterSize);
    if (!(size > 0) || Number.isNaN(rowid)) return undefined;
    const payload = this.#payload(bytes, start, size);
    const cells = payload && this.#record(payload.bytes);
    return cells && { rowid, cells, end: payload.end };
  }

  /** A row's bytes, including those in overflow pages ("Cell Payload Overflow Pages"). */
  #payload(bytes: Uint8Array, at: number, size: number): { bytes: Uint8Array; end: number } | undefined {
    const usable = this.pageSize - this.#reserved;
    const most = usable - 35;
    const least = Math.floor((usable - 12) * 32 / 255) - 23;
    const spilled = least + (size - least) % (usable - 4);
    const local = size <= most ? size : spilled <= most ? spilled : least;
    if (at + local > bytes.length) return undefined;
    if (local === size) return { bytes: bytes.subarray(at, at + size), end: at + size };
    if (size > this.#main.size + this.#wal.size) return undefined;
    const parts = [bytes.subarray(at, at + local)];
    // Chains of garbage can be circular.
    const seen = new Set<number>();
    let page = numberAt(bytes, at + local, 4);
    for (let left = size - local; left > 0; left -= usable - 4) {
      const overflow = this.#page(page);
      if (seen.has(page) || overflow.length < usable) return undefined;
      seen.add(page);
      parts.push(overflow.subarray(4, Math.min(usable, 4 + left)));
      page = numberAt(overflow, 0, 4);
    }
    return { bytes: Buffer.concat(parts), end: at + local + 4 };
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
    return type % 2 === 1 ? decodeText(bytes, this.#text) : new Uint8Array(bytes);
  }
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

/** A variable-length integer as a number, and where it ends; NaN where it is cut off. */
function varintAt(bytes: Uint8Array, at: number): [value: number, end: number] {
  const [value, end] = exactVarintAt(bytes, at);
  return [Number(value), end];
}

/** The same; a `bigint` where a number is not exact. */
function exactVarintAt(bytes: Uint8Array, at: number): [value: number | bigint, end: number] {
  // Most have one byte, and arithmetic on `bigint` is slow.
  if (bytes[at]! < 0x80) return [bytes[at]!, at + 1];
  let value = 0n;
  for (let i = 0; i < 9 && at + i < bytes.length; i++) {
    const byte = bytes[at + i]!;
    // All bits of a ninth byte count.
    value = i === 8 ? value << 8n | BigInt(byte) : value << 7n | BigInt(byte & 0x7f);
    if (byte < 0x80 || i === 8) return [toNumber(BigInt.asIntN(64, value)), at + i + 1];
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
