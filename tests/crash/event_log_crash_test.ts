import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { type Layout, layoutOf } from "../../lib/layout.ts";
import { logFiles, scan } from "../../lib/log/read.ts";
import { command, KILLED, rounds, run, TempFolder, testWith } from "../fixtures/mod.ts";
import { type Orders, type Phase, PHASE_BYTES, PHASES, recordOf, SELF_INFLICTED } from "./append_driver.ts";

const DRIVER = fileURLToPath(new URL("./append_driver.ts", import.meta.url));
const KILLS = rounds(12, 200);
/** How many processes are killed at the same time. */
const LANES = 2;

function driverArgs(orders: Orders): string[] {
  return ["run", "--allow-all", "--no-prompt", "--quiet", DRIVER, JSON.stringify(orders)];
}

/** Numbers from 0 to 1 that are the same for the same seed (mulberry32). */
function randomFrom(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Where the driver kills itself: in each phase in turn. Most writes are cut in the middle, so that lines are torn. */
function planned(random: () => number, round: number): Orders["die"] {
  const phase = PHASES[round % PHASES.length]!;
  const done = [random(), 0, random(), 1][Math.floor(round / PHASES.length) % 4]!;
  return { phase, call: 1 + Math.floor(random() * 8), done };
}

/** Starts a driver and kills it after a delay, unless it kills itself. Returns what it acknowledged. */
async function killed(orders: Orders, delayMs: number): Promise<string[]> {
  const child = command(Deno.execPath(), driverArgs(orders)).spawn();
  const kill = () => {
    try {
      child.kill("SIGKILL");
    } catch { /* it is dead */ }
  };
  const errors = new Response(child.stderr).text();
  let timer: ReturnType<typeof setTimeout> | undefined;
  let acknowledged = "";
  for await (const text of child.stdout.pipeThrough(new TextDecoderStream())) {
    // From the first acknowledgement on, because a kill during the start proves nothing.
    timer ??= setTimeout(kill, delayMs);
    acknowledged += text;
  }
  clearTimeout(timer);
  const { code } = await child.status;
  assert.deepEqual([code, await errors], [KILLED, ""]);
  return acknowledged.split("\n").slice(0, -1);
}

/** How many processes were killed in each phase. */
type Counts = Record<Phase | "other", number>;

async function killOneByOne(lane: number, layout: Layout, random: () => number, acknowledged: Set<string>) {
  const phaseFile = `${layout.base}/phase_${lane}`;
  const counts: Record<"inside" | "outside", Counts> = {
    inside: { waiting: 0, writing: 0, syncing: 0, other: 0 },
    outside: { waiting: 0, writing: 0, syncing: 0, other: 0 },
  };
  for (let round = 0; round < KILLS / LANES; round++) {
    Deno.writeFileSync(phaseFile, new Uint8Array([0]));
    const plan = round % 2 === 0 ? planned(random, round / 2) : undefined;
    const orders = { base: layout.base, name: `lane${lane}-${round}`, loops: 5, phaseFile, ...(plan && { die: plan }) };
    for (const id of await killed(orders, plan ? 2_000 : random() * 40)) acknowledged.add(id);
    const byte = Deno.readFileSync(phaseFile)[0]!;
    const self = byte > SELF_INFLICTED;
    const phase = [...PHASES, "other" as const].find((one) => PHASE_BYTES[one] === byte % SELF_INFLICTED);
    assert.ok(phase, `phase ${byte}`);
    assert.equal(self, plan !== undefined, `${JSON.stringify(orders)} did not die where it should`);
    counts[self ? "inside" : "outside"][phase]++;
  }
  return counts;
}

/** The counts as text. */
function told(counts: Counts): string {
  return Object.entries(counts).map(([phase, count]) => `${count} ${phase}`).join(", ");
}

/** Checks a log after kills, line by line and with `scan`. Returns how many lines are torn. */
async function checkLog(layout: Layout, acknowledged: Set<string>, kills: number): Promise<number> {
  const files = logFiles(layout.raw);
  const whole = new Set<string>();
  let torn = 0;
  for (const line of files.flatMap((file) => Deno.readTextFileSync(file).split("\n"))) {
    if (line === "") continue;
    let id: string;
    try {
      id = JSON.parse(line).run_id;
    } catch {
      torn++;
      continue;
    }
    assert.ok(line === JSON.stringify(recordOf(id)), `not what was written: ${line.slice(0, 100)}`);
    assert.ok(!whole.has(id), `${id} is there twice`);
    whole.add(id);
  }
  assert.deepEqual([...acknowledged].filter((id) => !whole.has(id)), []);
  assert.ok(torn <= kills, `${torn} torn lines of ${kills} kills`);
  const all = await Array.fromAsync(scan(files));
  assert.deepEqual(all.flatMap((found) => "record" in found ? [found.record.run_id] : []), [...whole]);
  assert.equal(all.length - whole.size, torn);
  return torn;
}

Deno.test(`after ${KILLS} kills, each acknowledged record is in the log completely and once`, async (t) => {
  using folder = new TempFolder();
  const layout = layoutOf(folder.path);
  const seed = Number(Deno.env.get("TEST_SEED") ?? Math.floor(Math.random() * 2 ** 31));
  const acknowledged = new Set<string>();
  // A process that holds the lock for a while again and again, so that the others have to wait.
  const beside = command(Deno.execPath(), driverArgs({ base: layout.base, name: "beside", holdMs: 3 })).spawn();
  const besides = beside.output();
  try {
    // Both lanes end before the test does, also where one fails.
    const ended = await Promise.allSettled(
      Array.from({ length: LANES }, (_, lane) => killOneByOne(lane, layout, randomFrom(seed + lane), acknowledged)),
    );
    const lanes = ended.map((lane) => {
      if (lane.status === "rejected") throw lane.reason;
      return lane.value;
    });
    beside.kill("SIGKILL");
    const { stdout, stderr, code } = await besides;
    assert.deepEqual([code, new TextDecoder().decode(stderr)], [KILLED, ""]);
    const acknowledgedBeside = new TextDecoder().decode(stdout).split("\n").slice(0, -1);
    for (const id of acknowledgedBeside) acknowledged.add(id);
    const torn = await checkLog(layout, acknowledged, KILLS + 1);

    const [inside, outside] = (["inside", "outside"] as const).map((by) =>
      Object.fromEntries(
        Object.keys(PHASE_BYTES).map((phase) => [
          phase,
          lanes.reduce((sum, counts) => sum + counts[by][phase as Phase], 0),
        ]),
      ) as Counts
    ) as [Counts, Counts];
    await t.step(`seed ${seed}: by itself ${told(inside)}; by another process ${told(outside)}`, () => {
      for (const phase of PHASES) assert.ok(inside[phase] + outside[phase] > 0, `no process was killed while ${phase}`);
    });
    await t.step(`${acknowledged.size} acknowledged, ${torn} lines torn`, () => {
      assert.ok(acknowledged.size > KILLS, "hardly anything was acknowledged");
      assert.ok(acknowledgedBeside.length > 0, "there was nothing to wait for");
      assert.ok(torn > 0, "no line was torn");
    });
  } catch (error) {
    throw new Error(`with TEST_SEED=${seed}`, { cause: error });
  } finally {
    try {
      beside.kill("SIGKILL");
    } catch { /* it is dead */ }
    await besides;
  }
});

/** A system call: its name, its text, and where it begins and ends in the trace. */
interface Call {
  name: string;
  text: string;
  begin: number;
  end: number;
}

/** The calls of all threads, in the order in which they began. */
function parseTrace(trace: string): Call[] {
  const calls: Call[] = [];
  const unfinished = new Map<string, Call>();
  for (const [place, line] of trace.split("\n").entries()) {
    const [, thread, text] = /^(\d+) +(.*)$/.exec(line) ?? [];
    if (thread === undefined || text === undefined) continue;
    const resumed = /^<\.\.\. \w+ resumed>(.*)$/.exec(text);
    const begun = unfinished.get(thread);
    if (resumed && begun) {
      begun.text += resumed[1];
      begun.end = place;
      unfinished.delete(thread);
    } else {
      const call = {
        name: /^\w*/.exec(text)![0],
        text: text.replace(/ *<unfinished \.\.\.>$/, ""),
        begin: place,
        end: place,
      };
      calls.push(call);
      if (call.text !== text) unfinished.set(thread, call);
    }
  }
  return calls;
}

/** The role of a call in this test; undefined when it has none. */
function roleOf({ name, text }: Call, { base, raw }: Layout): string | undefined {
  if (name === "write" && text.startsWith("write(1<")) return "acknowledge";
  if (/ = -1 /.test(text)) return undefined;
  const log = `${raw}/events_`;
  if (name === "openat") return text.includes(`"${log}`) && text.includes("O_APPEND") ? "open" : undefined;
  const path = /^\w+\(\d+<([^>]*)>/.exec(text)?.[1];
  const isSync = name === "fsync" || name === "fdatasync";
  if (isSync && path === base) return "sync base";
  if (isSync && path === raw) return "sync folder";
  if (!path?.startsWith(log)) return undefined;
  if (name === "flock") return text.includes("LOCK_EX") && text.endsWith(" = 0") ? "lock" : undefined;
  return isSync ? "sync" : name;
}

testWith(["strace"], "strace shows open, lock, one write and fsync before each acknowledgement", async () => {
  using folder = new TempFolder();
  const layout = layoutOf(folder.path);
  const trace = `${folder.path}/trace`;
  const batches = [1, 50, 1];
  const calls = "trace=openat,flock,write,writev,pwrite64,pwritev,fsync,fdatasync,ftruncate";
  const driver = driverArgs({ base: layout.base, name: "traced", batches });
  const { code, stdout, stderr } = await run("strace", [
    "-f",
    "-y",
    "-o",
    trace,
    "-e",
    calls,
    Deno.execPath(),
    ...driver,
  ]);
  assert.equal(code, 0, stderr);
  const ids = Array.from({ length: 52 }, (_, n) => `traced-${n}`);
  assert.deepEqual(stdout.split("\n").slice(0, -1), ids);

  const seen = parseTrace(Deno.readTextFileSync(trace)).flatMap((call) => {
    const role = roleOf(call, layout);
    return role === undefined ? [] : [{ ...call, role }];
  });
  const one = ["open", "lock", "write", "sync", "acknowledge"];
  assert.deepEqual(seen.map(({ role }) => role), [
    // The folders are synced, too, so that the names of a new file and a new folder are durable.
    ...["sync base", "open", "lock", "write", "sync", "sync folder", "acknowledge"],
    ...[...one, ...Array(49).fill("acknowledge")],
    ...one,
  ]);
  // One ends before the next one begins.
  for (const [i, call] of seen.entries()) assert.ok(i === 0 || seen[i - 1]!.end < call.begin, call.text);
  const bytes = (from: number, to: number) =>
    new TextEncoder().encode(ids.slice(from, to).map((id) => `${JSON.stringify(recordOf(id))}\n`).join("")).length;
  const written = seen.filter(({ role }) => role === "write").map(({ text }) => Number(/ = (\d+)$/.exec(text)?.[1]));
  assert.deepEqual(written, [bytes(0, 1), bytes(1, 51), bytes(51, 52)]);
});
