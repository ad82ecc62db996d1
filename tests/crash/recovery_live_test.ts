/** Recoveries that meet live programs, each other, a full disk and folders that vanish. */
import assert from "node:assert/strict";
import { TelemetryError } from "../../lib/errors.ts";
import { checkHealth } from "../../lib/recovery/health.ts";
import { layoutOf } from "../../lib/layout.ts";
import { logFiles, scan } from "../../lib/log/read.ts";
import { recoverDatabase } from "../../lib/recovery/recover.ts";
import {
  interpreter,
  Live,
  ROOT,
  ROOT_URL,
  rounds,
  run,
  runScript,
  slashes,
  SmallDisk,
  TempFolder,
  testWith,
} from "../fixtures/mod.ts";
import {
  agentProgram,
  contentOf,
  copyDatabase,
  copyStore,
  delay,
  FAST_FOLDER,
  integrityOf,
  isThere,
  makeStore,
  missingFrom,
  namesIn,
  rowsOf,
  type Store,
} from "./recovery_fixtures.ts";

const STATES = ["damaged inside of pages", "without a header", "sound"] as const;
type State = typeof STATES[number];

/** A store whose database is in some state. */
function makeIn(state: State, base: string, runs: number): Store {
  const store = makeStore(base, { seed: 11, runs, pageSize: 4096, wal: false });
  if (state === "sound") return store;
  const bytes = Deno.readFileSync(store.database);
  if (state === "without a header") bytes.fill(0, 0, 100);
  else {
    const pages = [...store.runPages].sort((a, b) => a - b);
    for (const page of [pages[2]!, pages[4]!]) bytes.fill(0, (page - 1) * 4096 + 200, page * 4096);
  }
  Deno.writeFileSync(store.database, bytes);
  return store;
}

const force = (state: State) => state === "sound" ? ["--force"] : [];

// ------------------------------------------------------------------------------------------------ live agents

/** As the Python client does: the log first, then the database; and what it posts, it marks. */
const WRITER = `
import fcntl, json, os, sqlite3, sys, time, datetime
base = sys.argv[1]
n = 0
db = None
while True:
    run = "20251210T000000Z-python-%08x" % n
    n += 1
    path = base + "/raw/events_" + datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%d") + ".ndjson"
    with open(path, "a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        log.write(json.dumps({"run_id": run, "agent_name": "python", "start_time": "2025-12-10T00:00:00+00:00",
                              "status": "success", "record_type": "run"}) + "\\n")
        log.flush()
        os.fsync(log.fileno())
    print("run " + run, flush=True)
    try:
        # As its DatabaseWriter does: a connection for each write.
        db = sqlite3.connect("file:" + base + "/db/telemetry.sqlite?mode=rw", uri=True, timeout=5)
        with db:
            db.execute("INSERT INTO agent_runs (run_id, agent_name, start_time, status) VALUES (?, 'python', 't', 'success')", [run])
        print("row " + run, flush=True)
        with db:
            db.execute("UPDATE agent_runs SET api_posted=1, api_posted_at='live' WHERE run_id=?", [run])
        print("mark " + run, flush=True)
    except sqlite3.Error as error:
        print("error %s" % error, flush=True)
    finally:
        if db: db.close()
    time.sleep(0.003)
`;

async function idsInLog(base: string): Promise<Set<string>> {
  const all = await Array.fromAsync(scan(logFiles(layoutOf(base).raw)));
  return new Set(all.flatMap((found) => "record" in found ? [found.record.run_id] : []));
}

const idsIn = (database: string, where = "1") =>
  new Set(rowsOf(database, `SELECT run_id FROM agent_runs WHERE ${where}`).map(({ run_id }) => run_id as string));

