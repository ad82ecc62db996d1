/**
 * Exports tables as CSV, as one consistent snapshot, with filters on rows and columns.
 * @module
 */
import { isUtf8 } from "node:buffer";
import { fileError, hasCode, TelemetryError } from "../errors.ts";
import { ensureFolder, PartialFile, removeStalePartials } from "../fs/atomic_file.ts";
import { isFolder, isGranted, pathExists, realPath, statIfExists } from "../fs/locate.ts";
import { folderOf, isInFolder, type Layout, newPaths, parseFileName, partialOf } from "../layout.ts";
import { sourceOf } from "../log/json_source.ts";
import { logFiles, readLogs, sizeOfLog } from "../log/read.ts";
import type { OnProgress } from "../sqlite/connection.ts";
import { type Cell, type CellCounts, CsvText, noCounts, type RowFitter } from "./csv.ts";
import { postgresRows } from "./postgres.ts";
import { checkRequest, type ExportRequest, type ExportTable, rowFilter, TABLES } from "./request.ts";
import { spreadsheetRows } from "./spreadsheet.ts";
import { type JsonRows, parseRows, tableRows } from "./table_rows.ts";

/** What was exported. */
export interface Exported extends CellCounts {
  /** The table. */
  table: ExportTable;
  /** The columns. */
  columns: readonly string[];
  /** How many bytes were written. */
  bytes: number;
  /** How many rows were left out because their time cannot be parsed. */
  untimed_rows: number;
  /** How many parts of the log are not records. */
  rejected_lines: number;
  /** The logs that cannot be read, or not to their end. Their events are missing. */
  unreadable_logs: string[];
}

/** A destination: an open file, or `Deno.stdout`. */
export interface ByteSink {
  /** Writes some of the bytes, and returns how many. */
  write(bytes: Uint8Array): Promise<number>;
}

/**
 * Exports to an open file or to stdout. A reader that closes its pipe ends the export without an error.
 *
 * @param layout from `locate()`
 * @param request what to export
 * @param to the destination
 * @param name the name of the destination in errors
 * @param onProgress called with the bytes that are written, and an estimate of all bytes
 * @throws {TelemetryError} `usage`, `no_storage`, `damaged`, `disk_full` …
 *
 * @example
 * ```ts no-eval
 * import { locate } from "../fs/locate.ts";
 * import { exportTo } from "./export.ts";
 *
 * await exportTo(locate(), { table: "runs", columns: ["run_id", "status"] }, Deno.stdout, "stdout");
 * ```
 */
export async function exportTo(
  layout: Layout,
  request: ExportRequest,
  to: ByteSink,
  name: string,
  onProgress?: OnProgress,
): Promise<Exported> {
  const { table, columns, program } = checkRequest(request);
  const none = { bytes: 0, untimed_rows: 0, rejected_lines: 0, unreadable_logs: [] };
  const exported: Exported = { table, columns, ...noCounts(), ...none };
  const csv = new CsvText(columns, exported, fitterFor(request, exported));
  const filter = rowFilter(request, exported);
  const isPlain = filter.columns.length === 0 && program === undefined;
  const linesOf = (batch: JsonRows) => {
    const isValid = isUtf8(batch.json);
    if (isPlain && isValid && !batch.hasEscapes) return csv.jsonLines(batch.json, batch.count);
    const rows = parseRows(batch.json).filter(filter.keeps);
    if (!isValid) exported.changed_cells += countReplaced(rows, columns.length);
    return csv.lines(rows);
  };
  let isStarted = false;
  const write = async (lines: Uint8Array) => {
    // The header comes with the first rows, so that nothing is written when reading fails.
    isStarted ||= await writeAll(to, name, csv.header(), exported);
    return isStarted && await writeAll(to, name, lines, exported);
  };
  const read = [...columns, ...filter.columns];
  const batches = table === "events"
    ? eventRows(layout.raw, read, exported)
    : tableRows(layout.database, TABLES[table], read);
  for await (const batch of batches) {
    if (!await write(linesOf(batch))) return exported;
    onProgress?.(exported.bytes, exported.bytes / batch.share);
  }
  await write(new Uint8Array(0));
  return exported;
}

