import assert from "node:assert/strict";
import { schemaSql } from "../../lib/schema.ts";
import { command, runScript, scriptArgs, sqlite, TempFolder, testWith } from "../fixtures/mod.ts";

/** Files as killed scripts leave them, by folder. */
const STALE: Record<string, string[]> = {
  db: [
    "telemetry.sqlite.partial",
    "telemetry.sqlite.partial-journal",
    "telemetry.sqlite.partial-wal",
    "telemetry_before_restore_20251210_101112.sqlite.partial",
    "telemetry.corrupted.20251210_101112.sqlite-wal.partial",
  ],
  backups: ["telemetry_backup_20251210_101112.sqlite.partial", "telemetry.backup.20251210.sqlite.partial"],
  reports: ["recovery_20251210_101112.json.partial"],
  exports: ["agent_runs_20251210_101112.csv.partial"],
  config: ["schema.sql.partial"],
};
/** Files that stay: of users, of an interrupted recovery, and sidecars that it has moved aside. */
const OTHERS: Record<string, string[]> = {
  db: ["mine.sqlite.partial", "telemetry.recovering.sqlite", "telemetry.sqlite-wal.partial"],
  exports: ["report.csv.partial"],
};

function newStore(temp: TempFolder): string {
  const base = `${temp.path}/store`;
  for (const folder of ["raw", ...Object.keys(STALE)]) Deno.mkdirSync(`${base}/${folder}`, { recursive: true });
  sqlite(`${base}/db/telemetry.sqlite`, `PRAGMA journal_mode=WAL; ${schemaSql()}`);
  for (const files of [STALE, OTHERS]) {
    for (const path of pathsOf(base, files)) Deno.writeTextFileSync(path, "half a file");
  }
  return base;
}

function pathsOf(base: string, files: Record<string, string[]>): string[] {
  return Object.entries(files).flatMap(([folder, names]) => names.map((name) => `${base}/${folder}/${name}`));
}

function exists(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

const WRITES: Record<string, string[]> = {
  backup_database: ["db", "backups"],
  backup_telemetry_db: ["db", "backups"],
  export_csv: ["db", "exports"],
  setup_database: ["db", "config"],
  setup_storage: ["db", "backups", "reports", "exports", "config"],
};
for (const [script, folders] of Object.entries(WRITES)) {
  Deno.test(`${script} removes the partials of killed scripts in the folders that it writes`, async () => {
    using temp = new TempFolder();
    const base = newStore(temp);
    assert.equal((await runScript(script, base)).code, 0);
    const written = Object.fromEntries(folders.map((folder) => [folder, STALE[folder]!]));
    assert.deepEqual(pathsOf(base, written).filter(exists), []);
    assert.deepEqual(pathsOf(base, OTHERS).filter(exists), pathsOf(base, OTHERS));
  });
}

Deno.test("--check-only and --list remove no partial", async () => {
  using temp = new TempFolder();
  const base = newStore(temp);
  assert.equal((await runScript("recover_database", base, ["--check-only"])).code, 0);
  assert.equal((await runScript("backup_database", base, ["--list"])).code, 0);
  assert.deepEqual(pathsOf(base, STALE).filter(exists), pathsOf(base, STALE));
});

Deno.test("the partial of a running process stays", async () => {
  using temp = new TempFolder();
  const base = newStore(temp);
  const path = `${base}/db/telemetry.sqlite.partial`;
  using file = Deno.openSync(path, { read: true, write: true });
  file.lockSync(true);
  assert.equal((await runScript("backup_database", base)).code, 0);
  assert.ok(exists(path));
});

testWith(["signals"], "Ctrl-C says what is left, exits with 130, and the next run removes it", async () => {
  using temp = new TempFolder();
  const base = `${temp.path}/store`;
  for (const folder of ["db", "raw", "backups"]) Deno.mkdirSync(`${base}/${folder}`, { recursive: true });
  sqlite(
    `${base}/db/telemetry.sqlite`,
    `${schemaSql()} CREATE TABLE padding AS SELECT zeroblob(30000000) UNION ALL SELECT zeroblob(30000000)`,
  );
  const backups = () => [...Deno.readDirSync(`${base}/backups`)].map(({ name }) => name);
  for (let attempt = 1;; attempt++) {
    const process = command(Deno.execPath(), scriptArgs("backup_telemetry_db", base)).spawn();
    let hasEnded = false;
    const output = process.output().finally(() => hasEnded = true);
    while (!hasEnded && !backups().some((name) => name.endsWith(".partial"))) {
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    if (!hasEnded) process.kill("SIGINT");
    const { code, stderr } = await output;
    const said = new TextDecoder().decode(stderr);
    const left = backups().find((name) => name.endsWith(".partial"));
    // It may have ended before.
    if (left === undefined && attempt < 20) continue;
    assert.deepEqual([code, said], [
      130,
      `backup_telemetry_db: interrupted\n  -> ${base}/backups/${left} is incomplete: the next run removes it\n`,
    ]);
    break;
  }
  assert.equal((await runScript("backup_database", base)).code, 0);
  assert.deepEqual(backups().filter((name) => name.includes(".partial")), []);
});

testWith(["signals"], "Ctrl-C of a recovery names the copy of the database that it leaves", async () => {
  using temp = new TempFolder();
  const base = `${temp.path}/store`;
  for (const folder of ["db", "raw"]) Deno.mkdirSync(`${base}/${folder}`, { recursive: true });
  sqlite(`${base}/db/telemetry.sqlite`, schemaSql());
  const run = { agent_name: "a", start_time: "2025-12-10T00:00:00Z", status: "success", record_type: "run" };
  const lines = Array.from({ length: 100_000 }, (_, i) => JSON.stringify({ run_id: `r${i}`, ...run }));
  Deno.writeTextFileSync(`${base}/raw/events_20251210.ndjson`, `${lines.join("\n")}\n`);
  const copies = () =>
    [...Deno.readDirSync(`${base}/db`)].filter(({ name }) => /^telemetry\.before.*\.sqlite$/.test(name));
  const process = command(Deno.execPath(), scriptArgs("recover_database", base, ["--force"])).spawn();
  const output = process.output();
  while (copies().length === 0) await new Promise((resolve) => setTimeout(resolve, 1));
  process.kill("SIGINT");
  const { code, stderr } = await output;
  const [copy] = copies();
  assert.equal(code, 130);
  assert.equal(
    new TextDecoder().decode(stderr),
    `warning: ${base}/db/${copy!.name} is a copy of the database as it was: delete it when the database is healthy\n` +
      `recover_database: interrupted\n` +
      `  -> ${base}/db/telemetry.recovering.sqlite is incomplete: the next run removes it\n`,
  );
});
