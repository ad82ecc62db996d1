/**
 * Consistent copies of a live database, checked before they are published; and the copies that exist.
 * @module
 */
import { fileError } from "../errors.ts";
import { copyContent, ensureFolder, PartialFile, removeIfExists, removeStalePartials } from "../fs/atomic_file.ts";
import { isGranted, realPath, sizeOf, statIfExists } from "../fs/locate.ts";
import {
  type FileKind,
  fileName,
  type Layout,
  newPaths,
  parseFileName,
  partialOf,
  pathIn,
  sidecarsOf,
} from "../layout.ts";
import { Connection, damagedDatabase, type OnProgress } from "./connection.ts";

/** Options of {@linkcode takeSnapshot}. */
export interface SnapshotOptions {
  /** How the copy is checked. `none` is for a copy of a database that was just checked. @default "quick" */
  check?: "quick" | "full" | "none";
  /** Called with the number of pages that are copied, and of all pages. */
  onProgress?: OnProgress | undefined;
  /** Examines the copy before it is published. When it throws, nothing is left behind. */
  examine?: (copy: Connection) => void;
}

/**
 * Copies the database into a folder while agents write, under the first name of this kind that is free. A published copy is
 * complete, checked and durable. Removes partials that killed processes have left.
 */
export async function takeSnapshot(
  { base, database }: Layout,
  folder: string,
  kind: FileKind,
  { check = "quick", onProgress, examine }: SnapshotOptions = {},
): Promise<string> {
  ensureFolder(base, folder);
  removeStalePartials(folder, (name) => parseFileName(name)?.kind === kind);
  const partialPath = partialOf(pathIn(folder, fileName(kind, new Date())));
  using partial = PartialFile.claim(partialPath, { forSqlite: true, like: database });
  {
    using source = Connection.openToRead(database);
    await copyAndSync(source, partialPath, onProgress);
  }
  // A damaged database is copied without an error. The copy has the same pages, so its errors name the database.
  if (check !== "none" || examine) {
    using copy = Connection.open(partialPath, { shownAs: database });
    if (check !== "none") assertIntact(copy, database, check);
    examine?.(copy);
  }
  partial.sync();
  return partial.publish(base, newPaths(folder, kind))!;
}

/** Copies to a file that the disk writes meanwhile: SQLite syncs it at the end, and would wait for all of it. */
async function copyAndSync(source: Connection, path: string, onProgress: OnProgress = () => {}): Promise<void> {
  // Closed after the copy, because closing one drops SQLite's locks. A second sync of one file would not start: the copy
  // blocks the event loop.
  using opened = new DisposableStack();
  try {
    const due = Array.from({ length: 10 }, (_, i) => (i + 1) / 11).map((share) => ({
      share,
      file: opened.use(Deno.openSync(path, { write: true })),
    }));
    const syncs: Promise<unknown>[] = [];
    await source.copyTo(path, (done, total) => {
      const isDue = due.length > 0 && done / total >= due[0]!.share;
      if (isDue) syncs.push(due.shift()!.file.sync().catch((error) => error));
      onProgress(done, total);
    });
    const failure = (await Promise.all(syncs)).find(Boolean);
    if (failure) throw failure;
  } catch (error) {
    throw fileError(error, `cannot write ${path}`);
  }
}

/** Runs SQLite's check. `database` is the file that the error names. */
export function assertIntact(db: Connection, database: string, depth: "quick" | "full" = "quick"): void {
  const [problem] = db.check(depth);
  if (problem === undefined) return;
  throw damagedDatabase(`${database} is damaged (${problem}); nothing was changed`);
}

/** A file with a copy of the database. */
export interface DatabaseCopy {
  /** What the copy is for. */
  kind: FileKind;
  /** The name without the folder. */
  name: string;
  /** The path. */
  path: string;
  /** When it was created. */
  time: Date;
  /** When the file was last written, which decides between copies of the same second. */
  written: Date;
  /** Its size in bytes. */
  size: number;
}

