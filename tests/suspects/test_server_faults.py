"""A model behind HTTP that fails, stalls, limits its rate or lies: what is repeated and what is one line."""

import itertools
import json
import socket
import time
from email.utils import formatdate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.errors import UserError
from suspects.connection import Courier, Fault, Refusal
from suspects.metadata import SETTINGS, Hints
from suspects.server import ServerSuspect, open_server
from suspects.wire import KINDS
from tests.suspects.inference_server import FAULTS, digest, make_app, running, seeded_faults
from tests.suspects.parts import LABELS, NCHW, audited, opened, photos, predict, read, same_bits

pytest.importorskip("fastapi", reason="the test server needs fastapi (requirements/dev.txt)")
pytest.importorskip("uvicorn", reason="the test server needs uvicorn (requirements/dev.txt)")
requests = pytest.importorskip("requests")

# --- faults ---

# Silence is not the first: a server that takes no binary tensors refuses the first request as fast as it can.
PASSING = [*(fault for fault in FAULTS if fault not in ("timeout", "redirect", "nan")), "timeout"]
PASSING += [408, 425, 429, 500, 502, 503, 504]


@pytest.mark.parametrize("binary", [False, True])
def test_every_passing_fault_is_repeated(binary):
    """Two faults of each kind, then the right answer; a fault that were believed would give wrong or no values."""
    faults = [fault for kind in PASSING for fault in (kind, kind, None)]
    with audited(silent=faults, binary=binary, retries=2) as (server, model):
        model.ask(photos(1))  # uses up a fault or two: the rest runs with the number of classes known
        first = len(server.log)
        for number, kind in enumerate(PASSING[1:]):
            images = photos(2, seed=number)
            answers = model.ask(images)
            assert same_bits(answers.values, predict(model.preprocessing.normalize(images))), kind
    assert first == 3 and len(server.log) == len(faults)
    assert model.retries_made == 2 * len(PASSING) and model.requests_sent == len(faults) + 2 + (not binary)
    identifiers = [[entry["id"] for entry in server.log[start : start + 3]] for start in range(0, len(faults), 3)]
    assert all(len({*trio}) == 1 for trio in identifiers) and len({trio[0] for trio in identifiers}) == len(PASSING)


@pytest.mark.parametrize(
    "fault,text",
    [
        ("timeout", "no answer within"),
        ("drop", "connection failed"),
        ("shape", r"'logits' has the shape \[2, 5, 2\]"),
        ("rows", r"'logits' has the shape \[1, 5\], not \[2"),
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
        audited(silent=itertools.repeat(fault), binary=fault == "timeout", retries=2) as (server, model),
        pytest.raises(UserError, match=text) as error,
    ):
        model.ask(photos(2))
    assert len(server.log) == 3 and model.retries_made == 2 and "3 tries" in str(error.value)
    assert str(error.value).startswith(server.url) and str(error.value).isprintable() and len(str(error.value)) < 500
    assert error.value.__suppress_context__


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_sent_again_after_a_right_answer(seed):
    binary, images = bool(seed % 2), photos(120, seed)
    kinds = [fault for fault in PASSING if fault != "timeout"] + ["timeout"] * (seed == 1)
    faults = seeded_faults(seed, 0.5, kinds)
    with audited(silent=faults, binary=binary, retries=50) as (server, model):
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
        model = opened(server.url)
        assert all(model.ask(photos(16)).values.shape == (16, 21843) for _ in range(2))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 501])
def test_refusals_are_not_repeated(status):
    with audited(faults=[status]) as (server, model), pytest.raises(UserError) as error:
        model.ask(photos(1))
    message = str(error.value)
    assert len(server.log) == 1 and model.retries_made == 0
    assert f"{status}: fault {status} as planned" in message and message.isprintable() and message.count("x") < 200


