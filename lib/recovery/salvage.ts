/**
 * Takes everything that can still be read out of a damaged database, a copy of one or a backup: through SQLite around
 * the damage, and page by page where SQLite cannot go.
 * @module
 */
import { errorMessage, hasCode, TelemetryError } from "../errors.ts";
import { sidecarsOf } from "../layout.ts";
import { sizeOf } from "../fs/locate.ts";
import { isOverwrittenId, RUN_COLUMNS, RUN_STATUSES, SCHEMA_VERSION } from "../records.ts";
import { MARK_POSTED_SQL } from "../store/merge.ts";
import { quotedName, type ReadRow, readRows, rowidOf } from "../sqlite/rows.ts";
import { columnsOf, isOfContract, type TableName } from "../schema.ts";
import { assertAcceptsRuns, newerSchema } from "../sqlite/migrate.ts";
import { Connection, retryWhileLocked, type SqlValue, type Statement } from "../sqlite/connection.ts";
import { PageFile } from "./page_reader.ts";

/** The least that a database has: one page of the smallest size. */
const SMALLEST_DATABASE = 512;
/** How many rows are written at a time. */
const TRANSACTION_ROWS = 20_000;

/** How the tables are named that a virtual table of SQLite's own makes for itself (FTS3 to FTS5, R*Tree). */
const SHADOW = /_(content|data|idx|docsize|config|segments|segdir|stat|node|parent|rowid)$/;

/** A row that was found and is not in the new database. */
export interface RejectedRow {
  /** The file that it was found in. */
  file: string;
  /** The table, as far as it is known. */
  table: string | null;
  /** Its number in the table, or null. */
  rowid: number | null;
  /** The page that it is in, where no more is known of it. */
  page: number | null;
  /** Why. */
  rejected: string;
  /** Its cells. */
  cells: SqlValue[];
}

/** A column as SQLite describes it. */
interface Column {
  name: string;
  type: string;
  notNull: boolean;
  defaultValue: string | null;
  /** Whether the row number stands for it. */
  isRowid: boolean;
  /** Whether it is computed, and if so whether its value is stored. */
  generated: "no" | "virtual" | "stored";
}

/** Something that a schema names. */
interface SchemaObject {
  type: string;
  name: string;
  table: string;
  root: number;
  sql: string | null;
}

/** What must be known of a column to find its cell in a row. */
type StoredColumn = Pick<Column, "name" | "isRowid" | "generated">;

/** What is known of a source: its tables with their columns, and everything that people have added. */
interface Source {
  path: string;
  /** Whether SQLite finds nothing wrong with it. */
  isSound: boolean;
  objects: SchemaObject[];
  columns: Map<string, Column[]>;
  /** The tables that have no row numbers. */
  withoutRowid: Set<string>;
}

/**
 * Fills a new database from others. The sources come weakest first: what a later one has of a row replaces what an
 * earlier one had, but neither an ended state nor a mark of posting is taken back.
 */
export class Salvage {
  /** What could not be brought over, in words. */
  readonly notBrought: string[] = [];
  readonly #db: Connection;
  readonly #database: string;
  readonly #onRejected: (row: RejectedRow) => void;
  /** The rows of a source that its pages gave and that were refused: SQLite may yet give them. */
  readonly #doubtful = new Map<string, RejectedRow>();
  readonly #statements = new Map<string, Statement>();
  readonly #mark: Statement;
  readonly #rowids = new Map<string, string[]>();
  /** The tables of people that the new database has by now. */
  readonly #added = new Set<string>();
  /** What is made when all rows are there: indexes, triggers and views of people. */
  readonly #later = new Map<string, string>();
  #taken = 0;
  /** Runs that are marked as posted, and that no source has. */
  readonly #marked = new Set<string>();
  /** The numbers that AUTOINCREMENT must not give again. */
  readonly #sequences = new Map<string, SqlValue>();

  /**
   * @param db the new database, with the contract's tables
   * @param database the one that it will replace, for errors
   * @param onRejected is told of every row that the new database refuses, and of every one that makes no sense
   */
  constructor(db: Connection, database: string, onRejected: (row: RejectedRow) => void) {
    this.#db = db;
    this.#database = database;
    this.#onRejected = onRejected;
    this.#mark = db.prepare(MARK_POSTED_SQL);
  }

