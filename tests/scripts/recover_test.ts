import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { gzipSync } from "node:zlib";
import { checkHealth, type Health } from "../../lib/recovery/health.ts";
import { layoutOf } from "../../lib/layout.ts";
import { schemaSql } from "../../lib/schema.ts";
import { recoverDatabase, TelemetryClient } from "../../mod.ts";
import {
  type DatabaseContent,
  holdDatabase,
  killAfter,
  makeOldDatabase,
  NOBODY,
  type OldKind,
  type Output,
  python,
  readDatabase,
  ReadOnlyMount,
  ROOT,
  run,
  type RunOptions,
  runScript,
  SAMPLE,
  slashes,
  sqlite,
  TempFolder,
  testWith,
  treeOf,
  UPGRADABLE,
} from "../fixtures/mod.ts";

type Fields = Record<string, unknown>;

// ------------------------------------------------------------------------------------------------ stores

class Store implements Disposable {
  readonly #temp = new TempFolder();
  readonly base = `${this.#temp.path}/store`;
  readonly raw = `${this.base}/raw`;
  readonly db = `${this.base}/db`;
  readonly reports = `${this.base}/reports`;
  readonly file = `${this.db}/telemetry.sqlite`;

  constructor() {
    for (const folder of [this.raw, this.db]) Deno.mkdirSync(folder, { recursive: true });
  }

  /** With the log and the database of the sample. */
  static ofSample(database: string | null = `${SAMPLE}/base/db/telemetry.sqlite`): Store {
    const store = new Store();
    for (const { name } of Deno.readDirSync(`${SAMPLE}/base/raw`)) {
      Deno.writeFileSync(`${store.raw}/${name}`, Deno.readFileSync(`${SAMPLE}/base/raw/${name}`));
    }
    if (database !== null) Deno.writeFileSync(store.file, Deno.readFileSync(database));
    return store;
  }

  log(name: string, ...lines: string[]): void {
    Deno.writeTextFileSync(`${this.raw}/${name}`, lines.map((text) => `${text}\n`).join(""));
  }

  /** A database of this schema with one run for each id. */
  v3(ids: string[] = ["in db"], sql = ""): void {
    sqlite(this.file, schemaSql() + ids.map((id) => insertOf(id)).join("") + sql);
  }

  [Symbol.dispose](): void {
    this.#temp[Symbol.dispose]();
  }
}

function isFolder(path: string): boolean {
  try {
    return Deno.statSync(path).isDirectory;
  } catch {
    return false;
  }
}

/** All rows of a statement, not read by what is tested. */
function rowsIn(path: string, sql: string): Fields[] {
  const db = new DatabaseSync(path);
  const rows = db.prepare(sql).all();
  db.close();
  return rows.map((row) => ({ ...row }));
}

function valuesIn(path: string, sql: string): unknown[] {
  return rowsIn(path, sql).flatMap((row) => Object.values(row));
}

function idsIn(path: string): unknown[] {
  return valuesIn(path, "SELECT run_id FROM agent_runs ORDER BY run_id");
}

function insertOf(run_id: string, fields: Record<string, string | number | null> = {}): string {
  const all = { run_id, agent_name: "a", start_time: "2025-12-10T10:00:00+00:00", status: "success", ...fields };
  const values = Object.values(all).map((value) => typeof value === "string" ? `'${value}'` : String(value));
  return `INSERT INTO agent_runs (${Object.keys(all)}) VALUES (${values});`;
}

/** A line as the Python client writes one. */
function line(run_id: string, fields: Fields = {}): string {
  const run = { run_id, agent_name: "a", start_time: "2025-12-10T10:00:00+00:00", status: "success", ...fields };
  return JSON.stringify({ ...run, record_type: "run" });
}

/** Fills bytes of a file. */
function overwrite(file: string, byte: number, from: number, to: number): void {
  const bytes = Deno.readFileSync(file);
  Deno.writeFileSync(file, bytes.fill(byte, from, to));
}

// ------------------------------------------------------------------------------------------------ the script

const recover = (base: string, flags: string[] = [], options: RunOptions = {}): Promise<Output> =>
  runScript("recover_database", base, flags, options);

interface Report {
  ok: boolean;
  recovered: boolean;
  kept: string | null;
  files: number;
  lines: number;
  runs: number;
  runs_from: { log: number; log_and_salvaged: number; salvaged: number };
  commits: number;
  sources: { path: string; sound: boolean }[];
  rejected: Record<string, number>;
  not_brought: string[];
  warnings: string[];
  report: string | null;
  rejected_file: string | null;
}

/** Recovers, and sees that the database is what it has to be, and alone. */
async function recovered(store: Store, flags: string[] = [], options: RunOptions = {}): Promise<Report> {
  const { code, stdout, stderr } = await recover(store.base, ["--json", ...flags], options);
  assert.equal(code, 0, stderr);
  const report: Report = JSON.parse(stdout);
  assert.equal(report.ok, true);
  assert.equal(report.recovered, true);
  assert.equal(typeof report.report, "string", stdout);
  const { ok: _ok, recovered: _recovered, unused_copies: _copies, ...told } = JSON.parse(stdout);
  assert.deepEqual(
    JSON.parse(slashes(Deno.readTextFileSync(report.report!))),
    told,
    "the file says what the screen says",
  );
  assertClean(store);
  assert.deepEqual(valuesIn(store.file, "PRAGMA journal_mode"), ["wal"]);
  assert.deepEqual(valuesIn(store.file, "PRAGMA integrity_check"), ["ok"]);
  return report;
}

/** Nothing is left but the database and what was kept. */
function assertClean({ db, reports }: Store): void {
  const names = [...Deno.readDirSync(db)].map(({ name }) => name);
  const kept = /^telemetry\.(?:corrupted\.|before_rebuild_)\d{8}_\d{6}\.sqlite(-wal|-shm|-journal)?$/;
  assert.deepEqual(names.filter((name) => name !== "telemetry.sqlite" && !kept.test(name)), []);
  const reported = isFolder(reports) ? [...Deno.readDirSync(reports)].map(({ name }) => name) : [];
  assert.deepEqual(reported.filter((name) => !/^recovery_\d{8}_\d{6}\.(json|rejected\.ndjson)$/.test(name)), []);
}

/** One line that says what, one that says what to do, this code, and no byte has changed. */
async function assertRefused(base: string, flags: string[], expected: number, pattern: RegExp, options?: RunOptions) {
  const before = treeOf(base);
  const { code, stdout, stderr } = await recover(base, flags, options);
  assert.equal(code, expected, stdout + stderr);
  // A plain run says first what it found.
  if (expected === 2 || flags.includes("--check-only")) assert.equal(stdout, "");
  const lines = withoutWarnings(stderr).trimEnd().split("\n");
  assert.equal(lines.length, 2, stderr);
  assert.match(lines[0]!, /^recover_database: ./);
  assert.match(lines[1]!, /^ {2}-> ./);
  assert.match(stderr, pattern);
  assert.deepEqual(treeOf(base), before);
}

/** What a script writes to stderr, but for warnings: a plain run warns first of what it found. */
function withoutWarnings(stderr: string): string {
  return stderr.replaceAll(/^warning: .*\n/gm, "");
}

/** What `--check-only` finds; it must change nothing. */
async function checked(base: string): Promise<Health> {
  const before = treeOf(base);
  const health = await checkHealth(layoutOf(base), { compare: true });
  assert.deepEqual(withoutShm(treeOf(base)), withoutShm(before));
  return health;
}

/** SQLite's shared memory is no content. */
function withoutShm(tree: Record<string, string>): Record<string, string> {
  return Object.fromEntries(Object.entries(tree).filter(([name]) => !name.endsWith("-shm")));
}

