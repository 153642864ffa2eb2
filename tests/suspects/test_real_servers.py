"""MLServer, KServe and Triton as people run them: with the README's settings, and with none."""

import importlib.util

import numpy as np
import pytest

from kit.errors import UserError
from suspects import metadata
from suspects.opened import open_model
from suspects.server import open_server
from tests.parts import ROOT
from tests.suspects.real_servers import EXAMPLES, NAME, SERVERS, STATED, onnx_model, serving

pytest.importorskip("requests")

GIVEN = {"size": (224, 224), **STATED}
GRPC = importlib.util.find_spec("tritonclient") is not None
PROTOCOLS = ["url", pytest.param("grpc", marks=pytest.mark.skipif(not GRPC, reason="needs tritonclient[grpc]"))]


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 224, 224), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(path of an ONNX file, its Suspect, fed as the examples say)."""
    pytest.importorskip("onnxruntime")
    path = onnx_model(tmp_path_factory.mktemp("model") / "model.onnx")
    return path, open_model(path, overrides=GIVEN)


@pytest.fixture(scope="module", params=SERVERS)
def example(request, model, tmp_path_factory):
    """(name, running server) with the files of suspects/examples, as they are."""
    with serving(request.param, model[0], tmp_path_factory.mktemp(request.param)) as server:
        yield request.param, server


@pytest.fixture(scope="module", params=["mlserver", "kserve"])
def bare(request, model, tmp_path_factory):
    """(name, running server) that declares no tensors."""
    with serving(request.param, model[0], tmp_path_factory.mktemp(request.param), bare=True) as server:
        yield request.param, server


def close(answers, others):
    np.testing.assert_allclose(answers.values, others.values, rtol=1e-4, atol=1e-5)
    assert (answers.values.argmax(axis=1) == others.values.argmax(axis=1)).all()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_examples_answer_as_the_file_does(example, model, protocol):
    name, server = example
    address = getattr(server, protocol)
    # KServe can't state a preprocessing, gRPC's metadata have no place for MLServer's; Triton has it in both.
    states = name == "triton" or (name == "mlserver" and protocol == "url")
    if not states:
        with pytest.raises(UserError, match="give --mean and --std"):
            open_server(address)
    suspect = open_server(address, overrides={} if states else STATED)
    made = suspect.preprocessing
    assert (made.size, made.resize, made.mean, made.std) == ((224, 224), *STATED.values())
    assert made.source == ("server" if states else "flags") and made.form is None
    assert suspect.classes == 1000 and suspect.concurrency == 4
    close(suspect.ask(images(5)), model[1].ask(images(5)))


def test_binary_tensors_are_tried_where_they_are_not_listed(example):
    """KServe takes them, MLServer does not: its tracebacks are no reason to stop, and JSON goes on."""
    name, server = example
    suspect = open_server(server.url, overrides=STATED)
    before = suspect.requests_sent
    assert suspect._endpoint.binary == (True if name == "triton" else None)
    suspect.ask(images(2))
    assert suspect._endpoint.binary == (name != "mlserver")
    assert suspect.requests_sent - before == (2 if name == "mlserver" else 1) and suspect.retries_made == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_size_of_a_request_is_the_servers(example, model, protocol, monkeypatch, capsys):
    """Triton tells its max_batch_size; where a limit is only met, requests are halved until they pass."""
    name, server = example
    address, many = getattr(server, protocol), images(64)
    if name == "triton":
        assert open_server(address).batch_size == 32
        monkeypatch.setattr(metadata, "most_in_batch", lambda config: None)
    suspect = open_server(address, overrides=STATED)
    if protocol == "url" and name != "triton":  # as JSON a request has 2^21 numbers at most
        assert suspect.batch_size == 13
    answers = suspect.ask(many[: suspect.batch_size])
    refused = "refused a request for its size" in capsys.readouterr().err
    # The limits of gRPC are 4 MB in MLServer, 8 in KServe; an image has 0.6 MB.
    limits = {("triton", "url"): 32, ("triton", "grpc"): 32, ("mlserver", "grpc"): 4, ("kserve", "grpc"): 8}
    if limit := limits.get((name, protocol)):
        assert refused and suspect.batch_size == limit
    assert len(answers) >= 13
    close(answers, model[1].ask(many[: len(answers)]))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tensors_that_are_not_declared_are_found(bare, model, protocol):
    """Neither server could be audited like this."""
    address = getattr(bare[1], protocol)
    with pytest.raises(UserError, match="give --input_size"):
        open_server(address, overrides=STATED)
    suspect = open_server(address, overrides=GIVEN)
    assert suspect.preprocessing.form == {
        "input": "input-0",
        "datatype": "FP32",
        "layout": "NCHW",
        "output": "logits",
        "from": "found by asking",
    }
    assert "sent as 'input-0' (FP32, NCHW), answers from 'logits' (found by asking)" in suspect.preprocessing.describe()
    assert suspect.classes == 1000
    close(suspect.ask(images(3)), model[1].ask(images(3)))
    hints = {"name": "image", "datatype": "FP32", "shape": (3, 224, 224), "output": "logits"}
    given = open_server(address, overrides=STATED, hints=hints)
    assert given.preprocessing.form["input"] == "image" and given.preprocessing.form["from"] == "flags"
    close(given.ask(images(3)), model[1].ask(images(3)))
    stored = {"preprocessing": {name: getattr(suspect.preprocessing, name) for name in ("size", "form", *STATED)}}
    again = open_server(address, stored={**stored, "calibration": None})
    assert again.preprocessing.form == suspect.preprocessing.form and again.requests_sent <= suspect.requests_sent


@pytest.mark.parametrize(
    "hints,word",
    [
        ({"layout": "NHWC"}, r"none of the usual forms works \(tried 11; .*(invalid dimensions|fix either)"),
        ({"output": "nothing"}, "no output 'nothing'"),
    ],
)
def test_a_form_that_does_not_work_is_one_line(bare, hints, word):
    with pytest.raises(UserError, match=word) as error:
        open_server(bare[1].url, overrides=GIVEN, hints={"datatype": "FP32", **hints})
    assert "\n" not in str(error.value) and error.value.flag in ("--input_name", "--output_name")


def test_whole_numbers_with_channels_last_are_found(model, tmp_path):
    with serving("kserve", model[0], tmp_path, bare=True) as server:
        suspect = open_server(server.url.replace(NAME, "shown"), overrides={"size": (224, 224)})
        answers = suspect.ask(images(2))
    assert suspect.preprocessing.form["datatype"] == "UINT8" and suspect.preprocessing.form["layout"] == "NHWC"
    assert suspect.preprocessing.white == 255  # raw pixels need no mean and std
    plain = open_model(model[0], overrides={"size": 224, "mean": (0.0,) * 3, "std": (1.0,) * 3})
    close(answers, plain.ask(images(2)))


def test_the_other_protocols_port_is_told(example):
    _, server = example
    http, grpc = server.ports[:2]
    with pytest.raises(UserError, match=f"speaks gRPC, not HTTP; write grpc://127.0.0.1:{grpc}/{NAME}"):
        open_server(server.url.replace(str(http), str(grpc)))
    with pytest.raises(UserError, match=f"write http://127.0.0.1:{http}/v2/models/{NAME}"):
        open_server(server.url.removeprefix("http://"))
    if GRPC:
        with pytest.raises(UserError, match=f"speaks HTTP, not gRPC; write http://127.0.0.1:{http}/v2/models/{NAME}"):
            open_server(server.grpc.replace(str(grpc), str(http)), retries=0)
        with pytest.raises(UserError, match=r"404.*check the model's name"):
            open_server(server.grpc + "-not-there")
    with pytest.raises(UserError, match=r"404.*check the model's name"):
        open_server(server.url + "-not-there")


def test_the_readme_shows_these_files():
    text = (ROOT / "suspects" / "README.md").read_text()
    files = [path for path in EXAMPLES.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert len(files) == 5
    for path in files:
        assert f"\n{path.read_text()}```" in text, path
        assert f"]({path.relative_to(ROOT / 'suspects').as_posix()})" in text, path
