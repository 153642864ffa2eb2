"""Files: written whole or not at all, and read without running anything that lies in them."""

import errno
import json
import math
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kit import files
from kit.errors import UserError
from kit.files import atomic_path, load_model, read_arrays, read_json, save_model, write_arrays, write_json
from tests.kit.parts import PICKLES, SETTINGS, WRITERS, RunsCode, files_in, full_disk, hostile, refused, tensors

ROOT = Path(files.__file__).resolve().parent

# --- Writing ---


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_can_be_written_again_and_nothing_else_is_left(kind, tmp_path):
    """Wrong: temporary files that stay, folders that are not made, no replacing of an existing file (Windows)."""
    write, read = WRITERS[kind]
    path = tmp_path / "new" / "folder" / f"file.{kind}"
    for value in (1, 2):
        write(path, value)
        assert read(path) == value
        assert files_in(path.parent) == [path.name]


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


# --- Damaged and hostile files ---


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


# --- Settings ---


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
