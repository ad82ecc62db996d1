#!/usr/bin/env -S deno run -q -P
/**
 * Rebuilds a damaged or lost database from the log and from the readable data of the old one.
 * @module
 */
import { countRuns, inspectBackup, newestBackup, resolveBackup } from "../lib/backup/backup.ts";
import { pathExists } from "../lib/fs/locate.ts";
import { findUnusedCopies, type UnusedCopy } from "../lib/recovery/copies.ts";
import { checkHealth, type Health } from "../lib/recovery/health.ts";
import { quoteForShell } from "../lib/fs/permissions.ts";
import { fileNameOf, type Layout, parseFileName } from "../lib/layout.ts";
import { logFiles } from "../lib/log/read.ts";
import { type RunRecord, SCHEMA_VERSION } from "../lib/records.ts";
import { recoverDatabase, type Recovery, removeStaleRecovery } from "../lib/recovery/recover.ts";
import { listCopies } from "../lib/sqlite/snapshot.ts";
import { endStaleRuns } from "../lib/store/stale_runs.ts";
import { type Command, type Result, runCommand, type Terminal } from "../lib/cli/command.ts";
import { TelemetryError } from "../lib/errors.ts";
import { formatBytes, formatCount, plural } from "../lib/format.ts";
import { parseDurationFlag, parseTimeFlag } from "../lib/time.ts";

/** The flags and permissions of this script. */
export const COMMAND: Command = {
  name: "recover_database",
  summary: "rebuilds a damaged or lost database from the log and from the readable data of the old one",
  flags: {
    "check-only": {
      writes: ["db"],
      about: "only check whether the database is healthy; exit with 1 when it is not",
      excludes: ["force", "no-salvage", "with-backup"],
    },
    "dry-run": {
      writes: ["db"],
      needs: ["end-stale"],
      about: "with --end-stale: only list the runs that would be ended",
      excludes: ["check-only", "force", "no-salvage", "with-backup"],
    },
    "end-stale": {
      value: "AGE",
      writes: ["db", "reports", "raw"],
      about: "also end runs as failed that are running and have logged nothing for so long (24h, 7d)",
    },
    force: { about: "also rebuild a healthy database, which adds the runs that are only in the log" },
    since: {
      value: "TIME",
      needs: ["force", "check-only"],
      about: "with --force: leave out the runs that started before, a UTC day, a time or an age (90d); " +
        "with --check-only: look only at the runs that started since",
    },
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
    const { force, since: from, "check-only": checkOnly, "dry-run": dryRun, "end-stale": endStale } = terminal.flags;
    const olderThanMs = parseDurationFlag("end-stale", String(endStale ?? "24h"));
    const since = from === undefined ? undefined : new Date(parseTimeFlag("since", String(from), new Date()) / 1000);
    const layout = terminal.locate();
    const mayChange = !checkOnly && !dryRun;
    const health = force ? undefined : await checkHealth(layout, { compare: true, since, mayRollBack: mayChange });
    if (health) printHealth(terminal, layout, health);
    if (!mayChange && !health!.healthy) {
      terminal.exitCode = 1;
      return { ...health, unused_copies: [], stale_runs: null };
    }
    let result: Result = { ...health };
    if (mayChange) {
      result = health?.healthy ? keep(terminal, layout, health) : await recover(terminal, layout, since);
    }
    const unused_copies = warnOfUnusedCopies(terminal, layout);
    if (mayChange && endStale === undefined) return { ...result, unused_copies };
    return { ...result, unused_copies, stale_runs: await endStaleOrList(terminal, layout, olderThanMs) };
  });
}

function keep(terminal: Terminal, layout: Layout, health: Health): Result {
  const isComplete = !health.runs?.only_in_log && !health.runs?.older_in_database;
  terminal.say(`nothing ${isComplete ? "to do" : "is damaged"}; --force rebuilds the database all the same`);
  if (terminal.flags["with-backup"] !== undefined) terminal.warn("--with-backup was not used: add --force to use it");
  removeStaleRecovery(layout);
  return { recovered: false, ...health };
}

