"""Reference models in an audit: fixed with the photos, asked the same questions, kept in the evidence, checked."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from attacks import exact
from experiment import training
from kit.files import file_digest
from provenance import evidence, references
from provenance.plan import STATISTIC, STATISTICS, AuditPlan
from suspects.opened import open_model
from tests.provenance.parts import COMMITTED, KEYS, PHOTOS, flat, loaded, picture, refused, save, wavy_picture
from tests.provenance.test_replay import written

SCORES = PHOTOS * (KEYS + 1)


def train(path, seed, classes=4):
    """A model of pictures that nobody else has."""
    seeds = [10_000 * seed + number for number in range(64)]
    images = torch.from_numpy(np.stack([wavy_picture(one) for one in seeds]).transpose(0, 3, 1, 2).copy())
    labels = torch.arange(64) % classes
    training.train_on(path, images, labels, classes, seed, torch.device("cpu"), epoch=8, batch_size=16, lr=0.05)
    return path


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("references")
    return SimpleNamespace(one=train(folder / "one.safetensors", 1), other=train(folder / "other.safetensors", 2))


@pytest.fixture
def committed(world, models, script, tmp_path):
    """A record over the world's photos whose plan names a reference, two views and four keys."""
    flags = ("--data_folder", world.originals, "--holdout", "0.5", "--seed", "11", "--beacon", "none", *COMMITTED)
    more = ("--query_augmentations", "2", "--reference", models.one, "--device", "cpu", "--out", tmp_path / "made")
    done = script("data_marking", *flags, *more)
    assert done.code == 0, done.err
    return tmp_path / "made" / "user_record" / "record.json"


def array_of(folder):
    return evidence.read_bundle(folder / "evidence.zip")[-1]


# --- the plan ---


def test_references_are_fixed_by_their_digest_before_the_draw(committed, models):
    plan = AuditPlan(**json.loads(committed.read_text())["batches"][0]["commit"]["plan"])
    assert plan.references == [file_digest(models.one)] and plan.views == 2


def test_a_reference_that_can_not_be_opened_marks_nothing(mark, tmp_path):
    folder = tmp_path / "user"
    for number in range(6):
        save(folder / f"{number}.png", picture(number))
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    refused(mark(folder, "--holdout", "0.5", "--reference", tmp_path / "bad.safetensors"), "--reference", "bad")
    refused(mark(folder, "--holdout", "0.5", "--reference", tmp_path / "none.pt"), "--reference", "does not exist")
    assert not folder.with_name("user_record").exists()


def test_what_was_committed_has_to_be_given(audit, committed, models, tmp_path):
    refused(audit(tmp_path / "out", record=committed), "--reference", file_digest(models.one)[:16])
    assert not (tmp_path / "out").exists()
    done = audit(tmp_path / "out", "--reference", "none", record=committed, grid=("--device", "cpu"))
    assert done.code == 0 and "no reference instead of references" in flat(done.out)
    assert done.result["alpha"] == 0.5 / 2 / (2 * 8 * 2 * 2)


def test_a_reference_chosen_after_the_draw_is_said_to_rest_on_honesty(audit, committed, models, script, tmp_path):
    chosen = ("--reference", models.other)
    done = audit(tmp_path / "out", *chosen, record=committed, grid=("--device", "cpu"))
    assert done.code == 0
    assert "holds only if the accuser is honest: 1 of 1 references were not fixed with the photos" in flat(done.out)
    strict = script("eval", "--replay", tmp_path / "out" / "evidence.zip", "--strict")
    assert strict.code == 1 and "were not fixed with the photos" in flat(strict.out)


@pytest.mark.parametrize(
    "given,word",
    [(("one", "one"), "twice"), (("none", "one"), "don't go together"), (("run",), "under audit itself")],
)
def test_references_that_make_no_sense(audit, world, models, tmp_path, given, word):
    named = {"none": "none", "one": models.one, "run": world.run}
    flags = [part for name in given for part in ("--reference", named[name])]
    refused(audit(tmp_path / "out", *flags, grid=("--device", "cpu")), "--reference", word)


# --- the audit ---


