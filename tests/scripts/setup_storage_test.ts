import assert from "node:assert/strict";
import {
  NOBODY,
  type Output,
  paste,
  pathWithDeno,
  pathWithoutStores,
  ROOT,
  run,
  type RunOptions,
  runScript,
  SmallDisk,
  TempFolder,
  testWith,
  treeOf,
  withoutStores,
} from "../fixtures/mod.ts";

const FOLDERS = ["config", "db", "exports", "logs", "raw", "reports"];

/** The paths in a folder. Those of folders end with a slash. */
function shape(folder: string): string[] {
  return Object.entries(treeOf(folder)).map(([path, what]) => what === "folder" ? `${path}/` : path);
}
const STORAGE = ["README.md", ...FOLDERS.map((name) => `${name}/`)];

/** Checks for an expected failure: exit code 1, one line for the problem and one for the solution. */
function assertRefused({ code, stdout, stderr }: Output): string {
  assert.equal(code, 1, stderr);
  assert.match(stderr, /^setup_storage: [^\n]+\n {2}-> [^\n]+\n$/);
  assert.equal(stdout, "");
  return stderr;
}

/** Runs a script without `--base`, with permissions for the variables and for `folders`. */
function runByEnvironment(name: string, folders: string[], options: RunOptions, args: string[] = []): Promise<Output> {
  const variables = "TELEMETRY_DB_PATH,TELEMETRY_BASE_DIR,AGENT_METRICS_DIR,TELEMETRY_NDJSON_DIR,HOME,USERPROFILE";
  const access = [`--allow-env=${variables}`, `--allow-read=${folders}`, `--allow-write=${folders}`];
  return run(
    Deno.execPath(),
    ["run", "--no-prompt", "--quiet", ...withoutStores(), ...access, `${ROOT}scripts/${name}.ts`, ...args],
    options,
  );
}

Deno.test("setup creates exactly the folders of the contract, and a second run changes nothing", async () => {
  using temp = new TempFolder();
  const base = `${temp.path}/store`;
  const first = await runScript("setup_storage", base, ["--json"]);
  assert.deepEqual([first.code, first.stderr], [0, ""]);
  assert.deepEqual(shape(base), STORAGE);
  assert.deepEqual(JSON.parse(first.stdout), {
    ok: true,
    base,
    created: [
      base,
      ...["raw", "db", "reports", "exports", "config", "logs", "README.md"].map((name) => `${base}/${name}`),
    ],
  });
  const readme = Deno.readTextFileSync(`${base}/README.md`);
  for (const name of [...FOLDERS, "backups"]) assert.ok(readme.includes(`\`${name}/\``), name);

  const tree = treeOf(base);
  const second = await runScript("setup_storage", base, ["--json"]);
  assert.deepEqual([second.code, second.stderr], [0, ""]);
  assert.deepEqual(JSON.parse(second.stdout), { ok: true, base, created: [] });
  assert.deepEqual(treeOf(base), tree);
});

Deno.test("setup keeps an existing README, logs and other folders", async () => {
  using temp = new TempFolder();
  for (const folder of ["raw", "own"]) Deno.mkdirSync(`${temp.path}/${folder}`);
  const own = { "README.md": "mine\n", "raw/events_20251210.ndjson": "{}\n", "own/file": "x" };
  for (const [name, text] of Object.entries(own)) Deno.writeTextFileSync(`${temp.path}/${name}`, text);
  const { code, stderr } = await runScript("setup_storage", temp.path);
  assert.deepEqual([code, stderr], [0, ""]);
  for (const [name, text] of Object.entries(own)) assert.equal(Deno.readTextFileSync(`${temp.path}/${name}`), text);
  assert.deepEqual(shape(temp.path), [...STORAGE, "own/", "own/file", "raw/events_20251210.ndjson"].toSorted());
});

