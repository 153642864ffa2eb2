"""data_marking.py as a photographer uses it: what it writes and where, what it refuses, what it never changes."""

import hashlib
import io
import json
import os
import signal
import stat
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call
from hostile_photos import png
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from provenance import protect
from provenance import record as records
from provenance.photos import read_photo
from runs import UserError
from utils import Marking, mark_images

SETTINGS = records.MarkSettings(img_blending_ratio=0.7, noise_injection_type="perlin", noise_norm=8, format="png",
                                ood_pattern="color_stripes", quality=95)


def picture(seed, height=20, width=28):
    """A smooth picture with some noise that stays away from 0 and 255."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:height, :width]
    smooth = np.stack([x * rng.uniform(1, 5) + y * rng.uniform(1, 4) for _ in range(3)], -1)
    return (60 + smooth * 100 / max(1, smooth.max()) + rng.integers(0, 25, smooth.shape)).astype(np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def photos(tmp_path):
    """A folder of six small photos, two of them in a sub-folder."""
    folder = tmp_path / "user"
    for number, name in enumerate(("a.png", "b.png", "c.bmp", "d.png", "trip/a.png", "trip/e.webp")):
        save(folder / name, picture(number), **({"lossless": True} if name.endswith("webp") else {}))
    return folder


@pytest.fixture
def mark(script):
    return lambda folder, *flags: script("data_marking", "--data_folder", folder, *flags)


def tree(folder):
    """Every file below a folder: name -> (bytes, mtime)."""
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in sorted(folder.rglob("*")) if path.is_file()}


def contents(folder):
    return {name: content for name, (content, _) in tree(folder).items() if not name.endswith(".lock")}


def marked_of(folder):
    return folder.with_name(folder.name + "_marked")


def record_of(folder):
    return folder.with_name(folder.name + "_record") / "record.json"


def loaded(folder):
    return json.loads(record_of(folder).read_text())


def refused(done, *words):
    """Exit code 2 and one line, with these words."""
    assert done.code == 2, (done.code, done.out, done.err)
    assert done.err.startswith("error: ") and done.err.count("\n") == 1 and "Traceback" not in done.err, done.err
    for word in words:
        assert str(word) in done.err, done.err


def rewritten(folder, change, commit=True):
    """Change the record's JSON; `commit` also makes its commitments anew, as a forger would."""
    content = loaded(folder)
    change(content)
    if commit:
        record = records.MarkRecord.model_construct(**{
            **content, "settings": records.MarkSettings.model_construct(**content["settings"]),
            "batches": [records.Batch.model_construct(**batch) for batch in content["batches"]],
            "photos": [records.Photo.model_construct(**photo) for photo in content["photos"]]})
        content["commitments"] = [records.commitment_of(record, n + 1) for n in range(len(content["commitments"]))]
    record_of(folder).write_text(json.dumps(content))


# --- what is written, and where ---

def test_names_places_and_untouched_originals(photos, mark):
    before = tree(photos)
    done = mark(photos, "--img_blending_ratio", ".7", "--noise_injection_type", "perlin", "--noise_norm", "8")
    assert done.code == 0 and done.err == "", done.err
    assert tree(photos) == before
    assert {path.name for path in photos.parent.iterdir()} == {"user", "user_marked", "user_record"}
    assert set(tree(marked_of(photos))) == {"a.png", "b.png", "c.png", "d.png", "trip/a.png", "trip/e.png"}
    stored = loaded(photos)
    assert stored["evidence"] is True and stored["seed"] is None and len(stored["key"]) == 64
    assert stored["commitments"][0] in done.out and "post" in done.out
    for photo in stored["photos"]:
        assert photo["original_sha256"] == hashlib.sha256((photos / photo["original"]).read_bytes()).hexdigest()
        assert photo["marked_sha256"] == hashlib.sha256((marked_of(photos) / photo["marked"]).read_bytes()).hexdigest()
    assert stat.S_IMODE(record_of(photos).stat().st_mode) == 0o600
    assert stat.S_IMODE(record_of(photos).parent.stat().st_mode) == 0o700


def test_small_photos_get_the_marks_of_the_paper_exactly(photos, mark):
    assert mark(photos, "--noise_norm", "6").code == 0
    stored = loaded(photos)
    for photo in stored["photos"]:
        original = torch.from_numpy(read_photo(photos / photo["original"])).permute(2, 0, 1)[None]
        expected = mark_images(original, bytes.fromhex(stored["key"]), [0], [photo["number"]],
                               Marking(0.7, "perlin", 6.0))[0].permute(1, 2, 0).numpy()
        with Image.open(marked_of(photos) / photo["marked"]) as image:
            assert image.mode == "RGB" and np.array_equal(np.asarray(image), expected)


