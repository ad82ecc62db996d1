#!/usr/bin/env -S deno run -q -P
/**
 * Takes the daily backup of the database, and keeps the newest ones.
 * @module
 */
import { backupAndPrune, listBackupsAsTable } from "../lib/cli/backup_output.ts";
import { type Command, runCommand, wholeNumber } from "../lib/cli/command.ts";

/** The flags and permissions of this script. */
export const COMMAND: Command = {
  name: "backup_database",
  summary: "takes a backup of the database while agents write, and keeps the newest ones",
  flags: {
    keep: { value: "N", about: "how many of its own files to keep, however many days they are from (default: 7)" },
    "dry-run": { about: "only print what would be taken and removed" },
    list: {
      about: "list all backups with their content, and whether they are intact",
      excludes: ["keep", "dry-run"],
    },
  },
  writes: ["db", "backups"],
  example: "--keep 14",
};

if (import.meta.main) {
  await runCommand(COMMAND, async (terminal) => {
    const count = wholeNumber("keep", terminal.flags["keep"], 7);
    const layout = terminal.locate();
    if (terminal.flags["list"]) return listBackupsAsTable(terminal, layout);
    return await backupAndPrune(terminal, layout, "daily_backup", { count });
  });
}
