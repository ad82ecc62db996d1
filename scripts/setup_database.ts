#!/usr/bin/env -S deno run -q -P
/**
 * Creates the database of a store, or upgrades an older one to schema v3.
 * @module
 */
import { setUpDatabase } from "../lib/store/database.ts";
import { TelemetryError } from "../lib/errors.ts";
import { postgresLoad, postgresSchema } from "../lib/export/postgres.ts";
import { schemaSql } from "../lib/schema.ts";
import { type Command, type Result, runCommand, type Terminal } from "../lib/cli/command.ts";
import { printSetup } from "../lib/cli/setup_output.ts";

/** The flags and permissions of this script. */
export const COMMAND: Command = {
  name: "setup_database",
  summary: "creates the database, or upgrades an older one; can be run any number of times",
  flags: {
    "print-schema": {
      value: "NAME",
      needsNoStore: true,
      about: "only print SQL: `sqlite`, `postgres` (tables for the runs of many machines), or `postgres-load` " +
        "(loads an export into them)",
    },
  },
  writes: ["db", "config", "backups"],
};

const SCHEMAS = new Map([["sqlite", schemaSql], ["postgres", postgresSchema], ["postgres-load", postgresLoad]]);

if (import.meta.main) {
  await runCommand(COMMAND, async (terminal) => {
    const name = terminal.flags["print-schema"];
    if (name !== undefined) return printSchema(terminal, String(name));
    const layout = terminal.locate();
    const setup = await setUpDatabase(layout);
    printSetup(terminal, setup, layout);
    return { base: layout.base, database: layout.database, ...setup };
  });
}

function printSchema(terminal: Terminal, name: string): Result {
  const sql = SCHEMAS.get(name)?.();
  if (sql === undefined) {
    const hint = `choose ${[...SCHEMAS.keys()].join(", ")}`;
    throw new TelemetryError("usage", `there is no schema "${name}"`, { hint });
  }
  terminal.show(sql.trimEnd());
  return { sql };
}
