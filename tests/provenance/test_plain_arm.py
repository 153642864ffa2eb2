"""A second test on the photos as they are: it finds who removes or refuses marks, and costs half of alpha, no more."""

import hashlib
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binom

from attacks import exact
from attacks.difficulty import taken_out
from kit.errors import UserError
from provenance import grid
from provenance import record as records
from provenance.plan import STATISTIC, STATISTICS, AuditPlan
from suspects.suspect import Answers, Preprocessing
from suspects.views import view_of
from tests.parts import call
from tests.provenance.conftest import ONE_DAY
from tests.provenance.parts import (
    SETTINGS,
    copied,
    flat,
    judged,
    make_record,
    photo_entries,
    refused,
    save,
    wavy_picture,
)
from tests.provenance.test_replay import written
from tests.provenance.test_sequential_audit import train

PLAN = AuditPlan(label="2", keys=4, selections=999, alpha=0.1, views=2, plain_arm=True)
COUNT = 20
MARKED, PLAIN = slice(0, 5), slice(5, 6)  # pictures of each photo


def parts(marked=0.0, plain=0.0, seed=5, plan=PLAN, refuses=None):
    """(document, order, digests, answers, values) of an honest audit. marked, plain: how much surer the model is of
    published photos under the own key, and as they are; refuses: pictures that it does not answer about."""
    record, rng = make_record((COUNT, 0.5), plan=plan), np.random.default_rng(seed)
    values = rng.normal(size=(COUNT, plan.pictures, plan.views, 4)).astype(np.float32)
    values[np.flatnonzero(record.published), 0, :, 2] += marked
    values[np.flatnonzero(record.published), 5, :, 2] += plain
    if refuses:
        values[:, refuses] = np.nan
    order = grid.query_order(record, COUNT * plan.pictures, "", plan.views)
    answers = Answers(values.reshape(-1, 4)[order])
    digests = rng.integers(0, 256, (len(order), 32), dtype=np.uint8)
    return judged(record, order, answers, 2), order, digests, answers, values


def by_hand(values):
    """p of one arm's values (n, pictures, views, 4)."""
    logs = values - np.log(np.exp(values).sum(axis=3, keepdims=True, dtype=np.float64))
    scores = np.sqrt(-logs[..., 2]).mean(axis=2)
    selections = make_record((COUNT, 0.5), plan=PLAN).selections(PLAN.selections)
    table = selections.astype(float) @ scores / selections.sum(axis=1, keepdims=True)
    return (table <= table[0, 0] + 1e-9).mean()


# --- what it is ---


def test_plans_without_it_keep_their_digests():
    assert "plain_arm" not in AuditPlan().model_dump(mode="json")
    assert AuditPlan(**json.loads(json.dumps(PLAN.model_dump(mode="json")))) == PLAN
    assert (PLAN.pictures, AuditPlan(keys=4).pictures) == (6, 5)


def test_each_test_is_the_exact_one_on_its_own_pictures_and_the_smaller_p_counts_twice():
    for strength in ({"marked": 1.2}, {"plain": 1.2}, {"marked": 0.6, "plain": 0.6}, {}):
        document, *_, values = parts(**strength)
        result = document["result"]
        ours = {"marked": by_hand(values[:, MARKED]), "plain": by_hand(values[:, PLAIN])}
        assert result["arms"] == {**ours, "plain_refused": 0}
        assert result["p_value"] == min(1, 2 * min(ours.values()))
        assert result["pairs"] == 5 * 1000 and result["at_most"] == round(ours["marked"] * 5000)
        assert result["key_p_value"] == exact.key_p_value(_marked_grid(values))
    assert parts(marked=3.0)[0]["result"]["p_value"] == 2 / 5000, "the floor"


def _marked_grid(values):
    logs = values[:, MARKED] - np.log(np.exp(values[:, MARKED]).sum(axis=3, keepdims=True, dtype=np.float64))
    record = make_record((COUNT, 0.5), plan=PLAN)
    scores = np.sqrt(-logs).mean(axis=2)
    return exact.statistic_grid(scores, record.selections(PLAN.selections), 2)[0]


def test_an_owner_who_answers_no_marked_picture_is_found_by_the_plain_ones():
    result = parts(marked=3.0, plain=3.0, refuses=MARKED)[0]["result"]
    assert result["arms"]["marked"] == 1 and result["p_value"] == 2 * result["arms"]["plain"] <= 0.01
    assert result["detected"]
    result = parts(marked=3.0, plain=3.0, refuses=PLAIN)[0]["result"]
    assert result["arms"]["plain"] == 1 and result["detected"]
    assert result["arms"]["plain_refused"] == COUNT * PLAN.views


