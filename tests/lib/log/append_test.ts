import assert from "node:assert/strict";
import { gzipSync } from "node:zlib";
import { TelemetryError } from "../../../lib/errors.ts";
import { EventLog, type EventLogOptions } from "../../../lib/log/append.ts";
import { fileName, type Layout, layoutOf } from "../../../lib/layout.ts";
import { logFiles, type Rejection, scan } from "../../../lib/log/read.ts";
import { type LogRecord, MAX_LINE_BYTES, newRun } from "../../../lib/records.ts";
import { command, interpreter, NOBODY, ROOT, run, slashes, TempFolder, testWith } from "../../fixtures/mod.ts";

const NOON = "2025-12-10T12:00:00.000Z";
const LAST_MOMENT = "2025-12-10T23:59:59.999Z";
const MIDNIGHT = "2025-12-11T00:00:00.000Z";

/** A log in its own folder, with a clock that the test sets. */
class TestLog implements Disposable {
  readonly #folder = new TempFolder();
  readonly #realNow = Date.now;
  readonly layout: Layout;
  readonly log: EventLog;
  now = NOON;

  constructor(options?: EventLogOptions) {
    this.layout = layoutOf(`${this.#folder.path}/base`);
    Deno.mkdirSync(this.layout.raw, { recursive: true });
    this.log = new EventLog(this.layout, options);
    Date.now = () => Date.parse(this.now);
  }

  [Symbol.dispose](): void {
    Date.now = this.#realNow;
    this.#folder[Symbol.dispose]();
  }

  /** The file of the current day. */
  get path(): string {
    return `${this.layout.raw}/${fileName("log", new Date(this.now))}`;
  }

  get text(): string {
    return Deno.readTextFileSync(this.path);
  }

  /** Where the log is locked, Windows lets nobody read it. */
  get size(): number {
    return Deno.statSync(this.path).size;
  }

  /** Appends without awaiting. A rejection is reported where the promise is awaited. */
  append(record: LogRecord): Promise<void> {
    const appended = this.log.append(record);
    appended.catch(() => {});
    return appended;
  }

  /** Holds the lock of the log until disposed. */
  hold(): Deno.FsFile {
    const file = Deno.openSync(this.path, { append: true, create: true });
    file.lockSync(true);
    return file;
  }
}

function event(n: number, payload: string | null = null): LogRecord {
  return {
    run_id: `20251210T120000Z-tester-${String(n).padStart(8, "0")}`,
    event_type: "checkpoint",
    timestamp: "2025-12-10T12:00:00.000000+00:00",
    payload_json: payload,
    id: null,
    record_type: "event",
  };
}

function events(from: number, to: number): LogRecord[] {
  return Array.from({ length: to - from }, (_, i) => event(from + i));
}

function lines(...records: LogRecord[]): string {
  return records.map((record) => `${JSON.stringify(record)}\n`).join("");
}

async function scanned(files: string[]): Promise<{ records: LogRecord[]; rejected: Rejection[] }> {
  const all = await Array.fromAsync(scan(files));
  return {
    records: all.flatMap((found) => "record" in found ? [found.record] : []),
    rejected: all.flatMap((found) => "rejected" in found ? [found] : []),
  };
}

async function rejectsWith(code: string, appended: Promise<void>): Promise<TelemetryError> {
  const error = await appended.then(() => undefined, (error) => error);
  assert.ok(error instanceof TelemetryError, `expected ${code}, got ${error}`);
  assert.equal(error.code, code, error.message);
  return error;
}

type Method = "writeSync" | "sync" | "syncSync" | "truncateSync" | "lock" | "tryLockSync";

/** Replaces a method of all open files until disposed; `real` is the method. */
function instead<Name extends Method>(
  name: Name,
  act: (
    file: Deno.FsFile,
    real: Deno.FsFile[Name],
    ...args: Parameters<Deno.FsFile[Name]>
  ) => ReturnType<Deno.FsFile[Name]>,
): Disposable {
  const files = Deno.FsFile.prototype;
  const original = files[name];
  files[name] = function (this: Deno.FsFile, ...args: Parameters<Deno.FsFile[Name]>) {
    return act(this, original.bind(this) as Deno.FsFile[Name], ...args);
  } as Deno.FsFile[Name];
  return { [Symbol.dispose]: () => void (files[name] = original) };
}

/** Counts the writes and syncs of files. */
function counted(): Disposable & { writes: number; syncs: number } {
  const stack = new DisposableStack();
  const counts = { writes: 0, syncs: 0, [Symbol.dispose]: () => stack.dispose() };
  stack.use(instead("writeSync", (_file, real, bytes) => {
    counts.writes++;
    return real(bytes);
  }));
  stack.use(instead("sync", (_file, real) => {
    counts.syncs++;
    return real();
  }));
  stack.use(instead("syncSync", (file, real) => {
    if (file.statSync().isFile) counts.syncs++;
    return real();
  }));
  return counts;
}

/** Resolves when a log has tried its lock and not got it. */
function refusal(): Disposable & { seen: Promise<void> } {
  const { promise: seen, resolve } = Promise.withResolvers<void>();
  const patched = instead("tryLockSync", (_file, real, exclusive) => {
    const got = real(exclusive);
    if (!got) resolve();
    return got;
  });
  return { seen, [Symbol.dispose]: () => patched[Symbol.dispose]() };
}

