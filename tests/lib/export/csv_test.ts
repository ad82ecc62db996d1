import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import fc from "npm:fast-check@4.10.2";
import { parse } from "npm:csv-parse@5.6.0/sync";
import { exportTo, exportToFile } from "../../../lib/export/export.ts";
import { type ExportRequest, readRequest } from "../../../lib/export/request.ts";
import { type Cell, CsvText, noCounts } from "../../../lib/export/csv.ts";
import { spreadsheetRows } from "../../../lib/export/spreadsheet.ts";
import { hasCode } from "../../../lib/errors.ts";
import { layoutOf, pathIn } from "../../../lib/layout.ts";
import { RUN_COLUMNS } from "../../../lib/records.ts";
import { applySchema } from "../../../lib/sqlite/migrate.ts";
import { Connection } from "../../../lib/sqlite/connection.ts";
import { parseRows } from "../../../lib/export/table_rows.ts";
import { duckdbReader } from "../../fixtures/duckdb.ts";
import { makeOldDatabase, type OldKind, python, SAMPLE, TempFolder, testWith } from "../../fixtures/mod.ts";

const NOW = new Date("2025-12-20T00:00:00Z");
type Flags = Record<string, string>;

/** A store with an empty database. */
class Store implements Disposable {
  readonly #temp = new TempFolder();
  readonly base = this.#temp.path;
  readonly database = `${this.base}/db/telemetry.sqlite`;

  constructor() {
    for (const folder of ["db", "raw"]) Deno.mkdirSync(`${this.base}/${folder}`);
    using db = Connection.open(this.database);
    db.exec("PRAGMA journal_mode=WAL");
    applySchema(db);
  }

  /** Adds runs; what is not said of one is as good as nothing. */
  add(...runs: Record<string, string | number | bigint | null | Uint8Array>[]): this {
    const db = new DatabaseSync(this.database);
    db.exec("PRAGMA ignore_check_constraints=ON; BEGIN");
    runs.forEach((run, i) => {
      const row = { run_id: `r${i}`, agent_name: "a", start_time: "2025-12-10T00:00:00Z", ...run };
      db.prepare(`INSERT INTO agent_runs (${Object.keys(row)}) VALUES (${Object.keys(row).map(() => "?")})`)
        .run(...Object.values(row));
    });
    db.exec("COMMIT");
    db.close();
    return this;
  }

  exec(sql: string): this {
    const db = new DatabaseSync(this.database);
    db.exec(sql);
    db.close();
    return this;
  }

  [Symbol.dispose](): void {
    this.#temp[Symbol.dispose]();
  }
}

/** An export into memory. */
async function exported(base: string, flags: Flags = {}) {
  const parts: Uint8Array[] = [];
  const write = (bytes: Uint8Array) =>
    Promise.resolve(parts.push(bytes.slice(0, 1000)) && Math.min(bytes.length, 1000));
  const request = readRequest(flags, NOW);
  const summary = await exportTo(layoutOf(base), request, { write }, "memory");
  const bytes = new Uint8Array(await new Blob(parts as BlobPart[]).arrayBuffer());
  assert.equal(summary.bytes, bytes.length);
  const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  const [header, ...rows] = read(text);
  assert.equal(summary.rows, rows.length);
  return { ...summary, text, header, rows };
}

Deno.test("a program's request is checked as the flags are, before anything is written", async () => {
  using temp = new TempFolder();
  const write = () => assert.fail("written");
  const wrong = [
    { table: "tables" },
    { columns: [] },
    { columns: "run_id" },
    { columns: ["run_ids"] },
    { columns: ["run_id", "run_id"] },
    { since: NaN },
    { since: "2025-12-10" },
    { since: 2, until: 1 },
    { statuses: new Set(["done"]) },
    { statuses: "success" },
    { agents: ["a"] },
    { program: "word" },
    { table: "events", columns: ["id"], agents: new Set(["a"]) },
    { table: "commits", columns: ["repo"], updatedSince: 1 },
  ];
  for (const part of wrong) {
    const request = { table: "runs", columns: ["run_id"], ...part } as ExportRequest;
    const isUsage = (error: unknown) => hasCode(error, "usage");
    await assert.rejects(exportTo(layoutOf(temp.path), request, { write }, "memory"), isUsage, JSON.stringify(part));
    await assert.rejects(exportToFile(layoutOf(temp.path), request), isUsage, JSON.stringify(part));
  }
  assert.deepEqual([...Deno.readDirSync(temp.path)], []);
});

/** CSV as `csv-parse` reads it: what is empty and not in quotes is null. */
function read(text: string): (string | null)[][] {
  return parse(text, {
    bom: true,
    record_delimiter: "\r\n",
    cast: (cell, { quoting }) => cell === "" && !quoting ? null : cell,
  });
}