/** One round of live agents; how many marks that a recovery has put a database over are not in it. */
async function liveRound(temp: TempFolder, state: State, name: string): Promise<{ marks: number; lost: string[] }> {
  const base = `${temp.path}/${name}`;
  const store = makeIn(state, base, 1200);
  await using agent = new Live(Deno.execPath(), ["eval", "--quiet", "--no-check", agentProgram(5), base]);
  await using writer = new Live(interpreter(), ["-c", WRITER, base]);
  await Promise.all([agent.untilCount(10), writer.untilCount(10)]);
  const { code, stderr } = await runScript("recover_database", base, force(state));
  assert.equal(code, 0, `${state}: ${stderr}`);
  await Promise.all([agent.untilCount(agent.lines.length + 10), writer.untilCount(writer.lines.length + 30)]);
  assert.equal(await agent.end(), "", state);
  assert.equal(await writer.end(), "", state);

  assert.equal(integrityOf(store.database), "ok", state);
  const acknowledged = [...agent.linesWith("run"), ...writer.linesWith("run"), ...writer.linesWith("row")];
  const [inLog, inDatabase] = [await idsInLog(base), idsIn(store.database)];
  assert.deepEqual(acknowledged.filter((id) => !inLog.has(id) && !inDatabase.has(id)), [], `${state}: nowhere`);
  const marked = idsIn(store.database, "api_posted=1");
  const marks = writer.linesWith("mark");
  const lost = marks.filter((id) => !marked.has(id));
  // What came after the recovery went into the new database.
  assert.ok(marks.slice(-3).every((id) => marked.has(id)), `${state}: the writer is not in the new database`);

  const again = await runScript("recover_database", base, ["--force"]);
  assert.deepEqual([again.code, again.stderr], [0, ""], state);
  const after = idsIn(store.database);
  assert.deepEqual(acknowledged.filter((id) => !after.has(id)), [], `${state}: forced once more`);
  assert.deepEqual(missingFrom(store.database, store), [], state);
  const still = idsIn(store.database, "api_posted=1");
  assert.deepEqual([...marked].filter((id) => !still.has(id)), [], state);
  if (state === "sound") assert.deepEqual([...store.marked].filter((id) => !still.has(id)), [], state);
  return { marks: marks.length, lost };
}

for (const state of STATES) {
  testWith(["python"], `live agents write through a recovery of a database ${state}`, async (t) => {
    for (let round = 0; round < rounds(1, 4); round++) {
      using temp = new TempFolder();
      const { marks, lost } = await liveRound(temp, state, "store");
      await t.step(`${lost.length} of ${marks} marks of live agents are lost`, () => {
        if (state === "sound") assert.deepEqual(lost, []);
      });
    }
  });
}

// ------------------------------------------------------------------------------------------------ two at once

/** What a recovery that nothing disturbs makes of a store. */
async function undisturbed(original: string): Promise<string> {
  const base = `${original}_undisturbed`;
  copyStore(original, base);
  await recoverDatabase(layoutOf(base));
  return contentOf(layoutOf(base).database);
}

const listCopies = (db: string) =>
  namesIn(db).filter((name) => /^telemetry\.(?:corrupted\.|before_rebuild_)\d{8}_\d{6}\.sqlite$/.test(name));
const strangeIn = (db: string) =>
  namesIn(db).filter((name) =>
    !/^telemetry(\.(?:corrupted\.|before_rebuild_)\d{8}_\d{6})?\.sqlite(-wal|-shm)?$/.test(name)
  );

Deno.test("two concurrent recoveries succeed and leave nothing behind", async (t) => {
  using temp = new TempFolder();
  const codes: string[] = [];
  for (const state of STATES) {
    const original = `${temp.path}/${state.replaceAll(" ", "_")}`;
    makeIn(state, original, 600);
    const expected = await undisturbed(original);
    for (const lagMs of rounds([state === "sound" ? 0 : 60], [0, 30, 60])) {
      const base = `${original}_${lagMs}`;
      copyStore(original, base);
      const both = await Promise.all([0, lagMs].map(async (ms) => {
        await delay(ms);
        return await runScript("recover_database", base, ["--json", ...force(state)]);
      }));
      for (const { code, stdout, stderr } of both) {
        if (code !== 0) assert.equal(JSON.parse(stdout).error.code, "locked", stderr);
      }
      assert.ok(both.some(({ code }) => code === 0), both[0]!.stderr);
      codes.push(both.map(({ code, stdout }) => code !== 0 ? "refused" : `${JSON.parse(stdout).recovered}`).join("+"));
      const there = layoutOf(base);
      assert.equal(contentOf(there.database), expected, `${state}, ${lagMs} ms`);
      assert.equal(integrityOf(there.database), "ok");
      assert.deepEqual(strangeIn(there.db), []);
      assert.ok(listCopies(there.db).length <= 2, listCopies(there.db).join());
    }
  }
  await t.step(codes.join(", "), () => {});
});

