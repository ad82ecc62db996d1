import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { TelemetryError } from "../../../lib/errors.ts";
import { checkHealth, type Health } from "../../../lib/recovery/health.ts";
import { layoutOf } from "../../../lib/layout.ts";
import { schemaSql } from "../../../lib/schema.ts";
import { holdDatabase, makeOldDatabase, type OldKind, runScript, TempFolder, treeOf } from "../../fixtures/mod.ts";

/** A store whose health is checked without changing a byte. */
class Store implements Disposable {
  readonly #temp = new TempFolder();
  readonly layout = layoutOf(`${this.#temp.path}/store`);
  readonly file = this.layout.database;

  constructor() {
    for (const folder of [this.layout.raw, this.layout.db]) Deno.mkdirSync(folder, { recursive: true });
  }

  sqlite(sql: string): void {
    const db = new DatabaseSync(this.file, { enableForeignKeyConstraints: false });
    db.exec(sql);
    db.close();
  }

  async health(compare = true): Promise<Health> {
    const before = treeOf(this.layout.base);
    const health = await checkHealth(this.layout, { compare });
    assert.deepEqual(treeOf(this.layout.base), before);
    return health;
  }

  [Symbol.dispose](): void {
    this.#temp[Symbol.dispose]();
  }
}

const RUN = (id: string, status = "success") =>
  `INSERT INTO agent_runs (run_id, agent_name, start_time, status) VALUES ('${id}', 'a', 't', '${status}');`;

function line(run_id: string, status = "success"): string {
  return `${JSON.stringify({ run_id, agent_name: "a", start_time: "t", status, record_type: "run" })}\n`;
}

Deno.test("a database that passes the check and has all tables is healthy", async () => {
  using store = new Store();
  store.sqlite(schemaSql());
  assert.deepEqual(await store.health(false), {
    healthy: true,
    problems: [],
    missing_tables: [],
    schema_version: 3,
    unusable_tables: [],
    runs: null,
  });
  const runs = {
    in_database: 0,
    only_in_database: 0,
    only_in_log: 0,
    only_in_log_ids: [],
    older_in_database: 0,
    unreadable_logs: [],
  };
  const intact = { healthy: true, problems: [], missing_tables: [], schema_version: 3, unusable_tables: [] };
  assert.deepEqual(await store.health(), { ...intact, runs });
  store.sqlite("DROP TABLE commits; DROP INDEX idx_runs_agent; ALTER TABLE agent_runs DROP COLUMN subdomain");
  assert.deepEqual(await store.health(), {
    healthy: false,
    problems: ["the table commits is missing"],
    missing_tables: ["commits"],
    schema_version: 2,
    unusable_tables: [],
    runs,
  });
});

Deno.test("tables with a function that only another program has are named, and the database is healthy", async () => {
  using store = new Store();
  store.sqlite(schemaSql());
  {
    using db = new DatabaseSync(store.file);
    db.function("foreign_one", { deterministic: true }, (value) => value);
    db.exec(`CREATE TABLE quota (n CHECK (foreign_one(n) = n)); CREATE VIRTUAL TABLE words USING fts5(a);
      CREATE TRIGGER counted AFTER UPDATE ON commits BEGIN SELECT foreign_one(1); END`);
  }
  const { healthy, unusable_tables } = await store.health();
  assert.equal(healthy, true);
  assert.deepEqual(unusable_tables.sort(), [
    "commits (no such function: foreign_one)",
    "quota (unknown function: foreign_one())",
  ]);
});

Deno.test("older databases are healthy when no table is missing", async () => {
  const expected: [OldKind, boolean][] = [["v1", true], ["v2", true], ["says3_is2", true], ["v2_recovered", false]];
  for (const [kind, healthy] of expected) {
    using store = new Store();
    makeOldDatabase(store.file, kind);
    const found = await store.health();
    assert.equal(found.healthy, healthy, kind);
    assert.equal(found.runs?.in_database, 40);
  }
});

Deno.test("a database with a newer schema is refused with both versions", async () => {
  using store = new Store();
  makeOldDatabase(store.file, "v7");
  await assert.rejects(store.health(), (error) => {
    return error instanceof TelemetryError && error.code === "newer_schema" && /v7.*v3/.test(error.message);
  });
});

