import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { type ClientOptions, TelemetryClient } from "../../../lib/writer/client.ts";
import { createDatabase, setUpDatabase } from "../../../lib/store/database.ts";
import { pathExists } from "../../../lib/fs/locate.ts";
import { quoteForShell } from "../../../lib/fs/permissions.ts";
import { candidateFolders, type Layout, layoutOf } from "../../../lib/layout.ts";
import type { RunRecord } from "../../../lib/records.ts";
import { createStorage } from "../../../lib/store/folders.ts";
import {
  codeBlocks,
  FAST_FOLDER,
  Holder,
  makeOldDatabase,
  type Output,
  paste,
  ROOT_URL,
  run,
  SmallDisk,
  TempFolder,
  testWith,
  withoutStores,
} from "../../fixtures/mod.ts";
import { longestBlock } from "../../fixtures/event_loop.ts";

interface StageOptions extends ClientOptions {
  prepare?: (layout: Layout) => void;
  parent?: string | undefined;
}

/** A store, a client that writes to it, and the warnings of the client. */
class Stage implements AsyncDisposable {
  readonly folder: TempFolder;
  readonly layout: Layout;
  readonly client: TelemetryClient;
  readonly warnings: string[] = [];

  constructor({ prepare = setUp, parent, ...options }: StageOptions = {}) {
    this.folder = new TempFolder(parent);
    this.layout = layoutOf(`${this.folder.path}/base`);
    prepare(this.layout);
    const onWarning = (message: string) => void this.warnings.push(message);
    this.client = new TelemetryClient({ base: this.layout.base, onWarning, ...options });
  }

  lines(): Record<string, unknown>[] {
    return linesOf(this.layout);
  }

  rows(sql = "SELECT * FROM agent_runs ORDER BY rowid"): Record<string, unknown>[] {
    using db = new DatabaseSync(this.layout.database, { readOnly: true });
    return db.prepare(sql).all();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.client.close();
    this.folder[Symbol.dispose]();
  }
}

function setUp(layout: Layout): void {
  createStorage(layout);
  createDatabase(layout);
}

function linesOf({ raw }: Layout): Record<string, unknown>[] {
  const files = [...Deno.readDirSync(raw)].map(({ name }) => name).sort();
  const text = files.map((name) => Deno.readTextFileSync(`${raw}/${name}`)).join("");
  return text.split("\n").filter((line) => line !== "").map((line) => JSON.parse(line));
}

/** Another process that holds the lock of a database. */
function lockHolder(database: string): Promise<Holder> {
  const code = `import { DatabaseSync } from "node:sqlite";
    const db = new DatabaseSync(${JSON.stringify(database)});
    db.exec("BEGIN EXCLUSIVE");
    console.log("held");
    setInterval(() => {}, 1000);`;
  return Holder.start(Deno.execPath(), ["eval", code]);
}

/** Runs a program with a client named `telemetry` in a process of its own. */
function agent(folder: TempFolder, code: string, args: string[], env: Record<string, string> = {}): Promise<Output> {
  const path = `${folder.path}/agent_${crypto.randomUUID()}.ts`;
  Deno.writeTextFileSync(path, `import { TelemetryClient } from "${ROOT_URL}mod.ts";\n${code}`);
  return run(Deno.execPath(), ["run", "--no-prompt", "--quiet", ...withoutStores(), ...args, path], { env });
}

Deno.test("startRun, logEvent and endRun write the log and the database", async () => {
  await using stage = new Stage();
  const { client } = stage;
  const id = await client.startRun("tester", "job", { product: "p", trigger_type: "web", metrics_json: { a: 1 } });
  assert.match(id, /^\d{8}T\d{6}Z-tester-[0-9a-f]{8}$/);
  assert.deepEqual(stage.rows().map((row) => [row["run_id"], row["status"]]), [[id, "running"]]);
  client.logEvent(id, "first", { n: 1 });
  client.logEvent(id, "text", "a text");
  client.logEvent(id, "nothing");
  await client.endRun(id, { status: "partial", items_failed: 2, product: "q" });

  const lines = stage.lines();
  assert.deepEqual(lines.map((line) => line["event_type"] ?? line["status"]), [
    "running",
    "first",
    "text",
    "nothing",
    "partial",
  ]);
  assert.deepEqual(lines.slice(1, 4).map((line) => line["payload_json"]), ['{"n":1}', '"a text"', null]);
  const [row] = stage.rows();
  assert.equal(row!["status"], "partial");
  assert.equal(row!["product"], "q");
  assert.equal(row!["items_failed"], 2);
  assert.equal(row!["metrics_json"], '{"a":1}');
  assert.ok(Number(row!["duration_ms"]) >= 0);
  assert.deepEqual(stage.warnings, []);
});

Deno.test("trackRun returns the result of the work and ends as success", async () => {
  await using stage = new Stage();
  const result = await stage.client.trackRun("tester", "job", (run) => {
    run.setMetrics({ items_discovered: 3, pages: 7 });
    run.setMetrics({ pages: 8 });
    return "result";
  });
  assert.equal(result, "result");
  const [row] = stage.rows();
  assert.equal(row!["status"], "success");
  assert.equal(row!["items_discovered"], 3);
  assert.equal(row!["metrics_json"], '{"pages":8}');
});

Deno.test("trackRun ends with the status that the work sets, and as failed when it throws", async () => {
  await using stage = new Stage();
  await stage.client.trackRun("tester", "job", (run) => run.setStatus("partial"));
  await stage.client.trackRun("tester", "job", (run) => run.setMetrics({ status: "failed" }));
  await assert.rejects(stage.client.trackRun("tester", "job", (run) => {
    run.setStatus("success");
    throw new Error("gone");
  }));
  const statuses = ["partial", "failed", "failed"];
  assert.deepEqual(stage.rows().map(({ status }) => status), statuses);
  assert.deepEqual(stage.lines().map(({ status }) => status).filter((status) => status !== "running"), statuses);
});

Deno.test("an empty base and a base with ~ are refused with a warning", async () => {
  for (const base of ["", "~/x", 5]) {
    const warnings: string[] = [];
    const onWarning = (message: string) => void warnings.push(message);
    await using client = new TelemetryClient({ base: base as string, onWarning });
    assert.equal(await client.trackRun("tester", "job", () => 5), 5);
    assert.match(
      warnings.join("\n"),
      /base is not a folder: ".*" .*"~" is not expanded/,
    );
    assert.equal(warnings.length, 1);
  }
  assert.ok(!pathExists("~"));
});

testWith(["anyShell"], "the hint about a store in the home folder works when it is pasted into a shell", async () => {
  using folder = new TempFolder();
  const home = `${folder.path}/my home`;
  for (const path of ["raw", "db"]) Deno.mkdirSync(`${home}/.telemetry/${path}`, { recursive: true });
  const program = `${folder.path}/agent.ts`;
  Deno.writeTextFileSync(
    program,
    `import { TelemetryClient } from "${ROOT_URL}mod.ts";
     await using telemetry = new TelemetryClient();
     await telemetry.trackRun("tester", "job", () => {});`,
  );
  const start = (flags: string) => {
    const words = [
      "deno run --no-prompt --quiet",
      ...withoutStores().map(quoteForShell),
      flags,
      quoteForShell(program),
    ];
    return paste(words.join(" "), { env: { HOME: home } });
  };
  const flags = /or run the program with (.*)\)\n/.exec((await start("")).stderr)?.[1];
  assert.match(flags ?? "", /--allow-env=\S*(?:HOME|USERPROFILE) .*\$HOME[\\/].telemetry"/);
  assert.deepEqual(await start(flags!), { code: 0, stdout: "", stderr: "" });
  assert.equal(linesOf(layoutOf(`${home}/.telemetry`)).length, 2);
});

Deno.test("when the store cannot be written, the warning names the other stores that exist", async () => {
  using folder = new TempFolder();
  const home = `${folder.path}/home`;
  Deno.mkdirSync(`${home}/.telemetry/raw`, { recursive: true });
  const base = `${folder.path}/base`;
  Deno.writeTextFileSync(base, "a file");
  const code = `await using telemetry = new TelemetryClient(); await telemetry.trackRun("tester", "job", () => {});`;
  const { stderr } = await agent(folder, code, ["-A"], { HOME: home, TELEMETRY_BASE_DIR: base });
  assert.match(stderr, /other stores exist, choose one with TELEMETRY_BASE_DIR or the option base: .*\.telemetry/);
  assert.equal(stderr.split("\n").length, 2, stderr);
  // A store that exists, and that Deno does not let the program write.
  Deno.removeSync(base);
  for (const name of ["raw", "db"]) Deno.mkdirSync(`${base}/${name}`, { recursive: true });
  const args = ["--allow-env", "--allow-read", `--allow-write=${home}`];
  const denied = await agent(folder, code, args, { HOME: home, TELEMETRY_BASE_DIR: base });
  assert.match(denied.stderr, /does not let this program write .* other stores exist/);
});

