"""Does the mark survive what the web does to pictures? Train on changed copies, audit with the originals.

Example: python -m studies.survival --data_root CIFAR10_FOLDER --out results/survival
For every change one model a seed is trained on the users' published photos after that change; the audit knows nothing
of it. All changes share users, keys and the other training images.

Public: CHANGES, web, changed.
"""

import io

import numpy as np
import pandas as pd
import torch
from PIL import Image

import utils
from experiment import training
from kit import files, plots
from kit.errors import run_script
from kit.tables import markdown
from studies import common
from suspects.suspect import Preprocessing


def _jpeg(quality):
    def change(image):
        content = io.BytesIO()
        image.save(content, "jpeg", quality=quality)
        return Image.open(content).convert("RGB")

    return change


def _scaled(factor, resample=Image.Resampling.BICUBIC):
    return lambda image: image.resize([round(side * factor) for side in image.size], resample)


def _cropped(image, draws):
    """A tenth of width and height cut off, at a random place."""
    width, height = (side - round(side * 0.1) for side in image.size)
    left, top = (draws.integers(0, whole - part + 1) for whole, part in zip(image.size, (width, height), strict=True))
    return image.crop((left, top, left + width, top + height))


def _screenshot(image, draws):
    """Shown at 150 %, captured with up to a pixel of the page around or missing, kept as PNG."""
    shown = image.resize([side * 3 // 2 for side in image.size], Image.Resampling.BILINEAR)
    page = Image.new("RGB", [side + 4 for side in shown.size], "white")
    page.paste(shown, (2, 2))
    left, top = draws.integers(1, 4, 2)
    taken, content = page.crop((left, top, left + shown.width, top + shown.height)), io.BytesIO()
    taken.save(content, "png")
    return Image.open(content).convert("RGB")


CHANGES = {
    "none": lambda image, _: image,
    "JPEG 95": lambda image, _: _jpeg(95)(image),
    "JPEG 75": lambda image, _: _jpeg(75)(image),
    "JPEG 50": lambda image, _: _jpeg(50)(image),
    "half the size": lambda image, _: _scaled(0.5)(image),
    "twice the size": lambda image, _: _scaled(2)(image),
    "10 % cropped": _cropped,
    "screenshot as PNG": _screenshot,
}


def web(image, _):
    """What a web site does to a picture that is a little too large for it; not in the table of this study."""
    return _jpeg(75)(_scaled(0.75)(image))


def changed(images, change, seed):
    """Images uint8 (n, 3, H, W) after a change of one image, (PIL image, draws) -> PIL image, scaled back to their
    size as the model's maker does."""
    fit, draws = Preprocessing(tuple(images.shape[2:])).fit, utils.key_generator("studies", "survival", seed)
    pictures = (Image.fromarray(image) for image in images.permute(0, 2, 3, 1).contiguous().numpy())
    return torch.from_numpy(np.stack([fit(np.asarray(change(picture, draws))) for picture in pictures]))


def main():
    args = common.parser(__doc__, seeds=[21, 22], users=5, photos=50, train_size=2500, epoch=100).parse_args()
    data, device = common.load(args)
    pool, classes, found = common.halves(data)[1], len(data.class_names), []
    for seed in args.seeds:
        cohort = common.make_cohort(data, pool, seed, args.users, args.photos, 0.5, args.train_size)
        images, labels = common.published_images(data, cohort)
        count = sum(int(record.published.sum()) for record in cohort.records)
        for name, change in CHANGES.items():
            images_now = torch.cat([changed(images[:count], change, seed), images[count:]])
            path = f"{args.work}/survival-{name.replace(' ', '-')}-{seed}.safetensors"
            query, _ = training.train_on(path, images_now, labels, classes, seed, device, epoch=args.epoch)
            for record, rows, label in zip(cohort.records, cohort.rows, cohort.classes, strict=True):
                answers = common.ask_grid(query, data.images[torch.from_numpy(rows)], record, 19)
                found.append({"seed": seed, "change": name, "p": common.exact_p(answers, record, int(label))})
            print(f"seed {seed}, {name}: {[row['p'] for row in found[-args.users :]]}", flush=True)
    table = pd.DataFrame(found)
    shares = {
        name: {
            str(alpha): common.rate((table.p[table.change == name] <= alpha).sum(), int((table.change == name).sum()))
            for alpha in (0.01, 0.001)
        }
        for name in CHANGES
    }
    text = markdown(
        ["change before training", "detected at alpha 0.01", "detected at alpha 0.001", "median p", "largest p"],
        [
            [
                name,
                *(plots.percent(one["share"], one["interval"]) for one in share.values()),
                f"{table.p[table.change == name].median():.5f}",
                f"{table.p[table.change == name].max():.5f}",
            ]
            for name, share in shares.items()
        ],
    )
    print(text)
    with files.atomic_path(f"{args.out}/survival.md") as path:
        path.write_text(text)
    common.write_study(
        args.out,
        {
            "settings": {name: getattr(args, name) for name in ("seeds", "users", "photos", "train_size", "epoch")},
            "detected": shares,
            "users": found,
        },
        device,
    )


if __name__ == "__main__":
    run_script(main)
