import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { gzipSync } from "node:zlib";
import { schemaSql } from "../../lib/schema.ts";
import { RUN_COLUMNS } from "../../lib/records.ts";
import {
  command,
  makeOldDatabase,
  type OldKind,
  pathWithDeno,
  python,
  ReadOnlyMount,
  ROOT,
  run,
  runScript,
  SAMPLE,
  scriptArgs,
  sqlite,
  TempFolder,
  testWith,
  treeOf,
} from "../fixtures/mod.ts";

/** More pages than are read on the thread of the script itself. */
const MANY = 40_000;

/** A store with so many runs. */
function newStore(temp: TempFolder, runs = 3): string {
  const base = `${temp.path}/store`;
  for (const folder of ["db", "raw"]) Deno.mkdirSync(`${base}/${folder}`, { recursive: true });
  using db = new DatabaseSync(`${base}/db/telemetry.sqlite`);
  db.exec(schemaSql());
  db.prepare(
    `INSERT INTO agent_runs (run_id, agent_name, start_time, status, metrics_json)
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
    SELECT printf('run%06d', i), 'a', datetime(1760000000 + i, 'unixepoch'), 'success', '{"text": "' || hex(zeroblob(100)) || '"}'
    FROM n`,
  ).run(runs);
  return base;
}

const exportsIn = (base: string) => {
  try {
    return [...Deno.readDirSync(`${base}/exports`)].map(({ name }) => name).sort();
  } catch {
    return [];
  }
};

/** Runs the export, with its result. */
async function exportJson(base: string, args: string[] = []) {
  const { code, stdout, stderr } = await runScript("export_csv", base, ["--json", ...args]);
  return { code, stderr, ...JSON.parse(stdout) };
}

/** The lines of a file or of stdout, without the header. */
function linesOf(text: string): string[] {
  assert.ok(text.endsWith("\r\n"));
  const [header, ...lines] = text.slice(0, -2).split("\r\n");
  assert.match(header!, /^[a-z_,]+$/);
  return lines;
}

Deno.test("all runs, into a new file in exports/", async () => {
  using temp = new TempFolder();
  const base = newStore(temp);
  const first = await runScript("export_csv", base);
  assert.deepEqual([first.code, first.stderr], [0, ""]);
  const [name] = exportsIn(base);
  assert.match(name!, /^agent_runs_\d{8}_\d{6}\.csv$/);
  assert.equal(first.stdout, `${base}/exports/${name}: 3 runs, 2 kB\n`);
  const text = Deno.readTextFileSync(`${base}/exports/${name}`);
  assert.equal(text.split("\r\n")[0], RUN_COLUMNS.join());
  assert.deepEqual(linesOf(text).map((line) => line.split(",")[0]), ["run000001", "run000002", "run000003"]);
  // Also by several at once, in one second.
  const more = await Promise.all([1, 2, 3].map(() => exportJson(base)));
  assert.deepEqual(
    more.map(({ code, stderr, rows, table }) => [code, stderr, rows, table]),
    Array(3).fill([0, "", 3, "runs"]),
  );
  assert.equal(new Set([name, ...more.map(({ path }) => path)]).size, 4);
  assert.equal(exportsIn(base).length, 4, "and no partials");
  for (const { path, bytes } of more) {
    assert.equal(Deno.readTextFileSync(path), text);
    assert.equal(bytes, text.length);
  }
});

