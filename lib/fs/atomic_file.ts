/**
 * Files that are whole or not there: written under another name, synced, then named.
 * @module
 */
import { fileError, TelemetryError } from "../errors.ts";
import { folderOf, partialOf, pathIn, sidecarsOf } from "../layout.ts";
import { isGranted, statIfExists } from "./locate.ts";

/**
 * Makes the names in a folder durable (`fsync` of the folder). Windows has no such thing and needs none.
 *
 * @throws {TelemetryError} when the operating system refuses
 */
export function syncFolder(folder: string): void {
  if (Deno.build.os === "windows") return;
  try {
    using handle = Deno.openSync(folder);
    handle.syncSync();
  } catch (error) {
    throw fileError(error, `cannot sync ${folder}`);
  }
}

/**
 * Makes the content of a file durable (`fsync`).
 *
 * @param path the file
 * @param open the same, where it is open already: then an error is told that another sync has seen meanwhile
 * @throws {TelemetryError} when the operating system refuses
 */
export function syncFile(path: string, open?: Deno.FsFile): void {
  try {
    if (open) return open.syncSync();
    using file = Deno.openSync(path, { read: true, write: true });
    file.syncSync();
  } catch (error) {
    throw fileError(error, `cannot sync ${path}`);
  }
}

/**
 * Gives what a root process has just made to the owner of `{base}`: else root's cron makes today's log, and
 * the agents can no longer append to it. Does nothing for links, for other users, and on Windows.
 *
 * @param path what was made
 * @param base whose owner it gets
 */
export function chownToOwnerOf(base: string, path: string): void {
  try {
    const owner = Deno.statSync(base);
    const made = Deno.lstatSync(path);
    if (made.isSymlink || owner.uid === null || (made.uid === owner.uid && made.gid === owner.gid)) return;
    Deno.chownSync(path, owner.uid, owner.gid);
  } catch { /* only root may give files away, and only root has to */ }
}

/**
 * Makes a folder and those above it; what was made gets the owner of `{base}`.
 *
 * @returns whether it had to be made
 * @throws {TelemetryError} `in_the_way`, `permission`, `disk_full` …
 */
export function ensureFolder(base: string, folder: string): boolean {
  try {
    if (Deno.statSync(folder).isDirectory) return false;
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw fileError(error, `cannot look at ${folder}`);
    try {
      Deno.mkdirSync(folder, { recursive: true });
    } catch (failed) {
      throw fileError(failed, `cannot make the folder ${folder}`);
    }
    if (folder !== base) chownToOwnerOf(base, folder);
    // The folder above {base} is the user's: it may not be ours to read.
    const above = folderOf(folder);
    if (isGranted({ name: "read", path: above })) syncFolder(above);
    return true;
  }
  throw new TelemetryError("in_the_way", `${folder} is a file, but a folder is needed there`, {
    hint: "move that file away and run it again",
  });
}

/** Whether anything stands at a path, a dangling link included. */
export function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw fileError(error, `cannot look at ${path}`);
  }
}

/**
 * Gives a finished and synced partial its name without ever replacing a file: link, then unlink, since `rename`
 * overwrites. Where the file system has no links, a rename to a name that was free a moment ago.
 *
 * @returns false when the name is taken; the partial is then still there
 * @throws {TelemetryError} when the operating system refuses
 */
export function publish(partial: string, path: string): boolean {
  try {
    Deno.linkSync(partial, path);
    Deno.removeSync(partial);
  } catch (error) {
    if (exists(path)) return false;
    try {
      Deno.renameSync(partial, path);
    } catch {
      throw fileError(error, `cannot name ${path}`);
    }
  }
  syncFolder(folderOf(path));
  return true;
}

/** Writes all of it: a write may take a part. */
export function writeAll(to: { writeSync(bytes: Uint8Array): number }, bytes: Uint8Array): void {
  for (let written = 0; written < bytes.length;) written += to.writeSync(bytes.subarray(written));
}

/** Fills a buffer from where a file stands; how many bytes there were, fewer at its end. */
export function fill(file: Deno.FsFile, bytes: Uint8Array): number {
  let filled = 0;
  for (let count; filled < bytes.length && (count = file.readSync(bytes.subarray(filled))) !== null;) filled += count;
  return filled;
}

/** How {@linkcode writeFileAtomic} treats a file that is there already. */
export interface WriteFileOptions {
  /** Whether it may be replaced. */
  replace: boolean;
  /** Whether to wait, and block the thread, for another process that writes the same file. @default true */
  wait?: boolean;
}

/**
 * Writes a whole file or nothing, also when killed, when the disk is full, and when two do it at once.
 *
 * @param base its owner gets the file
 * @param path where
 * @param content what
 * @param options whether a file that is there may be replaced
 * @returns whether it was written: false when it is there and may not be replaced
 * @throws {TelemetryError} when the operating system refuses; what was there is still there
 */
export function writeFileAtomic(base: string, path: string, content: Uint8Array, options: WriteFileOptions): boolean {
  const partial = partialOf(path);
  // Also for those who may not write here: there is nothing to do.
  if (!options.replace && exists(path) && !exists(partial)) return false;
  using file = claimPartial(partial, options.wait);
  try {
    if (!options.replace && exists(path)) {
      Deno.removeSync(partial);
      return false;
    }
    writeAll(file, content);
    file.syncSync();
    chownToOwnerOf(base, partial);
    if (!options.replace) return publish(partial, path);
    Deno.renameSync(partial, path);
  } catch (error) {
    removeIfExists(partial);
    throw fileError(error, `cannot write ${path}`);
  }
  syncFolder(folderOf(path));
  return true;
}

