"""The tab Evidence: somebody else's bundle in; what it shows, what it can't show, and whether it fits itself out.

Public: build.
"""

import secrets
from datetime import datetime
from pathlib import Path

import gradio as gr
import torch

from kit.errors import UserError
from kit.files import read_json, write_json
from kit.markup import element, join
from page import look
from page.jobs import reason
from page.panel import Panel
from page.tabs import inputs, judged
from page.words import of_error, plain
from provenance import beacon, replay
from provenance import record as records

THREADS = torch.get_num_threads()
# The fields of the tab, in the order of its components.
INPUTS = ("bundle", *inputs.RECORD, *inputs.MODEL, *inputs.REFERENCES, "witness_key", "chain", "roots")


def build(desk):
    """Fill the tab; returns the Panel of its jobs."""
    gr.HTML(
        look.shown(
            element(
                "p",
                "Somebody says that a model used their photos, and gave you evidence.zip. Its arithmetic, its draw and "
                "its plan are checked here, without a network. With the disclosed record and photos every "
                "question that was asked is rebuilt; with the model, too, its answers are asked for again, and so are "
                "those of references.",
            )
        )
    )
    fields = _fields()
    start = gr.Button("Check the evidence", variant="primary", elem_id="evidence-start")
    refused = gr.HTML(elem_id="evidence-refused")
    panel = Panel(
        desk,
        "replays",
        "Evidence that was checked on this computer",
        "No evidence has been checked yet.",
        _result,
        lambda job, header, address: _start(
            desk, job.id, job.title, job.details, inputs.header_for(job.details, header, address)
        ),
        typed=[fields["header"], fields["address"]],
    )

    def begin(request: gr.Request, *values):
        return _begin(desk, panel, request, dict(zip(INPUTS, values, strict=True)))

    start.click(begin, [fields[name] for name in INPUTS], [refused, *panel.outputs], **look.QUIETLY)
    return panel


def _fields():
    """{name of INPUTS: component}."""
    with gr.Row():
        with gr.Column(min_width=300):
            found = {"bundle": gr.File(label="Evidence: evidence.zip", height=160, elem_id="evidence-bundle")}
            found |= inputs.model_field("evidence", "The model, if you have it")
        with gr.Column(min_width=300):
            found |= inputs.record_fields("evidence", "The disclosed record (zip or record.json)")
    with gr.Accordion("Reference models, if the audit asked some", open=False):
        found |= inputs.reference_fields("evidence", "Given the files that the audit used, they are asked again.")
    with gr.Accordion("More about the model, the witness, the beacon and time stamps", open=False):
        found |= inputs.model_fields()
        found["witness_key"] = inputs.line(
            "Key of a witness", "Of whoever ran the audit, and whom you trust: 64 letters and digits."
        )
        with gr.Row():
            found["chain"] = gr.File(label="Facts of another beacon (JSON)", height=120, elem_id="evidence-chain")
            found["roots"] = gr.File(label="Certificates for time stamps (PEM)", height=120, elem_id="evidence-roots")
    return found


def _details(desk, draft, fields):
    """What it takes to check it, now and after a restart: JSON-ready, without the header."""
    if not fields["bundle"]:
        raise UserError("there is no evidence yet: hand in evidence.zip")
    files = {}
    for name in ("bundle", "chain", "roots"):
        if fields[name]:
            desk.receive(draft, [fields[name]], name, unpacked=False)
            files[name] = str(next((draft.folder / name).iterdir()))
    if "chain" in files:
        beacon.read_chain(files["chain"])
    record = inputs.hand_in_record(desk, draft, fields["record"]) if fields["record"] else None
    if record:
        records.read_record(record)
    details = inputs.model_details(desk, draft, fields) | inputs.reference_details(desk, draft, fields)
    folders = inputs.hand_in_originals(desk, draft, fields)
    if (details["model"] or details["references"] or folders) and not record:
        raise UserError(
            "the record is missing", advice="photos and models are of use with the disclosed record; hand it in, too"
        )
    own = {"record": record and str(record), "folders": folders, "witness_key": fields["witness_key"].strip() or None}
    return {**details, "chain": None, "roots": None, **files, **own}


def _begin(desk, panel, request, fields):
    """Start checking what was handed in."""
    same = [gr.skip()] * len(panel.outputs)
    number = f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    draft = desk.draft()
    try:
        details = _details(desk, draft, fields)
        settled = desk.settle(draft, desk.root / "replays" / number / "inputs")
        _start(desk, number, Path(details["bundle"]).name, inputs.moved(details, draft, settled), fields["header"])
    except Exception as error:
        desk.discard(draft)
        return look.shown(look.failed(reason(error))), *same
    return "", *panel.show(number, request)


def _start(desk, number, title, details, header):
    desk.jobs.start(number, "replays", title, details, lambda job: _check(desk, job, header))


def _check(desk, job, header):
    """The work of a job: what `eval.py --replay` does."""
    details = job.details
    torch.set_num_threads(THREADS)
    trusted = {
        "chain": beacon.read_chain(details["chain"]) if details["chain"] else desk.chain,
        "roots": details["roots"] or desk.roots,
        "witness_key": details["witness_key"],
    }
    try:
        found = replay.replay(details["bundle"], **trusted)
    except UserError as problem:  # of the bundle: nothing else was looked at
        return {"refused": of_error(problem).replace(details["bundle"], Path(details["bundle"]).name)}
    if details["record"]:
        suspect = inputs.open_model(details, header, sleep=job.sleep) if details["model"] else None
        found = replay.replay(
            details["bundle"],
            details["record"],
            details["folders"],
            suspect,
            job.folder / "asked-again",
            references=inputs.open_references(details) or (),
            **trusted,
        )
    kept = {
        **found.result,
        "weaknesses": found.weaknesses,
        "rows": found.rows,
        "right": found.right,
        "model": found.document["model"],
        "judgement": found.document["judgement"],
        "log": found.document["log"],
        "references": found.document.get("references", []),
        "publications": found.document["publications"],
    }
    write_json(job.folder / "result.json", kept)
    return {"files": {"result.json": "result.json"}}


def _result(job):
    """What was found: first what it rests on."""
    if "refused" in job.result:
        return look.notice(
            "bad",
            element("p", element("strong", "This evidence proves nothing")),
            element("p", job.result["refused"]),
            role="alert",
        )
    result = read_json(job.folder / "result.json")
    return join(
        look.weaknesses(result["weaknesses"]),
        _fits(result),
        judged.verdict(result),
        look.facts(
            [("model", judged.model_name(result["model"])), *((name, plain(text)) for name, text in result["rows"])]
        ),
        judged.facts(result),
        judged.stored_log(result["log"]),
        look.problems("Where the photos are said to be published:", [(place, "") for place in result["publications"]]),
        element("p", look.download_link(job, "result.json", "Download result.json")),
        look.folded("In figures", look.facts(judged.figures(result))),
    )


def _rows(result):
    published = [("said to be published at", place[:2000]) for place in result["publications"][:20]]
    return [(name, plain(text)) for name, text in result["rows"]] + published


def _fits(result):
    if result["right"]:
        return look.notice("info", "What could be checked fits. What could not be checked is named above, if anything.")
    return look.notice(
        "bad",
        element("p", element("strong", "Not everything fits")),
        element("p", "Images or answers in this evidence are not those that record and model give; see below."),
        role="alert",
    )
