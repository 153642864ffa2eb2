"""LoRAs: small files that change a base model, laid out as kohya's trainer, diffusers or peft write them.

What a library does not recognise in one it leaves out, with a warning at most, and the base model that remains would
seem innocent. So every tensor of the file has to be found again in the model, to the bit.

Public: Adapter, read_adapter, is_adapter, refuse_as_base, adapter_file, attach, switched, parts_of_base.
"""

import hashlib
import json
import re
import warnings
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from kit.errors import UserError
from suspects.answering import one_line, readable_digest
from suspects.opened import read_metadata
from suspects.pipelines import headers_of, is_pipeline, library
from utils import seeded

NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")  # in a folder, of diffusers and of peft
NAME = "audited"
KOHYA = re.compile(r"lora_(unet|te|te1|te2|te3|transformer)_")
LAYOUTS = {
    "kohya": KOHYA.match,
    "peft": re.compile(r"base_model\.model\.").match,
    "diffusers": re.compile(r"(unet|transformer|text_encoder|text_encoder_2)\.").match,
}
MARK = re.compile(r"lora[._](A|B|down|up)\b|\.lora_(A|B|down|up)\.|^lora_(unet|te)")
HALF = re.compile(r"(lora(?:_linear_layer)?[._])(A|B|down|up)\b")
OTHER_HALF = {"A": "B", "B": "A", "down": "up", "up": "down"}
UNREAD = re.compile(r"hada_|lokr_|oft_|\.diff(_b)?$|dora_scale|lora_magnitude|lora_mid|bundle_emb")
# What trainers say of a LoRA, the first that are there being shown.
SAYS = ("ss_sd_model_name", "ss_base_model_version", "modelspec.architecture", "ss_output_name", "modelspec.title")
SAYS += ("modelspec.prediction_type", "ss_v_parameterization", "ss_new_sd_model_hash")
SAYS += ("ss_num_train_images", "ss_num_epochs", "ss_steps", "ss_tag_frequency")
PREDICTIONS = {"epsilon", "v_prediction"}  # which shapes don't tell apart
# Words of `ss_base_model_version` and `modelspec.architecture`, and the pipelines that they are not of.
FAMILIES = {
    "StableDiffusionXLPipeline": re.compile(r"sdxl|stable-diffusion-xl"),
    "StableDiffusion3Pipeline": re.compile(r"sd3|stable-diffusion-3"),
    "FluxPipeline": re.compile(r"flux"),
    "StableDiffusionPipeline": re.compile(r"sd_?v?[12]|sd_1|stable-diffusion-v[12]"),
}


@dataclass(frozen=True)
class Adapter:
    """A LoRA as it was read. tensors: by the names in its file; layout: a name of LAYOUTS; says: its metadata."""

    path: Path
    tensors: dict
    layout: str
    says: dict
    digest: str

    @property
    def weights(self):
        """The tensors without the numbers that scale them."""
        return {name: value for name, value in self.tensors.items() if not name.endswith(".alpha")}

    @property
    def rank(self):
        """The rank of most of its layers."""
        down = [len(value) for name, value in self.weights.items() if re.search(r"lora[._](A|down)", name)]
        return Counter(down).most_common(1)[0][0] if down else 0

    def facts(self):
        """What is shown of it, JSON-ready."""
        said = {name: _printable(self.says[name]) for name in SAYS if name in self.says}
        return {"layout": self.layout, "rank": self.rank, "tensors": len(self.weights), "says": said}

    def describe(self):
        """The same as a few words."""
        said = ", ".join(f"{name.removeprefix('ss_')} {text}" for name, text in self.facts()["says"].items())
        return (
            f"LoRA ({self.layout} layout, rank {self.rank}, {len(self.weights)} tensors; it says: {said or 'nothing'})"
        )


def adapter_file(path):
    """The LoRA's file that a path names, be it the file or its folder; None where it names none. Raises UserError where
    a folder that is no pipeline holds other weights, too: which are meant?"""
    path = Path(path)
    if path.is_dir() and is_pipeline(path):
        return next((path / name for name in NAMES if (path / name).is_file()), None)
    if path.is_dir():
        weights = sorted(path.glob("*.safetensors"))
        found = [one for one in weights if is_adapter(one)]
        if found and len(weights) > 1:
            raise UserError(
                f"{path} holds {len(weights)} files of weights, {weights[0].name} and {weights[1].name} among them",
                advice="give the LoRA's file that is meant",
            )
        return found[0] if found else None
    return path if path.suffix.lower() == ".safetensors" and is_adapter(path) else None


def refuse_as_base(path, flag):
    """Raise UserError where a safetensors file that is to be a whole model looks like a LoRA."""
    if is_adapter(path):
        raise UserError(f"{flag} {path} is a LoRA", advice="give the model that one changes", flag=flag)