/** The copies of these kinds in a folder, newest first. A file with several names is listed once, by the newest one. */
export function listCopies(folder: string, kinds: FileKind[]): DatabaseCopy[] {
  const found: (DatabaseCopy & { file: string })[] = [];
  try {
    for (const { name } of Deno.readDirSync(folder)) {
      const parsed = parseFileName(name);
      if (parsed === null || !kinds.includes(parsed.kind)) continue;
      const path = pathIn(folder, name);
      const stat = statIfExists(path);
      if (!stat?.isFile) continue;
      const { size, mtime, nlink, dev, ino } = stat;
      const written = mtime ?? parsed.time;
      const file = (nlink ?? 1) > 1 ? [dev, ino, size, written.getTime()].join() : name;
      found.push({ kind: parsed.kind, name, path, time: timeOf(name, parsed.time, written), written, size, file });
    }
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw fileError(error, `cannot list ${folder}`);
  }
  const newestFirst = found.sort((a, b) =>
    b.time.getTime() - a.time.getTime() || b.written.getTime() - a.written.getTime() || (a.name < b.name ? 1 : -1)
  );
  const files = new Set<string>();
  return newestFirst.flatMap(({ file, ...copy }) => files.size < files.add(file).size ? [copy] : []);
}

/** A name is in the future when it is later than this from now: when a name was taken, a copy gets that of a later second. */
export const SOON_MS = 60_000;
/** Local times of two places differ by at most this. */
const MAX_ZONE_MS = 26 * 3_600_000;

/**
 * When a copy was created: the time in its name. The file's own time counts in two cases only, since it changes when a file
 * is copied: where the name has no time of day, and where the name is in the future because it was given in another time
 * zone.
 */
function timeOf(name: string, named: Date, mtime: Date): Date {
  const written = new Date(Math.floor(mtime.getTime() / 1000) * 1000);
  const hasDayOnly = /\.\d{8}\.sqlite$/.test(name);
  if (hasDayOnly && written.toDateString() === named.toDateString()) return written;
  const isFuture = named.getTime() > Date.now() + SOON_MS;
  const isOtherZone = written.getTime() <= Date.now() && named.getTime() - written.getTime() <= MAX_ZONE_MS;
  return isFuture && isOtherZone ? written : named;
}

/**
 * A backup, as SQLite can open it. One that may only be read is copied into `db/` first: a read-only connection would leave
 * sidecars beside it.
 */
export class OpenableBackup implements Disposable {
  /** The file to open, links resolved: SQLite keeps sidecars beside the real file. */
  readonly path: string;
  readonly #copy: PartialFile | undefined;
  readonly #hasSidecars: boolean;

  constructor({ db }: Layout, named: string) {
    const path = realPath(named);
    this.#hasSidecars = Object.values(sidecarsOf(path)).some((sidecar) => (sizeOf(sidecar) ?? 0) > 0);
    // With sidecars it must be opened where it is.
    if (!this.#hasSidecars && !isWritable(path) && statIfExists(path)?.isFile) {
      // Backups are in another folder: here, a partial of this kind was left by a killed process.
      removeStalePartials(db, (name) => parseFileName(name)?.kind === "full_backup");
      const copy = partialOf(pathIn(db, fileName("full_backup", new Date())));
      this.#copy = PartialFile.claim(copy, { forSqlite: true, like: path });
      try {
        copyContent(path, this.#copy.file);
      } catch (error) {
        this.#copy[Symbol.dispose]();
        throw fileError(error, `cannot copy ${path}`);
      }
    }
    this.path = this.#copy?.path ?? path;
  }

  [Symbol.dispose](): void {
    this.#copy?.[Symbol.dispose]();
    if (!this.#copy && !this.#hasSidecars) removeEmptySidecars(this.path);
  }
}

function isWritable(path: string): boolean {
  if (!isGranted({ name: "write", path })) return false;
  try {
    Deno.openSync(path, { write: true }).close();
    return true;
  } catch {
    return false;
  }
}

/** Removes the sidecars that SQLite leaves beside a backup: of a read-only connection, and where the disk was full. */
export function removeEmptySidecars(path: string): void {
  const { wal, shm } = sidecarsOf(path);
  if ((sizeOf(wal) ?? 0) === 0) [wal, shm].forEach(removeIfExists);
}
