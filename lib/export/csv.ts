/**
 * Formats CSV (RFC 4180): a header, CRLF, quotes only where needed. NULL is empty, an empty string is `""`.
 * @module
 */
import { isUtf8 } from "node:buffer";

/** The value of a row in a column. */
export type Cell = string | number | bigint | null;

/** The programs for which the format is adapted. */
export type Program = "sheets" | "excel" | "postgres";

/** The longest cell that each program accepts, in UTF-16 code units. */
const MAX_CELL: Record<Program, number> = { sheets: 50_000, excel: 32_767, postgres: Infinity };

/** The names of all programs. */
export const PROGRAMS: readonly string[] = Object.keys(MAX_CELL);

/** Text that spreadsheets run as a formula. They skip control characters and blanks before it, and accept full-width signs. */
// deno-lint-ignore no-control-regex
const FORMULA = /^(?:[\x00-\x1f\x7f-\x9f\s\u200b-\u200f\u2060]*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r])/;
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
  readonly #program: Program | undefined;
  /** How many cells were cut. */
  cutCells = 0;
  /** How many cells had a NUL, which was replaced. */
  nulCells = 0;
  #buffer = new Uint8Array(0);

  /**
   * @param columns the names in the header
   * @param program the reader: for a spreadsheet, an apostrophe is put before formulas, and long text is cut; for PostgreSQL,
   * NUL is replaced by U+2400 (␀)
   */
  constructor(columns: readonly string[], program?: Program) {
    this.#columns = columns;
    this.#program = program;
  }

  /** The header line. For Excel it starts with a BOM, without which Excel does not read UTF-8. */
  header(): Uint8Array {
    return UTF8.encode(`${this.#program === "excel" ? "\ufeff" : ""}${this.#columns.join(",")}\r\n`);
  }

  /** The lines of some rows, valid until the next call. Cells after the columns are ignored. */
  lines(rows: readonly (readonly Cell[])[]): Uint8Array {
    const width = this.#columns.length;
    let text = "";
    for (const row of rows) {
      let comma = "";
      for (let i = 0; i < width; i++) {
        const cell = row[i]!;
        text += comma;
        if (typeof cell === "string") text += quote(this.#program ? this.#adapt(cell, this.#program) : cell);
        else if (cell !== null) text += cell;
        comma = ",";
      }
      text += "\r\n";
    }
    const buffer = this.#reserve(3 * text.length);
    return buffer.subarray(0, UTF8.encodeInto(text, buffer).written);
  }

  /** A buffer for all calls: new ones would pile up until the next garbage collection. */
  #reserve(bytes: number): Uint8Array<ArrayBuffer> {
    if (this.#buffer.length < bytes) this.#buffer = new Uint8Array(bytes);
    return this.#buffer;
  }

  /** Adapts text to a program. */
  #adapt(text: string, program: Program): string {
    if (program === "postgres") {
      if (!text.includes("\0")) return text;
      this.nulCells++;
      return text.replaceAll("\0", "\u2400");
    }
    const escaped = FORMULA.test(text) ? `'${text}` : text;
    const max = MAX_CELL[program];
    if (escaped.length <= max) return escaped;
    this.cutCells++;
    // Not between the two code units of a character.
    return escaped.slice(0, /[\ud800-\udbff]/.test(escaped[max - 1]!) ? max - 1 : max);
  }

  /**
   * As {@linkcode lines}, for no particular program, from rows that SQLite has written as JSON. Converting bytes takes a third
   * of the time of parsing values.
   *
   * @param json arrays as `json_array` writes them (no blanks, no escapes above U+007F), separated by commas
   * @returns bytes that are valid until the next call; undefined when the JSON is not UTF-8
   */
  jsonLines(json: Uint8Array): Uint8Array | undefined {
    if (!isUtf8(json)) return undefined;
    // CSV is never longer than its JSON.
    const buffer = this.#reserve(json.length);
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
    else if (code !== OPEN) csv[to++] = code;
  }
  return to;
}
