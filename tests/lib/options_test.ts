import assert from "node:assert/strict";
import {
  checkHealth,
  createStorage,
  layoutOf,
  recoverDatabase,
  setUpDatabase,
  summarizeRuns,
  takeBackup,
} from "../../mod.ts";
import { TempFolder, treeOf } from "../fixtures/mod.ts";

Deno.test("options that a script would refuse are refused by the functions of mod.ts, before anything is changed", async () => {
  using temp = new TempFolder();
  const layout = layoutOf(`${temp.path}/base`);
  createStorage(layout);
  setUpDatabase(layout);
  const before = treeOf(layout.base);
  for (const time of [new Date(NaN), "2025-12-10", 5] as never[]) {
    const calls = [
      recoverDatabase(layout, { since: time }),
      checkHealth(layout, { compare: true, since: time }),
      ...["since", "until", "now"].map((name) => summarizeRuns(layout, { [name]: time })),
    ];
    for (const call of calls) await assert.rejects(call, { code: "usage" });
  }
  for (const staleAfterMs of [NaN, -1, "1d" as never]) {
    await assert.rejects(summarizeRuns(layout, { staleAfterMs }), { code: "usage" });
  }
  for (const kind of ["log", "__proto__", undefined] as never[]) {
    await assert.rejects(takeBackup(layout, kind), { code: "usage" });
  }
  await assert.rejects(recoverDatabase(layout, { backup: `${temp.path}/none.sqlite` }), { code: "no_storage" });
  assert.deepEqual(treeOf(layout.base), before);
});
