"""How to ask a server that does not declare its tensors: the first requests, with a neutral picture, find out.

Public: found_form, NAMES.
"""

import re

import numpy as np

from kit.errors import UserError
from suspects.connection import REFUSING, Refusal
from suspects.metadata import hinted_form

# What inputs of images are called in the protocol's own examples, by exporters and by servers' converters.
NAMES = ("input-0", "input", "input_0", "INPUT__0", "image", "images", "pixel_values", "x", "data", "input_1", "inputs")
DATATYPES = ("FP32", "UINT8")  # whatever takes both is sent floats: they can hold any scale
QUOTED = re.compile(r"['\"`]([\w.:/-]{1,64})['\"`]")
MOST_NAMES = 24


def found_form(ask, hints):
    """The Form that a server understands, its input not being declared. Raises UserError.

    ask(form) -> Answers for one neutral picture, or a Refusal where the server can't read it. hints: what the flags
    say. Two layouts that both work and give different answers are not guessed between.
    """
    names, tried, last = [hints.name] if hints.name else list(NAMES), 0, None
    place = 0
    while place < len(names):
        for datatype in (hints.datatype,) if hints.datatype else DATATYPES:
            working = []
            for nchw in (True, False):
                form = hinted_form(hints, names[place], datatype, nchw)
                if form is None:
                    continue
                tried += 1
                try:
                    working.append((form, ask(form)))
                except Refusal as refusal:
                    if refusal.status not in REFUSING:
                        raise
                    last = refusal
                    if not hints.name:
                        # Servers often name the input that they miss.
                        told = [name for name in QUOTED.findall(refusal.reason) if name not in names]
                        names[place + 1 : place + 1] = told[: max(0, MOST_NAMES - len(names))]
            if working:
                return _only(working)
        place += 1
    raise UserError(
        f"it does not declare its input, and none of the usual forms works (tried {tried}; "
        f"{last.reason if last else 'the flags leave none'})",
        advice="give --input_name, --input_datatype and --input_layout as its owner knows them",
        flag="--input_name",
    )


def _only(working):
    """The Form that works; the first of two that are answered alike."""
    form, answers = working[0]
    for other, others in working[1:]:
        same = answers.values is not None and others.values is not None and answers.values.shape == others.values.shape
        if same and not np.allclose(answers.values, others.values, rtol=1e-3, atol=1e-4):
            same = False
        if answers.values is None:
            same = bool((answers.classes == others.classes).all())
        if not same:
            raise UserError(
                f"it does not declare its input, and answers to {form.layout} and to {other.layout} images alike "
                f"({form.tensor.name!r}, {form.tensor.datatype})",
                advice="give the one that it was made for with --input_layout",
                flag="--input_layout",
            )
    return form
