#!/usr/bin/env python3
"""The jobs of the toolkit in plain Python, as a baseline.

usage: baselines.py append RAW COUNT        prints appends per second
       baselines.py runs BASE COUNT         prints runs per second; BASE has a database
       baselines.py rebuild RAW DATABASE    prints the number of runs
"""
import fcntl, glob, json, os, sqlite3, sys, time
from datetime import datetime, timezone

INDEXED = ("agent_name", "status", "start_time", "api_posted", "insight_id")


def append(raw, record):
    """Append one record: open, lock, write, flush, fsync, unlock."""
    day = datetime.now(timezone.utc).strftime("%Y%m%d")
    with open(os.path.join(raw, f"events_{day}.ndjson"), "a", encoding="utf-8") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        log.write(json.dumps(record) + "\n")
        log.flush()
        os.fsync(log.fileno())
        fcntl.flock(log, fcntl.LOCK_UN)


def event(run_id, n):
    return {
        "run_id": run_id,
        "event_type": "checkpoint",
        "timestamp": datetime.now(timezone.utc).isoformat(),
        "payload_json": json.dumps({"writer": "python", "n": n}),
        "id": None,
        "record_type": "event",
    }


def execute(base, sql, values):
    """Run one statement in a connection of its own, as the Python client does."""
    db = sqlite3.connect(os.path.join(base, "db", "telemetry.sqlite"))
    db.execute("PRAGMA busy_timeout=5000")
    db.execute("PRAGMA synchronous=NORMAL")
    db.execute(sql, values)
    db.commit()
    db.close()


def measure_appends(raw, count):
    os.makedirs(raw, exist_ok=True)
    start = time.perf_counter()
    for n in range(count):
        append(raw, event("20251210T120530Z-python-00000000", n))
    print(count / (time.perf_counter() - start))


def measure_runs(base, count):
    raw = os.path.join(base, "raw")
    start = time.perf_counter()
    for n in range(count):
        now = datetime.now(timezone.utc).isoformat()
        run = {
            "run_id": f"python-{os.getpid()}-{n}",
            "schema_version": 3,
            "agent_name": "python",
            "job_type": "bench",
            "trigger_type": "cli",
            "start_time": now,
            "status": "running",
            "items_discovered": 0,
            "items_succeeded": 0,
            "items_failed": 0,
        }
        append(raw, {**run, "record_type": "run"})
        insert = f"INSERT INTO agent_runs ({', '.join(run)}) VALUES ({', '.join('?' * len(run))})"
        execute(base, insert, tuple(run.values()))
        for step in range(3):
            append(raw, event(run["run_id"], step))
        end = {"end_time": now, "status": "success", "duration_ms": 5}
        append(raw, {**run, **end, "record_type": "run"})
        update = "UPDATE agent_runs SET end_time=?, status=?, duration_ms=?, updated_at=datetime('now') WHERE run_id=?"
        execute(base, update, (*end.values(), run["run_id"]))
    print(count / (time.perf_counter() - start))


def last_records(raw):
    """The last record of each run in the log."""
    runs = {}
    for path in sorted(glob.glob(os.path.join(raw, "events_*.ndjson"))):
        with open(path, encoding="utf-8") as log:
            for line in log:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if record.pop("record_type") == "run":
                    runs[record["run_id"]] = record
    return list(runs.values())


def rebuild(raw, database):
    for suffix in ("", "-wal", "-shm"):
        if os.path.exists(database + suffix):
            os.remove(database + suffix)
    runs = last_records(raw)
    columns = list(runs[0])
    db = sqlite3.connect(database)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    db.execute(f"CREATE TABLE agent_runs ({', '.join(columns)}, PRIMARY KEY (run_id))")
    for column in INDEXED:
        db.execute(f"CREATE INDEX by_{column} ON agent_runs({column})")
    insert = f"INSERT INTO agent_runs VALUES ({', '.join('?' * len(columns))})"
    for run in runs:
        db.execute(insert, [run.get(column) for column in columns])
    db.commit()
    if db.execute("PRAGMA quick_check").fetchone() != ("ok",):
        sys.exit("quick_check failed")
    db.close()
    print(len(runs))


if __name__ == "__main__":
    job, first, second = sys.argv[1:]
    if job == "append":
        measure_appends(first, int(second))
    elif job == "runs":
        measure_runs(first, int(second))
    elif job == "rebuild":
        rebuild(first, second)
    else:
        sys.exit(__doc__)
