#!/usr/bin/env python3
"""Time what a user would pick instead of Tidemill on one interaction log; one JSON object on stdout.

Repeated pairs of a user and an item are summed into one weight, every event counting 1.
run.py calls this once per figure, in turn with Tidemill: one absolute time on a shared machine says nothing.
"""
import argparse
import json
import os
import time

for variable in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(variable, None)

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

REGULARIZATION = 0.01


def numbers(column):
    """Ids as numbers from 0: integers are taken as they are, as they are dense in these logs."""
    if pa.types.is_integer(column.type):
        return column.to_numpy()
    return column.combine_chunks().dictionary_encode().indices.to_numpy()


def histories(log):
    """[n_users, n_items], and the seconds that it took from the file."""
    start = time.perf_counter()
    table = pq.read_table(log, columns=["user_id", "item_id"])
    user, item = numbers(table["user_id"]), numbers(table["item_id"])
    matrix = sp.coo_matrix((np.ones(len(user), np.float32), (user, item))).tocsr()
    matrix.sum_duplicates()
    return matrix, time.perf_counter() - start


def als_model(a, iterations):
    from implicit.als import AlternatingLeastSquares

    # implicit's own advice: its threads, and none of the library below.
    threadpool_limits(1, "blas")
    return AlternatingLeastSquares(
        factors=a.factors, iterations=iterations, regularization=REGULARIZATION, alpha=1.0, use_cg=True,
        use_gpu=False, random_state=1, num_threads=a.threads)


def als(a, matrix):
    """Seconds of each iteration, as the library measures them, and the loss after --loss_after."""
    from implicit.cpu.als import _als

    model, seconds, loss = als_model(a, a.iterations), [], []
    matrix = matrix * np.float32(a.alpha)

    def after(iteration, elapsed, _):
        # Computed after the clock of the iteration has stopped.
        seconds.append(elapsed)
        if iteration + 1 == a.loss_after:
            factors = (model.user_factors, model.item_factors)
            loss.append(_als.calculate_loss(matrix, *factors, REGULARIZATION, num_threads=a.threads))

    model.fit(matrix, show_progress=False, callback=after)
    return {"iteration_seconds": seconds, "loss": float(loss[0]) * weights(matrix)}


def weights(matrix):
    """Summed weight of all pairs over that of the pairs of users and items that occur.

    The loss is a mean over all pairs. Ids that the log leaves out are rows and columns of the matrix, with
    factors of zeros, and nothing in Tidemill.
    """
    n_users, n_items = (np.diff(side.indptr).astype(bool).sum() for side in (matrix, matrix.tocsc()))
    observed = matrix.data.astype(np.float64).sum() - matrix.nnz
    return (observed + matrix.shape[0] * matrix.shape[1]) / (observed + float(n_users) * float(n_items))


def lists(a, matrix):
    model = als_model(a, a.iterations)
    model.fit(matrix, show_progress=False)
    threadpool_limits(a.threads, "blas")
    users, start = np.arange(matrix.shape[0]), time.perf_counter()
    ids, _ = model.recommend(users, matrix, N=a.k)
    return {"seconds": time.perf_counter() - start, "rows": int(ids.size)}


def neighbors(matrix, recommend):
    """Of binary weights; an item is its own neighbor in the peers' lists, so they hold one more."""
    binary = matrix.copy()
    binary.data[:] = 1
    start = time.perf_counter()
    found = recommend(binary)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, **similarity(found.tocoo())}


def similarity(found):
    others = found.row != found.col
    return {"neighbors": int(others.sum()), "similarity": float(found.data[others].astype(np.float64).mean())}


def cosine_implicit(a, matrix):
    from implicit.nearest_neighbours import CosineRecommender

    def recommend(binary):
        model = CosineRecommender(K=a.neighbors + 1, num_threads=a.threads)
        model.fit(binary, show_progress=False)
        return model.similarity

    return neighbors(matrix, recommend)


def cosine_similaripy(a, matrix):
    import similaripy

    def recommend(binary):
        k = a.neighbors + 1
        return similaripy.cosine(binary.T.tocsr(), k=k, num_threads=a.threads, verbose=False)

    return neighbors(matrix, recommend)


def of_tables(folder):
    """What the neighbor lists that Tidemill wrote hold, to be held against the peers'."""
    score = pq.read_table(os.path.join(folder, "tables", "item_neighbors"), columns=["score"])["score"]
    return {"neighbors": len(score), "similarity": float(score.to_numpy().astype(np.float64).mean())}


FIGURES = {"histories": lambda a, matrix: {}, "als": als, "lists": lists, "cosine-implicit": cosine_implicit,
           "cosine-similaripy": cosine_similaripy}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=[*FIGURES, "of-tables"])
    parser.add_argument("path", help="the log; for of-tables the output of a Tidemill job")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--factors", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--loss_after", type=int, default=5)
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--neighbors", type=int, default=50)
    a = parser.parse_args()
    if a.figure == "of-tables":
        print(json.dumps(of_tables(a.path)))
        return
    pa.set_cpu_count(a.threads)
    matrix, seconds = histories(a.path)
    sizes = {"users": matrix.shape[0], "items": matrix.shape[1], "pairs": matrix.nnz}
    print(json.dumps({**sizes, "histories_seconds": seconds, **FIGURES[a.figure](a, matrix)}))


main()
