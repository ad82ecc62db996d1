/**
 * The folders of `{base}`.
 * @module
 */
import { errorMessage, fileError, hasCode, TelemetryError } from "../errors.ts";
import { ensureFolder, removeIfExists, writeFileAtomic } from "../fs/atomic_file.ts";
import { readEnv } from "../fs/locate.ts";
import { assertGranted } from "../fs/permissions.ts";
import { defaultFolders, homeFolderOf, type Layout, layoutOf, pathIn } from "../layout.ts";

/** What {@linkcode createStorage} did. */
export interface CreatedStorage {
  /** Where the store is: another `{base}` than the given one when the default folder could not be created. */
  layout: Layout;
  /** The folders and files that were created. */
  created: string[];
  /** Why each default folder before this one could not be created. */
  refused: string[];
}

/** SQLite accepts paths of up to 512 bytes, sidecars and partials included. */
const MAX_DATABASE_PATH_BYTES = 440;

/**
 * Creates the folders of a store, except `backups/`, which the backup scripts create. Can be called any number of times.
 * When no store exists and the default folder cannot be created, tries the next default.
 *
 * @param layout from `locate()`
 * @throws {TelemetryError} `permission`, `in_the_way`, `disk_full` … when a folder cannot be created
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
  if (choice.source !== "default") return { layout, created: createFolders(layout), refused: [] };
  const refused: string[] = [];
  let first: unknown;
  for (const folder of new Set([base, ...defaultFolders(Deno.build.os, homeFolderOf(readEnv, Deno.build.os))])) {
    const chosen = layoutOf({ ...choice, base: folder });
    try {
      return { layout: chosen, created: createFolders(chosen), refused };
    } catch (error) {
      first ??= error;
      refused.push(errorMessage(error));
    }
  }
  throw first;
}

function createFolders(layout: Layout): string[] {
  const { base, raw, db, database, reports, exports, config, logs } = layout;
  if (new TextEncoder().encode(database).length > MAX_DATABASE_PATH_BYTES) {
    throw new TelemetryError("usage", `the path ${database} is too long for SQLite`, {
      hint: "choose a shorter base folder",
    });
  }
  assertGranted([base, raw, db]);
  const created = [base, raw, db, reports, exports, config, logs].filter((folder) => ensureFolder(base, folder));
  try {
    const readme = new TextEncoder().encode(README);
    if (writeFileAtomic(base, layout.readme, readme, { replace: false, wait: false })) created.push(layout.readme);
  } catch (error) {
    // Another process is writing the same text.
    if (!hasCode(error, "locked")) throw error;
  }
  return created;
}

/**
 * Proves that the log folder can be written: writes a file, reads it back and removes it.
 *
 * @throws {TelemetryError} when that fails
 */
export function assertWritable({ raw }: Layout): void {
  const path = pathIn(raw, `.write_test_${crypto.randomUUID()}`);
  const text = "written by setup_storage to test whether the log can be written\n";
  let read: string;
  try {
    Deno.writeTextFileSync(path, text, { createNew: true });
    read = Deno.readTextFileSync(path);
  } catch (error) {
    throw fileError(error, `cannot write to the log folder ${raw}`);
  } finally {
    removeIfExists(path);
  }
  if (read !== text) throw new TelemetryError("io", `${raw} returned other bytes than were written`);
}

/** The README of `{base}`, for readers who do not know the toolkit. */
const README = `# Telemetry of the agents and jobs on this machine

| folder | content |
| --- | --- |
| \`raw/\` | the log: \`events_YYYYMMDD.ndjson\`, one file per UTC day, one JSON object per line, append-only. **This is the source of truth: copy it to another disk.** |
| \`db/\` | \`telemetry.sqlite\`: the runs as a SQLite database. It can be rebuilt from \`raw/\`. |
| \`reports/\` | generated reports |
| \`exports/\` | CSV exports |
| \`config/\` | \`schema.sql\` and other configuration |
| \`logs/\` | system logs |
| \`backups/\` | copies of the database, created by the backup scripts |

While programs use the database, never copy, move or delete \`telemetry.sqlite\` without its \`-wal\` and \`-shm\`:
the three files belong together. Use \`backup_database\` to copy it.
`;
