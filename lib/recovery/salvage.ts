/**
 * Copies everything readable from damaged databases, their copies and backups into a new database: from an intact one
 * through SQLite, from a damaged one page by page.
 * @module
 */
import { errorMessage, hasCode } from "../errors.ts";
import { isOverwrittenId, SCHEMA_VERSION } from "../records.ts";
import { isInIndex, MARK_POSTED_SQL } from "../store/merge.ts";
import { parametersFor, quotedName, readRows, rowidOf, TextBytes } from "../sqlite/rows.ts";
import { isContractTable, isOfContract } from "../schema.ts";
import { assertAcceptsRuns, newerSchema } from "../sqlite/migrate.ts";
import { Connection, retryWhileLocked, type Statement } from "../sqlite/connection.ts";
import { PageFile } from "./page_reader.ts";
import { type Row, RowShapes, rowsInPages } from "./row_shapes.ts";
import {
  assertWritable,
  type Column,
  declarationOf,
  declareTables,
  isLaterProducts,
  readColumns,
  readSchema,
  readSchemaFromPages,
  readThroughSqlite,
  type SchemaObject,
} from "./source_schema.ts";

/** How much of a rejected row is reported, in characters. */
const SHOWN_CHARS = 64 * 1024;

/** A database to copy from. */
interface Source {
  path: string;
  /** Whether SQLite finds no damage. */
  isIntact: boolean;
  objects: SchemaObject[];
  /** The columns of each table that is copied. */
  tables: Map<string, Column[]>;
}

/** Inserts rows of one table. */
interface Insert {
  statement: Statement;
  /** Whether the last parameter is the row number. */
  hasNumber: boolean;
}

/**
 * Fills a new database from several sources, the least trusted first: a row of a later source replaces the same row of
 * an earlier one. A run that ended never becomes `running` again, and an `api_posted` marker is never removed.
 *
 * What is not a run, an event or a commit is copied whole or not at all: `notBrought` names what cannot work.
 */
export class Salvage {
  /** User-defined objects that were not copied, each with the reason. */
  readonly notBrought: string[] = [];
  /** Whether a source has declared the table of runs, which shows that its schema is not a later product's. */
  hasRunsTable = false;
  readonly #db: Connection;
  readonly #database: string;
  readonly #onRejected: (row: { rejected: string }) => void;
  readonly #inserts = new Map<string, Insert>();
  /** The insert of the last row whose text can all be decoded. */
  #last: { columns: string[]; insert: Insert } | undefined;
  readonly #mark: Statement;
  /** User-defined indexes, triggers and views, which are created when all rows are there. */
  readonly #deferred = new Map<string, SchemaObject>();

  /** `db` has the contract's tables, and `database` is the path that it will have, for messages. */
  constructor(db: Connection, database: string, onRejected: (row: { rejected: string }) => void) {
    this.#db = db;
    this.#database = database;
    this.#onRejected = onRejected;
    this.#mark = db.prepare(MARK_POSTED_SQL);
  }

  /**
   * Copies a database file with its WAL. No other program may have it open. Returns whether SQLite finds it intact, which
   * is checked here unless `isIntact` says it.
   */
  takeFrom(path: string, isIntact?: boolean): boolean {
    const source = this.takeSchemaFrom(path, isIntact);
    // SQLite cannot read a table with a collation that it does not have; pages can be read all the same.
    const isReadable = source.objects.every(({ type, name }) =>
      type !== "table" || !isContractTable(name) || source.tables.has(name)
    );
    if (source.isIntact && isReadable) {
      using db = Connection.openToRead(path);
      this.#takeTables(db, source);
    } else {
      using file = new PageFile(path);
      this.#db.transaction(() => this.#takePages(file, source));
    }
    return source.isIntact;
  }

  /** Creates the user-defined tables and columns of a database file, without their rows. */
  takeSchemaFrom(path: string, isIntact?: boolean): Source {
    const source: Source = { path, isIntact: false, objects: [], tables: new Map() };
    readThroughSqlite(path, (db) => {
      source.objects = readSchema(db);
      source.isIntact = isIntact ?? retryWhileLocked(() => db.check("quick")).length === 0;
    });
    if (!source.objects.some(({ name }) => name === "agent_runs")) {
      // The WAL of another program hides the tables, and SQLite finds no damage.
      using file = new PageFile(path);
      source.objects = readSchemaFromPages(file);
      source.isIntact = false;
    }
    this.#createTables(source);
    this.hasRunsTable ||= source.tables.has("agent_runs");
    return source;
  }

