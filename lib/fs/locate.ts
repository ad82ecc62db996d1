/**
 * Finds the store of this process: environment variables, folders on disk, and Deno's permissions.
 * @module
 */
import { isAbsolute, join, normalize } from "node:path";
import { fileError, TelemetryError } from "../errors.ts";
import { type Layout, layoutOf, parseFileName, resolveBase, type Surroundings } from "../layout.ts";

/**
 * The layout that this process means: `base` if given (it beats all, `TELEMETRY_NDJSON_DIR` included),
 * else what environment and disk say. Never lets Deno ask for a permission: that would stop an agent.
 *
 * @param base the value of `--base`
 * @param look how to read variables and folders
 * @default look what may not be read counts as not there
 */
export function locate(
  base?: string,
  look: Pick<Surroundings, "env" | "exists"> = { env: readEnv, exists: isFolder },
): Layout {
  if (base) return followed(layoutOf(isAbsolute(base) ? normalize(base) : join(Deno.cwd(), base)));
  return followed(layoutOf(resolveBase({ ...look, platform: Deno.build.os, cwd: Deno.cwd() })));
}

/** The same layout where the database is a link: SQLite keeps its sidecars beside the real file. */
function followed(layout: Layout): Layout {
  const { database, choice } = layout;
  if (!isGranted({ name: "read", path: database })) return layout;
  try {
    if (!Deno.lstatSync(database).isSymlink) return layout;
  } catch {
    return layout;
  }
  return layoutOf({ ...choice, database: realPath(database) });
}

/** A variable, or undefined where it is unset or Deno does not let us read it. */
export function readEnv(name: string): string | undefined {
  return isGranted({ name: "env", variable: name }) ? Deno.env.get(name) : undefined;
}

/** Whether a folder is there, as far as Deno lets us see. */
export function isFolder(path: string): boolean {
  if (!isGranted({ name: "read", path })) return false;
  try {
    return Deno.statSync(path).isDirectory;
  } catch {
    return false;
  }
}

/** Whether Deno grants something without asking anybody. */
export function isGranted(permission: Deno.PermissionDescriptor): boolean {
  return Deno.permissions.querySync(permission).state === "granted";
}

/**
 * The first folder that Deno does not let us read and write, if any. Behind a link, Deno wants the real folder granted
 * as well as the link.
 */
export function firstNotGranted(folders: string[]): string | undefined {
  const refused = (path: string) => !isGranted({ name: "read", path }) || !isGranted({ name: "write", path });
  return folders.find(refused) ?? folders.map(realPath).find(refused);
}

/** Where a path leads when all links are followed; the path itself when that cannot be told. */
export function realPath(path: string): string {
  try {
    return isGranted({ name: "read", path }) ? Deno.realPathSync(path) : path;
  } catch {
    return path;
  }
}

/**
 * Sees that Deno lets us read and write folders, without asking anybody.
 *
 * @throws {TelemetryError} `permission`
 */
export function assertGranted(folders: string[]): void {
  const refused = firstNotGranted(folders);
  if (refused === undefined) return;
  throw new TelemetryError("permission", `Deno does not let this program use ${refused}`, {
    hint: `run it with --allow-read=${refused} --allow-write=${refused}`,
  });
}

/** The other folders that could have been `{base}` and hold data: a database, or a log with something in it. */
export function otherStoresWithData(layout: Layout): string[] {
  const base = realPath(layout.base);
  return layout.choice.others.filter((other) => realPath(other) !== base && holdsData(layoutOf(other)));
}

/** Whether a `{base}` holds a database, or a log. Folders that cannot be read count as empty. */
function holdsData({ base, raw, database }: Layout): boolean {
  if (!isGranted({ name: "read", path: base })) return false;
  try {
    if (Deno.statSync(database).size > 0) return true;
  } catch { /* no database: the log may still be there */ }
  try {
    return Deno.readDirSync(raw).some(({ name }) => parseFileName(name)?.kind === "log");
  } catch {
    return false;
  }
}

/**
 * What a path leads to, or undefined when there is nothing, or a link that leads nowhere.
 *
 * @throws {TelemetryError} when it cannot be looked at
 */
export function statIfExists(path: string): Deno.FileInfo | undefined {
  try {
    return Deno.statSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw fileError(error, `cannot look at ${path}`);
  }
}

/** The size of a file in bytes, or undefined when there is none. */
export function sizeOf(path: string): number | undefined {
  return statIfExists(path)?.size;
}
