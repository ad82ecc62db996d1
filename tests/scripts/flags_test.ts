import assert from "node:assert/strict";
import { setUpDatabase } from "../../lib/store/database.ts";
import { layoutOf } from "../../lib/layout.ts";
import { createStorage } from "../../lib/store/folders.ts";
import {
  type Output,
  pathWithDeno,
  ROOT,
  run,
  type RunOptions,
  runScript,
  TempFolder,
  testWith,
  treeOf,
} from "../fixtures/mod.ts";

const SHARED = ["--base DIR", "--json", "--quiet", "--help"];
const SCRIPTS: [name: string, flags: string[]][] = [
  ["setup_storage", ["--with-database", ...SHARED]],
  ["setup_database", ["--print-schema NAME", ...SHARED]],
  ["backup_database", ["--keep N", "--dry-run", "--list", ...SHARED]],
  [
    "backup_telemetry_db",
    ["--keep-days N", "--dry-run", "--list", "--restore PATH", "--replay", "--yes", ...SHARED],
  ],
  ["recover_database", ["--check-only", "--force", "--no-salvage", "--with-backup PATH", ...SHARED]],
  [
    "export_csv",
    [
      ...["--table NAME", "--output PATH", "--columns A,B", "--since TIME", "--until TIME", "--updated-since TIME"],
      ...["--agent A,B", "--status A,B", "--for PROGRAM", ...SHARED],
    ],
  ],
];

/** Runs a script with no permissions but these. */
function runWith(access: string[], name: string, args: string[], options: RunOptions = {}): Promise<Output> {
  return run(Deno.execPath(), ["run", "--no-prompt", ...access, `${ROOT}scripts/${name}.ts`, ...args], options);
}

