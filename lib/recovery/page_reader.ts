/**
 * Reads rows from the pages of a database file and of its WAL without SQLite, for what SQLite cannot reach any more:
 * header, schema or the pages above are gone. What comes out is untrusted, since no page has a checksum: a row may hold
 * garbage, or be an old one.
 *
 * After SQLite's documentation, "Database File Format" (sqlite.org/fileformat2.html), whose words are used here.
 * @module
 */
import { fill } from "../fs/atomic_file.ts";
import { sidecarsOf } from "../layout.ts";
import { sizeOf } from "../fs/locate.ts";
import type { SqlValue } from "../sqlite/connection.ts";

/** A row as it stands in a page: cells in the order in which the table declared them. */
export interface FoundRow {
  /** The table whose tree leads here; undefined where nothing says so any more. */
  table: string | undefined;
  /** Its number in the table. */
  rowid: number;
  /** Its cells; fewer than the table has columns where columns were added later. */
  cells: SqlValue[];
}

/**
 * Whether cells look like a row of a table, or of any table where it is undefined. Without it nothing would tell a row
 * from bytes that happen to add up.
 */
export type LooksLikeRow = (table: string | undefined, cells: SqlValue[]) => boolean;

/** A row that breaks off, or a page that is none. */
export interface BrokenRow {
  /** The page that it is in, from 1. */
  page: number;
  /** What is wrong with it. */
  broken: string;
}

/** A version of a page in the WAL. */
interface Frame {
  page: number;
  /** Where it starts in the WAL. */
  at: number;
}

/** The bytes that a page's own header takes; the pointers to its cells follow. */
const LEAF_HEADER_BYTES = 8, INTERIOR_HEADER_BYTES = 12;
/** The types of page that matter here. */
const INTERIOR_INDEX = 2, INTERIOR_TABLE = 5, LEAF_INDEX = 10, LEAF_TABLE = 13;
const TYPES = [INTERIOR_INDEX, INTERIOR_TABLE, LEAF_INDEX, LEAF_TABLE];
/** The database's header, at the start of page 1. */
const FILE_HEADER_BYTES = 100;
const WAL_HEADER_BYTES = 32, FRAME_HEADER_BYTES = 24;
/** The sizes that a page may have, the usual one first. */
const PAGE_SIZES = [4096, 1024, 2048, 8192, 16384, 32768, 65536, 512];
/** How much of a file is read at a time. */
const BLOCK_BYTES = 1024 * 1024;
/** The most that SQLite lets a row have (its default for SQLITE_MAX_LENGTH). */
const MAX_ROW_BYTES = 1_000_000_000;

/**
 * A database file with its WAL, page by page. Nobody may have it open in SQLite in this process: closing these files
 * would drop SQLite's locks.
 *
 * @example
 * ```ts no-eval
 * import { PageFile } from "./page_reader.ts";
 *
 * using file = PageFile.open("telemetry.corrupted.20251210_120000.sqlite");
 * for (const row of file.rows(new Map([["agent_runs", 2]]), (_, cells) => cells.length === 31)) console.log(row);
 * ```
 */
export class PageFile implements Disposable {
  /** How many bytes a page has. */
  readonly pageSize: number;
  readonly #main: Blocks | undefined;
  readonly #wal: Blocks | undefined;
  /** How many bytes of a page are used. */
  readonly #usable: number;
  readonly #text: TextDecoder;
  /** What is in the WAL. */
  readonly #commits: Frame[][];
  /** Where the page's newest version starts in the WAL, as far as its frames were read. */
  readonly #inWal = new Map<number, number>();

  private constructor(main: Blocks | undefined, wal: Blocks | undefined) {
    this.#main = main;
    this.#wal = wal;
    const header = main?.read(0, FILE_HEADER_BYTES);
    const isHeader = header !== undefined && LATIN1.decode(header.subarray(0, 16)) === "SQLite format 3\0";
    const size = isHeader ? numberAt(header, 16, 2) : 0;
    this.pageSize = PAGE_SIZES.find((known) => known === (size === 1 ? 65536 : size)) ?? this.#guessPageSize();
    this.#usable = this.pageSize - (isHeader ? header[20]! : 0);
    const encoding = isHeader ? numberAt(header, 56, 4) : this.#guessEncoding();
    const name = encoding === 2 ? "utf-16le" : encoding === 3 ? "utf-16be" : "utf-8";
    this.#text = new TextDecoder(name, { fatal: true, ignoreBOM: true });
    this.#commits = [...this.#readCommits()];
  }

