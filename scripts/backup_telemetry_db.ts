#!/usr/bin/env -S deno run -q -P
/**
 * Takes a fully checked backup of the database and keeps those of the last days; or restores one.
 * @module
 */
import { assertNotLive, inspectBackup, resolveBackup, restoreBackup } from "../lib/backup/backup.ts";
import { backupAndPrune, listBackupsAsTable } from "../lib/cli/backup_output.ts";
import { hasCode, TelemetryError } from "../lib/errors.ts";
import type { Layout } from "../lib/layout.ts";
import { logFiles } from "../lib/log/read.ts";
import { mergeRuns, replayLog } from "../lib/store/merge.ts";
import { Connection } from "../lib/sqlite/connection.ts";
import { type Command, type Result, runCommand, type Terminal, wholeNumber } from "../lib/cli/command.ts";

/** The flags and permissions of this script. */
export const COMMAND: Command = {
  name: "backup_telemetry_db",
  summary: "takes a fully checked backup while agents write, and keeps those of the last days; or restores one",
  flags: {
    "keep-days": { value: "N", about: "how many days to keep its own backups; the newest is always kept (default: 7)" },
    "dry-run": { about: "only print what would be removed" },
    list: { about: "list all backups with their content, and whether they are intact" },
    restore: { value: "PATH", path: "backup", about: "replace the database by this backup, or by `latest`" },
    replay: { about: "with --restore: also add the runs of the log, and keep all `api_posted` markers" },
    yes: { about: "with --restore: do not ask for confirmation" },
  },
  writes: ["db", "backups"],
  example: "--keep-days 30",
};

if (import.meta.main) {
  await runCommand(COMMAND, async (terminal) => {
    const { flags } = terminal;
    const days = wholeNumber("keep-days", flags["keep-days"], 7);
    const others = (flags["restore"] === undefined ? ["replay", "yes"] : ["keep-days", "dry-run", "list"])
      .filter((flag) => flags[flag] !== undefined);
    if (others.length > 0) {
      const how = flags["restore"] === undefined ? "goes only with" : "does not go with";
      throw new TelemetryError("usage", `--${others[0]} ${how} --restore`, { hint: `see ${COMMAND.name} --help` });
    }
    const layout = terminal.locate();
    if (flags["list"]) return listBackupsAsTable(terminal, layout);
    if (flags["restore"] === undefined) return await backupAndPrune(terminal, layout, "full_backup", { days });
    return await restore(terminal, layout, resolveBackup(layout, String(flags["restore"])));
  });
}

async function restore(terminal: Terminal, layout: Layout, path: string): Promise<Result> {
  const isWanted = terminal.flags["yes"] ? true : ask(terminal, layout, path);
  if (isWanted === undefined) {
    throw new TelemetryError("usage", "--restore asks first, and here nobody can answer: nothing was restored", {
      hint: "say --yes",
    });
  }
  if (!isWanted) {
    terminal.warn("nothing was restored");
    terminal.exitCode = 1;
    return { path, restored: false };
  }
  const replay = terminal.flags["replay"] === true;
  let newer = 0;
  let [refused, refusedThere] = [0, 0];
  let replayed = false;
  const restored = await restoreBackup(layout, path, {
    onProgress: terminal.progress("restore", 4096),
    amend: async (prepared) => {
      const logs = logFiles(layout.raw);
      if (!replay) {
        ({ newer, refused } = await replayLog(prepared, logs, { dryRun: true }));
        return;
      }
      ({ newer, refused } = await replayLog(prepared, logs));
      refusedThere = keepPresent(terminal, layout, prepared);
      replayed = true;
    },
    carry: replay ? mergeRuns : undefined,
  });
  if (replayed) {
    // Once more, for what agents have written while the database was being replaced.
    using db = Connection.open(layout.database);
    await replayLog(db, logFiles(layout.raw));
  }
  terminal.say(`restored ${path}: ${restored.runs} runs, schema v${restored.schema_version}`);
  if (restored.from_version !== restored.schema_version) {
    terminal.say(`  upgraded from schema v${restored.from_version}`);
  }
  if (restored.kept) terminal.say(`  what was there before: ${restored.kept}`);
  if (newer > 0) {
    terminal.say(
      `  ${newer} runs of the log are not in the backup, or older there: ${replayed ? "added" : "--replay adds them"}`,
    );
  }
  if (replay && !replayed) {
    terminal.warn("the log cannot be replayed into a later product's database: it was restored as it is");
  }
  const refusal = "do not get past the table's CHECKs";
  if (refused > 0) terminal.warn(`${refused} runs of the log ${refusal}: recover_database --force brings them in`);
  if (refusedThere > 0) {
    terminal.warn(`${refusedThere} runs of the replaced database ${refusal}: they are in ${restored.kept}`);
  }
  return { path, ...restored, newer_in_log: newer, replayed, refused: refused + refusedThere };
}

/** Asks whether to go on, once it is plain that there is a backup; undefined where nobody can answer. */
function ask(terminal: Terminal, { database }: Layout, path: string): boolean | undefined {
  assertNotLive(database, path);
  const { runs } = inspectBackup({ path });
  return terminal.confirm(`Replace ${database} (a copy is kept) by ${path}, which has ${runs} runs?`);
}

/** Keeps what only the present database has, as far as it can be read; that it is locked is no reason to lose it. */
function keepPresent(terminal: Terminal, { database }: Layout, prepared: Connection): number {
  try {
    using present = Connection.openToRead(database);
    return mergeRuns(prepared, present);
  } catch (error) {
    if (!hasCode(error, "damaged", "not_a_database", "no_storage")) throw error;
    terminal.warn(`marks of posting and runs that only the present database has cannot be read: ${error.message}`);
    return 0;
  }
}
