import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { newRun } from "../../lib/records.ts";
import {
  command,
  isThere,
  NOBODY,
  runScript,
  SAMPLE,
  scriptArgs,
  TempFolder,
  testWith,
  treeOf,
} from "../fixtures/mod.ts";
import { fieldStore, storeWith, type TestRun } from "../fixtures/report.ts";

const HOUR = 3_600_000;
const ago = (milliseconds: number) => new Date(Date.now() - milliseconds).toISOString().replace("Z", "000+00:00");

/** A store with each kind of run, whose last backup is three days old. */
function newStore(temp: TempFolder): string {
  const runs: TestRun[] = [
    {
      agent: "crawler",
      job: "crawl",
      id: "r-crawl-1",
      start: ago(2 * HOUR),
      status: "failed",
      error: "HTTPError: 503",
      duration: 900,
    },
    { agent: "crawler", job: "crawl", id: "r-crawl-2", start: ago(3 * HOUR), duration: 61_000, items: 7 },
    { agent: "indexer", job: null, id: "r-index-1", start: ago(5 * HOUR) },
    { agent: "indexer", job: null, id: "r-index-2", start: ago(30 * HOUR), status: "running" },
    { agent: "nightly", job: "sync", id: "r-sync-1", start: ago(50 * HOUR), status: "partial", duration: 5 },
  ];
  const base = storeWith(temp.path, runs);
  Deno.mkdirSync(`${base}/backups`);
  const stamp = new Date(Date.now() - 72 * HOUR).toISOString().slice(0, 10).replaceAll("-", "");
  Deno.writeTextFileSync(`${base}/backups/telemetry_backup_${stamp}_000000.sqlite`, "a backup");
  return base;
}

Deno.test("the report shows window, counts, jobs, failures, stale runs and the store, and changes nothing", async () => {
  using temp = new TempFolder();
  const base = newStore(temp);
  const before = treeOf(base);
  const { code, stdout, stderr } = await runScript("report_runs", base);
  assert.deepEqual([code, stderr], [0, ""]);
  // Without permission to write, SQLite leaves these beside a database that no program has open.
  assert.equal(Deno.statSync(`${base}/db/telemetry.sqlite-wal`).size, 0);
  for (const sidecar of ["wal", "shm"]) Deno.removeSync(`${base}/db/telemetry.sqlite-${sidecar}`);
  assert.deepEqual(treeOf(base), before);
  const order = [base, " to now (", "5 runs  2 success  1 failed  1 partial  1 running", "failure rate 25.0%"]
    .concat(
      "AGENT",
      "crawler  crawl",
      "Newest failures",
      "HTTPError: 503",
      "Running for too long",
      "r-index-2",
      "Store",
    );
  const places = order.map((text) => stdout.indexOf(text));
  assert.deepEqual(places, places.toSorted((a, b) => a - b), stdout);
  assert.ok(!places.includes(-1), stdout);
  assert.match(stdout, /backup +\d d old: \S+telemetry_backup_\d+_000000\.sqlite\n/);
});

Deno.test("--json prints the whole summary as one object", async () => {
  using temp = new TempFolder();
  const { code, stdout, stderr } = await runScript("report_runs", fieldStore(temp.path), [
    "--json",
    "--since",
    "2025-12-01",
  ]);
  assert.deepEqual([code, stderr], [0, ""]);
  const { ok, counts, store, schema_version, groups } = JSON.parse(stdout);
  assert.deepEqual([ok, counts.runs, counts.running, schema_version], [true, 290, 25, 3]);
  assert.deepEqual([store.log_files, store.newest_backup, store.log_check.missing], [6, null, 1]);
  assert.equal(groups.reduce((sum: number, { runs }: { runs: number }) => sum + runs, 0), 290);
});

