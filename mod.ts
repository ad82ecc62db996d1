/**
 * Records the runs of autonomous agents and batch jobs on this machine: in an append-only log (the source of truth), in a
 * SQLite database (for queries) and, if configured, by a post to a web API. Also sets that store up, backs it up, recovers
 * and exports it.
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

// Recording
export {
  type ClientOptions,
  type ClientStats,
  type EndFields,
  type EndStaleOptions,
  type PostPendingOptions,
  type PostPendingResult,
  type RunFields,
  TelemetryClient,
  type TrackedRun,
} from "./lib/writer/client.ts";
export { CLIENT_COLUMNS } from "./lib/writer/fields.ts";
export { DatabaseWriter, type DatabaseWriterOptions, type RunStats } from "./lib/writer/database_writer.ts";
export { ApiClient, type ApiClientOptions, type PostResult } from "./lib/writer/api_client.ts";
export {
  type LogRecord,
  type NewRun,
  newRun,
  RUN_COLUMNS,
  RUN_STATUSES,
  type RunEvent,
  runId,
  type RunRecord,
  type RunStatus,
  TRIGGER_TYPES,
  type TriggerType,
} from "./lib/records.ts";
export { type Instant, timestamp } from "./lib/time.ts";
export { type ErrorCode, TelemetryError, type TelemetryErrorOptions } from "./lib/errors.ts";

// The log
export { EventLog, type EventLogOptions } from "./lib/log/append.ts";
export {
  logFiles,
  type Rejection,
  type RejectionReason,
  scan,
  type Scanned,
  type ScannedRecord,
} from "./lib/log/read.ts";
export { type InvalidRecordReason } from "./lib/records.ts";

// The store
export {
  type BaseChoice,
  type FileKind,
  type Layout,
  layoutOf,
  type Platform,
  type Surroundings,
} from "./lib/layout.ts";
export { locate } from "./lib/fs/locate.ts";
export { type CreatedStorage, createStorage } from "./lib/store/folders.ts";
export { type DatabaseSetup, setUpDatabase } from "./lib/store/database.ts";
export { type Inspection } from "./lib/sqlite/migrate.ts";
export { SCHEMA_VERSION } from "./lib/records.ts";
export { schemaSql } from "./lib/schema.ts";

// Backup, restore, recovery
export { type BackupContent, type BackupKind, listBackups, takeBackup, type TakenBackup } from "./lib/backup/backup.ts";
export { type DatabaseCopy } from "./lib/sqlite/snapshot.ts";
export { restoreBackup, type Restored, type RestoreOptions } from "./lib/backup/restore.ts";
export { checkHealth, type Health, type HealthOptions } from "./lib/recovery/health.ts";
export { recoverDatabase, type Recovery, type RecoveryOptions } from "./lib/recovery/recover.ts";
export { type RunComparison } from "./lib/store/compare.ts";
export { type OnProgress } from "./lib/sqlite/connection.ts";

// Export
export { type ByteSink, type Exported, exportTo, exportToFile, type FileOptions } from "./lib/export/export.ts";
export { type ExportRequest, type ExportTable, type Program } from "./lib/export/request.ts";
export { type Cell, type CellCounts } from "./lib/export/csv.ts";

// Report
export {
  type FailedRun,
  type GroupSummary,
  type ListedRun,
  type RunSummary,
  type StaleRun,
  type Status,
  type StatusCounts,
  summarizeRuns,
  type SummaryOptions,
} from "./lib/report/summary.ts";
export { type RecordedRun, type RunFilter, type RunOrigin } from "./lib/report/source.ts";
export { type StoreState } from "./lib/report/store_state.ts";
