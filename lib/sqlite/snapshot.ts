/**
 * One consistent copy of a live database, proven before it gets its name; and the copies that are there.
 * @module
 */
import { ensureFolder, PartialFile, removeStalePartials } from "../fs/atomic_file.ts";
import { errorMessage, fileError, TelemetryError } from "../errors.ts";
import { type FileKind, fileNames, type Layout, parseFileName, partialOf, pathIn } from "../layout.ts";
import { statIfExists } from "../fs/locate.ts";
import { Connection, damagedDatabase, type OnProgress } from "./connection.ts";

/** How {@linkcode takeSnapshot} goes about it. */
export interface SnapshotOptions {
  /** What SQLite's own check looks at. @default "quick" */
  depth?: "quick" | "full";
  /** Told how many pages are copied, of how many. */
  onProgress?: OnProgress | undefined;
  /** Looks at the copy before it gets its name; what it throws leaves nothing behind. */
  examine?: (copy: Connection) => void;
}

/**
 * Copies the database into a folder, under the contract's name for this kind of copy, or the next that is free.
 * Agents go on writing. What has a name is whole, has passed SQLite's check, and is on the disk; another file is never
 * replaced; what killed runs of the same kind have left half done is removed.
 *
 * @param layout whose database
 * @param folder where the copy goes; it is made if need be
 * @param kind what the copy is for
 * @param options how
 * @returns the copy's path
 * @throws {TelemetryError} `damaged`, `disk_full`, `permission` …: then there is no copy
 */
export async function takeSnapshot(
  { base, database }: Layout,
  folder: string,
  kind: FileKind,
  options: SnapshotOptions = {},
): Promise<string> {
  ensureFolder(base, folder);
  removeStalePartials(folder, (name) => parseFileName(name)?.kind === kind);
  const names = fileNames(kind, new Date());
  using partial = PartialFile.claimDatabase(partialOf(pathIn(folder, names.next().value)), database, { base });
  await copySound(database, partial.path, options);
  for (const name of fileNames(kind, new Date())) {
    if (partial.publish(pathIn(folder, name))) return pathIn(folder, name);
  }
  throw new TelemetryError("io", `no name is left for a copy in ${folder}`);
}

/** A damaged database is copied without complaint: checking the copy, which is the same page by page, tells of both. */
async function copySound(database: string, partial: string, options: SnapshotOptions): Promise<void> {
  using source = Connection.openToRead(database);
  await source.copyTo(partial, options.onProgress);
  using copy = Connection.open(partial);
  assertIntact(copy, database, options.depth);
  try {
    options.examine?.(copy);
  } catch (error) {
    // What is wrong with the copy is wrong with the database.
    if (!(error instanceof TelemetryError)) throw error;
    const message = error.message.replaceAll(partial, database);
    throw new TelemetryError(error.code, message, { hint: error.hint, cause: error });
  }
}

/**
 * Sees that SQLite's own check passes.
 *
 * @param db what is checked
 * @param database the file that the error names
 * @throws {TelemetryError} `damaged`
 */
export function assertIntact(db: Connection, database: string, depth: "quick" | "full" = "quick"): void {
  const [problem] = db.check(depth);
  if (problem === undefined) return;
  throw damagedDatabase(`${database} is damaged (${errorMessage(problem)}): nothing was changed`);
}

/** A file that holds a copy of the database. */
export interface DatabaseCopy {
  /** What it was made for. */
  kind: FileKind;
  /** Its name. */
  name: string;
  /** Where it is. */
  path: string;
  /** The time in its name; the file's own time lies when it was copied. */
  time: Date;
  /** Its size in bytes. */
  size: number;
}

/**
 * The copies in a folder, newest first by the time in their names.
 *
 * @param kinds which ones
 */
export function listCopies(folder: string, kinds: FileKind[]): DatabaseCopy[] {
  const found: DatabaseCopy[] = [];
  try {
    for (const { name } of Deno.readDirSync(folder)) {
      const parsed = parseFileName(name);
      if (parsed === null || !kinds.includes(parsed.kind)) continue;
      const path = pathIn(folder, name);
      const stat = statIfExists(path);
      if (stat?.isFile) {
        found.push({ kind: parsed.kind, name, path, time: timeOf(name, parsed.time, stat), size: stat.size });
      }
    }
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw fileError(error, `cannot list ${folder}`);
  }
  return found.sort((a, b) => b.time.getTime() - a.time.getTime() || (a.name < b.name ? 1 : -1));
}

/**
 * The time in a name. A day's first backup has no hour in its name: that is its file's own time, as far as it is of that
 * day. For all others the file's time is not looked at, since it lies when the file was copied.
 */
function timeOf(name: string, time: Date, { mtime }: Deno.FileInfo): Date {
  const isOfThatDay = mtime !== null && /\.\d{8}\.sqlite$/.test(name) && mtime.toDateString() === time.toDateString();
  // In whole seconds, as all others have it.
  return isOfThatDay ? new Date(mtime.setMilliseconds(0)) : time;
}