Deno.test("a path in the hint about permissions is quoted", async () => {
  using folder = new TempFolder();
  const base = `${folder.path}/it's here`;
  const code = `new TelemetryClient({ base: ${JSON.stringify(base)} });`;
  const { stderr } = await agent(folder, code, []);
  const quoted = Deno.build.os === "windows"
    ? `"--allow-read=${base}"`
    : `'--allow-read=${base.replace("'", `'\\''`)}'`;
  assert.ok(stderr.includes(quoted), stderr);
});

Deno.test("trackRun ends as failed and rethrows the same error", async () => {
  await using stage = new Stage();
  class OwnError extends Error {}
  for (
    const [thrown, summary] of [
      [new TypeError("bad type"), "TypeError: bad type"],
      [new OwnError("own"), "OwnError: own"],
      [new DOMException("gone", "AbortError"), "AbortError: gone"],
      ["text", "string: text"],
      [undefined, "undefined: undefined"],
    ] as const
  ) {
    let caught: unknown = "nothing";
    try {
      await stage.client.trackRun("tester", "job", { insight_id: "i" }, () => {
        throw thrown;
      });
    } catch (error) {
      caught = error;
    }
    assert.equal(caught, thrown);
    const row = stage.rows().at(-1)!;
    assert.deepEqual([row["status"], row["error_summary"], row["insight_id"]], ["failed", summary, "i"]);
  }
});

Deno.test("endRun of an unknown or ended run warns and records nothing", async () => {
  await using stage = new Stage();
  const id = await stage.client.startRun("tester", "job");
  await stage.client.endRun(id);
  await stage.client.endRun(id, { status: "failed" });
  await stage.client.endRun("no such run");
  assert.equal(stage.lines().length, 2);
  assert.equal(stage.warnings.length, 1);
  assert.equal((await stage.client.getStats()).failures["unknown_run"], 2);
});

Deno.test("values of wrong types never throw, and each valid field is recorded", async () => {
  await using stage = new Stage();
  const loose = stage.client as unknown as Record<string, (...args: unknown[]) => Promise<string>>;
  const cycle: Record<string, unknown> = {};
  cycle["self"] = cycle;
  const id = await loose["startRun"]!(Object.create(null), undefined, {
    items_discovered: "12",
    items_failed: {},
    items_succeeded: 3n,
    product: 5,
    platform: true,
    subdomain: { a: 1 },
    git_repo: cycle,
    start_time: null,
    run_id: "mine",
    agent_name: "mine",
    extra: [1],
  });
  await loose["logEvent"]!(undefined, Symbol("s"), cycle);
  await loose["logEvent"]!(undefined, Symbol("s"), 12n);
  await loose["logEvent"]!(null, undefined, null);
  await loose["endRun"]!(id, { status: "done", extra: cycle, more: 1 });
  await loose["startRun"]!("b", "j", null).then((b) => loose["endRun"]!(b, null));
  await loose["endRun"]!();
  const [row, other] = stage.rows();
  assert.notEqual(id, "mine");
  assert.deepEqual(
    ["items_discovered", "items_failed", "items_succeeded", "product", "platform", "subdomain", "git_repo"]
      .map((column) => row![column]),
    [12, 0, 3, "5", "true", '{"a":1}', '{"self":"[object Object]"}'],
  );
  assert.equal(row!["status"], "partial");
  assert.deepEqual(JSON.parse(String(row!["metrics_json"])), {
    extra: { self: "[object Object]" },
    status: "done",
    more: 1,
  });
  assert.equal(other!["status"], "success");
  assert.equal(stage.lines().length, 7);
});

Deno.test("a run over 32 MiB is logged with its texts cut, and the database has them whole", async () => {
  await using stage = new Stage();
  const { client } = stage;
  const long = "é🚀".repeat(2 ** 22);
  const id = await client.startRun("tester", "job", { input_summary: "x".repeat(2 ** 21) });
  await client.endRun(id, { output_summary: long, metrics_json: { text: "y".repeat(2 ** 24) }, product: "p" });
  const lines = stage.lines();
  assert.equal(String(lines[0]!["input_summary"]).length, 2 ** 21, "a run below the limit was cut");
  assert.deepEqual([lines[1]!["run_id"], lines[1]!["status"], lines[1]!["product"]], [id, "success", "p"]);
  assert.equal(String(lines[1]!["output_summary"]).length, 100_000);
  assert.ok(String(lines[1]!["output_summary"]).isWellFormed());
  assert.equal(lines[1]!["metrics_json"], null);
  const rows = stage.rows("SELECT status, length(output_summary), length(metrics_json) FROM agent_runs ORDER BY rowid");
  assert.deepEqual(rows.map((row) => Object.values(row)), [["success", 2 * 2 ** 22, 2 ** 24 + 11]]);
  assert.equal(stage.warnings.length, 1);
  assert.match(
    stage.warnings[0]!,
    /a record \(run\) is too long for the log: its long texts are cut or left out there/,
  );
});

Deno.test("missing folders are created, with one warning", async () => {
  await using stage = new Stage({ prepare: () => {} });
  await stage.client.trackRun("tester", "job", () => {});
  assert.equal(stage.warnings.length, 1);
  assert.match(stage.warnings[0]!, /created the missing folders/);
  assert.deepEqual((await stage.client.getStats()).failures, {});
  assert.equal(stage.rows().length, 1);
  assert.equal(stage.lines().length, 2);
});

testWith(["openRemoval"], "folders that are removed while a client is open are created again", async () => {
  await using stage = new Stage();
  const { client, layout } = stage;
  await client.trackRun("tester", "one", () => {});
  Deno.removeSync(layout.base, { recursive: true });
  await client.trackRun("tester", "two", () => {});
  assert.deepEqual(stage.lines().map((line) => line["job_type"]), ["two", "two"]);
  assert.deepEqual(stage.rows().map((row) => [row["job_type"], row["status"]]), [["two", "success"]]);
  assert.equal(stage.warnings.length, 1);
});

Deno.test("an unknown trigger_type is recorded as manual, and words for a failure as failed", async () => {
  await using stage = new Stage();
  const id = await stage.client.startRun("tester", "job", { trigger_type: "detector" as "cli" });
  await stage.client.endRun(id, { status: "timeout" as "failed", items_failed: 1 });
  const [row] = stage.rows();
  assert.deepEqual([row!["trigger_type"], row!["status"]], ["manual", "failed"]);
  assert.deepEqual(JSON.parse(String(row!["metrics_json"])), { trigger_type: "detector", status: "timeout" });
  assert.equal(stage.warnings.length, 1);
  assert.match(stage.warnings[0]!, /unknown trigger_type detector/);
});

Deno.test("values that readers refuse are converted, with a warning", async () => {
  await using stage = new Stage();
  const id = await stage.client.startRun("", "job", { start_time: "yesterday", items_failed: -2 });
  await stage.client.endRun(id, { duration_ms: 1234.5678, items_discovered: 1e30, end_time: Date.now() as never });
  const [row] = stage.rows();
  assert.deepEqual([row!["duration_ms"], row!["items_discovered"], row!["items_failed"]], [1235, null, -2]);
  const told = [
    /agent_name is empty/,
    /start_time yesterday/,
    /end_time \d+ is not/,
    /items_failed is negative/,
    /rounded to 1235/,
    /too large/,
  ];
  for (const pattern of told) assert.ok(stage.warnings.some((warning) => pattern.test(warning)), String(pattern));
  assert.equal(stage.warnings.length, 6);
});

Deno.test("no line of the log has a NUL, which PostgreSQL accepts in no jsonb", async () => {
  await using stage = new Stage();
  const id = await stage.client.startRun("a\0b", "job\0", { host: "\0" });
  await stage.client.logEvent(id, "type\0", "\0");
  await stage.client.logEvent("r\0", "type");
  await stage.client.endRun(id, { output_summary: ["\0"] as never, error_summary: new Error("\0") as never });
  const [row] = stage.rows();
  assert.ok(id.includes("-a␀b-"), id);
  assert.deepEqual([row!["run_id"], row!["host"], row!["output_summary"], row!["error_summary"]], [
    id,
    "␀",
    '["␀"]',
    "Error: ␀",
  ]);
  for (const line of stage.lines()) assert.doesNotMatch(JSON.stringify(line), /u0000/);
  assert.ok(stage.warnings.includes("host contains NUL: it is recorded as ␀"), String(stage.warnings));
});

Deno.test("a value without a JSON form costs only that value, in every text column", async () => {
  await using stage = new Stage();
  const revoked = Proxy.revocable([], {});
  revoked.revoke();
  for (const value of [revoked.proxy, Object.create(Date.prototype)] as never[]) {
    const id = await stage.client.startRun(value, value, { product: value, start_time: value });
    await stage.client.logEvent(id, value, value);
    await stage.client.endRun(id, { output_summary: value, end_time: value, metrics_json: value });
  }
  const names = ["agent_name", "job_type", "product", "output_summary", "end_time", "metrics_json"];
  const wanted = ["unknown", "unknown", "unknown", "unknown", "unknown", '"unknown"'];
  assert.deepEqual(stage.rows().map((row) => names.map((name) => row[name])), [wanted, wanted]);
  assert.equal(stage.lines().length, 6);
  for (const name of names) assert.match(stage.warnings.join("\n"), new RegExp(`${name} has no JSON form`));
});

Deno.test("names of agents, jobs and events are the text of what is given", async () => {
  await using stage = new Stage();
  await stage.client.startRun(new TypeError("agent") as never, { kind: "job" } as never);
  await stage.client.logEvent("run", new Map([["kind", "event"]]) as never);
  const [run, event] = stage.lines();
  assert.deepEqual([run!["agent_name"], run!["job_type"], event!["event_type"]], [
    "TypeError: agent",
    '{"kind":"job"}',
    '{"kind":"event"}',
  ]);
});

Deno.test("a thrown value that is not an error is in the summary", async () => {
  await using stage = new Stage();
  for (const thrown of [{ code: "E_DISK", free: 0 }, ["a"], "text", undefined]) {
    await assert.rejects(stage.client.trackRun("tester", "job", () => Promise.reject(thrown)), (e) => e === thrown);
  }
  assert.deepEqual(stage.rows().map((row) => row["error_summary"]), [
    'object: {"code":"E_DISK","free":0}',
    'object: ["a"]',
    "string: text",
    "undefined: undefined",
  ]);
});

Deno.test("a metric of any name is kept, such as __proto__", async () => {
  await using stage = new Stage();
  const id = await stage.client.startRun("tester", "job", JSON.parse('{"__proto__":1}'));
  await stage.client.endRun(id, JSON.parse('{"__proto__":2,"constructor":3,"4":{"__proto__":5}}'));
  const [row] = stage.rows("SELECT metrics_json FROM agent_runs");
  assert.equal(row!["metrics_json"], '{"__proto__":2,"4":{"__proto__":5},"constructor":3}');
  // Where Deno does not disable the setter of this name.
  const { base } = stage.layout;
  const code = `await using telemetry = new TelemetryClient({ base: "${base}" });
    await telemetry.trackRun("tester", "tracked", (run) => run.setMetrics(JSON.parse('{"__proto__":{"a":1},"b":2}')));`;
  await agent(stage.folder, code, ["--unsafe-proto", `--allow-read=${base}`, `--allow-write=${base}`]);
  const [tracked] = stage.rows("SELECT metrics_json FROM agent_runs WHERE job_type='tracked'");
  assert.equal(tracked!["metrics_json"], '{"__proto__":{"a":1},"b":2}');
});

Deno.test("metrics whose names differ only in what JSON cannot hold are all kept", async () => {
  await using stage = new Stage();
  const id = await stage.client.startRun("tester", "job", JSON.parse('{"\\ud800":1,"\\udfff":2}'));
  await stage.client.endRun(id, { "\ufffd": 3, "n\0": 4, "n␀": 5 } as never);
  const metrics = '{"\ufffd":3,"\ufffd\ufffd":2,"n␀":4,"n␀\ufffd":5}';
  assert.equal(stage.rows()[0]!["metrics_json"], metrics);
  assert.deepEqual(stage.warnings, ["metrics_json contains NUL: it is recorded as ␀"]);
});

Deno.test("metrics_json is JSON that PostgreSQL accepts, whatever text is given", async () => {
  await using stage = new Stage();
  const cases = [
    [
      '{"a": "\\u0000\\uD800\\ud83d\\ude00\\\\u0000", "n": 1e400}',
      '{"a": "␀\ufffd\\ud83d\\ude00\\\\u0000", "n": 1e400}',
    ],
    ["NaN", '"NaN"'],
    ["", '""'],
    ["{half", '"{half"'],
    ["[1]", "[1]"],
  ];
  for (const [metrics_json] of cases) {
    await stage.client.endRun(await stage.client.startRun("a", "b", { metrics_json: metrics_json! }));
  }
  assert.deepEqual(stage.rows().map((row) => row["metrics_json"]), cases.map(([, wanted]) => wanted));
  assert.deepEqual(stage.warnings, [
    "metrics_json contains NUL: it is recorded as ␀",
    "metrics_json is not JSON: it is recorded as text",
  ]);
});

Deno.test("errors, maps, sets and big integers are recorded, in payloads, metrics and text columns", async () => {
  await using stage = new Stage();
  const id = await stage.client.startRun("tester", "job", { git_repo: new URL("https://example.com/x") as never });
  const payload = {
    error: new TypeError("disk on fire", { cause: new Error("heat") }),
    map: new Map([["pages", 3]]),
    set: new Set([1, 2]),
    headers: new Headers({ a: "b" }),
    bytes: new Uint8Array([1, 2]),
    big: 10n,
    huge: 2n ** 70n,
    nan: NaN,
    half: "\ud800",
  };
  await stage.client.logEvent(id, "all", payload);
  await stage.client.logEvent(id, "error", new TypeError("disk on fire"));
  await stage.client.endRun(id, { error_summary: new Error("database timeout") as never, ...{ big: 10n, pages: 3 } });
  const [all, error] = stage.lines().slice(1, 3).map((line) => JSON.parse(String(line["payload_json"])));
  const { error: first, ...others } = all;
  assert.deepEqual([first.name, first.message, first.cause.message], ["TypeError", "disk on fire", "heat"]);
  assert.match(first.stack, /TypeError/);
  assert.deepEqual(others, {
    map: { pages: 3 },
    set: [1, 2],
    headers: { a: "b" },
    bytes: [1, 2],
    big: 10,
    huge: String(2n ** 70n),
    nan: "NaN",
    half: "\ufffd",
  });
  assert.equal(error.message, "disk on fire");
  const [row] = stage.rows();
  assert.deepEqual(
    [row!["error_summary"], row!["git_repo"], row!["metrics_json"]],
    ["Error: database timeout", "https://example.com/x", '{"big":10,"pages":3}'],
  );
  assert.deepEqual(stage.warnings, []);
});

Deno.test("a part that JSON refuses costs only that part", async () => {
  await using stage = new Stage();
  const cycle: Record<string, unknown> = { pages: 3 };
  cycle["self"] = cycle;
  const map = new Map<string, unknown>();
  map.set("self", map);
  const broken = {
    pages: 3,
    get lost() {
      throw new Error("looked at");
    },
  };
  const id = await stage.client.startRun("tester", "job");
  for (const payload of [cycle, map, broken]) await stage.client.logEvent(id, "event", payload);
  assert.deepEqual(stage.lines().slice(1).map((line) => line["payload_json"]), [
    '{"pages":3,"self":"[object Object]"}',
    '{"self":"[object Map]"}',
    '{"pages":3,"lost":"unknown"}',
  ]);
  assert.equal(stage.warnings.length, 1);
  assert.match(stage.warnings[0]!, /payload contains itself at self/);
});

Deno.test("objects that share each other are recorded as text, also beside values that are converted", async () => {
  await using stage = new Stage();
  const graph = (leaf: unknown) => {
    let parts = leaf;
    for (let i = 0; i < 40; i++) parts = { left: parts, right: parts };
    return parts;
  };
  const id = await stage.client.startRun("tester", "job");
  await stage.client.logEvent(id, "event", graph(new Set()));
  await stage.client.endRun(id, { graph: graph(1), pages: 3 } as object);
  assert.deepEqual(stage.lines()[1]!["payload_json"], '"[object Object]"');
  assert.deepEqual(stage.rows()[0]!["metrics_json"], '{"graph":"[object Object]","pages":3}');
  assert.match(stage.warnings.join(), /payload cannot be written as JSON \(too long\): it is recorded as text/);
});

Deno.test("a list that is too long is recorded as text, without blocking the agent", async () => {
  await using stage = new Stage();
  const start = performance.now();
  const lists = { sparse: new Array(2 ** 32 - 1), bytes: new Uint8Array(2 ** 25), buffer: new ArrayBuffer(2 ** 25) };
  const appended = stage.client.logEvent("run", "event", { ...lists, pages: 3 });
  const blocked = performance.now() - start;
  await appended;
  assert.ok(blocked < 1000, `${blocked} ms`);
  assert.deepEqual(JSON.parse(String(stage.lines()[0]!["payload_json"])), {
    ...{ sparse: "[object Array]", bytes: "[object Array]", buffer: "[object ArrayBuffer]", pages: 3 },
  });
  assert.match(stage.warnings.join(), /payload has no JSON form at sparse \(too long\): it is recorded as text/);
});

Deno.test("every kind of value is recorded, or its loss is told", async () => {
  await using stage = new Stage();
  class Secret {
    readonly #value = 5;
    toString = undefined;
    look = () => this.#value;
  }
  class Hidden {
    readonly #value = 5;
    toString() {
      return `hidden ${this.#value}`;
    }
  }
  const revoked = Proxy.revocable({}, {});
  revoked.revoke();
  const deep: Record<string, unknown> = {};
  let at = deep;
  for (let i = 0; i < 100_000; i++) at = at["d"] = {} as Record<string, unknown>;
  const self = new Error("outer");
  self.cause = self;
  const shared = { n: 1 };
  const bytes = new Uint8Array([1, 2, 3]).buffer;
  const values: [unknown, unknown, told?: RegExp][] = [
    [new Error("a", { cause: new TypeError("b") }), {
      name: "Error",
      message: "a",
      cause: { name: "TypeError", message: "b" },
    }],
    [new AggregateError([new Error("one"), 2], "all"), {
      ...{ name: "AggregateError", message: "all", errors: [{ name: "Error", message: "one" }, 2] },
    }],
    [new SuppressedError(new Error("one"), new Error("two"), "both"), {
      name: "SuppressedError",
      message: "both",
      error: { name: "Error", message: "one" },
      suppressed: { name: "Error", message: "two" },
    }],
    [self, { name: "Error", message: "outer", cause: "Error: outer" }, /contains itself at cause/],
    [new DOMException("gone", "AbortError"), { name: "AbortError", message: "gone" }],
    [new Map<unknown, unknown>([["a", new Map([["b", 1n]])]]), { a: { b: 1 } }],
    [new Map([[{}, 1], [{}, 2]]), [[{}, 1], [{}, 2]]],
    [new Set([[1], new Set([2])]), [[1], [2]]],
    [new Headers([["a", "b"], ["set-cookie", "c"], ["set-cookie", "d"]]), [["a", "b"], ["set-cookie", "c"], [
      "set-cookie",
      "d",
    ]]],
    [new Date(0), "1970-01-01T00:00:00.000Z"],
    [new Date(NaN), "Invalid Date"],
    [new URL("http://a/"), "http://a/"],
    [/x/g, "/x/g"],
    [[new Number(3), new String("s"), new Boolean(false), Object(5n), new Number(NaN)], [3, "s", false, 5, "NaN"]],
    [[1n, 2n ** 60n, NaN, -Infinity, -0, undefined], [1, String(2n ** 60n), "NaN", "-Infinity", 0, null]],
    [bytes, [1, 2, 3]],
    [new DataView(bytes, 1), [2, 3]],
    [new Float32Array([1.5, NaN]), [1.5, "NaN"]],
    [new BigInt64Array([5n]), [5]],
    [new Blob(["x"]), "[object Blob]", /^payload has no JSON form: it is recorded as text$/],
    [Promise.resolve(), "[object Promise]", /has no JSON form/],
    [new Hidden(), "hidden 5", /has no JSON form/],
    [new Proxy({ a: 1 }, {}), { a: 1 }],
    [{ in: revoked.proxy, b: 1 }, { in: "unknown", b: 1 }, /payload has no JSON form at in/],
    [{ a: { toJSON: () => assert.fail("looked at") }, b: 1 }, { a: "[object Object]", b: 1 }, /at a \(looked at\)/],
    [{ [Symbol("tag")]: 1, b: 2 }, { b: 2, "Symbol(tag)": 1 }],
    [[shared, shared, [shared]], [shared, shared, [shared]]],
    [{ "\ud800": "\udfff", "\0": "a\0b", c: "\\u0000 \\ud800" }, {
      "\ufffd": "\ufffd",
      "␀": "a␀b",
      c: "\\u0000 \\ud800",
    }, /contains NUL/],
    [JSON.parse('{"\\ud800":1,"\ufffd":2,"\\udfff":3}'), { "\ufffd": 1, "\ufffd\ufffd": 2, "\ufffd\ufffd\ufffd": 3 }],
    [{ "a\0": 1, "a␀": 2 }, { "a␀": 1, "a␀\ufffd": 2 }, /contains NUL/],
    [{ [Symbol("s")]: 1, [Symbol("s")]: 2 }, { "Symbol(s)": 1, "Symbol(s)\ufffd": 2 }],
    [JSON.parse('{"__proto__": {"a": 1}}'), JSON.parse('{"__proto__": {"a": 1}}')],
    [new Secret().look, new Secret().look.toString()],
    [Symbol("s"), "Symbol(s)"],
  ];
  for (const [given, wanted, told] of values) {
    const warnings: string[] = [];
    await using client = new TelemetryClient({
      base: stage.layout.base,
      onWarning: (text) => void warnings.push(text),
    });
    await client.logEvent("run", "event", given);
    const text = String(stage.lines().at(-1)!["payload_json"]);
    const without = JSON.parse(text, (key, value) => key === "stack" || key === "code" ? undefined : value);
    assert.deepEqual(without, wanted, text);
    assert.match(warnings.join("\n"), told ?? /^$/);
    assert.doesNotMatch(text.replaceAll("\\\\", ""), /\\u(?:0000|d)/);
  }
  await stage.client.logEvent("run", "deep", deep);
  const line = String(stage.lines().at(-1)!["payload_json"]);
  assert.ok(line.startsWith('{"d":{"d":') && line.length < 2000, line);
  assert.match(stage.warnings.join(), /payload is nested too deeply at d/);
});

