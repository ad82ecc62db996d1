/**
 * Files that are complete or absent: written under another name, synced, then published.
 * @module
 */
import { fileError, isInUse, TelemetryError } from "../errors.ts";
import { folderOf, lockOf, partialOf, pathIn, sidecarsOf } from "../layout.ts";
import { isGranted, isSameFile, pathExists, statIfExists } from "./locate.ts";
import { sleepSync } from "./wait.ts";

/** System errors of file systems that lack an operation, which is then skipped (CIFS, WSL, some NFS and FUSE). */
const UNSUPPORTED = ["EINVAL", "ENOTSUP", "EOPNOTSUPP", "ENOSYS"];

/** Makes the names in a folder durable. Windows has no such operation, and needs none. */
export function syncFolder(folder: string): void {
  if (Deno.build.os === "windows") return;
  try {
    using handle = Deno.openSync(folder);
    handle.syncSync();
  } catch (error) {
    if (UNSUPPORTED.includes((error as { code?: string }).code ?? "")) return;
    throw fileError(error, `cannot sync ${folder}`);
  }
}

/**
 * Gives a file that root has created to the owner of `{base}`. Otherwise, when root's cron job creates today's log, the
 * agents cannot append to it. Does nothing for links, for other users, and on Windows.
 */
export function chownToOwnerOf(base: string, path: string): void {
  // Only root can do this, and only root has to.
  attempt(() => {
    const { uid, gid } = Deno.statSync(base);
    if (uid !== null && !Deno.lstatSync(path).isSymlink) Deno.chownSync(path, uid, gid);
  });
}

/** Creates a folder and its parents. Returns whether it had to be created. */
export function ensureFolder(base: string, folder: string): boolean {
  if (statIfExists(folder)?.isDirectory) return false;
  try {
    Deno.mkdirSync(folder, { recursive: true });
  } catch (error) {
    throw fileError(error, `cannot create the folder ${folder}`);
  }
  if (folder !== base) chownToOwnerOf(base, folder);
  // The parent of {base} may not be readable.
  const parent = folderOf(folder);
  if (isGranted({ name: "read", path: parent })) syncFolder(parent);
  return true;
}

/** Writes all bytes. A single write may be short. */
export function writeAll(to: { writeSync(bytes: Uint8Array): number }, bytes: Uint8Array): void {
  for (let written = 0; written < bytes.length;) written += to.writeSync(bytes.subarray(written));
}

/** The pause between two attempts to read a file or to lock it, in milliseconds. */
const RETRY_PAUSE_MS = 10;
/** How long a read is tried again while another process has locked the file (Windows), in milliseconds. */
const READ_TIMEOUT_MS = 10_000;

/** Reads until the buffer is full or the file ends. Returns the number of bytes. */
export function readFull(file: Deno.FsFile, bytes: Uint8Array): number {
  const deadline = performance.now() + READ_TIMEOUT_MS;
  for (let filled = 0;;) {
    try {
      const count = filled < bytes.length ? file.readSync(bytes.subarray(filled)) : null;
      if (count === null) return filled;
      filled += count;
    } catch (error) {
      if (!isInUse(error) || performance.now() > deadline) throw error;
      sleepSync(RETRY_PAUSE_MS);
    }
  }
}

/** How much is copied or compared at a time. */
export const COPY_BYTES: number = 1024 * 1024;

/** Appends the content of a file to an open one. */
export function copyContent(path: string, to: Deno.FsFile): void {
  using from = Deno.openSync(path);
  const buffer = new Uint8Array(COPY_BYTES);
  for (let count; (count = readFull(from, buffer)) > 0;) writeAll(to, buffer.subarray(0, count));
}

/** Does what may fail without harm. */
function attempt(work: () => void): void {
  try {
    work();
  } catch { /* it is not needed for a right result */ }
}

/** Removes a file. A file that cannot be removed stays. */
export function removeIfExists(path: string): void {
  attempt(() => Deno.removeSync(path));
}

/** Removes a database with its sidecars. */
export function removeDatabase(path: string): void {
  for (const file of [...Object.values(sidecarsOf(path)), path]) removeIfExists(file);
}

