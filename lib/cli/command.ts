/**
 * Runs a script: flags, help, permissions, errors, exit codes. Only `cli/` prints or exits.
 * @module
 */
import { parseArgs } from "node:util";
import { errorMessage, fileError, TelemetryError } from "../errors.ts";
import { unfinishedFiles } from "../fs/atomic_file.ts";
import { isFolder, locate, otherStoresWithData, readEnv, statIfExists } from "../fs/locate.ts";
import { BASE_VARIABLES, candidateFolders, type Layout, layoutOf } from "../layout.ts";
import type { OnProgress } from "../sqlite/connection.ts";
import { removeStaleFiles } from "../store/stale_files.ts";
import {
  accessOf,
  accessWithoutStore,
  type Command,
  firstNotGranted,
  type Flag,
  type FlagValues,
  isHomeKnown,
} from "./access.ts";
import { type Access, HOME_STORES, quoteForShell, shellFlags } from "../fs/permissions.ts";
import { clearBar, paint, print, progressBar, wrap } from "./output.ts";

export type { Command } from "./access.ts";

const SHARED_FLAGS: Record<string, Flag> = {
  base: { value: "DIR", about: "the folder of the store (default: see below)" },
  json: { about: "print one JSON object on stdout instead of text" },
  quiet: { about: "print only warnings and errors" },
  help: { about: "print this help and exit (also -h)" },
  version: { about: "print the version and exit" },
};

/** The version in `deno.json`. A script that is run by URL cannot read that file. */
const VERSION = "0.1.0";

/** What a script did, for `--json`. */
export type Result = Record<string, unknown>;

/** What a running script uses to talk to its operator. */
export interface Terminal {
  /** The exit code when the task returns. @default 0 */
  exitCode: number;
  readonly flags: FlagValues;
  /**
   * Finds the store and checks that Deno grants what the script needs. Warns when another store has data, too.
   *
   * @throws {TelemetryError} `permission`, `no_storage`, `in_the_way`
   */
  locate(): Layout;
  /** Prints a line of the report on stdout, except with `--quiet` or `--json`. */
  say(line: string): void;
  /** Prints a warning on stderr. */
  warn(line: string): void;
  /** Shows what is being done, and a progress bar for steps of so many bytes. Undefined when stderr is not a terminal. */
  progress(label: string, unitBytes: number): OnProgress | undefined;
  /** Asks a question. Returns undefined when stdin is not a terminal. */
  confirm(question: string): boolean | undefined;
  /** What Ctrl-C does. @default say which files are left, and exit with 130 */
  onInterrupt: () => void;
}

/** Runs a script and exits: 0 done, 1 failed, 2 wrong usage. With `--json`, prints what `task` returns. */
export async function runCommand(command: Command, task: (terminal: Terminal) => Result | Promise<Result>) {
  let json = Deno.args.includes("--json");
  try {
    const flags = parseFlags(command, Deno.args);
    json = flags["json"] === true;
    if (flags["help"] || flags["version"]) {
      print(Deno.stdout, flags["help"] ? helpText(command) : `${command.name} ${VERSION}`);
      Deno.exit(0);
    }
    const isSilent = json || flags["quiet"] === true;
    const warn = (line: string) => print(Deno.stderr, `${paint("warning:", 33)} ${line}`);
    const terminal: Terminal = {
      exitCode: 0,
      flags,
      locate: () => {
        const layout = locateStore(command, flags, warn);
        terminal.progress(command.name, 1);
        return layout;
      },
      say: (line) => isSilent || print(Deno.stdout, line),
      warn,
      progress: (label, unitBytes) => isSilent || !Deno.stderr.isTerminal() ? undefined : progressBar(label, unitBytes),
      confirm: (question) => {
        clearBar();
        return Deno.stdin.isTerminal() ? /^y(es)?$/i.test(prompt(`${question} [y/N]`)?.trim() ?? "") : undefined;
      },
      onInterrupt: () => exitInterrupted(command),
    };
    Deno.addSignalListener("SIGINT", () => terminal.onInterrupt());
    const result = await task(terminal);
    if (json) print(Deno.stdout, JSON.stringify({ ok: terminal.exitCode === 0, ...result }));
    clearBar();
    Deno.exit(terminal.exitCode);
  } catch (error) {
    Deno.exit(reportFailure(command, isSystemError(error) ? fileError(error, "this failed") : error, { json }));
  }
}

