/** The README's way beyond one machine, run against a PostgreSQL of its own. */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { DatabaseSync } from "node:sqlite";
import { gzipSync } from "node:zlib";
import { logFiles, scan } from "../../lib/log/read.ts";
import { RUN_COLUMNS } from "../../lib/records.ts";
import { codeBlocks, README, runScript, SAMPLE, scriptArgs, TempFolder, testWith } from "../fixtures/mod.ts";
import { Postgres, type Run } from "../fixtures/postgres.ts";

const SECTION = README.slice(README.indexOf("## More than one machine"), README.indexOf("## Packages"));

/** A store with these runs. */
async function makeBase(path: string, runs: Run[]): Promise<void> {
  const { code, stderr } = await runScript("setup_storage", path, ["--with-database"]);
  assert.equal(code, 0, stderr);
  const db = new DatabaseSync(`${path}/db/telemetry.sqlite`);
  const insert = db.prepare(`INSERT INTO agent_runs (${RUN_COLUMNS}) VALUES (${RUN_COLUMNS.map(() => "?")})`);
  db.exec("BEGIN");
  for (const row of runs) insert.run(...RUN_COLUMNS.map((column) => row[column] ?? null));
  db.exec("COMMIT");
  db.close();
}

/** A run as one machine may know it. The later its state, the later the row was written. */
function runOf(id: number, state: number, posted: boolean): Run {
  const at = new Date(Date.now() - 3600_000 + state * 60_000).toISOString();
  return {
    run_id: `20251210T000000Z-a-${String(id).padStart(8, "0")}`,
    schema_version: 3,
    agent_name: "a",
    start_time: "2025-12-10T00:00:00+00:00",
    end_time: state > 0 ? at : null,
    status: state > 0 ? "success" : "running",
    items_discovered: state,
    output_summary: `state ${state}, "quoted",\nnaïve — 日本語 🚀`,
    input_summary: id % 2 ? "" : null,
    api_posted: posted ? 1 : 0,
    api_posted_at: posted ? "2025-12-10T00:10:00+00:00" : null,
    api_retry_count: id % 3,
    created_at: "2025-12-10 00:00:00",
    // Both forms that are found.
    updated_at: id % 2 ? at.slice(0, 19).replace("T", " ") : at,
  };
}

testWith(
  ["postgres"],
  "three machines with overlapping runs, each loaded twice, all at once: the union, the newer states",
  async () => {
    await using postgres = await Postgres.start();
    using temp = new TempFolder();
    const machines = [0, 1, 2].map((machine) => {
      const runs: Run[] = [];
      for (let id = machine * 100; id < machine * 100 + 300; id++) {
        runs.push(runOf(id, (id + machine) % 3, (id + machine) % 4 === 0));
      }
      return runs;
    });
    const bases = machines.map((_, machine) => `${temp.path}/${machine}`);
    await Promise.all(machines.map((runs, machine) => makeBase(bases[machine]!, runs)));
    const [once, often] = codeBlocks("sh", SECTION) as [string, string];
    const scripts = once.replace("> load_runs.sql", `> ${temp.path}/load_runs.sql`);
    await postgres.shell(scripts, bases[0]!);
    await postgres.shell(scripts, bases[0]!); // safe to run again
    const increment = often.replace("load_runs.sql", `${temp.path}/load_runs.sql`);
    await Promise.all([...bases, ...bases].map((base) => postgres.shell(increment, base)));
    const union = new Map<string, Run>();
    for (const row of machines.flat()) {
      const before = union.get(row["run_id"] as string);
      const isNewer = before === undefined || Number(row["items_discovered"]) >= Number(before["items_discovered"]);
      const newer = { ...(isNewer ? row : before) };
      const posted = [row, before].find((state) => state?.["api_posted"] === 1);
      newer["api_posted"] = posted ? 1 : 0;
      newer["api_posted_at"] = posted?.["api_posted_at"] ?? null;
      union.set(row["run_id"] as string, newer);
    }
    const wanted = [...union.values()].map((row) =>
      Object.fromEntries(RUN_COLUMNS.map((column) => [column, row[column] ?? null]))
    );
    assert.equal(wanted.length, 500);
    assert.deepEqual(await postgres.runs(), wanted);
  },
);

