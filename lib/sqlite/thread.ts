/**
 * A SQLite connection on a thread of its own, for work that would else wait for SQLite, or make SQLite wait.
 *
 * Deno wants read permission for a module that a worker loads, and the scripts have none for their own folder. So the
 * thread's program is a `data:` URL, which needs none: the text of one function, which uses nothing from outside of it.
 * @module
 */
import type { DatabaseSync, DatabaseSyncOptions, StatementSync } from "node:sqlite";
import { bindingOptions, type OpenOptions, type Row, sqliteError, type SqlValue } from "./connection.ts";

/** What the thread is asked for. */
type Request =
  | { id: number; open: string; options: DatabaseSyncOptions }
  | { id: number; exec: string }
  | { id: number; all: string; values: SqlValue[] }
  | { id: number; run: string; width: number; cells: SqlValue[] }
  | { id: number; close: true };

/** What it answers: an error as what can be told of it. */
type Answer = { id: number; result: unknown } | { id: number; failure: Failure };
type Failure = { name: string; message: string; errcode: unknown };
type Waiting = { resolve: (result: unknown) => void; reject: (error: unknown) => void };

/**
 * A connection on another thread. Requests are done in the order in which they are made; one may be made before the one
 * before it is done. Errors are {@linkcode TelemetryError}s, as with `Connection`.
 *
 * @example
 * ```ts
 * import { ThreadConnection } from "./thread.ts";
 *
 * await using db = await ThreadConnection.open(":memory:");
 * console.log((await db.all("SELECT ? AS one", 1))[0]?.["one"]); // 1
 * ```
 */
export class ThreadConnection implements AsyncDisposable {
  /** The file. */
  readonly path: string;
  readonly #worker: Worker;
  readonly #waiting = new Map<number, Waiting>();
  #lastId = 0;
  #closed = false;

  private constructor(path: string) {
    this.path = path;
    const program = `import { DatabaseSync } from "node:sqlite"; (${thread})(DatabaseSync, self);`;
    this.#worker = new Worker(`data:application/javascript,${encodeURIComponent(program)}`, { type: "module" });
    this.#worker.onmessage = ({ data }: MessageEvent<Answer>) => {
      const waiting = this.#waiting.get(data.id)!;
      this.#waiting.delete(data.id);
      if ("result" in data) waiting.resolve(data.result);
      else waiting.reject(sqliteError(thrownBy(data.failure), path));
    };
    this.#worker.onerror = (event) => {
      event.preventDefault();
      for (const { reject } of this.#waiting.values()) reject(new Error(event.message));
      this.#waiting.clear();
    };
  }

  /**
   * @param path a file, which is made when it is not there (unless `readOnly`), or `:memory:`
   * @param options how
   * @throws {TelemetryError} as `Connection.open` does
   */
  static async open(path: string, options: OpenOptions = {}): Promise<ThreadConnection> {
    const db = new ThreadConnection(path);
    try {
      await db.#ask({ open: path, options: bindingOptions(options) });
      return db;
    } catch (error) {
      db.#worker.terminate();
      throw error;
    }
  }

  /** Runs statements that give no rows. */
  async exec(sql: string): Promise<void> {
    await this.#ask({ exec: sql });
  }

  /** All rows. */
  async all(sql: string, ...values: SqlValue[]): Promise<Row[]> {
    return await this.#ask({ all: sql, values }) as Row[];
  }

  /**
   * Runs one statement for each row.
   *
   * @param sql with as many parameters as a row has cells
   * @param width how many cells a row has
   * @param cells those of all rows, one row after the other
   */
  async runAll(sql: string, width: number, cells: SqlValue[]): Promise<void> {
    await this.#ask({ run: sql, width, cells });
  }

  /** Does what was asked for, closes the file, and ends the thread. Closing twice does nothing. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    try {
      await this.#ask({ close: true });
    } finally {
      this.#worker.terminate();
    }
  }

  /** Closes it. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #ask(request: Record<string, unknown>): Promise<unknown> {
    const id = ++this.#lastId;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, ...request });
    });
  }
}

/** What was thrown on the thread, as the binding throws it here. */
function thrownBy({ name, message, errcode }: Failure): Error {
  if (name === "NotCapable") return new Deno.errors.NotCapable(message);
  return Object.assign(new Error(message), { errcode });
}

/** The thread's whole program. Uses nothing but what is passed to it. */
function thread(
  Database: typeof DatabaseSync,
  port: { onmessage: (event: { data: Request }) => void; postMessage(answer: Answer, moved?: Transferable[]): void },
): void {
  let db: DatabaseSync | undefined;
  const statements = new Map<string, StatementSync>();
  const prepared = (sql: string) => {
    let statement = statements.get(sql);
    if (statement === undefined) statements.set(sql, statement = db!.prepare(sql));
    return statement;
  };
  const done = (request: Request): unknown => {
    if ("open" in request) {
      db = new Database(request.open, request.options);
    } else if ("exec" in request) {
      db!.exec(request.exec);
    } else if ("all" in request) {
      return prepared(request.all).all(...request.values);
    } else if ("run" in request) {
      const statement = prepared(request.run);
      const { width, cells } = request;
      for (let at = 0; at < cells.length; at += width) statement.run(...cells.slice(at, at + width));
    } else {
      db?.close();
    }
    return null;
  };
  port.onmessage = ({ data }) => {
    try {
      const result = done(data);
      // Moved, not copied: what stays here would wait for the next garbage collection, 64 MB later.
      const cells = Array.isArray(result) ? (result as Row[]).flatMap((row) => Object.values(row)) : [];
      port.postMessage(
        { id: data.id, result },
        cells.flatMap((cell) => cell instanceof Uint8Array ? [cell.buffer as ArrayBuffer] : []),
      );
    } catch (thrown) {
      const { name, message, errcode } = thrown as Failure;
      port.postMessage({ id: data.id, failure: { name, message, errcode } });
    }
  };
}
