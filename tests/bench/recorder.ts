/** Appends and whole runs against plain Python, and memory over a million appends. */
import { lacks, ROOT, run } from "../fixtures/mod.ts";
import { BASELINES, median, medianRatio, type Part, succeed } from "./measure.ts";
import { makeStore } from "./stores.ts";

const ROUNDS = 7;

export const recorder: Part = async function* (folder) {
  if (lacks("python")) yield "appends and whole runs: skipped, because python3 is missing";
  else {
    yield* appends(folder);
    yield* wholeRuns(folder);
  }
  yield* memory(folder);
};

async function* appends(folder: string): ReturnType<Part> {
  const modes = [
    { concurrent: 1, count: 15_000, atLeast: 1 },
    { concurrent: 128, count: 256_000, atLeast: 60 },
    { concurrent: 1024, count: 1_024_000, atLeast: 120 },
  ];
  const plain: number[] = [];
  const rates = modes.map(() => [] as number[]);
  for (let round = 0; round < ROUNDS; round++) {
    // Each in its own folder: the length of a file matters to the file system.
    plain.push(await pythonRate("append", `${folder}/python${round}/raw`, 15_000));
    for (const [i, { concurrent, count }] of modes.entries()) {
      rates[i]!.push(await denoRate("append", `${folder}/deno${round}_${concurrent}`, count, concurrent));
    }
  }
  for (const [i, { concurrent, atLeast }] of modes.entries()) {
    yield rateMeasure(`durable appends, ${concurrent} concurrently`, rates[i]!, plain, atLeast);
  }
}

async function* wholeRuns(folder: string): ReturnType<Part> {
  const plain: number[] = [];
  const modes = ["run", "run_awaited"] as const;
  const rates = modes.map(() => [] as number[]);
  await makeStore(`${folder}/runs_python`);
  for (let round = 0; round < ROUNDS; round++) {
    plain.push(await pythonRate("runs", `${folder}/runs_python`, 300));
    for (const [i, mode] of modes.entries()) rates[i]!.push(await denoRate(mode, `${folder}/runs_deno`, 1000, 1));
  }
  const what = "whole runs (start, 3 events, end; log and database)";
  yield rateMeasure(what, rates[0]!, plain, 3);
  yield rateMeasure(`${what}, each event awaited`, rates[1]!, plain, 3);
}

function rateMeasure(what: string, ours: number[], baseline: number[], atLeast: number) {
  return {
    what: `${what}, against Python`,
    ours: `${median(ours).toFixed(0)}/s`,
    baseline: `${median(baseline).toFixed(0)}/s`,
    ratio: medianRatio(ours, baseline),
    wanted: { atLeast },
  };
}

async function* memory(folder: string): ReturnType<Part> {
  const [, ...args] = driverArgs("memory", `${folder}/memory`, 1_000_000, 1000);
  const { code, stdout, stderr } = await run(Deno.execPath(), ["run", "--v8-flags=--expose-gc", ...args]);
  if (code !== 0) throw new Error(stderr);
  const [early, earlyRss, late, lateRss] = stdout.trim().split(" ").map(Number) as [number, number, number, number];
  yield {
    what: "memory in use (of the process) after 1,000,000 appends, against after 100,000",
    ours: `${late} (${lateRss}) MB`,
    baseline: `${early} (${earlyRss}) MB`,
    ratio: late / early,
    wanted: { atMost: 1.2 },
  };
}

async function pythonRate(job: string, folder: string, count: number): Promise<number> {
  return Number(await succeed("python3", [BASELINES, job, folder, String(count)]));
}

async function denoRate(mode: string, base: string, count: number, concurrent: number): Promise<number> {
  return Number(await succeed(Deno.execPath(), driverArgs(mode, base, count, concurrent)));
}

function driverArgs(mode: string, base: string, count: number, concurrent: number): string[] {
  const script = `${ROOT}tests/bench/recorder_driver.ts`;
  return ["run", "--quiet", "--allow-read", "--allow-write", script, mode, base, String(count), String(concurrent)];
}
