"""What tests of every folder share: the repository, a small run's flags, and ways to start a script as a user does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kit.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
# Of this process and of those that tests start, which have to agree: sums, and so bits, depend on it.
THREADS = os.environ.get("OMP_NUM_THREADS", "1")
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


def environment(**more):
    """Of a process that a test starts: as many threads as here, and no graphics card."""
    return {**os.environ, "OMP_NUM_THREADS": THREADS, "CUDA_VISIBLE_DEVICES": "", **more}


def call(name, *arguments, code=None, cwd=ROOT, timeout=900):
    """Run a script ("train.py") or a module ("paper.tables") in a process of its own, as a user does.

    code: Python text that runs before its main function.
    """
    module = name.removesuffix(".py")
    if code is not None:
        start = f"import importlib\nfrom kit.errors import run_script\nmain = importlib.import_module({module!r}).main"
        command = ["-c", f"import sys\nsys.argv[0] = {name!r}\n{code}\n{start}\nrun_script(main)"]
    else:
        command = [str(ROOT / name)] if name.endswith(".py") else ["-m", module]
    return subprocess.run(
        [sys.executable, *command, *map(str, arguments)],
        cwd=cwd,
        env=environment() if command[0].endswith(".py") else environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def user_error(call, *words):
    """Assert that `call` raises a one-line UserError with all the words in it; returns its message."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, f"{word!r} is not in {message!r}"
    return message


def assert_close_table(cell, *numbers):
    """A table's "rate (low-high)" has these numbers, to the digits shown."""
    assert [float(text) for text in re.findall(r"[\d.]+", cell)] == [round(number, 2) for number in numbers]


# A run's settings as `setup.prepare` takes them, for the data set "photos".
TRAINING = {
    "seed": 1,
    "marked_samples_per_user": 4,
    "train_size": 500,
    "val_portion": 0.2,
    "clean_train": 0,
    "target_user_cls": [4],
    "num_of_multiTarget_sameCls": None,
    "num_of_multiTarget_diffCls": None,
    "img_blending_ratio": 0.7,
    "noise_injection_type": "perlin",
    "noise_norm": 8.0,
    "ood_pattern": "color_stripes",
}
