"""Work that outlives a browser tab: it goes on while nobody looks, can be found again, cancelled and gone on with.

A job has a folder of its own with job.json, written whenever its state changes. What was running when the page's
process ended is "interrupted" at the next start; the files that it left are those of an interrupted command.

Public: Job, Jobs, Cancelled, reason, ACTIVE, STOPPED.
"""

import os
import shutil
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from kit import files
from kit.errors import UserError, explained
from kit.progress import watched
from page.words import of_error

ACTIVE = ("waiting", "running")
STOPPED = ("failed", "cancelled", "interrupted")
STATES = (*ACTIVE, *STOPPED, "done")
AT_ONCE = 2  # of each kind: audits of slow servers must not keep photos from being marked


class Cancelled(Exception):
    """Somebody pressed Cancel."""


@dataclass
class Job:
    """One piece of work.

    details: JSON-ready, what it takes to start it again; result: JSON-ready, what it left; said: texts that people have
    to know before it is done; flag: the flag that its failure is about, such as "--beacon".
    """

    id: str
    kind: str
    title: str
    folder: Path
    created: str
    details: dict
    state: str = "waiting"
    message: str = ""
    result: dict = field(default_factory=dict)
    said: list = field(default_factory=list)
    flag: str | None = None
    progress: tuple = ("", 0, None)  # label, done, total (None: unknown)
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def active(self):
        return self.state in ACTIVE

    def watch(self, label, done, total):
        """See `kit.progress.watched`."""
        self.progress = (label, done, total)
        self._check()

    def say(self, text):
        """Show, and keep, what people have to know now; once."""
        if text not in self.said:
            self.said.append(text)
            self.save()

    def sleep(self, seconds):
        """time.sleep that Cancel ends."""
        self._stop.wait(seconds)
        self._check()

    def _check(self):
        if self._stop.is_set():
            raise Cancelled

    def save(self, **changes):
        """Write job.json, with values that are still to come in place of those that the job has."""
        names = ("id", "kind", "title", "created", "details", "state", "message", "result", "said", "flag")
        files.write_json(self.folder / "job.json", {name: getattr(self, name) for name in names} | changes)


class Jobs:
    """All jobs below a folder, `root`/KIND/ID; AT_ONCE of a kind run at a time, the others wait for their turn."""

    def __init__(self, root):
        self.root = Path(root)
        self._lock, self._pools = threading.RLock(), {}
        self._jobs = {}
        for path in sorted(self.root.glob("*/*/job.json")):
            if job := _stored(path):
                self._jobs[job.id] = job

    def get(self, job_id):
        """The Job of an id, None when there is none."""
        with self._lock:
            return self._jobs.get(job_id)

    def all(self, kind):
        """The jobs of a kind, the newest first."""
        with self._lock:
            return sorted(
                (job for job in self._jobs.values() if job.kind == kind),
                key=lambda job: (job.created, job.id),
                reverse=True,
            )

    @property
    def active(self):
        """Whether anything runs or waits for its turn."""
        with self._lock:
            return any(job.active for job in self._jobs.values())

    def start(self, job_id, kind, title, details, work):
        """Run work(job) -> result dict in the background. An active job of this id is returned as it is."""
        with self._lock:
            job = self._jobs.get(job_id)
            if job is not None and job.active:
                return job
            created = job.created if job else datetime.now().isoformat(timespec="seconds")
            said = list(job.said) if job else []
            job = Job(job_id, kind, title, self.root / kind / job_id, created, details, said=said)
            job.save()
            self._jobs[job_id] = job
            if kind not in self._pools:
                self._pools[kind] = ThreadPoolExecutor(AT_ONCE, thread_name_prefix=kind)
            self._pools[kind].submit(self._run, job, work)
        return job

    def cancel(self, job_id):
        """End a job at its next step, one that waits at once."""
        with self._lock:
            if (job := self._jobs.get(job_id)) is not None:
                job._stop.set()
                if job.state == "waiting":
                    self._enter(job, "cancelled")

    def delete(self, job_id):
        """Forget a job that is not active, and remove its folder."""
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None or job.active:
                return
            # Renamed first: whoever begins the same work at this moment gets a folder of its own.
            doomed = job.folder.with_name(f".{job.id}.gone")
            with suppress(OSError):
                os.rename(job.folder, doomed)
            del self._jobs[job_id]
        shutil.rmtree(doomed, ignore_errors=True)

    def _enter(self, job, state, message="", result=None, flag=None):
        # Kept, then said: whoever starts it again writes after this, and whoever sees it finds it on the disk.
        with self._lock:
            values = {"state": state, "message": message, "result": result or {}, "flag": flag}
            try:
                job.save(**values)
            except OSError as error:
                values["message"] = message or reason(error)
            job.message, job.result, job.flag, job.state = (
                values[name] for name in ("message", "result", "flag", "state")
            )

    def _run(self, job, work):
        with self._lock:
            if job.state != "waiting":
                return
            self._enter(job, "running")
        try:
            with watched(job.watch):
                result = work(job)
            self._enter(job, "done", result=result)
        except Cancelled:
            self._enter(job, "cancelled")
        except Exception as error:
            self._enter(job, "failed", reason(error), flag=getattr(error, "flag", None))

    def close(self):
        """Stop all jobs at their next step, as the page's process ends; they are "interrupted" then."""
        with self._lock:
            active = [job for job in self._jobs.values() if job.active]
            for job in active:
                self.cancel(job.id)
            pools = list(self._pools.values())
        for pool in pools:
            pool.shutdown(wait=True, cancel_futures=True)
        for job in active:
            if job.state == "cancelled":
                self._enter(job, "interrupted")


def reason(error):
    """One line about any exception; the traceback of a defect goes to stderr, for whoever reports it."""
    if (known := explained(error)) is None:
        traceback.print_exception(error, file=sys.stderr)
        return f"a defect of this program ({type(error).__name__}: {error}); please report it"
    return of_error(known)


def _stored(path):
    try:
        kept = files.read_json(path)
        job = Job(folder=path.parent, **kept)
        if job.id != path.parent.name or job.kind != path.parent.parent.name or job.state not in STATES:
            return None
    except (UserError, TypeError, OSError, AttributeError):
        return None  # half a disk, or somebody else's file: the rest of the page works without it
    if job.active:
        job.state = "interrupted"
    return job
