/** Recoveries of databases with every kind of damage that we know. */
import assert from "node:assert/strict";
import { DatabaseSync, StatementSync } from "node:sqlite";
import fc from "npm:fast-check@4.10.2";
import { errorMessage } from "../../lib/errors.ts";
import { checkHealth } from "../../lib/recovery/health.ts";
import { layoutOf } from "../../lib/layout.ts";
import { recoverDatabase } from "../../lib/recovery/recover.ts";
import { callsOf, rounds, TempFolder } from "../fixtures/mod.ts";
import {
  contentOf,
  FAST_FOLDER,
  integrityOf,
  isThere,
  makeStore,
  missingFrom,
  namesIn,
  randomFrom,
  rowsOf,
  sqlite,
  type Store,
  type StorePlan,
} from "./recovery_fixtures.ts";

const SEED = Number(Deno.env.get("TEST_SEED") ?? 20251210);
/** Runs only one case, to debug it. */
const ONLY = Deno.env.get("TEST_CASE");
const CASES = rounds(18, 300);
const LANES = 3;

/** What happens to the files. */
const KINDS = [
  "bytes overwritten",
  "bytes overwritten, not in runs",
  "pages zeroed",
  "pages zeroed, not of runs",
  "pages of garbage",
  "pages exchanged",
  "file cut",
  "file cut at a known place",
  "header destroyed",
  "first page destroyed",
  "WAL cut",
  "WAL overwritten",
  "WAL lost",
  "WAL and header destroyed",
  "WAL of another store",
  "WAL of another program",
  "database lost, sidecars there",
  "journal garbage",
] as const;
type Kind = typeof KINDS[number];

interface Case {
  plan: StorePlan;
  kind: Kind;
  /** The seed of place and extent. */
  damage: number;
}

/** Kinds that need content in the WAL. */
const NEEDS_WAL: readonly Kind[] = ["WAL cut", "WAL overwritten", "WAL lost", "WAL and header destroyed"];

const seeds: fc.Arbitrary<Omit<Case, "kind">> = fc.record({
  plan: fc.record({
    seed: fc.integer({ min: 0, max: 2 ** 31 - 1 }),
    runs: fc.integer({ min: 40, max: 120 }),
    pageSize: fc.constantFrom(4096, 4096, 4096, 1024, 512, 8192),
    wal: fc.boolean(),
  }),
  damage: fc.integer({ min: 0, max: 2 ** 31 - 1 }),
});

/** Cases in which each kind is equally frequent. */
function casesOf(seed: number, count: number): Case[] {
  return fc.sample(seeds, { seed, numRuns: count }).map((one, i) => {
    const kind = KINDS[i % KINDS.length]!;
    return { ...one, kind, plan: { ...one.plan, wal: one.plan.wal || NEEDS_WAL.includes(kind) } };
  });
}

