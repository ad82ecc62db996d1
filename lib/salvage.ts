/**
 * Takes everything that can still be read out of a damaged database, a copy of one or a backup: through SQLite around
 * the damage, and page by page where SQLite cannot go.
 * @module
 */
import { hasCode, messageOf, TelemetryError } from "./errors.ts";
import { sidecarsOf, sizeOf } from "./layout.ts";
import { RUN_COLUMNS, RUN_STATUSES, SCHEMA_VERSION } from "./records.ts";
import { MARK } from "./replay.ts";
import { quotedName, readRows } from "./row_reader.ts";
import { columnsOf, isOfContract, newerSchema, proveInsert, type TableName } from "./schema.ts";
import { Connection, retryLocked, type SqlValue, type Statement } from "./sqlite.ts";
import { PageFile } from "./sqlite_pages.ts";

/** How many rows are written at a time. */
const TRANSACTION_ROWS = 20_000;

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

/** What is known of a source: its tables with their columns, and everything that people have added. */
interface Source {
  path: string;
  objects: SchemaObject[];
  columns: Map<string, Column[]>;
}

/**
 * Fills a new database from others. The sources come weakest first: what a later one has of a row replaces what an
 * earlier one had, but neither an ended state nor a mark of posting is taken back.
 */
export class Salvage {
  /** What could not be brought over, in words. */
  readonly notBrought: string[] = [];
  readonly #db: Connection;
  readonly #onRejected: (row: RejectedRow) => void;
  readonly #statements = new Map<string, Statement>();
  /** The tables of people that the new database has by now. */
  readonly #added = new Set<string>();
  /** What is made when all rows are there: indexes, triggers and views of people. */
  readonly #later = new Map<string, string>();
  #taken = 0;
  /** Runs that are marked as posted, and that no source has. */
  readonly #marked = new Set<string>();

  /**
   * @param db the new database, with the contract's tables
   * @param onRejected is told of every row that the new database refuses, and of every one that makes no sense
   */
  constructor(db: Connection, onRejected: (row: RejectedRow) => void) {
    this.#db = db;
    this.#onRejected = onRejected;
  }

  /**
   * Takes what is in a file and its WAL. Nobody may have it open.
   *
   * @returns whether SQLite found nothing wrong with it
   * @throws {TelemetryError} `newer_schema`: it is a later product's
   */
  takeFrom(path: string): boolean {
    const source: Source = { path, objects: [], columns: new Map() };
    const { wal, journal } = sidecarsOf(path);
    // Never changed: what its WAL or journal holds is not put into it.
    const readOnly = [wal, journal].some((sidecar) => (sizeOf(sidecar) ?? 0) > 0);
    let isSound = false;
    try {
      using db = Connection.open(path, { readOnly });
      this.#readSchema(db, source);
      isSound = retryLocked(() => db.check("quick")).length === 0;
    } catch (error) {
      if (!isUnreadable(error)) throw error;
    }
    // What pages hold may be old, so that SQLite has the last word.
    if (!isSound) this.#transaction(() => this.#takePages(source));
    try {
      using db = Connection.open(path, { readOnly });
      this.#transaction(() => this.#takeRows(db, source));
    } catch (error) {
      if (!isUnreadable(error)) throw error;
    }
    return isSound;
  }

  /** Takes what an open database has beside its runs; it may be live. */
  takeOthersFrom(db: Connection): void {
    const source: Source = { path: db.path, objects: [], columns: new Map() };
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
    const mark = db.prepare(MARK);
    for (const run_id of this.#marked) mark.run(null, run_id);
    for (const [name, sql] of this.#later) {
      db.exec("SAVEPOINT addition");
      try {
        db.exec(sql);
        proveInsert(db);
      } catch (error) {
        db.exec("ROLLBACK TO addition");
        this.notBrought.push(`${name}: ${messageOf(error)}`);
      }
      db.exec("RELEASE addition");
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
    const rows = retryLocked(() => db.all("SELECT type, name, tbl_name, rootpage, sql FROM sqlite_schema"));
    source.objects = rows.map(({ type, name, tbl_name, rootpage, sql }) => ({
      type: String(type),
      name: String(name),
      table: String(tbl_name),
      root: Number(rootpage),
      sql: sql as string | null,
    }));
    this.#learnSchema(source);
  }

  /** Learns the columns of every table by having SQLite make it in memory, and makes room for what people added. */
  #learnSchema(source: Source): void {
    const virtual = source.objects.filter(({ sql }) => /^CREATE VIRTUAL/i.test(sql ?? "")).map(({ name }) => name);
    for (const { type, name, table, sql } of source.objects) {
      if (name.startsWith("sqlite_") || sql === null) continue;
      const owner = virtual.find((virtualTable) => name === virtualTable || name.startsWith(`${virtualTable}_`));
      if (owner !== undefined) {
        this.#leave(`table ${name}`, `it is of the virtual table ${owner}, which is to be made anew`);
      } else if (type === "table") {
        const columns = declaredBy(sql, name);
        if (columns === undefined) this.#leave(`table ${name}`, "its declaration cannot be read");
        else source.columns.set(name, columns);
      } else if (!isOfContract(name) && !virtual.includes(table)) {
        this.#later.set(`${type} ${name}`, sql);
      }
    }
    this.#refuseNewer(source);
    for (const [table, columns] of source.columns) {
      if (isOfContract(table)) this.#addColumns(table, columns);
      else this.#addTable(table, source.objects.find(({ type, name }) => type === "table" && name === table)!.sql!);
    }
  }

  #refuseNewer({ path, columns }: Source): void {
    if (columns.get("agent_runs")?.some(({ name }) => name === "event_id")) throw newerSchema(path, SCHEMA_VERSION + 1);
  }

