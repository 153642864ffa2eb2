"""studies/attacks_references.py: the liar's reference makes an innocent model look guilty, and the tool says so."""

import numpy as np
import pytest
import torch

from attacks import exact
from attacks.difficulty import taken_out
from dataset import load_dataset
from experiment import training
from studies import attacks_references as liar

KEYS, SELECTIONS, PHOTOS = 1, 999, 20
CPU = torch.device("cpu")
HONEST = "the verdict holds only if the accuser is honest"


def test_made_up_scores_single_out_the_published_half():
    rng = np.random.default_rng(3)
    scores, drawn = rng.gamma(2, 0.4, (PHOTOS, KEYS + 1)), exact.random_selections(rng, PHOTOS, PHOTOS // 2, 999)
    p_of = lambda left: exact.p_value(exact.statistic_grid(left[:, :, None], drawn, 0)[0])  # noqa: E731
    invented = liar.made_up(scores, drawn[0])
    assert invented.dtype == np.float32 and invented.min() >= 0 and invented.max() <= exact.LARGEST
    assert p_of(scores) > 0.05 and p_of(taken_out(scores[:, :, None], invented[None])[:, :, 0]) <= 3 / 2000


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What eval.py's ways say of each case: {what: row}."""
    data, folder = load_dataset("photos"), tmp_path_factory.mktemp("liar")
    rows = torch.arange(96)
    training.train_on(
        folder / "model.safetensors",
        data.images[rows],
        data.labels[rows],
        len(data.class_names),
        1,
        CPU,
        epoch=1,
    )
    strangers = torch.arange(200, 296)
    others = data.images[strangers], data.labels[strangers]
    played = liar.play(
        folder / "played",
        data.images[torch.arange(100, 100 + PHOTOS)],
        folder / "model.safetensors",
        others,
        CPU,
        keys=KEYS,
        selections=SELECTIONS,
        label="0",
        seed=10,  # a draw on which made-up scores would accuse an innocent model
    )
    return {row["forgery"]: row for row in played} | {"folder": folder / "played"}


def of_kind(found, kind, given=None):
    whats = [what for what, one, models in liar.CASES if one == kind and given in (None, models)]
    return [found[what] for what in whats]


def test_a_reference_chosen_after_the_draw_is_named_by_verdict_and_replay(found):
    rows = [*of_kind(found, "trained"), *of_kind(found, "innocent"), *of_kind(found, "copy")]
    assert len(rows) == 3
    for row in rows:
        sentence = f"{HONEST}: 1 of 1 references were not fixed with the photos"
        assert sentence in row["verdict"] and row["words"].startswith(sentence), row
        assert row["outcome"] == "named" and row["strict"] == 1


def test_made_up_scores_are_named_and_found_by_whoever_asks_the_reference(found):
    """p as the bundle has it speaks against the model, until both are asked again."""
    for given in ((), liar.MODEL):
        (row,) = of_kind(found, "made up", given)
        assert row["outcome"] == "named" and row["strict"] == 1 and row["p"] < min(0.05, row["honest"])
        assert row["words"].startswith(("nothing shows that the answers", "nothing shows that the scores"))
    for given in (liar.REFERENCES, liar.EVERYTHING):
        (row,) = of_kind(found, "made up", given)
        assert row["honest"] > 0.05 and row["outcome"] == "found" and row["strict"] == 1
        assert "STORED SCORES ARE NOT THESE MODELS'" in row["words"] or "THE VERDICT IS ANOTHER" in row["words"]
    assert row["p"] == pytest.approx(row["honest"])


def test_scores_moved_within_rounding_gain_nothing(found):
    (row,) = of_kind(found, "moved")
    assert row["p"] == pytest.approx(row["honest"])


def test_a_reference_can_not_be_struck_out(found):
    (row,) = of_kind(found, "struck out")
    assert row["outcome"] == "refused" and "its references" in row["words"]


def test_as_eval_has_it(found, script):
    """The sentences and the exit code of --strict are those of the script."""
    for place, (what, kind, given) in enumerate(liar.CASES):
        if given == () and kind == "made up":
            done = script("eval", "--replay", found["folder"] / f"reference-{place}" / "evidence.zip", "--strict")
            text = " ".join((done.out + done.err).split())
            assert done.code == found[what]["strict"] == 1 and "nothing shows that the scores of the references" in text
    later = found["folder"] / "reference-0" / "evidence.zip"
    done = script("eval", "--replay", later, "--strict")
    assert done.code == 1 and "references were not fixed with the photos" in " ".join(
        done.err.split() + done.out.split()
    )
