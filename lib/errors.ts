/** The one error class of the toolkit. @module */

/**
 * What went wrong, for programs. Callers compare codes and never match message text.
 *
 * - `usage`: a flag, argument or value that makes no sense.
 * - `permission`: Deno or the operating system refused access.
 * - `no_storage`: the folders of `{base}` are missing.
 * - `in_the_way`: a file stands where a folder is needed, or the other way round.
 * - `not_a_database`: the file is not SQLite, or not a telemetry database.
 * - `empty_database`: the file has no bytes or no tables.
 * - `newer_schema`: written by a later product (schema v4 and up).
 * - `older_schema`: an upgrade by `setup_database` is due before anything can be written.
 * - `damaged`: SQLite found the file malformed.
 * - `locked`: another process held a lock for longer than the timeouts.
 * - `disk_full`: no space left.
 * - `io`: any other failure of the operating system.
 * - `invalid_record`: the log or the database cannot carry this record.
 * - `queue_full`: too much is waiting to be written.
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

/** Extras of a {@linkcode TelemetryError}. */
export interface TelemetryErrorOptions {
  /** One line that says what to do about it. */
  hint?: string | undefined;
  /** The error underneath. */
  cause?: unknown;
}

/**
 * A failure that was foreseen: one line that says what (`message`), one that says what to do (`hint`).
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
  /** The class, for stack traces. */
  override readonly name = "TelemetryError";
  /** What went wrong, for programs. */
  readonly code: ErrorCode;
  /** One line that says what to do, when there is something to do. */
  readonly hint: string | undefined;

  /**
   * An error that says what, and what to do.
   *
   * @param code what went wrong, for programs
   * @param message one line for people
   * @param options hint and cause
   */
  constructor(code: ErrorCode, message: string, options: TelemetryErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.hint = options.hint;
  }
}

/** Whether something that was thrown is a foreseen failure with one of these codes. */
export function hasCode(thrown: unknown, ...codes: ErrorCode[]): thrown is TelemetryError {
  return thrown instanceof TelemetryError && codes.includes(thrown.code);
}

/** The same failure with another word on what to do; what is no {@linkcode TelemetryError} stays as it is. */
export function withHint(thrown: unknown, hint: string): unknown {
  if (!(thrown instanceof TelemetryError)) return thrown;
  return new TelemetryError(thrown.code, thrown.message, { hint, cause: thrown.cause });
}

/** The message of anything that was thrown, on one line. */
export function errorMessage(thrown: unknown): string {
  const text = thrown instanceof Error ? thrown.message || thrown.name : String(thrown);
  return text.replace(/\s*\n\s*/g, " ");
}

/**
 * What the operating system or Deno's permissions refused, as a {@linkcode TelemetryError}.
 *
 * @param thrown what a `Deno.*` file function threw
 * @param doing what was tried, as the start of a sentence: `cannot write /x/y`
 */
export function fileError(thrown: unknown, doing: string): TelemetryError {
  if (thrown instanceof TelemetryError) return thrown;
  const code = isDiskFull(thrown) ? "disk_full" : FILE_ERRORS[(thrown as { name?: string } | null)?.name ?? ""] ?? "io";
  return new TelemetryError(code, `${doing}: ${errorMessage(thrown)}`, { cause: thrown, hint: FILE_HINTS[code] });
}

/** Whether a `Deno.*` file function failed because the disk, or the user's quota, is full. */
function isDiskFull(thrown: unknown): boolean {
  const code = (thrown as { code?: unknown } | null)?.code;
  return code === "ENOSPC" || code === "EDQUOT";
}

/** The names of Deno's errors. */
const FILE_ERRORS: Record<string, ErrorCode> = {
  NotCapable: "permission",
  PermissionDenied: "permission",
  NotADirectory: "in_the_way",
  IsADirectory: "in_the_way",
  NotFound: "no_storage",
};

const FILE_HINTS: Partial<Record<ErrorCode, string>> = {
  disk_full: "free some space on that disk and run it again",
  in_the_way: "move what stands there out of the way and run it again",
  permission: "run it as the user who owns that folder, or give that folder to this user",
  no_storage: "see whether that path, or the link that it is, leads where it should",
  io: "see whether the disk is full or failing, and run it again",
};
