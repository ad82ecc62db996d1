/**
 * Splits a log into lines, and finds the records in them.
 * @module
 */
import { isUtf8 } from "node:buffer";
import { latin1Of, LENIENT, splitLine } from "./broken_line.ts";
import { errorMessage, TelemetryError } from "../errors.ts";
import { type InvalidRecordReason, type LogRecord, MAX_LINE_BYTES, toJson, validateRecord } from "../records.ts";

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

/** How far a read has come. */
export interface ReadProgress {
  files: number;
  lines: number;
  /** Uncompressed. */
  bytes: number;
}

/** What {@linkcode Lines} reads. */
export interface LineOptions<T extends string = never> {
  /** Skips lines of the other type without parsing them. @default both types */
  only?: LogRecord["record_type"];
  /** With `only`: converts a line, from `start` to `end` of the text, if it can. Such a line is not parsed. */
  convert?: ((text: string, start: number, end: number) => T | undefined) | undefined;
  /** Updated during the read. */
  progress?: ReadProgress;
}

const NEWLINE = 0x0a, CARRIAGE_RETURN = 0x0d, SPACE = 0x20, QUOTE = 0x22;

/** Splits one file into lines and parses them. Holds at most the longest line. */
export class Lines<T extends string = never> {
  readonly #file: string;
  readonly #only: LineOptions["only"];
  readonly #convert: LineOptions<T>["convert"];
  readonly #progress: ReadProgress;
  #found: (Scanned | T)[] = [];
  /** The line, counted from 1. */
  #line = 1;
  #lineStart = 0;
  /** What is not parsed yet, in the first `#heldBytes` of `#held`. */
  #held = new Uint8Array(2 ** 20);
  #heldBytes = 0;
  /** How much of a line that is too long is not held. */
  #dropped = 0;

  constructor(file: string, { only, convert, progress }: LineOptions<T> = {}) {
    this.#file = file;
    this.#only = only;
    this.#convert = convert;
    this.#progress = progress ?? { files: 0, lines: 0, bytes: 0 };
    this.#progress.files++;
  }

  /** Parses the lines that end in this chunk. */
  read(chunk: Uint8Array): (Scanned | T)[] {
    this.#progress.bytes += chunk.length;
    const end = chunk.lastIndexOf(NEWLINE) + 1;
    if (end > 0) {
      this.#hold(chunk.subarray(0, end));
      this.#parseLines(this.#takeHeld());
    }
    this.#hold(chunk.subarray(end));
    if (this.#heldBytes > MAX_LINE_BYTES) {
      this.#dropped += this.#heldBytes - SHOWN_BYTES;
      this.#heldBytes = SHOWN_BYTES;
    }
    return this.#take();
  }

