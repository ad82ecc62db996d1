import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { setUpDatabase } from "../../lib/store/database.ts";
import { TelemetryError } from "../../lib/errors.ts";
import { layoutOf } from "../../lib/layout.ts";
import {
  type DatabaseContent,
  holdDatabase,
  killAfter,
  Live,
  makeOldDatabase,
  NOBODY,
  type OldKind,
  type Output,
  readDatabase,
  rounds,
  runScript,
  SAMPLE,
  SmallDisk,
  sqlite,
  TempFolder,
  testWith,
  treeOf,
  UPGRADABLE,
} from "../fixtures/mod.ts";

const JOURNALS = ["wal", "delete"] as const;
type Journal = (typeof JOURNALS)[number];

/** A `{base}` with an empty `db/`, and where the database goes. */
function newStore(temp: TempFolder): { base: string; file: string } {
  const base = `${temp.path}/store`;
  Deno.mkdirSync(`${base}/db`, { recursive: true });
  return { base, file: `${base}/db/telemetry.sqlite` };
}

/** The copies that upgrades keep. */
function listCopies(base: string): string[] {
  const copies = Object.keys(treeOf(base)).filter((path) => path.startsWith("backups/"));
  for (const copy of copies) assert.match(copy, /^backups\/telemetry\.before_v3_\d{8}_\d{6}\.sqlite$/);
  return copies.map((copy) => `${base}/${copy}`);
}

// ---------------------------------------------------------------------------------------------- upgrades

/** What people add to a database, none of which an upgrade may touch. */
const OWN_THINGS = `
  ALTER TABLE agent_runs ADD COLUMN team TEXT DEFAULT 'red';
  UPDATE agent_runs SET team = 'blue' WHERE rowid % 2;
  CREATE INDEX own_index ON agent_runs(host, start_time);
  CREATE TABLE own_table (id INTEGER PRIMARY KEY, note TEXT);
  INSERT INTO own_table (note) VALUES ('one'), ('two');
  CREATE VIEW own_view AS SELECT agent_name, count(*) AS runs FROM agent_runs GROUP BY agent_name;
  CREATE TRIGGER own_trigger AFTER INSERT ON agent_runs BEGIN INSERT INTO own_table (note) VALUES (new.run_id); END;`;
const OWN_NAMES = ["own_index", "own_table", "own_view", "own_trigger"];

/** The contract's columns that an upgrade brings, or leaves as they are. */
const V3_COLUMNS = "run_id schema_version agent_name agent_owner job_type trigger_type start_time end_time status " +
  "items_discovered items_succeeded items_failed duration_ms input_summary output_summary error_summary metrics_json " +
  "insight_id product platform product_family subdomain git_repo git_branch git_run_tag host api_posted " +
  "api_posted_at api_retry_count created_at updated_at";
const V3_INDEXES = "idx_runs_agent idx_runs_status idx_runs_start idx_runs_api_posted idx_runs_insight";
const COMMITS_COLUMNS = "commit_hash run_id agent_name repo branch commit_date author message files_changed " +
  "insertions deletions created_at";

/** Inserts a row with every v3 column, as the writers of today do, and reads it back. */
function insertV3(file: string): void {
  const numbers: Record<string, number> = {
    schema_version: 3,
    items_discovered: 5,
    items_succeeded: 4,
    items_failed: 1,
    duration_ms: 2 ** 31 + 7,
    api_posted: 1,
    api_retry_count: 2,
  };
  const words: Record<string, string> = { trigger_type: "scheduler", status: "partial" };
  const columns = V3_COLUMNS.split(" ");
  const row = Object.fromEntries(
    columns.map((name) => [name, numbers[name] ?? words[name] ?? `${name} \0 é 🚀`]),
  );
  {
    using db = new DatabaseSync(file);
    db.prepare(`INSERT INTO agent_runs (${columns}) VALUES (${columns.map(() => "?")})`).run(...Object.values(row));
  }
  const found = readDatabase(file).tables["agent_runs"]!.rows.find(({ run_id }) => run_id === row["run_id"])!;
  assert.deepEqual(Object.fromEntries(columns.map((name) => [name, found[name]])), row);
}

