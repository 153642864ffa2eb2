"""The client of the Open Inference Protocol against a real server on this machine, which misbehaves on demand."""

import itertools
import json
import logging
import re
import socket
import time
from contextlib import contextmanager
from email.utils import formatdate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_server import FAULTS, digest, make_app, running, seeded_faults

from kit.errors import UserError
from suspects.server import ADDRESS, KINDS, SETTINGS, ServerSuspect, _Fault, open_server

pytest.importorskip("fastapi", reason="the test server needs fastapi (requirements/dev.txt)")
pytest.importorskip("uvicorn", reason="the test server needs uvicorn (requirements/dev.txt)")
requests = pytest.importorskip("requests")

CLASSES, NCHW, NHWC = 5, [-1, 3, 4, 6], [-1, 4, 6, 3]  # not square, so that a swap of height and width shows
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
LABELS = ["crane", "7:up", "boat", "3", "ring"]
SECRET = "s3cr3t-t0ken"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


def predict(images):
    # Each image by itself: a product of matrices may round differently in batches of different sizes.
    weights = np.random.default_rng(0).normal(size=(3 * 4 * 6, CLASSES)).astype(np.float32)
    weights -= weights.mean(0)  # else one class always wins
    return np.stack([(image.reshape(-1, 1).astype(np.float32) * weights).sum(0) for image in images]) / 3


def photos(count, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 4, 6), dtype=np.uint8)


@contextmanager
def audited(*, shape=NCHW, **options):
    """(running server, suspect that never really sleeps); keywords go to whichever of the two knows them."""
    names = ("headers", "rate_limit", "timeout", "retries", "overrides", "batch_size", "sleep", "clock")
    client = {"sleep": lambda seconds: None, **{name: options.pop(name) for name in names if name in options}}
    with running(make_app(predict, input_shape=shape, **options)) as server:
        yield server, open_server(server.url, **client)


def same_bits(array, expected):
    return array.dtype == expected.dtype and array.shape == expected.shape and array.tobytes() == expected.tobytes()


# --- values ---


@pytest.mark.parametrize("shape", [NCHW, NHWC, NCHW[1:], NHWC[1:], [-1, 3, -1, -1]])
@pytest.mark.parametrize("binary,binary_replies", [(False, False), (True, True), (True, False)])
def test_values_arrive_bit_for_bit(shape, binary, binary_replies):
    hidden = {"output_shape": [CLASSES]} if len(shape) == 3 else {}
    overrides = {"mean": MEAN, "std": STD, "input_size": [4, 6] if -1 in shape[1:] else None}
    with audited(shape=shape, binary=binary, binary_replies=binary_replies, overrides=overrides, **hidden) as audit:
        server, model = audit
        images = photos(5)
        answers = model.ask(images)
        sent = model.preprocessing.normalize(images)
    assert server.log[0]["digests"] == [digest(image) for image in sent]
    assert len(np.unique(sent)) > 200 and len(server.log[0]["shape"]) == 4
    assert same_bits(answers.values, predict(sent)) and answers.classes is None
    assert ("inference-header-content-length" in server.log[0]["headers"]) == binary
    assert server.log[0]["headers"]["accept-encoding"] == "identity"
    assert model.classes == CLASSES and model.preprocessing.size == (4, 6)


@pytest.mark.parametrize("values", [[1e-45, -0.0, 3.4028235e38, 0.1, 1 / 3], [16777217.0, -1e-38, 2.5, 1e10, -7.0]])
@pytest.mark.parametrize("binary", [False, True])
def test_extreme_floats_survive(values, binary):
    expected = np.array([values], dtype=np.float32)
    with running(make_app(lambda images: expected, input_shape=NCHW, binary=binary)) as server:
        assert same_bits(open_server(server.url).ask(photos(1)).values, expected)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("datatype,dtype", [("FP16", np.float16), ("FP64", np.float64), ("UINT8", np.uint8)])
def test_input_datatypes(datatype, dtype, binary):
    overrides = {} if dtype == np.uint8 else {"mean": MEAN, "std": STD}
    with audited(datatype=datatype, binary=binary, overrides=overrides) as (server, model):
        images = photos(3)
        model.ask(images)
        sent = images if dtype == np.uint8 else model.preprocessing.normalize(images).astype(dtype)
    assert server.log[0]["digests"] == [digest(image) for image in sent]