// ------------------------------------------------------------------------------------------------ the sample

const CONTRACT = ["agent_runs", "run_events", "commits", "schema_migrations"];

function facts(): Record<string, number> {
  return JSON.parse(Deno.readTextFileSync(`${SAMPLE}/facts.json`));
}

function expectedRuns(): Fields[] {
  return Deno.readTextFileSync(`${SAMPLE}/expected_runs.ndjson`).trimEnd().split("\n").map((text) => JSON.parse(text));
}

const JSON_FIELDS = ["metrics_json", "custom_metadata"];
const POSTING = ["api_posted", "api_posted_at", "api_retry_count"];

/** How rows differ from those expected, column by column; JSON is compared as JSON. */
function differences(found: Fields[], expected: Fields[], leaveOut: string[] = []): string[] {
  const byId = new Map(found.map((row) => [row["run_id"], row]));
  const parsed = (value: unknown) => typeof value === "string" ? JSON.parse(value) : value;
  return expected.flatMap((run) => {
    const row = byId.get(run["run_id"]);
    if (row === undefined) return [`${run["run_id"]} is missing`];
    return Object.keys(run).filter((column) => !leaveOut.includes(column)).flatMap((column) => {
      const [is, want] = [row[column], run[column]].map((value) =>
        JSON.stringify(JSON_FIELDS.includes(column) ? parsed(value) : value)
      );
      return is === want ? [] : [`${run["run_id"]} ${column}: ${is}, not ${want}`];
    });
  });
}

const runsOf = (content: DatabaseContent): Fields[] => content.tables["agent_runs"]!.rows;

function healthySample(): DatabaseContent {
  using temp = new TempFolder();
  Deno.writeFileSync(`${temp.path}/healthy.sqlite`, Deno.readFileSync(`${SAMPLE}/base/db/telemetry.sqlite`));
  return readDatabase(`${temp.path}/healthy.sqlite`);
}

/** Sees that all marks of posting and all commits of the healthy database are there. */
function assertMarks(content: DatabaseContent, healthy: DatabaseContent): void {
  const posted = runsOf(healthy).filter((run) => run["api_posted"] === 1);
  assert.equal(posted.length, 135);
  assert.deepEqual(
    differences(runsOf(content), posted.map(({ run_id, api_posted }) => ({ run_id, api_posted }))),
    [],
  );
}

Deno.test(
  "the sample without its database is rebuilt from the log, with all rejects",
  async () => {
    using store = Store.ofSample(null);
    const { runs, runs_from, lines, files, rejected, rejected_file, kept, sources } = await recovered(store);
    const expected = expectedRuns();
    assert.equal(expected.length, facts()["runs_in_logs"]);
    assert.deepEqual([runs, runs_from], [expected.length, {
      log: expected.length,
      log_and_salvaged: 0,
      salvaged: 0,
    }]);
    assert.deepEqual([files, kept, sources], [6, null, []]);
    assert.equal(lines, 977);
    const content = readDatabase(store.file);
    assert.deepEqual(differences(runsOf(content), expected).slice(0, 20), []);
    assert.equal(runsOf(content).length, expected.length);
    for (const run of runsOf(content)) {
      const time = (at: unknown) => new Date(String(at)).toISOString().slice(0, 19).replace("T", " ");
      assert.equal(run["created_at"], time(run["start_time"]));
      assert.equal(run["updated_at"], time(run["end_time"] ?? run["start_time"]));
    }
    assert.deepEqual(rejected, {
      "not whole JSON": 3,
      "not an object": 1,
      "run_id is missing": 1,
      "start_time is missing": 1,
      "unknown status": 1,
      "not UTF-8": 1,
    });
    const listed = Deno.readTextFileSync(rejected_file!).trimEnd().split("\n").map((text): Fields => JSON.parse(text));
    assert.equal(listed.length, facts()["rejected_lines"]);
    for (const { file, line, offset, length, reason, text } of listed) {
      const bytes = Deno.readFileSync(String(file));
      const [from, to] = [Number(offset), Number(offset) + Number(length)];
      assert.equal(text, new TextDecoder().decode(bytes.subarray(from, to)));
      assert.equal(bytes.subarray(0, from).filter((byte) => byte === 10).length + 1, line);
      assert.ok(String(reason) in rejected, String(reason));
    }
  },
);

Deno.test(
  "the sample's damaged database gives the markers and times of all readable runs, and all commits",
  async () => {
    using store = Store.ofSample(`${SAMPLE}/databases/damaged.sqlite`);
    const { runs_from, commits, kept, sources } = await recovered(store);
    assert.ok(runs_from.log_and_salvaged >= 285, JSON.stringify(runs_from));
    assert.equal(runs_from.log + runs_from.log_and_salvaged, facts()["runs_in_logs"]);
    assert.equal(commits, facts()["commits"]);
    assert.deepEqual(sources, [{ path: kept, sound: false }]);
    assert.deepEqual(Deno.readFileSync(kept!), Deno.readFileSync(`${SAMPLE}/databases/damaged.sqlite`));
    const [content, healthy] = [readDatabase(store.file), healthySample()];
    assert.deepEqual(differences(runsOf(content), expectedRuns(), POSTING).slice(0, 20), []);
    assert.deepEqual(content.tables["commits"]!.rows, healthy.tables["commits"]!.rows);
    // All runs but the five whose rows are unreadable keep their markers and times. Those five have what the log has.
    const columns = ["run_id", "created_at", "updated_at", ...POSTING];
    const others = runsOf(healthy).map((run) => Object.fromEntries(columns.map((name) => [name, run[name]])));
    const unlike = new Set(differences(runsOf(content), others).map((text) => text.split(" ")[0]));
    assert.ok(unlike.size <= 5, [...unlike].join());
  },
);

Deno.test(
  "forcing the healthy sample keeps every cell and adds the runs in the log",
  async () => {
    using store = Store.ofSample();
    const { runs, runs_from, rejected, kept } = await recovered(store, ["--force"]);
    assert.deepEqual(runs_from, { log: 13, log_and_salvaged: 290, salvaged: 0 });
    assert.equal(runs, 303);
    assert.equal(Object.values(rejected).reduce((sum, count) => sum + count), facts()["rejected_lines"]);
    const [content, healthy] = [readDatabase(store.file), healthySample()];
    assert.deepEqual(readDatabase(kept!).tables, healthy.tables);
    for (const table of CONTRACT) {
      const keyOf = (row: Fields) => String(row[healthy.tables[table]!.columns.find(([, , , , key]) => key === 1)![0]]);
      const rows = new Map(content.tables[table]!.rows.map((row) => [keyOf(row), row]));
      for (const row of healthy.tables[table]!.rows) {
        const found = rows.get(keyOf(row))!;
        assert.deepEqual(Object.fromEntries(Object.keys(row).map((column) => [column, found[column]])), row);
      }
      if (table !== "agent_runs") assert.equal(rows.size, healthy.tables[table]!.rows.length, table);
    }
    const there = new Set(runsOf(healthy).map((run) => run["run_id"]));
    const added = runsOf(content).filter((run) => !there.has(run["run_id"]));
    const onlyInLogs = expectedRuns().filter((run) => !there.has(run["run_id"]));
    assert.equal(onlyInLogs.length, facts()["runs_only_in_logs"]);
    assert.deepEqual(added.map((run) => run["run_id"]).sort(), onlyInLogs.map((run) => run["run_id"]).sort());
    assert.deepEqual(differences(added, onlyInLogs), []);
    // Once more: nothing is left to do, and everything stays.
    await recovered(store, ["--force"]);
    const again = readDatabase(store.file);
    assert.deepEqual(again.tables, content.tables);
  },
);

