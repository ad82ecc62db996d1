/** Sizes, counts and text as people read them. @module */

/** `12 kB`, `3.4 MB`. */
export function formatBytes(bytes: number): string {
  return bytes < 1e6 ? `${Math.ceil(bytes / 1000)} kB` : `${(bytes / 1e6).toFixed(bytes < 1e8 ? 1 : 0)} MB`;
}

/** `1,234,567`. */
export function formatCount(count: number): string {
  return count.toLocaleString("en-US");
}

/** `1 run`, `1,234 runs`. */
export function plural(count: number, noun: string): string {
  return `${formatCount(count)} ${noun}${count === 1 ? "" : "s"}`;
}

/** What a terminal may act on: control characters, and those that change the direction of text. */
// deno-lint-ignore no-control-regex
export const UNSAFE = /[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g;

/** Text on one line, with a visible character for each that a terminal may act on. */
export function oneLine(text: string): string {
  return text.replace(/\s*[\r\n]+\s*/g, " ⏎ ").replaceAll("\t", " ").replace(UNSAFE, (character) => {
    const code = character.charCodeAt(0);
    return code < 0x20 ? String.fromCharCode(0x2400 + code) : code === 0x7f ? "␡" : "�";
  });
}
