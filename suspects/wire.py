"""Tensors as the Open Inference Protocol sends them, in JSON or as bytes behind it.

Public: unpacked, FLOATS, INTEGERS, DTYPES, KINDS, MALFORMED.
"""

import json
import struct

import numpy as np

FLOATS = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}
INTEGERS = {f"{sign}INT{8 * size}": f"<{sign or 'I'}{size}".lower() for sign in ("", "U") for size in (1, 2, 4, 8)}
DTYPES = {**FLOATS, **INTEGERS}
KINDS = {**dict.fromkeys(FLOATS, "float"), **dict.fromkeys(INTEGERS, "integer"), "BYTES": "text"}
# Whatever reading a foreign structure without checking each level of it first can raise.
MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError, struct.error)


def unpacked(content, headers):
    """(the reply's JSON, {name: (datatype, array)}); text is an array of str. Raises MALFORMED."""
    cut = int(headers.get("Inference-Header-Content-Length", len(content)))
    reply, rest, tensors = json.loads(content[:cut]), memoryview(content)[cut:], {}
    for output in reply["outputs"]:
        datatype, size = output["datatype"], (output.get("parameters") or {}).get("binary_data_size")
        if size is None:
            data = _from_json(output["data"], KINDS[datatype])
        elif type(size) is int and 0 <= size <= len(rest):
            data, rest = _from_bytes(rest[:size], datatype), rest[size:]
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


def _from_bytes(data, datatype):
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
