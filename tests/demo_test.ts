import assert from "node:assert/strict";
import { ROOT, run } from "./fixtures/mod.ts";

Deno.test("the demo passes all of its checks", async () => {
  const { code, stdout, stderr } = await run(Deno.execPath(), ["run", "--allow-all", `${ROOT}tests/demo.ts`]);
  assert.deepEqual([code, stderr], [0, ""]);
  const steps = stdout.split("---\n")[1]!.trimEnd().split("\n").map((line) => line.slice(0, 10).trim());
  const all = ["set up", "work", "kill -9", "back up", "damage", "recover", "restore", "export", "compare"];
  assert.deepEqual(steps, all);
});