for (const [what, bytes] of [["header", 100], ["first page", 4096]] as const) {
  Deno.test(
    `the sample with a zeroed ${what} yields all rows and markers, with and without the log`,
    async () => {
      const healthy = healthySample();
      for (const withLog of [true, false]) {
        using store = Store.ofSample();
        overwrite(store.file, 0, 0, bytes);
        if (!withLog) Deno.removeSync(store.raw, { recursive: true });
        const { runs, commits } = await recovered(store);
        assert.deepEqual([runs, commits], [withLog ? 303 : 290, 26]);
        const content = readDatabase(store.file);
        assertMarks(content, healthy);
        assert.deepEqual(differences(runsOf(content), runsOf(healthy)).slice(0, 10), []);
        assert.deepEqual(content.tables["commits"]!.rows, healthy.tables["commits"]!.rows);
        assert.equal(content.tables["run_events"]!.rows.length, 0);
      }
    },
  );
}

Deno.test("the sample's damaged database is rebuilt when the log is empty or missing", async () => {
  const healthy = healthySample();
  for (const kind of ["empty", "missing"]) {
    using store = Store.ofSample(`${SAMPLE}/databases/damaged.sqlite`);
    Deno.removeSync(store.raw, { recursive: true });
    if (kind === "empty") {
      Deno.mkdirSync(store.raw);
      Deno.writeTextFileSync(`${store.raw}/events_20251210.ndjson`, "");
    }
    const { runs, runs_from, commits } = await recovered(store);
    assert.ok(runs >= 285 && runs <= 290, String(runs));
    assert.deepEqual(runs_from, { log: 0, log_and_salvaged: 0, salvaged: runs });
    assert.equal(commits, 26);
    const content = readDatabase(store.file);
    const found = runsOf(content);
    const ids = new Set(found.map((row) => row["run_id"]));
    const there = runsOf(healthy).filter((row) => ids.has(row["run_id"]));
    assert.equal(there.length, runs, "nothing that never was");
    assert.deepEqual(differences(found, there).slice(0, 10), []);
  }
});

// ------------------------------------------------------------------------------------------------ afterwards

/** Inserts a run as Python's client does, into all columns of v3. */
const PYTHON_INSERT = `
import sqlite3, sys
columns = ("run_id schema_version agent_name agent_owner job_type trigger_type start_time end_time status items_discovered "
  "items_succeeded items_failed duration_ms input_summary output_summary error_summary metrics_json insight_id product "
  "platform product_family subdomain git_repo git_branch git_run_tag host api_posted api_posted_at api_retry_count").split()
db = sqlite3.connect(sys.argv[1])
for trigger in ("cli", "detector", "insight"):
    row = {"run_id": "python-" + trigger, "agent_name": "p", "start_time": "t", "status": "running", "trigger_type": trigger,
           "subdomain": "s", "product_family": "f"}
    db.execute("INSERT INTO agent_runs (%s) VALUES (%s)" % (",".join(columns), ",".join("?" * len(columns))),
               [row.get(column) for column in columns])
    db.commit()
print(db.execute("PRAGMA integrity_check").fetchone()[0])
`;

testWith(
  ["python", "sqlite3"],
  "after a recovery, Deno and Python agents can write, and setup has nothing to do",
  async () => {
    using store = new Store();
    makeOldDatabase(store.file, "v2", 200);
    overwrite(store.file, 0x55, 4096 * 12, 4096 * 14);
    store.log("events_20251210.ndjson", line("of the log", { trigger_type: "detector" }));
    await recovered(store);
    let id: string;
    {
      await using client = new TelemetryClient({ base: store.base, onWarning: (message) => assert.fail(message) });
      id = await client.startRun("ours", "j", { trigger_type: "detector" as "cli", subdomain: "s" });
      await client.endRun(id, { status: "success" });
    }
    assert.equal(await python(PYTHON_INSERT, store.file), "ok\n");
    const added = ["of the log", "python-cli", "python-detector", "python-insight", id];
    assert.deepEqual(idsIn(store.file).filter((found) => added.includes(String(found))), added.sort());
    assert.equal((await run("sqlite3", [store.file, "PRAGMA integrity_check"])).stdout, "ok\n");
    const { code, stdout } = await runScript("setup_database", store.base, ["--json"]);
    assert.equal(code, 0);
    const { created, upgraded, added: changes } = JSON.parse(stdout);
    assert.ok(!created && !upgraded && (changes ?? []).length === 0, stdout);
  },
);

testWith(["modes"], "the new database and the kept copy have the mode of the old database", async () => {
  for (const damage of ["pages", "header"]) {
    using store = new Store();
    makeOldDatabase(store.file, "v2", 200);
    if (damage === "pages") overwrite(store.file, 0x55, 4096 * 12, 4096 * 14);
    else overwrite(store.file, 0, 0, 100);
    Deno.chmodSync(store.file, 0o600);
    const { kept } = await recovered(store);
    for (const path of [store.file, kept!]) assert.equal(Deno.statSync(path).mode! & 0o777, 0o600, `${damage} ${path}`);
  }
});

testWith(["nobody"], "files that root creates belong to the owner of the base folder", async () => {
  for (const damage of ["none", "pages", "header", "wal"]) {
    using store = new Store();
    if (damage === "none") Deno.removeSync(store.db, { recursive: true });
    else if (damage === "wal") await makeWithWal(store.file, 0x55);
    else {
      makeOldDatabase(store.file, "v2", 200);
      overwrite(store.file, 0x55, ...(damage === "pages" ? [4096 * 12, 4096 * 14] : [0, 100]) as [number, number]);
    }
    store.log("events_20251210.ndjson", line("x"), "no JSON");
    for (const path of ["", ...Object.keys(treeOf(store.base))]) {
      Deno.chownSync(`${store.base}/${path}`, NOBODY, NOBODY);
    }
    await recovered(store);
    for (const path of Object.keys(treeOf(store.base))) {
      const { uid, gid } = Deno.statSync(`${store.base}/${path}`);
      assert.deepEqual([uid, gid], [NOBODY, NOBODY], `${damage}: ${path}`);
    }
  }
});

/** A database whose newest run is in its WAL alone, as a killed agent leaves it; a page of the file is overwritten. */
async function makeWithWal(file: string, byte: number | undefined): Promise<void> {
  sqlite(file, schemaSql() + Array.from({ length: 300 }, (_, i) => insertOf(`in file ${i}`)).join(""));
  const db = new DatabaseSync(file);
  db.exec(
    "PRAGMA wal_autocheckpoint=0; BEGIN; " + insertOf("in wal", { api_posted: 1, api_posted_at: "then" }) + "COMMIT",
  );
  for (const end of ["", "-wal"]) Deno.copyFileSync(file + end, `${file}${end}.copy`);
  db.close();
  for (const end of ["", "-wal"]) await Deno.rename(`${file}${end}.copy`, file + end);
  if (byte !== undefined) overwrite(file, byte, 4096 * 14, 4096 * 16);
}

// ------------------------------------------------------------------------------------------------ flags

