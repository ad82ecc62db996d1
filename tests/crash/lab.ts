/**
 * The crash lab: performs an operation on a store, injects a fault at a random call, and checks that nothing is lost.
 * It then repeats the operation without a fault and checks again.
 * usage: deno task crash [--rounds N] [--seed N]
 */
import { DatabaseSync } from "node:sqlite";
import { parseArgs } from "node:util";
import { layoutOf, parseFileName } from "../../lib/layout.ts";
import { checkHealth } from "../../lib/recovery/health.ts";
import { logFiles, scan } from "../../lib/log/read.ts";
import { newRun, RUN_COLUMNS } from "../../lib/records.ts";
import { copyFolder, KILLED, makeOldDatabase, ROOT, run, runScript, TempFolder } from "../fixtures/mod.ts";
import { FAULTS, OPERATIONS } from "./lab_driver.ts";

/** The number of runs in the log, and in the database. */
const [LOGGED, STORED] = [60, 50];

/** A round and the problems that it found. */
export interface Round {
  seed: number;
  operation: string;
  fault: string;
  /** The call before which the fault was injected, and the number of calls. */
  at: string;
  problems: string[];
}

/** Random numbers that are the same for the same seed. */
function randomOf(seed: number): (below: number) => number {
  return (below) => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ seed >>> 15, 1 | seed);
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
    return Math.floor(((t ^ t >>> 14) >>> 0) / 2 ** 32 * below);
  };
}

/** Runs rounds with consecutive seeds. */
export async function* lab(rounds: number, seed: number): AsyncGenerator<Round, void> {
  using temp = new TempFolder();
  await makeStore(`${temp.path}/template`);
  const calls = new Map<string, number>();
  for (let round = 0; round < rounds; round++) {
    const random = randomOf(seed + round);
    const pick = <T>(items: T[]) => items[random(items.length)]!;
    const [operation, fault] = [pick(Object.keys(OPERATIONS)), pick(Object.keys(FAULTS))];
    const store = new Store(`${temp.path}/${round}`, operation);
    store.copyOf(`${temp.path}/template`, random);
    if (!calls.has(operation)) calls.set(operation, await countCalls(`${temp.path}/count`, store, operation));
    const at = 1 + random(calls.get(operation)!);
    const problems = await store.endure(fault, at);
    yield { seed: seed + round, operation, fault, at: `${at} of ${calls.get(operation)}`, problems };
    await Deno.remove(store.base, { recursive: true });
  }
}

/** The number of calls that an operation makes without a fault. */
async function countCalls(path: string, store: Store, operation: string): Promise<number> {
  copyFolder(store.base, path);
  const { code, stdout, stderr } = await drive(operation, path);
  if (code !== 0) throw new Error(`${operation} fails without a fault: ${stderr}`);
  await Deno.remove(path, { recursive: true });
  return Number(stdout.trim().split("\n").at(-1));
}

function drive(operation: string, base: string, ...fault: string[]) {
  return run(Deno.execPath(), ["run", "--allow-all", `${ROOT}tests/crash/lab_driver.ts`, operation, base, ...fault]);
}

/** Creates a store: a log of three days, a database without the last runs and with `api_posted` markers, and a backup. */
async function makeStore(base: string): Promise<void> {
  const { code, stderr } = await runScript("setup_storage", base, ["--with-database"]);
  if (code !== 0) throw new Error(stderr);
  const db = new DatabaseSync(`${base}/db/telemetry.sqlite`);
  const insert = db.prepare(`INSERT INTO agent_runs (${RUN_COLUMNS}) VALUES (${RUN_COLUMNS.map(() => "?")})`);
  for (let n = 0; n < LOGGED; n++) {
    const day = `2025-12-${10 + n % 3}`;
    const run_id = `${day.replaceAll("-", "")}T000000Z-lab-${String(n).padStart(8, "0")}`;
    const row = newRun({ run_id, agent_name: "lab", start_time: `${day}T00:00:00+00:00`, status: "success" });
    const path = `${base}/raw/events_${day.replaceAll("-", "")}.ndjson`;
    Deno.writeTextFileSync(path, `${JSON.stringify({ ...row, record_type: "run" })}\n`, { append: true });
    const stored = { ...row, api_posted: n % 2, created_at: "2025-12-10 00:00:00", updated_at: "2025-12-10 00:00:00" };
    if (n < STORED) insert.run(...RUN_COLUMNS.map((column) => stored[column]));
  }
  db.close();
  await runScript("backup_database", base);
}

/** A store in a round. */
class Store {
  readonly base: string;
  readonly #operation: string;
  readonly #database: string;
  #logBefore = new Map<string, string>();
  #acknowledged: string[] = [];

  constructor(base: string, operation: string) {
    this.base = base;
    this.#operation = operation;
    this.#database = `${base}/db/telemetry.sqlite`;
  }

