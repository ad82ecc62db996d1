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
  readonly #counts = new Map<string, number>();
  readonly #unreadable = new Set<string>();
  #partial: PartialFile | undefined;
  #failure: string | undefined;

  constructor({ base, reports }: Layout) {
    this.#base = base;
    const now = new Date();
    try {
      ensureFolder(base, reports);
      removeStaleReports(reports);
    } catch (error) {
      this.#failure = errorMessage(error);
    }
    const rejects = fileNames("recovery_rejects", now);
    const names = fileNames("recovery_report", now);
    do {
      this.#path = pathIn(reports, names.next().value);
      this.#rejectedPath = pathIn(reports, rejects.next().value);
    } while (this.#failure === undefined && [this.#path, this.#rejectedPath].some(pathExists));
  }

  /** Adds a part of a log that is not a record. */
  rejectLine({ rejected, ...rejection }: Rejection): void {
    if (rejected === "cannot be read") this.#unreadable.add(`${rejection.file} cannot be read (${rejection.text})`);
    this.#add(rejected, { ...rejection, reason: rejected });
  }

  /** Adds a row that is not in the new database. */
  rejectRow({ rejected, cells, ...row }: RejectedRow): void {
    const text = JSON.stringify(
      cells,
      (_, cell) => typeof cell === "bigint" ? String(cell) : cell instanceof Uint8Array ? `x'${cell.toHex()}'` : cell,
    );
    this.#add(rejected, { ...row, reason: rejected, length: text.length, text: text.slice(0, SHOWN_CHARS) });
  }

  #add(reason: string, entry: object): void {
    this.#counts.set(reason, (this.#counts.get(reason) ?? 0) + 1);
    if (this.#failure !== undefined) return;
    try {
      this.#partial ??= PartialFile.claim(partialOf(this.#rejectedPath), { wait: false });
      writeAll(this.#partial.file, new TextEncoder().encode(`${JSON.stringify(entry)}\n`));
    } catch (error) {
      this.#failure = errorMessage(error);
    }
  }

  /** Publishes the files. Returns the complete summary. */
  finish<Summary extends { warnings: string[] }>(summary: Summary): Summary & WrittenReport {
    const unread = [...this.#unreadable].map((what) => `${what}: fix that, then run recover_database --force`);
    const warnings = [...summary.warnings, ...unread];
    let rejectedFile: string | null = null;
    try {
      this.#partial?.sync();
      rejectedFile = this.#partial?.publish(this.#base, [this.#rejectedPath]) ?? null;
    } catch (error) {
      this.#failure ??= errorMessage(error);
    }
    const rejected = Object.fromEntries(this.#counts);
    const done: Summary & WrittenReport = {
      ...summary,
      warnings,
      rejected,
      report: this.#path,
      rejected_file: rejectedFile,
    };
    try {
      const text = `${JSON.stringify(done, null, 2)}\n`;
      writeFileAtomic(this.#base, this.#path, new TextEncoder().encode(text), { replace: false });
    } catch (error) {
      this.#failure ??= errorMessage(error);
      (done as WrittenReport).report = null;
    }
    if (this.#failure !== undefined) warnings.push(`the report could not be written: ${this.#failure}`);
    return done;
  }

  [Symbol.dispose](): void {
    this.#partial?.[Symbol.dispose]();
  }
}
