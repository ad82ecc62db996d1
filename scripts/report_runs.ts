#!/usr/bin/env -S deno run -q -P
/**
 * Shows what ran, what failed and what hangs: in the terminal, as a page, or as an exit code.
 * @module
 */
import { type Command, type Result, runCommand, type Terminal } from "../lib/cli/command.ts";
import { jsonLine, print } from "../lib/cli/output.ts";
import { TelemetryError } from "../lib/errors.ts";
import { assertUsable } from "../lib/export/export.ts";
import { assertWindow } from "../lib/export/request.ts";
import { ensureFolder, writeFileAtomic } from "../lib/fs/atomic_file.ts";
import { type Layout, newPaths } from "../lib/layout.ts";
import { followLogs } from "../lib/log/tail.ts";
import { summaryPage } from "../lib/report/html.ts";
import { exceeded, type Limits, parseMaxFailed } from "../lib/report/limits.ts";
import { findRun, type RunOrigin } from "../lib/report/source.ts";
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
    failed: { about: "list only the failed runs, one line a run", excludes: [...REPORT, "running", "run", "follow"] },
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
    const options = readOptions(flags);
    const limits = readLimits(flags);
    const format = readFormat(flags);
    const layout = terminal.locate();
    const { output, failed, running, run } = flags;
    if (output !== undefined) assertUsable(layout, String(output), flags["overwrite"] === true);
    if (flags["follow"]) return await follow(terminal, layout, options);
    if (run !== undefined) return await showRun(terminal, layout, String(run));
    if (failed || running) return await list(terminal, layout, { ...options, status: failed ? "failed" : "running" });
    const summary = await summarizeRuns(layout, options);
    const warning = warnOf(terminal, summary);
    const path = format && write(terminal, layout, await FORMATS[format](summary));
    if (path === undefined) show(terminal, summaryLines(summary, screenOf(warning)));
    const limitsExceeded = exceeded(summary, limits);
    for (const limit of limitsExceeded) terminal.warn(limit);
    if (limitsExceeded.length > 0) terminal.exitCode = 1;
    return { ...summary, exceeded: limitsExceeded, ...path === undefined ? {} : { path } };
  });
}

function usage(message: string, hint = `see ${COMMAND.name} --help`): TelemetryError {
  return new TelemetryError("usage", message, { hint });
}

/** The value of a flag as `parse` reads it; undefined when it is not given. */
function read<T>(flags: Terminal["flags"], flag: string, parse: (flag: string, text: string) => T): T | undefined {
  return flags[flag] === undefined ? undefined : parse(flag, String(flags[flag]));
}

function readOptions(flags: Terminal["flags"]): SummaryOptions {
  const now = new Date();
  const time = (dayIs: "start" | "end") => (flag: string, text: string) =>
    new Date(parseLocalTimeFlag(flag, text, now, dayIs) / 1000);
  const [since, until] = [read(flags, "since", time("start")), read(flags, "until", time("end"))];
  assertWindow((since ?? time("start")("since", "7d")).getTime(), (until ?? now).getTime());
  // A name may have a comma.
  const names = (_: string, text: string) => [text, ...text.split(",")];
  const [agents, jobTypes] = [read(flags, "agent", names), read(flags, "job-type", names)];
  return { now, since, until, agents, jobTypes, staleAfterMs: read(flags, "stale-after", parseDurationFlag) };
}

function readLimits(flags: Terminal["flags"]): Limits {
  return {
    maxFailed: read(flags, "max-failed", parseMaxFailed),
    maxStale: read(flags, "max-stale", (flag, text) => {
      if (/^\d{1,9}$/.test(text)) return Number(text);
      throw usage(`--${flag} takes a number of runs, not "${text}"`);
    }),
    maxSilentMs: read(flags, "max-silent", parseDurationFlag),
    maxBackupAgeMs: read(flags, "max-backup-age", parseDurationFlag),
  };
}

/** In which format to write the report. Undefined when it is printed. */
function readFormat({ output, html }: Terminal["flags"]): Format | undefined {
  if (output === undefined) return html ? "html" : undefined;
  const [, ending] = /[^/\\]\.(html|json|md)$/.exec(String(output)) ?? [];
  if (ending !== undefined && (!html || ending === "html")) return ending as Format;
  throw usage(`--output ${output}: the name must end in ${html ? ".html" : ".html, .json or .md"}`);
}

/** The terminal, or what a pipe is written for. The lines of a warning are already on it. */
function screenOf(warning = ""): Screen {
  if (!Deno.stdout.isTerminal()) return { width: Infinity, height: 50, colour: false };
  const size = Deno.consoleSize();
  // A terminal without a size, such as a serial line, has 0.
  const [width, height] = [size.columns || 80, size.rows || 24];
  return { width, height: height - Math.ceil(warning.length / width), colour: !Deno.noColor };
}

function show(terminal: Terminal, lines: string[]): void {
  for (const line of lines) terminal.show(line);
}

/** Warns when the database could not be read. Returns what is printed. */
function warnOf(terminal: Terminal, { problem }: RunOrigin): string {
  if (problem === null) return "";
  const message = `the runs were read from the log: ${problem}`;
  terminal.warn(message);
  return `warning: ${message}`;
}

/** Writes a report to a file, and returns its path. */
function write(terminal: Terminal, { base, reports, database }: Layout, text: string): string {
  const { output, overwrite } = terminal.flags;
  if (output === undefined) ensureFolder(base, reports);
  // Who may not read the database may not read what is in it.
  const options = { replace: overwrite === true, like: database };
  for (const path of output === undefined ? newPaths(reports, "runs_report") : [String(output)]) {
    if (!writeFileAtomic(base, path, new TextEncoder().encode(text), options)) continue;
    terminal.say(path);
    return path;
  }
  throw usage(`${output ?? reports}: another program has created that file`, "run this again");
}

async function list(terminal: Terminal, layout: Layout, options: Parameters<typeof listRuns>[1]): Promise<Result> {
  const found = await listRuns(layout, options);
  warnOf(terminal, found);
  if (found.runs.length > 0 || Deno.stdout.isTerminal()) show(terminal, runLines(found.runs, screenOf()));
  return { ...found };
}

async function showRun(terminal: Terminal, layout: Layout, id: string): Promise<Result> {
  const found = await findRun(layout, id);
  if ("ids" in found) {
    if (found.ids.length > 0) {
      throw usage(`several ids end in ${id}, such as ${found.ids.join(", ")}`, "give more of the id");
    }
    throw usage(`no run has the id ${id}, or one that ends in it`, "report_runs --failed and --running list ids");
  }
  const { run, events, origin } = found;
  warnOf(terminal, origin);
  show(terminal, detailLines(found, screenOf()));
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
      const line = terminal.flags["json"] ? jsonLine(record) : recordLine(found, screenOf());
      if (!print(Deno.stdout, line)) return { records };
    }
  }
  return { records };
}
