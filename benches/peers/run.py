#!/usr/bin/env python3
"""Tidemill beside the programs that a user would pick instead, on logs that this script makes.

Makes a virtual environment with pinned peers, generates the logs, builds Tidemill (the default release
build), then runs each peer and Tidemill in turn, several times, and writes a table of medians, ratios and
their range, as Markdown and as JSON. Every run reads its log from the file; a run that fails ends it all.

pieces:
  als64, als128  seconds per iteration of ALS with 64 and 128 factors, beside implicit's conjugate gradient:
                 (fit(8) - fit(3)) / 5 of one fit of eight iterations; the loss after five of them
  items          item-item cosine, 50 neighbors, beside the faster of implicit and similaripy
  lists          top-50 for all users from 64 factors, seen items removed, beside implicit.recommend
  histories      from the Parquet file to sorted histories, beside a read by pyarrow and a CSR build by scipy
  job            the whole job: peak memory and seconds
  growth         the whole job on three sizes of the log: seconds of each stage

examples:
  benches/peers/run.py                                   everything: 40 minutes or so on two cores, and a
                                                         quarter of an hour the first time
  benches/peers/run.py --only als64,items --repeats 7    these anew; the others stay as they were measured
  benches/peers/run.py --events 2000000 --growth 0.5,1,2 --repeats 2     a trial of a few minutes
  benches/peers/run.py --items 1000000 --only als64,items,histories      a large catalog
  benches/peers/run.py --items 1000000 --events 2000000 --only lists     the same for lists, in bearable time
  benches/peers/run.py --string-ids --only histories
"""
import argparse
import datetime
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
USERS_PER_EVENT, ITEMS, EVENTS = 138_000 / 20_000_000, 27_000, 20_000_000
FIRST, LAST = 3, 8  # Of the iterations of ALS: the rate is that of those after the third.
LOSS_AFTER, LOSS_TOLERANCE = 5, 0.001
SIMILARITY_TOLERANCE = 0.001
REPEATS_OF_GROWTH = 2
PIECES = ["als64", "als128", "items", "lists", "histories", "job", "growth"]
# With it a pair of one event weighs more than a pair of none, so no pair can be left out of products.
WEIGHING_ALPHA = 2.0

# ------------------------------------------------------------------------------------------------ specs

PLAIN = """
name = "{name}"
[[events]]
url = "{log}"
columns = {{ user = "user_id", item = "item_id" }}
[history]
interactions_per_user_max = 1000000
[limits]
memory_bytes_max = "1TiB"
[output]
url = "{out}"
"""
TYPED = PLAIN.replace('item = "item_id"', 'item = "item_id", time = "timestamp", event = "event"').replace("[history]", """\
[events.weights]
view = 1.0
click = 2.0
cart = 4.0
purchase = 8.0
[history]""")
ALS = """
[als]
dialect = "implicit"
n_factors = {factors}
iterations = {iterations}
regularization = 0.01
alpha = {alpha}
"""
NEIGHBORS = """
[item_neighbors]
n_neighbors = 50
"""
POPULARITY = """
[popularity]
"""
LISTS = """
[top_k]
k = 50
n_candidates = 50
candidates = {{ als = 1.0 }}
fallback = "none"
because = {because}
"""
WHOLE = TYPED + POPULARITY + NEIGHBORS + ALS + """
[top_k]
k = 50
"""
TO_HISTORIES = ["plan", "scan", "shuffle", "side tables", "histories"]


# ----------------------------------------------------------------------------------------------- running

def say(text):
    print(text, file=sys.stderr, flush=True)


def fail(text):
    say(f"error: {text}")
    sys.exit(1)


