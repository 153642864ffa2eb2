"""A server as the model under audit: a client of the Open Inference Protocol (KServe v2, Triton's REST).

What a server sends is untrusted: replies are limited in size, checked, and asked for again when they are wrong. The
values of --header go to that server only and appear in no message and no file.

Public: open_server, ServerSuspect.
"""

import hashlib
import json
import math
import os
import random
import re
import reprlib
import time
import uuid
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import unquote

import numpy as np

from kit.errors import UserError
from suspects.suspect import Answers, Preprocessing, Suspect
from suspects.wire import DTYPES, FLOATS, KINDS, MALFORMED, unpacked

EXAMPLE = "http://localhost:8000/v2/models/resnet50 or http://localhost:8000/v2/models/resnet50/versions/2"
ADDRESS = re.compile(r"((https?://[^/?#\s\\]+)/v2/models/([^/?#\s\\]+)(?:/versions/([^/?#\s\\]+))?)/?")
VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")
SCORED = re.compile(r"([^:]+):(\d+)(?::.*)?", re.DOTALL)  # Triton's classification: score:index or score:index:label
SETTINGS = ("size", "resize", "mean", "std", "white", "interpolation")
RETRIED = {408, 425, 429, 500, 502, 503, 504}
HINTS = {
    401: "; give the right --header",
    403: "; give the right --header",
    413: "; lower --batch_size",
    404: "; check the model's name and version",
}
FIRST_PAUSE, LONGEST_PAUSE, LONGEST_RETRY_AFTER = 0.5, 30.0, 300.0  # seconds
METADATA_BYTES, ERROR_BYTES, SLACK_BYTES, MOST_BYTES = 2**23, 2**16, 2**16, 2**28
# Numbers in one request, some 40 MB: servers refuse larger ones, and as JSON they take ten times as much memory here.
JSON_NUMBERS, BINARY_NUMBERS, MOST_IN_BATCH = 2**21, 10**7, 256


class _Fault(Exception):
    """The server failed in a way that may pass. retry_after: seconds that it asked for, 0.0 for none."""

    def __init__(self, message, retry_after=0.0):
        super().__init__(message)
        self.retry_after = retry_after


def open_server(
    url,
    headers=(),
    rate_limit=None,
    timeout=30.0,
    retries=6,
    overrides=None,
    batch_size=64,
    *,
    sleep=time.sleep,
    clock=time.monotonic,
):
    """Ask a server for a model's metadata and return it as a ServerSuspect.

    url: http(s)://host:port/v2/models/NAME, or that with /versions/V; headers: strings "Name: value", $NAME or ${NAME}
    in a value is that environment variable; rate_limit: requests per second at most, None for no limit; timeout:
    seconds to connect, and to wait for each part of a reply; retries: how often a request is repeated; overrides: what
    wins over the server's Preprocessing (input_size, resize, mean, std, white, interpolation; None is "not given").
    An input of three dimensions is one whose batch dimension the server hides, as Triton's configurations do when
    max_batch_size is above 0; images are sent to it in batches all the same. Raises UserError.
    """
    if not all(limit is None or 0 < limit < math.inf for limit in (rate_limit, timeout)):
        raise UserError("the rate limit and the time-out of a server must be above 0")
    if "@" in url.partition("//")[2].partition("/")[0] or "@" in url.partition("//")[0]:
        raise UserError(
            "the server's address has a user name or password inside",
            advice="give them with --header instead",
            flag="--header",
        )
    address = ADDRESS.fullmatch(url)
    if not address:  # not quoted: a token may be in it
        raise UserError(f"the address of a server's model must look like {EXAMPLE}")
    connection = _Connection(address[1], *_headers(headers), rate_limit, timeout, retries, sleep, clock)
    with connection.reported():
        return ServerSuspect(connection, address, overrides or {}, batch_size)


