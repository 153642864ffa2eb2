"""Open a state dict (torch, safetensors) of a network that is named.

Public: open_state_dict, find_network, build_model, PICKLED.
"""

import argparse
import difflib
import math
import warnings
from collections import OrderedDict

import torch
from safetensors import safe_open

import utils
from experiment.training import IMAGENET_MEAN, IMAGENET_STD
from kit.errors import UnknownNetwork, UserError
from networks import build_network, network_names
from suspects.answering import MOST_CLASSES, FileSuspect, merged_preprocessing, one_line

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".tar")  # timm writes last.pth.tar
_WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "params", "state_dict_ema")
_PREFIXES = ("module.", "model.", "_orig_mod.", "backbone.")


def open_state_dict(path, identity, net_type, device, precision, overrides, batch_size):
    if path.suffix.lower() not in (".safetensors", *PICKLED):
        raise UserError(f"{path} is not read here", advice=f"give .safetensors, {', '.join(PICKLED)} or .onnx")
    tensors = _unwrapped(path, _read_tensors(path))
    if net_type is None:
        raise UserError(
            f"{path} holds weights only",
            advice="give --net_type, the name of their network in networks/, torchvision or timm",
            flag="--net_type",
        )
    family, name = find_network(net_type)
    net_type = f"{family}:{name}"
    with utils.seeded("network of a state dict"):  # building one draws weights from the caller's generator otherwise
        tensors, classes = _matched(
            path, tensors, net_type, _shapes(family, name, tensors, 11), _shapes(family, name, tensors, 13)
        )
        model = build_model(family, name, tensors, classes)
    # Some torchvision networks refuse weights without a version; the names and shapes were compared above.
    tensors = OrderedDict(tensors)
    tensors._metadata = model.state_dict()._metadata
    model.load_state_dict(tensors, strict=False)
    facts, hint = {"networks": _own_facts, "timm": _timm_facts, "torchvision": _torchvision_facts}[family](
        path, name, model, overrides
    )
    preprocessing = merged_preprocessing(path, [(family, facts), ("flags", overrides)], hint)
    query = _torch_query(model.to(device).eval(), preprocessing, device, precision)
    return FileSuspect(
        query, {**identity, "kind": "state dict", "net_type": net_type}, preprocessing, batch_size, classes
    )


def _torch_query(model, preprocessing, device, precision):
    @torch.inference_mode()
    def query(images):
        inputs = torch.from_numpy(preprocessing.normalize(images)).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            return torch.cat([model(part).float() for part in utils.in_pieces(inputs, device)]).cpu().numpy()

    return query


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
        raise UserError(
            f"{path} is truncated or holds more than tensors, so it was refused and nothing in it was run "
            f"({one_line(error)})",
            advice="save model.state_dict(), best as .safetensors",
        ) from None


def _unwrapped(path, content):
    for _ in range(3):  # a pickle can hold itself
        inner = [content[key] for key in _WRAPPERS if isinstance(content, dict) and isinstance(content.get(key), dict)]
        content = inner[0] if inner else content
    if not isinstance(content, dict) or not content:
        raise UserError(
            f"{path} holds {type(content).__name__} without tensors instead of a state dict",
            advice="save model.state_dict()",
        )
    for name, value in content.items():
        if not (
            isinstance(name, str)
            and isinstance(value, torch.Tensor)
            and value.layout == torch.strided
            and value.device.type == "cpu"
            and not value.is_quantized
        ):
            raise UserError(f"{path}: {str(name)[:80]!r} is not a dense tensor", advice="save model.state_dict() alone")
    return dict(content)


def find_network(net_type):
    """-> (family, name). UserError naming the nearest names."""
    wanted, _, name = net_type.strip().rpartition(":")
    names = {"networks": network_names, "torchvision": _torchvision_names, "timm": _timm_names}
    if wanted and wanted not in names:
        raise UserError(
            f"--net_type {net_type}: {wanted!r} is no library of networks",
            advice=f"use one of {', '.join(names)}",
            flag="--net_type",
        )
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
    raise UnknownNetwork(f"unknown network {net_type!r}{nearest}{absent}", advice="check --net_type", flag="--net_type")


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
        raise UserError(
            f"network {family}:{name} can't be built ({one_line(error)})", advice="check --net_type", flag="--net_type"
        ) from None


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
        raise UserError(
            f"{net_type} has no classifier", advice="give --net_type of a network that classifies", flag="--net_type"
        )
    classes = next((len(tensors[name]) for name in heads if name in tensors and tensors[name].ndim), 11)
    wanted = {
        name: tuple(classes if side != other else side for side, other in zip(shape, thirteen[name], strict=True))
        for name, shape in eleven.items()
    }
    # Files from before PyTorch 0.4.1 lack the counters, which nothing reads.
    missing = [f"{name} is missing" for name in wanted if name not in tensors and "num_batches_tracked" not in name]
    strange = [f"{name[:80]!r} is unexpected" for name in tensors if name not in wanted]
    unlike = [
        f"{name} has shape {tuple(tensors[name].shape)} instead of {shape}"
        for name, shape in wanted.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if missing or strange or unlike:
        count = len(missing) + len(strange) + len(unlike)
        raise UserError(
            f"{path} does not fit {net_type}: {'; '.join(missing[:1] + strange[:1] + unlike[:1])} ({count} of such)",
            advice="give the --net_type that it was trained as",
            flag="--net_type",
        )
    if not 2 <= classes <= MOST_CLASSES:
        raise UserError(f"{path} has {classes} classes", advice=f"an audit needs 2 to {MOST_CLASSES}")
    return tensors, classes


def _own_facts(path, name, model, overrides):
    known = {"size": 224, "mean": IMAGENET_MEAN, "std": IMAGENET_STD} if name == "resnet18_pretrained" else {}
    return known, ""


def _timm_facts(path, name, model, overrides):
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(model)
    height, width = config["input_size"][1:]
    facts = {
        "size": (height, width),
        "mean": config["mean"],
        "std": config["std"],
        "interpolation": config["interpolation"],
    }
    if "size" in overrides or "resize" in overrides:
        return facts, ""  # timm's resize belongs to timm's size
    if config["crop_mode"] != "center" or height != width:
        raise UserError(
            f"{path}: timm scales photos for {name} without keeping their shape, which can't be done here",
            advice=f"give --resize, the shorter side before a centre crop (timm's input is {height} x {width} px)",
        )
    return {**facts, "resize": math.floor(height / config["crop_pct"])}, ""


def _torchvision_facts(path, name, model, overrides):
    from torchvision.models import get_model_weights

    transform = get_model_weights(name).DEFAULT.transforms()
    facts = {
        "size": transform.crop_size[0],
        "mean": transform.mean,
        "std": transform.std,
        "interpolation": transform.interpolation.value,
    }
    if "size" not in overrides:  # torchvision's resize belongs to torchvision's size
        facts["resize"] = transform.resize_size[0]
    if name not in ("googlenet", "inception_v3"):
        return facts, ""
    # Begun with ImageNet's weights these normalise once more inside, begun from scratch they don't (transform_input).
    del facts["mean"], facts["std"]
    return facts, " (three times 0.5 for both, if it was fine-tuned from torchvision's ImageNet weights)"
