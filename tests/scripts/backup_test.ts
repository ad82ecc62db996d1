/** The two backup scripts: what they take, keep, list and refuse, as processes on stores of every kind. */
import assert from "node:assert/strict";
import { sep } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { listBackups, takeBackup } from "../../lib/backup/backup.ts";
import { applyRetention, removeBackups } from "../../lib/backup/retention.ts";
import { fileNameOf, layoutOf, pathIn } from "../../lib/layout.ts";
import { schemaSql } from "../../lib/schema.ts";
import { wholeNumber } from "../../lib/cli/command.ts";
import {
  command,
  holdDatabase,
  holdOpen,
  interpreter,
  killAfter,
  lacks,
  makeOldDatabase,
  NOBODY,
  type OldKind,
  type Output,
  python,
  rounds,
  run,
  runScript,
  scriptArgs,
  SmallDisk,
  TempFolder,
  testWith,
  treeOf,
} from "../fixtures/mod.ts";

const SCRIPTS = ["backup_database", "backup_telemetry_db"] as const;
type Script = typeof SCRIPTS[number];
const KINDS = ["daily_backup", "full_backup"] as const;
const DAILY = /^telemetry\.backup\.\d{8}(_\d{6})?\.sqlite$/;
const FULL = /^telemetry_backup_\d{8}_\d{6}\.sqlite$/;
const HOUR = 3_600_000;
const DAY = 24 * HOUR;
/** Scripts and test agree on the local time. */
const TIME_ZONE: Record<string, string> = Deno.env.has("TZ") ? { TZ: Deno.env.get("TZ")! } : {};

/** A store with a database of v3 in it, and the folder for backups. */
function newStore(temp: TempFolder, rows = 3, name = "store"): { base: string; file: string; backups: string } {
  const base = `${temp.path}/${name}`;
  const store = { base, file: `${base}/db/telemetry.sqlite`, backups: `${base}/backups` };
  for (const folder of ["db", "raw", "backups"]) Deno.mkdirSync(`${base}/${folder}`, { recursive: true });
  makeDatabase(store.file, rows);
  return store;
}

/** A v3 database with numbered runs. */
function makeDatabase(file: string, rows: number, prefix = "seed"): void {
  const db = new DatabaseSync(file);
  try {
    db.exec(schemaSql());
    db.exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${rows})
      INSERT INTO agent_runs (run_id, agent_name, start_time, status, output_summary)
      SELECT '${prefix}-' || i, 'seed', '2025-12-10T00:00:00+00:00', 'success', hex(randomblob(200)) FROM n
      WHERE ${rows} > 0`);
  } finally {
    db.close();
  }
}

/** Runs a backup that is to succeed without a word on stderr; what `--json` says. */
async function backup(script: Script, base: string, ...args: string[]): Promise<Record<string, unknown>> {
  const { code, stdout, stderr } = await runScript(script, base, ["--json", ...args], { env: TIME_ZONE });
  assert.deepEqual([code, stderr], [0, ""], stdout);
  return JSON.parse(stdout);
}

async function sqlite3(file: string, sql: string): Promise<string> {
  const { code, stdout, stderr } = await run("sqlite3", [file, sql]);
  assert.deepEqual([code, stderr], [0, ""]);
  return stdout.trim();
}

/** One value of a database, without the code that is tested. */
function valueIn(file: string, sql: string): unknown {
  const db = new DatabaseSync(file);
  try {
    return Object.values(db.prepare(sql).get()!)[0];
  } finally {
    db.close();
  }
}

/** What a page of a table begins with that has rows (SQLite's "Database File Format", "B-tree Pages"). */
const TABLE_LEAF = 13;

/** The flags by which a script keeps one, or those of a day. */
const ruleOf = (script: Script) => script === "backup_database" ? ["--keep", "1"] : ["--keep-days", "1"];

/** Waits until the names of files say a later time. */
const nextSecond = () => new Promise((resolve) => setTimeout(resolve, 1000 - Date.now() % 1000));

const names = (folder: string) => [...Deno.readDirSync(folder)].map(({ name }) => name).sort();

/** `YYYYMMDD_HHMMSS` of a moment, in local time. */
function stamp(at: number): string {
  const date = new Date(at - new Date(at).getTimezoneOffset() * 60_000);
  return date.toISOString().slice(0, 19).replace(/[-:]/g, "").replace("T", "_");
}

const dailyAt = (at: number) => `telemetry.backup.${stamp(at)}.sqlite`;
const dayOf = (at: number) => `telemetry.backup.${stamp(at).slice(0, 8)}.sqlite`;
const fullAt = (at: number) => `telemetry_backup_${stamp(at)}.sqlite`;

/** Copies of one file under many names; their own times say the opposite of their names. */
function put(folder: string, file: string, files: string[]): void {
  for (const [i, name] of files.toSorted().entries()) {
    Deno.copyFileSync(file, `${folder}/${name}`);
    Deno.utimeSync(`${folder}/${name}`, new Date(), new Date(Date.UTC(2031, 0, 1) - i * DAY));
  }
}

/** A failure as people see it: nothing on stdout, one line that says what, one that says what to do. */
function assertFailed({ code, stdout, stderr }: Output, script: string, what: RegExp, hint: RegExp): void {
  const lines = stderr.trimEnd().split("\n");
  assert.deepEqual([code, stdout, lines.length], [1, "", 2], stderr);
  assert.ok(lines[0]!.startsWith(`${script}: `), stderr);
  assert.match(lines[0]!, what);
  assert.match(lines[1]!, /^ {2}-> /);
  assert.match(lines[1]!, hint);
}

// Taking

const WRITER = `
import json, os, sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
db.execute("PRAGMA synchronous=NORMAL")
n = 0
longest = 0
while n % 50 or not os.path.exists(sys.argv[2]):
    start = time.perf_counter()
    db.execute("INSERT INTO agent_runs (run_id, agent_name, start_time, duration_ms) VALUES (?, 'writer', '', ?)", ("w-%d" % n, n))
    longest = max(longest, time.perf_counter() - start)
    n += 1
print(json.dumps({"rows": n, "longest_ms": longest * 1000}))
`;

testWith(["python", "sqlite3"], "backups are consistent beside a writer that commits without pause", async (t) => {
  using temp = new TempFolder();
  const { base, file } = newStore(temp, 5000);
  {
    // So large that it is copied in several steps where somebody watches.
    using db = new DatabaseSync(file);
    db.exec("PRAGMA synchronous=OFF; CREATE TABLE padding AS SELECT zeroblob(15000000)");
  }
  const stop = `${temp.path}/stop`;
  const writer = command(interpreter(), ["-c", WRITER, file, stop]).spawn();
  const said = writer.output();
  const written = () => Number(valueIn(file, "SELECT count(*) FROM agent_runs WHERE agent_name='writer'"));
  try {
    let last = 0;
    const count = rounds(4, 10);
    for (let i = 0; i < count; i++) {
      const before = written();
      // On a terminal the copy goes in steps, between which the writer commits.
      const path = i >= count - 2 && !lacks("terminal")
        ? await backupOnTerminal(SCRIPTS[i % 2]!, base)
        : String((await backup(SCRIPTS[i % 2]!, base))["path"]);
      const after = written();
      const [check, prefix, seeds] = (await sqlite3(
        path,
        "PRAGMA integrity_check;" +
          "SELECT count(*), ifnull(min(duration_ms), 0), ifnull(max(duration_ms), -1) + 1 FROM agent_runs" +
          " WHERE agent_name='writer'; SELECT count(*) FROM agent_runs WHERE agent_name='seed'",
      )).split("\n");
      assert.equal(check, "ok");
      assert.equal(seeds, "5000");
      const [rows, first, end] = prefix!.split("|").map(Number);
      assert.deepEqual([first, end], [0, rows], "a gap");
      assert.ok(
        before <= rows! && rows! <= after,
        `${before} <= ${rows} <= ${after}: what was committed before is in it`,
      );
      assert.ok(rows! >= last);
      if (i > 0) assert.ok(rows! > last, "the writer was held up");
      last = rows!;
      Deno.removeSync(path);
    }
  } finally {
    Deno.writeTextFileSync(stop, "");
    await said;
  }
  const { rows, longest_ms } = JSON.parse(new TextDecoder().decode((await said).stdout));
  assert.ok(longest_ms < 2000, `a commit waited ${longest_ms} ms`);
  assert.equal(written(), rows);
  console.log(`the writer's longest wait for one of ${rows} commits: ${longest_ms.toFixed(1)} ms`);
  await t.step(`longest wait for a commit: ${longest_ms.toFixed(1)} ms`, () => {});
});

