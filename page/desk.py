"""The page's folder on disk: what visitors hand in, what jobs leave, and what may be downloaded.

    uploads/             the browser's uploads, as they come; a day old at most, emptied at the start
    drafts/ID/           what was handed in for a job that has not begun; a day old at most
    protected/ID/        a folder of photos that was marked: photos, photos_marked, photos_record, two zips
    checks/ID/           an audit: inputs, answers, result.json, evidence.zip
    judgements/ID/       the log of judgements of a record that was handed in
    replays/ID/          somebody else's evidence that was checked: inputs, answers of the model

Everything is its owner's alone. Nothing is deleted that a proof needs.
Public: Desk, Draft, typed_path, write_zip, MOST_BYTES, MOST_FILES, DAY.
"""

import contextlib
import os
import secrets
import shutil
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from dataset.archives import unpack
from kit.errors import UserError
from kit.files import atomic_path
from page.jobs import Jobs
from provenance.beacon import QUICKNET
from provenance.record import private_folder

MOST_BYTES, MOST_FILES = 20 << 30, 100_000  # of one zip, unpacked
DAY = 24 * 3600  # seconds
FOLDERS = ("uploads", "drafts", "protected", "checks", "judgements", "replays")
MARKER = ".membershiptracker-page"  # a folder with this file is the page's, to keep and to sweep


@dataclass
class Draft:
    """Files that were handed in. problems: (name, reason) of what could not be taken."""

    folder: Path
    problems: list = field(default_factory=list)

    @property
    def photos(self):
        return self.folder / "photos"


class Desk:
    """One page's folder; several tabs and windows share it.

    chain: the `beacon.Chain` whose rounds draw; roots: certificates for time stamps (a path), None for the usual ones.
    """

    def __init__(self, root, chain=QUICKNET, roots=None):
        self.chain, self.roots = chain, roots
        self.root = Path(root).resolve()
        if (
            self.root.exists()
            and not (self.root / MARKER).exists()
            and (not self.root.is_dir() or any(path.name != ".lock" for path in self.root.iterdir()))
        ):
            raise UserError(f"--work_folder {root} has other things in it", advice="name a folder that is new or empty")
        for name in ("", *FOLDERS):
            private_folder(self.root / name)
        (self.root / MARKER).touch()
        _sweep(self.root / "uploads", 0)
        self.jobs = Jobs(self.root)

    def draft(self):
        """A new, empty Draft."""
        for name in ("uploads", "drafts"):
            _sweep(self.root / name, DAY)
        folder = self.root / "drafts" / secrets.token_hex(8)
        private_folder(folder)
        return Draft(folder)

    def receive(self, draft, files, name="photos", unpacked=True):
        """Put uploaded files into `draft`/`name`; zips are unpacked, what can't be taken is named in its problems.

        files: paths below `uploads`. An upload is linked, not moved: the browser may hand the same one in again.
        """
        target = draft.folder / name
        target.mkdir(exist_ok=True)
        for path in map(Path, files):
            if not path.resolve().is_relative_to(self.root / "uploads"):
                raise UserError(f"{path.name} is not one of the files that were handed in", advice="choose it again")
            if unpacked and zipfile.is_zipfile(path):
                self._unpack(draft, path, target)
            else:
                _link(path, target / _free(target, path.name))
        return draft

    def _unpack(self, draft, path, target):
        folder = target / _free(target, path.stem)
        try:
            unpack(path, folder, MOST_BYTES, MOST_FILES)
        except UserError as problem:
            # The path is that of the browser's upload, which tells its owner nothing.
            draft.problems.append((path.name, str(problem).replace(str(path), "it")))

    def discard(self, draft):
        """Remove a draft that nobody needs any more."""
        if draft is None:
            return
        # Renamed first: who settles it at the same moment gets all of it or an error, never a part.
        doomed = draft.folder.with_name(f"{draft.folder.name}.gone")
        try:
            os.rename(draft.folder, doomed)
        except OSError:
            return
        shutil.rmtree(doomed, ignore_errors=True)

    def settle(self, draft, folder):
        """Move a draft to the place where its job keeps it (a name beside it, if it is taken); the new Draft."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder = folder.with_name(_free(folder.parent, folder.name))
        os.rename(draft.folder, folder)
        return Draft(folder, draft.problems)

    def download(self, job_id, name):
        """The path of a file that a job offers, or None."""
        job = self.jobs.get(job_id)
        offered = (job.result.get("files") or {}) if job else {}
        path = job.folder / offered[name] if name in offered else None
        return path if path is not None and path.is_file() and path.resolve().is_relative_to(self.root) else None


def typed_path(text):
    """A path that somebody typed, made absolute; None where nothing was typed. UserError for what can't be a path."""
    text = (text or "").strip()
    if not text:
        return None
    try:
        if "\0" in text:
            raise ValueError
        return Path(text).expanduser().absolute()
    except (ValueError, RuntimeError):  # a home of nobody
        raise UserError(f"{text!r} can't be a path on this computer") from None


def _sweep(folder, seconds):
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime >= seconds:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()


def _free(folder, name):
    """`name`, or "name (2)" and so on where it is taken; without parts that would lead elsewhere."""
    name = Path(name.replace("\\", "/")).name.lstrip(".") or "file"
    path, number = Path(name), 1
    while (folder / path).exists():
        number += 1
        path = Path(f"{Path(name).stem} ({number}){Path(name).suffix}")
    return path.name


def _link(source, target):
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, target)


def write_zip(path, entries):
    """Write a zip of entries (name inside, path), not compressed: photos are already. Whole or not at all."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as bundle:
        for name, source in entries:
            bundle.write(source, name)
