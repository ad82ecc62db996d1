import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { ROOT, run, runScript, TempFolder, treeOf } from "../fixtures/mod.ts";

/** The files that users run or import by URL: all of `lib/` and `scripts/`, and `mod.ts`. */
function publicFiles(): string[] {
  const files = ["lib", "scripts"].flatMap((folder) =>
    Object.keys(treeOf(ROOT + folder)).map((name) => `${folder}/${name}`)
  );
  const top = [...Deno.readDirSync(ROOT)].map(({ name }) => name);
  return [...files, ...top].filter((file) => file.endsWith(".ts"));
}

/** Serves the files of the toolkit as a plain file server does, and notes what is asked for. */
function serveTree() {
  const asked: string[] = [];
  const server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen: () => {} }, async ({ url }) => {
    const path = new URL(url).pathname;
    asked.push(path);
    try {
      const headers = { "content-type": "application/typescript" };
      return new Response(await Deno.readFile(ROOT + path.slice(1)), { headers });
    } catch {
      return new Response("not found", { status: 404 });
    }
  });
  const origin = `http://127.0.0.1:${server.addr.port}`;
  return { asked, origin, [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() };
}

/** An empty folder to work in, and an empty cache. */
function elsewhere(temp: TempFolder): { cwd: string; env: Record<string, string> } {
  for (const folder of ["cache", "elsewhere"]) Deno.mkdirSync(`${temp.path}/${folder}`);
  // Deno's cache has a link to its program. Windows cannot remove it while that runs.
  const env: Record<string, string> = Deno.build.os === "windows" ? {} : { DENO_DIR: `${temp.path}/cache` };
  return { cwd: `${temp.path}/elsewhere`, env };
}

Deno.test("scripts run from a plain file server, with permissions for only their folders", async () => {
  using temp = new TempFolder();
  const options = elsewhere(temp);
  await using server = serveTree();
  const { asked, origin } = server;

  const base = `${temp.path}/store`;
  const scripts = `${origin}/scripts`;
  const script = `${scripts}/setup_storage.ts`;
  const runFromServer = async (url: string, folders: string[], ...args: string[]) => {
    const access = [`--allow-read=${base}`, `--allow-write=${folders.map((folder) => base + folder)}`];
    const { code, stdout, stderr } = await run(
      Deno.execPath(),
      ["run", "--no-prompt", "--quiet", ...access, url, "--base", base, "--json", ...args],
      options,
    );
    assert.deepEqual([code, stderr], [0, ""]);
    return JSON.parse(stdout);
  };
  assert.equal((await runFromServer(script, [""], "--with-database")).database.outcome, "created");
  const line = { run_id: "r", agent_name: "a", start_time: "2025-12-10T00:00:00Z", record_type: "run" };
  Deno.writeTextFileSync(`${base}/raw/events_20251210.ndjson`, `${JSON.stringify(line)}\n`.repeat(20_000));
  assert.equal((await runFromServer(`${scripts}/recover_database.ts`, ["/db", "/reports"], "--force")).runs, 1);
  assert.equal((await runFromServer(`${scripts}/export_csv.ts`, ["/db", "/exports"])).rows, 1);
  assert.ok("db/telemetry.sqlite" in treeOf(base));
  assert.deepEqual(treeOf(`${temp.path}/elsewhere`), {});
  const files = publicFiles();
  assert.ok(asked.includes("/scripts/setup_storage.ts") && asked.includes("/lib/store/database.ts"), `${asked}`);
  assert.deepEqual(asked.filter((path) => !files.includes(path.slice(1))), [], "only modules were requested");

  // Without permissions, the printed command names the script by its URL.
  const refused = await run(Deno.execPath(), ["run", "--no-prompt", "--quiet", script, "--base", base], options);
  assert.equal(refused.code, 1);
  assert.ok(refused.stderr.includes(` ${script} --base ${base}`), refused.stderr);
});

