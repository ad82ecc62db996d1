/** The charts of a report page: shapes as inline SVG, which stretch, and labels as HTML, which do not. @module */
import { formatCount, oneLine, plural } from "../format.ts";
import { fit, formatDuration, formatRate, localDate } from "./format.ts";
import {
  failureRate,
  type GroupSummary,
  type RunSummary,
  type Status,
  type StatusCounts,
  sumCounts,
} from "./summary.ts";

/** From the bottom of a bar to its top. */
const STATUS_ORDER: readonly Status[] = ["success", "partial", "running", "unknown", "failed"];
/** From the worst on. */
const WORST_FIRST: readonly Status[] = ["failed", "unknown", "partial", "running", "success"];
const MAX_BARS = 120;
const MAX_NAME = 30;
const MAX_DURATION_ROWS = 40, MAX_STRIPS = 100;
const DAY_MS = 86_400_000;

/** Text that HTML shows as it is. */
export function escapeHtml(text: string): string {
  return oneLine(text).replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}

/** The days that share a bar, for each bar: all of the window, or from the first run on if that is much later. */
export function barsOf({ since, until, now, days }: RunSummary): string[][] {
  const known = Object.keys(days);
  // In UTC, where each day has 24 hours.
  const dayOf = (day: string) => Date.parse(day) / DAY_MS;
  const end = Math.max(...[localDate(new Date(until === null ? now : Date.parse(until) - 1)), ...known].map(dayOf));
  let start = dayOf(localDate(new Date(since)));
  if (end - start >= MAX_BARS) start = known.length > 0 ? dayOf(known[0]!) : end;
  const all = Array.from(
    { length: end - start + 1 },
    (_, i) => new Date((start + i) * DAY_MS).toISOString().slice(0, 10),
  );
  const size = Math.ceil(all.length / MAX_BARS);
  return Array.from({ length: Math.ceil(all.length / size) }, (_, bar) => all.slice(bar * size, (bar + 1) * size));
}

function countsIn(days: Record<string, StatusCounts>, bars: string[][]): StatusCounts[] {
  return bars.map((bar) => sumCounts(bar.flatMap((day) => days[day] ?? [])));
}

function nameOf({ agent_name, job_type }: GroupSummary): string {
  return escapeHtml(`${fit(agent_name, MAX_NAME, "middle")} / ${fit(job_type ?? "-", MAX_NAME, "middle")}`);
}

/** A drawing that is as wide as its place. */
function drawing(kind: string, [width, height]: [number, number], label: string, shapes: string[]): string {
  return `<svg class="${kind}" viewBox="0 0 ${width} ${height}" preserveAspectRatio="none" role="img" aria-label="${label}"><title>${label}</title>${
    shapes.join("")
  }</svg>`;
}

/** Labels from the left to the right end of an axis. */
function axis(labels: string[]): string {
  return `<div class="axis">${labels.map((label) => `<span>${label}</span>`).join("")}</div>`;
}

/** A chart of what happened in each bar, from 0 to `top`. */
function overTime(bars: string[][], kind: string, label: string, top: string, shapes: string[]): string {
  const dates = [bars[0], ...bars.length < 3 ? [] : [bars[bars.length >> 1], bars.at(-1)]].map((bar) => bar![0]!);
  return `<div class="frame"><div class="scale"><span>${top}</span><span>0</span></div>${
    drawing(kind, [bars.length, 100], label, shapes)
  }${axis(dates)}</div>`;
}

/** Runs of each day, stacked by status. */
export function runsChart({ days }: RunSummary, bars: string[][]): string {
  const sums = countsIn(days, bars);
  const most = Math.max(1, ...sums.map(({ runs }) => runs));
  const shapes = sums.map((counts, i) => {
    let top = 100;
    const present = STATUS_ORDER.filter((status) => counts[status] > 0);
    const parts = present.map((status) => {
      const height = counts[status] / most * 100;
      top -= height;
      return `<rect class="${status}" x="${i + 0.1}" y="${top.toFixed(3)}" width="0.8" height="${height.toFixed(3)}"/>`;
    });
    const words = [plural(counts.runs, "run"), ...present.map((status) => `${formatCount(counts[status])} ${status}`)];
    return `<g><title>${bars[i]![0]}: ${words.join(", ")}</title>${parts.join("")}</g>`;
  });
  const label = `Runs from ${bars[0]![0]} to ${bars.at(-1)![0]}, at most ${formatCount(most)} in one bar`;
  return overTime(bars, "bars", label, formatCount(most), shapes);
}

