/**
 * Finds the records in a line that is not JSON as a whole, such as half a line with the next record glued to it.
 * @module
 */
import { type InvalidRecordReason, type LogRecord, validateRecord } from "../records.ts";

/** Why a part of a line is not a record. */
export type BrokenReason = "not whole JSON" | "not UTF-8" | InvalidRecordReason;

/** A part of a line: a record, or why it is not one. `start` and `end` count bytes. */
export interface Part {
  start: number;
  end: number;
  judged: LogRecord | BrokenReason;
}

export const NUL = 0x00;
export const NEWLINE = 0x0a;

const STRICT = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
export const LENIENT = new TextDecoder("utf-8", { ignoreBOM: true });
/** One character a byte, so that an index in the text is an index in the bytes. */
const ONE_TO_ONE = new TextDecoder("latin1");

/** Decodes UTF-8. Returns undefined for bytes that are not UTF-8. */
export function decodeUtf8(bytes: Uint8Array): string | undefined {
  // The lenient decoder is five times as fast. U+FFFD may also be in the text itself.
  const text = LENIENT.decode(bytes);
  if (!text.includes("\ufffd")) return text;
  try {
    return STRICT.decode(bytes);
  } catch {
    return undefined;
  }
}

/** Parses JSON, and Python's `NaN` and `Infinity` as null. Returns undefined for any other text. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    if (!/NaN|Infinity/.test(text)) return undefined;
  }
  try {
    // Alone on a line these words are garbage.
    return JSON.parse(text.replace(BARE_WORD, (word) => word.startsWith('"') ? word : "null")) ?? undefined;
  } catch {
    return undefined;
  }
}

/** What Python's `json.dumps` writes for numbers that JSON lacks; or a string, in which these are text. */
const BARE_WORD = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\bInfinity\b|(?<!-)\bNaN\b/g;

/** How an object in JSON starts. Inside a string the quotes would be escaped. */
const OBJECT_START = /\{[ \t\r\n]*"(?:[^"\\]|\\.){0,256}"[ \t\r\n]*:/g;
/** After one of these an object may be nested in another one. After anything else it starts a record. */
const BEFORE_NESTED = ":[,";
/** How many bytes are read in search of records: so many, and so many times the length of the line. */
const MAX_READ_BYTES = 4 * 1024 * 1024;
const MAX_READ_TIMES = 4;

/**
 * Splits a broken line into records and what lies between them.
 *
 * Works from the end to the start, since a record that was appended to half a line is complete up to the end. An object
 * that cannot be nested in another one ends where its brackets close. One that may be nested is a record only when it
 * reaches to the next start: otherwise it is a part of the object around it.
 */
export function splitBrokenLine(bytes: Uint8Array): Part[] {
  const text = ONE_TO_ONE.decode(bytes);
  const starts = Array.from(text.matchAll(OBJECT_START), ({ index }) => index);
  const records: Part[] = [];
  const refused: Part[] = [];
  /** Where the next record starts, and where the next object starts, which may be broken. */
  let [nextRecord, nextStart] = [bytes.length, bytes.length];
  let mayRead = MAX_READ_BYTES + MAX_READ_TIMES * bytes.length;
  for (const start of starts.reverse()) {
    if (mayRead < 0) break;
    const isNested = BEFORE_NESTED.includes(lastBefore(text, start));
    const end = isNested ? trim(bytes, start, nextStart)[1] : objectEnd(text, start, nextRecord);
    mayRead -= (end < 0 ? nextRecord : end) - start;
    const judged = end < 0 ? undefined : judge(bytes.subarray(start, end));
    if (judged !== undefined) {
      (typeof judged === "object" ? records : refused).push({ start, end, judged });
      nextRecord = nextStart = start;
    } else if (!isNested) nextStart = start;
  }
  const parts: Part[] = [];
  let rest = 0;
  for (const record of records.reverse()) {
    parts.push(...gap(bytes, rest, record.start, refused), record);
    rest = record.end;
  }
  return [...parts, ...gap(bytes, rest, bytes.length, refused)];
}

/** The last character before a place that is not blank; a newline when there is none. */
function lastBefore(text: string, at: number): string {
  while (at > 0 && " \t\r\n".includes(text[at - 1]!)) at--;
  return text[at - 1] ?? "\n";
}

/** Where the brackets of an object close, or -1. Does not check that it is JSON. */
function objectEnd(text: string, start: number, end: number): number {
  let depth = 0;
  for (let at = start; at < end; at++) {
    const character = text[at];
    if (character === '"') {
      do at = text.indexOf('"', at + 1); while (at > 0 && isEscaped(text, at));
      if (at < 0) return -1;
    } else if (character === "{" || character === "[") depth++;
    else if ((character === "}" || character === "]") && --depth === 0) return at + 1;
  }
  return -1;
}

function isEscaped(text: string, quote: number): boolean {
  let at = quote;
  while (text[at - 1] === "\\") at--;
  return (quote - at) % 2 === 1;
}

/** The record in these bytes, why it is not a record, or undefined when it is not JSON. */
function judge(bytes: Uint8Array): LogRecord | BrokenReason | undefined {
  const text = decodeUtf8(bytes);
  const value = text === undefined ? undefined : parseJson(text);
  return value === undefined ? undefined : validateRecord(value) ?? value as LogRecord;
}

/** What lies between two records, as one part. When it is a single object, `refused` says why it is not a record. */
function gap(bytes: Uint8Array, from: number, to: number, refused: Part[]): Part[] {
  const [start, end] = trim(bytes, from, to);
  if (start === end) return [];
  const whole = refused.find((part) => part.start === start && part.end === end);
  if (whole) return [whole];
  const isText = decodeUtf8(bytes.subarray(start, end)) !== undefined;
  return [{ start, end, judged: isText ? "not whole JSON" : "not UTF-8" }];
}

/** The range without the NULs, blanks and BOMs at its ends. */
export function trim(bytes: Uint8Array, start: number, end: number): [start: number, end: number] {
  for (let size; start < end && (size = fillerAt(bytes, start)) > 0;) start += size;
  for (;;) {
    if (end > start && fillerAt(bytes, end - 1) === 1) end--;
    else if (end - start >= 3 && fillerAt(bytes, end - 3) === 3) end -= 3;
    else return [start, end];
  }
}

/** The size of the NUL, blank or BOM at this place, or 0. */
function fillerAt(bytes: Uint8Array, at: number): number {
  const byte = bytes[at]!;
  if (byte === NUL || byte === NEWLINE || byte === 0x20 || byte === 0x09 || byte === 0x0d) return 1;
  return byte === 0xef && bytes[at + 1] === 0xbb && bytes[at + 2] === 0xbf ? 3 : 0;
}
