/**
 * Where `{base}` is, its folders, and the name of every file in it.
 * The only module that builds a path or a file name. Pure: `fs/locate.ts` reads the environment.
 * @module
 */
import { posix, sep, win32 } from "node:path";

/** The operating systems that differ here: Windows, and the rest. */
export type Platform = typeof Deno.build.os;
const HERE: Platform = sep === "\\" ? "windows" : "linux";

/** The environment variables that say where `{base}` is, in the contract's order. */
export const BASE_VARIABLES = ["TELEMETRY_DB_PATH", "TELEMETRY_BASE_DIR", "AGENT_METRICS_DIR"] as const;
/** Those, and the one that says where `raw/` is. */
export const STORE_VARIABLES = [...BASE_VARIABLES, "TELEMETRY_NDJSON_DIR"] as const;
/** Every environment variable that {@linkcode locate} reads. */
export const LAYOUT_VARIABLES = [...STORE_VARIABLES, "HOME", "USERPROFILE"] as const;

/** What {@linkcode resolveBase} looks at. */
export interface Surroundings {
  /** A variable's value; undefined when it is unset or may not be read. */
  env(name: string): string | undefined;
  /** The operating system. */
  platform: Platform;
  /** Whether a folder exists. */
  exists(path: string): boolean;
  /** The working folder, which relative paths start from. */
  cwd: string;
}

/** Which `{base}` was chosen, and why. */
export interface BaseChoice {
  /** The folder. */
  base: string;
  /** The database file, where `TELEMETRY_DB_PATH` names it. */
  database?: string;
  /** The log's folder, where `TELEMETRY_NDJSON_DIR` moves it. */
  raw?: string;
  /** What decided: `--base`, a variable's name, `found` on disk, or `default` when nothing exists. */
  source: "--base" | "TELEMETRY_DB_PATH" | "TELEMETRY_BASE_DIR" | "AGENT_METRICS_DIR" | "found" | "default";
  /** The folders that come after it in the contract's order, whether they exist or not. */
  others: string[];
}

/** `{base}` and everything whose place in it is fixed. */
export interface Layout {
  /** Which `{base}` was chosen, and why. */
  choice: BaseChoice;
  /** The folder that holds all others. */
  base: string;
  /** NDJSON event logs: the truth. */
  raw: string;
  /** The database's folder. */
  db: string;
  /** The SQLite database. */
  database: string;
  /** Where recovery builds a new database, beside the one that it will replace. */
  recovering: string;
  /** Generated reports. */
  reports: string;
  /** CSV exports. */
  exports: string;
  /** Config files. */
  config: string;
  /** The schema as SQL, written by `setup_database`. */
  schemaSql: string;
  /** System logs. */
  logs: string;
  /** Backups; made by the scripts that fill it. */
  backups: string;
  /** What `setup_storage` says of the folders. */
  readme: string;
}

/**
 * The folders that are tried when nothing says where `{base}` is (contract, "Where `{base}` is", case 3).
 *
 * @param platform Windows has drive letters, the others have not
 * @param home the user's home folder, if known
 */
export function candidateFolders(platform: Platform, home: string | undefined): string[] {
  const candidates = ["/agent-metrics", "/opt/telemetry", "/data/telemetry"];
  if (platform === "windows") candidates.push("D:/agent-metrics", "C:/agent-metrics");
  if (home) candidates.push(homeFolder(home, platform));
  return candidates;
}

/**
 * The folders that setup tries to make, one after the other, when no candidate exists (contract, case 4 and after).
 *
 * @param platform Windows has drive letters, the others have not
 * @param home the user's home folder, if known
 */
export function defaultFolders(platform: Platform, home: string | undefined): string[] {
  const folders = platform === "windows" ? ["D:/agent-metrics", "C:/agent-metrics"] : ["/agent-metrics"];
  if (home) folders.push(homeFolder(home, platform));
  return folders;
}

function homeFolder(home: string, platform: Platform): string {
  return pathsOf(platform).join(home, ".telemetry");
}

function pathsOf(platform: Platform): typeof posix {
  return platform === "windows" ? win32 : posix;
}

