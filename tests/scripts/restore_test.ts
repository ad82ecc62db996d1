import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { gzipSync } from "node:zlib";
import { listOtherCopies } from "../../lib/backup/backup.ts";
import { restoreBackup } from "../../lib/backup/restore.ts";
import { TelemetryError } from "../../lib/errors.ts";
import { layoutOf } from "../../lib/layout.ts";
import { schemaSql } from "../../lib/schema.ts";
import { TelemetryClient } from "../../mod.ts";
import {
  command,
  copyFolder,
  makeOldDatabase,
  type Output,
  python,
  readDatabase,
  readLog,
  ReadOnlyMount,
  ROOT,
  ROOT_URL,
  run,
  runScript,
  SAMPLE,
  scriptArgs,
  slashes,
  sqlite,
  TempFolder,
  testWith,
  treeOf,
  UPGRADABLE,
} from "../fixtures/mod.ts";

// ------------------------------------------------------------------------------------------------ stores and files

interface Store {
  base: string;
  file: string;
  /** A sound backup of schema v3 with 30 runs of the agent `backup`. */
  backup: string;
}

/** One value of a database. */
function valueIn(path: string, sql: string): unknown {
  const db = new DatabaseSync(path, { readOnly: true });
  const row = db.prepare(sql).get();
  db.close();
  return row === undefined ? undefined : Object.values(row)[0];
}

function makeV3(path: string, agent: string, rows: number, pageSize = 4096): void {
  sqlite(
    path,
    `PRAGMA page_size=${pageSize}; ${schemaSql()}
    WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${rows})
    INSERT INTO agent_runs (run_id, agent_name, start_time, status, trigger_type, output_summary)
    SELECT '${agent}-' || i, '${agent}', '2025-12-10T00:00:00+00:00', 'success', 'cli', hex(zeroblob(400)) FROM n;`,
  );
}

function newStore(temp: TempFolder, current: "v3" | "none" = "v3"): Store {
  const base = `${temp.path}/store`;
  for (const name of ["db", "raw", "backups"]) Deno.mkdirSync(`${base}/${name}`, { recursive: true });
  const file = `${base}/db/telemetry.sqlite`;
  const backup = `${base}/backups/telemetry_backup_20251201_030000.sqlite`;
  makeV3(backup, "backup", 30);
  if (current === "v3") makeV3(file, "current", 60);
  return { base, file, backup };
}

function restore(base: string, path: string, ...flags: string[]): Promise<Output> {
  return runScript("backup_telemetry_db", base, ["--restore", path, "--yes", ...flags]);
}

async function restored(base: string, path: string, ...flags: string[]): Promise<Record<string, unknown>> {
  const { code, stdout, stderr } = await restore(base, path, "--json", ...flags);
  assert.deepEqual([code, stderr], [0, ""]);
  return JSON.parse(stdout);
}

/** One line that says what, one that says what to do, and nothing is changed. */
async function assertRefused(
  base: string,
  path: string,
  flags: string[] = [],
): Promise<{ what: string; todo: string }> {
  const before = treeOf(base);
  const { code, stdout, stderr } = await restore(base, path, ...flags);
  assert.ok(code === 1 || code === 2, `code ${code}: ${stdout}`);
  assert.equal(stdout, "");
  const lines = stderr.trimEnd().split("\n");
  assert.equal(lines.length, 2, stderr);
  assert.match(lines[0]!, /^backup_telemetry_db: ./);
  assert.match(lines[1]!, /^ {2}-> ./);
  assert.deepEqual(treeOf(base), before);
  return { what: lines[0]!, todo: lines[1]! };
}

/** The safety copies. */
function keptIn(base: string): string[] {
  return Object.keys(treeOf(`${base}/db`))
    .filter((name) => /^telemetry_before_restore_\d{8}_\d{6}\.sqlite$/.test(name))
    .map((name) => `${base}/db/${name}`);
}

/** Whether the database holds the 30 runs of {@linkcode Store.backup}, is sound, and nothing else is left. */
function assertRestored({ base, file }: Store): void {
  const { check, journal, tables } = readDatabase(file);
  assert.deepEqual([check, journal], ["ok", "wal"]);
  assert.deepEqual(new Set(tables["agent_runs"]!.rows.map((row) => row["agent_name"])), new Set(["backup"]));
  assert.equal(tables["agent_runs"]!.rows.length, 30);
  const rest = Object.keys(treeOf(`${base}/db`)).filter((name) => !name.startsWith("telemetry_before_restore_"));
  assert.deepEqual(rest, ["telemetry.sqlite"]);
}

// ------------------------------------------------------------------------------------------------ what is no backup