def test_photos_as_people_have_them(tmp_path, mark):
    """Grey, alpha, palette, 16 bit, 1 pixel, turned by EXIF, Unicode names, no collision of a.jpg with a.png."""
    folder, turned = tmp_path / "Ünï ☂", Image.Exif()
    turned[0x0112] = 6  # shown turned by 90 degrees
    save(folder / "a.jpg", picture(1), quality=95)
    save(folder / "a.png", picture(2))
    save(folder / "grey.png", picture(3)[..., 0])
    save(folder / "дом/Grüße 猫.tif", picture(4))
    save(folder / "one.png", picture(5, 1, 1))
    save(folder / "line.png", picture(5, 1, 40))
    save(folder / "turned.jpg", picture(6, 20, 30), exif=turned)
    save(folder / "deep.png", picture(7)[..., 0].astype(np.uint16) * 257)
    clear = np.dstack([picture(8), np.full((20, 28), 0, np.uint8)])
    save(folder / "clear.png", clear)
    Image.fromarray(picture(9)).convert("P").save(folder / "palette.gif")
    done = mark(folder)
    assert done.code == 0, done.err
    stored = {photo["original"]: photo["marked"] for photo in loaded(folder)["photos"]}
    assert len(stored) == 10 and set(stored.values()) == set(tree(marked_of(folder)))
    assert stored["дом/Grüße 猫.tif"] == "дом/Grüße 猫.png"
    for original, name in stored.items():
        marked = read_photo(marked_of(folder) / name)
        expected = read_photo(folder / original)
        assert marked.shape == expected.shape, original
        # 0.3 of the way to stripes of 128..160, and noise of 8: never further, and never nothing.
        assert 0 < np.abs(marked.astype(int) - expected).max() <= 0.3 * 160 + 0.7 * 8 + 1, original
    assert read_photo(marked_of(folder) / stored["turned.jpg"]).shape == (30, 20, 3)
    assert read_photo(marked_of(folder) / stored["clear.png"]).mean() > 200, "transparent pixels lie on white"


def test_what_cannot_be_read_is_named_and_the_rest_is_done(photos, mark):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photo")
    (photos / "empty.png").write_bytes(b"")
    (photos / "trip" / "bomb.png").write_bytes(png(60_000, 60_000))
    Image.new("L", (9, 9)).save(photos / "moving.gif", save_all=True, append_images=[Image.new("L", (9, 9), 255)])
    (photos / "notes.txt").write_text("not a photo")
    before = tree(photos)
    done = mark(photos)
    assert done.code == 1 and "Traceback" not in done.err
    for name in ("broken.jpg", "empty.png", "trip/bomb.png", "moving.gif"):
        assert sum(name in line for line in done.err.splitlines()) == 1, done.err
    assert "notes.txt" not in done.err and len(tree(marked_of(photos))) == 6 and tree(photos) == before
    skipped = json.loads((record_of(photos).parent / "result.json").read_text())["skipped"]
    assert {entry["name"] for entry in skipped} == {"broken.jpg", "empty.png", "trip/bomb.png", "moving.gif"}


@pytest.mark.parametrize("flags", [(), ("--format", "jpeg")])
def test_published_files_hold_no_metadata(tmp_path, mark, flags):
    folder, exif = tmp_path / "user", Image.Exif()
    exif[0x010F], exif[0x9286] = "SECRETCAMERA", "SECRETCOMMENT"
    exif.get_ifd(0x8825)[1] = "N"
    exif.get_ifd(0x8825)[2] = (48.0, 51.0, 29.0)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    save(folder / "a.jpg", picture(1), exif=exif, icc_profile=profile, comment=b"SECRETCOMMENT")
    save(folder / "b.png", picture(2), exif=exif, icc_profile=profile)
    save(folder / "c.webp", picture(3), exif=exif, xmp=b"<x>SECRETXMP</x>")
    assert mark(folder, *flags).code == 0
    files = contents(marked_of(folder))
    assert len(files) == 3
    for content in files.values():
        assert b"SECRET" not in content and b"Exif" not in content and b"eXIf" not in content
        with Image.open(io.BytesIO(content)) as image:
            assert len(image.getexif()) == 0 and not {"exif", "icc_profile", "xmp", "comment"} & set(image.info)


def test_jpeg_and_its_quality(photos, mark):
    sizes = []
    for quality in ("95", "30"):
        assert mark(photos, "--seed", "1", "--format", "jpeg", "--quality", quality, "--overwrite").code == 0
        files = contents(marked_of(photos))
        assert set(files) == {"a.jpg", "b.jpg", "c.jpg", "d.jpg", "trip/a.jpg", "trip/e.jpg"}
        assert all(Image.open(io.BytesIO(content)).format == "JPEG" for content in files.values())
        sizes.append(sum(map(len, files.values())))
    assert sizes[1] < 0.8 * sizes[0]


def test_quality_numbers_are_those_of_skimage(photos, mark):
    save(photos / "tall.png", picture(9, 300, 200))
    save(photos / "tiny.png", picture(8, 3, 3))
    assert mark(photos, "--format", "jpeg").code == 0
    stored = {photo["number"]: photo for photo in loaded(photos)["photos"]}
    rows = json.loads((record_of(photos).parent / "result.json").read_text())["images"]
    assert sorted(row["number"] for row in rows) == sorted(stored)
    for row in rows:
        photo = stored[row["number"]]
        before, after = read_photo(photos / photo["original"]), read_photo(marked_of(photos) / photo["marked"])
        assert row["psnr"] == pytest.approx(peak_signal_noise_ratio(before, after, data_range=255), abs=1e-6)
        if photo["original"] == "tiny.png":
            assert row["ssim"] is None
        else:
            assert row["ssim"] == pytest.approx(structural_similarity(before, after, channel_axis=2), abs=1e-6)


