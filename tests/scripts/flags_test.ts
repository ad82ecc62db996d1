import assert from "node:assert/strict";
import { FLAGS_OF } from "../../lib/cli/command.ts";
import { setUpDatabase } from "../../lib/store/database.ts";
import { layoutOf } from "../../lib/layout.ts";
import { createStorage } from "../../lib/store/folders.ts";
import {
  makeOldDatabase,
  type Output,
  paste,
  pathWithDeno,
  ROOT,
  run,
  type RunOptions,
  runScript,
  TempFolder,
  testWith,
  treeOf,
} from "../fixtures/mod.ts";

/** A line of the log. */
const LINE = `${
  JSON.stringify({
    run_id: "r",
    agent_name: "a",
    start_time: "2025-12-10T00:00:00Z",
    status: "success",
    record_type: "run",
  })
}\n`;
const SHARED = ["--base DIR", "--json", "--quiet", "--help", "--version"];
const SCRIPTS: [name: string, flags: string[]][] = [
  ["setup_storage", ["--with-database", ...SHARED]],
  ["setup_database", ["--print-schema NAME", ...SHARED]],
  ["backup_database", ["--keep N", "--dry-run", "--list", ...SHARED]],
  [
    "backup_telemetry_db",
    ["--keep-days N", "--dry-run", "--list", "--restore PATH", "--replay", "--yes", ...SHARED],
  ],
  [
    "recover_database",
    [
      ...[
        "--check-only",
        "--force",
        "--since TIME",
        "--no-salvage",
        "--with-backup PATH",
        "--dry-run",
        "--end-stale AGE",
      ],
      ...SHARED,
    ],
  ],
  [
    "export_csv",
    [
      ...[
        "--table NAME",
        "--output PATH",
        "--overwrite",
        "--columns A,B",
        "--since TIME",
        "--until TIME",
        "--updated-since TIME",
      ],
      ...["--agent A,B", "--status A,B", "--for PROGRAM", ...SHARED],
    ],
  ],
  [
    "report_runs",
    [
      ...[
        "--since TIME",
        "--until TIME",
        "--agent A,B",
        "--job-type A,B",
        "--stale-after AGE",
        "--failed",
        "--running",
      ],
      ...[
        "--run ID",
        "--follow",
        "--output PATH",
        "--overwrite",
        "--html",
        "--max-failed LIMIT",
        "--max-stale N",
        "--max-silent AGE",
      ],
      ...["--max-backup-age AGE", ...SHARED],
    ],
  ],
];

/** Runs a script with no permissions but these. */
function runWith(access: string[], name: string, args: string[], options: RunOptions = {}): Promise<Output> {
  return run(Deno.execPath(), ["run", "--no-prompt", ...access, `${ROOT}scripts/${name}.ts`, ...args], options);
}

/** Runs a printed command in a shell. */
function pasteDeno(printed: string, options: RunOptions = {}): Promise<Output> {
  return paste(printed.replace("deno run ", "deno run --no-prompt "), options);
}

/** The example that `--help` prints, on one line. */
function exampleIn(help: string): string {
  const example = /^ +(deno run \\\n(?: {2}.*\n)+)/m.exec(help)?.[1];
  assert.ok(example, help);
  return example.trim().replaceAll(/ \\\n +/g, " ");
}

/** The command that a refused script prints. */
function commandIn(stderr: string): string {
  const command = /^ {2}-> run: (deno run .*)$/m.exec(stderr)?.[1];
  assert.ok(command, stderr);
  return command;
}

/** Creates what `setup_storage --with-database` creates. */
async function setUp(base: string): Promise<void> {
  createStorage(layoutOf(base));
  await setUpDatabase(layoutOf(base));
}

/** A base folder in which both setup scripts work. */
function newStore(temp: TempFolder, name = "store"): string {
  const base = `${temp.path}/${name}`;
  Deno.mkdirSync(`${base}/db`, { recursive: true });
  return base;
}

Deno.test("a flag that is looked for in another script belongs to no other one", () => {
  for (const [owner, flag] of Object.entries(FLAGS_OF).flatMap(([name, flags]) => flags.map((flag) => [name, flag]))) {
    const owners = SCRIPTS.filter(([, flags]) => flags.some((usage) => usage.split(" ")[0] === `--${flag}`));
    assert.deepEqual(owners.map(([name]) => name), [owner], flag);
  }
});

