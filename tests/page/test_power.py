"""Figures of the page are those of the result files."""

import csv
import json

from page.tabs import power
from tests.parts import ROOT


def test_figures_are_those_of_the_result_files(tmp_path, monkeypatch):
    with open(ROOT / "results" / power.TABLE_8, newline="") as file:
        full = next(
            row for row in csv.DictReader(file) if row["marking"] == "blend and noise" and row["samples"] == "5"
        )
    stored = json.loads((ROOT / "results" / power.POWER).read_text())["detected"]["probabilities"]["0.001"]
    assert full["FPR@100%TPR"] in power.marking_table(0.7, 8) and "yours" in power.marking_table(0.7, 8)
    assert full["FPR@100%TPR"] in power.summary(0.7, 8) and "This very choice" in power.summary(0.7, 8)
    assert "nearest choice" in power.summary(0.72, 8) and "nearest" in power.marking_table(0.72, 8)
    assert f"{stored['hits']} of {stored['of']}" in power.summary(0.7, 8)
    assert f"{stored['hits']} of {stored['of']}" in power.holdout_table() and power.POWER in power.holdout_table()
    with open(ROOT / "results" / power.NOISE, newline="") as file:
        assert all(row["FPR@100%TPR"] in power.noise_table() for row in csv.DictReader(file))
    half = json.loads((ROOT / "results" / power.SURVIVAL).read_text())["detected"]["JPEG 75"]["0.001"]
    assert f"{half['hits']} of {half['of']}" in power.format_table()
    monkeypatch.setattr(power, "RESULTS", tmp_path)  # nothing measured: nothing shown
    assert "No figures were found" in power.summary(0.7, 8)
    assert power.marking_table(0.7, 8) == power.photos_table() == ""
    assert "No figures were found" in power.holdout_table() and power.noise_table() == power.format_table() == ""


def test_what_a_number_of_photos_can_prove(tmp_path, monkeypatch):
    stored = json.loads((ROOT / "results" / power.POWER).read_text())
    share = stored["detected"]["probabilities"]["0.001"]
    assert power.of_photos(0, 0.5) == ""
    assert "8 photos can prove nothing" in power.of_photos(8, 0.5) and "9 are enough" in power.of_photos(8, 0.5)
    shown = power.of_photos(30, 0.5)
    assert "You have 30 photos. An audit will ask 1,200 questions" in shown and "1 of 200,000 audits" in shown
    assert f"{share['hits']} of {share['of']}" in shown and "Fewer photos prove less" in shown
    assert "Fewer photos" not in power.of_photos(stored["settings"]["photos"], 0.5)
    assert "12,000 questions" in power.of_photos(6, 0.0)  # without a hold-out other patterns are all there is
    monkeypatch.setattr(power, "RESULTS", tmp_path)
    assert "You have 30 photos" in power.of_photos(30, 0.5)


def test_without_a_mark_other_halves_take_the_place_of_other_patterns():
    shown = power.of_photos(30, 0.5, marked=False)
    assert "An audit will ask 540 questions" in shown and "1 of 100,000 audits" in shown  # 18 views, 99,999 halves
    assert "could prove it" not in shown  # what was measured had marks
    # One half among those that can be drawn has to be rare enough by itself: 1 of C(14, 7) is, 1 of C(13, 6) is not.
    shown = power.of_photos(13, 0.5, marked=False)
    assert "13 photos can prove nothing" in shown and "14 are enough" in shown
    assert "can prove nothing" not in power.of_photos(13, 0.5)
    assert "could be proven" not in power.summary(1, 0) and "could be proven" in power.summary(0.7, 8)


def test_nearest_measured_choice():
    rows = [(0.5, 8.0), (0.7, 0.0), (0.7, 8.0), (0.9, 8.0), (1.0, 0.0)]
    assert [power.nearest(rows, *choice) for choice in ((0.55, 8), (0.7, 3), (0.7, 6), (0.85, 8), (1, 1))] == [
        0,
        1,
        2,
        3,
        4,
    ]
