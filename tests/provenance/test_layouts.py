"""Folders for trainers of diffusion models: published photos and captions, nothing that was held out."""

import json

import pytest

from provenance import record as records
from tests.provenance.parts import contents, marked_of, picture, record_of, refused, save


@pytest.fixture
def told(tmp_path):
    folder = tmp_path / "user"
    for number in range(4):
        save(folder / ("sub" if number > 1 else ".") / f"{number % 2}.png", picture(number))
    (folder / "0.txt").write_text("a cat")
    (folder / "sub" / "1.txt").write_text("zwei Hündchen", "utf-8")
    return folder


def published(folder):
    """{content of the marked file: caption} of the published photos."""
    record = records.read_record(record_of(folder))
    return {
        (marked_of(folder) / photo.marked).read_bytes(): photo.caption or ""
        for photo in record.photos
        if photo.published
    }


def test_kohyas_layout(told, mark):
    flags = ("--holdout", "0.25", "--seed", "3", "--layout", "kohya", "--repeats", "7", "--concept", "sks style/2")
    done = mark(told, *flags)
    assert done.code == 0, done.err
    assert "captions: 2 of 4 photos have none" in done.err
    place = told.with_name("user_kohya") / "7_sks-style-2"
    images = sorted(place.glob("*.png"))
    assert {path.read_bytes(): path.with_suffix(".txt").read_text("utf-8") for path in images} == published(told)
    assert len(images) == 3 and len(list(place.iterdir())) == 6 and list(place.parent.iterdir()) == [place]
    # The same photos again: the folder is replaced.
    done = mark(told, "--layout", "kohya", "--record", record_of(told))
    assert done.code == 0, done.err
    assert [path.name for path in place.parent.iterdir()] == ["10_user"]


def test_the_layout_of_an_imagefolder(told, mark):
    assert mark(told, "--seed", "3", "--layout", "imagefolder", "--caption", "sks").code == 0
    place = told.with_name("user_imagefolder")
    rows = [json.loads(line) for line in (place / "metadata.jsonl").read_text("utf-8").splitlines()]
    assert {row["text"] for row in rows} == {"sks"} and len(rows) == 4
    assert {(place / row["file_name"]).read_bytes() for row in rows} == set(published(told))


def test_what_is_not_of_this_program_stays(told, mark):
    other = told.with_name("user_kohya")
    other.mkdir()
    (other / "mine.txt").write_text("keep")
    refused(mark(told, "--seed", "3", "--layout", "kohya"), "user_kohya", "other files")
    assert contents(other) == {"mine.txt": b"keep"}
    assert not [path for path in other.parent.iterdir() if path.name.startswith(".user_kohya")]
    refused(mark(told, "--record", record_of(told), "--layout", "kohya", "--concept", "//"), "--concept")
