/** Setups that meet a lock of another process. In a file of its own: it waits for the timeouts, about 16 s. */
import assert from "node:assert/strict";
import {
  Holder,
  interpreter,
  makeOldDatabase,
  readDatabase,
  runScript,
  TempFolder,
  testWith,
  treeOf,
} from "../fixtures/mod.ts";

/** Takes a lock and keeps it until it is killed. */
const LOCK = `
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
cursor = db.execute("BEGIN") if sys.argv[2].startswith("SELECT") else None
cursor = db.execute(sys.argv[2])
cursor.fetchone()
print("locked", flush=True)
time.sleep(120)
`;

const LOCKS: [what: string, kind: "v1" | "v2", journal: "wal" | "delete", statement: string][] = [
  ["a writer of a WAL database", "v1", "wal", "BEGIN IMMEDIATE"],
  ["a writer of a database without WAL", "v2", "delete", "BEGIN EXCLUSIVE"],
  ["a reader of a database without WAL", "v1", "delete", "SELECT * FROM agent_runs"],
];

testWith(["python"], "locked for longer than the timeouts: refused, nothing changed", async () => {
  // All at once: each waits for its timeouts.
  await Promise.all(LOCKS.map(async ([what, kind, journal, statement]) => {
    using temp = new TempFolder();
    const base = `${temp.path}/store`;
    Deno.mkdirSync(`${base}/db`, { recursive: true });
    const file = `${base}/db/telemetry.sqlite`;
    makeOldDatabase(file, kind, 500, journal);
    await using holder = await Holder.start(interpreter(), ["-c", LOCK, file, statement]);
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

/** The tree, but for what SQLite writes into its shared memory. */
function tree(base: string): Record<string, string> {
  const all = treeOf(base);
  if ("db/telemetry.sqlite-shm" in all) all["db/telemetry.sqlite-shm"] = "shared memory";
  return all;
}

/** Upgrades a v2 in one transaction, as another setup would, and takes its time before the end. */
const SLOW_UPGRADE = `
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN IMMEDIATE")
for name in ("product_family", "subdomain"):
    db.execute("ALTER TABLE agent_runs ADD COLUMN %s TEXT" % name)
db.execute("INSERT INTO schema_migrations (version) VALUES (3)")
print("locked", flush=True)
time.sleep(1.5)
db.execute("COMMIT")
`;

for (const journal of ["wal", "delete"] as const) {
  testWith(["python"], `upgraded by another while it waits for the lock (${journal} mode): ends well`, async () => {
    using temp = new TempFolder();
    const base = `${temp.path}/store`;
    Deno.mkdirSync(`${base}/db`, { recursive: true });
    const file = `${base}/db/telemetry.sqlite`;
    makeOldDatabase(file, "v2", 40, journal);
    await using _other = await Holder.start(interpreter(), ["-c", SLOW_UPGRADE, file]);
    const { code, stderr } = await runScript("setup_database", base);
    assert.deepEqual([code, stderr], [0, ""]);
    const { journal: mode, check, tables } = await readDatabase(file);
    assert.deepEqual([mode, check, tables["agent_runs"]?.rows.length], ["wal", "ok", 40]);
    assert.deepEqual(
      Object.keys(treeOf(base)).filter((path) => path.startsWith("backups/")),
      [],
      "nothing was ours to do",
    );
  });
}
