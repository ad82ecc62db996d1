/** Where a report reads runs: the database, or the log where the database cannot be read. @module */
import { errorMessage, hasCode } from "../errors.ts";
import { type Layout, parseFileName } from "../layout.ts";
import { logFiles, readLogs } from "../log/read.ts";
import { RUN_COLUMNS, type RunEvent } from "../records.ts";
import { Connection } from "../sqlite/connection.ts";
import { applySchema, columnNames, inspect } from "../sqlite/migrate.ts";
import { blobAsText, rowidOf } from "../sqlite/rows.ts";
import { MARK_POSTED_SQL, readRunStates, upsertSql } from "../store/merge.ts";
import { type Instant, parseTimestamp } from "../time.ts";

/** Where the runs of a report come from. */
export interface RunOrigin {
  /** Where the runs were read. */
  source: "database" | "log";
  /** Why the database could not be read. */
  problem: string | null;
  /** The schema version of the database; null when the log was read. */
  schema_version: number | null;
  /** How many parts of the log are not records. Counted only when the log was read. */
  rejected_parts: number;
}

/** Which runs to read: started at or after `since` and before `until`. */
export interface RunFilter {
  since?: Instant | undefined;
  until?: Instant | undefined;
  agents?: ReadonlySet<unknown> | undefined;
  jobTypes?: ReadonlySet<unknown> | undefined;
}

/** What most runs are read for. `id` is null for runs that ended well. */
export interface RunRow {
  agent: string;
  job: string | null;
  status: string | null;
  start: Instant;
  duration: unknown;
  items: unknown;
  id: string | null;
}

/** A run with all fields that are set. */
export type RecordedRun = Record<string, string | number>;

const CHUNK_ROWS = 1000;
const DAY = 86_400e6;
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
    problem = errorMessage(error);
  }
  return await readLoggedRuns(raw, problem, work);
}

async function readLoggedRuns<T>(
  raw: string,
  problem: string | null,
  work: (runs: Runs, origin: RunOrigin) => T,
): Promise<T> {
  using db = Connection.open(":memory:");
  const rejected_parts = await fillFromLog(db, logFiles(raw));
  return work(new Runs(db), { source: "log", problem, schema_version: null, rejected_parts });
}

async function fillFromLog(db: Connection, files: string[]): Promise<number> {
  applySchema(db);
  db.run("PRAGMA ignore_check_constraints=ON");
  const upsert = db.prepare(upsertSql(RUN_COLUMNS));
  const mark = db.prepare(MARK_POSTED_SQL);
  let rejected = 0;
  for await (const { rows, posted, rejections } of readRunStates(files)) {
    rejected += rejections.length;
    db.transaction(() => {
      for (const row of rows) upsert.run(...row.slice(0, RUN_COLUMNS.length));
      for (const values of posted) mark.run(...values);
    });
  }
  return rejected;
}

/** The runs in an open database of any schema version. */
export class Runs {
  readonly db: Connection;
  /** How many rows were left out because their start is not a time. */
  untimed = 0;

  constructor(db: Connection) {
    this.db = db;
  }

  /** Yields the runs that a filter selects, in no certain order. Reads as JSON, by which text with NUL stays whole. */
  *rows(filter: RunFilter, condition = "true"): Generator<RunRow, void> {
    const { key, from, to } = this.#range(filter);
    const text = "CAST(start_time AS TEXT)";
    const [keyCell, start] = key === "start_time" ? [text, "NULL"] : [key, text];
    const statement = this.db.prepare(
      `SELECT json_group_array(json_array(k, agent, job, status, start, ${blobAsText("duration")}, ${
        blobAsText("items")
      }, id)) AS rows FROM (SELECT ${keyCell} AS k, CAST(agent_name AS TEXT) AS agent, CAST(job_type AS TEXT) AS job,
        CAST(status AS TEXT) AS status, ${start} AS start, duration_ms AS duration,
        items_succeeded AS items, CASE WHEN status IN ('success', 'partial') THEN NULL ELSE CAST(run_id AS TEXT) END AS id
      FROM agent_runs WHERE ${key}>=?1 AND ${key}<?2 AND ${condition} ORDER BY ${key} LIMIT ${CHUNK_ROWS} OFFSET ?3)`,
    );
    let last: string | number = from;
    for (let skip = 0;;) {
      const rows = JSON.parse(statement.get(last, to, skip)!["rows"] as string) as JsonRow[];
      for (const row of rows) {
        const selected = this.#select(row, filter);
        if (selected) yield selected;
      }
      if (rows.length < CHUNK_ROWS) return;
      // The next chunk starts with the rows that have the last key of this one, except those already read.
      const [end] = rows.at(-1)!;
      const read = rows.length - rows.findIndex(([key]) => key === end);
      skip = end === last ? skip + read : read;
      last = end;
    }
  }

