"""How a server that says little is asked: tensors it does not declare, sizes it refuses, addresses written wrongly."""

import json
import threading

import numpy as np
import pytest
from scipy.special import softmax

from kit.errors import UserError
from suspects.server import is_address, open_server
from tests.suspects.inference_server import make_app, running
from tests.suspects.parts import CLASSES, NCHW, NHWC, UNIT, audited, opened, photos, predict, same_bits

pytest.importorskip("fastapi", reason="the test server needs fastapi (requirements/dev.txt)")
pytest.importorskip("uvicorn", reason="the test server needs uvicorn (requirements/dev.txt)")
requests = pytest.importorskip("requests")

SILENT = {"inputs": [], "outputs": []}
SIZE = {"size": (4, 6)}


def unit(images):
    return images.astype(np.float32) * np.float32(1 / 255)


# --- tensors that are not declared ---


@pytest.mark.parametrize("silent", [SILENT, {"inputs": None, "outputs": None}])
@pytest.mark.parametrize("shape,layout", [(NCHW, "NCHW"), (NHWC, "NHWC")])
@pytest.mark.parametrize("datatype", ["FP32", "UINT8"])
@pytest.mark.parametrize("name", ["image", "a_name_of_its_own", None])
def test_a_working_form_is_found(silent, shape, layout, datatype, name):
    """One of the usual names, whatever the server says that it misses, or any; FP32 before UINT8."""
    overrides = SIZE if datatype == "UINT8" else {**UNIT, **SIZE}
    app = make_app(predict, input_shape=shape, datatype=datatype, metadata=silent, pixels=name)
    with running(app) as server:
        if name == "a_name_of_its_own":
            with pytest.raises(UserError, match="none of the usual forms works"):
                open_server(server.url, overrides=overrides)
            model = open_server(server.url, overrides=overrides, hints={"name": name})
        else:
            model = open_server(server.url, overrides=overrides)
        answers = model.ask(photos(3))
    assert same_bits(answers.values, predict(photos(3) if datatype == "UINT8" else unit(photos(3))))
    assert model.preprocessing.form == {
        "input": name or "input-0",
        "datatype": datatype,
        "layout": layout,
        "output": "logits",
        "from": "found by asking",
    }
    assert f"({datatype}, {layout})" in model.preprocessing.describe() and model.classes == CLASSES
    assert "form" not in model.identity  # or each form would be a model of its own, with an alpha of its own


def test_the_name_that_the_server_misses_is_tried():
    app = make_app(predict, input_shape=NCHW, metadata=SILENT, pixels="odd")
    with running(app) as server:
        real = requests.Session.request

        def request(session, method, url, **options):
            reply = real(session, method, url, **options)
            if reply.status_code == 400:
                reply._content = (
                    b"""{"error": "Required inputs (['odd']) are missing from input feed (['input-0'])."}"""
                )
                reply._content_consumed = True
            return reply

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(requests.Session, "request", request)
            model = opened(server.url, overrides=SIZE)
    assert model.preprocessing.form["input"] == "odd"


def test_flags_say_it_all():
    app = make_app(predict, input_shape=NHWC, metadata=SILENT, pixels="odd", binary=True)
    hints = {"name": "odd", "datatype": "FP32", "shape": (-1, 4, 6, 3), "output": "logits"}
    with running(app) as server:
        model = opened(server.url, hints=hints)
        assert model.preprocessing.form["from"] == "flags" and model.preprocessing.size == (4, 6)
        assert len(server.log) == 1  # what it answers is learnt from one neutral picture
        assert model.classes == CLASSES
        with pytest.raises(UserError, match="no shape of images") as error:
            opened(server.url, hints={**hints, "shape": (4, 6)})
        assert error.value.flag == "--input_shape"


def test_two_layouts_that_both_work_are_not_guessed_between():
    """A model that flattens its input answers to both, and differently."""

    def flat(images):
        return predict(images.reshape(len(images), 3, 4, 6))

    with running(make_app(flat, input_shape=[-1, -1, -1, -1], metadata=SILENT, pixels=None)) as server:
        with pytest.raises(UserError, match="answers to NCHW and to NHWC images alike") as error:
            opened(server.url, overrides=SIZE)
        assert error.value.flag == "--input_layout"
        assert opened(server.url, overrides=SIZE, hints={"layout": "NCHW"}).preprocessing.form["layout"] == "NCHW"


