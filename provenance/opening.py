"""Open the model that an audit is about; what a server takes beside its address: how it was fed when the same audit
began, and photos to calibrate with.

Public: open_suspect, stored_input, calibration_of, place_of_results, input_of, OWN, PLAN_FILE.
"""

from pathlib import Path

import numpy as np

from kit import files
from kit.errors import UserError
from provenance import record as records
from provenance.grid import Photos
from provenance.photos import find_photos
from suspects import opened, server
from suspects.calibration import MOST_PHOTOS, Calibration

OWN = "own"  # --calibration with the record's photos
WORKING_SIZE = (512, 512)  # photos are kept at four times this
PLAN_FILE = "plan.json"


def open_suspect(checkpoint, server_options=None, **options):
    """The model that a path or an address names, as a `Suspect`.

    options: keyword arguments of `opened.open_model`, of which a server takes overrides and batch_size; server_options:
    those of `server.open_server` beside these.
    """
    if not checkpoint:
        raise UserError(
            "--checkpoint is missing",
            advice="give the model: a run folder, a file, http(s)://host/v2/models/NAME, or grpc://host:port/NAME",
            flag="--checkpoint",
        )
    if not server.is_address(str(checkpoint)):
        return opened.open_model(checkpoint, **options)
    for name, flag in (("base", "--base_model"), ("config", "--model_config")):
        if options.get(name):
            raise UserError(f"{flag} is for files, and --checkpoint is a server", advice="leave it out", flag=flag)
    common = {name: options[name] for name in ("overrides", "batch_size") if name in options}
    return server.open_server(str(checkpoint), **common, **(server_options or {}))


def place_of_results(record_path, name, folder=None):
    """The folder of an audit of the model `name`: `folder`, or one named after the model beside the record."""
    name = "".join(letter if letter.isalnum() else "-" for letter in name).strip("-")
    return Path(folder or records.record_file(record_path).resolve().parent / f"audit-{name}")


def input_of(suspect):
    """How a suspect is fed, for `stored_input` to find again: JSON-ready dict."""
    names = ("size", "resize", "mean", "std", "white", "interpolation", "source", "form")
    squash = {"squash": True} if suspect.preprocessing.squash else {}  # others read as they always did
    return {
        "preprocessing": {name: getattr(suspect.preprocessing, name) for name in names} | squash,
        "calibration": suspect.calibration,
    }


def stored_input(record_path, address, folder=None):
    """`input_of` the server at an address when the audit that lies in its folder began; None where none did."""
    plan = place_of_results(record_path, server.name_of(address), folder) / PLAN_FILE
    content = files.read_json(plan, "put back an undamaged copy") if plan.exists() else {}
    found = content.get("input") if isinstance(content, dict) else None
    if found and content.get("model", {}).get("url") == address.rstrip("/"):
        return found
    return None


def calibration_of(place, confirmed, record_path, originals):
    """The Calibration that --calibration PLACE means, PLACE being a folder or OWN; None for no place.

    Of the record's own photos those are taken that have the lowest numbers, which their content gave them before the
    draw, published or not: so the choice does not depend on what was drawn, and p stays exact. They are shown without
    marks, as they were never published. Raises UserError.
    """
    if place is None:
        if confirmed:
            raise UserError(
                "--confirm_preprocessing confirms what --calibration proposes",
                advice="give both",
                flag="--calibration",
            )
        return None
    if place == OWN:
        if record_path is None:
            raise UserError("--calibration own takes the photos of a record", advice="give a folder instead")
        record = records.read_finished(record_path)
        paths = [path for path in records.locate_originals(record, originals, record_path, lost=True) if path]
        paths, origin = paths[:MOST_PHOTOS], "the user's own, without marks"
    else:
        names, _, _ = find_photos(place)
        # Spread over the folder, as neighbours are often alike.
        chosen = np.unique(np.linspace(0, max(0, len(names) - 1), min(MOST_PHOTOS, len(names))).round().astype(int))
        paths, origin = [Path(place) / names[number] for number in chosen], f"the folder {Path(place).name}"
    if not paths:
        raise UserError(f"--calibration {place} has no photos", advice="give a folder with some", flag="--calibration")
    photos = Photos(paths, WORKING_SIZE)
    return Calibration([photos[number] for number in range(len(photos))], origin, confirmed)
