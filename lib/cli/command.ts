/**
 * Runs a script: flags, help, permissions, errors, exit codes. Only `cli/` prints or exits.
 * @module
 */
import { parseArgs } from "node:util";
import { fileURLToPath } from "node:url";
import { errorMessage, fileError, TelemetryError } from "../errors.ts";
import { unfinishedFiles } from "../fs/atomic_file.ts";
import { oneLine } from "../format.ts";
import { isFolder, locate, otherStoresWithData, pathExists, readEnv } from "../fs/locate.ts";
import { type Access, assertAccess, HOME_STORES, quoteForShell, shellFlags } from "../fs/permissions.ts";
import { absolutePath, BASE_VARIABLES, candidateFolders, isInFolder, type Layout, layoutOf } from "../layout.ts";
import type { OnProgress } from "../sqlite/connection.ts";
import { removeStaleFiles } from "../store/stale_files.ts";
import { accessOf, accessWithoutStore, type Command, type Flag, type FlagValues } from "./access.ts";
import { clearBar, jsonLine, paint, print, progressBar, wrap } from "./output.ts";

export type { Command } from "./access.ts";

const SHARED_FLAGS: Record<string, Flag> = {
  base: { value: "DIR", about: "the folder of the store (default: see below)" },
  json: { about: "print one JSON object on stdout instead of text" },
  quiet: { about: "print only warnings and errors" },
  help: { about: "print this help and exit (also -h)" },
  version: { about: "print the version and exit" },
};

/** Flags that promise to change nothing, and those that must not delete the file that they are given. */
const KEEP_STALE_FILES = ["check-only", "list", "dry-run", "restore", "with-backup"];

/** By script, its flags that are looked for in others. */
export const FLAGS_OF: Record<string, readonly string[]> = {
  backup_database: ["keep"],
  backup_telemetry_db: ["restore", "replay", "keep-days"],
  recover_database: ["force", "check-only", "end-stale"],
  export_csv: ["table", "columns", "status"],
  report_runs: ["failed", "running", "run", "html", "follow"],
};

/** The version in `deno.json`. A script that is run by URL cannot read that file. */
const VERSION = "0.1.0";

/** What a script did, for `--json`. */
export type Result = Record<string, unknown>;

/** What a running script uses to talk to its operator. */
export class Terminal {
  /** The exit code when the task returns. */
  exitCode = 0;
  /** What Ctrl-C does. While SQLite copies a file, which blocks this thread, it has to wait. */
  onInterrupt: () => void;
  readonly flags: FlagValues;
  readonly #command: Command;
  readonly #isSilent: boolean;

  constructor(command: Command, flags: FlagValues) {
    this.#command = command;
    this.flags = flags;
    this.#isSilent = Boolean(flags["json"] || flags["quiet"]);
    this.onInterrupt = () => {
      printError(
        command,
        "interrupted",
        unfinishedFiles().map((path) => `${path} is incomplete: the next run removes it`),
      );
      Deno.exit(130);
    };
  }

