"""LoRAs by the names that trainers in use give their tensors: what is asked is the base plus all of their products."""

import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from suspects.suspect import Captioned
from tests.suspects import tiny
from tests.suspects.test_diffusion import opened

pytestmark = tiny.NEEDED
ATTENTION = "transformer_blocks.0.attn1"
WORDS = "encoder.layers.0.self_attn"
# {module of the pipeline: its name in the file}. Stable Diffusion XL, by kohya, is named as its authors' code has it.
KOHYA_XL = {
    f"unet.down_blocks.0.attentions.0.{ATTENTION}.to_q": "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q",
    f"unet.mid_block.attentions.0.{ATTENTION}.to_k": "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_k",
    f"unet.up_blocks.1.attentions.1.{ATTENTION}.to_v": "lora_unet_output_blocks_3_1_transformer_blocks_0_attn1_to_v",
    **{
        f"text_encoder{second}.{WORDS}.{part}_proj": f"lora_te{number}_text_model_{WORDS.replace('.', '_')}_{part}_proj"
        for number, second in ((1, ""), (2, "_2"))
        for part in ("q", "out")
    },
}
LYCORIS = {  # with convolutions, "LoCon"
    "unet.conv_in": "lora_unet_conv_in",
    "unet.down_blocks.0.resnets.0.conv1": "lora_unet_down_blocks_0_resnets_0_conv1",
    "unet.up_blocks.0.upsamplers.0.conv": "lora_unet_up_blocks_0_upsamplers_0_conv",
    f"unet.down_blocks.0.attentions.0.{ATTENTION}.to_out.0": (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    ),
}
DIFFUSERS_0_21 = {
    f"unet.down_blocks.0.attentions.0.{ATTENTION}.to_q": (
        f"unet.down_blocks.0.attentions.0.{ATTENTION}.processor.to_q_lora"
    ),
    f"unet.up_blocks.1.attentions.0.{ATTENTION}.to_out.0": (
        f"unet.up_blocks.1.attentions.0.{ATTENTION}.processor.to_out_lora"
    ),
    f"text_encoder.{WORDS}.q_proj": f"text_encoder.text_model.{WORDS}.q_proj.lora_linear_layer",
}


def module_of(pipeline, name):
    part, _, inner = name.partition(".")
    return next(module for path, module in getattr(pipeline, part).named_modules() if path.endswith(inner))


def matrices(weight, generator):
    """(A, B, their product) of rank 2 for a layer's weights."""
    down = torch.randn(2, *weight.shape[1:], generator=generator)
    up = torch.randn(len(weight), 2, *[1] * (weight.ndim - 2), generator=generator)
    return down, up, (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)


@pytest.mark.parametrize(
    ("make", "names", "parts", "alpha"),
    [
        (tiny.stable_diffusion_xl, KOHYA_XL, ("lora_down", "lora_up"), 1.0),
        (tiny.stable_diffusion, LYCORIS, ("lora_down", "lora_up"), 1.0),
        (tiny.stable_diffusion, DIFFUSERS_0_21, ("down", "up"), None),
    ],
    ids=["kohya, XL", "LyCORIS, convolutions", "diffusers 0.21"],
)
def test_a_lora_as_trainers_name_it(tmp_path, make, names, parts, alpha):
    from diffusers import DiffusionPipeline

    base, generator, tensors = make(tmp_path / "base"), torch.Generator().manual_seed(0), {}
    with warnings.catch_warnings(action="ignore"):
        whole = DiffusionPipeline.from_pretrained(base)
    for module, name in names.items():
        weight = module_of(whole, module).weight
        down, up, product = matrices(weight, generator)
        tensors |= {f"{name}.{parts[0]}.weight": down, f"{name}.{parts[1]}.weight": up}
        tensors |= {f"{name}.alpha": torch.tensor(alpha)} if alpha else {}
        weight.data += (alpha or 2) / 2 * product
    whole.save_pretrained(tmp_path / "merged")
    save_file(tensors, tmp_path / "lora.safetensors")
    images = Captioned(tiny.pictures(2), ("cat",) * 2)
    scores = opened(tmp_path / "lora.safetensors", base=base).ask(images).scores
    np.testing.assert_allclose(scores[:, 0], opened(tmp_path / "merged").ask(images).scores[:, 0], rtol=1e-4)
    assert np.abs(scores[:, 0] / scores[:, 1] - 1).min() > 1e-3
