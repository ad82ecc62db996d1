import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { checkHealth } from "../../../lib/recovery/health.ts";
import { layoutOf } from "../../../lib/layout.ts";
import { locate } from "../../../lib/fs/locate.ts";
import { recoverDatabase, type Recovery, type RecoveryOptions } from "../../../lib/recovery/recover.ts";
import { schemaSql } from "../../../lib/schema.ts";
import { FAST_FOLDER, makeOldDatabase, type OldKind, TempFolder, testWith } from "../../fixtures/mod.ts";

type Cells = (string | number | bigint | Uint8Array | null)[];

class Store implements Disposable {
  readonly #temp = new TempFolder(FAST_FOLDER);
  readonly layout = layoutOf(`${this.#temp.path}/store`);
  readonly file = this.layout.database;

  constructor(sql?: string) {
    for (const folder of [this.layout.raw, this.layout.db]) Deno.mkdirSync(folder, { recursive: true });
    if (sql !== undefined) this.sql(sql);
  }

  sql(sql: string): void {
    const db = new DatabaseSync(this.file, { enableForeignKeyConstraints: false });
    db.exec(sql);
    db.close();
  }

  /** Rows with exact integers of any size. */
  rows(sql: string): Cells[] {
    const db = new DatabaseSync(this.file);
    const statement = db.prepare(sql);
    statement.setReadBigInts(true);
    const plain = (cell: Cells[0]) =>
      typeof cell === "bigint" && Number.isSafeInteger(Number(cell)) ? Number(cell) : cell;
    const rows = statement.all().map((row) => Object.values(row).map(plain));
    db.close();
    return rows;
  }

  values(sql: string): unknown[] {
    return this.rows(sql).flat();
  }

  log(...lines: string[]): void {
    Deno.writeTextFileSync(`${this.layout.raw}/events_20251210.ndjson`, lines.map((text) => `${text}\n`).join(""));
  }

  change(work: (bytes: Uint8Array<ArrayBuffer>) => void): void {
    const bytes = Deno.readFileSync(this.file);
    work(bytes);
    Deno.writeFileSync(this.file, bytes);
  }

  async recover(options: RecoveryOptions = {}): Promise<Recovery> {
    const recovery = (await recoverDatabase(this.layout, options))!;
    assert.deepEqual(this.values("PRAGMA integrity_check"), ["ok"]);
    return recovery;
  }

  [Symbol.dispose](): void {
    this.#temp[Symbol.dispose]();
  }
}

/** What is done to an intact database. */
const DAMAGES = {
  none: () => {},
  header: (bytes: Uint8Array) => void bytes.fill(0, 0, 100),
  schema: (bytes: Uint8Array) => void bytes.fill(0, 0, 4096),
  /** A page of an index: SQLite finds the damage, so that the pages are read, too. */
  page: (bytes: Uint8Array) => {
    const leaf = Array.from({ length: bytes.length / 4096 }, (_, page) => page * 4096).find((at) => bytes[at] === 10);
    bytes.fill(0x55, leaf, leaf! + 4096);
  },
};
/** Those that leave the schema readable. */
const WITH_SCHEMA = ["none", "header"] as const;

function insertOf(run_id: string, fields: Record<string, string | number | null> = {}): string {
  const all = { run_id, agent_name: "a", start_time: "2025-12-10T10:00:00+00:00", status: "success", ...fields };
  const values = Object.values(all).map((value) => typeof value === "string" ? `'${value}'` : String(value));
  return `INSERT INTO agent_runs (${Object.keys(all)}) VALUES (${values});`;
}

function line(run_id: string, fields: Record<string, unknown> = {}): string {
  const run = { run_id, agent_name: "a", start_time: "2025-12-10T10:00:00+00:00", status: "success", ...fields };
  return JSON.stringify({ ...run, record_type: "run" });
}

function rejectsOf({ rejected_file }: Recovery): Record<string, unknown>[] {
  if (rejected_file === null) return [];
  return Deno.readTextFileSync(rejected_file).trimEnd().split("\n").map((text) => JSON.parse(text));
}

// ------------------------------------------------------------------------------------------------ the contract's tables

for (const damage of ["none", "header", "schema"] as const) {
  Deno.test(`damage ${damage}: every cell of every contract table comes back`, async () => {
    using store = new Store(
      schemaSql() + insertOf("posted", {
        api_posted: 1,
        api_posted_at: "then",
        api_retry_count: 2,
        created_at: "2025-01-01 00:00:00",
        updated_at: "2025-01-02 00:00:00",
        metrics_json: '{"a": 1}',
        product_family: "f",
        subdomain: "s",
        insight_id: "i",
        duration_ms: 2 ** 40,
        host: "h",
      }) + insertOf("failed", { status: "failed", api_retry_count: 7, error_summary: "é 🚀", items_failed: 3 }) +
        insertOf("running", { status: "running" }) +
        `INSERT INTO commits VALUES ('c0ffee', 'posted', 'a', 'r', 'main', 'd', 'me', 'm', 1, 2, 3, '2025-01-01 00:00:00');
        INSERT INTO run_events (run_id, event_type, timestamp, payload_json) VALUES ('posted', 'e', '2025-01-01T00:00:00Z', '{}'),
        ('x', 'e', '2025-01-01T00:00:00Z', NULL);`,
    );
    const read = () =>
      ["agent_runs", "commits", "run_events"].map((table) => {
        const columns = store.values(
          `SELECT name FROM pragma_table_info('${table}') WHERE name<>'custom_metadata' ORDER BY 1`,
        );
        return store.rows(`SELECT ${columns} FROM ${table} ORDER BY 1, 2, 3`);
      });
    const before = read();
    store.change(DAMAGES[damage]);
    const { runs_from, commits, run_events } = await store.recover();
    assert.deepEqual(read(), before);
    assert.deepEqual([runs_from, commits, run_events], [{ log: 0, log_and_salvaged: 0, salvaged: 3 }, 1, 2]);
  });
}

for (const kind of ["v1", "v2", "v2_recovered", "v2_recovered_commits", "says3_is2"] as OldKind[]) {
  for (const damage of ["header", "schema"] as const) {
    Deno.test(`damage ${damage}: every cell of a ${kind} database comes back in its column`, async () => {
      using store = new Store();
      makeOldDatabase(store.file, kind, 60);
      store.sql(
        `UPDATE agent_runs SET host='host', product='product', git_run_tag='tag', metrics_json='{}', api_posted=1,
        api_retry_count=rowid % 3, api_posted_at='then', git_repo=CASE WHEN rowid % 2 THEN 'repo' END
        ${kind === "v1" ? "" : ", insight_id='insight'"}`,
      );
      const columns = store.values("SELECT name FROM pragma_table_info('agent_runs')").join();
      const read = () => store.rows(`SELECT ${columns}, hex(output_summary) FROM agent_runs ORDER BY run_id`);
      const before = read();
      store.change(DAMAGES[damage]);
      await store.recover();
      assert.deepEqual(read(), before);
    });
  }
}