  /** Opens a file and its WAL; either may be missing. */
  static open(path: string): PageFile {
    const { wal } = sidecarsOf(path);
    const open = (file: string, least: number) => (sizeOf(file) ?? 0) > least ? new Blocks(file) : undefined;
    return new PageFile(open(path, 0), open(wal, WAL_HEADER_BYTES));
  }

  /** Closes the files. */
  [Symbol.dispose](): void {
    this.#main?.close();
    this.#wal?.close();
  }

  /**
   * Every row in a leaf page of a table: those of the file first, then those of the WAL, older frames first. Pages that
   * are free are left out, as far as that can be told. Where a page does not say any more where its rows are, they are
   * sought byte by byte.
   *
   * @param roots the root page of each table, as far as it is known
   * @param looksLikeRow judges what was sought byte by byte
   * @param elsewhere whether to look into pages too to which no root leads any more
   */
  *rows(
    roots: Map<string, number>,
    looksLikeRow: LooksLikeRow,
    elsewhere: boolean = true,
  ): Generator<FoundRow | BrokenRow, void> {
    this.#showWal();
    const tables = this.#walk(roots);
    this.#inWal.clear();
    for (const [page, table] of this.#walk(roots)) if (!tables.has(page)) tables.set(page, table);
    const isRead = (page: number) => elsewhere || tables.has(page);
    const free = this.#freePages();
    const count = this.#main === undefined ? 0 : Math.ceil(this.#main.size / this.pageSize);
    for (let page = 1; page <= count; page++) {
      if (!free.has(page) && isRead(page)) yield* this.#rowsOf(page, tables.get(page), looksLikeRow);
    }
    for (const frames of this.#commits) {
      // All at once: a long row goes on in later frames.
      for (const { page, at } of frames) this.#inWal.set(page, at);
      for (const { page } of frames) if (isRead(page)) yield* this.#rowsOf(page, tables.get(page), looksLikeRow);
    }
  }

  /** Has every page come in its newest version. */
  #showWal(): void {
    for (const { page, at } of this.#commits.flat()) this.#inWal.set(page, at);
  }

  /**
   * The entries of an index, as far as the pages are whole that lead to them: the cells that it is made of, and the
   * number of the row.
   *
   * @param root the root page of the index
   */
  *indexEntries(root: number): Generator<SqlValue[], void> {
    this.#showWal();
    const seen = new Set<number>();
    for (const pending = [root]; pending.length > 0;) {
      const page = pending.pop()!;
      const bytes = seen.has(page) ? undefined : this.#page(page)?.slice();
      seen.add(page);
      const type = bytes?.[0];
      if (bytes === undefined || (type !== LEAF_INDEX && type !== INTERIOR_INDEX)) continue;
      pending.push(...this.#children(page, bytes));
      for (const cell of cellsIn(bytes, 0)) {
        // In an interior page, a cell starts with the page that it leads to.
        const reader = new VarintReader(bytes, type === LEAF_INDEX ? cell : cell + 4);
        const size = reader.next();
        const payload = size > 0 && size <= MAX_ROW_BYTES && cell < this.#usable
          ? this.#payload(bytes, reader.at, size, Math.floor((this.#usable - 12) * 64 / 255) - 23)
          : undefined;
        const cells = payload && this.#record(payload.bytes);
        if (cells !== undefined) yield cells;
      }
    }
  }

  /** The newest version of a page that is known by now; undefined where the file has no such page. */
  #page(page: number): Uint8Array | undefined {
    if (page < 1) return undefined;
    const at = this.#inWal.get(page);
    const bytes = at === undefined
      ? this.#main?.read((page - 1) * this.pageSize, this.pageSize)
      : this.#wal!.read(at, this.pageSize);
    return bytes?.length === 0 ? undefined : bytes;
  }

  /**
   * The frames of the WAL's newest generation, commit by commit. Those after a torn one count too, and those that no
   * commit follows: SQLite would not read them, but what is whole in there may have been acknowledged.
   */
  *#readCommits(): Generator<Frame[]> {
    if (this.#wal === undefined) return;
    const header = this.#wal.read(0, WAL_HEADER_BYTES).slice();
    const isHeader = (numberAt(header, 0, 4) & ~1) === 0x377f0682;
    // The WAL of another database may have pages of another size.
    if (isHeader && numberAt(header, 8, 4) !== this.pageSize) return;
    const salt = isHeader ? header.slice(16, 24) : this.#wal.read(WAL_HEADER_BYTES + 8, 8).slice();
    const step = FRAME_HEADER_BYTES + this.pageSize;
    let frames: Frame[] = [];
    for (let at = WAL_HEADER_BYTES; at + step <= this.#wal.size; at += step) {
      const frame = this.#wal.read(at, 16);
      const page = numberAt(frame, 0, 4);
      if (page === 0 || !salt.every((byte, i) => byte === frame[8 + i])) continue;
      frames.push({ page, at: at + FRAME_HEADER_BYTES });
      if (numberAt(frame, 4, 4) === 0) continue;
      yield frames;
      frames = [];
    }
    yield frames;
  }

  /** Which table each page belongs to, for as long as the pages above it are whole. */
  #walk(roots: Map<string, number>): Map<number, string> {
    const tables = new Map<number, string>();
    for (const [table, root] of roots) {
      const pending = [root];
      for (let page; (page = pending.pop()) !== undefined;) {
        if (tables.has(page)) continue;
        const bytes = this.#page(page);
        if (bytes === undefined) continue;
        tables.set(page, table);
        pending.push(...this.#children(page, bytes));
      }
    }
    return tables;
  }

  /** The pages that an interior page leads to. */
  #children(page: number, bytes: Uint8Array): number[] {
    const start = startOf(page);
    if (bytes[start] !== INTERIOR_TABLE && bytes[start] !== INTERIOR_INDEX) return [];
    const cells = cellsIn(bytes, start).filter((cell) => cell + 4 <= bytes.length);
    return [numberAt(bytes, start + 8, 4), ...cells.map((cell) => numberAt(bytes, cell, 4))];
  }

