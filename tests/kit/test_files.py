"""Run folders: files are whole or absent, damaged and hostile ones are refused, and scripts fail in one line.

The promise throughout: bad input is a UserError with a message that names the file, and never a traceback; a file that
was there stays as it was when writing a new one fails.
"""

import errno
import io
import json
import math
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from experiment.folder import RunPaths, check_config, write_config
from kit import files
from kit.errors import UserError, run_script
from kit.files import atomic_path, load_model, read_arrays, read_json, save_model, write_arrays, write_json

ROOT = Path(files.__file__).resolve().parent
SETTINGS = {"lr": 0.1, "net_type": "tiny", "target_user_cls": [17, 36], "name": "Grüße", "nothing": None}


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "steps": torch.tensor(7),
        "half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "empty": torch.zeros(0, 3),
    }


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


def refused(read, path, what=None):
    """`read(path)` is a UserError of one line that names the file."""
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert path.name in message
    assert what is None or what in message
    return message


class RunsCode:
    """Opening a pickle of this creates a file: what somebody else's checkpoint could do."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


# ----------------------------------------------------------------------------------------------------------------------
# Writing
# ----------------------------------------------------------------------------------------------------------------------

WRITERS = {
    "json": (lambda path, value: write_json(path, {"value": value}), lambda path: read_json(path)["value"]),
    "npz": (lambda path, value: write_arrays(path, a=np.full(9, value)), lambda path: int(read_arrays(path)["a"][0])),
    "safetensors": (
        lambda path, value: save_model(path, tensors(), {"value": value}),
        lambda path: load_model(path)[1]["value"],
    ),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_can_be_written_again_and_nothing_else_is_left(kind, tmp_path):
    """Wrong: temporary files that stay, folders that are not made, no replacing of an existing file (Windows)."""
    write, read = WRITERS[kind]
    path = tmp_path / "new" / "folder" / f"file.{kind}"
    for value in (1, 2):
        write(path, value)
        assert read(path) == value
        assert files_in(path.parent) == [path.name]


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), RuntimeError("anything")]
)
def test_a_write_that_fails_in_the_middle_leaves_the_old_file(kind, failure, tmp_path, monkeypatch):
    """Wrong: writing into the file itself, or leaving half of a temporary file behind."""
    write, read = WRITERS[kind]
    path = tmp_path / f"file.{kind}"
    write(path, 1)

    def half(*arguments, **_):
        target = next(Path(each) for each in arguments if isinstance(each, (str, Path)) and ".part" in str(each))
        target.write_bytes(b"half of a fi")
        raise failure

    monkeypatch.setattr(files, "save_file", half)
    monkeypatch.setattr(np, "savez_compressed", half)
    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(type(failure)):
        write(path, 2)
    monkeypatch.undo()
    assert read(path) == 1
    assert files_in(tmp_path) == [path.name]


def test_a_rename_or_flush_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    """The disk can be full as late as in fsync. Wrong: a file renamed before its content was written out."""
    path = tmp_path / "file.json"
    write_json(path, 1)
    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, full_disk)
        with pytest.raises(OSError, match="No space"):
            write_json(path, 2)
        monkeypatch.undo()
        assert read_json(path) == 1
        assert files_in(tmp_path) == [path.name]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    """Wrong: truncating first. The suffix stays last, because numpy and matplotlib go by it."""
    path = tmp_path / "file.json"
    write_json(path, "old")
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent, "a rename from another disk is no rename"
        assert temporary.suffix == ".json"
        temporary.write_text('"new"')
        assert read_json(path) == "old"
    assert read_json(path) == "new"


def test_what_a_killed_process_left_behind_is_no_obstacle(tmp_path):
    """Wrong: refusing because the temporary file is there, or collecting them."""
    path = tmp_path / "file.json"
    with atomic_path(path) as temporary:
        temporary.write_text("1")
    temporary.write_text("half")
    write_json(path, 2)
    assert read_json(path) == 2
    assert files_in(tmp_path) == ["file.json"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, [1, {"a": math.nan}]])
def test_nan_is_no_json(bad, tmp_path):
    """Wrong: the text NaN, which strict readers choke on; or an old file destroyed by the attempt."""
    path = tmp_path / "result.json"
    write_json(path, {"fine": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, bad)
    assert read_json(path) == {"fine": 1}
    assert files_in(tmp_path) == ["result.json"]


def test_json_round_trip_is_readable_text(tmp_path):
    """Wrong: escaped umlauts, one long line, another encoding than UTF-8 on Windows."""
    path = tmp_path / "config.json"
    write_json(path, SETTINGS)
    text = path.read_bytes().decode("utf-8")
    assert "Grüße" in text
    assert text.count("\n") > len(SETTINGS)
    assert read_json(path) == json.loads(text) == SETTINGS


def test_arrays_round_trip(tmp_path):
    """Values, dtypes and shapes, also of texts and empty arrays."""
    arrays = {
        "losses": np.random.default_rng(0).random((3, 4)),
        "images": np.arange(8, dtype=np.uint8).reshape(2, 4),
        "settings": np.array("text"),
        "empty": np.zeros((0, 5), np.int64),
        "flags": np.array([True, False]),
    }
    write_arrays(tmp_path / "a.npz", **arrays)
    back = read_arrays(tmp_path / "a.npz")
    assert back.keys() == arrays.keys()
    for name, values in arrays.items():
        assert back[name].dtype == values.dtype
        assert (back[name] == values).all()
        assert back[name].shape == values.shape


def test_model_round_trip_with_settings(tmp_path):
    """Bits, dtypes, shapes and settings; also of tensors that require gradients, are channels_last or slices."""
    path, kept = tmp_path / "m.safetensors", tensors()
    odd = {
        "grad": torch.ones(3, requires_grad=True),
        "slice": torch.arange(12.0).reshape(3, 4)[:, 1:3],
        "layout": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    save_model(path, {**kept, **odd}, SETTINGS)
    back, settings = load_model(path)
    assert settings == SETTINGS
    assert back.keys() == kept.keys() | odd.keys()
    for name, tensor in {**kept, **odd}.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor.detach())
    assert not back["grad"].requires_grad
    torch.nn.Linear(3, 1).load_state_dict({"weight": back["grad"][None], "bias": torch.zeros(1)})


def test_a_model_can_be_read_by_whoever_can_read_the_other_files(tmp_path):
    """Wrong: mode 0600, which safetensors gives its files: another member of the group can't audit the model."""
    before = os.umask(0o022)
    try:
        save_model(tmp_path / "m.safetensors", tensors(), SETTINGS)
        write_json(tmp_path / "c.json", SETTINGS)
    finally:
        os.umask(before)
    assert oct((tmp_path / "m.safetensors").stat().st_mode) == oct((tmp_path / "c.json").stat().st_mode)