@pytest.mark.parametrize("datatype", ["FP16", "FP64"])
def test_output_datatypes(datatype):
    with audited(output_datatype=datatype, binary=datatype == "FP16") as (_, model):
        values = model.ask(photos(3)).values
        expected = predict(model.preprocessing.normalize(photos(3)))
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, expected.astype(datatype.replace("FP", "float")).astype(np.float32))


def test_a_fixed_batch_of_one():
    with audited(shape=[1, 3, 4, 6], output_shape=[1, CLASSES]) as (server, model):
        assert model.batch_size == 1
        with pytest.raises(ValueError, match="1 to 1"):
            model.ask(photos(2))
        assert len(model.ask(photos(1))) == 1 and server.log[0]["shape"][0] == 1


def test_a_fixed_batch_is_always_full():
    with audited(shape=[4, 3, 4, 6]) as (server, model):
        assert model.batch_size == 4
        values = model.ask(photos(3)).values
        assert server.log[0]["shape"][0] == 4
        np.testing.assert_array_equal(values, predict(model.preprocessing.normalize(photos(3))))


def test_a_fixed_batch_that_would_fill_the_memory():
    with running(make_app(predict, input_shape=[10**9, 3, 4, 6])) as server, pytest.raises(UserError, match="too many"):
        open_server(server.url)


def test_a_request_stays_below_what_servers_take():
    with (
        audited(shape=[-1, 3, 512, 512], batch_size=1000) as (_, as_json),
        audited(shape=[-1, 3, 512, 512], batch_size=1000, binary=True) as (_, as_binary),
    ):
        assert as_json.batch_size * 3 * 512**2 <= 2**21 and 1 < as_json.batch_size < as_binary.batch_size < 64


@pytest.mark.parametrize("images", [photos(3).astype(np.float32), photos(3)[:, :, :3], photos(0), photos(65)])
def test_asking_something_else_than_images(images):
    with audited() as (server, model), pytest.raises(ValueError, match="images are"):
        model.ask(images)
    assert not server.log


# --- outputs ---


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("mode", ["labels", "top_k", "text_index", "text_label", "text_top"])
def test_outputs(mode, binary):
    parameters = {"labels": LABELS} if mode == "text_label" else None
    with audited(mode=mode, binary=binary, parameters=parameters, labels=LABELS if parameters else None) as (_, model):
        answers = model.ask(photos(6))
        logits = predict(model.preprocessing.normalize(photos(6)))
    order = np.argsort(-logits, axis=1)
    assert answers.classes.dtype == np.int32
    if mode in ("top_k", "text_top"):
        np.testing.assert_array_equal(answers.classes, order[:, :3])
        assert same_bits(answers.values, np.take_along_axis(logits, order[:, :3], 1))
    else:
        assert answers.values is None
        np.testing.assert_array_equal(answers.classes, order[:, :1])
    assert (model.classes, model.class_names) == ((5, tuple(LABELS)) if parameters else (None, None))
    assert len({*order[:, 0]}) > 1


@pytest.mark.parametrize(
    "mode,shape", [("labels", [-1, 1]), ("labels", [-1, -1]), ("text_index", [-1, 1]), ("text_index", [-1, -1])]
)
def test_labels_may_be_declared_as_a_column(mode, shape):
    with audited(mode=mode, output_shape=shape) as (_, model):
        assert model.ask(photos(2)).classes.shape == (2, 1)


@pytest.mark.parametrize(
    "text,expected",
    [
        ("2", (None, 2)),
        ("crane", (None, 0)),
        ("7:up", (None, 1)),
        ("3", (None, 3)),
        ("0.25:4", (0.25, 4)),
        ("-1e-3:2:boat", (-1e-3, 2)),
        ("0.5:1:7:up", (0.5, 1)),
        ("", None),
        ("swan", None),
        ("-1", None),
        ("5", None),
        ("0.5:9:x", None),
        ("nan:2", None),
        ("inf:2", None),
        ("1e39:2", None),
        (":2", None),
        ("0.5:x", None),
        ("²", None),
    ],
)
def test_strings(text, expected):
    def answer(images):
        return np.zeros((len(images), 1), dtype=np.float32)

    parameters = {"labels": json.dumps(LABELS)}
    with running(make_app(answer, input_shape=NCHW, mode="text_label", labels=[text], parameters=parameters)) as server:
        model = open_server(server.url, retries=0)
        if expected is None:
            with pytest.raises(UserError, match="output 'text'"):
                model.ask(photos(2))
            return
        answers = model.ask(photos(2))
    value, index = expected
    assert answers.classes.tolist() == [[index]] * 2
    assert (answers.values is None) if value is None else (answers.values == np.float32(value)).all()


