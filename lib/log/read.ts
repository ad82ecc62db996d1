/**
 * Reads the logs in `raw/` as they are found: with half lines, glued records, runs of NUL bytes and damaged gzip.
 * No content of a log throws. What is not a record is returned as a {@linkcode Rejection}.
 * @module
 */
import { fileError } from "../errors.ts";
import { readFull } from "../fs/atomic_file.ts";
import { realPath } from "../fs/locate.ts";
import { gunzip, readWithRetry } from "./gzip.ts";
import { fileNameOf, folderOf, pathIn } from "../layout.ts";
import { type LineOptions, Lines, type Scanned } from "./lines.ts";

/** How much of a file is read at a time. Each read waits for another thread. */
const READ_BYTES = 1024 * 1024;
/** How much is parsed at a time. Longer strings would cost a page fault for each page, and outlive their use. */
const CHUNK_BYTES = 64 * 1024;
/** How compressed files begin, in hexadecimal. Of these, only gzip is read: the zstd of Deno ends silently after one frame. */
const FORMATS: readonly [bytes: string, name: string][] = [
  ["1f8b", "gzip"],
  ["28b52ffd", "zstd"],
  ["fd377a58", "xz"],
  ["425a68", "bzip2"],
  ["504b0304", "zip"],
  ["377abcaf", "7z"],
  ["04224d18", "lz4"],
];

/** What a log begins with that is not compressed. */
const BRACE = 0x7b;

export type { ReadProgress, Rejection, RejectionReason, Scanned, ScannedRecord } from "./lines.ts";

/** Options of {@linkcode readLogs}. */
export interface ReadOptions<T extends string = never> extends LineOptions<T> {
  /** How much of a file is read at a time, in bytes. @default 1_048_576 */
  readBytes?: number;
}

/**
 * `NAME.ndjson`, and what logrotate, archivers and people make of it: `.ndjson.2.gz`, `.ndjson-20251211`, `.1.ndjson`,
 * `.ndjson.zst`, `.ndjson.bak`, `NAME (1).ndjson`, `events_20251210.gz`. Whoever renames a log must not lose its runs.
 */
const LOG_NAME =
  /^(.*?)(?:\.(\d{1,5})|-(\d[\d-]{7,20}))?\.ndjson(?![a-z\d])(?:\.(\d{1,5})|-(\d[\d-]{7,20}))?|^events_\d{8}(?!\d)/is;
/** The part of a name that is the same in all files of one log. */
const DAY = /events_\d{8}/;

/** Which log a file belongs to: that of a day, or of a name. */
function logOf(path: string): string {
  const name = fileNameOf(path);
  return DAY.exec(name)?.[0] ?? LOG_NAME.exec(name)?.[1] ?? name;
}

/**
 * The paths of all logs in a folder, oldest day first. Of one day, files that were rotated come first, oldest first, then
 * copies and gzipped files, then the file that agents write to. Files that the scan cannot read are listed, too, so that
 * it reports them. A missing folder has no logs.
 *
 * @param raw the folder
 * @throws {TelemetryError} `permission`, `in_the_way` or `io` when the folder cannot be listed
 *
 * @example
 * ```ts
 * import { logFiles } from "./read.ts";
 *
 * console.log(logFiles("/agent-metrics/raw")); // ["/agent-metrics/raw/events_20251210.ndjson", …]
 * ```
 */
export function logFiles(raw: string): string[] {
  const logs: { path: string; order: (string | number)[] }[] = [];
  try {
    for (const { name, isSymlink } of Deno.readDirSync(raw)) {
      const found = LOG_NAME.exec(name);
      const path = pathIn(raw, name);
      if (found === null || name.endsWith(".partial") || statIfReadable(path)?.isDirectory) continue;
      if (isSymlink && isLinkToLog(path, raw)) continue;
      const [, , count = found[4] ?? 0, date = found[5] ?? (found[1] === undefined ? "" : "~")] = found;
      // Copies and gzipped files have longer names; without ".ndjson", they come first.
      logs.push({ path, order: [logOf(path), date, -Number(count), -name.length, name] });
    }
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return [];
    throw fileError(error, `cannot list ${raw}`);
  }
  return logs.sort((a, b) => compare(a.order, b.order)).map(({ path }) => path);
}

function compare(a: (string | number)[], b: (string | number)[]): number {
  const i = a.findIndex((part, i) => part !== b[i]);
  return i < 0 ? 0 : a[i]! < b[i]! ? -1 : 1;
}

/** Whether agents may append to a log. The others are rotated, compressed or copied. */
export function isLive(path: string): boolean {
  return path.endsWith(".ndjson");
}

/** The size of a log in bytes; 0 when it cannot be examined, which the scan reports. */
export function sizeOfLog(path: string): number {
  return statIfReadable(path)?.size ?? 0;
}

function statIfReadable(path: string): Deno.FileInfo | undefined {
  try {
    return Deno.statSync(path);
  } catch {
    return undefined;
  }
}

/** Whether a link leads to another log of the folder, as `latest.ndjson` may: that one is listed itself. */
function isLinkToLog(path: string, raw: string): boolean {
  const target = realPath(path);
  const [name, log] = [fileNameOf(path), fileNameOf(target)];
  // A broken link is its own target.
  return folderOf(target) === realPath(raw) && log !== name && LOG_NAME.test(log);
}

