/**
 * Finds the records that are whole in a line that is not.
 * @module
 */
import { type InvalidRecordReason, type LogRecord, validateRecord } from "../records.ts";

/** Why a part of a broken line is no record. */
export type BrokenReason = "not whole JSON" | "not UTF-8" | InvalidRecordReason;

/** What a power cut leaves. */
export const NUL = 0x00;
/** What ends a line. */
export const NEWLINE = 0x0a;
const SPACE = 0x20, QUOTE = 0x22, COMMA = 0x2c, MINUS = 0x2d;
const COLON = 0x3a, OPEN_LIST = 0x5b, BACKSLASH = 0x5c, CLOSE_LIST = 0x5d, OPEN = 0x7b, CLOSE = 0x7d;

const STRICT = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
/** Makes text of any bytes. */
export const LENIENT = new TextDecoder("utf-8", { ignoreBOM: true });

/** The text of UTF-8; undefined when it is none. */
export function decoded(bytes: Uint8Array): string | undefined {
  // Five times as fast as the strict decoder. What it puts in place of bytes that are no UTF-8 may also have been there.
  const text = LENIENT.decode(bytes);
  if (!text.includes("\ufffd")) return text;
  try {
    return STRICT.decode(bytes);
  } catch {
    return undefined;
  }
}

/** The value of a JSON text; undefined, which JSON cannot say, when it is none. */
export function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** The part of these bytes that is left without the NULs, blanks and BOMs at both ends. */
export function trimmed(bytes: Uint8Array, start: number, end: number): [start: number, end: number] {
  for (let size; start < end && (size = fillerAt(bytes, start)) > 0;) start += size;
  for (;;) {
    if (end > start && fillerAt(bytes, end - 1) === 1) end--;
    else if (end - start >= 3 && fillerAt(bytes, end - 3) === 3) end -= 3;
    else return [start, end];
  }
}

/** How many bytes the NUL, blank or BOM takes that stands here; 0 for anything else. */
function fillerAt(bytes: Uint8Array, at: number): number {
  const byte = bytes[at]!;
  if (byte === NUL || isBlank(byte)) return 1;
  return byte === 0xef && bytes[at + 1] === 0xbb && bytes[at + 2] === 0xbf ? 3 : 0;
}

/** What JSON takes for blank: space, tab, newline, carriage return. */
function isBlank(byte: number | undefined): boolean {
  return byte === SPACE || byte === NEWLINE || byte === 0x09 || byte === 0x0d;
}

/** A part of a broken line: a record, or why it is none. */
export interface Part {
  start: number;
  end: number;
  judged: LogRecord | BrokenReason;
}

/** What may come next inside of an object or array; instead of a key, of a first value or of a comma also its end. */
type Next = "value" | "key" | "colon" | "comma";

/**
 * Finds the whole records in a line that is not whole JSON, such as half a line with the next record glued to it.
 *
 * Each `{` before a quote may start a record. JSON is read from there for as long as it looks like JSON, knowing
 * nothing of what was before: a half line may have left a string open. Where an object ends, `JSON.parse` has the
 * last word. What is inside of a whole object is never looked at. Text inside of a string is never taken for a
 * record: every quote there has a backslash, and no JSON has one outside of strings.
 *
 * The work is linear. An object that was opened on the way to a break would break at the same place, so that it
 * is not tried again. All other starts were inside of strings then: each byte is read once with every string
 * taken for a string, and once with every string taken for what is between strings.
 */
