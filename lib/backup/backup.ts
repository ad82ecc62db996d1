/**
 * Backups of the database: take, list, choose.
 * @module
 */
import { errorMessage, hasCode, TelemetryError, withHint } from "../errors.ts";
import { pathExists, sizeOf } from "../fs/locate.ts";
import { fileNameOf, type Layout, pathIn } from "../layout.ts";
import { Connection, noDatabase, type OnProgress, retryWhileLocked } from "../sqlite/connection.ts";
import { emptyDatabase, inspect } from "../sqlite/migrate.ts";
import {
  assertIntact,
  type DatabaseCopy,
  listCopies,
  OpenableBackup,
  removeEmptySidecars,
  SOON_MS,
  takeSnapshot,
} from "../sqlite/snapshot.ts";
import { NO_DATABASE } from "../store/replace_database.ts";

/** The two kinds of backups, each with its own names and its own retention. */
export type BackupKind = "daily_backup" | "full_backup";

/** What a database has. */
export interface BackupContent {
  /** The schema version by the columns. */
  schema_version: number;
  /** How many runs it has. */
  runs: number;
}

/** What {@linkcode takeBackup} did. */
export interface TakenBackup extends BackupContent {
  /** The path of the new backup. */
  path: string;
  /** Its size in bytes. */
  size: number;
  /** How many runs the previous backup has; null when there is none that can be read. */
  runs_before: number | null;
}

/**
 * Takes a backup while agents write: one consistent snapshot that is checked and durable before it is published. Works for
 * any schema version.
 *
 * @param layout from `locate()`
 * @param kind `full_backup` runs SQLite's `integrity_check`, `daily_backup` its `quick_check`
 * @param onProgress called with the number of pages that are copied, and of all pages
 * @throws {TelemetryError} `no_storage`, `empty_database`, `not_a_database`, `damaged`: there is nothing to back up, so no
 * backup may be removed; `locked`, `permission`, `io`: it could not be checked; `disk_full`
 *
 * @example
 * ```ts no-eval
 * import { locate } from "../fs/locate.ts";
 * import { takeBackup } from "./backup.ts";
 *
 * const { path, runs } = await takeBackup(locate(), "daily_backup");
 * console.log(`${runs} runs in ${path}`);
 * ```
 */
export async function takeBackup(layout: Layout, kind: BackupKind, onProgress?: OnProgress): Promise<TakenBackup> {
  if (kind !== "daily_backup" && kind !== "full_backup") {
    throw new TelemetryError("usage", `there is no backup of the kind ${String(kind)}`, {
      hint: "the kinds are daily_backup and full_backup",
    });
  }
  assertNotEmpty(layout.database);
  let content: BackupContent | undefined;
  const previous = listBackups(layout).filter(isNotInFuture);
  const path = await takeSnapshot(layout, layout.backups, kind, {
    check: kind === "full_backup" ? "full" : "quick",
    onProgress,
    examine: (copy) => content = contentOf(copy),
  });
  const counts = previous.values().map((backup) => countRuns(backup.path)).filter((runs) => runs !== undefined);
  return { ...content!, path, size: sizeOf(path) ?? 0, runs_before: counts.next().value ?? null };
}

/** The content of the database, for what a backup would do. Throws for one that could not be backed up. */
export function inspectSource({ database }: Layout): BackupContent {
  assertNotEmpty(database);
  using db = Connection.openToRead(database);
  return retryWhileLocked(() => {
    assertIntact(db, database);
    return contentOf(db);
  });
}

/** Throws when there is no file, or a file without content. */
export function assertNotEmpty(database: string): void {
  const size = sizeOf(database);
  if (size === 0) throw emptyDatabase(database);
  if (size === undefined) throw noDatabase(database);
}

/** The content of a database. Throws for one without the contract's tables. */
export function contentOf(db: Connection): BackupContent {
  const { version } = inspect(db);
  return { schema_version: version, runs: Number(db.get("SELECT count(*) AS runs FROM agent_runs")!["runs"]) };
}

