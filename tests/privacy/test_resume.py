"""privacy-audit.py interrupted and resumed ends with the same bits."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from privacy import config as configuration
from privacy import pipeline, signals, training
from tests.parts import ROOT, environment
from tests.privacy.parts import config_of, copy_of, sections, write


def weights(log):
    return {file.name: load_file(file) for file in sorted((log / "models").glob("model_*.safetensors"))}


def stored_signals(log):
    found = {file.name: dict(np.load(file)) for file in sorted((log / "signals").glob("*.npz"))}
    return found


def assert_same(log, other):
    first, second = weights(log), weights(other)
    assert first.keys() == second.keys()
    for name, tensors in first.items():
        assert all(torch.equal(value, second[name][key]) for key, value in tensors.items()), name
    first, second = stored_signals(log), stored_signals(other)
    assert first.keys() == second.keys()
    for name, arrays in first.items():
        assert all(np.array_equal(value, second[name][key]) for key, value in arrays.items()), name


class Stop(BaseException):
    """Ends the process, as far as the code under test can tell."""


def stop_at(monkeypatch, place, name, call_number):
    """Let the `call_number`th call of a function raise Stop."""
    original, calls = getattr(place, name), []

    def stopping(*arguments, **options):
        calls.append(1)
        if len(calls) == call_number:
            raise Stop
        return original(*arguments, **options)

    monkeypatch.setattr(place, name, stopping)


@pytest.mark.parametrize(
    ("place", "name", "call_number", "models_done", "signals_done"),
    [
        (training, "_fit_table", 1, 0, 0),  # before the first model
        (torch.optim.SGD, "step", 30, 1, 0),  # within an epoch of the second (16 steps a model)
        (os, "replace", 5, 3, 0),  # while the fifth file is given its name
        (signals, "ask", 5, 4, 2),  # while the third model is asked (two calls a model)
        (pipeline, "_judge", 1, 4, 4),  # before the attacks
    ],
)
def test_interrupted_runs_end_with_the_same_bits(
    finished, place, name, call_number, models_done, signals_done, tmp_path, monkeypatch
):
    _, log = finished
    config, mine = config_of(tmp_path), tmp_path / "log"
    with monkeypatch.context() as patch:
        stop_at(patch, place, name, call_number)
        with pytest.raises(Stop):
            pipeline.run(config, "audit")
    before = {file: file.stat().st_mtime_ns for file in mine.rglob("model_*.*") if file.is_file()}
    assert sum(file.suffix == ".safetensors" for file in before) == models_done
    assert sum(file.suffix == ".npz" for file in before) == signals_done
    results, _ = pipeline.run(config, "audit")
    assert {file: file.stat().st_mtime_ns for file in before} == before  # nothing finished was made again
    assert_same(mine, log)
    expected, _ = pipeline.run(finished[0], "audit")
    assert json.dumps(results["attacks"]) == json.dumps(expected["attacks"])


def test_killed_while_training_images(tmp_path):
    made = sections(
        tmp_path / "log",
        data__dataset="photos",
        data__size=200,
        train__model_name="smallnet",
        train__epochs=3,
        audit__population_size=20,
        run__num_experiments=1,
        audit__num_ref_models=1,
        train__batch_size=64,
    )
    write(tmp_path / "a.yaml", made)
    kill = (
        "import os, utils\nutils.PROGRESS_SECONDS = 0\noriginal = utils.train_epoch\ncount = []\n"
        "def epoch(*a, **k):\n    count.append(1)\n    if len(count) == 6: os._exit(9)\n"
        "    return original(*a, **k)\nutils.train_epoch = epoch"
    )
    command = ("--cf", tmp_path / "a.yaml", "--stop_after", "signals")
    assert run_killed(*command, code=kill).returncode == 9
    folder = tmp_path / "log" / "models"
    assert sorted(file.name for file in folder.glob("model_*")) == ["model_0.safetensors", "model_1.progress"]
    config = configuration.load(tmp_path / "a.yaml")
    before = (folder / "model_0.safetensors").stat().st_mtime_ns
    pipeline.run(config, "signals")
    assert (folder / "model_0.safetensors").stat().st_mtime_ns == before
    fresh = configuration.load(
        write(tmp_path / "b.yaml", {**made, "run": {**made["run"], "log_dir": str(tmp_path / "other")}})
    )
    pipeline.run(fresh, "signals")
    assert_same(tmp_path / "log", tmp_path / "other")


def run_killed(*arguments, code):
    """privacy-audit.py in a process of its own that runs `code` first."""
    text = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}\nimport runpy\n"
        f"runpy.run_path({str(ROOT / 'privacy-audit.py')!r}, run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-c", text, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )


def test_one_missing_model_trains_only_itself(finished, tmp_path, monkeypatch):
    _, log = finished
    mine = copy_of(log, tmp_path / "log")
    (mine / "models" / "model_2.safetensors").unlink()
    trained, original = [], training._fit_table
    monkeypatch.setattr(
        training, "_fit_table", lambda *arguments: trained.append(arguments[3]["number"]) or original(*arguments)
    )
    pipeline.run(config_of(tmp_path), "signals")
    assert trained == [2]
    assert_same(mine, log)


def test_more_models_go_on_where_fewer_ended(finished, tmp_path, monkeypatch):
    _, log = finished
    mine = copy_of(log, tmp_path / "log")
    trained, original = [], training._fit_table
    monkeypatch.setattr(
        training, "_fit_table", lambda *arguments: trained.append(arguments[3]["number"]) or original(*arguments)
    )
    pipeline.run(config_of(tmp_path, run__num_experiments=6), "signals")
    assert trained == [4, 5]
    assert np.load(mine / "models" / "memberships.npy").shape == (6, 1797)


def test_models_of_a_launcher_have_the_same_bits(finished, tmp_path, monkeypatch, script):
    _, log = finished
    mine = copy_of(log, tmp_path / "a folder" / "log")
    for number in (1, 2):
        (mine / "models" / f"model_{number}.safetensors").unlink()
    config = write(tmp_path / "a.yaml", sections(mine))
    monkeypatch.setenv("JOBS", "2")
    done = script("privacy-audit", "--cf", config, "--stop_after", "signals")
    assert done.code == 0, done.err
    commands = (mine / "models" / "commands.txt").read_text().splitlines()
    assert [line.split()[-2:] for line in commands] == [["--train_model", "1"], ["--train_model", "2"]]
    assert_same(mine, log)


def test_one_model_by_its_number(finished, tmp_path, script):
    _, log = finished
    config = write(tmp_path / "a.yaml", sections(tmp_path / "log"))
    assert "models 0 to 3" in script("privacy-audit", "--cf", config, "--train_model", 4).err
    assert script("privacy-audit", "--cf", config, "--train_model", 3).code == 0
    assert [file.name for file in (tmp_path / "log" / "models").iterdir()] == ["model_3.safetensors"]
    assert torch.equal(
        weights(log)["model_3.safetensors"]["1.weight"], weights(tmp_path / "log")["model_3.safetensors"]["1.weight"]
    )
