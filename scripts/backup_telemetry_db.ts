#!/usr/bin/env -S deno run -q -P
/**
 * Takes a fully checked backup of the database and keeps those of the last days; or restores one.
 * @module
 */
import { type ChosenBackup, inspectBackup, resolveBackup } from "../lib/backup/backup.ts";
import { assertNotLive, restoreBackup } from "../lib/backup/restore.ts";
import { backupAndPrune, listBackupsAsTable } from "../lib/cli/backup_output.ts";
import { TelemetryError } from "../lib/errors.ts";
import type { Layout } from "../lib/layout.ts";
import { type Command, type Result, runCommand, type Terminal, wholeNumber } from "../lib/cli/command.ts";
import { plural } from "../lib/format.ts";

/** The flags and permissions of this script. */
export const COMMAND: Command = {
  name: "backup_telemetry_db",
  summary: "takes a fully checked backup while agents write, and keeps those of the last days; or restores one",
  flags: {
    "keep-days": { value: "N", about: "how many days to keep its own backups; the newest is always kept (default: 7)" },
    "dry-run": { about: "only print what would be taken and removed" },
    list: {
      about: "list all backups with their content, and whether they are intact",
      excludes: ["keep-days", "dry-run", "restore"],
    },
    restore: {
      value: "PATH",
      path: "backup",
      about: "replace the database by this backup, or by `latest`",
      excludes: ["keep-days", "dry-run"],
    },
    replay: {
      needs: ["restore"],
      about: "with --restore: also add the runs of the log, and keep all `api_posted` markers",
    },
    yes: { needs: ["restore"], about: "with --restore: do not ask for confirmation" },
  },
  writes: ["db", "backups"],
  example: "--keep-days 30",
};

if (import.meta.main) {
  await runCommand(COMMAND, async (terminal) => {
    const { flags } = terminal;
    const days = wholeNumber("keep-days", flags["keep-days"], 7);
    const layout = terminal.locate();
    if (flags["list"]) return listBackupsAsTable(terminal, layout);
    if (flags["restore"] === undefined) return await backupAndPrune(terminal, layout, "full_backup", { days });
    return await restore(terminal, layout, resolveBackup(layout, String(flags["restore"])));
  });
}

async function restore(terminal: Terminal, layout: Layout, { path, warning }: ChosenBackup): Promise<Result> {
  if (warning !== undefined) terminal.warn(warning);
  if (!terminal.flags["yes"] && !confirmRestore(terminal, layout, path)) {
    terminal.warn("nothing was restored");
    terminal.exitCode = 1;
    return { path, restored: false };
  }
  const restored = await restoreBackup(layout, path, {
    replay: terminal.flags["replay"] === true,
    onProgress: terminal.progress("restore"),
  });
  const { runs, schema_version, from_version, kept, newer_in_log, replayed, refused } = restored;
  terminal.say(`restored ${path}: ${plural(runs, "run")}, schema v${schema_version}`);
  if (from_version !== schema_version) terminal.say(`  upgraded from schema v${from_version}`);
  if (kept) terminal.say(`  replaced database: ${kept}`);
  if (newer_in_log > 0) {
    const done = replayed ? "added" : "--replay adds them";
    terminal.say(
      `  the log has ${plural(newer_in_log, "run")} that the backup lacks or has in an older state: ${done}`,
    );
  }
  const violate = (count: number, where: string) =>
    `${plural(count, "run")} in ${where} ${count === 1 ? "violates" : "violate"} a CHECK constraint`;
  if (refused.log > 0) terminal.warn(`${violate(refused.log, "the log")}: run recover_database --force to add them`);
  if (refused.replaced > 0) terminal.warn(`${violate(refused.replaced, "the replaced database")}: see ${kept}`);
  for (const line of restored.warnings) terminal.warn(line);
  return { path, ...restored, refused: refused.log + refused.replaced };
}

/** Asks for confirmation, when it is clear that there is a backup. */
function confirmRestore(terminal: Terminal, layout: Layout, path: string): boolean {
  const { database } = layout;
  assertNotLive(database, path);
  const { runs } = inspectBackup(layout, path);
  const question = `Replace ${database} (a copy is kept) by ${path}, which has ${plural(runs, "run")}?`;
  const isConfirmed = terminal.confirm(question);
  if (isConfirmed !== undefined) return isConfirmed;
  const what = "--restore asks for confirmation, but stdin is not a terminal; nothing was restored";
  throw new TelemetryError("usage", what, { hint: "add --yes" });
}
