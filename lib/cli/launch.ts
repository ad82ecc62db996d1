/**
 * Starts a script with exactly the permissions that this run needs: `deno task NAME` for any store.
 *
 * usage: deno run --allow-env --allow-read --allow-run launch.ts NAME [ARGUMENT ...]
 * It starts the Deno that runs it. `--allow-run=deno` would need that one on the PATH, which cron does not have.
 * @module
 */
import { locate, readEnv } from "../fs/locate.ts";
import { accessFlags } from "../fs/permissions.ts";
import { accessOf, type Command } from "./access.ts";
import { parseFlags } from "./command.ts";

const IS_WINDOWS = Deno.build.os === "windows";

/** The flags of `deno run` for these arguments. None for wrong usage and `--help`: the script prints these itself. */
function permissionsFor(command: Command, args: string[]): string[] {
  try {
    const flags = parseFlags(command, args);
    if (flags["help"]) return [];
    const { env, read, write } = accessOf(command, flags, locate(flags["base"] as string | undefined));
    // The script warns when this variable is set and --base makes it ignore it.
    const ignored = read.length > 0 && readEnv("TELEMETRY_NDJSON_DIR") ? ["TELEMETRY_NDJSON_DIR"] : [];
    return accessFlags({ env: [...env, ...ignored], read, write });
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
  }).spawn();
  // The script decides when to end: it must never go on alone. On Windows, Ctrl-C reaches it by itself.
  for (const signal of IS_WINDOWS ? ["SIGINT"] as const : ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    Deno.addSignalListener(signal, () => {
      try {
        if (!IS_WINDOWS) child.kill(signal);
      } catch { /* it has just ended */ }
    });
  }
  Deno.exit((await child.status).code);
}
