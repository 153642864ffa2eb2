"""The tab Check: a record, the originals and a model in; the number of queries, then the verdict out.

Public: build.
"""

import math
from dataclasses import asdict
from pathlib import Path

import gradio as gr
import torch

from attacks import exact
from kit.errors import UserError
from kit.files import canonical_digest, read_json
from kit.markup import element, join
from page import look
from page.desk import DAY, Draft, typed_path
from page.jobs import Job, reason
from page.panel import Panel
from provenance import case

THREADS = torch.get_num_threads()  # before marking, whose threads have a core each, changes it
ALPHAS = [
    ("1 of 1,000 audits", 1e-3),
    ("1 of 100 audits", 1e-2),
    ("1 of 20 audits", 5e-2),
    ("1 of 10,000 audits", 1e-4),
]
# The fields of the tab, in the order of its components. All are kept with the audit but the header, which is a secret.
INPUTS = (
    "known",
    "record",
    "originals",
    "folder",
    "model",
    "address",
    "label",
    "label_only",
    "alpha",
    "max_queries",
    "audit_seed",
    "net_type",
    "input_size",
    "mean",
    "std",
    "query_batch",
    "rate_limit",
    "header",
)
FACTS = (
    ("exact p", lambda r: f"{r['p_value']:.3g} ({r['at_most']} of {r['pairs']:,} pairs of keys and selections)"),
    ("photos", lambda r: f"{r['published']} published, {r['photos'] - r['published']} held out"),
    ("class", lambda r: r["label"]),
    ("queries", lambda r: f"{r['queries']:,}"),
)


def build(desk):
    """Fill the tab; returns (the Panel of its jobs, the dropdown of records, a function for its choices)."""
    gr.HTML(
        look.shown(
            element(
                "p",
                "Ask a model whether it was trained on photos that you marked. You need the "
                "private record, the unmarked photos, and the model: a file, or the address of a "
                "server. Nothing but the server that you name gets to see a photo.",
            )
        )
    )
    fields = _fields(desk) | _more_fields()
    inputs = [fields[name] for name in INPUTS]
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
        lambda job: _result(desk, job),
        lambda job, header, address: _start(desk, job, _header_for(job.details, header, address)),
        typed=[fields["header"], fields["address"]],
    )

    def plan_it(ready, *values):
        return _plan(desk, ready, dict(zip(INPUTS, values, strict=True)))

    def begin(request: gr.Request, ready, *values):
        return _begin(desk, panel, request, ready, dict(zip(INPUTS, values, strict=True)))

    count.click(plan_it, [ready, *inputs], [plan, ready, start], api_visibility="private")
    start.click(
        begin, [ready, *inputs], [plan, ready, start, *panel.outputs], show_progress="hidden", api_visibility="private"
    )
    return panel, fields["known"], lambda: _records(desk)


def _line(label, info=None, value="", **more):
    return gr.Textbox(value, label=label, info=info, max_lines=1, **more)


def _fields(desk):
    """What everybody fills in: {name of INPUTS: component}."""
    found = {}
    with gr.Row():
        with gr.Column(min_width=300):
            found["known"] = gr.Dropdown(
                _records(desk), value=None, label="Record made on this page", interactive=True, elem_id="check-known"
            )
            found["record"] = gr.File(
                label="Or the private record (zip or record.json)", height=160, elem_id="check-record"
            )
            found["originals"] = gr.File(
                label="Original photos, or a zip (not needed for a record of this page)",
                file_count="multiple",
                height=160,
                elem_id="check-originals",
            )
            found["folder"] = _line("Or the folder with the original photos")
        with gr.Column(min_width=300):
            found["model"] = gr.File(label="Model: .safetensors, .pt, .pth or .onnx", height=160, elem_id="check-model")
            found["address"] = _line(
                "Or its path or address",
                "An address of the Open Inference Protocol, or a run folder of train.py.",
                placeholder="http://localhost:8000/v2/models/NAME",
            )
            found["alpha"] = gr.Dropdown(
                ALPHAS, value=1e-3, label="Accept a wrong accusation in at most", interactive=True
            )
            found["max_queries"] = _line("Most queries", "Empty: as many as are useful.")
    return found


