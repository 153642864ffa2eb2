"""Files that are whole or not there: JSON, arrays, weights, their digests and locks.

A file is written under a temporary name and renamed, so that a reader sees the old file or the new one and never half
of one; the settings that a file was made with lie inside it or beside it, so that output from other settings is refused
by name; weights are safetensors, so that opening a stranger's model runs none of its maker's code.

Public: atomic_path, write_json, read_json, write_arrays, read_arrays, save_model, load_model, no_safetensors,
MODEL_FORMAT, check_same_settings, canonical_digest, file_digest, lock_folder, lock_file, network_timeout.
"""

import errno
import hashlib
import json
import os
import socket
import zipfile
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

try:
    import fcntl
except ImportError:  # Windows has none; there two runs of one name are the user's to keep apart.
    fcntl = None
from kit.errors import Locked, UserError

MODEL_FORMAT = "membershiptracker-model-1"


@contextmanager
def atomic_path(path):
    """Yield a temporary name beside `path`; rename it to `path` on success, remove it on any failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last because numpy and matplotlib choose the format by it. The name is always the same, so that
    # what a killed process leaves behind is overwritten by the next one; `lock_folder` keeps two of them apart.
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    if len(os.fsencode(temporary.name)) > 255:
        temporary = path.with_name(f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()}.part{path.suffix[-16:]}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        # Some writers make files that only their owner can read; the user's umask decides that.
        temporary.chmod(mode)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def network_timeout(seconds):
    """Give up on a silent server: torchvision's and torch.hub's downloads have no timeout of their own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def write_json(path, value):
    """Write `value` as indented UTF-8 JSON; NaN is refused, because strict readers of the file would choke on it."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path, remedy="delete it and run the command again"):
    """Read a JSON file. Raises UserError when it is missing or damaged; remedy: what to do then."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", advice="run train.py first, or check the path") from None
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise UserError(f"{path} is damaged ({error})", advice=f"{remedy}") from None


def canonical_digest(value):
    """SHA-256, hex, of a JSON-ready value in one fixed spelling."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    ).hexdigest()


def file_digest(path):
    """SHA-256 of a file's bytes, hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            digest.update(part)
    return digest.hexdigest()


def write_arrays(path, **arrays):
    """Write named numpy arrays as a compressed .npz file."""
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def read_arrays(path):
    """Read an .npz file into a dict of arrays; pickled objects inside are refused. Raises UserError."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        if all(isinstance(array, np.ndarray) for array in arrays.values()):
            return arrays
        error = "not a file of arrays"
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", advice="run train.py first, or check the path") from None
    except PermissionError:
        raise
    # A damaged zip shows itself in all these ways (a single array in a file of its own as a TypeError).
    except (ValueError, TypeError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as problem:
        error = problem
    raise UserError(f"{path} is damaged ({error})", advice="delete it and run the command again")


def save_model(path, tensors, settings):
    """Write a dict of tensors with JSON-serialisable `settings` inside the same safetensors file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": MODEL_FORMAT, "settings": json.dumps(settings, sort_keys=True)}
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            if f"os error {errno.ENOSPC}" in str(error):
                raise OSError(errno.ENOSPC, "no space left on device", str(path)) from None
            raise


def load_model(path):
    """Read a file of `save_model`.

    Returns (dict of CPU tensors, settings). Raises UserError for a missing, truncated or foreign file. Nothing in the
    file is executed: a pickle is recognised as such and refused.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"model file {path} does not exist", advice="train it with train.py first, or check the path")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise no_safetensors(path, error) from None
    if metadata.get("format") != MODEL_FORMAT:
        raise UserError(
            f"{path} was not written by train.py (no {MODEL_FORMAT} inside)", advice="give a checkpoint of train.py"
        )
    try:
        settings = json.loads(metadata["settings"])
    except (KeyError, ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise UserError(f"{path} has unreadable settings inside", advice="train the model again")
    return tensors, settings


def no_safetensors(path, error):
    """The UserError about a file that could not be read as safetensors: what it is instead."""
    with open(path, "rb") as file:
        head = file.read(9)
    # A zip (torch.save since 1.6) or the PROTO opcode of pickle 2 and later. Named, never opened. Safetensors begin
    # with a length of 8 bytes, the first of which may be either, and a brace.
    if (head[:2] == b"PK" or head[:1] == b"\x80") and head[8:9] != b"{":
        return UserError(
            f"{path} is a pickle, which could run code of whoever made it, so it was not opened",
            "ask for the weights as a safetensors file",
        )
    return UserError(f"{path} is truncated or not a safetensors file ({error})", "get an undamaged copy")


def check_same_settings(
    stored, wanted, where, but=(), advice="use the same settings", command="or another --save_tag or --out"
):
    """Raise UserError naming every setting of `wanted` (but those in `but`) that differs from `stored`: flat dicts."""
    if not isinstance(stored, dict):
        raise UserError(f"{where} has no readable settings", advice="delete it and run the command again")
    wanted = json.loads(json.dumps(wanted))  # as they come back from a file: tuples are lists there
    different = [
        f"{name} is {stored.get(name)!r} there and {value!r} here"
        for name, value in wanted.items()
        if name not in but and stored.get(name) != value
    ]
    if different:
        raise UserError(f"{where} was made with other settings: {'; '.join(different)}", advice, command)


@contextmanager
def lock_file(path):
    """Context manager: keep a second process from holding the lock `path`, a Path; a lock dies with its process.

    Its folder is made where it is missing, and removed again if nothing else has been put there. Raises Locked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Locked(
                    f"another process is working in {path.parent}",
                    "wait for it",
                    "or choose another --save_tag or --out",
                ) from None
        try:
            yield
        finally:
            # A run that failed before its first file leaves no folder behind.
            with suppress(FileNotFoundError):
                if [entry.name for entry in path.parent.iterdir()] == [path.name]:
                    path.unlink()
                    path.parent.rmdir()


def lock_folder(folder):
    """Context manager: keep a second process away from a folder (see `lock_file`)."""
    return lock_file(Path(folder) / ".lock")