/** Whether each table of `before` still has its rows and values, whatever was added. */
function assertNothingLost(before: DatabaseContent, after: DatabaseContent): void {
  for (const [name, { columns, indexes, rows }] of Object.entries(before.tables)) {
    const now = after.tables[name];
    assert.ok(now, name);
    // A column that was there is there still, declared as before.
    assert.deepEqual(now.columns.slice(0, columns.length), columns, name);
    const kept = now.rows.map((row) => Object.fromEntries(columns.map(([column]) => [column, row[column]])));
    const added = name === "schema_migrations" ? Number(!rows.some((row) => row["version"] === 3)) : 0;
    assert.deepEqual(kept.slice(0, rows.length), rows, name);
    assert.equal(kept.length, rows.length + added, name);
    assert.deepEqual({ ...now.indexes, ...indexes }, now.indexes, name);
  }
}

/** Whether a database is a v3 that today's writers can use. */
function assertUpgraded(file: string, content: DatabaseContent): void {
  assert.deepEqual([content.journal, content.check], ["wal", "ok"]);
  const names = (table: string) => content.tables[table]?.columns.map(([name]) => name) ?? [];
  for (const name of V3_COLUMNS.split(" ")) assert.ok(names("agent_runs").includes(name), name);
  for (const name of COMMITS_COLUMNS.split(" ")) assert.ok(names("commits").includes(name), `commits.${name}`);
  for (const name of V3_INDEXES.split(" ")) assert.ok(content.tables["agent_runs"]?.indexes[name], name);
  assert.deepEqual(content.tables["agent_runs"]?.indexes["idx_runs_insight"], ["insight_id"]);
  assert.deepEqual(content.tables["commits"]?.indexes["idx_commits_run"], ["run_id"]);
  assert.ok(content.tables["schema_migrations"]?.rows.some((row) => row["version"] === 3));
  insertV3(file);
}

/** Upgrades what `make` makes, whose columns are those of `version`, and looks at all that the contract promises. */
async function assertUpgrade(
  version: 1 | 2,
  make: (file: string) => void,
): Promise<{ before: DatabaseContent; after: DatabaseContent }> {
  using temp = new TempFolder();
  const { base, file } = newStore(temp);
  make(file);
  const before = readDatabase(file);

  const first = await runScript("setup_database", base);
  assert.deepEqual([first.code, first.stderr], [0, ""]);
  const after = readDatabase(file);
  assertNothingLost(before, after);
  const [copy, ...more] = listCopies(base);
  assert.ok(copy && more.length === 0, "one copy is kept");
  assert.ok(first.stdout.includes(copy), "the report names the copy");
  assert.ok(first.stdout.includes(`from schema v${version}`), first.stdout);
  assert.deepEqual(readDatabase(copy), before, "the copy is the database as it was");

  assertUpgraded(file, after);
  const tree = treeOf(base);
  await setUpDatabase(layoutOf(base));
  assert.deepEqual(treeOf(base), tree, "a second run changes nothing");
  return { before, after };
}

for (const [index, kind] of UPGRADABLE.entries()) {
  for (const journal of rounds<readonly Journal[]>(JOURNALS.filter((_, i) => i === index % 2), JOURNALS)) {
    Deno.test(`${kind} in ${journal} mode is upgraded to v3 and loses nothing`, async () => {
      const { before, after } = await assertUpgrade(kind === "v1" ? 1 : 2, (file) => {
        makeOldDatabase(file, kind, 40, journal);
        sqlite(file, OWN_THINGS);
      });
      assert.equal(before.tables["agent_runs"]?.rows.length, 40);
      assert.equal(before.journal, journal);
      for (const name of OWN_NAMES) assert.equal(after.sql[name], before.sql[name], name);
      const columns = after.tables["agent_runs"]?.columns.map(([name]) => name) ?? [];
      assert.ok(columns.includes("team"));
      const hadMetadata = before.tables["agent_runs"]?.columns.some(([name]) => name === "custom_metadata");
      assert.equal(columns.includes("custom_metadata"), hadMetadata);
      // The fixture holds what a careless reader would cut or round.
      const last = after.tables["agent_runs"]?.rows.at(-1);
      assert.equal(last?.["output_summary"], "naïve\0 — 日本語 🚀");
      assert.equal(last?.["duration_ms"], 39e9);
    });
  }
}

