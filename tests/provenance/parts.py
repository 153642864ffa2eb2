"""What the tests of provenance/ share: photos, records, and ways to look at what data_marking.py wrote."""

import hashlib
import json

import numpy as np
from PIL import Image

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
    if commit:
        record = records.MarkRecord.model_construct(
            **{
                **content,
                "settings": records.MarkSettings.model_construct(**content["settings"]),
                "batches": [records.Batch.model_construct(**batch) for batch in content["batches"]],
                "photos": [records.Photo.model_construct(**photo) for photo in content["photos"]],
            }
        )
        content["commitments"] = [records.commitment_of(record, n + 1) for n in range(len(content["commitments"]))]
    record_of(folder).write_text(json.dumps(content))


def make_record(*batches, seed=1):
    """A finished record of batches (photos, hold-out), without any photo on disk."""
    record = records.new_record(SETTINGS, seed)
    for count, holdout in batches:
        first = len(record.photos)
        photos = [
            {
                "original": f"{first + n}.png",
                "height": 8,
                "width": 8,
                "original_sha256": hashlib.sha256(b"%d" % (first + n)).hexdigest(),
            }
            for n in range(count)
        ]
        record = records.add_batch(record, photos, holdout, "in", "out", [photo["original"] for photo in photos])
        record = records.finish_batch(record, {p.number: "0" * 64 for p in record.photos if p.published})
    return record


# --- an audit from end to end ---

PHOTOS, KEYS, SELECTIONS, QUERIES = 16, 4, 199, 80
GRID = ("--keys", str(KEYS), "--selections", str(SELECTIONS), "--device", "cpu")


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
