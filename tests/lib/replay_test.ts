import assert from "node:assert/strict";
import { logFiles } from "../../lib/log_scanner.ts";
import { RUN_COLUMNS, type RunRecord } from "../../lib/records.ts";
import { applyRuns, countNewer, keepRuns, type LoggedRuns, readDatabaseRuns, readRuns } from "../../lib/replay.ts";
import { applySchema } from "../../lib/schema.ts";
import { Connection } from "../../lib/sqlite.ts";
import { makeOldDatabase, run, SAMPLE, TempFolder, testWith } from "../fixtures.ts";

type Fields = Record<string, unknown>;

/** A line as the Python client writes one; `undefined` leaves a field out. */
function line(run_id: string, fields: Fields = {}): string {
  const run = { run_id, agent_name: "a", start_time: "2025-12-10T10:00:00.5+00:00", status: "running", ...fields };
  return JSON.stringify({ ...run, record_type: "run" });
}
const ENDED = { status: "success", end_time: "2025-12-10T11:30:00Z" };

async function readLines(...lines: string[]): Promise<LoggedRuns> {
  using temp = new TempFolder();
  const path = `${temp.path}/events_20251210.ndjson`;
  Deno.writeTextFileSync(path, lines.map((text) => `${text}\n`).join(""));
  return await readRuns([path]);
}

async function readOne(...lines: string[]): Promise<RunRecord> {
  const { runs, rejected } = await readLines(...lines);
  assert.deepEqual([runs.size, rejected], [1, 0]);
  return [...runs.values()][0]!;
}

function memory(sql = ""): Connection {
  const db = Connection.open(":memory:");
  applySchema(db);
  if (sql) db.exec(sql);
  return db;
}

function row(db: Connection, id: string, ...columns: string[]): unknown[] | undefined {
  const found = db.get(`SELECT ${columns} FROM agent_runs WHERE run_id=?`, id);
  return found && Object.values(found);
}

const insert = (id: string, fields: Record<string, string | number | null>) => {
  const all: Record<string, string | number | null> = { run_id: id, agent_name: "a", start_time: "t", ...fields };
  const values = Object.values(all).map((value) => typeof value === "string" ? `'${value}'` : String(value));
  return `INSERT INTO agent_runs (${Object.keys(all)}) VALUES (${values});`;
};

// ------------------------------------------------------------------------------------------------ readRuns

testWith(["sample"], "readRuns: the sample's runs, field by field", async () => {
  const { runs, rejected } = await readRuns(logFiles(`${SAMPLE}/base/raw`));
  const facts = JSON.parse(Deno.readTextFileSync(`${SAMPLE}/facts.json`));
  const expected = Deno.readTextFileSync(`${SAMPLE}/expected_runs.ndjson`).trimEnd().split("\n")
    .map((text): Fields => JSON.parse(text));
  assert.equal(expected.length, facts.runs_in_logs);
  assert.equal(rejected, facts.rejected_lines);
  assert.deepEqual([...runs.keys()].sort(), expected.map((run) => String(run["run_id"])).sort());
  // As JSON: how it is spaced is nobody's matter.
  const comparable = (run: Fields): Fields => ({
    ...run,
    metrics_json: typeof run["metrics_json"] === "string" ? JSON.parse(run["metrics_json"]) : run["metrics_json"],
  });
  const differences: string[] = [];
  for (const run of expected) {
    const [found, wanted] = [runs.get(String(run["run_id"]))! as unknown as Fields, run].map(comparable);
    for (const column of RUN_COLUMNS) {
      if (column === "created_at" || column === "updated_at") continue;
      const [is, want] = [found![column], wanted![column]].map((value) => JSON.stringify(value));
      if (is !== want) differences.push(`${run["run_id"]} ${column}: ${is}, not ${want}`);
    }
  }
  assert.deepEqual(differences.slice(0, 20), []);
});

Deno.test("readRuns: the last line counts, but a running takes back no end", async () => {
  const one = await readOne(line("x"), line("x", { ...ENDED, product: "p" }));
  assert.deepEqual([one.status, one.product], ["success", "p"]);
  const stale = await readOne(line("x", { ...ENDED, product: "p" }), line("x", { product: "stale" }));
  assert.deepEqual([stale.status, stale.product, stale.end_time], ["success", "p", ENDED.end_time]);
  const again = await readOne(line("x", ENDED), line("x"), line("x", { ...ENDED, status: "failed" }));
  assert.equal(again.status, "failed");
  const running = await readOne(line("x", { product: "first" }), line("x", { product: "last" }));
  assert.equal(running.product, "last");
});

