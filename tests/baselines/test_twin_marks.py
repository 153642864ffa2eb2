"""Twin copies: symmetrical within the budget, and scored over augmented queries."""

import numpy as np
import pytest
import torch

import utils
from baselines import twin_marks
from kit.errors import UserError


@pytest.mark.parametrize("network", [None, "linear"])
def test_twin_copies_are_symmetrical_within_the_budget(network):
    images = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (6, 3, 16, 16), dtype=np.uint8))
    images[0], images[1] = 0, 255  # no room on one side: no change, rather than one copy off balance
    weight = torch.from_numpy(np.random.default_rng(4).normal(size=(3 * 16 * 16, 5)).astype(np.float32))
    module = None if network is None else lambda values: (values / 255).flatten(1) @ weight
    copies = twin_marks.twin_copies(images, np.arange(6), b"key", module).to(torch.int64)
    first, second = copies[:, 0] - images, copies[:, 1] - images
    assert torch.equal(first, -second)
    assert first.abs().max() == twin_marks.BUDGET and (first[:2] == 0).all()
    room = torch.minimum(images, 255 - images).clamp_max(twin_marks.BUDGET).to(torch.int64)
    assert (first.abs() <= room).all()
    assert network or torch.equal(first.abs(), room)  # the pattern uses the whole budget
    again = twin_marks.twin_copies(images, np.arange(6), b"key", module)
    assert torch.equal(copies, again.to(torch.int64))


def test_a_network_moves_the_copies_farther_apart_in_its_features():
    images = torch.randint(60, 190, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(3 * 16 * 16, 2, generator=torch.Generator().manual_seed(2))

    def features(values):
        return torch.tanh((values / 255).flatten(1) @ weight / 20)

    def gap(network):
        copies = twin_marks.twin_copies(images, np.arange(4), b"key", network).float()
        return (features(copies[:, 0]) - features(copies[:, 1])).norm(dim=1)

    assert (gap(features) > 2 * gap(None)).all()


def test_owners_share_no_image_unless_they_may():
    first, second = twin_marks.draw_owners(np.arange(100, 200), [(5, 10), (10, 5)], 1, "owners")
    rows = np.concatenate([first.rows.ravel(), second.rows.ravel()])
    assert sorted(rows) == list(range(100, 200)) and first.rows.shape == (5, 10) and second.rows.shape == (10, 5)
    assert 0.3 < np.concatenate([first.bits.ravel(), second.bits.ravel()]).mean() < 0.7
    (shared,) = twin_marks.draw_owners(np.arange(20), [(30, 10)], 1, "controls", shared=True)
    assert all(len(set(own)) == 10 for own in shared.rows)
    with pytest.raises(UserError, match="--owners 5"):
        twin_marks.draw_owners(np.arange(49), [(5, 10)], 1, "owners")


def test_copy_scores_average_the_augmented_queries():
    """A model that sees only one corner pixel: the mean is that over the crops and flips, counted here one by one."""
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    image[:, :, 0, 0] = 200

    def query(images):
        return torch.stack([images[:, 0, 0, 0].float(), torch.full((len(images),), 100.0)], 1)

    found = twin_marks.copy_scores(query, image, torch.tensor([0]), 7, 40)
    draws = utils.key_generator(7, "audit's augmentations")
    shifts, flips = draws.integers(0, 9, (40, 2)), draws.random(40) < 0.5
    shifts[0], flips[0] = 4, False
    hits = sum(tuple(shift) == (4, 4) and not flip for shift, flip in zip(shifts, flips, strict=True))
    assert found["label-only"].tolist() == [hits / 40]
    assert found["probabilities"][0] == pytest.approx(-100 * (40 - hits) / 40)
