/**
 * Rebuilds the database from the log and from the readable data of the old one.
 * @module
 */
import { assertTimes } from "../errors.ts";
import { ensureFolder, PartialFile } from "../fs/atomic_file.ts";
import { pathExists, sizeOf, statIfExists } from "../fs/locate.ts";
import type { Layout } from "../layout.ts";
import { logFiles, type Rejection, sizeOfLog } from "../log/read.ts";
import { SCHEMA_VERSION } from "../records.ts";
import { recoverySchemaSql } from "../schema.ts";
import { Connection, folderAtDatabasePath, noDatabase, type OnProgress } from "../sqlite/connection.ts";
import { applySchema, dropSlowIndexes, newerSchema } from "../sqlite/migrate.ts";
import { countRows, quotedName } from "../sqlite/rows.ts";
import { assertIntact, listCopies, OpenableBackup } from "../sqlite/snapshot.ts";
import { catchUp, leaveBehindSql, mergeRuns } from "../store/merge.ts";
import {
  type Current,
  discardCopy,
  type FileSettings,
  hasSameFiles,
  inspectCurrent,
  installDatabase,
  LiveDatabase,
  preserveCurrent,
  readSettings,
  removeMovedSidecars,
  removeStaleCopies,
} from "../store/replace_database.ts";
import { loadLog, SCRAP_PRAGMAS } from "./load_log.ts";
import { RecoveryReport, removeStaleReports, type WrittenReport } from "./report.ts";
import { Salvage } from "./salvage.ts";
import { readThroughSqlite } from "./source_schema.ts";

/** Options of {@linkcode recoverDatabase}. */
export interface RecoveryOptions {
  /** Whether to leave an intact database as it is, and return null. @default false */
  onlyIfDamaged?: boolean;
  /** Whether to read the data of the database that is replaced. @default true */
  salvage?: boolean;
  /** The path of an intact backup, for runs that are neither in the log nor in the database. */
  backup?: string | undefined;
  /** Leave out runs that started before. They stay in the log and in the copy of the replaced database. @default none */
  since?: Date | undefined;
  /** Called with the number of bytes of the log that are read, and of all bytes. */
  onProgress?: OnProgress | undefined;
}

/** What {@linkcode recoverDatabase} did. */
export interface Recovery {
  /** The path of the database. */
  database: string;
  /** The copy of the replaced database, with its sidecars; null when there was none. */
  kept: string | null;
  /** How many logs were read. */
  files: number;
  /** How many lines they have. */
  lines: number;
  /** How many bytes they have, uncompressed. */
  bytes: number;
  /** How many runs the new database has. */
  runs: number;
  /** Where these runs come from; `salvaged` ones are in no log. */
  runs_from: { log: number; log_and_salvaged: number; salvaged: number };
  /** How many runs are left out because they started before `since`: of the log, and of the databases. Some are in both. */
  left_behind: { log: number; salvaged: number };
  /** How many runs of the log have just started and are left to their agents, which are about to insert them. */
  just_started: number;
  /** How many runs ended with a status of later clients, such as `timeout`. They are `failed`, and say it in `error_summary`. */
  read_as_failed: Record<string, number>;
  /** How many rows `commits` has. */
  commits: number;
  /** How many rows `run_events` has. */
  run_events: number;
  /** The databases that were read, least trusted first, and whether SQLite found them intact. */
  sources: { path: string; sound: boolean }[];
  /** What is in the log or in the sources and not in the new database: how often, by reason. */
  rejected: Record<string, number>;
  /** The user-defined objects that could not be restored, each with the reason. */
  not_brought: string[];
  /** What went wrong without stopping the recovery. */
  warnings: string[];
  /** Duration in milliseconds. */
  duration_ms: number;
  /** The report file; null when it could not be written. */
  report: string | null;
  /** The file with the rejected lines and rows; null when nothing was rejected. */
  rejected_file: string | null;
}

