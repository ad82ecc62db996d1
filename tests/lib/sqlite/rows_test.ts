import assert from "node:assert/strict";
import { StatementSync } from "node:sqlite";
import { TelemetryError } from "../../../lib/errors.ts";
import { parametersFor, quotedName, type ReadRow, readRows, TextBytes } from "../../../lib/sqlite/rows.ts";
import { Connection, type SqlValue } from "../../../lib/sqlite/connection.ts";
import { callsOf, SAMPLE, TempFolder } from "../../fixtures/mod.ts";

function memory(sql: string): Connection {
  const db = Connection.open(":memory:");
  db.exec(sql);
  return db;
}

function read(db: Connection, table: string, columns: string[]): ReadRow[] {
  return [...readRows(db, table, columns)].flat();
}

const cellsOf = (rows: ReadRow[]) => rows.map(({ cells }) => cells);
const rowidsOf = (rows: ReadRow[]) => rows.map(({ rowid }) => rowid);

/** Rows 1 to n. */
const NUMBERS = (n: number) => `WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${n})`;

Deno.test("rows: every type of cell is exact", () => {
  const text = 'naïve\0 — 日本語 🚀 \u2028 " \\ \n';
  using db = memory("CREATE TABLE t (a, b, c, d, e)");
  const insert = db.prepare("INSERT INTO t VALUES (?, ?, ?, ?, ?)");
  insert.run(text, 0.1, -1e300, null, "");
  insert.run(9007199254740993n, -9223372036854775808n, 2n ** 53n - 1n, 5e-324, "12345678901234567890");
  insert.run(new Uint8Array([0, 255]), new Uint8Array(0), text, 9007199254740993n, Infinity);
  const [first, second, third] = cellsOf(read(db, "t", ["a", "b", "c", "d", "e"]));
  assert.deepEqual(first, [text, 0.1, -1e300, null, ""]);
  assert.deepEqual(second, [9007199254740993n, -(2n ** 63n), 2 ** 53 - 1, 5e-324, "12345678901234567890"]);
  assert.deepEqual([...third![0] as Uint8Array], [0, 255]);
  assert.equal((third![1] as Uint8Array).length, 0);
  assert.deepEqual(third!.slice(2), [text, 9007199254740993n, Infinity]);
});

Deno.test("rows: numbers stay the same when read and written again", () => {
  using db = memory("CREATE TABLE t (a REAL); CREATE TABLE u (a REAL)");
  const insert = db.prepare("INSERT INTO t VALUES (?)");
  const bytes = new Uint8Array(8);
  for (let i = 0; i < 2000; i++) {
    crypto.getRandomValues(bytes);
    const number = new DataView(bytes.buffer).getFloat64(0);
    if (!Number.isNaN(number)) insert.run(number);
  }
  const copy = db.prepare("INSERT INTO u VALUES (?)");
  for (const { cells } of read(db, "t", ["a"])) copy.run(...cells);
  assert.equal(db.get("SELECT count(*) AS n FROM t JOIN u ON t.rowid=u.rowid WHERE t.a IS NOT u.a")!["n"], 0);
});

Deno.test("rows: names of any kind, columns in the given order, each row once", () => {
  using db = memory(`CREATE TABLE "my ""t""" ("a b" INTEGER PRIMARY KEY, "select", "at", "cells");
    ${NUMBERS(1234)} INSERT INTO "my ""t""" SELECT i, 's' || i, i, 'c' FROM n;`);
  assert.equal(quotedName('my "t"'), '"my ""t"""');
  const rows = read(db, 'my "t"', ["select", "at", "cells", "a b"]);
  assert.equal(rows.length, 1234);
  assert.deepEqual(rows.at(-1), { rowid: 1234, cells: ["s1234", 1234, "c", 1234] });
  assert.deepEqual(rowidsOf(rows), Array.from({ length: 1234 }, (_, i) => i + 1));
  const chunks = [...readRows(db, 'my "t"', ["at"])].map((chunk) => chunk.length);
  assert.deepEqual(chunks, [500, 500, 234]);
});

Deno.test("rows: an empty table, negative row numbers and gaps", () => {
  using db = memory("CREATE TABLE t (a INTEGER PRIMARY KEY); CREATE TABLE none (a)");
  assert.deepEqual(read(db, "none", ["a"]), []);
  db.exec("INSERT INTO t VALUES (-9007199254740991), (-5), (0), (7), (1099511627777), (9007199254740991)");
  assert.deepEqual(rowidsOf(read(db, "t", ["a"])), [-9007199254740991, -5, 0, 7, 1099511627777, 9007199254740991]);
});

Deno.test({
  name: "rows: rows whose numbers are over 2^53 are read",
  fn: () => {
    using db = memory("CREATE TABLE t (a); INSERT INTO t (rowid, a) VALUES (1, 'x'), (9223372036854775807, 'y')");
    assert.deepEqual(cellsOf(read(db, "t", ["a"])), [["x"], ["y"]]);
  },
});

Deno.test({
  name: "rows: a column named rowid hides no row",
  fn: () => {
    using db = memory("CREATE TABLE t (rowid TEXT, a); INSERT INTO t VALUES ('x', 1), ('y', 2)");
    assert.deepEqual(cellsOf(read(db, "t", ["rowid", "a"])), [["x", 1], ["y", 2]]);
  },
});