  /** The pages on the free list: what is in there was deleted. */
  #freePages(): Set<number> {
    const free = new Set<number>();
    const header = this.#main?.read(0, FILE_HEADER_BYTES);
    if (header === undefined || header.length < FILE_HEADER_BYTES) return free;
    for (let trunk = numberAt(header, 32, 4); trunk > 0 && !free.has(trunk);) {
      const bytes = this.#page(trunk);
      // A trunk page that holds rows is none: the list is damaged.
      if (bytes === undefined || bytes[0] === LEAF_TABLE) break;
      const count = numberAt(bytes, 4, 4);
      if (count > this.#usable / 4 - 2) break;
      free.add(trunk);
      for (let i = 0; i < count; i++) free.add(numberAt(bytes, 8 + 4 * i, 4));
      trunk = numberAt(bytes, 0, 4);
    }
    return free;
  }

  *#rowsOf(
    page: number,
    table: string | undefined,
    looksLikeRow: LooksLikeRow,
  ): Generator<FoundRow | BrokenRow> {
    const bytes = this.#page(page)?.slice(); // overflow pages are read meanwhile
    if (bytes === undefined) return;
    const start = startOf(page);
    const rows: FoundRow[] = [];
    const broken: BrokenRow[] = [];
    const cells = bytes[start] === LEAF_TABLE ? cellsIn(bytes, start) : [];
    const firstCell = start + LEAF_HEADER_BYTES + 2 * cells.length;
    for (const cell of cells) {
      const row = cell < firstCell ? "it is not where its page says" : this.#row(bytes, cell);
      if (typeof row === "string") broken.push({ page, broken: row });
      else rows.push({ table, rowid: row.rowid, cells: row.cells });
    }
    if (broken.length > 0 || mayHaveBeenLeaf(bytes, start, table)) {
      const known = new Set(rows.map(({ rowid }) => rowid));
      for (const row of this.#sought(bytes, start, table, looksLikeRow)) if (!known.has(row.rowid)) yield row;
    }
    yield* rows;
    yield* broken;
  }

  /** The rows in a page that does not say any more where they are. */
  *#sought(
    bytes: Uint8Array,
    start: number,
    table: string | undefined,
    looksLikeRow: LooksLikeRow,
  ): Generator<FoundRow> {
    for (let at = start; at < this.#usable - 4;) {
      const row = this.#row(bytes, at);
      if (typeof row !== "string" && row.rowid > 0 && looksLikeRow(table, row.cells)) {
        yield { table, rowid: row.rowid, cells: row.cells };
        at = row.end;
      } else {
        at++;
      }
    }
  }

  /** The row in a cell of a leaf, and where the cell ends; or what is wrong with it. */
  #row(bytes: Uint8Array, cell: number): { rowid: number; cells: SqlValue[]; end: number } | string {
    if (cell >= this.#usable) return "it is not where its page says";
    const reader = new VarintReader(bytes, cell);
    const size = reader.next();
    const rowid = reader.next();
    if (!(size > 0 && size <= MAX_ROW_BYTES && Number.isSafeInteger(rowid))) return "its length makes no sense";
    const payload = this.#payload(bytes, reader.at, size);
    if (payload === undefined) return "it breaks off";
    const cells = this.#record(payload.bytes);
    return cells === undefined ? "its cells make no sense" : { rowid, cells, end: payload.end };
  }

  /**
   * The whole of a row, with what goes on in overflow pages, and where its cell ends.
   *
   * @param most how many bytes a page takes of it at most
   */
  #payload(
    bytes: Uint8Array,
    at: number,
    size: number,
    most: number = this.#usable - 35,
  ): { bytes: Uint8Array; end: number } | undefined {
    const usable = this.#usable;
    const least = Math.floor((usable - 12) * 32 / 255) - 23;
    const spilled = least + (size - least) % (usable - 4);
    const local = size <= most ? size : spilled <= most ? spilled : least;
    if (at + local > bytes.length) return undefined;
    if (local === size) return { bytes: bytes.subarray(at, at + size), end: at + size };
    if (size > (this.#main?.size ?? 0) + (this.#wal?.size ?? 0)) return undefined;
    let next = at + local + 4 <= bytes.length ? numberAt(bytes, at + local, 4) : 0;
    // Followed to its end before anything is made room for: when rows are sought byte by byte, most of this is garbage.
    const chain = new Set<number>();
    for (let left = size - local; left > 0; left -= usable - 4) {
      const overflow = chain.has(next) ? undefined : this.#page(next);
      if (overflow === undefined || overflow.length < usable) return undefined;
      chain.add(next);
      next = numberAt(overflow, 0, 4);
    }
    const payload = new Uint8Array(size);
    payload.set(bytes.subarray(at, at + local));
    let filled = local;
    for (const page of chain) {
      const part = this.#page(page)!.subarray(4, Math.min(usable, 4 + size - filled));
      payload.set(part, filled);
      filled += part.length;
    }
    return { bytes: payload, end: at + local + 4 };
  }

  /** The cells of a record ("Record Format"); undefined when its parts do not add up. */
  #record(payload: Uint8Array): SqlValue[] | undefined {
    const header = new VarintReader(payload, 0);
    const headerSize = header.next();
    if (!(headerSize > 0 && headerSize <= payload.length)) return undefined;
    const cells: SqlValue[] = [];
    let at = headerSize;
    while (header.at < headerSize) {
      const type = header.next();
      const length = lengthOf(type);
      if (Number.isNaN(length) || at + length > payload.length) return undefined;
      cells.push(this.#cell(type, payload.subarray(at, at + length)));
      at += length;
    }
    return header.at === headerSize && at === payload.length ? cells : undefined;
  }

  /** A cell. Integers are `bigint`, which SQLite takes for integers; text that cannot be decoded stays bytes. */
  #cell(type: number, bytes: Uint8Array): SqlValue {
    if (type === 0) return null;
    if (type === 8 || type === 9) return BigInt(type - 8);
    if (type === 7) return viewOf(bytes).getFloat64(0);
    if (type < 12) return signed(bytes);
    try {
      return type % 2 === 1 ? this.#text.decode(bytes) : bytes.slice();
    } catch {
      return bytes.slice();
    }
  }

  /** The number of the encoding in which the schema speaks. */
  #guessEncoding(): number {
    const text = LATIN1.decode(this.#main?.read(0, this.pageSize));
    const found = ["C\0R\0E\0A\0T\0E\0", "\0C\0R\0E\0A\0T\0E"].findIndex((word) => text.includes(word));
    return found < 0 ? 1 : found + 2;
  }

  /** The size with which most of the file's beginning looks like pages. */
  #guessPageSize(): number {
    const header = this.#wal?.read(0, WAL_HEADER_BYTES);
    const inWal = header === undefined ? 0 : numberAt(header, 8, 4);
    if (PAGE_SIZES.includes(inWal)) return inWal;
    const bytes = this.#main?.read(0, BLOCK_BYTES) ?? new Uint8Array(0);
    const shares = PAGE_SIZES.map((size) => {
      let pages = 0;
      // Not the first one: its header is what is gone.
      for (let at = size; at + size <= bytes.length; at += size) if (isPage(bytes.subarray(at, at + size))) pages++;
      return pages / Math.max(1, Math.floor(bytes.length / size) - 1);
    });
    return PAGE_SIZES[shares.indexOf(Math.max(...shares))]!;
  }
}

