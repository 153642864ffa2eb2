"""Quantile regression (QMIA; Bertran et al., "Scalable Membership Inference Attacks via Quantile Regression",
NeurIPS'23): no reference models.

Whoever holds records that the target was not trained on learns from them which confidence a record with these features
has without being a member: quantiles of the logit-scaled confidence, given the features, by pinball loss. A record well
above its own quantiles is called a member.

The paper trains one network on all quantiles and asks, at a given rate, whether the record is above that quantile. Here
two quantiles are learnt by gradient boosting (scikit-learn), and a score is how far the record is above the median, in
units of the distance between the two, so that one order serves all rates (our reading of the paper's Gaussian variant,
which learns a mean and a deviation).
Public: score, LEVELS.
"""

import numpy as np

from attacks import signals
from kit.errors import UserError

LEVELS = (0.5, 0.9)
# Fewer records than this on a leaf give no quantile; also the least population.
LEAF = 20
ROUNDS, RATE = 60, 0.15


def score(target_scaled, features, population_scaled, population_features, categorical=()):
    """(confidence - median) / (0.9 quantile - median), both predicted from the features: float64 (N,).

    target_scaled: (N,), or (Q, N), averaged; features: floats (N, F); population_scaled: (Z,) or (Q, Z) and
    population_features: (Z, F), of records that the target was not trained on, at least LEAF of them; categorical:
    numbers of those features that are names and not amounts (whole numbers from 0 to 254).
    """
    from sklearn.ensemble import HistGradientBoostingRegressor

    target = signals.one_signal(target_scaled)
    known = signals.one_signal(population_scaled, "the population's signals")
    features, others = (_features(values, rows) for values, rows in ((features, target), (population_features, known)))
    if features.shape[1] != others.shape[1]:
        raise UserError(f"records have {features.shape[1]} features and the population {others.shape[1]}")
    if len(known) < LEAF:
        raise UserError(
            f"{len(known)} records of the population are too few for a quantile", advice=f"give at least {LEAF}"
        )
    predicted = [
        HistGradientBoostingRegressor(
            loss="quantile",
            quantile=level,
            max_iter=ROUNDS,
            learning_rate=RATE,
            min_samples_leaf=LEAF,
            max_leaf_nodes=15,
            early_stopping=False,
            categorical_features=list(categorical) or None,
            random_state=0,
        )
        .fit(others, known)
        .predict(features)
        for level in LEVELS
    ]
    # Two regressions may cross; a thousandth of the population's own distance is the least.
    least = max(float(np.diff(np.quantile(known, LEVELS))[0]) * 1e-3, 1e-9)
    return (target - predicted[0]) / np.maximum(predicted[1] - predicted[0], least)


def _features(values, rows):
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or len(values) != len(rows) or not values.shape[1]:
        raise UserError(
            f"features {values.shape} for {len(rows)} records", advice="give (records, features), at least one feature"
        )
    if not np.isfinite(values).all():
        raise UserError("features are not all finite", advice="fill or leave out what is missing")
    return values
