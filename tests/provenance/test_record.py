"""The private record of data_marking.py: what it says, what a stranger can make it say, and how --verify checks it."""

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from kit.errors import UserError
from kit.files import file_digest
from provenance import folder as folders
from provenance import protect
from provenance import record as records
from provenance.photos import read_photo
from tests.parts import call
from tests.provenance.parts import (
    contents,
    loaded,
    make_record,
    marked_of,
    picture,
    record_of,
    refused,
    rewritten,
    save,
    tree,
)
from utils import Marking


def test_every_photo_is_published_about_half_of_the_time():
    """400 secrets: by name, by place or with a bias for the first photos would show; the halves are exact."""
    chosen = np.stack([make_record((10, 0.5), seed=seed, finish=False).published for seed in range(400)])
    assert (chosen.sum(axis=1) == 5).all()
    assert (np.abs(chosen.mean(axis=0) - 0.5) < 4 * 0.025).all()  # 4 standard deviations
    together = (chosen.T.astype(float) @ chosen / 400)[~np.eye(10, dtype=bool)]
    assert np.abs(together - 2 / 9).max() < 5 * 0.021, "pairs are chosen independently of their places"


@pytest.mark.parametrize(
    "count,holdout,published",
    [(1, 0.5, 1), (1, 0.9, 1), (2, 0.5, 1), (10, 0.0, 10), (10, 0.3, 7), (7, 0.9, 1), (50, 0.5, 25)],
)
def test_how_many_are_published(count, holdout, published):
    record = make_record((count, holdout), seed=None)
    assert record.published.sum() == record.batches[0].published == published
    assert [photo.marked is not None for photo in record.photos] == record.published.tolist()


def test_the_selection_has_a_secret_of_its_own():
    """The selections' secret is shown in an evidence bundle: the key of the marks must not follow from it."""
    for seed in (None, 7):
        batch = make_record((4, 0.5), seed=seed).batches[0]
        marks, selections = batch.secrets
        assert len({marks, selections, bytes.fromhex(batch.secret)}) == 3
        assert hashlib.sha256(marks).hexdigest() == batch.commit.marks_sha256
        assert hashlib.sha256(selections).hexdigest() == batch.commit.selections_sha256


# --- further photos ---


def test_further_photos_in_a_batch_of_their_own(photos, mark):
    assert mark(photos, "--holdout", "0.5").code == 0
    first, marks = loaded(photos), tree(marked_of(photos))
    posted = records.read_record(record_of(photos)).commitments[0]
    for number in range(4):
        save(photos / f"later{number}.png", picture(50 + number))
    done = mark(photos, "--record", record_of(photos), "--holdout", "0.5")
    assert done.code == 0, done.err
    second = loaded(photos)
    assert second["photos"][:6] == first["photos"] and second["batches"][0] == first["batches"][0]
    assert second["batches"][1]["secret"] != first["batches"][0]["secret"]
    assert second["batches"][1]["commit"]["previous"] == [posted]
    record = records.read_record(record_of(photos))
    assert record.commitments[0] == posted != record.commitments[1] and record.commitments[1] in done.out
    assert record.commitments[1] in (record_of(photos).parent / "commitment.txt").read_text()
    assert [(batch.photos, batch.published) for batch in record.batches] == [(6, 3), (4, 2)]
    assert {name: content for name, (content, _) in tree(marked_of(photos)).items() if name in marks} == {
        name: content for name, (content, _) in marks.items()
    }
    assert (record.selections(1)[0] == record.published).all()
    assert len(set(record.keys(0)[0])) == 2, "a key for each batch"
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
    shutil.rmtree(record_of(photos).parent / "originals")
    for copy in (record_of(photos).parent / "held_out").rglob("*.*"):
        (photos / copy.relative_to(record_of(photos).parent / "held_out")).unlink()
    for name in (record_of(photos), record_of(photos).parent):
        done = mark(photos, "--verify", name)
        assert done.code == 0, done.err


# --- interruption ---

KILLED = """
import os, signal
from provenance import folder, protect
real, count = protect.write_photo, [0]
def write(path, data):
    count[0] += 1
    if count[0] > 2:
        path.with_name("." + path.stem + ".part" + path.suffix).write_bytes(data[:50])
        os.kill(os.getpid(), signal.SIGKILL)
    real(path, data)
protect.write_photo, folder.workers = write, lambda: 1
"""


