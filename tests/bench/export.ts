/** Exports as whole processes: 1,000,000 runs against the sqlite3 program, and events of the log. */
import { command, lacks, scriptArgs } from "../fixtures/mod.ts";
import { median, memoryMeasure, type Part, peakOf, timeMeasure, timeOf } from "./measure.ts";
import { insertRuns, makeStore, writeLog } from "./stores.ts";

const ROUNDS = 5;
const RUNS = 1_000_000;
const LOGGED_RUNS = 160_000;
/** The rate that the export of events should reach, in MB of log per second. */
const EVENT_RATE = 200;

export const exports: Part = async function* (folder) {
  const base = `${folder}/base`;
  const database = await makeStore(base);
  const args = scriptArgs("export_csv", base);
  const csv = `${folder}/out.csv`;
  if (lacks("sqlite3")) yield "export of runs: skipped, because the sqlite3 program is missing";
  else {
    insertRuns(database, RUNS);
    const plainArgs = ["-csv", "-header", database, "SELECT * FROM agent_runs ORDER BY start_time"];
    const [ours, plain] = [[] as number[], [] as number[]];
    for (let round = 0; round < ROUNDS; round++) {
      plain.push(await timeTo(csv, "sqlite3", plainArgs));
      ours.push(await timeTo(csv, Deno.execPath(), [...args, "--output", "-"]));
    }
    const what = `export of ${RUNS.toLocaleString("en")} runs`;
    yield timeMeasure(`${what}, against the sqlite3 program`, ours, plain, 1.1);
    yield memoryMeasure(what, await peakOf(args), 150);
    yield memoryMeasure(`${what} with --for sheets`, await peakOf([...args, "--for", "sheets"]), 150);
  }
  const bytes = writeLog(`${base}/raw`, LOGGED_RUNS);
  const times: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    times.push(await timeTo(csv, Deno.execPath(), [...args, "--table", "events", "--output", "-"]));
  }
  const rate = bytes / 1000 / median(times);
  yield {
    what: "export of events (log read per second)",
    ours: `${rate.toFixed(0)} MB/s`,
    baseline: `${EVENT_RATE} MB/s`,
    ratio: rate / EVENT_RATE,
    wanted: { atLeast: 1 },
  };
  yield memoryMeasure("export of events", await peakOf([...args, "--table", "events"]), 150);
};

/** How long a program takes to write its standard output to a file, in milliseconds. */
async function timeTo(path: string, program: string, args: string[]): Promise<number> {
  const time = await timeOf(async () => {
    const { code, stderr } = await command("sh", ["-c", `exec "$0" "$@" > '${path}'`, program, ...args]).output();
    if (code !== 0) throw new Error(new TextDecoder().decode(stderr));
  });
  Deno.removeSync(path);
  return time;
}
