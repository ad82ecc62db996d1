/**
 * What the six scripts share: flags, help, permissions, report lines, exit codes. The only module that prints or
 * exits; for scripts alone.
 * @module
 */
import { parseArgs } from "node:util";
import { writeAll } from "../fs/atomic_file.ts";
import { errorMessage, fileError, TelemetryError } from "../errors.ts";
import {
  BASE_VARIABLES,
  candidateFolders,
  defaultFolders,
  folderOf,
  homeFolderOf,
  type Layout,
  LAYOUT_VARIABLES,
  pathIn,
  STORE_VARIABLES,
} from "../layout.ts";
import {
  firstNotGranted,
  isFolder,
  isGranted,
  locate,
  otherStoresWithData,
  readEnv,
  realPath,
  statIfExists,
} from "../fs/locate.ts";

/** A flag of a script. */
export interface Flag {
  /** What it does, for `--help`; with its default, if it has one. */
  about: string;
  /** What its value stands for, as `DIR`; without it the flag takes none. */
  value?: string;
}

/** What `--help` says of a script. */
export interface Command {
  /** The script's name, without `.ts`. */
  name: string;
  /** What it does, in a line. */
  summary: string;
  /** Its own flags, beside those that every script has. */
  flags?: Record<string, Flag>;
  /** The arguments of an example. */
  example: string;
}

/** What a script did, for `--json`. */
export type Result = Record<string, unknown>;

const SHARED_FLAGS: Record<string, Flag> = {
  base: { value: "DIR", about: "the folder of the store (default: the first that is set or exists, see below)" },
  json: { about: "print one JSON object on stdout instead of text" },
  quiet: { about: "print warnings and errors alone" },
  help: { about: "print this and exit" },
};

/** What a task needs beside a store that may be used. */
export interface Use {
  /** Whether a folder that is no store is refused: an operator may have mistyped it. @default true */
  mustExist?: boolean;
  /** A file that is read, wherever it is. */
  reads?: string | undefined;
  /** A file that is written, wherever it is. */
  writes?: string | undefined;
}

/** The operator's side of a running script. */
export interface Terminal {
  /** What the script exits with when its task has come to its end. @default 0 */
  exitCode: number;
  /** The value of each flag that was given: text, or true. */
  readonly flags: Readonly<Record<string, string | boolean | undefined>>;
  /**
   * Where the store is. Warns when another folder holds data too.
   * @param use what else the task needs
   * @throws {TelemetryError} `no_storage`, `in_the_way` when it must exist and does not
   * @throws {TelemetryError} `permission` when Deno does not let the script see or change it
   */
  locate(use?: Use): Layout;
  /** A line of the report: stdout, unless `--quiet` or `--json`. */
  say(line: string): void;
  /** A warning: stderr, always. */
  warn(line: string): void;
  /**
   * How far a piece of work is: a bar on stderr, with the rate and the time left. Undefined where there is no terminal.
   * @param what is done
   * @param unitBytes how many bytes one step of `done` is
   */
  progress(what: string, unitBytes: number): ((done: number, total: number) => void) | undefined;
  /** Asks a question that `y` or `yes` answers with yes; undefined without a terminal, where nobody can answer. */
  confirm(question: string): boolean | undefined;
}

/**
 * Runs a script: reads its flags, does its task, reports, and exits with 0 (done), 1 (failed) or 2 (wrong usage).
 *
 * @param command what `--help` says
 * @param task does the work; what it returns is what `--json` prints
 */
export async function runCommand(command: Command, task: (terminal: Terminal) => Result | Promise<Result>) {
  let json = Deno.args.includes("--json");
  try {
    const flags = parseFlags(command);
    json = flags["json"] === true;
    if (flags["help"]) {
      print(Deno.stdout, helpOf(command));
      Deno.exit(0);
    }
    const silent = json || flags["quiet"] === true;
    const warn = (line: string) => print(Deno.stderr, `${paint("warning:", 33)} ${line}`);
    const terminal: Terminal = {
      exitCode: 0,
      flags,
      locate: (use = {}) => {
        const layout = locateForScript(flags["base"] as string | undefined, use, warn);
        if (use.mustExist ?? true) requireStore(layout);
        return layout;
      },
      say: (line) => silent || print(Deno.stdout, line),
      warn,
      progress: (what, unitBytes) => silent || !Deno.stderr.isTerminal() ? undefined : progressBar(what, unitBytes),
      confirm: (question) =>
        Deno.stdin.isTerminal() ? /^y(es)?$/i.test(prompt(`${question} [y/N]`)?.trim() ?? "") : undefined,
    };
    const result = await task(terminal);
    if (json) print(Deno.stdout, JSON.stringify({ ok: terminal.exitCode === 0, ...result }));
    Deno.exit(terminal.exitCode);
  } catch (error) {
    Deno.exit(reportFailure(command, isFromSystem(error) ? fileError(error, "this failed") : error, json));
  }
}

