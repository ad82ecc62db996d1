/** Reports as lines for a terminal, and as Markdown. @module */
import type { Scanned } from "../log/read.ts";
import {
  displayWidth,
  fit,
  fitMiddle,
  formatCount,
  formatDuration,
  formatTime,
  oneLine,
  pad,
  plural,
} from "./format.ts";
import type { RunDetails } from "./source.ts";
import { type FailedRun, type RunSummary, type Status, statusOf } from "./summary.ts";
import {
  type Cell,
  type Column,
  countParts,
  failuresTable,
  groupsTable,
  rateText,
  runsTable,
  staleTable,
  storeFacts,
  type Table,
  windowText,
} from "./tables.ts";

/** The terminal to write for. */
export interface Screen {
  /** How many columns it has. Infinity for a pipe. */
  width: number;
  /** How many lines it has. */
  height: number;
  /** Whether it shows colours. */
  colour: boolean;
}

const COLOURS: Record<Status, number> = { success: 32, failed: 31, partial: 33, running: 36, unknown: 35 };
const BOLD = 1, DIM = 2;
const GAP = 2;
/** The narrowest that a column is cut to. */
const MIN_CUT = 8;

function paint(text: string, code: number | undefined, { colour }: Screen): string {
  return colour && code !== undefined && text !== "" ? `\x1b[${code}m${text}\x1b[0m` : text;
}

/** The whole report, about as long as the screen. */
export function summaryLines(summary: RunSummary, screen: Screen): string[] {
  const section = (table: Table, rows: number, more: string, total = table.rows.length) => {
    const lines = tableLines({ ...table, rows: table.rows.slice(0, rows) }, screen);
    const hidden = total - rows;
    return [
      "",
      paint(fit(table.title, screen.width), BOLD, screen),
      ...lines,
      ...hidden > 0 ? [paint(fit(`and ${formatCount(hidden)} more: ${more}`, screen.width), DIM, screen)] : [],
    ];
  };
  const counts = countParts(summary).map(([text, status]) => paint(text, COLOURS[status], screen)).join("  ");
  const facts = storeFacts(summary).map(([name, value]) => {
    const line = fit(oneLine(value), screen.width - 10);
    return `${paint(pad(name, 8, "left"), DIM, screen)}  ${line}`;
  });
  const lists = Math.max(3, Math.floor((screen.height - 20) / 4));
  const stale = summary.stale.length === 0 ? [] : section(staleTable(summary), lists, "--running");
  const failures = summary.counts.failed === 0
    ? []
    : section(failuresTable(summary), lists, "--failed", summary.counts.failed);
  const used = 5 + 4 + failures.length + stale.length + 2 + facts.length + 1;
  return [
    paint(fit(oneLine(summary.base), screen.width), BOLD, screen),
    fit(windowText(summary), screen.width),
    "",
    `${plural(summary.counts.runs, "run")}${counts === "" ? "" : `  ${counts}`}`,
    ...rateText(summary) === "" ? [] : [fit(rateText(summary), screen.width)],
    ...section(groupsTable(summary), Math.max(5, screen.height - used), "--html or --json"),
    ...failures,
    ...stale,
    "",
    paint("Store", BOLD, screen),
    ...facts,
  ];
}

/** One line for each run, with its whole id. */
export function runLines(runs: FailedRun[], screen: Screen): string[] {
  return tableLines(runsTable(runs), screen, { header: false });
}

/** All fields of a run, its metrics and its events. */
export function detailLines({ run, events }: RunDetails, screen: Screen): string[] {
  const start = new Date(String(run["start_time"])).getTime();
  const { metrics_json, ...fields } = run;
  const width = Math.max(
    ...Object.keys(fields).map((name) => name.length),
    ...metricsOf(metrics_json).map(([n]) => n.length),
  );
  const line = (name: string, value: unknown, code?: number) =>
    `${paint(pad(oneLine(name), width, "left"), DIM, screen)}  ${paint(oneLine(String(value)), code, screen)}`;
  const lines = Object.entries(fields).map(([name, value]) => {
    if (name === "status") return line(name, value, COLOURS[statusOf(String(value))]);
    const isTime = ["start_time", "end_time", "api_posted_at"].includes(name);
    const extra = name === "duration_ms" ? formatDuration(Number(value)) : isTime ? formatTime(String(value)) : "";
    return line(name, extra === "" ? value : `${value} (${extra})`);
  });
  const metrics = metricsOf(metrics_json).map(([name, value]) => line(name, value));
  const happened = events.map(({ event_type, timestamp, payload_json }) => {
    const offset = new Date(timestamp).getTime() - start;
    const when = isNaN(offset) ? "" : `${offset < 0 ? "-" : "+"}${formatDuration(Math.abs(offset))}`;
    return `${pad(when, 11, "right")}  ${paint(oneLine(event_type), BOLD, screen)}  ${oneLine(payload_json ?? "")}`
      .trimEnd();
  });
  const section = (title: string, content: string[]) =>
    content.length === 0 ? [] : ["", paint(title, BOLD, screen), ...content];
  return [
    paint(oneLine(String(run["run_id"])), BOLD, screen),
    ...lines.slice(1),
    ...section("Metrics", metrics),
    ...section(events.length === 0 ? "" : plural(events.length, "event"), happened),
  ];
}

