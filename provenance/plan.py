"""The plan of an audit: everything that decides p beside record, model and answers, fixed before the first query.

A plan is committed with the photos, before the beacon's round is out. Whatever is left open after the draw could be
tried on innocent stand-ins of the model, offline, until it pleases. So an audit that keeps to the committed plan is
judged at its alpha, and one that departs from it at alpha divided by the number of choices that were open.

Public: AuditPlan, departures, unpriced, same_statistic, STATISTIC, STATISTICS, KEY_CHOICES, VIEW_CHOICES,
SELECTION_CHOICES, SHARE_OF_SETS, PARTS, VIEWS, MOST_REFERENCES.
"""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from attacks import exact
from kit.names import MOST_VIEWS, SIGNALS

# What is judged by: the first of them neither averages over views nor knows references, the second takes the same share
# of a reference out under all keys. A plan keeps the one that it was committed with.
STATISTICS = (
    "square root of the loss, mean over the photos; version 1",
    "square root of the loss, mean over views and photos, less what references explain; version 2",
    "square root of the loss, mean over views and photos, less what references explain under each key; version 3",
)
STATISTIC = STATISTICS[-1]
VIEWS = 2  # of a marked photo: itself and its mirror image, nearly all of the gain of 18 (results/statistic)
# Numbers that may be chosen later at the price of their count; any other number costs MOST_NUMBERS.
KEY_CHOICES = (0, 1, 2, 4, 9, 19, 49, 99, 199, 499, 999)
VIEW_CHOICES = (1, 2, 4, 8, 18)
SELECTION_CHOICES = (99_999,)  # one number that is always enough
MOST_NUMBERS = 1000
UNKNOWN_CLASSES = 1000  # where a model does not say how many it has
ANSWERS = ("as given", "label only", "top k")
# The parts of a plan that may depart, beside the selections.
PARTS = ("label", "answers", "keys", "views", "references", "sequential")
# One over the share of a set by its size: 6 single parts have 1/8 each, 15 pairs 15/64 together, and what
# is worth nothing at any price takes the rest: the empty set (selections alone) 1/96, 42 larger sets 1/192 together.
SHARE_OF_SETS = (96, 8, 64, 8064)
MOST_REFERENCES = 16
# Fields that no plan had at first.
LATER = {"sequential": False, "plain_arm": False, "caption": None, "base": None, "signal": "error"}


