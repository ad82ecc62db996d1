/**
 * Finds the store of this process: environment variables, folders on disk, and Deno's permissions.
 * @module
 */
import { basename, dirname, join, normalize } from "node:path";
import { fileError, TelemetryError } from "../errors.ts";
import { absolutePath, type Layout, layoutOf, parseFileName, resolveBase, type Surroundings } from "../layout.ts";

/**
 * Finds the store. Never triggers a permission prompt, which would stop an agent: variables and folders that this process
 * has no permission to read count as missing.
 *
 * @param base the base folder; wins over every variable. By default environment and disk decide (contract, "Where `{base}` is")
 * @param look how variables and folders are read
 * @throws {TelemetryError} `usage` when `base` is empty or starts with "~"
 *
 * @example
 * ```ts
 * import { locate } from "./locate.ts";
 *
 * console.log(locate("/srv/telemetry").raw); // "/srv/telemetry/raw"
 * ```
 */
export function locate(
  base?: string,
  look: Pick<Surroundings, "env" | "exists"> = { env: readEnv, exists: isFolder },
): Layout {
  const [platform, cwd] = [Deno.build.os, Deno.cwd()];
  if (base === undefined) return resolveLink(layoutOf(resolveBase({ ...look, platform, cwd })));
  // A shell would have expanded "~", and a variable that is unset gives "".
  if (typeof base !== "string" || /^(?:~|$)/.test(base)) {
    throw new TelemetryError("usage", `base is not a folder: "${String(base)}"`, {
      hint: 'name the whole path: "~" is not expanded; or leave base out to use the store of the environment',
    });
  }
  return resolveLink(layoutOf(normalize(absolutePath(base, cwd, platform))));
}

/** Resolves a database that is a link: SQLite keeps the sidecars beside the real file. */
function resolveLink(layout: Layout): Layout {
  const { database, choice } = layout;
  try {
    const isLink = isGranted({ name: "read", path: database }) && Deno.lstatSync(database).isSymlink;
    if (isLink) return layoutOf({ ...choice, database: realPath(database) });
  } catch { /* there is none */ }
  return layout;
}

/** The value of a variable, or undefined when it is unset or this process has no permission to read it. */
export function readEnv(name: string): string | undefined {
  return isGranted({ name: "env", variable: name }) ? Deno.env.get(name) : undefined;
}

/** Whether a folder exists. False when this process has no permission to read it. */
export function isFolder(path: string): boolean {
  if (!isGranted({ name: "read", path })) return false;
  try {
    return Deno.statSync(path).isDirectory;
  } catch {
    return false;
  }
}

/** Whether Deno grants a permission without a prompt. */
export function isGranted(permission: Deno.PermissionDescriptor): boolean {
  return Deno.permissions.querySync(permission).state === "granted";
}

/** The path with all links resolved, as far as it exists and can be read. */
export function realPath(path: string): string {
  try {
    if (isGranted({ name: "read", path })) return Deno.realPathSync(path);
  } catch {
    const folder = dirname(path);
    if (folder !== path) return join(realPath(folder), basename(path));
  }
  return path;
}

/** The other folders that the rules for `{base}` name, and that have a database or logs, as far as they can be read. */
export function otherStoresWithData({ base, choice }: Layout): string[] {
  return choice.others.filter((other) => {
    const { database, raw } = layoutOf(other);
    if (!isFolder(other) || realPath(other) === realPath(base)) return false;
    try {
      if (sizeOf(database)) return true;
      return Deno.readDirSync(raw).some(({ name }) => parseFileName(name)?.kind === "log");
    } catch {
      return false;
    }
  });
}

/** The file at a path, links resolved; undefined when there is none. Throws a `TelemetryError` when it cannot be examined. */
export function statIfExists(path: string, stat = Deno.statSync): Deno.FileInfo | undefined {
  try {
    return stat(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw fileError(error, `cannot examine ${path}`);
  }
}

/** Whether a path exists. A link counts even if its target is missing. */
export function pathExists(path: string): boolean {
  return statIfExists(path, Deno.lstatSync) !== undefined;
}

/**
 * The size of a file in bytes; undefined when there is none.
 *
 * @throws {TelemetryError} `in_the_way` for a folder, whose size says nothing
 */
export function sizeOf(path: string): number | undefined {
  const stat = statIfExists(path);
  if (!stat?.isDirectory) return stat?.size;
  throw new TelemetryError("in_the_way", `${path} is a folder, but a file belongs there`, {
    hint: "move that folder away, then run this again",
  });
}

/** Whether two stats are of the same file. On Windows the number of a file may be too large for a `number` to be exact. */
export function isSameFile(a: Deno.FileInfo, b: Deno.FileInfo): boolean {
  return a.ino === b.ino && a.dev === b.dev && a.birthtime?.getTime() === b.birthtime?.getTime();
}