/**
 * Rebuilds the database beside the current one and replaces it, while agents go on. The replaced database is preserved as
 * `db/telemetry.corrupted.….sqlite`, or as `db/telemetry.before_rebuild_….sqlite` when it is intact. Killed at any
 * moment, the database is unchanged or finished.
 *
 * The log determines the fields of a run, except that an ended status and an `api_posted` marker of another source are not
 * taken back (contract, "NDJSON records": the last line of a run is its state).
 *
 * @param layout from `locate()`
 * @param options what to read besides the log
 * @returns null when the database is intact and `onlyIfDamaged` is set
 * @throws {TelemetryError} `newer_schema` for the database of a later product; `locked`, `permission`, `disk_full`, `io`:
 * then the database is unchanged; `usage` for an option that is not valid
 *
 * @example
 * ```ts no-eval
 * import { locate } from "../fs/locate.ts";
 * import { recoverDatabase } from "./recover.ts";
 *
 * const recovery = await recoverDatabase(locate());
 * if (recovery) console.log(`${recovery.runs} runs; the replaced database is ${recovery.kept}`);
 * ```
 */
export async function recoverDatabase(layout: Layout, options: RecoveryOptions = {}): Promise<Recovery | null> {
  const start = performance.now();
  const { base, db: folder, database, recovering } = layout;
  assertTimes({ since: options.since });
  if (options.backup !== undefined && sizeOf(options.backup) === undefined) throw noDatabase(options.backup);
  if (statIfExists(database)?.isDirectory) throw folderAtDatabasePath(database);
  ensureFolder(base, folder);
  // 1. Exclude other recoveries. A file that exists was left by one that was killed, maybe while it replaced the database.
  const wasInterrupted = pathExists(recovering);
  using partial = PartialFile.claim(recovering, { forSqlite: true, like: database });
  // 2. Check what is there.
  const current = inspectCurrent(database);
  const isDamaged = current.state !== "intact";
  if (!isDamaged && current.version > SCHEMA_VERSION) throw newerSchema(database, current.version);
  if (!isDamaged && current.missingTables.length === 0 && options.onlyIfDamaged) return null;
  // 3. Preserve it, unless the recovery that was killed has done so.
  if (wasInterrupted) removeStaleCopies(folder, "corrupted");
  const previous = wasInterrupted && isDamaged ? listCopies(folder, ["corrupted"])[0]?.path : undefined;
  const isPreserved = previous !== undefined && hasSameFiles(database, previous);
  using live = isDamaged ? undefined : LiveDatabase.watch(database);
  const kept = isPreserved
    ? previous
    : await preserveCurrent(layout, current, isDamaged ? "corrupted" : "before_rebuild");
  using report = new RecoveryReport(layout);
  const warnings: string[] = [];
  let built: Built;
  try {
    // 4. Build the new database and check it.
    built = await build(layout, report, { ...options, current, kept, previous, warnings });
    // 5. Install it, with what was written to the old one in the meantime.
    const onLocked = () => live?.mergeInto(recovering, (db, old) => mergeDatabase(db, old, database, options.since));
    const warning = await installDatabase(partial, layout, current, { onLocked });
    if (warning !== undefined) warnings.push(warning);
  } catch (error) {
    throw kept === null || isPreserved ? error : discardCopy(error, kept, partial, database, current);
  }
  live?.[Symbol.dispose]();
  // Opening it as agents do removes sidecars that a reader has left.
  Connection.open(database).close();
  // 6. Add what agents have written to the log in the meantime, and write the report.
  const { sizes, ...summary } = built;
  const grown = () => logFiles(layout.raw).filter((file) => sizeOfLog(file) !== sizes.get(file));
  warnings.push(...await catchUp(database, grown, options.since));
  const duration_ms = Math.round(performance.now() - start);
  return report.finish({ database, kept, ...summary, warnings, duration_ms });
}

/**
 * Removes what killed recoveries have left, when there is nothing to recover. Otherwise the next recovery would read the
 * copy that such a recovery has preserved, however old it is.
 */
export function removeStaleRecovery({ database, recovering, db, reports }: Layout): void {
  try {
    PartialFile.claim(recovering, { wait: false, forSqlite: true })[Symbol.dispose]();
    removeStaleCopies(db, "corrupted");
    removeMovedSidecars(database);
    removeStaleReports(reports);
  } catch { /* another recovery is running, or this process has no write access: nothing has to be done now */ }
}

/** What a new database is built from. */
interface Sources extends RecoveryOptions {
  current: Current;
  /** The copy of the current database. */
  kept: string | null;
  /** The copy that a killed recovery has preserved. */
  previous: string | undefined;
  /** Gets what goes wrong without stopping the recovery. */
  warnings: string[];
}

interface Built extends Omit<Recovery, "database" | "kept" | "warnings" | "duration_ms" | keyof WrittenReport> {
  /** The size of each log when it was read. */
  sizes: Map<string, number>;
}

