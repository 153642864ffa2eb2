"""The exact randomization test on the user's own secret: arrays in, p out.

Before publishing, a key K0 and (with a hold-out) a selection S0 were drawn at random. The audit draws L further keys
and m further selections in the same way and asks the model once for every (photo, key). T(j, l) is the mean score of
the photos in Sj under Kl, a score being low where the model remembers the photo. If the model never depended on what
was published, exchanging (S0, K0) with any other pair changes nothing in distribution: given the values of the grid,
its rows and its columns stand in random order, so that T(0, 0) is equally likely to be any of them, and

    p = #{(j, l): T(j, l) <= T(0, 0)} / ((m + 1) * (L + 1))

satisfies P(p <= alpha) <= alpha, for every model, training recipe, class and difficulty of the photos. The statistic
and the label may be anything that is computed for each pair in the same way.

p does not hang on the order of a sum: scores are rounded to multiples of 2^-32, so that their sums are exact in float64
whatever order a processor adds them in, and sums that are equal but for rounding are ties, which count against the
user.

Public: Plan, plan_grid, score, random_selections, statistic_grid, p_value, key_p_value, refusal_p_value, sentences,
one_in, AUTO, SELECTIONS, LARGEST.
"""

import math
from dataclasses import dataclass

import numpy as np

from kit.errors import UserError

AUTO = "auto"
STEP = 2.0**-32  # of scores
LARGEST = 2.0**5  # scores are cut off at +-32 (a loss of 1,024): 2^16 photos of such scores still sum exactly
SLACK = 1e-9  # relative; above what rounding to STEP does to a mean (2^-33), far below what a photo does
CHUNK = 4096  # selections at a time
SELECTIONS = 9_999  # that an audit draws unless told; they cost no queries


@dataclass(frozen=True)
class Plan:
    """How many keys (L) and selections (m) beside the user's own, and what they can show. views: queries about one
    marked photo (see suspects/views.py)."""

    photos: int
    keys: int
    selections: int
    views: int = 1

    @property
    def queries(self):
        return self.photos * (self.keys + 1) * self.views

    @property
    def smallest_p(self):
        return 1 / ((self.keys + 1) * (self.selections + 1))


