/** Summarizes the runs of a store: what ran, what failed, what hangs, and the state of the store. @module */
import { assertNonNegative, assertTimes } from "../errors.ts";
import type { Layout } from "../layout.ts";
import { LATER_STATUSES } from "../records.ts";
import { type Instant, timestamp } from "../time.ts";
import { localDate } from "./format.ts";
import { readRuns, type RecordedRun, type RunFilter, type RunOrigin, type RunRow, type Runs } from "./source.ts";
import { stateOf, type StoreState } from "./store_state.ts";

/** Options of {@linkcode summarizeRuns}. */
export interface SummaryOptions extends RunFilter {
  /** A run that is `running` for longer is stale, in milliseconds. @default 86_400_000 (24 hours) */
  staleAfterMs?: number | undefined;
  /** From which time ages are counted. @default the current time */
  now?: Date | undefined;
}

/** How many runs have each status. */
export interface StatusCounts {
  /** All of them. */
  runs: number;
  /** Runs that ended well. */
  success: number;
  /** Also `failure`, `timeout` and `cancelled`, which other clients write. */
  failed: number;
  /** Runs that ended with a part of their work done. */
  partial: number;
  /** Runs without an end. */
  running: number;
  /** Runs without a status, or with another word. */
  unknown: number;
}

/** The name of a count. */
export type Status = Exclude<keyof StatusCounts, "runs">;

/** A run in a list. Times are ISO 8601 in UTC. */
export interface ListedRun {
  /** The id of the run. */
  run_id: string;
  /** The agent; empty when the run names none. */
  agent_name: string;
  /** The job type; null when the run has none. */
  job_type: string | null;
  /** As it was recorded. */
  status: string | null;
  /** When the run started. */
  start_time: string;
}

/** A run that did not succeed, with all fields that are set. */
export interface FailedRun extends ListedRun {
  /** The error, as it was recorded. */
  error_summary: string | null;
  /** All fields of the run that are set. */
  fields: RecordedRun;
}

/** A run that is `running` for too long. */
export interface StaleRun extends ListedRun {
  /** For how long, in milliseconds. */
  age_ms: number;
}

/** All runs of one agent and job type in the window. */
export interface GroupSummary extends StatusCounts {
  /** The agent; empty when the run names none. */
  agent_name: string;
  /** The job type; null when the run has none. */
  job_type: string | null;
  /** The share of ended runs that failed, from 0 to 1; null without an ended run. */
  failure_rate: number | null;
  /** The same in the window before. */
  failure_rate_before: number | null;
  /** The median of `duration_ms` of ended runs, interpolated as SQL's `percentile_cont` does. */
  p50_ms: number | null;
  /** The same for 95 of 100 runs. */
  p95_ms: number | null;
  /** The sum of `items_succeeded`. */
  items: number;
  /** When the newest run of the window or of the window before started. */
  last_start: string;
  /** The status of that run. */
  last_status: Status;
  /** The runs of each local day, by `YYYY-MM-DD`. Days without runs are missing. */
  days: Record<string, StatusCounts>;
}

/** What {@linkcode summarizeRuns} returns. Its fields are those of `report_runs --json`. */
export interface RunSummary extends RunOrigin {
  /** The folder of the store. */
  base: string;
  /** When the summary was made. */
  now: string;
  /** The time zone of the days, which is that of this process. */
  time_zone: string;
  /** The start of the window. */
  since: string;
  /** Null when the window has no end. */
  until: string | null;
  /** The runs of the window by status. */
  counts: StatusCounts;
  /** The share of ended runs that failed, from 0 to 1; null without an ended run. */
  failure_rate: number | null;
  /** The counts of the window of the same length before. */
  before: StatusCounts;
  /** The same in the window before. */
  failure_rate_before: number | null;
  /** How many runs are left out because their start is not a time. */
  untimed: number;
  /** One entry for each agent and job type, the highest failure rate first. */
  groups: GroupSummary[];
  /** The newest failed runs, at most 20. */
  failures: FailedRun[];
  /** Runs that are `running` for longer than `staleAfterMs`, or than five times the `p95_ms` of their group; oldest first. */
  stale: StaleRun[];
  /** The runs of each local day that has some. */
  days: Record<string, StatusCounts>;
  /** Up to 2,000 ended runs, evenly chosen: index of the group and `duration_ms`. */
  points: [group: number, duration_ms: number][];
  /** The state of the store beside its runs. */
  store: StoreState;
}

const DAY_MS = 86_400_000;
const MAX_FAILURES = 20;
const MAX_POINTS = 2000;
/** A run is not stale after five times a very short p95. */
const MIN_STALE_MS = 60_000;

/** The status that a recorded word counts as. */
export function statusOf(word: string | null): Status {
  if (word === "success" || word === "partial" || word === "running" || word === "failed") return word;
  return LATER_STATUSES.includes(word) ? "failed" : "unknown";
}

/** The share of ended runs that failed. */
export function failureRate({ success, failed, partial }: StatusCounts): number | null {
  const ended = success + failed + partial;
  return ended === 0 ? null : failed / ended;
}

