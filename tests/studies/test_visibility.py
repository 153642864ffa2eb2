"""studies/visibility.py: marks are hidden as they say, audited as they were published, and the table counts right."""

import json
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import utils
from studies import answers, common, hiding, survival, visibility
from tests.parts import user_error

CLEAR, FAINT, NONE = "clear: 0.7, noise 8", "faint: 0.95, noise 2", "none"
KEY = b"k" * 32


@pytest.fixture(scope="module")
def half_flat():
    """One photo, dark to light, whose left half is flat and whose right half is noise; black and white parts, too."""
    rng = np.random.default_rng(1)
    photo = np.full((1, 3, 64, 64), 120, dtype=np.uint8)
    photo[..., 32:] = rng.integers(0, 256, (1, 3, 64, 32))
    photo[..., :8, 40:44], photo[..., :8, 44:48] = 0, 255
    return torch.from_numpy(photo)


def _marked(kind, photo):
    return visibility.KINDS[kind].marked(photo, KEY, np.zeros(len(photo), dtype=np.int64))


def _change(kind, photo):
    return _marked(kind, photo).double().numpy() - photo.double().numpy()


@pytest.mark.parametrize("kind", ["clear, in chroma alone", "noise 8 alone, blue and yellow"])
def test_chroma_alone_leaves_luminance_within_rounding(half_flat, kind):
    change = _change(kind, half_flat)
    assert np.abs(hiding.luminance(change)).max() <= 0.5 + 1e-9
    assert np.abs(change).max() > 5, "and colours do change"
    assert np.abs(hiding.luminance(_change(CLEAR, half_flat))).max() > 20, "as they would not otherwise"


def test_noise_that_is_the_same_in_all_channels_has_no_chroma(half_flat):
    marked = _marked("noise 8 alone", half_flat[..., :32])
    assert torch.equal(hiding.chroma(half_flat[..., :32], marked), half_flat[..., :32])


@pytest.mark.parametrize("kind", ["clear, just noticeable", "noise 16 alone, just noticeable", "clear, in texture"])
def test_the_mask_weakens_flat_regions(half_flat, kind):
    change = np.abs(_change(kind, half_flat)).mean(axis=(0, 1, 2))
    flat, busy = change[2:28].mean(), change[36:62].mean()
    assert flat < busy / 1.8, (flat, busy)
    plain = np.abs(hiding.luminance(_change(CLEAR, half_flat)))[0, :, 2:28].mean()
    assert flat <= min(4, plain), "about three of 255 are just noticeable on grey"
    assert (flat == 0) == (kind == "clear, in texture")


def test_hidden_marks_are_parts_of_the_mark(half_flat):
    whole = _change(CLEAR, half_flat)
    for hide in (hiding.just_noticeable, hiding.textured):
        kind = common.Kind(common.SETTINGS, hide)
        part = kind.marked(half_flat, KEY, np.zeros(1, dtype=np.int64)).double().numpy() - half_flat.double().numpy()
        assert (np.abs(part) <= np.abs(whole) + 0.5).all() and (part * whole >= 0).all()


def test_just_noticeable_thresholds_are_those_of_the_model():
    for light, expected in ((0, 20), (127, 3), (255, 6)):
        assert hiding.threshold(np.full((1, 9, 9), float(light))) == pytest.approx(np.full((1, 9, 9), expected))
    # Left of a step by 100 the background is (19 x 100 + 13 x 200) / 32, and the step across the pixel is 100.
    step = np.full((1, 9, 10), 100.0)
    step[..., 5:] = 200
    background = 140.625
    expected = 100 * (0.0001 * background + 0.115) + 0.5 - 0.01 * background
    assert hiding.threshold(step)[0, 4, 4] == pytest.approx(expected)
    assert hiding.threshold(step.transpose(0, 2, 1))[0, 4, 4] == pytest.approx(expected)
    slanted = 100.0 + 100 * (np.add.outer(np.arange(11), np.arange(11)) > 10)[None]
    assert hiding.threshold(slanted)[0, 5, 5] == pytest.approx(hiding.threshold(slanted[..., ::-1])[0, 5, 5])
    assert not hiding.busy(np.full((1, 9, 9), 40.0)).any() and 0.98 < hiding.busy(step).max() < 1