/** Lets syncs of files, but not of folders, fail while `failing` returns true. */
function failingSyncs(failing: () => boolean): Disposable {
  const failed = () => Object.assign(new Error("Input/output error (os error 5)"), { code: "EIO" });
  const stack = new DisposableStack();
  stack.use(instead("sync", (_file, real) => failing() ? Promise.reject(failed()) : real()));
  stack.use(instead("syncSync", (file, real) => {
    if (file.statSync().isFile && failing()) throw failed();
    return real();
  }));
  return stack;
}

/** Another process that holds the lock of a file until disposed. */
async function otherHolder(path: string, program: string, args: string[]): Promise<AsyncDisposable> {
  const child = command(program, [...args, path]).spawn();
  const end = async () => {
    child.kill("SIGKILL");
    await Promise.all([child.status, child.stdout.cancel(), child.stderr.cancel()]);
  };
  const reader = child.stdout.getReader();
  const { value } = await reader.read();
  reader.releaseLock();
  if (value === undefined) await end();
  assert.equal(new TextDecoder().decode(value).trim(), "held");
  return { [Symbol.asyncDispose]: end };
}

/** It also ends by itself, in case the test is killed. */
const DENO_HOLDER = `const file = Deno.openSync(Deno.args[0], { append: true, create: true });
file.lockSync(true);
console.log("held");
setTimeout(() => file.close(), 20_000);`;
const PYTHON_HOLDER = `import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file.fileno(), fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(20)`;

/** The longest time in which no timer ran while something was awaited, in milliseconds. */
async function longestGap(awaited: () => Promise<unknown>): Promise<number> {
  let longest = 0, last = performance.now();
  const tick = () => {
    longest = Math.max(longest, performance.now() - last);
    last = performance.now();
  };
  const timer = setInterval(tick, 1);
  try {
    await awaited();
  } finally {
    clearInterval(timer);
  }
  tick();
  return longest;
}

Deno.test("append resolves when the line is in the file of the UTC day", async () => {
  const day = () => fileName("log", new Date());
  using folder = new TempFolder();
  const layout = layoutOf(folder.path);
  const log = new EventLog(layout);
  const run = {
    ...newRun({ run_id: "r", agent_name: "a — 日本語 🚀\n", start_time: "t" }),
    record_type: "run" as const,
  };
  const before = day();
  await log.append(run);
  const [file, ...others] = logFiles(layout.raw);
  assert.deepEqual(others, []);
  assert.ok([before, day()].some((name) => slashes(file!) === `${slashes(layout.raw)}/${name}`), file);
  const text = Deno.readTextFileSync(file!);
  assert.equal(text.indexOf("\n"), text.length - 1);
  assert.deepEqual(JSON.parse(text), run);
  assert.ok(text.endsWith('"record_type":"run"}\n'));
});

Deno.test("appends of one turn share one write and one sync, in the order of the calls", async () => {
  using test = new TestLog();
  using calls = counted();
  await Promise.all(events(0, 500).map((record) => test.log.append(record)));
  assert.equal(test.text, lines(...events(0, 500)));
  assert.deepEqual([calls.writes, calls.syncs], [1, 1]);
});

Deno.test("appends that arrive during a write share the next write", async () => {
  using test = new TestLog();
  using calls = counted();
  const all: Promise<void>[] = [];
  {
    // The first sync of a log leaves the event loop free.
    using _ = instead("sync", async (_file, real) => {
      if (all.length === 1) { for (const record of events(1, 50)) all.push(test.log.append(record)); }
      await real();
    });
    all.push(test.log.append(event(0)));
    await all[0];
    assert.equal(all.length, 50);
    await Promise.all(all);
  }
  assert.equal(test.text, lines(...events(0, 50)));
  assert.equal(calls.writes, 2);
});

Deno.test("the size of a batch is bounded", async () => {
  using test = new TestLog();
  using calls = counted();
  const records = Array.from({ length: 12 }, (_, n) => event(n, "x".repeat(256 * 1024)));
  await Promise.all(records.map((record) => test.log.append(record)));
  assert.equal(calls.writes, 3);
  assert.equal(test.text, lines(...records));
});

Deno.test("append copies the record at the call", async () => {
  using test = new TestLog();
  const record = event(1, "before");
  const appended = test.log.append(record);
  record.run_id = "changed";
  await appended;
  assert.equal(test.text, lines(event(1, "before")));
});

Deno.test("append writes complete lines when the system writes a few bytes at a time", async () => {
  using test = new TestLog();
  {
    using _ = instead("writeSync", (_file, real, bytes) => real(bytes.subarray(0, 7)));
    await Promise.all([event(1, "äöü — 日本語 🚀"), event(2)].map((record) => test.log.append(record)));
  }
  assert.equal(test.text, lines(event(1, "äöü — 日本語 🚀"), event(2)));
});

