import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { layoutOf } from "../../../lib/layout.ts";
import { newRun } from "../../../lib/records.ts";
import { type RunSummary, summarizeRuns } from "../../../lib/report/summary.ts";
import { makeOldDatabase, type OldKind, ROOT, run, TempFolder, testWith, treeOf } from "../../fixtures/mod.ts";
import { fieldStore, seededRandom, storeWith, type TestRun } from "../../fixtures/report.ts";

const NOW = new Date("2025-12-14T12:00:00Z");
const iso = (at: number) => new Date(at).toISOString().replace("Z", "000+00:00");

/** What DuckDB finds in the rows of a store, by the words of the summary. */
async function byDuckDb(database: string, folder: string, since: string, until: string) {
  const { DuckDBInstance } = await import("npm:@duckdb/node-api@1.5.4-r.1");
  const csv = `${folder}/runs.ndjson`;
  using db = new DatabaseSync(database);
  const rows = db.prepare(
    `SELECT json_object('agent_name', agent_name, 'job_type', job_type, 'status', status, 'start_time', start_time,
      'duration_ms', duration_ms, 'items', items_succeeded) AS row FROM agent_runs`,
  ).all();
  Deno.writeTextFileSync(csv, rows.map(({ row }) => `${row}\n`).join(""));
  const duck = await (await DuckDBInstance.create()).connect();
  await duck.run(`CREATE TABLE runs AS SELECT *, CAST(start_time AS TIMESTAMPTZ) AS started FROM read_json('${csv}',
    format='newline_delimited', columns={agent_name: 'VARCHAR', job_type: 'VARCHAR', status: 'VARCHAR',
    start_time: 'VARCHAR', duration_ms: 'BIGINT', items: 'BIGINT'})`);
  const window = `started >= TIMESTAMPTZ '${since}' AND started < TIMESTAMPTZ '${until}'`;
  const all = async (sql: string) => (await duck.runAndReadAll(sql)).getRowObjectsJson();
  const groups = await all(`SELECT agent_name, job_type, count(*)::INT AS runs,
    count(*) FILTER (status = 'failed')::INT AS failed, count(*) FILTER (status = 'running')::INT AS running,
    count(*) FILTER (status = 'failed') / nullif(count(*) FILTER (status <> 'running'), 0) AS failure_rate,
    quantile_cont(duration_ms, 0.5) FILTER (status <> 'running') AS p50_ms,
    quantile_cont(duration_ms, 0.95) FILTER (status <> 'running') AS p95_ms, sum(items)::INT AS items
    FROM runs WHERE ${window} GROUP BY ALL`);
  const statuses = await all(`SELECT status, count(*)::INT AS runs FROM runs WHERE ${window} GROUP BY ALL`);
  return { groups, statuses };
}

function assertSame(summary: RunSummary, duck: Awaited<ReturnType<typeof byDuckDb>>): void {
  for (const { status, runs } of duck.statuses) {
    assert.equal(summary.counts[status as "failed"], runs, String(status));
  }
  const groups = summary.groups.filter(({ runs }) => runs > 0);
  assert.equal(groups.length, duck.groups.length);
  for (const theirs of duck.groups) {
    const ours = groups.find((group) =>
      group.agent_name === theirs["agent_name"] && group.job_type === theirs["job_type"]
    )!;
    for (const name of ["runs", "failed", "running", "items", "failure_rate", "p50_ms", "p95_ms"] as const) {
      const [one, other] = [ours[name], theirs[name] as number | null];
      if (one === null || other === null) assert.equal(one, other, name);
      else assert.ok(Math.abs(one - other) <= 1e-9 * Math.max(1, Math.abs(other)), `${name}: ${one} and ${other}`);
    }
  }
}

Deno.test("counts, rates and percentiles of the field store equal those of DuckDB", async () => {
  using temp = new TempFolder();
  const [since, until] = ["2025-12-08T12:00:00Z", "2025-12-12T12:00:00Z"];
  const layout = layoutOf(fieldStore(temp.path));
  const summary = await summarizeRuns(layout, { since: new Date(since), until: new Date(until), now: NOW });
  assertSame(summary, await byDuckDb(layout.database, temp.path, since, until));
  assert.equal(summary.source, "database");
});

