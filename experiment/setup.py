"""The first stage of train.py and eval.py: who is who, what they publish, and the network before it is trained.

prepare -> training.train -> audit.ask_users -> audit.conclude: each stage takes what the one before left, and writes
its own file into the run folder (see `folder.RunPaths`), with the settings it depends on inside.

Public: Experiment, prepare, splits_of, unseen_rows, innocent_users, countermeasure_of, marked_images, publish_marks,
check_marks, build_model, batch_size_of.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

import utils
from countermeasures import parse
from countermeasures.base import Countermeasure
from dataset import load_outlier_bank
from dataset.base import ImageData, Splits, make_splits
from kit import files
from kit.errors import UserError
from networks import build_network


@dataclass(frozen=True)
class Experiment:
    """Everything that the settings decide before training: who is who, and how the target users mark their images.

    used: how many of each target user's samples, the first ones, the model is trained on. clean: rows of unmarked
    images that a countermeasure needs and nobody else has. countermeasure: what the model's owner does, if anything.
    """

    settings: dict
    data: ImageData
    splits: Splits
    groups: dict
    marking: utils.Marking
    used: int
    clean: torch.Tensor
    countermeasure: Countermeasure

    @property
    def users(self):
        """The target users, whose marked images the model is trained on."""
        return self.groups["target"]


def prepare(settings, audit_settings, data, data_root=None):
    """Split the data and choose all users (see `audit.GROUPS`); the settings are those of `settings.resolve_settings`.

    Control users are marked in the same way as target users and have the same classes where the data allow it, but the
    model never sees their images: what is said of them shows whether the innocent are accused. All are drawn here, so
    that data which can't be audited are refused before a model is trained.
    """
    seed, size = settings["seed"], settings["marked_samples_per_user"]
    defence = countermeasure_of(settings)
    splits, clean = _set_aside(splits_of(settings, data), data, defence.clean_share, seed)
    classes = _user_classes(settings, data.labels[splits.train].numpy())
    used = max(1, round(settings.get("used_share", 1.0) * size))
    targets = utils.draw_target_users(data.labels, splits.train, classes, used, utils.derive_key(seed, "target users"))
    if used < size:
        targets = _with_unused(targets, data.labels, splits.non_member, size - used)
    others = innocent_users(settings, data, splits.non_member, classes, audit_settings["num_of_non_member_user"])
    groups = {"target": targets, **others}
    return Experiment(settings, data, splits, groups, _marking(settings, data, data_root), used, clean, defence)


def innocent_users(settings, data, pool, classes, count):
    """{"control": users of these classes, "non_member": `count` users}, out of the rows `pool` of a data set."""
    seed, size = settings["seed"], settings["marked_samples_per_user"]
    control, non_member = (utils.derive_key(seed, name) for name in ("control users", "non-member users"))
    return {
        "control": utils.draw_non_member_users(data.labels, pool, len(classes), size, control, classes),
        "non_member": utils.draw_non_member_users(data.labels, pool, count, size, non_member),
    }


def splits_of(settings, data):
    """The Splits of a run with these settings.

    With `other_images` it is trained on what the same settings without it leave out: on as many images where there are
    as many, and where the data set has no test images on half of them at most, so that some are left for strangers.
    """
    size, portion, seed = settings["train_size"], settings["val_portion"], settings["seed"]
    splits, has_test = make_splits(data.labels, data.is_test, size, portion, seed), bool(data.is_test.any())
    if not settings.get("other_images"):
        return splits
    taken = data.is_test.clone()
    taken[torch.cat([splits.train, splits.val])] = True
    left = int((~taken).sum())
    most = left if has_test else left // 2
    if most < len(data.class_names):
        raise UserError(f"--other_images 1: --train_size {size} leaves {left} other images", advice="lower it")
    others = make_splits(data.labels, taken, min(size, most), portion, seed)
    return replace(others, test=splits.test if has_test else others.non_member)


def unseen_rows(settings, data):
    """The rows of a data set that a run with these settings, countermeasure included, has not seen: int64 tensor."""
    share = countermeasure_of(settings).clean_share
    return _set_aside(splits_of(settings, data), data, share, settings["seed"])[0].non_member


def countermeasure_of(settings):
    """The Countermeasure of a run's settings; without one, one that does nothing."""
    return parse(settings["countermeasure"]) if settings.get("countermeasure") else Countermeasure()


