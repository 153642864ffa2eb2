"""The tab Check: a record, the originals and a model in; the number of queries, then the verdict out.

Public: build.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import gradio as gr
import torch

from page import look
from page.desk import Draft
from page.panel import Panel
from privacy.markup import element, join
from provenance import case, verdict
from runs import UserError, explanation, read_json

ALPHAS = [("1 of 1,000 audits", 1e-3), ("1 of 100 audits", 1e-2), ("1 of 20 audits", 5e-2),
          ("1 of 10,000 audits", 1e-4)]
# Fields of the tab, in the order of its components; those of a model that is asked again after a restart are kept, but
# for the header, which is a secret.
FIELDS = ("known", "record", "originals", "folder", "model", "address", "label", "label_only", "alpha", "max_queries",
          "audit_seed", "net_type", "input_size", "mean", "std", "query_batch", "rate_limit", "header")
FACTS = (("exact p", lambda r: f"{r['p_value']:.3g} ({r['at_most']} of {r['pairs']:,} pairs of keys and selections)"),
         ("photos", lambda r: f"{r['published']} published, {r['photos'] - r['published']} held out"),
         ("class", lambda r: r["label"]), ("queries", lambda r: f"{r['queries']:,}"))


def build(desk):
    """Fill the tab; returns (the Panel of its jobs, the dropdown of records, a function for its choices)."""
    gr.HTML(look.shown(element("p", "Ask a model whether it was trained on photos that you marked. You need the "
                                    "private record, the unmarked photos, and the model: a file, or the address of a "
                                    "server. Nothing but the server that you name gets to see a photo.")))
    fields = _fields(desk) | _more_fields()
    inputs = [fields[name] for name in FIELDS]
    with gr.Row():
        count = gr.Button("Count the queries", elem_id="check-count")
        start = gr.Button("Start the audit", variant="primary", interactive=False, elem_id="check-start")
    plan, ready = gr.HTML(elem_id="check-plan"), gr.State(None)
    panel = Panel(desk, "checks", "Audits on this computer", "Nothing has been checked yet.", _result,
                  lambda job, typed: _start(desk, job.id, job.title, job.details, typed), secret=fields["header"])

    def plan_it(*values):
        return _plan(desk, dict(zip(FIELDS, values, strict=True)))

    def begin(request: gr.Request, ready, *values):
        return _begin(desk, panel, request, ready, dict(zip(FIELDS, values, strict=True)))

    count.click(plan_it, inputs, [plan, ready, start], api_visibility="private")
    start.click(begin, [ready, *inputs], [plan, ready, start, *panel.outputs], show_progress="hidden",
                api_visibility="private")
    return panel, fields["known"], lambda: _records(desk)


def _line(label, info=None, value="", **more):
    return gr.Textbox(value, label=label, info=info, max_lines=1, **more)


def _fields(desk):
    """What everybody fills in: {name of FIELDS: component}."""
    found = {}
    with gr.Row():
        with gr.Column(min_width=300):
            found["known"] = gr.Dropdown(_records(desk), value=None, label="Record made on this page",
                                         interactive=True, elem_id="check-known")
            found["record"] = gr.File(label="Or the private record (zip or record.json)", height=160,
                                      elem_id="check-record")
            found["originals"] = gr.File(label="Original photos, or a zip (not needed for a record of this page)",
                                         file_count="multiple", height=160, elem_id="check-originals")
            found["folder"] = _line("Or the folder with the original photos")
        with gr.Column(min_width=300):
            found["model"] = gr.File(label="Model: .safetensors, .pt, .pth or .onnx", height=160,
                                     elem_id="check-model")
            found["address"] = _line("Or its path or address", "An address of the Open Inference Protocol, or a run "
                                                               "folder of train.py.",
                                     placeholder="http://localhost:8000/v2/models/NAME")
            found["alpha"] = gr.Dropdown(ALPHAS, value=1e-3, label="Accept a wrong accusation in at most",
                                         interactive=True)
            found["max_queries"] = _line("Most queries", "Empty: as many as are useful.")
    return found


def _more_fields():
    """What only some models need: {name of FIELDS: component}."""
    found = {}
    with gr.Accordion("More about the model and the photos", open=False):
        with gr.Row():
            found["label"] = _line("Class of the photos", "A number or a name; auto: what the model says most often.",
                                   "auto")
            found["net_type"] = _line("Architecture", "For files with weights alone: resnet50, ...")
            found["input_size"] = _line("Input size", "Pixels: 224, or height and width.")
        with gr.Row():
            found["mean"] = _line("Mean", "Three numbers, where white is 1.")
            found["std"] = _line("Std", "Three numbers.")
            found["label_only"] = gr.Checkbox(label="The model only names a class")
        with gr.Row():
            found["header"] = _line("Header for the server", "“Name: value”, such as a token. It goes to that server "
                                                             "alone and is not kept.", type="password")
            found["rate_limit"] = _line("Requests a second", "Empty: no limit.")
            found["query_batch"] = _line("Images a request", value="64")
            found["audit_seed"] = _line("A text that the other side adds", "Lets a court or an opponent take part in "
                                                                           "drawing the keys.")
    return found


def _records(desk):
    return [(f"{job.title}, {job.created.replace('T', ' ')[:16]}", job.id) for job in desk.jobs.all("protected")
            if job.state == "done"]


def _numbers(text, name, count):
    """A tuple of numbers out of a field, None where it is empty."""
    parts = text.replace(",", " ").replace(";", " ").split()
    if not parts:
        return None
    try:
        values = tuple(float(part) for part in parts)
    except ValueError:
        values = ()
    if len(values) not in count:
        raise UserError(f"“{name}” takes {' or '.join(map(str, count))} number{'s' if count[-1] > 1 else ''}, not "
                        f"{text!r}")
    return values


def _whole(text, name, most=10**9):
    """A whole number of at least 1 out of a field, None where it is empty."""
    text = (text or "").strip().replace(",", "")
    if not text:
        return None
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise UserError(f"“{name}” takes a whole number of at least 1, not {text!r}")
    return int(text)


def _hand_in(desk, draft, fields):
    """Put the record, the originals and the model that were uploaded into `draft`: (record path, folders, model)."""
    if fields["record"]:
        desk.receive(draft, [fields["record"]], "record")
        record = next(iter(sorted((draft.folder / "record").rglob("record.json"))), None)
        if record is None:
            files = [path for path in sorted((draft.folder / "record").iterdir()) if path.suffix == ".json"]
            if draft.problems or len(files) != 1:
                why = f" ({draft.problems[0][1]})" if draft.problems else ""
                raise UserError(f"{Path(fields['record']).name} holds no record.json{why}; give the zip or the file "
                                "that marking made")
            record = files[0]
        folders = []
    elif fields["known"]:
        job = desk.jobs.get(fields["known"])
        if job is None or job.state != "done":
            raise UserError("that record is gone; choose another one")
        record, folders = Path(job.result["record"]), [job.result["originals"]]
    else:
        raise UserError("there is no record yet: choose one made on this page, or hand in the private record")
    if fields["originals"]:
        desk.receive(draft, fields["originals"])
        folders = [str(draft.photos)]
    elif (fields["folder"] or "").strip():
        folders = [str(Path(fields["folder"].strip()).expanduser())]
    address = (fields["address"] or "").strip()
    if fields["model"]:
        address = str(next((desk.receive(draft, [fields["model"]], "model").folder / "model").iterdir()))
    if not address:
        raise UserError("there is no model yet: hand in its file, or give its path or address")
    return str(record), folders, address


def _details(desk, draft, fields):
    """What it takes to open the case, now and after a restart: JSON-ready, without the header."""
    record, folders, address = _hand_in(desk, draft, fields)
    size = _numbers(fields["input_size"] or "", "Input size", (1, 2))
    size = size and tuple(int(side) for side in size)
    overrides = {"size": size and (size * 2 if len(size) == 1 else size),
                 "mean": _numbers(fields["mean"] or "", "Mean", (3,)),
                 "std": _numbers(fields["std"] or "", "Std", (3,))}
    options = case.Options(label=(fields["label"] or "").strip() or verdict.AUTO, alpha=float(fields["alpha"]),
                           max_queries=_whole(fields["max_queries"], "Most queries"),
                           audit_seed=fields["audit_seed"] or "", label_only=bool(fields["label_only"]))
    return {"record": record, "folders": folders, "model": address, "options": asdict(options),
            "net_type": (fields["net_type"] or "").strip() or None,
            "rate_limit": (_numbers(fields["rate_limit"] or "", "Requests a second", (1,)) or (None,))[0],
            "query_batch": _whole(fields["query_batch"], "Images a request") or 64,
            "overrides": {name: value for name, value in overrides.items() if value is not None}}


def _open(details, header, folder, **server):
    """The Case of a job's details."""
    server = {"headers": [header] if header else [], "rate_limit": details["rate_limit"], **server}
    suspect = case.open_suspect(details["model"], details["net_type"], overrides=details["overrides"],
                                batch_size=details["query_batch"], server=server)
    return case.open_case(details["record"], details["folders"], suspect, case.Options(**details["options"]),
                          folder=folder)


