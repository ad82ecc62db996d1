/**
 * What SQLite throws, as errors with codes.
 * @module
 */
import { type ErrorCode, errorMessage, TelemetryError } from "../errors.ts";

/** The error for a database that does not exist. */
export function noDatabase(path: string): TelemetryError {
  return new TelemetryError("no_storage", `the database ${path} does not exist`, {
    hint: "if it is lost, run recover_database, which rebuilds it from the log; for a new one, run setup_database",
  });
}

/** The error for a folder at the path of the database. */
export function folderAtDatabasePath(path: string): TelemetryError {
  return new TelemetryError("in_the_way", `${path} is a folder, but the database belongs there`, {
    hint: "move that folder away, then run this again",
  });
}

/** The error for a damaged database. */
export function damagedDatabase(message: string): TelemetryError {
  return new TelemetryError("damaged", message, { hint: HINTS.damaged });
}

/**
 * The result codes of SQLite that a caller can act on (SQLite documentation, "Result and Error Codes"), the same by text,
 * since the binding's `exec`, opening and `backup` throw errors without a code, and what they mean.
 */
const KINDS: [code: ErrorCode, errcodes: number[], text: RegExp, meaning?: string][] = [
  ["locked", [5, 6], /is locked/, "is locked by another process"],
  // 522, SQLITE_IOERR_SHORT_READ: a page is beyond the end of the file, which is truncated.
  ["damaged", [11, 522], /malformed/, "is damaged"],
  ["not_a_database", [26], /not a database/, "is not a SQLite database"],
  // 4874, SQLITE_IOERR_SHMSIZE: the -shm file cannot grow. A full disk shows first like this in WAL mode.
  ["disk_full", [13, 4874], /is full/],
  ["permission", [3, 8, 14], /readonly database|unable to open|^Requires \w+ access/, "cannot be opened"],
  ["invalid_record", [18, 19, 20], /too big|constraint failed|cannot be bound|out of range|BigInt value is too large/],
  ["io", [10], /I\/O error/],
];

const HINTS: Partial<Record<ErrorCode, string>> = {
  locked: "wait until the other program has finished, or stop it, then run this again",
  damaged: "run recover_database, which rebuilds the database from the log and from its readable data",
  not_a_database: "run recover_database, which keeps this file; if it belongs to another application, move it away",
  disk_full: "free space on that disk, then run this again",
  permission: "run this as the owner of the file, with write access to its folder, where SQLite writes in WAL mode; " +
    "if the file system is read-only, use a copy of the store",
  invalid_record: "check which constraint of the table it violates",
  io: "check the disk, then run this again",
};

/** Converts what the binding threw. */
export function sqliteError(thrown: unknown, path: string): TelemetryError {
  if (thrown instanceof TelemetryError) return thrown;
  const text = errorMessage(thrown);
  const { errcode } = thrown as { errcode?: number };
  const find = (wanted?: number) =>
    KINDS.find(([, codes, pattern]) => wanted === undefined ? pattern.test(text) : codes.includes(wanted));
  const kind = find(errcode) ?? (errcode === undefined ? undefined : find(errcode & 0xff));
  if (kind !== undefined) {
    const [code, , , meaning] = kind;
    const message = meaning === undefined ? `${path}: ${text}` : `${path} ${meaning} (${text})`;
    return new TelemetryError(code, message, { cause: thrown, hint: HINTS[code] });
  }
  // Not the disk, but something in the schema or the data that this SQLite does not accept.
  const hint = /unknown function|no such (function|collation|module)/.test(text)
    ? "run recover_database --force, which leaves out what only another program can use"
    : "change what causes this in the schema of that database, then run this again";
  return new TelemetryError("io", `SQLite refused this: ${path}: ${text}`, { cause: thrown, hint });
}

/** Whether this SQLite lacks something that the schema uses, such as a function or a collation of another program. */
export function isRefused(error: unknown): error is TelemetryError {
  const errcode = error instanceof TelemetryError && (error.cause as { errcode?: unknown } | undefined)?.errcode;
  return typeof errcode === "number" && (errcode & 0xff) === 1;
}
