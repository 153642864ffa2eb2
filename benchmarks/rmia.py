"""RMIA's counts: sorting and searching against the dense matrix of ratios, both over all pairs of records.

Example: python -m benchmarks.rmia --out results/bench-rmia.json
Times both alternately on one core and checks that every count is equal. The dense way makes its float64 matrix for some
records at a time (--rows): in one piece 50,000 x 10,000 would be 4 GB (2 GB in float32), and slower. Ours is called ten
times a round. Peak memory is that of the arrays a call makes (tracemalloc): of ours for all records, of the dense
matrix in float32 for --dense_records; for all records it is computed (4 bytes a pair and 1 for the comparison).
"""

import statistics
import sys
import tracemalloc

import numpy as np

import utils
from attacks import rmia
from benchmarks import common
from kit.errors import run_script

GAMMA, CALLS = 2.0, 10


def ratios(records, population):
    """Log-normal ratios of records and population, float64, the same at every call."""
    draws = utils.key_generator(0, "benchmark of RMIA")
    return np.exp(draws.normal(size=records)), np.exp(draws.normal(size=population))


def dense(ratio_x, ratio_z, rows):
    """The share of z that each x dominates, from the matrix of all ratios, `rows` records at a time."""
    return np.concatenate(
        [(ratio_x[start : start + rows, None] / ratio_z > GAMMA).mean(axis=1) for start in range(0, len(ratio_x), rows)]
    )


def peak_mb(call):
    """Peak memory in MB of the arrays that `call()` makes."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def main():
    flags = common.parser(__doc__)
    flags.add_argument("--records", type=common.COUNT, default=50_000)
    flags.add_argument("--population", type=common.COUNT, default=10_000)
    flags.add_argument(
        "--rows", type=common.COUNT, default=100, help="records that the timed dense way takes at a time"
    )
    flags.add_argument("--dense_records", type=common.COUNT, default=10_000, help="for the dense way's peak memory")
    args, device = common.start(flags)
    ratio_x, ratio_z = ratios(args.records, args.population)
    equal = bool((dense(ratio_x, ratio_z, args.rows) == rmia.share_dominated(ratio_x, ratio_z, GAMMA)).all())
    found = common.summary(
        common.alternate(
            lambda: dense(ratio_x, ratio_z, args.rows),
            lambda: [rmia.share_dominated(ratio_x, ratio_z, GAMMA) for _ in range(CALLS)],
            args.rounds,
        ),
        CALLS,
    )
    dense_ms, ours_ms = (
        1e3 * statistics.median(row[side] for row in found["rounds"]) for side in ("reference_s", "ours_s")
    )
    some_x, some_z = ratio_x[: args.dense_records].astype(np.float32), ratio_z.astype(np.float32)
    memory = {
        "ours_peak_MB": peak_mb(lambda: rmia.share_dominated(ratio_x, ratio_z, GAMMA)),
        "dense_float32_peak_MB": peak_mb(lambda: dense(some_x, some_z, len(some_x))),
        "dense_float32_records": len(some_x),
        "dense_float32_all_GB_computed": 5 * args.records * args.population / 1e9,
    }
    print(
        f"{args.records} x {args.population}: dense {dense_ms:.0f} ms ({args.rows} records at a time), ours "
        f"{ours_ms / CALLS:.1f} ms, ratio {found['median_ratio']:.0f} ({found['ratios'][0]:.0f} to "
        f"{found['ratios'][1]:.0f}), counts {'all equal' if equal else 'NOT equal'}; peak memory: ours "
        f"{memory['ours_peak_MB']:.1f} MB, dense float32 {memory['dense_float32_peak_MB']:.0f} MB for {len(some_x)} "
        f"records ({memory['dense_float32_all_GB_computed']:.1f} GB computed for all)"
    )
    common.write(
        args,
        {
            "what": "RMIA, share of dominated population records",
            "records": args.records,
            "population": args.population,
            "dense_rows_at_a_time": args.rows,
            "ours_calls_a_round": CALLS,
            "counts_equal": equal,
            "ours_ms": ours_ms / CALLS,
            "dense_ms": dense_ms,
            **memory,
            **found,
        },
        device,
    )
    if not equal:
        sys.exit("error: counts differ from the dense ones")


if __name__ == "__main__":
    run_script(main)