const NO_BACKUPS: Record<string, (path: string, store: Store) => void> = {
  "a truncated file": (path, { backup }) => {
    const bytes = Deno.readFileSync(backup);
    Deno.writeFileSync(path, bytes.subarray(0, Math.floor(bytes.length / 2 / 4096) * 4096));
  },
  "a file cut inside of a page": (path, { backup }) => {
    const bytes = Deno.readFileSync(backup);
    Deno.writeFileSync(path, bytes.subarray(0, bytes.length / 2 + 1000));
  },
  "a file damaged inside": (path, { backup }) => {
    const bytes = Deno.readFileSync(backup);
    Deno.writeFileSync(path, bytes.fill(0x55, 4096 * 3, bytes.length - 4096));
  },
  // quick_check does not see it.
  "an index that disagrees with its table": (path) => {
    makeV3(path, "backup", 1);
    const bytes = Deno.readFileSync(path);
    const text = new TextDecoder("latin1").decode(bytes);
    // In the record of a row: schema_version, agent_name, trigger_type.
    const at = text.indexOf("\x03backupcli");
    assert.ok(at > 0);
    bytes.set(new TextEncoder().encode("backuq"), at + 1);
    Deno.writeFileSync(path, bytes);
  },
  "a text file": (path) => Deno.writeTextFileSync(path, "no database\n".repeat(1000)),
  "an empty file": (path) => Deno.writeTextFileSync(path, ""),
  "a database without tables": (path) => sqlite(path, "CREATE TABLE t (a); DROP TABLE t"),
  "another application's database": (path) =>
    sqlite(path, "CREATE TABLE bookmarks (url); INSERT INTO bookmarks VALUES (1)"),
  "a folder": (path) => Deno.mkdirSync(path),
  "nothing": () => {},
  "a v7 database": (path) => makeOldDatabase(path, "v7"),
  "a dangling link": (path) => Deno.symlinkSync(`${path}.gone`, path),
  "the live database by a symbolic link": (path, { file }) => Deno.symlinkSync(file, path),
  "the live database by a hard link": (path, { file }) => Deno.linkSync(file, path),
};

for (const [name, make] of Object.entries(NO_BACKUPS)) {
  testWith(/symbolic|dangling/.test(name) ? ["links"] : [], `restore refuses ${name}`, async () => {
    using temp = new TempFolder();
    const store = newStore(temp);
    const path = `${store.base}/backups/this_one.sqlite`;
    make(path, store);
    const before = treeOf(store.base);
    await assert.rejects(restoreBackup(layoutOf(store.base), path), TelemetryError);
    assert.deepEqual(treeOf(store.base), before);
  });
}

Deno.test("restore refuses the live database itself", async () => {
  using temp = new TempFolder();
  const { base, file } = newStore(temp);
  assert.match((await assertRefused(base, file)).what, /live database/);
});

Deno.test("restore refuses a v3 over a v7 and a v7 over nothing, and accepts a v7 over a v7", async () => {
  using temp = new TempFolder();
  const { base, file, backup } = newStore(temp, "none");
  const v7 = `${base}/backups/telemetry_backup_20251202_030000.sqlite`;
  makeOldDatabase(v7, "v7", 20);
  await assertRefused(base, v7);
  makeOldDatabase(file, "v7", 50);
  const now = readDatabase(file);
  assert.match((await assertRefused(base, backup)).what, /v7.*v3/);
  const { kept, runs, schema_version } = await restored(base, v7);
  assert.deepEqual([runs, schema_version], [20, 7]);
  assert.deepEqual(readDatabase(file).tables, readDatabase(v7).tables);
  assert.deepEqual(readDatabase(String(kept)).tables, now.tables);
});

Deno.test("--replay of a later product's backup is not reported as done", async () => {
  using temp = new TempFolder();
  const { base, file } = newStore(temp, "none");
  makeOldDatabase(file, "v7", 50);
  const v7 = `${base}/backups/telemetry_backup_20251202_030000.sqlite`;
  makeOldDatabase(v7, "v7", 20);
  const { code, stdout, stderr } = await restore(base, v7, "--replay", "--json");
  if (code === 0) assert.ok(JSON.parse(stdout).replayed !== true && stderr !== "", stdout);
});

Deno.test("another page size is refused over an intact database and restored where there is none", async () => {
  using temp = new TempFolder();
  const store = newStore(temp);
  const { base, file, backup } = store;
  Deno.removeSync(backup);
  makeV3(backup, "backup", 30, 8192);
  assert.match((await assertRefused(base, backup)).what, /8192.*4096/);
  Deno.removeSync(file);
  await restored(base, backup);
  assertRestored(store);
});

Deno.test("another text encoding is refused over an intact database, which agents may have open", async () => {
  using temp = new TempFolder();
  const { base, file, backup } = newStore(temp, "none");
  sqlite(file, `PRAGMA encoding='UTF-16le'; ${schemaSql()}`);
  assert.match((await assertRefused(base, backup)).what, /encoding UTF-8, the database has UTF-16le/);
  Deno.removeSync(file);
  await restored(base, backup);
  assert.equal(valueIn(file, "SELECT count(*) FROM agent_runs"), 30);
});

Deno.test("another page size over a damaged database is restored, or refused without a change", async () => {
  using temp = new TempFolder();
  const store = newStore(temp);
  const { base, file, backup } = store;
  Deno.removeSync(backup);
  makeV3(backup, "backup", 30, 8192);
  damageInside(file);
  const before = treeOf(base);
  const { code } = await restore(base, backup);
  if (code === 0) assertRestored(store);
  else assert.deepEqual(treeOf(base), before);
});

Deno.test("restore does not change the backup", async () => {
  using temp = new TempFolder();
  const store = newStore(temp);
  const before = treeOf(`${store.base}/backups`);
  await restored(store.base, store.backup);
  assert.deepEqual(treeOf(`${store.base}/backups`), before);
  assertRestored(store);
});

Deno.test(
  "restore refuses the incomplete file of a killed restore and does not empty it",
  async () => {
    using temp = new TempFolder();
    const { base, file, backup } = newStore(temp);
    const partial = `${file}.partial`;
    Deno.copyFileSync(backup, partial);
    const bytes = Deno.readFileSync(partial);
    // Bounded here: SQLite waits without end for a file that is copied onto itself.
    const args = [...scriptArgs("backup_telemetry_db", base), "--restore", partial, "--yes"];
    const process = command(Deno.execPath(), args).spawn();
    const output = process.output();
    const timer = setTimeout(() => process.kill("SIGKILL"), 30_000);
    const { code, stderr } = await output;
    clearTimeout(timer);
    assert.ok(code === 1 || code === 2, `code ${code}`);
    assert.match(new TextDecoder().decode(stderr), /^backup_telemetry_db: /);
    assert.deepEqual(Deno.readFileSync(partial), bytes);
  },
);

