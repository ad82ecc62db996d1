/**
 * Formats CSV (RFC 4180): a header, CRLF, quotes only where needed. NULL is empty, an empty string is `""`.
 * @module
 */

/** The value of a row in a column. */
export type Cell = string | number | bigint | null;

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
  const changes = { cut_cells: 0, nul_cells: 0, changed_cells: 0, refused_rows: 0 };
  return { rows: 0, ...changes, long_numbers: 0, excess_rows: 0, not_jsonb: 0 };
}

/** Fits rows to a program. */
export interface RowFitter {
  /** What the file starts with. */
  prefix: string;
  /** The row that the program gets; undefined when it is left out. */
  fit(row: readonly Cell[]): readonly Cell[] | undefined;
}

/** Text that needs quotes. Not a literal where it is used: each evaluation would create an object. */
const SPECIAL = /[",\r\n]/;

const UTF8 = new TextEncoder();

/** Formats rows as CSV. */
export class CsvText {
  /** Used by all calls: new buffers would pile up until the next garbage collection. */
  #buffer = new Uint8Array(0);

  /** @param columns the names in the header */
  constructor(
    private readonly columns: readonly string[],
    private readonly counts: CellCounts = noCounts(),
    private readonly fitter?: RowFitter,
  ) {}

  header(): Uint8Array {
    return UTF8.encode(`${this.fitter?.prefix ?? ""}${this.columns.join(",")}\r\n`);
  }

  /** The lines of some rows, valid until the next call. Cells after the columns are ignored. */
  lines(rows: readonly (readonly Cell[])[]): Uint8Array {
    const width = this.columns.length;
    let text = "";
    for (const given of rows) {
      const row = this.fitter ? this.fitter.fit(given) : given;
      if (row === undefined) continue;
      this.counts.rows++;
      for (let i = 0; i < width; i++) {
        const cell = row[i]!;
        if (i > 0) text += ",";
        if (typeof cell === "string") text += this.#quote(cell);
        else if (cell !== null) text += cell;
      }
      text += "\r\n";
    }
    const buffer = this.#reserve(3 * text.length);
    return buffer.subarray(0, UTF8.encodeInto(text, buffer).written);
  }

  /**
   * Puts text into quotes where needed: also the empty string, which would be NULL, and a single `\.`, which ends the data
   * for PostgreSQL.
   */
  #quote(text: string): string {
    // UTF-8 cannot hold half a surrogate pair.
    if (!text.isWellFormed()) {
      this.counts.changed_cells++;
      text = text.toWellFormed();
    }
    return SPECIAL.test(text) || text === "" || text === "\\." ? `"${text.replaceAll('"', '""')}"` : text;
  }

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
    this.counts.rows += rows;
    // Only numbers can become longer: 1.0e+20.
    const buffer = this.#reserve(3 * json.length);
    return buffer.subarray(0, convert(json, buffer));
  }
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
      // 1. Copy the text as it is.
      const [textStart, start] = [at, to];
      let char: number;
      while (STOPS[char = json[at++]!] === 0) csv[to++] = char;
      if (char === QUOTE && to > start) continue;
      // 2. It is empty, or has a special character: start again, in quotes, which are removed if they are not needed.
      at = textStart;
      to = start;
      csv[to++] = QUOTE;
      let needsQuotes = json[at] === QUOTE;
      while ((char = json[at++]!) !== QUOTE) {
        if (char === BACKSLASH) {
          char = json[at++]!;
          if (char !== UNICODE) char = ESCAPED[char]!;
          else char = parseInt(String.fromCharCode(...json.subarray(at, at += 4)), 16);
        }
        if (char === COMMA || char === QUOTE || char === LF || char === CR) needsQuotes = true;
        if (char === QUOTE) csv[to++] = QUOTE;
        csv[to++] = char;
      }
      if (to === start + 3 && csv[to - 2] === BACKSLASH && csv[to - 1] === DOT) needsQuotes = true;
      if (needsQuotes) csv[to++] = QUOTE;
      else csv.copyWithin(start, start + 1, to--);
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
