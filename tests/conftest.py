"""Shared by all tests: one small finished run of train.py, and a way to call a script's main function."""

import importlib
import os
import random
import signal
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from kit.errors import run_script
from tests import order
from tests.parts import SMALL, THREADS, call

# The same examples everywhere, however long one takes: what fails on a slow machine fails on every other, too.
settings.register_profile(
    "same", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("same")


@pytest.hookimpl(wrapper=True, tryfirst=True)  # the last lines of all
def pytest_terminal_summary(terminalreporter):
    """What was skipped and why, one line for each reason; an unseen skip looks like a passed test."""
    result = yield
    skipped = {(report.nodeid, report.longrepr[-1]) for report in terminalreporter.stats.get("skipped", ())}
    reasons = Counter(reason.removeprefix("Skipped: ") for _, reason in skipped)
    for reason, count in sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0])):
        terminalreporter.write_line(f"skipped {count}: {' '.join(reason.split())}")
    return result


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config, log):
    """For --dist loadfile: files that share what takes long to make go to one process."""
    return order.scheduler(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(items):
    """What takes long begins first, so that no process is left alone with it at the end."""
    items.sort(key=lambda item: order.rank(item.nodeid))


@pytest.fixture(scope="session", autouse=True)
def _interruptible():
    # A shell starts background jobs with Ctrl-C ignored, and what the tests start would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _threads():
    # Of what code under test starts, too: a launcher shares the cores of a machine where nobody has said how many. For
    # each test anew: scripts that ran in this process may have changed it, and bits depend on it.
    os.environ.setdefault("OMP_NUM_THREADS", THREADS)
    torch.set_num_threads(int(THREADS))
    # What draws without a seed of its own draws the same in whatever order tests come.
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def script(monkeypatch, capsys):
    """Call the main function of a script or module in this process.

    script("train", "--flag", ...), script("paper.tables", ...) -> code, out, err
    """

    def run(name, *arguments):
        module = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, arguments)])
        code = 0
        capsys.readouterr()
        try:
            run_script(module.main)
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """The folder of a finished run with SMALL's settings. Tests must not change it."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    done = call("train.py", *SMALL, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder
