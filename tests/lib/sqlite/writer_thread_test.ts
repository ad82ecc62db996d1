import assert from "node:assert/strict";
import { type ErrorCode, hasCode } from "../../../lib/errors.ts";
import { Connection } from "../../../lib/sqlite/connection.ts";
import { WriterThread } from "../../../lib/sqlite/writer_thread.ts";
import { TempFolder } from "../../fixtures/mod.ts";

const isCode = (code: ErrorCode) => (error: unknown) => hasCode(error, code);

Deno.test("the writer thread writes rows in the order in which they were handed over", async () => {
  await using writer = await WriterThread.open(":memory:");
  await writer.exec("CREATE TABLE t (a INTEGER PRIMARY KEY, b)");
  const insert = "INSERT INTO t VALUES (?, ?) ON CONFLICT(a) DO UPDATE SET b=excluded.b";
  for (let i = 0; i < 100; i++) await writer.write(insert, [[1, i], [i + 2, "a\0b 🚀"], [-1, null]]);
  await writer.write(insert, []);
  const row = await writer.get("SELECT count(*) AS n, min(iif(a=1, b, NULL)) AS last, max(hex(b)) AS text FROM t");
  assert.deepEqual(row, { n: 102, last: 99, text: "61006220F09F9A80" });
});

Deno.test("a failed write of the writer thread is thrown by all later requests", async () => {
  using temp = new TempFolder();
  await assert.rejects(WriterThread.open(`${temp.path}/no/folder.sqlite`), isCode("permission"));
  const path = `${temp.path}/db.sqlite`;
  {
    await using writer = await WriterThread.open(path);
    await writer.exec("CREATE TABLE t (a INTEGER PRIMARY KEY CHECK(a > 0))");
    await writer.write("INSERT INTO t VALUES (?)", [[1], [-1], [2]]);
    await assert.rejects(writer.exec("BEGIN"), isCode("invalid_record"));
    await assert.rejects(writer.get("SELECT 1"), isCode("invalid_record"));
    await assert.rejects(writer.write("INSERT INTO t VALUES (?)", [[3]]), isCode("invalid_record"));
  }
  using other = Connection.open(path);
  assert.deepEqual(other.all("SELECT a FROM t").map(({ a }) => a), [1]);
});

Deno.test("closing the writer thread waits for its writes, and throws what no request has thrown", async () => {
  using temp = new TempFolder();
  const path = `${temp.path}/db.sqlite`;
  const writer = await WriterThread.open(path);
  await writer.exec("PRAGMA journal_mode=WAL; CREATE TABLE t (a UNIQUE)");
  await writer.write("INSERT INTO t VALUES (?)", Array.from({ length: 300 }, (_, i) => [i]));
  await writer[Symbol.asyncDispose]();
  assert.deepEqual([...Deno.readDirSync(temp.path)].map(({ name }) => name), ["db.sqlite"]);
  using other = Connection.open(path);
  assert.equal(other.get("SELECT count(*) AS n FROM t")?.["n"], 300);
  const failing = await WriterThread.open(path);
  await failing.write("INSERT INTO t VALUES (?)", [[1]]);
  await assert.rejects(failing[Symbol.asyncDispose](), isCode("invalid_record"));
});

Deno.test("the writer thread needs permission for its database only", async () => {
  using temp = new TempFolder();
  const module = JSON.stringify(new URL("../../../lib/sqlite/writer_thread.ts", import.meta.url));
  Deno.writeTextFileSync(
    `${temp.path}/program.ts`,
    `import { WriterThread } from ${module};
    {
      await using writer = await WriterThread.open(Deno.args[0] + "/db.sqlite");
      console.log((await writer.get("SELECT 1 AS one")).one);
    }
    try { await WriterThread.open("/outside.sqlite"); } catch (error) { console.log(error.code); }`,
  );
  const access = [`--allow-read=${temp.path}`, `--allow-write=${temp.path}`];
  const { stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-prompt", "-q", ...access, `${temp.path}/program.ts`, temp.path],
  }).output();
  assert.equal(new TextDecoder().decode(stdout), "1\npermission\n", new TextDecoder().decode(stderr));
});
