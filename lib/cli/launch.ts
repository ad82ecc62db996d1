/**
 * Starts a script with exactly the permissions that this run needs: `deno task NAME` for any store.
 *
 * usage: deno run --allow-env --allow-read --allow-run launch.ts NAME [ARGUMENT ...]
 * @module
 */
import { locate } from "../fs/locate.ts";
import { accessFlags, accessOf, type Command } from "./access.ts";
import { parseFlags } from "./command.ts";

/** The flags of `deno run` for these arguments. None for wrong usage and `--help`: the script prints these itself. */
function permissionsFor(command: Command, args: string[]): string[] {
  try {
    const flags = parseFlags(command, args);
    if (flags["help"]) return [];
    return accessFlags(accessOf(command, flags, locate(flags["base"] as string | undefined)));
  } catch {
    return [];
  }
}

if (import.meta.main) {
  const [name, ...args] = Deno.args;
  // A task runs in the folder of deno.json. Relative paths start from where it was called.
  const calledFrom = Deno.env.get("INIT_CWD");
  if (calledFrom) Deno.chdir(calledFrom);
  const script = new URL(`../../scripts/${name}.ts`, import.meta.url);
  const { COMMAND } = await import(script.href) as { COMMAND: Command };
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "--no-prompt", ...permissionsFor(COMMAND, args), script.href, ...args],
    stdin: "inherit",
    stdout: "inherit",
    stderr: "inherit",
  }).spawn();
  // Ctrl-C in a terminal reaches the script, too: it decides when to end.
  Deno.addSignalListener("SIGINT", () => {});
  if (Deno.build.os !== "windows") Deno.addSignalListener("SIGTERM", () => child.kill("SIGTERM"));
  const { code, signal } = await child.status;
  Deno.exit(signal === null ? code : 1);
}
