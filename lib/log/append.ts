/**
 * Appends records to the log in `raw/` durably, one JSON object a line.
 * @module
 */
import { setTimeout as pause } from "node:timers/promises";
import { chownToOwnerOf, ensureFolder, statIfSameFile, syncFolder, writeAll } from "../fs/atomic_file.ts";
import { statIfExists } from "../fs/locate.ts";
import { sleepSync, within } from "../fs/wait.ts";
import { assertNonNegative, fileError, TelemetryError } from "../errors.ts";
import { fileName, type Layout, pathIn } from "../layout.ts";
import type { LogRecord } from "../records.ts";
import { lineOf } from "./lines.ts";
import { ExitDeadline, type LockedFile, lockedTooLong, SharedLock } from "./shared_lock.ts";

/** Options of an {@linkcode EventLog}. */
export interface EventLogOptions {
  /** How long a batch waits for the lock of the file, in milliseconds. @default 10_000 */
  lockTimeoutMs?: number;
  /**
   * How many characters may wait to be written. More of them drop the oldest events. Runs may take as much again.
   * @default 67_108_864 (64 Mi)
   */
  maxQueued?: number;
  /** Called when the folder of the log was missing and has been created. */
  onFolderCreated?: (folder: string) => void;
}

const IS_WINDOWS = Deno.build.os === "windows";
/** How many characters a batch holds before a new one is started. Bounds how long the lock is held and the agent waits. */
const BATCH_CHARACTERS = 1024 * 1024;
/** An `fsync` that takes longer is slow, in milliseconds. */
const SLOW_SYNC_MS = 2;
/** How many fast `fsync` calls in a row make a disk a fast one. */
const TRUSTED_AFTER = 4;

/** Lines that share one open, lock, write and fsync. */
interface Batch {
  lines: string[];
  /** The places of runs in `lines`. The others are events, which can be dropped. */
  runs: number[];
  characters: number;
  /** What `append` returned for each type. */
  written: { [type in LogRecord["record_type"]]?: PromiseWithResolvers<void> };
  /** Whether it is written, or `flushSync` has taken it over. */
  isTaken: boolean;
}

/**
 * Appends records to the log of the UTC day. Each append resolves when its line is on the disk. Appends that arrive while
 * others are being written share the next write (group commit).
 *
 * @example
 * ```ts
 * import { EventLog } from "./append.ts";
 * import { layoutOf } from "../layout.ts";
 * import { timestamp } from "../time.ts";
 *
 * const log = new EventLog(layoutOf("/tmp/telemetry"));
 * await log.append({
 *   run_id: "20251210T120530Z-indexer-0a1b2c3d",
 *   event_type: "checkpoint",
 *   timestamp: timestamp(),
 *   payload_json: null,
 *   id: null,
 *   record_type: "event",
 * });
 * ```
 */
export class EventLog {
  /** How many events were dropped because too much waited. */
  dropped = 0;
  readonly #base: string;
  readonly #raw: string;
  readonly #shared: SharedLock;
  readonly #lockTimeoutMs: number;
  readonly #maxQueued: number;
  readonly #onFolderCreated: (folder: string) => void;
  readonly #encoder = new TextEncoder();
  #waiting: Batch[] = [];
  /** The batch that waits for the lock or is being written. */
  #current: Batch | undefined;
  /** How many characters wait, those of `#current` included. */
  #queued = 0;
  #drained: Promise<void> | undefined;
  #abandoned = false;
  #fastSyncs = 0;
  /** The last written file, whose name is durable, and its size. */
  #end: { ino: number | null; size: number } | undefined;

  /**
   * Touches no file: the log is opened for each batch.
   *
   * @param layout where the log is
   * @throws {TelemetryError} `usage` when an option is not a number, or negative
   */
  constructor(layout: Layout, options: EventLogOptions = {}) {
    const { lockTimeoutMs = 10_000, maxQueued = 64 * 1024 * 1024 } = options;
    assertNonNegative({ lockTimeoutMs, maxQueued });
    this.#base = layout.base;
    this.#raw = layout.raw;
    this.#shared = SharedLock.of(layout.raw);
    this.#lockTimeoutMs = lockTimeoutMs;
    this.#maxQueued = maxQueued;
    this.#onFolderCreated = options.onFolderCreated ?? (() => {});
  }

