import assert from "node:assert/strict";
import { join, normalize } from "node:path";
import fc from "npm:fast-check@4.10.2";
import {
  type BaseChoice,
  candidateFolders,
  type FileKind,
  fileName,
  fileNames,
  layoutOf,
  parseFileName,
  type Platform,
  resolveBase,
} from "../../lib/layout.ts";
import { locate, otherStoresWithData } from "../../lib/fs/locate.ts";
import { run, slashes, TempFolder, testWith } from "../fixtures/mod.ts";

/** Calls resolveBase with the given environment. */
function find(platform: Platform, env: Record<string, string>, existing: string[] = []): BaseChoice {
  const cwd = platform === "windows" ? "C:\\here" : "/here";
  const exists = (path: string) => existing.includes(path);
  return resolveBase({ platform, cwd, exists, env: (name) => env[name] });
}

/** The source and the folder. */
function decided(...arguments_: Parameters<typeof find>): [string, string] {
  const { source, base } = find(...arguments_);
  return [source, base];
}

const UNIX: Platform[] = ["linux", "darwin"];
const UNIX_FOLDERS = ["/agent-metrics", "/opt/telemetry", "/data/telemetry", "/home/me/.telemetry"];
const WINDOWS_FOLDERS = [
  "/agent-metrics",
  "/opt/telemetry",
  "/data/telemetry",
  "D:/agent-metrics",
  "C:/agent-metrics",
  "C:\\Users\\me\\.telemetry",
];

for (const platform of UNIX) {
  const HOME = "/home/me";

  Deno.test(`resolveBase on ${platform}: a variable wins over those after it in the contract`, () => {
    const all = {
      HOME,
      TELEMETRY_DB_PATH: "/one/db/telemetry.sqlite",
      TELEMETRY_BASE_DIR: "/two",
      AGENT_METRICS_DIR: "/three",
    };
    const { TELEMETRY_DB_PATH: _1, ...withoutPath } = all;
    const { TELEMETRY_BASE_DIR: _2, ...withoutBase } = withoutPath;
    // A variable wins over existing folders, whether its own folder exists or not.
    assert.deepEqual(decided(platform, all, UNIX_FOLDERS), ["TELEMETRY_DB_PATH", "/one"]);
    assert.deepEqual(decided(platform, withoutPath, UNIX_FOLDERS), ["TELEMETRY_BASE_DIR", "/two"]);
    assert.deepEqual(decided(platform, withoutBase, UNIX_FOLDERS), ["AGENT_METRICS_DIR", "/three"]);
  });

  Deno.test(`resolveBase on ${platform}: the first folder that exists is used`, () => {
    for (const [i, folder] of UNIX_FOLDERS.entries()) {
      assert.deepEqual(decided(platform, { HOME }, UNIX_FOLDERS.slice(i)), ["found", folder]);
    }
  });

  Deno.test(`resolveBase on ${platform}: without any folder, the contract's default is used`, () => {
    assert.deepEqual(decided(platform, { HOME }), ["default", "/agent-metrics"]);
    assert.deepEqual(decided(platform, {}), ["default", "/agent-metrics"]);
    // Only Windows has drive letters: on Unix they would be names in the working folder.
    assert.deepEqual(decided(platform, { HOME }, ["D:/agent-metrics", "C:/agent-metrics"]), [
      "default",
      "/agent-metrics",
    ]);
    assert.deepEqual(candidateFolders(platform, HOME), UNIX_FOLDERS);
  });

  Deno.test(`resolveBase on ${platform}: a relative path starts from the working folder`, () => {
    assert.deepEqual(decided(platform, { TELEMETRY_BASE_DIR: "store" }), ["TELEMETRY_BASE_DIR", "/here/store"]);
    assert.deepEqual(decided(platform, { AGENT_METRICS_DIR: "../store" }), ["AGENT_METRICS_DIR", "/store"]);
    const { base, database } = find(platform, { TELEMETRY_DB_PATH: "store/db/telemetry.sqlite" });
    assert.deepEqual([base, database], ["/here/store", "/here/store/db/telemetry.sqlite"]);
    assert.equal(find(platform, { TELEMETRY_NDJSON_DIR: "logs" }).raw, "/here/logs");
  });
}