Deno.test("--check-only exits with 0 for a healthy database and compares it with the log", async () => {
  using store = new Store();
  store.v3(
    [],
    insertOf("both") + insertOf("db only") + insertOf("ended since", { status: "running" }) +
      insertOf("running", { status: "running" }) + insertOf("stale"),
  );
  store.log(
    "events_20251210.ndjson",
    line("both"),
    line("both", { status: "failed" }),
    line("ended since", { status: "running" }),
    line("ended since"),
    line("running", { status: "running" }),
    line("stale", { status: "running" }),
    line("log only", { status: "running" }),
    line("log only", { trigger_type: "detector" }),
  );
  const { healthy, problems, missing_tables, runs } = await checked(store.base);
  assert.deepEqual([healthy, problems, missing_tables], [true, [], []]);
  assert.deepEqual(runs, {
    in_database: 5,
    only_in_database: 1,
    only_in_log: 1,
    only_in_log_ids: ["log only"],
    older_in_database: 1,
    unreadable_logs: [],
  });
  const { stdout, stderr } = await recover(store.base, ["--check-only"]);
  assert.match(stdout, /is healthy[\s\S]*5 runs, 1 of them in no log/);
  // What somebody should do something about is told with --quiet too.
  assert.match(
    stderr,
    /1 run only in the log: run deno task .*recover_database --base \S+ --force.*\n.*1 run ended in the log/,
  );
  assert.equal((await recover(store.base, ["--check-only", "--quiet"])).stderr, stderr);
  await recovered(store, ["--force"]);
  const after = await checked(store.base);
  assert.deepEqual(after["runs"], {
    in_database: 6,
    only_in_database: 1,
    only_in_log: 0,
    only_in_log_ids: [],
    older_in_database: 0,
    unreadable_logs: [],
  });
});

const SICK: Record<string, [make: (store: Store) => void, problem: RegExp]> = {
  "no file": [() => {}, /does not exist/],
  "an empty file": [({ file }) => Deno.writeTextFileSync(file, ""), /is empty/],
  "no tables": [({ file }) => sqlite(file, "CREATE TABLE t (a); DROP TABLE t"), /empty|no table/],
  "a missing table": [
    (store) => store.v3(["x"], "DROP TABLE commits; DROP TABLE run_events"),
    /table run_events is missing/,
  ],
  "no agent_runs": [({ file }) => sqlite(file, "CREATE TABLE t (a)"), /no table agent_runs/],
  "text": [({ file }) => Deno.writeTextFileSync(file, "no database\n".repeat(1000)), /not a SQLite database/],
  "damaged pages": [(store) => {
    store.v3(Array.from({ length: 400 }, (_, i) => `run ${i}`));
    overwrite(store.file, 0x55, 4096 * 14, 4096 * 16);
  }, /./],
};

for (const [name, [make, problem]] of Object.entries(SICK)) {
  Deno.test(`--check-only exits with 1 for ${name}, and a recovery fixes it`, async () => {
    using store = new Store();
    make(store);
    store.log("events_20251210.ndjson", line("of the log"));
    const { healthy, problems } = await checked(store.base);
    assert.equal(healthy, false);
    assert.match(problems.join("\n"), problem);
    await recovered(store);
    assert.ok(idsIn(store.file).includes("of the log"));
    assert.ok((await checked(store.base)).healthy);
  });
}

Deno.test({
  name: "--check-only counts a run that ended in the log after its start was posted",
  fn: async () => {
    using store = new Store();
    store.v3([], insertOf("x", { status: "running" }));
    store.log("events_20251210.ndjson", line("x", { status: "running", api_posted: 1 }), line("x"));
    assert.deepEqual((await checked(store.base))["runs"], {
      in_database: 1,
      only_in_database: 0,
      only_in_log: 0,
      only_in_log_ids: [],
      older_in_database: 1,
      unreadable_logs: [],
    });
  },
});

Deno.test("--check-only reads the WAL beside a live agent and changes no byte", async () => {
  using store = new Store();
  store.v3(["in file"]);
  const agent = new DatabaseSync(store.file);
  try {
    agent.exec(insertOf("in wal"));
    assert.ok(Deno.statSync(`${store.file}-wal`).size > 0);
    const { stdout, code } = await recover(store.base, ["--check-only", "--json"]);
    assert.deepEqual([code, JSON.parse(stdout).runs.in_database], [0, 2]);
    agent.exec(insertOf("later"));
  } finally {
    agent.close();
  }
  await makeWithWal(`${store.db}/other.sqlite`, undefined);
  for (const end of ["", "-wal"]) await Deno.rename(`${store.db}/other.sqlite${end}`, store.file + end);
  const { healthy, runs } = await checked(store.base);
  assert.deepEqual([healthy, runs!.in_database], [true, 301]);
});

Deno.test("--check-only accepts a journal that is not hot: SQLite keeps its file in PERSIST mode", async () => {
  using store = new Store();
  store.v3(["a"]);
  const db = new DatabaseSync(store.file);
  db.exec("PRAGMA journal_mode=PERSIST; UPDATE agent_runs SET product='p'");
  db.close();
  assert.ok(Deno.statSync(`${store.file}-journal`).size > 0);
  const { code, stderr } = await recover(store.base, ["--check-only"]);
  assert.equal(code, 0, stderr);
});

Deno.test("--check-only refuses a hot journal, and a recovery rolls it back", async () => {
  using store = new Store();
  makeOldDatabase(store.file, "v2", 500, "delete");
  await killAfter(
    store.file,
    "PRAGMA cache_size=1",
    "BEGIN IMMEDIATE",
    "UPDATE agent_runs SET product = hex(zeroblob(200))",
  );
  assert.ok(Deno.statSync(`${store.file}-journal`).size > 0);
  await assertRefused(store.base, ["--check-only"], 1, /could not be checked/);
  const { code, stdout } = await recover(store.base);
  assert.equal(code, 0);
  assert.match(stdout, /is healthy[\s\S]*nothing to do/);
  assert.deepEqual(valuesIn(store.file, "SELECT count(*) FROM agent_runs WHERE product IS NULL"), [500]);
});

testWith(
  ["mount"],
  "on a read-only file system, a database in WAL mode could not be checked",
  async () => {
    using temp = new TempFolder();
    const written = `${temp.path}/written`;
    for (const name of ["db", "raw"]) Deno.mkdirSync(`${written}/${name}`, { recursive: true });
    const file = `${written}/db/telemetry.sqlite`;
    sqlite(file, schemaSql() + insertOf("in db"));
    Deno.writeTextFileSync(`${written}/raw/events_20251210.ndjson`, `${line("in log")}\n`);
    {
      using mount = new ReadOnlyMount(written);
      await assertRefused(mount.path, ["--check-only"], 1, /could not be checked[^]*WAL mode/);
      await assertRefused(mount.path, ["--force"], 1, /Read-only[^]*-> that file system is read-only: mount it/);
    }
    await makeWithWal(`${written}/db/other.sqlite`, undefined);
    for (const end of ["", "-wal"]) Deno.renameSync(`${written}/db/other.sqlite${end}`, file + end);
    using mount = new ReadOnlyMount(written);
    await assertRefused(mount.path, ["--check-only"], 1, /could not be checked/);
  },
);

Deno.test("wrong usage exits with 2 and changes nothing", async () => {
  using store = new Store();
  store.v3();
  const wrong: string[][] = [
    ["--check-only", "--force"],
    ["--check-only", "--no-salvage"],
    ["--check-only", "--with-backup", "latest"],
    ["--with-backup"],
    ["--no-such-flag"],
    ["--force=yes"],
    ["some.sqlite"],
  ];
  await Promise.all(wrong.map((flags) => assertRefused(store.base, flags, 2, /--help|usage/)));
});

