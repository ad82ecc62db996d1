import assert from "node:assert/strict";
import { testWith } from "../fixtures.ts";
import { lab } from "./lab.ts";

testWith(["unix"], "the crash lab: whatever strikes, nothing is lost, and doing it again ends right", async () => {
  const failed = [];
  for await (const round of lab(24, Math.floor(Math.random() * 1e9))) if (round.problems.length > 0) failed.push(round);
  assert.deepEqual(failed, []);
});
