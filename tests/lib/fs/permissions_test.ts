import assert from "node:assert/strict";
import { accessFlags, outermost, quoteForShell } from "../../../lib/fs/permissions.ts";

Deno.test("of two spellings of one path, at least one is granted", () => {
  for (const [one, other] of [["/x/y/../out.csv", "/x/out.csv"], ["/x/./out.csv", "/x/out.csv"]] as const) {
    assert.notDeepEqual(outermost([one, other]), []);
    assert.deepEqual(outermost([one, other, "/x"]), ["/x"]);
  }
});

Deno.test("a path inside another one needs no grant of its own", () => {
  assert.deepEqual(outermost(["/srv/a", "/srv/a/db", "/srv/ab"]), ["/srv/a", "/srv/ab"]);
  assert.deepEqual(outermost(["/", "/db"]), ["/"]);
  assert.deepEqual(accessFlags({ env: [], read: outermost(["/", "/db"]), write: [] }), ["--allow-read=/"]);
});

Deno.test("an argument with a blank is quoted as a whole", () => {
  const [path, plain, quoted] = Deno.build.os === "windows"
    ? ["C:\\a b\\", "C:\\tel", '"C:\\a b\\\\"']
    : ["/it's a b", "/tel", `'/it'\\''s a b'`];
  assert.equal(quoteForShell(path!), quoted);
  assert.equal(quoteForShell(plain!), plain);
});