/** The first five, and how many more there are. */
function firstOf(items: string[]): string[] {
  return items.length > 5 ? [...items.slice(0, 5), `and ${items.length - 5} more`] : items;
}

/** Ends the stale runs, or lists them where nothing may change. */
async function endStaleOrList(terminal: Terminal, layout: Layout, olderThanMs: number): Promise<Result[]> {
  const { "end-stale": age = "24h", "check-only": isCheck, "dry-run": isDryRun } = terminal.flags;
  let runs: RunRecord[];
  try {
    runs = await endStaleRuns(layout, { olderThanMs, dryRun: Boolean(isCheck || isDryRun) });
  } catch (error) {
    if (!isCheck || !(error instanceof TelemetryError)) throw error;
    terminal.warn(error.message);
    return [];
  }
  const outcome = isCheck ? "can be ended (--end-stale)" : isDryRun ? "would end as failed" : "ended as failed";
  if (runs.length > 0 || !isCheck) terminal.say(`${plural(runs.length, "stale run")} ${outcome}: no record for ${age}`);
  const lines = runs.map(({ run_id, end_time }) => `${run_id}, last record ${end_time}`);
  for (const line of isCheck ? firstOf(lines) : lines) terminal.say(`  ${line}`);
  return runs.map(({ run_id, agent_name, job_type, end_time }) => ({ run_id, agent_name, job_type, end_time }));
}

function printHealth(terminal: Terminal, { database }: Layout, health: Health): void {
  const { healthy, problems, schema_version: version, runs } = health;
  if (healthy) terminal.say(`${database} is healthy`);
  else terminal.warn(`${database} is not healthy: ${firstOf(problems).join("; ")}`);
  if (!healthy && terminal.flags["check-only"]) {
    terminal.warn("run recover_database (without --check-only) to rebuild it");
  }
  if (version !== null && version < SCHEMA_VERSION) {
    terminal.warn(`it has schema v${version}, in which no run can be recorded: run setup_database`);
  }
  for (const table of health.unusable_tables) {
    terminal.warn(
      `the table ${table} cannot be written to by this toolkit: a rebuild would leave out what causes that`,
    );
  }
  if (runs === null) return;
  for (const file of runs.unreadable_logs) terminal.warn(`${file} cannot be read: its runs are not counted`);
  terminal.say(`  ${plural(runs.in_database, "run")}, ${formatCount(runs.only_in_database)} of them in no log`);
  const warnOf = (count: number, what: string) => {
    if (count > 0) terminal.warn(`${plural(count, "run")} ${what}`);
  };
  warnOf(runs.only_in_log, "only in the log: run recover_database --force to add them to the database");
  warnOf(
    runs.older_in_database,
    "ended in the log but not in the database: run recover_database --force to correct that",
  );
}

/** Names the command for each copy of a damaged database that has what the database lacks. */
function warnOfUnusedCopies(terminal: Terminal, layout: Layout): UnusedCopy[] {
  const copies = findUnusedCopies(layout);
  for (const { path, runs, markers, commits } of copies) {
    const counts = [[runs, "run"], [markers, "api_posted marker"], [commits, "commit"]] as const;
    const what = counts.filter(([count]) => count > 0).map(([count, noun]) => plural(count, noun)).join(", ");
    terminal.warn(
      `${path} has ${what} that the database lacks: ` +
        `run recover_database --force --with-backup ${quoteForShell(path)} to add them`,
    );
  }
  return copies;
}

