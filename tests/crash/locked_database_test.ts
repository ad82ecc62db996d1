/** Setups of a database that another process has locked. In its own file, because it waits for timeouts of about 16 s. */
import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import {
  holdDatabase,
  Holder,
  makeOldDatabase,
  readDatabase,
  runScript,
  sqlite,
  TempFolder,
  testWith,
  treeOf,
} from "../fixtures/mod.ts";

const LOCKS: [what: string, kind: "v1" | "v2", journal: "wal" | "delete", statements: string[]][] = [
  ["a writer of a WAL database", "v1", "wal", ["BEGIN IMMEDIATE"]],
  ["a writer of a database without WAL", "v2", "delete", ["BEGIN EXCLUSIVE"]],
  ["a reader of a database without WAL", "v1", "delete", ["BEGIN", "SELECT * FROM agent_runs"]],
];

Deno.test("setup refuses a database that is locked for longer than the timeouts, and changes nothing", async () => {
  // Concurrently, because each waits for its timeouts.
  await Promise.all(LOCKS.map(async ([what, kind, journal, statements]) => {
    using temp = new TempFolder();
    const base = `${temp.path}/store`;
    Deno.mkdirSync(`${base}/db`, { recursive: true });
    const file = `${base}/db/telemetry.sqlite`;
    makeOldDatabase(file, kind, 500, journal);
    await using holder = await holdDatabase(file, ...statements);
    const before = tree(base);
    const { code, stdout, stderr } = await runScript("setup_database", base, ["--json"]);
    assert.equal(code, 1, what);
    assert.match(stderr, /^setup_database: [^\n]+ locked [^\n]+\n {2}-> [^\n]+\n$/, what);
    assert.equal(JSON.parse(stdout).error.code, "locked", what);
    const after = tree(base);
    if (after["backups"] === "folder") delete after["backups"];
    assert.deepEqual(after, before, what);
    await holder.kill();
    assert.equal((await runScript("setup_database", base)).code, 0, what);
  }));
});

testWith(
  ["openRemoval"],
  "a database that was emptied beside an agent is replaced without waiting for that agent",
  async () => {
    using temp = new TempFolder();
    const base = `${temp.path}/store`;
    const file = `${base}/db/telemetry.sqlite`;
    assert.equal((await runScript("setup_storage", base, ["--with-database"])).code, 0);
    sqlite(file, "INSERT INTO agent_runs (run_id, agent_name, start_time) VALUES ('x', 'a', '2025-12-10')");
    const { code, stdout } = await runScript("backup_telemetry_db", base, ["--json"]);
    assert.equal(code, 0);
    const backup = JSON.parse(stdout).path;
    for (
      const [script, flags] of [
        ["recover_database", ["--with-backup", backup]],
        ["backup_telemetry_db", ["--restore", backup, "--yes"]],
      ] as const
    ) {
      await using _holder = await holdDatabase(file, "SELECT count(*) FROM agent_runs");
      Deno.truncateSync(file, 0);
      const start = performance.now();
      const { code, stderr } = await runScript(script, base, [...flags]);
      assert.equal(code, 0, stderr);
      // Three waits for the lock would take 15 s.
      assert.ok(performance.now() - start < 10_000, script);
      assert.match(stderr, /restart them/);
      using db = new DatabaseSync(file);
      assert.deepEqual(db.prepare("SELECT run_id FROM agent_runs").all().map((row) => row["run_id"]), ["x"]);
    }
  },
);

/** The tree without the content of the shared memory, which readers change. */
function tree(base: string): Record<string, string> {
  const all = treeOf(base);
  if ("db/telemetry.sqlite-shm" in all) all["db/telemetry.sqlite-shm"] = "shared memory";
  return all;
}

/** Upgrades a v2 in one transaction like another setup, and commits after 1.5 s. */
const SLOW_UPGRADE = `
import { DatabaseSync } from "node:sqlite";
const db = new DatabaseSync(Deno.args[0]);
db.exec("BEGIN IMMEDIATE");
for (const name of ["product_family", "subdomain"]) db.exec(\`ALTER TABLE agent_runs ADD COLUMN \${name} TEXT\`);
db.exec("INSERT INTO schema_migrations (version) VALUES (3)");
console.log("locked");
setTimeout(() => {
  db.exec("COMMIT");
  db.close();
}, 1500);
`;

for (const journal of ["wal", "delete"] as const) {
  Deno.test(
    `setup succeeds when another one upgrades the database while it waits (${journal} mode)`,
    async () => {
      using temp = new TempFolder();
      const base = `${temp.path}/store`;
      Deno.mkdirSync(`${base}/db`, { recursive: true });
      const file = `${base}/db/telemetry.sqlite`;
      makeOldDatabase(file, "v2", 40, journal);
      await using _other = await Holder.start(Deno.execPath(), ["eval", SLOW_UPGRADE, file]);
      const { code, stderr } = await runScript("setup_database", base);
      assert.deepEqual([code, stderr], [0, ""]);
      const { journal: mode, check, tables } = readDatabase(file);
      assert.deepEqual([mode, check, tables["agent_runs"]?.rows.length], ["wal", "ok", 40]);
      assert.deepEqual(
        Object.keys(treeOf(base)).filter((path) => path.startsWith("backups/")),
        [],
        "there was nothing left to do",
      );
    },
  );
}
