"""Perlin noise: our batched matrix products against the reference way, a Python loop that calls pnoise2 for each pixel.

Example: python benchmarks/perlin.py --size 224 --out results/bench-perlin.json
Both make the same fields (same period, octaves, frequency and offset), alternately in one process, and are compared.
Needs the package `noise`, which `make test` installs.
"""

import statistics
import sys

import common
import numpy as np

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
    flags = common.parser(__doc__, rounds=9)
    flags.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    flags.add_argument("--batch", type=int, default=64, help="images that ours makes at once")
    args, device = common.start(flags)
    key, users, numbers = utils.derive_key(1, "benchmark"), np.zeros(args.batch), np.arange(args.batch)
    period, octaves, freq_sine, offsets = utils.perlin_draws(key, users, numbers)
    rounds, same = [], []
    for image in range(args.rounds):
        made = []
        rounds += common.alternate(
            lambda image=image, made=made: made.append(reference_field(
                args.size, args.size, period[image], int(octaves[image]), freq_sine[image], offsets[image])),
            lambda made=made: made.append(utils.perlin_signs(key, users, numbers, args.size, args.size)), 1)
        same.append(float((made[-1][image, 0].numpy() == made[-2]).mean()))
    found = common.summary(rounds, args.batch)
    print(f"{args.size} px, batch {args.batch}: reference "
          f"{1e3 * statistics.median(row['reference_s'] for row in rounds):.2f} ms an image, ours "
          f"{1e3 * statistics.median(row['ours_s'] for row in rounds) / args.batch:.4f} ms, ratio "
          f"{found['median_ratio']:.0f} ({found['ratios'][0]:.0f} to {found['ratios'][1]:.0f}), equal pixels at least "
          f"{100 * min(same):.3f} %")
    common.write(args, {"what": "Perlin noise, ours for a batch", "size": args.size, "batch": args.batch, **found,
                        "least_share_of_equal_pixels": min(same)}, device)


if __name__ == "__main__":
    main()
