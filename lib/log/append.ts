/**
 * The log of `raw/`: records are appended durably, one JSON object a line (contract, "NDJSON records").
 * @module
 */
import { chownToOwnerOf, ensureFolder, statIfSameFile, syncFolder, writeAll } from "../fs/atomic_file.ts";
import { fileError, TelemetryError } from "../errors.ts";
import { fileName, type Layout, pathIn } from "../layout.ts";
import { type LogRecord, MAX_LINE_BYTES, toJson, validateRecord } from "../records.ts";

/** Bounds of an {@linkcode EventLog}. */
export interface EventLogOptions {
  /** How long a batch waits for the file's lock, in milliseconds. @default 10_000 */
  lockTimeoutMs?: number;
  /** How much may wait to be written, in characters, before `append` refuses. @default 67_108_864 (64 Mi) */
  maxQueued?: number;
  /** Told when the log's folder was missing and has been made again. */
  onFolderMade?: (folder: string) => void;
}

/** A batch takes further records until it holds this many characters. It bounds how long the lock is held. */
const BATCH_CHARACTERS = 4 * 1024 * 1024;

/** An `fsync` that takes longer than this is slow, in milliseconds. */
const SLOW_SYNC_MS = 2;
/** How many fast ones in a row it takes to trust a disk. */
const TRUSTED_AFTER = 4;

/** Records that share one open, one lock, one write and one fsync. */
interface Batch {
  lines: string[];
  characters: number;
  written: PromiseWithResolvers<void>;
}