def _headers(lines):
    """{name: value} of "Name: value" strings, and the texts that must never be shown. No message quotes a value."""
    values, secrets = {}, set()

    def expand(match):
        value = os.environ.get(match[1] or match[2])
        if not value:
            raise UserError(
                f"--header needs the environment variable {match[1] or match[2]}, which is not set",
                advice="set it",
                flag="--header",
            )
        secrets.add(value)
        return value

    for number, line in enumerate(lines, 1):
        name, _, value = line.partition(":")
        if ":" not in line or not re.fullmatch(r"[!#$%&'*+.^_`|~\w-]+", name, re.ASCII):
            raise UserError(
                f'--header number {number} is not of the form "Name: value"', advice="write it so", flag="--header"
            )
        values[name] = VARIABLE.sub(expand, value).strip(" \t")
        if not re.fullmatch(r"[\t\x20-\x7e\xa0-\xff]*", values[name]):
            raise UserError(
                f"the value of --header {name} must be one line of printable Latin-1 characters", flag="--header"
            )
        secrets.update([values[name], *values[name].split()])
    # Nothing that short is secret, and the scheme's name makes messages about it readable. The longest goes first, so
    # that no part of it is left over.
    secrets = {secret for secret in secrets if len(secret) > 2 and secret.lower() not in ("bearer", "basic", "token")}
    return values, sorted(secrets, key=len, reverse=True)


class _Connection:
    """Sends requests, spaced and repeated as needed, to one server."""

    def __init__(self, url, headers, secrets, rate_limit, timeout, retries, sleep, clock):
        import requests

        self.url, self.requests_sent, self.retries_made = url, 0, 0
        self._secrets, self._timeout, self._retries, self._sleep, self._clock = secrets, timeout, retries, sleep, clock
        self._spacing, self._next = 1 / rate_limit if rate_limit else 0.0, -math.inf
        self._random = random.Random()  # of its own: the jitter must not move the seeds of the audit
        self._session = requests.Session()
        self._session.headers.update(headers)
        self._session.auth = lambda request: request  # else a .netrc would replace --header Authorization

    def clean(self, text):
        """One printable line of a server's text, without the secrets, in which it may have echoed them."""
        text = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    @contextmanager
    def reported(self):
        """Turn faults and errors inside into one UserError that names the server."""
        try:
            yield
        except (_Fault, UserError) as error:
            raise UserError(f"{self.url}: {self.clean(error)[:1000]}") from None

    def send(self, method, url, read, limit, body=None, headers=None, retries=None):
        """read(content, headers) of a 200 of at most `limit` bytes; repeats after faults, those of `read` included."""
        retries = self._retries if retries is None else retries
        for attempt in range(retries + 1):
            self._wait_for_turn()
            try:
                return self._once(method, url, read, limit, body, headers or {})
            except _Fault as fault:
                last = fault
            if attempt < retries:
                pause = min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE) * self._random.uniform(0.5, 1)
                self._sleep(max(pause, last.retry_after))
                self.retries_made += 1
        raise UserError(
            f"gave up after {retries + 1} tries: {last}", advice="try again later, or ask the server's owner"
        )

    def _wait_for_turn(self):
        now = self._clock()
        if now < self._next:
            self._sleep(self._next - now)
        self._next = max(now, self._next) + self._spacing

    def _once(self, method, url, read, limit, body, headers):
        import requests

        self.requests_sent += 1
        headers = {**headers, "Accept-Encoding": "identity"}
        try:
            with self._session.request(
                method, url, data=body, headers=headers, timeout=self._timeout, stream=True, allow_redirects=False
            ) as response:
                content = _content(response, limit) if response.status_code == 200 else _error_content(response)
        except requests.Timeout:
            raise _Fault(f"no answer within {self._timeout:g} s") from None
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise UserError(
                    "its TLS certificate is not trusted",
                    advice="if it is your own authority's, name that in REQUESTS_CA_BUNDLE",
                ) from None
            raise _Fault(f"the connection failed ({_cause(error)})") from None
        except (OSError, ValueError) as error:  # requests' own are OSErrors, as is a missing REQUESTS_CA_BUNDLE
            raise UserError(
                f"the request can't be made ({error})", advice="check the address and the proxy settings"
            ) from None
        if response.status_code != 200:
            raise self._refusal(response, content)
        return read(content, response.headers)

    def _refusal(self, response, content):
        status = response.status_code
        if 300 <= status < 400:
            place = self.clean(response.headers.get("Location", "elsewhere"))[:200]
            return UserError(
                f"redirects ({status}) to {place}, which is not followed because --header would go there, too",
                advice="give the final address",
                flag="--header",
            )
        try:
            reason = json.loads(content)["error"]
        except MALFORMED:
            reason = response.reason
        text = f"the server answered {status}: {self.clean(reason)[:200]}"
        if status in RETRIED or 200 <= status < 300:
            return _Fault(text, _retry_after(response.headers.get("Retry-After", "")))
        return UserError(text + HINTS.get(status, ""))