Deno.test("resolveBase on Windows: a variable wins over those after it in the contract", () => {
  const all = {
    USERPROFILE: "C:\\Users\\me",
    TELEMETRY_DB_PATH: "E:\\one\\db\\telemetry.sqlite",
    TELEMETRY_BASE_DIR: "E:\\two",
    AGENT_METRICS_DIR: "E:/three",
  };
  const { TELEMETRY_DB_PATH: _1, ...withoutPath } = all;
  const { TELEMETRY_BASE_DIR: _2, ...withoutBase } = withoutPath;
  assert.deepEqual(decided("windows", all, WINDOWS_FOLDERS), ["TELEMETRY_DB_PATH", "E:\\one"]);
  assert.deepEqual(decided("windows", withoutPath, WINDOWS_FOLDERS), ["TELEMETRY_BASE_DIR", "E:\\two"]);
  const [source, base] = decided("windows", withoutBase, WINDOWS_FOLDERS);
  assert.deepEqual([source, base.replaceAll("\\", "/")], ["AGENT_METRICS_DIR", "E:/three"]);
  assert.equal(find("windows", { TELEMETRY_DB_PATH: "E:/x/db/t.sqlite" }).base.replaceAll("\\", "/"), "E:/x");
});

Deno.test("resolveBase on Windows: drive letters come before the home folder", () => {
  const USERPROFILE = "C:\\Users\\me";
  for (const [i, folder] of WINDOWS_FOLDERS.entries()) {
    assert.deepEqual(decided("windows", { USERPROFILE }, WINDOWS_FOLDERS.slice(i)), ["found", folder]);
  }
  assert.deepEqual(decided("windows", { USERPROFILE }), ["default", "D:/agent-metrics"]);
  assert.deepEqual(decided("windows", {}), ["default", "D:/agent-metrics"]);
  // On Windows only USERPROFILE names the home folder. Unix shells there set HOME, too.
  assert.deepEqual(decided("windows", { HOME: "/home/me" }, ["/home/me/.telemetry"]), ["default", "D:/agent-metrics"]);
  assert.deepEqual(candidateFolders("windows", USERPROFILE), WINDOWS_FOLDERS);
});

Deno.test("resolveBase on Windows: a relative path starts from the working folder", () => {
  assert.equal(find("windows", { TELEMETRY_BASE_DIR: "store" }).base, "C:\\here\\store");
  assert.equal(find("windows", { TELEMETRY_NDJSON_DIR: "..\\logs" }).raw, "C:\\logs");
  // A drive without a slash: its current folder, which is known for one drive only.
  assert.equal(find("windows", { TELEMETRY_BASE_DIR: "c:store" }).base, "C:\\here\\store");
  assert.equal(find("windows", { TELEMETRY_BASE_DIR: "D:store" }).base, "D:\\store");
  assert.equal(find("linux", { TELEMETRY_BASE_DIR: "C:store" }).base, "/here/C:store");
});

Deno.test("resolveBase: an empty variable counts as unset", () => {
  const empty = { TELEMETRY_DB_PATH: "", TELEMETRY_BASE_DIR: "", AGENT_METRICS_DIR: "", TELEMETRY_NDJSON_DIR: "" };
  for (const platform of [...UNIX, "windows"] as const) {
    assert.deepEqual(find(platform, empty), find(platform, {}));
    assert.equal(find(platform, { ...empty, AGENT_METRICS_DIR: "/three" }).source, "AGENT_METRICS_DIR");
    assert.equal(find(platform, { ...empty, HOME: "", USERPROFILE: "" }).source, "default");
  }
  // An empty home counts as unset: "/.telemetry" would belong to nobody.
  assert.deepEqual(decided("linux", { HOME: "" }, ["/.telemetry", ".telemetry", "/here/.telemetry"]), [
    "default",
    "/agent-metrics",
  ]);
});

