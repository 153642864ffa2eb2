"""An owner who would rather not be audited: no answer of the model's can keep a verdict from coming, or turn it."""

import functools
import hashlib
import json

import numpy as np
import pytest

from provenance import evidence
from provenance import record as records
from provenance.grid import SIGNS
from provenance.photos import read_photo
from suspects import opened, server
from suspects.answering import pattern
from suspects.server import open_server
from tests.provenance.drand import serving
from tests.provenance.parts import KEYS, QUERIES, flat, refused

pytestmark = pytest.mark.usefixtures("without_plots")

METADATA = {
    "name": "net",
    "versions": ["1"],
    "platform": "test",
    "inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [-1, 3, 32, 32]}],
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 4]}],
}
FLAGS = ("--query_batch", "16", "--retries", "1", "--timeout", "120")
HOWS = ("nan", "null", "500", "403", "malformed", "fewer", "drop")


@pytest.fixture
def owner(world, monkeypatch):
    """The world's model behind a server of ours: owner(how, refuses) serves, refuses being told an image's digest."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(server, "open_server", functools.partial(open_server, sleep=lambda _: None))
    local = opened.open_model(world.run, device="cpu")

    def infer(body, how, refuses):
        if not body.endswith(b"}"):
            return 400, {}, b'{"error": "plain JSON alone"}'
        asked = json.loads(body)
        (tensor,) = asked["inputs"]
        images = np.array(tensor["data"], np.uint8).reshape(tensor["shape"])
        wrong = np.array([refuses(hashlib.sha256(image.tobytes()).digest()) for image in images])
        if wrong.any() and how in ("500", "400", "403"):
            return int(how), {}, b'{"error": "no"}'
        if wrong.any() and how == "malformed":
            return 200, {}, b'{"outputs": ['
        if wrong.any() and how == "drop":
            return 200, {"Content-Length": 1000}, dropped()
        values = local.ask(images).values.astype(float)
        values[wrong & (how == "nan"), 1] = np.nan
        values[wrong & (how == "infinite")] = np.inf
        data = values[: len(values) - (how == "fewer" and bool(wrong.any()))].ravel().tolist()
        if how in ("null", "text"):
            gone = None if how == "null" else "sorry"
            data = [gone if bad else value for value, bad in zip(data, np.repeat(wrong, 4), strict=True)]
        output = {"name": "logits", "datatype": "FP32", "shape": [len(data) // 4, 4], "data": data}
        reply = {"model_name": "net", "model_version": "1", "id": asked["id"], "outputs": [output]}
        return 200, {"Content-Type": "application/json"}, json.dumps(reply).encode()

    def dropped():
        yield b'{"model_name": "net", '
        raise ConnectionAbortedError("the fault that was asked for")

    def serve(how, refuses):
        def reply(method, path, body):
            if path.endswith("/infer"):
                return infer(body, how, refuses)
            content = METADATA if path == "/v2/models/net" else {"name": "test", "extensions": []}
            return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()

        return serving(reply)

    return serve


def some(digest):
    """About a tenth of all images, by nothing but their content; by this byte hardly one of the 8 published ones under
    the own key, each of which would count as the worst."""
    return digest[3] < 26


@pytest.mark.parametrize("how", HOWS)
def test_refused_images_do_not_keep_the_verdict_from_coming(audit, owner, script, verdict_folder, tmp_path, how):
    """NaN for one image of 256 was a veto. What is refused counts as the worst, the rest is answered as ever."""
    with owner(how, some) as (address, _):
        done = audit(tmp_path / "out", *FLAGS, checkpoint=f"{address}/v2/models/net")
    assert done.code == 0, done.err
    _, order, digests, answers, _ = evidence.read_bundle(tmp_path / "out" / "evidence.zip")
    expected = evidence.read_bundle(verdict_folder.folder / "evidence.zip")
    assert (order == expected[1]).all() and (digests == expected[2]).all(), "every question stands in the evidence"
    gone = np.array([some(digest.tobytes()) for digest in digests])
    assert 2 < gone.sum() < 20 and (answers.missing == gone).all()
    np.testing.assert_allclose(answers.values[~gone], expected[3].values[~gone], rtol=1e-4, atol=1e-4)
    assert done.result["missing"] == gone.sum() and 0 < done.result["refusal_p_value"] <= 1
    assert done.result["p_value"] <= 0.1, "the model is still found, or nearly"
    assert f"{gone.sum()} unanswered" in done.out and "questions were not answered" in flat(done.out)
    again = script("eval", "--replay", tmp_path / "out" / "evidence.zip")
    assert again.code == 0 and f"{gone.sum()} of them missing" in again.out, again.err


def test_an_owner_who_refuses_what_was_published_is_seen(audit, owner, world, tmp_path):
    """The published marked photos alone: nothing is proven by T, and the refusals speak."""
    record = records.read_record(world.record)
    published = [world.root / "user_marked" / photo.marked for photo in record.photos if photo.published]
    known = {hashlib.sha256(read_photo(path).transpose(2, 0, 1).tobytes()).digest() for path in published}
    with owner("500", lambda digest: digest in known) as (address, _):
        done = audit(tmp_path / "out", *FLAGS, checkpoint=f"{address}/v2/models/net")
    assert done.code == 0 and done.result["missing"] == 8 and done.result["p_value"] > 0.5
    assert done.result["refusal_p_value"] <= 0.001 and done.result["detected"] is False
    assert "that the published marked photos are among them as often has p 0.000" in flat(done.out)


def test_an_owner_who_knows_the_neutral_picture_refuses_that_too(audit, owner, tmp_path):
    """It is asked about when nothing was answered yet; without it the audit ended, and could never begin."""
    known = hashlib.sha256(pattern(1, (32, 32))[0].tobytes()).digest()
    with owner("500", lambda digest: digest == known or some(digest)) as (address, _):
        done = audit(tmp_path / "out", *FLAGS, checkpoint=f"{address}/v2/models/net")
    assert done.code == 0 and 2 < done.result["missing"] < 20, done.err


def test_one_nan_is_one_missing_answer(audit, owner, tmp_path, verdict_folder):
    _, _, digests, _, _ = evidence.read_bundle(verdict_folder.folder / "evidence.zip")
    with owner("nan", lambda digest: digest == digests[40].tobytes()) as (address, _):
        done = audit(tmp_path / "out", *FLAGS, checkpoint=f"{address}/v2/models/net")
    assert done.code == 0 and done.result["missing"] == 1
    _, _, _, answers, _ = evidence.read_bundle(tmp_path / "out" / "evidence.zip")
    assert np.flatnonzero(answers.missing).tolist() == [40]


@pytest.mark.parametrize("how", ["drop", "nan"])
def test_a_server_that_answers_nothing_is_an_error_that_can_be_resumed(audit, owner, record, tmp_path, how):
    with owner(how, lambda _: True) as (address, _):
        first = audit(tmp_path / "out", *FLAGS, checkpoint=f"{address}/v2/models/net")
    refused(first)
    assert first.result is None
    log = json.loads((record.parent / "judgements.json").read_text())
    assert len(log) == 1 and log[0]["number"] == 1 and log[0]["p_value"] is None


def test_a_server_that_comes_back_gives_the_same_judgement(audit, owner, record, tmp_path, verdict_folder):
    """Down for all questions, then up again under the same address: no alpha was lost, no answer either."""
    state = {"down": True}
    with owner("500", lambda _: state["down"]) as (address, requests):
        refused(audit(tmp_path / "out", *FLAGS, checkpoint=f"{address}/v2/models/net"), "500")
        tried, state["down"] = sum(path.endswith("/infer") for _, path, _, _ in requests), False
        # 4 batches under way, each in both forms of the protocol, twice, and with every sign of life.
        assert tried <= 4 * 2 * 2 * (2 + SIGNS), "a server that is down is not asked about every image"
        done = audit(tmp_path / "out", *FLAGS, checkpoint=f"{address}/v2/models/net")
    assert done.code == 0 and done.result["alpha"] == 0.0005 and done.result["missing"] == 0
    assert done.result["p_value"] == pytest.approx(verdict_folder.result["p_value"])
    assert len(json.loads((record.parent / "judgements.json").read_text())) == 1


def test_refusals_by_pattern_and_photo_are_an_even_match(audit, owner, world, tmp_path):
    """A rule that depends on the image alone, such as a detector of marks, keeps every pair alike."""
    with owner("500", lambda digest: digest[1] % 2 == 0) as (address, _):
        done = audit(tmp_path / "out", *FLAGS, checkpoint=f"{address}/v2/models/net")
    assert done.code == 0 and 20 < done.result["missing"] < 60
    assert done.result["refusal_p_value"] > 0.001 and done.result["pairs"] == (KEYS + 1) * 1000
    assert done.result["queries"] == QUERIES