Deno.test("an event over 32 MiB is recorded without its payload", async () => {
  await using stage = new Stage();
  await stage.client.logEvent("run", "long", "x".repeat(33 * 2 ** 20));
  await stage.client.logEvent("run", "next");
  assert.deepEqual(stage.lines().map((line) => [line["event_type"], line["payload_json"]]), [["long", null], [
    "next",
    null,
  ]]);
  assert.deepEqual(stage.warnings, [
    "a record (event) is too long for the log: its long texts are cut or left out there",
  ]);
});

Deno.test("texts and metrics keep what is well-formed, and numbers their digits", async () => {
  await using stage = new Stage();
  const metrics_json = '{"id": 12345678901234567890, "list": [98765432109876543210]}';
  const id = await stage.client.startRun("a\ud800", "b\udc00", { metrics_json, product: "c\ud800", items_failed: -0 });
  await stage.client.logEvent(`${id}\ud800`, "e\ud800");
  await stage.client.endRun(id, { pages: 3, ...{ "\ud800": 1, list: 2 } } as object);
  for (
    const line of Deno.readTextFileSync(`${stage.layout.raw}/${[...Deno.readDirSync(stage.layout.raw)][0]!.name}`)
      .split("\n")
  ) {
    assert.doesNotMatch(line, /\\ud[89a-f]/);
  }
  assert.equal(stage.rows()[0]!["metrics_json"], '{"id":12345678901234567890,"list":2,"pages":3,"\ufffd":1}');
});

