"""The tab Check: a record, the originals and a model in; the plan, the number of queries, then the verdict out.

Public: build.
"""

from dataclasses import asdict
from pathlib import Path

import gradio as gr
import torch

from kit.errors import UserError
from kit.files import canonical_digest, read_json
from kit.markup import element, join
from kit.names import MOST_VIEWS
from page import look
from page.desk import DAY
from page.jobs import Job, reason
from page.panel import Panel
from page.tabs import inputs, judged
from provenance import case
from provenance import record as records

THREADS = torch.get_num_threads()  # before marking, whose threads have a core each, changes it
AS_COMMITTED = ""
ALPHAS = [
    ("as committed with the photos", AS_COMMITTED),
    ("1 of 1,000 audits", 1e-3),
    ("1 of 10,000 audits", 1e-4),
    ("1 of 100,000 audits", 1e-5),
]
EARLY = "this verdict is of an early version, whose draw could have been repeated until it pleased; count again"
# What is chosen for an audit; the names are those of `case.Options`.
CHOICES = ("label", "label_only", "alpha", "keys", "query_augmentations", "selections", "max_queries", "audit_seed")
CHOICES += ("publications", "caption")
# The fields of the tab, in the order of its components.
INPUTS = ("known", *inputs.RECORD, *inputs.MODEL, *inputs.REFERENCES, "without_references", *CHOICES)
# Fields that are folded away, by the accordion that has them: it opens where a message is about one of them.
FOLDED = (inputs.HIDDEN, ("reference",))


def build(desk):
    """Fill the tab; returns (the Panel of its jobs, the dropdown of records, a function chosen -> its update)."""
    gr.HTML(
        look.shown(
            element(
                "p",
                "Ask a model whether it was trained on photos that you marked. You need the "
                "private record, the unmarked photos (a record made on this page has them), and the model: "
                "a file, or the address of a server. Nothing but the server that you name gets to see a photo.",
            )
        )
    )
    fields, folded = _fields(desk)
    values = [fields[name] for name in INPUTS]
    with gr.Row():
        count = gr.Button("Count the queries", elem_id="check-count")
        start = gr.Button("Start the audit", variant="primary", interactive=False, elem_id="check-start")
    plan = gr.HTML(elem_id="check-plan")
    ready = gr.State(None, time_to_live=DAY, delete_callback=lambda ready: desk.discard(ready and ready["draft"]))
    panel = Panel(
        desk,
        "checks",
        "Audits on this computer",
        "Nothing has been checked yet.",
        _result,
        lambda job, header, address: _start(desk, job, inputs.header_for(job.details, header, address)),
        typed=[fields["header"], fields["address"]],
    )

    def plan_it(ready, *values):
        return _plan(desk, ready, _filled_in(values))

    def begin(request: gr.Request, ready, *values):
        return _begin(desk, panel, request, ready, _filled_in(values))

    count.click(plan_it, [ready, *values], [plan, ready, start, *folded], **look.ASKED)
    start.click(begin, [ready, *values], [plan, ready, start, *panel.outputs], **look.QUIETLY)
    return panel, fields["known"], lambda chosen: _offered(desk, chosen)


def _fields(desk):
    """({name of INPUTS: component}, the accordions of FOLDED)."""
    with gr.Row():
        with gr.Column(min_width=300):
            found = {
                "known": gr.Dropdown(
                    known_records(desk),
                    value=None,
                    label="Record made on this page",
                    interactive=True,
                    elem_id="check-known",
                )
            }
            title = "Or the private record (zip or record.json)"
            found |= inputs.record_fields("check", title)
        with gr.Column(min_width=300):
            found |= inputs.model_field("check")
            found["publications"] = gr.Textbox(
                label="Where the photos were published",
                info="Addresses, one a line, best of archived copies. They go into the evidence.",
                lines=3,
            )
    with gr.Accordion("More about the model", open=False) as more:
        found |= inputs.model_fields()
    with gr.Accordion("Reference models", open=False) as beside:
        found |= inputs.reference_fields(
            "check",
            "It is asked the same as the model. Where some were fixed with the photos, the very files are needed; "
            "others, chosen now, could have been tried out before, so that the proof then holds if you are honest.",
        )
    with gr.Accordion("Depart from the committed plan", open=False):
        found |= _plan_fields()
    return found, (more, beside)