/** The stat of an open file, if it is still the file at its path. */
export function statIfSameFile(file: Deno.FsFile, path: string): Deno.FileInfo | undefined {
  const open = file.statSync();
  const found = statIfExists(path);
  if (!found || !isSameFile(found, open)) return undefined;
  // Windows gives a new file the birthtime of one of the same name that was just removed.
  const isExact = Number.isSafeInteger(open.ino);
  return isExact || found.mtime?.getTime() === open.mtime?.getTime() ? open : undefined;
}

/** How long to wait for another process that writes the same partial, in milliseconds. */
const CLAIM_TIMEOUT_MS = 10_000;

/** Options of {@linkcode PartialFile.claim}. */
export interface ClaimOptions {
  /** Whether to wait for another process that writes the same file, blocking this thread. @default true */
  wait?: boolean;
  /**
   * Whether SQLite writes it. Then the lock is on a file beside it: on Windows locks are mandatory, and elsewhere closing a
   * descriptor of a file drops the locks of SQLite. @default false
   */
  forSqlite?: boolean;
  /** The file whose access rights it gets: who may read the one may read the other. @default those of any new file */
  like?: string | undefined;
}

/** The partials that this process writes. */
const claimed = new Set<PartialFile>();

/** The partials that stay when this process ends now. */
export function unfinishedFiles(): string[] {
  return [...claimed].map(({ path }) => path).filter(pathExists);
}

/**
 * A file that is being written, under a temporary name. An exclusive lock excludes other processes and ends with this one,
 * so a partial without a lock was left by a process that was killed, and is used again.
 *
 * Disposing it removes the partial unless it was published. SQLite must have closed the file before.
 */
export class PartialFile implements Disposable {
  /** Whether the path may be another process's from now on. */
  #isReleased = false;

  /** @param lock the lock of a partial that SQLite writes; otherwise, `file` is locked itself */
  private constructor(
    readonly path: string,
    readonly file: Deno.FsFile,
    private readonly lock: Deno.FsFile | undefined,
  ) {
    claimed.add(this);
  }

  /**
   * Opens an empty partial that no other process writes.
   *
   * @throws {TelemetryError} `locked` when another process writes it for too long; `permission`, `disk_full`, `io`
   */
  static claim(path: string, { wait = true, forSqlite = false, like }: ClaimOptions = {}): PartialFile {
    const deadline = performance.now() + (wait ? CLAIM_TIMEOUT_MS : 0);
    for (;;) {
      const lock = forSqlite ? tryLock(lockOf(path)) : undefined;
      let file: Deno.FsFile | undefined;
      try {
        if (lock || !forSqlite) file = tryLock(path, like);
      } finally {
        if (lock && !file) removeLock(path, lock);
      }
      if (file && lock) {
        // SQLite would apply the hot journal of a killed process to the new content.
        Object.values(sidecarsOf(path)).forEach(removeIfExists);
        // Only on Windows would this lock hinder SQLite.
        attempt(() => file.unlockSync());
      }
      if (file) return new PartialFile(path, file, lock);
      if (performance.now() >= deadline) {
        throw new TelemetryError("locked", `another process is writing ${path}`, {
          hint: "wait until it ends, or stop it, then run this again",
        });
      }
      sleepSync(RETRY_PAUSE_MS);
    }
  }

  /** Makes the content durable. */
  sync(): void {
    try {
      this.file.syncSync();
    } catch (error) {
      throw fileError(error, `cannot sync ${this.path}`);
    }
  }

  /**
   * Gives the synced file the first of these names that is free, and the owner of `{base}`. Returns its path, or undefined
   * when all names are taken. When the name cannot be made durable, there is none: what fails leaves no file.
   */
  publish(base: string, paths: Iterable<string>): string | undefined {
    chownToOwnerOf(base, this.path);
    for (const path of paths) {
      if (!link(this.path, path)) continue;
      this.#isReleased = true;
      try {
        syncFolder(folderOf(path));
      } catch (error) {
        removeIfExists(path);
        throw error;
      }
      return path;
    }
    return undefined;
  }