  #leave(what: string, why: string): void {
    const line = `${what}: ${why}`;
    if (!this.notBrought.includes(line)) this.notBrought.push(line);
  }

  #addTable(name: string, sql: string): void {
    if (this.#added.has(name)) return;
    try {
      this.#db.exec(sql);
      this.#added.add(name);
    } catch (error) {
      this.#leave(`table ${name}`, messageOf(error));
    }
  }

  /** Adds the columns that people have put into a contract table. */
  #addColumns(table: string, columns: Column[]): void {
    const there = new Set(columnsIn(this.#db, table).map(({ name }) => name.toLowerCase()));
    for (const { name, type, notNull, defaultValue, generated } of columns) {
      if (there.has(name.toLowerCase())) continue;
      if (generated !== "no") {
        this.#leave(`column ${table}.${name}`, "it is computed; add it again");
        continue;
      }
      const add = `ALTER TABLE ${table} ADD COLUMN ${quotedName(name)} ${type}`;
      const rules = `${notNull ? " NOT NULL" : ""}${defaultValue === null ? "" : ` DEFAULT (${defaultValue})`}`;
      try {
        this.#db.exec(add + rules);
      } catch {
        this.#db.exec(add);
        this.#leave(`rules of column ${table}.${name}`, `${rules.trim()} cannot be added to a table that is there`);
      }
    }
  }

  /** Takes what SQLite can read. */
  #takeRows(db: Connection, source: Source): void {
    for (const [table, all] of source.columns) {
      if (!isOfContract(table) && !this.#added.has(table)) continue;
      const columns = all.filter(({ generated }) => generated === "no").map(({ name }) => name);
      let unread = 0;
      try {
        for (const rows of readRows(db, table, columns, () => unread++)) {
          for (const { rowid, cells } of rows) this.#take(source.path, table, columns, rowid, cells);
        }
      } catch (error) {
        if (!isUnreadable(error) && !hasCode(error, "io")) throw error;
        if (isOfContract(table)) throw error;
        this.#leave(`table ${table}`, `some or all of its rows cannot be read (${messageOf(error)})`);
      }
    }
  }

  /** Takes what is in the pages. */
  #takePages(source: Source): void {
    using file = PageFile.open(source.path);
    if (source.columns.size === 0) this.#seekSchema(file, source);
    const roots = new Map(
      source.objects.filter(({ type, root }) => type === "table" && root > 0).map(({ name, root }) => [name, root]),
    );
    const layouts = new Layouts(source.columns);
    for (const found of file.rows(roots, (table, cells) => layouts.find(table, cells) !== undefined)) {
      if ("broken" in found) {
        this.#reject(source.path, null, null, found.broken, [], found.page);
        continue;
      }
      const { table, rowid, cells } = found;
      const layout = layouts.find(table, cells);
      if (layout !== undefined) {
        const { names, values } = layout.fit(rowid, cells);
        this.#take(source.path, layout.table, names, rowid, values);
      } else if (table !== undefined && source.columns.has(table)) {
        this.#reject(source.path, table, rowid, "its cells do not fit the table", cells);
      }
    }
    this.#takeMarks(file, source);
  }

  /** The marks of posting, by the indexes: they may be whole where the table is not. */
  #takeMarks(file: PageFile, { objects }: Source): void {
    const rootOf = (index: string) => objects.find(({ type, name }) => type === "index" && name === index)?.root;
    const [byId, byMark] = [rootOf("sqlite_autoindex_agent_runs_1"), rootOf("idx_runs_api_posted")];
    if (byId === undefined || byMark === undefined) return;
    const posted = new Set<number>();
    for (const [api_posted, rowid] of file.indexEntries(byMark)) if (api_posted === 1) posted.add(Number(rowid));
    const known = this.#db.prepare("SELECT 1 FROM agent_runs WHERE run_id=?");
    const mark = this.#db.prepare(MARK);
    for (const [run_id, rowid] of file.indexEntries(byId)) {
      if (typeof run_id !== "string" || !posted.has(Number(rowid))) continue;
      if (mark.run(null, run_id) === 0 && known.get(run_id) === undefined) this.#marked.add(run_id);
    }
  }

  /** Looks for the schema in the pages. */
  #seekSchema(file: PageFile, source: Source): void {
    const isSchema = (cells: SqlValue[]) =>
      cells.length === 5 && ["table", "index", "view", "trigger"].includes(cells[0] as string) &&
      typeof cells[1] === "string" && typeof cells[2] === "string" && typeof cells[3] === "number" &&
      (cells[4] === null || typeof cells[4] === "string" && /^CREATE /i.test(cells[4]));
    const found = new Map<string, SchemaObject>();
    for (const row of file.rows(new Map([["sqlite_schema", 1]]), (_, cells) => isSchema(cells))) {
      if ("broken" in row || !isSchema(row.cells)) continue;
      const [type, name, table, root, sql] = row.cells as [string, string, string, number, string | null];
      found.set(`${type} ${name}`, { type, name, table, root, sql });
    }
    source.objects = [...found.values()];
    this.#learnSchema(source);
  }

  #take(file: string, table: string, columns: string[], rowid: number, cells: SqlValue[]): void {
    const value = (name: string) => cells[columns.indexOf(name)];
    if (table === "schema_migrations" && Number(value("version")) > SCHEMA_VERSION) {
      throw newerSchema(file, Number(value("version")));
    }
    try {
      if (table === "agent_runs" && (typeof value("run_id") !== "string" || value("run_id") === "")) {
        throw new TelemetryError("invalid_record", "run_id is missing");
      }
      this.#statementFor(table, columns).run(...cells, ...isOfContract(table) ? [] : [rowid]);
    } catch (error) {
      if (!hasCode(error, "invalid_record")) throw error;
      return this.#reject(file, table, rowid, messageOf(error.cause ?? error), cells);
    }
    // What a transaction has changed is held in memory until it ends.
    if (++this.#taken % TRANSACTION_ROWS === 0) this.#db.exec("COMMIT; BEGIN");
    if (table !== "agent_runs" || value("api_posted") !== 1) return;
    const mark = this.#statements.get(MARK) ?? this.#db.prepare(MARK);
    this.#statements.set(MARK, mark);
    mark.run(value("api_posted_at") ?? null, value("run_id")!);
  }

  #statementFor(table: string, columns: string[]): Statement {
    const key = `${table} ${columns}`;
    let statement = this.#statements.get(key);
    if (statement === undefined) {
      statement = this.#prepare(table, columns);
      this.#statements.set(key, statement);
    }
    return statement;
  }

  #prepare(table: string, columns: string[]): Statement {
    const names = columns.map(quotedName);
    if (table === "agent_runs") return this.#db.prepare(mergeOf(columns));
    const values = columns.map(() => "?");
    if (!isOfContract(table)) {
      try {
        // Its rows may have nothing else to be told apart by.
        return this.#db.prepare(
          `INSERT OR REPLACE INTO ${quotedName(table)} (${[...names, "rowid"]}) VALUES (${[...values, "?"]})`,
        );
      } catch {
        // A row number that is a column already, or none: the number is bound, and not used.
        const unused = `(SELECT ? WHERE 0) IS NULL`;
        return this.#db.prepare(
          `INSERT OR REPLACE INTO ${quotedName(table)} (${names}) SELECT ${values} WHERE ${unused}`,
        );
      }
    }
    return this.#db.prepare(`INSERT OR REPLACE INTO ${table} (${names}) VALUES (${values})`);
  }

  #reject(
    file: string,
    table: string | null,
    rowid: number | null,
    rejected: string,
    cells: SqlValue[],
    page: number | null = null,
  ): void {
    this.#onRejected({ file, table, rowid, page, rejected, cells });
  }
}

