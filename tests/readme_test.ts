import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { codeBlocks, pathWithDeno, README, ROOT, run, TempFolder, testWith, treeOf } from "./fixtures/mod.ts";

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
