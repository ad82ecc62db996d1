/**
 * Gives back a database that was lost: from the log, and from everything that can still be read in what is left of it.
 * @module
 */
import { ensureFolder, exists, PartialFile, removeDatabase } from "../fs/atomic_file.ts";
import { hasCode, TelemetryError } from "../errors.ts";
import type { Layout } from "../layout.ts";
import { sizeOf, statIfExists } from "../fs/locate.ts";
import { logFiles } from "../log/read.ts";
import { loadLog } from "./load_log.ts";
import { SCHEMA_VERSION } from "../records.ts";
import { RecoveryReport, removeHalfReports } from "./report.ts";
import {
  type Current,
  inspectCurrent,
  installDatabase,
  isCopy,
  preserveCurrent,
  removeHalfCopies,
  Watch,
} from "../store/replace_database.ts";
import { mergeRuns, replayLog } from "../store/merge.ts";
import { quotedName } from "../sqlite/rows.ts";
import { Salvage } from "./salvage.ts";
import { recoverySchemaSql } from "../schema.ts";
import { applySchema, dropSlowIndexes, newerSchema } from "../sqlite/migrate.ts";
import { assertIntact, listCopies } from "../sqlite/snapshot.ts";
import { Connection, folderAtDatabasePath, type OnProgress } from "../sqlite/connection.ts";

/** For a database that is discarded unless it is completed. */
const SCRAP_PRAGMAS = "PRAGMA journal_mode=MEMORY; PRAGMA synchronous=OFF; PRAGMA cache_size=-32000;";

/** How {@linkcode recoverDatabase} goes about it. */
export interface RecoveryOptions {
  /** Whether to read what can still be read in the database that is replaced. @default true */
  salvage?: boolean;
  /** A sound backup to take runs from that neither log nor database have any more. */
  backup?: string | undefined;
  /** Asked when no other recovery is at work any more: whether this one is still needed. @default it is */
  isNeeded?: () => Promise<boolean>;
  /** Told how many bytes of the log are read, of how many. */
  onProgress?: OnProgress | undefined;
}

/** What {@linkcode recoverDatabase} did. */
export interface Recovery {
  /** The database. */
  database: string;
  /** What was there before, with its sidecars; null when nothing was. */
  kept: string | null;
  /** How many logs were read. */
  files: number;
  /** How many lines they have. */
  lines: number;
  /** How many bytes they have, inflated. */
  bytes: number;
  /** How many runs the new database has. */
  runs: number;
  /** Where these are from; `salvaged` are in no log. */
  runs_from: { log: number; log_and_salvaged: number; salvaged: number };
  /** How many rows the other tables of the contract have. */
  commits: number;
  /** As above. */
  run_events: number;
  /** The databases that were read, weakest first, and whether SQLite found them sound. */
  sources: { path: string; sound: boolean }[];
  /** What is in the log or in the sources and not in the new database, by reason. */
  rejected: Record<string, number>;
  /** What people had added to the database and could not be brought over, in words. */
  not_brought: string[];
  /** What went wrong beside the recovery, in words: the new database is in place all the same. */
  warnings: string[];
  /** How long it took, in milliseconds. */
  duration_ms: number;
  /** Where all this is written; null when it could not be. */
  report: string | null;
  /** Where what was rejected is written; null when nothing was. */
  rejected_file: string | null;
}

/**
 * Rebuilds the database beside the present one and puts it in its place. What was there is kept as
 * `db/telemetry.corrupted.….sqlite`. Killed at any moment, the database is as it was or finished, and running it again
 * ends right. Agents go on meanwhile: what they write is in the log, which is read once more at the end.
 *
 * Of a run that is in the log, the log's fields count, but neither an ended state nor a mark of posting is taken back
 * that another source has (contract, "NDJSON records": the last line of a run is its state).
 *
 * @param layout whose database
 * @param options what to read beside the log
 * @throws {TelemetryError} `newer_schema`: it is a later product's; `locked`, `permission`, `disk_full`, `io`: then the
 * database is as it was
 *
 * @example
 * ```ts no-eval
 * import { locate } from "../fs/locate.ts";
 * import { recoverDatabase } from "./recover.ts";
 *
 * const { runs, kept } = await recoverDatabase(locate());
 * console.log(`${runs} runs are back; what was there is ${kept}`);
 * ```
 */
