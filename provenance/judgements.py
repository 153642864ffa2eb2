"""The log of judgements: every plan that was judged with a record, in order, each bound to the one before by its hash.

The k-th judgement of one model is made at alpha / 2^k, so that all of them together accuse an innocent model with a
probability of at most alpha, however many there are. Every batch that was added after the first one counts as a look,
too: its maker could have stopped before it. A plan is in the log before its first query, and an audit that goes on or
is repeated with the stored answers is the same judgement.

The log lies beside the record as judgements.json, and goes into each evidence bundle. Whoever deletes it deceives only
those who do not ask again: keys, selections and plan follow from the commitment, so that repeating an audit of the same
file changes nothing.

Public: Judgement, next_judgement, open_judgement, conclude_judgement, read_log, check_log, same_model, share_of_alpha,
place_of_log, LOG_FILE, NOTHING.
"""

import math
import os
from datetime import datetime, timezone
from pathlib import Path

from pydantic import Field, ValidationError

from kit.errors import UserError
from kit.files import canonical_digest, read_json, write_json
from provenance.plan import AuditPlan
from provenance.record import Digest, Strict, first_problem

LOG_FILE = "judgements.json"
NOTHING = "0" * 64  # what the first entry is bound to
SCORED = ("score", "pictures_a_query")  # of an identity: how its answers were made a score


class Judgement(Strict):
    """One plan, fixed before its first query. model: the suspect's identity; asking: how often this model has been
    asked anew; number: k; alpha: what p is compared with; begun: ISO time; left_out:
    photos whose originals are gone; previous: digest of the entry before; p_value: what came out, None before.
    """

    begun: str
    commitments: list[Digest]
    plan: AuditPlan
    model: dict
    preprocessing: str
    asking: int = Field(ge=1)
    number: int = Field(ge=1)
    departures: list[str]
    left_out: list[int] = Field(default=[])
    alpha: float = Field(gt=0, le=0.5)
    previous: Digest
    p_value: float | None = Field(default=None, gt=0, le=1)  # what came out, not part of the digest

    @property
    def price(self):
        """By how much alpha was divided beyond what a first and planned judgement has: what p is multiplied with, so
        that it speaks for all that could have been judged in its place.
        """
        return max(1.0, self.plan.alpha / 2 / self.alpha)

    @property
    def digest(self):
        """SHA-256, hex."""
        return canonical_digest(self.model_dump(mode="json", exclude={"p_value"}))

    def same_as(self, other):
        """Whether it is the same plan for the same answers."""
        return all(
            getattr(self, name) == getattr(other, name)
            for name in ("commitments", "plan", "model", "preprocessing", "asking", "left_out")
        )


def same_model(one, other):
    """Whether two identities are of one model: a file's is its SHA-256, as another name makes no other model. Nor does
    another way of making a score of its answers."""
    if one.get("sha256"):
        return one["sha256"] == other.get("sha256")
    ours, theirs = ({name: said for name, said in some.items() if name not in SCORED} for some in (one, other))
    return ours == theirs


def share_of_alpha(plan, committed, number, factor):
    """What p of a judgement is compared with: alpha / 2^number / factor. A larger alpha than the committed one is not
    taken."""
    return math.ldexp(min(plan.alpha, committed.alpha), -number) / factor


def read_log(path):
    """The Judgements of a log file, none where there is no file. Raises UserError for a damaged or changed one."""
    if not Path(path).exists():
        return []
    content = read_json(path, "put back an undamaged copy; what was judged before has to stay in it")
    return check_log(content, path)


def check_log(content, where, alone=False):
    """The Judgements of a log's JSON: numbered and bound to each other (unless alone). Raises UserError."""
    try:
        if not isinstance(content, list):
            raise TypeError
        entries = [Judgement.model_validate(entry) for entry in content]
    except (ValidationError, TypeError) as error:
        problem = first_problem(error) if isinstance(error, ValidationError) else "it is no list"
        raise UserError(f"{where} is not a log of judgements: {problem}", "put back an undamaged copy") from None
    if alone:
        return entries
    before = NOTHING
    for place, entry in enumerate(entries, 1):
        if entry.previous != before or entry.number != _number(entries[: place - 1], entry):
            raise UserError(f"{where}: judgement {place} does not follow from those before it", "somebody changed it")
        before = entry.digest
    return entries


def _number(before, entry):
    """k of an entry: judgements of the same model so far, this one, and batches after the first."""
    earlier = sum(same_model(one.model, entry.model) for one in before)
    return earlier + len(entry.commitments)


def next_judgement(entries, record, plan, committed, suspect, departs, factor, asking, left_out=(), now=None):
    """The Judgement of a plan: the one that is among the entries of a log already, or the one to come.

    committed: the AuditPlan that binds; departs, factor: of `plan.departures`; asking: 1 for the first answers of this
    model; left_out: numbers of photos whose originals are gone; now: ISO time.
    """
    draft = Judgement(
        begun=now or datetime.now(timezone.utc).isoformat(timespec="seconds"),
        commitments=record.commitments,
        plan=plan,
        model=suspect.identity,
        preprocessing=suspect.preprocessing.describe(),
        asking=asking,
        number=1,
        departures=departs,
        left_out=list(left_out),
        alpha=plan.alpha,
        previous=entries[-1].digest if entries else NOTHING,
    )
    known = next((entry for entry in entries if entry.same_as(draft)), None)
    if known is not None:
        return known
    number = _number(entries, draft)
    return draft.model_copy(update={"number": number, "alpha": share_of_alpha(plan, committed, number, factor)})


def open_judgement(path, judgement):
    """Write a judgement into the log, unless it is there: (the judgement, all entries). The log is locked by the
    caller.

    Raises UserError when another judgement came between.
    """
    entries = read_log(path)
    if any(entry.digest == judgement.digest for entry in entries):
        return judgement, entries
    if judgement.previous != (entries[-1].digest if entries else NOTHING):
        raise UserError(f"{path} got another judgement meanwhile", advice="start again")
    write_json(path, [entry.model_dump(mode="json") for entry in (*entries, judgement)])
    return judgement, [*entries, judgement]


def conclude_judgement(path, judgement, p_value):
    """Note in the log what came out of a judgement: all entries."""
    entries = [
        entry.model_copy(update={"p_value": p_value}) if entry.digest == judgement.digest else entry
        for entry in read_log(path)
    ]
    write_json(path, [entry.model_dump(mode="json") for entry in entries])
    return entries


def place_of_log(beside, folder):
    """The file of judgements: beside the record, or in the audit's folder where nothing can be written there."""
    return (beside if os.access(beside, os.W_OK) else folder) / LOG_FILE