for (const flag of ["--dry-run", "--list", "--keep-days=3"]) {
  Deno.test(`--restore with ${flag} changes nothing, or is refused`, async () => {
    using temp = new TempFolder();
    const { base, backup } = newStore(temp);
    const before = treeOf(base);
    await restore(base, backup, flag);
    assert.deepEqual(treeOf(base), before);
  });
}

Deno.test("the hint for a bad backup does not name recover_database or setup_database", async () => {
  using temp = new TempFolder();
  const store = newStore(temp);
  const wrong: string[] = [];
  for (
    const name of ["a truncated file", "an empty file", "nothing", "a text file", "another application's database"]
  ) {
    const path = `${store.base}/backups/${name.replaceAll(" ", "_")}.sqlite`;
    NO_BACKUPS[name]!(path, store);
    const { code, stderr } = await restore(store.base, path);
    assert.equal(code, 1);
    const todo = stderr.split("\n")[1]!;
    if (/recover_database|setup_database/.test(todo)) wrong.push(`${name}: ${todo}`);
  }
  assert.deepEqual(wrong, []);
});

// ------------------------------------------------------------------------------------------------ older backups

const OWN_THINGS = `
  ALTER TABLE agent_runs ADD COLUMN team TEXT DEFAULT 'red';
  CREATE INDEX own_index ON agent_runs(host, start_time);
  CREATE TABLE own_table (id INTEGER PRIMARY KEY, note TEXT);
  INSERT INTO own_table (note) VALUES ('one'), ('two');
  CREATE VIEW own_view AS SELECT agent_name, count(*) AS runs FROM agent_runs GROUP BY agent_name;`;

for (const kind of UPGRADABLE) {
  Deno.test(`a ${kind} backup is upgraded with all rows and user-defined objects`, async () => {
    using temp = new TempFolder();
    const { base, file } = newStore(temp);
    const backup = `${base}/backups/telemetry.backup.20251205.sqlite`;
    makeOldDatabase(backup, kind);
    sqlite(backup, OWN_THINGS);
    if (kind.startsWith("v2_recovered") || kind === "says3_is2") {
      sqlite(backup, `UPDATE agent_runs SET custom_metadata='{"a": 1}' WHERE rowid % 2`);
    }
    const before = readDatabase(backup);
    const { from_version, schema_version } = await restored(base, backup);
    assert.deepEqual([from_version, schema_version], [kind === "v1" ? 1 : 2, 3]);
    const after = readDatabase(file);
    assert.deepEqual([after.check, after.journal], ["ok", "wal"]);
    for (const [name, { columns, rows }] of Object.entries(before.tables)) {
      const now = after.tables[name]!;
      assert.deepEqual(now.columns.slice(0, columns.length), columns, name);
      const kept = now.rows.map((row) => Object.fromEntries(columns.map(([column]) => [column, row[column]])));
      assert.deepEqual(kept.slice(0, rows.length), rows, name);
    }
    for (const name of ["own_index", "own_table", "own_view"]) assert.equal(after.sql[name], before.sql[name]);
    const columns = after.tables["agent_runs"]!.columns.map(([name]) => name);
    for (const name of ["insight_id", "product_family", "subdomain"]) assert.ok(columns.includes(name), name);
    assert.ok(after.tables["commits"]);
    assert.deepEqual(readDatabase(backup).sql, before.sql, "the backup itself is not upgraded");
  });
}

// ------------------------------------------------------------------------------------------------ damaged databases

function damageInside(file: string): void {
  const bytes = Deno.readFileSync(file);
  Deno.writeFileSync(file, bytes.fill(0x55, 4096 * 4, bytes.length - 4096));
}

const DAMAGES: Record<string, (file: string) => void> = {
  "damaged inside of pages": damageInside,
  "whose header is destroyed": (file) => {
    const bytes = Deno.readFileSync(file);
    Deno.writeFileSync(file, bytes.fill(0, 0, 100));
  },
  "that is cut short": (file) => Deno.truncateSync(file, 8192),
  "that is cut inside of a page": (file) => Deno.truncateSync(file, 5000),
  "of 0 bytes": (file) => Deno.truncateSync(file, 0),
  "that is a text file": (file) => Deno.writeTextFileSync(file, "this is a note, not a database\n".repeat(300)),
  "of another application": (file) => {
    Deno.removeSync(file);
    sqlite(file, "PRAGMA journal_mode=WAL; CREATE TABLE bookmarks (url); INSERT INTO bookmarks VALUES (1)");
  },
};

for (const [name, damage] of Object.entries(DAMAGES)) {
  for (const wal of [false, true]) {
    Deno.test(
      `restore keeps and replaces a database ${name}${wal ? ", with a WAL" : ""}`,
      async () => {
        using temp = new TempFolder();
        const store = newStore(temp);
        const { base, file, backup } = store;
        damage(file);
        const files = wal ? ["", "-wal", "-shm"] : [""];
        if (wal) Deno.writeFileSync(`${file}-wal`, new Uint8Array(50_000).fill(7));
        if (wal) Deno.writeFileSync(`${file}-shm`, new Uint8Array(32_768).fill(9));
        const was = files.map((end) => Deno.readFileSync(file + end));
        const { kept } = await restoreBackup(layoutOf(base), backup);
        assert.deepEqual(keptIn(base), [slashes(kept!)]);
        // A look at the file by SQLite may write the index of a WAL anew; it says nothing that the WAL does not.
        for (const [i, end] of files.entries()) {
          if (end !== "-shm") assert.deepEqual(Deno.readFileSync(kept + end), was[i], `kept${end}`);
        }
        assert.ok(["", "-wal", "-shm"].every((end) => !wal || Deno.statSync(kept + end).isFile));
        assertRestored(store);
        assert.ok(listOtherCopies(layoutOf(base)).some(({ path }) => path === kept), "--list shows the copy");
      },
    );
  }
}