def _plan_fields():
    """What was fixed with the photos, and is better left so: {name of CHOICES: component}."""
    gr.HTML(
        look.shown(
            element(
                "p",
                "Empty: as it was committed with the photos. What is chosen now could have been tried out "
                "before, so that only a much stronger result counts. What it costs is shown before anything is asked.",
            )
        )
    )
    found = {}
    with gr.Row():
        found["label"] = inputs.line("Class of the photos", "A number or a name; auto: what the model says most often.")
        found["keys"] = inputs.line("Other patterns", "How many other marks yours is compared with.")
        found["query_augmentations"] = inputs.line(
            "Views of each photo", "How often each is shown, mirrored and shifted: 1, 2, 4, 8 or 18."
        )
        found["selections"] = inputs.line(
            "Other halves",
            "How many other choices of photos; they cost no queries. 99,999 make up for some departures.",
        )
    with gr.Row():
        found["max_queries"] = inputs.line("Most queries", "Takes fewer other patterns and views where it has to.")
        found["alpha"] = gr.Dropdown(
            ALPHAS, value=AS_COMMITTED, label="Accept a wrong accusation in at most", interactive=True
        )
        found["label_only"] = gr.Checkbox(label="The model only names a class")
        found["without_references"] = gr.Checkbox(label="Without the references that were fixed with the photos")
    found["caption"] = inputs.line(
        "What every photo shows", "For generators that are told captions; empty: what was committed with each photo."
    )
    found["audit_seed"] = inputs.line(
        "A text that the other side adds", "Lets a court or an opponent take part in drawing patterns and halves."
    )
    return found


def known_records(desk):
    """[(title, id)] of what was marked on this page, the newest first."""
    return [
        (f"{job.title}, {job.created.replace('T', ' ')[:16]}", job.id)
        for job in desk.jobs.all("protected")
        if job.state == "done"
    ]


def _offered(desk, chosen):
    """The dropdown of records as they are now; the only one is chosen."""
    there = known_records(desk)
    ids = [job_id for _, job_id in there]
    return gr.update(choices=there, value=chosen if chosen in ids else ids[0] if len(ids) == 1 else None)


def _filled_in(values):
    """{name of INPUTS: value} of what decides an audit. A record that was handed in goes before one of the dropdown,
    which the page itself may choose at any moment: what was counted stays valid."""
    fields = dict(zip(INPUTS, values, strict=True))
    return {**fields, "known": None} if fields["record"] else fields


def _options(fields):
    """What was chosen, as case.Options."""
    published = tuple(line.strip()[:2000] for line in (fields["publications"] or "").splitlines() if line.strip())
    return case.Options(
        label=(fields["label"] or "").strip() or None,
        alpha=float(fields["alpha"]) if fields["alpha"] else None,
        keys=inputs.whole(fields["keys"], "Other patterns", 10**5, least=0),
        query_augmentations=inputs.whole(fields["query_augmentations"], "Views of each photo", MOST_VIEWS),
        selections=inputs.whole(fields["selections"], "Other halves", 10**6, least=0),
        max_queries=inputs.whole(fields["max_queries"], "Most queries", 10**9),
        audit_seed=fields["audit_seed"] or None,
        label_only=bool(fields["label_only"]),
        caption=(fields["caption"] or "").strip()[:2000] or None,
        publications=published,
    )


def _details(desk, draft, fields):
    """What it takes to open the case, now and after a restart: JSON-ready, without the header."""
    folders, log = [], None
    if fields["record"]:
        path = inputs.hand_in_record(desk, draft, fields["record"])
        log = judged.log_of(desk, path)
    elif fields["known"]:
        job = desk.jobs.get(fields["known"])
        if job is None or job.state != "done":
            raise UserError("that record is gone", advice="choose another one")
        path, folders = Path(job.result["record"]), [job.result["originals"]]
    else:
        raise UserError("there is no record yet: choose one made on this page, or hand in the private record")
    details = inputs.model_details(desk, draft, fields)
    if not details["model"]:
        raise UserError("there is no model yet: hand in its file, or give its path or address")
    return {
        **details,
        **_references(desk, draft, fields),
        "record": str(path),
        "folders": inputs.hand_in_originals(desk, draft, fields) or folders,
        "log": log and str(log),
        "options": asdict(_options(fields)),
    }


