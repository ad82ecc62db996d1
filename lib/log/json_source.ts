/**
 * The JSON text of values that JavaScript cannot hold exactly: numbers lose digits, and nesting of any depth can be parsed
 * but not written again.
 * @module
 */

/** By the object that a line was parsed to, the JSON text of those members. */
const SOURCES = new WeakMap<object, Map<string, string>>();

/** The value of a JSON text, with the sources of its members where needed. Throws for what is not JSON. */
export function parseWithSources(text: string): unknown {
  const value: unknown = JSON.parse(text);
  if (typeof value === "object" && value !== null && Object.values(value).some(isInexact)) {
    SOURCES.set(value, membersOf(text));
  }
  return value;
}

/** The JSON text of a member of a parsed record; undefined for text and other values that are exact. */
export function sourceOf(record: object, field: string): string | undefined {
  return SOURCES.get(record)?.get(field);
}

function isInexact(value: unknown): boolean {
  return typeof value === "object" ? value !== null : typeof value === "number" && !Number.isSafeInteger(value);
}

/** The source of each inexact member of the object that a valid JSON text is. */
function membersOf(text: string): Map<string, string> {
  const members = new Map<string, string>();
  let depth = 0, start = 0;
  let key: string | undefined;
  for (let at = 0; at < text.length; at++) {
    const char = text[at]!;
    if (char === '"') {
      const from = at;
      at = endOfString(text, at);
      if (depth === 1 && key === undefined) key = JSON.parse(text.slice(from, at + 1)) as string;
    } else if (char === ":" && depth === 1) start = at + 1;
    else if (char === "{" || char === "[") depth++;
    else if (depth === 1 && (char === "," || char === "}")) {
      const source = text.slice(start, at).trim();
      // A copy, because a slice keeps a whole chunk of the log in memory. Of two members of one name, the last one counts.
      if (key !== undefined && /^[-\d[{]/.test(source)) members.set(key, (" " + source).slice(1));
      else if (key !== undefined) members.delete(key);
      key = undefined;
    }
    if (char === "}" || char === "]") depth--;
  }
  return members;
}

/** Where the string that starts here ends. */
function endOfString(text: string, quote: number): number {
  let at = quote + 1;
  while (text[at] !== '"') at += text[at] === "\\" ? 2 : 1;
  return at;
}

/** JSON as Python's `json.dumps` writes it, which is what the Python client stored for an object. */
export function asPythonJson(json: string): string {
  let text = "";
  for (let at = 0; at < json.length; at++) {
    const char = json[at]!;
    if (char === '"') {
      const end = endOfString(json, at);
      text += json.slice(at, end + 1);
      at = end;
    } else if (char === "," || char === ":") text += `${char} `;
    else if (char > " ") text += char;
  }
  return text.replace(/[\x7f-\uffff]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** JSON as Python writes it, whose `NaN` and `Infinity` become null. */
export function withoutNaN(text: string): string {
  let isInString = false;
  return text.replace(/\\.|"|NaN|-?Infinity/gs, (token) => {
    if (token === '"') isInString = !isInString;
    return isInString || token === '"' || token.startsWith("\\") ? token : "null";
  });
}
