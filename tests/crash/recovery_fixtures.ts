/** Small stores made from a number: a log, a database that has most of it, and what both are known to hold. */
import { DatabaseSync } from "node:sqlite";
import { layoutOf } from "../../lib/layout.ts";
import { newRun, RUN_COLUMNS, type RunRecord } from "../../lib/records.ts";
import { schemaSql } from "../../lib/schema.ts";
import { isThere, ROOT_URL } from "../fixtures/disks.ts";

export { copyFolder as copyStore, FAST_FOLDER, isThere } from "../fixtures/disks.ts";
export { sqlite } from "../fixtures/sqlite.ts";

/** The files of a database, by how their names end. */
export const ENDS = ["", "-wal", "-shm", "-journal"];
/** The columns that the log says nothing of, or not the last word. */
const NOT_BY_LOG: readonly string[] = ["api_posted", "api_posted_at", "api_retry_count", "created_at", "updated_at"];
/** The tables of the contract. */
const TABLES = ["agent_runs", "run_events", "commits", "schema_migrations"];

/** An agent that records runs until it is killed, and prints each id when `endRun` is done. */
export function agentProgram(pauseMs: number): string {
  return `
import { TelemetryClient } from ${JSON.stringify(`${ROOT_URL}mod.ts`)};
const telemetry = new TelemetryClient({ base: Deno.args[0], onWarning: () => {} });
for (;;) {
  const id = await telemetry.startRun("live", "job");
  await telemetry.endRun(id, { status: "success" });
  console.log("run " + id);
  await new Promise((resolve) => setTimeout(resolve, ${pauseMs}));
}`;
}

/** Waits. */
export const delay = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

/** The names in a folder. */
export function namesIn(folder: string): string[] {
  return [...Deno.readDirSync(folder)].map(({ name }) => name).sort();
}

