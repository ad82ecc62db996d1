/**
 * Starts a script with exactly the permissions that this run needs: `deno task NAME` for any store.
 *
 * usage: deno run --allow-env --allow-read --allow-run launch.ts NAME [ARGUMENT ...]
 * It starts the Deno that runs it. `--allow-run=deno` would need that one on the PATH, which cron does not have.
 * @module
 */
import { locate } from "../fs/locate.ts";
import { accessOf, accessToWarn, type Command } from "./access.ts";
import { accessFlags } from "../fs/permissions.ts";
import { parseFlags } from "./command.ts";

/** The flags of `deno run` for these arguments. None for wrong usage and `--help`: the script prints these itself. */
function permissionsFor(command: Command, args: string[]): string[] {
  try {
    const flags = parseFlags(command, args);
    if (flags["help"]) return [];
    const layout = locate(flags["base"] as string | undefined);
    const { env, read, write } = accessOf(command, flags, layout);
    if (read.length === 0) return [];
    const warn = accessToWarn(layout);
    return accessFlags({ env: [...env, ...warn.env], read: [...read, ...warn.read], write });
  } catch {
    return [];
  }
}

function passOn(signal: Deno.Signal, child: Deno.ChildProcess): void {
  try {
    if (Deno.build.os !== "windows") child.kill(signal);
  } catch { /* it has just ended */ }
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
  // The script decides when to end: it must never go on alone. On Windows, Ctrl-C reaches it by itself.
  for (const signal of ["SIGINT", ...Deno.build.os === "windows" ? [] : ["SIGTERM", "SIGHUP"] as const] as const) {
    Deno.addSignalListener(signal, () => passOn(signal, child));
  }
  Deno.exit((await child.status).code);
}