testWith(
  ["postgres"],
  "COPY of an export gives the same table; NUL, which PostgreSQL refuses, is shown and told of",
  async () => {
    await using postgres = await Postgres.start();
    using temp = new TempFolder();
    const worst = [
      "",
      "\\.",
      "\\N",
      "NULL",
      "a\0b\0",
      '"',
      ",",
      "\r\n",
      "\r",
      "'",
      "=1+1",
      " x ",
      "\u2028",
      "𝒳",
      "\ufeff",
    ];
    const runs = worst.map((text, id): Run => ({
      ...runOf(id, 1, false),
      input_summary: text,
      product: text,
      platform: null,
    }));
    await makeBase(temp.path, runs);
    await postgres.shell(codeBlocks("sh", SECTION)[0]!.replace("> load_runs.sql", "> /dev/null"), temp.path);
    const copy = `\\copy agent_runs FROM pstdin WITH (FORMAT csv, HEADER)`;
    const exported = [...scriptArgs("export_csv", temp.path), "--for", "postgres", "--output", "-"];
    const line = `deno ${exported.map((arg) => `'${arg}'`).join(" ")} | psql "$FLEET" -qc '${copy}'`;
    const said = await postgres.shell(line, temp.path);
    assert.match(said, /NUL .* in 2 cells/);
    const shown = (value: string | number | null) => typeof value === "string" ? value.replaceAll("\0", "␀") : value;
    const wanted = runs.map((row) =>
      Object.fromEntries(RUN_COLUMNS.map((column) => [column, shown(row[column] ?? null)]))
    );
    assert.deepEqual(await postgres.runs(), wanted);
  },
);

testWith(["postgres"], "bad rows do not stop the load of the others, and what is changed is counted", async () => {
  await using postgres = await Postgres.start();
  using temp = new TempFolder();
  await makeBase(temp.path, [runOf(0, 1, false)]);
  const deep = `${"[".repeat(100_000)}${"]".repeat(100_000)}`;
  const metrics = ["{}", "no JSON", '{"a": NaN}', String.raw`"\u0000"`, String.raw`"\ud800"`, "1e200000", deep, ""];
  using db = new DatabaseSync(`${temp.path}/db/telemetry.sqlite`);
  db.exec("PRAGMA ignore_check_constraints=ON; UPDATE agent_runs SET updated_at='2025-12-10 00:00:00'");
  const insert = db.prepare(
    "INSERT INTO agent_runs (run_id, agent_name, start_time, metrics_json) VALUES (?, 'a', 't', ?)",
  );
  metrics.forEach((text, i) => insert.run(`json${i}`, text));
  db.exec(
    `INSERT INTO agent_runs (run_id, agent_name, start_time, items_failed, items_discovered, duration_ms, api_retry_count)
      VALUES ('numbers', 'a', 't', 1.5, 1e300, 'abc', 9223372036854775807), ('more', 'a', 't', x'3132', '', -1e300, '7.0');
    INSERT INTO agent_runs (run_id, agent_name, start_time, host, product, input_summary, insight_id) VALUES
      ('text', 'a', 't', CAST(x'61eda080' AS TEXT), x'c328', 'a' || char(10) || '\\.' || char(13, 10) || 'b', hex(randomblob(3000)));
    INSERT INTO agent_runs (run_id, agent_name, start_time) VALUES
      (NULL, 'a', 't'), ('nul' || char(0), 'a', 't'), ('nul' || char(0) || 'x', 'a', 't'), (hex(randomblob(500)), 'a', 't'),
      ('end' || char(10) || '\\.' || char(10), 'a', 't')`,
  );
  await postgres.shell(
    codeBlocks("sh", SECTION)[0]!.replace("> load_runs.sql", `> ${temp.path}/load_runs.sql`),
    temp.path,
  );
  const load = codeBlocks("sh", SECTION)[1]!.replace("--updated-since 2d", "").replace(
    "load_runs.sql",
    `${temp.path}/load_runs.sql`,
  );
  const said = await postgres.shell(load, temp.path);
  assert.match(said, /left out 5 rows/);
  assert.match(said, /changed 9 cells/);
  assert.match(said, /cut 1 cell/);
  assert.match(said, /7 cells of JSON cannot be cast/);
  const runs = new Map((await postgres.runs()).map((row) => [row["run_id"], row]));
  assert.deepEqual([...runs.keys()].toSorted(), [
    "20251210T000000Z-a-00000000",
    ...metrics.map((_, i) => `json${i}`),
    "more",
    "numbers",
    "text",
  ]);
  const columns = ["items_failed", "items_discovered", "duration_ms", "api_retry_count"];
  const cells = (id: string) => columns.map((column) => runs.get(id)![column]);
  assert.deepEqual(cells("numbers"), [2, null, null, Number(2n ** 63n - 1n)]);
  assert.deepEqual(cells("more"), [12, null, null, 7]);
  const { host, product, input_summary } = runs.get("text")!;
  assert.deepEqual([host, product, input_summary], ["a\ufffd\ufffd\ufffd", "\ufffd(", "a\n\\. \r\nb"]);
  assert.deepEqual(metrics.map((_, i) => runs.get(`json${i}`)!["metrics_json"]), metrics);
});

