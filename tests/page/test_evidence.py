"""The tab Evidence without a browser: good bundles, forged ones, and what is left to be believed."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from page.tabs import check, evidence
from tests.page.parts import OnePanel, mark, save_network, save_pictures, until, uploaded
from tests.page.relay import write_chain
from tests.page.test_check import FIELDS as AUDIT
from tests.page.test_check import audited
from tests.provenance.test_references import train

FIELDS = dict.fromkeys(evidence.INPUTS, "") | dict.fromkeys(
    ("bundle", "record", "originals", "model", "reference", "chain", "roots"), None
)
MODEL = {name: AUDIT[name] for name in ("net_type", "input_size", "mean", "std")}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Photos marked, a model audited: the files of it, for all tests here. (evidence, record, photos, model)."""
    from page.desk import Desk

    root = tmp_path_factory.mktemp("kept")
    desk = Desk(root / "work")
    job = mark(desk, save_pictures(root / "album", 20))
    model = save_network(root / "net.pt", 1)
    audit, _ = audited(desk, {**AUDIT, "known": job.id, "address": model})
    shutil.copy(audit.folder / "evidence.zip", root)
    desk.jobs.close()
    return root / "evidence.zip", root / "album_record" / "record.json", root / "album", model


def checked(desk, bundle, **fields):
    """The finished job of checking a bundle (bytes)."""
    text, *number = evidence._begin(
        desk, OnePanel(), None, {**FIELDS, "bundle": uploaded(desk, "evidence.zip", bundle), **fields}
    )
    assert text == "", text
    job = desk.jobs.get(number[0])
    until(lambda: not job.active)
    return job


def changed(bundle, change):
    """The bytes of a bundle whose document and arrays were changed: change(document, arrays)."""
    with zipfile.ZipFile(bundle) as archive:
        document = json.loads(archive.read("bundle.json"))
        with np.load(io.BytesIO(archive.read("answers.npz"))) as stored:
            arrays = dict(stored)
    change(document, arrays)
    out, inside = io.BytesIO(), io.BytesIO()
    np.savez(inside, **arrays)
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("bundle.json", json.dumps(document))
        archive.writestr("answers.npz", inside.getvalue())
    return out.getvalue()


def in_order(shown, *words):
    places = [shown.index(word) for word in words]
    return places == sorted(places)


def test_good_evidence_is_recomputed_and_says_what_it_rests_on(desk, kept):
    job = checked(desk, kept[0].read_bytes())
    assert job.state == "done", job.message
    shown, result = evidence._result(job), json.loads((job.folder / "result.json").read_text())
    assert in_order(
        shown, "What this rests on", "nothing shows that the answers came from", "What could be checked fits"
    )
    assert in_order(shown, "Not shown", "net.pt", "p recomputed", "All judgements that this evidence tells of")
    assert "give the model with “Model”" in shown and "--" not in shown[: shown.index("<details>")]
    assert result["right"] and result["rows"][0][0] == "commitment"


def test_with_record_photos_and_model_all_is_asked_again(desk, kept):
    bundle, record, photos, model = kept
    given = {"record": uploaded(desk, "record.json", record.read_bytes()), "folder": str(photos)}
    job = checked(desk, bundle.read_bytes(), **given, address=model, **MODEL)
    assert job.state == "done", job.message
    shown = evidence._result(job)
    assert "800 of 800 are bit for bit" in shown and "800 of 800 answers are the model" in shown
    assert "nothing shows that the answers came from" not in shown


def test_invented_answers_are_found_when_the_model_is_asked(desk, kept):
    bundle, record, photos, model = kept

    def invent(document, arrays):
        # Answers of another network; whatever follows from them is computed rightly.
        from provenance import evidence as bundles
        from provenance import grid
        from suspects.suspect import Answers

        arrays["values"] = np.random.default_rng(0).normal(size=arrays["values"].shape).astype(np.float32)
        answers = Answers(arrays["values"], None)
        found = bundles.check_document(document, answers, "x")
        plan, alpha = found.judgement.plan, found.judgement.alpha
        document["result"] = grid.judge(
            found.record, plan, found.label, alpha, arrays["order"], answers, document["classes"]
        )[0]
        for entry in (document["judgement"], *document["log"]):
            entry["p_value"] = document["result"]["p_value"]

    forged = changed(bundle, invent)
    alone = checked(desk, forged)
    assert "could have made them up" in evidence._result(alone)  # nothing more can be known without the model
    given = {"record": uploaded(desk, "record.json", record.read_bytes()), "folder": str(photos)}
    shown = evidence._result(checked(desk, forged, **given, address=model, **MODEL))
    assert "Not everything fits" in shown and "NOT THIS MODEL" in shown and 'class="box bad"' in shown


