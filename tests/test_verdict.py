"""The exact test and what is kept of it: known answers, plain loops, innocent models, damaged and forged bundles."""

import hashlib
import io
import itertools
import json
import math
import re
import time
import zipfile
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chisquare

from provenance import audit as user_audit
from provenance import evidence, verdict
from provenance import record as records
from provenance.evidence import AnswerLog, check_document, read_bundle, write_bundle
from provenance.suspect import Answers
from provenance.verdict import AUTO, dense, p_value, plan_grid, sentences, statistic_grid
from runs import UserError

SETTINGS = records.MarkSettings(img_blending_ratio=0.7, noise_injection_type="perlin", noise_norm=8, format="png",
                                ood_pattern="color_stripes", quality=95)


def make_record(*batches, seed=1):
    """A finished record of batches (photos, hold-out), without any photo on disk."""
    record = records.new_record(SETTINGS, seed)
    for count, holdout in batches:
        first = len(record.photos)
        photos = [{"original": f"{first + n}.png", "height": 8, "width": 8,
                   "original_sha256": hashlib.sha256(b"%d" % (first + n)).hexdigest()} for n in range(count)]
        record = records.add_batch(record, photos, holdout, "in", "out", [photo["original"] for photo in photos])
        record = records.finish_batch(record, {p.number: "0" * 64 for p in record.photos if p.published})
    return record


def one_line(call, *words):
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message
    return message


# --- p ---

@pytest.mark.parametrize("grid,p", [([[1, 2], [3, 4]], 1 / 4), ([[4, 2], [3, 1]], 1), ([[2, 1], [3, 4]], 2 / 4),
                                    ([[1, 1], [2, 3]], 2 / 4), ([[0, 0], [0, 0]], 1), ([[3, 1], [5, 2]], 3 / 4),
                                    ([[7]], 1), ([[1, 2, 3]], 1 / 3), ([[2], [1], [2], [9]], 3 / 4)])
def test_p_by_hand(grid, p):
    """Ties count against the user; a `<` or an average of the two would accuse more often than alpha."""
    assert p_value(np.array(grid, dtype=float)) == p


def test_sums_that_differ_in_their_last_bits_are_ties():
    assert p_value(np.array([[0.1 + 0.2, 0.3], [0.9, 0.9]])) == p_value(np.array([[0.3, 0.1 + 0.2], [0.9, 0.9]])) == 0.5


@pytest.mark.parametrize("grid", [[[np.nan, 1], [2, 3]], [[1, np.nan], [np.nan, np.nan]]])
def test_nan_never_helps_the_user(grid):
    with suppress(UserError, ValueError):  # refusing is as good
        assert p_value(np.array(grid)) == 1


# --- T against plain loops ---

def plain_answers(answers, classes):
    """For each row: (function class -> loss, top class), with Python floats."""
    rows = []
    for place in range(len(answers)):
        if answers.values is None:
            named = int(answers.classes[place, 0])
            rows.append((lambda c, named=named: float(c != named), named))
            continue
        values = [float(value) for value in answers.values[place]]
        if answers.classes is not None:
            known = {int(c): v for c, v in zip(answers.classes[place], values, strict=True) if c >= 0}
            rest = min(1 - sum(known.values()), min(known.values()))
            chances = [known.get(c, max(rest, 1e-37)) for c in range(classes)]
            top = max(known, key=lambda c: (known[c], -c))
        elif all(value >= 0 for value in values) and abs(sum(values) - 1) < 1e-3:
            chances, top = values, values.index(max(values))
        else:
            largest = max(values)
            total = sum(math.exp(value - largest) for value in values)
            chances, top = [math.exp(v - largest) / total for v in values], values.index(largest)
        rows.append((lambda c, chances=chances: math.sqrt(max(0.0, -math.log(chances[c]))), top))
    return rows


def plain_grid(answers, selections, label, classes, label_only=False):
    rows, photos = plain_answers(answers, classes), selections.shape[1]
    keys = len(rows) // photos
    grid, labels = np.zeros((len(selections), keys)), np.zeros((len(selections), keys), dtype=int)
    for j, l in itertools.product(range(len(selections)), range(keys)):  # noqa: E741
        chosen = [rows[i * keys + l] for i in range(photos) if selections[j, i]]
        guess = label
        if label == AUTO:
            votes = [sum(top == c for _, top in chosen) for c in range(classes)]
            guess = votes.index(max(votes))
        losses = [float(top != guess) if label_only else loss(guess) for loss, top in chosen]
        grid[j, l], labels[j, l] = sum(losses) / len(losses), guess
    return grid, labels


def random_answers(kind, rows, classes, rng):
    logits = rng.normal(size=(rows, classes)).astype(np.float32) * 3
    if kind == "logits":
        return Answers(logits)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if kind == "probabilities":
        return Answers(chances)
    order = np.argsort(-logits, axis=1)
    if kind == "labels":
        return Answers(None, order[:, :1].astype(np.int32))
    named, values = order[:, :3].astype(np.int32), np.take_along_axis(chances, order[:, :3], 1)
    shuffled = rng.permuted(np.tile(np.arange(3), (rows, 1)), axis=1)  # servers need not sort
    named, values = np.take_along_axis(named, shuffled, 1), np.take_along_axis(values, shuffled, 1)
    gone = (np.arange(3) == 2) & (rng.random((rows, 3)) < 0.3) & (values < values.max(axis=1, keepdims=True))
    return Answers(np.where(gone, 0, values).astype(np.float32), np.where(gone, -1, named).astype(np.int32))


