import assert from "node:assert/strict";
import { ROOT, run, TempFolder, treeOf } from "../fixtures/mod.ts";

/** The files that users run or import by URL: all of `lib/` and `scripts/`, and `mod.ts`. */
function publicFiles(): string[] {
  const files = ["lib", "scripts"].flatMap((folder) =>
    Object.keys(treeOf(ROOT + folder)).map((name) => `${folder}/${name}`)
  );
  const top = [...Deno.readDirSync(ROOT)].map(({ name }) => name);
  return [...files, ...top].filter((file) => file.endsWith(".ts"));
}

Deno.test("scripts run from a plain file server, with permissions for only their folders", async () => {
  using temp = new TempFolder();
  for (const folder of ["cache", "elsewhere"]) Deno.mkdirSync(`${temp.path}/${folder}`);
  // Deno's cache has a link to its program. Windows cannot remove it while that runs.
  const cache: Record<string, string> = Deno.build.os === "windows" ? {} : { DENO_DIR: `${temp.path}/cache` };
  const asked: string[] = [];
  await using server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen: () => {} }, async ({ url }) => {
    const path = new URL(url).pathname;
    asked.push(path);
    try {
      const headers = { "content-type": "application/typescript" };
      return new Response(await Deno.readFile(ROOT + path.slice(1)), { headers });
    } catch {
      return new Response("not found", { status: 404 });
    }
  });

  const base = `${temp.path}/store`;
  const scripts = `http://127.0.0.1:${server.addr.port}/scripts`;
  const script = `${scripts}/setup_storage.ts`;
  const runFromServer = async (url: string, folders: string[], ...args: string[]) => {
    const access = [`--allow-read=${base}`, `--allow-write=${folders.map((folder) => base + folder)}`];
    const { code, stdout, stderr } = await run(
      Deno.execPath(),
      ["run", "--no-prompt", "--quiet", ...access, url, "--base", base, "--json", ...args],
      { cwd: `${temp.path}/elsewhere`, env: cache },
    );
    assert.deepEqual([code, stderr], [0, ""]);
    return JSON.parse(stdout);
  };
  assert.equal((await runFromServer(script, [""], "--with-database")).database.outcome, "created");
  // A log of this size is loaded on a thread.
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
  const refused = await run(Deno.execPath(), ["run", "--no-prompt", "--quiet", script, "--base", base], {
    env: cache,
  });
  assert.equal(refused.code, 1);
  assert.ok(refused.stderr.includes(` ${script} --base ${base}`), refused.stderr);
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
