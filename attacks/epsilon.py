"""Lower bounds on epsilon from one training run (Steinke, Nasr and Jagielski, "Privacy Auditing with One (1) Training
Run", NeurIPS'23).

Each of m canaries was trained on or not by the toss of a fair coin of its own. The auditor guesses r of the coins from
the scores of a membership inference attack, abstains from the others, and has v right. If training were
(epsilon, delta)-DP, the number of right guesses would not exceed that of r coins with q = e^epsilon / (1 + e^epsilon)
by more than delta allows (theorem 5.2):

    P[W >= v] <= P[B >= v] + 2 m delta max over i = 1..v of (P[v > B >= v - i]) / i,      B ~ Binomial(r, q)

With delta = 0 this is the exact one-sided binomial test, and the bound the logit of Clopper and Pearson's lower limit.
Public: p_value, lower_bound, right_guesses, audit, GUESSES.
"""

import math

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta, binom

import utils
from kit.errors import UserError

# Shares of the canaries that are guessed: (as members, as non-members). Fixed before anything is looked at.
GUESSES = ((0.005, 0.0), (0.02, 0.0), (0.005, 0.005), (0.05, 0.05), (0.25, 0.25))
_LARGEST = 60.0  # e^60: no number of guesses that fits a computer shows more


def p_value(guesses, correct, epsilon, canaries=None, delta=0.0):
    """The most probable that `correct` or more right guesses can be under (epsilon, delta)-DP: a float in [0, 1].

    canaries: m >= guesses, whose number counts only where delta > 0 (None: as many as guesses).
    """
    canaries = guesses if canaries is None else canaries
    if not 0 <= correct <= guesses <= canaries:
        raise UserError(
            f"{correct} right ones of {guesses} guesses on {canaries} canaries",
            advice="they can only become more from left to right",
        )
    if not epsilon >= 0 or not 0 <= delta <= 1:
        raise UserError(f"epsilon {epsilon} is below 0, or delta {delta} not in [0, 1]")
    probability = 1 / (1 + math.exp(-epsilon))
    at_least = float(binom.sf(correct - 1, guesses, probability))
    if delta == 0 or correct == 0:
        return at_least
    fewer = np.arange(1, correct + 1)
    excess = np.max((binom.sf(correct - fewer - 1, guesses, probability) - at_least) / fewer)
    return float(min(1.0, at_least + 2 * canaries * delta * excess))


def lower_bound(guesses, correct, confidence=0.95, canaries=None, delta=0.0):
    """The largest epsilon that is refuted: training is not (epsilon, delta)-DP for any smaller one, at `confidence`.

    0 where nothing is refuted. Arguments as for `p_value`.
    """
    if not 0 < confidence < 1:
        raise UserError(f"a confidence of {confidence} is not between 0 and 1", advice="the usual one is 0.95")
    risk = 1 - confidence
    if p_value(guesses, correct, 0.0, canaries, delta) > risk:
        return 0.0
    if delta == 0:
        share = beta.ppf(risk, correct, guesses - correct + 1)
        return float(max(0.0, math.log(share) - math.log1p(-share)))

    def above(epsilon):
        return p_value(guesses, correct, epsilon, canaries, delta) - risk

    if above(_LARGEST) <= 0:
        return _LARGEST
    found = brentq(above, 0.0, _LARGEST, xtol=1e-9)
    # The root's side that is still refuted.
    return float(found if above(found) <= 0 else max(0.0, found - 2e-9))


def right_guesses(scores, is_member, as_members, as_others, seed=0):
    """How many guesses are right: the `as_members` highest scores are guessed in, the `as_others` lowest out.

    scores: float (N,), higher for members; is_member: bool (N,). Ties are broken by a draw from the seed.
    """
    scores, is_member = np.asarray(scores, dtype=np.float64), np.asarray(is_member)
    if is_member.dtype != bool or scores.shape != is_member.shape or scores.ndim != 1:
        raise UserError(f"scores {scores.shape} and is_member ({is_member.dtype} {is_member.shape}) don't fit")
    if as_members < 0 or as_others < 0 or as_members + as_others > len(scores):
        raise UserError(
            f"{as_members} and {as_others} guesses on {len(scores)} canaries", advice="guess each at most once"
        )
    order = np.lexsort((utils.key_generator(seed, "ties of guesses").permutation(len(scores)), scores))
    return int(is_member[order[len(scores) - as_members :]].sum() + (~is_member[order[:as_others]]).sum())


def audit(scores, is_member, delta=0.0, confidence=0.95, shares=GUESSES, seed=0):
    """The lower bound on epsilon from the scores of one run: a JSON-ready dict.

    scores: float (N,), higher for members; is_member: bool (N,), the coins. Every entry of `shares` is one way of
    guessing; each is tested at 1 - (1 - confidence) / len(shares), so that the best of them holds at `confidence`
    (Bonferroni). Keys: epsilon, delta, confidence, canaries, tests [{as_members, as_others, guesses, correct, epsilon}]
    and provable, the epsilon that would have been shown if every guess had been right.
    """
    if not shares:
        raise UserError("no way of guessing is given", advice="the default is attacks.epsilon.GUESSES")
    each = 1 - (1 - confidence) / len(shares)
    canaries, tests, provable = len(scores), [], 0.0
    for counts in ([round(share * canaries) for share in pair] for pair in shares):
        guesses, correct = sum(counts), right_guesses(scores, is_member, *counts, seed)
        tests.append(
            {
                "as_members": counts[0],
                "as_others": counts[1],
                "guesses": guesses,
                "correct": correct,
                "epsilon": lower_bound(guesses, correct, each, canaries, delta),
            }
        )
        provable = max(provable, lower_bound(guesses, guesses, each, canaries, delta))
    return {
        "epsilon": max(test["epsilon"] for test in tests),
        "delta": delta,
        "confidence": confidence,
        "canaries": canaries,
        "provable": provable,
        "tests": tests,
    }