Deno.test("a healthy database is reported and not changed, also with content in the WAL", async () => {
  for (const kind of ["plain", "wal"]) {
    using store = new Store();
    if (kind === "wal") await makeWithWal(store.file, undefined);
    else store.v3();
    const before = treeOf(store.base);
    const { code, stdout, stderr } = await recover(store.base);
    assert.deepEqual([code, stderr], [0, ""]);
    assert.match(stdout, /is healthy\n[\s\S]*nothing to do.*--force/);
    const json = await recover(store.base, ["--json", "--quiet"]);
    const { ok, recovered, healthy } = JSON.parse(json.stdout);
    assert.deepEqual([json.code, json.stderr, ok, recovered, healthy], [0, "", true, false, true]);
    store.log("events_20251210.ndjson", line("in log alone"));
    const missing = await recover(store.base);
    assert.match(missing.stdout, /nothing is damaged.*--force/);
    assert.match(
      missing.stderr,
      /^warning: 1 run only in the log: run deno task .*recover_database --base \S+ --force to add them to the database\n$/,
    );
    Deno.removeSync(`${store.base}/raw/events_20251210.ndjson`);
    assert.deepEqual(withoutShm(treeOf(store.base)), withoutShm(before));
  }
});

Deno.test("--quiet prints nothing, and --json prints one object", async () => {
  using store = new Store();
  store.log("events_20251210.ndjson", line("x"), "no JSON");
  const sick = await recover(store.base, ["--check-only", "--quiet"]);
  assert.deepEqual([sick.code, sick.stdout], [1, ""]);
  const quiet = await recover(store.base, ["--quiet"]);
  assert.deepEqual([quiet.code, quiet.stdout], [0, ""]);
  assert.match(quiet.stderr, /^(warning: .* is not healthy: .*\n)?$/);
  const both = await recover(store.base, ["--force", "--quiet", "--json"]);
  assert.deepEqual([both.code, both.stderr, both.stdout.trimEnd().split("\n").length], [0, "", 1]);
  assert.equal(JSON.parse(both.stdout).runs, 1);
  const failed = await recover(store.base, ["--force", "--json", "--with-backup", "latest"]);
  assert.equal(failed.code, 1);
  const { ok, error } = JSON.parse(failed.stdout);
  assert.deepEqual([ok, error.code], [false, "no_storage"]);
});

Deno.test("the output names what was read, rejected, kept and reported", async () => {
  using store = new Store();
  store.v3(["old", "both"]);
  store.log("events_20251210.ndjson", line("both"), line("new"), "no JSON");
  const { code, stdout, stderr } = await recover(store.base, ["--force"]);
  assert.deepEqual([code, stderr], [0, ""]);
  assert.match(stdout, /recovered .*telemetry\.sqlite: 3 runs, 0 commits, schema v3/);
  assert.match(stdout, /read 1 log, 3 lines/);
  assert.match(stdout, /only from the log 1, from both 1, from no log 1; events stay in the log/);
  assert.match(stdout, /rejected 1: not whole JSON\n.*recovery_\d{8}_\d{6}\.rejected\.ndjson/);
  assert.match(stdout, /replaced database: .*telemetry\.(?:corrupted\.|before_rebuild_)\d{8}_\d{6}\.sqlite/);
  assert.match(stdout, /report: .*recovery_\d{8}_\d{6}\.json/);
});

Deno.test("--no-salvage uses only the log, and the old database is kept", async () => {
  using store = new Store();
  store.v3(["in db"], insertOf("both", { api_posted: 1 }));
  store.log("events_20251210.ndjson", line("both"));
  const { runs_from, kept, sources } = await recovered(store, ["--force", "--no-salvage"]);
  assert.deepEqual([runs_from, sources], [{ log: 1, log_and_salvaged: 0, salvaged: 0 }, []]);
  assert.deepEqual(idsIn(store.file), ["both"]);
  assert.deepEqual(idsIn(kept!), ["both", "in db"]);
});

Deno.test("--with-backup adds only what neither log nor database has", async () => {
  for (const flags of [[], ["--no-salvage"]]) {
    using store = new Store();
    const backup = `${store.base}/backups/telemetry_backup_20251201_030000.sqlite`;
    Deno.mkdirSync(`${store.base}/backups`);
    sqlite(
      backup,
      schemaSql() + insertOf("thrown away", { api_posted: 1, api_posted_at: "then", product: "p" }) +
        insertOf("in db", { product: "older", api_posted: 1, api_posted_at: "then" }) +
        insertOf("both", { product: "older", status: "running", api_retry_count: 3 }) +
        "INSERT INTO commits (commit_hash, message) VALUES ('c0ffee', 'm');",
    );
    store.v3([], insertOf("in db", { product: "newer" }) + insertOf("both"));
    overwrite(store.file, 0, 0, 100);
    store.log("events_20251210.ndjson", line("both", { product: "of the log" }));
    const path = flags.length > 0 ? "latest" : backup;
    const { sources, commits } = await recovered(store, ["--with-backup", path, ...flags]);
    assert.deepEqual(sources[0], { path: backup, sound: true });
    assert.equal(commits, 1);
    const rows = rowsIn(
      store.file,
      "SELECT run_id, status, product, api_posted, api_posted_at, api_retry_count FROM agent_runs ORDER BY 1",
    ).map((row) => Object.values(row));
    assert.deepEqual(rows, [
      ["both", "success", "of the log", 0, null, 3],
      ["in db", "success", flags.length > 0 ? "older" : "newer", 1, "then", 0],
      ["thrown away", "success", "p", 1, "then", 0],
    ]);
  }
});

Deno.test("a copy of a damaged database with data that nothing else has is named, with the command that adds it", async () => {
  using store = new Store();
  const copy = `${store.base}/db/telemetry.corrupted.20251209_101500.sqlite`;
  store.v3([], insertOf("both") + insertOf("posted", { api_posted: 1 }));
  sqlite(
    copy,
    schemaSql() + insertOf("both", { api_posted: 1, api_posted_at: "then" }) + insertOf("posted", { api_posted: 1 }) +
      insertOf("only there") + "INSERT INTO commits (commit_hash) VALUES ('c0ffee'), (NULL);",
  );
  // A page of an index: the Python system moves aside what is damaged.
  const [root] = valuesIn(copy, "SELECT rootpage FROM sqlite_schema WHERE name='idx_runs_status'");
  overwrite(copy, 0x55, (Number(root) - 1) * 4096, Number(root) * 4096);
  const command = `run deno task .*recover_database --base \\S+ --force --with-backup ${copy} to add them`;
  const has = new RegExp(`has 1 run, 1 api_posted marker, 1 commit that the database lacks: ${command}`);
  for (const flags of [["--check-only"], [], ["--force"]]) {
    const { code, stderr } = await recover(store.base, flags);
    assert.deepEqual([code, has.test(stderr)], [0, true], stderr);
  }
  const { code, stderr } = await recover(store.base, ["--force", "--with-backup", copy]);
  assert.deepEqual([code, /lacks/.test(stderr)], [0, false], stderr);
  assert.deepEqual(rowsIn(store.file, "SELECT run_id, api_posted FROM agent_runs ORDER BY 1").map(Object.values), [
    ["both", 1],
    ["only there", 0],
    ["posted", 1],
  ]);
  assert.deepEqual(valuesIn(store.file, "SELECT commit_hash FROM commits"), ["c0ffee"]);
  const after = JSON.parse((await recover(store.base, ["--check-only", "--json"])).stdout);
  assert.deepEqual(after.unused_copies, []);
});

Deno.test("a copy that SQLite cannot read is named, too, but none of a later product", async () => {
  using store = new Store();
  store.v3(["here"]);
  const copy = `${store.db}/telemetry.corrupted.20251209_101500.sqlite`;
  sqlite(copy, schemaSql() + insertOf("here") + insertOf("only there"));
  overwrite(copy, 0, 0, 100);
  const { code, stderr } = await recover(store.base, ["--check-only"]);
  assert.deepEqual([code, /has 1 run that the database lacks/.test(stderr)], [0, true], stderr);
  // The command that is named would refuse it.
  Deno.copyFileSync(`${SAMPLE}/databases/v7.sqlite`, copy);
  assert.doesNotMatch((await recover(store.base, ["--check-only"])).stderr, /lacks/);
});