def _references(desk, draft, fields):
    """What `inputs.reference_details` gives; without references none is asked, though some were fixed."""
    details = inputs.reference_details(desk, draft, fields)
    if fields["without_references"]:
        if details["references"]:
            raise UserError(
                "references are named, and “Without the references that were fixed with the photos” is chosen",
                advice="leave one out",
                flag="--reference",
            )
        details["references"] = []
    return details


def _open(desk, details, header, folder, **server):
    """The Case of a job's details, whose answers lie in `folder`."""
    records.read_finished(details["record"])  # before a model is opened, or a server asked
    suspect = inputs.open_model(details, header, folder, **server)
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in details["options"].items()}
    return case.open_case(
        details["record"],
        details["folders"],
        suspect,
        case.Options(**options),
        folder=folder,
        log=details["log"],
        roots=desk.roots,
        chain=desk.chain,
        references=inputs.open_references(details),
    )


def _number(planned):
    """The id of an audit: a digest of all that decides which images are sent. What is judged by alone, such as alpha,
    the class and references, is not in it: the answers that are there are judged anew."""
    return canonical_digest(
        {
            "commitments": planned.record.commitments,
            "left out": [number for number, path in enumerate(planned.originals) if path is None],
            "model": planned.suspect.identity,
            "preprocessing": planned.suspect.preprocessing.describe(),
            "keys": planned.plan.keys,
            "views": planned.plan.views,
            "audit_seed": planned.plan.audit_seed,
            **({"caption": planned.plan.caption} if planned.plan.caption is not None else {}),
        }
    )[:16]


def _plan(desk, ready, fields):
    """(what would be asked, what it takes to start, the button, the accordions of FOLDED): nothing is sent but a
    server's own metadata."""
    desk.discard(ready and ready["draft"])
    draft = desk.draft()
    try:
        details = _details(desk, draft, fields)
        planned = _open(desk, details, fields["header"], draft.folder, retries=1)  # somebody waits for it
        number = _number(planned)
        if (place := desk.root / "checks" / number).exists():  # with answers, which may not count as asked anew
            planned = _open(desk, details, fields["header"], place, retries=1)
        ready = {
            "number": number,
            "draft": draft,
            "details": {**details, **_judgement(planned)},
            "fields": fields,
            "title": f"{planned.suspect.name} ({planned.photos} photos)",
        }
        return _described(desk, planned, number), ready, gr.update(interactive=True), *_unfolded()
    except Exception as error:
        desk.discard(draft)
        opened = _unfolded(getattr(error, "flag", None))
        return look.shown(look.failed(reason(error))), None, gr.update(interactive=False), *opened


def _unfolded(flag=None):
    """Updates of the accordions of FOLDED: a field that a message is about can be seen."""
    return tuple(gr.update(open=True) if flag in {f"--{name}" for name in names} else gr.skip() for names in FOLDED)


def _judgement(planned):
    """What was shown of the judgement before it began, as it has to be when it begins."""
    return {"judgement": planned.judgement.number, "alpha": planned.judgement.alpha}


def _described(desk, planned, number):
    """The plan, for people: what will be asked, what p will be compared with, and what was judged before."""
    job = desk.jobs.get(number)
    done = (
        "All of them have been answered before: nothing will be sent."
        if job and job.state == "done"
        else "Nothing has been asked yet."
        if job is None
        else "What was answered before is not asked again."
    )
    lost = len(planned.originals) - planned.photos
    figures = [text.partition(": ")[::2] for text in planned.describe().splitlines()]
    hints = (
        *(f"That takes {value}." for name, value in figures if name == "time"),
        *(f"Captions: {value}." for name, value in figures if name == "captions"),
        f"{lost} of {len(planned.originals)} photos are left out: their originals are missing or were changed."
        if lost
        else "",
        ""
        if planned.plan.selections
        else "All photos were published: the test is much weaker than with a "
        "hold-out, and may not find what it could prove otherwise.",
        done,
    )
    return look.shown(
        judged.departures(planned),
        look.notice(
            "info",
            element("p", element("strong", f"{planned.queries:,} queries"), " will be sent to the model."),
            judged.beside(planned),
            element("p", judged.comparison(planned)),
            *(element("p", text) for text in hints if text),
            look.folded(
                "In figures",
                look.facts(
                    [
                        (name, element("code", value) if name == "plan" else value)
                        for name, value in figures
                        if name in ("model", "queries", "references", "plan")
                    ]
                ),
            ),
            role="status",
        ),
        judged.before(planned),
    )


