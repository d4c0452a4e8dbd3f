#!/usr/bin/env python3
"""Brings the tables of one generation to the next in DuckDB, by schemas/changes.duckdb.sql as it stands.

usage: changes.py TIDEMILL FOLDER
Publishes three generations of a shop's log that grows, the last with users and items of [delete], and
holds a copy of every table that followed the changes against the files of the last generation.
"""
import json, pathlib, re, subprocess, sys

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

tidemill, folder = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2])
schemas = pathlib.Path(__file__).resolve().parent.parent / "schemas"
sizes = "--ids int --users 600 --items 90 --events 12000".split()
subprocess.run([tidemill, "generate", folder / "shop", *sizes], check=True, stdout=subprocess.DEVNULL)
events = pq.read_table(folder / "shop/events.parquet")
events = events.take(pc.sort_indices(events["timestamp"]))
(folder / "log").mkdir()


def spec(shape):
    lists = "".join(
        f'[delete.{kind}s]\nurl = "forget_{kind}s.parquet"\ncolumn = "{kind}_id"\n' for kind in ("user", "item"))
    (folder / "job.toml").write_text(f"""name = "changes"
shards = 4
[[events]]
url = "log/"
columns = {{ user = "user_id", item = "item_id", time = "timestamp", event = "event" }}
[events.weights]
view = 1.0
purchase = 5.0
[users]
url = "shop/users.parquet"
columns = {{ user = "user_id", segment = "country" }}
{lists}[incremental]
share_files = true
[popularity]
[debias]
[item_neighbors]
[top_k]
k = 5
shape = "{shape}"
[output]
url = "{shape}/"
""")


def publish(out, rows, forget):
    """Adds events to the log and runs the job; the manifest, and the files of each table."""
    pq.write_table(events.slice(*rows), folder / f"log/{rows[0]}.parquet")
    for kind, ids in forget.items():
        column = pa.array(ids, events.schema.field(f"{kind}_id").type)
        pq.write_table(pa.table({f"{kind}_id": column}), folder / f"forget_{kind}s.parquet")
    subprocess.run([tidemill, "run", folder / "job.toml"], check=True, capture_output=True)
    current = json.loads((out / "current.json").read_text())
    manifest = json.loads((out / current["manifest"]).read_text())
    files = {}
    for file in manifest["files"]:
        files.setdefault(file["table"], []).append(str(out / file["path"]))
    return current["generation"], manifest, files


def read(files):
    return f"SELECT * FROM read_parquet({files!r}, hive_partitioning = false)"


sections = (schemas / "changes.duckdb.sql").read_text().split("\n\n-- ")[1:]
statements = {section.split("\n")[0]: section.split("\n", 1)[1] for section in sections}
of_runs, n_changes = {"rejects"}, {}
for shape in ("rows", "lists"):
    for old in folder.glob("log/*"):
        old.unlink()
    spec(shape)
    base = duckdb.connect()
    n = len(events)
    everybody = {kind: events[f"{kind}_id"].unique().to_pylist() for kind in ("user", "item")}
    forget = {kind: [] for kind in everybody}
    generation, manifest, files = publish(folder / shape, (0, n - 400), forget)
    for table in set(files) - of_runs:
        if not table.endswith("_changes"):
            base.execute((schemas / f"{table}.duckdb.sql").read_text())
            base.execute(f"INSERT INTO {table} {read(files[table])}")
    for step, rows in enumerate([(n - 400, 300), (n - 100, 100)]):
        if step == 1:
            forget = {"user": everybody["user"][3:40:9], "item": everybody["item"][2:9:3]}
        last, (generation, manifest, files) = generation, publish(folder / shape, rows, forget)
        assert manifest["changes_since"]["generation"] == last, manifest["changes_since"]
        for kind, ids in forget.items():
            base.execute(f"CREATE OR REPLACE TABLE forget_{kind}s ({kind}_id BIGINT)")
            base.executemany(f"INSERT INTO forget_{kind}s VALUES (?)", [[gone] for gone in ids] or [[-1]])
        for table in sorted(files):
            if table in of_runs or table.endswith("_changes"):
                continue
            load = f"INSERT INTO {table}_changes {read(files[table + '_changes'])};"
            sql, n_loads = re.subn(r"-- Here load the files of \w+\.", lambda _: load, statements[table])
            assert n_loads == 1, statements[table]
            base.execute(sql)
            told = base.execute(f"SELECT change, count(*) FROM {table}_changes GROUP BY 1").fetchall()
            for change, count in told:
                n_changes[change] = n_changes.get(change, 0) + count
            wanted = read(files[table])
            for one, other in [(f"FROM {table}", wanted), (wanted, f"FROM {table}")]:
                odd = base.execute(f"({one}) EXCEPT ALL ({other})").fetchall()
                assert not odd, f"{table}, generation {generation}: {len(odd)} rows, such as {odd[0]}"
            rows_of = sum(file["rows"] for file in manifest["files"] if file["table"] == table)
            assert base.execute(f"SELECT count(*) FROM {table}").fetchone()[0] == rows_of, table
assert set(statements) == {file.name.split(".")[0] for file in schemas.glob("*.duckdb.sql")} - {
    "changes", "rejects", "item_factors", "user_factors"}
assert n_changes["upsert"] > 1000 and n_changes["delete"] > 20, n_changes
print(json.dumps({"tables": len(statements), "changes": n_changes, "ok": True}))
