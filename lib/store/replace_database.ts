/**
 * Replaces the database: what is there is preserved first, agents that have it open go on, and a kill at any moment leaves
 * the old content or the new.
 * @module
 */
import { Buffer } from "node:buffer";
import { type ErrorCode, fileError, hasCode, TelemetryError, withHint, withMessage } from "../errors.ts";
import {
  COPY_BYTES,
  copyContent,
  PartialFile,
  readFull,
  removeDatabase,
  removeIfExists,
  removeStalePartials,
} from "../fs/atomic_file.ts";
import { pathExists, sizeOf, statIfExists } from "../fs/locate.ts";
import { type FileKind, type Layout, newPaths, parseFileName, partialOf, pathIn, sidecarsOf } from "../layout.ts";
import { Connection, type OnProgress, retryWhileLocked, type SqlValue } from "../sqlite/connection.ts";
import { inspect } from "../sqlite/migrate.ts";
import { takeSnapshot } from "../sqlite/snapshot.ts";

/** The errors that mean that a file is not an intact database, and not that it could not be checked. */
export const NO_DATABASE: readonly ErrorCode[] = ["damaged", "not_a_database", "empty_database", "no_storage"];

/** What is at the path of the database. */
export type Current =
  | { state: "none" }
  | { state: "damaged"; problems: string[] }
  | { state: "intact"; version: number; missingTables: string[]; settings: FileSettings };

const SETTINGS = ["page_size", "encoding", "auto_vacuum", "user_version", "application_id"] as const;

/** Settings of a database file that new content must have, too: open connections rely on them. */
export type FileSettings = Record<typeof SETTINGS[number], SqlValue>;

/** Reads the settings of a database file. */
export function readSettings(db: Connection): FileSettings {
  return Object.fromEntries(SETTINGS.map((name) => [name, db.get(`PRAGMA ${name}`)![name]])) as FileSettings;
}

/**
 * Checks what is at the path of the database, without changing it.
 *
 * @throws {TelemetryError} when it could not be checked, which is never a reason to replace it
 */
export function inspectCurrent(database: string): Current {
  const damaged = (...problems: string[]): Current => ({ state: "damaged", problems });
  const size = sizeOf(database);
  if (size === undefined) {
    // A WAL without its database can have the last runs. It is preserved like a damaged database.
    const { wal } = sidecarsOf(database);
    return (sizeOf(wal) ?? 0) > 0 ? damaged(`${database} does not exist, but its ${wal} does`) : { state: "none" };
  }
  if (size === 0) return damaged(`${database} is empty`);
  try {
    using db = Connection.openToRead(database);
    return retryWhileLocked((): Current => {
      const problems = db.check("quick");
      if (problems.length > 0) return damaged(...problems);
      const { version, missing } = inspect(db);
      const missingTables = missing.filter((name) => !name.includes(".") && !name.startsWith("idx_"));
      return { state: "intact", version, missingTables, settings: readSettings(db) };
    });
  } catch (error) {
    if (hasCode(error, ...NO_DATABASE)) return damaged(error.message);
    throw withMessage(error, (message) => `the database could not be checked: ${message}`);
  }
}

/**
 * Preserves the database in `db/`: an intact one as a snapshot, which includes its WAL, a damaged one as it is, with its
 * sidecars. Returns the path of the copy, or null when there is nothing to preserve.
 */
export async function preserveCurrent(
  layout: Layout,
  current: Current,
  kind: "before_restore" | "before_rebuild" | "corrupted",
): Promise<string | null> {
  if (current.state === "none") return null;
  if (current.state === "intact") return await takeSnapshot(layout, layout.db, kind, { check: "none" });
  removeStaleCopies(layout.db, kind);
  for (const copy of newPaths(layout.db, kind)) {
    if ([copy, ...Object.values(sidecarsOf(copy))].some(pathExists)) continue;
    copyFiles(layout, copy);
    return copy;
  }
  return null;
}

/** Removes what killed processes have left of copies: partials, and sidecars without their database. */
export function removeStaleCopies(folder: string, kind: FileKind): void {
  const databaseOf = (name: string) => name.replace(/-(wal|shm|journal)$/, "");
  removeStalePartials(folder, (name) => parseFileName(databaseOf(name))?.kind === kind);
  for (const { name } of [...Deno.readDirSync(folder)]) {
    const database = databaseOf(name);
    if (database === name || parseFileName(database)?.kind !== kind) continue;
    if (!pathExists(pathIn(folder, database))) removeIfExists(pathIn(folder, name));
  }
}

