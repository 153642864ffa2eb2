"""The audit: marking and scoring users' images on the way to the model, against the bare forward pass.

Example: python -m benchmarks.audit --users 8 --samples 25 --out results/bench-audit.json
Ours is utils.score_users (mark, query, signals) on images of 224 px; the reference calls the same query function on
the same number of images that are ready. Also: how time and memory grow with the users.
"""

import statistics

import numpy as np
import torch
from torchvision.models import get_model

import utils
from benchmarks import common
from kit.errors import run_script


def main():
    flags = common.parser(__doc__, rounds=3)
    flags.add_argument("--arch", default="resnet50", help="a torchvision network, untrained")
    flags.add_argument("--users", nargs="+", type=common.COUNT, default=[2, 4, 8], help="numbers of users to time")
    flags.add_argument("--samples", type=common.COUNT, default=25)
    flags.add_argument("--batch_size", type=common.COUNT, default=64)
    args, device = common.start(flags)
    settings = utils.TrainingSettings(precision=utils.choose_precision("auto", device))
    query = utils.make_query(get_model(args.arch, weights=None), settings, device)
    images = torch.randint(0, 256, (args.samples, 3, 224, 224), dtype=torch.uint8)
    rows = []
    for count in args.users:
        users = utils.Users(np.tile(np.arange(args.samples), (count, 1)), np.zeros(count, np.int64), b"key")
        ready = images[torch.arange(count * args.samples) % args.samples].to(device)

        def bare(ready=ready):
            for part in ready.split(args.batch_size):
                query(part).sum().item()

        def ours(users=users):
            utils.score_users(query, images, users, utils.Marking(), device, args.batch_size)

        rounds = common.alternate(bare, ours, args.rounds, device)
        rows.append(
            {
                "users": count,
                "images": len(ready),
                **common.summary(rounds),
                "peak_GB": common.peak_gb(),
                "ours_images_per_s": len(ready) / statistics.median(row["ours_s"] for row in rounds),
            }
        )
        low, high = (100 * ratio for ratio in rows[-1]["ratios"])
        print(
            f"{count} users x {args.samples} at 224 px through {args.arch}: {rows[-1]['ours_images_per_s']:.1f} "
            f"images/s, {100 * rows[-1]['median_ratio']:.1f} % of the bare forward pass ({low:.1f} to {high:.1f}); "
            f"peak {rows[-1]['peak_GB']:.2f} GB"
        )
    times = [row["images"] / row["ours_images_per_s"] for row in rows]
    growth = common.slope(args.users, times) if len(rows) > 1 else None
    common.write(
        args,
        {
            "what": "audit against bare forward pass",
            "arch": args.arch,
            "precision": settings.precision,
            "rows": rows,
            "exponent_in_users": growth,
        },
        device,
    )


if __name__ == "__main__":
    run_script(main)