Deno.test("a field that cannot be read costs only that field, and fields may be a map", async () => {
  await using stage = new Stage();
  const fields = {
    product: "p",
    get platform(): string {
      throw new Error("looked at");
    },
  };
  const id = await stage.client.startRun("tester", "job", fields);
  await stage.client.endRun(id, new Map<unknown, unknown>([["items_failed", 3], [Symbol("pages"), 4]]) as object);
  const [row] = stage.rows();
  assert.deepEqual([row!["product"], row!["platform"], row!["items_failed"], row!["metrics_json"]], [
    "p",
    null,
    3,
    '{"Symbol(pages)":4}',
  ]);
  assert.match(stage.warnings.join(), /platform cannot be read/);
});

Deno.test("a flood of events is told in one warning with its number, and the run is complete", async () => {
  await using stage = new Stage();
  const { client } = stage;
  const id = await client.startRun("tester", "job");
  const pad = "x".repeat(2 ** 20);
  for (let n = 0; n < 100; n++) client.logEvent(id, "event", { n, pad });
  await client.endRun(id);
  await client.logEvent(id, "after");
  const events = stage.lines().filter((line) => line["event_type"] === "event").map((line) =>
    JSON.parse(String(line["payload_json"])).n
  );
  const dropped = 100 - events.length;
  assert.ok(dropped > 30, `${dropped} were dropped`);
  assert.deepEqual(events, Array.from({ length: events.length }, (_, i) => i + dropped), "the newest are kept");
  assert.equal(stage.lines().find(({ status }) => status === "success")!["run_id"], id);
  assert.equal(stage.warnings.length, 1);
  assert.ok(stage.warnings[0]!.startsWith(`${dropped.toLocaleString("en-US")} events came faster`), stage.warnings[0]);
  assert.equal((await client.getStats()).failures["log:queue_full"], dropped);
});

Deno.test("options of wrong kinds warn, and the client records with the others", async () => {
  using folder = new TempFolder();
  const cases: [options: Record<string, unknown>, told: RegExp][] = [
    [{ closeTimeoutMs: "5" }, /closeTimeoutMs takes milliseconds, not 5: 5000 are used/],
    [{ closeTimeoutMs: NaN }, /not NaN/],
    [{ closeTimeoutMs: -1 }, /not -1/],
    [{ closeTimeoutMs: null }, /not null/],
    [{ closeTimeoutMs: 5n }, /not 5/],
    [{ timeout: 5 }, /there is no option timeout/],
  ];
  for (const [options, told] of cases) {
    const warnings: string[] = [];
    const onWarning = (message: string) => void warnings.push(message);
    await using client = new TelemetryClient({ base: `${folder.path}/base`, onWarning, ...options });
    await client.trackRun("tester", "job", () => {});
    assert.match(warnings.filter((text) => !text.startsWith("created")).join("|"), told);
  }
  await using client = new TelemetryClient({ base: `${folder.path}/base`, onWarning() {} });
  assert.equal((await client.getStats()).total_runs, cases.length);
  for (
    const options of [
      { limit: 0 },
      { limit: 1.5 },
      { limit: Infinity },
      { limit: "5" },
      { since: 5 },
      { since: "soon" },
      { limits: 5 },
      5,
      null,
    ]
  ) {
    assert.deepEqual(await client.postPending(options as never), { posted: 0, failed: 0, refused: 0 });
  }
  assert.equal((await client.getStats()).failures["api:usage"], 7);
  // A misspelt name must not end the runs of all agents.
  await client.startRun("tester", "open");
  await using other = new TelemetryClient({ base: `${folder.path}/base`, onWarning() {} });
  for (const agent of [{ agnet: "x" }, { agent: 5 }, { agent: "" }, { agent: null }]) {
    assert.deepEqual(await other.endStale({ olderThan: "0m", ...agent } as never), []);
  }
  assert.equal((await other.getStats()).failures["stale:usage"], 4);
  for (const base of [5, null, {}, Symbol("s"), []]) {
    const warnings: string[] = [];
    await using client = new TelemetryClient({ base, onWarning: (text: string) => void warnings.push(text) } as never);
    assert.equal(await client.trackRun("tester", "job", () => 5), 5);
    assert.match(warnings.join(), /base is not a folder/);
  }
});

Deno.test("a run that violates a CHECK constraint is only in the log, and does not block later runs", async () => {
  await using stage = new Stage({
    prepare: (layout) => {
      setUp(layout);
      using db = new DatabaseSync(layout.database);
      db.exec(
        "CREATE TRIGGER no_job BEFORE INSERT ON agent_runs WHEN NEW.job_type='job' " +
          "BEGIN SELECT RAISE(ABORT, 'CHECK'); END",
      );
    },
  });
  for (let i = 0; i < 3; i++) {
    const id = await stage.client.startRun("tester", "job");
    await stage.client.endRun(id);
  }
  await stage.client.trackRun("tester", "fine", () => {});
  assert.equal(stage.lines().length, 8);
  assert.equal(stage.rows().length, 1);
  assert.equal(stage.warnings.length, 1);
  assert.match(stage.warnings[0]!, /CHECK/);
});

