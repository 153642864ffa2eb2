"""studies/dishonest.py: attacks that succeeded against the old draw do not succeed against the new one, and the study
runs from end to end."""

import json

import numpy as np
import pytest
import torch

from attacks import exact
from dataset import load_dataset
from experiment import training
from provenance.plan import AuditPlan, departures
from studies import attacks_draw, attacks_evidence, attacks_owner, attacks_plan, attacks_references, dishonest
from studies import attacks_world as places
from tests.provenance.parts import save, wavy_picture

PHOTOS, POOL, CLASSES, MODELS = 24, 32, 5, 2


def made_up_world(users=2):
    """Users whose photos differ in difficulty, which two models agree on; a key makes a little difference."""
    world = places.World([f"model {number}" for number in range(MODELS)], [], POOL, 7)
    draws = world.draws("answers")
    for number in range(users):
        hard = draws.normal(0, 2, (1, PHOTOS, 1, 1)) + draws.normal(0, 0.5, (MODELS, PHOTOS, 1, 1))
        answers = draws.normal(0, 0.3, (MODELS, PHOTOS, POOL, CLASSES)).astype(np.float32)
        answers[..., :1] += hard.astype(np.float32)
        logs = answers[..., 0] - np.log(np.exp(answers).sum(axis=-1))
        digests = [b"%d %d" % (number, photo) for photo in range(PHOTOS)]
        brightness = draws.normal(100, 20, (PHOTOS, POOL)).astype(np.float32)
        world.users.append(places.User(np.arange(PHOTOS), 0, digests, answers, exact.score(logs), brightness))
    return world


@pytest.fixture(scope="module")
def world():
    return made_up_world()


def values(rows, when, column="p"):
    return np.array([row[column] for row in rows if row["when"] == when])


def unimpressive(found):
    """As p of innocent models are: far more than chance allows would have to go wrong for this to fail."""
    return len(found) >= 12 and np.median(found) > 0.2 and (found <= 0.05).mean() <= 0.25


@pytest.mark.parametrize(
    "attack",
    [
        lambda world: attacks_draw.names(world, 3),
        lambda world: attacks_draw.grinding(world, 4, 20, 500),
        lambda world: attacks_draw.whole_secrets(world, 2, 200),
    ],
    ids=["names", "grinding", "whole secrets"],
)
def test_choosing_the_draw_worked_and_does_not_any_more(world, attack):
    rows = list(attack(world))
    assert np.median(values(rows, "before")) < 0.02, "the attack itself is right"
    assert unimpressive(values(rows, "after"))


def test_shopping_is_paid_for(world):
    rows = [row for row in attacks_plan.shopping(world, 2) if row["attack"] == "shopping"]
    known = [row for row in rows if row["tried on"] == row["accused"]]
    assert np.median(values(known, "before")) < 0.15
    assert (values(rows, "after", "counted") <= 0.05).mean() <= 0.2
    assert (values(rows, "after") <= values(rows, "after", "counted")).all()


def test_stopping_is_paid_for(world):
    rows = list(attacks_draw.stopping(world, 2, batches=3))
    assert unimpressive(values(rows, "after", "counted"))
    assert {row["counted"] >= 2 * row["p"] or row["counted"] == 1 for row in rows if row["when"] == "after"} == {True}


def test_a_refusing_owner_gets_a_verdict(world):
    rows = list(attacks_owner.veto(world, 2))
    assert {row["variant"] for row in rows} == set(attacks_owner.RULES)
    assert unimpressive(values(rows, "after"))


def test_many_commitments_still_work(world):
    """What remains: the study says so, and does not hide it."""
    rows = list(attacks_draw.several_commitments(world, 1, 100))
    known = [row for row in rows if row["tried on"] == row["accused"]]
    assert np.median(values(known, "after")) < 0.05
    assert "several commitments" in dishonest.LEFT


# --- what stands for the program ---


def test_fast_draws_are_the_records(world):
    user, seed = world.users[0], 5
    record = places.commit([places.photo_of(user, place) for place in range(PHOTOS)], seed)
    drawn = places.drawn(record, "ab" * 48)
    fast = attacks_draw.Fast(record)
    key, chosen = fast.own(attacks_draw.secret_of(seed), drawn.batches[0].randomness)
    assert key == drawn.keys(0)[0][0] and (chosen == drawn.published).all()
    digests = [photo.original_sha256 for photo in record.photos]
    assert fast.own(attacks_draw.secret_of(seed), drawn.batches[0].randomness, digests)[0] == key


