/**
 * Runs what the README shows, each block in the home of a new user. What is not as written: where the clone and the store
 * are, and `npx`, which starts this Deno.
 */
import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import {
  codeBlocks,
  type Need,
  type Output,
  pathWithDeno,
  README,
  ROOT,
  run,
  TempFolder,
  testWith,
  treeOf,
} from "./fixtures/mod.ts";

/** A home with a store, and a shell that knows no other one. */
class NewUser implements Disposable {
  readonly #temp = new TempFolder();
  readonly home = this.#temp.path;
  readonly base = `${this.home}/.telemetry`;

  constructor() {
    Deno.mkdirSync(`${this.home}/bin`);
    const npx = `#!/bin/sh\nset -e\n[ "$1 $2" = "-y ${VERSION}" ]\nshift 2\nexec '${Deno.execPath()}' "$@"\n`;
    Deno.writeTextFileSync(`${this.home}/bin/npx`, npx, { mode: 0o755 });
  }

  /** Runs lines of the README, which must succeed. */
  async paste(lines: string, cwd = ROOT): Promise<Output> {
    const here = lines.replaceAll(/\/opt\/toolkit\/?/g, `'${ROOT}'`).replaceAll("/srv/telemetry", this.base);
    // Without the variable, root would create a store of the machine.
    const PATH = `${this.home}/bin:${pathWithDeno()}`;
    const env = { HOME: this.home, TELEMETRY_BASE_DIR: this.base, store: this.base, PATH };
    const done = await run("sh", ["-ec", here], { cwd, env });
    assert.equal(done.code, 0, `${here}\n${done.stdout}${done.stderr}`);
    return done;
  }

  /** Creates the store, then saves each TypeScript example as `agent.ts` and runs it with the command for agents. */
  async recordRuns(): Promise<string[]> {
    await this.paste("deno task setup");
    const printed = [];
    for (const example of codeBlocks("ts")) {
      Deno.writeTextFileSync(`${this.home}/agent.ts`, example.replaceAll("/opt/toolkit/", ROOT));
      const { stdout, stderr } = await this.paste(block("sh", "agent.ts"), this.home);
      assert.equal(stderr, "");
      printed.push(stdout);
    }
    return printed;
  }

  [Symbol.dispose](): void {
    this.#temp[Symbol.dispose]();
  }
}

const SCRIPTS = [...Deno.readDirSync(`${ROOT}scripts`)].map(({ name }) => name.replace(".ts", ""));
const VERSION = /deno@[\d.]+/.exec(README)![0];

/** The block that contains a text, which no other block does. */
function block(language: string, text: string): string {
  const found = codeBlocks(language).filter((code) => code.includes(text));
  assert.equal(found.length, 1, `${found.length} blocks contain ${text}`);
  return found[0]!;
}

