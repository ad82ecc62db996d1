/** Converts any value to JSON text that every reader accepts. @module */
import { errorMessage } from "../errors.ts";
import { MAX_LINE_BYTES } from "../records.ts";
import { toText, type Warnings } from "./warnings.ts";

/** Readers stop at other depths: Python at 1,000, others at less. */
const MAX_DEPTH = 200;
/** A value with more parts is too long for a line of the log. */
const MAX_PARTS = MAX_LINE_BYTES / 2;
/** The length of the text that stands for a part without a JSON form. */
const MAX_TEXT = 1000;

/**
 * Converts a value to JSON text. Values that JSON would lose are converted to what shows them: errors, maps, sets, big
 * integers, bytes, NaN. A part that has no JSON form is replaced by its text, with a warning that calls the value `name`.
 */
export function jsonOf(value: unknown, name: string, warnings: Warnings): string {
  let text: string | undefined;
  try {
    const isObject = typeof value === "object" && value !== null;
    text = JSON.stringify(isObject ? formOfParts(value, name, warnings) : formOfPrimitive(value));
  } catch (error) {
    const what = `cannot be written as JSON (${errorMessage(error)})`;
    text = JSON.stringify(textOf(value, name, what, warnings));
  }
  return withoutBadEscapes(text ?? "null", name, warnings);
}

function textOf(part: unknown, name: string, what: string, warnings: Warnings): string {
  warnings.warn(`json:${name}`, `${name} ${what}: it is recorded as text`);
  try {
    // The text of a list would have all its parts.
    return Array.isArray(part) || ArrayBuffer.isView(part) ? "[object Array]" : toText(part).slice(0, MAX_TEXT);
  } catch {
    // A proxy that was revoked cannot be examined.
    return "unknown";
  }
}

/** The value with its parts converted to what JSON represents as it is. Throws when it has too many. */
function formOfParts(value: object, name: string, warnings: Warnings): unknown {
  const parents = new Set<object>();
  /** Objects can share others so often that converting each of them again would never end. */
  const converted = new Map<object, { form: unknown; parts: number }>();
  let parts = 0;

  /** What throws costs only this part. */
  function convert(holder: object, key: Key): unknown {
    // More is refused below.
    if (++parts > MAX_PARTS) return undefined;
    let part: unknown = "unknown";
    try {
      part = (holder as Record<Key, unknown>)[key];
      if (typeof part !== "object" || part === null) return formOfPrimitive(part);
      if (parents.has(part)) return textOf(part, name, `contains itself${at(key)}`, warnings);
      if (parents.size >= MAX_DEPTH) return textOf(part, name, `is nested too deeply${at(key)}`, warnings);
      const known = converted.get(part);
      if (known === undefined) return convertObject(part, key);
      parts += known.parts;
      return known.form;
    } catch (error) {
      return textOf(part, name, `has no JSON form${at(key)} (${errorMessage(error)})`, warnings);
    }
  }

  function convertObject(part: object, key: Key): unknown {
    const before = parts;
    parents.add(part);
    try {
      const form = formOfObject(part, key);
      converted.set(part, { form, parts: parts - before });
      return form;
    } finally {
      parents.delete(part);
    }
  }

  function formOfObject(part: object, key: Key): unknown {
    if (!isPlain(part)) {
      if (BOXES.some((type) => part instanceof type)) return formOfPrimitive(part.valueOf());
      // JSON turns an invalid date into null.
      if (part instanceof RegExp || part instanceof Date && isNaN(part.getTime())) return String(part);
    }
    if ("toJSON" in part && typeof part.toJSON === "function") {
      const form: unknown = part.toJSON(String(key));
      if (form !== part) return convert({ [key]: form }, key);
    }
    const shown = membersOf(part);
    if (shown === undefined) return textOf(part, name, `has no JSON form${at(key)}`, warnings);
    // Loops, since lists of pairs would take several times as long.
    if (Array.isArray(shown) || isNumbers(shown)) {
      // Not converted part by part: that would block the agent for its whole length.
      if (parts + shown.length > MAX_PARTS) throw new RangeError("too long");
      const list: unknown[] = [];
      for (let i = 0; i < shown.length; i++) list.push(convert(shown, i));
      return list;
    }
    const form: Record<string, unknown> = Object.create(null);
    for (const key of keysOf(shown)) form[newKey(form, key, name, warnings)] = convert(shown, key);
    return form;
  }

  const form = convert({ "": value }, "");
  if (parts > MAX_PARTS) throw new RangeError("too long");
  return form;
}