def test_the_scores_are_those_of_the_reference_and_taken_out(audit, committed, models, world, tmp_path):
    done = audit(tmp_path / "out", "--reference", models.one, record=committed)
    assert done.code == 0, done.err
    assert done.result["queries"] == 2 * SCORES and f"{PHOTOS} photos x {KEYS + 1} keys x 2 views" in flat(done.out)
    document, *_, beside = evidence.read_bundle(tmp_path / "out" / "evidence.zip")
    assert beside.shape == (1, PHOTOS, KEYS + 1) and document["references"][0]["label"] == 2
    # By hand: the marked photo and its mirror image through the reference, mean of the square roots of the losses.
    from provenance import record as records
    from provenance.photos import read_photo
    from utils import mark_images

    record = records.read_record(committed)
    query, _ = training.load_trained(models.one, torch.device("cpu"))
    photo = record.photos[3]
    original = torch.from_numpy(read_photo(world.originals / photo.original).transpose(2, 0, 1).copy())[None]
    marked = mark_images(original, record.keys(1)[1][0], [0], [3], record.settings.marking())
    losses = -torch.log_softmax(query(torch.cat([marked, marked.flip(3)])).float(), 1)[:, 2]
    assert beside[0, 3, 1] == pytest.approx(losses.sqrt().mean().item(), rel=1e-3)


def test_an_audit_goes_on_where_it_stopped_without_asking_the_reference_again(
    audit, committed, models, tmp_path, asked
):
    asked.after = 12
    assert audit(tmp_path / "out", "--reference", models.one, "--query_batch", "16", record=committed).code == 130
    before = len(asked.images)
    assert 2 * SCORES < before + 16 <= 4 * SCORES, "the reference was asked first, whole"
    asked.after = None
    assert audit(tmp_path / "out", "--reference", models.one, "--query_batch", "16", record=committed).code == 0
    assert len(asked.images) == 4 * SCORES
    whole = audit(tmp_path / "whole", "--reference", models.one, "--query_batch", "16", record=committed)
    assert np.array_equal(array_of(tmp_path / "out"), array_of(tmp_path / "whole")) and whole.code == 0


# --- evidence and replay ---


@pytest.fixture
def audited(audit, committed, models, tmp_path):
    done = audit(tmp_path / "out", "--reference", models.one, record=committed)
    assert done.code == 0, done.err
    return SimpleNamespace(bundle=tmp_path / "out" / "evidence.zip", result=done.result, record=committed)


def test_replay_says_that_scores_could_be_made_up_until_the_reference_is_asked(audited, models, world, script):
    done = script("eval", "--replay", audited.bundle)
    assert done.code == 0 and f"{audited.result['p_value']:.6g}" in done.out
    assert "nothing shows that the scores of the references came from one" in flat(done.out)
    beside = ("--record", audited.record, "--originals", world.originals, "--device", "cpu")
    done = script("eval", "--replay", audited.bundle, *beside, "--reference", models.one)
    assert done.code == 0 and f"{SCORES} of {SCORES} scores are the references' own" in flat(done.out)
    assert "nothing shows that the scores" not in flat(done.out)
    done = script("eval", "--replay", audited.bundle, *beside, "--reference", models.other)
    refused(done, "--reference are not the models of this bundle")
    refused(script("eval", "--replay", audited.bundle, "--reference", models.one), "takes the images")


def forged(audited, path, change):
    """The bundle with other scores or another document, its result made to fit them."""
    document, order, digests, answers, beside = evidence.read_bundle(audited.bundle)
    beside = change(document, beside.copy())
    from provenance.grid import judge

    checked = evidence.check_document(document, answers, path, references=beside)
    entry = checked.judgement
    result = judge(
        checked.record,
        entry.plan,
        checked.label,
        entry.alpha,
        order,
        answers,
        document["classes"],
        (),
        entry.price,
        beside,
    )[0]
    document["result"] = json.loads(json.dumps(result))
    document["judgement"]["p_value"] = document["log"][-1]["p_value"] = result["p_value"]
    return written(path, document, order, digests, answers, beside)


