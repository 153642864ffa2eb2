"""Small generative models for studies/generative.py: pre-trained on public pictures, fine-tuned on people's, and saved
in the libraries' own layout. They are no Stable Diffusion: a pixel-space UNet of 1.8 M parameters for 32 px.

Fine-tuning is that of the usual trainers: AdamW at a constant rate, small batches, random flips, no augmentation else;
LoRA: of every convolution and linear layer. Nothing in here knows of users, keys or held-out pictures.

Public: Tuning, TUNINGS, make_base, fine_tune, adapted, build_unet.
"""

import json
import shutil
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from safetensors.torch import save_file
from torch.nn.functional import mse_loss

import utils
from kit.progress import Progress
from suspects.pipelines import library

CHANNELS, GROUPS, HEAD = (32, 64, 96), 8, 32
STEPS = 1000  # of the noise schedule, that of Ho et al. 2020
RANK = 8


@dataclass(frozen=True)
class Tuning:
    """How a base is fine-tuned. rank: of the LoRA, None for all weights; rate: AdamW's; batch: pictures a step."""

    rank: int | None
    rate: float
    batch: int = 4


TUNINGS = {"full": Tuning(None, 1e-4), "lora": Tuning(RANK, 1e-3)}


def build_unet(seed):
    """A new UNet2DModel for pictures of 32 px."""
    diffusers = library("diffusers")
    plain = len(CHANNELS) - 1
    with utils.seeded("unet", seed):
        return diffusers.UNet2DModel(
            sample_size=32,
            block_out_channels=CHANNELS,
            layers_per_block=1,
            norm_num_groups=GROUPS,
            attention_head_dim=HEAD,
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
        )


def _schedule():
    return library("diffusers").DDPMScheduler(num_train_timesteps=STEPS)


@contextmanager
def _whole(folder):
    """A new folder, which gets its name only when it is whole."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    part.rename(folder)


def _save(network, folder):
    with _whole(folder) as path:
        library("diffusers").DDPMPipeline(network, _schedule()).save_pretrained(path)


def _pass(network, optimizer, images, batch, draws, precision):
    """One pass over images, uint8 (N, 3, 32, 32), in random order and randomly flipped; the mean error."""
    schedule, total = _schedule(), 0.0
    for part in torch.randperm(len(images), generator=draws).split(batch):
        clean = images[part].float() / 127.5 - 1
        flipped = torch.rand(len(part), generator=draws) < 0.5
        clean[flipped] = clean[flipped].flip(-1)
        noise = torch.randn(clean.shape, generator=draws)
        steps = torch.randint(0, STEPS, (len(part),), generator=draws)
        with utils.autocast(clean.device, precision):
            error = mse_loss(network(schedule.add_noise(clean, noise, steps), steps).sample.float(), noise)
        error.backward()
        optimizer.step()
        optimizer.zero_grad()
        total += error.item() * len(part)
    return total / len(images)


def _trained(network, images, passes, rate, batch, seed, words):
    """Train; after each number of passes in `passes` the number is yielded."""
    device = torch.device("cpu")
    precision, draws = utils.choose_precision("auto", device), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([value for value in network.parameters() if value.requires_grad], rate)
    network.train()
    for number in Progress(range(1, max(passes) + 1), words):
        _pass(network, optimizer, images, batch, draws, precision)
        if number in passes:
            network.eval()
            yield number
            network.train()


def make_base(folder, images, epochs, seed, batch=64, rate=4e-4):
    """Pre-train a UNet on images, uint8 (N, 3, 32, 32), and save it as a pipeline's folder, unless it is there."""
    if folder.exists():
        return
    network = build_unet(seed)
    for _ in _trained(network, images, (epochs,), rate, batch, seed, "pre-training"):
        _save(network, folder)


def adapted(network, rank):
    """A LoRA in every convolution and linear layer of a network, which is frozen; returns peft's configuration."""
    peft = library("peft")
    layers = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)]
    network.requires_grad_(False)
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=layers)
    peft.inject_adapter_in_model(config, network, "default")
    return config


def _save_lora(network, config, folder):
    """As peft lays it out: adapter_model.safetensors and adapter_config.json."""
    state = library("peft").get_peft_model_state_dict(network, adapter_name="default")
    with _whole(folder) as path:
        tensors = {f"base_model.model.{name}": value.detach().contiguous() for name, value in state.items()}
        save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
        says = {"peft_type": "LORA", "r": config.r, "lora_alpha": config.lora_alpha}
        (path / "adapter_config.json").write_text(json.dumps(says), encoding="utf-8")


def fine_tune(base, folder, images, tuning, passes, seed):
    """Fine-tune the base in a folder on images, uint8 (N, 3, 32, 32), and save the model after each number of passes
    over them, as folder/NUMBER; returns these folders by the number. What is there is kept."""
    wanted = {number: folder / f"{number}" for number in passes}
    if all(path.exists() for path in wanted.values()):
        return wanted
    folder.mkdir(parents=True, exist_ok=True)
    network = library("diffusers").UNet2DModel.from_pretrained(base / "unet", use_safetensors=True)
    with utils.seeded("lora", seed) if tuning.rank else nullcontext():
        config = adapted(network, tuning.rank) if tuning.rank else None
    for number in _trained(network, images, set(passes), tuning.rate, tuning.batch, seed, folder.name):
        if not wanted[number].exists():
            if config:
                _save_lora(network, config, wanted[number])
            else:
                _save(network, wanted[number])
    return wanted
