"""Train the network of a run, or take up a finished one.

Public: train, training_job, TrainingJob, training_settings, load_trained, train_on, PLAIN_RECIPE, IMAGENET_MEAN,
IMAGENET_STD.
"""

import copy
import glob
import hashlib
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

import utils
from experiment.folder import RunPaths, in_todays_words
from experiment.setup import Experiment, batch_size_of, check_marks, countermeasure_of, marked_images, publish_marks
from kit import files
from kit.distributed import ALONE
from kit.environment import hardware_name
from kit.errors import UserError
from kit.progress import Progress
from networks import build_network

LEARNED = "countermeasure."  # names of tensors in a model's file that are no weights, but its countermeasure's
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What `train_on` trains with, unless told: the paper's recipe with the batch of the small data sets.
PLAIN_RECIPE = {"epoch": 100, "lr": 0.1, "batch_size": 128, "momentum": 0.9, "weight_decay": 5e-4}


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
    job = training_job(experiment, marked, model, paths, device, team, base_model)
    defence = experiment.countermeasure
    history = defence.train(job)
    defence.after(job)
    if not team.leader:
        return None, None
    plain = utils.make_query(job.model, job.recipe, device)
    record = {
        "settings": settings,
        "mean": job.recipe.mean,
        "std": job.recipe.std,
        "history": history,
        "classes": job.classes,
        "class_names": list(experiment.data.class_names),
        "train_accuracy": utils.accuracy(plain, job.images, job.labels, 2 * batch_size_of(experiment.data)),
        "train_seconds": time.monotonic() - started,
        "hardware": hardware_name(device),
        "processes": team.size,
        "countermeasure": defence.report(job),
    }
    learned = {f"{LEARNED}{name}": tensor for name, tensor in job.learned.items()}
    files.save_model(paths.model, {**job.model.state_dict(), **learned}, record)
    job.clean_up()
    return defence.answer(plain, job.seed, job.learned), record


def training_job(experiment, marked, model, paths, device, team=ALONE, base_model=None):
    """The TrainingJob of a run whose target users published `marked` (see `setup.marked_images`); `model` is its
    network, untrained. Other arguments as in `train`.
    """
    data, splits, users = experiment.data, experiment.splits, experiment.users
    images, labels = _read(data.images, splits.train), data.labels[splits.train]
    places = np.searchsorted(splits.train.numpy(), users.samples[:, : experiment.used].ravel())
    images[torch.from_numpy(places)] = marked[:, : experiment.used].flatten(0, 1)
    validation = (_read(data.images, splits.val), data.labels[splits.val]) if len(splits.val) else None
    mean, std = (
        (IMAGENET_MEAN, IMAGENET_STD) if data.recipe.normalization == "imagenet" else utils.channel_statistics(images)
    )
    recipe = experiment.countermeasure.recipe(training_settings(experiment.settings, mean, std))
    return TrainingJob(experiment, model, images, labels, validation, recipe, paths, device, team, base_model)


