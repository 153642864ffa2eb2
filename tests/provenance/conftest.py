"""A folder of photos and data_marking.py to mark it; and a whole audit: user, record, model, verdict."""

import hashlib
import json
import shutil
from datetime import datetime
from types import SimpleNamespace

import pytest
import torch

from networks import build_network
from provenance import record as records
from provenance import report
from suspects import opened
from suspects.answering import FileSuspect
from tests.parts import call
from tests.provenance.parts import COMMITTED, GRID, ONE_DAY, PHOTOS, picture, save, tree, wavy_picture


@pytest.fixture
def photos(tmp_path):
    """A folder of six small photos, two of them in a sub-folder."""
    folder = tmp_path / "user"
    for number, name in enumerate(("a.png", "b.png", "c.bmp", "d.png", "trip/a.png", "trip/e.webp")):
        save(folder / name, picture(number), **({"lossless": True} if name.endswith("webp") else {}))
    return folder


@pytest.fixture
def mark(script):
    """data_marking.py without a network: mark(folder, *flags) -> code, out, err."""
    return lambda folder, *flags: script("data_marking", "--data_folder", folder, "--beacon", "none", *flags)


@pytest.fixture
def one_day(monkeypatch):
    """Commitments are all made at one moment, so that a draw from a seed is the same draw."""
    monkeypatch.setattr(records, "datetime", SimpleNamespace(now=lambda _: datetime(2030, 1, 1)))


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A user with 16 photos, 8 of them published; a model of train.py that has seen the 8 as one class's part."""
    root = tmp_path_factory.mktemp("world")
    originals, data = root / "user", root / "data"
    for number in range(PHOTOS):
        save(originals / f"{number:02}.png", wavy_picture(number))
    before = tree(originals)
    flags = ("--data_folder", originals, "--holdout", "0.5", "--seed", "11", "--beacon", "none", *COMMITTED)
    done = call("data_marking.py", *flags, code=ONE_DAY)
    assert done.returncode == 0, done.stderr
    for label, name in enumerate(("ant", "bee", "cat", "dog")):
        for number in range(24 if name == "cat" else 32):
            save(data / "train" / name / f"{number}.png", wavy_picture(1000 * (label + 1) + number))
        for number in range(8):
            save(data / "test" / name / f"{number}.png", wavy_picture(1000 * (label + 1) + 500 + number))
    for path in (root / "user_marked").iterdir():
        shutil.copy(path, data / "train" / "cat" / f"user-{path.name}")
    done = call(
        "train.py",
        "--clean_train",
        "1",
        "--dataset",
        "imagefolder",
        "--data_root",
        data,
        "--net_type",
        "smallnet",
        "--train_size",
        "128",
        "--val_portion",
        "0",
        "--epoch",
        "40",
        "--batch_size",
        "16",
        "--lr",
        "0.05",
        "--marked_samples_per_user",
        "4",
        "--target_user_cls",
        "0",
        "--num_of_non_member_user",
        "5",
        "--device",
        "cpu",
        "--precision",
        "float32",
        "--out",
        root / "run",
    )
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(
        root=root,
        originals=originals,
        record=root / "user_record" / "record.json",
        run=root / "run",
        before=before,
        data=data,
    )


@pytest.fixture
def record(world, tmp_path):
    """The user's record in a folder of its own, where judgements are logged."""
    return shutil.copytree(world.record.parent, tmp_path / "user_record") / "record.json"


@pytest.fixture
def audit(script, world, record):
    """Audit the trained model: audit(out, *flags) -> code, out, err, result."""

    def run(out, *flags, record=record, originals=world.originals, checkpoint=world.run, grid=GRID):
        done = script(
            "eval",
            "--record",
            record,
            "--originals",
            originals,
            "--checkpoint",
            checkpoint,
            *grid,
            *flags,
            *(("--out", out) if out else ()),
        )
        path = out and out / "result.json"
        done.result = json.loads(path.read_text()) if path and path.exists() else None
        return done

    return run


@pytest.fixture(scope="session")
def verdict_folder(world):
    """The finished audit as it was committed, in a process of its own. Tests must not change it."""
    out, record = world.root / "verdict", shutil.copytree(world.record.parent, world.root / "verdict_record")
    done = call(
        "eval.py",
        "--record",
        record,
        "--originals",
        world.originals,
        "--checkpoint",
        world.run,
        *GRID,
        "--query_batch",
        "16",
        "--out",
        out,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "result.json").read_text())
    return SimpleNamespace(folder=out, out=done.stdout, result=result, log=record / "judgements.json")


# --- the verdict ---


@pytest.fixture
def innocent(tmp_path):
    torch.manual_seed(0)
    torch.save(build_network("smallnet", 4).state_dict(), tmp_path / "net.pt")
    return tmp_path / "net.pt", (
        "--net_type",
        "smallnet",
        "--input_size",
        "32",
        "--mean",
        ".5",
        ".5",
        ".5",
        "--std",
        ".25",
        ".25",
        ".25",
    )


@pytest.fixture
def without_plots(monkeypatch):
    """Where many audits are made that nobody looks at: the plot takes half of the time."""
    monkeypatch.setattr(report, "draw_grid", lambda grid, result, path: path.write_bytes(b"plot"))


# --- queries ---


@pytest.fixture
def asked(monkeypatch):
    """Every image that the local model is asked about, as SHA-256; `after` batches an interruption."""
    state = SimpleNamespace(images=[], after=None)
    real = FileSuspect.ask

    def ask(self, images):
        if not state.opening:
            if state.after == 0:
                raise KeyboardInterrupt
            state.after = None if state.after is None else state.after - 1
            state.images += [hashlib.sha256(image.tobytes()).digest() for image in images]
        return real(self, images)

    state.opening = False
    really_open = opened.open_model

    def open_model(*arguments, **options):  # what opening asks is a test picture
        state.opening = True
        try:
            return really_open(*arguments, **options)
        finally:
            state.opening = False

    monkeypatch.setattr(FileSuspect, "ask", ask)
    monkeypatch.setattr(opened, "open_model", open_model)
    return state
