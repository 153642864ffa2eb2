"""Loss trajectories: what the losses of a record did while the model was trained (Liu et al., "Membership Inference
Attacks by Exploiting Loss Trajectory", CCS'22).

A member's loss falls early and stays low; that of a stranger which is as easy at the end took another way. The paper
has no checkpoints of the target and imitates them by distillation. This is for an owner, or a court, who has them: the
attack runs only where the same checkpoints of target and reference models are there (our reading of the paper's
section 4, with logistic regression in place of its network).
Public: score.
"""

import numpy as np

from attacks import signals
from attacks.membership import leave_one_out
from kit.errors import UserError


def score(target_losses, reference_losses, membership, targets=4):
    """Log odds of a logistic regression on trajectories: float64 (N,).

    target_losses: (C, N) at C >= 2 checkpoints in order, the last one the finished model; reference_losses: (M, C, N);
    membership: bool (M, N). A record's features are, at each checkpoint, log(1 + loss) and the same minus its mean over
    OUT reference models. The regression learns from up to `targets` reference models as targets, each seen with the
    other references, and never from the target. Three or more reference models, with an OUT one for each record.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    target, references, inside = signals.together(target_losses, reference_losses, membership)
    if len(target) < 2 or np.ndim(target_losses) != 2:
        raise UserError("a trajectory needs two checkpoints or more", advice="keep some (train.checkpoints)")
    signals.check_counts(~inside, 1, "not trained on")
    rows, labels = [], []
    for fold in list(leave_one_out(inside))[:targets] if len(inside) > 1 else []:
        found = _features(references[fold.target], references[fold.references], inside[fold.references])
        known = np.isfinite(found).all(axis=1)  # not so where all other references were trained on the record
        rows.append(found[known])
        labels.append(inside[fold.target, known])
    truth = np.concatenate([*labels, []]).astype(bool)
    if not len(truth) or truth.all() or not truth.any():
        raise UserError(
            f"{len(inside)} reference models are too few to learn trajectories from",
            advice="give three or more, each trained on some of the records",
        )
    learnt = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(np.concatenate(rows), truth)
    return learnt.decision_function(_features(target, references, inside))


def _features(target, references, membership):
    """float64 (N, 2 C); NaN where a record has no OUT model."""
    logs = np.log1p(signals.as_losses(target))
    counts = (~membership).sum(axis=0)
    sums = sum(
        np.where(inside, 0.0, np.log1p(signals.as_losses(values)))
        for values, inside in zip(references, membership, strict=True)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.concatenate([logs, logs - sums / counts]).T
