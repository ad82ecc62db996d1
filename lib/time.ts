/**
 * Times as they are found in data and as people write them, as instants that can be compared.
 * @module
 */
import { TelemetryError } from "./errors.ts";

/**
 * A time as it stands in data: UTC, six digits, `+00:00`, as Python's `isoformat()` writes it.
 *
 * @example
 * ```ts
 * import { timestamp } from "./time.ts";
 *
 * console.log(timestamp(new Date(0))); // "1970-01-01T00:00:00.000000+00:00"
 * ```
 */
export function timestamp(at: Date = new Date()): string {
  // Many records are made in one millisecond, and making the text takes longer than all else of a record.
  if (at.getTime() !== lastTime) {
    lastText = `${at.toISOString().slice(0, -1)}000+00:00`;
    lastTime = at.getTime();
  }
  return lastText;
}

let lastTime = NaN;
let lastText = "";

/** A moment: microseconds since 1970 in UTC, as fine as the contract's times. */
export type Instant = number;

const SECOND = 1_000_000;
const UNITS: Record<string, number> = { m: 60 * SECOND, h: 3600 * SECOND, d: 86_400 * SECOND };
const ISO =
  /^(\d{4}-\d\d-\d\d)(?:[T ]([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d)(?:[.,](\d+))?)?(?:Z|([+-])(\d\d):?([0-5]\d)?)?)?$/i;

/**
 * The instant that an ISO 8601 date or time means, in whatever form: `2025-12-10 12:05:30` and
 * `2025-12-10T14:05:30.000+02:00` are one. Without a zone it is UTC, without a time the start of the day.
 *
 * @returns undefined for what is no such time
 *
 * @example
 * ```ts
 * import { parseTimestamp } from "./time.ts";
 *
 * console.log(parseTimestamp("2025-12-10 12:05:30") === parseTimestamp("2025-12-10T12:05:30Z")); // true
 * ```
 */
export function parseTimestamp(text: string): Instant | undefined {
  const found = ISO.exec(text);
  if (found === null) return undefined;
  const [, day, hours = "0", minutes = "0", seconds = "0", fraction = "", sign, zoneHours = "0", zoneMinutes = "0"] =
    found;
  const midnight = midnightOf(day!);
  if (midnight === undefined) return undefined;
  const zone = (Number(zoneHours) * 3600 + Number(zoneMinutes) * 60) * (sign === "-" ? -1 : 1);
  const time = Number(hours) * 3600 + Number(minutes) * 60 + Number(seconds) - zone;
  return midnight + time * SECOND + Number(fraction.slice(0, 6).padEnd(6, "0"));
}

let lastDay = "";
let lastMidnight: Instant | undefined;

/** The start of a day, or undefined where there is no such day. Rows stand by time: most ask for the last one again. */
function midnightOf(day: string): Instant | undefined {
  if (day === lastDay) return lastMidnight;
  const at = new Date(`${day}T00:00:00Z`);
  lastDay = day;
  // `Date` makes the 2nd of March of the 30th of February.
  lastMidnight = !isNaN(at.getTime()) && at.toISOString().startsWith(day) ? at.getTime() * 1000 : undefined;
  return lastMidnight;
}

/**
 * The instant that the value of a flag means: an ISO date or time, or `7d`, `24h`, `30m` for that long before now.
 *
 * @param flag its name, for the error
 * @param text its value
 * @param now what `7d` counts from
 * @param dayIs whether a date alone means the start of that day or its end, which is the start of the next
 * @throws {TelemetryError} `usage`
 */
export function parseTimeFlag(flag: string, text: string, now: Date, dayIs: "start" | "end" = "start"): Instant {
  const [, count, unit] = /^(\d{1,6})([mhd])$/.exec(text) ?? [];
  if (unit !== undefined) return now.getTime() * 1000 - Number(count) * UNITS[unit]!;
  const instant = parseTimestamp(text);
  if (instant !== undefined) return dayIs === "end" && text.length === 10 ? instant + UNITS["d"]! : instant;
  throw new TelemetryError("usage", `--${flag} takes a date or a time, not "${text}"`, {
    hint: `say a UTC day as 2025-12-10, a time as 2025-12-10T12:05:30Z (without a zone it is UTC), ` +
      `or how long ago as 7d, 24h, 30m`,
  });
}