Deno.test("--failed and --running list runs with their ids, and the filters hold", async () => {
  using temp = new TempFolder();
  const base = newStore(temp);
  const listed = async (...args: string[]) => (await runScript("report_runs", base, args)).stdout;
  assert.match(await listed("--failed"), /^\S+ \S+ {2}failed {2}r-crawl-1 {2}HTTPError: 503\n$/);
  assert.match(await listed("--running"), /^\S+ \S+ {2}running {2}r-index-2\n$/);
  assert.equal(await listed("--running", "--since", "24h"), "");
  assert.match(await listed("--running", "--until", "24h"), /r-index-2/);
  assert.equal(await listed("--failed", "--agent", "indexer,nightly"), "");
  assert.match(await listed("--job-type", "sync"), /\n1 run {2}1 partial\n/);
  assert.deepEqual(JSON.parse(await listed("--running", "--json")).runs.map((run: { run_id: string }) => run.run_id), [
    "r-index-2",
  ]);
});

Deno.test("--run shows one run with metrics and events, by the end of its id", async () => {
  using temp = new TempFolder();
  const base = newStore(temp);
  using db = new DatabaseSync(`${base}/db/telemetry.sqlite`);
  db.exec(`UPDATE agent_runs SET metrics_json='{"pages": 3, "note": "a\\u001bb"}' WHERE run_id='r-crawl-1'`);
  const { start_time } = db.prepare("SELECT start_time FROM agent_runs WHERE run_id='r-crawl-1'").get()!;
  db.close();
  const at = Date.parse(start_time as string);
  const event = (event_type: string, after: number, payload: object) =>
    JSON.stringify({
      ...{ run_id: "r-crawl-1", event_type, timestamp: new Date(at + after).toISOString() },
      ...{ payload_json: JSON.stringify(payload), id: null, record_type: "event" },
    });
  const day = new Date().toISOString().slice(0, 10).replaceAll("-", "");
  Deno.writeTextFileSync(
    `${base}/raw/events_${day}.ndjson`,
    `${event("fetch", 1500, { n: 1 })}\n${event("retry", 65_000, {})}\n`,
  );
  const { code, stdout } = await runScript("report_runs", base, ["--run", "crawl-1"]);
  assert.equal(code, 0);
  assert.match(stdout, /^r-crawl-1\n/);
  assert.match(stdout, /\nerror_summary +HTTPError: 503\n[^]*\nMetrics\npages +3\nnote +a␛b\n\n2 events\n/);
  assert.match(stdout, /\+1\.5 s {2}fetch {2}\{"n":1\}\n.*\+1 m 05 s {2}retry {2}\{\}\n$/);
  const several = await runScript("report_runs", base, ["--run=-1"]);
  assert.equal(several.code, 2);
  assert.match(several.stderr, /several ids end in -1, such as r-crawl-1, /);
  assert.equal((await runScript("report_runs", base, ["--run", "nothing"])).code, 2);
});

Deno.test("--run finds a run that only the log has", async () => {
  using temp = new TempFolder();
  const base = fieldStore(temp.path);
  const id = onlyInLog(base);
  const { code, stdout } = await runScript("report_runs", base, ["--json", "--run", id]);
  const { source, run } = JSON.parse(stdout);
  assert.deepEqual([code, source, run.run_id], [0, "log", id]);
});

/** The id of a run of the field store that its database lacks. */
function onlyInLog(base: string): string {
  using db = new DatabaseSync(`${base}/db/telemetry.sqlite`);
  const find = db.prepare("SELECT 1 FROM agent_runs WHERE run_id=?");
  const lines = Deno.readTextFileSync(`${SAMPLE}/expected_runs.ndjson`).trim().split("\n");
  return lines.map((line) => JSON.parse(line).run_id as string).find((id) => find.get(id) === undefined)!;
}

