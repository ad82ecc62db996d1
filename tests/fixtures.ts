/** What the tests share: temporary folders, the scripts as processes, other programs, older databases. */
import { createHash } from "node:crypto";
import { DatabaseSync } from "node:sqlite";
import { fileURLToPath } from "node:url";

/** The repository's root, with a slash at its end. */
export const ROOT = fileURLToPath(new URL("../", import.meta.url));
/** The folder of samples beside a developer's clone; a user's clone has none. */
export const SAMPLE = `${ROOT}../shared/sample`;

/** The plain ways to do each job, to measure against; a user's clone has none. */
export const BASELINES = `${ROOT}../shared/baselines`;

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
  python: ["no python3", () => interpreter() !== ""],
  sqlite3: ["no sqlite3 program", () => runs("sqlite3", "-version")],
  flock: ["no flock program", () => runs("flock", "--version")],
  postgres: ["no PostgreSQL in /usr/lib/postgresql", () => isThere("/usr/lib/postgresql") && runs("psql", "--version")],
  strace: ["no strace that may trace", () => runs("strace", "-f", "-o", "/dev/null", "true")],
  root: ["not root", () => Deno.build.os === "linux" && Deno.uid() === 0],
  unix: ["not on Windows", () => Deno.build.os !== "windows"],
  linux: ["Linux only", () => Deno.build.os === "linux"],
  sample: ["no ../shared/sample", () => isThere(`${SAMPLE}/facts.json`)],
  nobody: ["not root, or another user cannot run this Deno on this clone", canRunAsNobody],
  noDefaultStore: ["a default store exists here", () => !DEFAULT_STORES.some(isThere)],
  mount: ["no tmpfs can be mounted", canMount],
} as const satisfies Record<string, readonly [string, () => boolean]>;

/** The default stores that a script run without `--base` finds; a test never makes one. */
const DEFAULT_STORES = ["/agent-metrics", "/opt/telemetry", "/data/telemetry"];
/** A user that owns nothing; root's tests run scripts as this one. */
export const NOBODY = 65534;

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

/** Whether this machine has no Python. */
export function lacksPython(): boolean {
  return lacks("python");
}

function runs(program: string, ...args: string[]): boolean {
  try {
    return new Deno.Command(program, { args, stdout: "null", stderr: "null" }).outputSync().success;
  } catch {
    return false;
  }
}

function canRunAsNobody(): boolean {
  if (Deno.build.os !== "linux" || Deno.uid() !== 0) return false;
  const read = `Deno.readTextFileSync(${JSON.stringify(`${ROOT}scripts/setup_storage.ts`)})`;
  const options = { args: ["eval", read], uid: NOBODY, gid: NOBODY, clearEnv: true, env: { DENO_DIR: "/nonexistent" } };
  try {
    return new Deno.Command(Deno.execPath(), { ...options, stdout: "null", stderr: "null" }).outputSync().success;
  } catch {
    return false; // root's own Deno, below /root
  }
}

function canMount(): boolean {
  if (Deno.build.os !== "linux" || Deno.uid() !== 0) return false;
  using temp = new TempFolder();
  const mounted = runs("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", temp.path);
  return mounted && runs("umount", temp.path);
}

/** A small file system of its own (root only), gone at the end of its block. Tests that need it say `mount`. */
export class SmallDisk implements Disposable {
  readonly #temp = new TempFolder();
  /** Where it is. */
  readonly path: string;
  readonly #filler: string;

  /**
   * @param size as `mount` takes it, as `8m`
   * @param path a folder to mount it at; one of its own without
   */
  constructor(size: string, path?: string) {
    this.path = path ?? this.#temp.path;
    this.#filler = `${this.path}/filler`;
    Deno.mkdirSync(this.path, { recursive: true });
    if (runs("mount", "-t", "tmpfs", "-o", `size=${size}`, "tmpfs", this.path)) return;
    this.#temp[Symbol.dispose]();
    throw new Error(`cannot mount at ${this.path}`);
  }

