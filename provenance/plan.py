"""The plan of an audit: everything that decides p beside record, model and answers, fixed before the first query.

A plan is committed with the photos, before the beacon's round is out. Whatever is left open after the draw could be
tried on innocent stand-ins of the model, offline, until it pleases. So an audit that keeps to the committed plan is
judged at its alpha, and one that departs from it at alpha divided by the number of choices that were open.

Public: AuditPlan, departures, STATISTIC, KEY_CHOICES, SELECTION_CHOICES.
"""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from attacks import exact

STATISTIC = "square root of the loss, mean over the photos; version 1"
# Numbers that may be chosen later at the price of their count; any other number costs MOST_NUMBERS.
KEY_CHOICES = (0, 1, 2, 4, 9, 19, 49, 99, 199, 499, 999)
SELECTION_CHOICES = (99_999,)  # one number that is always enough
MOST_NUMBERS = 1000
WAYS = 2**4 - 1  # the parts of a plan that may depart: label, answers, keys, selections
UNKNOWN_CLASSES = 1000  # where a model does not say how many it has
ANSWERS = ("as given", "label only", "top k")


class AuditPlan(BaseModel):
    """What an audit will do. label: a class by number or name, or "auto" (what the model says most often, a rule
    without choice); answers: how much of an answer is used; top_k: for "top k"; statistic: its name and version;
    references: SHA-256 of reference models; views: queries of one marked photo, changed as in training; audit_seed:
    what the other side adds to the draw.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str = Field(default=exact.AUTO, min_length=1, max_length=200)
    answers: Literal["as given", "label only", "top k"] = "as given"
    top_k: Annotated[int, Field(ge=1)] | None = None
    statistic: str = STATISTIC
    references: list[str] = []
    views: int = Field(default=1, ge=1)
    keys: int = Field(default=19, ge=0)
    selections: int = Field(default=999, ge=0)
    alpha: float = Field(default=1e-3, gt=0, le=0.5)
    audit_seed: str = ""

    @classmethod
    def usual(cls, held_out, **chosen):
        """The usual plan, for photos with or without a hold-out, with what was chosen (None: as usual)."""
        chosen = {name: value for name, value in chosen.items() if value is not None}
        alpha = chosen.get("alpha", cls.model_fields["alpha"].default)
        # Half of alpha, since the first judgement is made at alpha / 2 (see judgements.py).
        alone = {} if held_out else {"keys": math.ceil(2 / alpha - 1e-9) - 1, "selections": 0}
        if "answers" not in chosen and chosen.get("top_k"):
            chosen["answers"] = "top k"
        return cls(**{**alone, **chosen})


def departures(committed, used, classes):
    """([what differs from the committed plan], by how much alpha is divided for it) of an audit's AuditPlan.

    classes: how many the model has, None when unknown. Without a departure alpha is divided by 1. With one it is
    divided by the number of choices that were open: 2 (the committed plan could have been judged, too) x WAYS (which
    parts of the plan depart) x the number of values of each part. The audit seed is not among them: no number counts
    its choices.
    """
    classes = classes or UNKNOWN_CLASSES
    found = []
    if used.label != committed.label:
        found.append((f"label {used.label} instead of {committed.label}", classes + 1))
    if (used.answers, used.top_k) != (committed.answers, committed.top_k):
        found.append((f"answers used: {used.answers} instead of {committed.answers}", classes + 2))
    for name, choices in (("keys", KEY_CHOICES), ("selections", SELECTION_CHOICES)):
        ours, theirs = getattr(used, name), getattr(committed, name)
        if ours != theirs:
            found.append((f"{ours} {name} instead of {theirs}", len(choices) + 1 if ours in choices else MOST_NUMBERS))
    if not found:
        return [], 1
    return [what for what, _ in found], 2 * WAYS * math.prod(count for _, count in found)
