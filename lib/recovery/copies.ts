/**
 * Copies of damaged databases with data that the database lacks. The Python system's recovery leaves such copies.
 * @module
 */
import { TelemetryError } from "../errors.ts";
import { pathExists } from "../fs/locate.ts";
import { type Layout, sidecarsOf } from "../layout.ts";
import { isOverwrittenId, SCHEMA_VERSION } from "../records.ts";
import { recoverySchemaSql } from "../schema.ts";
import { Connection } from "../sqlite/connection.ts";
import { applySchema, inspect } from "../sqlite/migrate.ts";
import { type ReadRow, readRows } from "../sqlite/rows.ts";
import { listCopies } from "../sqlite/snapshot.ts";
import { Salvage } from "./salvage.ts";

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
    const unused = ifReadable(() => findUnusedThroughSqlite(path, current)) ??
      ifReadable(() => findUnusedInPages(path, database, current));
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

function findUnusedThroughSqlite(path: string, current: Connection): UnusedCopy {
  using copy = Connection.openToRead(path);
  // A later product's copy is of no use here.
  if (inspect(copy).version > SCHEMA_VERSION) return { path, runs: 0, markers: 0, commits: 0 };
  return findUnused(copy, path, current);
}

function findUnusedInPages(path: string, database: string, current: Connection): UnusedCopy {
  using readable = Connection.open(":memory:");
  readable.exec(recoverySchemaSql());
  applySchema(readable);
  new Salvage(readable, database, () => {}).takeFrom(path, false);
  return findUnused(readable, path, current);
}

function findUnused(copy: Connection, path: string, current: Connection): UnusedCopy {
  const unused: UnusedCopy = { path, runs: 0, markers: 0, commits: 0 };
  const findRun = current.prepare("SELECT api_posted=1 AS posted FROM agent_runs WHERE run_id=?");
  const findCommit = current.prepare("SELECT 1 FROM commits WHERE commit_hash=?");
  const rowsOf = (rows: ReadRow[]) => rows;
  const isId = (id: unknown) => typeof id === "string" && !isOverwrittenId(id);
  for (const { cells: [id, posted] } of readRows(copy, "agent_runs", ["run_id", "api_posted"]).flatMap(rowsOf)) {
    if (!isId(id)) continue;
    const run = findRun.get(id!);
    if (run === undefined) unused.runs++;
    else if (posted === 1 && !run["posted"]) unused.markers++;
  }
  for (const { cells: [hash] } of readRows(copy, "commits", ["commit_hash"]).flatMap(rowsOf)) {
    if (isId(hash) && findCommit.get(hash!) === undefined) unused.commits++;
  }
  return unused;
}
