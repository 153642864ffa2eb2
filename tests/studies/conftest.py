"""Files of answers that the studies of answers share."""

import numpy as np
import pytest

from kit.names import MOST_VIEWS
from studies import answers

PHOTOS, KEYS, CLASSES = 20, 3, 4


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A file of one marked, one faint and one unchanged user; the first one's published photos are remembered."""
    rng, found = np.random.default_rng(1), {"kinds": np.array(list(answers.KINDS)), "labels": np.array([2, 1, 3])}
    for user in range(3):
        keys = KEYS if user < 2 else 1
        difficulty = rng.gamma(2, 1, (PHOTOS, 1, 1))
        selection = np.isin(np.arange(PHOTOS), rng.permutation(PHOTOS)[: PHOTOS // 2])
        found[f"selection {user}"] = selection
        for name in ("suspect", *answers.CLAIMED_REFERENCES):
            logits = rng.normal(0, 0.1, (PHOTOS, keys, MOST_VIEWS, CLASSES))
            logits[..., found["labels"][user]] += 4 - difficulty
            if name == "suspect" and user == 0:
                logits[selection, 0, :, 2] += 3
            found[f"{name} {user}"] = logits.astype(np.float16)
    path = tmp_path_factory.mktemp("answers") / "answers-claims-1.npz"
    np.savez(path, train_accuracy=1.0, test_accuracy=0.5, **found)
    return path, found
