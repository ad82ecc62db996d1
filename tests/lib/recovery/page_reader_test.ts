import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import fc from "npm:fast-check@4.10.2";
import { type FoundRow, type IsRow, PageFile } from "../../../lib/recovery/page_reader.ts";
import type { SqlValue } from "../../../lib/sqlite/connection.ts";
import { callsOf, rounds, sqlite, TempFolder } from "../../fixtures/mod.ts";

const never: IsRow = () => false;

function pagesOf(path: string, roots: Record<string, number> = {}, isRow = never): FoundRow[] {
  using file = new PageFile(path);
  return [...file.rows(new Map(Object.entries(roots)), isRow)];
}

/** Counts how often bytes are read from a page. */
const looksOf = (work: () => void) =>
  callsOf(Object.getPrototypeOf(Uint8Array.prototype) as Uint8Array, "subarray", work);

type ReadRow = FoundRow & { cells: SqlValue[] };

function rowsOf(path: string, roots: Record<string, number> = {}, isRow = never): ReadRow[] {
  return pagesOf(path, roots, isRow).filter((found): found is ReadRow => found.cells !== undefined);
}

function rootsOf(path: string): Record<string, number> {
  const db = new DatabaseSync(path);
  const roots = db.prepare("SELECT name, rootpage FROM sqlite_schema WHERE type='table'").all();
  db.close();
  return Object.fromEntries(roots.map(({ name, rootpage }) => [String(name), Number(rootpage)]));
}

/** A table with every type of cell, overflow pages and deleted rows, and another table. */
const FILL = (rows: number) => `
  CREATE TABLE t (a, b, c, d, e, f);
  CREATE TABLE other (x TEXT, y);
  CREATE INDEX t_b ON t(b);
  WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${rows})
  INSERT INTO t SELECT i * i * i * i - 40000, 'text é日本語🚀 ' || i, i / 3.0, CASE i % 5 WHEN 0 THEN NULL WHEN 1 THEN 0 WHEN 2 THEN 1
    WHEN 3 THEN -i WHEN 4 THEN 9223372036854775807 - i END, CASE WHEN i % 7 = 0 THEN hex(zeroblob(i * 37 % 9000)) END,
    CASE WHEN i % 11 = 0 THEN zeroblob(i * 91 % 5000) END FROM n;
  INSERT INTO other SELECT b, a FROM t LIMIT 20;
  DELETE FROM t WHERE rowid BETWEEN ${rows >> 2} AND ${rows >> 1};`;

/** The rows of `t` as SQLite reads them. */
function expectedOf(path: string): Map<number, SqlValue[]> {
  const db = new DatabaseSync(path);
  const statement = db.prepare("SELECT rowid AS at, * FROM t");
  statement.setReadBigInts(true);
  const rows = statement.all().map(({ at, ...cells }) =>
    [Number(at), Object.values(cells).map((cell) => cell!)] as const
  );
  db.close();
  return new Map(rows);
}

function assertRows(found: ReadRow[], expected: Map<number, SqlValue[]>): void {
  const byId = new Map(found.map(({ rowid, cells }) => [Number(rowid), cells]));
  assert.equal(byId.size, expected.size);
  assert.equal(found.length, expected.size, "no row twice");
  for (const [rowid, cells] of expected) {
    assert.deepEqual(byId.get(rowid)!.map(comparable), cells.map(comparable), `row ${rowid}`);
  }
}

/** A BLOB as a text that no cell is. */
const comparable = (cell: SqlValue) => cell instanceof Uint8Array ? `x'${cell.toHex()}'` : cell;

const SIZES = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536];

/** Rows by their numbers, of the table with six columns. */
function rowsOfT(path: string): Map<number, SqlValue[]> {
  return new Map(
    rowsOf(path).filter(({ cells }) => cells.length === 6).map(({ rowid, cells }) => [Number(rowid), cells]),
  );
}

function zeroHeader(path: string): void {
  Deno.writeFileSync(path, Deno.readFileSync(path).fill(0, 0, 100));
}

function pageSizeOf(path: string): number {
  using file = new PageFile(path);
  return file.pageSize;
}

