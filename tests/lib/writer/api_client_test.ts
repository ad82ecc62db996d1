import assert from "node:assert/strict";
import {
  ApiClient,
  type ApiClientOptions,
  apiFromEnvironment,
  apiPayload,
  type PostResult,
  retryWaitMs,
} from "../../../lib/writer/api_client.ts";
import { TelemetryError } from "../../../lib/errors.ts";
import { newRun, type RunRecord } from "../../../lib/records.ts";
import { ROOT_URL, run, TempFolder, testWith } from "../../fixtures/mod.ts";

// Off by default since Deno 2.8. Many of these tests check that no timer or connection is left behind.
Deno.test.sanitizer({ ops: true, resources: true });

const RUN = newRun({
  run_id: "20251210T120530Z-indexer-0123abcd",
  agent_name: "indexer",
  start_time: "2025-12-10T12:05:30.123456+00:00",
});
const TOKEN = "t0ken-S3cret";
/** What must never be shown: parts of the URL, and the token. */
const SECRETS = [TOKEN, "path-S3cret", "query-S3cret", "user-S3cret", "pass-S3cret", "hash-S3cret"];

/** A request that the server received. */
interface Seen {
  method: string;
  host: string;
  path: string;
  headers: Headers;
  body: string;
  at: number;
}

type Answer = Response | ((seen: Seen) => Response);

/** A loopback server that sends its answers in order, then repeats the last one. */
function serve(...answers: Answer[]) {
  const seen: Seen[] = [];
  const server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, async (request) => {
    const { host, pathname, search } = new URL(request.url);
    const { method, headers } = request;
    const at = performance.now();
    seen.push({ method, host, path: pathname + search, headers, body: await request.text(), at });
    const answer = answers[Math.min(seen.length, answers.length) - 1]!;
    return answer instanceof Response ? answer.clone() : answer(seen.at(-1)!);
  });
  const { port } = server.addr;
  return {
    seen,
    port,
    host: `127.0.0.1:${port}`,
    url: `http://127.0.0.1:${port}/hook`,
    [Symbol.asyncDispose]: () => server.shutdown(),
  };
}

/**
 * A loopback server on TCP. It writes `reply` after the first bytes of the request. Then it waits until the client
 * closes the connection, or closes it first: normally, or by a reset because it did not read all bytes.
 */
function serveRaw(reply: string, leave: "last" | "first" | "reset" = "last") {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const heard = Promise.withResolvers<void>();
  const buffer = new Uint8Array(65536);
  let connections = 0;
  const accepting = (async () => {
    const serving: Promise<void>[] = [];
    for await (const connection of listener) {
      connections++;
      serving.push(
        (async () => {
          using _closes = connection;
          await connection.read(buffer);
          await connection.write(new TextEncoder().encode(reply));
          heard.resolve();
          if (leave !== "last") return;
          while (await connection.read(buffer) !== null);
        })().catch(() => {}),
      );
    }
    await Promise.all(serving);
  })();
  const { port } = listener.addr;
  return {
    heard: heard.promise,
    connections: () => connections,
    host: `127.0.0.1:${port}`,
    url: `http://127.0.0.1:${port}/hook`,
    async [Symbol.asyncDispose]() {
      listener.close();
      await accepting;
    },
  };
}

function client(url: string, options: Partial<ApiClientOptions> = {}): ApiClient {
  return new ApiClient({ url, token: TOKEN, delaysMs: [1, 1], timeoutMs: 3000, ...options });
}

function redirect(status: number, location: string): Response {
  return new Response("moved", { status, headers: { location } });
}

function html(): Response {
  return new Response("<html>sign in</html>", { headers: { "content-type": "text/html; charset=utf-8" } });
}

const ok = () => Response.json({ status: "ok" });

// The answer

Deno.test("a 200 with JSON is success, and the request follows the contract", async () => {
  await using server = serve(ok);
  assert.deepEqual(await client(`${server.url}?key=1`).post(RUN), { posted: true, tries: 1 });
  const [request] = server.seen;
  assert.equal(request!.method, "POST");
  assert.equal(request!.path, "/hook?key=1");
  assert.equal(request!.headers.get("authorization"), `Bearer ${TOKEN}`);
  assert.equal(request!.headers.get("content-type"), "application/json");
  assert.equal(request!.headers.get("referer"), null);
  assert.deepEqual(JSON.parse(request!.body), apiPayload(RUN));
});

