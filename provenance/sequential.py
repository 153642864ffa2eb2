"""An audit that asks photo by photo, and stops as soon as the evidence is there.

A judgement's alpha is halved. One half is for the test by betting (attacks/sequential.py): the model is asked about one
photo after the other, under the user's own key alone; from its answer comes a bet that the photo was published, and
only then the status is looked up. When the wealth has grown to 2 / alpha, the audit is over. If it never does, the rest
of the usual grid is asked, and the exact test is judged at the other half:

    p = min(1, 2 * min(p of the bets, exact p)),

by the union bound. The p of the bets is that of the largest wealth so far and holds wherever one stops, so that a
budget may end the audit at any photo; what is not asked then, p can only be larger for.

The order follows from what is fixed before the first answer: the photos that the references find hardest first, equal
ones and all without references as the secret has it. It can be worked out from the evidence, and so can everything
else: a bundle whose audit stopped elsewhere than it should have is refused.

The own key comes first, and a server whose answers drift would seem to know it, or not to know it, apart from all
others. So only of a file, whose answers hang on the picture alone, the grid has other keys (see `AuditPlan.asked`).

Public: Rule, rule_of, Bets, order_of, order_digest, check_order, ask, judge, EVIDENCE, BUDGET, ALL.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from attacks import exact, sequential
from kit.errors import UserError
from kit.progress import Progress
from provenance import grid
from provenance.plan import AuditPlan

EVIDENCE, BUDGET, ALL = "evidence", "budget", "all photos"  # why the bets ended
FINE = 8  # steps of a standard deviation in which difficulty is told apart: rounding must not change the order
UP = 1e-5  # by which p is larger than it was, so that six digits of it are the same on every processor


class Bets(NamedTuple):
    """What the bets came to. p: at their end; photos: how many were bet on; wealth: after each, four digits; label: the
    class that was looked at last; stopped: EVIDENCE, BUDGET or ALL."""

    p: float
    photos: int
    wealth: list
    label: int
    stopped: str


@dataclass(frozen=True)
class Rule:
    """Whom to ask about when, and when to stop. All arrays are in the order of asking, one entry for each photo.

    plan: as far as it is asked; label: a class number or AUTO; alpha: of the judgement; classes: how many, or None;
    sizes: (photos, published) of each batch; places: int, among the photos whose originals are there; batches: int;
    statuses: bool, published or not; references: float64, mean score of the references, NaN without; room: how many
    queries may be asked, None for any number.
    """

    plan: AuditPlan
    label: int | str
    alpha: float
    classes: int | None
    sizes: list
    places: np.ndarray
    batches: np.ndarray
    statuses: np.ndarray
    references: np.ndarray
    room: int | None

    @property
    def photos(self):
        return len(self.places)

    @property
    def total(self):
        """Queries of the whole grid."""
        return self.photos * (self.plan.keys + 1) * self.plan.views

    @property
    def first_queries(self):
        """The queries of the bets, by number: all views of one photo after the other."""
        views = self.plan.views
        return ((self.places * (self.plan.keys + 1))[:, None] * views + np.arange(views)).ravel()

    def bet(self, answers, photos=None):
        """The Bets on photo after photo. answers(count): Answers to the first `count` queries, asked for when they are
        needed; photos: bet on so many, wherever the rule would have stopped."""
        published = [count for _, count in self.sizes]
        bettor, wealth, label = sequential.Wealth([count for count, _ in self.sizes], published), [], 0
        for place in range(self.photos if photos is None else min(photos, self.photos)):
            count = (place + 1) * self.plan.views
            if photos is None and self.room is not None and count > self.room:
                break
            score, label = self._score(answers(count))
            bettor.bet(score, self.references[place], self.batches[place])
            bettor.reveal(self.statuses[place])
            wealth.append(float(f"{bettor.wealth:.3e}"))
            if photos is None and self._enough(bettor):
                break
        why = EVIDENCE if self._enough(bettor) else ALL if len(wealth) == self.photos else BUDGET
        return Bets(_up(bettor.p_value), len(wealth), wealth, label, why)

    def needed(self, bets):
        """How many queries an audit has asked when it is over."""
        whole = bets.stopped == ALL and (self.room is None or self.total <= self.room)
        return self.total if whole else bets.photos * self.plan.views

    def _enough(self, bettor):
        return 2 * _up(bettor.p_value) <= self.alpha

    def _score(self, answers):
        """(score of the last photo that these answers are about, NaN without an answer; the class that was looked at),
        from the answers so far alone."""
        answers = answers.limited(self.plan.answers == "label only", self.plan.top_k)
        if answers.missing.all():
            return math.nan, 0 if self.label == exact.AUTO else self.label
        photos = len(answers) // self.plan.views
        scores, top, _ = grid.scores_of(answers, photos, self.classes, self.label, self.plan.views)
        label = int(np.bincount(top[top >= 0]).argmax()) if self.label == exact.AUTO else self.label
        return float(scores[-1, 0, label]), label


def rule_of(record, plan, label, alpha, classes, left_out, references, room=None, ordered=None):
    """The Rule of a judgement. record: a MarkRecord, or what a bundle discloses of one; plan: as far as it is asked;
    left_out: numbers of photos that are not asked about; references: scores, float32 (R, n, keys + 1); ordered: those
    that the order follows from, None for the same.
    """
    kept = np.setdiff1d(np.arange(sum(photos for photos, _ in record.sizes)), np.asarray(left_out, dtype=int))
    drawn = record.sequence(plan.audit_seed)
    places = np.searchsorted(kept, drawn[np.isin(drawn, kept)])
    hardest = _difficulty(references if ordered is None else ordered, len(kept))
    places = places[sequential.hardest_first(hardest[places])]
    numbers = kept[places]
    return Rule(
        plan,
        label,
        alpha,
        classes,
        record.sizes,
        places,
        np.repeat(np.arange(len(record.sizes)), [photos for photos, _ in record.sizes])[numbers],
        record.selections(0)[0][numbers],
        _own_means(references, len(kept))[places],
        room,
    )


def _own_means(references, photos):
    """The mean score of the references for each photo under the own key, float64 (n,), NaN where none answered."""
    return _means([scores[:, 0] for scores in np.asarray(references, dtype=np.float64)], photos)


def _difficulty(references, photos):
    """The mean of the standardised references under the own key, in steps: float64 (n,), NaN where none answered."""
    standardised = []
    for scores in np.asarray(references, dtype=np.float64):
        own, there = scores[:, 0], ~np.isnan(scores[:, 0])
        # fsum rounds once, whatever the processor: the order must be the same everywhere.
        mean = math.fsum(own[there]) / max(1, there.sum())
        spread = math.sqrt(math.fsum(np.square(own[there] - mean)) / max(1, there.sum()))
        standardised.append((own - mean) / spread if spread else own * 0.0)
    return np.round(_means(standardised, photos) * FINE) / FINE


def _means(rows, photos):
    found = np.full(photos, np.nan)
    for photo in range(photos):
        if there := [row[photo] for row in rows if not math.isnan(row[photo])]:
            found[photo] = math.fsum(there) / len(there)
    return found


def _up(p):
    """p with six digits, not smaller than it was."""
    return min(1.0, float(f"{p * (1 + UP):.5e}"))


def order_of(rule, record):
    """The order of all queries, the bets' first: int64, a permutation. The secret of the marks decides the rest."""
    keys, views = rule.plan.keys + 1, rule.plan.views
    rest = grid.query_order(record, rule.photos * keys, rule.plan.audit_seed, views)
    return np.concatenate([rule.first_queries, rest[rest // views % keys > 0]])


def order_digest(order):
    """SHA-256, hex, of an order of queries."""
    return hashlib.sha256(np.ascontiguousarray(order, "<i8").tobytes()).hexdigest()


def check_order(rule, order, digest, where):
    """Raise UserError for a bundle's order that does not follow from its record. digest: of the whole order."""
    first = rule.first_queries[: len(order)]
    whole = len(order) == rule.total
    if (
        not np.array_equal(order[: len(first)], first)
        or (len(order) > len(first) and not whole)
        or (whole and (order_digest(order) != digest or not np.array_equal(np.sort(order), np.arange(rule.total))))
    ):
        raise UserError(f"{where} asked in another order than its record gives", advice="somebody changed it")


def ask(rule, record, photos, suspect, order, log, bank=None, transcript=None, count=None):
    """Query the model until the rule stops: (SHA-256 digests uint8 (N, 32), Answers), both in the order asked. Goes on
    with what the log has.

    order: as of `order_of`; count: ask so many, wherever the rule would have stopped.
    """
    queries = grid.Queries(record, photos, rule.plan, suspect.preprocessing, bank, suspect.captioned)
    asking = grid.Asking(log, suspect, lambda places: queries.images(order[places]), transcript)
    most = count or (rule.total if rule.room is None else min(rule.total, rule.room))
    with Progress(desc="asking the model", total=most, initial=min(most, asking.done), unit="query") as bar:

        def upto(number):
            asking.until(number, bar)
            return log.collect()[1].rows(slice(number))

        bets = rule.bet(upto, None if count is None else count // rule.plan.views)
        count = count or rule.needed(bets)
        asking.until(count, bar)
    digests, answers = log.collect()
    grid.warn_of_two_kinds(log)
    return digests[:count], answers.rows(slice(count))


def judge(rule, record, order, answers, left_out=(), price=1, references=(), where="the audit", given=False):
    """(result dict as of `grid.judge`, grid T or None where the exact test was not judged) of answers in the order
    asked. Raises UserError for answers that end elsewhere than the rule says, unless they are `given`: then all of them
    are judged.
    """

    def upto(count):
        if count > len(answers):
            raise _wrong_end(where)
        return answers.rows(slice(count))

    bets = rule.bet(upto, len(answers) // rule.plan.views if given else None)
    if not given and len(answers) != rule.needed(bets):
        raise _wrong_end(where)
    whole = len(answers) == rule.total and (given or bets.stopped == ALL)
    beside = (rule.plan, rule.label, rule.alpha, order, answers, rule.classes, left_out, price, references)
    result, table = grid.judge(record, *beside)[:2] if whole else (_without_grid(rule, bets, answers), None)
    exact_p = result["p_value"] if whole else None
    p = min(1.0, 2 * min(bets.p, 1.0 if exact_p is None else exact_p))
    key_p = result["key_p_value"]
    sentences = exact.sentences(min(1.0, p * price), rule.alpha * price, result["published"], key_p, rule.plan.keys)
    result |= {
        "p_value": p,
        "detected": p <= rule.alpha,
        "p_adjusted": min(1.0, p * price),
        "sentences": sentences + _told(rule, bets, whole),
        "sequential": {
            "p_value": bets.p,
            "exact_p_value": exact_p,
            "photos": bets.photos,
            "queries": bets.photos * rule.plan.views,
            "stopped": bets.stopped,
            "bound": float(f"{2 / rule.alpha:.6g}"),
            "wealth": bets.wealth,
        },
    }
    return result, table


def _wrong_end(where):
    return UserError(
        f"{where}: its answers end elsewhere than where a sequential audit stops", advice="somebody changed it"
    )


def _without_grid(rule, bets, answers):
    """What a result says where the exact test was not judged."""
    nothing = dict.fromkeys(("statistic", "pairs", "at_most", "key_p_value", "refusal_p_value"))
    return {
        "p_value": bets.p,
        "alpha": rule.alpha,
        **nothing,
        "statistic_of_others": {},
        "label": None if answers.scores is not None else bets.label,
        "queries": len(answers),
        "missing": int(answers.missing.sum()),
        "photos": rule.photos,
        "published": int(rule.statuses.sum()),
    }


def _told(rule, bets, whole):
    """What the sentences say of where the audit stopped."""
    if bets.stopped == EVIDENCE and not whole:
        return f" It was enough to ask about {bets.photos} of the {rule.photos} photos."
    if bets.stopped == BUDGET:
        return (
            f" The audit ended after {bets.photos} of the {rule.photos} photos, since no more queries were allowed; "
            "it can go on."
        )
    return "" if whole else " The comparison with other halves was left out, since no more queries were allowed."