def _content(response, limit):
    # Unpacking could turn a few bytes into more than the memory holds, and nobody asked for a compressed reply.
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise _Fault("the reply is compressed, which it must not be")
    content = bytearray()
    for chunk in response.iter_content(2**16):
        content += chunk
        if len(content) > limit:
            raise _Fault(f"the reply is longer than the {limit} bytes that it may have")
    return bytes(content)


def _error_content(response):
    try:
        return _content(response, ERROR_BYTES)
    except _Fault:
        return b""


def _cause(error):
    """The innermost reason in plain words: the outer ones show object addresses."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return getattr(error, "strerror", None) or error


def _retry_after(text):
    """Seconds that a Retry-After header asks for, from a number or an HTTP date; 0.0 for anything else."""
    try:
        seconds = float(text) if text.isdecimal() else parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)


@dataclass(frozen=True)
class _Tensor:
    """An input or output in the metadata; shape has None where a dimension is free."""

    name: str
    datatype: str
    shape: tuple

    def __str__(self):
        return f"{self.name!r} ({self.datatype}, {[-1 if side is None else side for side in self.shape]})"


def _tensors(metadata, key):
    try:
        tensors = [
            _Tensor(
                str(entry["name"]),
                str(entry["datatype"]),
                tuple(None if side < 0 else int(side) for side in entry["shape"]),
            )
            for entry in metadata[key]
        ]
    except MALFORMED:
        raise UserError(f"its metadata has no proper list of {key}", advice="ask the server's owner") from None
    return tensors, ", ".join(map(str, tensors)) or "none"


def _image_input(metadata):
    """(tensor, whether its batch dimension was hidden, whether it is NCHW); the tensor's shape has four dimensions."""
    tensors, listing = _tensors(metadata, "inputs")
    shape = tensors[0].shape if len(tensors) == 1 else ()
    hidden = len(shape) == 3
    shape = (None, *shape) if hidden else shape
    if len(shape) != 4 or 3 not in (shape[1], shape[3]) or 0 in shape:
        raise UserError(
            f"needs one input of images, (N, 3, height, width) or (N, height, width, 3), but has {listing}",
            advice="this model can't be asked",
        )
    if tensors[0].datatype not in (*FLOATS, "UINT8"):
        raise UserError(f"images can be sent as FP16, FP32, FP64 or UINT8, but its input is {listing}")
    return _Tensor(tensors[0].name, tensors[0].datatype, shape), hidden, shape[1] == 3


def _output_role(metadata, hidden):
    """(the outputs, floats first; what they are together: "dense", "labels", "text" or "top_k")."""
    tensors, listing = _tensors(metadata, "outputs")
    if hidden:
        tensors = [_Tensor(tensor.name, tensor.datatype, (None, *tensor.shape)) for tensor in tensors]
    tensors.sort(key=lambda tensor: KINDS.get(tensor.datatype, ""))
    ranks, widths = [len(tensor.shape) for tensor in tensors], [_width(tensor) for tensor in tensors]
    roles = {
        ("float",): ("dense", ranks == [2]),
        ("text",): ("text", ranks in ([1], [2])),
        ("integer",): ("labels", ranks == [1] or (ranks == [2] and widths[0] in (1, None))),
        ("float", "integer"): ("top_k", ranks == [2, 2] and len({*widths} - {None}) < 2),
    }
    role, fits = roles.get(tuple(KINDS.get(tensor.datatype) for tensor in tensors), ("", False))
    if not fits:
        raise UserError(
            "needs one output of values (N, classes), of labels (N) as integers or BYTES, or one of values "
            f"and one of classes (N, k), but has {listing}",
            advice="this model can't be asked",
        )
    return tensors, role


