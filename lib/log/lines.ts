/**
 * Splits a log into lines, and finds the records in them.
 * @module
 */
import { Buffer, isUtf8 } from "node:buffer";
import { decodeUtf8, latin1, LENIENT, NEWLINE, NUL, parseJson, splitBrokenLine, trim } from "./broken_line.ts";
import { errorMessage } from "../errors.ts";
import { type InvalidRecordReason, type LogRecord, MAX_LINE_BYTES, validateRecord } from "../records.ts";

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

/** What `scan` yields. */
export type Scanned = ScannedRecord | Rejection;

/** The start of a run, not parsed. Most starts are replaced by the end of their run, and never need to be parsed. */
export interface StartLine extends Omit<ScannedRecord, "record"> {
  /** The id of the run. */
  start: string;
  /** The line, as {@linkcode latin1} returns it. */
  text: string;
}

/** What {@linkcode Lines} finds. */
export type Found = Scanned | StartLine;

/** How far a read has come. */
export interface ReadProgress {
  files: number;
  lines: number;
  /** Uncompressed. */
  bytes: number;
}

/** What {@linkcode Lines} reads. */
export interface LineOptions {
  /** Skips lines of the other type without parsing them; `run` leaves starts of runs unparsed. @default both types */
  only?: LogRecord["record_type"];
  /** Updated during the read. */
  progress?: ReadProgress;
}

/** Splits one file into lines and parses them. Holds at most the longest line. */
export class Lines {
  readonly #file: string;
  readonly #only: LineOptions["only"];
  readonly #progress: ReadProgress;
  #found: Found[] = [];
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

  constructor(file: string, { only, progress }: LineOptions, { line, offset } = { line: 1, offset: 0 }) {
    this.#file = file;
    this.#only = only;
    this.#progress = progress ?? { files: 0, lines: 0, bytes: 0 };
    this.#progress.files++;
    this.#line = line;
    this.#lineStart = this.#position = offset;
  }

  /** Parses the lines that end in this chunk. */
  read(chunk: Uint8Array): Found[] {
    this.#progress.bytes += chunk.length;
    let start = 0;
    if (this.#hasHalfLine) {
      const end = chunk.indexOf(NEWLINE);
      this.#hold(end < 0 ? chunk : chunk.subarray(0, end));
      if (end < 0) return this.#take();
      this.#parseHeld();
      this.#endLine();
      start = end + 1;
    }
    const end = chunk.lastIndexOf(NEWLINE) + 1;
    if (start < end) this.#parseLines(chunk.subarray(start, end));
    this.#hold(chunk.subarray(Math.max(start, end)));
    return this.#take();
  }

  /** Parses the last line, which has no newline. */
  end(): Found[] {
    if (this.#hasHalfLine) this.#progress.lines++;
    this.#parseHeld();
    return this.#take();
  }

  /** As `end`, where gzip is damaged: half a line there is a part of the damage. */
  endDamaged(): Found[] {
    const rejected = "gzip is cut short or damaged";
    const found = this.end();
    const half = found.at(-1);
    if (half && "rejected" in half) half.rejected = rejected;
    else found.push(this.#rejection(rejected, NOTHING, this.#position));
    return found;
  }

  /** As `end`, where the file could not be opened or not be read any further. */
  endUnreadable(error: unknown): Found[] {
    const found = this.end();
    const rejection = this.#rejection("cannot be read", NOTHING, this.#position);
    found.push({ ...rejection, line: this.#position > 0 ? this.#line : 0, text: errorMessage(error) });
    return found;
  }

  /** Parses a single line. */
  parse(text: string): Scanned[] {
    this.#parse(Buffer.from(text, "latin1"));
    return this.#found as Scanned[];
  }

  get #hasHalfLine(): boolean {
    return this.#heldBytes > 0 || this.#tooLong !== undefined;
  }

  #take(): Found[] {
    const found = this.#found;
    this.#found = [];
    return found;
  }

  /** Counts a newline. */
  #endLine(): void {
    this.#progress.lines++;
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
    this.#parse(this.#held.subarray(0, this.#heldBytes));
    this.#position += this.#heldBytes;
    this.#heldBytes = 0;
  }

  /** Parses complete lines, the last newline included. */
  #parseLines(bytes: Uint8Array): void {
    const text = latin1(bytes);
    const mayLeaveOut = this.#only !== undefined && isUtf8(bytes);
    for (let start = 0, end; start < bytes.length; start = end + 1) {
      end = text.indexOf("\n", start);
      if (!mayLeaveOut || !this.#isLeftOut(text, start, end)) this.#parse(bytes.subarray(start, end));
      this.#position += end - start;
      this.#endLine();
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

  #parse(bytes: Uint8Array): void {
    if (bytes.length === 0) return;
    const text = decodeUtf8(bytes);
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

const NOTHING = new Uint8Array(0);
const CARRIAGE_RETURN = 0x0d, SPACE = 0x20, QUOTE = 0x22;

/** Whether a line ends as both clients end a record of this type. Python puts a blank after each colon. */
function endsAs(type: LogRecord["record_type"], text: string, end: number): boolean {
  return text.endsWith(`"record_type":"${type}"}`, end) || text.endsWith(`"record_type": "${type}"}`, end);
}

/**
 * Whether a line has one object, as far as can be told without parsing. Quotes in JSON text have a backslash: a brace before
 * a quote is a start, and a second `record_type` is that of a record to which the rest of a lost one is glued.
 */
function isSingleObject(text: string, start: number, end: number): boolean {
  if (text.indexOf('record_type"', start) < end - 'record_type": "event"}'.length) return false;
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
  const posted = line.indexOf('"api_posted"', status);
  if (!line.startsWith(": 0,", posted + 12) && !line.startsWith(":0,", posted + 12)) return undefined;
  // Of a field that is there twice, the last one counts.
  if (line.indexOf('status"', status + 7) >= 0 || line.indexOf('run_id"', 9) >= 0) return undefined;
  const [, id] = /^\{"run_id": ?"([^"\\]+)"/.exec(line) ?? [];
  // A copy, because a slice of the line would keep a whole chunk of the log in memory.
  return id && (" " + id).slice(1);
}
