"""What a server says of a model: its tensors, its preprocessing, its class names, how many images a request may have.

Public: Tensor, Hints, Form, declared_form, hinted_form, hinted_sides, output_role, role_of, width_of, settings_of,
stated_parameter, needed_size, needed_preprocessing, preprocessing_of, most_in_batch, SETTINGS.
"""

import json
import math
import reprlib
from dataclasses import dataclass

from kit.errors import UserError
from suspects.suspect import Preprocessing
from suspects.wire import FLOATS, KINDS, MALFORMED

SETTINGS = ("size", "resize", "mean", "std", "white", "interpolation")
LAYOUTS = ("NCHW", "NHWC")


@dataclass(frozen=True)
class Tensor:
    """An input or output; shape has None where a dimension is free."""

    name: str
    datatype: str
    shape: tuple

    def __str__(self):
        return f"{self.name!r} ({self.datatype}, {[-1 if side is None else side for side in self.shape]})"


@dataclass(frozen=True)
class Hints:
    """What the flags say of a model's tensors, None where they don't: --input_name, --input_datatype, --input_layout
    (NCHW or NHWC), --input_shape (numbers, -1 is free; with or without the batch) and --output_name.
    """

    name: str | None = None
    datatype: str | None = None
    layout: str | None = None
    shape: tuple | None = None
    output: str | None = None

    @property
    def complete(self):
        """Whether nothing is left to be found out."""
        return None not in (self.name, self.datatype, self.output) and bool(self.layout or self.shape)

    def four(self):
        """(shape of four dimensions, None where one is free; whether its batch was left out), or (None, False)."""
        if self.shape is None:
            return None, False
        shape = tuple(None if side < 0 else side for side in self.shape)
        if len(shape) not in (3, 4) or 0 in shape:
            raise UserError(
                f"--input_shape {list(self.shape)} is no shape of images",
                advice="give (N,) 3, height and width, or (N,) height, width and 3, with -1 for what is free",
                flag="--input_shape",
            )
        return (None, *shape) if len(shape) == 3 else shape, len(shape) == 3


@dataclass(frozen=True)
class Form:
    """How images reach the model. tensor: its shape has four dimensions; nchw: whether channels come first; hidden:
    whether the batch dimension was not declared; source: who said so, None when the server did.
    """

    tensor: Tensor
    nchw: bool
    hidden: bool = False
    source: str | None = None

    @property
    def layout(self):
        return LAYOUTS[0 if self.nchw else 1]

    @property
    def sides(self):
        """(height, width), None where one is free."""
        return self.tensor.shape[2:] if self.nchw else self.tensor.shape[1:3]


def _tensors(metadata, key):
    """([Tensor, ...], the list in words); nothing declared is an empty list."""
    entries = metadata.get(key) if isinstance(metadata, dict) else 0
    try:
        tensors = [
            Tensor(
                str(entry["name"]),
                str(entry["datatype"]),
                tuple(None if side < 0 else int(side) for side in entry["shape"]),
            )
            for entry in ([] if entries is None else entries)
        ]
    except MALFORMED:
        raise UserError(f"its metadata has no proper list of {key}", advice="ask the server's owner") from None
    return tensors, ", ".join(map(str, tensors)) or "none"


def declared_form(metadata, hints):
    """The Form that the metadata declares, with the flags beside it; None where no input is declared.

    Raises UserError for inputs that are none of images, and flags that contradict.
    """
    tensors, listing = _tensors(metadata, "inputs")
    if not tensors:
        return None
    if hints.name is not None:
        tensors = [tensor for tensor in tensors if tensor.name == hints.name]
        if not tensors:
            raise UserError(
                f"it has no input {hints.name!r}, but {listing}", advice="correct --input_name", flag="--input_name"
            )
    declared, (given, _) = (tensors[0].shape if len(tensors) == 1 else ()), hints.four()
    hidden = len(declared) == 3
    shape = (None, *declared) if hidden else declared
    if len(shape) == 4 and given:
        if any(None not in pair and len({*pair}) > 1 for pair in zip(shape, given, strict=True)):
            raise UserError(
                f"its input is {listing}, and --input_shape {list(hints.shape)} is another",
                advice="correct --input_shape",
                flag="--input_shape",
            )
        shape = tuple(one or other for one, other in zip(shape, given, strict=True))
    if hints.layout and len(shape) == 4:  # which may have said nothing of the channels
        channels = 1 if hints.layout == "NCHW" else 3
        shape = tuple(3 if place == channels and side is None else side for place, side in enumerate(shape))
    if len(shape) != 4 or 3 not in (shape[1], shape[3]) or 0 in shape:
        several = len(tensors) > 1
        raise UserError(
            f"needs one input of images, (N, 3, height, width) or (N, height, width, 3), but has {listing}",
            advice="name the one of images with --input_name" if several else "this model can't be asked",
            flag="--input_name" if several else None,
        )
    nchw = _channels_first(shape, hints.layout)
    if tensors[0].datatype not in (*FLOATS, "UINT8") or hints.datatype not in (None, tensors[0].datatype):
        raise UserError(
            f"images can be sent as FP16, FP32, FP64 or UINT8, as its input has it, but that is {listing}"
            + (f", and --input_datatype {hints.datatype}" if hints.datatype else "")
        )
    source = "flags" if hints.layout or hints.shape else None
    return Form(Tensor(tensors[0].name, tensors[0].datatype, shape), nchw, hidden, source)