/** Takes a backup that believes it is watched, and that has to end beside a writer; its path. */
async function backupOnTerminal(script: Script, base: string): Promise<string> {
  const line = ["timeout", "8", Deno.execPath(), ...scriptArgs(script, base)].join(" ");
  const { code, stdout } = await run("script", ["-qec", line, "/dev/null"], { env: TIME_ZONE });
  assert.equal(code, 0, `it did not end: ${stdout}`);
  return /backup (\/\S+\.sqlite): /.exec(stdout)![1]!;
}

for (const script of SCRIPTS) {
  testWith(["strace"], `${script}: the file is synced, published, its folder synced, and then reported`, async () => {
    using temp = new TempFolder();
    const { base, backups } = newStore(temp, 2000);
    const log = `${temp.path}/strace`;
    const calls =
      "trace=fsync,fdatasync,link,linkat,rename,renameat,renameat2,unlink,unlinkat,write,pwrite64,ftruncate";
    const { code, stderr } = await run("strace", [
      ...["-f", "-y", "-s", "300", "-e", calls, "-o", log, Deno.execPath()],
      ...scriptArgs(script, base),
    ]);
    assert.deepEqual([code, stderr], [0, ""]);
    const [name] = names(backups);
    const good = `${backups}/${name}`;
    const traced = Deno.readTextFileSync(log).split("\n").map((line) => line.replace(/^\d+ +/, ""));
    const firstOf = (what: string, isIt: (line: string) => boolean, from = 0) => {
      const at = traced.findIndex((line, i) => i >= from && isIt(line));
      assert.ok(at >= 0, `no ${what}:\n${traced.filter((line) => line.includes(backups)).join("\n")}`);
      return at;
    };
    const named = firstOf("naming", (line) => /^(link|rename)/.test(line) && line.includes(`"${good}"`));
    const partial = /"([^"]*\.partial)"/.exec(traced[named]!)![1]!;
    const onPartial = (line: string) => line.includes(`<${partial}>`);
    const writes = traced.slice(0, named).findLastIndex((line) => /^(p?write|ftruncate)/.test(line) && onPartial(line));
    assert.ok(writes >= 0, "the copy is written");
    const synced = firstOf("fsync of the partial", (line) => /^f(data)?sync/.test(line) && onPartial(line), writes);
    const folder = firstOf(
      "fsync of the folder",
      (line) => line.startsWith("fsync(") && line.includes(`<${backups}>`),
      named,
    );
    const report = firstOf("report", (line) => line.startsWith("write(1<") && line.includes(`"backup ${good}: `));
    assert.ok(synced < named && named < folder && folder < report, JSON.stringify({ synced, named, folder, report }));
    assert.ok(traced.filter((line) => /^f(data)?sync.*= -1/.test(line)).length === 0);
    assert.equal(traced.findIndex((line) => /^(link|rename).*= -1/.test(line)), -1);
  });
}

testWith(["mount"], "a full disk fails the backup, changes nothing, and the next backup succeeds", async () => {
  using temp = new TempFolder();
  for (const script of SCRIPTS) {
    using disk = new SmallDisk("12m");
    const original = `${temp.path}/${script}.sqlite`;
    makeDatabase(original, 4000);
    const size = Deno.statSync(original).size;
    const base = `${disk.path}/store`;
    for (const folder of ["db", "backups"]) Deno.mkdirSync(`${base}/${folder}`, { recursive: true });
    Deno.copyFileSync(original, `${base}/db/telemetry.sqlite`);
    put(`${base}/backups`, original, [
      script === "backup_database" ? "telemetry.backup.20200101.sqlite" : "telemetry_backup_20200101_000000.sqlite",
    ]);
    const before = treeOf(base);
    const codes: number[] = [];
    const page = 4096;
    const levels = [
      0,
      page,
      8 * page,
      12 * page,
      size / 2,
      size - page,
      size,
      size + page,
      size + 8 * page,
      size + 9 * page,
    ];
    // Both take it in the same way.
    const tried = rounds(levels.filter((_, i) => i % SCRIPTS.length === SCRIPTS.indexOf(script)), levels);
    for (const free of tried) {
      disk.fill(free);
      const { code, stdout, stderr } = await runScript(script, base, ["--json", ...ruleOf(script)]);
      disk.free();
      codes.push(code);
      if (code === 0) {
        // Enough for the last levels: put back what was there.
        assert.ok(free >= size, `with ${free} free`);
        Deno.removeSync(JSON.parse(stdout).path);
        put(`${base}/backups`, original, [Object.keys(before).find((path) => path.startsWith("backups/"))!.slice(8)]);
        assert.deepEqual(treeOf(base), before);
        continue;
      }
      const { error } = JSON.parse(stdout);
      assert.equal(error.code, "disk_full", `with ${free} of ${size} free: ${stderr}`);
      assert.match(error.hint, /free space/);
      assert.equal(stderr.trimEnd().split("\n").length, 2, stderr);
      removeEmptySidecars(`${base}/db/telemetry.sqlite`);
      assert.deepEqual(treeOf(base), before, `with ${free} free`);
    }
    assert.ok(codes.filter((code) => code === 1).length * 2 >= tried.length, String(codes));
    const { path } = await backup(script, base, ...ruleOf(script));
    assert.equal(valueIn(String(path), "PRAGMA integrity_check"), "ok");
    assert.equal(names(`${base}/backups`).length, 1);
  }
});

/**
 * SQLite cannot take away the sidecars that it could not make whole, where not a page is free: there is nothing in them.
 */
