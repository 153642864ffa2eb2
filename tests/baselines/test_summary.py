"""Seeds of a baseline merged: pooled rates, conclusions, and what does not belong together."""

import json

import pytest
from scipy import stats

from baselines import common, summary
from kit import files


def write_result(folder, seed, hits, auc):
    rows = [common.rate("a", "FPR", hits, 10, 0.5), common.rate("b", "FPR", 9, 10), common.row("a", "AUC", auc)]
    claims = [
        common.claim("a below b", ("a", "FPR"), "<", ("b", "FPR")),
        common.claim("a high", ("a", "AUC"), ">", 0.75),
        common.claim("gone", ("c", "FPR"), "<", 1),
    ]
    files.write_json(
        folder / f"made-seed{seed}" / "result.json",
        {
            "method": "made",
            "rows": rows,
            "claims": claims,
            "models": [{"train_accuracy": 0.9}],
            "notes": [],
            "settings": {"dataset": "x", "net_type": "y", "train_size": 1, "epoch": 2, "seed": seed},
            "hardware": "none",
            "versions": {},
        },
    )


def test_seeds_are_pooled_and_conclusions_judged(tmp_path, script):
    for seed, hits, auc in ((1, 0, 0.7), (2, 1, 0.9), (3, 2, 0.8)):
        write_result(tmp_path, seed, hits, auc)
    done = script("baselines.summary", "--folder", tmp_path)
    assert done.code == 0, done.err
    merged = json.loads((tmp_path / "comparison.json").read_text())["made"]
    rows = {(row["setting"], row["figure"]): row for row in merged["rows"]}
    assert (rows["a", "FPR"]["hits"], rows["a", "FPR"]["of"], rows["a", "FPR"]["paper"]) == (3, 30, 0.5)
    assert rows["a", "FPR"]["interval"] == pytest.approx([stats.beta.ppf(0.025, 3, 28), stats.beta.ppf(0.975, 4, 27)])
    assert rows["a", "AUC"]["value"] == pytest.approx(0.8) and rows["a", "AUC"]["interval"] == [0.7, 0.9]
    assert [(one["agrees"], one["clear"]) for one in merged["conclusions"]] == [
        (True, True),
        (True, False),
        (None, None),
    ]
    assert "| a below b | 10.00 % < 90.00 % | yes |" in (tmp_path / "comparison.md").read_text()
    assert "yes, within the intervals" in done.out and (tmp_path / "comparison.csv").exists()


def test_wrong_order_is_a_no(tmp_path):
    rows = [common.rate("a", "FPR", 9, 10), common.rate("b", "FPR", 1, 10)]
    (judged,) = summary.judge([common.claim("a below b", ("a", "FPR"), "<", ("b", "FPR"))], rows)
    assert judged["agrees"] is False and summary.verdict(judged) == "no"
    (equal,) = summary.judge([common.claim("less", ("a", "FPR"), "<", ("a", "FPR"))], rows)
    assert equal["agrees"] is False


@pytest.mark.parametrize(("changed", "message"), [({"epoch": 3}, "epoch"), ({"seed": 1}, "same seed")])
def test_results_that_do_not_belong_together_are_refused(tmp_path, script, changed, message):
    write_result(tmp_path, 1, 0, 0.7)
    write_result(tmp_path, 2, 0, 0.7)
    path = tmp_path / "made-seed2" / "result.json"
    result = json.loads(path.read_text())
    files.write_json(path, {**result, "settings": {**result["settings"], **changed}})
    done = script("baselines.summary", "--folder", tmp_path)
    assert done.code == 2 and message in done.err and len(done.err.strip().splitlines()) == 1
