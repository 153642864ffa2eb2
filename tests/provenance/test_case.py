"""eval.py --record from end to end: marked by data_marking.py, trained by train.py, audited, replayed, over HTTP."""

import functools
import hashlib
import json
import shutil
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import call
from PIL import Image
from scipy.special import log_softmax
from scipy.stats import beta

from networks import build_network
from provenance import evidence
from provenance import grid as user_audit
from provenance import record as records
from provenance.photos import read_photo
from suspects import opened, server
from suspects.answering import _FileSuspect
from suspects.server import open_server
from utils import mark_images

PHOTOS, KEYS, SELECTIONS, QUERIES = 16, 4, 199, 80
GRID = ("--keys", str(KEYS), "--selections", str(SELECTIONS), "--device", "cpu")


def picture(seed, size=32):
    """Smooth waves and noise: hard to learn, easy to remember."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:size, :size]
    waves = [
        sum(np.sin(x * rng.uniform(0.1, 0.6) + y * rng.uniform(0.1, 0.6) + rng.uniform(0, 6)) for _ in range(2))
        for _ in range(3)
    ]
    return np.clip(128 + 30 * np.stack(waves, -1) + rng.normal(0, 12, (size, size, 3)), 0, 255).astype(np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def listing(folder):
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A user with 16 photos, 8 of them published; a model of train.py that has seen the 8 as one class's part."""
    root = tmp_path_factory.mktemp("world")
    originals, data = root / "user", root / "data"
    for number in range(PHOTOS):
        save(originals / f"{number:02}.png", picture(number))
    before = listing(originals)
    done = call("data_marking.py", "--data_folder", originals, "--holdout", "0.5", "--seed", "11")
    assert done.returncode == 0, done.stderr
    for label, name in enumerate(("ant", "bee", "cat", "dog")):
        for number in range(24 if name == "cat" else 32):
            save(data / "train" / name / f"{number}.png", picture(1000 * (label + 1) + number))
        for number in range(8):
            save(data / "test" / name / f"{number}.png", picture(1000 * (label + 1) + 500 + number))
    for path in (root / "user_marked").iterdir():
        shutil.copy(path, data / "train" / "cat" / f"user-{path.name}")
    done = call(
        "train.py",
        "--clean_train",
        "1",
        "--dataset",
        "imagefolder",
        "--data_root",
        data,
        "--net_type",
        "smallnet",
        "--train_size",
        "128",
        "--val_portion",
        "0",
        "--epoch",
        "40",
        "--batch_size",
        "16",
        "--lr",
        "0.05",
        "--marked_samples_per_user",
        "4",
        "--target_user_cls",
        "0",
        "--num_of_non_member_user",
        "5",
        "--device",
        "cpu",
        "--precision",
        "float32",
        "--out",
        root / "run",
    )
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(
        root=root,
        originals=originals,
        record=root / "user_record" / "record.json",
        run=root / "run",
        before=before,
        data=data,
    )


@pytest.fixture
def audit(script, world):
    """Audit the trained model: audit(out, *flags) -> code, out, err, result."""

    def run(out, *flags, record=world.record, originals=world.originals, checkpoint=world.run, grid=GRID):
        done = script(
            "eval",
            "--record",
            record,
            "--originals",
            originals,
            "--checkpoint",
            checkpoint,
            *grid,
            *flags,
            *(("--out", out) if out else ()),
        )
        path = out and out / "result.json"
        done.result = json.loads(path.read_text()) if path and path.exists() else None
        return done

    return run


@pytest.fixture(scope="module")
def verdict_folder(world):
    """The finished audit with default flags, in a process of its own. Tests must not change it."""
    out = world.root / "verdict"
    done = call(
        "eval.py",
        "--record",
        world.record,
        "--originals",
        world.originals,
        "--checkpoint",
        world.run,
        *GRID,
        "--label",
        "2",
        "--query_batch",
        "16",
        "--out",
        out,
    )
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(folder=out, out=done.stdout, result=json.loads((out / "result.json").read_text()))


def refused(done, *words):
    assert done.code == 2, (done.code, done.out, done.err)
    assert done.err.startswith("error: ") and done.err.count("\n") == 1, done.err
    for word in words:
        assert str(word) in done.err, done.err


def flat(text):
    return " ".join(text.split())


# --- the verdict ---


