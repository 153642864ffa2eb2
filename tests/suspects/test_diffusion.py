"""Tiny diffusion models of each family, opened from disk; their scores against a calculation by hand."""

import copy
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kit.errors import UserError
from suspects import adapters
from suspects.denoising import FRACTIONS, NOISES
from suspects.opened import open_model
from suspects.suspect import Captioned
from tests.suspects import tiny
from utils import key_generator

pytestmark = tiny.NEEDED
SEED = b"the audit's"
STEPS = 1000
SMALL = {"size": (tiny.SIDE, tiny.SIDE)}  # of a pipeline that does not say what size it was made for


def opened(path, **options):
    suspect = open_model(path, device="cpu", **options)
    suspect.settle(SEED)
    return suspect


def draws(shape):
    """[(fraction, noise)], as they are said to be drawn."""
    noise = key_generator(SEED, "denoising").standard_normal((len(FRACTIONS) * NOISES, *shape), dtype=np.float32)
    return list(zip(np.repeat(FRACTIONS, NOISES), torch.from_numpy(noise), strict=True))


def kept(step, start, end, scaled):
    """What is left of a picture's variance after the first `step` + 1 timesteps: the product of 1 - beta."""
    ends = (start**0.5, end**0.5) if scaled else (start, end)
    betas = np.linspace(*ends, STEPS, dtype=np.float64)
    return np.prod(1 - (betas**2 if scaled else betas)[: step + 1])


def by_hand(clean, denoise, prediction, start=1e-4, end=0.02, scaled=False):
    """The mean squared error over the draws, in float64 but for the network: (N,)."""
    total = np.zeros(len(clean))
    for fraction, noise in draws(clean.shape[1:]):
        noise = noise.double().expand_as(clean)
        if prediction == "flow":
            noisy, step, target = (1 - fraction) * clean + fraction * noise, fraction * STEPS, noise - clean
        else:
            step = round(fraction * STEPS)
            share = kept(step, start, end, scaled)
            noisy = share**0.5 * clean + (1 - share) ** 0.5 * noise
            target = {
                "epsilon": noise,
                "sample": clean,
                "v_prediction": share**0.5 * noise - (1 - share) ** 0.5 * clean,
            }[prediction]
        with torch.no_grad():
            said = denoise(noisy.float(), torch.tensor(step))
        total += ((said.double() - target) ** 2).mean(dim=(1, 2, 3)).numpy()
    return total / (len(FRACTIONS) * NOISES)


def scaled(images):
    return torch.from_numpy(images).double() / 127.5 - 1


# --- pixel space ---


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_score_of_a_pixel_model(tmp_path, prediction):
    unet, images = tiny.pixel_unet(), tiny.pictures(3)
    suspect = opened(tiny.pixel_pipeline(tmp_path / "pipe", unet, prediction))
    scores = suspect.ask(images).scores
    expected = by_hand(scaled(images), lambda noisy, step: unet(noisy, step).sample, prediction)
    np.testing.assert_allclose(scores[:, 0], expected, rtol=1e-4)
    assert scores.shape == (3, 1) and scores.dtype == np.float32 and not suspect.captioned
    assert suspect.preprocessing.size == (tiny.SIDE, tiny.SIDE) and "score" in suspect.describe()


def test_a_denoiser_that_says_nothing_has_the_error_of_its_target(tmp_path):
    unet, images = tiny.pixel_unet(), tiny.pictures(2)
    torch.nn.init.zeros_(unet.conv_out.weight)
    torch.nn.init.zeros_(unet.conv_out.bias)
    noise = np.mean([float((one.double() ** 2).mean()) for _, one in draws((3, tiny.SIDE, tiny.SIDE))])
    told = opened(tiny.pixel_pipeline(tmp_path / "noise", unet)).ask(images).scores[:, 0]
    np.testing.assert_allclose(told, noise, rtol=1e-5)
    told = opened(tiny.pixel_pipeline(tmp_path / "picture", unet, "sample")).ask(images).scores[:, 0]
    np.testing.assert_allclose(told, (scaled(images).numpy() ** 2).mean((1, 2, 3)), rtol=1e-5)


def test_a_score_hangs_on_the_picture_and_the_seed_alone(tmp_path):
    suspect, images = opened(tiny.pixel_pipeline(tmp_path / "pipe")), tiny.pictures(5)
    together = suspect.ask(images).scores
    alone = np.concatenate([suspect.ask(images[place : place + 1]).scores for place in (3, 0)])
    np.testing.assert_allclose(alone, together[[3, 0]], rtol=1e-5)
    suspect.settle(b"another audit's")
    assert (suspect.ask(images).scores != together).all()


