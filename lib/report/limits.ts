/** Limits that a summary is checked against, for cron and CI. @module */
import { TelemetryError } from "../errors.ts";
import { formatAge, formatRate, plural } from "./format.ts";
import type { RunSummary } from "./summary.ts";

/** Limits. One that is not set holds. */
export interface Limits {
  /** How many runs may have failed: a share of the ended runs, or a number of runs. */
  maxFailed?: { share: number } | { runs: number };
  /** How many runs may be stale. */
  maxStale?: number;
  /** For how long an agent and job that ran in the window or in the one before may not run, in milliseconds. */
  maxSilentMs?: number;
  /** How old the newest backup may be, in milliseconds. */
  maxBackupAgeMs?: number;
}

/** Parses `5%` or `3`. */
export function parseMaxFailed(text: string): NonNullable<Limits["maxFailed"]> {
  const [, number, percent] = /^(\d{1,9}(?:\.\d+)?)(%?)$/.exec(text) ?? [];
  if (percent === "%" && Number(number) <= 100) return { share: Number(number) / 100 };
  if (percent === "" && Number.isInteger(Number(number))) return { runs: Number(number) };
  throw new TelemetryError("usage", `--max-failed takes a share or a number of runs, not "${text}"`, {
    hint: "use 5% or 3",
  });
}

/** The limits that a summary exceeds, each with its figure. */
export function exceeded(summary: RunSummary, limits: Limits): string[] {
  const { counts, failure_rate, stale, groups, store, until } = summary;
  const { maxFailed, maxStale, maxSilentMs, maxBackupAgeMs } = limits;
  const found: string[] = [];
  if (maxFailed !== undefined) {
    const isShare = "share" in maxFailed;
    const isOver = isShare ? (failure_rate ?? 0) > maxFailed.share : counts.failed > maxFailed.runs;
    const limit = isShare ? formatRate(maxFailed.share) : maxFailed.runs;
    const ended = counts.success + counts.failed + counts.partial;
    if (isOver) {
      found.push(
        `failed: ${counts.failed} of ${plural(ended, "ended run")} (${formatRate(failure_rate)}), limit ${limit}`,
      );
    }
  }
  if (maxStale !== undefined && stale.length > maxStale) {
    const { run_id, age_ms } = stale[0]!;
    found.push(
      `stale: ${plural(stale.length, "run")}, limit ${maxStale}; oldest ${run_id}, running for ${formatAge(age_ms)}`,
    );
  }
  if (maxSilentMs !== undefined) {
    const now = Date.parse(until ?? summary.now);
    for (const { agent_name, job_type, last_start } of groups) {
      const age = now - Date.parse(last_start);
      if (age <= maxSilentMs) continue;
      found.push(
        `silent: ${[agent_name, job_type ?? "-"].join(" / ")} last ran ${formatAge(age)} ago, limit ${
          formatAge(maxSilentMs)
        }`,
      );
    }
  }
  if (maxBackupAgeMs !== undefined && (store.newest_backup?.age_ms ?? Infinity) > maxBackupAgeMs) {
    const age = store.newest_backup === null
      ? "there is none"
      : `the newest is ${formatAge(store.newest_backup.age_ms)} old`;
    found.push(`backup: ${age}, limit ${formatAge(maxBackupAgeMs)}`);
  }
  return found;
}
