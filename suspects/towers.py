"""Read an encoder or a captioner from a folder, transformers' (`config.json`) or open_clip's (`open_clip_config.json`).

Folders come from strangers. Each is of a class that is named here, opened by that class from safetensors; no code of
theirs runs, nothing is downloaded, and a model of which anything is missing, left over or of another shape is refused.

Public: Tower, read_tower, is_tower, refuse_unreadable, tower_digest, preprocessing_facts, FAMILIES, CONFIG, OPEN_CLIP.
"""

import inspect
import math
import warnings
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from kit.errors import UserError, optional
from suspects.answering import one_line
from suspects.pipelines import (
    COUNTERS,
    NEEDS,
    digest_of_files,
    headers_of,
    is_read,
    library,
    load_part,
    read_config,
    read_tokenizer,
    refuse_absurd,
    refuse_other_words,
    shards_of,
)
from utils import seeded

CONFIG, OPEN_CLIP, OPEN_CLIP_WEIGHTS = "config.json", "open_clip_config.json", "open_clip_model.safetensors"
WEIGHTS, FEEDING = "model.safetensors", ("preprocessor_config.json", "processor_config.json")
# How a class was trained, and so what its score with a caption is; without one all are asked as "pictures" are.
FAMILIES = {
    "CLIPModel": "softmax",
    "SiglipModel": "sigmoid",
    "BlipForConditionalGeneration": "likelihood",
    **dict.fromkeys(
        ("CLIPVisionModelWithProjection", "SiglipVisionModel", "ViTModel", "ViTMSNModel", "DeiTModel", "Dinov2Model")
        + ("Dinov2WithRegistersModel", "ConvNextModel", "ConvNextV2Model"),
        "pictures",
    ),
}
WORDS = ("CLIPTokenizer", "SiglipTokenizer", "GemmaTokenizer", "T5Tokenizer", "BertTokenizer", "PreTrainedTokenizer")
UNSAID = {"softmax": "CLIPTokenizer", "sigmoid": "SiglipTokenizer", "likelihood": "BertTokenizer"}  # of early folders
ROOM = 1 << 22  # numbers that a model may have beside those in its files, such as an untrained pooling layer
FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # as Pillow numbers them
# Parts of open_clip's configurations; of the towers', what would be fetched or needs another library.
KNOWN = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale", "init_logit_bias", "custom_text"}
KNOWN |= {"nonscalar_logit_scale"}
FOREIGN = ("timm_", "hf_", "tokenizer_")


class Tower:
    """An encoder or a captioner. name: of its class; family: see FAMILIES; network; digest: SHA-256 of all that was
    read; facts: what its folder says of its input, for Preprocessing. Pixels are float32 (N, 3, h, w), normalised."""

    def __init__(self, name, family, network, digest, facts, device):
        self.name, self.family, self.digest, self.facts = name, family, digest, facts
        self.network = network.to(device).eval().requires_grad_(False)
        self._device, self._dtype = device, next(network.parameters()).dtype

    def pictures(self, pixels):
        """Embeddings of pictures: float64 (N, D), not normalised."""
        return _exact(self._pictures(self._put(pixels))).flatten(1)

    def captions(self, texts):
        """Embeddings of texts, each by itself so that none hangs on another: float64 (N, D), not normalised."""
        return _exact(torch.cat([self._caption(text) for text in texts]))

    def scale(self):
        """(what cosines are multiplied by, what is added then), as they were learnt."""
        bias = getattr(self.network, "logit_bias", None)
        return float(_exact(self.network.logit_scale).exp()), 0.0 if bias is None else float(bias)

    def losses(self, pixels, texts):
        """Negative log-likelihood of each text given its picture, the mean over its tokens: float64 (N,)."""
        raise NotImplementedError

    def _put(self, pixels):
        return torch.from_numpy(pixels).to(self._device, self._dtype)

    def _pictures(self, pixels):
        raise NotImplementedError

    def _caption(self, text):
        raise NotImplementedError


