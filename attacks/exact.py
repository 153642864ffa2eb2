"""The exact randomization test on the user's own secret.

Before publishing, the user drew a key K0 and (with a hold-out) a selection S0 at random. The audit draws L further keys
and m further selections in the same way and asks the model once for every (photo, key). T(j, l) is the mean score of
the photos in Sj under Kl, a score being low where the model is sure of the label. If the model never depended on what
was published, exchanging (S0, K0) with any other pair changes nothing in distribution: given the values of the grid,
its rows and its columns stand in random order, so that T(0, 0) is equally likely to be any of them, and

    p = #{(j, l): T(j, l) <= T(0, 0)} / ((m + 1) * (L + 1))

satisfies P(p <= alpha) <= alpha, for every model, training recipe, class and difficulty of the photos. The statistic
and the label may be anything that is computed for each pair in the same way.

Public: Plan, plan_grid, dense, score, statistic_grid, p_value, sentences, AUTO.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from kit.errors import UserError

AUTO = "auto"


@dataclass(frozen=True)
class Plan:
    """How many keys (L) and selections (m) beside the user's own, and what they can show."""

    photos: int
    keys: int
    selections: int

    @property
    def queries(self):
        return self.photos * (self.keys + 1)

    @property
    def smallest_p(self):
        return 1 / ((self.keys + 1) * (self.selections + 1))


