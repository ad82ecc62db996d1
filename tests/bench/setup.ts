/** How long a second setup takes, as a whole process, against an empty Deno process. */
import { run, scriptArgs } from "../fixtures/mod.ts";
import { median, type Part } from "./bench.ts";

const ROUNDS = 21;

export const setup: Part = async function* (folder) {
  const base = `${folder}/base`;
  const programs = {
    nothing: ["eval", "0"],
    storage: scriptArgs("setup_storage", base),
    database: scriptArgs("setup_database", base),
  };
  const times = { nothing: [] as number[], storage: [] as number[], database: [] as number[] };
  for (let round = 0; round <= ROUNDS; round++) {
    for (const name of ["nothing", "storage", "database"] as const) {
      const start = performance.now();
      const { code, stderr } = await run(Deno.execPath(), programs[name]);
      if (code !== 0) throw new Error(stderr);
      // The first round sets up, and fills Deno's cache.
      if (round > 0) times[name].push(performance.now() - start);
    }
  }
  const nothing = median(times.nothing);
  for (const [name, atMost] of [["storage", 4], ["database", 5]] as const) {
    const ours = median(times[name]);
    yield {
      what: `second setup_${name} (against \`deno eval 0\`)`,
      ours: `${ours.toFixed(0)} ms`,
      baseline: `${nothing.toFixed(0)} ms`,
      ratio: ours / nothing,
      wanted: { atMost },
    };
  }
};