@pytest.mark.parametrize("label", [0, 3, AUTO])
@pytest.mark.parametrize("kind,label_only", [("logits", False), ("logits", True), ("probabilities", False),
                                             ("labels", False), ("top_k", False), ("top_k", True)])
@pytest.mark.parametrize("seed", range(2))
def test_the_grid_is_that_of_plain_loops(kind, label_only, label, seed):
    """Wrong implementations: photos and keys swapped, auto from all photos or from the first pair, ties to the highest
    class, a mean over all photos, losses against the predicted instead of the guessed class."""
    rng, photos, keys, classes = np.random.default_rng(seed), 6, 4, 5
    answers = random_answers(kind, photos * keys, classes, rng)
    selections = records.draw_selections(f"{seed:064x}", [{"photos": 4, "published": 2}, {"photos": 2, "published": 1}],
                                         7)
    grid, labels = statistic_grid(answers, selections, label, classes, label_only)
    expected, guesses = plain_grid(answers, selections, label, classes, label_only)
    assert grid.shape == (8, 4) and labels.tolist() == guesses.tolist()
    np.testing.assert_allclose(grid, expected, rtol=1e-5, atol=1e-6)
    if label == AUTO:
        assert len(set(guesses.ravel())) > 1


def test_auto_takes_the_lowest_of_several_and_only_the_pairs_own_photos():
    tops = np.array([[3], [1], [1], [3], [2], [2]], dtype=np.int32)  # one key; all photos: 1, 2 and 3 twice each
    selections = np.array([[1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1], [1, 0, 0, 1, 1, 0], [0, 1, 0, 0, 1, 0]], dtype=bool)
    grid, labels = statistic_grid(Answers(None, tops), selections, AUTO, 5)
    assert labels.ravel().tolist() == [1, 2, 3, 1]
    np.testing.assert_allclose(grid.ravel(), [0.5, 0, 1 / 3, 0.5])


def test_the_statistic_may_be_another():
    answers = random_answers("logits", 12, 4, np.random.default_rng(0))
    selections = records.draw_selections("ab" * 32, [{"photos": 4, "published": 2}], 3)
    grid, _ = statistic_grid(answers, selections, 1, photo_score=lambda logs: -logs)
    logs, _, _ = dense(answers)
    np.testing.assert_allclose(grid[0, 2], -logs.reshape(4, 3, 4)[selections[0], 2, 1].mean())


def test_a_label_that_does_not_exist():
    selections = np.array([[True, False]])
    one_line(lambda: statistic_grid(Answers(np.zeros((2, 4), np.float32)), selections, 4), "0 to 3")
    # Labels alone do not say how many classes there are: nobody answers 9, and all losses are equal.
    grid, _ = statistic_grid(Answers(None, np.array([[1], [2]], np.int32)), selections, 9)
    assert grid.ravel().tolist() == [1.0]


# --- exactness ---

SIMULATIONS, PHOTOS, KEYS, SELECTIONS = 2000, 8, 4, 19


