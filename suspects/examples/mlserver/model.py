"""MLServer with an ONNX file: `mlserver start .` in the folder of this file, model-settings.json and model.onnx."""

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse
from mlserver.utils import get_model_uri


class OnnxModel(MLModel):
    async def load(self):
        self._session = onnxruntime.InferenceSession(await get_model_uri(self._settings))
        return True

    async def predict(self, payload):
        images = self.decode(payload.inputs[0], default_codec=NumpyCodec)
        (logits,) = self._session.run(None, {self._session.get_inputs()[0].name: images})
        output = NumpyCodec.encode_output("logits", logits)
        return InferenceResponse(model_name=self.name, model_version=self.version, id=payload.id, outputs=[output])
