"""Say it when other programs keep a training from the cores.

The threads that share a step wait for the slowest of them. Beside one busy program on two cores the demo's training
took tens of times as long with two threads as with one, and nothing showed why.

Public: Cores.
"""

import os
import sys
import time

SECONDS = 60  # so that the load average speaks of this training
LEAST = 0.65  # share of the threads' time that was worked; 0.9 and more on an idle machine
OTHERS = 0.7  # programs beside this one


class Cores:
    """Looks, some time into a training, at whether its threads get to work."""

    def __init__(self, threads):
        """threads: of each step; one thread waits for nobody."""
        self._threads, self._said = threads, threads < 2 or not hasattr(os, "getloadavg")
        self._began, self._worked = time.monotonic(), time.process_time()

    def look(self):
        """Print a note, once, where the threads mostly waited while others ran."""
        seconds = time.monotonic() - self._began
        if self._said or seconds < SECONDS:
            return
        busy = (time.process_time() - self._worked) / seconds
        if busy < LEAST * self._threads and os.getloadavg()[0] - busy >= OTHERS:
            self._said = True
            print(
                f"note: other programs use the cores of this machine, and the {self._threads} threads of each step wait"
                " for the slowest; stop them, or start this again with OMP_NUM_THREADS=1, which is many times as fast "
                "then (it goes on where it was, but the last bits may differ)",
                file=sys.stderr,
            )