def test_a_killed_run_goes_on_with_the_same_key(tmp_path, mark):
    folder = tmp_path / "user"
    for number in range(10):
        save(folder / f"{number}.png", picture(number))
    done = call("data_marking.py", "--data_folder", folder, "--holdout", "0.5", "--beacon", "none", code=KILLED)
    assert done.returncode == -signal.SIGKILL, done.stderr
    half, before = loaded(folder), contents(marked_of(folder))
    assert half["batches"][0]["drawn"] and not half["batches"][0]["finished"] and len(before) == 3
    refused(mark(folder, "--verify", record_of(folder)), "interrupted")
    refused(mark(folder, "--holdout", "0.5", "--seed", "3"), "--seed")
    refused(mark(folder, "--holdout", "0.5", "--noise_norm", "4"), "noise_norm")
    gone = (folder / "3.png").rename(tmp_path / "3.png")
    refused(mark(folder, "--holdout", "0.5"))
    gone.rename(folder / "3.png")
    done = mark(folder, "--holdout", "0.5")
    assert done.code == 0, done.err
    whole, files = loaded(folder), contents(marked_of(folder))
    assert {**whole["batches"][0], "finished": False} == half["batches"][0]
    assert [photo["published"] for photo in whole["photos"]] == [photo["published"] for photo in half["photos"]]
    assert {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} == {
        photo["marked"]: photo["marked_sha256"] for photo in whole["photos"] if photo["published"]
    }
    assert mark_verify(mark, folder).code == 0


def test_a_resumed_run_does_not_silently_keep_another_holdout(photos, mark, monkeypatch):
    """Who asks for half and gets all published (or the other way round) must be told by name."""

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(protect, "encode_photo", fail)
        assert mark(photos).code == 130
    assert not loaded(photos)["batches"][0]["finished"]
    refused(mark(photos, "--holdout", "0.5"), "holdout")


def test_an_original_that_changes_meanwhile_is_named(photos, mark, monkeypatch):
    """Edited after it was read for its hash: one line that names it, and the record can still be finished."""
    inspect = folders.inspect_folder
    with monkeypatch.context() as patch:
        patch.setattr(folders, "inspect_folder", lambda *path: (inspect(*path), save(photos / "d.png", picture(99)))[0])
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
    if isinstance(value, list):
        return ["0" * 64]
    if isinstance(value, str):
        return ("0" if value[:1] != "0" else "1") + value[1:] if len(value) == 64 else value + "x"
    return 3 if value is None else value + 1 if isinstance(value, int) else value / 2


# What a record says beside what it proves: where files were, and with what they were made.
DECIDES_NOTHING = ("software", "data_folder", "original", "height", "width")


def test_every_altered_field_is_noticed(photos, mark):
    """By whoever reads the record; or, where a digest of a file or a fresh draw would have to be known, by --verify."""
    assert mark(photos, "--holdout", "0.5").code == 0
    original, unread, unnoticed = loaded(photos), [], []
    places = [path for path, _ in leaves(original)]
    assert len(places) > 6 * 8 + 40
    for path in places:
        content = json.loads(json.dumps(original))
        part = content
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = altered(part[path[-1]])
        record_of(photos).write_text(json.dumps(content))
        try:
            records.read_record(record_of(photos))
        except UserError as error:
            assert "\n" not in str(error)
            continue
        unread.append(path)
        done = mark_verify(mark, photos)
        assert "Traceback" not in done.err
        if done.code == 0:
            unnoticed.append(path)
    assert {path[-1] if path[0] != "software" else "software" for path in unnoticed} == set(DECIDES_NOTHING)
    assert not any("secret" in path or "published" in path or path[-1] == "previous" for path in unread)
    content = json.loads(json.dumps(original))
    content["photos"][0]["published"], content["photos"][1]["published"] = True, False
    content["photos"][2]["published"], content["photos"][3]["published"] = True, False
    content["photos"] = content["photos"][::-1]
    record_of(photos).write_text(json.dumps(content))
    refused(mark_verify(mark, photos))


NAMES = ["../x.png", "/etc/x.png", "a/../../x.png", "..", "a/..", "..\\x.png", "a\0.png", "", "a\n/../../x.png"]