/** Copies the files of a damaged database. The sidecars come first: where the database is, all of it is. */
function copyFiles({ base, database }: Layout, copy: string): void {
  const [from, to] = [sidecarsOf(database), sidecarsOf(copy)];
  const pairs = [[from.wal, to.wal], [from.shm, to.shm], [from.journal, to.journal], [database, copy]] as const;
  const created: string[] = [];
  try {
    for (const [source, target] of pairs) {
      const exists = sizeOf(source) !== undefined;
      // A WAL without its database is preserved beside an empty file.
      if (!exists && target !== copy) continue;
      using partial = PartialFile.claim(partialOf(target), { like: source });
      if (exists) copyContent(source, partial.file);
      partial.sync();
      if (partial.publish(base, [target]) === undefined) throw new TelemetryError("io", `${target} exists already`);
      created.push(target);
    }
  } catch (error) {
    created.forEach(removeIfExists);
    throw fileError(error, `cannot preserve ${database}`);
  }
}

/**
 * Removes a copy whose replacement failed, if the database still has all that the copy has. Otherwise it is the only copy,
 * and stays. Disposes the partial of the new content. Returns the error to throw, which names a copy that stays.
 */
export function discardCopy(
  error: unknown,
  copy: string,
  partial: PartialFile,
  database: string,
  current: Current,
): unknown {
  // On a full disk, the two can be compared only with the space of the new content.
  partial[Symbol.dispose]();
  try {
    if (current.state === "intact" && !hasCode(error, "locked")) overwriteFailedCommit(database);
    if (current.state === "intact" ? hasSamePages(database, copy) : hasSameFiles(database, copy)) {
      removeDatabase(copy);
      return error;
    }
  } catch { /* what cannot be compared stays */ }
  return withMessage(error, (message) => `${message}; what was there is preserved in ${copy}`);
}

/** A commit that failed may be complete in the WAL, where the next program would find it. Another commit overwrites it. */
function overwriteFailedCommit(database: string): void {
  if ((sizeOf(sidecarsOf(database).wal) ?? 0) === 0) return;
  using db = Connection.open(database);
  db.transaction(() => db.exec(`PRAGMA user_version=${db.get("PRAGMA user_version")!["user_version"]}`));
}

/** Where the header of a database has its journal mode and counters of changes, which differ in a copy. */
const COUNTERS = [[18, 20], [24, 28], [40, 44], [92, 100]] as const;

/** Larger databases are not compared, since both are held in memory: then the copy stays. */
const MAX_COMPARED_BYTES = 512 * 1024 * 1024;

function hasSamePages(database: string, copy: string): boolean {
  if ((sizeOf(copy) ?? 0) > MAX_COMPARED_BYTES) return false;
  const [pages, copied] = [database, copy].map((path) => {
    using db = Connection.openToRead(path);
    const bytes = db.serialize();
    for (const [start, end] of COUNTERS) bytes.fill(0, start, end);
    return bytes;
  });
  return Buffer.compare(pages!, copied!) === 0;
}

/** Whether a copy has every byte of a database and of its WAL. No process may have either open in SQLite. */
export function hasSameFiles(database: string, copy: string): boolean {
  return hasSameBytes(copy, database) && hasSameBytes(sidecarsOf(copy).wal, sidecarsOf(database).wal);
}

function hasSameBytes(a: string, b: string): boolean {
  const size = sizeOf(a) ?? 0;
  if (size !== (sizeOf(b) ?? 0)) return false;
  if (size === 0) return true;
  using one = Deno.openSync(a);
  using other = Deno.openSync(b);
  const [bytes, otherBytes] = [new Uint8Array(COPY_BYTES), new Uint8Array(COPY_BYTES)];
  for (let count; (count = readFull(one, bytes)) > 0;) {
    const read = otherBytes.subarray(0, readFull(other, otherBytes));
    if (Buffer.compare(bytes.subarray(0, count), read) !== 0) return false;
  }
  return true;
}

/** Options of {@linkcode installDatabase}. */
export interface InstallOptions {
  onProgress?: OnProgress | undefined;
  /** Called when no other process can write to an intact database any more: the last moment to change the new content. */
  onLocked?: () => void;
}

/**
 * Installs new content as the database: through SQLite, in one transaction, so that agents that have the database open see
 * the old state or the new one. Where SQLite cannot write a damaged file, by one rename.
 * `prepared` is in WAL mode and closed, and `current` has been preserved. Returns a warning when agents must be restarted.
 * When it throws, the database is unchanged.
 */
