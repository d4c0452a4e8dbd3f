#!/usr/bin/env python3
"""Golden numbers of ALS: a dense float64 solver in numpy that shares no code with the kernels.

usage: als.py [--check]     needs numpy; `implicit` (0.7) as well to write, and to check its numbers

Without an option writes als.json beside this script: a small log, the starting values of the items
and, for each case, the predictions x . y of all pairs after many iterations. With --check computes
them anew and fails where a committed number is further off than 1e-6 (implicit: 1e-5).

One iteration solves all users from the items, then all items from the users. A user and an item
have no events and one user has negative weights alone: they get zeros.
"""
import importlib.util, json, os, pathlib, re, sys

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small matrices, and implicit asks for it

import numpy as np

N_USERS, N_ITEMS, N_FACTORS, ITERATIONS = 20, 12, 4, 400
FILE = pathlib.Path(__file__).with_name("als.json")
NAMES = "name dialect confidence alpha epsilon unobserved exponent regularization negative"
CASES = [dict(zip(NAMES.split(), case)) for case in [
    ("implicit", "implicit", "linear", 2.0, None, None, None, 0.5, True),
    ("implicit, log", "implicit", "log", 1.5, 0.5, None, None, 0.8, True),
    ("hu-koren", "hu-koren", "linear", 3.0, None, None, None, 0.6, True),
    ("hu-koren, log", "hu-koren", "log", 4.0, 0.2, None, None, 0.9, False),
    ("spark", "spark", "linear", 2.0, None, None, None, 0.1, True),
    ("spark, log", "spark", "log", 3.0, 1.0, None, None, 0.15, False),
    ("ials++", "ials++", "linear", None, None, 0.1, 1.0, 0.05, False),
    ("ials++, exponent 0.5, negative", "ials++", "linear", None, None, 0.3, 0.5, 0.1, True),
]]


def weights(negative):
    """r of each pair, 0 where there is none: integers and halves, from a formula."""
    r = np.zeros((N_USERS, N_ITEMS))
    for user in range(N_USERS - 1):
        for item in range(N_ITEMS - 1):
            mix = (user * 37 + item * 101 + user * item * 13 + (user % 3) * (item % 4) * 29) % 97
            if mix < 38 or user % 4 == item % 4:
                r[user, item] = 0.5 * (1 + mix % 9)
                if negative and mix % 7 == 3:
                    r[user, item] *= -1
    if negative:
        r[3] = np.where(r[3] != 0, -np.abs(r[3]), 0)
    return r


def start():
    """Starting values of the items, in [-0.5, 0.5]; zeros for the item without events."""
    grid = np.arange(N_ITEMS * N_FACTORS).reshape(N_ITEMS, N_FACTORS)
    y = ((grid * 7919 + 13) % 1000 - 500) / 1000
    y[-1] = 0
    return y


def confidences(case, r):
    """c where something was observed, 0 elsewhere."""
    size = np.abs(r)
    linear = case["confidence"] == "linear"
    if case["dialect"] == "ials++":
        return (size > 0) * 1.0
    s = case["alpha"] * (size if linear else np.log1p(size / case["epsilon"]))
    return np.where(size > 0, s if case["dialect"] == "implicit" else 1 + s, 0)


def lambdas(case, r):
    """Regularization of each row of `r`."""
    observed, positive = (r != 0).sum(1), (r > 0).sum(1)
    if case["dialect"] == "spark":
        return case["regularization"] * np.maximum(positive, 1)
    if case["dialect"] == "ials++":
        return case["regularization"] * (observed + case["unobserved"] * r.shape[1]) ** case["exponent"]
    return np.full(len(r), case["regularization"])


def half(case, r, other):
    """The best rows given the other side: the weighted normal equations, written out."""
    c = confidences(case, r)
    if case["dialect"] == "ials++":  # 1 for an observed pair, and alpha_0 for every pair
        weight = case["unobserved"] + c
    else:
        weight = np.where(r != 0, c, 1)
    a = np.einsum("ui,ik,il->ukl", weight, other, other)
    a += lambdas(case, r)[:, None, None] * np.eye(other.shape[1])
    b = (np.where(r > 0, c, 0)) @ other
    return np.linalg.solve(a, b[..., None])[..., 0]


def dense(case):
    r, y = weights(case["negative"]), start()
    for _ in range(ITERATIONS):
        x = half(case, r, y)
        y = half(case, r.T, x)
    return x @ y.T


def of_implicit(case):
    """What `implicit` predicts with its default solver, three steps of conjugate gradient."""
    import scipy.sparse as sp
    from implicit.als import AlternatingLeastSquares

    r = weights(case["negative"])
    model = AlternatingLeastSquares(
        factors=N_FACTORS, iterations=ITERATIONS, regularization=case["regularization"], alpha=1.0,
        dtype=np.float64, use_gpu=False, num_threads=1)
    model.user_factors, model.item_factors = np.zeros((N_USERS, N_FACTORS)), start()
    model.fit(sp.csr_matrix(confidences(case, r) * np.sign(r)), show_progress=False)
    return model.user_factors @ model.item_factors.T


def rows(matrix):
    return [[round(float(value), 8) for value in row] for row in matrix]


def check(committed, with_implicit):
    problems = []
    if committed["weights"] != weights(False).tolist() or committed["start"] != start().tolist():
        problems.append("the log or the start differs")
    for case in committed["cases"]:
        pairs = [("predictions", dense, 1e-6)]
        if with_implicit and "implicit" in case:
            pairs.append(("implicit", of_implicit, 1e-5))
        for key, predict, tolerance in pairs:
            off = np.abs(predict(case) - np.array(case[key])).max()
            if not off <= tolerance:
                problems.append(f"{case['name']}: {key} off by {off:.2g}")
    return problems


if sys.argv[1:] == ["--check"]:
    with_implicit = importlib.util.find_spec("implicit") is not None
    committed = json.loads(FILE.read_text())
    problems = check(committed, with_implicit)
    print(json.dumps({"cases": len(committed["cases"]), "implicit": with_implicit, "problems": problems, "ok": not problems}))
    sys.exit(bool(problems))
for case in CASES:
    case["predictions"] = rows(dense(case))
    if case["dialect"] in ("implicit", "hu-koren"):
        case["implicit"] = rows(of_implicit(case))
        off = np.abs(np.array(case["implicit"]) - np.array(case["predictions"])).max()
        print(f"{case['name']}: implicit is off by {off:.2g} at most")
golden = {"n_factors": N_FACTORS, "iterations": ITERATIONS, "weights": weights(False).tolist(),
          "negative_weights": weights(True).tolist(), "start": start().tolist(), "cases": CASES}
text = json.dumps(golden, indent=1)
# One matrix row per line.
text = re.sub(r"\[\s+(-?[\d.e-]+,?\s*)+\]", lambda row: re.sub(r"\s+", "", row.group()).replace(",", ", "), text)
FILE.write_text(text + "\n")