  /** Copies all but the runs of an open database, which other programs may be writing to. */
  takeOthersFrom(db: Connection): void {
    const source: Source = { path: db.path, isIntact: true, objects: readSchema(db), tables: new Map() };
    this.#createTables(source);
    source.tables.delete("agent_runs");
    this.#takeTables(db, source);
  }

  /** Creates the user-defined indexes, triggers and views that work in the new database. */
  finish(): void {
    for (const [what, object] of this.#deferred) {
      try {
        this.#db.transaction(() => {
          this.#db.run(object.sql!);
          assertUsable(this.#db, object);
        });
      } catch (error) {
        this.#leaveOut(what, error);
      }
    }
  }

  #leaveOut(object: string, reason: unknown): void {
    const line = `${object}: ${typeof reason === "string" ? reason : errorMessage((reason as Error).cause ?? reason)}`;
    if (!this.notBrought.includes(line)) this.notBrought.push(line);
  }

  #createTables(source: Source): void {
    const tables = declareTables(source.objects, (object, reason) => this.#leaveOut(object, reason));
    if (isLaterProducts(tables)) throw newerSchema(this.#database, `${SCHEMA_VERSION + 1} or later`);
    for (const object of source.objects) {
      const { type, name, sql } = object;
      const columns = tables.get(name);
      if (type === "table" && columns !== undefined && this.#createTable(name, columns, sql!)) {
        source.tables.set(name, columns);
      } else if (type !== "table" && sql !== null && !isOfContract(name)) {
        this.#deferred.set(`${type} ${name}`, object);
      }
    }
  }

  /** Creates a table, or adds the columns that it lacks. Returns whether the new database has the table afterwards. */
  #createTable(table: string, columns: Column[], sql: string): boolean {
    const present = readColumns(this.#db, table).map(({ name }) => name);
    if (present.length === 0) {
      try {
        this.#db.transaction(() => {
          this.#db.run(sql);
          assertWritable(this.#db, table);
        });
        return true;
      } catch (error) {
        this.#leaveOut(`table ${table}`, error);
        return false;
      }
    }
    for (const column of columns) {
      if (!present.includes(column.name)) column.isCopied = this.#addColumn(table, column, sql);
    }
    return true;
  }

  /** Returns whether the new database has the column afterwards. */
  #addColumn(table: string, { name, type, notNull, defaultValue }: Column, tableSql: string): boolean {
    const column = `column ${table}.${name}`;
    // A type can be any text if it is quoted.
    const declaredType = /^[\w ]*(\([\d, ]+\))?$/.test(type) ? type : quotedName(type);
    // NOT NULL without a default would refuse every run of the log.
    const constraints = defaultValue === null ? "" : `${notNull ? " NOT NULL" : ""} DEFAULT (${defaultValue})`;
    try {
      this.#db.run(`ALTER TABLE ${quotedName(table)} ADD COLUMN ${quotedName(name)} ${declaredType}${constraints}`);
    } catch (error) {
      this.#leaveOut(column, error);
      return false;
    }
    const declaration = new RegExp(`\\W${RegExp.escape(name)}\\W[^,]*`, "i").exec(tableSql)?.[0] ?? "";
    const lost = /\b(COLLATE|CHECK|UNIQUE|REFERENCES)\b/i.exec(declaration)?.[0] ??
      (notNull && defaultValue === null ? "NOT NULL" : undefined);
    if (lost !== undefined) this.#leaveOut(column, `it was added without its ${lost}`);
    return true;
  }

  #takeTables(db: Connection, source: Source): void {
    // The quick check does not compare the table with its indexes.
    const isDamagedId = (id: string) => isOverwrittenId(id) && !isInIndex(db, id);
    for (const [table, declared] of source.tables) {
      const columns = declared.filter(({ isCopied }) => isCopied).map(({ name }) => name);
      // The declaration of a user-defined column does not determine the types of its cells.
      const exact = columns.some((name) => declarationOf(table, name) === undefined);
      this.#db.transaction(() => {
        for (const { rowid, cells } of readRows(db, table, columns, { exact }).flatMap((rows) => rows)) {
          this.#take(source, { table, columns, rowid, cells }, isDamagedId);
        }
      });
    }
  }

  #takePages(file: PageFile, source: Source): void {
    const { objects, tables } = source;
    const isSchemaLost = objects.length === 0;
    if (isSchemaLost) this.#leaveOut("user-defined tables", "the schema is lost: any rows are in the kept database");
    for (const { page, table, rowid, cells, row } of rowsInPages(file, objects, new RowShapes(tables))) {
      if (cells === undefined) this.#reject(source, {}, "a row cannot be read", page);
      else if (row !== undefined) this.#take(source, row, isOverwrittenId);
      else if (isSchemaLost) this.#reject(source, { rowid, cells }, "its table is unknown");
      else if (table !== undefined && tables.has(table)) {
        this.#reject(source, { table, rowid, cells }, "its cells do not fit the table");
      }
    }
  }

  #take(source: Source, row: Row, isDamagedId: (id: string) => boolean): void {
    const { table, columns, cells } = row;
    const value = (name: string) => cells[columns.indexOf(name)];
    if (table === "schema_migrations" && Number(value("version")) > SCHEMA_VERSION) {
      return this.#reject(source, row, "there is no such version");
    }
    if (table === "agent_runs") {
      const id = value("run_id");
      if (typeof id !== "string" || id === "") return this.#reject(source, row, "run_id is missing");
      if (isDamagedId(id)) return this.#reject(source, row, "run_id is damaged");
    }
    try {
      this.#insert(row);
    } catch (error) {
      if (!hasCode(error, "invalid_record")) throw error;
      return this.#reject(source, row, errorMessage(error.cause ?? error));
    }
    if (table === "agent_runs" && Number(value("api_posted")) === 1) {
      this.#mark.run(value("api_posted_at") ?? null, value("run_id")!);
    }
  }

  /** Inserts or replaces a row. Rows of user-defined tables keep their numbers, since they may have no other key. */
  #insert(row: Row): void {
    const { columns, rowid, cells } = row;
    const isPlain = !cells.some((cell) => cell instanceof TextBytes);
    // The rows of an intact table share their columns. Building a key for each of them would take a tenth of the time.
    const insert = isPlain && this.#last?.columns === columns ? this.#last.insert : this.#insertFor(row);
    if (isPlain) this.#last = { columns, insert };
    // Unlike `run`, `get` creates no object for a result.
    if (insert.hasNumber) insert.statement.get(...cells, BigInt(rowid!));
    else insert.statement.get(...cells);
  }

  #insertFor({ table, columns, rowid, cells }: Row): Insert {
    const parameters = parametersFor(cells);
    const key = `${table} ${columns} ${parameters}`;
    let insert = this.#inserts.get(key);
    if (insert === undefined) {
      const number = isContractTable(table) || rowid === undefined ? undefined : rowidOf(this.#db, table);
      const names = [...columns.map(quotedName), ...number === undefined ? [] : [number]];
      if (number !== undefined) parameters.push("?");
      const into = `INTO ${quotedName(table)} (${names}) VALUES (${parameters})`;
      const sql = table === "agent_runs" ? `INSERT ${into} ${onRunConflict(columns)}` : `INSERT OR REPLACE ${into}`;
      insert = { statement: this.#db.prepare(sql), hasNumber: number !== undefined };
      this.#inserts.set(key, insert);
    }
    return insert;
  }

  #reject({ path }: Source, row: Partial<Row>, rejected: string, page: number | null = null): void {
    const rowid = row.rowid === undefined ? null : Number(row.rowid);
    const text = JSON.stringify(
      row.cells ?? [],
      (_, cell) => typeof cell === "bigint" ? String(cell) : cell instanceof Uint8Array ? `x'${cell.toHex()}'` : cell,
    );
    const shown = { text: text.slice(0, SHOWN_CHARS), length: text.length };
    const found = { file: path, table: row.table ?? null, rowid, page, rejected, ...shown };
    this.#onRejected(found);
  }
}