def test_contact_sheet(photos, mark):
    assert mark(photos, "--holdout", "0.5").code == 0
    with Image.open(record_of(photos).parent / "contact_sheet.png") as sheet:
        sheet.load()
        assert sheet.width >= 3 * 28 and sheet.height >= 3 * 20
    assert "contact_sheet.png" not in contents(marked_of(photos)), "it shows the originals"


def test_dry_run_writes_nothing(photos, mark):
    before = tree(photos.parent)
    done = mark(photos, "--holdout", "0.5", "--dry_run")
    assert done.code == 0 and "nothing" in done.out and "6" in done.out
    assert tree(photos.parent) == before and [path.name for path in photos.parent.iterdir()] == ["user"]


@pytest.mark.parametrize("flags,folder", [
    ((), "missing"), ((), "empty"), ((), "texts"), ((), "user/a.png"), (("--img_blending_ratio", "1.5"), "user"),
    (("--img_blending_ratio", "-0.1"), "user"), (("--img_blending_ratio", "nan"), "user"),
    (("--noise_injection_type", "pink"), "user"), (("--noise_norm", "256"), "user"), (("--holdout", "1"), "user"),
    (("--img_blending_ratio", "1", "--noise_injection_type", "none"), "user"), (("--quality", "0"), "user"),
    (("--img_blending_ratio", "1", "--noise_norm", "0"), "user"), (("--ood_pattern", "/nowhere"), "user"),
    (("--record", "/nowhere/record.json"), "user"), (("--seed", "-1"), "user"), (("--format", "bmp"), "user"),
    (("--verify", "/nowhere/record.json"), "user")])
def test_bad_input_ends_in_one_line_and_leaves_nothing(photos, mark, flags, folder):
    (photos.parent / "empty").mkdir()
    (photos.parent / "texts").mkdir()
    (photos.parent / "texts" / "a.txt").write_text("words")
    before, names = tree(photos.parent), {path.name for path in photos.parent.iterdir()}
    refused(mark(photos.parent / folder, *flags))
    assert tree(photos.parent) == before and {path.name for path in photos.parent.iterdir()} == names


def test_names_that_pillow_reads_but_a_record_can_not_keep(photos, mark):
    """A backslash is an ordinary letter of a name on Linux: marked, or named and skipped, but no traceback."""
    save(photos / "we\\ird.png", picture(11))
    done = mark(photos)
    assert done.code in (0, 1) and len(contents(marked_of(photos))) >= 6
    assert done.code == 0 or "ird.png" in done.err


def test_a_name_that_becomes_too_long_does_not_stop_the_others(photos, mark):
    save(photos / ("x" * 250 + ".png"), picture(11))
    done = mark(photos)
    assert done.code in (0, 1) and len(contents(marked_of(photos))) >= 6, done.err


def test_a_photo_too_long_for_jpeg_does_not_stop_the_others(photos, mark):
    save(photos / "panorama.png", picture(11, 1, 66_000))
    done = mark(photos, "--format", "jpeg", "--noise_injection_type", "none")
    assert done.code == 1 and "panorama.png" in done.err and len(contents(marked_of(photos))) == 6


def test_a_very_narrow_photo_does_not_stop_the_others(photos, mark):
    save(photos / "line.png", np.full((1, 1_000_000, 3), 99, np.uint8))
    done = mark(photos)
    assert done.code in (0, 1) and len(contents(marked_of(photos))) >= 6


# --- names ---

def folded(name):
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def check_names(originals, taken=()):
    names = protect.output_names([{"original": name} for name in originals], ".png", taken)
    assert len(names) == len(originals) and all(name.endswith(".png") for name in names)
    assert len({folded(name) for name in [*names, *taken]}) == len(originals) + len(taken), (originals, taken, names)
    return names


def test_output_names_that_are_easy():
    assert check_names(["a.jpg", "b/a.jpg", "c.tar.webp"]) == ["a.png", "b/a.png", "c.tar.png"]
    assert len(check_names(["a.jpg", "a.png", "a.HEIC"])) == 3
    check_names(["a.jpg"], ["a.png"])


@pytest.mark.parametrize("originals,taken", [
    (["a.jpg", "b.png"], ["A.PNG"]),
    (["a.jpg", "a.png", "a.jpg.png"], []),
    (["A.jpg", "a.jpg"], []),
    (["X/a.png", "x/a.png"], []),
    (["\u00e9.jpg", "e\u0301.jpg"], []),
    (["a.jpg"], ["a.png", "a.jpg.png"])])
def test_output_names_never_meet(originals, taken):
    """Two photos of one output name: the second overwrites the first, and the record's hash is wrong."""
    check_names(originals, taken)


STEMS = st.lists(st.sampled_from(["a", "A", "\u00e9", "e\u0301", "E\u0301", "\u00df", "ss", "\u0130", "i\u0307", ".jpg",
                                  ".png", ".", "~2", "-1", "_", "(1)"]), min_size=1, max_size=4).map("".join)
PATHS = st.builds(lambda folder, stem, suffix: folder + stem.lstrip(".") + "x" * (not stem.lstrip(".")) + suffix,
                  st.sampled_from(["", "", "f/", "F/", "a.jpg/"]), STEMS, st.sampled_from([".jpg", ".png", ".JPG"]))


@settings(max_examples=300, deadline=None)
@given(st.lists(PATHS, min_size=1, max_size=8, unique=True), st.lists(PATHS, max_size=6, unique=True))
def test_output_names_of_batches_never_meet(first, second):
    check_names(second, check_names(first))