def execute(command):
    """Runs a command, which must succeed: its stdout, and the most memory that it held, in bytes."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen([str(word) for word in command], stdout=out, stderr=err, cwd=ROOT)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if child.returncode != 0:
            say(err.read().decode(errors="replace"))
            fail(f"{' '.join(map(str, command))} ended with {child.returncode}")
        scale = 1 if sys.platform == "darwin" else 1024
        return out.read().decode(), usage.ru_maxrss * scale


def check_call(command, **more):
    if subprocess.run([str(word) for word in command], **more).returncode != 0:
        fail(f"{' '.join(map(str, command))} failed")


class Bench:
    """Where everything is, and how to run it."""

    def __init__(self, a):
        self.a = a
        self.work = pathlib.Path(a.work).resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.python = a.python or self.environment()
        self.tidemill = a.tidemill or self.build()
        self.peaks = {}
        self.instruction_set = None

    def environment(self):
        """A virtual environment with what requirements.txt pins."""
        folder, pins = self.work / "venv", HERE / "requirements.txt"
        python, stamp = folder / "bin" / "python", folder / "requirements.txt"
        if not stamp.exists() or stamp.read_text() != pins.read_text():
            say("making the virtual environment of the peers")
            check_call([sys.executable, "-m", "venv", "--clear", folder])
            check_call([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", pins])
            shutil.copy(pins, stamp)
        return python

    def build(self):
        say("building tidemill")
        # Flags of the caller's would make it another program.
        environment = {key: value for key, value in os.environ.items() if key != "RUSTFLAGS"}
        check_call(["cargo", "build", "--release"], cwd=ROOT, env=environment)
        target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", "target"))
        return (ROOT / target / "release" / "tidemill").resolve()

    def log(self, events):
        """A log of so many events; users grow with them, items do not."""
        users, items = round(events * USERS_PER_EVENT), self.a.items
        strings = ["--string-ids"] if self.a.string_ids else []
        folder = pathlib.Path(self.a.logs).resolve() if self.a.logs else self.work
        path = folder / f"log-{users}-{items}-{events}{'-strings' if strings else ''}.parquet"
        if not path.exists():
            say(f"generating {path.name}")
            part = path.with_suffix(".part")
            execute([self.python, HERE / "gen_log.py", users, items, events, part, *strings])
            part.rename(path)
        with open(path, "rb") as file:  # So that nobody waits for the disk.
            while file.read(1 << 24):
                pass
        return path

    def peer(self, figure, log, **options):
        """Runs a peer in a process of its own: what it says of itself."""
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        command = [self.python, HERE / "peer.py", figure, log, "--threads", self.a.threads, *words]
        out, peak = execute(command)
        name = f"{figure} {options['factors']}" if "factors" in options else figure
        self.peaks[name] = max(peak, self.peaks.get(name, 0))
        return json.loads(out)

    def ours(self, spec, log, look=None, **values):
        """Runs a job into an empty folder: its profile, its counts, and the most memory that it held."""
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            folder = pathlib.Path(folder)
            text = spec.format(**{"name": "peers", "log": log, "out": folder / "out", "alpha": 1.0, **values})
            (folder / "job.toml").write_text(text)
            command = [self.tidemill, "run", folder / "job.toml", "--threads", self.a.threads, "--json"]
            out, peak = execute([*command, "--profile-stages-out", folder / "profile.json"])
            profile = json.loads((folder / "profile.json").read_text())
            manifest = json.loads(out)["manifest"]
            self.instruction_set = profile["instruction_set"]
            stages = {stage["name"]: stage for stage in profile["stages"]}
            run = {"profile": profile, "stages": stages, "counts": manifest["counts"], "peak": peak}
            if look:
                run["look"] = look(folder / "out")
            return run


def alternate(repeats, sides):
    """Runs all sides in turn, every other time the other way round: their results by name."""
    results = {name: [] for name in sides}
    for repeat in range(repeats):
        for name in list(sides) if repeat % 2 == 0 else reversed(sides):
            start = time.monotonic()
            results[name].append(sides[name]())
            say(f"  {repeat + 1}/{repeats} {name}: {time.monotonic() - start:.1f} s in all")
    return results


# ------------------------------------------------------------------------------------------------ pieces

def row(work, peer, peer_seconds, our_seconds, wanted, check=""):
    return {"work": work, "peer": peer, "peer_seconds": peer_seconds, "our_seconds": our_seconds,
            "wanted": wanted, "check": check}


def same(what, ours, theirs):
    if ours != theirs:
        fail(f"{what}: Tidemill has {ours} and the peer {theirs}; they do not do the same work")


def same_log(ours, theirs):
    same("pairs", ours["counts"]["interactions"], theirs["pairs"])


def als(bench, factors):
    work = f"ALS, {factors} factors, an iteration"
    return [als_row(bench, factors, 1.0, work, 3.0),
            als_row(bench, factors, WEIGHING_ALPHA, f"… with alpha = {WEIGHING_ALPHA:g}: every pair weighs", None)]


def als_row(bench, factors, alpha, work, wanted):
    log, per_iteration = bench.log(bench.a.events), lambda seconds: sum(seconds[FIRST:LAST]) / (LAST - FIRST)
    fit = {"factors": factors, "iterations": LAST, "alpha": alpha}
    runs = alternate(bench.a.repeats, {
        "implicit": lambda: bench.peer("als", log, loss_after=LOSS_AFTER, **fit),
        "tidemill": lambda: bench.ours(PLAIN + ALS, log, **fit),
    })
    theirs, ours = runs["implicit"], runs["tidemill"]
    same_log(ours[0], theirs[0])
    fits = [run["stages"]["als"] for run in ours]
    losses = fits[0]["loss"][LOSS_AFTER - 1], theirs[0]["loss"]
    off = losses[0] / losses[1] - 1
    check = f"loss after {LOSS_AFTER}: {losses[0]:.6f}, implicit {losses[1]:.6f} ({100 * off:+.3f} %)"
    if off > LOSS_TOLERANCE:
        check = f"**not equal**: {check}"
    return row(work, "implicit, CG", [per_iteration(run["iteration_seconds"]) for run in theirs],
               [per_iteration(fit["iteration_seconds"]) for fit in fits], wanted, check)


def items(bench):
    log = bench.log(bench.a.events)

    def look(out):
        return json.loads(execute([bench.python, HERE / "peer.py", "of-tables", out])[0])

    runs = alternate(bench.a.repeats, {
        "implicit": lambda: bench.peer("cosine-implicit", log),
        "similaripy": lambda: bench.peer("cosine-similaripy", log),
        "tidemill": lambda: bench.ours(PLAIN + NEIGHBORS, log, look),
    })
    ours = runs.pop("tidemill")
    seconds = {name: [run["seconds"] for run in of_peer] for name, of_peer in runs.items()}
    name = min(seconds, key=lambda name: statistics.median(seconds[name]))
    same_log(ours[0], runs[name][0])
    found, theirs = ours[0]["look"], runs[name][0]
    check = f"mean similarity {found['similarity']:.5f}, {name} {theirs['similarity']:.5f}"
    if abs(found["similarity"] / theirs["similarity"] - 1) > SIMILARITY_TOLERANCE:
        check = f"**not equal**: {check}"
    return [row("item-item cosine, 50 neighbors", f"{name}, the faster one", seconds[name],
                [run["stages"]["item neighbors"]["seconds"] for run in ours], 4.0, check)]


def lists(bench):
    log = bench.log(bench.a.events)
    ours = lambda because: bench.ours(
        PLAIN + ALS + LISTS, log, factors=64, iterations=LOSS_AFTER, because=because)
    runs = alternate(bench.a.repeats, {
        "implicit": lambda: bench.peer("lists", log, factors=64, iterations=LOSS_AFTER, k=50),
        "tidemill": lambda: ours("false"),
        "tidemill with reasons": lambda: ours("true"),
    })
    theirs, bare, reasoned = runs["implicit"], runs["tidemill"], runs["tidemill with reasons"]
    same_log(bare[0], theirs[0])
    for run in (bare[0], reasoned[0]):
        same("rows of lists", run["counts"]["list_rows"], theirs[0]["rows"])
    peer, users = "implicit.recommend", bare[0]["counts"]["users"]
    their_seconds = [run["seconds"] for run in theirs]
    our_seconds = lambda runs: [run["stages"]["top-k lists"]["seconds"] for run in runs]
    return [
        row(f"top-50 for {users:,} users, 64 factors, seen removed", peer, their_seconds, our_seconds(bare), 6.0,
            "items and scores; ours writes the table"),
        row("… with a reason for each entry", peer, their_seconds, our_seconds(reasoned), None,
            "the peer gives no reasons"),
    ]


def to_histories(run):
    return sum(run["stages"][name]["seconds"] for name in TO_HISTORIES)


def histories(bench):
    log = bench.log(bench.a.events)
    runs = alternate(bench.a.repeats, {
        "pyarrow": lambda: bench.peer("histories", log),
        "tidemill": lambda: bench.ours(PLAIN + POPULARITY, log),
        "tidemill with types": lambda: bench.ours(TYPED + POPULARITY, log),
    })
    theirs = [run["histories_seconds"] for run in runs["pyarrow"]]
    same_log(runs["tidemill"][0], runs["pyarrow"][0])
    peer, ids = "pyarrow and scipy CSR", "string ids" if bench.a.string_ids else "integer ids"
    return [
        row(f"scan to histories, {ids}", peer, theirs,
            [to_histories(run) for run in runs["tidemill"]], 3.0, "the same two columns"),
        row("… with times and event types", peer, theirs,
            [to_histories(run) for run in runs["tidemill with types"]], None, "ours reads two columns more"),
    ]


def job(bench):
    log = bench.log(bench.a.events)
    run = {"tidemill": lambda: bench.ours(WHOLE, log, factors=64, iterations=LOSS_AFTER)}
    ours = alternate(min(bench.a.repeats, 2), run)["tidemill"]
    peak = max(run["peak"] for run in ours)
    at = max(ours[0]["profile"]["stages"], key=lambda stage: stage.get("memory_bytes_peak", 0))["name"]
    return [{"work": "whole job, peak memory", "peak_bytes": peak, "wanted_bytes": 1.5e9,
             "our_seconds": [run["profile"]["seconds"] for run in ours],
             "check": f"reached in \"{at}\""}]


def growth(bench):
    sizes = [round(float(size) * 1e6) for size in bench.a.growth.split(",")]
    logs = [bench.log(events) for events in sizes]
    sides = {f"{events / 1e6:g} M": lambda log=log: bench.ours(WHOLE, log, factors=64, iterations=LOSS_AFTER)
             for events, log in zip(sizes, logs)}
    runs = alternate(min(bench.a.repeats, REPEATS_OF_GROWTH), sides)
    return {"events": sizes, "stages": {name: growth_of(name, list(runs.values())) for name in names(runs)},
            "peak_bytes": [max(run["peak"] for run in of_size) for of_size in runs.values()]}


def names(runs):
    first = next(iter(runs.values()))[0]
    return ["to histories", *(name for name in first["stages"] if name != "plan"), "als iteration"]


def growth_of(name, by_size):
    def seconds(run):
        match name:
            case "to histories":
                return to_histories(run)
            case "als iteration":
                return statistics.median(run["stages"]["als"]["iteration_seconds"])
        return run["stages"][name]["seconds"]

    return [statistics.median(map(seconds, runs)) for runs in by_size]


# ------------------------------------------------------------------------------------------------ tables

def spread(values, digits=2):
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def table(results):
    lines = ["| work | beside | its seconds | Tidemill's seconds | times faster | at least | |",
             "|---|---|---|---|---|---|---|"]
    for piece in PIECES:
        lines += [line(row) for row in results["pieces"].get(piece, {"rows": []})["rows"]]
    return "\n".join(lines)


def line(row):
    ours = spread(row["our_seconds"])
    if "peak_bytes" in row:
        peak, wanted = f"{row['peak_bytes'] / 1e9:.2f} GB", f"≤ {row['wanted_bytes'] / 1e9:.1f} GB"
        return f"| {row['work']} | | | {ours} | {peak} | {wanted} | {row['check']} |"
    ratios = [theirs / ours for theirs, ours in zip(row["peer_seconds"], row["our_seconds"])]
    wanted = f"{row['wanted']:g}×" if row["wanted"] else ""
    theirs, faster = spread(row["peer_seconds"]), f"**{statistics.median(ratios):.2f}×** ({min(ratios):.2f}–{max(ratios):.2f})"
    return f"| {row['work']} | {row['peer']} | {theirs} | {ours} | {faster} | {wanted} | {row['check']} |"


def growth_table(of_growth):
    events = of_growth["events"]
    heads = [f"{size / 1e6:g} M events" for size in events]
    pairs = list(zip(events, events[1:]))
    heads += [f"× for {after / before:g} times" for before, after in pairs]
    lines = [f"| stage | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name, seconds in of_growth["stages"].items():
        ratios = [f"{after / max(before, 1e-9):.2f}" for before, after in zip(seconds, seconds[1:])]
        lines.append(f"| {name} | {' | '.join([f'{s:.2f} s' for s in seconds] + ratios)} |")
    peaks = of_growth["peak_bytes"]
    ratios = [f"{after / before:.2f}" for before, after in zip(peaks, peaks[1:])]
    lines.append(f"| peak memory | {' | '.join([f'{peak / 1e9:.2f} GB' for peak in peaks] + ratios)} |")
    return "\n".join(lines)


def machine(bench):
    """What it ran on."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    of = lambda key: next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")
    flags = of("flags").split()
    bytes_of_memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": of("model name") or platform.processor() or platform.machine(),
        "family": f"family {of('cpu family')}, model {of('model')}" if lines else "",
        "cores": os.cpu_count(),
        "caches": " ".join(caches()),
        "memory": f"{bytes_of_memory / 2**30:.0f} GiB",
        "instructions": " ".join(flag for flag in ("avx2", "fma", "avx512f", "avx512vl", "avx512_bf16") if flag in flags),
        "system": f"{platform.system()} {platform.release()}",
    }


