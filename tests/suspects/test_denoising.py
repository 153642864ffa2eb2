"""The signals of the literature against calculations by hand, and against denoisers whose answers are known."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from suspects import denoising
from suspects.denoising import draws_of, predicted_noise, scores_of

STEPS = 1000


class Schedule:
    """What is used of a scheduler: 1 - the share of noise's variance after each timestep, here known numbers."""

    alphas_cumprod = torch.linspace(0.9999, 0.01, STEPS, dtype=torch.float64)


def model_of(answer, prediction="epsilon"):
    """A denoiser in pixel space that answers answer(noisy, step)."""

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.asked = []

        def forward(self, noisy, steps):
            self.asked.append((noisy.clone(), float(steps[0])))
            return SimpleNamespace(sample=answer(noisy, float(steps[0])))

    schedule = {"prediction": prediction, "timesteps": STEPS, "scheduler": Schedule}
    return SimpleNamespace(network=Network(), part="unet", whole=None, vae=None, name="", schedule=schedule)


def pictures(count=3):
    return torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def ask(model, clean, signal):
    with torch.no_grad():
        return scores_of(model, clean, {}, draws_of(b"seed", (3, 4, 4)), signal)


def share(fraction):
    """Of the picture's variance at a fraction of the timesteps."""
    return float(Schedule.alphas_cumprod[round(fraction * STEPS)])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow"])
@pytest.mark.parametrize("fraction", [0.05, 0.5])
def test_the_noise_that_a_perfect_denoiser_predicts_is_that_which_was_added(prediction, fraction):
    clean, noise = pictures(), pictures(4)[3]
    kept, added = (1 - fraction, fraction) if prediction == "flow" else (share(fraction) ** 0.5,) * 2
    if prediction != "flow":
        added = (1 - share(fraction)) ** 0.5
    target = {
        "epsilon": noise.expand_as(clean),
        "sample": clean,
        "v_prediction": kept * noise - added * clean,
        "flow": noise - clean,
    }[prediction]
    found = predicted_noise(model_of(lambda *_: target, prediction), kept * clean + added * noise, fraction, {})
    torch.testing.assert_close(found, noise.expand_as(clean), rtol=1e-3, atol=1e-4)


def test_sima_is_the_fourth_power_of_the_noise_seen_in_the_picture_itself():
    clean, factor = pictures(), 0.3
    model = model_of(lambda noisy, step: factor * noisy)
    found = ask(model, clean, "sima")
    expected = np.mean(
        [
            ((factor * share(fraction) ** 0.5 * clean.double().numpy()) ** 4).mean((1, 2, 3))
            for fraction in denoising.FRACTIONS
        ],
        axis=0,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert len(model.network.asked) == len(denoising.FRACTIONS)


def test_pia_adds_the_noise_that_is_seen_in_the_picture_and_asks_for_it_again():
    clean = pictures()
    # At the start it sees half of the picture as noise, later a quarter of what it is shown.
    model = model_of(lambda noisy, step: noisy * (0.5 if step == 0 else 0.25))
    expected = []
    for fraction in denoising.FRACTIONS:
        start = 0.5 * clean.double()
        shown = share(fraction) ** 0.5 * clean.double() + (1 - share(fraction)) ** 0.5 * start
        expected.append(((start - 0.25 * shown) ** 4).mean((1, 2, 3)).numpy())
    np.testing.assert_allclose(ask(model, clean, "pia"), np.mean(expected, axis=0), rtol=1e-5)
    assert [step for _, step in model.network.asked] == [0, *(round(one * STEPS) for one in denoising.FRACTIONS)]


def test_secmi_goes_up_and_down_again_by_ddim():
    clean = pictures()
    model = model_of(lambda noisy, step: noisy * (step / STEPS))

    def moved(place, origin, goal):
        seen = place * (round(origin * STEPS) / STEPS)
        picture = (place - (1 - share(origin)) ** 0.5 * seen) / share(origin) ** 0.5
        return share(goal) ** 0.5 * picture + (1 - share(goal)) ** 0.5 * seen

    place, path = clean.double(), np.arange(11) / 100
    for origin, goal in itertools.pairwise(path):
        place = moved(place, origin, goal)
    back = moved(moved(place, 0.1, 0.11), 0.11, 0.1)
    expected = ((back - place) ** 2).mean((1, 2, 3)).numpy()
    np.testing.assert_allclose(ask(model, clean, "secmi"), expected, rtol=1e-3)
    assert len(model.network.asked) == 12


def test_secmi_of_a_denoiser_that_always_sees_the_same_noise_is_nothing():
    noise = pictures(1)[0]
    found = ask(model_of(lambda noisy, step: noise.expand_as(noisy)), pictures(), "secmi")
    np.testing.assert_allclose(found, 0, atol=1e-10)


@pytest.mark.parametrize("signal", ["sima", "pia", "secmi"])
def test_a_score_does_not_hang_on_the_other_pictures(signal):
    model, clean = model_of(lambda noisy, step: torch.tanh(noisy) * (1 + step / STEPS)), pictures(70)
    np.testing.assert_allclose(ask(model, clean[66:], signal), ask(model, clean, signal)[66:], rtol=1e-6)
