/** A report as one HTML file that needs nothing else. @module */
import { formatCount, plural } from "../format.ts";
import { barsOf, calendar, durationChart, escapeHtml, rateChart, runsChart } from "./charts.ts";
import { fit, formatTime } from "./format.ts";
import type { FailedRun, RunSummary } from "./summary.ts";
import { type Cell, type Column, countCells, rateText, type Table, tablesOf, windowText } from "./tables.ts";

const MAX_ROWS = 1000;
/** The longest name, text of a cell, and field of a failed run, in columns of a terminal. */
const MAX_NAME = 60, MAX_CELL = 200, MAX_FIELD = 1000;

/** The whole page. Nothing in it comes from elsewhere, and its policy lets a browser load nothing. */
export async function summaryPage(summary: RunSummary): Promise<string> {
  const { counts, failure_rate, points, failures, problem } = summary;
  const bars = barsOf(summary);
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(SCRIPT))).toBase64();
  const policy = `default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-${hash}'`;
  const base = escapeHtml(fit(summary.base, MAX_CELL));
  const ticks = `A tick for each of ${plural(points.length, "run")}, a bar from p50 to p95; the axis is logarithmic.`;
  const days = bars[0]!.length;
  const [span, perBar] = days === 1 ? ["a day", "a day"] : [`${days} days`, `every ${days} days`];
  const worst = `The colour is the worst status of ${span}. A gap is ${span} without a run.`;
  const tables = tablesOf(summary);
  const store = tables.pop()!;
  const sections = [
    section(`Runs ${perBar}`, counts.runs === 0 ? note("no runs") : runsChart(summary, bars)),
    section(`Failure rate ${perBar}`, failure_rate === null ? note("no ended runs") : rateChart(summary, bars)),
    ...tables.map(table),
    section("Duration", points.length === 0 ? note("no durations") : note(ticks) + durationChart(summary)),
    section("Days with runs", counts.runs === 0 ? note("no runs") : note(worst) + calendar(summary, bars)),
    table(store),
    ...failures.length === 0 ? [] : [section("Details of failures", failures.map(details).join("\n"))],
  ];
  return `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<link rel="icon" href="data:,">
<title>Runs in ${base}</title>
<style>${STYLE}</style>
</head>
<body>
<header>
<h1>Runs in <span class="path">${base}</span></h1>
<p>${escapeHtml(windowText(summary))}; ${rateText(summary)}. Written ${formatTime(summary.now)}. Days are local.</p>
${problem === null ? "" : `<p class="warning">Read from the log: ${escapeHtml(problem)}</p>`}
</header>
<main>
${tiles(summary)}
${sections.join("\n")}
</main>
<script>${SCRIPT}</script>
</body>
</html>
`;
}

function section(title: string, content: string): string {
  return `<section><h2>${title}</h2>${content}</section>`;
}

function note(text: string): string {
  return `<p class="note">${text}</p>`;
}

/** The counts of the window. The colours are those of the charts. */
function tiles(summary: RunSummary): string {
  const all = countCells(summary).map(({ text, status = "" }) => {
    const [count, name] = text.split(" ");
    return `<div class="${status}"><b>${count}</b>${name}</div>`;
  });
  return `<div class="tiles">${all.join("")}</div>`;
}

/** A table that a click on a header sorts. */
function table({ title, columns, rows, isPlain, all }: Table): string {
  if (rows.length === 0) return section(title, note("no runs"));
  const names = columns.map((column) => `<th${classOf(column)} scope="col"><button>${column.name}</button></th>`);
  const head = isPlain ? "" : `<thead><tr>${names.join("")}</tr></thead>`;
  const shown = rows.slice(0, MAX_ROWS);
  const body = shown.map((cells) => `<tr>${cells.map((cell, i) => tableCell(cell, columns[i]!)).join("")}</tr>`);
  const rest = all && all.rows > shown.length
    ? note(`${formatCount(shown.length)} of ${formatCount(all.rows)} rows`)
    : "";
  // In a narrow window, the last column of such a table gets its own line.
  const kind = columns.at(-1)!.cut ? ' class="stack"' : "";
  const content = `<table${kind}>${head}<tbody>${body.join("\n")}</tbody></table>`;
  return section(title, `<div class="scroll">${content}</div>${rest}`);
}

function tableCell({ text, sort, status, link }: Cell, column: Column): string {
  const shown = escapeHtml(fit(text, column.cut === "middle" ? MAX_NAME : MAX_CELL, column.cut));
  const key = sort === undefined ? "" : ` data-sort="${sort}"`;
  return `<td${classOf(column, status)}${key}>${link === undefined ? shown : `<a href="${link}">${shown}</a>`}</td>`;
}

function classOf({ align, cut, drop }: Column, status = ""): string {
  return ` class="${[align, cut && "cut", drop > 0 && "drop", status].filter(Boolean).join(" ")}"`;
}

function details({ run_id, start_time, agent_name, fields }: FailedRun, i: number): string {
  const title = `${formatTime(start_time)} ${escapeHtml(fit(agent_name, MAX_NAME))}`;
  // The last line of a stack trace names the error.
  const linesOf = (value: unknown) => fit(String(value), MAX_FIELD, "middle").split(/\r?\n/).map(escapeHtml).join("\n");
  const list = Object.entries(fields).map(([name, value]) => `<dt>${escapeHtml(name)}</dt><dd>${linesOf(value)}</dd>`);
  return `<details id="failure-${i + 1}"><summary>${title} <code>${escapeHtml(fit(run_id, MAX_CELL))}</code></summary>
<dl>${list.join("")}</dl></details>`;
}