export async function installDatabase(
  prepared: PartialFile,
  { base, database }: Layout,
  current: Current,
  options: InstallOptions = {},
): Promise<string | undefined> {
  if (current.state === "none") return installNew(prepared, base, database);
  if (current.state === "intact") {
    await copyOver(prepared.path, database, options);
    return undefined;
  }
  const isHeld = sizeOf(database) === 0 && isLockedNow(database);
  if (sizeOf(database) !== undefined && !isHeld) {
    try {
      await copyOver(prepared.path, database, { onProgress: options.onProgress });
      if (isIntact(database)) return undefined;
    } catch (error) {
      // SQLite also reports "permission" for damaged files with another page size, and for read-only files.
      if (!hasCode(error, "damaged", "not_a_database", "permission")) throw error;
    }
  }
  replaceFiles(prepared, base, database);
  return isHeld ? `agents that had ${database} open still write to the old file: restart them` : undefined;
}

async function copyOver(from: string, database: string, { onLocked, onProgress }: InstallOptions): Promise<void> {
  using source = Connection.open(from);
  await source.copyOver(database, onLocked ?? (() => {}), onProgress);
}

/** Publishes a database where there was none. One that was created in the meantime has not been preserved. */
function installNew(prepared: PartialFile, base: string, database: string): undefined {
  prepared.sync();
  // SQLite would read another database's sidecars.
  for (const sidecar of Object.values(sidecarsOf(database))) if (!pathExists(database)) removeIfExists(sidecar);
  if (prepared.publish(base, [database]) !== undefined) {
    removeMovedSidecars(database);
    return;
  }
  const [what, hint] = statIfExists(database) === undefined
    ? [`${database} is a link whose target does not exist`, "fix or remove that link, then run this again"]
    : [
      `another program has created ${database} in the meantime`,
      "run this again, which preserves that database first",
    ];
  throw new TelemetryError("in_the_way", what, { hint });
}

/**
 * Whether an agent has the file open, which was emptied. Its lock then stays as long as the agent lives, and what its WAL
 * still has could be written over new content.
 */
function isLockedNow(database: string): boolean {
  try {
    using db = Connection.open(database, { busyTimeoutMs: 0 });
    db.run("BEGIN EXCLUSIVE");
    return false;
  } catch (error) {
    return hasCode(error, "locked");
  }
}

function isIntact(database: string): boolean {
  try {
    using db = Connection.open(database);
    return db.check("quick").length === 0;
  } catch {
    return false;
  }
}

/** Removes the sidecars that this process or a killed one has moved aside. They have been preserved before. */
export function removeMovedSidecars(database: string): void {
  Object.values(sidecarsOf(database)).map(partialOf).forEach(removeIfExists);
}

/**
 * Replaces a file that SQLite cannot write. Its sidecars must be gone when the new file appears, since SQLite would apply
 * them to it. They are moved aside first, and moved back when the rename fails.
 */
function replaceFiles(prepared: PartialFile, base: string, database: string): void {
  prepared.sync();
  const aside = Object.values(sidecarsOf(database)).filter(pathExists).map((path) => [path, partialOf(path)] as const);
  const moved: typeof aside = [];
  try {
    for (const pair of aside) {
      Deno.renameSync(...pair);
      moved.push(pair);
    }
    prepared.replace(base, database);
    removeMovedSidecars(database);
  } catch (error) {
    // Where only the sync after the rename failed, the new file is there, and the old sidecars must not come back.
    if (!pathExists(prepared.path)) {
      removeMovedSidecars(database);
      throw error;
    }
    for (const [path, other] of moved) if (!pathExists(path)) Deno.renameSync(other, path);
    const hint = "stop the agents, check whether the file is protected or mounted, then run this again";
    throw withHint(fileError(error, `cannot replace ${database}`), hint);
  }
}

/**
 * An intact database that is being replaced. Runs that agents write to it are in the log, too; `api_posted` markers, and
 * what other programs write, are in the database only.
 */
export class LiveDatabase implements Disposable {
  readonly #db: Connection;
  readonly #version: SqlValue;

  private constructor(db: Connection) {
    this.#db = db;
    this.#version = dataVersion(db);
  }

  /** Begins to watch. Without WAL, a reader would keep the new content from being written, so nothing is watched. */
  static watch(database: string): LiveDatabase | undefined {
    const db = Connection.openToRead(database);
    if (db.get("PRAGMA journal_mode")?.["journal_mode"] === "wal") return new LiveDatabase(db);
    db.close();
    return undefined;
  }

  /** Merges what was written since, at a moment when no other program can write. */
  mergeInto(prepared: string, merge: (db: Connection, current: Connection) => void): void {
    if (dataVersion(this.#db) === this.#version) return;
    using db = Connection.open(prepared);
    merge(db, this.#db);
  }

  /** Stops watching. Disposing it twice does nothing. */
  [Symbol.dispose](): void {
    this.#db.close();
  }
}

/** A number that changes when another connection changes the database. */
function dataVersion(db: Connection): SqlValue {
  return db.get("PRAGMA data_version")!["data_version"]!;
}
