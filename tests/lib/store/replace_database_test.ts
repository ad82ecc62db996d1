/** Replacing a database: what it costs, and what it leaves alone. */
import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { listOtherCopies } from "../../../lib/backup/backup.ts";
import { restoreBackup } from "../../../lib/backup/restore.ts";
import { layoutOf } from "../../../lib/layout.ts";
import { recoverDatabase, removeStaleRecovery } from "../../../lib/recovery/recover.ts";
import { schemaSql } from "../../../lib/schema.ts";
import { holdOpen, run, scriptArgs, SmallDisk, TempFolder, testWith, treeOf } from "../../fixtures/mod.ts";

function makeDatabase(path: string, rows: number): void {
  using db = new DatabaseSync(path);
  db.exec(`${schemaSql()} WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${rows})
    INSERT INTO agent_runs (run_id, agent_name, start_time, status) SELECT 'run-' || i, 'a', 't', 'success' FROM n`);
}

function makeStore(temp: TempFolder, name = "store") {
  const layout = layoutOf(`${temp.path}/${name}`);
  for (const folder of [layout.db, layout.raw, layout.backups]) Deno.mkdirSync(folder, { recursive: true });
  makeDatabase(layout.database, 300);
  return layout;
}

/** Overwrites some pages, so that SQLite's check fails. */
function damage(path: string): void {
  const bytes = Deno.readFileSync(path);
  Deno.writeFileSync(path, bytes.fill(0x55, 4096 * 12, bytes.length - 4096));
}

/** The files that are checked while something is done, in order, and how many connections of this thread are closed. */
async function costOf(work: () => Promise<unknown>): Promise<{ checked: string[]; closed: number }> {
  const { prepare, close } = DatabaseSync.prototype;
  const cost = { checked: [] as string[], closed: 0 };
  DatabaseSync.prototype.prepare = function (sql, ...rest) {
    if (/quick_check|integrity_check/.test(sql)) cost.checked.push(this.location()!.replace(/^.*[\\/]/, ""));
    return prepare.call(this, sql, ...rest);
  };
  DatabaseSync.prototype.close = function () {
    cost.closed++;
    return close.call(this);
  };
  try {
    await work();
  } finally {
    Object.assign(DatabaseSync.prototype, { prepare, close });
  }
  return cost;
}

Deno.test("a recovery of an intact database checks twice: what is there, and what replaces it", async () => {
  using temp = new TempFolder();
  const layout = makeStore(temp);
  const { checked, closed } = await costOf(() => recoverDatabase(layout));
  assert.deepEqual(checked, ["telemetry.sqlite", "telemetry.recovering.sqlite"]);
  assert.ok(closed <= 10, `${closed} connections`);
});

Deno.test("a recovery of a damaged database also checks the file that SQLite has repaired in its place", async () => {
  using temp = new TempFolder();
  const layout = makeStore(temp);
  damage(layout.database);
  const { checked, closed } = await costOf(() => recoverDatabase(layout));
  assert.deepEqual(checked, ["telemetry.sqlite", "telemetry.recovering.sqlite", "telemetry.sqlite"]);
  assert.ok(closed <= 10, `${closed} connections`);
});

Deno.test("a restore checks twice: what replaces the database, and what is there", async () => {
  using temp = new TempFolder();
  const layout = makeStore(temp);
  const backup = `${layout.backups}/telemetry_backup_20251201_030000.sqlite`;
  makeDatabase(backup, 100);
  const { checked, closed } = await costOf(() => restoreBackup(layout, backup));
  assert.deepEqual(checked, ["telemetry.sqlite.partial", "telemetry.sqlite"]);
  assert.ok(closed <= 8, `${closed} connections`);
});

Deno.test("a replacement that is refused leaves the database and nothing else, and says what to do", async () => {
  using temp = new TempFolder();
  const layout = makeStore(temp);
  const backup = `${layout.backups}/telemetry_backup_20251201_030000.sqlite`;
  makeDatabase(backup, 100);
  // Without a header, only a rename can replace it.
  Deno.writeFileSync(layout.database, Deno.readFileSync(layout.database).fill(0, 0, 100));
  const before = treeOf(layout.base);
  const assertRefused = async (codes: string[]) => {
    for (const replace of [() => restoreBackup(layout, backup), () => recoverDatabase(layout)]) {
      await assert.rejects(replace, ({ code, hint }) => codes.includes(code) && /stop the agents/.test(hint));
    }
    const { reports: _, ...left } = treeOf(layout.base);
    assert.deepEqual(left, before);
  };
  const rename = Deno.renameSync;
  for (const [code, message] of [["locked", "sharing violation (os error 32)"], ["io", "busy (os error 16)"]]) {
    Deno.renameSync = () => {
      throw Object.assign(new Error(message), { code: "EBUSY" });
    };
    try {
      await assertRefused([code!]);
    } finally {
      Deno.renameSync = rename;
    }
  }
  if (Deno.build.os !== "windows") return;
  using _held = holdOpen(layout.database);
  await assertRefused(["locked", "permission"]);
});

