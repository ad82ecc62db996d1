/** Restores that are killed, that find the disk full, and that meet live programs: real processes, real signals. */
import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { restoreBackup } from "../../lib/backup/restore.ts";
import { DatabaseWriter } from "../../lib/writer/database_writer.ts";
import { layoutOf } from "../../lib/layout.ts";
import { newRun } from "../../lib/records.ts";
import {
  command,
  contentHash,
  holdDatabase,
  interpreter,
  KILLED,
  Live,
  makeOldDatabase,
  NOBODY,
  ROOT,
  rounds,
  run,
  runScript,
  scriptArgs,
  SmallDisk,
  sqlite,
  TempFolder,
  testWith,
  treeOf,
} from "../fixtures/mod.ts";

const DRIVER = `${ROOT}tests/crash/restore_driver.ts`;
const ENDS = ["", "-wal", "-shm", "-journal"];
const BACKUP = "backups/telemetry_backup_20251201_030000.sqlite";
const COPY = /^db\/telemetry_before_restore_\d{8}_\d{6}\.sqlite$/;

const delay = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

/** Copies a database and what SQLite keeps beside it. */
function copyDatabase(from: string, to: string): void {
  for (const end of ENDS) {
    try {
      Deno.copyFileSync(from + end, to + end);
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
  }
}

function namesIn(folder: string): string[] {
  return [...Deno.readDirSync(folder)].map(({ name }) => name).sort();
}

/** A base whose database has other content than its one backup; both of schema v3. */
async function makeStore(base: string, rows: number): Promise<{ file: string; backup: string }> {
  Deno.mkdirSync(`${base}/db`, { recursive: true });
  Deno.mkdirSync(`${base}/raw`);
  const file = `${base}/db/telemetry.sqlite`;
  makeOldDatabase(file, "v1", rows);
  assert.equal((await runScript("setup_database", base)).code, 0);
  for (const name of namesIn(`${base}/backups`)) Deno.removeSync(`${base}/backups/${name}`);
  const backup = `${base}/${BACKUP}`;
  Deno.copyFileSync(file, backup);
  sqlite(
    backup,
    "DELETE FROM agent_runs WHERE rowid % 4 = 0; UPDATE agent_runs SET agent_name='of the backup'; VACUUM",
  );
  return { file, backup };
}

/** Runs several rounds at a time. */
async function inParallel(goesOn: (i: number) => boolean, round: (i: number) => Promise<void>): Promise<void> {
  let next = 0;
  const worker = async () => {
    while (goesOn(next)) await round(next++);
  };
  await Promise.all([worker(), worker()]);
}

// ------------------------------------------------------------------------------------------------ kill -9

/** Steps of this part of a whole never come together, however many there are. */
const GOLDEN = (Math.sqrt(5) - 1) / 2;

type Phase = "before" | "preparing" | "safety copy being made" | "safety copy named" | "in place" | "done";

Deno.test(
  "a restore killed at any moment leaves the old or the new database, and a complete kept copy",
  async (t) => {
    using temp = new TempFolder();
    const original = await makeStore(`${temp.path}/original`, 4000);
    const old = contentHash(original.file);

    const driver = (base: string, ...call: string[]) =>
      command(Deno.execPath(), ["run", "--quiet", "--allow-all", DRIVER, base, original.backup, ...call]);
    function newBase(name: string): string {
      const base = `${temp.path}/${name}`;
      Deno.mkdirSync(`${base}/db`, { recursive: true });
      Deno.mkdirSync(`${base}/raw`);
      copyDatabase(original.file, `${base}/db/telemetry.sqlite`);
      return base;
    }

    const undisturbed = newBase("undisturbed");
    const start = performance.now();
    const output = await driver(undisturbed).output();
    assert.ok(output.success, new TextDecoder().decode(output.stderr));
    const durationMs = performance.now() - start;
    const calls = Number(new TextDecoder().decode(output.stdout));
    assert.ok(calls > 60, String(calls));
    const restored = contentHash(`${undisturbed}/db/telemetry.sqlite`);
    assert.notEqual(restored, old);
    Deno.removeSync(undisturbed, { recursive: true });

    const KILLS = rounds(6, 100);
    const phases: Record<Phase, number> = {
      before: 0,
      preparing: 0,
      "safety copy being made": 0,
      "safety copy named": 0,
      "in place": 0,
      done: 0,
    };
    let killed = 0;

    const reached = () => Object.entries(phases).every(([phase, count]) => /^(before|done)$/.test(phase) || count > 0);

    await inParallel(() => killed < KILLS || !reached(), async (i) => {
      assert.ok(i < 300, `the phases were not reached: ${JSON.stringify(phases)}`);
      const base = newBase(`killed_${i}`);
      const file = `${base}/db/telemetry.sqlite`;
      // Of two, one dies before one of its calls, all of which come in turn; the other at a moment of no choice.
      let success: boolean;
      if (i % 2 === 0) {
        success = (await driver(base, String(1 + Math.floor(i / 2 * GOLDEN % 1 * calls))).output()).success;
      } else {
        const process = driver(base).spawn();
        const [{ success: ended }] = await Promise.all([
          process.output(),
          delay(durationMs * (0.3 + 0.6 * Math.random())).then(() => {
            try {
              process.kill("SIGKILL");
            } catch { /* it has ended */ }
          }),
        ]);
        success = ended;
      }
      if (!success) killed++;

      // Looked at in a copy: the next restore shall find exactly what the kill left.
      const left = `${temp.path}/left_${i}.sqlite`;
      copyDatabase(file, left);
      const state = contentHash(left);
      for (const end of ENDS) {
        try {
          Deno.removeSync(left + end);
        } catch { /* it was not there */ }
      }
      assert.ok(state === old || state === restored, "neither old nor new");
      const names = namesIn(`${base}/db`);
      const copies = names.filter((name) => COPY.test(`db/${name}`));
      const phase: Phase = success
        ? "done"
        : state === restored
        ? "in place"
        : copies.length > 0
        ? "safety copy named"
        : names.some((name) => name.startsWith("telemetry_before_restore_"))
        ? "safety copy being made"
        : names.includes("telemetry.sqlite.partial")
        ? "preparing"
        : "before";
      phases[phase]++;
      assert.ok(state === old || copies.length === 1, "nothing is replaced without a safety copy");
      for (const name of copies) assert.equal(contentHash(`${base}/db/${name}`), old, "the copy is the old state");

      if (i % 6 < 2) {
        const next = await runScript(
          "backup_telemetry_db",
          base,
          ["--restore", `${base}/backup.sqlite`, "--yes"]
            .with(1, copyInto(base, original.backup)),
        );
        assert.deepEqual([next.code, next.stderr], [0, ""]);
        assert.equal(contentHash(file), restored);
        const after = namesIn(`${base}/db`);
        for (const name of after) {
          assert.match(`db/${name}`, /^db\/telemetry\.sqlite$|before_restore_\d{8}_\d{6}\.sqlite$/);
        }
        for (const name of after.filter((name) => name !== "telemetry.sqlite")) {
          const kept = contentHash(`${base}/db/${name}`);
          assert.ok(kept === old || kept === restored, name);
        }
      }
      Deno.removeSync(base, { recursive: true });
    });
    await t.step(`killed ${killed} times in ${calls} calls: ${JSON.stringify(phases)}`, () => {});
  },
);

function copyInto(base: string, backup: string): string {
  const path = `${base}/backup.sqlite`;
  Deno.copyFileSync(backup, path);
  return path;
}

Deno.test(
  "a restore killed while it replaces a destroyed database loses no byte of it",
  async (t) => {
    using temp = new TempFolder();
    const original = await makeStore(`${temp.path}/original`, 2000);
    const { backup } = original;
    const restored = contentHash(backup);
    const bytes = Deno.readFileSync(original.file);
    bytes.fill(0x55, 0, 4096);
    const wal = new TextEncoder().encode("what is left of a WAL".repeat(500));

    function newBase(name: string): string {
      const base = `${temp.path}/${name}`;
      Deno.mkdirSync(`${base}/db`, { recursive: true });
      Deno.writeFileSync(`${base}/db/telemetry.sqlite`, bytes);
      Deno.writeFileSync(`${base}/db/telemetry.sqlite-wal`, wal);
      return base;
    }
    const driver = (base: string, ...call: string[]) =>
      run(Deno.execPath(), ["run", "--quiet", "--allow-all", DRIVER, base, backup, ...call]);
    const isSame = (path: string, content: Uint8Array) => {
      try {
        return Deno.readFileSync(path).every((byte, i) => byte === content[i]) &&
          Deno.statSync(path).size === content.length;
      } catch {
        return false;
      }
    };
    const undisturbed = await driver(newBase("undisturbed"));
    assert.deepEqual([undisturbed.code, undisturbed.stderr], [0, ""]);
    const calls = Number(undisturbed.stdout);
    assert.ok(calls > 30);

    const problems: string[] = [];
    const phases = { old: 0, kept: 0, new: 0 };
    // Nothing is done twice before the safety copy: the later half is where it gets narrow.
    const from = Math.floor(calls / 3);
    const step = rounds(7, 1);
    const first = from + 1 + Math.floor(Math.random() * step);
    /** The last call before which all is old, and the first before which it is replaced. */
    let [lastOld, firstNew] = [from, calls + 1];
    const killedAt = async (call: number) => {
      const base = newBase(`killed_${call}`);
      const { code, stdout } = await driver(base, String(call));
      if (code === 0) {
        // How often the copy reports its progress depends on the time that it takes.
        assert.ok(Number(stdout) < call, `${call} of ${stdout} calls`);
        return;
      }
      assert.equal(code, KILLED);
      const file = `${base}/db/telemetry.sqlite`;
      const kept = namesIn(`${base}/db`).filter((name) => COPY.test(`db/${name}`));
      // What has the name is whole, with its WAL.
      const isKept = kept.length === 1 && isSame(`${base}/db/${kept[0]}`, bytes) &&
        isSame(`${base}/db/${kept[0]}-wal`, wal);
      const isOld = isSame(file, bytes) && isSame(`${file}-wal`, wal);
      phases[isOld ? isKept ? "kept" : "old" : "new"]++;
      if (!isOld) firstNew = Math.min(firstNew, call);
      else if (!isKept) lastOld = Math.max(lastOld, call);
      if (kept.length > 0 && !isKept) problems.push(`call ${call}: half a safety copy has its name`);
      if (!isOld && !isKept) problems.push(`call ${call}: the database is replaced, and not kept`);
      if (!isSame(file, bytes)) assert.equal(contentHash(file), restored, `call ${call}`);
      Deno.removeSync(base, { recursive: true });
    };
    await inParallel((i) => first + i * step <= calls, (i) => killedAt(first + i * step));
    // Between the two there are few calls, and these steps may go over them.
    while (phases.kept === 0 && firstNew - lastOld > 1) await killedAt(Math.floor((lastOld + firstNew) / 2));
    assert.deepEqual(problems, []);
    assert.ok(Object.values(phases).every((count) => count > 0), JSON.stringify(phases));
    await t.step(JSON.stringify(phases), () => {});
  },
);

// ------------------------------------------------------------------------------------------------ live programs

const READER = `
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], timeout=10)
print("open", flush=True)
last = None
while True:
    state = db.execute("SELECT count(*), min(agent_name) FROM agent_runs WHERE agent_name<>'later'").fetchone()
    if state != last:
        print("%d %s" % state, flush=True)
        last = state
    time.sleep(0.002)
`;

const WRITER = `
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], timeout=10)
print("open", flush=True)
n = 0
while True:
    run = "python-%06d" % n
    with db:
        db.execute("INSERT INTO agent_runs (run_id, agent_name, start_time, status) VALUES (?, 'later', 't', 'success')", [run])
    print(run, flush=True)
    n += 1
    time.sleep(0.003)
`;

const NODE_WRITER = `
import { DatabaseSync } from "node:sqlite";
const db = new DatabaseSync(Deno.args[0], { timeout: 10000 });
const insert = db.prepare("INSERT INTO agent_runs (run_id, agent_name, start_time, status) VALUES (?, 'later', 't', 'success')");
const count = db.prepare("SELECT count(*) AS runs, min(agent_name) AS agent FROM agent_runs WHERE agent_name<>'later'");
console.log("open");
let last = "";
for (let n = 0;; n++) {
  const run = "deno-" + String(n).padStart(6, "0");
  insert.run(run);
  console.log(run);
  const { runs, agent } = count.get();
  if (runs + " " + agent !== last) console.log(last = runs + " " + agent);
  await new Promise((resolve) => setTimeout(resolve, 3));
}
`;

for (const journal of ["wal", "delete"] as const) {
  Deno.test(
    `readers and writers of the database (${journal} mode) go on through a restore`,
    async () => {
      using temp = new TempFolder();
      const base = `${temp.path}/store`;
      const { file, backup } = await makeStore(base, 8000);
      if (journal === "delete") sqlite(file, "PRAGMA journal_mode=delete");
      const script = `${temp.path}/writer.ts`;
      Deno.writeTextFileSync(script, NODE_WRITER);
      await using stack = new AsyncDisposableStack();
      const start = (program: string, ...args: string[]) => stack.use(new Live(program, [...args, file]));
      const deno = start(Deno.execPath(), "run", "--quiet", "--allow-all", script);
      // Programs of Python, too, where there is Python.
      const [reader, writer] = interpreter() === ""
        ? [deno, deno]
        : [READER, WRITER].map((code) => start(interpreter(), "-c", code)) as [Live, Live];
      const readers = new Set([reader, deno]);
      const writers = new Set([writer, deno]);
      using ours = new DatabaseWriter(layoutOf(base));
      ours.updateRun(newRun({ run_id: "before", agent_name: "later", start_time: "t" }));
      for (const live of readers) await live.until((lines) => lines.length > 1);
      for (const live of writers) await live.until((lines) => lines.length > 8);

      const { code, stderr } = await runScript("backup_telemetry_db", base, ["--restore", backup, "--yes"]);
      assert.deepEqual([code, stderr], [0, ""]);
      const last = new Map(writers.values().map((live) => [live, live.lines.length]));
      const restored = "6000 of the backup";
      for (const live of readers) await live.until((lines) => lines.includes(restored));
      for (const [live, count] of last) await live.until((lines) => lines.length > count + 10);
      ours.updateRun(newRun({ run_id: "after", agent_name: "later", start_time: "t" }));
      assert.equal(ours.getRun("before"), undefined);

      for (const live of readers.union(writers)) {
        assert.ok(!live.hasEnded, "a live program came to its end");
        assert.equal(await live.end(), "", "no error in any of them");
      }
      const isRun = (line: string) => /^(python|deno)-/.test(line);
      for (const { lines } of readers) {
        assert.deepEqual(
          lines.filter((line) => !isRun(line)),
          ["open", "8000 old", restored],
          "the old state or the new",
        );
      }
      ours.close();
      contentHash(file);
      using db = new DatabaseSync(file);
      const runs = new Set(db.prepare("SELECT run_id FROM agent_runs").all().map(({ run_id }) => run_id));
      assert.ok(runs.has("after"));
      for (const [{ lines }, count] of last) {
        assert.deepEqual(lines.slice(count).filter((line) => isRun(line) && !runs.has(line)), []);
      }
    },
  );
}

Deno.test(
  "a restore of a locked database is refused, or waits and loses no api_posted marker",
  async () => {
    using temp = new TempFolder();
    const makeLocked = async (name: string) => {
      const base = `${temp.path}/${name}`;
      const { file, backup } = await makeStore(base, 500);
      sqlite(file, "UPDATE agent_runs SET api_posted=1, api_posted_at='x'; PRAGMA journal_mode=delete");
      return { name, base, file, backup };
    };
    // Bounded here: a restore that waits without end would hang the tests.
    const restore = async ({ base, backup }: { base: string; backup: string }, ...flags: string[]) => {
      const args = [...scriptArgs("backup_telemetry_db", base), "--restore", backup, "--yes", "--json", ...flags];
      const process = command(Deno.execPath(), args).spawn();
      const timer = setTimeout(() => process.kill("SIGKILL"), 24_000);
      const { code, stdout, stderr } = await process.output();
      clearTimeout(timer);
      const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
      return { code, stdout: text(stdout), stderr: text(stderr) };
    };
    const writer = await makeLocked("held by a writer");
    const reader = await makeLocked("held by a reader");
    const short = await makeLocked("held for 6 s");
    const before = new Map([writer, reader].map(({ base }) => [base, treeOf(base)]));
    await using _writer = await holdDatabase(writer.file, "BEGIN EXCLUSIVE");
    await using _reader = await holdDatabase(reader.file, "BEGIN", "SELECT count(*) FROM agent_runs");
    await using released = await holdDatabase(short.file, "BEGIN EXCLUSIVE");
    delay(7000).then(() => released.kill());
    const replayed = restore(short, "--replay");
    const refused = await Promise.all([writer, reader].map(async (store) => ({ ...store, ...await restore(store) })));
    // It may have waited for the lock or not, but it must not go on without the marks.
    const { code, stdout, stderr } = await replayed;
    if (code !== 0) assert.equal(JSON.parse(stdout).error.code, "locked", stderr);
    const db = new DatabaseSync(short.file, { timeout: 10_000 });
    const { marked, runs } = db.prepare("SELECT sum(api_posted) AS marked, count(*) AS runs FROM agent_runs").get()!;
    db.close();
    assert.equal(marked, runs, `${marked} of ${runs} runs are marked: ${stderr}`);
    for (const { name, base, code, stdout, stderr } of refused) {
      assert.equal(code, 1, `${name}: ${stdout === "" ? "still waits after 24 s" : stderr}`);
      assert.equal(JSON.parse(stdout).error.code, "locked", name);
      assert.deepEqual(treeOf(base), before.get(base), name);
    }
  },
);

// ------------------------------------------------------------------------------------------------ disk full

testWith(
  ["mount"],
  "a restore on a full disk changes nothing, and succeeds once there is space",
  async (t) => {
    using temp = new TempFolder();
    const original = await makeStore(`${temp.path}/original`, 3000);
    const old = contentHash(original.file);
    const restored = contentHash(original.backup);
    using disk = new SmallDisk("8m");
    const base = `${disk.path}/store`;
    const file = `${base}/db/telemetry.sqlite`;
    const size = Deno.statSync(original.file).size;
    const failures: Record<string, number> = {};
    // From hardly any space to what just does not do: a copy of the backup, a safety copy, a WAL.
    const all = [0, 0.02, 0.3, 0.7, 0.8, 1, 1.3, 1.7, 1.75, 1.8, 1.9, 2.2, 2.5, 4];
    for (const share of rounds(all.filter((_, i) => i % 2 === 1), all)) {
      Deno.mkdirSync(`${base}/db`, { recursive: true });
      Deno.mkdirSync(`${base}/backups`);
      copyDatabase(original.file, file);
      const backup = `${base}/${BACKUP}`;
      Deno.copyFileSync(original.backup, backup);
      const before = treeOf(base);
      disk.fill(share * size);
      const { code, stdout, stderr } = await runScript("backup_telemetry_db", base, [
        "--restore",
        backup,
        "--yes",
        "--json",
      ]);
      if (code !== 0) {
        const [what, todo, ...more] = stderr.trimEnd().split("\n");
        const message = `${share}: ${stderr}`;
        assert.equal(code, 1, message);
        assert.deepEqual(more, [], message);
        assert.match(what!, /^backup_telemetry_db: /, message);
        assert.match(todo ?? "", /^ {2}-> .*(space|disk)/, message);
        const { code: kind } = JSON.parse(stdout).error;
        failures[kind] = (failures[kind] ?? 0) + 1;
        // A backup in WAL mode gets its sidecars as it is opened; they hold nothing.
        const left = Object.keys(treeOf(base)).filter((name) => !/^backups.*-(wal|shm)$/.test(name));
        assert.deepEqual(left, Object.keys(before), message);
        // SQLite needs space to open it.
        const copy = `${temp.path}/${share}.sqlite`;
        copyDatabase(file, copy);
        assert.equal(contentHash(copy), old, message);
      } else assert.ok(share > 1.5, `${share} did`);
      disk.free();
      if (code !== 0) await restoreBackup(layoutOf(base), backup);
      assert.equal(contentHash(file), restored);
      Deno.removeSync(base, { recursive: true });
    }
    await t.step(JSON.stringify(failures), () => {});
    assert.deepEqual(Object.keys(failures), ["disk_full"]);
    assert.ok(failures["disk_full"]! >= rounds(4, 8));
  },
);

// ------------------------------------------------------------------------------------------------ owner and rights

testWith(
  ["root"],
  "a database that root restores belongs to the owner of the base folder and keeps its mode",
  async () => {
    using temp = new TempFolder();
    for (const left of ["nothing", "no header", "a sound database"]) {
      const base = `${temp.path}/${left.replaceAll(" ", "_")}`;
      const { file, backup } = await makeStore(base, 20);
      const chown = await run("chown", ["-R", `${NOBODY}:${NOBODY}`, base]);
      assert.equal(chown.code, 0, chown.stderr);
      Deno.chmodSync(backup, 0o600);
      Deno.chmodSync(file, 0o600);
      if (left === "nothing") Deno.removeSync(file);
      if (left === "no header") {
        const bytes = Deno.readFileSync(file);
        Deno.writeFileSync(file, bytes.fill(0, 0, 100));
      }
      const { code, stderr } = await runScript("backup_telemetry_db", base, ["--restore", backup, "--yes"]);
      assert.deepEqual([code, stderr], [0, ""]);
      for (const name of namesIn(`${base}/db`)) {
        const { uid, mode } = Deno.statSync(`${base}/db/${name}`);
        assert.equal(uid, NOBODY, `${left}: ${name} belongs to the owner of the base`);
        assert.equal((mode! & 0o777).toString(8), "600", `${left}: ${name}`);
      }
    }
  },
);
