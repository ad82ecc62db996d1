import assert from "node:assert/strict";
import { TelemetryError } from "../../../lib/errors.ts";
import { WriteQueue, type WriteQueueOptions } from "../../../lib/writer/write_queue.ts";

// A timer that is left behind would keep an agent alive.
Deno.test.sanitizer({ ops: true, resources: true });

/** A database that can be made to fail, and a queue that writes to it. */
class Stage {
  readonly written: string[] = [];
  readonly failures: string[] = [];
  dropped = 0;
  /** What every write throws. */
  fault: "locked" | "disk_full" | undefined;
  readonly queue: WriteQueue;

  constructor(options: Partial<WriteQueueOptions> = {}) {
    this.queue = new WriteQueue({
      onFailure: (error) => void this.failures.push((error as TelemetryError).code),
      onDrop: () => void this.dropped++,
      ...options,
    });
  }

  add(key: string, text = key): void {
    this.queue.add(key, () => {
      if (this.fault) throw new TelemetryError(this.fault, "fault of the test");
      this.written.push(text);
    });
  }

  reject(key: string): void {
    this.queue.add(key, () => {
      throw new TelemetryError("invalid_record", "violates a CHECK constraint");
    });
  }
}

const until = async (condition: () => boolean) => {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 5));
};

Deno.test("add writes before it returns, in order, and the queue becomes idle", async () => {
  const stage = new Stage();
  for (const key of ["a", "b", "c"]) stage.add(key);
  assert.deepEqual(stage.written, ["a"]);
  await stage.queue.flush();
  assert.deepEqual(stage.written, ["a", "b", "c"]);
  assert.equal(stage.queue.size, 0);
  stage.add("d");
  assert.equal(stage.written.at(-1), "d");
  await stage.queue.flush();
});

Deno.test("writes wait while the database is locked, and a newer write replaces the one of its key", async () => {
  const stage = new Stage();
  stage.fault = "locked";
  stage.add("a", "a1");
  stage.add("b");
  stage.add("a", "a2");
  assert.ok(stage.queue.has("a") && !stage.queue.has("c"));
  stage.fault = undefined;
  await stage.queue.flush();
  assert.deepEqual(stage.written, ["a2", "b"]);
  assert.deepEqual([stage.failures, stage.queue.size], [[], 0]);
});

Deno.test("a lock that is held too long blocks the queue, and the next add tries again", async () => {
  const stage = new Stage({ lockedForMs: 60 });
  stage.fault = "locked";
  stage.add("a");
  await stage.queue.flush();
  assert.deepEqual([stage.failures, stage.queue.size], [["locked"], 1]);
  stage.fault = undefined;
  stage.add("b");
  await stage.queue.flush();
  assert.deepEqual(stage.written, ["a", "b"]);
});

Deno.test("the time for a lock starts again with each write that succeeds", async () => {
  const stage = new Stage({ lockedForMs: 300 });
  let attempts = 0;
  const locked = () => {
    // Three of four attempts fail: together they take longer than one lock may.
    if (++attempts % 4 !== 0) throw new TelemetryError("locked", "locked");
  };
  for (let i = 0; i < 8; i++) stage.queue.add(`${i}`, locked);
  await stage.queue.flush();
  assert.equal(stage.queue.size, 0);
  assert.equal(attempts, 32);
  assert.deepEqual(stage.failures, []);
});

Deno.test("any other error blocks the queue, and flush tries again", async () => {
  const stage = new Stage();
  stage.fault = "disk_full";
  stage.add("a");
  await stage.queue.flush();
  assert.deepEqual(stage.failures, ["disk_full", "disk_full"]);
  stage.fault = undefined;
  await stage.queue.flush();
  assert.deepEqual([stage.written, stage.queue.size], [["a"], 0]);
});

Deno.test("a write that the table rejects is reported and removed, and the next one is made", async () => {
  const stage = new Stage();
  stage.reject("bad");
  stage.add("good");
  await stage.queue.flush();
  assert.deepEqual([stage.failures, stage.written], [["invalid_record"], ["good"]]);
  assert.equal(stage.queue.size, 0);
});

