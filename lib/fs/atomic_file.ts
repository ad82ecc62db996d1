/**
 * Files that are complete or do not exist: written under another name, synced, then published.
 * @module
 */
import { fileError, TelemetryError } from "../errors.ts";
import { folderOf, partialOf, pathIn, sidecarsOf } from "../layout.ts";
import { isGranted, statIfExists } from "./locate.ts";

/** How long to wait for another process that writes the same partial, in milliseconds. */
const CLAIM_TIMEOUT_MS = 10_000;

/** Options of {@linkcode PartialFile.claim}. */
export interface ClaimOptions {
  /** The owner of this folder gets the file. By default the file keeps the owner of this process. */
  base?: string | undefined;
  /** Whether to wait, and block the thread, while another process writes the same partial. @default true */
  wait?: boolean;
}

/**
 * A file that is being written, and that appears under its name only when it is complete. This process holds an exclusive
 * lock on it. The lock ends with the process, so that the next one reuses the partial of a killed one.
 *
 * Disposing it deletes what was not published.
 */
export class PartialFile implements Disposable {
  /** Where it is until it is published. */
  readonly path: string;
  readonly #file: Deno.FsFile;
  readonly #base: string | undefined;
  readonly #isDatabase: boolean;
  #state: "open" | "closed" | "published" = "open";

  private constructor(path: string, file: Deno.FsFile, base: string | undefined, isDatabase: boolean) {
    this.path = path;
    this.#file = file;
    this.#base = base;
    this.#isDatabase = isDatabase;
  }

  /**
   * Creates an empty partial, or empties the one that a killed process left.
   *
   * @throws {TelemetryError} `locked` when another process writes it for too long, or what the operating system refuses
   */
  static claim(path: string, options: ClaimOptions = {}): PartialFile {
    return new PartialFile(path, claimEmpty(path, options.wait ?? true), options.base, false);
  }

  /** The same, for SQLite to write into. It gets the mode of another file: its content may be confidential. */
  static claimDatabase(path: string, model: string, options: ClaimOptions = {}): PartialFile {
    const partial = new PartialFile(path, claimEmpty(path, options.wait ?? true), options.base, true);
    try {
      // A killed process may have left a hot journal.
      for (const sidecar of Object.values(sidecarsOf(path))) removeIfExists(sidecar);
      // Locks are mandatory on Windows: SQLite could not write either.
      if (Deno.build.os === "windows") partial.#file.unlockSync();
      // The owner must be able to write it, even if the other file is read-only.
      else Deno.chmodSync(path, Deno.statSync(model).mode! & 0o777 | 0o600);
      return partial;
    } catch (error) {
      partial[Symbol.dispose]();
      throw fileError(error, `cannot write ${path}`);
    }
  }

  /** Writes some bytes, as `Deno.FsFile.write` does: perhaps not all of them. */
  write(bytes: Uint8Array): Promise<number> {
    return this.#file.write(bytes);
  }

