/** Converts what an agent passes into the columns of a run. No other module converts values. @module */
import { isGranted, readEnv } from "../fs/locate.ts";
import { LATER_STATUSES, RUN_COLUMNS, RUN_STATUSES, TRIGGER_TYPES } from "../records.ts";
import type { RunRecord, RunStatus, TriggerType } from "../records.ts";
import { parseWithSources, sourceOf } from "../log/json_source.ts";
import { parseTimestamp, timestamp } from "../time.ts";
import { jsonOf, newKey, warnOfNul, withoutBadEscapes } from "./json.ts";
import { toText, type Warnings } from "./warnings.ts";

// deno-fmt-ignore
/** The columns of a run that only the client sets. */
export const CLIENT_COLUMNS = [
  "run_id", "schema_version", "agent_name", "job_type", "status",
  "api_posted", "api_posted_at", "api_retry_count", "created_at", "updated_at",
] as const satisfies (keyof RunRecord)[];
const OWN = new Set<string>(CLIENT_COLUMNS);
const COLUMNS = new Set<string>(RUN_COLUMNS);
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

/** Reads every property once. One that cannot be read is left out, with a warning. */
export function copyOf(given: unknown, warnings: Warnings): Record<string, unknown> {
  if (given === undefined || given === null) return {};
  const copy: [string, unknown][] = [];
  try {
    const entries = given instanceof Map && Array.from(given, ([key, value]) => [toText(key), value]);
    const source = (entries ? Object.fromEntries(entries) : given) as Record<string, unknown>;
    if (typeof source !== "object") throw new TypeError(`${typeof given} is not an object`);
    for (const key of Object.keys(source)) {
      try {
        copy.push([key, source[key]]);
      } catch (error) {
        warnings.warn(`field:${key}`, `${key} cannot be read: ${toText(error)}`);
      }
    }
  } catch (error) {
    warnings.warn("field", `the fields cannot be read: ${toText(error)}`);
  }
  return Object.fromEntries(copy);
}

/**
 * Converts fields to columns, and merges `original` and the fields that are not columns into the JSON object `metrics`. A
 * field that cannot be converted is left out, with a warning.
 */
export function toColumns(
  fields: Record<string, unknown>,
  warnings: Warnings,
  metrics: string | null = null,
  original: Record<string, unknown> = {},
): Partial<RunRecord> {
  const columns: Record<string, string | number | null> = {};
  const others = new Map(Object.entries(original));
  // Object.entries takes seconds for a million fields.
  for (const name of Object.keys(fields)) {
    const value = fields[name];
    if (value === undefined || (value === null && name === "start_time")) continue;
    if (OWN.has(name)) warnings.warn("field", `only the client sets ${name}: the value is ignored`);
    else if (!COLUMNS.has(name)) others.set(name, value);
    else {
      const column = toColumn(name, value, warnings);
      if (column !== undefined) columns[name] = column;
    }
  }
  const trigger = columns["trigger_type"] ?? null;
  if (trigger !== null && !(TRIGGER_TYPES as readonly unknown[]).includes(trigger)) {
    // The table has a CHECK: an unknown value would keep the whole run out of the database.
    warnings.warn("trigger_type", `unknown trigger_type ${trigger}: recorded as manual, and kept in metrics_json`);
    columns["trigger_type"] = "manual";
    others.set("trigger_type", trigger);
  }
  if (others.size > 0) {
    columns["metrics_json"] = mergeMetrics(columns["metrics_json"] ?? metrics, others, warnings);
  }
  return columns;
}

/** Programs that TypeScript does not check pass all kinds of values. */
function toColumn(name: string, value: unknown, warnings: Warnings): string | number | null | undefined {
  if (value === null) return null;
  if (NUMBERS.has(name)) return toInteger(name, value, warnings);
  if (name === "metrics_json" && typeof value === "object") return jsonOf(value, name, warnings);
  const text = toColumnText(name, value, warnings);
  if (name === "metrics_json") return toMetrics(text, warnings);
  if (name.endsWith("_time") && parseTimestamp(text) === undefined) {
    warnings.warn(`field:${name}`, `${name} ${text} is not an ISO 8601 time`);
  }
  return text;
}

