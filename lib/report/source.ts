/** Where a report reads runs: the database, or the log where the database cannot be read. @module */
import { hasCode } from "../errors.ts";
import { fileNameOf, type Layout, parseFileName } from "../layout.ts";
import { logFiles, readLogs } from "../log/read.ts";
import { RUN_COLUMNS, type RunEvent } from "../records.ts";
import { Connection } from "../sqlite/connection.ts";
import { applySchema, columnNames, inspect } from "../sqlite/migrate.ts";
import { blobAsText, jsonObjectOf, rowidOf } from "../sqlite/rows.ts";
import { readRunStates, StateWriter } from "../store/merge.ts";
import { type Instant, parseTimestamp } from "../time.ts";

/** Where the runs of a report come from. */
export interface RunOrigin {
  /** Where the runs were read. */
  source: "database" | "log";
  /** Why the database could not be read, and what to do about it. */
  problem: string | null;
  /** The schema version of the database; null when the log was read. */
  schema_version: number | null;
  /** How many parts of the log are not records. Counted only when the log was read. */
  rejected_parts: number;
}

/** Which runs to read. */
export interface RunFilter {
  /** Only runs that started then or later. @default 7 days before now */
  since?: Date | undefined;
  /** Only runs that started before. @default no limit */
  until?: Date | undefined;
  /** Only these agents. @default all */
  agents?: readonly string[] | undefined;
  /** Only these job types. @default all */
  jobTypes?: readonly string[] | undefined;
}

/** What most runs are read for. Only runs that may be listed have their id. */
export type RunRow = [
  id: string | null,
  agent: string | null,
  job: string | null,
  status: string | null,
  start: string,
  duration: unknown,
  items: unknown,
];

/** A run with all fields that are set. */
export type RecordedRun = Record<string, string | number>;

const DAY_MS = 86_400_000;
/** Errors after which the log is read. Without write access to its folder, a database in WAL mode may be unreadable. */
const UNREADABLE = ["no_storage", "damaged", "not_a_database", "empty_database", "permission"] as const;

/** Opens the runs of a store for `work`, which is done again with the runs of the log when the database cannot be read. */
export async function readRuns<T>({ database, raw }: Layout, work: (runs: Runs, origin: RunOrigin) => T): Promise<T> {
  let problem: string;
  try {
    using db = Connection.openToRead(database);
    const { version, wal } = inspect(db);
    // One snapshot. Without a WAL it would hold up writers.
    if (wal) db.run("BEGIN");
    return work(new Runs(db), { source: "database", problem: null, schema_version: version, rejected_parts: 0 });
  } catch (error) {
    if (!hasCode(error, ...UNREADABLE)) throw error;
    problem = `${error.message}; ${error.hint}`;
  }
  return await readLoggedRuns(raw, problem, work);
}

async function readLoggedRuns<T>(
  raw: string,
  problem: string | null,
  work: (runs: Runs, origin: RunOrigin) => T,
): Promise<T> {
  using db = Connection.open(":memory:");
  applySchema(db);
  db.run("PRAGMA ignore_check_constraints=ON");
  const writer = new StateWriter(db, RUN_COLUMNS);
  let rejected_parts = 0;
  for await (const { rows, rejections } of readRunStates(logFiles(raw))) {
    rejected_parts += rejections.length;
    db.transaction(() => {
      for (const row of rows) {
        writer.writeState(row);
        writer.writeMarker(row);
      }
    });
  }
  return work(new Runs(db), { source: "log", problem, schema_version: null, rejected_parts });
}

const isOneOf = (name: string | null, names: readonly (string | null)[] | undefined) => names?.includes(name) ?? true;

/** The runs in an open database of any schema version. */
export class Runs {
  readonly #rowid: string | undefined;
  readonly #columns: string[];

  constructor(readonly db: Connection) {
    this.#rowid = rowidOf(db, "agent_runs");
    const existing = columnNames(db, "agent_runs");
    this.#columns = [...RUN_COLUMNS, "custom_metadata"].filter((column) => existing.has(column));
  }