Deno.test("two logs on one folder do not disturb each other", async () => {
  using test = new TestLog();
  const other = new EventLog(test.layout);
  const append = async (log: EventLog, from: number) => {
    for (const record of events(from, from + 100)) await log.append(record);
  };
  await Promise.all([append(test.log, 0), append(other, 100)]);
  const { records, rejected } = await scanned([test.path]);
  assert.deepEqual(rejected, []);
  assert.deepEqual(records.map(({ run_id }) => run_id).sort(), events(0, 200).map(({ run_id }) => run_id));
});

const WHOLE = lines(event(7)).trimEnd();
const HALF = WHOLE.slice(0, 60);

for (
  const [name, before, separator, kept, rejects] of [
    ["an empty file", "", "", [], []],
    ["a whole line", `${WHOLE}\n`, "", [event(7)], []],
    ["a whole line of Windows", `${WHOLE}\r\n`, "", [event(7)], []],
    ["half a line", `${WHOLE}\n${HALF}`, "\n", [event(7)], [HALF]],
    ["half a line with a whole one glued to it", `${HALF}${WHOLE}`, "\n", [event(7)], [HALF]],
    ["half a line that ends in the middle of a character", new Uint8Array([0x7b, 0x22, 0xe2, 0x80]), "\n", [], ['{"�']],
    ["a whole record without a newline", WHOLE, "\n", [event(7)], []],
    ["half the newline of Windows", `${WHOLE}\r`, "\n", [event(7)], []],
    ["NULs", `${WHOLE}\n${"\0".repeat(4096)}`, "\n", [event(7)], []],
    ["half a line and NULs", `${WHOLE}\n${HALF}\0\0\0`, "\n", [event(7)], [HALF]],
    ["blank lines", "\n\n", "", [], []],
  ] as const
) {
  Deno.test(`append writes a line of its own after ${name}`, async () => {
    using test = new TestLog();
    const bytes = typeof before === "string" ? new TextEncoder().encode(before) : before;
    Deno.writeFileSync(test.path, bytes);
    await test.log.append(event(8));
    const added = new TextEncoder().encode(separator + lines(event(8)));
    assert.deepEqual(Deno.readFileSync(test.path), new Uint8Array([...bytes, ...added]));
    const { records, rejected } = await scanned([test.path]);
    assert.deepEqual(records, [...kept, event(8)]);
    assert.deepEqual(rejected.map(({ text }) => text), rejects);
    await test.log.append(event(9));
    assert.ok(test.text.endsWith(lines(event(8), event(9))));
  });
}

Deno.test("append creates a folder that has vanished, and reports it once", async () => {
  const made: string[] = [];
  using test = new TestLog({ onFolderCreated: (folder) => made.push(folder) });
  await test.log.append(event(1));
  assert.deepEqual(made, []);
  Deno.removeSync(test.layout.raw, { recursive: true });
  await test.log.append(event(2));
  await test.log.append(event(3));
  assert.deepEqual(made, [test.layout.raw]);
  assert.equal(test.text, lines(event(2), event(3)));
  Deno.removeSync(test.layout.base, { recursive: true });
  await test.log.append(event(4));
  assert.deepEqual(made, [test.layout.raw, test.layout.raw]);
  assert.equal(test.text, lines(event(4)));
});

/** What users and programs do to the log while it is in use; `kept` is whether its records can still be read. */
const REPLACEMENTS: [name: string, replace: (path: string) => void, kept: boolean][] = [
  ["deleted", (path) => Deno.removeSync(path), false],
  ["renamed", (path) => Deno.renameSync(path, path.replace(".ndjson", "_old.ndjson")), true],
  ["gzipped", (path) => {
    Deno.writeFileSync(`${path}.gz`, gzipSync(Deno.readFileSync(path)));
    Deno.removeSync(path);
  }, true],
  ["replaced by another file", (path) => {
    Deno.writeTextFileSync(`${path}.new`, lines(event(50)));
    Deno.renameSync(`${path}.new`, path);
  }, false],
];

for (const [name, replace, kept] of REPLACEMENTS) {
  Deno.test(`append writes to the file at the path after the log was ${name}`, async () => {
    using test = new TestLog();
    await test.log.append(event(1));
    replace(test.path);
    await test.log.append(event(2));
    await test.log.append(event(3));
    assert.ok(test.text.endsWith(lines(event(2), event(3))));
    const { records, rejected } = await scanned(logFiles(test.layout.raw));
    assert.equal(records.length, kept || name.startsWith("replaced") ? 3 : 2);
    assert.deepEqual(rejected, []);
  });

  testWith(
    ["openRemoval"],
    `append writes to the file at the path when the log is ${name} while it waits`,
    async () => {
      using test = new TestLog();
      await test.log.append(event(1));
      using held = test.hold();
      using refused = refusal();
      const appended = test.append(event(2));
      await refused.seen;
      replace(test.path);
      held.close();
      await appended;
      assert.ok(test.text.endsWith(lines(event(2))));
      const { records } = await scanned(logFiles(test.layout.raw));
      assert.deepEqual(records.filter(({ run_id }) => run_id === event(2).run_id).length, 1);
      assert.equal(records.some(({ run_id }) => run_id === event(1).run_id), kept);
    },
  );
}

