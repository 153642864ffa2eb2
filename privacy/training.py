"""Target and reference models: each is trained on its half of the pool, and each is one file that can be made alone.

A model's file holds the settings that decided its weights; one that was made with others is refused by name. What is
missing is trained, what is finished is never trained again. LAUNCHER (local, ray) and JOBS start several at once, each
as `privacy-audit.py --train_model ID`, through `python -m launch`.
Public: train_missing, train_one, open_own, is_own, read_record, is_outside, read_outside, model_path, checkpoint_path.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from copy import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

import utils
from countermeasures.base import Countermeasure
from experiment.setup import countermeasure_of
from kit import files
from kit.environment import hardware_name
from kit.errors import UserError
from kit.progress import Progress
from privacy import language, models
from privacy.config import dump
from privacy.data import PAD, digest_of
from suspects import opened

REPOSITORY = Path(__file__).resolve().parent.parent
HINT = "Use the same settings, or another run.log_dir"
MADE_BY = "privacy-audit.py"
FORMAT = "privacy-audit-model-1"


def model_path(folder, number):
    """The file of a model in `folder` (<log_dir>/models)."""
    return Path(folder) / f"model_{number}.safetensors"


def checkpoint_path(folder, number, place):
    """The file of checkpoint `place` of a model, from 1 to train.checkpoints, in `folder` (<log_dir>/models)."""
    return Path(folder) / "checkpoints" / f"model_{number}_{place}.safetensors"


def train_missing(config, records, plan, folder):
    """Train every model of the plan that has no file yet; write memberships.npy and models_metadata.json.

    Files that are there are checked against the settings first. Raises UserError when training some of them failed.
    """
    device = utils.choose_device(config.train.device)
    numbers = range(len(plan.memberships))
    for number in numbers:
        _is_finished(config, records, plan, number, folder, device)
    _write_memberships(Path(folder) / "memberships.npy", plan.memberships)
    missing = [number for number in numbers if not model_path(folder, number).exists()]
    # One process for each is worth it only where several run at once, or elsewhere.
    if missing and (os.environ.get("LAUNCHER") or "local", os.environ.get("JOBS") or "1") != ("local", "1"):
        _launch(config, missing, folder)
    else:
        for number in Progress(missing, "models", disable=len(missing) < 2, leave=True):
            train_one(config, records, plan, number, folder)
    _write_metadata(config, folder, numbers, plan)


def train_one(config, records, plan, number, folder):
    """Train model `number`, or do nothing where its file is there; an interrupted training of images goes on."""
    device, defence = utils.choose_device(config.train.device), _defence(config.train, records)
    with files.lock_folder(Path(folder) / f".model_{number}"):
        if _is_finished(config, records, plan, number, folder, device):
            return
        started, settings = time.monotonic(), _settings(config, records, plan, number, device)
        with utils.seeded(settings["seed"], "initial weights"):
            model = defence.prepare(models.build(config.train.model_name, records, config.train.model_dump()))
        path, rows = model_path(folder, number), torch.from_numpy(plan.members(number))
        fit = _fit_images if records.kind == "images" else _fit_table if records.kind == "table" else _fit_tokens
        keep = _keeper(folder, number, settings)
        mean, std, history = fit(model, records, rows, settings, device, path.with_suffix(".progress"), keep)
        files.save_model(
            path,
            _weights(model),
            {
                "kind": FORMAT,
                "settings": settings,
                "mean": mean,
                "std": std,
                "history": history,
                "train_seconds": time.monotonic() - started,
                "hardware": hardware_name(device),
                "countermeasure": defence.report(_job(settings, model, records, rows)),
            },
        )
        path.with_suffix(".progress").unlink(missing_ok=True)


def _keeper(folder, number, settings):
    """keep(model, epoch, mean, std) for after each epoch: it writes those checkpoints that the settings ask for."""
    epochs, count = settings["epoch"], settings.get("checkpoints", 0)
    if count and count >= epochs:
        raise UserError(f"train.checkpoints {count} must be fewer than the {epochs} epochs of the training")
    places = {round(place * epochs / (count + 1)): place for place in range(1, count + 1)}

    def keep(model, epoch, mean, std):
        if place := places.get(epoch + 1):
            record = {"kind": FORMAT, "settings": settings, "mean": mean, "std": std, "epochs": epoch + 1}
            files.save_model(checkpoint_path(folder, number, place), _weights(model), record)

    return keep


def _defence(train, records):
    """The Countermeasure of train.countermeasure: one that acts while a model is trained, and only on its steps."""
    defence = countermeasure_of({"countermeasure": train.countermeasure})
    kind = type(defence)
    if any(getattr(kind, name) is not getattr(Countermeasure, name) for name in ("train", "after", "answer")) or (
        defence.clean_share
    ):
        raise UserError(
            f"train.countermeasure {defence.name} does more than change the steps of a training",
            advice="use train.py --countermeasure",
        )
    if train.countermeasure is not None and records.kind != "images":
        raise UserError(
            f"train.countermeasure is for images, and {records.name} has {records.kind}", advice="leave it out"
        )
    return defence


def _job(settings, model, records, rows):
    """What a countermeasure looks at of a training, as of an `experiment.training.TrainingJob`."""
    return SimpleNamespace(
        model=model,
        recipe=_recipe(settings, (), ()),
        images=rows,
        classes=len(records.class_names),
        seed=settings["seed"],
    )


def is_own(path):
    """Whether `train_one` wrote this safetensors file."""
    return _record(path) is not None


def read_record(path):
    """The record of the training in a file that `train_one` wrote, without its weights. Raises UserError."""
    record = _record(path)
    if record is None:
        raise UserError(f"{path} was not trained by {MADE_BY}", advice="delete it, or choose another run.log_dir")
    return record


def _record(path):
    if not Path(path).is_file():
        raise UserError(f"model {path} does not exist", advice="check the path")
    metadata = opened.read_metadata(path)
    try:
        record = json.loads(metadata["settings"]) if metadata.get("format") == files.MODEL_FORMAT else None
    except (KeyError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and record.get("kind") == FORMAT else None


def open_own(path, records, config):
    """(a model of `models`, record of its training) of a file that `train_one` wrote. Raises UserError."""
    device = utils.choose_device(config.audit.device)
    record = read_record(path)
    tensors, settings = files.load_model(path)[0], record["settings"]
    _check_no_code(path, settings, config)
    try:
        with utils.seeded("network of a file"):  # building one draws weights
            model = models.build(settings["net_type"], records, settings)
            model = countermeasure_of(settings).prepare(model)
        if _weights(model).keys() != tensors.keys():
            raise KeyError(f"{len(_weights(model).keys() ^ tensors.keys())} names of tensors differ")
        model.load_state_dict(tensors, strict=False)
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"{path} does not hold the network it names ({str(error).splitlines()[0]})",
            advice="get an undamaged copy, or delete it to train it again",
        ) from None
    if records.kind == "tokens":
        return language.LanguageModel(model, device), record
    precision = (
        utils.choose_precision(config.audit.precision, device)
        if config.audit.precision != "auto"
        else settings["precision"]
    )
    return models.Network(model, records.kind, record["mean"], record["std"], device, precision), record


def _check_no_code(path, settings, config):
    """A file must not choose whose code runs or what is downloaded: only the user's own config may."""
    wanted = (None, None) if config.train is None else (config.train.model_name, config.train.pretrained)
    name, pretrained = settings.get("net_type"), settings.get("pretrained")
    if (models.is_users_own(str(name)) and name != wanted[0]) or pretrained not in (None, wanted[1]):
        raise UserError(
            f"{path} asks for code or weights from elsewhere ({str(name)[:60]!r}, {str(pretrained)[:60]!r})",
            advice="where you trust them, name them in train.model_name and train.pretrained",
        )