function removeEmptySidecars(file: string): void {
  for (const [end, most] of [["-wal", 0], ["-shm", 32767]] as const) {
    try {
      if (Deno.statSync(file + end).size <= most) Deno.removeSync(file + end);
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
  }
}

// Sources that are no good

const BAD: Record<string, { make: (file: string) => void; what: RegExp; hint: RegExp }> = {
  "damaged in its pages": {
    make: (file) => {
      using handle = Deno.openSync(file, { read: true, write: true });
      const pages = handle.statSync().size / 4096;
      for (let page = 4; page < pages; page += 3) {
        handle.seekSync(page * 4096, Deno.SeekMode.Start);
        handle.writeSync(new Uint8Array(4096).fill(0xa5));
      }
    },
    what: /is damaged/,
    hint: /recover_database/,
  },
  "damaged in one page that counting does not read": {
    make: (file) => {
      using handle = Deno.openSync(file, { read: true, write: true });
      const page = new Uint8Array(4096);
      for (let at = 100 * 4096;; at += 4096) {
        handle.seekSync(at, Deno.SeekMode.Start);
        assert.equal(handle.readSync(page), 4096);
        // A leaf of a table: https://www.sqlite.org/fileformat2.html#b_tree_pages
        if (page[0] !== 0x0d || !new TextDecoder().decode(page).includes("success")) continue;
        handle.seekSync(at, Deno.SeekMode.Start);
        handle.writeSync(new Uint8Array(4096).fill(0xa5));
        return;
      }
    },
    what: /is damaged/,
    hint: /recover_database/,
  },
  "cut": { make: (file) => Deno.truncateSync(file, 40 * 4096 + 100), what: /is damaged/, hint: /recover_database/ },
  "of a destroyed header": {
    make: (file) => {
      using handle = Deno.openSync(file, { read: true, write: true });
      handle.writeSync(new Uint8Array(100).fill(0xa5));
    },
    what: /is not a SQLite database/,
    hint: /recover_database/,
  },
  "of 0 bytes": { make: (file) => Deno.truncateSync(file, 0), what: /is empty/, hint: /recover_database/ },
  "without tables": {
    make: (file) => {
      Deno.removeSync(file);
      const db = new DatabaseSync(file);
      db.exec("PRAGMA journal_mode=WAL; CREATE TABLE x (y); DROP TABLE x");
      db.close();
    },
    what: /is empty/,
    hint: /recover_database/,
  },
  "missing": {
    make: (file) => Deno.removeSync(file),
    what: /does not exist/,
    hint: /recover_database.*setup_database/,
  },
  "of another application": {
    make: (file) => {
      Deno.removeSync(file);
      const db = new DatabaseSync(file);
      db.exec("CREATE TABLE songs (title TEXT); INSERT INTO songs VALUES ('x')");
      db.close();
    },
    what: /is not a telemetry database/,
    hint: /another application/,
  },
  "a text file": {
    make: (file) => Deno.writeTextFileSync(file, "dear diary\n".repeat(1000)),
    what: /is not a SQLite database/,
    hint: /recover_database/,
  },
  "a folder": {
    make: (file) => {
      Deno.removeSync(file);
      Deno.mkdirSync(file);
    },
    what: /telemetry\.sqlite is a folder/,
    hint: /move that folder away/,
  },
};

Deno.test("a bad source creates no backup and deletes none", async (t) => {
  using temp = new TempFolder();
  const good = `${temp.path}/good.sqlite`;
  makeDatabase(good, 1000);
  for (const [i, [bad, { make, what, hint }]] of Object.entries(BAD).entries()) {
    // Both look at the source in the same way.
    const script = SCRIPTS[i % 2]!;
    await t.step(`${script}: ${bad}`, async () => {
      const { base, file, backups } = newStore(temp, 1000, bad.replaceAll(" ", "_"));
      put(backups, good, ["telemetry.backup.20200101.sqlite", "telemetry.backup.20210101.sqlite"]);
      put(backups, good, ["telemetry_backup_20200101_000000.sqlite", "telemetry_backup_20210101_000000.sqlite"]);
      make(file);
      const before = treeOf(base);
      const failed = await runScript(script, base, ruleOf(script));
      assert.deepEqual(treeOf(base), before);
      assertFailed(failed, script, what, hint);
      assert.ok(
        failed.stderr.includes(file) && !failed.stderr.includes(".partial"),
        `names the source: ${failed.stderr}`,
      );
    });
  }
});

Deno.test("--dry-run of a bad source fails like the real run", async () => {
  using temp = new TempFolder();
  for (const bad of ["damaged in its pages", "cut", "of 0 bytes", "missing", "of another application", "a text file"]) {
    const { base, file, backups } = newStore(temp, 1000, bad.replaceAll(" ", "_"));
    put(backups, file, ["telemetry.backup.20200101.sqlite", "telemetry_backup_20200101_000000.sqlite"]);
    BAD[bad]!.make(file);
    const before = treeOf(base);
    const script = SCRIPTS[bad.length % 2]!;
    const { code, stdout } = await runScript(script, base, [...ruleOf(script), "--dry-run"]);
    assert.deepEqual([code, stdout], [1, ""], bad);
    assert.deepEqual(treeOf(base), before, bad);
  }
});

Deno.test("a locked source is reported as locked, and no backup is deleted", async () => {
  using temp = new TempFolder();
  const { base, file, backups } = newStore(temp, 3);
  assert.equal(valueIn(file, "PRAGMA journal_mode=DELETE"), "delete");
  put(backups, file, ["telemetry.backup.20200101.sqlite", "telemetry_backup_20200101_000000.sqlite"]);
  const before = treeOf(backups);
  await using _holder = await holdDatabase(file, "BEGIN EXCLUSIVE");
  const tries = [
    runScript("backup_database", base, ["--keep", "1", "--json"]),
    runScript("backup_telemetry_db", base, ["--keep-days", "1", "--json"]),
  ];
  for (const { code, stdout, stderr } of await Promise.all(tries)) {
    assert.equal(code, 1);
    const { error } = JSON.parse(stdout);
    assert.equal(error.code, "locked", stderr);
    assert.doesNotMatch(stderr, /damaged|recover_database/);
  }
  assert.deepEqual(treeOf(backups), before);
});

Deno.test("retention keeps an outdated backup that cannot be read now", async () => {
  using temp = new TempFolder();
  const { base, file, backups } = newStore(temp, 3);
  const [locked, newer] = ["telemetry_backup_20200101_000000.sqlite", "telemetry_backup_20200102_000000.sqlite"];
  put(backups, file, [locked, newer]);
  assert.equal(valueIn(`${backups}/${locked}`, "PRAGMA journal_mode=DELETE"), "delete");
  await using _holder = await holdDatabase(`${backups}/${locked}`, "BEGIN EXCLUSIVE");
  const { code, stderr } = await runScript("backup_telemetry_db", base, ["--keep-days", "1", "--quiet"]);
  assert.deepEqual([code, stderr], [
    0,
    `warning: ${locked} is incomplete, or cannot be read: it is neither removed nor counted\n`,
  ]);
  assert.ok(names(backups).includes(locked) && !names(backups).includes(newer));
});

testWith(
  ["nobody"],
  "a source without read permission is reported, and no backup is deleted",
  async () => {
    using temp = new TempFolder();
    Deno.chmodSync(temp.path, 0o755);
    const { base, file, backups } = newStore(temp, 3);
    put(backups, file, ["telemetry.backup.20200101.sqlite", "telemetry_backup_20200101_000000.sqlite"]);
    for (const path of [base, backups, `${base}/db`, `${base}/raw`]) Deno.chownSync(path, NOBODY, NOBODY);
    Deno.chmodSync(file, 0o600);
    const before = treeOf(base);
    for (const script of SCRIPTS) {
      const options = { uid: NOBODY, env: { DENO_DIR: `${temp.path}/none` } };
      const { code, stdout, stderr } = await runScript(script, base, ["--json", ...ruleOf(script)], options);
      assert.equal(code, 1);
      assert.equal(JSON.parse(stdout).error.code, "permission", stderr);
      assert.doesNotMatch(stderr, /damaged|recover_database/);
      assert.deepEqual(treeOf(base), before);
    }
  },
);

// Names and what is kept

Deno.test("concurrent backups get different names, and the first of a day has no hour in its name", async () => {
  using temp = new TempFolder();
  const { base, backups } = newStore(temp);
  const first = await backup("backup_database", base);
  assert.equal(String(first["path"]), `${backups}/${dayOf(Date.now())}`);
  const taken = await Promise.all(
    Array.from({ length: 10 }, (_, i) => backup(SCRIPTS[i % 2]!, base, ...i % 2 ? [] : ["--keep", "99"])),
  );
  const paths = taken.map(({ path }) => String(path)).concat(String(first["path"]));
  assert.equal(new Set(paths).size, 11);
  assert.deepEqual(paths.map((path) => path.slice(backups.length + 1)).toSorted(), names(backups));
  assert.equal(names(backups).filter((name) => DAILY.test(name)).length, 6);
  assert.equal(names(backups).filter((name) => FULL.test(name)).length, 5);
});

Deno.test("the name without an hour is not used again on the same day", async () => {
  using temp = new TempFolder();
  const { base, file, backups } = newStore(temp, 1);
  const now = Date.now();
  // The day's own was the first, and is gone by the rule.
  const earlier = [dailyAt(now - 60_000), dailyAt(now - 120_000)];
  if (dayOf(now) !== dayOf(now - 120_000)) return; // just after midnight
  put(backups, file, earlier);
  const { path, removed } = await backup("backup_database", base, "--keep", "2");
  assert.deepEqual(removed, [`${backups}/${earlier[1]}`]);
  const { backups: listed } = await backup("backup_database", base, "--list") as unknown as Listed;
  assert.deepEqual(listed.map(({ path }) => path), [path, `${backups}/${earlier[0]}`], "newest first");
});

Deno.test("both kinds are listed newest first, also when a name has no hour", async () => {
  using temp = new TempFolder();
  const { base, file } = newStore(temp, 1);
  await backup("backup_telemetry_db", base);
  const db = new DatabaseSync(file);
  db.exec("INSERT INTO agent_runs (run_id, agent_name, start_time) VALUES ('later', 'a', '')");
  db.close();
  await nextSecond();
  const { path } = await backup("backup_database", base);
  const { backups: [first] } = await backup("backup_database", base, "--list") as unknown as Listed;
  assert.deepEqual([first!.path, first!.runs], [path, 2]);
  db.open();
  db.exec("DELETE FROM agent_runs WHERE run_id = 'later'");
  db.close();
  const { stderr } = await runScript("backup_telemetry_db", base);
  assert.match(stderr, /the previous backup has 2 runs/);
});

Deno.test("a clock set back by an hour replaces no backup and deletes only outdated ones", async () => {
  using temp = new TempFolder();
  const { base, backups } = newStore(temp);
  const made: string[] = [];
  for (const script of SCRIPTS) {
    for (const TZ of ["Etc/GMT-13", "Etc/GMT-12"]) { // thirteen hours ahead of UTC, then twelve
      for (let i = 0; i < 2; i++) {
        const before = treeOf(backups);
        const { code, stdout, stderr } = await runScript(script, base, ["--json", ...ruleOf(script)], { env: { TZ } });
        assert.equal(code, 0, stderr);
        const { path, removed } = JSON.parse(stdout);
        assert.ok(!Object.hasOwn(before, path.slice(backups.length + 1)), "replaced");
        const after = treeOf(backups);
        const gone = Object.keys(before).filter((name) => after[name] === undefined);
        assert.deepEqual(gone.map((name) => `${backups}/${name}`), removed.toSorted());
        for (const [name, content] of Object.entries(before)) {
          if (!gone.includes(name)) assert.equal(after[name], content);
        }
        made.push(path.slice(backups.length + 1));
        assert.ok(names(backups).includes(made.at(-1)!), "the new one is there");
      }
    }
  }
});

Deno.test("incomplete files under good names are neither counted nor deleted, with a warning", async () => {
  using temp = new TempFolder();
  for (const script of SCRIPTS) {
    const { base, file, backups } = newStore(temp, 30, script);
    const at = (days: number) => (script === "backup_database" ? dailyAt : fullAt)(Date.now() - days * DAY);
    const [half, junk, empty] = [at(1), at(2), at(3)];
    const good = [at(9), at(10)];
    put(backups, file, [half, ...good]);
    Deno.truncateSync(`${backups}/${half}`, 8192);
    Deno.writeTextFileSync(`${backups}/${junk}`, "junk");
    Deno.writeTextFileSync(`${backups}/${empty}`, "");
    const rule = script === "backup_database" ? ["--keep", "2"] : ["--keep-days", "5"];
    const { code, stderr } = await runScript(script, base, rule, { env: TIME_ZONE });
    assert.equal(code, 0);
    for (const name of [half, junk, empty]) {
      assert.match(
        stderr,
        new RegExp(`warning: ${RegExp.escape(name)} is incomplete, or cannot be read: it is neither removed`),
      );
    }
    const left = names(backups);
    assert.deepEqual([half, junk, empty].filter((name) => !left.includes(name)), []);
    // Of two that are to stay, one is new, and the next is the newest good one.
    assert.deepEqual(good.map((name) => left.includes(name)), [script === "backup_database", false]);
  }
});

Deno.test("backups dated in the future are neither counted nor deleted, with a warning", async () => {
  using temp = new TempFolder();
  const { base, file, backups } = newStore(temp);
  const now = Date.now();
  const future = [dailyAt(now + HOUR), dailyAt(now + 366 * DAY), fullAt(now + HOUR), fullAt(now + 366 * DAY)];
  const past = [dailyAt(now - 2 * DAY), dailyAt(now - 3 * DAY), fullAt(now - 20 * DAY), fullAt(now - 2 * DAY)];
  put(backups, file, [...future, ...past]);
  const before = treeOf(backups);
  for (
    const [script, args, gone] of [
      ["backup_database", ["--keep", "2"], [past[1]]],
      ["backup_telemetry_db", ["--keep-days", "7"], [past[2]]],
    ] as const
  ) {
    const own = script === "backup_database" ? future.slice(0, 2) : future.slice(2);
    for (const dry of [["--dry-run"], []]) {
      const { code, stdout, stderr } = await runScript(script, base, ["--json", ...args, ...dry]);
      assert.equal(code, 0, stderr);
      assert.deepEqual(JSON.parse(stdout).removed, gone.map((name) => `${backups}/${name}`));
      assert.equal(stderr.trimEnd().split("\n").length, 2);
      for (const name of own) {
        assert.match(stderr, new RegExp(`warning: ${RegExp.escape(name)} is dated in the future`));
      }
    }
  }
  const after = treeOf(backups);
  for (const name of [...future, past[0]!, past[3]!]) assert.equal(after[name], before[name], name);
  assert.deepEqual([after[past[1]!], after[past[2]!]], [undefined, undefined]);
});

Deno.test("--keep counts only its own kind, by the time in the names", async () => {
  using temp = new TempFolder();
  const { base, file, backups } = newStore(temp);
  const now = Date.now();
  const daily = [1, 2, 3, 4, 5].map((days) => days % 2 ? dayOf(now - days * DAY) : dailyAt(now - days * DAY));
  const others = [
    ...[100, 200, 300].map((days) => fullAt(now - days * DAY)),
    "telemetry.before_v3_20200101_000000.sqlite",
    "telemetry.backup.20200101.sqlite.bak",
    "telemetry.backup.20200101.sqlite.gz",
    "telemetry.backup.2020010.sqlite",
    "telemetry.backup.20201301.sqlite",
    "telemetry.backup.20200101_250000.sqlite",
    "telemetry.backup.20200101-000000.sqlite",
    "old_telemetry.backup.20200101.sqlite",
    "TELEMETRY.BACKUP.20200101.SQLITE",
    "telemetry.sqlite",
    "notes.txt",
  ];
  put(backups, file, [...daily, ...others]);
  const args = ["--keep", "3"];
  const tree = treeOf(base);
  const dry = await runScript("backup_database", base, [...args, "--dry-run"]);
  assert.deepEqual([dry.code, dry.stderr], [0, ""]);
  assert.deepEqual(treeOf(base), tree, "--dry-run changes nothing");
  const dryJson = await backup("backup_database", base, ...args, "--dry-run");
  assert.deepEqual([dryJson["dry_run"], dryJson["path"]], [true, undefined]);
  const gone = daily.slice(2);
  const [taken, ...wouldRemove] = dry.stdout.trimEnd().split("\n");
  assert.equal(taken, `would back up ${file}: 3 runs to ${backups}`);
  assert.deepEqual(wouldRemove.toSorted(), gone.map((name) => `would remove ${name}`).toSorted());
  const real = await runScript("backup_database", base, args, { env: TIME_ZONE });
  assert.deepEqual([real.code, real.stderr], [0, ""]);
  const removed = real.stdout.trimEnd().split("\n").slice(1);
  assert.deepEqual(removed, wouldRemove.map((line) => line.replace("would remove", "removed")));
  assert.deepEqual(dryJson["removed"], removed.map((line) => line.replace("removed ", `${backups}/`)));
  assert.deepEqual(names(backups), [dayOf(now), ...daily.slice(0, 2), ...others].toSorted());
  assert.deepEqual((await backup("backup_database", base, "--keep", "1"))["removed"], [
    `${backups}/${dayOf(now)}`,
    `${backups}/${daily[0]}`,
    `${backups}/${daily[1]}`,
  ]);
});

Deno.test("concurrent backups with --keep 1 all succeed and keep the newest", async () => {
  using temp = new TempFolder();
  const { base, backups } = newStore(temp);
  const taken = Array.from({ length: 8 }, () => runScript("backup_database", base, ["--keep", "1"]));
  const failed = (await Promise.all(taken)).filter(({ code, stderr }) => code !== 0 || stderr !== "");
  assert.deepEqual(failed, []);
  assert.ok(names(backups).length >= 1, "every one was removed by another");
  for (const name of names(backups)) assert.match(name, DAILY);
});

Deno.test("two concurrent prunings keep the newest, and ignore what is already deleted", async () => {
  using temp = new TempFolder();
  const { base, backups } = newStore(temp);
  const layout = layoutOf(base);
  for (const [kind, rule] of [["daily_backup", { count: 1 }], ["full_backup", { days: 1 }]] as const) {
    const first = await takeBackup(layout, kind);
    await nextSecond();
    const second = await takeBackup(layout, kind);
    const outdated = [first, second].map((taken) => applyRetention(layout, kind, rule, taken).expired);
    for (const gone of outdated) assert.ok(!gone.some(({ path }) => path === second.path), "the newest");
    for (const gone of outdated) removeBackups(layout, gone);
    assert.ok(names(backups).includes(second.path.slice(backups.length + 1)));
    const old = { ...listBackups(layout)[0]!, path: `${backups}/telemetry.backup.20200101.sqlite` };
    removeBackups(layout, [old]);
  }
});

Deno.test("a new backup is not removed under the name of one that another process has removed", async () => {
  using temp = new TempFolder();
  const { base, backups } = newStore(temp);
  const layout = layoutOf(base);
  const name = "telemetry.backup.20200101.sqlite";
  const old = `${backups}/${name}`;
  const now = await takeBackup(layout, "daily_backup");
  Deno.copyFileSync(now.path, old);
  Deno.utimeSync(old, 1, 1);
  const { expired } = applyRetention(layout, "daily_backup", { count: 1 }, now);
  assert.deepEqual(expired.map(({ name }) => name), [name]);
  Deno.copyFileSync(now.path, old);
  assert.deepEqual(removeBackups(layout, expired).warnings, []);
  assert.ok(names(backups).includes(name));
});

Deno.test("of several backups in one second, --keep 1 and latest take the one that was finished last", () => {
  using temp = new TempFolder();
  const { base, file, backups } = newStore(temp);
  const now = Date.now();
  put(backups, file, [dayOf(now), dailyAt(now)]);
  // The day's own name was free again, as the rule had removed the first backup of the day.
  for (const [name, ms] of [[dailyAt(now), 0], [dayOf(now), 1]] as const) {
    const second = Math.floor(now / 1000) * 1000;
    Deno.utimeSync(`${backups}/${name}`, new Date(now), new Date(second + ms));
  }
  const layout = layoutOf(base);
  const path = `${layout.backups}${sep}${dayOf(now)}`;
  assert.equal(listBackups(layout)[0]!.path, path);
  const { expired } = applyRetention(layout, "daily_backup", { count: 1 }, { path, runs: 3 });
  assert.deepEqual(expired.map(({ name }) => name), [dailyAt(now)]);
});

Deno.test("several names of one file count as one backup", async () => {
  using temp = new TempFolder();
  const { base, file, backups } = newStore(temp);
  const others = [1, 2, 3].map((days) => dailyAt(Date.now() - days * DAY));
  put(backups, file, others);
  const [first, ...more] = Array.from({ length: 20 }, (_, i) => dailyAt(Date.now() - HOUR - i * 1000));
  put(backups, file, [first!]);
  for (const name of more) Deno.linkSync(`${backups}/${first}`, `${backups}/${name}`);
  await backup("backup_database", base, "--keep", "5");
  for (const name of [first!, ...others]) assert.ok(names(backups).includes(name), `${name} is gone`);
  assert.equal(listBackups(layoutOf(base)).length, 5);
});

Deno.test("a backup that another program opens before it is published is one backup, and pushes out no other", async () => {
  using temp = new TempFolder();
  const { base, file, backups } = newStore(temp);
  const others = [1, 2].map((days) => dailyAt(Date.now() - days * DAY));
  put(backups, file, others);
  const layout = layoutOf(base);
  const partial = () => names(backups).find((name) => name.endsWith(".partial"));
  let held: Disposable | undefined;
  const taken = await takeBackup(layout, "daily_backup", () => held ??= holdOpen(pathIn(layout.backups, partial()!)));
  const { expired } = applyRetention(layout, "daily_backup", { count: 3 }, taken);
  held![Symbol.dispose]();
  assert.deepEqual(expired, []);
  assert.deepEqual(names(backups), [...others, fileNameOf(taken.path), partial()].toSorted());
  await takeBackup(layout, "daily_backup");
  assert.equal(partial(), undefined);
});

Deno.test("a backup that another program has open is a warning, and the others are removed", () => {
  using temp = new TempFolder();
  const { base, file, backups } = newStore(temp);
  const [open, other] = [dailyAt(Date.now() - 2 * DAY), dailyAt(Date.now() - 3 * DAY)];
  put(backups, file, [open, other]);
  const layout = layoutOf(base);
  const { expired } = applyRetention(layout, "daily_backup", { count: 1 }, { runs: 3 });
  using _held = holdOpen(pathIn(layout.backups, open));
  const { removed, warnings } = removeBackups(layout, expired);
  assert.deepEqual(removed.map(({ name }) => name), [other]);
  assert.equal(warnings.length, 1);
  assert.match(warnings[0]!, /cannot remove .* in use/);
  assert.deepEqual(names(backups), [open]);
});

Deno.test("--keep ignores a folder with the name of a backup", async () => {
  using temp = new TempFolder();
  const { base, file, backups } = newStore(temp);
  const folders = ["telemetry.backup.20250103.sqlite", "telemetry.backup.20250101.sqlite"];
  for (const name of folders) Deno.mkdirSync(`${backups}/${name}`);
  put(backups, file, ["telemetry.backup.20250102.sqlite"]);
  const { removed } = await backup("backup_database", base, "--keep", "2");
  assert.deepEqual(removed, []);
  assert.equal(names(backups).length, 4);
});

Deno.test("--keep-days deletes older backups of its kind, never the newest", async () => {
  using temp = new TempFolder();
  const { base, file, backups } = newStore(temp);
  const now = Date.now();
  const minute = 60_000;
  const old = [fullAt(now - 3 * DAY - 10 * minute), fullAt(now - 30 * DAY), "telemetry_backup_19990101_000000.sqlite"];
  const young = [fullAt(now - 3 * DAY + 10 * minute), fullAt(now - HOUR)];
  const others = [
    dayOf(now - 400 * DAY),
    dailyAt(now - 500 * DAY),
    "telemetry_backup_20200101.sqlite",
    "telemetry_backup_20200231_000000.sqlite",
  ];
  put(backups, file, [...old, ...young, ...others]);
  const { removed: would } = await backup("backup_telemetry_db", base, "--keep-days", "3", "--dry-run");
  const { removed, path } = await backup("backup_telemetry_db", base, "--keep-days", "3");
  assert.deepEqual(removed, old.map((name) => `${backups}/${name}`));
  assert.deepEqual(would, removed);
  assert.deepEqual(names(backups), [String(path).slice(backups.length + 1), ...young, ...others].toSorted());
});

Deno.test("a recreated database does not push out the backup with the most runs", async (t) => {
  for (const script of SCRIPTS) {
    await t.step(script, async () => {
      using temp = new TempFolder();
      const { base, file, backups } = newStore(temp, 3);
      const [full, damaged] = ["full", "damaged"].map((name) => `${temp.path}/${name}.sqlite`);
      makeDatabase(full!, 100);
      makeDatabase(damaged!, 200);
      const bytes = Deno.readFileSync(damaged!);
      const leaf = bytes.findLastIndex((byte, at) => at % 4096 === 0 && byte === TABLE_LEAF);
      Deno.writeFileSync(damaged!, bytes.fill(0, leaf, leaf + 4096));
      assert.equal(valueIn(damaged!, "SELECT count(*) FROM agent_runs"), 200);
      const [first, second, third, fourth, fifth] = [40, 30, 20, 10, 5].map((days) =>
        (script === "backup_database" ? dailyAt : fullAt)(Date.now() - days * DAY)
      );
      put(backups, file, [first!, fourth!, fifth!]);
      put(backups, full!, [second!]);
      put(backups, damaged!, [third!]);

      const stays = `kept ${second}: it has 100 runs, more than the database`;
      const dry = await runScript(script, base, [...ruleOf(script), "--dry-run"], { env: TIME_ZONE });
      const gone = [fifth, fourth, third, first];
      const taken = `would back up ${file}: 3 runs to ${backups}`;
      assert.deepEqual(dry.stdout.trimEnd().split("\n"), [taken, ...gone.map((name) => `would remove ${name}`), stays]);
      const { stdout } = await runScript(script, base, ruleOf(script), { env: TIME_ZONE });
      assert.deepEqual(stdout.trimEnd().split("\n").slice(1), [...gone.map((name) => `removed ${name}`), stays]);

      Deno.copyFileSync(full!, file);
      const { removed } = await backup(script, base, ...ruleOf(script));
      assert.equal((removed as string[]).at(-1), `${backups}/${second}`);
      assert.ok(!names(backups).includes(second!));
    });
  }
});

Deno.test("the newest backup stays when no new one can be taken", async () => {
  using temp = new TempFolder();
  const { base, file, backups } = newStore(temp);
  put(backups, file, ["telemetry_backup_19990101_000000.sqlite", "telemetry.backup.19990101.sqlite"]);
  Deno.truncateSync(file, 0);
  for (const script of SCRIPTS) assert.equal((await runScript(script, base)).code, 1);
  assert.equal(names(backups).length, 2);
});

Deno.test("a value that is not a whole number from 1 is wrong usage, and nothing is changed", async () => {
  using temp = new TempFolder();
  const { base, file, backups } = newStore(temp);
  put(backups, file, ["telemetry.backup.20200101.sqlite", "telemetry_backup_20200101_000000.sqlite"]);
  const before = treeOf(base);
  for (const value of ["0", "x", "-1", "1.5", "", " 3", "1e3", "0x10", "+1", "99999999999999999999", "NaN", true]) {
    assert.throws(() => wholeNumber("keep", value, 5), { code: "usage" }, `${value}`);
  }
  for (const [script, flag] of [["backup_database", "--keep"], ["backup_telemetry_db", "--keep-days"]] as const) {
    for (const args of [[`${flag}=0`], [flag]]) {
      const { code, stdout, stderr } = await runScript(script, base, args);
      assert.deepEqual([code, stdout], [2, ""], `${args}: ${stderr}`);
      assert.match(stderr, new RegExp(`^${script}: `));
    }
  }
  assert.equal((await runScript("backup_database", base, ["--keep-days", "3"])).code, 2);
  assert.equal((await runScript("backup_telemetry_db", base, ["--keep", "3"])).code, 2);
  assert.deepEqual(treeOf(base), before);
});

Deno.test("--restore with --dry-run or --list restores nothing", async () => {
  using temp = new TempFolder();
  const { base, file, backups } = newStore(temp);
  const other = `${temp.path}/other.sqlite`;
  makeDatabase(other, 1, "other");
  put(backups, other, ["telemetry_backup_20200101_000000.sqlite"]);
  const before = treeOf(base);
  for (const flag of ["--dry-run", "--list"]) {
    await runScript("backup_telemetry_db", base, ["--restore", "latest", "--yes", flag]);
    assert.deepEqual(treeOf(base), before, flag);
  }
  assert.equal(valueIn(file, "SELECT count(*) FROM agent_runs"), 3);
});

// Listing

interface Listed {
  backups: {
    name: string;
    path: string;
    size: number;
    time: string;
    schema_version?: number;
    runs?: number;
    check: string;
    problem?: string;
  }[];
  others: { name: string; path: string; size: number; time: string }[];
}

testWith(
  ["python"],
  "--list shows the content and the state of every backup, and changes nothing",
  async () => {
    using temp = new TempFolder();
    const { base, file, backups } = newStore(temp, 5);
    const now = Date.now();
    const kinds: OldKind[] = ["v1", "v2", "v2_recovered", "v2_recovered_commits", "says3_is2", "v7"];
    const versions = [1, 2, 2, 2, 2, 7];
    for (const [i, kind] of kinds.entries()) {
      makeOldDatabase(`${backups}/${dayOf(now - (i + 2) * DAY)}`, kind, 40 + i, i % 2 ? "wal" : "delete");
    }
    // As the Python scripts make them: the online backup, and a plain copy.
    const byPython = `
import shutil, sqlite3, sys
source, dest = sqlite3.connect(sys.argv[1]), sqlite3.connect(sys.argv[2])
source.backup(dest)
dest.close(); source.close()
shutil.copy2(sys.argv[1], sys.argv[3])`;
    const python1 = fullAt(now - 20 * DAY);
    const python2 = fullAt(now - 30 * HOUR);
    await python(byPython, file, `${backups}/${python1}`, `${backups}/${python2}`);
    const damaged = fullAt(now - 40 * DAY);
    const large = `${temp.path}/large.sqlite`;
    makeDatabase(large, 1000);
    put(backups, large, [damaged]);
    BAD["damaged in its pages"]!.make(`${backups}/${damaged}`);
    const half = fullAt(now - 41 * DAY);
    put(backups, large, [half]);
    Deno.truncateSync(`${backups}/${half}`, 100_000);
    const text = fullAt(now - 42 * DAY);
    Deno.writeTextFileSync(`${backups}/${text}`, "not a database at all, but long enough to look into\n".repeat(20));
    const empty = fullAt(now - 43 * DAY);
    Deno.writeTextFileSync(`${backups}/${empty}`, "");
    const foreign = fullAt(now - 44 * DAY);
    const db = new DatabaseSync(`${backups}/${foreign}`);
    db.exec("CREATE TABLE songs (title TEXT)");
    db.close();
    const copies = [
      `${base}/db/telemetry_before_restore_20240101_000000.sqlite`,
      `${base}/db/telemetry.corrupted.20240103_000000.sqlite`,
      `${backups}/telemetry.before_v3_20240102_000000.sqlite`,
    ];
    for (const path of copies) Deno.copyFileSync(file, path);
    Deno.writeTextFileSync(`${backups}/notes.txt`, "mine");

    const before = treeOf(base);
    const bad = [damaged, half, text, empty, foreign];
    for (const script of SCRIPTS) {
      const { backups: listed, others } = await backup(script, base, "--list") as unknown as Listed;
      assert.deepEqual(treeOf(base), before, "--list changes nothing");
      const good = kinds.map((_, i) => [dayOf(now - (i + 2) * DAY), versions[i], 40 + i]);
      good.push([python1, 3, 5], [python2, 3, 5]);
      for (const [name, version, runs] of good) {
        const row = listed.find((row) => row.name === name);
        assert.deepEqual([row?.schema_version, row?.runs, row?.check], [version, runs, "ok"], String(name));
      }
      for (const name of bad) {
        const row = listed.find((row) => row.name === name)!;
        assert.deepEqual([row.schema_version, row.runs], [undefined, undefined], name);
        assert.match(row.check, /^(damaged|not_a_database|empty_database)$/);
        assert.ok(row.problem!.length > 20, row.problem);
      }
      for (const row of listed) assert.equal(row.size, Deno.statSync(row.path).size);
      const times = listed.map(({ time }) => Date.parse(time));
      assert.deepEqual(times, times.toSorted((a, b) => b - a), "newest first");
      assert.equal(listed.length, good.length + bad.length);
      assert.deepEqual(
        others.map(({ path, size }) => [path, size]),
        [copies[1], copies[2], copies[0]].map((path) => [path, Deno.statSync(path!).size]),
      );

      const { code, stdout, stderr } = await runScript(script, base, ["--list"]);
      assert.deepEqual([code, stderr], [0, ""]);
      // What is wrong with one stands below it.
      const line = (name: string) => stdout.split(/\n(?! )/).find((line) => line.includes(name)) ?? "";
      assert.match(line(python1), /^\S+ +\d+ kB +(19|20) d +v3 +5 +ok$/);
      assert.match(line(python2), /^\S+ +\d+ kB +(29|30|31) h +v3 +5 +ok$/);
      assert.match(line(dayOf(now - 7 * DAY)), /v7 +45 +ok$/);
      assert.match(line(damaged), /^\S+ +\d+ kB +\d+ d +damaged\n {2}\S.* is damaged/);
      for (const path of copies) assert.match(line(path), / +\d+ kB, [\d,]+ d old/);
      assert.ok(!stdout.includes("notes.txt"));
    }
    const none = newStore(temp, 0, "none");
    assert.deepEqual(await backup("backup_database", none.base, "--list"), { ok: true, backups: [], others: [] });
    assert.match((await runScript("backup_database", none.base, ["--list"])).stdout, /no backups in /);
  },
);

testWith(
  ["nobody"],
  "--list of backups in WAL mode without write permission changes nothing",
  async () => {
    using temp = new TempFolder();
    Deno.chmodSync(temp.path, 0o755);
    const { base, file, backups } = newStore(temp);
    put(backups, file, ["telemetry.backup.20200101.sqlite"]);
    const before = treeOf(base);
    const { code, stdout, stderr } = await runScript("backup_database", base, ["--list", "--json"], {
      uid: NOBODY,
      env: { DENO_DIR: `${temp.path}/none` },
    });
    assert.deepEqual([code, stderr], [0, ""]);
    const { backups: [row] } = JSON.parse(stdout) as Listed;
    assert.doesNotMatch(row!.check, /damaged|recover/);
    assert.deepEqual(treeOf(base), before);
  },
);

// Whatever the source

Deno.test("databases of every schema version and journal mode are backed up unchanged", async () => {
  using temp = new TempFolder();
  const versions: OldKind[] = ["v1", "v2", "v2_recovered", "says3_is2", "v7"];
  await Promise.all(versions.map(async (version, i) => {
    const { base, file } = newStore(temp, 0, version);
    Deno.removeSync(file);
    makeOldDatabase(file, version, 40, i % 2 ? "delete" : "wal");
    const before = Deno.readFileSync(file);
    for (const kind of KINDS) {
      const { path, schema_version, runs } = await takeBackup(layoutOf(base), kind);
      assert.deepEqual([schema_version, runs], [version === "v1" ? 1 : version === "v7" ? 7 : 2, 40]);
      assert.deepEqual(contentOf(path), contentOf(file));
    }
    assert.deepEqual(Deno.readFileSync(file), before, "the source is not changed");
    assert.deepEqual(names(`${base}/db`), ["telemetry.sqlite"]);
  }));
});

/** Everything in a database: its schema, and every row of the contract's tables. */
function contentOf(file: string): unknown {
  const db = new DatabaseSync(file);
  try {
    const schema = db.prepare("SELECT type, name, sql FROM sqlite_schema ORDER BY name").all();
    const tables = schema.filter(({ type }) => type === "table").map(({ name }) => {
      const columns = db.prepare("SELECT name FROM pragma_table_info(?)").all(name!).map(({ name }) =>
        `quote("${name}")`
      );
      return db.prepare(`SELECT ${columns} FROM "${name}" ORDER BY rowid`).all();
    });
    return JSON.stringify([schema, tables]);
  } finally {
    db.close();
  }
}

Deno.test("a backup includes what a killed writer left in the WAL", async () => {
  using temp = new TempFolder();
  const { base, file } = newStore(temp, 3);
  await killAfter(
    file,
    "PRAGMA wal_autocheckpoint=0",
    `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)
    INSERT INTO agent_runs (run_id, agent_name, start_time) SELECT 'wal-' || i, 'wal', '' FROM n`,
  );
  assert.ok(Deno.statSync(`${file}-wal`).size > 0);
  for (const kind of KINDS) {
    const wal = Deno.statSync(`${file}-wal`).size;
    const { path, runs } = await takeBackup(layoutOf(base), kind);
    assert.equal(runs, 103);
    assert.equal(valueIn(path, "SELECT count(*) FROM agent_runs WHERE agent_name='wal'"), 100);
    assert.equal(Deno.statSync(`${file}-wal`).size, wal, "the WAL is left as it is");
  }
});

Deno.test("fewer runs than in the previous backup give a warning", async () => {
  using temp = new TempFolder();
  const { base, file, backups } = newStore(temp, 30);
  assert.equal((await backup("backup_database", base))["runs"], 30);
  const db = new DatabaseSync(file);
  db.exec("DELETE FROM agent_runs WHERE run_id <> 'seed-1'");
  db.close();
  const { code, stderr } = await runScript("backup_telemetry_db", base, ["--quiet"]);
  assert.equal(code, 0);
  assert.match(stderr, /^warning: the previous backup has 30 runs, this one has 1/);
  const again = await runScript("backup_telemetry_db", base, ["--quiet"]);
  assert.deepEqual([again.code, again.stdout, again.stderr], [0, "", ""]);
  assert.equal(names(backups).length, 3);
});

Deno.test("the warning about fewer runs skips a backup that cannot be read", async () => {
  using temp = new TempFolder();
  const { base, file, backups } = newStore(temp, 1);
  const more = `${temp.path}/more.sqlite`;
  makeDatabase(more, 30);
  put(backups, more, [fullAt(Date.now() - 2 * DAY)]);
  Deno.writeTextFileSync(
    `${backups}/${fullAt(Date.now() - DAY)}`,
    "half a backup of a killed Python script\n".repeat(50),
  );
  const { code, stderr } = await runScript("backup_telemetry_db", base, ["--quiet"]);
  assert.equal(code, 0);
  assert.match(stderr, /has 30 runs, this one has 1/);
  assert.equal(valueIn(file, "SELECT count(*) FROM agent_runs"), 1);
});

Deno.test("the warning about fewer runs ignores a backup dated next year", async () => {
  using temp = new TempFolder();
  const { base, backups } = newStore(temp, 2);
  const more = `${temp.path}/more.sqlite`;
  makeDatabase(more, 30);
  put(backups, more, [fullAt(Date.now() + 366 * DAY)]);
  const { code, stderr } = await runScript("backup_database", base, ["--quiet"]);
  assert.deepEqual([code, stderr], [0, ""]);
});

testWith(["links"], "a dangling link hides no other backup", async () => {
  using temp = new TempFolder();
  const { base, file, backups } = newStore(temp, 2);
  const days = Array.from({ length: 12 }, (_, i) => fullAt(Date.now() - (i + 1) * DAY));
  put(backups, file, days.filter((_, i) => i % 2 === 0));
  for (const name of days.filter((_, i) => i % 2 === 1)) Deno.symlinkSync("nowhere", `${backups}/${name}`);
  const { backups: listed } = await backup("backup_database", base, "--list") as unknown as Listed;
  const sound = listed.filter(({ check }) => check === "ok").map(({ name }) => name);
  assert.deepEqual(sound, days.filter((_, i) => i % 2 === 0));
});

testWith(["modes"], "a backup has the mode of the database", async () => {
  using temp = new TempFolder();
  const { base, file } = newStore(temp);
  for (const mode of [0o600, 0o640, 0o644]) {
    Deno.chmodSync(file, mode);
    for (const kind of KINDS) {
      const { path } = await takeBackup(layoutOf(base), kind);
      assert.equal(Deno.statSync(path).mode! & 0o777, mode);
    }
  }
});

testWith(["root"], "backups that root takes belong to the owner of the base folder", async () => {
  using temp = new TempFolder();
  const { base, file, backups } = newStore(temp);
  Deno.removeSync(backups);
  for (const path of [base, `${base}/db`, `${base}/raw`, file]) Deno.chownSync(path, NOBODY, NOBODY);
  for (const script of SCRIPTS) {
    const { path } = await backup(script, base);
    for (const made of [String(path), backups, file]) {
      const { uid, gid } = Deno.statSync(made);
      assert.deepEqual([uid, gid], [NOBODY, NOBODY], made);
    }
  }
});

Deno.test("any page size and an empty table are backed up, and a file at the path of backups/ is refused", async () => {
  using temp = new TempFolder();
  const { base, file, backups } = newStore(temp, 0);
  assert.equal((await takeBackup(layoutOf(base), "daily_backup")).runs, 0);
  for (const pageSize of [512, 65536]) {
    for (const end of ["", "-wal", "-shm"]) {
      try {
        Deno.removeSync(file + end);
      } catch { /* it is not there */ }
    }
    const db = new DatabaseSync(file);
    db.exec(`PRAGMA page_size=${pageSize}; ${schemaSql()}`);
    db.close();
    for (const kind of KINDS) {
      const { path } = await takeBackup(layoutOf(base), kind);
      assert.equal(valueIn(path, "PRAGMA page_size"), pageSize);
    }
  }
  Deno.removeSync(backups, { recursive: true });
  Deno.writeTextFileSync(backups, "mine");
  for (const script of SCRIPTS) {
    assertFailed(await runScript(script, base), script, /backups/, /move/);
    assert.equal(Deno.readTextFileSync(backups), "mine");
  }
});

Deno.test("the disk writes a copy before it is complete, and a failed sync leaves no backup", async () => {
  using temp = new TempFolder();
  const { base, backups } = newStore(temp, 20_000);
  const { prototype } = Deno.FsFile;
  const { sync } = prototype;
  let syncs = 0;
  let refused = 0;
  prototype.sync = function () {
    return ++syncs === refused ? Promise.reject(new Error("EIO")) : sync.call(this);
  };
  try {
    let early = 0;
    await takeBackup(layoutOf(base), "daily_backup", (done, total) => early = done < total ? syncs : early);
    assert.ok(early > 0);
    Deno.removeSync(backups, { recursive: true });
    for (refused = 1; refused <= early; refused++) {
      syncs = 0;
      await assert.rejects(takeBackup(layoutOf(base), "daily_backup"), { code: "io", message: /partial: EIO/ });
      assert.deepEqual([...Deno.readDirSync(backups)], []);
    }
  } finally {
    prototype.sync = sync;
  }
});

Deno.test("a missing permission prints the whole command and changes nothing", async () => {
  using temp = new TempFolder();
  const { base } = newStore(temp);
  const before = treeOf(base);
  for (const script of SCRIPTS) {
    const args = scriptArgs(script, base);
    for (const lacking of args.filter((arg) => arg.startsWith("--allow-"))) {
      const { code, stdout, stderr } = await run(Deno.execPath(), args.filter((arg) => arg !== lacking));
      assert.deepEqual([code, stdout], [1, ""]);
      assert.match(stderr, /-> run: deno run --allow-read=/);
    }
  }
  assert.deepEqual(treeOf(base), before);
});

Deno.test("partials of killed backups are deleted with their sidecars, and those of running ones stay", async () => {
  using temp = new TempFolder();
  const { base, file, backups } = newStore(temp);
  for (const name of ["telemetry.backup.20200101.sqlite", "telemetry_backup_20200101_000000.sqlite"]) {
    for (const end of ["", "-wal", "-shm", "-journal"]) {
      Deno.writeTextFileSync(
        `${backups}/${name}.partial${end}`,
        "x",
      );
    }
  }
  Deno.writeTextFileSync(`${backups}/report.partial`, "someone's");
  Deno.writeTextFileSync(`${backups}/telemetry.backup.20200102.sqlite.partial`, "being written");
  // Killed between giving the name and taking the other one away: a finished backup.
  put(backups, file, ["telemetry_backup_20200103_000000.sqlite"]);
  Deno.linkSync(
    `${backups}/telemetry_backup_20200103_000000.sqlite`,
    `${backups}/telemetry_backup_20200103_000000.sqlite.partial`,
  );
  const finished = treeOf(backups)["telemetry_backup_20200103_000000.sqlite"];
  using living = Deno.openSync(`${backups}/telemetry.backup.20200102.sqlite.partial`, { read: true, write: true });
  living.lockSync(true);
  await backup("backup_database", base);
  await backup("backup_telemetry_db", base, "--keep-days", "9999");
  const left = names(backups).filter((name) => name.includes(".partial"));
  assert.deepEqual(left, ["report.partial", "telemetry.backup.20200102.sqlite.partial"]);
  // Windows lets nobody read what is locked.
  living.close();
  assert.equal(treeOf(backups)["telemetry_backup_20200103_000000.sqlite"], finished);
});

testWith(
  ["terminal"],
  "a progress bar is drawn only on a terminal, without --quiet and --json",
  async () => {
    using temp = new TempFolder();
    const { base, file, backups } = newStore(temp);
    const db = new DatabaseSync(file);
    db.exec(
      "PRAGMA synchronous=OFF; CREATE TABLE padding AS SELECT zeroblob(50000000) AS a UNION ALL SELECT zeroblob(50000000) UNION ALL SELECT zeroblob(50000000)",
    );
    db.close();
    const line = [Deno.execPath(), ...scriptArgs("backup_database", base)].join(" ");
    const onTerminal = async (args = "") => {
      const { stdout, code } = await run("script", ["-qec", `${line} ${args}`, "/dev/null"]);
      assert.equal(code, 0, stdout);
      return stdout;
    };
    // deno-lint-ignore no-control-regex
    const gone = /\r\x1b\[Kbackup \//;
    const bar = /\rbackup \[#*\.*\] \d+%, \d+ s left/;
    const shown = await onTerminal();
    assert.match(shown, bar);
    assert.match(shown, gone, "it is gone before the report");
    assert.doesNotMatch(await onTerminal("--quiet"), /left|%|backup/);
    assert.match(await onTerminal("--json"), /^\{"ok":true.*\}\r?\n$/);
    const { stderr, stdout } = await runScript("backup_database", base);
    assert.deepEqual([stderr, stdout.split("\n").length], ["", 2]);
    assert.equal(names(backups).length, 4);
    // A check has no steps to count: it shows only what is being done.
    const check = [Deno.execPath(), ...scriptArgs("recover_database", base, ["--check-only"])].join(" ");
    const checked = await run("script", ["-qec", check, "/dev/null"]);
    // deno-lint-ignore no-control-regex
    assert.match(checked.stdout, /^\rrecover_database …\x1b\[K\r\x1b\[K\S+ is healthy/);
  },
);