testWith(["folderSync"], "append syncs the folder once for each new file", async () => {
  using test = new TestLog();
  let syncs = 0;
  using _ = instead("syncSync", (file, real) => {
    if (file.statSync().isDirectory) syncs++;
    return real();
  });
  const syncsOf = async (n: number) => {
    syncs = 0;
    await test.log.append(event(n));
    return syncs;
  };
  assert.equal(await syncsOf(1), 1);
  assert.equal(await syncsOf(2), 0);
  for (const [, replace] of REPLACEMENTS) {
    replace(test.path);
    assert.equal(await syncsOf(3), 1);
    assert.equal(await syncsOf(4), 0);
  }
  test.now = MIDNIGHT;
  assert.equal(await syncsOf(5), 1);
  test.now = NOON;
  Deno.removeSync(test.layout.raw, { recursive: true });
  assert.equal(await syncsOf(6), 2, "the folder, and its name in {base}");
});

Deno.test("a new log begins at midnight UTC", async () => {
  using test = new TestLog();
  test.now = LAST_MOMENT;
  const lastDay = test.path;
  await test.log.append(event(1));
  test.now = MIDNIGHT;
  await test.log.append(event(2));
  assert.equal(Deno.readTextFileSync(lastDay), lines(event(1)));
  assert.equal(test.text, lines(event(2)));
  assert.ok(lastDay.endsWith("/events_20251210.ndjson") && test.path.endsWith("/events_20251211.ndjson"));
});

Deno.test("the day of the write decides the file, not the day of the call", async () => {
  using test = new TestLog();
  test.now = LAST_MOMENT;
  const lastDay = test.path;
  using held = test.hold();
  using refused = refusal();
  const appended = [test.append(event(1))];
  await refused.seen;
  appended.push(test.append(event(2)));
  test.now = MIDNIGHT;
  held.close();
  await Promise.all(appended);
  assert.equal(Deno.readTextFileSync(lastDay), "");
  assert.equal(test.text, lines(event(1), event(2)));
});

for (
  const [needs, name, program, args] of [
    [[], "Deno", Deno.execPath(), ["eval", "--quiet", DENO_HOLDER]],
    [["python"], "Python", interpreter(), ["-c", PYTHON_HOLDER]],
  ] as const
) {
  testWith([...needs], `append waits while a process of ${name} holds the lock`, async () => {
    using test = new TestLog();
    await using stack = new AsyncDisposableStack();
    const holder = stack.use(await otherHolder(test.path, program, [...args]));
    using refused = refusal();
    const appended = test.append(event(1));
    await refused.seen;
    assert.equal(test.size, 0);
    stack.move();
    await holder[Symbol.asyncDispose]();
    await appended;
    assert.equal(test.text, lines(event(1)));
  });
}

Deno.test("append rejects after lockTimeoutMs and writes nothing", async () => {
  using test = new TestLog({ lockTimeoutMs: 200 });
  await test.log.append(event(1));
  {
    await using _ = await otherHolder(test.path, Deno.execPath(), ["eval", "--quiet", DENO_HOLDER]);
    const start = performance.now();
    const { message, hint } = await rejectsWith("locked", test.log.append(event(2)));
    const waited = performance.now() - start;
    assert.ok(waited >= 200 && waited < 5_000, `${waited} ms`);
    assert.ok(message.includes(test.layout.raw) && hint !== undefined);
    assert.equal(test.size, lines(event(1)).length);
  }
  await test.log.append(event(3));
  assert.equal(test.text, lines(event(1), event(3)));
});

Deno.test("a flood is written in several turns of the event loop, also where the disk is fast", async () => {
  using test = new TestLog();
  using _fast = instead("sync", () => Promise.resolve());
  using _fastSync = instead("syncSync", () => {});
  for (let n = 0; n < 10; n++) await test.append(event(n));
  const flood = Array.from({ length: 40 }, (_, n) => test.append(event(n, "x".repeat(100_000))));
  // Only promises continue, without a turn.
  for (let i = 0; i < 10_000; i++) await null;
  assert.ok(test.size > 1_000_000 && test.size < 1_300_000, `${test.size} bytes in one turn`);
  await Promise.all(flood);
  assert.ok(test.size > 4_000_000);
});

Deno.test("flushSync writes what waits, also during the sync of another batch, and each record once", async () => {
  using test = new TestLog();
  const syncing = Promise.withResolvers<void>();
  const synced = Promise.withResolvers<void>();
  const appended: Promise<void>[] = [];
  {
    using _slow = instead("sync", () => (syncing.resolve(), synced.promise));
    appended.push(test.append(event(1)));
    await syncing.promise;
    appended.push(test.append(event(2)));
    test.log.flushSync(0);
    assert.equal(test.size, lines(event(1), event(2)).length);
    synced.resolve();
    await Promise.all(appended);
  }
  await test.append(event(3));
  assert.equal(test.text, lines(event(1), event(2), event(3)));
});

Deno.test("flushSync writes through a file whose sync runs", async () => {
  using test = new TestLog();
  const appended: Promise<void>[] = [];
  const written = new Set<Deno.FsFile>();
  {
    using _writes = instead("writeSync", (file, real, bytes) => {
      written.add(file);
      return real(bytes);
    });
    using _begun = instead("sync", (_file, real) => {
      const synced = real();
      appended.push(test.append(event(2)));
      test.log.flushSync(0);
      return synced;
    });
    appended.push(test.append(event(1, "x".repeat(1_000_000))));
    await appended[0];
  }
  await Promise.all(appended);
  assert.equal(test.text, lines(event(1, "x".repeat(1_000_000)), event(2)));
  assert.equal(written.size, 1, "on Windows, only the handle with the lock can write");
});

