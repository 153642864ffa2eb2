"""Open a file that holds a model and answer for it: a run of train.py, a state dict (torch, safetensors) or ONNX.

Public: open_model, find_network, build_model, read_metadata.
Model files come from strangers: nothing in them is executed (no unpickling beyond torch's tensors, no custom operators,
no file outside the model's folder), and what can't be told for certain is asked for, because an audit through a wrongly
guessed network or preprocessing is worthless. Nothing is downloaded.
timm and onnxruntime are needed only by those who ask for them.
"""

import argparse
import difflib
import hashlib
import json
import math
import re
import warnings
from collections import OrderedDict
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import numpy as np
import torch
from safetensors import safe_open

import runs
import utils
from experiment import IMAGENET_MEAN, IMAGENET_STD, load_trained
from networks import build_network, network_names
from provenance.suspect import Answers, Preprocessing, Suspect
from runs import UserError

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".tar")  # timm writes last.pth.tar
_WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "params", "state_dict_ema")
_PREFIXES = ("module.", "model.", "_orig_mod.", "backbone.")
_MOST_CLASSES, _MOST_AT_ONCE = 100_000, 1024  # a damaged file must not fill the memory
_KEYS = {"size": "one or two whole numbers, height first", "resize": "a whole number of pixels up to 8192",
         "mean": "three numbers", "std": "three numbers", "white": "1 or 255", "interpolation": "a word"}


def open_model(path, net_type=None, device="auto", precision="auto", overrides=None, batch_size=64):
    """Open a model file (or a run folder of train.py) as a Suspect whose answers are float32 (N, classes), or labels.

    path: a run folder; .safetensors; a state dict as .pt, .pth, .bin or .ckpt; .onnx (always run on the CPU).
    net_type: for state dicts, a network's name in networks/, torchvision or timm, looked up in this order, or
    "timm:NAME" etc. precision: "float32", "bfloat16" or "auto", that of its training for runs and float32 for others.
    overrides: {key: value} for keys of Preprocessing (no source); they win over what the file or the library says;
    None as a value stands for "not given". Raises UserError.
    """
    path, overrides = Path(path), {key: value for key, value in (overrides or {}).items() if value is not None}
    if precision not in ("auto", "float32", "bfloat16") or not overrides.keys() <= _KEYS.keys():
        raise ValueError(f"unknown precision {precision} or key among {list(overrides)}")
    file = runs.RunPaths.existing(path).model if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"model {file} does not exist; check the path")
    identity = {"kind": None, "file": file.name, "sha256": _digest(file), "net_type": None, "classes": None}
    if file.suffix.lower() == ".onnx":
        if precision == "bfloat16":
            raise UserError(f"{file}: an ONNX file has its own precision; leave --precision out")
        suspect = _open_onnx(file, identity, overrides, batch_size)
    else:
        device = utils.choose_device(str(device))
        is_run = file.suffix.lower() == ".safetensors" and read_metadata(file).get("format") == runs.MODEL_FORMAT
        opener = _open_run if is_run else _open_state_dict
        suspect = opener(file, identity, net_type, device, precision, overrides, batch_size)
        _try(suspect)
    suspect.name = path.resolve().name
    return suspect


class _FileSuspect(Suspect):
    # query: uint8 (N, 3, h, w) -> an array of floats (N, classes), or of whole numbers (N, 1) for label-only models

    def __init__(self, query, identity, preprocessing, batch_size, classes, class_names=None):
        self._query, self.preprocessing, self.batch_size = query, preprocessing, batch_size
        self.name, self.classes, self.class_names = identity["file"], classes, class_names
        self.identity = {**identity, "classes": classes}

    def ask(self, images):
        if images.dtype != np.uint8 or images.shape[1:] != (3, *self.preprocessing.size):
            raise ValueError(f"images are {images.dtype} {images.shape}, not of the size {self.preprocessing.size}")
        try:
            values = self._query(images)
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a stranger's network may fail in any way, most often because of the size
            raise UserError(f"{self.name} can't answer for images of {images.shape[2]} x {images.shape[3]} px "
                            f"({_line(error)}); check --net_type and --input_size") from None
        wanted = (len(images), 1 if np.issubdtype(values.dtype, np.integer) else self.classes)
        if values.shape != wanted:
            raise UserError(f"{self.name} answers with an array {values.shape} instead of {wanted}; "
                            "give a model that answers with one value for each class")
        return _answers(values, self.name)


