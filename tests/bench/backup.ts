/** A hot backup of a 400 MB database, checks included, against the sqlite3 program, as whole processes. */
import { DatabaseSync } from "node:sqlite";
import { run, runScript, scriptArgs } from "../fixtures/mod.ts";
import { median, medianRatio, type Part, peakOf } from "./bench.ts";

const ROUNDS = 5;
const MEGABYTES = 400;

export const backup: Part = async function* (folder) {
  if ((await run("sqlite3", ["-version"]).catch(() => ({ code: 1 }))).code !== 0) {
    yield "backup: left out, because the sqlite3 program is missing";
    return;
  }
  const base = `${folder}/base`;
  const { code, stderr } = await runScript("setup_storage", base, ["--with-database"]);
  if (code !== 0) throw new Error(stderr);
  const database = `${base}/db/telemetry.sqlite`;
  fill(database);
  const out = `${folder}/plain.sqlite`;
  const [ours, plain, peaks] = [[] as number[], [] as number[], [] as number[]];
  for (let round = 0; round < ROUNDS; round++) {
    let start = performance.now();
    for (const args of [[database, `.backup ${out}`], [out, "PRAGMA quick_check"]]) await run("sqlite3", args);
    plain.push(performance.now() - start);
    Deno.removeSync(out);
    start = performance.now();
    peaks.push(await peakOf(scriptArgs("backup_database", base)));
    ours.push(performance.now() - start);
    // As with the other's, removing is not part of it.
    for (const { name } of Deno.readDirSync(`${base}/backups`)) Deno.removeSync(`${base}/backups/${name}`);
  }
  yield {
    what: `backup of a ${MEGABYTES} MB database, checked (time of the whole process)`,
    ours: `${median(ours).toFixed(0)} ms`,
    baseline: `${median(plain).toFixed(0)} ms`,
    ratio: medianRatio(ours, plain),
    wanted: { atMost: 1 },
  };
  yield {
    what: "memory of that backup (against 150 MB)",
    ours: `${median(peaks).toFixed(0)} MB`,
    baseline: "150 MB",
    ratio: median(peaks) / 150,
    wanted: { atMost: 1 },
  };
};

/** Fills a database with runs until it has its size. */
function fill(database: string): void {
  const db = new DatabaseSync(database);
  db.exec("PRAGMA synchronous=OFF");
  const insert = db.prepare(
    "INSERT INTO agent_runs (run_id, agent_name, start_time, status, insight_id, output_summary) VALUES (?, ?, ?, ?, ?, ?)",
  );
  const pages = db.prepare("PRAGMA page_count");
  for (let n = 0; Number(pages.get()!["page_count"]) * 4096 < MEGABYTES * 1e6;) {
    db.exec("BEGIN");
    for (const end = n + 10_000; n < end; n++) {
      const id = crypto.randomUUID();
      insert.run(
        `20251210T000000Z-${id}`,
        `agent${n % 17}`,
        new Date(n * 1000).toISOString(),
        "success",
        id,
        id.repeat(25),
      );
    }
    db.exec("COMMIT");
  }
  db.exec("PRAGMA wal_checkpoint(TRUNCATE)");
  db.close();
}
