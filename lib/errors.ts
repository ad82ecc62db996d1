/** The error class of the toolkit, and its codes. @module */

/**
 * What went wrong. Compare this code, not the text of the message.
 *
 * - `usage`: a flag, argument or value is invalid.
 * - `permission`: Deno or the operating system denied access.
 * - `no_storage`: a folder or file of the store does not exist.
 * - `in_the_way`: a file exists where a folder is needed, or the reverse.
 * - `not_a_database`: the file is not a SQLite database, or has no telemetry tables.
 * - `empty_database`: the file has no content or no tables.
 * - `newer_schema`: a later product wrote the database (schema v4 or later).
 * - `older_schema`: `setup_database` must upgrade the database before runs can be written.
 * - `damaged`: SQLite reports that the file is malformed.
 * - `locked`: another process held a lock for longer than the timeout, or has the file open (Windows).
 * - `disk_full`: no space is left, or a quota is reached.
 * - `io`: any other error of the operating system.
 * - `invalid_record`: the log or the database cannot store this record.
 * - `queue_full`: too many records wait to be written.
 * - `closed`: used after `close()`.
 * - `api`: the web API did not accept a run.
 */
export type ErrorCode =
  | "usage"
  | "permission"
  | "no_storage"
  | "in_the_way"
  | "not_a_database"
  | "empty_database"
  | "newer_schema"
  | "older_schema"
  | "damaged"
  | "locked"
  | "disk_full"
  | "io"
  | "invalid_record"
  | "queue_full"
  | "closed"
  | "api";

/** Options of {@linkcode TelemetryError}. */
export interface TelemetryErrorOptions {
  /** One line that says what to do. */
  hint?: string | undefined;
  /** The error that caused this one. */
  cause?: unknown;
}

/**
 * An expected failure. `message` says in one line what is wrong, `hint` what to do about it.
 *
 * @example
 * ```ts
 * import { TelemetryError } from "./errors.ts";
 *
 * const error = new TelemetryError("locked", "telemetry.sqlite is locked", { hint: "stop the agents" });
 * console.log(error.code); // "locked"
 * ```
 */
export class TelemetryError extends Error {
  /** Always `TelemetryError`. */
  override readonly name = "TelemetryError";
  /** What went wrong. */
  readonly code: ErrorCode;
  /** What to do about it, if anything can be done. */
  readonly hint: string | undefined;

  /** Creates an error with a code, a message of one line and, optionally, a hint and a cause. */
  constructor(code: ErrorCode, message: string, options: TelemetryErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.hint = options.hint;
  }
}

/** Whether a thrown value is a {@linkcode TelemetryError} with one of these codes. */
export function hasCode(thrown: unknown, ...codes: ErrorCode[]): thrown is TelemetryError {
  return thrown instanceof TelemetryError && codes.includes(thrown.code);
}

/** The same error with another hint. Any other thrown value is returned as it is. */
export function withHint(thrown: unknown, hint: string): unknown {
  if (!(thrown instanceof TelemetryError)) return thrown;
  return new TelemetryError(thrown.code, thrown.message, { hint, cause: thrown.cause });
}

/** The same error with another message. Any other thrown value is returned as it is. */
export function withMessage(thrown: unknown, change: (message: string) => string): unknown {
  if (!(thrown instanceof TelemetryError)) return thrown;
  return new TelemetryError(thrown.code, change(thrown.message), { hint: thrown.hint, cause: thrown.cause });
}

/** The message of a thrown value, on one line. */
export function errorMessage(thrown: unknown): string {
  const text = thrown instanceof Error ? thrown.message || thrown.name : String(thrown);
  return text.replace(/\s*\n\s*/g, " ");
}

/** Refuses options that are not numbers, or negative. Throws `usage`. */
export function assertNonNegative(options: Record<string, number>): void {
  for (const [name, value] of Object.entries(options)) {
    if (typeof value === "number" && value >= 0) continue;
    throw new TelemetryError("usage", `${name} takes a number that is not negative, not ${String(value)}`, {
      hint: "correct the option, or leave it out",
    });
  }
}

/** Refuses options that are not times. Throws `usage`. */
export function assertTimes(options: Record<string, Date | null | undefined>): void {
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined || value === null || value instanceof Date && !isNaN(value.getTime())) continue;
    throw new TelemetryError("usage", `${name} takes a Date, not ${String(value)}`, {
      hint: "correct the option, or leave it out",
    });
  }
}

/** Converts what a `Deno.*` file function threw. `doing` starts the message: `cannot write /x/y`. */
export function fileError(thrown: unknown, doing: string): TelemetryError {
  if (thrown instanceof TelemetryError) return thrown;
  const { name = "", code: systemCode = "" } = (thrown ?? {}) as { name?: string; code?: string };
  const code = isInUse(thrown) ? "locked" : SYSTEM_CODES[systemCode] ?? DENO_ERRORS[name] ?? "io";
  const what = code === "locked" ? `it is in use by another program (${errorMessage(thrown)})` : errorMessage(thrown);
  return new TelemetryError(code, `${doing}: ${what}`, {
    cause: thrown,
    hint: systemCode === "EROFS" ? READ_ONLY_HINT : HINTS[code],
  });
}

/** Whether Windows denied access because another program has the file open (32) or a part of it locked (33). */
export function isInUse(thrown: unknown): boolean {
  return (thrown as { code?: unknown } | null)?.code === "EBUSY" && /\(os error 3[23]\)/.test(errorMessage(thrown));
}

const SYSTEM_CODES: Record<string, ErrorCode> = { ENOSPC: "disk_full", EDQUOT: "disk_full" };
const READ_ONLY_HINT = "that file system is read-only: mount it for writing, or use a copy of the store";

const DENO_ERRORS: Record<string, ErrorCode> = {
  NotCapable: "permission",
  PermissionDenied: "permission",
  AlreadyExists: "in_the_way",
  NotADirectory: "in_the_way",
  IsADirectory: "in_the_way",
  NotFound: "no_storage",
};

const HINTS: Partial<Record<ErrorCode, string>> = {
  disk_full: "free space on that disk, then run this again",
  in_the_way: "move away what is at that path, then run this again",
  permission: "run this as the owner of that folder, or change the owner of the folder",
  no_storage: "check the path, and where it leads if it is a link",
  io: "check the disk, then run this again",
  locked: "stop the agents, or the program that uses the file, then run this again",
};