def test_references_are_asked_again(desk, tmp_path, reference):
    album = mark(desk, save_pictures(tmp_path / "album", 20), reference_path=str(reference))
    model = save_network(tmp_path / "net.pt", 1)
    audit, _ = audited(desk, {**AUDIT, "known": album.id, "address": model, "reference_path": str(reference)})
    bundle = (audit.folder / "evidence.zip").read_bytes()
    alone = evidence._result(checked(desk, bundle))
    assert "nothing shows that the scores of the references came from reference.safetensors" in alone
    assert "give these models with “Reference models”" in alone and "--" not in alone[: alone.index("<details>")]
    assert "reference.safetensors: taken not to have seen the photos" in alone
    record = uploaded(desk, "record.json", Path(album.result["record"]).read_bytes())
    given = {"record": record, "folder": album.result["originals"]}
    handed_in = [uploaded(desk, "sent along.safetensors", reference.read_bytes())]
    job = checked(desk, bundle, **given, address=model, **MODEL, reference=handed_in)
    assert job.state == "done", job.message
    shown = evidence._result(job)
    assert "400 of 400 scores are the references" in shown and "What could be checked fits" in shown
    assert "800 of 800 answers are the model" in shown and "nothing shows that the scores" not in shown
    # Another model in its place is named, and scores that were made up are found.
    other = train(tmp_path / "other.safetensors", 8)
    job = checked(desk, bundle, **given, reference_path=str(other))
    assert job.state == "failed" and "“Reference models” are not the models of this bundle" in job.message
    forged = changed(audit.folder / "evidence.zip", made_up)
    shown = evidence._result(checked(desk, forged, **given, reference_path=str(reference)))
    assert "Not everything fits" in shown and "THE STORED SCORES ARE NOT THESE MODELS" in shown


def made_up(document, arrays):
    """Scores of no model; whatever follows from them is computed rightly."""
    from provenance import evidence as bundles
    from provenance import grid
    from suspects.suspect import Answers

    scores = np.random.default_rng(0).random(arrays["references"].shape, dtype=np.float32)
    arrays["references"] = scores
    answers = Answers(arrays["values"], None)
    found = bundles.check_document(document, answers, "x", references=scores)
    plan, alpha = found.judgement.plan, found.judgement.alpha
    document["result"] = grid.judge(
        found.record, plan, found.label, alpha, arrays["order"], answers, document["classes"], references=scores
    )[0]
    for entry in (document["judgement"], *document["log"]):
        entry["p_value"] = document["result"]["p_value"]


def worse(document, arrays):
    document["result"]["p_value"] = 5e-5


def other_answers(document, arrays):
    arrays["values"] = arrays["values"][::-1].copy()


def other_half(document, arrays):
    document["record"]["batches"][0]["selections_secret"] = "ab" * 32


def no_log(document, arrays):
    document["log"] = []


def endless(document, arrays):
    document["log"][0]["p_value"] = float("nan")


@pytest.mark.parametrize("change", [worse, other_answers, other_half, no_log, endless])
def test_forged_evidence_is_refused_by_name(desk, kept, change, capfd):
    job = checked(desk, changed(kept[0], change))
    assert job.state == "done", job.message
    shown = evidence._result(job)
    assert "This evidence proves nothing" in shown and 'role="alert"' in shown
    assert "evidence.zip" in shown and str(desk.root) not in shown and "defect" not in shown
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 torn"])
def test_what_is_no_evidence_is_one_line(desk, content):
    job = checked(desk, content)
    assert "is not an evidence bundle" in evidence._result(job)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"bundle": None}, "there is no evidence yet"),
        ({"address": "/net.pt"}, "the record is missing"),
        ({"folder": "/photos"}, "the record is missing"),
        ({"reference_path": "/ref.pt"}, "the record is missing"),
        ({"mean": "1"}, "“Mean” takes 3 numbers"),
        ({"chain": b"{}"}, "has no public_key"),
        ({"record": b"no json"}, "record.json"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(desk, kept, changes, words):
    changes = {
        name: uploaded(desk, f"{name}.json", value) if isinstance(value, bytes) else value
        for name, value in changes.items()
    }
    bundle = uploaded(desk, "evidence.zip", kept[0].read_bytes())
    shown, _ = evidence._begin(desk, OnePanel(), None, {**FIELDS, "bundle": bundle, **changes})
    assert words in shown and 'role="alert"' in shown and "defect" not in shown, shown
    assert list((desk.root / "drafts").iterdir()) == [] and desk.jobs.all("replays") == []


def test_the_model_of_another_bundle_is_named(desk, kept, tmp_path):
    bundle, record, photos, _ = kept
    given = {"record": uploaded(desk, "record.json", record.read_bytes()), "folder": str(photos)}
    job = checked(desk, bundle.read_bytes(), **given, address=save_network(tmp_path / "b.pt", 2), **MODEL)
    assert job.state == "failed" and job.message.startswith("“Model” is not the model of this bundle"), job.message


def test_another_beacon_is_trusted_only_where_its_facts_are_given(desk, drawn, tmp_path):
    chain = desk.chain
    drawn.clock.pass_by()
    album = mark(desk, save_pictures(tmp_path / "album", 20), beacon="drand")
    audit, _ = audited(desk, {**AUDIT, "known": album.id, "address": save_network(tmp_path / "net.pt", 1)})
    assert "no public randomness" not in check._result(audit)
    bundle = (audit.folder / "evidence.zip").read_bytes()
    from provenance.beacon import QUICKNET

    desk.chain = QUICKNET
    assert "which this program does not know" in evidence._result(checked(desk, bundle))
    facts = uploaded(desk, "chain.json", write_chain(tmp_path / "facts.json", chain).read_bytes())
    shown = evidence._result(checked(desk, bundle, chain=facts))
    assert "does not know" not in shown and "the date of the commitment rests on where it was posted" in shown