def _plan(desk, fields):
    """(what would be asked, what it takes to start, the button): nothing is sent but a server's own metadata."""
    draft = desk.draft()
    try:
        details = _details(desk, draft, fields)
        case.read_finished(details["record"])
        planned = _open(details, fields["header"], draft.folder, retries=1)  # somebody waits for it
    except Exception as error:
        desk.discard(draft)
        if (text := explanation(error)) is None:
            raise
        return look.shown(look.failed(text)), None, gr.update(interactive=False)
    model, queries = planned.describe().split("\n")
    held = len(planned.record.photos) - int(planned.record.published.sum())
    hint = "" if held else ("All photos were published: the test is much weaker than with a hold-out, and may not find "
                            "what it could prove otherwise.")
    identity = {"commitment": planned.record.commitments[-1], "model": planned.suspect.identity,
                "preprocessing": planned.suspect.preprocessing.describe(), "batch": planned.suspect.batch_size,
                "audit": planned.settings}
    number = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    text = look.shown(look.notice(
        "info", element("p", element("strong", f"{planned.queries:,} queries"), " will be sent to the model. "
                             f"The strongest result that can come out is p = {planned.plan.smallest_p:.2g}."),
        look.facts([("model", model.removeprefix("model: ")), ("queries", queries.removeprefix("queries: "))]),
        element("p", hint) if hint else element("p", "Nothing has been asked yet.", class_="soft"), role="status"))
    ready = {"number": number, "draft": draft, "details": details, "fields": fields,
             "title": f"{planned.suspect.name} ({len(planned.record.photos)} photos)"}
    return text, ready, gr.update(interactive=True)