# ----------------------------------------------------------------------------------------------------------------------
# Damaged and hostile files
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [load_model, read_arrays, read_json])
def test_a_missing_file_is_a_user_error(read, tmp_path):
    """The message says what would make the file."""
    assert "train.py" in refused(read, tmp_path / "absent.file", "does not exist")


@pytest.mark.parametrize("read", [load_model, read_arrays, read_json])
def test_a_folder_in_place_of_a_file_is_a_user_error(read, tmp_path):
    """Wrong: IsADirectoryError with a traceback."""
    (tmp_path / "folder").mkdir()
    refused(read, tmp_path / "folder")


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_truncated_anywhere_is_a_user_error(kind, tmp_path):
    """Every length from 0 on. Wrong: EOFError, BadZipFile, struct.error; or half of the tensors."""
    write, _ = WRITERS[kind]
    read = {"json": read_json, "npz": read_arrays, "safetensors": load_model}[kind]
    path = tmp_path / f"file.{kind}"
    write(path, "text" if kind == "json" else 1)
    whole = path.read_bytes()
    for length in range(len(whole) - (2 if kind == "json" else 0)):  # the last byte of a JSON file is a line break
        path.write_bytes(whole[:length])
        refused(read, path)


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_a_flipped_bit_is_a_user_error_or_harmless(kind, tmp_path):
    """Wrong: zlib.error, NotImplementedError, tokenize.TokenError and whatever else a damaged header leads to."""
    write, _ = WRITERS[kind]
    read = {"npz": read_arrays, "safetensors": load_model}[kind]
    path = tmp_path / f"file.{kind}"
    if kind == "npz":
        write_arrays(path, a=np.random.default_rng(0).integers(0, 9, 300), settings=np.array("some text"))
    else:
        write(path, 1)
    whole, strange = path.read_bytes(), set()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place * 5 % 8)
        path.write_bytes(damaged)
        try:
            read(path)
        except UserError:
            pass
        except Exception as error:
            strange.add(type(error).__name__)
    assert not strange