async function recover(terminal: Terminal, layout: Layout, since: Date | undefined): Promise<Result> {
  const { flags } = terminal;
  const named = flags["with-backup"];
  const backup = named === undefined ? undefined : resolveBackup(layout, String(named));
  if (backup?.warning) terminal.warn(backup.warning);
  // A copy of a damaged database may be damaged, too.
  const isCopy = backup && parseFileName(fileNameOf(backup.path))?.kind === "corrupted" && pathExists(backup.path);
  if (backup && !isCopy) inspectBackup(layout, backup.path);
  const copies = () => listCopies(layout.db, ["before_rebuild"]).map(({ path }) => path);
  const [earlier, { onInterrupt }] = [copies(), terminal];
  terminal.onInterrupt = () => {
    for (const copy of copies().filter((path) => !earlier.includes(path))) {
      terminal.warn(`${copy} is a copy of the database as it was: delete it when the database is healthy`);
    }
    onInterrupt();
  };
  const recovery = await recoverDatabase(layout, {
    onlyIfDamaged: !flags["force"],
    salvage: !flags["no-salvage"],
    backup: backup?.path,
    since,
    onProgress: terminal.progress("recover"),
  });
  if (recovery === null) {
    terminal.say("another process has already recovered it");
    return { recovered: false };
  }
  printRecovery(terminal, layout, recovery);
  const { runs, files, sources, kept, rejected } = recovery;
  const isNothing = files === 0 && sources.length === 0 && kept === null;
  if (files === 0) {
    const what = isNothing
      ? " and no database, so nothing was recovered: is this the right store?"
      : ": the runs come from databases only";
    terminal.warn(`there is no log in ${layout.raw}${what}`);
  }
  const latest = newestBackup(layout);
  if (runs === 0 && backup === undefined && latest && countRuns(latest.path)) {
    terminal.warn(`no run was recovered, but ${latest.path} exists: run this again with --force --with-backup latest`);
  }
  if (isNothing || rejected["cannot be read"]) terminal.exitCode = 1;
  return { recovered: true, ...recovery };
}

function printRecovery(terminal: Terminal, { raw }: Layout, recovery: Recovery): void {
  const { database, runs, commits, files, lines, bytes, just_started } = recovery;
  const { runs_from: from, left_behind: { log, salvaged } } = recovery;
  const seconds = (recovery.duration_ms / 1000).toFixed(1);
  const renamed = logFiles(raw).map(fileNameOf).filter((name) => parseFileName(name) === null);
  terminal.say(`recovered ${database}: ${plural(runs, "run")}, ${plural(commits, "commit")}, schema v3`);
  const details = [
    `read ${plural(files, "log")}, ${plural(lines, "line")}, ${formatBytes(bytes)}, in ${seconds} s`,
    `runs only from the log ${formatCount(from.log)}, from both ${formatCount(from.log_and_salvaged)}, ` +
    `from no log ${formatCount(from.salvaged)}; events stay in the log`,
    log + salvaged > 0 &&
    `left behind: ${plural(log, "run")} of the log, ${plural(salvaged, "run")} of the old database`,
    just_started > 0 && `left to their agents: ${plural(just_started, "run")} that started less than 20 s ago`,
    ...Object.entries(recovery.read_as_failed).map(([status, count]) =>
      `read as failed: ${plural(count, "run")} with the status ${status}`
    ),
    ...recovery.sources.map(({ path, sound }) => `read ${path}${sound ? "" : " (damaged)"}`),
    ...Object.entries(recovery.rejected).map(([reason, count]) => `rejected ${formatCount(count)}: ${reason}`),
    recovery.rejected_file && `rejected lines and rows: ${recovery.rejected_file}`,
    recovery.kept && `replaced database: ${recovery.kept}`,
    recovery.report && `report: ${recovery.report}`,
    renamed.length > 0 && `renamed logs: ${firstOf(renamed).join(", ")}`,
  ];
  for (const line of details) if (line) terminal.say(`  ${line}`);
  for (const what of recovery.not_brought) terminal.warn(`not restored: ${what}`);
  for (const warning of recovery.warnings) terminal.warn(warning);
}