for (const [name, flags] of SCRIPTS) {
  Deno.test(`${name} --help explains every flag in 80 columns, without any permission`, async () => {
    const { code, stdout, stderr } = await runWith([], name, ["--help"]);
    assert.deepEqual([code, stderr], [0, ""]);
    assert.deepEqual(await runWith([], name, ["-h"]), { code, stdout, stderr });
    const { version } = JSON.parse(Deno.readTextFileSync(`${ROOT}deno.json`));
    assert.equal((await runWith([], name, ["--version"])).stdout, `${name} ${version}\n`);
    assert.match(stdout, new RegExp(`^${name}: [^]+?\n\nusage: ${name} `));
    for (const line of stdout.split("\n")) assert.ok(line.length <= 80, `"${line}" is longer than 80 columns`);
    const options = stdout.slice(stdout.indexOf("\noptions:"), stdout.indexOf("\nwhere"));
    for (const flag of flags) assert.match(options, new RegExp(`^ {2}${flag}  +\\S`, "m"));
    assert.equal(options.match(/^ {2}--/gm)?.length, flags.length, "and no other option");
    for (const variable of ["TELEMETRY_DB_PATH", "TELEMETRY_BASE_DIR", "AGENT_METRICS_DIR"]) {
      assert.ok(stdout.includes(`$${variable}`), variable);
    }
    assert.match(stdout, /^exit codes: 0 .*, 1 .*, 2 .*/m);
    const writes = name === "report_runs" ? "" : "--allow-write=\\S+ ";
    assert.match(exampleIn(stdout), new RegExp(`^deno run --allow-read=\\S+ ${writes}scripts/\\w+\\.ts --base `));
  });

  testWith(["anyShell"], `the example of ${name} --help works as printed`, async () => {
    using temp = new TempFolder();
    const base = newStore(temp);
    if (!name.startsWith("setup")) await setUp(base);
    const { stdout } = await runWith([], name, ["--help"]);
    const { code, stderr } = await pasteDeno(exampleIn(stdout).replaceAll(/\/srv\/telemetry|C:[\\/]telemetry/g, base), {
      cwd: ROOT,
    });
    assert.deepEqual([code, stderr], [0, ""]);
    assert.ok("db/telemetry.sqlite" in treeOf(base));
  });

  Deno.test(`${name} exits with 2 on wrong usage, with one line for the problem and one for the solution`, async () => {
    using temp = new TempFolder();
    const wrong: string[][] = [["--nope"]];
    // All scripts parse their flags with the same function.
    if (name === "setup_storage") {
      wrong.push(["positional"], ["--base="]);
      wrong.push(["--base", temp.path, temp.path], ["--base"], ["--base", ""], ["--base", "--json"], ["--json=yes"]);
      wrong.push(["-x"], ["--base", temp.path, "--base", temp.path], ["--base=~/store"]);
    }
    if (name === "backup_database") {
      wrong.push(["--keeep", "3"], ["--kepe", "3"], ["--keep-day", "3"], ["--restore", "latest"], ["--constructor"]);
    }
    if (name === "backup_database") wrong.push(["--list", "--keep", "3"], ["--list", "--dry-run"]);
    if (name === "backup_telemetry_db") {
      wrong.push(["--replay"], ["--yes"], ["--list", "--dry-run"], ["--list", "--yes"], ["--list", "--restore", "x"], [
        "--restore",
        "",
      ], ["--list", "--keep-days", "3"]);
    }
    const access = [`--allow-read=${temp.path}`, `--allow-write=${temp.path}`];
    let all = "";
    for (const args of wrong) {
      const { code, stderr } = await runWith(access, name, args, { cwd: temp.path });
      all += stderr;
      assert.equal(code, 2, `${args}`);
      assert.match(stderr, new RegExp(`^${name}: [^\n]+\n  -> [^\n]*--help[^\n]*\n$`), `${args}`);
    }
    if (name === "setup_storage") {
      assert.match(all, /--base is given twice[^]*the shell did not expand "~"/);
      assert.match(all, /there is no flag --nope\n[^]*positional is neither a flag nor the value of one/);
      assert.equal(all.match(/--base needs a value/g)?.length, 4);
      assert.match(all, /--json takes no value/);
    }
    if (name === "backup_database") assert.equal(all.match(/did you mean --keep\? see/g)?.length, 3);
    else assert.doesNotMatch(all, /did you mean/);
    if (name === "backup_database") {
      assert.deepEqual(all.match(/is a flag of .*?;/g), ["is a flag of backup_telemetry_db;"]);
    }
    if (name === "backup_database") assert.match(all, /--restore is a flag of backup_telemetry_db; see/);
    assert.deepEqual(treeOf(temp.path), {});
  });

  // These need no database. The other scripts have their own tests.
  if (!name.startsWith("setup")) continue;

  Deno.test(`${name} --json prints one object on stdout, also on failure`, async () => {
    using temp = new TempFolder();
    const base = newStore(temp);
    Deno.writeTextFileSync(`${temp.path}/file`, "");
    const runs: [result: Output, ok: boolean, code: number][] = [
      [await runScript(name, base, ["--json"]), true, 0],
      [await runScript(name, base, ["--json", "--quiet"]), true, 0],
      [await runScript(name, `${temp.path}/file`, ["--json"]), false, 1],
      [await runWith([], name, ["--json", "--base", base]), false, 1],
      [await runScript(name, base, ["--json", "--nope"]), false, 2],
      [await runScript(name, base, ["--nope", "--json"]), false, 2],
    ];
    for (const [{ code, stdout }, ok, expected] of runs) {
      assert.equal(code, expected);
      assert.match(stdout, /^\{[^\n]*\}\n$/);
      const result = JSON.parse(stdout);
      assert.equal(result.ok, ok);
      if (ok) assert.equal(result.base, base);
      else for (const key of ["code", "message", "hint"]) assert.ok(result.error[key], key);
    }
  });

  Deno.test(`${name} --quiet prints only errors`, async () => {
    using temp = new TempFolder();
    const base = newStore(temp);
    assert.deepEqual(await runScript(name, base, ["--quiet"]), { code: 0, stdout: "", stderr: "" });
    const failed = await runScript(name, `${base}/db/telemetry.sqlite`, ["--quiet"]);
    if (name === "setup_database") {
      assert.deepEqual([failed.code, failed.stdout], [1, ""]);
      assert.match(failed.stderr, /^setup_database: .+\n {2}-> .+\n$/);
    }
  });

  testWith(
    ["anyShell"],
    `without permissions, ${name} prints a complete command that works when pasted`,
    async () => {
      using temp = new TempFolder();
      // Windows has no quote in names.
      const quoted = Deno.build.os === "windows" ? `it's (my) $HOME & store` : `it's "my" $HOME & store`;
      const folders = [quoted, "ünï—日本 100%25"];
      for (const folder of folders) {
        const base = newStore(temp, folder);
        const refused = await runWith([], name, ["--base", base, "--quiet"]);
        assert.deepEqual([refused.code, refused.stdout], [1, ""]);
        assert.match(refused.stderr, new RegExp(`^${name}: [^\n]+\n  -> run: [^\n]+\n$`));
        assert.deepEqual(treeOf(base), { db: "folder" }, "nothing was created");
        const pasted = await pasteDeno(commandIn(refused.stderr), { cwd: temp.path });
        assert.deepEqual(pasted, { code: 0, stdout: "", stderr: "" });
        assert.notDeepEqual(treeOf(base), { db: "folder" });
      }
      assert.equal(
        Object.keys(treeOf(temp.path)).filter((path) => !path.includes("/")).length,
        folders.length,
        "nothing else was created",
      );
    },
  );

  testWith(["anyShell"], `${name} does not use a permission for one folder in another`, async () => {
    using temp = new TempFolder();
    const [here, elsewhere] = [newStore(temp, "here"), newStore(temp, "elsewhere")];
    const access = ["--allow-env", `--allow-read=${here}`, `--allow-write=${here}`];
    const env = { TELEMETRY_BASE_DIR: elsewhere };
    const tree = treeOf(temp.path);
    const partly: string[][] = [
      access,
      [...access.slice(0, 2), `--allow-read=${temp.path}`],
      ["--allow-env", `--allow-write=${temp.path}`],
    ];
    for (const granted of partly) {
      const refused = await runWith(granted, name, ["--quiet"], { env });
      assert.deepEqual([refused.code, refused.stdout], [1, ""]);
      assert.ok(commandIn(refused.stderr).includes(elsewhere), refused.stderr);
      assert.deepEqual(treeOf(temp.path), tree, "nothing was created");
    }
    const refused = await runWith(access, name, ["--quiet"], { env });
    const pasted = await pasteDeno(commandIn(refused.stderr), { env });
    assert.deepEqual(pasted, { code: 0, stdout: "", stderr: "" });
    assert.deepEqual(treeOf(here), { db: "folder" });
    assert.notDeepEqual(treeOf(elsewhere), { db: "folder" });
  });

  testWith(["anyShell"], `without permissions and --base, ${name} prints commands that work when pasted`, async () => {
    using temp = new TempFolder();
    const base = newStore(temp);
    const env = { TELEMETRY_BASE_DIR: base, HOME: temp.path };
    // The first command grants the variables. The store that they name may need a second one.
    let result = await runWith([], name, ["--quiet"], { env });
    for (let pastes = 0; result.code === 1 && pastes < 2; pastes++) {
      result = await pasteDeno(commandIn(result.stderr), { env });
    }
    assert.deepEqual(result, { code: 0, stdout: "", stderr: "" });
    assert.notDeepEqual(treeOf(base), { db: "folder" });
  });
}