  /**
   * Takes what is in a file and its WAL. Nobody may have it open.
   *
   * @param path the file
   * @param rows whether to take its rows, or only to see whose it is
   * @returns whether SQLite found nothing wrong with it
   * @throws {TelemetryError} `newer_schema`: it is a later product's
   */
  takeFrom(path: string, rows: boolean = true): boolean {
    const source: Source = { path, isSound: false, objects: [], columns: new Map(), withoutRowid: new Set() };
    this.#read(path, (db) => {
      this.#readSchema(db, source);
      source.isSound = retryWhileLocked(() => db.check("quick")).length === 0;
    });
    // The WAL of another program shows that one's tables, and SQLite finds nothing wrong with them.
    if (!source.columns.has("agent_runs")) source.isSound = false;
    {
      using file = PageFile.open(path);
      if (!source.columns.has("agent_runs")) this.#seekSchema(file, source);
      // What pages hold may be old, so that SQLite has the last word.
      if (rows && !source.isSound) this.#transaction(() => this.#takePages(file, source));
    }
    if (!rows) return source.isSound;
    this.#read(path, (db) => this.#transaction(() => this.#takeRows(db, source)));
    for (const row of this.#doubtful.values()) this.#onRejected(row);
    this.#doubtful.clear();
    return source.isSound;
  }

  /** Does something with a file through SQLite, as far as it can be read like that. The file is not changed. */
  #read(path: string, work: (db: Connection) => void): void {
    // SQLite takes that for a new database, and removes its WAL.
    if ((sizeOf(path) ?? 0) < SMALLEST_DATABASE) return;
    const { wal, journal } = sidecarsOf(path);
    // What its WAL or journal holds is not put into it.
    const readOnly = [wal, journal].some((sidecar) => (sizeOf(sidecar) ?? 0) > 0);
    try {
      using db = readOnly ? Connection.open(path, { readOnly }) : Connection.openToRead(path);
      work(db);
    } catch (error) {
      if (!isUnreadable(error)) throw error;
    }
  }

  /** Takes what an open database has beside its runs; it may be live. */
  takeOthersFrom(db: Connection): void {
    const source: Source = { path: db.path, isSound: true, objects: [], columns: new Map(), withoutRowid: new Set() };
    this.#readSchema(db, source);
    source.columns.delete("agent_runs");
    this.#transaction(() => this.#takeRows(db, source));
  }

  /**
   * Makes what people had added, once all rows are there. What cannot be made, or would make the inserts of agents fail,
   * is named in `notBrought`.
   *
   * @param db the new database, opened again
   */
  finish(db: Connection): void {
    const mark = db.prepare(MARK_POSTED_SQL);
    db.transaction(() => {
      for (const run_id of this.#marked) mark.run(null, run_id);
      for (const [table, seq] of this.#sequences) keepSequence(db, table, seq);
    });
    for (const [name, sql] of this.#later) {
      try {
        db.transaction(() => {
          db.exec(sql);
          assertAcceptsRuns(db);
        });
      } catch (error) {
        this.notBrought.push(`${name}: ${errorMessage(error)}`);
      }
    }
  }

  /** In large transactions: the new database is scrap until it is whole. */
  #transaction(work: () => void): void {
    this.#taken = 0;
    this.#db.run("BEGIN");
    try {
      work();
    } finally {
      // What was taken before a source broke off stays.
      this.#db.run("COMMIT");
    }
  }

  #readSchema(db: Connection, source: Source): void {
    const rows = retryWhileLocked(() => db.all("SELECT type, name, tbl_name, rootpage, sql FROM sqlite_schema"));
    source.objects = rows.map(({ type, name, tbl_name, rootpage, sql }) =>
      schemaObject([type!, name!, tbl_name!, rootpage!, sql!])
    );
    this.#learnSchema(source, () => {
      try {
        return Number(db.get("SELECT max(version) AS version FROM schema_migrations")!["version"]);
      } catch {
        return SCHEMA_VERSION + 1;
      }
    });
  }

  /**
   * Learns the columns of every table by having SQLite make it in memory, and makes room for what people added.
   *
   * @param version tells the schema version, where that can be told
   */
  #learnSchema(source: Source, version: () => number): void {
    const virtual = source.objects.filter(({ sql }) => /^CREATE VIRTUAL/i.test(sql ?? "")).map(({ name }) => name);
    for (const { type, name, table, sql } of source.objects) {
      if (name.startsWith("sqlite_") || sql === null) continue;
      const owner = virtual.find((virtualTable) =>
        name === virtualTable || SHADOW.test(name) && name.replace(SHADOW, "") === virtualTable
      );
      if (owner !== undefined && !isOfContract(name)) {
        this.#leave(`table ${name}`, `it is of the virtual table ${owner}, which is to be made anew`);
      } else if (type === "table") {
        const declared = declaredBy(sql, name);
        if (declared === undefined) {
          this.#leave(`table ${name}`, "its declaration cannot be read");
          continue;
        }
        source.columns.set(
          name,
          declared.columns.map((column) => ({ ...column, name: plainName(name, column.name) })),
        );
        if (!declared.hasRowid) source.withoutRowid.add(name);
      } else if (!isOfContract(name) && !virtual.includes(table)) {
        this.#later.set(`${type} ${name}`, sql);
      }
    }
    // That is what tells: a damaged page may say any version.
    if (source.columns.get("agent_runs")?.some(({ name }) => name === "event_id")) {
      throw newerSchema(this.#database, version());
    }
    for (const [table, columns] of source.columns) {
      const { sql } = source.objects.find(({ type, name }) => type === "table" && name === table)!;
      if (!isOfContract(table)) this.#addTable(table, sql!);
      if (isOfContract(table) || this.#added.has(table)) this.#addColumns(table, columns, sql!);
    }
  }

  #leave(what: string, why: string): void {
    const line = `${what}: ${why}`;
    if (!this.notBrought.includes(line)) this.notBrought.push(line);
  }

  #addTable(name: string, sql: string): void {
    if (this.#added.has(name)) return;
    try {
      if (columnsIn(this.#db, name).length === 0) this.#db.exec(sql);
      this.#added.add(name);
    } catch (error) {
      this.#leave(`table ${name}`, errorMessage(error));
    }
  }

  /** Adds the columns that people have put into a contract table. */
  #addColumns(table: string, columns: Column[], sql: string): void {
    const there = new Set(columnsIn(this.#db, table).map(({ name }) => name.toLowerCase()));
    for (const { name, type, notNull, defaultValue, generated } of columns) {
      if (there.has(name.toLowerCase())) continue;
      if (generated !== "no") {
        this.#leave(`column ${table}.${name}`, "it is computed; add it again");
        continue;
      }
      const byDefault = defaultValue === null ? "" : ` DEFAULT (${defaultValue})`;
      // Without a default, every run of the log would be refused.
      const isRequired = notNull && defaultValue !== null;
      // People's declarations may have any text there, as long as it is quoted.
      const declared = /^[\w ]*(\([\d, ]+\))?$/.test(type) ? type : quotedName(type);
      const add = `ALTER TABLE ${quotedName(table)} ADD COLUMN ${quotedName(name)} ${declared}`;
      try {
        this.#db.exec(`${add}${isRequired ? " NOT NULL" : ""}${byDefault}`);
      } catch {
        try {
          this.#db.exec(add);
          this.#leave(`column ${table}.${name}`, `${byDefault.trim()} cannot be added to a table that is there`);
        } catch (error) {
          this.#leave(`column ${table}.${name}`, errorMessage(error));
          continue;
        }
      }
      const declaration = new RegExp(`\\W${RegExp.escape(name)}\\W[^,]*`, "i").exec(sql)?.[0] ?? "";
      const rule = /\b(COLLATE|CHECK|UNIQUE|REFERENCES)\b/i.exec(declaration)?.[0] ??
        (notNull && !isRequired ? "NOT NULL" : undefined);
      if (rule !== undefined) this.#leave(`column ${table}.${name}`, `it is there, but without its ${rule}`);
    }
  }

  /** Takes what SQLite can read. */
  #takeRows(db: Connection, source: Source): void {
    for (const [table, all] of source.columns) {
      if (!isOfContract(table) && !this.#added.has(table)) continue;
      const columns = all.filter(({ generated }) => generated === "no").map(({ name }) => name);
      // What people have declared does not always say the type of a cell.
      const exact = columns.some((name) => declarationOf(table, name) === undefined);
      const id = table === "agent_runs" ? columns.indexOf("run_id") : -1;
      let isWhole = false;
      let unread = 0;
      try {
        for (const rows of readRows(db, table, columns, { exact, onDamage: () => unread++ })) {
          for (const { rowid, cells } of rows) {
            if (source.isSound && !isWhole && isOverwrittenId(cells[id])) {
              // The quick check does not see that an index says otherwise.
              isWhole = retryWhileLocked(() => db.check("full")).length === 0;
              source.isSound = isWhole;
            }
            this.#take(source, table, columns, rowid, cells);
          }
        }
      } catch (error) {
        // What is laid over it may hide the table.
        if (!isUnreadable(error) && !hasCode(error, "io")) throw error;
        if (isOfContract(table) && source.isSound) throw error;
        if (!isOfContract(table)) {
          this.#leave(`table ${table}`, `some or all of its rows cannot be read (${errorMessage(error)})`);
        }
      }
      if (unread > 0 && source.withoutRowid.has(table)) {
        this.#leave(`table ${table}`, "its rows cannot be read: it has no row numbers");
      }
    }
    if (!source.objects.some(({ name }) => name === "sqlite_sequence")) return;
    try {
      for (const { name, seq } of db.all("SELECT name, seq FROM sqlite_sequence")) {
        this.#sequences.set(String(name), seq!);
      }
    } catch (error) {
      if (!isUnreadable(error) && (source.isSound || !hasCode(error, "io"))) throw error;
    }
  }

  /** Takes what is in the pages. */
  #takePages(file: PageFile, source: Source): void {
    const roots = new Map(
      source.objects.filter(({ type, root }) => type === "table" && root > 0).map(({ name, root }) => [name, root]),
    );
    const layouts = new Layouts(source.columns);
    if (source.columns.size === 0) {
      this.#leave("tables of your own", "the list of tables is lost; if there were any, their rows are in the copy");
    }
    for (const found of file.rows(roots, (table, cells) => layouts.find(table, cells) !== undefined)) {
      if ("broken" in found) {
        const place = { file: source.path, table: null, rowid: null, page: found.page };
        this.#onRejected({ ...place, rejected: found.broken, cells: [] });
        continue;
      }
      const { table, rowid, cells } = found;
      const layout = layouts.find(table, cells);
      if (layout !== undefined) {
        const { names, values } = layout.fit(rowid, cells);
        this.#take(source, layout.table, names, rowid, values, layout.table === table ? "page" : "guess");
      } else if (table !== undefined && source.columns.has(table)) {
        this.#reject(source, table, rowid, "its cells do not fit the table", cells, "page");
      } else if (source.columns.size === 0) {
        const place = { file: source.path, table: null, rowid, page: null };
        this.#onRejected({ ...place, rejected: "nothing says which table it is of", cells });
      }
    }
    this.#takeMarks(file, source);
    for (const table of source.withoutRowid) {
      this.#leave(`table ${table}`, "some of its rows may be lost: it has no row numbers");
    }
  }

  /** The marks of posting, by the indexes: they may be whole where the table is not. */
  #takeMarks(file: PageFile, { objects }: Source): void {
    const rootOf = (index: string) => objects.find(({ type, name }) => type === "index" && name === index)?.root;
    const [byId, byMark] = [rootOf("sqlite_autoindex_agent_runs_1"), rootOf("idx_runs_api_posted")];
    if (byId === undefined || byMark === undefined) return;
    const posted = new Set<number>();
    for (const [api_posted, rowid] of file.indexEntries(byMark)) {
      if (Number(api_posted) === 1) posted.add(Number(rowid));
    }
    const known = this.#db.prepare("SELECT 1 FROM agent_runs WHERE run_id=?");
    for (const [run_id, rowid] of file.indexEntries(byId)) {
      if (typeof run_id !== "string" || !posted.has(Number(rowid))) continue;
      if (this.#mark.run(null, run_id) === 0 && known.get(run_id) === undefined) this.#marked.add(run_id);
    }
  }

  /** Looks for the schema in the pages. What a table of people holds may look the same: only page 1 leads to it. */
  #seekSchema(file: PageFile, source: Source): void {
    const isSchema = (cells: SqlValue[]) =>
      cells.length === 5 && ["table", "index", "view", "trigger"].includes(cells[0] as string) &&
      typeof cells[1] === "string" && typeof cells[2] === "string" && typeof cells[3] === "bigint" &&
      (cells[4] === null || typeof cells[4] === "string" && /^CREATE /i.test(cells[4]));
    const found = new Map<string, SchemaObject>();
    for (const row of file.rows(new Map([["sqlite_schema", 1]]), (_, cells) => isSchema(cells), false)) {
      if ("broken" in row || !isSchema(row.cells)) continue;
      const object = schemaObject(row.cells);
      found.set(`${object.type} ${object.name}`, object);
    }
    source.objects = [...found.values()];
    source.columns.clear();
    source.withoutRowid.clear();
    this.#learnSchema(source, () => SCHEMA_VERSION + 1);
  }

  /** @param origin a `guess` only looks like a row of that table: it replaces none */
  #take(
    source: Source,
    table: string,
    columns: string[],
    rowid: ReadRow["rowid"],
    cells: SqlValue[],
    origin: "sql" | "page" | "guess" = "sql",
  ): void {
    if (this.#doubtful.size > 0) this.#doubtful.delete(`${table} ${rowid}`);
    const value = (name: string) => cells[columns.indexOf(name)];
    try {
      if (table === "schema_migrations" && Number(value("version")) > SCHEMA_VERSION) {
        if (source.isSound) throw newerSchema(this.#database, Number(value("version")));
        throw new TelemetryError("invalid_record", "there is no such version");
      }
      if (table === "agent_runs" && (typeof value("run_id") !== "string" || value("run_id") === "")) {
        throw new TelemetryError("invalid_record", "run_id is missing");
      }
      if (table === "agent_runs" && !source.isSound && isOverwrittenId(value("run_id"))) {
        throw new TelemetryError("invalid_record", "run_id is damaged");
      }
      // A key is not to be taken from a row that has no number.
      const number = rowid === undefined ? [] : this.#rowidOf(table);
      const statement = this.#statementFor(table, columns, number, origin);
      statement.run(...cells, ...number.map(() => BigInt(rowid!)));
    } catch (error) {
      if (!hasCode(error, "invalid_record")) throw error;
      return this.#reject(source, table, rowid, errorMessage(error.cause ?? error), cells, origin);
    }
    // What a transaction has changed is held in memory until it ends.
    if (++this.#taken % TRANSACTION_ROWS === 0) this.#db.exec("COMMIT; BEGIN");
    if (table !== "agent_runs" || Number(value("api_posted")) !== 1) return;
    this.#mark.run(value("api_posted_at") ?? null, value("run_id")!);
  }

  /**
   * What the new database calls the row numbers of a table of people, whose rows may have nothing else to be told apart
   * by. Nothing where the table has none, and for the contract's tables, which have keys.
   */
  #rowidOf(table: string): string[] {
    let names = this.#rowids.get(table);
    if (names === undefined) {
      const name = isOfContract(table) ? undefined : rowidOf(this.#db, table);
      names = name === undefined ? [] : [name];
      this.#rowids.set(table, names);
    }
    return names;
  }

  #statementFor(table: string, columns: string[], number: string[], origin: "sql" | "page" | "guess"): Statement {
    const conflict = origin === "guess" ? "IGNORE" : "REPLACE";
    const key = `${table} ${columns} ${number} ${conflict}`;
    let statement = this.#statements.get(key);
    if (statement === undefined) {
      const names = [...columns.map(quotedName), ...number];
      const insert = `INSERT OR ${conflict} INTO ${quotedName(table)} (${names}) VALUES (${names.map(() => "?")})`;
      try {
        statement = this.#db.prepare(table === "agent_runs" ? mergeOf(names) : insert);
      } catch (error) {
        if (isOfContract(table)) throw error;
        // It lacks a column that could not be added.
        throw new TelemetryError("invalid_record", errorMessage(error), { cause: error });
      }
      this.#statements.set(key, statement);
    }
    return statement;
  }

  #reject(
    { path: file }: Source,
    table: string,
    rowid: ReadRow["rowid"],
    rejected: string,
    cells: SqlValue[],
    origin: "sql" | "page" | "guess",
  ): void {
    const row = { file, table, rowid: rowid === undefined ? null : Number(rowid), page: null, rejected, cells };
    if (origin === "sql") this.#onRejected(row);
    else this.#doubtful.set(`${table} ${rowid}`, row);
  }
}

