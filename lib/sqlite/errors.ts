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

/** The result codes of SQLite that a caller can act on (SQLite documentation, "Result and Error Codes"). */
const CODES: Record<number, ErrorCode> = {
  3: "permission",
  5: "locked",
  6: "locked",
  8: "permission",
  11: "damaged",
  13: "disk_full",
  14: "permission",
  19: "invalid_record",
  20: "invalid_record",
  26: "not_a_database",
  // SQLITE_IOERR_SHORT_READ: a page is beyond the end of the file, which is truncated.
  522: "damaged",
  // SQLITE_IOERR_SHMSIZE: the -shm file cannot grow. A full disk shows first like this in WAL mode.
  4874: "disk_full",
};

/** The same by text: the binding's `exec`, opening and `backup` throw errors without a code. */
const TEXTS: [RegExp, ErrorCode][] = [
  [/is locked/, "locked"],
  [/malformed/, "damaged"],
  [/not a database/, "not_a_database"],
  [/is full/, "disk_full"],
  [/readonly database|unable to open/, "permission"],
  [/constraint failed|cannot be bound|out of range|BigInt value is too large/, "invalid_record"],
];

const MEANINGS: Partial<Record<ErrorCode, string>> = {
  locked: "is locked by another process",
  damaged: "is damaged",
  not_a_database: "is not a SQLite database",
  permission: "cannot be opened",
};

const HINTS: Partial<Record<ErrorCode, string>> = {
  locked: "wait until the other program has finished, or stop it, then run this again",
  damaged: "run recover_database, which rebuilds the database from the log and from its readable data",
  not_a_database: "run recover_database, which keeps this file; if it belongs to another application, move it away",
  disk_full: "free space on that disk, then run this again",
  permission: "run this as the owner of the file, with write access to its folder",
  invalid_record: "check which constraint of the table it violates",
  io: "check the disk, then run this again",
};

/** Converts what the binding threw. */
export function sqliteError(thrown: unknown, path: string): TelemetryError {
  if (thrown instanceof TelemetryError) return thrown;
  const text = errorMessage(thrown);
  const errcode = (thrown as { errcode?: unknown }).errcode;
  const code: ErrorCode = thrown instanceof Deno.errors.NotCapable
    ? "permission"
    : typeof errcode === "number"
    ? CODES[errcode] ?? CODES[errcode & 0xff] ?? "io"
    : TEXTS.find(([pattern]) => pattern.test(text))?.[1] ?? "io";
  const meaning = MEANINGS[code];
  const isGeneric = isGenericCode(errcode) || errcode === undefined && code === "io" && !/I\/O error/.test(text);
  const message = meaning
    ? `${path} ${meaning} (${text})`
    : `${isGeneric ? "SQLite refused this: " : ""}${path}: ${text}`;
  const isForeign = /unknown function|no such (function|collation|module)/.test(text);
  const genericHint = isForeign
    ? "run recover_database --force, which leaves out what only another program can use"
    : undefined;
  return new TelemetryError(code, message, { cause: thrown, hint: isGeneric ? genericHint : HINTS[code] });
}

/** SQLITE_ERROR: not the disk, but something in the schema or the data that this SQLite does not accept. */
function isGenericCode(errcode: unknown): boolean {
  return typeof errcode === "number" && (errcode & 0xff) === 1;
}

/** Whether this SQLite lacks something that the schema uses, such as a function or a collation of another program. */
export function isRefused(error: unknown): error is TelemetryError {
  return error instanceof TelemetryError && isGenericCode((error.cause as { errcode?: unknown } | undefined)?.errcode);
}