Deno.test("restore without a database keeps nothing", async () => {
  using temp = new TempFolder();
  const store = newStore(temp, "none");
  assert.equal((await restored(store.base, store.backup))["kept"], null);
  assertRestored(store);
});

Deno.test("restore keeps and does not use the WAL of a missing database", async () => {
  using temp = new TempFolder();
  const store = newStore(temp);
  const { base, file, backup } = store;
  using live = new DatabaseSync(file);
  live.exec("PRAGMA wal_autocheckpoint=0; UPDATE agent_runs SET agent_name='only in the WAL'");
  const wal = Deno.readFileSync(`${file}-wal`);
  // Not by SQLite, which would bring it in: as it is after a crash.
  live.close();
  Deno.removeSync(file);
  Deno.writeFileSync(`${file}-wal`, wal);
  const { kept } = await restored(base, backup);
  const wals = Object.keys(treeOf(`${base}/db`)).filter((name) => name.endsWith(".sqlite-wal"));
  assert.equal(wals.length, 1);
  assert.deepEqual(Deno.readFileSync(`${base}/db/${wals[0]}`), wal);
  assert.ok(kept === `${base}/db/${wals[0]}` || Deno.statSync(String(kept)).isFile, "what is told is there");
  assert.ok(Deno.statSync(String(kept)).isFile, `${kept} is said to be what was there, but is no file`);
  sqlite(file, "SELECT 1");
  assertRestoredBeside(store);
});

function assertRestoredBeside({ file }: Store): void {
  const { check, tables } = readDatabase(file);
  assert.equal(check, "ok");
  assert.equal(tables["agent_runs"]!.rows.length, 30);
  assert.ok(tables["agent_runs"]!.rows.every((row) => row["agent_name"] === "backup"));
}

Deno.test("the kept copy includes what is only in the WAL", async () => {
  using temp = new TempFolder();
  const store = newStore(temp);
  const { base, file, backup } = store;
  {
    using live = new DatabaseSync(file);
    live.exec("PRAGMA wal_autocheckpoint=0; UPDATE agent_runs SET agent_name='only in the WAL'");
    const { kept } = await restored(base, backup);
    assert.equal(valueIn(String(kept), "SELECT count(*) FROM agent_runs WHERE agent_name='only in the WAL'"), 60);
    const row = live.prepare("SELECT count(*) AS runs, min(agent_name) AS agent FROM agent_runs").get();
    assert.deepEqual({ ...row }, { runs: 30, agent: "backup" }, "the open connection sees the new state");
  }
  assertRestored(store);

  // The same, as a killed agent leaves it: nobody has the files open.
  const killed = newStore(new TempFolderIn(temp));
  const copy = `${temp.path}/copy`;
  {
    using live = new DatabaseSync(killed.file);
    live.exec("PRAGMA wal_autocheckpoint=0; UPDATE agent_runs SET agent_name='only in the WAL'");
    for (const end of ["", "-wal"]) Deno.copyFileSync(killed.file + end, copy + end);
  }
  for (const end of ["", "-wal"]) Deno.renameSync(copy + end, killed.file + end);
  const { kept } = await restored(killed.base, killed.backup);
  assert.equal(valueIn(String(kept), "SELECT count(*) FROM agent_runs WHERE agent_name='only in the WAL'"), 60);
  assertRestored(killed);
});

testWith(["links"], "a backup that is named by a link comes with its WAL, and nothing is left beside it", async () => {
  using temp = new TempFolder();
  const store = newStore(temp);
  const [real, link] = [`${temp.path}/real/copy.sqlite`, `${temp.path}/link.sqlite`];
  Deno.mkdirSync(`${temp.path}/real`);
  Deno.symlinkSync(real, link);
  const live = new DatabaseSync(store.backup);
  live.exec("PRAGMA wal_autocheckpoint=0; UPDATE agent_runs SET host='only in the WAL'");
  for (const end of ["", "-wal"]) Deno.copyFileSync(store.backup + end, real + end);
  live.close();
  for (const writable of [store.base, temp.path]) {
    const access = [`--allow-read=${temp.path}`, `--allow-write=${writable}`];
    const script = `${ROOT}scripts/backup_telemetry_db.ts`;
    const args = ["run", "-q", "--no-prompt", ...access, script, "--base", store.base, "--restore", link, "--yes"];
    const { code, stderr } = await run(Deno.execPath(), args);
    assert.deepEqual([code, stderr], [0, ""]);
    assert.equal(valueIn(store.file, "SELECT count(*) FROM agent_runs WHERE host='only in the WAL'"), 30);
  }
});

testWith(["mount"], "a backup on a read-only disk is restored", async () => {
  using temp = new TempFolder();
  const store = newStore(temp);
  using mount = new ReadOnlyMount(`${store.base}/backups`);
  const backup = `${mount.path}/telemetry_backup_20251201_030000.sqlite`;
  // With write access by Deno, but not by the file system.
  const script = `${ROOT}scripts/backup_telemetry_db.ts`;
  const flags = ["--base", store.base, "--restore", backup, "--yes"];
  const { code, stderr } = await run(Deno.execPath(), ["run", "-q", "-A", script, ...flags]);
  assert.deepEqual([code, stderr], [0, ""]);
  assertRestored(store);
});

