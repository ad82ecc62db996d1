/**
 * Reads the logs in `raw/` as they are found: with half lines, glued records, runs of NUL bytes and damaged gzip.
 * No content of a log throws. What is not a record is returned as a {@linkcode Rejection}.
 * @module
 */
import { errorMessage, fileError } from "../errors.ts";
import { gunzip, readWithRetry } from "./gzip.ts";
import { pathIn } from "../layout.ts";
import { type InvalidRecordReason, type LogRecord, MAX_LINE_BYTES, validateRecord } from "../records.ts";
import { decodeUtf8, LENIENT, NEWLINE, NUL, parseJson, splitBrokenLine, trim } from "./broken_line.ts";

/** How much of a file is read at a time. Text of 1 MiB would cost a page fault for each page, and outlive its use. */
const CHUNK_BYTES = 64 * 1024;
/** How much of a rejected part is returned. */
const SHOWN_BYTES = 64 * 1024;

/** Why a part of a log is not a record. */
export type RejectionReason =
  /** The file cannot be opened, or not read any further. */
  | "cannot be read"
  /** The rest of the file cannot be inflated. */
  | "gzip is cut short or damaged"
  /** The line is longer than {@linkcode MAX_LINE_BYTES}. */
  | "line is too long"
  /** Half a line, or anything else that is not JSON. */
  | "not whole JSON"
  /** As above, with bytes that are not UTF-8. */
  | "not UTF-8"
  /** JSON that is not a record. */
  | InvalidRecordReason;

/** A record of a log, with its place. */
export interface ScannedRecord {
  /** The record as it was parsed. Older records lack fields, or have others. */
  record: LogRecord;
  /** The path of the file, as it was given. */
  file: string;
  /** The line, counted from 1. */
  line: number;
  /** Where the line starts, in bytes of the uncompressed file. */
  offset: number;
}

/** A part of a log that is not a record, with its place. What lies between two records is one rejection. */
export interface Rejection {
  /** Why it is not a record. */
  rejected: RejectionReason;
  /** The path of the file, as it was given. */
  file: string;
  /** The line, counted from 1; 0 when the file could not be opened. */
  line: number;
  /** Where the rejected bytes start, in bytes of the uncompressed file. */
  offset: number;
  /** How many bytes are rejected. */
  length: number;
  /** The first 64 KiB of them as text; for a file that cannot be read, the message of the error. */
  text: string;
}

/** What {@linkcode scan} yields. */
export type Scanned = ScannedRecord | Rejection;

/** The start of a run, not parsed. Most starts are replaced by the end of their run, and never need to be parsed. */
export interface StartLine {
  /** The id of the run. */
  start: string;
  bytes: Uint8Array;
  file: string;
  line: number;
  offset: number;
}

/** How far a read has come. */
export interface ReadProgress {
  files: number;
  lines: number;
  /** Uncompressed. */
  bytes: number;
}

/** Options of {@linkcode readLogs}. */
export interface ReadOptions {
  /** Skips lines of the other type without parsing them, and does not parse starts of runs. @default both types */
  only?: LogRecord["record_type"];
  /** Updated during the read. */
  progress?: ReadProgress;
  /** @default 65_536 */
  chunkBytes?: number;
}

/**
 * The paths of all logs in a folder, oldest day first. A gzipped file comes before a plain one of the same day. A missing
 * folder has no logs.
 *
 * @param raw the folder
 * @throws {TelemetryError} `permission`, `in_the_way` or `io` when the folder cannot be listed
 *
 * @example
 * ```ts
 * import { logFiles } from "./read.ts";
 *
 * console.log(logFiles("/agent-metrics/raw")); // ["/agent-metrics/raw/events_20251210.ndjson", …]
 * ```
 */
export function logFiles(raw: string): string[] {
  const stems: [stem: string, path: string][] = [];
  try {
    for (const { name } of Deno.readDirSync(raw)) {
      const stem = /^(.*)\.ndjson(?:\.gz)?$/s.exec(name)?.[1];
      const path = pathIn(raw, name);
      if (stem !== undefined && mayBeFile(path)) stems.push([stem, path]);
    }
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return [];
    throw fileError(error, `cannot list ${raw}`);
  }
  // The longer of two paths with the same stem is the gzipped one.
  stems.sort(([a, path], [b, other]) => a < b ? -1 : a > b ? 1 : other.length - path.length);
  return stems.map(([, path]) => path);
}

