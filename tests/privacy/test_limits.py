"""--fail_if: its grammar, what it refuses before anything runs, and what it says of results."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.errors import UserError
from privacy import limits

FPRS = [0.01, 0.001, 0.0]


def one_attack(name, tpr, auc, fpr1=0.9):
    points = [
        {
            "fpr": fpr,
            "tpr": value,
            "interval": [value / 2, value * 2],
            "clustered": [value / 4, value],
            "resolved": fpr > 0,
        }
        for fpr, value in zip(FPRS, (2 * tpr, tpr, 0.0), strict=True)
    ]
    return {
        "name": name,
        "title": name.upper(),
        "pooled": {
            "non_members": 500,
            "tpr_at_fpr": points,
            "auc": auc,
            "auc_interval": [auc - 0.01, auc + 0.01],
            "auc_clustered": [auc - 0.05, auc + 0.005],
            "fpr_at_100_tpr": fpr1,
            "fpr_interval": [fpr1 - 0.1, fpr1 + 0.05],
        },
    }


RESULTS = {
    "attacks": [one_attack("loss", 0.005, 0.60), one_attack("rmia_offline", 0.04, 0.58, 0.7)],
    "skipped": {"lira_online": "too few"},
    "epsilon": {"epsilon": 1.5, "title": "RMIA"},
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("tpr@0.001 > 0.01", 0.04),
        ("TPR@0.1% > 1%", 0.04),
        ("tpr@1e-3>1e-2", 0.04),
        ("loss: tpr@0.01 >= 0.01", 0.01),
        ("tpr@0.001.low > 0.009", 0.01),
        ("tpr@0.001.high > .05", 0.08),
        ("auc > 0.55", 0.60),
        ("auc.low > 0.54", 0.55),
        ("auc.high < 0.62", 0.61),
        ("rmia_offline:auc < 0.59", 0.58),
        ("fpr@tpr1 < 0.8", 0.7),
        ("epsilon > 1", 1.5),
    ],
)
def test_a_limit_is_compared_with_the_right_number(text, value):
    found, _ = limits.broken(limits.parse(text), RESULTS)
    assert len(found) == 1 and f"{value:.6g}" in found[0] and text in found[0]
    opposite = text.translate(str.maketrans("<>", "><")).replace("=", "")
    assert limits.broken(limits.parse(opposite), RESULTS)[0] == []


def test_several_limits_and_notes():
    found, notes = limits.broken(limits.parse("tpr@0.001 > 0.5 or auc > 0.5 OR loss: auc > 0.5"), RESULTS)
    assert [line.split(": ")[1].split(" (")[0] for line in found] == ["auc > 0.5", "loss"] and notes == []
    found, notes = limits.broken(limits.parse("tpr@0 > 0"), RESULTS)
    assert found == [] and "500 non-members are too few" in notes[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tpr > 0.1",
        "tpr@0.001",
        "tpr@0.001 = 0.1",
        "tpr@0.001 > 0.1 and auc > 0.5",
        "auc > 0.5 or",
        "auc > 0.5 auc > 0.6",
        "auc > -1",
        "auc > nan",
        "__import__('os').system('true')",
        "auc > (0.5)",
        "auc.mean > 0.5",
        "tpr@2 > 0.1",
        "epsilon.low > 1",
        "loss: epsilon > 1",
        "los: auc > 0.5",
        "x" * 2000,
    ],
)
def test_what_is_not_in_the_grammar_is_one_line(text):
    with pytest.raises(UserError, match="--fail_if") as caught:
        limits.parse(text)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text):
    with suppress(UserError):
        assert all(one.metric in limits.METRICS for one in limits.parse(text))


@pytest.mark.parametrize(
    ("text", "words"),
    [("tpr@0.0001 > 0.1", "0.01, 0.001, 0"), ("loss: auc > 0.5", "loss is not run"), ("epsilon > 1", "no epsilon")],
)
def test_what_the_audit_will_not_know_is_refused_before_it(text, words):
    with pytest.raises(UserError, match=words):
        limits.check(limits.parse(text), FPRS, ["rmia_offline"], None)


def test_a_limit_on_an_attack_that_did_not_run_does_not_pass():
    comparisons = limits.parse("lira_online: auc > 0.99")
    limits.check(comparisons, FPRS, ["lira_online"], None)
    with pytest.raises(UserError, match="can't be judged: lira_online did not run"):
        limits.broken(comparisons, RESULTS)
