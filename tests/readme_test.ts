import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { TelemetryClient } from "../mod.ts";
import {
  codeBlocks,
  pathWithDeno,
  README,
  ROOT,
  run,
  runScript,
  TempFolder,
  testWith,
  treeOf,
} from "./fixtures/mod.ts";

testWith(
  ["shell"],
  "every TypeScript example of the README runs, from another folder, with the command that it shows",
  async () => {
    using folder = new TempFolder();
    const base = `${folder.path}/.telemetry`;
    const command = codeBlocks("sh").find((block) => block.includes("agent.ts"))!;
    assert.ok(command.includes("--allow-sys=hostname"));
    const examples = codeBlocks("ts");
    assert.equal(examples.length, 4);
    for (const example of examples) {
      Deno.writeTextFileSync(`${folder.path}/agent.ts`, example.replaceAll("/opt/toolkit/", ROOT));
      // A folder of the machine must not be found.
      const here = command.replaceAll(/,\/[\w/-]+/g, "").replace("deno run ", "deno run -q --no-prompt ");
      const env = { TELEMETRY_BASE_DIR: base, HOME: folder.path, PATH: pathWithDeno() };
      const program = run("sh", ["-ec", here], { cwd: folder.path, env });
      const { code, stderr } = await program;
      assert.equal(code, 0, stderr);
    }
    using db = new DatabaseSync(`${base}/db/telemetry.sqlite`);
    const rows = db.prepare("SELECT job_type, trigger_type, status, metrics_json, output_summary FROM agent_runs")
      .all();
    assert.deepEqual(rows.map((row) => Object.values(row)), [
      ["index_files", "cli", "success", '{"pages":3}', null],
      ["report", "scheduler", "partial", null, "12 files, one without a title"],
    ]);
    const [queries] = codeBlocks("sql");
    const statements = queries!.split(";").filter((sql) => sql.trim() !== "");
    assert.equal(statements.length, 5);
    for (const sql of statements) db.prepare(sql).all();
    assert.equal(db.prepare(statements[4]!).all().length, 1);
  },
);

testWith(["shell", "git"], "the first commands of the README make a clone and a store", async () => {
  using temp = new TempFolder();
  const [commands] = codeBlocks("sh");
  const versions = new Set(README.match(/deno@[\d.]+/g));
  assert.deepEqual([...versions], [/deno@[\d.]+/.exec(Deno.readTextFileSync(`${ROOT}.ci/run`))![0]]);
  // The last command runs this test, and without the variable root would create a store of the machine.
  const here = commands!.replace(/^.* task test .*$/m, "").replace("REPOSITORY toolkit ", `'${ROOT}' toolkit `)
    .replaceAll(/npx -y deno@\S+/g, "deno");
  const env = { TELEMETRY_BASE_DIR: `${temp.path}/base`, HOME: temp.path, PATH: pathWithDeno() };
  const { code, stdout, stderr } = await run("sh", ["-ec", here], { cwd: temp.path, env });
  assert.equal(code, 0, stderr);
  assert.ok(stdout.includes(`the store is ready in ${temp.path}/base\n`), stdout);
  assert.ok("toolkit/mod.ts" in treeOf(temp.path));
  assert.ok("db/telemetry.sqlite" in treeOf(`${temp.path}/base`));
});

testWith(["shell", "jq", "sqlite3"], "the commands that look at log and database show the runs", async () => {
  using temp = new TempFolder();
  {
    await using telemetry = new TelemetryClient({ base: temp.path, onWarning() {} });
    await telemetry.trackRun("indexer", "index_files", (run) => run.logEvent("checkpoint"));
  }
  const commands = codeBlocks("sh").find((block) => block.includes("| jq"))!;
  // `tail -f` would not end.
  const [log, database] = commands.replace("tail -f", "cat").split("\n") as [string, string];
  const env = { store: temp.path };
  const read = await run("sh", ["-ec", log], { env });
  assert.deepEqual(
    read.stdout.trim().split("\n").map((line) => JSON.parse(line).slice(1)),
    [[null, "running"], ["checkpoint", null], [null, "success"]],
    read.stderr,
  );
  const [queries] = codeBlocks("sql");
  Deno.writeTextFileSync(`${temp.path}/queries.sql`, queries!);
  const { code, stdout, stderr } = await run("sh", ["-ec", `${database} < ${temp.path}/queries.sql`], { env });
  assert.deepEqual([code, stderr], [0, ""]);
  assert.match(stdout, /│ indexer +│ index_files │ success │/);
});

testWith(["shell"], "the examples of narrow permissions suffice, for a script and for a compiled program", async () => {
  using temp = new TempFolder();
  const base = `${temp.path}/store`;
  await runScript("setup_storage", base, ["--with-database"]);
  const [exporting, compiling] = ["export_csv.ts", "deno compile"].map((text) =>
    codeBlocks("sh").find((block) => block.includes(text))!.replaceAll("/srv/telemetry", base)
  ) as [string, string];
  // The permissions of a compiled program are those of a script that is started with its flags.
  const program = compiling.trim().replace("deno compile", "deno run").replace(/ -o \S+/, "");
  for (const command of [exporting, `${program} --base ${base}`]) {
    const line = command.replace("deno run", "deno run -q --no-prompt");
    const { code, stdout, stderr } = await run("sh", ["-ec", line], { cwd: ROOT, env: { PATH: pathWithDeno() } });
    assert.deepEqual([code, stderr], [0, ""]);
    assert.match(
      stdout,
      /exports\/agent_runs_\w+\.csv: 0 runs|backup \S+backups\/telemetry\.backup\.\w+\.sqlite: 0 runs/,
    );
  }
});

Deno.test("every block of commands and code in the README is run by a test, or named here", () => {
  const blocks = [...README.matchAll(/^```(\w+)$/gm)].map(([, language]) => language!);
  const counts = Object.fromEntries([...new Set(blocks)].map((name) => [name, codeBlocks(name).length]));
  assert.deepEqual(counts, {
    // First commands, agent, look, narrow export, user, compile (all above), two for PostgreSQL (postgres_test.ts). That of
    // the user is not run: it creates one.
    sh: 8,
    ts: 4,
    // Above, and postgres_test.ts.
    sql: 2,
    // automation_test.ts
    cron: 1,
    ini: 2,
    bat: 1,
    bash: 1,
  });
});

Deno.test("the README names every script, task and module there is, and every flag of the scripts", async () => {
  for (const { name } of Deno.readDirSync(`${ROOT}scripts`)) {
    const script = name.replace(".ts", "");
    assert.ok(README.includes(`\`${script}\``), `${script} is not in the README`);
    const { stdout } = await run(Deno.execPath(), [
      "run",
      "--quiet",
      "--no-prompt",
      `${ROOT}scripts/${name}`,
      "--help",
    ]);
    for (const [flag] of stdout.matchAll(/--[a-z-]+(?=[ \]])/g)) {
      if (!flag.startsWith("--allow-")) assert.ok(README.includes(flag), `${flag} of ${script} is not in the README`);
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