  /**
   * Calls `visit` with each run that a filter and a condition in SQL select, in no certain order; without `since`, of any
   * age. Returns how many were left out because their start is not a time.
   */
  each(filter: RunFilter, visit: (row: RunRow, start: Instant) => void, condition = "true"): number {
    const { since, until, agents, jobTypes } = filter;
    const [from, to] = [since ? since.getTime() * 1000 : -Infinity, until ? until.getTime() * 1000 : Infinity];
    // The window is wider as text, because times have zones.
    const day = (at: Date, days: number) => new Date(at.getTime() + days * DAY_MS).toISOString().slice(0, 10);
    const window = [since ? day(since, -1) : "0", until ? day(until, 2) : ":"];
    const where = `start_time>=?1 AND start_time<?2 AND (${condition})`;
    // An index finds the ranges of 1,024 row numbers that have such runs. Then each range is read.
    const [range, isInRange] = this.#rowid === undefined
      ? ["0", "?3=0"]
      : [`${this.#rowid} >> 10`, `${this.#rowid} BETWEEN ?3 << 10 AND (?3 << 10) + 1023`];
    // As JSON, in which text with NUL stays whole.
    const rows = this.db.prepare(
      `SELECT json_group_array(json_array(iif(status IN ('success', 'partial'), NULL, CAST(run_id AS TEXT)),
        CAST(agent_name AS TEXT), CAST(job_type AS TEXT), CAST(status AS TEXT), CAST(start_time AS TEXT),
        ${blobAsText("duration_ms")}, ${blobAsText("items_succeeded")}
      )) AS found FROM agent_runs NOT INDEXED WHERE ${isInRange} AND ${where}`,
    );
    let untimed = this.count("start_time<'0' OR start_time>=':'");
    for (const { at } of this.db.all(`SELECT DISTINCT ${range} AS at FROM agent_runs WHERE ${where}`, ...window)) {
      for (const row of JSON.parse(rows.get(...window, at!)!["found"] as string) as RunRow[]) {
        if (!isOneOf(row[1], agents) || !isOneOf(row[2], jobTypes)) continue;
        const start = parseTimestamp(row[4]);
        if (start === undefined) untimed++;
        else if (from <= start && start < to) visit(row, start);
      }
    }
    return untimed;
  }

  /** The fields of a run that are set. Undefined when there is no such run. */
  fieldsOf(id: string): RecordedRun | undefined {
    const row = this.db.get(`SELECT ${jsonObjectOf(this.#columns)} AS fields FROM agent_runs WHERE run_id=?`, id);
    if (row === undefined) return undefined;
    const fields = JSON.parse(row["fields"] as string) as Record<string, string | number | null>;
    return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== null)) as RecordedRun;
  }

  /** Up to three ids that end in `end`. An id that is exactly this one is the only one. */
  idsEndingIn(end: string): string[] {
    if (this.db.get("SELECT 1 FROM agent_runs WHERE run_id=?", end)) return [end];
    const rows = this.db.all(
      "SELECT json_quote(run_id) AS id FROM agent_runs WHERE substr(run_id, -length(?1))=?1 AND ?1<>'' LIMIT 3",
      end,
    );
    return rows.map(({ id }) => JSON.parse(id as string));
  }

  /** How many rows a condition in SQL selects. */
  count(condition: string): number {
    return Number(this.db.get(`SELECT count(*) AS rows FROM agent_runs WHERE ${condition}`)!["rows"]);
  }
}

/** A run with its events. */
export interface RunDetails {
  run: RecordedRun;
  /** In the order of the log. */
  events: RunEvent[];
  origin: RunOrigin;
}

/** Finds a run by its id or the end of it, in the database or else in the log. Returns the ids when it is not one run. */
export async function findRun(layout: Layout, end: string): Promise<RunDetails | { ids: string[] }> {
  const read = (runs: Runs, origin: RunOrigin) => {
    const ids = runs.idsEndingIn(end);
    return { ids, origin, run: ids.length === 1 ? runs.fieldsOf(ids[0]!) : undefined };
  };
  let found = await readRuns(layout, read);
  if (found.ids.length === 0 && found.origin.source === "database") {
    // A table with a stricter constraint has refused some runs: they are in the log only.
    found = await readLoggedRuns(layout.raw, null, read);
  }
  const { ids, origin, run } = found;
  if (run === undefined) return { ids };
  const events: RunEvent[] = [];
  for await (const batch of readLogs(logsOf(run, layout.raw), { only: "event" })) {
    for (const entry of batch) {
      if ("record" in entry && entry.record.record_type === "event" && entry.record.run_id === run["run_id"]) {
        events.push(entry.record);
      }
    }
  }
  return { run, events, origin };
}

/** The logs that can hold the events of a run. Clocks and the days of writing may differ by a day. */
function logsOf(run: RecordedRun, raw: string): string[] {
  const from = (parseTimestamp(String(run["start_time"])) ?? -Infinity) / 1000 - 2 * DAY_MS;
  const to = (parseTimestamp(String(run["end_time"])) ?? Infinity) / 1000 + 2 * DAY_MS;
  return logFiles(raw).filter((path) => {
    const day = parseFileName(fileNameOf(path))?.time.getTime();
    return day === undefined || from <= day && day <= to;
  });
}
