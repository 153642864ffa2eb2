"""The test by betting: W is a martingale by enumeration, p keeps its level, and no future answer is looked at."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from attacks import sequential
from attacks.sequential import ITS_SHARE, Wealth, hardest_first, run
from tests.parts import user_error

NAN = math.nan
SCORES = st.one_of(st.floats(0, 3), st.sampled_from([0.0, 0.5, 1.0, NAN, math.inf, 1e300, -1.0]))


def selections(photos, published):
    """Every selection there is: bool (C(n, k), n)."""
    chosen = list(itertools.combinations(range(photos), published))
    rows = np.zeros((len(chosen), photos), dtype=bool)
    for row, members in zip(rows, chosen, strict=True):
        row[list(members)] = True
    return rows


def path(scores, statuses, references=None, kind=Wealth):
    """log W after each photo, by a bettor of some kind; one who peeks is told the status before the bet."""
    bettor, logs = kind(len(scores), int(statuses.sum())), []
    for place, status in enumerate(statuses):
        if hasattr(bettor, "peek"):
            bettor.peek(status)
        bettor.bet(scores[place], None if references is None else references[place])
        bettor.reveal(status)
        logs.append(bettor.log_wealth)
    return np.array(logs)


def all_paths(scores, published, references=None, kind=Wealth):
    return np.array([path(scores, row, references, kind) for row in selections(len(scores), published)])


def answers(kind, photos, rng):
    """(scores, references or None) that an owner may give who never saw the photos, as ill-natured as can be."""
    scores, references = rng.gamma(0.7, size=photos), rng.gamma(0.7, size=photos)
    if kind == "no reference":
        return scores, None
    if kind == "missing":
        scores[rng.random(photos) < 0.3] = np.nan
        references[rng.random(photos) < 0.3] = np.nan
    if kind == "labels":
        return np.round(6 * rng.random(photos)) / 6, None
    if kind == "sorted":
        return np.sort(scores), np.sort(references)[::-1]
    if kind == "two":
        return 4.0 * (np.arange(photos) % 2), np.ones(photos)
    return scores, references


KINDS = ("no reference", "reference", "missing", "labels", "sorted", "two")


# --- a martingale ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("photos,published", [(2, 1), (5, 1), (5, 4), (7, 3), (8, 4)])
def test_the_expectation_is_one_after_every_photo(kind, photos, published):
    """Over all selections, so that nothing is left to chance: E[W_t] = 1 for every t, and where one stops early."""
    scores, references = answers(kind, photos, np.random.default_rng(photos * 10 + published))
    wealth = np.exp(all_paths(scores, published, references))
    np.testing.assert_allclose(wealth.mean(axis=0), 1, rtol=1e-12)
    for goal in (1.05, 1.3, 2.0):
        reached = wealth >= goal
        stop = np.where(reached.any(axis=1), reached.argmax(axis=1), photos - 1)
        assert wealth[np.arange(len(wealth)), stop].mean() == pytest.approx(1, rel=1e-12)
    assert photos == 2 or kind == "missing" or wealth.std() > 0.01, "and bets are placed"


@pytest.mark.parametrize("kind", KINDS)
def test_p_keeps_its_level_for_every_alpha(kind):
    """No larger share of all 70 (84) selections than alpha ever gets a p of alpha, whatever the answers are."""
    rng = np.random.default_rng(KINDS.index(kind))
    for photos, published in ((8, 4), (9, 3)):
        scores, references = answers(kind, photos, rng)
        ps = np.sort([run(scores, row, references).p for row in selections(photos, published)])
        assert (ps <= 1).all() and (np.arange(1, len(ps) + 1) / len(ps) <= ps * (1 + 1e-6)).all()


class Peeking(Wealth):
    """Bets on what it is told beforehand."""

    def peek(self, status):
        self.status = status

    def bet(self, score, reference=None):
        return super().bet(score if math.isnan(score) else (0.0 if self.status else 3.0), reference)


class Counting(Wealth):
    """Takes k / n for the chance of each photo, as if photos were put back."""

    def __init__(self, photos, published):
        super().__init__(photos, published)
        self.share = published / photos

    @property
    def chance(self):
        return self.share


class Afterwards(Wealth):
    """Places the bet only if it will be won."""

    def reveal(self, published):
        if self._forecasts is not None and (self._forecast > self.chance) != published:
            self._forecasts = None
        super().reveal(published)


class Largest(Wealth):
    """Follows, after each photo, the expert who did best on it, and not the average."""

    def reveal(self, published):
        if self._forecasts is not None:
            self._forecast = (max if published else min)(self._forecasts)
        super().reveal(published)


@pytest.mark.parametrize("kind", [Peeking, Counting, Afterwards, Largest])
def test_cheats_are_caught(kind):
    """That the enumeration sees what is wrong: these bettors' wealth grows without anybody's memory."""
    scores, references = answers("reference", 7, np.random.default_rng(3))
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(np.exp(all_paths(scores, 3, references, kind)).mean(axis=0), 1, rtol=1e-6)


@pytest.mark.parametrize("kind", ["reference", "missing", "labels"])
def test_innocent_models_are_accused_no_more_often_than_alpha(kind):
    """1,200 simulated users of 30 photos: the counts stay within what 1 in a million luck allows."""
    rng, ps = np.random.default_rng(11), []
    for _ in range(1200):
        scores, references = answers(kind, 30, rng)
        order = hardest_first(references) if references is not None else np.arange(30)
        statuses = rng.permutation(30) < 15
        ps.append(run(scores[order], statuses[order], None if references is None else references[order]).p)
    for alpha in (0.3, 0.1, 0.05, 0.01, 0.001):
        assert (np.array(ps) <= alpha).sum() <= binom.isf(1e-6, len(ps), alpha)
    assert min(ps) < 0.1, "and p is not 1 throughout"


# --- what a bet may know ---


@settings(max_examples=40)
@given(st.lists(st.tuples(SCORES, SCORES, st.booleans()), min_size=3, max_size=12), st.data())
def test_the_future_does_not_matter(rows, data):
    """Other answers after photo t, and other statuses from photo t on, leave the bet on it as it was."""
    scores, references, statuses = (list(column) for column in zip(*rows, strict=True))
    published, place = sum(statuses), data.draw(st.integers(0, len(rows) - 1))
    if not 0 < published < len(rows):
        return
    later = data.draw(st.permutations(range(place, len(rows))))
    moved = [*range(place), *later]
    bets = []
    for order in (range(len(rows)), moved):
        bettor = Wealth(len(rows), published)
        for other in range(place):
            bettor.bet(scores[other], references[other])
            bettor.reveal(statuses[order[other]])
        bets.append((bettor.log_wealth, bettor.p_value, bettor.bet(scores[place], references[place])))
    assert bets[0] == bets[1]
    assert np.array_equal(
        run(scores, statuses, references).wealth[:place],
        run(
            [*scores[:place], *(9.0 for _ in later)],
            np.array(statuses)[moved],
            [*references[:place], *(0.1 for _ in later)],
        ).wealth[:place],
    )


def test_a_forecast_comes_before_the_status():
    bettor = Wealth(4, 2)
    user_error(lambda: bettor.reveal(True), "before")
    bettor.bet(1.0)
    user_error(lambda: bettor.bet(0.1), "reveal")
    for status in (True, True):
        bettor.reveal(status)
        assert 0 <= bettor.bet(0.1) <= 1
    user_error(lambda: bettor.reveal(True), "selection")
    bettor.reveal(False)
    assert bettor.bet(5.0) == bettor.chance == 0, "the statuses leave nothing to bet on"
    bettor.reveal(False)
    user_error(lambda: bettor.bet(0.1), "once")


# --- robust ---


@settings(max_examples=60)
@given(st.lists(st.tuples(SCORES, SCORES, st.booleans()), min_size=2, max_size=25))
def test_whatever_comes(rows):
    """Forecasts are inside (0, 1), never everything is lost, no more is won than the selections allow, p only falls."""
    photos, published = len(rows), sum(status for *_, status in rows)
    if not 0 < published < photos:
        user_error(lambda: Wealth(photos, published), "published")
        return
    bettor, largest, last = Wealth(photos, published), 0.0, 1.0
    for score, reference, status in rows:
        chance = bettor.chance
        forecast = bettor.bet(score, reference)
        assert 0 < forecast < 1 if 0 < chance < 1 else forecast == chance
        assert not math.isnan(score) or forecast == chance
        assert abs(math.log(forecast / (1 - forecast)) - math.log(chance / (1 - chance))) < 5.1 if 0 < chance < 1 else 1
        bettor.reveal(status)
        largest = max(largest, bettor.log_wealth)
        assert math.isfinite(bettor.wealth) and bettor.wealth > 0.99 * ITS_SHARE
        assert bettor.wealth <= math.comb(photos, published) * (1 + 1e-6)
        assert bettor.p_value <= last and bettor.p_value == pytest.approx(math.exp(-largest))
        last = bettor.p_value


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 3), st.booleans()), min_size=3, max_size=20), st.data())
def test_missing_answers_are_no_bets(rows, data):
    """W stays where it is, and the mean of the answers, too; only the count of published photos goes on."""
    scores, statuses = (np.array(column) for column in zip(*rows, strict=True))
    if not 0 < statuses.sum() < len(statuses):
        return
    gone = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))))
    with_gaps = np.where(gone, NAN, scores)
    wealth = run(with_gaps, statuses).wealth
    assert (np.diff(np.concatenate([[1.0], wealth]))[gone] == 0).all()
    assert run(np.full(len(scores), NAN), statuses).p == 1
    assert np.array_equal(wealth, run(with_gaps, statuses, np.full(len(scores), NAN)).wealth), "no reference at all"
    bettor = Wealth(len(rows), int(statuses.sum()))
    for place, status in enumerate(statuses):
        assert bettor.chance == statuses[place:].sum() / (len(rows) - place)
        bettor.bet(None if gone[place] else scores[place])
        bettor.reveal(status)


def test_a_photo_without_an_answer_leaves_the_other_bets_of_the_same_chance_alone():
    """Two photos without answers, one published and one not, put between at n = 2 k: the next odds are the same."""
    bettors = [Wealth(6, 3), Wealth(8, 4)]
    for score, status in ((NAN, True), (NAN, False)):
        bettors[1].bet(score, 2.0)
        bettors[1].reveal(status)
    for score, status in ((0.2, True), (1.5, False), (0.3, True), (0.9, False)):
        assert bettors[0].bet(score, 1.0) == bettors[1].bet(score, 1.0)
        for bettor in bettors:
            bettor.reveal(status)
    assert bettors[0].log_wealth == bettors[1].log_wealth > 0


@pytest.mark.parametrize("constant", [0.0, 0.5, 1.0, 7.0])
def test_equal_scores_show_nothing(constant):
    statuses = np.arange(40) < 20
    assert run(np.full(40, constant), statuses).p == run(np.full(40, constant), ~statuses).p == 1
    assert run(np.full(40, constant), statuses, np.full(40, constant)).p > 0.3


def test_sizes():
    for photos, published in ((3, 0), (3, 3), (3, 4), (1, 1), (0, 0)):
        user_error(lambda sizes=(photos, published): Wealth(*sizes), photos)
    user_error(lambda: run([0.1, 0.2], [True, False, True]), "(2,)", "(3,)")
    rng = np.random.default_rng(0)
    for published in (1, 500, 999):
        statuses = rng.permutation(1000) < published
        result = run(np.where(statuses, 0.01, 1.5) + 0.01 * rng.random(1000), statuses)
        assert np.isfinite(result.wealth).all() and 0 < result.p < 0.5
        assert published != 500 or result.p < 1e-100


def test_wealth_beyond_float64_is_cut_off_and_p_is_not():
    statuses = np.random.default_rng(1).permutation(1400) < 700
    result = run(np.where(statuses, 0.0, 9.0), statuses)
    assert np.isfinite(result.wealth).all() and result.wealth[-1] > 1e299 and 0 < result.p < 1e-299


def test_last_bits_do_not_reach_p(monkeypatch):
    """A processor whose exp and tanh are a few bits off comes to the same p, bit for bit."""
    rng = np.random.default_rng(4)
    statuses = rng.permutation(60) < 30
    scores, references = rng.gamma(1, 0.5 - 0.2 * statuses), rng.gamma(1, 0.7, 60)
    first = run(scores, statuses, references)
    for name in ("exp", "tanh", "log"):
        exact = getattr(np, name)
        monkeypatch.setattr(np, name, lambda x, exact=exact: exact(x) * (1 + 4e-16))
    again = run(scores, statuses, references)
    assert again.p == first.p and np.array_equal(again.wealth, first.wealth)


# --- the bettor ---


def plain_wealth(scores, statuses, references):
    """The average of every expert's own wealth, by plain loops."""
    total, prior = ITS_SHARE, 0.0
    names = (sequential.SHARES, sequential.OFFSETS, sequential.SLOPES, sequential.CAPS)
    for expert in itertools.product(*(weights.items() for weights in names)):
        (share, offset, slope, cap), weights = zip(*expert, strict=True)
        own, prior = 1.0, prior + math.prod(weights)
        for place, status in enumerate(statuses):
            mean, usual = (
                (10 * start + sum(values[: place + 1])) / (11 + place)
                for start, values in ((0.5, scores), (0.75, references))
            )
            straight = slope * (1 - share - offset - scores[place] / mean + share * references[place] / usual)
            bent = cap * math.tanh(straight / cap) if straight > 0 else max(straight, -5.0)
            chance = sum(statuses[place:]) / (len(statuses) - place)
            if 0 < chance < 1:
                q = 1 / (1 + (1 - chance) / chance * math.exp(-bent))
                own *= q / chance if status else (1 - q) / (1 - chance)
        total += (1 - ITS_SHARE) * math.prod(weights) * own
    assert prior == pytest.approx(1)
    return total