def caches():
    folder = pathlib.Path("/sys/devices/system/cpu/cpu0/cache")
    for index in sorted(folder.glob("index*")):
        read = lambda name: (index / name).read_text().strip()
        if read("type") != "Instruction":
            yield f"L{read('level')} {read('size')}"


def versions(bench):
    ask = "import importlib.metadata as m, json, sys; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
    packages = [pin.split("==")[0] for pin in (HERE / "requirements.txt").read_text().split()]
    of_peers = json.loads(execute([bench.python, "-c", ask, *packages])[0])
    found = {"tidemill": execute([bench.tidemill, "--version"])[0].strip().split()[-1], **of_peers}
    found["python"] = execute([bench.python, "--version"])[0].split()[-1]
    for name, command in {"rustc": ["rustc", "--version"], "commit": ["git", "describe", "--always", "--dirty", "--exclude", "*"]}.items():
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if told.returncode == 0:
            found[name] = told.stdout.strip().removeprefix("rustc ")
    return found


def machine_text(results):
    of, versions = results["machine"], results["versions"]
    used = {of_piece["instruction_set"] for of_piece in all_pieces(results).values()}
    return (
        f"{of['cores']} × {of['cpu']} ({of['family']}; {of['caches']}; {of['instructions']}), {of['memory']}, "
        f"{of['system']}. Tidemill uses {' and '.join(sorted(used))}. {results['threads']} threads for everybody. "
        + ", ".join(f"{name} {version}" for name, version in versions.items()) + "." + of_other_commits(results))