Deno.test("a run that ended replaces a running one of any source, and api_posted markers stay", async () => {
  const mark = { api_posted: 1, api_posted_at: "then" };
  for (const damage of ["none", "header", "schema"] as const) {
    using store = new Store(
      schemaSql() + insertOf("ended in db", { ...mark, product: "db", api_retry_count: 1 }) +
        insertOf("running in db", { ...mark, status: "running", product: "db", api_retry_count: 5 }) +
        insertOf("both", { status: "partial", product: "db", created_at: "2025-01-01 00:00:00" }),
    );
    store.change(DAMAGES[damage]);
    store.log(
      line("ended in db", { status: "running", product: "log" }),
      line("running in db", { product: "log", end_time: "2025-12-10T11:00:00+00:00" }),
      line("both", { status: "failed", product: "log", ...mark }),
      line("log"),
    );
    const { runs_from } = await store.recover();
    assert.deepEqual(runs_from, { log: 1, log_and_salvaged: 3, salvaged: 0 });
    const columns = "run_id, status, product, api_posted, api_posted_at, api_retry_count";
    assert.deepEqual(store.rows(`SELECT ${columns} FROM agent_runs ORDER BY 1`), [
      ["both", "failed", "log", 1, "then", 0],
      ["ended in db", "success", "db", 1, "then", 1],
      ["log", "success", null, 0, null, 0],
      ["running in db", "success", "log", 1, "then", 5],
    ]);
    assert.deepEqual(store.values("SELECT created_at FROM agent_runs WHERE run_id='both'"), ["2025-01-01 00:00:00"]);
  }
});

Deno.test("rows that break a CHECK are rejected with their cells", async () => {
  using store = new Store(
    schemaSql() + "PRAGMA ignore_check_constraints=ON;" + insertOf("fine") + insertOf("bogus", { status: "bogus" }) +
      "INSERT INTO agent_runs (run_id, agent_name, start_time) VALUES (NULL, 'a', 't')",
  );
  const recovery = await store.recover();
  assert.deepEqual(store.values("SELECT run_id FROM agent_runs"), ["fine"]);
  const rejects = rejectsOf(recovery);
  assert.ok(
    rejects.every(({ file, table }) => file === recovery.kept && table === "agent_runs"),
    JSON.stringify(rejects),
  );
  assert.ok(
    rejects.some(({ rowid, text, length }) => rowid === 2 && String(text).includes('"bogus"') && Number(length) > 0),
  );
  assert.ok(rejects.some(({ rowid }) => rowid === 3));
  assert.ok(Object.keys(recovery.rejected).some((reason) => /CHECK/.test(reason)));
});

for (const over of [[0x1a, 0x2c, 0x63], [0x41, 0xff, 0x41]]) {
  Deno.test(`a row whose id is overwritten by ${over} is rejected`, async () => {
    using store = new Store(schemaSql() + insertOf("sound") + insertOf("overwritten", { output_summary: "of it" }));
    store.change((bytes) => {
      const text = new TextDecoder("latin1").decode(bytes);
      // In the table alone, whose leaves begin with 13: the index still has the right one.
      for (let page = 0; page < bytes.length; page += 4096) {
        const at = text.slice(page, page + 4096).indexOf("overwritten");
        if (bytes[page] === 13 && at >= 0) bytes.set(over, page + at + 4);
      }
    });
    const recovery = await store.recover();
    assert.deepEqual(store.values("SELECT run_id FROM agent_runs"), ["sound"]);
    assert.ok(rejectsOf(recovery).some(({ text }) => String(text).includes("of it")));
  });
}

Deno.test({
  name: "a refused row is rejected once",
  fn: async () => {
    using store = new Store(
      schemaSql() + "PRAGMA ignore_check_constraints=ON;" + insertOf("bogus", { status: "bogus" }),
    );
    assert.equal(rejectsOf(await store.recover()).length, 1);
  },
});

Deno.test({
  name: "a run with U+FFFD in its text comes back without SQLite",
  fn: async () => {
    using store = new Store(schemaSql() + insertOf("x", { error_summary: "caf\ufffd", api_posted: 1 }));
    store.change(DAMAGES.schema);
    await store.recover();
    assert.deepEqual(store.rows("SELECT run_id, error_summary, api_posted FROM agent_runs"), [["x", "caf\ufffd", 1]]);
  },
});

Deno.test("NULL of a later source replaces a value of an earlier one", async () => {
  using store = new Store(schemaSql() + insertOf("x", { status: "failed", error_summary: "it failed", product: "p" }));
  const backup = `${store.layout.base}/backup.sqlite`;
  Deno.copyFileSync(store.file, backup);
  store.sql("UPDATE agent_runs SET status='success', error_summary=NULL");
  await store.recover({ backup });
  assert.deepEqual(store.rows("SELECT status, error_summary, product FROM agent_runs"), [["success", null, "p"]]);
});

// ------------------------------------------------------------------------------------------------ the WAL

/** Leaves a database with content that is only in its WAL, like a killed agent. */
function leaveWal(path: string, inFile: string, inWal: string): void {
  const db = new DatabaseSync(path, { enableForeignKeyConstraints: false });
  db.exec(inFile + "PRAGMA wal_checkpoint(TRUNCATE); PRAGMA wal_autocheckpoint=0;" + inWal);
  for (const end of ["", "-wal"]) Deno.copyFileSync(path + end, `${path}${end}.copy`);
  db.close();
  for (const end of ["", "-wal"]) Deno.renameSync(`${path}${end}.copy`, path + end);
}

for (const damage of ["none", "header", "schema"] as const) {
  Deno.test(`damage ${damage}: rows that are only in the WAL come back`, async () => {
    using store = new Store();
    leaveWal(
      store.file,
      schemaSql() + insertOf("in file") + insertOf("changed", { status: "running" }),
      insertOf("in wal", { api_posted: 1, api_posted_at: "then" }) +
        "UPDATE agent_runs SET status='success', api_posted=1 WHERE run_id='changed';" +
        "INSERT INTO commits (commit_hash, run_id, agent_name, repo) VALUES ('c0ffee', 'in wal', 'a', 'r');",
    );
    store.change(DAMAGES[damage]);
    const { kept } = await store.recover();
    assert.deepEqual(store.rows("SELECT run_id, status, api_posted, api_posted_at FROM agent_runs ORDER BY 1"), [
      ["changed", "success", 1, null],
      ["in file", "success", 0, null],
      ["in wal", "success", 1, "then"],
    ]);
    assert.deepEqual(store.values("SELECT commit_hash FROM commits"), ["c0ffee"]);
    if (damage !== "none") assert.ok(Deno.statSync(`${kept}-wal`).size > 0);
  });
}

