/** The writes that wait for the database of a client. @module */
import { setTimeout as pause } from "node:timers/promises";
import { hasCode } from "../errors.ts";
import { sleepSync } from "../fs/wait.ts";
import { LOCKED_FOR_MS, LOCKED_PAUSE_MS, waitWhileLocked } from "../sqlite/connection.ts";

/** How many writes are made before the agent's own code gets its turn. */
const WRITES_PER_TURN = 50;
/** How long a synchronous end writes, or waits for a lock, in milliseconds. */
const END_MS = 1000;

/** How long what ends with the process waits for a lock: once a process, not once a client. */
export class ExitWait {
  #gaveUpAt = -Infinity;

  /** Those that follow within ten times the wait do not wait. */
  get ms(): number {
    return performance.now() < this.#gaveUpAt + 10 * END_MS ? 0 : END_MS;
  }

  noteGivenUp(): void {
    this.#gaveUpAt = performance.now();
  }
}

const exitWait = new ExitWait();

/**
 * What a {@linkcode WriteQueue} does. `waiting`: for a lock, with more attempts to come. `blocked`: the last attempt failed,
 * and the next `add` or `flush` makes another one. `stopped`: for ever.
 */
type QueueState = "idle" | "writing" | "waiting" | "blocked" | "stopped";

/** What a {@linkcode WriteQueue} calls, and its limits. */
export interface WriteQueueOptions {
  /** Called with each error that ends an attempt. */
  onFailure: (error: unknown) => void;
  /** Called for each write that is dropped. */
  onDrop: () => void;
  /** How long a locked database is waited for. @default 15300, as long as a writer that blocks would wait */
  lockedForMs?: number;
  /** How many writes are kept while the database cannot be written. @default 1000 */
  maxWaiting?: number;
}

/**
 * Makes writes in the order in which they were added, and never blocks the event loop for a lock: an attempt fails at
 * once when the database is locked, and is repeated every 25 ms. A write that the table rejects is reported and removed.
 * Any other error, also a lock that is held too long, keeps the writes until the next `add` or `flush`. The queue is
 * bounded only while the database cannot be written: a burst is never dropped.
 */
export class WriteQueue {
  /** Oldest first. */
  readonly #writes = new Map<string, () => void>();
  readonly #options: Required<WriteQueueOptions>;
  #state: QueueState = "idle";
  #running: Promise<void> = Promise.resolve();

  constructor(options: WriteQueueOptions) {
    this.#options = { lockedForMs: LOCKED_FOR_MS, maxWaiting: 1000, ...options };
  }

  /** How many writes wait. */
  get size(): number {
    return this.#writes.size;
  }

  /** Whether a write with this key waits. */
  has(key: string): boolean {
    return this.#writes.has(key);
  }

  /** Makes a write now or as soon as possible. It replaces a waiting write of the same key, and takes its place. */
  add(key: string, write: () => void): void {
    const isBounded = this.#state !== "idle" && this.#state !== "writing";
    if (isBounded && this.#writes.size >= this.#options.maxWaiting && !this.#writes.has(key)) {
      this.#writes.delete(this.#writes.keys().next().value!);
      this.#options.onDrop();
    }
    this.#writes.set(key, write);
    if (this.#isStopped()) this.stop();
    else void this.flush();
  }

  /** Writes what waits. Resolves when that is done or has failed. */
  async flush(): Promise<void> {
    const mayStart = this.#state === "idle" || this.#state === "blocked";
    if (mayStart && this.#writes.size > 0) this.#running = this.#run();
    await this.#running;
  }

  /** Writes synchronously what waits, for the end of the process. Waits up to a second for a locked database. */
  flushSync(): void {
    this.#writeAll({ lockedForMs: exitWait.ms, timeoutMs: Infinity });
    if (this.size > 0) exitWait.noteGivenUp();
  }

  /** Ends all waiting. Writes synchronously what can be written within a second; a later write is tried once. */
  stop(): void {
    this.#state = "stopped";
    this.#writeAll({ lockedForMs: 0, timeoutMs: END_MS });
  }

  /** Reads, and waits while the database is locked, unless stopped. Resolves to undefined when that fails. */
  async read<T>(read: () => T | Promise<T>): Promise<T | undefined> {
    try {
      const { lockedForMs } = this.#options;
      return await waitWhileLocked(read, { lockedForMs, isStopped: () => this.#isStopped() });
    } catch (error) {
      this.#options.onFailure(error);
      return undefined;
    }
  }

  /** A method, since TypeScript takes a state that was assigned for the state after a wait, too. */
  #isStopped(): boolean {
    return this.#state === "stopped";
  }

  /** Writes until the queue is empty, blocked or stopped. The first attempt is made before this returns. */
  async #run(): Promise<void> {
    let deadline = performance.now() + this.#options.lockedForMs;
    this.#state = "writing";
    for (let written = 1; this.#writes.size > 0;) {
      const error = this.#writeOldest();
      if (error === undefined) {
        this.#state = "writing";
        deadline = performance.now() + this.#options.lockedForMs;
        // Always awaits: writes that are added in the same turn must join this run, to be counted.
        await (written++ % WRITES_PER_TURN === 0 ? pause(0) : undefined);
      } else if (hasCode(error, "locked") && performance.now() < deadline) {
        this.#state = "waiting";
        await pause(LOCKED_PAUSE_MS);
      } else {
        this.#state = "blocked";
        return this.#options.onFailure(error);
      }
      if (this.#isStopped()) return;
    }
    this.#state = "idle";
  }

  #writeAll({ lockedForMs, timeoutMs }: { lockedForMs: number; timeoutMs: number }): void {
    const start = performance.now();
    while (this.#writes.size > 0 && performance.now() < start + timeoutMs) {
      const error = this.#writeOldest();
      if (error === undefined) continue;
      if (!hasCode(error, "locked") || performance.now() > start + lockedForMs) return this.#options.onFailure(error);
      sleepSync(LOCKED_PAUSE_MS);
    }
  }

  /** Returns the error that keeps the write in the queue, or undefined. */
  #writeOldest(): unknown {
    const [[key, write]] = this.#writes as Iterable<[string, () => void]> as [[string, () => void]];
    try {
      write();
    } catch (error) {
      if (!hasCode(error, "invalid_record")) return error;
      // The table would reject it every time.
      this.#options.onFailure(error);
    }
    this.#writes.delete(key);
    return undefined;
  }
}

/** Takes steps, with a turn of the event loop between two of them. */
export async function inTurns<T>(steps: Generator<void, T>): Promise<T> {
  for (;;) {
    const step = steps.next();
    if (step.done) return step.value;
    await pause(0);
  }
}
