/** The charts of a report page: shapes as inline SVG, which stretch, and labels as HTML, which do not. @module */
import { fitMiddle, formatCount, formatDuration, formatRate, oneLine, plural } from "./format.ts";
import { localDate } from "./statistics.ts";
import { failureRate, type GroupSummary, type RunSummary, type Status, type StatusCounts } from "./summary.ts";

/** From the bottom of a bar to its top. */
export const STATUS_ORDER: readonly Status[] = ["success", "partial", "running", "unknown", "failed"];
const MAX_BARS = 120;
/** How many days one bar can stand for. */
const BAR_DAYS = [1, 7, 28, 91, 364];
const MAX_NAME = 30;
const MAX_DURATION_ROWS = 40, MAX_STRIPS = 100;

/** Text that HTML shows as it is. */
export function escapeHtml(text: string): string {
  return oneLine(text).replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}

/** Some days that share a bar. */
interface Bar {
  /** The first day. */
  label: string;
  days: string[];
}

/** All days of the window, from the first that has runs if that is later than 120 days after the start. */
export function barsOf({ since, until, now, days }: RunSummary): Bar[] {
  const known = Object.keys(days);
  const end = [localDate(new Date(until === null ? now : Date.parse(until) - 1)), ...known.slice(-1)].sort().at(-1)!;
  const start = localDate(new Date(since));
  const all = daysBetween(start, end);
  const shown = all.length <= MAX_BARS ? all : daysBetween(known[0] ?? end, end);
  const size = BAR_DAYS.find((size) => shown.length / size <= MAX_BARS) ?? Math.ceil(shown.length / MAX_BARS);
  const bars: Bar[] = [];
  for (let at = 0; at < shown.length; at += size) {
    bars.push({ label: shown[at]!, days: shown.slice(at, at + size) });
  }
  return bars;
}

function daysBetween(first: string, last: string): string[] {
  const days: string[] = [];
  // In UTC, where each day has 24 hours.
  for (let at = Date.parse(first); at <= Date.parse(last) && days.length < 40_000; at += 86_400_000) {
    days.push(new Date(at).toISOString().slice(0, 10));
  }
  return days;
}

function sumOf(days: Record<string, StatusCounts>, bar: Bar): StatusCounts {
  const sum: StatusCounts = { runs: 0, success: 0, failed: 0, partial: 0, running: 0, unknown: 0 };
  for (const day of bar.days) {
    for (const [name, value] of Object.entries(days[day] ?? {})) sum[name as keyof StatusCounts] += value;
  }
  return sum;
}

const wordsOf = (counts: StatusCounts) =>
  [
    plural(counts.runs, "run"),
    ...STATUS_ORDER.filter((s) => counts[s] > 0).map((s) => `${formatCount(counts[s])} ${s}`),
  ]
    .join(", ");
const nameOf = ({ agent_name, job_type }: GroupSummary) =>
  escapeHtml(`${fitMiddle(agent_name, MAX_NAME)} / ${fitMiddle(job_type ?? "-", MAX_NAME)}`);
const two = (value: number) => Number(value.toFixed(2));

function svg(
  content: string,
  { width, height, label, kind }: Record<"width" | "height", number> & Record<"label" | "kind", string>,
) {
  return `<svg class="${kind}" viewBox="0 0 ${width} ${height}" preserveAspectRatio="none" role="img" aria-label="${label}"><title>${label}</title>${content}</svg>`;
}

function framed(chart: string, top: string, bars: Bar[]): string {
  const labels = [bars[0], bars[bars.length >> 1], bars.at(-1)].map((bar) => `<span>${bar?.label ?? ""}</span>`);
  return `<div class="frame"><div class="axis"><span>${top}</span><span>0</span></div>${chart}<div class="dates">${
    bars.length < 3 ? labels[0] : labels.join("")
  }</div></div>`;
}

/** Runs of each day, stacked by status. */
export function runsChart({ days }: RunSummary, bars: Bar[]): string {
  const sums = bars.map((bar) => sumOf(days, bar));
  const most = Math.max(1, ...sums.map(({ runs }) => runs));
  const content = sums.map((counts, i) => {
    let top = 100;
    const parts = STATUS_ORDER.filter((status) => counts[status] > 0).map((status) => {
      const height = counts[status] / most * 100;
      top -= height;
      return `<rect class="${status}" x="${i + 0.1}" y="${top.toFixed(3)}" width="0.8" height="${height.toFixed(3)}"/>`;
    });
    return `<g data-runs="${counts.runs}"><title>${bars[i]!.label}: ${wordsOf(counts)}</title>${parts.join("")}</g>`;
  });
  const label = `Runs from ${bars[0]?.label} to ${bars.at(-1)?.label}, at most ${formatCount(most)} in one bar`;
  return framed(
    svg(content.join(""), { width: bars.length, height: 100, label, kind: "bars" }),
    formatCount(most),
    bars,
  );
}