Deno.test("the flags reach the export; warnings say what the table does not show", async () => {
  using temp = new TempFolder();
  const base = newStore(temp);
  using db = new DatabaseSync(`${base}/db/telemetry.sqlite`);
  db.exec(
    `UPDATE agent_runs SET agent_name='=b', status='failed', host=printf('%.*c', 40000, 'x') WHERE run_id='run000002';
    INSERT INTO agent_runs (run_id, agent_name, start_time, status) VALUES ('x', '=b', 'never', 'failed')`,
  );
  const flags = ["--columns", "run_id,agent_name,host", "--agent", "=b", "--status", "failed", "--since", "2025-01-01"];
  const path = `${base}/out.csv`;
  const result = await exportJson(base, [
    ...flags,
    "--until",
    "2026-01-01",
    "--updated-since",
    "1d",
    "--for",
    "excel",
    "--output",
    path,
  ]);
  assert.deepEqual([result.code, result.path, result.rows, result.cut_cells, result.untimed_rows], [0, path, 1, 1, 1]);
  assert.match(result.stderr, /^warning: cut 1 cell: [^\n]*\nwarning: left out 1 row [^\n]*\n$/);
  assert.equal(Deno.readTextFileSync(path), `\ufeffrun_id,agent_name,host\r\nrun000002,'=b,${"x".repeat(32_767)}\r\n`);

  Deno.writeTextFileSync(
    `${base}/raw/events_20251210.ndjson`,
    'half\n{"run_id":"r","event_type":"e","timestamp":"2025-12-10","record_type":"event"}',
  );
  const events = await exportJson(base, ["--table", "events"]);
  assert.match(events.path, /run_events_\d{8}_\d{6}\.csv$/);
  assert.deepEqual([events.rows, events.rejected_lines], [1, 1]);
  assert.match(events.stderr, /^warning: left out 1 invalid part of the log\n$/);
  const commits = await exportJson(base, ["--table", "commits"]);
  assert.match(commits.path, /commits_\d{8}_\d{6}\.csv$/);
  assert.equal(commits.rows, 0);
});

Deno.test("events: lines of every form and filters give the same cells", async () => {
  using temp = new TempFolder();
  const base = newStore(temp);
  // Before the long text, nothing needs \u in JSON.
  const payloads = [
    "{}",
    "",
    "a,b",
    String.raw`\.`,
    'q"\\/\b\f\n\r\t',
    "naïve €😀",
    "x".repeat(70_000),
    "\0\x7f",
    "\ud800",
    "é\\u00e9",
  ];
  const time = (i: number) => `2025-12-10T00:00:00.${String(i).padStart(6, "0")}+00:00`;
  const records = payloads.map((payload_json, i) => ({
    run_id: `r${i}`,
    event_type: payload_json.slice(0, 20),
    timestamp: time(i),
    payload_json: i % 3 === 2 ? null : payload_json,
    id: null,
    record_type: "event",
  }));
  const forms = records.flatMap((record) => {
    const plain = JSON.stringify(record);
    const { id, ...rest } = record;
    const asPython = plain.replaceAll(/"([:,])(?=["n])/g, '"$1 ').replaceAll(/[\x80-\uffff]/g, (unit) => {
      return `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`;
    });
    return [plain, asPython, `${plain}\r`, JSON.stringify({ id, ...rest }), plain.replace("/", "\\/")];
  });
  const bad = [
    '{"run_id":"r","event_type":"\t","timestamp":"t","payload_json":null,"id":null,"record_type":"event"}',
    '{"run_id":"r"',
  ];
  const log = [...bad, ...forms].map((line) => `${line}\n`).join("");
  Deno.writeTextFileSync(`${base}/raw/events_20251210.ndjson`, log);

  const quote = (cell: string | null) =>
    cell === null ? "" : /^$|[",\r\n]|^\\\.$/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell;
  const expected = (columns: string[], from = 0) =>
    [
      columns.join(","),
      ...records.slice(from).flatMap((record) => {
        const cells = columns.map((column) => quote((record as Record<string, string | null>)[column] ?? null));
        return Array<string>(5).fill(cells.join(",").toWellFormed());
      }),
    ].map((line) => `${line}\r\n`).join("");
  const all = ["id", "run_id", "event_type", "timestamp", "payload_json"];
  for (const columns of [all, ["payload_json", "event_type"]]) {
    for (const from of [0, 3]) {
      const flags = ["--columns", columns.join(","), ...from > 0 ? ["--since", time(from)] : []];
      const { path, rows, rejected_lines, changed_cells } = await exportJson(base, ["--table", "events", ...flags]);
      assert.equal(Deno.readTextFileSync(path), expected(columns, from));
      assert.deepEqual([rows, rejected_lines, changed_cells], [5 * (records.length - from), bad.length, 5]);
      Deno.removeSync(path);
    }
  }
});

