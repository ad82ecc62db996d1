/**
 * The permissions that a run of a script needs. The scripts check them, `--help` and errors print them, and `deno task`
 * grants exactly these.
 * @module
 */
import { isGranted, readEnv, realPath } from "../fs/locate.ts";
import {
  candidateFolders,
  defaultFolders,
  folderOf,
  homeFolderOf,
  isInFolder,
  type Layout,
  LAYOUT_VARIABLES,
} from "../layout.ts";

/** A flag of a script. */
export interface Flag {
  /** What it does, for `--help`, with its default. */
  about: string;
  /** What its value stands for, such as `DIR`. A flag without it takes no value. */
  value?: string;
  /** For a flag whose value is a path: whether the script writes that file, or reads it as a backup. */
  path?: "write" | "backup";
}

/** The flags that were given: text, or true. */
export type FlagValues = Readonly<Record<string, string | boolean | undefined>>;

/** A script, as `--help` and the permissions need it. */
export interface Command {
  /** The name of the script without `.ts`. */
  name: string;
  /** What it does, in one line. */
  summary: string;
  /** Its own flags. All scripts have some more. */
  flags: Record<string, Flag>;
  /** The folders of the store that it writes. */
  writes: readonly ("base" | "raw" | "db" | "config" | "backups" | "reports" | "exports")[];
  /** Whether it also runs without a store, because it creates one. */
  createsStore?: boolean;
  /** The arguments of the example in `--help`. */
  example: string;
}

/** What Deno must grant: variables by name, paths to read, paths to write. */
export interface Access {
  env: readonly string[];
  read: string[];
  write: string[];
}

const PLATFORM = Deno.build.os;
const HOME = PLATFORM === "windows" ? "USERPROFILE" : "HOME";
/** The store in the home folder, as a shell expands it. */
export const HOME_STORE = PLATFORM === "windows" ? "%USERPROFILE%\\.telemetry" : "$HOME/.telemetry";

/** Whether the home folder can be read from the environment. Without it, the store in it is not a candidate. */
export function isHomeKnown(): boolean {
  return isGranted({ name: "env", variable: HOME });
}

/** The access that one run of a script needs. */
export function accessOf(command: Command, flags: FlagValues, layout: Layout): Access {
  const isNamed = flags["base"] !== undefined;
  const home = homeFolderOf(readEnv, PLATFORM);
  const isNew = command.createsStore === true && layout.choice.source === "default";
  const store = isNew
    ? [...defaultFolders(PLATFORM, home), layout.raw, layout.db]
    : [layout.base, layout.raw, layout.db];
  const write = isNew ? store : command.writes.map((folder) => layout[folder]);
  const isSearched = layout.choice.source === "found" || layout.choice.source === "default";
  const read = [...isSearched ? candidateFolders(PLATFORM, home) : [], ...store];
  for (const [name, { path }] of Object.entries(command.flags)) {
    const value = flags[name];
    if (typeof value !== "string" || value === "-") continue;
    if (path === "write") write.push(folderOf(value));
    // SQLite keeps sidecars beside a backup in the store, too. A name without a folder is in `backups/`.
    else if (path === "backup") {
      (folderOf(value) === "." ? write : read).push(folderOf(value) === "." ? layout.backups : folderOf(value));
    }
  }
  return {
    env: isNamed ? [] : LAYOUT_VARIABLES,
    read: outermost(withRealPaths([...read, ...write])),
    write: outermost(withRealPaths(write)),
  };
}

/** The access that finds a store wherever it is. Folders of the home folder are as a shell expands them. */
export function accessWithoutStore(command: Command): Access {
  const folders = [...candidateFolders(PLATFORM, undefined), HOME_STORE];
  const write = command.createsStore
    ? folders
    : folders.flatMap((base) => command.writes.map((name) => `${base}/${name}`));
  return { env: LAYOUT_VARIABLES, read: folders, write };
}

/** What Deno does not grant of an access, in words. Undefined when all is granted. */
export function firstNotGranted({ env, read, write }: Access): string | undefined {
  const variable = env.find((variable) => variable !== "HOME" && variable !== "USERPROFILE" && !isEnvGranted(variable));
  if (variable !== undefined) return `read the variable ${variable}`;
  const unread = read.find((path) => !isGranted({ name: "read", path }));
  if (unread !== undefined) return `read ${unread}`;
  const unwritten = write.find((path) => !isGranted({ name: "write", path }));
  return unwritten === undefined ? undefined : `write ${unwritten}`;
}

function isEnvGranted(variable: string): boolean {
  return isGranted({ name: "env", variable });
}

/** Behind a link, Deno requires the permission for the real path, too. */
function withRealPaths(paths: string[]): string[] {
  return [...new Set([...paths, ...paths.map(realPath)])];
}

/** Paths without those inside another one of them. */
function outermost(paths: string[]): string[] {
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
