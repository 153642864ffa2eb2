"""Triton's Python backend with an ONNX file, model.onnx beside this one. With Triton's own images the line
`backend: "onnxruntime"` in config.pbtxt does the same without it.
"""

from pathlib import Path

import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        self._session = onnxruntime.InferenceSession(str(Path(__file__).with_name("model.onnx")))

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        images = triton.get_input_tensor_by_name(request, "image").as_numpy()
        (logits,) = self._session.run(None, {self._session.get_inputs()[0].name: images})
        return triton.InferenceResponse([triton.Tensor("logits", logits)])
