/** Runs the automation section of the README as written, except for its folders. */
import assert from "node:assert/strict";
import { gzipSync } from "node:zlib";
import { logFiles, scan } from "../../lib/log/read.ts";
import { fileName, STORE_VARIABLES } from "../../lib/layout.ts";
import {
  codeBlocks,
  lacks,
  NEEDS,
  pathWithDeno,
  README,
  ROOT,
  run,
  runScript,
  TempFolder,
  testWith,
} from "../fixtures/mod.ts";

const DAY = 86_400_000;
const SECTION = README.slice(README.indexOf("## Automation"), README.indexOf("## More than one machine"));

async function newStore(temp: TempFolder): Promise<string> {
  const base = `${temp.path}/store`;
  const { code, stderr } = await runScript("setup_storage", base, ["--with-database"]);
  assert.equal(code, 0, stderr);
  return base;
}

testWith(
  ["shell"],
  "every command for cron and systemd works without output, with only its permissions",
  async () => {
    using temp = new TempFolder();
    const base = await newStore(temp);
    const commands = [...SECTION.matchAll(/deno run .*scripts.(\w+)\.ts.*--quiet/g)];
    const names = commands.map(([, name]) => name);
    assert.deepEqual(
      names,
      [
        "backup_database",
        "backup_telemetry_db",
        "recover_database",
        "report_runs",
        "report_runs",
        "backup_database",
        "backup_database",
      ],
    );
    for (const [command] of commands) {
      const here = command
        .replaceAll("C:\\agent-metrics\\", `${base}/`).replaceAll("C:\\agent-metrics", base).replaceAll(
          "C:\\toolkit\\",
          ROOT,
        ).replaceAll("scripts\\", "scripts/")
        .replaceAll("/srv/telemetry", base).replaceAll("/opt/toolkit/", ROOT);
      const done = await run("env", ["-i", `PATH=${pathWithDeno()}`, "sh", "-c", here], { cwd: temp.path });
      assert.deepEqual(done, { code: 0, stdout: "", stderr: "" }, here);
    }
    assert.equal([...Deno.readDirSync(`${base}/backups`)].length, 4);
    // The hourly check reports a damaged database.
    Deno.writeTextFileSync(`${base}/db/telemetry.sqlite`, "damaged");
    const check = commands[2]![0].replaceAll("/srv/telemetry", base).replaceAll("/opt/toolkit/", ROOT);
    const { code, stderr } = await run("sh", ["-c", check], { env: { PATH: pathWithDeno() } });
    assert.equal(code, 1);
    assert.match(stderr, /not healthy/);
  },
);

/**
 * Lines of a shell script that give root a machine of its own: accounts, and what is below `/home`, `/srv` and `/opt`,
 * can be changed and nothing of it stays. The clone is `/opt/toolkit`, and `deno` is in a folder that all users can read.
 */
const OWN_MACHINE = `
cp -a /etc "$MACHINE/etc" && mount --bind "$MACHINE/etc" /etc
sed -i /^telemetry:/d /etc/passwd /etc/shadow /etc/group /etc/gshadow || true
for folder in /home /srv /opt; do mount -t tmpfs -o mode=755 tmpfs $folder; done
mkdir /opt/toolkit && mount --bind '${ROOT}' /opt/toolkit
mkdir /opt/bin && touch /opt/bin/deno && mount --bind '${Deno.execPath()}' /opt/bin/deno
PATH=/opt/bin:$PATH
`;

testWith(
  ["mount", "unshare", "useradd"],
  "root creates the user and the store, and what that user's cron and systemd start works on it",
  async (t) => {
    using temp = new TempFolder();
    const [create] = codeBlocks("sh", SECTION);
    const [crontab] = codeBlocks("cron", SECTION);
    const units = codeBlocks("ini", SECTION);
    assert.equal(units.length, 2);
    // What cron does with a line, and systemd with ExecStart: the environment is theirs, and so is the folder.
    const cron = crontab!.trim().split("\n").map((line) => /^(?:\S+ ){5}(.*)$/.exec(line)![1]!.replaceAll("\\%", "%"));
    const exec = /^ExecStart=(.*)$/m.exec(units[0]!)![1]!;
    const absolute = (command: string) => command.replace(/^deno /, "/opt/bin/deno ");
    const calls = [
      ...cron.map((line) =>
        `cd $HOME && env -i HOME=$HOME LOGNAME=telemetry SHELL=/bin/sh PATH=/usr/bin:/bin sh -c '${absolute(line)}'`
      ),
      `cd / && env -i PATH=/usr/bin:/bin ${absolute(exec)}`,
    ];
    Deno.writeTextFileSync(`${temp.path}/calls`, calls.join("\n"));
    Deno.writeTextFileSync(`${temp.path}/telemetry-backup.service`, units[0]!.replace(exec, absolute(exec)));
    Deno.writeTextFileSync(`${temp.path}/telemetry-backup.timer`, units[1]!);
    Deno.chmodSync(temp.path, 0o755);
    // It also names mistakes in units that others installed on this machine.
    const verify =
      "cp $MACHINE/telemetry-backup.* . && ! systemd-analyze verify telemetry-backup.* 2>&1 | grep telemetry-";
    const script = `${OWN_MACHINE}
(${create!.trim()}) >&2
ls -ld /srv/telemetry /srv/telemetry/db/telemetry.sqlite | awk '{ print $3 }'
su telemetry -s /bin/sh -c "set -e; . $MACHINE/calls"
ls /srv/telemetry/backups
find /srv/telemetry ! -user telemetry
${lacks("systemd") ? "" : `cd /etc/systemd/system && ${verify}`}`;
    const env = { MACHINE: temp.path };
    const { code, stdout, stderr } = await run("unshare", ["--mount", "sh", "-euc", script], { env, cwd: "/" });
    assert.equal(code, 0, stderr);
    // Neither the commands nor systemd print anything behind this.
    assert.match(stderr, /\nnext: record runs with mod\.ts, as the README shows\n$/);
    assert.match(stdout, /^telemetry\ntelemetry\n(telemetry[.\w]+\.sqlite\n){3}$/);
    const reason = { name: `systemd finds no mistake in the units [SKIPPED: ${NEEDS.systemd[0]}]`, ignore: true };
    if (lacks("systemd")) await t.step({ ...reason, fn: () => {} });
  },
);

