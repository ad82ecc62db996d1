/**
 * New content in the place of the database: what is there is kept first, agents that have it open go on, and a kill at
 * any moment leaves the old content or the new.
 * @module
 */
import { exists, fill, PartialFile, removeIfExists, removeStalePartials } from "../fs/atomic_file.ts";
import { type ErrorCode, fileError, hasCode, TelemetryError, withHint } from "../errors.ts";
import { type FileKind, fileNames, type Layout, parseFileName, partialOf, pathIn, sidecarsOf } from "../layout.ts";
import { sizeOf, statIfExists } from "../fs/locate.ts";
import { inspect } from "../sqlite/migrate.ts";
import { takeSnapshot } from "../sqlite/snapshot.ts";
import { Connection, type OnProgress, retryWhileLocked } from "../sqlite/connection.ts";

/** What says of a file that it is no sound database, and not that it could not be looked at. */
export const NO_DATABASE: readonly ErrorCode[] = ["damaged", "not_a_database", "empty_database", "no_storage"];

/** What stands in the place of the database. */
export type Current =
  | { state: "none" }
  | { state: "damaged" }
  | { state: "sound"; version: number; pageSize: number; encoding: string };

/**
 * What is there now, without changing it.
 *
 * @throws {TelemetryError} when it could not be checked, which is no reason to replace anything
 */
export function inspectCurrent(database: string): Current {
  const size = sizeOf(database);
  // A WAL without its database may hold the last runs: it is kept like a damaged file.
  if (size === undefined) return { state: (sizeOf(sidecarsOf(database).wal) ?? 0) > 0 ? "damaged" : "none" };
  if (size === 0) return { state: "damaged" };
  try {
    using db = Connection.openToRead(database);
    return retryWhileLocked(() => {
      if (db.check("quick").length > 0) return { state: "damaged" };
      const pageSize = Number(db.get("PRAGMA page_size")!["page_size"]);
      const encoding = String(db.get("PRAGMA encoding")!["encoding"]);
      return { state: "sound", version: inspect(db).version, pageSize, encoding };
    });
  } catch (error) {
    if (hasCode(error, ...NO_DATABASE)) return { state: "damaged" };
    throw error;
  }
}

/**
 * Keeps what is there in `db/`: a sound database as a true copy with what is in its WAL, a damaged one as it is, with
 * its sidecars.
 *
 * @param kind how the copy is named
 * @returns its path; null where there is nothing to keep
 */
export async function preserveCurrent(
  layout: Layout,
  current: Current,
  kind: "before_restore" | "corrupted",
): Promise<string | null> {
  if (current.state === "none") return null;
  if (current.state === "sound") return await takeSnapshot(layout, layout.db, kind);
  const { base, db, database } = layout;
  removeHalfCopies(db, kind);
  for (const name of fileNames(kind, new Date())) {
    const kept = pathIn(db, name);
    const copies = sidecarsOf(kept);
    if ([kept, ...Object.values(copies)].some(exists)) continue;
    // The sidecars first: whoever finds the file finds all of it.
    const { wal, shm, journal } = sidecarsOf(database);
    copyAsItIs(base, [[wal, copies.wal], [shm, copies.shm], [journal, copies.journal], [database, kept]]);
    return kept;
  }
  return null;
}

/** Removes what killed processes have left of copies: partials, and sidecars whose file was never named. */
export function removeHalfCopies(folder: string, kind: FileKind): void {
  const ownerOf = (name: string) => name.replace(/-(wal|shm|journal)$/, "");
  removeStalePartials(folder, (name) => parseFileName(ownerOf(name))?.kind === kind);
  for (const { name } of [...Deno.readDirSync(folder)]) {
    const owner = ownerOf(name);
    if (owner === name || parseFileName(owner)?.kind !== kind) continue;
    if (!exists(pathIn(folder, owner))) removeIfExists(pathIn(folder, name));
  }
}