# --- the key ---

def test_a_second_key_gives_other_stripes_and_one_key_the_same(tmp_path, mark):
    """Stripes alone on flat grey: rows show the key's colours, for every photo and for photos added later."""
    folder, rows = tmp_path / "user", []
    for number in range(3):
        save(folder / f"{number}.png", np.full((32, 10 + number, 3), 100, np.uint8))
    for _ in range(2):
        assert mark(folder, "--noise_injection_type", "none", "--overwrite").code == 0
        stripes = [read_photo(path)[:, 0] for path in sorted(marked_of(folder).iterdir())]
        assert all(np.array_equal(stripes[0], other) for other in stripes)
        assert np.array_equal(stripes[0][::2], stripes[0][1::2]), "16 stripes of two rows each"
        rows.append(stripes[0])
    assert (rows[0] != rows[1]).any(axis=1).sum() >= 16
    save(folder / "later.png", np.full((32, 5, 3), 100, np.uint8))
    assert mark(folder, "--record", record_of(folder)).code == 0
    assert np.array_equal(read_photo(marked_of(folder) / "later.png")[:, 0], rows[1])


def test_seed_is_reproducible_and_no_evidence(photos, mark):
    keys, files = [], []
    for flags in (("--seed", "5"), ("--seed", "5"), ("--seed", "6"), (), ()):
        assert mark(photos, *flags, "--holdout", "0.5", "--overwrite").code == 0
        stored = loaded(photos)
        assert stored["evidence"] is (flags == ())
        keys.append((stored["key"], stored["selection_key"]))
        files.append(contents(marked_of(photos)))
    assert keys[0] == keys[1] and files[0] == files[1]
    assert len({half for key in keys for half in key}) == 8 and files[0] != files[2] and files[3] != files[4]


def test_the_same_command_twice_gives_the_same_bytes(photos, mark):
    assert mark(photos, "--holdout", "0.5").code == 0
    before, stored = contents(photos.parent), record_of(photos).read_bytes()
    assert mark(photos, "--record", record_of(photos)).code == 0
    after = contents(photos.parent)
    assert record_of(photos).read_bytes() == stored
    for name in before.keys() | after.keys():
        assert name == "user_record/result.json" or before[name] == after[name], name
    for path in marked_of(photos).rglob("*.png"):
        path.unlink()
    assert mark(photos, "--record", record_of(photos).parent).code == 0
    assert contents(marked_of(photos)) == {name[12:]: value for name, value in before.items() if "_marked" in name}


def test_nothing_is_overwritten_unasked(photos, mark):
    assert mark(photos).code == 0
    before = tree(photos.parent)
    refused(mark(photos), "record.json", "--overwrite")
    refused(mark(photos, "--seed", "1"), "--overwrite")
    assert tree(photos.parent) == before
    record_of(photos).unlink()
    before = tree(photos.parent)
    refused(mark(photos), "user_marked", "--overwrite")
    assert tree(photos.parent) == before


def test_a_marked_file_that_somebody_changed_is_not_replaced_unasked(photos, mark):
    assert mark(photos).code == 0
    (marked_of(photos) / "b.png").write_bytes(b"mine")
    before = tree(photos.parent)
    refused(mark(photos, "--record", record_of(photos)), "b.png")
    assert tree(photos.parent) == before
    save(photos / "new.png", picture(20))
    (marked_of(photos) / "b.png").unlink()
    (marked_of(photos) / "new.png").write_bytes(b"mine")
    refused(mark(photos, "--record", record_of(photos)), "new.png")
    assert (marked_of(photos) / "new.png").read_bytes() == b"mine"


def test_overwrite_keeps_the_old_record_and_no_old_mark(tmp_path, mark):
    folder = tmp_path / "user"
    for number in range(10):
        save(folder / f"{number}.png", picture(number))
    old_marks, old_records = set(), []
    for seed in range(4):  # other selections: photos published once are held out the next time
        assert mark(folder, "--holdout", "0.5", "--overwrite", "--seed", seed).code == 0
        files, stored = contents(marked_of(folder)), loaded(folder)
        digests = {hashlib.sha256(content).hexdigest() for content in files.values()}
        assert digests == {photo["marked_sha256"] for photo in stored["photos"] if photo["published"]}
        assert not digests & old_marks
        held = {path.name for path in (record_of(folder).parent / "held_out").iterdir()}
        assert held == {photo["original"] for photo in stored["photos"] if not photo["published"]}
        kept = [path.read_bytes() for path in record_of(folder).parent.glob("record*.json")]
        assert all(content in kept for content in old_records), "an old record is the only proof for old photos"
        old_records.append(record_of(folder).read_bytes())
        old_marks |= digests


def test_overwrite_of_a_damaged_record_leaves_no_old_mark(tmp_path, mark):
    """What the old key marked and the new one holds out must not stay among what is published."""
    folder = tmp_path / "user"
    for number in range(6):
        save(folder / f"{number}.png", picture(number))
    assert mark(folder).code == 0
    damaged = record_of(folder).read_bytes()[:-40]
    record_of(folder).write_bytes(damaged)
    refused(mark(folder, "--holdout", "0.5"))
    done = mark(folder, "--holdout", "0.5", "--overwrite")
    assert damaged in [path.read_bytes() for path in record_of(folder).parent.glob("record*.json")]
    published = {photo["marked"] for photo in loaded(folder)["photos"] if photo["published"]} if done.code == 0 else {}
    assert done.code != 0 or set(contents(marked_of(folder))) == published


