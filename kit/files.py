"""Run folders: everything that a script reads from or writes to disk, and how it fails.

`utils.py` computes, this module keeps. A file is written under a temporary name and renamed, so that a reader sees the
old file or the new one and never half of one; a stage's settings lie beside its output, so that output from other
settings is refused by name; weights are safetensors, so that opening a stranger's model runs none of its maker's code.

Public: UserError, run_script, explanation, optional, Progress, watched, atomic_path, write_json, read_json,
write_arrays, read_arrays, save_model, load_model, check_same_settings, check_config, write_config, network_timeout,
lock_folder, RunPaths, VERSION.
"""

import errno
import hashlib
import importlib
import json
import os
import signal
import socket
import sys
import zipfile
import zlib
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows has none; there two runs of one name are the user's to keep apart.
    fcntl = None

VERSION = "0.1.0"  # that of pyproject.toml
MODEL_FORMAT = "membershiptracker-model-1"


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and what to do about it."""


def run_script(main):
    """Run `main()` as a command: bad input, a full disk and Ctrl-C end in one line on stderr, never in a traceback.

    main's result is the exit code: 0 (or None) done, 1 done but for what was named. Others: 2 bad input or no room on
    the disk, 130 interrupted (by Ctrl-C or a polite kill).
    """
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    try:
        if code := main():
            sys.exit(code)
    except UserError as error:
        sys.exit(_fail(str(error), 2))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted; start the same command again to go on where it stopped", 130))
    except BrokenPipeError:  # `train.py | head`: whoever read the table has enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (what Python flushes at exit)
        sys.exit(0)
    except (OSError, torch.OutOfMemoryError) as error:
        if (text := explanation(error)) is None:
            raise
        sys.exit(_fail(text, 2))


def explanation(error):
    """What to tell people about an exception that is their input's or their machine's; None for a defect of ours."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "the device ran out of memory; lower --batch_size, or use --device cpu"
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no room left on the disk{_where(error)}; free some, then start the same command again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission to read or write{_where(error)}; choose another folder with --out"
    if error.errno == errno.ENOENT:
        return f"a file is gone{_where(error)}; put it back, or start anew without it"
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
        return f"{error.strerror}{_where(error)}; choose another name with --out"
    return None


def _where(error):
    return f" at {error.filename}" if error.filename else ""


