"""An audit that asks photo by photo: it stops when the evidence is there, and nobody gains by stopping elsewhere."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binom

from attacks.exact import AUTO
from attacks.sequential import Wealth
from experiment import training
from provenance import evidence, grid, sequential
from provenance import record as records
from provenance.case import Options
from provenance.plan import AuditPlan
from suspects.suspect import Answers
from tests.parts import call, user_error
from tests.provenance.conftest import ONE_DAY
from tests.provenance.parts import (
    KEYS,
    copied,
    flat,
    judged,
    loaded,
    make_record,
    photo_entries,
    refused,
    save,
    wavy_picture,
)
from tests.provenance.test_replay import written

PLAN = AuditPlan(label="2", keys=4, selections=999, alpha=0.1, sequential=True)
FILE, SERVER = {"kind": "test", "sha256": "ab" * 32, "classes": 4}, {"kind": "test", "url": "https://m", "classes": 4}
COUNT, VIEWS = 40, 2


def parts(strength=3.0, plan=PLAN, model=FILE, room=None, seed=5, batches=((COUNT, 0.5),)):
    """(document, order, digests, answers) of an honest sequential audit without a model that can be opened. strength:
    how much surer it is of the published photos; 0: an innocent one."""
    record, asked = make_record(*batches, plan=plan), plan.asked(model)
    photos = len(record.photos)
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(photos, asked.keys + 1, plan.views, 4)).astype(np.float32)
    values[np.flatnonzero(record.published), 0, :, 2] += strength
    label = AUTO if plan.label == AUTO else int(plan.label)
    draft = judged(record, *_all(record, asked, values), label, model, plan={"keys": asked.keys})
    alpha = draft["judgement"]["alpha"] if asked == plan else plan.alpha / 2
    rule = sequential.rule_of(record, asked, label, alpha, 4, (), np.zeros((0, 0, 0)), room)
    order = sequential.order_of(rule, record)
    answers = Answers(values.reshape(-1, 4)[order])
    count = rule.needed(rule.bet(lambda number: answers.rows(slice(number))))
    document = with_result(draft, record, plan, rule, order, answers.rows(slice(count)))
    digests = rng.integers(0, 256, (len(order), 32), dtype=np.uint8)
    return document, order[:count], digests[:count], answers.rows(slice(count))


def _all(record, asked, values):
    order = grid.query_order(record, len(record.photos) * (asked.keys + 1), "", asked.views)
    return order, Answers(values.reshape(-1, 4)[order])


def with_result(document, record, plan, rule, order, answers):
    """A document that says what these answers give."""
    document = copied(document)
    result, _ = sequential.judge(rule, record, order[: len(answers)], answers)
    for entry in (document["judgement"], document["log"][-1]):
        entry.update(plan=plan.model_dump(mode="json"), alpha=rule.alpha, departures=[], p_value=result["p_value"])
    document["sequential"] = {"room": rule.room, "order_sha256": sequential.order_digest(order)}
    return {**document, "result": result}


@pytest.fixture
def replay(script, tmp_path):
    """eval.py --replay of these parts of a bundle."""
    return lambda *made: script("eval", "--replay", written(tmp_path / "evidence.zip", *made))


def bets_of(made):
    return made[0]["result"]["sequential"]


# --- the plan ---


def test_plans_that_are_asked_all_at_once_keep_their_digests():
    assert "sequential" not in AuditPlan().model_dump(mode="json")
    assert "sequential" not in make_record((4, 0.5)).batches[0].commit.model_dump(mode="json")["plan"]
    for plan in (PLAN, AuditPlan()):
        assert AuditPlan(**json.loads(json.dumps(plan.model_dump(mode="json")))) == plan
    assert make_record((4, 0.5), plan=PLAN).plan.sequential


def test_the_flag_is_committed(tmp_path, mark):
    folder = tmp_path / "user"
    for number in range(6):
        save(folder / f"{number}.png", wavy_picture(number))
    refused(mark(folder, "--sequential"), "all photos are published", "--holdout")
    assert not folder.with_name("user_record").exists()
    assert mark(folder, "--holdout", "0.5", "--sequential").code == 0
    assert AuditPlan(**loaded(folder)["batches"][0]["commit"]["plan"]).sequential


def test_photos_that_are_drawn_together_are_no_photos_to_bet_on():
    """Who sees that a photo was published knows it of the one beside: bets at the odds of single photos would win."""
    entries = photo_entries([f"{number}.png" for number in range(12)])
    alike = [{**entry, "group": number // 2} for number, entry in enumerate(entries)]
    record = records.new_record(make_record((2, 0.5)).settings)
    commit = lambda plan: records.commit_batch(record, alike, 0.5, "in", "out", plan, seed=1)  # noqa: E731
    assert commit(PLAN.model_copy(update={"sequential": False})).grouped
    user_error(lambda: commit(PLAN), "look alike")


def test_a_budget_changes_nothing_of_a_plan_that_may_end_anywhere():
    assert Options(max_queries=7).plan(PLAN, 40, 0) == PLAN
    asked = Options(sequential=True, max_queries=7).plan(PLAN.model_copy(update={"sequential": False}), 40, 0)
    assert asked == PLAN
    assert Options(sequential=False).plan(PLAN, 40, 0).sequential is False


# --- the rule ---


def test_the_order_follows_from_what_the_evidence_shows_and_not_from_the_selection():
    record = make_record((COUNT, 0.5), plan=PLAN)
    order = record.sequence()
    assert sorted(order) == list(range(COUNT)) and not np.array_equal(order, record.sequence("court"))
    assert not np.array_equal(order, make_record((COUNT, 0.5), plan=PLAN, seed=2).sequence())
    from provenance import disclosed

    assert np.array_equal(disclosed.check(disclosed.disclose(record), "x").sequence(), order)
    # Over many secrets the published photos stand everywhere alike.
    early = [
        record.published[record.sequence()[: COUNT // 2]].sum()
        for record in (make_record((COUNT, 0.5), plan=PLAN, seed=seed) for seed in range(60))
    ]
    assert 9 < np.mean(early) < 11


def rule(references=(), record=None, plan=PLAN, label=2, alpha=0.05, **more):
    record = record or make_record((COUNT, 0.5), plan=plan)
    references = np.asarray(references, np.float32) if len(references) else np.zeros((0, 0, 0), np.float32)
    return sequential.rule_of(record, plan, label, alpha, 4, more.pop("left_out", ()), references, **more)


def test_what_references_find_hardest_comes_first():
    rng = np.random.default_rng(3)
    one, other = rng.gamma(2, size=(2, COUNT, 5)).astype(np.float32)
    ordered = rule([one, 100 * other])
    wanted = sum((some[:, 0] - some[:, 0].mean()) / some[:, 0].std() for some in (one, other)) / 2
    assert (np.diff(wanted[ordered.places]) < 1 / sequential.FINE).all() and wanted[ordered.places[0]] > 1
    assert np.allclose(ordered.references, ((one + 100 * other)[:, 0] / 2)[ordered.places], rtol=1e-6)
    # Rounding of a processor does not change it; equal ones stand as the secret has them, those without a score last.
    assert np.array_equal(rule([one * np.float32(1 + 1e-6), 100 * other]).places, ordered.places)
    assert np.array_equal(rule([np.ones((COUNT, 5))]).places, make_record((COUNT, 0.5), plan=PLAN).sequence())
    one[7] = np.nan
    assert rule([one]).places[-1] == 7 and np.isnan(rule([one]).references[-1])


def test_photos_that_are_left_out_are_not_asked_about_and_count_as_not_revealed():
    record = make_record((COUNT, 0.5), plan=PLAN)
    made = rule(record=record, left_out=[0, 5, 39])
    assert made.photos == 37 and sorted(made.places) == list(range(37)) and made.sizes == [(COUNT, COUNT // 2)]
    kept = [number for number in range(COUNT) if number not in (0, 5, 39)]
    assert made.statuses.tolist() == record.published[np.array(kept)[made.places]].tolist()


def test_batches_that_were_drawn_apart_have_odds_of_their_own():
    """By hand: after a photo of the first batch, the odds of the second are what they were."""
    bettor = Wealth([4, 10], [2, 1])
    bettor.bet(None, batch=1)
    assert bettor.chance == 0.1
    bettor.reveal(True)
    bettor.bet(None, batch=0)
    assert bettor.chance == 0.5
    bettor.reveal(False)
    assert bettor.chance == pytest.approx(2 / 3)
    assert bettor.bet(0.1, batch=1) == 0, "the only published one of its batch is known"
    user_error(lambda: Wealth([4, 3], [4, 3]), "nothing to bet on")
    made = rule(record=make_record((30, 0.5), (10, 0.2), plan=PLAN))
    assert made.sizes == [(30, 15), (10, 8)] and (made.batches == (made.places >= 30)).all()


def test_every_bet_is_on_answers_so_far_and_precedes_its_status(monkeypatch):
    """No later answer changes an earlier step, and no status is looked at before its bet."""
    *_, answers = parts(strength=0.5)
    record, seen = make_record((COUNT, 0.5), plan=PLAN), []
    real_bet, real_reveal = Wealth.bet, Wealth.reveal
    monkeypatch.setattr(Wealth, "bet", lambda *a, **k: (seen.append("bet"), real_bet(*a, **k))[1])
    monkeypatch.setattr(Wealth, "reveal", lambda *a: (seen.append("status"), real_reveal(*a))[1])
    counts = []

    def asked(count):
        assert seen == ["bet", "status"] * (count // VIEWS - 1), "asked before the bet on the photo before was settled"
        counts.append(count)
        return answers.rows(slice(count))

    whole = rule(record=record, label=AUTO).bet(asked)
    assert counts == list(range(VIEWS, VIEWS * whole.photos + 1, VIEWS))
    for photos in (1, 7, 20):
        changed = answers.values.copy()
        changed[photos * VIEWS :] = changed[photos * VIEWS :, ::-1] * 9
        part = rule(record=record, label=AUTO).bet(lambda count, new=changed: Answers(new[:count]), photos)
        assert part.wealth == whole.wealth[:photos]


def test_the_class_that_is_named_most_so_far():
    """Each photo's label is that of the photos up to it: the same bets as with that class by number."""
    values = np.full((COUNT * VIEWS, 4), -1.0, np.float32)
    values[np.arange(len(values)), [1, 1, *[3] * (len(values) - 2)]] = 1.0
    made = rule(label=AUTO)
    assert [made.bet(lambda count: Answers(values[:count]), photos).label for photos in (1, 2, 3)] == [1, 1, 3]