@pytest.mark.parametrize("field", ["original", "marked"])
@pytest.mark.parametrize("name", NAMES)
def test_names_that_leave_their_folder(photos, mark, field, name):
    assert mark(photos).code == 0
    rewritten(photos, lambda content: content["photos"][0].update({field: name}))
    refused(mark_verify(mark, photos))
    refused(mark(photos, "--record", record_of(photos)))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(more=1),
        lambda content: content["photos"][0].update(more=1),
        lambda content: content.update(format="membershiptracker-record-3"),
        lambda content: content["batches"][0].update(secret=content["batches"][0]["secret"][:-2]),
        lambda content: content.update(photos=[]),
        lambda content: content["photos"][0].update(number=1),
        lambda content: content["photos"][0].update(batch=1),
        lambda content: content["photos"].reverse(),
        lambda content: content["settings"].update(noise_norm=-1),
        lambda content: content["batches"][0]["commit"].update(published=5),
        lambda content: content["batches"][0]["commit"].update(photos=7),
        lambda content: content["batches"][0]["commit"].update(format="membershiptracker-commitment-3"),
        lambda content: content["batches"][0]["commit"].update(groups=[10**12] * 6),
        lambda content: content["batches"][0]["commit"].update(groups=[-1] * 6),
        lambda content: content["batches"][0]["commit"].update(groups=[0] * 5),
        lambda content: content["batches"][0]["commit"].update(evidence=False),
        lambda content: content["batches"][0]["commit"]["plan"].update(alpha=0.9),
        lambda content: content["photos"][0].update(height=0),
        lambda content: content["settings"].update(noise_injection_type="pink"),
        lambda content: content["batches"][0].update(signature="0" * 96),
        lambda content: content["batches"][0].update(drawn=False),
        lambda content: content["batches"].append(content["batches"][0]),
        lambda content: content.update(batches=[]),
    ],
)
def test_records_that_can_not_be(photos, mark, change):
    """Each with commitments that fit, as a forger would make them."""
    assert mark(photos).code == 0
    rewritten(photos, change)
    refused(mark_verify(mark, photos), "record.json")


def test_a_selection_that_does_not_follow_from_its_secret(photos, mark):
    """A forger who publishes the photos of his choice and writes them into the record, with a commitment that fits."""
    assert mark(photos, "--holdout", "0.5").code == 0
    record = records.read_record(record_of(photos))

    def swap(content):
        public = next(photo for photo in content["photos"] if photo["published"])
        private = next(photo for photo in content["photos"] if not photo["published"])
        for name in ("published", "marked", "marked_sha256"):
            public[name], private[name] = private[name], public[name]
        private["marked"] = public["original"][:1] + "x.png"
        original = read_photo(photos / private["original"])
        save(
            marked_of(photos) / private["marked"],
            protect.mark_photo(original, record.key_of(record.photos[0]), private["number"], Marking()),
        )
        private["marked_sha256"] = file_digest(marked_of(photos) / private["marked"])

    rewritten(photos, swap)
    refused(mark_verify(mark, photos), "not those that its secret draws")