/** Replaces a run by a later copy of it. NULL replaces values, too, but no marker (see MARK_POSTED_SQL). */
function onRunConflict(columns: string[]): string {
  const changes = columns.filter((name) => !["run_id", "api_posted"].includes(name)).map((name) => {
    const column = quotedName(name);
    const [old, copy] = [`agent_runs.${column}`, `excluded.${column}`];
    if (name === "api_retry_count") return `${column}=coalesce(max(${old}, ${copy}), ${old}, ${copy})`;
    return name === "api_posted_at" ? `${column}=coalesce(${copy}, ${old})` : `${column}=${copy}`;
  });
  return `ON CONFLICT(run_id) DO UPDATE SET ${changes.join(", ") || "run_id=run_id"}
    WHERE coalesce(excluded.status, '')<>'running' OR coalesce(agent_runs.status, 'running')='running'`;
}

/** Proves that a new object works and that agents can still write runs. Changes nothing. */
function assertUsable(db: Connection, { type, name, table }: SchemaObject): void {
  if (type === "view") db.prepare(`SELECT * FROM ${quotedName(name)}`);
  const isTable = db.get("SELECT 1 FROM sqlite_schema WHERE type='table' AND name=?", table) !== undefined;
  if (type === "trigger" && isTable) assertWritable(db, table);
  assertAcceptsRuns(db);
}
