/** `deno task NAME` starts a script with exactly the permissions that the run needs. */
import assert from "node:assert/strict";
import { defaultFolders } from "../../lib/layout.ts";
import {
  command,
  COMMANDS,
  type Output,
  pathWithDeno,
  pathWithoutStores,
  ROOT,
  run,
  type RunOptions,
  slashes,
  TempFolder,
  testWith,
  withoutStores,
  withoutStoreWarnings,
} from "../fixtures/mod.ts";

async function task(args: string[], options: RunOptions = {}): Promise<Output> {
  const output = await run(Deno.execPath(), ["task", "--quiet", "--config", `${ROOT}deno.json`, ...args], options);
  return { ...output, stderr: withoutStoreWarnings(output.stderr) };
}

async function setUp(base: string): Promise<string> {
  const { code, stderr } = await task(["setup", "--base", base]);
  assert.equal(code, 0, stderr);
  return base;
}

/** What stands in for the work of each script: prints which permissions the process holds, or tests what it inherits. */
const CODE = `
  const isGranted = (permission: Deno.PermissionDescriptor) =>
    Deno.permissions.querySync(permission).state === "granted";
  const { paths, variables, wait, echo } = PROBE;
  if (echo) await Deno.stdin.readable.pipeTo(Deno.stdout.writable);
  else if (wait) {
    for (const [code, signal] of ["SIGHUP", "SIGINT", "SIGTERM"].entries()) {
      Deno.addSignalListener(signal as Deno.Signal, () => Deno.exit(40 + code));
    }
    console.log("ready");
    setTimeout(() => {}, 60_000);
  } else {
    console.log(JSON.stringify({
      read: paths.filter((path: string) => isGranted({ name: "read", path })),
      write: paths.filter((path: string) => isGranted({ name: "write", path })),
      env: variables.filter((variable: string) => isGranted({ name: "env", variable })),
      others: (["net", "run", "ffi", "sys", "import"] as const).filter((name) => isGranted({ name })),
    }));
  }`;

/** A line of the log. */
const RUN = {
  run_id: "r",
  agent_name: "a",
  start_time: "2025-12-10T00:00:00Z",
  status: "success",
  record_type: "run",
};

/** The permissions that a started script holds. */
interface Held {
  read: string[];
  write: string[];
  env: string[];
  others: string[];
}

const FOLDERS = ["", "/raw", "/db", "/backups", "/reports", "/exports", "/config", "/logs", "/of its own"];
const HOME = Deno.build.os === "windows" ? "USERPROFILE" : "HOME";
const VARIABLES = ["TELEMETRY_DB_PATH", "TELEMETRY_BASE_DIR", "AGENT_METRICS_DIR", "TELEMETRY_NDJSON_DIR"];

/** A copy of the toolkit whose scripts are probes: launcher, tasks and commands are those of the toolkit. */
class ProbeToolkit {
  readonly #folder: string;
  readonly #probe: string;

  constructor(temp: TempFolder) {
    this.#folder = `${temp.path}/tool kit`;
    this.#probe = `${this.#folder}/scripts/probe.json`;
    Deno.mkdirSync(`${this.#folder}/scripts`, { recursive: true });
    const launch = [...withoutStores().map((flag) => `'${flag}'`), "lib/cli/launch.ts"].join(" ");
    const config = Deno.readTextFileSync(`${ROOT}deno.json`).replaceAll("lib/cli/launch.ts", launch);
    Deno.writeTextFileSync(`${this.#folder}/deno.json`, config);
    copyFolder(`${ROOT}lib`, `${this.#folder}/lib`);
    for (const [name, command] of Object.entries(COMMANDS)) {
      // Modules are imported without a permission.
      Deno.writeTextFileSync(
        `${this.#folder}/scripts/${name}.ts`,
        `import PROBE from "./probe.json" with { type: "json" };
         export const COMMAND = ${JSON.stringify(command)};
         if (import.meta.main) {${CODE}}`,
      );
    }
  }

