/**
 * The report of a recovery in `reports/`: a summary, and every line and row that could not be used.
 * @module
 */
import { errorMessage } from "../errors.ts";
import { ensureFolder, PartialFile, removeStalePartials, writeAll, writeFileAtomic } from "../fs/atomic_file.ts";
import { pathExists } from "../fs/locate.ts";
import { type FileKind, fileNames, type Layout, parseFileName, partialOf, pathIn } from "../layout.ts";

/** Removes what killed recoveries have left of their reports. */
export function removeStaleReports(reports: string): void {
  removeStalePartials(
    reports,
    (name) => ["recovery_report", "recovery_rejects"].includes(parseFileName(name)?.kind ?? ""),
  );
}

/** What {@linkcode RecoveryReport.finish} adds to a summary. */
export interface WrittenReport {
  rejected: Record<string, number>;
  report: string | null;
  rejected_file: string | null;
}

/** The files of one recovery. A report that cannot be written is a warning: the database matters more. */
export class RecoveryReport implements Disposable {
  readonly #layout: Layout;
  readonly #start = new Date();
  readonly #counts: Record<string, number> = {};
  #rejects: PartialFile | undefined;
  #failure: string | undefined;

  constructor(layout: Layout) {
    this.#layout = layout;
    this.#attempt(() => {
      ensureFolder(layout.base, layout.reports);
      removeStaleReports(layout.reports);
    });
  }

  /** The paths to try for a file. */
  *#paths(kind: FileKind): Generator<string, void> {
    for (const name of fileNames(kind, this.#start)) yield pathIn(this.#layout.reports, name);
  }

  /** Calls `write` unless writing has failed before. */
  #attempt<T>(write: () => T): T | null {
    try {
      return this.#failure === undefined ? write() : null;
    } catch (error) {
      this.#failure = errorMessage(error);
      return null;
    }
  }

  /** Adds a part of a log or a row that is not in the new database. */
  reject({ rejected: reason, ...entry }: { rejected: string }): void {
    this.#counts[reason] = (this.#counts[reason] ?? 0) + 1;
    this.#attempt(() => {
      this.#rejects ??= PartialFile.claim(partialOf(this.#paths("recovery_rejects").next().value!), { wait: false });
      writeAll(this.#rejects.file, new TextEncoder().encode(`${JSON.stringify({ ...entry, reason })}\n`));
    });
  }

  /** Publishes the files. Returns the complete summary. */
  finish<Summary extends { warnings: string[] }>(summary: Summary): Summary & WrittenReport {
    const { base } = this.#layout;
    const done = { ...summary, rejected: this.#counts };
    const rejected_file = this.#attempt(() => {
      this.#rejects?.sync();
      return this.#rejects?.publish(base, this.#paths("recovery_rejects"));
    }) ?? null;
    const report = this.#attempt(() => {
      const path = this.#paths("recovery_report").find((path) => !pathExists(path))!;
      const text = `${JSON.stringify({ ...done, report: path, rejected_file }, null, 2)}\n`;
      writeFileAtomic(base, path, new TextEncoder().encode(text), { replace: false });
      return path;
    });
    if (this.#failure !== undefined) done.warnings.push(`the report could not be written: ${this.#failure}`);
    return { ...done, report, rejected_file };
  }

  [Symbol.dispose](): void {
    this.#rejects?.[Symbol.dispose]();
  }
}
