"""Open an ONNX file.

Public: open_onnx, class_names_of.
"""

import json
import re
from pathlib import PureWindowsPath
from types import SimpleNamespace

import numpy as np
import torch

from kit.errors import UserError, optional
from suspects.answering import (
    MOST_AT_ONCE,
    MOST_CLASSES,
    SETTINGS,
    FileSuspect,
    cleaned_setting,
    flag_of,
    merged_preprocessing,
    one_line,
    pattern,
    readable_digest,
)

_INPUTS = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}
_OUTPUTS = ("tensor(float)", "tensor(float16)", "tensor(double)", "tensor(int64)", "tensor(int32)")
# How protobuf writes the name of a file of weights: key "location", then the value's length and the value.
_LOCATION = re.compile(rb"\n\x08location\x12([\x00-\x7f])")


def open_onnx(path, identity, overrides, batch_size):
    outside = _external_data(path)
    session, inputs, outputs, metadata = _session(path)
    kind, shape, channels = _onnx_input(path, inputs)
    preprocessing = _onnx_preprocessing(path, kind, shape, channels, metadata, overrides)
    fixed = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None
    if (fixed or 1) > MOST_AT_ONCE:
        raise UserError(
            f"{path} takes {fixed} images at once", advice=f"export it with a batch of at most {MOST_AT_ONCE}"
        )

    def run(images, names):
        values = preprocessing.normalize(images).astype(_INPUTS[kind])
        values = values if channels == 1 else np.ascontiguousarray(values.transpose(0, 2, 3, 1))
        if fixed:  # zeros fill the batch up
            values = np.concatenate([values, np.zeros((fixed - len(values), *values.shape[1:]), values.dtype)])
        return session.run(names, {inputs[0].name: values})

    def query(images):
        values = run(images, [name])[0][: len(images)]
        return values if values.ndim == 2 else values[:, None]

    name, classes = _onnx_output(path, outputs, run, pattern(fixed or 2, preprocessing.size))
    names = class_names_of(metadata, classes)
    identity = {**identity, "kind": "onnx", **({"external_data": outside} if outside else {})}
    return FileSuspect(
        query, identity, preprocessing, min(batch_size, fixed or batch_size), len(names) if names else classes, names
    )


def _session(path):
    """-> (session, its inputs, its outputs, the metadata that its maker wrote)."""
    onnxruntime = optional("onnxruntime", path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 4  # what matters comes as an exception
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )  # which prints, and tries the same again
        # Copied, because each attribute is decoded when it is read, and a damaged one fails there.
        inputs, outputs = (
            [SimpleNamespace(name=each.name, type=each.type, shape=each.shape) for each in side]
            for side in (session.get_inputs(), session.get_outputs())
        )
        return session, inputs, outputs, session.get_modelmeta().custom_metadata_map
    except Exception as error:  # onnxruntime's errors have no class in common but this
        raise UserError(
            f"{path} is damaged or no ONNX model that onnxruntime can run ({one_line(error)})",
            advice="get an undamaged copy",
        ) from None


def _onnx_input(path, inputs):
    """-> (type, shape, which axis holds the three channels: 1 or 3)."""
    kinds = _listed(f"{each.type} {each.shape}" for each in inputs)
    shape = inputs[0].shape if inputs else None
    if len(inputs) != 1 or inputs[0].type not in _INPUTS or len(shape or ()) != 4:
        raise UserError(
            f"{path} takes {kinds}",
            advice="give a model of one input, float or uint8, of shape (N, 3, height, width) or (N, height, width, 3)",
        )
    # An axis without a number may be the channels; should it not, the first answer fails.
    axis = 1 if shape[1] == 3 else 3 if shape[3] == 3 else 1 if not isinstance(shape[1], int) else None
    if axis is None:
        raise UserError(
            f"{path} takes {kinds}, where no axis is red, green and blue", advice="give a model of RGB photos"
        )
    return inputs[0].type, shape, axis


def _listed(descriptions):
    # Names are a stranger's, and may hold line breaks and worse.
    return repr(", ".join(descriptions)[:200])