# --- hold-out ---

def test_holdout_publishes_exactly_half(tmp_path, mark):
    folder, selections = tmp_path / "user", []
    for number in range(8):
        save(folder / f"sub{number % 2}" / f"{number}.png", picture(number))
    for seed in range(4):
        done = mark(folder, "--holdout", "0.5", "--seed", seed, "--overwrite")
        assert done.code == 0
        stored = loaded(folder)["photos"]
        published = {photo["marked"] for photo in stored if photo["published"]}
        held = {photo["original"] for photo in stored if not photo["published"]}
        assert len(published) == len(held) == 4 and set(contents(marked_of(folder))) == published
        copies = contents(record_of(folder).parent / "held_out")
        assert copies == {name: (folder / name).read_bytes() for name in held}
        assert not {photo["marked"] for photo in stored if not photo["published"]} - {None}
        selections.append(frozenset(held))
        order = [photo["published"] for photo in stored]
        assert order not in ([True] * 4 + [False] * 4, [False] * 4 + [True] * 4)
    assert len(set(selections)) >= 3


def dummy_record(count, holdout, seed=None, finish=True):
    photos = [{"original": f"{number}.png", "original_sha256": hashlib.sha256(b"%d" % number).hexdigest(),
               "height": 9, "width": 9} for number in range(count)]
    record = records.add_batch(records.new_record(SETTINGS, seed), photos, holdout, "in", "out",
                               [f"{number}.png" for number in range(count)])
    return records.finish_batch(record, {photo.number: "0" * 64 for photo in record.photos if photo.published}) \
        if finish else record


def test_every_photo_is_published_about_half_of_the_time():
    """400 keys: by name, by place or with a bias for the first photos would show; the halves are exact."""
    chosen = np.stack([dummy_record(10, 0.5, seed, finish=False).published for seed in range(400)])
    assert (chosen.sum(axis=1) == 5).all()
    assert (np.abs(chosen.mean(axis=0) - 0.5) < 4 * 0.025).all()  # 4 standard deviations
    together = (chosen.T.astype(float) @ chosen / 400)[~np.eye(10, dtype=bool)]
    assert np.abs(together - 2 / 9).max() < 5 * 0.021, "pairs are chosen independently of their places"


@pytest.mark.parametrize("count,holdout,published", [(1, 0.5, 1), (1, 0.9, 1), (2, 0.5, 1), (10, 0.0, 10), (10, 0.3, 7),
                                                     (7, 0.9, 1), (50, 0.5, 25)])
def test_how_many_are_published(count, holdout, published):
    record = dummy_record(count, holdout)
    assert record.published.sum() == record.batches[0].published == published
    assert [photo.marked is not None for photo in record.photos] == record.published.tolist()


def test_the_selection_has_a_secret_of_its_own():
    """The key of the selection is shown in an evidence bundle: the key of the marks must not follow from it."""
    record = dummy_record(4, 0.5)
    assert record.key != record.selection_key
    assert records.derive_key(7, "x") and dummy_record(4, 0.5, 7).key != dummy_record(4, 0.5, 7).selection_key


# --- further photos ---

def test_further_photos_under_the_same_key(photos, mark):
    assert mark(photos, "--holdout", "0.5").code == 0
    first, marks = loaded(photos), tree(marked_of(photos))
    for number in range(4):
        save(photos / f"later{number}.png", picture(50 + number))
    done = mark(photos, "--record", record_of(photos), "--holdout", "0.5")
    assert done.code == 0, done.err
    second = loaded(photos)
    assert second["key"] == first["key"] and second["selection_key"] == first["selection_key"]
    assert second["photos"][:6] == first["photos"] and second["commitments"][0] == first["commitments"][0]
    assert len(second["commitments"]) == 2 and len(set(second["commitments"])) == 2
    assert second["commitments"][1] in done.out
    assert [(batch["photos"], batch["published"]) for batch in second["batches"]] == [(6, 3), (4, 2)]
    assert {name: content for name, (content, _) in tree(marked_of(photos)).items() if name in marks} \
        == {name: content for name, (content, _) in marks.items()}
    record = records.read_record(record_of(photos))
    assert records.commitment_of(record, 1) == first["commitments"][0]
    assert (records.draw_selections(record.selection_key, record.batches, 1)[0] == record.published).all()
    numbers = [photo.number for photo in record.photos]
    assert numbers == list(range(10)), "a number used twice would give two photos the same noise"


def test_further_photos_from_another_folder_and_other_settings(photos, mark, tmp_path):
    assert mark(photos).code == 0
    other = tmp_path / "other"
    save(other / "a.png", picture(90))
    before = tree(tmp_path)
    for flags in (("--noise_norm", "4"), ("--format", "jpeg"), ("--img_blending_ratio", "0.5")):
        refused(mark(other, "--record", record_of(photos), *flags), flags[0][2:])
    refused(mark(other, "--record", record_of(photos), "--seed", "1"), "--seed")
    assert tree(tmp_path) == before
    assert mark(other, "--record", record_of(photos)).code == 0
    assert set(contents(marked_of(other))) and not record_of(other).exists()
    assert len(records.read_record(record_of(photos)).photos) == 7
    names = [photo["marked"] for photo in loaded(photos)["photos"]]
    assert len(set(names)) == 7
    assert mark_verify(mark, photos).code == 0


