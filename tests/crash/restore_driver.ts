/**
 * A process that restores a backup and dies just before one of its calls to Deno or to SQLite; without a number of the
 * call it lives, and prints how many there were. `lib` is as everyone has it: what is watched are the calls, in this
 * process alone.
 * usage: restore_driver.ts BASE BACKUP [CALL]
 * @module
 */
import { DatabaseSync } from "node:sqlite";
import { restoreBackup } from "../../lib/backup/restore.ts";
import { layoutOf } from "../../lib/layout.ts";

const [base, backup, last = "0"] = Deno.args;
const dieAt = Number(last);
let calls = 0;

function die(): never {
  Deno.kill(Deno.pid, "SIGKILL");
  for (;;);
}

function step(): void {
  if (++calls === dieAt) die();
}

// deno-lint-ignore no-explicit-any
function watch(object: any, name: string): void {
  const original = object[name];
  // deno-lint-ignore no-explicit-any
  object[name] = function (this: unknown, ...args: any[]) {
    step();
    return original.apply(this, args);
  };
}

for (const name of ["linkSync", "removeSync", "renameSync", "chmodSync", "openSync"]) watch(Deno, name);
for (const name of ["sync", "syncSync", "truncateSync", "close"]) watch(Deno.FsFile.prototype, name);
for (const name of ["prepare", "exec", "close"]) watch(DatabaseSync.prototype, name);
// A write takes its time: half of it is there when the process dies in its midst.
const { writeSync } = Deno.FsFile.prototype;
Deno.FsFile.prototype.writeSync = function (bytes) {
  step();
  if (++calls === dieAt) {
    writeSync.call(this, bytes.subarray(0, bytes.length / 2));
    die();
  }
  return writeSync.call(this, bytes);
};

await restoreBackup(layoutOf(base!), backup!, { onProgress: step });
console.log(calls);