Deno.test("runs are only in the log until an older database is upgraded while the client is open", async () => {
  await using stage = new Stage({
    prepare: (layout) => {
      createStorage(layout);
      makeOldDatabase(layout.database, "says3_is2", 2);
    },
  });
  await stage.client.trackRun("tester", "early", () => {});
  assert.equal(stage.rows().length, 2);
  assert.match(stage.warnings.join(), /setup_database/);
  await setUpDatabase(stage.layout);
  await stage.client.trackRun("tester", "late", () => {});
  assert.deepEqual(stage.rows().slice(2).map((row) => [row["job_type"], row["status"]]), [
    ["early", "success"],
    ["late", "success"],
  ]);
});

Deno.test("with a corrupt database, all runs are in the log, with one warning", async () => {
  await using stage = new Stage({
    prepare: (layout) => {
      createStorage(layout);
      Deno.writeTextFileSync(layout.database, "this is no database\n".repeat(500));
    },
  });
  for (let i = 0; i < 5; i++) await stage.client.trackRun("tester", "job", () => {});
  assert.equal(stage.lines().length, 10);
  assert.equal(stage.warnings.length, 1);
  assert.ok((await stage.client.getStats()).failures["database:not_a_database"]! >= 5);
});

Deno.test("a database that is locked for 10 s does not block the agent, and gets its rows afterwards", async () => {
  // In memory if possible: the test is about the lock, and a busy disk would disturb it.
  await using stage = new Stage({ parent: FAST_FOLDER });
  const { client, layout, warnings } = stage;
  await client.trackRun("tester", "warm", () => {});
  const ids: string[] = [];
  const { ours, idle } = await longestBlock(async () => {
    await using _lock = await lockHolder(layout.database);
    const end = performance.now() + 10_000;
    let longestWait = 0;
    while (performance.now() < end) {
      const start = performance.now();
      const id = await client.startRun("tester", "job");
      client.logEvent(id, "event", { n: ids.length });
      await client.endRun(id);
      longestWait = Math.max(longestWait, performance.now() - start);
      ids.push(id);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    assert.ok(longestWait < 1000, `a run took ${longestWait} ms`);
  });
  // A wait in SQLite's busy handler would block for seconds.
  assert.ok(ours < 1000 + idle, `the event loop was blocked for ${ours} ms, an idle one for ${idle} ms`);
  await client.close();
  const rows = stage.rows("SELECT run_id, status FROM agent_runs WHERE job_type='job'");
  assert.deepEqual(rows.map((row) => row["run_id"]), ids);
  assert.ok(rows.every((row) => row["status"] === "success"));
  assert.deepEqual(warnings, []);
});

Deno.test("close() ends within its timeout and warns of what the database misses, which the log has", async () => {
  await using stage = new Stage({ closeTimeoutMs: 300 });
  const { client, layout } = stage;
  await client.trackRun("tester", "warm", () => {});
  await using _lock = await lockHolder(layout.database);
  await client.trackRun("tester", "job", () => {});
  const start = performance.now();
  await client.close();
  const took = performance.now() - start;
  assert.ok(took >= 290 && took < 2000, `close() took ${took} ms`);
  const told =
    /before the database had all changes of runs \(missing: 1\); recover_database --force adds what the log has/;
  assert.match(stage.warnings.join(), told);
  assert.equal(stage.lines().length, 4);
});

Deno.test("the warning about what the database misses does not say that the log has everything", async () => {
  await using stage = new Stage({ closeTimeoutMs: 300 });
  const { client, layout } = stage;
  await client.trackRun("tester", "warm", () => {});
  await using _lock = await lockHolder(layout.database);
  Deno.removeSync(layout.raw, { recursive: true });
  Deno.writeTextFileSync(layout.raw, "a file");
  await client.trackRun("tester", "job", () => {});
  await client.close();
  const warning = stage.warnings.find((text) => /had all changes of runs/.test(text)) ?? "";
  assert.match(warning, /recover_database --force adds what the log has of them/);
  assert.doesNotMatch(stage.warnings.join(), /only in the log/);
});

Deno.test("after close() nothing is recorded, with one warning", async () => {
  await using stage = new Stage();
  const id = await stage.client.startRun("tester", "job");
  await stage.client.close();
  await stage.client.close();
  await stage.client.endRun(id);
  await stage.client.logEvent(id, "x");
  assert.equal(await stage.client.trackRun("tester", "job", () => 5), 5);
  assert.deepEqual(await stage.client.postPending(), { posted: 0, failed: 0, refused: 0 });
  assert.equal((await stage.client.getStats()).total_runs, 1);
  assert.equal(stage.lines().length, 1);
  assert.equal(stage.warnings.length, 1);
});

Deno.test("a warning that is printed has no character that a terminal acts on", async () => {
  using folder = new TempFolder();
  const code = `const telemetry = new TelemetryClient();
    await telemetry.endRun(await telemetry.startRun("a", "b"), { status: "\\x1b[31m\\u009b\\u202e\\r\\nred" as never });`;
  const { stderr } = await agent(folder, code, ["-A"], { TELEMETRY_BASE_DIR: `${folder.path}/base` });
  assert.match(stderr, /cannot end as ␛\[31m�� ⏎ red/);
});

Deno.test("an onWarning that throws or rejects does not stop the recording", async () => {
  const handlers = [() => {
    throw new Error("from the handler");
  }, () => Promise.reject(new Error("from the handler"))];
  for (const onWarning of handlers) {
    await using stage = new Stage({ onWarning, prepare: () => {} });
    await stage.client.endRun("no such run");
    await stage.client.trackRun("tester", "job", () => {});
    assert.equal(stage.rows().length, 1);
  }
});

Deno.test("without permissions the work is done, with a warning, without a prompt", async () => {
  using folder = new TempFolder();
  const { code, stdout, stderr } = await agent(
    folder,
    `const telemetry = new TelemetryClient({ base: ${JSON.stringify(folder.path)} });
     console.log(await telemetry.trackRun("a", "j", () => "worked"));
     await telemetry.close();
     const other = new TelemetryClient();
     await other.trackRun("a", "j", () => {});
     await other.close();`,
    [],
  );
  assert.equal(stdout, "worked\n");
  assert.equal(code, 0);
  assert.equal(stderr.split("\n").length, 3, stderr);
  assert.match(stderr, /--allow-read=/);
});

testWith(["mount"], "a full disk causes one warning, and recording continues when space is free", async () => {
  using disk = new SmallDisk("512k");
  const layout = layoutOf(`${disk.path}/base`);
  setUp(layout);
  const warnings: string[] = [];
  await using client = new TelemetryClient({
    base: layout.base,
    onWarning: (message) => void warnings.push(message),
  });
  await client.trackRun("tester", "before", () => {});
  disk.fill();
  const big = "x".repeat(5000);
  for (let i = 0; i < 5; i++) await client.trackRun("tester", "full", { input_summary: big }, () => {});
  const failures = (await client.getStats()).failures;
  assert.ok(failures["log:disk_full"]! >= 5, JSON.stringify(failures));
  assert.equal(warnings.filter((warning) => warning.includes("No space left")).length, 1, warnings.join("\n"));
  disk.free();
  await client.trackRun("tester", "after", () => {});
  const jobs = linesOf(layout).map((line) => `${line["job_type"]} ${line["status"]}`);
  assert.deepEqual(jobs.filter((job) => !job.startsWith("full")), [
    "before running",
    "before success",
    "after running",
    "after success",
  ]);
  await client.close();
});

Deno.test("posting sets the markers and the retry count, logs the marker, and does not delay endRun", async () => {
  using folder = new TempFolder();
  const answers = [200, 401, 200];
  const seen: Record<string, unknown>[] = [];
  const server = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen: () => {} }, async (request) => {
    seen.push(await request.json());
    await new Promise((resolve) => setTimeout(resolve, 1500));
    return Response.json({}, { status: answers.shift()! });
  });
  const base = `${folder.path}/base`;
  const env = { METRICS_API_URL: `http://127.0.0.1:${server.addr.port}/exec?secret=s3`, METRICS_API_TOKEN: "t0ken" };
  const args = [`--allow-read=${base}`, `--allow-write=${base}`, "--allow-env", "--allow-net=127.0.0.1"];
  const first = await agent(
    folder,
    `await using telemetry = new TelemetryClient({ base: ${JSON.stringify(base)} });
     for (const job of ["accepted", "refused"]) {
       const id = await telemetry.startRun("tester", job);
       const start = performance.now();
       await telemetry.endRun(id, { items_failed: 1 });
       if (performance.now() - start > 1400) console.log("endRun waited for the API");
       await new Promise((resolve) => setTimeout(resolve, 1800));
     }`,
    args,
    env,
  );
  assert.equal(first.stdout, "");
  assert.doesNotMatch(first.stderr, /s3|t0ken/);
  assert.match(first.stderr, /answered 401/);
  const layout = layoutOf(base);
  const rows = () => {
    using db = new DatabaseSync(layout.database, { readOnly: true });
    const sql =
      "SELECT job_type, api_posted, api_posted_at IS NOT NULL AS at, api_retry_count FROM agent_runs ORDER BY rowid";
    return db.prepare(sql).all().map((row) => Object.values(row));
  };
  assert.deepEqual(rows(), [["accepted", 1, 1, 0], ["refused", 0, 0, 1]]);
  assert.deepEqual(seen.map((body) => [body["job_type"], body["status"], body["items_failed"], "git_repo" in body]), [
    ["accepted", "success", 1, false],
    ["refused", "success", 1, false],
  ]);
  const marked = linesOf(layout).filter((line) => line["api_posted"] === 1) as unknown as RunRecord[];
  assert.deepEqual(marked.map((run) => [run.job_type, run.status, typeof run.api_posted_at, run.created_at]), [
    ["accepted", "success", "string", null],
  ]);

  const second = await agent(
    folder,
    `await using telemetry = new TelemetryClient({ base: ${JSON.stringify(base)} });
     console.log(JSON.stringify(await telemetry.postPending({ since: "2099-01-01" })));
     console.log(JSON.stringify(await telemetry.postPending()));`,
    args,
    env,
  );
  assert.equal(second.stdout, '{"posted":0,"failed":0,"refused":0}\n{"posted":1,"failed":0,"refused":0}\n');
  assert.deepEqual(rows(), [["accepted", 1, 1, 0], ["refused", 1, 1, 1]]);
  assert.deepEqual(linesOf(layout).at(-1)!["created_at"], null);
  await server.shutdown();
});