export function recoverDatabase(layout: Layout, options?: RecoveryOptions & { isNeeded?: never }): Promise<Recovery>;
/** As above; null when it is not needed any more. */
export function recoverDatabase(layout: Layout, options: RecoveryOptions): Promise<Recovery | null>;
export async function recoverDatabase(layout: Layout, options: RecoveryOptions = {}): Promise<Recovery | null> {
  const start = performance.now();
  const { base, db, database, recovering } = layout;
  if (statIfExists(database)?.isDirectory) throw folderAtDatabasePath(database);
  ensureFolder(base, db);
  const wasInterrupted = exists(recovering);
  const model = sizeOf(database) === undefined ? recovering : database;
  using prepared = PartialFile.claimDatabase(recovering, model, { base });
  if (options.isNeeded && !await options.isNeeded()) return null;
  let current = inspectCurrent(database);
  if (current.state === "sound" && current.version > SCHEMA_VERSION) throw newerSchema(database, current.version);
  using watch = new Watch(database, (prepared, present) =>
    withoutTriggers(prepared, () => {
      mergeRuns(prepared, present);
      new Salvage(prepared, database, () => {}).takeOthersFrom(present);
    }));
  // Before the copy is made, where that goes through SQLite; after it, where these files are read as they are.
  if (current.state === "sound") watch.open(false);
  // What a recovery that was killed has kept. It may have been half way through replacing it.
  const previous = wasInterrupted && current.state !== "sound" ? listCopies(db, ["corrupted"])[0]?.path : undefined;
  // Else each try that is killed would leave one more copy.
  const isKept = previous !== undefined && isCopy(previous, database);
  let kept: string | null;
  try {
    kept = isKept ? previous : await preserveCurrent(layout, current, "corrupted");
  } catch (error) {
    // Only a connection that may write sees a row that breaks a CHECK.
    if (current.state !== "sound" || !hasCode(error, "damaged")) throw error;
    current = { state: "damaged" };
    watch.close();
    kept = await preserveCurrent(layout, current, "corrupted");
  }
  watch.open(true);
  const report = new RecoveryReport(layout);
  let isPlaced = false;
  try {
    const rebuild = new Rebuild(layout, report);
    const built = await rebuild.build({ ...options, kept, previous, current, watch });
    await installDatabase(prepared, database, current, {
      onLocked: () => watch.carryOver(recovering),
      onRename: () => watch.close(),
    });
    isPlaced = true;
    watch.close();
    seePlaced(database, current.state === "sound");
    const warnings = await rebuild.catchUp();
    const duration_ms = Math.round(performance.now() - start);
    return report.finish({ database, kept, ...built, warnings, duration_ms });
  } catch (error) {
    report.abandon();
    // The database is as it was: its copy is of no use, and would be made again with each try.
    if (kept !== null && !isKept && !isPlaced) removeDatabase(kept);
    throw error;
  }
}

/**
 * Removes what recoveries that were killed have left, when there is nothing to recover any more. Left there, it would
 * have the next recovery take up what that one has kept, however long ago.
 */
export function removeLeftovers({ recovering, db, reports }: Layout): void {
  try {
    if (exists(recovering)) PartialFile.claimDatabase(recovering, recovering, { wait: false })[Symbol.dispose]();
    removeHalfCopies(db, "corrupted");
    removeHalfReports(reports);
  } catch (error) {
    if (!(error instanceof TelemetryError) && !(error instanceof Deno.errors.NotFound)) throw error;
    // Another recovery is at work, or we may not write here: there is nothing that must be done now.
  }
}

/** Opens what is in place as agents do. What was written over a sound database has not been checked yet. */
function seePlaced(database: string, isToBeChecked: boolean): void {
  using db = Connection.open(database);
  if (isToBeChecked) assertIntact(db, database);
  // Closing it takes away the sidecars that a reader has left.
  else db.get("SELECT 1 FROM sqlite_schema");
}