Deno.test("the hint for a backup that only another program can write to works", async () => {
  using temp = new TempFolder();
  const { base, file, backup } = newStore(temp);
  sqlite(backup, "CREATE TRIGGER own AFTER INSERT ON agent_runs BEGIN SELECT foreign_one(new.run_id); END");
  const { what, todo } = await assertRefused(base, backup, ["--replay"]);
  assert.match(what, /no such function: foreign_one/);
  assert.ok(what.includes(backup), what);
  const [, flags] = /run deno task .*recover_database --base \S+ (.*), which/.exec(todo)!;
  assert.equal((await runScript("recover_database", base, flags!.split(" "))).code, 0);
  assert.equal(valueIn(file, "SELECT count(*) FROM agent_runs"), 90);
});

/** A folder that goes with another one. */
class TempFolderIn extends TempFolder {
  constructor(parent: TempFolder) {
    super(parent.path);
  }
}

// ------------------------------------------------------------------------------------------------ asking, choosing

Deno.test("restore without --yes and without a terminal is refused and changes nothing", async () => {
  using temp = new TempFolder();
  const { base, backup } = newStore(temp);
  const before = treeOf(base);
  const { code, stderr } = await runScript("backup_telemetry_db", base, ["--restore", backup]);
  assert.deepEqual([code, stderr.trimEnd().split("\n").length], [2, 2]);
  assert.match(stderr, /--yes/);
  assert.deepEqual(treeOf(base), before);
});

Deno.test("--restore takes a path that starts in the store", async () => {
  using temp = new TempFolder();
  const { base, file, backup } = newStore(temp);
  assert.equal((await restored(base, "backups/telemetry_backup_20251201_030000.sqlite"))["path"], backup);
  assert.equal(valueIn(file, "SELECT count(*) FROM agent_runs"), 30);
});

testWith(["python", "terminal"], "on a terminal, n cancels, Ctrl-D interrupts and y restores", async () => {
  using temp = new TempFolder();
  const store = newStore(temp);
  const { base, backup } = store;
  const line = [Deno.execPath(), ...scriptArgs("backup_telemetry_db", base), "--restore", backup].join(" ");
  async function answer(text: string): Promise<Output> {
    const process = command("script", ["-qec", line, "/dev/null"], { stdin: "piped" }).spawn();
    const writer = process.stdin.getWriter();
    await writer.write(new TextEncoder().encode(text));
    await writer.close();
    const { code, stdout, stderr } = await process.output();
    const decoder = new TextDecoder();
    return { code, stdout: decoder.decode(stdout), stderr: decoder.decode(stderr) };
  }
  const before = treeOf(base);
  for (const no of ["n\n", "\n", "yesterday\n"]) {
    const { code, stdout } = await answer(no);
    assert.equal(code, 1, stdout);
    assert.match(stdout, /warning: nothing was restored/);
    assert.match(stdout, /Replace .*telemetry\.sqlite.*telemetry_backup_.*\[y\/N\]/);
    assert.deepEqual(treeOf(base), before);
  }
  const interrupted = await answer("\x04");
  assert.equal(interrupted.code, 130, interrupted.stdout);
  assert.deepEqual(treeOf(base), before);
  const { code, stdout } = await answer("y\n");
  assert.equal(code, 0, stdout);
  assertRestored(store);
});

Deno.test("latest is the newest of both kinds by name, except those dated in the future", async () => {
  using temp = new TempFolder();
  const { base, file, backup } = newStore(temp);
  // A file that was written clearly later than the latest by name would be told of.
  const written = Math.floor(Date.now() / 1000);
  const put = (name: string, agent: string) => {
    makeV3(`${base}/backups/${name}`, agent, 3);
    Deno.utimeSync(`${base}/backups/${name}`, written, written);
  };
  put("telemetry.backup.20251202.sqlite", "daily");
  put(`telemetry_backup_${new Date().getFullYear() + 1}0601_000000.sqlite`, "next_year");
  put("telemetry.before_v3_20260101_000000.sqlite", "before_v3");
  put("telemetry_backup_20251301_000000.sqlite", "no_such_month");
  // Copied last, and older by its name.
  Deno.utimeSync(backup, written + 1, written + 1);
  const newest = () => valueIn(file, "SELECT min(agent_name) FROM agent_runs");
  await restored(base, "latest");
  assert.equal(newest(), "daily");
  put("telemetry_backup_20251202_000001.sqlite", "full");
  await restored(base, "latest");
  assert.equal(newest(), "full");
  put("telemetry.backup.20251202_235959.sqlite", "daily_later");
  await restored(base, "latest");
  assert.equal(newest(), "daily_later");
  assert.equal(keptIn(base).length, 3, "each has its own safety copy, also within a second");
});

Deno.test("latest without backups is an error", async () => {
  using temp = new TempFolder();
  const { base, backup } = newStore(temp);
  Deno.removeSync(backup);
  assert.match((await assertRefused(base, "latest")).what, /no backup/);
  Deno.removeSync(`${base}/backups`);
  assert.match((await assertRefused(base, "latest")).what, /no backup/);
});

Deno.test("a backup outside of the store without permission prints the whole command", async () => {
  using temp = new TempFolder();
  const { base, backup } = newStore(temp);
  const elsewhere = `${temp.path}/elsewhere.sqlite`;
  Deno.renameSync(backup, elsewhere);
  const before = treeOf(base);
  const script = [`${ROOT}scripts/backup_telemetry_db.ts`, "--base", base, "--restore", elsewhere, "--yes"];
  const access = [`--allow-read=${base}`, `--allow-write=${base}`];
  const { code, stdout, stderr } = await run(Deno.execPath(), ["run", "--no-prompt", ...access, ...script]);
  assert.deepEqual([code, stdout], [1, ""]);
  assert.match(stderr, /^backup_telemetry_db: .*elsewhere\.sqlite\n {2}-> run: deno run --allow-read=.*\n$/);
  assert.deepEqual(treeOf(base), before);
});

