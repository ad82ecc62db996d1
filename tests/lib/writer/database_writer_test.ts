import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { createDatabase } from "../../../lib/store/database.ts";
import { DatabaseWriter } from "../../../lib/writer/database_writer.ts";
import type { TelemetryError } from "../../../lib/errors.ts";
import { type Layout, layoutOf } from "../../../lib/layout.ts";
import { newRun, type RunRecord } from "../../../lib/records.ts";
import { Holder, makeOldDatabase, python, TempFolder, testWith } from "../../fixtures/mod.ts";

/** A store with an empty v3 database. */
function freshBase(folder: TempFolder): Layout {
  const layout = layoutOf(folder.path);
  Deno.mkdirSync(layout.db);
  createDatabase(layout);
  return layout;
}

let count = 0;

function someRun(fields: Partial<RunRecord> = {}): RunRecord {
  const second = String(count % 60).padStart(2, "0");
  return newRun({
    run_id: `run-${count++}`,
    agent_name: "tester",
    start_time: `2025-12-10T12:00:${second}.000000+00:00`,
    trigger_type: "cli",
    ...fields,
  });
}

const failsWith = (code: string) => (error: TelemetryError) => error.code === code;

Deno.test("a run is read as it was written, with NUL, emoji and large numbers", () => {
  using folder = new TempFolder();
  using writer = new DatabaseWriter(freshBase(folder));
  const run = someRun({ output_summary: "a\0b — 日本語 🚀", duration_ms: 2 ** 40, metrics_json: '{"a": "\\u0000"}' });
  writer.insertRun(run);
  const { created_at, updated_at, ...rest } = writer.getRun(run.run_id)!;
  const { created_at: _, updated_at: __, ...given } = run;
  assert.deepEqual(rest, given);
  assert.match(created_at!, /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$/);
  assert.equal(updated_at, created_at);
  assert.equal(writer.getRun("no such run"), undefined);
});

Deno.test("a second insert and a CHECK violation throw invalid_record", () => {
  using folder = new TempFolder();
  using writer = new DatabaseWriter(freshBase(folder));
  const run = someRun();
  writer.insertRun(run);
  assert.throws(() => writer.insertRun(run), failsWith("invalid_record"));
  assert.throws(() => writer.insertRun(someRun({ trigger_type: "detector" })), failsWith("invalid_record"));
  assert.equal(writer.getRunStats().total_runs, 1);
});

Deno.test("updateRun inserts a run that the database does not have", () => {
  using folder = new TempFolder();
  using writer = new DatabaseWriter(freshBase(folder));
  writer.updateRun(someRun({ run_id: "late", status: "failed", items_failed: 3 }));
  assert.equal(writer.getRun("late")?.items_failed, 3);
});

Deno.test("updateRun keeps the api_posted markers and created_at", () => {
  using folder = new TempFolder();
  const layout = freshBase(folder);
  using writer = new DatabaseWriter(layout);
  const run = someRun();
  writer.insertRun(run);
  using db = new DatabaseSync(layout.database);
  db.exec("UPDATE agent_runs SET created_at='2020-01-01 00:00:00', updated_at='2020-01-01 00:00:00'");
  assert.equal(writer.markApiPosted(run.run_id, "2025-12-10T13:00:00.000000+00:00"), true);
  writer.incrementApiRetryCount(run.run_id);
  writer.updateRun({ ...run, status: "success" });
  const row = writer.getRun(run.run_id)!;
  assert.equal(row.status, "success");
  assert.equal(row.api_posted, 1);
  assert.equal(row.api_posted_at, "2025-12-10T13:00:00.000000+00:00");
  assert.equal(row.api_retry_count, 1);
  assert.equal(row.created_at, "2020-01-01 00:00:00");
  assert.notEqual(row.updated_at, "2020-01-01 00:00:00");
  assert.equal(writer.markApiPosted("no such run", "x"), false);
  assert.equal(writer.incrementApiRetryCount("no such run"), false);
});

