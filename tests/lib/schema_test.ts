import assert from "node:assert/strict";
import { join } from "node:path";
import { schemaSql } from "../../lib/schema.ts";
import { type Column, python, readDatabase, run, runScript, TempFolder, testWith } from "../fixtures/mod.ts";

// The contract, "SQLite, v3", written out. Do not derive this from lib/schema.ts.
const NOW = "datetime('now')";
const AGENT_RUNS: Column[] = [
  ["run_id", "TEXT", 0, null, 1],
  ["schema_version", "INTEGER", 0, "3", 0],
  ["agent_name", "TEXT", 1, null, 0],
  ["agent_owner", "TEXT", 0, null, 0],
  ["job_type", "TEXT", 0, null, 0],
  ["trigger_type", "TEXT", 0, null, 0],
  ["start_time", "TEXT", 1, null, 0],
  ["end_time", "TEXT", 0, null, 0],
  ["status", "TEXT", 0, null, 0],
  ["items_discovered", "INTEGER", 0, "0", 0],
  ["items_succeeded", "INTEGER", 0, "0", 0],
  ["items_failed", "INTEGER", 0, "0", 0],
  ["duration_ms", "INTEGER", 0, null, 0],
  ["input_summary", "TEXT", 0, null, 0],
  ["output_summary", "TEXT", 0, null, 0],
  ["error_summary", "TEXT", 0, null, 0],
  ["metrics_json", "TEXT", 0, null, 0],
  ["insight_id", "TEXT", 0, null, 0],
  ["product", "TEXT", 0, null, 0],
  ["platform", "TEXT", 0, null, 0],
  ["product_family", "TEXT", 0, null, 0],
  ["subdomain", "TEXT", 0, null, 0],
  ["git_repo", "TEXT", 0, null, 0],
  ["git_branch", "TEXT", 0, null, 0],
  ["git_run_tag", "TEXT", 0, null, 0],
  ["host", "TEXT", 0, null, 0],
  ["api_posted", "INTEGER", 0, "0", 0],
  ["api_posted_at", "TEXT", 0, null, 0],
  ["api_retry_count", "INTEGER", 0, "0", 0],
  ["created_at", "TEXT", 0, NOW, 0],
  ["updated_at", "TEXT", 0, NOW, 0],
];
const RUN_EVENTS: Column[] = [
  ["id", "INTEGER", 0, null, 1],
  ["run_id", "TEXT", 1, null, 0],
  ["event_type", "TEXT", 1, null, 0],
  ["timestamp", "TEXT", 1, null, 0],
  ["payload_json", "TEXT", 0, null, 0],
];
const COMMITS: Column[] = [
  ["commit_hash", "TEXT", 0, null, 1],
  ["run_id", "TEXT", 0, null, 0],
  ["agent_name", "TEXT", 0, null, 0],
  ["repo", "TEXT", 0, null, 0],
  ["branch", "TEXT", 0, null, 0],
  ["commit_date", "TEXT", 0, null, 0],
  ["author", "TEXT", 0, null, 0],
  ["message", "TEXT", 0, null, 0],
  ["files_changed", "INTEGER", 0, null, 0],
  ["insertions", "INTEGER", 0, null, 0],
  ["deletions", "INTEGER", 0, null, 0],
  ["created_at", "TEXT", 0, NOW, 0],
];
const SCHEMA_MIGRATIONS: Column[] = [
  ["version", "INTEGER", 0, null, 1],
  ["applied_at", "TEXT", 0, NOW, 0],
  ["description", "TEXT", 0, null, 0],
];

/** Compares a database with the contract. */
function assertContract(path: string): void {
  const { journal, check, tables, sql } = readDatabase(path);
  assert.deepEqual([journal, check], ["wal", "ok"]);
  assert.deepEqual(Object.keys(tables), ["agent_runs", "commits", "run_events", "schema_migrations"]);
  const { agent_runs, run_events, commits, schema_migrations } = tables;
  assert.deepEqual(agent_runs?.columns, AGENT_RUNS);
  assert.deepEqual(run_events?.columns, RUN_EVENTS);
  assert.deepEqual(commits?.columns, COMMITS);
  assert.deepEqual(schema_migrations?.columns, SCHEMA_MIGRATIONS);
  assert.deepEqual(agent_runs.indexes, {
    idx_runs_agent: ["agent_name"],
    idx_runs_status: ["status"],
    idx_runs_start: ["start_time"],
    idx_runs_api_posted: ["api_posted"],
    idx_runs_insight: ["insight_id"],
  });
  assert.deepEqual(run_events.indexes, { idx_events_run: ["run_id"] });
  assert.deepEqual(commits.indexes, { idx_commits_run: ["run_id"] });
  assert.deepEqual(schema_migrations.indexes, {});
  assert.deepEqual(run_events.references, [["run_id", "agent_runs", "run_id"]]);
  assert.deepEqual(commits.references, [["run_id", "agent_runs", "run_id"]]);
  assert.match(sql["run_events"] ?? "", /\bid INTEGER PRIMARY KEY AUTOINCREMENT\b/);
  assert.deepEqual(schema_migrations.rows.map((row) => row["version"]), [3]);
  for (const name of ["agent_runs", "run_events", "commits"]) assert.deepEqual(tables[name]?.rows, []);
}