@pytest.fixture(scope="module")
def drawn_selections():
    batches = [{"photos": PHOTOS, "published": PHOTOS // 2}]
    return [records.draw_selections(hashlib.sha256(b"user %d" % number).hexdigest(), batches, SELECTIONS)
            for number in range(SIMULATIONS)]


def innocent(rng, kind):
    """Answers of a model that never saw any photo: photo 0 and 1 are trivial, the others hard, the answers noisy.

    The first keys' marks happen to be easier, as the marks of every fixed set of keys may be.
    """
    logits = rng.normal(size=(PHOTOS, KEYS + 1, 4))
    logits[:, :, 0] += np.linspace(9, -3, PHOTOS)[:, None]
    logits = logits.reshape(-1, 4)
    if kind == "labels":
        return Answers(None, logits.argmax(axis=1)[:, None].astype(np.int32))
    return Answers(logits.astype(np.float32))


def check_exact(ps):
    for alpha in (1 / 100, 0.05, 0.1, 0.25, 0.5):
        assert (ps <= alpha + 1e-12).sum() <= binom.ppf(0.999, len(ps), alpha), (alpha, (ps <= alpha).mean())


@pytest.mark.parametrize("kind,label", [("logits", 0), ("logits", AUTO), ("labels", 0), ("labels", AUTO)])
def test_innocent_models_are_accused_no_more_often_than_alpha(drawn_selections, kind, label):
    rng = np.random.default_rng(11)
    ps = np.array([p_value(statistic_grid(innocent(rng, kind), selections, label, 4)[0])
                   for selections in drawn_selections])
    check_exact(ps)
    if kind == "logits":  # a test that always says 1 would be exact, too
        assert (ps <= 0.5).mean() > 0.4 and (ps <= 0.05).mean() > 0.02


def test_this_check_finds_a_selection_that_was_not_drawn_at_random(drawn_selections):
    """By name, the easy photos of these users come first; such a row 0 must show, else the test above says nothing."""
    rng, ps = np.random.default_rng(11), []
    for selections in drawn_selections[:300]:
        selections = np.concatenate([[np.arange(PHOTOS) < PHOTOS // 2], selections[1:]])
        ps.append(p_value(statistic_grid(innocent(rng, "logits"), selections, 0, 4)[0]))
    with pytest.raises(AssertionError):
        check_exact(np.array(ps))


def test_a_model_that_memorised_gives_the_smallest_p():
    record = make_record((20, 0.5))
    selections = records.draw_selections(record.selection_key, record.batches, 99)
    logits = np.random.default_rng(0).normal(size=(20, 10, 5)).astype(np.float32)
    logits[np.flatnonzero(record.published), 0, 2] += 8
    for label, only in ((2, False), (AUTO, False), (2, True), (AUTO, True)):
        grid, labels = statistic_grid(Answers(logits.reshape(-1, 5)), selections, label, 5, only)
        assert p_value(grid) == 1 / 1000 and labels[0, 0] == 2
    grid, _ = statistic_grid(Answers(-logits.reshape(-1, 5)), selections, 2, 5)
    assert p_value(grid) > 0.9, "a model that is less sure of the photos is no evidence"


# --- draws ---

BATCHES = [{"photos": 7, "published": 3}, {"photos": 2, "published": 2}, {"photos": 10, "published": 5}]


def test_row_0_is_what_was_published():
    for seed in range(20):
        record = make_record((9, 0.5), (4, 0), (10, 0.3), seed=seed)
        for audit_seed in ("", "court"):
            drawn = records.draw_selections(record.selection_key, record.batches, 30, audit_seed)
            assert (drawn[0] == record.published).all() and drawn.shape == (31, 23) and drawn.dtype == bool
            assert (drawn[:, :9].sum(1) == 5).all() and drawn[:, 9:13].all() and (drawn[:, 13:].sum(1) == 7).all()
            assert len({row.tobytes() for row in drawn}) > 25


def test_selections_are_the_same_bits_on_every_machine():
    drawn = records.draw_selections("ab" * 32, BATCHES, 50, "court")
    assert hashlib.sha256(np.packbits(drawn).tobytes()).hexdigest() == \
        "66c062e890990780cc7bf55ba3da979b8aa510a77602d55d0821661903306f64"
    other = records.draw_selections("ab" * 32, BATCHES, 50, "")
    assert (drawn[0] == other[0]).all() and (drawn[1:] != other[1:]).any(axis=1).sum() > 40
    assert (records.draw_selections("ab" * 32, BATCHES, 9, "court") == drawn[:10]).all()
    assert (records.draw_selections("ac" * 32, BATCHES, 50, "court")[0] != drawn[0]).any()


def test_fresh_selections_are_uniform():
    """All 20 halves of 6 photos, and row 0 over many keys like any other row."""
    six = [{"photos": 6, "published": 3}]
    fresh = records.draw_selections("cd" * 32, six, 2000)[1:]
    own = np.concatenate([records.draw_selections(f"{number:064x}", six, 0) for number in range(2000)])
    for drawn in (fresh, own):
        counts = np.unique(drawn @ (1 << np.arange(6)), return_counts=True)[1]
        assert len(counts) == 20 and chisquare(counts).pvalue > 1e-4


def test_batches_draw_apart():
    """Two batches of the same size must not be cut in the same way: their halves would be dependent."""
    two = [{"photos": 12, "published": 6}] * 2
    drawn = records.draw_selections("ef" * 32, two, 200)
    assert (drawn[:, :12] == drawn[:, 12:]).all(axis=1).sum() <= 3


def test_audit_keys():
    record = make_record((4, 0.5))
    keys = records.audit_keys(record, 30)
    assert keys[0] == bytes.fromhex(record.key) and len(set(keys)) == 31 and all(len(key) == 32 for key in keys)
    assert records.audit_keys(record, 7) == keys[:8] and records.audit_keys(record, 0) == keys[:1]
    other = records.audit_keys(record, 30, "court")
    assert other[0] == keys[0] and not set(other[1:]) & set(keys)
    assert bytes.fromhex(record.selection_key) not in keys


def test_the_order_of_queries():
    record = make_record((4, 0.5))
    order = user_audit.query_order(record, 80, "")
    assert sorted(order) == list(range(80)) and (order == user_audit.query_order(record, 80, "")).all()
    assert (order != user_audit.query_order(record, 80, "court")).any() and order.tolist() != sorted(order)
    answers = Answers(order[:, None].astype(np.float32))  # query number q answers q
    assert user_audit.rows_of(answers, order, slice(None)).values.ravel().tolist() == list(range(80))
    assert user_audit.rows_of(answers, order, [40, 3]).values.ravel().tolist() == [40, 3]


# --- the plan ---

def test_the_grid_of_the_paper():
    plan = plan_grid(50, [(25, 50)], 1e-3)
    assert (plan.keys, plan.selections, plan.queries) == (19, 999, 1000)
    assert plan.smallest_p == pytest.approx(1 / 20_000)


@pytest.mark.parametrize("whole", [*range(2, 60), 100, 1000, 4999, 5000, 20_000])
def test_no_holdout_needs_exactly_one_over_alpha_keys(whole):
    """alpha 0.001 with 999 keys gives p = 0.001 <= alpha; 998 can't."""
    plan = plan_grid(3, [(3, 3)], 1 / whole)
    assert (plan.keys, plan.selections) == (whole - 1, 0) and plan.smallest_p <= 1 / whole * (1 + 1e-9)
    assert plan_grid(3, [(3, 3)], 1 / whole, keys=whole - 1).keys == whole - 1
    if whole > 2:
        one_line(lambda: plan_grid(3, [(3, 3)], 1 / whole, keys=whole - 2), whole - 1)


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-6, 0.5))
def test_the_default_reaches_alpha_and_is_no_larger_than_needed(alpha):
    plan = plan_grid(2, [(2, 2)], alpha)
    assert 1 / (plan.keys + 1) <= alpha * (1 + 1e-8) and (plan.keys == 0 or 1 / plan.keys > alpha * (1 - 1e-8))


@pytest.mark.parametrize("budget,keys", [(1000, 19), (5000, 19), (999, 18), (250, 4), (100, 1), (50, 0)])
def test_budgets_with_a_holdout(budget, keys):
    plan = plan_grid(50, [(25, 50)], 1e-3, max_queries=budget)
    assert plan.keys == keys and plan.queries <= budget and plan.smallest_p <= 1e-3


def test_budgets_that_do_not_suffice():
    one_line(lambda: plan_grid(50, [(25, 50)], 1e-3, max_queries=49), 50, 49)
    one_line(lambda: plan_grid(50, [(25, 50)], 1e-4, max_queries=499), 500, 499)
    assert plan_grid(50, [(25, 50)], 1e-4, max_queries=500).keys == 9
    one_line(lambda: plan_grid(10, [(10, 10)], 1e-3, max_queries=9_999), 10_000, 9_999)
    assert plan_grid(10, [(10, 10)], 1e-3, max_queries=10_000).keys == 999
    one_line(lambda: plan_grid(50, [(25, 50)], 1e-3, keys=20, max_queries=1000), 1050, 1000, "--keys 19")
    one_line(lambda: plan_grid(3, [(3, 3)], 1e-3, selections=5), "--selections 5")
    assert plan_grid(50, [(25, 50)], 0.05, selections=0).smallest_p == 1 / 20
    one_line(lambda: plan_grid(50, [(25, 50)], 1e-3, keys=5, selections=99), "--keys 9 ")
    assert plan_grid(50, [(25, 50)], 1e-3, keys=9, selections=99).smallest_p == pytest.approx(1e-3)


def test_too_few_selections():
    """With 2 of 4 photos there are 6 selections: most draws repeat S0, and p can't fall below 1 / (6 * (L + 1))."""
    message = one_line(lambda: plan_grid(4, [(2, 4)], 1e-3), "6 different")
    assert "--keys" in message
    assert plan_grid(4, [(2, 4)], 1e-3, keys=166).keys == 166
    one_line(lambda: plan_grid(4, [(2, 4)], 1e-3, keys=165))
    assert plan_grid(8, [(2, 4), (2, 4)], 0.01).photos == 8, "batches multiply"


def test_following_the_advice_of_a_refusal_helps():
    for published, photos in ((2, 4), (3, 5), (3, 6), (3, 7)):
        with pytest.raises(UserError) as caught:
            plan_grid(photos, [(published, photos)], 1e-4)
        alpha = float(re.search(r"--alpha ([\d.e-]+)", str(caught.value))[1])
        assert plan_grid(photos, [(published, photos)], alpha).keys >= 0


# --- answers ---

def test_probabilities_and_logits_are_told_apart():
    chances = np.array([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]], np.float32)
    logs, top, only = dense(Answers(chances))
    np.testing.assert_allclose(np.exp(logs), chances, atol=1e-7)
    assert top.tolist() == [0, 1] and only is False and np.isfinite(logs).all() and logs[1, 0] < -80
    logits = np.array([[2.0, 0.0, -1.0], [0.5, 0.25, 0.25]], np.float32)  # the second row alone looks like chances
    np.testing.assert_allclose(np.exp(dense(Answers(logits))[0]).sum(axis=1), 1)
    exact, together = np.exp(logits[1].astype(float)), np.exp(dense(Answers(logits))[0])
    np.testing.assert_allclose(together[1], exact / exact.sum())
    assert not np.allclose(np.exp(dense(Answers(logits[1:]))[0]), together[1:]), "decided for all answers together"


def test_large_logits_do_not_overflow():
    logs, _, _ = dense(Answers(np.array([[3e4, 0.0], [-3e4, -3.1e4]], np.float32)))
    assert np.isfinite(logs).all() and logs[0, 0] == 0


def test_labels_and_top_k():
    logs, top, only = dense(Answers(None, np.array([[2], [0]], np.int32)), 4)
    assert logs.tolist() == [[-1, -1, 0, -1], [0, -1, -1, -1]] and top.tolist() == [2, 0] and only
    logs, top, only = dense(Answers(np.array([[0.5, 0.3], [0.2, 0.75]], np.float32),
                                    np.array([[2, 0], [1, 3]], np.int32)), 4)
    np.testing.assert_allclose(np.exp(logs), [[0.3, 0.2, 0.5, 0.2], [0.05, 0.2, 0.05, 0.75]], atol=1e-6)
    assert top.tolist() == [2, 3] and not only
    # 0.9 is left over, but no class that was not named can be above the smallest that was.
    logs, top, _ = dense(Answers(np.array([[0.1, 0.0]], np.float32), np.array([[1, -1]], np.int32)), 3)
    np.testing.assert_allclose(np.exp(logs), [[0.1, 0.1, 0.1]], atol=1e-6)
    assert top.tolist() == [1]
    full, _, _ = dense(Answers(np.array([[0.6, 0.4]], np.float32), np.array([[0, 1]], np.int32)), 3)
    assert np.isfinite(full).all()
    one_line(lambda: dense(Answers(np.array([[5.0, 1.0]], np.float32), np.array([[0, 1]], np.int32))), "--label_only")


def test_limited_answers_are_what_a_stingy_server_would_send():
    answers = random_answers("logits", 40, 5, np.random.default_rng(3))
    chances, order = np.exp(dense(answers)[0]), np.argsort(-answers.values, axis=1)
    labels = user_audit.limit_answers(answers, True, None)
    assert labels.values is None and labels.classes.ravel().tolist() == order[:, 0].tolist()
    best = user_audit.limit_answers(answers, False, 2)
    assert (best.classes == order[:, :2]).all()
    np.testing.assert_allclose(best.values, np.take_along_axis(chances, order[:, :2], 1), rtol=1e-5)
    for none in (None, 5, 9):
        assert user_audit.limit_answers(answers, False, none) is answers
    assert user_audit.limit_answers(labels, False, 2) is labels and user_audit.limit_answers(best, True, 1) is best


# --- sentences ---

def test_sentences():
    text = sentences(1 / 20_000, 1e-3, 25)
    assert "If the model had never seen these images, a result this strong would occur in at most 1 of 20,000 audits." \
        in text and "25 published" in text and "no proof" not in text
    assert "no proof" in sentences(0.2, 1e-3, 25) and "20 of 100" in sentences(0.2, 1e-3, 25)
    assert "no proof" in sentences(0.0011, 1e-3, 25) and "no proof" not in sentences(0.001, 1e-3, 25)
    assert "100 of 100" in sentences(1.0, 1e-3, 3) and "were not used" in sentences(1.0, 1e-3, 3)
    for p in (1 / 20_000, 0.003, 0.3, 1.0):
        assert len(re.findall(r"\.(?: |$)", sentences(p, 0.01, 9))) == 2, "two sentences"


def test_the_number_of_the_sentence_is_never_below_p():
    """'At most 1 of 6,667' for p = 3 / 20,000, and worse 'at most 1 of 100' for p = 0.0149, promise too much."""
    for p in [*(k / 20_000 for k in range(1, 2000)), 0.0149, 0.0249]:
        some, many = re.search(r"at most (\d+) of ([\d,]+)", sentences(p, 0.5, 9)).groups()
        assert int(some) / int(many.replace(",", "")) >= p * (1 - 1e-9), p


# --- the log of answers ---

def block(number, rows=3, classes=4):
    rng = np.random.default_rng(number)
    return (rng.integers(0, 256, (rows, 32), dtype=np.uint8), Answers(rng.normal(size=(rows, classes)).astype("f4")))


def filled(folder, count=3):
    log = AnswerLog(folder, {"model": "m", "keys": 3})
    for number in range(count):
        log.add(number, *block(number))
    return log


def same_block(one, other):
    return all((left is None and right is None) or (left.tobytes() == right.tobytes() and left.shape == right.shape)
               for left, right in zip((one[0], one[1].values, one[1].classes), (other[0], other[1].values,
                                                                               other[1].classes), strict=True))


def test_the_log_keeps_every_form_of_answer(tmp_path):
    kinds = {5: block(5), 1: (block(1)[0], Answers(None, np.array([[1], [2], [3]], np.int32))),
             3: (block(3)[0], Answers(block(3)[1].values, np.arange(12, dtype=np.int32).reshape(3, 4) - 1))}
    log = AnswerLog(tmp_path / "log", {"model": "m"})
    for number, (digests, answers) in kinds.items():
        log.add(number, digests, answers)
    again = AnswerLog(tmp_path / "log", {"model": "m"})
    assert set(again.blocks) == {1, 3, 5} and all(same_block(again.blocks[n], kinds[n]) for n in kinds)
    one_line(again.collect, "shapes")


def test_answers_come_back_in_the_order_of_their_batches(tmp_path):
    log = AnswerLog(tmp_path / "log", {"model": "m"})
    for number in (2, 0, 1):
        log.add(number, *block(number, rows=1 if number == 2 else 3))
    digests, answers = AnswerLog(tmp_path / "log", {"model": "m"}).collect()
    expected = [block(0), block(1), block(2, rows=1)]
    assert (digests == np.concatenate([part[0] for part in expected])).all()
    assert (answers.values == np.concatenate([part[1].values for part in expected])).all() and len(answers) == 7


def test_a_torn_last_block_is_dropped_and_the_earlier_kept(tmp_path):
    filled(tmp_path / "log")
    path = tmp_path / "log" / "answers.bin"
    whole = path.read_bytes()
    size = len(whole) // 3
    for cut in [*range(2 * size, 3 * size, 7), 3 * size - 1]:
        path.write_bytes(whole[:cut])
        log = AnswerLog(tmp_path / "log", {"model": "m", "keys": 3})
        assert set(log.blocks) == {0, 1} and path.read_bytes() == whole[:2 * size], cut
    log.add(2, *block(2))
    assert path.read_bytes() == whole


@pytest.mark.parametrize("place", [0, 8, 12, 20, 30, 60, -1])
def test_a_damaged_block_is_never_believed(tmp_path, place):
    filled(tmp_path / "log")
    path = tmp_path / "log" / "answers.bin"
    content = bytearray(path.read_bytes())
    start = 2 * len(content) // 3
    content[start + place if place >= 0 else -1] ^= 0x40
    path.write_bytes(content)
    log = AnswerLog(tmp_path / "log", {"model": "m", "keys": 3})
    for number, found in log.blocks.items():
        assert number < 3 and same_block(found, block(number))
    assert {0, 1} <= set(log.blocks)


@pytest.mark.parametrize("place", [4, 5, 6])
def test_a_block_with_a_damaged_number_is_never_believed(tmp_path, place):
    """Block 2's answers would pass for those of another batch."""
    test_a_damaged_block_is_never_believed(tmp_path, place)


def test_other_settings_are_refused_by_name(tmp_path):
    filled(tmp_path / "log")
    before = {path.name: path.read_bytes() for path in (tmp_path / "log").iterdir()}
    message = one_line(lambda: AnswerLog(tmp_path / "log", {"model": "m", "keys": 4}), "keys is 3")
    assert "model" not in message.split(":", 1)[1].split(".")[0]
    one_line(lambda: AnswerLog(tmp_path / "log", {"model": "other", "keys": 3}), "model")
    assert {path.name: path.read_bytes() for path in (tmp_path / "log").iterdir()} == before
    (tmp_path / "log" / "audit.json").unlink()
    one_line(lambda: AnswerLog(tmp_path / "log", {"model": "m", "keys": 3}), "audit.json")


@pytest.mark.parametrize("name", ["fsync", "write"])
def test_no_half_block_after_an_exception(tmp_path, monkeypatch, name):
    """The disk is full in the middle of a block, and the audit goes on later in the same process."""
    log = filled(tmp_path / "log")
    path = tmp_path / "log" / "answers.bin"
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        if name == "fsync":
            patch.setattr(evidence.os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt()))
        else:
            real = open

            def opened(*arguments, **options):
                file = real(*arguments, **options)
                if "a" in arguments[1:2][0]:
                    write = file.write
                    fake = type("Full", (), {"__getattr__": lambda _, name: getattr(file, name),
                                             "__enter__": lambda self: self, "__exit__": lambda *_: file.close(),
                                             "write": lambda _, data: (write(data[:20]), file.flush(), fail())})
                    return fake()
                return file

            def fail():
                raise OSError(28, "No space left on device")
            patch.setattr(evidence, "open", opened, raising=False)
        with pytest.raises((KeyboardInterrupt, OSError)):
            log.add(3, *block(3))
    assert path.read_bytes() == before and 3 not in log.blocks
    log.add(3, *block(3))
    assert set(AnswerLog(tmp_path / "log", {"model": "m", "keys": 3}).blocks) == {0, 1, 2, 3}


# --- the bundle ---

def bundle_parts(kind="logits", label=AUTO):
    """(document, order, digests, answers) of an audit in which nearly everything speaks for the user."""
    record = make_record((10, 0.5))
    audit = {"keys": 4, "selections": 99, "alpha": 0.01, "audit_seed": "", "label": label, "label_only": False,
             "top_k": None}
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(10, 5, 4)).astype(np.float32)
    logits[np.flatnonzero(record.published), 0, 2] += 2.5
    order = user_audit.query_order(record, 50, "")
    answers = Answers(logits.reshape(-1, 4)[order])
    if kind == "labels":
        answers = Answers(None, answers.values.argmax(axis=1)[:, None].astype(np.int32))
    digests = rng.integers(0, 256, (50, 32), dtype=np.uint8)
    result, _, _ = user_audit.judge(record.batches, record.selection_key, audit, order, answers, 4)
    document = {"record": records.public_part(record, 1), "commitment": record.commitments[-1],
                "selection_key": record.selection_key, "audit": audit, "classes": 4, "model": {"name": "m"},
                "preprocessing": {}, "result": result, "versions": records.software_versions()}
    return document, order, digests, answers


