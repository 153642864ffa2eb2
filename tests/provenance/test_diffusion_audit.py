"""A fine-tuned diffusion model from end to end: data_marking.py, fine-tuning, eval.py, the evidence."""

import copy

import numpy as np
import pytest
import torch

from provenance.photos import read_photo
from suspects.suspect import Preprocessing
from tests.provenance.parts import auditor, flat, publish, refused, result_of, wavy_picture
from tests.suspects import tiny

pytestmark = tiny.NEEDED
SIDE, PHOTOS, KEYS = 8, 16, 4
PLAN = ("--keys", str(KEYS), "--selections", "999", "--alpha", "0.1", "--query_augmentations", "0")


def clean(pictures):
    fit = Preprocessing((SIDE, SIDE)).fit
    return torch.from_numpy(np.stack([fit(picture) for picture in pictures])).float() / 127.5 - 1


def trained(unet, pictures, passes, seed):
    """A copy of a denoiser after so many passes over pictures, with the noise of its early timesteps."""
    from diffusers import DDPMScheduler

    torch.manual_seed(seed)
    unet, scheduler = copy.deepcopy(unet).train(), DDPMScheduler()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=3e-3, weight_decay=0)
    for _ in range(passes):
        steps, noise = torch.randint(0, 250, (len(pictures),)), torch.randn_like(pictures)
        loss = (unet(scheduler.add_noise(pictures, noise, steps), steps).sample - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return unet.eval()


@pytest.fixture(scope="module")
def artist(tmp_path_factory):
    """A user's record; a base; a model fine-tuned on what the user published, and one on others' pictures."""
    root = tmp_path_factory.mktemp("artist")
    published = publish(root, PLAN, PHOTOS, 16)
    plain = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (16,)}
    public = clean([wavy_picture(1000 + number, 16) for number in range(PHOTOS)])
    base = trained(tiny.pixel_unet(sample_size=SIDE, **plain), public, 80, 0)
    published = clean([read_photo(path) for path in published])
    others = clean([wavy_picture(2000 + number, 16) for number in range(PHOTOS // 2)])
    tiny.pixel_pipeline(root / "base", base)
    tiny.pixel_pipeline(root / "tuned", trained(base, published, 150, 1))
    tiny.pixel_pipeline(root / "innocent", trained(base, others, 150, 1))
    return root


@pytest.fixture
def audit(artist, script, tmp_path):
    return auditor(artist, script, tmp_path)


def test_a_fine_tuned_model_is_found(artist, audit):
    flags = ("--checkpoint", artist / "tuned", "--base_model", audit.base)
    done = audit.run(*flags, "--out", audit.out)
    assert done.code == 0, done.err
    result = result_of(audit.out)
    assert result["p_value"] <= 0.005 and result["detected"], result["p_value"]
    assert (
        result["queries"] == PHOTOS * (KEYS + 1) and "USED" in done.out and "less that of the model" in flat(done.out)
    )
    again = audit.run("--replay", audit.out / "evidence.zip", *flags)
    assert again.code == 0 and "answers are the model's own" in flat(again.out), again.out + again.err
    # The score alone, and what is taken off, both are in the evidence: without the base it is another audit.
    refused(audit.run("--replay", audit.out / "evidence.zip", "--checkpoint", artist / "tuned"), "scored", "base")


def test_one_fine_tuned_on_others_pictures_is_not(artist, audit):
    done = audit.run("--checkpoint", artist / "innocent", "--base_model", audit.base, "--out", audit.out)
    assert done.code == 0, done.err
    result = result_of(audit.out)
    assert not result["detected"] and result["p_value"] > 0.05, result["p_value"]
    assert "There is no proof" in done.out and "innocent" not in result["sentences"]


def test_what_cannot_be_read_ends_in_one_line(artist, audit):
    refused(audit.run("--checkpoint", artist / "tuned", "--base_model", artist / "tuned"), "under audit itself")
    refused(audit.run("--checkpoint", artist / "tuned", "--base_model", artist / "nowhere"), "--base_model")
    refused(audit.run("--checkpoint", "http://localhost:1/v2/models/x", "--base_model", audit.base), "is for files")
    assert not audit.out.exists()
