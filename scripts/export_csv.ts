#!/usr/bin/env -S deno run --allow-env=TELEMETRY_DB_PATH,TELEMETRY_BASE_DIR,AGENT_METRICS_DIR,TELEMETRY_NDJSON_DIR,HOME,USERPROFILE --allow-read=/agent-metrics,/opt/telemetry,/data/telemetry --allow-write=/agent-metrics,/opt/telemetry,/data/telemetry
/**
 * Exports runs, events or commits as CSV.
 * @module
 */
import { type Exported, exportTo, exportToFile, readRequest } from "../lib/export/export.ts";
import { TelemetryError } from "../lib/errors.ts";
import { megabytes, runCommand, type Terminal } from "../lib/cli/command.ts";

const COMMAND = {
  name: "export_csv",
  summary: "exports runs, events or commits as CSV, while agents write",
  flags: {
    table: { value: "NAME", about: "runs, events (from the log) or commits (default: runs)" },
    output: { value: "PATH", about: "the file, which must not be there yet; - is stdout (default: in exports/)" },
    columns: { value: "A,B", about: "these columns, in this order (default: all)" },
    since: {
      value: "TIME",
      about: "what started (events: happened; commits: were made) then or later: 2025-12-10 (a UTC day), " +
        "2025-12-10T12:05:30Z (without a zone it is UTC), or 7d, 24h, 30m ago",
    },
    until: { value: "TIME", about: "the same before that time; a day alone includes the whole day" },
    "updated-since": { value: "TIME", about: "runs that were made, changed, ended or posted then or later" },
    agent: { value: "A,B", about: "of these agents" },
    status: { value: "A,B", about: "runs that are running, success, failed or partial" },
    for: {
      value: "PROGRAM",
      about: "sheets or excel: disarms formulas, keeps to the program's longest cell; postgres: replaces NUL",
    },
  },
  example: "--since 7d --status failed,partial",
};

if (import.meta.main) {
  await runCommand(COMMAND, async (terminal) => {
    const { flags } = terminal;
    const request = readRequest(flags, new Date());
    const output = flags["output"] as string | undefined;
    if (output === "" || (output === "-" && flags["json"])) {
      throw new TelemetryError("usage", output ? "--json does not go with --output -" : "--output needs a path", {
        hint: `see ${COMMAND.name} --help`,
      });
    }
    const layout = terminal.locate({ writes: output === "-" ? undefined : output });
    if (output === "-") {
      const exported = await exportTo(layout, request, Deno.stdout, "stdout");
      warnOf(terminal, exported, request.program);
      return { ...exported };
    }
    const exported = await exportToFile(layout, request, output, terminal.progress("export", 1));
    warnOf(terminal, exported, request.program);
    terminal.say(`${exported.path}: ${exported.rows} ${exported.table}, ${megabytes(exported.bytes)}`);
    return { ...exported };
  });
}

/** What the table does not show. */
function warnOf({ warn }: Terminal, exported: Exported, program?: string): void {
  const { cut_cells, nul_cells, untimed_rows, rejected_lines } = exported;
  if (cut_cells > 0) warn(`${cut_cells} cells were cut: ${program} takes no longer ones`);
  if (nul_cells > 0) warn(`${nul_cells} cells had NUL, which PostgreSQL cannot hold: U+2400 (␀) stands in its place`);
  if (untimed_rows > 0) warn(`${untimed_rows} rows were left out: their times cannot be told`);
  if (rejected_lines > 0) warn(`${rejected_lines} parts of the log are no records, and were left out`);
}
