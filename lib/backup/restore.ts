/**
 * Replaces the database by a backup.
 * @module
 */
import { errorMessage, hasCode, TelemetryError } from "../errors.ts";
import { PartialFile } from "../fs/atomic_file.ts";
import { isSameFile, sizeOf, statIfExists } from "../fs/locate.ts";
import { type Layout, partialOf } from "../layout.ts";
import { logFiles, unreadableLogs } from "../log/read.ts";
import { SCHEMA_VERSION } from "../records.ts";
import { Connection, type OnProgress } from "../sqlite/connection.ts";
import { applySchema, inspect, newerSchema } from "../sqlite/migrate.ts";
import { assertIntact, OpenableBackup } from "../sqlite/snapshot.ts";
import { compareRuns } from "../store/compare.ts";
import { catchUp, mergeRuns, replayLog } from "../store/merge.ts";
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
  const version = await copyBackup(layout, path, partial.path);
  // 3. Check what is there.
  const current = inspectCurrent(database);
  assertSameProduct(path, version, current);
  using live = current.state === "intact" && options.replay ? LiveDatabase.watch(database) : undefined;
  // 4. Upgrade the copy, and add runs.
  const prepared = await prepare(layout, path, partial.path, version, current, options);
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
  live?.close();
  // 7. Verify what agents see now, and put the old content back when it is not what was installed.
  await verify(database, prepared, kept, current);
  // 8. Add what agents have written to the log in the meantime.
  if (prepared.replayed) prepared.warnings.push(...await catchUp(database, () => logFiles(layout.raw)));
  return { ...prepared, kept };
}

type Prepared = Omit<Restored, "kept">;

/** Checks that a path is not obviously something else than a backup. */
export function assertNotLive(database: string, path: string): void {
  const [live, backup] = [statIfExists(database), statIfExists(path)];
  const hint = "--list shows the backups";
  if (backup?.isDirectory) throw new TelemetryError("in_the_way", `${path} is a folder, not a backup`, { hint });
  if (path.endsWith(".partial")) throw new TelemetryError("usage", `${path} is incomplete, and not a backup`, { hint });
  if (live && backup && isSameFile(live, backup)) {
    throw new TelemetryError("usage", `${path} is the live database`, { hint });
  }
}

/** Prepares the copy of a backup for installation. */
async function prepare(
  layout: Layout,
  path: string,
  target: string,
  version: number,
  current: Current,
  { replay = false }: RestoreOptions,
): Promise<Prepared> {
  using db = Connection.open(target);
  if (current.state === "intact") assertSameFormat(db, path, current);
  const nothingAdded = { newer_in_log: 0, replayed: false, refused: { log: 0, replaced: 0 } };
  const prepared: Prepared = { ...contentOf(db), from_version: version, ...nothingAdded, warnings: [] };
  if (version > SCHEMA_VERSION) {
    if (replay) prepared.warnings.push("the log cannot be replayed into the database of a later product");
    return prepared;
  }
  const journalMode = db.get("PRAGMA journal_mode=WAL")?.["journal_mode"];
  if (journalMode !== "wal") throw new TelemetryError("io", `${target} cannot be switched to WAL mode`);
  if (inspect(db).missing.length > 0) db.transaction(() => applySchema(db));
  await addRuns(db, layout, prepared, replay);
  return { ...prepared, ...contentOf(db) };
}

/** Copies a backup and checks the copy, which has the same damage. Returns its schema version. */
async function copyBackup(layout: Layout, path: string, target: string): Promise<number> {
  try {
    assertNotEmpty(path);
    let version: number;
    {
      using backup = new OpenableBackup(layout, path);
      using source = Connection.openToRead(backup.path);
      version = contentOf(source).schema_version;
      await source.copyTo(target);
    }
    using db = Connection.open(target);
    assertIntact(db, path, "full");
    return version;
  } catch (error) {
    throw badBackup(error);
  }
}

/** Adds the runs of the log and of the replaced database; or counts those of the log that are newer. */
async function addRuns(db: Connection, layout: Layout, prepared: Prepared, replay: boolean): Promise<void> {
  const warnOfUnread = (logs: string[]) =>
    prepared.warnings.push(...logs.map((log) => `${log} cannot be read: its runs are left out`));
  if (!replay) {
    try {
      const { only_in_log, older_in_database, unreadable_logs } = await compareRuns(db, logFiles(layout.raw));
      prepared.newer_in_log = only_in_log + older_in_database;
      warnOfUnread(unreadable_logs);
    } catch (error) {
      prepared.warnings.push(`newer runs of the log could not be counted: ${errorMessage(error)}`);
    }
    return;
  }
  const logs = logFiles(layout.raw);
  warnOfUnread(unreadableLogs(logs));
  const { newer, refused } = await replayLog(db, logs);
  prepared.newer_in_log = newer;
  prepared.refused.log = refused;
  prepared.replayed = true;
  try {
    // SQLite deletes the WAL of a file of 0 bytes when it opens it.
    assertNotEmpty(layout.database);
    using replaced = Connection.openToRead(layout.database);
    prepared.refused.replaced = mergeRuns(db, replaced);
  } catch (error) {
    if (!hasCode(error, ...NO_DATABASE)) throw error;
    prepared.warnings.push(`runs and markers that only the replaced database has cannot be read: ${error.message}`);
  }
}

/** The backup of a later product replaces only a database of the same version, and ours never one of a later product. */
function assertSameProduct(path: string, version: number, current: Current): void {
  const existing = current.state === "intact" ? current.version : undefined;
  if (version > SCHEMA_VERSION && existing !== version) throw newerSchema(path, version);
  if (version <= SCHEMA_VERSION && existing !== undefined && existing > SCHEMA_VERSION) {
    throw new TelemetryError("newer_schema", `the database has schema v${existing}, the backup v${version}`, {
      hint: "restore a backup of the later product, or use another folder (--base DIR)",
    });
  }
}

/** SQLite cannot replace pages of another size in a live database, and agents that have it open cannot read other text. */
function assertSameFormat(db: Connection, path: string, { settings }: Current & { state: "intact" }): void {
  const own = readSettings(db);
  for (const name of ["page_size", "encoding"] as const) {
    if (own[name] === settings[name]) continue;
    throw new TelemetryError("in_the_way", `${path} has ${name} ${own[name]}, the database has ${settings[name]}`, {
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