for (const name of rounds(["v2_recovered"], ["v1", "v2", "v2_recovered", "says3_is2"])) {
  Deno.test(`the sample's ${name} is upgraded to v3 and loses nothing`, async () => {
    await assertUpgrade(name === "v1" ? 1 : 2, (file) => {
      Deno.writeFileSync(file, Deno.readFileSync(`${SAMPLE}/databases/${name}.sqlite`));
    });
  });
}

Deno.test("a v3 database without an index or WAL mode gets it", async () => {
  using temp = new TempFolder();
  const { base, file } = newStore(temp);
  await runScript("setup_database", base);
  sqlite(file, "DROP INDEX idx_runs_start; PRAGMA journal_mode=delete");
  const { code, stderr } = await runScript("setup_database", base);
  assert.deepEqual([code, stderr], [0, ""]);
  const content = readDatabase(file);
  assert.equal(content.journal, "wal");
  assert.deepEqual(content.tables["agent_runs"]?.indexes["idx_runs_start"], ["start_time"]);
  assert.equal(listCopies(base).length, 1);
});

Deno.test("a copy never replaces another one", async () => {
  using temp = new TempFolder();
  const { base, file } = newStore(temp);
  makeOldDatabase(file, "v1");
  const before = readDatabase(file);
  Deno.mkdirSync(`${base}/backups`);
  const two = (value: number) => String(value).padStart(2, "0");
  for (let seconds = 0; seconds < 120; seconds++) {
    const at = new Date(Date.now() + seconds * 1000);
    const day = `${at.getFullYear()}${two(at.getMonth() + 1)}${two(at.getDate())}`;
    const time = `${two(at.getHours())}${two(at.getMinutes())}${two(at.getSeconds())}`;
    Deno.writeTextFileSync(`${base}/backups/telemetry.before_v3_${day}_${time}.sqlite`, "taken");
  }
  const taken = treeOf(`${base}/backups`);
  const { code, stderr } = await runScript("setup_database", base);
  assert.deepEqual([code, stderr], [0, ""]);
  const now = treeOf(`${base}/backups`);
  assert.deepEqual({ ...now, ...taken }, now);
  const [copy, ...more] = Object.keys(now).filter((name) => !(name in taken));
  assert.deepEqual(more, []);
  assert.deepEqual(readDatabase(`${base}/backups/${copy}`), before);
});

Deno.test("setup deletes partials that a killed setup left, and no other file", async () => {
  using temp = new TempFolder();
  const { base, file } = newStore(temp);
  makeOldDatabase(file, "v2");
  Deno.mkdirSync(`${base}/backups`);
  const others = ["notes.partial", "telemetry.backup.20251210.sqlite"];
  const left = ["", "-wal", "-shm"].map((end) => `telemetry.before_v3_20251210_120000.sqlite.partial${end}`);
  left.push("telemetry.backup.20251210.sqlite.partial");
  for (const name of [...others, ...left]) Deno.writeTextFileSync(`${base}/backups/${name}`, "half");
  const { code, stderr } = await runScript("setup_database", base);
  assert.deepEqual([code, stderr], [0, ""]);
  const names = Object.keys(treeOf(`${base}/backups`));
  assert.deepEqual(names.filter((name) => name.startsWith("telemetry.before_v3_")).length, 1);
  assert.deepEqual(names.filter((name) => !name.startsWith("telemetry.before_v3_")), others.toSorted());
});

Deno.test("a partial that is another name of a database is never written into", async () => {
  using temp = new TempFolder();
  const { base, file } = newStore(temp);
  makeOldDatabase(file, "v1");
  // A setup was killed between giving the name and taking the partial away; later the database was moved aside.
  Deno.linkSync(file, `${file}.partial`);
  Deno.renameSync(file, `${base}/db/telemetry.corrupted.20251210_120000.sqlite`);
  const { "db/telemetry.corrupted.20251210_120000.sqlite": before } = treeOf(base);
  const { code, stderr } = await runScript("setup_database", base);
  assert.deepEqual([code, stderr], [0, ""]);
  const { "db/telemetry.corrupted.20251210_120000.sqlite": after, "db/telemetry.sqlite": made } = treeOf(base);
  assert.equal(after, before);
  assert.ok(made && made !== before);
});

