"""Class folders: find the images below them, label them by folder, and build an ImageData.

Public: list_images, class_folder_data, checked_image_size, find_folder, DEFAULT_ROOT, LAYOUT. Shared by imagefolder,
tinyimagenet, celeba, artbench and the outlier bank of `dataset.load_outlier_bank`.

Layouts: `train/<class>/**` and the test images in `test/<class>/**` (or val, valid, validation), or `<class>/**` alone.
Classes are sorted by name. Hidden files and files that are no images are ignored. A link to something inside the root
is followed, a link that leaves it is refused: what a data set holds must not depend on the rest of the disk.
"""

import os
from pathlib import Path
from typing import NamedTuple

import torch

from dataset.archives import unpack
from dataset.base import checked_data
from dataset.store import ImageFile, open_images
from kit.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
TEST_FOLDERS = ("test", "val", "valid", "validation")
DEFAULT_ROOT = Path(__file__).resolve().parent
MAX_IMAGE_SIZE = 4096
LAYOUT = "expected train/<class>/* and test/<class>/* (or val/), or just <class>/*"


def list_images(root, below="") -> list[ImageFile]:
    """Every image file in `root`/`below`, searched recursively, as ImageFiles relative to `root`, sorted by path.

    Raises UserError for a folder that can't be read and a link that leaves `root`, leads nowhere or goes in circles.
    """
    root = Path(root).resolve()
    files = []
    try:
        if (root / below).is_symlink():
            _check_link(root, root / below, ())
        _scan(root, below, files, (os.path.realpath(root / below),))
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror})", advice="check the data folder") from None
    return sorted(files, key=lambda file: file.relative)


def _scan(root, below, files, ancestors):
    with os.scandir(root / below) as entries:
        for entry in entries:
            if _is_hidden(entry.name):
                continue
            relative = f"{below}/{entry.name}" if below else entry.name
            if entry.is_symlink():
                _check_link(root, entry.path, ancestors)
            if entry.is_dir():
                _scan(root, relative, files, ancestors + (os.path.realpath(entry.path),))
            elif entry.is_file() and entry.name.lower().endswith(IMAGE_SUFFIXES):
                status = entry.stat()
                files.append(ImageFile(relative, status.st_size, status.st_mtime_ns))


def _is_hidden(name):
    return name.startswith(".") or name == "__MACOSX"  # what macOS adds to archives


def _check_link(root, path, ancestors):
    target = os.path.realpath(path)
    if not Path(target).is_relative_to(root):
        raise UserError(f"{path} is a link that leaves {root}", advice="put the images themselves there")
    if not os.path.exists(target) or target in ancestors:
        raise UserError(f"{path} is a link that leads nowhere or back to its own folder", advice="remove it")


class _Part(NamedTuple):
    folder: str  # relative to the root; "" is the root itself
    is_test: bool
    class_names: list[str]


def class_folder_data(name, root, recipe, image_size, test_folders=TEST_FOLDERS, class_count=None):
    """Build the ImageData of the class folders in `root`.

    Args: recipe, a Recipe, or a function of (size, labels, is_test) that makes one; image_size, the side in pixels,
    or a function of (root, ImageFiles, labels) that finds it; test_folders, which folders may hold the test images,
    the first existing one counts; class_count, the only number of classes to accept.
    Raises UserError for everything that the module's text does not allow.
    """
    root = Path(root)
    parts = _find_parts(name, root, test_folders)
    class_names = parts[0].class_names
    if class_count not in (None, len(class_names)):
        raise UserError(
            f"data set {name}: {root} has {len(class_names)} classes instead of {class_count}",
            advice="unpack the archive again, or use --dataset imagefolder for other data",
        )
    files, labels, is_test = _label_files(root, parts)
    _refuse_empty_class(name, root / parts[0].folder, class_names, labels[~is_test])
    if callable(image_size):
        image_size = image_size(root, files, labels)
    images = open_images(root, files, image_size, image_size, f"reading {name}")
    if callable(recipe):
        recipe = recipe(image_size, labels, is_test)
    return checked_data(name, images, labels, class_names, is_test, recipe)