def _more_fields():
    """What only some models need: {name of INPUTS: component}."""
    found = {}
    with gr.Accordion("More about the model and the photos", open=False):
        with gr.Row():
            found["label"] = _line(
                "Class of the photos", "A number or a name; auto: what the model says most often.", "auto"
            )
            found["net_type"] = _line("Architecture", "For files with weights alone: resnet50, ...")
            found["input_size"] = _line("Input size", "Pixels: 224, or height and width.")
        with gr.Row():
            found["mean"] = _line("Mean", "Three numbers, where white is 1.")
            found["std"] = _line("Std", "Three numbers.")
            found["label_only"] = gr.Checkbox(label="The model only names a class")
        with gr.Row():
            found["header"] = _line(
                "Header for the server",
                "“Name: value”, such as a token. It goes to that server alone and is not kept.",
                type="password",
            )
            found["rate_limit"] = _line("Requests a second", "Empty: no limit.")
            found["query_batch"] = _line("Images a request", value="64")
            found["audit_seed"] = _line(
                "A text that the other side adds", "Lets a court or an opponent take part in drawing the keys."
            )
    return found


def _records(desk):
    return [
        (f"{job.title}, {job.created.replace('T', ' ')[:16]}", job.id)
        for job in desk.jobs.all("protected")
        if job.state == "done"
    ]


def _numbers(text, name, count):
    """A tuple of numbers out of a field, None where it is empty."""
    parts = (text or "").replace(",", " ").replace(";", " ").split()
    if not parts:
        return None
    try:
        values = tuple(float(part) for part in parts)
    except ValueError:
        values = ()
    if len(values) != count or not all(map(math.isfinite, values)):
        raise UserError(f"“{name}” takes {count} number{'s' if count > 1 else ''}, not {text!r}")
    return values


def _whole(text, name, most):
    """A whole number of 1 to `most` out of a field, None where it is empty."""
    text = (text or "").strip().replace(",", "")
    if not text:
        return None
    # Looked at before it is read: a number of thousands of digits would take its time.
    if not text.isdecimal() or len(text) > len(str(most)) or not 1 <= int(text) <= most:
        raise UserError(f"“{name}” takes a whole number from 1 to {most:,}, not {text[:20]!r}")
    return int(text)


def _size(text):
    """(height, width) out of a field with one number or two, None where it is empty."""
    sides = [_whole(part, "Input size", 4096) for part in (text or "").replace(",", " ").replace("x", " ").split()]
    if len(sides) > 2:
        raise UserError(f"“Input size” takes one number, or height and width, not {text!r}")
    return (sides * 2 if len(sides) == 1 else sides) or None


def _handed_in_record(desk, draft, upload):
    """The path of the record in an upload, record.json itself or the zip with it."""
    desk.receive(draft, [upload], "record")
    folder, name = draft.folder / "record", Path(upload).name
    files = sorted(folder.rglob("record.json")) or sorted(folder.glob("*.json"))
    if draft.problems or len(files) != 1:
        why = draft.problems[0][1] if draft.problems else f"it has {len(files) or 'no'} records"
        raise UserError(f"{name}: {why}", advice="give the zip or the record.json that marking made")
    return files[0]


def _hand_in(desk, draft, fields):
    """Put what was uploaded into `draft`: (record path, folders of originals, model's path or address)."""
    folders = []
    if fields["record"]:
        record = _handed_in_record(desk, draft, fields["record"])
    elif fields["known"]:
        job = desk.jobs.get(fields["known"])
        if job is None or job.state != "done":
            raise UserError("that record is gone", advice="choose another one")
        record, folders = Path(job.result["record"]), [job.result["originals"]]
    else:
        raise UserError("there is no record yet: choose one made on this page, or hand in the private record")
    if fields["originals"]:
        desk.receive(draft, fields["originals"])
        folders = [str(draft.photos)]
    elif folder := typed_path(fields["folder"]):
        folders = [str(folder)]
    address = (fields["address"] or "").strip()
    if fields["model"]:
        desk.receive(draft, [fields["model"]], "model", unpacked=False)
        address = str(next((draft.folder / "model").iterdir()))
    elif not address.startswith(("http://", "https://")):
        address = str(typed_path(address) or "")
    if not address:
        raise UserError("there is no model yet: hand in its file, or give its path or address")
    return str(record), folders, address