def copied(document):
    return json.loads(json.dumps(document))


@pytest.mark.parametrize("kind", ["logits", "labels"])
def test_a_bundle_comes_back_as_it_went(tmp_path, kind):
    document, order, digests, answers = bundle_parts(kind)
    write_bundle(tmp_path / "e.zip", document, order, digests, answers)
    back, other_order, other_digests, other = read_bundle(tmp_path / "e.zip")
    assert {name: back[name] for name in document} == copied(document)
    assert (order == other_order).all() and (digests == other_digests).all()
    for one, two in ((answers.values, other.values), (answers.classes, other.classes)):
        assert (one is None and two is None) or (one.tobytes() == two.tobytes() and one.dtype == two.dtype)
    assert check_document(back, len(answers), "x") == (copied(document["record"]), document["audit"])


def test_a_bundle_has_the_same_bytes_at_any_time(tmp_path, monkeypatch):
    parts = bundle_parts()
    write_bundle(tmp_path / "a.zip", *parts)
    now, local = time.time(), time.localtime
    monkeypatch.setattr(time, "time", lambda: now + 1e6)
    monkeypatch.setattr(time, "localtime", lambda *_: local(now + 1e6))
    write_bundle(tmp_path / "b.zip", *parts)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_the_bundle_holds_no_key_of_the_marks(tmp_path):
    parts = bundle_parts()
    write_bundle(tmp_path / "e.zip", *parts)
    with zipfile.ZipFile(tmp_path / "e.zip") as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    record = make_record((10, 0.5))
    assert record.key.encode() not in content and bytes.fromhex(record.key) not in content
    assert b"0.png" not in content


