#!/usr/bin/env python3
"""Brings the tables of one generation to the next in DuckDB and PostgreSQL, by schemas/changes.*.sql as they stand.

usage: changes.py TIDEMILL FOLDER [POSTGRES_BIN]
Publishes three generations of a shop's log that grows, the last with users and items of [delete], and
holds a copy of every table that followed the changes against the files of the last generation.
POSTGRES_BIN holds initdb and pg_ctl of PostgreSQL 15 or later; without it DuckDB alone is asked.
"""
import collections, json, os, pathlib, re, shutil, subprocess, sys, tempfile

import duckdb
import numpy as np
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


class DuckDb:
    dialect = "duckdb"

    def __init__(self):
        self.base = duckdb.connect()
        self.execute = self.base.execute

    def load(self, table, files):
        self.execute(f"INSERT INTO {table} {read(files)}")

    def differences(self, table, files):
        """Rows of a table that the files have not, and the other way round."""
        wanted = read(files)
        pairs = [(f"FROM {table}", wanted), (wanted, f"FROM {table}")]
        return [row for one, other in pairs for row in self.execute(f"({one}) EXCEPT ALL ({other})").fetchall()]

    def statement(self, sql, table, files):
        """Runs a statement whose comment stands for a load."""
        self.execute(re.sub(LOAD, lambda _: f"INSERT INTO {table}_changes {read(files)};", sql))


class Postgres:
    dialect = "postgresql"

    def __init__(self, url):
        self.base = psycopg.connect(url, autocommit=True)
        self.execute = self.base.execute
        self.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public; SET timezone = 'UTC'")

    def load(self, table, files):
        rows = pq.ParquetDataset(files, partitioning=None).read()
        columns = rows.column_names
        with self.base.cursor().copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN") as copy:
            for row in zip(*(rows[column].to_pylist() for column in columns)):
                copy.write_row(row)

    def differences(self, table, files):
        rows = pq.ParquetDataset(files, partitioning=None).read()
        found = self.execute(f"SELECT {', '.join(rows.column_names)} FROM {table}").fetchall()
        wanted = zip(*(rows[column].to_pylist() for column in rows.column_names))
        found, wanted = (collections.Counter(map(plain, of)) for of in (found, wanted))
        return list(found - wanted) + list(wanted - found)

    def statement(self, sql, table, files):
        create, merge = re.split(LOAD, sql)
        self.execute(create)
        self.load(f"{table}_changes", files)
        self.execute(merge)


def plain(row):
    """Values that compare, lists among them; floats as they are in 32 bits, which is what columns of scores hold."""
    def of(value):
        if isinstance(value, list):
            return tuple(map(of, value))
        return float(np.float32(value)) if isinstance(value, float) else value
    return tuple(map(of, row))


def start_postgres(programs):
    """A server on a socket in a folder of its own: its url, and what stops it."""
    data = pathlib.Path(tempfile.mkdtemp(dir="/tmp"))
    user = []
    if os.getuid() == 0:
        # It refuses to run as root.
        user = ["runuser", "-u", "postgres", "--"]
        shutil.chown(data, "postgres")

    def pg(program, *args):
        command = [*user, f"{programs}/{program}", "-D", data / "base", *args]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=data)

    def stop():
        pg("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(data)

    pg("initdb", "-A", "trust", "-U", "shop")
    pg("pg_ctl", "-w", "-l", data / "log", "-o", f"-k {data} -h ''", "start")
    return f"host={data} user=shop dbname=postgres", stop


def statements_of(dialect):
    """The statements of each table."""
    sections = (schemas / f"changes.{dialect}.sql").read_text().split("\n\n-- ")[1:]
    return {section.split("\n")[0]: section.split("\n", 1)[1] for section in sections}


LOAD = r"-- Here load the files of \w+\."
statements = {dialect: statements_of(dialect) for dialect in ("duckdb", "postgresql")}
engines, stop = [DuckDb], lambda: None
if len(sys.argv) > 3:
    import psycopg

    url, stop = start_postgres(sys.argv[3])
    engines.append(lambda: Postgres(url))
of_runs, n_changes = {"rejects"}, {}
try:
    for shape in ("rows", "lists"):
        for old in folder.glob("log/*"):
            old.unlink()
        spec(shape)
        bases = [engine() for engine in engines]
        n = len(events)
        everybody = {kind: events[f"{kind}_id"].unique().to_pylist() for kind in ("user", "item")}
        forget = {kind: [] for kind in everybody}
        generation, manifest, files = publish(folder / shape, (0, n - 400), forget)
        for table in set(files) - of_runs:
            for base in bases:
                if not table.endswith("_changes"):
                    base.execute((schemas / f"{table}.{base.dialect}.sql").read_text())
                    base.load(table, files[table])
        for step, rows in enumerate([(n - 400, 300), (n - 100, 100)]):
            if step == 1:
                forget = {"user": everybody["user"][3:40:9], "item": everybody["item"][2:9:3]}
            last, (generation, manifest, files) = generation, publish(folder / shape, rows, forget)
            assert manifest["changes_since"]["generation"] == last, manifest["changes_since"]
            for base in bases:
                for kind, ids in forget.items():
                    base.execute(f"DROP TABLE IF EXISTS forget_{kind}s")
                    base.execute(f"CREATE TABLE forget_{kind}s ({kind}_id BIGINT)")
                    gone = ", ".join(f"({one})" for one in ids or [-1])
                    base.execute(f"INSERT INTO forget_{kind}s VALUES {gone}")
                for table in sorted(set(files) - of_runs):
                    if table.endswith("_changes"):
                        continue
                    sql = statements[base.dialect][table]
                    assert len(re.findall(LOAD, sql)) == 1, sql
                    base.statement(sql, table, files[table + "_changes"])
                    told = base.execute(f"SELECT change, count(*) FROM {table}_changes GROUP BY 1").fetchall()
                    for change, count in told:
                        n_changes[change] = n_changes.get(change, 0) + count
                    odd = base.differences(table, files[table])
                    assert not odd, f"{base.dialect}, {table}, generation {generation}: {len(odd)} rows, such as {odd[0]}"
                    rows_of = sum(file["rows"] for file in manifest["files"] if file["table"] == table)
                    assert base.execute(f"SELECT count(*) FROM {table}").fetchone()[0] == rows_of, table
finally:
    stop()
for dialect, found in statements.items():
    assert set(found) == {file.name.split(".")[0] for file in schemas.glob(f"*.{dialect}.sql")} - {
        "changes", "rejects", "item_factors", "user_factors"}
assert n_changes["upsert"] > 1000 and n_changes["delete"] > 20, n_changes
print(json.dumps({"engines": len(engines), "tables": len(statements["duckdb"]), "changes": n_changes, "ok": True}))