/** The failure rate of each day. Days without ended runs have none. */
export function rateChart({ days }: RunSummary, bars: Bar[]): string {
  const rates = bars.map((bar) => failureRate(sumOf(days, bar)));
  const top = Math.max(0.01, ...rates.map((rate) => rate ?? 0));
  let isDrawn = false;
  const path = rates.map((rate, i) => {
    const step = rate === null ? "" : `${isDrawn ? "L" : "M"}${i} ${two(100 - rate / top * 100)}h1`;
    isDrawn = rate !== null;
    return step;
  }).join("");
  const targets = rates.map((rate, i) =>
    `<rect class="target" x="${i}" y="0" width="1" height="100"><title>${bars[i]!.label}: ${
      formatRate(rate) || "no ended runs"
    }</title></rect>`
  ).join("");
  const label = `Failure rate of each bar, at most ${formatRate(top)}`;
  const content = `<path class="line" d="${path}"/>${targets}`;
  return framed(svg(content, { width: bars.length, height: 100, label, kind: "rate" }), formatRate(top), bars);
}

/** The durations of each agent and job on a logarithmic axis: a tick for each run, a bar from p50 to p95. */
export function durationChart({ groups, points }: RunSummary): string {
  const known = groups.map((group, index) => ({ group, index })).filter(({ group }) => group.p50_ms !== null);
  const shown = known.slice(0, MAX_DURATION_ROWS);
  if (shown.length === 0) return "<p>no durations</p>";
  const ticks = Map.groupBy(points, ([group]) => group);
  const values = shown.flatMap(({ group, index }) => [
    ...(ticks.get(index) ?? []).map(([, duration]) => duration),
    group.p50_ms!,
    group.p95_ms!,
  ]).map((value) => Math.max(1, value));
  const [low, high] = [
    Math.log(values.reduce((a, b) => Math.min(a, b))),
    Math.log(values.reduce((a, b) => Math.max(a, b))),
  ];
  const at = (duration: number) =>
    two(high === low ? 500 : 10 + (Math.log(Math.max(1, duration)) - low) / (high - low) * 980);
  const rows = shown.map(({ group, index }) => {
    const path = (ticks.get(index) ?? []).map(([, duration]) => `M${at(duration)} 4v12`).join("");
    const [p50, p95] = [at(group.p50_ms!), at(group.p95_ms!)];
    const label = `${nameOf(group)}: p50 ${formatDuration(group.p50_ms)}, p95 ${formatDuration(group.p95_ms)}`;
    const content = `<rect class="range" x="${p50}" y="6" width="${two(Math.max(2, p95 - p50))}" height="8"/>` +
      `<path class="ticks" d="${path}"/><path class="median" d="M${p50} 1v18"/>`;
    return row(nameOf(group), svg(content, { width: 1000, height: 20, label, kind: "spread" }), [
      formatDuration(group.p50_ms),
      formatDuration(group.p95_ms),
    ]);
  });
  const scale = [low, (low + high) / 2, high].map((value) => `<span>${formatDuration(Math.exp(value))}</span>`).join(
    "",
  );
  return `<div class="rows">${row("", "", ["p50", "p95"])}${rows.join("")}${
    row("", `<div class="dates">${scale}</div>`, ["", ""])
  }</div>${more(known.length, MAX_DURATION_ROWS)}`;
}

/** The days on which each agent and job ran. Gaps are days without a run. */
export function calendar({ groups }: RunSummary, bars: Bar[]): string {
  const rows = groups.slice(0, MAX_STRIPS).map((group) => {
    const paths = new Map<Status, string>();
    let ran = 0;
    for (const [i, bar] of bars.entries()) {
      const counts = sumOf(group.days, bar);
      const worst = (["failed", "unknown", "partial", "running", "success"] as const).find((s) => counts[s] > 0);
      if (worst === undefined) continue;
      ran++;
      paths.set(worst, `${paths.get(worst) ?? ""}M${i + 0.08} 0h.84v10h-.84z`);
    }
    const label = `${nameOf(group)}: ran in ${ran} of ${bars.length}`;
    const content = [...paths].map(([status, path]) => `<path class="${status}" d="${path}"/>`).join("");
    return row(nameOf(group), svg(content, { width: bars.length, height: 10, label, kind: "strip" }), [
      `${ran}/${bars.length}`,
    ]);
  });
  const dates = [bars[0], bars.at(-1)].map((bar) => `<span>${bar?.label ?? ""}</span>`).join("");
  return `<div class="rows strips">${rows.join("")}${row("", `<div class="dates">${dates}</div>`, [""])}</div>${
    more(groups.length, MAX_STRIPS)
  }`;
}

function row(name: string, content: string, values: string[]): string {
  const cells = values.map((value) => `<span class="value">${value}</span>`).join("");
  return `<div class="row"><span class="name" title="${name}">${name}</span><div>${content}</div>${cells}</div>`;
}

function more(count: number, shown: number): string {
  return count > shown
    ? `<p class="note">The first ${shown} of ${formatCount(count)}; the table has the others.</p>`
    : "";
}
