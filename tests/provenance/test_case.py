"""eval.py --record from end to end: the verdict, its queries, and what is missing."""

import hashlib
import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import log_softmax

from provenance import evidence
from provenance import record as records
from provenance.photos import read_photo
from tests.provenance.parts import (
    COMMITTED,
    KEYS,
    PHOTOS,
    QUERIES,
    SELECTIONS,
    contents,
    flat,
    refused,
    save,
    tree,
    wavy_picture,
)
from utils import mark_images

# --- the verdict ---


def test_the_user_is_found(world, verdict_folder):
    result = verdict_folder.result
    assert result["p_value"] <= 0.02 and result["queries"] == QUERIES and result["pairs"] == 5000
    assert result["p_value"] == result["at_most"] / 5000 and result["detected"] == (result["p_value"] <= 0.0005)
    assert result["alpha"] == 0.0005, "alpha / 2 for the first judgement"
    assert (result["published"], result["photos"], result["label"]) == (8, 16, 2)
    assert result["evidence"] is False, "the record's secret came from --seed"
    assert "this is no evidence" in result["weaknesses"][0] and "! the secret" in verdict_folder.out
    assert result["sentences"] in flat(verdict_folder.out) and f"{QUERIES}" in verdict_folder.out
    assert {path.name for path in verdict_folder.folder.iterdir()} >= {"result.json", "evidence.zip", "grid.png"}
    with Image.open(verdict_folder.folder / "grid.png") as plot:
        plot.load()
    assert tree(world.originals) == world.before


def test_p_from_the_stored_answers_alone(world, verdict_folder):
    """Everything again with other code: which image was asked when, T of each pair, p."""
    with zipfile.ZipFile(verdict_folder.folder / "evidence.zip") as archive:
        document = json.loads(archive.read("bundle.json"))
        with archive.open("answers.npz") as file:
            arrays = dict(np.load(file))
    record = records.read_record(world.record)
    keys = [key for (key,) in record.keys(KEYS)]
    loss = np.full((PHOTOS, KEYS + 1), np.nan)
    marking = record.settings.marking()
    for place, query in enumerate(arrays["order"]):
        photo, key = divmod(int(query), KEYS + 1)
        pixels = torch.from_numpy(read_photo(world.originals / record.photos[photo].original)).permute(2, 0, 1)[None]
        sent = mark_images(pixels, keys[key], [0], [photo], marking)[0].numpy()
        assert hashlib.sha256(sent.tobytes()).digest() == arrays["digests"][place].tobytes()
        loss[photo, key] = np.sqrt(-log_softmax(arrays["values"][place].astype(float))[2])
    selections = record.selections(SELECTIONS)
    grid = np.stack([loss[chosen].mean(axis=0) for chosen in selections])
    assert ((grid <= grid[0, 0] + 1e-9).mean()) == pytest.approx(verdict_folder.result["p_value"])
    assert verdict_folder.result["statistic"] == pytest.approx(grid[0, 0])
    shown = json.dumps(document)
    assert record.batches[0].secret not in shown and record.batches[0].secrets[0].hex() not in shown
    assert not any(key.hex() in shown for key in keys) and not any(photo.original in shown for photo in record.photos)
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
    assert again.pop("right") is True and again.pop("weaknesses")[1:] == verdict_folder.result["weaknesses"]
    assert all(again[name] == verdict_folder.result[name] for name in again), "the replayed result differs"
    done = script("eval", "--replay", moved, "--record", world.record, "--originals", world.originals)
    assert done.code == 0 and f"{QUERIES} of {QUERIES}" in done.out


def test_replay_counts_images_that_were_not_sent(world, verdict_folder, script, tmp_path):
    document, order, digests, answers, _ = evidence.read_bundle(verdict_folder.folder / "evidence.zip")
    document.pop("format")
    digests = digests.copy()
    digests[7] ^= 1
    evidence.write_bundle(tmp_path / "e.zip", document, order, digests, answers)
    done = script("eval", "--replay", tmp_path / "e.zip", "--record", world.record, "--originals", world.originals)
    assert f"{QUERIES - 1} of {QUERIES}" in done.out and f"{QUERIES} of {QUERIES}" not in done.out


