/**
 * Reads the logs in `raw/` as they are found: with half lines, glued records, runs of NUL bytes and damaged gzip.
 * No content of a log throws. What is not a record is returned as a {@linkcode Rejection}.
 * @module
 */
import { fileError } from "../errors.ts";
import { gunzip, readWithRetry } from "./gzip.ts";
import { pathIn } from "../layout.ts";
import { type Found, type LineOptions, Lines, type Scanned, type StartLine } from "./lines.ts";

/** How much of a file is read at a time. Each read waits for another thread. */
const READ_BYTES = 1024 * 1024;
/** How much is decoded at a time. Longer strings would cost a page fault for each page, and outlive their use. */
const CHUNK_BYTES = 64 * 1024;

export type { ReadProgress, Rejection, RejectionReason, Scanned, ScannedRecord, StartLine } from "./lines.ts";

/** Options of {@linkcode readLogs}. */
export interface ReadOptions extends LineOptions {
  /** How much of a file is read at a time, in bytes. @default 1_048_576 */
  readBytes?: number;
}

/**
 * The paths of all logs in a folder, oldest day first. Logs that logrotate has renamed (`.ndjson.2.gz`, `.ndjson-20251211`)
 * come before the log of the same name, oldest first, and a gzipped file before a plain one. A missing folder has no logs.
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
  const stems: [stem: string, age: number, path: string][] = [];
  try {
    for (const { name } of Deno.readDirSync(raw)) {
      const [, stem, count, date] = /^(.*)\.ndjson(?:\.(\d{1,5})|-(\d{8,14}))?(?:\.gz)?$/s.exec(name) ?? [];
      const path = pathIn(raw, name);
      if (stem !== undefined && mayBeFile(path)) {
        stems.push([stem, date ? 1e15 - Number(date) : Number(count ?? 0), path]);
      }
    }
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return [];
    throw fileError(error, `cannot list ${raw}`);
  }
  // The longer of two paths with the same stem is the gzipped one.
  stems.sort(([a, age, path], [b, otherAge, other]) =>
    a < b ? -1 : a > b ? 1 : otherAge - age || other.length - path.length
  );
  return stems.map(([, , path]) => path);
}

/** Whether a path is a file. A path that cannot be examined counts, so that the read reports it. */
function mayBeFile(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return true;
  }
}

/**
 * Yields the content of logs in order: every complete record, and everything else as rejections. Blank lines, runs of NUL
 * bytes and BOMs are neither. Python's `NaN` and `Infinity` become null.
 *
 * @param files paths of logs; those that end in `.gz` are inflated
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

/** As {@linkcode scan}, in one array for each chunk. With `only: "run"`, starts of runs are not parsed. */
export function readLogs(
  files: Iterable<string>,
  options?: ReadOptions & { only?: "event" },
): AsyncGenerator<Scanned[], void>;
export function readLogs(files: Iterable<string>, options: ReadOptions): AsyncGenerator<Found[], void>;
export async function* readLogs(files: Iterable<string>, options: ReadOptions = {}): AsyncGenerator<Found[], void> {
  for (const path of files) {
    const lines = new Lines(path, options);
    let chunks: AsyncGenerator<Uint8Array, boolean> | undefined;
    try {
      // Opening a pipe would wait for its other end.
      if (!(await Deno.stat(path)).isFile) throw new Error("not a file");
      using file = await Deno.open(path);
      chunks = path.endsWith(".gz") ? gunzip(file) : chunksOf(file, options.readBytes ?? READ_BYTES);
      let next = await chunks.next();
      for (; !next.done; next = await chunks.next()) {
        const found = lines.read(next.value);
        if (found.length > 0) yield found;
      }
      const found = next.value ? lines.end() : lines.endDamaged();
      if (found.length > 0) yield found;
    } catch (error) {
      yield lines.endUnreadable(error);
    } finally {
      await chunks?.return(true);
    }
  }
}

/** Parses a start that was not parsed when it was read. */
export function parseStartLine({ file, line, offset, text }: StartLine): Scanned[] {
  return new Lines(file, {}, { line, offset }).parse(text);
}

/** Reads a file to its end. Each chunk is overwritten by the next one. */
async function* chunksOf(file: Deno.FsFile, readBytes: number): AsyncGenerator<Uint8Array, boolean> {
  const buffer = new Uint8Array(readBytes);
  for (let count; (count = await readWithRetry(file, buffer)) !== null;) {
    for (let at = 0; at < count; at += CHUNK_BYTES) yield buffer.subarray(at, Math.min(at + CHUNK_BYTES, count));
  }
  return true;
}
