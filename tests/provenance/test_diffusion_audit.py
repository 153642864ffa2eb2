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
    save_lora(trained(adapted(base), published, 300, 1), root / "lora" / "adapter_model.safetensors")
    return root


def adapted(base):
    """A base with a LoRA of rank 4 in each convolution and linear layer, which alone learns."""
    from peft import LoraConfig, inject_adapter_in_model

    kinds = torch.nn.Linear | torch.nn.Conv2d
    network, layers = copy.deepcopy(base), [name for name, one in base.named_modules() if isinstance(one, kinds)]
    return inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, target_modules=layers), network, "default")


def save_lora(network, path):
    from peft.utils import get_peft_model_state_dict

    state = get_peft_model_state_dict(network, adapter_name="default")
    layers = {name.rpartition(".lora_")[0] for name in state}
    matrices = {f"unet.{name}": [state[f"{name}.lora_{half}.weight"].detach() for half in "AB"] for name in layers}
    tiny.save_lora(path, matrices, "peft")


@pytest.fixture
def audit(artist, script, tmp_path):
    return auditor(artist, script, tmp_path)


@pytest.mark.parametrize("name", ["tuned", "lora"])
def test_a_fine_tuned_model_is_found(artist, audit, name):
    flags = ("--checkpoint", artist / name, "--base_model", audit.base)
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
    refused(
        audit.run("--replay", audit.out / "evidence.zip", "--checkpoint", artist / name),
        "scored" if name == "tuned" else "--base_model",
    )


def test_a_lora_of_a_latent_model_that_is_told_captions(artist, audit):
    base = tiny.stable_diffusion(audit.out.with_name("sd"))
    lora = tiny.save_lora(audit.out.with_name("style.safetensors"), tiny.matrices(), "kohya")
    flags = ("--checkpoint", lora, "--base_model", base, "--query_batch", 64)
    done = audit.run(*flags, "--caption", "a cat", "--out", audit.out)
    assert done.code == 0, done.err
    result = result_of(audit.out)
    assert result["queries"] == PHOTOS * (KEYS + 1) and result["model"]["adapter"]["layout"] == "kohya"
    again = audit.run("--replay", audit.out / "evidence.zip", *flags)
    assert again.code == 0 and "answers are the model's own" in flat(again.out), again.out + again.err


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
