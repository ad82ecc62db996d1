/**
 * Backups of the database: taken, kept, listed, restored.
 * @module
 */
import { fill, PartialFile, removeDatabase, removeIfExists, syncFolder } from "../fs/atomic_file.ts";
import { fileError, hasCode, TelemetryError, withHint } from "../errors.ts";
import { folderOf, type Layout, partialOf, pathIn, sidecarsOf } from "../layout.ts";
import { isGranted, sizeOf, statIfExists } from "../fs/locate.ts";
import { SCHEMA_VERSION } from "../records.ts";
import {
  type Current,
  inspectCurrent,
  installDatabase,
  NO_DATABASE,
  preserveCurrent,
  Watch,
  writeThrough,
} from "../store/replace_database.ts";
import { applySchema, emptyDatabase, inspect, newerSchema } from "../sqlite/migrate.ts";
import { assertIntact, type DatabaseCopy, listCopies, takeSnapshot } from "../sqlite/snapshot.ts";
import { Connection, noDatabase, type OnProgress, retryWhileLocked } from "../sqlite/connection.ts";

/** The two kinds of backup, each with its own names and its own rule of what is kept. */
export type BackupKind = "daily_backup" | "full_backup";

/** What a look into a backup shows. */
export interface BackupContent {
  /** Its schema version. */
  schema_version: number;
  /** How many runs it holds. */
  runs: number;
}

/** What {@linkcode takeBackup} did. */
export interface TakenBackup extends BackupContent {
  /** The new backup. */
  path: string;
  /** Its size in bytes. */
  size: number;
  /** How many runs the backup before this one holds, if there is one that can be read. */
  runs_before: number | null;
}

/**
 * Takes a backup while agents write: one consistent snapshot, checked, on the disk, and only then under a good name
 * that no other file had. Works on a database of any schema version.
 *
 * @param layout whose database
 * @param kind `full_backup` runs SQLite's `integrity_check`, `daily_backup` its `quick_check`
 * @param onProgress told how many pages are copied, of how many
 * @throws {TelemetryError} `no_storage`, `empty_database`, `not_a_database`, `damaged`: there is nothing worth keeping, and
 * nothing that was kept may go; `locked`, `permission`, `io`: it could not be checked; `disk_full`
 *
 * @example
 * ```ts no-eval
 * import { takeBackup } from "./backup.ts";
 * import { locate } from "../fs/locate.ts";
 *
 * const { path, runs } = await takeBackup(locate(), "daily_backup");
 * console.log(`${runs} runs in ${path}`);
 * ```
 */
export async function takeBackup(layout: Layout, kind: BackupKind, onProgress?: OnProgress): Promise<TakenBackup> {
  requireContent(layout.database);
  let content: BackupContent | undefined;
  const before = backupsUntilNow(layout);
  const path = await takeSnapshot(layout, layout.backups, kind, {
    depth: kind === "full_backup" ? "full" : "quick",
    onProgress,
    examine: (copy) => content = contentOf(copy),
  });
  return { ...content!, path, size: sizeOf(path) ?? 0, runs_before: runsInNewest(before) };
}

/**
 * Sees that the database is worth a backup, without taking one.
 *
 * @throws {TelemetryError} as `takeBackup` does
 */
export function inspectSource({ database }: Layout): BackupContent {
  requireContent(database);
  using db = Connection.openToRead(database);
  return retryWhileLocked(() => {
    assertIntact(db, database);
    return contentOf(db);
  });
}

/** Refuses what is there but cannot hold a run. */
function requireContent(database: string): void {
  const size = sizeOf(database);
  if (size === 0) throw emptyDatabase(database);
  if (size === undefined) throw noDatabase(database);
}

/** What is in a database. Refuses one without the contract's tables. */
function contentOf(db: Connection): BackupContent {
  const { version } = inspect(db);
  return { schema_version: version, runs: Number(db.get("SELECT count(*) AS runs FROM agent_runs")!["runs"]) };
}

/** How many runs the newest backup has that can be read. */
function runsInNewest(backups: DatabaseCopy[]): number | null {
  for (const backup of backups) {
    const runs = runsIn(backup);
    if (typeof runs === "number") return runs;
  }
  return null;
}

/**
 * How many runs a backup has; `none` where it is no backup, or is gone, `unread` where that cannot be seen (locked …).
 * Another run may be removing it: only `readOnly` does not make an empty file in its place, but it leaves sidecars.
 */
