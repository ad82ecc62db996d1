import assert from "node:assert/strict";
import { gzipSync } from "node:zlib";
import { Buffer } from "node:buffer";
import { logFiles, type Rejection } from "../../../lib/log/read.ts";
import { LOG_COLUMNS, mergeRuns, readRunStates, replayLog, StateWriter } from "../../../lib/store/merge.ts";
import { compareRuns } from "../../../lib/store/compare.ts";
import { readRows } from "../../../lib/sqlite/rows.ts";
import { recoverySchemaSql } from "../../../lib/schema.ts";
import { applySchema } from "../../../lib/sqlite/migrate.ts";
import { Connection } from "../../../lib/sqlite/connection.ts";
import { makeOldDatabase, SAMPLE, TempFolder } from "../../fixtures/mod.ts";

type Fields = Record<string, unknown>;

/** A line as the Python client writes one; `undefined` leaves a field out. */
function line(run_id: string, fields: Fields = {}): string {
  const run = { run_id, agent_name: "a", start_time: "2025-12-10T10:00:00.5+00:00", status: "running", ...fields };
  return JSON.stringify({ ...run, record_type: "run" });
}
const ENDED = { status: "success", end_time: "2025-12-10T11:30:00Z" };

/** Calls `work` with the path of a log of these lines. */
async function inLog<Result>(lines: string[], work: (files: string[]) => Promise<Result>): Promise<Result> {
  using temp = new TempFolder();
  const path = `${temp.path}/events_20251210.ndjson`;
  Deno.writeTextFileSync(path, lines.map((text) => `${text}\n`).join(""));
  return await work([path]);
}

interface Logged {
  /** By id, with all columns of the log. */
  runs: Map<string, Fields>;
  rejections: Rejection[];
  /** How many states were yielded. */
  states: number;
}

/** The runs of logs, as a recovery loads them. */
async function readLogs(files: string[]): Promise<Logged> {
  using db = Connection.open(":memory:");
  db.exec(recoverySchemaSql());
  applySchema(db);
  const writer = new StateWriter(db, LOG_COLUMNS);
  const rejections: Rejection[] = [];
  let states = 0;
  for await (const { rows, rejections: rejected } of readRunStates(files)) {
    for (const row of rows) {
      assert.equal(row.length, LOG_COLUMNS.length);
      writer.writeState(row);
      writer.writeMarker(row);
    }
    states += rows.length;
    rejections.push(...rejected);
  }
  const rows = [...readRows(db, "agent_runs", [...LOG_COLUMNS])].flat().map(({ cells }): Fields =>
    Object.fromEntries(LOG_COLUMNS.map((column, i) => [column, cells[i]]))
  );
  return { runs: new Map(rows.map((run) => [String(run["run_id"]), run])), rejections, states };
}

const readLines = (...lines: string[]): Promise<Logged> => inLog(lines, readLogs);
const applyLines = (db: Connection, ...lines: string[]) =>
  inLog(lines, async (files) => {
    const { unreadable_logs, ...counts } = await replayLog(db, files);
    assert.deepEqual(unreadable_logs, []);
    return counts;
  });
const compareLines = (db: Connection, ...lines: string[]) => inLog(lines, (files) => compareRuns(db, files));

