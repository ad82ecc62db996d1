/** The posts of a client. @module */
import type { RunRecord } from "../records.ts";
import { timestamp } from "../time.ts";
import type { ApiClient } from "./api_client.ts";
import type { ClientStore } from "./client_store.ts";
import type { Warnings } from "./warnings.ts";
import { inTurns } from "./write_queue.ts";

/** How long runs are not posted after the API could not be reached, in milliseconds. */
const DOWN_MS = 60_000;
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
  /** While the API is down, by the monotonic clock: runs that end stay pending. */
  #downUntil = 0;

  constructor(api: ApiClient, store: ClientStore, warnings: Warnings) {
    this.#api = api;
    this.#store = store;
    this.#warnings = warnings;
  }

  /** Posts a run when those before it are done. */
  add(run: RunRecord): void {
    if (this.#waiting.size >= MAX_WAITING) {
      const message = `more than ${MAX_WAITING} runs wait for the API: the others stay pending`;
      return this.#warnings.warn("api:backlog", message);
    }
    this.#waiting.add(run.run_id);
    this.#inTurn(async () => {
      if (performance.now() >= this.#downUntil) await this.#post(run);
      else this.#waiting.delete(run.run_id);
    });
  }

  /** Posts pending runs of the database until the API is down or refuses the token. Returns how many the API accepted, and how many not. */
  addPending(limit: number, since: string | undefined): Promise<{ posted: number; failed: number }> {
    return this.#inTurn(async () => {
      const result = { posted: 0, failed: 0 };
      const pending = await this.#store.read((writer) => inTurns(writer.pendingInSteps(limit, since))) ?? [];
      for (const { run_id } of pending) {
        if (this.#stop.signal.aborted) break;
        if (this.#waiting.has(run_id) || this.#store.isSaving(`posted ${run_id}`)) continue;
        // Another process may have posted it since the query, which takes its time.
        const run = await this.#store.read((writer) => writer.getRun(run_id));
        if (run === undefined || run.api_posted === 1) continue;
        const isPosted = await this.#post(run);
        result[isPosted ? "posted" : "failed"] += 1;
        // No other run would be accepted.
        if (!isPosted && (this.#api.isTokenRefused || performance.now() < this.#downUntil)) break;
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

  /** Posts a run and records the result. Returns whether the API accepted the run. */
  async #post(run: RunRecord): Promise<boolean> {
    const { run_id } = run;
    const result = await this.#api.post(run, this.#stop.signal);
    this.#downUntil = result.posted || result.final ? 0 : performance.now() + DOWN_MS;
    if (result.posted) {
      // The log first: a database that is rebuilt from it must not post the run again. The log has no times of rows.
      const marker = { api_posted: 1, api_posted_at: timestamp(), created_at: null, updated_at: null };
      await this.#store.append({ ...run, ...marker, record_type: "run" });
      this.#store.save(`posted ${run_id}`, (writer) => void writer.markApiPosted(run_id, marker.api_posted_at));
    } else if (!this.#stop.signal.aborted) {
      this.#warnings.warn("api", `a run was not posted and stays pending: ${result.reason}`);
      // Each failed attempt counts: none replaces another.
      const key = `not posted ${run_id} ${crypto.randomUUID()}`;
      if (result.tries > 0) this.#store.save(key, (writer) => void writer.incrementApiRetryCount(run_id));
    }
    this.#waiting.delete(run_id);
    return result.posted;
  }
}