def _begin(desk, panel, request, ready, fields):
    """Start the audit that was planned; one that was begun before is found again and goes on."""
    off, same = gr.update(interactive=False), [gr.skip()] * len(panel.outputs)
    if ready is None or ready["fields"] != fields:
        # Nothing is sent that was not counted.
        text = look.shown(look.failed("What is filled in has changed since the queries were counted; count again."))
        return text, ready, off, *same
    job = desk.jobs.get(ready["number"])
    try:
        if job is None or not job.active:
            settled = desk.settle(ready["draft"], desk.root / "checks" / ready["number"] / "inputs")
            details = inputs.moved(ready["details"], ready["draft"], settled)
            planned = Job(ready["number"], "checks", ready["title"], settled.folder.parent, "", details)
            _start(desk, planned, fields["header"])
        else:
            desk.discard(ready["draft"])
    except Exception as error:
        return look.shown(look.failed(reason(error))), None, off, *same
    return "", None, off, *panel.show(ready["number"], request)


def _start(desk, job, header):
    """Run, or run again, what the details of `job` say."""
    details = job.details

    def ask(running):
        torch.set_num_threads(THREADS)
        if "judgement" not in details:
            raise UserError("this audit was begun by an early version", advice="fill in the fields and count again")
        planned = _open(desk, details, header, running.folder, sleep=running.sleep)
        if _number(planned) != running.id:
            raise UserError(
                "the model or the record has changed since the queries were counted", advice="count them again"
            )
        if _judgement(planned) != {name: details[name] for name in ("judgement", "alpha")}:
            raise UserError(
                "another audit with this record came between, so that this one would be judged otherwise than shown",
                advice="count the queries again",
            )
        planned.run()
        names = sorted(path.name for path in running.folder.glob("evidence*.zip"))
        return {"files": {name: name for name in (*names, "result.json")}, "log": str(planned.log)}

    desk.jobs.start(job.id, "checks", job.title, details, ask)


def _plots(folder, result):
    """The figures that an audit drew: of the pairs, where the exact test was judged; of the bets, photo by photo."""
    if result["pairs"] is not None:
        yield look.figure(
            (folder / "grid.png").read_bytes(),
            f"Histogram of the statistic for all pairs of patterns and halves; the user's own pair lies "
            f"at {result['statistic']:.3g}, {result['at_most']} of {result['pairs']} pairs are as low",
            "The user's own pair beside all others that could have been drawn.",
            class_="plot",
        )
    if "sequential" in result:
        yield look.figure(
            (folder / "wealth.png").read_bytes(),
            f"Evidence after each of {len(result['sequential']['wealth'])} photos, and the line that it has to cross",
            "The evidence after each photo.",
            class_="plot",
        )


def _result(job):
    """The verdict: first what it rests on."""
    result = read_json(job.folder / "result.json")
    return join(
        look.weaknesses(result.get("weaknesses", [EARLY])),
        judged.verdict(result),
        judged.facts(result),
        judged.log(job.result.get("log"), result),
        element(
            "p",
            look.download_link(job, "evidence.zip", "Download the evidence (zip)"),
            look.download_link(job, "result.json", "Download result.json"),
            *(
                look.download_link(job, name, f"Evidence of judgement {name.split('-')[-1].removesuffix('.zip')}")
                for name in job.result["files"]
                if name.startswith("evidence-judgement-")
            ),
        ),
        element(
            "p",
            "The evidence holds every answer of the model and what is disclosed of the record, but no photo and "
            "nothing that marks one. Whoever gets it can check it in the tab Evidence.",
            class_="soft",
        ),
        look.folded(
            "In figures",
            *_plots(job.folder, result),
            look.facts([*judged.figures(result), ("files", element("code", str(job.folder)))]),
        ),
    )
