"""The plan comes first: what a departure from it costs, and what can't be had afterwards at any price."""

import itertools
import json
import math

import pytest
from pydantic import ValidationError

from provenance import judgements
from provenance.case import Options
from provenance.plan import (
    KEY_CHOICES,
    PARTS,
    SELECTION_CHOICES,
    SHARE_OF_SETS,
    STATISTIC,
    STATISTICS,
    VIEW_CHOICES,
    AuditPlan,
    departures,
    same_statistic,
    unpriced,
)
from tests.parts import user_error
from tests.provenance.parts import flat, loaded, picture, refused, save

pytestmark = pytest.mark.usefixtures("without_plots")

ONE = "1" * 64
COMMITTED = AuditPlan(label="2", keys=4, selections=999, views=1, alpha=0.5)


# --- what a departure costs ---


@pytest.mark.parametrize(
    "changes,count",
    [
        ({"label": "3"}, 2 * (10 + 1)),
        ({"label": "auto"}, 2 * (10 + 1)),
        ({"label": "cat"}, 2 * (10 + 1)),
        ({"answers": "label only"}, 2 * (10 + 2)),
        ({"answers": "top k", "top_k": 3}, 2 * (10 + 2)),
        ({"keys": 19}, 2 * (len(KEY_CHOICES) + 1)),
        ({"keys": 0}, 2 * (len(KEY_CHOICES) + 1)),
        ({"keys": 5}, 2 * 1000),
        ({"views": 18}, 2 * (len(VIEW_CHOICES) + 1)),
        ({"views": 5}, 2 * 1000),
        ({"references": []}, 2 * 2**2),
        ({"references": ["b" * 64]}, 2 * 2**2),
        ({"sequential": True}, 2),
        ({"selections": 99_999}, 4),
        ({"selections": 998}, 4 * 1000),
    ],
)
def test_one_departure(changes, count):
    """Alpha is divided by 2, by the share of a single part among the sets that may depart, 8, by that of its
    selections, and by the part's values. Selections alone have a share of 96."""
    committed = COMMITTED.model_copy(update={"references": ["a" * 64, "b" * 64]})
    found, factor = departures(committed, committed.model_copy(update=changes), 10)
    assert len(found) == 1 and factor == 2 * (96 if "selections" in changes else 8) * count


def test_the_shares_of_all_sets_are_no_more_than_one():
    sizes = [bin(number).count("1") for number in range(2 ** len(PARTS))]
    total = sum(1 / SHARE_OF_SETS[min(size, 3)] for size in sizes)
    assert total == pytest.approx(1) and total <= 1 + 1e-12 and len(PARTS) == 6


def test_what_no_number_counts_is_said_and_not_priced():
    committed = COMMITTED.model_copy(update={"references": ["a" * 64]})
    assert unpriced(committed, committed) == {}
    fresh = committed.model_copy(update={"references": ["b" * 64], "audit_seed": "court"})
    assert unpriced(committed, fresh) == {"references": ["b" * 64], "audit_seed": "court"}
    assert unpriced(committed, COMMITTED) == {}, "leaving one out was open beforehand, and is priced"


def test_departures_multiply():
    used = COMMITTED.model_copy(update={"label": "auto", "answers": "label only", "keys": 19, "selections": 99_999})
    found, factor = departures(COMMITTED, used, 10)
    assert len(found) == 4 and factor == 2 * 8064 * 4 * 11 * 12 * 12
    used = COMMITTED.model_copy(update={"label": "auto", "keys": 19})
    assert departures(COMMITTED, used, 10)[1] == 2 * 64 * 2 * 11 * 12
    assert "label auto instead of 2" in found and "19 keys instead of 4" in found


def test_no_departure_costs_nothing():
    assert departures(COMMITTED, COMMITTED, 10) == ([], 1)
    # A smaller alpha asks for more; the seed is said, as no number counts its choices.
    for changes in ({"alpha": 0.01}, {"audit_seed": "court"}):
        assert departures(COMMITTED, COMMITTED.model_copy(update=changes), 10) == ([], 1)


def test_a_model_that_does_not_say_how_many_classes_it_has_counts_as_one_of_many():
    used = COMMITTED.model_copy(update={"label": "3"})
    assert departures(COMMITTED, used, None)[1] == departures(COMMITTED, used, 1000)[1] > 30_000


