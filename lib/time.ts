/** Timestamps: format, parse, compare. @module */
import { TelemetryError } from "./errors.ts";

/**
 * Formats a time as the records have it: UTC, six digits, `+00:00` (contract, "Ids and times").
 *
 * @example
 * ```ts
 * import { timestamp } from "./time.ts";
 *
 * console.log(timestamp(new Date(0))); // "1970-01-01T00:00:00.000000+00:00"
 * ```
 */
export function timestamp(at: Date = new Date()): string {
  // Many records share a millisecond, and formatting takes longer than everything else about a record.
  if (at.getTime() !== lastTime) {
    lastText = `${at.toISOString().slice(0, -1)}000+00:00`;
    lastTime = at.getTime();
  }
  return lastText;
}

let lastTime = NaN;
let lastText = "";

/** Microseconds since 1970-01-01 UTC: the resolution of the contract's timestamps. */
export type Instant = number;

const SECOND = 1_000_000;
const UNITS: Record<string, number> = { m: 60 * SECOND, h: 3600 * SECOND, d: 86_400 * SECOND };
const ISO =
  /^(\d{4}-\d\d-\d\d)(?:[T ]([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d)(?:[.,](\d+))?)?(?: ?(?:Z|UTC|GMT)| ?([+-])(\d\d):?([0-5]\d)?)?)?$/i;

/**
 * Parses an ISO 8601 date or time. Without a zone it is UTC; without a time it is the start of the day.
 * Returns undefined for any other text.
 */
export function parseTimestamp(text: string): Instant | undefined {
  const found = ISO.exec(text);
  if (found === null) return undefined;
  const [, day, hours = "0", minutes = "0", seconds = "0", fraction = "", sign, zoneHours = "0", zoneMinutes = "0"] =
    found;
  const midnight = parseDay(day!);
  if (midnight === undefined) return undefined;
  const zone = (Number(zoneHours) * 3600 + Number(zoneMinutes) * 60) * (sign === "-" ? -1 : 1);
  const time = Number(hours) * 3600 + Number(minutes) * 60 + Number(seconds) - zone;
  return midnight + time * SECOND + Number(fraction.slice(0, 6).padEnd(6, "0"));
}

const GIT_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const GIT_DEFAULT = /^[A-Z][a-z]{2} ([A-Z][a-z]{2}) {1,2}(\d{1,2}) (\d\d:\d\d:\d\d) (\d{4})( [+-]\d{4})?$/;
const GIT_RFC = /^(?:[A-Z][a-z]{2}, )?(\d{1,2}) ([A-Z][a-z]{2}) (\d{4}) (\d\d:\d\d:\d\d)( GMT| [+-]\d{4})?$/;
const GIT_SECONDS = /^@?(\d{9,11})(?: [+-]\d{4})?$/;

/** Parses the date of a commit: ISO 8601, or as `git log --date` writes it (default, rfc, unix or raw). */
export function parseCommitDate(text: string): Instant | undefined {
  const seconds = GIT_SECONDS.exec(text)?.[1];
  if (seconds !== undefined) return Number(seconds) * SECOND;
  const [, month, day, time, year, zone = ""] = GIT_DEFAULT.exec(text) ??
    GIT_RFC.exec(text)?.map((part, i, [, day, month, year, time]) => [part, month!, day!, time!, year!][i] ?? part) ??
    [];
  const number = GIT_MONTHS.indexOf(month ?? "") + 1;
  if (number === 0) return parseTimestamp(text);
  return parseTimestamp(`${year}-${String(number).padStart(2, "0")}-${day!.padStart(2, "0")} ${time}${zone}`);
}

let lastDay = "";
let lastMidnight: Instant | undefined;

/** The start of a day. Rows are ordered by time, so most calls ask for the same day as the call before. */
function parseDay(day: string): Instant | undefined {
  if (day === lastDay) return lastMidnight;
  const at = new Date(`${day}T00:00:00Z`);
  lastDay = day;
  // `Date` turns February 30 into March 2.
  lastMidnight = !isNaN(at.getTime()) && at.toISOString().startsWith(day) ? at.getTime() * 1000 : undefined;
  return lastMidnight;
}

/**
 * Parses the value of a flag that is a length of time: `7d`, `24h`, `30m`. Returns milliseconds.
 *
 * @throws {TelemetryError} `usage`
 */
export function parseDurationFlag(flag: string, text: string): number {
  const [, count, unit] = /^(\d{1,6})([mhd])$/.exec(text) ?? [];
  if (unit !== undefined) return Number(count) * UNITS[unit]! / 1000;
  throw new TelemetryError("usage", `--${flag} takes a length of time, not "${text}"`, { hint: "use 7d, 24h or 30m" });
}

const DAY = /^\d{4}-\d\d-\d\d$/;
/** A time with a zone, or in seconds since 1970. */
const ZONE = /^@?\d{9}|^.{10}.*(?:Z|UTC|GMT|[+-])/i;

/**
 * Parses the value of a flag: an ISO date or time, a date as Git writes it, or `7d`, `24h`, `30m` for that long before `now`.
 *
 * @param dayIs whether a date without a time means the start of that day, or its end
 * @throws {TelemetryError} `usage`
 */
export function parseTimeFlag(flag: string, text: string, now: Date, dayIs: "start" | "end" = "start"): Instant {
  const [, count, unit] = /^(\d{1,6})([mhd])$/.exec(text) ?? [];
  if (unit !== undefined) return now.getTime() * 1000 - Number(count) * UNITS[unit]!;
  const instant = parseCommitDate(text);
  if (instant !== undefined) return dayIs === "end" && DAY.test(text) ? instant + UNITS["d"]! : instant;
  throw new TelemetryError("usage", `--${flag} takes a date or a time, not "${text}"`, {
    hint: "use a day (2025-12-10), a time (2025-12-10T12:05:30Z), or an age (7d, 24h, 30m)",
  });
}

/** As {@linkcode parseTimeFlag}, where a date is a local day, and a time without a zone is local. */
export function parseLocalTimeFlag(flag: string, text: string, now: Date, dayIs: "start" | "end" = "start"): Instant {
  const instant = parseCommitDate(text);
  if (instant === undefined || ZONE.test(text)) return parseTimeFlag(flag, text, now, dayIs);
  const [year, month, day, ...time] = new Date(instant / 1000).toISOString().split(/\D/).slice(0, 7).map(Number);
  const days = dayIs === "end" && DAY.test(text) ? 1 : 0;
  return new Date(year!, month! - 1, day! + days, ...time as [number, number, number, number]).getTime() * 1000;
}
