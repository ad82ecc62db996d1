import assert from "node:assert/strict";
import { EventLog } from "../../lib/log/append.ts";
import { fileName, layoutOf } from "../../lib/layout.ts";
import { Holder, TempFolder } from "../fixtures/mod.ts";

/** Holds the lock for 20 ms, writes, and takes it again immediately. It also ends by itself. */
const BUSY_WRITER = `for (let n = 0; n < 500; n++) {
  using file = Deno.openSync(Deno.args[0], { append: true, create: true });
  file.lockSync(true);
  file.writeSync(new Uint8Array([0x0a]));
  if (n === 0) console.log("held");
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20);
}`;

Deno.test("append gets the lock beside a writer that takes it again and again", async () => {
  using folder = new TempFolder();
  const layout = layoutOf(folder.path);
  Deno.mkdirSync(layout.raw);
  const now = Date.now();
  const realNow = Date.now;
  const path = `${layout.raw}/${fileName("log", new Date(now))}`;
  await using _writer = await Holder.start(Deno.execPath(), ["eval", "--quiet", BUSY_WRITER, path]);
  try {
    Date.now = () => now;
    const log = new EventLog(layout);
    const start = performance.now();
    for (let n = 0; n < 10; n++) {
      await log.append({
        run_id: `r${n}`,
        event_type: "e",
        timestamp: "t",
        payload_json: null,
        id: null,
        record_type: "event",
      });
    }
    const mean = (performance.now() - start) / 10;
    assert.ok(mean < 300, `${Math.round(mean)} ms for each append`);
  } finally {
    Date.now = realNow;
  }
});