def test_replay_with_images_that_were_never_sent_fails(world, verdict_folder, script, tmp_path):
    document, order, digests, answers, _ = evidence.read_bundle(verdict_folder.folder / "evidence.zip")
    document.pop("format")
    evidence.write_bundle(tmp_path / "e.zip", document, order, digests ^ 1, answers)
    done = script("eval", "--replay", tmp_path / "e.zip", "--record", world.record, "--originals", world.originals)
    assert f"0 of {QUERIES}" in done.out
    assert done.code != 0


def test_replay_with_another_record(world, verdict_folder, script, tmp_path):
    save(tmp_path / "other" / "a.png", wavy_picture(3))
    assert script("data_marking", "--data_folder", tmp_path / "other", "--beacon", "none").code == 0
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
    """Another label than the committed one is looked at, too, and pays for the choice."""
    flags = {"grid": ("--device", "cpu", "--query_batch", "16")}
    auto = audit(tmp_path / "auto", "--label", "auto", **flags)
    assert auto.code == 0 and auto.result["label"] == 2
    assert auto.result["statistic"] == verdict_folder.result["statistic"] and auto.result["p_value"] <= 0.02
    named = audit(tmp_path / "named", "--label", "cat", **flags)
    assert named.code == 0 and named.result["p_value"] == verdict_folder.result["p_value"]
    other = audit(tmp_path / "other", "--label", "0", **flags)
    assert other.code == 0 and other.result["p_value"] > 0.05 and "no proof" in other.result["sentences"]
    for number, done in enumerate((auto, named, other), 1):
        assert done.result["alpha"] == 0.5 / 2**number / (2 * 8 * 2 * 5), "five labels were open"
        assert f"instead of {COMMITTED[1]}" in flat(done.out)


@pytest.mark.parametrize("label", ["4", "-1", "bird", "1.0", "", "\u00b2"])
def test_labels_that_do_not_exist(audit, tmp_path, label):
    refused(audit(tmp_path / "out", f"--label={label}"), "label")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ("--label_only",),
        ("--label_only", "--label", "auto", "--selections", "99999"),
        ("--top_k", "2"),
        ("--top_k", "1", "--label", "auto", "--selections", "99999"),
    ],
)
def test_less_than_all_probabilities(audit, tmp_path, script, flags):
    done = audit(tmp_path / "out", *flags, grid=("--device", "cpu"))
    assert done.code == 0 and 0 < done.result["p_value"] <= 1
    again = script("eval", "--replay", tmp_path / "out" / "evidence.zip")
    assert again.code == 0 and f"{done.result['p_value']:.6g}" in again.out
    if "--label_only" in flags:
        assert done.result["statistic"] * 8 == pytest.approx(round(done.result["statistic"] * 8)), "errors, not losses"


def test_an_innocent_model(audit, innocent, tmp_path):
    checkpoint, flags = innocent
    done = audit(tmp_path / "out", *flags, checkpoint=checkpoint)
    assert done.code == 0 and done.result["detected"] is False and done.result["p_value"] > 0.0005
    assert "no proof" in flat(done.out) and "0.5" in done.out and "32 x 32" in done.out, "preprocessing is printed"


# --- queries ---


def test_dry_run_asks_nothing(audit, asked, record, tmp_path):
    done = audit(tmp_path / "out", "--dry_run")
    assert done.code == 0 and f"queries: {QUERIES} " in done.out and "0.0002" in done.out and "0.0005" in done.out
    assert asked.images == [] and not (tmp_path / "out").exists()
    assert not (record.parent / "judgements.json").exists(), "nothing was judged"
    done = audit(tmp_path / "out", "--dry_run", "--keys", "19", grid=("--device", "cpu"))
    assert "queries: 320 " in done.out and "5e-05" in done.out and "19 keys instead of 4" in done.out


def test_the_budget_is_kept_or_refused(audit, asked, tmp_path):
    refused(audit(tmp_path / "out", "--max_queries", "79"), "2 keys instead of 4")
    refused(audit(tmp_path / "out", "--max_queries", "79", "--keys", "4"), 80, 79)
    refused(audit(tmp_path / "out", "--max_queries", "15", grid=("--device", "cpu")), 15)
    refused(audit(tmp_path / "out", "--max_queries", "100", "--alpha", "0.0003", grid=("--device", "cpu")), 0.00015)
    assert asked.images == [] and not (tmp_path / "out").exists()
    done = audit(tmp_path / "out", "--max_queries", "79", grid=("--device", "cpu"))
    assert done.code == 0 and len(asked.images) == len(set(asked.images)) == done.result["queries"] == 48
    asked.images = []
    done = audit(tmp_path / "enough", "--max_queries", "1000")
    assert done.code == 0 and len(asked.images) == QUERIES, "what was committed, and no more"


