import assert from "node:assert/strict";
import { parseCommitDate, parseLocalTimeFlag, parseTimeFlag, parseTimestamp } from "../../lib/time.ts";

Deno.test("a commit date may have any form that git writes", () => {
  const expected = parseTimestamp("2025-12-10T11:05:30Z")!;
  const forms = [
    "2025-12-10 12:05:30 +0100",
    "2025-12-10T12:05:30+01:00",
    "Wed Dec 10 12:05:30 2025 +0100",
    "Wed, 10 Dec 2025 12:05:30 +0100",
    "10 Dec 2025 12:05:30 +0100",
    "Wed, 10 Dec 2025 11:05:30 GMT",
    "2025-12-10 11:05:30 UTC",
    "2025-12-10T11:05:30 gmt",
    "Wed Dec 10 11:05:30 2025",
    "1765364730",
    "1765364730 +0100",
    "@1765364730 +0100",
  ];
  for (const form of forms) assert.equal(parseCommitDate(form), expected, form);
  // One digit as git writes it, and as ctime() and `date` do.
  for (const day of ["1", " 1"]) {
    assert.equal(parseCommitDate(`Mon Dec ${day} 12:05:30 2025 +0100`), parseTimestamp("2025-12-01T11:05:30Z"));
  }
});

Deno.test("a commit date that is none is undefined", () => {
  for (
    const text of ["", "yesterday", "3 days ago", "Wed Foo 10 12:05:30 2025 +0100", "Wed Feb 30 12:05:30 2025", "12"]
  ) {
    assert.equal(parseCommitDate(text), undefined, text);
  }
});

Deno.test("a flag ends with a day only where it names one, and is local only without a zone", () => {
  const now = new Date();
  const end = (text: string) => parseTimeFlag("until", text, now, "end");
  const local = (text: string) => parseLocalTimeFlag("until", text, now, "end");
  const seconds = 1765364730;
  for (const text of [`${seconds}`, `@${seconds}`, "Wed Dec 10 12:05:30 2025 +0100", "2025-12-10 11:05:30Z"]) {
    assert.deepEqual([end(text), local(text)], [seconds * 1e6, seconds * 1e6], text);
  }
  assert.equal(end("2025-12-10"), parseTimestamp("2025-12-11"));
  assert.equal(local("2025-12-10"), new Date(2025, 11, 11).getTime() * 1000);
  for (const text of ["2025-12-10 11:05:30", "Wed Dec 10 11:05:30 2025", "10 Dec 2025 11:05:30"]) {
    assert.equal(local(text), new Date(2025, 11, 10, 11, 5, 30).getTime() * 1000, text);
  }
});