/** One column of an export. */
async function column(base: string, name: string, flags: Flags = {}): Promise<(string | null)[]> {
  return (await exported(base, { columns: name, ...flags })).rows.map(([cell]) => cell!);
}

/** What SQLite itself says is in a table: as JSON, which has NUL too. */
function content(database: string, table: string, columns: readonly string[], order: string): (string | null)[][] {
  using db = new DatabaseSync(database, { readOnly: true });
  return db.prepare(`SELECT json_array(${columns}) AS row FROM ${table} ORDER BY ${order}`).all()
    .map(({ row }) => JSON.parse(String(row)).map((cell: unknown) => cell === null ? null : String(cell)));
}

// ------------------------------------------------------------------------------------------------ text

const linesOf = (...rows: Cell[][]) => new TextDecoder().decode(new CsvText(rows[0]!.map(String)).lines(rows));

Deno.test("cells: in quotes only what must be", () => {
  assert.equal(linesOf(["a", null, "", 1, -2.5, 9007199254740993n]), 'a,,"",1,-2.5,9007199254740993\r\n');
  assert.equal(linesOf(["a b", " a ", "'", ";", "\t", "\\", "é🚀", "\0"]), "a b, a ,',;,\t,\\,é🚀,\0\r\n");
  assert.equal(linesOf([",", '"', "\r", "\n", 'a"b,c']), '",","""","\r","\n","a""b,c"\r\n');
  assert.equal(linesOf(["\\."], ["\\.."], ["\\"]), '"\\."\r\n\\..\r\n\\\r\n', "PostgreSQL ends at a lone \\.");
});

Deno.test("JSON from SQLite gives the same bytes as its values", () => {
  using db = Connection.open(":memory:");
  const text = fc.oneof(
    fc.string({ unit: "binary" }),
    fc.string({ unit: fc.constantFrom(",", '"', "\r", "\n", "\\", ".", "\0", "\x1f", "\x7f", "a", "é", "🚀") }),
    fc.constantFrom("", "\\.", "null", "[", "]", "],["),
  );
  const cell = fc.oneof(text, fc.constant(null), fc.bigInt(-9n, 9n), fc.bigInt(-(2n ** 63n), 2n ** 63n - 1n));
  fc.assert(
    fc.property(fc.array(fc.tuple(cell, cell, text), { minLength: 1, maxLength: 5 }), (rows) => {
      const values = rows.map(() => "(?, ?, ?)").join();
      const row = db.get(
        `SELECT CAST(group_concat(json_array(column1, column2, column3)) AS BLOB) AS json FROM (VALUES ${values})`,
        ...rows.flat(),
      );
      const csv = new CsvText(["a", "b", "c"]);
      const bytes = csv.jsonLines(row!["json"] as Uint8Array, rows.length).slice();
      assert.deepEqual(parseRows(row!["json"] as Uint8Array), rows.map((row) => row.map(exact)));
      assert.deepEqual(bytes, csv.lines(rows).slice());
    }),
    { numRuns: 500 },
  );
});

/** What JavaScript can hold as a number is one. */
function exact(cell: Cell): Cell {
  return typeof cell === "bigint" && Number.isSafeInteger(Number(cell)) ? Number(cell) : cell;
}

Deno.test("--for: formulas are escaped after every character that a spreadsheet skips", () => {
  for (const program of ["excel", "sheets"] as const) {
    const counts = noCounts();
    const csv = new CsvText(["a"], counts, spreadsheetRows(program, ["a"], counts));
    const escaped = (text: string) => /^"?'/.test(new TextDecoder().decode(csv.lines([[text]])));
    for (
      const skipped of [
        "",
        "\0",
        " ",
        "\t",
        "\r\n",
        "\ufeff",
        "\u00a0",
        "\u200b",
        "\u3000",
        "\ufe0f",
        "\u3164",
        "\0 \x1b\x7f",
      ]
    ) {
      for (const sign of ["=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20"]) {
        assert.ok(escaped(`${skipped}${sign}1+1`), JSON.stringify([skipped, sign]));
      }
    }
    for (const text of ["a=1", " a", "1-1", "\0a", "'=1"]) assert.equal(escaped(text), text.startsWith("'"), text);
  }
});