Deno.test("a program imports mod.ts by its URL, from another folder, with its types and with each permission or without", async () => {
  using temp = new TempFolder();
  await using server = serveTree();
  const { origin } = server;
  const base = `${temp.path}/store`;
  assert.equal((await runScript("setup_storage", base, ["--with-database"])).code, 0);
  const options = elsewhere(temp);
  const program = (fields: string) =>
    `import { TelemetryClient, type TrackedRun } from "${origin}/mod.ts";
     await using telemetry = new TelemetryClient({ base: ${JSON.stringify(base)} });
     const work = async (run: TrackedRun) => { await run.logEvent("checkpoint"); };
     await telemetry.trackRun("imported", "job", { ${fields} }, work);
     console.log("done");`;
  Deno.writeTextFileSync(`${options.cwd}/agent.ts`, program('product: "docs"'));
  Deno.writeTextFileSync(`${options.cwd}/misspelt.ts`, program('prodct: "docs"'));
  const grants = {
    import: `--allow-import=${new URL(origin).host}`,
    read: `--allow-read=${base}`,
    write: `--allow-write=${base}`,
    env: "--allow-env",
    sys: "--allow-sys=hostname",
  };
  const runWithout = (missing?: string) => {
    const access = Object.entries(grants).filter(([name]) => name !== missing).map(([, grant]) => grant);
    return run(Deno.execPath(), ["run", "--check", "--quiet", "--no-prompt", ...access, "agent.ts"], options);
  };
  const hosts = () => {
    using db = new DatabaseSync(`${base}/db/telemetry.sqlite`, { readOnly: true });
    return db.prepare("SELECT host FROM agent_runs WHERE status='success' ORDER BY rowid").all().map(({ host }) =>
      host
    );
  };

  const refused = await runWithout("import");
  assert.deepEqual([refused.code, refused.stdout], [1, ""]);
  assert.match(refused.stderr, /import access|--allow-import/);
  const granted = await runWithout();
  assert.deepEqual([granted.code, granted.stdout, granted.stderr], [0, "done\n", ""]);
  assert.deepEqual(hosts(), [Deno.hostname()]);
  const check = await run(Deno.execPath(), ["check", "--quiet", grants.import, "misspelt.ts"], options);
  assert.deepEqual([check.code, check.stderr.includes("prodct")], [1, true]);

  // The program goes on without the others: the first two record nothing and say how to grant what is missing.
  for (const missing of ["read", "write", "env", "sys"]) {
    const { code, stdout, stderr } = await runWithout(missing);
    assert.deepEqual([code, stdout], [0, "done\n"], stderr);
    const isRecorded = missing === "env" || missing === "sys";
    if (!isRecorded) assert.match(stderr, new RegExp(`^telemetry: .*--allow-${missing}=`, "m"));
  }
  assert.deepEqual(hosts(), [Deno.hostname(), Deno.hostname(), null]);
});

Deno.test("public files import only ./, ../ and node:", () => {
  const specifiers = publicFiles().flatMap((file) => {
    // Not the imports of the examples in doc comments.
    const code = Deno.readTextFileSync(ROOT + file).replaceAll(/^\s*(\/\*\*|\*).*$/gm, "");
    return [...importsIn(code)].map((specifier) => `${file}: ${specifier}`);
  });
  assert.ok(specifiers.length > 20, "the test finds imports");
  assert.deepEqual(specifiers.filter((line) => !/: (\.\.?\/|node:)/.test(line)), []);
});

Deno.test("the import test finds every kind of import", () => {
  const code = `
    import a from "npm:a";
    import type { B } from 'jsr:@b/b';
    export * from "https://c.example/c.ts";
    import "bare";
    const d = await import("@std/d");
    import {
      e,
    } from "./e.ts";`;
  assert.deepEqual([...importsIn(code)], ["npm:a", "jsr:@b/b", "https://c.example/c.ts", "bare", "@std/d", "./e.ts"]);
});

function* importsIn(code: string): Generator<string> {
  for (const [, specifier] of code.matchAll(/\b(?:from|import)\s*\(?\s*["']([^"'\n]+)["']/g)) yield specifier!;
}
