/**
 * Rebuilding the database from only the log, as whole processes, against plain Python and against SQLite's own import
 * of the finished rows. Then a tenth of the log and ten times the log, to show how cost grows, and an intact database.
 */
import { lacks, python, scriptArgs } from "../fixtures/mod.ts";
import {
  BASELINES,
  median,
  memoryMeasure,
  type Part,
  peakOf,
  succeed,
  timeMeasure,
  timeOf,
  timeOfCheckedCopy,
} from "./measure.ts";
import { fillDatabase, makeStore, writeLog } from "./stores.ts";

const RUNS = 100_000;
const LINES_PER_RUN = 5;
const ROUNDS = 5;
const FORCED_MEGABYTES = 129;

export const recovery: Part = async function* (folder) {
  if (lacks("python") || lacks("sqlite3")) {
    yield "recovery: skipped, because python3 or the sqlite3 program is missing";
    return;
  }
  const base = `${folder}/base`;
  writeLog(`${base}/raw`, RUNS);
  const [ours, plain, imported, peaks] = [[] as number[], [] as number[], [] as number[], [] as number[]];
  const target = `${folder}/imported.sqlite`;
  for (let round = 0; round < ROUNDS; round++) {
    const { time, peak } = await recover(base);
    ours.push(time);
    peaks.push(peak);
    plain.push(await timeOf(() => succeed("python3", [BASELINES, "rebuild", `${base}/raw`, `${folder}/plain.sqlite`])));
    await splitForImport(`${base}/db/telemetry.sqlite`, `${folder}/rows.csv`, target);
    imported.push(await timeOf(() => succeed("sqlite3", [target, `.import --csv ${folder}/rows.csv agent_runs`])));
  }
  const what = `recovery from ${lines(RUNS)}`;
  yield {
    what: `${what}, against Python (times as fast)`,
    ours: `${median(ours).toFixed(0)} ms`,
    baseline: `${median(plain).toFixed(0)} ms`,
    ratio: median(plain.map((time, round) => time / ours[round]!)),
    wanted: { atLeast: 3.5 },
  };
  yield timeMeasure(`${what}, against sqlite3's .import of the finished rows`, ours, imported);
  yield memoryMeasure(what, median(peaks), 160);
  Deno.removeSync(base, { recursive: true });
  yield* growth(folder, median(ours));
  yield* forced(folder);
};

/** Rebuilds an intact database without a log, against a copy by the sqlite3 program and its check of that. */
async function* forced(folder: string): ReturnType<Part> {
  const base = `${folder}/forced`;
  const database = await makeStore(base);
  fillDatabase(database, FORCED_MEGABYTES);
  const [ours, plain] = [[] as number[], [] as number[]];
  for (let round = 0; round < ROUNDS; round++) {
    plain.push(await timeOfCheckedCopy(database, `${folder}/copy.sqlite`));
    ours.push(await timeOf(() => succeed(Deno.execPath(), scriptArgs("recover_database", base, ["--force"]))));
    for (const { name } of Deno.readDirSync(`${base}/db`)) {
      if (name.includes("before_rebuild")) Deno.removeSync(`${base}/db/${name}`);
    }
  }
  const what = `forced recovery of an intact database of ${FORCED_MEGABYTES} MB, against .backup and quick_check`;
  yield timeMeasure(what, ours, plain, 3);
}

async function* growth(folder: string, time: number): ReturnType<Part> {
  // What it costs to start does not shrink with the log.
  for (const [factor, atMost] of [[0.1, 3], [10, 1]] as const) {
    const base = `${folder}/times_${factor}`;
    writeLog(`${base}/raw`, RUNS * factor);
    const recovered = await recover(base);
    Deno.removeSync(base, { recursive: true });
    const what = `recovery from ${lines(RUNS * factor)}`;
    yield timeMeasure(`${what}, against ${factor} times the above`, [recovered.time], [time * factor], atMost);
    yield memoryMeasure(what, recovered.peak, 200);
  }
}

const lines = (runs: number) => `${(runs * LINES_PER_RUN).toLocaleString("en")} lines`;

/** Recovers a store that has only a log. */
async function recover(base: string): Promise<{ time: number; peak: number }> {
  for (const folder of ["db", "reports"]) await Deno.remove(`${base}/${folder}`, { recursive: true }).catch(() => {});
  let peak = 0;
  const time = await timeOf(async () => peak = await peakOf(scriptArgs("recover_database", base)));
  return { time, peak };
}

/** Writes the rows of a database as CSV without a header, and its table and indexes without rows to a new database. */
async function splitForImport(database: string, csv: string, empty: string): Promise<void> {
  await Deno.remove(empty).catch(() => {});
  const program = `
import csv, sqlite3, sys
source, empty = sqlite3.connect(sys.argv[1]), sqlite3.connect(sys.argv[3])
with open(sys.argv[2], "w", newline="", encoding="utf-8") as file:
    csv.writer(file).writerows(source.execute("SELECT * FROM agent_runs"))
empty.execute("PRAGMA journal_mode=WAL")
for [sql] in source.execute("SELECT sql FROM sqlite_master WHERE tbl_name = 'agent_runs' AND sql IS NOT NULL ORDER BY type DESC"):
    empty.execute(sql)
empty.commit()
empty.close()
source.close()
`;
  await python(program, database, csv, empty);
}
