/**
 * The database file of a `{base}`: made, or brought to schema v3, without ever risking what is in it.
 * @module
 */
import { ensureFolder, exists, removeIfExists, writeFileAtomic } from "../fs/atomic_file.ts";
import { fileError, TelemetryError } from "../errors.ts";
import { type Layout, sidecarsOf } from "../layout.ts";
import { sizeOf } from "../fs/locate.ts";
import { SCHEMA_VERSION } from "../records.ts";
import { schemaSql } from "../schema.ts";
import { applySchema, emptyDatabase, inspect, type Inspection, newerSchema } from "../sqlite/migrate.ts";
import { assertIntact, takeSnapshot } from "../sqlite/snapshot.ts";
import { Connection, folderAtDatabasePath, retryWhileLocked } from "../sqlite/connection.ts";

/** What {@linkcode setUpDatabase} did. */
export interface DatabaseSetup {
  /** `created`, `upgraded`, or `unchanged` when there was nothing to do. */
  outcome: "created" | "upgraded" | "unchanged";
  /** What the database had before. */
  before?: Inspection;
  /** The copy of the database as it was before the upgrade. */
  copy?: string;
}

/**
 * Creates or upgrades the database, and writes `config/schema.sql`. Safe to run any number of times, by several at
 * once, and to kill: the database is as before or finished.
 *
 * @param layout from `locate()`
 * @throws {TelemetryError} `no_storage` without the `db/` folder; `in_the_way`, `empty_database`, `not_a_database`,
 * `newer_schema`, `damaged`, `locked`, `permission`, `disk_full`: then nothing was changed
 *
 * @example
 * ```ts
 * import { setUpDatabase } from "./database.ts";
 * import { locate } from "../fs/locate.ts";
 * import { createStorage } from "./folders.ts";
 *
 * const { layout } = createStorage(locate("/tmp/telemetry"));
 * console.log((await setUpDatabase(layout)).outcome); // "created", and "unchanged" the next time
 * ```
 */
export async function setUpDatabase(layout: Layout): Promise<DatabaseSetup> {
  const setup = createDatabase(layout) ? { outcome: "created" } as const : await upgradeDatabase(layout);
  writeSchemaSql(layout);
  return setup;
}

/** What {@linkcode setUpDatabase} did, in lines for people. */
export function describeSetup({ outcome, before, copy }: DatabaseSetup, { database }: Layout): string[] {
  if (before === undefined) return [`database ${database} made, schema v${SCHEMA_VERSION}`];
  if (outcome === "unchanged") return [`database ${database} has schema v${SCHEMA_VERSION}: nothing to do`];
  if (before.missing.length === 0) return [`database ${database}, schema v${SCHEMA_VERSION}, put into WAL mode`];
  const lied = before.recorded !== null && before.recorded !== before.version
    ? ` (though it says v${before.recorded})`
    : "";
  const lines = [`database ${database} upgraded from schema v${before.version}${lied} to v${SCHEMA_VERSION}`];
  if (before.missing.length > 0) lines.push(`  added ${before.missing.join(", ")}`);
  if (!before.wal) lines.push("  put into WAL mode");
  if (copy !== undefined) lines.push(`  as it was before: ${copy}`);
  return lines;
}

/**
 * Makes a new database unless there is one. It appears under its name whole or not at all.
 *
 * @param layout where
 * @param wait whether to wait for another process that is making it, and block the thread meanwhile
 * @returns false when something stands there already
 * @throws {TelemetryError} `no_storage` without the `db/` folder, `permission`, `disk_full` …
 */