Deno.test("with an API that never answers, close() ends within its timeout and the runs stay pending", async () => {
  using folder = new TempFolder();
  using listener = Deno.listen({ port: 0, hostname: "127.0.0.1" });
  const accepted = (async () => {
    const connections: Deno.Conn[] = [];
    for await (const connection of listener) connections.push(connection);
    return connections;
  })();
  const base = `${folder.path}/base`;
  const start = performance.now();
  const { code, stdout } = await agent(
    folder,
    `const telemetry = new TelemetryClient({ base: ${JSON.stringify(base)}, closeTimeoutMs: 500 });
     for (let i = 0; i < 10; i++) await telemetry.trackRun("tester", "job", () => {});
     await telemetry.close();
     console.log(JSON.stringify(await telemetry.getStats()));`,
    [`--allow-read=${base}`, `--allow-write=${base}`, "--allow-env", "--allow-net=127.0.0.1"],
    { METRICS_API_URL: `http://127.0.0.1:${listener.addr.port}`, METRICS_API_TOKEN: "t" },
  );
  assert.ok(performance.now() - start < 20_000, "the process ended too late");
  assert.equal(code, 0);
  const stats = JSON.parse(stdout);
  assert.equal(stats.pending_api_posts, 10);
  assert.equal(stats.failures.api, undefined);
  listener.close();
  for (const connection of await accepted) connection.close();
});

/** A server that accepts connections. It answers those after the first `silent` ones with 200. */
function silentServer(silent: number) {
  const listener = Deno.listen({ port: 0, hostname: "127.0.0.1" });
  const connections: Deno.Conn[] = [];
  const accepting = (async () => {
    for await (const connection of listener) {
      if (connections.push(connection) <= silent) continue;
      await connection.read(new Uint8Array(65536));
      await connection.write(new TextEncoder().encode("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"));
    }
  })();
  return {
    env: { METRICS_API_URL: `http://127.0.0.1:${listener.addr.port}`, METRICS_API_TOKEN: "t" },
    count: () => connections.length,
    async [Symbol.asyncDispose]() {
      listener.close();
      await accepting;
      for (const connection of connections) connection.close();
    },
  };
}

Deno.test("without close(), a process ends within 5 s of its work although the API never answers", async () => {
  using folder = new TempFolder();
  const base = `${folder.path}/base`;
  const code = `const telemetry = new TelemetryClient({ base: ${JSON.stringify(base)}, onWarning() {} });
     for (let i = 0; i < 10; i++) await telemetry.trackRun("tester", "job", () => {});
     console.log(Date.now());`;
  await using server = silentServer(Infinity);
  const access = [`--allow-read=${base}`, `--allow-write=${base}`, "--allow-env", "--allow-net=127.0.0.1"];
  const { code: exitCode, stdout } = await agent(folder, code, access, server.env);
  const took = Date.now() - Number(stdout);
  assert.ok(took > 2000 && took < 5000, `the process ended ${took} ms after its work`);
  assert.deepEqual([exitCode, server.count()], [0, 1]);
});

Deno.test("without close(), a process that goes on posts the run when the API answers", async () => {
  using folder = new TempFolder();
  const base = `${folder.path}/base`;
  const code = `const telemetry = new TelemetryClient({ base: ${JSON.stringify(base)}, onWarning() {} });
     await telemetry.trackRun("tester", "job", () => {});
     for (let i = 0; i < 100 && (await telemetry.getStats()).pending_api_posts > 0; i++) {
       await new Promise((resolve) => setTimeout(resolve, 100));
     }
     console.log((await telemetry.getStats()).pending_api_posts);`;
  await using server = silentServer(1);
  const access = [`--allow-read=${base}`, `--allow-write=${base}`, "--allow-env", "--allow-net=127.0.0.1"];
  const { stdout } = await agent(folder, code, access, server.env);
  assert.deepEqual([stdout, server.count()], ["0\n", 2]);
});

Deno.test("nothing is posted in mock mode, when posting is off, or without a token", async () => {
  using folder = new TempFolder();
  let requests = 0;
  const server = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen: () => {} }, () => {
    requests += 1;
    return new Response();
  });
  const url = `http://127.0.0.1:${server.addr.port}`;
  for (
    const env of [
      { METRICS_API_URL: url, METRICS_API_TOKEN: "t", TELEMETRY_TEST_MODE: "mock" },
      { METRICS_API_URL: url, METRICS_API_TOKEN: "t", METRICS_API_ENABLED: "no" },
      { METRICS_API_URL: url },
    ]
  ) {
    const { stderr } = await agent(
      folder,
      `await using telemetry = new TelemetryClient({ base: ${JSON.stringify(folder.path + "/base")} });
       await telemetry.trackRun("tester", "job", () => {});`,
      ["--allow-read", "--allow-write", "--allow-env", "--allow-net"],
      env,
    );
    const isIncomplete = !("METRICS_API_TOKEN" in env);
    assert.equal(
      stderr.split("METRICS_API_URL is set without METRICS_API_TOKEN: nothing is posted").length,
      isIncomplete ? 2 : 1,
    );
  }
  assert.equal(requests, 0);
  await server.shutdown();
});

Deno.test("owner and host come from the environment, if it can be read", async () => {
  using folder = new TempFolder();
  const base = `${folder.path}/base`;
  const code = `await using telemetry = new TelemetryClient({ base: ${JSON.stringify(base)} });
    await telemetry.trackRun("tester", "job", () => {});`;
  const access = [`--allow-read=${base}`, `--allow-write=${base}`];
  const env = { AGENT_OWNER: "me", HOSTNAME: "box" };
  for (const more of [[], ["--allow-env=AGENT_OWNER,HOSTNAME"], ["--allow-env", "--allow-sys=hostname"]]) {
    await agent(folder, code, [...access, ...more], env);
  }
  const ends = linesOf(layoutOf(base)).filter((line) => line["status"] === "success");
  assert.deepEqual(ends.map((line) => line["agent_owner"]), [null, "me", "me"]);
  assert.deepEqual(ends.map((line) => line["host"]), [null, "box", Deno.hostname()]);
});

Deno.test(
  "using a store without permission to read the variables warns",
  async () => {
    using folder = new TempFolder();
    const base = `${folder.path}/base`;
    const run = (options: string, ...more: string[]) =>
      agent(
        folder,
        `await using telemetry = new TelemetryClient(${options});`,
        [`--allow-read=${[base, ...candidateFolders(Deno.build.os, undefined)]}`, `--allow-write=${base}`, ...more],
        { TELEMETRY_BASE_DIR: base },
      );
    const told = /using the store (?:D:)?[\\/]agent-metrics without permission .* --allow-env=(\S+)\)\n/;
    const { code, stderr } = await run("{}");
    assert.equal(code, 0);
    assert.ok(!pathExists(base));
    const variables = told.exec(stderr)?.[1];
    const home = Deno.build.os === "windows" ? "USERPROFILE" : "HOME";
    assert.equal(variables, `TELEMETRY_DB_PATH,TELEMETRY_BASE_DIR,AGENT_METRICS_DIR,TELEMETRY_NDJSON_DIR,${home}`);
    assert.doesNotMatch((await run(`{ base: ${JSON.stringify(base)} }`)).stderr, told);
    assert.doesNotMatch((await run("{}", `--allow-env=${variables}`)).stderr, told);
    assert.ok(pathExists(`${base}/raw`));
  },
);

Deno.test("no new store is created while permissions hide another one", async () => {
  using folder = new TempFolder();
  const home = `${folder.path}/home`;
  const store = `${home}/.telemetry`;
  for (const path of ["raw", "db"]) Deno.mkdirSync(`${store}/${path}`, { recursive: true });
  const code = `await using telemetry = new TelemetryClient(); await telemetry.trackRun("tester", "job", () => {});`;
  const { stderr } = await agent(folder, code, ["--allow-env"], { HOME: home });
  const told =
    /check whether the telemetry store is .* or run the program with "(--allow-read=\S+)" "(--allow-write=\S+)"\)\n/;
  // As a shell expands them.
  const flags = told.exec(stderr)?.slice(1).map((flag) =>
    flag.replaceAll("$HOME", home).replaceAll("%USERPROFILE%", home)
  );
  assert.ok(flags, stderr);
  assert.equal(linesOf(layoutOf(store)).length, 0);
  assert.equal((await agent(folder, code, ["--allow-env", ...flags], { HOME: home })).stderr, "");
  assert.equal(linesOf(layoutOf(store)).length, 2);
  // An existing store that can be used is used.
  const narrow = ["--allow-env", `--allow-read=${store}`, `--allow-write=${store}`];
  assert.match(
    (await agent(folder, code, narrow, { HOME: home })).stderr,
    /using the store \S+ without permission to read/,
  );
  assert.equal(linesOf(layoutOf(store)).length, 4);
});

