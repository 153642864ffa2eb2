"""Finished runs are found, and shown with their words and figures."""

import json
import re
from pathlib import Path

import numpy as np

from kit import files
from page.tabs import audit
from tests.parts import ROOT


def test_runs_are_found_and_only_offered_reports_are_shown(tmp_path, finished_run):
    report = tmp_path / "log" / "report"
    report.mkdir(parents=True)
    (report / "report.html").write_text("<p>hello")
    (report / "result.json").write_text("{}")
    (tmp_path / "log" / ".hidden").mkdir()
    found = audit.Found([tmp_path, finished_run])
    assert sorted(path for _, path in found.choices()) == sorted([str(report), str(finished_run)])
    assert found.report("x") is None
    number = found.offer(report / "report.html").rpartition("/")[2]
    assert found.report(number) == report / "report.html"
    shown, *_ = audit._open(found, None, str(tmp_path / "log"))
    assert "neither train.py nor privacy-audit.py wrote" in shown  # an empty result.json


def test_folders_of_others_are_passed_over(tmp_path, finished_run, monkeypatch):
    real = Path.is_file
    (tmp_path / "lost+found").mkdir()

    def closed(path, **more):
        if "lost+found" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **more)

    monkeypatch.setattr(Path, "is_file", closed)
    assert [path for _, path in audit.Found([tmp_path, finished_run]).choices()] == [str(finished_run)]


def test_a_privacy_audit_can_be_looked_at():
    folder = ROOT / "results" / "privacy-audit"
    found = audit.Found([])
    shown, _, exposed, path = audit._open(found, None, str(folder))
    result = json.loads((folder / "result.json").read_text())
    for one in result["attacks"]:
        assert one["title"] in shown and f"{one['pooled']['auc']:.4f}" in shown
    number = re.search(r'<iframe src="report/(\w+)"[^>]* sandbox=""', shown)[1]
    assert found.report(number) == folder / "report.html" and path is None and exposed == ""


def test_results_of_other_scripts_are_named(finished_run):
    shown, *_ = audit._open(audit.Found([]), None, str(ROOT / "results" / "imagenet-rehearsal" / "audit"))
    assert "neither train.py nor privacy-audit.py wrote" in shown


def test_exposed_images_are_those_with_the_lowest_loss(finished_run):
    arrays = files.read_arrays(finished_run / "losses.npz")
    losses = arrays["target_cross_entropy"]
    shown = [float(text) for text in re.findall(r"loss ([\d.]+)", audit._exposed(finished_run))]
    assert shown == [round(value, 4) for value in sorted(losses.ravel())]


def test_rates_at_an_allowed_share(finished_run):
    arrays = files.read_arrays(finished_run / "losses.npz")
    others = np.sort(arrays["non_member_cross_entropy"].mean(axis=1))
    table = audit._at_rate(str(finished_run), 5)
    assert f"{others[3]:.4g}" in table and "3 of 60" in table  # 5 % of 60 users may lie below the threshold
    hits = (arrays["target_cross_entropy"].mean(axis=1) < others[3]).sum()
    assert f"{hits} of 2" in table
