"""Copies of a record that somebody holds in its place: points of the range around it (RaMIA; see attacks/ranges.py).

Which points there are follows from the record's row and the copy's number, so that every model is asked about the same
ones. Public: Copy, copies_of.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

import utils
from kit.errors import UserError

DEGREES = 30  # that "rotate" turns an image by, at most, as in Privacy Meter
KINDS = {"l2": "table", "missing_values": "table", "geometric": "images"}


@dataclass(frozen=True)
class Copy:
    """One changed copy of every record; its text names all that it depends on.

    change: a function of (one record's input, numpy generator) that returns the changed input.
    """

    name: str
    change: object = field(repr=False)

    def __str__(self):
        return self.name

    def __call__(self, inputs, rows):
        """Inputs (n, ...) of the data set's rows (n,), changed."""
        draws = [utils.key_generator("range", self.name, int(row)) for row in rows]
        return torch.stack([self.change(one, draw) for one, draw in zip(inputs, draws, strict=True)])


def copies_of(ranges, records):
    """The Copy list of a config's `Ranges` for `data.Records`, [] without ranges. Raises UserError for other kinds."""
    if ranges is None:
        return []
    if records.kind != KINDS[ranges.function]:
        raise UserError(
            f"audit.ranges {ranges.function} are for {KINDS[ranges.function]}, and {records.name} has {records.kind}",
            advice="leave them out",
        )
    if ranges.function == "geometric":
        kinds = [(name, _GEOMETRIC[name]) for name in ranges.transformations]
    elif ranges.function == "l2":
        kinds = [(f"l2 {ranges.radius:g}", _within(ranges.radius))] * ranges.points
    else:
        kinds = [(f"missing {ranges.columns} {ranges.categorical}", _filled(ranges, records.shape[0]))] * ranges.points
    return [Copy(f"{name} #{number}", change) for number, (name, change) in enumerate(kinds, 1)]


def _within(radius):
    """A point of the ball of this radius: Gaussian noise of that length on average, as long as it stays inside."""

    def change(record, draws):
        while True:
            noise = draws.normal(0, radius / np.sqrt(record.numel()), record.shape).astype(np.float32)
            if np.linalg.norm(noise) <= radius:
                return record + torch.from_numpy(noise)

    return change


def _filled(ranges, features):
    """The last features unknown to who holds the record, and filled by chance."""
    low, high = np.array(ranges.columns, dtype=np.float64).T
    if len(low) > features:
        raise UserError(f"audit.ranges.columns names {len(low)} features, and a record has {features}", advice="lower")

    def change(record, draws):
        filled = (
            draws.integers(low.astype(int), high.astype(int) + 1) if ranges.categorical else draws.uniform(low, high)
        )
        return torch.cat([record[: -len(low)], torch.from_numpy(filled.astype(np.float32))])

    return change


def _rotated(image, draws):
    from torchvision.transforms.functional import rotate

    return rotate(image, float(draws.uniform(-DEGREES, DEGREES)))


_GEOMETRIC = {
    "horizontal_flip": lambda image, _: image.flip(2),
    "vertical_flip": lambda image, _: image.flip(1),
    "rotate": _rotated,
}
