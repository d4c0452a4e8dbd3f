#!/usr/bin/env python3
"""Runs jobs from az:// to az:// on Azurite, the emulator that Azure publishes, and looks after their output.

usage: azure_blob.py TIDEMILL AZURITE_BLOB FOLDER
Tables must be those of the same job on a local disk; several publishers at once and large files are among them.
"""
import json, os, pathlib, socket, subprocess, sys, time

from azure.storage.blob import BlobServiceClient

tidemill, azurite, folder = (pathlib.Path(arg).resolve() for arg in sys.argv[1:])
# The account and the key that the emulator is documented to have.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
SPEC = """name = "shop"
shards = 1
[[events]]
url = "LOG"
columns = { user = "user_id", item = "item_id", time = "timestamp", event = "event" }
[events.weights]
view = 1.0
purchase = 5.0
[popularity]
[item_neighbors]
[als]
n_factors = 128
iterations = 1
[top_k]
k = 5
candidates = { item_neighbors = 1.0 }
[output]
url = "OUT"
delta = true
[[output.vectors]]
of = "user_factors"
type = "flat_ip"
"""


def start():
    """The emulator on a free port; its url and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck", "--silent"]
    server = subprocess.Popen(
        [azurite, "--blobHost", "127.0.0.1", "--blobPort", str(port), *flags],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return f"http://127.0.0.1:{port}", server
        assert server.poll() is None, "the emulator ended"
        time.sleep(0.1)
    sys.exit("the emulator does not answer")


def run(*args):
    done = subprocess.run([tidemill, *map(str, args)], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{args}: {done.returncode}, {done.stderr}"
    return json.loads(done.stdout) if "--json" in args else done.stdout


def digests(outcome):
    """Digests of the files of a run by their place, without its name."""
    run_id = outcome["manifest"]["run_id"]
    return {file["path"].replace(run_id, ""): file["sha256"] for file in outcome["manifest"]["files"]}


url, server = start()
try:
    environment = dict(os.environ, AZURE_STORAGE_USE_EMULATOR="true", AZURE_STORAGE_ACCOUNT_NAME=ACCOUNT,
                       AZURITE_BLOB_STORAGE_URL=url)
    client = BlobServiceClient(f"{url}/{ACCOUNT}", credential={"account_name": ACCOUNT, "account_key": KEY})
    container = client.create_container("shop")
    run("generate", "shop", "--users", 80_000, "--items", 200, "--events", 200_000)

    def add(name):
        (folder / "log").mkdir(exist_ok=True)
        (folder / "log" / name).write_bytes((folder / "shop/events.parquet").read_bytes())
        container.upload_blob(f"log/{name}", (folder / "log" / name).read_bytes())

    (folder / "far.toml").write_text(SPEC.replace("LOG", "az://shop/log/").replace("OUT", "az://shop/out/"))
    (folder / "near.toml").write_text(SPEC.replace("LOG", "log/").replace("OUT", "near/"))
    for number, name in enumerate(["a.parquet", "b.parquet", "c.parquet"]):
        add(name)
        far, near = run("run", "far.toml", "--since-last", "--json"), run("run", "near.toml", "--json")
        tables = {path: digest for path, digest in digests(far).items() if "_changes/" not in path}
        assert tables == digests(near), f"generation {number + 1}: {tables} for {digests(near)}"
    for place in ("out/runs/", "out/tables/"):
        largest = max(blob.size for blob in container.list_blobs(place))
        assert largest > 16 << 20, f"no file of {place} is sent in parts: {largest} bytes"
    publishers = [
        subprocess.Popen([tidemill, "run", "far.toml", "--set", f"top_k.k={k}"], cwd=folder, env=environment,
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for k in (1, 2, 3)
    ]
    for publisher in publishers:
        _, error = publisher.communicate()
        assert publisher.returncode == 0, error
    assert len(run("runs", "az://shop/out/", "--json")["runs"]) == 6
    run("rollback", "az://shop/out/")
    run("gc", "az://shop/out/", "--keep", 1, "--grace-hours", 0, "--delete")
    assert run("verify", "az://shop/out/", "--json")["problems"] == []
    run("run", "far.toml", "--since-last", "--set", "top_k.k=4")
    run("state", "verify", "far.toml")
finally:
    server.terminate()
print("az://: tables of a local run, three publishers at once, files in parts: ok")
