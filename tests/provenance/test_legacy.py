"""Records and evidence of versions before 0.2: still read, verified, audited and replayed, and they say what they are.

The files in early/ were made by such a version, on ten photos and four that were added later.
"""

import json
import shutil
from pathlib import Path

import pytest

from provenance import evidence, legacy
from provenance import record as records
from tests.parts import user_error
from tests.provenance.parts import contents, flat, refused, tree

EARLY = Path(__file__).parent / "early"
INPUT = ("--input_size", "8", "--mean", ".5", ".5", ".5", "--std", ".25", ".25", ".25")
MODEL = ("--checkpoint", EARLY / "model.onnx", *INPUT)


@pytest.fixture
def early(tmp_path):
    """A copy of the early files."""
    return shutil.copytree(EARLY, tmp_path / "early")


@pytest.fixture
def originals(early):
    return ("--originals", early / "photos", early / "later")


def test_an_early_record_is_read(early):
    record = records.read_record(early / "photos_record")
    assert isinstance(record, legacy.LegacyRecord) and record.finished and record.evidence
    assert [(batch.photos, batch.published) for batch in record.batches] == [(10, 5), (4, 2)]
    assert (record.selections(5)[0] == record.published).all() and record.published.sum() == 7
    assert record.keys(3)[0] == (bytes.fromhex(record.key),) * 2 and len({key for key, _ in record.keys(3)}) == 4


def test_an_early_record_is_verified_and_says_what_it_is(early, originals, script):
    """All marks are recomputed, where the files are now."""
    record = early / "photos_record"
    done = script("data_marking", "--verify", record, *originals, "--marked_folder", early / "photos_marked")
    assert done.code == 1 and done.err.count("missing") == 2, "those of the second batch lie elsewhere"
    for marked in (early / "later_marked").iterdir():
        shutil.copy(marked, early / "photos_marked")
    done = script("data_marking", "--verify", record, *originals, "--marked_folder", early / "photos_marked")
    assert done.code == 0 and "The record is right" in done.out and "7 of 7 as recorded" in done.out
    assert "made by an early version" in flat(done.out) and "only if the accuser is honest" in flat(done.out)
    (early / "photos_marked" / "0.png").write_bytes(b"changed")
    done = script("data_marking", "--verify", record, *originals, "--marked_folder", early / "photos_marked")
    assert done.code == 1 and "0.png" in done.err


def test_an_early_record_marks_the_same_photos_and_no_more(early, mark):
    before, record = tree(early), early / "photos_record"
    refused(mark(early, "--record", record), "early version")
    assert tree(early) == before
    marked = contents(early / "later_marked")
    for path in (early / "later_marked").iterdir():
        path.unlink()
    assert mark(early / "later", "--record", record).code == 0
    assert contents(early / "later_marked") == marked
    assert (record / "record.json").read_bytes() == before["photos_record/record.json"][0]


def test_every_changed_field_of_an_early_record_is_noticed(early):
    path = early / "photos_record" / "record.json"
    original = json.loads(path.read_text())
    for change in (
        lambda content: content.update(key="ab" * 32),
        lambda content: content.update(selection_key="ab" * 32),
        lambda content: content.update(evidence=False),
        lambda content: content.update(seed=3),
        lambda content: content["settings"].update(noise_norm=4),
        lambda content: content["photos"][0].update(original_sha256="0" * 64),
        lambda content: content["photos"][0].update(published=not content["photos"][0]["published"]),
        lambda content: content["photos"].reverse(),
        lambda content: content["batches"][0].update(created="yesterday"),
        lambda content: content["batches"][0].update(photos=9),
        lambda content: content["commitments"].append("0" * 64),
        lambda content: content["commitments"].__setitem__(0, "0" * 64),
        lambda content: content.update(more=1),
    ):
        content = json.loads(json.dumps(original))
        change(content)
        path.write_text(json.dumps(content))
        user_error(lambda: records.read_record(path), "record.json")


# --- evidence ---


@pytest.mark.parametrize("name,p,alpha", [("audit/evidence.zip", 0.496, 0.0005), ("evidence-labels.zip", 1.0, 0.025)])
def test_early_evidence_is_replayed_with_its_own_p(early, originals, script, tmp_path, name, p, alpha):
    """One with the usual flags, one with labels alone, a seed of the other side, and alpha 0.05."""
    done = script("eval", "--replay", early / name, "--out", tmp_path / "again")
    assert done.code == 0, done.err
    again = json.loads((tmp_path / "again" / "result.json").read_text())
    assert again["p_value"] == p and again["alpha"] == alpha and again["photos"] == 14
    assert "made by an early version" in flat(done.out) and "nothing shows that the answers came from" in flat(done.out)
    assert script("eval", "--replay", early / name, "--strict").code == 1
    record = ("--record", early / "photos_record", *originals)
    done = script("eval", "--replay", early / name, *record)
    assert done.code == 0 and "70 of 70 are bit for bit" in done.out


