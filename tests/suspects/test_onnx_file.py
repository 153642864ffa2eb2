"""ONNX files: inputs, outputs, metadata and weights beside the file, and what is no classifier of photos."""

import json

import numpy as np
import pytest
import torch

from kit.errors import UserError
from suspects.opened import open_model
from tests.suspects.parts import MEAN, STD, assert_answers, images, refused

WEIGHTS = np.random.default_rng(5).normal(size=(3, 4)).astype(np.float32)

SAYS = {"mean": MEAN, "std": STD}


def onnx_file(path, shape=("n", 3, 8, 6), kind="FLOAT", outputs=("dense",), metadata=SAYS, location=None):
    """A model that multiplies the pixels' mean with WEIGHTS; outputs: dense, label, column, words, map, spare."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    node, info = helper.make_node, helper.make_tensor_value_info
    last = shape[-1] == 3
    nodes = [
        node("Cast", ["x"], ["cast"], to=TensorProto.FLOAT),
        node("Transpose", ["cast"], ["nchw"], perm=[0, 3, 1, 2] if last else [0, 1, 2, 3]),
        node("ReduceMean", ["nchw", "axes"], ["mean"], keepdims=0),
        node("MatMul", ["mean", "w"], ["dense"]),
        node("ArgMax", ["dense"], ["label"], axis=1, keepdims=0),
        node("ArgMax", ["dense"], ["column"], axis=1, keepdims=1),
        node("Cast", ["label"], ["words"], to=8),
        node("Neg", ["dense"], ["spare"]),
        node("ZipMap", ["dense"], ["map"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3]),
    ]
    kinds = {
        "dense": info("dense", 1, [shape[0], 4]),
        "label": info("label", 7, [shape[0]]),
        "column": info("column", 7, [shape[0], 1]),
        "words": info("words", 8, [shape[0]]),
        "spare": info("spare", 1, [shape[0], 4]),
        "map": helper.make_value_info(
            "map", helper.make_sequence_type_proto(helper.make_map_type_proto(7, helper.make_tensor_type_proto(1, [])))
        ),
    }
    needed = [
        each
        for each in nodes
        if each.output[0] in (*outputs, "cast", "nchw", "mean", "dense")
        or (each.output[0] == "label" and "words" in outputs)
    ]
    weights = numpy_helper.from_array(WEIGHTS[: shape[1] if shape[1] == 1 else 3], "w")
    if location is not None:
        (path.parent / location).write_bytes(weights.raw_data)
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", str(WEIGHTS.nbytes))):
            entry = weights.external_data.add()
            entry.key, entry.value = key, value
    graph = helper.make_graph(
        needed,
        "g",
        [info("x", getattr(TensorProto, kind), shape)],
        [kinds[name] for name in outputs],
        [weights, numpy_helper.from_array(np.array([2, 3]), "axes")],
    )
    model = helper.make_model(
        graph, ir_version=9, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    )
    helper.set_model_props(
        model,
        {key: value.decode() if isinstance(value, bytes) else json.dumps(value) for key, value in metadata.items()},
    )
    path.write_bytes(model.SerializeToString())
    return path


def onnx_answers(pixels, mean=MEAN, std=STD, white=1):
    return ((pixels / 255 * white).mean(axis=(2, 3)) - mean) / std @ WEIGHTS


def assert_onnx_answers(values, pixels, mean=MEAN, std=STD, white=1, half=False):
    """These are `onnx_answers`, but for rounding, in whatever order a processor adds.

    A pixel is rounded 4 times (scale, white, mean, std), its mean is a sum of at most 64 and an answer one of 3, and
    each of these operations adds at most 2^-24 of the sum of magnitudes. A float16 input is rounded by 2^-11 before.
    """
    magnitudes = ((pixels / 255 * white).mean(axis=(2, 3)) + mean) / std @ np.abs(WEIGHTS)
    bound = ((4 + 64 + 3) * 2.0**-24 + half * 2.0**-11) * magnitudes
    assert (np.abs(values - onnx_answers(pixels, mean, std, white)) <= bound).all()


@pytest.mark.parametrize(
    "shape",
    [
        ("n", 3, 8, 6),
        ("n", 8, 6, 3),
        (None, 3, 8, 6),
        (3, 3, 8, 6),
        (1, 8, 6, 3),
        ("n", 3, "h", "w"),
        ("n", "c", "h", "w"),
    ],
)
@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "DOUBLE", "UINT8"])
def test_onnx_inputs(kind, shape, tmp_path):
    """Wrong: NCHW for everybody; a fixed batch that is not filled up or not cut off; scaled pixels for uint8 inputs."""
    whole = kind == "UINT8"
    path = onnx_file(tmp_path / "theirs.onnx", shape, kind, metadata={} if whole else SAYS)
    free = "h" in shape
    suspect = open_model(path, device="cpu", overrides={"size": (8, 6)} if free else None, batch_size=2)
    assert suspect.preprocessing.size == (8, 6) and suspect.classes == 4 and suspect.name == "theirs.onnx"
    assert suspect.batch_size == (1 if shape[0] == 1 else 2)
    pixels = images(suspect.batch_size, 8)[..., :6]
    scale = ((0, 0, 0), (1, 1, 1), 255) if whole else (MEAN, STD, 1, kind == "FLOAT16")
    answers = suspect.ask(pixels)
    assert_onnx_answers(answers.values, pixels, *scale)
    assert answers.values.dtype == np.float32 and answers.classes is None
    if shape[0] == 3:
        assert_onnx_answers(suspect.ask(pixels[:1]).values, pixels[:1], *scale)


@pytest.mark.parametrize(
    "outputs, labels",
    [
        (("dense",), False),
        (("label",), True),
        (("column",), True),
        (("label", "dense"), False),
        (("words", "dense"), False),
    ],
)
def test_onnx_outputs(outputs, labels, tmp_path):
    """Wrong: the first output, whatever it is (scikit-learn's exporter puts the label first)."""
    suspect = open_model(onnx_file(tmp_path / "theirs.onnx", outputs=outputs), device="cpu")
    pixels = np.eye(3, dtype=np.uint8)[:, :, None, None] * images(3, 8)[..., :6]  # a red, a green and a blue one
    answers, wanted = suspect.ask(pixels), onnx_answers(pixels)
    if labels:
        assert answers.values is None and answers.classes.dtype == np.int32 and suspect.classes is None
        assert np.array_equal(answers.classes, wanted.argmax(1)[:, None]) and len(set(wanted.argmax(1))) > 1
    else:
        assert_onnx_answers(answers.values, pixels)
        assert suspect.classes == 4


@pytest.mark.parametrize(
    "outputs, word",
    [(("words",), "words"), (("map",), "zipmap"), (("label", "map"), None), (("dense", "spare"), "one output")],
)
def test_onnx_outputs_that_are_no_answers(outputs, word, tmp_path):
    path = onnx_file(tmp_path / "theirs.onnx", outputs=outputs)
    if word:
        refused(path, "theirs.onnx", word)
    else:
        assert open_model(path, device="cpu").ask(images(2, 8)[..., :6]).values is None


def test_onnx_metadata(tmp_path):
    names = ["Katze", "dog", "horse", "cow"]
    says = {"size": 8, "resize": 12, "mean": MEAN, "std": STD, "white": 255, "interpolation": "bicubic"}
    shape = ("n", 3, "h", "w")
    for metadata in (says, {"preprocessing": says}):
        path = onnx_file(tmp_path / "theirs.onnx", shape, metadata={**metadata, "class_names": names, "author": "x"})
        suspect = open_model(path, device="cpu")
        made = suspect.preprocessing
        assert (made.size, made.resize, made.white, made.interpolation) == ((8, 8), 12, 255, "bicubic")
        assert (made.mean, made.std, made.source) == (MEAN, STD, "onnx metadata")
        assert suspect.class_names == tuple(names)
        assert_onnx_answers(suspect.ask(images(2, 8)).values, images(2, 8), white=255)
        made = open_model(path, device="cpu", overrides={"mean": (0, 0, 0), "size": (9, 7)}).preprocessing
        assert (made.mean, made.size, made.std) == ((0, 0, 0), (9, 7), STD) and made.source == "onnx metadata and flags"
    for wrong in (names[:3], b"Katze", [1, 2, 3, 4], None):
        path = onnx_file(tmp_path / "theirs.onnx", metadata={**SAYS, "labels": wrong})
        assert open_model(path, device="cpu").class_names is None
    path = onnx_file(tmp_path / "theirs.onnx", outputs=("label",), metadata={**SAYS, "labels": names})
    assert open_model(path, device="cpu").classes == 4


def test_onnx_metadata_that_is_wrong(tmp_path):
    for metadata in (
        {**SAYS, "size": b"large"},
        {**SAYS, "mean": b"[" * 5000},
        {"preprocessing": [1]},
        {"preprocessing": {**SAYS, "crop_pct": 0.9}},
        {**SAYS, "std": [0, 1, 1]},
        {**SAYS, "resize": 10**9},
        {**SAYS, "interpolation": 3},
        {**SAYS, "size": [8, 8]},
    ):
        refused(onnx_file(tmp_path / "theirs.onnx", metadata=metadata), "", overrides={"white": 1})
    for metadata in ({**SAYS, "mean": b"no JSON"}, {"preprocessing": {**SAYS, "mean": "large"}}):
        path = onnx_file(tmp_path / "theirs.onnx", metadata=metadata)
        assert open_model(path, device="cpu", overrides={"mean": MEAN}).preprocessing.mean == MEAN
    refused(onnx_file(path, metadata={}), "--mean and --std")
    refused(onnx_file(path), "size", overrides={"size": 8})
    refused(onnx_file(path, kind="UINT8", metadata={}), "mean", overrides=SAYS)


def test_onnx_models_that_take_no_photos(tmp_path, capfd):
    path = tmp_path / "theirs.onnx"
    for shape, word in (
        (("n", 1, 8, 6), "RGB"),
        (("n", 3, 5000, 6), "--input_size"),
        ((2000, 3, 8, 6), "2000"),
        (("n", 3, "h", "w"), "--input_size"),
    ):
        refused(onnx_file(path, shape), word)
    refused(onnx_file(path, kind="INT64"), "float or uint8")
    refused(onnx_file(path), "--precision", precision="bfloat16")
    for content in (
        b"",
        b"garbage" * 30,
        onnx_file(path).read_bytes()[:150],
        onnx_file(path).read_bytes()[50:],
        onnx_file(path, ("n", 3, "h", "w")).read_bytes().replace(b"\n\x12\x01w", b"\n\x12\x01\xe8"),
        onnx_file(path).read_bytes().replace(b"0.4, 0.5", b"0.4,\xe4\xb00."),
    ):
        path.write_bytes(content)
        refused(path)
    assert capfd.readouterr() == ("", "")  # onnxruntime prints on its own, unless told otherwise


def test_onnx_weights_beside_the_file(tmp_path):
    """They are part of the identity; those outside the folder are never read. Wrong: a digest of the graph alone."""
    folder = tmp_path / "model"
    folder.mkdir()
    path = onnx_file(folder / "theirs.onnx", location="theirs.onnx.data")
    suspect = open_model(path, device="cpu")
    assert_onnx_answers(suspect.ask(images(2, 8)[..., :6]).values, images(2, 8)[..., :6])
    first = suspect.identity["external_data"]["theirs.onnx.data"]
    (folder / "theirs.onnx.data").write_bytes((WEIGHTS + 1).tobytes())
    assert open_model(path, device="cpu").identity["external_data"]["theirs.onnx.data"] != first
    (folder / "theirs.onnx.data").unlink()
    refused(path)
    assert open_model(onnx_file(path, metadata={**SAYS, "location": b"Berlin"}), device="cpu").classes == 4
    for location in ("../outside", str(tmp_path / "outside")):
        refused(onnx_file(path, location=location), "outside its folder")
    (folder / "link").symlink_to(tmp_path / "outside")
    refused(onnx_file(path, location="link"), "outside its folder")


@pytest.mark.filterwarnings("ignore:overflow")
def test_onnx_answers_that_are_not_finite(tmp_path):
    suspect = open_model(
        onnx_file(tmp_path / "theirs.onnx"),
        device="cpu",
        overrides={"std": (1e-38, 1e-38, 1e-38), "mean": (-9, -9, -9)},
        batch_size=4,
    )
    with pytest.raises(UserError, match="not finite for all of 2"):
        suspect.ask(images(2, 8)[..., :6])


def test_an_export_of_a_torch_module(smallnet, tmp_path):
    """torch's exporter keeps weights in a second file unless told otherwise."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    path, pixels = tmp_path / "theirs.onnx", images(3, 32)
    torch.onnx.export(
        smallnet.eval(),
        (torch.zeros(2, 3, 32, 32),),
        path,
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("n")},),
        input_names=["pixels"],
    )
    suspect = open_model(path, device="cpu", overrides=SAYS)
    assert_answers(suspect.ask(pixels).values, smallnet, pixels)
    assert suspect.classes == 7
