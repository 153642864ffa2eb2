"""A model behind HTTP: values, outputs and preprocessing arrive as the server has them."""

import json

import numpy as np
import pytest

from kit.errors import UserError
from suspects.server import open_server
from tests.suspects.inference_server import digest, make_app, running
from tests.suspects.parts import CLASSES, LABELS, NCHW, NHWC, UNIT, audited, opened, photos, predict, same_bits

pytest.importorskip("fastapi", reason="the test server needs fastapi (requirements/dev.txt)")
pytest.importorskip("uvicorn", reason="the test server needs uvicorn (requirements/dev.txt)")
pytest.importorskip("requests")

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

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
        assert same_bits(opened(server.url).ask(photos(1)).values, expected)


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
        opened(server.url)


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
        model = opened(server.url, retries=0)
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
        opened(server.url)


@pytest.mark.parametrize(
    "inputs,named",
    [
        ([{"name": name, "datatype": "FP32", "shape": NCHW} for name in ("left", "right")], "left.*right"),
        ([{"name": "sound", "datatype": "FP32", "shape": [-1, 1, 4, 6]}], "sound"),
        ([{"name": "flat", "datatype": "FP32", "shape": [-1, 72]}], "flat"),
        ([{"name": "batch", "datatype": "FP32", "shape": [3, 1, 4, 6]}], "batch"),
        ([{"name": "jpeg", "datatype": "BYTES", "shape": NCHW}], "jpeg.*BYTES"),
        ([{"name": "pixels", "datatype": "INT32", "shape": NCHW}], "INT32"),
        (5, "inputs"),
        ([5], "inputs"),
    ],
)
def test_inputs_that_cannot_be_used_are_named(inputs, named):
    with (
        running(make_app(predict, input_shape=NCHW, metadata={"inputs": inputs})) as server,
        pytest.raises(UserError, match=named),
    ):
        opened(server.url)


# --- preprocessing ---


@pytest.mark.parametrize("as_text", [False, True])
def test_preprocessing_from_the_server_and_from_flags(as_text):
    stated = {"size": [4, 6], "resize": 8, "mean": MEAN, "std": STD, "white": 255, "interpolation": "bicubic"}
    parameters = {"preprocessing": json.dumps(stated) if as_text else stated}
    with running(make_app(predict, input_shape=[-1, -1, -1, 3], parameters=parameters)) as server:
        made = open_server(server.url).preprocessing
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
    "stated,overrides,source",
    [
        ({}, {"mean": MEAN, "std": STD}, "flags"),
        ({"mean": MEAN}, {"std": STD, "resize": 9}, "server and flags"),
        ({"mean": MEAN, "std": STD}, {}, "server"),
        ({}, {}, None),
        ({}, {"mean": MEAN}, None),
        ({"std": STD}, {"resize": 9}, None),
    ],
)
def test_mean_and_std_are_asked_for_where_nobody_says_them(stated, overrides, source):
    """They were taken for 0 and 1 once, silently, which made a guilty model innocent."""
    with running(make_app(predict, input_shape=NCHW, parameters={"preprocessing": stated})) as server:
        if source is None:
            with pytest.raises(UserError, match="give --mean and --std") as error:
                open_server(server.url, overrides=overrides)
            assert error.value.flag == "--mean" and not server.log
            return
        made = open_server(server.url, overrides=overrides).preprocessing
    assert (made.source, made.mean, made.std) == (source, tuple(MEAN), tuple(STD))


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
        open_server(server.url, overrides={key: value for key, value in UNIT.items() if key != name})
    with running(make_app(predict, input_shape=NCHW)) as server, pytest.raises(UserError, match=name):
        opened(server.url, overrides=setting)


@pytest.mark.parametrize(
    "parameters", [{"preprocessing": "{"}, {"preprocessing": [1]}, ["preprocessing"], {"labels": {"0": "cat"}}]
)
def test_parameters_that_cannot_be_read(parameters):
    with (
        running(make_app(predict, input_shape=NCHW, parameters=parameters)) as server,
        pytest.raises(UserError, match="parameter that can't be read"),
    ):
        opened(server.url)


def test_a_size_that_nobody_gives_or_that_contradicts():
    with running(make_app(predict, input_shape=[-1, 3, -1, -1])) as server:
        with pytest.raises(UserError, match="give --input_size"):
            opened(server.url)
        assert opened(server.url, overrides={"input_size": (7, 9)}).preprocessing.size == (7, 9)
    with running(make_app(predict, input_shape=NHWC)) as server:
        assert opened(server.url, overrides={"input_size": (4, 6)}).preprocessing.size == (4, 6)
        with pytest.raises(UserError, match="correct --input_size"):
            opened(server.url, overrides={"input_size": (6, 4)})


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