/** The folders that each script writes, and the runs that need all of them. Does not use the table that is tested. */
const NARROW: Record<string, { folders: string[]; runs: string[][]; prepare?: (base: string) => void }> = {
  setup_storage: { folders: [""], runs: [["--with-database"]] },
  setup_database: {
    folders: ["/db", "/config", "/backups"],
    runs: [[]],
    prepare: (base) => {
      Deno.removeSync(`${base}/db/telemetry.sqlite`);
      makeOldDatabase(`${base}/db/telemetry.sqlite`, "v2");
      Deno.removeSync(`${base}/config`, { recursive: true });
    },
  },
  backup_database: { folders: ["/db", "/backups"], runs: [["--keep", "1"], ["--keep", "1"], ["--list"]] },
  backup_telemetry_db: { folders: ["/db", "/backups"], runs: [[], ["--restore", "latest", "--yes", "--replay"]] },
  recover_database: {
    folders: ["/db", "/reports"],
    runs: [[], ["--force"]],
    prepare: (base) => Deno.writeTextFileSync(`${base}/db/telemetry.sqlite`, "damaged"),
  },
  export_csv: { folders: ["/db", "/exports"], runs: [[], ["--table", "events"]] },
};

for (const [name, { folders, runs, prepare }] of Object.entries(NARROW)) {
  Deno.test(`${name} needs only read on the store and write on its folders`, async () => {
    using temp = new TempFolder();
    const base = `${temp.path}/store`;
    await setUp(base);
    Deno.writeTextFileSync(`${base}/raw/events_20251210.ndjson`, LINE);
    prepare?.(base);
    const before = treeOf(base);
    // 1. Without one of the folders, nothing changes, and the printed command has all of them.
    for (const missing of folders) {
      const write = folders.filter((folder) => folder !== missing).map((folder) => `--allow-write=${base}${folder}`);
      const access = [`--allow-read=${base}`, ...write];
      const refused = await runWith(access, name, ["--base", base, "--quiet"]);
      assert.deepEqual([refused.code, refused.stdout], [1, ""]);
      assert.match(refused.stderr, new RegExp(`^${name}: Deno does not let this program write ${base}${missing}\n`));
      for (const folder of folders) assert.ok(commandIn(refused.stderr).includes(base + folder), refused.stderr);
      assert.deepEqual(treeOf(base), before);
    }
    // 2. With exactly its folders, it works and changes nothing outside them.
    const access = [`--allow-read=${base}`, `--allow-write=${folders.map((folder) => base + folder)}`];
    for (const args of runs) {
      const { code, stderr } = await runWith(access, name, ["--base", base, ...args]);
      assert.equal(code, 0, `${args}: ${stderr}`);
      assert.doesNotMatch(stderr, /Deno|permission/);
    }
    const isOutside = ([path]: [string, unknown]) => !folders.some((folder) => `/${path}/`.startsWith(`${folder}/`));
    const outside = (tree: Record<string, string>) => Object.fromEntries(Object.entries(tree).filter(isOutside));
    const after = treeOf(base);
    if (name !== "setup_storage") assert.notDeepEqual(after, before);
    assert.deepEqual(outside(after), outside(before));
  });
}