Deno.test("events: a log in two copies counts once, and a log that cannot be read is named", async () => {
  using temp = new TempFolder();
  const base = newStore(temp);
  const log = '{"run_id":"r","event_type":"e","timestamp":"2025-12-10","record_type":"event"}\n';
  Deno.writeTextFileSync(`${base}/raw/events_20251210.ndjson`, log.repeat(2));
  Deno.writeFileSync(`${base}/raw/events_20251210.ndjson.gz`, gzipSync(log.repeat(2)));
  Deno.writeTextFileSync(`${base}/raw/events_20251209.ndjson.1`, log.replace("2025-12-10", "2025-12-09"));
  const unread = `${base}/raw/events_20251208.ndjson.zst`;
  Deno.writeFileSync(unread, Uint8Array.fromHex("28b52ffd04"));
  const events = await exportJson(base, ["--table", "events"]);
  assert.deepEqual([events.code, events.rows, events.rejected_lines, events.unreadable_logs], [0, 3, 0, [unread]]);
  assert.equal(events.stderr, `warning: ${unread} cannot be read: its events are left out\n`);
});

Deno.test("--output PATH: what is there stays, and nothing is left beside it", async () => {
  using temp = new TempFolder();
  const base = newStore(temp);
  const path = `${base}/mine.csv`;
  Deno.writeTextFileSync(path, "mine");
  const tree = treeOf(base);
  const refused = await exportJson(base, ["--output", path]);
  assert.deepEqual([refused.code, refused.error.code], [2, "usage"]);
  for (const output of ["", `${base}/none/x.csv`]) {
    assert.notEqual((await exportJson(base, ["--output", output])).code, 0);
  }
  const args = [`${ROOT}scripts/export_csv.ts`, "--base", base, "--json", "--output", `${temp.path}/x.csv`];
  const access = ["--no-prompt", `--allow-read=${base}`, `--allow-write=${base}`];
  const elsewhere = await run(Deno.execPath(), ["run", ...access, ...args]);
  const { error } = JSON.parse(elsewhere.stdout);
  assert.deepEqual([elsewhere.code, error.code], [1, "permission"]);
  assert.equal(
    error.hint,
    `run: deno run --allow-read=${temp.path} --allow-write=${base}/db,${temp.path}/x.csv,${temp.path}/x.csv.partial ` +
      args.join(" "),
  );
  assert.deepEqual(treeOf(base), tree);
  Deno.removeSync(path);
  assert.equal((await exportJson(base, ["--output", path])).path, path);
});

testWith(["modes"], "an export may be read by nobody who may not read the database", async () => {
  using temp = new TempFolder();
  const base = newStore(temp);
  for (const [database, exported] of [[0o600, 0o600], [0o440, 0o640]] as const) {
    Deno.chmodSync(`${base}/db/telemetry.sqlite`, database);
    const { path } = await exportJson(base);
    assert.equal(Deno.statSync(path).mode! & 0o777, exported);
  }
});

Deno.test("--overwrite replaces a file, and a missing folder is named", async () => {
  using temp = new TempFolder();
  const base = newStore(temp);
  const path = `${base}/mine.csv`;
  Deno.writeTextFileSync(path, "old");
  assert.equal((await exportJson(base, ["--output", path])).code, 2);
  assert.equal(Deno.readTextFileSync(path), "old");
  assert.equal((await exportJson(base, ["--output", path, "--overwrite"])).code, 0);
  assert.match(Deno.readTextFileSync(path), /^run_id,/);
  const { code, error } = await exportJson(base, ["--output", `${base}/none/x.csv`]);
  assert.deepEqual([code, error.code], [1, "no_storage"]);
  assert.ok(error.message.includes(`${base}/none does not exist`), error.message);
});

Deno.test("--overwrite does not replace the database, a log or a backup", async () => {
  using temp = new TempFolder();
  const base = newStore(temp);
  Deno.mkdirSync(`${base}/backups`);
  for (const file of ["raw/events_20251210.ndjson", "backups/telemetry.backup.20251210.sqlite"]) {
    Deno.writeTextFileSync(`${base}/${file}`, "kept");
  }
  const before = treeOf(base);
  for (
    const file of ["db/telemetry.sqlite", "raw/events_20251210.ndjson", "backups/telemetry.backup.20251210.sqlite"]
  ) {
    for (const path of [`${base}/${file}`, `${base}/db/../${file}`]) {
      const { code, error } = await exportJson(base, ["--output", path, "--overwrite"]);
      assert.deepEqual([code, error.code], [2, "usage"], path);
    }
  }
  assert.deepEqual(treeOf(base), before);
});