def _weights(model):
    """What training has changed: no frozen weights, which the network is built with, and tied ones once."""
    names = {name for name, value in model.named_parameters() if value.requires_grad}
    names |= {name for name, _ in model.named_buffers()}
    return {name: value for name, value in model.state_dict().items() if name in names}


# ----------------------------------------------------------------------------------------------------------------------
# Settings
# ----------------------------------------------------------------------------------------------------------------------


def _settings(config, records, plan, number, device):
    """Everything that decides a model's weights, flat and ready for JSON, under the names of train.py."""
    train = config.train
    precision = utils.choose_precision(train.precision, device) if records.kind == "images" else "float32"
    return {
        "dataset": records.name,
        "data": records.fingerprint,
        "shape": list(records.shape),
        "number": number,
        "members": digest_of(plan.members(number)),
        "net_type": train.model_name,
        "code": _code_digest(train),
        "image_size": records.shape[-1],
        "epoch": train.epochs,
        "lr": train.learning_rate,
        "batch_size": train.batch_size,
        "momentum": train.momentum,
        "weight_decay": train.weight_decay,
        "optimizer": train.optimizer,
        "schedule": train.schedule,
        "crop_padding": train.crop_padding,
        "hidden": train.hidden,
        "pretrained": train.pretrained,
        "peft_type": train.peft_type,
        "lora_rank": train.lora_rank,
        # Without these where they are the usual ones: earlier files don't have them.
        **({} if train.lora_modules == ["c_attn"] else {"lora_modules": train.lora_modules}),
        **({} if train.countermeasure is None else {"countermeasure": train.countermeasure}),
        **({} if train.checkpoints == 0 else {"checkpoints": train.checkpoints}),
        "precision": precision,
        "device": device.type,
        "seed": int.from_bytes(utils.derive_key(config.run.random_seed, "model", number)[:6], "little"),
    }