testWith(["postgres"], "the sample in PostgreSQL, cell by cell", async () => {
  await using postgres = await Postgres.start();
  using temp = new TempFolder();
  Deno.mkdirSync(`${temp.path}/db`);
  Deno.copyFileSync(`${SAMPLE}/base/db/telemetry.sqlite`, `${temp.path}/db/telemetry.sqlite`);
  await postgres.shell(
    codeBlocks("sh", SECTION)[0]!.replace("> load_runs.sql", `> ${temp.path}/load_runs.sql`),
    temp.path,
  );
  await postgres.shell(
    codeBlocks("sh", SECTION)[1]!.replace("--updated-since 2d", "").replace(
      "load_runs.sql",
      `${temp.path}/load_runs.sql`,
    ),
    temp.path,
  );
  const db = new DatabaseSync(`${temp.path}/db/telemetry.sqlite`, { readOnly: true });
  const rows = db.prepare(`SELECT json_array(${RUN_COLUMNS}) AS cells FROM agent_runs ORDER BY run_id`).all();
  db.close();
  const wanted = rows.map(({ cells }) => {
    const values = JSON.parse(cells as string) as (string | number | null)[];
    return Object.fromEntries(
      RUN_COLUMNS.map((
        column,
        i,
      ) => [column, typeof values[i] === "string" ? values[i].replaceAll("\0", "␀") : values[i]]),
    );
  });
  const inBytes = (a: Run, b: Run) =>
    Buffer.compare(Buffer.from(String(a["run_id"])), Buffer.from(String(b["run_id"])));
  assert.deepEqual(await postgres.runs(), wanted.sort(inBytes as never));
});

testWith(["postgres"], "events and commits are loaded as they are exported", async () => {
  await using postgres = await Postgres.start();
  using temp = new TempFolder();
  const base = `${temp.path}/store`;
  await makeBase(base, []);
  using db = new DatabaseSync(`${base}/db/telemetry.sqlite`);
  db.exec("INSERT INTO commits (commit_hash, run_id, message) VALUES ('c1', NULL, char(0)), (NULL, NULL, 'no key')");
  const event = {
    run_id: "r",
    event_type: "e",
    timestamp: "t",
    payload_json: '{"a":1}',
    id: null,
    record_type: "event",
  };
  Deno.writeTextFileSync(`${base}/raw/events_20251210.ndjson`, `${JSON.stringify(event)}\n`.repeat(2));
  for (const [name, table, rows] of [["events", "run_events", 2], ["commits", "commits", 1]] as const) {
    const path = `${temp.path}/${name}.csv`;
    const { code, stderr } = await runScript("export_csv", base, [
      "--table",
      name,
      "--for",
      "postgres",
      "--output",
      path,
    ]);
    assert.equal(code, 0, stderr);
    Deno.chmodSync(path, 0o644);
    await postgres.load(path, table);
    assert.equal((await postgres.runs(table)).length, rows);
  }
});

