"""studies/owner.py: either arm finds a user at half of alpha, and the study runs from end to end."""

import json

import numpy as np
import pandas as pd

from attacks import exact
from studies import owner


def test_the_study_runs_from_end_to_end(script, tmp_path):
    sizes = ("--users", 2, "--photos", 12, "--train_size", 300, "--epoch", 2, "--keys", 2, "--selections", 199)
    done = script(
        "studies.owner", "--dataset", "photos", "--work", tmp_path / "w", "--out", tmp_path, "--seeds", 1, *sizes
    )
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["found"]) == set(owner.DEFENCES) and len(result["users"]) == 2 * len(owner.DEFENCES)
    assert len(list((tmp_path / "w").glob("owner-*.safetensors"))) == 2, "one model for all that only change answers"
    p = {(row["defence"], arm): row[f"{arm}_p"] for row in result["users"] for arm in ("marked", "plain")}
    refused = "flagged queries not answered"
    assert p["none", "plain"] == p[refused, "plain"], "plain originals are answered as by any other owner"
    assert (tmp_path / "owner.md").read_text().count("\n") == len(owner.DEFENCES) + 2


def test_either_arm_finds_at_half_alpha():
    table = pd.DataFrame({"marked_p": [0.004, 0.008, 1.0, 0.5], "plain_p": [1.0, 0.9, 0.005, 0.006]})
    found = {name: rate["hits"] for name, rate in owner.shares(table, 0.01).items()}
    assert list(found.values()) == [2, 1, 1, 2]


def test_a_model_that_answers_nothing_finds_nobody():
    nothing, reference = np.full((4, 2, 2, 3), np.nan, np.float32), np.zeros((4, 2, 2, 3), np.float32)
    assert owner.p_of(nothing, reference, np.eye(4, dtype=bool), 0) == 1.0


def test_what_the_reference_finds_hard_is_taken_out():
    """Photos differ in difficulty far more than in whether the model remembers them."""
    rng, published = np.random.default_rng(1), np.arange(40) < 20
    drawn = exact.random_selections(rng, 40, 20, 999)
    hard = rng.normal(2, 2, (40, 1, 2))
    logits, beside = np.zeros((2, 40, 1, 2, 3), np.float32)
    beside[..., 0], logits[..., 0] = -hard, -hard + 0.8 * published[:, None, None]
    alone, with_reference = (owner.p_of(logits, some, drawn, 0) for some in (np.zeros_like(beside), beside))
    assert 4 * with_reference <= 0.02 < alone
