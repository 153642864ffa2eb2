"""Open a file that holds a model and answer for it: a run of train.py, a state dict (torch, safetensors), ONNX, a
diffusion model, an encoder or a captioner.

Model files come from strangers: nothing in them is executed (no unpickling beyond torch's tensors, no custom operators,
no file outside the model's folder), and what can't be told for certain is asked for, because an audit through a wrongly
guessed network or preprocessing is worthless. Nothing is downloaded. timm, onnxruntime, diffusers, transformers and
open_clip are needed only by those who ask for them.

Public: open_model, base_digest, read_metadata.
"""

import json
import re
from pathlib import Path

import torch
from safetensors import safe_open

import utils
from experiment import folder
from experiment.training import load_trained
from kit import files
from kit.errors import UserError
from suspects import pipelines
from suspects.answering import SETTINGS, FileSuspect, flag_of, merged_preprocessing, one_line, pattern, readable_digest
from suspects.onnx_file import class_names_of, open_onnx
from suspects.state_dict import open_state_dict
from suspects.towers import is_tower, refuse_unreadable, tower_digest

PIPELINE_FILES = ("model_index.json", "pytorch_lora_weights.safetensors", "adapter_model.safetensors")
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
# Names of tensors in LoRAs (and what is taken for one), and in checkpoints of diffusion models.
GENERATIVE = re.compile(r"lora[._](A|B|down|up|te|unet)|hada_|lokr_|^model\.diffusion_model\.|^first_stage_model\.")


def open_model(
    path,
    net_type=None,
    device="auto",
    precision="auto",
    overrides=None,
    batch_size=64,
    base=None,
    config=None,
    signal="error",
):
    """Open a model file (or a folder) as a Suspect whose answers are float32 (N, classes), labels, or scores.

    path: a run folder of train.py; .safetensors; a state dict as .pt, .pth, .bin or .ckpt; .onnx (always run on the
    CPU); a pipeline's folder, checkpoint or LoRA (see diffusion.open_diffusion, which takes base, config and signal);
    the folder of an encoder or a captioner (see encoder.open_encoder, which takes base).
    net_type: for state dicts, a network's name in networks/, torchvision or timm, looked up in this order, or
    "timm:NAME" etc. precision: "float32", "bfloat16" or "auto", that of its training for runs and float32 for others.
    overrides: {key: value} for keys of Preprocessing (no source); they win over what the file or the library says;
    None as a value stands for "not given". Raises UserError.
    """
    path, overrides = Path(path), {key: value for key, value in (overrides or {}).items() if value is not None}
    if precision not in ("auto", "float32", "bfloat16") or not overrides.keys() <= SETTINGS.keys():
        raise ValueError(f"unknown precision {precision} or key among {list(overrides)}")
    if family := _scored_family(path, net_type, base, config):
        rest = (utils.choose_device(str(device)), precision, overrides, batch_size)
        suspect = (
            _open_encoder(path, base, *rest)
            if family == "encoder"
            else _open_diffusion(path, base, config, *rest, signal)
        )
        suspect.name = path.resolve().name
        if not base:  # else it was asked when it was compared with that
            _try(suspect)
        return suspect
    file = folder.RunPaths.existing(path).model if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"model {file} does not exist", advice="check the path")
    identity = {"kind": None, "file": file.name, "sha256": readable_digest(file), "net_type": None, "classes": None}
    if file.suffix.lower() == ".onnx":
        if precision == "bfloat16":
            raise UserError(f"{file}: an ONNX file has its own precision", advice="leave --precision out")
        suspect = open_onnx(file, identity, overrides, batch_size)
    else:
        device = utils.choose_device(str(device))
        is_run = file.suffix.lower() == ".safetensors" and read_metadata(file).get("format") == files.MODEL_FORMAT
        opener = _open_run if is_run else open_state_dict
        suspect = opener(file, identity, net_type, device, precision, overrides, batch_size)
        _try(suspect)
    suspect.name = path.resolve().name
    return suspect


def _open_encoder(*options):
    from suspects.encoder import open_encoder

    return open_encoder(*options)


def _open_diffusion(*options):
    from suspects.diffusion import open_diffusion

    return open_diffusion(*options)


def _scored_family(path, net_type, base, config):
    """ "diffusion" or "encoder" for what is opened as one, None for others. UserError where flags of one were given and
    it is none."""
    single = path.is_file() and path.suffix.lower() == ".safetensors"
    kind = single and _kind_of_weights(path)
    family = None
    if kind == "diffusion" or (single and kind != "run" and (base or config)) or _is_diffusion_folder(path):
        family = "diffusion"
    elif path.is_dir() and is_tower(path):
        family = "encoder"
    if family and net_type is not None:
        raise UserError(f"{path} says what it is", advice="leave --net_type out", flag="--net_type")
    if (base and not family) or (config and family != "diffusion"):
        _refuse_base(path, family, "--model_config" if config else "--base_model")
    return family