/** Inserts valid and invalid rows. Prints the defaults, and which rows were refused. */
const PROBE = `
import json, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
def refused(sql, *values):
    db.execute("BEGIN")
    try:
        db.execute(sql, values)
        return False
    except sqlite3.IntegrityError:
        return True
    finally:
        db.execute("ROLLBACK")
RUN = "INSERT INTO agent_runs (run_id, agent_name, start_time, trigger_type, status) VALUES (?, ?, ?, ?, ?)"
def run(run_id="r", name="a", start="t", trigger="cli", status="running"):
    return refused(RUN, run_id, name, start, trigger, status)
db.execute("BEGIN")
db.execute("INSERT INTO agent_runs (run_id, agent_name, start_time) VALUES ('r', 'a', 't')")
cursor = db.execute("SELECT * FROM agent_runs")
row = dict(zip([column[0] for column in cursor.description], cursor.fetchone()))
db.execute("ROLLBACK")
print(json.dumps({
    "row": row,
    "accepted": [not run(trigger=t) for t in ("cli", "web", "scheduler", "mcp", "manual", None)]
        + [not run(status=s) for s in ("running", "success", "failed", "partial", None)],
    "refused": [run(trigger="detector"), run(trigger=""), run(trigger="CLI"), run(status="done"), run(name=None), run(start=None),
        refused("INSERT INTO run_events (event_type, timestamp) VALUES ('e', 't')"),
        refused("INSERT INTO run_events (run_id, timestamp) VALUES ('r', 't')"),
        refused("INSERT INTO run_events (run_id, event_type) VALUES ('r', 'e')")],
}))
db.close()
`;

async function assertChecks(path: string): Promise<void> {
  const { row, accepted, refused } = JSON.parse(await python(PROBE, path));
  assert.ok(accepted.every(Boolean), `accepted: ${accepted}`);
  assert.ok(refused.every(Boolean), `refused: ${refused}`);
  assert.deepEqual(
    [
      row.schema_version,
      row.items_discovered,
      row.items_succeeded,
      row.items_failed,
      row.api_posted,
      row.api_retry_count,
    ],
    [3, 0, 0, 0, 0, 0],
  );
  assert.match(row.created_at, /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$/);
  assert.match(row.updated_at, /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$/);
  assert.deepEqual([row.trigger_type, row.status, row.insight_id, row.product_family], [null, null, null, null]);
}

testWith(["python"], "a new database has the contract's schema, read by Python", async () => {
  using temp = new TempFolder();
  Deno.mkdirSync(join(temp.path, "db"));
  const { code, stderr } = await runScript("setup_database", temp.path);
  assert.equal(code, 0, stderr);
  const path = join(temp.path, "db", "telemetry.sqlite");
  assertContract(path);
  await assertChecks(path);
  assert.deepEqual([...Deno.readDirSync(join(temp.path, "db"))].map(({ name }) => name), ["telemetry.sqlite"]);
});

testWith(["python", "sqlite3"], "config/schema.sql creates the same database in the sqlite3 program", async () => {
  using temp = new TempFolder();
  Deno.mkdirSync(join(temp.path, "db"));
  const { code, stderr } = await runScript("setup_database", temp.path);
  assert.equal(code, 0, stderr);
  const sql = join(temp.path, "config", "schema.sql");
  assert.equal(Deno.readTextFileSync(sql), schemaSql());
  const path = join(temp.path, "by_sqlite3.sqlite");
  // Twice: the script can be run on an existing database.
  for (let i = 0; i < 2; i++) {
    const made = await run("sqlite3", ["-bail", path, `.read ${sql}`]);
    assert.deepEqual([made.code, made.stderr], [0, ""]);
  }
  assertContract(path);
  await assertChecks(path);
  const bySetup = readDatabase(join(temp.path, "db", "telemetry.sqlite"));
  assert.deepEqual(readDatabase(path).sql, bySetup.sql);
});