def test_what_a_model_was_made_of_is_asked_at_the_same_draws(tmp_path):
    base, images = tiny.pixel_pipeline(tmp_path / "base"), tiny.pictures(2)
    tuned = tiny.pixel_pipeline(tmp_path / "tuned", tiny.pixel_unet(seed=1))
    suspect = opened(tuned, base=base)
    both = suspect.ask(images)
    np.testing.assert_array_equal(both.scores[:, 0], opened(tuned).ask(images).scores[:, 0])
    np.testing.assert_array_equal(both.scores[:, 1], opened(base).ask(images).scores[:, 0])
    np.testing.assert_allclose(both.memory, both.scores[:, 0].astype(float) - both.scores[:, 1])
    assert suspect.identity["base"]["sha256"] == opened(base).identity["sha256"] != suspect.identity["sha256"]


# --- latent space ---


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory):
    return tiny.stable_diffusion(tmp_path_factory.mktemp("sd") / "pipe")


def latents(images, vae):
    with torch.no_grad():
        found = vae.encode(scaled(images).float()).latent_dist.mean.double()
    return (found - (vae.config.shift_factor or 0)) * vae.config.scaling_factor


def words(encoder, caption, pad=53):
    """What a text encoder makes of a caption: start, letters by number, end, padding."""
    letters = [ord(letter) - ord("a") for letter in caption]
    tokens = [52, *(number + 26 if place == len(letters) - 1 else number for place, number in enumerate(letters)), 53]
    with torch.no_grad():
        return encoder(torch.tensor([tokens + [pad] * (16 - len(tokens))]), output_hidden_states=True)


@pytest.mark.parametrize("caption", ["", "cat"])
def test_the_score_of_a_latent_model(diffusion, caption):
    suspect, images = opened(diffusion), tiny.pictures(2)
    unet, encoder = tiny.latent_unet().eval(), tiny.text_encoder("CLIPTextModel", 3).eval()
    told = words(encoder, caption).last_hidden_state.expand(2, -1, -1)
    expected = by_hand(
        latents(images, tiny.vae().eval()),
        lambda noisy, step: unet(noisy, step, encoder_hidden_states=told).sample,
        "epsilon",
        0.00085,
        0.012,
        scaled=True,
    )
    scores = suspect.ask(Captioned(images, (caption,) * 2)).scores
    np.testing.assert_allclose(scores[:, 0], expected, rtol=1e-4)
    assert suspect.captioned and suspect.preprocessing.size == (tiny.SIDE, tiny.SIDE)
    other = suspect.ask(Captioned(images, (caption, "dog"))).scores
    np.testing.assert_allclose(other[0], scores[0], rtol=1e-5)
    assert other[1] != scores[1]


def test_the_score_of_a_model_with_two_text_encoders(tmp_path):
    suspect, images = opened(tiny.stable_diffusion_xl(tmp_path / "xl")), tiny.pictures(2)
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(tmp_path / "xl" / "unet").eval()
    first = words(tiny.text_encoder("CLIPTextModel", 3).eval(), "cat")
    second = words(tiny.text_encoder("CLIPTextModelWithProjection", 4).eval(), "cat")
    told = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1).expand(2, -1, -1)
    sizes = torch.tensor([[tiny.SIDE, tiny.SIDE, 0, 0, tiny.SIDE, tiny.SIDE]]).expand(2, -1).float()
    added = {"text_embeds": second.text_embeds.expand(2, -1), "time_ids": sizes}
    expected = by_hand(
        latents(images, tiny.vae().eval()),
        lambda noisy, step: unet(noisy, step, encoder_hidden_states=told, added_cond_kwargs=added).sample,
        "epsilon",
        0.00085,
        0.012,
        scaled=True,
    )
    np.testing.assert_allclose(suspect.ask(Captioned(images, ("cat",) * 2)).scores[:, 0], expected, rtol=1e-4)


def test_the_score_of_a_model_of_flow_matching(tmp_path):
    suspect, images = opened(tiny.stable_diffusion_3(tmp_path / "sd3")), tiny.pictures(2)
    network = tiny.transformer().eval()
    some = [words(tiny.text_encoder("CLIPTextModelWithProjection", seed).eval(), "cat") for seed in (3, 4)]
    told = torch.cat([one.hidden_states[-2] for one in some], -1)
    told = torch.cat([told, torch.zeros(1, 256, 32)], 1).expand(2, -1, -1)  # no third encoder: zeros in its place
    pooled = torch.cat([one.text_embeds for one in some], -1).expand(2, -1)
    made = tiny.vae(scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False).eval()
    expected = by_hand(
        latents(images, made),
        lambda noisy, step: (
            network(
                noisy, timestep=step.expand(2).float(), encoder_hidden_states=told, pooled_projections=pooled
            ).sample
        ),
        "flow",
    )
    np.testing.assert_allclose(suspect.ask(Captioned(images, ("cat",) * 2)).scores[:, 0], expected, rtol=1e-4)
    assert suspect.identity["score"]["target"] == "flow"


