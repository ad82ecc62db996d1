/** The permissions of Deno: checked, and as flags of `deno run`. @module */
import { TelemetryError } from "../errors.ts";
import { isInFolder } from "../layout.ts";
import { isGranted, realPath } from "./locate.ts";

const PLATFORM = Deno.build.os;
/** The variable of the home folder. */
export const HOME = PLATFORM === "windows" ? "USERPROFILE" : "HOME";
/** The store in the home folder, as shells expand it. On Windows `cmd` expands the first and PowerShell the second. */
export const HOME_STORES: readonly string[] = PLATFORM === "windows"
  ? ["%USERPROFILE%\\.telemetry", "$HOME\\.telemetry"]
  : ["$HOME/.telemetry"];

/** What Deno must grant: variables by name, paths to read, paths to write. */
export interface Access {
  env: readonly string[];
  read: string[];
  write: string[];
}

/**
 * Checks that Deno grants an access. The variable of the home folder is not needed: without it, there is no store in there.
 *
 * @param hint what to do when it does not
 * @throws {TelemetryError} `permission`
 */
export function assertAccess({ env, read, write }: Access, hint: string): void {
  const refuse = (denied: string) => {
    throw new TelemetryError("permission", `Deno does not let this program ${denied}`, { hint });
  };
  for (const variable of env) {
    if (variable !== HOME && !isGranted({ name: "env", variable })) refuse(`read the variable ${variable}`);
  }
  for (const path of read) if (!isGranted({ name: "read", path })) refuse(`read ${path}`);
  for (const path of write) if (!isGranted({ name: "write", path })) refuse(`write ${path}`);
}

/** Checks that Deno lets this process read and write folders. */
export function assertGranted(folders: string[]): void {
  const paths = outermost(withRealPaths(folders));
  const access = { env: [], read: paths, write: paths };
  assertAccess(access, `run it with ${shellFlags(access).join(" ")}`);
}

/** Behind a link, Deno requires the permission for the real path, too. */
export function withRealPaths(paths: string[]): string[] {
  return [...new Set([...paths, ...paths.map(realPath)])];
}

/** Paths without those inside another one of them. */
export function outermost(paths: string[]): string[] {
  return paths.filter((path) => !paths.some((other) => isInFolder(path, other) && !isInFolder(other, path)));
}

/** The access as flags of `deno run`. */
export function accessFlags({ env, read, write }: Access): string[] {
  const list = (name: string, values: readonly string[]) => {
    if (values.length === 0) return [];
    // A comma ends a path in these flags, and cannot be escaped.
    return [values.some((value) => value.includes(",")) ? name : `${name}=${values}`];
  };
  return [...list("--allow-env", env), ...list("--allow-read", read), ...list("--allow-write", write)];
}

/** The same flags, ready to paste into a shell. */
export function shellFlags(access: Access): string[] {
  return accessFlags(access).map((flag) =>
    HOME_STORES.some((store) => flag.includes(store)) ? `"${flag}"` : quoteForShell(flag)
  );
}

/** An argument as a shell takes it: on Windows for `cmd` and for PowerShell. */
export function quoteForShell(argument: string): string {
  if (PLATFORM !== "windows") {
    return /^[\w@%+=:,./-]+$/.test(argument) ? argument : `'${argument.replaceAll("'", `'\\''`)}'`;
  }
  // A backslash before the quote would escape it.
  return /^[\w@+=:,./\\-]+$/.test(argument) ? argument : `"${argument.replace(/\\$/, "\\\\")}"`;
}