def plan_grid(photos, batches, alpha, keys=None, selections=None, max_queries=None, views=1):
    """The grid for `photos` photos, of which `batches` (published, all) were drawn. Raises UserError when the grid
    can't reach `alpha`, or not within `max_queries`.

    Defaults: 19 keys and SELECTIONS selections with a hold-out, else as many keys as alpha needs.
    """
    possible = math.prod(math.comb(total, published) for published, total in batches)
    held_out = possible > 1
    if not held_out and selections:
        raise UserError(
            f"--selections {selections}: all photos were published, so there is no other selection to draw",
            advice="leave it out",
        )
    if selections is None:
        selections = SELECTIONS if held_out else 0
    # ceil, and not one less than alpha's inverse rounded: 1 / (L + 1) must not exceed alpha.
    needed = math.ceil(1 / (alpha * (selections + 1)) - 1e-9) - 1
    if keys is None:
        keys = max(needed, 19) if held_out else needed
        if max_queries is not None:
            keys = min(keys, max_queries // (photos * views) - 1)
            if keys < needed or keys < 0:
                raise UserError(
                    f"alpha {alpha:g} needs {photos * (needed + 1) * views} queries for {photos} photos, and "
                    f"--max_queries allows {max_queries}",
                    "allow more, or choose a larger --alpha",
                    "or more --selections" if held_out else None,
                    flag="--max_queries",
                )
    plan = Plan(photos, keys, selections, views)
    if max_queries is not None and plan.queries > max_queries:
        raise UserError(
            f"--keys {keys} needs {plan.queries} queries, more than --max_queries {max_queries}",
            advice=f"give --keys {max(0, max_queries // (photos * views) - 1)} or less",
            flag="--max_queries",
        )
    if plan.smallest_p > alpha * (1 + 1e-9):
        raise UserError(
            f"{keys} keys and {selections} selections can't give a p below {plan.smallest_p:.2g}, and alpha is "
            f"{alpha:g}",
            f"give --keys {needed} or more",
            "or more --selections" if held_out else None,
        )
    if held_out and 1 / possible > alpha * (1 + 1e-9) * (keys + 1):
        reachable = math.ceil(1e6 / possible / (keys + 1)) / 1e6
        raise UserError(
            f"only {possible} different selections can be drawn from these photos, too few for alpha {alpha:g}",
            advice=f"mark more photos, or give --alpha {reachable:g} or more --keys",
            flag="--alpha",
        )
    return plan


def score(log_probabilities):
    """What a photo adds to T: the square root of its cross-entropy. Any shape.

    Of the statistics compared in studies/photo_statistic.py (results/photo-statistic) it had the most power; the root
    keeps one hard photo from deciding, and still tells a loss of 0.01 from one of 0.1, as cutting large losses off does
    not.
    """
    return np.sqrt(np.maximum(-log_probabilities, 0))


def random_selections(draws, photos, published, count):
    """The selection of the first `published` of `photos` photos and `count` random ones: bool (count + 1, photos).

    draws: a numpy Generator. For simulated users, whose published samples were drawn already (records draw their own
    selections: see provenance/draw.py).
    """
    selections = np.zeros((count + 1, photos), dtype=bool)
    selections[0, :published] = True
    for row in selections[1:]:
        row[draws.permutation(photos)[:published]] = True
    return selections


def statistic_grid(scores, selections, label=AUTO, top=None):
    """T for every pair: (float64 (m + 1, L + 1), the label of each pair, int64 of the same shape).

    scores: (n, L + 1, C), low where the model remembers the photo, NaN where it gave no answer, which counts as the
    worst score of all, for every pair alike; selections: bool (m + 1, n), row 0 the published one; label: a class
    number, or AUTO for the class that the model names most often for the pair's photos (the lowest of several), which
    is worked out for each pair alike from top, int (n, L + 1) or, with several views of each, (n, L + 1, views), -1
    where it named none.
    """
    scores = _exact(scores)
    top = None if top is None else top.reshape(*top.shape[:2], -1)
    grid = np.empty((len(selections), scores.shape[1]))
    labels = np.empty(grid.shape, dtype=np.int64)
    weights, sizes = selections.astype(np.float64), selections.sum(axis=1)
    for key in range(scores.shape[1]):
        if label != AUTO:
            labels[:, key] = label
            grid[:, key] = weights @ scores[:, key, label]
            continue
        # No pair's label is a class that no photo is given; where none is given at all, all have the first.
        found = top[:, key][top[:, key] >= 0]
        classes = np.unique(found) if len(found) else np.zeros(1, dtype=np.int64)
        named = (top[:, key, :, None] == classes).sum(axis=1).astype(np.float64)
        for start in range(0, len(weights), CHUNK):
            part = slice(start, start + CHUNK)
            place = (weights[part] @ named).argmax(axis=1)
            sums = weights[part] @ scores[:, key, classes]
            labels[part, key], grid[part, key] = classes[place], sums[np.arange(len(sums)), place]
    # With photos left out a selection may be empty; it then shows nothing, and counts as the worst.
    return np.where(sizes[:, None] > 0, grid / np.maximum(sizes, 1)[:, None], LARGEST), labels


def _exact(scores):
    """Scores as multiples of STEP, at most LARGEST, the missing ones as bad as the worst that is there."""
    scores = np.asarray(scores, dtype=np.float64)
    there = ~np.isnan(scores)
    worst = min(scores[there].max(), LARGEST) if there.any() else 0.0
    cut = np.clip(np.where(there, scores, worst), -LARGEST, LARGEST)
    return np.round(cut / STEP) * STEP


def p_value(grid):
    """The exact p of a grid T (m + 1, L + 1) whose (0, 0) is the user's own pair."""
    grid = np.asarray(grid)
    if not np.isfinite(grid).all():
        raise UserError("the model's answers are not all finite numbers", advice="no verdict can be based on them")
    return int((grid <= grid[0, 0] + SLACK * (1 + abs(grid[0, 0]))).sum()) / grid.size


def key_p_value(grid):
    """The p of the second statement, that the *marked* copies were seen: the rank of the own key among all keys, for
    the published selection. None where no other key was asked about."""
    grid = np.asarray(grid)
    return p_value(grid[:1]) if grid.shape[1] > 1 else None


def refusal_p_value(missing, selections):
    """Whether a model refuses to answer about the published marked photos more often than about others: p, or None
    where it answered always. missing: bool (n, L + 1) or (n, L + 1, views)."""
    if not missing.any():
        return None
    refused = missing.reshape(*missing.shape[:2], -1).mean(axis=2, keepdims=True)
    return p_value(statistic_grid(-refused, selections, 0)[0])


def sentences(p, alpha, published, key_p=None, keys=0):
    """The verdict in sentences for people: what it shows, how sure that is, and apart from it what the marks show."""
    own = ""
    if key_p is not None:
        rank = round(key_p * (keys + 1))
        own = (
            f" Whether it saw the marked copies is another question: of the {keys + 1} patterns that could have been "
            f"drawn, the user's own is among the {rank} that the model knows best."
            if rank > 1
            else f" Of the {keys + 1} patterns that could have been drawn, the model knows the user's own best, as "
            "if it had seen the marked copies."
        )
    if p <= alpha:
        return (
            f"The model depends on at least some of the {published} published photos: it was trained on them, or on "
            f"copies of them. If it had never seen them, a result this strong would occur in at most {one_in(p)} "
            f"audits.{own}"
        )
    if p <= 0.01:
        return (
            f"There is no proof that the model was trained on the {published} published photos: a model that had never "
            f"seen them would give a result at least this strong in up to {one_in(p)} audits, and for this judgement "
            f"it would have to be {one_in(alpha)}."
        )
    return (
        f"There is no proof that the model was trained on the {published} published photos. "
        f"A model that had never seen these images would give a result at least this strong in up to {one_in(p)} "
        "audits; this does not show that they were not used."
    )


def one_in(p):
    """A p for people, "1 of 20,000" or "37 of 100", rounded so that "at most" and "up to" stay true."""
    return f"1 of {math.floor(1 / p + 1e-9):,}" if p <= 0.01 else f"{math.ceil(100 * p - 1e-9)} of 100"
