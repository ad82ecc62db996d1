import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { PartialFile, readFull, removeStalePartials, writeAll, writeFileAtomic } from "../../../lib/fs/atomic_file.ts";
import { isSameFile } from "../../../lib/fs/locate.ts";
import { holdOpen, TempFolder, testWith } from "../../fixtures/mod.ts";

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
  using first = claim(`${temp.path}/a.partial`);
  assert.throws(() => PartialFile.claim(`${temp.path}/a.partial`, { wait: false }), { code: "locked" });
  removeStalePartials(temp.path, () => true);
  // By the handle with the lock: Windows lets no other one read.
  first.file.seekSync(0, Deno.SeekMode.Start);
  const content = new Uint8Array(BYTES.length + 1);
  assert.deepEqual(content.subarray(0, first.file.readSync(content)!), BYTES);
  assert.deepEqual(names(temp.path), ["a.partial"]);
});

Deno.test("a second name of a published file is never written into", () => {
  using temp = new TempFolder();
  Deno.writeTextFileSync(`${temp.path}/a`, "published");
  // As a kill between link and unlink leaves it.
  Deno.linkSync(`${temp.path}/a`, `${temp.path}/a.partial`);
  using partial = PartialFile.claim(`${temp.path}/a.partial`);
  writeAll(partial.file, BYTES);
  assert.equal(Deno.readTextFileSync(`${temp.path}/a`), "published");
});

Deno.test("publish gives one name where another program has the partial open, and the next claim takes the other away", () => {
  using temp = new TempFolder();
  const partial = claim(`${temp.path}/a.partial`);
  {
    using _held = holdOpen(partial.path);
    assert.equal(partial.publish(temp.path, ["a", "b", "c"].map((name) => `${temp.path}/${name}`)), `${temp.path}/a`);
    partial[Symbol.dispose]();
  }
  assert.deepEqual(names(temp.path), ["a", "a.partial"]);
  removeStalePartials(temp.path, () => true);
  assert.deepEqual(names(temp.path), ["a"]);
  assert.equal(Deno.readTextFileSync(`${temp.path}/a`), "content");
});

testWith(
  ["folderSync"],
  "a name that cannot be made durable is taken back, and a folder without sync is no error",
  () => {
    using temp = new TempFolder();
    const { syncSync } = Deno.FsFile.prototype;
    for (const [code, left] of [["EIO", []], ["EINVAL", ["a"]]] as const) {
      using partial = claim(`${temp.path}/a.partial`);
      Deno.FsFile.prototype.syncSync = () => {
        throw Object.assign(new Error("refused"), { code });
      };
      try {
        const publish = () => partial.publish(temp.path, [`${temp.path}/a`]);
        if (code === "EIO") assert.throws(publish, { code: "io", message: /cannot sync/ });
        else publish();
      } finally {
        Deno.FsFile.prototype.syncSync = syncSync;
      }
      assert.deepEqual(names(temp.path), left);
    }
  },
);

Deno.test("a partial that SQLite writes is locked for others, and not for SQLite", () => {
  using temp = new TempFolder();
  const path = `${temp.path}/a.partial`;
  {
    using partial = PartialFile.claim(path, { forSqlite: true });
    using db = new DatabaseSync(path);
    db.exec("CREATE TABLE t (a); INSERT INTO t VALUES (1)");
    assert.throws(() => PartialFile.claim(path, { wait: false, forSqlite: true }), { code: "locked" });
    removeStalePartials(temp.path, () => true);
    db.exec("INSERT INTO t VALUES (2)");
    db.close();
    partial.sync();
    assert.equal(partial.publish(temp.path, [`${temp.path}/a`]), `${temp.path}/a`);
  }
  assert.deepEqual(names(temp.path), ["a"]);
  using db = new DatabaseSync(`${temp.path}/a`);
  assert.deepEqual({ ...db.prepare("SELECT count(*) AS rows FROM t").get() }, { rows: 2 });
});

