"""LOSS: records with a low loss are members (Yeom et al., CSF'18). The attack without population and references.

Public: score.
"""

from attacks import signals


def score(target_losses):
    """Minus the loss: float64 (N,), higher for members. target_losses: (N,), or (Q, N), averaged over queries."""
    return -signals.one_signal(signals.as_losses(target_losses))
