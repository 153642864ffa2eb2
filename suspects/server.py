"""A server as the model under audit: a client of the Open Inference Protocol (KServe v2), over HTTP or gRPC.

What a server sends is untrusted: replies are limited in size, checked, and asked for again when they are wrong. The
values of --header go to that server only and appear in no message and no file.

Public: open_server, ServerSuspect, is_address, name_of.
"""

import hashlib
import json
import math
import re
import sys
import threading
import time
import uuid
from dataclasses import replace
from urllib.parse import unquote

import numpy as np

from kit.errors import UserError
from suspects import calibration as calibrating
from suspects import grpc_server, metadata, rest
from suspects.answering import pattern
from suspects.connection import Courier, Http, Refusal, headers_of
from suspects.metadata import Hints
from suspects.probing import found_form
from suspects.replies import Reader
from suspects.suspect import Preprocessing, Suspect, joined
from suspects.wire import DTYPES, Question

EXAMPLE = (
    "http://localhost:8000/v2/models/resnet50, http://localhost:8000/v2/models/resnet50/versions/2 or, for gRPC, "
    "grpc://localhost:8001/resnet50"
)
SCHEME = re.compile(r"(https?|grpcs?)://")
BARE = re.compile(r"[\w.-]+(:\d+)?/v2/models/\S+")  # what looks like an address without its scheme
MOST_IN_BATCH = 256  # that a server may insist on


def is_address(text):
    """Whether --checkpoint means a server, be it written wrongly, rather than a file."""
    return bool(SCHEME.match(text) or BARE.match(text))


def name_of(address):
    """What a model at an address is called: "NAME at http://host:port". Raises UserError for no address."""
    _, server, model, _ = _parsed(address).groups()
    return f"{unquote(model)} at {server}"


def _parsed(address):
    """The match of REST's or gRPC's ADDRESS. Raises UserError."""
    if "@" in address.partition("//")[2].partition("/")[0] or "@" in address.partition("//")[0]:
        raise UserError(
            "the server's address has a user name or password inside",
            advice="give them with --header instead",
            flag="--header",
        )
    match = rest.ADDRESS.fullmatch(address) or grpc_server.ADDRESS.fullmatch(address)
    if match and not (match[1].startswith("grpc") and match[3] == "v2"):
        return match
    # Not quoted unless it is wholly understood: a token may be in it.
    instead = None
    if BARE.match(address) and rest.ADDRESS.fullmatch(f"http://{address}"):
        instead = f"http://{address}"
    elif found := re.fullmatch(r"(grpcs?://[^/?#\s]+)/v2/models/([^/?#\s]+)/?", address):
        instead = f"{found[1]}/{found[2]} with the port of gRPC"
    raise UserError(
        f"the address of a server's model must look like {EXAMPLE}",
        advice=f"write {instead}" if instead else None,
        flag="--checkpoint",
    )


def open_server(
    url,
    headers=(),
    rate_limit=None,
    timeout=30.0,
    retries=6,
    overrides=None,
    batch_size=64,
    concurrency=4,
    hints=None,
    calibration=None,
    stored=None,
    *,
    sleep=time.sleep,
    clock=time.monotonic,
):
    """Ask a server for a model's metadata and return it as a ServerSuspect.

    url: http(s)://host:port/v2/models/NAME or grpc(s)://host:port/NAME, or one of them with /versions/V; headers:
    strings "Name: value", $NAME or ${NAME} in a value is that environment variable; rate_limit: requests per second at
    most, None for no limit; timeout: seconds to connect, and to wait for each part of a reply; retries: how often a
    request is repeated; overrides: what wins over the server's Preprocessing (input_size or size, resize, mean, std,
    white, interpolation; None is "not given"); batch_size: images in a request; concurrency: requests at once; hints:
    the fields of a `metadata.Hints`, for servers that don't declare their tensors; calibration: a
    `calibration.Calibration` that proposes mean and std where nobody says them; stored: {"preprocessing": its fields,
    "calibration"} as the same audit began, which is used again unless the flags contradict.

    An input of three dimensions is one whose batch dimension the server hides; images are sent to it in batches all
    the same. Raises UserError, also where mean and std are not known.
    """
    if not all(limit is None or 0 < limit < math.inf for limit in (rate_limit, timeout)):
        raise UserError("the rate limit and the time-out of a server must be above 0")
    match = _parsed(url)
    values, secrets = headers_of(headers)
    settings = (secrets, rate_limit, timeout, retries, sleep, clock)
    if match[1].startswith("grpc"):
        courier = Courier(match[1], *settings)
        endpoint = grpc_server.Grpc(match, courier, values)
    else:
        courier = Http(match[1], values, *settings)
        endpoint = rest.Rest(match, courier)
    with courier.reported():
        return ServerSuspect(
            endpoint,
            name_of(url),
            overrides or {},
            batch_size,
            concurrency,
            Hints(**(hints or {})),
            calibration,
            stored,
        )