async function readOne(...lines: string[]): Promise<Fields> {
  const { runs, rejections } = await readLines(...lines);
  assert.deepEqual([runs.size, rejections], [1, []]);
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

// ------------------------------------------------------------------------------------------------ readRunStates, StateWriter

Deno.test("the runs of the field store are read with all their fields", async () => {
  const { runs, rejections } = await readLogs(logFiles(`${SAMPLE}/base/raw`));
  const facts = JSON.parse(Deno.readTextFileSync(`${SAMPLE}/facts.json`));
  const expected = Deno.readTextFileSync(`${SAMPLE}/expected_runs.ndjson`).trimEnd().split("\n")
    .map((text): Fields => JSON.parse(text));
  assert.equal(expected.length, facts.runs_in_logs);
  assert.equal(rejections.length, facts.rejected_lines);
  assert.deepEqual([...runs.keys()].sort(), expected.map((run) => String(run["run_id"])).sort());
  // Compared as JSON, because its spacing does not matter.
  const asJson = ["metrics_json", "custom_metadata"];
  const parsed = (value: unknown) => typeof value === "string" ? JSON.parse(value) : value;
  const differences: string[] = [];
  for (const wanted of expected) {
    const found = runs.get(String(wanted["run_id"]))!;
    for (const column of LOG_COLUMNS) {
      if (column === "created_at" || column === "updated_at") continue;
      const [is, want] = [found[column], wanted[column]].map((value) =>
        JSON.stringify(asJson.includes(column) ? parsed(value) : value)
      );
      if (is !== want) differences.push(`${wanted["run_id"]} ${column}: ${is}, not ${want}`);
    }
  }
  assert.deepEqual(differences.slice(0, 20), []);
});

Deno.test("the last line of a run is its state, but running does not replace an ended status", async () => {
  const one = await readOne(line("x"), line("x", { ...ENDED, product: "p" }));
  assert.deepEqual([one["status"], one["product"]], ["success", "p"]);
  const stale = await readOne(line("x", { ...ENDED, product: "p" }), line("x", { product: "stale" }));
  assert.deepEqual([stale["status"], stale["product"], stale["end_time"]], ["success", "p", ENDED.end_time]);
  const again = await readOne(line("x", ENDED), line("x"), line("x", { ...ENDED, status: "failed" }));
  assert.equal(again["status"], "failed");
  const running = await readOne(line("x", { product: "first" }), line("x", { product: "last" }));
  assert.equal(running["product"], "last");
  const none = await readOne(line("x", { status: null, product: "first" }), line("x", { product: "last" }));
  assert.deepEqual([none["status"], none["product"]], ["running", "last"]);
  const ended = await readOne(line("x", ENDED), line("x", { status: null }));
  assert.equal(ended["status"], "success");
});

Deno.test("most states that do not last are left out, and a run may have any size", async () => {
  const { states, runs } = await readLines(...["a", "b", "c"].flatMap((id) => [line(id), line(id, ENDED)]));
  assert.deepEqual([states, runs.size], [3, 3]);
  // More than are held at a time: some starts are written before their end is read.
  const ids = Array.from({ length: 20_050 }, (_, i) => `run ${i}`);
  const many = await readLines(...ids.map((id) => line(id)), ...ids.map((id) => line(id, ENDED)));
  assert.ok(many.states < 20_110, String(many.states));
  assert.equal(many.runs.size, 20_050);
  assert.ok([...many.runs.values()].every((run) => run["status"] === "success"));
  const large = "é".repeat(5_000_000);
  assert.equal((await readOne(line("x", { output_summary: large })))["output_summary"], large);
});

Deno.test("an api_posted marker is kept when a later line lacks it", async () => {
  const mark = { api_posted: 1, api_posted_at: "then" };
  for (
    const lines of [
      [line("x", { ...ENDED, ...mark }), line("x", ENDED)],
      [line("x", mark), line("x", ENDED)],
      [line("x", mark), line("x"), line("x", ENDED)],
      [line("x", ENDED), line("x", mark)],
      [line("x", { ...ENDED, ...mark }), line("x")],
      [line("x", { ...ENDED, api_posted: true, api_posted_at: "then" }), line("x", ENDED)],
      [line("x", { api_posted: true, api_posted_at: "then" }), line("x", ENDED)],
      [line("x", { api_posted: 1.0, api_posted_at: "then", nested: {} }), line("x", ENDED)],
    ]
  ) {
    const { status, api_posted, api_posted_at } = await readOne(...lines);
    assert.deepEqual([status, api_posted, api_posted_at], ["success", 1, "then"], lines.join());
  }
  const spaced = [line("x", mark), line("x", ENDED)].map((text) =>
    text.replaceAll('":', '": ').replaceAll(',"', ', "')
  );
  assert.equal((await readOne(...spaced))["api_posted_at"], "then");
});

Deno.test("older lines are read with their metrics and custom metadata", async () => {
  const old = await readOne(
    line("x", { schema_version: 1, metrics: { b: [1, { c: "é" }], d: [] }, custom_metadata: { d: 1 } }),
  );
  assert.equal(old["metrics_json"], '{"b": [1, {"c": "\\u00e9"}], "d": []}', "as Python writes it");
  assert.deepEqual(JSON.parse(old["custom_metadata"] as string), { d: 1 });
  assert.deepEqual([old["schema_version"], old["product_family"], old["subdomain"]], [1, null, null]);
  const both = await readOne(line("x", { metrics: { a: 1 }, metrics_json: '{"b":2}' }));
  assert.equal(both["metrics_json"], '{"b":2}');
  const object = await readOne(line("x", { metrics_json: { a: [1] } }));
  assert.deepEqual(JSON.parse(object["metrics_json"] as string), { a: [1] });
  assert.equal((await readOne(line("x", { metrics: null })))["metrics_json"], null);
  assert.equal((await readOne(line("x", { metrics: "{}" })))["metrics_json"], "{}");
  const booleans = await readOne(line("x", { output_summary: true, items_failed: true, product: 5 }));
  assert.deepEqual([booleans["output_summary"], booleans["items_failed"], booleans["product"]], ["1", 1, "5"]);
  const defaults = await readOne('{"run_id": "x", "agent_name": "a", "start_time": "t", "record_type": "run"}');
  assert.deepEqual(
    ["schema_version", "status", "items_failed", "api_posted", "api_retry_count"].map((column) => defaults[column]),
    [3, "running", 0, 0, 0],
  );
  // Names that every object inherits are not columns.
  assert.equal((await readOne(line("x", { constructor: "c", toString: "s" })))["run_id"], "x");
});

Deno.test("numbers of any size keep their digits, and nesting of any depth is read", async () => {
  const number = "1234567890123456789";
  const depth = 100_000;
  const [digits, deep] = [line("digits"), line("deep")].map((text) => text.slice(0, -1));
  const { runs, rejections } = await readLines(
    `${digits},"metrics":{"id":${number},"list":[${number},1.50]},"items_discovered":9007199254740993,"duration_ms":1e400}`,
    `${deep},"metrics": ${"[".repeat(depth)}${"]".repeat(depth)}}`,
    line("after"),
  );
  assert.deepEqual([rejections, runs.size], [[], 3]);
  const found = runs.get("digits")!;
  assert.equal(found["metrics_json"], `{"id": ${number}, "list": [${number}, 1.50]}`);
  assert.equal(found["items_discovered"], 9007199254740993n);
  assert.equal(String(runs.get("deep")!["metrics_json"]).length, 2 * depth);
});

Deno.test("created_at and updated_at are the start and end time when the line has none", async () => {
  const times = async (fields: Fields) => {
    const { created_at, updated_at } = await readOne(line("x", fields));
    return [created_at, updated_at];
  };
  const start = "2025-12-10 10:00:00";
  assert.deepEqual(await times({}), [start, start]);
  assert.deepEqual(await times(ENDED), [start, "2025-12-10 11:30:00"]);
  assert.deepEqual(await times({ created_at: null, updated_at: null }), [start, start]);
  const moved = ["2025-12-10 08:00:00", "2025-12-10 08:00:00"];
  assert.deepEqual(await times({ start_time: "2025-12-10T10:00:00+02:00" }), moved);
  assert.deepEqual(await times({ created_at: "c", updated_at: "u" }), ["c", "u"]);
  assert.deepEqual(await times({ start_time: "yesterday" }), [null, null]);
});

Deno.test("half lines, events and gzipped days are read, and what is not a record is rejected", async () => {
  using temp = new TempFolder();
  const day = `${temp.path}/events_20251209.ndjson`;
  Deno.writeFileSync(`${day}.gz`, gzipSync(`${line("x")}\n${line("gz", ENDED)}\n`));
  Deno.writeTextFileSync(
    `${temp.path}/events_20251210.ndjson`,
    `${line("half").slice(0, 50)}${line("glued", ENDED)}\n` +
      `{"record_type": "event", "run_id": "x", "event_type": "e", "timestamp": "t", "payload_json": null, "id": null}\n` +
      `${line("x", { ...ENDED, metrics: NaN })}\r\n\n\0\0\0${line("last")}`,
  );
  const { runs, rejections } = await readLogs(logFiles(temp.path));
  assert.deepEqual([...runs].map(([id, { status }]) => [id, status]).sort(), [
    ["glued", "success"],
    ["gz", "success"],
    ["last", "running"],
    ["x", "success"],
  ]);
  assert.deepEqual(rejections.map(({ rejected, line }) => [rejected, line]), [["not whole JSON", 1]]);
  assert.deepEqual(await readLogs([]), { runs: new Map(), rejections: [], states: 0 });
});

Deno.test("a line that looks like a start and is not a record is rejected with its place", async () => {
  const twice = '{"run_id": "x", "agent_name": "a", "start_time": "t", "status": "running", "status": "bogus", ' +
    '"record_type": "run"}';
  const { runs, rejections } = await readLines(line("y"), twice);
  assert.deepEqual([...runs.keys()], ["y"]);
  assert.deepEqual(
    rejections.map(({ rejected, line, offset, length, text }) => [rejected, line, offset, length, text]),
    [
      ["unknown status", 2, line("y").length + 1, twice.length, twice],
    ],
  );
});

Deno.test({
  name: "the last value counts when a line has a field twice",
  fn: async () => {
    const twice = '{"run_id": "x", "agent_name": "a", "start_time": "t", "status": "running", "status": "success", ' +
      '"record_type": "run"}';
    assert.equal((await readOne(twice, line("x")))["status"], "success");
    const ids = '{"run_id": "x", "agent_name": "a", "start_time": "t", "status": "running", "run_id": "y", ' +
      '"record_type": "run"}';
    assert.deepEqual([...(await readLines(ids, line("x", ENDED))).runs.keys()].sort(), ["x", "y"]);
  },
});

Deno.test({
  name: "the length of a rejected start is in bytes",
  fn: async () => {
    const twice = '{"run_id": "é", "agent_name": "a", "start_time": "t", "status": "running", "status": "bogus", ' +
      '"record_type": "run"}';
    const { rejections } = await readLines(twice);
    assert.equal(rejections[0]!.length, new TextEncoder().encode(twice).length);
  },
});

// ------------------------------------------------------------------------------------------------ replayLog

Deno.test("a comparison counts missing runs and runs that have ended since, as a replay does, and changes nothing", async () => {
  const lines = [
    line("lacking"),
    line("ended since", ENDED),
    line("both running"),
    line("both ended", ENDED),
    line("stale"),
  ];
  using db = memory(
    insert("ended since", { status: "running" }) + insert("both running", { status: "running" }) +
      insert("both ended", { status: "failed" }) + insert("stale", { status: "success" }) +
      insert("not in the log", { status: "success" }),
  );
  const all = () => db.all("SELECT * FROM agent_runs ORDER BY run_id");
  const before = all();
  const newer = async () => {
    const { only_in_log, older_in_database } = await compareLines(db, ...lines);
    return [only_in_log, older_in_database];
  };
  assert.deepEqual(await newer(), [1, 1]);
  assert.deepEqual(all(), before);
  assert.deepEqual(await applyLines(db, ...lines), { newer: 2, refused: 0 });
  assert.deepEqual(await newer(), [0, 0]);
});

Deno.test("replayLog takes the fields of the log, and keeps ended statuses and markers", async () => {
  using db = memory(
    insert("started", { status: "running", product: "old", created_at: "c", api_retry_count: 4 }) +
      insert("ended", { status: "partial", product: "old", api_posted: 1, api_posted_at: "then" }) +
      insert("stale", { status: "failed", product: "old" }) +
      insert("no status", { status: null }) + insert("alone", { status: "success" }),
  );
  const lines = [
    line("started", { ...ENDED, product: "new", api_retry_count: 1 }),
    line("ended", { ...ENDED, product: "new" }),
    line("stale", { product: "new", api_posted: 1, api_posted_at: "in the log" }),
    line("no status", { product: "new" }),
    line("new", { ...ENDED, api_posted: 1, api_posted_at: "in the log" }),
  ];
  assert.deepEqual(await applyLines(db, ...lines), { newer: 2, refused: 0 });
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
  await applyLines(db, ...lines);
  assert.deepEqual(all(), once, "twice is once");
});

Deno.test("replayLog keeps the times of a row until its run ends", async () => {
  using db = memory(
    insert("ended", { status: "success", created_at: "c", updated_at: "u" }) +
      insert("running", { status: "running", created_at: "c", updated_at: "u" }),
  );
  await applyLines(db, line("ended", ENDED), line("running", ENDED));
  assert.deepEqual(row(db, "ended", "created_at", "updated_at"), ["c", "u"]);
  assert.deepEqual(row(db, "running", "created_at", "updated_at"), ["c", "2025-12-10 11:30:00"]);
});

Deno.test("replayLog keeps a field that an old line lacks", async () => {
  using db = memory(
    insert("x", { status: "success", product_family: "by hand", subdomain: "by hand", product: "old" }),
  );
  await applyLines(db, line("x", { ...ENDED, schema_version: 1, product: null }));
  assert.deepEqual(row(db, "x", "product", "product_family", "subdomain"), [null, "by hand", "by hand"]);
});

Deno.test("replayLog counts runs that violate a constraint, and writes the others", async () => {
  using db = memory(insert("known", { status: "running" }));
  const applied = await applyLines(
    db,
    line("d", { trigger_type: "detector" }),
    line("i", { trigger_type: "insight" }),
    line("known", { ...ENDED, trigger_type: "detector" }),
    line("fine", { items_discovered: 2 ** 60, output_summary: "a\0b", error_summary: "\ud800", duration_ms: 1.5 }),
  );
  assert.deepEqual(applied, { newer: 1, refused: 3 });
  assert.deepEqual(db.all("SELECT run_id FROM agent_runs ORDER BY 1").map((found) => found["run_id"]), [
    "fine",
    "known",
  ]);
  assert.deepEqual(row(db, "known", "status"), ["running"]);
  assert.deepEqual(row(db, "fine", "hex(output_summary)"), ["610062"]);
});

Deno.test("replayLog leaves runs that have just started to their agents", async () => {
  const ago = (seconds: number) => new Date(Date.now() - seconds * 1000).toISOString();
  using db = memory(insert("known", { status: "running" }));
  const applied = await applyLines(
    db,
    line("young", { start_time: ago(3) }),
    line("known", { start_time: ago(3), product: "p" }),
    line("ended", { ...ENDED, start_time: ago(3) }),
    line("old", { start_time: ago(30) }),
  );
  assert.deepEqual(applied, { newer: 2, refused: 0 });
  assert.equal(row(db, "young", "status"), undefined);
  assert.deepEqual(row(db, "known", "product"), ["p"]);
  assert.deepEqual(row(db, "old", "status"), ["running"]);
});

/** A trigger that rolls back the whole transaction of a refused row. */
const ROLLBACK_TRIGGERS = ["INSERT", "UPDATE"].map((event) =>
  `CREATE TRIGGER refuse_${event} BEFORE ${event} ON agent_runs WHEN new.job_type='bad'
    BEGIN SELECT RAISE(ROLLBACK, 'no bad jobs'); END;`
).join("");

Deno.test("replayLog writes all runs but those that a trigger rolls back", async () => {
  const lines = ["a", "bad 1", "b", "bad 2", "c"].map((id) =>
    line(id, { ...ENDED, api_posted: 1, job_type: id.startsWith("bad") ? "bad" : "good" })
  );
  using db = memory(insert("b", { status: "running" }) + ROLLBACK_TRIGGERS);
  assert.equal(db.isInTransaction, false);
  assert.deepEqual(db.all("SELECT run_id, status FROM agent_runs").map(Object.values), [["b", "running"]]);
  assert.deepEqual(await applyLines(db, ...lines), { newer: 3, refused: 2 });
  assert.deepEqual(db.all("SELECT run_id, api_posted FROM agent_runs ORDER BY 1").map(Object.values), [
    ["a", 1],
    ["b", 1],
    ["c", 1],
  ]);
});

Deno.test("a marker that a trigger refuses stops no other run", async () => {
  using db = memory(insert("known", { status: "running" }) + ROLLBACK_TRIGGERS);
  db.exec(
    `CREATE TRIGGER no_marker BEFORE UPDATE OF api_posted ON agent_runs BEGIN SELECT RAISE(ROLLBACK, 'no'); END;`,
  );
  await applyLines(db, line("known", { ...ENDED, api_posted: 1 }), line("other", ENDED));
  assert.deepEqual(row(db, "known", "status", "api_posted"), ["success", 0]);
  assert.deepEqual(row(db, "other", "status"), ["success"]);
});

Deno.test("replayLog throws any other error, and leaves no transaction open", async () => {
  using db = Connection.open(":memory:");
  await assert.rejects(applyLines(db, line("x")));
  db.transaction(() => {});
});

// ------------------------------------------------------------------------------------------------ the replaced database

Deno.test("mergeRuns merges all runs and markers of any schema version, and text with NULs completely", () => {
  using temp = new TempFolder();
  for (const kind of ["v1", "v2", "v2_recovered", "says3_is2"] as const) {
    const path = `${temp.path}/${kind}.sqlite`;
    makeOldDatabase(path, kind, 3_000);
    using old = Connection.open(path);
    old.exec("UPDATE agent_runs SET api_posted=1, api_posted_at='at ' || rowid WHERE rowid % 6 <> 0");
    old.exec("UPDATE agent_runs SET api_posted=NULL WHERE rowid % 12 = 0");
    using db = Connection.open(":memory:");
    db.exec(recoverySchemaSql());
    applySchema(db);
    assert.equal(mergeRuns(db, old), 0);
    assert.equal(db.get("SELECT count(*) AS runs FROM agent_runs")!["runs"], 3_000);
    const marked = db.all("SELECT api_posted_at, hex(output_summary) AS hex FROM agent_runs WHERE api_posted=1");
    assert.equal(marked.length, 2_500);
    assert.equal(marked.at(-1)!["api_posted_at"], "at 2999");
    assert.equal(marked.at(-1)!["hex"], Buffer.from("naïve\0 — 日本語 🚀").toString("hex").toUpperCase());
  }
});

Deno.test("mergeRuns keeps the bytes of text that is not UTF-8", () => {
  using there = memory(insert("a", {}) + "UPDATE agent_runs SET error_summary=CAST(x'4dfc6e' AS TEXT)");
  using db = memory();
  assert.equal(mergeRuns(db, there), 0);
  const [found] = db.all("SELECT typeof(error_summary) AS type, hex(error_summary) AS hex FROM agent_runs");
  assert.deepEqual({ ...found }, { type: "text", hex: "4DFC6E" });
});

Deno.test("mergeRuns merges runs that contain a BLOB", () => {
  using there = memory(insert("a", {}) + insert("b", {}) + insert("c", {}));
  there.exec("UPDATE agent_runs SET input_summary=x'00ff' WHERE run_id='b'");
  using db = memory();
  mergeRuns(db, there);
  assert.deepEqual(db.all("SELECT run_id, hex(input_summary) AS hex FROM agent_runs ORDER BY 1").map(Object.values), [
    ["a", ""],
    ["b", "00FF"],
    ["c", ""],
  ]);
});

Deno.test("mergeRuns adds missing runs and markers, and replaces none", () => {
  using db = memory(
    insert("marked", { api_posted: 1, api_posted_at: "first", product: "kept" }) + insert("not", { api_posted: 0 }) +
      insert("null", { api_posted: null }),
  );
  using there = memory(
    ["marked", "not", "null", "added"].map((id) =>
      insert(id, { api_posted: 1, api_posted_at: "later", product: "there" })
    ).join(""),
  );
  assert.equal(mergeRuns(db, there), 0);
  assert.deepEqual(row(db, "marked", "api_posted", "api_posted_at", "product"), [1, "first", "kept"]);
  assert.deepEqual(row(db, "not", "api_posted", "api_posted_at", "product"), [1, "later", null]);
  assert.deepEqual(row(db, "null", "api_posted", "api_posted_at"), [1, "later"]);
  assert.deepEqual(row(db, "added", "api_posted", "api_posted_at", "product"), [1, "later", "there"]);
});

Deno.test("mergeRuns counts runs that violate a constraint", () => {
  using temp = new TempFolder();
  makeOldDatabase(`${temp.path}/old.sqlite`, "v2_recovered", 10);
  using old = Connection.open(`${temp.path}/old.sqlite`);
  using db = memory();
  assert.equal(mergeRuns(db, old), 2);
  assert.equal(db.get("SELECT count(*) AS runs FROM agent_runs")!["runs"], 8);
});

Deno.test("mergeRuns counts runs whose id is not text", () => {
  using db = memory();
  using there = memory(insert("a", {}) + insert("b", {}) + "UPDATE agent_runs SET run_id=x'ff' WHERE run_id='b'");
  assert.equal(mergeRuns(db, there), 1);
});

Deno.test("mergeRuns merges all runs but those that a trigger rolls back", () => {
  using db = memory(ROLLBACK_TRIGGERS);
  using there = memory(insert("a", {}) + insert("b", { job_type: "bad" }) + insert("c", { api_posted: 1 }));
  assert.equal(mergeRuns(db, there), 1);
  assert.deepEqual(db.all("SELECT run_id, api_posted FROM agent_runs ORDER BY 1").map(Object.values), [
    ["a", 0],
    ["c", 1],
  ]);
});

Deno.test("mergeRuns merges nothing from a database without runs", () => {
  using db = memory(insert("a", {}));
  using there = Connection.open(":memory:");
  assert.equal(mergeRuns(db, there), 0);
  there.exec("CREATE TABLE agent_runs (note TEXT)");
  assert.equal(mergeRuns(db, there), 0);
  assert.equal(db.get("SELECT count(*) AS runs FROM agent_runs")!["runs"], 1);
});

Deno.test(
  "mergeRuns merges the readable runs of the sample's damaged database with their markers",
  () => {
    using temp = new TempFolder();
    const path = `${temp.path}/damaged.sqlite`;
    Deno.writeFileSync(path, Deno.readFileSync(`${SAMPLE}/databases/damaged.sqlite`));
    Deno.writeFileSync(`${temp.path}/sound.sqlite`, Deno.readFileSync(`${SAMPLE}/base/db/telemetry.sqlite`));
    using sound = Connection.open(`${temp.path}/sound.sqlite`);
    using damaged = Connection.open(path);
    const known = sound.all("SELECT run_id FROM agent_runs WHERE api_posted=1 ORDER BY 1").map((run) => run["run_id"]);
    using db = memory();
    mergeRuns(db, damaged);
    // SQL that reads around the damage finds 252 of 290 runs.
    assert.ok(Number(db.get("SELECT count(*) AS runs FROM agent_runs")!["runs"]) >= 252);
    const marked = db.all("SELECT run_id FROM agent_runs WHERE api_posted=1").map((run) => run["run_id"]);
    assert.ok(marked.every((id) => known.includes(id!)));
  },
);
