"""eval.py --record for servers that say little: what is found out, asked for and confirmed, and what is kept of it."""

import functools
import json
import shutil

import numpy as np
import pytest

from provenance import evidence
from suspects import opened, server
from suspects.server import open_server
from suspects.suspect import Preprocessing
from tests.provenance.parts import QUERIES, refused, save, wavy_picture

SILENT = {"inputs": [], "outputs": []}


@pytest.fixture
def serving(world, monkeypatch):
    """(make_app, running, answers to numbers from 0 to 1 of the local model)."""
    pytest.importorskip("fastapi", reason="the test server needs fastapi (requirements/dev.txt)")
    pytest.importorskip("uvicorn", reason="the test server needs uvicorn (requirements/dev.txt)")
    pytest.importorskip("requests")
    from tests.suspects.inference_server import make_app, running

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(server, "open_server", functools.partial(open_server, sleep=lambda _: None))
    local = opened.open_model(world.run, device="cpu")

    def predict(pixels):
        return local.ask((np.clip(pixels, 0, 1) * 255).round().astype(np.uint8)).values

    return make_app, running, predict


def shown(log):
    return [text for entry in log if entry["answered"] for text in entry["digests"]]


UNIT = ("--mean", "0", "0", "0", "--std", "1", "1", "1")


# --- several requests, and batches of another size ---


def test_several_requests_at_once_give_the_same_files(audit, serving, tmp_path):
    make_app, running, predict = serving
    results = []
    for number, flags in enumerate((("--concurrency", "1"), ("--concurrency", "8"), ())):
        with running(make_app(predict, input_shape=[-1, 3, 32, 32], binary=True)) as serves:
            folder = tmp_path / f"out-{number}"
            done = audit(folder, *UNIT, "--query_batch", "16", *flags, checkpoint=serves.url)
            assert done.code == 0, done.err
        _, order, digests, answers, _ = evidence.read_bundle(folder / "evidence.zip")
        results.append((done.result["p_value"], order.tobytes(), digests.tobytes(), answers.values.tobytes()))
    assert results[0] == results[1] == results[2]


def test_a_server_that_is_gone_keeps_its_answers_and_another_batch_size_goes_on(audit, serving, tmp_path):
    make_app, running, predict = serving
    faults = [None, None, *[503] * 20]
    app = make_app(predict, input_shape=[-1, 3, 32, 32], binary=True, faults=faults)
    with running(app) as serves:
        flags = (*UNIT, "--retries", "1", "--concurrency", "1")
        stopped = audit(tmp_path / "out", *flags, "--query_batch", "16", checkpoint=serves.url)
        refused(stopped, f"the 32 of {QUERIES} answers that came are kept, and the same command goes on with the rest")
        first = shown(serves.log)
        faults.clear()
        serves.state.log.clear()
        done = audit(tmp_path / "out", *flags[:8], "--query_batch", "7", checkpoint=serves.url)
        assert done.code == 0, done.err
        rest = shown(serves.log)
    assert len(first) == 32 and len({*first, *rest}) == len(first) + len(rest) == QUERIES


def test_a_local_model_goes_on_in_other_batches(audit, asked, tmp_path):
    asked.after = 2
    assert audit(tmp_path / "out", "--query_batch", "16").code == 130
    first, asked.after, asked.images = list(asked.images), None, []
    assert audit(tmp_path / "out", "--query_batch", "9").code == 0
    assert len(first) == 32 and len({*first, *asked.images}) == QUERIES == 32 + len(asked.images)
    asked.images = []
    assert audit(tmp_path / "out", "--query_batch", "50").code == 0 and asked.images == []


# --- tensors that are not declared ---


