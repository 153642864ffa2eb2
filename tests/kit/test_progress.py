"""Progress that somebody watches."""

import io
import threading

import pytest

from kit import progress
from kit.progress import Progress
from page.jobs import Cancelled


def test_watchers_hear_every_step_and_can_end_the_work():
    heard = []
    with progress.watched(lambda *step: heard.append(step)):
        assert list(Progress([5, 6, 7], "looking")) == [5, 6, 7]
        with Progress(desc="asking", total=10, initial=4) as bar:
            bar.update(3)
    assert heard == [
        ("looking", 0, 3),
        ("looking", 1, 3),
        ("looking", 2, 3),
        ("looking", 3, 3),
        ("asking", 4, 10),
        ("asking", 7, 10),
    ]
    list(Progress([1, 2], "unwatched"))
    assert len(heard) == 6

    def stop(_, done, __):
        if done == 2:
            raise Cancelled

    seen = []
    with pytest.raises(Cancelled), progress.watched(stop):
        for item in Progress(range(9), "working"):
            seen.append(item)
    assert seen == [0, 1]


def test_a_terminal_changes_nothing_for_watchers(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    heard, screen = [], Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with progress.watched(lambda *step: heard.append(step[1:])):
        assert list(Progress([5, 6], "looking", mininterval=0)) == [5, 6]
    assert heard == [(0, 2), (1, 2), (2, 2)] and "looking" in screen.getvalue()


def test_threads_have_watchers_of_their_own():
    heard = {"a": [], "b": []}

    def work(name):
        with progress.watched(lambda *step: heard[name].append(step[0])):
            list(Progress(range(2), name))

    threads = [threading.Thread(target=work, args=(name,)) for name in heard]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == {"a": ["a"] * 3, "b": ["b"] * 3}
