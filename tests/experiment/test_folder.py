"""The folder of a run: its settings, its names, its locks."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiment.folder import RunPaths, check_config, write_config
from kit.errors import UserError
from kit.files import load_model, read_json, save_model, write_json
from tests.kit.parts import SETTINGS, files_in, tensors
from tests.parts import ROOT


def test_settings_survive_the_file(tmp_path):
    """Tuples become lists in JSON: a run must recognise its own settings."""
    paths = RunPaths.of_folder(tmp_path / "run")
    settings = {"training": {"target_user_cls": (17, 36), "lr": 0.1}, "audit": {"fpr": (1e-3, 0.0)}}
    check_config(paths, settings)
    write_config(paths, settings)
    check_config(paths, settings)


def test_config_keeps_and_checks_every_stage(tmp_path):
    """Defects 5 and 19. Wrong: checking the training settings only, so that an audit of other settings is reused."""
    paths = RunPaths.of_folder(tmp_path / "run")
    settings = {"training": {"lr": 0.1}, "audit": {"num_of_non_member_user": 5000}}
    check_config(paths, settings)  # nothing there yet
    assert not paths.folder.exists()
    write_config(paths, settings)
    check_config(paths, settings)
    for stage, name in (("training", "lr"), ("audit", "num_of_non_member_user")):
        with pytest.raises(UserError, match=name):
            check_config(paths, {**settings, stage: {name: 7}})
    write_json(paths.config, {"training": {"lr": 0.1}})
    with pytest.raises(UserError, match="num_of_non_member_user"):
        check_config(paths, settings)


@pytest.mark.parametrize("content", [[], "text", None, 3, {"training": [1]}, {"training": "x"}])
def test_a_config_of_another_shape_is_a_user_error(content, tmp_path):
    """Wrong: AttributeError about a list that has no get."""
    paths = RunPaths.of_folder(tmp_path)
    write_json(paths.config, content)
    with pytest.raises(UserError):
        check_config(paths, {"training": {"lr": 0.1}})


# --- Names and locks ---


def test_files_of_a_run_are_distinct_and_where_the_flags_say():
    """Wrong: two runs of one folder that share a model, or a progress file that is the model."""
    paths = RunPaths.of_tag("saved_res", "checkpoint", "cifar100-net-tag")
    assert paths.folder == Path("saved_res/cifar100-net-tag")
    assert paths.model == Path("checkpoint/cifar100-net-tag.safetensors")
    assert paths.progress.parent == Path("checkpoint")
    assert RunPaths.of_folder("out").model.parent == Path("out")
    names = [
        getattr(paths, name)
        for name in ("config", "progress", "marks", "losses", "result", "roc_plot", "loss_plot", "mark_plot", "model")
    ]
    assert len(set(names)) == len(names)
    other = RunPaths.of_tag("saved_res", "checkpoint", "cifar100-net-tag2")
    assert other.progress != paths.progress


def test_an_existing_run_is_found_with_its_model_elsewhere(tmp_path):
    """--ckpt_folder: config.json knows where the model is."""
    paths = RunPaths.of_tag(tmp_path / "res", tmp_path / "ckpt", "run")
    write_config(paths, {"training": {}})
    save_model(paths.model, tensors(), SETTINGS)
    assert RunPaths.existing(paths.folder) == paths
    own = RunPaths.of_folder(tmp_path / "own")
    save_model(own.model, tensors(), SETTINGS)
    assert RunPaths.existing(own.folder) == own


@pytest.mark.parametrize("content", [None, {}, {"model": None}, [], "text"])
def test_a_folder_that_is_no_run_is_a_user_error(content, tmp_path):
    """Wrong: a traceback, or a message about a file called None."""
    if content is not None:
        write_json(tmp_path / "config.json", content)
    with pytest.raises(UserError) as caught:
        load_model(RunPaths.existing(tmp_path).model)
    assert tmp_path.name in str(caught.value)


def test_a_lock_keeps_a_second_run_out_while_it_lasts(tmp_path):
    """Wrong: a lock that the same process, or a later one, can't take again; or no lock at all."""
    paths = RunPaths.of_folder(tmp_path / "run")
    for _ in range(2):
        with paths.lock():
            write_json(paths.config, 1)
            with pytest.raises(UserError, match="another process"), RunPaths.of_folder(tmp_path / "run").lock():
                pytest.fail("two at once")
            with RunPaths.of_folder(tmp_path / "other").lock():
                pass
    assert paths.config.exists()


def test_a_lock_keeps_another_process_out_and_dies_with_it(tmp_path):
    """Wrong: a lock file whose mere presence locks: after kill -9 the run could never be continued."""
    code = """
import sys; sys.path.insert(0, sys.argv[1])
from experiment.folder import RunPaths
with RunPaths.of_folder(sys.argv[2]).lock():
    open(sys.argv[2] + "/config.json", "w").close()
    print("locked", flush=True)
    sys.stdin.read()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(ROOT), str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="run"), RunPaths.of_folder(tmp_path / "run").lock():
            pytest.fail("two at once")
    finally:
        child.kill()
        child.communicate(timeout=600)
    with RunPaths.of_folder(tmp_path / "run").lock():
        pass


def test_runs_that_write_the_same_model_keep_each_other_out(tmp_path):
    """Two --res_folder, one --ckpt_folder and tag: both would write one model and one progress file, under one
    temporary name, so that a rename could publish the other's half-written file."""
    first, second = (RunPaths.of_tag(tmp_path / name, tmp_path / "ckpt", "run") for name in ("a", "b"))
    assert first.model == second.model
    with first.lock(), pytest.raises(UserError), second.lock():
        pass


def test_a_run_that_fails_before_its_first_file_leaves_no_folder(tmp_path):
    """Bad flags must leave nothing behind, and files of an earlier start must stay."""
    paths = RunPaths.of_folder(tmp_path / "run")
    with pytest.raises(UserError, match="bad flag"), paths.lock():
        raise UserError("bad flag")
    assert files_in(tmp_path) == []
    with pytest.raises(UserError, match="bad flag"), paths.lock():
        write_json(paths.result, 1)
        raise UserError("bad flag")
    assert read_json(paths.result) == 1


def test_a_folder_that_vanishes_does_not_hide_the_error(tmp_path):
    """Wrong: FileNotFoundError out of the clean-up in place of what went wrong."""
    paths = RunPaths.of_folder(tmp_path / "run")
    with pytest.raises(UserError, match="the reason"), paths.lock():
        shutil.rmtree(paths.folder)
        raise UserError("the reason")