Deno.test("counts, rates and percentiles of 100,000 runs equal those of DuckDB", async () => {
  using temp = new TempFolder();
  const random = seededRandom(17);
  const runs = Array.from({ length: 100_000 }, (): TestRun => {
    const running = random() < 0.01;
    return {
      agent: `agent-${Math.floor(random() * 12)}`,
      job: random() < 0.1 ? null : `job-${Math.floor(random() * 3)}`,
      status: running ? "running" : ["success", "failed", "partial"][Math.floor(random() ** 3 * 3)]!,
      // Many start in the same second, as a scheduler starts them.
      start: random() < 0.2 ? "2025-12-10T03:00:00+00:00" : iso(NOW.getTime() - random() * 20 * 86_400_000),
      duration: running || random() < 0.1 ? null : Math.floor(random() ** 4 * 1e7),
      items: Math.floor(random() * 100),
    };
  });
  const layout = layoutOf(storeWith(temp.path, runs));
  const [since, until] = ["2025-12-06T23:30:15Z", "2025-12-12T01:00:00.5Z"];
  const summary = await summarizeRuns(layout, { since: new Date(since), until: new Date(until), now: NOW });
  assertSame(summary, await byDuckDb(layout.database, temp.path, since, until));
  const length = Date.parse(until) - Date.parse(since);
  const before = await byDuckDb(layout.database, temp.path, iso(Date.parse(since) - length), since);
  assert.equal(summary.before.runs, before.statuses.reduce((sum, { runs }) => sum + (runs as number), 0));
  const whole = await summarizeRuns(layout, { since: new Date(0), now: NOW });
  assert.equal(whole.counts.runs, 100_000);
  assert.equal(whole.points.length <= 2000 && whole.points.length > 900, true);
});

testWith(["zones"], "a day has 23 or 25 hours when the clock is changed", async () => {
  using temp = new TempFolder();
  // Berlin: 2025-03-30 starts at 23:00 UTC and ends at 22:00 UTC; 2025-10-26 starts at 22:00 and ends at 23:00.
  const starts = ["2025-03-29T22:59:59", "2025-03-29T23:00:00", "2025-03-30T21:59:59", "2025-03-30T22:00:00"]
    .concat("2025-10-25T21:59:59", "2025-10-25T22:00:00", "2025-10-26T22:59:59", "2025-10-26T23:00:00");
  const base = storeWith(temp.path, starts.map((start) => ({ start: `${start}+00:00` })));
  const program = `import { summarizeRuns } from "${ROOT}lib/report/summary.ts";
    import { layoutOf } from "${ROOT}lib/layout.ts";
    const { days, time_zone } = await summarizeRuns(layoutOf("${base}"), { since: new Date("2025-01-01T00:00:00Z") });
    console.log(JSON.stringify([time_zone, Object.entries(days).map(([day, { runs }]) => [day, runs])]));`;
  const file = `${temp.path}/days.ts`;
  Deno.writeTextFileSync(file, program);
  const { stdout, stderr } = await run(Deno.execPath(), ["run", "-A", "--no-check", file], {
    env: { TZ: "Europe/Berlin" },
  });
  assert.deepEqual(JSON.parse(stdout || stderr), ["Europe/Berlin", [
    ["2025-03-29", 1],
    ["2025-03-30", 2],
    ["2025-03-31", 1],
    ["2025-10-25", 1],
    ["2025-10-26", 2],
    ["2025-10-27", 1],
  ]]);
});

Deno.test("times with another zone, or without a fraction, are in the right window", async () => {
  using temp = new TempFolder();
  const inside = ["2025-12-10T00:00:00+00:00", "2025-12-10T00:00:00.000001Z", "2025-12-09T14:00:00-10:00"]
    .concat("2025-12-11T13:59:59+14:00", "2025-12-10 12:00:00", "2025-12-10");
  const outside = ["2025-12-09T23:59:59.999999+00:00", "2025-12-11T00:00:00+00:00", "2025-12-10T01:00:00+02:00"];
  const base = storeWith(temp.path, [...inside, ...outside, "yesterday", ""].map((start) => ({ start })));
  const window = { since: new Date("2025-12-10T00:00:00Z"), until: new Date("2025-12-11T00:00:00Z"), now: NOW };
  const { counts, untimed } = await summarizeRuns(layoutOf(base), window);
  assert.deepEqual([counts.runs, untimed], [inside.length, 2]);
});