def test_wealth_is_the_average_of_the_experts():
    scores, statuses, references = remembered(12, np.random.default_rng(8))
    assert run(scores, statuses, references).wealth[-1] == pytest.approx(
        plain_wealth(scores, statuses.tolist(), references), rel=1e-6
    )


# --- power ---


def remembered(photos, rng, gap=0.25):
    """Scores of which published photos have about a `gap`, as many references as hard as held-back photos."""
    statuses = rng.permutation(photos) < photos // 2
    references = rng.gamma(1.2, 0.7, photos)
    scores = np.where(statuses, gap, 1.0) * references * rng.uniform(0.6, 1.4, photos)
    return scores, statuses, references


def test_a_plain_memory_needs_few_photos():
    """Of 50 photos, published 0.05 and held back 1.5. A bet that is always right and never timid doubles W each time, a
    little more where the statuses so far are unequal, so that about 10 photos are the least."""
    needed = []
    for seed in range(20):
        statuses = np.random.default_rng(seed).permutation(50) < 25
        result = run(np.where(statuses, 0.05, 1.5), statuses)
        assert result.p < 1e-6 and result.wealth[result.photos - 1] >= 1000 > result.wealth[result.photos - 2]
        needed.append(result.photos)
    assert min(needed) >= 7 and np.median(needed) <= 16 and max(needed) <= 22


