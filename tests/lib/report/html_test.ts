import assert from "node:assert/strict";
import { layoutOf } from "../../../lib/layout.ts";
import { summaryPage } from "../../../lib/report/html.ts";
import { summarizeRuns, type SummaryOptions } from "../../../lib/report/summary.ts";
import { BrowserPage, browserProgram } from "../../fixtures/browser.ts";
import { TempFolder } from "../../fixtures/mod.ts";
import { storeWith, type TestRun } from "../../fixtures/report.ts";

const NOW = new Date("2025-12-14T12:00:00Z");
const HOSTILE = `</script><img src=http://127.0.0.1:9/x onerror="window.hacked=1"><b onmouseover='hacked()'>&amp;`;

async function pageOf(folder: string, runs: TestRun[], options: SummaryOptions = {}): Promise<string> {
  const summary = await summarizeRuns(layoutOf(storeWith(folder, runs)), { now: NOW, ...options });
  return await summaryPage(summary);
}

/** Two runs on Dec 11, four on Dec 12 of which three failed, one on Dec 14. */
const RUNS: TestRun[] = ["11T03", "11T04", "12T03", "12T04", "12T05", "12T06", "14T01"].map((hour, i) => ({
  agent: i < 3 ? HOSTILE : "indexer",
  job: "b\u202e\x1b[2J",
  start: `2025-12-${hour}:00:00Z`,
  duration: 1000 * (i + 1) ** 3,
  status: [3, 4, 5].includes(i) ? "failed" : "success",
  error: [3, 4, 5].includes(i) ? `${HOSTILE} ${i}` : null,
}));