Deno.test("the payload has the fields of the contract in its order, without nulls", () => {
  const text = (name: string) => `a ${name}`;
  const full = Object.fromEntries(Object.keys(RUN).map((name) => [name, text(name)])) as unknown as RunRecord;
  // deno-fmt-ignore
  const fields = [
    "run_id", "agent_name", "job_type", "trigger_type", "start_time", "status", "agent_owner", "end_time",
    "items_discovered", "items_succeeded", "items_failed", "duration_ms", "error_summary",
    "product", "platform", "product_family", "subdomain", "git_repo", "git_branch", "host",
  ];
  assert.deepEqual(Object.entries(apiPayload(full)), fields.map((name) => [name, text(name)]));
  assert.deepEqual(apiPayload(RUN), {
    run_id: RUN.run_id,
    agent_name: "indexer",
    start_time: RUN.start_time,
    status: "running",
    items_discovered: 0,
    items_succeeded: 0,
    items_failed: 0,
  });
  assert.deepEqual(apiPayload({ run_id: "x", host: undefined } as unknown as RunRecord), { run_id: "x" });
});

Deno.test("only final statuses prevent a retry", async (t) => {
  for (const status of [400, 401, 403, 404, 410, 422, 451, 499]) {
    await t.step(`${status} is final`, async () => {
      await using server = serve(new Response("no", { status }), ok);
      const reason = `${server.host} answered ${status}`;
      assert.deepEqual(await client(server.url).post(RUN), { posted: false, tries: 1, final: true, reason });
    });
  }
  for (const status of [201, 202, 204, 302, 304, 408, 429, 500, 502, 503, 504]) {
    await t.step(`${status} is retried`, async () => {
      await using server = serve(new Response(null, { status }), ok);
      assert.deepEqual(await client(server.url).post(RUN), { posted: true, tries: 2 });
    });
  }
});

Deno.test("there are three attempts, each with the whole request", async () => {
  await using server = serve(new Response("down", { status: 500 }));
  const result = await client(server.url, { delaysMs: [30, 60] }).post(RUN);
  assert.deepEqual(result, { posted: false, tries: 3, final: false, reason: `${server.host} answered 500` });
  const [first, second, third, ...more] = server.seen;
  assert.equal(more.length, 0);
  assert.ok(second!.at - first!.at >= 29);
  assert.ok(third!.at - second!.at >= 59);
  for (const { method, body, headers } of server.seen) {
    assert.deepEqual([method, JSON.parse(body)], ["POST", apiPayload(RUN)]);
    assert.equal(headers.get("authorization"), `Bearer ${TOKEN}`);
  }
});

Deno.test("a 200 with HTML is not success, and is retried", async (t) => {
  const bodies = {
    "doctype": "<!DOCTYPE html><title>Error</title>",
    "lower case doctype": "<!doctype html>",
    "bare html": "<html lang=en>",
    "a comment first": "<!-- error -->",
    "BOM and blanks first": "\uFEFF \r\n\t<HTML>",
    "XHTML": '<?xml version="1.0"?>\n<html xmlns="x">',
    "an error of PHP": "<br />\n<b>Fatal error</b>",
    "a part of a page": "<form action=/login><span>Sign in</span></form>",
    "a page of parts": "<main><nav>Sign in</nav></main>",
    "an error of Python": "<pre>Traceback</pre>",
    "a heading": "<h1>502 Bad Gateway</h1>",
  };
  await t.step("three times", async () => {
    await using server = serve(html);
    const reason = `${server.host} answered 200 with an HTML page`;
    assert.deepEqual(await client(server.url).post(RUN), { posted: false, tries: 3, final: false, reason });
  });
  for (const [name, body] of Object.entries(bodies)) {
    await t.step(`by its body: ${name}`, async () => {
      await using server = serve(() => new Response(body, { headers: { "content-type": "text/plain" } }), ok);
      assert.deepEqual(await client(server.url).post(RUN), { posted: true, tries: 2 });
    });
  }
  for (const body of ["", "ok", '{"status":"error"}', "<xml/>", "see <html>", "x".repeat(300_000)]) {
    await t.step(`not HTML: ${JSON.stringify(body.slice(0, 20))}`, async () => {
      for (const type of ["application/json", "text/html; charset=UTF-8"]) {
        await using server = serve(new Response(body, { headers: { "content-type": type } }));
        assert.deepEqual(await client(server.url).post(RUN), { posted: true, tries: 1 });
      }
    });
  }
});