for (const pageSize of SIZES) {
  Deno.test(`pages of ${pageSize} bytes give every row that SQLite reads, with and without roots`, () => {
    using temp = new TempFolder();
    const path = `${temp.path}/db.sqlite`;
    sqlite(path, `PRAGMA page_size=${pageSize}; ${FILL(1500)}`);
    const [expected, roots] = [expectedOf(path), rootsOf(path)];
    assert.ok(expected.size > 1000);
    assertRows(rowsOf(path, roots).filter(({ table }) => table === "t"), expected);
    assert.equal(rowsOf(path, roots).filter(({ table }) => table === "other").length, 20);
    assert.deepEqual(pagesOf(path, roots).filter(({ cells }) => cells === undefined), []);
    // Without roots, rows have no table.
    assertRows(rowsOf(path).filter(({ cells }) => cells.length === 6), expected);
    assert.equal(pageSizeOf(path), pageSize);
  });
}

Deno.test("pages: the page size of a small file without a header is found", () => {
  using temp = new TempFolder();
  for (const pageSize of SIZES) {
    const path = `${temp.path}/${pageSize}.sqlite`;
    sqlite(
      path,
      `PRAGMA page_size=${pageSize}; CREATE TABLE t (a, b, c, d, e, f); CREATE INDEX t_b ON t(b);
      WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${pageSize / 4})
      INSERT INTO t SELECT i, 'text ' || i, hex(zeroblob(60)), 1, 2, 3 FROM n;`,
    );
    const expected = expectedOf(path);
    zeroHeader(path);
    assert.equal(pageSizeOf(path), pageSize);
    assert.deepEqual(rowsOfT(path), expected);
  }
});

Deno.test({
  name: "pages: the page size of a large file without a header is found",
  fn: () => {
    using temp = new TempFolder();
    const wrong: string[] = [];
    for (const pageSize of SIZES) {
      for (const rows of rounds([200, 1500], [200, 1500, 5000])) {
        const path = `${temp.path}/${pageSize}_${rows}.sqlite`;
        sqlite(path, `PRAGMA page_size=${pageSize}; ${FILL(rows)}`);
        const expected = expectedOf(path);
        zeroHeader(path);
        if (pageSizeOf(path) !== pageSize) wrong.push(`${pageSizeOf(path)}, not ${pageSize}, for ${rows} rows`);
        else {
          // Without the header, free pages are unknown.
          const found = rowsOfT(path);
          for (const [rowid, cells] of expected) {
            assert.deepEqual(found.get(rowid)?.map(comparable), cells.map(comparable));
          }
        }
      }
    }
    assert.deepEqual(wrong, []);
  },
});

Deno.test("pages: text of both UTF-16 encodings is decoded", () => {
  for (const encoding of ["UTF-16le", "UTF-16be"]) {
    using temp = new TempFolder();
    const path = `${temp.path}/db.sqlite`;
    sqlite(path, `PRAGMA encoding='${encoding}'; ${FILL(300)}`);
    assertRows(rowsOf(path, rootsOf(path)).filter(({ table }) => table === "t"), expectedOf(path));
  }
});

Deno.test("pages: integers of each width and row numbers of any size are exact", () => {
  using temp = new TempFolder();
  const path = `${temp.path}/db.sqlite`;
  const values = [7, 15, 23, 31, 47, 62].flatMap((bits) => [2n ** BigInt(bits) - 1n, -(2n ** BigInt(bits))]);
  const numbers = [2n ** 40n, 2n ** 53n - 1n, 2n ** 53n + 1n, 2n ** 63n - 1n];
  sqlite(
    path,
    `CREATE TABLE t (a); ${values.map((value) => `INSERT INTO t VALUES (${value});`).join("")}
    INSERT INTO t (rowid, a) VALUES ${numbers.map((number) => `(${number}, -9223372036854775808)`)}`,
  );
  const rows = rowsOf(path, rootsOf(path)).filter(({ table }) => table === "t");
  assert.deepEqual(rows.map(({ cells }) => cells[0]), [...values, ...numbers.map(() => -(2n ** 63n))]);
  assert.deepEqual(rows.slice(-4).map(({ rowid }) => BigInt(rowid)), numbers);
});