testWith(
  ["folderSync"],
  "when the sync after the rename fails, the old WAL is not moved back beside the new database",
  async () => {
    using temp = new TempFolder();
    const layout = makeStore(temp);
    const { database } = layout;
    {
      using agent = new DatabaseSync(database);
      agent.exec("PRAGMA wal_autocheckpoint=0; UPDATE agent_runs SET output_summary=hex(zeroblob(2000))");
      Deno.copyFileSync(`${database}-wal`, `${temp.path}/wal`);
    }
    Deno.removeSync(database);
    Deno.renameSync(`${temp.path}/wal`, `${database}-wal`);
    const { renameSync } = Deno;
    const { syncSync } = Deno.FsFile.prototype;
    Deno.renameSync = (from, to) => {
      renameSync(from, to);
      if (to !== database) return;
      Deno.FsFile.prototype.syncSync = () => {
        throw Object.assign(new Error("input/output error"), { code: "EIO" });
      };
    };
    try {
      await assert.rejects(recoverDatabase(layout), /cannot sync .*preserved in/);
    } finally {
      Deno.renameSync = renameSync;
      Deno.FsFile.prototype.syncSync = syncSync;
    }
    assert.deepEqual(Object.keys(treeOf(layout.db)).filter((name) => name.startsWith("telemetry.sqlite")), [
      "telemetry.sqlite",
    ]);
    using db = new DatabaseSync(database);
    assert.equal(db.prepare("SELECT count(*) AS runs FROM agent_runs").get()!["runs"], 300);
    const [copy] = listOtherCopies(layout);
    assert.ok(Deno.statSync(`${copy!.path}-wal`).size > 100_000, "the WAL is preserved");
  },
);

Deno.test("sidecars that a killed recovery has moved aside go with the next one, and when there is nothing to do", async () => {
  for (const isKilledBeforeRename of [true, false]) {
    using temp = new TempFolder();
    const layout = makeStore(temp);
    const aside = `${layout.database}-wal.partial`;
    Deno.writeTextFileSync(aside, "moved aside");
    if (isKilledBeforeRename) {
      Deno.removeSync(layout.database);
      await recoverDatabase(layout);
    } else removeStaleRecovery(layout);
    assert.deepEqual(Object.keys(treeOf(layout.db)), ["telemetry.sqlite"]);
  }
});

testWith(["strace"], "a restore whose last sync fails loses nothing that was there", async () => {
  using temp = new TempFolder();
  const layout = makeStore(temp);
  const backup = `${layout.backups}/telemetry_backup_20251201_030000.sqlite`;
  Deno.copyFileSync(layout.database, backup);
  using agent = new DatabaseSync(layout.database);
  agent.exec("UPDATE agent_runs SET host='newer'");
  // The commit is in the WAL when its sync fails.
  const { code, stderr } = await run("strace", [
    ..."-f -qq -o /dev/null -e trace=fsync,fdatasync -e inject=fsync,fdatasync:error=EIO:when=1 -P".split(" "),
    `${layout.database}-wal`,
    Deno.execPath(),
    ...scriptArgs("backup_telemetry_db", layout.base, ["--restore", backup, "--yes"]),
  ]);
  assert.equal(code, 1, stderr);
  const [copy] = listOtherCopies(layout).map(({ path }) => path);
  assert.equal(stderr.includes(copy ?? layout.database), true, stderr);
  // What the next program finds if the agent is killed now.
  for (const end of ["", "-wal"]) Deno.copyFileSync(layout.database + end, `${temp.path}/killed.sqlite${end}`);
  using db = new DatabaseSync(copy ?? `${temp.path}/killed.sqlite`);
  assert.equal(db.prepare("SELECT count(*) AS runs FROM agent_runs WHERE host='newer'").get()!["runs"], 300);
});

testWith(["mount"], "a restore on a full disk leaves no partial and no copy", async () => {
  const failures: string[] = [];
  // With less, SQLite cannot take away sidecars that it could not complete.
  for (let free = 128 * 1024; failures.at(-1) !== "restored"; free += 256 * 1024) {
    using disk = new SmallDisk("16m");
    const layout = layoutOf(`${disk.path}/store`);
    for (const folder of [layout.db, layout.raw, layout.backups]) Deno.mkdirSync(folder, { recursive: true });
    const backup = `${layout.backups}/telemetry_backup_20251201_030000.sqlite`;
    makeDatabase(layout.database, 4000);
    makeDatabase(backup, 4000);
    const before = treeOf(layout.base);
    disk.fill(free);
    const kind = await restoreBackup(layout, backup).then(() => "restored", (error) => String(error.code));
    failures.push(kind);
    disk.free();
    if (kind === "restored") continue;
    assert.equal(kind, "disk_full", `with ${free} bytes free`);
    assert.deepEqual(treeOf(layout.base), before, `with ${free} bytes free`);
  }
  assert.ok(failures.length > 3, failures.join());
});