def test_a_server_that_turns_images_by_itself_is_taken_as_it_is():
    def turned(images):  # as the stand-in hands them on, which takes all for channels last
        return predict(images if images.shape[1] == 3 else images.transpose(0, 2, 3, 1))

    app = make_app(turned, input_shape=[-1, -1, -1, -1], metadata=SILENT, pixels=None)
    with running(app) as server:
        model = opened(server.url, overrides=SIZE)
        assert same_bits(model.ask(photos(2)).values, predict(unit(photos(2))))
    assert model.preprocessing.form["layout"] == "NCHW"


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_for_another_reason_ends_the_search(status):
    app = make_app(predict, input_shape=NCHW, metadata=SILENT, pixels=None, faults=[status] * 50)
    with running(app) as server, pytest.raises(UserError, match=f"{status}.*--header"):
        opened(server.url, overrides=SIZE)
    assert len(server.log) == 1


def test_a_passing_fault_does_not_end_the_search():
    app = make_app(predict, input_shape=NCHW, metadata=SILENT, pixels=None, faults=[503, None, 429, None, 503])
    with running(app) as server:
        model = opened(server.url, overrides=SIZE, sleep=lambda _: None)
        assert model.preprocessing.form["layout"] == "NCHW" and model.retries_made >= 1


def test_one_of_several_outputs():
    extra = [{"name": "features", "datatype": "FP32", "shape": [-1, -1]}]
    with running(make_app(predict, input_shape=NCHW, extra_outputs=extra)) as server:
        with pytest.raises(UserError, match="--output_name"):
            opened(server.url)
        with pytest.raises(UserError, match="no output 'other'"):
            opened(server.url, hints={"output": "other"})
        assert opened(server.url, hints={"output": "logits"}).preprocessing.form["output"] == "logits"


def test_free_dimensions_that_a_layout_settles():
    with running(make_app(predict, input_shape=[-1, -1, -1, -1])) as server:
        with pytest.raises(UserError, match="needs one input of images"):
            opened(server.url, overrides=SIZE)
        model = opened(server.url, overrides=SIZE, hints={"layout": "NCHW"})
        assert model.preprocessing.form["from"] == "flags"
        with pytest.raises(UserError, match="is not NHWC"):
            opened(server.url, hints={"layout": "NHWC", "shape": (-1, 3, 4, 6)})


# --- what Triton's configuration tells ---

CONFIG = {
    "max_batch_size": 6,
    "parameters": {"preprocessing": {"string_value": json.dumps({"mean": 0.5, "std": [0.1, 0.2, 0.3]})}},
}


def test_the_configuration_is_read():
    with running(make_app(predict, input_shape=NCHW, config=CONFIG, binary=True)) as server:
        model = open_server(server.url)
        model.ask(photos(6))
    assert model.batch_size == 6 and model.preprocessing.std == (0.1, 0.2, 0.3)
    assert f"/v2/models/{server.state.name}/config" in server.state.other and len(server.log) == 1


def test_no_page_for_the_configuration_is_asked_for_in_vain():
    with audited() as (server, _):
        assert not [path for path in server.state.other if path.endswith("config")]


def test_a_largest_batch_that_is_only_met_is_halved_down_to(capsys):
    config = {"max_batch_size": 6}
    with running(make_app(predict, input_shape=NCHW, config=config, binary=True)) as server:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("suspects.metadata.most_in_batch", lambda config: None)
            model = opened(server.url)
        assert model.batch_size == 64
        values = model.ask(photos(64)).values
        assert same_bits(values, predict(unit(photos(64)))) and model.batch_size == 4
        model.ask(photos(8))
    told = capsys.readouterr().err
    assert "(--query_batch 4 says so from the start)" in told and told.count("note:") == 4
    assert {entry["shape"][0] for entry in server.log} == {4}


@pytest.mark.parametrize("most", [3000, 30])
def test_requests_that_are_too_large_are_halved(most, capsys):
    """A proxy in front of the server limits requests: 413, as a web page."""
    with audited(max_bytes=most) as (_, model):
        if most == 30:
            with pytest.raises(UserError, match=r"413: .*fewer images than 1 can't be sent; ask its owner"):
                model.ask(photos(3))
            return
        assert same_bits(model.ask(photos(9)).values, predict(unit(photos(9))))
    assert 1 <= model.batch_size < 9 and "--query_batch" in capsys.readouterr().err


def test_a_400_about_something_else_is_no_matter_of_size():
    with audited(faults=[400]) as (server, model), pytest.raises(UserError, match="fault 400 as planned"):
        model.ask(photos(8))
    assert len(server.log) == 1


# --- binary tensors ---


