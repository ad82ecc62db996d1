/** Values as people read them. @module */
import { formatCount, oneLine } from "../format.ts";

/** `850 ms`, `12.3 s`, `4 m 05 s`, `1 h 12 m`, `3 d 4 h`. */
export function formatDuration(milliseconds: number): string {
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  if (milliseconds < 59_950) return `${(milliseconds / 1000).toFixed(1)} s`;
  const two = (value: number) => String(value).padStart(2, "0");
  const seconds = Math.round(milliseconds / 1000);
  const minutes = Math.round(seconds / 60);
  const hours = Math.round(minutes / 60);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} m ${two(seconds % 60)} s`;
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${two(minutes % 60)} m`;
  return `${formatCount(Math.floor(hours / 24))} d ${hours % 24} h`;
}

/** An age in its largest unit: `30 s`, `12 m`, `5 h`, `3 d`. */
export function formatAge(milliseconds: number): string {
  const units: [string, number][] = [["d", 86_400_000], ["h", 3_600_000], ["m", 60_000]];
  const [unit, size] = units.find(([, size]) => milliseconds >= 2 * size) ?? ["s", 1000];
  return `${formatCount(Math.max(0, Math.floor(milliseconds / size)))} ${unit}`;
}

/** `12.3%`. */
export function formatRate(rate: number): string {
  return `${(rate * 100).toFixed(1)}%`;
}

/** A time in the zone of this process, as `YYYY-MM-DD HH:MM:SS`. */
function localTime(at: Date): string {
  return new Date(at.getTime() - at.getTimezoneOffset() * 60_000).toISOString().slice(0, 19).replace("T", " ");
}

/** The local date as `YYYY-MM-DD`. */
export function localDate(at: Date): string {
  return localTime(at).slice(0, 10);
}

/** A time in UTC as local time, to the second. */
export function formatTime(iso: string): string {
  const at = new Date(iso);
  return isNaN(at.getTime()) ? oneLine(iso) : localTime(at);
}

/** Created at its first use, because that takes 15 ms. */
let segmenter: Intl.Segmenter | undefined;
const WIDE =
  /^(?:\p{Emoji_Presentation}|.*\ufe0f|[\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\ua960-\ua97c\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff01-\uff60\uffe0-\uffe6]|[\u{1f300}-\u{1faff}\u{20000}-\u{3fffd}])/u;
const NO_WIDTH = /^[\p{Mn}\p{Me}\p{Cf}]+$/u;

function graphemesOf(text: string): string[] {
  segmenter ??= new Intl.Segmenter("en", { granularity: "grapheme" });
  return Array.from(segmenter.segment(text), ({ segment }) => segment);
}

function widthOf(grapheme: string): number {
  return WIDE.test(grapheme) ? 2 : NO_WIDTH.test(grapheme) ? 0 : 1;
}

/** How many columns of a terminal a text takes. */
export function displayWidth(text: string): number {
  if (/^[\x20-\x7e]*$/.test(text)) return text.length;
  let width = 0;
  for (const grapheme of graphemesOf(text)) width += widthOf(grapheme);
  return width;
}

/** Cuts a text to a width, at its end or in its middle. An ellipsis replaces what is cut. */
export function fit(text: string, width: number, at: "middle" | "end" = "end"): string {
  // No more is shown of a text of megabytes.
  const limit = 4 * width + 100;
  const ends = text.length > 2 * limit ? text.slice(0, limit) + text.slice(-limit) : text;
  let excess = displayWidth(ends) - width;
  if (excess <= 0) return ends;
  if (width < 1) return "";
  const kept = graphemesOf(ends);
  // The ellipsis takes a column, too.
  for (excess++; excess > 0;) excess -= widthOf(kept.splice(at === "middle" ? kept.length >> 1 : -1, 1)[0]!);
  const place = at === "middle" ? (kept.length + 1) >> 1 : kept.length;
  return `${kept.slice(0, place).join("")}…${kept.slice(place).join("")}`;
}

/** Pads a text to a width, with blanks before it for `right`. */
export function pad(text: string, width: number, align: "left" | "right"): string {
  const blanks = " ".repeat(Math.max(0, width - displayWidth(text)));
  return align === "right" ? blanks + text : text + blanks;
}
