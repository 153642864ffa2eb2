"""A page in a process of its own and what people bring to it, for the tests of the page."""

import contextlib
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dataset import load_dataset
from experiment import training
from provenance import beacon
from tests.page.relay import GO_BY, NOBODY
from tests.parts import ROOT, environment

PHOTOS, STRANGERS = 60, 300
COPIES = 3  # of each published photo in the guilty model's data, so that chance hides it from no test


def system_chromium():
    """The path of a Chromium that is installed, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return next(filter(None, map(shutil.which, names)), None)


@contextlib.contextmanager
def served(work, *flags, relay=NOBODY, clock=None):
    """app.py on a free port: yields (address with its token, process). relay: of the beacon; clock: a `relay.Clock`."""
    start = [str(ROOT / "app.py")]
    if clock is not None:
        code = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{GO_BY % str(clock.path)}"
        start = ["-c", f"{code}\nimport app\nfrom kit.errors import run_script\nrun_script(app.main)"]
    command = [
        sys.executable,
        *start,
        "--work_folder",
        str(work),
        "--port",
        "0",
        "--no_browser",
        *map(str, flags),
    ]
    settings = environment(**{beacon.VARIABLE: relay})
    with (
        open(Path(work).with_suffix(".log"), "w+") as log,
        subprocess.Popen(command, cwd=ROOT, env=settings, stdout=subprocess.PIPE, stderr=log, text=True) as page,
    ):
        try:
            address = re.search(r"http\S+", page.stdout.readline())
            assert address, Path(work).with_suffix(".log").read_text()
            yield address[0], page
        finally:
            page.send_signal(signal.SIGINT)
            try:
                page.wait(120)
            except subprocess.TimeoutExpired:
                page.kill()


def crops(count, seed=1):
    """(data set, rows of one person's crops, rows of strangers' crops) of the embedded real images."""
    data = load_dataset("photos")
    rows = np.random.default_rng(seed).permutation(len(data.labels))
    return data, rows[:count], rows[count : count + STRANGERS]


def pixels_of(data, rows):
    return data.images[torch.from_numpy(rows)]


def save_photos(folder, images):
    """Write uint8 (N, 3, H, W) as PNGs; returns their paths."""
    folder.mkdir(parents=True)
    paths = [folder / f"photo {number:02}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return paths


def published_images(folder):
    """The photos of a folder, as training reads them: uint8 (N, 3, H, W)."""
    return torch.stack(
        [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in sorted(folder.rglob("*.png"))]
    )


def train(path, data, user, strangers, marked=None):
    """Train a small network on the strangers' images and, if given, on what the user published as one class's part,
    uint8 (n, 3, H, W), each of it COPIES times, with train.py's functions; returns the path."""
    images, labels, classes = pixels_of(data, strangers), data.labels[strangers], len(data.class_names)
    if marked is not None:
        marked = marked.repeat(COPIES, 1, 1, 1)
        own = torch.full((len(marked),), int(np.bincount(data.labels[user]).argmax()))
        images, labels = torch.cat([images, marked]), torch.cat([labels, own])
    training.train_on(path, images, labels, classes, 1, torch.device("cpu"), epoch=90, batch_size=32, lr=0.1)
    return path