Deno.test("a flag that writes fewer folders needs fewer permissions", async () => {
  using temp = new TempFolder();
  const base = `${temp.path}/store`;
  await setUp(base);
  const output = `${temp.path}/runs.csv`;
  const runs: [name: string, read: string[], write: string[], args: string[]][] = [
    ["recover_database", [], [], ["--check-only"]],
    ["recover_database", [], [], ["--end-stale", "24h", "--dry-run"]],
    ["recover_database", [], [`${base}/raw`, `${base}/reports`], ["--end-stale", "24h"]],
    ["export_csv", [], [], ["--output", "-"]],
    ["export_csv", [temp.path], [output, `${output}.partial`], ["--output", output]],
  ];
  for (const [name, read, write, args] of runs) {
    const access = [`--allow-read=${[base, ...read]}`, `--allow-write=${[`${base}/db`, ...write]}`];
    const { code, stderr } = await runWith(access, name, ["--base", base, ...args]);
    assert.deepEqual([code, stderr], [0, ""], `${args}`);
  }
});

testWith(
  ["anyShell"],
  "for a base with a comma, which ends a path in Deno's flags, the printed command works",
  async () => {
    using temp = new TempFolder();
    const base = newStore(temp, "a,b");
    const { code, stderr } = await runWith([], "setup_storage", ["--base", base, "--quiet"]);
    assert.equal(code, 1);
    assert.match(stderr, /^setup_storage: [^\n]+\n {2}-> [^\n]+\n$/);
    assert.deepEqual(await pasteDeno(commandIn(stderr)), { code: 0, stdout: "", stderr: "" });
  },
);