Deno.test("--for: text that would run is disarmed, numbers are not; long text is cut and counted", () => {
  for (const program of ["sheets", "excel"] as const) {
    const counts = noCounts();
    const csv = new CsvText(["a"], counts, spreadsheetRows(program, ["a"], counts));
    const said = (...cells: Cell[]) => new TextDecoder().decode(csv.lines([cells])).slice(0, -2);
    for (const text of ["=1+1", "+1", "-1", "@x"]) assert.equal(said(text), `'${text}`);
    assert.deepEqual([said("\t"), said("\r"), said("a=1"), said("'=1"), said(" =1")], [
      "'\t",
      '"\'\r"',
      "a=1",
      "'=1",
      "' =1",
    ]);
    assert.deepEqual([said(-1), said(-1n), said(null), said("")], ["-1", "-1", "", '""']);
    const max = program === "sheets" ? 50_000 : 32_767;
    assert.equal(said("x".repeat(max)), "x".repeat(max));
    assert.equal(counts.cut_cells, 0);
    assert.equal(said("x".repeat(max + 1)), "x".repeat(max));
    assert.equal(said(`=${"x".repeat(max - 1)}`), `'=${"x".repeat(max - 2)}`, "the apostrophe counts");
    assert.equal(said(`${"x".repeat(max - 1)}🚀`), "x".repeat(max - 1), "no half characters");
    assert.equal(counts.cut_cells, 3);
    assert.equal(
      new TextDecoder("utf-8", { ignoreBOM: true }).decode(csv.header()),
      program === "excel" ? "\ufeffa\r\n" : "a\r\n",
    );
  }
});

Deno.test("--for: numbers of over 15 digits and rows that a spreadsheet cannot show are counted, and written", () => {
  const counts = noCounts();
  const csv = new CsvText(["a"], counts, spreadsheetRows("excel", ["a"], counts));
  for (const cell of [1e15, "123456789012345", 0.5, "x1234567890123456", 1e300, "", null]) csv.lines([[cell]]);
  assert.equal(counts.long_numbers, 0);
  for (const cell of [2n ** 60n, 0.1 + 0.2, "1234567890123456", "-1.234567890123456e5", " 1234567890123456 "]) {
    csv.lines([[cell, 2n ** 60n]]);
  }
  // A minus before text is escaped, which keeps its digits.
  assert.equal(counts.long_numbers, 4);
  for (const text of ["1,234,567,890,123,456", "$1234567890123456", "(1234567890123456)", "12.34567890123456%"]) {
    csv.lines([[text]]);
  }
  for (const text of ["1,234,567,890,123", "$5", "1234567890 123456", "1234567890123456 €cents"]) csv.lines([[text]]);
  assert.equal(counts.long_numbers, 8);
  for (const [program, columns, rows] of [["excel", 1, 1_048_575], ["sheets", 31, 322_579]] as const) {
    const counts = noCounts();
    const names = Array.from({ length: columns }, (_, i) => `c${i}`);
    const csv = new CsvText(names, counts, spreadsheetRows(program, names, counts));
    const row = names.map(() => null);
    csv.lines(Array(rows).fill(row));
    assert.equal(counts.excess_rows, 0);
    csv.lines([row, row]);
    assert.deepEqual([counts.excess_rows, counts.rows], [2, rows + 2]);
  }
});

Deno.test("a number has one form, whether rows are filtered or not; text that is not UTF-8 is counted", async () => {
  using store = new Store().add(
    { items_failed: 1e300, items_discovered: 0.1 + 0.2, duration_ms: 5e-324, api_retry_count: 9.3e18 },
    { items_failed: -1.5, items_discovered: 1e20, duration_ms: Infinity, api_retry_count: -0.5 },
  ).exec("UPDATE agent_runs SET host=CAST(x'61ff62' AS TEXT), product=x'ff' WHERE run_id='r0'");
  const columns = "items_failed,items_discovered,duration_ms,api_retry_count";
  const plain = await exported(store.base, { columns });
  assert.deepEqual(plain.rows, [
    ["1e+300", "0.30000000000000004", "5e-324", "9300000000000000000"],
    ["-1.5", "100000000000000000000", "Infinity", "-0.5"],
  ]);
  for (const flags of [{ agent: "a" }, { columns: `${columns},host` }] as Flags[]) {
    const { rows } = await exported(store.base, { columns, ...flags });
    assert.deepEqual(rows.map((row) => row.slice(0, 4)), plain.rows);
  }
  assert.deepEqual([plain.changed_cells, (await exported(store.base)).changed_cells], [0, 2]);
});

// ------------------------------------------------------------------------------------------------ round trips

const WORST = [
  "plain",
  "",
  '"',
  '""',
  "a,b",
  "\r",
  "\n",
  "\r\n",
  "\0",
  "a\0b",
  "=1+1",
  "'",
  "🚀 — 日本",
  "\ufeff",
  " ",
  "\\.",
  "\\N",
  "NULL",
  "\t",
];

