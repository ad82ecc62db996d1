/**
 * Replaces the database by a backup.
 * @module
 */
import { errorMessage, hasCode, TelemetryError, withHint } from "../errors.ts";
import { PartialFile } from "../fs/atomic_file.ts";
import { isSameFile, sizeOf, statIfExists } from "../fs/locate.ts";
import { quoteForShell } from "../fs/permissions.ts";
import { type Layout, partialOf } from "../layout.ts";
import { logFiles } from "../log/read.ts";
import { SCHEMA_VERSION } from "../records.ts";
import { Connection, isRefused, type OnProgress } from "../sqlite/connection.ts";
import { applySchema, inspect } from "../sqlite/migrate.ts";
import { assertIntact, OpenableBackup } from "../sqlite/snapshot.ts";
import { compareRuns } from "../store/compare.ts";
import { catchUp, mergeRuns, type Replayed, replayLog } from "../store/merge.ts";
import {
  type Current,
  discardCopy,
  inspectCurrent,
  installDatabase,
  LiveDatabase,
  NO_DATABASE,
  preserveCurrent,
  readSettings,
} from "../store/replace_database.ts";
import { assertNotEmpty, type BackupContent, badBackup, contentOf } from "./backup.ts";

/** Options of {@linkcode restoreBackup}. */
export interface RestoreOptions {
  /** Whether to add the runs of the log, and the runs and `api_posted` markers of the replaced database. @default false */
  replay?: boolean;
  /** Called with the number of pages that are installed, and of all pages. */
  onProgress?: OnProgress | undefined;
}

/** What {@linkcode restoreBackup} did. */
export interface Restored extends BackupContent {
  /** The schema version of the backup. */
  from_version: number;
  /** The copy of the replaced database; null when there was none. */
  kept: string | null;
  /** How many runs of the log the backup lacks, or has in an older state. */
  newer_in_log: number;
  /** Whether these were added. */
  replayed: boolean;
  /** How many runs of the log and of the replaced database violate a constraint of the table. */
  refused: { log: number; replaced: number };
  /** What went wrong without stopping the restore. */
  warnings: string[];
}

/**
 * Replaces the database by a backup, in one SQLite transaction: agents that have it open see the old state or the new one,
 * and go on writing. Killed at any moment, the database is in one of these states.
 *
 * @param layout from `locate()`
 * @param path the backup
 * @param options whether to add the runs of the log
 * @throws {TelemetryError} `damaged`, `not_a_database`, `empty_database`, `newer_schema` for a backup that cannot be used;
 * `locked`, `permission`, `disk_full` … when the database cannot be replaced: then it is unchanged
 *
 * @example
 * ```ts no-eval
 * import { locate } from "../fs/locate.ts";
 * import { restoreBackup } from "./restore.ts";
 *
 * const { runs, kept } = await restoreBackup(locate(), "/mnt/usb/telemetry_backup_20251210_031500.sqlite", { replay: true });
 * console.log(`${runs} runs; the replaced database is ${kept}`);
 * ```
 */
export async function restoreBackup(layout: Layout, path: string, options: RestoreOptions = {}): Promise<Restored> {
  const { database } = layout;
  // 1. Refuse a path that is not a backup.
  assertNotLive(database, path);
  // 2. Copy the backup beside the database, and check the copy.
  const like = sizeOf(database) === undefined ? path : database;
  using partial = PartialFile.claim(partialOf(database), { forSqlite: true, like });
  await copyBackup(layout, path, partial.path);
  // 3. Check what is there.
  const current = inspectCurrent(database);
  using live = current.state === "intact" && options.replay ? LiveDatabase.watch(database) : undefined;
  // 4. Upgrade the copy, and add runs.
  const prepared = await prepare(layout, path, partial.path, current, options).catch((error) => {
    const hint = `run recover_database --force --with-backup ${
      quoteForShell(path)
    }, which leaves out what only another program can use`;
    throw isRefused(error) ? withHint(error, hint) : error;
  });
  // 5. Preserve the current database.
  const kept = await preserveCurrent(layout, current, "before_restore");
  // 6. Install the new content.
  try {
    const onLocked = () => live?.mergeInto(partial.path, mergeRuns);
    const warning = await installDatabase(partial, layout, current, { onProgress: options.onProgress, onLocked });
    if (warning !== undefined) prepared.warnings.push(warning);
  } catch (error) {
    throw kept === null ? error : discardCopy(error, kept, partial, database, current);
  }
  live?.[Symbol.dispose]();
  // 7. Verify what agents see now, and put the old content back when it is not what was installed.
  await verify(database, prepared, kept, current);
  // 8. Add what agents have written to the log in the meantime.
  if (prepared.replayed) prepared.warnings.push(...await catchUp(database, () => logFiles(layout.raw)));
  return { ...prepared, kept };
}

type Prepared = Omit<Restored, "kept">;

/** Checks that a path is not the live database, or a file that is about to replace it. */
export function assertNotLive(database: string, path: string): void {
  const [live, backup] = [statIfExists(database), statIfExists(path)];
  const isLive = live && backup && isSameFile(live, backup);
  if (!isLive && !path.endsWith(".partial")) return;
  const what = isLive ? "is the live database" : "is incomplete, and not a backup";
  throw new TelemetryError("usage", `${path} ${what}`, { hint: "--list shows the backups" });
}