def _code_digest(train):
    """16 hex digits of the file in which a user's own network is written, None for other networks."""
    file = train.model_name.rpartition(":")[0]
    if not file.endswith(".py"):
        return None
    if not Path(file).is_file():
        raise UserError(f"train.model_name: {file} does not exist", advice="check the path")
    return files.file_digest(file)[:16]


def _is_finished(config, records, plan, number, folder, device):
    path = model_path(folder, number)
    if not path.exists():
        return False
    wanted = _settings(config, records, plan, number, device)
    files.check_same_settings(read_record(path).get("settings"), wanted, path, advice=HINT, command=None)
    return True


def _recipe(settings, mean, std):
    names = ("epoch", "lr", "batch_size", "momentum", "weight_decay", "precision", "seed", "crop_padding", "schedule")
    return models.Recipe(mean=tuple(mean), std=tuple(std), **{name: settings[name] for name in names})


# ----------------------------------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------------------------------


def _fit_images(model, records, rows, settings, device, progress, keep):
    """`utils.train_model` with crop and flip; returns (mean, std, history)."""
    if settings["optimizer"] != "SGD":
        raise UserError(
            f"train.optimizer {settings['optimizer']} is for tables and texts", advice="images are trained with SGD"
        )
    images = records.inputs[rows]
    mean, std = utils.channel_statistics(images)
    defence = countermeasure_of(settings)
    recipe, hooks = defence.recipe(_recipe(settings, mean, std)), defence.hooks(_job(settings, model, records, rows))
    if hooks.stop_after and settings.get("checkpoints"):
        raise UserError(f"train.checkpoints: {defence.name} ends the training early", advice="leave one of them out")
    hooks = copy(hooks)  # one object may serve all trainings
    hooks.trained = lambda model, epoch: keep(model, epoch, mean, std)
    history = utils.train_model(model, images, records.labels[rows], recipe, device, progress, settings, hooks=hooks)
    return mean, std, history


def _fit_table(model, records, rows, settings, device, _progress, keep):
    """Features are normalised with the training rows' own mean and deviation; constant ones stay as they are."""
    features, labels = records.inputs[rows].to(device), records.labels[rows].to(device)
    mean, std = features.mean(dim=0), features.std(dim=0, unbiased=False)
    std = torch.where(std > 1e-6, std, torch.ones_like(std))
    features = (features - mean) / std

    def loss_of(chosen):
        return torch.nn.functional.cross_entropy(model(features[chosen]).float(), labels[chosen])

    scale = mean.tolist(), std.tolist()
    history = _fit(model, loss_of, len(rows), settings, device, lambda model, epoch: keep(model, epoch, *scale))
    return *scale, history


def _fit_tokens(model, records, rows, settings, device, _progress, keep):
    tokens = records.inputs[rows].to(device)

    def loss_of(chosen):
        losses, _ = language.token_losses(model, tokens[chosen])
        return losses.sum() / (tokens[chosen][:, 1:] != PAD).sum()

    return [], [], _fit(model, loss_of, len(rows), settings, device, lambda model, epoch: keep(model, epoch, [], []))