/**
 * Yields the content of logs in order: every complete record, and everything else as rejections. Blank lines, runs of NUL
 * bytes and BOMs are neither. Python's `NaN` and `Infinity` become null. An event that is in several files of one log, as
 * in a plain and a gzipped copy, comes once.
 *
 * @param files paths of logs; those that are gzipped are inflated
 *
 * @example
 * ```ts
 * import { logFiles, scan } from "./read.ts";
 *
 * for await (const found of scan(logFiles("/agent-metrics/raw"))) {
 *   if ("rejected" in found) console.warn(`${found.file}:${found.line}: ${found.rejected}`);
 *   else console.log(found.record.run_id);
 * }
 * ```
 */
export async function* scan(files: Iterable<string>): AsyncGenerator<Scanned, void> {
  for await (const batch of readLogs(files)) yield* batch;
}

/** As {@linkcode scan}, in one array for each chunk. */
export async function* readLogs<T extends string = never>(
  files: Iterable<string>,
  options: ReadOptions<T> = {},
): AsyncGenerator<(Scanned | T)[], void> {
  const paths = [...files];
  const logs = paths.map(logOf);
  let copies: Copies | undefined;
  for (const [i, path] of paths.entries()) {
    // Imported here, because it takes time that agents at their start do not have.
    if (logs[i] !== logs[i - 1]) {
      copies = logs[i] === logs[i + 1] ? new Copies((await import("node:crypto")).hash) : undefined;
    }
    // Copies are compared as records.
    for await (const batch of readLog(path, copies ? { ...options, convert: undefined } : options)) {
      const found = copies ? batch.filter((item) => copies!.isNew(item)) : batch;
      if (found.length > 0) yield found;
    }
    copies?.endFile();
  }
}

async function* readLog<T extends string>(
  path: string,
  options: ReadOptions<T>,
): AsyncGenerator<(Scanned | T)[], void> {
  const lines = new Lines(path, options);
  let chunks: AsyncGenerator<Uint8Array, boolean> | undefined;
  try {
    assertFile(path);
    using file = await Deno.open(path);
    chunks = chunksOf(file, options.readBytes ?? READ_BYTES);
    let next = await chunks.next();
    if (!next.done && isGzip(next.value, path)) next = await (chunks = gunzip(file)).next();
    for (; !next.done; next = await chunks.next()) yield lines.read(next.value);
    yield next.value ? lines.end() : lines.endDamaged();
  } catch (error) {
    yield lines.endUnreadable(error);
  } finally {
    await chunks?.return(true);
  }
}

/**
 * Recognizes what was in another file of the same log. Two equal events in one file are two: what counts is how often each
 * file has it. Holds a hash of each event, where a log has several files.
 */
class Copies {
  #before = new Map<string, number>();
  #now = new Map<string, number>();

  constructor(private readonly hash: (algorithm: "md5", text: string) => string) {}

  isNew(found: Scanned | string): boolean {
    if (typeof found === "string" || "rejected" in found || found.record.record_type === "run") return true;
    const key = this.hash("md5", JSON.stringify(found.record));
    const count = (this.#now.get(key) ?? 0) + 1;
    this.#now.set(key, count);
    return count > (this.#before.get(key) ?? 0);
  }

  endFile(): void {
    for (const [key, count] of this.#now) this.#before.set(key, Math.max(count, this.#before.get(key) ?? 0));
    this.#now.clear();
  }
}

/** Opening a pipe would wait for its other end, and a device may have no end. */
function assertFile(path: string): void {
  if (!Deno.statSync(path).isFile) throw new Error("not a file");
}

/**
 * Whether the content of a file is gzip, perhaps damaged. Throws for other compression. A browser that downloads `NAME.gz`
 * may decompress it and keep the name.
 */
function isGzip(content: Uint8Array, path: string): boolean {
  const start = content.subarray(0, 4).toHex();
  const format = FORMATS.find(([bytes]) => start.startsWith(bytes))?.[1];
  if (format === undefined) return /\.gz$/i.test(path) && content[0] !== BRACE;
  if (format === "gzip") return true;
  throw new Error(`it is compressed with ${format}: decompress it`);
}

/** Those that cannot be read: pipes and devices, without permission, or with other compression. */
export function unreadableLogs(files: Iterable<string>): string[] {
  return [...files].filter((path) => {
    try {
      assertFile(path);
      using file = Deno.openSync(path);
      const start = new Uint8Array(4);
      readFull(file, start);
      isGzip(start, path);
      return false;
    } catch {
      return true;
    }
  });
}

/** Reads a file to its end. Each chunk is overwritten by the next one. */
async function* chunksOf(file: Deno.FsFile, readBytes: number): AsyncGenerator<Uint8Array, boolean> {
  const buffer = new Uint8Array(readBytes);
  for (let count; (count = await readWithRetry(file, buffer)) !== null;) {
    for (let at = 0; at < count; at += CHUNK_BYTES) yield buffer.subarray(at, Math.min(at + CHUNK_BYTES, count));
  }
  return true;
}
