"""Views of a picture: what the model has seen in training, and always the same."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.names import MOST_VIEWS
from suspects.views import view_of


def picture(height=32, width=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)


def test_the_first_views_are_the_picture_and_its_mirror_image():
    image = picture()
    assert np.array_equal(view_of(image, 0), image)
    assert np.array_equal(view_of(image, 1), image[:, :, ::-1])


def test_views_are_eighteen_and_all_differ():
    image = picture()
    views = [view_of(image, number) for number in range(MOST_VIEWS)]
    assert MOST_VIEWS == 18 and len({view.tobytes() for view in views}) == 18
    assert all(view.shape == image.shape and view.dtype == np.uint8 and view.flags.c_contiguous for view in views)
    with pytest.raises(IndexError):
        view_of(image, MOST_VIEWS)


def test_shifts_are_a_sixteenth_of_the_side_and_repeat_the_edge():
    image = picture()
    right = view_of(image, 2)
    assert np.array_equal(right[:, :, 3:], image[:, :, :-3]) and (right[:, :, :3] == image[:, :, :1]).all()
    mirrored = view_of(image, 3)
    assert np.array_equal(mirrored, view_of(np.ascontiguousarray(image[:, :, ::-1]), 2))
    down = view_of(image, 6)
    assert np.array_equal(down[:, 2:], image[:, :-2]) and (down[:, :2] == image[:, :1]).all()
    shifts = {
        (rows, columns): view_of(image, number)
        for number, (rows, columns) in zip(
            range(0, 18, 2),
            [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1)],
            strict=True,
        )
    }
    for (rows, columns), view in shifts.items():
        inside = view[:, 4:-4, 6:-6]
        assert np.array_equal(inside, image[:, 4 - 2 * rows : -4 - 2 * rows, 6 - 3 * columns : -6 - 3 * columns])


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, MOST_VIEWS - 1))
def test_any_size_and_several_at_once(height, width, number):
    images = np.random.default_rng(height).integers(0, 256, (4, 3, height, width), dtype=np.uint8)
    together = view_of(images, number)
    assert all(np.array_equal(view_of(image, number), view) for image, view in zip(images, together, strict=True))
    before = images.copy()
    view_of(images, 0)[:] = 0
    assert np.array_equal(images, before), "a view never shares memory with the picture"