  copyOf(template: string, random: (below: number) => number): void {
    copyFolder(template, this.base);
    if (this.#operation === "upgrade") {
      Deno.removeSync(this.#database);
      makeOldDatabase(this.#database, "v2", STORED);
    }
    if (this.#operation === "recover") this.#damage(random);
    for (const file of logFiles(`${this.base}/raw`)) this.#logBefore.set(file, Deno.readTextFileSync(file));
  }

  /** Overwrites a part of the header or of a random page. */
  #damage(random: (below: number) => number): void {
    using file = Deno.openSync(this.#database, { read: true, write: true });
    const pages = file.statSync().size / 4096;
    const page = random(2) === 0 ? 0 : 1 + random(pages - 1);
    file.seekSync(page * 4096, Deno.SeekMode.Start);
    file.writeSync(new Uint8Array(400).map(() => random(256)));
  }

  /** Performs the operation with a fault, checks, performs it again, and checks again. */
  async endure(fault: string, at: number): Promise<string[]> {
    const first = await drive(this.#operation, this.base, fault, String(at));
    this.#acknowledged.push(...[...first.stdout.matchAll(/^started (.*)$/gm)].map(([, id]) => id!));
    const problems: string[] = [];
    // It may succeed, fail with a TelemetryError, or be killed.
    const isKilled = first.code === KILLED && first.stderr === "";
    if (!isKilled && first.code !== 0 && !(first.code === 1 && /^\w+: /.test(first.stderr))) {
      problems.push(`exit code ${first.code}: ${first.stderr}`);
    }
    if (fault !== "vanish") problems.push(...await this.#check("after the fault"));
    else await runScript("setup_storage", this.base);
    if (fault === "vanish") this.#logBefore.clear();
    // Without backups, there is nothing to restore.
    if (fault === "vanish" && this.#operation === "restore") return problems;
    const second = await drive(this.#operation, this.base);
    if (second.code !== 0) problems.push(`repeated: exit code ${second.code}: ${second.stderr}`);
    this.#acknowledged.push(...[...second.stdout.matchAll(/^started (.*)$/gm)].map(([, id]) => id!));
    if (fault === "vanish") this.#acknowledged = [];
    return [...problems, ...await this.#check("repeated")];
  }

  /** The problems of the store. */
  async #check(when: "after the fault" | "repeated"): Promise<string[]> {
    const problems: string[] = [];
    const expect = (isMet: boolean, problem: string) => isMet || problems.push(`${when}: ${problem}`);
    for (const [file, text] of this.#logBefore) {
      expect(Deno.readTextFileSync(file).startsWith(text), `${file} lost lines`);
    }
    const logged = new Set<string>();
    for await (const found of scan(logFiles(`${this.base}/raw`))) {
      if ("record" in found) logged.add(found.record.run_id);
    }
    for (const id of this.#acknowledged) expect(logged.has(id), `the start of ${id} is not in the log`);
    expect((Deno.statSync(this.#database).size ?? 0) > 0, "the database is empty");
    const isDamaged = this.#operation === "recover" && when === "after the fault";
    if (!isDamaged) {
      const health = await checkHealth(layoutOf(this.base));
      expect(health.healthy, `the database is not healthy: ${health.problems}`);
      // When the log is gone too, damaged rows may be lost.
      const least = this.#operation === "recover" && this.#logBefore.size === 0 ? 0 : STORED;
      expect(countRuns(this.#database) >= least, `the database has ${countRuns(this.#database)} runs`);
    }
    for (const [path, runs] of this.#copies()) {
      expect(isIntact(path), `${path} is not intact`);
      if (isIntact(path)) expect(countRuns(path) >= runs, `${path} has ${countRuns(path)} runs`);
    }
    for (const path of this.#filesIn("exports")) {
      const text = Deno.readTextFileSync(path);
      if (path.endsWith(".csv")) {
        expect(text.split("\r\n").length === countRuns(this.#database) + 2, `${path} is incomplete`);
      }
    }
    if (when === "repeated") {
      const left = ["db", "backups", "exports", "reports"].flatMap((folder) => this.#filesIn(folder))
        .filter((path) => /\.partial|recovering/.test(path));
      expect(left.length === 0, `temporary files remain: ${left}`);
    }
    return problems;
  }

  /** The copies with a final name, each with the number of runs that it must have. */
  *#copies(): Generator<[path: string, runs: number]> {
    for (const path of [...this.#filesIn("backups"), ...this.#filesIn("db")]) {
      const kind = parseFileName(path.split("/").at(-1)!)?.kind;
      // The kept damaged database is as damaged as it was.
      if (kind !== undefined && kind !== "corrupted" && kind !== "before_rebuild") yield [path, STORED];
    }
  }

  #filesIn(folder: string): string[] {
    try {
      return [...Deno.readDirSync(`${this.base}/${folder}`)].map(({ name }) => `${this.base}/${folder}/${name}`);
    } catch {
      return [];
    }
  }
}

function isIntact(path: string): boolean {
  const db = new DatabaseSync(path);
  try {
    return db.prepare("PRAGMA integrity_check").get()!["integrity_check"] === "ok";
  } catch {
    return false;
  } finally {
    db.close();
  }
}

/** The number of runs in a database. -1 when it cannot be determined. */
function countRuns(path: string): number {
  const db = new DatabaseSync(path);
  try {
    return Number(db.prepare("SELECT count(*) AS runs FROM agent_runs").get()!["runs"]);
  } catch {
    return -1;
  } finally {
    db.close();
  }
}

if (import.meta.main) {
  const { values } = parseArgs({ args: Deno.args, options: { rounds: { type: "string" }, seed: { type: "string" } } });
  const seed = Number(values.seed ?? Date.now() % 1e9);
  const injected = new Map<string, number>();
  let failed = 0;
  for await (const round of lab(Number(values.rounds ?? 100), seed)) {
    const key = `${round.operation} ${round.fault}`;
    injected.set(key, (injected.get(key) ?? 0) + 1);
    if (round.problems.length === 0) continue;
    failed++;
    console.log(`--rounds 1 --seed ${round.seed}: ${round.fault} at call ${round.at} of ${round.operation}`);
    for (const problem of round.problems) console.log(`  ${problem}`);
  }
  for (const [key, times] of [...injected].sort()) console.log(`${String(times).padStart(5)}  ${key}`);
  console.log(failed === 0 ? "Nothing was lost" : `${failed} ${failed === 1 ? "round" : "rounds"} failed`);
  Deno.exit(failed === 0 ? 0 : 1);
}
