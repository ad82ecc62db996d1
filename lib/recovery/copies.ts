/**
 * Copies of damaged databases with data that the database lacks. The Python system's recovery leaves such copies.
 * @module
 */
import { TelemetryError } from "../errors.ts";
import { pathExists } from "../fs/locate.ts";
import { type Layout, sidecarsOf } from "../layout.ts";
import { isOverwrittenId, RUN_STATUSES, SCHEMA_VERSION } from "../records.ts";
import { Connection, type SqlValue } from "../sqlite/connection.ts";
import { inspect } from "../sqlite/migrate.ts";
import { readRows } from "../sqlite/rows.ts";
import { listCopies } from "../sqlite/snapshot.ts";
import { PageFile } from "./page_reader.ts";
import { RowShapes, rowsInPages } from "./row_shapes.ts";
import { declareTables, isLaterProducts, readSchemaFromPages } from "./source_schema.ts";

/** What a copy has and the database lacks. */
export interface UnusedCopy {
  path: string;
  runs: number;
  /** `api_posted` markers of runs that the database has. */
  markers: number;
  commits: number;
}

/**
 * Finds each `telemetry.corrupted.*` with data that the database lacks. Copies with sidecars are ours: the recovery that
 * created them has read them.
 *
 * @throws {TelemetryError} when the database cannot be read
 */
export function findUnusedCopies({ db: folder, database }: Layout): UnusedCopy[] {
  using current = Connection.openToRead(database);
  return listCopies(folder, ["corrupted"]).flatMap(({ path }) => {
    if (Object.values(sidecarsOf(path)).some(pathExists)) return [];
    const unused = ifReadable(() => findUnused(path, keysThroughSqlite(path), current)) ??
      ifReadable(() => findUnused(path, keysInPages(path), current));
    return unused && unused.runs + unused.markers + unused.commits > 0 ? [unused] : [];
  });
}

/** Undefined where nothing can be read. */
function ifReadable(read: () => UnusedCopy): UnusedCopy | undefined {
  try {
    return read();
  } catch (error) {
    if (!(error instanceof TelemetryError)) throw error;
    return undefined;
  }
}

/** What the CHECK of a table accepts. */
const STORED_STATUSES: ReadonlySet<unknown> = new Set([...RUN_STATUSES, null]);

/** The key of a run or of a commit, and the marker of a run. */
type Key = [table: string, id: SqlValue | undefined, posted?: SqlValue | undefined];

/** None of a later product's copy, which is of no use here. */
function* keysThroughSqlite(path: string): Generator<Key> {
  using copy = Connection.openToRead(path);
  if (inspect(copy).version > SCHEMA_VERSION) return;
  for (const [table, ...columns] of [["agent_runs", "run_id", "api_posted"], ["commits", "commit_hash"]]) {
    for (const rows of readRows(copy, table!, columns)) {
      for (const { cells: [id, posted] } of rows) yield [table!, id, posted];
    }
  }
}

function* keysInPages(path: string): Generator<Key> {
  using file = new PageFile(path);
  const objects = readSchemaFromPages(file);
  const tables = declareTables(objects, () => {});
  if (isLaterProducts(tables)) return;
  for (const { row } of rowsInPages(file, objects, new RowShapes(tables))) {
    const value = (name: string) => row?.cells[row.columns.indexOf(name)];
    if (row?.table === "commits") yield [row.table, value("commit_hash")];
    else if (row?.table === "agent_runs" && STORED_STATUSES.has(value("status") ?? null)) {
      yield [row.table, value("run_id"), value("api_posted")];
    }
  }
}

function findUnused(path: string, keys: Iterable<Key>, current: Connection): UnusedCopy {
  const findRun = current.prepare("SELECT api_posted=1 AS posted FROM agent_runs WHERE run_id=?");
  const findCommit = current.prepare("SELECT 1 FROM commits WHERE commit_hash=?");
  // A row can come twice.
  const [runs, markers, commits] = [new Set<string>(), new Set<string>(), new Set<string>()];
  for (const [table, id, posted] of keys) {
    if (typeof id !== "string" || id === "" || isOverwrittenId(id)) continue;
    const run = table === "commits" ? findCommit.get(id) : findRun.get(id);
    if (run === undefined) (table === "commits" ? commits : runs).add(id);
    else if (Number(posted) === 1 && !run["posted"]) markers.add(id);
  }
  return { path, runs: runs.size, markers: markers.size, commits: commits.size };
}
