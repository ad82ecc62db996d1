/** How long the event loop of an agent is blocked while everything happens at once. */
import { DatabaseSync } from "node:sqlite";
import { ROOT, run } from "../fixtures/mod.ts";
import type { Part } from "./measure.ts";
import { insertRuns, makeStore } from "./stores.ts";

const RUNS = 1_000_000;
const SECONDS = 60;
const LIMIT_MS = 50;
/** Another program locks the database for so long, once in each period. */
const [LOCKED_MS, PERIOD_MS] = [2000, 10_000];

export const eventLoop: Part = async function* (folder) {
  const base = `${folder}/base`;
  const database = await makeStore(base);
  insertRuns(database, RUNS);
  // Otherwise the first checkpoint of the agent would wait for all of it.
  using file = Deno.openSync(database, { write: true });
  file.syncSync();
  using atEnd = new DisposableStack();
  // An API that takes each request and never answers. Closing it in order would wait for its answers.
  const abort = new AbortController();
  atEnd.defer(() => abort.abort());
  const api = Deno.serve(
    { port: 0, hostname: "127.0.0.1", onListen() {}, signal: abort.signal },
    () => new Promise<Response>(() => {}),
  );
  using other = new DatabaseSync(database);
  const lock = setInterval(() => {
    other.exec("PRAGMA busy_timeout=1000; BEGIN IMMEDIATE");
    setTimeout(() => other.exec("COMMIT"), LOCKED_MS);
  }, PERIOD_MS);
  atEnd.defer(() => clearInterval(lock));
  const driver = `${ROOT}tests/bench/event_loop_driver.ts`;
  const env = { METRICS_API_URL: `http://127.0.0.1:${api.addr.port}/runs`, METRICS_API_TOKEN: "t" };
  const { code, stdout, stderr } = await run(Deno.execPath(), ["run", "-A", driver, base, String(SECONDS)], { env });
  if (code !== 0) throw new Error(stderr);
  const { ours, idle, runs, events } = JSON.parse(stdout);
  yield {
    what:
      `longest block of the event loop in ${SECONDS} s: ${runs} runs, ${events} events, a locked database, an API that hangs, ` +
      `1,000,000 runs (an idle thread beside it: ${idle.toFixed(0)} ms)`,
    ours: `${ours.toFixed(0)} ms`,
    baseline: `${LIMIT_MS} ms (limit)`,
    ratio: ours / LIMIT_MS,
    wanted: { atMost: 1 },
  };
};