Deno.test("an endless response is read only at its start", async () => {
  const cancelled = Promise.withResolvers<void>();
  await using server = serve(() => {
    const chunk = new Uint8Array(16384).fill(0x20);
    return new Response(
      new ReadableStream({ pull: (to) => to.enqueue(chunk), cancel: () => cancelled.resolve() }),
    );
  });
  assert.deepEqual(await client(server.url).post(RUN), { posted: true, tries: 1 });
  await cancelled.promise;
});

// Retry-After

Deno.test("Retry-After sets the pause between attempts", async () => {
  await using server = serve(new Response("slow down", { status: 429, headers: { "retry-after": "1" } }), ok);
  assert.deepEqual(await client(server.url).post(RUN), { posted: true, tries: 2 });
  assert.ok(server.seen[1]!.at - server.seen[0]!.at >= 995);
});

Deno.test("Retry-After never shortens a pause, and never makes it longer than a minute", () => {
  const now = Date.parse("2025-12-10T12:00:00Z");
  assert.equal(retryWaitMs(1000, null, now), 1000);
  assert.equal(retryWaitMs(1000, "5", now), 5000);
  assert.equal(retryWaitMs(1000, " 5 ", now), 5000);
  assert.equal(retryWaitMs(1000, "0", now), 1000);
  assert.equal(retryWaitMs(1000, "61", now), 60_000);
  assert.equal(retryWaitMs(1000, "9".repeat(400), now), 60_000);
  assert.equal(retryWaitMs(90_000, "61", now), 90_000);
  assert.equal(retryWaitMs(1000, "Wed, 10 Dec 2025 12:00:07 GMT", now), 7000);
  assert.equal(retryWaitMs(1000, "Wed, 10 Dec 2025 13:00:00 GMT", now), 60_000);
  assert.equal(retryWaitMs(1000, "Wed, 10 Dec 2025 11:00:00 GMT", now), 1000);
  for (const junk of ["", "soon", "-5", "1.5", "NaN"]) assert.equal(retryWaitMs(1000, junk, now), 1000, junk);
});

// Redirects

Deno.test("a redirected POST is followed with GET, as Apps Script expects, and that response counts", async (t) => {
  for (const status of [301, 302, 303]) {
    await t.step(`${status}`, async () => {
      await using echo = serve(ok);
      await using server = serve(redirect(status, `http://${echo.host}/echo?x=1`));
      assert.deepEqual(await client(server.url).post(RUN), { posted: true, tries: 1 });
      const [request] = echo.seen;
      assert.deepEqual([request!.method, request!.path, request!.body], ["GET", "/echo?x=1", ""]);
      for (const name of ["authorization", "content-type", "content-length", "referer", "cookie"]) {
        assert.equal(request!.headers.get(name), null, name);
      }
    });
  }
  await t.step("its HTML is not success, and its 401 is final and names its host", async () => {
    await using echo = serve(html, new Response("", { status: 401 }));
    await using server = serve(redirect(302, `http://${echo.host}/`));
    const reason = `${echo.host} answered 401`;
    assert.deepEqual(await client(server.url).post(RUN), { posted: false, tries: 2, final: true, reason });
  });
});

Deno.test("307 and 308 repeat the POST", async (t) => {
  for (const status of [307, 308]) {
    await t.step(`${status}`, async () => {
      await using echo = serve(ok);
      await using server = serve(redirect(status, `http://${echo.host}/`));
      assert.deepEqual(await client(server.url).post(RUN), { posted: true, tries: 1 });
      const [request] = echo.seen;
      assert.deepEqual([request!.method, JSON.parse(request!.body)], ["POST", apiPayload(RUN)]);
      assert.equal(request!.headers.get("content-type"), "application/json");
      assert.equal(request!.headers.get("authorization"), null);
    });
  }
  await t.step("after a 302 it stays a GET", async () => {
    await using server = serve(redirect(302, "/a"), redirect(307, "/b"), ok);
    assert.deepEqual(await client(server.url).post(RUN), { posted: true, tries: 1 });
    const methods = server.seen.map(({ method, path }) => `${method} ${path}`);
    assert.deepEqual(methods, ["POST /hook", "GET /a", "GET /b"]);
  });
});