Deno.test("without an index on start_time, the same runs are found", async () => {
  using temp = new TempFolder();
  const runs = Array.from({ length: 2500 }, (_, i) => ({ start: iso(NOW.getTime() - i * 600_000) }));
  const layout = layoutOf(storeWith(temp.path, runs));
  const counted = async () => (await summarizeRuns(layout, { now: NOW })).counts.runs;
  const before = await counted();
  using db = new DatabaseSync(layout.database);
  db.exec("DROP INDEX idx_runs_start");
  assert.deepEqual([before, await counted()], [1009, 1009]);
});

Deno.test("words of other clients count as failed, and unknown ones as unknown", async () => {
  using temp = new TempFolder();
  const start = iso(NOW.getTime() - 3_600_000);
  const words = ["failure", "timeout", "cancelled", "failed", "success", "partial", "running", null, "lost"];
  const { counts, failures } = await summarizeRuns(
    layoutOf(storeWith(temp.path, words.map((status) => ({ status, start })))),
    { now: NOW },
  );
  assert.deepEqual(counts, { runs: 9, success: 1, failed: 4, partial: 1, running: 1, unknown: 2 });
  assert.deepEqual(failures.map(({ status }) => status).sort(), ["cancelled", "failed", "failure", "timeout"]);
});

Deno.test("a run is stale after staleAfterMs, or after five times its p95 but not within a minute", async () => {
  using temp = new TempFolder();
  const ago = (minutes: number) => iso(NOW.getTime() - minutes * 60_000);
  const base = storeWith(temp.path, [
    { agent: "quick", start: ago(100), duration: 10 },
    { agent: "quick", id: "quick-new", status: "running", start: ago(0.9) },
    { agent: "quick", id: "quick-old", status: "running", start: ago(1.1) },
    { agent: "slow", start: ago(200), duration: 3_600_000 },
    { agent: "slow", id: "slow-new", status: "running", start: ago(290) },
    { agent: "slow", id: "slow-old", status: "running", start: ago(310) },
    { agent: "first", id: "first-new", status: "running", start: ago(23 * 60) },
    { agent: "first", id: "first-old", status: "running", start: ago(25 * 60) },
  ]);
  const idsWith = async (staleAfterMs?: number) =>
    (await summarizeRuns(layoutOf(base), { now: NOW, ...staleAfterMs && { staleAfterMs } })).stale.map((run) =>
      run.run_id
    );
  assert.deepEqual(await idsWith(), ["first-old", "slow-old", "quick-old"]);
  assert.deepEqual(await idsWith(3_600_000), ["first-old", "first-new", "slow-old", "slow-new", "quick-old"]);
});

Deno.test("a run that started before the window is stale, too, for the same agents and jobs", async () => {
  using temp = new TempFolder();
  const days = (count: number) => iso(NOW.getTime() - count * 86_400_000);
  const base = storeWith(temp.path, [
    { agent: "a", id: "old", status: "running", start: days(30) },
    { agent: "a", id: "new", status: "running", start: days(0.5) },
    { agent: "b", id: "other", status: "running", start: days(40) },
  ]);
  const { stale, counts, store } = await summarizeRuns(layoutOf(base), { now: NOW, since: new Date(days(1)) });
  assert.deepEqual(stale.map(({ run_id }) => run_id), ["other", "old"]);
  assert.deepEqual([counts.running, store.running_before], [1, 2]);
  const one = await summarizeRuns(layoutOf(base), { now: NOW, agents: ["a"], until: new Date(days(1)) });
  assert.deepEqual(one.stale.map(({ run_id }) => run_id), ["old"]);
});

Deno.test("row numbers over 2^53 lose no run", async () => {
  using temp = new TempFolder();
  const layout = layoutOf(
    storeWith(temp.path, [1, 2, 3].map((hour) => ({ start: iso(NOW.getTime() - hour * 3.6e6) }))),
  );
  using db = new DatabaseSync(layout.database);
  db.exec("UPDATE agent_runs SET rowid=9007199254740992 + rowid");
  assert.equal((await summarizeRuns(layout, { now: NOW })).counts.runs, 3);
});

Deno.test("the newest failures come with their fields, text with NUL whole", async () => {
  using temp = new TempFolder();
  const runs = Array.from({ length: 60 }, (_, i): TestRun => ({
    status: "failed",
    id: `id\0${i}`,
    start: iso(NOW.getTime() - i * 60_000),
    error: `broken\0 at ${i}`,
  }));
  const { failures } = await summarizeRuns(layoutOf(storeWith(temp.path, runs)), { now: NOW });
  assert.deepEqual(failures.map(({ error_summary }) => error_summary), runs.slice(0, 20).map(({ error }) => error));
  assert.equal(failures[3]!.fields["run_id"], "id\x003");
});

