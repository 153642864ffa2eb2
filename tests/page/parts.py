"""What tests of the page's parts share: a desk, uploads, a finished job of marking. Fixtures are imported by name."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from page.desk import Desk
from page.tabs import protect


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def picture(seed, side=40):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.fixture
def desk(tmp_path):
    made = Desk(tmp_path / "work")
    yield made
    made.jobs.close()


def uploaded(desk, name, content):
    folder = desk.root / "uploads" / str(len(list((desk.root / "uploads").iterdir())))
    folder.mkdir()
    (folder / name).write_bytes(content)
    return str(folder / name)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


CHOSEN = {
    "img_blending_ratio": 0.7,
    "noise_norm": 8,
    "holdout": 0.5,
    "noise_injection_type": "perlin",
    "format": "png",
    "quality": 95.0,
}


class OnePanel:
    """What `_begin` needs of a Panel."""

    outputs = (None,)

    def show(self, number, request):
        return (number,)


def press(desk, draft, source=None, chosen=CHOSEN):
    return protect._begin(desk, OnePanel(), None, draft, source or draft["source"], chosen)


@pytest.fixture
def marked(desk, tmp_path):
    """(job, folder) of six photos in a folder of one's own, one of them damaged, marked with a hold-out."""
    folder = tmp_path / "holiday"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.png").write_bytes(png(picture(number)))
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    draft, found, names = protect._take(desk, None, str(folder), None)
    assert "7 photos found" in found and names["value"] == "0.png"
    refused, number = press(desk, draft)
    assert refused == ""
    job = desk.jobs.get(number)
    until(lambda: not job.active)
    assert job.state == "done", job.message
    return job, folder
