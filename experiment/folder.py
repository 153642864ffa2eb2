"""The files of one run of train.py.

Public: RunPaths, check_config, write_config, in_todays_words, TWO_VALUES.
"""

import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kit.errors import UserError
from kit.files import check_same_settings, lock_file, lock_folder, read_json, write_json

# What settings with uniform noise say of it since there are two kinds.
TWO_VALUES = {"uniform_noise": "two values"}


def in_todays_words(settings):
    """A run's stored training settings, as they would be written today: without a word about it, "uniform" noise was
    continuous."""
    old = isinstance(settings, dict) and settings.get("noise_injection_type") == "uniform"
    if old and not TWO_VALUES.keys() <= settings.keys():
        return {**settings, "noise_injection_type": "uniform_continuous"}
    return settings


def check_config(paths, settings):
    """Raise UserError when the run folder was started with other settings, {stage: {name: value}}."""
    if not paths.config.exists():
        return
    stored = read_json(paths.config)
    for stage, values in settings.items():
        there = in_todays_words(stored.get(stage, {})) if isinstance(stored, dict) else None
        check_same_settings(there, values, paths.folder)


def write_config(paths, settings):
    """Keep a run's settings, {stage: {name: value}}, and where its model is, seen from the folder, in config.json."""
    write_json(paths.config, {**settings, "model": os.path.relpath(paths.model, paths.folder)})


@dataclass(frozen=True)
class RunPaths:
    """Names of every file of one run. `folder` holds the results; `model` may lie elsewhere (--ckpt_folder)."""

    folder: Path
    model: Path

    @classmethod
    def of_folder(cls, folder):
        folder = Path(folder)
        return cls(folder, folder / "model.safetensors")

    @classmethod
    def existing(cls, folder):
        """A run that is there already: its config.json knows where the model is. UserError when it is no run folder."""
        paths = cls.of_folder(folder)
        if paths.model.exists():
            return paths
        config = read_json(paths.config)
        if not isinstance(config, dict) or not isinstance(config.get("model"), str):
            raise UserError(f"{folder} is not a run folder of train.py: its config.json names no model")
        return cls(paths.folder, Path(os.path.normpath(paths.folder / config["model"])))

    @classmethod
    def of_tag(cls, result_folder, model_folder, name):
        return cls(Path(result_folder) / name, Path(model_folder) / f"{name}.safetensors")

    @contextmanager
    def lock(self):
        """Keep a second process away from this run's files while the block lasts; a lock dies with its process."""
        with ExitStack() as locks:
            locks.enter_context(lock_folder(self.folder))
            if self.model.parent != self.folder:  # another run may have the same model under another result folder
                locks.enter_context(lock_file(self.model.with_name(f".{self.model.stem}.lock")))
            yield

    config = property(lambda self: self.folder / "config.json")
    progress = property(lambda self: self.model.with_name(self.model.stem + ".progress.safetensors"))
    marks = property(lambda self: self.folder / "marks.npz")
    losses = property(lambda self: self.folder / "losses.npz")
    result = property(lambda self: self.folder / "result.json")
    roc_plot = property(lambda self: self.folder / "roc.png")
    loss_plot = property(lambda self: self.folder / "losses.png")
    mark_plot = property(lambda self: self.folder / "marks.png")