/** Whether a path is a file. A path that cannot be examined counts, so that the read reports it. */
function mayBeFile(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return true;
  }
}

/**
 * Yields the content of logs in order: every complete record, and everything else as rejections. Blank lines, runs of NUL
 * bytes and BOMs are neither. Python's `NaN` and `Infinity` become null.
 *
 * @param files paths of logs; those that end in `.gz` are inflated
 *
 * @example
 * ```ts
 * import { logFiles, scan } from "./read.ts";
 *
 * for await (const found of scan(logFiles("/agent-metrics/raw"))) {
 *   if ("rejected" in found) console.warn(`${found.file}:${found.line}: ${found.rejected}`);
 *   else console.log(found.record.run_id);
 * }
 * ```
 */
export async function* scan(files: Iterable<string>): AsyncGenerator<Scanned, void> {
  for await (const batch of readLogs(files)) yield* batch;
}

/** As {@linkcode scan}, in one array for each chunk. With `only: "run"`, starts of runs are not parsed. */
export function readLogs(
  files: Iterable<string>,
  options?: ReadOptions & { only?: "event" },
): AsyncGenerator<Scanned[], void>;
export function readLogs(
  files: Iterable<string>,
  options: ReadOptions & { only: "run" },
): AsyncGenerator<(Scanned | StartLine)[], void>;
export async function* readLogs(
  files: Iterable<string>,
  options: ReadOptions = {},
): AsyncGenerator<(Scanned | StartLine)[], void> {
  for (const path of files) {
    const lines = new Lines(path, options);
    let chunks: AsyncGenerator<Uint8Array, boolean> | undefined;
    try {
      // Opening a pipe would wait for its other end.
      if (!(await Deno.stat(path)).isFile) throw new Error("not a file");
      using file = await Deno.open(path);
      chunks = path.endsWith(".gz") ? gunzip(file) : chunksOf(file, options.chunkBytes ?? CHUNK_BYTES);
      let next = await chunks.next();
      for (; !next.done; next = await chunks.next()) {
        const found = lines.read(next.value);
        if (found.length > 0) yield found;
      }
      const found = next.value ? lines.end() : lines.endDamaged();
      if (found.length > 0) yield found;
    } catch (error) {
      yield lines.endUnreadable(error);
    } finally {
      await chunks?.return(true);
    }
  }
}

/** Parses a start that was not parsed when it was read. */
export function parseStartLine({ file, line, offset, bytes }: StartLine): Scanned[] {
  return new Lines(file, {}, { line, offset }).parse(bytes);
}

/** Reads a file to its end. Each chunk is overwritten by the next one. */
async function* chunksOf(file: Deno.FsFile, chunkBytes: number): AsyncGenerator<Uint8Array, boolean> {
  const buffer = new Uint8Array(chunkBytes);
  for (let count; (count = await readWithRetry(file, buffer)) !== null;) yield buffer.subarray(0, count);
  return true;
}

/** Splits one file into lines and parses them. Holds at most the longest line. */
class Lines {
  readonly #file: string;
  readonly #only: ReadOptions["only"];
  readonly #progress: ReadProgress | undefined;
  readonly #linesBefore: number;
  #found: (Scanned | StartLine)[] = [];
  /** The line, counted from 1. */
  #line: number;
  #lineStart: number;
  /** Where the first byte that is not parsed yet stands in the file. After a NUL this is not the start of the line. */
  #position: number;
  /** A line whose end is not read yet, in the first `#heldBytes` of `#held`. */
  #held = new Uint8Array(0);
  #heldBytes = 0;
  /** The line when it is too long, until its end is found. */
  #tooLong: Rejection | undefined;

  constructor(file: string, { only, progress }: ReadOptions, at = { line: 1, offset: 0 }) {
    this.#file = file;
    this.#only = only;
    this.#progress = progress;
    this.#linesBefore = progress?.lines ?? 0;
    this.#line = at.line;
    this.#lineStart = this.#position = at.offset;
    if (progress) progress.files++;
  }