class ServerSuspect(Suspect):
    """A model behind a server. requests_sent, retries_made: what the audit took so far, opening it included."""

    def __init__(self, endpoint, name, overrides, batch_size, concurrency, hints, calibration=None, stored=None):
        self._endpoint, self._courier, self.name = endpoint, endpoint.courier, name
        self._limit, self.concurrency, self._said = batch_size, concurrency, threading.Lock()
        described = endpoint.metadata()
        config = endpoint.look_around()
        flags = metadata.settings_of(overrides, "the flags")
        stated = metadata.settings_of(
            metadata.stated_parameter(described, config, "preprocessing", dict) or {}, "the server"
        )
        stored, earlier = _usable(stored, flags, hints), stored and stored.get("calibration")
        self._reader = Reader(
            hints.output,
            metadata.stated_parameter(described, config, "labels", list),
            {"", endpoint.model, str(described.get("name"))},
            endpoint.version,
        )
        self._settle_form(described, hints, stated, flags, stored)
        self._limit = min(self._limit, metadata.most_in_batch(config) or self._limit)
        fixed = self._form.tensor.shape[0]
        if fixed and fixed > max(batch_size, MOST_IN_BATCH):
            raise UserError(f"wants {fixed} images in each request, which is too many", advice="ask the server's owner")
        self._limit = min(self._limit, fixed or self._limit)
        self._most = self._limit  # which does not shrink
        self.identity = self._identify(described)
        if stored:
            self.preprocessing, self.calibration = stored, earlier
        else:
            self._settle_preprocessing(stated, flags, calibration)

    requests_sent = property(lambda self: self._courier.requests_sent)
    retries_made = property(lambda self: self._courier.retries_made)
    classes = property(lambda self: self._reader.classes)
    class_names = property(lambda self: self._reader.class_names)

    @property
    def batch_size(self):
        room = self._endpoint.most_numbers // (3 * math.prod(self.preprocessing.size))
        return max(1, min(self._limit, room))

    def remember(self, answers):
        self._reader.remember(answers)

    # --- how it is asked ---

    def _settle_form(self, described, hints, stated, flags, stored):
        """Find out how images are sent and what comes back: from metadata, flags, an earlier time, or by asking."""
        form = metadata.declared_form(described, hints)
        found = metadata.output_role(described, form.hidden if form else False, hints.output)
        words = "flags" if hints.output or (form and form.source) else None
        if found:
            self._reader.declare(*found)
        if form is None or found is None:
            # One neutral picture shows how the model wants to be asked, and what it answers.
            sides = form.sides if form else metadata.hinted_sides(hints)
            size = stored.size if stored else metadata.needed_size(sides, stated, flags)
            if form:
                self._try(form, size)
            else:
                known = stored.form if stored and stored.form else None
                if known:
                    hints = replace(hints, name=known["input"], datatype=known["datatype"], layout=known["layout"])
                form = found_form(lambda form: self._try(form, size), hints)
            words = "flags" if hints.complete else "found by asking"
        self._form, self.form = form, None
        if words:
            self.form = {
                "input": form.tensor.name,
                "datatype": form.tensor.datatype,
                "layout": form.layout,
                "output": ", ".join(tensor.name for tensor in self._reader.outputs),
                "from": words,
            }

    def _try(self, form, size):
        """The answers to one neutral picture in a form that may be wrong: Answers, or a Refusal."""
        fixed = form.tensor.shape[0] or 1
        pixels = np.repeat(pattern(1, size), fixed, axis=0)
        return self._exchange(form, pixels if form.tensor.datatype == "UINT8" else pixels / np.float32(255), plain=True)

    def _settle_preprocessing(self, stated, flags, calibration):
        """Mean and std are known, or found by asking about photos of no consequence, or missing: a UserError."""
        settings, givers = metadata.needed_preprocessing(self._form, stated, flags)
        if {"mean", "std"} <= settings.keys():
            self.preprocessing = metadata.preprocessing_of(settings, givers, self.form)
            return
        if calibration is None:
            raise UserError(
                "it does not say how photos become its input, and a wrong guess would make the audit worthless",
                advice="give --mean and --std as in its training",
                command="or let --calibration FOLDER (or own, your photos) propose them",
                flag="--mean",
            )
        self.preprocessing, self.calibration = calibrating.calibrate(
            self._ask_under, settings, givers, self.form, calibration
        )

    def _ask_under(self, preprocessing, images):
        """Answers for any number of images under another Preprocessing."""
        self.preprocessing = preprocessing
        return self._ask_in_parts(images)

    # --- asking ---

    def ask(self, images):
        """Answers for uint8 images (N, 3, h, w), 1 <= N <= batch_size at first. Raises UserError.

        A server that refuses a request for its size gets smaller ones from then on.
        """
        if (
            images.dtype != np.uint8
            or images.shape[1:] != (3, *self.preprocessing.size)
            or not 1 <= len(images) <= self._most
        ):
            raise ValueError(
                f"images are {images.dtype} {images.shape}, not 1 to {self._most} of "
                f"uint8 {(3, *self.preprocessing.size)}"
            )
        with self._courier.reported():
            return self._ask_in_parts(images)

    def _ask_in_parts(self, images):
        parts, start = [], 0
        while start < len(images):
            part = images[start : start + self.batch_size]
            try:
                parts.append(self._ask_once(part))
            except Refusal as refusal:
                if not refusal.too_large:
                    raise
                if len(part) == 1 or self._form.tensor.shape[0]:
                    raise UserError(
                        f"{refusal.problem}, and fewer images than {len(part)} can't be sent",
                        advice="ask its owner to allow larger requests",
                    ) from None
                self._shrink(len(part) // 2, refusal)
                continue
            start += len(part)
        return joined(parts)

    def _shrink(self, count, refusal):
        with self._said:  # several requests may have been refused at once
            if count < self._limit:
                self._limit = count
                print(
                    f"note: {self.name} refused a request for its size ({refusal.status}); going on with {count} "
                    f"images in one (--query_batch {count} says so from the start)",
                    file=sys.stderr,
                )

    def _ask_once(self, images):
        # A fixed batch is always full; what was added is cut off the answers.
        count = self._form.tensor.shape[0] or len(images)
        padded = np.concatenate([images, np.repeat(images[-1:], count - len(images), axis=0)])
        pixels = padded if self._form.tensor.datatype == "UINT8" else self.preprocessing.normalize(padded)
        return self._exchange(self._form, pixels).rows(slice(len(images)))

    def _exchange(self, form, pixels, plain=False):
        """Answers for pixels (N, 3, h, w), normalised, in one request."""
        pixels = pixels if form.nchw else pixels.transpose(0, 2, 3, 1)
        with np.errstate(over="ignore"):
            pixels = np.ascontiguousarray(pixels, dtype=DTYPES[form.tensor.datatype])
        if not np.isfinite(pixels).all():
            raise UserError(
                f"normalised images don't fit {form.tensor.datatype}",
                advice="correct --mean, --std and --white",
                flag="--mean",
            )
        identifier, reader = uuid.uuid4().hex, self._reader
        outputs = tuple(tensor.name for tensor in reader.outputs) if reader.outputs else ()
        question = Question(identifier, form.tensor.name, form.tensor.datatype, pixels, outputs)
        return self._endpoint.infer(
            question,
            lambda head, tensors: reader.read(head, tensors, identifier, len(pixels)),
            reader.limit(len(pixels)),
            plain,
        )

    def _identify(self, described):
        clean = self._courier.clean
        versions = described.get("versions")
        version = self._endpoint.version
        versions = [version] if version else versions if isinstance(versions, list) else []
        canonical = json.dumps(described, sort_keys=True, separators=(",", ":"))
        return {
            "kind": "open inference protocol",
            "url": self._endpoint.url,
            "model": self._endpoint.model,
            "versions": [clean(version)[:100] for version in versions[:100]],
            "platform": clean(described.get("platform", ""))[:100],
            "metadata_sha256": hashlib.sha256(canonical.encode()).hexdigest(),
        }


def _usable(stored, flags, hints):
    """The Preprocessing with which an audit began; None where it is not known, or the flags of now contradict it."""
    if not stored:
        return None
    fields = stored["preprocessing"]
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    form = values.get("form") or {}
    told = {"input": hints.name, "datatype": hints.datatype, "layout": hints.layout, "output": hints.output}
    same = all(values.get(name) == value for name, value in flags.items()) and all(
        value is None or form.get(name) in (value, None) for name, value in told.items()
    )
    return Preprocessing(**values) if same else None