def test_algorithm_1_counts_towards_the_budget(audit, asked, tmp_path):
    strangers = tmp_path / "strangers"
    for number in range(10):
        save(strangers / f"{number}.png", wavy_picture(5000 + number))
    flags = ("--non_member_folder", strangers, "--num_of_non_member_user", "3")
    refused(audit(tmp_path / "out", *flags, "--max_queries", "103", "--keys", "4"), 80, 79)
    refused(audit(tmp_path / "out", *flags, "--max_queries", "24"), 24)
    assert asked.images == []
    done = audit(tmp_path / "out", *flags, "--max_queries", "104")
    assert done.code == 0 and len(asked.images) == 104


def go_on(verdict_folder, record, out):
    """An audit folder and a log in which the plan of the finished audit stands, and no answer."""
    out.mkdir()
    shutil.copy(verdict_folder.folder / "plan.json", out)
    shutil.copy(verdict_folder.log, record.parent)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interrupted_audit_asks_only_the_rest(audit, asked, record, verdict_folder, tmp_path, after):
    go_on(verdict_folder, record, tmp_path / "out")
    asked.after = after
    flags = ("--query_batch", "16")
    stopped = audit(tmp_path / "out", *flags)
    assert stopped.code == 130 and "Traceback" not in stopped.err and stopped.result is None
    first, asked.after, asked.images = list(asked.images), None, []
    assert len(first) == 16 * after
    done = audit(tmp_path / "out", *flags)
    assert done.code == 0 and len(asked.images) == QUERIES - len(first)
    assert len({*first, *asked.images}) == QUERIES, "an image was asked twice"
    for name in ("result.json", "evidence.zip", "plan.json"):
        assert (tmp_path / "out" / name).read_bytes() == (verdict_folder.folder / name).read_bytes(), name
    asked.images = []
    assert audit(tmp_path / "out", *flags).code == 0 and asked.images == []
    # Another alpha or label needs no further answer.
    done = audit(tmp_path / "out", "--query_batch", "16", "--alpha", "0.01", grid=("--device", "cpu"))
    assert done.code == 0 and asked.images == [] and done.result["alpha"] == 0.01 / 4
    kept = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"result-judgement-1.json", "evidence-judgement-1.zip", "grid-judgement-1.png"} <= kept


@pytest.mark.parametrize("after", [0, 2])
def test_an_interrupted_audit_is_one_judgement(audit, asked, record, verdict_folder, tmp_path, after):
    """Nobody pays alpha for a model that gave no answer yet."""
    log, asked.after = record.parent / "judgements.json", after
    assert audit(tmp_path / "out", "--query_batch", "16").code == 130
    plan = (tmp_path / "out" / "plan.json").read_bytes()
    (entry,) = json.loads(log.read_text())
    assert entry["number"] == 1 and entry["p_value"] is None, "the plan comes before the first query"
    asked.after = None
    done = audit(tmp_path / "out", "--query_batch", "16")
    assert done.code == 0 and done.result["alpha"] == 0.0005
    assert (tmp_path / "out" / "plan.json").read_bytes() == plan
    assert json.loads(log.read_text()) == [{**entry, "p_value": done.result["p_value"]}]
    assert all(done.result[name] == verdict_folder.result[name] for name in ("p_value", "statistic", "sentences"))


def test_a_torn_file_of_answers(audit, asked, record, verdict_folder, tmp_path):
    shutil.copytree(verdict_folder.folder, tmp_path / "out")
    shutil.copy(verdict_folder.log, record.parent)
    path = tmp_path / "out" / "answers.bin"
    path.write_bytes(path.read_bytes()[:-5])
    done = audit(tmp_path / "out", "--query_batch", "16")
    assert done.code == 0 and len(asked.images) == 16
    assert (tmp_path / "out" / "evidence.zip").read_bytes() == (verdict_folder.folder / "evidence.zip").read_bytes()


