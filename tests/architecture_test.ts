import assert from "node:assert/strict";
import { posix } from "node:path";
import { ROOT, treeOf } from "./fixtures/mod.ts";

/** The layers from the bottom to the top. A file imports from its own folder and from the layers below. */
const LAYERS = [
  ["lib"],
  ["lib/fs"],
  ["lib/sqlite", "lib/log"],
  ["lib/store"],
  ["lib/writer", "lib/backup", "lib/recovery", "lib/export", "lib/report"],
  ["lib/cli"],
  ["scripts", "."],
];

/** The importers of node:sqlite. The program of the other thread cannot import the connection. */
const SQLITE_IMPORTERS = ["lib/sqlite/connection.ts", "lib/sqlite/writer_thread.ts"];

/** Violations that are still in the code. Delete an entry together with its cause; never add one. */
const KNOWN: string[] = [];

const SOURCES = new Map<string, string>();
for (const path of ["mod.ts", ...modulesIn("lib"), ...modulesIn("scripts")]) {
  SOURCES.set(path, Deno.readTextFileSync(ROOT + path));
}

function modulesIn(folder: string): string[] {
  return Object.keys(treeOf(ROOT + folder)).filter((path) => path.endsWith(".ts")).map((path) => `${folder}/${path}`);
}

/** What a module imports: paths from the root of the repository, and specifiers as written where they are not relative. */
function importsOf(path: string): string[] {
  const found = withoutComments(path).matchAll(/\b(?:from|import)\s*\(?\s*"([^"]+)"/g);
  return [...found].map(([, to]) => to!.startsWith(".") ? posix.join(posix.dirname(path), to!) : to!);
}

function withoutComments(path: string): string {
  return SOURCES.get(path)!.replace(/\/\*[^]*?\*\//g, "").replace(/(^|\s)\/\/.*/g, "");
}

const layerOf = (path: string) => LAYERS.findIndex((folders) => folders.includes(posix.dirname(path)));

function violationsOf(path: string): string[] {
  const isCore = layerOf(path) === 0;
  const code = withoutComments(path);
  const found: string[] = [];
  for (const to of importsOf(path)) {
    const isBelow = layerOf(to) < layerOf(path) || posix.dirname(to) === posix.dirname(path);
    const isShipped = isCore ? to === "node:path" : to.startsWith("node:");
    const isAllowed = to === "node:sqlite" ? SQLITE_IMPORTERS.includes(path) : SOURCES.has(to) ? isBelow : isShipped;
    if (!isAllowed) found.push(`imports ${to}`);
  }
  if (isCore && /(?<!typeof )\bDeno\./.test(code)) found.push("calls Deno");
  const isOutput = path.startsWith("lib/cli/") || !path.startsWith("lib/");
  if (!isOutput && /\bDeno\.exit\b|\bconsole\.(?!warn)/.test(code)) found.push("prints or exits");
  if (path.startsWith("lib/") && lines(path) > 400) found.push("over 400 lines");
  return found.map((what) => `${path}: ${what}`);
}

const lines = (path: string) => SOURCES.get(path)!.split("\n").length - 1;

/** The modules that are on a circle of imports, or on a path between two circles. */
function inCircles(): string[] {
  let left = [...SOURCES.keys()];
  for (let before = 0; before !== left.length;) {
    before = left.length;
    left = left.filter((path) => importsOf(path).some((to) => left.includes(to)));
    left = left.filter((path) => left.some((from) => importsOf(from).includes(path)));
  }
  return left.map((path) => `${path}: in an import circle`);
}

Deno.test("imports go down only, without circles, bare or npm specifiers, and no lib file is over 400 lines", () => {
  for (const path of SOURCES.keys()) assert.notEqual(layerOf(path), -1, `${path} is in no layer`);
  const found = [...new Set([...SOURCES.keys()].flatMap(violationsOf).concat(inCircles()))];
  assert.deepEqual(found.sort(), KNOWN);
});

Deno.test("the core is under 1,000 lines", () => {
  const core = [...SOURCES.keys()].filter((path) => layerOf(path) === 0);
  assert.ok(core.reduce((sum, path) => sum + lines(path), 0) < 1000);
});

Deno.test("mod.ts exports what programs import, and no internals", async () => {
  // deno-fmt-ignore
  assert.deepEqual(Object.keys(await import("../mod.ts")).sort(), [
    "ApiClient", "CLIENT_COLUMNS", "DatabaseWriter", "EventLog", "RUN_COLUMNS", "RUN_STATUSES", "SCHEMA_VERSION",
    "TRIGGER_TYPES", "TelemetryClient", "TelemetryError", "checkHealth", "createStorage", "exportTo", "exportToFile",
    "layoutOf", "listBackups", "locate", "logFiles", "newRun", "recoverDatabase", "restoreBackup", "runId", "scan",
    "schemaSql", "setUpDatabase", "summarizeRuns", "takeBackup", "timestamp",
  ]);
});