Deno.test("intact frames of a torn WAL and the rows of the file come back", async () => {
  using store = new Store();
  leaveWal(store.file, schemaSql() + insertOf("in file"), insertOf("first") + insertOf("second"));
  Deno.truncateSync(`${store.file}-wal`, Deno.statSync(`${store.file}-wal`).size - 2000);
  store.change(DAMAGES.header);
  await store.recover();
  const ids = store.values("SELECT run_id FROM agent_runs");
  assert.ok(ids.includes("in file") && ids.includes("first"), ids.join());
});

Deno.test("the WAL of another database hides no row of the file", async () => {
  using store = new Store();
  using other = new Store();
  leaveWal(other.file, schemaSql() + insertOf("other"), insertOf("others wal"));
  const own = Array.from({ length: 200 }, (_, i) => `own ${i}`);
  store.sql(schemaSql() + own.map((id) => insertOf(id, { api_posted: 1 })).join(""));
  Deno.copyFileSync(`${other.file}-wal`, `${store.file}-wal`);
  const { kept } = await store.recover();
  const ids = store.values("SELECT run_id FROM agent_runs WHERE api_posted=1");
  const lost = own.filter((id) => !ids.includes(id));
  assert.deepEqual([lost.length, kept === null], [0, false], lost.join());
});

Deno.test("the WAL of another database sets no api_posted marker", async () => {
  using store = new Store();
  using other = new Store();
  const ids = Array.from({ length: 200 }, (_, i) => `own ${i}`);
  // The indexes of both have the same pages, and the other's mark the row numbers as posted.
  leaveWal(
    other.file,
    schemaSql() + ids.map((id) => insertOf(id.replace("own", "other"))).join(""),
    "UPDATE agent_runs SET api_posted=1, api_posted_at='then'",
  );
  store.sql(schemaSql() + ids.map((id) => insertOf(id)).join(""));
  Deno.copyFileSync(`${other.file}-wal`, `${store.file}-wal`);
  store.log(...ids.map((id) => line(id)));
  await store.recover();
  assert.deepEqual(store.values("SELECT run_id FROM agent_runs WHERE api_posted=1 AND run_id LIKE 'own%'"), []);
});

// ------------------------------------------------------------------------------------------------ user-defined objects

const OWN = `
  ALTER TABLE agent_runs ADD COLUMN team TEXT NOT NULL DEFAULT 'it''s red';
  ALTER TABLE agent_runs ADD COLUMN "my cost" REAL DEFAULT 1.5;
  ALTER TABLE commits ADD COLUMN reviewed INTEGER;
  CREATE INDEX own_index ON agent_runs(team, start_time) WHERE status<>'running';
  CREATE TABLE keyed (id INTEGER PRIMARY KEY AUTOINCREMENT, note TEXT UNIQUE, at TEXT DEFAULT CURRENT_TIMESTAMP);
  CREATE TABLE bare (a, b BLOB, c REAL, d INTEGER, e TEXT COLLATE NOCASE);
  CREATE TABLE strict_one (a INTEGER NOT NULL, b ANY) STRICT;
  CREATE UNIQUE INDEX bare_a ON bare(a);
  CREATE VIEW own_view AS SELECT agent_name, count(*) AS runs FROM agent_runs GROUP BY 1;
  CREATE TABLE seen (run_id);
  CREATE TRIGGER own_trigger AFTER INSERT ON agent_runs BEGIN INSERT INTO seen VALUES (new.run_id); END;
  INSERT INTO keyed (id, note, at) VALUES (3, 'three', 'then'), (-9007, 'minus', 'then'), (1099511627776, 'é', 'then');
  INSERT INTO bare VALUES (9223372036854775807, x'00ff', 0.1, -9007199254740993, 'a' || char(0) || 'b 🚀'),
    ('text', x'', 1e300, 5, ''), (NULL, x'ff', -0.5, NULL, NULL), (3.5, 'text', 7.0, 8, 'x');
  INSERT INTO strict_one VALUES (1, 'text'), (2, 2.5), (3, x'ff');
  ${insertOf("x", { team: "blue" })} ${insertOf("y")}
  UPDATE agent_runs SET "my cost"=9.25 WHERE run_id='x';
  INSERT INTO commits (commit_hash, reviewed) VALUES ('c0ffee', 1);`;

for (const damage of WITH_SCHEMA) {
  Deno.test(`damage ${damage}: plain user-defined tables, columns, indexes, triggers and views come back`, async () => {
    using store = new Store(schemaSql() + OWN);
    const read = () => ({
      keyed: store.rows("SELECT * FROM keyed ORDER BY 1").filter(([id]) => damage === "none" || Number(id) > 0),
      bare: store.rows("SELECT rowid, a, typeof(a), hex(b), typeof(b), c, d, hex(e) FROM bare ORDER BY 1"),
      strict: store.rows("SELECT a, typeof(b), hex(b) FROM strict_one ORDER BY 1"),
      seen: store.rows("SELECT * FROM seen ORDER BY 1"),
      runs: store.rows(`SELECT run_id, team, "my cost" FROM agent_runs ORDER BY 1`),
      commits: store.rows("SELECT commit_hash, reviewed FROM commits"),
      sql: store.rows(`SELECT name, sql FROM sqlite_schema WHERE name IN
        ('own_index', 'keyed', 'bare', 'strict_one', 'bare_a', 'own_view', 'own_trigger') ORDER BY 1`),
    });
    const before = read();
    assert.equal(before.sql.length, 7);
    store.change(DAMAGES[damage]);
    const { not_brought } = await store.recover();
    assert.deepEqual(not_brought, []);
    assert.deepEqual(read(), before);
    // A new run gets the defaults, and the trigger fires.
    store.sql(insertOf("z"));
    assert.deepEqual(store.rows(`SELECT team, "my cost" FROM agent_runs WHERE run_id='z'`), [["it's red", 1.5]]);
    assert.ok(store.values("SELECT run_id FROM seen").includes("z"));
  });
}

Deno.test("runs of the log get the defaults of user-defined columns", async () => {
  using store = new Store(
    schemaSql() + "ALTER TABLE agent_runs ADD COLUMN team TEXT NOT NULL DEFAULT 'red';" + insertOf("x"),
  );
  store.log(line("new"), line("x"));
  await store.recover();
  assert.deepEqual(store.rows("SELECT run_id, team FROM agent_runs ORDER BY 1"), [["new", "red"], ["x", "red"]]);
});

