"""Signals of attacks: losses and scaled confidences are two scales of one probability."""

import math

import numpy as np
import pytest
import torch

import utils
from attacks import signals


@pytest.mark.parametrize("p", [1e-300, 1e-12, 0.1, 0.5, 0.9, 1 - 1e-9])
def test_loss_and_scaled_confidence_are_two_scales_of_one_probability(p):
    cross_entropy = -math.log(p)
    scaled = math.log(p) - math.log1p(-p)
    assert signals.scaled_from_losses(cross_entropy) == pytest.approx(scaled, rel=1e-7, abs=1e-12)
    assert signals.losses_from_scaled(scaled) == pytest.approx(cross_entropy, rel=1e-7)


def test_signals_keep_their_digits_where_a_probability_would_round():
    """Wrong: going through exp(-loss), which is 1 below 1e-16 and 0 above 745."""
    scaled = np.array([-5000.0, -800.0, -40.0, 0.0, 40.0, 700.0])
    assert np.allclose(signals.scaled_from_losses(signals.losses_from_scaled(scaled)), scaled, rtol=1e-12)
    assert math.isfinite(signals.scaled_from_losses(0.0)) and signals.scaled_from_losses(0.0) > 700


def test_conventions_fit_those_of_the_core():
    """Losses are cross_entropy; scaled confidences are minus scaled_loss."""
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(1)) * 8
    found = utils.sample_signals(logits, torch.arange(50) % 10)
    assert np.allclose(
        signals.scaled_from_losses(found["cross_entropy"].numpy()), -found["scaled_loss"].numpy(), rtol=1e-9
    )
