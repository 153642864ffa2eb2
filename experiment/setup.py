"""The stages that train.py and eval.py are made of: prepare -> train -> audit -> conclude.

Each stage takes what the one before left, and writes its own file into the run folder (see `runs.RunPaths`), with the
settings it depends on inside.
"""

import copy
import glob
import hashlib
import json
import platform
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import runs
import utils
from countermeasures import Countermeasure, parse
from dataset import load_outlier_bank
from dataset.base import ImageData, Splits, make_splits
from distributed import ALONE
from networks import build_network
from provenance import verdict
from runs import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GROUPS = ("target", "control", "non_member")
# Selections of the exact test: with 19 keys p can be as low as 1 / 20,000.
EXACT_SELECTIONS = 999
# What `train_on` trains with, unless told: the paper's recipe with the batch of the small data sets.
PLAIN_RECIPE = {"epoch": 100, "lr": 0.1, "batch_size": 128, "momentum": 0.9, "weight_decay": 5e-4}


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
    """Split the data and choose all users (see GROUPS). The settings are the dicts of `arguments.resolve_settings`.

    Control users are marked in the same way as target users and have the same classes where the data allow it, but the
    model never sees their images: what is said of them shows whether the innocent are accused. All are drawn here, so
    that data which can't be audited are refused before a model is trained.
    """
    seed, size = settings["seed"], settings["marked_samples_per_user"]
    defence = countermeasure_of(settings)
    splits = make_splits(data.labels, data.is_test, settings["train_size"], settings["val_portion"], seed)
    splits, clean = _set_aside(splits, data, defence.clean_share, seed)
    classes = _user_classes(settings, data.labels[splits.train].numpy())
    used = max(1, round(settings.get("used_share", 1.0) * size))
    targets = utils.draw_target_users(data.labels, splits.train, classes, used, utils.derive_key(seed, "target users"))
    if used < size:
        targets = _with_unused(targets, data.labels, splits.non_member, size - used)
    groups = {
        "target": targets,
        "control": utils.draw_non_member_users(data.labels, splits.non_member, len(targets), size,
                                               utils.derive_key(seed, "control users"), classes),
        "non_member": utils.draw_non_member_users(data.labels, splits.non_member,
                                                  audit_settings["num_of_non_member_user"], size,
                                                  utils.derive_key(seed, "non-member users")),
    }
    return Experiment(settings, data, splits, groups, _marking(settings, data, data_root), used, clean, defence)


def countermeasure_of(settings):
    """The Countermeasure of a run's settings; without one, one that does nothing."""
    return parse(settings["countermeasure"]) if settings.get("countermeasure") else Countermeasure()


def _set_aside(splits, data, share, seed):
    """(splits without them, rows of clean images as many as `share` of the training images). No test images."""
    count = round(share * len(splits.train))
    pool = splits.non_member[~data.is_test[splits.non_member]].numpy()
    if count > len(pool):
        raise UserError(f"the countermeasure needs {count} clean images, and only {len(pool)} are neither used for "
                        "training nor for testing; lower its share or --train_size")
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
        model = build_network(settings["net_type"], len(data.class_names), settings["image_size"], pretrained_weights)
        return experiment.countermeasure.prepare(model)