def all_pieces(results):
    return {**results["pieces"], **({"growth": results["growth"]} if results["growth"] else {})}


def of_other_commits(results):
    """A line on the pieces that an earlier call measured, of other code."""
    now = results["versions"].get("commit")
    old = [f"{piece} of {of_piece['commit']}" for piece, of_piece in all_pieces(results).items() if of_piece["commit"] != now]
    return f" Measured before: {', '.join(old)}." if old else ""


def markdown(results):
    log = results["log"]
    out = [f"{log['events']:,} events asked for, {log['users']:,} users, {log['items']:,} items, "
           f"{'string' if log['string_ids'] else 'integer'} ids.", machine_text(results)]
    if results["pieces"]:
        out.append(table(results))
        out.append("Medians (lowest–highest); times faster is that of the runs that followed each other.")
    if results["growth"]:
        out.append(growth_table(results["growth"]))
    if results["peaks"]:
        peaks = ", ".join(f"{name} {peak / 1e9:.2f} GB" for name, peak in results["peaks"].items())
        out.append(f"Most memory of a peer's process: {peaks}.")
    return "\n\n".join(out) + "\n"


def put(path, block, text):
    """Replaces what is between the marks of a block."""
    whole, begin, end = path.read_text(), f"<!-- {block} -->\n", f"<!-- end {block} -->"
    if begin not in whole or end not in whole:
        say(f"{path} has no block {block!r}; it is left as it is")
        return
    before, rest = whole.split(begin, 1)
    path.write_text(before + begin + text + "\n" + end + rest.split(end, 1)[1])