def _width(tensor):
    return 1 if len(tensor.shape) == 1 else tensor.shape[-1] if len(tensor.shape) == 2 else None


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


def _settings(values, giver):
    """Settings of Preprocessing, converted and checked; those that are None left out."""
    values = {name: value for name, value in values.items() if value is not None}
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


def _preprocessing(tensor, nchw, stated, overrides):
    """Preprocessing from the input's shape, what the server stated, and the flags, the last winning."""
    overrides = {"size" if name == "input_size" else name: value for name, value in overrides.items()}
    server, flags = _settings(stated, "the server"), _settings(overrides, "the flags")
    raw = tensor.datatype == "UINT8"
    if raw and {"mean", "std", "white"} & flags.keys():
        raise UserError(f"its input {tensor} takes raw pixels", advice="leave mean, std and white away")
    pixels = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "white": 255.0} if raw else {}
    settings = {**server, **flags, **pixels}
    shape = tensor.shape[2:] if nchw else tensor.shape[1:3]
    size = settings.pop("size", (None, None))
    if any(None not in pair and len({*pair}) > 1 for pair in zip(shape, size, strict=True)):
        raise UserError(
            f"its input is {tensor}, but the preprocessing says {list(size)}",
            advice="correct --input_size",
            flag="--input_size",
        )
    size = tuple(fixed or given for fixed, given in zip(shape, size, strict=True))
    if None in size:
        raise UserError(
            f"its input {tensor} has no fixed size and its metadata names none",
            advice="give --input_size",
            flag="--input_size",
        )
    assumed = not {"mean", "std"} <= settings.keys() or not (server or flags)
    givers = [name for name, given in (("server", server), ("flags", flags), ("defaults", assumed)) if given]
    return Preprocessing(size, **settings, source=" and ".join(givers))