function fitterFor({ program, table, columns }: ExportRequest, counts: CellCounts): RowFitter | undefined {
  if (program === "postgres") return postgresRows(TABLES[table].table, columns, counts);
  return program && spreadsheetRows(program, columns, counts);
}

/** Writes and counts all bytes. Returns false when the reader has closed the pipe. */
async function writeAll(to: ByteSink, name: string, bytes: Uint8Array, exported: Exported): Promise<boolean> {
  try {
    for (let written = 0; written < bytes.length;) written += await to.write(bytes.subarray(written));
  } catch (error) {
    if (error instanceof Deno.errors.BrokenPipe) return false;
    throw fileError(error, `cannot write ${name}`);
  }
  exported.bytes += bytes.length;
  return true;
}

/** How many cells have the character that replaces bytes which are not UTF-8. */
function countReplaced(rows: Cell[][], width: number): number {
  return rows.flatMap((row) => row.slice(0, width)).filter((cell) => String(cell).includes("\ufffd")).length;
}

/** A JSON string without `\u`, which {@linkcode CsvText.jsonLines} cannot convert. */
const TEXT = String.raw`("[^"\\\0-\x1f]*(?:\\["\\/bfnrt][^"\\\0-\x1f]*)*")`;
/** The columns of text, in the order of the groups. */
const TEXTS = ["run_id", "event_type", "timestamp", "payload_json"];
/** An event as both clients write it, the Python client with blanks. A match takes a fifth of the time of parsing. */
const PLAIN_EVENT = new RegExp(
  String.raw`\{${
    [
      ...["run_id", "event_type", "timestamp"].map((name) => `"${name}": ?${TEXT}`),
      `"payload_json": ?(?:${TEXT}|null)`,
      '"id": ?null',
      '"record_type": ?"event"',
    ].join(", ?")
  }\}\r?\n`,
  "y",
);
/** The characters of the longest line that is matched: the match of an endless one could take too much memory. */
const MAX_PLAIN = 64 * 1024;

/** The events of all logs, in the order of the log. */
async function* eventRows(raw: string, columns: string[], exported: Exported): AsyncGenerator<JsonRows, void> {
  if (!isFolder(raw)) {
    throw new TelemetryError("no_storage", `the folder ${raw} does not exist`, {
      hint: "run setup_storage, which creates it",
    });
  }
  const files = logFiles(raw);
  const total = files.reduce((sum, path) => sum + sizeOfLog(path), 0);
  const progress = { files: 0, lines: 0, bytes: 0 };
  const groups = columns.map((column) => TEXTS.indexOf(column) + 1);
  const convert = (text: string, start: number, end: number) => {
    PLAIN_EVENT.lastIndex = start;
    const event = end - start < MAX_PLAIN ? PLAIN_EVENT.exec(text) : null;
    return event ? `[${groups.map((group) => group > 0 && event[group] || "null")}]` : undefined;
  };
  for await (const batch of readLogs(files, { only: "event", progress, convert })) {
    const rows: string[] = [];
    let hasEscapes = false;
    for (const found of batch) {
      if (typeof found === "string") rows.push(found);
      else if ("record" in found) {
        if (found.record.record_type !== "event") continue;
        const json = JSON.stringify(columns.map((column) => cellOf(found.record, column)));
        hasEscapes ||= json.includes("\\u");
        rows.push(json);
      } else if (found.rejected === "cannot be read") exported.unreadable_logs.push(found.file);
      else exported.rejected_lines++;
    }
    const json = new TextEncoder().encode(rows.join(","));
    yield { json, count: rows.length, hasEscapes, share: Math.min(progress.bytes / total, 1) };
  }
}