def _answers(values, name):
    if np.issubdtype(values.dtype, np.integer):
        if values.size and not 0 <= values.min() <= values.max() < 2**31:
            raise UserError(f"{name} returned classes from {values.min()} to {values.max()}; they must count from 0")
        return Answers(None, values.astype(np.int32))
    with np.errstate(over="ignore"):  # found by the next line
        values = values.astype(np.float32)
    wrong = int((~np.isfinite(values)).any(axis=1).sum())
    if wrong:
        raise UserError(f"{name} returned values that are not finite for {wrong} of {len(values)} images; "
                        "is its file damaged?")
    return Answers(values)


def _try(suspect):
    # A wrong size or network shows itself when the model is opened, before anybody's photos are read.
    suspect.ask(_pattern(1, suspect.preprocessing.size))


def _pattern(count, size):
    return np.arange(count * 3 * size[0] * size[1], dtype=np.uint32).astype(np.uint8).reshape(count, 3, *size)


def _line(error):
    """An exception as one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _digest(path):
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); check the path") from None
    return digest.hexdigest()


# ----------------------------------------------------------------------------------------------------------------------
# Preprocessing
# ----------------------------------------------------------------------------------------------------------------------

def _preprocessing(path, parts, hint=""):
    """Merge `parts`, [(source, {key: value})]; later ones win. UserError when size, mean or std is missing."""
    chosen = {key: (_clean(path, source, key, value), source)
              for source, facts in parts for key, value in facts.items()}
    missing = [_flag(key) for key in ("size", "mean", "std") if key not in chosen]
    if missing:
        raise UserError(f"{path} does not say how photos become its input, and a wrong guess would make the audit "
                        f"worthless; give {' and '.join(missing)} as in its training{hint}")
    sources = [source for source, _ in parts if source in {used for _, used in chosen.values()}]
    return Preprocessing(**{key: value for key, (value, _) in chosen.items()}, source=" and ".join(sources))


def _flag(key):
    return "--input_size" if key == "size" else f"--{key}"


def _clean(path, source, key, value):
    # JSON and flags to what Preprocessing wants; its own checks come after that.
    try:
        if key == "size":
            height, width = (value, value) if isinstance(value, int) else value
            return int(height), int(width)
        if key in ("mean", "std"):
            cleaned = tuple(float(number) for number in value)
            valid = len(cleaned) == 3 and all(map(math.isfinite, cleaned)) and not isinstance(value, str)
        elif key == "resize":
            cleaned = None if value is None else int(value)
            valid = cleaned is None or 1 <= cleaned <= 8192
        else:
            cleaned = float(value) if key == "white" else value
            valid = isinstance(value, str) if key == "interpolation" else cleaned in (1, 255)
    except (TypeError, ValueError, OverflowError):
        valid = False
    if not valid:
        raise UserError(f"{path}: {key} {str(value)[:60]!r} (from {source}) can't be; "
                        f"give {_flag(key)}: {_KEYS[key]}")
    return cleaned


# ----------------------------------------------------------------------------------------------------------------------
# Runs of train.py
# ----------------------------------------------------------------------------------------------------------------------

def _open_run(path, identity, net_type, device, precision, overrides, batch_size):
    fixed = [_flag(key) for key in ("mean", "std", "white") if key in overrides]
    if fixed:
        raise UserError(f"{path} has mean and std of its training inside; leave {' and '.join(fixed)} out")
    query, record = load_trained(path, device, None if precision == "auto" else precision)
    stored = record["settings"]["net_type"]
    if net_type is not None and net_type.removeprefix("networks:") != stored:
        raise UserError(f"{path} holds a {stored}, not a {net_type}; leave --net_type out")
    # As dataset/store.py makes training images of photos: scaled to cover the input, bilinear, centre crop.
    facts = {"size": record["settings"]["image_size"], "mean": record["mean"], "std": record["std"]}
    preprocessing = _preprocessing(path, [("checkpoint", facts), ("flags", overrides)])
    identity = {**identity, "kind": "run", "net_type": stored}
    suspect = _FileSuspect(lambda images: query(torch.tensor(images)).cpu().numpy(), identity, preprocessing,
                           batch_size, record["classes"],
                           _class_names({"class_names": json.dumps(record.get("class_names"))}, record["classes"]))
    suspect.training_settings = record["settings"]  # tells which images of its data set it has not seen
    return suspect


# ----------------------------------------------------------------------------------------------------------------------
# State dicts
# ----------------------------------------------------------------------------------------------------------------------

def _open_state_dict(path, identity, net_type, device, precision, overrides, batch_size):
    if path.suffix.lower() not in (".safetensors", *PICKLED):
        raise UserError(f"{path} is not read here; give .safetensors, {', '.join(PICKLED)} or .onnx")
    tensors = _unwrapped(path, _read_tensors(path))
    if net_type is None:
        raise UserError(f"{path} holds weights only; give --net_type, the name of their network in networks/, "
                        "torchvision or timm")
    family, name = find_network(net_type)
    net_type = f"{family}:{name}"
    with utils.seeded("network of a state dict"):  # building one draws weights from the caller's generator otherwise
        tensors, classes = _matched(path, tensors, net_type, _shapes(family, name, tensors, 11),
                                    _shapes(family, name, tensors, 13))
        model = build_model(family, name, tensors, classes)
    # Some torchvision networks refuse weights without a version; the names and shapes were compared above.
    tensors = OrderedDict(tensors)
    tensors._metadata = model.state_dict()._metadata
    model.load_state_dict(tensors, strict=False)
    facts, hint = {"networks": _own_facts, "timm": _timm_facts, "torchvision": _torchvision_facts}[family](
        path, name, model, overrides)
    preprocessing = _preprocessing(path, [(family, facts), ("flags", overrides)], hint)
    query = _torch_query(model.to(device).eval(), preprocessing, device, precision)
    return _FileSuspect(query, {**identity, "kind": "state dict", "net_type": net_type}, preprocessing, batch_size,
                        classes)


def _torch_query(model, preprocessing, device, precision):
    @torch.inference_mode()
    def query(images):
        inputs = torch.from_numpy(preprocessing.normalize(images)).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            return model(inputs).float().cpu().numpy()
    return query


def read_metadata(path):
    """What a safetensors file says of itself, {str: str}. UserError for a damaged file."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except Exception as error:  # a damaged header shows itself in many ways
        raise UserError(runs._why_no_safetensors(path, _line(error))) from None