const LIMITS: [args: string[], exceeded: RegExp | null][] = [
  [["--max-failed", "25%"], null],
  [["--max-failed", "24.9%"], /failed: 1 of 4 ended runs \(25\.0%\), limit 24\.9%/],
  [["--max-failed", "1"], null],
  [["--max-failed", "0"], /failed: 1 of 4 ended runs \(25\.0%\), limit 0/],
  [["--max-stale", "1"], null],
  [["--max-stale", "0"], /stale: 1 run, limit 0; oldest r-index-2, running for 30 h 00 m/],
  [["--max-stale", "0", "--stale-after", "2d"], null],
  [["--max-stale", "0", "--since", "6h"], /stale: 1 run, limit 0; oldest r-index-2/],
  [["--max-silent", "51h"], null],
  [["--max-silent", "2d"], /silent: nightly \/ sync last ran 2 d 2 h ago, limit 2 d/],
  [["--max-silent", "47h", "--since", "40h"], /silent: nightly/],
  [["--max-backup-age", "5d"], null],
  [["--max-backup-age", "2d"], /backup: the newest is \d d \d+ h old, limit 2 d/],
];

Deno.test("each limit that is exceeded is named with its figure and exits with 1; otherwise --quiet prints nothing", async () => {
  using temp = new TempFolder();
  const base = newStore(temp);
  for (const [args, exceeded] of LIMITS) {
    const { code, stdout, stderr } = await runScript("report_runs", base, ["--quiet", ...args]);
    assert.deepEqual([code, stdout], [exceeded ? 1 : 0, ""], `${args}: ${stderr}`);
    if (exceeded) assert.match(stderr, exceeded);
    else assert.equal(stderr, "");
  }
  const { code, stdout, stderr } = await runScript("report_runs", base, [
    "--json",
    "--max-failed",
    "0",
    "--max-stale",
    "0",
  ]);
  const { ok, exceeded } = JSON.parse(stdout);
  assert.deepEqual([code, ok, exceeded.length, stderr.trim().split("\n").length], [1, false, 2, 2]);
});

Deno.test("without a backup, --max-backup-age is exceeded", async () => {
  using temp = new TempFolder();
  const { code, stderr } = await runScript("report_runs", storeWith(temp.path, []), [
    "--quiet",
    "--max-backup-age",
    "9d",
  ]);
  assert.equal(code, 1);
  assert.match(stderr, /backup: there is none, limit 9 d/);
});

Deno.test("wrong usage exits with 2", async () => {
  using temp = new TempFolder();
  const base = newStore(temp);
  const wrong = [
    ["--max-failed", "5 percent"],
    ["--max-failed", "101%"],
    ["--max-stale", "-1"],
    ["--max-silent", "25"],
    ["--since", "tomorrow"],
    ["--since", "2025-12-10", "--until", "2025-12-09"],
    ["--agent", ""],
    ["--failed", "--running"],
    ["--run", "x", "--html"],
    ["--follow", "--max-stale", "0"],
    ["--output", "report.txt"],
    ["--output", "-"],
    ["--html", "--output", "report.md"],
    ["--overwrite"],
  ];
  for (const args of wrong) {
    const { code, stdout, stderr } = await runScript("report_runs", base, args);
    assert.deepEqual([code, stdout], [2, ""], args.join(" "));
    assert.match(stderr, /^report_runs: [^\n]+\n {2}-> [^\n]+\n$/);
  }
});

Deno.test("--html writes a page to reports/, and --output a file by its ending, replaced only with --overwrite", async () => {
  using temp = new TempFolder();
  const base = newStore(temp);
  Deno.chmodSync(`${base}/db/telemetry.sqlite`, 0o600);
  const { code, stdout } = await runScript("report_runs", base, ["--html"]);
  assert.equal(code, 0);
  assert.match(stdout.trim().slice(base.length), /^\/reports\/runs_\d{8}_\d{6}\.html$/);
  if (Deno.build.os !== "windows") assert.equal(Deno.statSync(stdout.trim()).mode! & 0o777, 0o600);
  assert.match(Deno.readTextFileSync(stdout.trim()), /^<!DOCTYPE html>[^]*<\/html>\n$/);
  for (const [ending, start] of [["html", "<!DOCTYPE html>"], ["json", '{\n  "base": '], ["md", "# Runs in "]]) {
    const path = `${temp.path}/report.${ending}`;
    Deno.writeTextFileSync(path, "of yesterday");
    assert.equal((await runScript("report_runs", base, ["--output", path])).code, 2);
    assert.equal(Deno.readTextFileSync(path), "of yesterday");
    const written = await runScript("report_runs", base, ["--output", path, "--overwrite", "--json"]);
    assert.deepEqual([written.code, JSON.parse(written.stdout).path], [0, path], written.stderr);
    assert.ok(Deno.readTextFileSync(path).startsWith(start!));
    assert.ok(!isThere(`${path}.partial`));
  }
  const lost = await runScript("report_runs", base, ["--output", `${temp.path}/no/report.md`]);
  assert.equal(lost.code, 1);
  assert.match(lost.stderr, /^report_runs: the folder \S+\/no does not exist\n {2}-> create it/);
  const relative = await runScript("report_runs", base, ["--output", "here.md"], { cwd: temp.path });
  assert.deepEqual([relative.code, relative.stdout, isThere(`${temp.path}/here.md`)], [0, "here.md\n", true]);
});