@pytest.mark.parametrize("datatype,data", [("FP32", [[float("nan"), 1.0]]), ("FP64", [[1e39, 0]])])
def test_what_is_no_number_is_a_missing_answer(datatype, data):
    """Repeating it would let one NaN stop the audit."""
    reply = {"outputs": [{"name": "logits", "datatype": datatype, "shape": [1, 2], "data": data}]}
    with audited() as (_, model):
        assert read(model, json.dumps(reply).encode(), 1).missing.all()


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
    timing = {"rate_limit": 0.25, "sleep": clock.sleep, "clock": lambda: clock.now}
    with audited(faults=faults, binary=True, **timing) as (_, model):
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
        model = opened(server.url, retries=0)
        assert model.classes is None
        assert [model.ask(photos(count)).values.shape for count in (1, 2)] == [(1, 5), (2, 5)] and model.classes == 5
        with pytest.raises(UserError, match="another form"):
            model.ask(photos(1))


@pytest.mark.parametrize("label", [-1, 2**31, 5])
def test_classes_that_do_not_exist(label):
    reply = {"outputs": [{"name": "label", "datatype": "INT64", "shape": [2], "data": [label, 0]}]}
    with (
        audited(mode="labels", parameters={"labels": LABELS}) as (_, model),
        pytest.raises(Fault, match="do not exist"),
    ):
        read(model, json.dumps(reply).encode(), 2)


@pytest.mark.parametrize(
    "mode,datatype,data",
    [
        ("dense", "FP32", ["1.5", "2"]),
        ("dense", "FP32", [True, 1.0]),
        ("dense", "FP32", [None, 1.0]),
        ("dense", "FP32", [[1.0], [2.0, 3.0]]),
        ("dense", "FP32", {"0": 1.0}),
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
        with pytest.raises(Fault, match=r"malformed|infinite"):
            read(model, json.dumps(reply).encode(), shape[0])


def test_minus_one_is_no_entry_of_a_top_k():
    reply = {
        "outputs": [
            {"name": "indices", "datatype": "INT32", "shape": [1, 2], "data": [[4, -1]]},
            {"name": "scores", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 0.0]},
        ]
    }
    with audited(mode="top_k") as (_, model):
        answers = read(model, json.dumps(reply).encode(), 1)
    assert answers.classes.tolist() == [[4, -1]] and answers.values.tolist() == [[0.5, 0.0]]


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
    found = []
    for mode in ("dense", "labels", "top_k", "text_top"):
        with running(make_app(predict, input_shape=NCHW, mode=mode)) as server:
            found.append(opened(server.url))
    return found


@settings(max_examples=300)
@given(reply=REPLY, rest=st.binary(max_size=40), cut=st.none() | st.integers(-5, 300).map(str) | st.text(max_size=3))
def test_no_reply_breaks_the_client(models, reply, rest, cut):
    head = json.dumps(reply).encode()
    for model in models:
        for length in (cut, str(len(head))):
            headers = {} if length is None else {"Inference-Header-Content-Length": length}
            try:
                answers = read(model, head + rest, 2, headers)
            except Fault as fault:
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


CONFIG = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "max_batch_size": JSON,
        "parameters": JSON
        | st.dictionaries(
            st.sampled_from(["preprocessing", "labels"]), st.fixed_dictionaries({"string_value": JSON}) | JSON
        ),
    },
)


@settings(max_examples=200)
@given(changes=METADATA, config=CONFIG)
def test_no_metadata_breaks_the_client(changes, config):
    metadata = {
        "name": "net",
        "inputs": [{"name": "pixels", "datatype": "FP32", "shape": NCHW}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 5]}],
        **changes,
    }

    class Stub:
        courier = Courier("http://localhost/v2/models/net")
        url, model, version, most_numbers = courier.url, "net", None, 10**6

        def metadata(self):
            return metadata

        def look_around(self):
            return config

        def infer(self, *question):
            raise Refusal(400, "it's 'another' form")

    try:
        model = ServerSuspect(Stub(), "net", {}, 64, 4, Hints())
    except UserError as error:
        assert len(str(error)) < 1000
    else:
        json.dumps(model.identity)
