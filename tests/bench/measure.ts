/** Measures and the functions that take them. */
import { command, ROOT, run } from "../fixtures/mod.ts";

/** One line of the table. */
export interface Measure {
  what: string;
  /** The value of the toolkit, with its unit. */
  ours: string;
  /** The value of the baseline, with its unit. */
  baseline: string;
  ratio: number;
  /** The bound of the ratio. */
  wanted: { atLeast: number } | { atMost: number };
}

/** A part of the bench. It yields each measure when it is ready, or a line that says what it skips and why. */
export type Part = (folder: string) => AsyncIterable<Measure | string>;

/** Our baselines in Python. */
export const BASELINES = `${ROOT}tests/bench/baselines.py`;

export function median(values: number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1]!;
}

/** The median of the ratios of neighbouring rounds: what slows one measurement also slows its neighbour. */
export function medianRatio(ours: number[], baseline: number[]): number {
  return median(ours.map((value, round) => value / baseline[round]!));
}

/** A time that should be at most the baseline's, or at most so many times that. */
export function timeMeasure(what: string, ours: number[], baseline: number[], atMost = 1): Measure {
  return {
    what,
    ours: `${median(ours).toFixed(0)} ms`,
    baseline: `${median(baseline).toFixed(0)} ms`,
    ratio: medianRatio(ours, baseline),
    wanted: { atMost },
  };
}

export function memoryMeasure(what: string, megabytes: number, limit: number): Measure {
  return {
    what: `${what} (peak memory of the process)`,
    ours: `${megabytes.toFixed(0)} MB`,
    baseline: `${limit} MB (limit)`,
    ratio: megabytes / limit,
    wanted: { atMost: 1 },
  };
}

/** Runs a process to its end and returns its standard output. Throws with its standard error. */
export async function succeed(program: string, args: string[]): Promise<string> {
  const { code, stdout, stderr } = await run(program, args);
  if (code !== 0) throw new Error(stderr);
  return stdout;
}

/** How long the `sqlite3` program takes for a copy of a database and its check, in milliseconds. */
export async function timeOfCheckedCopy(database: string, copy: string): Promise<number> {
  const time = await timeOf(async () => {
    await succeed("sqlite3", [database, `.backup ${copy}`]);
    await succeed("sqlite3", [copy, "PRAGMA quick_check"]);
  });
  Deno.removeSync(copy);
  return time;
}

/** How long something takes, in milliseconds. */
export async function timeOf(work: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await work();
  return performance.now() - start;
}

/** Runs a Deno process and returns its peak memory in MB (0 where there is no /proc). */
export async function peakOf(args: string[]): Promise<number> {
  const process = command(Deno.execPath(), args).spawn();
  let peak = 0;
  const timer = setInterval(() => {
    try {
      const status = Deno.readTextFileSync(`/proc/${process.pid}/status`);
      peak = Math.max(peak, Number(/VmHWM:\s+(\d+)/.exec(status)?.[1] ?? 0) / 1024);
    } catch { /* it has ended */ }
  }, 10);
  const { code, stderr } = await process.output();
  clearInterval(timer);
  if (code !== 0) throw new Error(new TextDecoder().decode(stderr));
  return peak;
}
