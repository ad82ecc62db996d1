/**
 * An agent of the demo: records runs one after the other, and says each id as soon as its start is on the disk.
 * usage: deno run --allow-read=BASE --allow-write=BASE tests/demo_agent.ts BASE NAME RUNS
 */
import { TelemetryClient } from "../mod.ts";

const [base = "", name = "", runs = "0"] = Deno.args;
await using telemetry = new TelemetryClient({ base });
for (let n = 0; n < Number(runs); n++) {
  const id = await telemetry.startRun(name, "demo", { product: "toolkit" });
  console.log(id);
  await telemetry.logEvent(id, "checkpoint", { n });
  await telemetry.endRun(id, { status: "success", items_succeeded: n, output_summary: `run ${n} — naïve but real` });
}