/** Whether an error says that there is no more to be had through SQLite. */
function isUnreadable(error: unknown): boolean {
  return hasCode(error, "damaged", "not_a_database", "empty_database", "no_storage", "permission");
}

/** The statement that brings a run over from another database. */
function mergeOf(columns: string[]): string {
  const changed = columns.filter((column) => !["run_id", "api_posted"].includes(column)).map((column) => {
    const [was, is] = [`agent_runs.${quotedName(column)}`, `excluded.${quotedName(column)}`];
    if (column === "api_retry_count") return `${column}=coalesce(max(${was}, ${is}), ${was}, ${is})`;
    return `${quotedName(column)}=coalesce(${is}, ${was})`;
  });
  return `INSERT INTO agent_runs (${columns.map(quotedName)}) VALUES (${columns.map(() => "?")})
    ON CONFLICT(run_id) DO UPDATE SET ${changed.join(", ") || "run_id=run_id"}
    WHERE coalesce(excluded.status, '')<>'running' OR coalesce(agent_runs.status, 'running')='running'`;
}

/** The columns of a table that somebody declared; undefined when SQLite does not take the declaration. */
function declaredBy(sql: string, table: string): Column[] | undefined {
  using memory = Connection.open(":memory:");
  try {
    memory.exec(sql);
    return columnsIn(memory, table);
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

/** What must hold for the cell of a contract column. A page has no checksum: garbage is told by its types. */
const INTEGERS: readonly string[] = [
  ...["schema_version", "items_discovered", "items_succeeded", "items_failed", "duration_ms", "api_posted"],
  ...["api_retry_count", "files_changed", "insertions", "deletions", "version", "id"],
];
const REQUIRED: Record<TableName, readonly string[]> = {
  agent_runs: ["run_id", "agent_name", "start_time"],
  run_events: ["run_id", "event_type", "timestamp"],
  commits: ["commit_hash"],
  schema_migrations: [],
};
const DATED: readonly string[] = ["created_at", "updated_at", "applied_at"];

/** How the rows of one table may look, in one order of its columns. */
class RowLayout {
  readonly table: string;
  readonly #columns: Column[];
  /** What each cell must be; nothing is known of tables that are not the contract's. */
  readonly #rules: ((cell: SqlValue) => boolean)[];
  /** A row has at least so many cells; columns that were added later are missing at its end. */
  readonly #least: number;
  readonly #created: number;

  constructor(table: string, columns: Column[]) {
    this.table = table;
    this.#columns = columns.filter(({ generated }) => generated !== "virtual");
    const names = this.#columns.map(({ name }) => name);
    this.#created = names.indexOf("created_at");
    const required = isOfContract(table) ? REQUIRED[table as TableName] : [];
    this.#least = Math.max(1, ...required.map((name) => names.indexOf(name) + 1));
    const ofContract = isOfContract(table) ? [...Object.keys(columnsOf(table as TableName)), "custom_metadata"] : [];
    this.#rules = this.#columns.map(({ name, isRowid }) => {
      if (!ofContract.includes(name)) return () => true;
      if (isRowid) return (cell) => cell === null;
      if (required.includes(name)) return (cell) => isText(cell) && cell.length > 0;
      const rule = ruleOf(name);
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

/** What the cell of a contract column must be, when it is there. */
function ruleOf(column: string): (cell: SqlValue) => boolean {
  if (column === "status") return (cell) => (RUN_STATUSES as readonly unknown[]).includes(cell);
  if (column === "api_posted") return (cell) => cell === 0 || cell === 1;
  if (DATED.includes(column)) return (cell) => isText(cell) && /^\d{4}-\d\d/.test(cell);
  if (INTEGERS.includes(column)) return (cell) => typeof cell === "number";
  return isText;
}

/** Text, and not bytes that were none. */
function isText(cell: SqlValue): cell is string {
  return typeof cell === "string" && !cell.includes("\ufffd");
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

  /** The layout of a row: that of its table, or else of the contract's table that it looks like. */
  find(table: string | undefined, cells: SqlValue[]): RowLayout | undefined {
    const known = table === undefined ? undefined : this.#known.get(table);
    if (known?.fits(cells)) return known;
    const fitting = this.#guessed.filter((layout) => layout.fits(cells));
    return fitting.find((layout) => layout.isDated(cells)) ?? fitting[0];
  }
}

/** The layouts in the field (contract, "Databases in the field"), for files whose schema is gone. */
const GUESSES: RowLayout[] = (() => {
  const plain = (name: string): Column => {
    const isRowid = name === "id" || name === "version";
    return { name, type: "", notNull: false, defaultValue: null, isRowid, generated: "no" };
  };
  const without = (...names: string[]) => RUN_COLUMNS.filter((column) => !names.includes(column)) as string[];
  const later = ["product_family", "subdomain"];
  const v2 = without(...later);
  const recovered = v2.toSpliced(v2.indexOf("created_at"), 0, "custom_metadata");
  const orders = [[...RUN_COLUMNS], [...v2, ...later], [...recovered, ...later]];
  const v1 = without("insight_id", ...later);
  orders.push([...v1, "insight_id", ...later]);
  const others: TableName[] = ["commits", "run_events"];
  return [
    ...orders.map((order) => new RowLayout("agent_runs", order.map(plain))),
    ...others.map((table) => new RowLayout(table, Object.keys(columnsOf(table)).map(plain))),
  ];
})();
