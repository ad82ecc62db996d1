/**
 * A process that does one operation, and in which a fault strikes just before the n-th of its calls to Deno or to SQLite.
 * Without a fault it prints how many calls there were. `lib` is as everyone has it: what is changed are the calls, in this
 * process alone.
 * usage: lab_driver.ts OPERATION BASE [FAULT CALL]
 * @module
 */
import { DatabaseSync } from "node:sqlite";
import { listBackups, restoreBackup, takeBackup } from "../../lib/backup/backup.ts";
import { TelemetryClient } from "../../lib/writer/client.ts";
import { exportToFile, readRequest } from "../../lib/export/export.ts";
import { setUpDatabase } from "../../lib/store/database.ts";
import { TelemetryError } from "../../lib/errors.ts";
import { type Layout, layoutOf } from "../../lib/layout.ts";
import { recoverDatabase } from "../../lib/recovery/recover.ts";

/** What people do with a store. */
export const OPERATIONS: Record<string, (layout: Layout) => Promise<unknown>> = {
  record,
  upgrade: setUpDatabase,
  daily_backup: (layout) => takeBackup(layout, "daily_backup"),
  full_backup: (layout) => takeBackup(layout, "full_backup"),
  restore: (layout) => restoreBackup(layout, listBackups(layout)[0]!.path),
  recover: (layout) => recoverDatabase(layout),
  export: (layout) => exportToFile(layout, readRequest({}, new Date())),
};

/** What may go wrong. */
export const FAULTS: Record<string, (layout: Layout) => void> = {
  kill: () => {
    Deno.kill(Deno.pid, "SIGKILL");
    for (;;);
  },
  // From now on, as on a disk that is full; and once, as on one that is failing.
  disk_full: () => failWrites("ENOSPC", Infinity),
  io_error: () => failWrites("EIO", 1),
  midnight: () => {
    const now = Date.now;
    const Original = Date;
    Date.now = () => now() - 25 * 3600_000;
    globalThis.Date = new Proxy(Original, {
      construct: (target, args) => args.length === 0 ? new target(Date.now()) : Reflect.construct(target, args),
    });
  },
  vanish: ({ raw, reports, exports, backups }) => {
    for (const folder of [raw, reports, exports, backups]) {
      try {
        Deno.removeSync(folder, { recursive: true });
      } catch { /* it was not there */ }
    }
  },
};

let failures = 0;
let failure = "";

function failWrites(code: string, times: number): void {
  failures = times;
  failure = code;
}

/** Fails as the operating system does. */
function mayFail(): void {
  if (failures-- <= 0) return;
  throw Object.assign(new Error(`${failure} (os error)`), { code: failure });
}

if (import.meta.main) {
  const [operation = "", base = "", fault, call] = Deno.args;
  const layout = layoutOf(base);
  let calls = 0;
  const step = () => {
    if (++calls === Number(call)) FAULTS[fault!]!(layout);
  };
  // deno-lint-ignore no-explicit-any
  const watch = (object: any, name: string, isWrite = false) => {
    const original = object[name];
    // deno-lint-ignore no-explicit-any
    object[name] = function (this: unknown, ...args: any[]) {
      step();
      if (isWrite) mayFail();
      return original.apply(this, args);
    };
  };
  for (const name of ["linkSync", "renameSync", "removeSync", "chmodSync", "openSync", "copyFileSync", "mkdirSync"]) {
    watch(Deno, name);
  }
  for (const name of ["write", "writeSync", "sync", "syncSync"]) watch(Deno.FsFile.prototype, name, true);
  for (const name of ["truncateSync", "close"]) watch(Deno.FsFile.prototype, name);
  for (const name of ["prepare", "exec", "close"]) watch(DatabaseSync.prototype, name);
  try {
    await OPERATIONS[operation]!(layout);
  } catch (error) {
    if (!(error instanceof TelemetryError)) throw error;
    console.error(`${error.code}: ${error.message}`);
    Deno.exit(1);
  }
  if (fault === undefined) console.log(calls);
}

/** Records some runs; says the id of each whose start is on the disk. */
async function record({ base }: Layout): Promise<void> {
  await using telemetry = new TelemetryClient({ base, onWarning: () => {} });
  const failures = async () => JSON.stringify((await telemetry.getStats()).failures);
  for (let n = 0; n < 3; n++) {
    const before = await failures();
    const id = await telemetry.startRun("lab", "record");
    if (await failures() === before) console.log(`started ${id}`);
    await telemetry.endRun(id, { status: "success" });
  }
}