/**
 * Parses the arguments of a script.
 *
 * @throws {TelemetryError} `usage`
 */
export function parseFlags(command: Command, args: string[]): FlagValues {
  const options = Object.fromEntries(
    Object.entries({ ...command.flags, ...SHARED_FLAGS })
      .map(([name, flag]) => [name, {
        type: flag.value ? "string" as const : "boolean" as const,
        ...name === "help" ? { short: "h" } : {},
      }]),
  );
  try {
    const { values, tokens } = parseArgs({ args, options, strict: true, allowPositionals: false, tokens: true });
    const given = tokens.flatMap((token) => token.kind === "option" && token.value !== undefined ? [token.name] : []);
    const repeated = given.find((name, i) => given.indexOf(name) < i);
    if (repeated !== undefined) throw new Error(`--${repeated} is given twice`);
    for (const [name, { excludes = [] }] of Object.entries(command.flags)) {
      const other = values[name] === undefined ? undefined : excludes.find((flag) => values[flag] !== undefined);
      if (other !== undefined) throw new Error(`--${other} cannot be used with --${name}`);
    }
    const { base } = values;
    if (base === "") throw new Error("--base needs a folder");
    // A shell does not expand --base=~/store, and a folder named "~" would be created.
    if (/^~/.test(String(base))) throw new Error(`--base ${base}: the shell did not expand "~", use "$HOME"`);
    return values as FlagValues;
  } catch (error) {
    throw new TelemetryError("usage", errorMessage(error), { hint: `see ${command.name} --help` });
  }
}

/**
 * The value of a flag as a number of at least 1.
 *
 * @throws {TelemetryError} `usage`
 */
export function wholeNumber(flag: string, value: string | boolean | undefined, byDefault: number): number {
  if (value === undefined) return byDefault;
  if (typeof value === "string" && /^[1-9]\d{0,5}$/.test(value)) return Number(value);
  throw new TelemetryError("usage", `--${flag} takes a whole number of at least 1, not "${value}"`, {
    hint: `use --${flag} ${byDefault}, which is the default`,
  });
}

/** Ends a script on Ctrl-C. While SQLite copies a file, which blocks this thread, this has to wait. */
function exitInterrupted({ name }: Command): never {
  print(Deno.stderr, `${paint(`${name}:`, 31)} interrupted`);
  for (const path of unfinishedFiles()) print(Deno.stderr, `  -> ${path} is incomplete: the next run removes it`);
  Deno.exit(130);
}

function isSystemError(error: unknown): boolean {
  return Object.values(Deno.errors).some((type) => error instanceof type);
}

/** Prints what is wrong and what to do about it. Returns the exit code. */
function reportFailure(command: Command, thrown: unknown, { json }: { json: boolean }): number {
  const isExpected = thrown instanceof TelemetryError;
  const message = errorMessage(thrown);
  const hint = isExpected ? hintOf(thrown) : "this is a defect of the toolkit: please report it with the lines below";
  print(Deno.stderr, `${paint(`${command.name}:`, 31)} ${message}`);
  if (hint) print(Deno.stderr, `  -> ${hint}`);
  if (!isExpected && thrown instanceof Error) print(Deno.stderr, thrown.stack ?? "");
  if (json) {
    const error = { code: isExpected ? thrown.code : "unexpected", message, hint: hint ?? null };
    try {
      print(Deno.stdout, JSON.stringify({ ok: false, error }));
    } catch { /* this may be what failed */ }
  }
  return isExpected && thrown.code === "usage" ? 2 : 1;
}

/** The hint of an error. A permission that is missing in the middle of the work is not one of the file system. */
function hintOf(error: TelemetryError): string | undefined {
  if (!(error.cause instanceof Deno.errors.NotCapable)) return error.hint;
  return `Deno denied this: ${error.cause.message.replace(/, run again.*/, "")}; --help lists the permissions`;
}