/** The failure rate of each day. Days without ended runs have none. */
export function rateChart({ days }: RunSummary, bars: string[][]): string {
  const rates = countsIn(days, bars).map(failureRate);
  const top = Math.max(0.01, ...rates.map((rate) => rate ?? 0));
  const steps = rates.map((rate, i) => {
    if (rate === null) return "";
    return `${typeof rates[i - 1] === "number" ? "L" : "M"}${i} ${(100 - rate / top * 100).toFixed(2)}h1`;
  });
  const targets = rates.map((rate, i) => {
    const title = `${bars[i]![0]}: ${rate === null ? "no ended runs" : formatRate(rate)}`;
    return `<rect class="target" x="${i}" y="0" width="1" height="100"><title>${title}</title></rect>`;
  });
  const label = `Failure rate of each bar, at most ${formatRate(top)}`;
  return overTime(bars, "rate", label, formatRate(top), [`<path class="line" d="${steps.join("")}"/>`, ...targets]);
}

/** The durations of each agent and job on a logarithmic axis: a tick for each run, a bar from p50 to p95. */
export function durationChart({ groups, points }: RunSummary): string {
  const known = groups.flatMap((group, i) => {
    const { p50_ms, p95_ms } = group;
    if (p50_ms === null || p95_ms === null) return [];
    return [{ name: nameOf(group), p50_ms, p95_ms, runs: points.filter(([of]) => of === i).map(([, ms]) => ms) }];
  });
  const shown = known.slice(0, MAX_DURATION_ROWS);
  const logs = shown.flatMap(({ p50_ms, p95_ms, runs }) => [p50_ms, p95_ms, ...runs])
    .map((duration) => Math.log(Math.max(1, duration)));
  // Not the same, even when all durations are.
  const [low, high] = [Math.min(...logs), Math.max(...logs) + 0.01];
  const at = (duration: number) => Math.round((Math.log(Math.max(1, duration)) - low) / (high - low) * 980) + 10;
  const rows = shown.map(({ name, p50_ms, p95_ms, runs }) => {
    const [p50, p95] = [at(p50_ms), at(p95_ms)];
    const values = [formatDuration(p50_ms), formatDuration(p95_ms)];
    const shapes = [
      `<rect class="range" x="${p50}" y="6" width="${Math.max(2, p95 - p50)}" height="8"/>`,
      `<path class="ticks" d="${runs.map((duration) => `M${at(duration)} 4v12`).join("")}"/>`,
      `<path class="median" d="M${p50} 1v18"/>`,
    ];
    return row(name, values, drawing("spread", [1000, 20], `${name}: p50 ${values[0]}, p95 ${values[1]}`, shapes));
  });
  const scale = axis([...new Set([low, (low + high) / 2, high].map((log) => formatDuration(Math.exp(log))))]);
  const all = [row("", ["p50", "p95"], ""), ...rows, row("", ["", ""], scale)];
  return listed("spreads", all, known.length - shown.length);
}

/** The days on which each agent and job ran. Gaps are days without a run. */
export function calendar({ groups }: RunSummary, bars: string[][]): string {
  const unit = bars[0]!.length === 1 ? "days" : "bars";
  const rows = groups.slice(0, MAX_STRIPS).map((group) => {
    const worst = countsIn(group.days, bars).map((counts) => WORST_FIRST.find((status) => counts[status] > 0));
    const ran = worst.filter((status) => status !== undefined).length;
    const shapes = WORST_FIRST.map((status) => {
      const path = worst.map((other, i) => other === status ? `M${i + 0.08} 0h.84v10h-.84z` : "").join("");
      return path && `<path class="${status}" d="${path}"/>`;
    });
    const label = `${nameOf(group)}: ran in ${ran} of ${bars.length} ${unit}`;
    return row(nameOf(group), [`${ran}/${bars.length}`], drawing("strip", [bars.length, 10], label, shapes));
  });
  const dates = axis([bars[0]![0]!, bars.at(-1)![0]!]);
  return listed("strips", [row("", [unit], ""), ...rows, row("", [""], dates)], groups.length - rows.length);
}

function row(name: string, values: string[], content: string): string {
  const cells = values.map((value) => `<span class="value">${value}</span>`).join("");
  return `<div class="row"><span class="name" title="${name}">${name}</span><div>${content}</div>${cells}</div>`;
}

function listed(kind: string, rows: string[], hidden: number): string {
  const note = hidden > 0 ? `<p class="note">And ${formatCount(hidden)} more, which the table has.</p>` : "";
  return `<div class="${kind}">${rows.join("")}</div>${note}`;
}