// ------------------------------------------------------------------------------------------------ --replay

type Line = Record<string, unknown>;

/** The last line of each run, read without the code that is tested. */
function lastLines(raw: string): Map<string, Line> {
  const last = new Map<string, Line>();
  const files = [...Deno.readDirSync(raw)].map(({ name }) => name).filter((name) => name.endsWith(".ndjson")).sort();
  for (const name of files) {
    for (const line of readLog(`${raw}/${name}`).split("\n")) {
      if (!line.endsWith("}")) continue; // nothing, or still being written
      const record: Line = JSON.parse(line);
      if (record["record_type"] === "run") last.set(String(record["run_id"]), record);
    }
  }
  return last;
}

function rowsOf(file: string): Map<string, Line> {
  const db = new DatabaseSync(file, { readOnly: true });
  const rows = db.prepare("SELECT * FROM agent_runs").all().map((row) => [String(row["run_id"]), { ...row }] as const);
  db.close();
  return new Map(rows);
}

const TIMES = ["created_at", "updated_at"];
const MARKS = ["api_posted", "api_posted_at", "api_retry_count"];

Deno.test("--replay restores every run of the log in its last state, and every api_posted marker", async () => {
  using temp = new TempFolder();
  const base = `${temp.path}/store`;
  assert.equal((await runScript("setup_storage", base, ["--with-database"])).code, 0);
  const file = `${base}/db/telemetry.sqlite`;
  await using client = new TelemetryClient({ base, onWarning: () => {} });
  const early = await client.startRun("early", "job", { product: "p", metrics_json: { a: 1 } });
  const open = await client.startRun("open", "job");
  for (let i = 0; i < 5; i++) {
    await client.trackRun("before", "job", (run) => run.setMetrics({ items_discovered: i, i }));
  }
  assert.equal((await runScript("backup_telemetry_db", base)).code, 0);
  await client.endRun(early, { status: "partial", error_summary: "é 🚀" });
  for (let i = 0; i < 5; i++) {
    await client.trackRun("after", "job", (run) => run.setMetrics({ product_family: "f", i }));
  }
  const openLater = await client.startRun("open_later", "job");
  sqlite(
    file,
    "UPDATE agent_runs SET api_posted=1, api_posted_at='2026-01-01T00:00:00+00:00' WHERE agent_name<>'open'",
  );
  const before = rowsOf(file);
  const logged = lastLines(`${base}/raw`);
  assert.deepEqual([before.size, logged.size], [13, 13]);

  const told = await restore(base, "latest");
  assert.equal(told.code, 0);
  // The run that has just started is left to its agent, and counts after 20 s.
  assert.match(told.stdout, /the log has [67] runs that the backup lacks or has in an older state: --replay adds them/);
  assert.equal(rowsOf(file).size, 7);
  // The marks of what is there when --replay runs: put back what was there first.
  await restored(base, keptIn(base)[0]!);
  assert.deepEqual(rowsOf(file), before);

  const { newer_in_log, runs, replayed } = await restored(base, "latest", "--replay");
  assert.ok(newer_in_log === 6 || newer_in_log === 7, `${newer_in_log}`);
  assert.deepEqual([runs, replayed], [13, true]);
  const after = rowsOf(file);
  assert.deepEqual([...after.keys()].sort(), [...before.keys()].sort());
  for (const [id, row] of after) {
    const line = logged.get(id)!;
    for (const [column, value] of Object.entries(row)) {
      if (TIMES.includes(column)) assert.ok(value, `${id} ${column}`);
      else if (MARKS.includes(column)) assert.equal(value, before.get(id)![column], `${id} ${column}`);
      else assert.equal(value, line[column], `${id} ${column}`);
    }
  }
  assert.equal(after.get(open)!["status"], "running");
  assert.equal(after.get(openLater)!["status"], "running");
  // A run that was open all the while ends in the restored database.
  await client.endRun(open);
  await client.close();
  assert.equal(rowsOf(file).get(open)!["status"], "success");
});

function runLine(id: string, fields: Line = {}): string {
  const run = {
    run_id: id,
    schema_version: 3,
    agent_name: "a",
    trigger_type: "cli",
    start_time: "2025-12-10T10:00:00.123456+00:00",
    end_time: null,
    status: "running",
    items_discovered: 0,
    ...fields,
    record_type: "run",
  };
  return `${JSON.stringify(run)}\n`;
}
const ENDED = { status: "success", end_time: "2025-12-10T11:30:00+00:00" };

