/** The tables of a report: what a terminal, Markdown and a page show alike. @module */
import { formatBytes } from "../format.ts";
import { formatAge, formatCount, formatDuration, formatRate, formatTime, plural } from "./format.ts";
import { type FailedRun, type RunSummary, type StaleRun, type Status, statusOf } from "./summary.ts";

/** A column of a table. */
export interface Column {
  name: string;
  align: "left" | "right";
  /** Where its cells may be cut when there is no room. */
  cut?: "middle" | "end";
  /** Where there is no room, columns with the highest number are left out first. 0 is never left out. */
  drop: number;
}

/** A cell: its text and, where it differs, what it is sorted by and the status that colours it. */
export interface Cell {
  text: string;
  sort?: number | string;
  status?: Status | undefined;
}

export interface Table {
  title: string;
  columns: Column[];
  rows: Cell[][];
  /** What to show when there is no row. */
  empty: string;
}

const left = (name: string, drop = 0): Column => ({ name, align: "left", drop });
const right = (name: string, drop = 0): Column => ({ name, align: "right", drop });
/** What tells names and ids apart is often at their end. */
const named = (name: string): Column => ({ name, align: "left", cut: "middle", drop: 0 });
const long = (name: string): Column => ({ name, align: "left", cut: "end", drop: 0 });

const plain = (text: string | null): Cell => ({ text: text ?? "-" });
const number = (value: number | null, text: string, status?: Status): Cell => ({ text, sort: value ?? -1, status });

/** Agents and job types, worst first. */
export function groupsTable({ groups, now }: RunSummary): Table {
  return {
    title: "Agents and jobs, highest failure rate first",
    columns: [
      named("agent"),
      named("job"),
      right("runs"),
      right("failed"),
      right("rate"),
      right("before", 3),
      right("p50", 4),
      right("p95", 2),
      right("items", 5),
      right("last run", 1),
      left("ended", 1),
    ],
    rows: groups.map((group) => [
      plain(group.agent_name),
      plain(group.job_type),
      number(group.runs, formatCount(group.runs)),
      number(group.failed, formatCount(group.failed), group.failed > 0 ? "failed" : undefined),
      number(group.failure_rate, formatRate(group.failure_rate), group.failed > 0 ? "failed" : undefined),
      number(group.failure_rate_before, formatRate(group.failure_rate_before)),
      number(group.p50_ms, formatDuration(group.p50_ms)),
      number(group.p95_ms, formatDuration(group.p95_ms)),
      number(group.items, formatCount(group.items)),
      number(-ageOf(group.last_start, now), `${formatAge(ageOf(group.last_start, now))} ago`),
      { text: group.last_status, status: group.last_status },
    ]),
    empty: "no runs in this window or in the one before",
  };
}

/** Failed runs, newest first. */
export function failuresTable({ failures, now }: RunSummary): Table {
  return {
    title: "Newest failures",
    columns: [right("started"), named("agent"), named("job"), long("error")],
    rows: failures.map((run) => [
      number(-ageOf(run.start_time, now), `${formatAge(ageOf(run.start_time, now))} ago`),
      plain(run.agent_name),
      plain(run.job_type),
      { text: errorOf(run), status: "failed" },
    ]),
    empty: "no failed runs",
  };
}

/** Why a run failed, as far as it is recorded. */
export function errorOf({ error_summary, status }: FailedRun): string {
  const word = status === "failed" || status === null ? "" : status;
  return [word, error_summary ?? ""].filter((part) => part !== "").join(": ") || "(no error_summary)";
}

/** Runs that are `running` for too long, oldest first. */
export function staleTable({ stale }: { stale: StaleRun[] }): Table {
  return {
    title: "Running for too long",
    columns: [right("for"), named("agent"), named("job"), named("run")],
    rows: stale.map((run) => [
      { ...number(run.age_ms, formatAge(run.age_ms)), status: "running" },
      plain(run.agent_name),
      plain(run.job_type),
      plain(run.run_id),
    ]),
    empty: "no runs",
  };
}

/** Single runs, one in a row, with their whole ids. */
export function runsTable(runs: FailedRun[]): Table {
  return {
    title: "Runs",
    columns: [left("started"), left("status", 2), left("run"), { ...long("error"), drop: 1 }],
    rows: runs.map((run) => [
      plain(formatTime(run.start_time)),
      { text: run.status ?? "-", status: statusOf(run.status) },
      plain(run.run_id),
      plain(run.error_summary ?? ""),
    ]),
    empty: "no runs",
  };
}

/** The state of the store, as names and values. */
export function storeFacts({ store, schema_version, source, rejected_parts, untimed }: RunSummary): [string, string][] {
  const { newest_backup: backup, log_check: check } = store;
  const facts: [string, string][] = [];
  facts.push([
    "backup",
    backup === null
      ? "none"
      : `${backup.path}, ${formatAge(backup.age_ms)} old${store.backups > 1 ? `, newest of ${store.backups}` : ""}`,
  ]);
  facts.push([
    "database",
    store.database_bytes === null
      ? "none"
      : `${store.database}, ${schema_version === null ? "" : `schema v${schema_version}, `}${
        formatBytes(store.database_bytes)
      }`,
  ]);
  facts.push(["log", `${plural(store.log_files, "file")}, ${formatBytes(store.log_bytes)}`]);
  if (store.unreadable_logs.length > 0) facts.push(["not read", store.unreadable_logs.join(", ")]);
  if (check !== null && check.missing + check.older === 0) {
    facts.push(["compared", `the newest ${plural(check.checked, "run")} of the log agree with the database`]);
  } else if (check !== null) {
    const parts = [`${formatCount(check.missing)} missing`, `${formatCount(check.older)} older in the database`];
    facts.push(["compared", `of the newest ${plural(check.checked, "run")} of the log: ${parts.join(", ")}`]);
  }
  if (store.pending_posts > 0) {
    facts.push(["unposted", `${plural(store.pending_posts, "ended run")} not posted to the web API`]);
  }
  if (store.running_before > 0) {
    facts.push(["unended", `${plural(store.running_before, "run")} from before this window without an end`]);
  }
  if (untimed > 0) facts.push(["left out", `${plural(untimed, "run")} whose start is not a time`]);
  if (source === "log") facts.push(["rejected", `${plural(rejected_parts, "part")} of the log without a valid record`]);
  return facts;
}

/** The window in local time. */
export function windowText({ since, until, time_zone }: RunSummary): string {
  return `${formatTime(since)} to ${until === null ? "now" : formatTime(until)} (${time_zone})`;
}

/** `290 runs: 183 success, 55 failed`, as parts with their status. */
export function countParts({ counts }: RunSummary): [text: string, status: Status][] {
  const shown = (["success", "failed", "partial", "running", "unknown"] as const).filter((status) =>
    counts[status] > 0
  );
  return shown.map((status) => [`${formatCount(counts[status])} ${status}`, status]);
}

/** `failure rate 12.3% (10.0% in the window before)`. */
export function rateText({ failure_rate, failure_rate_before }: RunSummary): string {
  if (failure_rate === null) return "";
  const before = failure_rate_before === null ? "no ended runs" : formatRate(failure_rate_before);
  return `failure rate ${formatRate(failure_rate)} (${before} in the window before)`;
}

function ageOf(time: string, now: string): number {
  return new Date(now).getTime() - new Date(time).getTime();
}
