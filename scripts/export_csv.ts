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
    if (output === "-" && flags["json"]) {
      throw new TelemetryError("usage", "--json cannot be used with --output -", {
        hint: `see ${COMMAND.name} --help`,
      });
    }
    const layout = terminal.locate();
    const toFile = () =>
      exportToFile(layout, request, {
        path: output,
        overwrite: flags["overwrite"] === true,
        onProgress: terminal.progress("export"),
      });
    const exported = await (output === "-" ? exportTo(layout, request, stdoutSink, "stdout") : toFile());
    warnOf(terminal, exported, request.program);
    if ("path" in exported) {
      const rows = plural(exported.rows, exported.table.slice(0, -1));
      terminal.say(`${exported.path}: ${rows}, ${formatBytes(exported.bytes)}`);
    }
    return { ...exported };
  });
}

/** Warns of what is not in the file as it was, or not shown by its program. */
function warnOf({ warn }: Terminal, exported: Exported, program = "the program"): void {
  const warnings: [before: string, count: number, noun: string, after: string][] = [
    ["cut ", exported.cut_cells, "cell", `: ${program} accepts no longer ones`],
    ["replaced NUL by U+2400 (␀) in ", exported.nul_cells, "cell", ": PostgreSQL cannot store it"],
    ["changed ", exported.changed_cells, "cell", ": not UTF-8, or not what the column accepts"],
    ["left out ", exported.refused_rows, "row", ` whose key ${program} cannot store`],
    ["", exported.not_jsonb, "cell", " of JSON cannot be cast to jsonb: loaded as text"],
    [`${program} rounds `, exported.long_numbers, "number", " to 15 digits: the file has all digits"],
    [`${program} cannot show the last `, exported.excess_rows, "row", ": use --since or --columns"],
    ["left out ", exported.untimed_rows, "row", " whose time cannot be parsed"],
    ["left out ", exported.rejected_lines, "invalid part", " of the log"],
  ];
  for (const [before, count, noun, after] of warnings) {
    if (count > 0) warn(`${before}${plural(count, noun)}${after}`);
  }
  for (const log of exported.unreadable_logs) warn(`${log} cannot be read: its events are left out`);
}
