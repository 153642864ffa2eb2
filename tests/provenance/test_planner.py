"""What so many photos can show is what was measured, and nothing is made up where nothing was."""

import json

import pytest

from provenance import planner
from tests.parts import ROOT
from tests.provenance.parts import flat, save, wavy_picture


@pytest.fixture
def results(tmp_path, monkeypatch):
    for study, images in (("claims-0.5", 5000), ("claims-1.0", 2500)):
        rows = [
            {"kind": kind, "test": test, "photos": photos, "hits": photos // 10 + (test == "reference"), "of": 40}
            for kind in ("marked", "unchanged")
            for test in ("no reference", "reference")
            for photos in (10, 20, 50)
        ]
        (tmp_path / study).mkdir()
        content = {"settings": {"train_size": images}, "photos": rows}
        (tmp_path / study / "result.json").write_text(json.dumps(content))
    monkeypatch.setattr(planner, "RESULTS", tmp_path)


@pytest.mark.parametrize("photos,told", [(50, 50), (300, 50), (49, 20), (20, 20), (3, 10)])
def test_the_nearest_smaller_number_is_told(results, photos, told):
    first, second = planner.sentences(photos, "marked")
    hits = told // 10
    percent = f"{100 * told / 2 / 2500:.2g}"
    assert first == (
        f"{told} photos, {percent} % of 2,500 training images: {hits} of 40 without a reference, "
        f"{hits + 1} of 40 with a reference"
    )
    assert "5,000 training images" in second


def test_nothing_measured_is_nothing_told(results, tmp_path, monkeypatch):
    assert planner.sentences(50, "faint") == []
    monkeypatch.setattr(planner, "RESULTS", tmp_path / "empty")
    assert planner.sentences(50, "marked") == []


def test_marking_tells_it_before_anything_is_published(results, mark, tmp_path):
    folder = tmp_path / "mine"
    for number in range(24):
        save(folder / f"{number:02}.png", wavy_picture(number))
    for flags in (("--holdout", "0.5"), ("--visibility", "none"), ("--holdout", "0.5", "--dry_run")):
        done = mark(folder, *flags, "--out", tmp_path / f"{len(flags)}{flags[-1]}")
        assert done.code == 0 and "20 photos, 0.4 % of 2,500 training images" in flat(done.out), flags
        assert planner.LIMITS in flat(done.out)
    done = mark(folder, "--out", tmp_path / "all")
    assert "training images" not in flat(done.out), "without a hold-out that was not measured"


def test_the_stored_results_can_be_read():
    for study in planner.STUDIES:
        if (ROOT / "results" / study).exists():
            assert all(0 <= one.hits <= one.of and one.photos for one in planner.measured("marked"))