def test_a_name_of_two_classes_means_neither():
    names = ["crane"] * 5
    with (
        audited(mode="text_label", parameters={"labels": names}, labels=names, retries=0) as (_, model),
        pytest.raises(UserError, match="'crane', which is no class"),
    ):
        model.ask(photos(1))


def test_names_that_do_not_fit_the_values_are_ignored():
    with audited(output_shape=[-1, CLASSES], parameters={"labels": LABELS[:4]}) as (_, model):
        assert model.class_names is None and model.classes == CLASSES


@pytest.mark.parametrize(
    "outputs,named",
    [
        ([], "none"),
        ([{"name": "boxes", "datatype": "FP32", "shape": [-1, 100, 4]}], "boxes"),
        ([{"name": "odd", "datatype": "BF16", "shape": [-1, 5]}], "BF16"),
        ([{"name": "mask", "datatype": "INT64", "shape": [-1, 5]}], "mask"),
        ([{"name": name, "datatype": "FP32", "shape": [-1, 5]} for name in ("logits", "features")], "features"),
        (
            [
                {"name": "scores", "datatype": "FP32", "shape": [-1, 5]},
                {"name": "ids", "datatype": "INT64", "shape": [-1, 3]},
            ],
            "ids",
        ),
        ("nonsense", "outputs"),
        ([{"name": "logits"}], "outputs"),
    ],
)
def test_outputs_that_cannot_be_used_are_named(outputs, named):
    with (
        running(make_app(predict, input_shape=NCHW, metadata={"outputs": outputs})) as server,
        pytest.raises(UserError, match=named),
    ):
        open_server(server.url)


@pytest.mark.parametrize(
    "inputs,named",
    [
        ([{"name": name, "datatype": "FP32", "shape": NCHW} for name in ("left", "right")], "left.*right"),
        ([{"name": "sound", "datatype": "FP32", "shape": [-1, 1, 4, 6]}], "sound"),
        ([{"name": "flat", "datatype": "FP32", "shape": [-1, 72]}], "flat"),
        ([{"name": "batch", "datatype": "FP32", "shape": [3, 1, 4, 6]}], "batch"),
        ([{"name": "jpeg", "datatype": "BYTES", "shape": NCHW}], "jpeg.*BYTES"),
        ([{"name": "pixels", "datatype": "INT32", "shape": NCHW}], "INT32"),
        ([], "none"),
        (None, "inputs"),
        ({}, "none"),
    ],
)
def test_inputs_that_cannot_be_used_are_named(inputs, named):
    with (
        running(make_app(predict, input_shape=NCHW, metadata={"inputs": inputs})) as server,
        pytest.raises(UserError, match=named),
    ):
        open_server(server.url)


# --- preprocessing ---


@pytest.mark.parametrize("as_text", [False, True])
def test_preprocessing_from_the_server_and_from_flags(as_text):
    stated = {"size": [4, 6], "resize": 8, "mean": MEAN, "std": STD, "white": 255, "interpolation": "bicubic"}
    parameters = {"preprocessing": json.dumps(stated) if as_text else stated}
    with audited(shape=[-1, -1, -1, 3], parameters=parameters) as (server, model):
        made = model.preprocessing
        assert (made.size, made.resize, made.mean, made.std, made.white, made.interpolation, made.source) == (
            (4, 6),
            8,
            tuple(MEAN),
            tuple(STD),
            255,
            "bicubic",
            "server",
        )
        flags = {"mean": 0.5, "input_size": 5, "resize": None, "interpolation": "nearest"}
        made = open_server(server.url, overrides=flags).preprocessing
    assert (made.size, made.resize, made.mean, made.std, made.interpolation, made.source) == (
        (5, 5),
        8,
        (0.5,) * 3,
        tuple(STD),
        "nearest",
        "server and flags",
    )