@pytest.mark.parametrize("guidance", [False, True])
def test_the_score_of_flux(tmp_path, guidance):
    from diffusers import FluxPipeline
    from transformers import T5TokenizerFast

    network, images = tiny.flux_transformer(guidance=guidance).eval(), tiny.pictures(2)
    suspect = opened(tiny.flux(tmp_path / "flux", network), overrides=SMALL)
    tokenizer = T5TokenizerFast.from_pretrained(tmp_path / "flux" / "tokenizer_2")
    ids = tokenizer("cat", padding="max_length", max_length=512, return_tensors="pt").input_ids
    with torch.no_grad():
        told = tiny.t5_encoder().eval()(ids)[0].expand(2, -1, -1)
    pooled = words(tiny.text_encoder("CLIPTextModel", 3).eval(), "cat").pooler_output.expand(2, -1)
    made = tiny.vae(scaling_factor=0.36, shift_factor=0.11, use_quant_conv=False, use_post_quant_conv=False).eval()
    side = tiny.SIDE // 2

    def denoise(noisy, step):
        said = network(
            FluxPipeline._pack_latents(noisy, 2, 4, side, side),
            timestep=step.expand(2).float() / STEPS,
            encoder_hidden_states=told,
            pooled_projections=pooled,
            img_ids=FluxPipeline._prepare_latent_image_ids(2, side // 2, side // 2, "cpu", torch.float32),
            txt_ids=torch.zeros(512, 3),
            guidance=torch.ones(2) if guidance else None,
        ).sample
        return FluxPipeline._unpack_latents(said, tiny.SIDE, tiny.SIDE, 2)

    expected = by_hand(latents(images, made), denoise, "flow")
    np.testing.assert_allclose(suspect.ask(Captioned(images, ("cat",) * 2)).scores[:, 0], expected, rtol=1e-5)
    assert suspect.captioned and suspect.identity["pipeline"] == "FluxPipeline"


# --- LoRAs ---


def test_a_lora_of_flux(tmp_path):
    place = "transformer_blocks.0.attn.to_q"
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(2, 16, generator=generator), torch.randn(16, 2, generator=generator)
    base, images = tiny.flux(tmp_path / "flux"), Captioned(tiny.pictures(2), ("cat",) * 2)
    file = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    tiny.save_lora(file, {f"transformer.{place}": matrices}, "diffusers")
    merged = tiny.flux_transformer()
    merged.get_submodule(place).weight.data += 4 / 2 * matrices[1] @ matrices[0]
    scores = opened(file.parent, base=base, overrides=SMALL).ask(images).scores
    expected = opened(tiny.flux(tmp_path / "merged", merged), base=base, overrides=SMALL).ask(images).scores
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


@pytest.mark.parametrize("alone", [False, True], ids=["one", "one each"])
def test_a_lora_of_flux_by_kohya(tmp_path, alone):
    """Queries, keys and values in one piece; rank 6, alpha 2: a scale that is shared out between the matrices."""
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(6, 16, generator=generator), torch.randn(48, 6, generator=generator)
    if alone:
        up *= torch.block_diag(*[torch.ones(16, 2)] * 3)
    file = tmp_path / "style.safetensors"
    layer = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up, f"{layer}.alpha": torch.tensor(2.0)}
    save_file(tensors, file, metadata={"ss_base_model_version": "flux1"})
    base, images = tiny.flux(tmp_path / "flux"), Captioned(tiny.pictures(2), ("cat",) * 2)
    merged = tiny.flux_transformer()
    for name, change in zip(("to_q", "to_k", "to_v"), (2 / 6 * up @ down).chunk(3), strict=True):
        merged.get_submodule(f"transformer_blocks.0.attn.{name}").weight.data += change
    suspect = opened(file, base=base, overrides=SMALL)
    expected = opened(tiny.flux(tmp_path / "merged", merged), base=base, overrides=SMALL).ask(images).scores
    np.testing.assert_allclose(suspect.ask(images).scores, expected, rtol=1e-5)
    assert "kohya layout, rank 6" in suspect.describe()
    save_file(tensors | {f"{layer}.lora_up.weight": up[:32]}, file)
    with pytest.raises(UserError, match="does not fit --base_model"):
        opened(file, base=base, overrides=SMALL)


