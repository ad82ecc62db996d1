/**
 * Reads the event log as it is really found: half lines, glued lines, runs of NUL bytes, damaged gzip.
 * Nothing that is found there throws; what is no record comes back as a {@linkcode Rejection}.
 * @module
 */
import { BrokenLine, decoded, LENIENT, NEWLINE, NUL, parsed, trimmed } from "./broken_line.ts";
import { errorMessage, fileError } from "../errors.ts";
import { DAMAGED, gunzipped, readPatiently } from "./gzip.ts";
import { pathIn } from "../layout.ts";
import {
  type InvalidRecordReason,
  type LogRecord,
  MAX_LINE_BYTES,
  REQUIRED_FIELDS,
  RUN_COLUMNS,
  RUN_STATUSES,
  validateRecord,
} from "../records.ts";

/** How much of a plain file is read at a time. */
const CHUNK_BYTES = 1024 * 1024;
/** How much of what was rejected is shown. */
const SHOWN_BYTES = 64 * 1024;

/** Why something in a log is no record. */
export type RejectionReason =
  /** The file cannot be opened, or not be read any further. */
  | "cannot be read"
  /** No more comes out of this part of the file. */
  | "gzip is cut short or damaged"
  /** Longer than {@linkcode MAX_LINE_BYTES}. */
  | "line is too long"
  /** Half a line, or anything else that is not JSON. */
  | "not whole JSON"
  /** As above, with bytes that are no UTF-8. */
  | "not UTF-8"
  /** JSON, but not what `validateRecord` calls a record. */
  | InvalidRecordReason;

/** A record, and where it stands. */
export interface ScannedRecord {
  /** Exactly as it was parsed: older records lack fields, or have some more. */
  record: LogRecord;
  /** The path of the file, as it was given. */
  file: string;
  /** The line, counted from 1. */
  line: number;
  /** Where the line starts, in bytes of the uncompressed file. */
  offset: number;
}

/** Something that is no record, and where it stands. What lies between two records is one rejection. */
export interface Rejection {
  /** Why. */
  rejected: RejectionReason;
  /** The path of the file, as it was given. */
  file: string;
  /** The line, counted from 1; 0 where the file could not even be opened. */
  line: number;
  /** Where the rejected bytes start (not their line), in bytes of the uncompressed file. */
  offset: number;
  /** How many bytes are rejected. */
  length: number;
  /** The first 64 KiB of them, leniently decoded. Of what cannot be read: the message of the error. */
  text: string;
}

/** How far {@linkcode scanRuns} is. */
export interface ScanProgress {
  /** Files that were begun. */
  files: number;
  /** Lines that were read. */
  lines: number;
  /** Bytes that were read, of gzipped files those inflated. */
  bytes: number;
}

/** What {@linkcode scan} yields. */
export type Scanned = ScannedRecord | Rejection;

/**
 * The paths of all logs in a folder, oldest day first and, where a day is there twice, the gzipped one first.
 * A missing folder has no logs.
 *
 * @param raw the folder
 * @throws {TelemetryError} `permission`, `in_the_way` or `io`: the folder cannot be listed
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
  // The longer of two paths with one stem is the gzipped one.
  stems.sort(([a, path], [b, other]) => a < b ? -1 : a > b ? 1 : other.length - path.length);
  return stems.map(([, path]) => path);
}

/** Whether a path is a file. What cannot be looked at counts, so that the scan says why. */
function mayBeFile(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return true;
  }
}

/**
 * Everything that is in these logs, in order: every record that is whole, and what else is there as rejections.
 * Blank lines, runs of NUL bytes and BOMs are neither. A bare `NaN` or `Infinity` becomes null.
 *
 * @param files paths; those that end in `.gz` are read as gzip
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
  for await (const batch of scanBatches(files)) yield* batch;
}

/**
 * What {@linkcode scan} yields, in arrays of what one read of a file gave: for millions of lines.
 *
 * @param files paths; those that end in `.gz` are read as gzip
 * @param chunkBytes how much of a plain file is read at a time; for tests
 *
 * @example
 * ```ts
 * import { logFiles, scanBatches } from "./read.ts";
 *
 * let records = 0;
 * for await (const batch of scanBatches(logFiles("/agent-metrics/raw"))) {
 *   for (const found of batch) if ("record" in found) records++;
 * }
 * ```
 */
