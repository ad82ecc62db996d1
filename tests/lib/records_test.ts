import assert from "node:assert/strict";
import { TelemetryError } from "../../lib/errors.ts";
import { newRun, RUN_COLUMNS, runId, toJson, validateRecord } from "../../lib/records.ts";
import { timestamp } from "../../lib/time.ts";

Deno.test("timestamp is UTC with six digits and +00:00", () => {
  assert.equal(timestamp(new Date(0)), "1970-01-01T00:00:00.000000+00:00");
  assert.equal(timestamp(new Date("2025-12-10T12:05:30.123Z")), "2025-12-10T12:05:30.123000+00:00");
  assert.equal(timestamp(new Date("2025-12-10T23:30:00.000-05:00")), "2025-12-11T04:30:00.000000+00:00");
  assert.match(timestamp(), /^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00$/);
});

Deno.test("runId consists of the UTC second, the unchanged name and eight hex digits", () => {
  const at = new Date("2025-12-10T12:05:30.999Z");
  assert.match(runId("indexer", at), /^20251210T120530Z-indexer-[0-9a-f]{8}$/);
  assert.match(runId("Agent Nr. 7 — 日本", at), /^20251210T120530Z-Agent Nr\. 7 — 日本-[0-9a-f]{8}$/);
  assert.match(runId("now"), /^20\d{6}T\d{6}Z-now-[0-9a-f]{8}$/);
});

Deno.test("two run ids of the same agent and second differ", () => {
  const at = new Date();
  assert.equal(new Set(Array.from({ length: 1000 }, () => runId("a", at))).size, 1000);
});

Deno.test("newRun returns every column in the contract's order, with the schema's defaults", () => {
  const run = newRun({ run_id: "id", agent_name: "a", start_time: "t", product_family: "words" });
  assert.deepEqual(Object.entries(run), [
    ["run_id", "id"],
    ["schema_version", 3],
    ["agent_name", "a"],
    ["agent_owner", null],
    ["job_type", null],
    ["trigger_type", null],
    ["start_time", "t"],
    ["end_time", null],
    ["status", "running"],
    ["items_discovered", 0],
    ["items_succeeded", 0],
    ["items_failed", 0],
    ["duration_ms", null],
    ["input_summary", null],
    ["output_summary", null],
    ["error_summary", null],
    ["metrics_json", null],
    ["insight_id", null],
    ["product", null],
    ["platform", null],
    ["product_family", "words"],
    ["subdomain", null],
    ["git_repo", null],
    ["git_branch", null],
    ["git_run_tag", null],
    ["host", null],
    ["api_posted", 0],
    ["api_posted_at", null],
    ["api_retry_count", 0],
    ["created_at", null],
    ["updated_at", null],
  ]);
  assert.deepEqual(RUN_COLUMNS, Object.keys(run));
});

Deno.test("newRun returns independent objects", () => {
  newRun({ run_id: "1", agent_name: "a", start_time: "t" }).items_failed = 7;
  assert.equal(newRun({ run_id: "2", agent_name: "a", start_time: "t" }).items_failed, 0);
});

Deno.test("toJson converts what JSON can represent", () => {
  const shared = { n: 1 };
  assert.equal(
    toJson({ a: [1, "é", null, true], at: new Date(0) }, "x"),
    '{"a":[1,"é",null,true],"at":"1970-01-01T00:00:00.000Z"}',
  );
  assert.equal(toJson({ one: shared, two: shared }, "x"), '{"one":{"n":1},"two":{"n":1}}', "twice is no cycle");
  assert.equal(toJson({ gone: undefined }, "x"), "{}");
  assert.equal(toJson("text", "x"), '"text"');
  assert.equal(toJson(null, "x"), "null");
});

const cycle: Record<string, unknown> = { pages: [{ n: 1 }, {}] };
(cycle["pages"] as Record<string, unknown>[])[1]!["up"] = cycle;
const throwing = {
  toJSON() {
    throw new Error("not today");
  },
};

const REFUSED: [what: string, value: unknown, field: string][] = [
  ["a cycle", cycle, "metrics.pages"],
  ["a BigInt", 1n, "metrics"],
  ["a BigInt deep in an array", { list: [[0], [1, { size: 2n }]] }, "metrics.list"],
  ["a toJSON that throws", { a: 1, b: { c: throwing } }, "metrics.b"],
  ["a toJSON that gives a BigInt", { b: { toJSON: () => ({ n: 1n }) } }, "metrics.b"],
  ["undefined", undefined, "metrics"],
  ["a function", () => 1, "metrics"],
  ["a symbol", Symbol("s"), "metrics"],
];

for (const [what, value, field] of REFUSED) {
  Deno.test(`toJson refuses ${what} and names the field`, () => {
    assert.throws(() => toJson(value, "metrics"), (error: unknown) => {
      assert.ok(error instanceof TelemetryError);
      assert.equal(error.code, "invalid_record");
      assert.equal(error.message, `${field} cannot be written as JSON`);
      assert.ok(error.hint);
      return true;
    });
  });
}

const RUN = { record_type: "run", run_id: "r", agent_name: "a", start_time: "t" };
const EVENT = { record_type: "event", run_id: "r", event_type: "e", timestamp: "t" };

Deno.test("validateRecord accepts records of every version", () => {
  const records = [
    RUN,
    EVENT,
    newRun({ ...RUN, run_id: "r" }),
    { ...RUN, status: null },
    { ...RUN, status: "partial", schema_version: 1, metrics: {}, custom_metadata: {} },
    // The database's CHECK refuses these; such runs exist in logs only.
    { ...RUN, trigger_type: "detector" },
    { ...EVENT, payload_json: '{"n": 1}', id: null },
    { ...EVENT, status: "an event has no status" },
  ];
  for (const record of records) assert.equal(validateRecord({ record_type: "run", ...record }), undefined);
});

Deno.test("validateRecord returns why a value is not a record", () => {
  const none: [value: unknown, why: string][] = [
    [null, "not an object"],
    [undefined, "not an object"],
    [7, "not an object"],
    ["run", "not an object"],
    [[RUN], "not an object"],
    [{}, "unknown record_type"],
    [{ ...RUN, record_type: "commit" }, "unknown record_type"],
    [{ ...RUN, run_id: undefined }, "run_id is missing"],
    [{ ...RUN, run_id: 7 }, "run_id is missing"],
    [{ ...RUN, agent_name: null }, "agent_name is missing"],
    [{ ...RUN, start_time: 1765368330 }, "start_time is missing"],
    [{ ...RUN, status: "done" }, "unknown status"],
    [{ ...RUN, status: 1 }, "unknown status"],
    [{ ...EVENT, run_id: null }, "run_id is missing"],
    [{ ...EVENT, event_type: undefined }, "event_type is missing"],
    [{ ...EVENT, timestamp: 0 }, "timestamp is missing"],
  ];
  for (const [value, why] of none) assert.equal(validateRecord(value), why, JSON.stringify(value));
});