/** How many ended runs the README's query finds in logs. */
async function endedRunsByDuckDB(glob: string): Promise<number> {
  const { DuckDBInstance } = await import("npm:@duckdb/node-api@1.5.4-r.1");
  const instance = await DuckDBInstance.create(":memory:");
  const connection = await instance.connect();
  const result = await connection.runAndReadAll(codeBlocks("sql", SECTION)[0]!.replace("raw/*.ndjson*", glob));
  connection.closeSync();
  return result.getRowObjectsJson().reduce((sum, { runs }) => sum + Number(runs), 0);
}

Deno.test("DuckDB asks the log as the README says", async () => {
  const facts = JSON.parse(Deno.readTextFileSync(`${SAMPLE}/facts.json`));
  // One run follows half a line. One line has no start, and one another status.
  assert.equal(
    await endedRunsByDuckDB(`${SAMPLE}/base/raw/*.ndjson*`),
    facts.runs_in_logs - facts.unended_runs - 1 + 2,
  );
});

Deno.test("DuckDB leaves out of a damaged log what the README says, and nothing else", async () => {
  let count = 0;
  const run = (more = "") =>
    `{"run_id":"r${count++}","agent_name":"a","start_time":"t","status":"success"${more},"record_type":"run"}`;
  const half = '{"run_id":"h","agent_n';
  const found = [
    `${run()}\r\n\0\0\0\n\n[1]\n"x"\nnull\n${half}\n`,
    `${run(',"duration_ms":NaN,"metrics":{"n":12345678901234567890}')}\n`,
    `${run(`,"metrics":${"[".repeat(10_000)}${"]".repeat(10_000)}`)}\n`,
    `${run(`,"input_summary":"${"x".repeat(20_000_000)}"`)}\n${run(String.raw`,"product":"\u0000"`)}\n${run()}\0\0\n`,
    `${run(String.raw`,"product":"\\x01"`)}\n\0\0${run()}\n`,
    // The next line is complete, however this one breaks off.
    ...['{"run_id":', "[{}", '{"a":[', '{"a":"\\', "{"].map((start) => `${start}\n${run()}\n`),
  ];
  const foundRuns = count;
  const leftOut = [
    `${half}${run()}\n`,
    `${run()}${run()}\n`,
    `${run(String.raw`,"product":"\ud800"`)}\n`,
  ];
  const missing = count - foundRuns;
  using temp = new TempFolder();
  const write = (name: string, content: string | Uint8Array) =>
    Deno.writeFileSync(
      `${temp.path}/${name}`,
      typeof content === "string" ? new TextEncoder().encode(content) : content,
    );
  write("events_20251210.ndjson", `\ufeff${run()}\n${found.join("")}${leftOut.join("")}${run()}\n`);
  write("events_20251211.ndjson.gz", new Uint8Array([...gzipSync(`${run()}\n`), ...gzipSync(`${run()}\n`)]));
  write("events_20251212.ndjson.1", run());
  write("events_20251213.ndjson", run(`,"input_summary":"${"x".repeat(20_000_000)}"`));
  const ids = new Set<string>();
  for await (const item of scan(logFiles(temp.path))) if ("record" in item) ids.add(item.record.run_id);
  assert.equal(ids.size, count);
  assert.equal(await endedRunsByDuckDB(`${temp.path}/*.ndjson*`), count - missing);
});
