#!/usr/bin/env -S deno run -q -P
/**
 * Creates the folders of a store and, with `--with-database`, its database.
 * @module
 */
import { setUpDatabase } from "../lib/store/database.ts";
import { sizeOf } from "../lib/fs/locate.ts";
import { assertWritable, createStorage } from "../lib/store/folders.ts";
import { type Command, runCommand, withCommands } from "../lib/cli/command.ts";
import { printSetup } from "../lib/cli/setup_output.ts";

/** The flags and permissions of this script. */
export const COMMAND: Command = {
  name: "setup_storage",
  summary: "creates the folders of a store; can be run any number of times",
  flags: { "with-database": { about: "also create or upgrade the database, as setup_database does" } },
  writes: ["base", "raw", "db", "config", "backups"],
  createsStore: true,
  example: "--with-database",
};

if (import.meta.main) {
  await runCommand(COMMAND, async (terminal) => {
    const { layout, created, refused } = createStorage(terminal.locate());
    assertWritable(layout);
    terminal.say(`the store is ready in ${layout.base}${created.length ? "" : " (nothing to create)"}`);
    // The normal case of an ordinary user, so not a warning.
    for (const reason of refused) {
      terminal.say(`  here, not in the usual folder: ${reason.replace(/ \(os error.*/, "")}`);
    }
    for (const path of created) terminal.say(`  created ${path}`);

    const database = terminal.flags["with-database"] ? await setUpDatabase(layout) : undefined;
    if (database) {
      printSetup(terminal, database, layout);
    } else if (sizeOf(layout.database) === undefined) {
      terminal.say(withCommands("next: run setup_database"));
    }
    if (Deno.statSync(layout.base).uid === 0) {
      terminal.say(`only root can write there; for agents of another user: chown -R USER ${layout.base}`);
    }
    return { base: layout.base, created, ...(database && { database }) };
  });
}
