"""eval.py --record over HTTP: the local verdict, whatever the server does in between."""

import functools

import pytest

from provenance import evidence
from suspects import opened, server
from suspects.crops import VIEWS
from suspects.server import open_server
from tests.provenance.parts import QUERIES, flat, refused


@pytest.fixture
def serving(world, monkeypatch):
    """(make_app, running, planned, the local model) for tests with a server; nobody sleeps between tries."""
    pytest.importorskip("fastapi", reason="the test server needs fastapi (requirements/dev.txt)")
    pytest.importorskip("uvicorn", reason="the test server needs uvicorn (requirements/dev.txt)")
    pytest.importorskip("requests")
    from tests.suspects.inference_server import make_app, planned, running

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(server, "open_server", functools.partial(open_server, sleep=lambda _: None))
    return make_app, running, planned, opened.open_model(world.run, device="cpu")


@pytest.mark.parametrize("binary", [False, True])
def test_a_server_gives_the_local_verdict_bit_for_bit(audit, serving, verdict_folder, tmp_path, binary):
    """Faults in between: no query is lost, none is answered twice, and p and T have the same bits as from the file."""
    make_app, running, planned, local = serving
    faults = [500, None, "drop", "shape", 429, None, "truncated", "timeout", None, "nan", 503, "rows", None]
    app = make_app(
        lambda images: local.ask(images).values,
        input_shape=[-1, 3, 32, 32],
        datatype="UINT8",
        binary=binary,
        retry_after="0",
    )
    with running(app) as server, planned(server.state, faults):
        done = audit(
            tmp_path / "out",
            "--query_batch",
            "16",
            "--retries",
            "9",
            checkpoint=server.url,
        )
        log = list(server.log)
    assert done.code == 0, done.err
    for name in ("p_value", "statistic", "statistic_of_others", "at_most", "pairs", "label"):
        assert done.result[name] == verdict_folder.result[name], name
    _, order, digests, answers, _ = evidence.read_bundle(tmp_path / "out" / "evidence.zip")
    expected = evidence.read_bundle(verdict_folder.folder / "evidence.zip")
    assert (digests == expected[2]).all() and (order == expected[1]).all()
    assert answers.values.tobytes() == expected[3].values.tobytes()
    answered = [text for entry in log if entry["answered"] for text in entry["digests"]]
    assert sorted(answered) == sorted(digest.tobytes().hex() for digest in digests)
    assert len(log) == len(faults) + 1 and sum(entry["answered"] for entry in log) == 5


def test_a_server_that_dies_in_between(audit, serving, verdict_folder, tmp_path):
    """What was answered before stays, and the rest is asked when the server is back."""
    make_app, running, _, local = serving
    app = make_app(
        lambda images: local.ask(images).values,
        input_shape=[-1, 3, 32, 32],
        datatype="UINT8",
        faults=[None, None, *[500] * 10],  # a batch, a picture that was answered before, and three of the batch
    )
    with running(app) as server:
        flags = ("--query_batch", "16", "--retries", "1", "--concurrency", "1")
        refused(audit(tmp_path / "out", *flags, checkpoint=server.url), "500")
        plan = (tmp_path / "out" / "plan.json").read_bytes()
        done = audit(tmp_path / "out", *flags, checkpoint=server.url)
        log = list(server.log)
    assert done.code == 0 and done.result["p_value"] == verdict_folder.result["p_value"]
    assert (tmp_path / "out" / "plan.json").read_bytes() == plan and done.result["alpha"] == 0.0005, "one judgement"
    answered = [text for entry in log if entry["answered"] for text in entry["digests"]]
    assert len(answered) == len(set(answered)) == QUERIES
    refusals = [text for entry in log if entry["fault"] == 500 for text in entry["digests"]]
    assert set(refusals) <= set(answered)


def test_a_server_of_embeddings(audit, serving, tmp_path):
    """Every crop is a picture that the model is shown: the budget, the plan and the table count all of them."""
    make_app, running, _, local = serving
    app = make_app(
        lambda images: local.ask(images).values,
        input_shape=[-1, 3, 32, 32],
        datatype="UINT8",
        binary=True,
        faults=[None, None, *[500] * 10],
    )
    with running(app) as server:
        flags = ("--answers", "embeddings", "--concurrency", "1", "--retries", "1")
        dry = audit(tmp_path / "dry", *flags, "--dry_run", checkpoint=server.url)
        assert f"{QUERIES * VIEWS} pictures" in dry.out and dry.code == 0, dry.err
        refused(audit(None, *flags, "--max_queries", "7", checkpoint=server.url), "shows it 8 pictures")
        less = audit(None, *flags, "--max_queries", f"{16 * 3 * VIEWS + 7}", "--dry_run", checkpoint=server.url)
        refused(less, "2 keys instead of 4")  # 48 queries for 16 photos
        seen = len(server.log)
        refused(audit(tmp_path / "out", *flags, checkpoint=server.url), "500", "goes on")
        done = audit(tmp_path / "out", *flags, checkpoint=server.url)
        log = list(server.log)[seen:]
        # Other answers to the same questions are another audit.
        refused(audit(tmp_path / "out", "--concurrency", "1", checkpoint=server.url), "--out")
    assert done.code == 0, done.err
    answered = sum(len(entry["digests"]) for entry in log if entry["answered"])
    assert done.result["queries"] == QUERIES and done.result["label"] is None
    assert QUERIES * VIEWS <= answered <= (QUERIES + 8) * VIEWS  # a request's worth may be asked twice
    assert f"{QUERIES} of {VIEWS} pictures each" in done.out and "taken for embeddings was not fixed" in flat(done.out)
    assert done.result["model"]["score"]["views"] == VIEWS


def test_embeddings_name_no_class(audit, world):
    for flags, words in (
        (("--label", "1"), "answers with a score"),
        (("--calibration", "own"), "--calibration"),
        (("--top_k", "3"), "answers with a score"),
    ):
        refused(audit(None, "--answers", "embeddings", *flags), words)