Deno.test("rows: a BLOB among many rows is exact", () => {
  using db = memory(`CREATE TABLE t (a); ${NUMBERS(1600)} INSERT INTO t SELECT i FROM n;
    UPDATE t SET a=x'00ff' WHERE rowid IN (3, 777)`);
  const rows = read(db, "t", ["a"]);
  assert.deepEqual(rowidsOf(rows), Array.from({ length: 1600 }, (_, i) => i + 1));
  assert.ok(rows[776]!.cells[0] instanceof Uint8Array && rows[775]!.cells[0] === 776);
});

Deno.test({
  name: "rows: BLOBs of every first byte stay BLOBs",
  fn: () => {
    const wrong: number[] = [];
    for (let byte = 0; byte < 256; byte++) {
      // In a table of its own, so that no other BLOB changes how its chunk is read.
      using db = memory("CREATE TABLE t (a)");
      db.prepare("INSERT INTO t VALUES (?)").run(new Uint8Array([byte]));
      if (!(cellsOf(read(db, "t", ["a"]))[0]![0] instanceof Uint8Array)) wrong.push(byte);
    }
    assert.deepEqual(wrong, []);
  },
});

Deno.test("rows: text of a UTF-16 database is exact", () => {
  using db = memory("PRAGMA encoding='UTF-16le'; CREATE TABLE t (a); INSERT INTO t VALUES ('é 🚀' || char(0) || 'x')");
  assert.deepEqual(cellsOf(read(db, "t", ["a"])), [["é 🚀\0x"]]);
});

for (const encoding of ["UTF-8", "UTF-16le"]) {
  Deno.test(`rows: text that is not ${encoding} keeps its bytes when it is read and written again`, () => {
    using db = memory(`PRAGMA encoding='${encoding}'; CREATE TABLE t (a, b); CREATE TABLE u (a, b);
      INSERT INTO t VALUES (CAST(x'4dfc6e00ff41' AS TEXT), x'fc'), (CAST(x'00d8' AS TEXT), 'a' || char(65533))`);
    const rows = cellsOf(read(db, "t", ["a", "b"]));
    assert.ok(rows[0]![0] instanceof TextBytes || encoding !== "UTF-8");
    for (const cells of rows) db.run(`INSERT INTO u VALUES (${parametersFor(cells)})`, ...cells);
    const content = (table: string) =>
      db.all(`SELECT typeof(a), hex(CAST(a AS BLOB)), typeof(b), hex(b) FROM ${table}`);
    assert.deepEqual(content("u"), content("t"));
  });
}

Deno.test("rows: errors other than damage are thrown", () => {
  using db = memory("CREATE TABLE t (a)");
  assert.throws(() => [...readRows(db, "none", ["a"])], (error) => error instanceof TelemetryError);
});

Deno.test("rows: a table WITHOUT ROWID is read", () => {
  using db = memory(
    "CREATE TABLE w (a TEXT PRIMARY KEY, b) WITHOUT ROWID; INSERT INTO w VALUES ('b', 2), ('a' || char(0), 1.0)",
  );
  const rows = [...readRows(db, "w", ["a", "b"])].flat();
  assert.deepEqual(rows, [{ rowid: undefined, cells: ["a\0", 1] }, { rowid: undefined, cells: ["b", 2n] }]);
});

Deno.test("rows: damaged pages are skipped in few reads", async () => {
  using temp = new TempFolder();
  const path = `${temp.path}/t.sqlite`;
  const rows = 4000;
  {
    using db = Connection.open(path);
    db.exec(`CREATE TABLE t (a, b); ${NUMBERS(rows)} INSERT INTO t SELECT i, hex(zeroblob(200)) FROM n;`);
  }
  const bytes = Deno.readFileSync(path);
  const pages = bytes.length / 4096;
  const damaged = [10, 11, 50, pages - 2];
  for (const page of damaged) bytes.fill(0x55, 4096 * page, 4096 * (page + 1));
  Deno.writeFileSync(path, bytes);
  using db = Connection.open(path, { readOnly: true });
  const found = new Map<ReadRow["rowid"], SqlValue>();
  const reads = await callsOf(StatementSync.prototype, "all", () => {
    for (const { rowid, cells } of [...readRows(db, "t", ["a"])].flat()) {
      found.set(rowid, cells[0]!);
    }
  });
  assert.ok(reads < 1000, `${reads} reads`);
  // A page has nine rows. The damaged last page hides the highest row number.
  assert.ok(found.size >= rows - 10 * damaged.length && found.size < rows, String(found.size));
  for (const [rowid, cell] of found) assert.equal(cell, rowid);
});

Deno.test("rows: at least 252 runs of the sample's damaged database are read", () => {
  using temp = new TempFolder();
  const path = `${temp.path}/damaged.sqlite`;
  Deno.writeFileSync(path, Deno.readFileSync(`${SAMPLE}/databases/damaged.sqlite`));
  using db = Connection.open(path);
  const ids = new Set([...readRows(db, "agent_runs", ["run_id"])].flat().map(({ cells }) => cells[0]));
  assert.ok(ids.size >= 252, String(ids.size));
});
