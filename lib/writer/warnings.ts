/** The warnings of a client. @module */
import { TelemetryError } from "../errors.ts";
import { oneLine } from "../format.ts";

/** Warns of each cause once, and counts it every time. Never throws. */
export class Warnings {
  /** Receives the first warning of each cause. */
  onWarning: (message: string) => void = printWarning;
  readonly #counts = new Map<string, number>();

  /** How often each cause occurred, without those that are no failures. */
  counts(): Record<string, number> {
    return Object.fromEntries([...this.#counts].filter(([, times]) => times > 0));
  }

  /** @param times how many failures this is: 0 for a message about something that was done */
  warn(cause: string, message: string, times = 1): void {
    const before = this.#counts.get(cause);
    this.#counts.set(cause, (before ?? 0) + times);
    if (before !== undefined) return;
    try {
      Promise.resolve(this.onWarning(message) as unknown).catch(() => {});
    } catch { /* A handler that fails must not stop the recording. */ }
  }

  /** Warns of an error. Its cause is the area and the code. */
  fail(area: string, error: unknown): void {
    if (!(error instanceof TelemetryError)) return this.warn(`${area}:unexpected`, `${area}: ${toText(error)}`);
    this.warn(`${area}:${error.code}`, error.hint ? `${error.message} (${error.hint})` : error.message);
  }
}

function printWarning(message: string): void {
  Deno.stderr.writeSync(new TextEncoder().encode(`telemetry: ${oneLine(message)}\n`));
}

/** Converts any value to well-formed text. Never throws. */
export function toText(value: unknown): string {
  try {
    return String(value).toWellFormed();
  } catch {
    return "unknown";
  }
}