def _find_parts(name, root, test_folders):
    """The training part and, where there is one, the test part."""
    if not root.is_dir():
        raise UserError(f"data set {name}: there is no folder {root}", advice=f"{LAYOUT} in it")
    if not _subfolders(root / "train"):  # a 'train' full of images is no split, it is a class of railway pictures
        if any(_subfolders(root / folder) for folder in TEST_FOLDERS):
            raise UserError(
                f"data set {name}: {root} has test images but no class folders in train/", advice=f"{LAYOUT}"
            )
        if not _subfolders(root):
            raise UserError(f"data set {name}: {root} has no class folders", advice=f"{LAYOUT}")
        return [_Part("", False, _subfolders(root))]
    parts = [_Part("train", False, _subfolders(root / "train"))]
    test_folder = next((folder for folder in test_folders if _subfolders(root / folder)), None)
    if test_folder:
        parts.append(_Part(test_folder, True, _subfolders(root / test_folder)))
        only_test = sorted(set(parts[1].class_names) - set(parts[0].class_names))
        if only_test:
            raise UserError(
                f"data set {name}: class {only_test[0]!r} is in {root / test_folder} but not in {root / 'train'}",
                advice="remove it there, or add its training images",
            )
    return parts


def _subfolders(folder):
    """Names of the visible folders in `folder`, sorted; empty when it is none."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name))


def _label_files(root, parts):
    """Returns (ImageFiles, labels int64 (N,), is_test bool (N,)), the training part first, each sorted by path."""
    number = {class_name: label for label, class_name in enumerate(parts[0].class_names)}
    files, labels, is_test = [], [], []
    for part in parts:
        start = len(part.folder) + 1 if part.folder else 0
        for file in list_images(root, part.folder):
            class_name, separator, _ = file.relative[start:].partition("/")
            if separator:  # a picture beside the class folders belongs to no class
                files.append(file)
                labels.append(number[class_name])
                is_test.append(part.is_test)
    return files, torch.tensor(labels, dtype=torch.int64), torch.tensor(is_test, dtype=torch.bool)


def _refuse_empty_class(name, folder, class_names, training_labels):
    counts = torch.bincount(training_labels, minlength=len(class_names)).tolist()
    if 0 in counts:
        raise UserError(
            f"data set {name}: class folder {folder / class_names[counts.index(0)]} has no images",
            advice=f"remove it or fill it ({LAYOUT})",
        )


def checked_image_size(name, image_size, default):
    """`image_size`, or `default` when it is None. Raises UserError unless it is a whole number of 1..4096 pixels."""
    if image_size is None:
        return default
    if not 1 <= image_size <= MAX_IMAGE_SIZE or int(image_size) != image_size:
        raise UserError(f"data set {name}: --image_size {image_size} must be a whole number from 1 to {MAX_IMAGE_SIZE}")
    return int(image_size)


def find_folder(name, folder, archive, source, data_root=None, also=None) -> Path:
    """The path of `folder` below `data_root` (default: dataset/), unpacked from `archive` beside it when missing.

    also: the name under which people have it who unpacked the archive themselves. Raises UserError saying what to
    download from where (`source`) when none is there.
    """
    root = DEFAULT_ROOT if data_root is None else Path(data_root)
    if also and (root / also).is_dir():
        return root / also
    if not (root / folder).is_dir():
        if not (root / archive).is_file():
            raise UserError(
                f"data set {name}: neither {root / folder} nor {root / archive} exists",
                advice=f"download {archive} "
                f"({source}) and put it into {root}, or point --data_root to the folder that holds it",
            )
        unpack(root / archive, root / folder)
    return root / folder
