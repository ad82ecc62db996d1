/**
 * Measures the toolkit against the plain way of doing each job, on the same disk in the same run, and prints ratios.
 * What lacks its baseline (../shared/baselines, Python) is left out aloud. usage: deno task bench [PART …]
 */
import { command, TempFolder } from "../fixtures/mod.ts";
import { backup } from "./backup.ts";
import { exports } from "./export.ts";
import { recorder } from "./recorder.ts";
import { recovery } from "./recovery.ts";
import { setup } from "./setup.ts";

/** One line of the table. */
export interface Measure {
  /** What was measured. */
  what: string;
  /** What the toolkit took or reached, with its unit. */
  ours: string;
  /** The same of the baseline. */
  baseline: string;
  /** How many times better than the baseline (or worse, where `wanted` says at most). */
  ratio: number;
  /** What the ratio should be. */
  wanted: { atLeast: number } | { atMost: number };
}

/** A part of the bench; yields its measures as they are ready, or a line on what it leaves out. */
export type Part = (folder: string) => AsyncIterable<Measure | string>;

const PARTS: Record<string, Part> = { setup, recorder, backup, recovery, export: exports };

/** The middle one of some measurements. */
export function median(values: number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1]!;
}

/** The middle one of the ratios of measurements that were made one after the other: what slows one slows both. */
export function medianRatio(ours: number[], baseline: number[]): number {
  return median(ours.map((value, round) => value / baseline[round]!));
}

/** Runs a Deno process; the most memory it had, in MB (Linux; elsewhere 0). */
export async function peakOf(args: string[]): Promise<number> {
  const process = command(Deno.execPath(), args).spawn();
  let peak = 0;
  const timer = setInterval(() => {
    try {
      const status = Deno.readTextFileSync(`/proc/${process.pid}/status`);
      const now = Number(/VmHWM:\s+(\d+)/.exec(status)?.[1] ?? 0) / 1024;
      peak = Math.max(peak, now);
    } catch { /* it has ended */ }
  }, 10);
  const { code, stderr } = await process.output();
  clearInterval(timer);
  if (code !== 0) throw new Error(new TextDecoder().decode(stderr));
  return peak;
}

if (import.meta.main) {
  console.log(`| ${["what", "toolkit", "baseline", "ratio", "wanted", ""].join(" | ")} |\n|${" --- |".repeat(6)}`);
  for (const name of Deno.args.length > 0 ? Deno.args : Object.keys(PARTS)) {
    const part = PARTS[name];
    if (part === undefined) throw new Error(`no such part: ${name}; there are ${Object.keys(PARTS)}`);
    using folder = new TempFolder();
    for await (const measure of part(folder.path)) console.log(typeof measure === "string" ? measure : row(measure));
  }
}

function row({ what, ours, baseline, ratio, wanted }: Measure): string {
  const [words, met] = "atLeast" in wanted
    ? [`at least ${wanted.atLeast}`, ratio >= wanted.atLeast]
    : [`at most ${wanted.atMost}`, ratio <= wanted.atMost];
  return `| ${[what, ours, baseline, ratio.toFixed(2), words, met ? "met" : "MISSED"].join(" | ")} |`;
}