  /** Fills it up, but for so many bytes, in whole pages. */
  fill(free = 0): void {
    using file = Deno.openSync(this.#filler, { write: true, create: true, append: true });
    const page = new Uint8Array(4096);
    try {
      while (file.writeSync(page) > 0) { /* until it is full */ }
    } catch (error) {
      if ((error as { code?: string }).code !== "ENOSPC") throw error;
    }
    const size = file.statSync().size - Math.round(free / page.length) * page.length;
    file.truncateSync(Math.max(0, size));
  }

  /**
   * Frees what {@linkcode fill} took: by cutting it, since a process that another test is starting may have it open until
   * it has become another program, and what is open keeps its pages.
   */
  free(): void {
    Deno.truncateSync(this.#filler, 0);
    Deno.removeSync(this.#filler);
  }

  [Symbol.dispose](): void {
    // Lazily, for the same reason.
    if (!runs("umount", "--lazy", this.path)) throw new Error(`cannot unmount ${this.path}`);
    this.#temp[Symbol.dispose]();
  }
}

/**
 * What a folder holds, in a read-only file system (root only), gone at the end of its block. Tests that need it say
 * `mount`. Mounted anew: what is mounted cannot become read-only while anybody has a file of it open.
 */
export class ReadOnlyMount implements Disposable {
  readonly #temp = new TempFolder();
  /** Where it is. */
  readonly path: string = this.#temp.path;

  constructor(folder: string) {
    if (runs("mount", "-o", "bind,ro", folder, this.path)) return;
    this.#temp[Symbol.dispose]();
    throw new Error(`cannot mount at ${this.path}`);
  }

  [Symbol.dispose](): void {
    if (!runs("umount", "--lazy", this.path)) throw new Error(`cannot unmount ${this.path}`);
    this.#temp[Symbol.dispose]();
  }
}

/** Whether something is at a path. */
export function isThere(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch {
    return false;
  }
}

/**
 * How often a test tries what depends on chance: `few` times in `deno task test`, `all` in `deno task test:long`, which
 * CI runs too.
 */
export function rounds<T>(few: T, all: T): T {
  return Deno.env.get("TEST_ROUNDS") === "all" ? all : few;
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
  stdin?: "null" | "piped";
}

/** Runs a program to its end. */
export async function run(program: string, args: string[], options: RunOptions = {}): Promise<Output> {
  const { code, stdout, stderr } = await command(program, args, options).output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code, stdout: text(stdout), stderr: text(stderr) };
}

/** A program to start by `output()` or `spawn()`, without a terminal. */
export function command(
  program: string,
  args: string[],
  { env = {}, cwd, uid, stdin = "null" }: RunOptions = {},
): Deno.Command {
  const kept: Record<string, string> = {};
  for (const name of ["PATH", "DENO_DIR", "DENO_COVERAGE_DIR", "HOME", "SYSTEMROOT", "TMPDIR", "TEMP"]) {
    const value = Deno.env.get(name);
    if (value !== undefined) kept[name] = value;
  }
  return new Deno.Command(program, {
    args,
    clearEnv: true,
    env: { ...kept, NO_COLOR: "1", ...env },
    stdin,
    stdout: "piped",
    stderr: "piped",
    ...(cwd === undefined ? {} : { cwd }),
    ...(uid === undefined ? {} : { uid, gid: uid }),
  });
}

/** A program that says in a line that it has begun, and ends with its block at the latest. */
export class Holder implements AsyncDisposable {
  readonly #process: Deno.ChildProcess;
  #ended: Promise<unknown> | undefined;

  private constructor(process: Deno.ChildProcess) {
    this.#process = process;
  }

  /** Starts it, and waits for its line. */
  static async start(program: string, args: string[]): Promise<Holder> {
    const process = command(program, args).spawn();
    const reader = process.stdout.getReader();
    const { value } = await reader.read();
    reader.releaseLock();
    if (value === undefined) throw new Error(new TextDecoder().decode((await process.output()).stderr));
    return new Holder(process);
  }

  /** Kills it, and waits until it is gone. */
  async kill(): Promise<void> {
    if (this.#ended === undefined) {
      try {
        this.#process.kill("SIGKILL");
      } catch { /* it has ended by itself */ }
    }
    await (this.#ended ??= this.#process.output());
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.kill();
  }
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

/** The path of this Deno's folder first, for commands that say `deno`. */
export function pathWithDeno(): string {
  const execPath = Deno.execPath();
  return `${execPath.slice(0, execPath.lastIndexOf("/"))}:${Deno.env.get("PATH") ?? ""}`;
}

/** Everything below a folder, by relative path: `folder`, where a link leads, or a file's size and hash. */
export function treeOf(folder: string, below = ""): Record<string, string> {
  const tree: Record<string, string> = {};
  for (const { name, isDirectory, isSymlink } of [...Deno.readDirSync(`${folder}/${below}`)].sort(byName)) {
    const path = `${folder}/${below}${name}`;
    if (isSymlink) tree[below + name] = `-> ${Deno.readLinkSync(path)}`;
    else if (isDirectory) Object.assign(tree, { [below + name]: "folder" }, treeOf(folder, `${below}${name}/`));
    else {
      const bytes = Deno.readFileSync(path);
      tree[below + name] = `${bytes.length} ${createHash("sha256").update(bytes).digest("hex")}`;
    }
  }
  return tree;
}

const byName = (a: Deno.DirEntry, b: Deno.DirEntry) => a.name < b.name ? -1 : 1;

/** A column as SQLite describes it. */
export type Column = [name: string, type: string, notNull: number, defaultValue: string | null, key: number];

/** What {@linkcode readDatabase} reads. */
export interface DatabaseContent {
  journal: string;
  check: string;
  tables: Record<string, {
    columns: Column[];
    /** The columns of each index by its name, those aside that SQLite makes itself. */
    indexes: Record<string, string[]>;
    references: [from: string, table: string, to: string][];
    rows: Record<string, unknown>[];
  }>;
  /** The SQL of everything that has some, by name. */
  sql: Record<string, string>;
}

/** The whole of a database, as Python's `sqlite3` reads it: not through the code that is tested. */
export async function readDatabase(path: string): Promise<DatabaseContent> {
  return JSON.parse(await python(READ_DATABASE, path));
}

const READ_DATABASE = `
import json, sqlite3, sys
db = sqlite3.connect(sys.argv[1])
def all(sql, *values):
    return db.execute(sql, values).fetchall()
def table(name):
    columns = [row[1:] for row in all("PRAGMA table_info('%s')" % name)]
    indexes = {row[1]: [column[2] for column in all("PRAGMA index_info('%s')" % row[1])]
               for row in all("PRAGMA index_list('%s')" % name) if row[3] == "c"}
    references = [[row[3], row[2], row[4]] for row in all("PRAGMA foreign_key_list('%s')" % name)]
    names = [column[0] for column in columns]
    rows = [dict(zip(names, row)) for row in all("SELECT * FROM %s ORDER BY rowid" % name)]
    return {"columns": columns, "indexes": indexes, "references": references, "rows": rows}
names = [row[0] for row in all("SELECT name FROM sqlite_master WHERE type='table' AND name NOT LIKE 'sqlite%' ORDER BY 1")]
print(json.dumps({
    "journal": all("PRAGMA journal_mode")[0][0],
    "check": all("PRAGMA integrity_check")[0][0],
    "tables": {name: table(name) for name in names},
    "sql": dict(all("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY 1")),
}))
db.close()
`;

/** How often a method is called, by anyone, while something is done: what it costs, however busy the machine is. */
export async function callsOf<T>(owner: T, method: keyof T, work: () => unknown): Promise<number> {
  const original = owner[method] as (...args: unknown[]) => unknown;
  let calls = 0;
  owner[method] = function (this: T, ...args: unknown[]) {
    calls++;
    return original.apply(this, args);
  } as T[keyof T];
  try {
    await work();
  } finally {
    owner[method] = original as T[keyof T];
  }
  return calls;
}

/** Runs a Python program; its standard output. Fails with its standard error. */
export async function python(program: string, ...args: string[]): Promise<string> {
  // Without what the machine's packages add: it starts in half the time.
  const { code, stdout, stderr } = await run(interpreter(), ["-I", "-S", "-c", program, ...args]);
  if (code !== 0) throw new Error(stderr);
  return stdout;
}

/**
 * Python itself: `python3` may be a launcher, which takes longer than most of our programs. Empty where there is none.
 * Asked once for all test files, which share a process and its variables.
 */
export function interpreter(): string {
  const known = Deno.env.get("TEST_PYTHON");
  if (known !== undefined) return known;
  let path = "";
  try {
    const args = ["-c", "import sqlite3, sys; print(sys.executable)"];
    const ask = new Deno.Command("python3", { args, stderr: "null" });
    path = new TextDecoder().decode(ask.outputSync().stdout).trim();
  } catch { /* there is none */ }
  Deno.env.set("TEST_PYTHON", path);
  return path;
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
