/**
 * A process that recovers a database. It kills itself just before one of its calls to Deno, to SQLite or to the thread
 * that writes, and prints the phase. Without PHASE#CALL it ends normally, and prints the phase of each call. `lib` is
 * unchanged: the calls are watched in this process only.
 * usage: recovery_driver.ts BASE [PHASE#CALL]
 * @module
 */
import { DatabaseSync, StatementSync } from "node:sqlite";
import { layoutOf } from "../../lib/layout.ts";
import { newRun } from "../../lib/records.ts";
import { recoverDatabase } from "../../lib/recovery/recover.ts";

/** What a recovery does, in this order, but that one of the two ways of placing is enough. */
export const PHASES = [
  ...["checking", "keeping the copy", "salvaging", "loading the log", "finishing the new file"] as const,
  ...["placing through SQLite", "placing by rename", "catching up", "reporting"] as const,
];
export type Phase = typeof PHASES[number];
/** A run that comes into the log while the new database is put in place. */
export const LATE = "20251212T235959Z-late-00000000";

if (import.meta.main) await recover(Deno.args[0]!, Deno.args[1] ?? "");

async function recover(base: string, place: string): Promise<void> {
  const layout = layoutOf(base);
  const calls: Phase[] = [];
  let phase: Phase = "checking";
  const [diePhase, dieAt] = [place.split("#")[0], Number(place.split("#")[1])];
  /** How many calls there were in the phase in which it dies. */
  let counted = 0;

  /** Nothing goes back to an earlier phase. */
  const enter = (next: Phase) => {
    if (PHASES.indexOf(next) > PHASES.indexOf(phase)) phase = next;
  };
  const step = () => {
    calls.push(phase);
    if (phase !== diePhase || ++counted !== dieAt) return;
    Deno.stdout.writeSync(new TextEncoder().encode(phase));
    Deno.kill(Deno.pid, "SIGKILL");
    for (;;);
  };
  // deno-lint-ignore no-explicit-any
  const watch = (object: any, name: string, judge: (self: any, ...args: any[]) => void = () => {}) => {
    const original = object[name];
    // deno-lint-ignore no-explicit-any
    object[name] = function (this: unknown, ...args: any[]) {
      judge(this, ...args);
      step();
      return original.apply(this, args);
    };
  };

  const appendTextFile = Deno.writeTextFileSync;
  /** An agent that is alive writes a run. */
  const writeLate = () => {
    const run = newRun({
      run_id: LATE,
      agent_name: "late",
      start_time: "2025-12-12T23:59:59+00:00",
      status: "success",
    });
    const path = `${layout.raw}/events_20251213.ndjson`;
    appendTextFile(path, `${JSON.stringify({ ...run, record_type: "run" })}\n`);
  };
  const judgePath = (path: unknown, to?: unknown) => {
    const paths = `${path} ${to}`;
    if (/\.corrupted\.|\.before_rebuild_/.test(paths)) enter("keeping the copy");
    if (/[\\/]reports[\\/]/.test(paths) && PHASES.indexOf(phase) >= PHASES.indexOf("placing through SQLite")) {
      enter("reporting");
    }
    if (to === layout.database) {
      enter("placing by rename");
      writeLate();
    }
  };
  const judgeSql = (db: DatabaseSync, sql: string) => {
    const path = db.location();
    if (path === layout.recovering && sql.includes("CREATE TABLE agent_runs")) enter("salvaging");
    if (path === layout.recovering && sql.includes("ignore_check_constraints")) enter("loading the log");
    if (path === layout.recovering && phase === "loading the log" && sql.includes("INTO schema_migrations")) {
      enter("finishing the new file");
    }
    if (path === layout.database && sql === "BEGIN EXCLUSIVE") enter("placing through SQLite");
    if (path === layout.database && sql.startsWith("INSERT")) enter("catching up");
    if (path === layout.recovering && sql === "BEGIN" && phase === "placing through SQLite") writeLate();
    if (/\.(corrupted\.|before_rebuild_).*\.partial$/.test(path ?? "")) enter("keeping the copy");
  };

  watch(Deno, "linkSync", (_, ...paths) => judgePath(...paths as [unknown]));
  for (const name of ["renameSync", "openSync", "statSync"]) {
    watch(Deno, name, (_, path, to) => judgePath(path, typeof to === "string" ? to : undefined));
  }
  // The sidecars go just before a file gets the name.
  watch(Deno, "removeSync", (_, path) => path === `${layout.database}-wal` && enter("placing by rename"));
  watch(Deno, "chmodSync");
  watch(Deno, "readDirSync", (_, path) => {
    if (path === layout.raw && phase.startsWith("placing")) enter("catching up");
  });
  for (const name of ["sync", "syncSync", "truncateSync", "close"]) watch(Deno.FsFile.prototype, name);
  for (const name of ["prepare", "exec"]) watch(DatabaseSync.prototype, name, judgeSql);
  watch(DatabaseSync.prototype, "close");
  watch(StatementSync.prototype, "run");
  // Where the log is large, the thread that writes.
  watch(Worker.prototype, "postMessage", () => enter("loading the log"));
  // A write takes its time: half of it is there when the process dies in its midst.
  const { writeSync } = Deno.FsFile.prototype;
  Deno.FsFile.prototype.writeSync = function (bytes) {
    step();
    if (counted + 1 === dieAt && [undefined, phase].includes(diePhase as Phase)) {
      writeSync.call(this, bytes.subarray(0, bytes.length / 2));
    }
    step();
    return writeSync.call(this, bytes);
  };

  await recoverDatabase(layout);
  console.log(JSON.stringify(calls));
}