def _set_aside(splits, data, share, seed):
    """(splits without them, rows of clean images as many as `share` of the training images). No test images."""
    count = round(share * len(splits.train))
    pool = splits.non_member[~data.is_test[splits.non_member]].numpy()
    if count > len(pool):
        raise UserError(
            f"the countermeasure needs {count} clean images, and only {len(pool)} are neither used for "
            "training nor for testing",
            advice="lower its share or --train_size",
        )
    rows = torch.from_numpy(utils.key_generator(seed, "clean images").permutation(pool)[:count])
    left, test = (part[~torch.isin(part, rows)] for part in (splits.non_member, splits.test))
    return replace(splits, non_member=left, test=test), rows


def _with_unused(users, labels, pool, count):
    """Users with `count` samples more, which they marked as well, but which the model's owner did not use (Table 5)."""
    unused = utils.draw_target_users(labels, pool, users.classes, count, utils.derive_key(users.key, "unused"))
    return utils.Users(np.concatenate([users.samples, unused.samples], axis=1), users.classes, users.key)


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
    for another user being passed over, until there are enough: everybody gets a full set, and none is dropped.
    """
    same, different = settings["num_of_multiTarget_sameCls"] or 1, settings["num_of_multiTarget_diffCls"]
    if settings["target_user_cls"] is not None:
        return np.repeat(settings["target_user_cls"], same)
    room = np.bincount(train_labels) // (settings["marked_samples_per_user"] * same)
    order = utils.key_generator(settings["seed"], "users' classes").permutation(len(room))
    chosen = [label for turn in range(room.max()) for label in order if room[label] > turn][:different]
    if len(chosen) < different:
        raise UserError(
            f"--num_of_multiTarget_diffCls {different}: the training images have room for {len(chosen)}"
            f" users of {settings['marked_samples_per_user']} samples",
            advice="lower one or raise --train_size",
        )
    return np.repeat(chosen, same)


def marked_images(experiment):
    """The target users' images as they publish them: uint8 (users, K, 3, H, W)."""
    users, store = experiment.users, experiment.data.images
    numbers = np.arange(users.samples.shape[1])
    return torch.stack(
        [
            utils.mark_images(
                store[torch.from_numpy(rows)], users.key, np.full(len(rows), user), numbers, experiment.marking
            )
            for user, rows in enumerate(users.samples)
        ]
    )


def publish_marks(experiment, paths):
    """Mark the target users' images and keep them in marks.npz; returns them (see `marked_images`)."""
    users, marked = experiment.users, marked_images(experiment)
    files.write_arrays(
        paths.marks,
        samples=users.samples,
        classes=users.classes,
        images=marked.numpy(),
        key=np.frombuffer(users.key, dtype=np.uint8),
    )
    return marked


def check_marks(experiment, paths):
    """Raise UserError when the marks that the settings give today are not those that the run published.

    That happens when the images of --ood_pattern have changed, or another version of numpy draws other users.
    """
    if paths.marks.exists():
        stored = files.read_arrays(paths.marks)
        if not (
            np.array_equal(stored.get("samples"), experiment.users.samples)
            and np.array_equal(stored.get("images"), marked_images(experiment).numpy())
        ):
            raise UserError(
                f"{paths.marks} has other marks than these settings give today",
                advice="restore the images of --ood_pattern, or audit with the versions named in the run's result.json",
            )


def build_model(experiment, pretrained_weights=None):
    """The network with its initial weights, which follow from the seed (or from a file of ImageNet weights)."""
    settings, data = experiment.settings, experiment.data
    with utils.seeded(settings["seed"], "initial weights"):
        model = build_network(settings["net_type"], len(data.class_names), settings["image_size"], pretrained_weights)
        return experiment.countermeasure.prepare(model)


def batch_size_of(data):
    """Images per query: some 100 MB of pixels with all that the network makes of them."""
    return 1024 if data.images.image_shape[-1] <= 64 else 64