def _begin(desk, panel, request, ready, fields):
    """Start the audit that was planned; one that was begun before is found again and goes on."""
    off = gr.update(interactive=False)
    if ready is None or ready["fields"] != fields:
        # Nothing is sent that was not counted.
        text = look.shown(look.failed("What is filled in has changed since the queries were counted; count again."))
        return text, None, off, *[gr.skip()] * len(panel.outputs)
    number, details = ready["number"], ready["details"]
    folder, job = desk.root / "checks" / number, desk.jobs.get(ready["number"])
    if job is None:
        settled = desk.settle(ready["draft"], folder / "inputs")
        details = _moved(details, ready["draft"], settled)
    else:
        desk.discard(ready["draft"])
        details = job.details
    if job is None or job.state != "done":
        _start(desk, number, ready["title"], details, fields["header"])
    return "", None, off, *panel.show(number, request)


def _moved(details, old: Draft, new: Draft):
    """The details after their draft has got its place."""
    def move(text):
        path = Path(text)
        return str(new.folder / path.relative_to(old.folder)) if path.is_relative_to(old.folder) else text
    return {**details, "record": move(details["record"]), "model": move(details["model"]),
            "folders": [move(path) for path in details["folders"]]}


def _start(desk, number, title, details, header):
    def ask(job):
        torch.set_num_threads(max(1, torch.get_num_threads()))
        planned = _open(details, header, job.folder, sleep=job.sleep)
        planned.run()
        return {"files": {"evidence.zip": "evidence.zip", "result.json": "result.json"},
                "evidence": planned.record.evidence}
    desk.jobs.start(number, "checks", title, details, ask)


def _result(job):
    """The verdict."""
    try:
        result, plot = read_json(job.folder / "result.json"), (job.folder / "grid.png").read_bytes()
        pairs = [(name, value(result)) for name, value in FACTS]
    except (UserError, OSError, KeyError, TypeError):
        return look.failed(f"The files of this audit are gone or damaged; they lay in {job.folder}")
    note = "" if job.result.get("evidence", True) else look.notice(
        "warn", "The key of this record was drawn from a number, for experiments: this is no evidence.")
    return join(
        look.notice("good" if result["detected"] else "info",
                    element("p", element("strong", "USED" if result["detected"] else "Not shown")),
                    element("p", result["sentences"], class_="verdict"), role="status"), note,
        look.facts([*pairs, ("commitment", element("code", result["commitment"])),
                    ("files on this computer", element("code", str(job.folder)))]),
        look.figure(plot, f"Histogram of the statistic for all pairs of keys and selections; the user's own pair lies "
                          f"at {result['statistic']:.3g}, {result['at_most']} of {result['pairs']} pairs are as low",
                    "The user's own pair beside all others that could have been drawn.", class_="plot"),
        element("p", look.download_link(job, "evidence.zip", "Download the evidence (zip)"),
                look.download_link(job, "result.json", "Download result.json")),
        element("p", "The evidence holds every answer of the model and the public part of the record; "
                     "“python eval.py --replay evidence.zip” recomputes p from it without the model.", class_="soft"))
