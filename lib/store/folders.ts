/**
 * The folders of `{base}`: making them, and proving that the log can be written.
 * @module
 */
import { ensureFolder, removeIfExists, writeFileAtomic } from "../fs/atomic_file.ts";
import { errorMessage, fileError, hasCode, TelemetryError } from "../errors.ts";
import { defaultFolders, homeFolderOf, type Layout, layoutOf, pathIn } from "../layout.ts";
import { assertGranted, readEnv } from "../fs/locate.ts";

/** What {@linkcode createStorage} did. */
export interface CreatedStorage {
  /** Where the storage is; another `{base}` than asked for when the default could not be made. */
  layout: Layout;
  /** Folders and files that had to be made. */
  created: string[];
  /** The default folders that could not be made, each with the reason. */
  refused: string[];
}

/**
 * Makes the folders that the contract wants (never `backups`: the backup scripts do). Safe to run any number of times.
 * When nothing exists yet and the default folder cannot be made, the next default is tried.
 *
 * @param layout from `locate()`
 * @throws {TelemetryError} when a folder cannot be made
 *
 * @example
 * ```ts
 * import { locate } from "../fs/locate.ts";
 * import { createStorage } from "./folders.ts";
 *
 * const { layout, created } = createStorage(locate("/tmp/telemetry"));
 * console.log(layout.raw, created.length);
 * ```
 */
export function createStorage(layout: Layout): CreatedStorage {
  const { base, choice } = layout;
  if (choice.source !== "default") return { layout, created: makeFolders(layout), refused: [] };
  const refused: string[] = [];
  let first: unknown;
  for (const folder of new Set([base, ...defaultFolders(Deno.build.os, homeFolderOf(readEnv, Deno.build.os))])) {
    const chosen = layoutOf({ ...choice, base: folder });
    try {
      return { layout: chosen, created: makeFolders(chosen), refused };
    } catch (error) {
      first ??= error;
      refused.push(errorMessage(error));
    }
  }
  throw first;
}

function makeFolders(layout: Layout): string[] {
  const { base, raw, db, reports, exports, config, logs } = layout;
  assertGranted([base, raw, db]);
  const created = [base, raw, db, reports, exports, config, logs].filter((folder) => ensureFolder(base, folder));
  // Only now does it show whether one of them is behind a link.
  assertGranted([base, raw, db]);
  try {
    const readme = new TextEncoder().encode(README);
    if (writeFileAtomic(base, layout.readme, readme, { replace: false, wait: false })) created.push(layout.readme);
  } catch (error) {
    // Another process is writing the very same text.
    if (!hasCode(error, "locked")) throw error;
  }
  return created;
}

/**
 * Proves that the log's folder can be written: writes a file, reads it back, removes it.
 *
 * @throws {TelemetryError} when it cannot
 */
export function proveWritable({ raw }: Layout): void {
  const proof = pathIn(raw, `.write_test_${crypto.randomUUID()}`);
  const text = "written by setup_storage to see whether the log can be written\n";
  let read: string;
  try {
    Deno.writeTextFileSync(proof, text, { createNew: true });
    read = Deno.readTextFileSync(proof);
  } catch (error) {
    throw fileError(error, `the log's folder ${raw} cannot be written`);
  } finally {
    removeIfExists(proof);
  }
  if (read !== text) throw new TelemetryError("io", `${raw} gave back other bytes than were written`);
}

/** The README of `{base}`: for whoever finds the folder without knowing the toolkit. */
const README = `# Telemetry of the agents and jobs on this machine

| folder | what is in it |
| --- | --- |
| \`raw/\` | the log, \`events_YYYYMMDD.ndjson\` by UTC day: one JSON object a line, only ever appended to. **This is the truth: copy it elsewhere.** |
| \`db/\` | \`telemetry.sqlite\`, the runs as a SQLite database, for questions. It can be rebuilt from \`raw/\`. |
| \`reports/\` | generated reports |
| \`exports/\` | CSV exports |
| \`config/\` | \`schema.sql\` and other configuration |
| \`logs/\` | system logs |
| \`backups/\` | copies of the database, made by the backup scripts |

While programs are using the database, never copy, move or delete \`telemetry.sqlite\` without its \`-wal\` and \`-shm\`:
the three belong together. Take copies with \`backup_database\` instead.
`;
