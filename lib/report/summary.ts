/** Summarizes the runs of a store: what ran, what failed, what hangs, and the state of the store. @module */
import type { Layout } from "../layout.ts";
import { type Instant, timestamp } from "../time.ts";
import { LocalDays, percentile, Sample } from "./statistics.ts";
import { readRuns, type RecordedRun, type RunFilter, type RunOrigin, type RunRow, type Runs } from "./source.ts";
import { stateOf, type StoreState } from "./store_state.ts";

/** Options of {@linkcode summarizeRuns}. */
export interface SummaryOptions {
  /** Only runs that started then or later. @default 7 days before `now` */
  since?: Date;
  /** Only runs that started before. @default no limit */
  until?: Date;
  /** Only these agents. @default all */
  agents?: readonly string[];
  /** Only these job types. @default all */
  jobTypes?: readonly string[];
  /** A run that is `running` for longer is stale, in milliseconds. @default 86_400_000 (24 hours) */
  staleAfterMs?: number;
  /** From which time ages are counted. @default the current time */
  now?: Date;
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

const STATUSES: Record<string, Status> = {
  success: "success",
  partial: "partial",
  running: "running",
  failed: "failed",
  failure: "failed",
  timeout: "failed",
  cancelled: "failed",
};

/** The status that a recorded word counts as. */
export function statusOf(word: string | null): Status {
  return STATUSES[word ?? ""] ?? "unknown";
}

/** The share of ended runs that failed. */
export function failureRate({ success, failed, partial }: StatusCounts): number | null {
  const ended = success + failed + partial;
  return ended === 0 ? null : failed / ended;
}

/**
 * Summarizes the runs of a store. Reads the database, of schema v1 to v7, or the log where the database is missing,
 * damaged or not readable. Needs permission to read only, and never blocks a writer of a database in WAL mode. It changes
 * no content; without permission to write, SQLite leaves an empty `-wal` beside a database that no program has open.
 *
 * @param layout from `locate()`
 * @throws {TelemetryError} `locked`, `io`, and `in_the_way` when a folder has the name of the database; `permission` when
 * the log cannot be listed either
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
  return await readRuns(layout, (runs, origin) => summarize(layout, runs, origin, options));
}

function summarize(layout: Layout, runs: Runs, origin: RunOrigin, options: SummaryOptions): RunSummary {
  const { now = new Date(), until, staleAfterMs = DAY_MS } = options;
  const since = sinceOf(options, now);
  const length = Math.max(0, (until ?? now).getTime() - since.getTime()) * 1000;
  const tally = new Tally(since.getTime() * 1000);
  for (const row of runs.rows(filterOf(options, since.getTime() * 1000 - length))) tally.add(row);
  const groups = tally.groupsWorstFirst();
  return {
    base: layout.base,
    now: timestamp(now),
    time_zone: Intl.DateTimeFormat().resolvedOptions().timeZone,
    since: timestamp(since),
    until: until ? timestamp(until) : null,
    ...origin,
    counts: tally.counts,
    failure_rate: failureRate(tally.counts),
    before: tally.before,
    failure_rate_before: failureRate(tally.before),
    untimed: runs.untimed,
    groups: groups.map((group) => group.summary()),
    failures: tally.newestFailures().flatMap((row) => failedRun(runs, row) ?? []),
    stale: tally.running.flatMap((row) => {
      const age = now.getTime() - row.start / 1000;
      const p95 = tally.groupOf(row).p95() ?? Infinity;
      const limit = Math.min(staleAfterMs, Math.max(MIN_STALE_MS, 5 * p95));
      return age > limit ? [{ ...listed(row), age_ms: Math.round(age) }] : [];
    }).sort((a, b) => b.age_ms - a.age_ms),
    days: Object.fromEntries([...tally.days].sort(([a], [b]) => a < b ? -1 : 1)),
    points: tally.sample.items.map(([group, duration]) => [groups.indexOf(group), duration]),
    store: stateOf(layout, runs, origin, since, now),
  };
}

/** Lists the runs of a window with one of these statuses, newest first, in parts. */
export async function listRuns(
  layout: Layout,
  options: SummaryOptions & { status: Status },
  print: (run: FailedRun) => void,
): Promise<RunOrigin> {
  const { now = new Date(), status } = options;
  return await readRuns(layout, (runs, origin) => {
    const filter = filterOf(options, sinceOf(options, now).getTime() * 1000);
    const found = [...runs.rows(filter, "+status NOT IN ('success', 'partial')")]
      .filter((row) => statusOf(row.status) === status && row.id !== null);
    for (const row of found.sort(newestFirst)) {
      const run = failedRun(runs, row);
      if (run) print(run);
    }
    return origin;
  });
}

function sinceOf({ since }: SummaryOptions, now: Date): Date {
  return since ?? new Date(now.getTime() - 7 * DAY_MS);
}

function filterOf({ until, agents, jobTypes }: SummaryOptions, since: Instant): RunFilter {
  return {
    since,
    until: until && until.getTime() * 1000,
    agents: agents && new Set(agents),
    jobTypes: jobTypes && new Set(jobTypes),
  };
}

function failedRun(runs: Runs, row: RunRow): FailedRun | undefined {
  const fields = runs.fieldsOf(row.id!);
  return fields && { ...listed(row), error_summary: textOf(fields["error_summary"]), fields };
}

function listed({ id, agent, job, status, start }: RunRow): ListedRun {
  return { run_id: id!, agent_name: agent, job_type: job, status, start_time: isoOf(start) };
}

/** An instant with its microseconds. */
function isoOf(at: Instant): string {
  const micros = String(((at % 1000) + 1000) % 1000).padStart(3, "0");
  return timestamp(new Date(Math.floor(at / 1000))).replace("000+", `${micros}+`);
}

function textOf(value: unknown): string | null {
  return value === undefined || value === null ? null : String(value);
}

const newestFirst = (a: RunRow, b: RunRow) => b.start - a.start || (a.id! < b.id! ? 1 : -1);

function noRuns(): StatusCounts {
  return { runs: 0, success: 0, failed: 0, partial: 0, running: 0, unknown: 0 };
}

function count(counts: StatusCounts, status: Status): void {
  counts.runs++;
  counts[status]++;
}

/** The runs of one agent and job type, while they are counted. */
class Group {
  readonly counts: StatusCounts = noRuns();
  readonly before: StatusCounts = noRuns();
  readonly durations: number[] = [];
  readonly days = new Map<string, StatusCounts>();
  items = 0;
  newest: { start: Instant; status: Status } = { start: -Infinity, status: "unknown" };
  readonly agent: string;
  readonly job: string | null;
  #sorted: Float64Array | undefined;