Deno.test("getPendingApiPosts returns ended runs that are not posted, newest first, by limit and since", () => {
  using folder = new TempFolder();
  using writer = new DatabaseWriter(freshBase(folder));
  const at = (time: string, fields: Partial<RunRecord> = {}) =>
    writer.insertRun(someRun({ run_id: time, start_time: time, status: "success", ...fields }));
  at("2025-12-10T10:00:00.000000+00:00");
  at("2025-12-10T11:00:00+00:00");
  at("2025-12-10T12:00:00Z", { status: "failed" });
  at("2025-12-10T13:00:00Z", { status: "running" });
  at("2025-12-10T14:00:00Z", { api_posted: 1 });
  const ids = (...args: Parameters<typeof writer.getPendingApiPosts>) =>
    writer.getPendingApiPosts(...args).map((run) => run.run_id);
  assert.deepEqual(ids(), [
    "2025-12-10T12:00:00Z",
    "2025-12-10T11:00:00+00:00",
    "2025-12-10T10:00:00.000000+00:00",
  ]);
  assert.deepEqual(ids(1), ["2025-12-10T12:00:00Z"]);
  assert.deepEqual(ids(100, "2025-12-10 11:00:00"), ["2025-12-10T12:00:00Z", "2025-12-10T11:00:00+00:00"]);
  for (const args of [[NaN], [-1], ["5"], [5, "soon"]] as [number, string][]) {
    assert.throws(() => ids(...args), /limit|since/);
  }
  assert.deepEqual(writer.getRunStats(), {
    total_runs: 5,
    status_counts: { success: 3, failed: 1, running: 1 },
    pending_api_posts: 3,
  });
});

Deno.test("a run with NUL in its id is pending, and statuses that the CHECK does not allow are counted", () => {
  using folder = new TempFolder();
  const layout = freshBase(folder);
  using writer = new DatabaseWriter(layout);
  writer.insertRun(someRun({ run_id: "a\0b", status: "success" }));
  using db = new DatabaseSync(layout.database);
  db.exec(`PRAGMA ignore_check_constraints=ON;
    INSERT INTO agent_runs (run_id, agent_name, start_time, status) VALUES ('odd', 'a', 't', 'timeout')`);
  assert.deepEqual(writer.getPendingApiPosts().map(({ run_id }) => run_id).toSorted(), ["a\0b", "odd"]);
  const { total_runs, status_counts } = writer.getRunStats();
  assert.deepEqual([total_runs, status_counts], [2, { success: 1, timeout: 1 }]);
});

Deno.test("a BLOB in a run does not stop its post, and a run whose id is a BLOB is not pending", () => {
  using folder = new TempFolder();
  const layout = freshBase(folder);
  using writer = new DatabaseWriter(layout);
  writer.insertRun(someRun({ run_id: "bytes", status: "success", product: "p" }));
  writer.insertRun(someRun({ run_id: "text", status: "success", host: "h" }));
  using db = new DatabaseSync(layout.database);
  // SQLite takes the second one for JSONB.
  const set = db.prepare("UPDATE agent_runs SET output_summary=?, host=? WHERE run_id='bytes'");
  set.run(new TextEncoder().encode("a\0é"), new TextEncoder().encode("Hello"));
  db.exec("INSERT INTO agent_runs (run_id, agent_name, start_time, status) VALUES (x'00ff', 'a', 't', 'failed')");
  const runs = writer.getPendingApiPosts().map(({ run_id, output_summary, host }) => [run_id, output_summary, host]);
  assert.deepEqual(runs.toSorted(), [["bytes", "a\0é", "Hello"], ["text", null, "h"]]);
  assert.equal(writer.getRunStats().pending_api_posts, 2);
});

testWith(["openRemoval"], "a database that replaces the open one is opened", () => {
  using folder = new TempFolder();
  const layout = freshBase(folder);
  using writer = new DatabaseWriter(layout);
  writer.insertRun(someRun({ run_id: "before" }));

  // Another program has rows in the new WAL: closing the old connection must not delete it.
  using elsewhere = new TempFolder();
  const next = freshBase(elsewhere);
  Deno.removeSync(`${layout.database}-wal`);
  Deno.removeSync(`${layout.database}-shm`);
  Deno.renameSync(next.database, layout.database);
  using other = new DatabaseSync(layout.database);
  other.exec("INSERT INTO agent_runs (run_id, agent_name, start_time) VALUES ('theirs', 'a', 't')");

  writer.insertRun(someRun({ run_id: "after" }));
  assert.equal(writer.getRun("before"), undefined);
  assert.equal(writer.getRun("theirs")?.agent_name, "a");
  const rows = other.prepare("SELECT run_id FROM agent_runs ORDER BY run_id").all();
  assert.deepEqual(rows.map((row) => row["run_id"]), ["after", "theirs"]);
});

