/** What a terminal, Markdown and a page show alike: tables, and the state of the store. @module */
import { formatBytes, formatCount, plural } from "../format.ts";
import { formatAge, formatDuration, formatRate, formatTime } from "./format.ts";
import { type FailedRun, type RunSummary, type Status, statusOf } from "./summary.ts";

/** A column of a table. */
export interface Column {
  name: string;
  align: "left" | "right";
  /** Where its cells may be cut when there is no room. */
  cut?: "middle" | "end";
  /** Where there is no room, columns with the highest number are left out first. 0 is never left out. */
  drop: number;
}

/** A cell: its text and, where it differs, what it is sorted by; the status that colours it; the place that it links to. */
export interface Cell {
  text: string;
  sort?: number | undefined;
  status?: Status | undefined;
  link?: string;
}

export interface Table {
  title: string;
  columns: Column[];
  rows: Cell[][];
  /** What to show when there is no row. */
  empty: string;
  /** Whether its columns explain themselves. */
  isPlain?: boolean;
  /** For a table that may be long: how many rows it would have without a limit, and the flag that shows them. */
  all?: { rows: number; flag: string };
}

export const left = (name: string, drop = 0): Column => ({ name, align: "left", drop });
export const right = (name: string, drop = 0): Column => ({ name, align: "right", drop });
/** What tells names and ids apart is often at their end. */
const named = (name: string): Column => ({ name, align: "left", cut: "middle", drop: 0 });
const long = (name: string, drop = 0): Column => ({ name, align: "left", cut: "end", drop });

const plain = (text: string | null): Cell => ({ text: text ?? "-" });
const number = (value: number | null, format: (value: number) => string, status?: Status): Cell => (
  { text: value === null ? "" : format(value), sort: value ?? -1, status }
);

/** The tables of a report, in their order. */
export function tablesOf(summary: RunSummary): [groups: Table, ...others: Table[]] {
  const { groups, failures, stale, counts, now } = summary;
  const ago = (time: string): Cell => {
    const age = Date.parse(now) - Date.parse(time);
    return { text: `${formatAge(age)} ago`, sort: -age };
  };
  return [
    {
      title: "Agents and jobs, highest failure rate first",
      columns: [
        named("agent"),
        named("job"),
        ...[right("runs"), right("failed"), right("rate"), right("before", 3), right("p50", 4), right("p95", 2)],
        ...[right("items", 5), right("last run", 1), left("ended", 1)],
      ],
      rows: groups.map((group) => {
        const status = group.failed > 0 ? "failed" : undefined;
        return [
          plain(group.agent_name),
          plain(group.job_type),
          number(group.runs, formatCount),
          number(group.failed, formatCount, status),
          number(group.failure_rate, formatRate, status),
          number(group.failure_rate_before, formatRate),
          number(group.p50_ms, formatDuration),
          number(group.p95_ms, formatDuration),
          number(group.items, formatCount),
          ago(group.last_start),
          { text: group.last_status, status: group.last_status },
        ];
      }),
      empty: "no runs in this window or in the one before",
      all: { rows: groups.length, flag: "--html or --json" },
    },
    {
      title: "Newest failures",
      columns: [right("started"), named("agent"), named("job"), long("error")],
      rows: failures.map((run, i) => [
        ago(run.start_time),
        plain(run.agent_name),
        plain(run.job_type),
        { text: errorOf(run), status: "failed", link: `#failure-${i + 1}` },
      ]),
      empty: "no failed runs",
      all: { rows: counts.failed, flag: "--failed" },
    },
    {
      title: "Running for too long",
      columns: [right("for"), named("agent"), named("job"), named("run")],
      rows: stale.map((run) => [
        number(run.age_ms, formatAge, "running"),
        plain(run.agent_name),
        plain(run.job_type),
        plain(run.run_id),
      ]),
      empty: "no runs",
      all: { rows: stale.length, flag: "--running" },
    },
    {
      title: "Store",
      columns: [left("name"), long("value")],
      rows: storeFacts(summary).map(([name, value]) => [{ text: name }, { text: value }]),
      empty: "",
      isPlain: true,
    },
  ];
}

/** Why a run failed, as far as it is recorded. */
function errorOf({ error_summary, status }: FailedRun): string {
  const word = status === "failed" || status === null ? "" : status;
  return [word, error_summary ?? ""].filter((part) => part !== "").join(": ") || "(no error_summary)";
}

/** Single runs, one in a row, with their whole ids. */
export function runsTable(runs: FailedRun[]): Table {
  return {
    title: "Runs",
    columns: [left("started"), left("status", 2), left("run"), long("error", 1)],
    rows: runs.map((run) => [
      plain(formatTime(run.start_time)),
      { text: run.status ?? "-", status: statusOf(run.status) },
      plain(run.run_id),
      plain(run.error_summary ?? ""),
    ]),
    empty: "no runs",
    isPlain: true,
  };
}

/** The state of the store, as names and values. */
function storeFacts({ store, schema_version, source, rejected_parts, untimed }: RunSummary): [string, string][] {
  const { newest_backup: backup, backups, database, database_bytes: bytes, log_check, pending_posts } = store;
  const { checked, missing, older } = log_check ?? { checked: 0, missing: 0, older: 0 };
  const version = schema_version === null ? "" : `, schema v${schema_version}`;
  const others = backups > 1 ? `, newest of ${backups}` : "";
  const newest = `the newest ${plural(checked, "run")} of the log`;
  const facts: [name: string, value: string | false][] = [
    ["backup", backup === null && "none"],
    ["backup", backup !== null && `${backup.path}, ${formatAge(backup.age_ms)} old${others}`],
    ["database", bytes === null ? "none" : `${database}${version}, ${formatBytes(bytes)}`],
    ["log", `${plural(store.log_files, "file")}, ${formatBytes(store.log_bytes)}`],
    ["not read", store.unreadable_logs.length > 0 && store.unreadable_logs.join(", ")],
    ["compared", checked > 0 && missing + older === 0 && `${newest} agree with the database`],
    [
      "compared",
      missing + older > 0 && `of ${newest}, the database lacks ${missing}, and has ${older} without their end`,
    ],
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
