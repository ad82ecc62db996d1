/**
 * Writes rows on another thread, while this one prepares the next rows.
 * @module
 */
import { TelemetryError } from "../errors.ts";
import { DIALECT, type Row, type SqlValue } from "./connection.ts";
import { sqliteError } from "./errors.ts";

/** How many requests may wait for the thread before `write` waits, too. Each holds its rows in memory. */
const MAX_WAITING = 8;

/**
 * The program of the thread. It is a `data:` URL, because a worker needs read permission for the file of its module, and
 * the scripts have none for their own folder. Unlike `run`, `get` creates no object for a result.
 */
const PROGRAM = `
import { DatabaseSync } from "node:sqlite";
const statements = new Map();
let db, failure;
onmessage = ({ data: { open, sql, rows } }) => {
  let row;
  try {
    if (open) db = new DatabaseSync(...open);
    else if (!sql) db.close();
    else if (!failure && !rows) db.exec(sql);
    else if (!failure) {
      if (!statements.has(sql)) statements.set(sql, db.prepare(sql));
      for (const cells of rows) row = statements.get(sql).get(...cells);
    }
  } catch ({ message, errcode }) {
    failure ??= { message, errcode };
  }
  postMessage({ row, failure });
};`;

/** What the thread is to do; to close the database where it is empty. */
interface Request {
  open?: [path: string, options: typeof DIALECT];
  sql?: string;
  rows?: SqlValue[][];
}

interface Answer {
  /** What the statement returned for the last row. */
  row?: Row;
  /** The first error of the thread. Nothing is written after it. */
  failure?: { message: string; errcode?: number };
}

/** A connection on another thread. Requests are carried out in order. After one has failed, all later ones fail. */
export class WriterThread implements AsyncDisposable {
  readonly #worker = new Worker(`data:application/javascript,${encodeURIComponent(PROGRAM)}`, { type: "module" });
  readonly #waiting: PromiseWithResolvers<Row | undefined>[] = [];
  /** Why the thread has ended by itself. */
  #ended: TelemetryError | undefined;

  constructor(path: string) {
    this.#worker.onmessage = ({ data: { row, failure } }: MessageEvent<Answer>) => {
      const { resolve, reject } = this.#waiting.shift()!;
      failure ? reject(sqliteError(Object.assign(new Error(failure.message), failure), path)) : resolve(row);
    };
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#ended = new TelemetryError("io", `the thread that writes ${path} has ended: ${event.message}`);
      for (const { reject } of this.#waiting.splice(0)) reject(this.#ended);
    };
    this.#ask({ open: [path, DIALECT] }).catch(() => {});
  }

  /** As `exec`, or runs one statement for each row. Returns before it is done: a later request throws what goes wrong. */
  async write(sql: string, rows?: SqlValue[][]): Promise<void> {
    if (rows?.length === 0) return;
    this.#ask(rows ? { sql, rows } : { sql }).catch(() => {});
    if (this.#waiting.length > MAX_WAITING) await this.#waiting[0]!.promise;
  }

  /** Runs statements that give no rows. */
  async exec(sql: string): Promise<void> {
    await this.#ask({ sql });
  }

  /** The first row of a query. */
  async get(sql: string): Promise<Row | undefined> {
    return await this.#ask({ sql, rows: [[]] });
  }

  /** Closes the database and ends the thread. Throws nothing: `exec` and `get` have thrown what went wrong before. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#ask({}).catch(() => {});
    this.#worker.terminate();
  }

  #ask(request: Request): Promise<Row | undefined> {
    if (this.#ended) return Promise.reject(this.#ended);
    const answer = Promise.withResolvers<Row | undefined>();
    this.#waiting.push(answer);
    this.#worker.postMessage(request);
    return answer.promise;
  }
}