Deno.test("--output -: the table alone on stdout, and no file", async () => {
  using temp = new TempFolder();
  const base = newStore(temp, MANY);
  const { code, stdout, stderr } = await runScript("export_csv", base, ["--output", "-", "--columns", "run_id"]);
  assert.deepEqual([code, stderr], [0, ""]);
  const lines = linesOf(stdout);
  assert.equal(lines.length, MANY);
  assert.ok(lines.every((line, i) => Number(line.slice(3)) === i + 1));
  assert.deepEqual(exportsIn(base), []);
  const both = await exportJson(base, ["--output", "-"]);
  assert.deepEqual([both.code, both.error.code], [2, "usage"]);
});

testWith(["bash"], "a reader that closes the pipe early is no error", async () => {
  using temp = new TempFolder();
  const base = newStore(temp, MANY);
  const args = scriptArgs("export_csv", base).map((arg) => `'${arg}'`).join(" ");
  for (const flags of ["", "--for sheets", "--since 2020-01-01"]) {
    const line = `deno ${args} --output - ${flags} | head -1`;
    const result = await run("bash", ["-o", "pipefail", "-c", line], { env: { PATH: pathWithDeno() } });
    assert.deepEqual(result, { code: 0, stdout: `${RUN_COLUMNS.join()}\r\n`, stderr: "" });
  }
});

