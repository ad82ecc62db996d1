/** Recoveries that are killed: real processes, real signals. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { checkHealth } from "../../lib/recovery/health.ts";
import { layoutOf } from "../../lib/layout.ts";
import { recoverDatabase, removeStaleRecovery } from "../../lib/recovery/recover.ts";
import { command, KILLED, ROOT, rounds, run, scriptArgs, TempFolder } from "../fixtures/mod.ts";
import { LATE, type Phase, PHASES } from "./recovery_driver.ts";
import {
  contentOf,
  copyDatabase,
  copyStore,
  delay,
  ENDS,
  FAST_FOLDER,
  isThere,
  makeStore,
  namesIn,
  randomFrom,
} from "./recovery_fixtures.ts";

const DRIVER = `${ROOT}tests/crash/recovery_driver.ts`;
const SEED = Number(Deno.env.get("TEST_SEED") ?? Math.floor(Math.random() * 2 ** 31));
const COPY = /^telemetry\.(?:corrupted\.|before_rebuild_)\d{8}_\d{6}\.sqlite$/;

/** What is wrong with a database when it is recovered. */
const STATES = ["damaged inside of pages", "without a header", "sound"] as const;
type State = typeof STATES[number];

/** What a store was before a recovery, and what it is to be after it. */
interface Expected {
  state: State;
  before: { content: string; hash: string };
  undisturbed: string;
}

/** Runs several rounds at a time. */
async function inParallel(rounds: number, round: (i: number) => Promise<void>): Promise<void> {
  let next = 0;
  const worker = async () => {
    while (next < rounds) await round(next++);
  };
  await Promise.all([worker(), worker()]);
}

/** A store whose database is in some state. */
function makeIn(state: State, base: string, runs: number): void {
  const store = makeStore(base, { seed: 7, runs, pageSize: 4096, wal: false });
  if (state === "sound") return;
  const bytes = Deno.readFileSync(store.database);
  if (state === "without a header") {
    bytes.fill(0, 0, 100);
    Deno.writeTextFileSync(`${store.database}-wal`, "what is left of a WAL".repeat(500));
  } else {
    const [root, ...pages] = [...store.runPages].sort((a, b) => a - b);
    assert.ok(root !== undefined && pages.length > 4);
    for (const page of [pages[1]!, pages[3]!]) bytes.fill(0, (page - 1) * 4096 + 200, page * 4096);
  }
  Deno.writeFileSync(store.database, bytes);
}

/** What the file holds, without the run that came late. */
function onTime(database: string): string {
  return contentOf(database).split("\n").filter((line) => !line.includes(LATE)).join("\n");
}

/** The same; undefined for what cannot be read. Leaves nothing beside it. */
function onTimeOrNot(database: string): string | undefined {
  const copy = `${database}.looked_at`;
  copyDatabase(database, copy);
  try {
    return onTime(copy);
  } catch {
    return undefined;
  } finally {
    for (const end of ENDS) if (isThere(copy + end)) Deno.removeSync(copy + end);
  }
}

function hashOf(path: string): string {
  return isThere(path) ? createHash("sha256").update(Deno.readFileSync(path)).digest("hex") : "";
}

/** Runs the driver. */
function driver(base: string, ...call: string[]) {
  return run(Deno.execPath(), ["run", "--quiet", "--no-check", "--allow-all", DRIVER, base, ...call]);
}

/** What a recovery makes of a copy of a store, and in which phase each of its calls is. */
async function undisturbed(original: string, state: State): Promise<Expected & { calls: Phase[] }> {
  const base = `${original} undisturbed`;
  copyStore(original, base);
  const { code, stdout, stderr } = await driver(base);
  assert.deepEqual([code, stderr], [0, ""]);
  const { database } = layoutOf(original);
  const before = { content: state === "sound" ? onTime(database) : "", hash: hashOf(database) };
  const after = layoutOf(base);
  const { only_in_log } = (await checkHealth(after, { compare: true })).runs!;
  assert.equal(only_in_log, 0, "what came while it was put in place is there");
  return { state, before, undisturbed: onTime(after.database), calls: JSON.parse(stdout) };
}

/** What is wrong with what a kill has left: the good name has what it had before, or what it is to have. */
function problemsLeft(base: string, { state, before, undisturbed }: Expected): string[] {
  const { database } = layoutOf(base);
  const size = isThere(database) ? Deno.statSync(database).size : -1;
  if (size <= 0) return [size < 0 ? "the database is gone" : "the database is empty"];
  // Looked at in a copy: the next recovery shall find exactly what the kill left.
  const content = onTimeOrNot(database);
  if (content === undisturbed) return [];
  if (state === "sound" ? content === before.content : hashOf(database) === before.hash) return [];
  // Where SQLite has undone a change that was broken off, the bytes are not all those of before.
  if (state === "damaged inside of pages" && content === undefined) return [];
  return [`neither what was nor what is to be: ${content?.slice(0, 200)}`];
}

