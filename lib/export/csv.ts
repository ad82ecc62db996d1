/**
 * CSV by RFC 4180: a header, CRLF, quotes only where they are needed. NULL is empty, the empty string is `""`.
 * @module
 */
import { isUtf8 } from "node:buffer";

/** What a row has in a column. */
export type Cell = string | number | bigint | null;

/** The programs that need more than the standard. */
export type Program = "sheets" | "excel" | "postgres";

/** How long a cell may be in each program, in characters (UTF-16 units). */
const MAX_CELL: Record<Program, number> = { sheets: 50_000, excel: 32_767, postgres: Infinity };

/** All of them. */
export const PROGRAMS: readonly string[] = Object.keys(MAX_CELL);

/** What spreadsheets would run. */
const FORMULA = /^[=+\-@\t\r]/;
/** What RFC 4180 wants in quotes. */
const SPECIAL = /[",\r\n]/;

const UTF8 = new TextEncoder();

/**
 * Makes CSV of rows.
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
  /** How many cells were longer than the program takes. */
  cutCells = 0;
  /** How many cells had a NUL that the program does not take. */
  nulCells = 0;
  #buffer = new Uint8Array(0);

  /**
   * @param columns the names in the header
   * @param program who reads it: for a spreadsheet, text that it would run gets an apostrophe before it, and long text is
   * cut; for PostgreSQL, U+2400 (␀) stands for NUL
   */
  constructor(columns: readonly string[], program?: Program) {
    this.#columns = columns;
    this.#program = program;
  }

  /** The first line; for Excel after a BOM, without which it takes UTF-8 for something else. */
  header(): Uint8Array {
    return UTF8.encode(`${this.#program === "excel" ? "\ufeff" : ""}${this.#columns.join(",")}\r\n`);
  }

  /** The lines of some rows, until the next call. What a row has beyond the columns is left out. */
  lines(rows: readonly (readonly Cell[])[]): Uint8Array {
    const width = this.#columns.length;
    let text = "";
    for (const row of rows) {
      let comma = "";
      for (let i = 0; i < width; i++) {
        const cell = row[i]!;
        text += comma;
        if (typeof cell === "string") text += quoted(this.#program ? this.#tamed(cell, this.#program) : cell);
        else if (cell !== null) text += cell;
        comma = ",";
      }
      text += "\r\n";
    }
    const buffer = this.#room(3 * text.length);
    return buffer.subarray(0, UTF8.encodeInto(text, buffer).written);
  }

  /** One buffer for all: new ones would pile up until the next garbage collection. */
  #room(bytes: number): Uint8Array<ArrayBuffer> {
    if (this.#buffer.length < bytes) this.#buffer = new Uint8Array(bytes);
    return this.#buffer;
  }

  /** Text that a program takes as text, and takes at all. */
  #tamed(text: string, program: Program): string {
    if (program === "postgres") {
      if (!text.includes("\0")) return text;
      this.nulCells++;
      return text.replaceAll("\0", "\u2400");
    }
    const tamed = FORMULA.test(text) ? `'${text}` : text;
    const max = MAX_CELL[program];
    if (tamed.length <= max) return tamed;
    this.cutCells++;
    // Not through the middle of a character that takes two units.
    return tamed.slice(0, /[\ud800-\udbff]/.test(tamed[max - 1]!) ? max - 1 : max);
  }

  /**
   * As {@linkcode lines}, for no program in particular, of rows that SQLite has written as JSON: byte by byte, without
   * making values of them, which takes a third of the time.
   *
   * @param json arrays as `json_array` writes them (no blanks, no escapes above U+007F), with commas between them
   * @returns bytes that hold until the next call; undefined where the JSON is not UTF-8
   */
  jsonLines(json: Uint8Array): Uint8Array | undefined {
    if (!isUtf8(json)) return undefined;
    // No CSV is longer than its JSON.
    const buffer = this.#room(json.length);
    return buffer.subarray(0, convert(json, buffer));
  }
}

/**
 * In quotes what needs them: also the empty string, which would be NULL without, and a lone `\.`, which ends the data
 * for PostgreSQL.
 */
function quoted(text: string): string {
  return SPECIAL.test(text) || text === "" || text === "\\." ? `"${text.replaceAll('"', '""')}"` : text;
}

const [LF, CR, QUOTE, COMMA, DOT] = [0x0a, 0x0d, 0x22, 0x2c, 0x2e];
const [OPEN, BACKSLASH, CLOSE, NULL, UNICODE] = [0x5b, 0x5c, 0x5d, 0x6e, 0x75];
/** What a letter means after a backslash; all else means itself. */
const ESCAPED = Uint8Array.from({ length: 128 }, (_, code) => code);
for (const pair of ["b\b", "t\t", "n\n", "f\f", "r\r"]) ESCAPED[pair.charCodeAt(0)] = pair.charCodeAt(1);
/** What is looked at in a string: the rest is copied. */
const STOPS = new Uint8Array(256);
for (const code of [QUOTE, BACKSLASH, COMMA]) STOPS[code] = 1;

/** Writes JSON arrays as lines of CSV; how many bytes those are. */
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
