"""What tests of the page's parts share: pictures, uploads, a press of the button that marks."""

import io
import time

import numpy as np
import torch
from PIL import Image

from networks import build_network
from page.tabs import protect


def until(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def picture(seed, side=40):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def uploaded(desk, name, content):
    folder = desk.root / "uploads" / str(len(list((desk.root / "uploads").iterdir())))
    folder.mkdir()
    (folder / name).write_bytes(content)
    return str(folder / name)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def save_pictures(folder, count):
    """A folder with pictures 0.png and so on."""
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.png").write_bytes(png(picture(number)))
    return folder


def save_network(path, seed):
    """A small network of four classes, as weights alone; its path, as text."""
    torch.manual_seed(seed)
    torch.save(build_network("smallnet", 4).state_dict(), path)
    return str(path)


CHOSEN = {
    "visibility": "clear",
    "metadata": "drop",
    "reference": None,
    "reference_path": "",
    "reference_net_type": "",
    "img_blending_ratio": 0.7,
    "noise_norm": 8,
    "holdout": 0.5,
    "noise_injection_type": "perlin",
    "format": "png",
    "quality": 95.0,
    "beacon": "none",
    "label": "auto",
    "timestamp": "",
}


class OnePanel:
    """What `_begin` needs of a Panel."""

    outputs = (None,)

    def show(self, number, request):
        return (number,)


def press(desk, draft, source=None, chosen=CHOSEN):
    return protect._begin(desk, OnePanel(), None, draft, source or draft["source"], chosen)


def mark(desk, folder, **chosen):
    """Mark a folder of one's own as the button does: the finished job."""
    draft, _, names = protect._take(desk, None, str(folder), None)
    assert names["value"] == "0.png"
    refused, number = press(desk, draft, chosen={**CHOSEN, **chosen})
    assert refused == "", refused
    job = desk.jobs.get(number)
    until(lambda: not job.active)
    assert job.state == "done", job.message
    return job