/** Does what the script does next, and forces it where it was sound; what is wrong then. */
async function problemsNext(base: string, { state, undisturbed }: Expected): Promise<string[]> {
  const layout = layoutOf(base);
  const problems: string[] = [];
  const health = await checkHealth(layout, { mayRollBack: true });
  if (!health.healthy || state === "sound") await recoverDatabase(layout);
  else removeStaleRecovery(layout);
  if (onTime(layout.database) !== undisturbed) problems.push("run again, it is not as if never killed");
  const after = await checkHealth(layout, { compare: true });
  if (!after.healthy || after.runs!.only_in_log > 1) problems.push(`not healthy: ${JSON.stringify(after)}`);
  const copies = namesIn(layout.db).filter((name) => COPY.test(name));
  const left = [
    ...namesIn(layout.db).filter((name) =>
      !/^telemetry(\.(?:corrupted\.|before_rebuild_)\d{8}_\d{6})?\.sqlite(-\w+)?$/.test(name)
    ),
    ...namesIn(layout.db).filter((name) =>
      /(?:corrupted|before_rebuild).*-\w+$/.test(name) && !copies.includes(name.replace(/-\w+$/, ""))
    ),
    ...namesIn(layout.reports).filter((name) => name.endsWith(".partial")),
  ];
  problems.push(...left.map((name) => `left: ${name}`));
  // What was kept by the one that was killed, and what the next one found.
  if (copies.length > 2) problems.push(`${copies.length} copies are kept`);
  return problems;
}

/** Fails with the problems. */
function requireNone(problems: string[]): void {
  assert.equal(problems.length, 0, `TEST_SEED=${SEED}\n${problems.sort().join("\n")}`);
}

/**
 * So many calls, as `PHASE#CALL`: an equal share for each phase, from some phase on, spread evenly within it. Calls are
 * counted within their phase: an earlier phase can have more or fewer calls in another run.
 */
function callsToDieAt(calls: Phase[], count: number, from: number): string[] {
  const phases = [...new Set(calls)];
  return [...phases.slice(from), ...phases.slice(0, from)].flatMap((phase, p) => {
    const made = calls.filter((one) => one === phase).length;
    const share = Math.floor((p + 1) * count / phases.length) - Math.floor(p * count / phases.length);
    return Array.from({ length: share }, (_, i) => `${phase}#${Math.floor((i + 0.5) * made / share) + 1}`);
  });
}

Deno.test("a recovery killed before any of its calls can be run again with the same result", async (t) => {
  using temp = new TempFolder(FAST_FOLDER);
  // Half of the phases, in two of the states the other half.
  const PER_STATE = rounds((PHASES.length - 1) / 2, 24);
  const hits = new Map<string, number>();
  const problems: string[] = [];
  const plans: (Expected & { original: string; at: string[] })[] = [];
  for (const state of STATES) {
    const original = `${temp.path}/${state}`;
    // One log is large enough for a thread of its own.
    makeIn(state, original, state === "sound" ? 720 : 150);
    const { calls, ...expected } = await undisturbed(original, state);
    const other: Phase = state === "without a header" ? "placing through SQLite" : "placing by rename";
    assert.deepEqual(PHASES.filter((phase) => calls.includes(phase)), PHASES.filter((phase) => phase !== other), state);
    plans.push({ original, ...expected, at: callsToDieAt(calls, PER_STATE, plans.length === 0 ? 1 : 0) });
  }
  await inParallel(STATES.length * PER_STATE, async (i) => {
    const plan = plans[i % plans.length]!;
    const call = plan.at[Math.floor(i / plans.length)]!;
    const base = `${temp.path}/killed ${i}`;
    copyStore(plan.original, base);
    const { code, stdout } = await driver(base, call);
    const found: string[] = [];
    try {
      assert.equal(code, KILLED, stdout);
      found.push(...problemsLeft(base, plan));
      found.push(...await problemsNext(base, plan));
    } catch (error) {
      found.push(String(error));
    }
    hits.set(stdout, (hits.get(stdout) ?? 0) + 1);
    problems.push(...found.map((problem) => `${plan.state}, call ${call}, ${stdout}: ${problem}`));
    Deno.removeSync(base, { recursive: true });
  });
  const told = PHASES.map((phase) => `${phase} ${hits.get(phase) ?? 0}`).join(", ");
  await t.step(`killed ${STATES.length * PER_STATE} times: ${told}`, () => {
    for (const phase of PHASES) assert.ok(hits.has(phase), `never killed while ${phase}`);
  });
  requireNone(problems);
});