/** Sorts tables, and opens the details that a link leads to. */
const SCRIPT = `
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const th = button.parentElement, column = th.cellIndex, body = th.closest("table").tBodies[0];
    const down = th.getAttribute("aria-sort") !== "descending";
    for (const other of th.parentElement.cells) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
    const compare = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
    const rows = [...body.rows].sort((a, b) => compare(key(a), key(b)));
    body.append(...(down ? rows.reverse() : rows));
  });
}
const open = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target?.tagName === "DETAILS") { target.open = true; target.scrollIntoView(); }
};
addEventListener("hashchange", open);
open();
`;

const STYLE = `
:root { color-scheme: light; --page: #f6f7f9; --card: #fff; --text: #1c2128; --soft: #5c6570; --line: #dde1e6; --empty: #eceff2;
  --success: #27794f; --partial: #946000; --running: #2a6ab6; --unknown: #69717b; --failed: #c8323f; }
@media screen and (prefers-color-scheme: dark) { :root { color-scheme: dark; --page: #14171b; --card: #1d2126; --text: #e4e7eb;
  --soft: #9aa3ad; --line: #343a42; --empty: #282d33; --success: #4fb286; --partial: #e0ad45; --running: #5b9ee8; --unknown: #8b929b; --failed: #ee6470; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1200px; padding: 16px; background: var(--page); color: var(--text); font: 14px/1.45 system-ui, sans-serif; }
h1 { font-size: 22px; margin: 8px 0 4px; } h2 { font-size: 15px; margin: 0 0 10px; }
.path, code { font-family: ui-monospace, monospace; overflow-wrap: anywhere; } header p, .note { color: var(--soft); margin: 0 0 10px; }
.success { color: var(--success); } .partial { color: var(--partial); } .running { color: var(--running); } .unknown { color: var(--unknown); } .failed, header .warning { color: var(--failed); }
section, .tiles > div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
section { padding: 14px 16px; margin: 0 0 14px; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 12px 0 14px; } .tiles > div { padding: 10px 14px; flex: 1 0 110px; border-left: 4px solid; }
.tiles b { display: block; font-size: 24px; line-height: 1.3; font-weight: 600; } .note, .value, .axis, .scale, dt { color: var(--soft); }
svg { display: block; width: 100%; fill: currentColor; print-color-adjust: exact; } .bars { height: 180px; } .rate { height: 110px; } .spread { height: 20px; } .strip { height: 14px; background: var(--empty); border-radius: 2px; }
.bars, .rate { border-bottom: 1px solid var(--line); border-top: 1px dashed var(--line); }
.line, .ticks, .median { fill: none; vector-effect: non-scaling-stroke; } .line { stroke: var(--failed); stroke-width: 2; }
.ticks { stroke: var(--running); stroke-width: 1; opacity: .55; } .median { stroke: var(--text); stroke-width: 2; } .range { fill: var(--running); opacity: .35; }
.target { fill: transparent; } .target:hover { fill: var(--text); opacity: .12; }
.frame { display: grid; grid-template-columns: auto 1fr; gap: 4px 8px; } .frame .axis { grid-column: 2; }
.scale { display: flex; flex-direction: column; justify-content: space-between; text-align: right; font-size: 12px; line-height: 1; min-width: 46px; }
.axis { display: flex; justify-content: space-between; font-size: 12px; }
.row { display: grid; grid-template-columns: minmax(90px, 26%) 1fr 70px 70px; gap: 10px; align-items: center; padding: 2px 0; } .strips .row { grid-template-columns: minmax(90px, 26%) 1fr 60px; }
.name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; } .value { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.scroll { overflow: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
@media screen { .scroll { max-height: 960px; } thead th { position: sticky; top: 0; background: var(--card); } }
th, td { padding: 5px 8px; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; white-space: nowrap; } tr:last-child td { border-bottom: 0; } .right { text-align: right; }
th button { all: unset; cursor: pointer; color: var(--soft); font-weight: 600; } th button:focus-visible { outline: 2px solid var(--running); }
th[aria-sort="descending"] button::after { content: " ↓"; } th[aria-sort="ascending"] button::after { content: " ↑"; }
td.cut { white-space: normal; overflow-wrap: anywhere; min-width: 110px; } td.cut:last-child { min-width: 210px; }
a { color: inherit; text-decoration-color: var(--soft); } a:hover { text-decoration-color: currentColor; }
details { border-bottom: 1px solid var(--line); padding: 6px 0; } details:last-child { border: 0; } summary { cursor: pointer; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 14px; margin: 8px 0; } dd { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }
@media (max-width: 600px) { body { padding: 10px; } section { padding: 12px; } .bars { height: 140px; } table { font-size: 13px; } th, td { padding: 5px 4px; } .drop { display: none; } td.cut { min-width: 100px; }
  .row { grid-template-columns: 32% 1fr 58px 58px; gap: 6px; font-size: 12px; } .strips .row { grid-template-columns: 32% 1fr 42px; } .spreads .axis span:nth-child(2) { display: none; }
  .stack thead { display: none; } .stack tr { display: grid; grid-template-columns: max-content 1fr 1fr; border-bottom: 1px solid var(--line); }
  .stack td { border: 0; } .stack td:last-child { grid-column: 1 / -1; padding-top: 0; } }
@media print { :root { --page: #fff; --text: #000; } body { max-width: none; padding: 0; font-size: 11px; }
  section { border: 0; padding: 4px 0; } .scroll { overflow: visible; } tr, .row, .frame { break-inside: avoid; } h2 { break-after: avoid; } th, td { padding: 3px 5px; } }
`;
