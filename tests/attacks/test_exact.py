"""The exact test: known answers, plain loops, and innocent models in thousands of simulated audits."""

import itertools
import math
import re
from contextlib import suppress
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from attacks import exact
from attacks.exact import AUTO, key_p_value, p_value, plan_grid, refusal_p_value, sentences
from kit.errors import UserError
from provenance import draw
from provenance.grid import scores_of
from suspects.suspect import Answers
from tests.attacks.parts import random_answers
from tests.parts import user_error


def drawn(seed, count, *batches):
    """bool (count + 1, n): selections of batches (photos, published) as records draw them."""
    return np.concatenate(
        [
            np.stack([draw.selection(b"%d" % seed, b"%d" % place, n, *sizes) for n in range(count + 1)])
            for place, sizes in enumerate(batches)
        ],
        axis=1,
    )


def dense(answers, classes=None):
    return answers.log_probabilities(classes)


def statistic_grid(answers, selections, label, classes=None, label_only=False):
    """The grid of Answers by query number."""
    answers = answers.limited(label_only) if label_only and answers.classes is None else answers
    if label_only and answers.values is not None:  # top-k answers of which the first is looked at
        answers = Answers(None, answers.log_probabilities(classes)[1][:, None].astype(np.int32))
    scores, top, _ = scores_of(answers, selections.shape[1], classes, label)
    return exact.statistic_grid(scores, selections, label, top)


# --- p ---


@pytest.mark.parametrize(
    "grid,p",
    [
        ([[1, 2], [3, 4]], 1 / 4),
        ([[4, 2], [3, 1]], 1),
        ([[2, 1], [3, 4]], 2 / 4),
        ([[1, 1], [2, 3]], 2 / 4),
        ([[0, 0], [0, 0]], 1),
        ([[3, 1], [5, 2]], 3 / 4),
        ([[7]], 1),
        ([[1, 2, 3]], 1 / 3),
        ([[2], [1], [2], [9]], 3 / 4),
    ],
)
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