/** Copies files as they are; each has its name only when it is whole. The last one is made empty where there is none. */
function copyAsItIs(base: string, pairs: [from: string, to: string][]): void {
  const copied: string[] = [];
  try {
    for (const [from, to] of pairs) {
      const isMissing = sizeOf(from) === undefined;
      if (isMissing && to !== pairs.at(-1)![1]) continue;
      using partial = isMissing
        ? PartialFile.claim(partialOf(to), { base })
        : PartialFile.claimDatabase(partialOf(to), from, { base });
      if (!isMissing) Deno.copyFileSync(from, partial.path);
      if (!partial.publish(to)) throw new TelemetryError("io", `another process has created ${to}`);
      copied.push(to);
    }
  } catch (error) {
    for (const path of copied) removeIfExists(path);
    throw fileError(error, "cannot keep a copy of the current database");
  }
}

/** What is done at certain moments while content is put in place. */
export interface PlacingOptions {
  /** Told how many pages are in place, of how many. */
  onProgress?: OnProgress | undefined;
  /**
   * Called when nobody else can write any more, and who reads sees the old content. What is written into the prepared
   * database then gets into its place too.
   */
  onLocked?: () => void;
  /** Called when SQLite cannot write what is there: nothing may have it open then. */
  onRename?: () => void;
}

/**
 * Puts new content in the place of the database: through SQLite, in one transaction, so that agents which have it open
 * see the old state or the new one; where SQLite cannot write what is there, by one rename.
 *
 * @param prepared a database in WAL mode beside it, that nobody else has open
 * @param database where
 * @param current what is there now; it has been kept
 * @param options what to do meanwhile
 * @throws {TelemetryError} `locked`, `disk_full` …: then everything is as it was
 */
export async function installDatabase(
  prepared: PartialFile,
  database: string,
  current: Current,
  options: PlacingOptions = {},
): Promise<void> {
  if (current.state === "none") return nameNew(prepared, database);
  if (await isWrittenThrough(prepared.path, database, current.state, options)) return;
  options.onRename?.();
  replaceFile(prepared, database);
}

/** Gives a new database its name where there was none. One that has come into being meanwhile is not kept anywhere. */
function nameNew(prepared: PartialFile, database: string): void {
  prepared.sync();
  // With one of another database beside it, nobody makes a new one.
  for (const sidecar of Object.values(sidecarsOf(database))) if (!exists(database)) removeIfExists(sidecar);
  if (prepared.publish(database)) return;
  if (sizeOf(database) === undefined) {
    throw new TelemetryError("in_the_way", `${database} is a link that leads nowhere`, {
      hint: "mend or remove that link, and run this again",
    });
  }
  throw new TelemetryError("in_the_way", `a program has made ${database} meanwhile, and that is left as it is`, {
    hint: "run this again: then it is kept, and what it has is not lost",
  });
}

/**
 * Puts the content in place through SQLite.
 *
 * @returns false where SQLite cannot write to that name: there is no file, no database in it, or too much is wrong
 * @throws {TelemetryError} any other failure; then the database is as it was
 */
async function isWrittenThrough(
  partial: string,
  database: string,
  state: Current["state"],
  options: PlacingOptions,
): Promise<boolean> {
  if (sizeOf(database) === undefined) return false;
  try {
    await writeThrough(partial, database, options);
    return state !== "damaged" || isSound(database);
  } catch (error) {
    // "permission" is also what SQLite says of a damaged file with pages of another size.
    if (state === "damaged" && hasCode(error, "damaged", "not_a_database", "permission")) return false;
    throw error;
  }
}

/** Whether what was written into a damaged file can be trusted. */
function isSound(database: string): boolean {
  try {
    using db = Connection.open(database);
    return db.check("quick").length === 0;
  } catch {
    return false;
  }
}

/** Puts a new file in the place of one that SQLite cannot write. It must not find another one's sidecars there. */
function replaceFile(prepared: PartialFile, database: string): void {
  prepared.sync();
  for (const sidecar of Object.values(sidecarsOf(database))) removeIfExists(sidecar);
  try {
    prepared.replace(database);
  } catch (error) {
    throw withHint(error, "stop the agents, then run this again");
  }
}

/** Replaces the content of a live database. A lock that another program holds would make SQLite wait without end. */
export async function writeThrough(from: string, database: string, options: PlacingOptions = {}): Promise<void> {
  {
    using live = retryWhileLocked(() => Connection.open(database));
    // Without WAL a reader is enough to stop a writer at its end.
    retryWhileLocked(() => live.run("BEGIN EXCLUSIVE"));
    live.rollback();
  }
  using source = Connection.open(from);
  let { onLocked } = options;
  await source.copyTo(database, (done, total) => {
    if (done < total) onLocked?.();
    onLocked = undefined;
    options.onProgress?.(done, total);
  }, true);
}