def plan_grid(photos, batches, alpha, keys=None, selections=None, max_queries=None):
    """The grid for `photos` photos, of which `batches` (published, all) were drawn. Raises UserError when the grid
    can't reach `alpha`, or not within `max_queries`.

    Defaults: 19 keys and 999 selections with a hold-out, else as many keys as alpha needs.
    """
    possible = math.prod(math.comb(total, published) for published, total in batches)
    held_out = possible > 1
    if not held_out and selections:
        raise UserError(
            f"--selections {selections}: all photos were published, so there is no other selection to draw",
            advice="leave it out",
        )
    if selections is None:
        selections = 999 if held_out else 0
    # ceil, and not one less than alpha's inverse rounded: 1 / (L + 1) must not exceed alpha.
    needed = math.ceil(1 / (alpha * (selections + 1)) - 1e-9) - 1
    if keys is None:
        keys = max(needed, 19) if held_out else needed
        if max_queries is not None:
            keys = min(keys, max_queries // photos - 1)
            if keys < needed or keys < 0:
                raise UserError(
                    f"alpha {alpha:g} needs {photos * (needed + 1)} queries for {photos} photos, and --max_queries "
                    f"allows {max_queries}",
                    "allow more, or choose a larger --alpha",
                    "or more --selections" if held_out else None,
                    flag="--max_queries",
                )
    plan = Plan(photos, keys, selections)
    if max_queries is not None and plan.queries > max_queries:
        raise UserError(
            f"--keys {keys} needs {plan.queries} queries, more than --max_queries {max_queries}",
            advice=f"give --keys {max(0, max_queries // photos - 1)} or less",
            flag="--max_queries",
        )
    if plan.smallest_p > alpha * (1 + 1e-9):
        raise UserError(
            f"{keys} keys and {selections} selections can't give a p below {plan.smallest_p:.2g}, and alpha is {alpha:g}",
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


def dense(answers, classes=None):
    """Answers as (log probabilities float64 (N, C), top class int64 (N,), whether there are only labels).

    Rows that all lie in [0, 1] and sum to 1 are probabilities, anything else logits; that is decided for all answers
    together. Where a top-k answer names no probability for a class, the class gets what is left over, but no more than
    the smallest one named. Label-only answers become 0 for the class named and -1 elsewhere: a loss is an error.
    """
    if answers.values is None:
        count = max(classes or 0, int(answers.classes.max()) + 1)
        top = answers.classes[:, 0].astype(np.int64)
        logs = np.full((len(top), count), -1.0)
        logs[np.arange(len(top)), top] = 0.0
        return logs, top, True
    values = answers.values.astype(np.float64)
    if answers.classes is not None:
        return (*_spread(values, answers.classes, classes), False)
    likely = bool((values >= 0).all() and (np.abs(values.sum(axis=1) - 1) < 1e-3).all())
    # A probability may have been rounded to 0; its logarithm is then that of the smallest float32.
    logs = (
        np.log(np.maximum(values, np.finfo(np.float32).tiny))
        if likely
        else values - logsumexp(values, axis=1, keepdims=True)
    )
    return logs, values.argmax(axis=1), False


def _spread(values, named, classes):
    count = max(classes or 0, int(named.max()) + 1)
    present = named >= 0
    if (np.where(present, values, 0.0) < 0).any() or (np.where(present, values, 0.0) > 1 + 1e-3).any():
        raise UserError(
            "top-k answers must be probabilities from 0 to 1, these are not",
            advice="use --label_only",
            flag="--label_only",
        )
    tiny = np.finfo(np.float32).tiny
    total = np.where(present, values, 0.0).sum(axis=1)
    smallest = np.where(present, values, np.inf).min(axis=1)
    rest = np.clip(np.minimum(1 - total, smallest), tiny, None)
    logs = np.repeat(np.log(rest)[:, None], count, axis=1)
    rows, columns = np.nonzero(present)
    logs[rows, named[rows, columns]] = np.log(np.maximum(values[rows, columns], tiny))
    top = named[np.arange(len(named)), np.where(present, values, -1.0).argmax(axis=1)]
    return logs, top.astype(np.int64)


def score(log_probabilities):
    """What a photo adds to T: the square root of its cross-entropy. Any shape.

    Of the statistics compared in studies/statistic.py (results/statistic) it had the most power; the root keeps one
    hard photo from deciding, and still tells a loss of 0.01 from one of 0.1, as cutting large losses off does not.
    """
    return np.sqrt(np.maximum(-log_probabilities, 0))


def statistic_grid(answers, selections, label, classes=None, label_only=False, photo_score=score):
    """T for every pair: (float64 (m + 1, L + 1), the label of each pair, int64 of the same shape).

    answers: `Answers` of n * (L + 1) queries, photo by photo, its keys in order; selections: bool (m + 1, n), row 0 the
    published one; label: a class number, or AUTO for the class that the model names most often for the pair's photos
    (the lowest of several), which is worked out for each pair alike. label_only: look at the top class alone.
    """
    photos = selections.shape[1]
    logs, top, only = dense(answers, classes)
    if label != AUTO and not 0 <= label < logs.shape[1]:
        if not only and answers.classes is None:
            raise UserError(f"--label {label}: the model has classes 0 to {logs.shape[1] - 1}", flag="--label")
        logs = np.pad(logs, ((0, 0), (0, label + 1 - logs.shape[1])), constant_values=logs.min())
    if label_only or only:
        loss = (top[:, None] != np.arange(logs.shape[1])).astype(np.float64)
    else:
        loss = photo_score(logs)
    loss, top = loss.reshape(photos, -1, logs.shape[1]), top.reshape(photos, -1)
    weights = selections / selections.sum(axis=1, keepdims=True)
    grid = np.empty((len(selections), loss.shape[1]))
    labels = np.empty(grid.shape, dtype=np.int64)
    for key in range(loss.shape[1]):
        if label == AUTO:
            votes = selections.astype(np.float64) @ (top[:, key, None] == np.arange(loss.shape[2]))
            labels[:, key] = votes.argmax(axis=1)
            means = weights @ loss[:, key]
            grid[:, key] = means[np.arange(len(means)), labels[:, key]]
        else:
            labels[:, key] = label
            grid[:, key] = weights @ loss[:, key, label]
    return grid, labels


def p_value(grid):
    """The exact p of a grid T (m + 1, L + 1) whose (0, 0) is the user's own pair."""
    if not np.isfinite(grid).all():
        raise UserError("the model's answers are not all finite numbers", advice="no verdict can be based on them")
    # Equal sums may differ in their last bits; they count as ties, against the user.
    slack = 1e-9 * (1 + abs(grid[0, 0]))
    return int((grid <= grid[0, 0] + slack).sum()) / grid.size


def sentences(p, alpha, published):
    """The verdict in two sentences for people."""
    # Rounded so that "at most" and "up to" stay true.
    one_in = f"1 of {math.floor(1 / p + 1e-9):,}" if p <= 0.01 else f"{math.ceil(100 * p - 1e-9)} of 100"
    if p <= alpha:
        return (
            f"The model was trained on the {published} published photos, or on copies of them. "
            f"If the model had never seen these images, a result this strong would occur in at most {one_in} "
            "audits."
        )
    return (
        f"There is no proof that the model was trained on the {published} published photos. "
        f"A model that had never seen these images would give a result at least this strong in up to {one_in} "
        "audits; this does not show that they were not used."
    )