Deno.test(
  "a recovery killed repeatedly at one place leaves at most two copies and then succeeds",
  async () => {
    using temp = new TempFolder(FAST_FOLDER);
    const problems: string[] = [];
    const all: { state: State; phase: Phase }[] = [
      ...(["keeping the copy", "salvaging", "placing through SQLite"] as const).map((phase) => ({
        state: STATES[0],
        phase,
      })),
      ...(["keeping the copy", "salvaging", "placing by rename"] as const).map((phase) => ({
        state: STATES[1],
        phase,
      })),
    ];
    const places = rounds(all.filter((_, i) => i % 2 === 1), all);
    const stores = new Map<State, Expected>();
    for (const state of STATES.slice(0, 2)) {
      makeIn(state, `${temp.path}/${state}`, 150);
      stores.set(state, await undisturbed(`${temp.path}/${state}`, state));
    }
    await Promise.all(places.map(async ({ state, phase }, i) => {
      const base = `${temp.path}/chain ${i}`;
      copyStore(`${temp.path}/${state}`, base);
      const found: string[] = [];
      try {
        for (let kill = 1; kill <= rounds(2, 4); kill++) {
          const { code } = await driver(base, `${phase}#${kill + 2}`);
          // Once it is in place, or does not come by there again.
          const isWhole = (path: string) => isThere(path) && onTimeOrNot(path) === stores.get(state)!.undisturbed;
          if (code === 0 || isWhole(layoutOf(base).database)) break;
          found.push(...problemsLeft(base, stores.get(state)!));
          // Copies have the second in their names.
          await delay(1000 - Date.now() % 1000);
        }
        found.push(...await problemsNext(base, stores.get(state)!));
      } catch (error) {
        found.push(String(error));
      }
      problems.push(...found.map((problem) => `${state}, ${phase}: ${problem}`));
    }));
    requireNone(problems);
  },
);

Deno.test(
  "the script killed at any moment with a larger log can be run again with the same result",
  async (t) => {
    // Scripts with their own permissions get at nothing below /dev.
    using temp = new TempFolder();
    const KILLS = rounds(2, 28);
    const random = randomFrom(SEED);
    const problems: string[] = [];
    const hits = { before: 0, "keeping the copy": 0, building: 0, "in place": 0 };
    const script = (base: string) => {
      return command(Deno.execPath(), ["run", "--no-check", ...scriptArgs("recover_database", base).slice(1)]);
    };
    const plans = await Promise.all(
      STATES.slice(0, 2).map(async (state) => {
        const original = `${temp.path}/${state}`;
        makeIn(state, original, 800);
        const expected = await undisturbed(original, state);
        const base = `${original} timed`;
        copyStore(original, base);
        const start = performance.now();
        const { success, stderr } = await script(base).output();
        assert.ok(success, new TextDecoder().decode(stderr));
        return { ...expected, original, durationMs: performance.now() - start };
      }),
    );
    let [killed, tries] = [0, 0];
    await inParallel(84, async (i) => {
      if (killed >= KILLS && hits.building > 0) return;
      tries++;
      const plan = plans[i % plans.length]!;
      const base = `${temp.path}/killed ${i}`;
      copyStore(plan.original, base);
      const process = script(base).spawn();
      const afterMs = plan.durationMs * (0.2 + 0.65 * random());
      const timer = setTimeout(() => {
        try {
          process.kill("SIGKILL");
        } catch { /* it has ended */ }
      }, afterMs);
      const { success } = await process.output();
      clearTimeout(timer);
      if (!success) {
        killed++;
        const names = namesIn(`${base}/db`);
        const isOld = hashOf(layoutOf(base).database) === plan.before.hash;
        const phase = !isOld
          ? "in place"
          : names.some((name) => COPY.test(name))
          ? "building"
          : names.some((name) => /corrupted|before_rebuild/.test(name))
          ? "keeping the copy"
          : "before";
        hits[phase]++;
        const found: string[] = [];
        try {
          found.push(...problemsLeft(base, plan));
          found.push(...await problemsNext(base, plan));
        } catch (error) {
          found.push(String(error));
        }
        problems.push(...found.map((problem) => `${plan.state}, ${Math.round(afterMs)} ms, ${phase}: ${problem}`));
      }
      Deno.removeSync(base, { recursive: true });
    });
    await t.step(`TEST_SEED=${SEED}: killed ${killed} times in ${tries} rounds: ${JSON.stringify(hits)}`, () => {
      assert.ok(killed >= KILLS);
      assert.ok(hits.building > 0);
    });
    requireNone(problems);
  },
);