testWith(["openRemoval"], "a missing database is created, also after it was removed", () => {
  using folder = new TempFolder();
  const layout = layoutOf(folder.path);
  Deno.mkdirSync(layout.db);
  using writer = new DatabaseWriter(layout);
  writer.insertRun(someRun({ run_id: "first" }));
  for (const path of ["", "-wal", "-shm"]) Deno.removeSync(layout.database + path);
  writer.insertRun(someRun({ run_id: "second" }));
  assert.equal(writer.getRun("first"), undefined);
  assert.equal(writer.getRun("second")?.agent_name, "tester");
});

Deno.test("older and newer schemas are refused by their codes, and older ones work after an upgrade", async () => {
  for (const [kind, code] of [["v1", "older_schema"], ["says3_is2", "older_schema"], ["v7", "newer_schema"]] as const) {
    using folder = new TempFolder();
    const layout = layoutOf(folder.path);
    Deno.mkdirSync(layout.db);
    makeOldDatabase(layout.database, kind);
    using writer = new DatabaseWriter(layout);
    assert.throws(() => writer.insertRun(someRun()), failsWith(code), kind);
    if (code === "newer_schema") continue;
    const { setUpDatabase } = await import("../../../lib/store/database.ts");
    await setUpDatabase(layout);
    writer.insertRun(someRun({ run_id: "new", product_family: "words" }));
    assert.equal(writer.getRun("new")?.product_family, "words");
    assert.equal(writer.getRunStats().total_runs, 41);
  }
});

Deno.test("without waiting, a locked database throws locked at once", () => {
  using folder = new TempFolder();
  const layout = freshBase(folder);
  using holder = new DatabaseSync(layout.database);
  using writer = new DatabaseWriter(layout, { wait: false });
  writer.insertRun(someRun());
  holder.exec("BEGIN IMMEDIATE");
  const start = performance.now();
  assert.throws(() => writer.insertRun(someRun()), failsWith("locked"));
  assert.ok(performance.now() - start < 1000);
  holder.exec("ROLLBACK");
  writer.insertRun(someRun());
});

const HOLD_FOR_7_S = `
import { DatabaseSync } from "node:sqlite";
const db = new DatabaseSync(Deno.args[0]);
db.exec("BEGIN IMMEDIATE");
console.log("held");
setTimeout(() => db.exec("ROLLBACK"), 7000);
`;

Deno.test("a lock that is held for 7 s, longer than the busy timeout, is waited for", async () => {
  using folder = new TempFolder();
  const layout = freshBase(folder);
  await using _holder = await Holder.start(Deno.execPath(), ["eval", HOLD_FOR_7_S, layout.database]);
  using writer = new DatabaseWriter(layout);
  const start = performance.now();
  writer.insertRun(someRun({ run_id: "patient" }));
  assert.ok(performance.now() - start > 4000, "the lock was not held");
  assert.equal(writer.getRun("patient")?.agent_name, "tester");
});

testWith(["python"], "Python and the writer read each other's rows", async () => {
  using folder = new TempFolder();
  const layout = freshBase(folder);
  using writer = new DatabaseWriter(layout);
  writer.insertRun(someRun({ run_id: "ours", output_summary: "naïve 🚀" }));
  const seen = await python(
    `import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("INSERT INTO agent_runs (run_id, agent_name, start_time, product_family) VALUES ('theirs', 'py', 't', 'ü')")
db.commit()
print(db.execute("SELECT output_summary FROM agent_runs WHERE run_id='ours'").fetchone()[0].encode().hex())`,
    layout.database,
  );
  assert.equal(
    seen.trim(),
    [...new TextEncoder().encode("naïve 🚀")].map((b) => b.toString(16).padStart(2, "0")).join(""),
  );
  assert.equal(writer.getRun("theirs")?.product_family, "ü");
});

