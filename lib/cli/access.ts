/**
 * The permissions that a run of a script needs. The scripts check them, `--help` and errors print them, and `deno task`
 * grants exactly these.
 * @module
 */
import { readEnv } from "../fs/locate.ts";
import { type Access, HOME, HOME_STORES, outermost, withRealPaths } from "../fs/permissions.ts";
import {
  candidateFolders,
  defaultFolders,
  fileNameOf,
  folderOf,
  homeFolderOf,
  type Layout,
  layoutOf,
  partialOf,
  sidecarsOf,
  STORE_VARIABLES,
} from "../layout.ts";

/** A folder of the store. */
type StoreFolder = "base" | "raw" | "db" | "config" | "backups" | "reports" | "exports";

/** A flag of a script. */
export interface Flag {
  /** For `--help`. */
  about: string;
  /** What its value stands for, such as `DIR`. A flag without it takes no value. */
  value?: string;
  /** For a flag whose value is a path: whether the script writes that file, or reads it as a backup. */
  path?: "write" | "backup";
  /** The folders that the script writes with this flag, instead of those of the command. */
  writes?: readonly StoreFolder[];
  /** Whether the script runs without a store with this flag. */
  needsNoStore?: boolean;
  /** The flags of the same script that cannot be given together with this one. */
  excludes?: readonly string[];
  /** The flags of which one must be given together with this one. */
  needs?: readonly string[];
}

/** The flags that were given: text, or true. */
export type FlagValues = Readonly<Record<string, string | boolean | undefined>>;

/** A script, as `--help` and the permissions need it. */
export interface Command {
  name: string;
  summary: string;
  /** Its own flags. All scripts have some more. */
  flags: Record<string, Flag>;
  /** The folders of the store that it writes. */
  writes: readonly StoreFolder[];
  /** Whether it also runs without a store, because it creates one. */
  createsStore?: boolean;
  /** The arguments of the example in `--help`. */
  example?: string;
}

const PLATFORM = Deno.build.os;
const VARIABLES = [...STORE_VARIABLES, HOME];

/** The access that one run of a script needs. */
export function accessOf(command: Command, flags: FlagValues, layout: Layout): Access {
  const given = Object.entries(command.flags).filter(([name]) => flags[name] !== undefined);
  if (given.some(([, flag]) => flag.needsNoStore)) return { env: [], read: [], write: [] };
  const { choice } = layout;
  const home = homeFolderOf(readEnv, PLATFORM);
  // 1. The folders of the store. Setup tries several when there is none.
  const folders = given.find(([, { writes }]) => writes)?.[1].writes ?? command.writes;
  const stores = command.createsStore && choice.source === "default"
    ? defaultFolders(PLATFORM, home).map((base) => layoutOf({ ...choice, base }))
    : [layout];
  const read = stores.flatMap(({ base, raw, db, backups }) => [base, raw, db, backups]);
  const write = stores.flatMap((store) => folders.map((folder) => store[folder]));
  // 2. The folders where a store may be, as far as they decide which one it is.
  if (choice.source === "found" || choice.source === "default") read.push(...candidateFolders(PLATFORM, home));
  // 3. The paths that are given to flags.
  for (const [name, { path }] of given) {
    const value = String(flags[name]);
    if (path === undefined || value === "-") continue;
    if (path === "write") {
      write.push(value, partialOf(value));
      // To make the new name durable.
      read.push(folderOf(value));
    } // A name without a folder is in `backups/`, where SQLite may create sidecars.
    else if (fileNameOf(value) === value) write.push(layout.backups);
    else read.push(value, ...Object.values(sidecarsOf(value)));
  }
  return {
    env: choice.source === "--base" ? [] : VARIABLES,
    read: outermost(withRealPaths([...read, ...write])),
    write: outermost(withRealPaths(write)),
  };
}

/** The access that finds a store wherever it is. Folders of the home folder are as a shell expands them. */
export function accessWithoutStore(command: Command): Access {
  const read = [...candidateFolders(PLATFORM, undefined), ...HOME_STORES];
  const write = command.writes.includes("base")
    ? read
    : read.flatMap((base) => command.writes.map((name) => `${base}/${name}`));
  return { env: VARIABLES, read, write };
}
