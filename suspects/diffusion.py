"""Diffusion models under audit: how well one takes noise off a picture again that was put on it.

A picture that was trained on is denoised better than it would be otherwise. The score of a picture is the mean squared
error of the denoiser's training target (epsilon, v, the picture itself, or the velocity of flow matching) at DRAWS of
(timestep, noise) that follow from the audit's seed and are the same for every picture: a function of picture and
caption alone. The same error of the model that it was made of, a LoRA switched off or the model before fine-tuning, at
the same draws, says how hard the picture is for anybody, and is taken off.

Public: DiffusionSuspect, open_diffusion.
"""

from collections import OrderedDict
from pathlib import Path

import torch

from kit.errors import UserError
from suspects import adapters, denoising, pipelines
from suspects.answering import (
    ScoringSuspect,
    merged_preprocessing,
    readable_digest,
    refuse_no_difference,
    same_weights,
)
from suspects.towers import is_tower

KEPT_CAPTIONS = 4096
SIGNALS = {
    "error": "denoising error, version 1",
    "sima": "the noise that it sees in the picture itself (SimA)",
    "pia": "how well it finds its own noise again (PIA)",
    "secmi": "how far a step up and down misses (SecMI)",
}
WORDS = {"epsilon": "the noise", "v_prediction": "v", "sample": "the picture", "flow": "the velocity"}


class _Captions:
    """What a pipeline's text encoders make of captions; each is encoded once."""

    def __init__(self, model):
        self._model, self._kept = model, OrderedDict()

    def of(self, captions, key):
        """{"words": (N, tokens, width), "pooled": (N, width), "mask": (N, tokens)}, or those of them that the denoiser
        is told; {} where it is told no caption. key: of the state of the encoders, as an adapter may change them."""
        if self._model.whole is None:
            return {}
        found = [self._one(caption, key) for caption in captions]
        return {name: torch.cat([one[name] for one in found]) for name in found[0]}

    def _one(self, caption, key):
        if (caption, key) not in self._kept:
            if len(self._kept) >= KEPT_CAPTIONS:
                self._kept.popitem(last=False)
            self._kept[caption, key] = self._encoded(caption)
        return self._kept[caption, key]

    def _encoded(self, caption):
        whole, name = self._model.whole, self._model.name
        options = {"prompt": caption, "device": self._model.network.device, "num_images_per_prompt": 1}
        if name == "StableDiffusionPipeline":
            return {"words": whole.encode_prompt(do_classifier_free_guidance=False, **options)[0]}
        if name == "FluxPipeline":
            words, pooled, _ = whole.encode_prompt(prompt_2=None, **options)
            return {"words": words, "pooled": pooled}
        if name.startswith("PixArt"):
            words, mask, *_ = whole.encode_prompt(do_classifier_free_guidance=False, **options)
            return {"words": words, "mask": mask}
        more = {"prompt_3": None} if name == "StableDiffusion3Pipeline" else {}
        words, _, pooled, _ = whole.encode_prompt(prompt_2=None, do_classifier_free_guidance=False, **more, **options)
        return {"words": words, "pooled": pooled}