def test_another_audit_in_the_same_folder_is_refused_by_name(audit, asked, innocent, record, tmp_path):
    assert audit(tmp_path / "out").code == 0
    before, asked.images = (tree(tmp_path / "out"), contents(record.parent)), []
    free = ("--device", "cpu")
    refused(audit(tmp_path / "out", "--keys", "9", grid=free), "keys is 4 there and 9")
    refused(audit(tmp_path / "out", "--audit_seed", "court"), "audit_seed")
    checkpoint, flags = innocent
    refused(audit(tmp_path / "out", *flags, checkpoint=checkpoint), "model")
    assert asked.images == [] and (tree(tmp_path / "out"), contents(record.parent)) == before


def test_folders_that_hold_something_else(audit, world, record, tmp_path):
    for name in (world.run, record.parent):
        before = tree(name)
        refused(audit(name), "another")
        assert tree(name) == before


def test_another_audit_seed_asks_under_other_keys(audit, asked, tmp_path):
    assert audit(tmp_path / "one").code == 0
    one, asked.images = set(asked.images), []
    assert audit(tmp_path / "two", "--audit_seed", "court").code == 0
    assert len(one & set(asked.images)) == PHOTOS, "the user's own key alone stays"


# --- what is missing ---


def test_missing_and_renamed_originals(audit, world, tmp_path):
    """A renamed photo is found by its content; without one that is gone the others are audited, and the verdict says
    what that rests on; without many there is none."""
    copy, alone = tmp_path / "copy", tmp_path / "alone"
    shutil.copytree(world.originals, copy)
    alone.mkdir()
    shutil.copy(world.record, alone)
    record = records.read_record(world.record)
    (copy / record.photos[3].original).rename(copy / "renamed.png")
    save(copy / record.photos[5].original, wavy_picture(99))
    where = {"record": alone / "record.json", "originals": copy}
    done = audit(tmp_path / "one", **where)
    assert done.code == 0 and done.result["photos"] == 15 and done.result["queries"] == 75
    assert any("1 photos were left out" in sentence for sentence in done.result["weaknesses"])
    refused(audit(tmp_path / "out", originals=tmp_path / "nowhere"), "nowhere")
    for number in (6, 7, 8, 9, 10, 11, 12, 13):
        (copy / record.photos[number].original).rename(tmp_path / record.photos[number].original)
    refused(audit(tmp_path / "out", **where), record.photos[5].original, "9 of 16")
    assert not (tmp_path / "out").exists()
    for number in (5, 6, 7, 8, 9, 10, 11, 12, 13):
        shutil.copy(world.originals / record.photos[number].original, copy)
    done = audit(tmp_path / "out", **where)
    assert done.code == 0 and done.result["photos"] == 16
    assert not any("left out" in sentence for sentence in done.result["weaknesses"])
    # The answers about fifteen photos are not those about sixteen.
    refused(audit(tmp_path / "one", **where), "left_out")


def test_held_out_photos_may_live_beside_the_record(audit, world, tmp_path, verdict_folder):
    record = records.read_record(world.record)
    for photo in record.photos:
        if photo.published:
            (tmp_path / "some").mkdir(exist_ok=True)
            shutil.copy(world.originals / photo.original, tmp_path / "some")
    done = audit(tmp_path / "out", originals=tmp_path / "some")
    assert done.code == 0 and done.result["p_value"] == pytest.approx(verdict_folder.result["p_value"])


def test_records_that_are_not_finished_or_changed(audit, world, tmp_path):
    content = json.loads(world.record.read_text())
    batch = content["batches"][0]
    (tmp_path / "other").mkdir()
    for change, word in (
        ({"batches": [{**batch, "finished": False}]}, "interrupted"),
        ({"batches": [{**batch, "secret": "ab" * 32}]}, "commitment"),
        ({"batches": [{**batch, "commit": {**batch["commit"], "created": "later"}}]}, "its secret draws"),
        ({"photos": content["photos"][:-1]}, "inconsistent"),
    ):
        path = tmp_path / "other" / "record.json"
        path.write_text(json.dumps({**content, **change}))
        refused(audit(tmp_path / "out", record=path), word)
    refused(audit(tmp_path / "out", record=tmp_path / "none.json"), "none.json")
    refused(audit(tmp_path / "out", checkpoint=tmp_path / "none.onnx"), "none.onnx")
    assert not (tmp_path / "out").exists()


def test_the_commitment_is_in_the_result(world, verdict_folder):
    record = records.read_record(world.record)
    assert verdict_folder.result["commitment"] == record.commitments[-1] == record.batches[0].commit.digest
    assert verdict_folder.result["commitment"] in (world.record.parent / "commitment.txt").read_text()