def test_the_user_is_found(world, verdict_folder):
    result = verdict_folder.result
    assert result["p_value"] <= 0.02 and result["queries"] == QUERIES and result["pairs"] == 1000
    assert result["p_value"] == result["at_most"] / 1000 and result["detected"] == (result["p_value"] <= 0.001)
    assert (result["published"], result["photos"], result["label"]) == (8, 16, 2)
    assert result["evidence"] is False, "the record's key came from --seed"
    assert result["sentences"] in flat(verdict_folder.out) and f"{QUERIES}" in verdict_folder.out
    assert {path.name for path in verdict_folder.folder.iterdir()} >= {"result.json", "evidence.zip", "grid.png"}
    with Image.open(verdict_folder.folder / "grid.png") as plot:
        plot.load()
    assert listing(world.originals) == world.before


def test_p_from_the_stored_answers_alone(world, verdict_folder):
    """Everything again with other code: which image was asked when, T of each pair, p."""
    with zipfile.ZipFile(verdict_folder.folder / "evidence.zip") as archive:
        document = json.loads(archive.read("bundle.json"))
        with archive.open("answers.npz") as file:
            arrays = dict(np.load(file))
    record = records.read_record(world.record)
    keys = records.audit_keys(record, KEYS)
    loss = np.full((PHOTOS, KEYS + 1), np.nan)
    marking = record.settings.marking()
    for place, query in enumerate(arrays["order"]):
        photo, key = divmod(int(query), KEYS + 1)
        pixels = torch.from_numpy(read_photo(world.originals / record.photos[photo].original)).permute(2, 0, 1)[None]
        sent = mark_images(pixels, keys[key], [0], [photo], marking)[0].numpy()
        assert hashlib.sha256(sent.tobytes()).digest() == arrays["digests"][place].tobytes()
        loss[photo, key] = np.sqrt(-log_softmax(arrays["values"][place].astype(float))[2])
    selections = records.draw_selections(record.selection_key, record.batches, SELECTIONS)
    grid = np.stack([loss[chosen].mean(axis=0) for chosen in selections])
    assert ((grid <= grid[0, 0] + 1e-9).mean()) == pytest.approx(verdict_folder.result["p_value"])
    assert verdict_folder.result["statistic"] == pytest.approx(grid[0, 0])
    assert record.key not in json.dumps(document) and not any(p.original in json.dumps(document) for p in record.photos)
    published = [world.root / "user_marked" / photo.marked for photo in record.photos if photo.published]
    sent = {bytes(digest).hex() for digest in arrays["digests"]}
    for path in published:  # the very pixels that the model was trained on are among the queries
        assert hashlib.sha256(read_photo(path).transpose(2, 0, 1).tobytes()).hexdigest() in sent


def test_replay(world, verdict_folder, script, tmp_path):
    bundle = verdict_folder.folder / "evidence.zip"
    moved = shutil.copy(bundle, tmp_path / "evidence of user.zip")
    done = script("eval", "--replay", moved, "--out", tmp_path / "again")
    again = json.loads((tmp_path / "again" / "result.json").read_text())
    assert done.code == 0 and f"{again['p_value']:.6g}" in done.out and verdict_folder.result["commitment"] in done.out
    assert all(again[name] == verdict_folder.result[name] for name in again), "the replayed result differs"
    done = script("eval", "--replay", moved, "--record", world.record, "--originals", world.originals)
    assert done.code == 0 and f"{QUERIES} of {QUERIES}" in done.out


def test_replay_counts_images_that_were_not_sent(world, verdict_folder, script, tmp_path):
    document, order, digests, answers = evidence.read_bundle(verdict_folder.folder / "evidence.zip")
    document.pop("format")
    digests = digests.copy()
    digests[7] ^= 1
    evidence.write_bundle(tmp_path / "e.zip", document, order, digests, answers)
    done = script("eval", "--replay", tmp_path / "e.zip", "--record", world.record, "--originals", world.originals)
    assert f"{QUERIES - 1} of {QUERIES}" in done.out and f"{QUERIES} of {QUERIES}" not in done.out


def test_replay_with_images_that_were_never_sent_fails(world, verdict_folder, script, tmp_path):
    document, order, digests, answers = evidence.read_bundle(verdict_folder.folder / "evidence.zip")
    document.pop("format")
    evidence.write_bundle(tmp_path / "e.zip", document, order, digests ^ 1, answers)
    done = script("eval", "--replay", tmp_path / "e.zip", "--record", world.record, "--originals", world.originals)
    assert f"0 of {QUERIES}" in done.out
    assert done.code != 0