def test_weak_memories_are_found_with_many_photos():
    """Scores that are a tenth of their spread lower: nothing in 20 photos, plain in 1,000."""
    few, many = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        for photos, ps in ((20, few), (1000, many)):
            statuses = rng.permutation(photos) < photos // 2
            ps.append(run(np.maximum(rng.normal(1 - 0.15 * statuses, 0.4), 0), statuses).p)
    assert min(few) > 1e-3 and np.median(many) < 1e-3


def test_a_reference_helps_and_a_useless_one_costs_little():
    logs = np.zeros((40, 5))
    for seed in range(40):
        rng = np.random.default_rng(seed)
        scores, statuses, references = remembered(50, rng)
        order = hardest_first(references)
        logs[seed] = [
            np.log(run(scores, statuses).wealth[-1]),
            np.log(run(scores, statuses, references).wealth[-1]),
            np.log(run(scores, statuses, rng.permutation(references)).wealth[-1]),
            np.log(run(scores, statuses, references).wealth[24]),
            np.log(run(scores[order], statuses[order], references[order]).wealth[24]),
        ]
    alone, good, useless, any_half, hardest_half = logs.mean(axis=0)
    assert good > alone + 2 and useless > alone - 2
    assert hardest_half > any_half + 1, "half of the photos show more if it is the hardest"


def test_labels_suffice():
    """Shares of 18 views with another label."""
    found = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        statuses = rng.permutation(100) < 50
        found += run(rng.binomial(18, np.where(statuses, 0.02, 0.4)) / 18, statuses).photos is not None
    assert found >= 19


def test_the_reverse_is_no_evidence():
    """A model that knows what was held back better has not been trained on what was published."""
    for seed in range(10):
        scores, statuses, references = remembered(50, np.random.default_rng(seed))
        assert run(scores, ~statuses, references).p > 0.05


def test_the_hardest_come_first():
    assert hardest_first([0.1, NAN, 2.0, 0.5, 2.0]).tolist() == [2, 4, 3, 0, 1]
