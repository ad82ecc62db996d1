/**
 * What to export: tables, columns, and filters on rows.
 * @module
 */
import { TelemetryError } from "../errors.ts";
import type { FileKind } from "../layout.ts";
import { RUN_STATUSES } from "../records.ts";
import { type TableName, TABLES as SCHEMA } from "../schema.ts";
import { type Instant, parseCommitDate, parseTimeFlag, parseTimestamp } from "../time.ts";
import type { Cell } from "./csv.ts";

/** The tables that can be exported. */
export type ExportTable = "runs" | "events" | "commits";

/** The programs for which the format is adapted. */
export type Program = "sheets" | "excel" | "postgres";
const PROGRAMS: Program[] = ["sheets", "excel", "postgres"];

/** How a table is exported. */
export interface Definition {
  table: TableName;
  kind: FileKind;
  /** The columns that the rows are ordered by, the time first. Events have the order of the log. */
  order: readonly [time: string, key: string];
  /** The flags that can be used with it. */
  filters: readonly string[];
}

export const TABLES: Record<ExportTable, Definition> = {
  runs: {
    table: "agent_runs",
    kind: "runs_export",
    order: ["start_time", "run_id"],
    filters: ["since", "until", "updated-since", "agent", "status"],
  },
  events: { table: "run_events", kind: "events_export", order: ["timestamp", "id"], filters: ["since", "until"] },
  commits: {
    table: "commits",
    kind: "commits_export",
    order: ["commit_date", "commit_hash"],
    filters: ["since", "until", "agent"],
  },
};

/** What to export. */
export interface ExportRequest {
  /** The table. */
  table: ExportTable;
  /** The columns, in this order. */
  columns: readonly string[];
  /** Only rows from this time on: the start of a run, the time of an event, the date of a commit. */
  since?: Instant | undefined;
  /** Only rows before this time. */
  until?: Instant | undefined;
  /** Only runs that were created, changed, ended or posted from this time on. */
  updatedSince?: Instant | undefined;
  /** Only rows of these agents. */
  agents?: ReadonlySet<Cell> | undefined;
  /** Only runs with these statuses. */
  statuses?: ReadonlySet<Cell> | undefined;
  /** The program that will read the file. @default any */
  program?: Program | undefined;
}

/**
 * Parses the flags of `export_csv`.
 *
 * @throws {TelemetryError} `usage`
 */
export function readRequest(flags: Readonly<Record<string, string | boolean | undefined>>, now: Date): ExportRequest {
  const given = <T>(flag: string, parse: (text: string) => T) =>
    flags[flag] === undefined ? undefined : parse(String(flags[flag]));
  const list = (flag: string) => given(flag, (text) => text.split(",").map((part) => part.trim()));
  const time = (flag: string, dayIs?: "start" | "end") => given(flag, (text) => parseTimeFlag(flag, text, now, dayIs));

  const table = choice("--table", flags["table"] ?? "runs", Object.keys(TABLES)) as ExportTable;
  const statuses = list("status");
  const request = {
    table,
    columns: list("columns") ?? Object.keys(SCHEMA[TABLES[table].table]),
    since: time("since"),
    until: time("until", "end"),
    updatedSince: time("updated-since"),
    // A name may have a comma.
    agents: given("agent", (list) => new Set([list, ...list.split(",")])),
    statuses: statuses && new Set(statuses),
    program: given("for", (text) => choice("--for", text, PROGRAMS)) as Program | undefined,
  };
  return checkRequest(request, "--");
}

/**
 * Checks a request. Returns it.
 *
 * @param prefix what messages write before the names of flags
 * @throws {TelemetryError} `usage`
 */
export function checkRequest(request: ExportRequest, prefix = ""): ExportRequest {
  const { table, columns, since, until, updatedSince, agents, statuses, program } = request;
  choice("table", table, Object.keys(TABLES));
  const { table: name, filters } = TABLES[table];
  if (!Array.isArray(columns) || columns.length === 0) {
    throw usage("columns is not a list of names", "name one or more");
  }
  for (const column of columns) choice(`${prefix}columns`, column, Object.keys(SCHEMA[name]));
  const twice: unknown = columns.find((column, i) => columns.indexOf(column) < i);
  if (twice !== undefined) throw usage(`${prefix}columns names ${twice} twice`, "name each column once");
  const given = { since, until, "updated-since": updatedSince, agent: agents, status: statuses };
  for (const [filter, value] of Object.entries(given)) {
    if (value === undefined) continue;
    if (!filters.includes(filter)) {
      const allowed = filters.map((name) => prefix + name).join(", ");
      throw usage(`${prefix}${filter} cannot be used with ${prefix}table ${table}`, `its filters are ${allowed}`);
    }
    const isValid = typeof value === "number" ? !Number.isNaN(value) : value instanceof Set;
    if (!isValid) {
      throw usage(`the filter ${filter} is not valid`, "a time is a number of microseconds, a list is a Set");
    }
  }
  for (const status of statuses ?? []) choice(`${prefix}status`, status, RUN_STATUSES);
  if (program !== undefined) choice("program", program, PROGRAMS);
  assertWindow(since, until);
  return request;
}

function usage(message: string, hint: string): TelemetryError {
  return new TelemetryError("usage", message, { hint });
}

function choice(name: string, given: unknown, allowed: readonly string[]): string {
  const text = allowed.find((text) => text === given);
  if (text !== undefined) return text;
  throw usage(`${name} does not accept "${given}"`, `it accepts ${allowed.join(", ")}`);
}

/** Checks that something can be between `--since` and `--until`. */
export function assertWindow(since: Instant = -Infinity, until: Instant = Infinity): void {
  if (since >= until) throw usage("--until is not after --since: nothing can be between them", "correct one of them");
}

/** Decides which rows are exported. */
export interface RowFilter {
  /** The columns that a row must have after those of the request. */
  columns: string[];
  keeps(row: Cell[]): boolean;
}

/** @param counts has the number of rows whose time cannot be parsed */
export function rowFilter(request: ExportRequest, counts: { untimed_rows: number }): RowFilter {
  const { table, agents, statuses, since = -Infinity, until = Infinity, updatedSince } = request;
  const columns: string[] = [];
  const tests: ((row: Cell[]) => boolean)[] = [];
  const add = (names: string[], test: (cells: Cell[]) => boolean) => {
    const start = request.columns.length + columns.length;
    columns.push(...names);
    tests.push((row) => test(row.slice(start, start + names.length)));
  };
  if (agents) add(["agent_name"], ([agent]) => agents.has(agent!));
  if (statuses) add(["status"], ([status]) => statuses.has(status!));
  if (since !== -Infinity || until !== Infinity) {
    const parse = table === "commits" ? parseCommitDate : parseTimestamp;
    add([TABLES[table].order[0]], ([time]) => {
      const at = parse(String(time));
      if (at === undefined) counts.untimed_rows++;
      return at !== undefined && since <= at && at < until;
    });
  }
  if (updatedSince !== undefined) {
    // The database has some of these times in whole seconds.
    const second = Math.floor(updatedSince / 1e6) * 1e6;
    add(["created_at", "updated_at", "end_time", "api_posted_at"], (cells) => {
      const times = cells.filter((cell) => cell !== null).map((cell) => parseTimestamp(String(cell)));
      if (times.some((at) => at !== undefined && at >= second)) return true;
      if (times.length === 0 || times.includes(undefined)) counts.untimed_rows++;
      return false;
    });
  }
  return { columns, keeps: (row) => tests.every((test) => test(row)) };
}