@pytest.mark.parametrize(
    "overrides,source", [({}, "defaults"), ({"mean": MEAN, "std": STD}, "flags"), ({"resize": 9}, "flags and defaults")]
)
def test_the_source_of_the_preprocessing(overrides, source):
    with audited(overrides=overrides) as (_, model):
        assert model.preprocessing.source == source
        assert model.preprocessing.std == tuple(overrides.get("std", (1.0, 1.0, 1.0)))


@pytest.mark.parametrize(
    "setting",
    [
        {"mean": [1, 2]},
        {"mean": "0.5"},
        {"std": [1, 1, 0]},
        {"std": [1, 1, "NaN"]},
        {"mean": [float("nan"), 0, 0]},
        {"size": [4, 6.5]},
        {"size": [4, 6, 3]},
        {"size": "4"},
        {"resize": 0},
        {"resize": 10**9},
        {"resize": True},
        {"white": 2},
        {"white": [1]},
        {"interpolation": "magic"},
        {"interpolation": ["bicubic"]},
        {"colour": "BGR"},
    ],
)
def test_bad_preprocessing_is_refused(setting):
    name = next(iter(setting))
    with (
        running(make_app(predict, input_shape=NCHW, parameters={"preprocessing": json.dumps(setting)})) as server,
        pytest.raises(UserError, match=name),
    ):
        open_server(server.url)
    with running(make_app(predict, input_shape=NCHW)) as server, pytest.raises(UserError, match=name):
        open_server(server.url, overrides=setting)


@pytest.mark.parametrize(
    "parameters", [{"preprocessing": "{"}, {"preprocessing": [1]}, ["preprocessing"], {"labels": {"0": "cat"}}]
)
def test_parameters_that_cannot_be_read(parameters):
    with (
        running(make_app(predict, input_shape=NCHW, parameters=parameters)) as server,
        pytest.raises(UserError, match="parameter that can't be read"),
    ):
        open_server(server.url)


def test_a_size_that_nobody_gives_or_that_contradicts():
    with running(make_app(predict, input_shape=[-1, 3, -1, -1])) as server:
        with pytest.raises(UserError, match="give --input_size"):
            open_server(server.url)
        assert open_server(server.url, overrides={"input_size": (7, 9)}).preprocessing.size == (7, 9)
    with running(make_app(predict, input_shape=NHWC)) as server:
        assert open_server(server.url, overrides={"input_size": (4, 6)}).preprocessing.size == (4, 6)
        with pytest.raises(UserError, match="correct --input_size"):
            open_server(server.url, overrides={"input_size": (6, 4)})


def test_raw_pixels_are_not_normalised():
    parameters = {"preprocessing": {"mean": 0.5}}
    with running(make_app(predict, input_shape=NCHW, datatype="UINT8", parameters=parameters)) as server:
        assert open_server(server.url).preprocessing.mean == (0.0,) * 3
        with pytest.raises(UserError, match="raw pixels"):
            open_server(server.url, overrides={"mean": 0.5})


def test_normalised_pixels_beyond_the_datatype():
    with audited(datatype="FP16", overrides={"std": 1e-6}) as (server, model), pytest.raises(UserError, match="FP16"):
        model.ask(photos(1))
    assert not server.log


# --- faults ---

PASSING = [*(fault for fault in FAULTS if fault != "redirect"), 408, 425, 429, 500, 502, 503, 504]


@pytest.mark.parametrize("binary", [False, True])
def test_every_passing_fault_is_repeated(binary):
    """Two faults of each kind, then the right answer; a fault that were believed would give wrong or no values."""
    faults = [fault for kind in PASSING for fault in (kind, kind, None)]
    with audited(faults=faults, binary=binary, timeout=0.25, stall=0.35, retries=2) as (server, model):
        model.ask(photos(1))  # uses up a fault or two: the rest runs with the number of classes known
        first = len(server.log)
        for number, kind in enumerate(PASSING[1:]):
            images = photos(2, seed=number)
            answers = model.ask(images)
            assert same_bits(answers.values, predict(model.preprocessing.normalize(images))), kind
    assert first == 3 and len(server.log) == len(faults)
    assert model.retries_made == 2 * len(PASSING) and model.requests_sent == len(faults) + 2
    identifiers = [[entry["id"] for entry in server.log[start : start + 3]] for start in range(0, len(faults), 3)]
    assert all(len({*trio}) == 1 for trio in identifiers) and len({trio[0] for trio in identifiers}) == len(PASSING)