Deno.test("when the process ends, open runs of trackRun end as failed, and all that was logged is kept", async (t) => {
  const ends: [name: string, code: number, end: string][] = [
    ["Deno.exit in the work", 3, "Deno.exit(3);"],
    ["Deno.exit after a wait", 3, "setTimeout(() => Deno.exit(3), 50); setInterval(() => {}, 1000);"],
    ["an uncaught error", 1, `setTimeout(() => { throw new Error("outside"); }, 50); setInterval(() => {}, 1000);`],
    ["an unhandled rejection", 1, `Promise.reject(new Error("outside")); setInterval(() => {}, 1000);`],
    ["nothing left to do", 0, ""],
    // By the two lines of the README.
    ...([["SIGTERM", 143], ["SIGINT", 130]] as const).map(([signal, code]): [string, number, string] => [
      signal,
      code,
      `${codeBlocks("ts").find((block) => block.includes("SIGTERM"))}
       setTimeout(() => Deno.kill(Deno.pid, "${signal}"), 20); setInterval(() => {}, 1000);`,
    ]),
  ];
  for (const [name, expected, end] of ends) {
    // Windows has no such signals.
    if (name.startsWith("SIG") && Deno.build.os === "windows") continue;
    await t.step(name, async () => {
      using folder = new TempFolder();
      const layout = layoutOf(`${folder.path}/base`);
      const { code, stderr } = await agent(
        folder,
        `const telemetry = new TelemetryClient({ base: ${JSON.stringify(layout.base)}, onWarning() {} });
         await telemetry.trackRun("tester", "ended", () => {});
         const running = await telemetry.startRun("tester", "manual");
         telemetry.endRun(running, { status: "partial" });
         telemetry.trackRun("tester", "open", (run) => {
           run.setMetrics({ pages: 7 });
           for (let n = 0; n < 500; n++) run.logEvent("event", { n });
           ${end}
           return new Promise(() => {});
         });`,
        [`--allow-read=${layout.base}`, `--allow-write=${layout.base}`, "--allow-run"],
      );
      assert.equal(code, expected, stderr);
      using db = new DatabaseSync(layout.database, { readOnly: true });
      const rows = db.prepare("SELECT job_type, status, error_summary, metrics_json FROM agent_runs ORDER BY 1").all();
      assert.deepEqual(rows.map((row) => Object.values(row)), [
        ["ended", "success", null, null],
        ["manual", "partial", null, null],
        ["open", "failed", "the process exited before the run ended", '{"pages":7}'],
      ]);
      const lines = linesOf(layout);
      assert.equal(lines.filter((line) => line["record_type"] === "event").length, 500);
      const last = lines.filter((line) => line["job_type"] === "open").at(-1)!;
      assert.deepEqual([last["status"], last["metrics_json"]], ["failed", '{"pages":7}']);
      assert.equal(lines.filter((line) => line["status"] === "failed").length, 1);
    });
  }
});

Deno.test("when the process ends, what all its clients have recorded is kept", async (t) => {
  for (const end of ["Deno.exit()", `throw new Error("outside")`]) {
    // The end comes between two writes, or while one is synced.
    for (const when of ["", "setTimeout(() => {", "clients[7].logEvent('r', 'synced').then(() => {"]) {
      const isLater = when !== "";
      await t.step(`${when} ${end}`, async () => {
        using folder = new TempFolder();
        const layout = layoutOf(`${folder.path}/base`);
        const { stderr } = await agent(
          folder,
          `const clients = Array.from({ length: 30 }, () => new TelemetryClient({ base: "${layout.base}", onWarning: console.error }));
           for (const client of clients) client.startRun("tester", "job").then((id) => client.logEvent(id, "later"));
           for (const client of clients) client.logEvent("r", "event");
           ${when} ${end}; ${isLater ? "}, 5)" : ""}`,
          [`--allow-read=${layout.base}`, `--allow-write=${layout.base}`],
        );
        assert.doesNotMatch(stderr, /lock/);
        const lines = linesOf(layout);
        assert.equal(lines.filter((line) => line["event_type"] === "event").length, 30);
        assert.equal(lines.filter((line) => line["job_type"] === "job").length, 30);
        using db = new DatabaseSync(layout.database, { readOnly: true });
        assert.equal(db.prepare("SELECT count(*) AS runs FROM agent_runs").get()!["runs"], 30);
      });
    }
  }
});

Deno.test("what the agent records in its own handlers of the end of the process is kept", async (t) => {
  const ends: [handler: string, end: string][] = [
    [`addEventListener("unload", last)`, ""],
    [`addEventListener("unload", last)`, "Deno.exit()"],
    [`process.on("exit", last)`, ""],
    [`process.on("exit", last)`, "process.exit()"],
    [`addEventListener("error", last)`, `throw new Error("outside")`],
    [`addEventListener("unhandledrejection", last)`, `Promise.reject(new Error("outside"))`],
  ];
  for (const [handler, end] of ends) {
    await t.step(`${handler}; ${end}`, async () => {
      using folder = new TempFolder();
      const layout = layoutOf(`${folder.path}/base`);
      await agent(
        folder,
        `import process from "node:process";
         const telemetry = new TelemetryClient({ base: "${layout.base}", onWarning() {} });
         const id = await telemetry.startRun("tester", "job");
         function last() {
           telemetry.logEvent(id, "last");
           telemetry.endRun(id, { status: "partial" });
         }
         ${handler};
         telemetry.logEvent(id, "event");
         setTimeout(() => { ${end} }, 20);`,
        [`--allow-read=${layout.base}`, `--allow-write=${layout.base}`],
      );
      const lines = linesOf(layout).map((line) => line["event_type"] ?? line["status"]);
      assert.deepEqual(lines, ["running", "event", "last", "partial"]);
      using db = new DatabaseSync(layout.database, { readOnly: true });
      assert.equal(db.prepare("SELECT status FROM agent_runs").get()!["status"], "partial");
    });
  }
});

Deno.test("an uncaught error that the agent prevents does not end the run", async () => {
  using folder = new TempFolder();
  const layout = layoutOf(`${folder.path}/base`);
  await agent(
    folder,
    `await using telemetry = new TelemetryClient({ base: ${JSON.stringify(layout.base)}, onWarning() {} });
     await telemetry.startRun("tester", "other");
     addEventListener("error", (event) => event.preventDefault());
     await telemetry.trackRun("tester", "job", async (run) => {
       for (let n = 0; n < 50; n++) run.logEvent("event", { n });
       setTimeout(() => { throw new Error("outside"); }, 0);
       await new Promise((resolve) => setTimeout(resolve, 50));
       await run.logEvent("last");
     });`,
    [`--allow-read=${layout.base}`, `--allow-write=${layout.base}`],
  );
  using db = new DatabaseSync(layout.database, { readOnly: true });
  assert.equal(db.prepare("SELECT status FROM agent_runs WHERE job_type='job'").get()!["status"], "success");
  const lines = linesOf(layout);
  assert.equal(lines.filter((line) => line["record_type"] === "event").length, 51);
  assert.equal(lines.at(-1)!["status"], "success");
});

Deno.test("endRun ends a run that an earlier process left running, once", async () => {
  await using stage = new Stage();
  const id = await stage.client.startRun("tester", "job", { product: "p", start_time: "2025-12-10T12:00:00Z" });
  await stage.client.close();
  const warnings: string[] = [];
  const onWarning = (message: string) => void warnings.push(message);
  await using later = new TelemetryClient({ base: stage.layout.base, onWarning });
  await Promise.all([later.endRun(id, { status: "partial" }), later.endRun(id, { status: "failed" })]);
  await later.endRun(id, { status: "failed" });
  assert.deepEqual(stage.lines().map(({ status }) => status), ["running", "partial"]);
  const [row] = stage.rows();
  assert.deepEqual([row!["status"], row!["product"]], ["partial", "p"]);
  assert.ok(Number(row!["duration_ms"]) > 86_400_000, `duration_ms is ${row!["duration_ms"]}`);
  assert.equal(stage.lines()[1]!["created_at"], null);
  assert.equal(warnings.length, 1);
});

Deno.test("when the process exits, the end of a run of an earlier process is recorded", async () => {
  await using stage = new Stage();
  const { base } = stage.layout;
  const id = await stage.client.startRun("tester", "job");
  const code = `const telemetry = new TelemetryClient({ base: "${base}" });
    telemetry.endRun("${id}", { pages: 3 });
    telemetry.endRun("${id}", { pages: 4 });
    Deno.exit();`;
  const { stderr } = await agent(stage.folder, code, [`--allow-read=${base}`, `--allow-write=${base}`]);
  assert.equal(stderr, "");
  assert.deepEqual(stage.lines().map(({ status, metrics_json }) => [status, metrics_json]), [
    ["running", null],
    ["success", '{"pages":3}'],
  ]);
  assert.equal(stage.rows()[0]!["status"], "success");
});

Deno.test("a burst of runs is complete in the database without close()", async () => {
  await using stage = new Stage();
  const { client } = stage;
  // On a fast disk, the ends of runs arrive while their starts are written to the database.
  for (let i = 0; i < 12; i++) await client.trackRun("tester", "warm", () => {});
  await Promise.all(Array.from({ length: 200 }, () => client.trackRun("tester", "burst", () => {})));
  const ids = await Promise.all(Array.from({ length: 1500 }, () => client.startRun("tester", "flood")));
  await Promise.all(ids.map((id) => client.endRun(id)));
  const counts = () => stage.rows("SELECT job_type, status, count(*) AS n FROM agent_runs GROUP BY 1, 2 ORDER BY 1");
  const wanted = [["burst", "success", 200], ["flood", "success", 1500], ["warm", "success", 12]];
  const done = () => stage.rows("SELECT 1 FROM agent_runs WHERE status='success'").length;
  for (let tries = 0; tries < 500 && done() < 1712; tries++) await new Promise((resolve) => setTimeout(resolve, 10));
  assert.deepEqual(counts().map((row) => Object.values(row)), wanted);
  assert.deepEqual(stage.warnings, []);
});

