/** Hostile values, from an agent to each reader: client, log, recovery, export, PostgreSQL and DuckDB. */
import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import fc from "npm:fast-check@4.10.2";
import { logFiles, type LogRecord, recoverDatabase, RUN_COLUMNS, scan, schemaSql, TelemetryClient } from "../../mod.ts";
import { layoutOf } from "../../lib/layout.ts";
import { duckdbReader } from "../fixtures/duckdb.ts";
import { rounds, runScript, slashes, TempFolder, testWith } from "../fixtures/mod.ts";
import { Postgres, type Run } from "../fixtures/postgres.ts";

/** How many runs, and as many events. TEST_COUNT=50000 takes some minutes. */
const COUNT = Number(Deno.env.get("TEST_COUNT") ?? rounds(200, 2000));
const SEED = Number(Deno.env.get("TEST_SEED") ?? Date.now() % 1e9);

const anyText: fc.Arbitrary<string> = fc.oneof(
  fc.string({ unit: "binary", maxLength: 12 }),
  fc.array(fc.integer({ min: 0, max: 0xffff }), { maxLength: 8 }).map((units) => String.fromCharCode(...units)),
  fc.array(
    fc.constantFrom(
      '"',
      "\\",
      "\\.",
      "{",
      "}",
      ",",
      "\0",
      "\n",
      "\r\n",
      "=1+1",
      "'",
      "\ud800",
      "\ufeff",
      "\u2028",
      "é",
      "🚀",
      " ",
    ),
    { maxLength: 8 },
  ).map((pieces) => pieces.join("")),
);
const anyNumber = fc.oneof(fc.double(), fc.integer(), fc.maxSafeInteger(), fc.bigInt(-(2n ** 70n), 2n ** 70n));
const anyValue: fc.Arbitrary<unknown> = fc.letrec((tie) => ({
  value: fc.oneof(
    { depthSize: "small" },
    anyText,
    anyNumber,
    fc.constantFrom(null, undefined, true, false),
    fc.date({ noInvalidDate: false }),
    anyText.map((text) => new TypeError(text)),
    fc.uint8Array({ maxLength: 4 }),
    fc.array(tie("value"), { maxLength: 3 }).map((values) => new Set(values)),
    fc.array(fc.tuple(anyText, tie("value")), { maxLength: 3 }).map((entries) => new Map(entries)),
    fc.array(tie("value"), { maxLength: 3 }),
    fc.array(fc.tuple(anyText, tie("value")), { maxLength: 3 }).map(Object.fromEntries),
  ),
})).value;
const anyFields = fc.record({
  agent_owner: anyText,
  input_summary: fc.oneof(anyText, anyValue),
  output_summary: anyText,
  product: anyText,
  git_branch: anyText,
  items_discovered: anyNumber,
  items_failed: fc.oneof(anyNumber, anyText),
  duration_ms: fc.nat(),
  metrics_json: fc.oneof(anyText, fc.dictionary(anyText, anyValue, { maxKeys: 3 })),
  pages: anyValue,
}, { requiredKeys: [] });

/** What an agent passes for a run and for its event. */
interface Passed {
  agent: string;
  fields: Record<string, unknown>;
  event: string;
  payload: unknown;
}
const anyPassed: fc.Arbitrary<Passed> = fc.record({
  agent: anyText,
  fields: anyFields,
  event: anyText,
  payload: anyValue,
});

/** What JSON represents as it is, apart from what no reader accepts: NUL and lone halves of pairs. */
function isPlain(value: unknown): boolean {
  if (typeof value === "number") return Number.isFinite(value) && !Object.is(value, -0);
  if (typeof value === "string") return value.isWellFormed() && !value.includes("\0");
  if (Array.isArray(value)) return value.every((part) => part !== undefined && isPlain(part));
  if (typeof value !== "object") return typeof value === "boolean";
  if (value === null) return true;
  if (Object.getPrototypeOf(value) !== Object.prototype) return false;
  return Object.entries(value).every((pair) => isPlain(pair));
}

/** The records of a log; for a run, the last one. */
async function recordsOf(raw: string): Promise<{ runs: Map<string, Run>; events: LogRecord[] }> {
  const runs = new Map<string, Run>();
  const events: LogRecord[] = [];
  for await (const item of scan(logFiles(raw))) {
    assert.ok("record" in item, `rejected: ${JSON.stringify(item)}`);
    if (item.record.record_type === "event") events.push(item.record);
    else runs.set(item.record.run_id, item.record as unknown as Run);
  }
  return { runs, events };
}

/** The rows of a database. As JSON, since text with NUL would be read up to the NUL. */
function rowsOf(database: string): Map<string, Run> {
  using db = new DatabaseSync(database, { readOnly: true });
  const rows = db.prepare(`SELECT json_array(${RUN_COLUMNS}) AS cells FROM agent_runs`).all().map(({ cells }) => {
    const values = JSON.parse(cells as string) as Run[string][];
    return Object.fromEntries(RUN_COLUMNS.map((column, i) => [column, values[i]!]));
  });
  return new Map(rows.map((row) => [row["run_id"] as string, row]));
}

const DATES = ["created_at", "updated_at"];

