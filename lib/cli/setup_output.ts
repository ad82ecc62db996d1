/**
 * What the two setup scripts share: they print what was done with the database.
 * @module
 */
import { plural } from "../format.ts";
import type { Layout } from "../layout.ts";
import { logFiles } from "../log/read.ts";
import { SCHEMA_VERSION } from "../records.ts";
import type { DatabaseSetup } from "../store/database.ts";
import type { Terminal } from "./command.ts";

/** Prints what `setUpDatabase` did. Warns when the new database replaces one that was lost. */
export function printSetup(terminal: Terminal, { outcome, before, copy }: DatabaseSetup, layout: Layout): void {
  const { database, raw } = layout;
  if (before === undefined) {
    terminal.say(`created the database ${database}, schema v${SCHEMA_VERSION}`);
    const logs = logFiles(raw).length;
    if (logs === 0) return terminal.say("next: record runs with mod.ts, as the README shows");
    terminal.warn(
      `the new database is empty, but ${raw} has ${plural(logs, "log")} of earlier runs: ` +
        `run recover_database --force to bring them back`,
    );
  } else if (outcome === "unchanged") {
    terminal.say(`the database ${database} has schema v${SCHEMA_VERSION}: nothing to do`);
  } else if (before.missing.length === 0) {
    terminal.say(`switched the database ${database} to WAL mode`);
  } else {
    const isOther = before.recorded !== null && before.recorded !== before.version;
    const recorded = isOther ? ` (recorded as v${before.recorded})` : "";
    terminal.say(`upgraded the database ${database} from schema v${before.version}${recorded} to v${SCHEMA_VERSION}`);
    terminal.say(`  added ${before.missing.join(", ")}`);
    if (!before.wal) terminal.say("  switched to WAL mode");
    if (copy !== undefined) terminal.say(`  copy from before the upgrade: ${copy}`);
  }
}