/** What a rebuild starts from. */
interface Sources extends RecoveryOptions {
  /** The copy of the present database. */
  kept: string | null;
  /** The copy of one that was being replaced when that was broken off. */
  previous: string | undefined;
  /** The present database. */
  current: Current;
  /** Sees what is written to it. */
  watch: Watch;
}

/** The new database on its way. */
class Rebuild {
  readonly #layout: Layout;
  readonly #report: RecoveryReport;
  /** How large each log was when it was read. */
  #sizes = new Map<string, number>();

  constructor(layout: Layout, report: RecoveryReport) {
    this.#layout = layout;
    this.#report = report;
  }

  /** Builds it. */
  async build(from: Sources) {
    const { recovering } = this.#layout;
    using db = Connection.open(recovering);
    const { salvage, sources, salvaged } = this.#salvage(db, from);
    const { inBoth, sizes, ...progress } = await loadLog(
      db,
      this.#layout,
      (rejection) => this.#report.rejectLine(rejection),
      from.onProgress,
    );
    this.#sizes = sizes;
    if (db.get("SELECT 1 FROM schema_migrations") === undefined) {
      db.exec(
        "INSERT INTO schema_migrations (version, description) VALUES (2, 'Schema v2, filled by recover_database')",
      );
    }
    db.transaction(() => applySchema(db));
    salvage.finish(db);
    from.watch.carryOver(db);
    assertIntact(db, recovering);
    const count = (table: string) => Number(db.get(`SELECT count(*) AS rows FROM ${table}`)!["rows"]);
    const runs = count("agent_runs");
    const built = {
      ...progress,
      runs,
      runs_from: { log: runs - salvaged, log_and_salvaged: inBoth, salvaged: salvaged - inBoth },
      commits: count("commits"),
      run_events: count("run_events"),
      sources,
      not_brought: salvage.notBrought,
    };
    db.get("PRAGMA journal_mode=WAL");
    db.close();
    return built;
  }

  /** Makes the new database, and takes what the other ones have, weakest first. */
  #salvage(db: Connection, { backup, previous, kept, current, salvage: isWanted = true }: Sources) {
    const { database } = this.#layout;
    // SQLite cannot replace pages of one size by pages of another, and open connections go on in their encoding.
    if (current.state === "sound") {
      db.exec(`PRAGMA page_size=${current.pageSize}; PRAGMA encoding='${current.encoding}'`);
    }
    db.exec(SCRAP_PRAGMAS + recoverySchemaSql());
    applySchema(db);
    dropSlowIndexes(db);
    db.exec("DELETE FROM schema_migrations");
    const salvage = new Salvage(db, database, (row) => this.#report.rejectRow(row));
    const paths = new Set([backup, ...isWanted ? [previous, kept] : []]);
    const sources: Recovery["sources"] = [];
    for (const path of paths) if (path) sources.push({ path, sound: salvage.takeFrom(path) });
    // A later product's database is not replaced, whatever is wanted.
    if (!isWanted && kept !== null) salvage.takeSchemaFrom(kept);
    const salvaged = Number(db.get("SELECT count(*) AS runs FROM agent_runs")!["runs"]);
    return { salvage, sources, salvaged };
  }

  /** Adds what agents have written to the log meanwhile. What fails here is in the log, and only warned of. */
  async catchUp(): Promise<string[]> {
    const { raw, database } = this.#layout;
    try {
      const grown = logFiles(raw).filter((file) => sizeOf(file) !== this.#sizes.get(file));
      if (grown.length === 0) return [];
      using db = Connection.open(database);
      await replayLog(db, grown);
      return [];
    } catch (error) {
      if (!(error instanceof TelemetryError)) throw error;
      return [
        `what agents wrote to the log meanwhile is not in the database yet (${error.message}): ` +
        `run recover_database --force when it is free`,
      ];
    }
  }
}

/** What the triggers of people have done, other tables show already. */
function withoutTriggers(db: Connection, work: () => void): void {
  const triggers = db.all("SELECT name, sql FROM sqlite_schema WHERE type='trigger'");
  for (const { name } of triggers) db.exec(`DROP TRIGGER ${quotedName(String(name))}`);
  try {
    work();
  } finally {
    for (const { sql } of triggers) db.exec(String(sql));
  }
}
