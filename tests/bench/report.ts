/** The report on a million runs, against the sqlite3 program with the same aggregates, as whole processes. */
import { lacks, scriptArgs } from "../fixtures/mod.ts";
import { memoryMeasure, type Part, peakOf, succeed, timeMeasure, timeOf } from "./measure.ts";
import { insertGenerated, makeStore } from "./stores.ts";

const ROUNDS = 5;
const RUNS = 1_000_000;
const DAYS = 70;
/** How long the report on a week may take. */
const WEEK_MS = 1000;

/** Counts of each group and status, days, and the percentiles of each group. */
const AGGREGATES = `
  SELECT agent_name, job_type, status, count(*), sum(items_succeeded), max(start_time) FROM agent_runs GROUP BY 1, 2, 3;
  SELECT substr(start_time, 1, 10), status, count(*) FROM agent_runs GROUP BY 1, 2;
  WITH ranked AS (SELECT agent_name, job_type, duration_ms,
    row_number() OVER (PARTITION BY agent_name, job_type ORDER BY duration_ms) AS n,
    count(*) OVER (PARTITION BY agent_name, job_type) AS runs
    FROM agent_runs WHERE status<>'running' AND duration_ms IS NOT NULL)
  SELECT agent_name, job_type, max(CASE WHEN n=runs / 2 THEN duration_ms END),
    max(CASE WHEN n=runs * 95 / 100 THEN duration_ms END) FROM ranked GROUP BY 1, 2;`;

export const report: Part = async function* (folder) {
  const base = `${folder}/base`;
  const database = await makeStore(base);
  insertRecentRuns(database);
  const runs = `${RUNS.toLocaleString("en")} runs`;
  const week = scriptArgs("report_runs", base, ["--since", "7d"]);
  const times: number[] = [];
  for (let round = 0; round < ROUNDS; round++) times.push(await timeOf(() => succeed(Deno.execPath(), week)));
  yield timeMeasure(`report on 7 of ${DAYS} days with ${runs}`, times, times.map(() => WEEK_MS));
  yield memoryMeasure("the same report", await peakOf(week), 150);
  const all = scriptArgs("report_runs", base, ["--since", "2000-01-01"]);
  if (lacks("sqlite3")) yield "report on all runs: skipped, because the sqlite3 program is missing";
  else {
    const [ours, plain] = [[] as number[], [] as number[]];
    for (let round = 0; round < ROUNDS; round++) {
      plain.push(await timeOf(() => succeed("sqlite3", [database, AGGREGATES])));
      ours.push(await timeOf(() => succeed(Deno.execPath(), all)));
    }
    yield timeMeasure(`report on all ${runs}, against the sqlite3 program`, ours, plain, 1.5);
  }
  yield memoryMeasure("the same report", await peakOf(all), 200);
  const page = `${folder}/page.html`;
  await succeed(Deno.execPath(), scriptArgs("report_runs", base, ["--since", "2000-01-01", "--output", page]));
  const megabytes = Deno.statSync(page).size / 1e6;
  yield {
    what: `page on all ${runs}`,
    ours: `${megabytes.toFixed(2)} MB`,
    baseline: "2 MB (limit)",
    ratio: megabytes / 2,
    wanted: { atMost: 1 },
  };
};

/** Inserts the runs of 17 agents in the last days. */
function insertRecentRuns(database: string): void {
  const first = Math.floor(Date.now() / 1000) - DAYS * 86_400;
  const at = `${first} + CAST(i * ${DAYS * 86_400 / RUNS} AS INTEGER)`;
  const run = {
    run_id: "printf('20251210T%06dZ-agent%d-%08x', i % 86400, i % 17, i)",
    agent_name: "'agent' || (i % 17)",
    job_type: "'job_' || (i % 3)",
    trigger_type: "'scheduler'",
    start_time: `strftime('%Y-%m-%dT%H:%M:%S', ${at}, 'unixepoch') || printf('.%06d+00:00', i % 1000000)`,
    end_time: `strftime('%Y-%m-%dT%H:%M:%S', ${at} + 60, 'unixepoch') || '.123456+00:00'`,
    status: "CASE WHEN i % 23 = 0 THEN 'failed' WHEN i % 31 = 0 THEN 'partial' ELSE 'success' END",
    items_succeeded: "i % 90",
    duration_ms: "i * 7919 % 600000",
    output_summary: "'processed ' || i || ' items, all well'",
    error_summary: "CASE WHEN i % 23 = 0 THEN 'TimeoutError: no answer from host ' || (i % 7) END",
    metrics_json: `'{"pages": ' || (i % 7) || ', "tokens": {"in": 1200, "out": ' || (i % 1000) || '}}'`,
    product: "'docs'",
    git_repo: "'org/repo'",
    host: "'host-1'",
  };
  insertGenerated(database, RUNS, run);
}