  /** Writes all bytes. */
  writeSync(bytes: Uint8Array): void {
    try {
      writeAll(this.#file, bytes);
    } catch (error) {
      throw fileError(error, `cannot write ${this.path}`);
    }
  }

  /**
   * Syncs the file and gives it a name, but never replaces a file: it links, then unlinks, since `rename` overwrites. Where
   * the file system has no hard links, it renames to a name that was free a moment ago.
   *
   * @returns false when the name is taken; another one can be tried
   * @throws {TelemetryError} when the operating system refuses
   */
  publish(path: string): boolean {
    this.sync();
    try {
      Deno.linkSync(this.path, path);
      Deno.removeSync(this.path);
    } catch (error) {
      if (exists(path)) return false;
      try {
        Deno.renameSync(this.path, path);
      } catch {
        throw fileError(error, `cannot publish ${path}`);
      }
    }
    this.#finish(path);
    return true;
  }

  /**
   * Syncs the file and gives it a name; replaces the file that has it.
   *
   * @throws {TelemetryError} when the operating system refuses; the other file is then unchanged
   */
  replace(path: string): void {
    this.sync();
    try {
      Deno.renameSync(this.path, path);
    } catch (error) {
      throw fileError(error, `cannot replace ${path}`);
    }
    this.#finish(path);
  }

  /** Makes the content durable, and gives the file its owner. Publishing does this, too. */
  sync(): void {
    if (this.#state !== "open") return;
    try {
      // The descriptor that was open before the writes: one opened later misses an error that another sync has seen.
      this.#file.syncSync();
    } catch (error) {
      throw fileError(error, `cannot sync ${this.path}`);
    }
    if (this.#base !== undefined) chownToOwnerOf(this.#base, this.path);
    // There, an open file may not be renamed. Elsewhere it stays locked: a process that waits for the lock would empty it.
    if (this.#isDatabase && Deno.build.os === "windows") this.#close();
  }

  #finish(path: string): void {
    this.#close();
    this.#state = "published";
    syncFolder(folderOf(path));
  }

  #close(): void {
    if (this.#state === "open") this.#file.close();
    this.#state = "closed";
  }

  /** Deletes the file unless it is published, and closes it. */
  [Symbol.dispose](): void {
    if (this.#state === "published") return;
    if (this.#isDatabase) removeDatabase(this.path);
    else removeIfExists(this.path);
    this.#close();
    // A second call must not delete the partial of another process.
    this.#state = "published";
  }
}

function claimEmpty(path: string, wait: boolean): Deno.FsFile {
  const deadline = performance.now() + (wait ? CLAIM_TIMEOUT_MS : 0);
  for (;;) {
    let file: Deno.FsFile;
    try {
      file = Deno.openSync(path, { read: true, write: true, create: true });
    } catch (error) {
      throw fileError(error, `cannot write ${path}`);
    }
    // The former owner may have published or deleted the file that is locked here.
    const stat = file.tryLockSync(true) ? statIfSameFile(file, path) : undefined;
    if (stat) {
      if ((stat.nlink ?? 1) === 1) {
        file.truncateSync(0);
        return file;
      }
      // A process was killed between link and unlink: this is a second name of a published file. Never write into it.
      removeIfExists(path);
    }
    file.close();
    if (performance.now() >= deadline) {
      const waited = wait ? ` (waited ${CLAIM_TIMEOUT_MS / 1000} s)` : "";
      throw new TelemetryError("locked", `another process is writing ${path}${waited}`, {
        hint: "wait for it to end, or end it, then run this again",
      });
    }
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10);
  }
}

/** Options of {@linkcode writeFileAtomic}. */
export interface WriteFileOptions extends Omit<ClaimOptions, "base"> {
  /** Whether a file that exists is replaced. */
  replace: boolean;
}

/**
 * Writes a complete file or nothing, also when the process is killed, the disk is full, or two processes do it. The owner
 * of `base` gets the file.
 *
 * @returns false when the file exists and must not be replaced
 * @throws {TelemetryError} when the operating system refuses; the file that existed is then unchanged
 */
export function writeFileAtomic(base: string, path: string, content: Uint8Array, options: WriteFileOptions): boolean {
  const { replace, ...claim } = options;
  const isTaken = () => !replace && exists(path);
  // Without write permission too: there is nothing to write.
  if (isTaken() && !exists(partialOf(path))) return false;
  using partial = PartialFile.claim(partialOf(path), { base, ...claim });
  if (isTaken()) return false;
  partial.writeSync(content);
  if (!replace) return partial.publish(path);
  partial.replace(path);
  return true;
}

/** Deletes the partials that killed processes left in a folder, with their sidecars. `isOurs` gets each name without `.partial`. */
export function removeStalePartials(folder: string, isOurs: (name: string) => boolean): void {
  for (const { name } of Deno.readDirSync(folder)) {
    if (!name.endsWith(".partial") || !isOurs(name.slice(0, -".partial".length))) continue;
    const path = pathIn(folder, name);
    try {
      using file = Deno.openSync(path, { read: true, write: true });
      if (file.tryLockSync(true) && statIfSameFile(file, path)) removeDatabase(path);
    } catch { /* it belongs to another user, or was just published */ }
  }
}

/** Creates a folder and its parents; the owner of `base` gets it. Returns whether it was created. */
export function ensureFolder(base: string, folder: string): boolean {
  const stat = statIfExists(folder);
  if (stat?.isDirectory) return false;
  if (stat !== undefined) {
    throw new TelemetryError("in_the_way", `${folder} is a file, but a folder is needed there`, {
      hint: "move that file away, then run this again",
    });
  }
  try {
    Deno.mkdirSync(folder, { recursive: true });
  } catch (failed) {
    throw fileError(failed, `cannot create the folder ${folder}`);
  }
  if (folder !== base) chownToOwnerOf(base, folder);
  // The parent of {base} is the user's. This process may have no permission to read it.
  const parent = folderOf(folder);
  if (isGranted({ name: "read", path: parent })) syncFolder(parent);
  return true;
}

/**
 * Gives a file that root has created to the owner of `base`: otherwise the agents cannot append to a log that root's cron
 * job has created. Does nothing for links, for other users, and on Windows.
 */
export function chownToOwnerOf(base: string, path: string): void {
  try {
    const owner = Deno.statSync(base);
    const created = Deno.lstatSync(path);
    if (created.isSymlink || owner.uid === null || (created.uid === owner.uid && created.gid === owner.gid)) return;
    Deno.chownSync(path, owner.uid, owner.gid);
  } catch { /* only root can change owners, and only root has to */ }
}

/** Makes the names in a folder durable (`fsync` of the folder). Windows does not need it. */
export function syncFolder(folder: string): void {
  if (Deno.build.os === "windows") return;
  try {
    using handle = Deno.openSync(folder);
    handle.syncSync();
  } catch (error) {
    throw fileError(error, `cannot sync ${folder}`);
  }
}

/** Whether anything exists at a path, also a dangling link. */
export function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw fileError(error, `cannot examine ${path}`);
  }
}

/** Writes all bytes: one call may write a part of them. */
export function writeAll(to: { writeSync(bytes: Uint8Array): number }, bytes: Uint8Array): void {
  for (let written = 0; written < bytes.length;) written += to.writeSync(bytes.subarray(written));
}

/** Fills a buffer from the current position. Returns how many bytes there were: fewer at the end of the file. */
export function fill(file: Deno.FsFile, bytes: Uint8Array): number {
  let filled = 0;
  for (let count; filled < bytes.length && (count = file.readSync(bytes.subarray(filled))) !== null;) filled += count;
  return filled;
}

/** The status of an open file if it is still the file at a path; otherwise undefined. */
export function statIfSameFile(file: Deno.FsFile, path: string): Deno.FileInfo | undefined {
  const open = file.statSync();
  const there = statIfExists(path);
  return there?.ino === open.ino && there?.dev === open.dev ? open : undefined;
}

/** Deletes a database that nobody needs, with its sidecars. What cannot be deleted stays. */
export function removeDatabase(path: string): void {
  for (const file of [...Object.values(sidecarsOf(path)), path]) removeIfExists(file);
}

/** Deletes a file that nobody needs. What cannot be deleted stays. */
export function removeIfExists(path: string): void {
  try {
    Deno.removeSync(path);
  } catch { /* it does not exist, or cannot be deleted */ }
}