Deno.test("flushSync writes through the file with which another log of the process holds the lock", async () => {
  using test = new TestLog();
  const others = [new EventLog(test.layout), new EventLog(test.layout)];
  const appended: Promise<void>[] = [];
  {
    using _begun = instead("sync", (_file, real) => {
      const synced = real();
      others.forEach((log, i) => appended.push(log.append(event(2 + i))));
      for (const log of others) log.flushSync(0);
      return synced;
    });
    appended.push(test.append(event(1)));
    await appended[0];
  }
  await Promise.all(appended);
  assert.equal(test.text, lines(event(1), event(2), event(3)));
  await test.append(event(4));
  await others[0]!.append(event(5));
  assert.equal(test.text, lines(event(1), event(2), event(3), event(4), event(5)));
});

Deno.test("a sync that fails removes nothing that flushSync has written behind its lines", async () => {
  using test = new TestLog();
  const other = new EventLog(test.layout);
  const appended: Promise<void>[] = [];
  {
    using _failing = instead("sync", () => {
      appended.push(other.append(event(2)));
      other.flushSync(0);
      return Promise.reject(new Error("Input/output error (os error 5)"));
    });
    await assert.rejects(test.append(event(1)));
  }
  await Promise.all(appended);
  assert.ok(test.text.endsWith(lines(event(2))));
});

Deno.test({
  name: "flushSync writes through the file whose request for the lock has succeeded meanwhile",
  // There, a handle does not get again what it has.
  ignore: Deno.build.os === "windows",
  async fn() {
    using test = new TestLog();
    const other = new EventLog(test.layout);
    using holder = test.hold();
    // A file that grows has writers that release the lock: the log then queues.
    using _growing = instead("tryLockSync", (_file, real, exclusive) => {
      const isLocked = real(exclusive);
      if (!isLocked) holder.writeSync(new TextEncoder().encode(lines(event(1))));
      return isLocked;
    });
    const flushed = Promise.withResolvers<string>();
    using _queued = instead("lock", async (_file, real, exclusive) => {
      const locked = real(exclusive);
      holder.unlockSync();
      await locked;
      appended.push(other.append(event(3)));
      other.flushSync(0);
      flushed.resolve(test.text);
    });
    const appended = [test.append(event(2))];
    assert.ok((await flushed.promise).endsWith(lines(event(3))));
    await Promise.all(appended);
    assert.ok(test.text.endsWith(lines(event(3), event(2))));
  },
});

Deno.test("flushSync writes what was appended however many promises have continued since", async () => {
  for (let continued = 0; continued < 20; continued++) {
    using test = new TestLog();
    const appended = test.append(event(1));
    for (let i = 0; i < continued; i++) await null;
    test.log.flushSync(0);
    assert.equal(test.size, lines(event(1)).length, `after ${continued}`);
    await appended;
    assert.equal(test.text, lines(event(1)), `after ${continued}`);
  }
});

Deno.test("flushSync takes over the batch that waits for the lock, and throws when it cannot get it", async () => {
  using test = new TestLog();
  const holder = test.hold();
  using refused = refusal();
  const appended = [test.append(event(1))];
  await refused.seen;
  appended.push(test.append(event(2)));
  assert.throws(() => test.log.flushSync(20), { code: "locked" });
  assert.equal(test.size, 0);
  holder.close();
  test.log.flushSync(0);
  // The promises have not continued yet: the same batch must not be written again.
  test.log.flushSync(0);
  assert.equal(test.text, lines(event(1), event(2)));
  await Promise.all(appended);
  await test.log.idle();
  assert.equal(test.text, lines(event(1), event(2)));
});

const GROWING_HOLDER = `const file = Deno.openSync(Deno.args[0], { append: true, create: true });
file.lockSync(true);
const append = () => file.writeSync(new TextEncoder().encode("\\n"));
append();
console.log("held");
let times = 0;
setInterval(() => ++times < 6 ? append() : file.close(), 100);`;

Deno.test("flushSync waits longer for a lock while the log grows", async () => {
  using test = new TestLog();
  let appended: Promise<void>[];
  {
    await using _ = await otherHolder(test.path, Deno.execPath(), ["eval", "--quiet", GROWING_HOLDER]);
    appended = [test.append(event(1)), test.append(event(2))];
    // It grows every 100 ms, and is held for 600.
    assert.throws(() => test.log.flushSync(10), { code: "locked" });
    test.log.flushSync(300);
  }
  assert.equal(test.text.trimStart(), lines(event(1), event(2)));
  await Promise.all(appended);
});

Deno.test("options of wrong kinds are refused: a wait without an end is not possible", () => {
  const wrong = [{ lockTimeoutMs: NaN }, { lockTimeoutMs: "5" }, { maxQueued: -1 }, { maxQueued: NaN }];
  for (const options of wrong) {
    assert.throws(() => new EventLog(layoutOf("/nowhere"), options as EventLogOptions), { code: "usage" });
  }
});

