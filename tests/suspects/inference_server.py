"""A small server of the Open Inference Protocol that misbehaves on demand, to test clients against.

Needs fastapi and uvicorn, and imports them only when asked for a server. Written from the protocol's text, not from the
client: it decodes and encodes tensors with code of its own.

Public: make_app, running, planned, digest, seeded_faults, FAULTS.
"""

import asyncio
import gzip
import hashlib
import itertools
import json
import random
import socket
import struct
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

# What `faults` may name, besides a status as a number and None for a right reply.
FAULTS = (
    "timeout",
    "retry_after",
    "drop",
    "shape",
    "rows",
    "nan",
    "datatype",
    "json",
    "not_object",
    "id",
    "model",
    "missing",
    "huge",
    "gzip",
    "redirect",
    "truncated",
)
DTYPES = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "UINT8": "|u1", "INT32": "<i4", "INT64": "<i8"}
HUGE_PIECES = 512  # of 1 MiB
PLANNED, UNUSED = "X-Planned-Fault", "X-Planned-Fault-Unused"  # headers of `planned`
SHORT, LONG = 0.2, 300  # seconds


def digest(image):
    """What the log calls one image: its bytes as they arrived, channels first."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def seeded_faults(seed, share, names):
    """Endless: one of `names` for a share of all requests, None for the others."""
    choices = random.Random(seed)
    while True:
        yield choices.choice(names) if choices.random() < share else None


def make_app(
    predict,
    *,
    input_shape,
    datatype="FP32",
    mode="dense",
    output_shape=None,
    output_datatype=None,
    k=3,
    faults=(),
    binary=False,
    binary_replies=True,
    parameters=None,
    labels=None,
    token=None,
    name="net",
    retry_after="2",
    extra_outputs=(),
    metadata=None,
    echo_id=True,
    version="1",
    config=None,
    max_bytes=None,
    pixels="pixels",
):
    """A FastAPI app. `predict` maps a numpy batch, NCHW in the dtype that was sent, to float32 logits (N, C).

    mode: dense, labels, top_k, text_index, text_label, text_top (Triton's score:index:label); faults: an iterable with
    one entry per request to infer, right replies once it ends ("timeout" needs `planned`); binary: whether binary
    tensors are announced and understood ("unlisted": understood alone), binary_replies: and sent; token: what the
    Authorization header must be; metadata: keys that replace those of the model's metadata; config: the model's
    configuration as Triton has it, whose max_batch_size is enforced; max_bytes: of a request; pixels: the input's name,
    None for any. app.state.log has a dict per request to infer (id, digests, answered, fault, headers, time),
    app.state.other the paths of all other requests, those of the wrong form among them, app.state.huge how many bytes
    of huge replies were sent.
    """
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

    app = FastAPI()
    app.state.log, app.state.other, app.state.huge, app.state.name = [], [], 0, name
    faults = iter(faults)
    outputs = output_entries(mode, output_shape, output_datatype) + list(extra_outputs)
    nchw = input_shape[-3] == 3
    described = {
        "name": name,
        "versions": [version],
        "platform": "test_platform",
        "outputs": outputs,
        "inputs": [{"name": pixels, "datatype": datatype, "shape": list(input_shape)}],
        **({"parameters": parameters} if parameters else {}),
        **(metadata or {}),
    }

    def refused(request):
        sent = request.headers.get("authorization")
        if token is not None and sent != token:
            return JSONResponse({"error": f"not the right token: {sent}\nsecond line"}, status_code=401)
        return None

    @app.get("/v2")
    async def about(request: Request):
        app.state.other.append("/v2")
        extensions = ["binary_tensor_data"] * (binary is True) + ["model_configuration"] * (config is not None)
        return refused(request) or {"name": "test", "version": "1", "extensions": extensions}

    @app.get(f"/v2/models/{name}/config")
    async def configuration(request: Request):
        app.state.other.append(request.url.path)
        return refused(request) or config or JSONResponse({"error": "not found"}, 404)

    @app.get(f"/v2/models/{name}")
    @app.get(f"/v2/models/{name}/versions/{version}")
    async def about_model(request: Request):
        app.state.other.append(request.url.path)
        return refused(request) or described

    @app.post(f"/v2/models/{name}/infer")
    @app.post(f"/v2/models/{name}/versions/{version}/infer")
    async def infer(request: Request):
        body = await request.body()
        if unreadable := unread(request, body):
            app.state.other.append(request.url.path)
            unreadable.headers[UNUSED] = "1"
            return unreadable
        wanted = request.headers.get(PLANNED)
        entry = {
            "fault": next(faults, None) if wanted is None else json.loads(wanted)["fault"],
            "answered": False,
            "digests": (),
            "time": time.monotonic(),
            "headers": dict(request.headers),
            "id": None,
            "body": body,
        }
        app.state.log.append(entry)
        refusal = refused(request)
        if refusal:
            return refusal
        asked, tensor = decode(body, request.headers, datatype, binary)
        images = tensor if nchw else tensor.transpose(0, 3, 1, 2)
        entry.update(id=asked["id"], digests=[digest(image) for image in images], shape=list(tensor.shape))
        reply = await faulty(entry["fault"], request)
        if reply is not None:
            return reply
        arrays = output_arrays(mode, np.asarray(predict(images), dtype=np.float32), k, labels)
        arrays, fault = spoil(arrays, entry["fault"]), entry["fault"]
        listed = asked.get("outputs") or [{}]
        wanted = binary_replies and all((output.get("parameters") or {}).get("binary_data") for output in listed)
        head = {
            "model_name": "another" if fault == "model" else name,
            "model_version": version,
            **({"id": "another" if fault == "id" else asked["id"]} if echo_id else {}),
        }
        content, headers = encode(
            head,
            dict(zip([o["name"] for o in outputs], arrays, strict=True)),
            {o["name"]: o["datatype"] for o in outputs},
            wanted,
            fault,
        )
        entry["answered"] = fault is None
        return damaged(content, headers, fault)

    def unread(request, body):
        """The reply to what the model can't be asked, None for a request of the right form; none of these is logged."""
        if max_bytes is not None and len(body) > max_bytes:
            return Response("<html>Request Entity Too Large</html>", 413, media_type="text/html")
        cut = request.headers.get("inference-header-content-length")
        if cut is not None and not binary:
            return JSONResponse({"error": "failed to parse the request JSON"}, 400)
        (tensor,) = json.loads(body[: int(cut)] if cut else body)["inputs"]
        shape, most = tensor["shape"], (config or {}).get("max_batch_size") or len(body)
        free = [-1, *input_shape] if len(input_shape) == 3 else input_shape
        if pixels is not None and tensor["name"] != pixels:
            return JSONResponse({"error": f"unexpected inference input '{tensor['name']}' for model '{name}'"}, 400)
        if tensor["datatype"] != datatype or any(
            side not in (-1, given) for side, given in zip(free, shape, strict=False)
        ):
            return JSONResponse({"error": f"expected {datatype} {free}, got {tensor['datatype']} {shape}"}, 400)
        if shape[0] > most:
            told = f"[request id: x] inference request batch-size must be <= {most} for '{name}'"
            return JSONResponse({"error": told}, 400)
        return None

    def damaged(content, headers, fault):
        if fault == "drop":

            async def half():
                yield content[: len(content) // 2]
                raise ConnectionAbortedError("the fault that was asked for")

            return StreamingResponse(half(), headers={**headers, "Content-Length": str(len(content))})
        if fault == "gzip":
            return Response(gzip.compress(content), headers={**headers, "Content-Encoding": "gzip"})
        return Response(content[: len(content) - 3] if fault == "truncated" else content, headers=headers)

    async def faulty(fault, request):
        if isinstance(fault, int):
            return JSONResponse({"error": f"fault {fault} as planned\nand a second line \x1b[31m" + "x" * 500}, fault)
        if fault == "timeout":
            while not await request.is_disconnected():
                await asyncio.sleep(0.01)
            return Response("too late")
        if fault == "retry_after":
            return JSONResponse({"error": "slower"}, 429, headers={"Retry-After": retry_after})
        if fault == "redirect":
            return RedirectResponse("/elsewhere", 307)
        if fault in ("json", "not_object"):
            return Response('{"outputs": [' if fault == "json" else "[1, 2]", media_type="application/json")
        if fault == "huge":

            async def endless():
                for _ in range(HUGE_PIECES):
                    app.state.huge += 2**20
                    yield b" " * 2**20
                    await asyncio.sleep(0)  # lets the server notice that nobody reads any more

            return StreamingResponse(endless(), media_type="application/json")
        return None

    @app.api_route("/elsewhere", methods=["GET", "POST"])
    async def elsewhere():
        app.state.other.append("/elsewhere")
        return {}

    return app


def output_entries(mode, shape, datatype):
    """The outputs of the metadata."""
    entries = {
        "dense": [("logits", "FP32", [-1, -1])],
        "labels": [("label", "INT64", [-1])],
        "top_k": [("indices", "INT32", [-1, -1]), ("scores", "FP32", [-1, -1])],
    }
    entries = entries.get(mode, [("text", "BYTES", [-1, -1] if mode == "text_top" else [-1])])
    return [{"name": name, "datatype": datatype or usual, "shape": shape or form} for name, usual, form in entries]


def output_arrays(mode, logits, k, labels):
    """What the outputs hold, in the metadata's order."""
    order = np.argsort(-logits, axis=1, kind="stable")
    top = order[:, 0]
    if mode == "dense":
        return [logits]
    if mode == "labels":
        return [top]
    if mode == "top_k":
        return [order[:, :k].astype(np.int32), np.take_along_axis(logits, order[:, :k], 1)]
    if mode == "text_top":
        return [
            np.array(
                [
                    [f"{float(logits[row, c])!r}:{c}:{labels[c] if labels else 'a:b'}" for c in order[row, :k]]
                    for row in range(len(logits))
                ],
                dtype=object,
            )
        ]
    return [np.array([labels[c] if mode == "text_label" else str(c) for c in top], dtype=object)]


def spoil(arrays, fault):
    """The arrays with the wrong shape, row count or values that a fault asks for."""

    def one(array):
        if fault == "shape":
            return np.stack([array, array], -1)
        if fault == "rows":
            return array[:-1] if len(array) > 1 else np.concatenate([array, array])
        if fault == "nan" and array.dtype.kind == "f":
            array = array.copy()
            array.flat[-1] = np.nan
        return array

    return [one(array) for array in arrays]


def decode(body, headers, datatype, binary):
    """(the request's JSON, its image tensor) of a request."""
    cut = headers.get("inference-header-content-length")
    asked = json.loads(body[: int(cut)] if cut else body)
    (tensor,) = asked["inputs"]
    assert tensor["datatype"] == datatype, tensor
    if cut is None:
        data = np.array(tensor["data"], dtype=DTYPES[datatype])
    else:
        rest = body[int(cut) :]
        assert binary and tensor["parameters"]["binary_data_size"] == len(rest), "binary data of the wrong length"
        data = np.frombuffer(rest, dtype=DTYPES[datatype])
    return asked, data.reshape(tensor["shape"])


def encode(head, arrays, datatypes, binary, fault):
    """(content, headers) of a reply."""
    reply, rest = {**head, "outputs": []}, b""
    for name, array in arrays.items():
        datatype = datatypes[name]
        entry = {"name": "other" if fault == "missing" else name, "datatype": datatype, "shape": list(array.shape)}
        if fault == "datatype":
            entry["datatype"] = datatype = "INT64" if datatype in ("FP32", "BYTES") else "FP32"
            array = np.zeros(array.shape, dtype=DTYPES[datatype])
        reply["outputs"].append(entry)
        if not binary:
            entry["data"] = array.ravel().tolist()
            continue
        packed = (
            b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in array.ravel())
            if datatype == "BYTES"
            else array.astype(DTYPES[datatype]).tobytes()
        )
        entry["parameters"] = {"binary_data_size": len(packed)}
        rest += packed
    text = json.dumps(reply).encode()
    if not binary:
        return text, {"Content-Type": "application/json"}
    return text + rest, {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(text))}