def test_replay_with_another_record(world, verdict_folder, script, tmp_path):
    save(tmp_path / "other" / "a.png", picture(3))
    assert script("data_marking", "--data_folder", tmp_path / "other").code == 0
    refused(
        script(
            "eval",
            "--replay",
            verdict_folder.folder / "evidence.zip",
            "--record",
            tmp_path / "other_record" / "record.json",
        ),
        "another",
    )


def test_labels(audit, verdict_folder, tmp_path):
    auto = audit(tmp_path / "auto", "--query_batch", "16")
    assert auto.code == 0 and auto.result["label"] == 2
    assert auto.result["statistic"] == verdict_folder.result["statistic"] and auto.result["p_value"] <= 0.02
    named = audit(tmp_path / "named", "--query_batch", "16", "--label", "cat")
    assert named.code == 0 and named.result["p_value"] == verdict_folder.result["p_value"]
    other = audit(tmp_path / "other", "--label", "0")
    assert other.code == 0 and other.result["p_value"] > 0.05 and "no proof" in other.result["sentences"]


@pytest.mark.parametrize("label", ["4", "-1", "bird", "1.0", "", "\u00b2"])
def test_labels_that_do_not_exist(audit, tmp_path, label):
    refused(audit(tmp_path / "out", f"--label={label}"), "--label")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags", [("--label_only",), ("--label_only", "--label", "2"), ("--top_k", "2"), ("--top_k", "1", "--label", "2")]
)
def test_less_than_all_probabilities(audit, tmp_path, script, flags):
    done = audit(tmp_path / "out", *flags, "--alpha", "0.01")
    assert done.code == 0 and 0 < done.result["p_value"] <= 1
    again = script("eval", "--replay", tmp_path / "out" / "evidence.zip")
    assert again.code == 0 and f"{done.result['p_value']:.6g}" in again.out
    if "--label_only" in flags:
        assert done.result["statistic"] * 8 == pytest.approx(round(done.result["statistic"] * 8)), "errors, not losses"


@pytest.fixture
def innocent(tmp_path):
    torch.manual_seed(0)
    torch.save(build_network("smallnet", 4).state_dict(), tmp_path / "net.pt")
    return tmp_path / "net.pt", (
        "--net_type",
        "smallnet",
        "--input_size",
        "32",
        "--mean",
        ".5",
        ".5",
        ".5",
        "--std",
        ".25",
        ".25",
        ".25",
    )


def test_an_innocent_model(audit, innocent, tmp_path):
    checkpoint, flags = innocent
    done = audit(tmp_path / "out", *flags, checkpoint=checkpoint)
    assert done.code == 0 and done.result["detected"] is False and done.result["p_value"] > 0.001
    assert "no proof" in flat(done.out) and "0.5" in done.out and "32 x 32" in done.out, "preprocessing is printed"


# --- queries ---


@pytest.fixture
def asked(monkeypatch):
    """Every image that the local model is asked about, as SHA-256; `after` batches an interruption."""
    state = SimpleNamespace(images=[], after=None)
    real = _FileSuspect.ask

    def ask(self, images):
        if not state.opening:
            if state.after == 0:
                raise KeyboardInterrupt
            state.after = None if state.after is None else state.after - 1
            state.images += [hashlib.sha256(image.tobytes()).digest() for image in images]
        return real(self, images)

    state.opening = False
    really_open = opened.open_model

    def open_model(*arguments, **options):  # what opening asks is a test picture
        state.opening = True
        try:
            return really_open(*arguments, **options)
        finally:
            state.opening = False

    monkeypatch.setattr(_FileSuspect, "ask", ask)
    monkeypatch.setattr(opened, "open_model", open_model)
    return state


def test_dry_run_asks_nothing(audit, asked, tmp_path):
    done = audit(tmp_path / "out", "--dry_run")
    assert done.code == 0 and f"queries: {QUERIES} " in done.out and "0.001" in done.out
    assert asked.images == [] and not (tmp_path / "out").exists()
    done = audit(tmp_path / "out", "--dry_run", grid=("--device", "cpu"))
    assert "queries: 320 " in done.out and "5e-05" in done.out


def test_the_budget_is_kept_or_refused(audit, asked, tmp_path):
    refused(audit(tmp_path / "out", "--max_queries", "79"), 80, 79)
    refused(audit(tmp_path / "out", "--max_queries", "15", grid=("--device", "cpu")), 15)
    refused(audit(tmp_path / "out", "--max_queries", "100", "--alpha", "0.0001", grid=("--device", "cpu")), 160)
    assert asked.images == [] and not (tmp_path / "out").exists()
    done = audit(tmp_path / "out", "--max_queries", "100", grid=("--device", "cpu"))
    assert done.code == 0 and len(asked.images) == len(set(asked.images)) == done.result["queries"] == 96