function runsIn({ path }: DatabaseCopy): number | "none" | "unread" {
  let runs: number | "none" | "unread";
  try {
    using db = Connection.open(path, { readOnly: true });
    runs = contentOf(db).runs;
  } catch (error) {
    runs = hasCode(error, ...NO_DATABASE) ? "none" : "unread";
  }
  const isGone = statIfExists(path) === undefined;
  const { wal, shm } = sidecarsOf(path);
  if (isGone || sizeOf(wal) === 0) [wal, shm].forEach(removeIfExists);
  return isGone ? "none" : runs;
}

/**
 * Looks into a backup.
 *
 * @throws {TelemetryError} `damaged`, `not_a_database` … when it is no good, or could not be checked
 */
export function inspectBackup({ path }: Pick<DatabaseCopy, "path">): BackupContent {
  try {
    requireContent(path);
    using db = Connection.openToRead(path);
    assertIntact(db, path, "full");
    return contentOf(db);
  } catch (error) {
    throw hasCode(error, ...NO_DATABASE)
      ? withHint(error, "choose another backup: --list shows which ones are sound")
      : error;
  }
}

/** The backups of both kinds, newest first by the time in their names. */
export function listBackups({ backups }: Layout): DatabaseCopy[] {
  return listCopies(backups, ["daily_backup", "full_backup"]);
}

/** The copies that were made before something was changed, and that no rule removes, newest first. */
export function listOtherCopies({ backups, db }: Layout): DatabaseCopy[] {
  return [...listCopies(backups, ["before_v3"]), ...listCopies(db, ["before_restore", "corrupted"])]
    .sort((a, b) => b.time.getTime() - a.time.getTime());
}

/** A name that was taken makes the next one some seconds later than it is: that is not the future yet. */
const SOON_MS = 60_000;

/** The newest backup of either kind, those left out that are dated in the future. */
export function newestBackup(layout: Layout): DatabaseCopy | undefined {
  return backupsUntilNow(layout)[0];
}

/** The path that an operator names a backup by; undefined for a name in `backups/`, `latest`, or none. */
export function backupPath(named: string | boolean | undefined): string | undefined {
  return typeof named === "string" && folderOf(named) !== "." ? named : undefined;
}

/**
 * The path of a backup as an operator names it: a path, a name in `backups/`, or `latest`.
 *
 * @throws {TelemetryError} `no_storage` when there is no backup yet
 */
export function resolveBackup(layout: Layout, named: string): string {
  if (named === "") throw new TelemetryError("usage", "a backup needs a name", { hint: "--list shows the backups" });
  if (named !== "latest") {
    // As --list shows it.
    const path = backupPath(named);
    if (path !== undefined) return path;
    const listed = pathIn(layout.backups, named);
    if (sizeOf(listed) !== undefined) return listed;
    if (isGranted({ name: "read", path: named }) && sizeOf(named) !== undefined) return named;
    throw new TelemetryError("no_storage", `there is no backup ${listed}`, {
      hint: "--list of the backup scripts shows what is there; a file elsewhere is named with its folder",
    });
  }
  const latest = newestBackup(layout);
  if (latest) return latest.path;
  throw new TelemetryError("no_storage", `there is no backup in ${layout.backups}`, {
    hint: "--list of the backup scripts shows what is there",
  });
}

function backupsUntilNow(layout: Layout): DatabaseCopy[] {
  return listBackups(layout).filter(({ time }) => time.getTime() <= Date.now() + SOON_MS);
}

/** Which backups stay: the newest `count`, or those of the last `days`. */
export type KeepRule = { count: number } | { days: number };

/** What a rule says of the backups that are there. */
export interface Outdated {
  /** May go. */
  outdated: DatabaseCopy[];
  /** Would go too, but has more runs than there are now: it may be the last to know of them. */
  fullest: { name: string; runs: number } | undefined;
  /** These neither go nor count, and why. */
  uncounted: { name: string; why: string }[];
}

/**
 * Which backups of a kind a rule no longer wants. Goes by the time in the name, and never names the newest, nor the one
 * with the most runs when a database that was lost and begun anew would push it out.
 *
 * @param layout whose backups
 * @param kind the other kind's are left alone
 * @param rule which ones stay
 * @param now how many runs there are, and the path of the backup that was just taken; without one, one more is about
 * to be
 */