@pytest.mark.parametrize("classes", [1, 2, 10])
def test_all_plans_together_keep_alpha(classes):
    """Whoever tries every plan that has a number offline, and shows the one that pleases, has alpha / 2 in all."""
    labels = ["2", "auto", *(str(number) for number in range(classes) if number != 2)]
    answers = [("as given", None), ("label only", None), *(("top k", k) for k in range(1, classes + 1))]
    keys, selections, views = {4, *KEY_CHOICES}, {999, *SELECTION_CHOICES}, {1, *VIEW_CHOICES}
    committed = COMMITTED.model_copy(update={"references": ["a" * 64]})
    total = 0.0
    for label, (used, top_k), count, others, shown, beside, one_by_one in itertools.product(
        labels, answers, keys, selections, views, (["a" * 64], []), (False, True)
    ):
        chosen = {"label": label, "answers": used, "top_k": top_k, "keys": count, "selections": others}
        plan = committed.model_copy(update={**chosen, "views": shown, "references": beside, "sequential": one_by_one})
        factor = departures(committed, plan, classes)[1]
        total += judgements.share_of_alpha(plan, COMMITTED, 1, factor) if factor > 1 else 0
    assert total <= COMMITTED.alpha / 4 + 1e-12, "beside the committed plan's own alpha / 2"


def test_alpha_is_shared_and_never_raised():
    plan = COMMITTED.model_copy(update={"alpha": 0.01})
    small = COMMITTED.model_copy(update={"alpha": 1e-3})
    assert [judgements.share_of_alpha(plan, COMMITTED, k, 1) for k in (1, 2, 3)] == [0.005, 0.0025, 0.00125]
    assert judgements.share_of_alpha(COMMITTED, small, 1, 1) == 0.0005, "0.5 was not committed"
    assert judgements.share_of_alpha(plan, COMMITTED, 2, 330) == 0.01 / 4 / 330
    assert sum(judgements.share_of_alpha(plan, COMMITTED, k, 1) for k in range(1, 2000)) <= 0.01
    assert judgements.share_of_alpha(plan, COMMITTED, 10**9, 1) == 0, "and no overflow"


# --- the statistic ---


@pytest.mark.parametrize(
    "committed,used,allowed",
    [
        ({}, {}, True),
        ({"statistic": STATISTICS[1]}, {"statistic": STATISTICS[1]}, True),
        ({"statistic": STATISTICS[1]}, {}, True),  # without references they say the same
        ({"statistic": STATISTICS[1], "references": [ONE]}, {"references": [ONE]}, False),
        ({"references": [ONE]}, {"statistic": STATISTICS[1], "references": [ONE]}, False),
        ({"statistic": STATISTICS[1], "references": [ONE]}, {"references": [ONE], "views": 4}, False),
        ({"statistic": STATISTICS[1]}, {"references": [ONE], "statistic": STATISTICS[1]}, True),
        ({}, {"references": [ONE], "statistic": STATISTICS[1]}, False),
        ({"statistic": STATISTICS[0], "views": 1}, {"views": 1}, True),
        ({"statistic": STATISTICS[0], "views": 1}, {"references": [ONE]}, True),
        ({"statistic": STATISTICS[0], "views": 1}, {"references": [ONE], "statistic": STATISTICS[1]}, False),
        ({}, {"statistic": STATISTICS[0]}, False),
        ({}, {"statistic": "the mean; version 9"}, False),
    ],
)
def test_the_statistic_is_no_choice(committed, used, allowed):
    assert same_statistic(AuditPlan(**committed), AuditPlan(**used)) == allowed


def test_a_plan_keeps_its_statistic_unless_that_knows_no_references():
    committed = AuditPlan(statistic=STATISTICS[1], references=[ONE], views=2)
    assert Options(query_augmentations=4).plan(committed, 50, 0, []).statistic == STATISTICS[1]
    early = AuditPlan(statistic=STATISTICS[0], views=1)
    assert Options(keys=4).plan(early, 50, 0).statistic == STATISTICS[0]
    assert Options().plan(early, 50, 0, [ONE]).statistic == STATISTIC
    assert not committed.by_key and AuditPlan().by_key


# --- the plan that is committed ---


def test_the_usual_plan_can_be_kept():
    with_holdout, without = AuditPlan.usual(True), AuditPlan.usual(False)
    assert (with_holdout.keys, with_holdout.selections, with_holdout.label) == (19, 9_999, "auto")
    unmarked = AuditPlan.usual(True, marked=False)
    assert (unmarked.keys, unmarked.selections, unmarked.views) == (0, 99_999, 18)
    assert (without.keys, without.selections) == (1999, 0) and with_holdout.statistic == STATISTIC
    for alpha in (0.001, 0.003, 0.05, 0.1, 0.5):
        plan = AuditPlan.usual(False, alpha=alpha)
        assert 1 / (plan.keys + 1) <= alpha / 2 * (1 + 1e-9) and plan.keys == math.ceil(2 / alpha - 1e-9) - 1
    assert AuditPlan.usual(True, top_k=3).answers == "top k" and AuditPlan.usual(True, label=None).label == "auto"
    assert AuditPlan.usual(True, answers="label only", top_k=3).answers == "label only"


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 0.6},
        {"alpha": 0},
        {"alpha": float("nan")},
        {"label": ""},
        {"label": "x" * 201},
        {"keys": -1},
        {"selections": -1},
        {"top_k": 0},
        {"answers": "all"},
        {"views": 0},
        {"views": 19},
        {"references": ["A" * 64]},
        {"references": ["a" * 64] * 17},
        {"more": 1},
    ],
)
def test_plans_that_can_not_be(wrong):
    with pytest.raises(ValidationError):
        AuditPlan(**wrong)


