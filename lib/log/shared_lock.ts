/** What the logs of one folder in this process know of the lock that they share. @module */
import { TelemetryError } from "../errors.ts";

/** How long a batch waits for a lock that the one before it did not get, where the log has grown since, in milliseconds. */
const HELD_LOCK_WAIT_MS = 250;

/** How often the end of a process waits again, because the log has grown. */
const MAX_EXIT_WAITS = 10;

/** A log whose lock this process holds. */
export interface LockedFile {
  file: Deno.FsFile;
  path: string;
  ino: number | null;
  size: number;
}

const byFolder = new Map<string, SharedLock>();

/** The lock of a log, as the logs of this process see it. */
export class SharedLock {
  /** The file of an append that has it. It shuts out all other files, also those of this process. */
  held: LockedFile | undefined;
  /** The file of the append whose turn it is to wait for it: a request that is queued can get it at any time. */
  asking: { file: Deno.FsFile; path: string } | undefined;
  /** The size of the log when the last batch gave up. While it has not grown, the next ones, of any client, do not wait. */
  heldSize: number | undefined;
  /** When one of them last got it, by the monotonic clock. */
  #lockedAt = 0;
  /** Resolves when the last one in the queue has it, or has given up. */
  #lastTurn: Promise<void> = Promise.resolve();

  static of(folder: string): SharedLock {
    return byFolder.getOrInsertComputed(folder, () => new SharedLock());
  }

  /** Waits until those that asked before have the lock or have given up. Disposing the result lets the next one go on. */
  async turn(): Promise<Disposable> {
    const [before, { promise, resolve }] = [this.#lastTurn, Promise.withResolvers<void>()];
    this.#lastTurn = promise;
    await before;
    const end = () => {
      this.asking = undefined;
      resolve();
    };
    return { [Symbol.dispose]: end };
  }

  /**
   * Whether the request of `asking` has got the lock, or gets it now. Windows does not give a file its own lock again: there
   * it is released, for another file.
   */
  isGranted(): boolean {
    if (Deno.build.os !== "windows") return this.asking?.file.tryLockSync(true) ?? false;
    try {
      this.asking?.file.unlockSync();
    } catch { /* it has no lock */ }
    return false;
  }

  /** How long a batch may wait, where `timeoutMs` is allowed. */
  waitMs(timeoutMs: number): number {
    return this.heldSize !== undefined ? Math.min(HELD_LOCK_WAIT_MS, timeoutMs) : timeoutMs;
  }

  noteLocked(): void {
    this.heldSize = undefined;
    this.#lockedAt = performance.now();
  }

  /** Whether to give up. While other logs of this process get the lock, nobody holds it too long. */
  isHeldTooLong(deadline: number, timeoutMs: number): boolean {
    return performance.now() > Math.max(deadline, this.#lockedAt + timeoutMs);
  }
}

/** How long the end of a process waits for the lock. A log that grows shows that its writers release it: the disk is slow. */
export class ExitDeadline {
  readonly #last: number;
  #deadline = 0;
  #size: number | undefined;

  constructor(private readonly waitMs: number) {
    this.#last = performance.now() + MAX_EXIT_WAITS * waitMs;
  }

  /** @param size that of the log now */
  isOver(size: number): boolean {
    const now = performance.now();
    if (size !== this.#size) this.#deadline = Math.min(now + this.waitMs, this.#last);
    this.#size = size;
    return now > this.#deadline;
  }
}

export function lockedTooLong(raw: string): TelemetryError {
  const message = `another process holds the lock of the log in ${raw}; the record was not written`;
  return new TelemetryError("locked", message, {
    hint: "find the process that holds the lock (lsof or fuser show it) and stop it",
  });
}
