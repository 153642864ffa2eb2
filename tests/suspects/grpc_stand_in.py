"""A small gRPC server of the protocol, with faults, in front of `inference_server`'s models. Needs tritonclient[grpc].

Public: serving_grpc.
"""

from concurrent import futures
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

DTYPES = {"FP32": "<f4", "UINT8": "|u1"}


@contextmanager
def serving_grpc(predict, shape, *, datatype="FP32", faults=(), declared=True, raw=True, config=None, most=2**22):
    """The model "net" behind gRPC on a free port while the block lasts: url, log (a dict per request), headers.

    predict: NCHW in the dtype that was sent -> float32 (N, C). faults: an iterable with one entry per request: None, or
    (name of a gRPC status, text). raw: whether replies hold bytes, or lists of numbers as KServe has it; config: fields
    of Triton's ModelConfig, None where there is none; most: bytes of a request.
    """
    import grpc
    from google.protobuf.json_format import ParseDict
    from tritonclient.grpc import service_pb2 as messages
    from tritonclient.grpc import service_pb2_grpc as stubs

    log, faults, nchw = [], iter(faults), shape[-3] == 3

    class Servicer(stubs.GRPCInferenceServiceServicer):
        def ModelMetadata(self, request, context):
            if request.name != "net":
                context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.name}")
            reply = messages.ModelMetadataResponse(name="net", versions=["1"], platform="test")
            if declared:
                reply.inputs.add(name="pixels", datatype=datatype, shape=shape)
                reply.outputs.add(name="logits", datatype="FP32", shape=[-1, -1])
            return reply

        def ModelConfig(self, request, context):
            if config is None:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
            return ParseDict({"config": config}, messages.ModelConfigResponse())

        def ModelInfer(self, request, context):
            fault = next(faults, None)
            entry = {"headers": dict(context.invocation_metadata()), "fault": fault, "id": request.id}
            log.append(entry)
            if fault is not None:
                context.abort(getattr(grpc.StatusCode, fault[0]), fault[1])
            (tensor,) = request.inputs
            side = {-1: None}
            if tensor.datatype != datatype or any(
                side.get(wanted, wanted) not in (None, got) for wanted, got in zip(shape, tensor.shape, strict=True)
            ):
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"expected {datatype} {shape}")
            images = np.frombuffer(request.raw_input_contents[0], DTYPES[datatype]).reshape(tuple(tensor.shape))
            entry["count"] = len(images)
            values = np.asarray(predict(images if nchw else images.transpose(0, 3, 1, 2)), np.float32)
            reply = messages.ModelInferResponse(model_name="net", model_version="1", id=request.id)
            output = reply.outputs.add(name="logits", datatype="FP32", shape=values.shape)
            if raw:
                reply.raw_output_contents.append(values.astype("<f4").tobytes())
            else:
                output.contents.fp32_contents.extend(values.ravel().tolist())
            return reply

    options = [("grpc.max_receive_message_length", most), ("grpc.so_reuseport", 0)]
    server = grpc.server(futures.ThreadPoolExecutor(4), options=options)
    stubs.add_GRPCInferenceServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield SimpleNamespace(url=f"grpc://127.0.0.1:{port}/net", log=log, port=port)
    finally:
        server.stop(0)
