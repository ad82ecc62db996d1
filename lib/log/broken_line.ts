/**
 * Finds the complete records on a line that is not one JSON value.
 * @module
 */
import { Buffer } from "node:buffer";
import { parseWithSources, withoutNaN } from "./json_source.ts";
import { type InvalidRecordReason, type LogRecord, validateRecord } from "../records.ts";

/** Why a part of a broken line is not a record. */
export type BrokenReason = "not whole JSON" | "not UTF-8" | InvalidRecordReason;

/** Part of a line, from byte `start` up to byte `end`: a record, or why it is not one. */
export interface Part {
  start: number;
  end: number;
  judged: LogRecord | BrokenReason;
}

export const NUL = 0x00, NEWLINE = 0x0a;
const SPACE = 0x20, QUOTE = 0x22, COMMA = 0x2c, COLON = 0x3a, OPEN_LIST = 0x5b, BACKSLASH = 0x5c;
const CLOSE_LIST = 0x5d, OPEN = 0x7b, CLOSE = 0x7d;

const STRICT = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
/** Decodes any bytes. */
export const LENIENT = new TextDecoder("utf-8", { ignoreBOM: true });

/** The text of these bytes; undefined when they are not UTF-8. */
export function decodeUtf8(bytes: Uint8Array): string | undefined {
  // The lenient decoder is five times as fast, but it writes U+FFFD for invalid bytes, and the log may contain U+FFFD.
  const text = LENIENT.decode(bytes);
  if (!text.includes("\ufffd")) return text;
  try {
    return STRICT.decode(bytes);
  } catch {
    return undefined;
  }
}

/** Bytes as text of one character each: a place in it is a place in the bytes, and it is searched faster. */
export function latin1({ buffer, byteOffset, byteLength }: Uint8Array): string {
  return Buffer.from(buffer, byteOffset, byteLength).toString("latin1");
}

/** The value of a JSON text; undefined when it is not JSON. */
export function parseJson(text: string): unknown {
  try {
    return parseWithSources(text);
  } catch {
    return undefined;
  }
}

/** Where the content of these bytes starts and ends: without NULs, blanks and BOMs around it. */
export function trim(bytes: Uint8Array, start: number, end: number): [start: number, end: number] {
  for (let size; start < end && (size = fillerSize(bytes, start)) > 0;) start += size;
  for (;;) {
    if (end > start && fillerSize(bytes, end - 1) === 1) end--;
    else if (end - start >= 3 && fillerSize(bytes, end - 3) === 3) end -= 3;
    else return [start, end];
  }
}

function fillerSize(bytes: Uint8Array, at: number): number {
  if (bytes[at] === NUL || isBlank(bytes[at])) return 1;
  return bytes[at] === 0xef && bytes[at + 1] === 0xbb && bytes[at + 2] === 0xbf ? 3 : 0;
}

function isBlank(byte: number | undefined): boolean {
  return byte === SPACE || byte === NEWLINE || byte === 0x09 || byte === 0x0d;
}

function skipBlanks(bytes: Uint8Array, at: number, step: 1 | -1 = 1): number {
  while (isBlank(bytes[at])) at += step;
  return at;
}

/**
 * Splits a broken line into its records and what lies between them. A typical line is half a record, left by a writer
 * that was killed, followed by the complete record of the next writer.
 *
 * Each object between matching braces that `JSON.parse` accepts counts, outermost first. A record inside of an object
 * counts only where that object breaks off right after it.
 */
export function splitBrokenLine(bytes: Uint8Array): Part[] {
  const parts: Part[] = [];
  const { starts, ends } = findObjects(bytes);
  // Objects that contain each other and do not parse cost quadratic time. Give up before that hurts.
  let budget = 16 * bytes.length + 1024 * 1024;
  let refused: Part | undefined;
  let rest = 0, done = 0;
  for (let i = 0; i < starts.length && budget > 0; i++) {
    const [start, end] = [starts[i]!, ends[i]!];
    if (end < 0 || start < done || isMember(bytes, start, end)) continue;
    budget -= end - start;
    const text = decodeUtf8(bytes.subarray(start, end));
    const value = text === undefined ? undefined : parseJson(text) ?? parseJson(withoutNaN(text));
    if (value === undefined) continue;
    done = end;
    const reason = validateRecord(value);
    if (reason === undefined) {
      parts.push(...rejectBetween(bytes, rest, start, refused), { start, end, judged: value as LogRecord });
      rest = end;
    } else {
      refused = { start, end, judged: reason };
    }
  }
  parts.push(...rejectBetween(bytes, rest, bytes.length, refused));
  return parts;
}

/** One rejection for these bytes, or none where they are only filler. An object that fills them gives its own reason. */
function rejectBetween(bytes: Uint8Array, from: number, to: number, refused: Part | undefined): Part[] {
  const [start, end] = trim(bytes, from, to);
  if (start === end) return [];
  if (refused?.start === start && refused.end === end) return [refused];
  return [{
    start,
    end,
    judged: decodeUtf8(bytes.subarray(start, end)) === undefined ? "not UTF-8" : "not whole JSON",
  }];
}

/** Whether an object is a value inside of another object or array, which goes on after it. */
function isMember(bytes: Uint8Array, start: number, end: number): boolean {
  const before = bytes[skipBlanks(bytes, start - 1, -1)];
  const after = bytes[skipBlanks(bytes, end)];
  return (before === COLON || before === COMMA || before === OPEN_LIST) &&
    (after === COMMA || after === CLOSE || after === CLOSE_LIST);
}

/** Where objects start, in order, and where each one ends: -1 where no brace closes it. Takes linear time. */
function findObjects(bytes: Uint8Array): { starts: number[]; ends: number[] } {
  const starts: number[] = [], ends: number[] = [], open: number[] = [];
  for (let at = 0; at < bytes.length; at++) {
    const byte = bytes[at];
    if (byte === OPEN) {
      open.push(starts.length);
      starts.push(at);
      ends.push(-1);
    } else if (byte === CLOSE) {
      const closed = open.pop();
      if (closed !== undefined) ends[closed] = at + 1;
    } else if (byte === QUOTE) {
      at = skipString(bytes, at);
    }
  }
  return { starts, ends };
}

/** The last byte of the string that starts here. A string that was cut ends where the next record starts. */
function skipString(bytes: Uint8Array, quote: number): number {
  let at = quote + 1;
  for (; at < bytes.length && bytes[at] !== QUOTE; at++) {
    const next = bytes[at + 1];
    if (bytes[at] === BACKSLASH && (next === QUOTE || next === BACKSLASH)) at++;
    else if (bytes[at] === OPEN && isRecordStart(bytes, at)) return at - 1;
  }
  return at;
}

/**
 * Whether a brace found in a string starts an object all the same: `{`, a key in quotes, `:`. In a string, quotes have
 * a backslash. Where the string ends with a brace, a comma or colon stands between it and the next one.
 */
function isRecordStart(bytes: Uint8Array, brace: number): boolean {
  let at = skipBlanks(bytes, brace + 1);
  if (bytes[at] !== QUOTE) return false;
  for (at++; at < bytes.length && bytes[at] !== QUOTE; at++) {
    if (bytes[at] === COMMA || bytes[at] === COLON || bytes[at] === BACKSLASH) return false;
  }
  return bytes[skipBlanks(bytes, at + 1)] === COLON;
}