/** How each reader sees a file; `null` only where it can tell. */
const READERS: Record<string, { tellsNull: boolean; read(path: string, width: number): Promise<unknown[][]> }> = {
  "csv-parse": { tellsNull: true, read: async (path) => read(await Deno.readTextFile(path)).slice(1) },
  "Python": {
    tellsNull: false,
    read: async (path) =>
      JSON.parse(
        await python(
          "import csv, json, sys; csv.field_size_limit(1 << 30)\n" +
            "print(json.dumps(list(csv.reader(open(sys.argv[1], newline='', encoding='utf-8'), strict=True))[1:]))",
          path,
        ),
      ),
  },
};
const readWithDuckDB = await duckdbReader();
if (readWithDuckDB) READERS["DuckDB"] = { tellsNull: true, read: readWithDuckDB };
const duck = READERS["DuckDB"] ? "" : " [SKIPPED: DuckDB, which cannot be loaded]";

async function proveRoundTrip(base: string, expected: (string | null)[][]): Promise<void> {
  using temp = new TempFolder();
  const path = `${temp.path}/out.csv`;
  const { text } = await exported(base);
  Deno.writeTextFileSync(path, text);
  for (const [name, { tellsNull, read }] of Object.entries(READERS)) {
    const wanted = tellsNull ? expected : expected.map((row) => row.map((cell) => cell ?? ""));
    assert.deepEqual(await read(path, RUN_COLUMNS.length), wanted, name);
  }
}

testWith(["python"], `round trip of the sample${duck}`, async () => {
  using temp = new TempFolder();
  Deno.mkdirSync(`${temp.path}/db`);
  const database = `${temp.path}/db/telemetry.sqlite`;
  Deno.copyFileSync(`${SAMPLE}/base/db/telemetry.sqlite`, database);
  Deno.chmodSync(database, 0o644);
  const expected = content(database, "agent_runs", RUN_COLUMNS, "start_time, run_id");
  assert.equal(expected.length, JSON.parse(Deno.readTextFileSync(`${SAMPLE}/facts.json`)).runs_in_database);
  await proveRoundTrip(temp.path, expected);
});

testWith(["python"], `round trip of the worst strings${duck}`, async () => {
  const text = fc.oneof(
    fc.constantFrom(null, ...WORST),
    fc.string({ unit: "binary" }),
    fc.string({ unit: fc.constantFrom(...WORST.filter((text) => text !== "")) }),
  );
  const run = fc.record({
    input_summary: text,
    output_summary: text,
    metrics_json: text,
    host: text,
    git_branch: text,
    updated_at: text,
    agent_name: text.map((name) => name ?? ""),
    duration_ms: fc.option(fc.integer()),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(run, { minLength: 100, maxLength: 200 }), async (runs) => {
      using store = new Store().add(...runs);
      await proveRoundTrip(store.base, content(store.database, "agent_runs", RUN_COLUMNS, "start_time, run_id"));
    }),
    { numRuns: 4, endOnFailure: true },
  );
});

// ------------------------------------------------------------------------------------------------ rows

Deno.test("numbers: integers of any size exactly, reals, and a BLOB that somebody has put there", async () => {
  const max = 2n ** 63n - 1n;
  using store = new Store().add(
    { duration_ms: max, items_failed: -max - 1n, items_discovered: 0.1 + 0.2, host: new Uint8Array([0x61, 0x22]) },
    { duration_ms: 1, items_failed: 2 ** 53, items_discovered: 1e300, host: "=x" },
  );
  for (const flags of [{}, { for: "sheets" }, { agent: "a" }] as Flags[]) {
    const { rows } = await exported(store.base, {
      columns: "duration_ms,items_failed,items_discovered,host",
      ...flags,
    });
    assert.deepEqual([rows[0]![0], rows[0]![1], rows[1]![1]], [String(max), String(-max - 1n), String(2 ** 53)]);
    assert.deepEqual([rows[0]![2], rows[1]![2]].map(Number), [0.1 + 0.2, 1e300]);
    assert.deepEqual([rows[0]![3], rows[1]![3]], ['a"', flags["for"] ? "'=x" : "=x"]);
  }
});

Deno.test("a BLOB that is JSON to SQLite, as JSONB, is exported as the text that it says", async () => {
  for (const said of ["Hello", "\x0b", "\x00", "17", "3x, y"]) {
    const blob = new TextEncoder().encode(said);
    using store = new Store().add({ host: blob, duration_ms: blob, product: "=x" }, { host: "plain" });
    const { rows } = await exported(store.base, { columns: "host,duration_ms,product" });
    assert.deepEqual(
      rows.map(([host, duration_ms]) => [host, duration_ms]).toSorted(),
      [[said, said], ["plain", null]].toSorted(),
    );
  }
});

