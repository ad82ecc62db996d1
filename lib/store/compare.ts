/**
 * Compares the runs of the log with those of the database.
 * @module
 */
import type { Connection, SqlValue } from "../sqlite/connection.ts";
import { rowidOf } from "../sqlite/rows.ts";
import { parseTimestamp } from "../time.ts";
import { isLeftToAgent, readRunStates, START, startedBeforeSql, STATUS } from "./merge.ts";

/** How log and database compare. */
export interface RunComparison {
  /** How many runs the database has. */
  in_database: number;
  /** How many of them are in no log. */
  only_in_database: number;
  /** How many runs are in the log only. */
  only_in_log: number;
  /** Their ids. */
  only_in_log_ids: string[];
  /** The logs that cannot be read. */
  unreadable_logs: string[];
  /** How many runs are `running` in the database although the log has their end. */
  older_in_database: number;
}

/**
 * Compares log and database in one consistent state of the database. Agents write to the log first, so what differs is
 * looked up once more at the end. With `since`, looks only at runs that started then or later. Runs that have just
 * started do not count as missing: their agents are about to insert them.
 */
export async function compareRuns(db: Connection, files: Iterable<string>, since?: Date): Promise<RunComparison> {
  const isOld = `(${since ? startedBeforeSql(since) : "false"}) IS TRUE`;
  const find = db.prepare(`SELECT ${rowKeySql(db)} AS row, status, ${isOld} AS is_old FROM agent_runs WHERE run_id=?`);
  const inLog = new Set<SqlValue>();
  const onlyInLog = new Set<string>();
  const older = new Set<string>();
  const unreadable = new Set<string>();
  let inDatabase: number;
  db.run("BEGIN");
  try {
    inDatabase = Number(db.get(`SELECT count(*) AS runs FROM agent_runs WHERE NOT ${isOld}`)!["runs"]);
    for await (const { rows, rejections } of readRunStates(files)) {
      for (const { rejected, file } of rejections) if (rejected === "cannot be read") unreadable.add(file);
      for (const row of rows) {
        if (since && (parseTimestamp(String(row[START])) ?? Infinity) < since.getTime() * 1000) continue;
        const found = find.get(row[0]!);
        if (found === undefined) {
          if (!isLeftToAgent(row)) onlyInLog.add(String(row[0]));
        } else {
          if (!found["is_old"]) inLog.add(found["row"]!);
          if (found["status"] === "running" && row[STATUS] !== "running") older.add(String(row[0]));
        }
      }
    }
  } finally {
    db.rollback();
  }
  const still = (ids: Set<string>, differs: (status: SqlValue | undefined) => boolean) =>
    ids.values().filter((id) => differs(find.get(id)?.["status"])).toArray();
  const missing = still(onlyInLog, (status) => status === undefined);
  return {
    in_database: inDatabase,
    only_in_database: inDatabase - inLog.size,
    only_in_log: missing.length,
    only_in_log_ids: missing,
    unreadable_logs: [...unreadable],
    older_in_database: still(older, (status) => status === "running").length,
  };
}

/** An expression that identifies a row of `agent_runs`, also where row numbers are too large for JavaScript. */
function rowKeySql(db: Connection): string {
  const rowid = rowidOf(db, "agent_runs");
  return rowid === undefined ? "run_id" : `iif(abs(${rowid} / 2) < 1 << 51, ${rowid}, CAST(${rowid} AS TEXT))`;
}