class _Transformers(Tower):
    """A model of transformers."""

    def __init__(self, tokenizer, *rest):
        super().__init__(*rest)
        self._tokenizer = tokenizer

    def _pictures(self, pixels):
        if self.family in ("softmax", "sigmoid"):
            return _pooled(self.network.get_image_features(pixel_values=pixels))
        inside = self.network.vision_model if self.family == "likelihood" else self.network
        found = inside(pixel_values=pixels)
        if getattr(found, "image_embeds", None) is not None:
            return found.image_embeds
        pooled = getattr(found, "pooler_output", None)
        return found.last_hidden_state[:, 0] if pooled is None else pooled

    def _caption(self, text):
        # As they were trained: CLIP does not look at what fills a text up, SigLIP does.
        told = self._told([text], "max_length")
        told = told if self.family == "softmax" else {"input_ids": told["input_ids"]}
        return _pooled(self.network.get_text_features(**told))

    def _told(self, texts, padding):
        longest = self.network.config.text_config.max_position_embeddings
        told = self._tokenizer(texts, padding=padding, truncation=True, max_length=longest, return_tensors="pt")
        return {name: told[name].to(self._device) for name in ("input_ids", "attention_mask")}

    def losses(self, pixels, texts):
        told = self._told(list(texts), "longest")
        words, mask = told["input_ids"], told["attention_mask"]
        words[:, 0] = self.network.config.text_config.bos_token_id  # as when it writes
        logits = self.network(pixel_values=self._put(pixels), input_ids=words, attention_mask=mask).logits
        logs = logits[:, :-1].float().log_softmax(2).gather(2, words[:, 1:, None])[:, :, 0]
        counted = _exact(mask[:, 1:])
        return -(_exact(logs) * counted).sum(1) / counted.sum(1)


def _exact(values):
    """On the CPU: some devices have no float64."""
    return values.float().cpu().double()


def _pooled(found):
    """The projected embeddings; later versions of transformers wrap them."""
    return found if isinstance(found, torch.Tensor) else found.pooler_output


class _OpenClip(Tower):
    """A model of open_clip."""

    def __init__(self, tokenizer, *rest):
        super().__init__(*rest)
        self._tokenizer = tokenizer

    def _pictures(self, pixels):
        return self.network.encode_image(pixels)

    def _caption(self, text):
        return self.network.encode_text(self._tokenizer([text]).to(self._device))


def is_tower(path):
    """Whether a folder is that of a model which says what it is, as transformers and open_clip do."""
    path = Path(path)
    if (path / OPEN_CLIP).is_file():
        return True
    if not (path / CONFIG).is_file():
        return False
    try:
        return isinstance(read_config(path / CONFIG).get("model_type"), str)
    except UserError:  # whatever else it is, is said where that is opened
        return False


def read_tower(folder, device, dtype=torch.float32):
    """The Tower in a folder, on a device. Raises UserError naming what can't be used."""
    folder = Path(folder)
    if not (folder / OPEN_CLIP).is_file():
        return _read_transformers(folder, device, dtype)
    if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder} holds two models, {WEIGHTS} and {OPEN_CLIP_WEIGHTS}",
            advice="give a folder with the one that is meant",
        )
    return _read_open_clip(folder, device, dtype)


# --- transformers ---


def _read_transformers(folder, device, dtype):
    transformers, config = library("transformers"), read_config(folder / CONFIG)
    name = _architecture(config, folder)
    if getattr(transformers, name, None) is None:
        raise UserError(f"{folder} is a {name}", advice="install a later version of transformers")
    family, kind = FAMILIES[name], getattr(transformers, name)
    if config["model_type"] != kind.config_class.model_type:
        raise UserError(f"{folder} says that it is a {name} and a {config['model_type'][:60]!r}", "don't trust it")
    refuse_absurd(folder)
    keys, options = _names_of_weights(folder), {"attn_implementation": "eager"}
    if "add_pooling_layer" in inspect.signature(kind.__init__).parameters:  # a layer that encoders often lack
        options["add_pooling_layer"] = any("pooler." in key for key in keys)
    _refuse_other_size(folder, kind, keys)
    # What has another shape is refused by its name then.
    network = load_part(kind, folder, dtype, ignore_mismatched_sizes=True, **options)
    tokenizer = None if family == "pictures" else _tokenizer_of(folder, family, network)
    facts = {"size": _side_of(network.config)} | preprocessing_facts(folder)
    return _Transformers(tokenizer, name, family, network, tower_digest(folder), facts, device)


