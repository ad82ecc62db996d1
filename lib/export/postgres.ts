/**
 * PostgreSQL: tables for the runs of many machines, and a script that loads exports into them.
 * @module
 */
import { RUN_COLUMNS } from "../records.ts";
import { INDEXES, isInteger, type TableName, TABLES } from "../schema.ts";
import type { Cell, CellCounts, RowFitter } from "./csv.ts";

/** Not `schema_migrations`, which belongs to each database. */
const SHARED_TABLES: TableName[] = ["agent_runs", "run_events", "commits"];

/**
 * The tables as SQL that can be run again. Times stay text, since old ones have two formats. Foreign keys are left out, since
 * the runs and the commits of a machine are loaded one after the other.
 */
export function postgresSchema(): string {
  const tables = SHARED_TABLES.map((table) => {
    const columns = Object.entries(TABLES[table]).map(([name, declaration]) => `  ${name} ${typeOf(declaration)}`);
    return `CREATE TABLE IF NOT EXISTS ${table} (\n${columns.join(",\n")}\n);\n`;
  });
  const others = Object.entries(INDEXES).map(([name, [table, column]]) =>
    `CREATE INDEX IF NOT EXISTS ${name} ON ${table} (${column});\n`
  );
  return `-- Local Telemetry Toolkit: the tables of a server that gathers the runs of many machines (PostgreSQL)\n\n` +
    [...tables, others.join("")].join("\n");
}

function typeOf(declaration: string): string {
  // Events in the log have no id, and those of two databases may have the same.
  if (declaration.includes("AUTOINCREMENT")) return "bigint";
  const type = declaration.startsWith("INTEGER") ? "bigint" : "text";
  return type + (declaration.includes("PRIMARY KEY") ? " PRIMARY KEY" : "") +
    (declaration.includes("NOT NULL") ? " NOT NULL" : "");
}

/** An expression that orders the states of a run: whether it has ended, then when its row was written. */
function stateSql(row: string): string {
  // The two formats of times have this much in common.
  const time = `left(replace(coalesce(${row}.updated_at, ${row}.end_time, ${row}.start_time), 'T', ' '), 19)`;
  return `(coalesce(${row}.status, 'running') <> 'running', ${time} COLLATE "C")`;
}

/**
 * A script for `psql` that loads an export of runs from standard input. The newer state of a run wins, an ended one is never
 * replaced by `running`, and an `api_posted` marker is never removed. It can be run again, with exports that overlap, from many
 * machines concurrently: the first statement locks all rows in one order, also those that it does not change (PostgreSQL's
 * documentation, "INSERT").
 */
export function postgresLoad(): string {
  const states = RUN_COLUMNS.slice(1).filter((column) => !column.startsWith("api_"));
  return `-- Local Telemetry Toolkit: loads an export of runs from standard input into agent_runs (psql)
\\set ON_ERROR_STOP on
BEGIN;
CREATE TEMPORARY TABLE incoming (LIKE agent_runs) ON COMMIT DROP;
\\copy incoming FROM pstdin WITH (FORMAT csv, HEADER)
INSERT INTO agent_runs SELECT * FROM incoming ORDER BY run_id
ON CONFLICT (run_id) DO UPDATE SET
  (${states.join(", ")}) =
  (${states.map((column) => `excluded.${column}`).join(", ")})
WHERE ${stateSql("excluded")}
   >= ${stateSql("agent_runs")};
UPDATE agent_runs SET
  api_posted = greatest(agent_runs.api_posted, incoming.api_posted),
  api_posted_at = coalesce(agent_runs.api_posted_at, incoming.api_posted_at),
  api_retry_count = greatest(agent_runs.api_retry_count, incoming.api_retry_count)
FROM incoming
WHERE agent_runs.run_id = incoming.run_id
  AND (incoming.api_posted, incoming.api_retry_count) IS DISTINCT FROM (agent_runs.api_posted, agent_runs.api_retry_count);
COMMIT;
`;
}

/** Text of this many code units fits into an index of PostgreSQL, whose limit is 2,704 bytes. */
const MAX_INDEXED = 866;
/** A line that psql takes for the end of the data, also in quotes. */
const END_OF_DATA = /\n\\\.(?=\r?\n)/g;

/** Fits rows to {@linkcode postgresSchema}: one cell that PostgreSQL refuses would stop the load of all rows. */
export function postgresRows(table: TableName, columns: readonly string[], counts: CellCounts): RowFitter {
  const indexed = Object.values(INDEXES).map(([, column]) => column);
  const kinds = columns.map((column) => {
    const declaration = TABLES[table][column]!;
    const isKey = declaration === "TEXT PRIMARY KEY";
    return {
      isKey,
      isRequired: isKey || declaration.startsWith("TEXT NOT NULL"),
      isIndexed: isKey || indexed.includes(column),
      isInteger: isInteger(table, column),
      isJson: column.endsWith("_json"),
    };
  });
  const counted = (before: Cell, after: Cell): Cell => {
    if (after !== before) counts.changed_cells++;
    return after;
  };
  const fitCell = (cell: Cell, { isInteger, isJson, isIndexed }: typeof kinds[number]): Cell => {
    if (cell === null) return null;
    if (isInteger) return counted(cell, toBigint(cell));
    let text = String(cell);
    if (isJson && !isJsonb(text)) counts.not_jsonb++;
    if (text.includes("\0")) {
      counts.nul_cells++;
      text = text.replaceAll("\0", "\u2400");
    }
    if (isIndexed && text.length > MAX_INDEXED) {
      counts.cut_cells++;
      text = text.slice(0, MAX_INDEXED).toWellFormed();
    }
    return counted(text, text.replace(END_OF_DATA, "\n\\. "));
  };
  return {
    prefix: "",
    fit: (row) => {
      const before = { ...counts };
      const cells = kinds.map((kind, i) => fitCell(row[i]!, kind));
      // A key that was changed would be the key of another row.
      const isRefused = kinds.some(({ isKey, isRequired }, i) =>
        isRequired && cells[i] === null || isKey && cells[i] !== String(row[i])
      );
      if (!isRefused) return cells;
      Object.assign(counts, before).refused_rows++;
      return undefined;
    },
  };
}

/** The nearest integer that the column can have; null for text that is no number. */
function toBigint(cell: string | number | bigint): Cell {
  const number = typeof cell === "string" ? Number(cell.trim() || NaN) : cell;
  if (typeof number === "number" && !Number.isFinite(number)) return null;
  if (Number.isSafeInteger(number)) return number;
  const integer = typeof number === "bigint" ? number : BigInt(Math.round(number));
  return BigInt.asIntN(64, integer) === integer ? integer : null;
}

/** Whether text can be cast to `jsonb`, which refuses NUL, half surrogate pairs, huge numbers and deep nesting. */
function isJsonb(text: string): boolean {
  const isText = (value: unknown) => typeof value !== "string" || !value.includes("\0") && value.isWellFormed();
  let isAccepted = true;
  try {
    // Recurses, and so fails where nesting is deep.
    JSON.parse(text, (key, value) => {
      isAccepted &&= isText(key) && isText(value) && (typeof value !== "number" || Number.isFinite(value));
      return null;
    });
  } catch {
    return false;
  }
  return isAccepted;
}
