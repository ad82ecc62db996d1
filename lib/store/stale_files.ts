/**
 * The half-made files of killed scripts.
 * @module
 */
import { removeStalePartials } from "../fs/atomic_file.ts";
import { isFolder } from "../fs/locate.ts";
import { fileNameOf, isInFolder, type Layout, parseFileName } from "../layout.ts";

/**
 * Removes the partials that killed scripts have left in the folders of a store, as far as `writable` has these folders.
 * Partials of a running process are locked, and stay. So does what the next recovery needs of an interrupted one: the new
 * database, and sidecars that were moved aside.
 */
export function removeStaleFiles(layout: Layout, writable: readonly string[]): void {
  const { base, db, backups, reports, exports, config, database, schemaSql, readme } = layout;
  const others = [database, schemaSql, readme].map(fileNameOf);
  // A copy of a damaged database has sidecars.
  const isOurs = (name: string) =>
    others.includes(name) || (parseFileName(name.replace(/-(wal|shm|journal)$/, ""))?.kind ?? "log") !== "log";
  for (const folder of new Set([base, db, backups, reports, exports, config])) {
    if (!writable.some((path) => isInFolder(folder, path)) || !isFolder(folder)) continue;
    try {
      removeStalePartials(folder, isOurs);
    } catch { /* what needs this folder reports what is wrong */ }
  }
}
