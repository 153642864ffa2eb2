"""What happens to photos that are lost, that look alike, that have odd names or lie where nothing can be written."""

import json
import shutil
import struct

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from attacks import exact
from provenance import draw, duplicates
from provenance.photos import UnreadablePhoto, find_photos, read_photo
from provenance.raw import is_raw
from tests.provenance.parts import picture, refused, save


def scene(seed, side=96):
    """A picture with shapes that a perceptual hash can tell from others."""
    noise = np.random.default_rng(seed).normal(size=(side, side, 3))
    smooth = gaussian_filter(noise, (side / 10, side / 10, 0))
    return np.clip(128 + 300 * smooth / np.abs(smooth).max(), 0, 255).astype(np.uint8)


@pytest.fixture
def mark(script):
    return lambda folder, *flags: script("data_marking", "--data_folder", folder, "--beacon", "none", *flags)


@pytest.fixture
def scenes(tmp_path):
    """Ten different pictures, three of them twice: smaller, lighter, as JPEG."""
    folder = tmp_path / "user"
    for number in range(10):
        save(folder / f"{number}.png", scene(number))
    small = Image.fromarray(scene(0)).resize((80, 80))
    small.save(folder / "0 small.png")
    save(folder / "1 edited.png", np.clip(scene(1).astype(int) + 20, 0, 255).astype(np.uint8))
    Image.fromarray(scene(2)).save(folder / "2 phone.jpg", quality=80)
    return folder


def test_near_duplicates_stay_on_one_side_of_the_hold_out(mark, scenes, tmp_path):
    for attempt in range(6):
        done = mark(scenes, "--holdout", "0.5", "--out", tmp_path / f"out{attempt}")
        assert done.code == 0 and "look alike, drawn together" in done.out
        record = json.loads((tmp_path / f"out{attempt}" / "user_record" / "record.json").read_text())
        sides = {photo["original"]: photo["published"] for photo in record["photos"]}
        for one, other in (("0.png", "0 small.png"), ("1.png", "1 edited.png"), ("2.png", "2 phone.jpg")):
            assert sides[one] == sides[other]
        assert 6 <= sum(sides.values()) <= 7


def test_pictures_that_differ_are_no_duplicates():
    prints = [duplicates.fingerprint(scene(seed)) for seed in range(40)]
    assert duplicates.groups_of(prints) == list(range(40))
    assert duplicates.fingerprint(scene(0, 32)) is None
    assert duplicates.groups_of([None, prints[0], None, prints[0]]) == [0, 1, 2, 1]


def test_selections_of_groups_are_drawn_in_the_same_way_and_p_stays_exact():
    """The own draw is one of the fresh ones' kind: the first of m + 1 is as often the lowest as any other."""
    groups = (0, 0, 1, 2, 2, 3, 4, 5, 6, 7)
    scores, low = np.random.default_rng(1).normal(size=(10, 1, 1)), 0
    for attempt in range(800):
        drawn = np.stack([draw.selection(b"s", b"%d" % attempt, n, 10, 5, groups=groups) for n in range(20)])
        assert (drawn[:, 0] == drawn[:, 1]).all() and (drawn[:, 3] == drawn[:, 4]).all()
        assert set(drawn.sum(axis=1)) <= {4, 5}
        low += exact.p_value(exact.statistic_grid(scores, drawn, 0)[0]) <= 0.05
    assert low <= 60  # of 800 at 0.05: 40 expected, 99.9 % of binomial draws are below 60


def test_groups_that_would_leave_nothing_to_draw_are_drawn_one_by_one():
    assert draw.fitting_groups([0, 0, 0, 0, 1, 2], 3) == ()
    assert draw.fitting_groups([0, 1, 2, 3], 2) == ()
    assert draw.fitting_groups([0, 1, 1, 2, 3, 4, 4, 4], 4) == (0, 1, 1, 2, 3, 4, 5, 6)


def test_all_originals_are_kept_with_the_record(mark, scenes, tmp_path):
    done = mark(scenes, "--holdout", "0.5")
    sizes = [path.stat().st_size for path in (tmp_path / "user_record" / "originals").iterdir()]
    assert done.code == 0 and f"{len(sizes)}, {sum(sizes) / 1e6:,.1f} MB in" in done.out  # what it costs
    kept = {
        path.name: path.read_bytes()
        for name in ("originals", "held_out")
        for path in (tmp_path / "user_record" / name).iterdir()
    }
    assert kept == {path.name: path.read_bytes() for path in scenes.iterdir()}
    shutil.rmtree(scenes)  # as if a cloud had encoded the library anew
    assert mark(scenes, "--verify", tmp_path / "user_record").code == 0


def test_originals_are_not_kept_when_that_is_wished(mark, scenes, tmp_path):
    done = mark(scenes, "--holdout", "0.5", "--keep_originals", "no")
    assert done.code == 0 and "MB" not in done.out
    assert not (tmp_path / "user_record" / "originals").exists()


def test_of_identical_files_the_shortest_name_is_kept(mark, tmp_path):
    folder = tmp_path / "user"
    for name in ("a copy of it.png", "it.png", "z.png"):
        save(folder / name, picture(1 if "it" in name else 2))
    done = mark(folder)
    assert done.code == 0 and "a copy of it.png" in done.out
    assert {path.name for path in (tmp_path / "user_marked").iterdir()} == {"it.png", "z.png"}


def test_out_is_for_folders_where_nothing_can_be_written(mark, scenes, tmp_path):
    assert mark(scenes, "--out", tmp_path / "elsewhere").code == 0
    assert (tmp_path / "elsewhere" / "user_marked").is_dir() and not (tmp_path / "user_marked").exists()
    refused(mark(scenes, "--out", scenes / "inside"), "--out", "lies in the folder")


def test_ignored_files_are_named_up_to_ten(mark, tmp_path):
    folder = tmp_path / "user"
    save(folder / "a.png", picture(1))
    for number in range(13):
        (folder / f"note{number:02}.txt").write_text("x")
    out = mark(folder).out
    assert "13: note00.txt" in out and "note09.txt and 3 more" in out.replace(", and", " and")


def test_a_photo_without_an_extension_is_told_by_its_bytes(tmp_path):
    Image.fromarray(picture(1)).save(tmp_path / "shot", format="JPEG")
    (tmp_path / "text").write_text("II is how this text begins")
    assert find_photos(tmp_path) == (["shot"], [], ["text"])


def tiff_head(*tags):
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, 0) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    "head, raw",
    [
        (b"FUJIFILMCCD-RAW 0201", True),
        (b"\0\0\0\x18ftypcrx isom", True),
        (b"II*\0\x10\0\0\0CR\x02\0", True),
        (tiff_head(0x0100, 0xC612), True),
        (tiff_head(0x010F, 0x014A), True),
        (tiff_head(0x0100, 0x010F), False),
        (b"II*\0", False),
        (b"\xff\xd8\xff\xe0", False),
    ],
)
def test_raw_photos_are_told_from_tiffs(head, raw):
    assert is_raw(head) == raw


def test_a_raw_photo_is_never_its_preview(tmp_path):
    """Pillow's TIFF reader would take the small picture in front for the photo."""
    with pytest.raises(UnreadablePhoto, match=r"damaged|rawpy"):
        read_photo(tiff_head(0x0100, 0xC612))


def test_without_rawpy_a_raw_photo_says_what_to_do(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rawpy", None)
    with pytest.raises(UnreadablePhoto, match="pip install rawpy"):
        read_photo(tiff_head(0x0100, 0xC612))
