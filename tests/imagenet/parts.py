"""What the tests of ImageNet share: a small source of images, and imagenet-prepare.py on it."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("n01", "n02", "n03", "n04", "n05")
SIDE = 32
PREPARE = {"--num_of_users": 4, "--marked_samples_per_user": 3, "--num_of_non_member_users": 5, "--seed": 3}


def write_images(folder, names, seed=0, side=SIDE):
    draws = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        pixels = draws.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name, "png" if str(name).endswith("png") else "jpeg")


def make_source(root, classes=CLASSES, images=14, val=4):
    for number, label in enumerate(classes):
        names = [f"{label}_{image}.{'png' if image % 5 == 4 else 'JPEG'}" for image in range(images)]
        write_images(root / "train" / label, names, number)
        write_images(root / "val" / label, [f"val_{image}.JPEG" for image in range(val)], 100 + number)
    return root


def prepare(script, source, out, **flags):
    chosen = {**PREPARE, **{f"--{name}": value for name, value in flags.items()}}
    return script(
        "imagenet-prepare", "--data_root", source, "--out", out, *(part for item in chosen.items() for part in item)
    )


def snapshot(folder, follow=False):
    """{path: link target or bytes} of all files below a folder."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in [*files, *(name for name in folders if os.path.islink(os.path.join(parent, name)))]:
            path = os.path.join(parent, name)
            key = os.path.relpath(path, folder)
            found[key] = (
                os.readlink(path)
                if os.path.islink(path) and not follow
                else Path(path).read_bytes()
                if os.path.isfile(path)
                else None
            )
    return found


def comparable(folder):
    """The snapshot without what tells times."""
    return {name: value for name, value in snapshot(folder).items() if name not in ("result.json", ".lock")}


def entries(manifest, group):
    return {name: entry for name, entry in manifest["users"].items() if entry["group"] == group}