testWith(["modes"], "the copy of a database has the same mode", async () => {
  using temp = new TempFolder();
  const { base, file } = newStore(temp);
  makeOldDatabase(file, "v1");
  Deno.chmodSync(file, 0o600);
  assert.equal((await runScript("setup_database", base)).code, 0);
  assert.equal(Deno.statSync(file).mode! & 0o777, 0o600);
  assert.equal(Deno.statSync(listCopies(base)[0]!).mode! & 0o077, 0);
});

Deno.test("setup rolls back a hot journal, then upgrades the database", async () => {
  using temp = new TempFolder();
  const { base, file } = newStore(temp);
  makeOldDatabase(file, "v1", 2000, "delete");
  const before = readDatabase(file);
  // Killed in the midst of a transaction that is larger than its cache: changed pages are in the file already.
  await killAfter(
    file,
    "PRAGMA cache_size=2; PRAGMA synchronous=OFF; BEGIN",
    "UPDATE agent_runs SET agent_name = 'half done', product = hex(randomblob(200))",
  );
  assert.ok(Deno.statSync(`${file}-journal`).size > 512, "there is a hot journal");
  const { code, stderr } = await runScript("setup_database", base);
  assert.deepEqual([code, stderr], [0, ""]);
  assertNothingLost(before, readDatabase(file));
  assert.deepEqual(readDatabase(listCopies(base)[0]!), before);
});

Deno.test("rows that a killed writer left in the WAL are upgraded and copied", async () => {
  using temp = new TempFolder();
  const { base, file } = newStore(temp);
  makeOldDatabase(file, "v2", 40, "wal");
  await killAfter(file, "INSERT INTO agent_runs (run_id, agent_name, start_time) VALUES ('in the WAL', 'a', 't')");
  assert.ok(Deno.statSync(`${file}-wal`).size > 0, "there is a WAL with content");
  const { code, stderr } = await runScript("setup_database", base);
  assert.deepEqual([code, stderr], [0, ""]);
  for (const path of [file, listCopies(base)[0]!]) {
    const rows = readDatabase(path).tables["agent_runs"]?.rows ?? [];
    assert.deepEqual([rows.length, rows.at(-1)?.["run_id"]], [41, "in the WAL"], path);
  }
});

/** Inserts until a file named `stop` appears; prints when it starts, and how many at the end. */
const LIVE_WRITER = `
import { existsSync } from "node:fs";
import { DatabaseSync } from "node:sqlite";
const [file] = Deno.args;
const db = new DatabaseSync(file, { timeout: 5000, enableForeignKeyConstraints: false });
const insert = db.prepare("INSERT INTO agent_runs (run_id, agent_name, start_time) VALUES (?, 'live', 't')");
let n = 0;
while (!existsSync(file + ".stop")) {
  insert.run("live " + n++);
  if (n === 20) console.log("started");
  await new Promise((resolve) => setTimeout(resolve, 1));
}
db.close();
console.log(n);
`;

for (const journal of JOURNALS) {
  Deno.test(`a live writer in ${journal} mode sees no error and loses no row`, async () => {
    using temp = new TempFolder();
    const { base, file } = newStore(temp);
    makeOldDatabase(file, "v1", 1000, journal);
    await using writer = new Live(Deno.execPath(), ["eval", LIVE_WRITER, file]);
    await writer.untilCount(1);
    const { code, stderr } = await runScript("setup_database", base);
    Deno.writeTextFileSync(`${file}.stop`, "");
    await writer.untilCount(2);
    assert.deepEqual([code, stderr], [0, ""]);
    assert.equal(await writer.end(), "");
    const written = Number(writer.lines[1]);
    assert.ok(written >= 20);
    const rows = readDatabase(file).tables["agent_runs"]?.rows ?? [];
    assert.equal(rows.length, 1000 + written);
    assert.ok("product_family" in rows[0]!);
  });
}

// ---------------------------------------------------------------------------------------------- refusals

/** A failure that was foreseen: exit 1, a line of what and one of what to do; its JSON error. */
function assertRefused({ code, stdout, stderr }: Output): { code: string; message: string; hint: string } {
  assert.equal(code, 1, stderr);
  assert.match(stderr, /^setup_database: [^\n]+\n {2}-> [^\n]+\n$/);
  const { ok, error } = JSON.parse(stdout);
  assert.equal(ok, false);
  assert.notEqual(error.code, "unexpected");
  return error;
}