  /** The arguments of Deno that run a task, whose script then does what `probe` says. */
  arguments(args: string[], probe: object): string[] {
    Deno.writeTextFileSync(this.#probe, JSON.stringify({ variables: [...VARIABLES, HOME, "PATH"], ...probe }));
    return ["task", "--quiet", "--config", `${this.#folder}/deno.json`, ...args];
  }

  /** Runs a task; which of `paths` and of the variables it may use. */
  async heldBy(args: string[], paths: string[], options: RunOptions = {}): Promise<Held> {
    const { stdout, stderr } = await run(Deno.execPath(), this.arguments(args, { paths }), options);
    assert.equal(stderr, "");
    return JSON.parse(stdout);
  }
}

function copyFolder(from: string, to: string): void {
  Deno.mkdirSync(to);
  for (const { name, isDirectory } of Deno.readDirSync(from)) {
    if (isDirectory) copyFolder(`${from}/${name}`, `${to}/${name}`);
    else Deno.copyFileSync(`${from}/${name}`, `${to}/${name}`);
  }
}

Deno.test("a task may read the store and write only the folders of its script", async () => {
  using temp = new TempFolder();
  const toolkit = new ProbeToolkit(temp);
  const base = `${temp.path}/a store`;
  const log = `${temp.path}/log`;
  const outside = [temp.path, "/", `${temp.path}/elsewhere`, ROOT.slice(0, -1)];
  const written: Record<string, string[]> = {
    setup_storage: FOLDERS,
    setup_database: ["/db", "/backups", "/config"],
    backup_database: ["/db", "/backups"],
    backup_telemetry_db: ["/db", "/backups"],
    recover_database: ["/db", "/reports"],
    export_csv: ["/db", "/exports"],
    report_runs: [],
  };
  const every = FOLDERS.map((folder) => base + folder);
  for (const name of Object.keys(COMMANDS)) {
    const write = every.filter((path) => written[name]!.includes(path.slice(base.length)));
    const byFlag = await toolkit.heldBy([name, "--base", base], [...every, log, ...outside]);
    assert.deepEqual(byFlag, { read: every, write, env: [], others: [] }, name);
    const env = { TELEMETRY_BASE_DIR: base, TELEMETRY_NDJSON_DIR: log };
    const byVariable = await toolkit.heldBy([name], [...every, log, ...outside], { env });
    const isSetup = name === "setup_storage";
    assert.deepEqual(byVariable, {
      read: [...every, log],
      write: isSetup ? [...write, log] : write,
      env: [...VARIABLES, HOME],
      others: [],
    }, name);
  }
});

Deno.test("a flag that is a path grants that path and nothing beside it", async () => {
  using temp = new TempFolder();
  const toolkit = new ProbeToolkit(temp);
  const base = `${temp.path}/store`;
  const elsewhere = `${temp.path}/elsewhere`;
  for (const folder of [base, elsewhere, `${base}/raw`]) Deno.mkdirSync(folder);
  const every = FOLDERS.map((folder) => base + folder);
  const file = `${elsewhere}/file`;
  const paths = [...every, file, `${file}.partial`, `${file}-wal`, `${file}2`, elsewhere, `${base}/runs.csv`];
  const held = async (...args: string[]) => {
    const { read, write } = await toolkit.heldBy([...args, "--base", base], paths, {
      cwd: base,
      env: { INIT_CWD: base },
    });
    return { read: read.filter((path) => !path.startsWith(base)), write };
  };
  assert.deepEqual(await held("export_csv", "--output", file), {
    read: [file, `${file}.partial`, `${file}-wal`, `${file}2`, elsewhere],
    write: [`${base}/db`, file, `${file}.partial`],
  });
  assert.deepEqual((await held("export_csv", "--output", "-")).write, [`${base}/db`]);
  // In the store's own folder: neither that folder nor the log.
  assert.deepEqual((await held("export_csv", "--output", "runs.csv")).write, [`${base}/db`, `${base}/runs.csv`]);
  for (const [name, flag] of [["recover_database", "--with-backup"], ["backup_telemetry_db", "--restore"]] as const) {
    const { read, write } = await held(name, flag, file);
    assert.deepEqual(read, [file, `${file}-wal`]);
    assert.deepEqual(write.filter((path) => !path.startsWith(base)), []);
  }
  assert.deepEqual((await held("recover_database", "--with-backup", "latest")).write, [
    `${base}/db`,
    `${base}/backups`,
    `${base}/reports`,
  ]);
  assert.deepEqual(await held("recover_database", "--check-only"), { read: [], write: [`${base}/db`] });
  const nothing = { read: [], write: [], env: [], others: [] };
  for (const args of [["setup_database", "--print-schema", "sqlite"], ["export_csv", "--help"], ["setup", "--nope"]]) {
    assert.deepEqual(await toolkit.heldBy(args, paths), nothing, `${args}`);
  }
});

testWith(["links"], "links in a store are granted with the paths that they lead to", async () => {
  using temp = new TempFolder();
  const toolkit = new ProbeToolkit(temp);
  const [base, disk] = [`${temp.path}/link`, `${temp.path}/disk`];
  for (const folder of ["real", "disk", "disk/raw", "disk/backups"]) Deno.mkdirSync(`${temp.path}/${folder}`);
  Deno.symlinkSync("real", base);
  for (const name of ["raw", "backups"]) Deno.symlinkSync(`${disk}/${name}`, `${base}/${name}`);
  const paths = [base, `${temp.path}/real/db`, `${disk}/raw`, `${disk}/backups`, disk];
  const { read, write } = await toolkit.heldBy(["backup_database", "--base", base], paths);
  assert.deepEqual(read, paths.slice(0, -1));
  assert.deepEqual(write, [`${temp.path}/real/db`, `${disk}/backups`]);
  // A folder that does not exist yet, behind a link.
  const below = `${base}/none/store`;
  const held = await toolkit.heldBy(["setup_storage", "--base", below], [below, `${temp.path}/real/none/store`]);
  assert.deepEqual(held.write, held.read);
  assert.equal(held.write.length, 2);
});

Deno.test("without a store, only setup_storage may write a raw/ folder", async () => {
  using temp = new TempFolder();
  const toolkit = new ProbeToolkit(temp);
  const env = { HOME: temp.path };
  const bases = defaultFolders(Deno.build.os, temp.path).map(slashes);
  const logs = bases.map((base) => `${base}/raw`);
  for (const name of Object.keys(COMMANDS)) {
    const { read, write } = await toolkit.heldBy([name], [...bases, "/opt/telemetry", ...logs], { env });
    assert.deepEqual(read, [...bases, "/opt/telemetry", ...logs]);
    assert.deepEqual(write, name === "setup_storage" ? [...bases, ...logs] : [], name);
  }
});

testWith(["signals"], "a task passes on stdin and signals", async () => {
  using temp = new TempFolder();
  const toolkit = new ProbeToolkit(temp);
  const start = (probe: object) =>
    command(Deno.execPath(), toolkit.arguments(["recover_database"], probe), { stdin: "piped" }).spawn();
  const echo = start({ echo: true });
  const writer = echo.stdin.getWriter();
  await writer.write(new TextEncoder().encode("yes\n"));
  await writer.close();
  assert.equal(new TextDecoder().decode((await echo.output()).stdout), "yes\n");
  for (const [code, signal] of (["SIGHUP", "SIGINT", "SIGTERM"] as const).entries()) {
    const process = start({ wait: true });
    await process.stdin.close();
    const reader = process.stdout.getReader();
    await reader.read();
    process.kill(signal);
    reader.releaseLock();
    assert.equal((await process.output()).code, 40 + code, signal);
  }
});

Deno.test("each task works for any store, by --base and by TELEMETRY_BASE_DIR", async () => {
  using temp = new TempFolder();
  const output = `${temp.path}/out.csv`;
  // Windows has no quotation mark in names.
  const odd = Deno.build.os === "windows" ? "it's my $HOME & store" : `it's "my" $HOME`;
  for (const base of [`${temp.path}/${odd}`, `${temp.path}/a,b`]) {
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

testWith(["links"], "a store behind a link, and a restore of a file outside the store, work as tasks", async () => {
  using temp = new TempFolder();
  const real = await setUp(`${temp.path}/real`);
  const base = `${temp.path}/link`;
  Deno.symlinkSync(real, base);
  Deno.writeTextFileSync(`${real}/raw/events_20251210.ndjson`, "");
  assert.equal((await task(["backup_telemetry_db", "--base", base])).code, 0);
  const [backup] = Deno.readDirSync(`${real}/backups`);
  const moved = `${temp.path}/mine.sqlite`;
  Deno.renameSync(`${real}/backups/${backup!.name}`, moved);
  for (
    const args of [
      ["backup_telemetry_db", "--restore", moved, "--yes"],
      ["recover_database", "--force", "--with-backup", moved],
      ["export_csv", "--output", `${base}/runs.csv`],
    ]
  ) {
    const { code, stderr } = await task([...args, "--base", base]);
    assert.deepEqual([code, stderr], [0, ""], `${args}`);
  }
  assert.ok(Deno.statSync(`${real}/runs.csv`).isFile);
});

Deno.test(
  "a task warns of an ignored TELEMETRY_NDJSON_DIR, and not of a store that was not chosen",
  async () => {
    using temp = new TempFolder();
    const [one, two] = [await setUp(`${temp.path}/one`), await setUp(`${temp.path}/two`)];
    const chosen = await task(["backup_database"], { env: { TELEMETRY_BASE_DIR: one, AGENT_METRICS_DIR: two } });
    assert.deepEqual([chosen.code, chosen.stderr], [0, ""]);
    const moved = await task(["backup_database", "--base", one], { env: { TELEMETRY_NDJSON_DIR: two } });
    assert.equal(moved.code, 0);
    assert.match(moved.stderr, /^warning: TELEMETRY_NDJSON_DIR .* is ignored with --base.*\n$/);
  },
);

testWith(["signals"], "the command in a hint can be pasted, in any folder", async () => {
  using temp = new TempFolder();
  const base = await setUp(`${temp.path}/it's "my" store`);
  Deno.writeTextFileSync(`${base}/raw/events_20251210.ndjson`, `${JSON.stringify(RUN)}\n`);
  for (const options of [{ cwd: temp.path }, { cwd: ROOT }]) {
    for (const { name } of Deno.readDirSync(`${base}/db`)) Deno.removeSync(`${base}/db/${name}`);
    const { stdout, stderr } = await task(["setup", "--base", base], options);
    assert.doesNotMatch(stdout, /^next:/m);
    const [, pasted = ""] = /1 log of earlier runs: run (deno task .*) to bring them back\n$/.exec(stderr) ?? [];
    assert.equal(pasted.includes("--cwd"), options.cwd === temp.path, stderr);
    const recovered = await run("sh", ["-c", pasted], { ...options, env: { PATH: pathWithDeno() } });
    assert.deepEqual([recovered.code, /: 1 run, /.test(recovered.stdout)], [0, true], pasted + recovered.stderr);
  }
});

testWith(
  ["linux"],
  "a path that depends on the current folder is named",
  async () => {
    using temp = new TempFolder();
    await setUp(`${temp.path}/store`);
    const env = { TELEMETRY_BASE_DIR: "store", TELEMETRY_NDJSON_DIR: "logs" };
    const relative = await task(["backup_database"], { cwd: temp.path, env });
    assert.equal(relative.code, 0);
    for (const [name, path] of Object.entries(env)) {
      const what =
        `warning: ${name}=${path} depends on the current folder, which is ${temp.path}: set the whole path\n`;
      assert.ok(relative.stderr.includes(what), relative.stderr);
    }
  },
);

Deno.test("a task passes on exit codes, and wrong usage is reported by the script", async () => {
  using temp = new TempFolder();
  const missing = await task(["backup_database", "--base", `${temp.path}/none`]);
  assert.equal(missing.code, 1);
  assert.match(missing.stderr, /^backup_database: .*none does not exist\n {2}-> /);
  for (const args of [["backup_database", "--nope"], ["export_csv", "--output", ""]]) {
    const wrong = await task(args);
    assert.equal(wrong.code, 2, `${args}`);
    assert.match(wrong.stderr, /^\w+: .*\n {2}-> .*--help\n$/);
  }
  const help = await task(["export_csv", "--help"]);
  assert.deepEqual([help.code, help.stderr], [0, ""]);
});

Deno.test("relative paths of a task start where it was called", async () => {
  using temp = new TempFolder();
  const env = { INIT_CWD: temp.path };
  assert.equal((await task(["setup", "--base", "store"], { cwd: temp.path, env })).code, 0);
  assert.ok(Deno.statSync(`${temp.path}/store/raw`).isDirectory);
  const exported = await task(["export_csv", "--base", "./store/", "--output", "runs.csv"], { cwd: temp.path, env });
  assert.equal(exported.code, 0, exported.stderr);
  assert.ok(Deno.statSync(`${temp.path}/runs.csv`).isFile);
});

Deno.test("the permission set and the scripts' first lines name no store of a user", () => {
  const { permissions, tasks } = JSON.parse(Deno.readTextFileSync(`${ROOT}deno.json`));
  assert.deepEqual(Object.keys(permissions), ["default"]);
  assert.deepEqual(permissions.default.env, VARIABLES);
  assert.deepEqual(permissions.default.read, permissions.default.write);
  for (const name of Object.keys(COMMANDS)) {
    const [first] = Deno.readTextFileSync(`${ROOT}scripts/${name}.ts`).split(/\r?\n/);
    assert.equal(first, "#!/usr/bin/env -S deno run -q -P");
    assert.ok(tasks[name].command.length < 100, tasks[name].command);
  }
});

testWith(["shell"], "-P finds no store on a machine without one, and prints what to do", async () => {
  using temp = new TempFolder();
  // Changes nothing, should somebody create a store just now.
  const script = [`${ROOT}scripts/recover_database.ts`, "--check-only"] as const;
  for (const line of [["deno", "run", "-q", "--no-prompt", "-P", ...script], script]) {
    const [program, ...args] = line;
    const { code, stderr } = await run(program!, args, { cwd: temp.path, env: { PATH: pathWithoutStores(temp.path) } });
    assert.equal(code, 1);
    assert.match(stderr, /^recover_database: \/agent-metrics does not exist\n {2}-> .*setup_storage.*\n$/);
  }
});