def _channels_first(shape, layout):
    fits = {"NCHW": shape[1] in (3, None), "NHWC": shape[3] in (3, None)}
    if layout and not fits[layout]:
        raise UserError(
            f"an input of the shape {[-1 if side is None else side for side in shape]} is not {layout}",
            advice="correct --input_layout",
            flag="--input_layout",
        )
    return layout == "NCHW" if layout else shape[1] == 3


def hinted_form(hints, name, datatype, nchw):
    """A Form for an input that is not declared: the flags, completed with these; None where they contradict."""
    shape, hidden = hints.four()
    shape = shape or (None,) * 4
    channels, other = (1, 3) if nchw else (3, 1)
    if shape[channels] not in (3, None) or (hints.layout and hints.layout != LAYOUTS[0 if nchw else 1]):
        return None
    if hints.layout is None and shape[channels] is None and shape[other] == 3:
        return None
    shape = tuple(3 if place == channels else side for place, side in enumerate(shape))
    return Form(Tensor(hints.name or name, hints.datatype or datatype, shape), nchw, hidden, "flags")


def hinted_sides(hints):
    """(height, width) of --input_shape, None where one is free."""
    shape, _ = hints.four()
    if shape is None:
        return None, None
    last = hints.layout == "NHWC" or (hints.layout is None and shape[1] != 3 and shape[3] == 3)
    return shape[1:3] if last else shape[2:]


def output_role(metadata, hidden, wanted=None):
    """`role_of` what the metadata declares; None where it declares no outputs."""
    tensors, listing = _tensors(metadata, "outputs")
    if not tensors:
        return None
    if hidden:
        tensors = [Tensor(tensor.name, tensor.datatype, (None, *tensor.shape)) for tensor in tensors]
    return role_of(tensors, listing, wanted)


def role_of(tensors, listing, wanted=None):
    """(the outputs, floats first; what they are together: "dense", "labels", "text" or "top_k").

    wanted: the name of one output, the only one to be looked at; listing: all of them, in words. Raises UserError.
    """
    if wanted is not None:
        tensors = [tensor for tensor in tensors if tensor.name == wanted]
        if not tensors:
            raise UserError(
                f"it has no output {wanted!r}, but {listing}", advice="correct --output_name", flag="--output_name"
            )
    tensors = sorted(tensors, key=lambda tensor: KINDS.get(tensor.datatype, ""))
    ranks, widths = [len(tensor.shape) for tensor in tensors], [width_of(tensor) for tensor in tensors]
    roles = {
        ("float",): ("dense", ranks == [2]),
        ("text",): ("text", ranks in ([1], [2])),
        ("integer",): ("labels", ranks == [1] or (ranks == [2] and widths[0] in (1, None))),
        ("float", "integer"): ("top_k", ranks == [2, 2] and len({*widths} - {None}) < 2),
    }
    role, fits = roles.get(tuple(KINDS.get(tensor.datatype) for tensor in tensors), ("", False))
    if not fits:
        several = len(tensors) > 1
        raise UserError(
            "needs one output of values (N, classes), of labels (N) as integers or BYTES, or one of values "
            f"and one of classes (N, k), but has {listing}",
            advice="name the one with the answers with --output_name" if several else "this model can't be asked",
            flag="--output_name" if several else None,
        )
    return tensors, role


def width_of(tensor):
    """How many values an image has in an output, None when unknown."""
    return 1 if len(tensor.shape) == 1 else tensor.shape[-1] if len(tensor.shape) == 2 else None