def test_a_draw_has_no_key_twice(world):
    user = world.users[0]
    record = places.commit([places.photo_of(user, place) for place in range(PHOTOS)], 1)
    draw = places.new_draw(places.drawn(record, "cd" * 48), POOL)
    assert sorted(draw.photos) == list(range(PHOTOS)) and draw.selections.sum(axis=1).tolist() == [PHOTOS // 2] * 1000
    assert len(set(draw.columns[0])) == places.KEYS + 1
    again = places.new_draw(places.drawn(record, "cd" * 48), POOL, audit_seed="text")
    assert again.columns[0, 0] == draw.columns[0, 0] and (again.selections[0] == draw.selections[0]).all()
    assert (again.columns[0] != draw.columns[0]).any() and (again.selections != draw.selections).any()


def test_a_shop_is_right_about_every_plan(world):
    draw = attacks_plan.fresh_draw(world, world.users[1], ("test",), keys=24)
    shop = attacks_plan.Shop(places.answers_of(world.users[1], 0, draw), draw.selections)
    for form, top_k, label in (("as given", None, "auto"), ("label only", None, "1"), ("top k", 2, "3")):
        table = shop.tables((form, top_k))[CLASSES if label == "auto" else int(label)]
        for keys, selections in ((19, 999), (3, 50), (24, 0)):
            plan = AuditPlan(label=label, answers=form, top_k=top_k, keys=keys, selections=selections)
            assert table[selections, keys] == pytest.approx(shop.p(plan)), plan
    printed, best = shop.choices()
    assert printed.p == pytest.approx(shop.p(printed.plan)) and best.fair == shop.fair(best.plan, best.p)
    usual = shop.p(shop.committed)
    assert printed.p <= usual and best.fair <= shop.fair(shop.committed, usual) == min(1, 2 * usual)
    for form, label, keys, selections in (
        ("as given", 2, 19, 999),
        ("label only", 1, 4, 999),
        ("as given", CLASSES, 9, 99),
    ):
        plan = {"answers": form, "label": "auto" if label == CLASSES else str(label), "keys": keys}
        plan = shop.committed.model_copy(update={**plan, "selections": selections})
        factors = shop._factors((form, None))
        assert factors[label, selections, keys] == departures(shop.committed, plan, CLASSES)[1]


# --- forged evidence ---


@pytest.fixture(scope="module")
def suspect(tmp_path_factory):
    """A file with a hardly trained network, and photos."""
    data, path = load_dataset("photos"), tmp_path_factory.mktemp("suspect") / "model.safetensors"
    rows = torch.arange(64)
    training.train_on(
        path, data.images[rows], data.labels[rows], len(data.class_names), 1, torch.device("cpu"), epoch=1
    )
    return path, data.images[torch.arange(100, 116)]


def test_forgeries(suspect, tmp_path, script):
    checkpoint, images = suspect
    wanted = (
        attacks_evidence.invented_server,
        attacks_evidence.invented_but_one,
        attacks_evidence.other_plan,
        attacks_evidence.log_without_judgement,
        attacks_evidence.other_half,
        attacks_evidence.other_signature,
    )
    chosen = [entry for entry in attacks_evidence.FORGERIES if entry[1] in wanted]
    found = attacks_evidence.play(tmp_path, images, checkpoint, chosen, keys=4, selections=199)
    assert [row["outcome"] for row in found] == ["named", "found", *["refused"] * 4]
    for place, row in enumerate(found):
        if not chosen[place][2]:  # as eval.py has it
            done = script("eval", "--replay", tmp_path / f"forgery-{place}" / "evidence.zip", "--strict")
            assert done.code == row["strict"] and row["words"] in " ".join((done.out + done.err).split()), row


# --- the whole ---


def test_from_end_to_end(script, tmp_path, monkeypatch):
    for number in range(180):
        part = "test" if number < 6 else "train"
        save(tmp_path / "data" / part / "abc"[number % 3] / f"{number}.png", wavy_picture(number))
    monkeypatch.setattr(attacks_evidence, "FORGERIES", attacks_evidence.FORGERIES[:1])
    monkeypatch.setattr(attacks_references, "CASES", ())
    flags = (
        "--users 2 --photos 8 --pool 22 --train_size 40 --epoch 1 --repeats 1 --keys 5 --selections 500 --secrets 10 "
        "--redraws 3 --commitments 2 --audit_seeds 2 --planted 1 --references 2 --device cpu --data_root"
    )
    done = script(
        "studies.dishonest", *flags.split(), tmp_path / "data", "--out", tmp_path / "out", "--work", tmp_path / "work"
    )
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert {one["attack"] for one in result["after"]} == set(dishonest.PREVENTED)
    assert {one["attack"] for one in result["left"]} == set(dishonest.LEFT)
    assert len(result["forgeries"]) == 1 and len(result["models"]) == 3
    text = (tmp_path / "out" / "dishonest.md").read_text()
    assert all(attack in text for attack in (*dishonest.PREVENTED, *dishonest.LEFT))
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"result.json", "dishonest.md", "audits.csv", "before-after.png"}
