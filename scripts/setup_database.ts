#!/usr/bin/env -S deno run --allow-env=TELEMETRY_DB_PATH,TELEMETRY_BASE_DIR,AGENT_METRICS_DIR,TELEMETRY_NDJSON_DIR,HOME,USERPROFILE --allow-read=/agent-metrics,/opt/telemetry,/data/telemetry --allow-write=/agent-metrics,/opt/telemetry,/data/telemetry
/**
 * Makes the database of a telemetry store, or upgrades an older one to schema v3.
 * @module
 */
import { describeSetup, setUpDatabase } from "../lib/store/database.ts";
import { TelemetryError } from "../lib/errors.ts";
import { postgresLoad, postgresSchema } from "../lib/export/postgres.ts";
import { schemaSql } from "../lib/schema.ts";
import { type Result, runCommand, type Terminal } from "../lib/cli/command.ts";

const COMMAND = {
  name: "setup_database",
  summary: "makes the database, or upgrades an older one; safe to run any number of times",
  flags: {
    "print-schema": {
      value: "NAME",
      about: "change nothing, but print SQL: `sqlite`, `postgres` (the tables of a server for many machines), " +
        "`postgres-load` (how psql loads an export into them)",
    },
  },
  example: "",
};

const SCHEMAS: Record<string, () => string> = {
  sqlite: schemaSql,
  postgres: postgresSchema,
  "postgres-load": postgresLoad,
};

if (import.meta.main) {
  await runCommand(COMMAND, async (terminal) => {
    const name = terminal.flags["print-schema"];
    if (name !== undefined) return printSchema(terminal, String(name));
    const layout = terminal.locate({ mustExist: false });
    const setup = await setUpDatabase(layout);
    for (const line of describeSetup(setup, layout)) terminal.say(line);
    return { base: layout.base, database: layout.database, ...setup };
  });
}

function printSchema(terminal: Terminal, name: string): Result {
  const sql = Object.hasOwn(SCHEMAS, name) ? SCHEMAS[name]!() : undefined;
  if (sql === undefined) {
    throw new TelemetryError("usage", `there is no schema "${name}"`, {
      hint: `choose ${Object.keys(SCHEMAS).join(", ")}`,
    });
  }
  terminal.say(sql.trimEnd());
  return { sql };
}
