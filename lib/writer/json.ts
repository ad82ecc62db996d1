/** Converts any value to JSON text that every reader accepts. @module */
import { errorMessage } from "../errors.ts";
import { toText, type Warnings } from "./warnings.ts";

/** Readers stop at other depths: Python at 1,000, others at less. */
const MAX_DEPTH = 200;
/** Objects can share others so often that writing them out would never end. */
const MAX_PARTS = 1_000_000;
/** The length of the text that stands for a value without a JSON form. */
const MAX_TEXT = 1000;

/**
 * Converts a value to JSON text. Values that JSON would lose are converted to what shows them: errors, maps, sets, big
 * integers, bytes, NaN. What has no JSON form is replaced by text, with a warning that calls the value `name`.
 */
export function jsonOf(value: unknown, name: string, warnings: Warnings): string {
  const warn = (what: string) => warnings.warn(`json:${name}`, `${name} ${what}: it is recorded as text`);
  /** The objects that contain the current part, and what is written for them. */
  const parents: { given: object; form: object }[] = [];
  let parts = 0;

  function replace(this: Record<string, unknown>, key: string, part: unknown): unknown {
    if (++parts > MAX_PARTS) throw new RangeError("too long");
    while (parents.length > 0 && parents.at(-1)!.form !== this) parents.pop();
    if (typeof part !== "object" || part === null) return formOfPrimitive(part, this[key]);
    const isCycle = parents.some(({ given }) => given === part);
    if (isCycle || parents.length >= MAX_DEPTH) {
      warn(`${isCycle ? "contains itself" : "is nested too deeply"} at ${key}`);
      return Object.prototype.toString.call(part);
    }
    const form = formOfObject(part);
    if (form === undefined) {
      warn(`has no JSON form at ${key}`);
      return toText(part);
    }
    parents.push({ given: part, form });
    return form;
  }

  let text: string;
  try {
    text = JSON.stringify(value, replace) ?? "null";
  } catch (error) {
    warn(`cannot be written as JSON (${errorMessage(error)})`);
    text = JSON.stringify(Deno.inspect(value, { depth: 2, breakLength: Infinity }).slice(0, MAX_TEXT));
  }
  // JSON writes lone halves of pairs and NUL as escapes, which PostgreSQL refuses in jsonb, in keys, too.
  if (!/\\u(?:d[89a-f]|0000)/.test(text)) return text;
  return text.replace(/\\(u[0-9a-f]{4}|.)/g, (escape, code: string) => {
    if (code === "u0000") warnings.warn(`json:${name}:nul`, `${name} contains NUL: it is recorded as ␀`);
    return code === "u0000" ? "␀" : code.startsWith("ud") ? "\ufffd" : escape;
  });
}

/** `given` is the value before its `toJSON`, which turns an invalid date into null. */
function formOfPrimitive(value: unknown, given: unknown): unknown {
  if (typeof value === "number") return Number.isFinite(value) ? value : String(value);
  if (typeof value === "bigint") return Number.isSafeInteger(Number(value)) ? Number(value) : String(value);
  if (typeof value === "symbol" || typeof value === "function") return toText(value);
  return value === null && given instanceof Date ? String(given) : value;
}

/** Undefined when JSON would show nothing of it. */
function formOfObject(value: object): object | undefined {
  if (value instanceof Set) return [...value];
  if (value instanceof ArrayBuffer) return [...new Uint8Array(value)];
  if (value instanceof DataView) return [...new Uint8Array(value.buffer, value.byteOffset, value.byteLength)];
  if (ArrayBuffer.isView(value)) return [...value as Uint8Array];
  if ([Map, Headers, URLSearchParams, FormData].some((type) => value instanceof type)) {
    const entries = [...value as Map<unknown, unknown>];
    const members = new Map(entries.map(([key, part]) => [toText(key), part]));
    // Where different keys have the same text, a list of pairs.
    return members.size < entries.length ? entries : Object.fromEntries(members);
  }
  if (value instanceof Error) {
    const { name, message, stack, cause, errors } = value as AggregateError;
    return { name, message, stack, cause, errors, ...value as object };
  }
  const isPlain = Array.isArray(value) || [Object.prototype, null].includes(Object.getPrototypeOf(value));
  return isPlain || Object.keys(value).length > 0 ? value : undefined;
}
