"""A model behind HTTP: who it is, and headers and credentials that reach it alone."""

import json
import logging
import re

import pytest

from kit.errors import UserError
from suspects.connection import Fault
from suspects.server import open_server
from tests.suspects.inference_server import make_app, running
from tests.suspects.parts import NCHW, audited, opened, photos, predict, read

pytest.importorskip("fastapi", reason="the test server needs fastapi (requirements/dev.txt)")
pytest.importorskip("uvicorn", reason="the test server needs uvicorn (requirements/dev.txt)")
requests = pytest.importorskip("requests")

SECRET = "s3cr3t-t0ken"


def test_identity_and_versions():
    with audited() as (server, model):
        first = model.identity
        versioned = opened(server.url + "/versions/1/")
        assert opened(server.url + "/").identity == first
        versioned.ask(photos(1))
    assert first["url"] == server.url and versioned.identity["url"] == server.url + "/versions/1"
    assert {**first, "url": "", "metadata_sha256": ""} == {
        "kind": "open inference protocol",
        "url": "",
        "model": "net",
        "versions": ["1"],
        "platform": "test_platform",
        "metadata_sha256": "",
    }
    assert first["metadata_sha256"] == versioned.identity["metadata_sha256"] and len(first["metadata_sha256"]) == 64
    with audited(parameters={"note": 1}) as (_, other):
        assert other.identity["metadata_sha256"] != first["metadata_sha256"]


def test_a_model_that_is_replaced_meanwhile():
    with audited(retries=0) as (_, model):

        def reply(version):
            return json.dumps(
                {
                    "model_version": version,
                    "model_name": "net",
                    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [1, 2], "data": [1, 2.5]}],
                }
            ).encode()

        assert read(model, reply("1"), 1).values.tolist() == [[1, 2.5]]
        with pytest.raises(Fault, match="version 2, not 1"):
            read(model, reply("2"), 1)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000/v2/models/net",
        "ftp://localhost/v2/models/net",
        "http://localhost:8000",
        "http://localhost/v2/models/",
        "http://localhost/v1/models/net",
        "http://localhost/v2/models/net/infer",
        "http://localhost/v2/models/net?key=s3cr3t",
        "http://localhost/v2/models/net#x",
        "http://localhost/v2/models/net/versions/",
        "http:///v2/models/net",
        "",
        "http://localhost/v2/models/a b",
        "http://localhost/v2/models/net\nx",
    ],
)
def test_addresses_of_another_form(url):
    with pytest.raises(UserError, match="http://localhost:8000/v2/models/resnet50") as error:
        open_server(url)
    assert "s3cr3t" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://me:s3cr3t@localhost/v2/models/net",
        "https://s3cr3t@localhost:1/v2/models/net",
        "me:s3cr3t@localhost/v2/models/net",
    ],
)
def test_credentials_in_the_address(url):
    with pytest.raises(UserError, match="--header") as error:
        open_server(url)
    assert "s3cr3t" not in str(error.value)


def test_headers_reach_the_server_and_nothing_else(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("TEST_TOKEN", SECRET)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password wrong\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))  # would replace the Authorization header
    caplog.set_level(logging.DEBUG)
    for value in ("Bearer $TEST_TOKEN", "Bearer ${TEST_TOKEN}", f"Bearer {SECRET}"):
        with audited(
            token=f"Bearer {SECRET}",
            headers=[f"Authorization: {value}", "X-Price: $5"],
            metadata={"platform": f"echo {SECRET}"},
        ) as (server, model):
            model.ask(photos(1))
        assert server.log[0]["headers"]["x-price"] == "$5"
        assert SECRET not in json.dumps(model.identity) + model.name + repr(model) + model.preprocessing.describe()
    assert SECRET not in caplog.text and "127.0.0.1" in caplog.text


@pytest.mark.parametrize(
    "header",
    [
        "Authorization: Bearer ${TEST_TOKEN}",
        f"Authorization: {SECRET}",
        f"X: {SECRET} y",
        f"Authorization: Bearer {SECRET}",
    ],
)
def test_a_server_that_echoes_the_secret(monkeypatch, header):
    monkeypatch.setenv("TEST_TOKEN", SECRET)
    app = make_app(predict, input_shape=NCHW, token="another")
    with running(app) as server, pytest.raises(UserError, match=r"401.*not the right token.*--header") as error:
        opened(server.url, headers=[header])
    assert SECRET not in str(error.value) and server.state.other == ["/v2/models/net"]
    names = {"inputs": [{"name": SECRET, "datatype": "FP32", "shape": [1]}]}
    with running(make_app(predict, input_shape=NCHW, metadata=names)) as server, pytest.raises(UserError) as error:
        opened(server.url, headers=[header])
    assert SECRET not in str(error.value) and "***" in str(error.value)


@pytest.mark.parametrize(
    "header,text",
    [
        (f"Authorization {SECRET}", "number 2"),
        (f": {SECRET}", "number 2"),
        (f"A b: {SECRET}", "number 2"),
        (f"X: {SECRET}\r\nY: 1", "X must be one line"),
        (f"X: {SECRET}\n", "one line"),
        (f"X: {SECRET} €", "Latin-1"),
        ("X: $BAD_TOKEN", "one line"),
        (f"X: {SECRET} ${{ABSENT_TOKEN}}", "ABSENT_TOKEN"),
        ("X: $EMPTY_TOKEN", "EMPTY_TO"),
    ],
)
def test_bad_headers(monkeypatch, header, text):
    monkeypatch.setenv("BAD_TOKEN", f"{SECRET}\nY: 1")
    monkeypatch.setenv("EMPTY_TOKEN", "")
    monkeypatch.delenv("ABSENT_TOKEN", raising=False)
    with pytest.raises(UserError, match=text) as error:
        open_server("http://127.0.0.1:1/v2/models/net", headers=["Fine: yes", header])
    assert SECRET not in str(error.value)


def test_certificates_are_checked(monkeypatch):
    seen = []

    def send(session, request, **options):
        seen.append((options["verify"], options["timeout"], options["allow_redirects"], options["stream"]))
        raise requests.exceptions.SSLError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate")

    monkeypatch.setattr(requests.Session, "send", send)
    with pytest.raises(UserError, match="certificate"):
        open_server("https://localhost/v2/models/net", timeout=3)
    assert seen == [(True, 3, False, True)]


def test_a_server_without_a_page_about_itself(monkeypatch):
    get = requests.Session.request

    def request(session, method, url, **options):
        return get(session, method, url + "/absent" if re.search(r"/v2$", url) else url, **options)

    monkeypatch.setattr(requests.Session, "request", request)
    with audited(binary=True) as (server, model):
        model.ask(photos(1))
    assert server.log[0]["answered"]