@pytest.mark.parametrize(
    "fault,text",
    [
        ("timeout", "no answer within"),
        ("drop", "connection failed"),
        ("shape", r"'logits' has the shape \[2, 5, 2\]"),
        ("rows", r"'logits' has the shape \[1, 5\], not \[2"),
        ("nan", r"'logits' of shape \[2, 5\] has NaN"),
        ("datatype", "'logits' is INT64, not FP32"),
        ("json", "malformed"),
        ("id", "another request"),
        ("missing", "'logits' is missing"),
        ("huge", "longer than"),
        ("gzip", "compressed"),
        (503, "503: fault 503 as"),
    ],
)
def test_a_fault_that_stays_ends_in_one_line(fault, text):
    with (
        audited(faults=itertools.repeat(fault), timeout=0.25, stall=0.35, retries=2) as (server, model),
        pytest.raises(UserError, match=text) as error,
    ):
        model.ask(photos(2))
    assert len(server.log) == 3 and model.retries_made == 2 and "3 tries" in str(error.value)
    assert str(error.value).startswith(server.url) and str(error.value).isprintable() and len(str(error.value)) < 500
    assert error.value.__suppress_context__


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_sent_again_after_a_right_answer(seed):
    binary, images = bool(seed % 2), photos(120, seed)
    kinds = [fault for fault in PASSING if fault != "timeout"] + ["timeout"] * (seed == 0)
    faults = seeded_faults(seed, 0.5, kinds)
    with audited(faults=faults, binary=binary, timeout=0.25, stall=0.35, retries=50) as (server, model):
        values = np.concatenate([model.ask(images[start : start + 4]).values for start in range(0, 120, 4)])
        sent = model.preprocessing.normalize(images)
    assert same_bits(values, predict(sent))
    answered = [entry for entry in server.log if entry["answered"]]
    assert sorted(d for entry in answered for d in entry["digests"]) == sorted(digest(image) for image in sent)
    assert len(answered) == 30 and len(server.log) >= 40
    assert len({entry["id"] for entry in answered}) == 30


def test_a_huge_reply_is_not_read_to_its_end():
    with audited(faults=["huge"], retries=0) as (server, model), pytest.raises(UserError, match="longer than"):
        model.ask(photos(2))
    assert server.state.huge < 64 * 2**20  # of 512; what was under way counts, too


def test_the_limit_of_a_reply_suffices_for_many_classes():
    def wide(images):
        return np.full((len(images), 21843), np.float32(-1.2345678e-12))

    with running(make_app(wide, input_shape=NCHW)) as server:
        model = open_server(server.url)
        assert all(model.ask(photos(16)).values.shape == (16, 21843) for _ in range(2))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 501])
def test_refusals_are_not_repeated(status):
    with audited(faults=[status]) as (server, model), pytest.raises(UserError) as error:
        model.ask(photos(2))
    message = str(error.value)
    assert len(server.log) == 1 and model.retries_made == 0
    assert f"{status}: fault {status} as planned" in message and message.isprintable() and message.count("x") < 200


def test_redirects_are_not_followed():
    with audited(faults=["redirect"]) as (server, model), pytest.raises(UserError, match=r"307.*elsewhere"):
        model.ask(photos(2))
    assert len(server.log) == 1 and "/elsewhere" not in server.state.other


@pytest.mark.parametrize(
    "retry_after,least,most",
    [
        ("7", 7, 7),
        ("0", 0.25, 0.5),
        ("100000", 300, 300),
        ("soon", 0.25, 0.5),
        ("-5", 0.25, 0.5),
        ("1e9", 0.25, 0.5),
        (100, 80, 101),
        (-100, 0.25, 0.5),
        (10**7, 300, 300),
    ],
)
def test_retry_after(retry_after, least, most):
    pauses = []
    if isinstance(retry_after, int):
        retry_after = formatdate(time.time() + retry_after, usegmt=True)
    with audited(faults=["retry_after"], retry_after=retry_after, sleep=pauses.append) as (_, model):
        model.ask(photos(1))
    assert len(pauses) == 1 and least <= pauses[0] <= most


