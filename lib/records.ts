/**
 * The two kinds of records in the log, run and event: their fields, ids and validation.
 * @module
 */
import { TelemetryError } from "./errors.ts";

/** The values that the database accepts as `trigger_type` (contract, "SQLite, v3"). */
export const TRIGGER_TYPES = ["cli", "web", "scheduler", "mcp", "manual"] as const;
/** What started a run. */
export type TriggerType = (typeof TRIGGER_TYPES)[number];

/** The values that the database accepts as `status` (contract, "SQLite, v3"). */
export const RUN_STATUSES = ["running", "success", "failed", "partial"] as const;
/** The status of a run. */
export type RunStatus = (typeof RUN_STATUSES)[number];

/** Statuses that later clients write, and users say. Such a run has failed. */
export const LATER_STATUSES: readonly unknown[] = ["failure", "timeout", "cancelled"];
/** Every status that a line of the log may have. */
const LOGGED_STATUSES: ReadonlySet<unknown> = new Set([...RUN_STATUSES, ...LATER_STATUSES, null, undefined]);

/** The longest line of a log in bytes, without its newline. Longer lines are neither written nor read. */
export const MAX_LINE_BYTES: number = 32 * 1024 * 1024;

/** The schema version of the records and databases that this toolkit writes. */
export const SCHEMA_VERSION = 3;

/** A run: the columns of `agent_runs`, by the contract's names. Times are ISO 8601 in UTC. */
export interface RunRecord {
  /** `{YYYYMMDD}T{HHMMSS}Z-{agent_name}-{8 hex digits}`. */
  run_id: string;
  /** 3 in records that this toolkit writes. */
  schema_version: number | null;
  /** The agent or job that ran. */
  agent_name: string;
  /** Who is responsible for the agent. */
  agent_owner: string | null;
  /** The kind of work. */
  job_type: string | null;
  /** What started the run, one of `TRIGGER_TYPES`. Old logs also have other values. */
  trigger_type: string | null;
  /** When the run started. */
  start_time: string;
  /** When the run ended; null while it runs. */
  end_time: string | null;
  /** The status of the run. */
  status: RunStatus | null;
  /** How many items were found. */
  items_discovered: number | null;
  /** How many items succeeded. */
  items_succeeded: number | null;
  /** How many items failed. */
  items_failed: number | null;
  /** Duration in milliseconds. */
  duration_ms: number | null;
  /** Description of the input. */
  input_summary: string | null;
  /** Description of the result. */
  output_summary: string | null;
  /** Description of the failure. */
  error_summary: string | null;
  /** Other measurements, as JSON text. */
  metrics_json: string | null;
  /** The insight that the run belongs to. */
  insight_id: string | null;
  /** The product that the run is for. */
  product: string | null;
  /** The platform that the run is for. */
  platform: string | null;
  /** The product family that the run is for. */
  product_family: string | null;
  /** The subdomain that the run is for. */
  subdomain: string | null;
  /** The Git repository. */
  git_repo: string | null;
  /** The Git branch. */
  git_branch: string | null;
  /** The Git tag of the run. */
  git_run_tag: string | null;
  /** The host name of the machine. */
  host: string | null;
  /** 1 when the web API has accepted the run, else 0. */
  api_posted: number | null;
  /** When the web API accepted the run. */
  api_posted_at: string | null;
  /** How many attempts to post the run failed. */
  api_retry_count: number | null;
  /** When the row was created; null in log lines. */
  created_at: string | null;
  /** When the row was last changed; null in log lines. */
  updated_at: string | null;
}

/** An event of a run. Events are stored in the log only (contract, `run_events`). */
export interface RunEvent {
  /** The run that the event belongs to. */
  run_id: string;
  /** The kind of event. */
  event_type: string;
  /** When it happened, ISO 8601 in UTC. */
  timestamp: string;
  /** Details, as JSON text. */
  payload_json: string | null;
  /** Always null in the log. */
  id: null;
}

/** A line of the log: a run or an event. `record_type` says which. */
export type LogRecord =
  | RunRecord & { record_type: "run" }
  | RunEvent & { record_type: "event" };

/** The defaults of the schema, in the contract's order of columns. */
const DEFAULT_RUN: RunRecord = {
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

/**
 * The 31 columns of `agent_runs`, in the contract's order. A new one is added above, to `RUN_DECLARATIONS` of schema.ts, and
 * where versions of the schema are told apart: sqlite/migrate.ts, store/merge.ts, recovery/row_shapes.ts.
 */
export const RUN_COLUMNS: readonly (keyof RunRecord)[] = Object.keys(DEFAULT_RUN) as (keyof RunRecord)[];

/** The fields of a new run. Three are required. */
export type NewRun = Pick<RunRecord, "run_id" | "agent_name" | "start_time"> & Partial<RunRecord>;

/**
 * A complete run record: the given fields, and the defaults of the schema for the others.
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
  return { ...DEFAULT_RUN, ...known };
}

/**
 * A new run id: `{YYYYMMDD}T{HHMMSS}Z-{agent_name}-{8 hex digits}` (contract, "Ids and times").
 *
 * @example
 * ```ts
 * import { runId } from "./records.ts";
 *
 * console.log(runId("indexer", new Date(0))); // "19700101T000000Z-indexer-5e49422a"
 * ```
 */
export function runId(agentName: string, at: Date = new Date()): string {
  const stamp = at.toISOString().replace(/[-:]|\.\d+/g, "");
  return `${stamp}-${agentName}-${crypto.randomUUID().slice(0, 8)}`;
}

/**
 * Converts a value to JSON text. `name` is the name of the value in the error.
 *
 * @throws {TelemetryError} `invalid_record`, which names the field that JSON cannot represent
 */
export function toJson(value: unknown, name: string): string {
  const text = stringify(value);
  if (text !== undefined) return text;
  const field = Object.entries(value ?? {}).find(([, part]) => part !== undefined && stringify(part) === undefined);
  throw new TelemetryError("invalid_record", `${field ? `${name}.${field[0]}` : name} cannot be written as JSON`, {
    hint: "leave it out, or convert it to text first",
  });
}

function stringify(value: unknown): string | undefined {
  try {
    return JSON.stringify(value);
  } catch {
    return undefined;
  }
}

/** The fields that a record must have, as text (contract, "NDJSON records"). */
const REQUIRED_FIELDS: Readonly<Record<LogRecord["record_type"], readonly string[]>> = {
  run: ["run_id", "agent_name", "start_time"],
  event: ["run_id", "event_type", "timestamp"],
};

/** Why a JSON value is not a record. */
export type InvalidRecordReason = "not an object" | "unknown record_type" | "unknown status" | `${string} is missing`;

/**
 * Returns why a parsed line is not a record, or undefined when it is one. The rules are those of the v2 table that a
 * recovery fills: what the table would refuse is refused here.
 */
export function validateRecord(value: unknown): InvalidRecordReason | undefined {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return "not an object";
  const record = value as Record<string, unknown>;
  if (record["record_type"] !== "run" && record["record_type"] !== "event") return "unknown record_type";
  for (const field of REQUIRED_FIELDS[record["record_type"]]) {
    if (typeof record[field] !== "string") return `${field} is missing`;
  }
  if (record["record_type"] === "run" && !LOGGED_STATUSES.has(record["status"])) return "unknown status";
  return undefined;
}

/** Whether an id has characters that no program writes: in a damaged file, other data has overwritten it. */
export function isOverwrittenId(id: unknown): boolean {
  // deno-lint-ignore no-control-regex
  return typeof id === "string" && /[\x00-\x1f\x7f\ufffd]/.test(id);
}