Deno.test({
  name: "a recovery that waits for another one does not empty the published file",
  fn: async () => {
    using temp = new TempFolder(FAST_FOLDER);
    const base = `${temp.path}/store`;
    const store = makeIn("without a header", base, 60);
    // What a busy machine may do by chance: pause between two lines.
    const program = `
      import { layoutOf } from ${JSON.stringify(`${ROOT_URL}lib/layout.ts`)};
      import { recoverDatabase } from ${JSON.stringify(`${ROOT_URL}lib/recovery/recover.ts`)};
      const rename = Deno.renameSync;
      Deno.renameSync = (from, to) => {
        if (/[\\\\/]telemetry\\.sqlite$/.test(to)) {
          console.log("renames");
          Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1500);
        }
        rename(from, to);
      };
      await recoverDatabase(layoutOf(Deno.args[0]));
      console.log("done");`;
    await using first = new Live(Deno.execPath(), ["eval", "--quiet", "--no-check", program, base]);
    await first.untilCount(1);
    const second = await run(Deno.execPath(), [
      "run",
      "--quiet",
      "--no-check",
      "--allow-all",
      `${ROOT}scripts/recover_database.ts`,
      "--base",
      base,
      "--force",
    ]);
    await first.untilCount(2);
    assert.deepEqual(missingFrom(store.database, store), []);
    assert.equal(second.code, 0, second.stderr);
  },
});

Deno.test("a backup during a recovery is intact or reports the damage", async () => {
  using temp = new TempFolder();
  for (const state of STATES) {
    const base = `${temp.path}/${state.replaceAll(" ", "_")}`;
    const store = makeIn(state, base, 1200);
    let isDone = false;
    const backups = (async () => {
      const all = [];
      do all.push(await runScript("backup_database", base, ["--json"])); while (!isDone);
      return all;
    })();
    let { code, stderr } = await runScript("recover_database", base, force(state));
    isDone = true;
    if (code !== 0 && Deno.build.os === "windows") {
      // There, a database that a backup has open cannot be replaced.
      assert.match(stderr, /cannot replace .*\n {2}-> stop the agents/);
      assert.deepEqual(strangeIn(layoutOf(base).db), [], state);
      await backups;
      ({ code, stderr } = await runScript("recover_database", base, force(state)));
    }
    assert.equal(code, 0, `${state}: ${stderr}`);
    for (const { code, stdout, stderr } of await backups) {
      if (code === 0) {
        const { path } = JSON.parse(stdout);
        assert.equal(integrityOf(path), "ok", state);
        if (state !== "sound") assert.deepEqual(missingFrom(path, store), [], state);
      } else {
        assert.notEqual(state, "sound", stderr);
        assert.match(JSON.parse(stdout).error.code, /^(damaged|not_a_database)$/, stderr);
      }
    }
    const last = await runScript("backup_database", base, ["--json"]);
    assert.equal(last.code, 0, last.stderr);
    assert.deepEqual(missingFrom(JSON.parse(last.stdout).path, store), [], state);
  }
});

// ------------------------------------------------------------------------------------------------ disk full

testWith(["mount"], "a recovery on a full disk changes nothing, and succeeds once there is space", async (t) => {
  using temp = new TempFolder();
  using disk = new SmallDisk("8m");
  const failures: Record<string, number> = {};
  const problems: string[] = [];
  for (const state of STATES) {
    const original = `${temp.path}/${state.replaceAll(" ", "_")}`;
    // One log is large enough for a thread of its own.
    makeIn(state, original, state === "sound" ? 720 : 400);
    const size = Deno.statSync(layoutOf(original).database).size;
    const expected = await undisturbed(original);
    const before = state === "sound" ? contentOf(layoutOf(original).database) : undefined;
    for (const share of rounds([0.5, 1.4], [0, 0.5, 1.4, 2.2, 3.5])) {
      const base = `${disk.path}/store`;
      copyStore(original, base);
      const { database, db, reports } = layoutOf(base);
      const bytes = Deno.readFileSync(database);
      disk.fill(share * size);
      const { code, stdout, stderr } = await runScript("recover_database", base, ["--json", ...force(state)]);
      const expect = (isSo: boolean, problem: string) => {
        if (!isSo) problems.push(`${state}, ${share}: ${problem}`);
      };
      if (code !== 0) {
        const { code: kind } = JSON.parse(stdout).error;
        failures[kind] = (failures[kind] ?? 0) + 1;
        expect(kind === "disk_full", `${kind}: ${stderr}`);
        expect(!/defect of the toolkit/.test(stderr), stderr);
        const left = namesIn(db).filter((name) => !/^telemetry\.sqlite(-wal|-shm)?$/.test(name));
        if (isThere(reports)) left.push(...namesIn(reports));
        expect(left.length === 0, `left: ${left}`);
        if (before === undefined) {
          expect(Deno.readFileSync(database).every((byte, i) => byte === bytes[i]), "the damaged file has changed");
        } else {
          // SQLite needs space to open it.
          copyDatabase(database, `${temp.path}/copy.sqlite`);
          expect(contentOf(`${temp.path}/copy.sqlite`) === before, "it has changed");
        }
      } else expect(share > 1, "it did");
      disk.free();
      if (code !== 0) await recoverDatabase(layoutOf(base));
      expect(contentOf(database) === expected, "with space, it is not as if there always had been some");
      Deno.removeSync(base, { recursive: true });
    }
  }
  await t.step(JSON.stringify(failures), () => {});
  assert.deepEqual(problems, []);
  assert.ok(failures["disk_full"]! >= rounds(3, 6));
});

