/**
 * What the two backup scripts share: back up and remove old backups, and list.
 * @module
 */
import {
  type BackupKind,
  examineBackup,
  inspectSource,
  listBackups,
  listOtherCopies,
  takeBackup,
} from "../backup/backup.ts";
import { applyRetention, type KeepRule, removeBackups } from "../backup/retention.ts";
import type { Layout } from "../layout.ts";
import type { DatabaseCopy } from "../sqlite/snapshot.ts";
import type { Result, Terminal } from "./command.ts";
import { formatBytes, formatCount, plural } from "../format.ts";
import { formatAge } from "../report/format.ts";

/** Takes a backup, then removes those of its kind that the rule no longer keeps. With `--dry-run`, only prints which. */
export async function backupAndPrune(
  terminal: Terminal,
  layout: Layout,
  kind: BackupKind,
  rule: KeepRule,
): Promise<Result> {
  const dryRun = terminal.flags["dry-run"] === true;
  const taken = dryRun ? undefined : await takeBackup(layout, kind, terminal.progress("backup"));
  if (taken) {
    const { path, runs, schema_version, size, runs_before } = taken;
    terminal.say(`backup ${path}: ${plural(runs, "run")}, schema v${schema_version}, ${formatBytes(size)}`);
    if (runs_before !== null && runs < runs_before) {
      terminal.warn(
        `the previous backup has ${plural(runs_before, "run")}, this one has ${formatCount(runs)}: check why`,
      );
    }
  }
  const source = taken ?? inspectSource(layout);
  if (dryRun) terminal.say(`would back up ${layout.database}: ${plural(source.runs, "run")} to ${layout.backups}`);
  const { expired, fullest, ignored } = applyRetention(layout, kind, rule, source);
  for (const { name, why } of ignored) terminal.warn(`${name} ${why}: it is neither removed nor counted`);
  const { removed, warnings } = taken ? removeBackups(layout, expired) : { removed: expired, warnings: [] };
  for (const warning of warnings) terminal.warn(warning);
  for (const { name } of removed) terminal.say(`${dryRun ? "would remove" : "removed"} ${name}`);
  if (dryRun && expired.length === 0) terminal.say("would remove nothing");
  if (fullest) terminal.say(`kept ${fullest.name}: it has ${plural(fullest.runs, "run")}, more than the database`);
  return { ...taken, dry_run: dryRun, removed: removed.map(({ path }) => path) };
}

/** Lists every backup with its content, and the copies that no rule removes. */
export function listBackupsAsTable(terminal: Terminal, layout: Layout): Result {
  const backups = listBackups(layout).map((backup) => ({ ...backup, ...examineBackup(layout, backup.path) }));
  const others = listOtherCopies(layout);
  terminal.say(tableRow(["name", "size", "age", "schema", "runs", "check"]));
  for (const { name, size, time, schema_version, runs, check, problem } of backups) {
    const version = schema_version ? `v${schema_version}` : "";
    terminal.say(tableRow([name, formatBytes(size), ageOf(time), version, runs ?? "", check]));
    if (problem !== undefined) terminal.say(`  ${problem}`);
  }
  if (backups.length === 0) terminal.say(`no backups in ${layout.backups}`);
  if (others.length > 0) terminal.say("copies that are kept until you remove them:");
  for (const { path, size, time } of others) terminal.say(`  ${path}  ${formatBytes(size)}, ${ageOf(time)} old`);
  return { backups: backups.map(toJson), others: others.map(toJson) };
}

function toJson<T extends DatabaseCopy>({ time, ...backup }: T): Omit<T, "time"> & { time: string } {
  return { ...backup, time: time.toISOString() };
}

function tableRow(cells: (string | number)[]): string {
  const widths = [42, 10, 8, 7, 9, 0];
  return cells.map((cell, i) => String(cell).padEnd(widths[i]!)).join(" ").trimEnd();
}

function ageOf(time: Date): string {
  const age = Date.now() - time.getTime();
  return age < 0 ? "future" : formatAge(age);
}