/** The sum of some counts. */
export function sumCounts(all: Iterable<StatusCounts>): StatusCounts {
  const sum: StatusCounts = { runs: 0, success: 0, failed: 0, partial: 0, running: 0, unknown: 0 };
  for (const counts of all) for (const name of Object.keys(sum) as (keyof StatusCounts)[]) sum[name] += counts[name];
  return sum;
}

/**
 * Summarizes the runs of a store. Reads the database, of schema v1 to v7, or the log where the database is missing,
 * damaged or not readable. Needs permission to read only, and never blocks a writer of a database in WAL mode. It changes
 * no content; without permission to write, SQLite leaves an empty `-wal` beside a database that no program has open.
 *
 * @param layout from `locate()`
 * @throws {TelemetryError} `locked`, `io`, and `in_the_way` when a folder has the name of the database; `permission` when
 * the log cannot be listed either; `usage` for an option that is not valid
 *
 * @example
 * ```ts no-eval
 * import { locate } from "../fs/locate.ts";
 * import { summarizeRuns } from "./summary.ts";
 *
 * const { counts, groups } = await summarizeRuns(locate(), { since: new Date(Date.now() - 86_400_000) });
 * console.log(`${counts.failed} of ${counts.runs} runs failed; worst: ${groups[0]?.agent_name}`);
 * ```
 */
export async function summarizeRuns(layout: Layout, options: SummaryOptions = {}): Promise<RunSummary> {
  const { since, until, now, staleAfterMs } = options;
  assertTimes({ since, until, now });
  if (staleAfterMs !== undefined) assertNonNegative({ staleAfterMs });
  return await readRuns(layout, (runs, origin) => summarize(layout, runs, origin, options));
}

function summarize(layout: Layout, runs: Runs, origin: RunOrigin, options: SummaryOptions): RunSummary {
  const { now = new Date(), until, staleAfterMs = DAY_MS } = options;
  const since = sinceOf(options, now);
  // 1. Count the runs of the window and of the window before.
  const length = Math.max(0, (until ?? now).getTime() - since.getTime());
  const tally = new Tally(since.getTime() * 1000);
  const filter = { ...options, since: new Date(since.getTime() - length) };
  const untimed = runs.each(filter, (row, start) => tally.add(row, start));
  const groups = tally.groups.map((group) => ({ ...group, summary: summaryOf(group) })).sort(worstFirst);
  const summaries = groups.map(({ summary }) => summary);
  const days = new Set(summaries.flatMap((group) => Object.keys(group.days)).sort());
  const [counts, before] = [sumCounts(summaries), sumCounts(groups.map((group) => group.before))];
  // 2. Find the runs that are running for too long, whenever they started.
  const running = listOf(runs, { ...options, since: undefined }, "running");
  const stale = running.map(({ fields: _, error_summary: __, ...run }): StaleRun => (
    { ...run, age_ms: now.getTime() - Date.parse(run.start_time) }
  )).filter(({ agent_name, job_type, age_ms }) => {
    const group = summaries.find((group) => group.agent_name === agent_name && group.job_type === job_type);
    return age_ms > Math.min(staleAfterMs, Math.max(MIN_STALE_MS, 5 * (group?.p95_ms ?? Infinity)));
  });
  return {
    base: layout.base,
    now: timestamp(now),
    time_zone: Intl.DateTimeFormat().resolvedOptions().timeZone,
    since: timestamp(since),
    until: until ? timestamp(until) : null,
    ...origin,
    counts,
    failure_rate: failureRate(counts),
    before,
    failure_rate_before: failureRate(before),
    untimed,
    groups: summaries,
    failures: tally.failures.sort(newestFirst).slice(0, MAX_FAILURES).flatMap((found) => readRun(runs, found)),
    stale: stale.reverse(),
    days: Object.fromEntries(
      days.keys().map((day) => [day, sumCounts(summaries.flatMap((group) => group.days[day] ?? []))]),
    ),
    points: pointsOf(groups),
    store: {
      ...stateOf(layout, runs, origin, now),
      running_before: running.filter(({ start_time }) => Date.parse(start_time) < since.getTime()).length,
    },
  };
}

/** Lists the runs of a window with this status, newest first. Without `since`, `running` ones of any age. */
export async function listRuns(
  layout: Layout,
  { status, ...options }: SummaryOptions & { status: "failed" | "running" },
): Promise<RunOrigin & { runs: FailedRun[] }> {
  const since = status === "running" ? options.since : sinceOf(options, options.now ?? new Date());
  return await readRuns(layout, (runs, origin) => ({ ...origin, runs: listOf(runs, { ...options, since }, status) }));
}

function sinceOf({ since }: SummaryOptions, now: Date): Date {
  return since ?? new Date(now.getTime() - 7 * DAY_MS);
}

/** A run that was found. */
interface Found {
  id: string;
  start: Instant;
}

const newestFirst = (a: Found, b: Found) => b.start - a.start;

