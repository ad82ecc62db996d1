import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { restoreBackup } from "../../../lib/backup/restore.ts";
import { layoutOf } from "../../../lib/layout.ts";
import { schemaSql } from "../../../lib/schema.ts";
import { OpenableBackup } from "../../../lib/sqlite/snapshot.ts";
import { TempFolder, testWith } from "../../fixtures/mod.ts";

function makeDatabase(path: string, ids: string[]): void {
  using db = new DatabaseSync(path);
  db.exec(schemaSql());
  const insert = db.prepare("INSERT INTO agent_runs (run_id, agent_name, start_time) VALUES (?, 'a', 't')");
  for (const id of ids) insert.run(id);
}

function makeStore(temp: TempFolder) {
  const layout = layoutOf(`${temp.path}/store`);
  for (const folder of [layout.db, layout.raw, layout.backups]) Deno.mkdirSync(folder, { recursive: true });
  makeDatabase(layout.database, ["current"]);
  const backup = `${layout.backups}/telemetry_backup_20251201_030000.sqlite`;
  makeDatabase(backup, ["backup"]);
  return { layout, backup };
}

const names = (folder: string) => [...Deno.readDirSync(folder)].map(({ name }) => name).sort();

Deno.test("a restore is complete when the log cannot be read once more, and warns", async () => {
  using temp = new TempFolder();
  const { layout, backup } = makeStore(temp);
  // The last call comes when the content is installed.
  const onProgress = (done: number, total: number) => {
    if (done < total) return;
    Deno.removeSync(layout.raw);
    Deno.writeTextFileSync(layout.raw, "a file");
  };
  const { kept, warnings, replayed } = await restoreBackup(layout, backup, { replay: true, onProgress });
  assert.deepEqual([typeof kept, replayed, warnings.length], ["string", true, 1]);
  assert.match(warnings[0]!, /is not in the database yet .*: run recover_database --force/);
  using db = new DatabaseSync(layout.database);
  assert.deepEqual(db.prepare("SELECT run_id FROM agent_runs ORDER BY 1").all().map(({ run_id }) => run_id), [
    "backup",
    "current",
  ]);
});

testWith(["modes"], "the copy of a read-only backup is as confidential, and a killed process's copy is removed", () => {
  using temp = new TempFolder();
  const { layout, backup } = makeStore(temp);
  Deno.chmodSync(backup, 0o600);
  const left = `${layout.db}/telemetry_backup_20200101_000000.sqlite.partial`;
  Deno.writeTextFileSync(left, "the copy of a killed restore");
  const query = Deno.permissions.querySync;
  // As without write permission for the backup.
  Deno.permissions.querySync = (permission) =>
    permission.name === "write"
      ? { state: "denied" } as Deno.PermissionStatus
      : query.call(Deno.permissions, permission);
  try {
    using opened = new OpenableBackup(layout, backup);
    assert.notEqual(opened.path, backup);
    assert.equal(Deno.statSync(opened.path).mode! & 0o777, 0o600);
    const partials = names(layout.db).filter((name) => name.endsWith(".partial"));
    assert.equal(partials.length, 1, partials.join());
  } finally {
    Deno.permissions.querySync = query;
  }
  assert.deepEqual(names(layout.db), ["telemetry.sqlite"]);
});
