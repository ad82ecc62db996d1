/** A setup of a store that is already set up, as a whole process, against an empty Deno process. */
import { scriptArgs } from "../fixtures/mod.ts";
import { type Part, succeed, timeMeasure, timeOf } from "./measure.ts";

const ROUNDS = 21;

export const setup: Part = async function* (folder) {
  const base = `${folder}/base`;
  const programs = {
    nothing: ["eval", "0"],
    setup_storage: scriptArgs("setup_storage", base),
    setup_database: scriptArgs("setup_database", base),
  };
  const times = { nothing: [] as number[], setup_storage: [] as number[], setup_database: [] as number[] };
  for (let round = 0; round <= ROUNDS; round++) {
    for (const name of ["nothing", "setup_storage", "setup_database"] as const) {
      const time = await timeOf(() => succeed(Deno.execPath(), programs[name]));
      // The first round creates the store and fills Deno's cache.
      if (round > 0) times[name].push(time);
    }
  }
  for (const [name, atMost] of [["setup_storage", 4], ["setup_database", 5]] as const) {
    yield timeMeasure(`second ${name}, against \`deno eval 0\``, times[name], times.nothing, atMost);
  }
};