/** Asserts that each run has the same fields, but for when its row was written. */
function assertSameRuns(actual: Map<string, Run>, expected: Map<string, Run>, what: string): void {
  const missing = [...expected.keys()].filter((id) => !actual.has(id));
  assert.deepEqual([actual.size, missing], [expected.size, []], what);
  for (const [id, run] of expected) {
    const found = actual.get(id);
    assert.ok(found, `${what}: ${JSON.stringify(id)} is missing`);
    for (const column of RUN_COLUMNS) {
      if (!DATES.includes(column)) assert.deepEqual(found[column] ?? null, run[column] ?? null, `${what}: ${column}`);
    }
  }
}

testWith(["postgres"], "hostile values are equal in every reader, or counted as changed", async () => {
  console.log(`TEST_SEED=${SEED}, ${COUNT} runs and as many events`);
  using temp = new TempFolder();
  const base = slashes(`${temp.path}/store`);
  const layout = layoutOf(base);
  for (const folder of [layout.raw, layout.db, layout.exports]) Deno.mkdirSync(folder, { recursive: true });
  {
    using db = new DatabaseSync(layout.database);
    db.exec(schemaSql());
  }

  // 1. The client records each value, or warns.
  const passed = new Map<string, Passed>();
  let failures: Record<string, number> = {};
  {
    await using telemetry = new TelemetryClient({ base, onWarning: () => {} });
    for (const one of fc.sample(anyPassed, { numRuns: COUNT, seed: SEED })) {
      const id = await telemetry.startRun(one.agent, "round trip", {});
      passed.set(id, one);
      void telemetry.logEvent(id, one.event, one.payload);
      const ended = telemetry.endRun(id, one.fields);
      if (passed.size % 50 === 0) await ended;
    }
    ({ failures } = await telemetry.getStats());
  }
  assert.deepEqual(Object.keys(failures).filter((kind) => !/^(field|json):/.test(kind)), [], "all are recorded");

  // 2. The log has what JSON can represent unchanged, and no line that is rejected.
  const { runs, events } = await recordsOf(layout.raw);
  assert.equal(events.length, COUNT);
  assert.equal(runs.size, COUNT);
  for (const event of events) {
    assert.equal(event.record_type, "event");
    const { payload, event: type } = passed.get(event.run_id)!;
    if (isPlain(type)) assert.equal(event.event_type, type);
    if (isPlain(payload) && payload !== null) assert.deepEqual(JSON.parse(event.payload_json!), payload);
  }
  for (const [id, run] of runs) {
    for (const [name, value] of Object.entries(passed.get(id)!.fields)) {
      if (typeof value === "string" && isPlain(value) && name !== "metrics_json" && typeof run[name] === "string") {
        assert.equal(run[name], value);
      }
      if (Number.isSafeInteger(value) && typeof run[name] === "number") assert.equal(run[name], Number(value) + 0);
    }
  }

  // 3. The database has what the log has, as written and as recovered.
  assertSameRuns(rowsOf(layout.database), runs, "database");
  Deno.removeSync(layout.database);
  for (const sidecar of ["-wal", "-shm"]) await Deno.remove(`${layout.database}${sidecar}`).catch(() => {});
  const recovery = await recoverDatabase(layout);
  assert.deepEqual(recovery!.rejected, {});
  const rows = rowsOf(layout.database);
  assertSameRuns(rows, runs, "recovered");

  // 4. DuckDB reads the exports as they are.
  const readCsv = (await duckdbReader())!;
  const exported = async (...args: string[]) => {
    const { code, stdout, stderr } = await runScript("export_csv", base, [...args, "--json"]);
    assert.equal(code, 0, stderr);
    return JSON.parse(stdout);
  };
  const csv = await exported("--output", `${base}/exports/all.csv`);
  assert.deepEqual([csv.rows, csv.changed_cells, csv.nul_cells], [COUNT, 0, 0]);
  const text = (cell: string | number | null | undefined) => cell === null || cell === undefined ? null : String(cell);
  const inOrder = (list: (string | null)[][]) => list.sort((a, b) => a[0]! < b[0]! ? -1 : 1);
  assert.deepEqual(
    inOrder(await readCsv(`${base}/exports/all.csv`, RUN_COLUMNS.length)),
    inOrder([...rows.values()].map((run) => RUN_COLUMNS.map((column) => text(run[column])))),
  );
  await exported("--table", "events", "--output", `${base}/exports/events.csv`);
  const eventColumns = ["id", "run_id", "event_type", "timestamp", "payload_json"] as const;
  assert.deepEqual(
    await readCsv(`${base}/exports/events.csv`, eventColumns.length),
    events.map((event) => eventColumns.map((column) => text((event as unknown as Run)[column]))),
  );

  // 5. PostgreSQL has each cell, or the export has counted it.
  await using postgres = await Postgres.start();
  const loaded = await exported("--for", "postgres", "--output", `${base}/exports/for_postgres.csv`);
  await postgres.load(`${base}/exports/for_postgres.csv`);
  const there = await postgres.runs();
  assert.deepEqual(there.map((run) => run["run_id"]).filter((id) => !rows.has(id as string)), []);
  assert.equal(there.length, COUNT - loaded.refused_rows);
  let changed = 0;
  // A cell with both is counted as both: NUL, and a line that psql takes for the end of the data.
  let twice = 0;
  for (const run of there) {
    const row = rows.get(run["run_id"] as string)!;
    changed += RUN_COLUMNS.filter((column) => run[column] !== row[column]).length;
    twice += RUN_COLUMNS.filter((column) =>
      /\0/.test(String(row[column])) && /\n\\\.\r?\n/.test(String(row[column]))
    ).length;
  }
  assert.equal(changed + twice, loaded.changed_cells + loaded.nul_cells + loaded.cut_cells);
});
