"""networks/scatternet.py: wavelets of known answers, features by definition, and a linear layer that alone learns."""

import math

import pytest
import torch
from torch.nn import functional as F

from networks import build_network, count_parameters
from networks.scatternet import averaged, moduli, morlets


def grid(side):
    places = torch.arange(side, dtype=torch.float64)
    return torch.meshgrid(places, places, indexing="ij")


def wave(side, frequency, angle):
    rows, columns = grid(side)
    return torch.cos(frequency * (columns * math.cos(angle) + rows * math.sin(angle)))


@pytest.mark.parametrize("scale", [0, 1])
def test_a_plane_wave_is_answered_by_the_wavelet_of_its_direction(scale):
    filters = morlets(scale).double()
    assert torch.allclose(filters.sum((1, 2, 3)), torch.zeros(16, dtype=torch.float64), atol=1e-6)
    for direction in range(8):
        image = wave(32, 0.75 * math.pi / 2**scale, math.pi * direction / 8)[None, None]
        inner = moduli(image, filters)[0, :, 8:24, 8:24]
        assert int(inner.mean((1, 2)).argmax()) == direction
        # The modulus is the envelope: of the wave itself little is left (without the imaginary part 0.48).
        assert inner[direction].std() < 0.35 * inner[direction].mean()


def test_moduli_are_by_definition():
    """One place of one channel, summed by hand."""
    torch.manual_seed(0)
    image, filters = torch.randn(2, 3, 32, 32).double(), morlets(1).double()
    found = moduli(image, filters, stride=2)
    assert found.shape == (2, 24, 16, 16)
    patch = image[1, 2, 12 - 5 : 12 + 6, 20 - 5 : 20 + 6]
    real, imaginary = (patch * filters[3, 0]).sum(), (patch * filters[8 + 3, 0]).sum()
    assert float(found[1, 2 * 8 + 3, 6, 10]) == pytest.approx(math.hypot(real, imaginary), rel=1e-9)


def test_averages_keep_constants_and_the_order_of_places():
    assert torch.allclose(averaged(torch.full((1, 2, 33, 40), 3.0)), torch.full((1, 2, 8, 8), 3.0))
    rows, columns = grid(32)
    found = averaged(torch.stack([rows, columns])[None])[0]
    assert (found[0].diff(dim=0) > 2).all() and (found[1].diff(dim=1) > 2).all()
    assert torch.allclose(found[0], found[1].T)


def test_features_of_a_turned_image_are_the_turned_features():
    torch.manual_seed(0)
    network, image = build_network("scatternet", 10).double(), torch.randn(1, 3, 32, 32).double()
    here, turned = (network.scatter(x) for x in (image, image.rot90(1, (2, 3))))
    assert here.shape == (1, 115, 8, 8)
    # A quarter turn makes direction d into d + 4 of 8; stride 2 samples other places, so coarse maps differ a little.
    fine = here[:, 3:27].unflatten(1, (3, 8)).roll(4, 2).flatten(1, 2).rot90(1, (2, 3))
    assert torch.allclose(turned[:, 3:27], fine, rtol=1e-6)
    coarse = here[:, 27:51].unflatten(1, (3, 8)).roll(4, 2).flatten(1, 2).rot90(1, (2, 3))
    assert (turned[:, 27:51] - coarse).norm() < 0.1 * coarse.norm()


def test_order_two_is_of_grey_images():
    network = build_network("scatternet", 10)
    torch.manual_seed(1)
    image = torch.randn(1, 3, 32, 32)
    grey = image.mean(1, keepdim=True)
    expected = averaged(moduli(moduli(grey, network.fine), network.coarse, 2))
    assert torch.allclose(network.scatter(image)[:, 51:], expected, atol=1e-5)


def test_only_the_linear_layer_learns_and_images_do_not_meet():
    network = build_network("scatternet", 10)
    assert count_parameters(network) == 7361 * 10 and set(network.state_dict()) == {
        "classifier.weight",
        "classifier.bias",
    }
    torch.manual_seed(2)
    images = torch.randn(37, 3, 32, 32)
    together, alone = network(images), network(images[20:21])
    assert torch.allclose(together[20:21], alone, atol=1e-5)
    F.cross_entropy(together, torch.arange(37) % 10).backward()
    assert network.classifier.weight.grad.abs().max() > 0