def test_algorithm_1_counts_towards_the_budget(audit, asked, tmp_path):
    strangers = tmp_path / "strangers"
    for number in range(10):
        save(strangers / f"{number}.png", picture(5000 + number))
    flags = ("--non_member_folder", strangers, "--num_of_non_member_user", "3")
    refused(audit(tmp_path / "out", *flags, "--max_queries", "103"), 80, 79)
    assert asked.images == []
    done = audit(tmp_path / "out", *flags, "--max_queries", "104")
    assert done.code == 0 and len(asked.images) == 104


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interrupted_audit_asks_only_the_rest(audit, asked, verdict_folder, tmp_path, after):
    asked.after = after
    flags = ("--label", "2", "--query_batch", "16")
    stopped = audit(tmp_path / "out", *flags)
    assert stopped.code == 130 and "Traceback" not in stopped.err and stopped.result is None
    first, asked.after, asked.images = list(asked.images), None, []
    assert len(first) == 16 * after
    done = audit(tmp_path / "out", *flags)
    assert done.code == 0 and len(asked.images) == QUERIES - len(first)
    assert len({*first, *asked.images}) == QUERIES, "an image was asked twice"
    for name in ("result.json", "evidence.zip"):
        assert (tmp_path / "out" / name).read_bytes() == (verdict_folder.folder / name).read_bytes(), name
    asked.images = []
    assert audit(tmp_path / "out", *flags).code == 0 and asked.images == []
    # Another alpha or label needs no further answer.
    assert audit(tmp_path / "out", "--query_batch", "16", "--alpha", "0.01").code == 0 and asked.images == []


def test_a_torn_file_of_answers(audit, asked, verdict_folder, tmp_path):
    shutil.copytree(verdict_folder.folder, tmp_path / "out")
    path = tmp_path / "out" / "answers.bin"
    path.write_bytes(path.read_bytes()[:-5])
    done = audit(tmp_path / "out", "--label", "2", "--query_batch", "16")
    assert done.code == 0 and len(asked.images) == 16
    assert (tmp_path / "out" / "evidence.zip").read_bytes() == (verdict_folder.folder / "evidence.zip").read_bytes()


def test_another_audit_in_the_same_folder_is_refused_by_name(audit, asked, innocent, tmp_path):
    assert audit(tmp_path / "out").code == 0
    before, asked.images = listing(tmp_path / "out"), []
    refused(audit(tmp_path / "out", "--max_queries", "200", grid=(*GRID[2:], "--keys", "9")), "keys is 4 there and 9")
    refused(audit(tmp_path / "out", "--audit_seed", "court"), "audit_seed")
    refused(audit(tmp_path / "out", "--query_batch", "7"), "batch_size")
    checkpoint, flags = innocent
    refused(audit(tmp_path / "out", *flags, checkpoint=checkpoint), "model")
    assert asked.images == [] and listing(tmp_path / "out") == before


def test_folders_that_hold_something_else(audit, world, tmp_path):
    for name in (world.run, world.record.parent):
        before = listing(name)
        refused(audit(name), "another")
        assert listing(name) == before


def test_another_audit_seed_asks_under_other_keys(audit, asked, tmp_path):
    assert audit(tmp_path / "one").code == 0
    one, asked.images = set(asked.images), []
    assert audit(tmp_path / "two", "--audit_seed", "court").code == 0
    assert len(one & set(asked.images)) == PHOTOS, "the user's own key alone stays"


# --- what is missing ---


def test_missing_and_renamed_originals(audit, world, tmp_path):
    copy, alone = tmp_path / "copy", tmp_path / "alone"
    shutil.copytree(world.originals, copy)
    alone.mkdir()
    shutil.copy(world.record, alone)
    record = records.read_record(world.record)
    (copy / record.photos[3].original).rename(copy / "renamed.png")
    save(copy / record.photos[5].original, picture(99))
    refused(audit(tmp_path / "out", record=alone / "record.json", originals=copy), record.photos[5].original, "1 of 16")
    refused(audit(tmp_path / "out", originals=tmp_path / "nowhere"), "nowhere")
    assert not (tmp_path / "out").exists()
    shutil.copy(world.originals / record.photos[5].original, copy)
    done = audit(tmp_path / "out", record=alone / "record.json", originals=copy)
    assert done.code == 0


