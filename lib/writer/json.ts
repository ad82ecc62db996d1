/** Converts any value to JSON text that every reader accepts. @module */
import { errorMessage } from "../errors.ts";
import { toText, type Warnings } from "./warnings.ts";

/** Readers stop at other depths: Python at 1,000, others at less. */
const MAX_DEPTH = 200;
/** Objects can share others so often that writing them out would never end. */
const MAX_PARTS = 1_000_000;
/** The length of the text that stands for a part without a JSON form. */
const MAX_TEXT = 1000;

/**
 * Converts a value to JSON text. Values that JSON would lose are converted to what shows them: errors, maps, sets, big
 * integers, bytes, NaN. A part that has no JSON form is replaced by its text, with a warning that calls the value `name`.
 */
export function jsonOf(value: unknown, name: string, warnings: Warnings): string {
  const conversion = new Conversion(name, warnings);
  try {
    return JSON.stringify(conversion.convert(value, "")) ?? "null";
  } catch {
    return JSON.stringify(conversion.textOf(value, "is too long for JSON"));
  }
}

/** Converts one value to parts that JSON represents as they are. */
class Conversion {
  readonly #name: string;
  readonly #warnings: Warnings;
  readonly #parents: object[] = [];
  #parts = 0;

  constructor(name: string, warnings: Warnings) {
    this.#name = name;
    this.#warnings = warnings;
  }

  /** Throws only when the value has too many parts. */
  convert(value: unknown, key: string): unknown {
    if (++this.#parts > MAX_PARTS) throw new RangeError("too many parts");
    if (typeof value === "string") return this.#clean(value);
    if (typeof value === "number") return Number.isFinite(value) ? value : String(value);
    if (typeof value === "bigint") return Number.isSafeInteger(Number(value)) ? Number(value) : String(value);
    if (typeof value === "symbol" || typeof value === "function") return this.#clean(toText(value));
    if (typeof value !== "object" || value === null) return value;

    if (this.#parents.includes(value)) return this.textOf(value, `contains itself at ${key}`);
    if (this.#parents.length >= MAX_DEPTH) return this.textOf(value, `is nested too deeply at ${key}`);
    this.#parents.push(value);
    try {
      return this.#convertObject(value, key);
    } catch (error) {
      if (this.#parts > MAX_PARTS) throw error;
      return this.textOf(value, `has no JSON form at ${key} (${errorMessage(error)})`);
    } finally {
      this.#parents.pop();
    }
  }

  /** The text that stands for a part, with a warning. */
  textOf(value: unknown, what: string): string {
    this.#warnings.warn(`json:${this.#name}`, `${this.#name} ${what}: this part is recorded as text`);
    return this.#clean(shortText(value));
  }

  #convertObject(value: object, key: string): unknown {
    if (Array.isArray(value) || value instanceof Set) return this.#list(value);
    if ("toJSON" in value && typeof value.toJSON === "function") {
      // JSON turns an invalid date into null.
      const form: unknown = value instanceof Date && isNaN(value.getTime()) ? String(value) : value.toJSON(key);
      if (form !== value) return this.convert(form, key);
    }
    const keys = Object.keys(value);
    if (!isRecord(value)) {
      if (ArrayBuffer.isView(value) || value instanceof ArrayBuffer) return this.#list(bytesOf(value));
      if ([Map, Headers, URLSearchParams, FormData].some((type) => value instanceof type)) {
        return this.#entries([...value as Iterable<[unknown, unknown]>]);
      }
      if (value instanceof RegExp) return String(value);
      if (value instanceof Error) keys.unshift("name", "message", "stack", "cause", "errors");
      else if (keys.length === 0) return this.textOf(value, `has no JSON form at ${key}`);
    }
    return Object.fromEntries(keys.map((key) => [this.#clean(key), this.#member(value, key)]));
  }

  #member(value: object, key: string): unknown {
    let part: unknown;
    try {
      part = (value as Record<string, unknown>)[key];
    } catch (error) {
      return this.textOf("unknown", `cannot be read at ${key} (${errorMessage(error)})`);
    }
    return this.convert(part, key);
  }

  #list(values: Iterable<unknown>): unknown[] {
    return Array.from(values, (part, i) => this.convert(part, String(i)));
  }

  /** An object; where different keys have the same text, a list of pairs. */
  #entries(entries: [unknown, unknown][]): unknown {
    const members = new Map(entries.map(([key, part]) => [this.#clean(toText(key)), part]));
    if (members.size < entries.length) return this.#list(entries);
    return Object.fromEntries([...members].map(([key, part]) => [key, this.convert(part, key)]));
  }

  /** PostgreSQL refuses lone halves of pairs and NUL in jsonb. */
  #clean(text: string): string {
    if (!text.includes("\0")) return text.toWellFormed();
    this.#warnings.warn(`json:${this.#name}:nul`, `${this.#name} contains NUL: it is recorded as ␀`);
    return text.replaceAll("\0", "␀").toWellFormed();
  }
}

function isRecord(value: object): boolean {
  const prototype: unknown = Object.getPrototypeOf(value);
  return prototype === Object.prototype || prototype === null;
}

/** Numbers of a typed array; the bytes of any other buffer. */
function bytesOf(value: ArrayBufferView | ArrayBuffer): Iterable<unknown> {
  if (value instanceof ArrayBuffer) return new Uint8Array(value);
  if (value instanceof DataView) return new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
  return value as Uint8Array;
}

/** The text of a list would have all its parts. A proxy that was revoked cannot be examined. */
function shortText(value: unknown): string {
  try {
    return Array.isArray(value) || ArrayBuffer.isView(value) ? "[object Array]" : toText(value).slice(0, MAX_TEXT);
  } catch {
    return "unknown";
  }
}
