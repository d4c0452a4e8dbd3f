#!/usr/bin/env python3
"""Reads the current run of an output folder as its users do: with pyarrow and with DuckDB.

usage: readers.py OUTPUT_FOLDER
Every table must have the columns, types and nullability that schemas/<table>.md documents, its DDL
for DuckDB must load, and its rows must go into the table that the DDL makes.
"""
import json, pathlib, re, sys

import duckdb
import pyarrow.dataset as ds

out = pathlib.Path(sys.argv[1])
schemas = pathlib.Path(__file__).resolve().parent.parent / "schemas"
manifest = json.loads((out / json.loads((out / "current.json").read_text())["manifest"]).read_text())
files = {}
for file in manifest["files"]:
    if not file["path"].endswith(".parquet"):
        continue  # vector files are not tables
    files.setdefault(file["table"], []).append(str(out / file["path"]))


def documented(table):
    """Column, Arrow type and nullability of each row of the page's column table."""
    rows = []
    for line in (schemas / f"{table}.md").read_text().splitlines():
        cells = [cell.strip().strip("`") for cell in line.split("|")[1:-1]]
        if len(cells) >= 4 and cells[0] not in ("column", "") and not cells[0].startswith("-"):
            rows.append(cells)
    return rows


problems, checked = [], 0
for table, paths in sorted(files.items()):
    arrow = ds.dataset(paths, format="parquet").to_table()
    rows = sum(file["rows"] for file in manifest["files"] if file["table"] == table)
    if arrow.num_rows != rows:
        problems.append(f"{table}: {arrow.num_rows} rows, the manifest says {rows}")
    names = [row[0] for row in documented(table)]
    if arrow.schema.names != names:
        problems.append(f"{table}: columns {arrow.schema.names}, documented {names}")
    for row in documented(table):
        field, text = arrow.schema.field(row[0]), " ".join(row[1:])
        kind = re.sub("^(fixed_size_)?list<element: ", "", str(field.type)).rstrip(">").split("[")[0].split(" ")[0]
        wanted = {"string": "Utf8", "large_string": "LargeUtf8", "float": "Float32", "double": "Float64",
                  "int64": "Int64", "int32": "Int32", "bool": "Boolean", "timestamp": "Timestamp"}[kind]
        is_id = re.search(r"\bid\b", text) and row[0].removesuffix("s").endswith("_id")
        if wanted.lower() not in text.lower().replace("bool", "boolean") and not is_id:
            problems.append(f"{table}.{row[0]} is {field.type}, documented {text}")
        if not field.nullable and arrow[row[0]].null_count:
            problems.append(f"{table}.{row[0]} holds nulls")
        checked += 1
    base = duckdb.connect()
    ddl = (schemas / f"{table}.duckdb.sql").read_text()
    base.execute(ddl)
    string_ids = any(
        str(arrow.schema.field(name).type) in ("string", "large_string")
        for name in ("item_id", "user_id") if name in arrow.schema.names)
    if string_ids:  # as the comment of the DDL says for ids that are strings
        id_columns = r"((?:item|user|neighbor|because_item)_ids?\"?\s+)BIGINT"
        base = duckdb.connect()
        base.execute(re.sub(id_columns, r"\1VARCHAR", ddl))
    base.execute(f"INSERT INTO {table} SELECT * FROM read_parquet({paths!r}, hive_partitioning = false)")
    loaded = base.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    if loaded != rows:
        problems.append(f"{table}: DuckDB loaded {loaded} of {rows} rows")
for ddl in sorted(schemas.glob("*.duckdb.sql")):
    duckdb.connect().execute(ddl.read_text())
print(json.dumps({"tables": len(files), "columns": checked, "problems": problems, "ok": not problems}))
sys.exit(bool(problems))
