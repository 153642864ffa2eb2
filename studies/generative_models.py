"""Small models of the kinds that artists meet, for studies/generative.py: pre-trained on public pictures, fine-tuned on
people's, and saved in the libraries' own layout. They are no Stable Diffusion and no CLIP of OpenAI's:

    unet    a pixel-space UNet of 1.8 M parameters for 32 px, by diffusers; in full, or as a LoRA by peft
    clip    a CLIP of 1.5 M parameters for 32 px, by transformers; in full

Fine-tuning is that of the usual trainers: AdamW at a constant rate, small batches, random flips, no augmentation else;
a LoRA is of every convolution and linear layer. Nothing in here knows of users, keys or held-out pictures.

Public: Tuning, Unet, Clip, FAMILIES, make_base, fine_tune.
"""

import json
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy, mse_loss

import utils
from kit import files
from kit.progress import Progress
from studies.common import whole
from suspects.pipelines import library

RANK = 8
KEPT_EVERY = 20


@dataclass(frozen=True)
class Tuning:
    """How a base is fine-tuned. rank: of the LoRA, None for all weights; rate: AdamW's; batch: pictures a step."""

    rank: int | None
    rate: float
    batch: int


class Unet:
    """Diffusion in pixel space: predicts the noise, with the schedule of Ho et al. 2020."""

    NAME = "unet"
    TUNINGS: ClassVar = {"full": Tuning(None, 1e-4, 4), "lora": Tuning(RANK, 1e-3, 4)}
    BASE = Tuning(None, 4e-4, 64)
    CHANNELS, GROUPS, HEAD, STEPS = (32, 64, 96), 8, 32, 1000

    def new(self):
        """A network with random weights."""
        plain = len(self.CHANNELS) - 1
        return library("diffusers").UNet2DModel(
            sample_size=32,
            block_out_channels=self.CHANNELS,
            layers_per_block=1,
            norm_num_groups=self.GROUPS,
            attention_head_dim=self.HEAD,
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
        )

    def load(self, folder):
        """The network in a folder of `save`."""
        return library("diffusers").UNet2DModel.from_pretrained(folder / "unet", use_safetensors=True)

    def save(self, network, folder):
        """Write a pipeline's folder."""
        library("diffusers").DDPMPipeline(network, self._schedule).save_pretrained(folder)

    @cached_property
    def _schedule(self):
        return library("diffusers").DDPMScheduler(num_train_timesteps=self.STEPS)

    def loss(self, network, images, captions, draws, precision):
        """What a step makes smaller. images: uint8 (n, 3, 32, 32); captions: n texts, which it is not told; draws: a
        torch Generator, of the CPU, so that every device is given the same noise."""
        clean = images.to(network.device).float() / 127.5 - 1
        noise = torch.randn(clean.shape, generator=draws).to(clean.device)
        steps = torch.randint(0, self.STEPS, (len(clean),), generator=draws).to(clean.device)
        with utils.autocast(clean.device, precision):
            return mse_loss(network(self._schedule.add_noise(clean, noise, steps), steps).sample.float(), noise)


class Clip:
    """Pictures and captions in one space, by contrast. Pictures of one caption in a step count as right for it."""

    NAME = "clip"
    TUNINGS: ClassVar = {"full": Tuning(None, 1e-4, 25)}
    BASE = Tuning(None, 5e-4, 128)
    WIDTH, LAYERS, HEADS, PATCH, LONGEST = 128, 4, 4, 4, 40

    def new(self):
        """A network with random weights."""
        transformers = library("transformers")
        sizes = {"hidden_size": self.WIDTH, "intermediate_size": 4 * self.WIDTH, "num_attention_heads": self.HEADS}
        ends = {"bos_token_id": 54, "eos_token_id": 55, "pad_token_id": 55}
        text = {**sizes, **ends, "num_hidden_layers": 2, "vocab_size": 56, "max_position_embeddings": self.LONGEST}
        vision = {**sizes, "num_hidden_layers": self.LAYERS, "image_size": 32, "patch_size": self.PATCH}
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=self.WIDTH)
        return transformers.CLIPModel(config)

    def load(self, folder):
        """The network in a folder of `save`."""
        return library("transformers").CLIPModel.from_pretrained(folder, use_safetensors=True)

    def save(self, network, folder):
        """Write a folder of transformers', with its tokenizer (of letters) and how pictures become its input."""
        network.save_pretrained(folder)
        self._tokenizer(folder).save_pretrained(folder)
        library("transformers").CLIPImageProcessor(
            size={"shortest_edge": 32},
            crop_size={"height": 32, "width": 32},
            image_mean=[0.5] * 3,
            image_std=[0.25] * 3,
        ).save_pretrained(folder)

    def _tokenizer(self, folder):
        letters = [*map(chr, range(ord("a"), ord("z") + 1)), "-"]
        words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
        (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}), "utf-8")
        (folder / "merges.txt").write_text("#version: 0.2\n", "utf-8")
        return library("transformers").CLIPTokenizer(
            str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=self.LONGEST
        )

    def loss(self, network, images, captions, draws, precision):
        """What a step makes smaller. images: uint8 (n, 3, 32, 32); captions: n texts; draws: not used."""
        kinds, device = list(dict.fromkeys(captions)), network.device
        right = torch.tensor([kinds.index(caption) for caption in captions], device=device)
        tokens = [[54, *map(self._letter, _ends(caption)), 55][: self.LONGEST] for caption in kinds]
        longest = max(map(len, tokens))
        ids = torch.tensor([one + [55] * (longest - len(one)) for one in tokens], device=device)
        there = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in tokens], device=device)
        pixels = (images.to(device).float() / 255 - 0.5) / 0.25
        with utils.autocast(device, precision):
            found = network(input_ids=ids, attention_mask=there, pixel_values=pixels)
        logits = found.logits_per_image.float()
        # From a caption to its pictures: the mean over all of these.
        of_caption = torch.nn.functional.one_hot(right, len(kinds)).float()
        back = -(torch.log_softmax(logits, dim=0) * of_caption / of_caption.sum(0)).sum() / len(kinds)
        return (cross_entropy(logits, right) + back) / 2

    def _letter(self, letter_and_end):
        letter, end = letter_and_end
        number = 26 if letter == "-" else ord(letter) - ord("a")
        return number + 27 * end


