/**
 * Copies of damaged databases with data that the database lacks. The Python system's recovery leaves such copies.
 * @module
 */
import { TelemetryError } from "../errors.ts";
import { pathExists } from "../fs/locate.ts";
import { type Layout, sidecarsOf } from "../layout.ts";
import { isOverwrittenId } from "../records.ts";
import { Connection } from "../sqlite/connection.ts";
import { type ReadRow, readRows } from "../sqlite/rows.ts";
import { listCopies } from "../sqlite/snapshot.ts";

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
  const findRun = current.prepare("SELECT api_posted=1 AS posted FROM agent_runs WHERE run_id=?");
  const findCommit = current.prepare("SELECT 1 FROM commits WHERE commit_hash=?");
  const rowsOf = (rows: ReadRow[]) => rows;
  const isId = (id: unknown) => typeof id === "string" && !isOverwrittenId(id);
  return listCopies(folder, ["corrupted"]).flatMap(({ path }) => {
    const unused: UnusedCopy = { path, runs: 0, markers: 0, commits: 0 };
    if (Object.values(sidecarsOf(path)).some(pathExists)) return [];
    try {
      using copy = Connection.openToRead(path);
      for (const { cells: [id, posted] } of readRows(copy, "agent_runs", ["run_id", "api_posted"]).flatMap(rowsOf)) {
        if (!isId(id)) continue;
        const run = findRun.get(id!);
        if (run === undefined) unused.runs++;
        else if (posted === 1 && !run["posted"]) unused.markers++;
      }
      for (const { cells: [hash] } of readRows(copy, "commits", ["commit_hash"]).flatMap(rowsOf)) {
        if (isId(hash) && findCommit.get(hash!) === undefined) unused.commits++;
      }
    } catch (error) {
      // The rest of the copy cannot be read, or it has no such table.
      if (!(error instanceof TelemetryError)) throw error;
    }
    return unused.runs + unused.markers + unused.commits > 0 ? [unused] : [];
  });
}
