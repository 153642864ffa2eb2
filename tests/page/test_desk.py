"""What is handed in at the page, and what may be fetched from it."""

import zipfile

import pytest

from kit.errors import UserError
from page.desk import MARKER, Desk
from tests.page.parts import picture, png, until, uploaded

pytest.importorskip("gradio", reason="gradio is not installed (requirements/app.txt)")


def test_uploads_become_photos_and_zips_are_unpacked(desk, tmp_path):
    bundle = tmp_path / "more.zip"
    with zipfile.ZipFile(bundle, "w") as out:
        out.writestr("holiday/beach.png", png(picture(1)))
        out.writestr("holiday/inner/sea.png", png(picture(2)))
    draft = desk.receive(
        desk.draft(),
        [
            uploaded(desk, "a.png", png(picture(3))),
            uploaded(desk, "a.png", b"other"),
            uploaded(desk, "more.zip", bundle.read_bytes()),
        ],
    )
    names = sorted(path.relative_to(draft.photos).as_posix() for path in draft.photos.rglob("*") if path.is_file())
    assert names == ["a (2).png", "a.png", "more/beach.png", "more/inner/sea.png"]
    assert draft.problems == []


@pytest.mark.parametrize(
    "name, words",
    [("../out.png", "leaves its folder"), ("/etc/x.png", "leaves its folder"), ("..\\out.png", "leaves its folder")],
)
def test_zips_that_reach_out_are_refused_by_name(desk, tmp_path, name, words):
    bundle = tmp_path / "evil.zip"
    with zipfile.ZipFile(bundle, "w") as out:
        out.writestr("good.png", b"x")
        info = zipfile.ZipInfo("x")
        info.filename = name
        out.writestr(info, b"x")
    draft = desk.receive(desk.draft(), [uploaded(desk, "evil.zip", bundle.read_bytes())])
    assert [problem[0] for problem in draft.problems] == ["evil.zip"] and words in draft.problems[0][1]
    assert not any(path.is_file() for path in draft.folder.rglob("*")) and not (desk.root / "out.png").exists()


def test_zip_bombs_are_refused_by_what_they_unpack_to(desk, tmp_path, monkeypatch):
    monkeypatch.setattr("page.desk.MOST_BYTES", 1 << 20)
    monkeypatch.setattr("page.desk.MOST_FILES", 5)
    for name, members in (
        ("big.zip", [("zeros.png", bytes(2 << 20))]),
        ("many.zip", [(f"{number}.png", b"") for number in range(6)]),
    ):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as out:
            for member, content in members:
                out.writestr(member, content)
        draft = desk.receive(desk.draft(), [uploaded(desk, name, (tmp_path / name).read_bytes())])
        assert len(draft.problems) == 1 and "more than" in draft.problems[0][1], draft.problems
        assert list(draft.photos.iterdir()) == []


def test_only_what_was_uploaded_is_taken(desk, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"x")
    with pytest.raises(UserError, match="not one of the files that were handed in"):
        desk.receive(desk.draft(), [str(secret)])


def test_downloads_are_those_of_jobs(desk):
    job = desk.jobs.start(
        "one", "protected", "t", {}, lambda job: {"files": {"a.zip": "a.zip", "up": "../../../x", "gone": "gone"}}
    )
    until(lambda: not job.active)
    (job.folder / "a.zip").write_bytes(b"1")
    (desk.root.parent / "x").write_bytes(b"2")
    assert desk.download("one", "a.zip") == job.folder / "a.zip"
    assert [
        desk.download(*place) for place in (("one", "job.json"), ("one", "up"), ("one", "gone"), ("two", "a.zip"))
    ] == [None] * 4


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    photo = tmp_path / "site" / "uploads" / "2023" / "holiday.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"x")
    before = (tmp_path / "site").stat().st_mode
    with pytest.raises(UserError, match="has other things in it"):
        Desk(tmp_path / "site")
    assert photo.read_bytes() == b"x" and (tmp_path / "site").stat().st_mode == before


def test_old_uploads_and_drafts_go_and_nothing_else(desk):
    import os

    old, new = desk.draft(), desk.draft()
    (desk.root / "uploads" / "file").write_bytes(b"x")
    (desk.root / "checks" / "audit").mkdir()
    for path in (old.folder, desk.root / "uploads" / "file", desk.root / "checks" / "audit"):
        os.utime(path, (1, 1))
    desk.draft()
    assert not old.folder.exists() and new.folder.exists() and (desk.root / "checks" / "audit").exists()
    assert not (desk.root / "uploads" / "file").exists() and (desk.root / MARKER).exists()


def test_the_folder_is_its_owners_alone(desk):
    assert {
        path.stat().st_mode & 0o777
        for path in (desk.root, *(desk.root / name for name in ("uploads", "drafts", "protected", "checks")))
    } == {0o700}