/** The user's home folder. An empty variable counts as unset. */
export function homeFolderOf(env: Surroundings["env"], platform: Platform): string | undefined {
  return env(platform === "windows" ? "USERPROFILE" : "HOME") || undefined;
}

/**
 * Which `{base}` the surroundings mean. Pure, so that every system can be tested on any other.
 *
 * @example
 * ```ts
 * import { resolveBase } from "./layout.ts";
 *
 * const choice = resolveBase({ env: () => undefined, platform: "linux", exists: (path) => path === "/opt/telemetry", cwd: "/" });
 * console.log(choice.base); // "/opt/telemetry"
 * ```
 */
export function resolveBase(surroundings: Surroundings): BaseChoice {
  const { env, platform, exists, cwd } = surroundings;
  const paths = pathsOf(platform);
  const absolute = (path: string) => paths.isAbsolute(path) ? path : paths.join(cwd, path);
  const raw = env("TELEMETRY_NDJSON_DIR");
  const moved = raw ? { raw: absolute(raw) } : {};

  const chosen: BaseChoice[] = [];
  for (const source of BASE_VARIABLES) {
    const value = env(source);
    if (!value) continue;
    const path = absolute(value);
    if (source === "TELEMETRY_DB_PATH") {
      chosen.push({ base: paths.dirname(paths.dirname(path)), database: path, source, others: [] });
    } else {
      chosen.push({ base: path, source, others: [] });
    }
  }
  const home = homeFolderOf(env, platform);
  const candidates = candidateFolders(platform, home);
  const first = chosen[0] ?? foundOrDefault(candidates, exists, defaultFolders(platform, home)[0]!);
  const others = new Set([...chosen.map(({ base }) => base), ...candidates]);
  others.delete(first.base);
  return { ...first, ...moved, others: [...others] };
}

function foundOrDefault(candidates: string[], exists: Surroundings["exists"], fallback: string): BaseChoice {
  const found = candidates.find(exists);
  return { base: found ?? fallback, source: found === undefined ? "default" : "found", others: [] };
}

/**
 * Where everything is in a `{base}`.
 *
 * @param choice from {@linkcode resolveBase}, or just a folder
 * @param platform how paths are joined
 * @default platform the system this runs on
 */
