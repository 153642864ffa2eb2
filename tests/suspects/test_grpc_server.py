"""A model behind gRPC: values, sizes, faults and headers are treated as over HTTP."""

import itertools

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[grpc] (requirements/extra.txt)")

from kit.errors import UserError
from suspects.server import name_of, open_server
from tests.suspects.grpc_stand_in import serving_grpc
from tests.suspects.parts import CLASSES, NCHW, NHWC, opened, photos, predict, same_bits

SECRET = "s3cr3t-t0ken"


def patient(url, **client):
    return opened(url, sleep=lambda _: None, **client)


@pytest.mark.parametrize("shape", [NCHW, NHWC])
@pytest.mark.parametrize("raw", [False, True])
def test_values_arrive_bit_for_bit(shape, raw):
    with serving_grpc(predict, shape, raw=raw) as server:
        model = patient(server.url)
        answers = model.ask(photos(5))
    assert same_bits(answers.values, predict(photos(5).astype(np.float32) * np.float32(1 / 255)))
    assert model.name == name_of(server.url) == f"net at grpc://127.0.0.1:{server.port}" and model.classes == CLASSES
    assert model.identity["url"] == server.url and model.identity["platform"] == "test"


def test_raw_pixels():
    with serving_grpc(predict, NCHW, datatype="UINT8") as server:
        assert same_bits(open_server(server.url).ask(photos(2)).values, predict(photos(2)))


PASSING = ["UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN", "ABORTED", "RESOURCE_EXHAUSTED"]


def test_what_may_pass_is_repeated():
    faults = [(status, "later") for status in PASSING]
    with serving_grpc(predict, NCHW, faults=faults) as server:
        model = patient(server.url)
        assert len(model.ask(photos(2))) == 2
    assert model.retries_made == len(PASSING) and len({entry["id"] for entry in server.log}) == 1


@pytest.mark.parametrize("status,code", [("INVALID_ARGUMENT", 400), ("UNAUTHENTICATED", 401), ("UNIMPLEMENTED", 501)])
def test_what_will_not_pass_is_not_repeated(status, code):
    with serving_grpc(predict, NCHW, faults=[(status, f"no\nnever {SECRET}")]) as server:
        model = patient(server.url, headers=[f"X-Token: {SECRET}"])
        with pytest.raises(UserError, match=rf"{code}: {status}, no never \*\*\*"):
            model.ask(photos(2))
    assert len(server.log) == 1


def test_a_fault_that_stays_is_one_line():
    faults, told = itertools.repeat(("UNAVAILABLE", "gone")), r"gave up after 3 tries: .*503: UNAVAILABLE, gone"
    with serving_grpc(predict, NCHW, faults=faults) as server, pytest.raises(UserError, match=told):
        patient(server.url, retries=2).ask(photos(1))


def test_requests_that_are_too_large_are_halved(capsys):
    most = 10 * 3 * 4 * 6 * 4 + 200
    with serving_grpc(predict, NCHW, most=most) as server:
        model = patient(server.url)
        answers = model.ask(photos(64))
        model.ask(photos(16))
    assert same_bits(answers.values, predict(photos(64).astype(np.float32) * np.float32(1 / 255)))
    assert model.batch_size == 8 and [entry["count"] for entry in server.log] == [8] * 10
    assert capsys.readouterr().err.count("--query_batch 8") == 1


def test_the_largest_batch_and_the_preprocessing_are_in_the_configuration():
    stated = '{"mean": 0.5, "std": [0.1, 0.2, 0.3]}'
    config = {"name": "net", "max_batch_size": 6, "parameters": {"preprocessing": {"string_value": stated}}}
    with serving_grpc(predict, NCHW, config=config) as server:
        model = open_server(server.url)
    assert model.batch_size == 6 and model.preprocessing.std == (0.1, 0.2, 0.3)
    assert model.preprocessing.source == "server"


def test_tensors_that_are_not_declared_are_found():
    with serving_grpc(predict, NHWC, declared=False) as server:
        model = patient(server.url, overrides={"size": (4, 6)})
        assert model.preprocessing.form["layout"] == "NHWC" and len(model.ask(photos(2))) == 2


def test_headers_are_sent(monkeypatch):
    monkeypatch.setenv("TEST_TOKEN", SECRET)
    with serving_grpc(predict, NCHW) as server:
        model = patient(server.url, headers=["Authorization: Bearer $TEST_TOKEN"])
        model.ask(photos(1))
    assert server.log[0]["headers"]["authorization"] == f"Bearer {SECRET}"
    assert SECRET not in repr(model.identity) + model.name


def test_no_model_and_nobody_there():
    told = r"404: NOT_FOUND.*check the model's name"
    with serving_grpc(predict, NCHW) as server, pytest.raises(UserError, match=told):
        patient(server.url.replace("/net", "/other"))
    with pytest.raises(UserError, match=r"gave up after 2 tries"):
        patient(server.url, retries=1, timeout=2)


@pytest.mark.parametrize(
    "url", ["grpc://localhost:8001", "grpc://localhost:8001/", "grpc://localhost:8001/a/b", "grpc://h/net?key=s3cr3t"]
)
def test_addresses_of_another_form(url):
    with pytest.raises(UserError, match="grpc://localhost:8001/resnet50") as error:
        open_server(url)
    assert "s3cr3t" not in str(error.value)


def test_the_address_of_http_with_the_scheme_of_grpc():
    with pytest.raises(UserError, match="write grpc://localhost:8000/net with the port of gRPC"):
        open_server("grpc://localhost:8000/v2/models/net")
