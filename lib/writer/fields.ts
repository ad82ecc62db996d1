/** Converts what an agent passes into the columns of a run. No other module converts values. @module */
import { TelemetryError } from "../errors.ts";
import { RUN_COLUMNS, RUN_STATUSES, type RunRecord, type RunStatus, toJson, type TriggerType } from "../records.ts";
import { timestamp } from "../time.ts";
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
): Partial<RunRecord> {
  const columns: Record<string, string | number | null> = {};
  const others: Record<string, unknown> = {};
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
    else if (COLUMNS.has(name)) convert(name, () => toColumn(name, value));
    else others[name] = value;
  }
  if (Object.keys(others).length > 0) {
    const before = columns["metrics_json"] ?? metrics;
    convert("metrics_json", () => toJson({ ...parseMetrics(before), ...others }, "metrics_json"));
  }
  return columns;
}

/** Programs that TypeScript does not check pass all kinds of values. */
function toColumn(name: string, value: unknown): string | number | null {
  if (value === null) return null;
  if (NUMBERS.has(name)) {
    const number = typeof value === "object" ? NaN : Number(value);
    if (Number.isFinite(number)) return number;
    throw new TelemetryError("invalid_record", `${name} is not a number: the value is ignored`);
  }
  if (value instanceof Date) return timestamp(value);
  return typeof value === "object" ? toJson(value, name) : String(value);
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

/** The final status of a run. A status that the contract does not know becomes `partial`, with a warning. */
export function toEndStatus(given: unknown, warnings: Warnings): RunStatus {
  const status = RUN_STATUSES.find((known) => known === given && known !== "running");
  if (!status) warnings.warn("status", `a run cannot end as ${toText(given)}: it is recorded as partial`);
  return status ?? "partial";
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