/**
 * A flag's value as a number of at least 1.
 *
 * @throws {TelemetryError} `usage`
 */
export function wholeNumber(flag: string, value: string | boolean | undefined, byDefault: number): number {
  if (value === undefined) return byDefault;
  if (typeof value === "string" && /^[1-9]\d{0,5}$/.test(value)) return Number(value);
  throw new TelemetryError("usage", `--${flag} takes a whole number from 1 on, not "${value}"`, {
    hint: `say --${flag} ${byDefault}, which is also what happens without it`,
  });
}

function parseFlags(command: Command): Terminal["flags"] {
  const options = Object.fromEntries(
    Object.entries({ ...command.flags, ...SHARED_FLAGS })
      .map(([name, flag]) => [name, { type: flag.value ? "string" as const : "boolean" as const }]),
  );
  try {
    const { values, tokens } = parseArgs({
      args: Deno.args,
      options,
      strict: true,
      allowPositionals: false,
      tokens: true,
    });
    const given = tokens.flatMap((token) => token.kind === "option" && token.value !== undefined ? [token.name] : []);
    const twice = given.find((name, i) => given.indexOf(name) < i);
    if (twice !== undefined) throw new Error(`--${twice} is given twice`);
    const { base } = values;
    if (base === "") throw new Error("--base needs a folder");
    // A shell leaves it in --base=~/store, and a folder of that name would be made.
    if (/^~/.test(String(base))) throw new Error(`--base ${base}: "~" was not replaced by the shell, say "$HOME"`);
    return values as Terminal["flags"];
  } catch (error) {
    throw new TelemetryError("usage", errorMessage(error), { hint: `see ${command.name} --help` });
  }
}

/** Whether the operating system or Deno's permissions refused something that the task did not expect. */
function isFromSystem(error: unknown): boolean {
  return Object.values(Deno.errors).some((type) => error instanceof type);
}

/** Prints what went wrong and what to do about it; the exit code. */
function reportFailure(command: Command, thrown: unknown, json: boolean): number {
  const foreseen = thrown instanceof TelemetryError;
  const message = errorMessage(thrown);
  const hint = foreseen ? hintOf(thrown) : "this is a defect of the toolkit: please report it with the lines below";
  print(Deno.stderr, `${paint(`${command.name}:`, 31)} ${message}`);
  if (hint) print(Deno.stderr, `  -> ${hint}`);
  if (!foreseen && thrown instanceof Error) print(Deno.stderr, thrown.stack ?? "");
  if (json) {
    const error = { code: foreseen ? thrown.code : "unexpected", message, hint: hint ?? null };
    try {
      print(Deno.stdout, JSON.stringify({ ok: false, error }));
    } catch { /* that may be what has failed */ }
  }
  return foreseen && thrown.code === "usage" ? 2 : 1;
}

/** What to do about a failure. What Deno refused in the midst of the work needs more permissions, not other rights. */
function hintOf(error: TelemetryError): string | undefined {
  if (!(error.cause instanceof Deno.errors.NotCapable)) return error.hint;
  return `Deno was not allowed to: ${error.cause.message.replace(/, run again.*/, "")}; see --help for the permissions`;
}

/** Writes a line at once. A reader that has gone (`| head`) is no error. */
function print(to: typeof Deno.stdout | typeof Deno.stderr, line: string): void {
  clearBar();
  const bytes = new TextEncoder().encode(`${line}\n`);
  try {
    writeAll(to, bytes);
  } catch (error) {
    // Nobody can be told that the errors cannot be told.
    if (to === Deno.stdout && !(error instanceof Deno.errors.BrokenPipe)) {
      throw fileError(error, "cannot write to stdout");
    }
  }
}