/** Damages the files of a store. Returns whether every page of `agent_runs` stays intact. */
function damage(store: Store, { plan, kind, damage: seed }: Case): boolean {
  const random = randomFrom(seed);
  const below = (count: number) => Math.floor(random() * count);
  const { database, runPages } = store;
  const wal = `${database}-wal`;
  const garbage = (length: number) => Uint8Array.from({ length }, () => below(256));
  const change = (path: string, work: (bytes: Uint8Array) => Uint8Array | void) => {
    const bytes = Deno.readFileSync(path);
    Deno.writeFileSync(path, work(bytes) ?? bytes);
  };
  /** Damages some pages. Returns whether every page of `agent_runs` stays intact. */
  const somePages = (work: (page: Uint8Array, bytes: Uint8Array) => void, mayBeOfRuns: boolean): boolean => {
    let isSpared = true;
    change(database, (bytes) => {
      for (let i = 1 + below(kind.startsWith("bytes") ? 12 : 4); i > 0; i--) {
        const page = 1 + below(store.pages);
        if (runPages.has(page)) {
          if (!mayBeOfRuns) continue;
          isSpared = false;
        }
        work(bytes.subarray((page - 1) * plan.pageSize, page * plan.pageSize), bytes);
      }
    });
    return isSpared;
  };
  const overwrite = (bytes: Uint8Array) =>
    bytes.set(garbage(1 + below(Math.min(40, bytes.length))), below(bytes.length - 40));
  const header = () =>
    change(database, (bytes) => {
      const length = [16, 28, 100][below(3)]!;
      bytes.set(below(2) === 0 ? new Uint8Array(length) : garbage(length));
    });
  switch (kind) {
    case "bytes overwritten":
    case "bytes overwritten, not in runs":
      return somePages(overwrite, kind === "bytes overwritten");
    case "pages zeroed":
    case "pages zeroed, not of runs":
      return somePages((page) => page.fill(0), kind === "pages zeroed");
    case "pages of garbage":
      return somePages((page) => page.set(garbage(page.length)), true);
    case "pages exchanged":
      somePages(
        (page, bytes) => page.set(bytes.slice(0, below(store.pages) * plan.pageSize).slice(-plan.pageSize)),
        true,
      );
      return false;
    case "file cut":
      change(database, (bytes) => bytes.subarray(0, below(bytes.length)));
      return false;
    case "file cut at a known place":
      change(database, (bytes) => bytes.subarray(0, [0, 100, 1, plan.pageSize, plan.pageSize * 2][below(5)]));
      return false;
    case "header destroyed":
      header();
      return true;
    case "first page destroyed":
      change(database, (bytes) => void bytes.set(garbage(plan.pageSize)));
      return true;
    case "WAL cut":
      change(wal, (bytes) => bytes.subarray(0, below(bytes.length)));
      return false;
    case "WAL overwritten":
      change(wal, (bytes) => {
        for (let i = 1 + below(3); i > 0; i--) overwrite(bytes);
      });
      return false;
    case "WAL lost":
      Deno.removeSync(wal);
      return false;
    case "WAL and header destroyed":
      header();
      change(wal, (bytes) => {
        overwrite(bytes);
        if (below(2) === 0) bytes.fill(0, 0, 32);
      });
      return false;
    case "WAL of another store": {
      const other = makeStore(`${store.base}/other`, { ...plan, seed: plan.seed + 1, wal: true });
      Deno.renameSync(`${other.database}-wal`, wal);
      for (const id of other.ids) store.ids.add(id);
      for (const id of other.marked) store.marked.add(id);
      return false;
    }
    case "WAL of another program": {
      const other = `${store.base}/other.sqlite`;
      sqlite(other, `PRAGMA page_size=${plan.pageSize}; PRAGMA journal_mode=WAL; CREATE TABLE history (url TEXT)`);
      takeWal(other, wal, below(60));
      return false;
    }
    case "database lost, sidecars there":
      if (!isThere(wal)) Deno.writeFileSync(wal, garbage(below(5000)));
      if (below(2) === 0) Deno.writeFileSync(`${database}-shm`, garbage(32768));
      Deno.removeSync(database);
      return false;
    case "journal garbage":
      Deno.writeFileSync(`${database}-journal`, garbage(1 + below(5000)));
      return true;
  }
}

/** Copies the WAL of another application's database with some rows in it. */
function takeWal(other: string, wal: string, rows: number): void {
  const db = new DatabaseSync(other);
  for (let i = 0; i <= rows; i++) db.exec(`INSERT INTO history VALUES ('${"https://example.org/".repeat(i)}')`);
  // Copied while it is open, else it would be empty.
  Deno.copyFileSync(`${other}-wal`, wal);
  db.close();
}

/** How many `api_posted` markers there were, and how many survived, by kind of damage. */
type Marks = Map<string, { survived: number; of: number; cases: number }>;

