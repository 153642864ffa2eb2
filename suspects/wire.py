"""Tensors as the Open Inference Protocol sends them, in JSON or as bytes behind it.

Public: Question, packed, unpacked, from_raw, FLOATS, INTEGERS, DTYPES, KINDS, MALFORMED.
"""

import json
import struct
from dataclasses import dataclass

import numpy as np

FLOATS = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}
INTEGERS = {f"{sign}INT{8 * size}": f"<{sign or 'I'}{size}".lower() for sign in ("", "U") for size in (1, 2, 4, 8)}
DTYPES = {**FLOATS, **INTEGERS}
KINDS = {**dict.fromkeys(FLOATS, "float"), **dict.fromkeys(INTEGERS, "integer"), "BYTES": "text"}
# Whatever reading a foreign structure without checking each level of it first can raise.
MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError, struct.error)


@dataclass(frozen=True)
class Question:
    """A request for answers. name, datatype: of the input; pixels: an array of that datatype; outputs: names of those
    wanted, none for whatever the model has.
    """

    identifier: str
    name: str
    datatype: str
    pixels: np.ndarray
    outputs: tuple = ()


def packed(question, binary):
    """(body, headers) of a Question over HTTP, with its tensor as JSON or as bytes behind it."""
    entry = {"name": question.name, "datatype": question.datatype, "shape": question.pixels.shape}
    request = {"id": question.identifier, "inputs": [entry]}
    if question.outputs:
        request["outputs"] = [{"name": name} for name in question.outputs]
    if not binary:
        entry["data"] = []
        head, tail = json.dumps(request, separators=(",", ":")).rsplit('"data":[]', 1)
        return f'{head}"data":[{_numbers(question.pixels)}]{tail}'.encode(), {"Content-Type": "application/json"}
    entry["parameters"] = {"binary_data_size": question.pixels.nbytes}
    for output in request.get("outputs", ()):
        output["parameters"] = {"binary_data": True}
    header = json.dumps(request).encode()
    return header + question.pixels.tobytes(), {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(header)),
    }


def _numbers(array):
    """The numbers of an array as JSON has them, several times faster than json: images have few different ones."""
    flat = array.ravel()
    # By their bits, which tell 0 from -0; as float64, whose shortest decimals give every float32 back.
    bits, places = np.unique(flat.view(f"u{flat.itemsize}"), return_inverse=True)
    texts = [repr(value) for value in bits.view(flat.dtype).tolist()]
    return ",".join(map(texts.__getitem__, places.ravel().tolist()))


def unpacked(content, headers):
    """(the reply's JSON, {name: (datatype, array)}); text is an array of str. Raises MALFORMED."""
    cut = int(headers.get("Inference-Header-Content-Length", len(content)))
    reply, rest, tensors = json.loads(content[:cut]), memoryview(content)[cut:], {}
    for output in reply["outputs"]:
        datatype, size = output["datatype"], (output.get("parameters") or {}).get("binary_data_size")
        if size is None:
            data = _from_json(output["data"], KINDS[datatype])
        elif type(size) is int and 0 <= size <= len(rest):
            data, rest = from_raw(rest[:size], datatype), rest[size:]
        else:
            raise ValueError("binary data ends early")
        tensors[output["name"]] = (datatype, data.reshape(output["shape"]))
    return reply, tensors


def _from_json(data, kind):
    types, dtype = {"float": ((int, float), np.float64), "integer": ((int,), np.int64), "text": ((str,), object)}[kind]
    # As objects first: numpy would make every element as long as the longest string among them, and 1.5 an integer.
    array = np.array(data, dtype=object).ravel()
    if not all(type(value) in types for value in array):
        raise ValueError(f"data are not of kind {kind}")
    return array.astype(dtype)


def from_raw(data, datatype):
    """The flat array in a tensor's bytes (memoryview). Raises MALFORMED."""
    if datatype != "BYTES":
        return np.frombuffer(data, dtype=DTYPES[datatype])
    texts, start = [], 0
    while start < len(data):
        (size,) = struct.unpack_from("<I", data, start)
        start += 4 + size
        if start > len(data):
            raise ValueError("a string ends early")
        texts.append(str(data[start - size : start], "utf-8"))
    return np.array(texts, dtype=object)
