/** Large stores for the bench. */
import { DatabaseSync } from "node:sqlite";
import { newRun } from "../../lib/records.ts";
import { runScript } from "../fixtures/mod.ts";

/** Sets up a store and returns the path of its database. */
export async function makeStore(base: string): Promise<string> {
  const { code, stderr } = await runScript("setup_storage", base, ["--with-database"]);
  if (code !== 0) throw new Error(stderr);
  return `${base}/db/telemetry.sqlite`;
}

/**
 * Writes a log as the client does: each run has its start, three events and its end. The runs are spread over four days.
 * Returns the size in bytes.
 */
export function writeLog(raw: string, runs: number): number {
  Deno.mkdirSync(raw, { recursive: true });
  const [days, chunk] = [4, 1000];
  let bytes = 0;
  for (let first = 0; first < runs; first += chunk) {
    let text = "";
    const day = `2025-12-${10 + Math.floor(first * days / runs)}`;
    for (let n = first; n < Math.min(first + chunk, runs); n++) text += linesOfRun(n, day);
    const path = `${raw}/events_${day.replaceAll("-", "")}.ndjson`;
    Deno.writeTextFileSync(path, text, { append: true });
    bytes += new TextEncoder().encode(text).length;
  }
  return bytes;
}

function linesOfRun(n: number, day: string): string {
  const at = (seconds: number) =>
    new Date(Date.parse(day) + (n % 86_000 + seconds) * 1000).toISOString().replace("Z", "456+00:00");
  const line = (record_type: string, record: object) => `${JSON.stringify({ ...record, record_type })}\n`;
  const run_id = `${day.replaceAll("-", "")}T000000Z-agent${n % 17}-${n.toString(16).padStart(8, "0")}`;
  const run = newRun({
    run_id,
    agent_name: `agent${n % 17}`,
    agent_owner: "team",
    job_type: "process_files",
    start_time: at(0),
    insight_id: `insight-${n % 1000}`,
    product: "docs",
    platform: "github",
    product_family: "family",
    host: "host-1",
  });
  const events = [0, 1, 2].map((step) => {
    const payload_json = JSON.stringify({ step, file: `docs/page_${n}.md`, message: 'naïve, "quoted"\n' });
    return line("event", { run_id, event_type: "checkpoint", timestamp: at(step), payload_json, id: null });
  });
  const end = {
    status: ["success", "failed", "partial"][n % 3],
    end_time: at(5),
    items_succeeded: 9,
    items_failed: 1,
    duration_ms: 5000,
    output_summary: "done, all",
    metrics_json: JSON.stringify({ pages: n, severity: "high" }),
  };
  return line("run", run) + events.join("") + line("run", { ...run, ...end });
}

/** Inserts runs that have a value in most columns. */
export function insertRuns(database: string, count: number): void {
  const run = {
    run_id: "printf('20251210T%06dZ-agent%d-%08x', i % 86400, i % 17, i)",
    agent_name: "'agent' || i % 17",
    agent_owner: "'team'",
    job_type: "'index_files'",
    trigger_type: "'cli'",
    start_time: "strftime('%Y-%m-%dT%H:%M:%S', 1735689600 + i * 30, 'unixepoch') || printf('.%06d+00:00', i % 1000000)",
    end_time: "strftime('%Y-%m-%dT%H:%M:%S', 1735689660 + i * 30, 'unixepoch') || '.123456+00:00'",
    status: "'success'",
    items_discovered: "i % 100",
    items_succeeded: "i % 90",
    items_failed: "i % 10",
    duration_ms: "i % 600000",
    output_summary: "'processed ' || i || ' items, all well'",
    metrics_json: `'{"pages": ' || i % 7 || ', "tokens": {"in": 1200, "out": ' || i % 1000 || '}}'`,
    product: "'docs'",
    platform: "'github'",
    product_family: "'family'",
    git_repo: "'org/repo'",
    git_branch: "'main'",
    host: "'host-1'",
  };
  insertGenerated(database, count, run);
}

/** Inserts runs, each cell of which is an SQL expression of its number `i`. */
export function insertGenerated(database: string, count: number, run: Record<string, string>): void {
  using db = new DatabaseSync(database);
  db.exec("PRAGMA synchronous=OFF");
  db.prepare(
    `INSERT INTO agent_runs (${Object.keys(run)})
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${count})
    SELECT ${Object.values(run)} FROM n`,
  ).run();
  db.exec("PRAGMA wal_checkpoint(TRUNCATE)");
}

/** Inserts runs of about 1,100 bytes in random order of their keys until the database has its size. */
export function fillDatabase(database: string, megabytes: number): void {
  using db = new DatabaseSync(database);
  db.exec("PRAGMA synchronous=OFF");
  const insert = db.prepare(
    "INSERT INTO agent_runs (run_id, agent_name, start_time, status, insight_id, output_summary) VALUES (?, ?, ?, ?, ?, ?)",
  );
  const pages = db.prepare("PRAGMA page_count");
  for (let n = 0; Number(pages.get()!["page_count"]) * 4096 < megabytes * 1e6;) {
    db.exec("BEGIN");
    for (const end = n + 10_000; n < end; n++) {
      const id = crypto.randomUUID();
      const start = new Date(n * 1000).toISOString();
      insert.run(`20251210T000000Z-${id}`, `agent${n % 17}`, start, "success", id, id.repeat(25));
    }
    db.exec("COMMIT");
  }
  db.exec("PRAGMA wal_checkpoint(TRUNCATE)");
}