  /**
   * Appends one record. The record is copied: it may be changed after the call.
   *
   * @returns resolves when the line is on the disk; rejects with a {@linkcode TelemetryError}, and then the log has nothing
   * of it: `invalid_record` (not JSON, or readers would reject it), `queue_full` (too much waits, and an event was
   * dropped), `locked`, `disk_full`, `permission`, `in_the_way`, `closed`, `io`
   */
  append(record: LogRecord): Promise<void> {
    try {
      return this.#enqueue(lineOf(record), record.record_type);
    } catch (error) {
      return Promise.reject(error);
    }
  }

  /** Resolves when every append has been written or has failed. Never rejects. */
  async idle(): Promise<void> {
    await this.#drained;
  }

  /** Rejects the appends that wait for the lock or their turn, and all later ones, with `closed`. */
  abandon(): void {
    this.#abandoned = true;
  }

  #enqueue(text: string, type: LogRecord["record_type"]): Promise<void> {
    if (this.#abandoned) throw closed();
    const queued = this.#queued + text.length;
    if (queued > this.#maxQueued && this.#queued > 0 && !this.#dropOldestEvents()) {
      // A flood of events must not push out the end of a run.
      if (type === "event") this.dropped++;
      if (type === "event" || queued > 2 * this.#maxQueued) throw queueFull();
    }
    let batch = this.#waiting.at(-1);
    if (batch === undefined || batch.characters >= BATCH_CHARACTERS) {
      batch = { lines: [], runs: [], characters: 0, written: {}, isTaken: false };
      this.#waiting.push(batch);
    }
    if (type === "run") batch.runs.push(batch.lines.length);
    batch.lines.push(text);
    batch.characters += text.length;
    this.#queued += text.length;
    // In a microtask, so that all appends of this turn of the event loop share the batch.
    this.#drained ??= Promise.resolve().then(() => this.#drain());
    return (batch.written[type] ??= Promise.withResolvers()).promise;
  }

  /** Drops the events of the oldest batch that has some. Returns false when there is none. */
  #dropOldestEvents(): boolean {
    const batch = this.#waiting.find(({ written }) => written.event);
    if (batch === undefined) return false;
    const runs = batch.runs.map((at) => batch.lines[at]!);
    const characters = runs.reduce((sum, { length }) => sum + length, 0);
    this.#queued -= batch.characters - characters;
    this.dropped += batch.lines.length - runs.length;
    batch.lines = runs;
    batch.runs = [...runs.keys()];
    batch.characters = characters;
    batch.written.event!.reject(queueFull());
    delete batch.written.event;
    return true;
  }

  async #drain(): Promise<void> {
    for (let batch = this.#waiting.shift(); batch !== undefined; batch = this.#waiting.shift()) {
      try {
        if (this.#abandoned) throw closed();
        this.#current = batch;
        await this.#write(batch);
        settle(batch);
      } catch (error) {
        settle(batch, fileError(error, `cannot write to the log in ${this.#raw}`));
      }
      this.#current = undefined;
      this.#queued -= batch.characters;
      // A fast disk is synced without a turn of the event loop: a flood must not be written in one.
      if (batch.characters >= BATCH_CHARACTERS) await pause(0);
    }
    this.#drained = undefined;
  }

  async #write(batch: Batch): Promise<void> {
    const locked = this.#openIfFree() ?? await this.#openLocked();
    const { file, size, ino } = locked;
    using _closed = file;
    this.#shared.held = locked;
    let end = size;
    try {
      if (batch.isTaken) return;
      this.#writeLines(locked, [batch]);
      batch.isTaken = true;
      end = locked.size;
      await this.#sync(file);
      if (this.#end?.ino !== ino || size === 0) syncFolder(this.#raw);
      this.#end = { ino, size: locked.size };
    } catch (error) {
      // Not what flushSync has written and synced behind it meanwhile.
      if (locked.size === end) truncate(file, size);
      throw error;
    } finally {
      this.#shared.held = undefined;
    }
  }

