import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { command, ROOT, run, TempFolder, treeOf } from "./fixtures/mod.ts";

const README = Deno.readTextFileSync(`${ROOT}README.md`);

Deno.test("the library example of the README runs as it stands", async () => {
  using folder = new TempFolder();
  const base = `${folder.path}/base`;
  const [example, ...others] = [...README.matchAll(/```ts\n(.*?)```/gs)].map(([, code]) => code!);
  assert.ok(example && others.length === 0, "the README has one example");
  const args = ["run", "--quiet", "--no-prompt", "--allow-env", `--allow-read=${base}`, `--allow-write=${base}`, "-"];
  // From standard input, so that its `./mod.ts` is the one of the working folder.
  const program = command(Deno.execPath(), args, {
    cwd: ROOT,
    env: { TELEMETRY_BASE_DIR: base },
    stdin: "piped",
  }).spawn();
  const input = program.stdin.getWriter();
  await input.write(new TextEncoder().encode(example));
  await input.close();
  const { code, stderr } = await program.output();
  assert.equal(code, 0, new TextDecoder().decode(stderr));
  using db = new DatabaseSync(`${base}/db/telemetry.sqlite`);
  const rows = db.prepare("SELECT job_type, trigger_type, status, metrics_json, output_summary FROM agent_runs").all();
  assert.deepEqual(rows.map((row) => Object.values(row)), [
    ["index_files", "cli", "success", '{"pages":3}', null],
    ["report", "scheduler", "partial", null, "12 files, one without a title"],
  ]);
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