def _details(desk, draft, fields):
    """What it takes to open the case, now and after a restart: JSON-ready, without the header."""
    record, folders, address = _hand_in(desk, draft, fields)
    overrides = {
        "size": _size(fields["input_size"]),
        "mean": _numbers(fields["mean"], "Mean", 3),
        "std": _numbers(fields["std"], "Std", 3),
    }
    options = case.Options(
        label=(fields["label"] or "").strip() or exact.AUTO,
        alpha=float(fields["alpha"]),
        max_queries=_whole(fields["max_queries"], "Most queries", 10**9),
        audit_seed=fields["audit_seed"] or "",
        label_only=bool(fields["label_only"]),
    )
    rate = _numbers(fields["rate_limit"], "Requests a second", 1)
    return {
        "record": record,
        "folders": folders,
        "model": address,
        "options": asdict(options),
        "net_type": (fields["net_type"] or "").strip() or None,
        "rate_limit": rate and rate[0],
        "query_batch": _whole(fields["query_batch"], "Images a request", 4096) or 64,
        "overrides": {name: value for name, value in overrides.items() if value is not None},
    }


def _open(details, header, folder, **server):
    """The Case of a job's details."""
    server = {"headers": [header] if header else [], "rate_limit": details["rate_limit"], **server}
    overrides = {name: tuple(value) for name, value in details["overrides"].items()}
    suspect = case.open_suspect(
        details["model"], details["net_type"], overrides=overrides, batch_size=details["query_batch"], server=server
    )
    return case.open_case(
        details["record"], details["folders"], suspect, case.Options(**details["options"]), folder=folder
    )


def _subject(planned):
    """Digest of whom is asked about what: audits that differ in keys or in the drawn text alone share it."""
    return _digest({"commitment": planned.record.commitments[-1], "model": planned.suspect.identity})


def _number(planned):
    """The id of an audit: a digest of all that decides which images are sent. What is judged by alone, such as alpha
    and the class, is not in it: the answers that are there are judged anew."""
    return _digest(
        {
            "subject": _subject(planned),
            "preprocessing": planned.suspect.preprocessing.describe(),
            "batch": planned.suspect.batch_size,
            "keys": planned.plan.keys,
            "audit_seed": planned.options.audit_seed,
        }
    )


def _digest(value):
    return canonical_digest(value)[:16]


def _plan(desk, ready, fields):
    """(what would be asked, what it takes to start, the button): nothing is sent but a server's own metadata."""
    desk.discard(ready and ready["draft"])
    draft = desk.draft()
    try:
        details = _details(desk, draft, fields)
        case.read_finished(details["record"])
        planned = _open(details, fields["header"], draft.folder, retries=1)  # somebody waits for it
        ready = {
            "number": _number(planned),
            "draft": draft,
            "details": {**details, "subject": _subject(planned)},
            "fields": fields,
            "title": f"{planned.suspect.name} ({len(planned.record.photos)} photos)",
        }
        return _described(desk, planned, ready), ready, gr.update(interactive=True)
    except Exception as error:
        desk.discard(draft)
        return look.shown(look.failed(reason(error))), None, gr.update(interactive=False)


def _described(desk, planned, ready):
    """The plan, for people."""
    model, _, queries = planned.describe().rpartition("\n")
    job = desk.jobs.get(ready["number"])
    done = (
        "All of them have been answered before: nothing will be sent."
        if job and job.state == "done"
        else "Nothing has been asked yet."
        if job is None
        else "What was answered before is not asked again."
    )
    hint = (
        ""
        if planned.plan.selections
        else (
            "All photos were published: the test is much weaker than with a "
            "hold-out, and may not find what it could prove otherwise."
        )
    )
    return look.shown(
        look.notice(
            "info",
            element(
                "p",
                element("strong", f"{planned.queries:,} queries"),
                " will be sent to the "
                "model. The strongest result that can come out is "
                f"p = {planned.plan.smallest_p:.2g}.",
            ),
            look.facts([("model", model.removeprefix("model: ")), ("queries", queries.removeprefix("queries: "))]),
            *(element("p", text) for text in (hint, done) if text),
            role="status",
        ),
        _others(desk, ready["number"], ready["details"]["subject"]),
    )


