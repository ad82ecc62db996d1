/** What the tests share: temporary folders, the scripts as processes, other programs, older databases. */
import { DatabaseSync } from "node:sqlite";
import { fileURLToPath } from "node:url";

/** The repository's root, with a slash at its end. */
export const ROOT = fileURLToPath(new URL("../", import.meta.url));
/** The folder of samples beside a developer's clone; a user's clone has none. */
export const SAMPLE = `${ROOT}../shared/sample`;

/** A temporary folder that goes at the end of its block. */
export class TempFolder implements Disposable {
  readonly path: string;

  constructor(parent?: string) {
    this.path = Deno.realPathSync(
      Deno.makeTempDirSync({ prefix: "telemetry_test_", ...(parent ? { dir: parent } : {}) }),
    );
  }

  [Symbol.dispose](): void {
    Deno.removeSync(this.path, { recursive: true });
  }
}

/** What a machine may lack, each with the words that a skipped test says. */
export const NEEDS = {
  python: ["no python3", () => runs("python3", "-c", "import sqlite3")],
  sqlite3: ["no sqlite3 program", () => runs("sqlite3", "-version")],
  strace: ["no strace", () => runs("strace", "-V")],
  root: ["not root", () => Deno.build.os === "linux" && Deno.uid() === 0],
  unix: ["not on Windows", () => Deno.build.os !== "windows"],
  linux: ["Linux only", () => Deno.build.os === "linux"],
  sample: ["no ../shared/sample", () => isThere(`${SAMPLE}/facts.json`)],
} as const satisfies Record<string, readonly [string, () => boolean]>;

const found = new Map<string, boolean>();

function lacks(need: keyof typeof NEEDS): boolean {
  if (!found.has(need)) found.set(need, NEEDS[need][1]());
  return !found.get(need);
}

/** A test that is skipped aloud, with the reason in its name, where the machine lacks what it needs. */
export function testWith(
  needs: (keyof typeof NEEDS)[],
  name: string,
  fn: (t: Deno.TestContext) => void | Promise<void>,
) {
  const lacking = needs.filter(lacks).map((need) => NEEDS[need][0]);
  if (lacking.length > 0) Deno.test({ name: `${name} [SKIPPED: ${lacking.join(", ")}]`, ignore: true, fn });
  else Deno.test(name, fn);
}

function runs(program: string, ...args: string[]): boolean {
  try {
    return new Deno.Command(program, { args, stdout: "null", stderr: "null" }).outputSync().success;
  } catch {
    return false;
  }
}

function isThere(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch {
    return false;
  }
}

/** What a process left. */
export interface Output {
  code: number;
  stdout: string;
  stderr: string;
}

/** How to start a process; nothing of the environment is passed on but what finds programs and Deno's cache. */
export interface RunOptions {
  env?: Record<string, string>;
  cwd?: string;
  /** Runs it as this user (root only). */
  uid?: number;
}

/** Runs a program to its end. */
export async function run(program: string, args: string[], options: RunOptions = {}): Promise<Output> {
  const { code, stdout, stderr } = await command(program, args, options).output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code, stdout: text(stdout), stderr: text(stderr) };
}

/** A program to start by `output()` or `spawn()`, without a terminal. */
export function command(program: string, args: string[], { env = {}, cwd, uid }: RunOptions = {}): Deno.Command {
  const kept: Record<string, string> = {};
  for (const name of ["PATH", "DENO_DIR", "HOME", "SYSTEMROOT", "TMPDIR", "TEMP"]) {
    const value = Deno.env.get(name);
    if (value !== undefined) kept[name] = value;
  }
  return new Deno.Command(program, {
    args,
    clearEnv: true,
    env: { ...kept, NO_COLOR: "1", ...env },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    ...(cwd === undefined ? {} : { cwd }),
    ...(uid === undefined ? {} : { uid, gid: uid }),
  });
}

/** Runs a script on a `{base}` with the permissions that its help asks for, and no others. */
export function runScript(name: string, base: string, args: string[] = [], options: RunOptions = {}): Promise<Output> {
  return run(Deno.execPath(), [...scriptArgs(name, base), ...args], options);
}

/** The arguments of Deno that {@linkcode runScript} uses. */
export function scriptArgs(name: string, base: string): string[] {
  const access = [`--allow-read=${base}`, `--allow-write=${base}`];
  return ["run", "--no-prompt", "--quiet", ...access, `${ROOT}scripts/${name}.ts`, "--base", base];
}

/** Runs a Python program; its standard output. Fails with its standard error. */
export async function python(program: string, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await run("python3", ["-c", program, ...args]);
  if (code !== 0) throw new Error(stderr);
  return stdout;
}

