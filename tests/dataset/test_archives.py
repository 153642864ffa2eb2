"""Archives: unpacked where they should be, and nothing of a hostile one leaves its folder."""

import errno
import stat
import tarfile
import zipfile

import pytest

from dataset.archives import unpack
from tests.dataset.parts import MAKERS, make_tar, make_zip
from tests.parts import user_error


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("prefix", ["data/", "other/", "", "./data/"])
def test_unpack(tmp_path, kind, prefix):
    archive = tmp_path / f"x.{kind}"
    MAKERS[kind](archive, {f"{prefix}train/a/0.png": b"zero", f"{prefix}train/b/1.png": b"one"})
    unpack(archive, tmp_path / "data")
    assert (tmp_path / "data/train/a/0.png").read_bytes() == b"zero"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", f"x.{kind}"]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", ["../evil", "data/../../evil", "/evil", "..\\evil", "C:evil", "a/.."])
def test_unpack_refuses_paths_that_leave(tmp_path, kind, name):
    folder = tmp_path / "deep/er"
    folder.mkdir(parents=True)
    name = f"{tmp_path}/evil" if name == "/evil" else name
    MAKERS[kind](folder / "x", {"data/good": b"1", name: b"evil"})
    user_error(lambda: unpack(folder / "x", folder / "data"), folder / "x", repr(name), "leaves its folder")
    assert [p.name for p in folder.iterdir()] == ["x"] and not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_unpack_refuses_links_and_devices(tmp_path, kind):
    make_tar(tmp_path / "x", {"data/link": special("data/link", kind, ".."), "data/link/evil": b"evil"})
    user_error(lambda: unpack(tmp_path / "x", tmp_path / "data"), tmp_path / "x", "'data/link'")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_unpack_refuses_links_in_a_zip(tmp_path):
    info = zipfile.ZipInfo("data/link")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    make_zip(tmp_path / "x", {info: ".."})
    user_error(lambda: unpack(tmp_path / "x", tmp_path / "data"), "'data/link'")


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("damage", ["inside a file", "between files", "flipped", "text", "empty"])
def test_damaged_archive(tmp_path, kind, damage):
    archive = tmp_path / "x"
    MAKERS[kind](archive, {"data/a": bytes(range(256)) * 8, "data/b": b"b" * 512})
    content = bytearray(archive.read_bytes())
    if damage == "flipped":
        content[512 * 5 if kind == "tar" else 300] ^= 1  # the second header of the tar; zip checks its content as well
    cut = {"inside a file": 1000, "between files": 2560}.get(damage, len(content))
    archive.write_bytes({"text": b"hello", "empty": b""}.get(damage, content[:cut]))
    user_error(lambda: unpack(archive, tmp_path / "data"), archive, "damaged")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_full_disk_while_unpacking(tmp_path, monkeypatch):
    make_tar(tmp_path / "x", {"data/a": b"1"})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):  # runs.run_script turns it into the line about room on the disk
        unpack(tmp_path / "x", tmp_path / "data")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