export function findExpired(
  layout: Layout,
  kind: BackupKind,
  rule: KeepRule,
  now: { path?: string; runs: number },
): Outdated {
  const taken = now.path;
  const soon = Date.now() + SOON_MS;
  const ours = listBackups(layout).filter((backup) => backup.kind === kind);
  // A clock that was wrong would fool the rule for ever.
  const future = ours.filter(({ time }) => time.getTime() > soon);
  // Half files under good names, as the older tools leave them, must not push out what can be restored.
  const { whole: past = [], broken = [] } = Object.groupBy(
    ours.filter(({ time }) => time.getTime() <= soon),
    stateOf,
  );
  // Another run may have taken one after ours, and the clock may have been set back: neither the newest goes nor ours.
  const spare = taken === undefined ? undefined : past[0]?.path;
  const old = "count" in rule
    ? past.slice(taken === undefined ? rule.count - 1 : rule.count)
    : past.filter(({ time }) => soon - time.getTime() > rule.days * 86_400_000);
  const looked = old.filter(({ path }) => path !== taken && path !== spare)
    .map((backup) => ({ backup, runs: runsIn(backup) }));
  const fullest = looked.flatMap(({ backup, runs }) =>
    typeof runs === "number" && runs > now.runs ? { ...backup, runs } : []
  ).sort((a, b) => b.runs - a.runs).find(isNotLost);
  const unread = looked.filter(({ runs }) => runs === "unread").map(({ backup }) => backup);
  const uncounted = [
    ...future.map(({ name }) => ({ name, why: "is dated in the future" })),
    ...broken.map(({ name }) => ({ name, why: "is no whole database, or cannot be read" })),
    ...unread.map(({ name }) => ({ name, why: "cannot be read now" })),
  ];
  const outdated = looked.filter(({ backup, runs }) => runs !== "unread" && backup.path !== fullest?.path)
    .map(({ backup }) => backup);
  return { outdated, fullest, uncounted };
}

/** Whether a backup is sound, or could not be checked. */
function isNotLost(backup: DatabaseCopy): boolean {
  try {
    inspectBackup(backup);
    return true;
  } catch (error) {
    return !hasCode(error, ...NO_DATABASE);
  }
}

/** Whether a file is as long as its header says (SQLite's "Database File Format", "The Database Header"). */
function stateOf({ path, size }: DatabaseCopy): "whole" | "broken" | "gone" {
  try {
    using file = Deno.openSync(path);
    const header = new DataView(new ArrayBuffer(100));
    if (fill(file, new Uint8Array(header.buffer)) < 100) return "broken";
    if (new TextDecoder().decode(header.buffer.slice(0, 16)) !== "SQLite format 3\0") return "broken";
    const pageSize = header.getUint16(16) === 1 ? 65536 : header.getUint16(16);
    // Programs of before 2010 do not keep the number of pages there.
    const pages = header.getUint32(24) === header.getUint32(92) ? header.getUint32(28) : 1;
    return size >= pageSize * pages ? "whole" : "broken";
  } catch (error) {
    // Another run removes what is outdated, too.
    return error instanceof Deno.errors.NotFound ? "gone" : "broken";
  }
}

/** Removes backups; the names become free for good with the sync of the folder. */
export function removeBackups({ backups }: Layout, outdated: DatabaseCopy[]): void {
  for (const { path } of outdated) {
    try {
      Deno.removeSync(path);
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) continue;
      throw fileError(error, `cannot remove ${path}`);
    }
    for (const sidecar of Object.values(sidecarsOf(path))) removeIfExists(sidecar);
  }
  if (outdated.length > 0) syncFolder(backups);
}

/** How {@linkcode restoreBackup} goes about it. */
export interface RestoreOptions {
  /** Told how many pages are in place, of how many. */
  onProgress?: OnProgress | undefined;
  /** Changes the content, in schema v3, before it is put in place. Not called for a later product's backup. */
  amend?: (prepared: Connection) => Promise<void>;
  /** As `amend`, with what is written to the present database meanwhile. @default that is in its copy alone */
  carry?: ((prepared: Connection, present: Connection) => void) | undefined;
}

/** What {@linkcode restoreBackup} did. */
export interface Restored extends BackupContent {
  /** The schema version that the backup had. */
  from_version: number;
  /** What was there before; null when nothing was. */
  kept: string | null;
}

/**
 * Puts a backup in the place of the database. The backup is checked and, if it is older, upgraded in a copy; what is
 * there now is kept as `db/telemetry_before_restore_….sqlite`; then the content is put in place through SQLite, in one
 * transaction, so that agents which have the database open see the old state or the new one and go on writing. Killed
 * at any moment, the database is in one of these two states.
 *
 * @param layout whose database
 * @param path the backup
 * @param options how
 * @throws {TelemetryError} when the backup is no good (`damaged`, `not_a_database`, `empty_database`, `newer_schema` …),
 * when the database cannot be written (`locked`, `permission`, `disk_full` …): then everything is as it was
 */