def hostile(kind, marker):
    """Bytes of a file that creates `marker` when it is unpickled."""
    content, buffer = {"model": RunsCode(marker)}, io.BytesIO()
    if kind == "torch zip":
        torch.save(content, buffer)
    elif kind == "torch legacy":
        torch.save(content, buffer, _use_new_zipfile_serialization=False)
    else:
        buffer.write(pickle.dumps(content, protocol=int(kind[-1])))
    return buffer.getvalue()


PICKLES = ["torch zip", "torch legacy", *(f"pickle {protocol}" for protocol in range(6))]


@pytest.mark.parametrize("kind", PICKLES)
@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_a_pickle_is_refused_without_running_it(kind, name, tmp_path):
    """Defect 10: whole models were pickled, and opening somebody's checkpoint ran their code."""
    marker = tmp_path / "code ran"
    (tmp_path / name).write_bytes(hostile(kind, marker))
    message = refused(load_model, tmp_path / name)
    assert not marker.exists()
    if kind not in ("pickle 0", "pickle 1"):  # these have no mark of their own
        assert "pickle" in message


def test_the_hostile_pickle_of_these_tests_is_hostile(tmp_path):
    """What the test above guards against really happens when the file is opened the old way."""
    marker = tmp_path / "code ran"
    pickle.loads(hostile("pickle 4", marker))["model"].close()
    assert marker.exists()


@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_in_place_of_arrays_or_json_does_not_run_either(kind, tmp_path):
    """Wrong: numpy's allow_pickle; or a foreign zip file, whose members are taken for arrays."""
    marker = tmp_path / "code ran"
    (tmp_path / "file").write_bytes(hostile(kind, marker))
    refused(read_json, tmp_path / "file")
    refused(read_arrays, tmp_path / "file")
    assert not marker.exists()


def test_object_arrays_are_refused_without_running_them(tmp_path):
    """Wrong: allow_pickle=True, with which an .npz runs code."""
    marker = tmp_path / "code ran"
    np.savez(tmp_path / "a.npz", fine=np.arange(3), bad=np.array([RunsCode(marker)], dtype=object))
    refused(read_arrays, tmp_path / "a.npz")
    assert not marker.exists()


def test_a_single_array_is_no_archive(tmp_path):
    """np.save in place of np.savez: a traceback about context managers."""
    with open(tmp_path / "a.npz", "wb") as file:
        np.save(file, np.arange(3))
    refused(read_arrays, tmp_path / "a.npz")


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"format": "pt"},
        {"format": files.MODEL_FORMAT},
        {"format": files.MODEL_FORMAT, "settings": "{"},
        {"format": files.MODEL_FORMAT, "settings": "[1]"},
        {"format": files.MODEL_FORMAT, "settings": "null"},
        {"settings": "{}"},
        {"format": files.MODEL_FORMAT, "settings": "[" * 100_000},
    ],
    ids=["none", "empty", "foreign", "no settings", "broken", "list", "null", "no format", "deep"],
)
def test_safetensors_of_somebody_else_are_refused(metadata, tmp_path):
    """Wrong: weights taken without settings, KeyError, or RecursionError out of 100,000 brackets."""
    save_file({"a": torch.zeros(2)}, tmp_path / "m.safetensors", metadata)
    refused(load_model, tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "header",
    [
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"a":1}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,99999]}}',
        b'{"a":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}',
        b"[" * 50_000,
    ],
)
@pytest.mark.parametrize("length", [None, 0, 2**40, 2**64 - 1])
def test_malformed_safetensors_are_user_errors(header, length, tmp_path):
    """Wrong: memory for a size that the file only claims to have, or another exception than UserError."""
    size = len(header) if length is None else length
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", size) + header + b"\0" * 8)
    refused(load_model, tmp_path / "m.safetensors")


