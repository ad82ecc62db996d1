import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { TelemetryError } from "../../../lib/errors.ts";
import { type Layout, layoutOf } from "../../../lib/layout.ts";
import { createDatabase } from "../../../lib/store/database.ts";
import { createStorage } from "../../../lib/store/folders.ts";
import { endStaleRuns } from "../../../lib/store/stale_runs.ts";
import { makeOldDatabase, type OldKind, runScript, TempFolder, testWith, treeOf } from "../../fixtures/mod.ts";

const HOUR = 3_600_000;
const hoursAgo = (hours: number) => new Date(Date.now() - hours * HOUR).toISOString().replace("Z", "000+00:00");

/** A store whose log has these records, and whose database has the start of each run. */
class Store implements Disposable {
  readonly #folder = new TempFolder();
  readonly layout: Layout = layoutOf(`${this.#folder.path}/base`);

  constructor(records: Record<string, unknown>[], kind?: OldKind) {
    createStorage(this.layout);
    if (kind) makeOldDatabase(this.layout.database, kind, 2);
    else createDatabase(this.layout);
    using db = new DatabaseSync(this.layout.database);
    const insert = db.prepare("INSERT INTO agent_runs (run_id, agent_name, start_time, status) VALUES (?, ?, ?, ?)");
    for (const { record_type, status, run_id, agent_name, start_time } of records as Record<string, string>[]) {
      if (record_type === "run" && status === "running") insert.run(run_id!, agent_name!, start_time!, status);
    }
    const lines = records.filter(({ logged }) => logged !== false).map((record) => `${JSON.stringify(record)}\n`);
    const day = hoursAgo(0).slice(0, 10).replaceAll("-", "");
    Deno.writeTextFileSync(`${this.layout.raw}/events_${day}.ndjson`, lines.join(""));
  }

  rows(): Record<string, unknown>[] {
    using db = new DatabaseSync(this.layout.database, { readOnly: true });
    return db.prepare("SELECT * FROM agent_runs WHERE agent_name IN ('a', 'b') ORDER BY rowid").all();
  }

  states(): unknown[] {
    return this.rows().map(({ run_id, status }) => `${run_id} ${status}`);
  }

  lines(): Record<string, unknown>[] {
    const text = [...Deno.readDirSync(this.layout.raw)].map(({ name }) =>
      Deno.readTextFileSync(`${this.layout.raw}/${name}`)
    );
    return text.join("").trim().split("\n").map((line) => JSON.parse(line));
  }

  [Symbol.dispose](): void {
    this.#folder[Symbol.dispose]();
  }
}

const start = (run_id: string, hours: number, fields: Record<string, unknown> = {}) => ({
  ...{ run_id, agent_name: "a", start_time: hoursAgo(hours), status: "running", record_type: "run" },
  ...fields,
});
const event = (run_id: string, hours: number) => ({
  ...{ run_id, event_type: "e", timestamp: hoursAgo(hours), payload_json: null, id: null, record_type: "event" },
});

Deno.test("stale runs end as failed at the time of their last record, and all others stay as they are", async () => {
  const last = event("silent", 30);
  using store = new Store([
    start("silent", 50),
    event("silent", 40),
    last,
    start("talks", 50),
    event("talks", 2),
    start("young", 3),
    start("never logged", 48, { logged: false }),
    start("ended in the log", 60),
    start("ended in the log", 60, { status: "success" }),
  ]);
  const before = treeOf(store.layout.base);
  const found = await endStaleRuns(store.layout, { olderThanMs: 24 * HOUR, dryRun: true });
  assert.deepEqual(found.map(({ run_id }) => run_id), ["silent", "never logged"]);
  assert.deepEqual(treeOf(store.layout.base), before, "a dry run changed something");

  const ended = await endStaleRuns(store.layout, { olderThanMs: 24 * HOUR });
  assert.deepEqual(ended.map(({ run_id }) => run_id), ["silent", "never logged"]);
  assert.deepEqual(store.states(), [
    "silent failed",
    "talks running",
    "young running",
    "never logged failed",
    "ended in the log running",
  ]);
  const [silent] = store.rows();
  assert.equal(String(silent!["end_time"]).slice(0, 23), last.timestamp.slice(0, 23));
  assert.equal(Math.round(Number(silent!["duration_ms"]) / HOUR), 20);
  assert.match(String(silent!["error_summary"]), /^stale: nothing in the log after 20/);
  const logged = store.lines().slice(-2).map(({ run_id, status, record_type }) => [run_id, status, record_type]);
  assert.deepEqual(logged, [["silent", "failed", "run"], ["never logged", "failed", "run"]]);
  assert.deepEqual(await endStaleRuns(store.layout, { olderThanMs: 24 * HOUR }), []);
});

