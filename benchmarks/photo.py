"""Marking a 12-megapixel photo on one core: ours against the reference way, a Python loop that calls pnoise2 per pixel.

Example: python benchmarks/photo.py --out results/bench-photo.json
The reference's noise is followed by the same blend; both run in one process. Needs the package `noise`,
which `make test` installs.
"""

import argparse
import resource
import statistics
import time

import numpy as np
import perlin
import torch

import runs
import utils
from provenance.protect import mark_photo


def reference_mark(pixels, key, number, marking):
    """Per-pixel noise in coordinates of the photo, then Eq. 1, on whole float arrays."""
    height, width, _ = pixels.shape
    period, octaves, freq_sine, offset = (value[0] for value in utils.perlin_draws(key, [0], [number]))
    period = period * max(1, min(height, width) / utils.REFERENCE_SIZE)  # in pixels of the photo
    signs = perlin.reference_field(height, width, period, int(octaves), freq_sine, offset)
    marked = np.clip(pixels.astype(np.float32) + signs[..., None] * marking.noise_norm, 0, 255)
    outlier = utils.outlier_features(key, [0], height, width).expand(1, 3, height, 1)[0].permute(1, 2, 0).numpy()
    return np.round(marked * marking.img_blending_ratio + outlier * (1 - marking.img_blending_ratio)).astype(np.uint8)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs=2, type=int, default=[3000, 4000], help="height and width in pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pixels = np.random.default_rng(1).integers(0, 256, (*args.size, 3), dtype=np.uint8)
    key, marking, before, rounds = b"benchmark", utils.Marking(), _peak(), []
    for number in range(args.rounds):
        start = time.perf_counter()
        mark_photo(pixels, key, number, marking)
        rounds.append({"octaves": int(utils.perlin_draws(key, [0], [number])[1][0]),
                       "ours_s": time.perf_counter() - start})
    peak = _peak()
    for number, row in enumerate(rounds):
        start = time.perf_counter()
        reference_mark(pixels, key, number, marking)
        row["reference_s"] = time.perf_counter() - start
    ratios = [row["reference_s"] / row["ours_s"] for row in rounds]
    result = {"what": "marking one photo on one core", "size": args.size, "rounds": rounds,
              "median_ratio": statistics.median(ratios), "ratios": [min(ratios), max(ratios)],
              "slowest_s": max(row["ours_s"] for row in rounds), "peak_GB": peak, "peak_before_GB": before,
              "hardware": perlin.experiment.hardware_name(torch.device("cpu"))}
    print(f"{args.size[1]} x {args.size[0]} px on one core: ours at most {result['slowest_s']:.2f} s, reference "
          f"{statistics.median(row['reference_s'] for row in rounds):.1f} s, ratio {result['median_ratio']:.0f} "
          f"({min(ratios):.0f} to {max(ratios):.0f}); peak memory of the process {peak:.2f} GB ({before:.2f} before)")
    if args.out:
        runs.write_json(args.out, result)


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
