"""How scripts end: one line and an exit code for everything that is not a defect."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from experiment.folder import RunPaths
from kit import files
from kit.errors import UserError, run_script
from kit.files import save_model
from tests.kit.parts import SETTINGS, WRITERS, tensors
from tests.parts import ROOT


@pytest.fixture
def ended(capsys):
    """ended(main) -> (exit code, lines on stderr); gives the test's signal handlers back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(main):
        capsys.readouterr()
        try:
            run_script(main)
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().err.splitlines()

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def raising(error):
    def main():
        raise error

    return main


def test_a_user_error_is_one_line_and_exit_code_2(ended):
    """Whatever the message was made of. Wrong: a traceback, the exception's class name, several lines."""
    assert ended(raising(UserError("no such class: 7"))) == (2, ["error: no such class: 7"])
    code, lines = ended(raising(UserError("first\nsecond\r\n  third\ttext\x85fourth")))
    assert code == 2
    assert lines == ["error: first second third text fourth"]


def test_success_has_no_exit_code_and_no_output(ended):
    """Wrong: sys.exit(None) is fine, a line on stderr is not."""
    assert ended(lambda: None) == (0, [])


def test_interrupts_are_one_line_and_exit_code_130(ended):
    """Ctrl-C, and a polite kill, which job schedulers send."""
    code, lines = ended(raising(KeyboardInterrupt()))
    assert code == 130
    assert len(lines) == 1
    assert "interrupted" in lines[0]
    assert ended(lambda: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(120))[0] == 130


def test_an_interrupt_during_an_import_cannot_be_swallowed(tmp_path):
    """Foreign modules catch everything while they are imported, and make other exceptions of it."""
    (tmp_path / "greedy.py").write_text(
        "import time\n"
        "print('importing', flush=True)\n"
        "while True:\n"
        "    try:\n        time.sleep(60)\n"
        "    except BaseException:\n        pass\n"
    )
    code = "from kit.errors import run_script\ndef main():\n    import greedy\nrun_script(main)"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    try:
        _, error = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130
    assert error.startswith("error: interrupted") and error.count("\n") == 1


def test_ctrl_c_stays_ignored_where_it_was(ended):
    """A shell starts jobs in the background with Ctrl-C ignored."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert ended(lambda: os.kill(os.getpid(), signal.SIGINT)) == (0, [])


@pytest.mark.parametrize("number", ["ENOSPC", "EDQUOT"])
def test_a_full_disk_is_one_line_and_exit_code_2(number, ended):
    """A full quota is a full disk. The line names the place."""
    code, lines = ended(raising(OSError(getattr(errno, number), "No space", "/some/where")))
    assert code == 2
    assert len(lines) == 1
    assert "/some/where" in lines[0]
    assert "room" in lines[0]


def test_a_full_disk_while_the_model_is_written_is_one_line_and_exit_code_2(ended, tmp_path, monkeypatch):
    """safetensors reports a full disk as an exception of its own, which is no OSError (the text is that of a tmpfs)."""

    def full(*_):
        raise files.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(files, "save_file", full)
    code, lines = ended(lambda: save_model(tmp_path / "m.safetensors", tensors(), SETTINGS))
    assert code == 2
    assert len(lines) == 1
    assert "room" in lines[0]


def test_a_really_full_disk(tmp_path):
    """64 KiB of tmpfs in a namespace of its own: exit code 2, one line, the old file whole, nothing half-written."""
    if (
        sys.platform != "linux"
        or subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("no private mounts here")
    code = """
import sys; sys.path.insert(0, sys.argv[1])
import numpy as np, torch
from pathlib import Path
from kit import errors, files
from tests.kit import parts
big = {"json": lambda path: files.write_json(path, ["x" * 200_000]),
       "npz": lambda path: files.write_arrays(path, a=np.random.default_rng(0).random(40_000)),
       "safetensors": lambda path: files.save_model(path, {"a": torch.randn(40_000)}, {})}
for kind, (write, read) in parts.WRITERS.items():
    path = Path(sys.argv[2]) / kind / ("file." + kind)
    write(path, 1)
    try:
        errors.run_script(lambda: big[kind](path))
    except BaseException as end:
        print(kind, repr(end), read(path), parts.files_in(path.parent) == [path.name])
"""
    inner = 'mount -t tmpfs -o size=64k none "$2" && exec "$0" -c "$3" "$1" "$2"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", inner, sys.executable, str(ROOT), str(tmp_path), code],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.stdout.splitlines() == [f"{kind} SystemExit(2) 1 True" for kind in WRITERS], done.stderr
    assert len(done.stderr.splitlines()) == 3


@pytest.mark.parametrize("number", ["EACCES", "EPERM", "EROFS"])
def test_missing_permissions_are_one_line_and_exit_code_2(number, ended):
    """A read-only disk is bad input, too."""
    code, lines = ended(raising(OSError(getattr(errno, number), "no", "/some/where")))
    assert code == 2
    assert len(lines) == 1
    assert "/some/where" in lines[0] and lines[0].endswith("--out says where results go")


@pytest.mark.parametrize("where", ["a file", "below a file", "too long"])
def test_an_out_folder_that_cannot_be_is_one_line_and_exit_code_2(where, tmp_path, ended):
    """--out that names a file. Wrong: FileExistsError, NotADirectoryError or 'File name too long' in a traceback."""
    (tmp_path / "file").write_text("mine")
    folder = tmp_path / {"a file": "file", "below a file": "file/run", "too long": "x" * 300}[where]

    def main():
        with RunPaths.of_folder(folder).lock():
            pytest.fail("that is no folder")

    code, lines = ended(main)
    assert code == 2
    assert len(lines) == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_an_exhausted_device_is_one_line_and_exit_code_2(ended):
    """Out of GPU memory is for the user to solve."""
    code, lines = ended(raising(torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")))
    assert code == 2
    assert len(lines) == 1
    assert "--batch_size" in lines[0]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyError("x"), AssertionError()])
def test_our_own_mistakes_are_not_hidden(error, ended):
    """Wrong: catching everything, so that a bug looks like bad input."""
    with pytest.raises(type(error)):
        ended(raising(error))


def test_deliberate_exit_codes_pass(ended):
    """--help ends with 0."""
    assert ended(raising(SystemExit(0)))[0] == 0