/** Has a table go on counting where it was, also when its last rows were deleted. */
function keepSequence(db: Connection, table: string, seq: SqlValue): void {
  if (db.run("UPDATE sqlite_sequence SET seq=max(seq, ?) WHERE name=?", seq, table) > 0) return;
  db.run("INSERT INTO sqlite_sequence (name, seq) SELECT name, ? FROM sqlite_schema WHERE name=?", seq, table);
}

/** Whether an error says that there is no more to be had through SQLite. */
function isUnreadable(error: unknown): boolean {
  return hasCode(error, "damaged", "not_a_database", "empty_database", "no_storage", "permission");
}

/**
 * The statement that brings a run over from another database.
 *
 * @param columns their names as SQL takes them
 */
function mergeOf(columns: string[]): string {
  const changed = columns.filter((column) => !['"run_id"', '"api_posted"'].includes(column)).map((column) => {
    const [was, is] = [`agent_runs.${column}`, `excluded.${column}`];
    if (column === '"api_retry_count"') return `${column}=coalesce(max(${was}, ${is}), ${was}, ${is})`;
    // Null says something too: only a mark is not taken back.
    return column === '"api_posted_at"' ? `${column}=coalesce(${is}, ${was})` : `${column}=${is}`;
  });
  return `INSERT INTO agent_runs (${columns}) VALUES (${columns.map(() => "?")})
    ON CONFLICT(run_id) DO UPDATE SET ${changed.join(", ") || "run_id=run_id"}
    WHERE coalesce(excluded.status, '')<>'running' OR coalesce(agent_runs.status, 'running')='running'`;
}