  /** Replaces a file by the synced partial, which gets the owner of `{base}`. */
  replace(base: string, path: string): void {
    chownToOwnerOf(base, this.path);
    Deno.renameSync(this.path, path);
    this.#isReleased = true;
    syncFolder(folderOf(path));
  }

  /** Removes it unless it was published, and releases the lock. Disposing it twice does nothing. */
  [Symbol.dispose](): void {
    if (!claimed.delete(this)) return;
    // Other files have no sidecars, and Deno would ask for the permission to remove them.
    if (!this.#isReleased) (this.lock ? removeDatabase : removeIfExists)(this.path);
    this.file.close();
    if (this.lock) removeLock(this.path, this.lock);
  }
}

/**
 * Opens a file, locks it and empties it. Returns undefined when another process has it.
 *
 * @param like the file whose access rights it gets
 */
function tryLock(path: string, like?: string): Deno.FsFile | undefined {
  const isNew = !pathExists(path);
  const mode = like === undefined ? undefined : statIfExists(like)?.mode;
  // This process must be able to write it, also when the other file is read-only.
  const rights = typeof mode === "number" ? { mode: mode & 0o777 | 0o600 } : undefined;
  let file: Deno.FsFile | undefined;
  try {
    file = Deno.openSync(path, { read: true, write: true, create: true, ...rights });
    // The lock may be on a file that its former owner has published or removed in the meantime.
    const stat = file.tryLockSync(true) ? statIfSameFile(file, path) : undefined;
    if (stat && (stat.nlink ?? 1) === 1) {
      file.truncateSync(0);
      if (rights) attempt(() => Deno.chmodSync(path, rights.mode));
      return file;
    }
    // Its owner was killed between link and unlink, or could not unlink it: this is a second name of a finished file, which
    // must not be truncated.
    if (stat) removeIfExists(path);
    file.close();
    return undefined;
  } catch (error) {
    if (file && isNew) removeIfExists(path);
    file?.close();
    throw fileError(error, `cannot write ${path}`);
  }
}

/** Only the owner of a lock may remove its file, before it releases the lock: others look whether theirs is still there. */
function removeLock(partial: string, lock: Deno.FsFile): void {
  removeIfExists(lockOf(partial));
  lock.close();
}

/**
 * Gives a file another name without replacing a file: `rename` overwrites, so link, then unlink. Without hard links,
 * renames to a name that was free a moment ago. Returns false when the name is taken.
 */
function link(partial: string, path: string): boolean {
  try {
    Deno.linkSync(partial, path);
  } catch (error) {
    if (pathExists(path)) return false;
    try {
      Deno.renameSync(partial, path);
    } catch {
      throw fileError(error, `cannot create ${path}`);
    }
  }
  // On Windows this fails while another process has the file open. Then the next run removes it.
  removeIfExists(partial);
  return true;
}

/**
 * Writes a complete file or nothing, also when killed, when the disk is full, and when two processes do it concurrently.
 * The file gets the owner of `{base}`. Returns false when it exists and must not be replaced.
 */
export function writeFileAtomic(
  base: string,
  path: string,
  content: Uint8Array,
  options: ClaimOptions & { replace: boolean },
): boolean {
  // Without write access this must succeed, too, when there is nothing to do.
  if (!options.replace && pathExists(path)) return false;
  using file = PartialFile.claim(partialOf(path), options);
  try {
    writeAll(file.file, content);
    file.sync();
    if (!options.replace) return file.publish(base, [path]) !== undefined;
    file.replace(base, path);
    return true;
  } catch (error) {
    throw fileError(error, `cannot write ${path}`);
  }
}

/** Removes the partials that killed processes have left in a folder. `isOurs` gets a name without `.partial`. */
export function removeStalePartials(folder: string, isOurs: (name: string) => boolean): void {
  for (const { name } of [...Deno.readDirSync(folder)]) {
    const [, stem] = /^(.*)\.partial(?:\.lock|-wal|-shm|-journal)?$/s.exec(name) ?? [];
    if (stem === undefined || !isOurs(stem)) continue;
    try {
      PartialFile.claim(partialOf(pathIn(folder, stem)), { wait: false, forSqlite: true })[Symbol.dispose]();
    } catch { /* another process writes it, or it is another user's */ }
  }
}
