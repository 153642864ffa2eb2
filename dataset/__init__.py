"""Data sets by name: one file per data set, this registry, and what they share.

Public: dataset_names, load_dataset, load_outlier_bank, recipe. `dataset.base` has the types and make_splits,
`dataset.store` the pixels, `dataset.folders` class folders, `dataset.archives` unpacking. Downloads, unpacked archives
and the cache of decoded images land in this folder, where git ignores them. Torch is imported with the first data set:
a command line only wants the names.
"""

import difflib
import importlib
from pathlib import Path

from kit.errors import UserError

# Each is a module of this package with RECIPE and load(data_root, image_size).
_NAMES = ("cifar10", "cifar100", "tinyimagenet", "celeba", "artbench", "imagefolder", "photos")
_BANKS = ("tinyimagenet", "celeba")


def dataset_names():
    """The names that load_dataset knows."""
    return list(_NAMES)


def recipe(name):
    """The default `base.Recipe` of a data set, without loading it; `imagefolder` adapts its own to the images."""
    return _module(name).RECIPE


def load_dataset(name, data_root=None, image_size=None):
    """Load and check a data set: a `base.ImageData`.

    Args: name, one of dataset_names(); data_root, where its folder or archive lies (default: dataset/; for imagefolder
    the folder itself; photos needs none); image_size, the side of the images in pixels (default: the data set's own).
    Raises UserError for an unknown name and for data that are missing, damaged or unlike what they should be.
    """
    return _module(name).load(data_root, image_size)


def load_outlier_bank(source, height, width, data_root=None, limit=2000):
    """Images of another data set, to be blended in as outlier features (the paper's Appendix C.1.3).

    Args: source, 'tinyimagenet', 'celeba' (searched below `data_root`, then below dataset/) or the path of a folder,
    searched recursively; height and width in pixels; limit, the most images to take, spread evenly over all.
    Returns uint8 (B, 3, height, width), sorted by relative path. Raises UserError.
    """
    import numpy as np

    from dataset import folders
    from dataset.store import open_images

    if min(height, width, limit) < 1:
        raise ValueError(f"height {height}, width {width} and limit {limit} must be positive")
    root = _bank_folder(str(source), data_root)
    files = folders.list_images(root)
    if not files:
        raise UserError(f"{root} has no images to take outlier features from", advice="give another folder")
    chosen = np.linspace(0, len(files) - 1, min(limit, len(files))).round().astype(int)
    images = open_images(root, [files[index] for index in chosen], height, width, f"reading {source}")
    return images[np.arange(len(images))]


def _bank_folder(source, data_root):
    if source in _BANKS:
        from dataset.folders import DEFAULT_ROOT

        bank = importlib.import_module(f"dataset.{source}")
        roots = [Path(root) for root in (data_root, DEFAULT_ROOT) if root is not None]
        names = (bank.FOLDER, bank.ARCHIVE, getattr(bank, "UNPACKED", bank.FOLDER))
        found = [root for root in roots if any((root / name).exists() for name in names)]
        return bank.folder((found or roots)[0])
    if not Path(source).is_dir():
        raise UserError(
            f"outlier features {source!r} are neither {' nor '.join(_BANKS)} nor a folder", advice="check the path"
        )
    return Path(source)


def _module(name):
    if name not in _NAMES:
        nearest = difflib.get_close_matches(str(name).lower(), _NAMES, n=1, cutoff=0)[0]
        raise UserError(f"unknown data set {name!r}", advice=f"did you mean {nearest}? There are {', '.join(_NAMES)}")
    return importlib.import_module(f"dataset.{name}")