function metricsOf(json: unknown): [name: string, value: string][] {
  try {
    const value = JSON.parse(String(json));
    if (typeof value === "object" && value !== null && !Array.isArray(value)) {
      return Object.entries(value).map((
        [name, value],
      ) => [name, typeof value === "string" ? value : JSON.stringify(value)]);
    }
  } catch { /* shown as it is */ }
  return json === undefined ? [] : [["metrics_json", String(json)]];
}

/** A record that was just written, on one line. `agents` are the names of the agents of known runs. */
export function recordLine(found: Scanned, screen: Screen): string {
  if ("rejected" in found) return paint(`${found.file}:${found.line}: ${found.rejected}`, DIM, screen);
  const { record } = found;
  if (record.record_type === "event") {
    const text = `${record.event_type}  ${record.payload_json ?? ""}`.trimEnd();
    return `${formatTime(record.timestamp)}  ${pad("event", 7, "left")}  ${oneLine(record.run_id)}  ${oneLine(text)}`;
  }
  const status = pad(record.status ?? "unknown", 7, "left");
  const details = [record.job_type, record.duration_ms === null ? null : formatDuration(Number(record.duration_ms))];
  const words = [...details, record.error_summary].filter((word) => word !== null && word !== undefined && word !== "");
  const time = formatTime(record.end_time ?? record.start_time);
  return `${time}  ${paint(oneLine(status), COLOURS[statusOf(record.status)], screen)}  ${oneLine(record.run_id)}  ${
    oneLine(words.join("  "))
  }`.trimEnd();
}

/** A table that is as wide as the screen at most: columns are left out, then cut. */
export function tableLines(table: Table, screen: Screen, { header = true } = {}): string[] {
  if (table.rows.length === 0) return [table.empty];
  const cells = table.rows.map((row) => row.map((cell) => ({ ...cell, text: oneLine(cell.text) })));
  const natural = table.columns.map(({ name }, i) => {
    const widths = cells.map((row) => displayWidth(row[i]!.text));
    return widths.reduce((most, width) => Math.max(most, width), header ? name.length : 0);
  });
  const { shown, widths } = layOut(table.columns, natural, screen.width);
  const line = (texts: Cell[], code?: number) =>
    shown.map((i) => {
      const { align, cut } = table.columns[i]!;
      const { text, status } = texts[i]!;
      const fitted = cut === "middle" ? fitMiddle(text, widths[i]!) : fit(text, widths[i]!);
      const padded = i === shown.at(-1) && align === "left" ? fitted : pad(fitted, widths[i]!, align);
      return paint(padded, status === undefined ? code : COLOURS[status], screen);
    }).join(" ".repeat(GAP)).trimEnd();
  const names = table.columns.map(({ name }) => ({ text: name.toUpperCase() }));
  return [...header ? [line(names, DIM)] : [], ...cells.map((row) => line(row))];
}

/** Which columns fit, and how wide each is. */
function layOut(columns: Column[], natural: number[], width: number): { shown: number[]; widths: number[] } {
  const total = (shown: number[], widths: number[]) => shown.reduce((sum, i) => sum + widths[i]! + GAP, -GAP);
  // 1. Leave out columns until the others fit when they are cut.
  const narrow = natural.map((wide, i) => columns[i]!.cut ? Math.min(wide, MIN_CUT + 4) : wide);
  let shown = columns.map((_, i) => i);
  while (total(shown, narrow) > width) {
    const last = Math.max(...shown.map((i) => columns[i]!.drop));
    if (last === 0) break;
    shown = shown.filter((i) => columns[i]!.drop !== last);
  }
  // 2. Cut the widest columns to the same width.
  const widest = Math.max(0, ...shown.filter((i) => columns[i]!.cut).map((i) => natural[i]!));
  let widths = natural;
  for (let limit = widest; total(shown, widths) > width && limit > MIN_CUT; limit--) {
    widths = natural.map((wide, i) => columns[i]!.cut ? Math.min(wide, limit) : wide);
  }
  return { shown, widths };
}

/** The report as Markdown. */
export function summaryMarkdown(summary: RunSummary): string {
  const table = ({ title, columns, rows, empty }: Table) =>
    rows.length === 0 ? `## ${title}\n\n${empty}\n` : `## ${title}\n\n${
      [
        columns.map(({ name }) => name),
        columns.map(({ align }) => align === "right" ? "---:" : "---"),
        ...rows.slice(0, 1000).map((row) => row.map(({ text }) => markdownText(text))),
      ].map((cells) => `| ${cells.join(" | ")} |`).join("\n")
    }\n`;
  const counts = [plural(summary.counts.runs, "run"), ...countParts(summary).map(([text]) => text), rateText(summary)];
  return [
    `# Runs in ${markdownText(summary.base)}\n`,
    `${windowText(summary)}\n`,
    `${counts.filter((text) => text !== "").join(", ")}\n`,
    ...summary.problem === null ? [] : [`**Read from the log:** ${markdownText(summary.problem)}\n`],
    table(groupsTable(summary)),
    table(failuresTable(summary)),
    table(staleTable(summary)),
    `## Store\n\n${storeFacts(summary).map(([name, value]) => `- ${name}: ${markdownText(value)}`).join("\n")}\n`,
  ].join("\n");
}

/** Text that Markdown and HTML in it leave as it is. */
function markdownText(text: string): string {
  return oneLine(text.slice(0, 1000)).replace(
    /[\\`*_{}[\]<>()#+!|~&$@:-]/g,
    (character) => `&#${character.charCodeAt(0)};`,
  );
}
