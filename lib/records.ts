/**
 * The two kinds of record a run leaves, as the contract names their fields; ids, times, and what makes a
 * record valid. Pure: nothing here touches a file.
 * @module
 */
import { TelemetryError } from "./errors.ts";

/** What may start a run; the database's CHECK on `trigger_type` (contract, "SQLite, v3"). */
export const TRIGGER_TYPES = ["cli", "web", "scheduler", "mcp", "manual"] as const;
/** What started a run. */
export type TriggerType = (typeof TRIGGER_TYPES)[number];

/** The states of a run; the database's CHECK on `status` (contract, "SQLite, v3"). */
export const RUN_STATUSES = ["running", "success", "failed", "partial"] as const;
/** The state of a run. */
export type RunStatus = (typeof RUN_STATUSES)[number];

/** The longest line of a log, in bytes without its newline: longer ones are neither written nor read. */
export const MAX_LINE_BYTES: number = 32 * 1024 * 1024;

/** The schema version this toolkit writes into records and databases. */
export const SCHEMA_VERSION = 3;

/** A run: every column of `agent_runs`, by the contract's names. Times are ISO 8601 in UTC. */
export interface RunRecord {
  /** `{YYYYMMDD}T{HHMMSS}Z-{agent_name}-{8 hex}`. */
  run_id: string;
  /** 3 for what this toolkit writes. */
  schema_version: number | null;
  /** Who ran. */
  agent_name: string;
  /** Who answers for the agent. */
  agent_owner: string | null;
  /** What kind of work it was. */
  job_type: string | null;
  /** What started it. Old logs also hold values that the database's CHECK refuses. */
  trigger_type: string | null;
  /** When it started. */
  start_time: string;
  /** When it ended; null while it runs. */
  end_time: string | null;
  /** Its state. */
  status: RunStatus | null;
  /** Items found. */
  items_discovered: number | null;
  /** Items done. */
  items_succeeded: number | null;
  /** Items that failed. */
  items_failed: number | null;
  /** Milliseconds from start to end. */
  duration_ms: number | null;
  /** What went in, in words. */
  input_summary: string | null;
  /** What came out, in words. */
  output_summary: string | null;
  /** What went wrong, in words. */
  error_summary: string | null;
  /** Anything else that was measured, as JSON text. */
  metrics_json: string | null;
  /** The insight that the run belongs to. */
  insight_id: string | null;
  /** Business: product. */
  product: string | null;
  /** Business: platform. */
  platform: string | null;
  /** Business: product family. */
  product_family: string | null;
  /** Business: subdomain. */
  subdomain: string | null;
  /** Git: repository. */
  git_repo: string | null;
  /** Git: branch. */
  git_branch: string | null;
  /** Git: tag of the run. */
  git_run_tag: string | null;
  /** The machine it ran on. */
  host: string | null;
  /** 1 once the web API has accepted it. */
  api_posted: number | null;
  /** When the web API accepted it. */
  api_posted_at: string | null;
  /** How often posting failed. */
  api_retry_count: number | null;
  /** When the row was made; null in log lines. */
  created_at: string | null;
  /** When the row was last changed; null in log lines. */
  updated_at: string | null;
}

/** Something that happened in a run. Events live in the log alone (contract, `run_events`). */
export interface RunEvent {
  /** The run it belongs to. */
  run_id: string;
  /** What happened. */
  event_type: string;
  /** When, ISO 8601 in UTC. */
  timestamp: string;
  /** Details, as JSON text. */
  payload_json: string | null;
  /** Always null in the log. */
  id: null;
}

/** A line of the log: a run or an event, told apart by `record_type`. */
export type LogRecord =
  | RunRecord & { record_type: "run" }
  | RunEvent & { record_type: "event" };

/** A run of which nothing is known but its identity; fixes the contract's order of the columns. */
const BLANK_RUN: RunRecord = {
  run_id: "",
  schema_version: SCHEMA_VERSION,
  agent_name: "",
  agent_owner: null,
  job_type: null,
  trigger_type: null,
  start_time: "",
  end_time: null,
  status: "running",
  items_discovered: 0,
  items_succeeded: 0,
  items_failed: 0,
  duration_ms: null,
  input_summary: null,
  output_summary: null,
  error_summary: null,
  metrics_json: null,
  insight_id: null,
  product: null,
  platform: null,
  product_family: null,
  subdomain: null,
  git_repo: null,
  git_branch: null,
  git_run_tag: null,
  host: null,
  api_posted: 0,
  api_posted_at: null,
  api_retry_count: 0,
  created_at: null,
  updated_at: null,
};