Deno.test("--with-backup refuses a copy of a damaged database that does not exist", async () => {
  using store = new Store();
  store.v3(["here"]);
  const before = treeOf(store.base);
  const { code, stderr } = await recover(store.base, [
    "--force",
    "--with-backup",
    "telemetry.corrupted.20251209_101500.sqlite",
  ]);
  assert.deepEqual([code, /does not exist/.test(stderr)], [1, true], stderr);
  assert.deepEqual(treeOf(store.base), before);
});

testWith(["linux"], "a recovery replaces at once a database that was emptied while an agent has it open", async () => {
  for (const areSidecarsGone of [false, true]) {
    using store = new Store();
    store.v3(["a"]);
    store.log("events_20251210.ndjson", line("a"), line("b"));
    await using _agent = await holdDatabase(store.file, "PRAGMA journal_mode=WAL", "UPDATE agent_runs SET product='x'");
    Deno.truncateSync(store.file, 0);
    if (areSidecarsGone) { for (const sidecar of ["-wal", "-shm"]) Deno.removeSync(store.file + sidecar); }
    const start = performance.now();
    const { code, stderr } = await recover(store.base);
    assert.equal(code, 0, stderr);
    assert.match(stderr, /still write to the old file: restart them/);
    // SQLite waits for a lock for 5 s.
    assert.ok(performance.now() - start < 4500);
    assert.deepEqual(idsIn(store.file), ["a", "b"]);
    assert.deepEqual(valuesIn(store.file, "PRAGMA integrity_check"), ["ok"]);
  }
});

Deno.test("statuses of later clients are read as failed, keep their word, and are counted", async () => {
  using store = new Store();
  store.log(
    "events_20251210.ndjson",
    line("a", { status: "timeout" }),
    line("b", { status: "cancelled", error_summary: "stopped by hand" }),
    line("c", { status: "failure", event_id: "e", schema_version: 6 }),
    line("d", { status: "no such word" }),
  );
  store.v3([], "");
  const report = JSON.parse((await recover(store.base, ["--force", "--json"])).stdout);
  assert.deepEqual(report.read_as_failed, { timeout: 1, cancelled: 1, failure: 1 });
  assert.deepEqual(report.rejected, { "unknown status": 1 });
  const rows = rowsIn(store.file, "SELECT run_id, status, error_summary FROM agent_runs ORDER BY 1").map(Object.values);
  assert.deepEqual(rows, [
    ["a", "failed", "timeout"],
    ["b", "failed", "cancelled: stopped by hand"],
    ["c", "failed", "failure"],
  ]);
});

Deno.test("where the database is lost, the log of a later product is refused and nothing is changed", async () => {
  for (const fields of [{ event_id: "e" }, { schema_version: 6 }]) {
    for (const how of ["gone", "empty", "garbage"]) {
      using store = new Store();
      store.log("events_20251210.ndjson", line("a"), line("b", fields));
      if (how !== "gone") Deno.writeFileSync(store.file, new Uint8Array(how === "empty" ? 0 : 8192).fill(7));
      const before = treeOf(store.base);
      const { code, stderr } = await recover(store.base);
      assert.equal(code, 1, stderr);
      assert.match(stderr, /records of v\d.*v3[^]*setup_database/);
      const after = treeOf(store.base);
      if (after["reports"] === "folder") delete after["reports"];
      assert.deepEqual(after, before);
    }
  }
});

Deno.test("runs that have just started are left to their agents, and told", async () => {
  using store = new Store();
  const now = new Date().toISOString().replace("Z", "000+00:00");
  store.v3([], insertOf("there", { status: "running", start_time: now }));
  store.log(
    "events_20251210.ndjson",
    line("there", { status: "running", start_time: now }),
    line("starting", { status: "running", start_time: now }),
    line("old", { status: "running" }),
  );
  const { stdout } = await recover(store.base, ["--check-only", "--json"]);
  assert.deepEqual(JSON.parse(stdout).runs.only_in_log_ids, ["old"]);
  const told = await recover(store.base, ["--force"]);
  assert.match(told.stdout, /left to their agents: 1 run that started less than 20 s ago/);
  assert.deepEqual(idsIn(store.file), ["old", "there"]);
});

Deno.test("--with-backup needs only read permission, and prints the whole command without it", async () => {
  using store = new Store();
  using temp = new TempFolder();
  const backup = `${temp.path}/mine.sqlite`;
  sqlite(backup, `PRAGMA journal_mode=WAL; ${schemaSql()}${insertOf("thrown away")}`);
  const script = [`${ROOT}scripts/recover_database.ts`, "--base", store.base, "--with-backup", backup, "--json"];
  store.v3([]);
  Deno.removeSync(store.file);
  const refused = await run(Deno.execPath(), ["run", "--no-prompt", ...access(store.base, store.base), ...script]);
  assert.equal(refused.code, 1);
  const again = /-> run: deno (.*)\n/.exec(refused.stderr)?.[1]?.split(" ");
  assert.deepEqual(again, [
    "run",
    ...access(
      [store.base, ...["", "-wal", "-shm", "-journal"].map((suffix) => backup + suffix)].join(),
      `${store.base}/db,${store.base}/reports`,
    ),
    ...script,
  ]);
  const { code, stdout, stderr } = await run(Deno.execPath(), again!);
  assert.equal(code, 0, stderr);
  assert.deepEqual(JSON.parse(stdout).sources, [{ path: backup, sound: true }]);
  assert.deepEqual(Object.keys(treeOf(temp.path)), ["mine.sqlite"]);
});

const access = (read: string, write: string) => [`--allow-read=${read}`, `--allow-write=${write}`];

Deno.test("an intact database is left alone, and says that --with-backup was not used", async () => {
  using store = new Store();
  store.v3();
  const { code, stderr } = await recover(store.base, ["--with-backup", "latest"]);
  assert.deepEqual([code, stderr], [0, "warning: --with-backup was not used: add --force to use it\n"]);
});

Deno.test("where nothing else has a run, a recovery names the newest backup if it has some", async () => {
  for (const [rows, expected] of [["", 0], [insertOf("in the backup"), 1]] as const) {
    using store = new Store();
    Deno.mkdirSync(`${store.base}/backups`);
    sqlite(`${store.base}/backups/telemetry_backup_20251201_030000.sqlite`, schemaSql() + rows);
    const { stderr } = await recover(store.base);
    assert.equal(stderr.match(/no run was recovered, but \S+ exists: .* --with-backup latest/g)?.length ?? 0, expected);
  }
});

Deno.test("--with-backup refuses a damaged or missing backup before anything changes", async () => {
  using store = new Store();
  const backups = `${store.base}/backups`;
  Deno.mkdirSync(backups);
  await assertRefused(store.base, ["--with-backup", "latest"], 1, /no backup/);
  const path = `${backups}/telemetry_backup_20251201_030000.sqlite`;
  await assertRefused(store.base, ["--with-backup", path], 1, /does not exist/);
  sqlite(path, schemaSql() + Array.from({ length: 400 }, (_, i) => insertOf(`run ${i}`)).join(""));
  overwrite(path, 0x55, 4096 * 14, 4096 * 16);
  await assertRefused(store.base, ["--with-backup", path], 1, /damaged/);
  await assertRefused(store.base, ["--with-backup", "latest"], 1, /damaged/);
  makeOldDatabase(`${backups}/telemetry_backup_20251202_030000.sqlite`, "v7", 5);
  const before = treeOf(store.base);
  const { code, stderr } = await recover(store.base, ["--with-backup", "latest"]);
  assert.equal(code, 1);
  assert.match(stderr, /schema v\d.*v3/);
  const after = treeOf(store.base);
  if (after["reports"] === "folder") delete after["reports"];
  assert.deepEqual(after, before);
});

