/** Recoveries, backups and restores of one store, all at the same time. */
import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { layoutOf } from "../../lib/layout.ts";
import { newRun } from "../../lib/records.ts";
import { schemaSql } from "../../lib/schema.ts";
import { rounds, runScript, TempFolder } from "../fixtures/mod.ts";
import { namesIn } from "./recovery_fixtures.ts";

const RUNS = 300;
const RESTORED = "telemetry_backup_20251201_030000.sqlite";
/** What runs at the same time: a script, its flags, and what its result names the file that it leaves. */
const SCRIPTS: [script: string, args: string[], leaves: "kept" | "path"][] = [
  ...Array(3).fill(["recover_database", ["--force"], "kept"]),
  ...Array(3).fill(["backup_database", ["--keep", "99"], "path"]),
  ...Array(3).fill(["backup_telemetry_db", ["--keep-days", "99999"], "path"]),
  ...Array(2).fill(["backup_telemetry_db", ["--restore", RESTORED, "--yes", "--replay"], "kept"]),
];

const idOf = (i: number) => `20251210T000000Z-agent-${String(i).padStart(8, "0")}`;

/** A store: a third of its runs is only in the log, a third only in the database, and every tenth of these is posted. */
function makeStore(base: string) {
  const layout = layoutOf(base);
  for (const folder of [layout.db, layout.raw, layout.backups]) Deno.mkdirSync(folder, { recursive: true });
  const lines: string[] = [];
  using db = new DatabaseSync(layout.database);
  db.exec(`${schemaSql()} PRAGMA journal_mode=WAL; BEGIN`);
  const insert = db.prepare(
    "INSERT INTO agent_runs (run_id, agent_name, start_time, status, api_posted) VALUES (?, 'agent', ?, 'success', ?)",
  );
  for (let i = 0; i < RUNS; i++) {
    const run = newRun({
      run_id: idOf(i),
      agent_name: "agent",
      start_time: "2025-12-10T00:00:00+00:00",
      status: "success",
    });
    if (i % 3 !== 0) lines.push(`${JSON.stringify({ ...run, record_type: "run" })}\n`);
    if (i % 3 !== 1) insert.run(run.run_id, run.start_time, i % 10 === 0 ? 1 : 0);
  }
  db.exec("COMMIT");
  Deno.writeTextFileSync(`${layout.raw}/events_20251210.ndjson`, lines.join(""));
  using backup = new DatabaseSync(`${layout.backups}/${RESTORED}`);
  backup.exec(
    `${schemaSql()} INSERT INTO agent_runs (run_id, agent_name, start_time) VALUES ('of the backup', 'a', 't')`,
  );
  return layout;
}

/** The ids in an intact database, and those that are marked as posted. */
function contentOf(path: string): { ids: Set<string>; posted: Set<string> } {
  using db = new DatabaseSync(path);
  const check = db.prepare("PRAGMA integrity_check").all();
  assert.deepEqual(check.map((row) => Object.values(row)[0]), ["ok"], path);
  const rows = db.prepare("SELECT run_id, api_posted FROM agent_runs").all();
  const posted = rows.filter(({ api_posted }) => api_posted === 1);
  return {
    ids: new Set(rows.map((row) => String(row["run_id"]))),
    posted: new Set(posted.map((row) => String(row["run_id"]))),
  };
}

const ROUNDS = rounds(2, 10);

Deno.test(`${ROUNDS} times three recoveries, six backups and two restores at once: nothing is lost, and no file is stray`, async (t) => {
  const seen: string[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    using temp = new TempFolder();
    const layout = makeStore(`${temp.path}/store`);
    const done = await Promise.all(SCRIPTS.map(async ([script, args, leaves]) => {
      const { code, stdout, stderr } = await runScript(script, layout.base, ["--json", ...args]);
      const result = JSON.parse(stdout || "{}");
      // To wait for too long is a failure that changes nothing.
      if (code !== 0) assert.equal(result.error?.code, "locked", `${script} ${args}: ${stderr}`);
      return { script, left: code === 0 ? String(result[leaves]) : undefined };
    }));
    const left = done.flatMap(({ left }) => left === undefined ? [] : [left]);
    // 1. Each kind has succeeded at least once, and no two have left the same file.
    for (const script of new Set(SCRIPTS.map(([script]) => script))) {
      assert.ok(done.some((one) => one.script === script && one.left !== undefined), `no ${script} succeeded`);
    }
    assert.equal(new Set(left).size, left.length, left.join("\n"));
    // 2. The database has every run of the log and of the old database, and every marker.
    const { ids, posted } = contentOf(layout.database);
    const missing = Array.from({ length: RUNS }, (_, i) => idOf(i)).filter((id) => !ids.has(id));
    assert.deepEqual(missing, []);
    assert.deepEqual(
      Array.from({ length: RUNS }, (_, i) => i).filter((i) => i % 10 === 0 && i % 3 !== 1 && !posted.has(idOf(i))),
      [],
    );
    // 3. The copies and backups are those that the scripts name, each of them is intact, and there is no other file.
    for (const path of left) contentOf(path);
    const files = [layout.db, layout.backups].flatMap((folder) => namesIn(folder));
    const nameOf = (path: string) => path.replace(/^.*[\\/]/, "");
    assert.deepEqual(files.toSorted(), ["telemetry.sqlite", RESTORED, ...left.map(nameOf)].toSorted());
    seen.push(String(left.length));
  }
  await t.step(`of ${SCRIPTS.length} scripts succeeded: ${seen.join(", ")}`, () => {});
});
