/**
 * Tables of a store as CSV: all of one, or the rows and columns that were asked for, as one consistent snapshot.
 * @module
 */
import { type Cell, CsvText, type Program, PROGRAMS } from "./csv.ts";
import { ensureFolder, exists, PartialFile, removeStalePartials } from "../fs/atomic_file.ts";
import { fileError, hasCode, TelemetryError } from "../errors.ts";
import { type Instant, parseTimeFlag, parseTimestamp } from "../time.ts";
import { type FileKind, fileNames, type Layout, parseFileName, partialOf, pathIn } from "../layout.ts";
import { isFolder, sizeOf, statIfExists } from "../fs/locate.ts";
import { logFiles, readLogs } from "../log/read.ts";
import { RUN_COLUMNS, RUN_STATUSES } from "../records.ts";
import { columnsOf } from "../schema.ts";
import { inspect } from "../sqlite/migrate.ts";
import { Connection, type OnProgress } from "../sqlite/connection.ts";
import { parsedRows, tableRows } from "./table_reader.ts";

/** What can be exported. */
export type ExportTable = "runs" | "events" | "commits";

/** A table as it is exported. */
interface Definition {
  /** Its name in the database. */
  table: string;
  /** What its files are called. */
  kind: FileKind;
  /** The contract's columns, in the contract's order. */
  columns: readonly string[];
  /** What its rows are ordered by; events stand as they do in the log. */
  order: readonly [string, string];
  /** The filters it has, each with the columns that it looks at. */
  filters: Partial<Record<Filter, readonly string[]>>;
}

type Filter = "since" | "until" | "updated-since" | "agent" | "status";

const TABLES: Record<ExportTable, Definition> = {
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
    columns: Object.keys(columnsOf("run_events")),
    order: ["timestamp", "id"],
    filters: { since: ["timestamp"], until: ["timestamp"] },
  },
  commits: {
    table: "commits",
    kind: "commits_export",
    columns: Object.keys(columnsOf("commits")),
    order: ["commit_date", "commit_hash"],
    filters: { since: ["commit_date"], until: ["commit_date"], agent: ["agent_name"] },
  },
};

/** What is exported. */
export interface ExportRequest {
  /** Which table. */
  table: ExportTable;
  /** Its columns, in this order. */
  columns: readonly string[];
  /** Rows of this time and later: of the start of a run, of an event, of a commit. */
  since?: Instant | undefined;
  /** Rows before this time. */
  until?: Instant | undefined;
  /** Runs that were made, changed, ended or posted at this time or later. */
  updatedSince?: Instant | undefined;
  /** Rows of these agents. */
  agents?: ReadonlySet<Cell> | undefined;
  /** Runs in these states. */
  statuses?: ReadonlySet<Cell> | undefined;
  /** Who will open it. */
  program?: Program | undefined;
}

/** What {@linkcode exportTo} did. */
export interface Exported {
  /** Which table. */
  table: ExportTable;
  /** The names in the header. */
  columns: readonly string[];
  /** How many rows, without the header. */
  rows: number;
  /** How many bytes. */
  bytes: number;
  /** How many cells were longer than the program takes. */
  cut_cells: number;
  /** How many cells had a NUL that the program does not take. */
  nul_cells: number;
  /** How many rows were left out because their time cannot be told. */
  untimed_rows: number;
  /** How many parts of the log are no records. */
  rejected_lines: number;
}

/** Where bytes go: an open file, or `Deno.stdout`. It may take a part of them. */
export interface ByteSink {
  /** Takes some bytes from the start; says how many. */
  write(bytes: Uint8Array): Promise<number>;
}

/** Some rows, and how far they bring it. */
interface Batch {
  /** Their cells: those of the request, then those of the filter. */
  rows?: Cell[][];
  /** The same as JSON, where they come from the database. */
  json?: Uint8Array;
  /** How many they are. */
  count: number;
  /** How much is read with these, in whatever unit. */
  done: number;
  /** How much there is. */
  total: number;
}

/**
 * What the flags of a command ask for.
 *
 * @param flags by name; those that are not given are undefined
 * @param now what `7d` counts from
 * @throws {TelemetryError} `usage`, with what is allowed
 */
