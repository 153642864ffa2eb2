"""Requests as they go over the wire."""

import json

import numpy as np
import pytest

from suspects.wire import DTYPES, Question, packed


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "UINT8"])
@pytest.mark.parametrize("outputs", [(), ("logits", '"data":[]')])
def test_plain_requests_are_what_json_would_write(datatype, outputs):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (2, 3, 4, 5)) if datatype == "UINT8" else rng.normal(size=(2, 3, 4, 5))
    pixels = np.ascontiguousarray(values, dtype=DTYPES[datatype])
    if datatype != "UINT8":
        pixels.flat[:4] = [0.0, -0.0, 1e-7, 65504.0]
    body, headers = packed(Question("id", '"data":[]', datatype, pixels, outputs), binary=False)
    content = json.loads(body)
    (entry,) = content["inputs"]
    again = np.array(entry["data"], dtype=DTYPES[datatype]).reshape(entry["shape"])
    assert again.tobytes() == pixels.tobytes() and entry["name"] == '"data":[]' and entry["datatype"] == datatype
    assert [output["name"] for output in content.get("outputs", [])] == list(outputs)
    assert body == json.dumps(content, separators=(",", ":")).encode() and "json" in headers["Content-Type"]


def test_binary_requests_end_with_the_bytes():
    pixels = np.arange(6, dtype="<f4").reshape(1, 2, 3, 1)
    body, headers = packed(Question("id", "x", "FP32", pixels, ("y",)), binary=True)
    cut = int(headers["Inference-Header-Content-Length"])
    head = json.loads(body[:cut])
    assert body[cut:] == pixels.tobytes() and head["inputs"][0]["parameters"] == {"binary_data_size": 24}
    assert head["outputs"] == [{"name": "y", "parameters": {"binary_data": True}}]
