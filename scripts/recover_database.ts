#!/usr/bin/env -S deno run -q -P
/**
 * Rebuilds a damaged or lost database from the log and from the readable data of the old one.
 * @module
 */
import { inspectBackup, newestBackup, resolveBackup } from "../lib/backup/backup.ts";
import { hasCode, TelemetryError } from "../lib/errors.ts";
import { checkHealth, type Health } from "../lib/recovery/health.ts";
import type { Layout } from "../lib/layout.ts";
import { SCHEMA_VERSION } from "../lib/records.ts";
import { recoverDatabase, type Recovery, removeLeftovers } from "../lib/recovery/recover.ts";
import { type Command, type Result, runCommand, type Terminal } from "../lib/cli/command.ts";
import { formatBytes } from "../lib/cli/output.ts";

/** The flags and permissions of this script. */
export const COMMAND: Command = {
  name: "recover_database",
  summary: "rebuilds a damaged or lost database from the log and from the readable data of the old one",
  flags: {
    "check-only": { writes: ["db"], about: "only check whether the database is healthy; exit with 1 when it is not" },
    force: { about: "also rebuild a healthy database, which adds the runs that are only in the log" },
    "no-salvage": { about: "use only the log: runs and `api_posted` markers that are not in it are lost" },
    "with-backup": {
      value: "PATH",
      path: "backup",
      about: "also use this backup, or `latest`, for runs that are nowhere else",
    },
  },
  writes: ["db", "reports"],
  example: "--check-only",
};

if (import.meta.main) {
  await runCommand(COMMAND, async (terminal) => {
    const { flags } = terminal;
    const useless = ["force", "no-salvage", "with-backup"].find((flag) => flags[flag] !== undefined);
    if (flags["check-only"] && useless) {
      throw new TelemetryError("usage", `--${useless} does not go with --check-only`, {
        hint: "see recover_database --help",
      });
    }
    const layout = terminal.locate();
    const checkOnly = flags["check-only"] === true;
    const health = checkOnly ? await checkHealth(layout, { compare: true }) : await look(terminal, layout);
    printHealth(terminal, layout, health);
    if (checkOnly) {
      terminal.exitCode = health.healthy ? 0 : 1;
      return { ...health };
    }
    if (health.healthy && !flags["force"]) {
      const isComplete = !health.runs?.only_in_log && !health.runs?.older_in_database;
      terminal.say(`nothing ${isComplete ? "to do" : "is damaged"}; --force rebuilds it all the same`);
      removeLeftovers(layout);
      return { recovered: false, ...health };
    }
    return await recover(terminal, layout);
  });
}

/** Looks at the database, and at the log too, where that can be done: without it, a database may be healthy as well. */
async function look(terminal: Terminal, layout: Layout): Promise<Health> {
  const compare = !terminal.flags["force"];
  try {
    return await checkHealth(layout, { compare, mayUndo: true });
  } catch (error) {
    if (!compare || !hasCode(error, "permission", "in_the_way", "io")) throw error;
    const health = await checkHealth(layout, { mayUndo: true });
    terminal.warn(error.message);
    return health;
  }
}

function printHealth(terminal: Terminal, { database }: Layout, health: Health): void {
  const { healthy, problems, schema_version: version, runs } = health;
  if (healthy) terminal.say(`${database} is healthy`);
  else {
    const more = problems.length > 5 ? `; and ${problems.length - 5} more` : "";
    terminal.warn(`${database} is not healthy: ${problems.slice(0, 5).join("; ")}${more}`);
    if (terminal.flags["check-only"]) terminal.warn("run recover_database, without --check-only");
  }
  if (version !== null && version < SCHEMA_VERSION) {
    terminal.warn(`it has schema v${version}, in which no run can be recorded: run setup_database`);
  }
  if (runs === null) return;
  for (const file of runs.unreadable_logs) terminal.warn(`${file} cannot be read: its runs are not counted`);
  terminal.say(`  ${runs.in_database} runs, ${runs.only_in_database} of them in no log`);
  const cure = "recover_database --force";
  if (runs.only_in_log > 0) terminal.warn(`${runs.only_in_log} runs are in the log alone: ${cure} brings them in`);
  if (runs.older_in_database > 0) {
    terminal.warn(
      `${runs.older_in_database} runs have ended by the log and not by the database: ${cure} corrects that`,
    );
  }
}

async function recover(terminal: Terminal, layout: Layout): Promise<Result> {
  const { flags } = terminal;
  const named = flags["with-backup"];
  const backup = named === undefined ? undefined : resolveBackup(layout, String(named));
  if (backup !== undefined) inspectBackup({ path: backup });
  const recovery = await recoverDatabase(layout, {
    salvage: !flags["no-salvage"],
    backup,
    // Another recovery may have done it while this one waited.
    isNeeded: async () => flags["force"] === true || !(await checkHealth(layout, { mayUndo: true })).healthy,
    onProgress: terminal.progress("recover", 1),
  });
  if (recovery === null) {
    terminal.say("another recovery has done it meanwhile");
    return { recovered: false };
  }
  tellRecovery(terminal, recovery);
  if (recovery.files === 0 && recovery.sources.length === 0 && recovery.kept === null) {
    terminal.warn(`there is no log in ${layout.raw}, and no database: nothing came back. Is this the right store?`);
    terminal.exitCode = 1;
  } else if (recovery.files === 0) {
    terminal.warn(`there is no log in ${layout.raw}: what is back is from databases alone`);
  }
  const latest = newestBackup(layout);
  if (recovery.runs === 0 && backup === undefined && latest) {
    terminal.warn(`nothing came back, but there is ${latest.path}: run this again with --force --with-backup latest`);
  }
  for (const warning of recovery.warnings) terminal.warn(warning);
  return { recovered: true, ...recovery };
}

function tellRecovery(terminal: Terminal, recovery: Recovery): void {
  const { database, runs, runs_from: from, commits, run_events, files, lines, bytes, duration_ms } = recovery;
  terminal.say(`recovered ${database}: ${runs} runs, ${commits} commits, ${run_events} events, schema v3`);
  terminal.say(`  read ${files} logs, ${lines} lines, ${formatBytes(bytes)}, in ${(duration_ms / 1000).toFixed(1)} s`);
  terminal.say(
    `  runs from the log alone ${from.log}, from both ${from.log_and_salvaged}, from no log ${from.salvaged}`,
  );
  for (const { path, sound } of recovery.sources) terminal.say(`  taken from ${path}${sound ? "" : " (damaged)"}`);
  for (const what of recovery.not_brought) terminal.warn(`not brought over: ${what}`);
  for (const [reason, count] of Object.entries(recovery.rejected)) terminal.say(`  rejected ${count}: ${reason}`);
  if (recovery.rejected_file) terminal.say(`  all that was rejected: ${recovery.rejected_file}`);
  if (recovery.kept) terminal.say(`  what was there before: ${recovery.kept}`);
  if (recovery.report) terminal.say(`  report: ${recovery.report}`);
}