def test_pauses_grow_and_differ():
    runs = []
    for _ in range(2):
        with (
            audited(faults=itertools.repeat(503), sleep=(pauses := []).append, retries=9) as (server, model),
            pytest.raises(UserError, match="10 tries"),
        ):
            model.ask(photos(1))
        assert len(server.log) == 10
        runs.append(pauses)
    bounds = [min(0.5 * 2**attempt, 30) for attempt in range(9)]
    assert all(bound / 2 <= pause <= bound for pauses in runs for pause, bound in zip(pauses, bounds, strict=True))
    assert runs[0] != runs[1]


class Clock:
    """Time that passes only where the client sleeps."""

    def __init__(self, monkeypatch):
        self.now, self.sent, send = 1000.0, [], requests.Session.send

        def recorded(session, request, **options):
            self.sent.append(self.now)
            return send(session, request, **options)

        monkeypatch.setattr(requests.Session, "send", recorded)

    def sleep(self, seconds):
        assert seconds >= 0
        self.now += seconds


def test_the_rate_limit_spaces_all_requests(monkeypatch):
    clock, faults = Clock(monkeypatch), [None, 500, None, 503, 503]
    with audited(rate_limit=0.25, faults=faults, sleep=clock.sleep, clock=lambda: clock.now) as (_, model):
        for _ in range(4):
            model.ask(photos(1))
        assert model.requests_sent == len(clock.sent) == 9
        # Even where pauses after faults are shorter than the spacing.
        np.testing.assert_allclose(np.diff(clock.sent), 4)
        clock.now += 100
        model.ask(photos(1))
        model.ask(photos(1))
    assert np.isclose(clock.sent[-1] - clock.sent[-2], 4)  # what was not used is not saved up for a burst


def test_no_rate_limit_means_no_waiting(monkeypatch):
    clock = Clock(monkeypatch)
    with audited(sleep=clock.sleep, clock=lambda: clock.now) as (_, model):
        model.ask(photos(1))
    assert {*clock.sent} == {1000.0}


@pytest.mark.parametrize("limit", [{"rate_limit": 0}, {"rate_limit": -1}, {"timeout": 0}, {"rate_limit": float("nan")}])
def test_limits_that_cannot_be(limit):
    with pytest.raises(UserError, match="above 0"):
        open_server("http://127.0.0.1:1/v2/models/net", **limit)


def test_nobody_is_there():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening
        pauses = []
        with pytest.raises(UserError, match=r"4 tries.*refused"):
            open_server(f"http://127.0.0.1:{taken.getsockname()[1]}/v2/models/net", retries=3, sleep=pauses.append)
    assert len(pauses) == 3


def test_a_reply_that_changes_its_form():
    widths = iter([5, 5, 4])
    with running(make_app(lambda images: predict(images)[:, : next(widths)], input_shape=NCHW)) as server:
        model = open_server(server.url, retries=0)
        assert model.classes is None
        assert [model.ask(photos(count)).values.shape for count in (1, 2)] == [(1, 5), (2, 5)] and model.classes == 5
        with pytest.raises(UserError, match="another form"):
            model.ask(photos(1))


@pytest.mark.parametrize("label", [-1, 2**31, 5])
def test_classes_that_do_not_exist(label):
    reply = {"outputs": [{"name": "label", "datatype": "INT64", "shape": [2], "data": [label, 0]}]}
    with (
        audited(mode="labels", parameters={"labels": LABELS}) as (_, model),
        pytest.raises(_Fault, match="do not exist"),
    ):
        model._read(json.dumps(reply).encode(), {}, "x", 2)


@pytest.mark.parametrize(
    "mode,datatype,data",
    [
        ("dense", "FP32", ["1.5", "2"]),
        ("dense", "FP32", [True, 1.0]),
        ("dense", "FP32", [None, 1.0]),
        ("dense", "FP32", [[1.0], [2.0, 3.0]]),
        ("dense", "FP32", {"0": 1.0}),
        ("dense", "FP64", [1e39, 0]),
        ("dense", "FP32", [10**400, 0]),
        ("labels", "INT64", [1.5, 2]),
        ("labels", "INT64", ["1", "2"]),
        ("labels", "INT64", [10**20, 1]),
        ("text_index", "BYTES", [1, 2]),
        ("dense", "FP32", ["x" * 10**6] + ["y"] * 10**5),
    ],
)
def test_data_of_the_wrong_kind(mode, datatype, data):
    with audited(mode=mode) as (_, model):
        name, shape = {"dense": ("logits", [1, 2])}.get(mode, ("label" if mode == "labels" else "text", [2]))
        reply = {"outputs": [{"name": name, "datatype": datatype, "shape": shape, "data": data}]}
        with pytest.raises(_Fault, match=r"malformed|infinite"):
            model._read(json.dumps(reply).encode(), {}, "x", shape[0])


