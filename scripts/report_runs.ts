#!/usr/bin/env -S deno run -q -P
/**
 * Shows what ran, what failed and what hangs: in the terminal, as a page, or as an exit code.
 * @module
 */
import { type Command, type Result, runCommand, type Terminal } from "../lib/cli/command.ts";
import { print } from "../lib/cli/output.ts";
import { TelemetryError } from "../lib/errors.ts";
import { assertUsable } from "../lib/export/export.ts";
import { ensureFolder, writeFileAtomic } from "../lib/fs/atomic_file.ts";
import { type Layout, newPaths } from "../lib/layout.ts";
import { followLogs } from "../lib/log/tail.ts";
import { oneLine } from "../lib/report/format.ts";
import { summaryPage } from "../lib/report/html.ts";
import { exceeded, type Limits, parseMaxFailed } from "../lib/report/limits.ts";
import { findRun } from "../lib/report/source.ts";
import { listRuns, type RunSummary, summarizeRuns, type SummaryOptions } from "../lib/report/summary.ts";
import { detailLines, recordLine, runLines, type Screen, summaryLines, summaryMarkdown } from "../lib/report/text.ts";
import { parseDurationFlag, parseLocalTimeFlag } from "../lib/time.ts";

const FORMATS = {
  html: summaryPage,
  md: summaryMarkdown,
  json: (summary: RunSummary) => `${JSON.stringify(summary, null, 2)}\n`,
};
type Format = keyof typeof FORMATS;

/** The flags of a whole report, which do not go with a list or a single run. */
const REPORT = ["html", "output", "overwrite", "max-failed", "max-stale", "max-silent", "max-backup-age"];

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
    failed: {
      about: "list only the failed runs, one line a run",
      excludes: [...REPORT, "running", "run", "follow"],
    },
    running: {
      about: "list only the runs without an end, of any age unless --since is given",
      excludes: [...REPORT, "run", "follow"],
    },
    run: {
      value: "ID",
      about: "show one run with its metrics and events; the end of an id is enough",
      excludes: [...REPORT, "follow"],
    },
    follow: { about: "print new runs and events until Ctrl-C", excludes: REPORT },
    output: {
      value: "PATH",
      path: "write",
      writes: [],
      about: "write the report to this file: .html, .json or .md",
    },
    overwrite: { needs: ["output"], about: "with --output: replace the file if it exists" },
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

