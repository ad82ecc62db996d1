#!/usr/bin/env -S deno run --allow-env=TELEMETRY_DB_PATH,TELEMETRY_BASE_DIR,AGENT_METRICS_DIR,TELEMETRY_NDJSON_DIR,HOME,USERPROFILE --allow-read=/agent-metrics,/opt/telemetry,/data/telemetry --allow-write=/agent-metrics,/opt/telemetry,/data/telemetry
/**
 * Makes the database of a telemetry store, or upgrades an older one to schema v3.
 * @module
 */
import { describeSetup, setUpDatabase } from "../lib/database.ts";
import { runCommand } from "../lib/terminal.ts";

const COMMAND = {
  name: "setup_database",
  summary: "makes the database, or upgrades an older one; safe to run any number of times",
  example: "",
};

if (import.meta.main) {
  await runCommand(COMMAND, async (terminal) => {
    const layout = terminal.locate();
    const setup = await setUpDatabase(layout);
    for (const line of describeSetup(setup, layout)) terminal.say(line);
    return { base: layout.base, database: layout.database, ...setup };
  });
}