/** How each block is run: its language, a text that only it contains, and the test, or where the test is. */
const BLOCKS: [
  string,
  string,
  { needs: Need[]; title: string; test(user: NewUser, code: string): unknown } | string,
][] = [
  ["sh", "git clone", {
    needs: ["shell", "git"],
    title: "the first commands make a clone and a store",
    async test(user, code) {
      // The last command runs this test.
      const lines = code.replace(/^npx .* task test .*\n/m, "").replace("REPOSITORY", `'${ROOT}'`);
      assert.equal(lines.split("\n").length, code.split("\n").length - 1);
      const { stdout } = await user.paste(lines, user.home);
      assert.ok(stdout.includes(`the store is ready in ${user.base}\n`), stdout);
      assert.ok("toolkit/mod.ts" in treeOf(user.home));
      assert.ok("db/telemetry.sqlite" in treeOf(user.base));
    },
  }],
  ["sh", "agent.ts", {
    needs: ["shell"],
    title: "every TypeScript example runs with the command for agents, and the queries find its runs",
    async test(user) {
      assert.deepEqual(await user.recordRuns(), ["12 files\n", "", "", "{ posted: 0, failed: 0, refused: 0 }\n"]);
      using db = new DatabaseSync(`${user.base}/db/telemetry.sqlite`);
      const columns = "job_type, trigger_type, status, metrics_json, output_summary, host";
      const rows = db.prepare(`SELECT ${columns} FROM agent_runs`).all();
      assert.deepEqual(rows.map((row) => Object.values(row)), [
        ["index_files", "cli", "success", '{"pages":3}', null, Deno.hostname()],
        ["report", "scheduler", "partial", null, "12 files, one without a title", Deno.hostname()],
      ]);
      const counts = codeBlocks("sql")[0]!.trim().split(/;\n?/).slice(0, -1).map((sql) => db.prepare(sql).all().length);
      assert.deepEqual(counts, [2, 0, 0, 2, 1]);
      // The last example, with an API.
      await using server = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen() {} }, () => Response.json({}));
      const command = block("sh", "agent.ts").replace("--allow-env ", `--allow-env --allow-net=127.0.0.1 `);
      const api = `export METRICS_API_URL=http://127.0.0.1:${server.addr.port} METRICS_API_TOKEN=t`;
      const { stdout } = await user.paste(`${api}\n${command}`, user.home);
      assert.equal(stdout, "{ posted: 2, failed: 0, refused: 0 }\n");
    },
  }],
  ["sh", "| jq", {
    needs: ["shell", "jq", "sqliteBox"],
    title: "the commands that look at log and database show the runs",
    async test(user, code) {
      await user.recordRuns();
      // A log of another day.
      Deno.writeTextFileSync(`${user.base}/raw/events_20251210.ndjson`, '{"run_id":"old","status":"success"}\n');
      // With -f, tail would not end.
      const [log, database] = code.replace("tail -qf", "tail -q").split("\n") as [string, string];
      assert.deepEqual(
        (await user.paste(log)).stdout.trim().split("\n").map((line) => JSON.parse(line).slice(1)),
        [[null, "success"], [null, "running"], ["checkpoint", null], [null, "success"]]
          .concat([[null, "running"], ["rendered", null], [null, "partial"]]),
      );
      Deno.writeTextFileSync(`${user.home}/queries.sql`, codeBlocks("sql")[0]!);
      const { stdout, stderr } = await user.paste(`${database} < '${user.home}/queries.sql'`);
      assert.equal(stderr, "");
      assert.match(stdout, /│ indexer +│ index_files │ success │/);
    },
  }],
  ["sh", "scripts/export_csv.ts", {
    needs: ["shell"],
    title: "the example of narrow permissions suffices",
    async test(user, code) {
      await user.recordRuns();
      const { stdout, stderr } = await user.paste(code);
      assert.equal(stderr, "");
      assert.match(stdout, /exports\/agent_runs_\w+\.csv: 2 runs/);
    },
  }],
  ["sh", "deno compile", {
    needs: ["shell"],
    title: "the example of a compiled program bakes permissions that suffice",
    async test(user, code) {
      await user.recordRuns();
      // The permissions of a compiled program are those of a script that is started with its flags.
      const program = code.trim().replace("deno compile", "deno run").replace(" -o backup ", " ");
      const { stdout, stderr } = await user.paste(`${program} --base ${user.base}`);
      assert.equal(stderr, "");
      assert.match(stdout, /^backup \S+backups\/telemetry\.backup\.\w+\.sqlite: 2 runs/);
    },
  }],
  ["sh", "useradd", "tests/scripts/automation_test.ts"],
  ["cron", "report_runs.ts", "tests/scripts/automation_test.ts"],
  ["ini", "[Service]", "tests/scripts/automation_test.ts"],
  ["ini", "[Timer]", "tests/scripts/automation_test.ts"],
  ["bat", "schtasks", "tests/scripts/automation_test.ts, without schtasks"],
  ["bash", "archive_logs.sh", "tests/scripts/automation_test.ts"],
  ["sh", "--print-schema postgres", "tests/scripts/postgres_test.ts"],
  ["sh", 'psql "$FLEET" -q -f', "tests/scripts/postgres_test.ts"],
  ["sql", "read_csv", "tests/scripts/postgres_test.ts"],
  ["sql", "FROM agent_runs", "the tests of agent.ts and of jq"],
  ["ts", "trackRun", "the test of agent.ts"],
  ["ts", "startRun", "the test of agent.ts"],
  ["ts", "addSignalListener", "the test of agent.ts, and tests/lib/writer/client_test.ts"],
  ["ts", "postPending", "the test of agent.ts"],
];