/** Runs what a script printed, as a shell takes it. */
function paste(printed: string, options: RunOptions = {}): Promise<Output> {
  const line = printed.replace("deno run ", "deno run --no-prompt ");
  return run("sh", ["-c", line], { ...options, env: { PATH: pathWithDeno(), ...options.env } });
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

/** What `setup_storage --with-database` makes. */
async function setUp(base: string): Promise<void> {
  createStorage(layoutOf(base));
  await setUpDatabase(layoutOf(base));
}

/** A base that both scripts can work in. */
function newStore(temp: TempFolder, name = "store"): string {
  const base = `${temp.path}/${name}`;
  Deno.mkdirSync(`${base}/db`, { recursive: true });
  return base;
}

for (const [name, flags] of SCRIPTS) {
  Deno.test(`${name} --help: all that is needed to use it, without any permission`, async () => {
    const { code, stdout, stderr } = await runWith([], name, ["--help"]);
    assert.deepEqual([code, stderr], [0, ""]);
    assert.match(stdout, new RegExp(`^${name}: [^]+?\n\nusage: ${name} `));
    const usage = stdout.slice(stdout.indexOf("\nusage: "), stdout.indexOf("\noptions:"));
    for (const line of stdout.split("\n")) assert.ok(line.length <= 80, `"${line}" is longer than 80 columns`);
    const options = stdout.slice(stdout.indexOf("\noptions:"), stdout.indexOf("\nwhere"));
    for (const flag of flags) {
      assert.ok(usage.includes(`[${flag}]`), flag);
      assert.match(options, new RegExp(`^ {2}${flag}  +\\S`, "m"));
    }
    assert.equal(options.match(/^ {2}--/gm)?.length, flags.length, "and no other option");
    for (const variable of ["TELEMETRY_DB_PATH", "TELEMETRY_BASE_DIR", "AGENT_METRICS_DIR"]) {
      assert.ok(stdout.includes(`$${variable}`), variable);
    }
    assert.match(stdout, /^exit codes: 0 .*, 1 .*, 2 .*/m);
    assert.match(exampleIn(stdout), /^deno run --allow-read=\S+ --allow-write=\S+ scripts\/\w+\.ts --base /);
  });

  testWith(["unix"], `${name} --help: its example works as it is printed`, async () => {
    using temp = new TempFolder();
    const base = newStore(temp);
    if (!name.startsWith("setup")) await setUp(base);
    const { stdout } = await runWith([], name, ["--help"]);
    const { code, stderr } = await paste(exampleIn(stdout).replaceAll("/srv/telemetry", base), { cwd: ROOT });
    assert.deepEqual([code, stderr], [0, ""]);
    assert.ok("db/telemetry.sqlite" in treeOf(base));
  });

  Deno.test(`${name}: wrong usage is exit 2, one line of what, one of what to do`, async () => {
    using temp = new TempFolder();
    const wrong: string[][] = [["--nope"]];
    // All read their flags in the same way.
    if (name === "setup_storage") {
      wrong.push(["positional"], ["--base="]);
      wrong.push(["--base", temp.path, temp.path], ["--base"], ["--base", ""], ["--base", "--json"], ["--json=yes"]);
      wrong.push(["-x"], ["--base", temp.path, "--base", temp.path], ["--base=~/store"]);
    }
    const access = [`--allow-read=${temp.path}`, `--allow-write=${temp.path}`];
    let all = "";
    for (const args of wrong) {
      const { code, stderr } = await runWith(access, name, args, { cwd: temp.path });
      all += stderr;
      assert.equal(code, 2, `${args}`);
      assert.match(stderr, new RegExp(`^${name}: [^\n]+\n  -> [^\n]*--help[^\n]*\n$`), `${args}`);
    }
    if (name === "setup_storage") assert.match(all, /--base is given twice[^]*the shell did not expand "~"/);
    assert.deepEqual(treeOf(temp.path), {});
  });

  // What follows needs no database, and the others are run by tests of their own.
  if (!name.startsWith("setup")) continue;

  Deno.test(`${name} --json: one object on stdout, also when it fails`, async () => {
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

  Deno.test(`${name} --quiet: nothing when all is well, and errors all the same`, async () => {
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
    ["unix"],
    `${name} without any permission: the whole command is printed, and works when pasted`,
    async () => {
      using temp = new TempFolder();
      const folders = [`it's "my" $HOME & store`, "ünï—日本 100%25"];
      for (const folder of folders) {
        const base = newStore(temp, folder);
        const refused = await runWith([], name, ["--base", base, "--quiet"]);
        assert.deepEqual([refused.code, refused.stdout], [1, ""]);
        assert.match(refused.stderr, new RegExp(`^${name}: [^\n]+\n  -> run: [^\n]+\n$`));
        assert.deepEqual(treeOf(base), { db: "folder" }, "nothing was made");
        const pasted = await paste(commandIn(refused.stderr), { cwd: temp.path });
        assert.deepEqual(pasted, { code: 0, stdout: "", stderr: "" });
        assert.notDeepEqual(treeOf(base), { db: "folder" });
      }
      assert.equal(
        Object.keys(treeOf(temp.path)).filter((path) => !path.includes("/")).length,
        folders.length,
        "and nothing beside",
      );
    },
  );

  testWith(["unix"], `${name}: a permission for one folder does not reach another`, async () => {
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
      assert.deepEqual(treeOf(temp.path), tree, "nothing was made");
    }
    const refused = await runWith(access, name, ["--quiet"], { env });
    const pasted = await paste(commandIn(refused.stderr), { env });
    assert.deepEqual(pasted, { code: 0, stdout: "", stderr: "" });
    assert.deepEqual(treeOf(here), { db: "folder" });
    assert.notDeepEqual(treeOf(elsewhere), { db: "folder" });
  });

  testWith(["unix"], `${name} without permissions and --base: pasting what it prints ends well`, async () => {
    using temp = new TempFolder();
    const base = newStore(temp);
    const env = { TELEMETRY_BASE_DIR: base, HOME: temp.path };
    // The first command lets it read the variables; what it finds there may need a second one.
    let result = await runWith([], name, ["--quiet"], { env });
    for (let pastes = 0; result.code === 1 && pastes < 2; pastes++) {
      result = await paste(commandIn(result.stderr), { env });
    }
    assert.deepEqual(result, { code: 0, stdout: "", stderr: "" });
    assert.notDeepEqual(treeOf(base), { db: "folder" });
  });
}

testWith(
  ["unix"],
  "a base with a comma in its name, which ends a path for Deno: no command that cannot work",
  async () => {
    using temp = new TempFolder();
    const base = newStore(temp, "a,b");
    const { code, stderr } = await runWith([], "setup_storage", ["--base", base, "--quiet"]);
    assert.equal(code, 1);
    assert.match(stderr, /^setup_storage: [^\n]+\n {2}-> [^\n]+\n$/);
    if (stderr.includes("run: ")) {
      assert.deepEqual(await paste(commandIn(stderr)), { code: 0, stdout: "", stderr: "" });
    }
  },
);

testWith(["unix"], "an output that nobody reads is no error", async () => {
  using temp = new TempFolder();
  const base = newStore(temp);
  const line = `set -e; deno run --no-prompt --allow-read='${base}' --allow-write='${base}' \
    '${ROOT}scripts/setup_storage.ts' --base '${base}' | true`;
  const { code, stderr } = await run("sh", ["-c", line], { env: { PATH: pathWithDeno() } });
  assert.deepEqual([code, stderr], [0, ""]);
});

testWith(["linux"], "an output that cannot be written is a failure, and no defect", async () => {
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
