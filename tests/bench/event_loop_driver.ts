/**
 * An agent that does everything at once for a number of seconds. Prints how long the event loop was blocked at most, and how
 * long that of an idle thread, in milliseconds. usage: event_loop_driver.ts BASE SECONDS
 */
import { TelemetryClient } from "../../mod.ts";
import { longestBlock } from "../fixtures/event_loop.ts";

const [base, seconds] = [Deno.args[0]!, Number(Deno.args[1])];

const telemetry = new TelemetryClient({ base, onWarning: () => {} });
// Opening the database and the first record are the start of an agent, not a part of its work.
await telemetry.endRun(await telemetry.startRun("bench", "start"));

const end = performance.now() + seconds * 1000;
const later = (milliseconds: number) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Repeats some work until the time is over. */
async function repeat(pauseMs: number, work: () => unknown): Promise<void> {
  while (performance.now() < end) {
    await work();
    await later(pauseMs);
  }
}

const counts = { runs: 0, events: 0, queries: 0 };
const flooded = await telemetry.startRun("bench", "flood");
const everything = () =>
  Promise.all([
    // A flood of events that nobody awaits.
    repeat(100, () => {
      for (let n = 0; n < 500; n++, counts.events++) {
        void telemetry.logEvent(flooded, "flood", { n, text: "x".repeat(100) });
      }
    }),
    // Whole runs, one after the other.
    repeat(5, async () => {
      await telemetry.trackRun("bench", "work", (run) => run.logEvent("step", { n: counts.runs++ }));
    }),
    // What looks at a million runs.
    repeat(500, async () => {
      await telemetry.getStats();
      counts.queries++;
    }),
    repeat(2000, () => telemetry.postPending({ limit: 1000 })),
    repeat(5000, () => telemetry.endStale({ olderThan: "7d" })),
  ]);
console.log(JSON.stringify({ ...await longestBlock(everything), ...counts }));
Deno.exit(0);
