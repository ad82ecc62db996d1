#!/usr/bin/env -S deno run -q -P
/**
 * Exports runs, events or commits as CSV.
 * @module
 */
import { type Exported, exportTo, exportToFile } from "../lib/export/export.ts";
import { readRequest } from "../lib/export/request.ts";
import { TelemetryError } from "../lib/errors.ts";
import { type Command, runCommand, type Terminal } from "../lib/cli/command.ts";
import { stdoutSink } from "../lib/cli/output.ts";
import { formatBytes, plural } from "../lib/format.ts";

/** The flags and permissions of this script. */
export const COMMAND: Command = {
  name: "export_csv",
  summary: "exports runs, events or commits as CSV, while agents write",
  flags: {
    table: { value: "NAME", about: "runs, events (from the log) or commits (default: runs)" },
    output: {
      value: "PATH",
      path: "write",
      writes: ["db"],
      about: "the file; - is stdout (default: a new file in exports/)",
    },
    overwrite: { about: "with --output: replace the file if it exists" },
    columns: { value: "A,B", about: "these columns, in this order (default: all)" },
    since: {
      value: "TIME",
      about: "runs that started then or later (events: happened; commits: date of the commit): a UTC day " +
        "(2025-12-10), a time (2025-12-10T12:05:30Z), or an age (7d, 24h, 30m)",
    },
    until: { value: "TIME", about: "the same, before that time; a day includes all of it" },
    "updated-since": { value: "TIME", about: "runs that were created, changed, ended or posted then or later" },
    agent: { value: "A,B", about: "only these agents" },
    status: { value: "A,B", about: "only runs with these statuses: running, success, failed, partial" },
    for: {
      value: "PROGRAM",
      about: "sheets or excel: escapes formulas, and cuts cells that are too long; postgres: replaces NUL",
    },
  },
  writes: ["db", "exports"],
  example: "--since 7d --status failed,partial",
};

if (import.meta.main) {
  await runCommand(COMMAND, async (terminal) => {
    const { flags } = terminal;
    const request = readRequest(flags, new Date());
    const output = flags["output"] as string | undefined;
    if (output === "" || (output === "-" && flags["json"])) {
      throw new TelemetryError("usage", output ? "--json cannot be used with --output -" : "--output needs a path", {
        hint: `see ${COMMAND.name} --help`,
      });
    }
    const layout = terminal.locate();
    if (output === "-") {
      const exported = await exportTo(layout, request, stdoutSink, "stdout");
      warnOf(terminal, exported, request.program);
      return { ...exported };
    }
    const onProgress = terminal.progress("export", 1);
    const overwrite = flags["overwrite"] === true;
    const exported = await exportToFile(layout, request, { path: output, overwrite, onProgress });
    warnOf(terminal, exported, request.program);
    const rows = plural(exported.rows, exported.table.slice(0, -1));
    terminal.say(`${exported.path}: ${rows}, ${formatBytes(exported.bytes)}`);
    return { ...exported };
  });
}

/** Warns of what is not in the file as it was, or not shown by its program. */
function warnOf({ warn }: Terminal, exported: Exported, program = "the program"): void {
  const { cut_cells, nul_cells, changed_cells, long_numbers, excess_rows, refused_rows, not_jsonb } = exported;
  const { untimed_rows, rejected_lines, unreadable_logs } = exported;
  if (cut_cells > 0) warn(`cut ${plural(cut_cells, "cell")}: ${program} accepts no longer ones`);
  if (nul_cells > 0) warn(`replaced NUL by U+2400 (␀) in ${plural(nul_cells, "cell")}: PostgreSQL cannot store it`);
  if (changed_cells > 0) {
    warn(`changed ${plural(changed_cells, "cell")} that ${changed_cells > 1 ? "are" : "is"} not what the column says`);
  }
  if (refused_rows > 0) warn(`left out ${plural(refused_rows, "row")} whose key ${program} cannot store`);
  if (not_jsonb > 0) warn(`${plural(not_jsonb, "cell")} of JSON cannot be cast to jsonb: loaded as text`);
  if (long_numbers > 0) {
    warn(`${program} rounds ${plural(long_numbers, "number")} to 15 digits: the file has all digits`);
  }
  if (excess_rows > 0) warn(`${program} cannot show the last ${plural(excess_rows, "row")}: use --since or --columns`);
  if (untimed_rows > 0) warn(`left out ${plural(untimed_rows, "row")} whose time cannot be parsed`);
  if (rejected_lines > 0) warn(`left out ${plural(rejected_lines, "invalid part")} of the log`);
  for (const log of unreadable_logs) warn(`${log} cannot be read: its events are left out`);
}
