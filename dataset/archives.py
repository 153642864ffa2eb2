"""Unpack a downloaded .zip or .tar so that nothing lands outside its folder and nothing half-unpacked stays behind.

Public: unpack. Only plain files and folders are taken; their content is copied out by hand, so that no link, device,
owner or permission bit of the archive reaches the disk, whatever the Python version.
"""

import errno
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from kit.errors import UserError
from kit.progress import Progress

BLOCK = 512  # a tar file ends with blocks of this many zero bytes


def unpack(archive, folder, most_bytes=None, most_files=None):
    """Unpack `archive` to `folder`, which appears under its name only when it is complete.

    The archive may hold a folder of that name, one folder of another name, or the content itself. Raises UserError for
    a damaged archive, for members that would leave the folder or are no plain files, and for one that unpacks to more
    than most_bytes or most_files, whatever it claims.
    """
    archive, folder = Path(archive), Path(folder)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent) as temporary:
            target = Path(temporary) / "content"
            target.mkdir()
            _copy_members(archive, target, most_bytes, most_files)
            os.rename(_content(target, folder.name), folder)
    except UserError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{archive} cannot be unpacked ({error})", advice="check that file and its folder") from None
    except Exception as error:  # the readers of zip, tar and their compressions each have their own
        raise UserError(f"{archive} is damaged ({' '.join(str(error).split())})", advice="download it again") from None


def _copy_members(archive, target, most_bytes, most_files):
    files, meter = 0, _Meter(archive, most_bytes)
    with _members(archive) as members:
        for name, is_folder, is_file, open_member in Progress(members, f"unpacking {archive.name}", unit="file"):
            files += 1
            if most_files is not None and files > most_files:
                raise UserError(f"{archive} holds more than {most_files:,} files", advice="split it")
            path = _inside(archive, target, name)
            if is_folder:
                path.mkdir(parents=True, exist_ok=True)
            elif is_file:
                path.parent.mkdir(parents=True, exist_ok=True)
                with open_member() as source, open(path, "xb") as copy:
                    shutil.copyfileobj(_Metered(source, meter), copy, 1 << 20)
            else:
                raise UserError(
                    f"{archive} holds {name!r}, a link or device, which no data set needs",
                    advice="get the archive from its original place",
                )


class _Meter:
    """How many bytes an archive has unpacked to; too many are a UserError."""

    def __init__(self, archive, most):
        self.archive, self.most, self.bytes = archive, most, 0

    def add(self, count):
        self.bytes += count
        if self.most is not None and self.bytes > self.most:
            raise UserError(f"{self.archive} unpacks to more than {self.most / 2**30:.0f} GiB", advice="split it")


class _Metered:
    """A file of which a meter counts what is read."""

    def __init__(self, file, meter):
        self._file, self._meter = file, meter

    def read(self, size=-1):
        block = self._file.read(size)
        self._meter.add(len(block))
        return block


@contextmanager
def _members(archive):
    """Yield an iterable of (name, is a folder, is a plain file, function that opens it)."""
    with open(archive, "rb") as file:
        is_zip = file.read(2) == b"PK"
    if is_zip:
        with zipfile.ZipFile(archive) as opened:
            yield [
                (info.filename, info.is_dir(), _is_plain(info), lambda info=info: opened.open(info))
                for info in opened.infolist()
            ]
    else:
        with tarfile.open(archive) as opened:
            yield _tar_members(opened)


def _is_plain(info):
    return stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)  # 0: the archive was not made on Unix


def _tar_members(opened):
    for info in opened:
        yield info.name, info.isdir(), info.isreg(), lambda info=info: opened.extractfile(info)
    # tarfile takes a file that was cut between two members for a complete one.
    opened.fileobj.seek(opened.offset)
    if opened.fileobj.read(BLOCK) != bytes(BLOCK):
        raise tarfile.ReadError("it ends too early")


def _inside(archive, target, name):
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or re.match(r"[A-Za-z]:", name):
        raise UserError(
            f"{archive} holds {name!r}, a path that leaves its folder",
            advice="it was not unpacked, get the archive from its original place",
        )
    return target.joinpath(*parts)


def _content(target, name):
    """The unpacked folder that is to be called `name`."""
    if (target / name).is_dir():
        return target / name
    visible = [path for path in target.iterdir() if not path.name.startswith((".", "__MACOSX"))]
    if len(visible) == 1 and visible[0].is_dir() and visible[0].name != "train":
        return visible[0]
    return target
