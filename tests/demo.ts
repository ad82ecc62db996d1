/**
 * Shows the toolkit in a temporary folder: agents record runs and one is killed; the database is backed up, damaged,
 * recovered, restored and exported. Each step is checked, and the table at the end says what it proved.
 * usage: deno task demo
 */
import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { logFiles, scan } from "../mod.ts";
import { command, lacks, python, ROOT, runScript, TempFolder } from "./fixtures/mod.ts";

const RUNS = 20;

/** An agent in Python. Like the Python client, it appends to the log under its lock and syncs, then writes to the database. */
const PYTHON_AGENT = `
import fcntl, json, os, sqlite3, sys, uuid
from datetime import datetime, timezone
base, runs = sys.argv[1], int(sys.argv[2])
db = sqlite3.connect(base + "/db/telemetry.sqlite", timeout=5)
for n in range(runs):
    now = datetime.now(timezone.utc)
    run = {"run_id": f"{now:%Y%m%dT%H%M%SZ}-python-{uuid.uuid4().hex[:8]}", "schema_version": 3, "agent_name": "python",
           "start_time": now.isoformat(), "end_time": now.isoformat(), "status": "success", "items_succeeded": n}
    with open(f"{base}/raw/events_{now:%Y%m%d}.ndjson", "a", encoding="utf-8") as log:
        fcntl.flock(log.fileno(), fcntl.LOCK_EX)
        log.write(json.dumps({**run, "record_type": "run"}) + "\\n")
        log.flush(); os.fsync(log.fileno())
    with db:
        db.execute(f"INSERT INTO agent_runs ({','.join(run)}) VALUES ({','.join('?' * len(run))})", list(run.values()))
    print(run["run_id"], flush=True)
`;

type Step = [name: string, proved: string];

async function demonstrate(base: string, report: (...step: Step) => void): Promise<void> {
  const database = `${base}/db/telemetry.sqlite`;
  await script("setup_storage", base, "--with-database");
  report("set up", "folders and an empty database, schema v3");

  const acknowledged = await work(base, report);

  // An agent that is killed after it wrote to the log and before it wrote to the database leaves a run only in the log.
  const onlyInLog = missing(database, [...await idsInLog(base)]);
  const posted = acknowledged.filter((id) => !onlyInLog.includes(id)).slice(0, 5);
  change(database, (db) => {
    const mark = db.prepare("UPDATE agent_runs SET api_posted=1, api_posted_at=start_time WHERE run_id=?");
    for (const id of posted) assert.equal(mark.run(id).changes, 1);
  });
  const backup = await script("backup_telemetry_db", base);
  const more = onlyInLog.length > 0 ? `; ${onlyInLog.length} only in the log, because of the kill` : "";
  report("back up", `${backup["runs"]} runs in ${nameOf(backup["path"])}, checked${more}`);

  damage(database);
  const check = await script("recover_database", base, "--check-only");
  assert.equal(check["healthy"], false);
  report("damage", "header and every fifth page overwritten: --check-only reports that it is not healthy");

  const recovered = await script("recover_database", base);
  // A run that has started in the last seconds is left to its agent, which here was killed.
  const lost = (ids: string[]) => missing(database, ids).filter((id) => !onlyInLog.includes(id));
  assert.deepEqual(lost(acknowledged), []);
  // A marker is only in its row. Where the row is lost, the run comes from the log, without the marker.
  const readable = marked(database, acknowledged);
  assert.deepEqual(readable.filter((id) => !posted.includes(id)), []);
  report(
    "recover",
    `the acknowledged runs are there (${
      missing(database, acknowledged).length
    } left to the killed agent), and ${readable.length} of ${posted.length} api_posted markers`,
  );
  assert.deepEqual(lost([...await idsInLog(base)]), []);
  assert.equal(recovered["runs"], count(database));

  change(database, (db) => db.exec("DELETE FROM agent_runs"));
  const restored = await script("backup_telemetry_db", base, "--restore", "latest", "--replay", "--yes");
  assert.deepEqual(lost(acknowledged), []);
  assert.deepEqual(marked(database, posted), posted);
  report(
    "restore",
    `after a DELETE of all runs, backup and log restore all of them (${restored["newer_in_log"]} newer in the log)`,
  );

  const exported = await script("export_csv", base);
  assert.equal(exported["rows"], count(database));
  report("export", `${exported["rows"]} rows in ${nameOf(exported["path"])}`);

  assert.deepEqual(lost([...await idsInLog(base)]), []);
  const left = missing(database, [...await idsInLog(base)]).length;
  report(
    "compare",
    `log and database have the same ${count(database)} runs; nothing acknowledged was lost${
      left > 0 ? `; ${left} of the killed agent only in the log` : ""
    }`,
  );
}