/**
 * Appends records to the day's file. Every append resolves when its line is on the disk, and not before.
 * Appends that arrive while others are being written share the next write (group commit).
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
  readonly #base: string;
  readonly #raw: string;
  readonly #lockTimeoutMs: number;
  readonly #maxQueued: number;
  readonly #onFolderMade: (folder: string) => void;
  readonly #encoder = new TextEncoder();
  #waiting: Batch[] = [];
  #queued = 0;
  #drained: Promise<void> | undefined;
  #abandoned = false;
  #fastSyncs = 0;
  /** The file that was written last, whose name is durable, and its length after that. */
  #end: { ino: number | null; size: number } | undefined;
  /** The UTC day that was last written in, in days since 1970, and its file. */
  #day = NaN;
  #path = "";

  /**
   * A log that is opened afresh for each batch; nothing is touched yet.
   *
   * @param layout where the log is
   * @param options bounds
   */
  constructor(layout: Layout, options: EventLogOptions = {}) {
    this.#base = layout.base;
    this.#raw = layout.raw;
    this.#lockTimeoutMs = options.lockTimeoutMs ?? 10_000;
    this.#maxQueued = options.maxQueued ?? 64 * 1024 * 1024;
    this.#onFolderMade = options.onFolderMade ?? (() => {});
  }

  /**
   * Appends one record. What the record says is taken now: it may be changed afterwards.
   *
   * @returns resolves when the line is on the disk; rejects with a {@linkcode TelemetryError} when it is not:
   * `invalid_record` (JSON cannot carry it, or readers would refuse it), `queue_full`, `locked`, `disk_full`,
   * `permission`, `closed`, `io`. Then nothing of it is in the log.
   */
  append(record: LogRecord): Promise<void> {
    try {
      return this.#enqueue(lineOf(record));
    } catch (error) {
      return Promise.reject(error);
    }
  }

  /**
   * Appends several records in one batch: all of them are on the disk, or none.
   *
   * @returns as {@linkcode append} does
   */
  appendAll(records: Iterable<LogRecord>): Promise<void> {
    try {
      const text = Array.from(records, lineOf).join("");
      return text === "" ? Promise.resolve() : this.#enqueue(text);
    } catch (error) {
      return Promise.reject(error);
    }
  }

  /** Resolves when everything that has been appended is written, or has failed. */
  async idle(): Promise<void> {
    await this.#drained;
  }

  /** Gives up what waits for the lock or its turn: that rejects with `closed`, and so does every later append. */
  abandon(): void {
    this.#abandoned = true;
  }

  #enqueue(text: string): Promise<void> {
    if (this.#abandoned) throw closed();
    if (this.#queued > 0 && this.#queued + text.length > this.#maxQueued) {
      throw new TelemetryError("queue_full", `${this.#queued} characters wait already to be written to the log`, {
        hint: "await the promises of append, or see what keeps the disk or the lock",
      });
    }
    let batch = this.#waiting.at(-1);
    if (batch === undefined || batch.characters >= BATCH_CHARACTERS) {
      batch = { lines: [], characters: 0, written: Promise.withResolvers() };
      this.#waiting.push(batch);
    }
    batch.lines.push(text);
    batch.characters += text.length;
    this.#queued += text.length;
    // Not at once: what is appended in the same turn of the event loop shares the batch.
    this.#drained ??= Promise.resolve().then(() => this.#drain());
    return batch.written.promise;
  }

  async #drain(): Promise<void> {
    for (let batch = this.#waiting.shift(); batch !== undefined; batch = this.#waiting.shift()) {
      try {
        if (this.#abandoned) throw closed();
        await this.#write(batch.lines.join(""));
        batch.written.resolve();
      } catch (error) {
        batch.written.reject(fileError(error, `cannot write to the log in ${this.#raw}`));
      }
      this.#queued -= batch.characters;
    }
    this.#drained = undefined;
  }

  async #write(lines: string): Promise<void> {
    const { file, path, size, ino } = await this.#openLocked();
    using _closed = file;
    if (size === 0) chownToOwnerOf(this.#base, path);
    const isOurEnd = this.#end?.ino === ino && this.#end.size === size;
    const bytes = this.#encoder.encode(!isOurEnd && endsInHalfLine(file, size) ? `\n${lines}` : lines);
    if (Deno.build.os === "windows") file.seekSync(0, Deno.SeekMode.End);
    try {
      // On a full disk the first sign is a short write.
      writeAll(file, bytes);
      await this.#sync(file);
      if (this.#end?.ino !== ino || size === 0) syncFolder(this.#raw);
      this.#end = { ino, size: size + bytes.length };
    } catch (error) {
      // Still under the lock: what failed is reported as failed, so it must not be read later.
      try {
        file.truncateSync(size);
      } catch { /* a half line stays, after which the next record starts on a new line */ }
      throw error;
    }
  }

  /**
   * Makes the file's content durable. A disk that has been fast for some time is waited for on this thread, which
   * takes less than the way to another one and back; any other disk must not stop the agent.
   */
  async #sync(file: Deno.FsFile): Promise<void> {
    const start = performance.now();
    if (this.#fastSyncs < TRUSTED_AFTER) await file.sync();
    else file.syncSync();
    this.#fastSyncs = performance.now() - start > SLOW_SYNC_MS ? 0 : this.#fastSyncs + 1;
  }

  #pathNow(): string {
    const now = Date.now();
    const day = Math.floor(now / 86_400_000);
    if (day !== this.#day) {
      this.#path = pathIn(this.#raw, fileName("log", new Date(now)));
      this.#day = day;
    }
    return this.#path;
  }

  /** The file of the UTC day of writing, locked, and still the one at its path. */
  async #openLocked(): Promise<{ file: Deno.FsFile; path: string; size: number; ino: number | null }> {
    const deadline = performance.now() + this.#lockTimeoutMs;
    for (;;) {
      const path = this.#pathNow();
      const file = this.#open(path);
      try {
        await this.#lock(file, deadline);
        const stat = statIfSameFile(file, path);
        if (stat && path === this.#pathNow()) return { file, path, size: stat.size, ino: stat.ino };
        if (performance.now() > deadline) throw lockedTooLong(this.#raw);
      } catch (error) {
        file.close();
        throw error;
      }
      file.close();
      // Where the inode of an open file never is that of its path, this must not go round without a pause.
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }

  #open(path: string): Deno.FsFile {
    // Windows does not truncate what is open for append alone, and lets nobody else write to what is locked.
    const mode = Deno.build.os === "windows" ? { write: true } : { append: true };
    const options: Deno.OpenOptions = { read: true, create: true, ...mode };
    try {
      return Deno.openSync(path, options);
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
      if (ensureFolder(this.#base, this.#raw)) this.#onFolderMade(this.#raw);
      return Deno.openSync(path, options);
    }
  }

  /**
   * Takes the exclusive lock by asking again and again: a blocking request cannot be taken back, and would keep
   * the process alive for as long as another one holds the lock.
   *
   * But who only asks hardly ever gets a lock that busy writers hand to each other within microseconds. So once the
   * file has grown, which shows that its writers are alive and let go of it, this queues up with them.
   */
  async #lock(file: Deno.FsFile, deadline: number): Promise<void> {
    if (file.tryLockSync(true)) return;
    const { size } = file.statSync();
    let queued: Promise<void> | undefined;
    let locked = false;
    for (let pauseMs = 1; !locked; pauseMs = Math.min(pauseMs * 1.1, 20)) {
      if (this.#abandoned) throw closed();
      if (performance.now() > deadline) throw lockedTooLong(this.#raw);
      const pause = Promise.withResolvers<void>();
      const timer = setTimeout(pause.resolve, pauseMs);
      await Promise.race(queued ? [pause.promise, queued] : [pause.promise]);
      clearTimeout(timer);
      if (queued === undefined && file.statSync().size !== size) {
        queued = file.lock(true).then(() => void (locked = true));
        // Given up, the file is closed: the lock, when it comes, goes at once.
        queued.catch(() => {});
      } else if (queued === undefined) {
        locked = file.tryLockSync(true);
      }
    }
  }
}

function lineOf(record: LogRecord): string {
  const line = toJson(record, "record") + "\n";
  const reason = validateRecord(record);
  if (reason !== undefined) {
    throw new TelemetryError("invalid_record", `readers of the log would not take this for a record: ${reason}`, {
      hint: "give it the fields that the contract requires",
    });
  }
  // A character takes at most three bytes; only long lines are worth counting.
  if (line.length * 3 > MAX_LINE_BYTES && new TextEncoder().encode(line).length > MAX_LINE_BYTES) {
    throw new TelemetryError("invalid_record", `a record of ${line.length} characters is too long for the log`, {
      hint: `keep it below ${MAX_LINE_BYTES} bytes: write large data to a file and record its name`,
    });
  }
  return line;
}

function lockedTooLong(raw: string): TelemetryError {
  return new TelemetryError("locked", `another process has locked the log in ${raw} for too long`, {
    hint: "see which process holds it; the record was not written",
  });
}

function closed(): TelemetryError {
  return new TelemetryError("closed", "the log has been closed");
}

/** Whether a killed writer has left half a line at the end, which must not swallow the next record. */
function endsInHalfLine(file: Deno.FsFile, size: number): boolean {
  if (size === 0) return false;
  const last = new Uint8Array(1);
  file.seekSync(size - 1, Deno.SeekMode.Start);
  file.readSync(last);
  return last[0] !== 0x0a;
}
