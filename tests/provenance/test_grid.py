"""Answers that an audit makes smaller than they are, and images that a model has no answer to."""

import numpy as np
import pytest
from scipy.special import log_softmax

from attacks.exact import AUTO
from kit.errors import UserError
from provenance import grid as user_audit
from provenance.evidence import AnswerLog
from suspects.suspect import Answers, Preprocessing, Suspect
from tests.attacks.parts import random_answers
from tests.parts import user_error


def test_limited_answers_are_what_a_stingy_server_would_send():
    answers = random_answers("logits", 40, 5, np.random.default_rng(3))
    chances, order = np.exp(answers.log_probabilities()[0]), np.argsort(-answers.values, axis=1)
    labels = answers.limited(True, None)
    assert labels.values is None and labels.classes.ravel().tolist() == order[:, 0].tolist()
    best = answers.limited(False, 2)
    assert (best.classes == order[:, :2]).all()
    np.testing.assert_allclose(best.values, np.take_along_axis(chances, order[:, :2], 1), rtol=1e-5)
    for none in (None, 5, 9):
        assert answers.limited(False, none) is answers
    assert labels.limited(False, 2) is labels and best.limited(True, 1) is best


def test_limited_answers_keep_what_is_missing():
    answers = random_answers("logits", 6, 5, np.random.default_rng(3))
    answers.values[[1, 4]] = np.nan
    for less in (answers.limited(True), answers.limited(False, 2)):
        assert less.missing.tolist() == answers.missing.tolist() == [False, True, False, False, True, False]
        logs, top, _ = less.log_probabilities(5)
        assert np.isnan(logs).all(axis=1).tolist() == less.missing.tolist() and top[[1, 4]].tolist() == [-1, -1]


@pytest.mark.parametrize("label", [2, AUTO])
def test_scores_of_answers_with_holes(label):
    answers = random_answers("logits", 6, 4, np.random.default_rng(1))
    answers.values[3] = np.nan
    scores, top, missing = user_audit.scores_of(answers, 3, 4, label)
    expected = np.sqrt(-log_softmax(answers.values.astype(float), axis=1)).reshape(3, 2, 4)
    assert missing[..., 0].tolist() == [[False, False], [False, True], [False, False]] and top[1, 1].tolist() == [-1]
    np.testing.assert_allclose(scores[~missing[..., 0]], expected[~missing[..., 0]])
    assert np.isnan(scores[1, 1]).all()


# --- asking a model that has no answer to some images ---


class Moody(Suspect):
    """Answers with the first pixel of an image; fails for batches that hold a bad one, in one of several ways."""

    def __init__(self, bad, how):
        self.name, self.classes, self.identity, self.batch_size = "moody", 3, {"kind": "test"}, 16
        self.preprocessing, self.bad, self.how, self.asked = Preprocessing((2, 2)), bad, how, []

    def ask(self, images):
        first = images[:, 0, 0, 0].astype(int)
        self.asked.append(first.tolist())
        wrong = np.isin(first, list(self.bad))
        if self.how == "down" or (self.how == "refuses" and wrong.any()):
            raise UserError("it answered 500")
        values = np.stack([first, first * 0, first * 0], axis=1).astype(np.float32)
        values[wrong & (self.how == "nan")] = np.nan
        return Answers(values)


def picture(first):
    image = np.zeros((3, 2, 2), np.uint8)
    image[0, 0, 0] = first
    return image


def ask(suspect, folder, count=40):
    """What ask_all makes of images number 100, 101, ..."""
    log = AnswerLog(folder, {"model": "m"})
    return user_audit.ask_all(
        log, suspect, count, lambda places: np.stack([picture(100 + n) for n in places]), "asking"
    )


@pytest.mark.parametrize("how", ["refuses", "nan"])
@pytest.mark.parametrize("bad", [{107}, {100}, {139}, {100, 101, 102}, {*range(100, 120)}, {*range(101, 140)}])
def test_single_images_without_an_answer_do_not_end_an_audit(tmp_path, how, bad):
    suspect = Moody(bad, how)
    digests, answers = ask(suspect, tmp_path / "log")
    assert {100 + place for place in np.flatnonzero(answers.missing)} == bad
    there = np.flatnonzero(~answers.missing)
    assert answers.values[there, 0].astype(int).tolist() == [100 + place for place in there]
    assert (digests == user_audit.digests_of([picture(100 + n) for n in range(40)])).all(), "what was sent is kept"
    # Stored and read again as it was, and not asked about again.
    suspect.asked.clear()
    again = ask(suspect, tmp_path / "log")[1]
    assert suspect.asked == [] and (again.missing == answers.missing).all()


def test_a_number_that_is_none_is_asked_for_once_more(tmp_path):
    """In the batch in which it was, on whose size rounding depends; and what still has none is missing."""
    suspect = Moody({103, 120}, "nan")
    real = suspect.ask

    def ask_once(images):
        answers = real(images)
        if len(suspect.asked) == 1:
            suspect.bad = {120}
        return answers

    suspect.ask = ask_once
    answers = ask(suspect, tmp_path / "log")[1]
    assert np.flatnonzero(answers.missing).tolist() == [20] and answers.values[3, 0] == 103
    assert [len(batch) for batch in suspect.asked] == [16, 16, 16, 16, 8]


def test_a_model_that_is_down_ends_the_audit_and_loses_nothing(tmp_path):
    suspect = Moody({120}, "refuses")
    suspect.how = "down"
    user_error(lambda: ask(suspect, tmp_path / "log"), "500")
    assert [len(batch) for batch in suspect.asked] == [16, 1, 1, 1, 1], (
        "the batch, a neutral picture, some of the batch"
    )
    suspect.how = "refuses"
    assert np.flatnonzero(ask(suspect, tmp_path / "log")[1].missing).tolist() == [20]


def test_a_model_that_goes_down_in_between_goes_on_later(tmp_path):
    suspect = Moody(set(), "refuses")
    real, calls = suspect.ask, []

    def ask_once(images):
        calls.append(len(images))
        if len(calls) > 1:
            raise UserError("it answered 503")
        return real(images)

    suspect.ask = ask_once
    user_error(lambda: ask(suspect, tmp_path / "log"), "503")
    suspect.ask = real
    suspect.asked.clear()
    answers = ask(suspect, tmp_path / "log")[1]
    assert [len(batch) for batch in suspect.asked] == [16, 8] and len(answers) == 40 and not answers.missing.any()


def test_a_model_that_answers_nothing_at_all_gives_no_verdict(tmp_path):
    suspect = Moody({*range(100, 140)}, "nan")
    answers = ask(suspect, tmp_path / "log")[1]
    assert answers.missing.all()
    user_error(lambda: answers.log_probabilities(3), "nothing at all")