def test_plainness_and_what_is_left_are_measured():
    photo = torch.nn.functional.interpolate(
        torch.randint(0, 256, (1, 3, 8, 8), generator=torch.Generator().manual_seed(1)).double(), (64, 64)
    )[0].to(torch.uint8)
    clear, faint, none = (visibility.shown(visibility.KINDS[kind], photo, KEY) for kind in (CLEAR, FAINT, NONE))
    assert none == {"psnr": None, "ssim": 1.0, "ciede2000": 0.0, "ciede2000_95": 0.0}
    assert clear["psnr"] < faint["psnr"] and clear["ssim"] < faint["ssim"] < 1
    assert clear["ciede2000_95"] > clear["ciede2000"] > faint["ciede2000"] > 0

    def left(kind, change):
        return visibility.survives(visibility.KINDS[kind], photo, KEY, survival.CHANGES[change], 1)

    assert left(CLEAR, "none") == pytest.approx(1) and left(NONE, "JPEG 75") is None
    assert 0.3 < left(FAINT, "JPEG 75") < left(CLEAR, "JPEG 75") < 1
    assert left("noise 8 alone", "10 % cropped") < left("0.7, no noise", "10 % cropped")


@pytest.fixture
def remembered(monkeypatch):
    """Models that give a picture their label only where they were trained on it, to the last pixel; the calls that
    trained one."""
    trained = []

    def train_on(path, images, labels, classes, *_, **__):
        trained.append(path)
        known = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}

        def query(pictures):
            logits = torch.zeros(len(pictures), classes)
            for place, picture in enumerate(pictures):
                if (label := known.get(picture.numpy().tobytes())) is not None:
                    logits[place, label] = 8
            return logits

        return query, {"train_accuracy": 1.0}

    monkeypatch.setattr(answers.training, "train_on", train_on)
    return trained


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(2)
    images = torch.from_numpy(rng.integers(0, 256, (900, 3, 16, 16), dtype=np.uint8))
    labels = torch.from_numpy(np.arange(900) % 3)
    return SimpleNamespace(images=images, labels=labels, class_names="abc", is_test=torch.zeros(900, dtype=torch.bool))


def _args(tmp_path, **changes):
    given = {"kinds": list(visibility.KINDS), "users": 1, "photos": 12, "train_size": 250, "seeds": [1], "epoch": 1}
    given |= {"net_type": "smallnet", "half": "claims", "references": [answers.GOOD], "work": tmp_path}
    return Namespace(**given | changes)


def test_users_are_audited_with_what_they_published(data, remembered, tmp_path):
    args = _args(tmp_path)
    table, models = visibility.audits(args, data, torch.device("cpu"))
    assert len(table) == len(visibility.KINDS) * len(visibility.TESTS) and models[0]["test_accuracy"] is None
    for _, row in table.iterrows():
        if visibility.KINDS[row.kind].passage:
            assert row.p == 1, f"{row.kind}: the audit knows nothing of the web, and no picture was seen"
        else:
            assert row.p <= 0.005, f"{row.kind}: the very pictures were seen"
    marked = table[(table.kind == CLEAR) & (table.test == "without a reference")].p.item()
    assert marked < 0.0005, "a secret half and a secret key: one of 924 x 20"
    calls = len(remembered)
    again, _ = visibility.audits(args, data, torch.device("cpu"))
    assert len(remembered) == calls == 2 and again.equals(table), "answers are kept: nothing is trained again"
    visibility.audits(_args(tmp_path, kinds=[CLEAR, NONE]), data, torch.device("cpu"))
    assert len(remembered) > calls, "other users are others' answers"