def _fail(message, code):
    # Click-through environments and logs want exactly one line, whatever the message was made from.
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def optional(package, what, install=None):
    """Import a package that only some need; without it a UserError says what needs it and how to get it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"{what} needs the package {package}: pip install {install or package}") from None


_watcher = ContextVar("watcher", default=None)


@contextmanager
def watched(watcher):
    """Call watcher(label, done, total) at every step of each `Progress` of this thread; what it raises ends the work.

    The work is left as after Ctrl-C: what is finished is on disk, and the same call goes on from there.
    """
    before = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(before)


class Progress(tqdm):
    """A progress bar, silent where stderr is no terminal and gone when it is done, that also tells who `watched`."""

    def __init__(self, iterable=None, desc=None, total=None, initial=0, **settings):
        super().__init__(iterable, desc, total, initial=initial, disable=None, leave=False, **settings)
        self._watcher, self._label, self._done = _watcher.get(), desc, initial
        self._tell(0)

    def _tell(self, steps):
        self._done += steps
        if self._watcher is not None:
            self._watcher(self._label, self._done, self.total)

    def __iter__(self):
        # Not tqdm's own, which calls update on a terminal and not elsewhere.
        with self:
            for item in self.iterable:
                yield item
                self.update(1)

    def update(self, n=1):
        super().update(n)
        self._tell(n)


@contextmanager
def atomic_path(path):
    """Yield a temporary name beside `path`; rename it to `path` on success, remove it on any failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last because numpy and matplotlib choose the format by it. The name is always the same, so that
    # what a killed process leaves behind is overwritten by the next one; `RunPaths.lock` keeps two of them apart.
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
        raise UserError(f"{path} does not exist; run train.py first, or check the path") from None
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise UserError(f"{path} is damaged ({error}); {remedy}") from None


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
        raise UserError(f"{path} does not exist; run train.py first, or check the path") from None
    except PermissionError:
        raise
    # A damaged zip shows itself in all these ways (a single array in a file of its own as a TypeError).
    except (ValueError, TypeError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as problem:
        error = problem
    raise UserError(f"{path} is damaged ({error}); delete it and run the command again")


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
        raise UserError(f"model file {path} does not exist; train it with train.py first, or check the path")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(_why_no_safetensors(path, error)) from None
    if metadata.get("format") != MODEL_FORMAT:
        raise UserError(f"{path} was not written by train.py (no {MODEL_FORMAT} inside); give a checkpoint of train.py")
    try:
        settings = json.loads(metadata["settings"])
    except (KeyError, ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise UserError(f"{path} has unreadable settings inside; train the model again")
    return tensors, settings


def _why_no_safetensors(path, error):
    with open(path, "rb") as file:
        head = file.read(2)
    # A zip (torch.save since 1.6) or the PROTO opcode of pickle 2 and later. Named, never opened.
    if head == b"PK" or head[:1] == b"\x80":
        return (f"{path} is a pickle, which could run code of whoever made it, so it was not opened; "
                "ask for the weights as a safetensors file")
    return f"{path} is truncated or not a safetensors file ({error}); get an undamaged copy"


def check_same_settings(stored, wanted, where, but=(), hint="Use the same settings, or another --save_tag or --out"):
    """Raise UserError naming every setting of `wanted` (but those in `but`) that differs from `stored`: flat dicts."""
    if not isinstance(stored, dict):
        raise UserError(f"{where} has no readable settings; delete it and run the command again")
    wanted = json.loads(json.dumps(wanted))  # as they come back from a file: tuples are lists there
    different = [f"{name} is {stored.get(name)!r} there and {value!r} here"
                 for name, value in wanted.items() if name not in but and stored.get(name) != value]
    if different:
        raise UserError(f"{where} was made with other settings: {'; '.join(different)}. {hint}")


def check_config(paths, settings):
    """Raise UserError when the run folder was started with other settings, {stage: {name: value}}."""
    if not paths.config.exists():
        return
    stored = read_json(paths.config)
    for stage, values in settings.items():
        check_same_settings(stored.get(stage, {}) if isinstance(stored, dict) else None, values, paths.folder)


def write_config(paths, settings):
    """Keep a run's settings, {stage: {name: value}}, and where its model is, seen from the folder, in config.json."""
    write_json(paths.config, {**settings, "model": os.path.relpath(paths.model, paths.folder)})


@contextmanager
def _locked(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process is working in {path.parent}; wait for it, or choose another "
                                "--save_tag or --out") from None
        try:
            yield
        finally:
            # A run that failed before its first file leaves no folder behind.
            with suppress(FileNotFoundError):
                if [entry.name for entry in path.parent.iterdir()] == [path.name]:
                    path.unlink()
                    path.parent.rmdir()


def lock_folder(folder):
    """Context manager: keep a second process away from a folder; a lock dies with its process."""
    return _locked(Path(folder) / ".lock")


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
                locks.enter_context(_locked(self.model.with_name(f".{self.model.stem}.lock")))
            yield

    config = property(lambda self: self.folder / "config.json")
    progress = property(lambda self: self.model.with_name(self.model.stem + ".progress.safetensors"))
    marks = property(lambda self: self.folder / "marks.npz")
    losses = property(lambda self: self.folder / "losses.npz")
    result = property(lambda self: self.folder / "result.json")
    roc_plot = property(lambda self: self.folder / "roc.png")
    loss_plot = property(lambda self: self.folder / "losses.png")
    mark_plot = property(lambda self: self.folder / "marks.png")
