/**
 * The database file of a store: created, or upgraded to schema v3.
 * @module
 */
import { ensureFolder, removeIfExists, writeFileAtomic } from "../fs/atomic_file.ts";
import { TelemetryError } from "../errors.ts";
import { type Layout, sidecarsOf } from "../layout.ts";
import { pathExists, sizeOf } from "../fs/locate.ts";
import { SCHEMA_VERSION } from "../records.ts";
import { schemaSql } from "../schema.ts";
import { applySchema, emptyDatabase, inspect, type Inspection, newerSchema } from "../sqlite/migrate.ts";
import { assertIntact, takeSnapshot } from "../sqlite/snapshot.ts";
import { Connection, retryWhileLocked } from "../sqlite/connection.ts";

/** What {@linkcode setUpDatabase} did. */
export interface DatabaseSetup {
  /** `created`, `upgraded`, or `unchanged` when there was nothing to do. */
  outcome: "created" | "upgraded" | "unchanged";
  /** The schema before; not set when the database was created. */
  before?: Inspection;
  /** The copy of the database from before the upgrade. */
  copy?: string;
}

/**
 * Creates or upgrades the database, and writes `config/schema.sql`. Can be called any number of times, concurrently, and
 * be killed: the database is unchanged or finished.
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

/**
 * Creates a new database unless one exists. It is published complete or not at all.
 *
 * @param options `wait`: whether to wait for another process that is creating it, blocking this thread; default true
 * @returns false when something exists at its path
 * @throws {TelemetryError} `no_storage` without the `db/` folder, `damaged` beside sidecars of a lost database, `permission` …
 */
export function createDatabase({ base, db, database }: Layout, options: { wait?: boolean } = {}): boolean {
  if (!pathExists(db)) {
    const mistyped = pathExists(base) ? "" : `; if a store exists already, its folder is not ${base}`;
    throw new TelemetryError("no_storage", `the folder ${db} does not exist`, {
      hint: `run setup_storage first${mistyped}`,
    });
  }
  const { wal, journal } = sidecarsOf(database);
  const orphan = [wal, journal].find((path) => (sizeOf(path) ?? 0) > 0);
  if (pathExists(database)) return false;
  // SQLite would read the pages of a lost database's WAL or journal into a new database beside it.
  if (orphan !== undefined) {
    throw new TelemetryError("damaged", `${database} is missing, but its ${orphan} exists`, {
      hint: "put the database back; if it is lost, run recover_database, which also reads that file",
    });
  }
  using memory = Connection.open(":memory:");
  memory.transaction(() => applySchema(memory));
  const image = memory.serialize();
  // Header bytes 18 and 19: the file is in WAL mode (SQLite's file format, "File format version numbers").
  image.fill(2, 18, 20);
  return writeFileAtomic(base, database, image, { replace: false, forSqlite: true, ...options });
}

async function upgradeDatabase(layout: Layout): Promise<DatabaseSetup> {
  const { database } = layout;
  // SQLite would delete its WAL.
  if (sizeOf(database) === 0) throw emptyDatabase(database);
  const before = look(database);
  if (before.version > SCHEMA_VERSION) throw newerSchema(database, before.version);
  // Not read-only: a read-only connection leaves the sidecars behind.
  using db = retryWhileLocked(() => Connection.open(database));
  let copy: string | undefined;
  if (before.missing.length > 0) copy = await upgradeUnderLock(db, layout);
  else assertIntact(db, database);
  if (!before.wal) switchToWal(db);
  const outcome = copy !== undefined || !before.wal ? "upgraded" : "unchanged";
  return { outcome, before, ...(copy === undefined ? {} : { copy }) };
}

function look(database: string): Inspection {
  using db = Connection.openToRead(database);
  return retryWhileLocked(() => inspect(db));
}

/** Copies and upgrades while no other program can write. Returns undefined when another process has upgraded it already. */
async function upgradeUnderLock(db: Connection, layout: Layout): Promise<string | undefined> {
  retryWhileLocked(() => db.run("BEGIN IMMEDIATE"));
  let copy: string | undefined;
  try {
    if (inspect(db).missing.length === 0) {
      db.rollback();
      return undefined;
    }
    // A write that changes nothing: BEGIN IMMEDIATE does not fail for a read-only file.
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

/** Whether a failed upgrade changed nothing. Then its copy is useless, and each attempt would create another one. */
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
  throw new TelemetryError("io", `${db.path} cannot be switched to WAL mode: it stays in "${mode}"`, {
    hint: "keep the store on a local disk: network folders cannot share a WAL",
  });
}

/** Writes `config/schema.sql`, unless it has the same content already. */
function writeSchemaSql({ base, config, schemaSql: path }: Layout): void {
  const sql = schemaSql();
  try {
    if (Deno.readTextFileSync(path) === sql) return;
  } catch { /* missing or unreadable: the write reports what is wrong */ }
  ensureFolder(base, config);
  writeFileAtomic(base, path, new TextEncoder().encode(sql), { replace: true });
}
