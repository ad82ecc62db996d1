/** A report as one HTML file that needs nothing else. @module */
import { barsOf, calendar, durationChart, escapeHtml, rateChart, runsChart, STATUS_ORDER } from "./charts.ts";
import { fit, fitMiddle, formatAge, formatCount, formatRate, formatTime, plural } from "./format.ts";
import type { FailedRun, RunSummary } from "./summary.ts";
import { failuresTable, groupsTable, staleTable, storeFacts, type Table, windowText } from "./tables.ts";

const MAX_ROWS = 1000;
/** The longest name, text of a cell, and field of a failed run, in columns of a terminal. */
const MAX_NAME = 60, MAX_CELL = 200, MAX_FIELD = 1000;

/** The whole page. Nothing in it comes from elsewhere, and its policy lets a browser load nothing. */
export async function summaryPage(summary: RunSummary): Promise<string> {
  const bars = barsOf(summary);
  const hash = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(SCRIPT));
  const policy = `default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-${
    btoa(String.fromCharCode(...new Uint8Array(hash)))
  }'`;
  const size = bars[0]?.days.length ?? 1;
  const perBar = size === 1 ? "a day" : `every ${size} days`;
  const base = escapeHtml(fit(summary.base, MAX_CELL));
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
<p>${escapeHtml(windowText(summary))}. Written ${formatTime(summary.now)}. Days are local.</p>
${summary.problem === null ? "" : `<p class="warning">Read from the log: ${escapeHtml(summary.problem)}</p>`}
</header>
<main>
${tiles(summary)}
<section><h2>Runs ${perBar}</h2>${legend(summary)}${runsChart(summary, bars)}</section>
<section><h2>Failure rate ${perBar}</h2>${rateChart(summary, bars)}</section>
${section(groupsTable(summary))}
${section(staleTable(summary))}
${section(failuresTable(summary), ["", "", "", "failure"])}
<section><h2>Duration</h2><p class="note">A tick for each of ${
    plural(summary.points.length, "run")
  }, a bar from p50 to p95; the axis is logarithmic.</p>${durationChart(summary)}</section>
<section><h2>Days with runs</h2><p class="note">The colour is the worst status of the day. A gap is a day without a run.</p>${
    calendar(summary, bars)
  }</section>
<section><h2>Store</h2><dl>${
    storeFacts(summary).map(([name, value]) => `<dt>${name}</dt><dd>${escapeHtml(value)}</dd>`).join("")
  }</dl></section>
${
    summary.failures.length === 0
      ? ""
      : `<section><h2>Details of failures</h2>${summary.failures.map(details).join("\n")}</section>`
  }