def test_what_was_found_is_said_kept_and_used_again(audit, serving, tmp_path, script):
    make_app, running, predict = serving
    app = make_app(predict, input_shape=[-1, 32, 32, 3], metadata=SILENT, pixels="image", binary=True)
    with running(app) as serves:
        refused(audit(tmp_path / "out", *UNIT, checkpoint=serves.url), "give --input_size")
        flags = (*UNIT, "--input_size", "32")
        done = audit(tmp_path / "out", *flags, checkpoint=serves.url)
        assert done.code == 0, done.err
        assert "sent as 'image' (FP32, NHWC), answers from 'logits' (found by asking)" in done.out
        tried = len(serves.state.other)
        form = {"input": "image", "datatype": "FP32", "layout": "NHWC", "output": "logits", "from": "found by asking"}
        document = evidence.read_bundle(tmp_path / "out" / "evidence.zip")[0]
        plan = json.loads((tmp_path / "out" / "plan.json").read_text())
        for place in (done.result, document, plan["input"]):
            assert place["preprocessing"]["form"] == form
        assert "form" not in document["model"]
        serves.state.log.clear()
        again = audit(tmp_path / "out", *flags, checkpoint=serves.url)
        assert again.code == 0 and again.result["judgement"]["number"] == 1
        # One neutral picture, no search.
        assert len(serves.log) == 1 and len(serves.state.other) - tried < 6
        other = audit(tmp_path / "out", *flags, "--input_layout", "NCHW", checkpoint=serves.url)
        refused(other, "none of the usual forms works")
    again = script("eval", "--replay", tmp_path / "out" / "evidence.zip")
    assert again.code == 0, again.err


def test_another_form_is_no_other_model(audit, serving, tmp_path):
    """Each way to ask would have an alpha of its own."""
    make_app, running, predict = serving
    app = make_app(predict, input_shape=[-1, 3, 32, 32], metadata=SILENT, pixels=None, binary=True)
    with running(app) as serves:
        flags = (*UNIT, "--input_size", "32")
        first = audit(tmp_path / "one", *flags, checkpoint=serves.url)
        second = audit(tmp_path / "two", *flags, "--input_name", "other", checkpoint=serves.url)
    assert (first.result["judgement"]["number"], second.result["judgement"]["number"]) == (1, 2)


# --- mean and std ---


def sharp(pixels):
    """Answers of a "model" that knows smooth photos with numbers from 0 to 1, and is lost in shuffled pieces, or where
    they are scaled otherwise."""
    far = np.abs(pixels - pixels.clip(0, 1)).mean(axis=(1, 2, 3))
    edges = np.abs(np.diff(pixels, axis=3)).mean(axis=(1, 2, 3)) + np.abs(np.diff(pixels, axis=2)).mean(axis=(1, 2, 3))
    logits = np.zeros((len(pixels), 4), np.float32)
    # Neighbouring pixels differ by 0.13 in these photos, and by 0.14 in their pieces.
    logits[:, 2] = np.where(far > 0.01, 0.5, 4 / (1 + np.exp(np.clip((edges - 0.1355) / 0.002, -50, 50))))
    return logits + pixels.mean(axis=(2, 3)).sum(axis=1, keepdims=True).astype(np.float32) * np.float32([0, 0.1, 0, 0])


@pytest.mark.parametrize("own", [False, True])
def test_a_calibration_is_proposed_confirmed_and_said_loudly(audit, serving, world, tmp_path, script, own):
    make_app, running, _ = serving
    for number in range(40):
        save(tmp_path / "others" / f"{number}.png", wavy_picture(7000 + number))
    with running(make_app(sharp, input_shape=[-1, 3, 32, 32], binary=True)) as serves:
        out, place = tmp_path / "out", ("--calibration", "own" if own else tmp_path / "others")
        refused(audit(out, checkpoint=serves.url), "give --mean and --std", "--calibration FOLDER")
        refused(audit(out, *place, "--dry_run", checkpoint=serves.url), "--dry_run")
        refused(audit(out, "--confirm_preprocessing", "0..1", checkpoint=serves.url), "give both")
        assert not serves.log and not out.exists()
        proposed = audit(out, *place, checkpoint=serves.url)
        refused(proposed, "0..1 stands out", "--confirm_preprocessing 0..1", "or give --mean 0 0 0 --std 1 1 1")
        assert not out.exists(), "nothing begins before it is confirmed"
        photos = 16 if own else 32
        assert len(shown(serves.log)) == photos * 3 * 4
        before = {*shown(serves.log)}
        serves.state.log.clear()
        done = audit(out, *place, "--confirm_preprocessing", "0..1", checkpoint=serves.url)
        assert done.code == 0, done.err
        asked = shown(serves.log)
        assert len(asked) == photos * 3 * 4 + QUERIES and not before & {*asked[-QUERIES:]}, (
            "not the audit's own queries"
        )
        document = evidence.read_bundle(out / "evidence.zip")[0]
        for found in (done.result, document):
            assert found["preprocessing"]["source"] == "calibration"
            assert found["calibration"]["chosen"] == "0..1" and found["calibration"]["photos"] == photos
            assert len(found["calibration"]["candidates"]) == 4
        told = "mean and std are the usual ones that a calibration"
        assert any(told in sentence for sentence in done.result["weaknesses"])
        assert "(from calibration)" in done.out and "nobody said how photos become the model's input" in done.out
        assert str(tmp_path) not in json.dumps(document["calibration"])
        serves.state.log.clear()
        again = audit(out, *place, "--confirm_preprocessing", "0..1", checkpoint=serves.url)
        assert again.code == 0 and not serves.log and again.result == done.result, "it is not calibrated again"
        assert audit(out, checkpoint=serves.url).code == 0 and not serves.log
        strict = audit(out, "--strict", checkpoint=serves.url)
        assert strict.code == 1
    again = script("eval", "--replay", out / "evidence.zip")
    assert again.code == 0 and "mean and std are the usual ones" in again.out.replace("\n  ", " ")