Deno.test("the lock that a killed process has left is removed, with a partial and without one", () => {
  using temp = new TempFolder();
  for (const name of ["a.partial", "a.partial.lock", "a.partial-wal", "b.partial.lock", "c.partial-shm", "mine.lock"]) {
    Deno.writeTextFileSync(`${temp.path}/${name}`, "left");
  }
  removeStalePartials(temp.path, (name) => ["a", "b", "c"].includes(name));
  assert.deepEqual(names(temp.path), ["mine.lock"]);
});

Deno.test("a claim of SQLite's partial does not fail where a lock cannot be released", () => {
  using temp = new TempFolder();
  const { unlockSync } = Deno.FsFile.prototype;
  Deno.FsFile.prototype.unlockSync = () => {
    throw new Error("no locks available");
  };
  try {
    PartialFile.claim(`${temp.path}/a.partial`, { forSqlite: true })[Symbol.dispose]();
  } finally {
    Deno.FsFile.prototype.unlockSync = unlockSync;
  }
  assert.deepEqual(names(temp.path), []);
});

Deno.test("a claim that fails leaves no lock", () => {
  using temp = new TempFolder();
  Deno.mkdirSync(`${temp.path}/a.partial`);
  assert.throws(() => PartialFile.claim(`${temp.path}/a.partial`, { forSqlite: true }));
  assert.deepEqual(names(temp.path), ["a.partial"]);
});

testWith(["modes"], "a partial gets the access rights of a file, and its owner can write it", () => {
  using temp = new TempFolder();
  const like = `${temp.path}/like`;
  Deno.writeTextFileSync(like, "");
  for (const mode of [0o600, 0o640, 0o666, 0o440]) {
    Deno.chmodSync(like, mode);
    for (const forSqlite of [true, false]) {
      using partial = PartialFile.claim(`${temp.path}/a.partial`, { like, forSqlite });
      assert.equal(Deno.statSync(partial.path).mode! & 0o777, mode | 0o600);
    }
  }
});

Deno.test("a read waits for another process that has locked the file, as Windows needs", () => {
  using temp = new TempFolder();
  Deno.writeTextFileSync(`${temp.path}/a`, "content");
  const { readSync } = Deno.FsFile.prototype;
  let refused = 0;
  Deno.FsFile.prototype.readSync = function (bytes) {
    if (refused++ < 3) throw Object.assign(new Error("lock violation (os error 33)"), { code: "EBUSY" });
    return readSync.call(this, bytes);
  };
  try {
    using file = Deno.openSync(`${temp.path}/a`);
    assert.equal(readFull(file, new Uint8Array(100)), BYTES.length);
  } finally {
    Deno.FsFile.prototype.readSync = readSync;
  }
});

Deno.test("two files whose numbers are equal as doubles are not the same file", () => {
  using temp = new TempFolder();
  Deno.writeTextFileSync(`${temp.path}/a`, "");
  const stat = Deno.statSync(`${temp.path}/a`);
  const [one, other] = [2 ** 60, 2 ** 60 + 1].map((ino, i) => ({ ...stat, ino, birthtime: new Date(i) }));
  assert.equal(one!.ino, other!.ino);
  assert.equal(isSameFile(one!, other!), false);
  assert.equal(isSameFile(one!, { ...one! }), true);
});

Deno.test("a partial for SQLite starts and ends without sidecars", () => {
  using temp = new TempFolder();
  const path = `${temp.path}/a.partial`;
  for (const end of ["", ...SIDECARS]) Deno.writeTextFileSync(path + end, "left by a killed process");
  {
    using _partial = PartialFile.claim(path, { forSqlite: true });
    assert.deepEqual(names(temp.path), ["a.partial", "a.partial.lock"]);
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

Deno.test("a file that cannot be replaced stays, and nothing else does", () => {
  using temp = new TempFolder();
  Deno.mkdirSync(`${temp.path}/a/b`, { recursive: true });
  // Windows calls it "access denied".
  const code = Deno.build.os === "windows" ? "permission" : "in_the_way";
  assert.throws(() => writeFileAtomic(temp.path, `${temp.path}/a`, BYTES, { replace: true }), { code });
  assert.deepEqual(names(temp.path), ["a"]);
});
