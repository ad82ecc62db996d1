/**
 * What scripts print: lines and progress bars.
 * @module
 */
import { fileError } from "../errors.ts";
import { UNSAFE } from "../format.ts";
import { sleepSync } from "../fs/wait.ts";
import type { OnProgress } from "../sqlite/connection.ts";

/** A pipe takes this much whole or not at all (POSIX, PIPE_BUF). */
const PIPE_BYTES = 4096;
/** How long to wait for the reader of a pipe that does not block. */
const PIPE_PAUSE_MS = 5;

/**
 * Writes the start of some bytes. Returns how many they are, 0 when that has to wait. A parent process or ssh may have set a
 * pipe to non-blocking: then Deno fails in the middle of a large write and does not tell how much was written. So each write
 * is one that a pipe takes whole, and that Rust does not buffer: it ends with a line, or has none.
 */
function writePiece(to: Output, bytes: Uint8Array): number {
  const first = bytes.subarray(0, PIPE_BYTES);
  try {
    return to.writeSync(first.subarray(0, first.lastIndexOf(0x0a) + 1 || first.length));
  } catch (error) {
    if (error instanceof Deno.errors.WouldBlock || (error as { code?: string }).code === "EAGAIN") return 0;
    throw error;
  }
}

/** Stdout as the destination of an export. Ctrl-C can end a wait. */
export const stdoutSink = {
  async write(bytes: Uint8Array): Promise<number> {
    clearBar();
    // No more than is written, since the rest comes again.
    const first = bytes.subarray(0, PIPE_BYTES);
    const shown = Deno.stdout.isTerminal() ? first.map(withoutControl) : first;
    for (;;) {
      const written = writePiece(Deno.stdout, shown);
      if (written > 0) return written;
      await new Promise((resolve) => setTimeout(resolve, PIPE_PAUSE_MS));
    }
  },
};

/** A question mark for each byte of a control character, which in UTF-8 is one below 0x20, DEL, or the byte after 0xc2. */
function withoutControl(byte: number, i: number, bytes: Uint8Array): number {
  const isC1 = bytes[i - 1] === 0xc2 && byte < 0xa0;
  return isC1 || byte === 0x7f || byte < 0x20 && ![0x09, 0x0a, 0x0d].includes(byte) ? 0x3f : byte;
}

type Output = typeof Deno.stdout | typeof Deno.stderr;

function writeText(to: Output, text: string): void {
  const bytes = new TextEncoder().encode(text);
  for (let done = 0, written; done < bytes.length; done += written) {
    written = writePiece(to, bytes.subarray(done));
    if (written === 0) sleepSync(PIPE_PAUSE_MS);
  }
}

/** Prints a line at once. Returns false when the reader has closed the pipe (`| head`), which is not an error. */
export function print(to: Output, line: string): boolean {
  clearBar();
  try {
    writeText(to, `${line}\n`);
    return true;
  } catch (error) {
    // A failure to print an error cannot be reported.
    if (to === Deno.stdout && !(error instanceof Deno.errors.BrokenPipe)) {
      throw fileError(error, "cannot write to stdout");
    }
    return false;
  }
}

/** A value as JSON on one line, with an escape for each character that a terminal may act on. */
export function jsonLine(value: unknown): string {
  const escape = (character: string) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return JSON.stringify(value).replace(UNSAFE, escape);
}

/** Colours a word on a terminal, unless `NO_COLOR` is set. */
export function paint(word: string, colour: number): string {
  return Deno.stderr.isTerminal() && !Deno.noColor ? `\x1b[${colour}m${word}\x1b[0m` : word;
}

/** Whether a progress bar is drawn on the line where the next text would go. */
let isBarDrawn = false;

/** Removes what was drawn. Everything that prints does this first. */
export function clearBar(): void {
  if (isBarDrawn) writeText(Deno.stderr, "\r\x1b[K");
  isBarDrawn = false;
}

/** How often a progress bar is drawn, in milliseconds. */
const BAR_INTERVAL_MS = 100;
const BAR_WIDTH = 30;

/**
 * A progress bar on stderr, with the time left. Before and after the steps that it counts, it shows only what is being
 * done. The next output replaces it.
 */
export function progressBar(label: string): OnProgress {
  const draw = (progress: string) => {
    isBarDrawn = true;
    writeText(Deno.stderr, `\r${label} ${progress}\x1b[K`);
  };
  draw("…");
  // The first step starts the clock: other work may come before it.
  let start: number | undefined;
  let drawn = 0;
  return (done, total) => {
    const now = performance.now();
    start ??= drawn = now;
    if (done >= total) return draw("…");
    if (now - drawn < BAR_INTERVAL_MS) return;
    drawn = now;
    const bar = "#".repeat(done / total * BAR_WIDTH).padEnd(BAR_WIDTH, ".");
    const secondsLeft = Math.ceil((now - start) / 1000 * (total - done) / done);
    draw(`[${bar}] ${Math.floor(done / total * 100)}%, ${secondsLeft} s left`);
  };
}

/** Breaks text into lines of at most `width` characters, where it has blanks. */
export function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  for (const word of text.split(" ")) {
    const longer = `${lines.at(-1) ?? ""} ${word}`;
    if (lines.length > 0 && longer.length <= width) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines;
}
