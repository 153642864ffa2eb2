"""KServe with an ONNX file: `python server.py --model_name resnet50 --model model.onnx`."""

import argparse

import onnxruntime
from kserve import InferOutput, InferResponse, Model, ModelServer, model_server


class OnnxModel(Model):
    def __init__(self, name, path):
        super().__init__(name)
        self._session = onnxruntime.InferenceSession(path)
        self.ready = True

    def get_input_types(self):
        return [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 224, 224]}]

    def get_output_types(self):
        return [{"name": "logits", "datatype": "FP32", "shape": [-1, 1000]}]

    def predict(self, payload, headers=None, response_headers=None):
        (logits,) = self._session.run(None, {self._session.get_inputs()[0].name: payload.inputs[0].as_numpy()})
        output = InferOutput("logits", list(logits.shape), "FP32")
        output.set_data_from_numpy(logits, binary_data=False)
        return InferResponse(payload.id, self.name, [output])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[model_server.parser])
    parser.add_argument("--model", required=True)
    args = parser.parse_args()
    ModelServer(http_port=args.http_port, grpc_port=args.grpc_port).start([OnnxModel(args.model_name, args.model)])