def _fit(model, loss_of, count, settings, device, after):
    """The loop for tables and texts; every epoch's order follows from (seed, epoch), as in `utils.train_model`.

    loss_of: rows int64 (n,) of the training records to their mean loss. Such models are small or start from trained
    weights, so an interrupted one begins anew. after: called with (model, epoch) after each. Returns the history.
    """
    recipe = _recipe(settings, (), ())
    trained = [value for value in model.to(device).train().parameters() if value.requires_grad]
    optimizer = (
        torch.optim.AdamW(trained, lr=recipe.lr, weight_decay=recipe.weight_decay)
        if settings["optimizer"] == "AdamW"
        else torch.optim.SGD(trained, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    )
    history = []
    for epoch in Progress(range(recipe.epoch), "training", disable=count * recipe.epoch < 200_000):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(epoch)
        order = torch.from_numpy(utils.key_generator(recipe.seed, "epoch", epoch).permutation(count)).to(device)
        total = torch.zeros((), device=device)
        with utils.seeded(recipe.seed, "layers", epoch):
            for chosen in order.split(recipe.batch_size):
                loss = loss_of(chosen)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(chosen)
        if not np.isfinite(mean := float(total) / count):
            raise UserError(
                f"training diverged in epoch {epoch + 1} (loss {mean})",
                advice=f"lower train.learning_rate (now {recipe.lr})",
            )
        history.append({"epoch": epoch + 1, "loss": mean})
        after(model, epoch)
    return history


def _launch(config, missing, folder):
    """Train these models with `python -m launch`, which runs several at once and starts those again whose node dies.

    They read a copy of the config with absolute paths, because commands start in the repository's folder.
    """
    folder = Path(folder)
    dump(folder / "config.yaml", config)
    command = [sys.executable, "privacy-audit.py", "--cf", str(folder / "config.yaml"), "--train_model"]
    with files.atomic_path(folder / "commands.txt") as temporary:
        temporary.write_text("".join(shlex.join([*command, str(number)]) + "\n" for number in missing))
    path = os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH"))))  # for module:function
    here = folder.resolve()
    code = subprocess.run(
        [sys.executable, "-m", "launch", here / "commands.txt", "--logs", here / "logs"],
        check=False,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": path},
    ).returncode
    left = [number for number in missing if not model_path(folder, number).exists()]
    if left:
        if code in (130, -2):
            raise KeyboardInterrupt
        raise UserError(
            f"{len(left)} of {len(missing)} models were not trained (model {left[0]}, ...)",
            advice=f"see {folder / 'logs'}, then start the same command again",
        )


# ----------------------------------------------------------------------------------------------------------------------
# Files beside the models
# ----------------------------------------------------------------------------------------------------------------------


def _write_memberships(path, matrix):
    """memberships.npy: bool (models, records of the data set). More models go on where fewer ended."""
    if path.exists():
        try:
            stored = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError):
            raise UserError(f"{path} is damaged", advice="delete it and run the command again") from None
        common = min(len(stored), len(matrix)) if stored.ndim == 2 else 0
        if (
            stored.ndim != 2
            or stored.shape[1] != matrix.shape[1]
            or not np.array_equal(stored[:common], matrix[:common])
        ):
            raise UserError(
                f"{path} was made with other settings: other records or another run.random_seed or data.size. {HINT}"
            )
        if len(stored) >= len(matrix):
            return
    with files.atomic_path(path) as temporary:
        np.save(temporary, matrix)


def _write_metadata(config, folder, numbers, plan):
    """models_metadata.json: what each model is, for people and other programs."""
    entries = []
    for number in numbers:
        record = read_record(model_path(folder, number))
        entries.append(
            {
                "model_idx": number,
                "model_path": model_path(folder, number).name,
                "model_name": config.train.model_name,
                "train_size": int(plan.memberships[number].sum()),
                "train_loss": record["history"][-1]["loss"],
                "seconds": record["train_seconds"],
                "hardware": record["hardware"],
                "settings": record["settings"],
            }
        )
    files.write_json(Path(folder) / "models_metadata.json", {"made_by": MADE_BY, "models": entries})


def is_outside(folder):
    """Whether <log_dir>/models has a models_metadata.json that was not written here: models from elsewhere."""
    path = Path(folder) / "models_metadata.json"
    return path.exists() and _metadata(path).get("made_by") != MADE_BY


def read_outside(folder):
    """(entries, target numbers) of a models_metadata.json from elsewhere; `targets` in it are all, unless named."""
    path = Path(folder) / "models_metadata.json"
    content = _metadata(path)
    entries, targets = content.get("models"), content.get("targets")
    if (
        not isinstance(entries, list)
        or not entries
        or not all(isinstance(entry, dict) and isinstance(entry.get("model_path"), str) for entry in entries)
    ):
        raise UserError(f'{path} needs "models": a list of {{"model_path": FILE, ...}}')
    if targets is not None and not (
        isinstance(targets, list)
        and targets
        and all(isinstance(one, int) and 0 <= one < len(entries) for one in targets)
    ):
        raise UserError(f'{path}: "targets" must be a list of numbers from 0 to {len(entries) - 1}')
    return entries, targets


def _metadata(path):
    content = files.read_json(path)
    if not isinstance(content, dict):
        raise UserError(f'{path} must be {{"models": [{{"model_path": FILE, ...}}, ...]}}')
    return content
