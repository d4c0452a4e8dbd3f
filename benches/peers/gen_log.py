#!/usr/bin/env python3
"""Write a synthetic interaction log as Parquet: power-law items, lognormal users, 64 latent taste clusters.

usage: gen_log.py N_USERS N_ITEMS N_EVENTS OUT.parquet [--string-ids] [--seed N]
Columns: user_id, item_id (int64, or string with --string-ids), event (view|click|cart|purchase),
timestamp (us, UTC). The same arguments give the same rows.
"""
import argparse

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

N_CLUSTERS, TASTES_PER_USER, IN_TASTE = 64, 3, 0.7


def users_of_events(rng, n_users, n_events):
    """The user of each event: activity is lognormal, and everybody has an event."""
    w = rng.lognormal(0, 1.1, n_users)
    w /= w.sum()
    return np.repeat(np.arange(n_users, dtype=np.int32), np.maximum(1, rng.poisson(w * n_events)))


def items_of_events(rng, user, n_users, n_items):
    """The item of each event: most from the user's tastes, the rest from all by popularity."""
    n, n_clusters = len(user), min(N_CLUSTERS, n_items)
    popularity = 1.0 / np.power(np.arange(1, n_items + 1) + 20, 0.9)
    item_cluster = rng.integers(0, n_clusters, n_items)
    tastes = rng.integers(0, n_clusters, (n_users, TASTES_PER_USER))
    item = np.empty(n, np.int32)
    in_taste = rng.random(n) < IN_TASTE
    cdf = np.cumsum(popularity) / popularity.sum()
    item[~in_taste] = np.searchsorted(cdf, rng.random((~in_taste).sum()))
    cluster = tastes[user[in_taste], rng.integers(0, TASTES_PER_USER, in_taste.sum())]
    order = np.argsort(item_cluster, kind="stable")
    starts = np.searchsorted(item_cluster[order], np.arange(n_clusters))
    ends = np.append(starts[1:], n_items)
    picked, r = np.empty(len(cluster), np.int32), rng.random(len(cluster))
    for c in range(n_clusters):
        of_cluster, members = cluster == c, order[starts[c]:ends[c]]
        if len(members) == 0:
            picked[of_cluster] = np.searchsorted(cdf, r[of_cluster])
            continue
        q = np.cumsum(popularity[members])
        places = np.searchsorted(q / q[-1], r[of_cluster])
        picked[of_cluster] = members[np.minimum(places, len(members) - 1)]
    item[in_taste] = picked
    # The number of an item says nothing of its popularity.
    return rng.permutation(n_items).astype(np.int32)[np.minimum(item, n_items - 1)]


def ids(numbers, prefix, as_strings):
    if not as_strings:
        return pa.array(numbers.astype(np.int64))
    names = pa.array([f"{prefix}{number:09d}" for number in range(int(numbers.max()) + 1)])
    return names.take(pa.array(numbers))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("n_users", type=int)
    parser.add_argument("n_items", type=int)
    parser.add_argument("n_events", type=int)
    parser.add_argument("out")
    parser.add_argument("--string-ids", action="store_true")
    parser.add_argument("--seed", type=int, default=7)
    a = parser.parse_args()
    rng = np.random.default_rng(a.seed)
    user = users_of_events(rng, a.n_users, a.n_events)
    item = items_of_events(rng, user, a.n_users, a.n_items)
    n = len(user)
    time = (1_700_000_000 + rng.integers(0, 180 * 86_400, n)).astype(np.int64) * 1_000_000
    event = rng.choice(np.arange(4, dtype=np.int8), n, p=[.7, .2, .06, .04])
    o = rng.permutation(n)
    table = pa.table({
        "user_id": ids(user[o], "u", a.string_ids),
        "item_id": ids(item[o], "i", a.string_ids),
        "event": pa.DictionaryArray.from_arrays(pa.array(event[o]), ["view", "click", "cart", "purchase"]),
        "timestamp": pa.array(time[o], pa.timestamp("us", "UTC")),
    })
    pq.write_table(table, a.out, row_group_size=1 << 20, compression="zstd")
    print(f"{n} events, {len(np.unique(user))} users, {len(np.unique(item))} items -> {a.out}")


main()