Deno.test("a database in UTF-16 is exported as UTF-8", async () => {
  for (const encoding of ["UTF-16le", "UTF-16be"]) {
    using store = new Store();
    Deno.removeSync(store.database);
    using db = Connection.open(store.database);
    db.exec(`PRAGMA encoding='${encoding}'`);
    applySchema(db);
    store.add({ host: "plain", duration_ms: 5 }, { host: "a\0é日🚀,", product: "" });
    for (const flags of [{}, { for: "sheets" }] as Flags[]) {
      const { rows } = await exported(store.base, { columns: "run_id,host,duration_ms,product", ...flags });
      assert.deepEqual(rows, [["r0", "plain", "5", null], ["r1", "a\0é日🚀,", null, ""]], encoding);
    }
  }
});

Deno.test("text that is no UTF-8 becomes UTF-8", async () => {
  using store = new Store().add({}).exec("UPDATE agent_runs SET host=CAST(x'61ff62' AS TEXT)");
  assert.deepEqual(await column(store.base, "host"), ["a\ufffdb"]);
});

Deno.test("order: start_time, then run_id, in every kind of table", async () => {
  const random = (n: number) => Array.from({ length: n }, () => crypto.randomUUID());
  const kinds: Record<string, (store: Store) => Store> = {
    "no two at a time": (store) =>
      store.add(...random(1700).map((run_id) => ({ run_id, start_time: crypto.randomUUID() }))),
    "some at a time": (store) =>
      store.add(...random(1700).map((run_id, i) => ({ run_id, start_time: `t${i * 7 % 90}` }))),
    "most at a time": (store) =>
      store.add(...random(3000).map((run_id, i) => ({ run_id, start_time: i % 50 ? "t" : `${i}` }))),
    "without an index": (store) =>
      store.add(...random(1700).map((run_id, i) => ({ run_id, start_time: `t${i % 90}` }))).exec(
        "DROP INDEX idx_runs_start",
      ),
    "with an index that orders otherwise": (store) =>
      store.add(...random(700).map((run_id, i) => ({ run_id, start_time: i % 2 ? `T${i}` : `t${i}` })))
        .exec("DROP INDEX idx_runs_start; CREATE INDEX idx_runs_start ON agent_runs(start_time COLLATE NOCASE)"),
    "with odd times": (store) =>
      store.add(...random(1200).map((run_id, i) => ({ run_id, start_time: `${i % 9}\0${i}` }))),
    "with a column that is called rowid": (store) => {
      store.exec("ALTER TABLE agent_runs ADD COLUMN rowid INTEGER DEFAULT 7");
      return store.add(...random(1200).map((run_id, i) => ({ run_id, start_time: `${i % 9}` })));
    },
    "with long rows": (store) => store.add(...random(40).map((run_id) => ({ run_id, host: "x".repeat(100_000) }))),
    "whole chunks": (store) => store.add(...random(1000).map((run_id, i) => ({ run_id, start_time: `${i + 1000}` }))),
    "one": (store) => store.add({}),
    "none": (store) => store,
  };
  for (const [kind, fill] of Object.entries(kinds)) {
    using store = fill(new Store());
    const { rows } = await exported(store.base, { columns: "start_time,run_id" });
    assert.deepEqual(rows, content(store.database, "agent_runs", ["start_time", "run_id"], "start_time, run_id"), kind);
  }
});

testWith(["python"], "an index that lacks rows is damage, and not an export without them", async () => {
  using store = new Store().add({});
  await python(
    `import sqlite3, sys
def run(sql):
    db = sqlite3.connect(sys.argv[1])
    db.executescript("PRAGMA writable_schema=ON;" + sql)
    db.close()
index = "FROM sqlite_master WHERE name='idx_runs_start'"
run("CREATE TABLE kept AS SELECT * %s; DELETE %s" % (index, index))
run("INSERT INTO agent_runs (run_id, agent_name, start_time) VALUES ('unlisted', 'a', '')")
run("INSERT INTO sqlite_master SELECT * FROM kept; DROP TABLE kept")`,
    store.database,
  );
  await assert.rejects(exported(store.base), (error) => hasCode(error, "damaged"));
});

