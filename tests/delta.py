#!/usr/bin/env python3
"""Reads the Delta tables of an output with the deltalake package, and the lists of files.

usage: delta.py OUTPUT_FOLDER
Each table's rows and files must be those of the run that current.json names.
"""
import json, os, pathlib, sys

import deltalake

out = pathlib.Path(sys.argv[1]).resolve()
manifest = json.loads((out / json.loads((out / "current.json").read_text())["manifest"]).read_text())
tables = {}
for file in manifest["files"]:
    if file["path"].startswith("tables/"):
        tables.setdefault(file["table"], []).append(file)
for table, files in tables.items():
    wanted = sorted(str(out / file["path"]) for file in files)
    delta = deltalake.DeltaTable(str(out / "tables" / table))
    found = sorted(uri.removeprefix("file://") for uri in delta.file_uris())
    assert found == wanted, f"{table}: {found} for {wanted}"
    rows = delta.to_pyarrow_table().num_rows
    assert rows == sum(file["rows"] for file in files), f"{table}: {rows} rows"
    lines = (out / "manifests" / table / "manifest").read_text().splitlines()
    assert sorted(line.removeprefix("file://") for line in lines) == wanted, f"{table}: {lines}"
print(f"{len(tables)} Delta tables and lists of files: ok", flush=True)
# The threads of the library abort the interpreter now and then when it takes itself down.
os._exit(0)