def test_what_is_published_is_hidden_and_then_goes_through_the_web(data):
    chosen = [*visibility.KINDS.values()]
    pool = answers.pools(data, "claims")[0]
    settings = tuple(kind.settings for kind in chosen)
    cohort = common.make_cohort(data, pool, 1, 1, 4, 0.5, 100, settings)
    images, _ = common.published_images(data, cohort, chosen)
    for user, (record, rows, kind) in enumerate(zip(cohort.records, cohort.rows, chosen, strict=True)):
        numbers = np.flatnonzero(record.published)
        originals = data.images[torch.from_numpy(rows[numbers])]
        marked = utils.mark_images(
            originals, record.keys(0)[0][0], np.zeros_like(numbers), numbers, record.settings.marking()
        )
        expected = kind.hide(originals, marked) if kind.hide else marked
        expected = survival.changed(expected, survival.web, 0) if kind.passage else expected
        assert torch.equal(images[2 * user : 2 * user + 2], expected)
        assert (kind.hide or kind.passage) is None or not torch.equal(expected, marked)


def test_too_few_images_are_one_clear_line(data):
    pool = answers.pools(data, "claims")[0]
    user_error(lambda: common.make_cohort(data, pool, 1, 2, 10, 0.5, 445), "445 training images", "--users")
    user_error(lambda: common.make_cohort(data, pool, 1, 2, 10, 0.5, 5), "5 training images")
    user_error(lambda: common.make_cohort(data, pool, 1, 1, 400, 0.5, 100), "class", "too few images")


def test_the_table_counts_made_up_answers(tmp_path):
    p = {CLEAR: [[1e-3, 1e-5, 1e-4, 0.1], [1e-5] * 4], NONE: [[0.5, 0.002, 0.01, 0.01], [1e-4, 0.5, 1e-2, 1e-3]]}
    table = pd.DataFrame(
        {"seed": 1, "user": user, "kind": kind, "test": test, "p": one}
        for kind, rows in p.items()
        for test, values in zip(visibility.TESTS, rows, strict=True)
        for user, one in enumerate(values)
    )
    left = {"half": 0.456, "JPEG 75": 0.9, "crop": -0.1}
    seen = {
        CLEAR: {"psnr": 19.54, "ssim": 0.7, "ciede2000": 8.4, "ciede2000_95": 14.0, **left},
        NONE: {"psnr": None, "ssim": 1.0, "ciede2000": 0.0, "ciede2000_95": 0.0, **dict.fromkeys(left)},
    }
    text, found = visibility.summary(table, seen)
    hits = {kind: [one["found"]["hits"] for one in tests.values()] for kind, tests in found.items()}
    assert hits == {CLEAR: [3, 4], NONE: [0, 2]}
    assert found[CLEAR]["without a reference"]["p"] == pytest.approx(10**-3.25)
    lines = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in text.splitlines()]
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    assert lines[2][:5] == [CLEAR, "19.5", "0.700", "8.40 (14.00)", "0.46, 0.90, -0.10"]
    assert lines[2][5:] == [
        "75.00 % (95 % interval 19.41-99.37)",
        "0.000562",
        "100.00 % (95 % interval 39.76-100.00)",
        "0.000010",
    ]
    assert lines[3][1] == "-" and lines[3][4] == "-, -, -"
    assert lines[3][5].startswith("0.00 % (95 % interval 0.00-60.24)")
    visibility.draw(found, seen, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_the_study_runs_from_end_to_end(script, monkeypatch, tmp_path):
    flags = ("--dataset", "photos", "--work", tmp_path / "w", "--out", tmp_path, "--seeds", 1, "--users", 1)
    sizes = ("--photos", 6, "--train_size", 100, "--epoch", 1, "--side", 32, "--marks", 1)
    kinds = ("--kinds", CLEAR, "clear, just noticeable", f"{FAINT}, published through the web")
    done = script("studies.visibility", *flags, *sizes, *kinds)
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "result.json").read_text())
    assert list(result["found"]) == list(result["visibility"]) == list(kinds[1:])
    assert len(result["users"]) == 3 * len(visibility.TESTS) and result["models"][0]["seed"] == 1
    assert (tmp_path / "visibility.png").exists()
    text = (tmp_path / "visibility.md").read_text()
    assert "3.00% of the images" in text and "| clear, just noticeable | " in text

    def never(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(answers.training, "train_on", never)
    assert script("studies.visibility", *flags, *sizes, *kinds).code == 0
    assert json.loads((tmp_path / "result.json").read_text())["users"] == result["users"]