def _onnx_preprocessing(path, kind, shape, channels, metadata, overrides):
    sides = shape[2:] if channels == 1 else shape[1:3]
    facts = {"size": sides} if all(isinstance(side, int) for side in sides) else {}
    if kind == "tensor(uint8)":
        facts |= {"mean": (0, 0, 0), "std": (1, 1, 1), "white": 255}
    try:
        stored = json.loads(metadata.get("preprocessing", "{}"))
        stored = {
            **stored,
            **{key: json.loads(metadata[key]) for key in (SETTINGS.keys() & metadata) - overrides.keys()},
        }
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: its metadata about preprocessing is no JSON ({one_line(error)})",
            advice="export it without, and give flags",
        ) from None
    if unknown := stored.keys() - SETTINGS.keys():
        raise UserError(f"{path}: unknown {str(unknown)[:80]} in its metadata", advice=f"use {', '.join(SETTINGS)}")
    stored = {key: value for key, value in stored.items() if key not in overrides}
    merged = merged_preprocessing(path, [("onnx", facts), ("onnx metadata", stored), ("flags", overrides)])
    for key, value in facts.items():
        if getattr(merged, key) != cleaned_setting(path, "onnx", key, value):
            raise UserError(
                f"{path} takes {kind} {shape}, so {key} can't be {getattr(merged, key)} (from {merged.source})",
                advice=f"leave {flag_of(key)} out, or make it {value}",
            )
    return merged


def class_names_of(metadata, classes):
    # Names only help people, so those that can't be right are left out rather than refused.
    try:
        names = json.loads(metadata.get("class_names", metadata.get("labels", "null")))
    except (ValueError, RecursionError):
        return None
    fits = isinstance(names, list) and len(names) >= 2 and classes in (None, len(names))
    return tuple(names) if fits and all(isinstance(name, str) for name in names) else None


def _onnx_output(path, outputs, run, images):
    """-> (name of the output that says the classes, how many there are or None where it is the top class alone)."""
    candidates = [each.name for each in outputs if each.type in _OUTPUTS]
    if not candidates:
        raise UserError(
            f"{path} answers with {_listed(each.type for each in outputs)}",
            advice="export it with numbers as output (from scikit-learn with zipmap=False), not with words or maps",
        )
    try:
        values = dict(zip(candidates, run(images, candidates), strict=True))
    except Exception as error:
        raise UserError(
            f"{path} can't answer for {images.shape} images ({one_line(error)})",
            advice="check --input_size",
            flag="--input_size",
        ) from None
    dense = [
        name
        for name, value in values.items()
        if value.dtype.kind == "f"
        and value.ndim == 2
        and len(value) == len(images)
        and 2 <= value.shape[1] <= MOST_CLASSES
    ]
    labels = [
        name
        for name, value in values.items()
        if value.dtype.kind == "i" and value.shape in ((len(images),), (len(images), 1))
    ]
    # A label beside probabilities (scikit-learn's exporter) says less than they do.
    chosen = dense or labels
    if len(chosen) != 1:
        raise UserError(
            f"{path} answers with {_listed(f'{name} {value.shape}' for name, value in values.items())}",
            advice="give a model with one output (N, classes) or (N,) of labels",
        )
    return chosen[0], values[chosen[0]].shape[1] if dense else None


def _external_data(path):
    """{name: SHA-256} of the files beside an ONNX file that hold its weights: its own digest does not cover them.

    UserError when one lies outside the folder of the model, which early versions of onnxruntime would have opened.
    """
    data, digests = path.read_bytes(), {}
    names = {data[found.end() : found.end() + found[1][0]] for found in _LOCATION.finditer(data)}
    # The files of a linked model may lie where it does itself (as in the caches of model hubs).
    folders = path.parent.resolve(), path.resolve().parent
    for name in sorted(name.decode(errors="replace").replace("\0", "?") for name in names):
        file, steps = path.parent / name, PureWindowsPath(name)  # which knows drives and both kinds of slashes
        if steps.anchor or ".." in steps.parts or not any(map(file.resolve().is_relative_to, folders)):
            raise UserError(
                f"{path} wants weights from {name[:80]!r}, outside its folder, so it was refused",
                advice="export it with all weights inside",
            )
        if file.is_file():  # if not, onnxruntime says so, or it was a note called "location"
            digests[name] = readable_digest(file)
    return digests
