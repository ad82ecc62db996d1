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

/** How much of a file is read at a time. Each read waits for another thread. */
const READ_BYTES = 1024 * 1024;
/** How much is decoded at a time. Longer strings would cost a page fault for each page, and outlive their use. */
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
  text: string;
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
  /** How much of a file is read at a time, in bytes. @default 1_048_576 */
  readBytes?: number;
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
      chunks = path.endsWith(".gz") ? gunzip(file) : chunksOf(file, options.readBytes ?? READ_BYTES);
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
export function parseStartLine({ file, line, offset, text }: StartLine): Scanned[] {
  return new Lines(file, {}, { line, offset }).parse(text);
}

/** Reads a file to its end. Each chunk is overwritten by the next one. */
async function* chunksOf(file: Deno.FsFile, readBytes: number): AsyncGenerator<Uint8Array, boolean> {
  const buffer = new Uint8Array(readBytes);
  for (let count; (count = await readWithRetry(file, buffer)) !== null;) {
    for (let at = 0; at < count; at += CHUNK_BYTES) yield buffer.subarray(at, Math.min(at + CHUNK_BYTES, count));
  }
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
  parse(text: string): Scanned[] {
    this.#parse(text, new TextEncoder().encode(text));
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
      else if (this.#only === undefined || !this.#isLeftOut(text, textAt, textEnd)) {
        this.#parse(text.slice(textAt, textEnd), bytes.subarray(at, end));
      }
      this.#position += end - at;
      this.#nextLine();
      at = end + 1;
      textAt = textEnd + 1;
    }
  }

  /** Whether a line needs no parsing, because it is of the other type or the start of a run. */
  #isLeftOut(text: string, start: number, end: number): boolean {
    if (text.charCodeAt(end - 1) === CARRIAGE_RETURN) end--;
    const isEvent = endsAs("event", text, end);
    if (!isEvent && !endsAs("run", text, end) || !isSingleObject(text, start, end)) return false;
    if (isEvent || this.#only === "event") return isEvent === (this.#only === "run");
    const line = text.slice(start, end);
    const id = idOfStart(line);
    if (id === undefined) return false;
    this.#found.push({ start: id, text: line, ...this.#place() });
    return true;
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

const CARRIAGE_RETURN = 0x0d, SPACE = 0x20, QUOTE = 0x22;

/** Whether a line ends as both clients end a record of this type. Python puts a blank after each colon. */
function endsAs(type: LogRecord["record_type"], text: string, end: number): boolean {
  return text.endsWith(`"record_type":"${type}"}`, end) || text.endsWith(`"record_type": "${type}"}`, end);
}

/** Whether no second object starts in a line. Quotes in JSON text have a backslash: a brace before a quote is a start. */
function isSingleObject(text: string, start: number, end: number): boolean {
  for (let at = start; (at = text.indexOf("{", at + 1)) >= 0 && at < end;) {
    const next = text.charCodeAt(at + 1);
    if (next === QUOTE || next <= SPACE) return false;
  }
  return text.startsWith('{"', start);
}

/** The run id in a line that is the start of a run, as both clients write it. Undefined for any other line. */
function idOfStart(line: string): string | undefined {
  const status = line.indexOf('status"');
  if (!line.startsWith(': "running"', status + 7) && !line.startsWith(':"running"', status + 7)) return undefined;
  // A run that was posted has a marker, which must not be lost with its line.
  const posted = line.indexOf('_posted"', status);
  if (!line.startsWith(": 0,", posted + 8) && !line.startsWith(":0,", posted + 8)) return undefined;
  // Of a field that is there twice, the last one counts.
  if (line.indexOf('status"', status + 7) >= 0 || line.indexOf('run_id"', 9) >= 0) return undefined;
  const [, id] = /^\{"run_id": ?"([^"\\]+)"/.exec(line) ?? [];
  // A copy, because a slice of the line would keep a whole chunk of the log in memory.
  return id && (" " + id).slice(1);
}
