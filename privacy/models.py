"""Models under audit: networks by name, and what a model, or a file of its stored answers, says about a record.

Public: build, is_users_own, Recipe, Network, Suspected, StoredLogits, ask, augmented, open_outside.
`language.LanguageModel` is the one for tokens.
A model is anything with `signals(records, rows, query)`: the signals of `utils.sample_signals` for those rows, float64
(n,) on the CPU, each record looked at as `query` says (see `config.QUERIES`).
"""

import importlib
import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import utils
from kit.errors import UnknownNetwork, UserError
from kit.files import read_arrays
from networks import build_network, mlp
from privacy import language
from suspects import opened, state_dict

SHIFT = 2  # pixels by which "up", "down", "left" and "right" move an image; black comes in
_SHIFTS = {"up": (2 * SHIFT, SHIFT), "down": (0, SHIFT), "left": (SHIFT, 2 * SHIFT), "right": (SHIFT, 0)}
# What models_metadata.json may say about how a photo becomes the model's input.
PREPROCESSING = ("input_size", "resize", "mean", "std", "white", "interpolation")


@dataclass(frozen=True)
class Recipe(utils.TrainingSettings):
    """utils' training settings with another schedule of the learning rate, a function of the epoch's number alone.

    "step": divided at milestones, as in the paper; "cosine": half a cosine down to 0; "one_cycle": linear up during the
    first fifth of the epochs and down to 0 after it; "constant".
    """

    schedule: str = "step"

    def lr_at(self, epoch):
        """Learning rate of an epoch, counted from 0."""
        done = (epoch + 0.5) / self.epoch
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * done)) / 2
        if self.schedule == "one_cycle":
            return self.lr * min(done / 0.2, (1 - done) / 0.8)
        return self.lr if self.schedule == "constant" else super().lr_at(epoch)


def build(name, records, settings):
    """A network with initial weights from torch's generator: for `Records`, by the name in train.model_name.

    settings: hidden, pretrained, peft_type and lora_rank of the config's section train. "module:function" and
    "path/to/file.py:function" call the user's own function(num_classes, shape): this runs that code, so it is for
    configs that one has written oneself. Raises UserError.
    """
    classes = len(records.class_names)
    if is_users_own(name):
        return _users_own(name, classes, records.shape)
    if records.kind == "tokens":
        if name != "gpt2":
            raise UserError(
                f"train.model_name {name} is no language model",
                advice="tokens need gpt2 or module:function, or set data.tokenize to false",
            )
        return language.build(records.vocabulary, records.shape[0], settings)
    if name == "mlp":
        return mlp.build(classes, math.prod(records.shape), tuple(settings["hidden"]))
    if records.kind != "images":
        raise UserError(
            f"train.model_name {name} needs {'tokens' if name == 'gpt2' else 'images'}, and "
            f"{records.name} has {records.kind}",
            advice="take mlp or module:function",
        )
    return _image_network(name, classes, records.shape[-1])


def is_users_own(name):
    """Whether a model's name says whose code makes it, "module:function", and not which library has it."""
    return ":" in name and name.split(":")[0] not in ("torchvision", "timm", "networks")


def _image_network(name, classes, size):
    try:
        return build_network(name, classes, size, "random")
    except UserError as own:
        try:
            family, found = state_dict.find_network(name)
            return state_dict.build_model(family, found, (), classes)
        except UserError as error:
            problem = error if isinstance(own, UnknownNetwork) else own
            raise UserError(str(problem).replace("--net_type", "train.model_name")) from None


def _users_own(name, classes, shape):
    place, _, function = name.rpartition(":")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        model = getattr(module, function)(classes, shape)
    except (ImportError, AttributeError, FileNotFoundError) as error:
        raise UserError(
            f"train.model_name {name} can't be called ({error})",
            advice="give module:function or path/to/file.py:function, a function of (num_classes, shape)",
        ) from None
    if not isinstance(model, torch.nn.Module):
        raise UserError(f"train.model_name {name} returned {type(model).__name__}, not a torch.nn.Module")
    return model


class Network:
    """A trained classifier: normalises what it is asked about as in its training.

    mean, std: of each channel in [0, 1] units for images, of each feature for tables.
    """

    def __init__(self, model, kind, mean, std, device, precision):
        if kind == "images":
            recipe = utils.TrainingSettings(mean=tuple(mean), std=tuple(std), precision=precision)
            self._query = utils.make_query(model, recipe, device)
        else:
            self._query = _table_query(model, mean, std, device)

    def signals(self, records, rows, query="identity"):
        """Signals of rows int64 (n,): see the module."""
        rows = torch.as_tensor(rows)
        logits = self._query(_shown(records, rows, query))
        return _checked(logits.cpu(), records.labels[rows])


def _table_query(model, mean, std, device):
    model = model.to(device).eval()
    mean, std = (torch.as_tensor(value, dtype=torch.float32, device=device) for value in (mean, std))

    @torch.inference_mode()
    def query(inputs):
        return model((inputs.to(device) - mean) / std).float()

    return query