/**
 * Whether these bytes are one page. All of its cells are within it, and the first of them is at its end: with a size that
 * is too large, they end half way.
 */
function isPage(bytes: Uint8Array): boolean {
  if (!TYPES.includes(bytes[0]!) || numberAt(bytes, 3, 2) > bytes.length / 4) return false;
  const last = Math.max(0, ...cellsIn(bytes, 0));
  return last >= bytes.length / 2 && last < bytes.length;
}

/** Where the cells of a page start, as its pointers say. No page has more than one for each four of its bytes. */
function cellsIn(bytes: Uint8Array, start: number): number[] {
  const isLeaf = bytes[start] === LEAF_TABLE || bytes[start] === LEAF_INDEX;
  const first = start + (isLeaf ? LEAF_HEADER_BYTES : INTERIOR_HEADER_BYTES);
  const length = Math.floor(Math.min(numberAt(bytes, start + 3, 2), bytes.length / 4));
  return Array.from({ length }, (_, i) => numberAt(bytes, first + 2 * i, 2));
}

/** Where a page's own header starts: page 1 has the file's before it. */
function startOf(page: number): number {
  return page === 1 ? FILE_HEADER_BYTES : 0;
}

/** Whether a page, which does not say so any more, may have been a leaf of a table. */
function mayHaveBeenLeaf(bytes: Uint8Array, start: number, table: string | undefined): boolean {
  const type = bytes[start]!;
  if (TYPES.includes(type)) return false;
  // Overflow pages start with a page number, which is small or 0.
  return table !== undefined || type > 0 || bytes.subarray(start, start + 16).every((byte) => byte === 0);
}

