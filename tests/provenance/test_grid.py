"""Answers that an audit makes smaller than they are."""

import numpy as np

from attacks.exact import dense
from provenance import grid as user_audit
from tests.attacks.parts import random_answers


def test_limited_answers_are_what_a_stingy_server_would_send():
    answers = random_answers("logits", 40, 5, np.random.default_rng(3))
    chances, order = np.exp(dense(answers)[0]), np.argsort(-answers.values, axis=1)
    labels = user_audit.limit_answers(answers, True, None)
    assert labels.values is None and labels.classes.ravel().tolist() == order[:, 0].tolist()
    best = user_audit.limit_answers(answers, False, 2)
    assert (best.classes == order[:, :2]).all()
    np.testing.assert_allclose(best.values, np.take_along_axis(chances, order[:, :2], 1), rtol=1e-5)
    for none in (None, 5, 9):
        assert user_audit.limit_answers(answers, False, none) is answers
    assert user_audit.limit_answers(labels, False, 2) is labels and user_audit.limit_answers(best, True, 1) is best
