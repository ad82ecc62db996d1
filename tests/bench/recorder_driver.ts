/** One measurement in a process of its own. usage: recorder_driver.ts append|run|run_awaited|memory BASE COUNT CONCURRENT */
import { EventLog, layoutOf, type LogRecord, runId, TelemetryClient, timestamp } from "../../mod.ts";

const [mode, base, count, concurrent] = [Deno.args[0], Deno.args[1]!, Number(Deno.args[2]), Number(Deno.args[3])];

const run_id = runId("deno");

/** The record that baselines.py appends. */
function event(n: number): LogRecord {
  return {
    run_id,
    event_type: "checkpoint",
    timestamp: timestamp(),
    payload_json: JSON.stringify({ writer: "deno", n }),
    id: null,
    record_type: "event",
  };
}

async function append(count: number, concurrent: number): Promise<void> {
  const log = new EventLog(layoutOf(base));
  for (let done = 0; done < count; done += concurrent) {
    const written: Promise<void>[] = [];
    for (let i = 0; i < concurrent; i++) written.push(log.append(event(done + i)));
    await Promise.all(written);
  }
}

async function runs(count: number, awaited: boolean): Promise<void> {
  await using telemetry = new TelemetryClient({ base, onWarning: () => {} });
  for (let i = 0; i < count; i++) {
    const id = await telemetry.startRun("deno", "bench");
    for (let n = 0; n < 3; n++) {
      const logged = telemetry.logEvent(id, "checkpoint", { n });
      if (awaited) await logged;
    }
    await telemetry.endRun(id, { status: "success" });
  }
}

/** What is in use after a garbage collection, and what the system sees, in MB. */
async function megabytes(): Promise<string> {
  const { gc } = globalThis as unknown as { gc(): void };
  gc();
  // What the first collection let go of may hold on to more until the event loop has come round.
  await new Promise((resolve) => setTimeout(resolve, 50));
  gc();
  const { heapUsed, external, rss } = Deno.memoryUsage();
  return `${((heapUsed + external) / 2 ** 20).toFixed(1)} ${Math.round(rss / 2 ** 20)}`;
}

if (mode === "memory") {
  await append(100_000, concurrent);
  const early = await megabytes();
  await append(count - 100_000, concurrent);
  console.log(early, await megabytes());
} else {
  const start = performance.now();
  await (mode === "append" ? append(count, concurrent) : runs(count, mode === "run_awaited"));
  console.log(count / (performance.now() - start) * 1000);
}
