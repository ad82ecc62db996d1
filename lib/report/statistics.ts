/** Percentiles, local days and samples. @module */
import type { Instant } from "../time.ts";

/** A percentile of sorted numbers, interpolated between two neighbours as SQL's `percentile_cont` does. Null without numbers. */
export function percentile(sorted: Float64Array, share: number): number | null {
  if (sorted.length === 0) return null;
  const position = (sorted.length - 1) * share;
  const low = sorted[Math.floor(position)]!;
  const high = sorted[Math.ceil(position)]!;
  return low + (high - low) * (position - Math.floor(position));
}

/** Finds the local day of instants. Most are on the day of the one before. */
export class LocalDays {
  #start = Infinity;
  #end = -Infinity;
  #day = "";

  /** The day as `YYYY-MM-DD`. It has 23 or 25 hours when the clock is changed. */
  dayOf(at: Instant): string {
    if (at >= this.#start && at < this.#end) return this.#day;
    const date = new Date(at / 1000);
    const [year, month, day] = [date.getFullYear(), date.getMonth(), date.getDate()];
    this.#start = new Date(year, month, day).getTime() * 1000;
    this.#end = new Date(year, month, day + 1).getTime() * 1000;
    return this.#day = localDate(date);
  }
}

/** The local date as `YYYY-MM-DD`. */
export function localDate(at: Date): string {
  const two = (value: number) => String(value).padStart(2, "0");
  return `${String(at.getFullYear()).padStart(4, "0")}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
}

/** Chooses evenly from items of unknown number: every n-th, with an n that doubles when there are too many. */
export class Sample<T> {
  items: T[] = [];
  readonly #size: number;
  #step = 1;
  #seen = 0;

  constructor(size: number) {
    this.#size = size;
  }

  add(item: T): void {
    if (this.#seen++ % this.#step !== 0) return;
    if (this.items.length === this.#size) {
      this.items = this.items.filter((_, i) => i % 2 === 0);
      this.#step *= 2;
      if ((this.#seen - 1) % this.#step !== 0) return;
    }
    this.items.push(item);
  }
}