async function assertUtf16(damage: keyof typeof DAMAGES): Promise<void> {
  using store = new Store(
    "PRAGMA encoding='UTF-16le';" + schemaSql() + insertOf("é 🚀", { product: "日本語", api_posted: 1 }) +
      "CREATE TABLE own (a); INSERT INTO own VALUES ('ü')",
  );
  store.change(DAMAGES[damage]);
  await store.recover();
  assert.deepEqual(store.rows("SELECT run_id, product, api_posted FROM agent_runs"), [["é 🚀", "日本語", 1]], damage);
  assert.deepEqual(store.values("SELECT a FROM own"), ["ü"], damage);
}

Deno.test("a UTF-16 database comes back, intact or with a damaged page", async () => {
  await assertUtf16("none");
  await assertUtf16("page");
});

for (const [damage, encoding] of [["none", "UTF-8"], ["page", "UTF-8"], ["page", "UTF-16le"]] as const) {
  Deno.test(`damage ${damage}: text that is not ${encoding} keeps its bytes`, async () => {
    using store = new Store(
      `PRAGMA encoding='${encoding}';` + schemaSql() + insertOf("x") + `CREATE TABLE own (a, b);
      INSERT INTO own VALUES (CAST(x'00d84d00fcff' AS TEXT), x'fc'), (CAST(x'4dfc6e00' AS TEXT), 2);
      UPDATE agent_runs SET agent_name=CAST(x'4dfc6e00' AS TEXT), error_summary=CAST(x'4dfc6e00' AS TEXT)`,
    );
    const read = () => [
      ...store.rows("SELECT typeof(a), hex(CAST(a AS BLOB)), hex(b) FROM own ORDER BY 2"),
      ...["agent_name", "error_summary"].flatMap((name) =>
        store.rows(`SELECT typeof(${name}), hex(CAST(${name} AS BLOB)) FROM agent_runs`)
      ),
    ];
    const before = read();
    store.change(DAMAGES[damage]);
    await store.recover();
    assert.deepEqual(read(), before);
  });
}

for (const damage of ["none", "page"] as const) {
  Deno.test(`damage ${damage}: the settings of the file stay`, async () => {
    const names = ["page_size", "auto_vacuum", "user_version", "application_id", "encoding"];
    using store = new Store(
      "PRAGMA page_size=8192; PRAGMA auto_vacuum=2; PRAGMA user_version=77; PRAGMA application_id=-5;" +
        "PRAGMA encoding='UTF-16be';" + schemaSql() + insertOf("x"),
    );
    const read = () => names.map((name) => store.values(`PRAGMA ${name}`)[0]);
    const before = read();
    assert.deepEqual(before, [8192, 2, 77, -5, "UTF-16be"]);
    if (damage === "page") {
      const root = Number(store.values("SELECT rootpage FROM sqlite_schema WHERE name='idx_runs_status'")[0]);
      store.change((bytes) => void bytes.fill(0x55, (root - 1) * 8192, root * 8192));
    }
    await store.recover();
    assert.deepEqual(read(), before);
  });
}

Deno.test("tables with a function that only another program has are left out whole, and named", async () => {
  for (const damage of ["none", "page"] as const) {
    using store = new Store(schemaSql() + insertOf("x"));
    {
      using db = new DatabaseSync(store.file);
      db.function("foreign_one", { deterministic: true }, (value) => value);
      db.exec(`CREATE TABLE quota (n CHECK (foreign_one(n) = n)); INSERT INTO quota VALUES (3);
        CREATE INDEX by_name ON agent_runs(foreign_one(agent_name));
        CREATE TRIGGER counted AFTER INSERT ON quota BEGIN DELETE FROM commits; END`);
    }
    store.change(DAMAGES[damage]);
    const { not_brought } = await store.recover();
    const named = not_brought.map((line) => line.split(":")[0]).sort();
    assert.deepEqual(named, ["index by_name", "table quota", "trigger counted"]);
    assert.deepEqual(store.values("SELECT name FROM sqlite_schema WHERE name IN ('quota', 'by_name', 'counted')"), []);
    store.sql(insertOf("y"));
  }
});

for (const table of ["agent_runs", "commits", "run_events"]) {
  Deno.test(`rows of ${table} come back where a column needs a function that only another program has`, async () => {
    using store = new Store(
      schemaSql() + insertOf("x", { api_posted: 1 }) + `
      INSERT INTO commits (commit_hash) VALUES ('c0ffee');
      INSERT INTO run_events (run_id, event_type, timestamp) VALUES ('x', 'e', '2025-01-01T00:00:00Z')`,
    );
    {
      using db = new DatabaseSync(store.file);
      db.function("foreign_one", { deterministic: true }, (value) => value);
      db.exec(`ALTER TABLE ${table} ADD COLUMN own TEXT CHECK (foreign_one(own) IS own)`);
    }
    const { commits, run_events, not_brought, sources } = await store.recover();
    assert.deepEqual([commits, run_events, sources.map(({ sound }) => sound)], [1, 1, [true]]);
    assert.deepEqual(store.rows("SELECT run_id, api_posted FROM agent_runs"), [["x", 1]]);
    assert.match(not_brought.join(), new RegExp(`^user-defined columns of table ${table}: .*foreign_one$`));
    store.sql(insertOf("y"));
  });
}

