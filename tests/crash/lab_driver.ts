/**
 * Performs one operation and injects a fault before its n-th call to Deno or SQLite. Without a fault, prints the number
 * of calls. The code of `lib/` is unchanged: this process replaces the functions that it calls.
 * usage: lab_driver.ts OPERATION BASE [FAULT CALL]
 * @module
 */
import { DatabaseSync } from "node:sqlite";
import { listBackups, takeBackup } from "../../lib/backup/backup.ts";
import { restoreBackup } from "../../lib/backup/restore.ts";
import { TelemetryClient } from "../../lib/writer/client.ts";
import { exportToFile } from "../../lib/export/export.ts";
import { readRequest } from "../../lib/export/request.ts";
import { setUpDatabase } from "../../lib/store/database.ts";
import { TelemetryError } from "../../lib/errors.ts";
import { type Layout, layoutOf } from "../../lib/layout.ts";
import { recoverDatabase } from "../../lib/recovery/recover.ts";

/** What users do with a store. */
export const OPERATIONS: Record<string, (layout: Layout) => Promise<unknown>> = {
  record,
  upgrade: setUpDatabase,
  daily_backup: (layout) => takeBackup(layout, "daily_backup"),
  full_backup: (layout) => takeBackup(layout, "full_backup"),
  restore: (layout) => restoreBackup(layout, listBackups(layout)[0]!.path),
  recover: (layout) => recoverDatabase(layout),
  export: (layout) => exportToFile(layout, readRequest({}, new Date())),
};

/** The faults that can be injected. */
export const FAULTS: Record<string, (layout: Layout) => void> = {
  kill: () => {
    Deno.kill(Deno.pid, "SIGKILL");
    for (;;);
  },
  // A full disk fails each write from now on, a failing disk a single one.
  disk_full: () => fail(WRITES, "ENOSPC"),
  io_error: () => fail(WRITES, "EIO", 1),
  // What CIFS, WSL, NFS and a mount over a file refuse, from now on.
  rename_refused: () => fail(["renameSync"], "EBUSY"),
  sync_refused: () => fail(SYNCS, "EINVAL"),
  chmod_refused: () => fail(["chmodSync"], "EPERM"),
  flock_refused: () => fail(LOCKS, "ENOLCK"),
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
      } catch { /* it does not exist */ }
    }
  },
};

const SYNCS = ["sync", "syncSync"];
const WRITES = ["write", "writeSync", ...SYNCS];
const LOCKS = ["lock", "lockSync", "tryLock", "tryLockSync"];

let failing: readonly string[] = [];
let failure = "";
let failures = 0;

function fail(names: readonly string[], code: string, times = Infinity): void {
  [failing, failure, failures] = [names, code, times];
}

/** Throws the error that the operating system would return. */
function mayFail(name: string): void {
  if (!failing.includes(name) || failures-- <= 0) return;
  const Kind = failure === "EPERM" ? Deno.errors.PermissionDenied : Error;
  throw Object.assign(new Kind(`${failure} (os error)`), { code: failure });
}

if (import.meta.main) {
  const [operation = "", base = "", fault, call] = Deno.args;
  const layout = layoutOf(base);
  let calls = 0;
  const step = () => {
    if (++calls === Number(call)) FAULTS[fault!]!(layout);
  };
  // deno-lint-ignore no-explicit-any
  const watch = (object: any, name: string) => {
    const original = object[name];
    // deno-lint-ignore no-explicit-any
    object[name] = function (this: unknown, ...args: any[]) {
      step();
      mayFail(name);
      return original.apply(this, args);
    };
  };
  for (const name of ["linkSync", "renameSync", "removeSync", "chmodSync", "openSync", "copyFileSync", "mkdirSync"]) {
    watch(Deno, name);
  }
  for (const name of [...WRITES, ...LOCKS, "truncateSync", "close"]) watch(Deno.FsFile.prototype, name);
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

/** Records runs and prints the id of each whose start was acknowledged. */
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
