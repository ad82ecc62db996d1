/** The posts of a client. @module */
import { setTimeout as delay } from "node:timers/promises";
import type { RunRecord } from "../records.ts";
import { timestamp } from "../time.ts";
import type { ApiClient } from "./api_client.ts";
import type { ClientStore } from "./client_store.ts";
import type { PostPendingResult } from "./options.ts";
import type { Warnings } from "./warnings.ts";
import { inTurns } from "./write_queue.ts";

/** How long runs are not posted after the API could not be reached or refused the token, in milliseconds. */
const DOWN_MS = 60_000;
/** How long posts keep a process alive in which no run has ended since, in milliseconds. */
const ALIVE_MS = 4000;
/** How many runs wait for the API. More stay pending in the database. */
const MAX_WAITING = 1000;

/** Posts runs one after the other, and records the results. Nothing it does rejects. */
export class PostQueue {
  readonly #api: ApiClient;
  readonly #store: ClientStore;
  readonly #warnings: Warnings;
  readonly #stop = new AbortController();
  /** The ids of the ended runs that wait for their turn. */
  readonly #waiting = new Set<string>();
  #last: Promise<unknown> = Promise.resolve();
  /** While no run would be accepted, by the monotonic clock: runs that end stay pending. */
  #downUntil = 0;
  /** Until when posts may keep the process alive. */
  #aliveUntil = 0;

  constructor(api: ApiClient, store: ClientStore, warnings: Warnings) {
    this.#api = api;
    this.#store = store;
    this.#warnings = warnings;
  }

  /** Posts a run when those before it are done. */
  add(run: RunRecord): void {
    this.#aliveUntil = performance.now() + ALIVE_MS;
    if (this.#waiting.size >= MAX_WAITING) {
      const message = `more than ${MAX_WAITING} runs wait for the API: the others stay pending`;
      return this.#warnings.warn("api:backlog", message);
    }
    this.#waiting.add(run.run_id);
    this.#inTurn(async () => {
      if (performance.now() >= this.#downUntil) await this.#post(run, await this.#aliveForMs());
      this.#waiting.delete(run.run_id);
    });
  }

  /** Posts pending runs of the database until no other one would be accepted. */
  addPending(limit: number, since: string | undefined): Promise<PostPendingResult> {
    return this.#inTurn(async () => {
      const result: PostPendingResult = { posted: 0, failed: 0, refused: 0 };
      const pending = await this.#store.read((writer) => inTurns(writer.pendingInSteps(limit, since))) ?? [];
      for (const run_id of pending) {
        if (this.#stop.signal.aborted) break;
        if (this.#waiting.has(run_id) || this.#store.queue.has(`posted ${run_id}`)) continue;
        // Another process may have posted it since the query, which takes its time.
        const run = await this.#store.read((writer) => writer.getRun(run_id));
        if (run === undefined || run.api_posted === 1) continue;
        const outcome = await this.#post(run);
        result[outcome === "posted" ? "posted" : "failed"]++;
        if (outcome === "refused") result.refused++;
        if (performance.now() < this.#downUntil) break;
      }
      return result;
    });
  }

  /** Resolves when all posts are done. */
  async idle(): Promise<void> {
    for (let last; last !== this.#last;) await (last = this.#last);
  }

  /** Ends the current post and its retries. What waits stays pending. */
  stop(): void {
    this.#stop.abort();
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#last.then(work);
    this.#last = turn;
    return turn;
  }

  /** How long the next post may keep the process alive. A process that is still there later has other work. */
  async #aliveForMs(): Promise<number> {
    const left = this.#aliveUntil - performance.now();
    if (left > 0) return left;
    await delay(1, undefined, { ref: false });
    this.#aliveUntil = performance.now() + ALIVE_MS;
    return ALIVE_MS;
  }

  /** Posts a run and records the result. */
  async #post(run: RunRecord, aliveForMs?: number): Promise<"posted" | "refused" | "failed"> {
    const { run_id } = run;
    const result = await this.#api.post(run, this.#stop.signal, aliveForMs);
    if (result.posted) {
      this.#downUntil = 0;
      // The log first: a database that is rebuilt from it must not post the run again. The log has no times of rows.
      const marker = { api_posted: 1, api_posted_at: timestamp(), created_at: null, updated_at: null };
      await this.#store.append({ ...run, ...marker, record_type: "run" });
      this.#store.save(`posted ${run_id}`, (writer) => void writer.markApiPosted(run_id, marker.api_posted_at));
      return "posted";
    }
    if (this.#stop.signal.aborted) return "failed";
    const isRefused = result.final && result.tries > 0 && !this.#api.isTokenRefused;
    this.#downUntil = isRefused ? 0 : performance.now() + DOWN_MS;
    this.#warnings.warn("api", `a run was not posted and stays pending: ${result.reason}`);
    // Each failed attempt counts: none replaces another.
    const key = `not posted ${run_id} ${crypto.randomUUID()}`;
    if (result.tries > 0) this.#store.save(key, (writer) => void writer.incrementApiRetryCount(run_id));
    return isRefused ? "refused" : "failed";
  }
}