def write_performance(results, path):
    log = results["log"]
    kind = f"{log['items']} items, {log['events']} events" + (", string ids" if log["string_ids"] else "")
    put(path, "machine", machine_text(results))
    if results["pieces"]:
        put(path, f"peers: {kind}", table(results))
    if results["growth"]:
        put(path, f"growth: {log['items']} items", growth_table(results["growth"]))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PIECES", default=",".join(PIECES), help="pieces, with commas between them [default: all]")
    parser.add_argument("--repeats", type=int, default=5, help=f"runs of each side [default: 5]; of growth {REPEATS_OF_GROWTH} at most")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count()), help="of each side [default: 2]")
    parser.add_argument("--events", type=int, default=EVENTS, help=f"events of the log [default: {EVENTS}]")
    parser.add_argument("--items", type=int, default=ITEMS, help=f"items of all logs [default: {ITEMS}]")
    parser.add_argument("--string-ids", action="store_true", help="logs with ids of text")
    parser.add_argument("--growth", metavar="SIZES", default="5,20,80", help="millions of events [default: 5,20,80]")
    parser.add_argument("--work", default=ROOT / "target" / "peers", help="folder of all that is made [default: target/peers]")
    parser.add_argument("--logs", help="folder of the logs [default: --work]")
    parser.add_argument("--python", help="a Python that has the peers, instead of an environment of our own")
    parser.add_argument("--tidemill", help="a program that is built already")
    parser.add_argument("--out", metavar="FILE.md", help="the tables as Markdown; JSON beside them [default: results….md in --work]")
    parser.add_argument("--performance", metavar="FILE.md", help="put the tables into the marked blocks of this file: PERFORMANCE.md")
    a = parser.parse_args()
    a.only = a.only.split(",")
    unknown = sorted(set(a.only) - set(PIECES))
    if unknown or a.repeats < 1:
        parser.error(f"unknown pieces {', '.join(unknown)}" if unknown else "--repeats must be 1 at least")
    return a