Deno.test("the filters select agents and job types, and a group of the window before stays in the list", async () => {
  using temp = new TempFolder();
  const base = storeWith(temp.path, [
    { agent: "a", job: "x", start: iso(NOW.getTime() - 3_600_000) },
    { agent: "a", job: "y", start: iso(NOW.getTime() - 3_600_000) },
    { agent: "b", job: "x", start: iso(NOW.getTime() - 9 * 86_400_000), status: "failed" },
    { agent: "c", job: "x", start: iso(NOW.getTime() - 15 * 86_400_000) },
  ]);
  const groupsWith = async (filter: { agents?: string[]; jobTypes?: string[] }) =>
    (await summarizeRuns(layoutOf(base), { now: NOW, ...filter })).groups
      .map((group) => [group.agent_name, group.job_type, group.runs, group.failure_rate_before]);
  assert.deepEqual(await groupsWith({}), [["a", "x", 1, null], ["a", "y", 1, null], ["b", "x", 0, 1]]);
  assert.deepEqual(await groupsWith({ agents: ["a"], jobTypes: ["y", "z"] }), [["a", "y", 1, null]]);
});

for (const kind of ["v1", "v2", "v2_recovered", "says3_is2", "v7"] as OldKind[]) {
  Deno.test(`a ${kind} database is summarized, and not changed`, async () => {
    using temp = new TempFolder();
    for (const name of ["db", "raw"]) Deno.mkdirSync(`${temp.path}/${name}`);
    for (const journal of ["wal", "delete"] as const) {
      const path = `${temp.path}/db/telemetry.sqlite`;
      makeOldDatabase(path, kind, 40, journal);
      const before = treeOf(temp.path);
      const { counts, groups } = await summarizeRuns(layoutOf(temp.path), { since: new Date(0), now: NOW });
      assert.deepEqual([counts.success, groups[0]!.p50_ms], [40, 19.5e9]);
      assert.deepEqual(treeOf(temp.path), before);
      Deno.removeSync(path);
    }
  });
}

Deno.test("where the database is missing, damaged, empty or another file, the log is read, and the summary says so", async () => {
  using temp = new TempFolder();
  const base = storeWith(temp.path, []);
  const layout = layoutOf(base);
  const run = newRun({ run_id: "r1", agent_name: "a", job_type: "j", start_time: iso(NOW.getTime() - 60_000) });
  const ended = { ...run, status: "failed", trigger_type: "detector", error_summary: "no" };
  const line = (record: object) => `${JSON.stringify({ ...record, record_type: "run" })}\n`;
  Deno.writeTextFileSync(`${base}/raw/events_20251214.ndjson`, `${line(run)}${line(ended)}{"half": \n`);
  const damaged = Deno.readFileSync(layout.database);
  damaged.fill(7, 100);
  for (const content of [undefined, damaged, new Uint8Array(0), new TextEncoder().encode("not a database")]) {
    Deno.removeSync(layout.database);
    if (content) Deno.writeFileSync(layout.database, content);
    const summary = await summarizeRuns(layout, { now: NOW });
    assert.deepEqual([summary.source, summary.counts.failed, summary.rejected_parts], ["log", 1, 1]);
    assert.match(summary.problem!, /telemetry\.sqlite/);
    assert.equal(summary.failures[0]!.error_summary, "no");
    if (!content) Deno.writeFileSync(layout.database, damaged);
  }
});

Deno.test("the newest runs of the log are compared with the database", async () => {
  using temp = new TempFolder();
  const start = iso(NOW.getTime() - 3_600_000);
  const base = storeWith(temp.path, [{ id: "same", start }, { id: "older", start, status: "running" }]);
  const line = (run_id: string, start_time: string) =>
    JSON.stringify({ ...newRun({ run_id, agent_name: "a", start_time, status: "success" }), record_type: "run" });
  const lines = ["same", "older", "missing"].map((id) => line(id, start));
  // An agent that has just written its log may still wait for the database.
  lines.push(line("fresh", iso(NOW.getTime() - 5000)));
  Deno.writeTextFileSync(`${base}/raw/events_20251214.ndjson`, `${lines.join("\n")}\n`);
  const { store } = await summarizeRuns(layoutOf(base), { now: NOW });
  assert.deepEqual(store.log_check, { checked: 3, missing: 1, older: 1 });
});
