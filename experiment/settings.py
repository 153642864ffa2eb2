"""What a run is made with: flags where given, the data set's recipe elsewhere; and where its files lie.

Public: run_paths, tagged_paths, with_stored, resolve_settings, data_fingerprint.
"""

import hashlib
import json
from pathlib import Path

import torch

from experiment.flags import AUDIT_FLAGS, DEFAULTS, TRAINING_FLAGS, USER_FLAGS
from experiment.folder import TWO_VALUES, RunPaths
from kit.errors import UserError
from kit.files import file_digest, read_json
from utils import choose_precision


def run_paths(args, settings):
    """The files of the run that train.py's flags name: --out, or `tagged_paths`."""
    return RunPaths.of_folder(args.out) if args.out else tagged_paths(args, settings)


def tagged_paths(args, settings, tag=None):
    """Files in --res_folder and --ckpt_folder: of data set, network and training size (entries of `settings`), and of
    --save_tag or another tag. A tag that would leave these folders is a UserError.

    The published scripts use one tag for several sizes. A run of an earlier version, whose name has no size, is found.
    """
    tag = args.save_tag if tag is None else tag
    if "/" in tag or "\\" in tag or tag in ("", ".", ".."):
        raise UserError(f"--save_tag {tag!r} can't be a file name", advice="use letters, digits, '-' and '_'")
    size, start = settings["train_size"], f"{settings['dataset']}-{settings['net_type']}"
    paths, before = (
        RunPaths.of_tag(args.res_folder, args.ckpt_folder, name) for name in (f"{start}-{size}-{tag}", f"{start}-{tag}")
    )
    return before if not paths.config.exists() and _train_size_of(before) == size else paths


def _train_size_of(paths):
    """The training size of a run that is there, None without one."""
    content = read_json(paths.config) if paths.config.exists() else None
    training = content.get("training") if isinstance(content, dict) else None
    return training.get("train_size") if isinstance(training, dict) else None


def with_stored(args, stored):
    """`args` with the stored settings of a run (a flat dict) where no flag was given."""
    for name in (*TRAINING_FLAGS, *USER_FLAGS, *AUDIT_FLAGS):
        if getattr(args, name) is None:
            setattr(args, name, stored.get(name))
    return args


def resolve_settings(args, data, device):
    """The two dicts of settings of a run, (training, audit): flags where given, the data set's recipe elsewhere."""
    recipe = data.recipe
    defaults = {**DEFAULTS, "dataset": data.name, "image_size": data.images.image_shape[-1]}

    def value_of(flag):
        given = getattr(args, flag)
        return given if given is not None else defaults[flag] if flag in defaults else getattr(recipe, flag)

    training = {flag: value_of(flag) for flag in TRAINING_FLAGS}
    if args.num_classes not in (None, len(data.class_names)):
        raise UserError(
            f"--num_classes {args.num_classes} does not fit {data.name}, which has {len(data.class_names)} classes",
            advice="leave the flag out",
        )
    training["marked_samples_per_user"] = _samples_per_user(training["marked_samples_per_user"], training["train_size"])
    training |= {name: getattr(args, name) for name in USER_FLAGS}
    if training["target_user_cls"] is None and training["num_of_multiTarget_diffCls"] is None:
        training["target_user_cls"] = [recipe.target_user_cls[0]]
    if training["target_user_cls"] is not None and (training["num_of_multiTarget_diffCls"] or 1) > 1:
        raise UserError(
            "--target_user_cls and --num_of_multiTarget_diffCls both choose the users' classes", advice="give one"
        )
    for label in training["target_user_cls"] or ():
        if label >= len(data.class_names):
            raise UserError(
                f"--target_user_cls {label} does not exist: {data.name} has classes 0 to {len(data.class_names) - 1}"
            )
    if training["noise_injection_type"] == "uniform":
        training |= TWO_VALUES
    # None, and not 0: runs of earlier versions say nothing of it.
    training["other_images"] = training["other_images"] or None
    training["precision"] = choose_precision(args.precision, device)
    training["data"] = data_fingerprint(data)
    training["pretrained_weights"] = _digest_of_weights(args.pretrained_weights)
    # Another kind of device gives other bits, so that a run can't be continued there.
    training["device"] = device.type
    audit = {flag: value_of(flag) for flag in AUDIT_FLAGS}
    audit["calibrate"] = None if audit["calibrate"] == "none" else audit["calibrate"]
    return training, audit


def _digest_of_weights(path):
    """16 hex digits of a file's SHA-256, None without a file: the name of a file of weights says nothing about it."""
    if path is None:
        return None
    if not Path(path).is_file():
        raise UserError(f"--pretrained_weights {path} is not a file", advice="check the path")
    return file_digest(path)[:16]


def data_fingerprint(data):
    """16 hex digits that change with labels, classes, image shape or pixels (16 images are looked at)."""
    digest = hashlib.sha256(json.dumps([data.name, data.class_names, data.images.image_shape]).encode())
    digest.update(data.labels.numpy().tobytes())
    digest.update(data.images[torch.linspace(0, len(data.labels) - 1, 16).long()].numpy().tobytes())
    return digest.hexdigest()[:16]


def _samples_per_user(value, train_size):
    """An absolute number from 1 on, a share of the training set below 1."""
    if value < 1:
        number = round(value * train_size)
        if number < 1:
            raise UserError(f"--marked_samples_per_user {value} of {train_size} images is less than one sample")
        return number
    if value != int(value):
        raise UserError(f"--marked_samples_per_user {value} is neither a whole number nor a share below 1")
    return int(value)