Deno.test("checkIntegrity finds damage", () => {
  using folder = new TempFolder();
  const layout = freshBase(folder);
  const writer = new DatabaseWriter(layout);
  for (let i = 0; i < 200; i++) writer.insertRun(someRun({ output_summary: "x".repeat(500) }));
  assert.deepEqual(writer.checkIntegrity(), []);
  assert.deepEqual(writer.checkIntegrity("full"), []);
  writer.close();
  using file = Deno.openSync(layout.database, { write: true });
  file.seekSync(20 * 4096, Deno.SeekMode.Start);
  file.writeSync(new Uint8Array(4096).fill(0xa5));
  assert.notDeepEqual(writer.checkIntegrity(), []);
  writer.close();
});

/** Takes all steps, and counts them. */
function take<T>(steps: Generator<void, T>): { steps: number; result: T } {
  for (let taken = 1;; taken++) {
    const { done, value } = steps.next();
    if (done) return { steps: taken, result: value };
  }
}

Deno.test("counting and finding pending runs go through the indexes in steps of 5,000 rows, whatever the rows are", () => {
  for (const [name, key] of [["rowid", ""], ["no rowid", " WITHOUT ROWID"]]) {
    using folder = new TempFolder();
    const layout = freshBase(folder);
    using db = new DatabaseSync(layout.database);
    const row = (sql: string) => String(db.prepare(sql).get()!["sql"]);
    const schema = row("SELECT sql FROM sqlite_schema WHERE name='agent_runs'");
    const indexes = db.prepare(
      "SELECT sql FROM sqlite_schema WHERE type='index' AND tbl_name='agent_runs' AND sql<>''",
    );
    const again = indexes.all().map(({ sql }) => String(sql));
    db.exec(`PRAGMA foreign_keys=OFF; DROP TABLE agent_runs; ${schema}${key}; ${again.join(";")}`);
    db.exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<12000)
      INSERT INTO agent_runs (run_id, agent_name, start_time, status, api_posted, api_retry_count)
      SELECT printf('%06d', i), 'a', strftime('%Y-%m-%dT%H:%M:%SZ', 1764547200+i, 'unixepoch'),
        CASE WHEN i%3=0 THEN 'failed' WHEN i%5=0 THEN 'running' WHEN i=7 THEN NULL ELSE 'success' END,
        CASE WHEN i<=6000 THEN 0 WHEN i%2 THEN 1 END, i%4 FROM n`);
    if (key === "") db.exec("UPDATE agent_runs SET rowid=9223372036854775807 WHERE run_id='000006'");
    const all = "FROM agent_runs WHERE coalesce(api_posted, 0)=0 AND status<>'running'";
    using writer = new DatabaseWriter(layout);
    const stats = take(writer.statsInSteps());
    const pending = Number(db.prepare(`SELECT count(*) AS n ${all}`).get()!["n"]);
    const status_counts = { failed: 4000, running: 1600, success: 6399, null: 1 };
    assert.deepEqual(stats.result, { total_runs: 12_000, status_counts, pending_api_posts: pending }, name);
    assert.equal(stats.steps, 1 + 1 + 1 + 2 + 1 + 2 + 1);
    const runs = take(writer.pendingInSteps(50));
    const wanted = db.prepare(`SELECT run_id ${all} ORDER BY api_retry_count, start_time DESC LIMIT 50`).all();
    assert.deepEqual(runs.result, wanted.map(({ run_id }) => run_id), name);
    assert.equal(runs.steps, 2 + 1 + 1);
    assert.deepEqual(writer.getRunStats(), stats.result);
    assert.equal(writer.getPendingApiPosts(10_000).length, pending);
    const looks = db.prepare(`EXPLAIN QUERY PLAN SELECT rowid FROM agent_runs
      WHERE api_posted IS 0 AND rowid<9 ORDER BY rowid DESC LIMIT 9`.replaceAll("rowid", key ? "run_id" : "rowid"));
    assert.match(String(looks.all()[0]!["detail"]), /USING COVERING INDEX idx_runs_api_posted/);
  }
});