/** Copies a backup and checks the copy, which has the same damage. */
async function copyBackup(layout: Layout, path: string, target: string): Promise<void> {
  try {
    assertNotEmpty(path);
    {
      using backup = new OpenableBackup(layout, path);
      using source = Connection.openToRead(backup.path);
      contentOf(source);
      await source.copyTo(target);
    }
    using db = Connection.open(target);
    assertIntact(db, path, "full");
  } catch (error) {
    throw badBackup(error);
  }
}

/** Upgrades the copy of a backup, and adds runs, or counts those that the log has and the backup lacks. */
async function prepare(
  { database, raw }: Layout,
  path: string,
  copy: string,
  current: Current,
  { replay = false }: RestoreOptions,
): Promise<Prepared> {
  using db = Connection.open(copy, { shownAs: path });
  const content = contentOf(db);
  const from_version = content.schema_version;
  assertReplaceable(db, path, from_version, current);
  const warnings: string[] = [];
  if (from_version > SCHEMA_VERSION) {
    if (replay) warnings.push("the log cannot be replayed into the database of a later product");
    const nothing = { newer_in_log: 0, replayed: false, refused: { log: 0, replaced: 0 } };
    return { ...content, from_version, ...nothing, warnings };
  }
  const journalMode = db.get("PRAGMA journal_mode=WAL")?.["journal_mode"];
  if (journalMode !== "wal") throw new TelemetryError("io", `${copy} cannot be switched to WAL mode`);
  if (inspect(db).missing.length > 0) db.transaction(() => applySchema(db));
  const log = replay ? await replayLog(db, logFiles(raw)) : await countNewer(db, raw, warnings);
  warnings.push(...log.unreadable_logs.map((path) => `${path} cannot be read: its runs are left out`));
  const refused = { log: log.refused, replaced: replay ? addReplaced(db, database, warnings) : 0 };
  return { ...contentOf(db), from_version, newer_in_log: log.newer, replayed: replay, refused, warnings };
}

/** Counts the runs of the log that the backup lacks. A restore does not depend on it. */
async function countNewer(db: Connection, raw: string, warnings: string[]): Promise<Replayed> {
  try {
    const { only_in_log, older_in_database, unreadable_logs } = await compareRuns(db, logFiles(raw));
    return { newer: only_in_log + older_in_database, refused: 0, unreadable_logs };
  } catch (error) {
    warnings.push(`newer runs of the log could not be counted: ${errorMessage(error)}`);
    return { newer: 0, refused: 0, unreadable_logs: [] };
  }
}

/** Adds the runs and markers of the replaced database. Returns how many runs violate a constraint. */
function addReplaced(db: Connection, database: string, warnings: string[]): number {
  try {
    // SQLite deletes the WAL of a file of 0 bytes when it opens it.
    assertNotEmpty(database);
    using replaced = Connection.openToRead(database);
    return mergeRuns(db, replaced);
  } catch (error) {
    if (!hasCode(error, ...NO_DATABASE)) throw error;
    warnings.push(`runs and markers that only the replaced database has cannot be read: ${error.message}`);
    return 0;
  }
}

/**
 * Checks that a backup can replace the database. One of a later product replaces only a database of the same version, and
 * ours never one of a later product. SQLite cannot replace pages of another size in a live database, and agents that have
 * it open cannot read other text.
 */
function assertReplaceable(db: Connection, path: string, version: number, current: Current): void {
  const existing = current.state === "intact" ? current : undefined;
  if (version !== existing?.version && Math.max(version, existing?.version ?? 0) > SCHEMA_VERSION) {
    const what = existing ? `the database has schema v${existing.version}` : "there is no intact database";
    throw new TelemetryError("newer_schema", `${what}, but ${path} has schema v${version}`, {
      hint: "choose a backup of the product that uses this store, or another store (--base DIR)",
    });
  }
  if (existing === undefined) return;
  const own = readSettings(db);
  for (const name of ["page_size", "encoding"] as const) {
    if (own[name] === existing.settings[name]) continue;
    const what = `${path} has ${name} ${own[name]}, the database has ${existing.settings[name]}`;
    throw new TelemetryError("in_the_way", what, {
      hint: "stop the agents, move the database with its -wal and -shm away, then restore again",
    });
  }
}

/** Verifies what was installed. The content was checked before, so this reads what every program reads. */
async function verify(database: string, expected: BackupContent, kept: string | null, current: Current): Promise<void> {
  let cause: unknown;
  try {
    using db = Connection.open(database);
    if (contentOf(db).runs >= expected.runs) return;
  } catch (error) {
    cause = error;
  }
  let now = `the old content is in ${kept ?? "no file, since there was none"}`;
  if (kept !== null && current.state === "intact") {
    using source = Connection.open(kept);
    await source.copyOver(database, () => {});
    now = "the old content is back";
  }
  throw new TelemetryError("damaged", `the restored ${database} does not pass its check; ${now}`, {
    hint: "try another backup (--list), and check the disk",
    cause,
  });
}
