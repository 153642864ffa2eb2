"""Whose images are whose in a folder that is audited: from the manifest, or from the folders.

Public: read_manifest, find_users, of_size.
"""

import os
from pathlib import Path

from imagenet.plan import FOLDERS, FORMAT, IMAGE_SUFFIXES
from kit.errors import UserError
from kit.files import read_json


def read_manifest(path):
    """Read and check a manifest.json. Raises UserError; no name in it can leave the folder that it is joined to."""
    path = Path(path)
    manifest = read_json(path / "manifest.json" if path.is_dir() else path)
    try:
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        names = list(manifest["class_names"])
        for name, entry in manifest["users"].items():
            names += [name, entry["class"], *entry["files"]]
            if (
                entry["group"] not in FOLDERS
                or not isinstance(entry["files"], list)
                or len(entry["numbers"]) != len(entry["files"])
            ):
                raise ValueError(f"user {name} is not as it should be")
        bad = [
            name
            for name in names
            if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name
        ]
        if bad or not isinstance(manifest["settings"], dict):
            raise ValueError(f"{bad[0]!r} is no file name" if bad else "it has no settings")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is not a manifest of imagenet-prepare.py ({type(error).__name__}: {error})",
            advice="give TREE/manifest.json",
        ) from None
    return manifest


def find_users(folder, manifest=None, group=None):
    """The users of a member or non-member folder: {user: [(class, path), ...]}, sorted by user and then by name.

    With a manifest the users and files are those that it lists for `group`. Without, FOLDER/USER/CLASS/FILES, or
    FOLDER/CLASS/FILES, where a class is one user. Raises UserError.
    """
    root = str(folder)
    if not os.path.isdir(root):
        raise UserError(f"{folder} is not a folder", advice="give one with USER/CLASS/IMAGES or CLASS/IMAGES inside")
    if manifest is not None:
        found = {
            name: sorted((entry["class"], os.path.join(root, name, entry["class"], file)) for file in entry["files"])
            for name, entry in sorted(manifest["users"].items())
            if entry["group"] == group
        }
        missing = next((path for files in found.values() for _, path in files if not os.path.isfile(path)), None)
        if missing:
            raise UserError(
                f"{missing} is missing, though the manifest lists it",
                advice="give the folders and the manifest of one tree",
            )
    else:
        found = dict(_users_of_folders(root))
    if not found:
        raise UserError(f"{folder} has no users: neither USER/CLASS/IMAGES nor CLASS/IMAGES")
    return found


def of_size(users, folder, size):
    """Users of `size` images each: ({user: [(class, path)] * size}, [path] of what is left out).

    users: of `find_users` in this folder. Where a class is a user (FOLDER/CLASS/FILES), every `size` consecutive files
    are a user of their own, as in the original: n01, n01+2, n01+3, ... Elsewhere a user has the first `size` files. A
    user with fewer keeps them, and is left to the caller.
    """
    chosen, rest = {}, []
    for name, files in users.items():
        is_class = all(len(Path(path).relative_to(folder).parts) == 2 for _, path in files)
        whole = max(1, len(files) // size) if is_class else 1
        for number in range(whole):
            chosen[f"{name}+{number + 1}" if number else name] = files[number * size : (number + 1) * size]
        rest += [path for _, path in files[whole * size :]]
    return chosen, rest


def _users_of_folders(root):
    shapes = set()
    for name in _below(root, folders=True):
        classes, files = (_below(os.path.join(root, name), folders) for folders in (True, False))
        if classes and files:
            raise UserError(
                f"{root}/{name} has both images and folders inside", advice="use USER/CLASS/IMAGES or CLASS/IMAGES"
            )
        if not classes and not files:
            raise UserError(f"{root}/{name} is empty", advice="remove it")
        shapes.add(bool(classes))
        if len(shapes) > 1:
            raise UserError(f"{root} mixes USER/CLASS/IMAGES and CLASS/IMAGES (as {name})", advice="use one of them")
        yield (
            name,
            [
                (label, os.path.join(root, name, label, file))
                for label in classes
                for file in _below(os.path.join(root, name, label), False)
            ]
            or [(name, os.path.join(root, name, file)) for file in files],
        )


def _below(folder, folders):
    """Sorted names of the folders, or of the images, in a folder."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if (
                entry.is_dir()
                if folders
                else not entry.is_dir()
                and not entry.name.startswith(".")
                and os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES
            )
        )
