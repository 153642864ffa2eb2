"""The stages that train.py and eval.py are made of: prepare -> train -> audit -> conclude.

Each stage takes what the one before left, and writes its own file into the run folder (see `runs.RunPaths`), with the
settings it depends on inside.
"""

import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import runs
import utils
from dataset import load_outlier_bank
from dataset.base import ImageData, Splits, make_splits
from distributed import ALONE
from networks import build_network
from runs import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GROUPS = ("target", "control", "non_member")


@dataclass(frozen=True)
class Experiment:
    """Everything that the settings decide before training: who is who, and how the target users mark their images."""

    settings: dict
    data: ImageData
    splits: Splits
    groups: dict
    marking: utils.Marking

    @property
    def users(self):
        """The target users, whose marked images the model is trained on."""
        return self.groups["target"]


def prepare(settings, audit_settings, data, data_root=None):
    """Split the data and choose all users (see GROUPS). The settings are the dicts of `arguments.resolve_settings`.

    Control users are marked in the same way as target users and have the same classes where the data allow it, but the
    model never sees their images: what is said of them shows whether the innocent are accused. All are drawn here, so
    that data which can't be audited are refused before a model is trained.
    """
    seed, size = settings["seed"], settings["marked_samples_per_user"]
    splits = make_splits(data.labels, data.is_test, settings["train_size"], settings["val_portion"], seed)
    classes = _user_classes(settings, data.labels[splits.train].numpy())
    targets = utils.draw_target_users(data.labels, splits.train, classes, size, utils.derive_key(seed, "target users"))
    groups = {
        "target": targets,
        "control": utils.draw_non_member_users(data.labels, splits.non_member, len(targets), size,
                                               utils.derive_key(seed, "control users"), classes),
        "non_member": utils.draw_non_member_users(data.labels, splits.non_member,
                                                  audit_settings["num_of_non_member_user"], size,
                                                  utils.derive_key(seed, "non-member users")),
    }
    return Experiment(settings, data, splits, groups, _marking(settings, data, data_root))


def _marking(settings, data, data_root):
    if settings["clean_train"]:
        return utils.UNMARKED
    bank, pattern = None, settings["ood_pattern"]
    if pattern != "color_stripes" and settings["img_blending_ratio"] < 1:
        bank = load_outlier_bank(pattern, *data.images.image_shape[1:], data_root)
    return utils.Marking(settings["img_blending_ratio"], settings["noise_injection_type"], settings["noise_norm"], bank)


def _user_classes(settings, train_labels):
    """The class of every target user, in the order in which the flags name them.

    Without named classes users go round the classes in an order that the seed decides, a class that has no images left
    for another user being passed over, until there are enough (defects 4 and 5).
    """
    same, different = settings["num_of_multiTarget_sameCls"] or 1, settings["num_of_multiTarget_diffCls"]
    if settings["target_user_cls"] is not None:
        return np.repeat(settings["target_user_cls"], same)
    room = np.bincount(train_labels) // (settings["marked_samples_per_user"] * same)
    order = utils.key_generator(settings["seed"], "users' classes").permutation(len(room))
    chosen = [label for turn in range(room.max()) for label in order if room[label] > turn][:different]
    if len(chosen) < different:
        raise UserError(f"--num_of_multiTarget_diffCls {different}: the training images have room for {len(chosen)}"
                        f" users of {settings['marked_samples_per_user']} samples; lower one or raise --train_size")
    return np.repeat(chosen, same)


def marked_images(experiment):
    """The target users' images as they publish them: uint8 (users, K, 3, H, W)."""
    users, store = experiment.users, experiment.data.images
    numbers = np.arange(users.samples.shape[1])
    return torch.stack([utils.mark_images(store[torch.from_numpy(rows)], users.key, np.full(len(rows), user), numbers,
                                            experiment.marking) for user, rows in enumerate(users.samples)])


