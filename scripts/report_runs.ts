#!/usr/bin/env -S deno run -q -P
/**
 * Shows what ran, what failed and what hangs: in the terminal, as a page, or as an exit code.
 * @module
 */
import { type Command, type Result, runCommand, type Terminal } from "../lib/cli/command.ts";
import { print } from "../lib/cli/output.ts";
import { TelemetryError } from "../lib/errors.ts";
import { ensureFolder, writeFileAtomic } from "../lib/fs/atomic_file.ts";
import { type Layout, newPaths } from "../lib/layout.ts";
import { followLogs } from "../lib/log/tail.ts";
import { oneLine } from "../lib/report/format.ts";
import { summaryPage } from "../lib/report/html.ts";
import { exceeded, type Limits, parseMaxFailed } from "../lib/report/limits.ts";
import { findRun } from "../lib/report/source.ts";
import {
  type FailedRun,
  listRuns,
  type RunSummary,
  summarizeRuns,
  type SummaryOptions,
} from "../lib/report/summary.ts";
import { detailLines, recordLine, runLines, type Screen, summaryLines, summaryMarkdown } from "../lib/report/text.ts";
import { parseDurationFlag, parseLocalTimeFlag } from "../lib/time.ts";

/** The flags and permissions of this script. */
export const COMMAND: Command = {
  name: "report_runs",
  summary: "shows what ran, what failed and what hangs; checks limits; writes a page. Changes nothing in the store",
  flags: {
    since: {
      value: "TIME",
      about:
        "runs that started then or later: a local day (2025-12-10), a time (2025-12-10T12:05:30Z, local without a " +
        "zone), or an age (7d, 24h, 30m) (default: 7d)",
    },
    until: { value: "TIME", about: "runs that started before that time; a day includes all of it (default: no limit)" },
    agent: { value: "A,B", about: "only these agents" },
    "job-type": { value: "A,B", about: "only these job types" },
    "stale-after": { value: "AGE", about: "a run that is running for longer is stale (default: 24h)" },
    failed: { about: "list only the failed runs, one line a run" },
    running: { about: "list only the runs without an end, of any age unless --since is given" },
    run: { value: "ID", about: "show one run with its metrics and events; the end of an id is enough" },
    follow: { about: "print new runs and events until Ctrl-C" },
    output: {
      value: "PATH",
      path: "write",
      writes: [],
      about: "write the report to this file: .html, .json or .md",
    },
    overwrite: { about: "with --output: replace the file if it exists" },
    html: { writes: ["reports"], about: "write the report as a page to reports/" },
    "max-failed": { value: "LIMIT", about: "exit with 1 when more failed: a share (5%) or a number of runs (3)" },
    "max-stale": { value: "N", about: "exit with 1 when more runs are stale" },
    "max-silent": {
      value: "AGE",
      about: "exit with 1 when an agent and job of this window or the one before has not run for longer",
    },
    "max-backup-age": { value: "AGE", about: "exit with 1 when the newest backup is older" },
  },
  writes: [],
  example: "--since 24h",
};

const MODES = ["failed", "running", "run", "follow"];

if (import.meta.main) {
  await runCommand(COMMAND, async (terminal) => {
    const { flags } = terminal;
    const options = readOptions(terminal);
    const limits = readLimits(terminal);
    const format = readFormat(terminal);
    const layout = terminal.locate();
    if (flags["follow"]) return await follow(terminal, layout, options);
    if (flags["run"] !== undefined) return await showRun(terminal, layout, String(flags["run"]));
    if (flags["failed"]) return await list(terminal, layout, options, "failed");
    if (flags["running"]) return await list(terminal, layout, options, "running");
    const summary = await summarizeRuns(layout, options);
    warnOf(terminal, summary);
    const path = format && await write(terminal, layout, summary, format);
    if (path === undefined) { for (const line of summaryLines(summary, screenOf())) terminal.say(line); }
    const limitsExceeded = exceeded(summary, limits);
    for (const limit of limitsExceeded) terminal.warn(oneLine(limit));
    if (limitsExceeded.length > 0) terminal.exitCode = 1;
    return { ...summary, exceeded: limitsExceeded, ...path === undefined ? {} : { path } };
  });
}

function usage(message: string, hint = `see ${COMMAND.name} --help`): TelemetryError {
  return new TelemetryError("usage", message, { hint });
}

function readOptions({ flags }: Terminal): SummaryOptions {
  const text = (flag: string) => flags[flag] as string | undefined;
  const now = new Date();
  const time = (flag: string, dayIs: "start" | "end") => {
    const value = text(flag);
    return value === undefined ? undefined : new Date(parseLocalTimeFlag(flag, value, now, dayIs) / 1000);
  };
  const names = (flag: string) => {
    const value = text(flag);
    if (value === "") throw usage(`--${flag} needs a name`);
    // A name may have a comma.
    return value === undefined ? undefined : [value, ...value.split(",")];
  };
  const [since, until] = [time("since", "start"), time("until", "end")];
  if ((since ?? new Date(now.getTime() - 7 * 86_400_000)) >= (until ?? now)) {
    throw usage("--until is not after --since: nothing can be between them");
  }
  const [agents, jobTypes, staleAfter] = [names("agent"), names("job-type"), text("stale-after")];
  return {
    now,
    ...since && { since },
    ...until && { until },
    ...agents && { agents },
    ...jobTypes && { jobTypes },
    ...staleAfter !== undefined && { staleAfterMs: parseDurationFlag("stale-after", staleAfter) },
  };
}