def test_a_published_photo_without_a_file(photos, mark):
    """A finished record whose published photo names no marked file: one line, no traceback."""
    assert mark(photos).code == 0
    for change in ({"marked": None, "marked_sha256": None}, {"marked_sha256": None}):
        rewritten(photos, lambda content, change=change: content["photos"][0].update(change))
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
    record_of(photos).write_bytes(whole[: len(whole) // 2])
    done = mark_verify(mark, photos)
    refused(done, "record.json", "undamaged copy")
    assert "delete" not in done.err  # it is all that the user can prove anything with


# --- --verify ---


def without_copies(photos):
    for name in ("originals", "held_out"):
        shutil.rmtree(record_of(photos).parent / name, ignore_errors=True)


def test_verify(photos, mark, tmp_path):
    assert mark(photos, "--holdout", "0.5").code == 0
    before = tree(tmp_path)
    done = mark_verify(mark, photos)
    assert done.code == 0 and "right" in done.out and done.err == "" and tree(tmp_path) == before
    assert records.read_record(record_of(photos)).commitments[0] in done.out
    for number, path in enumerate(sorted(photos.rglob("*.*"))):  # renamed and moved: known by their content
        path.rename(photos / f"IMG_{number}{path.suffix}")
    photos.rename(tmp_path / "elsewhere")
    assert mark_verify(mark, photos).code == 0, "the record keeps copies"
    without_copies(photos)
    refused(mark_verify(mark, photos), "--originals")
    assert mark_verify(mark, photos, "--originals", tmp_path / "elsewhere").code == 0
    marked_of(photos).rename(tmp_path / "web")
    done = mark_verify(mark, photos, "--originals", tmp_path / "elsewhere")
    assert done.code == 1 and "missing" in done.err
    assert (
        mark_verify(mark, photos, "--originals", tmp_path / "elsewhere", "--marked_folder", tmp_path / "web").code == 0
    )


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
    assert mark_verify(mark, photos).code == 0, "the record's own copy is still the photo"
    without_copies(photos)
    done = mark_verify(mark, photos)
    assert done.code in (1, 2) and "trip/a.png" in done.err


@pytest.mark.parametrize("flags", [(), ("--format", "jpeg")])
def test_verify_notices_marks_of_another_key(photos, mark, flags):
    """A record with fitting hashes and commitments, but a secret that did not mark these pixels."""
    assert mark(photos, *flags).code == 0
    rewritten(photos, lambda content: content["batches"][0].update(secret="ab" * 32))
    done = mark_verify(mark, photos)
    assert done.code == 1 and done.err.count("wrong:") == 6 and "key" in done.err


def test_verify_notices_pixels_that_no_key_made(photos, mark):
    """One photo was published unmarked, with its hash in the record."""
    assert mark(photos).code == 0
    save(marked_of(photos) / "b.png", read_photo(photos / "b.png"))

    def change(content):
        photo = next(photo for photo in content["photos"] if photo["marked"] == "b.png")
        photo["marked_sha256"] = file_digest(marked_of(photos) / "b.png")

    rewritten(photos, change)
    done = mark_verify(mark, photos)
    assert done.code == 1 and "b.png" in done.err and done.err.count("wrong:") == 1


# --- large photos ---


def shrunk(pixels, width, height):
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)).astype(float)


def correlation(one, other):
    return np.corrcoef(one.ravel(), other.ravel())[0, 1]


@pytest.mark.parametrize(
    "marking",
    [Marking(1.0, "perlin", 8.0), Marking(0.7, "none"), Marking(0.7, "perlin", 8.0), Marking(1.0, "uniform", 8.0)],
)
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


def test_large_photos_through_the_script(tmp_path, mark, one_day):
    folder = tmp_path / "user"
    for number in range(3):
        save(folder / f"{number}.jpg", picture(number, 448, 600), quality=90)
    assert mark(folder, "--seed", "3", "--img_blending_ratio", "1").code == 0
    alike, record = [], records.read_record(record_of(folder))
    for photo in record.photos:
        original, marked = read_photo(folder / photo.original), read_photo(marked_of(folder) / photo.marked)
        assert marked.shape == original.shape
        small, key = shrunk(original, 300, 224), record.key_of(photo)
        expected = protect.mark_photo(small.round().astype(np.uint8), key, photo.number, Marking(1.0)) - small
        alike.append(correlation(shrunk(marked, 300, 224) - small, expected))
    assert np.median(alike) > 0.7, alike
    assert mark_verify(mark, folder).code == 0


# --- duplicates ---


def test_the_same_file_twice_is_one_photo(photos, mark):
    """Its copy among the held-out photos would make the halves alike."""
    (photos / "copy.png").write_bytes((photos / "a.png").read_bytes())
    done = mark(photos, "--holdout", "0.5")
    assert done.code == 0 and len(loaded(photos)["photos"]) == 6 and "twice" in done.out


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    ratio=st.floats(0, 1),
    noise=st.sampled_from(["perlin", "uniform", "none"]),
)
def test_a_mark_stays_within_its_budget(height, width, seed, ratio, noise):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    before = pixels.copy()
    marked = protect.mark_photo(pixels, bytes(range(32)), 1, Marking(ratio, noise, 8.0))
    assert marked.shape == pixels.shape and marked.dtype == np.uint8 and (pixels == before).all()
    nearest = np.clip(
        marked.astype(float),
        ratio * np.clip(pixels - 8.0, 0, 255) + (1 - ratio) * 128,
        ratio * np.clip(pixels + 8.0, 0, 255) + (1 - ratio) * 160,
    )
    assert np.abs(marked - nearest).max() <= 0.51


def test_verify_without_anything_else_needs_no_data_folder(photos, mark, script):
    assert mark(photos).code == 0
    assert script("data_marking", "--verify", record_of(photos)).code == 0
    refused(script("data_marking"), "--data_folder")
    assert not os.path.exists(Path(photos.parent) / "held_out")