/** Does what the script does where it must refuse, and sees that nothing was changed; the error. */
async function refuse(base: string): Promise<TelemetryError> {
  const before = treeOf(base);
  const error = await setUpDatabase(layoutOf(base)).then(() => undefined, (error) => error);
  assert.ok(error instanceof TelemetryError && error.hint !== undefined, String(error));
  assertUnchanged(base, before, error.message);
  return error;
}

/** The same with the script, as another user. */
async function refuseAsNobody(base: string, denoDir: string) {
  const before = treeOf(base);
  const asNobody = { uid: NOBODY, env: { DENO_DIR: denoDir } };
  const error = assertRefused(await runScript("setup_database", base, ["--json"], asNobody));
  assertUnchanged(base, before, error.message, "may stay");
  return error;
}

/**
 * Whether a tree is as before. An empty `backups/` may have been made before the copy failed. Where SQLite itself can
 * neither use nor remove them, it leaves an empty WAL and its shared memory: content is in neither.
 */
function assertUnchanged(base: string, before: Record<string, string>, message: string, sidecars?: "may stay"): void {
  const after = treeOf(base);
  if (!("backups" in before) && after["backups"] === "folder") delete after["backups"];
  if (sidecars && !("db/telemetry.sqlite-wal" in before) && after["db/telemetry.sqlite-wal"]?.startsWith("0 ")) {
    delete after["db/telemetry.sqlite-wal"];
    delete after["db/telemetry.sqlite-shm"];
  }
  assert.deepEqual(after, before, message);
}

function makeDamaged(file: string, kind: OldKind | "v3", journal: Journal): void {
  makeOldDatabase(file, kind === "v3" ? "v2" : kind, 3000, journal);
  if (kind === "v3") sqlite(file, "ALTER TABLE agent_runs ADD product_family; ALTER TABLE agent_runs ADD subdomain");
  const bytes = Deno.readFileSync(file);
  // Three leaves in the midst: the schema stays readable, and a row can still be inserted.
  assert.ok(bytes.length > 100 * 4096);
  bytes.fill(0xa5, 50 * 4096, 53 * 4096);
  Deno.writeFileSync(file, bytes);
}