/** Describes what is wrong after the recovery of one damaged store. */
async function problemsOf(base: string, one: Case, again: boolean, marks: Marks): Promise<string[]> {
  const store = makeStore(base, one.plan);
  const isSpared = damage(store, one);
  const layout = layoutOf(base);
  // SQLite's check cannot see all damage. Without a finding nobody recovers a database, so its content counts.
  const wasHealthy = await checkHealth(layout).then(({ healthy }) => healthy, () => false);
  const found = ["", "-wal"].map((end) => bytesOf(store.database + end));
  const problems: string[] = [];
  const expect = (isSo: boolean, problem: () => string) => void (isSo || problems.push(problem()));
  const recovery = (await recoverDatabase(layout))!;
  expect(integrityOf(store.database) === "ok", () => `integrity: ${integrityOf(store.database)}`);
  if (!wasHealthy && recovery.kept !== null) {
    for (const [i, end] of ["", "-wal"].entries()) {
      const isSame = bytesOf(recovery.kept + end) === found[i] || one.kind === "journal garbage";
      expect(isSame, () => `what was kept has changed: ${recovery.kept}${end}`);
    }
  }
  const missing = missingFrom(store.database, store);
  expect(missing.length === 0, () => `${missing.length} of ${store.logged.size}: ${missing[0]}`);
  const rows = rowsOf(store.database, "SELECT run_id, api_posted FROM agent_runs");
  const strange = rows.map((row) => row["run_id"] as string).filter((id) => !store.ids.has(id));
  expect(
    strange.length === 0 || wasHealthy,
    () => `${strange.length} runs that never were: ${JSON.stringify(strange[0])}`,
  );
  const marked = rows.filter((row) => row["api_posted"] === 1).map((row) => row["run_id"] as string);
  const wrong = marked.filter((id) => store.ids.has(id) && !store.marked.has(id));
  expect(wrong.length === 0 || wasHealthy, () => `${wrong.length} marked that were not: ${wrong[0]}`);
  const others = rows.filter((row) => row["api_posted"] !== 1 && row["api_posted"] !== 0);
  expect(others.length === 0 || wasHealthy, () => `api_posted is ${JSON.stringify(others[0]!["api_posted"])}`);
  const survived = marked.filter((id) => store.marked.has(id)).length;
  const count = marks.get(one.kind) ?? { survived: 0, of: 0, cases: 0 };
  marks.set(one.kind, {
    survived: count.survived + survived,
    of: count.of + store.marked.size,
    cases: count.cases + 1,
  });
  if (isSpared) {
    expect(survived === store.marked.size, () => `spared, but ${store.marked.size - survived} marks are lost`);
    const ids = new Set(rows.map((row) => row["run_id"]));
    const lost = [...store.stored.keys()].filter((id) => !ids.has(id));
    expect(lost.length === 0, () => `spared, but ${lost.length} runs are lost: ${lost[0]}`);
  }
  expect(recovery.runs === rows.length, () => `tells of ${recovery.runs} runs, has ${rows.length}`);
  const { log, log_and_salvaged, salvaged } = recovery.runs_from;
  expect(log + log_and_salvaged + salvaged === rows.length, () => JSON.stringify(recovery.runs_from));
  const health = await checkHealth(layout, { compare: true });
  expect(health.healthy && health.runs!.only_in_log === 0, () => JSON.stringify(health));
  const left = namesIn(layout.db).filter((name) =>
    !/^telemetry(\.(?:corrupted\.|before_rebuild_)\d{8}_\d{6})?\.sqlite(-wal|-shm)?$/.test(name)
  );
  expect(left.filter((name) => !name.endsWith("-journal")).length === 0, () => `left: ${left}`);
  if (!again) return problems;
  const content = contentOf(store.database);
  await recoverDatabase(layout);
  expect(
    contentOf(store.database) === content,
    () => `forced once more, it has other content: ${difference(content, contentOf(store.database))}`,
  );
  return problems;
}

/** The bytes of a file as text; empty where there is none. */
function bytesOf(path: string): string {
  return isThere(path) ? Deno.readFileSync(path).toBase64() : "";
}

function difference(a: string, b: string): string {
  const [was, is] = [a.split("\n"), b.split("\n")];
  const gone = was.filter((line) => !is.includes(line));
  const come = is.filter((line) => !was.includes(line));
  return `${gone.length} rows gone, ${come.length} come: ${gone[0]?.slice(0, 300)} / ${come[0]?.slice(0, 300)}`;
}