export async function* scanBatches(
  files: Iterable<string>,
  chunkBytes: number = CHUNK_BYTES,
): AsyncGenerator<Scanned[], void> {
  yield* scanFiles(files, chunkBytes, (path) => new Lines(path));
}

/**
 * As {@linkcode scanBatches}, without the events: those that plainly are events are not parsed, which saves a third of the
 * time. What is not plainly one is judged as there.
 *
 * @param files paths; those that end in `.gz` are read as gzip
 * @param progress is kept up to date
 */
export async function* scanRuns(
  files: Iterable<string>,
  progress: ScanProgress = { files: 0, lines: 0, bytes: 0 },
): AsyncGenerator<Scanned[], void> {
  yield* scanFiles(files, CHUNK_BYTES, (path) => new RunLines(path, progress));
}

/**
 * As {@linkcode scanBatches}, without the runs: those that plainly are runs are not parsed.
 *
 * @param files paths; those that end in `.gz` are read as gzip
 * @param chunkBytes how much of a plain file is read at a time
 */
export async function* scanEvents(
  files: Iterable<string>,
  chunkBytes: number = CHUNK_BYTES,
): AsyncGenerator<Scanned[], void> {
  yield* scanFiles(files, chunkBytes, (path) => new Lines(path, PLAIN_RUNS));
}

async function* scanFiles(
  files: Iterable<string>,
  chunkBytes: number,
  linesOf: (path: string) => Lines,
): AsyncGenerator<Scanned[], void> {
  const buffers: Buffers = [new Uint8Array(chunkBytes), new Uint8Array(chunkBytes)];
  for (const path of files) {
    const lines = linesOf(path);
    try {
      using file = await openFile(path);
      for await (const chunk of path.endsWith(".gz") ? gunzipped(file) : chunksOf(file, buffers)) {
        const found = chunk === DAMAGED ? lines.endDamaged() : lines.read(chunk);
        if (found.length > 0) yield found;
      }
      const found = lines.end();
      if (found.length > 0) yield found;
    } catch (error) {
      yield lines.endUnreadable(error);
    }
  }
}

/** A log, open for reading. Looks first, because opening a pipe would wait for its other end. */
async function openFile(path: string): Promise<Deno.FsFile> {
  if (!(await Deno.stat(path)).isFile) throw new Error("not a file");
  return await Deno.open(path);
}

/** While one is looked at, the other one is filled. */
type Buffers = [Uint8Array, Uint8Array];

/** A file from here to its end. Each chunk is gone when the next one is asked for. */
async function* chunksOf(file: Deno.FsFile, [buffer, other]: Buffers): AsyncGenerator<Uint8Array, void> {
  let next = readPatiently(file, buffer);
  try {
    for (let count; (count = await next) !== null;) {
      const chunk = buffer.subarray(0, count);
      [buffer, other] = [other, buffer];
      next = readPatiently(file, buffer);
      yield chunk;
    }
  } finally {
    // Who stops early must not close the file under a read.
    await next.catch(() => {});
  }
}

/** Cuts one file into lines and judges each. Holds no more than the longest line. */
class Lines {
  readonly #file: string;
  readonly #skipped: PlainLines | undefined;
  #found: Scanned[] = [];
  /** The line, counted from 1. */
  protected line = 1;
  /** Where the line starts in the file. */
  #lineStart = 0;
  /** Where the bytes that are yet to be judged start in the file: not always a line's start. */
  #position = 0;
  /** A line whose end is yet to be read, in the first `#heldBytes` of `#held`. */
  #held = new Uint8Array(0);
  #heldBytes = 0;
  /** A line that is too long, while its end is sought. */
  #tooLong: Rejection | undefined;
  /** Where gzip broke off last, in the same bytes as `#position`. */
  #damagedAt = -1;

  /** @param skipped the lines that are of no interest */
  constructor(file: string, skipped?: PlainLines) {
    this.#file = file;
    this.#skipped = skipped;
  }

  /** Whether a line is yet without its end. */
  protected get hasHalf(): boolean {
    return this.#heldBytes > 0 || this.#tooLong !== undefined;
  }

  /** What the lines are that end in this chunk. */
  read(chunk: Uint8Array): Scanned[] {
    const first = chunk.indexOf(NEWLINE);
    let start = 0;
    if (first >= 0 && this.hasHalf) {
      this.#hold(chunk.subarray(0, first));
      this.#judgeHeld();
      this.#nextLine(1);
      start = first + 1;
    }
    const end = first < 0 ? 0 : chunk.lastIndexOf(NEWLINE) + 1;
    if (start < end) this.#judgeAll(chunk.subarray(start, end));
    this.#hold(chunk.subarray(Math.max(start, end)));
    return this.#take();
  }