Deno.test("while a writer commits, an export is one snapshot, and holds up nobody", async () => {
  using temp = new TempFolder();
  const base = newStore(temp, MANY);
  using db = new DatabaseSync(`${base}/db/telemetry.sqlite`);
  // One of a pair is read first, the other last.
  const insert = db.prepare("INSERT INTO agent_runs (run_id, agent_name, start_time) VALUES (?, 'pair', ?)");
  let pairs = 0;
  const addPair = () => {
    db.exec("BEGIN");
    insert.run(`first${++pairs}`, `2000-01-01 ${pairs}`);
    insert.run(`last${pairs}`, `2100-01-01 ${pairs}`);
    db.exec("COMMIT");
  };
  for (const flags of [[], ["--for", "sheets"], ["--agent", "pair"]]) {
    let hasEnded = false;
    const said = runScript("export_csv", base, ["--output", "-", "--columns", "run_id", ...flags]);
    said.finally(() => hasEnded = true);
    while (!hasEnded) {
      addPair();
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    const { code, stdout } = await said;
    assert.equal(code, 0);
    const lines = linesOf(stdout);
    const [first, last] = ["first", "last"].map((name) => lines.filter((line) => line.startsWith(name)).length);
    assert.equal(first, last);
    assert.ok(first! < pairs, "the writer went on");
  }
});

Deno.test("kill -9: no half file under a good name, and the next run cleans up", async () => {
  using temp = new TempFolder();
  const base = newStore(temp, MANY);
  for (const flags of [[], ["--output", `${base}/exports/mine.csv`]]) {
    // A kill that comes too late proves nothing.
    for (let tries = 1; await killedTooLate(base, flags); tries++) assert.ok(tries < 10);
    assert.deepEqual(exportsIn(base).map((name) => name.replace(/.*\.csv/, "")), [".partial"]);
    assert.equal((await exportJson(base, flags)).rows, MANY);
    const [name, ...others] = exportsIn(base);
    assert.deepEqual([name!.endsWith(".csv"), others], [true, []]);
    Deno.removeSync(`${base}/exports/${name}`);
  }
});

/** Kills an export when it has begun to write; whether it was done all the same, and then removes what it made. */
async function killedTooLate(base: string, flags: string[]): Promise<boolean> {
  const process = command(Deno.execPath(), [...scriptArgs("export_csv", base), ...flags]).spawn();
  const said = process.output();
  await until(() => exportsIn(base).some((name) => sizeOf(`${base}/exports/${name}`) > 0));
  try {
    process.kill("SIGKILL");
  } catch { /* it has ended */ }
  await said;
  const whole = exportsIn(base).filter((name) => name.endsWith(".csv"));
  for (const name of whole) Deno.removeSync(`${base}/exports/${name}`);
  return whole.length > 0;
}

const sizeOf = (path: string) => {
  try {
    return Deno.statSync(path).size;
  } catch {
    return -1;
  }
};

async function until(isSo: () => boolean): Promise<void> {
  const deadline = performance.now() + 20_000;
  while (!isSo()) {
    assert.ok(performance.now() < deadline, "it never came so far");
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

Deno.test("older and later databases, also with content in their WAL, are exported and not changed", async () => {
  for (const kind of ["v1", "v2", "v2_recovered", "says3_is2", "v7"] as OldKind[]) {
    using temp = new TempFolder();
    const base = `${temp.path}/store`;
    Deno.mkdirSync(`${base}/db`, { recursive: true });
    const database = `${base}/db/telemetry.sqlite`;
    makeOldDatabase(database, kind);
    using writer = new DatabaseSync(database);
    writer.exec("UPDATE agent_runs SET host='in the WAL'");
    const before = treeOf(`${base}/db`);
    const { code, stdout, stderr } = await runScript("export_csv", base, [
      "--output",
      "-",
      "--columns",
      "subdomain,host",
    ]);
    assert.deepEqual([code, stderr, linesOf(stdout)], [0, "", Array(40).fill(",in the WAL")], kind);
    const after = treeOf(`${base}/db`);
    for (const name of ["telemetry.sqlite", "telemetry.sqlite-wal"]) assert.equal(after[name], before[name], kind);
  }
});

testWith(["mount"], "a database in WAL mode on a read-only file system is refused", async () => {
  using temp = new TempFolder();
  const base = newStore(temp, MANY);
  const out = `${temp.path}/out`;
  Deno.mkdirSync(out);
  using mount = new ReadOnlyMount(base);
  const access = [`--allow-read=${mount.path},${out}`, `--allow-write=${mount.path},${out}`];
  const args = ["run", "--no-prompt", ...access, `${ROOT}scripts/export_csv.ts`, "--base", mount.path, "--output"];
  for (const output of ["-", `${out}/x.csv`]) {
    const { code, stdout, stderr } = await run(Deno.execPath(), [...args, output]);
    assert.deepEqual([code, stdout], [1, ""]);
    assert.match(
      stderr,
      /^export_csv: [^\n]*\n {2}-> run this[^\n]* write access [^\n]* in WAL mode; if the file system is read-only, use a copy[^\n]*\n$/,
    );
  }
  assert.deepEqual(treeOf(out), {});
});

Deno.test("no database, an empty one, a file that is none: said, and nothing is left", async () => {
  const cases: [name: string, code: string, make: (path: string) => void][] = [
    ["none", "no_storage", () => {}],
    ["empty", "empty_database", (path) => Deno.writeFileSync(path, new Uint8Array(0))],
    ["text", "not_a_database", (path) => Deno.writeTextFileSync(path, "no database at all ".repeat(100))],
    ["foreign", "not_a_database", (path) => {
      using db = new DatabaseSync(path);
      db.exec("CREATE TABLE t (c)");
    }],
  ];
  for (const [name, code, make] of cases) {
    using temp = new TempFolder();
    Deno.mkdirSync(`${temp.path}/db`);
    make(`${temp.path}/db/telemetry.sqlite`);
    const result = await exportJson(temp.path);
    assert.deepEqual([result.code, result.error.code], [1, code], name);
    assert.ok(result.error.hint, name);
    assert.deepEqual(exportsIn(temp.path), [], name);
  }
  using temp = new TempFolder();
  const events = await exportJson(temp.path, ["--table", "events"]);
  assert.deepEqual([events.code, events.error.code], [1, "no_storage"]);
});

Deno.test("a damaged database: said where the damage is, and nothing is left", async () => {
  using temp = new TempFolder();
  const base = newStore(temp, MANY);
  const database = `${base}/db/telemetry.sqlite`;
  {
    using file = Deno.openSync(database, { write: true });
    file.seekSync(Math.floor(sizeOf(database) / 2 / 4096) * 4096, Deno.SeekMode.Start);
    for (let page = 0; page < 20; page++) file.writeSync(new Uint8Array(4096).fill(0xaa));
  }
  for (const flags of [[], ["--output", `${base}/mine.csv`]]) {
    const result = await exportJson(base, flags);
    assert.deepEqual([result.code, result.error.code], [1, "damaged"]);
    assert.match(result.error.hint, /recover_database/);
    assert.deepEqual([exportsIn(base), sizeOf(`${base}/mine.csv`), sizeOf(`${base}/mine.csv.partial`)], [[], -1, -1]);
  }
  assert.equal((await runScript("export_csv", base, ["--output", "-"])).code, 1);
});

Deno.test("the sample's damaged database", async () => {
  using temp = new TempFolder();
  Deno.mkdirSync(`${temp.path}/db`);
  Deno.copyFileSync(`${SAMPLE}/databases/damaged.sqlite`, `${temp.path}/db/telemetry.sqlite`);
  Deno.chmodSync(`${temp.path}/db/telemetry.sqlite`, 0o644);
  const { code, error } = await exportJson(temp.path);
  assert.deepEqual([code, error.code], [1, "damaged"]);
  assert.deepEqual(exportsIn(temp.path), []);
});

Deno.test("wrong usage is exit 2, and nothing is made", async () => {
  using temp = new TempFolder();
  const base = newStore(temp);
  for (
    const args of [["--nope"], ["runs"], ["--table", "users"], ["--since"], ["--until", "soon"], ["--status", "done"]]
  ) {
    const { code, stdout, stderr } = await runScript("export_csv", base, args);
    assert.deepEqual([code, stdout], [2, ""], `${args}`);
    assert.match(stderr, /^export_csv: [^\n]+\n {2}-> [^\n]+\n$/);
  }
  assert.deepEqual(exportsIn(base), []);
});

testWith(["terminal"], "no control character reaches a terminal, in a table or in JSON", async () => {
  using temp = new TempFolder();
  const base = newStore(temp);
  const evil = "\x1b[31mred\x07\x7f\x9b2J\u2028é";
  using db = new DatabaseSync(`${base}/db/telemetry.sqlite`);
  db.prepare("UPDATE agent_runs SET agent_name=?, status='failed', start_time=?").run(evil, new Date().toISOString());
  for (
    const [script, ...args] of [["export_csv", "--output", "-"], ["report_runs", "--json"], ["report_runs"]] as const
  ) {
    const line = [Deno.execPath(), ...scriptArgs(script, base, args)].join(" ");
    const { stdout } = await run("script", ["-qec", line, "/dev/null"]);
    assert.match(stdout, /red/, script);
    // Without the bars of the report, which has its own colours.
    // deno-lint-ignore no-control-regex
    assert.doesNotMatch(stdout.replace(/\r?\x1b\[K/g, ""), /\x1b\[31mred|[\x07\x7f-\x9f]/, script);
    const piped = await runScript(script, base, args);
    if (script === "export_csv") assert.ok(piped.stdout.includes(evil));
    else if (args.length > 0) assert.equal(JSON.parse(piped.stdout).groups[0].agent_name, evil);
  }
});

testWith(["python"], "output is complete on a stdout that does not block", async () => {
  using temp = new TempFolder();
  const base = `${temp.path}/store`;
  for (const folder of ["raw", "db"]) Deno.mkdirSync(`${base}/${folder}`, { recursive: true });
  sqlite(
    `${base}/db/telemetry.sqlite`,
    `${schemaSql()} WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9000)
    INSERT INTO agent_runs (run_id, agent_name, start_time, output_summary)
    SELECT printf('r%06d', i), 'a', 't', hex(zeroblob(i % 1000 * 5)) FROM n;`,
  );
  const run = { agent_name: "a", start_time: "t", status: "success", record_type: "run" };
  const lines = Array.from(
    { length: 9000 },
    (_, i) => `${JSON.stringify({ run_id: `only in the log ${i}`, ...run })}\n`,
  );
  Deno.writeTextFileSync(`${base}/raw/events_20251210.ndjson`, lines.join(""));
  // Lines, and one long line.
  for (
    const [script, ...args] of [["export_csv", "--output", "-"], [
      "recover_database",
      "--check-only",
      "--json",
    ]] as const
  ) {
    const counted = await python(READ_SLOWLY, Deno.execPath(), ...scriptArgs(script, base, args));
    const { stdout } = await runScript(script, base, args);
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(stdout))).toHex();
    assert.equal(counted.trim(), `0 ${digest}`);
  }
});

const READ_SLOWLY = `
import fcntl, hashlib, os, subprocess, sys, time
r, w = os.pipe()
fcntl.fcntl(w, fcntl.F_SETFL, fcntl.fcntl(w, fcntl.F_GETFL) | os.O_NONBLOCK)
child = subprocess.Popen(sys.argv[1:], stdout=w)
os.close(w)
time.sleep(1)
digest = hashlib.sha256()
while chunk := os.read(r, 65536): digest.update(chunk)
print(child.wait(), digest.hexdigest())
`;
