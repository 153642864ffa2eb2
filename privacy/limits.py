"""Limits for a company's own checks: `--fail_if "tpr@0.001 > 0.01 or auc.low > 0.6"`.

    condition  = comparison { "or" comparison }
    comparison = [ attack ":" ] metric ( ">" | ">=" | "<" | "<=" ) number
    metric     = ( "tpr@" number | "auc" | "fpr@tpr1" | "epsilon" ) [ ".low" | ".high" ]
    number     = digits, with a point or an exponent, and "%" for a hundredth

Rates are those of all targets under one threshold. Without an attack, the one with the highest value counts (the
lowest, of fpr@tpr1). ".low" and ".high" are the ends of the 95 % intervals, the wider of the two kinds. The text is
read by the grammar above and nothing else.
Public: parse, check, broken, Comparison, EXAMPLE.
"""

import difflib
import operator
import re
from dataclasses import dataclass

from kit.errors import UserError
from privacy.folds import ATTACKS

EXAMPLE = "tpr@0.001 > 0.01"
OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
METRICS = ("tpr", "auc", "fpr@tpr1", "epsilon")
MOST_CHARACTERS = 1000
_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?\s*%?"
_COMPARISON = re.compile(
    rf"\s*(?:(?P<attack>[a-z_]+)\s*:\s*)?(?P<metric>tpr@\s*(?P<fpr>{_NUMBER})|auc|fpr@tpr1|epsilon)"
    rf"(?:\.(?P<end>low|high))?\s*(?P<operator>>=|<=|>|<)\s*(?P<limit>{_NUMBER})\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Comparison:
    """One comparison that must not be true. text: as it was given; attack None: the worst of all; fpr: of tpr alone."""

    text: str
    attack: str | None
    metric: str
    fpr: float | None
    end: str | None
    operator: str
    limit: float


def parse(text):
    """The Comparison list of a condition. Raises UserError that shows where it can't be read."""
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"--fail_if has {len(text)} characters", advice=f"at most {MOST_CHARACTERS} are read")
    found, place = [], 0
    while True:
        match = _COMPARISON.match(text, place)
        if match is None:
            raise UserError(
                f"--fail_if can't be read at {text[place : place + 40].strip()!r}",
                advice=f"write for example {EXAMPLE!r}, with 'or' between two of them",
            )
        found.append(_comparison(match))
        place = match.end()
        if place == len(text):
            return found
        if (word := re.compile(r"or\b", re.IGNORECASE).match(text, place)) is None:
            raise UserError(
                f"--fail_if can't be read at {text[place : place + 40].strip()!r}",
                advice="between two comparisons stands 'or'",
            )
        place = word.end()


def _comparison(match):
    attack, fpr = match["attack"], match["fpr"]
    if attack is not None and attack.lower() not in ATTACKS:
        nearest = difflib.get_close_matches(attack.lower(), ATTACKS, n=1, cutoff=0)[0]
        raise UserError(f"--fail_if: the attack {attack!r} is unknown", advice=f"did you mean {nearest}?")
    metric = "tpr" if fpr is not None else match["metric"].lower()
    if metric == "epsilon" and (attack or match["end"]):
        raise UserError(
            "--fail_if: epsilon is a lower bound already, of audit.epsilon's attack", advice="write epsilon"
        )
    fpr = None if fpr is None else _number(fpr)
    if fpr is not None and fpr > 1:
        raise UserError(f"--fail_if: {match['fpr']} is no rate", advice="give a number in [0, 1]")
    return Comparison(
        match[0].strip(),
        attack and attack.lower(),
        metric,
        fpr,
        match["end"] and match["end"].lower(),
        match["operator"],
        _number(match["limit"]),
    )


def _number(text):
    return float(text.rstrip("% \t")) / (100 if "%" in text else 1)


def check(comparisons, fprs, attacks, epsilon):
    """Refuse what the audit will not know, before it begins: UserError.

    fprs: at which TPRs are given; attacks: names of those that are run; epsilon: whether a bound is asked for.
    """
    for one in comparisons:
        if one.metric == "tpr" and not any(_same(one.fpr, fpr) for fpr in fprs):
            raise UserError(
                f"--fail_if {one.text!r}: no TPR is given at {one.fpr:g}",
                advice=f"audit.fprs has {', '.join(f'{fpr:g}' for fpr in fprs)}",
            )
        if one.attack is not None and one.attack not in attacks:
            raise UserError(f"--fail_if {one.text!r}: {one.attack} is not run", advice="add it to audit.algorithm")
        if one.metric == "epsilon" and not epsilon:
            raise UserError(f"--fail_if {one.text!r}: no epsilon is asked for", advice="set audit.epsilon to {}")


def broken(comparisons, results):
    """(lines about the comparisons that are true, lines about what they can't say) of an audit's results.

    Raises UserError where one can't be judged, because its attack could not run: a limit never passes unseen.
    """
    lines, notes = [], []
    for one in comparisons:
        value, name = _value(one, results)
        if OPERATORS[one.operator](value, one.limit):
            lines.append(f"limit broken: {one.text} ({name}: {value:.6g})")
        if one.metric == "tpr" and not _point(results["attacks"][0], one.fpr)["resolved"]:
            notes.append(
                f"note: {results['attacks'][0]['pooled']['non_members']} non-members are too few for {one.text!r}: "
                "it is judged without a single false positive"
            )
    return lines, notes


def _value(one, results):
    if one.metric == "epsilon":
        return results["epsilon"]["epsilon"], results["epsilon"]["title"]
    ran = [attack for attack in results["attacks"] if one.attack in (None, attack["name"])]
    if not ran:
        raise UserError(
            f"--fail_if {one.text!r} can't be judged: {one.attack} did not run "
            f"({results['skipped'].get(one.attack, 'not asked for')})"
        )
    values = [(_of_attack(one, attack), attack["title"]) for attack in ran]
    # The strongest attack has the highest TPR and AUC, and the lowest FPR at which it finds all.
    return (min if one.metric == "fpr@tpr1" else max)(values)


def _of_attack(one, attack):
    pooled = attack["pooled"]
    if one.metric == "tpr":
        point = _point(attack, one.fpr)
        value, ends = point["tpr"], [point["interval"], point["clustered"]]
    elif one.metric == "auc":
        value, ends = pooled["auc"], [pooled["auc_interval"], pooled["auc_clustered"]]
    else:
        value, ends = pooled["fpr_at_100_tpr"], [pooled["fpr_interval"]]
    if one.end is None:
        return value
    return min(low for low, _ in ends) if one.end == "low" else max(high for _, high in ends)


def _point(attack, fpr):
    return next(point for point in attack["pooled"]["tpr_at_fpr"] if _same(point["fpr"], fpr))


def _same(one, other):
    return abs(one - other) <= 1e-12 + 1e-9 * other