Deno.test("after one full wait for a held lock, the next appends do not wait until the log grows", async () => {
  using test = new TestLog({ lockTimeoutMs: 300 });
  const other = new EventLog(test.layout, { lockTimeoutMs: 300 });
  {
    using held = test.hold();
    await rejectsWith("locked", test.append(event(1)));
    let attempts = 0;
    using _counted = instead("tryLockSync", (_file, real, exclusive) => {
      attempts++;
      return real(exclusive);
    });
    for (let n = 2; n < 4; n++) await rejectsWith("locked", test.append(event(n)));
    await rejectsWith("locked", other.append(event(4)));
    assert.equal(attempts, 6);
    // A writer that releases the lock now and then.
    held.writeSync(new TextEncoder().encode(lines(event(5))));
    const appended = other.append(event(6));
    setTimeout(() => held.unlockSync(), 20);
    await appended;
  }
  await test.append(event(7));
  assert.equal(test.text, lines(event(5), event(6), event(7)));
});

Deno.test("many logs of one process do not wait for each other until they give up", async () => {
  using test = new TestLog();
  const logs = Array.from({ length: 700 }, () => new EventLog(test.layout, { lockTimeoutMs: 1000 }));
  const results = await Promise.allSettled(logs.flatMap((log, n) => [1, 2].map((i) => log.append(event(10 * n + i)))));
  assert.deepEqual(results.filter(({ status }) => status === "rejected"), []);
  const again = await Promise.allSettled(logs.map((log, n) => log.append(event(10 * n))));
  assert.deepEqual(again.filter(({ status }) => status === "rejected"), []);
  assert.equal(test.text.split("\n").length, 2101);
});

const ended = (n: number) =>
  ({
    ...newRun({ run_id: `r${n}`, agent_name: "a", start_time: NOON, status: "success" }),
    record_type: "run",
  }) as LogRecord;

Deno.test("a flood drops and counts the oldest events, and never a run", async () => {
  using test = new TestLog({ maxQueued: 10_000 });
  const records = [ended(0), ...events(0, 50), ended(1), ...events(50, 400), ended(2)];
  const results = await Promise.allSettled(records.map((record) => test.append(record)));
  const dropped = records.filter((_, i) => results[i]!.status === "rejected");
  assert.ok(dropped.every(({ record_type }) => record_type === "event"));
  assert.ok(dropped.length > 300 && dropped.length < 400, `${dropped.length} were dropped`);
  assert.equal(test.log.dropped, dropped.length);
  assert.deepEqual(dropped, events(0, 400).slice(0, dropped.length), "the oldest were dropped");
  assert.equal(test.text, lines(...records.filter((record) => !dropped.includes(record))));
});

Deno.test("an event that is dropped while nobody awaits a run does not reject anything else", async () => {
  using test = new TestLog({ maxQueued: 2_000 });
  using held = test.hold();
  using refused = refusal();
  const first = test.append(ended(0));
  await refused.seen;
  const run = test.append(ended(1));
  const flood = Promise.allSettled(events(0, 50).map((record) => test.append(record)));
  held.close();
  await Promise.all([first, run]);
  assert.ok((await flood).some(({ status }) => status === "rejected"));
});

Deno.test("append does not block the event loop while it waits for the lock", async () => {
  using test = new TestLog({ lockTimeoutMs: 250 });
  await using _ = await otherHolder(test.path, Deno.execPath(), ["eval", "--quiet", DENO_HOLDER]);
  // A wait that blocks does so every time; a busy machine does not.
  const gaps: number[] = [];
  for (let tries = 0; tries < 4 && !gaps.some((gap) => gap < 50); tries++) {
    gaps.push(await longestGap(() => rejectsWith("locked", test.log.append(event(1)))));
  }
  assert.ok(Math.min(...gaps) < 50, `gaps of ${gaps.map(Math.round)} ms`);
});

Deno.test("append does not block the event loop while a slow disk syncs", async () => {
  using test = new TestLog();
  let slow = 0, blocking = 0;
  using _ = instead("sync", async (_file, real) => {
    slow++;
    await new Promise((resolve) => setTimeout(resolve, 5));
    await real();
  });
  using __ = instead("syncSync", (file, real) => {
    if (file.statSync().isFile) blocking++;
    return real();
  });
  for (const record of events(0, 3)) await test.log.append(record);
  assert.deepEqual([slow, blocking], [3, 0]);
});

Deno.test("when maxQueued characters wait, the oldest events that can still be dropped are", async () => {
  using test = new TestLog({ maxQueued: 2_000 });
  const length = lines(event(0)).length;
  using held = test.hold();
  using refused = refusal();
  const accepted = [test.append(event(0))];
  await refused.seen;
  // The one that waits for the lock counts, too, and is not dropped.
  const room = Math.floor(2_000 / length);
  const oldest: Promise<unknown>[] = [];
  for (let n = 1; n < room; n++) oldest.push(rejectsWith("queue_full", test.append(event(n))));
  accepted.push(test.append(event(room)));
  for (const { hint } of await Promise.all(oldest) as TelemetryError[]) assert.ok(hint !== undefined);
  held.close();
  await Promise.all(accepted);
  assert.equal(test.text, lines(event(0), event(room)));
  await test.log.append(event(98));
  // A single one that is longer than the bound is let through when nothing waits.
  await test.log.append(event(99, "x".repeat(3_000)));
  assert.equal(test.text, lines(event(0), event(room), event(98), event(99, "x".repeat(3_000))));
});

