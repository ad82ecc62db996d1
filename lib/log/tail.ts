/** Reads the end of logs: the newest records, and new ones as they are written. @module */
import { setTimeout as pause } from "node:timers/promises";
import { fileError } from "../errors.ts";
import { readFull } from "../fs/atomic_file.ts";
import { Lines, type Scanned } from "./lines.ts";
import { isLive, logFiles, sizeOfLog, unreadableLogs } from "./read.ts";

/** How far back from the end of a log its last complete line is searched. */
const SEARCH_BYTES = 1024 * 1024;
const NEWLINE = 0x0a;

/** The records in the last `bytes` of a log that agents write, without the line in which these start. */
export function readTail(path: string, bytes: number): Scanned[] {
  const size = sizeOfLog(path);
  const start = Math.max(0, size - bytes);
  const content = readRange(path, start, size);
  const lines = new Lines(path);
  const found = lines.read(content.subarray(start === 0 ? 0 : content.indexOf(NEWLINE) + 1));
  return [...found, ...lines.end()];
}

/**
 * Yields what is appended to the logs of a folder from now on, until `signal` is aborted. Looks every `intervalMs`: the
 * notifications of file systems miss what other machines write. Logs that cannot be read now are left out.
 */
export async function* followLogs(raw: string, signal: AbortSignal, intervalMs = 250): AsyncGenerator<Scanned[], void> {
  const logs = new Map<string, { lines: Lines; position: number }>();
  const unreadable = new Set(unreadableLogs(logFiles(raw)));
  const files = () => logFiles(raw).filter((path) => isLive(path) && !unreadable.has(path));
  for (const path of files()) {
    const size = sizeOfLog(path);
    const start = Math.max(0, size - SEARCH_BYTES);
    const position = start + readRange(path, start, size).lastIndexOf(NEWLINE) + 1;
    logs.set(path, { lines: new Lines(path), position });
  }
  while (!signal.aborted) {
    for (const path of files()) {
      const log = logs.get(path) ?? { lines: new Lines(path), position: 0 };
      logs.set(path, log);
      const size = sizeOfLog(path);
      // A failed append is cut back: what it left of a line is read again.
      if (size < log.position) logs.set(path, { lines: new Lines(path), position: size });
      if (size <= log.position) continue;
      const bytes = readRange(path, log.position, Math.min(size, log.position + SEARCH_BYTES));
      log.position += bytes.length;
      yield log.lines.read(bytes);
    }
    await pause(intervalMs, undefined, { signal }).catch(() => {});
  }
}

/** Reads a part of a file. It may be shorter when the file is cut meanwhile. */
function readRange(path: string, from: number, to: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(to - from);
  try {
    using file = Deno.openSync(path);
    file.seekSync(from, Deno.SeekMode.Start);
    return bytes.subarray(0, readFull(file, bytes));
  } catch (error) {
    throw fileError(error, `cannot read ${path}`);
  }
}