testWith(
  ["linux", "bash", "flock"],
  "the archive script compresses old days without loss, and leaves today and yesterday alone",
  async () => {
    using temp = new TempFolder();
    const base = await newStore(temp);
    const nameOf = (days: number) => fileName("log", new Date(Date.now() - days * DAY));
    const event = (n: number) =>
      `${
        JSON.stringify({
          run_id: `r${n}`,
          event_type: "e",
          timestamp: "t",
          payload_json: null,
          id: null,
          record_type: "event",
        })
      }\n`;
    for (const days of [0, 1, 2, 3, 40]) {
      Deno.writeTextFileSync(`${base}/raw/${nameOf(days)}`, event(days) + '{"half');
    }
    // A partial of a killed run, and a day of which somebody has compressed a part.
    Deno.writeTextFileSync(`${base}/raw/${nameOf(2)}.gz.partial`, "half");
    Deno.writeFileSync(`${base}/raw/${nameOf(3)}.gz`, gzipSync(event(33)));
    const before = await idsIn(base);
    Deno.writeTextFileSync(`${temp.path}/archive_logs.sh`, codeBlocks("bash", SECTION)[0]!);
    for (let times = 0; times < 2; times++) {
      const { code, stdout, stderr } = await run("bash", [`${temp.path}/archive_logs.sh`, base]);
      assert.deepEqual([code, stdout], [0, ""], stderr);
      assert.match(stderr, new RegExp(`^${nameOf(3)}.gz exists already[^\n]*\n$`));
      const names = [...Deno.readDirSync(`${base}/raw`)].map(({ name }) => name).sort();
      const kept = [nameOf(0), nameOf(1), `${nameOf(2)}.gz`, nameOf(3), `${nameOf(3)}.gz`, `${nameOf(40)}.gz`];
      assert.deepEqual(names, kept.sort());
      assert.deepEqual(await idsIn(base), before);
    }
  },
);

async function idsIn(base: string): Promise<string[]> {
  const ids: string[] = [];
  for await (const found of scan(logFiles(`${base}/raw`))) {
    ids.push("record" in found ? found.record.run_id : found.text);
  }
  return ids.sort();
}

Deno.test("deno task compile creates programs that need no Deno and take any --base", async (t) => {
  using temp = new TempFolder();
  const output = `${temp.path}/setup_storage`;
  const { tasks } = JSON.parse(Deno.readTextFileSync(`${ROOT}deno.json`));
  const flags = /C='-q (.*?)'/.exec(tasks.compile.command)![1]!.split(" ");
  assert.deepEqual(flags, [
    `--allow-env=${[...STORE_VARIABLES, "HOME", "USERPROFILE"]}`,
    "--allow-read",
    "--allow-write",
  ]);
  for (const { name } of Deno.readDirSync(`${ROOT}scripts`)) {
    assert.ok(tasks.compile.command.includes(`deno compile $C -o dist/${name.slice(0, -3)} scripts/${name}`), name);
  }
  const script = ["run", "--no-prompt", ...flags, `${ROOT}scripts/setup_storage.ts`];
  const granted = await run(Deno.execPath(), [...script, "--base", `${temp.path}/first`, "--with-database"]);
  assert.deepEqual([granted.code, granted.stderr], [0, ""]);
  if (lacks("linux")) {
    await t.step({ name: "[SKIPPED: deno compile was never tried on this system]", ignore: true, fn: () => {} });
    return;
  }
  const args = ["compile", "-q", ...flags, "-o", output, "scripts/setup_storage.ts"];
  const compiled = await run(Deno.execPath(), args, { cwd: ROOT });
  if (compiled.code !== 0 && /error sending request|dns error|download|tcp connect/i.test(compiled.stderr)) {
    await t.step({
      name: "[SKIPPED: the base that deno compile needs cannot be downloaded]",
      ignore: true,
      fn: () => {},
    });
    return;
  }
  assert.equal(compiled.code, 0, compiled.stderr);
  const help = await run(output, ["--help"], { env: { PATH: "" } });
  assert.deepEqual([help.code, help.stderr], [0, ""]);
  assert.match(help.stdout, /^setup_storage: /);
  const created = await run(output, ["--base", `${temp.path}/store`, "--with-database"]);
  assert.deepEqual([created.code, created.stderr], [0, ""]);
});
