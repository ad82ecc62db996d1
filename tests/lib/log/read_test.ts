import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import fc from "npm:fast-check@4.10.2";
import { splitLine } from "../../../lib/log/broken_line.ts";
import { TelemetryError } from "../../../lib/errors.ts";
import { MAX_LINE_BYTES, newRun } from "../../../lib/records.ts";
import { rounds, SAMPLE, slashes, TempFolder, testWith, threadTime } from "../../fixtures/mod.ts";
import {
  logFiles,
  readLogs,
  type ReadProgress,
  type Rejection,
  scan,
  type Scanned,
  unreadableLogs,
} from "../../../lib/log/read.ts";

/** What a test writes. */
type Content = string | Uint8Array;

const RUN = '{"run_id":"r1","agent_name":"a","start_time":"t","status":"success","record_type":"run"}';
const EVENT = '{"run_id": "r2", "event_type": "e", "timestamp": "t", "payload_json": null, "id": null, ' +
  '"record_type": "event"}';
const HALF = '{"run_id": "r3", "agent_name": "a", "input_summ';
const CUT_GZIP = "gzip is cut short or damaged";

async function inFolder(test: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await test(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

function bytesOf(...contents: Content[]): Uint8Array {
  return new Uint8Array(Buffer.concat(contents.map((content) => Buffer.from(content))));
}

async function scanned(files: string[], readBytes = 1024 * 1024): Promise<Scanned[]> {
  const all: Scanned[] = [];
  for await (const batch of readLogs(files, { readBytes })) {
    assert.ok(batch.length > 0);
    all.push(...batch);
  }
  return all;
}

/** Each record as its run id, each rejection as its reason and text. */
function brief(all: Scanned[]): (string | [reason: string, text: string])[] {
  return all.map((found) => "record" in found ? found.record.run_id : [found.rejected, found.text]);
}

/** What is found in one file of this name, also when only 3 bytes are read at a time. */
async function found(name: string, ...contents: Content[]): Promise<Scanned[]> {
  let all: Scanned[] = [];
  await inFolder(async (folder) => {
    const path = join(folder, name);
    await Deno.writeFile(path, bytesOf(...contents));
    all = (await scanned([path])).map((item) => ({ ...item, file: name }));
    const slowly = (await scanned([path], 3)).map((item) => ({ ...item, file: name }));
    assert.deepEqual(slowly, all);
  });
  return all;
}

function inLog(...contents: Content[]): Promise<Scanned[]> {
  return found("events_20251210.ndjson", ...contents);
}

function inGzip(...contents: Content[]): Promise<Scanned[]> {
  return found("events_20251210.ndjson.gz", ...contents);
}

async function expectLog(contents: Content[], expected: ReturnType<typeof brief>): Promise<void> {
  assert.deepEqual(brief(await inLog(...contents)), expected);
}

async function expectGzip(contents: Content[], expected: ReturnType<typeof brief>): Promise<void> {
  assert.deepEqual(brief(await inGzip(...contents)), expected);
}

Deno.test("logFiles lists days in order, gzip first, and skips folders and other names", () =>
  inFolder(async (folder) => {
    const names = ["events_20251211.ndjson", "events_20251210.ndjson", "events_20251210.ndjson.gz", "other.ndjson"];
    for (const name of [...names, "events_20251210.ndjson.partial", "notes.txt", "events.gz"]) {
      await Deno.writeTextFile(join(folder, name), "");
    }
    await Deno.mkdir(join(folder, "folder.ndjson"));
    assert.deepEqual(
      logFiles(folder),
      ["events_20251210.ndjson.gz", "events_20251210.ndjson", "events_20251211.ndjson", "other.ndjson"]
        .map((name) => join(folder, name)),
    );
  }));

Deno.test("logFiles returns nothing for a missing folder, and throws for a file in its place", () =>
  inFolder(async (folder) => {
    assert.deepEqual(logFiles(join(folder, "raw")), []);
    await Deno.writeTextFile(join(folder, "raw"), "");
    assert.throws(
      () => logFiles(join(folder, "raw")),
      (error) => error instanceof TelemetryError && error.code === "in_the_way",
    );
  }));

testWith(
  ["links"],
  "logFiles lists links to other files, and broken links, which the scan reports",
  () =>
    inFolder(async (folder) => {
      await Deno.writeTextFile(join(folder, "elsewhere"), RUN);
      await Deno.symlink("elsewhere", join(folder, "a.ndjson"));
      await Deno.symlink("nowhere", join(folder, "b.ndjson"));
      await Deno.writeTextFile(join(folder, "events_20251210.ndjson"), EVENT);
      await Deno.symlink(join(folder, "events_20251210.ndjson"), join(folder, "latest.ndjson"));
      const files = logFiles(folder);
      assert.deepEqual(files, ["a.ndjson", "b.ndjson", "events_20251210.ndjson"].map((name) => join(folder, name)));
      const all = await scanned(files);
      assert.deepEqual(all.map((item) => "record" in item ? "record" : item.rejected), [
        "record",
        "cannot be read",
        "record",
      ]);
    }),
);

Deno.test("scan yields records with their places, in the order of the files", () =>
  inFolder(async (folder) => {
    const first = join(folder, "b.ndjson"), second = join(folder, "a.ndjson");
    await Deno.writeTextFile(first, `${RUN}\n\n${EVENT}\n`);
    await Deno.writeTextFile(second, `[1]\n`);
    const all: Scanned[] = [];
    for await (const item of scan([first, second])) all.push(item);
    assert.deepEqual(all, [
      { record: JSON.parse(RUN), file: first, line: 1, offset: 0 },
      { record: JSON.parse(EVENT), file: first, line: 3, offset: RUN.length + 2 },
      { rejected: "not an object", file: second, line: 1, offset: 0, length: 3, text: "[1]" },
    ]);
  }));

Deno.test("leaving the loop of a scan closes the file", { sanitizeResources: true }, () =>
  inFolder(async (folder) => {
    for (const [name, content] of [["a.ndjson", bytesOf(RUN, "\n", RUN)], ["a.ndjson.gz", gzipSync(RUN)]] as const) {
      await Deno.writeFile(join(folder, name), content);
      for await (const item of scan([join(folder, name)])) {
        assert.ok("record" in item);
        break;
      }
      for await (const batch of readLogs([join(folder, name)], { readBytes: 8 })) {
        assert.ok(batch.length === 1);
        break;
      }
    }
  }));

Deno.test("a file that cannot be opened is one rejection, and the next file is read", () =>
  inFolder(async (folder) => {
    const good = join(folder, "good.ndjson"),
      missing = join(folder, "missing.ndjson"),
      sub = join(folder, "sub.ndjson");
    await Deno.writeTextFile(good, RUN);
    await Deno.mkdir(sub);
    const all = await scanned([missing, missing + ".gz", sub, good]);
    assert.deepEqual(
      all.map((item) => ["record" in item ? "record" : item.rejected, item.line, item.offset]),
      [["cannot be read", 0, 0], ["cannot be read", 0, 0], ["cannot be read", 0, 0], ["record", 1, 0]],
    );
    assert.match((all[0] as Rejection).text, /No such file|not found|cannot find/i);
    assert.equal((all[2] as Rejection).text, "not a file");
  }));

Deno.test("a file that Deno may not read is one rejection", { permissions: { read: false } }, async () => {
  const [only, ...rest] = await scanned(["/nowhere/a.ndjson"]);
  assert.ok(only && "rejected" in only && only.rejected === "cannot be read" && rest.length === 0);
  assert.match(only.text, /read access/);
});

Deno.test("records before an I/O error are kept, and the next file is read", () =>
  inFolder(async (folder) => {
    const bad = join(folder, "bad.ndjson"), good = join(folder, "good.ndjson");
    await Deno.writeTextFile(bad, `${RUN}\n${EVENT}\n${RUN}`);
    await Deno.writeTextFile(good, RUN);
    await withFailingReads((read) => read === 4, async () => {
      const all = await scanned([bad, good], 40);
      assert.deepEqual(brief(all), [
        "r1",
        ["not whole JSON", EVENT.slice(0, 3 * 40 - RUN.length - 1).trimEnd()],
        ["cannot be read", "Input/output error"],
        "r1",
      ]);
      assert.deepEqual(all.map(({ line }) => line), [1, 2, 2, 1]);
    });
  }));

Deno.test("a read is tried again while another process holds the lock of the log, as Windows needs", () =>
  inFolder(async (folder) => {
    const path = join(folder, "a.ndjson");
    await Deno.writeTextFile(path, `${RUN}\n${EVENT}\n`);
    await Deno.writeFile(path + ".gz", gzipSync(RUN));
    const locked = Object.assign(new Error("lock violation (os error 33)"), { code: "EBUSY" });
    await withFailingReads((read) => read < 30 || read === 31, async () => {
      assert.deepEqual(brief(await scanned([path, path + ".gz"], 100)), ["r1", "r2", "r1"]);
    }, locked);
    // The report reads the start of a log by the other method.
    const { readSync } = Deno.FsFile.prototype;
    let refused = 0;
    Deno.FsFile.prototype.readSync = function (bytes) {
      if (refused++ < 3) throw locked;
      return readSync.call(this, bytes);
    };
    try {
      assert.deepEqual(unreadableLogs([path]), []);
    } finally {
      Deno.FsFile.prototype.readSync = readSync;
    }
  }));

/** Lets reads fail, which no real file does on demand. */
async function withFailingReads(
  fails: (read: number) => boolean,
  test: () => Promise<void>,
  error = new Error("Input/output error"),
): Promise<void> {
  const { read } = Deno.FsFile.prototype;
  let reads = 0;
  Deno.FsFile.prototype.read = function (buffer) {
    return fails(++reads) ? Promise.reject(error) : read.call(this, buffer);
  };
  try {
    await test();
  } finally {
    Deno.FsFile.prototype.read = read;
  }
}

testWith(
  ["linux"],
  "a file whose first read fails is one rejection",
  async () => assert.deepEqual((await scanned(["/proc/self/mem"])).map(({ line }) => line), [0]),
);

Deno.test("a record that is glued to half a line is found", async () => {
  await expectLog([HALF, RUN, "\n", EVENT, "\n"], [["not whole JSON", HALF], "r1", "r2"]);
  const [half, run, event] = await inLog(EVENT, "\n", HALF, RUN, "\n", EVENT);
  assert.deepEqual([half?.line, run?.line, event?.line], [1, 2, 2]);
  const start = EVENT.length + 1;
  assert.deepEqual(
    [half?.offset, run?.offset, (run as Rejection).length, event?.offset],
    [0, start, HALF.length, start],
  );
});

Deno.test("a record is found after half a line that is cut anywhere", async () => {
  const nested = '{"run_id":"é\\"{","metrics":{"a":[1,{"b":null}],"c":"x{"},"payload_json":"{\\"record_type\\": ' +
    '\\"run\\", \\"run_id\\": \\"no\\", \\"agent_name\\": \\"{\\\\\\"\\", \\"start_time\\": \\"\\"}","n":-1.5e3,"t":true}';
  const bytes = bytesOf(nested);
  await inFolder(async (folder) => {
    const path = join(folder, "a.ndjson");
    for (let cut = 1; cut < bytes.length; cut++) {
      await Deno.writeFile(path, bytesOf(bytes.subarray(0, cut), RUN, "\n", bytes.subarray(0, cut), EVENT));
      const all = await scanned([path]);
      const reasons = all.map((item) => "record" in item ? item.record.run_id : item.length);
      const length = bytes[cut - 1] === 0x20 ? cut - 1 : cut; // blanks at its end are no part of it
      assert.deepEqual(reasons, [length, "r1", length, "r2"], `cut at ${cut}`);
    }
  });
});

Deno.test("half a line at the end of a file is rejected", () =>
  expectLog([RUN, "\n", HALF], ["r1", ["not whole JSON", HALF]]));

Deno.test("a record between two half lines is found", () =>
  expectLog([HALF, RUN, HALF], [["not whole JSON", HALF], "r1", ["not whole JSON", HALF]]));

Deno.test("two half lines before a record are one rejection", () =>
  expectLog([HALF, HALF, RUN, "\n"], [["not whole JSON", HALF + HALF], "r1"]));

Deno.test("several records on one line are found", () =>
  expectLog([RUN, EVENT, RUN, " ", EVENT, "\n"], ["r1", "r2", "r1", "r2"]));

Deno.test("garbage before, between and after records is rejected", () =>
  expectLog(
    ["x{", RUN, '}{"', EVENT, "]]\n"],
    [["not whole JSON", "x{"], "r1", ["not whole JSON", '}{"'], "r2", ["not whole JSON", "]]"]],
  ));

Deno.test("NULs, blank lines, CRLF and BOMs are ignored", async () => {
  const nuls = new Uint8Array(5000);
  await expectLog([nuls, RUN, nuls, EVENT, nuls, "\n", nuls, "\n \t\r\n\r\n\n", RUN, "\r\n", nuls], ["r1", "r2", "r1"]);
  await expectLog(["\ufeff", RUN, "\n\ufeff", EVENT, "\ufeff\n\ufeff\r\n", RUN], ["r1", "r2", "r1"]);
  await expectLog(["\ufeff\0 \ufeff", HALF, "\0\0\ufeff", RUN, "\0\r\n"], [["not whole JSON", HALF], "r1"]);
  await expectLog([""], []);
});

Deno.test("NaN and Infinity become null outside of strings", async () => {
  const event =
    '{"run_id":"NaN","event_type":"Infinity, -Infinity","timestamp":"\\"NaN","a":NaN,"b":[-Infinity,Infinity ' +
    '],"c":{"NaN":NaN},"record_type":"event"}';
  const clean = event.replaceAll(":NaN", ":null").replace("[-Infinity,Infinity ", "[null,null");
  const [half, first, second] = await inLog(HALF, event, "\n", event, "\n");
  assert.ok(half && "rejected" in half);
  for (const item of [first, second]) assert.deepEqual(item && "record" in item && item.record, JSON.parse(clean));
  await expectLog(['{"a":-NaN}\nNaN\n{"a":nan}\n'], [
    ["not whole JSON", '{"a":-NaN}'],
    ["not whole JSON", "NaN"],
    ["not whole JSON", '{"a":nan}'],
  ]);
});

Deno.test("bytes that are not UTF-8 are rejected, and records beside them are found", async () => {
  const invalid = new Uint8Array([0x7b, 0x22, 0xff, 0xc3]);
  const all = await inLog(RUN, "\n", invalid, "\n", invalid, EVENT, "é\n", RUN, "\n");
  assert.deepEqual(brief(all), [
    "r1",
    ["not UTF-8", '{"\ufffd\ufffd'],
    ["not UTF-8", '{"\ufffd\ufffd'],
    "r2",
    ["not whole JSON", "é"],
    "r1",
  ]);
  const inString = bytesOf('{"run_id":"', new Uint8Array([0xed, 0xa0, 0x80]), '",', RUN.slice(1));
  const [only, ...rest] = await inLog(inString);
  assert.ok(only && "rejected" in only && only.rejected === "not UTF-8" && rest.length === 0);
});

Deno.test("JSON that is not a record is rejected with its reason, and not searched for records", async () => {
  await expectLog([`[${RUN}]\n`, '"x"\n17\nnull\n{}\n', '{"record_type":"run","run_id":null}\n'], [
    ["not an object", `[${RUN}]`],
    ["not an object", '"x"'],
    ["not an object", "17"],
    ["not an object", "null"],
    ["unknown record_type", "{}"],
    ["run_id is missing", '{"record_type":"run","run_id":null}'],
  ]);
  const outer = `{"record_type": "odd", "inner": ${RUN}}`;
  await expectLog([outer, "\n", outer, RUN, outer, "\n"], [
    ["unknown record_type", outer],
    ["unknown record_type", outer],
    "r1",
    ["unknown record_type", outer],
  ]);
  await expectLog([HALF, outer, "x", RUN], [["not whole JSON", `${HALF}${outer}x`], "r1"]);
});

Deno.test("a record in a torn object is found only where that object breaks off after it", async () => {
  for (const outer of ['{"a": ', '{"a":[1, ', '{"a":{"b":[{"c":']) {
    await expectLog([outer, RUN, "\n"], [["not whole JSON", outer.trim()], "r1"]);
    await expectLog([outer, RUN, EVENT, "\n"], [["not whole JSON", outer.trim()], "r1", "r2"]);
  }
  for (const rest of [', "and": 1}, "agent_n', ', "and": 1', "}", ","]) {
    const outer = `{"run_id": "x", "custom_metadata": {"of": ${RUN}${rest}`;
    await expectLog([outer, EVENT], [["not whole JSON", outer], "r2"]);
  }
});

Deno.test("a record in escaped text is not found", async () => {
  const event = JSON.stringify({
    ...JSON.parse(EVENT),
    payload_json: JSON.stringify({ of: JSON.parse(RUN), text: RUN }),
  });
  await expectLog([event, "\n", "x", event, "\n"], ["r2", ["not whole JSON", "x"], "r2"]);
  for (let cut = 1; cut < event.length; cut++) {
    const all = await inLogOnce(event.slice(0, cut) + "\n" + event.slice(cut) + "\n");
    assert.deepEqual(all.filter((item) => "record" in item), [], `cut at ${cut}`);
  }
});

async function inLogOnce(content: string): Promise<Scanned[]> {
  let all: Scanned[] = [];
  await inFolder(async (folder) => {
    await Deno.writeTextFile(join(folder, "a.ndjson"), content);
    all = await scanned([join(folder, "a.ndjson")]);
  });
  return all;
}

Deno.test("keys may have any order and separators, and values are not normalized", async () => {
  const odd = '{ "record_type"\t: "run" ,\r "start_time":"t","__proto__":{"x":1},"metrics":{"n":1e400,"z":-0},' +
    '"custom_metadata":null,"run_id":"r","agent_name":"\\ud800\\u0000"} ';
  const all = await inLog(odd, "\n", "#", odd, "\n");
  for (const item of [all[0], all[2]]) assert.deepEqual(item && "record" in item && item.record, JSON.parse(odd));
});

Deno.test("gzip files may have several members or none", async () => {
  const first = gzipSync(`${RUN}\n${RUN.slice(0, 20)}`), second = gzipSync(`${RUN.slice(20)}\n${EVENT}`);
  await expectGzip([gzipSync(`${RUN}\n${EVENT}\n`)], ["r1", "r2"]);
  await expectGzip([first, second], ["r1", "r1", "r2"]);
  await expectGzip([gzipSync(""), gzipSync(RUN)], ["r1"]);
  await expectGzip([gzipSync("")], []);
  await expectGzip([""], []);
});

Deno.test("a gzip header may have every optional field", async () => {
  const plain = gzipSync(RUN);
  const fields = bytesOf(new Uint8Array([3, 0, 1, 2, 3]), "name\0", "comment\0", new Uint8Array(2));
  const head = plain.subarray(0, 10);
  head[3] = 0x1e;
  await expectGzip([head, fields, plain.subarray(10)], ["r1"]);
});

Deno.test("gzip that is cut anywhere yields what precedes the cut, then one rejection", async () => {
  const whole = gzipSync(`${RUN}\n${EVENT}\n${RUN}\n`);
  for (let cut = 1; cut < whole.length; cut++) {
    const all = await inGzip(whole.subarray(0, cut));
    const last = all.pop();
    assert.ok(last && "rejected" in last && last.rejected === CUT_GZIP, `cut at ${cut}`);
    assert.deepEqual(brief(all), ["r1", "r2", "r1"].slice(0, all.length));
    const text = `${RUN}\n${EVENT}\n${RUN}\n`.slice(last.offset, last.offset + last.length);
    assert.equal(last.text, text);
  }
  const [run, half] = await inGzip(gzipSync(`${RUN}\n${HALF}`).subarray(0, -8));
  assert.ok(run && "record" in run && half && "rejected" in half);
  assert.deepEqual([half.rejected, half.text, half.line, half.offset], [CUT_GZIP, HALF, 2, RUN.length + 1]);
});

Deno.test("zeros between gzip members are padding, and anything else ends the file as damage", async () => {
  const member = gzipSync(`${RUN}\n`), last = gzipSync(`${EVENT}\n`), zeros = new Uint8Array(40_000);
  const noMember = new Uint8Array([0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 7]); // a header, and then no deflate
  await expectGzip([member, zeros], ["r1"]);
  await expectGzip([zeros, member, zeros, last, zeros], ["r1", "r2"]);
  await expectGzip([member, "garbage"], ["r1", [CUT_GZIP, ""]]);
  await expectGzip([member, noMember, last], ["r1", [CUT_GZIP, ""]]);
  await expectGzip([member, zeros, last, "garbage"], ["r1", "r2", [CUT_GZIP, ""]]);
  await expectGzip([member.subarray(0, -1), last], ["r1", [CUT_GZIP, ""]]);
  await expectGzip([member, last.subarray(0, 15)], ["r1", [CUT_GZIP, ""]]);
  const wrong = bytesOf(member);
  wrong[wrong.length - 8]! ^= 1;
  await expectGzip([wrong, last], ["r1", [CUT_GZIP, ""]]);
});

Deno.test("each damaged byte in gzip is reported, and the member before it is read", async () => {
  const member = gzipSync(`${RUN}\n${HALF.repeat(3)}\n`), first = gzipSync(`${EVENT}\n`);
  await inFolder(async (folder) => {
    const path = join(folder, "a.ndjson.gz");
    // The bytes from 4 to 9 are a time and such: nobody looks at them.
    for (let at = 10; at < member.length; at++) {
      for (const flipped of [0x01, 0xff]) {
        const damaged = bytesOf(member);
        damaged[at]! ^= flipped;
        await Deno.writeFile(path, bytesOf(first, damaged));
        const all = await scanned([path]);
        assert.ok(all.some((item) => "rejected" in item && item.rejected === CUT_GZIP), `byte ${at}`);
        assert.equal(brief(all)[0], "r2", `byte ${at}`);
      }
    }
  });
});

Deno.test("a file that is not gzip is one rejection, or a log if it is one", async () => {
  await expectGzip([`#${RUN}\n`.repeat(1000)], [[CUT_GZIP, ""]]);
  await expectGzip([`${RUN}\n${EVENT}\n`], ["r1", "r2"]);
});

Deno.test("gzip that is far larger than one read is read completely", async () => {
  const line = (index: number) => `${JSON.stringify({ ...JSON.parse(RUN), run_id: `${index}`, host: "äöü€😀" })}\n`;
  const lines = Array.from({ length: 20_000 }, (_, index) => line(index));
  const ids = lines.map((_, index) => `${index}`);
  const members = [lines.slice(0, 9_999), lines.slice(9_999)].map((part) => gzipSync(part.join("")));
  await expectGzip(members, ids);
  const nuls = gzipSync(bytesOf(RUN, new Uint8Array(10_000_000), "\n", EVENT));
  assert.deepEqual(brief((await inGzip(nuls)).slice(0, 2)), ["r1", "r2"]);
});

Deno.test("records across the ends of reads are found, also in the middle of a character", async () => {
  const hosts = ["€", "😀", "a", "ü"].map((letter, index) => letter.repeat(1000 + index));
  const lines = Array.from({ length: 3000 }, (_, index) => {
    return JSON.stringify({ ...JSON.parse(RUN), run_id: `${index}`, host: hosts[index % 4] });
  });
  const all = await inLogOnce(lines.join("\n"));
  assert.deepEqual(all.map((item) => "record" in item && item.record), lines.map((line) => JSON.parse(line)));
  let offset = 0;
  for (const [index, item] of all.entries()) {
    assert.deepEqual([item.line, item.offset], [index + 1, offset]);
    offset += Buffer.byteLength(lines[index]!) + 1;
  }
});

/** Writes a file piece by piece, so that the test needs little memory. */
async function writePieces(path: string, ...pieces: [content: Content, times: number][]): Promise<void> {
  using file = await Deno.open(path, { write: true, create: true, truncate: true });
  for (const [content, times] of pieces) {
    const bytes = bytesOf(content);
    for (let time = 0; time < times; time++) assert.equal(file.writeSync(bytes), bytes.length);
  }
}

const MEGABYTE = 1024 * 1024;

Deno.test("the longest line is read, and one more byte is too long", () =>
  inFolder(async (folder) => {
    const path = join(folder, "a.ndjson");
    const head = `${RUN.slice(0, -1)},"host":"`;
    const fill = MAX_LINE_BYTES - head.length - 2;
    await writePieces(path, [head, 1], ["x".repeat(fill), 1], ['"}\n', 1], [head, 1], ["x".repeat(fill + 1), 1], [
      `"}\n${EVENT}\n`,
      1,
    ]);
    const all = await scanned([path]);
    assert.deepEqual(all.map((item) => "record" in item ? item.record.run_id : item.rejected), [
      "r1",
      "line is too long",
      "r2",
    ]);
    const tooLong = all[1] as Rejection;
    assert.deepEqual([tooLong.line, tooLong.offset, tooLong.length, tooLong.text.length], [
      2,
      MAX_LINE_BYTES + 1,
      MAX_LINE_BYTES + 1,
      64 * 1024,
    ]);
    assert.deepEqual([all[2]?.line, all[2]?.offset], [3, 2 * MAX_LINE_BYTES + 3]);
  }));

Deno.test("a line of 100 MB is rejected without 100 MB of memory", () =>
  inFolder(async (folder) => {
    const path = join(folder, "a.ndjson");
    await writePieces(path, ['{"run_id":"', 1], ["x".repeat(MEGABYTE), 100], [`"}\n${RUN}\n`, 1]);
    // In a process of its own: tests that run beside this one need memory too.
    const script = join(folder, "scan.ts");
    await Deno.writeTextFile(
      script,
      `
      import { scan } from ${JSON.stringify(new URL("../../../lib/log/read.ts", import.meta.url))};
      const before = Deno.memoryUsage().rss;
      const found = [];
      for await (const item of scan([${
        JSON.stringify(path)
      }])) found.push(item.rejected ?? item.record.run_id, item.length);
      console.log(JSON.stringify({ found, growth: Deno.memoryUsage().rss - before }));
    `,
    );
    const args = ["run", "--no-config", "--no-lock", "--no-check", "--quiet", "--allow-read", script];
    const { stdout, stderr } = await new Deno.Command(Deno.execPath(), { args }).output();
    assert.equal(new TextDecoder().decode(stderr), "");
    const { found, growth } = JSON.parse(new TextDecoder().decode(stdout));
    assert.deepEqual(found, ["line is too long", 100 * MEGABYTE + 13, "r1", null]);
    assert.ok(growth < 60 * MEGABYTE, `grew by ${growth}`);
  }));

Deno.test("records among millions of NULs are found", () =>
  inFolder(async (folder) => {
    const path = join(folder, "a.ndjson");
    const nuls: [Content, number] = [new Uint8Array(MEGABYTE), 7];
    await writePieces(path, nuls, [RUN, 1], nuls, [HALF, 1], nuls, [EVENT, 1], nuls);
    const all = await scanned([path]);
    assert.deepEqual(brief(all), ["r1", ["not whole JSON", HALF], "r2"]);
    assert.deepEqual([all[2]?.line, all[2]?.offset, all[1]?.offset], [1, 0, 14 * MEGABYTE + RUN.length]);
  }));

Deno.test("a record that is glued to a broken line of 8 MB is found", () =>
  inFolder(async (folder) => {
    const path = join(folder, "a.ndjson");
    const piece = '{"a":';
    await Deno.writeTextFile(path, `${piece.repeat(8 * MEGABYTE / piece.length)}${RUN}\n`);
    const all = await scanned([path]);
    assert.deepEqual(all.map((item) => "record" in item || item.rejected), ["not whole JSON", true]);
  }));

for (
  const piece of [
    '{"',
    '{"a":',
    '{"a":"{',
    '{"a":[',
    '"{',
    '{"a":"b"}{',
    '{"a":NaN,',
    '{"',
    "{",
    '{"a":1},',
    '{"a"x{"b":{}}',
  ]
) {
  Deno.test(`splitting a broken line takes linear time: ${piece}…`, () => {
    const time = (pieces: number) => {
      const bytes = bytesOf(piece.repeat(pieces), RUN);
      const start = threadTime();
      const parts = splitLine(bytes);
      assert.deepEqual(parts.at(-1)!.judged, JSON.parse(RUN));
      return threadTime() - start;
    };
    time(1000);
    // In quadratic time, the longer line would take 1024 times as long, in linear time 32 times. Best of two: what shares
    // the caches slows both.
    const short = Math.min(time(10_000), time(10_000));
    const long = Math.min(time(320_000), time(320_000));
    assert.ok(long < 32 * Math.max(short, 4) * 5, `${long} ms, ${short} ms for a line of 1/32 of its length`);
  });
}

Deno.test("the search for records in nested objects that do not parse is bounded", () => {
  const nested = (depth: number) => bytesOf("{x".repeat(depth), "}".repeat(depth), RUN);
  const start = performance.now();
  const [only, ...rest] = splitLine(nested(1_000_000));
  assert.deepEqual([only!.judged, rest], ["not whole JSON", []]);
  assert.ok(performance.now() - start < 10_000);
  assert.deepEqual(splitLine(nested(500)).at(-1)!.judged, JSON.parse(RUN));
});

Deno.test("an object of a million levels is parsed", () => {
  const deep = `${'{"a":'.repeat(1_000_000)}1${"}".repeat(1_000_000)}`;
  assert.deepEqual(splitLine(bytesOf(deep, RUN)).map(({ judged }) => judged), [
    "unknown record_type",
    JSON.parse(RUN),
  ]);
});

Deno.test("the records and rejections of the field store are found", async () => {
  const all: Scanned[] = [];
  for await (const item of scan(logFiles(`${SAMPLE}/base/raw`))) all.push(item);
  const records = all.flatMap((item) => "record" in item ? [item.record] : []);
  const facts = JSON.parse(Deno.readTextFileSync(`${SAMPLE}/facts.json`));
  const expected = Deno.readTextFileSync(`${SAMPLE}/expected_runs.ndjson`).trim().split("\n");
  assert.equal(all.length - records.length, 8);
  assert.equal(facts.rejected_lines, 8);
  assert.equal(records.filter((record) => record.record_type === "event").length, facts.events);
  assert.deepEqual(
    [...new Set(records.filter((record) => record.record_type === "run").map((record) => record.run_id))].sort(),
    expected.map((line) => JSON.parse(line).run_id).sort(),
  );
});

/** Any string; many contain the syntax of JSON, records and surrogates. */
const anyText: fc.Arbitrary<string> = fc.oneof(
  fc.string({ unit: "binary" }),
  fc.array(fc.integer({ min: 0, max: 0xffff })).map((units) => String.fromCharCode(...units)),
  fc.array(fc.constantFrom('"', "\\", "{", "}", "[", "]", ":", ",", '{"', "\0", "\n", "NaN", "\ud800", "é", RUN)).map(
    (pieces) => pieces.join(""),
  ),
);

const anyValue: fc.Arbitrary<unknown> = fc.letrec((tie) => ({
  value: fc.oneof(
    { depthSize: "small" },
    anyText,
    fc.constantFrom(null, true, false, NaN, Infinity, -Infinity, JSON.parse(RUN)),
    fc.double(),
    fc.integer(),
    fc.array(tie("value"), { maxLength: 3 }),
    fc.array(fc.tuple(anyText, tie("value")), { maxLength: 3 }).map(Object.fromEntries),
  ),
})).value;

const anyRecord: fc.Arbitrary<Record<string, unknown>> = fc.tuple(
  fc.oneof(
    fc.record({ record_type: fc.constant("run"), run_id: anyText, agent_name: anyText, start_time: anyText }),
    fc.record({ record_type: fc.constant("event"), run_id: anyText, event_type: anyText, timestamp: anyText }),
  ),
  fc.record({
    status: fc.constantFrom(null, "running", "success", "failed", "partial"),
    payload_json: anyValue.map((value) => JSON.stringify(value) ?? null),
    metrics: anyValue,
    custom_metadata: anyValue,
    input_summary: anyText,
  }, { requiredKeys: [] }),
  fc.array(fc.nat(), { minLength: 9, maxLength: 9 }),
).map(([required, optional, order]) => {
  const places = Object.entries({ ...required, ...optional }).map((entry, index) => ({ entry, at: order[index]! }));
  return Object.fromEntries(places.sort((a, b) => a.at - b.at).map(({ entry }) => entry));
});

/** JSON as Python's `json.dumps` writes it. */
function pythonJson(value: unknown): string {
  if (typeof value === "number") return Number.isNaN(value) ? "NaN" : String(value);
  if (typeof value === "string") {
    return JSON.stringify(value).replace(/[^\x20-\x7e]/g, (letter) => {
      return `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`;
    });
  }
  if (Array.isArray(value)) return `[${value.map(pythonJson).join(", ")}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  return `{${Object.entries(value).map(([key, item]) => `${pythonJson(key)}: ${pythonJson(item)}`).join(", ")}}`;
}

const anyWriter = fc.constantFrom<(value: unknown) => string>(JSON.stringify, pythonJson);

/** Something in a log: its bytes, and the record if it is one. */
interface Piece {
  bytes: Uint8Array;
  record?: unknown;
  harmless: boolean;
}

const anyRecordPiece: fc.Arbitrary<Piece> = fc.tuple(anyRecord, anyWriter).map(([record, write]) => ({
  bytes: bytesOf(write(record)),
  record: JSON.parse(JSON.stringify(record)),
  harmless: true,
}));

/** The start of a record, cut at any byte but not after a `}`, where a complete object inside would look glued. */
const anyHalf: fc.Arbitrary<Piece> = fc.tuple(anyRecord, anyWriter, fc.nat()).map(([record, write, place]) => {
  const bytes = bytesOf(write(record));
  let cut = 1 + place % (bytes.length - 1);
  while (" }".includes(String.fromCharCode(bytes[cut - 1]!))) cut--;
  return { bytes: bytes.subarray(0, cut), harmless: false };
});

const harmless = ["\0", "\0".repeat(70), "\n", "\r\n", "\n \t\n", "\ufeff", "\n\ufeff"];

/** Starts with a control character, which JSON has nowhere: otherwise half a line and `"}` could be a whole record. */
const anyGarbage = fc.oneof(
  fc.uint8Array({ maxLength: 30 }),
  fc.array(fc.constantFrom('"', "\\", '{"', "{", '{"a":', "[", "]", "}", ":", ",", "é", "\n", "\0")).map((pieces) =>
    bytesOf(...pieces)
  ),
).chain((bytes) => fc.constantFrom(35, 0xff, 0xc3).map((first) => bytesOf(new Uint8Array([first, 1]), bytes)));

const anyDamage: fc.Arbitrary<Piece> = fc.oneof(
  fc.constantFrom(...harmless).map((text) => ({ bytes: bytesOf(text), harmless: true })),
  anyGarbage.map((bytes) => ({ bytes, harmless: false })),
  anyHalf,
);

const anyLog: fc.Arbitrary<Piece[]> = fc.array(
  fc.oneof(
    { weight: 3, arbitrary: fc.tuple(anyRecordPiece, fc.constantFrom("\n", "\n", "\r\n", "")) },
    { weight: 2, arbitrary: fc.tuple(anyDamage, fc.constantFrom("", "", "\n")) },
  ).map(([piece, end]) => ({ ...piece, bytes: bytesOf(piece.bytes, end) })),
  { maxLength: 12 },
);

/** Checks each line, offset and length against the uncompressed bytes. */
function checkPlaces(all: Scanned[], bytes: Uint8Array): void {
  const before = (offset: number) => bytes.subarray(0, offset).filter((byte) => byte === 10).length;
  let rejectedEnd = 0;
  for (const item of all) {
    assert.equal(item.line, before(item.offset) + 1);
    if ("record" in item) {
      assert.ok(item.offset === 0 || bytes[item.offset - 1] === 10);
    } else {
      assert.ok(item.length > 0 && item.offset >= rejectedEnd);
      rejectedEnd = item.offset + item.length;
      const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes.subarray(item.offset, rejectedEnd));
      assert.equal(item.text, text);
    }
  }
}

Deno.test("property: exactly the complete records are found, in order", () =>
  inFolder(async (folder) => {
    const chunkSizes = fc.constantFrom(undefined, 17, 64, 100, 1000);
    await fc.assert(
      fc.asyncProperty(anyLog, chunkSizes, fc.boolean(), fc.nat(), async (pieces, chunkBytes, gzipped, place) => {
        const bytes = bytesOf(...pieces.map((piece) => piece.bytes));
        const path = join(folder, gzipped ? "a.ndjson.gz" : "a.ndjson");
        const cut = place % (bytes.length + 1);
        const members = [bytes.subarray(0, cut), bytes.subarray(cut)].map((part) => gzipSync(part));
        await Deno.writeFile(path, gzipped ? bytesOf(...members) : bytes);
        const all = await scanned([path], chunkBytes);
        const records = all.flatMap((item) => "record" in item ? [item.record] : []);
        assert.deepEqual(records, pieces.flatMap((piece) => "record" in piece ? [piece.record] : []));
        if (pieces.every((piece) => piece.harmless)) assert.equal(all.length, records.length);
        checkPlaces(all, bytes);
      }),
      { numRuns: rounds(50, 300) },
    );
  }));

// ------------------------------------------------------------------------------------------------ what may be left out

/** A rejected line that ends as this kind of record does. It may be left out by a scan for the other kind. */
function endsAs(type: string, item: Scanned): boolean {
  return "rejected" in item && new RegExp(`"record_type": ?"${type}"\\}$`).test(item.text);
}
const runsOf = (all: Scanned[]) =>
  all.filter((item) => "record" in item ? item.record.record_type === "run" : !endsAs("event", item));
const eventsOf = (all: Scanned[]) =>
  all.filter((item) => "record" in item ? item.record.record_type === "event" : !endsAs("run", item));

/** What a scan for runs finds, how many events it parsed, and its progress. */
async function runsScanned(files: string[]): Promise<{ all: Scanned[]; events: number; progress: ReadProgress }> {
  const progress = { files: 0, lines: 0, bytes: 0 };
  const all: Scanned[] = [];
  for await (const batch of readLogs(files, { only: "run", progress })) all.push(...batch);
  const events = all.filter((item) => "record" in item && item.record.record_type === "event").length;
  return { all: runsOf(all), events, progress };
}

/**
 * Asserts that the scans for runs and for events find what a scan for both finds, and that progress counts lines and bytes.
 * Returns how many of the other kind they did not leave out.
 */
async function assertAgree(path: string, bytes: Uint8Array): Promise<{ events: number; runs: number }> {
  await Deno.writeFile(path, bytes);
  const found = await scanned([path]);
  const { all, events, progress } = await runsScanned([path]);
  assert.deepEqual(all, runsOf(found));
  const besideRuns: Scanned[] = [];
  for await (const batch of readLogs([path], { only: "event" })) besideRuns.push(...batch);
  assert.deepEqual(eventsOf(besideRuns), eventsOf(found));
  const newlines = bytes.filter((byte) => byte === 10).length;
  const lines = newlines + (bytes.length > 0 && bytes.at(-1) !== 10 ? 1 : 0);
  assert.deepEqual(progress, { files: 1, lines, bytes: bytes.length });
  const runs = besideRuns.filter((item) => "record" in item && item.record.record_type === "run").length;
  return { events, runs };
}

/** Lines as the two clients write them, and lines that look similar. */
const START = '{"run_id": "r1", "schema_version": 3, "agent_name": "a", "start_time": "t", "status": "running", ' +
  '"duration_ms": null, "input_summary": "x", "api_posted": 0, "record_type": "run"}';
const LOOKALIKES: Record<string, string> = {
  "a start": START,
  "our own start": START.replaceAll(": ", ":").replaceAll(", ", ","),
  "an end": START.replace("running", "success"),
  "an event": EVENT,
  "a run whose last field says event": START.replace('"record_type": "run"}', '"record_type": "run", "x": "event"}'),
  "a run glued before an event, with a blank": START.replace("{", "{ ") + EVENT.replace("{", "{ "),
  "an event that holds a run": EVENT.replace("null, ", `${JSON.stringify(START)}, `),
  "half an event and a start": EVENT.slice(0, 40) + START,
  "an event and a start": EVENT + START,
  "a start and an event": START + EVENT,
  "half a start and an event": START.slice(0, 60) + EVENT,
  "half a start and a start": START.slice(0, 60) + START,
  "a start twice": START + START,
  "an end and the rest of an event": START.replace("running", "success") + EVENT.slice(30),
  "an end, NULs and the rest of an event": START.replace("running", "success") + "\0".repeat(40) + EVENT.slice(30),
  "an event, NULs and the rest of a start": EVENT + "\0".repeat(40) + START.slice(30),
  "an end and the rest of a start": START.replace("running", "success") + START.slice(30),
  "escapes": START.replace('"x"', String.raw`"a\"b\\c\u00e9\ud800 {\"status\": \"success\"}"`),
  "an escaped name": START.replace('"status"', String.raw`"stat\u0075s"`),
  "an escaped id": START.replace('"r1"', String.raw`"r\u0031"`),
  "non-ASCII": START.replace('"x"', '"é日本語🚀\u2028\ufffd"'),
  "a bad escape": START.replace('"x"', String.raw`"\x"`),
  "a control character": START.replace('"x"', '"a\tb"'),
  "a nested object": START.replace('"x"', '{"status": "success"}'),
  "a nested array": START.replace('"x"', "[1, 2]"),
  "a bare NaN": START.replace("null", "NaN"),
  "numbers": START.replace("null", "-0.5e+10"),
  "a number with a leading zero": START.replace("null", "01"),
  "an empty id": START.replace('"r1"', '""'),
  "an id that is a number": START.replace('"r1"', "1"),
  "no agent": START.replace('"agent_name": "a", ', ""),
  "a null for an agent": START.replace('"agent_name": "a"', '"agent_name": null'),
  "no start": START.replace('"t"', "null"),
  "a bogus state": START.replace("running", "bogus"),
  "a null for a state": START.replace('"running"', "null"),
  "no state": START.replace('"status": "running", ', ""),
  "another type": START.replace('"run"}', '"note"}'),
  "a type that comes first": '{"record_type": "run", ' + START.slice(1).replace(', "record_type": "run"', ""),
  "the id not first": START.replace('"run_id": "r1", ', "").replace("{", '{"x": 1, "run_id": "r1", '),
  "blanks around": ` ${START} `,
  "more blanks inside": START.replaceAll(": ", ":  "),
  "a comma too many": START.replace("}", ",}"),
  "a BOM before": `\ufeff${START}`,
  "NULs before": `\0\0${START}`,
  "NULs behind": `${START}\0`,
};

Deno.test("reading one type agrees with scan on lines of every kind", () =>
  inFolder(async (folder) => {
    const path = join(folder, "a.ndjson");
    for (const line of Object.values(LOOKALIKES)) {
      await assertAgree(path, bytesOf(line, "\n"));
      await assertAgree(path, bytesOf(START, "\r\n", line, "\r\n", EVENT, "\r\n\r\n", line));
      await assertAgree(path, bytesOf("\n", line, "\n", new Uint8Array([0xff]), "\n", line, "\r"));
    }
    // Checks that lines are left out at all.
    const lookedAt = (line: string) => assertAgree(path, bytesOf(line, "\n"));
    const whole = newRun({
      run_id: "r",
      agent_name: "a",
      start_time: "t",
      input_summary: "\n\u2028\\\ud800",
      duration_ms: -9,
    });
    const theirs = JSON.stringify(whole, null, 1).replaceAll(/,\n /g, ", ").replaceAll("\n ", "").slice(0, -2);
    const theirStart = `${theirs}, "record_type": "run"}`;
    for (const plain of [START, LOOKALIKES["escapes"]!, theirStart, JSON.stringify({ ...whole, record_type: "run" })]) {
      assert.deepEqual(await lookedAt(plain), { events: 0, runs: 0 }, plain);
    }
    assert.deepEqual(await lookedAt(EVENT), { events: 0, runs: 0 });
    assert.deepEqual(await lookedAt(LOOKALIKES["an end"]!), { events: 0, runs: 0 });
    const others = [
      START.replace('"api_posted"', '"x_posted": 0, "api_posted"').replace('"api_posted": 0', '"api_posted": 1'),
      START.replace('"status"', '"x_status": "running", "status"').replace(
        '"status": "running", "dur',
        '"status": "failed", "dur',
      ),
    ];
    for (const other of others) assert.deepEqual(await lookedAt(other), { events: 0, runs: 0 }, other);
    for (const marked of ["1", "true", "1.0", '"1"']) {
      const posted = START.replace('"api_posted": 0', `"api_posted": ${marked}`);
      assert.deepEqual(await lookedAt(posted), { events: 0, runs: 0 }, posted);
    }
    await assertAgree(path, bytesOf());
    await assertAgree(path, bytesOf("\n\n"));
    const long = START.replace('"x"', JSON.stringify("é\n".repeat(20_000)));
    await assertAgree(path, bytesOf(long, "\n", START, "\n"));
    const many = `${START}\n${EVENT}\n${LOOKALIKES["non-ASCII"]}\n`.repeat(6000);
    await assertAgree(path, bytesOf(many, START));
  }));

Deno.test({
  name: "reading one type agrees with scan on a line that has a field twice",
  fn: () =>
    inFolder(async (folder) => {
      const path = join(folder, "a.ndjson");
      for (
        const field of [
          '"run_id": "r2"',
          '"input_summary": "y"',
          '"status": "success"',
          '"status": "bogus"',
          '"agent_name": null',
        ]
      ) {
        await assertAgree(path, bytesOf(START.replace('"x"', `"x", ${field}`), "\n"));
      }
    }),
});

Deno.test("progress counts several files together, and the content of gzip", () =>
  inFolder(async (folder) => {
    const [plain, gzipped] = [join(folder, "a.ndjson"), join(folder, "b.ndjson.gz")];
    await Deno.writeTextFile(plain, `${START}\n${HALF}`);
    await Deno.writeFile(gzipped, gzipSync(`${START}\n${EVENT}\n`));
    const { all, progress } = await runsScanned([plain, join(folder, "none.ndjson"), gzipped]);
    assert.deepEqual(brief(all).map((item) => typeof item === "string" ? item : item[0]), [
      "r1",
      "not whole JSON",
      "cannot be read",
      "r1",
    ]);
    const bytes = START.length * 2 + HALF.length + EVENT.length + 3;
    assert.deepEqual(progress, { files: 3, lines: 4, bytes });
  }));

/** A start as the clients write it, with whatever its texts may be; now and then something nested or bare is in it. */
const anyStart: fc.Arbitrary<Piece> = fc.tuple(
  fc.record({ run_id: fc.oneof(fc.string(), anyText), agent_name: anyText, start_time: anyText }),
  fc.record({
    duration_ms: fc.oneof(fc.double({ noNaN: true, noDefaultInfinity: true }), fc.maxSafeInteger()),
    product: anyText,
    host: fc.constantFrom(null, "h", true, 1),
    metrics: fc.oneof({ weight: 5, arbitrary: anyText }, { weight: 1, arbitrary: anyValue }),
  }, { requiredKeys: [] }),
  anyWriter,
).map(([required, optional, write]) => {
  const record = { ...required, status: "running", ...optional, record_type: "run" };
  return { bytes: bytesOf(write(record)), record: JSON.parse(JSON.stringify(record)), harmless: true };
});

const anyPlainEvent: fc.Arbitrary<Piece> = fc.tuple(anyText, anyText, fc.option(anyText), anyWriter).map(
  ([run_id, event_type, payload_json, write]) => {
    const record = { run_id, event_type, timestamp: "t", payload_json, id: null, record_type: "event" };
    return { bytes: bytesOf(write(record)), record, harmless: true };
  },
);

Deno.test("property: reading one type agrees with scan on glued, cut and mixed lines", () =>
  inFolder(async (folder) => {
    const path = join(folder, "a.ndjson");
    const line = fc.tuple(
      fc.oneof({ weight: 2, arbitrary: anyStart }, anyPlainEvent, anyRecordPiece),
      fc.constantFrom("\n", "\n", "\n", "\r\n", ""),
    );
    const damage = fc.tuple(anyDamage, fc.constantFrom("", "", "\n"));
    const log = fc.array(fc.oneof({ weight: 3, arbitrary: line }, { weight: 1, arbitrary: damage }), { maxLength: 10 });
    await fc.assert(
      fc.asyncProperty(log, fc.nat(), fc.nat(2), async (pieces, place, chance) => {
        const bytes = bytesOf(...pieces.flatMap(([piece, end]) => [piece.bytes, end]));
        const at = place % (bytes.length + 1);
        // A power cut takes some bytes from the middle.
        await assertAgree(
          path,
          chance === 0 ? bytesOf(bytes.subarray(0, at), bytes.subarray(at + 20)) : bytes,
        );
      }),
      { numRuns: rounds(50, 300) },
    );
  }));

Deno.test("logs that were rotated, renamed or copied are found, oldest first, the live one last", () => {
  using temp = new TempFolder();
  const day = "events_20251210.ndjson";
  const names = [
    "events_20251210.ndjsonl",
    "events_20251210.jsonl",
    "events_20251210.log",
    "events_20251210.gz",
    "events_20251210",
    `${day}-2025-12-11`,
    `${day}-20251211.gz`,
    `${day}-20251211-1765411200.gz`,
    `${day}-20251212`,
    "events_20251210-20251213.ndjson",
    `${day}.10.gz`,
    `${day}.2`,
    `${day}.1.zst`,
    "events_20251210.1.ndjson",
    `${day}.1`,
    "events_20251210 - Copy.ndjson",
    `${day}.bak`,
    `${day}.bz2`,
    `${day}.GZ`,
    `${day}~`,
    day,
    "events_20251211.NDJSON",
  ];
  for (
    const name of [...names, `${day}.partial`, `${day}.gz.partial`, "a.ndjsonl", "a.json", "events_202512101"]
      .toSorted()
  ) {
    Deno.writeTextFileSync(`${temp.path}/${name}`, "");
  }
  assert.deepEqual(logFiles(temp.path).map(slashes), names.map((name) => `${temp.path}/${name}`));
});

Deno.test("the content of a file decides whether it is gzip; other compression is named", async () => {
  await expectLog([gzipSync(`${RUN}\n`)], ["r1"]);
  const compressed = { zstd: "28b52ffd00", xz: "fd377a585a", bzip2: "425a6839", zip: "504b030414", "7z": "377abcaf27" };
  for (const [format, start] of Object.entries(compressed)) {
    await inFolder(async (folder) => {
      for (const name of ["events_20251210.ndjson.1", "events_20251211.ndjson.gz"]) {
        await Deno.writeFile(join(folder, name), bytesOf(Uint8Array.fromHex(start), RUN));
        assert.deepEqual(brief(await scanned([join(folder, name)])), [
          ["cannot be read", `it is compressed with ${format}: decompress it`],
        ]);
      }
    });
  }
});

Deno.test("an event that is in several files of one log comes once, and as often as it is in one file", () =>
  inFolder(async (folder) => {
    const event = (id: string) => `${EVENT.replace('"r2"', `"${id}"`)}\n`;
    const write = (name: string, content: Content) => Deno.writeFile(join(folder, name), bytesOf(content));
    const ids = async () =>
      (await scanned(logFiles(folder))).map((item) => "record" in item ? item.record.run_id : item.rejected);
    const log = [event("a"), event("b"), event("b"), event("c")].join("");
    await write("events_20251210.ndjson", log);
    const once = ["a", "b", "b", "c"];
    for (
      const [name, copy, more] of [
        ["events_20251210.ndjson.gz", gzipSync(log), []],
        ["events_20251210.ndjson.gz", gzipSync(event("a") + event("b")), []],
        ["events_20251210.ndjson.gz", gzipSync(log).subarray(0, -30), [CUT_GZIP]],
        ["events_20251210 (1).ndjson", log.replaceAll("\n", "\r\n"), []],
        ["events_20251210.ndjson.bak", `\ufeff${log}${event("d")}`, ["d"]],
        ["events_20251210.ndjson.1", event("a").repeat(2) + event("e"), ["a", "e"]],
        ["events_20251211.ndjson", log, once],
      ] as [string, Content, string[]][]
    ) {
      await write(name, copy);
      assert.deepEqual((await ids()).toSorted(), [...once, ...more].toSorted(), name);
      await Deno.remove(join(folder, name));
    }
    await write("events_20251210.ndjson.gz", gzipSync(log));
    await write("events_20251210.ndjson.1", log);
    assert.deepEqual(await ids(), once);
    // A run may come more than once: its states do not add up.
    await write("events_20251210.ndjson", `${RUN}\n`);
    await write("events_20251210.ndjson.1", `${RUN}\n`);
    assert.equal((await ids()).filter((id) => id === "r1").length, 2);
  }));