if (import.meta.main) {
  await runCommand(COMMAND, async (terminal) => {
    const { flags } = terminal;
    const options = readOptions(terminal);
    const limits = readLimits(terminal);
    const format = readFormat(terminal);
    const layout = terminal.locate();
    if (flags["output"] !== undefined) assertUsable(String(flags["output"]), flags["overwrite"] === true);
    if (flags["follow"]) return await follow(terminal, layout, options);
    if (flags["run"] !== undefined) return await showRun(terminal, layout, String(flags["run"]));
    if (flags["failed"] || flags["running"]) {
      return await list(terminal, layout, { ...options, status: flags["failed"] ? "failed" : "running" });
    }
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

function textOf({ flags }: Terminal, flag: string): string | undefined {
  return flags[flag] as string | undefined;
}

function readOptions(terminal: Terminal): SummaryOptions {
  const now = new Date();
  const time = (flag: string, dayIs: "start" | "end") => {
    const value = textOf(terminal, flag);
    return value === undefined ? undefined : new Date(parseLocalTimeFlag(flag, value, now, dayIs) / 1000);
  };
  const names = (flag: string) => {
    const value = textOf(terminal, flag);
    // A name may have a comma.
    return value === undefined ? undefined : [value, ...value.split(",")];
  };
  const [since, until] = [time("since", "start"), time("until", "end")];
  if ((since ?? new Date(now.getTime() - 7 * 86_400_000)) >= (until ?? now)) {
    throw usage("--until is not after --since: nothing can be between them");
  }
  const staleAfterMs = readAge(terminal, "stale-after");
  return { now, since, until, agents: names("agent"), jobTypes: names("job-type"), staleAfterMs };
}

function readAge(terminal: Terminal, flag: string): number | undefined {
  const value = textOf(terminal, flag);
  return value === undefined ? undefined : parseDurationFlag(flag, value);
}

function readLimits(terminal: Terminal): Limits {
  const [failed, stale] = [textOf(terminal, "max-failed"), textOf(terminal, "max-stale")];
  if (stale !== undefined && !/^\d{1,9}$/.test(stale)) {
    throw usage(`--max-stale takes a number of runs, not "${stale}"`);
  }
  return {
    maxFailed: failed === undefined ? undefined : parseMaxFailed(failed),
    maxStale: stale === undefined ? undefined : Number(stale),
    maxSilentMs: readAge(terminal, "max-silent"),
    maxBackupAgeMs: readAge(terminal, "max-backup-age"),
  };
}

/** In which format to write the report. Undefined when it is printed. */
function readFormat(terminal: Terminal): Format | undefined {
  const { flags } = terminal;
  const path = textOf(terminal, "output");
  if (path === undefined) return flags["html"] ? "html" : undefined;
  const ending = /[^/\\]\.(html|json|md)$/.exec(path)?.[1] as Format | undefined;
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

async function write(terminal: Terminal, layout: Layout, summary: RunSummary, format: Format): Promise<string> {
  const text = await FORMATS[format](summary);
  const output = textOf(terminal, "output");
  const replace = terminal.flags["overwrite"] === true;
  if (output === undefined) ensureFolder(layout.base, layout.reports);
  for (const path of output === undefined ? newPaths(layout.reports, "runs_report") : [output]) {
    // Who may not read the database may not read what is in it.
    const options = { replace, like: layout.database };
    if (!writeFileAtomic(layout.base, path, new TextEncoder().encode(text), options)) continue;
    terminal.say(path);
    return path;
  }
  throw usage(`${output ?? layout.reports}: another program has created that file`, "run this again");
}

async function list(
  terminal: Terminal,
  layout: Layout,
  options: SummaryOptions & { status: "failed" | "running" },
): Promise<Result> {
  const found = await listRuns(layout, options);
  const { runs } = found;
  warnOf(terminal, found);
  if (runs.length > 0 || Deno.stdout.isTerminal()) {
    for (const line of runLines(runs, screenOf())) {
      terminal.say(line);
    }
  }
  return { ...found };
}

async function showRun(terminal: Terminal, layout: Layout, id: string): Promise<Result> {
  const found = await findRun(layout, id);
  if ("ids" in found) {
    if (found.ids.length > 0) throw usage(`several ids end in ${id}: ${found.ids.join(", ")}`, "give more of the id");
    throw usage(`no run has the id ${id}, or one that ends in it`, "report_runs --failed and --running list ids");
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
  const isWanted = new Map<string, boolean>();
  let records = 0;
  for await (const batch of followLogs(layout.raw, stop.signal)) {
    for (const found of batch) {
      if (!("record" in found)) continue;
      const { record } = found;
      const id = record.run_id;
      if (record.record_type === "run") {
        const { agent_name, job_type } = record;
        isWanted.set(id, (agents?.includes(agent_name) ?? true) && (jobTypes?.includes(job_type ?? "") ?? true));
      }
      // The start of a run may have been written before: then only its id tells the agent.
      const mayBe = () => !jobTypes && (!agents || agents.some((name) => id.includes(`-${name}-`)));
      if (!(isWanted.get(id) ?? mayBe()) || terminal.flags["quiet"]) continue;
      records++;
      const line = terminal.flags["json"] ? JSON.stringify(record) : recordLine(found, screenOf());
      if (!print(Deno.stdout, line)) return { records };
    }
  }
  return { records };
}