Deno.test(`damaged in ${CASES} ways: the new database is intact, has all runs of the log and no invented ones`, async (t) => {
  // Some on a disk, which refuses to read at offsets that memory accepts.
  using temp = new TempFolder(FAST_FOLDER);
  using onDisk = new TempFolder();
  const marks: Marks = new Map();
  const failures: string[] = [];
  const all = casesOf(SEED, CASES).entries();
  const lane = async () => {
    for (const [i, one] of all) {
      if (ONLY !== undefined && Number(ONLY) !== i) continue;
      const base = `${(i % 5 === 0 ? onDisk : temp).path}/${i}`;
      let problems: string[];
      try {
        problems = await problemsOf(base, one, i % 6 === 0 || ONLY !== undefined, marks);
      } catch (error) {
        problems = [`thrown: ${errorMessage(error)} ${ONLY === undefined ? "" : (error as Error).stack}`];
      }
      const what = `TEST_CASE=${i}, ${one.kind}, ${one.plan.wal ? "WAL, " : ""}pages of ${one.plan.pageSize}`;
      failures.push(...problems.map((problem) => `${what}: ${problem}`));
      Deno.removeSync(base, { recursive: true });
    }
  };
  await Promise.all(Array.from({ length: LANES }, lane));
  const told = [...marks].sort(([a], [b]) => a < b ? -1 : 1).map(([kind, { survived, of, cases }]) =>
    `${kind} (${cases}): ${of === 0 ? "none" : `${(100 * survived / of).toFixed(1)} %`}`
  );
  await t.step(`TEST_SEED=${SEED}; marks that survived: ${told.join("; ")}`, () => {
    if (ONLY === undefined) { for (const kind of KINDS) assert.ok(marks.has(kind), `never tried: ${kind}`); }
  });
  assert.equal(failures.length, 0, `TEST_SEED=${SEED}, ${failures.length} problems:\n${failures.join("\n")}`);
});

Deno.test({
  name: "all runs of the file come back where it has the WAL of another application",
  fn: async () => {
    using temp = new TempFolder(FAST_FOLDER);
    const plan = { seed: 3, runs: 60, pageSize: 4096, wal: false };
    const store = makeStore(`${temp.path}/store`, plan);
    damage(store, { plan, kind: "WAL of another program", damage: 1 });
    await recoverDatabase(layoutOf(store.base));
    const rows = rowsOf(store.database, "SELECT run_id FROM agent_runs WHERE api_posted=1");
    assert.deepEqual(rows.map(({ run_id }) => run_id as string).sort(), [...store.marked].sort());
  },
});

Deno.test({
  name: "a WAL without its database is kept, and its runs come back",
  fn: async () => {
    using temp = new TempFolder(FAST_FOLDER);
    const store = makeStore(`${temp.path}/store`, { seed: 3, runs: 60, pageSize: 4096, wal: true });
    const wal = bytesOf(`${store.database}-wal`);
    Deno.removeSync(store.database);
    const { kept, runs_from } = (await recoverDatabase(layoutOf(store.base)))!;
    assert.equal(bytesOf(`${kept}-wal`), wal);
    assert.ok(runs_from.salvaged > 0, JSON.stringify(runs_from));
    const rows = rowsOf(store.database, "SELECT run_id FROM agent_runs WHERE api_posted=1");
    assert.ok(rows.length > 0 && rows.every(({ run_id }) => store.marked.has(run_id as string)));
  },
});

Deno.test({
  name: "a small database without root pages takes few reads",
  fn: async () => {
    using temp = new TempFolder(FAST_FOLDER);
    const store = makeStore(`${temp.path}/store`, { seed: 3, runs: 60, pageSize: 4096, wal: false });
    const bytes = Deno.readFileSync(store.database);
    for (let page = 2; page <= 8; page++) bytes.fill(0xff, (page - 1) * 4096, page * 4096);
    Deno.writeFileSync(store.database, bytes);
    // Without a recent change.
    Deno.utimeSync(store.database, 1, 1);
    const reads = await callsOf(
      StatementSync.prototype,
      "all",
      () => recoverDatabase(layoutOf(store.base)),
    );
    assert.ok(reads > 10 && reads < 2000, `${reads} reads`);
  },
});