  /** By which column rows are read, and between which values. Text bounds are wider than the window: times have zones. */
  #range({ since, until }: RunFilter): { key: string; from: string | number; to: string | number } {
    const plan = this.db.all("EXPLAIN QUERY PLAN SELECT start_time FROM agent_runs ORDER BY start_time");
    const isIndexed = !plan.some(({ detail }) => String(detail).includes("TEMP B-TREE"));
    const rowid = rowidOf(this.db, "agent_runs");
    const isAll = since === undefined && until === undefined;
    // Row numbers over 2^53 are not exact in JSON.
    const isExact = (which: string) =>
      Number.isSafeInteger(
        Number(this.db.get(`SELECT CAST(${which}(${rowid}) AS REAL) AS row FROM agent_runs`)!["row"]),
      );
    if (rowid !== undefined && (isAll || !isIndexed) && isExact("min") && isExact("max")) {
      return { key: rowid, from: -(2 ** 53), to: 2 ** 53 };
    }
    const outside = this.db.get("SELECT count(*) AS rows FROM agent_runs WHERE start_time<'0' OR start_time>=':'")!;
    this.untimed += Number(outside["rows"]);
    const day = (at: Instant) => new Date(at / 1000).toISOString().slice(0, 10);
    return {
      key: "start_time",
      from: since === undefined ? "0" : day(since - DAY),
      to: until === undefined ? ":" : day(until + 2 * DAY),
    };
  }

  #select([key, agent, job, status, time, duration, items, id]: JsonRow, filter: RunFilter): RunRow | undefined {
    const { since = -Infinity, until = Infinity, agents, jobTypes } = filter;
    if (agents && !agents.has(agent) || jobTypes && !jobTypes.has(job)) return undefined;
    const text = time ?? key;
    const start = typeof text === "string" ? parseTimestamp(text) : undefined;
    if (start === undefined) this.untimed++;
    else if (since <= start && start < until) return { agent: agent ?? "", job, status, start, duration, items, id };
    return undefined;
  }

  /** The fields of a run that are set. Undefined when there is no such run. */
  fieldsOf(id: string): RecordedRun | undefined {
    const existing = columnNames(this.db, "agent_runs");
    const columns = [...RUN_COLUMNS, "custom_metadata"].filter((column) => existing.has(column));
    const cells = columns.map(blobAsText);
    const row = this.db.get(`SELECT json_array(${cells}) AS cells FROM agent_runs WHERE run_id=?`, id);
    if (row === undefined) return undefined;
    const values = JSON.parse(row["cells"] as string) as (string | number | null)[];
    return Object.fromEntries(columns.map((column, i) => [column, values[i]]).filter(([, value]) => value !== null));
  }

  /** The ids that are `end`, or end in it. An id that is exactly this one is the only one. */
  idsEndingIn(end: string): string[] {
    const exact = this.db.get("SELECT 1 FROM agent_runs WHERE run_id=?", end);
    if (exact) return [end];
    const rows = this.db.all(
      "SELECT json_quote(run_id) AS id FROM agent_runs WHERE substr(run_id, -length(?1))=?1 AND ?1<>'' LIMIT 5",
      end,
    );
    return rows.map(({ id }) => JSON.parse(id as string));
  }
}

type JsonRow = [
  key: string | number,
  agent: string | null,
  job: string | null,
  status: string | null,
  /** Null when the rows are read by their start, which is then the key. */
  start: string | null,
  duration: unknown,
  items: unknown,
  id: string | null,
];

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
    return ids.length === 1 ? { run: runs.fieldsOf(ids[0]!)!, origin } : { ids, origin };
  };
  let found = await readRuns(layout, read);
  if (found.ids?.length === 0 && found.origin.source === "database") {
    // A table with a stricter constraint has refused some runs: they are in the log only.
    found = await readLoggedRuns(layout.raw, null, read);
  }
  if (found.run === undefined) return { ids: found.ids };
  const { run, origin } = found;
  const events: RunEvent[] = [];
  const files = logsBetween(layout.raw, String(run["start_time"]), run["end_time"]);
  for await (const batch of readLogs(files, { only: "event" })) {
    for (const entry of batch) {
      if ("record" in entry && entry.record.record_type === "event" && entry.record.run_id === run["run_id"]) {
        events.push(entry.record);
      }
    }
  }
  return { run, events, origin };
}

/** The logs that can hold the events of a run. Clocks and the days of writing may differ by a day. */
function logsBetween(raw: string, start: string, end: unknown): string[] {
  const from = (parseTimestamp(start) ?? -Infinity) / 1000 - 2 * DAY / 1000;
  const to = (typeof end === "string" ? parseTimestamp(end) ?? Infinity : Infinity) / 1000 + 2 * DAY / 1000;
  return logFiles(raw).filter((path) => {
    const time = parseFileName(path.slice(raw.length + 1))?.time.getTime();
    return time === undefined || from <= time && time <= to;
  });
}