const REFUSED: [what: string, code: RegExp, make: (file: string, base: string) => void][] = [
  ["a text file in its place", /^not_a_database$/, (file) => Deno.writeTextFileSync(file, "nothing to see here\n")],
  ["a long text file in its place", /^not_a_database$/, (file) => {
    Deno.writeTextFileSync(file, "nothing to see here\n".repeat(1000));
  }],
  ["a folder in its place", /^in_the_way$/, (file) => Deno.mkdirSync(file)],
  ["an empty file", /^empty_database$/, (file) => Deno.writeTextFileSync(file, "")],
  ["a database without tables", /^empty_database$/, (file) => sqlite(file, "CREATE TABLE t (a); DROP TABLE t")],
  ["a database without tables in WAL mode", /^empty_database$/, (file) => {
    sqlite(file, "PRAGMA journal_mode=wal; CREATE TABLE t (a); DROP TABLE t");
  }],
  ["another application's database", /^not_a_database$/, (file) => sqlite(file, "CREATE TABLE songs (title TEXT)")],
  ["another application's database in WAL mode", /^not_a_database$/, (file) => {
    sqlite(file, "PRAGMA journal_mode=wal; CREATE TABLE songs (title TEXT)");
  }],
  ...JOURNALS.flatMap((journal): typeof REFUSED => [
    [`a damaged v1 in ${journal} mode`, /^damaged$/, (file) => makeDamaged(file, "v1", journal)],
    // To this one the upgrade adds columns alone: it never comes across the damage.
    [`a damaged v2 in ${journal} mode`, /^damaged$/, (file) => makeDamaged(file, "v2", journal)],
    [`a damaged v3 in ${journal} mode`, /^damaged$/, (file) => makeDamaged(file, "v3", journal)],
    [`v7 in ${journal} mode`, /^newer_schema$/, (file) => makeOldDatabase(file, "v7", 40, journal)],
  ]),
  ["a destroyed header", /^(not_a_database|damaged)$/, (file) => {
    makeOldDatabase(file, "v2", 40, "delete");
    const bytes = Deno.readFileSync(file);
    Deno.writeFileSync(file, bytes.fill(0, 0, 100));
  }],
  ["a file cut in the middle", /^damaged$/, (file) => {
    makeOldDatabase(file, "v2", 3000, "delete");
    Deno.truncateSync(file, 40 * 4096 + 1000);
  }],
  ["a store without db/", /^no_storage$/, (_, base) => Deno.removeSync(`${base}/db`)],
  // Windows does not find what is below a file.
  ["a file at the path of db/", Deno.build.os === "windows" ? /^no_storage$/ : /^in_the_way$/, (_, base) => {
    Deno.removeSync(`${base}/db`);
    Deno.writeTextFileSync(`${base}/db`, "");
  }],
  ["a file at the path of backups/", /^in_the_way$/, (file, base) => {
    makeOldDatabase(file, "v1");
    Deno.writeTextFileSync(`${base}/backups`, "");
  }],
  ["the WAL of a missing database", /./, (file) => leaveSidecar(file, "wal")],
  ["the journal of a missing database", /./, (file) => leaveSidecar(file, "delete")],
  ["an own column that refuses today's rows", /./, (file) => {
    makeOldDatabase(file, "v1");
    const db = new DatabaseSync(file);
    const { sql } = db.prepare("SELECT sql FROM sqlite_schema WHERE name = 'agent_runs'").get() as { sql: string };
    db.exec(`DROP TABLE agent_runs; ${sql.replace("host TEXT", "host TEXT, team TEXT NOT NULL")}`);
    db.close();
  }],
  ["an own trigger that refuses today's rows", /./, (file) => {
    makeOldDatabase(file, "v2", 40, "wal");
    sqlite(file, "CREATE TRIGGER own BEFORE INSERT ON agent_runs BEGIN SELECT raise(ABORT, 'closed'); END");
  }],
  ["an own view named like a table of v3", /./, (file) => {
    makeOldDatabase(file, "v2_recovered");
    sqlite(file, "CREATE VIEW commits AS SELECT 1 AS commit_hash");
  }],
];

/** What stays of another database when it was moved away without its sidecar. */
function leaveSidecar(file: string, journal: Journal): void {
  const other = `${file}.other`;
  const db = new DatabaseSync(other);
  db.exec(`PRAGMA journal_mode=${journal}; CREATE TABLE songs (title TEXT); PRAGMA cache_size=2`);
  db.exec(
    "BEGIN; WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) INSERT INTO songs SELECT i FROM n",
  );
  if (journal === "wal") db.exec("COMMIT");
  const end = journal === "wal" ? "-wal" : "-journal";
  Deno.copyFileSync(other + end, file + end);
  db.close();
  for (const path of ["", "-wal", "-shm", "-journal"]) {
    try {
      Deno.removeSync(other + path);
    } catch { /* closed cleanly */ }
  }
  assert.ok(Deno.statSync(file + end).size > 1000);
}

Deno.test("a new database beside a log with runs names the recovery", async () => {
  using temp = new TempFolder();
  for (const folder of ["db", "raw"]) Deno.mkdirSync(`${temp.path}/${folder}`);
  Deno.writeTextFileSync(`${temp.path}/raw/events_20251210.ndjson`, "{}\n");
  const { code, stderr } = await runScript("setup_database", temp.path, ["--quiet"]);
  assert.equal(code, 0);
  assert.match(
    stderr,
    /^warning: the new database is empty, .*raw has 1 log of earlier runs: run deno task .*recover_database --base \S+ --force to bring them back\n/,
  );
});

for (const [what, code, make] of REFUSED) {
  Deno.test(`setup refuses ${what} and changes nothing`, async () => {
    using temp = new TempFolder();
    const { base, file } = newStore(temp);
    make(file, base);
    assert.match((await refuse(base)).code, code);
  });
}

testWith(["links"], "setup refuses a dangling link at the path of the database", async () => {
  using temp = new TempFolder();
  const { base, file } = newStore(temp);
  Deno.symlinkSync("nowhere", file);
  await refuse(base);
});