def results_path(bench):
    if bench.a.out:
        return pathlib.Path(bench.a.out).resolve()
    strings = "-strings" if bench.a.string_ids else ""
    return bench.work / f"results-{bench.a.events}-{bench.a.items}{strings}.md"


def measured_before(bench, path):
    """Pieces that earlier calls measured on this machine and log, with as many threads; they are kept."""
    before, path = {}, path.with_suffix(".json")
    if path.exists():
        before = json.loads(path.read_text())
        if before["machine"] != machine(bench) or before["threads"] != bench.a.threads:
            before = {}
    return {key: before.get(key, empty) for key, empty in {"pieces": {}, "growth": None, "peaks": {}}.items()}


def main():
    a = arguments()
    bench = Bench(a)
    path, run = results_path(bench), {
        "als64": lambda: als(bench, 64), "als128": lambda: als(bench, 128), "items": lambda: items(bench),
        "lists": lambda: lists(bench), "histories": lambda: histories(bench), "job": lambda: job(bench),
        "growth": lambda: growth(bench),
    }
    results = {
        "log": {"events": a.events, "users": round(a.events * USERS_PER_EVENT), "items": a.items, "string_ids": a.string_ids},
        "threads": a.threads, "machine": machine(bench), "versions": versions(bench), **measured_before(bench, path),
    }
    for piece in (piece for piece in PIECES if piece in a.only):
        say(piece)
        start, found = time.monotonic(), run[piece]()
        minutes = round((time.monotonic() - start) / 60, 1)
        of_piece = {"repeats": a.repeats, "minutes": minutes, "date": f"{datetime.date.today()}",
                    "commit": results["versions"].get("commit"), "instruction_set": bench.instruction_set}
        if piece == "growth":
            results["growth"] = {**found, **of_piece}
        else:
            results["pieces"][piece] = {"rows": found, **of_piece}
        results["peaks"] = {**results["peaks"], **bench.peaks}
        say(f"  {minutes} minutes")
        # After each piece, so that one that fails costs no other.
        path.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
        path.write_text(markdown(results))
    if a.performance:
        write_performance(results, pathlib.Path(a.performance))
    print(markdown(results))
    rows = [row for piece, of_piece in results["pieces"].items() if piece in a.only for row in of_piece["rows"]]
    if any("not equal" in row["check"] for row in rows):
        fail("the two sides do not have the same result; the times do not compare")


main()