/** Numbers from 0 to 1 that are the same for the same seed (mulberry32). */
export function randomFrom(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Copies a database and what SQLite keeps beside it, and takes away what the other one does not have. */
export function copyDatabase(from: string, to: string): void {
  for (const end of ENDS) {
    if (isThere(from + end)) Deno.copyFileSync(from + end, to + end);
    else if (isThere(to + end)) Deno.removeSync(to + end);
  }
}

/** Rows, read by a connection of its own that does not go through `lib`. */
export function rowsOf(path: string, sql: string): Record<string, unknown>[] {
  const db = new DatabaseSync(path, { enableForeignKeyConstraints: false, timeout: 10_000 });
  try {
    return db.prepare(sql).all();
  } finally {
    db.close();
  }
}

/** Every row of every table of the contract, and of people's; without the times that the making of a row leaves. */
export function contentOf(path: string): string {
  const db = new DatabaseSync(path, { enableForeignKeyConstraints: false, timeout: 10_000 });
  try {
    const own = db.prepare("SELECT name FROM sqlite_schema WHERE type='table' AND name LIKE 'my_%'").all();
    return [...TABLES, ...own.map(({ name }) => String(name))].map((table) => {
      const except = table === "schema_migrations" ? "version, description" : "*";
      const rows = db.prepare(`SELECT ${except} FROM ${table}`).all().map((row) => JSON.stringify(row));
      return `${table}\n${rows.sort().join("\n")}`;
    }).join("\n");
  } finally {
    db.close();
  }
}

/** What SQLite's full check says of a file. */
export function integrityOf(path: string): string {
  return rowsOf(path, "PRAGMA integrity_check").map((row) => String(Object.values(row)[0])).join("; ");
}

/** What makes a store. */
export interface StorePlan {
  seed: number;
  /** How many runs the log has. */
  runs: number;
  pageSize: number;
  /** Whether the newest third of the database is in its WAL. */
  wal: boolean;
}

/** What a store is known to hold. */
export interface Store {
  base: string;
  database: string;
  /** Every run that was ever made, deleted ones included. */
  ids: Set<string>;
  /** The last state of each run of the log. */
  logged: Map<string, RunRecord>;
  /** The runs that the database has, as it has them. */
  stored: Map<string, RunRecord>;
  /** Runs that the database marks as posted. */
  marked: Set<string>;
  commits: number;
  /** The pages of the table of runs, overflow pages included. */
  runPages: Set<number>;
  /** How many pages the file has, without its WAL. */
  pages: number;
}

const WORDS = ["indexed", "naïve", "日本語", "🚀", "retry", "files", "of 12", "docs/ä.md", '{"a": 1}', "\n"];

/** Makes a store: `raw/`, and `db/` with a database of schema v3 that has most runs of the log, and some others. */
export function makeStore(base: string, plan: StorePlan): Store {
  const layout = layoutOf(base);
  for (const folder of [layout.raw, layout.db]) Deno.mkdirSync(folder, { recursive: true });
  const random = randomFrom(plan.seed);
  const below = (count: number) => Math.floor(random() * count);
  const text = (words: number) => Array.from({ length: words }, () => WORDS[below(WORDS.length)]).join(" ");
  const store: Store = {
    base,
    database: layout.database,
    ids: new Set(),
    logged: new Map(),
    stored: new Map(),
    marked: new Set(),
    commits: 0,
    runPages: new Set(),
    pages: 0,
  };
  const days: string[][] = [[], [], []];
  const made = Array.from({ length: plan.runs }, (_, i) => {
    const day = days[Math.floor(i * 3 / plan.runs)]!;
    const two = (value: number) => String(value).padStart(2, "0");
    const clock = `${two(8 + Math.floor(i / 60) % 12)}:${two(i % 60)}`;
    const time = `2025-12-1${Math.floor(i * 3 / plan.runs)}T${clock}:30.123456+00:00`;
    const hex = Math.floor(random() * 2 ** 32).toString(16).padStart(8, "0");
    const run_id = `${time.slice(0, 19).replace(/[-:]/g, "")}Z-agent${i % 5}-${hex}`;
    const started = newRun({
      run_id,
      agent_name: `agent${i % 5}`,
      start_time: time,
      job_type: "index",
      trigger_type: i % 19 === 7 ? "detector" : "cli",
      product: text(1),
      input_summary: below(3) === 0 ? text(below(12)) : null,
      insight_id: below(6) === 0 ? `insight-${i}` : null,
      host: "box",
    });
    const ended: RunRecord = {
      ...started,
      end_time: time.replace(":30.", ":59."),
      status: (["success", "failed", "partial"] as const)[below(3)]!,
      items_discovered: below(1000),
      items_succeeded: below(300),
      duration_ms: 29_000 + below(10_000),
      // Some go on in overflow pages.
      output_summary: text(below(14) === 0 ? 900 : below(30)),
      metrics_json: `{"pages": ${below(100)}}`,
    };
    const hasEnded = below(9) > 0;
    const line = (record: object) => day.push(JSON.stringify({ ...record, record_type: "run" }));
    // The last fifth is in the database alone: their logs are gone.
    const isLogged = i % 5 !== 4 || started.trigger_type === "detector";
    if (isLogged) {
      line(started);
      if (below(4) === 0) {
        const event = { run_id, event_type: "checkpoint", timestamp: time, payload_json: null, id: null };
        day.push(JSON.stringify({ ...event, record_type: "event" }));
      }
      if (hasEnded) line(ended);
      store.logged.set(run_id, hasEnded ? ended : started);
    }
    store.ids.add(run_id);
    return { run_id, started, ended, hasEnded, isLogged };
  });
  days[1]!.splice(3, 0, '{"run_id": "half a li');
  days.forEach((lines, i) => {
    Deno.writeTextFileSync(`${layout.raw}/events_2025121${i}.ndjson`, lines.map((line) => `${line}\n`).join(""));
  });

  const making = `${base}/making.sqlite`;
  const db = new DatabaseSync(making, { enableForeignKeyConstraints: false });
  db.exec(`PRAGMA page_size=${plan.pageSize}; ${schemaSql()}; PRAGMA synchronous=OFF; PRAGMA wal_autocheckpoint=0;
    CREATE TABLE my_notes (id INTEGER PRIMARY KEY, note TEXT); CREATE INDEX my_index ON agent_runs(host, status);`);
  const insert = db.prepare(
    `INSERT INTO agent_runs (${RUN_COLUMNS}) VALUES (${RUN_COLUMNS.map(() => "?")}) ON CONFLICT DO NOTHING`,
  );
  const put = ({ run_id, started, ended, hasEnded, isLogged }: (typeof made)[number]) => {
    // Not all of the log got into the database; some got in when they began, and never again.
    if (started.trigger_type === "detector" || isLogged && below(8) === 0) return;
    const run: RunRecord = {
      ...hasEnded && below(9) > 0 ? ended : started,
      created_at: "2025-12-10 08:00:00",
      updated_at: "2025-12-10 09:00:00",
      api_retry_count: below(3),
    };
    if (run.status !== "running" && below(2) === 0) {
      Object.assign(run, { api_posted: 1, api_posted_at: "2025-12-12T00:00:00+00:00" });
      store.marked.add(run_id);
    }
    insert.run(...RUN_COLUMNS.map((column) => run[column]));
    store.stored.set(run_id, run);
    if (below(4) > 0) return;
    db.prepare("INSERT INTO commits (commit_hash, run_id, message) VALUES (?, ?, ?)").run(
      Array.from({ length: 10 }, () => below(65536).toString(16).padStart(4, "0")).join(""),
      run_id,
      text(5),
    );
    store.commits++;
    db.prepare("INSERT INTO my_notes (note) VALUES (?)").run(text(3));
  };
  const later = plan.wal ? Math.floor(made.length * 2 / 3) : made.length;
  db.exec("BEGIN");
  made.slice(0, later).forEach(put);
  db.exec("COMMIT; PRAGMA wal_checkpoint(TRUNCATE)");
  // Several commits, some of which change what is in the file already.
  for (let i = later; i < made.length; i += 5) {
    db.exec("BEGIN");
    made.slice(i, i + 5).forEach(put);
    const { run_id } = made[below(later)]!;
    const run = store.stored.get(run_id);
    if (run !== undefined && run.status !== "running") {
      db.prepare("UPDATE agent_runs SET api_posted=1, api_posted_at='later' WHERE run_id=?").run(run_id);
      store.marked.add(run_id);
    }
    db.exec("COMMIT");
  }
  store.runPages = new Set(
    db.prepare("SELECT pageno FROM dbstat WHERE name='agent_runs'").all().map(({ pageno }) => Number(pageno)),
  );
  // While it is open: with its WAL.
  copyDatabase(making, store.database);
  Deno.removeSync(`${store.database}-shm`);
  if (!plan.wal) Deno.removeSync(`${store.database}-wal`);
  db.close();
  for (const end of ENDS) if (isThere(making + end)) Deno.removeSync(making + end);
  store.pages = Deno.statSync(store.database).size / plan.pageSize;
  return store;
}

/** What a database lacks of a log's last states, in words. */
export function missingFrom(database: string, store: Pick<Store, "logged" | "stored">): string[] {
  const rows = new Map(rowsOf(database, "SELECT * FROM agent_runs").map((row) => [row["run_id"] as string, row]));
  const problems: string[] = [];
  for (const [run_id, logged] of store.logged) {
    const row = rows.get(run_id);
    if (row === undefined) {
      problems.push(`${run_id} is missing`);
      continue;
    }
    const stored = store.stored.get(run_id);
    // An ended state is not taken back by one that is running.
    const last = logged.status === "running" && stored !== undefined && stored.status !== "running" ? stored : logged;
    for (const column of RUN_COLUMNS) {
      if (NOT_BY_LOG.includes(column) || row[column] === last[column]) continue;
      problems.push(`${run_id}: ${column} is ${String(row[column]).slice(0, 60)}, not ${last[column]}`.slice(0, 200));
    }
  }
  return problems;
}
