/** The warnings of a client. @module */
import { TelemetryError } from "../errors.ts";
import { oneLine } from "../format.ts";

/** Warns of each cause once, and counts it every time. Never throws. */
export class Warnings {
  /** Receives the first warning of each cause. */
  onWarning: (message: string) => void = printWarning;
  readonly #counts = new Map<string, number>();

  /** How often each cause occurred. */
  counts(): Record<string, number> {
    return Object.fromEntries(this.#counts);
  }

  warn(cause: string, message: string, times = 1): void {
    const before = this.#counts.get(cause) ?? 0;
    this.#counts.set(cause, before + times);
    if (before > 0) return;
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