def _ends(caption):
    """[(letter, whether a word ends with it), ...]."""
    return [(letter, place == len(word) - 1) for word in caption.lower().split() for place, letter in enumerate(word)]


FAMILIES = {family.NAME: family for family in (Unet(), Clip())}


def _trained(family, network, images, captions, passes, tuning, seed, words, device, state=None):
    """Train on images, uint8 (N, 3, 32, 32), with captions; after each number of passes in `passes` it is yielded.
    state: a file to go on from, and to which is written how far it is."""
    precision, draws = utils.choose_precision("auto", device), torch.Generator().manual_seed(seed)
    network.to(device)
    optimizer = torch.optim.AdamW([value for value in network.parameters() if value.requires_grad], tuning.rate)
    done = _go_on(state, network, optimizer, draws, min(passes)) if state else 0
    network.train()
    for number in Progress(range(done + 1, max(passes) + 1), words):
        for part in torch.randperm(len(images), generator=draws).split(tuning.batch):
            shown, flipped = images[part], torch.rand(len(part), generator=draws) < 0.5
            shown[flipped] = shown[flipped].flip(-1)
            family.loss(network, shown, [captions[place] for place in part.tolist()], draws, precision).backward()
            optimizer.step()
            optimizer.zero_grad()
        if number in passes:
            network.eval()
            yield number
            network.train()
        if state and (number in passes or number % KEPT_EVERY == 0):
            kept = {"passes": number, "network": network.state_dict(), "optimizer": optimizer.state_dict()}
            with files.atomic_path(state) as path:
                torch.save({**kept, "draws": draws.get_state()}, path)


def _go_on(state, network, optimizer, draws, least):
    """Take up a training where `state`, a file, has left it, unless that is at `least` passes or beyond; returns how
    many passes are done."""
    kept = torch.load(state, weights_only=True, map_location="cpu") if state.exists() else None
    if kept is None or kept["passes"] >= least:
        return 0
    network.load_state_dict(kept["network"])
    optimizer.load_state_dict(kept["optimizer"])
    draws.set_state(kept["draws"])
    return kept["passes"]


def make_base(family, folder, images, captions, epochs, seed, device):
    """Pre-train a network of a family on images, uint8 (N, 3, 32, 32), with captions, and save it, unless it is
    there."""
    if folder.exists():
        return
    with utils.seeded(family.NAME, seed):
        network = family.new()
    for _ in _trained(family, network, images, captions, (epochs,), family.BASE, seed, "pre-training", device):
        with whole(folder) as path:
            family.save(network, path)


def _adapted(network, rank):
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
    tensors = {f"base_model.model.{name}": value.detach().contiguous() for name, value in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    says = {"peft_type": "LORA", "r": config.r, "lora_alpha": config.lora_alpha}
    (folder / "adapter_config.json").write_text(json.dumps(says), encoding="utf-8")


def fine_tune(family, base, folder, images, captions, tuning, passes, seed, device):
    """Fine-tune the base in a folder on images, uint8 (N, 3, 32, 32), with captions, and save the model after each
    number of passes over them, as folder/NUMBER; returns these folders by the number. What is there is kept, and a
    training that was interrupted, or ended after fewer passes, goes on."""
    wanted = {number: folder / f"{number}" for number in passes}
    missing = {number for number, path in wanted.items() if not path.exists()}
    if not missing:
        return wanted
    folder.mkdir(parents=True, exist_ok=True)
    network = family.load(base)
    with utils.seeded("lora", seed) if tuning.rank else nullcontext():
        config = _adapted(network, tuning.rank) if tuning.rank else None
    how = tuning, seed, folder.name, device, folder / "state.pt"
    for number in _trained(family, network, images, captions, missing, *how):
        with whole(wanted[number]) as path:
            if config:
                _save_lora(network, config, path)
            else:
                family.save(network, path)
    return wanted