@pytest.mark.parametrize("label", [0, 3, AUTO])
@pytest.mark.parametrize(
    "kind,label_only",
    [
        ("logits", False),
        ("logits", True),
        ("probabilities", False),
        ("labels", False),
        ("top_k", False),
        ("top_k", True),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_the_grid_is_that_of_plain_loops(kind, label_only, label, seed):
    """Wrong implementations: photos and keys swapped, auto from all photos or from the first pair, ties to the highest
    class, a mean over all photos, losses against the predicted instead of the guessed class."""
    rng, photos, keys, classes = np.random.default_rng(seed), 6, 4, 5
    answers = random_answers(kind, photos * keys, classes, rng)
    selections = drawn(seed, 7, (4, 2), (2, 1))
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
    selections = drawn(3, 3, (4, 2))
    logs, _, _ = dense(answers)
    grid, _ = exact.statistic_grid(-logs.reshape(4, 3, 4), selections, 1)
    np.testing.assert_allclose(grid[0, 2], -logs.reshape(4, 3, 4)[selections[0], 2, 1].mean())


def test_a_label_that_does_not_exist():
    selections = np.array([[True, False]])
    user_error(lambda: statistic_grid(Answers(np.zeros((2, 4), np.float32)), selections, 4), "0 to 3")
    # Labels alone do not say how many classes there are: nobody answers 9, and all losses are equal.
    grid, _ = statistic_grid(Answers(None, np.array([[1], [2]], np.int32)), selections, 9)
    assert grid.ravel().tolist() == [1.0]


# --- exactness ---


SIMULATIONS, PHOTOS, KEYS, SELECTIONS = 2000, 8, 4, 19


@pytest.fixture(scope="module")
def drawn_selections():
    return [drawn(number, SELECTIONS, (PHOTOS, PHOTOS // 2)) for number in range(SIMULATIONS)]


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
    ps = np.array(
        [p_value(statistic_grid(innocent(rng, kind), selections, label, 4)[0]) for selections in drawn_selections]
    )
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
    selections = drawn(1, 99, (20, 10))
    logits = np.random.default_rng(0).normal(size=(20, 10, 5)).astype(np.float32)
    logits[selections[0], 0, 2] += 8
    for label, only in ((2, False), (AUTO, False), (2, True), (AUTO, True)):
        grid, labels = statistic_grid(Answers(logits.reshape(-1, 5)), selections, label, 5, only)
        assert p_value(grid) == 1 / 1000 and labels[0, 0] == 2
    grid, _ = statistic_grid(Answers(-logits.reshape(-1, 5)), selections, 2, 5)
    assert p_value(grid) > 0.9, "a model that is less sure of the photos is no evidence"


# --- the plan ---


def test_the_grid_of_the_paper():
    plan = plan_grid(50, [(25, 50)], 1e-3)
    assert (plan.keys, plan.selections, plan.queries) == (19, 9_999, 1000)
    assert plan.smallest_p == pytest.approx(1 / 200_000)
    assert plan_grid(50, [(25, 50)], 1e-3, views=6).queries == 6000


@pytest.mark.parametrize("whole", [*range(2, 60), 100, 1000, 4999, 5000, 20_000])
def test_no_holdout_needs_exactly_one_over_alpha_keys(whole):
    """alpha 0.001 with 999 keys gives p = 0.001 <= alpha; 998 can't."""
    plan = plan_grid(3, [(3, 3)], 1 / whole)
    assert (plan.keys, plan.selections) == (whole - 1, 0) and plan.smallest_p <= 1 / whole * (1 + 1e-9)
    assert plan_grid(3, [(3, 3)], 1 / whole, keys=whole - 1).keys == whole - 1
    if whole > 2:
        user_error(lambda: plan_grid(3, [(3, 3)], 1 / whole, keys=whole - 2), whole - 1)


@settings(max_examples=100)
@given(st.floats(1e-6, 0.5))
def test_the_default_reaches_alpha_and_is_no_larger_than_needed(alpha):
    plan = plan_grid(2, [(2, 2)], alpha)
    assert 1 / (plan.keys + 1) <= alpha * (1 + 1e-8) and (plan.keys == 0 or 1 / plan.keys > alpha * (1 - 1e-8))


@pytest.mark.parametrize("budget,keys", [(1000, 19), (5000, 19), (999, 18), (250, 4), (100, 1), (50, 0)])
def test_budgets_with_a_holdout(budget, keys):
    plan = plan_grid(50, [(25, 50)], 1e-3, max_queries=budget)
    assert plan.keys == keys and plan.queries <= budget and plan.smallest_p <= 1e-3


def test_budgets_that_do_not_suffice():
    user_error(lambda: plan_grid(50, [(25, 50)], 1e-3, max_queries=49), 50, 49)
    user_error(lambda: plan_grid(50, [(25, 50)], 1e-5, max_queries=499), 500, 499)
    assert plan_grid(50, [(25, 50)], 1e-5, max_queries=500).keys == 9
    user_error(lambda: plan_grid(50, [(25, 50)], 1e-5, max_queries=999, views=2), 1000, 999)
    assert plan_grid(50, [(25, 50)], 1e-5, max_queries=1000, views=2).keys == 9
    user_error(lambda: plan_grid(10, [(10, 10)], 1e-3, max_queries=9_999), 10_000, 9_999)
    assert plan_grid(10, [(10, 10)], 1e-3, max_queries=10_000).keys == 999
    user_error(lambda: plan_grid(50, [(25, 50)], 1e-3, keys=20, max_queries=1000), 1050, 1000, "--keys 19")
    user_error(lambda: plan_grid(3, [(3, 3)], 1e-3, selections=5), "--selections 5")
    assert plan_grid(50, [(25, 50)], 0.05, selections=0).smallest_p == 1 / 20
    user_error(lambda: plan_grid(50, [(25, 50)], 1e-3, keys=5, selections=99), "--keys 9 ")
    assert plan_grid(50, [(25, 50)], 1e-3, keys=9, selections=99).smallest_p == pytest.approx(1e-3)


def test_too_few_selections():
    """With 2 of 4 photos there are 6 selections: most draws repeat S0, and p can't fall below 1 / (6 * (L + 1))."""
    message = user_error(lambda: plan_grid(4, [(2, 4)], 1e-3), "6 different")
    assert "--keys" in message
    assert plan_grid(4, [(2, 4)], 1e-3, keys=166).keys == 166
    user_error(lambda: plan_grid(4, [(2, 4)], 1e-3, keys=165))
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
    logs, top, only = dense(
        Answers(np.array([[0.5, 0.3], [0.2, 0.75]], np.float32), np.array([[2, 0], [1, 3]], np.int32)), 4
    )
    np.testing.assert_allclose(np.exp(logs), [[0.3, 0.2, 0.5, 0.2], [0.05, 0.2, 0.05, 0.75]], atol=1e-6)
    assert top.tolist() == [2, 3] and not only
    # 0.9 is left over, but no class that was not named can be above the smallest that was.
    logs, top, _ = dense(Answers(np.array([[0.1, 0.0]], np.float32), np.array([[1, -1]], np.int32)), 3)
    np.testing.assert_allclose(np.exp(logs), [[0.1, 0.1, 0.1]], atol=1e-6)
    assert top.tolist() == [1]
    full, _, _ = dense(Answers(np.array([[0.6, 0.4]], np.float32), np.array([[0, 1]], np.int32)), 3)
    assert np.isfinite(full).all()
    user_error(lambda: dense(Answers(np.array([[5.0, 1.0]], np.float32), np.array([[0, 1]], np.int32))), "--label_only")


# --- sentences ---


def test_sentences():
    text = sentences(1 / 20_000, 1e-3, 25)
    assert (
        "If it had never seen them, a result this strong would occur in at most 1 of 20,000 audits." in text
        and "at least some of the 25 published" in text
        and "no proof" not in text
    )
    assert "no proof" in sentences(0.2, 1e-3, 25) and "20 of 100" in sentences(0.2, 1e-3, 25)
    assert "no proof" in sentences(0.0011, 1e-3, 25) and "no proof" not in sentences(0.001, 1e-3, 25)
    assert "100 of 100" in sentences(1.0, 1e-3, 3) and "were not used" in sentences(1.0, 1e-3, 3)
    for p in (1 / 20_000, 0.003, 0.3, 1.0):
        assert len(re.findall(r"\.(?: |$)", sentences(p, 0.01, 9))) == 2, "two sentences"
    # Strong, and not strong enough for what is left of alpha: both are said.
    assert "1 of 2,000" in sentences(0.0005, 1e-4, 9) and "1 of 10,000" in sentences(0.0005, 1e-4, 9)


def test_the_mark_has_a_sentence_of_its_own():
    """A small p alone says nothing about the marked copies."""
    assert "marked copies" not in sentences(1e-4, 1e-3, 9)
    assert "knows the user's own best" in sentences(1e-4, 1e-3, 9, 1 / 20, 19)
    assert "among the 7 that the model knows best" in sentences(1e-4, 1e-3, 9, 7 / 20, 19)


# --- sums, ties, missing answers, the second statement ---


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_p_does_not_hang_on_the_order_of_a_sum(seed):
    """Photos in another order give the same bits of T, and so the same ties and the same p."""
    rng = np.random.default_rng(seed)
    scores, selections = rng.gamma(0.3, size=(12, 3, 1)), drawn(seed, 30, (12, 6))
    scores[6:] = scores[:6]  # many pairs are equal
    order = rng.permutation(12)
    grid = exact.statistic_grid(scores, selections, 0)[0]
    again = exact.statistic_grid(scores[order], selections[:, order], 0)[0]
    assert np.array_equal(grid, again) and p_value(grid) == p_value(again)


def test_a_given_label_is_the_same_as_auto_where_auto_picks_it_everywhere():
    """One order of sums, one result: bit for bit."""
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(40 * 6, 7)).astype(np.float32)
    logits[:, 4] += 9
    selections = drawn(2, 99, (40, 20))
    given_label, guessed = (statistic_grid(Answers(logits), selections, label, 7) for label in (4, AUTO))
    assert (guessed[1] == 4).all() and np.array_equal(given_label[0], guessed[0])


def test_a_missing_answer_is_as_bad_as_the_worst_for_every_pair_alike():
    scores = np.array([[0.1, 0.2], [0.3, np.nan], [0.5, 0.9]])[:, :, None]
    selections = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]], dtype=bool)
    grid, _ = exact.statistic_grid(scores, selections, 0)
    np.testing.assert_allclose(grid, [[0.2, 0.55], [0.4, 0.9], [0.3, 0.55]], atol=1e-9)


def test_nobody_gains_by_answers_that_are_missing(drawn_selections):
    """Whatever the owner refuses by the image alone, p keeps its level; refused marks have a p of their own."""
    rng, ps, refusals = np.random.default_rng(3), [], []
    for selections in drawn_selections[:800]:
        scores = rng.gamma(1, size=(PHOTOS, KEYS + 1, 1))
        refused = (rng.random((PHOTOS, KEYS + 1)) < 0.1) | (np.arange(PHOTOS)[:, None] == 2)
        scores[refused] = np.nan
        ps.append(p_value(exact.statistic_grid(scores, selections, 0)[0]))
        refusals.append(refusal_p_value(refused, selections))
    check_exact(np.array(ps))
    check_exact(np.array(refusals))
    assert refusal_p_value(np.zeros((4, 2), dtype=bool), drawn_selections[0][:, :4]) is None


def refusals_of(kind, rng):
    """bool (photos, keys): what an owner who never saw the photos refuses, by the image alone."""
    shape = (PHOTOS, KEYS + 1)
    if kind == "at random":
        return rng.random(shape) < 0.3
    if kind == "like marks":  # a detector of marks: whole patterns, and the photos in which they show
        return (rng.random(KEYS + 1) < 0.5)[None, :] & (np.arange(PHOTOS) % 3 > 0)[:, None]
    if kind == "hard photos":
        return np.broadcast_to((np.arange(PHOTOS) > 5)[:, None], shape)
    return rng.random(shape) < np.where(rng.random((1, KEYS + 1)) < 0.2, 0.95, 0.02)  # nearly all, of some patterns


@pytest.mark.parametrize("label", [0, AUTO])
@pytest.mark.parametrize("kind", ["at random", "like marks", "hard photos", "nearly all"])
def test_refusals_and_hard_photos_keep_the_level(drawn_selections, kind, label):
    """2,000 innocent grids each: P(p <= alpha) stays within the binomial bounds, and so does the refusals' own p."""
    rng, ps, refusals = np.random.default_rng(17), [], []
    for selections in drawn_selections:
        answers = innocent(rng, "logits")
        refused = refusals_of(kind, rng)
        answers.values[refused.ravel()] = np.nan
        if refused.all():
            continue
        scores, top, missing = scores_of(answers, PHOTOS, 4, label)
        assert np.array_equal(missing[..., 0], refused)
        ps.append(p_value(exact.statistic_grid(scores, selections, label, top)[0]))
        refusals.append(refusal_p_value(missing, selections) or 1.0)
    assert len(ps) > 1900
    check_exact(np.array(ps))
    check_exact(np.array(refusals))


def test_an_owner_who_refuses_what_was_published_is_seen(drawn_selections):
    """Refusing the published photos under the own pattern hides them from T, and from nothing else."""
    rng = np.random.default_rng(1)
    selections = drawn(4, 199, (20, 10))
    logits = rng.normal(size=(20, 10, 4)).astype(np.float32)
    refused = np.zeros((20, 10), dtype=bool)
    refused[selections[0], 0] = True
    logits[refused] = np.nan
    scores, top, missing = scores_of(Answers(logits.reshape(-1, 4)), 20, 4, AUTO)
    assert p_value(exact.statistic_grid(scores, selections, AUTO, top)[0]) > 0.9
    assert refusal_p_value(missing, selections) == 1 / 2000


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100))
def test_sums_are_exact(seed, scale):
    """T is what fractions give: no order of additions, and no number of threads, can change a bit of it."""
    rng = np.random.default_rng(seed)
    scores, selections = scale * rng.gamma(0.5, size=(15, 2, 1)), drawn(seed, 20, (15, 7))
    scores[rng.random((15, 2)) < 0.2] = np.nan
    grid = exact.statistic_grid(scores, selections, 0)[0]
    worst = min(np.nanmax(scores), exact.LARGEST)
    kept = np.round(np.minimum(np.where(np.isnan(scores), worst, scores), exact.LARGEST) / exact.STEP)
    for j, l in itertools.product(range(21), range(2)):  # noqa: E741
        total = sum(Fraction(int(step)) for step in kept[selections[j], l, 0]) * Fraction(exact.STEP)
        assert grid[j, l] == float(total) / 7