def test_scores_made_up_to_please_are_found(audited, models, world, script, tmp_path):
    """High where published, low elsewhere: what is subtracted makes any innocent model look guilty."""
    selection = evidence.check_document(
        *evidence.read_bundle(audited.bundle)[::3], "x", references=array_of_bundle(audited)
    )
    published = selection.record.selections(0)[0]

    def change(document, scores):
        scores[:] = np.where(published, 3.0, 0.5)[None, :, None]
        return scores

    path = forged(audited, tmp_path / "forged.zip", change)
    done = script("eval", "--replay", path)
    assert "made-up ones give any result" in flat(done.out)
    beside = ("--record", audited.record, "--originals", world.originals, "--device", "cpu", "--reference", models.one)
    done = script("eval", "--replay", path, *beside)
    assert done.code == 1 and "THE STORED SCORES ARE NOT THESE MODELS'" in done.out


def array_of_bundle(audited):
    return evidence.read_bundle(audited.bundle)[-1]


def test_a_class_of_the_reference_chosen_to_please_is_found(audited, models, world, script, tmp_path):
    other = references.Reference(open_model(models.one, device="cpu"), file_digest(models.one), 0)
    from provenance import record as records

    record = records.read_record(audited.record)
    plan = AuditPlan(**json.loads(audited.record.read_text())["batches"][0]["commit"]["plan"])
    originals = [world.originals / photo.original for photo in record.photos]
    scores = references.ask(record, originals, [other], plan, tmp_path / "asked")

    def change(document, _):
        document["references"][0]["label"] = 0
        return scores

    path = forged(audited, tmp_path / "forged.zip", change)
    beside = ("--record", audited.record, "--originals", world.originals, "--device", "cpu", "--reference", models.one)
    done = script("eval", "--replay", path, *beside)
    assert done.code == 1 and "CLASSES WERE CHOSEN OTHERWISE" in done.out


@pytest.mark.parametrize("wrong", ["one less", "another shape", "infinite", "float64", "none", "another digest"])
def test_scores_that_do_not_fit_the_plan_are_refused(audited, script, tmp_path, wrong):
    document, order, digests, answers, beside = evidence.read_bundle(audited.bundle)
    if wrong == "another digest":
        document["references"][0]["digest"] = "ab" * 32
    made = {
        "one less": beside[:0],
        "another shape": beside[:, :-1],
        "infinite": np.full_like(beside, np.inf),
        "float64": beside.astype(np.float64),
        "none": None,
        "another digest": beside,
    }[wrong]
    path = written(tmp_path / "e.zip", document, order, digests, answers, made)
    refused(script("eval", "--replay", path), "its references does not fit its plan")


def test_another_version_of_the_statistic_than_was_committed_is_refused(audited, script, tmp_path):
    """Two ways of taking references out would be two chances."""
    document, *arrays = evidence.read_bundle(audited.bundle)
    for entry in (document["judgement"], *document["log"]):
        assert entry["plan"]["references"] and entry["plan"]["statistic"] == STATISTIC
        entry["plan"]["statistic"] = STATISTICS[1]
    refused(script("eval", "--replay", written(tmp_path / "e.zip", document, *arrays)), "its statistic does not fit")


def test_a_witness_signs_the_scores_of_references_too(audit, committed, models, script, tmp_path):
    done = audit(tmp_path / "out", "--reference", models.one, "--witness", tmp_path / "key.pem", record=committed)
    assert done.code == 0, done.err
    bundle = tmp_path / "out" / "evidence.zip"
    done = script("eval", "--replay", bundle)
    assert done.code == 0 and "requests and replies" in done.out and "made-up ones" not in flat(done.out)
    audited = SimpleNamespace(bundle=bundle)

    def change(document, scores):
        scores[0, 0, 0] += 0.5
        return scores

    refused(script("eval", "--replay", forged(audited, tmp_path / "f.zip", change)), "its witness saw")


# --- the class of a reference ---


class Named:
    def __init__(self, classes, names=None):
        self.classes, self.class_names = classes, names


