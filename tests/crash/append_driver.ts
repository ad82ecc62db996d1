/**
 * A process that appends records to a log, says on its standard output which are acknowledged, and dies where it is
 * told to. `lib` is as everyone has it: what is watched are the methods of open files, in this process alone.
 * usage: append_driver.ts ORDERS, as JSON
 * @module
 */
import { EventLog } from "../../lib/log/append.ts";
import { layoutOf } from "../../lib/layout.ts";
import type { LogRecord } from "../../lib/records.ts";

/** What the log does, by the method of the file that it has called. */
export type Phase = "waiting" | "writing" | "syncing";
export const PHASES: Phase[] = ["waiting", "writing", "syncing"];

/** What the process is to do. */
export interface Orders {
  base: string;
  /** Goes into the ids of its records: `{name}-{number}`. */
  name: string;
  /** How many loops append one record after the other; every fourth one appends three at a time. */
  loops?: number;
  /** After how many records to end; without it, never. */
  count?: number;
  /** Instead of loops: batches of so many records, each appended in one turn and awaited. */
  batches?: number[];
  /** Keeps the lock for so long after each sync, in milliseconds, and pauses as long. */
  holdMs?: number;
  /** A file whose only byte says in which phase the process is. */
  phaseFile?: string;
  /** The call in whose course to die. */
  die?: {
    phase: Phase;
    /** Which call of that phase, counted from 1. */
    call: number;
    /** How much of what is to be done is done first: from 0 to 1. */
    done: number;
  };
}

/** What stands in the phase file. */
export const PHASE_BYTES: Record<Phase | "other", number> = { waiting: 1, writing: 2, syncing: 3, other: 4 };
/** Is added to it where the process killed itself. */
export const SELF_INFLICTED = 16;

/** The record with an id, of which others can check every byte. Some are larger than a page. */
export function recordOf(id: string): LogRecord {
  const number = Number(id.slice(id.lastIndexOf("-") + 1));
  const filler = '{"a": "ä\\ — 日本語 🚀"}\n'.repeat(number % 16 === 3 ? 500 : number % 7);
  return {
    run_id: id,
    event_type: "checkpoint",
    timestamp: "2025-12-10T12:00:00.000000+00:00",
    payload_json: JSON.stringify({ number, filler }),
    id: null,
    record_type: "event",
  };
}

if (import.meta.main) {
  const orders: Orders = JSON.parse(Deno.args[0]!);
  watch(orders);
  await append(orders);
}

async function append({ base, name, loops = 1, count = Infinity, batches, holdMs }: Orders): Promise<void> {
  const log = new EventLog(layoutOf(base));
  let next = 0;
  const appendSome = async (some: number, all: boolean) => {
    const ids = Array.from({ length: some }, () => `${name}-${next++}`);
    if (all) await Promise.all(ids.map((id) => log.append(recordOf(id)))).then(() => ids.forEach(acknowledge));
    else await Promise.all(ids.map((id) => log.append(recordOf(id)).then(() => acknowledge(id))));
  };
  for (const some of batches ?? []) await appendSome(some, false);
  if (batches) return;
  await Promise.all(Array.from({ length: loops }, async (_, loop) => {
    while (next < count) {
      await appendSome(loop % 4 === 3 ? Math.min(3, count - next) : 1, loop % 4 === 3);
      if (holdMs) await new Promise((resolve) => setTimeout(resolve, holdMs));
    }
  }));
}

function acknowledge(id: string): void {
  const bytes = new TextEncoder().encode(`${id}\n`);
  for (let written = 0; written < bytes.length;) written += Deno.stdout.writeSync(bytes.subarray(written));
}

function watch({ phaseFile, die, holdMs = 0 }: Orders): void {
  const files = Deno.FsFile.prototype;
  const { lock, tryLockSync, seekSync, writeSync, sync, syncSync } = files;
  const noted = phaseFile === undefined ? undefined : Deno.openSync(phaseFile, { write: true });
  const calls: Record<Phase, number> = { waiting: 0, writing: 0, syncing: 0 };

  const note = (byte: number) => {
    if (noted === undefined) return;
    seekSync.call(noted, 0, Deno.SeekMode.Start);
    writeSync.call(noted, new Uint8Array([byte]));
  };
  /** Notes the phase; whether to die in it. */
  const begin = (phase: Phase) => {
    note(PHASE_BYTES[phase]);
    return die?.phase === phase && ++calls[phase] === die.call ? die : undefined;
  };
  const end = () => note(PHASE_BYTES.other);
  const kill = (phase: Phase) => {
    note(PHASE_BYTES[phase] + SELF_INFLICTED);
    Deno.kill(Deno.pid, "SIGKILL");
  };
  const hold = () => {
    if (holdMs > 0) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, holdMs);
  };

  files.tryLockSync = function (exclusive) {
    const got = tryLockSync.call(this, exclusive);
    if (got) end();
    else if (begin("waiting")) kill("waiting");
    return got;
  };
  files.lock = async function (exclusive) {
    const dying = begin("waiting");
    const locked = lock.call(this, exclusive);
    if (dying) kill("waiting");
    await locked;
    end();
  };
  files.writeSync = function (bytes) {
    const dying = begin("writing");
    if (dying) {
      writeSync.call(this, bytes.subarray(0, Math.round(bytes.length * dying.done)));
      kill("writing");
    }
    const written = writeSync.call(this, bytes);
    end();
    return written;
  };
  files.sync = async function () {
    const dying = begin("syncing");
    const synced = sync.call(this);
    if (dying && dying.done < 1) kill("syncing");
    await synced;
    if (dying) kill("syncing");
    hold();
    end();
  };
  files.syncSync = function () {
    const dying = begin("syncing");
    if (dying && dying.done < 1) kill("syncing");
    syncSync.call(this);
    if (dying) kill("syncing");
    hold();
    end();
  };
}