Deno.test("old databases: the contract's columns in the contract's order, what they lack is empty", async () => {
  for (const kind of ["v1", "v2", "v2_recovered", "says3_is2", "v7"] as OldKind[]) {
    using temp = new TempFolder();
    Deno.mkdirSync(`${temp.path}/db`);
    const database = `${temp.path}/db/telemetry.sqlite`;
    makeOldDatabase(database, kind);
    const { header, rows } = await exported(temp.path);
    assert.deepEqual(header, RUN_COLUMNS);
    const lacking = RUN_COLUMNS.filter((name) =>
      (kind === "v1" && name === "insight_id") || (kind !== "v7" && ["product_family", "subdomain"].includes(name))
    );
    const columns = RUN_COLUMNS.map((name) => lacking.includes(name) ? "NULL" : name);
    assert.deepEqual(rows, content(database, "agent_runs", columns, "start_time, run_id"), kind);
    const commits = await exported(temp.path, { table: "commits" });
    assert.equal(commits.header!.length, 12);
    assert.deepEqual(commits.rows.map(([hash]) => hash), kind === "v2_recovered" ? [] : ["c0ffee"], kind);
  }
});

Deno.test("the columns of events and commits are those of the schema", async () => {
  using store = new Store();
  using db = new DatabaseSync(store.database);
  for (const [table, name] of [["events", "run_events"], ["commits", "commits"]] as const) {
    const columns = db.prepare("SELECT name FROM pragma_table_info(?)").all(name).map((row) => row["name"]);
    assert.deepEqual((await exported(store.base, { table })).columns, columns);
  }
});

Deno.test("commits are in the order of their date, then of their hash", async () => {
  using store = new Store().exec(`INSERT INTO commits (commit_hash, commit_date, agent_name) VALUES
    ('c', '2025-12-02', 'a'), ('b', '2025-12-01', 'b'), ('d', NULL, 'a'), ('a', '2025-12-02', 'b')`);
  const hashes = (flags: Flags = {}) => column(store.base, "commit_hash", { table: "commits", ...flags });
  assert.deepEqual(await hashes(), ["d", "b", "a", "c"]);
  assert.deepEqual(await hashes({ since: "2025-12-02" }), ["a", "c"]);
  assert.deepEqual(await hashes({ until: "2025-12-01", agent: "b" }), ["b"]);
});

// ------------------------------------------------------------------------------------------------ filters

/** One moment, as it is written in the field. */
const SAME = [
  "2025-12-10 12:05:30",
  "2025-12-10T12:05:30Z",
  "2025-12-10T12:05:30+00:00",
  "2025-12-10T12:05:30.000000+00:00",
  "2025-12-10T14:05:30.0+02:00",
  "2025-12-10T06:35:30-0530",
];

Deno.test("times are compared as instants, whatever their form", async () => {
  using store = new Store().add(
    ...SAME.map((start_time) => ({ start_time })),
    { run_id: "before", start_time: "2025-12-10T12:05:29.999999+00:00" },
    { run_id: "after", start_time: "2025-12-10T12:05:30.000001+00:00" },
  );
  for (const time of SAME) {
    const from = await column(store.base, "run_id", { since: time });
    assert.equal(from.length, SAME.length + 1, time);
    assert.ok(!from.includes("before"));
    assert.deepEqual(await column(store.base, "run_id", { until: time }), ["before"], time);
  }
  assert.deepEqual(
    await column(store.base, "run_id", { since: "2025-12-10T12:05:30.0000005Z", until: "2025-12-10T12:05:30.000001Z" }),
    await column(store.base, "run_id", { since: SAME[0]!, until: "2025-12-10T12:05:30.000001Z" }),
  );
});

Deno.test("--since and --until: days are whole UTC days, 7d and the like count from now", async () => {
  using store = new Store().add(...[
    "2025-12-09T23:59:59.999999+00:00",
    "2025-12-10T00:00:00+00:00",
    "2025-12-10T23:59:59.999999+00:00",
    "2025-12-11T00:00:00+00:00",
    "2025-12-19T23:30:00+00:00",
  ].map((start_time, i) => ({ run_id: String(i), start_time })));
  const ids = async (flags: Flags) => (await column(store.base, "run_id", flags)).join("");
  assert.equal(await ids({ since: "2025-12-10" }), "1234");
  assert.equal(await ids({ until: "2025-12-10" }), "012");
  assert.equal(await ids({ since: "2025-12-10", until: "2025-12-10" }), "12");
  assert.equal(await ids({ until: "2025-12-11T00:00" }), "012");
  assert.equal(await ids({ since: "9d" }), "34");
  assert.equal(await ids({ since: "24h" }), "4");
  assert.equal(await ids({ since: "30m" }), "4");
  assert.equal(await ids({ since: "29m" }), "");
});

