/** A checked backup of a 400 MB database against the sqlite3 program, as whole processes. */
import { lacks, scriptArgs } from "../fixtures/mod.ts";
import { median, memoryMeasure, type Part, peakOf, timeMeasure, timeOf, timeOfCheckedCopy } from "./measure.ts";
import { fillDatabase, makeStore } from "./stores.ts";

const ROUNDS = 5;
const MEGABYTES = 400;

export const backup: Part = async function* (folder) {
  if (lacks("sqlite3")) {
    yield "backup: skipped, because the sqlite3 program is missing";
    return;
  }
  const base = `${folder}/base`;
  const database = await makeStore(base);
  fillDatabase(database, MEGABYTES);
  const [ours, plain, peaks] = [[] as number[], [] as number[], [] as number[]];
  for (let round = 0; round < ROUNDS; round++) {
    plain.push(await timeOfCheckedCopy(database, `${folder}/copy.sqlite`));
    ours.push(await timeOf(async () => peaks.push(await peakOf(scriptArgs("backup_database", base)))));
    Deno.removeSync(`${base}/backups`, { recursive: true });
  }
  const what = `checked backup of ${MEGABYTES} MB`;
  yield timeMeasure(`${what}, against the sqlite3 program`, ours, plain, 0.9);
  yield memoryMeasure(what, median(peaks), 150);
};