def _architecture(config, folder):
    """The name of the class in a folder's configuration. Raises UserError for one that is not known."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and len(names) == 1 else names
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(
            f"{folder} is a {str(name)[:60]!r}, which is not known here", advice=f"known are {', '.join(FAMILIES)}"
        )
    return name


def _names_of_weights(folder):
    """Names of all tensors. UserError where a file of weights beside the others would not be read."""
    there = {path.name for path in folder.glob("*.safetensors")}
    read = shards_of(folder, there) or {WEIGHTS}
    if there and there != read:
        other = sorted(there ^ read)[0]
        raise UserError(f"{folder}: {other} is no part of {WEIGHTS}", advice="give a folder with one model's weights")
    return [key for name in sorted(there) for key in headers_of(folder / name)]


def _refuse_other_size(folder, kind, keys):
    """Raise UserError for a configuration that describes far more than the files hold: it would fill the memory."""
    held = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            held += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    try:
        with torch.device("meta"), seeded("part of a model"), warnings.catch_warnings(action="ignore"):
            network = kind(kind.config_class.from_pretrained(str(folder), local_files_only=True))
    except Exception as error:  # a stranger's file may fail in any way
        raise UserError(f"{folder} can't be read ({one_line(error)})", advice="give an undamaged, whole one") from None
    described = sum(value.numel() for value in {*network.parameters(), *network.buffers()})
    if keys and described > 2 * held + ROOM:
        raise UserError(
            f"{folder}: {CONFIG} describes {described:,} numbers, and its weights are {held:,}",
            advice="give an undamaged, whole one",
        )


def _side_of(config):
    side = getattr(getattr(config, "vision_config", config), "image_size", None)
    return tuple(side) if isinstance(side, list | tuple) else side


def _tokenizer_of(folder, family, network):
    beside = folder / "tokenizer_config.json"
    said = read_config(beside).get("tokenizer_class") if beside.is_file() else None
    said = str(said or UNSAID[family])
    kind = said.removesuffix("Fast")
    if kind in ("TokenizersBackend", "PreTrainedTokenizer"):
        said = "PreTrainedTokenizerFast"  # what the later versions' name means
    elif kind not in WORDS:
        raise UserError(f"{folder}: its tokenizer is a {said[:60]!r}", advice=f"known here are {', '.join(WORDS)}")
    tokenizer = read_tokenizer(folder, said)
    refuse_other_words(folder, len(tokenizer), network.config.text_config.vocab_size)
    return tokenizer


def preprocessing_facts(folder):
    """{key of Preprocessing: value} that a folder of transformers' states, {} where it states nothing. UserError for
    what can't be done here."""
    place = next((folder / name for name in FEEDING if (folder / name).is_file()), None)
    if place is None:
        return {}
    said = read_config(place)
    said = said.get("image_processor", said) if place.name == FEEDING[1] else said
    try:
        return _facts_of(said)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{place} can't be read ({one_line(error)})", advice="give the one of its training, or take it away"
        ) from None