def train(experiment, model, paths, device, team=ALONE, base_model=None):
    """Train on the published marks, or take up the finished model, whose settings the caller has checked.

    base_model: the checkpoint of the same run without its countermeasure, whose weights are taken over. Returns (query
    function, record of the training: history, seconds, normalisation). Writes model.safetensors, as the team's leader;
    the other processes of torchrun only compute, and get (None, None).
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
    job = _training_job(experiment, marked, model, paths, device, team, base_model)
    defence = experiment.countermeasure
    history = defence.train(job)
    defence.after(job)
    if not team.leader:
        return None, None
    plain = utils.make_query(job.model, job.recipe, device)
    record = {"settings": settings, "mean": job.recipe.mean, "std": job.recipe.std, "history": history,
              "classes": job.classes, "class_names": list(experiment.data.class_names),
              "train_accuracy": utils.accuracy(plain, job.images, job.labels, 2 * _batch(experiment.data)),
              "train_seconds": time.monotonic() - started, "hardware": hardware_name(device),
              "processes": team.size, "countermeasure": defence.report(job)}
    runs.save_model(paths.model, job.model.state_dict(), record)
    job.clean_up()
    return defence.answer(plain, job.seed), record


def _training_job(experiment, marked, model, paths, device, team, base_model):
    data, splits, users = experiment.data, experiment.splits, experiment.users
    images, labels = _read(data.images, splits.train), data.labels[splits.train]
    places = np.searchsorted(splits.train.numpy(), users.samples[:, :experiment.used].ravel())
    images[torch.from_numpy(places)] = marked[:, :experiment.used].flatten(0, 1)
    validation = (_read(data.images, splits.val), data.labels[splits.val]) if len(splits.val) else None
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if data.recipe.normalization == "imagenet" \
        else utils.channel_statistics(images)
    recipe = experiment.countermeasure.recipe(training_settings(experiment.settings, mean, std))
    return TrainingJob(experiment, model, images, labels, validation, recipe, paths, device, team, base_model)


@dataclass
class TrainingJob:
    """The training of one run, as a countermeasure sees it: `model` on `images` (uint8) and `labels` with `recipe`."""

    experiment: Experiment
    model: torch.nn.Module
    images: torch.Tensor
    labels: torch.Tensor
    validation: tuple | None
    recipe: utils.TrainingSettings
    paths: runs.RunPaths
    device: torch.device
    team: object
    base_model: Path | None

    @property
    def seed(self):
        return self.experiment.settings["seed"]

    @property
    def classes(self):
        return len(self.experiment.data.class_names)

    def new_model(self):
        """Another network with the initial weights of `model`, before that is trained."""
        return copy.deepcopy(self.model)

    def clean(self):
        """The clean images that the countermeasure asked for: uint8 (n, 3, H, W) and labels."""
        rows = self.experiment.clean
        return self.experiment.data.images[rows], self.experiment.data.labels[rows]

    def answers(self, model, images):
        """A model's float32 logits for images, on the CPU."""
        query = utils.make_query(model, self.recipe, self.device)
        return torch.cat([query(part).cpu() for part in images.split(_batch(self.experiment.data))])

    def fit(self, model, images=None, labels=None, phase=None, hooks=utils.PLAIN_TRAINING, validation="the run's",
            **changes):
        """Train `model` in place (see `utils.train_model`); returns the history. By default, all is the run's own.

        phase: a name for a training beside the main one; its finished weights are kept until the run is done, so that
        an interrupted run goes on with the next phase. changes: other settings of the recipe.
        """
        if phase is None and self.base_model:
            return self._take_over(model)
        settings = {**self.experiment.settings, "phase": phase} if phase else self.experiment.settings
        done = self._phase_file(phase)
        if phase and done.exists():
            tensors, stored = runs.load_model(done)
            runs.check_same_settings(stored["settings"], settings, done)
            model.load_state_dict(tensors)
            return stored["history"]
        history = utils.train_model(
            model, self.images if images is None else images, self.labels if labels is None else labels,
            replace(self.recipe, **changes), self.device, self._phase_file(phase and f"{phase}.progress"), settings,
            self.validation if validation == "the run's" else validation, self.team, hooks)
        if phase:
            runs.save_model(done, model.state_dict(), {"settings": settings, "history": history})
            self._phase_file(f"{phase}.progress").unlink(missing_ok=True)
        return history

    def _phase_file(self, phase):
        model = self.paths.model
        return model.with_name(f"{model.stem}.phase-{phase}.safetensors") if phase else self.paths.progress

    def _take_over(self, model):
        tensors, record = runs.load_model(self.base_model)
        ours = {**self.experiment.settings, "countermeasure": None}
        runs.check_same_settings(record.get("settings"), ours, self.base_model,
                                 hint="--base_model must be the same run without a countermeasure")
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise UserError(f"--base_model {self.base_model} does not fit ({str(error).splitlines()[0]})") from None
        return record["history"]

    def clean_up(self):
        """Remove the files that only an unfinished run needs."""
        self.paths.progress.unlink(missing_ok=True)
        for file in self.paths.model.parent.glob(f"{glob.escape(self.paths.model.stem)}.phase-*.safetensors"):
            file.unlink()


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
        defence = countermeasure_of(settings)
        model = defence.prepare(build_network(settings["net_type"], classes, settings["image_size"], "random"))
        model.load_state_dict(tensors)
        recipe = defence.recipe(training_settings(settings, record["mean"], record["std"]))
        recipe = replace(recipe, precision=precision or recipe.precision)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} does not hold the network it names ({str(error).splitlines()[0]}); "
                        "get an undamaged copy, or train the model again") from None
    return defence.answer(utils.make_query(model, recipe, device), settings.get("seed", 0)), record