def _others(desk, number, subject):
    """The other audits of the same record and model: whoever repeats until it pleases has to show it."""
    rows = []
    for job in desk.jobs.all("checks"):
        if job.id != number and job.details.get("subject") == subject:
            p = job.result.get("p_value")
            rows.append(
                (
                    job.created.replace("T", " ")[:16],
                    f"p = {p:.3g}" if p is not None else look.STATES[job.state].lower(),
                )
            )
    return look.problems(
        "This record and this model were audited before, with other keys. All results count together: "
        f"of {len(rows) + 1} audits of an innocent model the best is more likely to look guilty.",
        rows,
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
            planned = Job(
                ready["number"],
                "checks",
                ready["title"],
                settled.folder.parent,
                "",
                _moved(ready["details"], ready["draft"], settled),
            )
            _start(desk, planned, fields["header"])
        else:
            desk.discard(ready["draft"])
    except Exception as error:
        return look.shown(look.failed(reason(error))), None, off, *same
    return "", None, off, *panel.show(ready["number"], request)


def _moved(details, old: Draft, new: Draft):
    """The details after their draft has got its place."""

    def move(text):
        path = Path(text)
        return str(new.folder / path.relative_to(old.folder)) if path.is_relative_to(old.folder) else text

    return {
        **details,
        "record": move(details["record"]),
        "model": move(details["model"]),
        "folders": [move(path) for path in details["folders"]],
    }


def _header_for(details, header, address):
    """The header that was typed, if it is for the server of these details and no other."""
    return header if (address or "").strip() == details["model"] else ""


def _start(desk, job, header):
    """Run, or run again, what the details of `job` say."""
    details = job.details

    def ask(running):
        torch.set_num_threads(THREADS)
        planned = _open(details, header, running.folder, sleep=running.sleep)
        if _number(planned) != running.id:
            raise UserError(
                "the model or the record has changed since the queries were counted", advice="count them again"
            )
        result = planned.run()
        return {
            "files": {"evidence.zip": "evidence.zip", "result.json": "result.json"},
            "evidence": planned.record.evidence,
            "p_value": result["p_value"],
        }

    desk.jobs.start(job.id, "checks", job.title, details, ask)


def _result(desk, job):
    """The verdict."""
    result, plot = read_json(job.folder / "result.json"), (job.folder / "grid.png").read_bytes()
    note = (
        ""
        if job.result["evidence"]
        else look.notice(
            "warn", "The key of this record was drawn from a number, for experiments: this is no evidence."
        )
    )
    return join(
        look.notice(
            "good" if result["detected"] else "info",
            element("p", element("strong", "USED" if result["detected"] else "Not shown")),
            element("p", result["sentences"], class_="verdict"),
            role="status",
        ),
        note,
        _others(desk, job.id, job.details["subject"]),
        look.facts(
            [
                *((name, value(result)) for name, value in FACTS),
                ("commitment", element("code", result["commitment"])),
                ("files on this computer", element("code", str(job.folder))),
            ]
        ),
        look.figure(
            plot,
            f"Histogram of the statistic for all pairs of keys and selections; the user's own pair lies "
            f"at {result['statistic']:.3g}, {result['at_most']} of {result['pairs']} pairs are as low",
            "The user's own pair beside all others that could have been drawn.",
            class_="plot",
        ),
        element(
            "p",
            look.download_link(job, "evidence.zip", "Download the evidence (zip)"),
            look.download_link(job, "result.json", "Download result.json"),
        ),
        element(
            "p",
            "The evidence holds every answer of the model and the public part of the record; "
            "“python eval.py --replay evidence.zip” recomputes p from it without the model.",
            class_="soft",
        ),
    )