Deno.test("everything from the data is escaped, and the page names no other source", async () => {
  using temp = new TempFolder();
  const page = await pageOf(temp.path, RUNS);
  assert.equal(page.match(/<script/g)!.length, 1);
  assert.doesNotMatch(page, /<img|<b on|onerror="|<[^>]+\ssrc=|url\(|@import|\u202e/);
  assert.equal(page.match(/(?:href|src)="[^"#]+"/g)!.join(), 'href="data:,"');
  assert.match(page, /Content-Security-Policy" content="default-src 'none';/);
  assert.match(page, /&#60;\/script&#62;&#60;img src=http/);
});

Deno.test("the page on an empty store has no empty charts, and one duration is on its axis once", async () => {
  using temp = new TempFolder();
  const empty = await pageOf(temp.path, []);
  assert.doesNotMatch(empty, /<svg|class="axis"/);
  for (const note of ["Runs a day", "Days with runs"]) {
    assert.ok(empty.includes(`<h2>${note}</h2><p class="note">no runs`));
  }
  assert.ok(empty.includes('<h2>Failure rate a day</h2><p class="note">no ended runs'));
  assert.ok(empty.includes('<h2>Duration</h2><p class="note">no durations'));
  const one = await pageOf(`${temp.path}/one`, [{ start: "2025-12-14T01:00:00Z", duration: 1200 }]);
  assert.match(one, /<div class="axis"><span>1\.2 s<\/span><\/div>/);
});

Deno.test("the details of a failure show the lines of a stack trace, and its end when it is long", async () => {
  using temp = new TempFolder();
  const error = `Traceback (most recent call last):\r\n  File "a.py", line 1\n${
    "  x\n".repeat(2000)
  }ValueError: <last>`;
  const page = await pageOf(temp.path, [{ start: "2025-12-14T01:00:00Z", status: "failed", error }]);
  assert.match(
    page,
    /<dd>Traceback \(most recent call last\):\n {2}File &#34;a\.py&#34;, line 1\n[^]*…[^]*\nValueError: &#60;last&#62;<\/dd>/,
  );
});

const program = browserProgram();
Deno.test({
  name: `in a browser, the page is whole, quiet and in proportion${program ? "" : " [SKIPPED: no Chromium]"}`,
  ignore: program === undefined,
  fn: async () => {
    using temp = new TempFolder();
    const path = `${temp.path}/report.html`;
    Deno.writeTextFileSync(path, await pageOf(temp.path, RUNS));
    await using page = await BrowserPage.start(program!);
    for (const width of [400, 1400]) {
      await page.send("Emulation.setDeviceMetricsOverride", {
        width,
        height: 900,
        deviceScaleFactor: 1,
        mobile: false,
      });
      await page.open(path);
      assert.ok(await page.evaluate<boolean>("document.documentElement.scrollWidth <= innerWidth"), `${width} px`);
    }
    // 1. The heights of the bars are those of the counts.
    const heights = await page.evaluate<Record<string, number>>(`Object.fromEntries(
      [...document.querySelectorAll(".bars g")].map((bar) => [bar.querySelector("title").textContent,
        [...bar.querySelectorAll("rect")].reduce((sum, rect) => sum + rect.getBoundingClientRect().height, 0)]))`);
    const heightOn = (day: string) => Object.entries(heights).find(([title]) => title.startsWith(day))![1];
    assert.ok(heightOn("2025-12-12") > 100);
    for (const [day, runs] of [["2025-12-11", 2], ["2025-12-13", 0], ["2025-12-14", 1]] as const) {
      assert.ok(Math.abs(heightOn(day) - heightOn("2025-12-12") * runs / 4) < 1, day);
    }
    // 2. Data is text.
    assert.equal(await page.evaluate("document.querySelectorAll('img').length + (window.hacked ?? 0)"), 0);
    const errors = await page.evaluate<string[]>("[...document.querySelectorAll('td a')].map((a) => a.textContent)");
    assert.deepEqual(errors, [5, 4, 3].map((i) => `${HOSTILE} ${i}`));
    // 3. A link opens the details, and a click sorts a table.
    const opened = await page.evaluate<boolean>(`new Promise((resolve) => {
      addEventListener("hashchange", () => setTimeout(() => resolve(document.querySelector("#failure-2").open), 50));
      document.querySelectorAll("td a")[1].click();
    })`);
    assert.ok(opened);
    const column = `[...document.querySelector("table").tBodies[0].rows].map((row) => row.cells[2].textContent)`;
    const click = `document.querySelectorAll("th button")[2].click()`;
    assert.deepEqual(await page.evaluate(`${click}, ${column}`), ["4", "3"]);
    assert.deepEqual(await page.evaluate(`${click}, ${column}`), ["3", "4"]);
    // 4. It prints, says nothing on the console, and asks for nothing.
    const { data } = await page.send<{ data: string }>("Page.printToPDF");
    assert.ok(atob(data).startsWith("%PDF"));
    const loud = page.events.filter(({ method }) => /exceptionThrown|consoleAPICalled|entryAdded/.test(method));
    assert.deepEqual(loud, []);
    const requests = page.events.filter(({ method }) => method === "Network.requestWillBeSent")
      .map(({ params }) => (params["request"] as { url: string }).url);
    assert.deepEqual([...new Set(requests)].filter((url) => url !== "data:," && url !== `file://${path}`), []);
  },
});

Deno.test("the page on 20,000 runs of 1,000 agents in ten years is under 2 MB", async () => {
  using temp = new TempFolder();
  const runs = Array.from({ length: 20_000 }, (_, i): TestRun => ({
    agent: `agent-${i % 1000}-${"x".repeat(40)}`,
    start: new Date(NOW.getTime() - i * 4 * 3_600_000).toISOString(),
    duration: i * 37 % 900_000,
    status: i % 10 ? "success" : "failed",
    error: i % 10 ? null : "e".repeat(5000),
  }));
  const page = await pageOf(temp.path, runs, { since: new Date(0) });
  assert.ok(page.length < 2e6, `${page.length} bytes`);
  assert.match(page, /<h2>Runs every 28 days<\/h2>/);
});