Deno.test("readRuns: a mark of posting is not taken back by a line without it", async () => {
  const mark = { api_posted: 1, api_posted_at: "then" };
  for (
    const lines of [
      [line("x", { ...ENDED, ...mark }), line("x", ENDED)],
      [line("x", mark), line("x", ENDED)],
      [line("x", ENDED), line("x", mark)],
      [line("x", { ...ENDED, ...mark }), line("x")],
      [line("x", { ...ENDED, api_posted: true, api_posted_at: "then" }), line("x", ENDED)],
    ]
  ) {
    const { status, api_posted, api_posted_at } = await readOne(...lines);
    assert.deepEqual([status, api_posted, api_posted_at], ["success", 1, "then"], lines.join());
  }
  const later = await readOne(
    line("x", { ...ENDED, ...mark }),
    line("x", { ...ENDED, ...mark, api_posted_at: "later" }),
  );
  assert.equal(later.api_posted_at, "later");
});

Deno.test("readRuns: older lines", async () => {
  const old = await readOne(
    line("x", { schema_version: 1, metrics: { b: [1, { c: "é" }] }, custom_metadata: { d: 1 } }),
  );
  assert.deepEqual(JSON.parse(old.metrics_json!), { b: [1, { c: "é" }] });
  assert.deepEqual([old.schema_version, old.product_family, old.subdomain], [1, null, null]);
  assert.deepEqual(Object.keys(old).sort(), [...RUN_COLUMNS].sort(), "no column that the table does not have");
  const both = await readOne(line("x", { metrics: { a: 1 }, metrics_json: '{"b":2}' }));
  assert.equal(both.metrics_json, '{"b":2}');
  const object = await readOne(line("x", { metrics_json: { a: [1] } }));
  assert.deepEqual(JSON.parse(object.metrics_json!), { a: [1] });
  assert.equal((await readOne(line("x", { metrics: null }))).metrics_json, null);
  assert.equal((await readOne(line("x", { metrics: "{}" }))).metrics_json, "{}");
  // A name that every object has is no column.
  assert.equal((await readOne(line("x", { constructor: "c", toString: "s" }))).run_id, "x");
});

Deno.test("readRuns: created_at and updated_at come from start and end, where the line has none", async () => {
  const times = async (fields: Fields) => {
    const { created_at, updated_at } = await readOne(line("x", fields));
    return [created_at, updated_at];
  };
  assert.deepEqual(await times({}), ["2025-12-10 10:00:00", "2025-12-10 10:00:00"]);
  assert.deepEqual(await times(ENDED), ["2025-12-10 10:00:00", "2025-12-10 11:30:00"]);
  assert.deepEqual(await times({ created_at: null, updated_at: null }), ["2025-12-10 10:00:00", "2025-12-10 10:00:00"]);
  assert.deepEqual(await times({ start_time: "2025-12-10T10:00:00+02:00" }), [
    "2025-12-10 08:00:00",
    "2025-12-10 08:00:00",
  ]);
  assert.deepEqual(await times({ created_at: "c", updated_at: "u" }), ["c", "u"]);
  assert.deepEqual(await times({ start_time: "yesterday" }), [null, null]);
});

Deno.test("readRuns: half lines, events and gzipped days; what is no record is counted", async () => {
  using temp = new TempFolder();
  const day = `${temp.path}/events_20251209.ndjson`;
  Deno.writeTextFileSync(day, `${line("x")}\n${line("gz", ENDED)}\n`);
  assert.equal((await run("gzip", [day])).code, 0);
  Deno.writeTextFileSync(
    `${temp.path}/events_20251210.ndjson`,
    `${line("half").slice(0, 50)}${line("glued", ENDED)}\n` +
      `{"record_type": "event", "run_id": "x", "event_type": "e", "timestamp": "t", "payload_json": null, "id": null}\n` +
      `${line("x", { ...ENDED, metrics: NaN })}\r\n\n\0\0\0${line("last")}`,
  );
  const { runs, rejected } = await readRuns(logFiles(temp.path));
  assert.deepEqual([...runs].map(([id, { status }]) => [id, status]), [
    ["x", "success"],
    ["gz", "success"],
    ["glued", "success"],
    ["last", "running"],
  ]);
  assert.equal(rejected, 1);
  assert.deepEqual(await readRuns([]), { runs: new Map(), rejected: 0 });
});

