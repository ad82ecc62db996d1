import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { type Layout, layoutOf } from "../../lib/layout.ts";
import { logFiles, scan } from "../../lib/log/read.ts";
import { interpreter, rounds, run, TempFolder, testWith } from "../fixtures/mod.ts";
import { type Orders, recordOf } from "./append_driver.ts";

const DRIVER = fileURLToPath(new URL("./append_driver.ts", import.meta.url));
const COUNT = rounds(250, 2_000);

/** Appends durably as the older Python agents do. */
const PYTHON_WRITER = `
import fcntl, json, os, sys
from datetime import datetime, timezone
raw, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
for number in range(count):
    now = datetime.now(timezone.utc)
    record = {"run_id": f"{name}-{number}", "event_type": "checkpoint", "timestamp": now.isoformat(),
              "payload_json": json.dumps({"number": number, "filler": "ä" * (number % 500)}), "id": None}
    with open(f"{raw}/events_{now:%Y%m%d}.ndjson", "a", encoding="utf-8") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        file.write(json.dumps({**record, "record_type": "event"}) + "\\n")
        file.flush()
        os.fsync(file.fileno())
        fcntl.flock(file.fileno(), fcntl.LOCK_UN)
`;

/** Appends from a process of Deno. Returns the ids that it has acknowledged. */
async function denoWriter({ base }: Layout, name: string, loops: number): Promise<string[]> {
  const orders: Orders = { base, name, loops, count: COUNT };
  const args = ["run", "--allow-all", "--no-prompt", "--quiet", DRIVER, JSON.stringify(orders)];
  const { code, stdout, stderr } = await run(Deno.execPath(), args);
  assert.equal(code, 0, stderr);
  return stdout.split("\n").slice(0, -1);
}

async function pythonWriter({ raw }: Layout, name: string): Promise<string[]> {
  const { code, stderr } = await run(interpreter(), ["-c", PYTHON_WRITER, raw, name, `${COUNT}`]);
  assert.equal(code, 0, stderr);
  return idsOf(name);
}

function idsOf(name: string): string[] {
  return Array.from({ length: COUNT }, (_, number) => `${name}-${number}`);
}

/** Checks the content of a line. Returns its run id. */
function checkRecord(line: string): string {
  const record = JSON.parse(line);
  const number = Number(record.run_id.split("-")[1]);
  if (record.run_id.startsWith("deno")) assert.ok(line === JSON.stringify(recordOf(record.run_id)), record.run_id);
  else assert.deepEqual(JSON.parse(record.payload_json), { number, filler: "ä".repeat(number % 500) });
  return record.run_id;
}

testWith(
  ["python"],
  `4 processes of Deno and 2 of Python append ${COUNT} records each to one log`,
  async (t) => {
    using folder = new TempFolder();
    const layout = layoutOf(folder.path);
    Deno.mkdirSync(layout.raw);
    // One at a time, and many concurrently.
    const loops = [1, 1, 8, 32];
    const written = await Promise.all([
      ...loops.map((count, i) => denoWriter(layout, `deno${i}`, count)),
      ...["python0", "python1"].map((name) => pythonWriter(layout, name)),
    ]);
    assert.deepEqual(written.map((ids) => ids.length), Array(6).fill(COUNT));

    const files = logFiles(layout.raw);
    const ids = files.flatMap((file) => Deno.readTextFileSync(file).trimEnd().split("\n").map(checkRecord));
    assert.equal(ids.length, 6 * COUNT);
    assert.deepEqual(new Set(ids), new Set(written.flat()));
    const all = await Array.fromAsync(scan(files));
    assert.deepEqual(all.map((found) => "record" in found ? found.record.run_id : found.rejected), ids);

    const writers = ids.map((id) => id.split("-")[0]);
    const changes = writers.filter((writer, i) => i > 0 && writer !== writers[i - 1]).length;
    await t.step(`the writer changes ${changes} times from one line to the next`, () => assert.ok(changes > 100));
  },
);
