"""The test by betting: photos are asked about one after the other, until the evidence is there.

Of n photos a secret random k were published. Under H0 (the model never depended on what was published) its answers say
nothing about which, so that photo t, after t photos of which s were published, was published with chance

    pi_t = (k - s) / (n - t)

whatever the answers were (of several batches, each drawn by itself, k, s, n and t are those of its batch). Somebody
who believes in memory bets: from the answer about photo t, and from the answers and
statuses before it, comes q_t, a forecast that t was published; then the status is looked up, and

    W_(t+1) = W_t * (q_t / pi_t if it was published, else (1 - q_t) / (1 - pi_t)),    W_0 = 1.

E[W_(t+1) | past] = W_t under H0, whatever q_t is: W is a martingale, and by Ville's inequality

    P(W ever reaches 1 / alpha) <= alpha,    p = min(1, 1 / the largest W so far),

at whatever time one stops and for whatever reason (Ville 1939; Shafer, "Testing by betting", JRSS A 2021; without
replacement: Waudby-Smith and Ramdas, JRSS B 2024). After all n photos the same p holds; it is larger than that of the
exact test on the same answers, which is the price of being allowed to stop. Half of alpha for each of the two, fixed
before, keeps the power of the one and stops as early as the other.

The photos may come in any order that does not hang on the secret: a random one, or the one that saves most answers,
those first that a reference model finds hardest (hardest_first): whether a model knows a photo is plain only where it
would not know it without having seen it. The reference, too, has to be fixed without a look at the secret.

The bettor is an average of many, and an average of martingales is one. Each expert believes in one curve,

    logit q = logit pi + bend(b * (1 - c - o - z)),    z = score / mean score - c * reference / mean reference,

a low score speaking for "published" (the less, the lower `cap` is: easy photos are known to every model), a high one
against it. The means are of the answers so far, this one included, started as if PRIOR_ANSWERS usual ones had come
before. Each expert's share in q is what its own wealth is of the whole. One expert never bets, so W never falls below
ITS_SHARE. The curves were chosen on users and models that no claim is made about.

Public: Wealth, run, Run, hardest_first.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

from kit.errors import UserError

OWN_SCORE, REFERENCE_SCORE, PRIOR_ANSWERS = 0.5, 0.75, 10  # what a photo usually scores, and how firmly it's believed
AGAINST = 5.0  # nats: no expert says more than this against "published" by one photo
ITS_SHARE = 0.02  # of the expert who never bets
WORST = 32.0  # scores are cut off there (a loss of 1,024)
STEP = 2.0**-32  # of forecasts
SLACK = 1e-9  # nats by which p is larger than 1 / W, so that rounding never makes it smaller
MOST = 690.0  # nats, about 10^300: of more, W and p in float64 show only this

# value: prior weight. c: share of the reference; o: how far below the mean known photos begin; b: slope; cap, in nats.
SHARES = {0.0: 0.15, 0.4: 0.45, 0.7: 0.4}
OFFSETS = {0.0: 0.1, 0.3: 0.45, 0.5: 0.45}
SLOPES = {0.7: 0.15, 1.4: 0.4, 2.8: 0.45}
CAPS = {0.7: 0.5, 3.0: 0.5}
SHARE, OFFSET, SLOPE, CAP = np.array(list(itertools.product(SHARES, OFFSETS, SLOPES, CAPS))).T
PRIOR = np.array(
    [
        math.prod(weights)
        for weights in itertools.product(SHARES.values(), OFFSETS.values(), SLOPES.values(), CAPS.values())
    ]
)


class Run(NamedTuple):
    """p after the last photo; how many photos it took to reach alpha, None if it was never reached; W after each."""

    p: float
    photos: int | None
    wealth: np.ndarray


class Wealth:
    """The bettor's wealth over `photos` photos, of which `published` were; for each: bet, then reveal. Of several
    batches that were drawn apart: a sequence of both. Photos that are never asked about count, too.

    >>> bettor = Wealth(50, 25)
    >>> forecast = bettor.bet(score=0.1, reference=1.4)  # the photo's status is not needed yet
    >>> bettor.reveal(True)
    >>> bettor.p_value <= 0.001  # as often as one likes
    False
    """

    def __init__(self, photos, published):
        self._left, self._left_published = (
            [int(count) for count in np.atleast_1d(some)] for some in (photos, published)
        )
        if not any(0 < some < all_ for some, all_ in zip(self._left_published, self._left, strict=True)):
            raise UserError(
                f"{published} of {photos} photos were published, so there is nothing to bet on",
                advice="the test needs photos that were published and photos that were held back",
            )
        self._batch = 0  # of the photo that is bet on
        self._scores, self._references = _Level(OWN_SCORE), _Level(REFERENCE_SCORE)
        self._log_shares = np.append(np.log((1 - ITS_SHARE) * PRIOR), math.log(ITS_SHARE))  # of experts, then the idle
        self._log_wealth = self._highest = 0.0
        self._forecasts = self._forecast = None

    @property
    def chance(self):
        """pi: that the next photo of the batch that was bet on last (or the first) was published, from the statuses
        alone."""
        left = self._left[self._batch]
        return self._left_published[self._batch] / left if left else math.nan

    @property
    def log_wealth(self):
        return self._log_wealth

    @property
    def wealth(self):
        return math.exp(min(self._log_wealth, MOST))

    @property
    def p_value(self):
        """At most alpha with a chance of at most alpha, at whatever time it is read. In (0, 1]."""
        return min(1.0, math.exp(SLACK - min(self._highest, MOST)))

    def bet(self, score, reference=None, batch=0):
        """q, the forecast that this photo was published: in (0, 1) where it may be either, else 0 or 1.

        score: 0 or more, low where the model remembers the photo, in the units of exact.score or the share of views
        with another label; NaN or None where there is no answer, and then q is pi. reference: the same of a reference
        model; NaN or None: q is from the score alone. batch: the photo's, by number.
        """
        if self._forecast is not None or not self._left[batch]:
            raise UserError("bet once for each photo, and reveal its status before the next")
        self._batch = batch
        score, reference = _finite(score), _finite(reference)
        chance = self._forecast = self.chance
        self._forecasts = None
        if score is None:
            return chance
        self._scores.add(score)
        if reference is not None:
            self._references.add(reference)
        # Scores that are all the same tell nothing; a first one does, if a reference says what to expect.
        if 0 < chance < 1 and (self._scores.differ or (self._scores.first and reference is not None)):
            odds = chance / (1 - chance) * np.exp(self._evidence(score, reference))
            self._forecasts = np.append(odds / (1 + odds), chance)
            shares = np.exp(self._log_shares - self._log_shares.max())
            mean = math.fsum(shares * self._forecasts) / math.fsum(shares)
            # Rounded, so that q, and with it p, doesn't hang on the last bits of a processor's exp.
            self._forecast = min(max(round(mean / STEP), 1), round(1 / STEP) - 1) * STEP
        return self._forecast

    def reveal(self, published):
        """The status of the photo that was bet on."""
        if self._forecast is None:
            raise UserError("bet before the status is revealed: a forecast made after it proves nothing")
        published, chance = bool(published), self.chance
        if not (chance > 0 if published else chance < 1):
            raise UserError("the statuses are not those of a selection of this size")
        if self._forecasts is not None:
            self._log_wealth += math.log(_factor(self._forecast, chance, published))
            self._log_shares += np.log(_factor(self._forecasts, chance, published))
            self._highest = max(self._highest, self._log_wealth)
        self._left[self._batch] -= 1
        self._left_published[self._batch] -= published
        self._forecasts = self._forecast = None

    def _evidence(self, score, reference):
        """bend(...) of every expert: the logarithm of how much likelier this answer is of a published photo."""
        share = SHARE if reference is not None else np.zeros(len(SHARE))
        relative = score / self._scores.mean - share * ((reference or 0.0) / self._references.mean)
        straight = SLOPE * (1 - share - OFFSET - relative)
        return np.where(straight > 0, CAP * np.tanh(straight / CAP), np.maximum(straight, -AGAINST))


class _Level:
    """The mean of some answers, begun as if PRIOR_ANSWERS usual ones had come before."""

    def __init__(self, usual):
        self._sum, self._count = usual * PRIOR_ANSWERS, PRIOR_ANSWERS
        self._lowest, self._highest = math.inf, -math.inf

    def add(self, value):
        self._sum, self._count = self._sum + value, self._count + 1
        self._lowest, self._highest = min(self._lowest, value), max(self._highest, value)

    @property
    def first(self):
        return self._count == PRIOR_ANSWERS + 1

    @property
    def differ(self):
        return self._lowest < self._highest

    @property
    def mean(self):
        return self._sum / self._count


def _finite(value):
    return None if value is None or math.isnan(value) else min(max(float(value), 0.0), WORST)


def _factor(forecast, chance, published):
    return forecast / chance if published else (1 - forecast) / (1 - chance)


def run(scores, statuses, references=None, alpha=1e-3):
    """All photos in the order of the rows: Run(p, photos, wealth), wealth float64 (n,).

    scores, references: (n,), see Wealth.bet; statuses: bool (n,). The order must not hang on the statuses: rows that
    stand published first have to be brought into a random order before, also for hardest_first, which leaves equal
    ones as they stand.
    """
    scores, statuses = np.asarray(scores, dtype=np.float64), np.asarray(statuses, dtype=bool)
    references = np.full(len(scores), np.nan) if references is None else np.asarray(references, dtype=np.float64)
    if not scores.shape == statuses.shape == references.shape == (len(scores),):
        raise UserError(
            f"scores, statuses and references are one for each photo, not {scores.shape}, {statuses.shape} and "
            f"{references.shape}"
        )
    bettor, wealth, needed = Wealth(len(scores), int(statuses.sum())), np.empty(len(scores)), None
    for place in range(len(scores)):
        bettor.bet(scores[place], references[place])
        bettor.reveal(statuses[place])
        wealth[place] = bettor.wealth
        if needed is None and bettor.p_value <= alpha:
            needed = place + 1
    return Run(bettor.p_value, needed, wealth)


def hardest_first(references):
    """The order that saves most answers, int (n,): from the photo that the reference model knows least to the one that
    it knows best, equal ones as they stand, those without a score last."""
    return np.argsort(-np.asarray(references, dtype=np.float64), kind="stable")
