"""Views of a picture: the changes under which a model has seen it in training. Several queries about one picture
average out what is not memory.

Public: view_of, SHIFT.
"""

import numpy as np

from kit.names import MOST_VIEWS

SHIFT = 1 / 16  # of a side; training shifts by up to 1/8 (see `utils.augment`)
# (rows, columns) in steps of SHIFT, and whether it is mirrored. The first N are the views of N queries: the picture
# itself and its mirror image, then shifts along one axis, then along both.
_STEPS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))
_VIEWS = tuple((step, mirrored) for step in _STEPS for mirrored in (False, True))
assert len(_VIEWS) == MOST_VIEWS


def view_of(images, number):
    """View `number` of pictures as a model gets them: uint8 (..., H, W), an array of its own. View 0 changes nothing.

    What a shift uncovers repeats the picture's edge.
    """
    (rows, columns), mirrored = _VIEWS[number]
    images = images[..., ::-1] if mirrored else images
    return np.array(_shifted(_shifted(images, rows, -2), columns, -1), order="C")


def _shifted(images, steps, axis):
    """The picture moved by `steps` SHIFTs along an axis, at least one pixel each."""
    side = images.shape[axis]
    by = steps * max(1, round(SHIFT * side))
    return images.take(np.clip(np.arange(side) - by, 0, side - 1), axis) if steps else images