def test_flux_has_a_perceptron_in_the_same_piece():
    """As in its blocks of one stream, whose widths diffusers knows only from the published model."""
    up = torch.randn(7 * 8, 2, generator=torch.Generator().manual_seed(0))
    pieces = up.split([8, 8, 8, 32])
    loaded = {adapters._digest(piece) for piece in pieces}
    assert adapters._is_there(up, loaded, torch.float32)
    assert not adapters._is_there(up, loaded - {adapters._digest(pieces[3])}, torch.float32)


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_a_lora_is_its_product_on_top_of_the_base(diffusion, tmp_path, layout):
    layers, images = tiny.matrices(), Captioned(tiny.pictures(2), ("cat",) * 2)
    file = tiny.save_lora(tmp_path / "style.safetensors", layers, layout, metadata={"ss_sd_model_name": "tiny\nbase"})
    suspect = opened(file, base=diffusion)
    from diffusers import StableDiffusionPipeline

    with warnings.catch_warnings(action="ignore"):
        whole = StableDiffusionPipeline.from_pretrained(diffusion, safety_checker=None)
    for name, (down, up) in layers.items():
        part, _, inner = name.partition(".")
        getattr(whole, part).get_submodule(inner).weight.data += 4 / 2 * up @ down
    whole.save_pretrained(tmp_path / "merged")
    scores = suspect.ask(images).scores
    np.testing.assert_allclose(scores[:, 0], opened(tmp_path / "merged").ask(images).scores[:, 0], rtol=1e-5)
    np.testing.assert_allclose(scores[:, 1], opened(diffusion).ask(images).scores[:, 0], rtol=1e-6)
    assert np.abs(scores[:, 0] - scores[:, 1]).min() > 1e-4
    assert (
        f"{layout} layout, rank 2, {2 * len(layers)} tensors" in suspect.describe()
        and "tiny base" in suspect.describe()
    )
    assert suspect.identity["base"]["sha256"] == opened(diffusion).identity["sha256"]
    np.testing.assert_array_equal(suspect.ask(images).scores, scores), "switched back on"


@pytest.mark.parametrize("layout", ["peft", "diffusers"])
def test_a_lora_in_pixel_space(tmp_path, layout):
    place, images = "down_blocks.1.attentions.0.to_q", tiny.pictures(2)
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(3, 32, generator=generator), torch.randn(32, 3, generator=generator)
    base = tiny.pixel_pipeline(tmp_path / "base")
    file = tiny.save_lora(tmp_path / "lora" / "adapter_model.safetensors", {f"unet.{place}": (down, up)}, layout)
    merged = copy.deepcopy(tiny.pixel_unet())
    merged.get_submodule(place).weight.data += 4 / 3 * up @ down
    scores = opened(file.parent, base=base).ask(images).scores
    expected = opened(tiny.pixel_pipeline(tmp_path / "merged", merged), base=base).ask(images).scores
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


@pytest.mark.parametrize("metadata", [False, True], ids=["older", "with metadata"])
def test_a_lora_as_the_scripts_of_diffusers_save_it(diffusion, tmp_path, metadata):
    """train_text_to_image_lora.py and train_dreambooth_lora.py end with these calls."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    with warnings.catch_warnings(action="ignore"):
        whole = StableDiffusionPipeline.from_pretrained(diffusion, safety_checker=None)
    generator = torch.Generator().manual_seed(0)
    for part, layers in (("unet", "to_k to_q to_v to_out.0"), ("text_encoder", "q_proj k_proj v_proj out_proj")):
        getattr(whole, part).add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=layers.split()))
        for name, value in getattr(whole, part).named_parameters():
            if "lora_" in name:
                value.data = torch.randn(value.shape, generator=generator) / 4
    state = {
        f"{part}_lora_layers": convert_state_dict_to_diffusers(get_peft_model_state_dict(getattr(whole, part)))
        for part in ("unet", "text_encoder")
    }
    if metadata:
        from diffusers.training_utils import _collate_lora_metadata

        state |= _collate_lora_metadata({part: getattr(whole, part) for part in ("unet", "text_encoder")})
    StableDiffusionPipeline.save_lora_weights(tmp_path / "lora", safe_serialization=True, **state)
    changes = {
        (part, name): module.get_delta_weight("default").detach()
        for part in ("unet", "text_encoder")
        for name, module in getattr(whole, part).named_modules()
        if hasattr(module, "get_delta_weight")
    }
    with warnings.catch_warnings(action="ignore"):
        whole = StableDiffusionPipeline.from_pretrained(diffusion, safety_checker=None)
    for (part, name), change in changes.items():
        getattr(whole, part).get_submodule(name).weight.data += change
    whole.save_pretrained(tmp_path / "merged")
    images = Captioned(tiny.pictures(2), ("cat",) * 2)
    scores = opened(tmp_path / "lora", base=diffusion).ask(images).scores
    expected = opened(tmp_path / "merged").ask(images).scores[:, 0]
    np.testing.assert_allclose(scores[:, 0], expected, rtol=1e-4)
    assert np.abs(scores[:, 0] - scores[:, 1]).min() > 1e-4
