"""Progress bars that a page can watch and cancel.

Public: Progress, watched.
"""

from contextlib import contextmanager
from contextvars import ContextVar

from tqdm import tqdm

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
    """A progress bar, silent where stderr is no terminal, that also tells who `watched`.

    iterable: what is gone through; without one, `total` steps are counted by update(). desc: the label, for the watcher
    as well; initial: steps that an earlier call has done; unit: what a step is. disable: neither shown nor told, for
    work that is short or has a bar around it, and for all processes of a team but one. leave: keep the last line, for
    bars whose figures (see set_postfix) are worth reading afterwards; others are gone when they are done.
    """

    def __init__(
        self, iterable=None, desc=None, total=None, initial=0, unit="it", disable=False, leave=False, **settings
    ):
        super().__init__(
            iterable, desc, total, initial=initial, unit=unit, disable=disable or None, leave=leave, **settings
        )
        self._watcher, self._label, self._done = None if disable else _watcher.get(), desc, initial
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