Deno.test("stale runs of older schemas end, too", async () => {
  for (const kind of ["v1", "v2", "says3_is2"] as const) {
    using store = new Store([start("silent", 50)], kind);
    const ended = await endStaleRuns(store.layout, { olderThanMs: 24 * HOUR });
    assert.ok(ended.some(({ run_id }) => run_id === "silent"), kind);
    assert.deepEqual(store.states(), ["silent failed"], kind);
    assert.equal(store.lines().filter(({ run_id, status }) => run_id === "silent" && status === "failed").length, 1);
  }
  using later = new Store([], "v7");
  await assert.rejects(
    endStaleRuns(later.layout, { olderThanMs: 0 }),
    ({ code }: TelemetryError) => code === "newer_schema",
  );
});

Deno.test("running runs are read in steps, so that the event loop of an agent gets its turn", async () => {
  using store = new Store([]);
  using db = new DatabaseSync(store.layout.database);
  db.exec(`WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3500)
    INSERT INTO agent_runs (rowid, run_id, agent_name, start_time, status)
    SELECT i * 2000000000000000 - 3500000000000000000, i, 'a', '2025-12-10T00:00:00+00:00', 'running' FROM n`);
  let turns = 0;
  const timer = setInterval(() => turns++, 0);
  const found = await endStaleRuns(store.layout, { olderThanMs: HOUR, dryRun: true });
  clearInterval(timer);
  assert.equal(new Set(found.map(({ run_id }) => run_id)).size, 3500);
  assert.ok(turns >= 3, `${turns} turns`);
});

testWith(["links"], "a log that cannot be read ends no run", async () => {
  using store = new Store([start("silent", 50)]);
  Deno.writeTextFileSync(`${store.layout.raw}/events_20991231.ndjson.gz`, "no gzip");
  Deno.symlinkSync(`${store.layout.raw}/nowhere`, `${store.layout.raw}/events_20991230.ndjson`);
  await assert.rejects(endStaleRuns(store.layout, { olderThanMs: HOUR }), /cannot be read, so no run was ended/);
  assert.deepEqual(store.states(), ["silent running"]);
});

Deno.test("recover_database --end-stale, --dry-run and --check-only end, list and count stale runs", async () => {
  const silent = Array.from({ length: 7 }, (_, i) => start(`silent ${i}\x1b`, 200 + i));
  using store = new Store([...silent, start("young", 3)]);
  const { base } = store.layout;
  const check = await runScript("recover_database", base, ["--check-only"]);
  assert.equal(check.code, 0);
  assert.match(check.stdout, /^7 stale runs can be ended \(--end-stale\): no record for 24h$/m);
  assert.match(check.stdout, /^ {2}silent 4␛, last record 20\S+\n {2}and 2 more$/m);
  const before = treeOf(base);
  const dry = await runScript("recover_database", base, ["--end-stale", "7d", "--dry-run"]);
  assert.match(dry.stdout, /^7 stale runs would end as failed: no record for 7d$/m);
  assert.match(dry.stdout, /^ {2}silent 6␛, last record 20/m);
  assert.deepEqual(treeOf(base), before, "a dry run changed something");
  const json = JSON.parse((await runScript("recover_database", base, ["--check-only", "--json"])).stdout);
  assert.deepEqual(json.stale_runs[0], {
    run_id: "silent 0\x1b",
    agent_name: "a",
    job_type: null,
    end_time: silent[0]!.start_time,
  });
  const none = await runScript("recover_database", base, ["--end-stale", "30d"]);
  assert.match(none.stdout, /^0 stale runs ended as failed/m);
  const ended = await runScript("recover_database", base, ["--end-stale", "7d"]);
  assert.deepEqual([ended.code, ended.stderr], [0, ""]);
  assert.match(ended.stdout, /^7 stale runs ended as failed: no record for 7d$/m);
  assert.deepEqual(new Set(store.rows().map(({ status }) => status)), new Set(["failed", "running"]));
  for (const flags of [["--dry-run"], ["--end-stale", "soon"], ["--end-stale", "7d", "--dry-run", "--force"]]) {
    assert.equal((await runScript("recover_database", base, flags)).code, 2, flags.join(" "));
  }
});

Deno.test("--end-stale rebuilds a lost database first, and a rebuild keeps the ends", async () => {
  using store = new Store([start("silent", 50), start("young", 3)]);
  Deno.removeSync(store.layout.database);
  const { code, stdout } = await runScript("recover_database", store.layout.base, ["--end-stale", "24h"]);
  assert.deepEqual([code, /1 stale run ended as failed/.test(stdout)], [0, true]);
  assert.deepEqual(store.states(), ["silent failed", "young running"]);
  assert.equal((await runScript("recover_database", store.layout.base, ["--force"])).code, 0);
  assert.deepEqual(store.states().toSorted(), ["silent failed", "young running"]);
});