  /**
   * Writes everything that waits, synchronously. For the end of the process, after which no promise continues. Waits up to
   * `lockTimeoutMs` for the lock, and up to ten times as long while the log grows.
   *
   * @throws {TelemetryError} as `append` rejects; with `locked` everything still waits
   */
  flushSync(lockTimeoutMs: number): void {
    const batches = this.#current?.isTaken === false ? [this.#current, ...this.#waiting] : [...this.#waiting];
    if (batches.length === 0) return;
    using opened = new DisposableStack();
    const locked = this.#lockSync(new ExitDeadline(lockTimeoutMs), opened);
    const { file, size } = locked;
    this.#waiting = [];
    for (const batch of batches) {
      batch.isTaken = true;
      if (batch !== this.#current) this.#queued -= batch.characters;
    }
    try {
      this.#writeLines(locked, batches);
      file.syncSync();
      for (const batch of batches) settle(batch);
    } catch (error) {
      truncate(file, size);
      const failure = fileError(error, `cannot write to the log in ${this.#raw}`);
      for (const batch of batches) settle(batch, failure);
      throw failure;
    }
  }

  /** Writes lines to the end of a locked file. */
  #writeLines(locked: LockedFile, batches: Batch[]): void {
    const { file, path, size, ino } = locked;
    const text = batches.flatMap(({ lines }) => lines).join("");
    if (size === 0) chownToOwnerOf(this.#base, path);
    const isOurEnd = this.#end?.ino === ino && this.#end.size === size;
    const bytes = this.#encoder.encode(!isOurEnd && endsInHalfLine(file, size) ? `\n${text}` : text);
    if (IS_WINDOWS) file.seekSync(0, Deno.SeekMode.End);
    // A full disk shows first as a short write.
    writeAll(file, bytes);
    locked.size += bytes.length;
  }

  /** Syncs on this thread when the disk has been fast, which takes less time. A slow disk must not block the agent. */
  async #sync(file: Deno.FsFile): Promise<void> {
    const start = performance.now();
    if (this.#fastSyncs < TRUSTED_AFTER) await file.sync();
    else file.syncSync();
    this.#fastSyncs = performance.now() - start > SLOW_SYNC_MS ? 0 : this.#fastSyncs + 1;
  }

  /**
   * Opens and locks the file of the current UTC day, one log of this process after the other: each blocking request takes a
   * thread of Deno's pool, and without a free one the sync of the log that has the lock cannot run.
   */
  async #openLocked(): Promise<LockedFile> {
    const deadline = performance.now() + this.#shared.waitMs(this.#lockTimeoutMs);
    using _turn = await this.#shared.turn();
    for (;;) {
      using unlocked = new DisposableStack();
      const path = this.#pathNow();
      const file = unlocked.use(this.#open(path));
      this.#shared.asking = { file, path };
      await this.#lock(file, deadline);
      this.#shared.noteLocked();
      const locked = this.#ifStillAt(path, file);
      if (locked) {
        unlocked.move();
        return this.#shared.held = locked;
      }
      if (performance.now() > deadline) throw lockedTooLong(this.#raw);
      // On a file system where the inodes never agree, this must not loop without a pause.
      await pause(1);
    }
  }

  /** The same without a turn of the event loop. `opened` closes the file, unless it belongs to an append. */
  #lockSync(deadline: ExitDeadline, opened: DisposableStack): LockedFile {
    for (;;) {
      const { held, asking } = this.#shared;
      if (held) return held;
      // No promise continues when its request gets the lock.
      const got = asking && this.#shared.isGranted() ? this.#ifStillAt(asking.path, asking.file) : undefined;
      if (got) return got;
      const locked = this.#openIfFree();
      if (locked) {
        opened.use(locked.file);
        return locked;
      }
      if (deadline.isOver(statIfExists(this.#pathNow())?.size ?? 0)) throw lockedTooLong(this.#raw);
      sleepSync(5);
    }
  }

  /** The same without waiting; undefined while another process holds the lock. */
  #openIfFree(): LockedFile | undefined {
    using unlocked = new DisposableStack();
    const path = this.#pathNow();
    const file = unlocked.use(this.#open(path));
    const locked = file.tryLockSync(true) ? this.#ifStillAt(path, file) : undefined;
    if (locked) {
      unlocked.move();
      this.#shared.noteLocked();
    }
    return locked;
  }

  #pathNow(): string {
    return pathIn(this.#raw, fileName("log", new Date(Date.now())));
  }

  /** While it waited for the lock, the log may have been moved or deleted, or a new day may have begun. */
  #ifStillAt(path: string, file: Deno.FsFile): LockedFile | undefined {
    const stat = statIfSameFile(file, path);
    return stat && path === this.#pathNow() ? { file, path, ino: stat.ino, size: stat.size } : undefined;
  }

  #open(path: string): Deno.FsFile {
    // Windows does not truncate a file that is open for append only.
    const mode = IS_WINDOWS ? { write: true } : { append: true };
    const options: Deno.OpenOptions = { read: true, create: true, ...mode };
    try {
      return Deno.openSync(path, options);
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw fileError(error, `cannot write to the log in ${this.#raw}`);
      if (ensureFolder(this.#base, this.#raw)) this.#onFolderCreated(this.#raw);
      return Deno.openSync(path, options);
    }
  }

  /**
   * Tries the lock again and again. A blocking request cannot be cancelled, and would keep the process alive while another
   * one holds the lock. Trying alone starves, though, beside busy writers that hand the lock on within microseconds. So
   * when the file has grown, which shows that its writers release the lock, this queues with a blocking request.
   */
  async #lock(file: Deno.FsFile, deadline: number): Promise<void> {
    let isLocked = file.tryLockSync(true);
    if (isLocked) return;
    const { size } = file.statSync();
    if (this.#shared.heldSize === size) throw lockedTooLong(this.#raw);
    let queued: Promise<void> | undefined;
    for (let pauseMs = 1; !isLocked; pauseMs = Math.min(pauseMs * 1.1, 20)) {
      if (this.#abandoned) throw closed();
      if (this.#shared.isHeldTooLong(deadline, this.#lockTimeoutMs)) {
        this.#shared.heldSize = size;
        throw lockedTooLong(this.#raw);
      }
      await (queued ? within(pauseMs, queued) : pause(pauseMs));
      if (queued) continue;
      if (file.statSync().size === size) isLocked = file.tryLockSync(true);
      else {
        queued = file.lock(true).then(() => void (isLocked = true));
        // After a timeout the file is closed, which releases the lock when it comes.
        queued.catch(() => {});
      }
    }
  }
}

function settle({ written }: Batch, failure?: TelemetryError): void {
  for (const { resolve, reject } of Object.values(written)) failure ? reject(failure) : resolve();
}

/** Under the same lock as the write, because records that are reported as failed must not be read later. */
function truncate(file: Deno.FsFile, size: number): void {
  try {
    file.truncateSync(size);
  } catch { /* half a line remains, and the next record starts on a new line */ }
}

function queueFull(): TelemetryError {
  return new TelemetryError("queue_full", "too many records wait for the log: the oldest events are dropped", {
    hint: "await the promises of append, or find out what blocks the disk or the lock",
  });
}

function closed(): TelemetryError {
  return new TelemetryError("closed", "the log is closed");
}

/** Whether the file ends without a newline, as a killed writer leaves it. The next record must not be glued to that. */
function endsInHalfLine(file: Deno.FsFile, size: number): boolean {
  if (size === 0) return false;
  const last = new Uint8Array(1);
  file.seekSync(size - 1, Deno.SeekMode.Start);
  file.readSync(last);
  return last[0] !== 0x0a;
}