// ------------------------------------------------------------------------------------------------ countNewer, applyRuns

Deno.test("countNewer: runs that are lacking, or have ended since", async () => {
  const logged = await readLines(
    line("lacking"),
    line("ended since", ENDED),
    line("both running"),
    line("both ended", ENDED),
    line("stale"),
  );
  using db = memory(
    insert("ended since", { status: "running" }) + insert("both running", { status: "running" }) +
      insert("both ended", { status: "failed" }) + insert("stale", { status: "success" }) +
      insert("not in the log", { status: "success" }),
  );
  assert.equal(countNewer(db, logged), 2);
  applyRuns(db, logged);
  assert.equal(countNewer(db, logged), 0);
});

Deno.test("countNewer: what the table refuses is not newer, since no --replay can add it", async () => {
  const logged = await readLines(line("x", { trigger_type: "cli" }), line("y", { trigger_type: "detector" }));
  using db = memory();
  applyRuns(db, logged);
  assert.equal(countNewer(db, logged), 0);
});

Deno.test("applyRuns: the log's fields win, the database's ends and marks stay", async () => {
  using db = memory(
    insert("started", { status: "running", product: "old", created_at: "c", api_retry_count: 4 }) +
      insert("ended", { status: "partial", product: "old", api_posted: 1, api_posted_at: "then" }) +
      insert("stale", { status: "failed", product: "old" }) +
      insert("no status", { status: null }) + insert("alone", { status: "success" }),
  );
  const logged = await readLines(
    line("started", { ...ENDED, product: "new", api_retry_count: 1 }),
    line("ended", { ...ENDED, product: "new" }),
    line("stale", { product: "new", api_posted: 1, api_posted_at: "in the log" }),
    line("no status", { product: "new" }),
    line("new", { ...ENDED, api_posted: 1, api_posted_at: "in the log" }),
  );
  assert.deepEqual(applyRuns(db, logged), { applied: 5, refused: 0 });
  const columns = ["status", "product", "api_posted", "api_posted_at"];
  assert.deepEqual(row(db, "started", ...columns), ["success", "new", 0, null]);
  assert.deepEqual(row(db, "started", "created_at", "api_retry_count"), ["c", 4]);
  assert.deepEqual(row(db, "ended", ...columns), ["success", "new", 1, "then"]);
  assert.deepEqual(row(db, "stale", ...columns), ["failed", "old", 1, "in the log"]);
  assert.deepEqual(row(db, "no status", ...columns), ["running", "new", 0, null]);
  assert.deepEqual(row(db, "new", ...columns), ["success", null, 1, "in the log"]);
  assert.deepEqual(row(db, "alone", "status"), ["success"]);
  const all = () => db.all("SELECT * FROM agent_runs ORDER BY run_id");
  const once = all();
  applyRuns(db, logged);
  assert.deepEqual(all(), once, "twice is once");
});

Deno.test("applyRuns: a field that an old line does not have is not emptied in the database", async () => {
  using db = memory(
    insert("x", { status: "success", product_family: "by hand", subdomain: "by hand", product: "old" }),
  );
  applyRuns(db, await readLines(line("x", { ...ENDED, schema_version: 1, product: null })));
  assert.deepEqual(row(db, "x", "product", "product_family", "subdomain"), [null, "by hand", "by hand"]);
});

Deno.test("applyRuns: what the table refuses is counted, and the others are written", async () => {
  using db = memory(insert("known", { status: "running" }));
  const logged = await readLines(
    line("d", { trigger_type: "detector" }),
    line("i", { trigger_type: "insight" }),
    line("known", { ...ENDED, trigger_type: "detector" }),
    line("fine", { items_discovered: 2 ** 60, output_summary: "a\0b", error_summary: "\ud800", duration_ms: 1.5 }),
  );
  db.transaction(() => assert.deepEqual(applyRuns(db, logged), { applied: 1, refused: 3 }));
  assert.deepEqual(db.all("SELECT run_id FROM agent_runs ORDER BY 1").map((found) => found["run_id"]), [
    "fine",
    "known",
  ]);
  assert.deepEqual(row(db, "known", "status"), ["running"]);
  assert.deepEqual(row(db, "fine", "hex(output_summary)"), ["610062"]);
});

