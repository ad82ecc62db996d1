import assert from "node:assert/strict";
import { PartialFile, removeStalePartials, writeAll, writeFileAtomic } from "../../../lib/fs/atomic_file.ts";
import { TempFolder, testWith } from "../../fixtures/mod.ts";

const BYTES = new TextEncoder().encode("content");
const SIDECARS = ["-wal", "-shm", "-journal"];
const names = (folder: string) => [...Deno.readDirSync(folder)].map(({ name }) => name).sort();

function claim(path: string): PartialFile {
  const partial = PartialFile.claim(path, { wait: false });
  writeAll(partial.file, BYTES);
  partial.sync();
  return partial;
}

Deno.test("publish never replaces a file, and takes the next name", () => {
  using temp = new TempFolder();
  const [taken, free] = [`${temp.path}/taken`, `${temp.path}/free`];
  Deno.writeTextFileSync(taken, "mine");
  {
    using partial = claim(`${temp.path}/new.partial`);
    assert.equal(partial.publish(temp.path, [taken]), undefined);
    assert.equal(partial.publish(temp.path, [taken, free]), free);
  }
  assert.deepEqual(names(temp.path), ["free", "taken"]);
  assert.deepEqual([taken, free].map((path) => Deno.readTextFileSync(path)), ["mine", "content"]);
});

Deno.test("a partial that is not published is removed, and replaces nothing", () => {
  using temp = new TempFolder();
  Deno.writeTextFileSync(`${temp.path}/a`, "old");
  claim(`${temp.path}/a.partial`)[Symbol.dispose]();
  assert.deepEqual(names(temp.path), ["a"]);
  assert.equal(Deno.readTextFileSync(`${temp.path}/a`), "old");
});

Deno.test("disposing a partial twice leaves the partial of the next process alone", () => {
  using temp = new TempFolder();
  const partial = claim(`${temp.path}/a.partial`);
  partial[Symbol.dispose]();
  Deno.writeTextFileSync(`${temp.path}/a.partial`, "of another process");
  partial[Symbol.dispose]();
  assert.deepEqual(names(temp.path), ["a.partial"]);
});

Deno.test("a partial that another process holds is refused, and keeps its content", () => {
  using temp = new TempFolder();
  using _first = claim(`${temp.path}/a.partial`);
  assert.throws(() => PartialFile.claim(`${temp.path}/a.partial`, { wait: false }), { code: "locked" });
  removeStalePartials(temp.path, () => true);
  assert.equal(Deno.readTextFileSync(`${temp.path}/a.partial`), "content");
});

testWith(["unix"], "a second name of a published file is never written into", () => {
  using temp = new TempFolder();
  Deno.writeTextFileSync(`${temp.path}/a`, "published");
  // As a kill between link and unlink leaves it.
  Deno.linkSync(`${temp.path}/a`, `${temp.path}/a.partial`);
  using partial = PartialFile.claim(`${temp.path}/a.partial`);
  writeAll(partial.file, BYTES);
  assert.equal(Deno.readTextFileSync(`${temp.path}/a`), "published");
});

Deno.test("a partial for SQLite starts and ends without sidecars", () => {
  using temp = new TempFolder();
  const path = `${temp.path}/a.partial`;
  for (const end of ["", ...SIDECARS]) Deno.writeTextFileSync(path + end, "left by a killed process");
  {
    using _partial = PartialFile.claim(path, { like: path });
    assert.deepEqual(names(temp.path), ["a.partial"]);
    assert.equal(Deno.statSync(path).size, 0);
    for (const end of SIDECARS) Deno.writeTextFileSync(path + end, "of SQLite");
  }
  assert.deepEqual(names(temp.path), []);
});

Deno.test("a partial that is not for SQLite touches no other path: Deno would ask for permission", () => {
  using temp = new TempFolder();
  const removed: unknown[] = [];
  const remove = Deno.removeSync;
  Deno.removeSync = (path, options) => {
    removed.push(path);
    remove(path, options);
  };
  try {
    claim(`${temp.path}/a.partial`)[Symbol.dispose]();
  } finally {
    Deno.removeSync = remove;
  }
  assert.deepEqual(removed, [`${temp.path}/a.partial`]);
});

testWith(["unix"], "a file that cannot be replaced stays, and nothing else does", () => {
  using temp = new TempFolder();
  Deno.mkdirSync(`${temp.path}/a/b`, { recursive: true });
  assert.throws(() => writeFileAtomic(temp.path, `${temp.path}/a`, BYTES, { replace: true }), { code: "in_the_way" });
  assert.deepEqual(names(temp.path), ["a"]);
});