/** What is not plain, does not work, or would refuse the writes of agents. */
const LEFT_OUT: Record<string, [sql: string, what: RegExp]> = {
  "a trigger that refuses every run": [
    "CREATE TRIGGER no BEFORE INSERT ON agent_runs BEGIN SELECT RAISE(ABORT, 'no more runs'); END",
    /^trigger no: .*no more runs/,
  ],
  "a trigger on a table that is gone": [
    "CREATE TRIGGER gone AFTER INSERT ON agent_runs BEGIN INSERT INTO nowhere VALUES (1); END",
    /^trigger gone: .*no such table/,
  ],
  "an index by a function that is not there": [
    "CREATE INDEX odd ON agent_runs(json_extract(metrics_json, '$.a'))",
    /^index odd: .*JSON/,
  ],
  "a virtual table": [
    "CREATE VIRTUAL TABLE words USING fts5(a, b, c); INSERT INTO words VALUES ('x', 'y', 'z')",
    /^table words: .*virtual/,
  ],
  "a trigger that fills a virtual table": [
    `CREATE VIRTUAL TABLE words USING fts5(run_id);
     CREATE TRIGGER fill AFTER INSERT ON agent_runs BEGIN INSERT INTO words VALUES (new.run_id); END`,
    /^trigger fill: .*no such table/,
  ],
  "a table WITHOUT ROWID": [
    "CREATE TABLE w (a TEXT PRIMARY KEY, b) WITHOUT ROWID; INSERT INTO w VALUES ('x', 1)",
    /^table w: .*WITHOUT ROWID/,
  ],
  "a table with a computed column": [
    "CREATE TABLE computed (a INTEGER, b AS (a * 2)); INSERT INTO computed (a) VALUES (1)",
    /^table computed: .*computed/,
  ],
  "a trigger on a table that was not copied": [
    `CREATE TABLE w (a TEXT PRIMARY KEY) WITHOUT ROWID;
     CREATE TRIGGER on_w AFTER INSERT ON w BEGIN DELETE FROM run_events; END`,
    /^trigger on_w: .*no such table/,
  ],
  "an UPDATE trigger that fills a virtual table": [
    `CREATE VIRTUAL TABLE words USING fts5(run_id);
     CREATE TRIGGER refill AFTER UPDATE ON agent_runs BEGIN INSERT INTO words VALUES (new.run_id); END`,
    /^trigger refill: .*no such table/,
  ],
  "an UPDATE trigger that refuses every change": [
    "CREATE TRIGGER no BEFORE UPDATE ON agent_runs BEGIN SELECT RAISE(ABORT, 'no changes'); END",
    /^trigger no: .*no changes/,
  ],
  "a trigger that ignores every run": [
    "CREATE TRIGGER no BEFORE INSERT ON agent_runs BEGIN SELECT RAISE(IGNORE); END",
    /^trigger no: .*ignores/,
  ],
  "an UPDATE trigger that ignores every change": [
    "CREATE TRIGGER no BEFORE UPDATE ON agent_runs BEGIN SELECT RAISE(IGNORE); END",
    /^trigger no: .*ignores/,
  ],
  "a view of a table that was not copied": [
    "CREATE VIRTUAL TABLE words USING fts5(a); CREATE VIEW all_words AS SELECT a FROM words",
    /^view all_words: .*no such table/,
  ],
  "a computed column": [
    "ALTER TABLE agent_runs ADD COLUMN twice AS (duration_ms * 2)",
    /^column agent_runs\.twice: .*computed/,
  ],
};

for (const [name, [sql, what]] of Object.entries(LEFT_OUT)) {
  Deno.test(`${name} is named and not copied`, async () => {
    for (const damage of WITH_SCHEMA) {
      using store = new Store(schemaSql() + insertOf("x") + "CREATE TABLE own (a); INSERT INTO own VALUES (1);");
      const isOdd = name.includes("function");
      store.sql(sql);
      // Created when no row broke it.
      store.log(line("y", isOdd ? { metrics_json: "no JSON" } : {}));
      store.change(DAMAGES[damage]);
      const { not_brought } = await store.recover();
      assert.ok(not_brought.some((text) => what.test(text)), `${damage}: ${not_brought.join("\n")}`);
      assert.deepEqual(store.values("SELECT run_id FROM agent_runs ORDER BY 1"), ["x", "y"]);
      assert.deepEqual(store.values("SELECT a FROM own"), [1]);
      store.sql(insertOf("z") + "UPDATE agent_runs SET status='failed' WHERE run_id='z'; DELETE FROM commits");
    }
  });
}

Deno.test("a table with the name of one of the contract's indexes is refused by name", async () => {
  using store = new Store(schemaSql() + "DROP INDEX idx_runs_agent; CREATE TABLE idx_runs_agent (a)");
  await assert.rejects(store.recover(), /already a table named idx_runs_agent/);
});

Deno.test("a unique index that runs of the log break is named and not copied", async () => {
  using store = new Store(schemaSql() + insertOf("x", { host: "h" }) + "CREATE UNIQUE INDEX one ON agent_runs(host)");
  store.log(line("y", { host: "h" }));
  const { not_brought } = await store.recover();
  assert.match(not_brought.join("\n"), /^index one: .*UNIQUE/);
  assert.deepEqual(store.values("SELECT run_id FROM agent_runs ORDER BY 1"), ["x", "y"]);
});

Deno.test("all rows come back below an interior page whose end was not written", async () => {
  const ids = Array.from({ length: 600 }, (_, i) => `run ${i}`);
  using store = new Store(schemaSql() + ids.map((id) => insertOf(id)).join(""));
  const root = Number(store.values("SELECT rootpage FROM sqlite_schema WHERE name='agent_runs'")[0]);
  store.change((bytes) => {
    assert.equal(bytes[(root - 1) * 4096], 5);
    bytes.fill(0, (root - 1) * 4096 + 8, root * 4096);
  });
  await store.recover();
  assert.equal(store.values("SELECT count(*) FROM agent_runs")[0], 600);
});

// ------------------------------------------------------------------------------------------------ odd databases

