/** Fits rows to spreadsheets: formulas, long cells, and what they do not show. @module */
import type { Cell, CellCounts, RowFitter } from "./csv.ts";

/** How many UTF-16 code units of a cell, rows with the header, and cells a program has. */
const LIMITS = {
  sheets: { cell: 50_000, rows: Infinity, cells: 10_000_000 },
  excel: { cell: 32_767, rows: 1_048_576, cells: Infinity },
};
/** How many digits of a number they keep. */
const MAX_DIGITS = 15;
/**
 * Text that runs as a formula. Control and format characters and blanks before it are skipped, full-width and small signs
 * accepted.
 */
const FORMULA = /^(?:[\p{C}\p{Z}]*[=+\-@\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b]|[\t\r\n])/u;
/** A number, or text that becomes one. */
const NUMBER = /^\s*-?\d*\.?\d+(?:e[+-]?\d+)?\s*$/i;

/** An apostrophe is put before formulas, and long text is cut. Numbers and rows beyond the limits are only counted. */
export class SpreadsheetRows implements RowFitter {
  readonly prefix: string;
  readonly #counts: CellCounts;
  readonly #width: number;
  readonly #maxCell: number;
  #rowsLeft: number;

  constructor(program: "sheets" | "excel", columns: readonly string[], counts: CellCounts) {
    // Without a BOM, Excel does not read UTF-8.
    this.prefix = program === "excel" ? "\ufeff" : "";
    this.#counts = counts;
    const { cell, rows, cells } = LIMITS[program];
    this.#width = columns.length;
    this.#maxCell = cell;
    this.#rowsLeft = Math.min(rows, Math.floor(cells / columns.length)) - 1;
  }

  fit(row: readonly Cell[]): Cell[] {
    if (--this.#rowsLeft < 0) this.#counts.excess_rows++;
    return row.slice(0, this.#width).map((cell) => {
      if (cell === null) return null;
      const fitted = typeof cell === "string" ? this.#fitText(cell) : cell;
      if (isRounded(String(fitted))) this.#counts.long_numbers++;
      return fitted;
    });
  }

  #fitText(text: string): string {
    const escaped = FORMULA.test(text) ? `'${text}` : text;
    if (escaped.length <= this.#maxCell) return escaped;
    this.#counts.cut_cells++;
    // Not between the two code units of a character.
    return escaped.slice(0, /[\ud800-\udbff]/.test(escaped[this.#maxCell - 1]!) ? this.#maxCell - 1 : this.#maxCell);
  }
}

function isRounded(text: string): boolean {
  if (text.length <= MAX_DIGITS || !NUMBER.test(text)) return false;
  return text.replace(/e.*/i, "").replace(/\D/g, "").replace(/^0+|0+$/g, "").length > MAX_DIGITS;
}