@pytest.fixture
def replay(script, tmp_path):
    def run(document, order, digests, answers, *flags):
        write_bundle(tmp_path / "e.zip", document, order, digests, answers)
        return script("eval", "--replay", tmp_path / "e.zip", *flags)
    return run


def refused(done, *words):
    assert done.code == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1, (done.out, done.err)
    assert all(word in done.err for word in words), done.err


@pytest.mark.parametrize("kind,label", [("logits", AUTO), ("logits", 2), ("labels", AUTO)])
def test_replay_finds_the_same_p(replay, tmp_path, kind, label):
    parts = bundle_parts(kind, label)
    done = replay(*parts, "--out", tmp_path / "again")
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "again" / "result.json").read_text())
    assert result["p_value"] == parts[0]["result"]["p_value"] < 0.2
    assert parts[0]["result"]["sentences"] in " ".join(done.out.split())
    assert result["statistic"] == parts[0]["result"]["statistic"]


def tampered(change):
    document, order, digests, answers = bundle_parts()
    document = copied(document)
    values = answers.values.copy()
    order = order.copy()
    order, values = (change(document, order, values) or (order, values))
    return document, order, digests, Answers(values)


def set_in(*path):
    def change(document, order, values):
        part = document
        for name in path[:-2]:
            part = part[name]
        part[path[-2]] = path[-1]
    return change