  /** Parses the lines that end in this chunk. */
  read(chunk: Uint8Array): (Scanned | StartLine)[] {
    const first = chunk.indexOf(NEWLINE);
    let start = 0;
    if (first >= 0 && this.#hasHalfLine) {
      this.#hold(chunk.subarray(0, first));
      this.#parseHeld();
      this.#nextLine();
      start = first + 1;
    }
    const end = first < 0 ? 0 : chunk.lastIndexOf(NEWLINE) + 1;
    if (start < end) this.#parseLines(chunk.subarray(start, end));
    this.#hold(chunk.subarray(Math.max(start, end)));
    if (this.#progress) this.#progress.bytes += chunk.length;
    return this.#take(this.#line - 1);
  }

  /** Parses the last line, which has no newline. */
  end(): (Scanned | StartLine)[] {
    const lines = this.#hasHalfLine ? this.#line : this.#line - 1;
    this.#parseHeld();
    return this.#take(lines);
  }

  /** As `end`, where gzip is damaged: half a line there is a part of the damage. */
  endDamaged(): (Scanned | StartLine)[] {
    const rejected = "gzip is cut short or damaged";
    const found = this.end();
    const half = found.at(-1);
    if (half && "rejected" in half) half.rejected = rejected;
    else found.push(this.#rejection(rejected, new Uint8Array(0), this.#position));
    return found;
  }

  /** As `end`, where the file could not be opened or not be read any further. */
  endUnreadable(error: unknown): (Scanned | StartLine)[] {
    const found = this.end();
    const rejection = this.#rejection("cannot be read", new Uint8Array(0), this.#position);
    found.push({ ...rejection, line: this.#position > 0 ? this.#line : 0, text: errorMessage(error) });
    return found;
  }

  /** Parses a single line. */
  parse(bytes: Uint8Array): Scanned[] {
    this.#parse(decodeUtf8(bytes), bytes);
    return this.#found as Scanned[];
  }

  get #hasHalfLine(): boolean {
    return this.#heldBytes > 0 || this.#tooLong !== undefined;
  }

  #take(lines: number): (Scanned | StartLine)[] {
    if (this.#progress) this.#progress.lines = this.#linesBefore + lines;
    const found = this.#found;
    this.#found = [];
    return found;
  }

  #nextLine(): void {
    this.#line++;
    this.#lineStart = ++this.#position;
  }

  #hold(bytes: Uint8Array): void {
    if (this.#tooLong) {
      this.#tooLong.length += bytes.length;
      return;
    }
    const length = this.#heldBytes + bytes.length;
    if (length > this.#held.length) {
      // Enough for the longest line: the system provides memory only when it is written to, and copies are garbage.
      const larger = new Uint8Array(length <= 2 ** 20 ? 2 ** 20 : Math.max(length, MAX_LINE_BYTES + 2 ** 20));
      larger.set(this.#held.subarray(0, this.#heldBytes));
      this.#held = larger;
    }
    this.#held.set(bytes, this.#heldBytes);
    this.#heldBytes = length;
    if (length > MAX_LINE_BYTES) this.#shortenHeld();
  }

  /** Shortens a line that is too long. A record contains no NUL, so the part before the last NUL can be parsed. */
  #shortenHeld(): void {
    const bytes = this.#held.subarray(0, this.#heldBytes);
    const cut = bytes.lastIndexOf(NUL) + 1;
    this.#parseBroken(bytes.subarray(0, cut));
    this.#position += cut;
    this.#held.copyWithin(0, cut, this.#heldBytes);
    this.#heldBytes -= cut;
    if (this.#heldBytes <= MAX_LINE_BYTES) return;
    this.#tooLong = this.#rejection("line is too long", this.#held.subarray(0, this.#heldBytes), this.#position);
    this.#heldBytes = 0;
  }

  #parseHeld(): void {
    if (this.#tooLong) {
      this.#position += this.#tooLong.length;
      this.#found.push(this.#tooLong);
      this.#tooLong = undefined;
    }
    const bytes = this.#held.subarray(0, this.#heldBytes);
    this.#parse(decodeUtf8(bytes), bytes);
    this.#position += bytes.length;
    this.#heldBytes = 0;
  }

  /** Parses complete lines, the last newline included. Decoding them together takes half the time. */
  #parseLines(bytes: Uint8Array): void {
    const text = decodeUtf8(bytes);
    const isAscii = text?.length === bytes.length;
    let textAt = 0;
    for (let at = 0; at < bytes.length;) {
      const textEnd = text === undefined ? 0 : text.indexOf("\n", textAt);
      const end = isAscii ? textEnd : bytes.indexOf(NEWLINE, at);
      if (text === undefined) this.#parse(decodeUtf8(bytes.subarray(at, end)), bytes.subarray(at, end));
      else if (!this.#isSkipped(text, textAt, textEnd)) {
        const line = text.slice(textAt, textEnd);
        const start = this.#only === "run" ? startOf(line) : undefined;
        if (start === undefined) this.#parse(line, bytes.subarray(at, end));
        // A copy, since the id and the bytes would keep the chunk in memory.
        else this.#found.push({ ...this.#place(), start: copyOf(start), bytes: bytes.slice(at, end) });
      }
      this.#position += end - at;
      this.#nextLine();
      at = end + 1;
      textAt = textEnd + 1;
    }
  }