Deno.test("TELEMETRY_DB_PATH: the base is two folders up, and the file keeps an unusual name", () => {
  const choice = find("linux", { TELEMETRY_DB_PATH: "/srv/store/data/agents.db", TELEMETRY_BASE_DIR: "/two" });
  assert.deepEqual([choice.base, choice.database], ["/srv/store", "/srv/store/data/agents.db"]);
  const layout = layoutOf(choice, "linux");
  assert.deepEqual(
    [layout.base, layout.db, layout.database, layout.raw, layout.backups],
    ["/srv/store", "/srv/store/data", "/srv/store/data/agents.db", "/srv/store/raw", "/srv/store/backups"],
  );
});

Deno.test("TELEMETRY_NDJSON_DIR moves only raw/", () => {
  for (const others of [{}, { TELEMETRY_BASE_DIR: "/two" }, { TELEMETRY_DB_PATH: "/one/db/t.sqlite" }]) {
    const still = layoutOf(find("linux", others), "linux");
    const moved = layoutOf(find("linux", { ...others, TELEMETRY_NDJSON_DIR: "/var/log/agents" }), "linux");
    assert.equal(moved.raw, "/var/log/agents");
    const { raw: _1, choice: _2, ...rest } = moved;
    const { raw: _3, choice: _4, ...restBefore } = still;
    assert.deepEqual(rest, restBefore);
  }
});

Deno.test("layoutOf returns the contract's folders and files", () => {
  const { choice: _, ...places } = layoutOf("/srv/telemetry", "linux");
  assert.deepEqual(places, {
    base: "/srv/telemetry",
    raw: "/srv/telemetry/raw",
    db: "/srv/telemetry/db",
    database: "/srv/telemetry/db/telemetry.sqlite",
    recovering: "/srv/telemetry/db/telemetry.recovering.sqlite",
    reports: "/srv/telemetry/reports",
    exports: "/srv/telemetry/exports",
    config: "/srv/telemetry/config",
    schemaSql: "/srv/telemetry/config/schema.sql",
    logs: "/srv/telemetry/logs",
    backups: "/srv/telemetry/backups",
    readme: "/srv/telemetry/README.md",
  });
  assert.equal(layoutOf("D:/agent-metrics", "windows").database, "D:\\agent-metrics\\db\\telemetry.sqlite");
});

Deno.test("locate: --base wins over every variable, TELEMETRY_NDJSON_DIR included, and may be relative", () => {
  using temp = new TempFolder();
  const env: Record<string, string> = {
    TELEMETRY_DB_PATH: "/one/db/telemetry.sqlite",
    TELEMETRY_BASE_DIR: "/two",
    AGENT_METRICS_DIR: "/three",
    TELEMETRY_NDJSON_DIR: "/var/log/agents",
  };
  const look = { env: (name: string) => env[name], exists: () => true };
  const layout = locate(temp.path, look);
  assert.deepEqual([layout.choice.source, layout.base, layout.raw, layout.database], [
    "--base",
    normalize(temp.path),
    join(temp.path, "raw"),
    join(temp.path, "db", "telemetry.sqlite"),
  ]);
  assert.equal(locate("some/where", look).base, join(Deno.cwd(), "some", "where"));
  for (const base of ["", "~/store", 5, null]) {
    assert.throws(
      () => locate(base as string, look),
      /base is not a folder/,
      "the store of the environment is not meant",
    );
  }
  if (Deno.build.os !== "windows") {
    assert.equal(locate(undefined, look).base, "/one");
    assert.equal(locate(undefined, look).raw, "/var/log/agents");
  }
});

