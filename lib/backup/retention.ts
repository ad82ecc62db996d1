/**
 * Which backups are removed.
 * @module
 */
import { errorMessage, fileError, hasCode } from "../errors.ts";
import { readFull, removeIfExists, syncFolder } from "../fs/atomic_file.ts";
import { type Layout, sidecarsOf } from "../layout.ts";
import { type DatabaseCopy, SOON_MS } from "../sqlite/snapshot.ts";
import { NO_DATABASE } from "../store/replace_database.ts";
import { type BackupKind, countRuns, inspectBackup, listBackups } from "./backup.ts";

/** Which backups are kept: the newest `count`, or those of the last `days`. */
export type KeepRule = { count: number } | { days: number };

/** What a rule means for the existing backups. */
export interface Retention {
  /** The backups to remove. */
  expired: DatabaseCopy[];
  /** A backup that has expired but is kept, because it has more runs than the database. */
  fullest: { name: string; runs: number } | undefined;
  /** Backups that are neither removed nor counted, each with the reason. */
  ignored: { name: string; why: string }[];
}

const DAY_MS = 86_400_000;

/**
 * Applies a rule to the backups of one kind, by the times in their names. Never removes the newest one, nor the one with the
 * most runs while the database has fewer: a recreated database must not push out the last good copy.
 *
 * @param now how many runs the database has, and the path of the backup that was just taken. Without a path, one more
 * backup is about to be taken.
 */
export function applyRetention(
  layout: Layout,
  kind: BackupKind,
  rule: KeepRule,
  now: { path?: string; runs: number },
): Retention {
  const soon = Date.now() + SOON_MS;
  const ignored: Retention["ignored"] = [];
  const isIgnored = ({ name }: DatabaseCopy, why: string | undefined) => {
    if (why !== undefined) ignored.push({ name, why });
    return why !== undefined;
  };
  // 1. Leave aside names in the future, which a wrong clock gave, and incomplete files, which older tools left under good
  //    names: counting them would remove good backups.
  const counted = listBackups(layout).filter((backup) => {
    if (backup.kind !== kind) return false;
    const why = backup.time.getTime() > soon ? "is dated in the future" : problemOf(backup);
    return why !== null && !isIgnored(backup, why);
  });
  // 2. Find what the rule no longer keeps. Another process may have taken a newer one, and the clock may have been set back.
  const newest = now.path === undefined ? undefined : counted[0]?.path;
  const old = "count" in rule
    ? counted.slice(now.path === undefined ? rule.count - 1 : rule.count)
    : counted.filter(({ time }) => soon - time.getTime() > rule.days * DAY_MS);
  const examined = old.filter(({ path }) => path !== now.path && path !== newest)
    .map((backup) => ({ ...backup, runs: countRuns(backup.path) }));
  // 3. Keep those that cannot be read now, and the fullest one.
  const read = examined.filter((backup) =>
    !isIgnored(backup, backup.runs === "unread" ? "cannot be read now" : undefined)
  );
  const fullest = read.filter((backup) => typeof backup.runs === "number" && backup.runs > now.runs)
    .toSorted((a, b) => Number(b.runs) - Number(a.runs)).find(({ path }) => isUsable(layout, path));
  return {
    expired: read.filter(({ path }) => path !== fullest?.path),
    fullest: fullest && { name: fullest.name, runs: Number(fullest.runs) },
    ignored,
  };
}

/** Whether a backup is intact, or could not be checked. */
function isUsable(layout: Layout, path: string): boolean {
  try {
    inspectBackup(layout, path);
    return true;
  } catch (error) {
    return !hasCode(error, ...NO_DATABASE);
  }
}

/**
 * Why a file is no complete backup: it is shorter than its header says (SQLite's file format, "The Database Header"). Null
 * when it no longer exists, since another process may remove it.
 */
function problemOf({ path, size }: DatabaseCopy): string | undefined | null {
  try {
    using file = Deno.openSync(path);
    const header = new DataView(new ArrayBuffer(100));
    readFull(file, new Uint8Array(header.buffer));
    const isDatabase = new TextDecoder().decode(header.buffer.slice(0, 16)) === "SQLite format 3\0";
    const pageSize = header.getUint16(16) === 1 ? 65536 : header.getUint16(16);
    // SQLite before 3.7.0 does not store the number of pages there.
    const pages = header.getUint32(24) === header.getUint32(92) ? header.getUint32(28) : 1;
    if (isDatabase && size >= pageSize * pages) return undefined;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return null;
  }
  return "is incomplete, or cannot be read";
}

/** Removes backups, and makes the removal durable. A backup that cannot be removed is a warning. */
export function removeBackups(
  { backups }: Layout,
  expired: DatabaseCopy[],
): { removed: DatabaseCopy[]; warnings: string[] } {
  const warnings: string[] = [];
  const removed = expired.filter(({ path }) => {
    try {
      Deno.removeSync(path);
    } catch (error) {
      // Another process may have removed it.
      if (!(error instanceof Deno.errors.NotFound)) warnings.push(fileError(error, `cannot remove ${path}`).message);
      return error instanceof Deno.errors.NotFound;
    }
    Object.values(sidecarsOf(path)).forEach(removeIfExists);
    return true;
  });
  try {
    if (removed.length > 0) syncFolder(backups);
  } catch (error) {
    warnings.push(errorMessage(error));
  }
  return { removed, warnings };
}