export function readRequest(flags: Readonly<Record<string, string | boolean | undefined>>, now: Date): ExportRequest {
  const valueOf = (flag: string) => flags[flag] as string | undefined;
  const table = oneOf("table", valueOf("table") ?? "runs", Object.keys(TABLES)) as ExportTable;
  const { columns, filters } = TABLES[table];
  for (const flag of Object.keys(TABLES.runs.filters) as Filter[]) {
    if (flags[flag] === undefined || filters[flag]) continue;
    throw new TelemetryError("usage", `--${flag} does not go with --table ${table}`, {
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
  throw new TelemetryError("usage", "--until is not after --since: nothing can be between them", {
    hint: "see export_csv --help for what times mean",
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
  throw new TelemetryError("usage", `--${flag} does not know "${value}"`, {
    hint: `there are ${allowed.join(", ")}`,
  });
}

/**
 * Exports to an open file or to stdout. A reader that goes away early ends it, and is no error.
 *
 * @param layout whose data
 * @param request what, from {@linkcode readRequest}
 * @param to where
 * @param name what to call `to` in an error
 * @param onProgress told how far it is
 * @throws {TelemetryError} `no_storage`, `damaged`, `disk_full` …
 */
export async function exportTo(
  layout: Layout,
  request: ExportRequest,
  to: ByteSink,
  name: string,
  onProgress?: OnProgress,
): Promise<Exported> {
  const { table, columns } = request;
  const none = { rows: 0, bytes: 0, cut_cells: 0, nul_cells: 0, untimed_rows: 0, rejected_lines: 0 };
  const exported: Exported = { table, columns, ...none };
  const filter = new RowFilter(request, exported);
  const csv = new CsvText(columns, request.program);
  const read = [...columns, ...filter.columns];
  const batches = table === "events" ? logRows(layout, read, exported) : databaseRows(layout, TABLES[table], read);
  const isPlain = filter.columns.length === 0 && request.program === undefined;
  // Not written before something could be read: where that fails, nothing has come out.
  let header: Uint8Array | undefined = csv.header();
  const write = async (lines: Uint8Array) => {
    for (const bytes of header ? [header, lines] : [lines]) {
      if (!await writeAll(to, name, bytes, exported)) return false;
    }
    header = undefined;
    return true;
  };
  for await (const { rows, json, count, done, total } of batches) {
    const asItIs = isPlain && json && csv.jsonLines(json);
    const kept = asItIs ? undefined : (rows ?? parsedRows(json!)).filter((row) => filter.keeps(row));
    if (!await write(asItIs || csv.lines(kept!))) return exported;
    exported.rows += kept?.length ?? count;
    exported.cut_cells = csv.cutCells;
    exported.nul_cells = csv.nulCells;
    // Given back now: else hundreds of them would wait for the next garbage collection.
    (json?.buffer as ArrayBuffer | undefined)?.transfer(0);
    onProgress?.(exported.bytes, exported.bytes * total / Math.max(done, 1));
  }
  await write(new Uint8Array(0));
  return exported;
}

/** Writes all of it, counted; false when the reader of a pipe has gone. */
async function writeAll(to: ByteSink, name: string, bytes: Uint8Array, exported: Exported): Promise<boolean> {
  try {
    for (let written = 0; written < bytes.length;) written += await to.write(bytes.subarray(written));
  } catch (error) {
    if (error instanceof Deno.errors.BrokenPipe) return false;
    throw fileError(error, `cannot write ${name}`);
  }
  exported.bytes += bytes.length;
  return true;
}

/** Tells which rows were asked for. */
class RowFilter {
  /** What a row must have after the columns of the request. */
  readonly columns: string[] = [];
  readonly #tests: ((row: Cell[]) => boolean)[] = [];
  readonly #width: number;

  /** @param exported where rows are counted whose time cannot be told */
  constructor(request: ExportRequest, exported: Exported) {
    const { filters } = TABLES[request.table];
    const { agents, statuses, since = -Infinity, until = Infinity, updatedSince } = request;
    this.#width = request.columns.length;
    if (agents) this.#add(filters.agent!, ([agent]) => agents.has(agent!));
    if (statuses) this.#add(filters.status!, ([status]) => statuses.has(status!));
    if (since !== -Infinity || until !== Infinity) {
      this.#add(filters.since!, ([time]) => {
        const at = instantIn(time!);
        if (at === undefined) exported.untimed_rows++;
        return at !== undefined && since <= at && at < until;
      });
    }
    if (updatedSince !== undefined) {
      // The database notes some of these times in whole seconds.
      const second = Math.floor(updatedSince / 1e6) * 1e6;
      this.#add(filters["updated-since"]!, (cells) => {
        const times = cells.filter((cell) => cell !== null).map(instantIn);
        if (times.some((at) => at !== undefined && at >= second)) return true;
        if (times.length === 0 || times.includes(undefined)) exported.untimed_rows++;
        return false;
      });
    }
  }

  #add(columns: readonly string[], test: (cells: Cell[]) => boolean): void {
    const start = this.#width + this.columns.length;
    this.columns.push(...columns);
    this.#tests.push((row) => test(row.slice(start, start + columns.length)));
  }

  /** Whether a row was asked for. */
  keeps(row: Cell[]): boolean {
    return this.#tests.every((test) => test(row));
  }
}