const ODD: Record<string, () => Promise<void>> = {
  // SQLite deletes the WAL of an empty file when it opens that file.
  "a WAL without its database, or with an empty one, is kept and copied": async () => {
    for (const how of ["gone", "empty"]) {
      using store = new Store();
      leaveWal(store.file, schemaSql() + insertOf("in file"), insertOf("in wal", { api_posted: 1 }));
      const wal = Deno.readFileSync(`${store.file}-wal`);
      if (how === "gone") Deno.removeSync(store.file);
      else Deno.truncateSync(store.file, 0);
      store.log(line("in wal"));
      const { kept } = await store.recover();
      assert.deepEqual(Deno.readFileSync(`${kept}-wal`), wal, how);
      assert.deepEqual(store.rows("SELECT run_id, api_posted FROM agent_runs WHERE run_id='in wal'"), [["in wal", 1]]);
    }
  },
  // An empty table accepts such a column, which then refuses the runs of the log.
  "a NOT NULL column without a default is added without NOT NULL": async () => {
    using store = new Store(
      schemaSql().replace("  created_at TEXT", "  team TEXT NOT NULL,\n  created_at TEXT") +
        insertOf("x", { team: "blue" }),
    );
    store.log(line("y"));
    const { not_brought } = await store.recover();
    assert.match(not_brought.join("\n"), /agent_runs\.team.*NOT NULL/);
    assert.deepEqual(store.rows("SELECT run_id, team FROM agent_runs ORDER BY 1"), [["x", "blue"], ["y", null]]);
  },
  "rows of a user-defined table are not taken for the schema": async () => {
    using store = new Store(
      schemaSql() + insertOf("x") + `CREATE TABLE own (a, b, c, d, e); INSERT INTO own VALUES
        ('table', 'evil', 'evil', 5, 'CREATE TABLE evil (x)'), ('trigger', 'bad', 'agent_runs', 0,
          'CREATE TRIGGER bad AFTER INSERT ON agent_runs BEGIN DELETE FROM agent_runs; END')`,
    );
    store.change(DAMAGES.header);
    await store.recover();
    assert.deepEqual(store.values("SELECT name FROM sqlite_schema WHERE name IN ('evil', 'bad')"), []);
  },
  // SQLite keeps the WAL beside the file that a link leads to.
  "a link to the database stays a link, and the WAL of its target is read": async () => {
    using store = new Store();
    const real = `${store.layout.base}/real.sqlite`;
    leaveWal(real, schemaSql() + insertOf("in file"), insertOf("in wal"));
    Deno.symlinkSync(real, store.file);
    // As the scripts resolve it.
    Object.assign(store, { layout: locate(store.layout.base) });
    const before = Deno.readFileSync(`${real}-wal`);
    assert.equal((await checkHealth(store.layout)).healthy, true);
    assert.deepEqual(Deno.readFileSync(`${real}-wal`), before);
    Deno.removeSync(`${real}-wal`);
    const bytes = Deno.readFileSync(real);
    Deno.writeFileSync(real, bytes.fill(0, 0, 100));
    await store.recover();
    assert.ok(Deno.lstatSync(store.file).isSymlink);
  },
  "a database of hundreds of pages without a header comes back": async () => {
    using store = new Store();
    makeOldDatabase(store.file, "v2", 3000);
    store.change(DAMAGES.header);
    assert.equal((await store.recover()).runs, 3000);
  },
  "rows that ANALYZE has written are not taken for commits": async () => {
    for (const damage of ["header", "schema", "pages"] as const) {
      using store = new Store(
        schemaSql() + insertOf("x") + "INSERT INTO commits (commit_hash) VALUES ('c0ffee'); ANALYZE",
      );
      store.change(damage === "pages" ? (bytes) => void bytes.fill(0x55, bytes.length - 10) : DAMAGES[damage]);
      await store.recover();
      assert.deepEqual(store.values("SELECT commit_hash FROM commits"), ["c0ffee"], damage);
    }
  },
  "rows of a full-text index are not taken for events": async () => {
    using store = new Store(
      schemaSql() + insertOf("x") +
        `INSERT INTO run_events (run_id, event_type, timestamp) VALUES ('x', 'e', 't');
      CREATE VIRTUAL TABLE words USING fts5(a, b, c, d); INSERT INTO words VALUES ('q', 'r', 's', 't')`,
    );
    store.change(DAMAGES.header);
    await store.recover();
    assert.deepEqual(store.rows("SELECT run_id, event_type FROM run_events"), [["x", "e"]]);
  },
  "rows of other tables are not taken for commits or events where the schema is lost": async () => {
    using store = new Store(
      schemaSql() + insertOf("x") +
        `CREATE TABLE notes (title TEXT, body TEXT); INSERT INTO notes VALUES ('a note', 'its text');
      CREATE TABLE tasks (id INTEGER PRIMARY KEY, a TEXT, b TEXT, c TEXT); INSERT INTO tasks VALUES (1, 'x', 'y', 'z')`,
    );
    store.change(DAMAGES.schema);
    await store.recover();
    assert.deepEqual(store.values("SELECT commit_hash FROM commits"), []);
    assert.deepEqual(store.values("SELECT run_id FROM run_events"), []);
  },
  // Such a trigger ends the transaction.
  "a trigger with RAISE(ROLLBACK) is named and not copied": async () => {
    using store = new Store(
      schemaSql() + insertOf("x") +
        "CREATE TRIGGER no BEFORE INSERT ON agent_runs BEGIN SELECT RAISE(ROLLBACK, 'no more runs'); END",
    );
    const { not_brought } = await store.recover();
    assert.match(not_brought.join("\n"), /^trigger no: .*no more runs/);
    assert.deepEqual(store.values("SELECT run_id FROM agent_runs"), ["x"]);
  },
  "a table with the name of a property of Object comes back": async () => {
    using store = new Store(
      schemaSql() + insertOf("x") + "CREATE TABLE constructor (a); INSERT INTO constructor VALUES (1)",
    );
    await store.recover();
    assert.deepEqual(store.values("SELECT a FROM constructor"), [1]);
  },
  "a row whose number is over 2^53 comes back": async () => {
    using store = new Store(
      schemaSql() + insertOf("x") + insertOf("y") + "UPDATE agent_runs SET rowid=1<<60 WHERE run_id='y'",
    );
    await store.recover();
    assert.deepEqual(store.values("SELECT run_id FROM agent_runs ORDER BY 1"), ["x", "y"]);
  },
  // json_array takes such a BLOB for JSON.
  "BLOBs that resemble JSONB come back unchanged": async () => {
    using store = new Store(
      schemaSql() + `CREATE TABLE own (a, b BLOB);
      INSERT INTO own VALUES (1, x'00'), (2, x'01'), (3, x'07'), (4, jsonb('{"a": [1]}'))`,
    );
    const before = store.rows("SELECT a, typeof(b), hex(b) FROM own ORDER BY 1");
    await store.recover();
    assert.deepEqual(store.rows("SELECT a, typeof(b), hex(b) FROM own ORDER BY 1"), before);
  },
  // Deno binds numbers as REAL, and JSON has no difference between 1 and 1.0.
  "numbers keep their types in a column without a type": async () => {
    using store = new Store(
      schemaSql() + "CREATE TABLE own (a, b); INSERT INTO own VALUES (1.0, 1), (5000000000, 5000000000.0)",
    );
    const before = store.rows("SELECT typeof(a), typeof(b) FROM own");
    await store.recover();
    assert.deepEqual(store.rows("SELECT typeof(a), typeof(b) FROM own"), before);
  },
  "constraints of a column that are not copied are named": async () => {
    using store = new Store(
      schemaSql() + "ALTER TABLE agent_runs ADD COLUMN team TEXT COLLATE NOCASE CHECK(length(team) < 9);" +
        insertOf("x"),
    );
    const { not_brought } = await store.recover();
    const sql = String(store.values("SELECT sql FROM sqlite_schema WHERE name='agent_runs'")[0]);
    assert.ok(/NOCASE.*length\(team\)/s.test(sql) || not_brought.some((text) => text.includes("team")), sql);
  },
  "negative keys come back without SQLite": async () => {
    using store = new Store(
      schemaSql() + "CREATE TABLE own (id INTEGER PRIMARY KEY, a); INSERT INTO own VALUES (-5, 'x'), (-7, 'y')",
    );
    store.change(DAMAGES.header);
    await store.recover();
    assert.deepEqual(store.rows("SELECT id, a FROM own ORDER BY 1"), [[-7, "y"], [-5, "x"]]);
  },
  "keys of INTEGER PRIMARY KEY DESC come back without SQLite": async () => {
    using store = new Store(
      schemaSql() + "CREATE TABLE own (id INTEGER PRIMARY KEY DESC, a); INSERT INTO own VALUES (70, 'x'), (50, 'y')",
    );
    store.change(DAMAGES.header);
    await store.recover();
    assert.deepEqual(store.rows("SELECT id, a FROM own ORDER BY 1"), [[50, "y"], [70, "x"]]);
  },
  "a leaf page without its header gives no rows that were never there": async () => {
    using store = new Store(
      schemaSql() + `CREATE TABLE own (id INTEGER PRIMARY KEY DESC, a, long);
      WITH n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 199)
      INSERT INTO own SELECT 10000 - i * 7, 'n' || i, printf('%.*c', 300, 'x') FROM n`,
    );
    const before = new Set(store.rows("SELECT id, a FROM own").map(String));
    const [root] = store.values("SELECT rootpage FROM sqlite_schema WHERE name='own'");
    store.change((bytes) => {
      const view = new DataView(bytes.buffer);
      const start = (Number(root) - 1) * 4096;
      const firstLeaf = view.getUint32(start + view.getUint16(start + 12));
      bytes[(firstLeaf - 1) * 4096] = 0;
    });
    await store.recover();
    const after = store.rows("SELECT id, a FROM own").map(String);
    assert.deepEqual(after.filter((row) => !before.has(row)), []);
    assert.ok(after.length > 180, `${after.length} rows`);
  },
  "runs of a table whose collation SQLite does not have come back": async () => {
    using store = new Store(schemaSql().replace("  host TEXT", "  host TEXT COLLATE NOCASE") + insertOf("x"));
    store.change((bytes) => {
      const at = new TextDecoder("latin1").decode(bytes).indexOf("NOCASE");
      bytes.set(new TextEncoder().encode("GERMAN"), at);
    });
    await store.recover();
    assert.deepEqual(store.values("SELECT run_id FROM agent_runs"), ["x"]);
  },
  "a table and columns with names in capitals come back": async () => {
    using store = new Store(
      schemaSql().replace("EXISTS agent_runs", "EXISTS Agent_Runs").replace(
        "  run_id TEXT PRIMARY",
        "  RUN_ID TEXT PRIMARY",
      ) + insertOf("x"),
    );
    await store.recover();
    assert.deepEqual(store.values("SELECT run_id FROM agent_runs"), ["x"]);
  },
  // One damaged byte in schema_migrations is no proof of a later product.
  "a damaged version number does not stop a recovery": async () => {
    using store = new Store(schemaSql() + insertOf("x"));
    const root = Number(store.values("SELECT rootpage FROM sqlite_schema WHERE name='schema_migrations'")[0]);
    const runs = Number(store.values("SELECT rootpage FROM sqlite_schema WHERE name='commits'")[0]);
    store.change((bytes) => {
      bytes.fill(0x55, (runs - 1) * 4096, runs * 4096);
      const page = bytes.subarray((root - 1) * 4096, root * 4096);
      const cell = page[8]! * 256 + page[9]!;
      assert.equal(page[cell + 1], 3);
      page[cell + 1] = 0x33;
    });
    await store.recover();
    assert.deepEqual(store.values("SELECT run_id FROM agent_runs"), ["x"]);
  },
};