def test_references_are_taken_out_of_each_arm_by_itself():
    record, rng = make_record((COUNT, 0.5), plan=PLAN), np.random.default_rng(8)
    values = rng.normal(size=(COUNT, 6, 2, 4)).astype(np.float32)
    order = grid.query_order(record, COUNT * 6, "", 2)
    reference = rng.random((1, COUNT, 6)).astype(np.float32)
    whole = grid.judge(record, PLAN, 2, 0.1, order, Answers(values.reshape(-1, 4)[order]), 4, references=reference)[0]
    for keys, pictures, arm in ((4, MARKED, "marked"), (0, PLAIN, "plain")):
        plan = PLAN.model_copy(update={"plain_arm": False, "keys": keys})
        alone = grid.query_order(record, COUNT * (keys + 1), "", 2)
        answers = Answers(values[:, pictures].reshape(-1, 4)[alone])
        part = grid.judge(record, plan, 2, 0.1, alone, answers, 4, references=reference[:, :, pictures])[0]
        assert part["p_value"] == whole["arms"][arm]


def test_an_audit_is_judged_by_the_statistic_of_its_plan():
    """The second version takes the same share of a reference out under all keys, today's one share under each."""
    record, rng = make_record((COUNT, 0.5), plan=PLAN), np.random.default_rng(8)
    values = rng.normal(size=(COUNT, 5, 2, 4)).astype(np.float32)
    order, reference = grid.query_order(record, COUNT * 5, "", 2), rng.random((1, COUNT, 5)).astype(np.float32)
    answers, selections = Answers(values.reshape(-1, 4)[order]), record.selections(PLAN.selections)
    scores = np.sqrt(-(values - np.log(np.exp(values).sum(axis=3, keepdims=True)))[..., 2]).mean(axis=2)
    for by_key, statistic in ((True, STATISTIC), (False, STATISTICS[1])):
        plan = PLAN.model_copy(update={"plain_arm": False, "statistic": statistic})
        found = grid.judge(record, plan, 2, 0.1, order, answers, 4, references=reference)[1]
        left = taken_out(scores[..., None].astype(float), reference, by_key)
        np.testing.assert_allclose(found, exact.statistic_grid(left, selections, 0)[0], atol=1e-6)


def test_an_innocent_model_is_accused_at_most_as_often_as_alpha():
    # Both arms see the same photos: what is easy in one is easy in the other, as in life.
    hits, audits = 0, 400
    plan = PLAN.model_copy(update={"selections": 99})
    for seed in range(audits):
        record, rng = make_record((COUNT, 0.5), plan=plan, seed=seed + 10), np.random.default_rng(seed)
        values = rng.normal(size=(COUNT, 6, 2, 4)) * 0.3 + 2 * rng.normal(size=(COUNT, 1, 1, 4))
        order = grid.query_order(record, COUNT * 6, "", 2)
        answers = Answers(values.reshape(-1, 4)[order].astype(np.float32))
        hits += grid.judge(record, plan, 2, 0.1, order, answers, 4)[0]["p_value"] <= 0.1
    assert hits <= binom.ppf(0.999, audits, 0.1)


def test_where_it_has_nothing_to_tell_it_is_refused(mark, tmp_path):
    folder = tmp_path / "user"
    for number in range(8):
        save(folder / f"{number}.png", wavy_picture(number))
    refused(mark(folder, "--holdout", "0", "--plain_arm"), "--plain_arm", "--holdout 0.5")
    refused(mark(folder, "--visibility", "none", "--plain_arm"), "--plain_arm", "without marks")
    refused(mark(folder, "--holdout", "0.5", "--plain_arm", "--sequential"), "--plain_arm", "--sequential")
    assert not (tmp_path / "user_marked").exists()
    unmarked = SETTINGS.model_copy(
        update={"img_blending_ratio": 1.0, "noise_injection_type": "none", "noise_norm": 0.0}
    )
    with pytest.raises(UserError, match="--plain_arm"):
        records.commit_batch(records.new_record(unmarked), photo_entries("abcd"), 0.5, "in", "out", PLAN, seed=1)


# --- the enemy ---


@pytest.mark.parametrize("strength", [{"marked": 2.0}, {"plain": 2.0}, {}])
def test_an_honest_bundle_is_right(script, tmp_path, strength):
    document, *arrays, _ = parts(**strength)
    done = script("eval", "--replay", written(tmp_path / "evidence.zip", document, *arrays))
    assert done.code == 0, done.err
    assert "unmarked ones" in done.out or f"{document['result']['p_value']:.6g}" in done.out