/** How many runs a backup has; undefined when it is incomplete, or cannot be read. */
export function countRuns(path: string): number | undefined {
  try {
    // Read-only, since another process may remove it: a read-write connection would create an empty file in its place.
    using db = Connection.open(path, { readOnly: true });
    return contentOf(db).runs;
  } catch {
    return undefined;
  } finally {
    removeEmptySidecars(path);
  }
}

/** Checks a backup with SQLite's `integrity_check`. */
export function inspectBackup(layout: Layout, path: string): BackupContent {
  try {
    assertNotEmpty(path);
    using backup = new OpenableBackup(layout, path);
    using db = Connection.openToRead(backup.path);
    assertIntact(db, path, "full");
    return contentOf(db);
  } catch (error) {
    throw badBackup(error);
  }
}

/** As {@linkcode inspectBackup}, without throwing: `check` is `ok` or the code of the problem. */
export function examineBackup(
  layout: Layout,
  path: string,
): Partial<BackupContent> & { check: string; problem?: string } {
  try {
    return { ...inspectBackup(layout, path), check: "ok" };
  } catch (error) {
    const hint = hasCode(error, "permission") ? `; ${error.hint}` : "";
    return { check: error instanceof TelemetryError ? error.code : "failed", problem: errorMessage(error) + hint };
  }
}

/** The error of a bad backup. Its hint is the one for the database. */
export function badBackup(error: unknown): unknown {
  const isBad = hasCode(error, ...NO_DATABASE, "in_the_way");
  return isBad ? withHint(error, "name another backup: --list shows their names, and which ones are intact") : error;
}

/**
 * The backups of both kinds, newest first.
 *
 * @example
 * ```ts
 * import { locate } from "../fs/locate.ts";
 * import { listBackups } from "./backup.ts";
 *
 * for (const { path, time } of listBackups(locate("/tmp/telemetry"))) console.log(path, time);
 * ```
 */
export function listBackups({ backups }: Layout): DatabaseCopy[] {
  return listCopies(backups, ["daily_backup", "full_backup"]);
}

/** The copies that were created before a change, newest first. No rule removes them. */
export function listOtherCopies({ backups, db }: Layout): DatabaseCopy[] {
  return [...listCopies(backups, ["before_v3"]), ...listCopies(db, ["before_restore", "before_rebuild", "corrupted"])]
    .sort((a, b) => b.time.getTime() - a.time.getTime());
}

/** Whether a backup is not dated in the future. */
export function isNotInFuture({ time }: DatabaseCopy): boolean {
  return time.getTime() <= Date.now() + SOON_MS;
}

/** The newest backup of either kind that is not dated in the future. */
export function newestBackup(layout: Layout): DatabaseCopy | undefined {
  return listBackups(layout).find(isNotInFuture);
}

/** A backup that was chosen, and what an operator should know about the choice. */
export interface ChosenBackup {
  path: string;
  warning?: string;
}

/** Resolves a backup as an operator names it: a name in `backups/`, `latest`, or a path, which may start in the store. */
export function resolveBackup(layout: Layout, named: string): ChosenBackup {
  if (named === "latest") return chooseLatest(layout);
  if (fileNameOf(named) === named) return { path: pathIn(layout.backups, named) };
  const inStore = pathIn(layout.base, named);
  return { path: !pathExists(named) && pathExists(inStore) ? inStore : named };
}

function chooseLatest(layout: Layout): ChosenBackup {
  const latest = newestBackup(layout);
  if (latest === undefined) {
    throw new TelemetryError("no_storage", `there is no backup in ${layout.backups}`, {
      hint: "--list of the backup scripts shows the backups; name a file elsewhere with its folder",
    });
  }
  const { path, name, written } = latest;
  // Names have local times: those of a job in another time zone can be in the wrong order.
  const later = listBackups(layout).find((backup) => backup.written.getTime() > written.getTime() + 1000);
  if (later === undefined) return { path };
  const warning = `using ${name}, the latest by name, but ${later.name} was written later: to use that one, name it`;
  return { path, warning };
}