class Suspected:
    """A model from elsewhere that `suspects.opened` has opened: a state dict, a run of train.py, or ONNX."""

    def __init__(self, suspect, classes):
        if suspect.classes not in (None, classes):
            raise UserError(
                f"{suspect.name} has {suspect.classes} classes and the data set {classes}",
                advice="they must be the same, in the same order",
            )
        self._suspect = suspect

    def signals(self, records, rows, query="identity"):
        """Signals of rows int64 (n,): see the module."""
        rows, suspect = torch.as_tensor(rows), self._suspect
        pixels = _shown(records, rows, query)
        if tuple(pixels.shape[2:]) != tuple(suspect.preprocessing.size) or suspect.preprocessing.resize is not None:
            photos = pixels.permute(0, 2, 3, 1).numpy()
            pixels = torch.from_numpy(np.stack([suspect.preprocessing.fit(photo) for photo in photos]))
        parts = [suspect.ask(part.numpy()) for part in pixels.split(suspect.batch_size)]
        if any(part.values is None for part in parts):
            raise UserError(f"{suspect.name} answers with labels alone", advice="its logits are needed")
        return _checked(torch.from_numpy(np.concatenate([part.values for part in parts])), records.labels[rows])


class StoredLogits:
    """Answers that somebody else computed: a .npz file, so that no model needs to be handed over.

    logits: floats (K, classes), or (Q, K, classes) for the first Q queries; records: whole numbers (K,), rows of the
    data set (default: all rows, in their order). Probabilities will do as their logarithms.
    """

    def __init__(self, path, records):
        arrays = read_arrays(path)
        if "logits" not in arrays:
            raise UserError(
                f"{path} has the arrays {', '.join(arrays) or 'none'}", advice="it needs logits (records, classes)"
            )
        logits = arrays["logits"]
        self.rows = arrays.get("records", np.arange(len(records)))
        self._logits, self._path = logits[None] if logits.ndim == 2 else logits, path
        if (
            self._logits.ndim != 3
            or self._logits.shape[1:] != (len(self.rows), len(records.class_names))
            or logits.dtype.kind != "f"
        ):
            raise UserError(
                f"{path} has logits {logits.dtype} {logits.shape} for {len(self.rows)} records",
                advice=f"they must be floats (records, {len(records.class_names)} classes), or have the queries first",
            )
        if (
            self.rows.dtype.kind not in "iu"
            or self.rows.min() < 0
            or self.rows.max() >= len(records)
            or len(np.unique(self.rows)) < len(self.rows)
        ):
            raise UserError(f"{path}: records must be distinct rows from 0 to {len(records) - 1} of the data set")
        self._place = np.full(len(records), -1)
        self._place[self.rows] = np.arange(len(self.rows))
        self.queries = len(self._logits)

    def signals(self, records, rows, query=0):
        """Signals of rows int64 (n,), of stored query number `query`: see the module."""
        places = self._place[np.asarray(rows)]
        if (places < 0).any():
            raise UserError(f"{self._path} has no logits of {int((places < 0).sum())} records that are audited")
        logits = torch.from_numpy(self._logits[query, places].astype(np.float64))
        return _checked(logits, records.labels[torch.as_tensor(rows)], self._path)


def _checked(logits, labels, name="the model"):
    if not torch.isfinite(logits).all():
        raise UserError(
            f"{name} gave logits that are not finite for {int((~torch.isfinite(logits)).any(1).sum())} of "
            f"{len(logits)} records",
            advice="is its file damaged?",
        )
    return utils.sample_signals(logits, labels)


def _shown(records, rows, query):
    """What a model is shown of rows int64 (n,): inputs as they are, or as a name of QUERIES or a `ranges.Copy` says."""
    inputs = records.inputs[rows]
    if callable(query):
        return query(inputs, rows)
    return augmented(inputs, query) if records.kind == "images" else inputs


def augmented(images, query):
    """uint8 (n, 3, H, W) as one of config.QUERIES shows them: mirrored, or moved by SHIFT pixels."""
    if query == "identity":
        return images
    if query == "flip":
        return images.flip(3)
    shifts = torch.tensor(_SHIFTS[query], device=images.device).expand(len(images), 2)
    return utils.augment(images, shifts, torch.zeros(len(images), dtype=torch.bool, device=images.device), SHIFT)


def ask(model, records, rows, query, batch_size):
    """All rows, in batches: {signal: float64 (len(rows),)} on the CPU."""
    parts = [model.signals(records, part, query) for part in np.split(rows, range(batch_size, len(rows), batch_size))]
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


def open_outside(entry, folder, records, audit):
    """A model of a models_metadata.json that was not written here: {"model_path": FILE, "model_name": NAME, ...}.

    FILE (seen from `folder`): .npz of stored logits; a state dict (model_name: its network's name; input_size, resize,
    mean, std, white, interpolation as in its training), a checkpoint of train.py, or ONNX, for images. Nothing in these
    files is executed. Raises UserError.
    """
    path = Path(folder) / str(entry.get("model_path"))
    if path.suffix.lower() == ".npz":
        return StoredLogits(path, records)
    if records.kind != "images":
        raise UserError(
            f"{path}: models from elsewhere are opened for images only", advice="store the logits in a .npz file"
        )
    overrides = {("size" if name == "input_size" else name): entry[name] for name in PREPROCESSING if name in entry}
    return Suspected(
        opened.open_model(path, entry.get("model_name"), audit.device, audit.precision, overrides, audit.batch_size),
        len(records.class_names),
    )