@pytest.mark.parametrize("binary", [False, "unlisted"])
def test_binary_tensors_are_tried_once(binary):
    with audited(binary=binary) as (server, model):
        for _ in range(3):
            model.ask(photos(2))
    sent = ["inference-header-content-length" in entry["headers"] for entry in server.log]
    assert sent == [bool(binary)] * 3
    assert server.state.other.count("/v2/models/net/infer") == (0 if binary else 1)


# --- probabilities and logits ---


@pytest.mark.parametrize("first", ["probabilities", "logits"])
def test_probabilities_in_one_reply_and_logits_in_another_are_named(first):
    turns = []

    def either(images):
        turns.append(None)
        logits = predict(images)
        return softmax(logits, axis=1) if (len(turns) % 2 == 1) == (first == "probabilities") else logits

    with running(make_app(either, input_shape=NCHW)) as server:
        model = opened(server.url, retries=0, sleep=lambda _: None)
        answers = model.ask(photos(4))
        assert answers.kind == first
        with pytest.raises(UserError, match=rf"in this reply and had {first} before.*different models"):
            model.ask(photos(4))
        patient = opened(server.url, retries=2, sleep=lambda _: None)
        kinds = {patient.ask(photos(4)).kind for _ in range(3)}
    assert len(kinds) == 1 and patient.retries_made >= 2  # the other one is asked for again


def test_both_in_one_reply_are_named():
    def both(images):
        logits = predict(images)
        return np.concatenate([softmax(logits[:1], axis=1), logits[1:]])

    told = "probabilities and logits in one reply"
    with running(make_app(both, input_shape=NCHW)) as server, pytest.raises(UserError, match=told):
        opened(server.url, retries=0).ask(photos(4))


def test_what_was_answered_before_an_interruption_counts():
    with audited(retries=0) as (_, model):
        before = model.ask(photos(2))
        fresh = type(before)(softmax(before.values, axis=1))
        model._reader.form = model._reader.kind = None
        model.remember(fresh)
        with pytest.raises(UserError, match="had probabilities before"):
            model.ask(photos(2))


def test_rounded_probabilities_are_taken_for_neither():
    def rounded(images):
        return softmax(predict(images), axis=1).round(2)

    with running(make_app(rounded, input_shape=NCHW)) as server:
        model = opened(server.url)
        assert all(model.ask(photos(4, seed)).kind in (None, "probabilities") for seed in range(5))


# --- addresses ---


@pytest.mark.parametrize(
    "address,told",
    [
        ("localhost:8000/v2/models/net", "write http://localhost:8000/v2/models/net"),
        ("model.example.org/v2/models/net/versions/2", "write http://model.example.org/v2/models/net/versions/2"),
        ("localhost:8000/v2/models/net?key=s3cr3t", "must look like"),
    ],
)
def test_an_address_without_its_scheme_is_told(address, told):
    assert is_address(address)
    with pytest.raises(UserError, match="must look like") as error:
        open_server(address)
    assert told in str(error.value) and "s3cr3t" not in str(error.value) and error.value.flag == "--checkpoint"


@pytest.mark.parametrize(
    "path", ["saved_res/net", "model.onnx", "/home/me/v2/models/net", "v2/models/net", "C:/model.pt"]
)
def test_files_are_no_addresses(path):
    assert not is_address(path)


@pytest.mark.parametrize("status", [200, 404, 502])
def test_a_web_page_is_told(status):
    from fastapi import FastAPI
    from fastapi.responses import HTMLResponse

    app = FastAPI()
    app.state.log, app.state.name = [], "net"

    @app.get("/{path:path}")
    async def page(path):
        app.state.log.append(path)
        return HTMLResponse("<!doctype html><title>Welcome</title>", status)

    with running(app) as server, pytest.raises(UserError, match=r"web page \(HTML\)") as error:
        open_server(server.url, retries=1, sleep=lambda _: None)
    assert len(server.log) == (2 if status == 502 else 1)
    if status == 200:
        assert "http://host:port/v2/models/NAME" in str(error.value)


# --- several requests at once ---


def test_threads_share_a_model_and_its_rate():
    """The rate limit holds for all of them together, and every answer is that of its own images."""
    pauses, found = [], {}
    # By a clock that stands still, each has to wait for all before it.
    with audited(binary=True, rate_limit=50, sleep=pauses.append, clock=lambda: 1000.0) as (_, model):

        def ask(seed):
            found[seed] = model.ask(photos(3, seed)).values

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(same_bits(found[seed], predict(unit(photos(3, seed)))) for seed in range(12))
    assert model.requests_sent == 12 + 2
    np.testing.assert_allclose(sorted(pauses), np.arange(1, 14) / 50)