/** Runs three agents concurrently and kills one. Returns the ids of the runs whose start they acknowledged. */
async function work(base: string, report: (...step: Step) => void): Promise<string[]> {
  const program = [
    ...["run", "--quiet", `--allow-read=${base}`, `--allow-write=${base}`],
    `${ROOT}tests/fixtures/demo_agent.ts`,
  ];
  const victim = command(Deno.execPath(), [...program, base, "victim", "1000000"]).spawn();
  const whole = command(Deno.execPath(), [...program, base, "deno", String(RUNS)]).output();
  const isPython = !lacks("python");
  const other = isPython ? python(PYTHON_AGENT, base, String(RUNS)) : Promise.resolve("");
  const killed: string[] = [];
  for await (const text of victim.stdout.pipeThrough(new TextDecoderStream())) {
    killed.push(...text.split("\n").filter(Boolean));
    if (killed.length >= RUNS) break;
  }
  victim.kill("SIGKILL");
  await Promise.all([victim.status, victim.stderr.cancel()]);
  const { code, stdout, stderr } = await whole;
  assert.equal(code, 0, new TextDecoder().decode(stderr));
  const ids = [...killed, ...`${new TextDecoder().decode(stdout)}${await other}`.split("\n").filter(Boolean)];
  report(
    "work",
    `${ids.length} runs acknowledged: ${
      isPython ? "two agents in Deno, one in Python" : "two agents (python3 is missing)"
    }`,
  );
  const logged = await idsInLog(base);
  assert.deepEqual(ids.filter((id) => !logged.has(id)), []);
  report("kill -9", "one agent was killed while recording: every start that it acknowledged is in the log");
  return ids;
}

/** Runs a script as an operator would, with `--json`. */
async function script(name: string, base: string, ...args: string[]): Promise<Record<string, unknown>> {
  const { stdout, stderr } = await runScript(name, base, [...args, "--json"]);
  const result = JSON.parse(stdout);
  if (result.error) throw new Error(`${name}: ${stderr}`);
  return result;
}

/** Overwrites bytes of the header and of every fifth page after the schema. */
function damage(database: string): void {
  change(database, (db) => db.exec("PRAGMA wal_checkpoint(TRUNCATE)"));
  using file = Deno.openSync(database, { read: true, write: true });
  const { size } = file.statSync();
  file.writeSync(crypto.getRandomValues(new Uint8Array(100)));
  for (let page = 10; page * 4096 < size; page += 5) {
    file.seekSync(page * 4096, Deno.SeekMode.Start);
    file.writeSync(crypto.getRandomValues(new Uint8Array(512)));
  }
}

function change(database: string, work: (db: DatabaseSync) => void): void {
  const db = new DatabaseSync(database, { enableForeignKeyConstraints: false });
  work(db);
  db.close();
}

function count(database: string): number {
  let runs = 0;
  change(database, (db) => runs = Number(db.prepare("SELECT count(*) AS runs FROM agent_runs").get()!["runs"]));
  return runs;
}

/** The runs that are not in the database. */
function missing(database: string, ids: string[]): string[] {
  const lost: string[] = [];
  change(database, (db) => {
    const find = db.prepare("SELECT 1 FROM agent_runs WHERE run_id=?");
    lost.push(...ids.filter((id) => find.get(id) === undefined));
  });
  return lost;
}

/** The runs whose `api_posted` marker is set. */
function marked(database: string, ids: string[]): string[] {
  const found: string[] = [];
  change(database, (db) => {
    const find = db.prepare("SELECT 1 FROM agent_runs WHERE run_id=? AND api_posted=1");
    found.push(...ids.filter((id) => find.get(id) !== undefined));
  });
  return found;
}

async function idsInLog(base: string): Promise<Set<string>> {
  const ids = new Set<string>();
  for await (const found of scan(logFiles(`${base}/raw`))) {
    if ("record" in found && found.record.record_type === "run") ids.add(found.record.run_id);
  }
  return ids;
}

function nameOf(path: unknown): string {
  return String(path).split("/").at(-1)!;
}

if (import.meta.main) {
  using folder = new TempFolder();
  const start = performance.now();
  const rows: Step[] = [];
  await demonstrate(folder.path, (name, proved) => {
    console.log(`${((performance.now() - start) / 1000).toFixed(1).padStart(5)} s  ${name}`);
    rows.push([name, proved]);
  });
  console.log(`\n${"step".padEnd(10)}what it proved\n${"-".repeat(100)}`);
  for (const [name, proved] of rows) console.log(`${name.padEnd(10)}${proved}`);
}
