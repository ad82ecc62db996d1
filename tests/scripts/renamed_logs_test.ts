import assert from "node:assert/strict";
import { gzipSync } from "node:zlib";
import { run, runScript, TempFolder, testWith } from "../fixtures/mod.ts";

/** The lines of a run with an event, as a client writes them. */
function linesOf(id: string): string {
  const run = { run_id: id, agent_name: "a", start_time: "2025-12-10T00:00:00+00:00", status: "success" };
  const event = { run_id: id, event_type: "e", timestamp: "2025-12-10T00:00:00+00:00", payload_json: null, id: null };
  return `${JSON.stringify({ ...run, record_type: "run" })}\n${JSON.stringify({ ...event, record_type: "event" })}\n`;
}

/** A store whose logs were rotated, compressed and copied. Returns the path of the log that cannot be read. */
async function makeStore(base: string): Promise<string> {
  assert.equal((await runScript("setup_storage", base, ["--with-database"])).code, 0);
  const day = `${base}/raw/events_20251210.ndjson`;
  Deno.writeTextFileSync(`${day}.1`, linesOf("one"));
  Deno.writeFileSync(`${day}-20251211.gz`, gzipSync(linesOf("two")));
  Deno.writeTextFileSync(day, linesOf("three"));
  Deno.writeFileSync(`${day}.gz`, gzipSync(linesOf("three")));
  Deno.writeFileSync(`${day}.2.zst`, Uint8Array.fromHex("28b52ffd04"));
  return `${day}.2.zst`;
}

Deno.test("every script reads renamed logs, and names those that it cannot read", async () => {
  using temp = new TempFolder();
  const base = `${temp.path}/store`;
  const unread = await makeStore(base);
  const output = async (script: string, ...args: string[]) => {
    const { stdout, stderr } = await runScript(script, base, args);
    return stdout + stderr;
  };
  const check = await output("recover_database", "--check-only");
  assert.match(check, /warning: 3 runs only in the log/);
  assert.ok(check.includes(`warning: ${unread} cannot be read: its runs are not counted\n`), check);
  assert.equal((await runScript("backup_telemetry_db", base)).code, 0);
  const { code, stdout, stderr } = await runScript("recover_database", base, ["--force"]);
  assert.equal(code, 1, "a log was not read, so this is no success");
  const recovery = stdout + stderr;
  assert.match(recovery, /: 3 runs, /);
  assert.match(
    recovery,
    /renamed logs: events_20251210.ndjson-20251211.gz, events_20251210.ndjson.2.zst, .*ndjson.1\n/,
  );
  assert.ok(
    recovery.includes(`warning: ${unread} cannot be read (it is compressed with zstd: decompress it)`),
    recovery,
  );
  const report = await output("report_runs", "--since", "2025-12-01");
  assert.match(report, /^3 runs /m);
  assert.ok(report.includes(`not read  ${unread}\n`), report);
  const run = JSON.parse(await output("report_runs", "--run", "three", "--json"));
  assert.equal(run.events.length, 1);
  const restore = await output("backup_telemetry_db", "--restore", "latest", "--replay", "--yes");
  assert.ok(restore.includes(`warning: ${unread} cannot be read: its runs are left out\n`), restore);
  const events = await runScript("export_csv", base, ["--table", "events", "--output", "-"]);
  assert.equal(events.stdout.split("\n").length, 5);
  assert.equal(events.stderr, `warning: ${unread} cannot be read: its events are left out\n`);
});

testWith(
  ["links", "shell"],
  "links to nothing, themselves or a device, pipes and sockets stop no script, and are named",
  async () => {
    using temp = new TempFolder();
    const base = `${temp.path}/store`;
    assert.equal((await runScript("setup_storage", base, ["--with-database"])).code, 0);
    const odd = ["loop", "broken", "device", "pipe", "socket"].map((name) => `${base}/raw/${name}.ndjson`);
    const [loop, broken, device, pipe, socket] = odd as [string, string, string, string, string];
    Deno.symlinkSync(loop, loop);
    Deno.symlinkSync(`${base}/none`, broken);
    Deno.symlinkSync("/dev/zero", device);
    assert.equal((await run("sh", ["-c", `mkfifo "${pipe}"`])).code, 0);
    using _socket = Deno.listen({ transport: "unix", path: socket });
    Deno.writeTextFileSync(`${base}/raw/events_20251211.log`, linesOf("one"));
    const calls: [Parameters<typeof runScript>[0], string[], code: number][] = [
      ["recover_database", ["--force"], 1],
      ["recover_database", ["--check-only"], 0],
      ["export_csv", ["--table", "events", "--output", "-"], 0],
      ["report_runs", ["--since", "2025-12-01"], 0],
    ];
    for (const [script, args, expected] of calls) {
      const { code, stdout, stderr } = await runScript(script, base, args);
      assert.equal(code, expected, `${script}: ${stderr}`);
      for (const path of odd) assert.ok((stdout + stderr).includes(path), `${script}: ${stdout + stderr}`);
      assert.match(stdout, /one|1 run|healthy/, `${script}: ${stdout}`);
    }
  },
);