testWith(["linux"], "a database that cannot be opened leaks no file handles", async () => {
  await using stage = new Stage({
    prepare: (layout) => {
      createStorage(layout);
      Deno.writeTextFileSync(layout.database, "this is no database\n".repeat(500));
    },
  });
  for (let i = 0; i < 100; i++) await stage.client.trackRun("tester", "job", () => {});
  // Only those of this store: other tests of this process open files, too.
  const open = [...Deno.readDirSync("/proc/self/fd")].map(({ name }) => {
    try {
      return Deno.readLinkSync(`/proc/self/fd/${name}`);
    } catch {
      return ""; // It was closed.
    }
  }).filter((path) => path.startsWith(stage.layout.base));
  assert.ok(open.length < 20, `${open.length} files are open: ${new Set(open).keys().toArray()}`);
});

testWith(["linux"], "clients that are never closed share the open files of their database", async () => {
  await using stage = new Stage();
  const filesOf = () =>
    [...Deno.readDirSync("/proc/self/fd")].filter(({ name }) => {
      try {
        return Deno.readLinkSync(`/proc/self/fd/${name}`).startsWith(stage.layout.base);
      } catch {
        return false; // It was closed.
      }
    }).length;
  await stage.client.trackRun("tester", "job", () => {});
  const before = filesOf();
  const clients = Array.from({ length: 20 }, () => new TelemetryClient({ base: stage.layout.base }));
  for (const client of clients) await client.trackRun("tester", "job", () => {});
  assert.equal(filesOf(), before);
  for (const client of clients) await client.close();
  await stage.client.trackRun("tester", "job", () => {});
  await stage.client.close();
  assert.equal(filesOf(), 0);
  assert.equal(stage.rows().length, 22);
});

Deno.test("another process that is creating the store does not block the agent", async () => {
  await using stage = new Stage({ prepare: createStorage });
  Deno.removeSync(stage.layout.readme);
  const partials = [`${stage.layout.readme}.partial`, `${stage.layout.database}.partial`];
  const code = `for (const path of Deno.args) Deno.openSync(path, { write: true, create: true }).lockSync(true);
    console.log("held"); setInterval(() => {}, 1000);`;
  await using holder = await Holder.start(Deno.execPath(), ["eval", code, ...partials]);
  const start = performance.now();
  await using other = new TelemetryClient({ base: stage.layout.base, onWarning: () => {} });
  await other.trackRun("tester", "job", () => {});
  assert.ok(performance.now() - start < 1000, "the agent was blocked");
  await holder.kill();
  await other.trackRun("tester", "job", () => {});
  await other.close();
  assert.equal(stage.rows().length, 2);
});

Deno.test("getters that throw do not throw into the agent", async () => {
  await using stage = new Stage();
  const { client } = stage;
  const trap = {
    get product(): string {
      throw new Error("looked at");
    },
  };
  const id = await client.startRun("tester", "job", trap);
  await client.endRun(id, trap);
  await client.trackRun("tester", "tracked", (run) => run.setMetrics(trap));
  class Odd extends Error {
    override get message(): string {
      throw new Error("looked at");
    }
  }
  const odd = new Odd();
  await assert.rejects(client.trackRun("tester", "odd", () => Promise.reject(odd)), (error) => error === odd);
  assert.deepEqual(stage.rows().map((row) => row["status"]), ["success", "success", "failed"]);
  const noText = Object.create(null);
  for (const id of [Symbol("id"), noText, { toString: () => assert.fail("looked at") }]) {
    await client.endRun(id as string);
  }
  const options = {
    get limit(): number {
      throw new Error("looked at");
    },
  };
  assert.deepEqual(await client.postPending(options), { posted: 0, failed: 0, refused: 0 });
  assert.deepEqual(await client.postPending(), { posted: 0, failed: 0, refused: 0 });
  using folder = new TempFolder();
  const { code, stdout } = await agent(
    folder,
    `const trap = { get base() { throw new Error("looked at"); } };
    for (const options of [null, trap, { closeTimeoutMs: 5n }, { closeTimeoutMs: Symbol("ms") }, { onWarning: 7 }]) {
      await new (TelemetryClient as any)(options).close();
    }
    console.log("ok");`,
    [],
  );
  assert.deepEqual([code, stdout], [0, "ok\n"]);
});

Deno.test("metrics that are not an object are kept when fields are added", async () => {
  await using stage = new Stage();
  for (const metrics of ["[12345678901234567890]", "12345678901234567890", "plain text", null, '{"a":1}']) {
    const id = await stage.client.startRun("tester", "job", { metrics_json: metrics });
    await stage.client.endRun(id, { more: 2 } as object);
  }
  assert.deepEqual(stage.rows().map((row) => row["metrics_json"]), [
    '{"metrics_json":[12345678901234567890],"more":2}',
    '{"metrics_json":12345678901234567890,"more":2}',
    '{"metrics_json":"plain text","more":2}',
    '{"more":2}',
    '{"a":1,"more":2}',
  ]);
});

Deno.test("when db/ cannot be created, the log is still written", async () => {
  await using stage = new Stage({
    prepare: (layout) => {
      Deno.mkdirSync(layout.raw, { recursive: true });
      Deno.writeTextFileSync(layout.db, "a file");
    },
  });
  await stage.client.trackRun("tester", "job", () => {});
  assert.deepEqual(stage.lines().map((line) => line["status"]), ["running", "success"]);
  assert.ok(stage.warnings.length > 0);
});

Deno.test("two concurrent calls of postPending post each run once", async () => {
  using folder = new TempFolder();
  const seen: string[] = [];
  let accept = false;
  const server = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen: () => {} }, async (request) => {
    const { run_id } = await request.json();
    if (accept) seen.push(run_id);
    return Response.json({}, { status: accept ? 200 : 401 });
  });
  const base = `${folder.path}/base`;
  const env = { METRICS_API_URL: `http://127.0.0.1:${server.addr.port}/`, METRICS_API_TOKEN: "t" };
  const args = [`--allow-read=${base}`, `--allow-write=${base}`, "--allow-env", "--allow-net=127.0.0.1"];
  const head = `await using telemetry = new TelemetryClient({ base: ${JSON.stringify(base)}, onWarning: () => {} });`;
  await agent(folder, `${head} for (let i = 0; i < 5; i++) await telemetry.trackRun("a", "j", () => {});`, args, env);
  accept = true;
  const { stdout } = await agent(
    folder,
    `${head} const both = await Promise.all([telemetry.postPending(), telemetry.postPending()]);
     console.log(JSON.stringify(both.map(({ posted }) => posted)));`,
    args,
    env,
  );
  assert.equal(stdout, "[5,0]\n");
  assert.equal(new Set(seen).size, 5);
  assert.equal(seen.length, 5);
  await server.shutdown();
});

Deno.test("endStale ends the run of a killed agent, and a run that goes on overrides its end", async () => {
  await using stage = new Stage();
  const { client, layout } = stage;
  const code = `import { TelemetryClient } from "${ROOT_URL}mod.ts";
    const telemetry = new TelemetryClient({ base: ${JSON.stringify(layout.base)} });
    await telemetry.logEvent(await telemetry.startRun("dies", "job"), "last");
    console.log("held"); setInterval(() => {}, 1000);`;
  await using killed = await Holder.start(Deno.execPath(), ["eval", code]);
  await killed.kill();
  await using other = new TelemetryClient({ base: layout.base });
  const alive = await other.startRun("lives", "job");
  const own = await client.startRun("own", "job");
  assert.deepEqual(await client.endStale({ olderThan: "1h" }), []);
  assert.deepEqual((await client.endStale({ olderThan: "0m", agent: "dies" })).map(({ agent_name }) => agent_name), [
    "dies",
  ]);
  const statuses = () => Object.fromEntries(stage.rows().map(({ agent_name, status }) => [agent_name, status]));
  assert.deepEqual(statuses(), { dies: "failed", lives: "running", own: "running" });
  const [row] = stage.rows();
  assert.equal(row!["end_time"], stage.lines()[1]!["timestamp"]);
  assert.deepEqual((await client.endStale({ olderThan: "0m" })).map(({ run_id }) => run_id), [alive]);
  assert.deepEqual(statuses(), { dies: "failed", lives: "failed", own: "running" });
  await other.endRun(alive, { status: "partial" });
  await client.endRun(own);
  assert.deepEqual(statuses(), { dies: "failed", lives: "partial", own: "success" });
  assert.deepEqual(
    stage.lines().map(({ event_type, agent_name, status }) => event_type ?? `${agent_name} ${status}`),
    [
      "dies running",
      "last",
      "lives running",
      "own running",
      "dies failed",
      "lives failed",
      "lives partial",
      "own success",
    ],
  );
  assert.equal(stage.rows().find(({ status }) => status === "partial")!["error_summary"], null);
  assert.deepEqual(stage.warnings, []);
  assert.deepEqual(await client.endStale({ olderThan: "soon" }), []);
  assert.deepEqual(await client.endStale(undefined as never), []);
  assert.match(stage.warnings.join(), /takes a length of time, not "soon"/);
});
