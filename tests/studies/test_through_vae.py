"""studies/through_vae.py: what is measured of a mark behind an autoencoder, against autoencoders that are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from studies import autoencoder as autoencoder_module
from studies import through_vae

KEY = b"k" * 32


@pytest.fixture(scope="module")
def photo():
    return torch.from_numpy(np.random.default_rng(1).integers(60, 190, (3, 64, 90), dtype=np.uint8))


def autoencoder(encode, decode):
    def encoded(pictures):
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: encode(pictures)))

    return SimpleNamespace(encode=encoded, decode=lambda latents: SimpleNamespace(sample=decode(latents)))


def test_a_bucket_is_covered_and_cut(photo):
    assert through_vae.bucketed(photo, None).shape == (3, 64, 88)
    assert through_vae.bucketed(photo, (32, 32)).shape == (3, 32, 32)
    whole = through_vae.bucketed(photo, (64, 64))
    assert torch.equal(whole, photo[:, :, 13:77]), "nothing is scaled that fits, and both sides are cut alike"


def test_photos_are_marked_at_full_size(photo):
    kind = through_vae.KINDS["clear"]
    plain, marked = through_vae.marked_photos(photo, kind, KEY, (32, 32))
    full = kind.marked(photo[None], KEY, np.zeros(1, dtype=np.int64))[0]
    assert torch.equal(marked, through_vae.bucketed(full, (32, 32)))
    assert torch.equal(plain, through_vae.bucketed(photo, (32, 32)))


def test_an_autoencoder_that_changes_nothing_leaves_the_mark(photo):
    pair = through_vae.marked_photos(photo, through_vae.KINDS["clear"], KEY, None)
    found = through_vae.moved(autoencoder(lambda pictures: pictures, lambda latents: latents), pair)
    assert found["pixels"] == pytest.approx(1, abs=1e-9) and found["psnr"] > 100
    clean = pair.double() / 127.5 - 1
    spread = clean[0].flatten(1).std(dim=1)
    expected = ((clean[1] - clean[0]).flatten(1).pow(2).mean(1).sqrt() / spread).mean()
    assert found["latents"] == pytest.approx(float(expected), rel=1e-5)


def test_an_autoencoder_that_turns_the_mark_round_is_seen(photo):
    pair = through_vae.marked_photos(photo, through_vae.KINDS["clear"], KEY, None)
    plain = pair[:1].float() / 127.5 - 1
    turned = through_vae.moved(autoencoder(lambda pictures: 2 * plain - pictures, lambda latents: latents), pair)
    assert turned["pixels"] < -0.95


def test_psnr_of_a_known_error(photo):
    pair = torch.full((2, 3, 16, 16), 128, dtype=torch.uint8)
    pair[1, :, ::2] = 140
    pair[0, 0, 0, 0] = 0
    found = through_vae.moved(autoencoder(lambda pictures: pictures, lambda latents: latents + 0.2), pair)
    assert found["psnr"] == pytest.approx(20, abs=0.01)  # 0.1 of pictures from 0 to 1


def test_means_are_over_photos_and_keys():
    rows = [
        {"channels": 4, "mark": "clear", "bucket": way, "photo": name, "pixels": value, "latents": 1.0, "psnr": 20.0}
        for way, name, value in (("a", "x", 0.2), ("a", "y", 0.4), ("b", "x", 0.9))
    ]
    assert through_vae.summary(rows).pixels.tolist() == pytest.approx([0.3, 0.9])


@pytest.fixture(scope="module")
def crops():
    """Two smooth pictures, uint8 (2, 3, 128, 128)."""
    coarse = torch.from_numpy(np.random.default_rng(2).uniform(40, 210, (2, 3, 6, 6)))
    return torch.nn.functional.interpolate(coarse, (128, 128), mode="bicubic").clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("channels", [4, 16])
def test_an_untrained_autoencoder_averages_and_interpolates(crops, channels):
    pytest.importorskip("diffusers")
    model = autoencoder_module._untrained(channels).eval()
    clean = crops.float() / 127.5 - 1
    with torch.no_grad():
        latents = model.encode(clean).latent_dist
        given = model.decode(latents.mode()).sample
    assert latents.mode().shape == (2, channels, 16, 16)
    means = torch.nn.functional.avg_pool2d(clean, 8)
    assert np.corrcoef(latents.mode()[:, :3].flatten(), means.flatten())[0, 1] > 0.99
    assert latents.std.max() < 0.05, "noise must not drown what the latents say"
    inside = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    assert (given - clean)[inside].square().mean() < 0.02 * clean.var()


def test_training_goes_on_from_there_with_the_same_bits(crops):
    pytest.importorskip("diffusers")
    photos = list(crops.repeat_interleave(2, dim=-1))
    first, second = (autoencoder_module.make_autoencoder(4, photos, 3, 1, 5) for _ in range(2))
    start = autoencoder_module._untrained(4)
    moved = [not torch.equal(one, other) for one, other in zip(first.parameters(), start.parameters(), strict=True)]
    assert all(moved)
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))
    assert not any(one.requires_grad for one in first.parameters())