async function build(layout: Layout, report: RecoveryReport, from: Sources): Promise<Built> {
  const { recovering, database } = layout;
  using backup = from.backup === undefined ? undefined : new OpenableBackup(layout, from.backup);
  using db = Connection.open(recovering);
  // 1. Create it with the settings of the current file, on which open connections and text in its encoding rely.
  const settings = settingsOf(from.current, [from.kept, from.previous, backup?.path]);
  for (const [name, value] of Object.entries(settings)) db.exec(`PRAGMA ${name}='${value}'`);
  db.exec(SCRAP_PRAGMAS + recoverySchemaSql());
  applySchema(db);
  dropSlowIndexes(db);
  // 2. Copy from other databases, the least trusted first.
  if (from.since) db.exec(leaveBehindSql(from.since));
  const salvage = new Salvage(db, database, (row) => report.reject(row));
  const isWanted = from.salvage ?? true;
  const sources: Recovery["sources"] = [];
  if (backup) sources.push({ path: from.backup!, sound: salvage.takeFrom(backup.path) });
  for (const path of isWanted ? new Set([from.previous, from.kept]) : []) {
    // The current database has been checked.
    const isIntact = path === from.kept ? from.current.state === "intact" : undefined;
    if (path) sources.push({ path, sound: salvage.takeFrom(path, isIntact) });
  }
  // The database of a later product is not replaced, whatever is wanted.
  if (!isWanted && from.kept !== null) salvage.takeSchemaFrom(from.kept, from.current.state === "intact");
  const salvaged = countRows(db, "agent_runs");
  const salvagedBehind = from.since ? countRows(db, "left_behind") : 0;
  // 3. Load the log.
  const rejectLine = (found: Rejection) => {
    report.reject(found);
    if (found.rejected !== "cannot be read") return;
    from.warnings.push(`${found.file} cannot be read (${found.text}): fix that, then run recover_database --force`);
  };
  const { inBoth, sizes, justStarted, leftBehind, laterStatuses, laterVersion: _, ...progress } = await loadLog(
    db,
    layout,
    rejectLine,
    { ...from, isVersionUnknown: !salvage.hasRunsTable && salvaged === 0 },
  );
  // 4. Upgrade it to v3, and create user-defined indexes, triggers and views.
  db.transaction(() => applySchema(db));
  salvage.finish();
  // 5. Check it.
  assertIntact(db, recovering);
  db.get("PRAGMA journal_mode=WAL");
  const runs = countRows(db, "agent_runs");
  return {
    ...progress,
    sizes,
    runs,
    runs_from: { log: runs - salvaged, log_and_salvaged: inBoth, salvaged: salvaged - inBoth },
    left_behind: { log: leftBehind, salvaged: salvagedBehind },
    just_started:
      justStarted.values().filter((id) => !db.get("SELECT 1 FROM agent_runs WHERE run_id=?", id)).toArray().length,
    read_as_failed: laterStatuses,
    commits: countRows(db, "commits"),
    run_events: countRows(db, "run_events"),
    sources,
    not_brought: salvage.notBrought,
  };
}

/** The settings of the current database, or of the first of the others that SQLite can read. */
function settingsOf(current: Current, others: (string | null | undefined)[]): Partial<FileSettings> {
  let settings = current.state === "intact" ? current.settings : undefined;
  for (const path of others) {
    if (path && settings === undefined) readThroughSqlite(path, (db) => settings = readSettings(db));
  }
  return settings ?? {};
}

/** Merges what other programs have written to the current database, with all user-defined tables. */
function mergeDatabase(db: Connection, current: Connection, database: string, since: Date | undefined): void {
  if (since) db.exec(leaveBehindSql(since));
  // User-defined triggers must not fire again: their effects are in the tables that are copied.
  const triggers = db.all("SELECT name, sql FROM sqlite_schema WHERE type='trigger'");
  for (const { name } of triggers) db.exec(`DROP TRIGGER ${quotedName(String(name))}`);
  mergeRuns(db, current);
  // SQLite accepts NULL for a key. Such rows would be added again.
  db.exec("DELETE FROM commits WHERE commit_hash IS NULL");
  new Salvage(db, database, () => {}).takeOthersFrom(current);
  for (const { sql } of triggers) db.exec(String(sql));
}