for (const [name, fn] of Object.entries(ODD)) testWith(/^a link/.test(name) ? ["links"] : [], name, fn);

// ------------------------------------------------------------------------------------------------ concurrent agents

/** Changes a live database from another process, like an agent. In this process, a file handle would drop its locks. */
function elsewhere(path: string, sql: string): void {
  const program = `import { DatabaseSync } from "node:sqlite";
    const db = new DatabaseSync(Deno.args[0], { enableForeignKeyConstraints: false });
    db.exec(Deno.args[1]); db.close();`;
  const { success, stderr } = new Deno.Command(Deno.execPath(), { args: ["eval", "--quiet", program, path, sql] })
    .outputSync();
  assert.ok(success, new TextDecoder().decode(stderr));
}

/** Calls `what` once, at the first matching call of a function of Deno. */
function whenever<T extends "copyFileSync" | "linkSync">(
  name: T,
  isMoment: (path: string) => boolean,
  what: () => void,
) {
  const original = Deno[name] as (from: string, to: string) => void;
  let isOver = false;
  Deno[name] = ((from: string, to: string) => {
    if (name === "linkSync" && !isOver && isMoment(to)) what(), isOver = true;
    original(from, to);
    if (name === "copyFileSync" && !isOver && isMoment(from)) what(), isOver = true;
  }) as typeof Deno[T];
  return { [Symbol.dispose]: () => void (Deno[name] = original as typeof Deno[T]) };
}

Deno.test("a database that an agent creates during a recovery is not replaced, and the next recovery keeps it", async () => {
  using store = new Store();
  store.log(line("x"));
  const make = schemaSql() + insertOf("x", { api_posted: 1 }) + insertOf("only in the database");
  {
    using _made = whenever("linkSync", (to) => to === store.file, () => elsewhere(store.file, make));
    await assert.rejects(store.recover(), { code: "in_the_way", message: /has created .* in the meantime/ });
  }
  assert.deepEqual(store.rows("SELECT run_id, api_posted FROM agent_runs ORDER BY 1"), [
    ["only in the database", 0],
    ["x", 1],
  ]);
  assert.deepEqual([...Deno.readDirSync(store.layout.db)].map(({ name }) => name), ["telemetry.sqlite"]);
  const { kept } = await store.recover();
  assert.ok(kept !== null);
  assert.deepEqual(store.values("SELECT api_posted FROM agent_runs ORDER BY run_id"), [0, 1]);
});

testWith(["links"], "a link that leads nowhere is not replaced, and the error names it", async () => {
  using store = new Store();
  store.log(line("x"));
  Deno.symlinkSync(`${store.layout.base}/nowhere.sqlite`, store.file);
  await assert.rejects(store.recover(), { code: "in_the_way", message: /is a link whose target does not exist/ });
  assert.deepEqual([...Deno.readDirSync(store.layout.db)].map(({ name }) => name), ["telemetry.sqlite"]);
  Deno.removeSync(store.file);
  assert.equal((await store.recover()).runs, 1);
});

Deno.test("user-defined triggers do not fire again for merged rows", async () => {
  using store = new Store(
    `PRAGMA journal_mode=WAL; ${schemaSql()}${insertOf("x")}
    CREATE TABLE audit (what TEXT);
    CREATE TRIGGER note AFTER INSERT ON commits BEGIN INSERT INTO audit VALUES (new.commit_hash); END;
    INSERT INTO commits (commit_hash) VALUES ('c0ffee'), ('c0de');`,
  );
  store.log(line("x"));
  const onProgress = (done: number, total: number) => {
    if (done === total) elsewhere(store.file, "UPDATE agent_runs SET api_posted=1");
  };
  await store.recover({ onProgress });
  assert.deepEqual(store.values("SELECT what FROM audit ORDER BY 1"), ["c0de", "c0ffee"]);
  assert.deepEqual(store.values("SELECT api_posted FROM agent_runs"), [1]);
  store.sql("INSERT INTO commits (commit_hash) VALUES ('new')");
  assert.deepEqual(store.values("SELECT count(*) FROM audit"), [3]);
});

