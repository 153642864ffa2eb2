"""Replies of a server, checked and turned into Answers. What does not fit is a Fault: the server is asked again.

Public: Reader.
"""

import math
import re
import reprlib
import threading
from collections import Counter

import numpy as np

from suspects.connection import MOST_BYTES, Fault
from suspects.metadata import Tensor, role_of, width_of
from suspects.suspect import Answers
from suspects.wire import KINDS, MALFORMED

SCORED = re.compile(r"([^:]+):(\d+)(?::.*)?", re.DOTALL)  # Triton's classification: score:index or score:index:label
SLACK_BYTES = 2**16


class Reader:
    """Reads the replies of one model. Any number of threads may use it.

    wanted: the one output to look at, or None; labels: names of classes, or None; names: what the model may call
    itself; version: the only one to be believed, None for that of the first reply.

    outputs, role: of `metadata.role_of`, None until they were declared or the first reply showed them; classes,
    class_names: see Suspect.
    """

    def __init__(self, wanted, labels, names, version):
        self.outputs = self.role = None
        self._wanted, self._names, self.version, self._labels = wanted, names, version, labels
        self.form = self.kind = (
            None  # (values an image, whether there are values), see Answers.kind: of the first reply
        )
        self._lock = threading.RLock()
        self.classes = self.class_names = None
        self._index = {}

    def declare(self, outputs, role):
        """Take what the server declares for its outputs."""
        self.outputs, self.role = outputs, role
        width, labels = width_of(outputs[0]), self._labels
        self.classes = width if self.role == "dense" else len(labels or ()) or None
        if labels and len(labels) == (self.classes or len(labels)):  # names that don't fit the values are no names
            self.class_names = tuple(map(str, labels))
        count = Counter(self.class_names)  # two classes of one name can't be told apart by it
        self._index = {name: index for index, name in enumerate(self.class_names or ()) if count[name] == 1}

    def limit(self, count):
        """Bytes that a reply for `count` images may have: 40 for a number in JSON, 1024 for a string."""
        width, unknown = self.form[0] if self.form else None, [Tensor("", "FP32", (None, None))] * 2
        image = sum(
            1024 * (width or width_of(tensor) or 64)
            if tensor.datatype == "BYTES"
            else 40 * (width or width_of(tensor) or 2**15)
            for tensor in self.outputs or unknown
        )
        return min(SLACK_BYTES + count * image, MOST_BYTES)  # the width is the server's word, too

    def remember(self, answers):
        """Let Answers of an earlier call decide the form of later ones."""
        with self._lock:
            columns = answers.values if answers.classes is None else answers.classes
            self.form = (columns.shape[1], answers.values is not None)
            self.kind = answers.kind
            if self.role == "dense":
                self.classes = self.form[0]

    def read(self, head, tensors, identifier, count):
        """Answers of a reply for `count` images. Raises Fault when it is not what was asked for.

        head: dict with what the reply has of id, model_name and model_version; tensors: {name: (datatype, array)}.
        """
        version = str(head.get("model_version") or self.version or "")
        if (head.get("id") or identifier) != identifier or str(head.get("model_name") or "") not in self._names:
            raise Fault("the reply belongs to another request or model")
        if self.version and version != self.version:
            raise Fault(f"the reply is of version {version[:50]}, not {self.version}; name a version in the address")
        with self._lock:
            if self.outputs is None:
                self._learn(tensors)
            answers = self._combine([self._take(tensor, tensors, count) for tensor in self.outputs])
            self._compare(answers)
            self.version = version or None
        return answers

    def _learn(self, tensors):
        """Take what the first reply holds for the outputs of a model that declares none."""
        found = [Tensor(str(name), datatype, (None, *array.shape[1:])) for name, (datatype, array) in tensors.items()]
        self.declare(*role_of(found, ", ".join(map(str, found)) or "none", self._wanted))

    def _compare(self, answers):
        """Raise Fault where answers are of another form than those before, or hold probabilities beside logits."""
        columns, kind = answers.values if answers.classes is None else answers.classes, answers.kind
        form, name = (columns.shape[1], answers.values is not None), self.outputs[0].name
        if self.form not in (None, form):
            raise Fault(f"output {name!r} has another form than before: {form}, not {self.form}")
        if kind == "both":
            raise Fault(f"output {name!r} has probabilities and logits in one reply, which can't be judged together")
        if self.kind and kind and kind != self.kind:
            raise Fault(
                f"output {name!r} has {kind} in this reply and had {self.kind} before, which can't be judged together: "
                "different models may answer behind this address"
            )
        self.form, self.kind = form, self.kind or kind
        if self.role == "dense":
            self.classes = form[0]

    def _take(self, tensor, tensors, count):
        """The array (count, k) of one output of a reply."""
        datatype, array = tensors.get(tensor.name, ("missing", np.empty(0)))
        if KINDS.get(datatype) != KINDS[tensor.datatype]:
            raise Fault(f"output {tensor.name!r} is {datatype[:20]}, not {tensor.datatype}")
        shape, width = array.shape, 1 if self.role == "labels" else width_of(tensor)
        if array.ndim == 1 and self.role in ("labels", "text"):
            array = array[:, None]
        if array.ndim != 2 or len(array) != count or array.shape[1] != (width or array.shape[1]) or not array.size:
            raise Fault(f"output {tensor.name!r} has the shape {list(shape)}, not [{count}, {width or 'classes'}]")
        if KINDS[datatype] == "float":
            with np.errstate(over="ignore"):
                array = array.astype(np.float32)
            # Nobody may veto a verdict with one NaN: see Answers.missing.
            array = np.where(np.isfinite(array).all(axis=1, keepdims=True), array, np.nan).astype(np.float32)
        return array

    def _combine(self, arrays):
        """Answers from the arrays of all outputs."""
        if self.role == "dense":
            return Answers(arrays[0])
        if self.role == "text":
            arrays = self._parse(arrays[0])
        values, classes = arrays if len(arrays) == 2 else (None, arrays[0])
        name = self.outputs[-1].name
        if values is not None and values.shape != classes.shape:
            raise Fault(f"output {name!r} has the shape {list(classes.shape)}, its values {list(values.shape)}")
        if classes.min() < (0 if values is None else -1) or classes.max() >= (self.classes or 2**31):
            raise Fault(f"output {name!r} of shape {list(classes.shape)} names classes that do not exist")
        if values is not None:
            classes = np.where(np.isnan(values).any(axis=1, keepdims=True), -1, classes)
        return Answers(values, classes.astype(np.int32))

    def _parse(self, strings):
        """[values, classes] or [classes] from strings (N, k): labels, indices, or Triton's score:index:label."""
        read = [self._parse_one(text) for text in strings.ravel()]
        scores, classes = (np.array(column).reshape(strings.shape) for column in zip(*read, strict=True))
        given = np.isfinite(scores)
        if given.any() != given.all() or (strings.shape[1] > 1 and not given.all()):
            raise Fault(f"output {self.outputs[0].name!r} of shape {list(strings.shape)} has strings without a score")
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
        raise Fault(f"output {self.outputs[0].name!r} says {reprlib.repr(text)}, which is no class")
