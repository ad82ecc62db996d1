#!/usr/bin/env -S deno run --allow-env=TELEMETRY_DB_PATH,TELEMETRY_BASE_DIR,AGENT_METRICS_DIR,TELEMETRY_NDJSON_DIR,HOME,USERPROFILE --allow-read=/agent-metrics,/opt/telemetry,/data/telemetry --allow-write=/agent-metrics,/opt/telemetry,/data/telemetry
/**
 * Makes the folders of a telemetry store, and with `--with-database` its database too.
 * @module
 */
import { type DatabaseSetup, describeSetup, setUpDatabase } from "../lib/store/database.ts";
import { sizeOf } from "../lib/fs/locate.ts";
import { createStorage, proveWritable } from "../lib/store/folders.ts";
import { runCommand } from "../lib/cli/command.ts";

const COMMAND = {
  name: "setup_storage",
  summary: "makes the folders of a telemetry store; safe to run any number of times",
  flags: {
    "with-database": { about: "also make or upgrade the database, as setup_database does" },
  },
  example: "--with-database",
};

if (import.meta.main) {
  await runCommand(COMMAND, async (terminal) => {
    const { layout, created, refused } = createStorage(terminal.locate({ mustExist: false }));
    proveWritable(layout);
    for (const reason of refused) {
      terminal.warn(`${reason}; the store is in ${layout.base} instead, where all scripts find it`);
    }
    terminal.say(`storage is ready in ${layout.base}${created.length ? "" : " (nothing had to be made)"}`);
    for (const path of created) terminal.say(`  made ${path}`);

    let database: DatabaseSetup | undefined;
    if (terminal.flags["with-database"]) {
      database = await setUpDatabase(layout);
      for (const line of describeSetup(database, layout)) terminal.say(line);
      terminal.say("next: record runs with mod.ts (the README has an example); they are kept from now on");
    } else if (sizeOf(layout.database) === undefined) {
      terminal.say("next: setup_database");
    }
    if (Deno.statSync(layout.base).uid === 0) {
      terminal.say(`only root can write there: for agents of another user, chown -R USER ${layout.base}`);
    }
    return { base: layout.base, created, ...(database ? { database } : {}) };
  });
}