export function createDatabase({ base, db, database }: Layout, wait: boolean = true): boolean {
  if (!exists(db)) {
    const mistyped = exists(base) ? "" : `; if there is a store already, its folder has another name than ${base}`;
    throw new TelemetryError("no_storage", `the folder ${db} is missing`, {
      hint: `run setup_storage first${mistyped}`,
    });
  }
  const { wal, journal } = sidecarsOf(database);
  const orphan = [wal, journal].find((path) => (sizeOf(path) ?? 0) > 0);
  if (exists(database)) return false;
  if (orphan !== undefined) throw orphaned(database, orphan);
  using memory = Connection.open(":memory:");
  memory.transaction(() => applySchema(memory));
  const image = memory.serialize();
  // Header bytes 18 and 19: the file is in WAL mode (SQLite's file format, "File format version numbers").
  image.fill(2, 18, 20);
  return writeFileAtomic(base, database, image, { replace: false, wait });
}

/** A new database beside another one's journal would be read with that one's pages in it. */
function orphaned(database: string, sidecar: string): TelemetryError {
  return new TelemetryError("damaged", `${database} is gone, but ${sidecar} of it is still there`, {
    hint: "put the database back; if it is lost, run recover_database: it takes what that file has, too",
  });
}

async function upgradeDatabase(layout: Layout): Promise<DatabaseSetup> {
  const { database } = layout;
  refuseWhatIsNoDatabase(database);
  const before = look(database);
  if (before.version > SCHEMA_VERSION) throw newerSchema(database, before.version);
  // Not read-only: the last of these to close a WAL database leaves its sidecars behind.
  using db = retryWhileLocked(() => Connection.open(database));
  let copy: string | undefined;
  if (before.missing.length > 0) copy = await upgradeUnderLock(db, layout);
  else assertIntact(db, database);
  if (!before.wal) switchToWal(db);
  const outcome = copy !== undefined || !before.wal ? "upgraded" : "unchanged";
  return { outcome, before, ...(copy === undefined ? {} : { copy }) };
}

function refuseWhatIsNoDatabase(database: string): void {
  let stat: Deno.FileInfo;
  try {
    stat = Deno.statSync(database);
  } catch (error) {
    throw fileError(error, `cannot look at ${database}`);
  }
  if (stat.isDirectory) throw folderAtDatabasePath(database);
  if (stat.size === 0) throw emptyDatabase(database);
}

function look(database: string): Inspection {
  using db = Connection.openToRead(database);
  return retryWhileLocked(() => inspect(db));
}

/** Copies and upgrades while no other program can write. The copy's path, or undefined when another was quicker. */
async function upgradeUnderLock(db: Connection, layout: Layout): Promise<string | undefined> {
  retryWhileLocked(() => db.run("BEGIN IMMEDIATE"));
  let copy: string | undefined;
  try {
    if (inspect(db).missing.length === 0) {
      db.rollback();
      return undefined;
    }
    // A write that changes nothing: in a file that may only be read, BEGIN IMMEDIATE itself does not fail.
    db.exec(`PRAGMA user_version=${db.get("PRAGMA user_version")!["user_version"]}`);
    copy = await takeSnapshot(layout, layout.backups, "before_v3");
    applySchema(db);
    db.run("COMMIT");
    return copy;
  } catch (error) {
    db.rollback();
    if (copy !== undefined && isUnchanged(db)) removeIfExists(copy);
    throw error;
  }
}

/** Whether an upgrade that failed left nothing: then its copy is of no use, and would be made again with each try. */
function isUnchanged(db: Connection): boolean {
  try {
    return inspect(db).missing.length > 0;
  } catch {
    return false;
  }
}

function switchToWal(db: Connection): void {
  const mode = retryWhileLocked(() => db.get("PRAGMA journal_mode=WAL"))?.["journal_mode"];
  if (mode === "wal") return;
  throw new TelemetryError("io", `${db.path} cannot be put into WAL mode: it stays in "${mode}"`, {
    hint: "keep {base} on a local disk: network folders cannot share a WAL",
  });
}

/** Writes `config/schema.sql`, unless it says the same already. */
function writeSchemaSql({ base, config, schemaSql: path }: Layout): void {
  const sql = schemaSql();
  try {
    if (Deno.readTextFileSync(path) === sql) return;
  } catch { /* not there yet, or not readable: writing will tell */ }
  ensureFolder(base, config);
  writeFileAtomic(base, path, new TextEncoder().encode(sql), { replace: true });
}
