/**
 * Formats CSV (RFC 4180): a header, CRLF, quotes only where needed. NULL is empty, an empty string is `""`.
 * @module
 */

/** The value of a row in a column. */
export type Cell = string | number | bigint | null;

/** The programs for which the format is adapted. */
export type Program = "sheets" | "excel" | "postgres";

/** The names of all programs. */
export const PROGRAMS: readonly string[] = ["sheets", "excel", "postgres"] satisfies Program[];

/** What is written, and what of it is not as it was. */
export interface CellCounts {
  /** How many rows were exported. */
  rows: number;
  /** How many cells were cut because the program accepts no longer ones. */
  cut_cells: number;
  /** How many cells had a NUL, which was replaced. */
  nul_cells: number;
  /** How many cells were changed otherwise: text that is not UTF-8, and what the column of the program does not accept. */
  changed_cells: number;
  /** How many numbers have more digits than the spreadsheet keeps. The file has them all. */
  long_numbers: number;
  /** How many rows are more than the spreadsheet shows. The file has them. */
  excess_rows: number;
  /** How many cells of JSON PostgreSQL refuses to cast to `jsonb`. They are loaded as text. */
  not_jsonb: number;
  /** How many rows were left out because the program would refuse all rows for them. */
  refused_rows: number;
}

/** Counts of nothing. */
export function noCounts(): CellCounts {
  const program = { cut_cells: 0, nul_cells: 0, changed_cells: 0, refused_rows: 0 };
  return { rows: 0, ...program, long_numbers: 0, excess_rows: 0, not_jsonb: 0 };
}

/** Fits rows to a program. */
export interface RowFitter {
  /** What the file starts with. */
  readonly prefix: string;
  /** The row that the program gets; undefined when it is left out. */
  fit(row: readonly Cell[]): readonly Cell[] | undefined;
}

