"""Mean and std that nobody states: proposed by showing photos whole and in pieces, and never taken without a word."""

import numpy as np
import pytest
import torch
from scipy.special import softmax

from kit.errors import UserError
from suspects.calibration import CANDIDATES, Calibration, calibrate
from suspects.server import open_server
from suspects.suspect import Answers, Preprocessing
from tests.suspects.inference_server import make_app, running

SIZE = (32, 32)


def shapes(count, seed):
    """(photos uint8 (n, 32, 32, 3), labels): discs, rings, crosses and triangles of any colour on any ground."""
    rng = np.random.default_rng(seed)
    labels, photos = rng.integers(0, 4, count), []
    for label in labels:
        y, x = np.mgrid[:32, :32] - 15.5 - rng.uniform(-3, 3, 2)[:, None, None]
        side = rng.uniform(7, 11)
        distance, bars = np.hypot(x, y), (abs(x) < 2.5) & (abs(y) < side) | (abs(y) < 2.5) & (abs(x) < side)
        triangle = (y < side * 0.7) & (y > -side) & (abs(x) < (y + side) / 2)
        inside = (distance < side, abs(distance - side) < 2.2, bars, triangle)[label]
        ground, front = rng.integers(0, 256, (2, 3))
        picture = np.where(inside[..., None], front, ground) + rng.normal(0, 12, (32, 32, 3))
        photos.append(picture.clip(0, 255).astype(np.uint8))
    return photos, labels


@pytest.fixture(scope="module", params=["0..1", "imagenet", "0..255"])
def trained(request):
    """(name of the candidate that it was trained with, ask(preprocessing, images)) of a small network."""
    layers = torch.nn
    torch.manual_seed(0)
    net, wide = [], 3
    for channels in (16, 32, 32):
        net += [layers.Conv2d(wide, channels, 3 if net else 5, 2, 1 if net else 2), layers.BatchNorm2d(channels)]
        net, wide = [*net, layers.ReLU()], channels
    net = layers.Sequential(*net, layers.Flatten(), layers.Linear(512, 4))
    photos, labels = shapes(1500, 0)
    pixels = np.stack(photos).transpose(0, 3, 1, 2)
    ready = torch.from_numpy(Preprocessing(SIZE, **CANDIDATES[request.param]).normalize(pixels))
    optimizer, labels = torch.optim.Adam(net.parameters(), 2e-3), torch.from_numpy(labels)
    for part in [part for _ in range(6) for part in torch.randperm(len(ready)).split(50)]:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(ready[part]), labels[part]).backward()
        optimizer.step()
    net.eval()

    @torch.no_grad()
    def ask(preprocessing, images):
        return Answers(net(torch.from_numpy(preprocessing.normalize(images))).numpy())

    return request.param, ask


def test_what_it_was_trained_with_is_proposed_and_taken_when_confirmed(trained):
    truth, ask = trained
    photos, _ = shapes(32, 1)
    with pytest.raises(UserError, match=rf"{truth} stands out; .*--confirm_preprocessing {truth}") as error:
        calibrate(ask, {"size": SIZE}, ["server"], None, Calibration(photos, "the folder x"))
    assert "32 photos (the folder x)" in str(error.value) and error.value.flag == "--confirm_preprocessing"
    assert "--mean " in str(error.value) and "--std " in str(error.value)
    made, found = calibrate(ask, {"size": SIZE}, ["server"], None, Calibration(photos, "the folder x", truth))
    assert made.source == "server and calibration" and found["chosen"] == truth and len(found["candidates"]) == 4
    assert {name: getattr(made, name) for name in ("mean", "std", "white")} == CANDIDATES[truth]
    other = next(name for name in CANDIDATES if name != truth)
    with pytest.raises(UserError, match=f"{truth} stands out, not the confirmed {other}"):
        calibrate(ask, {"size": SIZE}, [], None, Calibration(photos, "the folder x", other))


def test_the_surest_candidate_is_often_the_wrong_one(trained):
    """A network that is fed numbers far too large is sure of everything."""
    truth, ask = trained
    photos = np.stack(shapes(32, 1)[0]).transpose(0, 3, 1, 2)
    sure = {
        name: softmax(ask(Preprocessing(SIZE, **candidate), photos).values, axis=1).max(axis=1).mean()
        for name, candidate in CANDIDATES.items()
    }
    assert max(sure, key=sure.get) == "0..255" and (truth == "0..255" or sure["0..255"] > 0.97)


def test_what_is_given_rules_candidates_out(trained):
    truth, ask = trained
    settings = {"size": SIZE, "white": CANDIDATES[truth]["white"], "std": CANDIDATES[truth]["std"]}
    _, found = calibrate(ask, settings, ["flags"], None, Calibration(shapes(32, 1)[0], "x", truth))
    assert truth in [row["name"] for row in found["candidates"]] and len(found["candidates"]) < 4
    with pytest.raises(UserError, match="rule out every usual"):
        calibrate(ask, {"size": SIZE, "std": (9.0,) * 3}, [], None, Calibration(shapes(3, 1)[0], "x"))


@pytest.mark.parametrize(
    "answers,word",
    [
        (lambda count: Answers(None, np.zeros((count, 1), np.int32)), "classes alone"),
        (lambda count: Answers(np.full((count, 4), np.nan, np.float32)), "nothing usable"),
        (lambda count: Answers(np.tile(np.float32([1, 2, 3, 4]), (count, 1))), "None of them stands out"),
    ],
)
def test_models_that_show_nothing(answers, word):
    with pytest.raises(UserError, match=word) as error:
        calibrate(lambda _, images: answers(len(images)), {"size": SIZE}, [], None, Calibration(shapes(3, 1)[0], "x"))
    assert "give --mean and --std" in str(error.value)
    with pytest.raises(UserError, match="no photos"):
        calibrate(lambda _, images: answers(len(images)), {"size": SIZE}, [], None, Calibration([], "x"))


def test_a_server_is_calibrated_with_these_photos_alone(trained):
    """Nothing but the photos, whole and in pieces, is shown, under four candidates; then the audit may begin."""
    pytest.importorskip("fastapi")
    truth, ask = trained

    def predict(pixels):
        # The network takes what it was sent: normalised already.
        return ask(Preprocessing(SIZE, white=255.0), pixels).values

    photos, _ = shapes(32, 1)
    with running(make_app(predict, input_shape=[-1, 3, 32, 32])) as server:
        with pytest.raises(UserError, match="let --calibration FOLDER"):
            open_server(server.url)
        assert not server.log
        with pytest.raises(UserError, match="stands out"):
            open_server(server.url, calibration=Calibration(photos, "x"))
        assert sum(len(entry["digests"]) for entry in server.log) == 4 * 32 * 3
        suspect = open_server(server.url, calibration=Calibration(photos, "x", truth))
        stored = {
            "preprocessing": {
                name: getattr(suspect.preprocessing, name) for name in ("size", "mean", "std", "white", "source")
            },
            "calibration": suspect.calibration,
        }
        asked = len(server.log)
        again = open_server(server.url, stored=stored)
        assert len(server.log) == asked and again.preprocessing == suspect.preprocessing
        assert again.calibration == suspect.calibration and again.calibration["chosen"] == truth
        with pytest.raises(UserError, match="give --mean and --std"):  # flags that contradict begin anew
            open_server(server.url, stored=stored, overrides={"resize": 40})
