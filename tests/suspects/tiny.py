"""Diffusion models of a few thousand parameters, made and saved by the libraries' own classes, without a network."""

import json
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

LIBRARIES = ("diffusers", "transformers", "peft", "accelerate")
NEEDED = pytest.mark.skipif(not all(map(find_spec, LIBRARIES)), reason=f"needs {' '.join(LIBRARIES)}")
SIDE = 16  # pixels of a picture
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}


def pictures(count, seed=0, side=SIDE):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), dtype=np.uint8)


def quiet(make, *arguments, **options):
    with warnings.catch_warnings(action="ignore"):
        return make(*arguments, **options)


def seeded(make, seed=0, **options):
    torch.manual_seed(seed)
    return make(**options)


def pixel_unet(seed=0, **options):
    from diffusers import UNet2DModel

    settings = {"sample_size": SIDE, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}
    settings |= {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "attention_head_dim": 8}
    settings |= {"up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return seeded(UNet2DModel, seed, **(settings | options))


def pixel_pipeline(folder, unet=None, prediction="epsilon", flow=False):
    from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler() if flow else DDPMScheduler(prediction_type=prediction)
    DDPMPipeline(unet=unet or pixel_unet(), scheduler=scheduler).save_pretrained(folder)
    return folder


def tokenizer(folder):
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def text_encoder(kind, seed):
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    config = transformers.CLIPTextConfig(vocab_size=54, max_position_embeddings=16, projection_dim=16, **sizes, **ends)
    return seeded(lambda: getattr(transformers, kind)(config), seed)


def vae(seed=1, **options):
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 8), "latent_channels": 4, "norm_num_groups": 4, "sample_size": SIDE}
    return seeded(AutoencoderKL, seed, **(blocks | sizes | options))


def latent_unet(seed=2, **options):
    from diffusers import UNet2DConditionModel

    settings = {"sample_size": SIDE // 2, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    settings |= {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "cross_attention_dim": 16}
    settings |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 4}
    return seeded(UNet2DConditionModel, seed, in_channels=4, out_channels=4, **(settings | options))


def stable_diffusion(folder, unet=None, prediction="epsilon"):
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    whole = quiet(
        StableDiffusionPipeline,
        vae=vae(),
        text_encoder=text_encoder("CLIPTextModel", 3),
        tokenizer=tokenizer(Path(f"{folder}-words")),
        unet=unet or latent_unet(),
        scheduler=DDIMScheduler(prediction_type=prediction, steps_offset=1, **NOISE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    whole.save_pretrained(folder)
    return folder


def stable_diffusion_xl(folder):
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    more = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    unet = latent_unet(cross_attention_dim=32, projection_class_embeddings_input_dim=16 + 6 * 8, **more)
    words = tokenizer(Path(f"{folder}-words"))
    quiet(
        StableDiffusionXLPipeline,
        vae=vae(),
        text_encoder=text_encoder("CLIPTextModel", 3),
        text_encoder_2=text_encoder("CLIPTextModelWithProjection", 4),
        tokenizer=words,
        tokenizer_2=words,
        unet=unet,
        scheduler=EulerDiscreteScheduler(**{name: NOISE[name] for name in list(NOISE)[:3]}),
    ).save_pretrained(folder)
    return folder


def transformer(seed=5):
    from diffusers import SD3Transformer2DModel

    sizes = {"attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16, "num_layers": 1}
    widths = {"joint_attention_dim": 32, "pooled_projection_dim": 32, "in_channels": 4, "out_channels": 4}
    return seeded(SD3Transformer2DModel, seed, sample_size=SIDE // 2, pos_embed_max_size=8, **sizes, **widths)


def stable_diffusion_3(folder):
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    words = tokenizer(Path(f"{folder}-words"))
    quiet(
        StableDiffusion3Pipeline,
        transformer=transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=text_encoder("CLIPTextModelWithProjection", 3),
        text_encoder_2=text_encoder("CLIPTextModelWithProjection", 4),
        text_encoder_3=None,
        tokenizer=words,
        tokenizer_2=words,
        tokenizer_3=None,
    ).save_pretrained(folder)
    return folder


def t5_tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -1.0)]
    pieces += [(chr(code), -2.0) for code in range(ord("a"), ord("z") + 1)]
    ends = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "extra_ids": 0}
    return T5TokenizerFast(tokenizer_object=Tokenizer(models.Unigram(pieces, unk_id=2)), model_max_length=16, **ends)


def t5_encoder(seed=6):
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 30}
    return seeded(lambda: T5EncoderModel(T5Config(**sizes)), seed)


