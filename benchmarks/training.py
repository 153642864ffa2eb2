"""The training loop: ours against a plain float32 loop over a DataLoader, alternately in one process.

Example: python -m benchmarks.training --net_type wideresnet284 --images 512 --out results/bench-training.json
The reference is the usual one of the paper's time, written from its description: float32, a TensorDataset and a
DataLoader, crop and flip of torchvision (one draw a batch), loss.item() in every step. Same network, batch size and
optimiser.
"""

import itertools
import statistics

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

import utils
from benchmarks import common
from kit.errors import run_script
from networks import build_network


def reference_epoch(model, images, labels, recipe, device):
    """One epoch of the reference loop; returns the mean loss."""
    loader = DataLoader(TensorDataset(images.float() / 255, labels), recipe.batch_size, shuffle=True)
    transforms = v2.Compose(
        [
            v2.RandomCrop(images.shape[-1], padding=recipe.crop_padding),
            v2.RandomHorizontalFlip(),
            v2.Normalize(recipe.mean, recipe.std),
        ]
    )
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    model.train()
    losses = []
    for batch, wanted in loader:
        batch, wanted = transforms(batch.to(device)), wanted.to(device)
        loss = F.cross_entropy(model(batch), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return statistics.mean(losses)


def main():
    flags = common.parser(__doc__)
    flags.add_argument("--net_type", default="wideresnet284")
    flags.add_argument("--images", type=common.COUNT, default=512, help="training images of an epoch")
    flags.add_argument("--batch_size", type=common.COUNT, default=256)
    flags.add_argument("--classes", type=common.COUNT, default=100)
    args, device = common.start(flags)
    images = torch.randint(0, 256, (args.images, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, args.classes, (args.images,))
    recipe = utils.TrainingSettings(
        batch_size=args.batch_size, lr=0.01, precision=utils.choose_precision("auto", device)
    )
    plain = build_network(args.net_type, args.classes).to(device)
    ours = build_network(args.net_type, args.classes).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(ours.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    on_device = images.to(device), labels.to(device)
    epochs = itertools.count()
    reference_epoch(plain, images, labels, recipe, device)  # warms kernels up, as alternate does for ours
    found = common.summary(
        common.alternate(
            lambda: reference_epoch(plain, images, labels, recipe, device),
            lambda: utils.train_epoch(ours, *on_device, recipe, optimizer, next(epochs)),
            args.rounds,
            device,
        )
    )
    speed = {
        name: args.images / statistics.median(row[f"{name}_s"] for row in found["rounds"])
        for name in ("reference", "ours")
    }
    low, high = found["ratios"]
    print(
        f"{args.net_type}, batch {args.batch_size}: reference {speed['reference']:.0f} images/s, ours "
        f"{speed['ours']:.0f}, ratio {found['median_ratio']:.2f} ({low:.2f} to {high:.2f})"
    )
    common.write(
        args,
        {
            "what": "training, images per second",
            "net_type": args.net_type,
            "images": args.images,
            "batch_size": args.batch_size,
            "precision": recipe.precision,
            "images_per_s": speed,
            **found,
        },
        device,
    )


if __name__ == "__main__":
    run_script(main)