/** How many bytes a cell of this serial type has; NaN for the two that are not used. */
function lengthOf(type: number): number {
  if (type >= 12) return Math.floor((type - 12) / 2);
  return [0, 1, 2, 3, 4, 6, 8, 8, 0, 0, NaN, NaN][type] ?? NaN;
}

/** A big-endian number in two's complement. */
function signed(bytes: Uint8Array): bigint {
  let value = 0n;
  for (const byte of bytes) value = value << 8n | BigInt(byte);
  return BigInt.asIntN(8 * bytes.length, value);
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** A big-endian number; 0 for what is beyond the end. */
function numberAt(bytes: Uint8Array, at: number, length: 2 | 4): number {
  let value = 0;
  for (let i = 0; i < length; i++) value = value * 256 + (bytes[at + i] ?? 0);
  return value;
}

const LATIN1 = new TextDecoder("latin1");

/** Reads SQLite's variable-length integers, one after the other. */
class VarintReader {
  at: number;
  readonly #bytes: Uint8Array;

  constructor(bytes: Uint8Array, at: number) {
    this.#bytes = bytes;
    this.at = at;
  }

  /** The next one; NaN beyond the end. */
  next(): number {
    let value = 0;
    for (let i = 0; i < 9; i++) {
      const byte = this.#bytes[this.at++];
      if (byte === undefined) return NaN;
      if (i === 8) return this.#long();
      value = value * 128 + (byte & 0x7f);
      if (byte < 0x80) break;
    }
    return value;
  }

  /** The one of nine bytes that ends here: all bits of the last byte count, and the first one is the sign. */
  #long(): number {
    const bytes = this.#bytes.subarray(this.at - 9, this.at);
    const value = bytes.reduce(
      (sum, byte, i) => i < 8 ? sum << 7n | BigInt(byte & 0x7f) : sum << 8n | BigInt(byte),
      0n,
    );
    return Number(BigInt.asIntN(64, value));
  }
}

/** A file that is read in blocks: pages lie side by side. */
class Blocks {
  readonly size: number;
  readonly #file: Deno.FsFile;
  readonly #block = new Uint8Array(BLOCK_BYTES);
  #start = -1;
  #filled = 0;

  constructor(path: string) {
    this.#file = Deno.openSync(path);
    this.size = sizeOf(path)!;
  }

  /** Some bytes, fewer at the end; gone with the next call. */
  read(at: number, length: number): Uint8Array {
    // What garbage leads to: some file systems refuse to look so far.
    if (at < 0 || at >= this.size) return this.#block.subarray(0, 0);
    if (this.#start < 0 || at < this.#start || at + length > this.#start + this.#filled) this.#fill(at);
    return this.#block.subarray(at - this.#start, at - this.#start + length).subarray(
      0,
      this.#start + this.#filled - at,
    );
  }

  #fill(at: number): void {
    this.#file.seekSync(at, Deno.SeekMode.Start);
    this.#start = at;
    this.#filled = fill(this.#file, this.#block);
  }

  close(): void {
    this.#file.close();
  }
}
