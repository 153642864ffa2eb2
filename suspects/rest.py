"""The Open Inference Protocol over HTTP: one model's metadata, configuration and answers.

Public: Rest, ADDRESS, BINARY_NUMBERS.
"""

import re
from urllib.parse import unquote

from kit.errors import UserError
from suspects.connection import METADATA_BYTES, REFUSING, Fault, Refusal, json_object
from suspects.wire import MALFORMED, packed, unpacked

ADDRESS = re.compile(r"((https?://[^/?#\s\\]+)/v2/models/([^/?#\s\\]+)(?:/versions/([^/?#\s\\]+))?)/?")
# Numbers in one request, some 40 MB: servers refuse larger ones, and as JSON they take ten times as much memory here.
JSON_NUMBERS, BINARY_NUMBERS = 2**21, 10**7


class Rest:
    """A model's address. match: of ADDRESS; courier: an Http; binary: whether tensors go in binary form, None as long
    as that is unknown.
    """

    def __init__(self, match, courier):
        self.url, self.base, model, self.version = match.groups()
        self.model, self.courier, self.binary = unquote(model), courier, None

    def metadata(self):
        """What the server says of the model: dict. Raises UserError."""
        return self.courier.send("GET", self.url, json_object, METADATA_BYTES)

    def look_around(self):
        """Learn whether the server lists binary tensors: many accept them without. Returns Triton's configuration of
        the model, dict, None elsewhere.
        """
        # Servers need not have these pages; plain JSON always works.
        server = self._page(f"{self.base}/v2")
        extensions = server.get("extensions")
        extensions = extensions if isinstance(extensions, list) else []
        self.binary = True if "binary_tensor_data" in extensions else None
        return self._page(f"{self.url}/config") or None if "model_configuration" in extensions else None

    def _page(self, url):
        try:
            return self.courier.send("GET", url, json_object, METADATA_BYTES, retries=1)
        except UserError:
            return {}

    @property
    def most_numbers(self):
        """How many numbers a request may have."""
        return BINARY_NUMBERS if self.binary else JSON_NUMBERS

    def infer(self, question, read, limit, plain=False):
        """read(head, tensors) of the reply to a `wire.Question`. Raises Refusal, or another UserError.

        plain: only for a try: as JSON, and a status that says "I can't read that" is final although it might pass.
        limit: bytes that the reply may have.
        """
        if plain or self.binary is not None:
            return self._infer(question, read, limit, not plain and self.binary, REFUSING if plain else ())
        try:
            answers = self._infer(question, read, limit, True, REFUSING)
        except Refusal as refusal:
            if refusal.too_large:
                raise
            answers = self._infer(question, read, limit, False)
            self.binary = False
            return answers
        self.binary = True
        return answers

    def _infer(self, question, read, limit, binary, final=()):
        def unpack(content, headers):
            try:
                head, tensors = unpacked(content, headers)
            except MALFORMED as error:
                raise Fault(f"the reply is malformed ({str(error)[:80]!r})") from None
            return read(head, tensors)

        body, headers = packed(question, binary)
        return self.courier.send("POST", f"{self.url}/infer", unpack, limit, body, headers, final=final)