Deno.test("lost and damaged databases are not healthy, with the reason", async () => {
  const lost: Record<string, [make: (store: Store) => void, problem: RegExp]> = {
    nothing: [() => {}, /does not exist/],
    empty: [({ file }) => Deno.writeTextFileSync(file, ""), /is empty/],
    text: [({ file }) => Deno.writeTextFileSync(file, "text ".repeat(1000)), /not a SQLite database/],
    "another application's": [(store) => store.sqlite("CREATE TABLE t (a)"), /no table agent_runs/],
    cut: [(store) => {
      store.sqlite(schemaSql());
      Deno.truncateSync(store.file, 4096 * 3);
    }, /malformed|damaged/],
    "a damaged page": [(store) => {
      store.sqlite(schemaSql());
      const bytes = Deno.readFileSync(store.file);
      Deno.writeFileSync(store.file, bytes.fill(0x55, bytes.length - 4096));
    }, /^Tree \d+ page \d+: /],
    "a cell that a CHECK refuses": [
      (store) => store.sqlite(`${schemaSql()} PRAGMA ignore_check_constraints=ON; ${RUN("x", "bogus")}`),
      /CHECK/,
    ],
  };
  for (const [what, [make, problem]] of Object.entries(lost)) {
    using store = new Store();
    make(store);
    const { healthy, problems, runs } = await store.health();
    assert.deepEqual([healthy, runs], [false, null], what);
    assert.match(problems.join("; "), problem, what);
    assert(!problems.join().includes("\n"), `${what}: one line each`);
  }
});

Deno.test("runs are counted once when log and database are compared", async () => {
  using store = new Store();
  store.sqlite(
    schemaSql() + RUN("db only") + RUN("both") + RUN("ended since", "running") + RUN("stale log") +
      RUN("running in both", "running"),
  );
  const { raw } = store.layout;
  Deno.writeTextFileSync(
    `${raw}/events_20251209.ndjson`,
    line("both", "running") + line("ended since", "running") + line("stale log", "running") + "no JSON\n",
  );
  Deno.writeTextFileSync(
    `${raw}/events_20251210.ndjson`,
    line("both") + line("both") + line("ended since") + line("ended since", "running") +
      line("running in both", "running") + line("log only") + line("log only", "failed") + line("log too", "running"),
  );
  assert.deepEqual((await store.health()).runs, {
    in_database: 5,
    only_in_database: 1,
    only_in_log: 2,
    only_in_log_ids: ["log only", "log too"],
    older_in_database: 1,
    unreadable_logs: [],
  });
});

const ids = Array.from({ length: 20_100 }, (_, i) => `run ${i}`);
const RUNNING = `WITH n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ${ids.length - 1})
  INSERT INTO agent_runs (run_id, agent_name, start_time, status) SELECT 'run ' || i, 'a', 't', 'running' FROM n;`;

Deno.test("more open runs than are held at a time are compared", async () => {
  using store = new Store();
  store.sqlite(schemaSql() + RUNNING);
  Deno.writeTextFileSync(
    `${store.layout.raw}/events_20251210.ndjson`,
    ids.map((id) => line(id, "running")).join("") + ids.slice(200).map((id) => line(id)).join(""),
  );
  assert.deepEqual((await store.health()).runs, {
    in_database: 20_100,
    only_in_database: 0,
    only_in_log: 0,
    only_in_log_ids: [],
    older_in_database: 19_900,
    unreadable_logs: [],
  });
});

Deno.test({
  name: "runs whose end is read after their start was written are compared",
  fn: async () => {
    using store = new Store();
    store.sqlite(schemaSql() + RUNNING);
    Deno.writeTextFileSync(
      `${store.layout.raw}/events_20251210.ndjson`,
      ids.map((id) => line(id, "running")).join("") + ids.map((id) => line(id)).join(""),
    );
    assert.equal((await store.health()).runs?.older_in_database, 20_100);
  },
});

// ------------------------------------------------------------------------------------------------ locked

Deno.test(
  "a database that is locked for longer than the timeouts is refused, and nothing changes",
  async () => {
    // Concurrently, because each waits for its timeouts, the longest for 16 s.
    const locked = [["--check-only"], ["--force"]].map(async (flags) => {
      using store = new Store();
      makeOldDatabase(store.file, "v2", 50, "delete");
      await using _holder = await holdDatabase(store.file, "BEGIN EXCLUSIVE");
      const before = treeOf(store.layout.base);
      const { code, stdout, stderr } = await runScript("recover_database", store.layout.base, flags);
      assert.deepEqual([code, stdout], [1, ""]);
      assert.match(stderr, /could not be checked: .*locked.*\n {2}-> .*\n$/);
      assert.deepEqual(treeOf(store.layout.base), before);
    });
    const claimed = async () => {
      using store = new Store();
      using other = Deno.openSync(store.layout.recovering, { write: true, create: true });
      other.lockSync(true);
      const before = treeOf(store.layout.base);
      const { code, stderr } = await runScript("recover_database", store.layout.base);
      assert.equal(code, 1);
      assert.match(stderr, /another process is writing .*recovering.*\n {2}-> .*\n$/);
      assert.deepEqual(treeOf(store.layout.base), before);
    };
    await Promise.all([...locked, claimed()]);
  },
);
