/**
 * What the two backup scripts do alike: take and keep, and list. For scripts alone.
 * @module
 */
import {
  type BackupKind,
  findExpired,
  inspectBackup,
  inspectSource,
  type KeepRule,
  listBackups,
  listOtherCopies,
  removeBackups,
  takeBackup,
} from "../backup/backup.ts";
import { errorMessage, TelemetryError } from "../errors.ts";
import type { Layout } from "../layout.ts";
import type { DatabaseCopy } from "../sqlite/snapshot.ts";
import type { Result, Terminal } from "./command.ts";
import { formatBytes } from "./output.ts";

/** SQLite's usual page, for the rate on the progress bar. */
const PAGE_BYTES = 4096;

/** Takes a backup, then removes those of its kind that the rule no longer wants; or only says what would go. */
export async function backupAndPrune(
  terminal: Terminal,
  layout: Layout,
  kind: BackupKind,
  rule: KeepRule,
): Promise<Result> {
  const dryRun = terminal.flags["dry-run"] === true;
  const taken = dryRun ? undefined : await takeBackup(layout, kind, terminal.progress("backup", PAGE_BYTES));
  if (taken) {
    terminal.say(
      `backup ${taken.path}: ${taken.runs} runs, schema v${taken.schema_version}, ${formatBytes(taken.size)}`,
    );
    if (taken.runs_before !== null && taken.runs < taken.runs_before) {
      terminal.warn(`the backup before this one had ${taken.runs_before} runs, this one has ${taken.runs}: see why`);
    }
  }
  const { outdated, fullest, uncounted } = findExpired(layout, kind, rule, taken ?? inspectSource(layout));
  for (const { name, why } of uncounted) terminal.warn(`${name} ${why}: it is left alone and not counted`);
  if (taken) removeBackups(layout, outdated);
  for (const { name } of outdated) terminal.say(`${dryRun ? "would remove" : "removed"} ${name}`);
  if (dryRun && outdated.length === 0) terminal.say("would remove nothing");
  if (fullest) terminal.say(`${fullest.name} stays: it has ${fullest.runs} runs, more than there are now`);
  return { ...taken, dry_run: dryRun, removed: outdated.map(({ path }) => path) };
}

/** Shows every backup with what is in it, and the copies that no rule removes. */
export function listBackupsAsTable(terminal: Terminal, layout: Layout): Result {
  const backups = listBackups(layout).map((backup) => ({ ...backup, ...examined(backup) }));
  const others = listOtherCopies(layout);
  terminal.say(row(["name", "size", "age", "schema", "runs", "check"]));
  for (const { name, size, time, schema_version, runs, check, problem } of backups) {
    terminal.say(
      row([name, formatBytes(size), ageOf(time), schema_version ? `v${schema_version}` : "", runs ?? "", check]),
    );
    if (problem !== undefined) terminal.say(`  ${problem}`);
  }
  if (backups.length === 0) terminal.say(`no backups in ${layout.backups}`);
  if (others.length > 0) terminal.say("copies that are kept until you remove them:");
  for (const { path, size, time } of others) terminal.say(`  ${path}  ${formatBytes(size)}, ${ageOf(time)} old`);
  return { backups: backups.map(plain), others: others.map(plain) };
}

function examined(backup: DatabaseCopy): { schema_version?: number; runs?: number; check: string; problem?: string } {
  try {
    return { ...inspectBackup(backup), check: "ok" };
  } catch (error) {
    return { check: error instanceof TelemetryError ? error.code : "failed", problem: errorMessage(error) };
  }
}

function plain<T extends DatabaseCopy>({ time, ...backup }: T): Omit<T, "time"> & { time: string } {
  return { ...backup, time: time.toISOString() };
}

function row(cells: (string | number)[]): string {
  const widths = [42, 10, 8, 7, 9, 0];
  return cells.map((cell, i) => String(cell).padEnd(widths[i]!)).join(" ").trimEnd();
}

function ageOf(time: Date): string {
  const hours = (Date.now() - time.getTime()) / 3_600_000;
  if (hours < 0) return "future";
  return hours < 48 ? `${Math.floor(hours)} h` : `${Math.floor(hours / 24)} d`;
}
