"""Perlin noise: our batched matrix products against the reference way, a Python loop that calls pnoise2 for each pixel.

Example: python benchmarks/perlin.py --size 224 --out results/bench-perlin.json
Both make the same fields (same period, octaves, frequency and offset), alternately in one process, and are compared:
the noise itself, which is what pnoise2 computes, and the whole generator with range, sine and sign (Eq. 2-3).
Needs the package `noise`, which `make test` installs.
"""

import statistics
import sys

import common
import numpy as np

import runs
import utils

try:
    from noise import pnoise2
except ImportError:
    sys.exit("error: the package noise is not installed; run make test once, or pip install noise (needs a C compiler)")


def pixel_loop(height, width, period, octaves, offset):
    """Fractal Perlin noise, float32 (height, width): one call of pnoise2 a pixel."""
    field = np.empty((height, width), dtype=np.float32)
    for row in range(height):
        for column in range(width):
            field[row, column] = pnoise2(offset[0] + row / period, offset[1] + column / period, octaves=octaves)
    return field


def reference_signs(height, width, period, octaves, freq_sine, offset):
    """The generator of Co et al. (CCS'19) as its description has it: the loop, then the sine; int8 signs."""
    field = pixel_loop(height, width, period, octaves, offset)
    field = (field - field.min()) / (field.max() - field.min())
    field = np.sin(field * freq_sine * np.pi)
    field = (field - field.min()) / (field.max() - field.min())
    return np.sign(field - 0.5).astype(np.int8)


def batched_fields(size, period, octaves, offsets, at_once=128):
    """Ours: the same fields for all draws, float32 (size, size) each, in a list that follows the draws."""
    fields = [None] * len(period)
    for count in np.unique(octaves):
        group = np.flatnonzero(octaves == count)
        for chunk in (group[start:start + at_once] for start in range(0, len(group), at_once)):
            x, y = (offsets[chunk, axis, None] + np.arange(size) / period[chunk, None] for axis in (0, 1))
            for image, field in zip(chunk, utils.perlin_octaves(x, y, int(count)), strict=True):
                fields[image] = field
    return fields


def compare(name, reference, ours, same, rounds, batch):
    """Time reference(image) against ours() for the whole batch, in turn; prints and returns what was found.

    same(reference's result, ours for the same image): a figure of agreement, reported at its worst.
    """
    found, agreement = [], []
    for image in range(rounds):
        made = []
        found += common.alternate(lambda: made.append(reference(image)), lambda: made.append(ours()), 1)  # noqa: B023
        agreement.append(float(same(made[-2], made[-1][image])))
    found = common.summary(found, batch)
    times = [1e3 * statistics.median(row[side] for row in found["rounds"]) for side in ("reference_s", "ours_s")]
    print(f"{name}: reference {times[0]:.2f} ms an image, ours {times[1] / batch:.4f} ms, ratio "
          f"{found['median_ratio']:.0f} ({found['ratios'][0]:.0f} to {found['ratios'][1]:.0f})")
    return found, agreement


def main():
    flags = common.parser(__doc__, rounds=15)
    flags.add_argument("--size", type=common.COUNT, default=224, help="side of the images in pixels")
    flags.add_argument("--batch", type=common.COUNT, default=512, help="images that ours makes at once")
    args, device = common.start(flags)
    key, users, numbers = utils.derive_key(1, "benchmark"), np.zeros(args.batch), np.arange(args.batch)
    period, octaves, freq_sine, offsets = utils.perlin_draws(key, users, numbers)
    print(f"{args.size} px, batch {args.batch}")
    field, errors = compare(
        "the noise (pnoise2)", lambda i: pixel_loop(args.size, args.size, period[i], int(octaves[i]), offsets[i]),
        lambda: batched_fields(args.size, period, octaves, offsets),
        lambda reference, ours: np.abs(reference - ours.numpy()).max(), args.rounds, args.batch)
    signs, equal = compare(
        "with sine and sign (Eq. 2-3)", lambda i: reference_signs(
            args.size, args.size, period[i], int(octaves[i]), freq_sine[i], offsets[i]),
        lambda: utils.perlin_signs(key, users, numbers, args.size, args.size),
        lambda reference, ours: (reference == ours[0].numpy()).mean(), args.rounds, args.batch)
    print(f"largest difference of the noise {max(errors):.1e}; equal signs at least {100 * min(equal):.3f} %")
    common.write(args, {"what": "Perlin noise, ours for a batch", "size": args.size, "batch": args.batch,
                        "noise": field, "signs": signs, "largest_difference": max(errors),
                        "least_share_of_equal_pixels": min(equal)}, device)


if __name__ == "__main__":
    runs.run_script(main)
