"""Uniform noise has two values, as in the published artifact; what was made when it was continuous stays as it was."""

import hashlib
import json

import numpy as np
import torch

import utils
from experiment.folder import in_todays_words
from kit import files
from kit.files import canonical_digest
from paper import tables
from provenance import legacy, protect
from provenance import record as records
from provenance.photos import encode_photo, read_photo
from tests.parts import ROOT, SMALL

EARLY = ROOT / "tests" / "provenance" / "early"
UNIFORM = (*SMALL, "--epoch", 1, "--noise_injection_type")


def losses_of(folder):
    return files.read_arrays(folder / "losses.npz")["target_cross_entropy"]


def as_it_was_stored(run):
    """Rewrite a run with continuous noise as a version wrote it that called this "uniform"."""

    def old(settings):
        assert settings["noise_injection_type"] == "uniform_continuous" and "uniform_noise" not in settings
        return {**settings, "noise_injection_type": "uniform"}

    tensors, record = files.load_model(run / "model.safetensors")
    files.save_model(run / "model.safetensors", tensors, {**record, "settings": old(record["settings"])})
    for name in ("config.json", "result.json"):
        content = json.loads((run / name).read_text())
        inside = content if name == "config.json" else content["settings"]
        inside["training"] = old(inside["training"])
        (run / name).write_text(json.dumps(content))


def test_an_earlier_run_is_audited_with_the_noise_that_it_was_trained_on(tmp_path, script):
    run = tmp_path / "run"
    assert script("train", *UNIFORM, "uniform_continuous", "--out", run).code == 0
    as_it_was_stored(run)
    done = script("eval", "--checkpoint", run, "--out", tmp_path / "eval", "--device", "cpu")
    assert done.code == 0, done.err
    assert np.array_equal(losses_of(tmp_path / "eval"), losses_of(run))
    # The same training under today's name is the same run; under the old name it is another one.
    assert script("train", *UNIFORM, "uniform_continuous", "--out", run).code == 0
    refused = script("train", *UNIFORM, "uniform", "--out", run)
    assert refused.code == 2 and "'uniform_continuous' there and 'uniform' here" in refused.err
    assert set(tables.collect(tmp_path)["noise_injection_type"]) == {"uniform_continuous"}


def test_a_run_with_todays_uniform_noise_is_audited_as_such(tmp_path, script):
    run = tmp_path / "run"
    assert script("train", *UNIFORM, "uniform", "--out", run).code == 0
    marks = files.read_arrays(run / "marks.npz")
    from dataset import load_dataset

    originals = load_dataset("photos").images[marks["samples"][0]]
    marking = utils.Marking(noise_injection_type="uniform")
    expected = utils.mark_images(originals, marks["key"].tobytes(), [0] * 4, range(4), marking)
    assert torch.equal(torch.from_numpy(marks["images"][0]), expected)
    done = script("eval", "--checkpoint", run, "--out", tmp_path / "eval", "--device", "cpu")
    assert done.code == 0, done.err
    assert np.array_equal(losses_of(tmp_path / "eval"), losses_of(run))
    assert set(tables.collect(tmp_path)["noise_injection_type"]) == {"uniform"}


def test_stored_words_of_other_noise_stay():
    for settings in ({"noise_injection_type": "perlin"}, {}, None, {"noise_injection_type": "uniform_continuous"}):
        assert in_todays_words(settings) == settings


def test_a_record_of_format_1_keeps_its_continuous_noise(tmp_path):
    """Its marks are verified, and the audit marks with the same noise."""
    content = json.loads((EARLY / "photos_record" / "record.json").read_text())
    content["settings"]["noise_injection_type"] = "uniform"
    key, marking = bytes.fromhex(content["key"]), utils.Marking(noise_injection_type="uniform_continuous")
    places = [EARLY / "photos", EARLY / "later"]
    for photo in content["photos"]:
        if photo["published"]:
            original = read_photo(places[photo["batch"]] / photo["original"])
            data = encode_photo(protect.mark_photo(original, key, photo["number"], marking), "png", 95)
            (tmp_path / photo["marked"]).write_bytes(data)
            photo["marked_sha256"] = hashlib.sha256(data).hexdigest()
    changed = legacy.LegacyRecord.model_validate(content)
    content["commitments"] = [canonical_digest(legacy.public_part(changed, number)) for number in (1, 2)]
    (tmp_path / "record.json").write_text(json.dumps(content))
    record = records.read_record(tmp_path / "record.json")
    rows = protect.verify(record, [places[photo.batch] / photo.original for photo in record.photos], [tmp_path] * 2)
    assert len(rows) == 7 and [row["problem"] for row in rows] == [None] * 7
    assert record.settings.noise_injection_type == "uniform"  # the commitment holds what was stored


def test_a_record_of_today_says_what_it_means(tmp_path, script):
    for kind in ("uniform", "uniform_continuous"):
        folder = tmp_path / kind
        folder.mkdir()
        for name in ("0.png", "1.png", "2.png"):
            (folder / name).write_bytes((EARLY / "photos" / name).read_bytes())
        flags = ("--img_blending_ratio", 1, "--noise_injection_type", kind, "--beacon", "none")
        assert script("data_marking", "--data_folder", folder, *flags).code == 0
        record = tmp_path / f"{kind}_record" / "record.json"
        assert script("data_marking", "--verify", record).code == 0
        for name in ("0.png", "1.png", "2.png"):
            before, after = (read_photo(place / name).astype(int) for place in (folder, tmp_path / f"{kind}_marked"))
            inside = (before >= 8) & (before <= 247)
            moved = set(np.unique(np.abs(after - before)[inside]).tolist())
            assert moved == {8} if kind == "uniform" else len(moved) > 4