Deno.test("otherStoresWithData lists the other candidates that contain a database or a log", () => {
  using temp = new TempFolder();
  const folder = (name: string) => join(temp.path, name);
  for (const path of ["used/raw", "other/raw", "other/db"]) Deno.mkdirSync(folder(path), { recursive: true });
  const env: Record<string, string> = { TELEMETRY_BASE_DIR: folder("used"), AGENT_METRICS_DIR: folder("other") };
  // Only those of the test: this machine may have a store, too.
  const warned = () =>
    otherStoresWithData(locate(undefined, { env: (name) => env[name], exists: () => false }))
      .filter((path) => slashes(path).startsWith(temp.path));

  assert.deepEqual(warned(), [], "empty folders are no data");
  Deno.writeTextFileSync(folder("other/db/telemetry.sqlite"), "");
  Deno.writeTextFileSync(folder("other/raw/notes.txt"), "no log");
  assert.deepEqual(warned(), [], "neither is an empty database, nor another file");
  Deno.writeTextFileSync(folder("other/db/telemetry.sqlite"), "x");
  assert.deepEqual(warned(), [folder("other")], "a database is");
  Deno.removeSync(folder("other/db/telemetry.sqlite"));
  assert.deepEqual(warned(), []);
  Deno.writeTextFileSync(folder("other/raw/events_20251209.ndjson.gz"), "x");
  assert.deepEqual(warned(), [folder("other")], "a log is, gzipped or not");
  Deno.removeSync(folder("other"), { recursive: true });
  assert.deepEqual(warned(), [], "a folder that is not there holds nothing");
});

Deno.test("otherStoresWithData does not list the same folder under another name", () => {
  using temp = new TempFolder();
  Deno.mkdirSync(join(temp.path, "store", "db"), { recursive: true });
  Deno.writeTextFileSync(join(temp.path, "store", "db", "telemetry.sqlite"), "x");
  const store = join(temp.path, "store");
  const names = [`${store}/`, join(temp.path, "store") + "/../store"];
  if (Deno.build.os !== "windows") {
    Deno.symlinkSync(store, join(temp.path, "link"));
    names.push(join(temp.path, "link"));
  }
  for (const name of names) {
    const env: Record<string, string> = { TELEMETRY_BASE_DIR: store, AGENT_METRICS_DIR: name };
    const others = otherStoresWithData(locate(undefined, { env: (key) => env[key], exists: () => false }));
    assert.deepEqual(others.filter((path) => slashes(path).startsWith(temp.path)), [], name);
  }
});

const STAMPED: [FileKind, before: string, after: string][] = [
  ["full_backup", "telemetry_backup_", ".sqlite"],
  ["before_restore", "telemetry_before_restore_", ".sqlite"],
  ["before_v3", "telemetry.before_v3_", ".sqlite"],
  ["corrupted", "telemetry.corrupted.", ".sqlite"],
  ["before_rebuild", "telemetry.before_rebuild_", ".sqlite"],
  ["runs_export", "agent_runs_", ".csv"],
  ["events_export", "run_events_", ".csv"],
  ["commits_export", "commits_", ".csv"],
];

Deno.test("fileName uses local time, and UTC for logs", () => {
  const local = new Date(2025, 11, 10, 3, 4, 5);
  for (const [kind, before, after] of STAMPED) assert.equal(fileName(kind, local), `${before}20251210_030405${after}`);
  assert.equal(fileName("daily_backup", local), "telemetry.backup.20251210.sqlite");
  assert.equal(fileName("log", new Date("2025-12-10T00:00:00Z")), "events_20251210.ndjson");
  assert.equal(fileName("log", new Date("2025-12-10T23:59:59.999Z")), "events_20251210.ndjson");
});

Deno.test("fileNames continues with the names of the following seconds", () => {
  const first = (kind: FileKind, count: number) => {
    const names = fileNames(kind, new Date(2025, 11, 31, 23, 59, 58));
    return Array.from({ length: count }, () => names.next().value);
  };
  assert.deepEqual(first("daily_backup", 4), [
    "telemetry.backup.20251231.sqlite",
    "telemetry.backup.20251231_235958.sqlite",
    "telemetry.backup.20251231_235959.sqlite",
    "telemetry.backup.20260101_000000.sqlite",
  ]);
  for (const [kind, before, after] of STAMPED) {
    const times = ["20251231_235958", "20251231_235959", "20260101_000000"];
    assert.deepEqual(first(kind, 3), times.map((time) => `${before}${time}${after}`));
  }
});

/** The name of the second daily backup of a day. */
function withTime(at: Date): string {
  const names = fileNames("daily_backup", at);
  names.next();
  return names.next().value;
}