def flux_transformer(seed=7, guidance=False):
    from diffusers import FluxTransformer2DModel

    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}
    widths = {"joint_attention_dim": 32, "pooled_projection_dim": 16, "axes_dims_rope": (2, 2, 4), "in_channels": 16}
    return seeded(FluxTransformer2DModel, seed, guidance_embeds=guidance, **sizes, **widths)


def flux(folder, network=None):
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    quiet(
        FluxPipeline,
        transformer=network or flux_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(scaling_factor=0.36, shift_factor=0.11, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=text_encoder("CLIPTextModel", 3),
        text_encoder_2=t5_encoder(),
        tokenizer=tokenizer(Path(f"{folder}-words")),
        tokenizer_2=t5_tokenizer(),
    ).save_pretrained(folder)
    return folder


def pixart_transformer(seed=8, conditions=True):
    from diffusers import PixArtTransformer2DModel

    sizes = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 3, "sample_size": SIDE // 2}
    widths = {"cross_attention_dim": 24, "caption_channels": 32, "in_channels": 4, "out_channels": 8}
    return seeded(PixArtTransformer2DModel, seed, use_additional_conditions=conditions, **sizes, **widths)


def pixart(folder, network=None, kind="PixArtAlphaPipeline"):
    import diffusers

    quiet(
        getattr(diffusers, kind),
        transformer=network or pixart_transformer(),
        vae=vae(),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_schedule="linear"),
    ).save_pretrained(folder)
    return folder


def dit_transformer(seed=9, classes=10):
    from diffusers import DiTTransformer2DModel

    sizes = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2, "sample_size": SIDE // 2}
    return seeded(DiTTransformer2DModel, seed, num_embeds_ada_norm=classes, in_channels=4, out_channels=8, **sizes)


def dit(folder, network=None):
    from diffusers import DDIMScheduler, DiTPipeline

    quiet(DiTPipeline, transformer=network or dit_transformer(), vae=vae(), scheduler=DDIMScheduler()).save_pretrained(
        folder
    )
    return folder


# --- LoRAs ---

UNET = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT = [f"encoder.layers.0.self_attn.{name}_proj" for name in ("q", "k", "v", "out")]


def matrices(seed=0, rank=2, unet=8, text=16):
    """{module: (A, B)} of one layer of the tiny UNet and four of its text encoder."""
    rng = torch.Generator().manual_seed(seed)
    sides = {f"unet.{UNET}": unet, **{f"text_encoder.{name}": text for name in TEXT if text}}
    return {
        name: (torch.randn(rank, side, generator=rng), torch.randn(side, rank, generator=rng))
        for name, side in sides.items()
    }


def save_lora(path, layers, layout, alpha=4.0, metadata=None):
    """A LoRA as one of three programs writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors, says = {}, dict(metadata or {})
    for name, (down, up) in layers.items():
        part, _, inner = name.partition(".")
        if layout == "kohya":
            inner = inner if part == "unet" else f"text_model.{inner}"
            start = f"lora_{'unet' if part == 'unet' else 'te'}_{inner.replace('.', '_')}"
            named = {f"{start}.lora_down.weight": down, f"{start}.lora_up.weight": up}
            named[f"{start}.alpha"] = torch.tensor(alpha)
        elif layout == "diffusers":
            named = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        else:
            start = f"base_model.model.{inner}"
            named = {f"{start}.lora_A.weight": down, f"{start}.lora_B.weight": up}
        tensors |= {key: value.contiguous() for key, value in named.items()}
    rank = len(next(iter(layers.values()))[0])
    if layout == "diffusers":
        parts = {name.partition(".")[0] for name in layers}
        inner = {part: [name.partition(".")[2] for name in layers if name.startswith(f"{part}.")] for part in parts}
        config = {part: {"r": rank, "lora_alpha": alpha, "target_modules": inner[part]} for part in parts}
        flat = {f"{part}.{key}": value for part, settings in config.items() for key, value in settings.items()}
        says["lora_adapter_metadata"] = json.dumps(flat)
    if layout == "peft":
        path.with_name("adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": alpha}))
    save_file(tensors, path, metadata={"format": "pt", **says})
    return path