/** An integer column takes integers: a REAL in it stops the load of all runs into PostgreSQL. */
function toInteger(name: string, value: unknown, warnings: Warnings): number | null | undefined {
  const isNumeric = ["number", "bigint", "boolean", "string"].includes(typeof value) && value !== "";
  const number = isNumeric ? Number(value) : NaN;
  if (Number.isNaN(number)) {
    warnings.warn(`field:${name}`, `${name} is not a number: the value is ignored`);
    return undefined;
  }
  // Not -0, which SQLite takes for a fraction.
  const integer = Math.round(number) + 0;
  if (!Number.isSafeInteger(integer)) {
    warnings.warn(`field:${name}:range`, `${name} ${number} is too large for an integer: it is recorded as null`);
    return null;
  }
  if (integer !== number) warnings.warn(`field:${name}:fraction`, `${name} ${number} is rounded to ${integer}`);
  if (integer < 0) warnings.warn(`field:${name}:negative`, `${name} is negative: ${integer}`);
  return integer;
}

/** A text column takes text, without NUL, which PostgreSQL cannot store. Never throws. */
export function toColumnText(name: string, value: unknown, warnings: Warnings): string {
  const text = textOf(name, value, warnings);
  if (!text.includes("\0")) return text;
  warnOfNul(name, warnings);
  return text.replaceAll("\0", "␀");
}

/** What has a text as its JSON form, such as a URL, is that text without quotes. */
function textOf(name: string, value: unknown, warnings: Warnings): string {
  if (typeof value !== "object" || value === null) return toText(value);
  try {
    if (value instanceof Error) return errorSummary(value, warnings);
    if (value instanceof Date && !isNaN(value.getTime())) return timestamp(value);
  } catch { /* It only looks like one, or cannot be examined. */ }
  const json = jsonOf(value, name, warnings);
  return json.startsWith('"') ? JSON.parse(json) as string : json;
}

/** The text of `metrics_json` as JSON that every reader accepts. */
function toMetrics(text: string, warnings: Warnings): string {
  try {
    JSON.parse(text);
    return withoutBadEscapes(text, "metrics_json", warnings);
  } catch {
    warnings.warn("json:metrics_json", "metrics_json is not JSON: it is recorded as text");
    return jsonOf(text, "metrics_json", warnings);
  }
}

/** Adds members to a JSON object. */
function mergeMetrics(text: unknown, added: Map<string, unknown>, warnings: Warnings): string {
  const members = membersOfMetrics(text);
  const keys: Record<string, true> = Object.create(null);
  // One by one, so that a member that is too long costs no other one.
  for (const [given, value] of added) {
    const key = newKey(keys, given, "metrics_json", warnings);
    keys[key] = true;
    members.set(key, jsonOf(value, key, warnings));
  }
  return `{${[...members].map(([key, json]) => `${jsonOf(key, "metrics_json", warnings)}:${json}`)}}`;
}

/** The members of a JSON object as JSON, with all digits. Any other value is kept under the name of the column. */
function membersOfMetrics(text: unknown): Map<string, string> {
  if (text === null) return new Map();
  try {
    const value = parseWithSources(String(text));
    if (value === null) return new Map();
    if (typeof value !== "object" || Array.isArray(value)) return new Map([["metrics_json", String(text)]]);
    return new Map(Object.entries(value).map(([key, part]) => [key, sourceOf(value, key) ?? JSON.stringify(part)]));
  } catch {
    return new Map([["metrics_json", JSON.stringify(text)]]);
  }
}

/**
 * The final status of a run, and the given word when it is another one. Words of later clients for a failure become
 * `failed`. Any other word that the contract does not know becomes `partial`, with a warning.
 */
export function toEndStatus(given: unknown, warnings: Warnings): { status: RunStatus; original?: { status: string } } {
  const known = RUN_STATUSES.find((known) => known === given && known !== "running");
  if (known) return { status: known };
  const original = { status: toText(given) };
  if (LATER_STATUSES.includes(original.status)) return { status: "failed", original };
  warnings.warn("status", `a run cannot end as ${original.status}: it is recorded as partial`);
  return { status: "partial", original };
}

/** `Type: message` of a thrown value (contract, "Client and API"). Never throws: the agent must see its own error. */
export function errorSummary(thrown: unknown, warnings: Warnings): string {
  try {
    if (!(thrown instanceof Error)) return `${typeof thrown}: ${toColumnText("error_summary", thrown, warnings)}`;
    const type = thrown.name === "Error" ? thrown.constructor.name : thrown.name;
    return `${type}: ${thrown.message}`.toWellFormed();
  } catch {
    return "Error: unknown";
  }
}

/** The name of this machine, if it can be read without a prompt. */
export function hostName(): string | null {
  if (isGranted({ name: "sys", kind: "hostname" })) return Deno.hostname();
  return readEnv("HOSTNAME") || readEnv("COMPUTERNAME") || null;
}