  /** What the last line is, which has no newline. */
  end(): Scanned[] {
    this.#judgeHeld();
    return this.#take();
  }

  /** As `end`, where gzip broke off: half a line there is part of that damage. Another line may follow. */
  endDamaged(): Scanned[] {
    if (this.#position + this.#heldBytes === this.#damagedAt) return []; // no more came since: the same damage
    const rejected = "gzip is cut short or damaged";
    const found = this.end();
    const half = found.at(-1);
    if (half && "rejected" in half) half.rejected = rejected;
    else found.push(this.#rejection(rejected, new Uint8Array(0), this.#position));
    this.#nextLine(0);
    this.#damagedAt = this.#position;
    return found;
  }

  /** As `end`, where the file could not be opened, or not be read any further. */
  endUnreadable(error: unknown): Scanned[] {
    const found = this.end();
    const rejection = this.#rejection("cannot be read", new Uint8Array(0), this.#position);
    found.push({ ...rejection, line: this.#position > 0 ? this.line : 0, text: errorMessage(error) });
    return found;
  }

  #take(): Scanned[] {
    const found = this.#found;
    this.#found = [];
    return found;
  }

  /** @param gap how many bytes lie between the lines */
  #nextLine(gap: number): void {
    this.line++;
    this.#lineStart = this.#position += gap;
  }

  #hold(bytes: Uint8Array): void {
    if (this.#tooLong) {
      this.#tooLong.length += bytes.length;
      return;
    }
    const filled = this.#heldBytes + bytes.length;
    if (filled > this.#held.length) {
      // At once for the longest line: the system gives memory only as it is written to, and copies are garbage.
      const roomier = new Uint8Array(
        filled <= CHUNK_BYTES ? CHUNK_BYTES : Math.max(filled, MAX_LINE_BYTES + CHUNK_BYTES),
      );
      roomier.set(this.#held.subarray(0, this.#heldBytes));
      this.#held = roomier;
    }
    this.#held.set(bytes, this.#heldBytes);
    this.#heldBytes = filled;
    if (filled > MAX_LINE_BYTES) this.#letGo();
  }

  /** Lets go of a line that is too long. No record goes across a NUL, so that what is before one can be judged. */
  #letGo(): void {
    const bytes = this.#held.subarray(0, this.#heldBytes);
    const cut = bytes.lastIndexOf(NUL) + 1;
    this.#salvage(bytes.subarray(0, cut));
    this.#position += cut;
    this.#held.copyWithin(0, cut, this.#heldBytes);
    this.#heldBytes -= cut;
    if (this.#heldBytes <= MAX_LINE_BYTES) return;
    this.#tooLong = this.#rejection("line is too long", this.#held.subarray(0, this.#heldBytes), this.#position);
    this.#heldBytes = 0;
  }

  #judgeHeld(): void {
    if (this.#tooLong) {
      this.#position += this.#tooLong.length;
      this.#found.push(this.#tooLong);
      this.#tooLong = undefined;
    }
    const bytes = this.#held.subarray(0, this.#heldBytes);
    this.#judge(decoded(bytes), bytes, 0, bytes.length);
    this.#position += bytes.length;
    this.#heldBytes = 0;
  }

  /** Judges lines that are whole, the last newline included. Decoding them together halves the time. */
  #judgeAll(bytes: Uint8Array): void {
    const text = decoded(bytes);
    const sameIndexes = text?.length === bytes.length;
    let textAt = 0;
    for (let at = 0; at < bytes.length;) {
      const textEnd = text === undefined ? 0 : text.indexOf("\n", textAt);
      const end = sameIndexes ? textEnd : bytes.indexOf(NEWLINE, at);
      if (text === undefined) this.#judge(decoded(bytes.subarray(at, end)), bytes, at, end);
      else if (!this.#skipped || !isPlain(this.#skipped, text, textAt, textEnd)) {
        this.#judge(text.slice(textAt, textEnd), bytes, at, end);
      }
      this.#position += end - at;
      this.#nextLine(1);
      at = end + 1;
      textAt = textEnd + 1;
    }
  }

