"""Perlin noise: our batched matrix products against the reference way, a Python loop that calls pnoise2 for each pixel.

Example: python benchmarks/perlin.py --size 224 --out results/bench-perlin.json
Both make the same fields (same period, octaves, frequency and offset), alternately in one process, and are compared.
Needs the package `noise`, which `make test` installs.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import experiment
import runs
import utils

try:
    from noise import pnoise2
except ImportError:
    sys.exit("error: the package noise is not installed; run make test once, or pip install noise (needs a C compiler)")


def reference_field(height, width, period, octaves, freq_sine, offset):
    """The generator of Co et al. (CCS'19) as its description has it: one call a pixel, then the sine; int8 signs."""
    field = np.empty((height, width), dtype=np.float32)
    for row in range(height):
        for column in range(width):
            field[row, column] = pnoise2(offset[0] + row / period, offset[1] + column / period, octaves=octaves)
    field = (field - field.min()) / (field.max() - field.min())
    field = np.sin(field * freq_sine * np.pi)
    field = (field - field.min()) / (field.max() - field.min())
    return np.sign(field - 0.5).astype(np.int8)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=64, help="images that ours makes at once")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", help="JSON file to write")
    args = parser.parse_args()
    key, users, numbers = utils.derive_key(1, "benchmark"), np.zeros(args.batch), np.arange(args.batch)
    period, octaves, freq_sine, offsets = utils.perlin_draws(key, users, numbers)
    utils.perlin_signs(key, users, numbers, args.size, args.size)
    rounds, same = [], []
    for image in range(args.rounds):
        start = time.perf_counter()
        theirs = reference_field(args.size, args.size, period[image], int(octaves[image]), freq_sine[image],
                                 offsets[image])
        middle = time.perf_counter()
        ours = utils.perlin_signs(key, users, numbers, args.size, args.size)
        end = time.perf_counter()
        same.append(float((ours[image, 0].numpy() == theirs).mean()))
        rounds.append({"reference_ms": 1e3 * (middle - start), "ours_ms": 1e3 * (end - middle) / args.batch})
    ratios = [row["reference_ms"] / row["ours_ms"] for row in rounds]
    result = {"what": "Perlin noise, per image", "size": args.size, "batch": args.batch, "rounds": rounds,
              "median_ratio": statistics.median(ratios), "ratios": [min(ratios), max(ratios)],
              "least_share_of_equal_pixels": min(same), "hardware": experiment.hardware_name(torch.device("cpu"))}
    print(f"{args.size} px, batch {args.batch}: reference "
          f"{statistics.median(row['reference_ms'] for row in rounds):.2f} ms an image, ours "
          f"{statistics.median(row['ours_ms'] for row in rounds):.4f} ms, ratio {result['median_ratio']:.0f} "
          f"({min(ratios):.0f} to {max(ratios):.0f}), equal pixels at least {100 * min(same):.3f} %")
    if args.out:
        runs.write_json(args.out, result)


if __name__ == "__main__":
    main()
