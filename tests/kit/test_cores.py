"""A training that gets no cores says so once, and no other does."""

import os
import time

import pytest

from kit import cores


@pytest.fixture
def machine(monkeypatch):
    """A machine on which time passes as it is told: tell(seconds, worked, load)."""
    clock = {"monotonic": 100.0, "process_time": 7.0, "load": 0.0}
    monkeypatch.setattr(os, "getloadavg", lambda: (clock["load"], 0.0, 0.0), raising=False)
    for name in ("monotonic", "process_time"):
        monkeypatch.setattr(time, name, lambda name=name: clock[name])

    def tell(seconds, worked, load):
        clock["monotonic"] += seconds
        clock["process_time"] += worked
        clock["load"] = load

    return tell


def test_threads_that_wait_for_other_programs_are_noted_once(machine, capsys):
    watch = cores.Cores(2)
    machine(cores.SECONDS - 1, 0, 3)
    watch.look()
    assert capsys.readouterr().err == "", "too early to tell"
    machine(2, cores.SECONDS, 2.3)  # as seen: one of two threads' time
    watch.look()
    assert "OMP_NUM_THREADS=1" in capsys.readouterr().err
    watch.look()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "threads,worked,load",
    [(2, 1.85, 3), (2, 1.0, 1.5), (1, 0.5, 3)],
    ids=["they work", "nobody else runs", "one thread waits for nobody"],
)
def test_no_other_training_is_bothered(machine, capsys, threads, worked, load):
    watch = cores.Cores(threads)
    machine(2 * cores.SECONDS, worked * 2 * cores.SECONDS, load)
    watch.look()
    assert capsys.readouterr().err == ""
