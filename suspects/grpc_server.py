"""The Open Inference Protocol over gRPC: one model's metadata, configuration and answers. Needs tritonclient[grpc].

Public: Grpc, ADDRESS.
"""

import os
import re
import socket
from urllib.parse import unquote

import numpy as np

from kit.errors import UserError, optional
from suspects.connection import MOST_BYTES, REFUSING, Fault, Refusal
from suspects.rest import BINARY_NUMBERS
from suspects.wire import DTYPES, MALFORMED, from_raw

ADDRESS = re.compile(r"((grpcs?://[^/?#\s\\]+)/([^/?#\s\\]+)(?:/versions/([^/?#\s\\]+))?)/?")
# As HTTP would number them.
STATUSES = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "UNIMPLEMENTED": 501,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNKNOWN": 500,
    "ABORTED": 503,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
    "CANCELLED": 503,
    "DATA_LOSS": 500,
}
# Where replies keep numbers that are not in raw form.
CONTENTS = {
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class Grpc:
    """A model's address. match: of ADDRESS; courier: a Courier; headers: {name: value} of every request."""

    most_numbers, binary = BINARY_NUMBERS, True

    def __init__(self, match, courier, headers=None):
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it writes to stderr what it raises, too
        optional("tritonclient.grpc", "an address of gRPC", "tritonclient[grpc]")
        import grpc
        from tritonclient.grpc import service_pb2, service_pb2_grpc

        self.url, address, model, self.version = match.groups()
        self.base = address.partition("//")[2]
        self.model, self.courier, self._messages, self._error = unquote(model), courier, service_pb2, grpc.RpcError
        self._headers = [(name.lower(), value) for name, value in (headers or {}).items()]
        options = [("grpc.max_receive_message_length", MOST_BYTES), ("grpc.max_send_message_length", -1)]
        secure = self.url.startswith("grpcs:")
        channel = (
            grpc.secure_channel(self.base, grpc.ssl_channel_credentials(), options)
            if secure
            else grpc.insecure_channel(self.base, options)
        )
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

    def metadata(self):
        """What the server says of the model, as REST has it: dict. Raises UserError."""
        request = self._messages.ModelMetadataRequest(name=self.model, version=self.version or "")
        try:
            return self._send(self._stub.ModelMetadata, request, _metadata)
        except Refusal:
            raise
        except UserError:
            self._refuse_http()
            raise

    def look_around(self):
        """Triton's configuration of the model, dict, None elsewhere."""
        from google.protobuf.json_format import MessageToDict

        request = self._messages.ModelConfigRequest(name=self.model, version=self.version or "")
        try:
            found = self._send(self._stub.ModelConfig, request, lambda reply: reply, retries=1)
        except UserError:
            return None
        return MessageToDict(found.config, preserving_proto_field_name=True)

    def infer(self, question, read, limit, plain=False):
        """read(head, tensors) of the reply to a `wire.Question`. Raises Refusal, or another UserError.

        plain: only for a try: a status that says "I can't read that" is final although it might pass. limit: bytes that
        the reply may have (of which the channel keeps one limit for all).
        """
        request = self._messages.ModelInferRequest(
            model_name=self.model, model_version=self.version or "", id=question.identifier
        )
        request.inputs.add(name=question.name, datatype=question.datatype, shape=question.pixels.shape)
        request.raw_input_contents.append(question.pixels.tobytes())
        for name in question.outputs:
            request.outputs.add(name=name)

        def unpack(reply):
            if reply.ByteSize() > limit:
                raise Fault(f"the reply is longer than the {limit} bytes that it may have")
            head = {name: getattr(reply, name) for name in ("id", "model_name", "model_version")}
            try:
                tensors = _tensors(reply)
            except MALFORMED as error:
                raise Fault(f"the reply is malformed ({str(error)[:80]!r})") from None
            return read(head, tensors)

        return self._send(self._stub.ModelInfer, request, unpack, final=REFUSING if plain else ())

    def _send(self, method, request, read, retries=None, final=()):
        def once():
            try:
                reply = method(request, timeout=self.courier.timeout, metadata=self._headers)
            except self._error as error:
                raise self._refused(error) from None
            return read(reply)

        return self.courier.deliver(once, retries, final)

    def _refused(self, error):
        code, told = error.code().name, error.details() or ""
        status = STATUSES.get(code, 500)
        if code == "RESOURCE_EXHAUSTED" and "larger than max" in told:
            status = 413
        if code == "DEADLINE_EXCEEDED":
            return Fault(f"no answer within {self.courier.timeout:g} s")
        return self.courier.refused(status, f"{code}, {told}")

    def _refuse_http(self):
        """Raise UserError where an HTTP server answers at this address: its port is next to the one of gRPC."""
        host, _, port = self.base.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=min(self.courier.timeout, 5)) as plain:
                plain.settimeout(min(self.courier.timeout, 5))
                plain.sendall(f"GET /v2 HTTP/1.1\r\nHost: {self.base}\r\nConnection: close\r\n\r\n".encode())
                start = plain.recv(5)
        except (OSError, ValueError):
            return
        if start == b"HTTP/":
            raise UserError(
                "this port speaks HTTP, not gRPC",
                advice=f"write http://{self.base}/v2/models/{self.model}, or give the port of gRPC",
                flag="--checkpoint",
            )


def _metadata(reply):
    def entries(tensors):
        return [{"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)} for tensor in tensors]

    return {
        "name": reply.name,
        "versions": list(reply.versions),
        "platform": reply.platform,
        "inputs": entries(reply.inputs),
        "outputs": entries(reply.outputs),
    }


def _tensors(reply):
    """{name: (datatype, array)} of a reply. Raises MALFORMED."""
    tensors = {}
    for place, output in enumerate(reply.outputs):
        datatype = output.datatype
        if place < len(reply.raw_output_contents):
            data = from_raw(memoryview(reply.raw_output_contents[place]), datatype)
        elif datatype == "BYTES":
            data = np.array([str(text, "utf-8") for text in output.contents.bytes_contents], dtype=object)
        else:
            data = np.array(getattr(output.contents, CONTENTS[datatype]), dtype=DTYPES[datatype])
        tensors[output.name] = (datatype, data.reshape(tuple(output.shape)))
    return tensors