  /** Judges the bytes from `start` to `end`, whose text is undefined where they are no UTF-8. */
  #judge(text: string | undefined, bytes: Uint8Array, start: number, end: number): void {
    if (start === end) return;
    const value = text === undefined ? undefined : parsed(text);
    if (value === undefined) return this.#salvage(bytes.subarray(start, end));
    const reason = validateRecord(value);
    if (reason === undefined) this.#accept(value as LogRecord);
    else this.#reject(reason, bytes.subarray(start, end), this.#position);
  }

  /** Judges part by part what is no JSON as a whole. */
  #salvage(bytes: Uint8Array): void {
    for (const { start, end, judged } of new BrokenLine(bytes).parts()) {
      if (typeof judged === "string") this.#reject(judged, bytes.subarray(start, end), this.#position + start);
      else this.#accept(judged);
    }
  }

  #accept(record: LogRecord): void {
    this.#found.push({ record, file: this.#file, line: this.line, offset: this.#lineStart });
  }

  #reject(reason: RejectionReason, bytes: Uint8Array, position: number): void {
    const [start, end] = trimmed(bytes, 0, bytes.length);
    this.#found.push(this.#rejection(reason, bytes.subarray(start, end), position + start));
  }

  #rejection(rejected: RejectionReason, bytes: Uint8Array, offset: number): Rejection {
    const text = LENIENT.decode(bytes.subarray(0, SHOWN_BYTES));
    return { rejected, file: this.#file, line: this.line, offset, length: bytes.length, text };
  }
}

/** Lines that are records of a type so plainly that they need not be parsed to see it. */
interface PlainLines {
  ending: string;
  pattern: RegExp;
}

/** What JSON allows between quotes, and text without escapes. */
const STRING = String.raw`"[^"\\\x00-\x1f]*(?:\\(?:["\\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*"`;
const SIMPLE_STRING = String.raw`"[^"\\\x00-\x1f]*"`;
/** Any value of a record that is not nested. */
const VALUE = String.raw`(?:null|${STRING}|-?(?:0|[1-9]\d*))`;

/** As the Python client and this one write records: some fields in this order, of which those with a `?` may be missing. */
function plainLines(type: LogRecord["record_type"], fields: [name: string, value: string, sign?: "?"][]): PlainLines {
  const parts = fields.map(([name, value, sign = ""]) => `(?:"${name}": ?${value}, ?)${sign}`);
  return {
    ending: `"${type}"}`,
    pattern: new RegExp(String.raw`\{${parts.join("")}"record_type": ?"${type}"\}`, "y"),
  };
}

const PLAIN_EVENTS = plainLines("event", [
  ...REQUIRED_FIELDS.event.map((field): [string, string] => [field, SIMPLE_STRING]),
  ["payload_json", `(?:null|${STRING})`],
  ["id", "null"],
]);
const PLAIN_RUNS = plainLines(
  "run",
  RUN_COLUMNS.map((column) => {
    if (REQUIRED_FIELDS.run.includes(column)) return [column, SIMPLE_STRING];
    return column === "status" ? [column, `"(?:${RUN_STATUSES.join("|")})"`] : [column, VALUE, "?"];
  }),
);
/** A longer line is judged as any other: the patterns would need too much of the stack. */
const MAX_SKIPPED_CHARS = 16 * 1024;
const CARRIAGE_RETURN = 0x0d;

function isPlain({ ending, pattern }: PlainLines, text: string, start: number, end: number): boolean {
  if (end - start > MAX_SKIPPED_CHARS) return false;
  if (text.charCodeAt(end - 1) === CARRIAGE_RETURN) end--;
  if (!text.endsWith(ending, end)) return false;
  pattern.lastIndex = start;
  return pattern.test(text) && pattern.lastIndex === end;
}

/** Leaves events out, and counts lines. */
class RunLines extends Lines {
  readonly #progress: ScanProgress;
  readonly #linesBefore: number;

  constructor(file: string, progress: ScanProgress) {
    super(file, PLAIN_EVENTS);
    this.#progress = progress;
    this.#linesBefore = progress.lines;
    progress.files++;
  }

  override read(chunk: Uint8Array): Scanned[] {
    const found = super.read(chunk);
    this.#progress.bytes += chunk.length;
    this.#progress.lines = this.#linesBefore + this.line - 1;
    return found;
  }

  override end(): Scanned[] {
    const hasHalf = this.hasHalf;
    const found = super.end();
    this.#progress.lines = this.#linesBefore + this.line - (hasHalf ? 0 : 1);
    return found;
  }
}
