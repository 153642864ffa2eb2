"""MLServer, KServe and Triton, started on this machine with the examples of suspects/README.md.

Each has a virtual environment of its own, since their dependencies don't fit together: `make servers` sets them up in
.servers/, or MEMBERSHIPTRACKER_SERVERS names another folder with mlserver/, kserve/ and triton/. Without one its tests
are skipped.

Public: interpreter, onnx_model, serving, SERVERS, NAME, EXAMPLES, STATED.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.parts import ROOT

SERVERS, NAME, EXAMPLES = ("mlserver", "kserve", "triton"), "resnet50", ROOT / "suspects" / "examples"
STATED = {"resize": 256, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # in the examples
SECONDS = 300  # to start

# KServe listens on all addresses, and has no flag for that.
LOOPBACK = """
import runpy, sys
import grpc.aio, uvicorn
listen, bind = uvicorn.Config.__init__, grpc.aio._server.Server.add_insecure_port
uvicorn.Config.__init__ = lambda self, *args, **settings: listen(self, *args, **{**settings, "host": "127.0.0.1"})
grpc.aio._server.Server.add_insecure_port = lambda self, address: bind(self, address.replace("[::]", "127.0.0.1"))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

PLACES = """
import pytriton, sysconfig
print(pytriton.__path__[0], sysconfig.get_config_var("LIBDIR"), sysconfig.get_python_version(), sep="\\n")
"""

# The example without declarations; SHOWN models want whole numbers, channels last.
BARE = """
import sys
sys.path.insert(0, sys.argv[1])
import argparse
import numpy as np
from kserve import ModelServer, model_server
from server import OnnxModel

class Bare(OnnxModel):
    get_input_types = get_output_types = lambda self: []

class Shown(Bare):
    def predict(self, payload, headers=None, response_headers=None):
        images = payload.inputs[0].as_numpy()
        if images.dtype != np.uint8 or images.shape[-1] != 3:
            raise ValueError(f"wants uint8 (N, h, w, 3), got {images.dtype} {images.shape}")
        pixels = images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        payload.inputs[0].as_numpy = lambda: pixels
        return super().predict(payload)

parser = argparse.ArgumentParser(parents=[model_server.parser])
parser.add_argument("--model")
args = parser.parse_args(sys.argv[2:])
models = [kind(name, args.model) for name, kind in (("resnet50", Bare), ("shown", Shown))]
ModelServer(http_port=args.http_port, grpc_port=args.grpc_port).start(models)
"""


def interpreter(name):
    """The Python of a server's environment; skips the test where it is not installed."""
    folder = Path(os.environ.get("MEMBERSHIPTRACKER_SERVERS") or ROOT / ".servers")
    path = folder / name / "bin" / "python"
    if not path.exists():
        pytest.skip(f"{name} is not installed (make servers)")
    return path


def onnx_model(path, classes=1000):
    """A small network of 224-pixel images with the input and the output of the examples."""
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    weights = {
        "kernel": rng.normal(0, 0.05, (16, 3, 16, 16)),
        "dense": rng.normal(0, 1, (16, classes)),
        "bias": rng.normal(0, 0.1, classes),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "kernel"], ["seen"], strides=[16, 16]),
            helper.make_node("Relu", ["seen"], ["active"]),
            helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("Gemm", ["flat", "dense", "bias"], ["logits"]),
        ],
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", classes])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def free_ports(count):
    """Ports of this machine that nobody listens on, below those that a system gives away by itself, so that nobody has
    them when the server comes to listen."""
    found, draws = [], random.Random(os.getpid())
    while len(found) < count:
        port = draws.randrange(20_000, 32_000)
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            found += [port] * (port not in found)
    return found


@contextmanager
def serving(name, model, folder, bare=False):
    """A server of `name` with an ONNX file as the model NAME, while the block lasts: url, grpc, kill(), start().

    folder: an empty one for its files. bare: without declared tensors (MLServer, KServe); KServe then has a second
    model, "shown", that takes UINT8 images with channels last.
    """
    python, ports = interpreter(name), free_ports(3)
    command, environment = {"mlserver": _mlserver, "kserve": _kserve, "triton": _triton}[name](
        python, model, folder, bare, ports
    )
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", **environment}
    server = SimpleNamespace(
        url=f"http://127.0.0.1:{ports[0]}/v2/models/{NAME}",
        base=f"http://127.0.0.1:{ports[0]}",
        grpc=f"grpc://127.0.0.1:{ports[1]}/{NAME}",
        ports=ports,
        process=None,
    )

    def start():
        with open(folder / "log.txt", "ab") as log:
            server.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        _wait(name, server, folder)

    def kill():
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()

    server.start, server.kill = start, kill
    try:
        start()
        yield server
    finally:
        if server.process.poll() is None:
            kill()


def _wait(name, server, folder):
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{server.url}/ready", timeout=2) as reply:
                if reply.status == 200:
                    return
        except (OSError, urllib.error.URLError):
            time.sleep(0.1)
    last = (folder / "log.txt").read_text(errors="replace")[-2000:]
    if name == "triton" and server.process.poll() is not None:
        pytest.skip(f"Triton's binary does not run here: {last[-300:]}")
    raise AssertionError(f"{name} did not start: {last}")


def _mlserver(python, model, folder, bare, ports):
    for path in (EXAMPLES / "mlserver").iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    shutil.copy(model, folder / "model.onnx")
    if bare:
        settings = json.loads((folder / "model-settings.json").read_text())
        (folder / "model-settings.json").write_text(
            json.dumps({key: value for key, value in settings.items() if key not in ("inputs", "outputs")})
        )
    keys = ("HTTP_PORT", "GRPC_PORT", "METRICS_PORT")
    environment = {f"MLSERVER_{key}": str(port) for key, port in zip(keys, ports, strict=True)}
    return [python.with_name("mlserver"), "start", "."], {
        **environment,
        "MLSERVER_HOST": "127.0.0.1",
        "MLSERVER_PARALLEL_WORKERS": "0",
    }


def _kserve(python, model, folder, bare, ports):
    script, flags = EXAMPLES / "kserve" / "server.py", []
    if bare:
        script = folder / "bare.py"
        script.write_text(BARE)
        flags = [EXAMPLES / "kserve"]
    flags += ["--model_name", NAME, "--model", model, "--http_port", str(ports[0]), "--grpc_port", str(ports[1])]
    return [python, "-c", LOOPBACK, script, *flags], {}


def _triton(python, model, folder, bare, ports):
    assert not bare, "Triton always declares its tensors"
    shutil.copytree(EXAMPLES / "triton", folder / "models")
    shutil.copy(model, folder / "models" / NAME / "1" / "model.onnx")
    package, libraries, version = subprocess.check_output([python, "-c", PLACES], text=True).split("\n")[:3]
    package = Path(package)
    shutil.copytree(package / "tritonserver" / "backends", folder / "backends")
    stub = package / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, folder / "backends" / "python")
    command = [package / "tritonserver" / "bin" / "tritonserver", "--model-repository", folder / "models"]
    command += ["--backend-directory", folder / "backends", "--allow-metrics", "false"]
    for kind, port in zip(("http", "grpc"), ports, strict=False):
        command += [f"--{kind}-address", "127.0.0.1", f"--{kind}-port", str(port)]
    return command, {
        "LD_LIBRARY_PATH": f"{libraries}:{package.parent / 'nvidia_pytriton.libs'}",
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(package.parent),
    }