</main>
<script>${SCRIPT}</script>
</body>
</html>
`;
}

function tiles({ counts, failure_rate, failure_rate_before, stale, store }: RunSummary): string {
  const before = failure_rate_before === null ? "no runs before" : `${formatRate(failure_rate_before)} before`;
  const backup = store.newest_backup;
  const all: [name: string, value: string, note: string, kind: string][] = [
    ["runs", formatCount(counts.runs), `${formatCount(counts.success)} success`, ""],
    ["failed", formatCount(counts.failed), `${formatCount(counts.partial)} partial`, counts.failed > 0 ? "failed" : ""],
    ["failure rate", formatRate(failure_rate) || "-", before, ""],
    [
      "running",
      formatCount(counts.running),
      `${formatCount(stale.length)} for too long`,
      stale.length > 0 ? "late" : "",
    ],
    ["newest backup", backup === null ? "none" : formatAge(backup.age_ms), backup === null ? "" : "old", ""],
  ];
  return `<div class="tiles">${
    all.map(([name, value, note, kind]) =>
      `<div><span>${name}</span><b class="${kind}">${value}</b><span>${note}</span></div>`
    )
      .join("")
  }</div>`;
}

function legend({ counts }: RunSummary): string {
  return `<p class="legend">${
    STATUS_ORDER.filter((status) => counts[status] > 0).map((status) =>
      `<span><i class="${status}"></i>${status}</span>`
    ).join("")
  }</p>`;
}

/** A table. Cells of a column whose kind is `failure` link to the details of the run. */
function section({ title, columns, rows, empty }: Table, kinds: string[] = []): string {
  if (rows.length === 0) return `<section><h2>${title}</h2><p class="note">${empty}</p></section>`;
  const head = columns.map(({ name, align }) => `<th class="${align}" scope="col"><button>${name}</button></th>`).join(
    "",
  );
  const body = rows.slice(0, MAX_ROWS).map((cells, i) =>
    `<tr>${
      cells.map(({ text, sort, status }, column) => {
        const shown = escapeHtml(columns[column]!.cut === "middle" ? fitMiddle(text, MAX_NAME) : fit(text, MAX_CELL));
        const content = kinds[column] === "failure" ? `<a href="#failure-${i + 1}">${shown}</a>` : shown;
        const colour = status === undefined ? "" : ` text-${status}`;
        const key = sort === undefined ? "" : ` data-sort="${escapeHtml(String(sort))}"`;
        return `<td class="${columns[column]!.align}${
          columns[column]!.cut ? " cut" : ""
        }${colour}"${key}>${content}</td>`;
      }).join("")
    }</tr>`
  );
  const note = rows.length > MAX_ROWS
    ? `<p class="note">The first ${MAX_ROWS} of ${formatCount(rows.length)}.</p>`
    : "";
  return `<section><h2>${title}</h2><div class="scroll"><table${
    columns.at(-1)!.cut ? ' class="stack"' : ""
  }><thead><tr>${head}</tr></thead><tbody>${body.join("\n")}</tbody></table></div>${note}</section>`;
}

function details({ run_id, start_time, agent_name, fields }: FailedRun, i: number): string {
  const list = Object.entries(fields)
    .map(([name, value]) => `<dt>${escapeHtml(name)}</dt><dd>${escapeHtml(fit(String(value), MAX_FIELD))}</dd>`).join(
      "",
    );
  return `<details id="failure-${i + 1}"><summary>${formatTime(start_time)} ${escapeHtml(fit(agent_name, 60))} <code>${
    escapeHtml(fit(run_id, MAX_CELL))
  }</code></summary><dl>${list}</dl></details>`;
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
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1c2128; --soft: #5c6570; --line: #dde1e6; --empty: #eceff2;
  --success: #3f9f74; --partial: #d99a1c; --running: #3d84d6; --unknown: #8b929b; --failed: #cf3f4b; --link: #1f5fbf; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #1d2126; --text: #e4e7eb; --soft: #9aa3ad; --line: #343a42;
  --empty: #282d33; --success: #4fb286; --partial: #e0ad45; --running: #5b9ee8; --unknown: #8b929b; --failed: #ee6470; --link: #8ab8ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1200px; padding: 16px; background: var(--page); color: var(--text); font: 14px/1.45 system-ui, sans-serif; }
h1 { font-size: 22px; margin: 8px 0 4px; } h2 { font-size: 15px; margin: 0 0 10px; }
.path, code { font-family: ui-monospace, monospace; overflow-wrap: anywhere; } header p, .note { color: var(--soft); margin: 0 0 10px; }
header .warning { color: var(--failed); font-weight: 600; overflow-wrap: anywhere; }
section, .tiles > div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
section { padding: 14px 16px; margin: 0 0 14px; min-width: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px; margin: 12px 0 14px; }
.tiles > div { padding: 10px 14px; display: flex; flex-direction: column; } .tiles span { color: var(--soft); }
.tiles b { font-size: 24px; line-height: 1.3; font-weight: 600; } .tiles b.failed { color: var(--failed); } .tiles b.late { color: var(--partial); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 14px; margin: 0 0 10px; color: var(--soft); }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 5px; }
.success { fill: var(--success); } .partial { fill: var(--partial); } .running { fill: var(--running); } .unknown { fill: var(--unknown); } .failed { fill: var(--failed); }
i.success { background: var(--success); } i.partial { background: var(--partial); } i.running { background: var(--running); } i.unknown { background: var(--unknown); } i.failed { background: var(--failed); }
svg { display: block; width: 100%; } .bars { height: 180px; } .rate { height: 110px; } .spread { height: 20px; } .strip { height: 14px; background: var(--empty); border-radius: 2px; }
.bars, .rate { border-bottom: 1px solid var(--line); border-top: 1px dashed var(--line); }
.line, .ticks, .median { fill: none; vector-effect: non-scaling-stroke; } .line { stroke: var(--failed); stroke-width: 2; }
.ticks { stroke: var(--running); stroke-width: 1; opacity: .55; } .median { stroke: var(--text); stroke-width: 2; } .range { fill: var(--running); opacity: .35; }
.target { fill: transparent; } .target:hover { fill: var(--empty); opacity: .6; }
.frame { display: grid; grid-template-columns: auto 1fr; gap: 4px 8px; } .frame .dates { grid-column: 2; }
.axis { display: flex; flex-direction: column; justify-content: space-between; text-align: right; color: var(--soft); font-size: 12px; line-height: 1; min-width: 36px; }
.dates { display: flex; justify-content: space-between; color: var(--soft); font-size: 12px; }
.row { display: grid; grid-template-columns: minmax(90px, 26%) 1fr 70px 70px; gap: 10px; align-items: center; padding: 2px 0; }
.strips .row { grid-template-columns: minmax(90px, 26%) 1fr 60px; }
.row .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; } .value { text-align: right; color: var(--soft); font-variant-numeric: tabular-nums; white-space: nowrap; }
.scroll { overflow: auto; max-height: 640px; } thead th { position: sticky; top: 0; background: var(--card); } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 8px; border-bottom: 1px solid var(--line); vertical-align: top; white-space: nowrap; } tr:last-child td { border-bottom: 0; }
th { text-align: left; } th button { all: unset; cursor: pointer; color: var(--soft); font-weight: 600; } th button:focus-visible { outline: 2px solid var(--link); }
th[aria-sort="descending"] button::after { content: " ↓"; } th[aria-sort="ascending"] button::after { content: " ↑"; }
.right { text-align: right; } .left { text-align: left; } td.cut { white-space: normal; overflow-wrap: anywhere; min-width: 110px; } td.cut:last-child { min-width: 210px; }
.text-success { color: var(--success); } .text-partial { color: var(--partial); } .text-running { color: var(--running); } .text-failed { color: var(--failed); }
a { color: inherit; text-decoration-color: var(--soft); } a:hover { color: var(--link); }
details { border-bottom: 1px solid var(--line); padding: 6px 0; } details:last-child { border: 0; } summary { cursor: pointer; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 14px; margin: 8px 0; } dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 600px) { body { padding: 10px; } section { padding: 12px; } .row { grid-template-columns: 32% 1fr 58px 58px; gap: 6px; font-size: 12px; } .strips .row { grid-template-columns: 32% 1fr 42px; } .bars { height: 140px; } th, td { padding: 5px 6px; }
  .rows .dates span:nth-child(2):nth-last-child(2) { display: none; } .stack thead { display: none; } .stack td { border: 0; }
  .stack tr { display: grid; grid-template-columns: max-content 1fr 1fr; border-bottom: 1px solid var(--line); } .stack td:last-child { grid-column: 1 / -1; padding-top: 0; } }
@media print { :root { color-scheme: light; --page: #fff; --card: #fff; --text: #000; --soft: #444; --line: #ccc; --empty: #eee;
  --success: #3f9f74; --partial: #d99a1c; --running: #3d84d6; --failed: #cf3f4b; } body { max-width: none; padding: 0; font-size: 11px; }
  svg, i, .strip { print-color-adjust: exact; -webkit-print-color-adjust: exact; } section { border: 0; padding: 4px 0; } .scroll { overflow: visible; max-height: none; } tr, .row, .frame, .tiles { break-inside: avoid; } h2 { break-after: avoid; } th, td { padding: 3px 5px; } }
`;
