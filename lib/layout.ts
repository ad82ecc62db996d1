/**
 * The layout of a store: where `{base}` is, its folders, and the name of every file in it. The only module that builds
 * a path or a file name. It does not touch the disk: `fs/locate.ts` reads environment and folders.
 * @module
 */
import { basename, dirname, join, normalize, posix, sep, win32 } from "node:path";

/** An operating system, as `Deno.build.os` names it. Only Windows differs here. */
export type Platform = typeof Deno.build.os;

/** The environment variables that name `{base}`, in order of precedence (contract, "Where `{base}` is"). */
export const BASE_VARIABLES = ["TELEMETRY_DB_PATH", "TELEMETRY_BASE_DIR", "AGENT_METRICS_DIR"] as const;
/** The variables that name a part of the store. */
export const STORE_VARIABLES = [...BASE_VARIABLES, "TELEMETRY_NDJSON_DIR"] as const;

/** What {@linkcode resolveBase} depends on. */
export interface Surroundings {
  /** The value of a variable, or undefined when it is unset or cannot be read. */
  env(name: string): string | undefined;
  /** The operating system. */
  platform: Platform;
  /** Whether a folder exists. */
  exists(path: string): boolean;
  /** The current working folder, for relative paths. */
  cwd: string;
}

/** Which `{base}` was chosen, and why. */
export interface BaseChoice {
  /** The base folder. */
  base: string;
  /** The database file, when `TELEMETRY_DB_PATH` names it. */
  database?: string;
  /** The log folder, when `TELEMETRY_NDJSON_DIR` names it. */
  raw?: string;
  /** What decided: `--base`, a variable, `found` (the first folder that exists), or `default` (none exists). */
  source: "--base" | "TELEMETRY_DB_PATH" | "TELEMETRY_BASE_DIR" | "AGENT_METRICS_DIR" | "found" | "default";
  /** The other folders that the rules name, in order of precedence, whether they exist or not. */
  others: string[];
}

/** The paths of a store (contract, "Directory Layout"). All are absolute when `base` is. */
export interface Layout {
  /** Which base folder was chosen, and why. */
  choice: BaseChoice;
  /** The base folder. */
  base: string;
  /** The folder of the NDJSON logs. */
  raw: string;
  /** The folder of the database. */
  db: string;
  /** The SQLite database. */
  database: string;
  /** Where a recovery builds the new database. */
  recovering: string;
  /** The folder of generated reports. */
  reports: string;
  /** The folder of CSV exports. */
  exports: string;
  /** The folder of configuration files. */
  config: string;
  /** The schema as SQL, written by `setup_database`. */
  schemaSql: string;
  /** The folder of system logs. */
  logs: string;
  /** The folder of backups. The backup scripts create it. */
  backups: string;
  /** The description of the folders, written by `setup_storage`. */
  readme: string;
}

/** The folders that are tried in order when no variable names `{base}` (contract, case 3). */
export function candidateFolders(platform: Platform, home: string | undefined): string[] {
  const drives = platform === "windows" ? ["D:/agent-metrics", "C:/agent-metrics"] : [];
  return ["/agent-metrics", "/opt/telemetry", "/data/telemetry", ...drives, ...homeStore(platform, home)];
}

/** The folders that setup tries to create in order when no candidate exists (contract, case 4). */
export function defaultFolders(platform: Platform, home: string | undefined): string[] {
  const folders = platform === "windows" ? ["D:/agent-metrics", "C:/agent-metrics"] : ["/agent-metrics"];
  return [...folders, ...homeStore(platform, home)];
}

function homeStore(platform: Platform, home: string | undefined): string[] {
  return home ? [pathModule(platform).join(home, ".telemetry")] : [];
}

function pathModule(platform: Platform): typeof posix {
  return platform === "windows" ? win32 : posix;
}

/** The user's home folder. An empty variable counts as unset. */
export function homeFolderOf(env: Surroundings["env"], platform: Platform): string | undefined {
  return env(platform === "windows" ? "USERPROFILE" : "HOME") || undefined;
}

/** A path as an absolute one. On Windows `C:store` starts at the current folder if that is on C:, otherwise at `C:\`. */
export function absolutePath(path: string, cwd: string, platform: Platform): string {
  const { isAbsolute, join } = pathModule(platform);
  if (isAbsolute(path)) return path;
  const drive = platform === "windows" && /^[a-z]:/i.exec(path)?.[0] || "";
  const start = cwd.toLowerCase().startsWith(drive.toLowerCase()) ? cwd : `${drive}\\`;
  return join(start, path.slice(drive.length));
}

