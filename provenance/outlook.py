"""What an audit will take and what was fixed for it, in words, before anything is asked.

Public: describe, span.
"""

import math

from provenance.folder import half_captioned
from provenance.grid import caption_of


def describe(case):
    """Some lines for people about a `provenance.case.Case`: the model, what asking it will take, and what was fixed."""
    suspect, plan, judgement = case.suspect, case.asked, case.judgement
    told = [caption_of(plan, photo) for photo in case.record.photos]
    asked = (
        f"model: {suspect.name}, {suspect.describe()}; "
        f"{suspect.preprocessing.describe()}\n"
        f"queries: {case.queries - case.aside} ({case.photos} photos x "
        + (f"({plan.keys + 1} keys + unmarked)" if plan.plain_arm else f"{plan.keys + 1} keys")
        + (f" x {plan.views} views)" if plan.views > 1 else ")")
        + (f" + {case.aside} for Algorithm 1" if case.strangers else "")
        + f"; smallest p that can come out: {case.smallest_p:.2g}"
    )
    if (each := suspect.pictures_a_query) > 1:
        asked += f"\neach query shows it {each} crops of a picture: {case.queries * each} pictures"
    if suspect.seconds is not None:
        asked += f"\ntime: {_time(case, told)}"
    if suspect.captioned and (some := half_captioned(told)):
        asked += f"\ncaptions: {some}"
    if plan.sequential:
        asked += (
            f"\nphoto by photo: that is the most; it stops as soon as the evidence is there, after {plan.views} "
            "queries at the earliest"
        )
    if case.references:
        names = ", ".join(reference.suspect.name for reference in case.references)
        asked += f"\nreferences: {names}, asked the same"
    lost = len(case.originals) - case.photos
    gone = f"\n{lost} photos are left out: their originals are missing or were changed" if lost else ""
    departs = f"; it departs from the committed plan ({'; '.join(case.departs)})" if case.departs else ""
    return (
        f"{asked}\nplan: {judgement.digest}\njudgement {judgement.number} of this model: p is compared with "
        f"{judgement.alpha:.2g}{departs}{gone}"
    )


def _time(case, told):
    """How long the queries take, in words. told: what photos are said to show."""
    passes, each = [case.suspect.passes_of(caption) for caption in told], case.suspect.seconds
    mean = sum(passes) / len(passes)
    whole = span((case.queries - case.aside) * mean * each)
    return f"about {whole} ({mean:.3g} passes through a network a query, {each:.2g} s each: measured on the first)"


def span(seconds):
    """A time for people."""
    units = {"second": 60, "minute": 60, "hour": 48, "day": math.inf}
    for unit, most in units.items():
        if seconds < most:
            count = max(1, math.ceil(seconds))
            return f"{count:,} {unit}{'s' * (count > 1)}"
        seconds /= 24 if unit == "hour" else 60