  constructor(agent: string, job: string | null) {
    this.agent = agent;
    this.job = job;
  }

  #percentile(share: number): number | null {
    this.#sorted ??= Float64Array.from(this.durations).sort();
    return percentile(this.#sorted, share);
  }

  p95(): number | null {
    return this.#percentile(0.95);
  }

  summary(): GroupSummary {
    return {
      agent_name: this.agent,
      job_type: this.job,
      ...this.counts,
      failure_rate: failureRate(this.counts),
      failure_rate_before: failureRate(this.before),
      p50_ms: this.#percentile(0.5),
      p95_ms: this.p95(),
      items: this.items,
      last_start: isoOf(this.newest.start),
      last_status: this.newest.status,
      days: Object.fromEntries([...this.days].sort(([a], [b]) => a < b ? -1 : 1)),
    };
  }
}

/** Counts runs of the window and of the window before, in any order. */
class Tally {
  readonly counts: StatusCounts = noRuns();
  readonly before: StatusCounts = noRuns();
  readonly days = new Map<string, StatusCounts>();
  readonly running: RunRow[] = [];
  readonly sample = new Sample<[group: Group, duration: number]>(MAX_POINTS);
  #failures: RunRow[] = [];
  readonly #groups = new Map<string, Map<string | null, Group>>();
  readonly #localDays = new LocalDays();
  readonly #since: Instant;

  constructor(since: Instant) {
    this.#since = since;
  }

  add(row: RunRow): void {
    const status = statusOf(row.status);
    const group = this.groupOf(row);
    if (row.start >= group.newest.start) group.newest = { start: row.start, status };
    if (row.start < this.#since) {
      count(this.before, status);
      return count(group.before, status);
    }
    const day = this.#localDays.dayOf(row.start);
    for (const counts of [this.counts, group.counts, entry(this.days, day, noRuns), entry(group.days, day, noRuns)]) {
      count(counts, status);
    }
    if (typeof row.items === "number") group.items += row.items;
    if (typeof row.duration === "number" && status !== "running") {
      group.durations.push(row.duration);
      this.sample.add([group, row.duration]);
    }
    if (status === "failed" && row.id !== null) this.#addFailure(row);
    if (status === "running" && row.id !== null) this.running.push(row);
  }

  #addFailure(row: RunRow): void {
    this.#failures.push(row);
    if (this.#failures.length >= 50 * MAX_FAILURES) this.#failures = this.newestFailures();
  }

  newestFailures(): RunRow[] {
    return this.#failures.toSorted(newestFirst).slice(0, MAX_FAILURES);
  }

  groupOf({ agent, job }: RunRow): Group {
    const jobs = entry(this.#groups, agent, () => new Map<string | null, Group>());
    return entry(jobs, job, () => new Group(agent, job));
  }

  groupsWorstFirst(): Group[] {
    const rate = ({ counts }: Group) => failureRate(counts) ?? -1;
    const name = ({ agent, job }: Group) => `${agent}\0${job ?? ""}`;
    return this.#groups.values().flatMap((jobs) => jobs.values()).toArray().sort((a, b) =>
      rate(b) - rate(a) || b.counts.failed - a.counts.failed || b.counts.runs - a.counts.runs ||
      (name(a) < name(b) ? -1 : 1)
    );
  }
}

/** The value of a key. It is created when there is none. */
function entry<K, V>(map: Map<K, V>, key: K, create: () => V): V {
  let value = map.get(key);
  if (value === undefined) map.set(key, value = create());
  return value;
}