Deno.test("--replay reads old logs", async () => {
  using temp = new TempFolder();
  const { base, file, backup } = newStore(temp);
  sqlite(
    backup,
    `INSERT INTO agent_runs (run_id, agent_name, start_time, status, end_time, api_posted, api_posted_at, created_at)
      VALUES ('ended', 'a', 't', 'success', 'e', 1, 'in the backup', 'c'),
             ('started', 'a', 't', 'running', NULL, 0, NULL, 'c')`,
  );
  sqlite(
    file,
    `INSERT INTO agent_runs (run_id, agent_name, start_time, status, api_posted, api_posted_at) VALUES
      ('started', 'a', 't', 'success', 1, 'in the database'), ('glued', 'a', 't', 'success', 1, NULL)`,
  );
  const gzipped = gzipSync(runLine("gzipped") + runLine("gzipped", ENDED));
  Deno.writeFileSync(`${base}/raw/events_20251209.ndjson.gz`, gzipped);
  Deno.writeTextFileSync(
    `${base}/raw/events_20251210.ndjson`,
    "\ufeff" + runLine("ended", { product: "stale" }) + runLine("started") + runLine("started", ENDED) +
      runLine("posted", { ...ENDED, api_posted: 1, api_posted_at: "in the log" }) + runLine("posted", ENDED) +
      runLine("detected", { trigger_type: "detector" }) +
      runLine("old", { ...ENDED, schema_version: 1, metrics: { pages: 1, deep: [1, { a: "é" }] } }) +
      runLine("object", { ...ENDED, metrics_json: { pages: 2 } }) +
      runLine("half").slice(0, 60) + runLine("glued", ENDED) +
      runLine("back", ENDED) + runLine("back") +
      runLine("crlf", ENDED).replace("\n", "\r\n") + "\0\0\0\0" + runLine("nul", ENDED) +
      `{"run_id": "started", "event_type": "checkpoint", "timestamp": "t", "payload_json": null, "id": null, "record_type": "event"}\n`,
  );
  const { stderr, stdout, code } = await restore(base, backup, "--replay", "--json");
  assert.equal(code, 0);
  assert.equal(JSON.parse(stdout).refused, 1);
  assert.match(stderr, /1 run in the log violates/);
  const rows = rowsOf(file);
  assert.equal(rows.has("detected"), false);
  const state = (
    id: string,
  ) => [rows.get(id)?.["status"], rows.get(id)?.["api_posted"], rows.get(id)?.["api_posted_at"]];
  assert.deepEqual(state("ended"), ["success", 1, "in the backup"]);
  assert.equal(rows.get("ended")!["product"], null);
  assert.deepEqual(state("started"), ["success", 1, "in the database"]);
  assert.deepEqual(state("posted"), ["success", 1, "in the log"]);
  assert.deepEqual(state("gzipped"), ["success", 0, null]);
  assert.deepEqual(state("glued"), ["success", 1, null]);
  assert.deepEqual(state("back"), ["success", 0, null]);
  for (const id of ["crlf", "nul"]) assert.deepEqual(state(id), ["success", 0, null], id);
  assert.deepEqual(JSON.parse(String(rows.get("old")!["metrics_json"])), { pages: 1, deep: [1, { a: "é" }] });
  assert.deepEqual(JSON.parse(String(rows.get("object")!["metrics_json"])), { pages: 2 });
  assert.deepEqual(TIMES.map((name) => rows.get("crlf")![name]), ["2025-12-10 10:00:00", "2025-12-10 11:30:00"]);
  assert.equal(rows.get("started")!["created_at"], "c");
  assert.equal([...rows.keys()].filter((id) => id.startsWith("backup-")).length, 30, "runs of the backup alone stay");
});

Deno.test("--replay keeps runs that only the replaced database has", async () => {
  using temp = new TempFolder();
  const { base, file, backup } = newStore(temp);
  const { stderr } = await restore(base, backup, "--replay");
  const rows = rowsOf(file);
  // "The database ends with every run that was ever recorded" (issue 4).
  assert.equal([...rows.keys()].filter((id) => id.startsWith("current-")).length, 60, stderr);
});

Deno.test("--replay over a damaged database keeps the readable api_posted markers", async () => {
  using temp = new TempFolder();
  const { base, file } = newStore(temp, "none");
  Deno.removeSync(`${base}/raw`);
  copyFolder(`${SAMPLE}/base/raw`, `${base}/raw`);
  Deno.copyFileSync(`${SAMPLE}/databases/damaged.sqlite`, file);
  const { code, stderr } = await restore(base, "latest", "--replay");
  assert.equal(code, 0, stderr);
  const sound = `${temp.path}/sound.sqlite`;
  Deno.copyFileSync(`${SAMPLE}/base/db/telemetry.sqlite`, sound);
  const posted = valueIn(sound, "SELECT count(*) FROM agent_runs WHERE api_posted=1");
  const marked = valueIn(file, "SELECT count(*) FROM agent_runs WHERE api_posted=1");
  // The index on api_posted is sound, and leads to every run_id that a sound page holds.
  assert.ok(Number(marked) > 0.8 * Number(posted), `${marked} of ${posted} marks: ${stderr}`);
});

const AGENT = `
const { TelemetryClient } = await import("${ROOT_URL}mod.ts");
const client = new TelemetryClient({ base: Deno.args[0], onWarning: console.log });
console.log("begun");
const end = new Response(Deno.stdin.readable).text().then(() => false);
for (let goesOn = true; goesOn;) {
  await client.trackRun("live", "job", () => {});
  goesOn = await Promise.race([end, new Promise((resolve) => setTimeout(resolve, 1, true))]);
}
await client.close();
`;

