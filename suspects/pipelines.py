"""Read a diffusion model from disk: a pipeline's folder, or one .safetensors file beside a folder that says what it is.

Folders and files come from strangers. Every part is of a class that is named here, opened by that class from
safetensors; no code of theirs runs, nothing is downloaded, and a part of which anything is missing, left over or of
another shape is refused, since a library would fill it with random numbers.

Public: Pipeline, read_pipeline, read_single_file, is_pipeline, refuse_unreadable, folder_digest, file_digest,
digest_of_files, headers_of, library, load_part, read_tokenizer, refuse_other_words, read_config, refuse_absurd,
shards_of, is_read, INDEX, NEEDS, COUNTERS.
"""

import json
import re
import warnings
from dataclasses import dataclass
from logging import CRITICAL
from pathlib import Path

import torch
from safetensors import safe_open

from kit import files
from kit.errors import UserError, optional
from suspects.answering import one_line, readable_digest
from utils import seeded

NEEDS = "diffusers peft transformers accelerate"
INDEX = "model_index.json"
CLIP, TEXT = ("CLIPTextModel", "CLIPTextModelWithProjection"), ("CLIPTextModelWithProjection",)
CLIP_WORDS, T5_WORDS = ("CLIPTokenizer", "CLIPTokenizerFast"), ("T5Tokenizer", "T5TokenizerFast")
PIXELS = {"unet": ("UNet2DModel",)}
# Its first name, in index files of the time: which of its kinds it is says the pipeline's class.
OLD_TRANSFORMER = "Transformer2DModel"
_LATENT = {"vae": ("AutoencoderKL",), "text_encoder": CLIP, "tokenizer": CLIP_WORDS}
# Parts of the pipelines that are known, and their classes; "?" behind a name: it may be absent.
KNOWN = {
    "DDPMPipeline": PIXELS,
    "DDIMPipeline": PIXELS,
    "PNDMPipeline": PIXELS,
    "StableDiffusionPipeline": {"unet": ("UNet2DConditionModel",), **_LATENT},
    "StableDiffusionXLPipeline": {
        "unet": ("UNet2DConditionModel",),
        **_LATENT,
        "text_encoder_2": TEXT,
        "tokenizer_2": CLIP_WORDS,
    },
    "StableDiffusion3Pipeline": {
        "transformer": ("SD3Transformer2DModel",),
        **_LATENT,
        "text_encoder_2": TEXT,
        "tokenizer_2": CLIP_WORDS,
        "text_encoder_3?": ("T5EncoderModel",),
        "tokenizer_3?": T5_WORDS,
    },
    "FluxPipeline": {
        "transformer": ("FluxTransformer2DModel",),
        **_LATENT,
        "text_encoder_2": ("T5EncoderModel",),
        "tokenizer_2": T5_WORDS,
    },
    **{
        name: {
            "transformer": ("PixArtTransformer2DModel", OLD_TRANSFORMER),
            "vae": ("AutoencoderKL",),
            "text_encoder": ("T5EncoderModel",),
            "tokenizer": T5_WORDS,
        }
        for name in ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    },
    "DiTPipeline": {"transformer": ("DiTTransformer2DModel", OLD_TRANSFORMER), "vae": ("AutoencoderKL",)},
}
WITH_VARIANCES = (
    "DiTPipeline",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
)  # behind the noise, in as many channels
# Those that are trained with one schedule of noise: only the steps of their sampling differ.
SCHEDULES = ("DDPM", "DDIM", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete")
SCHEDULES += ("DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep", "KDPM2Discrete", "LCM")
FLOW = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete")
# What single files call their parts.
INSIDE = {
    "vae": ("first_stage_model.", "vae."),
    "text": ("cond_stage_model.", "conditioner.", "text_encoders."),
}
READ = (".json", ".safetensors", ".txt", ".model")  # endings of all that a library may read in a folder
# What libraries call the weights of a part; also in several files, and in other forms of the same.
STEMS = {"unet": "diffusion_pytorch_model", "transformer": "diffusion_pytorch_model", "text_encoder": "model"}
FORM = r"(\.(fp16|bf16|fp32|(non[_-])?ema))?"
WHOLE = {"F16", "BF16", "F32", "F64"}
# Of earlier versions, or of the training; nothing reads them.
COUNTERS = re.compile(r"(^|\.)position_ids$|num_batches_tracked$|^model_ema\.num_updates$")
MOST_BYTES, MOST_LAYERS, MOST_SIDE, MOST = 1 << 20, 1000, 4096, 10_000_000  # of a configuration, and of numbers in it
MOST_DEPTH = 20  # of parts inside each other


@dataclass
class Pipeline:
    """A diffusion model. name: of its class; network: the denoiser, called unet or transformer (see part); vae, None in
    pixel space; schedule: what the training added noise by, {"prediction", "timesteps", "scheduler"}, scheduler None
    for flow matching; whole: the library's object, which encodes captions, None where the denoiser is told none;
    digest: SHA-256 of all that was read.
    """

    name: str
    part: str
    network: torch.nn.Module
    vae: torch.nn.Module | None
    schedule: dict
    whole: object
    digest: str

    @property
    def texts(self):
        """The text encoders."""
        names = ("text_encoder", "text_encoder_2", "text_encoder_3")
        return {name: found for name in names if (found := getattr(self.whole, name, None)) is not None}

    @property
    def modules(self):
        """All networks by their names."""
        found = {self.part: self.network, "vae": self.vae, **self.texts}
        return {name: module for name, module in found.items() if module is not None}


def library(name):
    """One of the optional libraries, silent, or a UserError that says how to install it."""
    module = optional(name, "a model of this kind", NEEDS)
    if name in ("diffusers", "transformers"):
        logging = module.utils.logging
        logging.set_verbosity(CRITICAL)  # what they would warn of is refused here, in one line
        logging.disable_progress_bar()
    return module


def is_pipeline(path):
    """Whether a folder is that of a pipeline."""
    return (Path(path) / INDEX).is_file()


def read_pipeline(folder, device, dtype=torch.float32):
    """The Pipeline in a folder, on a device. Raises UserError naming the part that can't be used."""
    folder = Path(folder)
    name, index = _index_of(folder)
    parts = {part.removesuffix("?"): _read_part(folder, index, part, kinds, dtype) for part, kinds in _kinds(name)}
    return _assembled(folder, name, parts, device, folder_digest(folder))


def read_single_file(path, folder, device, dtype=torch.float32):
    """The Pipeline whose denoiser, and perhaps more, lies in one .safetensors file; the rest, and what it is, in a
    folder. Raises UserError."""
    diffusers, path, folder = library("diffusers"), Path(path), Path(folder)
    name, index = _index_of(folder)
    names = headers_of(path)
    inside = {what: [key for key in names if key.startswith(starts)] for what, starts in INSIDE.items()}
    parts, kinds = {}, dict(_kinds(name))
    for part, classes in kinds.items():
        if part in ("unet", "transformer") or (part == "vae" and inside["vae"]):
            refuse_absurd(folder / part)
            parts[part] = _from_file(getattr(diffusers, classes[0]), path, folder, part, dtype)
        elif not part.startswith("text_encoder") or not inside["text"]:
            parts[part.removesuffix("?")] = _read_part(folder, index, part, classes, dtype)
    if inside["text"]:
        parts = _with_texts_of_file(getattr(diffusers, name), path, folder, parts, dtype)
    for part, module in parts.items():
        if isinstance(module, torch.nn.Module) and any(value.is_meta for value in module.state_dict().values()):
            raise UserError(f"{path}: weights of its {part} are missing", advice="give the whole checkpoint")
    return _assembled(folder, name, parts, device, file_digest(path, folder))


def _from_file(kind, path, folder, part, dtype):
    try:
        with seeded("part of a checkpoint"), warnings.catch_warnings(action="ignore"):
            return kind.from_single_file(
                str(path), config=str(folder), subfolder=part, local_files_only=True, torch_dtype=dtype
            )
    except Exception as error:  # a stranger's file may fail in any way
        raise UserError(
            f"{path}: its {part} does not fit the one that {folder} describes ({one_line(error)})",
            advice="give the folder of the same kind of model as --model_config",
            flag="--model_config",
        ) from None


def _with_texts_of_file(kind, path, folder, parts, dtype):
    try:
        with seeded("part of a checkpoint"), warnings.catch_warnings(action="ignore"):
            whole = kind.from_single_file(
                str(path), config=str(folder), local_files_only=True, torch_dtype=dtype, **parts, **_beside(kind)
            )
    except Exception as error:
        raise UserError(f"{path}: its text encoder can't be read ({one_line(error)})", "check --model_config") from None
    return {
        **parts,
        **{name: getattr(whole, name) for name in ("text_encoder", "text_encoder_2") if hasattr(whole, name)},
    }


def _assembled(folder, name, parts, device, digest):
    diffusers = library("diffusers")
    part = "unet" if "unet" in parts else "transformer"
    network, vae = parts[part], parts.get("vae")
    schedule = _schedule_of(folder)
    channels = network.config.in_channels
    if vae is None:
        wanted, has = 3, network.config.out_channels
        if getattr(network.config, "num_class_embeds", None):
            raise UserError(f"{folder}: its unet wants a class of each picture", advice="it can't be audited here")
    else:
        wanted = vae.config.latent_channels * (4 if name == "FluxPipeline" else 1)  # which takes 2 x 2 at a time
        has = network.config.out_channels or channels
    if channels != wanted or has not in (wanted, 2 * wanted if name in WITH_VARIANCES else wanted):
        raise UserError(
            f"{folder}: its {part} takes {channels} and gives {has} channels, and its pictures have {wanted}",
            advice="models for filling in or with learned variances can't be audited here",
        )
    for module in parts.values():
        if isinstance(module, torch.nn.Module):
            module.to(device).eval().requires_grad_(False)
    for text in [name for name in parts if name.startswith("text_encoder") and parts[name] is not None]:
        words = parts.get(text.replace("text_encoder", "tokenizer"))
        if words is None:
            raise UserError(f"{folder}: the tokenizer of its {text} is missing", advice="give the whole folder")
        refuse_other_words(folder, len(words), parts[text].config.vocab_size)
    whole = None
    if vae is not None and "text_encoder" in parts:
        kind = getattr(diffusers, name)
        whole = kind(**parts, scheduler=schedule["own"], **_beside(kind))
    return Pipeline(name, part, network, vae, schedule, whole, digest)


def _beside(kind):
    """Arguments of a pipeline's class that stand for parts that play no role here."""
    if kind.__name__ == "StableDiffusionPipeline":
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return {}


def _index_of(folder):
    """(name of the pipeline's class, what its index says)."""
    index = read_config(Path(folder) / INDEX)
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in KNOWN:
        raise UserError(
            f"{folder} is a {str(name)[:60]!r}, which is not known here", advice=f"known are {', '.join(KNOWN)}"
        )
    return name, index


def _kinds(name):
    return KNOWN[name].items()


def _read_part(folder, index, part, kinds, dtype):
    """One part of a pipeline's folder, None for one that may be absent."""
    found = _place_of(folder, index, part, kinds)
    if found is None:
        return None
    name, (place, kind) = part.removesuffix("?"), found
    if name.startswith("tokenizer"):
        return read_tokenizer(place, kind)
    return load_part(
        getattr(library("transformers" if name.startswith("text_encoder") else "diffusers"), kind), place, dtype
    )


def _place_of(folder, index, part, kinds):
    """(folder, class) of one part of a pipeline's folder, None for one that may be absent."""
    name, place = part.removesuffix("?"), folder / part.removesuffix("?")
    named = index.get(name)
    absent = not isinstance(named, list) or len(named) != 2 or named == [None, None]
    if absent and part.endswith("?"):
        return None
    if absent or not place.is_dir():
        raise UserError(f"{folder}: its {name} is missing", advice="give the whole pipeline's folder")
    kind = str(named[1])
    if kind not in kinds:
        raise UserError(f"{folder}: its {name} is a {kind[:60]!r}", advice=f"known here is {' or '.join(kinds)}")
    # Not of the autoencoder: pictures are not learnt there.
    if stem := STEMS.get(re.sub(r"_\d$", "", name)):
        read = re.compile(rf"{stem}{FORM}(-\d+-of-\d+)?{FORM}\.safetensors")
        beside = [one.name for one in sorted(place.glob("[!.]*.safetensors")) if not read.fullmatch(one.name)]
        if beside:
            raise UserError(f"{place}: {beside[0]} would not be read", advice="give a folder with one model's weights")
    return place, kinds[0] if kind == OLD_TRANSFORMER else kind


def refuse_unreadable(folder):
    """Raise UserError for a pipeline's folder of which a part is missing, or damaged as far as can be told without a
    library."""
    folder = Path(folder)
    name, index = _index_of(folder)
    read_config(folder / "scheduler" / "scheduler_config.json")
    for part, kinds in _kinds(name):
        found = _place_of(folder, index, part, kinds)
        if found and not part.startswith("tokenizer"):
            refuse_absurd(found[0])
            _variant(found[0])


def load_part(kind, place, dtype, **options):
    """A network of a class of diffusers' or transformers' out of a folder, complete. Raises UserError naming what is
    missing, left over or of another shape there."""
    refuse_absurd(place)
    options |= {"variant": _variant(place), "local_files_only": True, "use_safetensors": True, "torch_dtype": dtype}
    try:
        with seeded("part of a pipeline"), warnings.catch_warnings(action="ignore"):
            model, found = kind.from_pretrained(str(place), output_loading_info=True, **options)
    except Exception as error:  # a stranger's file may fail in any way
        raise UserError(f"{place} can't be read ({one_line(error)})", advice="give an undamaged, whole one") from None
    wrong = {
        what: [name for name in map(_name_of, found.get(f"{what}_keys", ())) if not COUNTERS.search(name)]
        for what in ("missing", "mismatched", "unexpected")
    }
    if bad := [f"{keys[0][:80]} is {what} ({len(keys)} of such)" for what, keys in wrong.items() if keys]:
        raise UserError(f"{place} does not fit its configuration: {bad[0]}", advice="give an undamaged, whole one")
    return model


def _name_of(key):
    return str(key[0] if isinstance(key, tuple | list) else key)  # mismatched ones come with their shapes


def refuse_other_words(place, has, most):
    """Raise UserError for a tokenizer of `has` words beside a network that knows `most`: libraries make one of a few
    words out of nothing."""
    if not most / 2 <= has <= most:
        raise UserError(
            f"{place}: its tokenizer has {has:,} words and its network {most:,}",
            advice="give the folder with the tokenizer of its training",
        )


def read_tokenizer(place, kind):
    """A tokenizer of a class of transformers' out of a folder. Raises UserError."""
    transformers = library("transformers")
    try:
        with warnings.catch_warnings(action="ignore"):
            return getattr(transformers, kind).from_pretrained(str(place), local_files_only=True)
    except Exception as error:
        raise UserError(f"{place} can't be read ({one_line(error)})", advice="give an undamaged, whole one") from None


def _variant(place):
    """None, or "fp16" where a part's weights are there in that form alone. UserError for what can't be read."""
    if (place / "adapter_config.json").exists():  # its library would look for another base, and add it
        raise UserError(f"{place} is an adapter of another model", advice="give a pipeline that holds it merged")
    weights = sorted(path.name for path in place.glob("[!.]*.safetensors"))
    if not weights:
        others = [path.name for path in place.iterdir() if path.suffix in (".bin", ".ckpt", ".pt", ".gguf", ".onnx")]
        there = f" ({others[0]} is not read: it could run code, or is quantised)" if others else ""
        raise UserError(f"{place} has no weights as .safetensors{there}", advice="save it with safe_serialization=True")
    shards_of(place, weights)
    for name in weights:
        headers_of(place / name)
    half = [name for name in weights if ".fp16" in name]
    return "fp16" if half == weights else None


def shards_of(place, weights):
    """The names of files that a folder's indexes of weights name: set, empty without an index. weights: the files that
    are there. Raises UserError for one that is not, or lies elsewhere."""
    every = set()
    for path in place.glob("*.index*.json"):
        shards = read_config(path, MOST_BYTES * 32).get("weight_map")
        named = set(shards.values()) if isinstance(shards, dict) else {""}
        if outside := [name for name in named if not isinstance(name, str) or Path(name).name != name or not name]:
            raise UserError(f"{path} names {str(outside[0])[:60]!r}, which is no file beside it", "don't trust it")
        if lacking := sorted(named - set(weights)):
            raise UserError(f"{place}: its part {lacking[0]} is missing", advice="give all parts of the weights")
        every |= named
    return every


def headers_of(path):
    """The names of a safetensors file's tensors. Raises UserError for a damaged file, and for quantised weights."""
    try:
        with safe_open(path, framework="pt") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # a damaged header shows itself in many ways
        raise files.no_safetensors(path, one_line(error)) from None
    if strange := [name for name, kind in kinds.items() if kind not in WHOLE and not COUNTERS.search(name)]:
        raise UserError(
            f"{path} is quantised ({strange[0][:80]} is {kinds[strange[0]]}); rounding hides what a model remembers",
            advice="give its weights as float16, bfloat16 or float32",
        )
    if not kinds:
        raise UserError(f"{path} holds no weights", advice="give an undamaged copy")
    return list(kinds)


def _schedule_of(folder):
    """The schedule of the training's noise: see Pipeline."""
    diffusers, place = library("diffusers"), folder / "scheduler"
    config = read_config(place / "scheduler_config.json")
    name = str(config.get("_class_name", ""))
    kind = name.removesuffix("Scheduler")
    try:
        if kind in FLOW or config.get("use_flow_sigmas"):
            own = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
            return {"prediction": "flow", "timesteps": _steps(own), "scheduler": None, "own": own}
        if kind not in SCHEDULES:
            raise ValueError("unknown")
        own = diffusers.DDPMScheduler.from_config(config)
        prediction = own.config.prediction_type
        if prediction not in ("epsilon", "v_prediction", "sample") or not torch.isfinite(own.alphas_cumprod).all():
            raise ValueError(f"predicts {prediction}")
    except Exception as error:
        raise UserError(
            f"{place}: its schedule {name[:60]!r} can't be used ({one_line(error)})",
            advice=f"known are {', '.join((*SCHEDULES, *FLOW))}, which predict epsilon, v_prediction or sample",
        ) from None
    return {"prediction": prediction, "timesteps": _steps(own), "scheduler": own, "own": own}


def _steps(scheduler):
    steps = scheduler.config.num_train_timesteps
    if not 10 <= steps <= 100_000:
        raise ValueError(f"{steps} timesteps")
    return steps


def read_config(path, most=MOST_BYTES):
    """A JSON object of a stranger's. Raises UserError."""
    try:
        if path.stat().st_size > most:
            raise ValueError("it is too large")
        content = json.loads(path.read_text("utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} can't be read ({one_line(error)})", advice="give the whole pipeline's folder"
        ) from None
    return content


def refuse_absurd(place, name="config.json"):
    """Raise UserError for a configuration that nothing real has, whose weights are quantised, or that names code."""
    _refuse_absurd_values(place, read_config(Path(place) / name))


def _refuse_absurd_values(place, config, depth=0):
    if config.get("quantization_config") is not None:
        raise UserError(
            f"{place} is quantised, and rounding hides what a model remembers",
            advice="give its weights as float16, bfloat16 or float32",
        )
    for name, value in config.items():
        # With a slash it is a program that the library would fetch and run.
        if "attn_implementation" in name and "/" in json.dumps(value):
            raise UserError(f"{place}: {name[:60]} {str(value)[:60]!r} names code", advice="don't trust it")
        if isinstance(value, dict) and depth < MOST_DEPTH:
            _refuse_absurd_values(place, value, depth + 1)
        values = value if isinstance(value, list) else [value]
        most = MOST_LAYERS if "layers" in name or len(values) > MOST_LAYERS else MOST
        most = MOST_SIDE if name in ("image_size", "patch_size") else most
        for number in values:
            if (isinstance(number, int) and abs(number) > most) or len(values) > MOST_LAYERS:
                raise UserError(f"{place}: {name[:60]} {str(value)[:60]} can't be", advice="give an undamaged one")


def folder_digest(folder):
    """SHA-256, hex, of all that is read of a pipeline's folder, by name."""
    folder, found = Path(folder), []
    name, _ = _index_of(folder)
    for part in (INDEX, "scheduler", *(part.removesuffix("?") for part in KNOWN[name])):
        place = folder / part
        found += [place] if place.is_file() else sorted(path for path in place.glob("*") if is_read(path))
    return digest_of_files(folder, found)


def is_read(path):
    """Whether a library may read a file of a folder: not what people or systems put beside it."""
    return path.is_file() and path.suffix in READ and not path.name.startswith(".")


def file_digest(path, folder):
    """SHA-256, hex, of a single file and of the folder that says what it is."""
    return files.canonical_digest([readable_digest(path), folder_digest(folder)])


def digest_of_files(folder, paths):
    """SHA-256, hex, of files below a folder and their names there."""
    return files.canonical_digest([[path.relative_to(folder).as_posix(), readable_digest(path)] for path in paths])