def test_the_flags_of_marking_are_committed(tmp_path, mark, script):
    folder = tmp_path / "user"
    for number in range(12):
        save(folder / f"{number}.png", picture(number))
    flags = (
        "--holdout",
        "0.5",
        "--label",
        "cat",
        "--top_k",
        "3",
        "--keys",
        "9",
        "--selections",
        "499",
        "--alpha",
        "0.01",
    )
    assert mark(folder, *flags).code == 0
    plan = AuditPlan(label="cat", answers="top k", top_k=3, keys=9, selections=499, alpha=0.01)
    assert AuditPlan(**loaded(folder)["batches"][0]["commit"]["plan"]) == plan
    save(folder / "more.png", picture(30))
    record = ("--record", folder.with_name("user_record"))
    refused(mark(folder, *record, "--alpha", "0.5"), "committed its plan already")
    assert mark(folder, *record).code == 0
    assert AuditPlan(**loaded(folder)["batches"][1]["commit"]["plan"]) == plan, "the first plan binds all batches"


def test_a_resumed_run_keeps_the_plan_that_was_committed(tmp_path, mark, monkeypatch):
    from provenance import protect

    folder = tmp_path / "user"
    for number in range(6):
        save(folder / f"{number}.png", picture(number))
    with monkeypatch.context() as patch:
        patch.setattr(protect, "encode_photo", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert mark(folder, "--holdout", "0.5", "--alpha", "0.01").code == 130
    refused(mark(folder, "--holdout", "0.5", "--alpha", "0.1"), "another plan")
    assert mark(folder, "--holdout", "0.5").code == 0
    assert loaded(folder)["batches"][0]["commit"]["plan"]["alpha"] == 0.01


# --- what an audit may choose ---


def test_options_leave_the_committed_plan_as_it_is():
    assert Options().plan(COMMITTED, 16, 0) == COMMITTED
    assert Options(max_queries=80).plan(COMMITTED, 16, 0) == COMMITTED
    assert Options(max_queries=79).plan(COMMITTED, 16, 0).keys == 2, "a number that may be chosen, and that fits"
    assert Options(max_queries=15).plan(COMMITTED, 16, 0).keys == 0
    assert Options(max_queries=79, keys=4).plan(COMMITTED, 16, 0) == COMMITTED, "refused later, and not changed"
    assert Options(top_k=2).plan(COMMITTED, 16, 0).answers == "top k"
    assert Options(label_only=True, top_k=2).plan(COMMITTED, 16, 0).answers == "label only"
    for wrong in ({"alpha": 0.7}, {"label": ""}, {"keys": -1}):
        user_error(lambda wrong=wrong: Options(**wrong).plan(COMMITTED, 16, 0), next(iter(wrong)))


def test_a_larger_alpha_is_not_taken(audit, record, tmp_path):
    """Neither by the flag, nor by writing it into the record."""
    content = json.loads(record.read_text())
    content["batches"][0]["commit"]["plan"]["alpha"] = 0.001
    small = tmp_path / "small" / "record.json"
    small.parent.mkdir()
    small.write_text(json.dumps(content))
    refused(audit(tmp_path / "out", record=small), "its secret draws")
    done = audit(tmp_path / "out", "--alpha", "0.5", grid=("--device", "cpu"))
    assert done.code == 0 and done.result["alpha"] == 0.25


def test_a_departure_is_said_before_anything_is_asked_and_in_the_verdict(audit, asked, script, tmp_path):
    done = audit(tmp_path / "out", "--label", "1", "--dry_run", grid=("--device", "cpu"))
    assert done.code == 0 and "it departs from the committed plan (label 1 instead of 2)" in flat(done.out)
    refused(audit(tmp_path / "out", "--label", "1"), "label 1 instead of 2", "alpha is divided by 320")
    assert asked.images == []
    done = audit(tmp_path / "out", "--label", "1", grid=("--device", "cpu"))
    assert done.code == 0 and done.result["alpha"] == 0.5 / 2 / 160
    assert any("departs from the committed plan" in sentence for sentence in done.result["weaknesses"])
    done = script("eval", "--replay", tmp_path / "out" / "evidence.zip")
    assert done.code == 0 and "label 1 instead of 2" in flat(done.out)
