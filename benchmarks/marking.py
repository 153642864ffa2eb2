"""Marking: ours against the reference way, a Python loop that calls pnoise2 for each pixel, then Eq. 1 on whole arrays.

Example: python -m benchmarks.marking --out results/bench-marking.json
Square images of several sizes in batches of about four million pixels, and a 12-megapixel photo on one core; how the
time grows with the pixels, and the peak memory. Needs the package `noise`, which `make test` installs.
"""

import itertools
import statistics

import numpy as np
import torch

import utils
from benchmarks import common, perlin
from kit.errors import run_script
from provenance.protect import mark_photo

KEY, MARKING = b"benchmark", utils.Marking()


def reference_mark(pixels, number):
    """Per-pixel noise and the blend for one photo, uint8 (H, W, 3)."""
    height, width, _ = pixels.shape
    period, octaves, freq_sine, offset = (value[0].tolist() for value in utils.perlin_draws(KEY, [0], [number]))
    period = period * max(1, min(height, width) / utils.REFERENCE_SIZE)  # in pixels of the photo
    signs = perlin.reference_signs(height, width, period, octaves, freq_sine, offset)
    marked = np.clip(pixels.astype(np.float32) + signs[..., None] * MARKING.noise_norm, 0, 255)
    outlier = utils.outlier_features(KEY, [0], height, width).expand(1, 3, height, 1)[0].permute(1, 2, 0).numpy()
    return np.round(marked * MARKING.img_blending_ratio + outlier * (1 - MARKING.img_blending_ratio)).astype(np.uint8)


def square(side, args, device):
    """Times of one size: the reference marks one image a round, ours a batch."""
    batch = max(1, 2**22 // side**2)
    pixels = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=device)
    photo, users, numbers = pixels[0].permute(1, 2, 0).cpu().numpy(), np.zeros(batch), np.arange(batch)
    turn = itertools.count()  # other numbers have other octaves, which cost both ways more or less
    rounds = common.alternate(
        lambda: reference_mark(photo, next(turn) % batch),
        lambda: utils.mark_images(pixels, KEY, users, numbers, MARKING),
        min(3, args.rounds) if side > 2000 else args.rounds,
        device,
    )
    return {
        "side": side,
        "batch": batch,
        **common.summary(rounds, batch),
        "ours_ms_an_image": 1e3 * statistics.median(row["ours_s"] for row in rounds) / batch,
    }


def photo(args):
    """A 12-megapixel photo on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pixels = np.random.default_rng(1).integers(0, 256, (3000, 4000, 3), dtype=np.uint8)
    ours = [
        {
            "octaves": int(utils.perlin_draws(KEY, [0], [number])[1][0]),
            "ours_s": common.seconds(lambda number=number: mark_photo(pixels, KEY, number, MARKING)),
        }
        for number in range(8)
    ]
    peak, reference = common.peak_gb(), common.seconds(lambda: reference_mark(pixels, 0))
    torch.set_num_threads(threads)
    return {
        "pixels": [3000, 4000],
        "ours": ours,
        "slowest_s": max(row["ours_s"] for row in ours),
        "reference_s": reference,
        "ratio": reference / ours[0]["ours_s"],
        "peak_GB": peak,
    }


def main():
    flags = common.parser(__doc__)
    flags.add_argument("--sizes", nargs="+", type=common.COUNT, default=[32, 224, 1024, 4000])
    args, device = common.start(flags)
    one = photo(args)
    print(
        f"4000 x 3000 px on one core: ours at most {one['slowest_s']:.2f} s, reference {one['reference_s']:.1f} s, "
        f"ratio {one['ratio']:.0f}; peak memory of the process {one['peak_GB']:.2f} GB"
    )
    rows = [square(side, args, device) for side in args.sizes]
    for row in rows:
        print(
            f"{row['side']} px, batch {row['batch']}: ours {row['ours_ms_an_image']:.3f} ms an image, ratio "
            f"{row['median_ratio']:.0f} ({row['ratios'][0]:.0f} to {row['ratios'][1]:.0f})"
        )
    growth = common.slope([row["side"] ** 2 for row in rows], [row["ours_ms_an_image"] for row in rows])
    print(f"time grows with the number of pixels to the power of {growth:.2f}")
    common.write(args, {"what": "marking", "photo": one, "squares": rows, "exponent_in_pixels": growth}, device)


if __name__ == "__main__":
    run_script(main)