Deno.test("pages: rows come back from pages with reserved bytes", () => {
  using temp = new TempFolder();
  const path = `${temp.path}/db.sqlite`;
  // No statement reserves bytes, so this moves the header of an empty database's only page.
  sqlite(path, "PRAGMA user_version=1");
  const bytes = Deno.readFileSync(path);
  bytes[20] = 12;
  // Where the content of the page starts.
  new DataView(bytes.buffer).setUint16(105, 4096 - 12);
  Deno.writeFileSync(path, bytes);
  sqlite(path, FILL(300));
  assert.equal(Deno.readFileSync(path)[20], 12);
  assertRows(rowsOf(path, rootsOf(path)).filter(({ table }) => table === "t"), expectedOf(path));
});

Deno.test({
  name: "pages: negative row numbers are exact",
  fn: () => {
    using temp = new TempFolder();
    const path = `${temp.path}/db.sqlite`;
    sqlite(path, "CREATE TABLE t (a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES (-5, 'x'), (-7, 'y')");
    const rows = rowsOf(path, rootsOf(path)).filter(({ table }) => table === "t");
    assert.deepEqual(rows.map(({ rowid }) => rowid), [-7, -5]);
  },
});

Deno.test("pages: rows of the WAL come after those of the file, also without the file or without its header", () => {
  using temp = new TempFolder();
  const path = `${temp.path}/db.sqlite`;
  sqlite(path, `PRAGMA journal_mode=WAL; ${FILL(300)}`);
  const db = new DatabaseSync(path);
  db.exec(
    "PRAGMA wal_autocheckpoint=0; UPDATE t SET b='changed' WHERE rowid % 50 = 0; INSERT INTO t (a, b) VALUES (1, 'in wal')",
  );
  const copy = `${temp.path}/copy.sqlite`;
  for (const end of ["", "-wal"]) Deno.copyFileSync(path + end, copy + end);
  const expected = db.prepare("SELECT rowid AS at, b FROM t ORDER BY rowid").all();
  const roots = Object.fromEntries(
    db.prepare("SELECT name, rootpage FROM sqlite_schema WHERE type='table'").all()
      .map(({ name, rootpage }) => [String(name), Number(rootpage)]),
  );
  db.close();
  // Later ones replace earlier ones.
  const last = new Map(
    rowsOf(copy, roots).filter(({ table }) => table === "t").map(({ rowid, cells }) => [rowid, cells[1]]),
  );
  assert.deepEqual([...last].sort(([a], [b]) => Number(a) - Number(b)), expected.map(({ at, b }) => [at, b]));
  assert.ok([...last.values()].includes("in wal") && [...last.values()].includes("changed"));
  // The same without the file, and with a header of the WAL that is gone.
  Deno.removeSync(copy);
  assert.ok(rowsOf(copy).some(({ cells }) => cells[1] === "in wal"));
  Deno.copyFileSync(path, copy);
  const wal = Deno.readFileSync(`${copy}-wal`);
  Deno.writeFileSync(`${copy}-wal`, wal.fill(0, 0, 32));
  assert.ok(rowsOf(copy).some(({ cells }) => cells[1] === "in wal"));
  // Torn in the last frame.
  Deno.writeFileSync(`${copy}-wal`, wal.subarray(0, wal.length - 100));
  rowsOf(copy);
});

Deno.test("pages: a missing, empty or short file has no rows", () => {
  using temp = new TempFolder();
  const path = `${temp.path}/db.sqlite`;
  assert.deepEqual(pagesOf(path), []);
  for (const length of [0, 1, 16, 99, 100, 101, 511, 4096]) {
    Deno.writeFileSync(path, new Uint8Array(length));
    assert.deepEqual(pagesOf(path, { t: 2 }), []);
  }
});

