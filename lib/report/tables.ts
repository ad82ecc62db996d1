/** What a terminal, Markdown and a page show alike: tables, and the state of the store. @module */
import { formatBytes, formatCount, plural } from "../format.ts";
import type { RunEvent } from "../records.ts";
import { formatAge, formatDuration, formatRate, formatTime } from "./format.ts";
import { type FailedRun, type RunSummary, type Status, statusOf } from "./summary.ts";

/** A column of a table. */
export interface Column {
  name: string;
  align: "left" | "right";
  /** Where its cells may be cut when there is no room. */
  cut?: "middle" | "end";
  /** Where there is no room, columns with a lower number come first. 0 is never left out. */
  drop: number;
}

/** A cell: its text and, where it differs, what it is sorted by; the status that colours it; the place that it links to. */
export interface Cell {
  text: string;
  sort?: number;
  status?: Status | undefined;
  link?: string;
}

export interface Table {
  title: string;
  columns: Column[];
  rows: Cell[][];
  /** Whether its columns need no names. */
  isPlain?: boolean;
  /** For a table that may be long: how many rows it would have without a limit, and the flag that shows them. */
  all?: { rows: number; flag: string };
}

const left = (name: string, drop = 0): Column => ({ name, align: "left", drop });
const right = (name: string, drop = 0): Column => ({ name, align: "right", drop });
/** What tells names and ids apart is often at their end. */
const named = (name: string): Column => ({ name, align: "left", cut: "middle", drop: 0 });
const long = (name: string, drop = 0): Column => ({ name, align: "left", cut: "end", drop });

/** Each column of a table with its cell for an item. A cell that is only text may have none. */
type Cells<T> = [column: Column, cell: (item: T, i: number) => Cell | string | null][];

function tableOf<T>(title: string, items: T[], cells: Cells<T>, options: Partial<Table> = {}): Table {
  const rows = items.map((item, i) =>
    cells.map(([, cellOf]) => {
      const cell = cellOf(item, i);
      return typeof cell === "object" && cell !== null ? cell : { text: cell ?? "-" };
    })
  );
  return { title, columns: cells.map(([column]) => column), rows, ...options };
}

function number(value: number | null, format: (value: number) => string, status?: Status | false): Cell {
  return { text: value === null ? "" : format(value), sort: value ?? -1, status: status || undefined };
}

/** The tables of a report, in their order. */
export function tablesOf(summary: RunSummary): [groups: Table, ...others: Table[]] {
  const { groups, failures, stale, counts, now } = summary;
  const ago = (time: string): Cell => {
    const age = Date.parse(now) - Date.parse(time);
    return { text: `${formatAge(age)} ago`, sort: -age };
  };
  return [
    tableOf("Agents and jobs, highest failure rate first", groups, [
      [named("agent"), ({ agent_name }) => agent_name],
      [named("job"), ({ job_type }) => job_type],
      [right("runs"), ({ runs }) => number(runs, formatCount)],
      [right("failed"), ({ failed }) => number(failed, formatCount, failed > 0 && "failed")],
      [right("rate"), ({ failure_rate, failed }) => number(failure_rate, formatRate, failed > 0 && "failed")],
      [right("before", 4), ({ failure_rate_before }) => number(failure_rate_before, formatRate)],
      [right("p50", 5), ({ p50_ms }) => number(p50_ms, formatDuration)],
      [right("p95", 3), ({ p95_ms }) => number(p95_ms, formatDuration)],
      [right("items", 6), ({ items }) => number(items, formatCount)],
      [right("last run", 1), ({ last_start }) => ago(last_start)],
      [left("status", 2), ({ last_status }) => ({ text: last_status, status: last_status })],
    ], { all: { rows: groups.length, flag: "--html or --json" } }),
    tableOf("Newest failures", failures, [
      [right("started"), ({ start_time }) => ago(start_time)],
      [named("agent"), ({ agent_name }) => agent_name],
      [named("job"), ({ job_type }) => job_type],
      [long("error"), (run, i) => ({ text: errorOf(run), status: "failed", link: `#failure-${i + 1}` })],
    ], { all: { rows: counts.failed, flag: "--failed" } }),
    tableOf("Running for too long", stale, [
      [right("for"), ({ age_ms }) => number(age_ms, formatAge, "running")],
      [named("agent"), ({ agent_name }) => agent_name],
      [named("job"), ({ job_type }) => job_type],
      [named("run"), ({ run_id }) => run_id],
    ], { all: { rows: stale.length, flag: "--running" } }),
    tableOf("Store", storeFacts(summary), [
      [left("name"), ([name]) => name],
      [long("value"), ([, value]) => value],
    ], { isPlain: true }),
  ];
}