def shuffle_own(document, order, values):
    values[order % 5 == 0] = -values[order % 5 == 0]


@pytest.mark.parametrize("change", [
    set_in("result", "p_value", 1e-5), set_in("selection_key", "ab" * 32), set_in("commitment", "0" * 64),
    set_in("record", "settings", "noise_norm", 4.0), set_in("record", "evidence", True),
    set_in("record", "software", "torch", "0"), set_in("record", "batches", 0, "published", 4),
    set_in("record", "batches", 0, "photos", 11), set_in("record", "secret_sha256", "0" * 64),
    set_in("record", "selection_key_sha256", "0" * 64), set_in("audit", "label", 1),
    set_in("audit", "audit_seed", "other side"), set_in("audit", "selections", 98), shuffle_own,
    lambda document, order, values: (np.roll(order, 7), values)],
    ids=lambda change: getattr(change, "__name__", "") + str(getattr(change, "__closure__", "") and
                                                            change.__closure__[0].cell_contents))
def test_tampering_is_noticed(replay, change):
    """What changes the public part does not fit the commitment, what changes T changes p."""
    refused(replay(*tampered(change)))


@pytest.mark.parametrize("change", [
    set_in("result", "statistic", 0.0), set_in("result", "detected", True), set_in("result", "sentences", "Proven."),
    set_in("audit", "alpha", 0.5), set_in("result", "label", 0),
    lambda document, order, values: values.__setitem__((slice(None), 0), values[:, 0] - 1e-3)],
    ids=["statistic", "detected", "sentences", "alpha", "label", "answers"])