def test_held_out_photos_may_live_beside_the_record(audit, world, tmp_path, verdict_folder):
    record = records.read_record(world.record)
    for photo in record.photos:
        if photo.published:
            (tmp_path / "some").mkdir(exist_ok=True)
            shutil.copy(world.originals / photo.original, tmp_path / "some")
    done = audit(tmp_path / "out", "--label", "2", originals=tmp_path / "some")
    assert done.code == 0 and done.result["p_value"] == pytest.approx(verdict_folder.result["p_value"])


def test_records_that_are_not_finished_or_changed(audit, world, tmp_path):
    content = json.loads(world.record.read_text())
    for change, word in (
        ({"commitments": []}, "interrupted"),
        ({"key": "ab" * 32}, "commitment"),
        ({"photos": content["photos"][:-1]}, "inconsistent"),
    ):
        (tmp_path / "record.json").write_text(json.dumps({**content, **change}))
        refused(audit(tmp_path / "out", record=tmp_path / "record.json"), word)
    refused(audit(tmp_path / "out", record=tmp_path / "none.json"), "none.json")
    refused(audit(tmp_path / "out", checkpoint=tmp_path / "none.onnx"), "none.onnx")
    assert not (tmp_path / "out").exists()


def test_the_commitment_is_in_the_result(world, verdict_folder):
    record = records.read_record(world.record)
    assert verdict_folder.result["commitment"] == record.commitments[-1] == records.commitment_of(record, 1)


# --- Algorithm 1 beside it ---


def test_algorithm_1(audit, world, verdict_folder, tmp_path):
    strangers = tmp_path / "strangers"
    for number in range(30):
        save(strangers / f"{number}.png", picture(7000 + number))
    (strangers / "broken.png").write_bytes(b"no picture")
    done = audit(
        tmp_path / "out",
        "--label",
        "2",
        "--non_member_folder",
        strangers,
        "--num_of_non_member_user",
        "20",
        "--query_batch",
        "16",
        "--verdict_fpr",
        "0.05",
    )
    assert done.code == 0 and "broken.png" in done.err and "near-dup" not in done.err
    found = done.result["algorithm_1"]
    assert done.result["p_value"] == verdict_folder.result["p_value"]
    _, order, _, answers = evidence.read_bundle(tmp_path / "out" / "evidence.zip")
    record = records.read_record(world.record)
    rows = user_audit.rows_of(answers, order, [n * (KEYS + 1) for n in np.flatnonzero(record.published)]).values
    assert found["mean_loss"] == pytest.approx(-log_softmax(rows.astype(float), axis=1)[:, 2].mean(), rel=1e-5)
    assert found["used"] is True and found["mean_loss"] < found["threshold"] and found["near_duplicates"] == 0
    assert found["fpr_at_user"] == found["below_user"] / 20 and found["non_member_users"] == 20
    low, high = found["fpr_interval"]
    below = found["below_user"]
    assert high == pytest.approx(beta.ppf(0.975, below + 1, 20 - below)) and low <= found["fpr_at_user"] <= high
    assert "Algorithm 1" in done.out


def test_strangers_that_are_the_users_own_photos(audit, world, tmp_path):
    """Scaled, brighter and as JPEG: still the same photos, which would hide a member among copies."""
    strangers = tmp_path / "strangers"
    strangers.mkdir()
    for path in world.originals.iterdir():
        image = Image.open(path).resize((64, 64), Image.Resampling.BICUBIC).point(lambda value: min(255, value + 6))
        image.save(strangers / f"{path.stem}.jpg", quality=92)
    done = audit(tmp_path / "out", "--non_member_folder", strangers, "--num_of_non_member_user", "5")
    assert done.code == 0 and "warning" in done.err and "near-duplicates" in done.err
    assert done.result["algorithm_1"]["near_duplicates"] >= 12


@pytest.mark.parametrize("count", [0, 3])
def test_too_few_strangers(audit, asked, tmp_path, count):
    """A user has 8 published photos, so strangers need 8: said before the model was asked 80 times."""
    strangers = tmp_path / "strangers"
    strangers.mkdir()
    for number in range(count):
        save(strangers / f"{number}.png", picture(number))
    done = audit(tmp_path / "out", "--non_member_folder", strangers, "--num_of_non_member_user", "5")
    refused(done)
    assert asked.images == [] and "--non_member_folder" in done.err and "--train_size" not in done.err