@pytest.mark.parametrize("name", ["audit/evidence.zip", "evidence-labels.zip"])
def test_early_evidence_is_checked_with_its_model(early, originals, script, name):
    pytest.importorskip("onnxruntime")
    record = ("--record", early / "photos_record", *originals)
    done = script("eval", "--replay", early / name, *record, *MODEL)
    assert done.code == 0, (done.out, done.err)
    assert "70 of 70 answers are the model's own" in done.out and "nothing shows" not in done.out


def early_changed(path, change):
    """The early bundle with another document."""
    import io
    import zipfile

    with zipfile.ZipFile(EARLY / "audit" / "evidence.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    document = json.loads(members["bundle.json"])
    change(document)
    members["bundle.json"] = json.dumps(document).encode()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    path.write_bytes(content.getvalue())
    return path


EARLY_CHANGES = {
    "p": lambda document: document["result"].update(p_value=0.001),
    "at most": lambda document: document["result"].update(at_most=1),
    "label": lambda document: document["audit"].update(label=1),
    "selections": lambda document: document["audit"].update(selections=99),
    "keys": lambda document: document["audit"].update(keys=9),
    "label only": lambda document: document["audit"].update(label_only=True),
    "seed": lambda document: document["audit"].update(audit_seed="x"),
    "secret": lambda document: document.update(selection_key="ab" * 32),
    "commitment": lambda document: document.update(commitment="0" * 64),
    "evidence": lambda document: document["record"].update(evidence=False),
    "published": lambda document: document["record"]["batches"][0].update(published=4),
    "no batches": lambda document: document["record"].update(batches=[]),
    "batches null": lambda document: document["record"].update(batches=None),
    "no record": lambda document: document.pop("record"),
    "no audit": lambda document: document.pop("audit"),
    "audit a list": lambda document: document.update(audit=[]),
    "alpha": lambda document: document["audit"].update(alpha="x"),
    "alpha 5": lambda document: document["audit"].update(alpha=5),
    "key no text": lambda document: document.update(selection_key=5),
    "classes": lambda document: document.update(classes=3),
    "model": lambda document: document.pop("model"),
    "preprocessing": lambda document: document.update(preprocessing={}),
}


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in EARLY_CHANGES.items()])
def test_tampered_and_hostile_early_evidence_is_one_line(script, tmp_path, change):
    refused(script("eval", "--replay", early_changed(tmp_path / "e.zip", change)), "e.zip")


def test_an_early_record_in_a_bundle_of_today_has_no_lower_bar(tmp_path, script):
    """The weaker comparison of early results is no way around today's."""
    document, *rest = evidence.read_bundle(EARLY / "audit" / "evidence.zip")
    document.pop("format", None)
    document["result"]["p_value"] = 0.001
    evidence.write_bundle(tmp_path / "e.zip", document, *rest)
    refused(script("eval", "--replay", tmp_path / "e.zip"), "its result says")


# --- an audit today ---


def test_an_early_record_is_audited_and_says_what_it_is(early, originals, script, tmp_path):
    pytest.importorskip("onnxruntime")
    flags = ("--record", early / "photos_record", *originals, *MODEL, "--device", "cpu", "--keys", "9")
    done = script("eval", *flags, "--out", tmp_path / "out", "--alpha", "0.05")
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert any("made by an early version" in sentence for sentence in result["weaknesses"])
    assert result["judgement"]["number"] == 2 and result["alpha"] == 0.05 / 4, "the second batch counts as a look"
    assert result["photos"] == 14 and result["queries"] == 140 and result["evidence"] is True
    done = script("eval", "--replay", tmp_path / "out" / "evidence.zip")
    assert done.code == 0 and "made by an early version" in flat(done.out), done.err
    done = script("eval", *flags, "--out", tmp_path / "out", "--alpha", "0.05", "--strict")
    assert done.code == 1


def test_an_early_audit_goes_on_where_it_was(early, originals, script):
    """Its folder has answers that were paid for: none is asked again, and its files are kept."""
    pytest.importorskip("onnxruntime")
    folder = early / "audit"
    answers, old = (folder / "answers.bin").read_bytes(), (folder / "evidence.zip").read_bytes()
    (folder / "result.json").write_text(json.dumps({"p_value": 0.496, "detected": False}))
    flags = ("--record", early / "photos_record", *originals, *MODEL, "--device", "cpu")
    done = script("eval", *flags, "--keys", "4", "--selections", "1999", "--out", folder)
    assert done.code == 0, done.err
    assert (folder / "answers.bin").read_bytes() == answers, "no question was asked"
    result = json.loads((folder / "result.json").read_text())
    assert 0.4 < result["p_value"] < 0.6 and result["queries"] == 70
    kept = [path for path in folder.iterdir() if path.suffix == ".zip" and path.read_bytes() == old]
    assert len(kept) == 1 and kept[0].name != "evidence.zip"