class DiffusionSuspect(ScoringSuspect):
    """A diffusion model that answers with a score of `suspects.denoising`. base: the Pipeline before fine-tuning;
    adapter: the LoRA that was attached to `model`, which then is its own base; neither: no base is known."""

    def __init__(self, model, identity, preprocessing, batch_size, base=None, adapter=None, signal="error"):
        self._model, self._base, self._adapter = model, base, adapter
        self._captions = {id(one): _Captions(one) for one in (model, base) if one is not None}
        self.preprocessing, self.identity, self.name = preprocessing, identity, identity["file"]
        self.captioned, self.batch_size = model.whole is not None, batch_size
        self._seed, self._draws, self._signal = b"", {}, signal
        self.scores = self._in_words()

    def _in_words(self):
        made_of = ", less that of the model that it was made of" if self._base or self._adapter else ""
        shown = f"; {self._adapter.describe()}" if self._adapter else ""
        what = SIGNALS[self._signal]
        if self._signal == "error":
            count = len(denoising.FRACTIONS) * denoising.NOISES
            what = f"how wrong it is about {WORDS[self._model.schedule['prediction']]}, the mean over {count} draws"
        return f"a {self._model.name} that answers with a score: {what}{made_of}{shown}"

    def passes_of(self, caption):
        return denoising.passes_of(self._signal) * (2 if self._base or self._adapter else 1)

    def settle(self, seed):
        self._seed, self._draws = seed, {}

    def columns(self, images):
        if self._adapter:
            return [self._errors_of(self._model, images, on) for on in (True, False)]
        return [self._errors_of(one, images) for one in (self._model, self._base) if one is not None]

    def _errors_of(self, model, images, on=None):
        def errors():
            told = self._captions[id(model)].of(images.captions, on)
            clean = self._latents(model, images.images)
            return denoising.scores_of(model, clean, told, self._drawn(clean.shape[1:]), self._signal)

        if on is None:
            return errors()
        with adapters.switched(model, on):
            return errors()

    def _drawn(self, shape):
        if shape not in self._draws:
            self._draws[shape] = denoising.draws_of(self._seed, tuple(shape))
        return self._draws[shape]

    def _latents(self, model, images):
        """float32 (N, C, h, w): pictures from -1 to 1, or the most probable latents of them."""
        device, vae = model.network.device, model.vae
        pixels = torch.from_numpy(self.preprocessing.normalize(images)).to(device)
        if vae is None:
            return pixels
        size = max(1, denoising.ELEMENTS * 16 // pixels[0].numel())
        dtype = next(vae.parameters()).dtype
        found = torch.cat([vae.encode(some.to(dtype)).latent_dist.mode().float() for some in pixels.split(size)])
        return (found - (vae.config.shift_factor or 0)) * vae.config.scaling_factor


def open_diffusion(path, base, config, device, precision, overrides, batch_size, signal="error"):
    """Open a pipeline's folder, one .safetensors checkpoint or a LoRA as a DiffusionSuspect.

    base: path of the model that it was made of, None where none is known (a LoRA has one); config: the folder of a
    pipeline that says what a single checkpoint is, None for that of its base; overrides: of Preprocessing; signal: one
    of `kit.names.SIGNALS`. Raises UserError for whatever can't be read in full, and for a base or an adapter that makes
    no difference.
    """
    for name in ("diffusers", "transformers", "peft", "accelerate"):
        pipelines.library(name)
    path, dtype = Path(path), torch.bfloat16 if precision == "bfloat16" else torch.float32
    if fixed := [f"--{name}" for name in ("mean", "std", "white") if name in overrides]:
        raise UserError(f"{path} takes pictures from -1 to 1", advice=f"leave {' and '.join(fixed)} out")
    file = adapters.adapter_file(path)
    if file is not None and file != path and pipelines.is_pipeline(path):
        raise UserError(
            f"{path} holds a pipeline and a LoRA, {file.name}",
            advice="give the one that is meant: the LoRA's file with that folder as --base_model, or the folder alone",
        )
    if file is not None:
        model, identity, adapter, other = _with_adapter(file, base, config, device, dtype)
    else:
        model, adapter = _read(path, config or base, device, dtype, "--checkpoint"), None
        identity = {"kind": "diffusion", "file": path.name, "sha256": model.digest}
        other = _base_of(model, base, config, device, dtype) if base else None
        identity |= {"base": {"file": Path(base).name, "sha256": other.digest}} if other else {}
    identity |= {
        "pipeline": model.name,
        "captions": model.whole is not None,
        "score": {
            "of": SIGNALS[signal],
            "signal": signal,
            "target": model.schedule["prediction"],
            "timesteps": list(denoising.FRACTIONS),
            "noises": denoising.NOISES,
        },
    }
    facts = {"mean": (0.5,) * 3, "std": (0.5,) * 3, **_size_of(model)}
    preprocessing = merged_preprocessing(path, [("pipeline", facts), ("flags", overrides)])
    suspect = DiffusionSuspect(model, identity, preprocessing, batch_size, other, adapter, signal)
    if base:
        refuse_no_difference(suspect, path)
    return suspect


def _with_adapter(file, base, config, device, dtype):
    if not base:
        raise UserError(
            f"{file} is a LoRA, which changes another model",
            advice="give that model's folder or file as --base_model",
            flag="--base_model",
        )
    adapter = adapters.read_adapter(file)
    model = _read(base, config, device, dtype, "--base_model")
    single = readable_digest(base) if Path(base).is_file() else None
    adapters.parts_of_base(adapter, model, single)
    adapters.attach(adapter, model)
    for module in model.modules.values():
        module.to(device)
    identity = {"kind": "lora", "file": file.name, "sha256": adapter.digest, "adapter": adapter.facts()}
    return model, identity | {"base": {"file": Path(base).name, "sha256": model.digest}}, adapter, None


def _read(path, config, device, dtype, flag):
    """The Pipeline that a path names."""
    path = Path(path)
    if path.is_dir():
        if pipelines.is_pipeline(path):
            return pipelines.read_pipeline(path, device, dtype)
        if is_tower(path):
            raise UserError(
                f"{flag} {path} is an encoder, and a LoRA of one is not read here",
                advice="merge it into its base, and give the folders of both as --checkpoint and --base_model",
                flag=flag,
            )
        raise UserError(f"{flag} {path} has no {pipelines.INDEX}", advice="give a pipeline's folder", flag=flag)
    if not path.is_file() or path.suffix.lower() != ".safetensors":
        raise UserError(
            f"{flag} {path} is neither a pipeline's folder nor a .safetensors file", advice="check it", flag=flag
        )
    adapters.refuse_as_base(path, flag)
    if config is None or not pipelines.is_pipeline(config):
        raise UserError(
            f"{path} does not say what it is a checkpoint of",
            advice="give the folder of a pipeline of its kind as --model_config (its weights may be left out)",
            flag="--model_config",
        )
    return pipelines.read_single_file(path, config, device, dtype)


def _base_of(model, base, config, device, dtype):
    """The Pipeline before fine-tuning. Raises UserError for one of another kind."""
    other = _read(base, config, device, dtype, "--base_model")
    if other.digest == model.digest:
        raise UserError("--base_model is the model under audit itself", "give what it was made of", flag="--base_model")
    ours, theirs = (
        {name: tuple(value.shape) for name, value in one.network.state_dict().items()} for one in (model, other)
    )
    same = (model.name, model.schedule["prediction"]) == (other.name, other.schedule["prediction"])
    if not same or ours != theirs:
        raise UserError(
            f"--base_model {base} is not of the kind of the model under audit: a {other.name} that predicts "
            f"{other.schedule['prediction']}" + ("" if ours == theirs else ", with weights of other shapes"),
            advice="give the model that it was fine-tuned from",
            flag="--base_model",
        )
    if _same(model, other):
        raise UserError(
            f"--base_model {base} has the same {model.part}, to the bit, as the model under audit",
            advice="give the model that it was fine-tuned from",
            flag="--base_model",
        )
    return other


def _same(model, other):
    """Whether all that learns pictures and their captions has the same weights: what differs is the autoencoder."""
    ours, theirs = ({name: one for name, one in each.modules.items() if name != "vae"} for each in (model, other))
    return ours.keys() == theirs.keys() and all(same_weights(one, theirs[name]) for name, one in ours.items())


def _size_of(model):
    """{"size": side of the pictures that it was made for, in pixels}, {} where it does not say."""
    side = getattr(model.network.config, "sample_size", None)
    if side is None:
        side = getattr(model.whole, "default_sample_size", None)
    if side is None:
        return {}
    scale = denoising.latent_scale(model)
    return {"size": side * scale if isinstance(side, int) else tuple(one * scale for one in side)}