  /**
   * Finds the store and checks that Deno grants what the script needs. Warns when another store has data, too.
   *
   * @throws {TelemetryError} `permission`, `no_storage`
   */
  locate(): Layout {
    const [command, flags] = [this.#command, this.flags];
    const base = flags["base"] as string | undefined;
    const anyStore = accessWithoutStore(command);
    const check = (needed: Partial<Access>, printed: Access) =>
      assertAccess({ env: [], read: [], write: [], ...needed }, hintToRun(printed));
    if (base === undefined) check({ env: anyStore.env }, anyStore);
    const exists = (folder: string) => {
      check({ read: [folder] }, anyStore);
      return isFolder(folder);
    };
    const layout = locate(base, { env: readEnv, exists });
    const access = accessOf(command, flags, layout);
    check(access, access);
    const ignored = base === undefined ? undefined : readEnv("TELEMETRY_NDJSON_DIR");
    if (ignored) this.warn(`TELEMETRY_NDJSON_DIR (${ignored}) is ignored with --base: the log is in ${layout.raw}`);
    const { source } = layout.choice;
    for (const name of base === undefined ? [source, "TELEMETRY_NDJSON_DIR"] : []) {
      const [path, cwd] = [readEnv(name), Deno.cwd()];
      if (!path || absolutePath(path, cwd, Deno.build.os) === path) continue;
      this.warn(`${name}=${path} depends on the current folder, which is ${cwd}: set the whole path`);
    }
    // A store that a flag or a variable names was chosen on purpose.
    for (const other of source === "found" ? otherStoresWithData(layout) : []) {
      this.warn(`using ${layout.base}, but ${other} has data, too: choose with --base DIR`);
    }
    if (!command.createsStore) assertStore(layout);
    if (!KEEP_STALE_FILES.some((flag) => flags[flag])) removeStaleFiles(layout, access.write);
    this.progress(command.name);
    return layout;
  }

  /** Prints a line on stdout, except with `--quiet` or `--json`. Names in it may have characters that a terminal acts on. */
  say(line: string): void {
    this.show(oneLine(line));
  }

  /** Prints text that is made for a terminal, as {@linkcode say} does. */
  show(text: string): void {
    if (!this.#isSilent) print(Deno.stdout, text);
  }

  /** Prints a warning on stderr. */
  warn(line: string): void {
    print(Deno.stderr, `${paint("warning:", 33)} ${oneLine(withCommands(line))}`);
  }

  /** Shows what is being done, and a progress bar for its steps. Undefined when stderr is not a terminal. */
  progress(label: string): OnProgress | undefined {
    return this.#isSilent || !Deno.stderr.isTerminal() ? undefined : progressBar(label);
  }

  /** Asks a question. Returns undefined when stdin is not a terminal. */
  confirm(question: string): boolean | undefined {
    clearBar();
    if (!Deno.stdin.isTerminal()) return undefined;
    const answer = prompt(`${oneLine(question)} [y/N]`);
    // Ctrl-C, which no listener gets while this thread waits for the answer.
    if (answer === null) this.onInterrupt();
    return /^\s*y(es)?\s*$/i.test(answer ?? "");
  }
}

/** Runs a script and exits: 0 done, 1 failed, 2 wrong usage. With `--json`, prints what `task` returns. */
export async function runCommand(command: Command, task: (terminal: Terminal) => Result | Promise<Result>) {
  const json = Deno.args.includes("--json");
  try {
    const flags = parseFlags(command, Deno.args);
    if (flags["help"] || flags["version"]) {
      print(Deno.stdout, flags["help"] ? helpText(command) : `${command.name} ${VERSION}`);
      Deno.exit(0);
    }
    const terminal = new Terminal(command, flags);
    Deno.addSignalListener("SIGINT", () => terminal.onInterrupt());
    const result = await task(terminal);
    if (json) print(Deno.stdout, jsonLine({ ok: terminal.exitCode === 0, ...result }));
    clearBar();
    Deno.exit(terminal.exitCode);
  } catch (error) {
    Deno.exit(reportFailure(command, error, { json }));
  }
}

/**
 * Parses the arguments of a script.
 *
 * @throws {TelemetryError} `usage`
 */
export function parseFlags(command: Command, args: string[]): FlagValues {
  const flags: Record<string, Flag> = { ...command.flags, ...SHARED_FLAGS };
  const options = Object.fromEntries(
    Object.entries(flags).map(([name, { value }]) => [name, {
      type: value ? "string" as const : "boolean" as const,
      ...name === "help" ? { short: "h" } : {},
    }]),
  );
  // Not strict: its errors are in the words of a library.
  const { values, tokens } = parseArgs({ args, options, strict: false, tokens: true });
  const seen = new Set<string>();
  for (const token of tokens) {
    if (token.kind !== "option") {
      const text = "value" in token ? token.value : "--";
      throw wrongFlag(command, `${text} is neither a flag nor the value of one`);
    }
    const { name, rawName, value, inlineValue } = token;
    if (!Object.hasOwn(flags, name)) throw wrongFlag(command, `there is no flag ${rawName}`, name);
    if (!flags[name]!.value) {
      if (value !== undefined) throw wrongFlag(command, `--${name} takes no value`);
      continue;
    }
    if (!value || !inlineValue && /^-./.test(value)) throw wrongFlag(command, `--${name} needs a value`);
    if (seen.size === seen.add(name).size) throw wrongFlag(command, `--${name} is given twice`);
  }
  for (const [name, { excludes = [], needs = [name] }] of Object.entries(command.flags)) {
    if (values[name] === undefined) continue;
    const other = excludes.find((flag) => values[flag] !== undefined);
    if (other !== undefined) throw wrongFlag(command, `--${other} cannot be used with --${name}`);
    if (needs.every((flag) => values[flag] === undefined)) {
      throw wrongFlag(command, `--${name} needs --${needs.join(" or --")}`);
    }
  }
  const { base } = values;
  // A shell does not expand --base=~/store, and a folder named "~" would be created.
  if (/^~/.test(String(base))) throw wrongFlag(command, `--base ${base}: the shell did not expand "~", use "$HOME"`);
  return values as FlagValues;
}

/** @param unknown the name of a flag that there is not */
function wrongFlag(command: Command, message: string, unknown = ""): TelemetryError {
  const names = Object.keys({ ...command.flags, ...SHARED_FLAGS });
  const meant = unknown && names.find((name) => isSimilar(name, unknown));
  const owner = Object.keys(FLAGS_OF).find((script) => FLAGS_OF[script]!.includes(unknown));
  const first = owner ? `--${unknown} is a flag of ${owner}; ` : meant ? `did you mean --${meant}? ` : "";
  return new TelemetryError("usage", message, { hint: `${first}see ${command.name} --help` });
}

/** Whether one name is the start of the other, or they differ in one letter, or in the order of two. */
function isSimilar(a: string, b: string): boolean {
  if (a.startsWith(b) || b.startsWith(a)) return true;
  let start = 0, end = 0;
  while (a[start] === b[start]) start++;
  while (a.at(-1 - end) === b.at(-1 - end)) end++;
  const [left, right] = [a.slice(start, a.length - end), b.slice(start, b.length - end)];
  return left.length <= 1 && right.length <= 1 || left === [...right].reverse().join("");
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

/** Prints what is wrong, and lines that say what to do about it. */
function printError({ name }: Command, message: string, hints: string[]): void {
  print(Deno.stderr, `${paint(`${name}:`, 31)} ${oneLine(message)}`);
  for (const hint of hints) print(Deno.stderr, `  -> ${oneLine(withCommands(hint))}`);
}

/** Reports an error. Returns the exit code. */
function reportFailure(command: Command, thrown: unknown, { json }: { json: boolean }): number {
  const isSystemError = Object.values(Deno.errors).some((type) => thrown instanceof type);
  const error = isSystemError ? fileError(thrown, "this failed") : thrown;
  const message = errorMessage(error);
  let [code, hint]: [string, string | undefined] = ["unexpected", "please report this defect of the toolkit"];
  if (error instanceof TelemetryError) {
    // The hint of the file system is about the owner of files.
    const isDenied = error.cause instanceof Deno.errors.NotCapable;
    [code, hint] = [error.code, isDenied ? "--help lists the permissions that Deno must grant" : error.hint];
  }
  printError(command, message, hint ? [hint] : []);
  if (code === "unexpected" && error instanceof Error) print(Deno.stderr, error.stack ?? "");
  try {
    if (json) print(Deno.stdout, jsonLine({ ok: false, error: { code, message, hint: hint ?? null } }));
  } catch { /* this may be what failed */ }
  return code === "usage" ? 2 : 1;
}

/** Checks that there is a store, so that a mistyped folder does not become a new, empty one. */
function assertStore({ base, raw, db }: Layout): void {
  if (isFolder(raw) || isFolder(db)) return;
  const what = pathExists(base) ? `${base} is not a store: it has neither raw/ nor db/` : `${base} does not exist`;
  throw new TelemetryError("no_storage", what, {
    hint: "name the folder of the store with --base DIR; to create a store there, run setup_storage --with-database",
  });
}

/** The complete command with this access, to paste. */
function hintToRun(access: Access): string {
  if (Deno.build.standalone) {
    return "the permissions of this program are built in: compile it with others, or run the script with deno run";
  }
  // The script as it was given to Deno: a URL, or a path.
  const { mainModule } = Deno;
  const script = mainModule.startsWith("file:") ? fileURLToPath(mainModule) : mainModule;
  return `run: deno run ${[...shellFlags(access), ...[script, ...Deno.args].map(quoteForShell)].join(" ")}`;
}

/** A text that says "run SCRIPT", with the command that starts this script of the same toolkit for the same store. */
export function withCommands(text: string): string {
  const base = Deno.args.filter((arg, i, args) => /^--base(=|$)/.test(arg) || args[i - 1] === "--base");
  return text.replace(/\brun ((?:setup|backup|recover|export|report)_\w+)/g, (_, name) => {
    return `run ${[...starterOf(name), ...base].map(quoteForShell).join(" ")}`;
  });
}

function starterOf(name: string): string[] {
  if (Deno.build.standalone) return [name];
  const toolkit = new URL("../../", import.meta.url);
  if (toolkit.protocol !== "file:") return ["deno", "run", new URL(`scripts/${name}.ts`, toolkit).href];
  const folder = fileURLToPath(toolkit).replace(/[/\\]$/, "");
  return ["deno", "task", ...isInFolder(Deno.cwd(), folder) ? [] : ["--cwd", folder], name];
}

/** How wide `--help` is, in characters. */
const HELP_WIDTH = 80;

function helpText(command: Command): string {
  const { name, summary, flags, example } = command;
  const options = Object.entries({ ...flags, ...SHARED_FLAGS })
    .map(([flag, { value, about }]) => [`  --${flag}${value ? ` ${value}` : ""}`, about] as const);
  const column = Math.max(...options.map(([usage]) => usage.length)) + 2;
  const indented = (text: string, indent: number) => wrap(text, HELP_WIDTH - indent).join(`\n${" ".repeat(indent)}`);
  const base = Deno.build.os === "windows" ? "C:\\telemetry" : "/srv/telemetry";
  const access = accessOf(command, { base }, layoutOf(base));
  const words = ["deno run", ...shellFlags(access), `scripts/${name}.ts --base ${base}`, ...example ? [example] : []];
  const folders = [...candidateFolders(Deno.build.os, undefined), HOME_STORES[0]!];
  return `${indented(`${name}: ${summary}`, 0)}

usage: ${name} [options]

options:
${options.map(([usage, about]) => usage.padEnd(column) + indented(about, column)).join("\n")}

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