function readLimits({ flags }: Terminal): Limits {
  const text = (flag: string) => flags[flag] as string | undefined;
  const [failed, stale, silent, age] = ["max-failed", "max-stale", "max-silent", "max-backup-age"].map(text);
  if (stale !== undefined && !/^\d{1,9}$/.test(stale)) {
    throw usage(`--max-stale takes a number of runs, not "${stale}"`);
  }
  return {
    ...failed !== undefined && { maxFailed: parseMaxFailed(failed) },
    ...stale !== undefined && { maxStale: Number(stale) },
    ...silent !== undefined && { maxSilentMs: parseDurationFlag("max-silent", silent) },
    ...age !== undefined && { maxBackupAgeMs: parseDurationFlag("max-backup-age", age) },
  };
}

/** In which format to write the report. Undefined when it is printed. Checks that the flags go together. */
function readFormat({ flags }: Terminal): "html" | "json" | "md" | undefined {
  const [mode, ...others] = MODES.filter((flag) => flags[flag] !== undefined);
  const alone = ["html", "output", ...Object.keys(flags).filter((flag) => flag.startsWith("max-"))];
  const other = others[0] ?? alone.find((flag) => flags[flag] !== undefined);
  if (mode !== undefined && other !== undefined) throw usage(`--${other} does not go with --${mode}`);
  if (flags["run"] === "") throw usage("--run needs an id");
  const path = flags["output"] as string | undefined;
  if (flags["overwrite"] && path === undefined) throw usage("--overwrite goes only with --output");
  if (path === undefined) return flags["html"] ? "html" : undefined;
  const ending = /[^/\\]\.(html|json|md)$/.exec(path)?.[1] as "html" | "json" | "md" | undefined;
  if (ending === undefined || flags["html"] && ending !== "html") {
    throw usage(`--output ${path}: the name must end in ${flags["html"] ? ".html" : ".html, .json or .md"}`);
  }
  return ending;
}

function screenOf(): Screen {
  if (!Deno.stdout.isTerminal()) return { width: Infinity, height: 50, colour: false };
  const { columns, rows } = Deno.consoleSize();
  return { width: columns, height: rows, colour: !Deno.noColor };
}

function warnOf({ warn }: Terminal, { source, problem }: { source: string; problem: string | null }): void {
  if (source === "log" && problem !== null) warn(`${problem}: this was read from the log`);
}

async function write(terminal: Terminal, layout: Layout, summary: RunSummary, format: string): Promise<string> {
  const text = format === "html"
    ? await summaryPage(summary)
    : format === "md"
    ? summaryMarkdown(summary)
    : `${JSON.stringify(summary, null, 2)}\n`;
  const content = new TextEncoder().encode(text);
  let path = terminal.flags["output"] as string | undefined;
  // The page shows what is in the database: who may not read that may not read this.
  const like = layout.database;
  if (path !== undefined) {
    const replace = terminal.flags["overwrite"] === true;
    if (!writeFileAtomic(layout.base, path, content, { replace, like })) {
      throw usage(`${path} exists already, and is not replaced`, "name another file, or add --overwrite");
    }
  } else {
    ensureFolder(layout.base, layout.reports);
    for (path of newPaths(layout.reports, "runs_report")) {
      if (writeFileAtomic(layout.base, path, content, { replace: false, like })) break;
    }
  }
  terminal.say(path!);
  return path!;
}

async function list(
  terminal: Terminal,
  layout: Layout,
  options: SummaryOptions,
  status: "failed" | "running",
): Promise<Result> {
  const runs: FailedRun[] = [];
  const origin = await listRuns(layout, { ...options, status }, (run) => runs.push(run));
  warnOf(terminal, origin);
  if (runs.length > 0) { for (const line of runLines(runs, screenOf())) terminal.say(line); }
  return { ...origin, runs };
}

async function showRun(terminal: Terminal, layout: Layout, id: string): Promise<Result> {
  const found = await findRun(layout, id);
  if ("ids" in found) {
    const several = found.ids.length > 0;
    throw new TelemetryError(
      "usage",
      several ? `several ids end in ${id}: ${found.ids.join(", ")}` : `no run has the id ${id}, or one that ends in it`,
      { hint: several ? "give more of the id" : "report_runs --failed and --running list ids" },
    );
  }
  warnOf(terminal, found.origin);
  for (const line of detailLines(found, screenOf())) terminal.say(line);
  const { run, events, origin } = found;
  return { ...origin, run, events };
}

/** Prints records as they are appended, of the chosen agents and jobs. */
async function follow(terminal: Terminal, layout: Layout, { agents, jobTypes }: SummaryOptions): Promise<Result> {
  const stop = new AbortController();
  terminal.onInterrupt = () => stop.abort();
  const wanted = new Map<string, boolean>();
  const [names, jobs] = [agents && new Set(agents), jobTypes && new Set(jobTypes)];
  let records = 0;
  for await (const batch of followLogs(layout.raw, stop.signal)) {
    for (const found of batch) {
      if (!("record" in found)) continue;
      const { record } = found;
      if (record.record_type === "run") {
        wanted.set(
          record.run_id,
          (names?.has(record.agent_name) ?? true) && (jobs?.has(record.job_type ?? "") ?? true),
        );
      }
      // The start of a run may have been written before: then only its id tells the agent.
      const isWanted = wanted.get(record.run_id) ??
        (!jobs && (!names || [...names].some((name) => record.run_id.includes(`-${name}-`))));
      if (!isWanted || terminal.flags["quiet"]) continue;
      records++;
      const line = terminal.flags["json"] ? JSON.stringify(record) : recordLine(found, screenOf());
      if (!print(Deno.stdout, line)) return { records };
    }
  }
  return { records };
}