/** What a table has that somebody declared; undefined when SQLite does not take the declaration. */
function declaredBy(sql: string, table: string): { columns: Column[]; hasRowid: boolean } | undefined {
  using memory = Connection.open(":memory:");
  try {
    memory.exec(sql);
    return { columns: columnsIn(memory, table), hasRowid: rowidOf(memory, table) !== undefined };
  } catch {
    return undefined;
  }
}

function columnsIn(db: Connection, table: string): Column[] {
  const rows = db.all(`PRAGMA table_xinfo(${quotedName(table)})`);
  const keys = rows.filter(({ pk }) => Number(pk) > 0);
  return rows.map(({ name, type, notnull, dflt_value, pk, hidden }) => ({
    name: String(name),
    type: String(type),
    notNull: Number(notnull) === 1,
    defaultValue: dflt_value as string | null,
    isRowid: keys.length === 1 && Number(pk) === 1 && String(type).toUpperCase() === "INTEGER",
    generated: hidden === 2 ? "virtual" : hidden === 3 ? "stored" : "no",
  }));
}

/** How the rows of one table may look, in one order of its columns. */
class RowLayout {
  readonly table: string;
  readonly #columns: StoredColumn[];
  /** What each cell must be; nothing is known of tables that are not the contract's. */
  readonly #rules: ((cell: SqlValue) => boolean)[];
  /** A row has at least so many cells; columns that were added later are missing at its end. */
  readonly #least: number;
  readonly #created: number;

