import assert from "node:assert/strict";
import { layoutOf } from "../../../lib/layout.ts";
import { oneLine } from "../../../lib/format.ts";
import { displayWidth, fit, formatAge, formatDuration, pad } from "../../../lib/report/format.ts";
import { listRuns, summarizeRuns } from "../../../lib/report/summary.ts";
import { runLines, summaryLines, summaryMarkdown } from "../../../lib/report/text.ts";
import { TempFolder } from "../../fixtures/mod.ts";
import { storeWith, type TestRun } from "../../fixtures/report.ts";

const NOW = new Date("2025-12-14T12:00:00Z");
const ago = (hours: number) => new Date(NOW.getTime() - hours * 3_600_000).toISOString();

const STORES: Record<string, TestRun[]> = {
  "an empty store": [],
  "one run": [{ start: ago(1), duration: 1234 }],
  "only failures": Array.from(
    { length: 30 },
    (_, i) => ({ start: ago(i), status: "failed", error: "no\nanswer ".repeat(50) }),
  ),
  "only running runs": Array.from(
    { length: 30 },
    (_, i) => ({ start: ago(i * 3), status: "running", agent: `agent-${i % 4}` }),
  ),
  "500 agents": Array.from(
    { length: 1500 },
    (_, i) => ({ start: ago(i / 20), agent: `agent-${i % 500}`, duration: i * i }),
  ),
  "names of 200 characters": Array.from({ length: 40 }, (_, i) => ({
    start: ago(i),
    agent: `${"n".repeat(199)}${i % 3}`,
    job: "日本語🚀👩‍👩‍👧".repeat(20),
    status: i % 2 ? "failed" : "running",
    error: "e\u0301".repeat(500),
  })),
};

for (const [name, runs] of Object.entries(STORES)) {
  Deno.test(`the report on ${name} fits terminals of 60, 80 and 200 columns`, async () => {
    using temp = new TempFolder();
    const layout = layoutOf(storeWith(temp.path, runs));
    const summary = await summarizeRuns(layout, { now: NOW });
    for (const width of [60, 80, 200]) {
      for (const height of [24, 30, 60]) {
        const lines = summaryLines(summary, { width, height, colour: false });
        for (const line of lines) assert.ok(displayWidth(line) <= width, `${displayWidth(line)} columns: ${line}`);
        assert.ok(lines.length < height, `${lines.length} lines of ${height}`);
      }
    }
    const status = runs[0]?.status === "running" ? "running" as const : "failed" as const;
    const { runs: listed } = await listRuns(layout, { now: NOW, status });
    const lines = runLines(listed, { width: 80, height: 24, colour: false });
    for (const [i, { run_id }] of listed.entries()) {
      assert.ok(lines[i]!.includes(run_id) && displayWidth(lines[i]!) <= 80, lines[i]);
    }
  });
}

Deno.test("the report uses the whole screen, and hides no row for the line that names it", async () => {
  using temp = new TempFolder();
  const runs = ["success", "failed", "partial", "running", "lost"].flatMap((status, i) =>
    Array.from(
      { length: 2000 },
      (_, n): TestRun => ({ start: ago(n / 24), status, agent: `agent-${(i * 2000 + n) % 3}` }),
    )
  );
  const summary = await summarizeRuns(layoutOf(storeWith(temp.path, runs)), { now: NOW });
  const linesOf = (width: number, height: number) => summaryLines(summary, { width, height, colour: false });
  assert.ok(linesOf(80, 40).length >= 36, `${linesOf(80, 40).length} lines`);
  // 24 lines have room for all three agents when blank lines are left out.
  assert.match(linesOf(80, 24).join("\n"), /(\nagent-\d .*){3}\nNewest failures/);
  // The counts are on two lines of a narrow terminal, and the time of the last run has the room of wider columns.
  const narrow = linesOf(60, 30);
  assert.ok(narrow.every((line) => displayWidth(line) <= 60));
  assert.ok(
    narrow.includes("2,000 running  2,000 unknown") && narrow.some((line) => /RATE.*LAST RUN/.test(line)),
    narrow.join("\n"),
  );
});

