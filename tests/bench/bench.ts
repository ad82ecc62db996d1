/**
 * Measures the toolkit against the plain way of doing each job, on the same disk in the same run, and prints ratios.
 * A measure whose baseline is missing is skipped, with a line that says so.
 * usage: deno task bench [setup|recorder|backup|recovery|export|report|event_loop]...
 */
import { TempFolder } from "../fixtures/mod.ts";
import { backup } from "./backup.ts";
import { eventLoop } from "./event_loop.ts";
import { exports } from "./export.ts";
import type { Measure, Part } from "./measure.ts";
import { recorder } from "./recorder.ts";
import { recovery } from "./recovery.ts";
import { report } from "./report.ts";
import { setup } from "./setup.ts";

const PARTS: Record<string, Part> = {
  setup,
  recorder,
  backup,
  recovery,
  export: exports,
  report,
  event_loop: eventLoop,
};

function row({ what, ours, baseline, ratio, wanted }: Measure): string {
  const [bound, isMet] = "atLeast" in wanted
    ? [`at least ${wanted.atLeast}`, ratio >= wanted.atLeast]
    : [`at most ${wanted.atMost}`, ratio <= wanted.atMost];
  return `| ${[what, ours, baseline, ratio.toFixed(2), bound, isMet ? "met" : "MISSED"].join(" | ")} |`;
}

const names = Deno.args.length > 0 ? Deno.args : Object.keys(PARTS);
for (const name of names) {
  if (!(name in PARTS)) {
    console.error(`No such part: ${name}\n-> choose from ${Object.keys(PARTS).join(", ")}`);
    Deno.exit(2);
  }
}
console.log(`| ${["what", "toolkit", "baseline", "ratio", "wanted", ""].join(" | ")} |\n|${" --- |".repeat(6)}`);
for (const name of names) {
  using folder = new TempFolder();
  for await (const measure of PARTS[name]!(folder.path)) {
    console.log(typeof measure === "string" ? measure : row(measure));
  }
}