function listOf(runs: Runs, filter: RunFilter, status: "failed" | "running"): FailedRun[] {
  const found: Found[] = [];
  runs.each(filter, ([id, , , word], start) => {
    if (statusOf(word) === status) found.push({ id: id!, start });
  }, status === "running" ? "status='running'" : "status NOT IN ('success', 'partial', 'running')");
  return found.sort(newestFirst).flatMap((found) => readRun(runs, found));
}

/** Reads the fields of a run. None when it has gone meanwhile. */
function readRun(runs: Runs, { id, start }: Found): FailedRun[] {
  const fields = runs.fieldsOf(id);
  if (fields === undefined) return [];
  const text = (column: string) => fields[column] === undefined ? null : String(fields[column]);
  return [{
    run_id: id,
    agent_name: text("agent_name") ?? "",
    job_type: text("job_type"),
    status: text("status"),
    start_time: isoOf(start),
    error_summary: text("error_summary"),
    fields,
  }];
}

/** An instant with its microseconds. */
function isoOf(at: Instant): string {
  const micros = String(((at % 1000) + 1000) % 1000).padStart(3, "0");
  return timestamp(new Date(Math.floor(at / 1000))).replace("000+", `${micros}+`);
}

/** The runs of one agent and job type. */
interface Group {
  agent_name: string;
  job_type: string | null;
  days: Record<string, StatusCounts>;
  before: StatusCounts;
  durations: number[];
  items: number;
  newest: Instant;
  last_status: Status;
}

/** Counts runs of the window and of the window before, in any order. */
class Tally {
  readonly groups: Group[] = [];
  readonly failures: Found[] = [];
  readonly #byAgent = new Map<string, Map<string | null, Group>>();
  /** The local day of each quarter of an hour: no zone changes within one. */
  readonly #days = new Map<number, string>();

  constructor(private readonly since: Instant) {}

  add([id, agent, job, word, , duration, items]: RunRow, start: Instant): void {
    const status = statusOf(word);
    const group = this.#groupOf(agent ?? "", job);
    if (start >= group.newest) {
      group.newest = start;
      group.last_status = status;
    }
    const isBefore = start < this.since;
    const counts = isBefore ? group.before : group.days[this.#dayOf(start)] ??= sumCounts([]);
    counts.runs++;
    counts[status]++;
    if (isBefore) return;
    if (typeof items === "number") group.items += items;
    if (typeof duration === "number" && status !== "running") group.durations.push(duration);
    if (status === "failed") this.failures.push({ id: id!, start });
  }

  #groupOf(agent_name: string, job_type: string | null): Group {
    const byJob = this.#byAgent.getOrInsertComputed(agent_name, () => new Map());
    return byJob.getOrInsertComputed(job_type, () => {
      const none = { days: {}, before: sumCounts([]), durations: [], items: 0, newest: -Infinity };
      const group: Group = { agent_name, job_type, ...none, last_status: "unknown" };
      this.groups.push(group);
      return group;
    });
  }

  #dayOf(at: Instant): string {
    const quarter = Math.floor(at / 900e6);
    return this.#days.getOrInsertComputed(quarter, () => localDate(new Date(quarter * 900_000)));
  }
}

function summaryOf({ agent_name, job_type, days, before, durations, items, newest, last_status }: Group): GroupSummary {
  const counts = sumCounts(Object.values(days));
  // Numbers in a typed array are sorted much faster.
  const sorted = Float64Array.from(durations).sort();
  return {
    agent_name,
    job_type,
    ...counts,
    failure_rate: failureRate(counts),
    failure_rate_before: failureRate(before),
    p50_ms: percentile(sorted, 0.5),
    p95_ms: percentile(sorted, 0.95),
    items,
    last_start: isoOf(newest),
    last_status,
    days,
  };
}

function worstFirst({ summary: a }: { summary: GroupSummary }, { summary: b }: { summary: GroupSummary }): number {
  const name = ({ agent_name, job_type }: GroupSummary) => `${agent_name}\0${job_type ?? ""}`;
  return (b.failure_rate ?? -1) - (a.failure_rate ?? -1) || b.failed - a.failed || b.runs - a.runs ||
    (name(a) < name(b) ? -1 : 1);
}

/** A percentile of sorted numbers, interpolated between two neighbours as SQL's `percentile_cont` does. */
function percentile(sorted: Float64Array, share: number): number | null {
  if (sorted.length === 0) return null;
  const position = (sorted.length - 1) * share;
  const low = sorted[Math.floor(position)]!;
  return low + (sorted[Math.ceil(position)]! - low) * (position - Math.floor(position));
}

/** Every n-th duration of each group. */
function pointsOf(groups: Group[]): RunSummary["points"] {
  const all = groups.reduce((sum, { durations }) => sum + durations.length, 0);
  const step = Math.ceil(all / MAX_POINTS);
  let at = 0;
  return groups.flatMap(({ durations }, group) =>
    durations.filter(() => at++ % step === 0).map((duration): [number, number] => [group, duration])
  );
}
