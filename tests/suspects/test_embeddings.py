"""Models that answer with embeddings: how alike they find crops of a picture, asked through whatever they are."""

from types import SimpleNamespace

import numpy as np
import pytest

from kit.errors import UserError
from provenance.judgements import same_model
from suspects.crops import VIEWS, crops, crops_of, disagreement
from suspects.embeddings import EmbeddingSuspect
from suspects.suspect import Answers, Preprocessing
from tests.suspects.parts import audited, photos, predict

SEED, SIZE = b"the audit's", (4, 6)


class Inner:
    """A model that answers with whatever it is told to."""

    scores, classes, class_names, concurrency, calibration = None, None, None, 3, {"chosen": "0..1"}
    name, preprocessing, identity, batch_size = "inner", Preprocessing(SIZE), {"sha256": "ab"}, 20

    def __init__(self, answer=lambda images: Answers(predict(images).astype(np.float32))):
        self.answer, self.asked = answer, []

    def ask(self, images):
        self.asked.append(len(images))
        return self.answer(images)


def settled(inner):
    suspect = EmbeddingSuspect(inner)
    suspect.settle(SEED)
    return suspect


def expected(images):
    views = crops(images, crops_of(SEED))
    return disagreement(np.stack([predict(some) for some in views]))


def test_a_score_is_how_far_crops_are_apart():
    inner, images = Inner(), photos(5)
    answers = settled(inner).ask(images)
    np.testing.assert_allclose(answers.scores[:, 0], expected(images), rtol=1e-4)
    assert answers.scores.shape == (5, 1) and answers.scores.dtype == np.float32
    assert inner.asked == [20, 20], "40 crops, in the other's own batches"


def test_it_is_what_it_wraps():
    suspect = settled(Inner())
    assert (suspect.name, suspect.preprocessing.size, suspect.concurrency) == ("inner", SIZE, 3)
    assert suspect.pictures_a_query == VIEWS and suspect.batch_size == 20 // VIEWS == 2
    assert suspect.identity["sha256"] == "ab" and suspect.identity["score"]["views"] == VIEWS
    assert suspect.calibration == {"chosen": "0..1"} and not suspect.captioned and "embeddings" in suspect.describe()
    tiny = Inner()
    tiny.batch_size = 3
    assert settled(tiny).batch_size == 1


def test_two_ways_of_scoring_are_two_judgements_of_one_model():
    """Else whoever asks a server for classes and for embeddings has two tries at the whole alpha."""
    inner = Inner()
    inner.identity = {"url": "http://one", "sha256": None}
    other = {"url": "http://two", "sha256": None}
    assert same_model(inner.identity, settled(inner).identity) and same_model(settled(inner).identity, inner.identity)
    assert not same_model(settled(inner).identity, other)


def test_batches_that_shrink_in_between():
    """A server may refuse a request for its size, and takes smaller ones from then on."""
    inner, images = Inner(), photos(2)

    def answer(some):
        inner.batch_size = 3
        return Answers(predict(some).astype(np.float32))

    inner.answer, inner.batch_size = answer, 8
    np.testing.assert_allclose(settled(inner).ask(images).scores[:, 0], expected(images), rtol=1e-4)
    assert inner.asked == [8, 3, 3, 2]


def test_a_crop_without_an_answer_leaves_its_picture_without_one():
    def answer(images):
        values = predict(images).astype(np.float32)
        values[:1] = np.nan  # of each request
        return Answers(values)

    inner = Inner(answer)
    inner.batch_size = 2 * VIEWS
    answers = settled(inner).ask(photos(4))
    assert answers.missing.tolist() == [True, False, True, False]
    zero = settled(Inner(lambda images: Answers(np.zeros((len(images), 4), np.float32)))).ask(photos(2))
    assert zero.missing.all(), "no direction, no score"


@pytest.mark.parametrize(
    "answers",
    [
        lambda images: Answers(None, np.zeros((len(images), 1), np.int32)),
        lambda images: Answers(np.ones((len(images), 2), np.float32), np.zeros((len(images), 2), np.int32)),
        lambda images: Answers(np.ones((len(images), 1), np.float32)),
    ],
    ids=["labels", "top-k", "one number"],
)
def test_answers_that_are_no_embeddings(answers):
    with pytest.raises(UserError, match="no embeddings"):
        settled(Inner(answers)).ask(photos(1))


def test_a_model_with_a_score_of_its_own():
    with pytest.raises(UserError, match="score of its own"):
        EmbeddingSuspect(SimpleNamespace(name="x", scores="how wrong it is"))


def test_a_server_of_embeddings():
    """Over HTTP: the pictures that it sees are the crops, and no more."""
    pytest.importorskip("fastapi", reason="the test server needs fastapi (requirements/dev.txt)")
    images = photos(3)
    with audited(batch_size=10) as (server, inner):
        before = len(server.log)
        scores = settled(inner).ask(images).scores[:, 0]
        seen = sum(len(entry["digests"]) for entry in list(server.log)[before:])
    assert seen == 3 * VIEWS
    views = crops(images, crops_of(SEED)).astype(np.float32) / 255
    np.testing.assert_allclose(scores, disagreement(np.stack([predict(some) for some in views])), rtol=1e-3)