/** Waits until something is so. */
async function until(isSo: () => boolean): Promise<void> {
  for (const end = performance.now() + 10_000; !isSo();) {
    assert.ok(performance.now() < end, "never so");
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

const WITHOUT_RUNS: Record<string, (file: string) => void> = {
  "of 0 bytes": (file) => Deno.truncateSync(file, 0),
  "without tables": (file) => {
    Deno.removeSync(file);
    sqlite(file, "CREATE TABLE t (a); DROP TABLE t");
  },
  "without agent_runs": (file) => sqlite(file, "DROP TABLE agent_runs"),
};
for (const [name, change] of Object.entries(WITHOUT_RUNS)) {
  Deno.test(`--replay replaces a database ${name} and keeps it with its WAL`, async () => {
    using temp = new TempFolder();
    const { base, file, backup } = newStore(temp);
    change(file);
    const wal = new Uint8Array(5000).fill(7);
    if (name === "of 0 bytes") Deno.writeFileSync(`${file}-wal`, wal);
    Deno.writeTextFileSync(`${base}/raw/events_20251210.ndjson`, runLine("logged", ENDED));
    const { code, stdout } = await restore(base, backup, "--replay", "--json");
    assert.equal(code, 0);
    const { runs, kept } = JSON.parse(stdout);
    assert.equal(runs, 31);
    if (name === "of 0 bytes") assert.deepEqual(Deno.readFileSync(`${kept}-wal`), wal);
  });
}

Deno.test("--replay beside a live agent loses no run of the log", async () => {
  using temp = new TempFolder();
  const base = `${temp.path}/store`;
  assert.equal((await runScript("setup_storage", base, ["--with-database"])).code, 0);
  const file = `${base}/db/telemetry.sqlite`;
  assert.equal((await runScript("backup_telemetry_db", base)).code, 0);
  const script = `${temp.path}/agent.ts`;
  Deno.writeTextFileSync(script, AGENT);
  const agent = command(Deno.execPath(), ["run", "--quiet", "--allow-all", script, base], { stdin: "piped" }).spawn();
  const output = agent.output();
  try {
    await until(() => lastLines(`${base}/raw`).size > 20);
    await restored(base, "latest", "--replay");
    await new Promise((resolve) => setTimeout(resolve, 200));
  } finally {
    await agent.stdin.close();
    const { code, stderr } = await output;
    assert.deepEqual([code, new TextDecoder().decode(stderr)], [0, ""]);
  }
  const rows = rowsOf(file);
  const ended = [...lastLines(`${base}/raw`)].filter(([, { status }]) => status === "success").map(([id]) => id);
  const missing = ended.filter((id) => rows.get(id)?.["status"] !== "success");
  assert.equal(missing.length, 0, `${missing.length} of ${ended.length} ended runs are not in the database`);
});

/** Marks one run after the other in the database alone, as the Python client does, and says which. */
const MARKER = `
import { DatabaseSync } from "node:sqlite";
import { gzipSync } from "node:zlib";
const db = new DatabaseSync(Deno.args[0], { timeout: 10000, enableForeignKeyConstraints: false });
const ids = db.prepare("SELECT run_id FROM agent_runs").all();
const mark = db.prepare("UPDATE agent_runs SET api_posted=1 WHERE run_id=?");
for (const { run_id } of ids) {
  if (mark.run(run_id).changes === 1) console.log(run_id);
  await new Promise((resolve) => setTimeout(resolve, 1));
}
`;

Deno.test("--replay beside a program that posts loses no api_posted marker", async () => {
  using temp = new TempFolder();
  const { base, file, backup } = newStore(temp, "none");
  makeV3(file, "posted", 6000);
  sqlite(file, "PRAGMA journal_mode=WAL");
  const script = `${temp.path}/marker.ts`;
  Deno.writeTextFileSync(script, MARKER);
  const marker = command(Deno.execPath(), ["run", "--quiet", "--allow-all", script, file]).spawn();
  const output = marker.output();
  try {
    await until(() => Number(valueIn(file, "SELECT sum(api_posted) FROM agent_runs")) > 50);
    await restored(base, backup, "--replay");
    await new Promise((resolve) => setTimeout(resolve, 100));
  } finally {
    marker.kill("SIGKILL");
  }
  const said = new TextDecoder().decode((await output).stdout).split("\n").slice(0, -1);
  const marked = new Set(rowsOf(file).values().filter((row) => row["api_posted"] === 1).map((row) => row["run_id"]));
  const lost = said.filter((id) => !marked.has(id));
  assert.equal(lost.length, 0, `${lost.length} of ${said.length} marks are lost`);
});

// ------------------------------------------------------------------------------------------------ the Python scripts

const PYTHON_BACKUP = `
import sqlite3, sys
source, copy = sqlite3.connect(sys.argv[1]), sqlite3.connect(sys.argv[2])
source.backup(copy)
copy.close()
source.close()
`;
const PYTHON_RESTORE = `
import shutil, sqlite3, sys
shutil.copy2(sys.argv[1], sys.argv[2])
db = sqlite3.connect(sys.argv[2])
assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
db.close()
`;

testWith(["python"], "Python and this toolkit restore each other's backups", async () => {
  using temp = new TempFolder();
  const { base, file } = newStore(temp);
  const content = readDatabase(file).tables;
  for (const name of ["telemetry.backup.20251205.sqlite", "telemetry_backup_20251206_120000.sqlite"]) {
    await python(PYTHON_BACKUP, file, `${base}/backups/${name}`);
  }
  for (const name of ["telemetry.backup.20251205.sqlite", "telemetry_backup_20251206_120000.sqlite"]) {
    sqlite(file, "DELETE FROM agent_runs WHERE rowid % 2");
    await restored(base, `${base}/backups/${name}`);
    assert.deepEqual(readDatabase(file).tables, content, name);
  }
  const ours: string[] = [];
  for (const script of ["backup_database", "backup_telemetry_db"]) {
    const { stdout } = await runScript(script, base, ["--json"]);
    ours.push(JSON.parse(stdout).path);
  }
  for (const backup of ours) {
    assert.deepEqual(readDatabase(backup).tables, content);
    sqlite(file, "DELETE FROM agent_runs");
    await python(PYTHON_RESTORE, backup, file);
    assert.deepEqual(readDatabase(file).tables, content, backup);
  }
});
