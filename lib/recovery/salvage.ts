/**
 * Copies everything readable from damaged databases, their copies and backups into a new database: through SQLite, and
 * from single pages where SQLite fails.
 * @module
 */
import { errorMessage, hasCode } from "../errors.ts";
import { isOverwrittenId, SCHEMA_VERSION } from "../records.ts";
import { isInIndex, MARK_POSTED_SQL } from "../store/merge.ts";
import { parametersFor, quotedName, readRows, rowidOf } from "../sqlite/rows.ts";
import { isOfContract } from "../schema.ts";
import { assertAcceptsRuns, newerSchema } from "../sqlite/migrate.ts";
import { type Connection, retryWhileLocked, type SqlValue, type Statement } from "../sqlite/connection.ts";
import { type IsRow, PageFile } from "./page_reader.ts";
import {
  assertWritable,
  type Column,
  declarationOf,
  declareTables,
  isUnreadable,
  readColumns,
  readSchema,
  readSchemaFromPages,
  readThroughSqlite,
  type Row,
  RowShapes,
  type SchemaObject,
  versionOf,
} from "./source_schema.ts";

/** SQLite keeps the changes of a transaction in memory. */
const TRANSACTION_ROWS = 20_000;

/** A row that was found and is not in the new database. */
export interface RejectedRow {
  /** The file that it was found in. */
  file: string;
  /** Null where it is unknown. */
  table: string | null;
  rowid: number | null;
  /** Set where the row itself cannot be read. */
  page: number | null;
  rejected: string;
  cells: SqlValue[];
}

/** A database to copy from. */
interface Source {
  path: string;
  /** Whether SQLite finds no damage, so that every error is an error of ours. */
  isIntact: boolean;
  objects: SchemaObject[];
  /** The columns of each table that is copied. */
  tables: Map<string, Column[]>;
}

/**
 * How a row was read. A row from a `page` can be garbage or an old version, so that a refusal is not final until SQLite
 * has read the table. A `guess` only resembles rows of its table, and replaces none.
 */
