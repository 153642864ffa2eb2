"""Words about judgements, which the tabs Check and Evidence share: departures, the log, the verdict.

Public: log_of, departures, beside, comparison, before, verdict, facts, figures, log, stored_log, model_name.
"""

from attacks.exact import one_in
from kit.errors import UserError
from kit.files import write_json
from kit.markup import element, table
from page import look
from provenance import judgements
from provenance import record as records
from provenance.record import private_folder


def log_of(desk, path):
    """The file of judgements for a record that was handed in: one for all copies of it.

    It lies beside the record where that was made on this page; else in a place of its own. What a log beside the copy
    has more is taken over. Raises UserError for two logs of which neither goes on from the other.
    """
    first = records.read_finished(path).commitments[0]
    known = (job for job in desk.jobs.all("protected") if first in (job.result.get("commitments") or [])[:1])
    beside = [records.record_file(job.result["record"]).parent for job in known]
    place = next((folder for folder in beside if folder.is_dir()), desk.root / "judgements" / first)
    private_folder(place)
    log, brought = place / judgements.LOG_FILE, path.parent / judgements.LOG_FILE
    ours, theirs = judgements.read_log(log), judgements.read_log(brought)
    both = list(zip(ours, theirs, strict=False))
    if any(mine.digest != yours.digest for mine, yours in both):
        raise UserError(
            f"the judgements beside the record are not those of {log}", "whoever removes judgements proves nothing"
        )
    if len(theirs) > len(ours):
        write_json(log, [entry.model_dump(mode="json") for entry in theirs])
    return log


def departures(planned):
    """What departs from the committed plan, and what that costs; nothing where nothing does."""
    if not planned.departs:
        return ""
    kept = min(planned.plan.alpha, planned.record.plan.alpha) / 2**planned.judgement.number
    return look.notice(
        "warn",
        element("p", element("strong", "This departs from the plan that was committed with the photos")),
        element("ul", *(element("li", what) for what in planned.departs)),
        element(
            "p",
            f"{planned.factor:,} choices were open, and whoever looks for one that pleases may find it. So a result is "
            f"a proof if chance gives it in at most {one_in(planned.judgement.alpha)} audits, instead of "
            f"{one_in(kept)}. Leave the fields empty to keep to the plan.",
        ),
        role="status",
    )


def beside(planned):
    """That references will be asked, too; nothing without any."""
    names = [reference.suspect.name for reference in planned.references]
    if not names:
        return ""
    return element(
        "p",
        f"As many questions go to each reference first ({', '.join(names)}): what it finds difficult or easy, too, is "
        "no memory.",
    )


def comparison(planned):
    """What p will be compared with, and whether it can be reached."""
    judgement = planned.judgement
    text = (
        f"This is judgement {judgement.number} of this model with this record. It is a proof if chance gives such a "
        f"result in at most {one_in(judgement.alpha)} audits; the strongest that can come out is "
        f"{one_in(planned.smallest_p)}."
    )
    if planned.smallest_p > judgement.alpha:
        text += " So nothing can be proven any more: earlier judgements or departures have used it up."
    return text


def before(planned):
    """The judgements of this record so far."""
    entries = judgements.read_log(planned.log)
    if not entries:
        return ""
    return _table(entries, "Judgements with this record so far. Each further one of a model has to be twice as strong.")


def _table(entries, caption):
    """Judgements as a table."""
    rows = [
        [
            f"{entry.number}",
            model_name(entry.model),
            entry.begun.replace("T", " ")[:16],
            "; ".join(entry.departures) or "as committed",
            one_in(entry.alpha),
            one_in(entry.p_value) if entry.p_value is not None else "not finished",
        ]
        for entry in entries
    ]
    return table(caption, ["judgement", "model", "begun (UTC)", "plan", "compared with", "came out"], rows)


def model_name(identity):
    """What people call a model. identity: of a Suspect."""
    return str(identity.get("file") or identity.get("url") or "?")[:200]


def verdict(result):
    """The box with the verdict and its sentences."""
    return look.notice(
        "good" if result["detected"] else "info",
        element("p", element("strong", "USED" if result["detected"] else "Not shown")),
        element("p", result["sentences"], class_="verdict"),
        role="status",
    )