Deno.test("on a terminal, an id that is wider than it is cut in its middle", async () => {
  using temp = new TempFolder();
  const id = `20251210T000000Z-${"a".repeat(100)}-0123abcd`;
  const layout = layoutOf(storeWith(temp.path, [{ id, start: ago(1), status: "failed", error: "no" }]));
  const { runs } = await listRuns(layout, { now: NOW, status: "failed" });
  const [line] = runLines(runs, { width: 80, height: 24, colour: false });
  assert.match(line!, /^2025-12-14 \S+ {2}20251210T000000Z-a+…a+-0123abcd$/);
  assert.equal(displayWidth(line!), 80);
  assert.ok(runLines(runs, { width: Infinity, height: 50, colour: false })[0]!.includes(id));
});

Deno.test("colours change no text, and are there only when asked for", async () => {
  using temp = new TempFolder();
  const summary = await summarizeRuns(layoutOf(storeWith(temp.path, STORES["only failures"]!)), { now: NOW });
  const [plain, coloured] = [false, true].map((colour) => summaryLines(summary, { width: 80, height: 40, colour }));
  assert.ok(coloured!.some((line) => line.includes("\x1b[31m")));
  assert.deepEqual(
    // deno-lint-ignore no-control-regex
    coloured!.map((line) => line.replace(/\x1b\[\d+m/g, "").trimEnd()),
    plain!.map((line) => line.trimEnd()),
  );
});

Deno.test("text of the data is text in Markdown", async () => {
  using temp = new TempFolder();
  const error = "a | b <img src=x> [link](http://x) `code` *bold*\n# title";
  const base = storeWith(temp.path, [{ start: ago(1), status: "failed", error }]);
  const markdown = summaryMarkdown(await summarizeRuns(layoutOf(base), { now: NOW }));
  const row = markdown.split("\n").find((line) => line.includes("img"))!;
  assert.equal(row.match(/\|/g)!.length, 5);
  assert.doesNotMatch(row, /[<>`*[\]]/);
});

Deno.test("widths are those of a terminal", () => {
  const widths = {
    "abc": 3,
    "日本": 4,
    "ｈ": 2,
    "🚀": 2,
    "👩‍👩‍👧": 2,
    "e\u0301": 1,
    "❤️": 2,
    "größe": 5,
    "한글": 4,
    "\u200b": 0,
  };
  for (const [text, width] of Object.entries(widths)) assert.equal(displayWidth(text), width, JSON.stringify(text));
  assert.deepEqual([fit("日本語", 4), fit("abc", 3), fit("abcd", 3), fit("abc", 0)], ["日…", "abc", "ab…", ""]);
  assert.deepEqual([fit("0123456789", 7, "middle"), fit("日本語日本語", 7, "middle")], ["012…789", "日本…語"]);
  assert.equal(displayWidth(fit("x".repeat(1e6), 50)), 50);
  assert.deepEqual([pad("日", 4, "right"), pad("日", 4, "left")], ["  日", "日  "]);
});

Deno.test("durations and ages are short, and text is on one line", () => {
  const durations = [0, 999, 1000, 59_949, 59_950, 3_599_499, 3_600_000, 172_000_000, 1e10].map(formatDuration);
  assert.deepEqual(durations, [
    ...["0 ms", "999 ms", "1.0 s", "59.9 s", "1 m 00 s", "59 m 59 s", "1 h 00 m", "47 h 47 m", "115 d 18 h"],
  ]);
  const ages = [0, 119_000, 120_000, 7_199_000, 7_200_000, 172_800_000].map(formatAge);
  assert.deepEqual(ages, ["0 s", "119 s", "2 m", "119 m", "2 h", "2 d"]);
  assert.equal(oneLine("a\r\n  b\tc\x1b\x7f\x9b\u202e"), "a ⏎ b c␛␡��");
});
