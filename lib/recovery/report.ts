/**
 * What a recovery tells of itself: every line and row that it could not use, and a summary.
 * @module
 */
import { ensureFolder, PartialFile, removeStalePartials, writeFileAtomic } from "../fs/atomic_file.ts";
import { errorMessage } from "../errors.ts";
import { fileNames, type Layout, parseFileName, partialOf, pathIn } from "../layout.ts";
import { sizeOf } from "../fs/locate.ts";
import type { Rejection } from "../log/read.ts";
import type { Recovery } from "./recover.ts";
import type { RejectedRow } from "./salvage.ts";

/** How much of what was rejected is written down, in characters. */
const SHOWN_CHARS = 64 * 1024;

/** Removes what killed recoveries have left of their reports. */
export function removeHalfReports(reports: string): void {
  const ours = ["recovery_report", "recovery_rejects"];
  removeStalePartials(reports, (name) => ours.includes(parseFileName(name)?.kind ?? ""));
}

/** The files of one recovery in `reports/`. A report that cannot be written is no reason to have no database. */
export class RecoveryReport {
  readonly #base: string;
  readonly #path: string;
  readonly #rejectedPath: string;
  readonly #counts = new Map<string, number>();
  /** What is missing with these is more than a line. */
  readonly #unreadable = new Set<string>();
  #file: PartialFile | undefined;
  #failure: string | undefined;

  /** Chooses the names; files are made when there is something to write. */
  constructor({ base, reports }: Layout) {
    this.#base = base;
    const now = new Date();
    const rejects = fileNames("recovery_rejects", now);
    try {
      ensureFolder(base, reports);
      removeHalfReports(reports);
    } catch (error) {
      this.#failure = errorMessage(error);
    }
    for (const name of fileNames("recovery_report", now)) {
      this.#path = pathIn(reports, name);
      this.#rejectedPath = pathIn(reports, rejects.next().value);
      if (this.#failure !== undefined || [this.#path, this.#rejectedPath].every((path) => sizeOf(path) === undefined)) {
        return;
      }
    }
    throw new Error("unreachable: there is always a later second");
  }

  /** Notes a line, or a part of one, that is no record. */
  rejectLine({ rejected, ...rejection }: Rejection): void {
    if (rejected === "cannot be read") this.#unreadable.add(`${rejection.file} cannot be read (${rejection.text})`);
    this.#note(rejected, { ...rejection, reason: rejected });
  }

  /** Notes a row that is not in the new database. */
  rejectRow({ rejected, cells, ...row }: RejectedRow): void {
    const text = JSON.stringify(
      cells,
      (_, cell) => typeof cell === "bigint" ? String(cell) : cell instanceof Uint8Array ? `x'${cell.toHex()}'` : cell,
    );
    this.#note(rejected, { ...row, reason: rejected, length: text.length, text: text.slice(0, SHOWN_CHARS) });
  }

  #note(reason: string, entry: object): void {
    this.#counts.set(reason, (this.#counts.get(reason) ?? 0) + 1);
    if (this.#failure !== undefined) return;
    try {
      this.#file ??= PartialFile.claim(partialOf(this.#rejectedPath), { base: this.#base, wait: false });
      this.#file.writeSync(new TextEncoder().encode(`${JSON.stringify(entry)}\n`));
    } catch (error) {
      this.#failure = errorMessage(error);
    }
  }

  /** Gives the files their names. What fails becomes a warning. */
  finish(recovery: Omit<Recovery, "rejected" | "report" | "rejected_file">): Recovery {
    const rejected = Object.fromEntries(this.#counts);
    const unread = [...this.#unreadable].map((what) => `${what}: mend that, and run recover_database --force`);
    const warnings = [...recovery.warnings, ...unread];
    const done: Recovery = { ...recovery, warnings, rejected, report: this.#path, rejected_file: this.#nameRejected() };
    try {
      const text = `${JSON.stringify(done, null, 2)}\n`;
      writeFileAtomic(this.#base, this.#path, new TextEncoder().encode(text), { replace: false });
    } catch (error) {
      this.#failure ??= errorMessage(error);
      done.report = null;
    }
    if (this.#failure === undefined) return done;
    return { ...done, warnings: [...done.warnings, `the report could not be written: ${this.#failure}`] };
  }

  #nameRejected(): string | null {
    using file = this.#file;
    try {
      return file?.publish(this.#rejectedPath) ? this.#rejectedPath : null;
    } catch (error) {
      this.#failure ??= errorMessage(error);
      return null;
    }
  }

  /** Leaves nothing. */
  abandon(): void {
    this.#file?.[Symbol.dispose]();
  }
}