// ------------------------------------------------------------------------------------------------ folders

testWith(["openRemoval"], "a recovery succeeds with a warning when reports/ is deleted meanwhile", async () => {
  using temp = new TempFolder(FAST_FOLDER);
  const base = `${temp.path}/store`;
  const store = makeIn("damaged inside of pages", base, 100);
  const { reports } = layoutOf(base);
  const { report, warnings } = (await recoverDatabase(layoutOf(base), {
    onProgress: () => isThere(reports) && Deno.removeSync(reports, { recursive: true }),
  }))!;
  assert.deepEqual([report, warnings.length], [null, 1]);
  assert.match(warnings[0]!, /report could not be written/);
  assert.deepEqual(missingFrom(store.database, store), []);
});

Deno.test("a recovery succeeds or gives a hint when reports/ is a file", async () => {
  using temp = new TempFolder(FAST_FOLDER);
  const base = `${temp.path}/store`;
  makeIn("damaged inside of pages", base, 100);
  const { reports, db } = layoutOf(base);
  Deno.writeTextFileSync(reports, "");
  const error = await recoverDatabase(layoutOf(base)).then(() => undefined, (error) => error);
  if (error === undefined) return;
  assert.ok(error instanceof TelemetryError && error.code === "in_the_way" && error.hint !== undefined, String(error));
  assert.deepEqual([strangeIn(db), listCopies(db)], [[], []]);
});

Deno.test("a recovery names the logs that were deleted meanwhile and loses no run of the database", async () => {
  using temp = new TempFolder(FAST_FOLDER);
  const base = `${temp.path}/store`;
  const store = makeIn("sound", base, 100);
  const layout = layoutOf(base);
  const { rejected, rejected_file } = (await recoverDatabase(layout, {
    onProgress: () => isThere(layout.raw) && Deno.removeSync(layout.raw, { recursive: true }),
  }))!;
  // Of three logs, the first one had been read.
  assert.deepEqual(rejected, { "cannot be read": 2 });
  const told = slashes(Deno.readTextFileSync(rejected_file!));
  for (const day of ["20251211", "20251212"]) {
    assert.ok(told.includes(slashes(`${layout.raw}/events_${day}.ndjson`)), day);
  }
  const there = idsIn(store.database);
  assert.deepEqual([...store.stored.keys()].filter((id) => !there.has(id)), []);
});

Deno.test({
  name: "a recovery does not bring back what was deleted since a killed one",
  fn: async () => {
    using temp = new TempFolder(FAST_FOLDER);
    const base = `${temp.path}/store`;
    const store = makeIn("damaged inside of pages", base, 100);
    const layout = layoutOf(base);
    await recoverDatabase(layout);
    // Killed after the new database was in place: this stays, and the script says that all is well.
    Deno.copyFileSync(layout.database, layout.recovering);
    assert.ok((await checkHealth(layout)).healthy);
    const only = [...store.stored.keys()].filter((id) => !store.logged.has(id));
    const { database } = layout;
    const there = rowsOf(database, "SELECT run_id FROM agent_runs").map(({ run_id }) => run_id as string);
    const gone = only.find((id) => there.includes(id))!;
    rowsOf(database, `DELETE FROM agent_runs WHERE run_id='${gone}'`);
    await recoverDatabase(layout);
    assert.ok(!idsIn(database).has(gone), "it is back");
  },
});