Deno.test("--since, --until and --updated-since take a date as Git writes it", async () => {
  const start_time = "2025-12-10T12:05:30+00:00";
  using store = new Store().add({ start_time, created_at: start_time, updated_at: start_time });
  const at = ["Wed Dec 10 13:05:30 2025 +0100", "Wed, 10 Dec 2025 12:05:30 +0000", "1765368330 +0100", "@1765368330"];
  for (const time of [...at, "2025-12-10 13:05:30 +0100", "2025-12-10T13:05:30+01:00"]) {
    for (const [flag, rows] of [["since", 1], ["until", 0], ["updated-since", 1]] as const) {
      assert.equal((await exported(store.base, { [flag]: time })).rows.length, rows, `--${flag} ${time}`);
    }
  }
});

Deno.test("a time that cannot be told: exported without a filter, left out and counted with one", async () => {
  using store = new Store().add(
    ...["yesterday", "", "2025-02-30T00:00:00Z", "2025-12-10T25:00:00Z", "1765368330", "12:05:30"]
      .map((start_time) => ({ start_time })),
    { run_id: "good" },
  );
  const all = await exported(store.base);
  assert.deepEqual([all.rows.length, all.untimed_rows], [7, 0]);
  const since = await exported(store.base, { columns: "run_id", since: "2000-01-01" });
  assert.deepEqual([since.rows, since.untimed_rows], [[["good"]], 6]);
  const both = await exported(store.base, { columns: "run_id", since: "2000-01-01", until: "2000-01-01", agent: "b" });
  assert.deepEqual([both.rows, both.untimed_rows], [[], 0], "those of other agents do not count");
});

Deno.test("--updated-since: made, changed, ended or posted then or later", async () => {
  const old = { created_at: "2025-12-01 00:00:00", updated_at: "2025-12-01 00:00:00" };
  using store = new Store().add(
    { ...old, run_id: "0" },
    { ...old, run_id: "1", created_at: "2025-12-10 00:00:00" },
    { ...old, run_id: "2", updated_at: "2025-12-10 00:00:00" },
    { ...old, run_id: "3", end_time: "2025-12-10T00:00:00Z" },
    { ...old, run_id: "4", api_posted_at: "2025-12-10T01:00:00+01:00" },
    { ...old, run_id: "5", created_at: null, updated_at: null },
    { ...old, run_id: "6", updated_at: "never" },
  );
  const found = await exported(store.base, { columns: "run_id", "updated-since": "2025-12-10" });
  assert.deepEqual([found.rows.flat().join(""), found.untimed_rows], ["1234", 2]);
  const inSecond = await column(store.base, "run_id", { "updated-since": "2025-12-10T00:00:00.9Z" });
  assert.equal(inSecond.join(""), "1234", "the database notes whole seconds");
  assert.deepEqual(await column(store.base, "run_id", { "updated-since": "2025-12-10T00:00:01Z" }), []);
});

Deno.test("--agent, --status, --columns, and all together", async () => {
  using store = new Store().add(
    { run_id: "0", agent_name: "a", status: "success" },
    { run_id: "1", agent_name: "b", status: "failed" },
    { run_id: "2", agent_name: "a,b", status: "partial" },
    { run_id: "3", agent_name: "A", status: "running", start_time: "2025-12-11" },
  );
  const ids = async (flags: Flags) => (await column(store.base, "run_id", flags)).join("");
  assert.equal(await ids({ agent: "a" }), "0");
  assert.equal(await ids({ agent: "a,b" }), "012", "a list, or one name with a comma");
  assert.equal(await ids({ agent: "nobody" }), "");
  assert.equal(await ids({ status: "failed" }), "1");
  assert.equal(await ids({ status: "running,partial" }), "23");
  assert.equal(await ids({ status: "running,partial", agent: "A", since: "2025-12-11", until: "1d" }), "3");
  const { header, rows } = await exported(store.base, { columns: "status,run_id", agent: "b", since: "2025-12-01" });
  assert.deepEqual([header, rows], [["status", "run_id"], [["failed", "1"]]]);
});

Deno.test("wrong flags: what is allowed is listed", () => {
  const wrong: [Flags, ...string[]][] = [
    [{ table: "users" }, "runs", "events", "commits"],
    [{ columns: "run_id,nope" }, "run_id", "subdomain"],
    [{ columns: "" }, "run_id"],
    [{ columns: "run_id,run_id" }, "once"],
    [{ table: "events", columns: "status" }, "payload_json"],
    [{ status: "done" }, "running", "success", "failed", "partial"],
    [{ status: "success," }, "running"],
    [{ for: "word" }, "sheets", "excel"],
    [{ table: "events", agent: "a" }, "--since", "--until"],
    [{ table: "events", "updated-since": "7d" }, "--since"],
    [{ table: "commits", status: "failed" }, "--since", "--until", "--agent"],
    ...[
      "yesterday",
      "",
      "2025-13-01",
      "2025-02-30",
      "2025-12-10T24:00",
      "7",
      "d",
      "7w",
      "-7d",
      "1.5h",
      "2025-12-10T1:00Z",
    ]
      .flatMap((time): [Flags, ...string[]][] =>
        ["since", "until", "updated-since"].map((flag) => [{ [flag]: time }, "2025-12-10", "7d"])
      ),
  ];
  for (const [flags, ...allowed] of wrong) {
    assert.throws(() => readRequest(flags, NOW), (error) => {
      assert.ok(hasCode(error, "usage"), JSON.stringify(flags));
      for (const word of allowed) assert.ok(error.hint?.includes(word), `${JSON.stringify(flags)}: ${error.hint}`);
      return true;
    });
  }
});

