"""Who trains on what: a balanced membership matrix, and every model as target with the others as references.

Public: balanced, Fold, leave_one_out.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

import utils
from kit.errors import UserError


def balanced(models, records, seed, share=0.5):
    """Which records each model trains on: bool (models, records), the same for the same seed.

    Every model gets exactly `share` of the records (where that is no whole number, sizes differ by at most one), and
    the numbers of models that two records are in differ by at most one. With the default half, models 2i and 2i + 1 are
    complementary, so every record is in exactly half of an even number of models. Row m does not depend on `models`: a
    larger matrix goes on where a smaller one ended, so that models already trained stay valid.
    """
    exact = Fraction(str(share))  # 0.7 * 10 is above 7 in floating point
    if models < 1 or records < 2 or not 0 < exact < 1 or exact * records < 1 or (1 - exact) * records < 1:
        raise UserError(
            f"{models} models on a share {share} of {records} records cannot be balanced",
            advice="give at least one model and two records, and a share that leaves records in and out",
        )
    matrix = np.zeros((models, records), dtype=bool)
    deck, decks = np.empty(0, dtype=np.int64), 0
    for model, row in enumerate(matrix):
        # Dealt like cards: a record comes again only when all others have had their turn.
        wanted = int((model + 1) * exact * records) - int(model * exact * records)
        row[deck[:wanted]] = True
        missing, deck = wanted - len(deck[:wanted]), deck[wanted:]
        if missing:
            fresh = utils.key_generator(seed, "membership", decks).permutation(records)
            decks += 1
            # From the new deck this model gets the first that it has not got yet; the others keep their drawn order.
            taken = np.flatnonzero(~row[fresh])[:missing]
            row[fresh[taken]] = True
            deck = np.delete(fresh, taken)
    return matrix


@dataclass(frozen=True)
class Fold:
    """One model as target: its row, and the rows of its reference models, int64 (M,), in the matrix's order."""

    target: int
    references: np.ndarray


def leave_one_out(membership, drop_complement=True):
    """Every model of bool (M, N) as target in turn, the others as its references: yields a `Fold` for each.

    In a matrix of complementary pairs a record that the target trained on has one OUT reference model more than the
    others. What an attack estimates from OUT models then differs between members and non-members even if the models
    leak nothing. `drop_complement` leaves the target's complement, where there is one, out of the references: every
    record has as many IN and as many OUT models then.
    """
    membership = np.asarray(membership)
    if membership.dtype != bool or membership.ndim != 2 or len(membership) < 2:
        raise UserError(
            f"membership is {membership.dtype} {membership.shape}", advice="give a bool array of two or more models"
        )
    rows = {row.tobytes(): model for model, row in reversed(list(enumerate(membership)))}
    for target, row in enumerate(membership):
        left_out = {target, rows.get((~row).tobytes(), target)} if drop_complement else {target}
        yield Fold(
            target, np.array([model for model in range(len(membership)) if model not in left_out], dtype=np.int64)
        )
