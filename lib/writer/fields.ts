/** Converts what an agent passes into the columns of a run. No other module converts values. @module */
import { errorMessage, TelemetryError } from "../errors.ts";
import { isGranted, readEnv } from "../fs/locate.ts";
import {
  LATER_STATUSES,
  RUN_COLUMNS,
  RUN_STATUSES,
  type RunRecord,
  type RunStatus,
  TRIGGER_TYPES,
  type TriggerType,
} from "../records.ts";
import { parseTimestamp, timestamp } from "../time.ts";
import { toText, type Warnings } from "./warnings.ts";

// deno-fmt-ignore
/** The columns of a run that only the client sets. */
export const CLIENT_COLUMNS = [
  "run_id", "schema_version", "agent_name", "job_type", "status",
  "api_posted", "api_posted_at", "api_retry_count", "created_at", "updated_at",
] as const satisfies (keyof RunRecord)[];
const OWN = new Set<string>(CLIENT_COLUMNS);
const COLUMNS = new Set<string>(RUN_COLUMNS);
/** How many parts a value may have that is not plain JSON. The walk blocks the agent for less than a second. */
const MAX_JSON_PARTS = 2_000_000;
const NUMBERS = new Set(["items_discovered", "items_succeeded", "items_failed", "duration_ms"]);

/** The columns of a run that an agent can set. A field of any other name goes into `metrics_json`. */
export type RunFields =
  & Partial<Omit<RunRecord, (typeof CLIENT_COLUMNS)[number] | "trigger_type" | "metrics_json">>
  & {
    /** What started the run. @default "cli" */
    trigger_type?: TriggerType;
    /** Other measurements: JSON text, or an object that is converted to JSON. */
    metrics_json?: string | Record<string, unknown> | null;
  };

/** The fields that an agent can set when a run ends. */
export type EndFields = RunFields & {
  /** The final status. @default "success" */
  status?: Exclude<RunStatus, "running">;
};

/** Reads every property once. When a getter throws, nothing is used. */
export function copyOf(given: unknown, warnings: Warnings): Record<string, unknown> {
  try {
    return { ...given as object };
  } catch (error) {
    warnings.fail("field", error);
    return {};
  }
}

/**
 * Converts fields to columns, and merges the fields that are not columns into the JSON object `metrics`. A field that
 * cannot be converted is left out, with a warning.
 */
export function toColumns(
  fields: Record<string, unknown>,
  metrics: string | null,
  warnings: Warnings,
  originals: Record<string, unknown> = {},
): Partial<RunRecord> {
  const columns: Record<string, string | number | null> = {};
  const others: Record<string, unknown> = { ...originals };
  const convert = (name: string, value: () => string | number | null) => {
    try {
      columns[name] = value();
    } catch (error) {
      warnings.fail("field", error);
    }
  };
  for (const [name, value] of Object.entries(fields)) {
    if (value === undefined || (value === null && name === "start_time")) continue;
    if (OWN.has(name)) warnings.warn("field", `only the client sets ${name}: the value is ignored`);
    else if (COLUMNS.has(name)) convert(name, () => toColumn(name, value, warnings));
    else others[name] = value;
  }
  const trigger = columns["trigger_type"];
  if (trigger !== undefined && trigger !== null && !(TRIGGER_TYPES as readonly unknown[]).includes(trigger)) {
    // The table has a CHECK: an unknown value would keep the whole run out of the database.
    warnings.warn("trigger_type", `unknown trigger_type ${trigger}: recorded as manual, and kept in metrics_json`);
    columns["trigger_type"] = "manual";
    others["trigger_type"] = trigger;
  }
  if (Object.keys(others).length > 0) {
    const before = columns["metrics_json"] ?? metrics;
    convert("metrics_json", () => jsonOf({ ...parseMetrics(before), ...others }, "metrics_json", warnings));
  }
  return columns;
}