/** Draws a bar anew at most ten times a second, and takes it away when the work is done. */
function progressBar(what: string, unitBytes: number): (done: number, total: number) => void {
  // From the first step on: other work may come before it.
  let start: number | undefined;
  let drawn = 0;
  return (done, total) => {
    const now = performance.now();
    start ??= now;
    if (done >= total) return clearBar();
    if (now - start < 100 || now - drawn < 100) return;
    drawn = now;
    isBarDrawn = true;
    const width = 30;
    const filled = Math.round(done / total * width);
    const perSecond = done / (now - start) * 1000;
    const left = Math.ceil((total - done) / perSecond);
    const bar = "#".repeat(filled).padEnd(width, ".");
    printRaw(
      `\r${what} [${bar}] ${Math.floor(done / total * 100)}% ${
        megabytes(perSecond * unitBytes)
      }/s, ${left} s left\x1b[K`,
    );
  };
}

/** Whether a bar stands in the line where the next text would go. */
let isBarDrawn = false;

function clearBar(): void {
  if (isBarDrawn) printRaw("\r\x1b[K");
  isBarDrawn = false;
}

/** A number of bytes for people. */
export function megabytes(bytes: number): string {
  return bytes < 1e6 ? `${Math.ceil(bytes / 1000)} kB` : `${(bytes / 1e6).toFixed(bytes < 1e8 ? 1 : 0)} MB`;
}

function printRaw(text: string): void {
  Deno.stderr.writeSync(new TextEncoder().encode(text));
}

/** Colours a word on a terminal; `NO_COLOR` is obeyed. */
function paint(word: string, colour: number): string {
  return Deno.stderr.isTerminal() && !Deno.noColor ? `\x1b[${colour}m${word}\x1b[0m` : word;
}

/** Finds the store, and sees first that Deno lets the script use it: else the whole command that would do. */
function locateForScript(base: string | undefined, use: Use, warn: Terminal["warn"]): Layout {
  const env = base ? [] : [...STORE_VARIABLES, HOME];
  const platform = Deno.build.os;
  if (env.some((variable) => !isGranted({ name: "env", variable }))) {
    throw missingPermission("Deno does not let this script read the variables that say where the store is", {
      folders: [...candidateFolders(platform, undefined), HOME_STORE],
    });
  }
  const candidates = candidateFolders(platform, homeFolderOf(readEnv, platform));
  const layout = locate(base, {
    env: readEnv,
    exists: (folder) => {
      if (isGranted({ name: "read", path: folder })) return isFolder(folder);
      throw missingPermission(`Deno does not let this script see whether ${folder} exists`, { folders: candidates });
    },
  });
  requireAccess(layout, use, base === undefined);
  const moved = base === undefined ? undefined : readEnv("TELEMETRY_NDJSON_DIR");
  if (moved) warn(`TELEMETRY_NDJSON_DIR (${moved}) does not count beside --base: the log is in ${layout.raw}`);
  for (const other of base ? [] : otherStoresWithData(layout)) {
    warn(`using ${layout.base} (${layout.choice.source}), but ${other} holds data too: choose with --base DIR`);
  }
  return layout;
}

/** Sees that there is a store: who has mistyped its folder must not get a new and empty one there. */
function requireStore({ base, raw, db }: Layout): void {
  if (isFolder(raw) || isFolder(db)) return;
  const stat = statIfExists(base);
  if (stat !== undefined && !stat.isDirectory) {
    throw new TelemetryError("in_the_way", `${base} is a file, but a folder is needed there`, {
      hint: "name the folder of the store with --base DIR",
    });
  }
  const what = stat === undefined ? `there is no folder ${base}` : `${base} is no store: it has neither raw/ nor db/`;
  throw new TelemetryError("no_storage", what, {
    hint: "name the folder of the store with --base DIR; setup_storage makes a new one",
  });
}

const HOME = Deno.build.os === "windows" ? "USERPROFILE" : "HOME";
/** The store in the user's home folder, as a shell understands it. */
const HOME_STORE = Deno.build.os === "windows" ? "%USERPROFILE%\\.telemetry" : '"$HOME/.telemetry"';

