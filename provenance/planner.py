"""How many photos are needed: what was measured on other people's photos, told before anything is published.

Public: Measured, measured, sentences, LIMITS, STUDIES.
"""

import json
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent / "results"
STUDIES = ("claims-1.0", "claims-0.5", "claims-0.1")
LIMITS = (
    "Measured on CIFAR-10 with a small network that remembers nearly all it was trained on; a model that remembers "
    "less, or has other photos much like yours, shows less."
)


@dataclass(frozen=True)
class Measured:
    """One point of the curve: users with `photos` photos, half of them published, in models of `images` images; hits of
    `of` were found at the first judgement's share of alpha 0.001."""

    images: int
    photos: int
    reference: bool
    hits: int
    of: int

    @property
    def percent(self):
        """What the published photos were of the training images, in %."""
        return 100 * self.photos / 2 / self.images


def measured(kind):
    """The Measured of one kind of photos ("marked", "faint", "unchanged"), [] where no results are there."""
    found = []
    for study in STUDIES:
        path = RESULTS / study / "result.json"
        content = json.loads(path.read_text()) if path.is_file() else {}
        for row in content.get("photos", []):
            if row["kind"] == kind:
                facts = (content["settings"]["train_size"], row["photos"], row["test"] == "reference")
                found.append(Measured(*facts, row["hits"], row["of"]))
    return found


def sentences(photos, kind):
    """What so many photos, half of them held out, could show, for people: lines, [] where nothing was measured.

    The nearest number of photos that was measured and is not larger is told, for every size of training set.
    """
    curve = measured(kind)
    enough = [one.photos for one in curve if one.photos <= photos]
    if not curve:
        return []
    at = max(enough, default=min(one.photos for one in curve))
    lines = []
    for images in sorted({one.images for one in curve}):
        here = [one for one in curve if (one.images, one.photos) == (images, at)]
        shares = ", ".join(
            f"{one.hits} of {one.of} {'with' if one.reference else 'without'} a reference"
            for one in sorted(here, key=lambda one: one.reference)
        )
        if here:
            lines.append(f"{at} photos, {here[0].percent:.2g} % of {images:,} training images: {shares}")
    return lines
