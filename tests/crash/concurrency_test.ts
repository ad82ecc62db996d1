/** All scripts at once, beside a live agent of ours and one of the Python system. */
import assert from "node:assert/strict";
import { checkHealth } from "../../lib/recovery/health.ts";
import { layoutOf } from "../../lib/layout.ts";
import { interpreter, Live, rounds, runScript, TempFolder, testWith } from "../fixtures/mod.ts";
import { agentProgram, integrityOf, isThere, makeStore, missingFrom, namesIn, rowsOf } from "./recovery_fixtures.ts";

/**
 * The Python client: the log first, then the database, with three attempts. An INSERT that is refused keeps its connection
 * open, with the write lock (contract, "What the Python tools get wrong").
 */
const PYTHON_AGENT = `
import fcntl, json, os, sqlite3, sys, time, datetime
base, n, leaked = sys.argv[1], 0, []
def log(**run):
    path = base + "/raw/events_" + datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%d") + ".ndjson"
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(dict(run, agent_name="python", record_type="run")) + "\\n")
        file.flush()
        os.fsync(file.fileno())
def write(sql, *values):
    for pause in (0.1, 0.2, 0):
        db = sqlite3.connect("file:" + base + "/db/telemetry.sqlite?mode=rw", uri=True, timeout=5)
        try:
            db.execute(sql, values)
            db.commit()
            db.close()
            return True
        except sqlite3.IntegrityError as error:
            leaked.append(db)
            print("refused %s" % error, flush=True)
            return False
        except sqlite3.OperationalError:
            db.close()
            time.sleep(pause)
    return False
while True:
    n += 1
    now = datetime.datetime.now(datetime.timezone.utc).isoformat()
    run = "20261101T000000Z-python-%08x" % n
    log(run_id=run, start_time=now, status="running")
    write("INSERT INTO agent_runs (run_id, agent_name, start_time, status) VALUES (?, 'python', ?, 'running')", run, now)
    log(run_id=run, start_time=now, status="success")
    print("ended " + run, flush=True)
    write("UPDATE agent_runs SET status='success' WHERE run_id=?", run)
    if write("UPDATE agent_runs SET api_posted=1, api_posted_at='live' WHERE run_id=?", run):
        print("mark " + run, flush=True)
    time.sleep(0.01)
`;

/** What operators and jobs start at the same time. */
const SCRIPTS: [script: string, flags: string[]][] = [
  ["backup_database", []],
  ["backup_telemetry_db", ["--restore", "latest", "--replay", "--yes"]],
  ["recover_database", ["--force"]],
  ["setup_database", []],
  ["recover_database", ["--check-only"]],
];

testWith(["python"], "all scripts at once, beside live agents, lose nothing and leave nothing", async (t) => {
  const outcomes: string[] = [];
  for (let round = 0; round < rounds(1, 21); round++) {
    using temp = new TempFolder();
    const base = `${temp.path}/store`;
    const layout = layoutOf(base);
    const store = makeStore(base, { seed: round, runs: 600, pageSize: 4096, wal: false });
    Deno.mkdirSync(layout.backups);
    Deno.copyFileSync(store.database, `${layout.backups}/telemetry.backup.20251201.sqlite`);
    await using agent = new Live(Deno.execPath(), ["eval", "--quiet", "--no-check", agentProgram(20), base]);
    await using python = new Live(interpreter(), ["-c", PYTHON_AGENT, base]);
    await Promise.all([agent.untilCount(3), python.untilCount(3)]);
    // 1. All at once. One that finds a lock for too long says so, and is started again.
    const done = await Promise.all(SCRIPTS.map(([script, flags]) => runScript(script, base, flags)));
    outcomes.push(done.map(({ code }) => code).join(""));
    for (const [i, { code, stderr }] of done.entries()) {
      assert.ok(code === 0 || code === 1 && /is locked|lock/.test(stderr), `round ${round}, ${SCRIPTS[i]}: ${stderr}`);
    }
    // 2. The agents go on, and no INSERT of the Python agent was refused.
    await Promise.all([agent, python].map((live) => live.until(() => live.lines.length > 10, 60_000)));
    const [ours, theirs] = [agent.lines.length, python.lines.length];
    await Promise.all([agent.untilCount(ours + 3), python.untilCount(theirs + 3)]);
    assert.deepEqual(python.linesWith("refused"), [], `round ${round}`);
    assert.deepEqual([await agent.end(), await python.end()], ["", ""]);
    // 3. Nothing is lost: one replay adds what the agents could not write.
    const { code, stderr } = await runScript("recover_database", base, ["--force"]);
    assert.equal(code, 0, stderr);
    const ended = new Set(
      rowsOf(store.database, "SELECT run_id FROM agent_runs WHERE status='success'").map(({ run_id }) => run_id),
    );
    const acknowledged = [...agent.linesWith("run"), ...python.linesWith("ended")];
    assert.deepEqual(acknowledged.filter((id) => !ended.has(id)), [], `round ${round}`);
    assert.deepEqual(missingFrom(store.database, store), [], `round ${round}`);
    const marked = new Set(
      rowsOf(store.database, "SELECT run_id FROM agent_runs WHERE api_posted=1").map(({ run_id }) => run_id),
    );
    assert.deepEqual(
      [...store.marked, ...python.linesWith("mark")].filter((id) => !marked.has(id)),
      [],
      `round ${round}`,
    );
    const { runs } = await checkHealth(layout, { compare: true });
    assert.deepEqual([runs!.only_in_log, runs!.older_in_database], [0, 0], `round ${round}`);
    assert.equal(integrityOf(store.database), "ok");
    // 4. Nothing is left.
    const left = ["db", "backups", "reports", "config"].filter((folder) => isThere(`${base}/${folder}`))
      .flatMap((folder) => namesIn(`${base}/${folder}`)).filter((name) =>
        /partial|recovering|-(wal|shm|journal)$/.test(name)
      );
    assert.deepEqual(left, [], `round ${round}`);
  }
  await t.step(`exit codes of backup, restore, recovery, setup and check: ${outcomes.join(" ")}`, () => {});
});