/** Why a run failed, as far as it is recorded. */
function errorOf({ error_summary, status }: FailedRun): string {
  const word = status === "failed" ? "" : status;
  return [word, error_summary].filter((part) => part).join(": ") || "(no error_summary)";
}

/** Single runs, one in a row, with their whole ids. */
export function runsTable(runs: FailedRun[]): Table {
  return tableOf("Runs", runs, [
    [left("started"), ({ start_time }) => formatTime(start_time)],
    [left("status", 2), ({ status }) => ({ text: status ?? "-", status: statusOf(status) })],
    [left("run"), ({ run_id }) => run_id],
    [long("error", 1), ({ error_summary }) => error_summary ?? ""],
  ], { isPlain: true });
}

/** Fields of a run, or its metrics. */
export function fieldsTable(title: string, fields: Record<string, unknown>): Table {
  return tableOf(title, Object.entries(fields), [
    [left("name"), ([name]) => name],
    [left("value"), ([name, value]) => {
      const text = typeof value === "string" ? value : JSON.stringify(value);
      if (name === "status") return { text, status: statusOf(text) };
      if (name === "duration_ms") return `${text} (${formatDuration(Number(value))})`;
      return ["start_time", "end_time", "api_posted_at"].includes(name) ? `${text} (${formatTime(text)})` : text;
    }],
  ], { isPlain: true });
}

/** Events of a run that started then, in milliseconds. */
export function eventsTable(events: RunEvent[], start: number): Table {
  const when = (offset: number) => isNaN(offset) ? "" : `${offset < 0 ? "-" : "+"}${formatDuration(Math.abs(offset))}`;
  return tableOf(plural(events.length, "event"), events, [
    [right("when"), ({ timestamp }) => when(Date.parse(timestamp) - start)],
    [left("type"), ({ event_type }) => event_type],
    [left("payload"), ({ payload_json }) => payload_json ?? ""],
  ], { isPlain: true });
}

/** The state of the store, as names and values. */
function storeFacts({ store, schema_version, source, rejected_parts, untimed }: RunSummary): [string, string][] {
  const { newest_backup: backup, backups, database, database_bytes: bytes, log_check, pending_posts } = store;
  const { checked, missing, older } = log_check ?? { checked: 0, missing: 0, older: 0 };
  const version = schema_version === null ? "" : `, schema v${schema_version}`;
  const others = backups > 1 ? `, newest of ${backups}` : "";
  const newest = `the newest ${plural(checked, "run")} of the log`;
  const differences = [missing > 0 && `lacks ${missing}`, older > 0 && `lacks the end of ${older}`].filter(Boolean);
  const compared = differences.length === 0
    ? `${newest} ${checked === 1 ? "agrees" : "agree"} with the database`
    : `the database ${differences.join(" and ")} of ${newest}`;
  const facts: [name: string, value: string | false][] = [
    ["backup", backup === null ? "none" : `${formatAge(backup.age_ms)} old${others}: ${backup.path}`],
    ["database", bytes === null ? "none" : `${formatBytes(bytes)}${version}: ${database}`],
    ["log", `${plural(store.log_files, "file")}, ${formatBytes(store.log_bytes)}`],
    ["not read", store.unreadable_logs.length > 0 && store.unreadable_logs.join(", ")],
    ["compared", checked > 0 && compared],
    ["unposted", pending_posts > 0 && `${plural(pending_posts, "ended run")}, which matters only with a web API`],
    ["left out", untimed > 0 && `${plural(untimed, "run")} whose start is not a time`],
    ["rejected", source === "log" && rejected_parts > 0 && `${plural(rejected_parts, "part")} of the log`],
  ];
  return facts.filter((fact): fact is [string, string] => fact[1] !== false);
}

/** The window in local time. */
export function windowText({ since, until, time_zone }: RunSummary): string {
  return `${formatTime(since)} to ${until === null ? "now" : formatTime(until)} (${time_zone})`;
}

/** `290 runs`, `183 success`, `55 failed`, with their status. */
export function countCells({ counts }: RunSummary): Cell[] {
  const statuses = (["success", "failed", "partial", "running", "unknown"] as const).filter((name) => counts[name] > 0);
  const cells = statuses.map((status) => ({ text: `${formatCount(counts[status])} ${status}`, status }));
  return [{ text: plural(counts.runs, "run") }, ...cells];
}

/** `failure rate 12.3% (10.0% in the window before)`. */
export function rateText({ failure_rate, failure_rate_before }: RunSummary): string {
  if (failure_rate === null) return "no ended runs";
  const before = failure_rate_before === null ? "no ended runs" : formatRate(failure_rate_before);
  return `failure rate ${formatRate(failure_rate)} (${before} in the window before)`;
}
