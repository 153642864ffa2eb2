"""What the tests of provenance/ share: photos, records, and ways to look at what data_marking.py wrote."""

import hashlib
import json
from contextlib import suppress

import numpy as np
from PIL import Image

from kit.files import canonical_digest
from provenance import draw
from provenance import record as records

SETTINGS = records.MarkSettings(
    img_blending_ratio=0.7,
    noise_injection_type="perlin",
    noise_norm=8,
    format="png",
    ood_pattern="color_stripes",
    quality=95,
)


def picture(seed, height=20, width=28):
    """A smooth picture with some noise that stays away from 0 and 255."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:height, :width]
    smooth = np.stack([x * rng.uniform(1, 5) + y * rng.uniform(1, 4) for _ in range(3)], -1)
    return (60 + smooth * 100 / max(1, smooth.max()) + rng.integers(0, 25, smooth.shape)).astype(np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def tree(folder):
    """Every file below a folder: name -> (bytes, mtime)."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


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
    record_of(folder).write_text(json.dumps(recommitted(content) if commit else content))


def recommitted(content):
    """A record's JSON whose commitments are those of what it says now; what can't be committed is left as it is."""
    before = []
    for number, batch in enumerate(content["batches"]):
        photos = [photo["original_sha256"] for photo in content["photos"] if photo["batch"] == number]
        batch["commit"].update(settings=content["settings"], originals_sha256=canonical_digest(photos), previous=before)
        with suppress(ValueError):
            secret = bytes.fromhex(batch["secret"])
            batch["commit"].update(
                marks_sha256=hashlib.sha256(draw.mark_secret(secret)).hexdigest(),
                selections_sha256=hashlib.sha256(draw.selection_secret(secret)).hexdigest(),
            )
        before = [*before, canonical_digest(batch["commit"])]
    return content


def photo_entries(names):
    """Photos as `records.commit_batch` takes them, without any on disk: each has its name as content."""
    return [
        {"original": name, "height": 8, "width": 8, "original_sha256": hashlib.sha256(name.encode()).hexdigest()}
        for name in names
    ]


def make_record(*batches, seed=1, plan=None, finish=True):
    """A record of batches (photos, hold-out) that needed no beacon, without any photo on disk."""
    record = records.new_record(SETTINGS)
    for count, holdout in batches:
        first = len(record.photos)
        entries = photo_entries([f"{first + number}.png" for number in range(count)])
        record = records.commit_batch(record, entries, holdout, "in", "out", plan, seed=seed, created="some day")
        record = records.draw_batch(record, {photo.number: photo.original for photo in record.photos})
        if finish:
            record = records.finish_batch(record, {p.number: "0" * 64 for p in record.photos if p.published})
    return record


# --- an audit from end to end ---

PHOTOS, KEYS, SELECTIONS, QUERIES = 16, 4, 999, 80
# With an alpha so large that departures from the plan still leave something; most audits choose a smaller one.
COMMITTED = ("--label", "2", "--keys", str(KEYS), "--selections", str(SELECTIONS), "--alpha", "0.5")
GRID = ("--alpha", "0.001", "--device", "cpu")


def wavy_picture(seed, size=32):
    """Smooth waves and noise: hard to learn, easy to remember."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:size, :size]
    waves = [
        sum(np.sin(x * rng.uniform(0.1, 0.6) + y * rng.uniform(0.1, 0.6) + rng.uniform(0, 6)) for _ in range(2))
        for _ in range(3)
    ]
    return np.clip(128 + 30 * np.stack(waves, -1) + rng.normal(0, 12, (size, size, 3)), 0, 255).astype(np.uint8)


def flat(text):
    return " ".join(text.split())
