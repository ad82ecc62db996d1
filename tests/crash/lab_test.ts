import assert from "node:assert/strict";
import { rounds } from "../fixtures/mod.ts";
import { lab } from "./lab.ts";

Deno.test("the crash lab: no fault loses anything, and repeating the operation succeeds", async () => {
  const failed = [];
  const seed = Math.floor(Math.random() * 1e9);
  for await (const round of lab(rounds(4, 100), seed)) if (round.problems.length > 0) failed.push(round);
  assert.deepEqual(failed, []);
});