def _is_diffusion_folder(path):
    """Whether a folder is a pipeline's, or holds a LoRA."""
    if any((path / name).is_file() for name in PIPELINE_FILES):
        return True
    if not path.is_dir() or is_tower(path):
        return False
    from suspects.adapters import adapter_file

    return adapter_file(path) is not None


def _refuse_base(path, family, flag):
    """Raise UserError: a base, or what says how one is read, was given beside what has none."""
    if not path.exists():
        raise UserError(f"model {path} does not exist", advice="check the path")
    weights = [path] if path.is_file() else sorted(path.glob("*"))
    pickles = [one for one in weights if one.suffix.lower() in PICKLES]
    if not family and pickles and not any(one.suffix == ".safetensors" for one in weights):
        raise UserError(
            f"{pickles[0]} could run code of whoever made it, and is not read as a generator or encoder",
            advice=f"ask for the weights as .safetensors; for a classifier leave {flag} out",
            flag=flag,
        )
    if not family and path.is_dir():
        raise UserError(
            f"{path} holds no model: neither {pipelines.INDEX}, config.json nor a LoRA as .safetensors",
            advice="give a pipeline's or an encoder's folder, or a file of weights",
            flag="--checkpoint",
        )
    kinds = "diffusion models" if flag == "--model_config" else "generators and encoders"
    raise UserError(f"{flag} is for {kinds}, and {path} is none", advice="leave it out", flag=flag)


def _kind_of_weights(path):
    """ "run", "diffusion" or "weights": what the names in a safetensors file say."""
    if read_metadata(path).get("format") == files.MODEL_FORMAT:
        return "run"
    with safe_open(path, framework="pt") as file:
        return "diffusion" if any(GENERATIVE.search(name) for name in file.keys()) else "weights"  # noqa: SIM118


def base_digest(path, config=None):
    """SHA-256 by which a base model is known (`identity` of what was made of it), which is not opened for it.

    path: a pipeline's or an encoder's folder, or a .safetensors file with the folder that says what it is, config.
    Raises UserError, also for one that an audit could not open, as far as that can be told without opening it: it is
    fixed before anything is marked.
    """
    path = Path(path)
    if path.is_dir() and not pipelines.is_pipeline(path) and is_tower(path):
        refuse_unreadable(path)
        return tower_digest(path)
    if pipelines.is_pipeline(path):
        pipelines.refuse_unreadable(path)
        return pipelines.folder_digest(path)
    if not path.is_file() or config is None or not pipelines.is_pipeline(config):
        raise UserError(
            f"--base_model {path} is neither a model's folder nor a file beside one",
            advice="give the folder, or the .safetensors file and a folder of its kind as --model_config",
            flag="--base_model",
        )
    from suspects.adapters import refuse_as_base

    refuse_as_base(path, "--base_model")
    return pipelines.file_digest(path, config)


def _try(suspect):
    # A wrong size or network shows itself when the model is opened, before anybody's photos are read.
    suspect.ask(pattern(1, suspect.preprocessing.size))


# ----------------------------------------------------------------------------------------------------------------------
# Runs of train.py
# ----------------------------------------------------------------------------------------------------------------------


def _open_run(path, identity, net_type, device, precision, overrides, batch_size):
    fixed = [flag_of(key) for key in ("mean", "std", "white") if key in overrides]
    if fixed:
        raise UserError(f"{path} has mean and std of its training inside", advice=f"leave {' and '.join(fixed)} out")
    query, record = load_trained(path, device, None if precision == "auto" else precision)
    stored = record["settings"]["net_type"]
    if net_type is not None and net_type.removeprefix("networks:") != stored:
        raise UserError(f"{path} holds a {stored}, not a {net_type}", advice="leave --net_type out", flag="--net_type")
    # As dataset/store.py makes training images of photos: scaled to cover the input, bilinear, centre crop.
    facts = {"size": record["settings"]["image_size"], "mean": record["mean"], "std": record["std"]}
    preprocessing = merged_preprocessing(path, [("checkpoint", facts), ("flags", overrides)])
    identity = {**identity, "kind": "run", "net_type": stored}
    suspect = FileSuspect(
        lambda images: query(torch.tensor(images)).cpu().numpy(),
        identity,
        preprocessing,
        batch_size,
        record["classes"],
        class_names_of({"class_names": json.dumps(record.get("class_names"))}, record["classes"]),
    )
    suspect.training_settings = record["settings"]  # tells which images of its data set it has not seen
    return suspect


def read_metadata(path):
    """What a safetensors file says of itself, {str: str}. UserError for a damaged file."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except Exception as error:  # a damaged header shows itself in many ways
        raise files.no_safetensors(path, one_line(error)) from None