/** The older databases in the field (contract, "Databases in the field"), and one of a later product. */
export type OldKind = "v1" | "v2" | "v2_recovered" | "v2_recovered_commits" | "says3_is2" | "v7";
/** All of them that setup upgrades. */
export const UPGRADABLE: OldKind[] = ["v1", "v2", "v2_recovered", "v2_recovered_commits", "says3_is2"];

/** Makes an older database with some runs, as WAL or not. Written out by hand: it must not follow our schema. */
export function makeOldDatabase(path: string, kind: OldKind, rows = 40, journal: "wal" | "delete" = "wal"): void {
  const recovered = kind.startsWith("v2_recovered") || kind === "says3_is2";
  const number = kind === "v1" ? 1 : kind === "v7" ? 7 : 2;
  const v3 = number > 2;
  const db = new DatabaseSync(path, { enableForeignKeyConstraints: false });
  db.exec(`PRAGMA journal_mode=${journal}; BEGIN;
    CREATE TABLE agent_runs (run_id TEXT PRIMARY KEY, ${v3 ? "event_id TEXT NOT NULL UNIQUE, " : ""}
      schema_version INTEGER DEFAULT ${number}, agent_name TEXT NOT NULL, agent_owner TEXT, job_type TEXT,
      trigger_type TEXT${recovered ? "" : " CHECK(trigger_type IN ('cli','web','scheduler','mcp','manual'))"},
      start_time TEXT NOT NULL, end_time TEXT, status TEXT CHECK(status IN ('running','success','failed','partial')),
      items_discovered INTEGER DEFAULT 0, items_succeeded INTEGER DEFAULT 0, items_failed INTEGER DEFAULT 0,
      duration_ms INTEGER, input_summary TEXT, output_summary TEXT, error_summary TEXT, metrics_json TEXT,
      ${number > 1 ? "insight_id TEXT, " : ""} product TEXT, platform TEXT,
      ${v3 ? "product_family TEXT, subdomain TEXT, " : ""} git_repo TEXT, git_branch TEXT, git_run_tag TEXT, host TEXT,
      api_posted INTEGER DEFAULT 0, api_posted_at TEXT, api_retry_count INTEGER DEFAULT 0,
      ${recovered ? "custom_metadata TEXT, " : ""}
      created_at TEXT DEFAULT (datetime('now')), updated_at TEXT DEFAULT (datetime('now')));
    CREATE INDEX idx_runs_agent ON agent_runs(agent_name);
    CREATE INDEX idx_runs_status ON agent_runs(status);
    CREATE INDEX idx_runs_start ON agent_runs(start_time);
    CREATE INDEX idx_runs_api_posted ON agent_runs(api_posted);
    ${number > 1 ? "CREATE INDEX idx_runs_insight ON agent_runs(insight_id);" : ""}
    CREATE TABLE run_events (id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL REFERENCES agent_runs(run_id),
      event_type TEXT NOT NULL, timestamp TEXT NOT NULL, payload_json TEXT);
    CREATE INDEX idx_events_run ON run_events(run_id);
    CREATE TABLE schema_migrations (version INTEGER PRIMARY KEY, applied_at TEXT DEFAULT (datetime('now')), description TEXT);
    INSERT INTO schema_migrations (version, description) VALUES (${number}, 'Schema v${number}');`);
  if (kind !== "v2_recovered") {
    db.exec(
      `CREATE TABLE commits (commit_hash TEXT PRIMARY KEY, run_id TEXT REFERENCES agent_runs(run_id), agent_name TEXT,
      repo TEXT, branch TEXT, commit_date TEXT, author TEXT, message TEXT, files_changed INTEGER, insertions INTEGER,
      deletions INTEGER, created_at TEXT DEFAULT (datetime('now')));
      CREATE INDEX idx_commits_run ON commits(run_id);
      INSERT INTO commits (commit_hash, run_id, message) VALUES ('c0ffee', 'no such run', 'an orphan');`,
    );
  }
  if (kind === "says3_is2") db.exec("INSERT INTO schema_migrations (version, description) VALUES (3, 'Schema v3')");
  const insert = db.prepare(
    `INSERT INTO agent_runs (run_id, ${
      v3 ? "event_id, " : ""
    } agent_name, trigger_type, start_time, status, metrics_json,
      duration_ms, output_summary) VALUES (?, ${v3 ? "?, " : ""} ?, ?, ?, ?, ?, ?, ?)`,
  );
  for (let i = 0; i < rows; i++) {
    const id = `20251210T0000${String(i % 60).padStart(2, "0")}Z-old-${String(i).padStart(8, "0")}`;
    const first = v3 ? [id, id] : [id];
    const trigger = recovered && i % 5 === 0 ? "detector" : "cli";
    insert.run(
      ...first,
      "old",
      trigger,
      "2025-12-10T00:00:00+00:00",
      "success",
      '{"pages": 1}',
      i * 1e9,
      "naïve\0 — 日本語 🚀",
    );
  }
  db.exec("COMMIT");
  db.close();
}
