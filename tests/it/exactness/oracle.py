"""What DuckDB makes of the same readings, and of the open tables.

The one argument is a task in JSON; the findings are printed as JSON:
  {"do": "compare", "source": SQL, "again": [ROWS, TIMES], "columns": [...], "answers": [{"window_us", "file"}]}
  {"do": "table", "path": DIR, ...as above, without answers}
"""

import json
import pathlib
import sys
import urllib.parse

import duckdb

EXACT = ["count", "min", "max"]
ROUNDED = ["sum", "avg"]
RELATIVE = 1e-9


def readings(db, task):
    """The table `sent`: every reading as often as it was published."""
    db.execute(f"CREATE TABLE file AS SELECT row_number() OVER () AS nth, * FROM ({task['source']})")
    rows, times = task["again"]
    db.execute(
        "CREATE VIEW sent AS SELECT * FROM file UNION ALL "
        f"SELECT file.* FROM file, range({times}) WHERE nth <= {rows}"
    )


def aggregated(relation, columns, window_us):
    """One row per device and window, with every aggregate of every column."""
    aggregates = [
        f"{name}({column}::DOUBLE) AS {column}_{name}" for column in columns for name in EXACT + ROUNDED
    ]
    return (
        f"SELECT device_id, event_us // {window_us} * {window_us} AS window_us, count(*) AS n, "
        f"{', '.join(aggregates)} FROM {relation} GROUP BY ALL"
    )


def differences(db, columns, expect, answer):
    """How many rows differ in what, and one example of each."""
    unequal = {"row": "e.n IS NULL OR a.n IS NULL", "n": "e.n IS DISTINCT FROM a.n"}
    for column in columns:
        for name in EXACT:
            field = f"{column}_{name}"
            unequal[field] = f"e.{field} IS DISTINCT FROM a.{field}"
        for name in ROUNDED:
            field = f"{column}_{name}"
            close = f"abs(e.{field} - a.{field}) <= {RELATIVE} * abs(e.{field})"
            unequal[field] = f"NOT coalesce({close}, e.{field} IS NULL AND a.{field} IS NULL)"
    joined = f"({expect}) e FULL JOIN ({answer}) a ON e.device_id = a.device_id AND e.window_us = a.window_us"
    counts = [f"count(*) FILTER (WHERE {condition})" for condition in unequal.values()]
    found = db.execute(f"SELECT count(e.n), {', '.join(counts)} FROM {joined}").fetchone()
    wrong = []
    for (field, condition), count in zip(unequal.items(), found[1:]):
        if count:
            shown = "n" if field == "row" else field
            example = db.execute(
                "SELECT coalesce(e.device_id, a.device_id), make_timestamp(coalesce(e.window_us, a.window_us)), "
                f"e.{shown}, a.{shown} FROM {joined} WHERE {condition} LIMIT 1"
            ).fetchone()
            wrong.append(f"{field} in {count} rows, as in {[str(value) for value in example]}")
    return {"rows": found[0], "wrong": wrong}


def compare(db, task):
    readings(db, task)
    findings = []
    for answer in task["answers"]:
        expect = aggregated("sent", task["columns"], answer["window_us"])
        actual = f"SELECT *, epoch_us(window_start) AS window_us FROM '{answer['file']}'"
        findings.append(differences(db, task["columns"], expect, actual))
    return findings


def live_files(db, table):
    """The files of the newest version of a Delta table, by its log alone, and how many there ever were."""
    log = table / "_delta_log"
    live, since = set(), -1
    pointer = log / "_last_checkpoint"
    if pointer.exists():
        since = json.loads(pointer.read_text())["version"]
        parts = [str(part) for part in log.glob(f"{since:020}.checkpoint*.parquet")]
        adds = db.execute("SELECT add.path FROM read_parquet(?) WHERE add.path IS NOT NULL", [parts])
        live = {path for (path,) in adds.fetchall()}
    ever = set(live)
    for commit in sorted(log.glob("[0-9]*.json")):
        for line in commit.read_text().splitlines():
            action = json.loads(line)
            if "add" in action:
                ever.add(action["add"]["path"])
            if int(commit.stem) <= since:
                continue
            if "remove" in action:
                live.discard(action["remove"]["path"])
            if "add" in action:
                live.add(action["add"]["path"])
    return [str(table / urllib.parse.unquote(path)) for path in sorted(live)], len(ever)


def table(db, task):
    files, ever = live_files(db, pathlib.Path(task["path"]))
    db.execute(
        "CREATE TABLE stored AS SELECT *, epoch_us(event_time) AS event_us "
        f"FROM read_parquet({files}, union_by_name = true, hive_partitioning = true)"
    )
    readings(db, task)
    minute = 60_000_000
    sides = [aggregated(relation, task["columns"], minute) for relation in ("sent", "stored")]
    rows, positions, misplaced = db.execute(
        "SELECT count(*), count(DISTINCT (_node, _seq, _index)), "
        "count(*) FILTER (WHERE event_date::DATE <> (event_time AT TIME ZONE 'UTC')::DATE) FROM stored"
    ).fetchone()
    findings = differences(db, task["columns"], *sides)
    return findings | {
        "events": rows, "positions": positions, "misplaced": misplaced, "files": len(files), "files_ever": ever,
    }


def main():
    task = json.loads(sys.argv[1])
    db = duckdb.connect()
    db.execute("SET TimeZone = 'UTC'")
    print(json.dumps({"compare": compare, "table": table}[task["do"]](db, task)))


main()