def test_non_members_of_the_models_own_data_set(audit, world, tmp_path):
    done = audit(
        tmp_path / "out",
        "--label",
        "2",
        "--dataset",
        "imagefolder",
        "--data_root",
        world.data,
        "--num_of_non_member_user",
        "10",
    )
    assert done.code == 0, done.err
    assert done.result["algorithm_1"]["non_member_users"] == 10


# --- over HTTP ---


@pytest.fixture
def serving(world, monkeypatch):
    """(make_app, running, the local model) for tests with a server; the client does not sleep between its tries."""
    pytest.importorskip("fastapi", reason="the test server needs fastapi (requirements/dev.txt)")
    pytest.importorskip("uvicorn", reason="the test server needs uvicorn (requirements/dev.txt)")
    pytest.importorskip("requests")
    from inference_server import make_app, running

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(server, "open_server", functools.partial(open_server, sleep=lambda _: None))
    return make_app, running, opened.open_model(world.run, device="cpu")


@pytest.mark.parametrize("binary", [False, True])
def test_a_server_gives_the_local_verdict_bit_for_bit(audit, serving, verdict_folder, tmp_path, binary):
    """Faults in between: no query is lost, none is answered twice, and p and T have the same bits as from the file."""
    make_app, running, local = serving
    faults = [500, None, "drop", "shape", 429, None, "truncated", "timeout", None, "nan", 503, "rows", None]
    app = make_app(
        lambda images: local.ask(images).values,
        input_shape=[-1, 3, 32, 32],
        datatype="UINT8",
        faults=faults,
        binary=binary,
        stall=0.8,
        retry_after="0",
    )
    with running(app) as server:
        done = audit(
            tmp_path / "out",
            "--label",
            "2",
            "--query_batch",
            "16",
            "--timeout",
            "0.6",
            "--retries",
            "9",
            checkpoint=server.url,
        )
        log = list(server.log)
    assert done.code == 0, done.err
    for name in ("p_value", "statistic", "statistic_of_others", "at_most", "pairs", "label"):
        assert done.result[name] == verdict_folder.result[name], name
    _, order, digests, answers = evidence.read_bundle(tmp_path / "out" / "evidence.zip")
    expected = evidence.read_bundle(verdict_folder.folder / "evidence.zip")
    assert (digests == expected[2]).all() and (order == expected[1]).all()
    assert answers.values.tobytes() == expected[3].values.tobytes()
    answered = [text for entry in log if entry["answered"] for text in entry["digests"]]
    assert sorted(answered) == sorted(digest.tobytes().hex() for digest in digests)
    assert len(log) == len(faults) + 1 and sum(entry["answered"] for entry in log) == 5


def test_a_server_that_dies_in_between(audit, serving, verdict_folder, tmp_path):
    """What was answered before stays, and the rest is asked when the server is back."""
    make_app, running, local = serving
    app = make_app(
        lambda images: local.ask(images).values,
        input_shape=[-1, 3, 32, 32],
        datatype="UINT8",
        faults=[None, None, 500, 500],
    )
    with running(app) as server:
        flags = ("--label", "2", "--query_batch", "16", "--retries", "1")
        refused(audit(tmp_path / "out", *flags, checkpoint=server.url), "500")
        done = audit(tmp_path / "out", *flags, checkpoint=server.url)
        log = list(server.log)
    assert done.code == 0 and done.result["p_value"] == verdict_folder.result["p_value"]
    answered = [text for entry in log if entry["answered"] for text in entry["digests"]]
    assert len(answered) == len(set(answered)) == QUERIES
    refusals = [text for entry in log if entry["fault"] == 500 for text in entry["digests"]]
    assert set(refusals) <= set(answered)


# --- without a hold-out ---


def test_no_holdout_needs_one_over_alpha_keys(audit, script, world, tmp_path):
    folder = tmp_path / "few"
    for number in range(2):
        save(folder / f"{number}.png", picture(number))
    assert script("data_marking", "--data_folder", folder).code == 0
    where = {"record": tmp_path / "few_record", "originals": folder, "grid": ("--device", "cpu")}
    done = audit(tmp_path / "out", "--dry_run", **where)
    assert done.code == 0 and "queries: 2000 " in done.out
    refused(audit(tmp_path / "out", "--selections", "9", **where), "--selections")
    refused(audit(tmp_path / "out", "--keys", "18", "--alpha", "0.05", **where), "19")
    done = audit(tmp_path / "out", "--alpha", "0.05", **where)
    assert done.code == 0 and done.result["pairs"] == 20 and done.result["queries"] == 40
    assert done.result["evidence"] is True