Deno.test("parseFileName reverses fileName at any time", () => {
  const dates = fc.date({ min: new Date(1970, 0, 2), max: new Date(9999, 11, 30), noInvalidDate: true });
  fc.assert(fc.property(dates, (at) => {
    const names: [FileKind, string][] = [
      ...STAMPED.map(([kind]): [FileKind, string] => [kind, fileName(kind, at)]),
      ["daily_backup", fileName("daily_backup", at)],
      ["daily_backup", withTime(at)],
      ["log", fileName("log", at)],
    ];
    for (const [kind, name] of names) {
      const parsed = parseFileName(name);
      assert.equal(parsed?.kind, kind, name);
      const again = kind === "daily_backup" && name.includes("_") ? withTime(parsed.time) : fileName(kind, parsed.time);
      assert.equal(again, name);
      assert.equal(parsed.gzipped, false);
    }
    assert.equal(parseFileName(`${fileName("log", at)}.gz`)?.gzipped, true);
  }));
});

Deno.test("parseFileName returns the time in a name", () => {
  const time = (name: string) => parseFileName(name)?.time.getTime();
  assert.equal(time("events_20240229.ndjson.gz"), Date.UTC(2024, 1, 29));
  assert.equal(time("telemetry.backup.20251210.sqlite"), new Date(2025, 11, 10).getTime());
  assert.equal(time("telemetry.backup.20251210_235959.sqlite"), new Date(2025, 11, 10, 23, 59, 59).getTime());
  assert.equal(time("telemetry_backup_20251210_000000.sqlite"), new Date(2025, 11, 10).getTime());
});

testWith(["zones"], "in a zone with daylight saving time, names of the repeated hour parse", async () => {
  const program = `
    import { fileName, parseFileName } from ${JSON.stringify(new URL("../../lib/layout.ts", import.meta.url).href)};
    const names = ["2025-10-26T00:30:00Z", "2025-10-26T01:30:00Z"].map((at) => fileName("full_backup", new Date(at)));
    console.log(JSON.stringify([...names, fileName("full_backup", parseFileName(names[0]).time)]));`;
  const { stdout, stderr } = await run(Deno.execPath(), ["eval", "--no-lock", program], {
    env: { TZ: "Europe/Berlin" },
  });
  assert.equal(stdout.trim(), JSON.stringify(Array(3).fill("telemetry_backup_20251026_023000.sqlite")), stderr);
});

const NOT_OURS = [
  "",
  "events_.ndjson",
  "events_20251301.ndjson",
  "events_20250001.ndjson",
  "events_20251232.ndjson",
  "events_20250229.ndjson",
  "events_2025121.ndjson",
  "events_202512100.ndjson",
  "events_20251210.ndjson.gz.gz",
  "events_20251210.ndjson.zst",
  "events_20251210.ndjson.partial",
  "events_20251210.ndjson\n",
  "events_20251210.json",
  "EVENTS_20251210.ndjson",
  "xevents_20251210.ndjson",
  "events_20251210_120000.ndjson",
  "telemetry.sqlite",
  "telemetry.sqlite-wal",
  "telemetry.backup.20251310.sqlite",
  "telemetry.backup.20251210_.sqlite",
  "telemetry.backup.20251210_1200.sqlite",
  "telemetry.backup.20251210_240000.sqlite",
  "telemetry.backup.20251210_126000.sqlite",
  "telemetry.backup.20251210_120060.sqlite",
  "telemetry.backup.20251210.sqlite.gz",
  "telemetry.backup.20251210.sqlite.partial",
  "telemetry_backup_20251210.sqlite",
  "telemetry_backup_20251210_240000.sqlite",
  "telemetry_backup_20250431_120000.sqlite",
  "telemetry_backup_20251210-120000.sqlite",
  "telemetry_backup_20251210_120000.sqlite.gz",
  "telemetry_backup_20251210_120000.sqlite-wal",
  "telemetry.before_v3_20251210_120000.sqlite.partial",
  "telemetry_before_restore_20251210_250000.sqlite",
  "telemetry.corrupted.20251210.sqlite",
];

Deno.test("parseFileName returns null for other names", () => {
  for (const name of NOT_OURS) assert.equal(parseFileName(name), null, JSON.stringify(name));
});