// ------------------------------------------------------------------------------------------------ not to be touched

testWith(
  ["nobody"],
  "a database without read permission is reported as not checked, and nothing is changed",
  async () => {
    using store = new Store();
    store.v3();
    store.log("events_20251210.ndjson", line("x"));
    for (const path of ["", ...Object.keys(treeOf(store.base))]) {
      Deno.chownSync(
        `${store.base}/${path}`,
        NOBODY,
        NOBODY,
      );
    }
    // Root reads everything, and may be asked for nothing.
    Deno.chmodSync(store.base.slice(0, store.base.lastIndexOf("/")), 0o755);
    Deno.chmodSync(store.file, 0);
    for (const flags of [["--check-only"], [], ["--force"]]) {
      await assertRefused(store.base, flags, 1, /could not be checked/, {
        uid: NOBODY,
        env: { HOME: "/nonexistent", DENO_DIR: "/nonexistent" },
      });
    }
  },
);

/** A later product's database is as it was, and nothing stands beside it. */
async function assertLeftAlone(damage: (file: string) => void, flags: string[], pattern: RegExp): Promise<void> {
  using store = new Store();
  makeOldDatabase(store.file, "v7", 300);
  damage(store.file);
  store.log("events_20251210.ndjson", line("x"));
  const before = treeOf(store.base);
  const { code, stderr } = await recover(store.base, flags);
  assert.equal(code, 1);
  assert.match(stderr, pattern);
  assert.equal(withoutWarnings(stderr).trimEnd().split("\n").length, 2, stderr);
  const after = treeOf(store.base);
  if (after["reports"] === "folder") delete after["reports"];
  assert.deepEqual(after, before);
}

const headerGone = (file: string) => overwrite(file, 0, 0, 100);
const pagesGone = (file: string) => overwrite(file, 0x55, 4096 * 12, 4096 * 14);

Deno.test("a later product's database is refused with both versions, and nothing is changed", async () => {
  for (const flags of [["--check-only"], [], ["--force"], ["--no-salvage", "--force"]]) {
    await assertLeftAlone(() => {}, flags, /telemetry\.sqlite has schema v7.*v3/);
  }
  for (const damage of [pagesGone, headerGone]) await assertLeftAlone(damage, [], /has schema v\d.*v3/);
});

Deno.test({
  name: "a later product's damaged database is refused with --no-salvage too",
  fn: async () => {
    for (const damage of [pagesGone, headerGone]) await assertLeftAlone(damage, ["--no-salvage"], /v3/);
  },
});

Deno.test({
  name: "a later product's damaged database is named by its own name",
  fn: () => assertLeftAlone(pagesGone, [], /db\/telemetry\.sqlite has schema v\d.*v3/),
});

for (const kind of UPGRADABLE) {
  Deno.test(`forcing a ${kind} database keeps all of its rows in v3`, async () => {
    using store = new Store();
    makeOldDatabase(store.file, kind);
    if (hasMetadata(kind)) sqlite(store.file, `UPDATE agent_runs SET custom_metadata='{"a": 1}' WHERE rowid % 2`);
    const before = readDatabase(store.file);
    await recovered(store, ["--force"]);
    const after = readDatabase(store.file);
    for (const [name, { columns, rows }] of Object.entries(before.tables)) {
      const now = after.tables[name]!;
      const kept = now.rows.map((row) => Object.fromEntries(columns.map(([column]) => [column, row[column]])));
      assert.deepEqual(kept.slice(0, rows.length), rows, name);
    }
    const columns = after.tables["agent_runs"]!.columns.map(([name]) => name);
    for (const name of ["insight_id", "product_family", "subdomain"]) assert.ok(columns.includes(name), name);
    assert.ok(after.tables["schema_migrations"]!.rows.some((row) => row["version"] === 3));
    assert.ok((await checked(store.base)).healthy);
  });
}

function hasMetadata(kind: OldKind): boolean {
  return kind.startsWith("v2_recovered") || kind === "says3_is2";
}

// ------------------------------------------------------------------------------------------------ odd stores

Deno.test("a store without db/, raw/ or records gives a correct report", async () => {
  const stores: Record<string, [make: (store: Store) => void, expected: Partial<Report>, warning: RegExp]> = {
    "no db": [
      (store) => {
        Deno.removeSync(store.db);
        store.log("events_20251210.ndjson", line("x"));
      },
      { runs: 1, files: 1, lines: 1, rejected: {} },
      /^$/,
    ],
    "no raw": [
      (store) => {
        Deno.removeSync(store.raw);
        store.v3(["x"]);
      },
      { runs: 1, files: 0, lines: 0, rejected: {} },
      /there is no log in /,
    ],
    "empty raw": [(store) => store.v3(["x"]), { runs: 1, files: 0 }, /there is no log in /],
    "only rejects": [
      (store) => store.log("events_20251210.ndjson", "no JSON", '{"record_type": "run"}', "[]"),
      { runs: 0, lines: 3, rejected: { "not whole JSON": 1, "run_id is missing": 1, "not an object": 1 } },
      /^$/,
    ],
    "only events": [
      (store) =>
        store.log(
          "events_20251210.ndjson",
          '{"run_id": "x", "event_type": "e", "timestamp": "t", "payload_json": null, "id": null, "record_type": "event"}',
        ),
      { runs: 0, lines: 1, rejected: {} },
      /^$/,
    ],
  };
  for (const [what, [make, expected, warning]] of Object.entries(stores)) {
    using store = new Store();
    make(store);
    const { code, stdout, stderr } = await recover(store.base, ["--force", "--json"]);
    assert.equal(code, 0, `${what}: ${stderr}`);
    const report = JSON.parse(stdout);
    for (const [name, value] of Object.entries(expected)) assert.deepEqual(report[name], value, `${what} ${name}`);
    assert.match(stderr.replace(/^warning: .* is not healthy: .*\n/, ""), warning, what);
    assertClean(store);
    assert.equal(valuesIn(store.file, "SELECT count(*) FROM agent_runs")[0], expected.runs);
  }
});

Deno.test("a recovery without log and database fails", async () => {
  using store = new Store();
  const { code, stdout, stderr } = await recover(store.base, ["--json"]);
  assert.equal(code, 1);
  assert.equal(JSON.parse(stdout).ok, false);
  assert.match(stderr, /there is no log in .* and no database, so nothing was recovered/);
});

Deno.test("a mistyped folder gets no new store", async () => {
  using temp = new TempFolder();
  Deno.mkdirSync(`${temp.path}/here`);
  for (const flags of [[], ["--force"], ["--check-only"]]) {
    const { code, stderr } = await recover(`${temp.path}/store`, flags);
    assert.equal(code, 1);
    assert.match(stderr, /store does not exist\n {2}-> .*--base/);
  }
  assert.deepEqual(treeOf(temp.path), { here: "folder" });
});

Deno.test({
  name: "a folder that is not a store gets no new store",
  fn: async () => {
    using temp = new TempFolder();
    Deno.writeTextFileSync(`${temp.path}/some.txt`, "");
    const { code } = await recover(temp.path);
    assert.deepEqual(treeOf(temp.path), { "some.txt": treeOf(temp.path)["some.txt"] });
    assert.equal(code, 1);
  },
});

Deno.test("a view with the name of a table is refused, and nothing is changed", async () => {
  for (const table of ["agent_runs", "commits"]) {
    using store = new Store();
    store.v3(["a"], `ALTER TABLE ${table} RENAME TO other; CREATE VIEW ${table} AS SELECT * FROM other`);
    const before = treeOf(store.db);
    for (const flags of [[], ["--force"], ["--check-only"]]) {
      const { code, stderr } = await recover(store.base, flags);
      assert.equal(code, 1);
      assert.match(stderr, new RegExp(`has a view ${table}, but a table of that name is needed\n  -> drop or rename`));
      assert.deepEqual(treeOf(store.db), before);
    }
  }
});

