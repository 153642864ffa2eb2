"""Fields that tabs share: a record with its originals, a model, and references; and what is read out of them.

Public: line, record_fields, model_field, model_fields, reference_fields, RECORD, MODEL, HIDDEN, REFERENCES, numbers,
whole, size, hand_in_record, hand_in_originals, model_details, open_model, reference_details, open_references,
header_for, moved.
"""

import math
from pathlib import Path

import gradio as gr

from kit.errors import UserError
from kit.markup import element
from page import look
from page.desk import typed_path
from page.words import flag_of
from provenance import opening
from provenance import record as records
from provenance import references as references_of
from suspects.server import is_address

RECORD = ("record", "originals", "folder")
# Needed by some models alone. All are kept with a job but the header, which is a secret.
HIDDEN = ("net_type", "input_size", "mean", "std", "query_batch", "rate_limit", "base_model", "model_config", "header")
MODEL = ("model", "address", *HIDDEN)
REFERENCES = ("reference", "reference_path", "reference_net_type")


def line(label, info=None, value="", **more):
    """A field for one line of text."""
    return gr.Textbox(value, label=label, info=info, max_lines=1, **more)


def record_fields(name, title):
    """The fields of RECORD, below each other; name: of the tab, for the elements' ids."""
    return {
        "record": gr.File(label=title, height=160, elem_id=f"{name}-record"),
        "originals": gr.File(
            label="Original photos, or a zip", file_count="multiple", height=160, elem_id=f"{name}-originals"
        ),
        "folder": line("Or the folder with the original photos"),
    }


def model_field(name, title="Model: .safetensors, .pt, .pth or .onnx"):
    """Its file, or its address: {name of MODEL: component}."""
    return {
        "model": gr.File(label=title, height=160, elem_id=f"{name}-model"),
        "address": line(
            "Or its path or address",
            "An address of the Open Inference Protocol (grpc://host:port/NAME, too), a run folder of train.py, or a "
            "generator's or encoder's folder.",
            placeholder="http://localhost:8000/v2/models/NAME",
        ),
    }


def model_fields():
    """The fields of HIDDEN: {name: component}."""
    found = {}
    with gr.Row():
        found["net_type"] = line("Architecture", "For files with weights alone: resnet50, ...")
        found["input_size"] = line("Input size", "Pixels: 224, or height and width.")
        found["query_batch"] = line("Images a request", value="64")
    with gr.Row():
        found["mean"] = line("Mean", "Three numbers, where white is 1.")
        found["std"] = line("Std", "Three numbers.")
        found["rate_limit"] = line("Requests a second", "Empty: no limit.")
    with gr.Row():
        found["base_model"] = line(
            "Base model", "Path of what a LoRA changes, or of what a generator or an encoder was made of."
        )
        found["model_config"] = line(
            "Folder of its kind",
            "For a generator in a single file: one with model_index.json that says what it is.",
        )
    found["header"] = line(
        "Header for the server",
        "“Name: value”, such as a token. It goes to that server alone and is not kept.",
        type="password",
    )
    return found


def reference_fields(tab, *more):
    """The fields of REFERENCES, in their order, below a word on what references are for; tab: as in `record_fields`;
    more: texts, what that tab does with them.
    """
    what = (
        "A reference is a model that has not seen the photos. It tells how difficult each photo is for anybody, so "
        "that what is merely easy is not taken for memory."
    )
    gr.HTML(look.shown(element("p", " ".join((what, *more)))))
    return {
        "reference": gr.File(label="Reference models", file_count="multiple", height=160, elem_id=f"{tab}-reference"),
        "reference_path": line("Or the path of one", "A file, a run folder of train.py, or the address of a server."),
        "reference_net_type": line("Network of a reference", "For files with weights alone: resnet50, ..."),
    }


def numbers(text, name, count):
    """A tuple of numbers out of a field, None where it is empty."""
    parts = (text or "").replace(",", " ").replace(";", " ").split()
    if not parts:
        return None
    try:
        values = tuple(float(part) for part in parts)
    except ValueError:
        values = ()
    if len(values) != count or not all(map(math.isfinite, values)):
        raise UserError(f"“{name}” takes {count} number{'s' if count > 1 else ''}, not {text!r}", flag=flag_of(name))
    return values


def whole(text, name, most, least=1):
    """A whole number of `least` to `most` out of a field, None where it is empty."""
    text = (text or "").strip().replace(",", "")
    if not text:
        return None
    # Looked at before it is read: a number of thousands of digits would take its time.
    if not text.isdecimal() or len(text) > len(str(most)) or not least <= int(text) <= most:
        raise UserError(
            f"“{name}” takes a whole number from {least} to {most:,}, not {text[:20]!r}", flag=flag_of(name)
        )
    return int(text)


