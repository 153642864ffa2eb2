"""Progress bars that a page can watch and cancel."""

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