Deno.test("setup refuses the sample's damaged and v7 databases and changes nothing", async () => {
  for (const name of ["damaged", "v7"]) {
    using temp = new TempFolder();
    const { base, file } = newStore(temp);
    Deno.writeFileSync(file, Deno.readFileSync(`${SAMPLE}/databases/${name}.sqlite`));
    assert.equal((await refuse(base)).code, name === "v7" ? "newer_schema" : "damaged");
  }
});

Deno.test("the refusal of a v7 database names both versions", async () => {
  using temp = new TempFolder();
  const { base, file } = newStore(temp);
  makeOldDatabase(file, "v7");
  const { message } = await refuse(base);
  assert.match(message, /v7\b.*v3\b/);
});

Deno.test("a later product's database is detected by its columns", async () => {
  using temp = new TempFolder();
  const { base, file } = newStore(temp);
  makeOldDatabase(file, "v7", 5, "delete");
  sqlite(file, "DELETE FROM schema_migrations");
  assert.equal((await refuse(base)).code, "newer_schema");
});

Deno.test("a v7 database with a WAL in use is not changed", async () => {
  using temp = new TempFolder();
  const { base, file } = newStore(temp);
  makeOldDatabase(file, "v7");
  await using holder = await holdDatabase(
    file,
    "INSERT INTO agent_runs (run_id, event_id, agent_name, start_time) VALUES ('live', 'live', 'a', 't')",
  );
  // The -shm is shared memory, not content: readers mark in it where they are.
  const files = () => ({ ...treeOf(base), "db/telemetry.sqlite-shm": "shared memory" });
  const before = files();
  assert.ok(Deno.statSync(`${file}-wal`).size > 0);
  const error = assertRefused(await runScript("setup_database", base, ["--json"]));
  assert.equal(error.code, "newer_schema");
  assert.deepEqual(files(), before);
  await holder.kill();
  // And with the WAL that the killed program leaves.
  assertRefused(await runScript("setup_database", base, ["--json"]));
  assert.deepEqual(files(), before);
});

// ------------------------------------------------------------------------------- permissions of the system

/** Gives a folder and all in it to a user that is not root. */
function give(path: string): void {
  Deno.chownSync(path, NOBODY, NOBODY);
  for (const below of Object.keys(treeOf(path))) Deno.chownSync(`${path}/${below}`, NOBODY, NOBODY);
}

const NOT_PERMITTED: [what: string, forbid: (base: string, file: string) => void][] = [
  ["a database in a folder of another user", (base) => {
    Deno.chownSync(`${base}/db`, 0, 0);
    Deno.chownSync(`${base}/db/telemetry.sqlite`, 0, 0);
  }],
  ["a read-only database in a writable folder", (_, file) => Deno.chownSync(file, 0, 0)],
  ["a database without read permission", (_, file) => {
    Deno.chownSync(file, 0, 0);
    Deno.chmodSync(file, 0o600);
  }],
  ["a db/ without search permission", (base) => {
    Deno.chownSync(`${base}/db`, 0, 0);
    Deno.chmodSync(`${base}/db`, 0o700);
  }],
  ["a base where backups/ cannot be created", (base) => Deno.chownSync(base, 0, 0)],
  ["a backups/ without write permission", (base) => Deno.mkdirSync(`${base}/backups`, { mode: 0o755 })],
  ["a backups/ without read permission", (base) => Deno.mkdirSync(`${base}/backups`, { mode: 0o700 })],
];

for (const [what, forbid] of NOT_PERMITTED) {
  for (const journal of JOURNALS) {
    testWith(["nobody"], `setup refuses ${what} (${journal} mode) and changes nothing`, async () => {
      using temp = new TempFolder();
      const { base, file } = newStore(temp);
      makeOldDatabase(file, "v1", 40, journal);
      Deno.mkdirSync(`${temp.path}/deno`);
      give(temp.path);
      forbid(base, file);
      assert.equal((await refuseAsNobody(base, `${temp.path}/deno`)).code, "permission");
    });
  }
}