def _read_tensors(path):
    try:
        if path.suffix.lower() == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error below says all that torch's warnings about odd files would
            # torchvision's and timm's trainers keep their flags beside the weights: a Namespace of plain values, which
            # runs nothing. Whatever else a pickle names stays refused.
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything
        raise UserError(f"{path} is truncated or holds more than tensors, so it was refused and nothing in it was run "
                        f"({_line(error)}); save model.state_dict(), best as .safetensors") from None


def _unwrapped(path, content):
    for _ in range(3):  # a pickle can hold itself
        inner = [content[key] for key in _WRAPPERS if isinstance(content, dict) and isinstance(content.get(key), dict)]
        content = inner[0] if inner else content
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds {type(content).__name__} without tensors instead of a state dict; "
                        "save model.state_dict()")
    for name, value in content.items():
        if not (isinstance(name, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided
                and value.device.type == "cpu" and not value.is_quantized):
            raise UserError(f"{path}: {str(name)[:80]!r} is not a dense tensor; save model.state_dict() alone")
    return dict(content)


def find_network(net_type):
    """-> (family, name). UserError naming the nearest names."""
    wanted, _, name = net_type.strip().rpartition(":")
    names = {"networks": network_names, "torchvision": _torchvision_names, "timm": _timm_names}
    if wanted and wanted not in names:
        raise UserError(f"--net_type {net_type}: {wanted!r} is no library of networks; use one of {', '.join(names)}")
    known, absent = [], ""
    for family in [wanted] if wanted else names:
        try:
            here = names[family]()
        except ImportError:
            absent = "; timm, which knows many more, is not installed (pip install timm)"
            continue
        plain = name.lower() if family == "networks" else name
        # timm's names may end in a tag of the training (resnet18.a1_in1k); WideResNets have any depth and width.
        if plain.split(".")[0] in here or (family == "networks" and plain.startswith(("wideresnet", "wrn"))):
            return family, plain
        known += here
    near = difflib.get_close_matches(name, dict.fromkeys(known), n=3, cutoff=0.5)
    nearest = f": did you mean {' or '.join(near)}?" if near else ""
    raise UserError(f"unknown network {net_type!r}{nearest}{absent}; check --net_type")


def _timm_names():
    import timm
    return timm.list_models()


def _torchvision_names():
    from torchvision import models
    return models.list_models(module=models)


def build_model(family, name, tensors, classes):
    """The network with random weights, as float32 on the CPU (or on torch's meta device, where that is the default)."""
    try:
        if family == "networks":
            return build_network(name, classes, weights="random")
        if family == "timm":
            import timm
            return timm.create_model(name, pretrained=False, num_classes=classes)
        from torchvision.models import get_model
        options = {}
        if name in ("googlenet", "inception_v3"):  # whether the auxiliary classifiers were kept, the file shows
            options = {"init_weights": False, "aux_logits": any(key.lower().startswith("aux") for key in tensors)}
        return get_model(name, weights=None, num_classes=classes, **options)
    except UserError:
        raise
    except Exception as error:  # whatever the library says to a tag that it does not know
        raise UserError(f"network {family}:{name} can't be built ({_line(error)}); check --net_type") from None


def _shapes(family, name, tensors, classes):
    try:
        with torch.device("meta"):
            model = build_model(family, name, tensors, classes)
    except UserError:  # some networks calculate with their weights while they are built
        model = build_model(family, name, tensors, classes)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _matched(path, tensors, net_type, eleven, thirteen):
    """Strip prefixes, read the class count and compare: (tensors under the network's names, number of classes).

    eleven, thirteen: {name: shape} of the network with 11 and with 13 classes: what differs follows the class count.
    """
    while not tensors.keys() & eleven.keys():
        prefix = next((each for each in _PREFIXES if all(name.startswith(each) for name in tensors)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    heads = [name for name, shape in eleven.items() if shape[:1] == (11,) and thirteen[name][:1] == (13,)]
    if not heads:
        raise UserError(f"{net_type} has no classifier; give --net_type of a network that classifies")
    classes = next((len(tensors[name]) for name in heads if name in tensors and tensors[name].ndim), 11)
    wanted = {name: tuple(classes if side != other else side for side, other in zip(shape, thirteen[name], strict=True))
              for name, shape in eleven.items()}
    # Files from before PyTorch 0.4.1 lack the counters, which nothing reads.
    missing = [f"{name} is missing" for name in wanted if name not in tensors and "num_batches_tracked" not in name]
    strange = [f"{name[:80]!r} is unexpected" for name in tensors if name not in wanted]
    unlike = [f"{name} has shape {tuple(tensors[name].shape)} instead of {shape}" for name, shape in wanted.items()
              if name in tensors and tensors[name].shape != shape]
    if missing or strange or unlike:
        count = len(missing) + len(strange) + len(unlike)
        raise UserError(f"{path} does not fit {net_type}: {'; '.join(missing[:1] + strange[:1] + unlike[:1])} "
                        f"({count} of such); give the --net_type that it was trained as")
    if not 2 <= classes <= _MOST_CLASSES:
        raise UserError(f"{path} has {classes} classes; an audit needs 2 to {_MOST_CLASSES}")
    return tensors, classes


def _own_facts(path, name, model, overrides):
    known = {"size": 224, "mean": IMAGENET_MEAN, "std": IMAGENET_STD} if name == "resnet18_pretrained" else {}
    return known, ""


def _timm_facts(path, name, model, overrides):
    from timm.data import resolve_model_data_config
    config = resolve_model_data_config(model)
    height, width = config["input_size"][1:]
    facts = {"size": (height, width), "mean": config["mean"], "std": config["std"],
             "interpolation": config["interpolation"]}
    if "size" in overrides or "resize" in overrides:
        return facts, ""  # timm's resize belongs to timm's size
    if config["crop_mode"] != "center" or height != width:
        raise UserError(f"{path}: timm scales photos for {name} without keeping their shape, which can't be done here; "
                        f"give --resize, the shorter side before a centre crop (timm's input is {height} x {width} px)")
    return {**facts, "resize": math.floor(height / config["crop_pct"])}, ""


def _torchvision_facts(path, name, model, overrides):
    from torchvision.models import get_model_weights
    transform = get_model_weights(name).DEFAULT.transforms()
    facts = {"size": transform.crop_size[0], "mean": transform.mean, "std": transform.std,
             "interpolation": transform.interpolation.value}
    if "size" not in overrides:  # torchvision's resize belongs to torchvision's size
        facts["resize"] = transform.resize_size[0]
    if name not in ("googlenet", "inception_v3"):
        return facts, ""
    # Begun with ImageNet's weights these normalise once more inside, begun from scratch they don't (transform_input).
    del facts["mean"], facts["std"]
    return facts, " (three times 0.5 for both, if it was fine-tuned from torchvision's ImageNet weights)"


# ----------------------------------------------------------------------------------------------------------------------
# ONNX
# ----------------------------------------------------------------------------------------------------------------------

_INPUTS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64,
           "tensor(uint8)": np.uint8}
_OUTPUTS = ("tensor(float)", "tensor(float16)", "tensor(double)", "tensor(int64)", "tensor(int32)")
# How protobuf writes the name of a file of weights: key "location", then the value's length and the value.
_LOCATION = re.compile(rb"\n\x08location\x12([\x00-\x7f])")


def _open_onnx(path, identity, overrides, batch_size):
    outside = _external_data(path)
    session, inputs, outputs, metadata = _session(path)
    kind, shape, channels = _onnx_input(path, inputs)
    preprocessing = _onnx_preprocessing(path, kind, shape, channels, metadata, overrides)
    fixed = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None
    if (fixed or 1) > _MOST_AT_ONCE:
        raise UserError(f"{path} takes {fixed} images at once; export it with a batch of at most {_MOST_AT_ONCE}")

    def run(images, names):
        values = preprocessing.normalize(images).astype(_INPUTS[kind])
        values = values if channels == 1 else np.ascontiguousarray(values.transpose(0, 2, 3, 1))
        if fixed:  # zeros fill the batch up
            values = np.concatenate([values, np.zeros((fixed - len(values), *values.shape[1:]), values.dtype)])
        return session.run(names, {inputs[0].name: values})

    def query(images):
        values = run(images, [name])[0][:len(images)]
        return values if values.ndim == 2 else values[:, None]
    name, classes = _onnx_output(path, outputs, run, _pattern(fixed or 2, preprocessing.size))
    names = _class_names(metadata, classes)
    identity = {**identity, "kind": "onnx", **({"external_data": outside} if outside else {})}
    return _FileSuspect(query, identity, preprocessing, min(batch_size, fixed or batch_size),
                        len(names) if names else classes, names)


def _session(path):
    """-> (session, its inputs, its outputs, the metadata that its maker wrote)."""
    onnxruntime = runs.optional("onnxruntime", path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 4  # what matters comes as an exception
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"],
                                               enable_fallback=0)  # which prints, and tries the same again
        # Copied, because each attribute is decoded when it is read, and a damaged one fails there.
        inputs, outputs = ([SimpleNamespace(name=each.name, type=each.type, shape=each.shape) for each in side]
                           for side in (session.get_inputs(), session.get_outputs()))
        return session, inputs, outputs, session.get_modelmeta().custom_metadata_map
    except Exception as error:  # onnxruntime's errors have no class in common but this
        raise UserError(f"{path} is damaged or no ONNX model that onnxruntime can run ({_line(error)}); "
                        "get an undamaged copy") from None


def _onnx_input(path, inputs):
    """-> (type, shape, which axis holds the three channels: 1 or 3)."""
    kinds = _listed(f"{each.type} {each.shape}" for each in inputs)
    shape = inputs[0].shape if inputs else None
    if len(inputs) != 1 or inputs[0].type not in _INPUTS or len(shape or ()) != 4:
        raise UserError(f"{path} takes {kinds}; give a model of one input, float or uint8, of shape "
                        "(N, 3, height, width) or (N, height, width, 3)")
    # An axis without a number may be the channels; should it not, the first answer fails.
    axis = 1 if shape[1] == 3 else 3 if shape[3] == 3 else 1 if not isinstance(shape[1], int) else None
    if axis is None:
        raise UserError(f"{path} takes {kinds}, where no axis is red, green and blue; give a model of RGB photos")
    return inputs[0].type, shape, axis


def _listed(descriptions):
    # Names are a stranger's, and may hold line breaks and worse.
    return repr(", ".join(descriptions)[:200])


def _onnx_preprocessing(path, kind, shape, channels, metadata, overrides):
    sides = shape[2:] if channels == 1 else shape[1:3]
    facts = {"size": sides} if all(isinstance(side, int) for side in sides) else {}
    if kind == "tensor(uint8)":
        facts |= {"mean": (0, 0, 0), "std": (1, 1, 1), "white": 255}
    try:
        stored = json.loads(metadata.get("preprocessing", "{}"))
        stored = {**stored, **{key: json.loads(metadata[key]) for key in (_KEYS.keys() & metadata) - overrides.keys()}}
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: its metadata about preprocessing is no JSON ({_line(error)}); "
                        "export it without, and give flags") from None
    if unknown := stored.keys() - _KEYS.keys():
        raise UserError(f"{path}: unknown {str(unknown)[:80]} in its metadata; use {', '.join(_KEYS)}")
    stored = {key: value for key, value in stored.items() if key not in overrides}
    merged = _preprocessing(path, [("onnx", facts), ("onnx metadata", stored), ("flags", overrides)])
    for key, value in facts.items():
        if getattr(merged, key) != _clean(path, "onnx", key, value):
            raise UserError(f"{path} takes {kind} {shape}, so {key} can't be {getattr(merged, key)} (from "
                            f"{merged.source}); leave {_flag(key)} out, or make it {value}")
    return merged


def _class_names(metadata, classes):
    # Names only help people, so those that can't be right are left out rather than refused.
    try:
        names = json.loads(metadata.get("class_names", metadata.get("labels", "null")))
    except (ValueError, RecursionError):
        return None
    fits = isinstance(names, list) and len(names) >= 2 and classes in (None, len(names))
    return tuple(names) if fits and all(isinstance(name, str) for name in names) else None


def _onnx_output(path, outputs, run, images):
    """-> (name of the output that says the classes, how many there are or None where it is the top class alone)."""
    candidates = [each.name for each in outputs if each.type in _OUTPUTS]
    if not candidates:
        raise UserError(f"{path} answers with {_listed(each.type for each in outputs)}; export it with numbers as "
                        "output (from scikit-learn with zipmap=False), not with words or maps")
    try:
        values = dict(zip(candidates, run(images, candidates), strict=True))
    except Exception as error:
        raise UserError(f"{path} can't answer for {images.shape} images ({_line(error)}); check --input_size") from None
    dense = [name for name, value in values.items() if value.dtype.kind == "f" and value.ndim == 2
             and len(value) == len(images) and 2 <= value.shape[1] <= _MOST_CLASSES]
    labels = [name for name, value in values.items() if value.dtype.kind == "i"
              and value.shape in ((len(images),), (len(images), 1))]
    # A label beside probabilities (scikit-learn's exporter) says less than they do.
    chosen = dense or labels
    if len(chosen) != 1:
        raise UserError(f"{path} answers with {_listed(f'{name} {value.shape}' for name, value in values.items())}; "
                        "give a model with one output (N, classes) or (N,) of labels")
    return chosen[0], values[chosen[0]].shape[1] if dense else None


def _external_data(path):
    """{name: SHA-256} of the files beside an ONNX file that hold its weights: its own digest does not cover them.

    UserError when one lies outside the folder of the model, which early versions of onnxruntime would have opened.
    """
    data, digests = path.read_bytes(), {}
    names = {data[found.end():found.end() + found[1][0]] for found in _LOCATION.finditer(data)}
    # The files of a linked model may lie where it does itself (as in the caches of model hubs).
    folders = path.parent.resolve(), path.resolve().parent
    for name in sorted(name.decode(errors="replace").replace("\0", "?") for name in names):
        file, steps = path.parent / name, PureWindowsPath(name)  # which knows drives and both kinds of slashes
        if steps.anchor or ".." in steps.parts or not any(map(file.resolve().is_relative_to, folders)):
            raise UserError(f"{path} wants weights from {name[:80]!r}, outside its folder, so it was refused; "
                            "export it with all weights inside")
        if file.is_file():  # if not, onnxruntime says so, or it was a note called "location"
            digests[name] = _digest(file)
    return digests