// ------------------------------------------------------------------------------------------------ events

Deno.test("events: from the log, in its order, as they are", async () => {
  using store = new Store();
  const event = (fields: Record<string, unknown>) =>
    JSON.stringify({
      run_id: "r",
      event_type: "e",
      timestamp: "2025-12-10T00:00:00Z",
      ...fields,
      id: null,
      record_type: "event",
    });
  const payload = '{"a": "é \\" , \n\0", "b":1.0}';
  Deno.writeTextFileSync(
    `${store.base}/raw/events_20251210.ndjson`,
    [
      event({ payload_json: payload }),
      JSON.stringify({ run_id: "r", agent_name: "a", start_time: "t", record_type: "run" }),
      '{"half',
      event({ payload_json: { old: [1] }, timestamp: "2025-12-10T10:00:00+00:00" }),
      event({ payload_json: "", event_type: "=f()" }),
    ].join("\n"),
  );
  const gzip = new Blob([`${event({ timestamp: "never" })}\n`]).stream().pipeThrough(new CompressionStream("gzip"));
  Deno.writeFileSync(
    `${store.base}/raw/events_20251209.ndjson.gz`,
    new Uint8Array(await new Response(gzip).arrayBuffer()),
  );
  const all = await exported(store.base, { table: "events" });
  assert.deepEqual(all.header, ["id", "run_id", "event_type", "timestamp", "payload_json"]);
  assert.deepEqual(all.rows, [
    [null, "r", "e", "never", null],
    [null, "r", "e", "2025-12-10T00:00:00Z", payload],
    [null, "r", "e", "2025-12-10T10:00:00+00:00", '{"old":[1]}'],
    [null, "r", "=f()", "2025-12-10T00:00:00Z", ""],
  ]);
  assert.equal(all.rejected_lines, 1);
  const late = await exported(store.base, { table: "events", columns: "payload_json", since: "2025-12-10T10:00" });
  assert.deepEqual([late.rows, late.untimed_rows], [[['{"old":[1]}']], 1]);
});

Deno.test("events: all that the sample's log has", async () => {
  const { rows, rejected_lines } = await exported(`${SAMPLE}/base`, { table: "events" });
  const facts = JSON.parse(Deno.readTextFileSync(`${SAMPLE}/facts.json`));
  assert.deepEqual([rows.length, rejected_lines], [facts.events, facts.rejected_lines]);
});

// ------------------------------------------------------------------------------------------------ files

Deno.test("a program's export removes what a killed one has left in exports/", async () => {
  using store = new Store().add({});
  const { exports } = layoutOf(store.base);
  Deno.mkdirSync(exports);
  Deno.writeTextFileSync(`${exports}/agent_runs_20251210_120000.csv.partial`, "half");
  const { path } = await exportToFile(layoutOf(store.base), readRequest({}, NOW));
  assert.deepEqual([...Deno.readDirSync(exports)].map(({ name }) => pathIn(exports, name)), [path]);
});

Deno.test("a file that another program makes meanwhile is not replaced", async () => {
  using store = new Store().add({});
  const path = `${store.base}/late.csv`;
  const theirs = () => Deno.writeTextFileSync(path, "theirs");
  const exporting = exportToFile(layoutOf(store.base), readRequest({}, NOW), { path, onProgress: theirs });
  await assert.rejects(exporting, (error) => hasCode(error, "usage"));
  assert.equal(Deno.readTextFileSync(path), "theirs");
  assert.deepEqual([...Deno.readDirSync(store.base)].map(({ name }) => name).sort(), ["db", "late.csv", "raw"]);
});

testWith(["linux"], "a full disk is said, and leaves nothing", async () => {
  using store = new Store().add({});
  using full = Deno.openSync("/dev/full", { write: true });
  const exporting = exportTo(layoutOf(store.base), readRequest({}, NOW), full, "x.csv");
  await assert.rejects(exporting, (error) => hasCode(error, "disk_full"));
});
