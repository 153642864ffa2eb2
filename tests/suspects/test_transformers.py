"""Diffusion transformers that say variances, too: PixArt and DiT, against a calculation by hand."""

import numpy as np
import pytest
import torch

from kit.errors import UserError
from suspects.suspect import Captioned
from tests.suspects import tiny
from tests.suspects.test_diffusion import by_hand, latents, opened
from tests.suspects.test_diffusion_refusals import changed

pytestmark = tiny.NEEDED


@pytest.fixture
def images():
    return Captioned(tiny.pictures(2), ("cat",) * 2)


@pytest.mark.parametrize(
    ("kind", "tokens", "conditions"), [("PixArtAlphaPipeline", 120, True), ("PixArtSigmaPipeline", 300, False)]
)
def test_the_score_of_pixart(tmp_path, images, kind, tokens, conditions):
    from transformers import T5TokenizerFast

    network = tiny.pixart_transformer(conditions=conditions).eval()
    suspect = opened(tiny.pixart(tmp_path / "pixart", network, kind))
    tokenizer = T5TokenizerFast.from_pretrained(tmp_path / "pixart" / "tokenizer")
    asked = tokenizer(["cat"] * 2, padding="max_length", max_length=tokens, return_tensors="pt")
    mask = asked.attention_mask
    assert 0 < mask.sum() < mask.numel() / 10
    with torch.no_grad():
        told = tiny.t5_encoder().eval()(asked.input_ids, attention_mask=mask)[0]
    sizes = {"resolution": torch.full((2, 2), float(tiny.SIDE)), "aspect_ratio": torch.ones(2, 1)}

    def denoise(noisy, step):
        words = {"encoder_hidden_states": told, "encoder_attention_mask": mask}
        return network(noisy, timestep=step.expand(2), added_cond_kwargs=sizes, **words).sample.chunk(2, dim=1)[0]

    expected = by_hand(latents(images.images, tiny.vae().eval()), denoise, "epsilon")
    np.testing.assert_allclose(suspect.ask(images).scores[:, 0], expected, rtol=1e-5)
    other = suspect.ask(Captioned(images.images, ("dog",) * 2)).scores[:, 0]
    assert suspect.captioned and np.abs(other - expected).min() > 1e-7


def test_the_score_of_a_dit(tmp_path, images):
    network = tiny.dit_transformer(classes=10).eval()
    suspect = opened(tiny.dit(tmp_path / "dit", network))

    def denoise(noisy, step):
        nobody = torch.tensor([10, 10])  # the one behind the ten classes
        return network(noisy, timestep=step.expand(2), class_labels=nobody).sample[:, :4]

    expected = by_hand(latents(images.images, tiny.vae().eval()), denoise, "epsilon")
    np.testing.assert_allclose(suspect.ask(images).scores[:, 0], expected, rtol=1e-5)
    assert not suspect.captioned and suspect.identity["pipeline"] == "DiTPipeline"


@pytest.mark.parametrize("make", [tiny.pixart, tiny.dit])
def test_the_first_name_of_their_transformers(tmp_path, images, make):
    scores = opened(make(tmp_path / "pipe")).ask(images).scores
    changed(
        tmp_path / "pipe" / "model_index.json", lambda index: index["transformer"].__setitem__(1, "Transformer2DModel")
    )
    config = tmp_path / "pipe" / "transformer" / "config.json"
    changed(config, lambda settings: settings.update(_class_name="Transformer2DModel", num_vector_embeds=None))
    np.testing.assert_array_equal(opened(tmp_path / "pipe").ask(images).scores, scores)


@pytest.mark.parametrize("make", [tiny.pixart, tiny.dit])
def test_a_lora_of_theirs(tmp_path, images, make):
    place, generator = "transformer_blocks.0.attn1.to_q", torch.Generator().manual_seed(0)
    network = tiny.pixart_transformer() if make is tiny.pixart else tiny.dit_transformer()
    weight = network.get_submodule(place).weight
    down, up = (torch.randn(shape, generator=generator) for shape in ((2, weight.shape[1]), (len(weight), 2)))
    base = make(tmp_path / "base")
    weight.data += 4 / 2 * up @ down
    merged = opened(make(tmp_path / "merged", network), base=base).ask(images).scores
    for layout in ("peft", "diffusers"):
        file = tmp_path / layout / "adapter_model.safetensors"
        tiny.save_lora(file, {f"transformer.{place}": (down, up)}, layout)
        np.testing.assert_allclose(opened(file.parent, base=base).ask(images).scores, merged, rtol=1e-5)
    file = tiny.save_lora(tmp_path / "kohya.safetensors", {f"unet.{place}": (down, up)}, "kohya")
    with pytest.raises(UserError, match="kohya"):
        opened(file, base=base)


def test_a_dit_takes_squares(tmp_path):
    with pytest.raises(UserError, match="square"):
        opened(tiny.dit(tmp_path / "dit"), overrides={"size": (tiny.SIDE, 2 * tiny.SIDE)})