Deno.test("failed appends no longer count as waiting", async () => {
  using test = new TestLog({ maxQueued: 2_000, lockTimeoutMs: 1 });
  const long = event(1, "x".repeat(1_500));
  {
    using _ = test.hold();
    for (let i = 0; i < 3; i++) await rejectsWith("locked", test.log.append(long));
  }
  await test.log.append(long);
  assert.equal(test.text, lines(long));
});

Deno.test("abandon rejects waiting and later appends, and nothing of them is written", async () => {
  using test = new TestLog();
  await test.log.append(event(1));
  using held = test.hold();
  using refused = refusal();
  const waiting = [test.append(event(2))];
  await refused.seen;
  waiting.push(test.append(event(3)), test.append(event(4)));
  const start = performance.now();
  test.log.abandon();
  for (const appended of waiting) await rejectsWith("closed", appended);
  assert.ok(performance.now() - start < 2_000);
  held.close();
  await rejectsWith("closed", test.log.append(event(5)));
  await test.log.idle();
  assert.equal(test.text, lines(event(1)));
});

Deno.test("idle waits for all appends, also for those that fail, and never rejects", async () => {
  using test = new TestLog({ lockTimeoutMs: 1 });
  await test.log.idle();
  const settled: string[] = [];
  const note = (what: string) => void settled.push(what);
  test.log.append(event(1)).then(() => note("written"));
  await test.log.idle();
  assert.deepEqual(settled, ["written"]);
  using _ = test.hold();
  test.log.append(event(2)).catch((error) => note(error.code));
  await test.log.idle();
  assert.deepEqual(settled, ["written", "locked"]);
});

for (const until of ["a part is written", "all is written", "it is synced"]) {
  Deno.test(`a write that fails when ${until} is truncated under the lock`, async () => {
    using test = new TestLog();
    const before = `${WHOLE}\n${HALF}`;
    Deno.writeTextFileSync(test.path, before);
    let failing = true, cuts = 0;
    {
      using _ = failingSyncs(() => failing && until === "it is synced");
      using __ = instead("writeSync", (_file, real, bytes) => {
        if (!failing || until === "it is synced") return real(bytes);
        real(until === "all is written" ? bytes : bytes.subarray(0, bytes.length / 2));
        throw Object.assign(new Error("No space left on device (os error 28)"), { code: "ENOSPC" });
      });
      using ___ = instead("truncateSync", (_file, real, length) => {
        cuts++;
        using another = Deno.openSync(test.path, { append: true });
        assert.equal(another.tryLockSync(true), false);
        return real(length);
      });
      const batch = events(0, 20).map((record) => test.append(record));
      for (const appended of batch) await rejectsWith(until === "it is synced" ? "io" : "disk_full", appended);
      assert.equal(cuts, 1);
      assert.equal(test.text, before);
      await rejectsWith(until === "it is synced" ? "io" : "disk_full", test.log.append(event(20)));
      assert.equal(test.text, before);
      failing = false;
      await test.log.append(event(8));
    }
    assert.equal(test.text, `${before}\n${lines(event(8))}`);
  });
}

Deno.test("the batch after a failed one is written", async () => {
  using test = new TestLog();
  let syncs = 0;
  using _ = failingSyncs(() => syncs++ === 0);
  using __ = instead("truncateSync", (_file, real, length) => {
    appended.push(test.append(event(2)));
    return real(length);
  });
  const appended = [test.append(event(1))];
  await rejectsWith("io", appended[0]!);
  await appended[1];
  assert.equal(test.text, lines(event(2)));
});

for (
  const [name, payload, field] of [
    ["a BigInt", { counts: { pages: 12n } }, "record.payload_json"],
    ["a BigInt in a list", [1, [2n]], "record.payload_json"],
    ["a toJSON that throws", { toJSON: () => assert.fail("no") }, "record.payload_json"],
  ] as const
) {
  Deno.test(`append rejects ${name} with the name of the field`, async () => {
    using test = new TestLog();
    const record = { ...event(1), payload_json: payload } as unknown as LogRecord;
    const { message } = await rejectsWith("invalid_record", test.log.append(record));
    assert.ok(message.startsWith(`${field} `), message);
    await test.log.idle();
    assert.deepEqual(logFiles(test.layout.raw), []);
  });
}

Deno.test("append rejects cycles and values that JSON lacks, and writes the other records of that turn", async () => {
  using test = new TestLog();
  const cyclic: Record<string, unknown> = { ...event(1) };
  cyclic["payload_json"] = cyclic;
  const refused = [cyclic, undefined, () => {}, { toJSON: () => undefined }].map((record) =>
    rejectsWith("invalid_record", test.log.append(record as unknown as LogRecord))
  );
  await test.log.append(event(2));
  const [{ message }] = await Promise.all(refused) as [TelemetryError];
  assert.ok(message.startsWith("record.payload_json "), message);
  assert.equal(test.text, lines(event(2)));
});