  constructor(table: string, columns: StoredColumn[]) {
    this.table = table;
    this.#columns = columns.filter(({ generated }) => generated !== "virtual");
    const names = this.#columns.map(({ name }) => name);
    this.#created = names.indexOf("created_at");
    const isRequired = (name: string) => /NOT NULL|TEXT PRIMARY KEY/.test(declarationOf(table, name) ?? "");
    this.#least = Math.max(1, names.findLastIndex(isRequired) + 1);
    this.#rules = this.#columns.map(({ name, isRowid }) => {
      const declaration = declarationOf(table, name);
      if (declaration === undefined) return () => true;
      if (isRowid) return (cell) => cell === null;
      if (isRequired(name)) return (cell) => isText(cell) && cell.length > 0;
      const rule = ruleOf(name, declaration);
      return (cell) => cell === null || rule(cell);
    });
  }

  /** Whether these may be cells of such a row. */
  fits(cells: SqlValue[]): boolean {
    return cells.length >= this.#least && cells.length <= this.#columns.length &&
      cells.every((cell, i) => this.#rules[i]!(cell));
  }

  /** Whether the time stands where it should: all else of an order of columns is text, or nothing. */
  isDated(cells: SqlValue[]): boolean {
    return this.#created < 0 || typeof cells[this.#created] === "string";
  }

  /** Whether cells of which nothing else is known are such a row: others may be text as well. */
  isCertain(cells: SqlValue[]): boolean {
    if (this.table === "agent_runs") return true;
    const when = this.table === "commits" ? this.#created : 3;
    return cells.length === this.#columns.length && /^\d{4}-\d\d-\d\d/.test(String(cells[when]));
  }

  /** The cells of a row by the names of their columns. */
  fit(rowid: number, cells: SqlValue[]): { names: string[]; values: SqlValue[] } {
    const names: string[] = [];
    const values: SqlValue[] = [];
    cells.forEach((cell, i) => {
      const { name, isRowid, generated } = this.#columns[i]!;
      if (generated !== "no") return;
      names.push(name);
      values.push(isRowid ? rowid : cell);
    });
    return { names, values };
  }
}

