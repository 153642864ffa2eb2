"""Label-only: the model answers with a class and no number (Choquette-Choo et al., ICML'21, data augmentation attack).

A member lies further from the decision boundary, so that more of its changed copies (mirrored, shifted) keep their
label. The paper learns from shadow models which copies count; here all count alike, and reference models, where there
are any, say how many of this record's copies are easy for anybody (our reading, after the difficulty calibration of
Watson et al., ICLR'22).
Public: score, offline.
"""

import numpy as np

from attacks import signals
from kit.errors import UserError


def score(target_hits):
    """The share of a record's copies that are labelled rightly: float64 (N,) in [0, 1]. target_hits: bool (Q, N).

    The first query is the record as it is. With fewer than two queries the label alone is no boundary: UserError.
    """
    return _hits(target_hits, 2).mean(axis=0)


def offline(target_hits, reference_hits, membership):
    """`score` minus that of OUT reference models on average: float64 (N,) in [-1, 1].

    reference_hits: bool (M, Q, N); membership: bool (M, N), at least one OUT model for each record. IN models are not
    looked at.
    """
    target, references = _hits(target_hits, 2), _hits(reference_hits, 3)
    _, references, membership = signals.together(target, references.astype(np.float32), membership)
    counts = signals.check_counts(~membership, 1, "not trained on")
    shares = references.mean(axis=1, dtype=np.float64)
    return target.mean(axis=0) - np.where(membership, 0.0, shares).sum(axis=0) / counts


def _hits(values, dimensions):
    values = None if values is None else np.asarray(values)
    if values is None:
        raise UserError("which class each copy got is not known", advice="give the classes, or logits")
    if values.dtype != bool or values.ndim != dimensions:
        raise UserError(
            f"labels that were right are {values.dtype} {values.shape}",
            advice="give bool (queries, records), with reference models (models, queries, records)",
        )
    if values.shape[-2] < 2:
        raise UserError(
            "one question a record gives a label and no boundary", advice="ask about two or more copies (audit.queries)"
        )
    return values