Deno.test("the longest accepted record can be read, and a longer one is rejected", async () => {
  using test = new TestLog();
  const room = MAX_LINE_BYTES - lines(event(1, "")).length;
  await rejectsWith("invalid_record", test.log.append(event(1, "x".repeat(room + 1))));
  // Fewer characters than the bound, more bytes.
  await rejectsWith("invalid_record", test.log.append(event(1, "é".repeat(room / 2 + 1))));
  // V8 ends the process when it converts an object with more text than a string can hold.
  const [much, escaped] = ["x".repeat(300_000_000), '"'.repeat(150_000_000)];
  await rejectsWith("invalid_record", test.log.append({ ...event(1, escaped), event_type: much } as LogRecord));
  assert.deepEqual(logFiles(test.layout.raw), []);
  const records = [event(1, "x".repeat(room)), event(2, "日".repeat(20_000_000 / 3)), event(3)];
  await Promise.all(records.map((record) => test.log.append(record)));
  const found = await scanned([test.path]);
  assert.deepEqual(found.rejected, []);
  assert.equal(found.records.length, 3);
  for (const [i, record] of records.entries()) {
    assert.ok(JSON.stringify(found.records[i]) === JSON.stringify(record), `record ${i}`);
  }
});

Deno.test("append reports a file where the folder should be", async () => {
  using test = new TestLog();
  Deno.removeSync(test.layout.raw);
  Deno.writeTextFileSync(test.layout.raw, "a file");
  const rejected = rejectsWith("in_the_way", test.log.append(event(1)));
  assert.throws(() => test.log.flushSync(0), { code: "in_the_way" });
  await rejected;
  assert.equal(Deno.readTextFileSync(test.layout.raw), "a file");
  Deno.removeSync(test.layout.raw);
  await test.log.append(event(2));
  assert.equal(test.text, lines(event(2)));
});

Deno.test({
  name: "append reports a missing permission of Deno",
  permissions: { read: true, write: false },
  fn: async () => {
    const { message } = await rejectsWith("permission", new EventLog(layoutOf("/nonexistent")).append(event(1)));
    assert.ok(message.includes("--allow-write"), message);
  },
});

const APPEND_ONE = `
const { EventLog } = await import("${new URL("../../../lib/log/append.ts", import.meta.url)}");
const { layoutOf } = await import("${new URL("../../../lib/layout.ts", import.meta.url)}");
const record = { run_id: "r", event_type: "e", timestamp: "t", payload_json: null, id: null, record_type: "event" };
console.log(await new EventLog(layoutOf(Deno.args[0])).append(record).then(() => "written", ({ code }) => code));`;

testWith(["nobody"], "append reports a folder or a log that it has no permission to write", async () => {
  using folder = new TempFolder();
  const layout = layoutOf(folder.path);
  const path = `${layout.raw}/${fileName("log", new Date())}`;
  Deno.chmodSync(folder.path, 0o755);
  Deno.mkdirSync(layout.raw, { mode: 0o755 });
  const append = () =>
    run(Deno.execPath(), ["eval", APPEND_ONE, folder.path], {
      uid: NOBODY,
      cwd: ROOT,
      env: { DENO_DIR: "/nonexistent" },
    });
  assert.deepEqual(await append(), { code: 0, stdout: "permission\n", stderr: "" });
  assert.deepEqual(logFiles(layout.raw), []);
  Deno.writeTextFileSync(path, `${WHOLE}\n`);
  assert.equal((await append()).stdout, "permission\n");
  assert.equal(Deno.readTextFileSync(path), `${WHOLE}\n`);
  Deno.chmodSync(path, 0o666);
  assert.equal((await append()).stdout, "written\n");
});

testWith(
  ["root"],
  "files that root creates get the owner of {base}, and existing files keep theirs",
  async () => {
    using test = new TestLog();
    const owner = (path: string) => {
      const { uid, gid } = Deno.statSync(path);
      return [uid, gid];
    };
    Deno.removeSync(test.layout.raw);
    Deno.chownSync(test.layout.base, 12_345, 54_321);
    await test.log.append(event(1));
    assert.deepEqual(owner(test.layout.raw), [12_345, 54_321]);
    assert.deepEqual(owner(test.path), [12_345, 54_321]);
    Deno.chownSync(test.path, 222, 333);
    await test.log.append(event(2));
    assert.deepEqual(owner(test.path), [222, 333]);
    test.now = MIDNIGHT;
    await test.log.append(event(3));
    assert.deepEqual(owner(test.path), [12_345, 54_321]);
  },
);

Deno.test({
  name: "no timer is left when a request in the queue has got the lock",
  sanitizeOps: true,
  sanitizeResources: true,
  async fn() {
    using test = new TestLog();
    using holder = test.hold();
    const appended = test.append(event(1));
    await new Promise((resolve) => setTimeout(resolve, 20));
    // Growth shows that the writers of the file release the lock: the append queues for it.
    holder.writeSync(new Uint8Array([0x0a]));
    // Its pauses grow to 20 ms.
    await new Promise((resolve) => setTimeout(resolve, 400));
    holder.unlockSync();
    await appended;
  },
});