@dataclass
class TrainingJob:
    """The training of one run, as a countermeasure sees it: `model` on `images` (uint8) and `labels` with `recipe`.

    learned: tensors by name that the countermeasure's answers need, kept beside the weights.
    """

    experiment: Experiment
    model: torch.nn.Module
    images: torch.Tensor
    labels: torch.Tensor
    validation: tuple | None
    recipe: utils.TrainingSettings
    paths: RunPaths
    device: torch.device
    team: object
    base_model: Path | None
    learned: dict = field(default_factory=dict)

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

    def logits(self, model, images):
        """A model's float32 logits for images, on the CPU."""
        query = utils.make_query(model, self.recipe, self.device)
        return torch.cat([query(part).cpu() for part in images.split(batch_size_of(self.experiment.data))])

    def fit(
        self, model, images=None, labels=None, phase=None, hooks=utils.PLAIN_TRAINING, validation="the run's", **changes
    ):
        """Train `model` in place (see `utils.train_model`); returns the history. By default, all is the run's own.

        phase: a name for a training beside the main one; its finished weights are kept until the run is done, so that
        an interrupted run goes on with the next phase. changes: other settings of the recipe.
        """
        if phase is None and self.base_model:
            return self._take_over(model)
        settings = {**self.experiment.settings, "phase": phase} if phase else self.experiment.settings
        done = self._phase_file(phase)
        if phase and done.exists():
            tensors, stored = files.load_model(done)
            files.check_same_settings(stored["settings"], settings, done)
            model.load_state_dict(tensors)
            return stored["history"]
        history = utils.train_model(
            model,
            self.images if images is None else images,
            self.labels if labels is None else labels,
            replace(self.recipe, **changes),
            self.device,
            self._phase_file(phase and f"{phase}.progress"),
            settings,
            self.validation if validation == "the run's" else validation,
            self.team,
            hooks,
        )
        if phase:
            files.save_model(done, model.state_dict(), {"settings": settings, "history": history})
            self._phase_file(f"{phase}.progress").unlink(missing_ok=True)
        return history

    def _phase_file(self, phase):
        model = self.paths.model
        return model.with_name(f"{model.stem}.phase-{phase}.safetensors") if phase else self.paths.progress

    def _take_over(self, model):
        tensors, record = files.load_model(self.base_model)
        ours = {**self.experiment.settings, "countermeasure": None}
        files.check_same_settings(
            in_todays_words(record.get("settings")),
            ours,
            self.base_model,
            advice="--base_model must be the same run without a countermeasure",
            command=None,
        )
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
    for part in Progress(torch.arange(len(rows)).split(256), "reading", disable=len(rows) <= 10_000):
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
    tensors, record = files.load_model(path)
    learned = {name: tensors.pop(name) for name in list(tensors) if name.startswith(LEARNED)}
    learned = {name.removeprefix(LEARNED): tensor for name, tensor in learned.items()}
    try:
        record["settings"] = settings = in_todays_words(record["settings"])
        classes = record["classes"]
        defence = countermeasure_of(settings)
        model = defence.prepare(build_network(settings["net_type"], classes, settings["image_size"], "random"))
        model.load_state_dict(tensors)
        recipe = defence.recipe(training_settings(settings, record["mean"], record["std"]))
        recipe = replace(recipe, precision=precision or recipe.precision)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{path} does not hold the network it names ({str(error).splitlines()[0]})",
            advice="get an undamaged copy, or train the model again",
        ) from None
    return defence.answer(utils.make_query(model, recipe, device), settings.get("seed", 0), learned), record


def train_on(path, images, labels, classes, seed, device, net_type="smallnet", **recipe):
    """Train a network on exactly these images, or take it from `path`; returns (query, record of the training)."""
    settings = {
        **PLAIN_RECIPE,
        **recipe,
        "net_type": net_type,
        "image_size": images.shape[-1],
        "seed": seed,
        "precision": utils.choose_precision("auto", device),
        "classes": classes,
        "images": hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()[:16],
    }
    path = Path(path)
    if not path.exists():
        mean, std = utils.channel_statistics(images)
        with utils.seeded(seed, "initial weights"):
            model = build_network(net_type, classes, settings["image_size"], "random")
        chosen = training_settings(settings, mean, std)
        path.parent.mkdir(parents=True, exist_ok=True)
        history = utils.train_model(model, images, labels, chosen, device, path.with_suffix(".progress"), settings)
        query = utils.make_query(model, chosen, device)
        files.save_model(
            path,
            model.state_dict(),
            {
                "settings": settings,
                "mean": mean,
                "std": std,
                "history": history,
                "classes": classes,
                "train_accuracy": utils.accuracy(query, images, labels),
            },
        )
        path.with_suffix(".progress").unlink(missing_ok=True)
    query, stored = load_trained(path, device)
    files.check_same_settings(stored["settings"], settings, path)
    return query, stored