Deno.test("the queue drops its oldest write only while it cannot write", async () => {
  const stage = new Stage({ maxWaiting: 3 });
  for (let i = 0; i < 10; i++) stage.add(`burst ${i}`);
  await stage.queue.flush();
  assert.equal(stage.written.length, 10);
  for (const fault of ["locked", "disk_full"] as const) {
    stage.fault = fault;
    stage.dropped = 0;
    for (let i = 0; i < 5; i++) stage.add(`${fault} ${i}`);
    stage.add(`${fault} 2`);
    assert.deepEqual([stage.queue.size, stage.dropped], [3, 2]);
    stage.fault = undefined;
    await stage.queue.flush();
    assert.deepEqual(stage.written.slice(-3), [2, 3, 4].map((i) => `${fault} ${i}`));
  }
});

Deno.test("a long queue gives the agent its turn", async () => {
  const stage = new Stage();
  let writtenAtTurn = 0;
  setTimeout(() => writtenAtTurn = stage.written.length, 0);
  for (let i = 0; i < 500; i++) stage.add(`${i}`);
  await stage.queue.flush();
  assert.equal(stage.written.length, 500);
  assert.ok(writtenAtTurn > 0 && writtenAtTurn < 500, `the timer ran after ${writtenAtTurn} writes`);
});

Deno.test("stop ends a wait, writes what it can at once, and tries later writes once", async () => {
  const stage = new Stage();
  stage.fault = "locked";
  stage.add("a");
  stage.add("b");
  const flushed = stage.queue.flush();
  stage.fault = undefined;
  stage.queue.stop();
  assert.deepEqual(stage.written, ["a", "b"]);
  await flushed;
  stage.add("c");
  assert.deepEqual(stage.written, ["a", "b", "c"]);
  stage.fault = "locked";
  stage.add("d");
  assert.deepEqual(stage.failures, ["locked"]);
  assert.equal(stage.queue.size, 1);
});

Deno.test("a write that starts during a pause of the queue is made once and in order after stop", async () => {
  const stage = new Stage();
  for (let i = 0; i < 60; i++) stage.add(`${i}`);
  await until(() => stage.written.length >= 50);
  stage.queue.stop();
  await stage.queue.flush();
  assert.deepEqual(stage.written, Array.from({ length: 60 }, (_, i) => `${i}`));
});

Deno.test("read waits while the database is locked, and resolves to undefined when it fails", async () => {
  const fails = (code: "locked" | "damaged") => () => {
    throw new TelemetryError(code, "fault of the test");
  };
  const patient = new Stage();
  let attempts = 0;
  assert.equal(await patient.queue.read(() => ++attempts < 3 ? fails("locked")() : "row"), "row");
  assert.deepEqual(patient.failures, []);
  const stage = new Stage({ lockedForMs: 60 });
  assert.equal(await stage.queue.read(fails("damaged")), undefined);
  assert.equal(await stage.queue.read(fails("locked")), undefined);
  stage.queue.stop();
  assert.equal(await stage.queue.read(() => "row"), "row");
  assert.equal(await stage.queue.read(fails("locked")), undefined);
  assert.deepEqual(stage.failures, ["damaged", "locked", "locked"]);
});

Deno.test("a read that waits for a lock ends when the queue is stopped", async () => {
  const stage = new Stage();
  let attempts = 0;
  const reading = stage.queue.read(() => {
    attempts++;
    throw new TelemetryError("locked", "fault of the test");
  });
  await until(() => attempts === 3);
  stage.queue.stop();
  assert.equal(await reading, undefined);
  assert.deepEqual([attempts, stage.failures], [4, ["locked"]]);
});

Deno.test("at the end of a process, all queues wait once for a locked database", () => {
  const stages = Array.from({ length: 4 }, () => new Stage());
  for (const stage of stages) {
    stage.fault = "locked";
    stage.add("a");
  }
  const start = performance.now();
  for (const stage of stages) stage.queue.flushSync();
  const waited = performance.now() - start;
  assert.ok(waited > 900 && waited < 2000, `${waited} ms`);
  for (const stage of stages) {
    assert.equal(stage.queue.size, 1);
    stage.queue.stop();
  }
});