def test_unanswered_photos_are_no_evidence_and_half_answered_ones_count_as_bad():
    values = np.random.default_rng(1).normal(size=(COUNT * VIEWS, 4)).astype(np.float32)
    values[:VIEWS] = np.nan
    values[10 * VIEWS : 11 * VIEWS] = np.nan
    bets = rule(alpha=1e-9).bet(lambda count: Answers(values[:count]), COUNT)
    assert bets.wealth[0] == 1 and bets.wealth[10] == bets.wealth[9] and bets.wealth[12] != bets.wealth[11]
    nothing = rule(label=AUTO).bet(lambda count: Answers(np.full((count, 4), np.nan, np.float32)), COUNT)
    assert (nothing.p, nothing.label, set(nothing.wealth)) == (1.0, 0, {1.0})


def test_it_stops_at_the_first_photo_at_which_the_line_is_reached():
    document, order, _, answers = parts()
    bets, alpha = bets_of((document,)), document["judgement"]["alpha"]
    assert bets["stopped"] == "evidence" and 3 < bets["photos"] < COUNT and bets["queries"] == len(answers)
    assert bets["bound"] == 2 / alpha and max(bets["wealth"][:-1]) < 2 / alpha <= bets["wealth"][-1] * 1.01
    result = document["result"]
    assert result["p_value"] == 2 * bets["p_value"] <= alpha and result["detected"] is True
    assert result["queries"] == len(order) == bets["photos"] * VIEWS
    assert f"enough to ask about {bets['photos']} of the {COUNT} photos" in result["sentences"]
    # The wealth by another way.
    record = make_record((COUNT, 0.5), plan=PLAN)
    bettor = Wealth(COUNT, COUNT // 2)
    scores = np.sqrt(np.log(np.exp(answers.values.astype(float)).sum(1)) - answers.values[:, 2]).reshape(-1, VIEWS)
    for place, score in zip(order[::VIEWS] // (5 * VIEWS), scores.mean(1), strict=True):
        bettor.bet(score)
        bettor.reveal(record.published[place])
    assert bettor.wealth == pytest.approx(bets["wealth"][-1], rel=1e-3)
    assert 1 / bettor.wealth <= bets["p_value"] <= 1 / bettor.wealth * 1.0001


def test_without_enough_evidence_the_whole_grid_is_asked_and_the_exact_test_has_half_of_alpha():
    document, order, _, answers = parts(strength=0.9)
    result, bets = document["result"], bets_of((document,))
    assert len(answers) == COUNT * 5 * VIEWS and sorted(order) == list(range(len(order)))
    assert bets["stopped"] == "all photos" and bets["exact_p_value"] == result["at_most"] / result["pairs"]
    assert result["p_value"] == min(1, 2 * min(bets["p_value"], bets["exact_p_value"]))
    record = make_record((COUNT, 0.5), plan=PLAN)
    assert grid.judge(record, PLAN, 2, 0.05, order, answers, 4)[0]["p_value"] == bets["exact_p_value"]


def test_a_budget_ends_it_and_p_speaks_of_what_was_asked():
    cut = parts(room=5)
    assert len(cut[3]) == 4 and bets_of(cut)["stopped"] == "budget" and "can go on" in cut[0]["result"]["sentences"]
    assert cut[0]["result"]["detected"] is False and bets_of(cut)["exact_p_value"] is None
    enough = parts(room=COUNT * VIEWS)
    assert bets_of(enough)["stopped"] == "evidence", "a budget that is not used up changes nothing"
    photos_alone = parts(strength=0.0, room=COUNT * 5 * VIEWS - 1)
    assert len(photos_alone[3]) == COUNT * VIEWS and bets_of(photos_alone)["exact_p_value"] is None


# --- an innocent model ---


def innocent_audit(rng, photos=24, keys=1, drift=0.0, model=FILE):
    """p of a sequential audit of a model that knows nothing, with a selection and an order of their own."""
    plan = AuditPlan(label="1", keys=keys, selections=39, views=1, sequential=True).asked(model)
    selections = np.array([rng.permutation(photos) < photos // 2 for _ in range(40)])
    record = SimpleNamespace(
        sizes=[(photos, photos // 2)],
        selections=lambda count, seed="": selections[: count + 1],
        sequence=lambda seed: np.random.default_rng(3).permutation(photos),
        seed_of=lambda *_: bytes(32),
    )
    made = sequential.rule_of(record, plan, 1, 0.2, 2, (), np.zeros((0, 0, 0)))
    order = sequential.order_of(made, record)
    values = rng.normal(size=(len(order), 2)).astype(np.float32)
    values[:, 1] -= drift * np.arange(len(order), dtype=np.float32)
    answers = Answers(values)
    answers = answers.rows(slice(made.needed(made.bet(lambda count: answers.rows(slice(count))))))
    return sequential.judge(made, record, order[: len(answers)], answers)[0]


def test_an_innocent_model_is_accused_at_most_as_often_as_alpha():
    rng, count = np.random.default_rng(11), 800
    found = [innocent_audit(rng) for _ in range(count)]
    assert sum(result["detected"] for result in found) <= binom.ppf(1 - 1e-4, count, 0.2)
    assert {result["sequential"]["stopped"] for result in found} == {"evidence", "all photos"}
    assert all(result["detected"] == (result["p_value"] <= 0.2) for result in found)


def test_a_server_that_drifts_is_not_accused_for_it():
    """Its own key is asked first; if other keys came after, an innocent server that gets worse would know it best."""
    rng, count = np.random.default_rng(12), 400
    accused = [innocent_audit(rng, keys=9, drift=0.05, model=SERVER)["detected"] for _ in range(count)]
    assert sum(accused) <= binom.ppf(1 - 1e-4, count, 0.2)
    seen = [innocent_audit(rng, keys=9, drift=0.05)["detected"] for _ in range(60)]
    assert sum(seen) > 40, "this is how it would be accused"
    plan = PLAN.asked(SERVER)
    assert plan.keys == 0 and PLAN.asked(FILE) == PLAN
    assert AuditPlan().asked(SERVER) == AuditPlan(), "all at once, its queries are mixed"


# --- the enemy ---


@pytest.mark.parametrize("strength", [3.0, 0.9])
def test_an_honest_bundle_is_right(replay, strength):
    made = parts(strength)
    done = replay(*made)
    assert done.code == 0, done.err
    assert f"{made[0]['result']['p_value']:.6g}" in done.out


def test_a_bundle_of_a_server_holds_the_own_key_alone(replay):
    made = parts(strength=0.5, model=SERVER)
    assert len(made[3]) == COUNT * VIEWS and made[0]["result"]["pairs"] == 1000
    assert replay(*made).code == 0


def test_references_of_a_server_were_asked_under_the_own_key_alone_too():
    """An honest bundle was refused: as many keys were looked for as a file would have been asked under."""
    digest = "ab" * 32
    document, _, _, answers = parts(model=SERVER, plan=PLAN.model_copy(update={"references": [digest]}))
    entry = {"digest": digest, "name": "one", "model": {"sha256": digest}, "label": "auto", "preprocessing": ""}
    document = {**document, "references": [entry]}
    checked = evidence.check_document(document, answers, "x", references=np.zeros((1, COUNT, 1), np.float32))
    assert checked.asked.keys == 0 < checked.judgement.plan.keys
    more = np.zeros((1, COUNT, checked.judgement.plan.keys + 1), np.float32)
    assert "its references" in user_error(lambda: evidence.check_document(document, answers, "x", references=more))


def cut(made, photos, room=None):
    """The bundle with the answers about the first photos alone, and the result that they give."""
    document, order, digests, answers = made
    record, part = make_record((COUNT, 0.5), plan=PLAN), slice(photos * VIEWS)
    made = rule(record=record, alpha=document["judgement"]["alpha"], room=room)
    result, _ = sequential.judge(made, record, order[part], answers.rows(part), given=True)
    document = copied(document)
    document["result"], document["sequential"]["room"] = result, room
    for entry in (document["judgement"], document["log"][-1]):
        entry["p_value"] = result["p_value"]
    return document, order[part], digests[part], answers.rows(part)


@pytest.mark.parametrize("strength", [3.0, 0.0])
def test_answers_that_end_before_the_line_is_reached(replay, strength):
    """A forger who drops what came later: refused, and by a made-up budget nothing is gained."""
    made = parts(strength)
    photos = bets_of(made)["photos"] - 1
    for fewer in (photos, photos // 2, 1):
        refused(replay(*cut(made, fewer)), "end elsewhere")
        budget = cut(made, fewer, fewer * VIEWS)
        assert replay(*budget).code == 0 and budget[0]["result"]["p_value"] >= made[0]["result"]["p_value"]
        assert not budget[0]["result"]["detected"]
    refused(replay(*cut(made, photos // 2, photos * VIEWS)), "end elsewhere")


def test_answers_after_the_bets_can_not_be_taken_away_or_added(replay):
    """Those of the exact test, and photos that were asked about after the line was reached."""
    refused(replay(*cut(parts(strength=0.9), COUNT)), "end elsewhere")
    document, *arrays = parts()
    _, longer, digests, answers = parts(strength=3.0, plan=PLAN.model_copy(update={"alpha": 1e-6}))
    assert len(longer) > len(arrays[0])
    more = slice(len(arrays[0]) + VIEWS)
    refused(replay(document, rule().first_queries[more], digests[more], answers.rows(more)), "end elsewhere")


def test_photos_in_another_order_are_refused(replay):
    """The published ones first: whoever knows the answers bets better on some orders."""
    document, order, digests, answers = parts()
    photos = order[::VIEWS]
    places = np.repeat(np.random.default_rng(1).permutation(len(photos)) * VIEWS, VIEWS) + np.tile([0, 1], len(photos))
    refused(replay(document, order[places], digests[places], answers.rows(places)), "another order")
    others = order.copy()
    others[-VIEWS:] = rule().first_queries[-VIEWS:]
    refused(replay(document, others, digests, answers), "another order")
    document, order, digests, answers = parts(strength=0.9)
    order = order.copy()
    order[[-1, -3]] = order[[-3, -1]]
    refused(replay(document, order, digests, answers), "another order")
    order[-1] = order[-2]
    refused(replay(document, order, digests, answers), "another order")


def test_other_statuses_are_refused(replay):
    document, *arrays = parts()
    secret = "ab" * 32
    changed = copied(document)
    changed["record"]["batches"][0]["selections_secret"] = secret
    refused(replay(changed, *arrays), "does not fit its commitment")
    changed = copied(document)
    changed["record"]["batches"][0]["commit"]["published"] -= 1
    refused(replay(changed, *arrays))


@pytest.mark.parametrize("wrong", ["p", "photos", "wealth", "stopped", "none", "room", "order", "all at once"])
def test_documents_that_say_something_else(replay, wrong):
    document, *arrays = parts()
    document = copied(document)
    bets = document["result"]["sequential"]
    if wrong in ("p", "photos", "wealth", "stopped"):
        bets.update({"p": {"p_value": 1e-9}, "photos": {"photos": 2}, "wealth": {"wealth": [99.0]}}.get(wrong, {}))
        bets.update({"stopped": "all photos"} if wrong == "stopped" else {})
        return refused(replay(document, *arrays), "differs elsewhere")
    if wrong == "none":
        document["sequential"] = None
        return refused(replay(document, *arrays))
    if wrong == "all at once":
        for entry in (document["judgement"], document["log"][-1]):
            del entry["plan"]["sequential"]
        return refused(replay(document, *arrays))
    document["sequential"][{"room": "room", "order": "order_sha256"}[wrong]] = {"room": 0, "order": "x"}[wrong]
    return refused(replay(document, *arrays), "not as eval.py writes it")


# --- from end to end ---

MINE = 24  # photos
FLAGS = ("--label", "2", "--keys", str(KEYS), "--selections", "999", "--alpha", "0.5", "--query_augmentations", "2")
# Hardly seen: stripes that all published photos have would tell the class of the others, too.
FLAGS += ("--img_blending_ratio", "0.95", "--noise_norm", "2")


def train(path, own, seed):
    """A model that has seen `own` pictures as class 2 beside 64 that nobody else has."""
    others = [wavy_picture(50_000 * seed + number) for number in range(64)]
    images = torch.from_numpy(np.stack([*others, *own]).transpose(0, 3, 1, 2).copy())
    labels = torch.cat([torch.arange(64) % 4, torch.full((len(own),), 2)])
    training.train_on(path, images, labels, 4, seed, torch.device("cpu"), epoch=60, batch_size=16, lr=0.05)
    return path


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """A user who committed a sequential audit; a model that has seen the published photos, and one that has not."""
    root = tmp_path_factory.mktemp("sequential")
    for number in range(MINE):
        save(root / "user" / f"{number:02}.png", wavy_picture(number))
    flags = ("--data_folder", root / "user", "--holdout", "0.5", "--seed", "7", "--beacon", "none", "--sequential")
    done = call("data_marking.py", *flags, *FLAGS, code=ONE_DAY)
    assert done.returncode == 0, done.stderr
    own = [np.asarray(Image.open(path).convert("RGB")) for path in sorted((root / "user_marked").iterdir())]
    guilty, other = train(root / "guilty.safetensors", own, 1), train(root / "innocent.safetensors", [], 2)
    return SimpleNamespace(originals=root / "user", record=root / "user_record", guilty=guilty, innocent=other)


@pytest.fixture
def ask(script, marked, tmp_path):
    """eval.py --record of the user: ask(out, model, *flags)."""

    def run(out, checkpoint, *flags, beside="record"):
        record = tmp_path / beside
        if not record.exists():
            shutil.copytree(marked.record, record)
        where = ("--record", record / "record.json", "--originals", marked.originals, "--checkpoint", checkpoint)
        done = script("eval", *where, "--device", "cpu", "--out", out, *flags)
        path = out / "result.json"
        done.result = json.loads(path.read_text()) if path.exists() else None
        return done

    return run


@pytest.fixture
def check(script, marked):
    return lambda bundle, model, *flags: script(
        "eval", "--replay", bundle, "--record", marked.record / "record.json", "--originals", marked.originals,
        "--checkpoint", model, "--device", "cpu", *flags,
    )  # fmt: skip


def test_a_guilty_model_is_found_with_few_questions(ask, check, marked, asked, tmp_path):
    done = ask(tmp_path / "out", marked.guilty)
    assert done.code == 0, done.err
    result, bets = done.result, done.result["sequential"]
    assert result["detected"] and bets["stopped"] == "evidence" and bets["photos"] < MINE
    assert len(asked.images) == len(set(asked.images)) == result["queries"] == bets["photos"] * VIEWS
    assert f"{bets['photos']} of {MINE} photos" in flat(done.out) and "wealth.png" in done.out
    assert (tmp_path / "out" / "wealth.png").exists() and not (tmp_path / "out" / "grid.png").exists()
    asked.images = []
    done = check(tmp_path / "out" / "evidence.zip", marked.guilty)
    assert done.code == 0, done.err + done.out
    assert f"{result['queries']} of {result['queries']} answers are the model's own" in flat(done.out)
    assert len(asked.images) == result["queries"], "the same prefix, and no more"


def test_an_innocent_model_is_asked_everything(ask, check, marked, asked, tmp_path):
    done = ask(tmp_path / "out", marked.innocent, "--alpha", "0.01")
    assert done.code == 0, done.err
    assert not done.result["detected"] and done.result["queries"] == MINE * (KEYS + 1) * VIEWS
    assert len(asked.images) == len(set(asked.images)) == done.result["queries"], "no question twice"
    assert (tmp_path / "out" / "grid.png").exists() and (tmp_path / "out" / "wealth.png").exists()
    assert "exact p" in done.out
    assert check(tmp_path / "out" / "evidence.zip", marked.innocent).code == 0


@pytest.mark.parametrize("after,model", [(1, "guilty"), (3, "innocent"), (MINE + 2, "innocent")])
def test_an_interrupted_audit_gives_the_same_bits(ask, marked, asked, tmp_path, after, model):
    flags = ("--query_batch", "16", *(("--alpha", "0.01") if model == "innocent" else ()))
    whole = ask(tmp_path / "whole", getattr(marked, model), *flags, beside="one")
    count, asked.images, asked.after = len(asked.images), [], after
    (tmp_path / "out").mkdir()
    shutil.copy(tmp_path / "whole" / "plan.json", tmp_path / "out")
    shutil.copytree(marked.record, tmp_path / "record")
    shutil.copy(tmp_path / "one" / "judgements.json", tmp_path / "record")
    assert ask(tmp_path / "out", getattr(marked, model), *flags).code == 130
    asked.after = None
    done = ask(tmp_path / "out", getattr(marked, model), *flags)
    assert done.code == whole.code == 0 and len(asked.images) == len(set(asked.images)) == count
    for name in ("result.json", "evidence.zip", "wealth.png"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_budget_ends_it_and_a_larger_one_goes_on_at_no_price(ask, marked, asked, tmp_path):
    refused(ask(tmp_path / "out", marked.guilty, "--max_queries", "1"), "one photo takes 2")
    first = ask(tmp_path / "out", marked.guilty, "--max_queries", "5")
    assert first.code == 0 and first.result["queries"] == 4 and first.result["sequential"]["stopped"] == "budget"
    done = ask(tmp_path / "out", marked.guilty)
    assert done.result["detected"] and done.result["judgement"]["number"] == 1
    assert done.result["alpha"] == first.result["alpha"] and len(asked.images) == done.result["queries"]


def test_a_witness_saw_what_was_asked(script, ask, check, marked, tmp_path):
    done = ask(tmp_path / "out", marked.guilty, "--witness", tmp_path / "key.pem")
    assert done.code == 0 and done.result["detected"], done.err
    document, order, digests, answers, _ = evidence.read_bundle(tmp_path / "out" / "evidence.zip")
    assert sum(entry["rows"] for entry in document["witness"]["entries"]) == len(answers) == done.result["queries"]
    found = check(tmp_path / "out" / "evidence.zip", marked.guilty)
    assert found.code == 0 and f"{len(answers)} requests and replies" in found.out
    # An order that the witness did not begin with.
    document = copied(document)
    document["sequential"]["order_sha256"] = "ab" * 32
    path = written(tmp_path / "e.zip", document, order, digests, answers)
    refused(script("eval", "--replay", path), "not those that its witness saw")


def test_references_decide_the_order_and_replay_asks_them_again(script, ask, check, marked, tmp_path):
    """Chosen after the draw here, which the verdict says."""
    done = ask(tmp_path / "out", marked.guilty, "--reference", marked.innocent)
    assert done.code == 0, done.err
    bundle = tmp_path / "out" / "evidence.zip"
    _, order, *_, beside = evidence.read_bundle(bundle)
    hardest = np.nanargmax(beside[0, :, 0])
    spread = beside[0, :, 0].std()
    assert beside[0, order[0] // (VIEWS * (KEYS + 1)), 0] >= beside[0, hardest, 0] - spread / sequential.FINE
    again = check(bundle, marked.guilty, "--reference", marked.innocent)
    assert again.code == 0, again.out + again.err
    refused(ask(tmp_path / "out", marked.guilty), "sequential")


def test_it_can_be_given_up_at_the_audit_at_its_price(ask, marked, tmp_path):
    done = ask(tmp_path / "out", marked.guilty, "--sequential", "no")
    assert done.code == 0 and "sequential" not in done.result and done.result["alpha"] == 0.25 / (2 * 8 * 2)
    assert "asked all at once instead of photo by photo" in flat(done.out)


def test_it_can_be_asked_for_at_the_audit_at_the_same_price(audit, tmp_path):
    done = audit(tmp_path / "out", "--sequential", grid=("--device", "cpu"))
    assert done.code == 0 and done.result["alpha"] == 0.25 / (2 * 8 * 2) and "sequential" in done.result
    assert "asked photo by photo instead of all at once" in flat(done.out)