def mark_verify(mark, photos, *flags):
    return mark(photos, "--verify", record_of(photos), *flags)


def test_the_record_may_be_named_by_its_folder(photos, mark):
    """The held-out copies lie beside record.json. Wrong: looked for beside the folder, when that is what was given."""
    assert mark(photos, "--holdout", "0.5").code == 0
    for copy in (record_of(photos).parent / "held_out").rglob("*.*"):
        (photos / copy.relative_to(record_of(photos).parent / "held_out")).unlink()
    for name in (record_of(photos), record_of(photos).parent):
        done = mark(photos, "--verify", name)
        assert done.code == 0, done.err


# --- interruption ---

KILLED = """
import os, signal
from provenance import protect
real, count = protect.write_photo, [0]
def write(path, data):
    count[0] += 1
    if count[0] > 2:
        path.with_name("." + path.stem + ".part" + path.suffix).write_bytes(data[:50])
        os.kill(os.getpid(), signal.SIGKILL)
    real(path, data)
protect.write_photo, protect.workers = write, lambda: 1
"""


def test_a_killed_run_goes_on_with_the_same_key(tmp_path, mark):
    folder = tmp_path / "user"
    for number in range(10):
        save(folder / f"{number}.png", picture(number))
    done = call("data_marking.py", "--data_folder", folder, "--holdout", "0.5", code=KILLED)
    assert done.returncode == -signal.SIGKILL, done.stderr
    half, before = loaded(folder), contents(marked_of(folder))
    assert half["commitments"] == [] and len(before) == 3
    refused(mark(folder, "--verify", record_of(folder)), "interrupted")
    refused(mark(folder, "--holdout", "0.5", "--seed", "3"), "--seed")
    refused(mark(folder, "--holdout", "0.5", "--noise_norm", "4"), "noise_norm")
    gone = (folder / "3.png").rename(tmp_path / "3.png")
    refused(mark(folder, "--holdout", "0.5"))
    gone.rename(folder / "3.png")
    done = mark(folder, "--holdout", "0.5")
    assert done.code == 0, done.err
    whole, files = loaded(folder), contents(marked_of(folder))
    assert (whole["key"], whole["selection_key"]) == (half["key"], half["selection_key"])
    assert [photo["published"] for photo in whole["photos"]] == [photo["published"] for photo in half["photos"]]
    assert {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} \
        == {photo["marked"]: photo["marked_sha256"] for photo in whole["photos"] if photo["published"]}
    assert mark_verify(mark, folder).code == 0


def test_a_resumed_run_does_not_silently_keep_another_holdout(photos, mark, monkeypatch):
    """Who asks for half and gets all published (or the other way round) must be told by name."""
    def fail(*_):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(protect, "encode_photo", fail)
        assert mark(photos).code == 130
    assert loaded(photos)["commitments"] == []
    refused(mark(photos, "--holdout", "0.5"), "holdout")


def test_an_original_that_changes_meanwhile_is_named(photos, mark, monkeypatch):
    """Edited after it was read for its hash: one line that names it, and the record can still be finished."""
    inspect = protect.inspect_folder
    with monkeypatch.context() as patch:
        patch.setattr(protect, "inspect_folder", lambda *path: (inspect(*path), save(photos / "d.png", picture(99)))[0])
        refused(mark(photos), "d.png")
    save(photos / "d.png", picture(3))
    assert mark(photos).code == 0 and mark_verify(mark, photos).code == 0


# --- the record ---

def leaves(value, path=()):
    if isinstance(value, dict | list) and value:
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, (*path, key))
    else:
        yield path, value