def facts(result):
    """What the verdict says beside its sentences, without a statistician's words."""
    judgement, missing = result.get("judgement") or {}, result.get("missing", 0)
    number = f" (judgement {judgement['number']} of this model)" if judgement else ""
    rows = [
        ("by chance in", f"{one_in(result['p_value'])} audits of a model that never saw the photos"),
        ("needed for a proof", f"{one_in(result['alpha'])} or rarer{number}"),
        ("photos", f"{result['published']} published, {result['photos'] - result['published']} held out"),
        *([] if result["label"] is None else [("class", result["label"])]),
        ("queries", f"{result['queries']:,}" + (f", {missing:,} unanswered" if missing else "")),
    ]
    if arms := result.get("arms"):
        unanswered = f", {arms['plain_refused']:,} unanswered" if arms["plain_refused"] else ""
        rows.append(
            (
                "two tests",
                f"marked photos: {one_in(arms['marked'])}; photos as they are: {one_in(arms['plain'])}{unanswered}. "
                "The stronger one counts, and has to be twice as strong",
            )
        )
    if names := _references(result):
        rows.append(
            (
                "references",
                f"{', '.join(names)}: taken not to have seen the photos. What they find difficult or easy, too, was "
                "taken out of the comparison",
            )
        )
    if result.get("key_p_value") is not None:
        rows.append(("the marks themselves", _marks(result)))
    if result.get("refusal_p_value") is not None:
        rows.append(
            (
                "refusals",
                f"{result['missing']:,} questions were not answered. That the published marked photos are among them "
                f"as often happens by chance in {one_in(result['refusal_p_value'])} audits",
            )
        )
    counted = result.get("p_adjusted", result["p_value"])
    if counted > result["p_value"]:
        rows.insert(1, ("all judgements counted", f"{one_in(counted)}; the sentence above says this"))
    return look.facts(rows)


def _plan(result):
    """The plan of a result's judgement as it is stored, {} for an early version."""
    return (result.get("judgement") or {}).get("plan") or {}


def _references(result):
    """What people call the references that were asked."""
    return [str(entry["name"])[:200] for entry in result.get("references") or ()]


def _marks(result):
    plan = _plan(result)
    keys = plan["keys"] + 1 if plan else round(result["queries"] / result["photos"])
    rank = round(result["key_p_value"] * keys)
    return f"of {keys} patterns that could have been drawn, the model knows " + (
        "yours best" if rank == 1 else f"{rank - 1} as well as yours or better"
    )


def figures(result):
    """The same for statisticians: names and values."""
    arms = result.get("arms")
    of = f" ({result['at_most']} of {result['pairs']:,} pairs of patterns and halves)" if result["pairs"] else ""
    of = f" (twice the smaller of {arms['marked']:.3g}{of} and {arms['plain']:.3g})" if arms else of
    bets = result.get("sequential")
    rows = [
        ("p, photo by photo" if bets else "exact p", f"{result['p_value']:.3g}{'' if bets else of}"),
        ("alpha of this judgement", f"{result['alpha']:.3g}"),
    ]
    for name, title in (("key_p_value", "p of the marks"), ("refusal_p_value", "p of refusals")):
        if result.get(name) is not None:
            rows.append((title, f"{result[name]:.3g}"))
    if views := _plan(result).get("views"):
        rows.append(("views of each photo", f"{views}"))
    for entry in result.get("references") or ():
        digest = element("code", str(entry["digest"]))
        rows.append((f"reference {str(entry['name'])[:200]}", digest))
    for name, title in (("plan_sha256", "plan"), ("commitment", "commitment")):
        if name in result:
            rows.append((title, element("code", result[name])))
    return rows


def log(path, result):
    """The log as it is now, where there is more in it than this judgement."""
    entries = judgements.read_log(path) if path else []
    if len(entries) < 2:
        return ""
    number = result["judgement"]["number"]
    return _table(entries, f"All judgements with this record; this is judgement {number} of its model.")


def stored_log(content):
    """The log inside a bundle that was checked."""
    return _table(judgements.check_log(content, "the bundle"), "All judgements that this evidence tells of.")