Deno.test({
  name: "a header of garbage, on a disk, does not stop a recovery",
  fn: async () => {
    using temp = new TempFolder();
    const store = makeStore(`${temp.path}/store`, { seed: 3, runs: 60, pageSize: 4096, wal: false });
    const bytes = Deno.readFileSync(store.database);
    Deno.writeFileSync(store.database, bytes.fill(0x55, 0, 100));
    await recoverDatabase(layoutOf(store.base));
    assert.deepEqual(missingFrom(store.database, store), []);
  },
});

/** Kinds of damage that leave most pages intact, and what each does to the pages of a database. */
const REPAIRABLE: Record<
  string,
  (pages: Uint8Array[], below: (count: number) => number, interior: Uint8Array) => void
> = (() => {
  const garbage = (length: number, below: (count: number) => number) => Uint8Array.from({ length }, () => below(256));
  const onPages =
    (count: number, work: (page: Uint8Array, below: (count: number) => number) => void) =>
    (pages: Uint8Array[], below: (count: number) => number) => {
      for (let i = 0; i < count; i++) work(pages[1 + below(pages.length - 1)]!, below);
    };
  return {
    "bytes overwritten": onPages(12, (page, below) => page.set(garbage(40, below), below(page.length - 40))),
    "pages zeroed": onPages(3, (page) => page.fill(0)),
    "pages of garbage": onPages(3, (page, below) => page.set(garbage(page.length, below))),
    "pages torn": onPages(3, (page) => page.fill(0, page.length / 2)),
    "pages exchanged": (pages, below) =>
      onPages(3, (page) => page.set(pages[below(pages.length)]!.slice()))(pages, below),
    "interior page destroyed": (_, below, interior) => interior.set(garbage(interior.length, below)),
    "header destroyed": ([first], below) => first!.set(garbage(100, below)),
    "first page destroyed": ([first], below) => first!.set(garbage(first!.length, below)),
  };
})();

for (const [kind, damage] of Object.entries(REPAIRABLE)) {
  Deno.test(`${kind}: at least 97 % of 2,000 runs that are in no log come back unchanged`, async () => {
    using temp = new TempFolder(FAST_FOLDER);
    const store = makeStore(`${temp.path}/store`, { seed: SEED, runs: 2400, pageSize: 4096, wal: false });
    const layout = layoutOf(store.base);
    for (const name of namesIn(layout.raw)) Deno.removeSync(`${layout.raw}/${name}`);
    const bytes = Deno.readFileSync(store.database);
    const pages = Array.from({ length: store.pages }, (_, i) => bytes.subarray(4096 * i, 4096 * (i + 1)));
    const interior = [...store.runPages].map((page) => pages[page - 1]!).find((page) => page[0] === 5)!;
    const random = randomFrom(SEED);
    damage(pages, (count) => Math.floor(random() * count), interior);
    Deno.writeFileSync(store.database, bytes);
    await recoverDatabase(layout);
    const found = new Map(
      rowsOf(store.database, "SELECT run_id, output_summary FROM agent_runs").map((row) => [row["run_id"], row]),
    );
    assert.ok(store.stored.size >= 1900, `${store.stored.size} runs`);
    const intact = [...store.stored.values()].filter((run) =>
      found.get(run.run_id)?.["output_summary"] === run.output_summary
    );
    assert.ok(intact.length >= 0.97 * store.stored.size, `${intact.length} of ${store.stored.size}`);
    const strange = [...found.keys()].filter((id) => !store.ids.has(id as string));
    // An id cannot be recognized as damaged when other letters have overwritten it: pages have no checksums.
    assert.ok(strange.length <= (kind === "bytes overwritten" ? 1 : 0), strange.join());
  });
}
