/**
 * Writes rows on another thread, while this one prepares the next rows.
 * @module
 */
import { DIALECT, type Row, type SqlValue } from "./connection.ts";
import { sqliteError } from "./errors.ts";

/** How many requests may wait for the thread before `write` waits, too. */
const MAX_WAITING = 4;

/**
 * The program of the thread. It is a `data:` URL, because a worker needs read permission for the file of its module, and
 * the scripts have none for their own folder. Unlike `run`, `get` creates no object for a result.
 */
const PROGRAM = `
import { DatabaseSync } from "node:sqlite";
let db;
const statements = new Map();
function prepared(sql) {
  if (!statements.has(sql)) statements.set(sql, db.prepare(sql));
  return statements.get(sql);
}
onmessage = ({ data: { open, exec, get, write, close } }) => {
  try {
    let row;
    if (open) db = new DatabaseSync(open.path, open.options);
    if (exec) db.exec(exec);
    if (get) row = prepared(get).get();
    if (write) {
      const { sql, cells, width } = write;
      for (let at = 0; at < cells.length; at += width) prepared(sql).get(...cells.slice(at, at + width));
    }
    if (close) db.close();
    postMessage({ row });
  } catch ({ name, message, errcode }) {
    postMessage({ failure: { name, message, errcode } });
  }
};`;

interface Answer {
  row?: Row;
  failure?: { name: string; message: string; errcode: unknown };
}

/** A connection on another thread. Requests are carried out in order. After one has failed, all later ones fail. */
export class WriterThread implements AsyncDisposable {
  readonly #path: string;
  readonly #worker = new Worker(`data:application/javascript,${encodeURIComponent(PROGRAM)}`, { type: "module" });
  readonly #waiting: PromiseWithResolvers<Row | undefined>[] = [];
  #failure: Error | undefined;
  #hasEnded = false;

  private constructor(path: string) {
    this.#path = path;
    this.#worker.onmessage = ({ data }: MessageEvent<Answer>) => this.#receive(data);
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#hasEnded = true;
      while (this.#waiting.length > 0) {
        this.#receive({ failure: { name: "", message: event.message, errcode: undefined } });
      }
    };
  }

  /** Opens a database. Throws as `Connection.open` does. */
  static async open(path: string): Promise<WriterThread> {
    const thread = new WriterThread(path);
    try {
      await thread.#ask({ open: { path, options: DIALECT } });
      return thread;
    } catch (error) {
      thread.#worker.terminate();
      throw error;
    }
  }

  /** Runs one statement for each row. Returns before it is done: a failure is thrown by a later request. */
  async write(sql: string, rows: SqlValue[][]): Promise<void> {
    if (rows.length === 0) return;
    // One flat array is copied to the thread faster than an array for each row.
    const written = this.#ask({ write: { sql, cells: rows.flat(), width: rows[0]!.length } });
    written.catch(() => {});
    if (this.#waiting.length > MAX_WAITING || this.#failure) await (this.#waiting[0]?.promise ?? written);
  }

  async exec(sql: string): Promise<void> {
    await this.#ask({ exec: sql });
  }

  /** The first row. */
  async get(sql: string): Promise<Row | undefined> {
    return await this.#ask({ get: sql });
  }

  /** Closes the database and ends the thread. Throws what no request has thrown yet. */
  async [Symbol.asyncDispose](): Promise<void> {
    const hasThrown = this.#failure !== undefined;
    try {
      if (!this.#hasEnded) await this.#post({ close: true });
    } catch (error) {
      if (!hasThrown) throw error;
    } finally {
      this.#worker.terminate();
    }
  }

  #ask(request: Record<string, unknown>): Promise<Row | undefined> {
    return this.#failure ? Promise.reject(this.#failure) : this.#post(request);
  }

  #post(request: Record<string, unknown>): Promise<Row | undefined> {
    const answer = Promise.withResolvers<Row | undefined>();
    this.#waiting.push(answer);
    this.#worker.postMessage(request);
    return answer.promise;
  }

  #receive({ row, failure }: Answer): void {
    if (failure && !this.#failure) {
      const { name, message, errcode } = failure;
      const thrown = name === "NotCapable" ? new Deno.errors.NotCapable(message) : new Error(message);
      this.#failure = sqliteError(Object.assign(thrown, { errcode }), this.#path);
    }
    const answer = this.#waiting.shift();
    if (this.#failure) answer?.reject(this.#failure);
    else answer?.resolve(row);
  }
}
