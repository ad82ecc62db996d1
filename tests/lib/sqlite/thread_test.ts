import assert from "node:assert/strict";
import { TelemetryError } from "../../../lib/errors.ts";
import { Connection } from "../../../lib/sqlite/connection.ts";
import { ThreadConnection } from "../../../lib/sqlite/thread.ts";
import { TempFolder } from "../../fixtures/mod.ts";

function hasCode(code: string): (error: unknown) => boolean {
  return (error) => error instanceof TelemetryError && error.code === code;
}

Deno.test("thread: rows in, rows out, in the order in which they were asked for", async () => {
  await using db = await ThreadConnection.open(":memory:");
  const made = db.exec("CREATE TABLE t (a INTEGER PRIMARY KEY, b, c)");
  const filled = db.runAll("INSERT INTO t VALUES (?, ?, ?)", 3, [1, "one", 1.5, 2, null, 2 ** 40, 3, "a\0b 🚀", null]);
  const rows = db.all("SELECT a, b, c, hex(b) AS h FROM t WHERE a >= ?", 1);
  await Promise.all([made, filled]);
  assert.deepEqual(await rows, [
    { a: 1, b: "one", c: 1.5, h: "6F6E65" },
    { a: 2, b: null, c: 2 ** 40, h: "" },
    // The binding cuts text at a NUL when it reads.
    { a: 3, b: "a", c: null, h: "61006220F09F9A80" },
  ]);
  await db.runAll("INSERT INTO t VALUES (?, ?, ?)", 3, []);
  assert.deepEqual(await db.all("SELECT count(*) AS n FROM t"), [{ n: 3 }]);
});

Deno.test("thread: BLOBs come whole, also when several are asked for at once", async () => {
  await using db = await ThreadConnection.open(":memory:");
  const sizes = [0, 1, 100, 1_000_000];
  const all = await db.all(sizes.map((size) => `SELECT zeroblob(${size}) AS b, x'0102' AS c`).join(" UNION ALL "));
  assert.deepEqual(
    all.map(({ b, c }) => [(b as Uint8Array).length, [...c as Uint8Array]]),
    sizes.map((n) => [n, [1, 2]]),
  );
});

Deno.test("thread: errors are TelemetryErrors, and the next request is done", async () => {
  using temp = new TempFolder();
  await assert.rejects(ThreadConnection.open(`${temp.path}/none.sqlite`, { readOnly: true }), hasCode("permission"));
  await assert.rejects(ThreadConnection.open(`${temp.path}/no/folder.sqlite`), hasCode("permission"));
  Deno.writeTextFileSync(`${temp.path}/text`, "text ".repeat(1000));
  await using text = await ThreadConnection.open(`${temp.path}/text`);
  await assert.rejects(text.all("SELECT * FROM sqlite_schema"), hasCode("not_a_database"));
  await using db = await ThreadConnection.open(`${temp.path}/db.sqlite`);
  await db.exec("CREATE TABLE t (a INTEGER PRIMARY KEY CHECK(a > 0))");
  await assert.rejects(db.runAll("INSERT INTO t VALUES (?)", 1, [1, -1, 2]), hasCode("invalid_record"));
  await assert.rejects(db.exec("nonsense"), hasCode("io"));
  // What came before the one that was refused is there.
  assert.deepEqual(await db.all("SELECT a FROM t"), [{ a: 1 }]);
  using other = Connection.open(`${temp.path}/db.sqlite`);
  assert.equal(other.get("SELECT count(*) AS n FROM t")?.["n"], 1);
});

Deno.test("thread: a lock of another connection", async () => {
  using temp = new TempFolder();
  using other = Connection.open(`${temp.path}/db.sqlite`);
  other.exec("PRAGMA journal_mode=WAL; CREATE TABLE t (a); BEGIN IMMEDIATE");
  await using db = await ThreadConnection.open(`${temp.path}/db.sqlite`);
  await db.exec("PRAGMA busy_timeout=0");
  await assert.rejects(db.runAll("INSERT INTO t VALUES (?)", 1, [1]), hasCode("locked"));
  other.exec("COMMIT");
  await db.runAll("INSERT INTO t VALUES (?)", 1, [1]);
});

Deno.test("thread: foreign keys are not enforced, as nowhere", async () => {
  await using db = await ThreadConnection.open(":memory:");
  await db.exec("CREATE TABLE p (a PRIMARY KEY); CREATE TABLE c (a REFERENCES p(a)); INSERT INTO c VALUES (1)");
  assert.deepEqual(await db.all("SELECT count(*) AS n FROM c"), [{ n: 1 }]);
});

Deno.test("thread: closing ends it, does what was asked for before, and may be done twice", async () => {
  using temp = new TempFolder();
  const db = await ThreadConnection.open(`${temp.path}/db.sqlite`);
  await db.exec("PRAGMA journal_mode=WAL; CREATE TABLE t (a)");
  const written = db.runAll("INSERT INTO t VALUES (?)", 1, Array.from({ length: 300 }, (_, i) => i));
  await db.close();
  await db.close();
  await written;
  assert.deepEqual([...Deno.readDirSync(temp.path)].map(({ name }) => name), ["db.sqlite"]);
  using other = Connection.open(`${temp.path}/db.sqlite`);
  assert.equal(other.get("SELECT count(*) AS n FROM t")?.["n"], 300);
});

Deno.test("thread: needs no permission but for the file", async () => {
  using temp = new TempFolder();
  const program = `import { ThreadConnection } from ${
    JSON.stringify(new URL("../../../lib/sqlite/thread.ts", import.meta.url))
  };
    await using db = await ThreadConnection.open(Deno.args[0] + "/db.sqlite");
    console.log((await db.all("SELECT 1 AS one"))[0].one);
    try { await ThreadConnection.open("/outside.sqlite"); } catch (error) { console.log(error.code); }`;
  Deno.writeTextFileSync(`${temp.path}/program.ts`, program);
  const { stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [
      "run",
      "--no-prompt",
      "-q",
      `--allow-read=${temp.path}`,
      `--allow-write=${temp.path}`,
      `${temp.path}/program.ts`,
      temp.path,
    ],
  }).output();
  assert.equal(new TextDecoder().decode(stdout), "1\npermission\n", new TextDecoder().decode(stderr));
});