def test_tampering_that_leaves_p_is_noticed(replay, change):
    refused(replay(*tampered(change)))


def recommitted(document):
    document["commitment"] = records.canonical_digest(document["record"])


def forged_batches(*batches):
    def change(document, order, values):
        document["record"]["batches"] = [{"created": "", "photos": p, "published": s} for p, s in batches]
        recommitted(document)
    return change


def with_values(value):
    def change(document, order, values):
        values[3, 1] = value
    return change


HOSTILE = {
    "no audit": (set_in("audit", None)), "a list": (set_in("record", [])),
    "negative keys": (set_in("audit", "keys", -1)), "no class": (set_in("audit", "label", "cat")),
    "true as class": (set_in("audit", "label", True)), "odd key": (set_in("selection_key", "abc")),
    "key no text": (set_in("selection_key", 5)), "huge": (set_in("audit", "selections", 10**12)),
    "no result": (lambda document, *_: document.pop("result") and None),
    "result no dict": (set_in("result", [])),
    "alpha no number": (set_in("audit", "alpha", "x")), "alpha null": (set_in("audit", "alpha", None)),
    "top_k no number": (set_in("audit", "top_k", "x")), "top_k 0": (set_in("audit", "top_k", 0)),
    "audit seed": (set_in("audit", "audit_seed", 0.5)),
    "more photos": (forged_batches((11, 5))),
    "photos that fit by chance": (forged_batches((5, 2))),
    "NaN": (with_values(np.nan)), "infinite": (with_values(np.inf)),
    "keys": set_in("audit", "keys", 9),
}


