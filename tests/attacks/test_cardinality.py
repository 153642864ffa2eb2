"""How much of a data set was used: rates turned round by hand, intervals, simulated worlds."""

import math

import numpy as np
import pytest

from attacks import cardinality
from kit.errors import UserError


def test_usage_inverts_the_rates_by_hand():
    # TPR 0.6, FPR 0.1; 30 of 100 guessed: (0.3 - 0.1) / 0.5 = 0.4.
    found = cardinality.usage(30, 100, [[600, 1000, 100, 1000]])
    assert found["raw"] == pytest.approx(0.4)
    assert found["interval"][0] < 0.4 < found["interval"][1]
    assert cardinality.usage(5, 100, [[600, 1000, 100, 1000]])["share"] == 0.0  # below the FPR: cut
    assert cardinality.usage(5, 100, [[600, 1000, 100, 1000]])["raw"] == pytest.approx(-0.1)


def test_usage_interval_against_the_normal_approximation():
    # Rates known from a million records: only the guesses on the data set itself are uncertain.
    found = cardinality.usage(300, 1000, [[600_000, 1_000_000, 100_000, 1_000_000]])
    spread = 1.96 * math.sqrt((0.4 * 0.24 + 0.6 * 0.09) / 1000) / 0.5
    assert found["interval"] == pytest.approx([0.4 - spread, 0.4 + spread], abs=3e-3)


def test_an_attack_that_knows_nothing_gives_the_whole_interval():
    found = cardinality.usage(50, 100, [[500, 1000, 500, 1000]])
    assert found["interval"] == [0.0, 1.0] and found["share"] is None
    # Nor does one that is worse than guessing give a share.
    assert cardinality.usage(50, 100, [[100, 1000, 500, 1000]])["raw"] is None


def test_models_that_differ_widen_the_interval():
    same = cardinality.usage(300, 1000, [[600, 1000, 100, 1000]] * 4)["interval"]
    apart = cardinality.usage(300, 1000, [[800, 1000, 150, 1000], [400, 1000, 50, 1000]] * 2)["interval"]
    assert apart[0] < same[0] < same[1] < apart[1]


def test_usage_is_unbiased_and_its_interval_holds_the_share():
    generator, size = np.random.default_rng(5), 400
    for share in (0.1, 0.5, 0.9):
        raw, held = [], 0
        for _ in range(400):
            scores = np.concatenate([generator.normal(1, 1, 1000), generator.normal(0, 1, 1000)])
            inside = np.arange(2000) < 1000
            rates = cardinality.rates(scores, inside, 0.5)
            used = np.arange(size) < share * size
            guessed = int((generator.normal(used, 1) >= 0.5).sum())
            found = cardinality.usage(guessed, size, [rates])
            raw.append(found["raw"])
            held += found["interval"][0] <= share <= found["interval"][1]
        assert np.mean(raw) == pytest.approx(share, abs=4 * np.std(raw) / 20)
        assert held >= 400 * 0.92


def test_best_threshold_and_rates_by_hand():
    scores, inside = np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, True, False, True])
    assert cardinality.best_threshold(scores, inside) == 3.0  # TPR 2/3, FPR 0
    assert cardinality.rates(scores, inside, 3.0) == (2, 3, 0, 1)


@pytest.mark.parametrize(
    "bad", [(11, 10, [[1, 2, 0, 2]]), (1, 0, [[1, 2, 0, 2]]), (1, 10, []), (1, 10, [[0, 0, 0, 2]])]
)
def test_impossible_usage_is_refused(bad):
    with pytest.raises(UserError):
        cardinality.usage(*bad)
