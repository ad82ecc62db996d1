/**
 * Which backups are removed.
 * @module
 */
import { errorMessage, fileError } from "../errors.ts";
import { removeIfExists, syncFolder } from "../fs/atomic_file.ts";
import { statIfExists } from "../fs/locate.ts";
import { type Layout, sidecarsOf } from "../layout.ts";
import type { DatabaseCopy } from "../sqlite/snapshot.ts";
import { NO_DATABASE } from "../store/replace_database.ts";
import { type BackupKind, countRuns, examineBackup, isNotInFuture, listBackups } from "./backup.ts";

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
  const ignored: Retention["ignored"] = [];
  const counted: (DatabaseCopy & { runs: number })[] = [];
  // 1. Leave aside names in the future, which a wrong clock gave, and incomplete files, which older tools left under good
  //    names: counting them would remove good backups.
  for (const backup of listBackups(layout)) {
    if (backup.kind !== kind) continue;
    if (!isNotInFuture(backup)) {
      ignored.push({ name: backup.name, why: "is dated in the future" });
      continue;
    }
    const runs = countRuns(backup.path);
    if (runs !== undefined) counted.push({ ...backup, runs });
    else if (isAsListed(backup)) ignored.push({ name: backup.name, why: "is incomplete, or cannot be read" });
  }
  // 2. Find what the rule no longer keeps. Another process may have taken a newer one, and the clock may have been set back.
  const old = "count" in rule
    ? counted.slice(now.path === undefined ? rule.count - 1 : rule.count)
    : counted.filter(({ time }) => Date.now() - time.getTime() > rule.days * DAY_MS);
  const newest = now.path === undefined ? undefined : counted[0]?.path;
  const expired = old.filter(({ path }) => path !== now.path && path !== newest);
  // 3. Keep the fullest one that is intact, or cannot be checked.
  const fullest = expired.filter(({ runs }) => runs > now.runs).sort((a, b) => b.runs - a.runs).find(({ path }) => {
    const { check } = examineBackup(layout, path);
    return !NO_DATABASE.some((code) => code === check);
  });
  return { expired: expired.filter((backup) => backup !== fullest), fullest, ignored };
}

/** Whether a file is still there. Another process may have removed it, and a third one given its name to a new backup. */
function isAsListed({ path, written }: DatabaseCopy): boolean {
  const stat = statIfExists(path);
  return stat !== undefined && (stat.mtime ?? written).getTime() === written.getTime();
}

/** Removes backups, and makes the removal durable. A backup that cannot be removed is a warning. */
export function removeBackups(
  { backups }: Layout,
  expired: DatabaseCopy[],
): { removed: DatabaseCopy[]; warnings: string[] } {
  const warnings: string[] = [];
  const removed = expired.filter((backup) => {
    if (!isAsListed(backup)) return true;
    const { path } = backup;
    try {
      Deno.removeSync(path);
      Object.values(sidecarsOf(path)).forEach(removeIfExists);
      return true;
    } catch (error) {
      if (!isAsListed(backup)) return true;
      warnings.push(fileError(error, `cannot remove ${path}`).message);
      return false;
    }
  });
  try {
    if (removed.length > 0) syncFolder(backups);
  } catch (error) {
    warnings.push(errorMessage(error));
  }
  return { removed, warnings };
}