def _facts_of(said):
    facts = {"interpolation": FILTERS[said["resample"]]} if said.get("resample") is not None else {}
    if not said.get("do_rescale", True) or abs(said.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise ValueError("its pixels are not from 0 to 1")
    if not said.get("do_normalize", True):
        facts |= {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    else:
        facts |= {name: tuple(said[f"image_{name}"]) for name in ("mean", "std") if f"image_{name}" in said}
    size, crop = said.get("size"), said.get("do_center_crop", False)
    if not said.get("do_resize", True) or size is None:
        return facts
    if isinstance(size, int):  # of early versions
        size = {"shortest_edge": size} if crop else {"height": size, "width": size}
    if {"height", "width"} <= size.keys():
        sides = size["height"], size["width"]
        if crop:
            raise ValueError("squashed and cropped")
        return facts | {"size": sides, "squash": True}
    edge = size["shortest_edge"]
    if share := said.get("crop_pct"):  # ConvNeXt
        if edge >= 384:  # a rule of its processor
            return facts | {"size": edge, "squash": True}
        return facts | {"size": edge, "resize": int(edge / share)}
    if not crop:
        raise ValueError("pictures of different shapes")
    sides = said["crop_size"]
    return facts | {"size": (sides["height"], sides["width"]) if isinstance(sides, dict) else sides, "resize": edge}


# --- open_clip ---


def _read_open_clip(folder, device, dtype):
    open_clip = optional("open_clip", "a model of open_clip", f"open_clip_torch {NEEDS}")
    refuse_absurd(folder, OPEN_CLIP)
    whole = read_config(folder / OPEN_CLIP)
    settings, weights = _open_clip_settings(folder, whole), _open_clip_weights(folder)
    kind = open_clip.CustomTextCLIP if settings.pop("custom_text", False) else open_clip.CLIP
    try:
        with torch.device("meta"), seeded("part of a model"):
            wanted = {key: tuple(value.shape) for key, value in kind(**settings).state_dict().items()}
        _refuse_other_shapes(folder, weights, wanted)  # before memory is taken for what the configuration says
        with seeded("part of a model"), warnings.catch_warnings(action="ignore"):
            network = kind(**settings)
        tensors = {key: value for key, value in load_file(weights).items() if key in wanted}
        network.load_state_dict(tensors, strict=True)
        tokenizer = open_clip.SimpleTokenizer(context_length=network.context_length)
    except UserError:
        raise
    except Exception as error:  # a stranger's file may fail in any way
        raise UserError(f"{folder} can't be read ({one_line(error)})", advice="give an undamaged, whole one") from None
    if tokenizer.vocab_size > network.vocab_size:
        raise UserError(f"{folder} has another tokenizer than open_clip's own", advice="give the form of transformers")
    family = "softmax" if network.logit_bias is None else "sigmoid"
    facts = _open_clip_facts(folder, whole, network.visual.image_size)
    name = f"{kind.__name__} of open_clip"
    return _OpenClip(tokenizer, name, family, network.to(dtype), tower_digest(folder), facts, device)


def _open_clip_settings(folder, whole):
    settings = whole.get("model_cfg")
    parts = [settings.get(name) for name in ("vision_cfg", "text_cfg")] if isinstance(settings, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise UserError(f"{folder / OPEN_CLIP} describes no model", advice="give an undamaged one")
    if other := sorted(settings.keys() - KNOWN):
        raise UserError(f"{folder}: {other[0][:60]} is not read here", advice="give the form of transformers")
    for key, value in {**parts[0], **parts[1]}.items():
        if key.startswith(FOREIGN) and value:
            raise UserError(
                f"{folder}: {key[:60]} {str(value)[:60]!r} is a part of another library",
                advice="give the form of transformers",
            )
    return settings


def _open_clip_weights(folder):
    there = sorted(path.name for path in folder.glob("*.safetensors"))
    if there != [OPEN_CLIP_WEIGHTS]:
        other = f"holds {', '.join(there)[:100]}" if there else "has no weights as .safetensors"
        raise UserError(f"{folder} {other}", advice=f"give a folder with {OPEN_CLIP_WEIGHTS} alone")
    return folder / OPEN_CLIP_WEIGHTS


def _refuse_other_shapes(folder, weights, wanted):
    names = {name for name in headers_of(weights) if not COUNTERS.search(name)}
    with safe_open(weights, framework="pt") as file:
        other = [
            name for name in sorted(names & wanted.keys()) if tuple(file.get_slice(name).get_shape()) != wanted[name]
        ]
    wrong = {"missing": sorted(wanted.keys() - names), "unexpected": sorted(names - wanted.keys()), "mismatched": other}
    for what, keys in wrong.items():
        if keys:
            raise UserError(
                f"{folder} does not fit its configuration: {keys[0][:80]} is {what} ({len(keys)} of such)",
                advice="give an undamaged, whole one",
            )


def _open_clip_facts(folder, whole, size):
    said = whole.get("preprocess_cfg") or {}
    try:
        mode = said.get("resize_mode", "shortest")
        if mode not in ("shortest", "squash"):
            raise ValueError(f"resize_mode {str(mode)[:60]}")
        facts = {name: tuple(said[name]) for name in ("mean", "std") if name in said}
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / OPEN_CLIP}: how photos become its input can't be read ({one_line(error)})",
            advice="give an undamaged one",
        ) from None
    sides = (
        {"resize": min(size) if isinstance(size, tuple | list) else size} if mode == "shortest" else {"squash": True}
    )
    return {"size": size, "interpolation": said.get("interpolation", "bicubic"), **sides, **facts}


def refuse_unreadable(folder):
    """Raise UserError for a folder of a kind that is not known, or whose weights are missing or damaged, as far as can
    be told without a library."""
    folder = Path(folder)
    if not (folder / OPEN_CLIP).is_file():
        _architecture(read_config(folder / CONFIG), folder)
    weights = sorted(folder.glob("[!.]*.safetensors"))
    if not weights:
        raise UserError(f"{folder} has no weights as .safetensors", advice="save it with safe_serialization=True")
    for path in weights:
        headers_of(path)


def tower_digest(folder):
    """SHA-256, hex, of all that a library may read of a folder, by name."""
    return digest_of_files(folder, sorted(path for path in folder.iterdir() if is_read(path)))