/**
 * Sees what agents write to the database while it is being replaced. The log has their runs; marks of posting, and what
 * other programs write, are in the database alone.
 */
export class Watch implements Disposable {
  readonly #database: string;
  readonly #carry: (prepared: Connection, present: Connection) => void;
  /** What its files were like at first. */
  readonly #stamp: string;
  #db: Connection | undefined;
  #before: unknown;

  /**
   * @param database the one that is replaced
   * @param carry brings over what was written to it meanwhile
   */
  constructor(database: string, carry: (prepared: Connection, present: Connection) => void) {
    this.#database = database;
    this.#carry = carry;
    this.#stamp = stampOf(database);
  }

  /**
   * Begins to watch, unless it does already. What cannot be read, nobody can write to either.
   *
   * @param wasRead whether the database was read since this was made: what was written since then counts too
   */
  open(wasRead: boolean): void {
    // SQLite would take an empty file for a new database, and remove its WAL.
    if (this.#db !== undefined || (sizeOf(this.#database) ?? 0) === 0) return;
    this.#attempt(() => {
      const db = this.#db = Connection.openToRead(this.#database);
      this.#before = wasRead && stampOf(this.#database) !== this.#stamp ? undefined : versionOf(db);
      // Elsewhere a reader would keep the new content from being written.
      if (db.get("PRAGMA journal_mode")?.["journal_mode"] !== "wal") this.close();
    });
  }

  /**
   * Brings over what was written meanwhile. For the last time at a moment when nobody can write any more: an agent that
   * marks a run a moment later must find it.
   *
   * @param prepared the new database, which is about to take the place of the old one, or its path
   */
  carryOver(prepared: Connection | string): void {
    this.#attempt(() => {
      if (this.#db === undefined) return;
      const version = versionOf(this.#db);
      if (version === this.#before) return;
      this.#before = version;
      if (typeof prepared !== "string") return this.#carry(prepared, this.#db);
      using db = Connection.open(prepared);
      this.#carry(db, this.#db);
    });
  }

  /** What is damaged has been read before, as far as it could be. */
  #attempt(work: () => void): void {
    try {
      work();
    } catch (error) {
      if (!(error instanceof TelemetryError) || error.code === "disk_full") throw error;
      this.close();
    }
  }

  /** Closes it. */
  close(): void {
    this.#db?.close();
    this.#db = undefined;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Size and time of a database and its WAL, as far as they tell of a later write: one of just now may have the same. */
function stampOf(database: string): string {
  return [database, sidecarsOf(database).wal].map((path) => {
    const { size, mtime } = statIfExists(path) ?? {};
    // To look at it is enough to make an empty WAL.
    if (!size) return "";
    return mtime && Date.now() - mtime.getTime() < 1000 ? crypto.randomUUID() : `${size} ${mtime?.getTime()}`;
  }).join();
}

/** A number that changes whenever another connection has changed the database. */
function versionOf(db: Connection): unknown {
  return db.get("PRAGMA data_version")?.["data_version"];
}

/** Whether a copy has every byte of a database and of its WAL. Nobody may have either open in SQLite here. */
export function isCopy(copy: string, database: string): boolean {
  return haveSameBytes(copy, database) && haveSameBytes(sidecarsOf(copy).wal, sidecarsOf(database).wal);
}

function haveSameBytes(a: string, b: string): boolean {
  const [size, otherSize] = [sizeOf(a) ?? 0, sizeOf(b) ?? 0];
  if (size !== otherSize) return false;
  if (size === 0) return true;
  using one = Deno.openSync(a);
  using other = Deno.openSync(b);
  const [bytes, otherBytes] = [new Uint8Array(1024 * 1024), new Uint8Array(1024 * 1024)];
  for (;;) {
    const [count, otherCount] = [fill(one, bytes), fill(other, otherBytes)];
    if (count !== otherCount) return false;
    if (count === 0) return true;
    for (let i = 0; i < count; i++) if (bytes[i] !== otherBytes[i]) return false;
  }
}