function instantIn(cell: Cell): Instant | undefined {
  return typeof cell === "string" ? parseTimestamp(cell) : undefined;
}

async function* databaseRows(
  { database }: Layout,
  definition: Definition,
  columns: string[],
): AsyncGenerator<Batch, void> {
  using db = Connection.openToRead(database);
  inspect(db);
  yield* tableRows(db, { ...definition, columns });
}

/** The events of all logs, in the order in which they stand there. */
async function* logRows({ raw }: Layout, columns: string[], exported: Exported): AsyncGenerator<Batch, void> {
  if (!isFolder(raw)) {
    throw new TelemetryError("no_storage", `there is no folder ${raw}`, {
      hint: "run setup_storage; it makes the log's folder",
    });
  }
  const files = logFiles(raw).map((path) => ({ path, size: sizeOf(path) ?? 0 }));
  const total = files.reduce((sum, { size }) => sum + size, 0);
  let before = 0;
  for (const { path, size } of files) {
    for await (const batch of readLogs([path], { only: "event" })) {
      const rows: Cell[][] = [];
      for (const found of batch) {
        if ("record" in found) {
          const record = found.record as unknown as Record<string, unknown>;
          if (record["record_type"] === "event") rows.push(columns.map((column) => cellOf(record[column])));
        } else {
          // More is missing then than a line.
          if (found.rejected === "cannot be read") throw fileError(new Error(found.text), `cannot read ${path}`);
          exported.rejected_lines++;
        }
      }
      // Of a gzipped log, offsets are known in the text alone.
      yield { rows, count: rows.length, done: before + Math.min(batch.at(-1)!.offset, size), total };
    }
    before += size;
  }
}

/** What a field of a line is in a cell; old lines hold objects where today's hold JSON text. */
function cellOf(value: unknown): Cell {
  if (value === undefined || value === null) return null;
  return typeof value === "string" || typeof value === "number" ? value : JSON.stringify(value);
}

/**
 * Exports to a new file: whole and on the disk, or not there. Another file is never replaced; what killed exports have
 * left half done in `exports/` is removed.
 *
 * @param layout whose data
 * @param request what, from {@linkcode readRequest}
 * @param path the file
 * @default path in `exports/`, with table and time in its name
 * @param onProgress told how far it is
 * @throws {TelemetryError} `usage` when there is a file already; else as {@linkcode exportTo}
 */
export async function exportToFile(
  layout: Layout,
  request: ExportRequest,
  path?: string,
  onProgress?: OnProgress,
): Promise<Exported & { path: string }> {
  if (path !== undefined && exists(path)) throw isTaken(path);
  using partial = path === undefined ? claimInExports(layout, request) : PartialFile.claim(partialOf(path));
  limitRights(partial.path, request.table === "events" ? logFiles(layout.raw).at(-1) : layout.database);
  const exported = await exportTo(layout, request, partial, partial.path, onProgress);
  for (const good of path === undefined ? pathsIn(layout.exports, TABLES[request.table].kind) : [path]) {
    if (partial.publish(good)) return { ...exported, path: good };
  }
  throw isTaken(path!);
}

/** Takes rights away that the data's own file does not give: others may not be meant to read it. */
function limitRights(partial: string, model: string | undefined): void {
  const mode = model === undefined ? null : statIfExists(model)?.mode ?? null;
  if (mode === null || Deno.build.os === "windows") return;
  // Its owner may do with it what they like, also where the database is protected.
  Deno.chmodSync(partial, statIfExists(partial)!.mode! & (mode | 0o600) & 0o777);
}

function isTaken(path: string): TelemetryError {
  return new TelemetryError("usage", `${path} is there already, and is not replaced`, {
    hint: "name another file; --output - writes to stdout",
  });
}

function claimInExports(layout: Layout, { table }: ExportRequest): PartialFile {
  const { base, exports } = layout;
  const { kind } = TABLES[table];
  ensureFolder(base, exports);
  removeStalePartials(exports, (name) => parseFileName(name)?.kind === kind);
  for (const name of fileNames(kind, new Date())) {
    try {
      return PartialFile.claim(partialOf(pathIn(exports, name)), { base, wait: false });
    } catch (error) {
      // Another export began in the same second.
      if (!hasCode(error, "locked")) throw error;
    }
  }
  throw new TelemetryError("io", `no name is left for an export in ${exports}`);
}

function* pathsIn(folder: string, kind: FileKind): Generator<string, void> {
  for (const name of fileNames(kind, new Date())) yield pathIn(folder, name);
}