def size(text):
    """(height, width) out of a field with one number or two, None where it is empty."""
    sides = [whole(part, "Input size", 4096) for part in (text or "").replace(",", " ").replace("x", " ").split()]
    if len(sides) > 2:
        raise UserError(f"“Input size” takes one number, or height and width, not {text!r}", flag=flag_of("Input size"))
    return (sides * 2 if len(sides) == 1 else sides) or None


def hand_in_record(desk, draft, upload):
    """The path of the record in an upload, record.json itself or the zip with it."""
    desk.receive(draft, [upload], "record")
    folder, name = draft.folder / "record", Path(upload).name
    files = sorted(folder.rglob("record.json")) or sorted(folder.glob("*.json"))
    if draft.problems or len(files) != 1:
        why = draft.problems[0][1] if draft.problems else f"it has {len(files) or 'no'} records"
        raise UserError(f"{name}: {why}", advice="give the zip or the record.json that marking made")
    return files[0]


def hand_in_originals(desk, draft, fields):
    """Folders with the originals that were handed in or named: a list of paths, as text."""
    if fields["originals"]:
        desk.receive(draft, fields["originals"])
        return [str(draft.photos)]
    return [str(folder)] if (folder := typed_path(fields["folder"])) else []


def model_details(desk, draft, fields):
    """What it takes to open the model, now and after a restart: JSON-ready, without the header; model: None where
    none was named.
    """
    files = _model_files(desk, draft, [fields["model"]] if fields["model"] else [], "model")
    address = files[0] if files else _place(fields["address"])
    overrides = {
        "size": size(fields["input_size"]),
        "mean": numbers(fields["mean"], "Mean", 3),
        "std": numbers(fields["std"], "Std", 3),
    }
    rate = numbers(fields["rate_limit"], "Requests a second", 1)
    return {
        "model": address,
        "net_type": (fields["net_type"] or "").strip() or None,
        "rate_limit": rate and rate[0],
        "query_batch": whole(fields["query_batch"], "Images a request", 4096) or 64,
        "base_model": _path(fields["base_model"]),
        "model_config": _path(fields["model_config"]),
        "overrides": {name: value for name, value in overrides.items() if value is not None},
    }


def open_model(details, header, folder=None, **server):
    """The Suspect of `model_details`.

    folder: of the audit, for a server to be fed as when it began; server: more keyword arguments of
    `server.open_server`.
    """
    options = {"headers": [header] if header else [], "rate_limit": details["rate_limit"], **server}
    if folder is not None and is_address(details["model"]):
        options["stored"] = opening.stored_input(details["record"], details["model"], folder)
    return opening.open_suspect(
        details["model"],
        options,
        net_type=details["net_type"],
        overrides={name: tuple(value) for name, value in details["overrides"].items()},
        batch_size=details["query_batch"],
        signal=records.read_finished(details["record"]).plan.signal,
        base=details.get("base_model"),  # details of an early version have none
        config=details.get("model_config"),
    )


def reference_details(desk, draft, fields):
    """What it takes to open the references, as in `model_details`: references is None where none was named."""
    files = _model_files(desk, draft, fields["reference"] or [], "references")
    place = _place(fields["reference_path"])
    return {
        "references": [*files, *([place] if place else [])] or None,
        "reference_net_type": (fields["reference_net_type"] or "").strip() or None,
    }


def open_references(details):
    """The models of `reference_details` as Suspects; None for None, and for details of an early version."""
    return references_of.open_models(
        details.get("references"), details.get("reference_net_type"), batch_size=details.get("query_batch", 64)
    )


def _model_files(desk, draft, uploads, name):
    """Paths, as text, of models' files that were handed in, in the draft's folder `name`; they may be zips inside."""
    if not uploads:
        return []
    desk.receive(draft, uploads, name, unpacked=False)
    return sorted(map(str, (draft.folder / name).iterdir()))


def _place(text):
    """The path (absolute) or address that somebody typed for a model, as text; None where nothing was typed."""
    text = (text or "").strip()
    return text if is_address(text) else _path(text)


def _path(text):
    """The absolute path that somebody typed, as text; None where nothing was typed."""
    return str(path) if (path := typed_path(text)) else None


def header_for(details, header, address):
    """The header that was typed, if it is for the server of these details and no other."""
    return header if (address or "").strip() == details["model"] else ""


def moved(details, old, new):
    """Details after their Draft has got its place: paths (texts, lists of texts) in it follow."""

    def move(value):
        if isinstance(value, list):
            return [move(one) for one in value]
        if not isinstance(value, str) or not Path(value).is_relative_to(old.folder):
            return value
        return str(new.folder / Path(value).relative_to(old.folder))

    return {name: move(value) for name, value in details.items()}