/** Resolves `{base}` from the environment (contract, "Where `{base}` is"). */
export function resolveBase(surroundings: Surroundings): BaseChoice {
  const { env, platform, exists, cwd } = surroundings;
  const paths = pathModule(platform);
  const absolute = (path: string) => absolutePath(path, cwd, platform);
  const raw = env("TELEMETRY_NDJSON_DIR");

  const named: BaseChoice[] = [];
  for (const source of BASE_VARIABLES) {
    const value = env(source);
    if (!value) continue;
    const path = absolute(value);
    if (source !== "TELEMETRY_DB_PATH") named.push({ base: path, source, others: [] });
    else named.push({ base: paths.dirname(paths.dirname(path)), database: path, source, others: [] });
  }
  const home = homeFolderOf(env, platform);
  const candidates = candidateFolders(platform, home);
  const chosen = named[0] ?? firstFolder(candidates, exists, defaultFolders(platform, home)[0]!);
  const others = new Set([...named.map(({ base }) => base), ...candidates]);
  others.delete(chosen.base);
  return { ...chosen, ...raw ? { raw: absolute(raw) } : {}, others: [...others] };
}

function firstFolder(candidates: string[], exists: Surroundings["exists"], byDefault: string): BaseChoice {
  const found = candidates.find(exists);
  return { base: found ?? byDefault, source: found === undefined ? "default" : "found", others: [] };
}

/**
 * The paths of the store in a base folder. Does not look at the disk.
 *
 * @param choice a base folder, or the result of resolving one
 * @param platform whose path syntax to use; by default that of this system
 *
 * @example
 * ```ts
 * import { layoutOf } from "./layout.ts";
 *
 * console.log(layoutOf("/srv/telemetry").database); // "/srv/telemetry/db/telemetry.sqlite"
 * ```
 */
export function layoutOf(
  choice: BaseChoice | string,
  platform: Platform = sep === "\\" ? "windows" : "linux",
): Layout {
  const { join, dirname } = pathModule(platform);
  if (typeof choice === "string") choice = { base: choice, source: "--base", others: [] };
  const { base } = choice;
  const database = choice.database ?? join(base, "db", "telemetry.sqlite");
  const config = join(base, "config");
  return {
    choice,
    base,
    raw: choice.raw ?? join(base, "raw"),
    db: dirname(database),
    database,
    recovering: join(dirname(database), "telemetry.recovering.sqlite"),
    reports: join(base, "reports"),
    exports: join(base, "exports"),
    config,
    schemaSql: join(config, "schema.sql"),
    logs: join(base, "logs"),
    backups: join(base, "backups"),
    readme: join(base, "README.md"),
  };
}

/** The kinds of files that have a time in their names. */
export type FileKind =
  | "log"
  | "daily_backup"
  | "full_backup"
  | "before_restore"
  | "before_v3"
  | "corrupted"
  | "before_rebuild"
  | "recovery_report"
  | "recovery_rejects"
  | "runs_export"
  | "events_export"
  | "commits_export"
  | "runs_report";

/** What stands before and after the `YYYYMMDD_HHMMSS` of a name. */
const STAMPED_NAMES: Record<Exclude<FileKind, "log" | "daily_backup">, [before: string, after: string]> = {
  full_backup: ["telemetry_backup_", ".sqlite"],
  before_restore: ["telemetry_before_restore_", ".sqlite"],
  before_v3: ["telemetry.before_v3_", ".sqlite"],
  corrupted: ["telemetry.corrupted.", ".sqlite"],
  before_rebuild: ["telemetry.before_rebuild_", ".sqlite"],
  recovery_report: ["recovery_", ".json"],
  recovery_rejects: ["recovery_", ".rejected.ndjson"],
  runs_export: ["agent_runs_", ".csv"],
  events_export: ["run_events_", ".csv"],
  commits_export: ["commits_", ".csv"],
  runs_report: ["runs_", ".html"],
};

/** The name of a file of this kind. Times in names are local; the day of a log is UTC. */
export function fileName(kind: FileKind, at: Date): string {
  if (kind === "log") return `events_${at.toISOString().slice(0, 10).replaceAll("-", "")}.ndjson`;
  // The first backup of a day has no time of day in its name (contract, "Backups").
  if (kind === "daily_backup") return `telemetry.backup.${localStamp(at).slice(0, 8)}.sqlite`;
  const [before, after] = STAMPED_NAMES[kind];
  return `${before}${localStamp(at)}${after}`;
}