class ServerSuspect(Suspect):
    """A model behind a server. requests_sent, retries_made: what the audit took so far, opening it included."""

    def __init__(self, connection, address, overrides, batch_size):
        self._connection, (self._url, base, model, version) = connection, address.groups()
        metadata = connection.send("GET", self._url, _json_object, METADATA_BYTES)
        self._binary = self._speaks_binary(base)
        self._input, hidden, self._nchw = _image_input(metadata)
        self._outputs, self._role = _output_role(metadata, hidden)
        self.preprocessing = _preprocessing(
            self._input, self._nchw, _parameter(metadata, "preprocessing", dict) or {}, overrides
        )
        self._take_labels(_parameter(metadata, "labels", list))
        room = (BINARY_NUMBERS if self._binary else JSON_NUMBERS) // (3 * math.prod(self.preprocessing.size))
        fixed = self._input.shape[0] or batch_size
        if fixed > max(batch_size, MOST_IN_BATCH):
            raise UserError(f"wants {fixed} images in each request, which is too many", advice="ask the server's owner")
        self.batch_size = max(1, min(batch_size, room, fixed))
        # Every reply must be from this model; without a version in the address, from the one that answered first.
        self._names, self._version = {"", unquote(model), str(metadata.get("name"))}, version
        self._form = None  # (how many values per image, whether there are values) of the first right reply
        self.name = f"{unquote(model)} at {base}"
        self.identity = self._identify(metadata, unquote(model))

    requests_sent = property(lambda self: self._connection.requests_sent)
    retries_made = property(lambda self: self._connection.retries_made)

    def _speaks_binary(self, base):
        try:  # servers need not have this page; plain JSON always works
            server = self._connection.send("GET", f"{base}/v2", _json_object, METADATA_BYTES, retries=1)
            return "binary_tensor_data" in server["extensions"]
        except (UserError, *MALFORMED):
            return False

    def _take_labels(self, labels):
        width = _width(self._outputs[0])
        self.classes = width if self._role == "dense" else len(labels or ()) or None
        if labels and len(labels) == (self.classes or len(labels)):  # names that don't fit the values are no names
            self.class_names = tuple(map(str, labels))
        count = Counter(self.class_names)  # two classes of one name can't be told apart by it
        self._index = {name: index for index, name in enumerate(self.class_names or ()) if count[name] == 1}

    def _identify(self, metadata, model):
        clean = self._connection.clean
        versions = metadata.get("versions")
        versions = [self._version] if self._version else versions if isinstance(versions, list) else []
        canonical = json.dumps(metadata, sort_keys=True, separators=(",", ":"))
        return {
            "kind": "open inference protocol",
            "url": self._url,
            "model": model,
            "versions": [clean(version)[:100] for version in versions[:100]],
            "platform": clean(metadata.get("platform", ""))[:100],
            "metadata_sha256": hashlib.sha256(canonical.encode()).hexdigest(),
        }

    def ask(self, images):
        """Answers for uint8 images (N, 3, h, w), 1 <= N <= batch_size, in one request. Raises UserError."""
        if (
            images.dtype != np.uint8
            or images.shape[1:] != (3, *self.preprocessing.size)
            or not 1 <= len(images) <= self.batch_size
        ):
            raise ValueError(
                f"images are {images.dtype} {images.shape}, not 1 to {self.batch_size} of "
                f"uint8 {(3, *self.preprocessing.size)}"
            )
        # A fixed batch is always full; what was added is cut off the answers.
        count = self._input.shape[0] or len(images)
        padded = np.concatenate([images, np.repeat(images[-1:], count - len(images), axis=0)])
        identifier = uuid.uuid4().hex
        with self._connection.reported():
            body, headers = self._request(padded, identifier)
            answers = self._connection.send(
                "POST",
                f"{self._url}/infer",
                lambda content, headers: self._read(content, headers, identifier, count),
                self._reply_limit(count),
                body,
                headers,
            )
        return Answers(
            *(None if array is None else array[: len(images)] for array in (answers.values, answers.classes))
        )

    def _request(self, images, identifier):
        """(body, headers) that ask for the images."""
        pixels = images if self._input.datatype == "UINT8" else self.preprocessing.normalize(images)
        pixels = pixels if self._nchw else pixels.transpose(0, 2, 3, 1)
        with np.errstate(over="ignore"):
            pixels = np.ascontiguousarray(pixels, dtype=DTYPES[self._input.datatype])
        if not np.isfinite(pixels).all():
            raise UserError(f"normalised images don't fit {self._input.datatype}", advice="correct mean, std and white")
        entry = {"name": self._input.name, "datatype": self._input.datatype, "shape": pixels.shape}
        request = {"id": identifier, "inputs": [entry], "outputs": [{"name": tensor.name} for tensor in self._outputs]}
        if not self._binary:
            entry["data"] = pixels.ravel().tolist()  # as float64, whose shortest decimals give every float32 back
            return json.dumps(request, separators=(",", ":")).encode(), {"Content-Type": "application/json"}
        entry["parameters"] = {"binary_data_size": pixels.nbytes}
        for output in request["outputs"]:
            output["parameters"] = {"binary_data": True}
        header = json.dumps(request).encode()
        return header + pixels.tobytes(), {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(header)),
        }

    def _reply_limit(self, count):
        """Bytes that a reply for `count` images may have: 40 for a number in JSON, 1024 for a string."""
        width = self._form[0] if self._form else None
        image = sum(
            1024 * (width or _width(tensor) or 64)
            if tensor.datatype == "BYTES"
            else 40 * (width or _width(tensor) or 2**15)
            for tensor in self._outputs
        )
        return min(SLACK_BYTES + count * image, MOST_BYTES)  # the width is the server's word, too

    def _read(self, content, headers, identifier, count):
        """Answers of a reply. Raises _Fault when it is not what was asked for."""
        try:
            reply, tensors = unpacked(content, headers)
        except MALFORMED as error:
            raise _Fault(f"the reply is malformed ({reprlib.repr(str(error))})") from None
        version = str(reply.get("model_version") or self._version or "")
        if (reply.get("id") or identifier) != identifier or str(reply.get("model_name") or "") not in self._names:
            raise _Fault("the reply belongs to another request or model")
        if self._version and version != self._version:
            raise _Fault(f"the reply is of version {version[:50]}, not {self._version}; name a version in the address")
        answers = self._combine([self._take(tensor, tensors, count) for tensor in self._outputs])
        columns = answers.values if answers.classes is None else answers.classes
        form = (columns.shape[1], answers.values is not None)
        if self._form not in (None, form):
            raise _Fault(f"output {self._outputs[0].name!r} has another form than before: {form}, not {self._form}")
        self._form, self._version = form, version or None
        if self._role == "dense":
            self.classes = form[0]
        return answers

    def _take(self, tensor, tensors, count):
        """The array (count, k) of one output of a reply."""
        datatype, array = tensors.get(tensor.name, ("missing", np.empty(0)))
        if KINDS.get(datatype) != KINDS[tensor.datatype]:
            raise _Fault(f"output {tensor.name!r} is {datatype[:20]}, not {tensor.datatype}")
        shape, width = array.shape, 1 if self._role == "labels" else _width(tensor)
        if array.ndim == 1 and self._role in ("labels", "text"):
            array = array[:, None]
        if array.ndim != 2 or len(array) != count or array.shape[1] != (width or array.shape[1]) or not array.size:
            raise _Fault(f"output {tensor.name!r} has the shape {list(shape)}, not [{count}, {width or 'classes'}]")
        if KINDS[datatype] == "float":
            with np.errstate(over="ignore"):
                array = array.astype(np.float32)
            # Nobody may veto a verdict with one NaN: see Answers.missing.
            array = np.where(np.isfinite(array).all(axis=1, keepdims=True), array, np.nan).astype(np.float32)
        return array

    def _combine(self, arrays):
        """Answers from the arrays of all outputs."""
        if self._role == "dense":
            return Answers(arrays[0])
        if self._role == "text":
            arrays = self._parse(arrays[0])
        values, classes = arrays if len(arrays) == 2 else (None, arrays[0])
        name = self._outputs[-1].name
        if values is not None and values.shape != classes.shape:
            raise _Fault(f"output {name!r} has the shape {list(classes.shape)}, its values {list(values.shape)}")
        if classes.min() < (0 if values is None else -1) or classes.max() >= (self.classes or 2**31):
            raise _Fault(f"output {name!r} of shape {list(classes.shape)} names classes that do not exist")
        if values is not None:
            classes = np.where(np.isnan(values).any(axis=1, keepdims=True), -1, classes)
        return Answers(values, classes.astype(np.int32))

    def _parse(self, strings):
        """[values, classes] or [classes] from strings (N, k): labels, indices, or Triton's score:index:label."""
        read = [self._parse_one(text) for text in strings.ravel()]
        scores, classes = (np.array(column).reshape(strings.shape) for column in zip(*read, strict=True))
        given = np.isfinite(scores)
        if given.any() != given.all() or (strings.shape[1] > 1 and not given.all()):
            raise _Fault(f"output {self._outputs[0].name!r} of shape {list(strings.shape)} has strings without a score")
        return [scores.astype(np.float32), classes] if given.all() else [classes]

    def _parse_one(self, text):
        """(score, NaN for none, index) of one string."""
        if text in self._index or re.fullmatch(r"\d{1,9}", text, re.ASCII):
            return math.nan, self._index[text] if text in self._index else int(text)
        try:
            score, index = SCORED.fullmatch(text).groups()
            if abs(float(score)) < 3e38:  # neither NaN nor beyond float32
                return float(score), int(index)
        except MALFORMED:
            pass
        raise _Fault(f"output {self._outputs[0].name!r} says {reprlib.repr(text)}, which is no class")


def _json_object(content, headers):
    try:
        value = json.loads(content)
    except MALFORMED:
        value = None
    if not isinstance(value, dict):
        raise _Fault("the reply is not a JSON object")
    return value


def _parameter(metadata, name, kind):
    """A list or dict in the metadata's parameters, which may be written as JSON in a string; None when absent."""
    try:
        value = (metadata.get("parameters") or {}).get(name)
        value = json.loads(value) if isinstance(value, str) else value
        if value is None or isinstance(value, kind):
            return value
    except MALFORMED:
        pass
    raise UserError(f"its metadata has a {name} parameter that can't be read", advice="ask the server's owner")
