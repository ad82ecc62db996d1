import assert from "node:assert/strict";
import { python, ROOT, run, runScript, TempFolder, testWith } from "./fixtures/mod.ts";

testWith(
  ["python"],
  "Python reads the run of the example agent in the log and the database",
  async () => {
    using folder = new TempFolder();
    const base = `${folder.path}/base`;
    assert.equal((await runScript("setup_storage", base, ["--with-database"])).code, 0);
    const agent = await run(Deno.execPath(), [
      "run",
      "--no-prompt",
      `--allow-read=${ROOT},${base}`,
      `--allow-write=${base}`,
      `${ROOT}tests/example_agent.ts`,
      ROOT.replace(/.$/, ""),
      base,
    ]);
    assert.equal(agent.stderr, "");
    const { words, mentions } = JSON.parse(agent.stdout);
    assert.ok(words > 100 && mentions > 1);

    const read = await python(
      `import glob, json, sqlite3, sys
base = sys.argv[1]
[log] = glob.glob(base + "/raw/events_*.ndjson")
lines = [json.loads(line) for line in open(log, encoding="utf-8")]
db = sqlite3.connect(base + "/db/telemetry.sqlite")
db.row_factory = sqlite3.Row
[row] = db.execute("SELECT * FROM agent_runs").fetchall()
print(json.dumps({"lines": lines, "row": dict(row)}))`,
      base,
    );
    const { lines, row } = JSON.parse(read);
    const [start, ...events] = lines;
    const end = events.pop();
    assert.equal(start.status, "running");
    assert.equal(start.record_type, "run");
    assert.deepEqual(events.map((event: { event_type: string }) => event.event_type), events.map(() => "indexed"));
    assert.equal(events.length, end.items_discovered);
    assert.deepEqual(Object.keys(events[0]), [
      "run_id",
      "event_type",
      "timestamp",
      "payload_json",
      "id",
      "record_type",
    ]);
    assert.ok(typeof JSON.parse(events[0].payload_json).file === "string");

    const { record_type, ...logged } = end;
    const { created_at, updated_at, ...stored } = row;
    assert.equal(record_type, "run");
    assert.deepEqual({ ...stored, created_at: null, updated_at: null }, logged);
    assert.ok(created_at && updated_at);
    assert.match(row.run_id, /^\d{8}T\d{6}Z-repo-indexer-[0-9a-f]{8}$/);
    assert.match(row.start_time, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00$/);
    assert.equal(row.status, "success");
    assert.equal(row.schema_version, 3);
    assert.equal(row.trigger_type, "cli");
    assert.equal(row.items_succeeded, row.items_discovered);
    assert.equal(JSON.parse(row.metrics_json).words, words);
    assert.ok(row.output_summary.endsWith("naïve but real"));
    assert.ok(row.duration_ms >= 0 && row.end_time >= row.start_time);
  },
);