def publish_marks(experiment, paths):
    """Mark the target users' images and keep them in marks.npz; returns them (see `marked_images`)."""
    users, marked = experiment.users, marked_images(experiment)
    runs.write_arrays(paths.marks, samples=users.samples, classes=users.classes, images=marked.numpy(),
                      key=np.frombuffer(users.key, dtype=np.uint8))
    return marked


def check_marks(experiment, paths):
    """Raise UserError when the marks that the settings give today are not those that the run published.

    That happens when the images of --ood_pattern have changed, or another version of numpy draws other users.
    """
    if paths.marks.exists():
        stored = runs.read_arrays(paths.marks)
        if not (np.array_equal(stored.get("samples"), experiment.users.samples)
                and np.array_equal(stored.get("images"), marked_images(experiment).numpy())):
            raise UserError(f"{paths.marks} has other marks than these settings give today; restore the images of "
                            "--ood_pattern, or audit with the versions named in the run's result.json")


def build_model(experiment, pretrained_weights=None):
    """The network with its initial weights, which follow from the seed (or from a file of ImageNet weights)."""
    settings, data = experiment.settings, experiment.data
    with utils.seeded(settings["seed"], "initial weights"):
        return build_network(settings["net_type"], len(data.class_names), settings["image_size"], pretrained_weights)


def train(experiment, model, paths, device, team=ALONE):
    """Train on the published marks, or take up the finished model, whose settings the caller has checked.

    Returns (query function, record of the training: history, seconds, normalisation). Writes model.safetensors, as the
    team's leader; the other processes of torchrun only compute, and get (None, None).
    """
    settings = experiment.settings
    if team.leader and paths.model.exists():
        if paths.marks.exists():
            check_marks(experiment, paths)
        else:
            publish_marks(experiment, paths)
        return load_trained(paths.model, device)
    started = time.monotonic()
    marked = publish_marks(experiment, paths) if team.leader else marked_images(experiment)
    data, splits = experiment.data, experiment.splits
    images, labels = _read(data.images, splits.train), data.labels[splits.train]
    places = np.searchsorted(splits.train.numpy(), experiment.users.samples.ravel())
    images[torch.from_numpy(places)] = marked.flatten(0, 1)
    validation = (_read(data.images, splits.val), data.labels[splits.val]) if len(splits.val) else None
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if data.recipe.normalization == "imagenet" \
        else utils.channel_statistics(images)
    recipe = training_settings(settings, mean, std)
    history = utils.train_model(model, images, labels, recipe, device, paths.progress, settings, validation, team)
    if not team.leader:
        return None, None
    query = utils.make_query(model, recipe, device)
    record = {"settings": settings, "mean": mean, "std": std, "history": history, "classes": len(data.class_names),
              "class_names": list(data.class_names),
              "train_accuracy": utils.accuracy(query, images, labels, 2 * _batch(data)),
              "train_seconds": time.monotonic() - started, "hardware": hardware_name(device),
              "processes": team.size}
    runs.save_model(paths.model, model.state_dict(), record)
    paths.progress.unlink(missing_ok=True)
    return query, record


def _read(store, rows):
    """Images into one tensor, with a progress bar, because files of a large set are decoded only now."""
    images = torch.empty(len(rows), *store.image_shape, dtype=torch.uint8)
    bar = tqdm(torch.arange(len(rows)).split(256), "reading", disable=None if len(rows) > 10_000 else True, leave=False)
    for part in bar:
        images[part] = store[rows[part]]
    return images


def training_settings(settings, mean, std):
    """The part of the settings that the training loop needs."""
    names = ("epoch", "lr", "batch_size", "momentum", "weight_decay", "precision", "seed")
    return utils.TrainingSettings(mean=tuple(mean), std=tuple(std), **{name: settings[name] for name in names})


def load_trained(path, device, precision=None):
    """Open a checkpoint of `train`: (query function, record).

    precision: that of the queries, if it shall not be that of the training.
    """
    tensors, record = runs.load_model(path)
    try:
        settings, classes = record["settings"], record["classes"]
        model = build_network(settings["net_type"], classes, settings["image_size"], "random")
        model.load_state_dict(tensors)
        chosen = {**settings, "precision": precision or settings["precision"]}
        recipe = training_settings(chosen, record["mean"], record["std"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} does not hold the network it names ({str(error).splitlines()[0]}); "
                        "get an undamaged copy, or train the model again") from None
    return utils.make_query(model, recipe, device), record


