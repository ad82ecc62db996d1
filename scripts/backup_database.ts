#!/usr/bin/env -S deno run --allow-env=TELEMETRY_DB_PATH,TELEMETRY_BASE_DIR,AGENT_METRICS_DIR,TELEMETRY_NDJSON_DIR,HOME,USERPROFILE --allow-read=/agent-metrics,/opt/telemetry,/data/telemetry --allow-write=/agent-metrics,/opt/telemetry,/data/telemetry
/**
 * Takes the daily backup of the database, and keeps the newest of them.
 * @module
 */
import { backupAndPrune, listBackupsAsTable } from "../lib/cli/backup_output.ts";
import { runCommand, wholeNumber } from "../lib/cli/command.ts";

const COMMAND = {
  name: "backup_database",
  summary: "takes a backup of the database while agents write, and keeps the newest ones",
  flags: {
    keep: { value: "N", about: "how many of its own backups stay (default: 7)" },
    "dry-run": { about: "take nothing and remove nothing, but say what would go" },
    list: { about: "show all backups, what is in them and whether they are sound" },
  },
  example: "--keep 14",
};

if (import.meta.main) {
  await runCommand(COMMAND, async (terminal) => {
    const count = wholeNumber("keep", terminal.flags["keep"], 7);
    const layout = terminal.locate();
    if (terminal.flags["list"]) return listBackupsAsTable(terminal, layout);
    return await backupAndPrune(terminal, layout, "daily_backup", { count });
  });
}
