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
  if (typeof value === "object" && value !== null && hasInexactMember(value)) SOURCES.set(value, membersOf(text));
  return value;
}

function hasInexactMember(value: object): boolean {
  // An array of the values would cost a third of the time that parsing takes.
  for (const field in value) if (needsSource((value as Record<string, unknown>)[field])) return true;
  return false;
}

/** The JSON text of a member of a parsed record; undefined for text and other values that are exact. */
export function sourceOf(record: object, field: string): string | undefined {
  return SOURCES.get(record)?.get(field);
}

/** Whether the text of a value cannot be written again from the value: it is nested, or a number that may be rounded. */
function needsSource(value: unknown): boolean {
  return typeof value === "object" ? value !== null : typeof value === "number" && !Number.isSafeInteger(value);
}

/** The text of each member that is nested or a number, of the object that a valid JSON text is. */
function membersOf(text: string): Map<string, string> {
  const members = new Map<string, string>();
  let isInString = false, depth = 0, start = 0;
  let key: string | undefined;
  for (const { 0: token, index } of text.matchAll(/\\.|["{}[\],:]/gs)) {
    if (token === '"') {
      isInString = !isInString;
      if (isInString && key === undefined) start = index;
      else if (depth === 1) key ??= JSON.parse(text.slice(start, index + 1)) as string;
    }
    if (isInString || token === '"') continue;
    if (depth === 1 && token === ":") start = index + 1;
    else if (depth === 1 && (token === "," || token === "}")) {
      const source = text.slice(start, index).trim();
      // A copy, because a slice keeps a whole chunk of the log in memory. Of two members of one name, the last one counts.
      if (/^[-\d[{]/.test(source)) members.set(key!, (" " + source).slice(1));
      else members.delete(key!);
      key = undefined;
    }
    if (token === "{" || token === "[") depth++;
    else if (token === "}" || token === "]") depth--;
  }
  return members;
}

/** JSON as Python's `json.dumps` writes it, which is what the Python client stored for an object. */
export function asPythonJson(json: string): string {
  return replaceOutsideStrings(json, "[,:]|\\s+", (token) => token.trim() && `${token} `)
    .replace(/[\x7f-\uffff]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** JSON as Python writes it, whose `NaN` and `Infinity` become null. */
export function withoutNaN(text: string): string {
  return replaceOutsideStrings(text, "NaN|-?Infinity", () => "null");
}

function replaceOutsideStrings(json: string, pattern: string, replace: (token: string) => string): string {
  let isInString = false;
  return json.replace(new RegExp(`\\\\.|"|${pattern}`, "gs"), (token) => {
    if (token === '"') isInString = !isInString;
    return isInString || token === '"' || token.startsWith("\\") ? token : replace(token);
  });
}
