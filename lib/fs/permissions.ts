/** The permissions of Deno, as flags of `deno run`. @module */
import { isInFolder } from "../layout.ts";

const PLATFORM = Deno.build.os;
/** The variable of the home folder. */
export const HOME = PLATFORM === "windows" ? "USERPROFILE" : "HOME";
/** The store in the home folder, as a shell expands it. */
export const HOME_STORE = PLATFORM === "windows" ? "%USERPROFILE%\\.telemetry" : "$HOME/.telemetry";

/** What Deno must grant: variables by name, paths to read, paths to write. */
export interface Access {
  env: readonly string[];
  read: string[];
  write: string[];
}

/** Paths without those inside another one of them. */
export function outermost(paths: string[]): string[] {
  return paths.filter((path) => !paths.some((other) => other !== path && isInFolder(path, other)));
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
  return accessFlags(access).map((flag) => {
    const [name, list] = flag.split(/=(.*)/s);
    const quoted = list?.split(",").map((value) => value.startsWith(HOME_STORE) ? `"${value}"` : quoteForShell(value));
    return quoted === undefined ? name! : `${name}=${quoted}`;
  });
}

/** An argument as a shell takes it. */
export function quoteForShell(argument: string): string {
  if (/^[\w@%+=:,./-]+$/.test(argument)) return argument;
  return PLATFORM === "windows" ? `"${argument}"` : `'${argument.replaceAll("'", `'\\''`)}'`;
}