testWith(["nobody"], "another user's partial that cannot be deleted does not stop setup", async () => {
  using temp = new TempFolder();
  const { base, file } = newStore(temp);
  makeOldDatabase(file, "v1");
  Deno.mkdirSync(`${temp.path}/deno`);
  give(temp.path);
  const partial = `${base}/backups/telemetry.before_v3_20251210_120000.sqlite.partial`;
  Deno.mkdirSync(`${base}/backups`);
  Deno.chmodSync(`${base}/backups`, 0o1777);
  Deno.writeTextFileSync(partial, "half");
  const asNobody = { uid: NOBODY, env: { DENO_DIR: `${temp.path}/deno` } };
  const { code, stderr } = await runScript("setup_database", base, [], asNobody);
  assert.deepEqual([code, stderr], [0, ""]);
  assert.equal(Deno.readTextFileSync(partial), "half");
  Deno.removeSync(partial);
  assert.equal(listCopies(base).length, 1);
});

testWith(
  ["nobody"],
  "a database that root upgrades, and its copy, belong to the owner of the base folder",
  async () => {
    for (const journal of JOURNALS) {
      using temp = new TempFolder();
      const { base, file } = newStore(temp);
      makeOldDatabase(file, "v1", 40, journal);
      give(base);
      const { code, stderr } = await runScript("setup_database", base);
      assert.deepEqual([code, stderr], [0, ""]);
      assert.equal(listCopies(base).length, 1);
      for (const path of Object.keys(treeOf(base))) {
        const { uid, gid } = Deno.lstatSync(`${base}/${path}`);
        assert.deepEqual([uid, gid], [NOBODY, NOBODY], path);
      }
    }
  },
);

// ---------------------------------------------------------------------------------------------- disk full

for (const journal of JOURNALS) {
  testWith(
    ["mount"],
    `a full disk (${journal} mode) changes nothing, and the next setup succeeds`,
    async () => {
      const outcomes: Record<string, number> = { refused: 0, upgraded: 0 };
      for (let free = 0; free <= 192 * 1024; free += rounds(48, 24) * 1024) {
        using disk = new SmallDisk("1m");
        const base = disk.path;
        Deno.mkdirSync(`${base}/db`);
        const file = `${base}/db/telemetry.sqlite`;
        makeOldDatabase(file, "v1", 40, journal);
        const before = readDatabase(file);
        disk.fill(free);
        const tree = treeOf(base);
        const result = await runScript("setup_database", base, ["--json"]);
        if (result.code !== 0) {
          outcomes["refused"]!++;
          assert.equal(assertRefused(result).code, "disk_full", `${free} bytes free: ${result.stderr}`);
          // The upgrade is done, and its copy kept, when there was no room left for config/schema.sql alone.
          const isDone = result.stderr.includes("schema.sql") && listCopies(base).length === 1;
          if (!isDone) assertUnchanged(base, tree, `${free} bytes free: ${result.stderr}`, "may stay");
          disk.free();
          await setUpDatabase(layoutOf(base));
        } else {
          outcomes["upgraded"]!++;
        }
        assertNothingLost(before, readDatabase(file));
        assert.equal(listCopies(base).length, 1);
      }
      assert.ok(outcomes["refused"]! >= rounds(2, 4) && outcomes["upgraded"]! >= 1, JSON.stringify(outcomes));
    },
  );
}

testWith(["mount"], "a full disk leaves no new database, and the next setup succeeds", async () => {
  for (const free of [0, 4096, 32 * 1024]) {
    using disk = new SmallDisk("1m");
    Deno.mkdirSync(`${disk.path}/db`);
    Deno.mkdirSync(`${disk.path}/config`);
    disk.fill(free);
    assert.equal((await refuse(disk.path)).code, "disk_full");
    disk.free();
    await setUpDatabase(layoutOf(disk.path));
  }
});

testWith(["mount"], "a database on another file system than backups/ is upgraded and copied", async () => {
  using temp = new TempFolder();
  const { base, file } = newStore(temp);
  using _disk = new SmallDisk("1m", `${base}/db`);
  makeOldDatabase(file, "v1");
  const before = readDatabase(file);
  const { code, stderr } = await runScript("setup_database", base);
  assert.deepEqual([code, stderr], [0, ""]);
  assertNothingLost(before, readDatabase(file));
  assert.deepEqual(readDatabase(listCopies(base)[0]!), before);
});
