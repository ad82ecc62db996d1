/** Appends and whole runs against plain Python, and memory over a million appends. */
import { BASELINES, ROOT, run } from "../fixtures/mod.ts";
import { median, medianRatio, type Part } from "./bench.ts";

const ROUNDS = 7;
const BASELINE = `${BASELINES}/append.py`;

/** What the Python client does: each write of the log as append.py does it, each of the database in a new connection. */
const PYTHON_RUNS = `
import fcntl, json, os, sqlite3, sys, time
from datetime import datetime, timezone
base, count = sys.argv[1], int(sys.argv[2])
os.makedirs(base + "/raw", exist_ok=True)
def append(record):
    with open(f"{base}/raw/events_{datetime.now(timezone.utc):%Y%m%d}.ndjson", "a", encoding="utf-8") as f:
        fcntl.flock(f.fileno(), fcntl.LOCK_EX)
        f.write(json.dumps(record) + "\\n")
        f.flush(); os.fsync(f.fileno())
        fcntl.flock(f.fileno(), fcntl.LOCK_UN)
def write(sql, values):
    db = sqlite3.connect(base + "/db/telemetry.sqlite")
    db.execute("PRAGMA busy_timeout=5000"); db.execute("PRAGMA synchronous=NORMAL")
    db.execute(sql, values); db.commit(); db.close()
t = time.time()
for i in range(count):
    now = datetime.now(timezone.utc).isoformat()
    run = {"run_id": f"py-{os.getpid()}-{i}", "schema_version": 3, "agent_name": "py", "job_type": "bench", "trigger_type": "cli",
           "start_time": now, "status": "running", "items_discovered": 0, "items_succeeded": 0, "items_failed": 0}
    append({**run, "record_type": "run"})
    write(f"INSERT INTO agent_runs ({','.join(run)}) VALUES ({','.join('?' * len(run))})", list(run.values()))
    for n in range(3):
        append({"run_id": run["run_id"], "event_type": "checkpoint", "timestamp": now, "payload_json": json.dumps({"n": n}), "id": None, "record_type": "event"})
    append({**run, "end_time": now, "status": "success", "duration_ms": 5, "record_type": "run"})
    write("UPDATE agent_runs SET end_time=?, status=?, duration_ms=?, updated_at=datetime('now') WHERE run_id=?", (now, "success", 5, run["run_id"]))
print(count / (time.time() - t))
`;

export const recorder: Part = async function* (folder) {
  const python = (await run("python3", ["--version"]).catch(() => ({ code: 1 }))).code === 0;
  const baseline = python && await Deno.stat(BASELINE).then(() => true, () => false);
  if (!baseline) yield "appends: left out, because python3 or ../shared/baselines/append.py is missing";
  else yield* appends(folder);
  if (!python) yield "whole runs: left out, because python3 is missing";
  else yield* wholeRuns(folder);
  yield* memory(folder);
};

async function* appends(folder: string): ReturnType<Part> {
  const modes = [[1, 15_000, 1], [128, 256_000, 50], [1024, 1_024_000, 100]] as const;
  const rates = new Map<number, number[]>([[0, []], ...modes.map(([at]): [number, number[]] => [at, []])]);
  for (let round = 0; round < ROUNDS; round++) {
    // Each in a folder of its own: the length of a file matters to the file system.
    rates.get(0)!.push(await rate("python3", [BASELINE, `${folder}/python${round}/raw`, "15000"]));
    for (const [atOnce, count] of modes) {
      rates.get(atOnce)!.push(await driver("append", `${folder}/deno${round}_${atOnce}`, count, atOnce));
    }
  }
  const plain = median(rates.get(0)!);
  for (const [atOnce, , atLeast] of modes) {
    const ours = median(rates.get(atOnce)!);
    yield {
      what: atOnce === 1 ? "appends, one at a time" : `appends, ${atOnce} at once`,
      ours: `${Math.round(ours)}/s`,
      baseline: `${Math.round(plain)}/s`,
      ratio: medianRatio(rates.get(atOnce)!, rates.get(0)!),
      wanted: { atLeast },
    };
  }
}

async function* wholeRuns(folder: string): ReturnType<Part> {
  const modes = ["run", "run_awaited"] as const;
  const rates = { python: [] as number[], run: [] as number[], run_awaited: [] as number[] };
  await driver("run", `${folder}/runs_python`, 1, 1);
  for (let round = 0; round < ROUNDS; round++) {
    rates.python.push(await rate("python3", ["-c", PYTHON_RUNS, `${folder}/runs_python`, "300"]));
    for (const mode of modes) rates[mode].push(await driver(mode, `${folder}/runs_deno`, 1000, 1));
  }
  const plain = median(rates.python);
  for (const mode of modes) {
    const ours = median(rates[mode]);
    yield {
      what: `whole runs (start, 3 events, end; log and database${mode === "run" ? "" : "; each event awaited"})`,
      ours: `${Math.round(ours)}/s`,
      baseline: `${Math.round(plain)}/s`,
      ratio: medianRatio(rates[mode], rates.python),
      wanted: { atLeast: 3 },
    };
  }
}

async function* memory(folder: string): ReturnType<Part> {
  const [, ...args] = driverArgs("memory", `${folder}/memory`, 1_000_000, 1000);
  const { stdout } = await run(Deno.execPath(), ["run", "--v8-flags=--expose-gc", ...args]);
  const [early, earlyRss, late, lateRss] = stdout.trim().split(" ").map(Number) as [number, number, number, number];
  yield {
    what: "memory in use (of the process) after 1,000,000 appends, against after 100,000",
    ours: `${late} (${lateRss}) MB`,
    baseline: `${early} (${earlyRss}) MB`,
    ratio: late / early,
    wanted: { atMost: 1.2 },
  };
}

/** Runs a program that prints how many it did a second. */
async function rate(program: string, args: string[]): Promise<number> {
  const { code, stdout, stderr } = await run(program, args);
  if (code !== 0) throw new Error(stderr);
  return Number(stdout);
}

function driver(mode: string, base: string, count: number, atOnce: number): Promise<number> {
  return rate(Deno.execPath(), driverArgs(mode, base, count, atOnce));
}

function driverArgs(mode: string, base: string, count: number, atOnce: number): string[] {
  const script = `${ROOT}tests/bench/recorder_driver.ts`;
  return ["run", "--quiet", "--allow-read", "--allow-write", script, mode, base, String(count), String(atOnce)];
}