const bearer = (seen: Seen[]) => seen.map(({ headers }) => headers.get("authorization"));

Deno.test("the token is sent again after a redirect within the configured origin", async () => {
  await using server = serve(redirect(307, "/other"), ok);
  await client(server.url).post(RUN);
  assert.deepEqual(bearer(server.seen), [`Bearer ${TOKEN}`, `Bearer ${TOKEN}`]);
});

testWith(
  ["localhost"],
  "the token is sent to no other origin, nor to the first one after a redirect back",
  async () => {
    await using server = serve(
      ({ host }) => redirect(307, `http://localhost:${new URL(`http://${host}`).port}/`),
      redirect(307, "/further"),
      ({ host }) => redirect(307, `http://127.0.0.1:${new URL(`http://${host}`).port}/`),
      ok,
    );
    assert.deepEqual(await client(server.url).post(RUN), { posted: true, tries: 1 });
    const other = `localhost:${server.port}`;
    assert.deepEqual(server.seen.map(({ host }) => host), [server.host, other, other, server.host]);
    assert.deepEqual(bearer(server.seen), [`Bearer ${TOKEN}`, null, null, null]);
  },
);

Deno.test("the token is not sent to another port, and the next attempt starts at the configured URL", async () => {
  await using other = serve(new Response("", { status: 500 }));
  await using server = serve(redirect(302, `http://${other.host}/`), ok);
  assert.deepEqual(await client(server.url).post(RUN), { posted: true, tries: 2 });
  assert.deepEqual(bearer(other.seen), [null]);
  assert.deepEqual(bearer(server.seen), [`Bearer ${TOKEN}`, `Bearer ${TOKEN}`]);
});

Deno.test("the user and password of a URL are never sent", async (t) => {
  await t.step("of the configured URL", async () => {
    await using server = serve(redirect(307, "/other"), ok);
    const url = server.url.replace("http://", "http://user:pass@");
    assert.deepEqual(await client(url).post(RUN), { posted: true, tries: 1 });
    for (const { headers } of server.seen) assert.equal(headers.get("authorization"), `Bearer ${TOKEN}`);
  });
  await t.step("of a redirect", async () => {
    await using echo = serve(ok);
    await using server = serve(redirect(302, `http://user:pass@${echo.host}/`));
    assert.deepEqual(await client(server.url).post(RUN), { posted: true, tries: 1 });
    assert.equal(echo.seen[0]!.headers.get("authorization"), null);
  });
});

Deno.test("ten redirects are followed, an eleventh is not", async () => {
  const hops = (count: number) => Array.from({ length: count }, (_, hop) => redirect(302, `/${hop}`));
  await using ten = serve(...hops(10), ok);
  assert.deepEqual(await client(ten.url).post(RUN), { posted: true, tries: 1 });
  await using loop = serve(redirect(302, "/loop"));
  const result = await client(loop.url, { delaysMs: [1] }).post(RUN);
  const reason = `${loop.host} redirects too often`;
  assert.deepEqual(result, { posted: false, tries: 2, final: false, reason });
  assert.equal(loop.seen.length, 22);
});

Deno.test("a redirect to an address that is neither https nor loopback is refused", async (t) => {
  for (const status of [302, 307]) {
    for (
      const location of ["http://plain.invalid/x", "//plain.invalid/x", "ftp://plain.invalid/", "file:///etc/hosts"]
    ) {
      await t.step(`${status} to ${location}`, async () => {
        await using server = serve(redirect(status, location));
        const reason = `${server.host} redirects to an address that is not https`;
        assert.deepEqual(await client(server.url).post(RUN), { posted: false, tries: 1, final: true, reason });
      });
    }
  }
  await t.step("a Location that is not a URL is retried", async () => {
    await using server = serve(redirect(302, "http://["), ok);
    assert.deepEqual(await client(server.url).post(RUN), { posted: true, tries: 2 });
  });
});

// Network failures

Deno.test("the timeout bounds each attempt when a server does not answer", async (t) => {
  const failed = (host: string) => ({
    posted: false,
    tries: 2,
    final: false,
    reason: `${host} did not answer within 0.12 s`,
  });
  const quick = { delaysMs: [1], timeoutMs: 120 };
  await t.step("no response", async () => {
    await using server = serveRaw("");
    assert.deepEqual(await client(server.url, quick).post(RUN), failed(server.host));
    assert.equal(server.connections(), 2);
  });
  await t.step("half a body", async () => {
    await using server = serveRaw("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{");
    assert.deepEqual(await client(server.url, quick).post(RUN), failed(server.host));
  });
  await t.step("after a redirect", async () => {
    await using server = serveRaw("");
    await using first = serve(redirect(302, server.url));
    assert.deepEqual(await client(first.url, quick).post(RUN), failed(server.host));
  });
  await t.step("the body of a redirect or an error is not awaited", async () => {
    await using server = serveRaw("HTTP/1.1 401 No\r\nContent-Length: 9\r\n\r\n{");
    await using first = serveRaw(`HTTP/1.1 302 Moved\r\nContent-Length: 9\r\nLocation: ${server.url}\r\n\r\n{`);
    const reason = `${server.host} answered 401`;
    assert.deepEqual(await client(first.url).post(RUN), { posted: false, tries: 1, final: true, reason });
  });
});

Deno.test("a connection that breaks is retried", async (t) => {
  const half = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{";
  for (const [reply, leave] of [["", "first"], ["", "reset"], [half, "first"]] as const) {
    await t.step(`${leave}, after ${reply.length} bytes`, async () => {
      await using server = serveRaw(reply, leave);
      const reason = `${server.host} broke off the connection`;
      assert.deepEqual(await client(server.url).post(RUN), { posted: false, tries: 3, final: false, reason });
      assert.equal(server.connections(), 3);
    });
  }
});

// Stopping

Deno.test("an abort signal ends a post immediately", async (t) => {
  const reason = "posting was stopped";
  const forever = { delaysMs: [60_000, 60_000], timeoutMs: 60_000 };
  await t.step("before it starts", async () => {
    await using server = serve(ok);
    const result = await client(server.url).post(RUN, AbortSignal.abort());
    assert.deepEqual(result, { posted: false, tries: 0, final: false, reason });
    assert.equal(server.seen.length, 0);
  });
  await t.step("during a pause", async () => {
    const stop = new AbortController();
    await using server = serve(() => {
      setTimeout(() => stop.abort(new Error(TOKEN)), 20);
      return new Response("", { status: 500 });
    });
    const result = await client(server.url, forever).post(RUN, stop.signal);
    assert.deepEqual(result, { posted: false, tries: 1, final: false, reason });
  });
  for (const reply of ["", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"]) {
    await t.step(`during a fetch, after ${reply.length} bytes`, async () => {
      const stop = new AbortController();
      await using server = serveRaw(reply);
      const posting = client(server.url, { ...forever, delaysMs: [] }).post(RUN, stop.signal);
      await server.heard;
      stop.abort();
      assert.deepEqual(await posting, { posted: false, tries: 1, final: false, reason });
    });
  }
  await t.step("after the post it has no effect", async () => {
    const stop = new AbortController();
    await using server = serve(ok);
    assert.deepEqual(await client(server.url).post(RUN, stop.signal), { posted: true, tries: 1 });
    stop.abort();
  });
});

// Permissions

Deno.test({
  name: "without net permission nothing is sent, and the reason names the flag",
  permissions: { net: false },
  async fn() {
    const reason = "no permission: --allow-net=script.google.com";
    const result = await client("https://script.google.com/macros/path-S3cret").post(RUN);
    assert.deepEqual(result, { posted: false, tries: 0, final: true, reason });
    const v6 = await client("http://[::1]:8080/").post(RUN);
    assert.equal(!v6.posted && v6.reason, "no permission: --allow-net=[::1]:8080");
  },
});

Deno.test({
  name: "a redirect to a host without permission names that host",
  permissions: { net: ["127.0.0.1"] },
  async fn() {
    for (const host of ["localhost:8000", "script.googleusercontent.com"]) {
      const scheme = host.startsWith("localhost") ? "http" : "https";
      await using server = serve(redirect(302, `${scheme}://${host}/path-S3cret`));
      const reason = `no permission: --allow-net=${host} (${server.host} redirects there)`;
      assert.deepEqual(await client(server.url).post(RUN), { posted: false, tries: 1, final: true, reason });
    }
  },
});

Deno.test({
  name: "a host that no permission can name is a failure, not an exception",
  permissions: { net: ["127.0.0.1"] },
  async fn() {
    const direct = await client("https://a..b/path-S3cret").post(RUN);
    const reason = "no permission: --allow-net=a..b";
    assert.deepEqual(direct, { posted: false, tries: 0, final: true, reason });
    await using server = serve(redirect(302, "https://a..b/"));
    const redirected = await client(server.url).post(RUN);
    assert.ok(!redirected.posted && redirected.final && redirected.reason.startsWith(reason));
  },
});

// What cannot be posted or configured

Deno.test("a run that JSON cannot represent is a final failure, not an exception", async () => {
  const odd = { ...RUN, duration_ms: 1n } as unknown as RunRecord;
  const reason = "run.duration_ms cannot be written as JSON";
  const expected = { posted: false, tries: 0, final: true, reason };
  assert.deepEqual(await client("http://localhost:9000").post(odd), expected);
  const nothing = await client("http://localhost:9000").post(null as unknown as RunRecord);
  assert.equal(!nothing.posted && nothing.final, true);
});

/** What the constructor throws. It must be `usage`, and must not show a secret in any form. */
function refusal(options: ApiClientOptions): TelemetryError {
  try {
    new ApiClient(options);
  } catch (error) {
    assert.ok(error instanceof TelemetryError);
    assert.equal(error.code, "usage");
    assertNoSecret(Deno.inspect(error) + error.stack + error.hint + JSON.stringify(error));
    return error;
  }
  throw new Error("the options were accepted");
}

function assertNoSecret(text: string): void {
  for (const secret of SECRETS) assert.ok(!text.includes(secret), `${secret} in: ${text}`);
  assert.ok(!text.includes("S3cret"), text);
}

Deno.test("options of wrong kinds are refused", () => {
  const url = "https://api.example";
  for (const timeoutMs of [NaN, -1, "5", null]) refusal({ url, token: TOKEN, timeoutMs: timeoutMs as number });
  for (const delayMs of [NaN, -1, "5"]) refusal({ url, token: TOKEN, delaysMs: [1000, delayMs as number] });
  for (const token of [5, undefined, ""]) refusal({ url, token: token as string });
});

Deno.test("a URL that is neither https nor loopback is refused, and only its host is shown", () => {
  const tail = "/path-S3cret?k=query-S3cret#hash-S3cret";
  const login = "user-S3cret:pass-S3cret@";
  for (const [start, host] of [["http://", "plain.example:81"], ["ftp://", "plain.example"]]) {
    assert.ok(refusal({ url: `${start}${login}${host}${tail}`, token: TOKEN }).message.includes(host!));
  }
  for (
    const host of ["localhost.example", "127.0.0.1.example", "[::2]", "0.0.0.0", "[::ffff:127.0.0.1]", "mylocalhost"]
  ) refusal({ url: `http://${login}${host}${tail}`, token: TOKEN });
  for (const url of ["", "path-S3cret", tail, "https://", `http://[${tail}`, `file://${tail}`, `data:${tail}`]) {
    refusal({ url, token: TOKEN });
  }
  refusal({ url: `https://${login}exa mple${tail}`, token: TOKEN });
});

Deno.test("https and loopback are accepted", () => {
  for (
    const host of ["localhost", "LocalHost", "a.localhost", "127.0.0.1", "127.9.8.7", "127.1", "[::1]", "[0:0::1]"]
  ) {
    new ApiClient({ url: `http://${host}:8080/x`, token: TOKEN });
  }
  const { host } = new ApiClient({ url: "https://user:pass@API.example:8443/x?y#z", token: TOKEN });
  assert.equal(host, "api.example:8443");
  assert.equal(new ApiClient({ url: " https://api.example:443/x\n", token: TOKEN }).host, "api.example");
});

Deno.test("a token that a header cannot contain is refused", async () => {
  const url = "http://localhost:8080/";
  for (
    const token of ["", " \n", `a\n${TOKEN}`, `${TOKEN}\rb`, `${TOKEN}\0`, `\x1b${TOKEN}`, `${TOKEN}€`, `${TOKEN}\x7f`]
  ) {
    refusal({ url, token });
  }
  await using server = serve(ok);
  for (const [token, sent] of [[`${TOKEN}\r\n`, TOKEN], [`\uFEFF ${TOKEN}\n\n`, TOKEN], ["käse brot", "käse brot"]]) {
    assert.deepEqual(await client(server.url, { token: token! }).post(RUN), { posted: true, tries: 1 });
    assert.equal(server.seen.at(-1)!.headers.get("authorization"), `Bearer ${sent}`);
  }
});

// Secrets

/** A URL with a secret in every part. */
function withSecrets(origin: string): string {
  const url = new URL(origin);
  return `${url.protocol}//user-S3cret:pass-S3cret@${url.host}/path-S3cret?key=query-S3cret#hash-S3cret`;
}

Deno.test("no failure shows a secret", async (t) => {
  async function check(name: string, origin: string, options: Partial<ApiClientOptions> = {}, signal?: AbortSignal) {
    await t.step(name, async () => {
      const api = client(withSecrets(origin), { delaysMs: [1], timeoutMs: 300, ...options });
      const result: PostResult = await api.post(RUN, signal);
      assert.ok(!result.posted);
      assertNoSecret(JSON.stringify(result));
      assert.ok(!/\n|:\/\//.test(result.reason), result.reason);
      assertNoSecret(Deno.inspect(api, { depth: 9, showHidden: true }) + JSON.stringify(api) + String(api));
    });
  }
  for (const status of [401, 404, 429, 500, 302]) {
    await using server = serve(({ path }) => new Response(path, { status, statusText: "path-S3cret" }));
    await check(`${status}`, server.url);
  }
  await using page = serve(html);
  await check("HTML", page.url);
  await check("no TLS there", page.url.replace("http:", "https:"));
  await using loop = serve(redirect(307, "/path-S3cret"));
  await check("redirect loop", loop.url);
  await using plain = serve(redirect(307, "http://user-S3cret@plain.invalid/path-S3cret"));
  await check("redirect to plain http", plain.url);
  await using away = serve(redirect(307, "https://user-S3cret@other.invalid/path-S3cret"));
  await check("redirect to a host that is not there", away.url);
  await using nowhere = serve(redirect(307, "http://[path-S3cret"));
  await check("redirect to nowhere", nowhere.url);
  await using hung = serveRaw("");
  await check("timeout", hung.url, { timeoutMs: 30 });
  await using reset = serveRaw("", "reset");
  await check("reset", reset.url);
  await using noise = serveRaw("SSH-2.0-path-S3cret\r\n", "first");
  await check("another protocol", noise.url);
  let gone: string;
  {
    await using short = serve(ok);
    gone = short.url;
  }
  await check("refused", gone);
  await check("a port that fetch blocks", "http://127.0.0.1:1");
  await check("stopped", page.url, {}, AbortSignal.abort(new Error("path-S3cret")));
});

Deno.test({
  name: "a host name that does not exist is retried",
  // Runs only with the permission: --allow-net=…,x.invalid
  ignore: Deno.permissions.querySync({ name: "net", host: "x.invalid:443" }).state !== "granted",
  async fn() {
    const result = await client(withSecrets("https://x.invalid"), { timeoutMs: 1000 }).post(RUN);
    assert.ok(!result.posted && !result.final);
    assert.equal(result.tries, 3);
    assert.match(result.reason, /^x\.invalid (cannot be found|did not answer within 1 s)$/);
  },
});

// The environment

/**
 * Calls {@linkcode apiFromEnvironment} with only these variables. It replaces `Deno.env.get` instead of the variables,
 * which other test files of the process use at the same time.
 */
function fromEnvironment(values: Record<string, string>): ApiClient | undefined {
  const get = Deno.env.get;
  try {
    Deno.env.get = (name) => values[name];
    return apiFromEnvironment();
  } finally {
    Deno.env.get = get;
  }
}

Deno.test("variables turn posting on and off", () => {
  const urls = { unset: {}, empty: { METRICS_API_URL: "" }, set: { METRICS_API_URL: "https://api.example/x" } };
  const tokens = {
    unset: {},
    empty: { METRICS_API_TOKEN: "" },
    blank: { METRICS_API_TOKEN: "\n" },
    set: { METRICS_API_TOKEN: TOKEN },
  };
  const enabled = [undefined, "true", "True", "TRUE", "1", "yes", "YES", "on", "On"];
  const disabled = ["", "false", "0", "no", "off", "2", "true ", "true\n", "y", "enabled"];
  const modes = [undefined, "", "live", "mock"];
  for (const [urlIs, url] of Object.entries(urls)) {
    for (const [tokenIs, token] of Object.entries(tokens)) {
      for (const flag of [...enabled, ...disabled]) {
        for (const mode of modes) {
          const values = {
            ...url,
            ...token,
            ...(flag === undefined ? {} : { METRICS_API_ENABLED: flag }),
            ...(mode === undefined ? {} : { TELEMETRY_TEST_MODE: mode }),
          };
          const on = urlIs === "set" && tokenIs === "set" && enabled.includes(flag!) && mode !== "mock";
          assert.equal(fromEnvironment(values)?.host, on ? "api.example" : undefined, JSON.stringify(values));
        }
      }
    }
  }
});

Deno.test("an invalid URL or token in the environment throws, unless posting is off", () => {
  const bad = { METRICS_API_URL: "http://plain.example/path-S3cret", METRICS_API_TOKEN: TOKEN };
  const usage = (error: unknown) => error instanceof TelemetryError && error.code === "usage";
  assert.throws(() => fromEnvironment(bad), usage);
  assert.throws(() => fromEnvironment({ ...bad, METRICS_API_URL: "path-S3cret" }), usage);
  assert.throws(() => fromEnvironment({ METRICS_API_URL: "https://x.example", METRICS_API_TOKEN: "a\nb" }), usage);
  assert.equal(fromEnvironment({ ...bad, METRICS_API_ENABLED: "off" }), undefined);
  assert.equal(fromEnvironment({ ...bad, TELEMETRY_TEST_MODE: "mock" }), undefined);
});

Deno.test("a proxy never receives what is for this machine, with and without permission to read its variables", async () => {
  await using proxy = serve(ok);
  await using server = serve(ok);
  // `fetch` reads the variables once in a process, so each has its own.
  const code = `const { ApiClient, newRun } = await import(${JSON.stringify(`${ROOT_URL}mod.ts`)});
    const api = new ApiClient({ url: ${JSON.stringify(server.url)}, token: "t", delaysMs: [] });
    console.log((await api.post(newRun({ run_id: "r", agent_name: "a", start_time: "t" }))).posted);`;
  const variables = [{ HTTP_PROXY: proxy.url }, { all_proxy: proxy.url, NO_PROXY: "example.com" }, {
    http_proxy: proxy.url,
    NO_PROXY: "127.0.0.0/8",
  }];
  for (const env of variables as Record<string, string>[]) {
    for (const access of [["-A"], ["--allow-net", "--allow-read"]]) {
      using folder = new TempFolder();
      Deno.writeTextFileSync(`${folder.path}/post.ts`, code);
      const { stdout, stderr } = await run(
        Deno.execPath(),
        ["run", "--no-prompt", ...access, `${folder.path}/post.ts`],
        { env },
      );
      assert.equal(stdout, "true\n", stderr);
    }
  }
  assert.deepEqual([proxy.seen.length, server.seen.length], [0, 6]);
});

testWith(["ipv6"], "http to an IPv6 loopback address is posted", async () => {
  const server = Deno.serve({ hostname: "::1", port: 0, onListen() {} }, ok);
  assert.deepEqual(await client(`http://[::1]:${server.addr.port}/`).post(RUN), { posted: true, tries: 1 });
  await server.shutdown();
});

Deno.test("a newline after the token is ignored", async () => {
  await using server = serve(ok);
  const api = fromEnvironment({ METRICS_API_URL: server.url, METRICS_API_TOKEN: `${TOKEN}\n` })!;
  assert.deepEqual(await api.post(RUN), { posted: true, tries: 1 });
  assert.equal(server.seen[0]!.headers.get("authorization"), `Bearer ${TOKEN}`);
});

Deno.test({
  name: "without permission to read the environment, posting is off",
  permissions: { env: false },
  fn: () => assert.equal(apiFromEnvironment(), undefined),
});
