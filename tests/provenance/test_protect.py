"""data_marking.py as a photographer uses it: what it writes and where, what it refuses, what it never changes."""

import hashlib
import io
import json
import shutil
import stat
import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from provenance import protect
from provenance import record as records
from provenance.photos import read_photo
from tests.provenance.hostile_photos import png
from tests.provenance.parts import contents, loaded, marked_of, picture, record_of, refused, save, tree
from utils import Marking, mark_images

# --- what is written, and where ---


def test_names_places_and_untouched_originals(photos, mark):
    before = tree(photos)
    done = mark(photos, "--img_blending_ratio", ".7", "--noise_injection_type", "perlin", "--noise_norm", "8")
    assert done.code == 0 and done.err == "", done.err
    assert tree(photos) == before
    assert {path.name for path in photos.parent.iterdir()} == {"user", "user_marked", "user_record"}
    assert set(tree(marked_of(photos))) == {"a.png", "b.png", "c.png", "d.png", "trip/a.png", "trip/e.png"}
    stored = loaded(photos)
    (batch,) = stored["batches"]
    assert batch["commit"]["evidence"] is True and batch["seed"] is None and len(batch["secret"]) == 64
    commitment = records.read_record(record_of(photos)).commitments[0]
    assert commitment in done.out and "post" in done.out.lower()
    assert commitment in (record_of(photos).parent / "commitment.txt").read_text()
    for photo in stored["photos"]:
        assert photo["original_sha256"] == hashlib.sha256((photos / photo["original"]).read_bytes()).hexdigest()
        assert photo["marked_sha256"] == hashlib.sha256((marked_of(photos) / photo["marked"]).read_bytes()).hexdigest()
    assert stat.S_IMODE(record_of(photos).stat().st_mode) == 0o600
    assert stat.S_IMODE(record_of(photos).parent.stat().st_mode) == 0o700


def test_small_photos_get_the_marks_of_the_paper_exactly(photos, mark):
    assert mark(photos, "--noise_norm", "6").code == 0
    (key,) = records.read_record(record_of(photos)).keys(0)[0]
    for photo in loaded(photos)["photos"]:
        original = torch.from_numpy(read_photo(photos / photo["original"])).permute(2, 0, 1)[None]
        expected = (
            mark_images(original, key, [0], [photo["number"]], Marking(0.7, "perlin", 6.0))[0].permute(1, 2, 0).numpy()
        )
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


@pytest.mark.parametrize(
    "flags,folder",
    [
        ((), "missing"),
        ((), "empty"),
        ((), "texts"),
        ((), "user/a.png"),
        (("--img_blending_ratio", "1.5"), "user"),
        (("--img_blending_ratio", "-0.1"), "user"),
        (("--img_blending_ratio", "nan"), "user"),
        (("--noise_injection_type", "pink"), "user"),
        (("--noise_norm", "256"), "user"),
        (("--holdout", "1"), "user"),
        (("--img_blending_ratio", "1", "--noise_injection_type", "none"), "user"),
        (("--quality", "0"), "user"),
        (("--img_blending_ratio", "1", "--noise_norm", "0"), "user"),
        (("--ood_pattern", "/nowhere"), "user"),
        (("--record", "/nowhere/record.json"), "user"),
        (("--seed", "-1"), "user"),
        (("--format", "bmp"), "user"),
        (("--verify", "/nowhere/record.json"), "user"),
    ],
)
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


@pytest.mark.parametrize(
    "originals,taken",
    [
        (["a.jpg", "b.png"], ["A.PNG"]),
        (["a.jpg", "a.png", "a.jpg.png"], []),
        (["A.jpg", "a.jpg"], []),
        (["X/a.png", "x/a.png"], []),
        (["\u00e9.jpg", "e\u0301.jpg"], []),
        (["a.jpg"], ["a.png", "a.jpg.png"]),
    ],
)
def test_output_names_never_meet(originals, taken):
    """Two photos of one output name: the second overwrites the first, and the record's hash is wrong."""
    check_names(originals, taken)


STEMS = st.lists(
    st.sampled_from(
        [
            "a",
            "A",
            "\u00e9",
            "e\u0301",
            "E\u0301",
            "\u00df",
            "ss",
            "\u0130",
            "i\u0307",
            ".jpg",
            ".png",
            ".",
            "~2",
            "-1",
            "_",
            "(1)",
        ]
    ),
    min_size=1,
    max_size=4,
).map("".join)
PATHS = st.builds(
    lambda folder, stem, suffix: folder + stem.lstrip(".") + "x" * (not stem.lstrip(".")) + suffix,
    st.sampled_from(["", "", "f/", "F/", "a.jpg/"]),
    STEMS,
    st.sampled_from([".jpg", ".png", ".JPG"]),
)


@settings(max_examples=300)
@given(st.lists(PATHS, min_size=1, max_size=8, unique=True), st.lists(PATHS, max_size=6, unique=True))
def test_output_names_of_batches_never_meet(first, second):
    check_names(second, check_names(first))


# --- the key ---


def test_a_second_key_gives_other_stripes_and_one_key_the_same(tmp_path, mark):
    """Stripes alone on flat grey: rows show the key's colours, for a whole batch, and others for a later one."""
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
    assert (read_photo(marked_of(folder) / "later.png")[:, 0] != rows[1]).any(axis=1).sum() >= 16
    assert all(np.array_equal(read_photo(marked_of(folder) / f"{n}.png")[:, 0], rows[1]) for n in range(3))


def test_seed_is_reproducible_and_no_evidence(photos, mark, one_day):
    """Together with what a commitment has beside the secret: when it was made, and how often before."""
    secrets, files = [], []
    for number, flags in enumerate((("--seed", "5"), ("--seed", "5"), ("--seed", "6"), (), ())):
        copy = shutil.copytree(photos, photos.parent / f"{number}" / "user")
        done = mark(copy, *flags, "--holdout", "0.5")
        assert done.code == 0 and ("this is no evidence" in done.out) is bool(flags)
        (batch,) = loaded(copy)["batches"]
        assert batch["commit"]["evidence"] is (flags == ())
        secrets.append(batch["secret"])
        files.append(contents(marked_of(copy)))
    assert secrets[0] == secrets[1] and files[0] == files[1]
    assert len(set(secrets)) == 4 and files[0] != files[2] and files[3] != files[4]


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


def test_holdout_publishes_exactly_half(tmp_path, mark, one_day):
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
