import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { layoutOf } from "../../lib/layout.ts";
import { newRun, type RunRecord } from "../../lib/records.ts";
import { recoverDatabase } from "../../lib/recovery/recover.ts";
import { runScript, TempFolder } from "../fixtures/mod.ts";
import { storeWith } from "../fixtures/report.ts";

const OLD = "2025-06-30T23:59:59.999000+00:00";
const NEW = "2025-07-01T00:00:00+00:00";
const SINCE = "2025-07-01";

const line = (run_id: string, start_time: string, fields: Partial<RunRecord> = {}) => {
  const run = newRun({ run_id, agent_name: "indexer", start_time, status: "success" });
  return `${JSON.stringify({ ...run, ...fields, record_type: "run" })}\n`;
};

/** Runs before and after July 1: in the log, in the database, and in both. One starts before it by its zone only. */
function newStore(folder: string): string {
  const base = storeWith(folder, [
    { id: "old-both", start: OLD },
    { id: "old-database", start: OLD, status: "running" },
    { id: "new-both", start: NEW },
    { id: "new-database", start: NEW },
    { id: "old-by-zone", start: "2025-07-01T01:30:00+02:00" },
    { id: "untimed", start: "some day" },
  ]);
  Deno.writeTextFileSync(
    `${base}/raw/events_20250701.ndjson`,
    line("old-both", OLD) + line("old-log", OLD) + line("old-log", OLD, { status: "failed" }) + line("new-both", NEW) +
      line("new-log", NEW),
  );
  return base;
}

function idsIn(path: string): string[] {
  using db = new DatabaseSync(path);
  return db.prepare("SELECT run_id FROM agent_runs ORDER BY run_id").all().map(({ run_id }) => run_id as string);
}

const WANTED = ["new-both", "new-database", "new-log", "untimed"];

Deno.test("--force --since leaves older runs behind, keeps the old database, and counts them", async () => {
  using temp = new TempFolder();
  const base = newStore(temp.path);
  const file = `${base}/db/telemetry.sqlite`;
  const before = idsIn(file);
  const { code, stdout, stderr } = await runScript("recover_database", base, ["--force", "--since", SINCE]);
  assert.deepEqual([code, stderr], [0, ""]);
  assert.match(stdout, /\n {2}left behind: 2 runs of the log, 3 runs of the old database\n/);
  assert.deepEqual(idsIn(file), WANTED);
  const [, kept] = /replaced database: (\S+before_rebuild\S+)/.exec(stdout)!;
  assert.deepEqual(idsIn(kept!), before);
  // What was left behind on purpose is no reason to complain.
  const all = await runScript("recover_database", base, ["--check-only", "--quiet"]);
  assert.match(all.stderr, /2 runs only in the log/);
  const some = await runScript("recover_database", base, ["--check-only", "--quiet", "--since", SINCE]);
  assert.deepEqual([some.code, some.stderr], [0, ""]);
  const { runs } = JSON.parse(
    (await runScript("recover_database", base, ["--check-only", "--json", "--since", SINCE])).stdout,
  );
  assert.deepEqual([runs.in_database, runs.only_in_database, runs.only_in_log], [4, 2, 0]);
});

Deno.test("--since takes an age, and also leaves behind what a damaged database still has", async () => {
  using temp = new TempFolder();
  const base = newStore(temp.path);
  const recent = new Date(Date.now() - 3_600_000).toISOString();
  Deno.writeTextFileSync(`${base}/raw/events_20250702.ndjson`, line("recent", recent));
  const file = `${base}/db/telemetry.sqlite`;
  const bytes = Deno.readFileSync(file);
  Deno.writeFileSync(file, bytes.fill(0x55, 0, 4096));
  const { code, stdout } = await runScript("recover_database", base, ["--force", "--json", "--since", "2h"]);
  const { runs, left_behind } = JSON.parse(stdout);
  assert.deepEqual([code, runs, left_behind], [0, 2, { log: 4, salvaged: 5 }]);
  assert.deepEqual(idsIn(file), ["recent", "untimed"]);
});

Deno.test("--since needs --force or --check-only, and a time", async () => {
  using temp = new TempFolder();
  const base = newStore(temp.path);
  for (const args of [["--since", SINCE], ["--force", "--since", "July"], ["--check-only", "--since", ""]]) {
    const { code, stderr } = await runScript("recover_database", base, args);
    assert.equal(code, 2, args.join(" "));
    assert.match(stderr, /^recover_database: --since [^\n]+\n {2}-> [^\n]+\n$/);
  }
});

Deno.test("what agents write meanwhile is kept, and older runs stay behind all the same", async () => {
  using temp = new TempFolder();
  const base = newStore(temp.path);
  const layout = layoutOf(base);
  using agent = new DatabaseSync(layout.database);
  let isWritten = false;
  const recovery = await recoverDatabase(layout, {
    since: new Date(SINCE),
    onProgress: () => {
      if (isWritten) return;
      isWritten = true;
      const insert = agent.prepare("INSERT INTO agent_runs (run_id, agent_name, start_time) VALUES (?, 'indexer', ?)");
      insert.run("new-meanwhile", NEW);
      insert.run("old-meanwhile", OLD);
      const log = line("new-meanwhile", NEW) + line("new-in-log-meanwhile", NEW) + line("old-in-log-meanwhile", OLD);
      Deno.writeTextFileSync(`${base}/raw/events_20250701.ndjson`, log, { append: true });
    },
  });
  assert.ok(isWritten);
  assert.equal(recovery!.warnings.length, 0);
  assert.deepEqual(idsIn(layout.database), [...WANTED, "new-in-log-meanwhile", "new-meanwhile"].sort());
});