/** The cell for a field of a line. Numbers keep their digits. Old lines have objects where today's have JSON text. */
function cellOf(record: object, column: string): Cell {
  const value = (record as Record<string, unknown>)[column];
  if (value === undefined || value === null) return null;
  if (typeof value === "string" || typeof value === "number" && Number.isSafeInteger(value)) return value;
  return sourceOf(record, column) ?? JSON.stringify(value);
}

/** Options of {@linkcode exportToFile}. */
export interface FileOptions {
  /** The file. @default one in `exports/`, with the table and the time in its name */
  path?: string | undefined;
  /** Whether an existing file is replaced. @default false */
  overwrite?: boolean;
  /** As for {@linkcode exportTo}. */
  onProgress?: OnProgress | undefined;
}

/**
 * Exports to a file, which is complete and durable, or absent.
 *
 * @param layout from `locate()`
 * @param request what to export
 * @param options where to
 * @throws {TelemetryError} `usage` when the file exists, `no_storage` when its folder does not, or as {@linkcode exportTo}
 *
 * @example
 * ```ts no-eval
 * import { locate } from "../fs/locate.ts";
 * import { exportToFile } from "./export.ts";
 *
 * const { path, rows } = await exportToFile(locate(), { table: "runs", columns: ["run_id", "status"] });
 * console.log(`${rows} rows in ${path}`);
 * ```
 */
export async function exportToFile(
  layout: Layout,
  request: ExportRequest,
  options: FileOptions = {},
): Promise<Exported & { path: string }> {
  const { path, overwrite = false, onProgress } = options;
  const { kind } = TABLES[checkRequest(request).table];
  if (path === undefined) {
    ensureFolder(layout.base, layout.exports);
    removeStalePartials(layout.exports, (name) => parseFileName(name)?.kind === kind);
  } else assertUsable(layout, path, overwrite);
  const paths = () => path === undefined ? newPaths(layout.exports, kind) : [path];
  // Who may not read the source may not read its copy.
  using partial = claimFirst(paths(), request.table === "events" ? logFiles(layout.raw).at(-1) : layout.database);
  const exported = await exportTo(layout, request, partial.file, partial.path, onProgress);
  partial.sync();
  if (path !== undefined && overwrite) {
    partial.replace(layout.base, path);
    return { ...exported, path };
  }
  const published = partial.publish(layout.base, paths());
  if (published === undefined) throw isTaken(path!);
  return { ...exported, path: published };
}

/**
 * Checks a path that was given for a file: its folder exists, and it is free unless it may be overwritten. A log, the database
 * or a backup may not.
 */
export function assertUsable({ raw, db, backups }: Layout, path: string, overwrite: boolean): void {
  const folder = folderOf(path);
  if (isGranted({ name: "read", path: folder }) && !statIfExists(folder)?.isDirectory) {
    throw new TelemetryError("no_storage", `the folder ${folder} does not exist`, {
      hint: "create it, or name another file",
    });
  }
  if (!pathExists(path)) return;
  if (!overwrite) throw isTaken(path);
  const isStored = [raw, db, backups].some((folder) => isInFolder(realPath(path), realPath(folder)));
  if (isStored && !/\.(csv|html|json|md)$/i.test(path)) {
    throw new TelemetryError("usage", `${path} belongs to the store, and is not replaced`, {
      hint: "name another file",
    });
  }
}

function isTaken(path: string): TelemetryError {
  return new TelemetryError("usage", `${path} exists already, and is not replaced`, {
    hint: "name another file, or add --overwrite",
  });
}

/** Claims the first of these files that no other process writes. */
function claimFirst(paths: Iterable<string>, like: string | undefined): PartialFile {
  let refusal: unknown;
  for (const path of paths) {
    try {
      return PartialFile.claim(partialOf(path), { wait: false, like });
    } catch (error) {
      // In `exports/`, another export began in the same second.
      if (!hasCode(error, "locked")) throw error;
      refusal = error;
    }
  }
  throw refusal;
}