def altered(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return ("0" if value[:1] != "0" else "1") + value[1:] if len(value) == 64 else value + "x"
    return 3 if value is None else value + 1 if isinstance(value, int) else value / 2


def test_every_altered_field_is_noticed(photos, mark):
    assert mark(photos, "--holdout", "0.5").code == 0
    original, unnoticed = loaded(photos), []
    places = [path for path, _ in leaves(original)]
    assert len(places) > 6 * 8 + 20
    for path in places:
        content = json.loads(json.dumps(original))
        part = content
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = altered(part[path[-1]])
        record_of(photos).write_text(json.dumps(content))
        try:
            records.read_record(record_of(photos))
            unnoticed.append(path)
        except UserError as error:
            assert "\n" not in str(error)
    assert unnoticed == []
    content = json.loads(json.dumps(original))
    content["photos"][0]["published"], content["photos"][1]["published"] = True, False
    content["photos"][2]["published"], content["photos"][3]["published"] = True, False
    content["photos"] = content["photos"][::-1]
    record_of(photos).write_text(json.dumps(content))
    refused(mark_verify(mark, photos))


NAMES = ["../x.png", "/etc/x.png", "a/../../x.png", "..", "a/..", "..\\x.png", "a\0.png", "",
         "a\n/../../x.png"]


@pytest.mark.parametrize("field", ["original", "marked"])
@pytest.mark.parametrize("name", NAMES)
def test_names_that_leave_their_folder(photos, mark, field, name):
    assert mark(photos).code == 0
    rewritten(photos, lambda content: content["photos"][0].update({field: name}))
    refused(mark_verify(mark, photos))
    refused(mark(photos, "--record", record_of(photos)))


@pytest.mark.parametrize("change", [
    lambda content: content.update(more=1), lambda content: content["photos"][0].update(more=1),
    lambda content: content.update(format="membershiptracker-record-2"),
    lambda content: content.update(key=content["key"][:-2]), lambda content: content.update(photos=[]),
    lambda content: content["photos"][0].update(number=1), lambda content: content["photos"][0].update(batch=1),
    lambda content: content["photos"].reverse(), lambda content: content["settings"].update(noise_norm=-1),
    lambda content: content["batches"][0].update(published=5), lambda content: content["photos"][0].update(height=0),
    lambda content: content["settings"].update(noise_injection_type="pink"),
    lambda content: content["commitments"].append("0" * 64)])
def test_records_that_can_not_be(photos, mark, change):
    """Each with commitments that fit, as a forger would make them."""
    assert mark(photos).code == 0
    rewritten(photos, change)
    refused(mark_verify(mark, photos), "record.json")


def test_a_selection_that_does_not_follow_from_its_key(photos, mark):
    """A forger who publishes the photos of his choice and writes them into the record, with a commitment that fits."""
    assert mark(photos, "--holdout", "0.5").code == 0

    def swap(content):
        public = next(photo for photo in content["photos"] if photo["published"])
        private = next(photo for photo in content["photos"] if not photo["published"])
        for name in ("published", "marked", "marked_sha256"):
            public[name], private[name] = private[name], public[name]
        private["marked"] = public["original"][:1] + "x.png"
        original = read_photo(photos / private["original"])
        save(marked_of(photos) / private["marked"],
             protect.mark_photo(original, bytes.fromhex(content["key"]), private["number"], Marking()))
        private["marked_sha256"] = records.file_digest(marked_of(photos) / private["marked"])
    rewritten(photos, swap)
    done = mark_verify(mark, photos)
    assert done.code != 0, done.out


def test_a_published_photo_without_a_file(photos, mark):
    """A finished record whose published photo names no marked file: one line, no traceback."""
    assert mark(photos).code == 0
    rewritten(photos, lambda content: content["photos"][0].update(marked=None, marked_sha256=None))
    done = mark_verify(mark, photos)
    assert done.code in (1, 2) and "Traceback" not in done.err


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": 1}', b"[" * 100_000, b"NaN"])
def test_files_that_are_no_record(photos, mark, content):
    assert mark(photos).code == 0
    record_of(photos).write_bytes(content)
    before = tree(photos.parent)
    refused(mark_verify(mark, photos))
    refused(mark(photos, "--record", record_of(photos)))
    refused(mark(photos))
    assert tree(photos.parent) == before


def test_a_truncated_record(photos, mark):
    assert mark(photos).code == 0
    whole = record_of(photos).read_bytes()
    record_of(photos).write_bytes(whole[:len(whole) // 2])
    refused(mark_verify(mark, photos), "record.json")


def test_the_public_part_gives_nothing_away():
    record = dummy_record(6, 0.5)
    public = json.dumps(records.public_part(record, 1))
    assert record.key not in public and record.selection_key not in public and ".png" not in public
    assert not any(photo.original_sha256 in public for photo in record.photos)
    flipped = record.model_copy(update={"photos": [*record.photos[:-1], record.photos[-1].model_copy(
        update={"published": not record.photos[-1].published})]})
    assert records.commitment_of(flipped, 1) != records.commitment_of(record, 1)


# --- --verify ---

def test_verify(photos, mark, tmp_path):
    assert mark(photos, "--holdout", "0.5").code == 0
    before = tree(tmp_path)
    done = mark_verify(mark, photos)
    assert done.code == 0 and "right" in done.out and done.err == "" and tree(tmp_path) == before
    assert loaded(photos)["commitments"][0] in done.out
    for number, path in enumerate(sorted(photos.rglob("*.*"))):  # renamed and moved: known by their content
        path.rename(photos / f"IMG_{number}{path.suffix}")
    photos.rename(tmp_path / "elsewhere")
    refused(mark_verify(mark, photos), "--originals")
    assert mark_verify(mark, photos, "--originals", tmp_path / "elsewhere").code == 0
    marked_of(photos).rename(tmp_path / "web")
    done = mark_verify(mark, photos, "--originals", tmp_path / "elsewhere")
    assert done.code == 1 and "missing" in done.err
    assert mark_verify(mark, photos, "--originals", tmp_path / "elsewhere", "--marked_folder",
                       tmp_path / "web").code == 0


@pytest.mark.parametrize("flags", [(), ("--format", "jpeg", "--quality", "80")])
def test_verify_names_a_marked_file_that_was_changed(photos, mark, flags):
    assert mark(photos, *flags).code == 0
    victim = sorted(marked_of(photos).glob("b.*"))[0]
    victim.write_bytes(victim.read_bytes() + b"\0")
    done = mark_verify(mark, photos)
    assert done.code == 1 and victim.name in done.err and "a." not in done.err and done.err.count("\n") == 1


def test_verify_names_an_original_that_was_changed(photos, mark):
    assert mark(photos).code == 0
    save(photos / "trip" / "a.png", picture(77))
    done = mark_verify(mark, photos)
    assert done.code in (1, 2) and "trip/a.png" in done.err


@pytest.mark.parametrize("flags", [(), ("--format", "jpeg")])
def test_verify_notices_marks_of_another_key(photos, mark, flags):
    """A record with fitting hashes and commitments, but a key that did not mark these pixels."""
    assert mark(photos, *flags).code == 0
    rewritten(photos, lambda content: content.update(key="ab" * 32))
    done = mark_verify(mark, photos)
    assert done.code == 1 and done.err.count("wrong:") == 6 and "key" in done.err


def test_verify_notices_pixels_that_no_key_made(photos, mark):
    """One photo was published unmarked, with its hash in the record."""
    assert mark(photos).code == 0
    save(marked_of(photos) / "b.png", read_photo(photos / "b.png"))

    def change(content):
        photo = next(photo for photo in content["photos"] if photo["marked"] == "b.png")
        photo["marked_sha256"] = records.file_digest(marked_of(photos) / "b.png")
    rewritten(photos, change)
    done = mark_verify(mark, photos)
    assert done.code == 1 and "b.png" in done.err and done.err.count("wrong:") == 1


# --- large photos ---

def shrunk(pixels, width, height):
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)).astype(float)


def correlation(one, other):
    return np.corrcoef(one.ravel(), other.ravel())[0, 1]


@pytest.mark.parametrize("marking", [Marking(1.0, "perlin", 8.0), Marking(0.7, "none"), Marking(0.7, "perlin", 8.0),
                                     Marking(1.0, "uniform", 8.0)])
def test_the_mark_survives_scaling(marking):
    """A mark computed in the large photo's own pixels would be gone, or another one, at the size of training."""
    y, x = np.mgrid[:896, :1344]
    large = np.stack([110 + 40 * np.sin(x / 300 + c) * np.cos(y / 200) for c in range(3)], -1).round().astype(np.uint8)
    small = shrunk(large, 336, 224).round().astype(np.uint8)
    key, other = (hashlib.sha256(text).digest() for text in (b"one", b"two"))

    def mark_of(pixels, key, number):
        # Blending takes away a share of the photo, under every key alike: that share is no mark.
        marked = protect.mark_photo(pixels, key, number, marking)
        return shrunk(marked, 336, 224) - marking.img_blending_ratio * shrunk(pixels, 336, 224)
    same, others = [], []
    for number in (0, 3, 8):
        scaled = mark_of(large, key, number)
        same.append(correlation(scaled, mark_of(small, key, number)))
        others.append(correlation(scaled, mark_of(small, other, number)))
        if marking.img_blending_ratio == 1:
            others.append(correlation(scaled, mark_of(small, key, number + 1)))  # every photo has noise of its own
    # The finest of the Perlin fields, without stripes beside them, lose most.
    assert np.median(same) > 0.75 and min(same) > 0.5 and max(others) < 0.3, (same, others)
    assert np.mean(same) > 0.8 or marking.img_blending_ratio == 1


def test_large_photos_through_the_script(tmp_path, mark):
    folder = tmp_path / "user"
    for number in range(3):
        save(folder / f"{number}.jpg", picture(number, 448, 600), quality=90)
    assert mark(folder, "--seed", "3", "--img_blending_ratio", "1").code == 0
    alike, key = [], bytes.fromhex(loaded(folder)["key"])
    for number in range(3):
        original, marked = read_photo(folder / f"{number}.jpg"), read_photo(marked_of(folder) / f"{number}.png")
        assert marked.shape == original.shape
        small = shrunk(original, 300, 224)
        expected = protect.mark_photo(small.round().astype(np.uint8), key, number, Marking(1.0)) - small
        alike.append(correlation(shrunk(marked, 300, 224) - small, expected))
    assert np.median(alike) > 0.7, alike
    assert mark_verify(mark, folder).code == 0


# --- duplicates ---

def test_the_same_file_twice_is_one_photo(photos, mark):
    """Its copy among the held-out photos would make the halves alike."""
    (photos / "copy.png").write_bytes((photos / "a.png").read_bytes())
    done = mark(photos, "--holdout", "0.5")
    assert done.code == 0 and len(loaded(photos)["photos"]) == 6 and "twice" in done.out


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 2**32), ratio=st.floats(0, 1),
       noise=st.sampled_from(["perlin", "uniform", "none"]))
def test_a_mark_stays_within_its_budget(height, width, seed, ratio, noise):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    before = pixels.copy()
    marked = protect.mark_photo(pixels, bytes(range(32)), 1, Marking(ratio, noise, 8.0))
    assert marked.shape == pixels.shape and marked.dtype == np.uint8 and (pixels == before).all()
    nearest = np.clip(marked.astype(float), ratio * np.clip(pixels - 8.0, 0, 255) + (1 - ratio) * 128,
                      ratio * np.clip(pixels + 8.0, 0, 255) + (1 - ratio) * 160)
    assert np.abs(marked - nearest).max() <= 0.51


def test_verify_without_anything_else_needs_no_data_folder(photos, mark, script):
    assert mark(photos).code == 0
    assert script("data_marking", "--verify", record_of(photos)).code == 0
    refused(script("data_marking"), "--data_folder")
    assert not os.path.exists(Path(photos.parent) / "held_out")