/**
 * What the cell of a contract column must be, when it is there. A page has no checksum: garbage is told by its types.
 */
function ruleOf(column: string, declaration: string): (cell: SqlValue) => boolean {
  if (column === "status") return (cell) => (RUN_STATUSES as readonly unknown[]).includes(cell);
  if (column === "api_posted") return (cell) => cell === 0n || cell === 1n;
  if (declaration.includes("datetime")) return (cell) => isText(cell) && /^\d{4}-\d\d/.test(cell);
  if (declaration.startsWith("INTEGER")) return (cell) => typeof cell === "bigint";
  return isText;
}

function isText(cell: SqlValue): cell is string {
  return typeof cell === "string";
}

/** How the contract declares a column; undefined where it knows of none. */
function declarationOf(table: string, column: string): string | undefined {
  if (!isOfContract(table)) return undefined;
  const columns = columnsOf(table as TableName);
  // Not what every object has, such as `constructor`: people may call a column so.
  return column === "custom_metadata" ? "TEXT" : Object.hasOwn(columns, column) ? columns[column] : undefined;
}

/** The name of a column; SQLite minds no capitals, and the contract's have none. */
function plainName(table: string, column: string): string {
  const plain = column.toLowerCase();
  return declarationOf(table, plain) === undefined ? column : plain;
}

