/** Backups that are killed at any moment: real processes, real signals. */
import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { schemaSql } from "../../lib/schema.ts";
import { command, KILLED, rounds, runScript, scriptArgs, TempFolder } from "../fixtures/mod.ts";

const RUNS = 10_000;
const KILLS = rounds(8, 100);
/** So many stores are worked on at once, one after the other in each. */
const LANES = 2;

/** Where a kill hit: as the folder of the backups shows it afterwards. */
type Phase = "before the partial" | "claimed" | "copying" | "checking" | "copied or synced" | "named";
const phases: Record<Phase, number> = {
  "before the partial": 0,
  "claimed": 0,
  "copying": 0,
  "checking": 0,
  "copied or synced": 0,
  "named": 0,
};
const killed = () => Object.values(phases).reduce((a, b) => a + b);
const REQUIRED: Phase[] = ["before the partial", "copying", "named"];
const reached = () => REQUIRED.every((phase) => phases[phase] > 0) && phases.checking + phases["copied or synced"] > 0;

Deno.test(
  "a backup killed at any moment publishes nothing incomplete, and the next one cleans up",
  async (t) => {
    using temp = new TempFolder();
    const original = `${temp.path}/original.sqlite`;
    makeDatabase(original);
    let tries = 0;

    async function work(lane: number): Promise<void> {
      const script = lane % 2 === 0 ? "backup_database" : "backup_telemetry_db";
      const rule = script === "backup_database" ? ["--keep", "9999"] : ["--keep-days", "9999"];
      const base = `${temp.path}/store_${lane}`;
      const folder = `${base}/backups`;
      for (const path of [`${base}/db`, folder]) Deno.mkdirSync(path, { recursive: true });
      Deno.copyFileSync(original, `${base}/db/telemetry.sqlite`);
      /** The good backups so far: what none may change. */
      const known = new Map<string, string>();
      const start = performance.now();
      await undisturbed();
      let durationMs = performance.now() - start;
      for (let i = 0; killed() < KILLS || !reached(); i++) {
        assert.ok(++tries < 400, `the phases were not reached: ${JSON.stringify(phases)}`);
        const process = command(Deno.execPath(), [...scriptArgs(script, base), ...rule]).spawn();
        const said = process.output();
        let hasEnded = false;
        said.then(() => hasEnded = true);
        // Some are aimed at what is short; the others hit wherever they hit.
        const isSo: (() => boolean) | undefined = [
          () => names(folder).some((name) => name.endsWith(".sqlite") && !known.has(name)),
          () => names(folder).some((name) => name.endsWith(".partial-wal")),
          () => names(folder).some((name) => name.endsWith(".partial-journal")),
        ][i % 7];
        if (isSo) { while (!isSo() && !hasEnded) await delay(1); }
        else await delay(durationMs * Math.random());
        try {
          process.kill("SIGKILL");
        } catch { /* it has ended */ }
        const { code, success, stderr } = await said;
        assert.equal(new TextDecoder().decode(stderr), "");
        assert.ok(success || code === KILLED);

        const left = names(folder);
        const added = proveKnown();
        assert.ok(added.length <= 1 && (!success || added.length === 1));
        if (success) durationMs *= 0.95;
        else {
          phases[
            added.length > 0
              ? "named"
              : left.some((name) => name.endsWith(".partial-journal"))
              ? "copying"
              : left.some((name) => name.endsWith(".partial-wal"))
              ? "checking"
              : !left.some((name) => name.endsWith(".partial"))
              ? "before the partial"
              : left.some((name) => name.endsWith(".partial") && Deno.statSync(`${folder}/${name}`).size === 0)
              ? "claimed"
              : "copied or synced"
          ]++;
        }
        // What a kill left is cleaned up by a run that nothing happens to, or met by one that is killed as well; else by
        // this test, since the place of a kill does not show beside what another one left.
        if (i % 4 === 0) await undisturbed();
        else if (i % 4 !== 1) {
          for (const name of left.filter((name) => name.includes(".partial"))) removeIfExists(`${folder}/${name}`);
        }
        // The disk is not to be filled by this test: what is proven may go, but for the newest of both kinds of name.
        for (const name of [...known.keys()].slice(0, -5)) {
          for (const end of ["", "-wal", "-shm"]) removeIfExists(`${folder}/${name}${end}`);
          known.delete(name);
        }
      }
      await undisturbed();

      /** A backup that nothing happens to leaves nothing but good backups. */
      async function undisturbed(): Promise<void> {
        const { code, stderr } = await runScript(script, base, rule);
        assert.deepEqual([code, stderr], [0, ""]);
        assert.equal(proveKnown().length, 1);
        // A run that is killed while it counts the runs of the backup before its own leaves that one's sidecars, empty.
        const left = names(folder).filter((name) => !/\.sqlite-(wal|shm)$/.test(name));
        assert.deepEqual(left, [...known.keys()].toSorted(), "partials and their sidecars are gone");
        assert.deepEqual(names(`${base}/db`), ["telemetry.sqlite"]);
      }

      /** No good name is lost or changed, and every new one holds a good backup; the new ones. */
      function proveKnown(): string[] {
        const good = names(folder).filter((name) => name.endsWith(".sqlite"));
        for (const [name, was] of known) assert.equal(identityOf(`${folder}/${name}`), was, name);
        const added = good.filter((name) => !known.has(name));
        for (const name of added) {
          // Looked at under another name: what SQLite leaves beside it is not to be seen by the next run.
          const copy = `${temp.path}/copy_${lane}.sqlite`;
          Deno.copyFileSync(`${folder}/${name}`, copy);
          using db = new DatabaseSync(copy);
          assert.equal(db.prepare("PRAGMA quick_check").get()!["quick_check"], "ok", name);
          assert.equal(db.prepare("SELECT count(*) AS runs FROM agent_runs").get()!["runs"], RUNS, name);
          known.set(name, identityOf(`${folder}/${name}`));
        }
        return added;
      }
    }

    await Promise.all(Array.from({ length: LANES }, (_, lane) => work(lane)));
    console.log(`killed ${killed()} times: ${JSON.stringify(phases)}`);
    await t.step(`killed ${killed()} times: ${JSON.stringify(phases)}`, () => {});
  },
);

function makeDatabase(file: string): void {
  using db = new DatabaseSync(file);
  db.exec(schemaSql());
  db.exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${RUNS})
    INSERT INTO agent_runs (run_id, agent_name, start_time, status, output_summary)
    SELECT 'run-' || i, 'agent', '2025-12-10T00:00:00+00:00', 'success', hex(randomblob(400)) FROM n`);
}

/** Inode, size and time of the last change of the content. */
function identityOf(path: string): string {
  const { ino, size, mtime } = Deno.statSync(path);
  return [ino, size, mtime?.getTime()].join(" ");
}

function removeIfExists(path: string): void {
  try {
    Deno.removeSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

const names = (folder: string) => [...Deno.readDirSync(folder)].map(({ name }) => name).sort();
const delay = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));
