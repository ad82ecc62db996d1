import assert from "node:assert/strict";
import { layoutOf } from "../../../lib/layout.ts";
import { newRun, type RunRecord } from "../../../lib/records.ts";
import { createDatabase } from "../../../lib/store/database.ts";
import { createStorage } from "../../../lib/store/folders.ts";
import { ApiClient } from "../../../lib/writer/api_client.ts";
import { ClientStore } from "../../../lib/writer/client_store.ts";
import { PostQueue } from "../../../lib/writer/post_queue.ts";
import { Warnings } from "../../../lib/writer/warnings.ts";
import { TempFolder } from "../../fixtures/mod.ts";

/** A store, an API that counts its requests, and a queue between them. */
class Stage implements AsyncDisposable {
  readonly folder = new TempFolder();
  readonly warnings = new Warnings();
  readonly store: ClientStore;
  readonly posts: PostQueue;
  /** The ids that the API received. */
  readonly received: string[] = [];
  concurrent = 0;
  maxConcurrent = 0;
  status = 200;
  /** While it is set, the API does not answer. */
  hold: Promise<void> | undefined;
  readonly #server: Deno.HttpServer<Deno.NetAddr>;

  constructor() {
    const layout = layoutOf(`${this.folder.path}/base`);
    createStorage(layout);
    createDatabase(layout);
    this.warnings.onWarning = () => {};
    this.store = new ClientStore(layout.base, this.warnings);
    this.#server = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen() {} }, async (request) => {
      this.maxConcurrent = Math.max(this.maxConcurrent, ++this.concurrent);
      this.received.push((await request.json()).run_id);
      await this.hold;
      this.concurrent--;
      return Response.json({}, { status: this.status });
    });
    const url = `http://127.0.0.1:${this.#server.addr.port}/`;
    this.posts = new PostQueue(new ApiClient({ url, token: "t", delaysMs: [] }), this.store, this.warnings);
  }

  /** Ends a run: it is in the database, and waits for its post. */
  end(id: string): void {
    this.save(id);
    this.posts.add(runOf(id));
  }

  save(id: string): void {
    this.store.save(`run ${id}`, (writer) => writer.updateRun(runOf(id)));
  }

  pending(): Promise<string[] | undefined> {
    return this.store.read((writer) => writer.getPendingApiPosts().map(({ run_id }) => run_id).sort());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.posts.stop();
    await this.posts.idle();
    await this.store.queue.flush();
    this.store.close();
    await this.#server.shutdown();
    this.folder[Symbol.dispose]();
  }
}

function runOf(id: string): RunRecord {
  const start_time = "2025-12-10T12:05:30.123456+00:00";
  return newRun({ run_id: id, agent_name: "a", start_time, status: "success" });
}

Deno.test("runs are posted one after the other, in the order in which they ended", async () => {
  await using stage = new Stage();
  for (const id of ["a", "b", "c", "d"]) stage.end(id);
  await stage.posts.idle();
  await stage.store.queue.flush();
  assert.deepEqual(stage.received, ["a", "b", "c", "d"]);
  assert.equal(stage.maxConcurrent, 1);
  assert.deepEqual(await stage.pending(), []);
});

Deno.test("addPending does not post a run that waits for its own post", async () => {
  await using stage = new Stage();
  for (const id of ["old1", "old2"]) stage.save(id);
  stage.end("first");
  const adding = stage.posts.addPending(100, undefined);
  for (const id of ["late1", "late2"]) stage.end(id);
  await stage.store.queue.flush();
  assert.deepEqual(await adding, { posted: 2, failed: 0, refused: 0 });
  await stage.posts.idle();
  assert.deepEqual(stage.received.toSorted(), ["first", "late1", "late2", "old1", "old2"]);
});

Deno.test("a run that the API refuses stays pending, and each failed post is counted", async () => {
  await using stage = new Stage();
  stage.status = 403;
  stage.end("a");
  await stage.posts.idle();
  assert.deepEqual(await stage.posts.addPending(100, undefined), { posted: 0, failed: 1, refused: 0 });
  await stage.store.queue.flush();
  assert.equal(await stage.store.read((writer) => writer.getRun("a")?.api_retry_count), 2);
  assert.deepEqual([await stage.pending(), stage.warnings.counts()], [["a"], { api: 2 }]);
});

Deno.test("addPending stops when the token is refused, and when the API is down", async () => {
  for (const status of [401, 403, 500]) {
    await using stage = new Stage();
    stage.status = status;
    for (const id of ["a", "b", "c"]) stage.save(id);
    assert.deepEqual(await stage.posts.addPending(100, undefined), { posted: 0, failed: 1, refused: 0 });
    assert.equal(stage.received.length, 1);
  }
});

Deno.test("runs that end while the API is down are not posted and stay pending", async () => {
  await using stage = new Stage();
  stage.status = 500;
  for (const id of ["a", "b", "c"]) stage.end(id);
  await stage.posts.idle();
  await stage.store.queue.flush();
  assert.deepEqual(stage.received, ["a"]);
  stage.status = 200;
  assert.deepEqual(await stage.posts.addPending(100, undefined), { posted: 3, failed: 0, refused: 0 });
  stage.end("d");
  await stage.posts.idle();
  assert.equal(stage.received.length, 5);
});

Deno.test("after a refused token, runs that end are not posted and stay pending", async () => {
  await using stage = new Stage();
  stage.status = 401;
  for (const id of ["a", "b", "c"]) stage.end(id);
  await stage.posts.idle();
  await stage.store.queue.flush();
  assert.deepEqual([stage.received, await stage.pending()], [["a"], ["a", "b", "c"]]);
});

Deno.test("addPending goes on after a run that the API refuses, and says how many it refused", async () => {
  await using stage = new Stage();
  stage.status = 422;
  for (const id of ["a", "b", "c"]) stage.save(id);
  assert.deepEqual(await stage.posts.addPending(2, undefined), { posted: 0, failed: 2, refused: 2 });
  stage.status = 200;
  assert.deepEqual(await stage.posts.addPending(2, undefined), { posted: 2, failed: 0, refused: 0 });
  assert.ok(!stage.received.slice(0, 2).includes(stage.received[2]!), "the one that was not refused comes first");
});

Deno.test("runs that the API always refuses do not come before the others", async () => {
  await using stage = new Stage();
  stage.status = 422;
  for (const id of ["a", "b"]) stage.end(id);
  await stage.posts.idle();
  stage.status = 200;
  stage.save("later");
  await stage.posts.addPending(1, undefined);
  assert.equal(stage.received.at(-1), "later");
});

Deno.test("stop ends the current post, and the runs that wait stay pending without a warning", async () => {
  await using stage = new Stage();
  const { promise, resolve } = Promise.withResolvers<void>();
  stage.hold = promise;
  for (const id of ["a", "b", "c"]) stage.end(id);
  while (stage.received.length === 0) await new Promise((resolve) => setTimeout(resolve, 5));
  stage.posts.stop();
  await stage.posts.idle();
  await stage.store.queue.flush();
  assert.deepEqual(stage.received, ["a"]);
  assert.deepEqual([await stage.pending(), stage.warnings.counts()], [["a", "b", "c"], {}]);
  resolve();
});

Deno.test("more than 1,000 waiting runs are not queued, and stay pending", async () => {
  await using stage = new Stage();
  const { promise, resolve } = Promise.withResolvers<void>();
  stage.hold = promise;
  for (let i = 0; i < 1003; i++) stage.end(`${i}`);
  assert.deepEqual(stage.warnings.counts(), { "api:backlog": 3 });
  resolve();
});