@contextmanager
def running(app):
    """Serve the app on a free port of this machine while the block lasts; yields its url, root, log and state.

    The server is told to stop when the block ends, and does so a moment later: to wait for it would take most of the
    time of short tests.
    """
    import uvicorn

    listener = socket.socket(proto=socket.IPPROTO_TCP)  # named, else asyncio leaves Nagle's delay on
    listener.bind(("127.0.0.1", 0))
    root = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()  # from now on the listener is the server's to close
    try:
        deadline = time.monotonic() + LONG
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline, "the test server did not start"
            time.sleep(0.002)
        state = app.state
        yield SimpleNamespace(url=f"{root}/v2/models/{state.name}", root=root, log=state.log, state=state)
    finally:
        server.should_exit = server.force_exit = True  # without waiting for clients that keep their connection


@contextmanager
def planned(state, faults):
    """While the block lasts, each request to infer says itself which of `faults` comes next, in whatever order they are
    read; those that are refused for their form use up none.

    state: of the app, which takes the form of what may meet "timeout". The client waits for long where an answer comes.
    Where none does it waits SHORT, once the server has the request: no test of silence hangs on how fast anything is.
    """
    import requests
    from urllib3.connection import HTTPConnection

    faults, unused, lock, numbers = iter(faults), [], threading.Lock(), itertools.count()
    send, getresponse, this = requests.Session.send, HTTPConnection.getresponse, threading.local()

    def has_come(plan):
        return any(entry["headers"].get(PLANNED.lower()) == plan for entry in state.log)

    def planning(session, request, **options):
        if not request.url.endswith("/infer"):
            return send(session, request, **{**options, "timeout": LONG})
        with lock:
            fault, number = unused.pop() if unused else next(faults, None), next(numbers)
        request.headers[PLANNED] = this.plan = json.dumps({"number": number, "fault": fault})
        this.silent = fault == "timeout"
        reply = send(session, request, **{**options, "timeout": (LONG, SHORT) if this.silent else LONG})
        if UNUSED in reply.headers:
            with lock:
                unused.append(fault)
        return reply

    def patient(connection):
        deadline = time.monotonic() + LONG
        while getattr(this, "silent", False) and not has_come(this.plan):
            assert time.monotonic() < deadline, "the request did not come"
            time.sleep(0.002)
        return getresponse(connection)

    requests.Session.send, HTTPConnection.getresponse = planning, patient
    try:
        yield
    finally:
        requests.Session.send, HTTPConnection.getresponse = send, getresponse
