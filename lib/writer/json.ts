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
    // A conversion takes several times as long, and few values need it.
    const isPlain = countParts(value, 0, new Map()) !== undefined;
    const form = isPlain ? value : new Conversion(name, warnings).convert(value, "");
    if (countParts(form, 0, new Map())! > MAX_PARTS) throw new RangeError("too many parts");
    text = JSON.stringify(form);
  } catch (error) {
    const reason = error instanceof RangeError ? "too long" : errorMessage(error);
    warnings.warn(`json:${name}`, `${name} cannot be written as JSON (${reason}): it is recorded as text`);
  }
  text ??= JSON.stringify(shortText(value));
  // JSON writes lone halves of pairs and NUL as escapes, which PostgreSQL refuses in jsonb, in keys, too.
  if (!/\\u(?:d[89a-f]|0000)/.test(text)) return text;
  return text.replace(/\\(u[0-9a-f]{4}|.)/g, (escape, code: string) => {
    if (code === "u0000") warnings.warn(`json:${name}:nul`, `${name} contains NUL: it is recorded as ␀`);
    return code === "u0000" ? "\u2400" : code.startsWith("ud") ? "\ufffd" : escape;
  });
}

/**
 * How many parts the JSON of a value has, also where objects share others so often that `JSON.stringify` would never end.
 * Undefined when JSON does not represent the value as it is.
 */
function countParts(value: unknown, depth: number, known: Map<unknown, number>): number | undefined {
  if (typeof value === "number") return Number.isFinite(value) ? 1 : undefined;
  if (typeof value !== "object" || value === null) {
    return ["bigint", "symbol", "function"].includes(typeof value) ? undefined : 1;
  }
  let parts = known.get(value);
  // Not a number while its parts are counted: it contains itself.
  if (parts !== undefined) return Number.isNaN(parts) ? undefined : parts;
  known.set(value, NaN);
  try {
    const isArray = Array.isArray(value);
    if (depth > MAX_DEPTH || "toJSON" in value || !isArray && !isRecord(value)) return undefined;
    if (Object.getOwnPropertySymbols(value).length > 0) return undefined;
    parts = 1;
    for (const part of isArray ? value : Object.values(value)) {
      const inner = countParts(part, depth + 1, known);
      if (inner === undefined) return undefined;
      parts += inner;
    }
    known.set(value, parts);
    return parts;
  } catch {
    return undefined; // A getter or a proxy threw.
  }
}

function isRecord(value: object): boolean {
  const prototype: unknown = Object.getPrototypeOf(value);
  return prototype === Object.prototype || prototype === null;
}

/** Converts one value to parts that JSON represents as they are. */
class Conversion {
  readonly #name: string;
  readonly #warnings: Warnings;
  readonly #parents: object[] = [];
  /** Objects can share others so often that converting each of them again would never end. */
  readonly #converted = new Map<object, unknown>();

  constructor(name: string, warnings: Warnings) {
    this.#name = name;
    this.#warnings = warnings;
  }

  convert(value: unknown, key: string): unknown {
    if (typeof value === "number") return Number.isFinite(value) ? value : String(value);
    if (typeof value === "bigint") return Number.isSafeInteger(Number(value)) ? Number(value) : String(value);
    if (typeof value === "symbol" || typeof value === "function") return toText(value);
    if (typeof value !== "object" || value === null) return value;
    if (this.#parents.includes(value)) return this.#textOf(value, `contains itself at ${key}`);
    if (this.#parents.length >= MAX_DEPTH) return this.#textOf(value, `is nested too deeply at ${key}`);
    if (this.#converted.has(value)) return this.#converted.get(value);
    this.#parents.push(value);
    try {
      const converted = this.#convertObject(value, key);
      this.#converted.set(value, converted);
      return converted;
    } catch (error) {
      return this.#textOf(value, `has no JSON form at ${key} (${errorMessage(error)})`);
    } finally {
      this.#parents.pop();
    }
  }

  #convertObject(value: object, key: string): unknown {
    if (Array.isArray(value)) return this.#list(value);
    const keys: (string | symbol)[] = Object.keys(value);
    if ("toJSON" in value && typeof value.toJSON === "function") {
      // JSON turns an invalid date into null.
      const form: unknown = value instanceof Date && isNaN(value.getTime()) ? String(value) : value.toJSON(key);
      if (form !== value) return this.convert(form, key);
    } else if (!isRecord(value)) {
      if ([RegExp, String, Number, Boolean, BigInt].some((type) => value instanceof type)) return String(value);
      if (ArrayBuffer.isView(value) || value instanceof ArrayBuffer || value instanceof SharedArrayBuffer) {
        return this.#list(bytesOf(value));
      }
      if (value instanceof Set) return this.#list(value);
      if ([Map, Headers, URLSearchParams, FormData].some((type) => value instanceof type)) {
        return this.#entries([...value as Iterable<[unknown, unknown]>]);
      }
      if (value instanceof Error) keys.unshift("name", "message", "stack", "cause", "errors");
      else if (keys.length === 0) return this.#textOf(value, `has no JSON form at ${key}`);
    }
    // Classes of Deno keep what is private under symbols.
    const symbols = isRecord(value) ? Object.getOwnPropertySymbols(value) : [];
    keys.push(...symbols.filter((symbol) => Object.prototype.propertyIsEnumerable.call(value, symbol)));
    return Object.fromEntries(keys.map((key) => [toText(key), this.#member(value, key)]));
  }

  #member(value: object, key: string | symbol): unknown {
    try {
      return this.convert((value as Record<string | symbol, unknown>)[key], toText(key));
    } catch (error) {
      return this.#textOf(undefined, `cannot be read at ${toText(key)} (${errorMessage(error)})`);
    }
  }

  #list(values: Iterable<unknown>): unknown[] {
    return Array.from(values, (part, i) => this.convert(part, String(i)));
  }

  /** An object; where different keys have the same text, a list of pairs. */
  #entries(entries: [unknown, unknown][]): unknown {
    const members = new Map(entries.map(([key, part]) => [toText(key), part]));
    if (members.size < entries.length) return this.#list(entries);
    return Object.fromEntries([...members].map(([key, part]) => [key, this.convert(part, key)]));
  }

  #textOf(value: unknown, what: string): string {
    this.#warnings.warn(`json:${this.#name}`, `${this.#name} ${what}: this part is recorded as text`);
    return value === undefined ? "unknown" : shortText(value);
  }
}

/** Numbers of a typed array; the bytes of any other buffer. */
function bytesOf(value: ArrayBufferView | ArrayBuffer | SharedArrayBuffer): Iterable<unknown> {
  if (!ArrayBuffer.isView(value)) return new Uint8Array(value);
  if (value instanceof DataView) return new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
  return value as Uint8Array;
}

/** False for a proxy that was revoked, which cannot be examined. */
function isList(value: unknown): boolean {
  try {
    return Array.isArray(value) || ArrayBuffer.isView(value);
  } catch {
    return false;
  }
}

/** The text of a list would have all its parts. */
function shortText(value: unknown): string {
  return toText(isList(value) ? "[object Array]" : value).slice(0, MAX_TEXT);
}
