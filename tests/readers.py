#!/usr/bin/env python3
"""Reads the current run of an output folder as its users do: with pyarrow and with DuckDB.

usage: readers.py OUTPUT_FOLDER
Every table must have the columns, types and nullability that schemas/<table>.md documents, its DDL
for DuckDB must load, and its rows must go into the table that the DDL makes.
"""
import json, pathlib, re, sys

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

out = pathlib.Path(sys.argv[1])
schemas = pathlib.Path(__file__).resolve().parent.parent / "schemas"
manifest = json.loads((out / json.loads((out / "current.json").read_text())["manifest"]).read_text())
files = {}
for file in manifest["files"]:
    if not file["path"].endswith(".parquet"):
        continue  # vector files are not tables
    if file["table"].endswith("_changes"):
        continue  # changes.py reads those
    files.setdefault(file["table"], []).append(str(out / file["path"]))


def documented(table):
    """Column, Arrow type and nullability of each row of the page's column table."""
    rows = []
    for line in (schemas / f"{table}.md").read_text().splitlines():
        cells = [cell.strip().strip("`") for cell in line.split("|")[1:-1]]
        if len(cells) == 7 and cells[0] != "column" and not cells[0].startswith("-"):
            rows.append((cells[0], cells[1], cells[5] == "yes"))
    return rows


def arrow_name(kind):
    """The name of a pyarrow type as the pages write it."""
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        nullable = "nullable" if kind.value_field.nullable else "not null"
        return f"List of {arrow_name(kind.value_type)}, elements {nullable}"
    if pa.types.is_timestamp(kind):
        return f"Timestamp({kind.unit}, {kind.tz})"
    names = {"string": "Utf8", "large_string": "LargeUtf8", "binary": "Binary", "large_binary": "LargeBinary",
             "float": "Float32", "double": "Float64", "int64": "Int64", "int32": "Int32", "bool": "Boolean"}
    return names[str(kind)]


def wanted(name):
    """A documented type with the id types of this log filled in."""
    name = name.replace("FixedSizeList or List", "List")
    return name.replace("item id type", id_types["item"]).replace("user id type", id_types["user"])


id_types = {"item": arrow_name(pq.read_schema(files["items"][0]).field("item_id").type),
            "user": arrow_name(pq.read_schema(files["users"][0]).field("user_id").type)}
problems, checked = [], 0
for table, paths in sorted(files.items()):
    arrow = ds.dataset(paths, format="parquet").to_table()
    rows = sum(file["rows"] for file in manifest["files"] if file["table"] == table)
    if arrow.num_rows != rows:
        problems.append(f"{table}: {arrow.num_rows} rows, the manifest says {rows}")
    names = [name for name, _, _ in documented(table)]
    if arrow.schema.names != names:
        problems.append(f"{table}: columns {arrow.schema.names}, documented {names}")
        continue
    for name, kind, nullable in documented(table):
        field = arrow.schema.field(name)
        if arrow_name(field.type) != wanted(kind):
            problems.append(f"{table}.{name} is {field.type}, documented {kind}")
        if field.nullable != nullable:
            problems.append(f"{table}.{name}: nullable is {field.nullable}, documented {nullable}")
        if not nullable and arrow[name].null_count:
            problems.append(f"{table}.{name} holds nulls")
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
    if ddl.name == "changes.duckdb.sql":
        continue  # it needs the tables
    duckdb.connect().execute(ddl.read_text())
print(json.dumps({"tables": len(files), "columns": checked, "problems": problems, "ok": not problems}))
sys.exit(bool(problems))
