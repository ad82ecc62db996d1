/**
 * Records the runs of autonomous agents and batch jobs on this machine: an append-only log (the truth), a SQLite
 * database (for questions), and an optional post to a web API.
 *
 * @example
 * ```ts
 * import { TelemetryClient } from "./mod.ts";
 *
 * await using telemetry = new TelemetryClient({ base: "/tmp/telemetry" });
 * await telemetry.trackRun("indexer", "index_files", async (run) => {
 *   await run.logEvent("checkpoint", { folder: "docs" });
 *   run.setMetrics({ items_discovered: 12, items_succeeded: 12 });
 * });
 * ```
 *
 * @module
 */
export * from "./lib/writer/client.ts";
export * from "./lib/errors.ts";
export * from "./lib/records.ts";
export { type BaseChoice, type Layout, layoutOf, type Platform, type Surroundings } from "./lib/layout.ts";
export { locate } from "./lib/fs/locate.ts";
export { type CreatedStorage, createStorage } from "./lib/store/folders.ts";
export { type DatabaseSetup, setUpDatabase } from "./lib/store/database.ts";
export { type Inspection } from "./lib/sqlite/migrate.ts";
export {
  logFiles,
  type Rejection,
  type RejectionReason,
  scan,
  type Scanned,
  type ScannedRecord,
} from "./lib/log/read.ts";
export { EventLog, type EventLogOptions } from "./lib/log/append.ts";
export { DatabaseWriter, type DatabaseWriterOptions, type RunStats } from "./lib/writer/database_writer.ts";
export { ApiClient, type ApiClientOptions, type PostResult } from "./lib/writer/api_client.ts";
export { timestamp } from "./lib/time.ts";
