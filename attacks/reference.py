"""Attack R: a threshold on the loss for each record, from models that were not trained on it (Ye et al., CCS'22).

Ye et al. test the target's loss against the distribution of the loss over OUT models; a few models give it only in
steps, so it has to be smoothed. Two ways are offered, both rules of ours where a choice was open:

- "linear": the i-th lowest of n OUT losses is the i / (n + 1) quantile, with straight lines between; from the lowest
  loss down to 0, the least that a loss can be; above the highest loss t_n it goes to 1 as 1 - t_n / (t (n + 1)).
  Assumes nothing about the shape, and no two losses tie.
- "gaussian": a normal distribution of the logit-scaled confidence, which is offline LiRA.

Public: score.
"""

import numpy as np

from attacks import lira, signals
from kit.errors import UserError


def score(target_losses, reference_losses, membership, smoothing="linear"):
    """How surely an OUT model would have a higher loss: float64 (N,); "linear" gives 1 - F_OUT(loss), in [0, 1].

    target_losses: (N,) or (Q, N), averaged; reference_losses: (M, N) or (M, Q, N); membership: bool (M, N). Only models
    that are OUT for a record speak about it: at least one ("gaussian": two) for each.
    """
    target, references, membership = signals.together(target_losses, reference_losses, membership)
    target, references = signals.as_losses(target), signals.as_losses(references)
    target, references = target.mean(axis=0), references.mean(axis=1)
    if smoothing == "gaussian":
        return lira.offline(signals.scaled_from_losses(target), signals.scaled_from_losses(references), membership)
    if smoothing != "linear":
        raise UserError(f"smoothing {smoothing!r} is unknown", advice='use "linear" or "gaussian"')
    return 1 - _linear_cdf(target, references, ~membership)


def _linear_cdf(target, references, models):
    """F(target) for each column of `references`, of which `models` count; see above."""
    counts = signals.check_counts(models, 1, "not trained on")
    losses = np.sort(np.where(models, references, np.inf), axis=0)
    losses = np.concatenate([np.zeros((1, len(target))), losses])  # row i: the i-th lowest
    rank = (losses[1:] <= target).sum(axis=0)
    lower = np.take_along_axis(losses, rank[None], axis=0)[0]
    upper = np.take_along_axis(losses, np.minimum(rank + 1, counts)[None], axis=0)[0]
    above = rank == counts
    part = np.divide(target - lower, upper - lower, out=np.zeros(len(target)), where=~above)
    part[above] = 1 - np.divide(lower, target, out=np.ones(len(target)), where=target > 0)[above]
    return (rank + part) / (counts + 1)