Deno.test("pages: a leaf page with a destroyed header is searched for its rows", () => {
  using temp = new TempFolder();
  const path = `${temp.path}/db.sqlite`;
  sqlite(path, "CREATE TABLE t (a, b); INSERT INTO t VALUES ('one', 1), ('two', 2), ('three', 3)");
  const bytes = Deno.readFileSync(path);
  for (
    const header of [[0, 0, 0, 0, 0, 0, 0, 0], [0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55], [
      13,
      0,
      0,
      0,
      40,
      0xff,
      0xff,
      0,
    ]]
  ) {
    const damaged = bytes.slice();
    damaged.set(header, 4096);
    damaged.fill(0x55, 4096 + 8, 4096 + 20);
    Deno.writeFileSync(path, damaged);
    const isRow: IsRow = (_, cells) => cells.length === 2 && typeof cells[0] === "string" && cells[0].length > 2;
    const rows = rowsOf(path, { t: 2 }, isRow).filter(({ cells }) => cells.length === 2);
    assert.deepEqual(rows.map(({ cells }) => cells).sort(), [["one", 1n], ["three", 3n], ["two", 2n]], header.join());
    assert.deepEqual(new Set(rows.map(({ table }) => table)), new Set(["t"]));
  }
});

Deno.test("pages: circular trees, overflow chains and free lists end", async () => {
  using temp = new TempFolder();
  const path = `${temp.path}/db.sqlite`;
  sqlite(path, `PRAGMA page_size=512; ${FILL(400)}`);
  const bytes = Deno.readFileSync(path);
  const view = new DataView(bytes.buffer);
  // Every interior page leads to page 2, every other one has page 3 for its overflow, and the free list never ends.
  for (let page = 2; page * 512 < bytes.length; page++) {
    const start = page * 512;
    if (bytes[start] === 5) {
      view.setUint32(start + 8, 2);
      for (let i = 0; i < view.getUint16(start + 3); i++) {
        view.setUint32(start + view.getUint16(start + 12 + 2 * i), page + 1);
      }
    } else if (bytes[start] === 0) view.setUint32(start, 3);
  }
  view.setUint32(32, 5);
  Deno.writeFileSync(path, bytes);
  const looks = await looksOf(() => pagesOf(path, { t: 2, other: 3 }, () => true));
  assert.ok(looks < bytes.length, `${looks} looks`);
});

Deno.test("pages: an interior page that leads to page 0 hides no row", () => {
  using temp = new TempFolder();
  const path = `${temp.path}/db.sqlite`;
  sqlite(path, FILL(400));
  const expected = expectedOf(path);
  const bytes = Deno.readFileSync(path);
  assert.equal(bytes[4096], 5);
  // As if the end of the page was not written.
  Deno.writeFileSync(path, bytes.fill(0, 4096 + 8, 8192));
  assertRows(rowsOf(path, { t: 2 }).filter(({ cells }) => cells.length === 6), expected);
});

Deno.test("property: pages of any content are read without an error", () => {
  using temp = new TempFolder();
  const path = `${temp.path}/db.sqlite`;
  const made = new Map([512, 4096].map((pageSize) => {
    const original = `${temp.path}/${pageSize}.sqlite`;
    sqlite(original, `PRAGMA page_size=${pageSize}; ${FILL(200)}`);
    return [pageSize, Deno.readFileSync(original)];
  }));
  const damage = fc.tuple(fc.nat(), fc.uint8Array({ minLength: 1, maxLength: 600 }));
  const file = fc.oneof(
    fc.tuple(fc.constantFrom(512, 4096), fc.array(damage, { maxLength: 12 }), fc.nat(3), fc.nat()).map(
      ([pageSize, damages, cut, place]) => {
        const bytes = made.get(pageSize)!.slice();
        for (const [at, written] of damages) {
          const from = at % bytes.length;
          bytes.set(written.subarray(0, bytes.length - from), from);
        }
        return cut === 0 ? bytes.subarray(0, place % bytes.length) : bytes;
      },
    ),
    fc.uint8Array({ maxLength: 20_000, size: "max" }),
  );
  fc.assert(
    fc.property(
      file,
      fc.option(fc.uint8Array({ maxLength: 5000, size: "max" })),
      fc.integer({ min: 1, max: 9 }),
      (bytes, wal, root) => {
        Deno.writeFileSync(path, bytes);
        if (wal !== null) Deno.writeFileSync(`${path}-wal`, wal);
        for (const found of pagesOf(path, { t: 2, other: 3, odd: root }, (_, cells) => cells.length === 6)) {
          assert.ok(found.page > 0 && Number.isSafeInteger(found.rowid));
        }
        if (wal !== null) Deno.removeSync(`${path}-wal`);
      },
    ),
    { numRuns: rounds(100, 200) },
  );
});
