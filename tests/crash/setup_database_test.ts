/** Setups that are killed, and setups that meet each other: real processes, real signals. */
import assert from "node:assert/strict";
import { setUpDatabase } from "../../lib/store/database.ts";
import { layoutOf } from "../../lib/layout.ts";
import {
  command,
  contentHash,
  makeOldDatabase,
  ROOT,
  rounds,
  run,
  runScript,
  scriptArgs,
  TempFolder,
  treeOf,
} from "../fixtures/mod.ts";

const STORAGE = [
  "README.md",
  "config",
  "config/schema.sql",
  "db",
  "db/telemetry.sqlite",
  "exports",
  "logs",
  "raw",
  "reports",
];

/** The content of the tables that an upgrade keeps. The times of migrations differ from one upgrade to the next. */
const dump = (file: string) => contentHash(file, ["agent_runs", "run_events", "commits"]);

/** Copies a database and what SQLite keeps beside it. */
function copyDatabase(from: string, to: string): void {
  for (const end of ["", "-wal", "-shm", "-journal"]) {
    try {
      Deno.copyFileSync(from + end, to + end);
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
  }
}

/** The paths below a folder; none where there is no folder. */
function names(folder: string): string[] {
  try {
    return Object.keys(treeOf(folder));
  } catch {
    return [];
  }
}

for (const journal of ["wal", "delete"] as const) {
  Deno.test(
    `a setup killed at any moment (${journal} mode) leaves the old or the upgraded database`,
    async (t) => {
      using temp = new TempFolder();
      const original = `${temp.path}/original.sqlite`;
      makeOldDatabase(original, "v1", 6000, journal);

      /** A new store with the old database in it. */
      function newStore(name: string): { base: string; file: string } {
        const base = `${temp.path}/${name}`;
        Deno.mkdirSync(`${base}/db`, { recursive: true });
        copyDatabase(original, `${base}/db/telemetry.sqlite`);
        return { base, file: `${base}/db/telemetry.sqlite` };
      }

      const undisturbed = newStore("undisturbed");
      const start = performance.now();
      assert.equal((await runScript("setup_database", undisturbed.base)).code, 0);
      let durationMs = performance.now() - start;
      const finished = dump(undisturbed.file);
      const old = dump(original);
      assert.notEqual(old, finished);

      const KILLS = rounds(2, 12);
      const phases = { "before the copy": 0, "copying": 0, "copied": 0, "upgraded": 0, "done": 0 };
      const killed = () => phases["before the copy"] + phases.copying + phases.copied + phases.upgraded;
      const reached = () => phases.copying > 0 && phases.copied + phases.upgraded > 0;
      for (let i = 0; killed() < KILLS || !reached(); i++) {
        assert.ok(i < 240, `the phases were not reached: ${JSON.stringify(phases)}`);
        const { base, file } = newStore(`killed_${i}`);
        const process = command(Deno.execPath(), scriptArgs("setup_database", base)).spawn();
        // Two of three are aimed at the copying, and at the short time after it; the others hit wherever they hit.
        const isCopying = () => names(base).includes("backups");
        const isCopied = () => names(`${base}/backups`).some((name) => name.endsWith(".sqlite"));
        const moment = i % 3 === 2
          ? delay(durationMs * (0.2 + 0.9 * Math.random()))
          : until(i % 3 === 0 ? isCopied : isCopying, process);
        const [output] = await Promise.all([process.output(), moment.then(() => kill(process))]);
        assert.equal(new TextDecoder().decode(output.stderr), "");

        // Looked at in a copy: the next setup shall find exactly what the kill left.
        const left = `${temp.path}/left_${i}.sqlite`;
        copyDatabase(file, left);
        const state = dump(left);
        assert.ok(state === old || state === finished, "neither old nor finished");
        const copies = names(`${base}/backups`).filter((name) => name.endsWith(".sqlite"));
        // How long a setup takes depends on what else the machine does.
        if (output.success) durationMs *= 0.9;
        if (output.success) phases.done++;
        else if (state === finished) phases.upgraded++;
        else if (copies.length > 0) phases.copied++;
        else if (names(base).includes("backups")) phases.copying++;
        else phases["before the copy"]++;
        assert.ok(state === old || copies.length === 1, "no upgrade without a copy");

        await setUpDatabase(layoutOf(base));
        assert.equal(dump(file), finished);
        for (const name of names(base)) {
          assert.match(
            name,
            /^(db|config|backups)$|^db\/telemetry\.sqlite$|^config\/schema\.sql$|^backups\/.*\.sqlite$/,
          );
          if (name.startsWith("backups/")) {
            assert.equal(dump(`${base}/${name}`), old, "every copy is the old database");
          }
        }
        Deno.removeSync(base, { recursive: true });
      }
      await t.step(`killed ${killed()} times: ${JSON.stringify(phases)}`, () => {});
    },
  );
}

const delay = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

/** Waits until something is so, or a process has ended. */
async function until(isSo: () => boolean, process: Deno.ChildProcess): Promise<void> {
  let hasEnded = false;
  process.status.then(() => hasEnded = true);
  while (!isSo() && !hasEnded) await delay(1);
}

function kill(process: Deno.ChildProcess): void {
  try {
    process.kill("SIGKILL");
  } catch { /* it has ended */ }
}

for (const count of [2, 8]) {
  Deno.test(`${count} concurrent setups create one database`, async () => {
    using temp = new TempFolder();
    for (let round = 0; round < rounds(1, 3); round++) {
      const base = `${temp.path}/store_${round}`;
      const setups = Array.from({ length: count }, () => runScript("setup_storage", base, ["--with-database"]));
      for (const { code, stderr } of await Promise.all(setups)) assert.deepEqual([code, stderr], [0, ""]);
      assert.equal((await setUpDatabase(layoutOf(base))).outcome, "unchanged");
      // Of two that close a database at the same moment, neither is the last: SQLite then leaves its sidecars to the next.
      assert.deepEqual(names(base), STORAGE);
    }
  });

  for (const journal of ["wal", "delete"] as const) {
    Deno.test(`${count} concurrent setups upgrade a v1 in ${journal} mode`, async () => {
      using temp = new TempFolder();
      const base = `${temp.path}/store`;
      Deno.mkdirSync(`${base}/db`, { recursive: true });
      const file = `${base}/db/telemetry.sqlite`;
      makeOldDatabase(file, "v1", 3000, journal);
      const old = dump(file);
      const setups = Array.from({ length: count }, () => runScript("setup_database", base));
      for (const { code, stderr } of await Promise.all(setups)) assert.deepEqual([code, stderr], [0, ""]);
      const [copy, ...more] = names(`${base}/backups`);
      assert.deepEqual(more, []);
      assert.equal(dump(`${base}/backups/${copy}`), old);
      assert.notEqual(dump(file), old);
      assert.equal((await setUpDatabase(layoutOf(base))).outcome, "unchanged");
      assert.deepEqual(names(`${base}/db`), ["telemetry.sqlite"]);
      assert.deepEqual(names(`${base}/config`), ["schema.sql"]);
    });
  }
}

Deno.test(
  "two databases of one base that are upgraded concurrently each get a complete copy",
  async () => {
    using temp = new TempFolder();
    const base = `${temp.path}/store`;
    Deno.mkdirSync(`${base}/db`, { recursive: true });
    const files = [`${base}/db/one.sqlite`, `${base}/db/two.sqlite`];
    const olds: string[] = [];
    for (const [i, file] of files.entries()) {
      makeOldDatabase(file, "v1", 5000 * (i + 1));
      olds.push(dump(file));
    }
    const access = ["--allow-env", `--allow-read=${base}`, `--allow-write=${base}`];
    const args = ["run", "--no-prompt", ...access, `${ROOT}scripts/setup_database.ts`];
    const setups = files.map((file) => run(Deno.execPath(), args, { env: { TELEMETRY_DB_PATH: file } }));
    for (const { code, stderr } of await Promise.all(setups)) assert.deepEqual([code, stderr], [0, ""]);
    const copies = names(`${base}/backups`).map((name) => dump(`${base}/backups/${name}`));
    assert.deepEqual(copies.toSorted(), olds.toSorted());
  },
);