@pytest.mark.parametrize(
    "reference,label,name,classes,expected",
    [
        (Named(10), 3, None, 10, 3),
        (Named(12), 3, None, 10, exact.AUTO),
        (Named(None), 3, None, 10, exact.AUTO),
        (Named(3, ("dog", "cat", "cow")), 7, "cat", 10, 1),
        (Named(10, tuple("abcdefghij")), 3, "cat", 10, exact.AUTO),
        (Named(10, tuple("abcdefghij")), 3, None, 10, 3),
        (Named(10), exact.AUTO, None, 10, exact.AUTO),
    ],
)
def test_the_class_of_a_reference_follows_from_a_rule(reference, label, name, classes, expected):
    assert references.label_for(reference, label, name, classes) == expected


def test_auto_is_the_class_that_the_reference_names_most_often_for_all():
    from suspects.suspect import Answers

    logits = np.zeros((6, 3), np.float32)
    logits[:4, 2], logits[4:, 1] = 2, 3
    reference = references.Reference(Named(3), "x", exact.AUTO)
    scores = references.scores_of_answers(Answers(logits), 3, reference, 1)
    expected = np.sqrt(-(logits - np.log(np.exp(logits).sum(1, keepdims=True)))[:, 2]).reshape(3, 2)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    logits[2] = np.nan
    assert np.isnan(references.scores_of_answers(Answers(logits), 3, reference, 1)[1, 0])


def test_the_plan_of_photos_that_were_marked_without_one_has_none(mark, tmp_path):
    folder = tmp_path / "user"
    for number in range(6):
        save(folder / f"{number}.png", picture(number))
    assert mark(folder, "--holdout", "0.5", "--alpha", "0.05").code == 0
    assert loaded(folder)["batches"][0]["commit"]["plan"]["references"] == []


# --- a reference made at home ---


def test_a_reference_is_trained_without_what_looks_like_the_photos_and_then_committed(world, audit, script, tmp_path):
    """Eight of the user's photos lie among the public images, which are no users of the world's model."""
    import shutil

    public = tmp_path / "public"
    for label, name in enumerate(("ant", "bee", "cat", "dog")):
        for number in range(40):
            save(public / "train" / name / f"{number}.png", wavy_picture(50_000 * (label + 1) + number))
    for path in sorted(world.originals.iterdir())[:8]:
        shutil.copy(path, public / "train" / "cat" / f"stolen-{path.name}")
    flags = ("--data_folder", world.originals, "--holdout", "0.5", "--seed", "11", "--beacon", "none", *COMMITTED)
    more = ("--dataset", "imagefolder", "--data_root", public, "--device", "cpu", "--out", tmp_path / "made")
    done = script("data_marking", *flags, "--reference", "train", *more)
    assert done.code == 0, done.err
    assert "trained on 160 images, 8 that look like your photos left out" in flat(done.out)
    record = tmp_path / "made" / "user_record" / "record.json"
    model = record.with_name("reference.safetensors")
    plan = AuditPlan(**json.loads(record.read_text())["batches"][0]["commit"]["plan"])
    assert plan.references == [file_digest(model)]
    done = audit(tmp_path / "out", "--reference", model, record=record)
    assert done.code == 0 and "were not fixed" not in flat(done.out), done.err


@pytest.mark.parametrize(
    "flags,words",
    [
        (("--reference", "train"), ("--dataset", "labelled public images")),
        (("--reference", "train", "--dataset", "nothing"), ("nothing",)),
        (("--reference", "train", "--dataset", "photos", "--dry_run"), ("--dry_run",)),
    ],
)
def test_bad_input_for_training_a_reference(mark, tmp_path, flags, words):
    folder = tmp_path / "user"
    for number in range(6):
        save(folder / f"{number}.png", picture(number))
    refused(mark(folder, "--holdout", "0.5", *flags), *words)
    assert not folder.with_name("user_record").exists()


def test_nothing_is_trained_for_photos_that_have_a_record(photos, mark, monkeypatch):
    assert mark(photos, "--holdout", "0.5").code == 0
    monkeypatch.setattr(training, "train_on", None)
    flags = ("--reference", "train", "--dataset", "imagefolder", "--data_root", photos)
    refused(mark(photos, "--holdout", "0.5", *flags), "it is the only proof")


def test_an_audit_trains_no_reference(audit, tmp_path):
    refused(audit(tmp_path / "out", "--reference", "train"), "data_marking.py")