Deno.test("open connections to a UTF-16 database keep working after a recovery", async () => {
  using store = new Store(`PRAGMA encoding='UTF-16le'; PRAGMA journal_mode=WAL; ${schemaSql()}${insertOf("é 🚀")}`);
  const open = new DatabaseSync(store.file);
  open.prepare("SELECT count(*) FROM agent_runs").get();
  try {
    await store.recover();
    open.exec(insertOf("later"));
  } finally {
    open.close();
  }
  assert.deepEqual(store.values("SELECT run_id FROM agent_runs ORDER BY 1"), ["later", "é 🚀"]);
});

// ------------------------------------------------------------------------------------------------ more user-defined objects

for (const damage of ["none", "page"] as const) {
  Deno.test(`damage ${damage}: a user-defined table with a new column keeps its new rows beside a backup`, async () => {
    using store = new Store(`${schemaSql()}${insertOf("x")}CREATE TABLE "my budget" (agent TEXT);
      INSERT INTO "my budget" VALUES ('old');`);
    const backup = `${store.layout.db}/../backup.sqlite`;
    Deno.copyFileSync(store.file, backup);
    store.sql(`ALTER TABLE "my budget" ADD COLUMN limit_usd REAL; INSERT INTO "my budget" VALUES ('new', 2.5);`);
    store.change(DAMAGES[damage]);
    const { not_brought } = await store.recover({ backup });
    assert.deepEqual(not_brought, []);
    assert.deepEqual(store.rows(`SELECT * FROM "my budget" ORDER BY 1 DESC`), [["old", null], ["new", 2.5]]);
  });
}

Deno.test("where the schema is lost, rows of other tables are rejected with their cells", async () => {
  using store = new Store(`${schemaSql()}${insertOf("x")}CREATE TABLE budget (agent TEXT, limit_usd REAL);
    INSERT INTO budget VALUES ('indexer', 2.5);`);
  store.change(DAMAGES.schema);
  const recovery = await store.recover();
  assert.match(recovery.not_brought.join(), /user-defined tables: the schema is lost/);
  const rows = rejectsOf(recovery).filter(({ text }) => String(text).includes("indexer"));
  assert.deepEqual(rows.map(({ reason, table }) => [reason, table]), [["its table is unknown", null]]);
  assert.deepEqual(store.values("SELECT run_id FROM agent_runs"), ["x"]);
});

Deno.test("only the shadow tables of a virtual table are left out with it", async () => {
  using store = new Store(
    `${schemaSql()}${insertOf("x")}CREATE VIRTUAL TABLE notes USING fts5(body); INSERT INTO notes VALUES ('n');
    CREATE TABLE notes_archive (body TEXT); INSERT INTO notes_archive VALUES ('kept');
    CREATE VIRTUAL TABLE run USING fts5(body); CREATE VIRTUAL TABLE agent USING fts5(body);
    INSERT INTO run_events (run_id, event_type, timestamp) VALUES ('x', 'e', '2025-01-01T00:00:00Z');`,
  );
  const { run_events, sources, not_brought } = await store.recover();
  assert.deepEqual([run_events, sources.map(({ sound }) => sound)], [1, [true]]);
  assert.deepEqual(store.values("SELECT body FROM notes_archive"), ["kept"]);
  assert.ok(not_brought.every((line) => /virtual table/.test(line)), not_brought.join());
});

Deno.test("a user-defined column named rowid is not taken for the row number", async () => {
  using store = new Store(
    `${schemaSql()}ALTER TABLE agent_runs ADD COLUMN rowid INTEGER DEFAULT 1099511627776;
    ${insertOf("x")}${insertOf("y", { rowid: 7 })}${insertOf("in no log", { rowid: null })}`,
  );
  store.log(line("x"), line("y"), line("in the log alone"));
  const { runs } = await checkHealth(store.layout, { compare: true });
  assert.deepEqual([runs!.only_in_database, runs!.only_in_log], [1, 1]);
  const { runs_from } = await store.recover();
  assert.deepEqual(runs_from, { log: 1, log_and_salvaged: 2, salvaged: 1 });
});

Deno.test("columns with an odd type, or with the name of a property of Object, come back", async () => {
  using store = new Store(
    `${schemaSql()}ALTER TABLE agent_runs ADD COLUMN odd "a;b"; ALTER TABLE agent_runs ADD COLUMN money DECIMAL(10, 2);
    ALTER TABLE agent_runs ADD COLUMN constructor TEXT; ${insertOf("x", { odd: "o", money: 2, constructor: "c" })}`,
  );
  for (const damage of ["none", "page"] as const) {
    store.change(DAMAGES[damage]);
    await store.recover();
    assert.deepEqual(store.rows("SELECT odd, money, constructor FROM agent_runs"), [["o", 2, "c"]]);
  }
});

Deno.test("a column that cannot be added is named, and the other columns of its table come back", async () => {
  using store = new Store(
    `${schemaSql()}${insertOf("x")}CREATE TABLE s (b JSON, a INT); INSERT INTO s VALUES ('{}', 1);`,
  );
  const backup = `${store.layout.base}/backup.sqlite`;
  const db = new DatabaseSync(backup);
  db.exec(`${schemaSql()}CREATE TABLE s (a INT) STRICT; INSERT INTO s VALUES (7);`);
  db.close();
  for (const damage of ["none", "page"] as const) {
    store.change(DAMAGES[damage]);
    const { not_brought } = await store.recover({ backup });
    if (damage === "none") assert.match(not_brought.join(), /column s\.b: .*unknown datatype/);
    assert.deepEqual(store.values("SELECT a FROM s"), [1]);
    assert.deepEqual(store.values("SELECT run_id FROM agent_runs"), ["x"]);
  }
});

Deno.test("damage page: values that the contract does not declare come back unchanged", async () => {
  using store = new Store(
    schemaSql() + insertOf("x", { items_failed: "a few", duration_ms: 1.5, created_at: "1733900000", product: "p" }),
  );
  const read = () => store.rows("SELECT run_id, items_failed, duration_ms, created_at, product FROM agent_runs");
  const before = read();
  store.change(DAMAGES.page);
  await store.recover();
  assert.deepEqual(read(), before);
});
