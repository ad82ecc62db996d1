/** `deno task NAME` starts a script with exactly the permissions that the run needs. */
import assert from "node:assert/strict";
import { COMMANDS, type Output, ROOT, run, type RunOptions, TempFolder, testWith } from "../fixtures/mod.ts";

function task(args: string[], options: RunOptions = {}): Promise<Output> {
  return run(Deno.execPath(), ["task", "--quiet", "--config", `${ROOT}deno.json`, ...args], options);
}

async function setUp(base: string): Promise<string> {
  const { code, stderr } = await task(["setup", "--base", base]);
  assert.equal(code, 0, stderr);
  return base;
}

/** Prints what a started script may do. */
const PROBE = `
const state = (name: "read" | "write", path: string) => Deno.permissions.querySync({ name, path }).state === "granted";
const paths = ["", "raw", "db", "backups", "reports", "exports", "config"].map((name) => Deno.args[1] + "/" + name);
const others = ["net", "run", "ffi", "sys"] as const;
console.log(JSON.stringify({
  read: paths.filter((path) => state("read", path)),
  write: paths.filter((path) => state("write", path)),
  outside: [state("read", "/"), state("write", "/"), state("read", Deno.args[3] ?? "/"), state("write", Deno.args[3] ?? "/")],
  env: Deno.permissions.querySync({ name: "env", variable: "PATH" }).state,
  others: others.filter((name) => Deno.permissions.querySync({ name }).state === "granted"),
}));`;

testWith(["unix"], "a started script may write only its folders, and only setup may write raw/", async () => {
  using temp = new TempFolder();
  const base = `${temp.path}/a store`;
  // The launcher with the commands of the real scripts, which print their permissions instead of doing their work.
  const copied = await run("cp", ["-r", `${ROOT}lib`, temp.path]);
  assert.equal(copied.code, 0, copied.stderr);
  Deno.mkdirSync(`${temp.path}/scripts`);
  Deno.mkdirSync(base);
  const wanted: Record<string, string[]> = {
    setup_storage: ["", "raw", "db", "backups", "reports", "exports", "config"],
    setup_database: ["db", "backups", "config"],
    backup_database: ["db", "backups"],
    backup_telemetry_db: ["db", "backups"],
    recover_database: ["db", "reports"],
    export_csv: ["db", "exports"],
  };
  for (const [name, command] of Object.entries(COMMANDS)) {
    const code = `export const COMMAND = ${JSON.stringify(command)};\nif (import.meta.main) {${PROBE}}`;
    Deno.writeTextFileSync(`${temp.path}/scripts/${name}.ts`, code);
    const launch = ["run", "-q", "-A", `${temp.path}/lib/cli/launch.ts`, name, "--base", base];
    const { stdout, stderr } = await run(Deno.execPath(), launch);
    assert.equal(stderr, "");
    const found = JSON.parse(stdout);
    const pathOf = (folder: string) => `${base}/${folder}`;
    const every = ["", "raw", "db", "backups", "reports", "exports", "config"].map(pathOf);
    assert.deepEqual(found.read, every, name);
    assert.deepEqual(found.write, every.filter((path) => wanted[name]!.map(pathOf).includes(path)), name);
    assert.deepEqual([found.outside, found.env, found.others], [[false, false, false, false], "prompt", []], name);
  }
  // A path that is given to a flag is granted, too.
  const elsewhere = `${temp.path}/elsewhere`;
  for (
    const [name, flag, expected] of [["export_csv", "--output", true], ["recover_database", "--with-backup", false]]
  ) {
    const launch = ["run", "-q", "-A", `${temp.path}/lib/cli/launch.ts`, String(name), "--base", base];
    const { stdout } = await run(Deno.execPath(), [...launch, String(flag), `${elsewhere}/file`]);
    assert.deepEqual(JSON.parse(stdout).outside, [false, false, true, expected], String(name));
  }
});

testWith(["unix"], "each task works for any store, by --base and by TELEMETRY_BASE_DIR", async () => {
  using temp = new TempFolder();
  const output = `${temp.path}/out.csv`;
  for (const base of [`${temp.path}/it's "my" $HOME`, `${temp.path}/a,b`]) {
    await setUp(base);
    for (const name of Object.keys(COMMANDS)) {
      const args = name === "export_csv" ? [name, "--output", output] : [name];
      for (const [more, env] of [[["--base", base], {}], [[], { TELEMETRY_BASE_DIR: base }]] as const) {
        const { code, stderr } = await task([...args, ...more, "--quiet"], { env });
        assert.deepEqual([code, stderr], [0, ""], `${name} ${more}`);
        if (name === "export_csv") Deno.removeSync(output);
      }
    }
  }
});

testWith(["unix"], "a store behind a link, and a restore of a file outside the store, work as tasks", async () => {
  using temp = new TempFolder();
  const real = await setUp(`${temp.path}/real`);
  Deno.symlinkSync(real, `${temp.path}/link`);
  assert.equal((await task(["backup_telemetry_db", "--base", `${temp.path}/link`])).code, 0);
  const [backup] = Deno.readDirSync(`${real}/backups`);
  Deno.renameSync(`${real}/backups/${backup!.name}`, `${temp.path}/mine.sqlite`);
  const restore = [
    "backup_telemetry_db",
    "--restore",
    `${temp.path}/mine.sqlite`,
    "--yes",
    "--base",
    `${temp.path}/link`,
  ];
  const { code, stderr } = await task(restore);
  assert.deepEqual([code, stderr], [0, ""]);
});

Deno.test("a task passes on exit codes, and wrong usage is reported by the script", async () => {
  using temp = new TempFolder();
  const missing = await task(["backup_database", "--base", `${temp.path}/none`]);
  assert.equal(missing.code, 1);
  assert.match(missing.stderr, /^backup_database: .*none does not exist\n {2}-> /);
  const wrong = await task(["backup_database", "--nope"]);
  assert.equal(wrong.code, 2);
  assert.match(wrong.stderr, /--help/);
  const help = await task(["export_csv", "--help"]);
  assert.deepEqual([help.code, help.stderr], [0, ""]);
});

testWith(["unix"], "relative paths of a task start where it was called", async () => {
  using temp = new TempFolder();
  const cwd = `${temp.path}/here`;
  Deno.mkdirSync(cwd);
  assert.equal((await task(["setup", "--base", "store"], { cwd, env: { INIT_CWD: cwd } })).code, 0);
  assert.ok(Deno.statSync(`${cwd}/store/raw`).isDirectory);
});

Deno.test("the permission set and the scripts' first lines name no store of a user", () => {
  const { permissions, tasks } = JSON.parse(Deno.readTextFileSync(`${ROOT}deno.json`));
  assert.deepEqual(Object.keys(permissions), ["default"]);
  assert.ok(!permissions.default.env.includes("HOME"));
  for (const name of Object.keys(COMMANDS)) {
    const [first] = Deno.readTextFileSync(`${ROOT}scripts/${name}.ts`).split("\n");
    assert.equal(first, "#!/usr/bin/env -S deno run -q -P");
    assert.ok(tasks[name].command.length < 100, tasks[name].command);
  }
});

testWith(["unix", "noDefaultStore"], "-P finds no store on a machine without one, and prints what to do", async () => {
  using temp = new TempFolder();
  const args = ["run", "-q", "--no-prompt", "-P", `${ROOT}scripts/backup_database.ts`];
  const { code, stderr } = await run(Deno.execPath(), args, { cwd: temp.path });
  assert.equal(code, 1);
  assert.match(stderr, /^backup_database: \/agent-metrics does not exist\n {2}-> .*setup_storage.*\n$/);
});
