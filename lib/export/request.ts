/**
 * What to export: tables, columns, and filters on rows.
 * @module
 */
import { TelemetryError } from "../errors.ts";
import type { FileKind } from "../layout.ts";
import { RUN_COLUMNS, RUN_STATUSES } from "../records.ts";
import { type TableName, TABLES as SCHEMA } from "../schema.ts";
import { type Instant, parseCommitDate, parseTimeFlag, parseTimestamp } from "../time.ts";
import { type Cell, type Program, PROGRAMS } from "./csv.ts";

/** The tables that can be exported. */
export type ExportTable = "runs" | "events" | "commits";

/** How a table is exported. */
export interface Definition {
  table: TableName;
  kind: FileKind;
  columns: readonly string[];
  /** The columns that the rows are ordered by. Events have the order of the log. */
  order: readonly [string, string];
  /** The columns that each filter reads. */
  filters: Partial<Record<Filter, readonly string[]>>;
}

type Filter = "since" | "until" | "updated-since" | "agent" | "status";

export const TABLES: Record<ExportTable, Definition> = {
  runs: {
    table: "agent_runs",
    kind: "runs_export",
    columns: RUN_COLUMNS,
    order: ["start_time", "run_id"],
    filters: {
      since: ["start_time"],
      until: ["start_time"],
      "updated-since": ["created_at", "updated_at", "end_time", "api_posted_at"],
      agent: ["agent_name"],
      status: ["status"],
    },
  },
  events: {
    table: "run_events",
    kind: "events_export",
    columns: Object.keys(SCHEMA.run_events),
    order: ["timestamp", "id"],
    filters: { since: ["timestamp"], until: ["timestamp"] },
  },
  commits: {
    table: "commits",
    kind: "commits_export",
    columns: Object.keys(SCHEMA.commits),
    order: ["commit_date", "commit_hash"],
    filters: { since: ["commit_date"], until: ["commit_date"], agent: ["agent_name"] },
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
  const valueOf = (flag: string) => flags[flag] as string | undefined;
  const table = oneOf("table", valueOf("table") ?? "runs", Object.keys(TABLES)) as ExportTable;
  const { columns, filters } = TABLES[table];
  for (const flag of Object.keys(TABLES.runs.filters) as Filter[]) {
    if (flags[flag] === undefined || filters[flag]) continue;
    throw new TelemetryError("usage", `--${flag} cannot be used with --table ${table}`, {
      hint: `its filters are ${Object.keys(filters).map((filter) => `--${filter}`).join(", ")}`,
    });
  }
  const [since, until, updatedSince] = [valueOf("since"), valueOf("until"), valueOf("updated-since")];
  const [agent, status, program] = [valueOf("agent"), valueOf("status"), valueOf("for")];
  if (agent === "") throw new TelemetryError("usage", "--agent needs a name", { hint: "leave it out for all agents" });
  const request: ExportRequest = {
    table,
    columns: valueOf("columns") === undefined ? columns : chosenColumns(valueOf("columns")!, columns),
    since: since === undefined ? undefined : parseTimeFlag("since", since, now),
    until: until === undefined ? undefined : parseTimeFlag("until", until, now, "end"),
    updatedSince: updatedSince === undefined ? undefined : parseTimeFlag("updated-since", updatedSince, now),
    // The name of an agent may itself have a comma.
    agents: agent === undefined ? undefined : new Set([agent, ...agent.split(",")]),
    statuses: status === undefined
      ? undefined
      : new Set(status.split(",").map((name) => oneOf("status", name.trim(), RUN_STATUSES))),
    program: program === undefined ? undefined : oneOf("for", program, PROGRAMS) as Program,
  };
  if ((request.since ?? -Infinity) < (request.until ?? Infinity)) return request;
  throw new TelemetryError("usage", "--until is not after --since, so no row can match", {
    hint: "export_csv --help explains times",
  });
}

function chosenColumns(list: string, columns: readonly string[]): string[] {
  const chosen = list.split(",").map((name) => oneOf("columns", name.trim(), columns));
  const twice = chosen.find((name, i) => chosen.indexOf(name) < i);
  if (twice === undefined) return chosen;
  throw new TelemetryError("usage", `--columns names ${twice} twice`, { hint: "name each column once" });
}

function oneOf(flag: string, value: string, allowed: readonly string[]): string {
  if (allowed.includes(value)) return value;
  throw new TelemetryError("usage", `--${flag} does not accept "${value}"`, {
    hint: `it accepts ${allowed.join(", ")}`,
  });
}

/** Decides which rows are exported. */
export class RowFilter {
  /** The columns that a row must have after those of the request. */
  readonly columns: string[] = [];
  readonly #tests: ((row: Cell[]) => boolean)[] = [];
  readonly #width: number;

  /** @param counts has the number of rows whose time cannot be parsed */
  constructor(request: ExportRequest, counts: { untimed_rows: number }) {
    const { filters } = TABLES[request.table];
    const { agents, statuses, since = -Infinity, until = Infinity, updatedSince } = request;
    this.#width = request.columns.length;
    if (agents) this.#add(filters.agent!, ([agent]) => agents.has(agent!));
    if (statuses) this.#add(filters.status!, ([status]) => statuses.has(status!));
    if (since !== -Infinity || until !== Infinity) {
      this.#add(filters.since!, ([time]) => {
        const at = request.table === "commits" ? commitDateIn(time!) : instantIn(time!);
        if (at === undefined) counts.untimed_rows++;
        return at !== undefined && since <= at && at < until;
      });
    }
    if (updatedSince !== undefined) {
      // The database has some of these times in whole seconds.
      const second = Math.floor(updatedSince / 1e6) * 1e6;
      this.#add(filters["updated-since"]!, (cells) => {
        const times = cells.filter((cell) => cell !== null).map(instantIn);
        if (times.some((at) => at !== undefined && at >= second)) return true;
        if (times.length === 0 || times.includes(undefined)) counts.untimed_rows++;
        return false;
      });
    }
  }

  #add(columns: readonly string[], test: (cells: Cell[]) => boolean): void {
    const start = this.#width + this.columns.length;
    this.columns.push(...columns);
    this.#tests.push((row) => test(row.slice(start, start + columns.length)));
  }

  keeps(row: Cell[]): boolean {
    return this.#tests.every((test) => test(row));
  }
}

/** A number is the seconds since 1970, as `git log --format=%ct` writes them. */
function commitDateIn(cell: Cell): Instant | undefined {
  return cell === null ? undefined : parseCommitDate(String(cell));
}

function instantIn(cell: Cell): Instant | undefined {
  return typeof cell === "string" ? parseTimestamp(cell) : undefined;
}
