/**
 * The report of a recovery in `reports/`: a summary, and every line and row that could not be used.
 * @module
 */
import { errorMessage } from "../errors.ts";
import { ensureFolder, PartialFile, removeStalePartials, writeAll, writeFileAtomic } from "../fs/atomic_file.ts";
import { pathExists } from "../fs/locate.ts";
import { fileNames, type Layout, parseFileName, partialOf, pathIn } from "../layout.ts";
import type { Rejection } from "../log/read.ts";
import type { RejectedRow } from "./salvage.ts";

/** How much of a rejected row is written, in characters. */
const SHOWN_CHARS = 64 * 1024;

/** Removes what killed recoveries have left of their reports. */
export function removeStaleReports(reports: string): void {
  const ours = ["recovery_report", "recovery_rejects"];
  removeStalePartials(reports, (name) => ours.includes(parseFileName(name)?.kind ?? ""));
}

/** What {@linkcode RecoveryReport.finish} adds to a summary. */
export interface WrittenReport {
  rejected: Record<string, number>;
  report: string | null;
  rejected_file: string | null;
}

/** The files of one recovery. A report that cannot be written is a warning: the database matters more. */
export class RecoveryReport implements Disposable {
  readonly #base: string;
  readonly #path: string;
  readonly #rejectedPath: string;
  readonly #counts: Record<string, number> = {};
  readonly #unreadable = new Set<string>();
  #partial: PartialFile | undefined;
  #failure: string | undefined;

  constructor({ base, reports }: Layout) {
    this.#base = base;
    this.#attempt(() => {
      ensureFolder(base, reports);
      removeStaleReports(reports);
    });
    const now = new Date();
    const [names, rejects] = [fileNames("recovery_report", now), fileNames("recovery_rejects", now)];
    do {
      this.#path = pathIn(reports, names.next().value);
      this.#rejectedPath = pathIn(reports, rejects.next().value);
    } while (this.#failure === undefined && [this.#path, this.#rejectedPath].some(pathExists));
  }

  /** Calls `write` unless writing has failed before. */
  #attempt<T>(write: () => T): T | undefined {
    if (this.#failure !== undefined) return undefined;
    try {
      return write();
    } catch (error) {
      this.#failure = errorMessage(error);
      return undefined;
    }
  }

  /** Adds a part of a log that is not a record. */
  rejectLine({ rejected, ...rejection }: Rejection): void {
    if (rejected === "cannot be read") this.#unreadable.add(`${rejection.file} cannot be read (${rejection.text})`);
    this.#reject(rejected, rejection);
  }

  /** Adds a row that is not in the new database. */
  rejectRow({ rejected, cells, ...row }: RejectedRow): void {
    const text = JSON.stringify(
      cells,
      (_, cell) => typeof cell === "bigint" ? String(cell) : cell instanceof Uint8Array ? `x'${cell.toHex()}'` : cell,
    );
    this.#reject(rejected, { ...row, length: text.length, text: text.slice(0, SHOWN_CHARS) });
  }

  #reject(reason: string, entry: object): void {
    this.#counts[reason] = (this.#counts[reason] ?? 0) + 1;
    this.#attempt(() => {
      this.#partial ??= PartialFile.claim(partialOf(this.#rejectedPath), { wait: false });
      writeAll(this.#partial.file, new TextEncoder().encode(`${JSON.stringify({ ...entry, reason })}\n`));
    });
  }

  /** Publishes the files. Returns the complete summary. */
  finish<Summary extends { warnings: string[] }>(summary: Summary): Summary & WrittenReport {
    const unread = [...this.#unreadable].map((what) => `${what}: fix that, then run recover_database --force`);
    const rejected_file = this.#attempt(() => {
      this.#partial?.sync();
      return this.#partial?.publish(this.#base, [this.#rejectedPath]);
    }) ?? null;
    const warnings = [...summary.warnings, ...unread];
    const done = { ...summary, warnings, rejected: this.#counts, report: this.#path, rejected_file };
    this.#attempt(() => {
      const text = new TextEncoder().encode(`${JSON.stringify(done, null, 2)}\n`);
      writeFileAtomic(this.#base, this.#path, text, { replace: false });
    });
    if (this.#failure === undefined) return done;
    return { ...done, report: null, warnings: [...warnings, `the report could not be written: ${this.#failure}`] };
  }

  [Symbol.dispose](): void {
    this.#partial?.[Symbol.dispose]();
  }
}