# --- preprocessing ---


def _setting(name, value):
    """One setting of Preprocessing, converted, and checked as far as Preprocessing does not. Raises MALFORMED."""
    if name == "interpolation":
        return {value: value}[str(value)]
    count = {"mean": 3, "std": 3, "size": 2}.get(name, 1)
    numbers = tuple(value) if isinstance(value, (list, tuple)) else (value,) * count  # one number stands for all
    whole = name in ("size", "resize")
    if len(numbers) != count or not all(
        type(number) is int and 1 <= number <= 4096 if whole else type(number) in (int, float) and math.isfinite(number)
        for number in numbers
    ):
        raise ValueError
    if name == "white" and value not in (1, 255):
        raise ValueError
    return numbers[0] if count == 1 else numbers


def settings_of(values, giver):
    """Settings of Preprocessing, converted and checked; those that are None left out."""
    values = {"size" if name == "input_size" else name: value for name, value in values.items() if value is not None}
    for name, value in values.items():
        if name not in SETTINGS:
            raise UserError(
                f"the preprocessing of {giver} has the unknown setting {name!r}, not one of {', '.join(SETTINGS)}"
            )
        try:
            values[name] = _setting(name, value)
        except MALFORMED:
            raise UserError(f"the preprocessing of {giver} can't have {name} = {reprlib.repr(value)}") from None
    return values


def needed_size(sides, server, flags):
    """(height, width) of the input: of its shape, of what the server states, of the flags, the last winning.

    sides: (height, width) of the shape, None where one is free. Raises UserError where nobody says.
    """
    size = {**server, **flags}.get("size", (None, None))
    if any(None not in pair and len({*pair}) > 1 for pair in zip(sides, size, strict=True)):
        raise UserError(
            f"its input has the height and width {[-1 if side is None else side for side in sides]}, but the "
            f"preprocessing says {list(size)}",
            advice="correct --input_size",
            flag="--input_size",
        )
    size = tuple(fixed or given for fixed, given in zip(sides, size, strict=True))
    if None in size:
        raise UserError(
            "its input has no fixed size and its metadata names none", advice="give --input_size", flag="--input_size"
        )
    return size


def needed_preprocessing(form, server, flags):
    """(settings of Preprocessing, who gave them: words; mean and std are missing where nobody did).

    form: the Form; server, flags: settings that were stated, the flags winning. Raises UserError.
    """
    raw = form.tensor.datatype == "UINT8"
    if raw and {"mean", "std", "white"} & flags.keys():
        raise UserError(
            f"its input {form.tensor} takes raw pixels", advice="leave --mean, --std and --white away", flag="--mean"
        )
    pixels = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "white": 255.0} if raw else {}
    settings = {**server, **flags, **pixels, "size": needed_size(form.sides, server, flags)}
    givers = [name for name, given in (("server", server), ("flags", flags)) if given]
    return settings, givers or (["defaults"] if raw else [])  # raw pixels leave nothing to say


def stated_parameter(metadata, config, name, kind):
    """A list or dict that the server states about the model, None when it does not. Raises UserError for a damaged one.

    It is a parameter of the metadata, of a tensor in it (MLServer) or of the configuration (Triton), and may be written
    as JSON in a string.
    """
    places = [metadata.get("parameters")]
    for key in ("inputs", "outputs"):
        entries = metadata.get(key)
        places += (
            [entry.get("parameters") for entry in entries or () if isinstance(entry, dict)]
            if isinstance(entries, list)
            else []
        )
    found = config.get("parameters") if isinstance(config, dict) else None
    if isinstance(found, dict) and isinstance(found.get(name), dict):
        places.append({name: found[name].get("string_value")})
    try:
        for place in places:
            value = (place or {}).get(name)
            value = json.loads(value) if isinstance(value, str) else value
            if isinstance(value, kind):
                return value
            if value is not None:
                raise ValueError
    except MALFORMED:
        raise UserError(
            f"its metadata has a {name} parameter that can't be read", advice="ask the server's owner"
        ) from None
    return None


def most_in_batch(config):
    """max_batch_size of Triton's configuration, None where it sets no limit."""
    most = config.get("max_batch_size") if isinstance(config, dict) else None
    return most if type(most) is int and most > 0 else None


def preprocessing_of(settings, givers, form=None):
    """A Preprocessing out of `needed_preprocessing`'s result; form: what `Preprocessing.form` becomes."""
    return Preprocessing(**settings, source=" and ".join(givers), form=form)