def test_pairs_that_differ_by_rounding_are_ties():
    """Scores that are apart by less than a bit of float32 can't put the own pair before the others."""
    selections = drawn(6, 50, (12, 6))
    scores = np.full((12, 1, 1), 0.7)
    scores[selections[0]] -= 1e-10
    assert p_value(exact.statistic_grid(scores, selections, 0)[0]) == 1
    scores[selections[0]] -= 1e-3
    same = (selections == selections[0]).all(axis=1).sum()
    assert p_value(exact.statistic_grid(scores, selections, 0)[0]) == same / 51


def test_the_own_keys_rank_is_another_p():
    grid = np.array([[1.0, 2.0, 0.5, 3.0], [9.0, 9.0, 9.0, 9.0]])
    assert key_p_value(grid) == 2 / 4 and p_value(grid) == 2 / 8 and key_p_value(grid[:, :1]) is None


def test_the_number_of_the_sentence_is_never_below_p():
    """'At most 1 of 6,667' for p = 3 / 20,000, and worse 'at most 1 of 100' for p = 0.0149, promise too much."""
    for p in [*(k / 20_000 for k in range(1, 2000)), 0.0149, 0.0249]:
        some, many = re.search(r"at most (\d+) of ([\d,]+)", sentences(p, 0.5, 9)).groups()
        assert int(some) / int(many.replace(",", "")) >= p * (1 - 1e-9), p
