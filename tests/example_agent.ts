/**
 * A small agent: indexes the text files of a folder and records its run.
 * usage: deno run --allow-read --allow-write=BASE tests/example_agent.ts FOLDER BASE
 */
import { TelemetryClient } from "../mod.ts";

const [folder, base] = Deno.args;
if (!folder || !base) throw new Error("usage: example_agent.ts FOLDER BASE");

/** The text files below a folder, without hidden files. */
function* textFiles(folder: string): Generator<string> {
  for (const { name, isDirectory } of Deno.readDirSync(folder)) {
    if (name.startsWith(".") || name === "node_modules") continue;
    if (isDirectory) yield* textFiles(`${folder}/${name}`);
    else if (/\.(ts|md|json)$/.test(name)) yield `${folder}/${name}`;
  }
}

await using telemetry = new TelemetryClient({ base });
const index = await telemetry.trackRun("repo-indexer", "index_files", { product: "toolkit" }, async (run) => {
  const index = new Map<string, string[]>();
  let failed = 0;
  const files = [...textFiles(folder)];
  for (const file of files) {
    try {
      for (const word of new Set(Deno.readTextFileSync(file).match(/[A-Za-z]{4,}/g))) {
        index.set(word, [...index.get(word) ?? [], file]);
      }
      run.logEvent("indexed", { file });
    } catch (error) {
      failed += 1;
      await run.logEvent("skipped", { file, reason: String(error) });
    }
  }
  run.setMetrics({
    items_discovered: files.length,
    items_succeeded: files.length - failed,
    items_failed: failed,
    output_summary: `${index.size} words in ${files.length} files — naïve but real`,
    words: index.size,
  });
  return index;
});
console.log(JSON.stringify({ words: index.size, mentions: index.get("TelemetryClient")?.length ?? 0 }));
