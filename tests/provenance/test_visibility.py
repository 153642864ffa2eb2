"""How plain a mark is, down to none: photos that are published as they are, of which half is the secret."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from kit.names import VISIBILITIES
from provenance import record as records
from provenance.photos import read_photo
from tests.provenance.parts import contents, flat, loaded, marked_of, picture, record_of, refused, save, wavy_picture


@pytest.fixture
def folder(tmp_path):
    for number in range(40):
        save(tmp_path / "mine" / f"{number:02}.png", wavy_picture(number))
    return tmp_path / "mine"


def settings_of(folder):
    return loaded(folder)["settings"]


def test_names_stand_for_settings_and_a_flag_of_its_own_goes_first(folder, mark, tmp_path):
    assert mark(folder, "--visibility", "faint", "--out", tmp_path / "a").code == 0
    made = json.loads((tmp_path / "a" / "mine_record" / "record.json").read_text())["settings"]
    assert {name: made[name] for name in VISIBILITIES["faint"]} == VISIBILITIES["faint"]
    assert mark(folder, "--visibility", "faint", "--noise_norm", "3", "--out", tmp_path / "b").code == 0
    made = json.loads((tmp_path / "b" / "mine_record" / "record.json").read_text())["settings"]
    assert (made["noise_norm"], made["img_blending_ratio"]) == (3, 0.95)
    assert mark(folder, "--out", tmp_path / "c").code == 0
    made = json.loads((tmp_path / "c" / "mine_record" / "record.json").read_text())["settings"]
    assert {name: made[name] for name in VISIBILITIES["clear"]} == VISIBILITIES["clear"], "the paper's by default"


def test_faint_marks_are_hardly_seen(folder, mark, tmp_path):
    from skimage.metrics import structural_similarity

    for name in ("clear", "faint"):
        assert mark(folder, "--visibility", name, "--out", tmp_path / name).code == 0
    found = {
        name: np.mean(
            [
                structural_similarity(
                    np.array(Image.open(folder / f"{number:02}.png")),
                    np.array(Image.open(tmp_path / name / "mine_marked" / f"{number:02}.png")),
                    channel_axis=2,
                )
                for number in range(20)
            ]
        )
        for name in ("clear", "faint")
    }
    assert found["faint"] >= 0.95 > found["clear"]


def test_without_a_mark_half_is_published_and_no_pixel_changes(folder, mark):
    done = mark(folder, "--visibility", "none")
    assert done.code == 0, done.err
    record = records.read_record(record_of(folder))
    assert record.settings.unmarked and record.published.sum() == 20
    plan = record.plan
    assert (plan.keys, plan.selections, plan.views) == (0, 99_999, 18)
    for photo in record.photos:
        if photo.published:
            same = read_photo(marked_of(folder) / photo.marked) == read_photo(folder / photo.original)
            assert same.all()
    assert "nothing was changed" in flat(done.out) and "PSNR" not in done.out


def with_metadata(path, seed, **options):
    exif = Image.Exif()
    exif[0x010E], exif[0x0110] = "my garden", "camera"
    image = Image.fromarray(picture(seed))
    image.save(path, exif=exif, **options)


@pytest.mark.parametrize("keep", [True, False])
def test_metadata_is_dropped_or_kept_by_choice(tmp_path, mark, keep):
    folder = tmp_path / "user"
    folder.mkdir()
    for number in range(30):
        with_metadata(folder / f"{number:02}.jpg", number, quality=90)
    before = contents(folder)
    done = mark(folder, "--visibility", "none", *(("--metadata", "keep") if keep else ()))
    assert done.code == 0, done.err
    record = records.read_record(record_of(folder))
    published = [photo for photo in record.photos if photo.published]
    for photo in published:
        content = (marked_of(folder) / photo.marked).read_bytes()
        if keep:
            assert photo.marked == photo.original and content == before[photo.original]
            assert hashlib.sha256(content).hexdigest() == photo.marked_sha256 == photo.original_sha256
        else:
            assert b"my garden" not in content and photo.marked.endswith(".png")
            assert (read_photo(content) == read_photo(folder / photo.original)).all()
    assert contents(folder) == before and len(published) == 15


def test_verify_knows_unmarked_photos(folder, mark, script):
    assert mark(folder, "--visibility", "none", "--metadata", "keep").code == 0
    done = script("data_marking", "--verify", record_of(folder))
    assert done.code == 0 and "20 of 20 as recorded, 20 of them bit for bit" in done.out
    record = records.read_record(record_of(folder))
    path = marked_of(folder) / next(photo.marked for photo in record.photos if photo.published)
    save(path, picture(99, 32, 32))
    done = script("data_marking", "--verify", record_of(folder))
    assert done.code == 1 and "was changed" in done.err


@pytest.mark.parametrize(
    "flags,words",
    [
        (("--visibility", "none", "--holdout", "0"), ("--holdout", "no secret")),
        (("--visibility", "none", "--noise_norm", "2"), ("--visibility none", "--noise_norm")),
        (("--metadata", "keep"), ("--metadata keep", "--visibility none")),
        (("--visibility", "faint", "--metadata", "keep"), ("--metadata keep",)),
        (("--visibility", "none", "--metadata", "keep", "--format", "jpeg"), ("--metadata keep", "--format")),
        (("--img_blending_ratio", "1", "--noise_injection_type", "none"), ("--visibility none",)),
    ],
)
def test_what_does_not_go_together(folder, mark, flags, words):
    refused(mark(folder, *flags), *words)
    assert not record_of(folder).exists()


def test_further_photos_stay_unmarked_too(folder, mark):
    assert mark(folder, "--visibility", "none").code == 0
    for number in range(50, 62):
        save(folder / f"{number}.png", wavy_picture(number))
    done = mark(folder, "--record", record_of(folder))
    assert done.code == 0, done.err
    record = records.read_record(record_of(folder))
    assert len(record.batches) == 2 and record.published.sum() == 26
    refused(mark(folder, "--record", record_of(folder), "--visibility", "faint"), "one way of marking")


def test_an_audit_of_unmarked_photos_asks_about_originals_alone(folder, mark, audit, asked, script, tmp_path):
    assert mark(folder, "--visibility", "none", "--query_augmentations", "4", "--alpha", "0.05").code == 0
    done = audit(tmp_path / "out", record=record_of(folder), originals=folder, grid=("--device", "cpu"))
    assert done.code == 0, done.err
    assert done.result["queries"] == 160 and done.result["key_p_value"] is None
    assert done.result["pairs"] == 100_000 and "pattern" not in done.result["sentences"]
    sent = {
        hashlib.sha256(np.array(Image.open(path)).transpose(2, 0, 1).tobytes()).digest() for path in folder.iterdir()
    }
    assert sent <= set(asked.images) and len(set(asked.images)) == 160
    again = script("eval", "--replay", tmp_path / "out" / "evidence.zip", "--record", record_of(folder))
    assert again.code == 0 and "160 of 160 are bit for bit" in again.out