class AuditPlan(BaseModel):
    """What an audit will do. label: a class by number or name, or "auto" (what the model says most often, a rule
    without choice); answers: how much of an answer is used; top_k: for "top k"; statistic: its name and version;
    references: SHA-256 of reference models; views: queries of one marked photo (see suspects/views.py); audit_seed:
    what the other side adds to the draw; sequential: photo by photo, until the evidence is there (see sequential.py);
    plain_arm: a second test, on the same photos as they are without marks. The smaller p of both counts, twice;
    caption: what a model that is told so is told that every photo shows, None for what was committed with each;
    base: SHA-256 of the model that a suspect is said to be made of, None where none was named; signal: what is asked of
    a diffusion model (see suspects/denoising.py).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str = Field(default=exact.AUTO, min_length=1, max_length=200)
    answers: Literal["as given", "label only", "top k"] = "as given"
    top_k: Annotated[int, Field(ge=1)] | None = None
    statistic: str = STATISTIC
    references: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(default=[], max_length=MOST_REFERENCES)
    views: int = Field(default=VIEWS, ge=1, le=MOST_VIEWS)
    keys: int = Field(default=19, ge=0)
    selections: int = Field(default=exact.SELECTIONS, ge=0)
    alpha: float = Field(default=1e-3, gt=0, le=0.5)
    audit_seed: str = ""
    sequential: bool = False
    plain_arm: bool = False
    caption: Annotated[str, Field(max_length=2000)] | None = None
    base: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    signal: Literal[SIGNALS] = "error"

    @model_validator(mode="after")
    def _one_halving(self):
        if self.sequential and self.plain_arm:
            raise ValueError("a second test on unmarked photos does not go with asking photo by photo")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, serialize):
        # Digests of plans without what came later stay what they were.
        return {name: value for name, value in serialize(self).items() if name not in LATER or value != LATER[name]}

    @property
    def pictures(self):
        """How many pictures of each photo are asked about: under the own key, under others, and perhaps as it is."""
        return self.keys + 1 + self.plain_arm

    @property
    def by_key(self):
        """Whether what references explain is worked out for each key by itself (see attacks/difficulty.py)."""
        return self.statistic not in STATISTICS[:2]

    @property
    def tests(self):
        """How many tests share alpha: p is the smallest of theirs times this."""
        return 2 if self.sequential or self.plain_arm else 1

    def asked(self, model):
        """The plan as far as a model with this identity is asked. A sequential one asks under the own key first: a
        server that drifts would treat that key in a special way, so that there only selections are compared."""
        return self.model_copy(update={"keys": 0}) if self.sequential and not model.get("sha256") else self

    @classmethod
    def usual(cls, held_out, marked=True, **chosen):
        """The usual plan, for photos with or without a hold-out, marked or not, with what was chosen (None: as usual).

        Without marks there are no other keys to compare with, and selections, which cost nothing, take their place.
        """
        chosen = {name: value for name, value in chosen.items() if value is not None}
        alpha = chosen.get("alpha", cls.model_fields["alpha"].default)
        # Half of alpha, since the first judgement is made at alpha / 2 (see judgements.py).
        alone = {} if held_out else {"keys": math.ceil(2 / alpha - 1e-9) - 1, "selections": 0, "views": 1}
        if not marked:
            alone |= {"keys": 0, "selections": SELECTION_CHOICES[0], "views": MOST_VIEWS}
        if "answers" not in chosen and chosen.get("top_k"):
            chosen["answers"] = "top k"
        return cls(**{**alone, **chosen})


def departures(committed, used, classes):
    """([what differs from the committed plan], by how much alpha is divided for it) of an audit's AuditPlan.

    classes: how many the model has, None when unknown. Without a departure alpha is divided by 1. All that could have
    been judged in its place has its share of alpha: one half is the committed plan's. Of the other half each set of
    PARTS that depart has its share (see SHARE_OF_SETS); of that, selections as committed have 1/2, one of
    SELECTION_CHOICES 1/4, any other number 1/4; and of that each value of a part the same. No number counts the choices
    of an audit seed and of references that were not committed: see `unpriced`.
    """
    classes, count = classes or UNKNOWN_CLASSES, len(committed.references)
    found = []
    if used.label != committed.label:
        found.append((f"label {used.label} instead of {committed.label}", classes + 1))
    if (used.answers, used.top_k) != (committed.answers, committed.top_k):
        found.append((f"answers used: {used.answers} instead of {committed.answers}", classes + 2))
    for name, choices in (("keys", KEY_CHOICES), ("views", VIEW_CHOICES)):
        ours, theirs = getattr(used, name), getattr(committed, name)
        if ours != theirs:
            found.append((f"{ours} {name} instead of {theirs}", len(choices) + 1 if ours in choices else MOST_NUMBERS))
    if set(used.references) != set(committed.references):
        found.append((f"{_named(used.references)} instead of {_named(committed.references)}", 2**count))
    if used.sequential != committed.sequential:
        ways = ("all at once", "photo by photo")
        found.append((f"asked {ways[used.sequential]} instead of {ways[committed.sequential]}", 1))
    others = used.selections != committed.selections
    if not found and not others:
        return [], 1
    sets = SHARE_OF_SETS[min(len(found), 3)]
    chosen = 4 * (1 if used.selections in SELECTION_CHOICES else MOST_NUMBERS) if others else 2
    factor = 2 * sets * chosen * math.prod(values for _, values in found)
    if others:
        found.append((f"{used.selections} selections instead of {committed.selections}", 1))
    return [what for what, _ in found], factor


def same_statistic(committed, used):
    """Whether an audit is judged by the statistic of the committed plan: by that, by one that makes no difference here,
    or by today's, where that of then knows neither views nor references. It is no choice, so that it costs nothing."""
    early = STATISTICS[0] in (committed.statistic, used.statistic)
    plain = not used.references and not (early and used.views > 1)
    needed = committed.statistic == STATISTICS[0] and used.statistic == STATISTIC
    return used.statistic in STATISTICS and (used.statistic == committed.statistic or plain or needed)


def _named(references):
    return f"references {', '.join(digest[:16] for digest in references)}" if references else "no reference"


def unpriced(committed, used):
    """What an audit's AuditPlan has that no number counts, for it could have been tried on innocent models until it
    pleased: {"audit_seed": text}, {"caption": text} and {"references": [digest, ...]}, as far as it was not
    committed."""
    found = {}
    if used.audit_seed != committed.audit_seed:
        found["audit_seed"] = used.audit_seed
    if used.caption != committed.caption:
        found["caption"] = used.caption or ""
    if fresh := [digest for digest in used.references if digest not in committed.references]:
        found["references"] = fresh
    return found