Deno.test("control characters of the data never reach the terminal, Markdown or page as they are", async () => {
  using temp = new TempFolder();
  const evil = "a\x1b]0;title\x07\x1b[2J\r\n\x7f\x9b31m\u202eb";
  const start = ago(HOUR);
  const base = storeWith(temp.path, [
    { id: `${evil}1`, agent: evil, job: evil, status: "failed", error: evil, start },
    { id: `${evil}2`, agent: evil, job: evil, status: "running", start: ago(48 * HOUR) },
  ]);
  const path = `${temp.path}/report`;
  const calls = [[], ["--failed"], ["--running"], ["--run", "b1"], ["--output", `${path}.md`], [
    "--output",
    `${path}.html`,
  ]];
  const texts = await Promise.all(calls.map(async (args) => (await runScript("report_runs", base, args)).stdout));
  texts.push((await runScript("report_runs", base, ["--quiet", "--max-stale", "0"])).stderr);
  for (const text of [...texts, Deno.readTextFileSync(`${path}.md`), Deno.readTextFileSync(`${path}.html`)]) {
    // deno-lint-ignore no-control-regex
    assert.doesNotMatch(text, /[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]/);
  }
  assert.match(texts[0]!, /␛\[2J/);
});

testWith(["signals", "links"], "--follow prints new runs and events as they are written, until Ctrl-C", async () => {
  using temp = new TempFolder();
  const base = storeWith(temp.path, []);
  Deno.symlinkSync("itself.ndjson", `${base}/raw/itself.ndjson`);
  const day = new Date().toISOString().slice(0, 10).replaceAll("-", "");
  const path = `${base}/raw/events_${day}.ndjson`;
  const append = (text: string) => Deno.writeTextFileSync(path, text, { append: true });
  const run = newRun({ run_id: "20251210T000000Z-a-00000001", agent_name: "a", job_type: "j", start_time: ago(1000) });
  const line = (record: object, record_type = "run") => `${JSON.stringify({ ...record, record_type })}\n`;
  append(line({ ...run, run_id: "old" }) + '{"run_id": "half');
  const process = command(Deno.execPath(), scriptArgs("report_runs", base, ["--follow", "--agent", "a"])).spawn();
  const printed = process.stdout.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  const until = async (pattern: RegExp) => {
    while (!pattern.test(text)) text += (await printed.read()).value ?? assert.fail(text);
  };
  // It says nothing when it is ready: so the same line is written until it is seen.
  const probe = setInterval(() => append(line({ ...run, run_id: "probe" })), 200);
  await until(/running {2}probe/);
  clearInterval(probe);
  append(line(run));
  append(
    line({ run_id: run.run_id, event_type: "step", timestamp: ago(0), payload_json: '{"n":1}', id: null }, "event"),
  );
  append(line({ ...run, run_id: "other", agent_name: "b" }).slice(0, 50));
  append(line({ ...run, run_id: "other", agent_name: "b" }).slice(50));
  append(line({ ...run, status: "failed", duration_ms: 1500, error_summary: "no" }));
  await until(/failed/);
  process.kill("SIGINT");
  const { code } = await process.status;
  await process.stderr.cancel();
  assert.equal(code, 0);
  const lines = text.split("\n").filter((line) => line !== "" && !line.includes("probe"));
  assert.deepEqual(lines.map((line) => line.slice(21)), [
    `running  ${run.run_id}  j`,
    `event    ${run.run_id}  step  {"n":1}`,
    `failed   ${run.run_id}  j  1.5 s  no`,
  ]);
});

Deno.test("beside a live writer it reads what is committed, needs no permission to write, and blocks nobody", async () => {
  using temp = new TempFolder();
  const base = newStore(temp);
  using writer = new DatabaseSync(`${base}/db/telemetry.sqlite`, { timeout: 0 });
  writer.exec(
    "PRAGMA journal_mode=WAL; UPDATE agent_runs SET agent_name='renamed' WHERE agent_name='nightly'; BEGIN IMMEDIATE",
  );
  const before = treeOf(`${base}/db`);
  const { code, stdout, stderr } = await runScript("report_runs", base);
  assert.deepEqual([code, stderr], [0, ""]);
  assert.match(stdout, /renamed/);
  assert.equal(treeOf(`${base}/db`)["telemetry.sqlite"], before["telemetry.sqlite"]);
  writer.exec("DELETE FROM agent_runs; COMMIT");
});

testWith(["nobody"], "a user who may only read sees the database beside a writer, and else the log", async () => {
  using temp = new TempFolder("/tmp");
  Deno.chmodSync(temp.path, 0o755);
  const base = newStore(temp);
  const asReader = () => runScript("report_runs", base, ["--json"], { uid: NOBODY, env: { DENO_DIR: "/nonexistent" } });
  const writer = new DatabaseSync(`${base}/db/telemetry.sqlite`);
  writer.exec("DELETE FROM agent_runs WHERE run_id='r-sync-1'");
  const beside = await asReader();
  assert.deepEqual([beside.code, JSON.parse(beside.stdout).counts?.runs], [0, 4], beside.stderr);
  writer.close();
  const alone = await asReader();
  const { source, counts } = JSON.parse(alone.stdout);
  assert.deepEqual([alone.code, source, counts.runs], [0, "log", 0]);
  assert.match(
    alone.stderr,
    /^warning: the runs were read from the log: .*telemetry\.sqlite cannot be opened .*; run this as the owner .*\n$/,
  );
});

testWith(["zones"], "days and times without a zone are local", async () => {
  using temp = new TempFolder();
  const base = storeWith(
    temp.path,
    ["2025-12-09T14:59:59", "2025-12-09T15:00:00", "2025-12-10T14:59:59", "2025-12-10T15:00:00"].map((start) => ({
      start: `${start}Z`,
    })),
  );
  const counted = async (...args: string[]) => {
    const { stdout } = await runScript("report_runs", base, ["--json", ...args], { env: { TZ: "Asia/Tokyo" } });
    return JSON.parse(stdout).counts.runs;
  };
  assert.equal(await counted("--since", "2025-12-10", "--until", "2025-12-10"), 2);
  assert.equal(await counted("--since", "2025-12-10T00:00", "--until", "2025-12-10T23:59:59Z"), 3);
  assert.equal(await counted("--since", "2025-12-10T00:00Z"), 2);
});

Deno.test("an empty store and one without a database have empty reports", async () => {
  using temp = new TempFolder();
  const base = storeWith(temp.path, []);
  assert.match((await runScript("report_runs", base)).stdout, /\n0 runs\n/);
  Deno.removeSync(`${base}/db/telemetry.sqlite`);
  const { code, stdout, stderr } = await runScript("report_runs", base);
  assert.deepEqual([code, /\n0 runs\n/.test(stdout)], [0, true]);
  assert.match(
    stderr,
    /^warning: the runs were read from the log: the database .* does not exist; if it is lost, run deno task .*recover_database.*\n$/,
  );
  const checked = await runScript("report_runs", base, ["--quiet", "--max-failed", "0"]);
  assert.equal(checked.code, 1);
  assert.match(checked.stderr, /\nwarning: runs: the database cannot be read, and the log has none\n$/);
});
