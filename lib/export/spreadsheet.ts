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
 * Text that runs as a formula. Control characters, blanks and characters without a shape before it are skipped,
 * full-width and small signs accepted.
 */
const FORMULA = /^(?:[\p{C}\p{Z}\p{DI}]*[=+\-@\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b]|[\t\r\n])/u;
/** A number, or text that becomes one (`$1,234`, `(5)`, `5%`), and its digits. */
const NUMBER = /^[\s$€£¥(-]*([\d,]*\.?\d+)\.?(?:e[+-]?\d+)?[\s%)€]*$/i;

/** Puts an apostrophe before formulas, and cuts long text. Numbers and rows beyond the limits are only counted. */
export function spreadsheetRows(
  program: "sheets" | "excel",
  columns: readonly string[],
  counts: CellCounts,
): RowFitter {
  const limits = LIMITS[program];
  let rowsLeft = Math.min(limits.rows, Math.floor(limits.cells / columns.length)) - 1;
  const fitCell = (cell: Cell): Cell => {
    if (cell === null) return null;
    const text = typeof cell === "string" && FORMULA.test(cell) ? `'${cell}` : String(cell);
    if (isRounded(text)) counts.long_numbers++;
    if (typeof cell !== "string") return cell;
    if (text.length <= limits.cell) return text;
    counts.cut_cells++;
    // Not between the two code units of a character.
    return text.slice(0, limits.cell).replace(/[\ud800-\udbff]$/, "");
  };
  return {
    // Without a BOM, Excel does not read UTF-8.
    prefix: program === "excel" ? "\ufeff" : "",
    fit: (row) => {
      if (--rowsLeft < 0) counts.excess_rows++;
      return row.slice(0, columns.length).map(fitCell);
    },
  };
}

function isRounded(text: string): boolean {
  if (text.length <= MAX_DIGITS) return false;
  const [, digits = ""] = NUMBER.exec(text) ?? [];
  return digits.replace(/[.,]/g, "").replace(/^0+|0+$/g, "").length > MAX_DIGITS;
}