Deno.test("setup replaces the partial README of a killed run", async () => {
  using temp = new TempFolder();
  Deno.writeTextFileSync(`${temp.path}/README.md.partial`, "half a READ");
  assert.equal((await runScript("setup_storage", temp.path)).code, 0);
  assert.deepEqual(shape(temp.path), STORAGE);
  assert.match(Deno.readTextFileSync(`${temp.path}/README.md`), /^# /);
});

for (const name of FOLDERS) {
  Deno.test(`a file named ${name} is refused and kept`, async () => {
    using temp = new TempFolder();
    Deno.writeTextFileSync(`${temp.path}/${name}`, "mine");
    const stderr = assertRefused(await runScript("setup_storage", temp.path));
    assert.ok(stderr.includes(`${temp.path}/${name}`));
    assert.equal(Deno.readTextFileSync(`${temp.path}/${name}`), "mine");
  });
}

Deno.test("a base that is a file or below one is refused, and the file is kept", async () => {
  using temp = new TempFolder();
  const file = `${temp.path}/file`;
  Deno.writeTextFileSync(file, "mine");
  for (const base of [file, `${file}/store`]) {
    assertRefused(await runScript("setup_storage", base));
    assert.deepEqual(shape(temp.path), ["file"]);
    assert.equal(Deno.readTextFileSync(file), "mine");
  }
});

testWith(["links", "shell"], "a base that is a link works, or the missing permission is printed", async () => {
  using temp = new TempFolder();
  const link = `${temp.path}/link`;
  Deno.mkdirSync(`${temp.path}/real`);
  Deno.symlinkSync("real", link);
  const first = await runScript("setup_storage", link, ["--with-database"]);
  if (first.code !== 0) {
    // Deno requires permissions for real paths. The printed command has them.
    const stderr = assertRefused(first);
    assert.deepEqual(shape(`${temp.path}/real`), []);
    const pasted = await paste(stderr.split("-> run: ")[1] ?? "");
    assert.deepEqual([pasted.code, pasted.stderr], [0, ""]);
  }
  assert.deepEqual(shape(`${temp.path}/real`), [...STORAGE, "config/schema.sql", "db/telemetry.sqlite"].toSorted());
});

testWith(["links", "shell"], "a new base below a link works, if needed after the printed command", async () => {
  using temp = new TempFolder();
  Deno.mkdirSync(`${temp.path}/real`);
  Deno.symlinkSync("real", `${temp.path}/link`);
  const base = `${temp.path}/link/store`;
  let result = await runScript("setup_storage", base);
  // The link is found only when the base exists, so the command may be printed by the second run.
  for (let tries = 0; result.code !== 0 && tries < 2; tries++) {
    const stderr = assertRefused(result);
    assert.ok(stderr.includes(`${temp.path}/real/store`), stderr);
    assert.deepEqual(shape(temp.path).filter((path) => path.includes("partial")), [], "no partial is left");
    const printed = stderr.split("-> run: ")[1];
    result = printed ? await paste(printed) : await runScript("setup_storage", base);
  }
  assert.deepEqual([result.code, result.stderr], [0, ""]);
  assert.deepEqual(shape(`${temp.path}/real/store`), STORAGE);
});

testWith(["links"], "a base that is a dangling link is refused", async () => {
  using temp = new TempFolder();
  Deno.symlinkSync("nowhere", `${temp.path}/link`);
  assertRefused(await runScript("setup_storage", `${temp.path}/link`));
});

Deno.test("a relative base starts in the working folder", async () => {
  using temp = new TempFolder();
  const access = ["--allow-read=store", "--allow-write=store"];
  for (const base of ["store", "./store/", "store/../store"]) {
    const args = ["run", "--no-prompt", ...access, `${ROOT}scripts/setup_storage.ts`, "--base", base];
    const { code, stderr } = await run(Deno.execPath(), args, { cwd: temp.path });
    assert.deepEqual([code, stderr], [0, ""]);
  }
  assert.deepEqual(shape(temp.path), ["store/", ...STORAGE.map((path) => `store/${path}`)].toSorted());
});

Deno.test("TELEMETRY_NDJSON_DIR moves raw/, and is ignored with --base", async () => {
  using temp = new TempFolder();
  // Its name starts with the name of the base, but it is not in the base.
  const env = { TELEMETRY_BASE_DIR: `${temp.path}/store`, TELEMETRY_NDJSON_DIR: `${temp.path}/store_log/raw` };
  const { code, stderr } = await runByEnvironment("setup_storage", Object.values(env), { env });
  assert.deepEqual([code, stderr], [0, ""]);
  assert.deepEqual(shape(env.TELEMETRY_BASE_DIR), STORAGE.filter((path) => path !== "raw/"));
  assert.deepEqual(shape(`${temp.path}/store_log`), ["raw/"]);

  const other = `${temp.path}/other`;
  assert.equal((await runByEnvironment("setup_storage", [other], { env }, ["--base", other])).code, 0);
  assert.deepEqual(shape(other), STORAGE);
});

testWith(
  ["anyShell"],
  "without permission for TELEMETRY_NDJSON_DIR nothing is created, and the printed command works",
  async () => {
    using temp = new TempFolder();
    const env = { TELEMETRY_BASE_DIR: `${temp.path}/store`, TELEMETRY_NDJSON_DIR: `${temp.path}/store_log` };
    const stderr = assertRefused(await runByEnvironment("setup_storage", [env.TELEMETRY_BASE_DIR], { env }));
    assert.deepEqual(shape(temp.path), []);
    const pasted = await paste((stderr.split("-> run: ")[1] ?? "").trim(), { env });
    assert.deepEqual([pasted.code, pasted.stderr], [0, ""]);
    assert.ok(shape(temp.path).includes("store_log/"));
  },
);

Deno.test("the base of TELEMETRY_DB_PATH is two folders up, and its folder is created", async () => {
  using temp = new TempFolder();
  const env = { TELEMETRY_DB_PATH: `${temp.path}/store/data/agents.db` };
  const { code, stderr } = await runByEnvironment("setup_storage", [`${temp.path}/store`], { env }, [
    "--with-database",
  ]);
  assert.deepEqual([code, stderr], [0, ""]);
  const expected = [...STORAGE.filter((path) => path !== "db/"), "data/", "data/agents.db", "config/schema.sql"];
  assert.deepEqual(shape(`${temp.path}/store`), expected.toSorted());
});

Deno.test("a store that a variable or --base names is used without a warning of other stores", async () => {
  using temp = new TempFolder();
  const [one, two, three] = ["one", "two", "three"].map((name) => `${temp.path}/${name}`) as [string, string, string];
  for (const base of [one, two]) assert.equal((await runScript("setup_storage", base, ["--with-database"])).code, 0);
  const env = { TELEMETRY_BASE_DIR: one, AGENT_METRICS_DIR: two };
  const calm: [env: Record<string, string>, args: string[]][] = [
    [env, []],
    [{ TELEMETRY_BASE_DIR: one, AGENT_METRICS_DIR: three }, []],
    [{ TELEMETRY_BASE_DIR: one, AGENT_METRICS_DIR: `${one}/` }, []],
    [env, ["--base", one]],
  ];
  for (const [calmEnv, args] of calm) {
    const { code, stderr } = await runByEnvironment("setup_storage", [one, two, three], { env: calmEnv }, args);
    assert.deepEqual([code, stderr], [0, ""], JSON.stringify([calmEnv, args]));
  }
});

/** A home folder that {@linkcode NOBODY} owns, and a cache folder for Deno. */
function foldersOfNobody(temp: TempFolder): { home: string; options: RunOptions } {
  const [home, cache] = [`${temp.path}/home`, `${temp.path}/deno`];
  for (const folder of [home, cache]) Deno.mkdirSync(folder);
  for (const folder of [temp.path, home, cache]) Deno.chownSync(folder, NOBODY, NOBODY);
  return { home, options: { uid: NOBODY, env: { DENO_DIR: cache, HOME: home, PATH: pathWithDeno() } } };
}

/** The candidate folders of the contract. */
const candidates = (home: string) => ["/agent-metrics", "/opt/telemetry", "/data/telemetry", `${home}/.telemetry`];

testWith(
  ["nobody"],
  "when /agent-metrics cannot be created, setup uses ~/.telemetry and says so",
  async () => {
    using temp = new TempFolder();
    const { home, options } = foldersOfNobody(temp);
    const store = `${home}/.telemetry`;
    const first = await runByEnvironment("setup_storage", candidates(home), options);
    assert.equal(first.code, 0, first.stderr);
    assert.equal(first.stderr, "");
    assert.ok(first.stdout.includes("/agent-metrics") && first.stdout.includes(store), first.stdout);
    assert.deepEqual(shape(store), STORAGE);
    assert.ok(first.stdout.includes(store));

    const database = await runByEnvironment("setup_database", candidates(home), options);
    assert.deepEqual([database.code, database.stderr], [0, ""]);
    assert.ok(database.stdout.includes(`${store}/db/telemetry.sqlite`));
    const again = await runByEnvironment("setup_storage", candidates(home), options, ["--json"]);
    assert.deepEqual([again.code, again.stderr, JSON.parse(again.stdout)], [0, "", {
      ok: true,
      base: store,
      created: [],
    }]);
  },
);

testWith(["nobody"], "the command printed without --base works when pasted", async () => {
  using temp = new TempFolder();
  // The name of a home folder may contain a blank.
  const { home, options } = foldersOfNobody(temp);
  const blank = `${home}/first last`;
  Deno.mkdirSync(blank);
  Deno.chownSync(blank, NOBODY, NOBODY);
  for (const folder of [home, blank]) {
    const env = { ...options.env, HOME: folder, PATH: pathWithoutStores(temp.path) };
    const script = [`${ROOT}scripts/setup_storage.ts`, "--with-database"];
    const refused = await run("deno", ["run", "--no-prompt", ...script], { env });
    const printed = / {2}-> run: (deno run .*)/.exec(refused.stderr)?.[1] ?? "";
    const { code, stderr } = await run("sh", ["-c", printed], { ...options, env, cwd: ROOT });
    assert.equal(code, 0, stderr);
    assert.deepEqual(
      shape(`${folder}/.telemetry`),
      [...STORAGE, "config/schema.sql", "db/telemetry.sqlite"].toSorted(),
    );
  }
});

testWith(
  ["nobody"],
  "when no default folder can be created, setup fails and creates nothing",
  async () => {
    using temp = new TempFolder();
    const { home, options } = foldersOfNobody(temp);
    Deno.chownSync(home, 0, 0);
    const stderr = assertRefused(await runByEnvironment("setup_storage", candidates(home), options));
    assert.ok(stderr.includes("/agent-metrics"));
    assert.deepEqual(shape(home), []);
    const env = { ...options.env, HOME: "" };
    assertRefused(await runByEnvironment("setup_storage", candidates("/nowhere"), { ...options, env }));
  },
);

testWith(
  ["nobody"],
  "without write permission for TELEMETRY_NDJSON_DIR, nothing is created",
  async () => {
    using temp = new TempFolder();
    const { home, options } = foldersOfNobody(temp);
    const env = { ...options.env, TELEMETRY_NDJSON_DIR: `${temp.path}/log` };
    const stderr = assertRefused(await runByEnvironment("setup_storage", candidates(home), { ...options, env }));
    assert.ok(stderr.includes(`${temp.path}/log`), stderr);
    assert.deepEqual(shape(temp.path).filter((path) => !path.startsWith("deno/")), ["home/"]);
  },
);

testWith(["nobody"], "a base that this user may not write is refused and not changed", async () => {
  using temp = new TempFolder();
  const { options } = foldersOfNobody(temp);
  const base = `${temp.path}/store`;
  Deno.mkdirSync(base);
  const empty = [
    await runScript("setup_storage", base, [], options),
    await runScript("setup_storage", `${base}/below`, [], options),
  ];
  for (const result of empty) assert.ok(assertRefused(result).includes(base));
  assert.deepEqual(shape(base), []);
  // A complete store whose log this user may not write is refused, too.
  assert.equal((await runScript("setup_storage", base)).code, 0);
  const tree = treeOf(base);
  assertRefused(await runScript("setup_storage", base, [], options));
  assert.deepEqual(treeOf(base), tree);
});

testWith(["nobody"], "what root creates in the base of another user belongs to that user", async () => {
  using temp = new TempFolder();
  const base = `${temp.path}/store`;
  Deno.mkdirSync(base);
  Deno.chownSync(base, NOBODY, NOBODY);
  const { code, stdout, stderr } = await runScript("setup_storage", base, ["--with-database"]);
  assert.deepEqual([code, stderr], [0, ""]);
  assert.doesNotMatch(stdout, /only root/);
  const created = Object.keys(treeOf(base));
  assert.deepEqual(created, [...FOLDERS, "README.md", "config/schema.sql", "db/telemetry.sqlite"].toSorted());
  for (const path of created) {
    const { uid, gid } = Deno.lstatSync(`${base}/${path}`);
    assert.deepEqual([uid, gid], [NOBODY, NOBODY], path);
  }
});

testWith(["mount"], "a full disk leaves no half file, and setup works once there is space", async () => {
  using disk = new SmallDisk("256k");
  const base = disk.path;
  // First without a store, then with a complete store in which no byte can be written.
  for (const expected of [STORAGE.filter((path) => path !== "README.md"), STORAGE]) {
    disk.fill();
    assertRefused(await runScript("setup_storage", base));
    assert.deepEqual(shape(base).filter((path) => path !== "filler"), expected);
    disk.free();
    assert.equal((await runScript("setup_storage", base)).code, 0);
    assert.deepEqual(shape(base), STORAGE);
  }
});
