/**
 * The database file of a `{base}`: made, or brought to schema v3, without ever risking what is in it.
 * @module
 */
import { exists, giveToOwnerOf, makeFolder, nameForGood, syncFile, writeWhole } from "./durable_files.ts";
import { fileError, messageOf, TelemetryError } from "./errors.ts";
import { fileName, type Layout, parseFileName, partialOf, pathIn } from "./layout.ts";
import { SCHEMA_VERSION } from "./records.ts";
import { applySchema, emptyDatabase, inspect, type Inspection, newerSchema, schemaSql } from "./schema.ts";
import { Connection, retryLocked } from "./sqlite.ts";

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
 * import { locate } from "./layout.ts";
 * import { createStorage } from "./storage.ts";
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
 * @returns false when something stands there already
 * @throws {TelemetryError} `no_storage` without the `db/` folder, `permission`, `disk_full` …
 */
export function createDatabase({ base, db, database }: Layout): boolean {
  if (!exists(db)) {
    throw new TelemetryError("no_storage", `the folder ${db} is missing`, { hint: "run setup_storage first" });
  }
  if (exists(database)) return false;
  using memory = Connection.open(":memory:");
  memory.transaction(() => applySchema(memory));
  const image = memory.serialize();
  // Header bytes 18 and 19: the file is in WAL mode (SQLite's file format, "File format version numbers").
  image.fill(2, 18, 20);
  return writeWhole(base, database, image, { replace: false });
}

async function upgradeDatabase(layout: Layout): Promise<DatabaseSetup> {
  const { database } = layout;
  refuseWhatIsNoDatabase(database);
  const before = look(database);
  if (before.version > SCHEMA_VERSION) throw newerSchema(database, before.version);
  // Not read-only: the last of these to close a WAL database leaves its sidecars behind.
  using db = Connection.open(database);
  let copy: string | undefined;
  if (before.missing.length > 0) copy = await upgradeUnderLock(db, layout);
  else requireSound(db, database);
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
  if (stat.isDirectory) {
    throw new TelemetryError("in_the_way", `${database} is a folder, but the database belongs there`, {
      hint: "move that folder away and run this again",
    });
  }
  if (stat.size === 0) throw emptyDatabase(database);
}

/** Inspects without changing a byte of the file, if SQLite can: a journal left by a kill must be rolled back by a writer first. */
function look(database: string): Inspection {
  try {
    using db = Connection.open(database, { readOnly: true });
    return retryLocked(() => inspect(db));
  } catch (error) {
    if (!(error instanceof TelemetryError) || error.code !== "permission") throw error;
    using db = Connection.open(database);
    return inspect(db);
  }
}

/** Copies and upgrades while no other program can write. The copy's path, or undefined when another was quicker. */
async function upgradeUnderLock(db: Connection, layout: Layout): Promise<string | undefined> {
  retryLocked(() => db.run("BEGIN IMMEDIATE"));
  try {
    if (inspect(db).missing.length === 0) return undefined;
    const copy = await keepCopy(layout);
    applySchema(db);
    db.run("COMMIT");
    return copy;
  } catch (error) {
    db.rollback();
    throw error;
  }
}

/** Copies the database to `backups/`, proven sound. To be called with the write lock held: then none else does. */
async function keepCopy({ base, database, backups }: Layout): Promise<string> {
  makeFolder(base, backups);
  removeOldPartials(backups);
  const partial = partialOf(pathIn(backups, fileName("before_v3", new Date())));
  try {
    using source = Connection.open(database, { readOnly: true });
    await source.copyTo(partial);
    requireSoundFile(partial, database);
    syncFile(partial);
    giveToOwnerOf(base, partial);
    for (let at = Date.now();; at += 1000) {
      const path = pathIn(backups, fileName("before_v3", new Date(at)));
      if (nameForGood(partial, path)) return path;
    }
  } catch (error) {
    removeOldPartials(backups);
    throw error;
  }
}

/** A damaged database is copied without complaint: checking the copy tells of both. */
function requireSoundFile(copy: string, database: string): void {
  using db = Connection.open(copy);
  requireSound(db, database);
}

function requireSound(db: Connection, database: string): void {
  const [problem] = db.check("quick");
  if (problem === undefined) return;
  throw new TelemetryError("damaged", `${database} is damaged (${messageOf(problem)}): nothing was changed`, {
    hint: "run recover_database: it rebuilds the database from the log and from what can still be read",
  });
}

function removeOldPartials(backups: string): void {
  const sidecars = /\.partial(-wal|-shm|-journal)?$/;
  for (const { name } of Deno.readDirSync(backups)) {
    const whole = name.replace(sidecars, "");
    if (whole === name || parseFileName(whole)?.kind !== "before_v3") continue;
    Deno.removeSync(pathIn(backups, name));
  }
}

function switchToWal(db: Connection): void {
  const mode = retryLocked(() => db.get("PRAGMA journal_mode=WAL"))?.["journal_mode"];
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
  makeFolder(base, config);
  writeWhole(base, path, new TextEncoder().encode(sql), { replace: true });
}
