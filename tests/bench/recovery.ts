/**
 * Rebuilding the database from the log alone, as whole processes, against the plain way and against SQLite's own import
 * of rows that are clean already; at three sizes, to show how cost grows.
 */
import { BASELINES, isThere, python, run, runScript, scriptArgs } from "../fixtures/mod.ts";
import { median, medianRatio, type Part, peakOf } from "./bench.ts";

const RUNS = 100_000;
const ROUNDS = 5;

export const recovery: Part = async function* (folder) {
  if (!isThere(`${BASELINES}/recover.py`)) {
    yield "recovery: left out, because ../shared/baselines is not there";
    return;
  }
  const base = await makeBase(folder, RUNS);
  const [ours, plain, imported, peaks] = [[] as number[], [] as number[], [] as number[], [] as number[]];
  const clean = `${folder}/clean.csv`;
  for (let round = 0; round < ROUNDS; round++) {
    const { ms, peak } = await recover(base);
    ours.push(ms);
    peaks.push(peak);
    plain.push(await timed("python3", [`${BASELINES}/recover.py`, `${base}/raw`, `${folder}/plain.sqlite`]));
    if (round === 0) await makeImport(base, clean);
    await makeEmpty(`${folder}/imported.sqlite`);
    imported.push(await timed("sqlite3", [`${folder}/imported.sqlite`, `.import --csv ${clean} agent_runs`]));
  }
  const what = `recovery from ${(RUNS * 5).toLocaleString("en")} lines`;
  yield {
    what: `${what}, against recover.py`,
    ours: `${median(ours).toFixed(0)} ms`,
    baseline: `${median(plain).toFixed(0)} ms`,
    ratio: medianRatio(plain, ours),
    wanted: { atLeast: 4 },
  };
  yield {
    what: `${what}, against sqlite3's .import of its rows`,
    ours: `${median(ours).toFixed(0)} ms`,
    baseline: `${median(imported).toFixed(0)} ms`,
    ratio: medianRatio(ours, imported),
    wanted: { atMost: 1 },
  };
  yield {
    what: "memory of that recovery (against 250 MB)",
    ours: `${median(peaks).toFixed(0)} MB`,
    baseline: "250 MB",
    ratio: median(peaks) / 250,
    wanted: { atMost: 1 },
  };
  Deno.removeSync(base, { recursive: true });
  yield* growth(folder, median(ours));
};

/** A tenth of the lines, and ten times as many. */
async function* growth(folder: string, ms: number): ReturnType<Part> {
  for (const factor of [0.1, 10]) {
    const base = await makeBase(folder, RUNS * factor);
    const { ms: taken, peak } = await recover(base);
    Deno.removeSync(base, { recursive: true });
    yield {
      what: `recovery from ${(RUNS * 5 * factor).toLocaleString("en")} lines (time against ${factor} times the above)`,
      ours: `${taken.toFixed(0)} ms`,
      baseline: `${(ms * factor).toFixed(0)} ms`,
      ratio: taken / (ms * factor),
      // What starting costs does not shrink with the log.
      wanted: { atMost: factor < 1 ? 3 : 1.3 },
    };
    yield {
      what: "its memory (against 300 MB)",
      ours: `${peak.toFixed(0)} MB`,
      baseline: "300 MB",
      ratio: peak / 300,
      wanted: { atMost: 1 },
    };
  }
}

async function makeBase(folder: string, runs: number): Promise<string> {
  const base = `${folder}/recover_${runs}`;
  const { code, stderr } = await run("python3", [`${BASELINES}/make_log.py`, `${base}/raw`, String(runs), "3"]);
  if (code !== 0) throw new Error(stderr);
  return base;
}

/** Recovers a store that has a log and nothing else. */
async function recover(base: string): Promise<{ ms: number; peak: number }> {
  for (const made of ["db", "reports"]) await Deno.remove(`${base}/${made}`, { recursive: true }).catch(() => {});
  const start = performance.now();
  const peak = await peakOf(scriptArgs("recover_database", base));
  return { ms: performance.now() - start, peak };
}

async function timed(program: string, args: string[]): Promise<number> {
  const start = performance.now();
  const { code, stderr } = await run(program, args);
  if (code !== 0) throw new Error(stderr);
  return performance.now() - start;
}

/** The rows of a recovered database as CSV without a header. */
async function makeImport(base: string, path: string): Promise<void> {
  const program = "import csv, sqlite3, sys\n" +
    "rows = sqlite3.connect(sys.argv[1]).execute('SELECT * FROM agent_runs')\n" +
    "csv.writer(open(sys.argv[2], 'w', newline='')).writerows(rows)";
  await python(program, `${base}/db/telemetry.sqlite`, path);
}

/** The table of the recovered database, with its indexes, empty. */
async function makeEmpty(path: string): Promise<void> {
  await Deno.remove(path).catch(() => {});
  const base = `${path}.base`;
  Deno.mkdirSync(`${base}/raw`, { recursive: true });
  // Without any log, nothing coming back would be a failure.
  Deno.writeTextFileSync(`${base}/raw/events_20251210.ndjson`, "");
  const { code, stderr } = await runScript("recover_database", base, ["--quiet"]);
  if (code !== 0) throw new Error(stderr);
  Deno.renameSync(`${base}/db/telemetry.sqlite`, path);
  Deno.removeSync(base, { recursive: true });
}