/** The text of a key that no other member has: symbols, and keys with NUL or half of a pair, can become the same text. */
export function newKey(members: object, key: Key, name: string, warnings: Warnings): string {
  let text = toText(key);
  if (text.includes("\0")) text = JSON.parse(withoutBadEscapes(JSON.stringify(text), name, warnings)) as string;
  while (text in members) text += "\ufffd";
  return text;
}

/** JSON whose escapes PostgreSQL accepts in jsonb: no NUL, and no lone half of a pair. */
export function withoutBadEscapes(json: string, name: string, warnings: Warnings): string {
  if (!/\\u(?:d[89a-f]|0000)/i.test(json)) return json;
  return json.replace(/\\(?:ud[89ab]..\\ud[c-f]..|u....|.)/gi, (escape) => {
    if (escape === "\\u0000") warnOfNul(name, warnings);
    return escape === "\\u0000" ? "␀" : /^\\ud[89a-f]..$/i.test(escape) ? "\ufffd" : escape;
  });
}

export function warnOfNul(name: string, warnings: Warnings): void {
  warnings.warn(`json:${name}:nul`, `${name} contains NUL: it is recorded as ␀`);
}

type Key = string | number | symbol;

/** Where a part is; the value itself has the key "". */
function at(key: Key): string {
  return key === "" ? "" : ` at ${toText(key)}`;
}

/** The classes of `new Number(3)` and the like, which JSON writes as what they contain. */
const BOXES = [String, Number, Boolean, BigInt];

function formOfPrimitive(value: unknown): unknown {
  if (typeof value === "number") return Number.isFinite(value) ? value : String(value);
  if (typeof value === "bigint") return Number.isSafeInteger(Number(value)) ? Number(value) : String(value);
  return typeof value === "symbol" || typeof value === "function" ? toText(value) : value;
}

/** An array or an object that shows what the value contains. Undefined when JSON would show nothing of it. */
function membersOf(value: object): object | undefined {
  if (isPlain(value)) return value;
  if (value instanceof Set) return [...value];
  if (value instanceof DataView) return new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
  if (isNumbers(value)) return value;
  if (value instanceof ArrayBuffer || value instanceof SharedArrayBuffer) return new Uint8Array(value);
  if ([Map, Headers, URLSearchParams, FormData].some((type) => value instanceof type)) {
    const entries = [...value as Map<unknown, unknown>];
    const members = new Map(entries.map(([key, part]) => [toText(key), part]));
    // Where different keys have the same text, a list of pairs.
    return members.size < entries.length ? entries : Object.fromEntries(members);
  }
  return keysOf(value).length > 0 ? value : undefined;
}

/** Whether a value is a typed array. */
function isNumbers(value: object): value is Uint8Array {
  return ArrayBuffer.isView(value) && !(value instanceof DataView);
}

/** Those that an error has without listing them. */
const ERROR_KEYS = ["name", "message", "stack", "cause", "errors", "error", "suppressed"];

function keysOf(value: object): (string | symbol)[] {
  const keys = Object.keys(value);
  if (value instanceof Error) return [...new Set([...ERROR_KEYS, ...keys])];
  // Classes of Deno keep what is private under symbols.
  if (!isRecord(value)) return keys;
  const symbols = Object.getOwnPropertySymbols(value);
  if (symbols.length === 0) return keys;
  return [...keys, ...symbols.filter((key) => Object.prototype.propertyIsEnumerable.call(value, key))];
}

function isPlain(value: object): boolean {
  return Array.isArray(value) || isRecord(value);
}

function isRecord(value: object): boolean {
  const prototype: unknown = Object.getPrototypeOf(value);
  return prototype === Object.prototype || prototype === null;
}