export function layoutOf(choice: BaseChoice | string, platform: Platform = HERE): Layout {
  const { join, dirname } = pathsOf(platform);
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

/** What the files that the contract names are for. */
export type FileKind =
  | "log"
  | "daily_backup"
  | "full_backup"
  | "before_restore"
  | "before_v3"
  | "corrupted"
  | "recovery_report"
  | "recovery_rejects"
  | "runs_export"
  | "events_export"
  | "commits_export";

/** What a file name says. */
export interface ParsedFileName {
  /** What the file is for. */
  kind: FileKind;
  /** The time in the name: local, but for logs, whose day is UTC. */
  time: Date;
  /** Whether the name ends in `.gz` (logs only). */
  gzipped: boolean;
}

/** The part before and after the time, for the names that are `{before}YYYYMMDD_HHMMSS{after}`. */
const STAMPED: Record<Exclude<FileKind, "log" | "daily_backup">, [before: string, after: string]> = {
  full_backup: ["telemetry_backup_", ".sqlite"],
  before_restore: ["telemetry_before_restore_", ".sqlite"],
  before_v3: ["telemetry.before_v3_", ".sqlite"],
  corrupted: ["telemetry.corrupted.", ".sqlite"],
  recovery_report: ["recovery_", ".json"],
  recovery_rejects: ["recovery_", ".rejected.ndjson"],
  runs_export: ["agent_runs_", ".csv"],
  events_export: ["run_events_", ".csv"],
  commits_export: ["commits_", ".csv"],
};

/**
 * The contract's name of a file. Times in names are local; a log's day is the UTC day.
 *
 * @param kind what the file is for; a `daily_backup` is named by its day alone, see {@linkcode fileNames}
 * @param at the time that goes into the name
 *
 * @example
 * ```ts
 * import { fileName } from "./layout.ts";
 *
 * console.log(fileName("log", new Date("2025-12-10T23:59:59Z"))); // "events_20251210.ndjson"
 * ```
 */
export function fileName(kind: FileKind, at: Date): string {
  if (kind === "log") return `events_${at.toISOString().slice(0, 10).replaceAll("-", "")}.ndjson`;
  if (kind === "daily_backup") return `telemetry.backup.${localStamp(at).slice(0, 8)}.sqlite`;
  const [before, after] = STAMPED[kind];
  return `${before}${localStamp(at)}${after}`;
}

/**
 * The names to try for a new file, one after the other, until one is free: the contract's, then those of the next
 * seconds. A day's first backup has the day alone in its name.
 *
 * @param kind what the file is for
 * @param at the time that goes into the name
 */
export function* fileNames(kind: FileKind, at: Date): Generator<string, never> {
  if (kind === "daily_backup") yield fileName(kind, at);
  for (let time = at.getTime();; time += 1000) {
    yield kind === "daily_backup"
      ? `telemetry.backup.${localStamp(new Date(time))}.sqlite`
      : fileName(kind, new Date(time));
  }
}

/** `YYYYMMDD_HHMMSS` in local time. */
function localStamp(at: Date): string {
  const two = (value: number) => String(value).padStart(2, "0");
  const day = `${String(at.getFullYear()).padStart(4, "0")}${two(at.getMonth() + 1)}${two(at.getDate())}`;
  return `${day}_${two(at.getHours())}${two(at.getMinutes())}${two(at.getSeconds())}`;
}

/**
 * What a file name says, or null when the contract does not know it.
 *
 * @param name without the folder
 */
export function parseFileName(name: string): ParsedFileName | null {
  const log = /^events_(\d{8})\.ndjson(\.gz)?$/.exec(name);
  if (log) {
    const [, day, gz] = log;
    const time = new Date(`${day!.slice(0, 4)}-${day!.slice(4, 6)}-${day!.slice(6)}T00:00:00Z`);
    const exists = !isNaN(time.getTime()) && fileName("log", time).includes(day!);
    return exists ? { kind: "log", time, gzipped: gz !== undefined } : null;
  }
  const daily = /^telemetry\.backup\.(\d{8})(_\d{6})?\.sqlite$/.exec(name);
  if (daily) return parsed("daily_backup", `${daily[1]}${daily[2] ?? "_000000"}`);
  for (const [kind, [before, after]] of Object.entries(STAMPED)) {
    if (!name.startsWith(before) || !name.endsWith(after)) continue;
    const stamp = name.slice(before.length, name.length - after.length);
    if (/^\d{8}_\d{6}$/.test(stamp)) return parsed(kind as FileKind, stamp);
  }
  return null;
}

/** A local time from `YYYYMMDD_HHMMSS`, or null when there is no such day. */
function parsed(kind: FileKind, stamp: string): ParsedFileName | null {
  const part = (from: number, to: number) => Number(stamp.slice(from, to));
  const time = new Date(part(0, 4), part(4, 6) - 1, part(6, 8), part(9, 11), part(11, 13), part(13, 15));
  const exists = time.getMonth() + 1 === part(4, 6) && time.getDate() === part(6, 8) && part(9, 11) < 24 &&
    part(11, 13) < 60 && part(13, 15) < 60;
  return exists ? { kind, time, gzipped: false } : null;
}

/** The files that SQLite keeps beside a database: they belong to it, and to no other. */
export function sidecarsOf(database: string): { wal: string; shm: string; journal: string } {
  return { wal: `${database}-wal`, shm: `${database}-shm`, journal: `${database}-journal` };
}

/** The path of a contract file in a folder of the layout. */
export function pathIn(folder: string, name: string): string {
  return pathsOf(HERE).join(folder, name);
}

/** The folder that a path is in. */
export function folderOf(path: string): string {
  return pathsOf(HERE).dirname(path);
}

/** Where a file is made before it gets its name: `NAME.partial`. */
export function partialOf(path: string): string {
  return `${path}.partial`;
}