/** Text that needs quotes (RFC 4180). */
const SPECIAL = /[",\r\n]/;

const UTF8 = new TextEncoder();

/**
 * Formats rows as CSV.
 *
 * @example
 * ```ts
 * import { CsvText } from "./csv.ts";
 *
 * const csv = new CsvText(["id", "note"]);
 * const text = new TextDecoder().decode(csv.lines([["a", 'x "y"'], ["b", null], ["c", ""]]));
 * console.log(text); // a,"x ""y""" ⏎ b, ⏎ c,"" ⏎
 * ```
 */
export class CsvText {
  readonly #columns: readonly string[];
  readonly #counts: CellCounts;
  readonly #fitter: RowFitter | undefined;
  #buffer = new Uint8Array(0);

  /** @param columns the names in the header */
  constructor(columns: readonly string[], counts: CellCounts = noCounts(), fitter?: RowFitter) {
    this.#columns = columns;
    this.#counts = counts;
    this.#fitter = fitter;
  }

  header(): Uint8Array {
    return UTF8.encode(`${this.#fitter?.prefix ?? ""}${this.#columns.join(",")}\r\n`);
  }

  /** The lines of some rows, valid until the next call. Cells after the columns are ignored. */
  lines(rows: readonly (readonly Cell[])[]): Uint8Array {
    const width = this.#columns.length;
    let text = "";
    for (const given of rows) {
      const row = this.#fitter ? this.#fitter.fit(given) : given;
      if (row === undefined) continue;
      this.#counts.rows++;
      for (let i = 0; i < width; i++) {
        const cell = row[i]!;
        if (i > 0) text += ",";
        if (typeof cell === "string") text += quote(this.#wellFormed(cell));
        else if (cell !== null) text += cell;
      }
      text += "\r\n";
    }
    const buffer = this.#reserve(3 * text.length);
    return buffer.subarray(0, UTF8.encodeInto(text, buffer).written);
  }

  /** UTF-8 cannot hold half a surrogate pair. */
  #wellFormed(text: string): string {
    if (text.isWellFormed()) return text;
    this.#counts.changed_cells++;
    return text.toWellFormed();
  }

  /** A buffer for all calls: new ones would pile up until the next garbage collection. */
  #reserve(bytes: number): Uint8Array<ArrayBuffer> {
    if (this.#buffer.length < bytes) this.#buffer = new Uint8Array(bytes);
    return this.#buffer;
  }

  /**
   * As {@linkcode lines}, for no particular program, from rows that SQLite has written as JSON. Converting bytes takes a third
   * of the time of parsing values.
   *
   * @param json arrays as `json_array` writes them (no blanks, no escapes above U+007F), separated by commas, in UTF-8
   * @param rows how many arrays these are
   * @returns bytes that are valid until the next call
   */
  jsonLines(json: Uint8Array, rows: number): Uint8Array {
    this.#counts.rows += rows;
    // Only numbers can become longer: 1.0e+20.
    const buffer = this.#reserve(3 * json.length);
    return buffer.subarray(0, convert(json, buffer));
  }
}

/**
 * Puts text into quotes where needed: also the empty string, which would be NULL, and a single `\.`, which ends the data for
 * PostgreSQL.
 */
function quote(text: string): string {
  return SPECIAL.test(text) || text === "" || text === "\\." ? `"${text.replaceAll('"', '""')}"` : text;
}

const [LF, CR, QUOTE, COMMA, DOT] = [0x0a, 0x0d, 0x22, 0x2c, 0x2e];
const [OPEN, BACKSLASH, CLOSE, NULL, UNICODE] = [0x5b, 0x5c, 0x5d, 0x6e, 0x75];
/** The character that each escape stands for. */
const ESCAPED = Uint8Array.from({ length: 128 }, (_, code) => code);
for (const pair of ["b\b", "t\t", "n\n", "f\f", "r\r"]) ESCAPED[pair.charCodeAt(0)] = pair.charCodeAt(1);
/** The bytes in a string that need attention. The others are copied. */
const STOPS = new Uint8Array(256);
for (const code of [QUOTE, BACKSLASH, COMMA]) STOPS[code] = 1;

/** Converts JSON arrays to lines of CSV. Returns the number of bytes. */
function convert(json: Uint8Array, csv: Uint8Array): number {
  let to = 0;
  for (let at = 0; at < json.length;) {
    const code = json[at++]!;
    if (code === QUOTE) {
      const start = to;
      let isQuoted = false;
      for (;;) {
        let char: number;
        while (STOPS[char = json[at++]!] === 0) csv[to++] = char;
        if (char === QUOTE) break;
        if (char === BACKSLASH) {
          char = json[at++]!;
          if (char !== UNICODE) char = ESCAPED[char]!;
          else char = parseInt(String.fromCharCode(...json.subarray(at, at += 4)), 16);
        }
        if (!isQuoted && (char === COMMA || char === QUOTE || char === LF || char === CR)) {
          isQuoted = true;
          csv.copyWithin(start + 1, start, to++);
          csv[start] = QUOTE;
        }
        if (char === QUOTE) csv[to++] = QUOTE;
        csv[to++] = char;
      }
      const isLoneDot = to === start + 2 && csv[start] === BACKSLASH && csv[start + 1] === DOT;
      if (!isQuoted && (to === start || isLoneDot)) {
        isQuoted = true;
        csv.copyWithin(start + 1, start, to++);
        csv[start] = QUOTE;
      }
      if (isQuoted) csv[to++] = QUOTE;
    } else if (code === CLOSE) {
      csv[to++] = CR;
      csv[to++] = LF;
      at++; // the comma between two rows
    } else if (code === NULL) at += 3;
    else if (code === DOT) {
      // A number that is not an integer gets the form that it has in JavaScript, as in `lines`.
      let start = at - 1;
      while (json[start - 1] !== COMMA && json[start - 1] !== OPEN) start--;
      to -= at - 1 - start;
      while (json[at] !== COMMA && json[at] !== CLOSE) at++;
      const number = String(Number(String.fromCharCode(...json.subarray(start, at))));
      to += UTF8.encodeInto(number, csv.subarray(to)).written;
    } else if (code !== OPEN) csv[to++] = code;
  }
  return to;
}
