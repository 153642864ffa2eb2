"""Perlin noise: our batched matrix products against the reference way, a Python loop that calls pnoise2 for each pixel.

Example: python -m benchmarks.perlin --size 224 --out results/bench-perlin.json
Both make the same fields (same period, octaves, frequency and offset), alternately in one process, and are compared:
the noise itself, which is what pnoise2 computes, against the loop as it was published and against the leanest one, and
the whole generator with range, sine and sign (Eq. 2-3).
Needs the package `noise`, which `make test` installs.
Public: reference_signs.
"""

import statistics
import sys

import numpy as np

import utils
from benchmarks import common
from kit.errors import run_script

try:
    from noise import pnoise2
except ImportError:
    sys.exit("error: the package noise is not installed; run make test once, or pip install noise (needs a C compiler)")


def published_loop(height, width, period, octaves, offset=(0.0, 0.0)):
    """Fractal Perlin noise, float32 (height, width), as Co et al. write it: one call of pnoise2 a pixel."""
    (down, across), field = offset, np.empty((height, width), dtype=np.float32)
    for row in range(height):
        for column in range(width):
            field[row][column] = pnoise2(down + row / period, across + column / period, octaves=octaves, lacunarity=2)
    return field


def lean_loop(height, width, period, octaves, offset=(0.0, 0.0)):
    """The same with as little as possible around each call of pnoise2."""
    rows, columns = (
        [start + pixel / period for pixel in range(side)] for start, side in zip(offset, (height, width), strict=True)
    )
    return np.array([[pnoise2(x, y, octaves) for y in columns] for x in rows], dtype=np.float32)


def reference_signs(height, width, period, octaves, freq_sine, offset):
    """The generator of Co et al. (CCS'19): the loop, then the sine; int8 signs."""
    field = published_loop(height, width, period, octaves, offset)
    field = (field - field.min()) / (field.max() - field.min())
    field = np.sin(field * freq_sine * np.pi)
    field = (field - field.min()) / (field.max() - field.min())
    return np.sign(field - 0.5).astype(np.int8)


def batched_fields(size, period, octaves, offsets, at_once=128):
    """Ours: the same fields for all draws, float32 (size, size) each, in a list that follows the draws."""
    fields = [None] * len(period)
    for count in np.unique(octaves):
        group = np.flatnonzero(octaves == count)
        for chunk in (group[start : start + at_once] for start in range(0, len(group), at_once)):
            x, y = (offsets[chunk, axis, None] + np.arange(size) / period[chunk, None] for axis in (0, 1))
            for image, field in zip(chunk, utils.perlin_octaves(x, y, int(count)), strict=True):
                fields[image] = field
    return fields


def compare(name, reference, ours, same, args):
    """Time reference(image) against ours() for the whole batch, in turn; prints and returns what was found.

    same(reference's result, ours for the same image): a figure of agreement, reported for each round.
    """
    found, agreement = [], []
    for image in (number % args.batch for number in range(args.rounds)):
        made = []
        found += common.alternate(lambda: made.append(reference(image)), lambda: made.append(ours()), 1)  # noqa: B023
        agreement.append(float(same(made[-2], made[-1][image])))
    found = common.summary(found, args.batch)
    times = [1e3 * statistics.median(row[side] for row in found["rounds"]) for side in ("reference_s", "ours_s")]
    print(
        f"{name}: reference {times[0]:.2f} ms an image, ours {times[1] / args.batch:.4f} ms, ratio "
        f"{found['median_ratio']:.0f} ({found['ratios'][0]:.0f} to {found['ratios'][1]:.0f})"
    )
    return found, agreement


def main():
    flags = common.parser(__doc__, rounds=15)
    flags.add_argument("--size", type=common.COUNT, default=224, help="side of the images in pixels")
    flags.add_argument("--batch", type=common.COUNT, default=512, help="images that ours makes at once")
    args, device = common.start(flags)
    key, users, numbers = utils.derive_key(1, "benchmark"), np.zeros(args.batch), np.arange(args.batch)
    period, octaves, freq_sine, offsets = utils.perlin_draws(key, users, numbers)
    # Python's own numbers: numpy's would make the loop, and with it the ratios, half as long again.
    draws = list(zip(period.tolist(), octaves.tolist(), freq_sine.tolist(), offsets.tolist(), strict=True))
    print(f"{args.size} px, batch {args.batch}")
    found, errors = {}, []
    for name, loop in (("published loop", published_loop), ("leanest loop", lean_loop)):
        found[name], apart = compare(
            f"the noise, {name}",
            lambda i: loop(args.size, args.size, *draws[i][:2], draws[i][3]),  # noqa: B023
            lambda: batched_fields(args.size, period, octaves, offsets),
            lambda reference, ours: np.abs(reference - ours.numpy()).max(),
            args,
        )
        errors += apart
    signs, equal = compare(
        "with sine and sign (Eq. 2-3)",
        lambda i: reference_signs(args.size, args.size, *draws[i]),
        lambda: utils.perlin_signs(key, users, numbers, args.size, args.size),
        lambda reference, ours: (reference == ours[0].numpy()).mean(),
        args,
    )
    print(f"largest difference of the noise {max(errors):.1e}; equal signs at least {100 * min(equal):.3f} %")
    common.write(
        args,
        {
            "what": "Perlin noise, ours for a batch",
            "size": args.size,
            "batch": args.batch,
            "noise": found,
            "signs": signs,
            "largest_difference": max(errors),
            "least_share_of_equal_pixels": min(equal),
        },
        device,
    )


if __name__ == "__main__":
    run_script(main)