  /** Parses the last line, which has no newline. */
  end(): (Scanned | T)[] {
    if (this.#heldBytes > 0) this.#progress.lines++;
    this.#parse(this.#takeHeld());
    return this.#take();
  }

  /** As `end`, where gzip is damaged: half a line there is a part of the damage. */
  endDamaged(): (Scanned | T)[] {
    const rejected = "gzip is cut short or damaged";
    const end = this.#lineStart + this.#heldBytes;
    const found = this.end();
    const half = found.at(-1);
    if (typeof half === "object" && "rejected" in half) half.rejected = rejected;
    else found.push(this.#rejection(rejected, new Uint8Array(), end));
    return found;
  }

  /** As `end`, where the file could not be opened or not be read any further. */
  endUnreadable(error: unknown): (Scanned | T)[] {
    const end = this.#lineStart + this.#heldBytes;
    const rejection = this.#rejection("cannot be read", new Uint8Array(), end);
    return [...this.end(), { ...rejection, line: end > 0 ? this.#line : 0, text: errorMessage(error) }];
  }

  #take(): (Scanned | T)[] {
    const found = this.#found;
    this.#found = [];
    return found;
  }

  #hold(bytes: Uint8Array): void {
    const length = this.#heldBytes + bytes.length;
    if (length > this.#held.length) {
      // Enough for the longest line: the system provides memory only when it is written to, and copies are garbage.
      const larger = new Uint8Array(Math.max(length, MAX_LINE_BYTES + 2 ** 20));
      larger.set(this.#held.subarray(0, this.#heldBytes));
      this.#held = larger;
    }
    this.#held.set(bytes, this.#heldBytes);
    this.#heldBytes = length;
  }

  /** What is held. The next chunk overwrites it. */
  #takeHeld(): Uint8Array {
    const held = this.#held.subarray(0, this.#heldBytes);
    this.#heldBytes = 0;
    return held;
  }

  /** Parses complete lines, the last newline included. */
  #parseLines(bytes: Uint8Array): void {
    const text = latin1Of(bytes);
    const isUnparsed = this.#only !== undefined && isUtf8(bytes);
    const whole = isUnparsed && this.#convert ? LENIENT.decode(bytes) : "";
    let at = 0;
    for (let start = 0, end; start < bytes.length; start = end + 1) {
      end = text.indexOf("\n", start);
      const to = whole.indexOf("\n", at);
      if (!isUnparsed || !this.#isLeftOut(text, start, end)) {
        const converted = isUnparsed && this.#dropped === 0 ? this.#convert?.(whole, at, to) : undefined;
        if (converted === undefined) this.#parse(bytes.subarray(start, end));
        else this.#found.push(converted);
      }
      at = to + 1;
      this.#progress.lines++;
      this.#line++;
      this.#lineStart += end + 1 - start + this.#dropped;
      this.#dropped = 0;
    }
  }

  /** Whether a line needs no parsing, because it is of the other type. */
  #isLeftOut(text: string, start: number, end: number): boolean {
    if (text.charCodeAt(end - 1) === CARRIAGE_RETURN) end--;
    const [ours, theirs] = ENDS[this.#only === "run" ? "event" : "run"];
    return (text.endsWith(ours, end) || text.endsWith(theirs, end)) && isSingleObject(text, start, end) &&
      this.#dropped === 0;
  }

  #parse(bytes: Uint8Array): void {
    if (bytes.length + this.#dropped > MAX_LINE_BYTES) {
      const tooLong = this.#rejection("line is too long", bytes, this.#lineStart);
      this.#found.push({ ...tooLong, length: bytes.length + this.#dropped });
      return;
    }
    for (const { start, end, judged } of splitLine(bytes)) {
      this.#found.push(
        typeof judged === "string"
          ? this.#rejection(judged, bytes.subarray(start, end), this.#lineStart + start)
          : { record: judged, file: this.#file, line: this.#line, offset: this.#lineStart },
      );
    }
  }

  #rejection(rejected: RejectionReason, bytes: Uint8Array, offset: number): Rejection {
    const text = LENIENT.decode(bytes.subarray(0, SHOWN_BYTES));
    return { rejected, file: this.#file, line: this.#line, offset, length: bytes.length, text };
  }
}

/** How both clients end a record of each type. Python puts a blank after each colon. */
const ENDS: Record<LogRecord["record_type"], [string, string]> = {
  run: ['"record_type":"run"}', '"record_type": "run"}'],
  event: ['"record_type":"event"}', '"record_type": "event"}'],
};

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

/** A record as a line of a log. Throws where readers would reject it. */
export function lineOf(record: LogRecord): string {
  // Converting more takes seconds, and V8 ends the process for an object with more text than a string can hold.
  let characters = 0;
  for (const field in record) characters += (record[field as keyof LogRecord] as unknown as string)?.length || 0;
  if (characters > MAX_LINE_BYTES) throw tooLong(characters);
  const line = toJson(record, "record") + "\n";
  const reason = validateRecord(record);
  if (reason !== undefined) {
    throw new TelemetryError("invalid_record", `not a valid record: ${reason}`, {
      hint: "a run needs run_id, agent_name and start_time; an event needs run_id, event_type and timestamp",
    });
  }
  // A character takes at most three bytes, so only long lines need to be encoded to count them.
  if (line.length * 3 > MAX_LINE_BYTES && new TextEncoder().encode(line).length > MAX_LINE_BYTES) {
    throw tooLong(line.length);
  }
  return line;
}

function tooLong(characters: number): TelemetryError {
  return new TelemetryError("invalid_record", `the record has ${characters} characters, too many for the log`, {
    hint: `the limit is ${MAX_LINE_BYTES} bytes; write large data to a file and record its path`,
  });
}