  /** Whether a line is a record of the type that is not wanted, and no other record is glued to it. */
  #isSkipped(text: string, start: number, end: number): boolean {
    if (this.#only === undefined) return false;
    const ends = this.#only === "run" ? EVENT_ENDS : RUN_ENDS;
    return isSingleObject(text, start, end, ends);
  }

  /** Parses one line. `text` is undefined when the bytes are not UTF-8. */
  #parse(text: string | undefined, bytes: Uint8Array): void {
    if (bytes.length === 0) return;
    const value = text === undefined ? undefined : parseJson(text);
    if (value === undefined) return this.#parseBroken(bytes);
    const reason = validateRecord(value);
    if (reason === undefined) this.#found.push({ record: value as LogRecord, ...this.#place() });
    else this.#reject(reason, bytes, 0, bytes.length);
  }

  #parseBroken(bytes: Uint8Array): void {
    for (const { start, end, judged } of splitBrokenLine(bytes)) {
      if (typeof judged === "string") this.#reject(judged, bytes, start, end);
      else this.#found.push({ record: judged, ...this.#place() });
    }
  }

  #place(): { file: string; line: number; offset: number } {
    return { file: this.#file, line: this.#line, offset: this.#lineStart };
  }

  #reject(reason: RejectionReason, bytes: Uint8Array, from: number, to: number): void {
    const [start, end] = trim(bytes, from, to);
    this.#found.push(this.#rejection(reason, bytes.subarray(start, end), this.#position + start));
  }

  #rejection(rejected: RejectionReason, bytes: Uint8Array, offset: number): Rejection {
    const text = LENIENT.decode(bytes.subarray(0, SHOWN_BYTES));
    return { rejected, file: this.#file, line: this.#line, offset, length: bytes.length, text };
  }
}

/** How both clients end a line. Python puts a blank after each colon. */
const EVENT_ENDS = ['"record_type":"event"}', '"record_type": "event"}'];
const RUN_ENDS = ['"record_type":"run"}', '"record_type": "run"}'];

/** Whether a line is one object with one of these ends. `{"` starts an object wherever it stands, see `OBJECT_START`. */
function isSingleObject(text: string, start: number, end: number, ends: string[]): boolean {
  if (text[end - 1] === "\r") end--;
  return ends.some((suffix) => text.endsWith(suffix, end)) && text.lastIndexOf('{"', end) === start;
}

/** The run id in a line that is the start of a run, as both clients write it. Undefined for any other line. */
function startOf(line: string): string | undefined {
  if (!line.includes('"status": "running"') && !line.includes('"status":"running"')) return undefined;
  // A run that was posted has a marker, which must not be lost with its line.
  if (!line.includes('"api_posted": 0,') && !line.includes('"api_posted":0,')) return undefined;
  if (!isSingleObject(line, 0, line.length, RUN_ENDS) || line.lastIndexOf('"run_id"') !== 1) return undefined;
  return /^\{"run_id": ?"([^"\\]+)"/.exec(line)?.[1];
}

/** A copy that does not keep the text alive that it was cut from. */
function copyOf(text: string): string {
  return LENIENT.decode(new TextEncoder().encode(text));
}