@pytest.mark.parametrize("change", [
    pytest.param(change, id=name) for name, change in HOSTILE.items()])
def test_hostile_documents_end_in_one_line(replay, change):
    refused(replay(*tampered(change)))


def test_a_bundle_without_its_model(replay, tmp_path):
    refused(replay(*tampered(lambda document, *_: document.pop("model") and None), "--out", tmp_path / "again"))


def npy(header, data=b""):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def zipped(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def arrays_with(**changes):
    """answers.npz of a good bundle, with other members."""
    _, order, digests, answers = bundle_parts()
    members = {}
    for name, array in {"order": order, "digests": digests, "values": answers.values, **changes}.items():
        if isinstance(array, bytes):
            members[f"{name}.npy"] = array
        elif array is not None:
            file = io.BytesIO()
            np.save(file, array, allow_pickle=True)
            members[f"{name}.npy"] = file.getvalue()
    return zipped(members)


def document_bytes():
    return json.dumps({"format": evidence.BUNDLE_FORMAT, **bundle_parts()[0]}).encode()


def hostile_bundles():
    good = document_bytes()
    fifty = np.arange(50)
    claim = npy("{'descr': '<f8', 'fortran_order': False, 'shape': (50, 100000000000), }", b"\0" * 64)
    yield "empty", b""
    yield "text", b"evidence"
    yield "no members", zipped({})
    yield "no answers", zipped({"bundle.json": good})
    yield "no document", zipped({"answers.npz": arrays_with()})
    yield "list", zipped({"bundle.json": b"[]", "answers.npz": arrays_with()})
    yield "deep", zipped({"bundle.json": b"[" * 200_000, "answers.npz": arrays_with()})
    yield "no format", zipped({"bundle.json": b"{}", "answers.npz": arrays_with()})
    yield "names with paths", zipped({"../bundle.json": good, "/answers.npz": arrays_with()})
    yield "truncated", zipped({"bundle.json": good, "answers.npz": arrays_with()})[:-300]
    label = np.zeros((50, 1), np.int32)
    cases = [  # name, member, array
        ("pickle", "values", np.array([[{}]] * 50, dtype=object)), ("floats", "order", fifty + 0.5),
        ("twice", "order", np.zeros(50, int)), ("short", "order", fifty[:49]),
        ("no digests", "digests", None), ("no values", "values", None), ("no npy", "values", b"abc"),
        ("flat", "values", np.zeros(50, "f4")), ("digests", "digests", np.zeros((50, 31), np.uint8)),
        ("claims 40 TB", "values", claim),
        ("words", "values", np.array([["a", "b"]] * 50)),
        ("no columns", "values", np.zeros((50, 0), "f4")), ("class -2", "classes", label - 2),
        ("class 2**31", "classes", label + (2**31 - 1)),
        ("two labels", "classes", np.zeros((50, 2), np.int32)), ("half classes", "classes", label + 0.5)]
    for name, member, array in cases:
        arrays = arrays_with(**{"values": None, member: array} if member == "classes" else {member: array})
        yield name, zipped({"bundle.json": good, "answers.npz": arrays})


@pytest.mark.parametrize("content", [
    pytest.param(content, id=name) for name, content in hostile_bundles()])
def test_hostile_bundles_end_in_one_line(script, tmp_path, content):
    (tmp_path / "e.zip").write_bytes(content)
    refused(script("eval", "--replay", tmp_path / "e.zip"), "e.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["e.zip"]


def test_a_bundle_that_would_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "MAX_BUNDLE_BYTES", 1 << 20)
    good = document_bytes()
    (tmp_path / "outer.zip").write_bytes(zipped({"bundle.json": good, "answers.npz": bytes(1 << 21)}))
    one_line(lambda: read_bundle(tmp_path / "outer.zip"), "unpacks")
    inner = arrays_with(values=np.zeros((50, 10_000), np.float32))
    (tmp_path / "inner.zip").write_bytes(zipped({"bundle.json": good, "answers.npz": inner}))
    one_line(lambda: read_bundle(tmp_path / "inner.zip"), "claim")
    one_line(lambda: read_bundle(tmp_path / "missing.zip"), "does not exist")
    one_line(lambda: read_bundle(tmp_path), str(tmp_path))


def test_score_is_monotone():
    """Whatever the statistic, a surer answer must never count as less sure."""
    losses = np.linspace(0, 90, 1000)
    assert (np.diff(verdict.score(-losses)) > 0).all() and verdict.score(np.array([1e-12]))[0] == 0