for (const [language, text, how] of BLOCKS) {
  if (typeof how === "string") continue;
  testWith(how.needs, `README: ${how.title}`, async () => {
    using user = new NewUser();
    await how.test(user, block(language, text));
  });
}

Deno.test("README: every block of commands and code is run by a test", () => {
  const blocks = [...README.matchAll(/^```(\w+)$/gm)];
  const run = new Set(BLOCKS.map(([language, text]) => block(language, text)));
  assert.deepEqual([run.size, BLOCKS.length], [blocks.length, blocks.length]);
});

/**
 * How each command in the text is run: what it prints, in this order on one store, or where it is run, or why it is not.
 * Those of other programs are here, too.
 */
const IN_TEXT: Record<string, RegExp | string> = {
  "npm install -g --prefix ~/.local deno@2.9.6": "not run: it downloads 42 MB",
  'deno() { npx -y deno@2.9.6 "$@"; }': /^$/,
  "deno task demo": "tests/demo_test.ts",
  "deno check agent.ts": /^$/,
  "deno run": "the test of agent.ts",
  "deno task report_runs": /^2 runs {2}1 success {2}1 partial\n(.*\n)+indexer /m,
  "deno task report_runs --html": /^\S+\/reports\/runs_\w+\.html\n$/,
  "deno doc mod.ts": /class TelemetryClient/,
  "deno task NAME": "the others",
  "deno task --cwd /opt/toolkit NAME": /^the store is ready/,
  "recover_database --end-stale": "below, with an age",
  "deno run -P scripts/NAME.ts": "tests/scripts/launch_test.ts",
  "recover_database --end-stale 24h": /^0 stale runs ended as failed/m,
  "recover_database --check-only": /is healthy\n {2}2 runs/,
  "recover_database --force": /^recovered \S+: 2 runs/,
  "backup_telemetry_db --list": /^telemetry_backup_\w+\.sqlite .* v3 +2 +ok$/m,
  "backup_telemetry_db --restore latest --replay": /^restored \S+: 2 runs/,
  "command -v deno": /\/deno\n$/,
  "crontab -e": "not run: it changes the machine",
  "systemctl enable --now telemetry-backup.timer": "not run: it changes the machine",
  "systemctl --failed": "not run: it needs systemd",
  "rsync -a /srv/telemetry/raw/ backup-host:telemetry_raw/": "the next test",
  "deno task recover_database --force --since 90d": /^recovered \S+: 2 runs/,
  "deno task compile": "tests/scripts/automation_test.ts",
  "deno task check": ".ci/run",
  "deno task test": ".ci/run",
  "deno task test:long": ".ci/run",
  "deno task crash --rounds 1000": /^Nothing was lost$/m,
  "deno eval 0": "a baseline of deno task bench",
  "deno task bench": "not run: it takes many minutes",
};

testWith(["shell"], "README: every command in the text works", async () => {
  const text = README.replaceAll(/^```\w*\n.*?^```$/gms, "");
  const programs = ["deno", "npm", "npx", "git", "rsync", "systemctl", "crontab", "command", ...SCRIPTS];
  const spans = [...text.matchAll(/`([^`]+)`/g)].map(([, span]) => span!.replaceAll(/\s+/g, " "));
  const commands = spans.filter((span) => span.includes(" ") && programs.includes(span.split(/\W/, 1)[0]!));
  assert.deepEqual([...new Set(commands)].sort(), Object.keys(IN_TEXT).sort());
  using user = new NewUser();
  await user.recordRuns();
  await user.paste("deno task backup_telemetry_db");
  for (const [command, expected] of Object.entries(IN_TEXT)) {
    if (typeof expected === "string") continue;
    const isScript = SCRIPTS.includes(command.split(" ", 1)[0]!);
    const line = (isScript ? `deno task ${command}` : command).replace("NAME", "setup")
      .replace("--rounds 1000", "--rounds 1").replace(/--restore.*/, "$& --yes") // instead of an answer
      .replace('$@"; }', "$&; deno -V >&2");
    const { stdout } = await user.paste(line, command.includes("agent.ts") ? user.home : ROOT);
    assert.match(stdout, expected, `${command}\n${stdout}`);
  }
});

testWith(["shell", "rsync"], "README: the copy of the log by rsync is complete", async () => {
  using user = new NewUser();
  await user.recordRuns();
  const command = Object.keys(IN_TEXT).find((text) => text.startsWith("rsync"))!;
  await user.paste(command.replace("backup-host:", ""), user.home);
  assert.deepEqual(treeOf(`${user.home}/telemetry_raw`), treeOf(`${user.base}/raw`));
});

Deno.test("README: it names the version of Deno that the checks use, and every script, task, module and flag", async () => {
  const versions = [
    README,
    ...[".ci/run", ".github/workflows/ci.yml"].map((path) => Deno.readTextFileSync(ROOT + path)),
  ]
    .map((text) => [...new Set(text.match(/deno@[\d.]+/g))]);
  assert.deepEqual(versions, [[VERSION], [VERSION], [VERSION]]);
  for (const name of SCRIPTS) {
    assert.ok(README.includes(`\`${name}\``), `${name} is not in the README`);
    const { stdout } = await run(Deno.execPath(), ["run", "-q", "--no-prompt", `${ROOT}scripts/${name}.ts`, "--help"]);
    for (const [flag] of stdout.matchAll(/--[a-z-]+(?=[ \]])/g)) {
      if (!flag.startsWith("--allow-")) assert.ok(README.includes(flag), `${flag} of ${name} is not in the README`);
    }
  }
  const picture = README.slice(README.indexOf("\nlib/\n"));
  const files = Object.keys(treeOf(`${ROOT}lib`)).filter((path) => path.endsWith(".ts"));
  for (const path of files) assert.match(picture, new RegExp(`\\b${path.split("/").at(-1)}\\b`), path);
  const { tasks } = JSON.parse(Deno.readTextFileSync(`${ROOT}deno.json`));
  for (const [task] of README.matchAll(/(?<=deno(?:@[\d.]+)? task )\w+/g)) {
    assert.ok(task === "NAME" || task in tasks, `there is no task ${task}`);
  }
});

Deno.test("README: the messages that it explains are those of the scripts", () => {
  const section = README.slice(README.indexOf("### When something is wrong"), README.indexOf("### Beside the Python"));
  const quotes = [...section.matchAll(/"([^"]+)"(?=[^|]*\|[^|]*\|\n)/g)].map(([, message]) => message!);
  assert.equal(quotes.length, 8);
  const sources = ["lib", "scripts"].flatMap((folder) =>
    Object.keys(treeOf(ROOT + folder)).filter((path) => path.endsWith(".ts")).map((path) => `${ROOT}${folder}/${path}`)
  );
  const code = sources.map((path) => Deno.readTextFileSync(path)).join();
  for (const message of quotes) {
    // Not what depends on the case: the version, and the number of the verb.
    assert.ok(code.includes(message.replace(/\d+$/, "").replace("violates ", "")), `no message says "${message}"`);
  }
});
