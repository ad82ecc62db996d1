/**
 * The whole story in a temporary folder: agents work and one is killed, the database is backed up, damaged, recovered,
 * restored and exported. Nothing is faked; each step is checked, and the table at the end says what it proved.
 * usage: deno task demo
 */
import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { logFiles, scan } from "../mod.ts";
import { command, lacks, python, ROOT, runScript, TempFolder } from "./fixtures/mod.ts";

const RUNS = 20;

/** What the Python client does: the log first, under its lock and synced, then the database. */
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

/** A step of the story: what it does, and what it proved, in words. */
type Step = [does: string, proved: string];

async function story(base: string, tell: (...step: Step) => void): Promise<void> {
  const database = `${base}/db/telemetry.sqlite`;
  await script("setup_storage", base, "--with-database");
  tell("set up", "folders and an empty database, schema v3");

  const acknowledged = await work(base, tell);

  // An agent that is killed between log and database has its last run in the log alone.
  const inLogAlone = missing(database, acknowledged);
  const posted = acknowledged.filter((id) => !inLogAlone.includes(id)).slice(0, 5);
  change(database, (db) => {
    const mark = db.prepare("UPDATE agent_runs SET api_posted=1, api_posted_at=start_time WHERE run_id=?");
    for (const id of posted) assert.equal(mark.run(id).changes, 1);
  });
  const backup = await script("backup_telemetry_db", base);
  const more = inLogAlone.length > 0 ? `; ${inLogAlone.length} in the log alone, where the kill left it` : "";
  tell("back up", `${backup["runs"]} runs in ${named(backup["path"])}, checked${more}`);

  damage(database);
  const check = await script("recover_database", base, "--check-only");
  assert.equal(check["healthy"], false);
  tell("damage", "header and every fifth page overwritten: the check says that it is not healthy");

  const recovered = await script("recover_database", base);
  assert.deepEqual(missing(database, acknowledged), []);
  assert.deepEqual(marked(database, posted), posted);
  tell("recover", `all ${acknowledged.length} acknowledged runs are there, and the marks of posting, which no log has`);
  assert.equal(recovered["runs"], await inLog(base));

  change(database, (db) => db.exec("DELETE FROM agent_runs"));
  const restored = await script("backup_telemetry_db", base, "--restore", "latest", "--replay", "--yes");
  assert.deepEqual(missing(database, acknowledged), []);
  assert.deepEqual(marked(database, posted), posted);
  tell(
    "restore",
    `after DELETE without WHERE: the backup and the log give all back (${restored["newer_in_log"]} were newer)`,
  );

  const exported = await script("export_csv", base);
  assert.equal(exported["rows"], count(database));
  tell("export", `${exported["rows"]} rows in ${named(exported["path"])}`);

  const lines = await inLog(base);
  assert.equal(count(database), lines);
  tell("compare", `log and database name the same ${lines} runs; nothing acknowledged was lost`);
}

/** Three agents work at once, and one of them is killed. The runs whose start they said was on the disk. */
async function work(base: string, tell: (...step: Step) => void): Promise<string[]> {
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
  tell(
    "work",
    `${ids.length} runs acknowledged: ${isPython ? "two agents and a Python one" : "two agents (no Python here)"}`,
  );
  const logged = await idsInLog(base);
  assert.deepEqual(ids.filter((id) => !logged.has(id)), []);
  tell("kill -9", "one agent died at its work: every start that it had acknowledged is in the log");
  return ids;
}

/** Runs a script as an operator would, with `--json`. */
async function script(name: string, base: string, ...args: string[]): Promise<Record<string, unknown>> {
  const { stdout, stderr } = await runScript(name, base, [...args, "--json"]);
  const result = JSON.parse(stdout);
  if (result.error) throw new Error(`${name}: ${stderr}`);
  return result;
}

/** Overwrites real bytes: the file's header, and every fifth page after the schema. */
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

/** Those of these runs that the database does not have. */
function missing(database: string, ids: string[]): string[] {
  const lost: string[] = [];
  change(database, (db) => {
    const find = db.prepare("SELECT 1 FROM agent_runs WHERE run_id=?");
    lost.push(...ids.filter((id) => find.get(id) === undefined));
  });
  return lost;
}

/** Those of these runs that are marked as posted. */
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

async function inLog(base: string): Promise<number> {
  return (await idsInLog(base)).size;
}

function named(path: unknown): string {
  return String(path).split("/").at(-1)!;
}

if (import.meta.main) {
  using folder = new TempFolder();
  const start = performance.now();
  const rows: Step[] = [];
  await story(folder.path, (does, proved) => {
    console.log(`${((performance.now() - start) / 1000).toFixed(1).padStart(5)} s  ${does}`);
    rows.push([does, proved]);
  });
  console.log(`\n${"step".padEnd(10)}what it proved\n${"-".repeat(100)}`);
  for (const [does, proved] of rows) console.log(`${does.padEnd(10)}${proved}`);
}
