import assert from "node:assert/strict";
import { type ErrorCode, hasCode } from "../../../lib/errors.ts";
import { Connection } from "../../../lib/sqlite/connection.ts";
import { WriterThread } from "../../../lib/sqlite/writer_thread.ts";
import { run, TempFolder } from "../../fixtures/mod.ts";

const isCode = (code: ErrorCode) => (error: unknown) => hasCode(error, code);

Deno.test("the writer thread writes rows in the order in which they were handed over", async () => {
  await using writer = new WriterThread(":memory:");
  await writer.exec("CREATE TABLE t (a INTEGER PRIMARY KEY, b)");
  const insert = "INSERT INTO t VALUES (?, ?) ON CONFLICT(a) DO UPDATE SET b=excluded.b";
  for (let i = 0; i < 100; i++) await writer.write(insert, [[1, i], [i + 2, "a\0b 🚀"], [-1, null]]);
  await writer.write(insert, []);
  const row = await writer.get("SELECT count(*) AS n, min(iif(a=1, b, NULL)) AS last, max(hex(b)) AS text FROM t");
  assert.deepEqual(row, { n: 102, last: 99, text: "61006220F09F9A80" });
});

Deno.test("a failed write of the writer thread is thrown by all later requests", async () => {
  using temp = new TempFolder();
  {
    await using writer = new WriterThread(`${temp.path}/no/folder.sqlite`);
    await writer.write("CREATE TABLE t (a)");
    await assert.rejects(writer.get("SELECT 1"), isCode("permission"));
  }
  const path = `${temp.path}/db.sqlite`;
  {
    await using writer = new WriterThread(path);
    await writer.exec("CREATE TABLE t (a INTEGER PRIMARY KEY CHECK(a > 0))");
    await writer.write("INSERT INTO t VALUES (?)", [[1], [-1], [2]]);
    await assert.rejects(writer.exec("BEGIN"), isCode("invalid_record"));
    await assert.rejects(writer.get("SELECT 1"), isCode("invalid_record"));
    await writer.write("INSERT INTO t VALUES (?)", [[3]]);
    await assert.rejects(writer.exec("BEGIN"), isCode("invalid_record"));
  }
  using other = Connection.open(path);
  assert.deepEqual(other.all("SELECT a FROM t").map(({ a }) => a), [1]);
});

Deno.test("closing the writer thread waits for its writes, and leaves no sidecar", async () => {
  using temp = new TempFolder();
  const path = `${temp.path}/db.sqlite`;
  {
    await using writer = new WriterThread(path);
    await writer.write("PRAGMA journal_mode=WAL; CREATE TABLE t (a UNIQUE)");
    const rows = Array.from({ length: 300 }, (_, i) => [i]);
    for (const row of rows) await writer.write("INSERT INTO t VALUES (?)", [row]);
  }
  assert.deepEqual([...Deno.readDirSync(temp.path)].map(({ name }) => name), ["db.sqlite"]);
  using other = Connection.open(path);
  assert.equal(other.get("SELECT count(*) AS n FROM t")?.["n"], 300);
});

Deno.test("the writer thread needs permission for its database only", async () => {
  using temp = new TempFolder();
  const module = JSON.stringify(new URL("../../../lib/sqlite/writer_thread.ts", import.meta.url));
  Deno.writeTextFileSync(
    `${temp.path}/program.ts`,
    `import { WriterThread } from ${module};
    for (const path of [Deno.args[0] + "/db.sqlite", "/outside.sqlite"]) {
      await using writer = new WriterThread(path);
      console.log(await writer.get("SELECT 1 AS one").then(({ one }) => one, ({ code }) => code));
    }`,
  );
  const access = [`--allow-read=${temp.path}`, `--allow-write=${temp.path}`];
  const args = ["run", "--no-prompt", "-q", ...access, `${temp.path}/program.ts`, temp.path];
  const { stdout, stderr } = await run(Deno.execPath(), args);
  assert.equal(stdout, "1\npermission\n", stderr);
});
