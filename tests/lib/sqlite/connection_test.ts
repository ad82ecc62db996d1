import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { Connection } from "../../../lib/sqlite/connection.ts";
import { applySchema } from "../../../lib/sqlite/migrate.ts";
import { TempFolder } from "../../fixtures/mod.ts";

/** What makes the check of the whole file fail in a SQLite without this function. */
const FOREIGN: Record<string, string> = {
  "a CHECK": "CREATE TABLE quota (n CHECK (foreign_one(n) = n))",
  "a computed column": "CREATE TABLE quota (n REAL, m REAL AS (foreign_one(n)))",
  "an index": "CREATE TABLE quota (n); CREATE INDEX by_n ON quota(foreign_one(n))",
  "a partial index": "CREATE TABLE quota (n); CREATE INDEX by_n ON quota(n) WHERE foreign_one(n) > 1",
};

function create(path: string, sql: string): void {
  using db = new DatabaseSync(path);
  db.function("foreign_one", { deterministic: true }, (value) => value);
  db.exec(`${sql}; CREATE TABLE other (a TEXT); CREATE INDEX by_a ON other(a);
    INSERT INTO quota (n) VALUES (3); INSERT INTO other VALUES ('x')`);
}

/** Overwrites the root page of a table or an index. */
function tear(path: string, name: string): void {
  const root = (() => {
    using db = new DatabaseSync(path);
    return Number(db.prepare("SELECT rootpage FROM sqlite_schema WHERE name=?").get(name)!["rootpage"]);
  })();
  const bytes = Deno.readFileSync(path);
  Deno.writeFileSync(path, bytes.fill(0x55, (root - 1) * 4096, root * 4096));
}

for (const [what, sql] of Object.entries(FOREIGN)) {
  Deno.test(`the check of a database passes over ${what} with an unknown function, and finds damage elsewhere`, () => {
    using temp = new TempFolder();
    const path = `${temp.path}/a.sqlite`;
    create(path, sql);
    for (const depth of ["quick", "full"] as const) {
      using db = Connection.open(path);
      assert.deepEqual(db.check(depth), []);
    }
    tear(path, "by_a");
    using db = Connection.open(path);
    for (const depth of ["quick", "full"] as const) assert.notDeepEqual(db.check(depth), []);
  });
}

Deno.test("the check finds damaged pages of a table that it cannot check", () => {
  using temp = new TempFolder();
  const path = `${temp.path}/a.sqlite`;
  create(path, `${FOREIGN["a computed column"]}; CREATE INDEX by_n ON quota(n)`);
  tear(path, "by_n");
  using db = Connection.open(path);
  assert.match(db.check("quick").join(), /by_n is damaged/);
});

Deno.test("the full check finds rows in the wrong order in a table whose index has an unknown function", () => {
  using temp = new TempFolder();
  const path = `${temp.path}/a.sqlite`;
  create(path, `${FOREIGN["an index"]}; INSERT INTO quota VALUES (1), (2)`);
  const root = (() => {
    using db = new DatabaseSync(path);
    return Number(db.prepare("SELECT rootpage FROM sqlite_schema WHERE name='quota'").get()!["rootpage"]);
  })();
  const bytes = Deno.readFileSync(path);
  // The places of the first two rows.
  const places = (root - 1) * 4096 + 8;
  const second = bytes.slice(places + 2, places + 4);
  bytes.copyWithin(places + 2, places, places + 2);
  bytes.set(second, places);
  Deno.writeFileSync(path, bytes);
  using db = Connection.open(path);
  assert.match(db.check("full").join(), /out of order/);
});

Deno.test("an upgrade sorts its indexes in memory, also in a transaction", () => {
  using db = Connection.open(":memory:");
  db.transaction(() => applySchema(db));
  assert.equal(db.get("PRAGMA temp_store")!["temp_store"], 2);
});

Deno.test("a row that is too big for SQLite is an invalid record, which no queue tries again", () => {
  using db = Connection.open(":memory:");
  assert.throws(() => db.get("SELECT zeroblob(1000000001)"), { code: "invalid_record" });
});