function locateStore(command: Command, flags: FlagValues, warn: Terminal["warn"]): Layout {
  const base = flags["base"] as string | undefined;
  const anyStore = accessWithoutStore(command);
  const check = (needed: Access, printed: Access) => {
    const denied = firstNotGranted(needed);
    if (denied !== undefined) throw missingPermission(denied, printed);
  };
  if (base === undefined) check({ ...anyStore, read: [], write: [] }, anyStore);
  const layout = locate(base, {
    env: readEnv,
    exists: (folder) => {
      check({ env: [], read: [folder], write: [] }, anyStore);
      return isFolder(folder);
    },
  });
  const access = accessOf(command, flags, layout);
  check(access, access);
  const ignored = base === undefined ? undefined : readEnv("TELEMETRY_NDJSON_DIR");
  if (ignored) warn(`TELEMETRY_NDJSON_DIR (${ignored}) is ignored with --base: the log is in ${layout.raw}`);
  // A store that a flag or a variable names was chosen on purpose.
  for (const other of layout.choice.source === "found" ? otherStoresWithData(layout) : []) {
    warn(`using ${layout.base}, but ${other} has data, too: choose with --base DIR`);
  }
  if (!command.createsStore) assertStore(layout);
  // The first three promise to change nothing. The last two must not delete the file that they are given.
  if (!["check-only", "list", "dry-run", "restore", "with-backup"].some((flag) => flags[flag])) {
    removeStaleFiles(layout, access.write);
  }
  return layout;
}

/** Checks that there is a store, so that a mistyped folder does not become a new, empty one. */
function assertStore({ base, raw, db, choice }: Layout): void {
  if (isFolder(raw) || isFolder(db)) return;
  const stat = statIfExists(base);
  if (stat !== undefined && !stat.isDirectory) {
    throw new TelemetryError("in_the_way", `${base} is a file, but a folder is needed there`, {
      hint: "name the folder of the store with --base DIR",
    });
  }
  const what = stat === undefined ? `${base} does not exist` : `${base} is not a store: it has neither raw/ nor db/`;
  const home = choice.source === "--base" || isHomeKnown() ? "" : "; a store in the home folder needs --allow-env=HOME";
  throw new TelemetryError("no_storage", what, {
    hint: `name the folder of the store with --base DIR, or create a store with setup_storage${home}`,
  });
}

/** The error for a missing permission, with the complete command to paste. */
function missingPermission(denied: string, access: Access): TelemetryError {
  const command = `deno run ${shellFlags(access).join(" ")} ${
    [scriptPath(), ...Deno.args].map(quoteForShell).join(" ")
  }`;
  const hint = Deno.build.standalone
    ? "the permissions of this program are built in: compile it with others, or run the script with deno run"
    : `run: ${command}`;
  return new TelemetryError("permission", `Deno does not let this script ${denied}`, { hint });
}

/** The script as it was given to Deno: a URL, or a path. */
function scriptPath(): string {
  const url = new URL(Deno.mainModule);
  if (url.protocol !== "file:") return url.href;
  const path = decodeURIComponent(url.pathname);
  return Deno.build.os === "windows" ? path.slice(1) : path;
}

const HELP_WIDTH = 80;

function helpText(command: Command): string {
  const { name, summary, flags, example } = command;
  const all = Object.entries({ ...flags, ...SHARED_FLAGS })
    .map(([flag, { value, about }]) => ({ usage: `--${flag}${value ? ` ${value}` : ""}`, about }));
  const column = Math.max(...all.map(({ usage }) => usage.length)) + 4;
  const indented = (text: string, indent: number) => wrap(text, HELP_WIDTH - indent).join(`\n${" ".repeat(indent)}`);
  const base = Deno.build.os === "windows" ? "C:\\telemetry" : "/srv/telemetry";
  const access = accessOf(command, { base }, layoutOf(base));
  const words = ["deno run", ...shellFlags(access), `scripts/${name}.ts --base ${base}`, ...example ? [example] : []];
  const folders = [...candidateFolders(Deno.build.os, undefined), HOME_STORES[0]!];
  return `${wrap(`${name}: ${summary}`, HELP_WIDTH).join("\n")}

usage: ${
    indented(`${name} ${all.map(({ usage }) => `[${usage.replace(" ", "\0")}]`).join(" ")}`, 7).replaceAll("\0", " ")
  }

options:
${all.map(({ usage, about }) => `  ${usage.padEnd(column - 2)}${indented(about, column)}`).join("\n")}

where the store is (the first that applies):
  --base DIR
  ${BASE_VARIABLES.map((variable) => `$${variable}`).join(", ")}
  the first of these folders that exists:
    ${indented(folders.join(", "), 4)}
  ($TELEMETRY_NDJSON_DIR moves only raw/, and is ignored with --base)

example, with the permissions that it needs:
  ${words.join(" \\\n  ")}
Without --base, use "deno task ${name}", or run the script: it
prints the permissions that are missing.

exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted`;
}
