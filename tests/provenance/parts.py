"""What the tests of provenance/ share: photos, records, and ways to look at what data_marking.py wrote."""

import hashlib
import json
import shutil
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
from PIL import Image

from attacks.exact import AUTO
from kit import environment
from kit.files import canonical_digest
from provenance import disclosed, draw, judgements
from provenance import grid as user_audit
from provenance import record as records
from provenance.plan import AuditPlan, departures
from suspects.suspect import Answers, Preprocessing
from tests.parts import call

SETTINGS = records.MarkSettings(
    img_blending_ratio=0.7,
    noise_injection_type="perlin",
    noise_norm=8,
    format="png",
    ood_pattern="color_stripes",
    quality=95,
)


# What the fixture `one_day` does, in a process of its own.
ONE_DAY = """
from datetime import datetime
from types import SimpleNamespace
from provenance import record
record.datetime = SimpleNamespace(now=lambda _: datetime(2030, 1, 1))
"""


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


# --- a bundle of evidence without a model ---


def bundle_record(label=AUTO, **changes):
    """The record of `bundle_parts`: ten photos, and a plan that can be kept with them."""
    plan = AuditPlan(**{"label": str(label), "keys": 4, "selections": 99, "views": 1, "alpha": 0.1, **changes})
    return make_record((10, 0.5), plan=plan)


def judged(record, order, answers, label=AUTO, model=None, source="checkpoint", asking=1, log=(), plan=None):
    """The document that an honest audit with these answers leaves. plan: changes to the committed one."""
    plan = record.plan.model_copy(update=plan)
    preprocessing = Preprocessing((32, 32), source=source)
    model = model or {"kind": "test", "sha256": "ab" * 32, "classes": 4}
    suspect = SimpleNamespace(identity=model, preprocessing=preprocessing)
    departs, factor = departures(record.plan, plan, 4)
    judgement = judgements.next_judgement(
        list(log), record, plan, record.plan, suspect, departs, factor, asking, now="one day"
    )
    result, _, _ = user_audit.judge(record, plan, label, judgement.alpha, order, answers, 4, price=judgement.price)
    log = [entry.model_dump(mode="json") for entry in (*log, judgement)]
    return {
        "record": disclosed.disclose(record),
        "judgement": judgement.model_dump(mode="json"),
        "log": log,
        "label": label,
        "class_name": None,
        "classes": 4,
        "model": model,
        "preprocessing": {
            name: getattr(preprocessing, name)
            for name in ("size", "resize", "mean", "std", "white", "interpolation", "source")
        },
        "publications": [],
        "witness": None,
        "result": result,
        "versions": environment.software_versions(),
    }


def bundle_parts(kind="logits", label=AUTO):
    """(document, order, digests, answers) of an audit in which nearly everything speaks for the user."""
    record, rng = bundle_record(label), np.random.default_rng(5)
    logits = rng.normal(size=(10, 5, 4)).astype(np.float32)
    logits[np.flatnonzero(record.published), 0, 2] += 2.5
    order = user_audit.query_order(record, 50, "")
    answers = Answers(logits.reshape(-1, 4)[order])
    if kind == "labels":
        answers = Answers(None, answers.values.argmax(axis=1)[:, None].astype(np.int32))
    if kind == "holes":
        answers.values[[3, 20, 41]] = np.nan
    return judged(record, order, answers, label), order, rng.integers(0, 256, (50, 32), dtype=np.uint8), answers


def copied(document):
    return json.loads(json.dumps(document))


# --- an audit from end to end ---

PHOTOS, KEYS, SELECTIONS, QUERIES = 16, 4, 999, 80
# With an alpha so large that departures from the plan still leave something; most audits choose a smaller one.
COMMITTED = ("--label", "2", "--keys", str(KEYS), "--selections", str(SELECTIONS), "--alpha", "0.5")
COMMITTED += ("--query_augmentations", "0")
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


# --- generators and encoders that were fine-tuned on what a user published ---


def publish(root, plan, count, side, caption_of=None):
    """Mark a user's wavy pictures, perhaps with captions, half of them held out: the published ones' paths, in order.
    The pictures are in root/user, the record in root/user_record. plan: flags."""
    for number in range(count):
        save(root / "user" / f"{number:02}.png", wavy_picture(number, side))
        if caption_of:
            (root / "user" / f"{number:02}.txt").write_text(caption_of(number))
    flags = ("--data_folder", root / "user", "--holdout", "0.5", "--seed", "11", "--beacon", "none", *plan)
    done = call("data_marking.py", *flags, code=ONE_DAY)
    assert done.returncode == 0, done.stderr
    return sorted(path for path in (root / "user_marked").iterdir() if path.suffix == ".png")


def auditor(root, script, tmp_path):
    """run(flags...): eval.py for a copy of the record of `publish`; out: a folder for results; base: root/base."""
    record = shutil.copytree(root / "user_record", tmp_path / "record")
    places = ("--record", record, "--originals", root / "user", "--device", "cpu")
    return SimpleNamespace(run=lambda *flags: script("eval", *places, *flags), out=tmp_path / "out", base=root / "base")


def result_of(folder):
    return json.loads((folder / "result.json").read_text())