def test_minus_one_is_no_entry_of_a_top_k():
    reply = {
        "outputs": [
            {"name": "indices", "datatype": "INT32", "shape": [1, 2], "data": [[4, -1]]},
            {"name": "scores", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 0.0]},
        ]
    }
    with audited(mode="top_k") as (_, model):
        answers = model._read(json.dumps(reply).encode(), {}, "x", 1)
    assert answers.classes.tolist() == [[4, -1]] and answers.values.tolist() == [[0.5, 0.0]]


# --- metadata, addresses, headers ---


def test_identity_and_versions():
    with audited() as (server, model):
        first = model.identity
        versioned = open_server(server.url + "/versions/1/")
        assert open_server(server.url + "/").identity == first
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

        assert model._read(reply("1"), {}, "x", 1).values.tolist() == [[1, 2.5]]
        with pytest.raises(_Fault, match="version 2, not 1"):
            model._read(reply("2"), {}, "x", 1)


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
        open_server(server.url, headers=[header])
    assert SECRET not in str(error.value) and server.state.other == ["/v2/models/net"]
    names = {"inputs": [{"name": SECRET, "datatype": "FP32", "shape": [1]}]}
    with running(make_app(predict, input_shape=NCHW, metadata=names)) as server, pytest.raises(UserError) as error:
        open_server(server.url, headers=[header])
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
    assert "inference-header-content-length" not in server.log[0]["headers"]


# --- hostile replies ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
OUTPUT = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["logits", "label", "text", "scores", "indices"]) | JSON,
        "shape": st.lists(st.integers(-2, 3), max_size=3) | JSON,
        "datatype": st.sampled_from([*KINDS]) | JSON,
        "data": st.lists(JSON, max_size=6) | JSON,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-2, 40) | JSON}) | JSON,
    },
)
REPLY = (
    st.fixed_dictionaries(
        {"outputs": st.lists(OUTPUT, max_size=2) | JSON},
        optional={"id": JSON, "model_name": JSON, "model_version": JSON},
    )
    | JSON
)


@pytest.fixture(scope="module")
def models():
    """One suspect per kind of output; their servers are gone."""
    opened = []
    for mode in ("dense", "labels", "top_k", "text_top"):
        with running(make_app(predict, input_shape=NCHW, mode=mode)) as server:
            opened.append(open_server(server.url))
    return opened


@settings(max_examples=300, deadline=None)
@given(reply=REPLY, rest=st.binary(max_size=40), cut=st.none() | st.integers(-5, 300).map(str) | st.text(max_size=3))
def test_no_reply_breaks_the_client(models, reply, rest, cut):
    head = json.dumps(reply).encode()
    for model in models:
        for length in (cut, str(len(head))):
            headers = {} if length is None else {"Inference-Header-Content-Length": length}
            try:
                answers = model._read(head + rest, headers, "x", 2)
            except _Fault as fault:
                assert len(str(fault)) < 400
            else:
                assert len(answers) == 2


METADATA = st.fixed_dictionaries(
    {},
    optional={
        "name": JSON,
        "versions": JSON,
        "platform": JSON,
        "inputs": st.lists(OUTPUT, max_size=2) | JSON,
        "outputs": st.lists(OUTPUT, max_size=2) | JSON,
        "parameters": st.fixed_dictionaries(
            {}, optional={"labels": JSON, "preprocessing": st.dictionaries(st.sampled_from(SETTINGS), JSON)}
        )
        | JSON,
    },
)


@settings(max_examples=200, deadline=None)
@given(changes=METADATA)
def test_no_metadata_breaks_the_client(changes):
    metadata = {
        "name": "net",
        "inputs": [{"name": "pixels", "datatype": "FP32", "shape": NCHW}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 5]}],
        **changes,
    }

    class Stub:
        clean = staticmethod(str)

        def send(self, method, url, *rest, **options):
            return metadata

    address = ADDRESS.fullmatch("http://localhost/v2/models/net")
    try:
        model = ServerSuspect(Stub(), address, {}, 64)
    except UserError as error:
        assert len(str(error)) < 1000
    else:
        json.dumps(model.identity)