/** The names to try for a new file, in order: its own, then those of the following seconds. */
export function* fileNames(kind: FileKind, at: Date): Generator<string, never> {
  if (kind === "daily_backup") yield fileName(kind, at);
  for (let time = at.getTime();; time += 1000) {
    const second = new Date(time);
    yield kind === "daily_backup" ? `telemetry.backup.${localStamp(second)}.sqlite` : fileName(kind, second);
  }
}

/** The paths in a folder to try for a file that is new now, in the order of {@linkcode fileNames}. */
export function* newPaths(folder: string, kind: FileKind): Generator<string, void> {
  for (const name of fileNames(kind, new Date())) yield pathIn(folder, name);
}

/** `YYYYMMDD_HHMMSS` in local time. */
function localStamp(at: Date): string {
  const two = (value: number) => String(value).padStart(2, "0");
  const day = `${String(at.getFullYear()).padStart(4, "0")}${two(at.getMonth() + 1)}${two(at.getDate())}`;
  return `${day}_${two(at.getHours())}${two(at.getMinutes())}${two(at.getSeconds())}`;
}

/** The content of a file name. */
export interface ParsedFileName {
  kind: FileKind;
  /** The time in the name. */
  time: Date;
  /** Whether the name ends in `.gz` (logs only). */
  gzipped: boolean;
}

/** Parses a file name without its folder. Returns null when it is not a name of ours. */
export function parseFileName(name: string): ParsedFileName | null {
  const log = /^events_(\d{4})(\d\d)(\d\d)\.ndjson(\.gz)?$/.exec(name);
  if (log) {
    const [, year, month, day, gz] = log;
    const time = new Date(`${year}-${month}-${day}T00:00:00Z`);
    const isDay = !isNaN(time.getTime()) && name.startsWith(fileName("log", time));
    return isDay ? { kind: "log", time, gzipped: gz !== undefined } : null;
  }
  const daily = /^telemetry\.backup\.(\d{8})(_\d{6})?\.sqlite$/.exec(name);
  if (daily) return parseStamp("daily_backup", `${daily[1]}${daily[2] ?? "_000000"}`);
  for (const [kind, [before, after]] of Object.entries(STAMPED_NAMES)) {
    if (!name.startsWith(before) || !name.endsWith(after)) continue;
    const stamp = name.slice(before.length, name.length - after.length);
    if (/^\d{8}_\d{6}$/.test(stamp)) return parseStamp(kind as FileKind, stamp);
  }
  return null;
}

/** Parses `YYYYMMDD_HHMMSS` as local time. Returns null for a date that does not exist. */
function parseStamp(kind: FileKind, stamp: string): ParsedFileName | null {
  const part = (from: number, to: number) => Number(stamp.slice(from, to));
  const [hours, minutes, seconds] = [part(9, 11), part(11, 13), part(13, 15)];
  const time = new Date(part(0, 4), part(4, 6) - 1, part(6, 8), hours, minutes, seconds);
  // `Date` turns February 30 into March 2. The hour may differ: in spring one hour of a day does not exist.
  const isDay = time.getMonth() + 1 === part(4, 6) && time.getDate() === part(6, 8);
  return isDay && hours < 24 && minutes < 60 && seconds < 60 ? { kind, time, gzipped: false } : null;
}

/** The files that SQLite keeps beside a database. They belong to that database and to no other. */
export function sidecarsOf(database: string): { wal: string; shm: string; journal: string } {
  return { wal: `${database}-wal`, shm: `${database}-shm`, journal: `${database}-journal` };
}

/** The path of a file in a folder. */
export function pathIn(folder: string, name: string): string {
  return join(folder, name);
}

/** The folder of a path. */
export function folderOf(path: string): string {
  return dirname(path);
}

/** The name of a path, without its folder. */
export function fileNameOf(path: string): string {
  return basename(path);
}

/** Whether a path is inside a folder, or the folder itself. Compares text: links are not resolved. */
export function isInFolder(path: string, folder: string): boolean {
  const [inside, outside] = [normalize(path), normalize(folder)];
  return inside === outside || inside.startsWith(outside.endsWith(sep) ? outside : `${outside}${sep}`);
}

/** Where a file is written before it is published: `NAME.partial`. */
export function partialOf(path: string): string {
  return `${path}.partial`;
}

/** The file whose lock protects a partial that SQLite writes. */
export function lockOf(partial: string): string {
  return `${partial}.lock`;
}