def is_adapter(path):
    """Whether a safetensors file looks like a LoRA, or like what LoRAs are taken for. Raises UserError for a damaged
    one."""
    return any(MARK.search(name) or UNREAD.search(name) for name in headers_of(path))


def read_adapter(path):
    """The Adapter in a file. Raises UserError for a layout that is not known, and for what is no plain LoRA."""
    path = Path(path)
    names = headers_of(path)
    if other := [name for name in names if UNREAD.search(name)]:
        raise UserError(
            f"{path} is no plain LoRA: {other[0][:80]!r} is of LoHa, LoKr, DoRA or another kind that is not read here",
            advice="merge it into its base and give the merged model",
        )
    known = {layout: sum(bool(fits(name)) for name in names) for layout, fits in LAYOUTS.items()}
    layout = max(known, key=known.get)
    if strange := [name for name in names if not LAYOUTS[layout](name)]:
        raise UserError(
            f"{path}: {strange[0][:80]!r} is of no known layout ({len(strange)} of {len(names)} keys)",
            advice=f"known are those of {', '.join(LAYOUTS)}",
        )
    every = set(names)
    for name in names:
        half = HALF.sub(lambda found: found[1] + OTHER_HALF[found[2]], name)
        # Libraries leave such a layer out, or fill it with anything.
        if half not in every and not name.endswith(".bias"):
            raise UserError(f"{path}: {half[:90]!r} is missing, the other half of {name[:90]!r}", "get the whole file")
    return Adapter(path, load_file(path), layout, read_metadata(path), readable_digest(path))


def parts_of_base(adapter, base, base_file):
    """Raise UserError where a LoRA says that it was trained on another model. base: the Pipeline; base_file: SHA-256 of
    the single file that it is from, None for a folder."""
    said = f"{adapter.says.get('ss_base_model_version', '')} {adapter.says.get('modelspec.architecture', '')}".lower()
    families = [name for name, words in FAMILIES.items() if words.search(said)]
    if families and base.name in FAMILIES and base.name not in families[:1]:
        raise UserError(
            f"{adapter.path} says that it was trained on {_printable(said.strip())}, and --base_model is a {base.name}",
            advice="give the model that it was trained on",
            flag="--base_model",
        )
    # Written by the trainer alone: programs that merge LoRAs, or make one of two models, guess `prediction_type`.
    predicts = {"true": "v_prediction", "false": "epsilon"}.get(str(adapter.says.get("ss_v_parameterization")).lower())
    if predicts and base.schedule["prediction"] in PREDICTIONS - {predicts}:
        raise UserError(
            f"{adapter.path} says that it was trained to predict {predicts}, and --base_model predicts "
            f"{base.schedule['prediction']}",
            advice="give the model that it was trained on",
            flag="--base_model",
        )
    wanted = str(adapter.says.get("ss_new_sd_model_hash", "")).lower()
    if base_file and re.fullmatch(r"[0-9a-f]{64}", wanted) and wanted != base_file:
        raise UserError(
            f"{adapter.path} says that it was trained on the file with SHA-256 {wanted[:16]}..., and --base_model is "
            f"{base_file[:16]}...",
            advice="give the very file that it was trained on",
            flag="--base_model",
        )


def attach(adapter, base):
    """Put a LoRA into a Pipeline, switched on. Raises UserError where any of it finds no place there."""
    if adapter.path.suffix != ".safetensors":  # as the library wants it
        raise UserError(f"{adapter.path} does not end in .safetensors", advice="rename it")
    try:
        with seeded("adapter"), warnings.catch_warnings(action="ignore"):
            if adapter.layout == "peft" or not hasattr(base.whole, "load_lora_weights"):
                _inject(adapter, base)
            else:
                base.whole.load_lora_weights(
                    str(adapter.path.parent),
                    weight_name=adapter.path.name,
                    adapter_name=NAME,
                    local_files_only=True,
                    use_safetensors=True,
                )
            loaded = _loaded(base)
    except UserError:
        raise
    except Exception as error:  # shapes that don't fit, keys that belong nowhere
        raise _misfit(adapter, one_line(error)) from None
    dtype = next(base.network.parameters()).dtype
    factors = _factors(adapter) if adapter.layout == "kohya" and base.name == "FluxPipeline" else {}
    lost = [
        name for name, value in adapter.weights.items() if not _is_there(value * factors.get(name, 1), loaded, dtype)
    ]
    if lost:
        raise _misfit(
            adapter, f"{lost[0][:100]!r} finds no place in it ({len(lost)} of {len(adapter.weights)} tensors)"
        )
    for module in base.modules.values():
        module.eval().requires_grad_(False)


def _misfit(adapter, why):
    return UserError(
        f"{adapter.path} does not fit --base_model: {why}",
        advice="give the model that it was trained on",
        flag="--base_model",
    )