/** The 31 columns of `agent_runs`, in the contract's order. */
export const RUN_COLUMNS: readonly (keyof RunRecord)[] = Object.keys(BLANK_RUN) as (keyof RunRecord)[];

/** What must be known to make a run. */
export type NewRun = Pick<RunRecord, "run_id" | "agent_name" | "start_time"> & Partial<RunRecord>;

/**
 * A whole run record from the fields that are known; the rest gets the defaults of the schema.
 *
 * @example
 * ```ts
 * import { newRun, runId } from "./records.ts";
 * import { timestamp } from "./time.ts";
 *
 * const now = new Date();
 * const run = newRun({ run_id: runId("indexer", now), agent_name: "indexer", start_time: timestamp(now) });
 * console.log(run.status); // "running"
 * ```
 */
export function newRun(known: NewRun): RunRecord {
  return { ...BLANK_RUN, ...known };
}

/**
 * A new run id, `{YYYYMMDD}T{HHMMSS}Z-{agent_name}-{8 hex}`.
 *
 * @param agentName goes in as it is
 * @param at when the run started
 */
export function runId(agentName: string, at: Date = new Date()): string {
  const stamp = at.toISOString().replace(/[-:]|\.\d+/g, "");
  return `${stamp}-${agentName}-${crypto.randomUUID().slice(0, 8)}`;
}

/**
 * The JSON text of a value, or an error that names the field which JSON cannot carry.
 *
 * @param value what to write
 * @param name what to call the value itself in the error
 * @throws {TelemetryError} `invalid_record`: a cycle, a BigInt, a `toJSON` that throws, or nothing at all
 */
export function toJson(value: unknown, name: string): string {
  let text: string | undefined;
  let cause: unknown;
  try {
    text = JSON.stringify(value);
  } catch (error) {
    cause = error;
  }
  if (text !== undefined) return text;
  const field = unserializable(value, name, new Set()) ?? name;
  throw new TelemetryError("invalid_record", `${field} cannot be written as JSON`, {
    hint: "leave it out, or turn it into text first",
    cause,
  });
}

/** The path of the first part that JSON refuses. `parents` holds the objects on the way down. */
function unserializable(value: unknown, path: string, parents: Set<object>): string | undefined {
  if (typeof value === "bigint") return path;
  if (typeof value !== "object" || value === null) return undefined;
  if (parents.has(value)) return path;
  try {
    if ("toJSON" in value && typeof value.toJSON === "function") {
      return unserializable(value.toJSON(), path, parents);
    }
    parents.add(value);
    for (const [key, part] of Object.entries(value)) {
      const found = unserializable(part, Array.isArray(value) ? `${path}[${key}]` : `${path}.${key}`, parents);
      if (found !== undefined) return found;
    }
    parents.delete(value);
    return undefined;
  } catch {
    return path;
  }
}

/** What a record of each type cannot do without, as text (contract, "NDJSON records"). */
export const REQUIRED_FIELDS: Readonly<Record<LogRecord["record_type"], readonly string[]>> = {
  run: ["run_id", "agent_name", "start_time"],
  event: ["run_id", "event_type", "timestamp"],
};

/** Why a JSON value is no record. */
export type InvalidRecordReason = "not an object" | "unknown record_type" | "unknown status" | `${string} is missing`;

/**
 * Why a parsed line of a log is no record, or undefined when it is one.
 * The rules are those of the v2 table that recovery fills: what it would refuse is refused here.
 *
 * @param value what `JSON.parse` made of the line
 */
export function validateRecord(value: unknown): InvalidRecordReason | undefined {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return "not an object";
  const record = value as Record<string, unknown>;
  if (record["record_type"] !== "run" && record["record_type"] !== "event") return "unknown record_type";
  for (const field of REQUIRED_FIELDS[record["record_type"]]) {
    if (typeof record[field] !== "string") return `${field} is missing`;
  }
  const status = record["status"];
  if (record["record_type"] === "run" && status !== null && status !== undefined) {
    if (!(RUN_STATUSES as readonly unknown[]).includes(status)) return "unknown status";
  }
  return undefined;
}

/** Whether an id has what no program puts into one: in a damaged file, something else was written over it. */
export function isOverwrittenId(id: unknown): boolean {
  // deno-lint-ignore no-control-regex
  return typeof id === "string" && /[\x00-\x1f\x7f\ufffd]/.test(id);
}