/** An object of the schema from a row of it. SQLite minds no capitals in names, and the contract's have none. */
function schemaObject([type, name, table, root, sql]: SqlValue[]): SchemaObject {
  const plain = (name: SqlValue) =>
    isOfContract(String(name).toLowerCase()) ? String(name).toLowerCase() : String(name);
  return {
    type: String(type),
    name: plain(name!),
    table: plain(table!),
    root: Number(root),
    sql: sql as string | null,
  };
}

/** The layouts that rows of one file may have. */
class Layouts {
  readonly #known = new Map<string, RowLayout>();
  /** Those that a row may have which no page above leads to. Migrations are too short to be told from other rows. */
  readonly #guessed: RowLayout[];

  constructor(tables: Map<string, Column[]>) {
    for (const [table, columns] of tables) this.#known.set(table, new RowLayout(table, columns));
    this.#guessed = (["agent_runs", "commits", "run_events"] as const).flatMap((table) =>
      this.#known.get(table) ?? GUESSES.filter((layout) => layout.table === table)
    );
  }

  /**
   * The layout of a row: that of its table; where nothing says which that is, or a WAL may be another database's, of the
   * contract's table that it looks like.
   */
  find(table: string | undefined, cells: SqlValue[]): RowLayout | undefined {
    const known = table === undefined ? undefined : this.#known.get(table);
    if (known?.fits(cells)) return known;
    if (table !== undefined && !isOfContract(table)) return undefined;
    const fitting = this.#guessed.filter((layout) => layout.fits(cells) && layout.isCertain(cells));
    return fitting.find((layout) => layout.isDated(cells)) ?? fitting[0];
  }
}

/** The layouts in the field (contract, "Databases in the field"), for files whose schema is gone. */
const GUESSES: RowLayout[] = (() => {
  const layoutOf = (table: TableName, names: string[]) =>
    new RowLayout(
      table,
      names.map((name) => {
        const isRowid = declarationOf(table, name)!.startsWith("INTEGER PRIMARY KEY");
        return { name, isRowid, generated: "no" as const };
      }),
    );
  const without = (...names: string[]) => RUN_COLUMNS.filter((column) => !names.includes(column)) as string[];
  const later = ["product_family", "subdomain"];
  const v2 = without(...later);
  const recovered = v2.toSpliced(v2.indexOf("created_at"), 0, "custom_metadata");
  const orders = [[...RUN_COLUMNS], [...v2, ...later], [...recovered, ...later]];
  const v1 = without("insight_id", ...later);
  orders.push([...v1, "insight_id", ...later]);
  const others: TableName[] = ["commits", "run_events"];
  return [
    ...orders.map((order) => layoutOf("agent_runs", order)),
    ...others.map((table) => layoutOf(table, Object.keys(columnsOf(table)))),
  ];
})();