@dataclass(frozen=True)
class Audit:
    """What the model answered: for each of GROUPS the users and their signals, {signal: float64 (users, K)}."""

    settings: dict
    users: dict
    signals: dict
    seconds: float

    def losses(self, group):
        """The chosen signal of a group, the same on both sides of every comparison (defect 2)."""
        return self.signals[group][self.signal]

    @property
    def signal(self):
        return utils.SIGNALS[self.settings["scaled_loss"]]


def audit(experiment, query, settings, paths, device):
    """Score target users, as many innocent control users, and the out-world; writes losses.npz.

    settings: the audit dict of `arguments.resolve_settings`.
    """
    started, data, users = time.monotonic(), experiment.data, experiment.groups
    # Targets are marked on the CPU, where their published images were made: the same bits. The others where it is fast.
    signals = {name: utils.score_users(query, data.images, group, experiment.marking,
                                       torch.device("cpu") if name == "target" else device, _batch(data), name)
               for name, group in users.items()}
    result = Audit(settings, users, signals, time.monotonic() - started)
    runs.write_arrays(paths.losses, settings=np.array(json.dumps({"training": experiment.settings, "audit": settings})),
                      **{f"{name}_{signal}": values for name in GROUPS for signal, values in signals[name].items()},
                      **{f"{name}_{what}": getattr(users[name], what) for name in GROUPS
                         for what in ("classes", "samples")})
    return result


def _batch(data):
    """Images per query: some 100 MB of pixels with all that the network makes of them."""
    return 1024 if data.images.image_shape[-1] <= 64 else 64


def conclude(experiment, query, record, answers, device):
    """Turn the answers of an audit into the figures of result.json (a JSON-ready dict)."""
    data, splits, history = experiment.data, experiment.splits, record["history"]
    member, other = answers.losses("target"), answers.losses("non_member")
    audits = {kind: utils.membership_inference(member, other, kind == "instance", answers.settings["fpr"])
              for kind in ("set", "instance")}
    validation = [epoch["val_accuracy"] for epoch in history if "val_accuracy" in epoch]
    return {
        "settings": {"training": experiment.settings, "audit": answers.settings},
        "mode": "instance" if answers.settings["instance_mi"] else "set",
        "signal": answers.signal,
        "audit": audits,
        "verdict": _verdicts(answers),
        "accuracy": {"test": utils.accuracy(query, data.images, data.labels, 2 * _batch(data), splits.test),
                     "test_images": len(splits.test), "train": record["train_accuracy"],
                     "validation": max(validation, default=None),
                     "marked": float(answers.signals["target"]["correct"].mean())},
        "seconds": {"train": record["train_seconds"], "audit": answers.seconds},
        "hardware": {"train": record["hardware"], "audit": hardware_name(device)},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }


def _verdicts(answers):
    """Algorithm 1 for every target and control user."""
    rows, detected = [], {}
    for group in ("target", "control"):
        losses, fpr = answers.losses(group), answers.settings["verdict_fpr"]
        used, threshold = utils.verify_provenance(losses, answers.losses("non_member"), fpr)
        detected[group] = int(used.sum())
        rows += [{"user": f"{group} {number}", "class": int(label), "trained_on": group == "target",
                  "mean_loss": float(loss), "used": bool(verdict)} for number, (label, loss, verdict)
                 in enumerate(zip(answers.users[group].classes, losses.mean(axis=1), used, strict=True))]
    return {"fpr": fpr, "threshold": threshold, "targets_detected": detected["target"],
            "controls_detected": detected["control"], "users": rows}


def hardware_name(device):
    """The name of the processor behind a device, for the record."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{(models or [platform.processor() or platform.machine()])[0]}, {torch.get_num_threads()} threads"