Deno.test("applyRuns: any other error is thrown", async () => {
  using db = Connection.open(":memory:");
  assert.throws(() => applyRuns(db, { runs: new Map(), rejected: 0 }));
  const logged = await readLines(line("x"));
  assert.throws(() => countNewer(db, logged));
});

// ------------------------------------------------------------------------------------------------ the replaced database

const markedIn = (db: Connection) => readDatabaseRuns(db).filter((run) => run.api_posted === 1);

Deno.test("readDatabaseRuns: all runs of a database of any version, in pages, text with NUL whole", () => {
  using temp = new TempFolder();
  for (const kind of ["v1", "v2", "says3_is2", "v7"] as const) {
    const path = `${temp.path}/${kind}.sqlite`;
    makeOldDatabase(path, kind, 12_000);
    using old = Connection.open(path);
    old.exec("UPDATE agent_runs SET api_posted=1, api_posted_at='at ' || rowid WHERE rowid % 6 <> 0");
    old.exec("UPDATE agent_runs SET api_posted=NULL WHERE rowid % 12 = 0");
    assert.equal(new Set(readDatabaseRuns(old).map(({ run_id }) => run_id)).size, 12_000);
    const marked = markedIn(old);
    assert.equal(marked.length, 10_000);
    assert.equal(marked.at(-1)!.api_posted_at, "at 11999");
    assert.equal(marked.at(-1)!.output_summary, "naïve\0 — 日本語 🚀");
  }
});

Deno.test("readDatabaseRuns: a BLOB in one run does not cost the others", () => {
  using db = memory(insert("a", {}) + insert("b", {}) + insert("c", {}));
  db.exec("UPDATE agent_runs SET input_summary=x'00ff' WHERE run_id='b'");
  const ids = readDatabaseRuns(db).map(({ run_id }) => run_id);
  assert.ok(ids.includes("a") && ids.includes("c"), ids.join());
});

Deno.test("keepRuns: a mark that is there stays, others come; a run is added, and never replaced", () => {
  using db = memory(
    insert("marked", { api_posted: 1, api_posted_at: "first", product: "kept" }) + insert("not", { api_posted: 0 }) +
      insert("null", { api_posted: null }),
  );
  using there = memory(
    ["marked", "not", "null", "added"].map((id) =>
      insert(id, { api_posted: 1, api_posted_at: "later", product: "there" })
    ).join(""),
  );
  assert.equal(keepRuns(db, readDatabaseRuns(there)), 0);
  assert.deepEqual(row(db, "marked", "api_posted", "api_posted_at", "product"), [1, "first", "kept"]);
  assert.deepEqual(row(db, "not", "api_posted", "api_posted_at", "product"), [1, "later", null]);
  assert.deepEqual(row(db, "null", "api_posted", "api_posted_at"), [1, "later"]);
  assert.deepEqual(row(db, "added", "api_posted", "api_posted_at", "product"), [1, "later", "there"]);
});

Deno.test("keepRuns: what the table refuses is counted", () => {
  using temp = new TempFolder();
  makeOldDatabase(`${temp.path}/old.sqlite`, "v2_recovered", 10);
  using old = Connection.open(`${temp.path}/old.sqlite`);
  using db = memory();
  assert.equal(keepRuns(db, readDatabaseRuns(old)), 2);
  assert.equal(readDatabaseRuns(db).length, 8);
});

testWith(["sample"], "readDatabaseRuns: of a damaged database what can be read", () => {
  using temp = new TempFolder();
  const path = `${temp.path}/damaged.sqlite`;
  Deno.copyFileSync(`${SAMPLE}/databases/damaged.sqlite`, path);
  Deno.copyFileSync(`${SAMPLE}/base/db/telemetry.sqlite`, `${temp.path}/sound.sqlite`);
  using sound = Connection.open(`${temp.path}/sound.sqlite`);
  using damaged = Connection.open(path);
  const known = new Set(markedIn(sound).map(({ run_id }) => run_id));
  const found = markedIn(damaged).map(({ run_id }) => run_id);
  assert.ok(found.every((run_id) => known.has(run_id)));
  // SQL around the damage reads 252 of 290 runs; the sound indexes on run_id and api_posted know all marks.
  assert.ok(found.length > 0.8 * known.size, `${found.length} of ${known.size}`);
});
