/** A million runs to CSV, against the sqlite3 program, as whole processes; and events from the log. */
import { DatabaseSync } from "node:sqlite";
import { newRun } from "../../lib/records.ts";
import { command, run, runScript, scriptArgs } from "../fixtures/mod.ts";
import { type Measure, median, medianRatio, type Part, peakOf } from "./bench.ts";

const ROUNDS = 5;
const RUNS = 1_000_000;
const LOG_BYTES = 300e6;

export const exports: Part = async function* (folder) {
  const base = `${folder}/base`;
  const { code, stderr } = await runScript("setup_storage", base, ["--with-database"]);
  if (code !== 0) throw new Error(stderr);
  const args = scriptArgs("export_csv", base);
  const out = `${folder}/out.csv`;
  if ((await run("sqlite3", ["-version"]).catch(() => ({ code: 1 }))).code === 0) {
    const database = `${base}/db/telemetry.sqlite`;
    fill(database);
    const plainArgs = ["-csv", "-header", database, "SELECT * FROM agent_runs ORDER BY start_time"];
    const [ours, plain] = [[] as number[], [] as number[]];
    for (let round = 0; round < ROUNDS; round++) {
      plain.push(await timeOf("sqlite3", plainArgs, out));
      ours.push(await timeOf(Deno.execPath(), [...args, "--output", "-"], out));
    }
    yield {
      what: "1,000,000 runs to CSV (time of the whole process)",
      ours: `${median(ours).toFixed(0)} ms`,
      baseline: `${median(plain).toFixed(0)} ms`,
      ratio: medianRatio(ours, plain),
      wanted: { atMost: 1 },
    };
    yield memory("of that export", await peakOf(args));
    yield memory("of that export for sheets", await peakOf([...args, "--for", "sheets"]));
  } else {
    yield "export of runs: left out, because the sqlite3 program is missing";
  }
  const bytes = writeLog(`${base}/raw/events_20251210.ndjson`);
  const times: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    times.push(await timeOf(Deno.execPath(), [...args, "--table", "events", "--output", "-"], out));
  }
  const rate = bytes / 1000 / median(times);
  yield {
    what: "events to CSV (log a second, whole process)",
    ours: `${rate.toFixed(0)} MB/s`,
    baseline: "150 MB/s",
    ratio: rate / 150,
    wanted: { atLeast: 1 },
  };
  yield memory("of that export", await peakOf([...args, "--table", "events"]));
};

function memory(whose: string, megabytes: number): Measure {
  return {
    what: `memory ${whose}`,
    ours: `${megabytes.toFixed(0)} MB`,
    baseline: "150 MB",
    ratio: megabytes / 150,
    wanted: { atMost: 1 },
  };
}

/** How long a program takes to write a file by its stdout, in milliseconds. */
async function timeOf(program: string, args: string[], path: string): Promise<number> {
  const start = performance.now();
  const { code, stderr } = await command("sh", ["-c", `exec "$0" "$@" > '${path}'`, program, ...args]).output();
  const time = performance.now() - start;
  if (code !== 0) throw new Error(new TextDecoder().decode(stderr));
  Deno.removeSync(path);
  return time;
}

/** Fills a database with runs that have something in most columns. */
function fill(database: string): void {
  const run = {
    run_id: "printf('20251210T%06dZ-agent%d-%08x', i % 86400, i % 17, i)",
    agent_name: "'agent' || i % 17",
    agent_owner: "'team'",
    job_type: "'index_files'",
    trigger_type: "'cli'",
    start_time: "strftime('%Y-%m-%dT%H:%M:%S', 1735689600 + i * 30, 'unixepoch') || printf('.%06d+00:00', i % 1000000)",
    end_time: "strftime('%Y-%m-%dT%H:%M:%S', 1735689660 + i * 30, 'unixepoch') || '.123456+00:00'",
    status: "'success'",
    items_discovered: "i % 100",
    items_succeeded: "i % 90",
    items_failed: "i % 10",
    duration_ms: "i % 600000",
    output_summary: "'processed ' || i || ' items, all well'",
    metrics_json: `'{"pages": ' || i % 7 || ', "tokens": {"in": 1200, "out": ' || i % 1000 || '}}'`,
    product: "'docs'",
    platform: "'github'",
    product_family: "'family'",
    git_repo: "'org/repo'",
    git_branch: "'main'",
    host: "'host-1'",
  };
  using db = new DatabaseSync(database);
  db.exec("PRAGMA synchronous=OFF");
  db.prepare(
    `INSERT INTO agent_runs (${Object.keys(run)})
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${RUNS})
    SELECT ${Object.values(run)} FROM n`,
  ).run();
  db.exec("PRAGMA wal_checkpoint(TRUNCATE)");
}

/** Writes a log as the client does: each run with its start, three events and its end. Its size in bytes. */
function writeLog(path: string): number {
  using file = Deno.openSync(path, { write: true, createNew: true });
  const at = "2025-12-10T12:05:30.123456+00:00";
  const line = (record_type: string, record: object) => `${JSON.stringify({ ...record, record_type })}\n`;
  let bytes = 0;
  for (let n = 0; bytes < LOG_BYTES;) {
    let text = "";
    for (const end = n + 1000; n < end; n++) {
      const run_id = `20251210T120530Z-agent-${String(n).padStart(8, "0")}`;
      const run = newRun({ run_id, agent_name: "agent", start_time: at, job_type: "process_files", host: "host-1" });
      text += line("run", run);
      for (let step = 0; step < 3; step++) {
        const payload_json = JSON.stringify({ step, file: `docs/page_${n}.md`, words: n % 1000 });
        text += line("event", { run_id, event_type: "checkpoint", timestamp: at, payload_json, id: null });
      }
      text += line("run", { ...run, status: "success", end_time: at, items_succeeded: 3, output_summary: "done, all" });
    }
    bytes += file.writeSync(new TextEncoder().encode(text));
  }
  return bytes;
}