export class BrokenLine {
  readonly #bytes: Uint8Array;
  /** 1 for each `{` that was opened while reading an object. */
  readonly #opened: Uint8Array;
  /** Where the bare words are in the object that was read last. */
  #bare: number[] = [];

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.#opened = new Uint8Array(bytes.length);
  }

  /** The records, and between them what is none: NULs, blanks and BOMs apart. */
  parts(): Part[] {
    const parts: Part[] = [];
    let refused: Part | undefined;
    let rest = 0;
    for (let start = this.#nextStart(0); start >= 0;) {
      const end = this.#opened[start] ? -1 : this.#read(start);
      const judged = end < 0 ? undefined : this.#judge(start, end);
      if (typeof judged === "object") {
        parts.push(...this.#between(rest, start, refused), { start, end, judged });
        rest = end;
      } else if (judged !== undefined) {
        refused = { start, end, judged };
      }
      start = this.#nextStart(end < 0 ? start + 1 : end);
    }
    parts.push(...this.#between(rest, this.#bytes.length, refused));
    return parts;
  }

  /** What is no record, as one rejection. An object that was refused says why, if there is nothing beside it. */
  #between(from: number, to: number, refused: Part | undefined): Part[] {
    const [start, end] = trimmed(this.#bytes, from, to);
    if (start === end) return [];
    if (refused?.start === start && refused.end === end) return [refused];
    const isText = decoded(this.#bytes.subarray(start, end)) !== undefined;
    return [{ start, end, judged: isText ? "not whole JSON" : "not UTF-8" }];
  }

  /** The next place where a record may start, or -1. */
  #nextStart(from: number): number {
    const bytes = this.#bytes;
    for (let at = from; at < bytes.length; at++) {
      if (bytes[at] === OPEN && bytes[afterBlanks(bytes, at + 1)] === QUOTE) return at;
    }
    return -1;
  }

  /** The record that these bytes are, which are a whole object, or why they are none. */
  #judge(start: number, end: number): LogRecord | BrokenReason {
    const text = decoded(this.#bare.length > 0 ? this.#withoutBare(start, end) : this.#bytes.subarray(start, end));
    if (text === undefined) return "not UTF-8";
    const value = parsed(text);
    if (value === undefined) return "not whole JSON";
    return validateRecord(value) ?? value as LogRecord;
  }

  /** These bytes with `null` for each of Python's bare words. */
  #withoutBare(start: number, end: number): Uint8Array {
    // The shortest of them, NaN, grows by one byte.
    const repaired = new Uint8Array(end - start + this.#bare.length);
    let filled = 0;
    const copy = (bytes: Uint8Array) => {
      repaired.set(bytes, filled);
      filled += bytes.length;
    };
    for (const bare of this.#bare) {
      copy(this.#bytes.subarray(start, bare));
      copy(NULL);
      start = wordEnd(this.#bytes, bare);
    }
    copy(this.#bytes.subarray(start, end));
    return repaired.subarray(0, filled);
  }

  /** Where the object ends that starts here, or -1 where it breaks off before it does. */
  #read(start: number): number {
    const bytes = this.#bytes;
    const objects: number[] = []; // where each open object starts
    const lists: number[] = []; // and how many arrays are open inside of it
    let next: Next = "value";
    let glued = -1;
    this.#bare = [];
    for (let at = start, end; true; at = end) {
      at = afterBlanks(bytes, at);
      end = at + 1;
      let whole = -1;
      const byte = bytes[at];
      const inList = lists.at(-1)! > 0;
      if (byte === OPEN && next === "value") {
        this.#opened[at] = 1;
        objects.push(at);
        lists.push(0);
        next = "key";
      } else if (byte === OPEN_LIST && next === "value") {
        lists[lists.length - 1]!++;
      } else if (byte === CLOSE && !inList && (next === "key" || next === "comma")) {
        whole = objects.pop()!;
        lists.pop();
        if (objects.length === 0) return end;
        next = "comma";
      } else if (byte === CLOSE_LIST && inList && (next === "value" || next === "comma")) {
        lists[lists.length - 1]!--;
        next = "comma";
      } else if (byte === COMMA && next === "comma") {
        next = inList ? "value" : "key";
      } else if (byte === COLON && next === "colon") {
        next = "value";
      } else if (byte === QUOTE && next === "key") {
        end = stringEnd(bytes, at);
        next = "colon";
      } else {
        end = next === "value" ? this.#scalarEnd(at) : -1;
        next = "comma";
      }
      if (end < 0) break;
      glued = whole;
    }
    // A whole object right before the break may be a record that was glued to half a line: it is read for itself.
    if (glued >= 0) this.#opened[glued] = 0;
    return -1;
  }

  /** Where the string, word or number ends that starts here, or -1. Python's bare words are noted. */
  #scalarEnd(at: number): number {
    if (this.#bytes[at] === QUOTE) return stringEnd(this.#bytes, at);
    const end = wordEnd(this.#bytes, at);
    if (end === at) return -1;
    // Numbers, `true` and the like would be slow to decode one by one.
    const letter = this.#bytes[at] === MINUS ? this.#bytes[at + 1] : this.#bytes[at];
    if (letter === 0x49 || letter === 0x4e) {
      if (BARE_WORDS.includes(LENIENT.decode(this.#bytes.subarray(at, end)))) this.#bare.push(at);
    }
    return end;
  }
}

const NULL = new TextEncoder().encode("null");
/** What Python's `json.dumps` writes and no JSON has. */
const BARE_WORDS = ["NaN", "Infinity", "-Infinity"];

/** Where the letters, digits, signs and dots end that stand here. Whether JSON has such a word, `JSON.parse` says. */
function wordEnd(bytes: Uint8Array, at: number): number {
  for (; at < bytes.length; at++) {
    const byte = bytes[at]!;
    const letter = byte | 0x20;
    const isPart = byte >= 0x30 && byte <= 0x39 || letter >= 0x61 && letter <= 0x7a || byte === 0x2b ||
      byte === MINUS || byte === 0x2e;
    if (!isPart) break;
  }
  return at;
}

/** Where the next byte is that is not blank; beyond the last one if there is none. */
function afterBlanks(bytes: Uint8Array, at: number): number {
  while (at < bytes.length && isBlank(bytes[at])) at++;
  return at;
}

/** Where the string ends whose quote is here, or -1. No JSON has control characters in there. */
function stringEnd(bytes: Uint8Array, quote: number): number {
  for (let at = quote + 1; at < bytes.length; at++) {
    const byte = bytes[at]!;
    if (byte === QUOTE) return at + 1;
    if (byte < SPACE) return -1;
    if (byte === BACKSLASH) at++;
  }
  return -1;
}