def test_files_have_no_calibration(audit, tmp_path):
    refused(audit(tmp_path / "out", "--calibration", "own"), "for servers")


def test_the_choice_of_own_photos_does_not_depend_on_the_draw(world, tmp_path):
    """Published or not: those with the lowest numbers, which their content gave them."""
    from provenance import opening
    from provenance import record as records

    found = opening.calibration_of("own", None, world.record, [world.originals])
    record = records.read_record(world.record)
    names = [photo.original for photo in record.photos]
    assert len(found.photos) == len(names) == 16 and record.published.sum() == 8
    fit = Preprocessing((32, 32)).fit
    from PIL import Image

    for photo, name in zip(found.photos, names, strict=True):
        assert (fit(photo) == fit(np.array(Image.open(world.originals / name)))).all()


def test_addresses_that_are_written_wrongly(audit, tmp_path):
    refused(audit(tmp_path / "out", checkpoint="localhost:1/v2/models/net"), "write http://localhost:1/v2/models/net")
    refused(audit(tmp_path / "out", checkpoint="grpc://localhost:1/v2/models/net"), "write grpc://localhost:1/net")
    assert not (tmp_path / "out").exists()


# --- real servers ---


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    from tests.suspects.real_servers import onnx_model

    return onnx_model(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.mark.parametrize("name", ["mlserver", "kserve", "triton"])
def test_a_real_server_gives_the_verdict_of_its_file(audit, onnx, tmp_path, monkeypatch, name):
    """It is killed in the middle, and goes on in other batches with another number of requests at once."""
    from tests.suspects.real_servers import serving

    mean = ("--resize", "256", "--mean", "0.485", "0.456", "0.406", "--std", "0.229", "0.224", "0.225")
    local = audit(tmp_path / "local", *mean, "--query_batch", "8", checkpoint=onnx)
    assert local.code == 0, local.err
    folder = tmp_path / "server"
    folder.mkdir()
    with serving(name, onnx, folder) as real:
        given = mean if name == "kserve" else ()
        out, flags = tmp_path / "out", ("--retries", "0", *given)
        with monkeypatch.context() as patch:
            patch.setattr(evidence.AnswerLog, "add", _kill_after(real, evidence.AnswerLog.add))
            stopped = audit(out, *flags, "--query_batch", "4", "--concurrency", "2", checkpoint=real.url)
        refused(stopped, "answers that came are kept, and the same command goes on with the rest")
        real.start()
        done = audit(out, *flags, "--query_batch", "8", checkpoint=real.url)
        assert done.code == 0, done.err
    for field in ("p_value", "at_most", "pairs", "label", "missing", "queries"):
        assert done.result[field] == local.result[field], field
    ours, theirs = (evidence.read_bundle(tmp_path / place / "evidence.zip") for place in ("local", "out"))
    assert (ours[2] == theirs[2]).all()
    np.testing.assert_allclose(ours[3].values, theirs[3].values, rtol=1e-4, atol=1e-5)
    shutil.rmtree(folder)


def _kill_after(real, add):
    """`add` that kills the server once the first answers are on disk."""

    def deadly(log, *answers):
        add(log, *answers)
        if real.process.poll() is None:
            real.kill()

    return deadly