@pytest.mark.parametrize("text", [b"", b"{", b'{"a": 1', b"\xff\xfe\x00", b"NaN}", b"[" * 100_000])
def test_damaged_json_is_a_user_error(text, tmp_path):
    """Wrong: UnicodeDecodeError or RecursionError."""
    (tmp_path / "c.json").write_bytes(text)
    refused(read_json, tmp_path / "c.json", "damaged")


# ----------------------------------------------------------------------------------------------------------------------
# Settings
# ----------------------------------------------------------------------------------------------------------------------


def test_same_settings_pass():
    """Settings that only the stored side has don't matter, nor do those named in `but`."""
    files.check_same_settings({**SETTINGS, "old": 1}, SETTINGS, "here")
    files.check_same_settings({**SETTINGS, "device": "cuda"}, {**SETTINGS, "device": "cpu"}, "here", but=("device",))


def test_every_different_setting_is_named_with_both_values():
    """Wrong: only the first one, or 'settings differ'."""
    wanted = {**SETTINGS, "lr": 0.2, "target_user_cls": [17], "seed": 3}
    with pytest.raises(UserError) as caught:
        files.check_same_settings(SETTINGS, wanted, "some/folder")
    message = str(caught.value)
    for words in (
        "some/folder",
        "lr is 0.1 there and 0.2 here",
        "target_user_cls is [17, 36] there and [17] here",
        "seed",
        "3",
        "--save_tag",
    ):
        assert words in message
    for same in ("net_type", "name", "nothing"):
        assert f"{same} is" not in message


@pytest.mark.parametrize(("stored", "wanted"), [(0, False), (1, 2), (0.1, 0.1 + 1e-9), ("1", 1), ([1, 2], [2, 1])])
def test_nearly_equal_settings_are_told_apart(stored, wanted):
    """Wrong: comparing texts, or with a tolerance. (0 and False are the same flag.)"""
    if stored == wanted:
        files.check_same_settings({"a": stored}, {"a": wanted}, "here")
    else:
        with pytest.raises(UserError, match="a is"):
            files.check_same_settings({"a": stored}, {"a": wanted}, "here")


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


# ----------------------------------------------------------------------------------------------------------------------
# Names and locks
# ----------------------------------------------------------------------------------------------------------------------


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
from runs import RunPaths
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
        child.communicate(timeout=30)
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


# ----------------------------------------------------------------------------------------------------------------------
# How scripts end
# ----------------------------------------------------------------------------------------------------------------------


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
    assert ended(lambda: os.kill(os.getpid(), signal.SIGTERM) or signal.pause())[0] == 130


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
import sys; sys.path[:0] = sys.argv[1:3]
import numpy as np, torch, runs, test_runs as t
from pathlib import Path
big = {"json": lambda path: runs.write_json(path, ["x" * 200_000]),
       "npz": lambda path: runs.write_arrays(path, a=np.random.default_rng(0).random(40_000)),
       "safetensors": lambda path: runs.save_model(path, {"a": torch.randn(40_000)}, {})}
for kind, (write, read) in t.WRITERS.items():
    path = Path(sys.argv[3]) / kind / ("file." + kind)
    write(path, 1)
    try:
        runs.run_script(lambda: big[kind](path))
    except BaseException as end:
        print(kind, repr(end), read(path), t.files_in(path.parent) == [path.name])
"""
    inner = 'mount -t tmpfs -o size=64k none "$3" && exec "$0" -c "$4" "$1" "$2" "$3"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", inner, sys.executable, str(ROOT), str(ROOT / "tests"), str(tmp_path), code],
        capture_output=True,
        text=True,
        timeout=120,
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
    assert "/some/where" in lines[0]


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
