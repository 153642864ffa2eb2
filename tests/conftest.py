"""Shared by all tests: one small finished run of train.py, and ways to call the scripts as a user does."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
# A model of 400 images for 3 epochs learns nothing worth auditing, but goes through every stage in seconds.
SMALL = (
    "--dataset",
    "photos",
    "--train_size",
    "500",
    "--val_portion",
    "0.2",
    "--epoch",
    "3",
    "--batch_size",
    "64",
    "--marked_samples_per_user",
    "4",
    "--num_of_non_member_user",
    "60",
    "--target_user_cls",
    "4",
    "31",
    "--device",
    "cpu",
)


@pytest.fixture(scope="session", autouse=True)
def _interruptible():
    # A shell starts background jobs with Ctrl-C ignored, and what the tests start would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _threads():
    # The same number in this process and in those that tests start: sums, and so bits, depend on it.
    torch.set_num_threads(1)


def call(script, *arguments, code=None, cwd=ROOT, timeout=900):
    """Run a script in a process of its own; `code` runs Python text before its main function."""
    command = (
        [sys.executable, str(ROOT / script)]
        if code is None
        else [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = {script!r}\n{code}\n"
            f"import runs, {script[:-3]} as script\nruns.run_script(script.main)",
        ]
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture
def script(monkeypatch, capsys):
    """Call a script's main function in this process: script("train", "--flag", ...) -> code, out, err."""

    def run(name, *arguments):
        import importlib

        main = importlib.import_module(name).main
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        code = 0
        capsys.readouterr()
        try:
            run_script(main)
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


def assert_close_table(cell, *numbers):
    """A table's "rate (low-high)" has these numbers, to the digits shown."""
    import re

    assert [float(text) for text in re.findall(r"[\d.]+", cell)] == [round(number, 2) for number in numbers]