/** Programs that TypeScript does not check pass all kinds of values. */
function toColumn(name: string, value: unknown, warnings: Warnings): string | number | null {
  if (value === null) return null;
  if (NUMBERS.has(name)) return toInteger(name, value, warnings);
  if (name === "metrics_json" && typeof value === "object") return jsonOf(value, name, warnings);
  const text = toColumnText(name, value, warnings);
  if (name === "start_time" && parseTimestamp(text) === undefined) {
    warnings.warn("field", `start_time ${text} is not an ISO 8601 time`);
  }
  return text;
}

/** An integer column takes integers: a REAL in it stops the load of all runs into PostgreSQL. */
function toInteger(name: string, value: unknown, warnings: Warnings): number | null {
  const number = typeof value === "object" || value === "" ? NaN : Number(value);
  if (!Number.isFinite(number)) {
    throw new TelemetryError("invalid_record", `${name} is not a number: the value is ignored`);
  }
  const integer = Math.round(number);
  if (!Number.isSafeInteger(integer)) {
    warnings.warn(`field:${name}:range`, `${name} ${number} is too large for an integer: it is recorded as null`);
    return null;
  }
  if (integer !== number) warnings.warn(`field:${name}:fraction`, `${name} ${number} is rounded to ${integer}`);
  if (integer < 0) warnings.warn(`field:${name}:negative`, `${name} is negative: ${integer}`);
  return integer;
}

/** A text column takes text. What has a text as its JSON form, such as a URL, is that text without quotes. */
function toColumnText(name: string, value: unknown, warnings: Warnings): string {
  if (typeof value !== "object" || value === null) return toText(value).toWellFormed();
  if (value instanceof Error) return errorSummary(value).toWellFormed();
  if (value instanceof Date && !isNaN(value.getTime())) return timestamp(value);
  const json = jsonOf(value, name, warnings);
  const parsed: unknown = json.startsWith('"') ? JSON.parse(json) : undefined;
  return typeof parsed === "string" ? parsed : json;
}

/**
 * Converts a value to JSON text. Values that JSON would lose are converted to what shows them: errors, maps, sets, big
 * integers, typed arrays, NaN. One that cannot be converted is replaced by its text, with a warning.
 *
 * @throws {TelemetryError} `invalid_record` when the text is too long
 */
export function jsonOf(value: unknown, name: string, warnings: Warnings): string {
  try {
    // A replacer makes `JSON.stringify` several times slower, and few values need it.
    const text = isPlain(value) ? JSON.stringify(value) : JSON.stringify(value, replacer(name, warnings));
    return text ?? JSON.stringify(toText(value));
  } catch (error) {
    // Only a cycle makes JSON refuse a plain value.
    if (error instanceof TypeError && isPlain(value)) return JSON.stringify(value, replacer(name, warnings));
    if (error instanceof RangeError) {
      throw new TelemetryError("invalid_record", `${name} is too long or too deep for JSON`, {
        hint: "write large data to a file and record its path",
        cause: error,
      });
    }
    warnings.warn(`json:${name}`, `${name} cannot be written as JSON (${errorMessage(error)}): it is recorded as text`);
    return textOfParts(value);
  }
}

/** Replaces what JSON has no form for, and an object inside itself. */
function replacer(name: string, warnings: Warnings): (this: unknown, key: string, given: unknown) => unknown {
  const parents: { given: unknown; part: object }[] = [];
  let parts = 0;
  return function (key, given) {
    // Objects that share each other can have more parts than any text has room for.
    if (++parts > MAX_JSON_PARTS) throw new RangeError("too many parts");
    while (parents.length > 0 && parents.at(-1)!.part !== this) parents.pop();
    const part = toJsonForm(given);
    if (typeof part !== "object" || part === null) return part;
    if (parents.some((parent) => parent.given === given)) {
      warnings.warn(`json:${name}`, `${name} contains itself at ${key}: this part is recorded as text`);
      return toText(given);
    }
    parents.push({ given, part });
    return part;
  };
}

/** Whether JSON represents a value as it is, apart from cycles. Looks at each object once, also when objects share others. */
function isPlain(value: unknown): boolean {
  const seen = new Set<unknown>();
  const rest = [value];
  try {
    while (rest.length > 0) {
      const part = rest.pop();
      if (toJsonForm(part) !== part) return false;
      if (typeof part !== "object" || part === null || seen.has(part)) continue;
      seen.add(part);
      for (const inner of Array.isArray(part) ? part : Object.values(part)) rest.push(inner);
    }
    return true;
  } catch {
    return false;
  }
}

/** The JSON of an object whose parts throw when they are read: each such part is replaced by its text. */
function textOfParts(value: unknown): string {
  try {
    const parts = Object.keys(value as object).map((key) => {
      try {
        const part = (value as Record<string, unknown>)[key];
        return [key, JSON.parse(JSON.stringify(part, (_, inner) => toJsonForm(inner)) ?? "null")];
      } catch {
        return [key, "unknown"];
      }
    });
    return JSON.stringify(Object.fromEntries(parts));
  } catch {
    return JSON.stringify(toText(value));
  }
}

/** What stands for a value that JSON has no form for. */
function toJsonForm(value: unknown): unknown {
  if (typeof value === "string") return value.isWellFormed() ? value : value.toWellFormed();
  if (typeof value === "number") return Number.isFinite(value) ? value : String(value);
  if (typeof value === "bigint") return Number.isSafeInteger(Number(value)) ? Number(value) : String(value);
  if (typeof value === "symbol" || typeof value === "function") return toText(value);
  if (typeof value !== "object" || value === null) return value;
  if (value instanceof Error) {
    const { message, stack, cause, name: _, ...others } = value as Error & Record<string, unknown>;
    return { name: value.name, message, stack, ...cause === undefined ? {} : { cause }, ...others };
  }
  if (value instanceof Map || value instanceof Headers || value instanceof URLSearchParams) {
    return Object.fromEntries([...value].map(([key, part]) => [toText(key), part]));
  }
  if (value instanceof Set) return [...value];
  if (ArrayBuffer.isView(value) && !(value instanceof DataView)) return [...value as Uint8Array];
  return value instanceof RegExp ? String(value) : value;
}

/** The object in a JSON text. Any other value is kept under the name of the column. */
function parseMetrics(text: unknown): object {
  try {
    const value: unknown = JSON.parse(String(text));
    const isObject = typeof value === "object" && !Array.isArray(value);
    return isObject ? { ...value } : { metrics_json: value };
  } catch {
    return { metrics_json: text };
  }
}

/**
 * The final status of a run, and the given word when it is another one. Words of later clients for a failure become
 * `failed`. Any other word that the contract does not know becomes `partial`, with a warning.
 */
export function toEndStatus(given: unknown, warnings: Warnings): { status: RunStatus; original?: string } {
  const known = RUN_STATUSES.find((known) => known === given && known !== "running");
  if (known) return { status: known };
  const original = toText(given);
  if (LATER_STATUSES.includes(original)) return { status: "failed", original };
  warnings.warn("status", `a run cannot end as ${original}: it is recorded as partial`);
  return { status: "partial", original };
}

/** `Type: message` of a thrown value (contract, "Client and API"). Never throws: the agent must see its own error. */
export function errorSummary(thrown: unknown): string {
  try {
    if (!(thrown instanceof Error)) return `${typeof thrown}: ${toText(thrown)}`;
    const type = thrown.name === "Error" ? thrown.constructor.name : thrown.name;
    return `${type}: ${thrown.message}`;
  } catch {
    return "Error: unknown";
  }
}

/** The name of this machine, if it can be read without a prompt. */
export function hostName(): string | null {
  if (isGranted({ name: "sys", kind: "hostname" })) return Deno.hostname();
  return readEnv("HOSTNAME") || readEnv("COMPUTERNAME") || null;
}