/** How long to wait for another process that writes the same partial, in milliseconds. */
const CLAIM_TIMEOUT_MS = 10_000;

/**
 * Opens an empty partial that nobody else writes: its exclusive lock is held until it is closed, and dies with its
 * owner, so that what a killed process left is simply used again.
 *
 * @param partial its path; it is made when it is not there
 * @param wait whether to wait for another process that writes it, and block the thread meanwhile
 * @throws {TelemetryError} `locked` when another process writes it for too long, or what the operating system says
 */
export function claimPartial(partial: string, wait: boolean = true): Deno.FsFile {
  const timeoutMs = wait ? CLAIM_TIMEOUT_MS : 0;
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    let file: Deno.FsFile;
    try {
      file = Deno.openSync(partial, { read: true, write: true, create: true });
    } catch (error) {
      throw fileError(error, `cannot write ${partial}`);
    }
    // The lock may be on a file that its former owner has named or removed in the meantime.
    const stat = file.tryLockSync(true) ? statIfSameFile(file, partial) : undefined;
    if (stat) {
      if ((stat.nlink ?? 1) === 1) {
        file.truncateSync(0);
        return file;
      }
      // Killed between giving it its name and taking this one away: it is a finished file, not to be written into.
      removeIfExists(partial);
    }
    file.close();
    if (performance.now() >= deadline) {
      throw new TelemetryError(
        "locked",
        `another process is writing ${partial}${wait ? ` for ${timeoutMs / 1000} s already` : ""}`,
        {
          hint: "wait for it to end, or end it, and run this again",
        },
      );
    }
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10);
  }
}

/**
 * As {@linkcode claimPartial}, for SQLite to write into: with the rights of another file, no more, since others may not
 * be meant to read what will be in it.
 *
 * @param partial its path
 * @param model the file whose rights it gets
 * @param wait whether to wait for another process that writes it
 */
export function claimForSqlite(partial: string, model: string, wait: boolean = true): Deno.FsFile {
  const claim = claimPartial(partial, wait);
  // On Windows locks are mandatory: SQLite could not write past ours.
  if (Deno.build.os === "windows") claim.unlockSync();
  // Its owner must be able to write it, though the other file may have been protected.
  else Deno.chmodSync(partial, Deno.statSync(model).mode! & 0o777 | 0o600);
  return claim;
}

/** How much is written between two syncs of {@linkcode EarlySync}, in bytes, and how many there are at most. */
const SYNC_BYTES = 16 * 1024 * 1024;
const MAX_SYNCS = 16;

/**
 * Has a partial go to the disk while SQLite still writes it: else all of it would be waited for at the end. SQLite holds
 * the thread meanwhile, so that each sync needs an open file of its own to begin at once. That it fails is left to the
 * sync at the end to say, of a file that was open before: one that is opened later is not told any more.
 */
export class EarlySync implements AsyncDisposable {
  readonly #partial: string;
  readonly #syncs: { file: Deno.FsFile; done: Promise<void> }[] = [];
  #synced = 0;

  constructor(partial: string) {
    this.#partial = partial;
  }

  /** Takes note of how many bytes are written, of how many. */
  wrote(bytes: number, total: number): void {
    if (bytes - this.#synced < Math.max(SYNC_BYTES, total / MAX_SYNCS)) return;
    this.#synced = bytes;
    try {
      const file = Deno.openSync(this.#partial, { read: true, write: true });
      this.#syncs.push({ file, done: file.syncData().catch(() => {}) });
    } catch { /* then it is waited for at the end */ }
  }

  /**
   * Waits for what was begun. Not before SQLite is done: its locks on a file are gone when any file of the process on it
   * is closed (SQLite's "How To Corrupt An SQLite Database File").
   */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const { file, done } of this.#syncs) {
      await done;
      file.close();
    }
  }
}

/**
 * Removes the partials that killed processes left in a folder, with what SQLite keeps beside them.
 *
 * @param folder where
 * @param isOurs whether a name, without `.partial`, is of the kind that may be removed
 */
export function removeStalePartials(folder: string, isOurs: (name: string) => boolean): void {
  for (const { name } of Deno.readDirSync(folder)) {
    if (!name.endsWith(".partial") || !isOurs(name.slice(0, -".partial".length))) continue;
    const path = pathIn(folder, name);
    try {
      using file = Deno.openSync(path, { read: true, write: true });
      if (!file.tryLockSync(true) || !statIfSameFile(file, path)) continue;
      removePartial(path);
    } catch { /* another user's, or just named: not ours to remove */ }
  }
}

/** What an open file is, if it still is the one at a path; else undefined. */
export function statIfSameFile(file: Deno.FsFile, path: string): Deno.FileInfo | undefined {
  const open = file.statSync();
  const there = statIfExists(path);
  return there?.ino === open.ino && there?.dev === open.dev ? open : undefined;
}

/** Removes a partial, with what SQLite keeps beside it. */
export function removePartial(partial: string): void {
  for (const path of [...Object.values(sidecarsOf(partial)), partial]) removeIfExists(path);
}

/** Removes a file that nobody needs. Where that fails, it stays. */
export function removeIfExists(path: string): void {
  try {
    Deno.removeSync(path);
  } catch { /* it was not there, or cannot be removed */ }
}