Deno.test("a folder at the path of the database and a file at the path of raw/ are refused", async () => {
  using store = new Store();
  Deno.mkdirSync(store.file);
  store.log("events_20251210.ndjson", line("x"));
  await assertRefused(store.base, ["--force"], 1, /folder/);
  Deno.removeSync(store.file);
  Deno.removeSync(store.raw, { recursive: true });
  Deno.writeTextFileSync(store.raw, "");
  const { code, stderr } = await recover(store.base);
  assert.equal(code, 1, stderr);
  assert.equal(withoutWarnings(stderr).trimEnd().split("\n").length, 2);
  assert.deepEqual([...Deno.readDirSync(store.db)], []);
});

Deno.test({
  name: "a report that cannot be written does not stop the recovery",
  fn: async () => {
    using store = new Store();
    store.log("events_20251210.ndjson", line("x"), "no JSON");
    Deno.writeTextFileSync(store.reports, "a file");
    const { code, stdout, stderr } = await recover(store.base, ["--json"]);
    assert.equal(code, 0, stderr);
    const { report, rejected_file, warnings } = JSON.parse(stdout);
    assert.deepEqual([report, rejected_file, warnings.length], [null, null, 1]);
    assert.deepEqual(idsIn(store.file), ["x"]);
  },
});

Deno.test("a line of 300 MB is rejected as too long, and the runs around it are loaded", async () => {
  using store = new Store();
  // Many members of gzip: written at once, and as long as one member when it is read.
  const megabyte = gzipSync("x".repeat(1024 * 1024));
  const parts = [gzipSync(`${line("before")}\n`), ...Array(300).fill(megabyte), gzipSync(`\n${line("after")}\n`)];
  Deno.writeFileSync(`${store.raw}/events_20251210.ndjson.gz`, new Uint8Array(await new Blob(parts).arrayBuffer()));
  Deno.writeTextFileSync(
    `${store.raw}/events_20251211.ndjson`,
    `${line("b")}\n${"y".repeat(40 * 1024 * 1024)}\n${line("c")}`,
  );
  const { rejected, rejected_file, lines } = await recovered(store);
  assert.deepEqual(rejected, { "line is too long": 2 });
  assert.equal(lines, 6);
  assert.deepEqual(idsIn(store.file), ["after", "b", "before", "c"]);
  const [first] = Deno.readTextFileSync(rejected_file!).split("\n").map((text) => text && JSON.parse(text));
  assert.deepEqual([first.line, first.length, first.text.length], [2, 300 * 1024 * 1024, 64 * 1024]);
});

Deno.test("an end in the log of the previous day wins over a start in the next one", async () => {
  using store = new Store();
  store.log("events_20251210.ndjson", line("x", { end_time: "2025-12-10T23:59:59+00:00", product: "end" }));
  store.log(
    "events_20251211.ndjson",
    line("x", { status: "running", product: "start" }),
    line("y", { status: "running" }),
  );
  await recovered(store);
  assert.deepEqual(
    rowsIn(store.file, "SELECT run_id, status, product FROM agent_runs ORDER BY 1").map((row) => Object.values(row)),
    [["x", "success", "end"], ["y", "running", null]],
  );
});

Deno.test("of a gzipped and a plain log of one day, the plain one is read last", async () => {
  using store = new Store();
  Deno.writeFileSync(
    `${store.raw}/events_20251210.ndjson.gz`,
    gzipSync(`${line("x", { product: "gz" })}\n${line("gz")}\n`),
  );
  store.log("events_20251210.ndjson", line("x", { product: "plain" }), line("plain"));
  const { files, lines } = await recovered(store);
  assert.deepEqual([files, lines], [2, 4]);
  assert.deepEqual(
    rowsIn(store.file, "SELECT run_id, product FROM agent_runs ORDER BY 1").map((row) => Object.values(row)),
    [
      ["gz", null],
      ["plain", null],
      ["x", "plain"],
    ],
  );
});

testWith(["nobody"], "an unreadable log is rejected, and the others are read", async () => {
  using store = new Store();
  store.log("events_20251210.ndjson", line("x"));
  store.log("events_20251211.ndjson", line("y"));
  for (const path of ["", ...Object.keys(treeOf(store.base))]) Deno.chownSync(`${store.base}/${path}`, NOBODY, NOBODY);
  Deno.chmodSync(store.base.slice(0, store.base.lastIndexOf("/")), 0o755);
  Deno.chmodSync(`${store.raw}/events_20251210.ndjson`, 0);
  const { code, stdout } = await recover(store.base, ["--json"], {
    uid: NOBODY,
    env: { HOME: "/nonexistent", DENO_DIR: "/nonexistent" },
  });
  assert.equal(code, 1, "a log that could not be read is no success");
  assert.deepEqual(JSON.parse(stdout).rejected, { "cannot be read": 1 });
  assert.deepEqual(idsIn(store.file), ["y"]);
});

Deno.test("a recovery reuses the incomplete file of a killed one and reads its kept copy", async () => {
  using store = new Store();
  store.v3(["in the copy"]);
  Deno.renameSync(store.file, `${store.db}/telemetry.corrupted.20251201_120000.sqlite`);
  Deno.writeTextFileSync(`${store.db}/telemetry.recovering.sqlite`, "half made".repeat(1000));
  Deno.writeTextFileSync(`${store.db}/telemetry.recovering.sqlite-wal`, "half made");
  Deno.writeTextFileSync(`${store.db}/telemetry.recovering.sqlite-journal`, "half made");
  store.log("events_20251210.ndjson", line("x"));
  await recovered(store);
  assert.deepEqual(idsIn(store.file), ["in the copy", "x"]);
});

Deno.test("a program's recovery removes the second name of the copy that a killed one has just published", async () => {
  using store = new Store();
  const kept = `${store.db}/telemetry.corrupted.20251201_120000.sqlite`;
  Deno.writeTextFileSync(store.file, "damaged".repeat(1000));
  Deno.copyFileSync(store.file, kept);
  Deno.linkSync(kept, `${kept}.partial`);
  Deno.writeTextFileSync(`${store.db}/telemetry.recovering.sqlite`, "");
  store.log("events_20251210.ndjson", line("x"));
  await recoverDatabase(layoutOf(store.base));
  assert.deepEqual(Object.keys(treeOf(store.db)).sort(), [kept.slice(store.db.length + 1), "telemetry.sqlite"]);
  assert.equal(Deno.readTextFileSync(kept), "damaged".repeat(1000));
});

testWith(["nobody"], "the check and the recovery name an unreadable log", async () => {
  using temp = new TempFolder();
  const base = `${temp.path}/store`;
  Deno.mkdirSync(`${base}/raw`, { recursive: true });
  const secret = `${base}/raw/events_20251210.ndjson`;
  Deno.writeTextFileSync(secret, "");
  Deno.chmodSync(secret, 0);
  for (const path of [temp.path, base, `${base}/raw`]) Deno.chownSync(path, NOBODY, NOBODY);
  const recovery = await runScript("recover_database", base, ["--quiet"], { uid: NOBODY });
  assert.equal(recovery.code, 1, "the log was not read, so this is no success");
  assert.match(recovery.stderr, /events_20251210\.ndjson cannot be read .*--force/);
  const check = await runScript("recover_database", base, ["--check-only", "--quiet"], { uid: NOBODY });
  assert.match(check.stderr, /events_20251210\.ndjson cannot be read/);
});