def train_on(path, images, labels, classes, seed, device, net_type="smallnet", **recipe):
    """Train a network on exactly these images, or take it from `path`; returns (query, record of the training)."""
    settings = {**PLAIN_RECIPE, **recipe, "net_type": net_type, "image_size": images.shape[-1], "seed": seed,
                "precision": utils.choose_precision("auto", device), "classes": classes,
                "images": hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()[:16]}
    path = Path(path)
    if not path.exists():
        mean, std = utils.channel_statistics(images)
        with utils.seeded(seed, "initial weights"):
            model = build_network(net_type, classes, settings["image_size"])
        chosen = training_settings(settings, mean, std)
        path.parent.mkdir(parents=True, exist_ok=True)
        history = utils.train_model(model, images, labels, chosen, device, path.with_suffix(".progress"), settings)
        query = utils.make_query(model, chosen, device)
        runs.save_model(path, model.state_dict(), {
            "settings": settings, "mean": mean, "std": std, "history": history, "classes": classes,
            "train_accuracy": utils.accuracy(query, images, labels)})
        path.with_suffix(".progress").unlink(missing_ok=True)
    query, stored = load_trained(path, device)
    runs.check_same_settings(stored["settings"], settings, path)
    return query, stored


@dataclass(frozen=True)
class Audit:
    """What the model answered: for each of GROUPS the users and their signals, {signal: float64 (users, K)}.

    exact: for targets and control users the losses of the exact test, float64 (users, K + held out, L + 1).
    """

    settings: dict
    users: dict
    signals: dict
    seconds: float
    exact: dict = field(default_factory=dict)

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
    exact = {name: exact_losses(experiment, query, name, settings["exact_keys"], device)
             for name in ("target", "control")} if settings["exact_keys"] else {}
    result = Audit(settings, users, signals, time.monotonic() - started, exact)
    runs.write_arrays(paths.losses, settings=np.array(json.dumps({"training": experiment.settings, "audit": settings})),
                      **{f"{name}_{signal}": values for name in GROUPS for signal, values in signals[name].items()},
                      **{f"{name}_exact": values.astype(np.float32) for name, values in exact.items()},
                      **{f"{name}_{what}": getattr(users[name], what) for name in GROUPS
                         for what in ("classes", "samples")})
    return result


def exact_losses(experiment, query, group, keys, device):
    """What the exact test needs to know of a group's users: float64 (users, K + held out, keys + 1) cross-entropies.

    Beside the K samples that a user marked and published stand as many of the same class that the model has not seen,
    as if the user had held out a random half of 2K; both are marked with the user's own key (column 0) and fresh ones.
    Unmarked users have no key, and the selection is all that is tested.
    """
    users, labels = experiment.groups[group], experiment.data.labels.numpy()
    pool = experiment.splits.non_member.numpy()
    pool = pool[~experiment.data.is_test.numpy()[pool]] if group == "target" else pool
    draws, held_out = utils.key_generator(users.key, "held out"), []
    for own, label in zip(users.samples, users.classes, strict=True):
        others = np.setdiff1d(pool[labels[pool] == label], own)
        held_out.append(draws.permutation(others)[:users.samples.shape[1]])
    fewest = min(map(len, held_out))
    samples = np.concatenate([users.samples, np.stack([rows[:fewest] for rows in held_out])], axis=1)
    columns = []
    for number in range(1 + (0 if experiment.marking.changes_nothing else keys)):
        key = utils.derive_key(users.key, "fresh key", number) if number else users.key
        asked = utils.Users(samples, users.classes, key)
        columns.append(utils.score_users(query, experiment.data.images, asked, experiment.marking, device,
                                         _batch(experiment.data), f"{group}, key {number}")["cross_entropy"])
    return np.stack(columns, axis=2)


def exact_p_values(losses, published, key):
    """p of each user of `exact_losses`, whose first `published` samples are the published ones: float64 (users,)."""
    samples = losses.shape[1]
    selections = np.zeros((1 if samples == published else 1 + EXACT_SELECTIONS, samples), dtype=bool)
    selections[0, :published] = True
    draws = utils.key_generator(key, "selections")
    for row in selections[1:]:
        row[draws.permutation(samples)[:published]] = True
    return np.array([verdict.p_value(selections @ verdict.score(-user) / published) for user in losses])


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
        "countermeasure": record.get("countermeasure") or {},
        "seconds": {"train": record["train_seconds"], "audit": answers.seconds},
        "hardware": {"train": record["hardware"], "audit": hardware_name(device)},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }


def _verdicts(answers):
    """Algorithm 1 and the exact test for every target and control user."""
    rows, detected = [], {}
    for group in ("target", "control"):
        losses, fpr = answers.losses(group), answers.settings["verdict_fpr"]
        used, threshold = utils.verify_provenance(losses, answers.losses("non_member"), fpr)
        detected[group] = int(used.sum())
        exact = exact_p_values(answers.exact[group], losses.shape[1], answers.users[group].key).tolist() \
            if group in answers.exact else [None] * len(losses)
        rows += [{"user": f"{group} {number}", "class": int(label), "trained_on": group == "target",
                  "mean_loss": float(loss), "used": bool(says), "exact_p": p} for number, (label, loss, says, p)
                 in enumerate(zip(answers.users[group].classes, losses.mean(axis=1), used, exact, strict=True))]
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
