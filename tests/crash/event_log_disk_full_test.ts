import assert from "node:assert/strict";
import { TelemetryError } from "../../lib/errors.ts";
import { EventLog } from "../../lib/log/append.ts";
import { fileName, type Layout, layoutOf } from "../../lib/layout.ts";
import { logFiles, scan } from "../../lib/log/read.ts";
import type { LogRecord } from "../../lib/records.ts";
import { run, SmallDisk, TempFolder, testWith } from "../fixtures/mod.ts";

const DAY = new Date("2025-12-10T12:00:00Z");
const PAGE = 4096;

/** A `{base}` on a disk of 256 KiB, with a clock that stands still. */
class FullStore implements Disposable {
  readonly #disk = new SmallDisk("256k");
  readonly #realNow = Date.now;
  readonly layout: Layout = layoutOf(this.#disk.path);
  readonly path = `${this.layout.raw}/${fileName("log", DAY)}`;
  readonly log = new EventLog(this.layout);

  constructor() {
    Deno.mkdirSync(this.layout.raw);
    Date.now = () => DAY.getTime();
  }

  [Symbol.dispose](): void {
    Date.now = this.#realNow;
    this.#disk[Symbol.dispose]();
  }

  /** Leaves no page free. The last page of a file can still be filled. */
  fill(): void {
    this.#disk.fill();
  }

  /** Makes room. */
  free(): void {
    this.#disk.free();
  }

  get text(): string {
    return Deno.readTextFileSync(this.path);
  }
}

function event(n: number, length = 0): LogRecord {
  return {
    run_id: `run-${n}`,
    event_type: "checkpoint",
    timestamp: "2025-12-10T12:00:00.000000+00:00",
    payload_json: JSON.stringify("ü".repeat(length / 2)),
    id: null,
    record_type: "event",
  };
}

function lines(...records: LogRecord[]): string {
  return records.map((record) => `${JSON.stringify(record)}\n`).join("");
}

async function rejectsAsFull(appended: Promise<void>): Promise<void> {
  const error = await appended.then(() => undefined, (error) => error);
  assert.ok(error instanceof TelemetryError && error.code === "disk_full" && error.hint !== undefined, String(error));
}

const HALF = lines(event(0)).slice(0, 50);

for (
  const [name, before, separator] of [
    ["whole lines", lines(event(1), event(2)), ""],
    ["half a line", lines(event(1)) + HALF, "\n"],
    ["a page that is full", lines(event(1)).padEnd(PAGE - 1) + "\n", ""],
    ["no file", "", ""],
  ] as const
) {
  testWith(["mount"], `on a full disk after ${name}, append rejects and changes nothing`, async () => {
    using disk = new FullStore();
    if (before !== "") Deno.writeTextFileSync(disk.path, before);
    disk.fill();
    await rejectsAsFull(disk.log.append(event(3, 2 * PAGE)));
    assert.equal(disk.text, before);
    await Promise.all([event(4), event(5), event(6, PAGE)].map((record) => rejectsAsFull(disk.log.append(record))));
    assert.equal(disk.text, before);
    disk.free();
    await disk.log.append(event(7, 2 * PAGE));
    assert.equal(disk.text, before + separator + lines(event(7, 2 * PAGE)));
    const { length } = await Array.fromAsync(scan(logFiles(disk.layout.raw)));
    assert.equal(length, before.trimEnd().split("\n").filter(Boolean).length + 1);
  });
}

testWith(
  ["mount"],
  "on a full disk, all records of a batch are rejected, and a record that fits is written",
  async () => {
    using disk = new FullStore();
    await disk.log.append(event(0));
    disk.fill();
    // The first ones would have fitted in what is left of the page.
    const batch = Array.from({ length: 40 }, (_, n) => disk.log.append(event(1 + n, 200)));
    await Promise.all(batch.map(rejectsAsFull));
    assert.equal(disk.text, lines(event(0)));
    await disk.log.append(event(50, 200));
    disk.free();
    await Promise.all([disk.log.append(event(51, PAGE)), disk.log.append(event(52))]);
    assert.equal(disk.text, lines(event(0), event(50, 200), event(51, PAGE), event(52)));
  },
);

const APPEND_UNTIL_REFUSED = `
const { EventLog } = await import("${new URL("../../lib/log/append.ts", import.meta.url)}");
const { layoutOf } = await import("${new URL("../../lib/layout.ts", import.meta.url)}");
const log = new EventLog(layoutOf(Deno.args[0]));
for (let n = 0; n < 1000; n++) {
  const record = { run_id: "run-" + n, event_type: "e", timestamp: "t", payload_json: "x".repeat(1000), id: null };
  try {
    await log.append({ ...record, record_type: "event" });
  } catch ({ name, code }) {
    console.log(JSON.stringify([n, name, code]));
    break;
  }
}`;

testWith(["linux"], "a record that exceeds the size limit of the file is rejected and truncated", async () => {
  using folder = new TempFolder();
  const { raw } = layoutOf(folder.path);
  const script = `trap '' XFSZ; ulimit -f 64; exec "$0" eval --quiet "$1" "$2"`;
  const env = { DENO_DIR: `${folder.path}/cache` };
  const { stdout, stderr } = await run("sh", ["-c", script, Deno.execPath(), APPEND_UNTIL_REFUSED, folder.path], {
    env,
  });
  assert.equal(stderr, "");
  const [written, name, code] = JSON.parse(stdout);
  assert.deepEqual([name, code], ["TelemetryError", "io"]);
  assert.ok(written > 10, stdout);
  const all = await Array.fromAsync(scan(logFiles(raw)));
  assert.deepEqual(
    all.map((found) => "record" in found ? found.record.run_id : found),
    Array.from({ length: written }, (_, n) => `run-${n}`),
  );
  assert.ok(logFiles(raw).every((file) => Deno.readTextFileSync(file).endsWith("}\n")));
});
