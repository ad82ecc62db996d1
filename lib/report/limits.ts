/** Limits that a summary is checked against, for cron and CI. @module */
import { plural } from "../format.ts";
import { TelemetryError } from "../errors.ts";
import { formatAge, formatDuration, formatRate } from "./format.ts";
import type { RunSummary } from "./summary.ts";

/** Limits. One that is not set holds. */
export interface Limits {
  /** How many runs may have failed: a number, or their share of the ended runs in percent. */
  maxFailed?: { limit: number; unit: string } | undefined;
  /** How many runs may be stale. */
  maxStale?: number | undefined;
  /** For how long an agent and job that ran in the window or in the one before may not run, in milliseconds. */
  maxSilentMs?: number | undefined;
  /** How old the newest backup may be, in milliseconds. */
  maxBackupAgeMs?: number | undefined;
}

/** Parses `5%` or `3`. */
export function parseMaxFailed(flag: string, text: string): NonNullable<Limits["maxFailed"]> {
  const [, number, unit] = /^(\d{1,9}(?:\.\d+)?)(%?)$/.exec(text) ?? [];
  const limit = Number(number);
  if (unit === "%" && limit <= 100 || unit === "" && Number.isInteger(limit)) return { limit, unit };
  throw new TelemetryError("usage", `--${flag} takes a share or a number of runs, not "${text}"`, {
    hint: "use 5% or 3",
  });
}

/** The limits that a summary exceeds, each with its figure: ages in two units, so that a little over 2 d is not 2 d. */
export function exceeded(summary: RunSummary, limits: Limits): string[] {
  const { counts, failure_rate, stale, groups, store, until } = summary;
  const { maxFailed, maxStale = Infinity, maxSilentMs = Infinity, maxBackupAgeMs } = limits;
  const found: string[] = [];
  if (summary.problem !== null && counts.runs === 0 && Object.values(limits).some((limit) => limit !== undefined)) {
    found.push("runs: the database cannot be read, and the log has none");
  }
  const { limit = Infinity, unit = "" } = maxFailed ?? {};
  if (failure_rate !== null && (unit === "%" ? failure_rate > limit / 100 : counts.failed > limit)) {
    const ended = plural(counts.success + counts.failed + counts.partial, "ended run");
    found.push(`failed: ${counts.failed} of ${ended} (${formatRate(failure_rate)}), limit ${limit}${unit}`);
  }
  if (stale.length > maxStale) {
    const { run_id, age_ms } = stale[0]!;
    const oldest = `oldest ${run_id}, running for ${formatDuration(age_ms)}`;
    found.push(`stale: ${plural(stale.length, "run")}, limit ${maxStale}; ${oldest}`);
  }
  for (const { agent_name, job_type, last_start } of groups) {
    const age = Date.parse(until ?? summary.now) - Date.parse(last_start);
    if (age <= maxSilentMs) continue;
    const name = `${agent_name} / ${job_type ?? "-"}`;
    found.push(`silent: ${name} last ran ${formatDuration(age)} ago, limit ${formatAge(maxSilentMs)}`);
  }
  if (maxBackupAgeMs !== undefined && (store.newest_backup?.age_ms ?? Infinity) > maxBackupAgeMs) {
    const newest = store.newest_backup
      ? `the newest is ${formatDuration(store.newest_backup.age_ms)} old`
      : "there is none";
    found.push(`backup: ${newest}, limit ${formatAge(maxBackupAgeMs)}`);
  }
  return found;
}