def _inject(adapter, base):
    """peft's own way, for networks that diffusers puts no LoRA into, and for files of peft."""
    peft = library("peft")
    prefix = f"{base.part}." if adapter.layout == "diffusers" else "base_model.model."
    if adapter.layout == "kohya":
        raise _misfit(adapter, f"kohya's layout is not known for a {base.name}")
    names = {name: name.removeprefix(prefix) for name in adapter.tensors}
    if same := [name for name in names if names[name] == name]:
        raise _misfit(adapter, f"{same[0][:80]!r} is no part of its {base.part}")
    tensors = {names[name]: value for name, value in adapter.tensors.items()}
    layers = sorted({name.rpartition(".lora_")[0] for name in tensors})
    ranks = {layer: len(tensors[f"{layer}.lora_A.weight"]) for layer in layers}
    config = peft.LoraConfig(
        r=adapter.rank, lora_alpha=_alpha(adapter, base.part), target_modules=layers, rank_pattern=ranks
    )
    peft.inject_adapter_in_model(config, base.network, NAME)
    peft.set_peft_model_state_dict(base.network, tensors, NAME)


def _alpha(adapter, part):
    """What the product of a LoRA's matrices is multiplied by, times its rank."""
    beside = adapter.path.with_name("adapter_config.json")
    if adapter.layout == "diffusers":
        config = _json(adapter.says.get("lora_adapter_metadata", "{}"), adapter.path)
        config = {name.removeprefix(f"{part}."): value for name, value in config.items()}
        alpha = config.get("lora_alpha", adapter.rank)  # as diffusers has it where nothing is said
    elif not beside.is_file():
        raise UserError(f"{beside} is missing", advice="give it, too: it says by how much the LoRA changes the model")
    else:
        config = _json(beside.read_text("utf-8", "replace")[: 1 << 20], beside)
        alpha = config.get("lora_alpha")
    unread = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication")
    if other := [name for name in unread if config.get(name)]:
        raise UserError(f"{adapter.path} uses {other[0]}, which is not read here", advice="merge it into its base")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < abs(alpha) < 1e6:
        raise UserError(f"{adapter.path}: lora_alpha {str(alpha)[:40]!r} can't be", advice="give an undamaged file")
    return alpha


def _json(text, where):
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{where}: its settings can't be read", advice="give an undamaged file")
    return content


def _loaded(base):
    """Digests of all tensors of adapters in a Pipeline."""
    return {
        _digest(value)
        for module in base.modules.values()
        for name, value in module.named_parameters()
        if f".{NAME}." in name
    }


def _factors(adapter):
    """{name: by what diffusers multiplies a tensor of kohya's for Flux}: alpha / rank, shared out by powers of two."""
    found = {}
    for name, alpha in adapter.tensors.items():
        layer = name.removesuffix(".alpha")
        down = adapter.tensors.get(f"{layer}.lora_down.weight")
        if layer == name or down is None:
            continue
        first, second = float(alpha) / max(1, len(down)), 1.0
        while 0 < 2 * first < second:
            first, second = 2 * first, second / 2
        found |= {f"{layer}.lora_down.weight": first, f"{layer}.lora_up.weight": second}
    return found


def _is_there(value, loaded, dtype):
    """Whether a file's tensor is in the model: whole, or cut as `_cuts` has it."""
    value = value.to(dtype) if dtype != torch.float32 else value
    return any(all(_digest(piece) in loaded for piece in pieces) for pieces in _cuts(value))


def _cuts(value):
    """Ways in which what one program has in one piece are several layers to another: queries, keys and values; gates
    and values; Flux's queries, keys, values and perceptron, which is four times as wide. The latter are of one LoRA
    each where a matrix has all else zero."""
    yield [value]
    if not value.ndim:
        return
    rows = len(value)
    parts = [[rows // count] * count for count in (2, 3, 4) if rows % count == 0]
    parts += [[rows // 7] * 3 + [rows // 7 * 4]] if rows % 7 == 0 else []
    for sizes in parts:
        pieces = value.split(sizes)
        yield pieces
        if value.ndim == 2 and value.shape[1] % len(sizes) == 0:
            blocks = [piece.chunk(len(sizes), dim=1) for piece in pieces]
            apart = all(not block.any() for i, row in enumerate(blocks) for j, block in enumerate(row) if i != j)
            if apart:
                yield [row[i] for i, row in enumerate(blocks)]


def _digest(value):
    content = value.detach().float().contiguous().cpu().numpy()
    return hashlib.sha256(f"{content.size}:".encode() + content.tobytes()).hexdigest()


@contextmanager
def switched(base, on):
    """A Pipeline whose adapter is on or off, inside the block."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [
        layer for module in base.modules.values() for layer in module.modules() if isinstance(layer, BaseTunerLayer)
    ]
    for layer in layers:
        layer.enable_adapters(on)
    try:
        yield base
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def _printable(text):
    return "".join(letter if letter.isprintable() else " " for letter in str(text))[:80]