function requireAccess({ choice, base, raw, db }: Layout, { reads, writes }: Use, byEnvironment: boolean): void {
  const platform = Deno.build.os;
  const folders = choice.source === "default"
    ? [...defaultFolders(platform, homeFolderOf(readEnv, platform)), ...choice.raw ? [choice.raw] : []]
    : [base, db, raw];
  const written = writes === undefined ? [] : [folderOf(writes)];
  const read = reads === undefined ? [] : [folderOf(reads)];
  const refused = firstNotGranted([...folders, ...written]) ??
    (reads === undefined || isGranted({ name: "read", path: reads }) ? undefined : read[0]);
  if (refused === undefined) return;
  const isOuter = (path: string) => !path.startsWith(pathIn(base, "x").slice(0, -1));
  const outer = choice.source === "default"
    ? candidateFolders(platform, homeFolderOf(readEnv, platform)).concat(choice.raw ?? [])
    : folders.filter(isOuter);
  outer.push(...written.filter(isOuter));
  throw missingPermission(`Deno does not let this script use ${refused}`, {
    folders: [...new Set([...outer, ...outer.map(realPath)])],
    reads: read.filter(isOuter),
    env: byEnvironment,
  });
}

/** What Deno has to grant. */
interface Access {
  /** Folders to read and write. */
  folders: string[];
  /** Folders to read alone. */
  reads?: string[];
  /** Whether the variables that say where the store is are read. @default true */
  env?: boolean;
}

/** The error for a permission that is missing, with the whole command, ready to paste. */
function missingPermission(message: string, access: Access): TelemetryError {
  const again = Deno.build.standalone
    ? "the permissions of this program are built in: use the script with deno run, or compile it with other ones"
    : `run: deno run ${permissionFlags(access)} ${[scriptPath(), ...Deno.args].map(quoted).join(" ")}`;
  return new TelemetryError("permission", message, { hint: again });
}

function permissionFlags({ folders, reads = [], env = true }: Access): string {
  const listOf = (folders: string[]) => {
    // A comma ends a path in these flags, and nothing escapes it.
    if (folders.some((folder) => folder.includes(","))) return "";
    return `=${folders.map((folder) => folder === HOME_STORE ? folder : quoted(folder)).join(",")}`;
  };
  const flags = [`--allow-read${listOf([...folders, ...reads])}`, `--allow-write${listOf(folders)}`];
  if (env) flags.unshift(`--allow-env=${LAYOUT_VARIABLES.join(",")}`);
  return flags.join(" ");
}

/** The script as it was named to Deno: a URL, or a path. */
function scriptPath(): string {
  const url = new URL(Deno.mainModule);
  if (url.protocol !== "file:") return url.href;
  const path = decodeURIComponent(url.pathname);
  return Deno.build.os === "windows" ? path.slice(1) : path;
}

/** An argument as a shell takes it. */
function quoted(argument: string): string {
  if (/^[\w@%+=:,./-]+$/.test(argument)) return argument;
  return Deno.build.os === "windows" ? `"${argument}"` : `'${argument.replaceAll("'", `'\\''`)}'`;
}

function helpOf({ name, summary, flags, example }: Command): string {
  const all = Object.entries({ ...flags, ...SHARED_FLAGS })
    .map(([flag, { value, about }]) => ({ usage: `--${flag}${value ? ` ${value}` : ""}`, about }));
  const width = Math.max(...all.map(({ usage }) => usage.length));
  const folders = [...candidateFolders(Deno.build.os, undefined), HOME_STORE];
  const script = `scripts/${name}.ts`;
  return `${name}: ${summary}

usage: ${name} ${all.map(({ usage }) => `[${usage}]`).join(" ")}

options:
${all.map(({ usage, about }) => `  ${usage.padEnd(width)}  ${about}`).join("\n")}

where the store is (the first that applies):
  --base DIR, ${BASE_VARIABLES.map((variable) => `$${variable}`).join(", ")},
  the first of these folders that exists: ${folders.join(", ")}
  ($TELEMETRY_NDJSON_DIR moves raw/ alone, unless there is --base)

example, with all permissions it needs:
  deno run ${permissionFlags({ folders: ["/srv/telemetry"], env: false })} ${script} --base /srv/telemetry${
    example && ` ${example}`
  }
without --base:
  deno run ${permissionFlags({ folders })} ${script}${example && ` ${example}`}

exit codes: 0 done, 1 failed, 2 wrong usage`;
}