type Origin = "sqlite" | "page" | "guess";

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
  readonly #onRejected: (row: RejectedRow) => void;
  readonly #inserts = new Map<string, { statement: Statement; hasRowid: boolean }>();
  readonly #mark: Statement;
  /** Refused rows from pages, which SQLite may still read better. */
  readonly #refused = new Map<string, RejectedRow>();
  /** User-defined indexes, triggers and views, which are created when all rows are there. */
  readonly #deferred = new Map<string, SchemaObject>();
  #written = 0;

  /**
   * @param db the new database, with the contract's tables
   * @param database the path that it will have, for messages
   * @param onRejected called for each row that is damaged, or that the new database refuses
   */
  constructor(db: Connection, database: string, onRejected: (row: RejectedRow) => void) {
    this.#db = db;
    this.#database = database;
    this.#onRejected = onRejected;
    this.#mark = db.prepare(MARK_POSTED_SQL);
  }

  /**
   * Copies a database file with its WAL. No other program may have it open.
   *
   * @param known whether a check has found it intact. Undefined: it is checked here
   * @returns whether SQLite found it intact
   * @throws {TelemetryError} `newer_schema` for the database of a later product
   */
  takeFrom(path: string, known: { isIntact: boolean | undefined } = { isIntact: undefined }): boolean {
    // 1. Read the schema, and create the tables and columns that users added.
    const source = this.takeSchemaFrom(path, known);
    // 2. Copy what pages hold. It may be outdated, so this comes before SQLite's answer.
    if (!source.isIntact) {
      using file = PageFile.open(path);
      this.#transaction(() => this.#takePages(file, source));
    }
    // 3. Copy what SQLite reads.
    readThroughSqlite(path, (db) => this.#transaction(() => this.#takeTables(db, source)));
    // 4. Report the rows that neither way gave.
    for (const row of this.#refused.values()) this.#onRejected(row);
    this.#refused.clear();
    return source.isIntact;
  }

  /**
   * Creates the user-defined tables and columns of a database file, without their rows.
   *
   * @throws {TelemetryError} `newer_schema` for the database of a later product
   */
  takeSchemaFrom(path: string, known: { isIntact: boolean | undefined }): Source {
    const source: Source = { path, isIntact: false, objects: [], tables: new Map() };
    let version = SCHEMA_VERSION + 1;
    readThroughSqlite(path, (db) => {
      source.objects = readSchema(db);
      version = versionOf(db);
      source.isIntact = known.isIntact ?? retryWhileLocked(() => db.check("quick")).length === 0;
    });
    if (!source.objects.some(({ name }) => name === "agent_runs")) {
      // The WAL of another program hides the tables, and SQLite finds no damage.
      source.isIntact = false;
      using file = PageFile.open(path);
      source.objects = readSchemaFromPages(file);
    }
    this.#createTables(source, version);
    // SQLite cannot read a table with a collation that it does not have; pages can be read all the same.
    source.isIntact &&= source.tables.has("agent_runs");
    this.hasRunsTable ||= source.tables.has("agent_runs");
    return source;
  }

  /** Copies all but the runs of an open database, which other programs may be writing to. */
  takeOthersFrom(db: Connection): void {
    const source: Source = { path: db.path, isIntact: true, objects: readSchema(db), tables: new Map() };
    this.#createTables(source, versionOf(db));
    source.tables.delete("agent_runs");
    this.#transaction(() => this.#takeTables(db, source));
  }

  /** Creates the user-defined indexes, triggers and views that work in the new database, which is open again as `db`. */
  finish(db: Connection): void {
    let pending = [...this.#deferred.values()];
    const refused = new Map<SchemaObject, unknown>();
    // A view can use others that come later: try again while some succeed.
    for (let before = Infinity; pending.length < before;) {
      before = pending.length;
      pending = pending.filter((object) => {
        try {
          db.transaction(() => {
            db.run(object.sql!);
            assertUsable(db, object);
          });
          return false;
        } catch (error) {
          refused.set(object, error);
          return true;
        }
      });
    }
    for (const object of pending) this.#leaveOut(`${object.type} ${object.name}`, refused.get(object));
  }

  #leaveOut(object: string, reason: unknown): void {
    const line = `${object}: ${typeof reason === "string" ? reason : errorMessage((reason as Error).cause ?? reason)}`;
    if (!this.notBrought.includes(line)) this.notBrought.push(line);
  }

  /** Commits even when `work` fails: rows that were copied before stay. */
  #transaction(work: () => void): void {
    this.#db.run("BEGIN");
    try {
      work();
    } finally {
      this.#db.run("COMMIT");
    }
  }

  #createTables(source: Source, version: number): void {
    const { tables, unusual } = declareTables(source.objects);
    // Only this column proves a later product: a damaged page can hold any version.
    if (tables.get("agent_runs")?.some(({ name }) => name === "event_id")) throw newerSchema(this.#database, version);
    for (const [object, reason] of unusual) this.#leaveOut(object, reason);
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

  /** Whether the new database has the table afterwards. */
  #createTable(name: string, columns: Column[], sql: string): boolean {
    const present = new Set(readColumns(this.#db, name).map((column) => column.name.toLowerCase()));
    if (present.size === 0) {
      try {
        this.#db.run(sql);
        assertWritable(this.#db, name);
      } catch (error) {
        this.#db.run(`DROP TABLE IF EXISTS ${quotedName(name)}`);
        this.#leaveOut(`table ${name}`, error);
        return false;
      }
    }
    const missing = present.size === 0 ? [] : columns.filter((column) => !present.has(column.name.toLowerCase()));
    for (const column of missing) column.isCopied = this.#addColumn(name, column, sql);
    return true;
  }

  /** Whether the new database has the column afterwards. */
  #addColumn(table: string, { name, type, notNull, defaultValue }: Column, tableSql: string): boolean {
    const column = `column ${table}.${name}`;
    // A type can be any text if it is quoted.
    const declaredType = /^[\w ]*(\([\d, ]+\))?$/.test(type) ? type : quotedName(type);
    const add = `ALTER TABLE ${quotedName(table)} ADD COLUMN ${quotedName(name)} ${declaredType}`;
    // NOT NULL without a default would refuse every run of the log.
    const constraints = defaultValue === null ? "" : `${notNull ? " NOT NULL" : ""} DEFAULT (${defaultValue})`;
    try {
      try {
        this.#db.run(add + constraints);
      } catch (error) {
        // A table with rows takes only constants as defaults.
        this.#db.run(add);
        this.#leaveOut(column, `it was added without its default (${errorMessage(error)})`);
      }
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
    for (const [table, declared] of source.tables) {
      const columns = declared.filter(({ isCopied }) => isCopied).map(({ name }) => name);
      // The declaration of a user-defined column does not determine the types of its cells.
      const exact = columns.some((name) => declarationOf(table, name) === undefined);
      const id = table === "agent_runs" ? columns.indexOf("run_id") : -1;
      try {
        for (const rows of readRows(db, table, columns, { exact })) {
          for (const { rowid, cells } of rows) {
            const row: Row = { table, columns, rowid, cells };
            // The quick check does not compare the table with its indexes.
            const isDamaged = isOverwrittenId(cells[id]) && !isInIndex(db, cells[id] as string);
            if (isDamaged) this.#reject(source, row, "run_id is damaged", "sqlite");
            else this.#take(source, row, "sqlite");
          }
        }
      } catch (error) {
        // The WAL of another database can hide the table.
        if (!isUnreadable(error) && !hasCode(error, "io") || isOfContract(table) && source.isIntact) throw error;
        if (!isOfContract(table)) this.#leaveOut(`table ${table}`, `some rows cannot be read (${errorMessage(error)})`);
      }
    }
  }

  #takePages(file: PageFile, source: Source): void {
    const { path, objects, tables } = source;
    const roots = objects.filter(({ type, root }) => type === "table" && root > 0)
      .map(({ name, root }) => [name, root] as const);
    const isSchemaLost = objects.length === 0;
    if (isSchemaLost) this.#leaveOut("user-defined tables", "the schema is lost: any rows are in the kept database");
    const shapes = new RowShapes(tables);
    const isRow: IsRow = (table, cells) => shapes.identify(table, 0, cells) !== undefined;
    for (const found of file.rows(new Map(roots), isRow)) {
      if ("broken" in found) {
        const { page, broken: rejected } = found;
        this.#onRejected({ file: path, table: null, rowid: null, page, rejected, cells: [] });
        continue;
      }
      const { table, rowid, cells } = found;
      const row = shapes.identify(table, rowid, cells);
      if (row !== undefined) {
        this.#take(source, row, row.table === table ? "page" : "guess");
      } else if (table !== undefined && tables.has(table)) {
        this.#reject(source, { table, columns: [], rowid, cells }, "its cells do not fit the table", "page");
      } else if (isSchemaLost) {
        this.#onRejected({ file: path, table: null, rowid, page: null, rejected: "its table is unknown", cells });
      }
    }
  }

  #take(source: Source, row: Row, origin: Origin): void {
    const { table, columns, rowid, cells } = row;
    if (this.#refused.size > 0) this.#refused.delete(`${table} ${rowid}`);
    const value = (name: string) => cells[columns.indexOf(name)];
    if (table === "schema_migrations" && Number(value("version")) > SCHEMA_VERSION) {
      if (source.isIntact) throw newerSchema(this.#database, Number(value("version")));
      return this.#reject(source, row, "there is no such version", origin);
    }
    if (table === "agent_runs" && (typeof value("run_id") !== "string" || value("run_id") === "")) {
      return this.#reject(source, row, "run_id is missing", origin);
    }
    if (table === "agent_runs" && origin !== "sqlite" && isOverwrittenId(value("run_id"))) {
      return this.#reject(source, row, "run_id is damaged", origin);
    }
    try {
      const { statement, hasRowid } = this.#insertFor(row, origin);
      statement.run(...cells, ...hasRowid ? [BigInt(rowid!)] : []);
    } catch (error) {
      if (!hasCode(error, "invalid_record")) throw error;
      return this.#reject(source, row, errorMessage(error.cause ?? error), origin);
    }
    if (++this.#written % TRANSACTION_ROWS === 0) this.#db.exec("COMMIT; BEGIN");
    if (table === "agent_runs" && Number(value("api_posted")) === 1) {
      this.#mark.run(value("api_posted_at") ?? null, value("run_id")!);
    }
  }

  /** The statement for a row. Rows of user-defined tables keep their numbers, since they may have no other key. */
  #insertFor({ table, columns, rowid, cells }: Row, origin: Origin): { statement: Statement; hasRowid: boolean } {
    const parameters = parametersFor(cells);
    const key = `${table} ${columns} ${parameters} ${origin === "guess"} ${rowid === undefined}`;
    let insert = this.#inserts.get(key);
    if (insert === undefined) {
      const number = isOfContract(table) || rowid === undefined ? undefined : rowidOf(this.#db, table);
      const names = [...columns.map(quotedName), ...number === undefined ? [] : [number]];
      if (number !== undefined) parameters.push("?");
      const into = `INTO ${quotedName(table)} (${names}) VALUES (${parameters})`;
      const sql = table === "agent_runs"
        ? `INSERT ${into} ${onRunConflict(columns)}`
        : `INSERT OR ${origin === "guess" ? "IGNORE" : "REPLACE"} ${into}`;
      insert = { statement: this.#db.prepare(sql), hasRowid: number !== undefined };
      this.#inserts.set(key, insert);
    }
    return insert;
  }

  #reject({ path }: Source, { table, rowid, cells }: Row, rejected: string, origin: Origin): void {
    const number = rowid === undefined ? null : Number(rowid);
    const row: RejectedRow = { file: path, table, rowid: number, page: null, rejected, cells };
    if (origin !== "sqlite") this.#refused.set(`${table} ${rowid}`, row);
    else {
      this.#refused.delete(`${table} ${rowid}`);
      this.#onRejected(row);
    }
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