testWith(["linux"], "names of files and flags are printed without characters that a terminal acts on", async () => {
  using temp = new TempFolder();
  const base = newStore(temp);
  const evil = "\x1b[31m\u202e";
  Deno.mkdirSync(`${base}/raw`);
  Deno.writeTextFileSync(`${base}/raw/events_20251210.ndjson.${evil}`, LINE);
  const cases = [
    ["recover_database", "--base", base, "--force"],
    ["export_csv", "--base", base, "--output", `${base}/${evil}.csv`],
    ["export_csv", "--base", base, "--columns", evil],
    ["report_runs", "--base", `/nowhere/${evil}`],
    ["report_runs", "--base", base, `--${evil}`],
  ];
  for (const [name, ...args] of cases) {
    const { stdout, stderr } = await runWith(["-A"], name!, args);
    assert.match(stdout + stderr, /␛\[31m�/, name);
    for (const character of evil.slice(0, 1) + evil.slice(-1)) assert.ok(!(stdout + stderr).includes(character), name);
  }
});

testWith(["shell"], "a closed pipe on stdout is not an error", async () => {
  using temp = new TempFolder();
  const base = newStore(temp);
  const line = `set -e; deno run --no-prompt --allow-read='${base}' --allow-write='${base}' \
    '${ROOT}scripts/setup_storage.ts' --base '${base}' | true`;
  const { code, stderr } = await run("sh", ["-c", line], { env: { PATH: pathWithDeno() } });
  assert.deepEqual([code, stderr], [0, ""]);
});

testWith(["linux", "shell"], "a full disk on stdout is a failure, not a defect", async () => {
  using temp = new TempFolder();
  const base = newStore(temp);
  for (const flags of ["", "--json"]) {
    const line = `deno run --no-prompt --allow-read='${base}' --allow-write='${base}' \
      '${ROOT}scripts/setup_storage.ts' --base '${base}' ${flags} >/dev/full`;
    const { code, stderr } = await run("sh", ["-c", line], { env: { PATH: pathWithDeno() } });
    assert.equal(code, 1);
    assert.match(stderr, /^setup_storage: cannot write to stdout.*\n {2}-> .*\n$/);
  }
});
