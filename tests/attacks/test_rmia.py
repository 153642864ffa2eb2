"""RMIA (Zarifzadeh et al. 2024) by hand and against a dense matrix of ratios."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from attacks import rmia
from attacks.membership import balanced
from kit.errors import UserError
from tests.attacks.parts import auc_tolerance, gaussian_world, random_generator


def dense_share(ratio_x, ratio_z, gamma, strict):
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        matrix = np.asarray(ratio_x, dtype=float)[:, None] / np.asarray(ratio_z, dtype=float)[None]
    return ((matrix > gamma) if strict else (matrix >= gamma)).sum(axis=1) / len(ratio_z)


# Few different values, and multiples of each other that divide inexactly, so that ties and near-ties abound.
TIED = st.one_of(
    st.integers(0, 6).map(float),
    st.integers(1, 30).map(lambda number: number / 10),
    st.integers(1, 30).map(lambda number: number * 0.1),
    st.floats(0, 1e300),
    st.floats(0, 1e-300),
)


@settings(max_examples=400)
@given(
    st.lists(TIED, min_size=1, max_size=30),
    st.lists(TIED, min_size=1, max_size=30),
    st.sampled_from([1.0, 2.0, 0.1, 0.3, 1.1, 3.0, 7.0, 1e-5]),
    st.booleans(),
)
def test_sorted_counts_equal_dense_counts(ratio_x, ratio_z, gamma, strict):
    assert (rmia.share_dominated(ratio_x, ratio_z, gamma, strict) == dense_share(ratio_x, ratio_z, gamma, strict)).all()


@pytest.mark.parametrize("gamma", [1.0, 2.0, 1.001])
@pytest.mark.parametrize("seed", range(4))
def test_sorted_counts_equal_dense_counts_on_many_records(seed, gamma):
    draws = random_generator(seed)
    ratio_x, ratio_z = np.exp(draws.normal(size=3000)), np.exp(draws.normal(size=700))
    ratio_x[:500] = draws.choice(ratio_z, 500) * gamma
    for strict in (True, False):
        assert (
            rmia.share_dominated(ratio_x, ratio_z, gamma, strict) == dense_share(ratio_x, ratio_z, gamma, strict)
        ).all()


def test_ratios_at_gamma_count_only_where_not_strict():
    assert rmia.share_dominated([2.0], [1.0, 0.5, 4.0, 1.0], 2.0) == 0.25
    assert rmia.share_dominated([2.0], [1.0, 0.5, 4.0, 1.0], 2.0, strict=False) == 0.75
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UserError, match="gamma"):
            rmia.share_dominated([1.0], [1.0], bad)
    for ratio_x, ratio_z in (([math.nan], [1.0]), ([1.0], [-1.0]), ([1.0], [])):
        with pytest.raises(UserError, match="ratios"):
            rmia.share_dominated(ratio_x, ratio_z)


def losses_of(probabilities):
    return -np.log(np.asarray(probabilities, dtype=float))


# p(x|target) = 0.9; reference models: IN 0.8 and 0.6, OUT 0.4 and 0.2.
X_TARGET, X_REFERENCES = losses_of([0.9]), losses_of([[0.8], [0.4], [0.6], [0.2]])

X_INSIDE = np.array([[True], [False], [True], [False]])

# p(z|target) / mean p(z) of 0.5 / 0.5, 0.6 / 0.3, 0.2 / 0.4 = 1, 2, 0.5; the last reference is far from the others.
Z_TARGET = losses_of([0.5, 0.6, 0.2])

Z_REFERENCES = losses_of([[0.6, 0.39, 0.5], [0.6, 0.39, 0.5], [0.6, 0.39, 0.5], [0.2, 0.03, 0.1]])


def test_rmia_by_hand():
    """Online p(x) = 0.5, ratio 1.8; offline p(x) with a = 0.5 is (1.5 * 0.3 + 0.5) / 2 = 0.475, ratio 1.894...

    Ratios of z are 1, 2, 0.5. Shares of z dominated at gamma 0.85, 0.94, 1.7, 1.85 and 3.7.
    """
    arguments = X_TARGET, X_REFERENCES, X_INSIDE, Z_TARGET, Z_REFERENCES
    online = [rmia.online(*arguments, gamma=gamma).item() for gamma in (0.85, 0.94, 1.7, 1.85, 3.7)]
    offline = [rmia.offline(*arguments, a=0.5, gamma=gamma).item() for gamma in (0.85, 0.94, 1.7, 1.85, 3.7)]
    assert np.allclose(online, [1, 2 / 3, 2 / 3, 1 / 3, 0])
    assert np.allclose(offline, [1, 1, 2 / 3, 2 / 3, 1 / 3])
    # a = 1: p(x) = 0.3, ratio 3. a = 0: p(x) = 0.65, ratio 1.3846...
    assert np.allclose(
        [rmia.offline(*arguments, a=1, gamma=gamma).item() for gamma in (1.4, 1.6, 2.9, 3.1)], [1, 2 / 3, 2 / 3, 1 / 3]
    )
    assert np.allclose(
        [rmia.offline(*arguments, a=0, gamma=gamma).item() for gamma in (0.69, 0.70, 1.38, 1.39, 2.8)],
        [1, 2 / 3, 2 / 3, 1 / 3, 0],
    )


def test_population_ratio_uses_all_out_signals():
    """Defect 17: with the largest k of 2k reference signals p(z) is 0.6, 0.39, 0.5 instead of 0.5, 0.3, 0.4, the ratios
    of z are 0.83, 1.54, 0.4, and x with its ratio of 1.8 dominates at gamma 1.9 what it must not (1.8 / 0.83 = 2.2)."""
    arguments = X_TARGET, X_REFERENCES, X_INSIDE, Z_TARGET
    assert rmia.online(*arguments, Z_REFERENCES, gamma=1.9) == pytest.approx(1 / 3)
    for order in ([3, 0, 1, 2], [1, 2, 3, 0]):
        assert rmia.online(*arguments, Z_REFERENCES[order], gamma=1.9) == pytest.approx(1 / 3)
    # A model that was trained on z does not count for it: without the last one the ratio of the first is 0.5 / 0.6.
    trained_on = np.zeros((4, 3), dtype=bool)
    trained_on[3, 0] = True
    assert rmia.online(*arguments, Z_REFERENCES, trained_on, gamma=1.9) == pytest.approx(2 / 3)


def test_non_members_are_not_above_the_population():
    """Defect 17 in a world: x and z of one distribution, no model trained on either. At gamma = 1 the mean share is
    1/2; with the largest k of 2k signals in p(z) it would be far above."""
    draws = random_generator(7)

    def world(count):
        return -np.log(1 / (1 + np.exp(-draws.normal(size=count) - draws.normal(size=(9, count)))))

    x, z = world(3000), world(3000)
    outside = np.zeros((8, 3000), dtype=bool)
    found = rmia.offline(x[0], x[1:], outside, z[0], z[1:], a=1, gamma=1.0)
    assert abs(found.mean() - 0.5) < auc_tolerance(3000, 3000)
    highest = np.sort(np.exp(-z[1:]), axis=0)[-4:].mean(axis=0)
    biased = dense_share(np.exp(-x[0]) / np.exp(-x[1:]).mean(axis=0), np.exp(-z[0]) / highest, 1.0, True)
    assert biased.mean() > 0.6


@settings(max_examples=40)
@given(
    st.integers(1, 6), st.integers(2, 40), st.integers(1, 30), st.integers(1, 5), st.integers(0, 10_000), st.booleans()
)
def test_rmia_equals_a_dense_implementation(pairs, records, others, queries, seed, strict):
    draws = random_generator(seed)
    inside = balanced(2 * pairs, records, seed)
    target = draws.exponential(size=(queries, records))
    references = draws.exponential(size=(2 * pairs, queries, records))
    z_target, z_references = draws.exponential(size=others), draws.exponential(size=(2 * pairs, others))
    a, gamma = draws.random(), draws.choice([0.5, 1.0, 2.0])
    ratio_z = [math.exp(-z_target[z]) / np.mean([math.exp(-row[z]) for row in z_references]) for z in range(others)]
    for attack in (rmia.online, rmia.offline):
        expected = np.zeros(records)
        for record in range(records):
            ratios = []
            for query in range(queries):
                p = np.exp(-references[:, query, record])
                out = p[~inside[:, record]].mean()
                prior = (
                    (p[inside[:, record]].mean() + out) / 2 if attack is rmia.online else ((1 + a) * out + 1 - a) / 2
                )
                ratios.append(math.exp(-target[query, record]) / prior)
            for z in ratio_z:
                votes = sum((ratio / z > gamma) or (not strict and ratio / z == gamma) for ratio in ratios)
                expected[record] += votes > queries / 2
        extra = {} if attack is rmia.online else {"a": a}
        found = attack(target, references, inside, z_target, z_references, gamma=gamma, strict=strict, **extra)
        assert np.allclose(found, expected / others, atol=1e-12)


def test_mean_of_queries_is_another_rule():
    """Ratios 0.2, 0.2 and 5 (p(x) = 0.1): the majority does not dominate a z of ratio 1, the mean 1.8 does."""
    target, references = losses_of([[0.02], [0.02], [0.5]]), losses_of(np.full((2, 3, 1), 0.1))
    arguments = target, references, np.array([[True], [False]]), losses_of([0.3]), losses_of([[0.3], [0.3]])
    assert rmia.online(*arguments, gamma=1.0) == 0
    assert rmia.online(*arguments, gamma=1.0, queries="mean") == 1
    with pytest.raises(UserError, match="queries"):
        rmia.online(*arguments, queries="median")


def test_offline_rmia_does_not_look_at_in_models():
    target, references, inside, _ = gaussian_world(8, 60, seed=1, mean=10.0)
    z = random_generator(1).exponential(size=(9, 50))
    poisoned = np.where(inside, 0.0, np.maximum(-references, 0.0))
    losses = np.maximum(-references, 0.0)
    found = [rmia.offline(np.maximum(-target, 0), values, inside, z[0], z[1:], a=0.4) for values in (poisoned, losses)]
    assert (found[0] == found[1]).all()


def test_with_a_of_one_only_ratios_count():
    """p(x) is the plain OUT mean then: all probabilities of x and z halved, for all models, change no score."""
    draws = random_generator(11)
    inside = balanced(6, 80, 0)
    losses, others = draws.exponential(size=(7, 80)), draws.exponential(size=(7, 90))
    found = {
        a: [
            rmia.offline(
                losses[0] + shift, losses[1:] + shift, inside, others[0] + shift, others[1:] + shift, a, gamma=1.5
            )
            for shift in (0.0, math.log(2))
        ]
        for a in (0.0, 1.0)
    }
    assert (found[1.0][0] == found[1.0][1]).all()
    assert (found[0.0][0] != found[0.0][1]).any()


def test_a_is_tuned_on_population_records_that_the_model_was_not_trained_on():
    """The population decides only which records tie. Two of its records, which make ties, and 300 more that the model
    attacked was trained on and that would undo them; another reference model was trained on the two."""
    draws = random_generator(12)
    inside, z = balanced(6, 600, 2), draws.exponential(size=(6, 302))
    losses = np.log1p(np.exp(-draws.normal(0, 2, 600) - draws.normal(size=(6, 600)) - 2 * inside))
    trained_on = np.zeros(z.shape, dtype=bool)
    trained_on[0, 2:] = trained_on[4, :2] = True
    z[4, :2] = 0.0

    def best(columns, known):
        return max(
            rmia.CANDIDATES,
            key=lambda a: roc_auc_score(
                inside[0],
                rmia.offline(
                    losses[0], losses[2:], inside[2:], z[0, columns], z[2:, columns], a, known[2:, columns], gamma=1.0
                ),
            ),
        )

    expected = best(slice(0, 2), trained_on)
    assert rmia.tune_a(losses, inside, z, trained_on, gamma=1.0) == expected
    assert expected not in (best(slice(None), trained_on), best(slice(0, 2), np.zeros_like(trained_on)))


def test_a_record_that_no_model_gives_any_probability_has_a_score():
    inside = np.array([[True, True], [False, False]])
    references = np.full((2, 2), 5000.0)
    for losses in ([5000.0, 0.1],):
        found = rmia.online(losses, references, inside, [1.0], [[1.0], [1.0]])
        assert found.tolist() == [0, 1]


def test_a_is_tuned_without_the_target():
    """Against attacking the first reference models one by one, written out with their complements left out."""
    draws = random_generator(4)
    inside = balanced(8, 3000, 2)
    hardness = draws.normal(-1, 2, 3000)
    p = 1 / (1 + np.exp(-hardness - draws.normal(0, 0.7, (8, 3000)) - 2.5 * inside))
    z = -np.log(1 / (1 + np.exp(-draws.normal(-1, 2, 2000) - draws.normal(0, 0.7, (8, 2000)))))
    losses, aucs = -np.log(p), {}
    for a in rmia.CANDIDATES:
        # The first reference model is attacked with all but its complement, model 1.
        scores = rmia.offline(losses[0], losses[2:], inside[2:], z[0], z[2:], a)
        aucs[a] = roc_auc_score(inside[0], scores)
    best = rmia.tune_a(losses, inside, z)
    assert best == max(aucs, key=aucs.get)
    assert aucs[best] > min(aucs.values()) + 0.005
    means = []
    for a in rmia.CANDIDATES:
        scores = [
            rmia.offline(losses[target], losses[rest], inside[rest], z[target], z[rest], a)
            for target, rest in ((0, slice(2, 8)), (1, slice(2, 8)), (2, [0, 1, 4, 5, 6, 7]))
        ]
        means.append(np.mean([roc_auc_score(inside[target], score) for target, score in enumerate(scores)]))
    assert rmia.tune_a(losses, inside, z, targets=3) == rmia.CANDIDATES[int(np.argmax(means))]
    strange = losses.copy()
    strange[1] = 0.0  # the complement of the model attacked: it would hide that model's members
    assert rmia.tune_a(strange, inside, z) == best
    with pytest.raises(UserError, match="too few"):
        rmia.tune_a(losses[:2], inside[:2], z[:2])
    with pytest.raises(UserError, match="not in"):
        rmia.offline(losses[0], losses[1:], inside[1:], z[0], z[1:], a=1.5)