@pytest.mark.parametrize("wrong", ["arm left out of the plan", "p of the arm", "p once", "arm where none was planned"])
def test_a_bundle_that_gains_by_its_second_test_is_refused(script, tmp_path, wrong):
    """Who leaves the weaker test out after the draw has alpha for the other alone, who adds one has two chances."""
    document, order, digests, answers, values = parts(marked=0.0, plain=1.0)
    document = copied(document)
    if wrong == "arm left out of the plan":
        marked, alone = values[:, MARKED], grid.query_order(make_record((COUNT, 0.5), plan=PLAN), COUNT * 5, "", 2)
        record = make_record((COUNT, 0.5), plan=PLAN)
        answers = Answers(marked.reshape(-1, 4)[alone])
        document = judged(record, alone, answers, 2, plan={"plain_arm": False})
        order, digests = alone, digests[: len(alone)]
    elif wrong == "arm where none was planned":
        record = make_record((COUNT, 0.5), plan=PLAN.model_copy(update={"plain_arm": False}))
        order = grid.query_order(record, COUNT * 6, "", 2)
        document = judged(record, order, Answers(values.reshape(-1, 4)[order]), 2, plan={"plain_arm": True})
        answers = Answers(values.reshape(-1, 4)[order])
    elif wrong == "p of the arm":
        document["result"]["arms"]["plain"] /= 2
    else:
        document["result"]["p_value"] = document["result"]["arms"]["plain"]
    done = script("eval", "--replay", written(tmp_path / "evidence.zip", document, order, digests, answers))
    refused(done, "its second test does not fit its plan" if wrong.startswith("arm") else "differs elsewhere")


# --- from end to end ---

MINE, KEYS = 24, 4
MANY = ("--selections", "99999")
FLAGS = ("--label", "2", "--keys", str(KEYS), "--selections", "999", "--alpha", "0.5", "--query_augmentations", "2")


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """A user whose published photos were used without their marks: the model has never seen a stripe."""
    root = tmp_path_factory.mktemp("plain")
    for number in range(MINE):
        save(root / "user" / f"{number:02}.png", wavy_picture(number))
    flags = ("--data_folder", root / "user", "--holdout", "0.5", "--seed", "7", "--beacon", "none", "--plain_arm")
    done = call("data_marking.py", *flags, *FLAGS, code=ONE_DAY)
    assert done.returncode == 0, done.stderr
    published = sorted(path.name for path in (root / "user_marked").iterdir())
    own = [np.asarray(Image.open(root / "user" / name).convert("RGB")) for name in published]
    return SimpleNamespace(
        root=root,
        record=root / "user_record",
        originals=root / "user",
        model=train(root / "model.safetensors", own, 1),
    )


def test_photos_that_were_used_without_their_marks_are_found(script, user, asked, tmp_path):
    record = shutil.copytree(user.record, tmp_path / "record") / "record.json"
    where = ("--record", record, "--originals", user.originals)
    model = ("--checkpoint", user.model, "--device", "cpu")
    refused(script("eval", *where, *model, "--sequential", "yes", "--out", tmp_path / "no"), "second test")
    done = script("eval", *where, *model, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["queries"] == MINE * (KEYS + 2) * 2 == len(set(asked.images)) == len(asked.images)
    plain = [
        view_of(Preprocessing((32, 32)).fit(wavy_picture(number))[None], view)[0]
        for number in range(MINE)
        for view in (0, 1)
    ]
    assert {hashlib.sha256(image.tobytes()).digest() for image in plain} <= set(asked.images), "as they are"
    assert result["arms"]["plain"] <= 0.02 and result["detected"]
    assert result["p_value"] == 2 * min(result["arms"]["marked"], result["arms"]["plain"])
    assert "unmarked ones" in done.out and f"({KEYS + 1} keys + unmarked)" in flat(done.out + done.err)
    done = script("eval", "--replay", tmp_path / "out" / "evidence.zip", *where, *model)
    assert done.code == 0, done.err + done.out
    assert f"{result['queries']} of {result['queries']} are bit for bit" in flat(done.out)


def test_a_budget_pays_for_the_plain_photos_too(script, user, asked, tmp_path):
    record = shutil.copytree(user.record, tmp_path / "record") / "record.json"
    where = ("--record", record, "--originals", user.originals, "--checkpoint", user.model, "--device", "cpu")
    done = script("eval", *where, "--max_queries", str(MINE * 4), *MANY, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert len(asked.images) <= MINE * 4
    assert json.loads((tmp_path / "out" / "result.json").read_text())["arms"]["plain"] < 1


def test_references_are_asked_about_the_plain_photos_too(script, user, tmp_path):
    reference = train(tmp_path / "reference.safetensors", [], 3)
    record = shutil.copytree(user.record, tmp_path / "record") / "record.json"
    where = ("--record", record, "--originals", user.originals)
    model = ("--checkpoint", user.model, "--device", "cpu", "--reference", reference)
    done = script("eval", *where, *model, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    done = script("eval", "--replay", tmp_path / "out" / "evidence.zip", *where, *model)
    assert done.code == 0, done.err + done.out
    assert f"{MINE * (KEYS + 2)} of {MINE * (KEYS + 2)} scores are the references' own" in flat(done.out)
