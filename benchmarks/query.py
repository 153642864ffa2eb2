"""Asking a network about a batch of images: a few at a time (utils.in_pieces) against all of them at once.

Example: python -m benchmarks.query --out results/bench-query.json
Both ways call the same untrained network in the same precision on the same images, 1,024 of 32 px or 64 of 224 px.
"""

import torch
from torchvision.models import get_model

import utils
from benchmarks import common
from kit.errors import run_script
from networks import build_network

NETWORKS = {"smallnet": 32, "speedyresnet": 32, "wideresnet284": 32, "resnet50": 224}  # {name: pixels of a side}
COUNTS = {32: 1024, 224: 64}
TIMES = {"smallnet": 16}  # in one measurement


def main():
    flags = common.parser(__doc__)
    flags.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS))
    args, device = common.start(flags)
    settings = utils.TrainingSettings(precision=utils.choose_precision("auto", device))
    rows = []
    for name in args.networks:
        side, times = NETWORKS[name], TIMES.get(name, 1)
        model = get_model(name, weights=None) if side > 32 else build_network(name, 100, side)
        query = utils.make_query(model, settings, device)
        images = torch.randint(0, 256, (COUNTS[side], 3, side, side), dtype=torch.uint8)

        @torch.inference_mode()
        def at_once(model=model, images=images, times=times):
            for _ in range(times):
                with utils.autocast(device, settings.precision):
                    model(utils.normalize(images.to(device), settings.mean, settings.std)).float().sum().item()

        def in_pieces(query=query, images=images, times=times):
            for _ in range(times):
                query(images).sum().item()

        found = common.summary(common.alternate(at_once, in_pieces, args.rounds, device))
        rows.append({"network": name, "side": side, "images": len(images) * times, **found})
        print(
            f"{name} at {side} px: {len(images) * times / min(row['ours_s'] for row in found['rounds']):,.0f} images/s "
            f"in pieces, {found['median_ratio']:.2f} times as fast as at once ({found['ratios'][0]:.2f} to "
            f"{found['ratios'][1]:.2f})"
        )
    what = {"what": "a query in pieces against a query at once", "precision": settings.precision, "rows": rows}
    common.write(args, what, device)


if __name__ == "__main__":
    run_script(main)
