/** Reports as lines for a terminal, and as Markdown. @module */
import { formatCount, oneLine } from "../format.ts";
import type { ScannedRecord } from "../log/read.ts";
import { displayWidth, fit, formatDuration, formatTime, pad } from "./format.ts";
import type { RunDetails } from "./source.ts";
import { type FailedRun, type RunSummary, type Status, statusOf } from "./summary.ts";
import {
  type Cell,
  type Column,
  countCells,
  eventsTable,
  fieldsTable,
  rateText,
  runsTable,
  type Table,
  tablesOf,
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
/** A table with fewer rows gets them instead of blank lines. */
const FEW_ROWS = 2;
/** How many rows of a table Markdown has at most. */
const MAX_ROWS = 1000;

function paint(text: string, code: number | undefined, { colour }: Screen): string {
  return colour && code !== undefined && text !== "" ? `\x1b[${code}m${text}\x1b[0m` : text;
}

const colourOf = ({ status }: Cell) => status && COLOURS[status];

/** The whole report. Each table has as many rows as the screen has room for, one at least. */
export function summaryLines(summary: RunSummary, screen: Screen): string[] {
  const line = (text: string, code?: number) => paint(fit(text, screen.width), code, screen);
  const heading = [
    line(oneLine(summary.base), BOLD),
    line(windowText(summary)),
    "",
    ...countLines(summary, screen),
    line(rateText(summary)),
  ];
  const section = (table: Table, limit: number) => {
    const { shown, hidden } = rowsWithin(table, limit);
    const note = hidden > 0 ? [line(`and ${formatCount(hidden)} more: ${table.all?.flag}`, DIM)] : [];
    return ["", line(table.title, BOLD), ...tableLines({ ...table, rows: shown }, screen), ...note];
  };
  const tables = tablesOf(summary).filter(({ rows }, i) => i === 0 || rows.length > 0);
  const render = (limits: number[]) => [...heading, ...tables.flatMap((table, i) => section(table, limits[i]!))];
  const isBlank = (line: string) => line === "";
  const shortest = render(tables.map(() => 1));
  // 1. Of the lines of the screen, one is for the next prompt.
  const room = screen.height - 1 - shortest.length;
  const limits = shareOut(tables, room);
  if (limits.every((limit, i) => limit >= Math.min(FEW_ROWS, tables[i]!.rows.length))) return render(limits);
  // 2. On a low screen, rows replace blank lines.
  return render(shareOut(tables, room + shortest.filter(isBlank).length)).filter((line) => !isBlank(line));
}

/** The rows that a table shows. The line that names one hidden row has room for that row. */
function rowsWithin({ rows, all }: Table, limit: number): { shown: Cell[][]; hidden: number } {
  const shown = all && all.rows > limit + 1 ? rows.slice(0, limit) : rows;
  return { shown, hidden: (all?.rows ?? rows.length) - shown.length };
}

/** How many rows each table shows: one, and more in turn while there is room for their lines. */
function shareOut(tables: Table[], room: number): number[] {
  const linesOf = (table: Table, limit: number) => {
    const { shown, hidden } = rowsWithin(table, limit);
    return shown.length + Math.min(1, hidden);
  };
  const limits = tables.map(() => 1);
  for (let i = 0, refused = 0; refused < tables.length; i = (i + 1) % tables.length) {
    const [table, limit] = [tables[i]!, limits[i]!];
    const lines = linesOf(table, limit + 1) - linesOf(table, limit);
    refused++;
    if (limit >= table.rows.length || lines > room) continue;
    limits[i]!++;
    room -= lines;
    refused = 0;
  }
  return limits;
}

/** The counts by status, on as few lines as the screen allows. */
function countLines(summary: RunSummary, screen: Screen): string[] {
  const lines: Cell[][] = [];
  for (const cell of countCells(summary)) {
    const longer = [...lines.at(-1) ?? [], cell];
    const width = longer.reduce((sum, { text }) => sum + text.length + GAP, -GAP);
    if (lines.length > 0 && width <= screen.width) lines[lines.length - 1] = longer;
    else lines.push([cell]);
  }
  return lines.map((cells) => cells.map((cell) => paint(cell.text, colourOf(cell), screen)).join(" ".repeat(GAP)));
}

/** One line for each run, with its whole id. */
export function runLines(runs: FailedRun[], screen: Screen): string[] {
  return tableLines(runsTable(runs), screen);
}

/** All fields of a run, its metrics and its events, whole: the terminal wraps them. */
export function detailLines({ run, events }: RunDetails, { colour }: Pick<Screen, "colour">): string[] {
  const screen = { width: Infinity, height: Infinity, colour };
  const { run_id, metrics_json, ...fields } = run;
  const others = [
    fieldsTable("Metrics", metricsOf(metrics_json)),
    eventsTable(events, Date.parse(String(run["start_time"]))),
  ];
  return [
    paint(oneLine(String(run_id)), BOLD, screen),
    ...tableLines(fieldsTable("", fields), screen),
    ...others.filter(({ rows }) => rows.length > 0).flatMap((table) => ["", table.title, ...tableLines(table, screen)]),
  ];
}

function metricsOf(json: unknown): Record<string, unknown> {
  try {
    const value = JSON.parse(String(json ?? "{}"));
    if (typeof value === "object" && value !== null) return value;
  } catch { /* shown as it is */ }
  return { metrics_json: json };
}

/** A record that was just written, on one line. */
export function recordLine({ record }: ScannedRecord, screen: Screen): string {
  const line = (time: string, kind: string, code: number | undefined, words: (string | null)[]) => {
    const shown = paint(pad(oneLine(kind), 7, "left"), code, screen);
    const text = words.filter((word) => word !== null && word !== "").join("  ");
    return `${formatTime(time)}  ${shown}  ${oneLine(record.run_id)}  ${oneLine(text)}`.trimEnd();
  };
  if (record.record_type === "event") {
    return line(record.timestamp, "event", undefined, [record.event_type, record.payload_json]);
  }
  const { start_time, end_time, status, job_type, duration_ms, error_summary } = record;
  const duration = duration_ms === null ? null : formatDuration(Number(duration_ms));
  const code = COLOURS[statusOf(status)];
  return line(end_time ?? start_time, status ?? "unknown", code, [job_type, duration, error_summary]);
}

/** A table that is as wide as the screen at most: columns are left out, then cut. */
function tableLines({ columns, rows, isPlain }: Table, screen: Screen): string[] {
  if (rows.length === 0) return ["no runs"];
  const names = columns.map(({ name }): Cell => ({ text: name.toUpperCase() }));
  const safe = rows.map((row) => row.map((cell) => ({ ...cell, text: oneLine(cell.text) })));
  const all = isPlain ? safe : [names, ...safe];
  const natural = names.map((_, i) => all.reduce((most, row) => Math.max(most, displayWidth(row[i]!.text)), 0));
  const { shown, widths } = layOut(columns, natural, screen.width);
  return all.map((row) =>
    shown.map((i) => {
      const { align, cut } = columns[i]!;
      const text = pad(fit(row[i]!.text, widths[i]!, cut ?? "middle"), widths[i]!, align);
      return paint(i === shown.at(-1) ? text.trimEnd() : text, row === names ? DIM : colourOf(row[i]!), screen);
    }).join(" ".repeat(GAP)).trimEnd()
  );
}

/** Which columns fit, and how wide each is. */
function layOut(columns: Column[], natural: number[], width: number): { shown: number[]; widths: number[] } {
  const total = (shown: number[], widths: number[]) => shown.reduce((sum, i) => sum + widths[i]! + GAP, -GAP);
  const cutTo = (limit: number) => natural.map((wide, i) => columns[i]!.cut ? Math.min(wide, limit) : wide);
  // 1. Choose the columns that fit when the others are cut, the most important first.
  const narrow = cutTo(MIN_CUT + 4);
  const shown: number[] = [];
  for (const i of columns.keys().toArray().sort((a, b) => columns[a]!.drop - columns[b]!.drop)) {
    if (columns[i]!.drop === 0 || total([...shown, i], narrow) <= width) shown.push(i);
  }
  shown.sort((a, b) => a - b);
  // 2. Cut the widest columns to the same width.
  let limit = Math.min(width, Math.max(...natural));
  while (total(shown, cutTo(limit)) > width && limit > MIN_CUT) limit--;
  const widths = cutTo(limit);
  // 3. Cut an id only when no other column is left to cut. Its end is enough to find its run.
  const excess = total(shown, widths) - width;
  const [widest] = shown.filter((i) => columns[i]!.align === "left").sort((a, b) => widths[b]! - widths[a]!);
  if (excess > 0 && widest !== undefined) widths[widest] = Math.max(MIN_CUT, widths[widest]! - excess);
  return { shown, widths };
}

/** The report as Markdown. */
export function summaryMarkdown(summary: RunSummary): string {
  const line = (cells: string[]) => `| ${cells.join(" | ")} |\n`;
  const table = ({ title, columns, rows }: Table) => {
    const head = line(columns.map(({ name }) => name)) +
      line(columns.map(({ align }) => align === "right" ? "---:" : "---"));
    const body = rows.slice(0, MAX_ROWS).map((row) => line(row.map(({ text }) => markdownText(text))));
    return `## ${title}\n\n${rows.length === 0 ? "no runs\n" : head + body.join("")}`;
  };
  const problem = summary.problem === null ? [] : [`**Read from the log:** ${markdownText(summary.problem)}\n`];
  return [
    `# Runs in ${markdownText(summary.base)}\n`,
    `${windowText(summary)}\n`,
    `${countCells(summary).map(({ text }) => text).join(", ")}; ${rateText(summary)}\n`,
    ...problem,
    ...tablesOf(summary).map(table),
  ].join("\n");
}

/** Text that Markdown and HTML in it leave as it is. */
function markdownText(text: string): string {
  return oneLine(text.slice(0, 1000)).replace(
    /[\\`*_{}[\]<>()#+!|~&$@:-]/g,
    (character) => `&#${character.charCodeAt(0)};`,
  );
}