export async function restoreBackup(layout: Layout, path: string, options: RestoreOptions = {}): Promise<Restored> {
  const { database } = layout;
  assertNotLive(database, path);
  const backup = inspectBackup({ path });
  const current = inspectCurrent(database);
  requireSameProduct(path, backup.schema_version, current);
  const model = sizeOf(database) === undefined ? path : database;
  using partial = PartialFile.claimDatabase(partialOf(database), model, { base: layout.base });
  const isOurs = backup.schema_version <= SCHEMA_VERSION;
  using watch = options.carry && isOurs ? new Watch(database, options.carry) : undefined;
  // Before it is read for what is to be kept of it.
  if (current.state === "sound") watch?.open(false);
  const content = await prepare(path, partial.path, current, options.amend);
  const kept = await preserveCurrent(layout, current, "before_restore");
  try {
    // What is damaged has been copied as files, which must not be open in SQLite then.
    watch?.open(true);
    watch?.carryOver(partial.path);
    await installDatabase(partial, database, current, {
      onProgress: options.onProgress,
      onLocked: () => watch?.carryOver(partial.path),
      onRename: () => watch?.close(),
    });
    watch?.close();
  } catch (error) {
    // The database is as it was: its copy is of no use, and would be made again with each try.
    if (kept !== null) removeDatabase(kept);
    throw error;
  }
  await verify(database, content, kept, current);
  return { ...content, from_version: backup.schema_version, kept };
}

/**
 * Sees that a path does not plainly name something else than a backup.
 *
 * @throws {TelemetryError} `in_the_way`, `usage`
 */
export function assertNotLive(database: string, path: string): void {
  const [live, backup] = [database, path].map(statIfExists);
  if (backup?.isDirectory) {
    throw new TelemetryError("in_the_way", `${path} is a folder, not a backup`, { hint: "--list shows the backups" });
  }
  if (path.endsWith(".partial")) {
    throw new TelemetryError("usage", `${path} is half made: a backup has another name`, {
      hint: "--list shows the backups",
    });
  }
  if (live && backup && live.dev === backup.dev && live.ino === backup.ino && backup.ino !== null) {
    throw new TelemetryError("usage", `${path} is the live database itself`, { hint: "--list shows the backups" });
  }
}

/** A later product's backup goes only over a database of the same version, and ours not over a later product's. */
function requireSameProduct(path: string, version: number, current: Current): void {
  const there = current.state === "sound" ? current.version : undefined;
  if (version > SCHEMA_VERSION && there !== version) throw newerSchema(path, version);
  if (version <= SCHEMA_VERSION && there !== undefined && there > SCHEMA_VERSION) {
    throw new TelemetryError("newer_schema", `the database has schema v${there}, the backup v${version}`, {
      hint: "restore a backup of that later product, or use another folder (--base DIR)",
    });
  }
}

/** Makes of the backup what is to be put in place, beside the database. */
async function prepare(
  path: string,
  partial: string,
  current: Current,
  amend: RestoreOptions["amend"],
): Promise<BackupContent> {
  {
    using source = Connection.openToRead(path);
    await source.copyTo(partial);
  }
  using db = Connection.open(partial);
  const pageSize = Number(db.get("PRAGMA page_size")!["page_size"]);
  if (current.state === "sound" && current.pageSize !== pageSize) {
    throw new TelemetryError(
      "in_the_way",
      `${path} has pages of ${pageSize} bytes, the database has pages of ${current.pageSize}: SQLite cannot replace these`,
      { hint: "stop the agents, move the database with its -wal and -shm away, and restore again" },
    );
  }
  const { version, missing } = inspect(db);
  if (version <= SCHEMA_VERSION && missing.length > 0) db.transaction(() => applySchema(db));
  if (amend && version <= SCHEMA_VERSION) await amend(db);
  db.get("PRAGMA journal_mode=WAL");
  assertIntact(db, path);
  return contentOf(db);
}

/** Sees that what is in place is what was meant; if not, puts back what was there. */
async function verify(database: string, content: BackupContent, kept: string | null, current: Current): Promise<void> {
  let problem: unknown;
  try {
    using db = Connection.open(database);
    assertIntact(db, database);
    if (contentOf(db).runs >= content.runs) return;
  } catch (error) {
    problem = error;
  }
  const isBack = kept !== null && current.state === "sound";
  if (isBack) await writeThrough(kept, database);
  const there = isBack ? "what was there is back" : `what was there is ${kept ?? "nothing"}`;
  throw new TelemetryError("damaged", `the restored ${database} did not pass its check: ${there}`, {
    hint: "try another backup (--list), and see whether the disk is failing",
    cause: problem,
  });
}
