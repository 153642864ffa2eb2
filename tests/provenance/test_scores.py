"""Models that answer with scores instead of classes: the same audit and evidence, and captions fixed with photos."""

import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest

from kit.files import canonical_digest
from provenance import evidence, opening, references, witness
from provenance import grid as user_audit
from provenance import record as records
from provenance.folder import inspect_folder
from provenance.plan import AuditPlan, unpriced
from suspects.suspect import Answers, Captioned, Preprocessing, Suspect, joined, no_answers
from tests.parts import call, user_error
from tests.provenance.conftest import ONE_DAY
from tests.provenance.parts import (
    COMMITTED,
    GRID,
    PHOTOS,
    QUERIES,
    copied,
    flat,
    make_record,
    picture,
    record_of,
    refused,
    rewritten,
    save,
    wavy_picture,
)

SCORES = np.array([[0.5, 0.75], [np.nan, 0.25], [0.125, 0.25]], np.float32)


class Scorer(Suspect):
    """Knows some pictures, by their pixels; the score of any other follows from its pixels, caption and the seed."""

    name, preprocessing, scores, captioned = "scorer", Preprocessing((32, 32)), "a made-up score", True

    def __init__(self, known=(), columns=1, refuses=()):
        self.known, self.columns, self.refuses, self.seed = set(known), columns, refuses, b""
        self.identity = {"kind": "made up", "sha256": "ab" * 32, "captions": True, "score": {"of": "chance"}}
        if columns == 2:
            self.identity["base"] = {"sha256": "cd" * 32}
        self.captions = []

    def settle(self, seed):
        self.seed = seed

    def ask(self, images):
        if not isinstance(images, Captioned):
            images = Captioned(images, ("",) * len(images))
        self.captions += images.captions
        return Answers(
            None, None, np.stack([self._score(*one) for one in zip(images.images, images.captions, strict=True)])
        )

    def _score(self, image, caption):
        pixels = image.tobytes()
        base = hashlib.sha256(pixels + caption.encode() + self.seed).digest()[0] / 256
        own = base - (2 if pixels in self.known else 0)
        own = np.nan if pixels in self.refuses else own
        return np.array([own, base][: self.columns], np.float32)


def published(world, record):
    """The pictures of the published photos under the user's own key, as they are asked."""
    record = records.read_record(record)
    photos = user_audit.Photos(records.locate_originals(record, [world.originals], world.record), (32, 32))
    queries = user_audit.Queries(record, photos, record.plan, Scorer.preprocessing)
    own = range(0, len(queries), record.plan.keys + 1)
    return {queries.image(query).tobytes() for query, known in zip(own, record.published, strict=True) if known}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A user's photos and record, and no model at all."""
    originals = tmp_path_factory.mktemp("scores") / "user"
    for number in range(PHOTOS):
        save(originals / f"{number:02}.png", wavy_picture(number))
    flags = ("--data_folder", originals, "--holdout", "0.5", "--seed", "11", "--beacon", "none", *COMMITTED)
    done = call("data_marking.py", *flags, code=ONE_DAY)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(originals=originals, record=record_of(originals))


@pytest.fixture
def judge(world, record, script, monkeypatch):
    """judge(suspect, out, *flags): eval.py of a model that is made up -> code, out, err, result."""

    def run(suspect, out, *flags, record=record, originals=world.originals, grid=GRID):
        monkeypatch.setattr(opening, "open_suspect", lambda *_, **__: suspect)
        places = ("--record", record, "--originals", originals, "--checkpoint", "anything", "--out", out)
        done = script("eval", *places, *grid, *flags)
        path = out / "result.json"
        done.result = json.loads(path.read_text()) if path.exists() else None
        return done

    return run


# --- arrays ---


def test_scores_are_answers_by_themselves():
    answers = Answers(None, None, SCORES)
    assert len(answers) == 3 and answers.missing.tolist() == [False, True, False] and answers.kind is None
    np.testing.assert_array_equal(answers.memory, [-0.25, np.nan, -0.125])
    np.testing.assert_array_equal(Answers(None, None, SCORES[:, :1]).memory, [0.5, np.nan, 0.125])
    twice = joined([answers.rows([2]), answers, no_answers(1, answers)])
    np.testing.assert_array_equal(twice.scores[:, 0], np.array([0.125, 0.5, np.nan, 0.125, np.nan], np.float32))
    assert answers.limited(label_only=True) is answers
    user_error(answers.log_probabilities, "score")
    for wrong in (
        (SCORES, None, SCORES),
        (None, np.ones((3, 1), np.int32), SCORES),
        (None, None, SCORES[:, [0, 0, 0]]),
    ):
        with pytest.raises(ValueError):
            Answers(*wrong)
    user_error(lambda: joined([answers, Answers(None, None, SCORES[:, :1])]), "shapes")


def test_the_mean_over_views_and_a_refusal_is_the_worst():
    # Two photos, one key, two views; the second view of the first photo is refused.
    answers = Answers(None, None, np.array([[0.5], [np.nan], [0.25], [0.75]], np.float32))
    scores, top, missing = user_audit.scores_of(answers, 2, None, "auto", 2)
    np.testing.assert_array_equal(scores[:, :, 0], [[(0.5 + 0.75) / 2], [0.5]])
    assert top.tolist() == [[[0, -1]], [[0, 0]]] and missing.sum() == 1


def test_a_log_gives_back_the_scores_that_it_was_given(tmp_path):
    log, digests = evidence.AnswerLog(tmp_path, {"of": "this"}), np.arange(96, dtype=np.uint8).reshape(3, 32)
    log.add(4, digests, Answers(None, None, SCORES))
    (first, (kept, answers)), *rest = evidence.AnswerLog(tmp_path, {"of": "this"}).blocks.items()
    assert (first, rest) == (4, []) and np.array_equal(kept, digests)
    assert answers.values is None and np.array_equal(answers.scores, SCORES, equal_nan=True)


def test_a_witness_signs_scores():
    digests, changed = np.zeros((3, 32), np.uint8), SCORES + np.float32(1e-3)
    ours, other = (witness.content_digest(digests, Answers(None, None, some)) for some in (SCORES, changed))
    assert ours != other and ours != witness.content_digest(digests, Answers(SCORES))


def test_the_digest_of_a_question_holds_its_caption():
    images = np.zeros((2, 3, 4, 4), np.uint8)
    plain, told = user_audit.digests_of(images), user_audit.digests_of(Captioned(images, ("", "a cat")))
    assert np.array_equal(plain[0], told[0]) and not np.array_equal(plain[1], told[1])
    some = Captioned(np.arange(5)[:, None, None, None] * images[:1], tuple("abcde"))
    assert some[1:3].captions == ("b", "c") and some[np.array([4])].captions == ("e",) and len(some[:2]) == 2


# --- an audit ---


@pytest.mark.parametrize("columns", [1, 2])
def test_the_user_is_found_and_the_evidence_holds(world, judge, record, script, tmp_path, columns):
    known = published(world, record)
    done = judge(Scorer(known, columns), tmp_path / "out")
    assert done.code == 0, done.err
    result = done.result
    assert result["label"] is None and result["queries"] == QUERIES and result["p_value"] <= 0.001
    assert "a made-up score" in done.out and "class " not in done.out
    assert any("is said to be made of" in one for one in result["weaknesses"]) == (columns == 2)
    bundle = tmp_path / "out" / "evidence.zip"
    assert script("eval", "--replay", bundle).code == 0
    flags = ("--record", record, "--originals", world.originals, "--checkpoint", "anything")
    again = script("eval", "--replay", bundle, *flags)
    assert again.code == 0, again.err
    assert f"{QUERIES} of {QUERIES} answers are the model's own" in flat(again.out)
    assert f"{QUERIES} of {QUERIES} are bit for bit" in flat(again.out)


def test_answers_of_another_base_or_another_model_are_seen(world, judge, record, script, tmp_path, monkeypatch):
    assert judge(Scorer(published(world, record), 2), tmp_path / "out").code == 0
    flags = ("--record", record, "--originals", world.originals, "--checkpoint", "anything")
    replay = ("eval", "--replay", tmp_path / "out" / "evidence.zip", *flags)
    innocent = Scorer((), 2)
    monkeypatch.setattr(opening, "open_suspect", lambda *_, **__: innocent)
    done = script(*replay)
    assert done.code == 1 and "NOT THIS MODEL'S" in flat(done.out)
    innocent.identity["base"] = {"sha256": "ef" * 32}
    refused(script(*replay), "scored the model otherwise", "base")


def test_a_model_that_knows_nothing_is_not_accused(judge, tmp_path):
    done = judge(Scorer(), tmp_path / "out")
    assert done.code == 0 and not done.result["detected"] and done.result["p_value"] > 0.05
    assert "no proof" in done.out and "innocent" not in done.out


def test_an_audit_that_was_interrupted_goes_on_with_its_scores(world, judge, record, tmp_path):
    known = published(world, record)
    whole = judge(Scorer(known), tmp_path / "whole").result
    torn = Scorer(known)
    once, torn.batch_size = iter([torn.ask]), 16

    def ask(images):
        for really in once:
            return really(images)
        raise KeyboardInterrupt

    torn.ask = ask
    assert judge(torn, tmp_path / "torn").code == 130
    rest = Scorer(known)
    done = judge(rest, tmp_path / "torn")
    assert done.result["p_value"] == whole["p_value"] and len(rest.captions) == QUERIES - 16


def test_a_sequential_audit_bets_on_scores(world, judge, record, script, tmp_path):
    done = judge(Scorer(published(world, record)), tmp_path / "out", "--sequential", grid=("--alpha", "0.5"))
    assert done.code == 0, done.err
    assert done.result["label"] is None and done.result["sequential"]["p_value"] < 0.5
    assert script("eval", "--replay", tmp_path / "out" / "evidence.zip").code == 0


def test_a_budget_of_queries_holds(judge, record, tmp_path):
    suspect = Scorer()
    done = judge(suspect, tmp_path / "out", "--max_queries", str(2 * PHOTOS), grid=("--alpha", "0.5"))
    assert done.code == 0, done.err
    assert done.result["queries"] == 2 * PHOTOS == len(suspect.captions)


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--label", "2"), "--label"),
        (("--label_only",), "--label_only"),
        (("--top_k", "2"), "--top_k"),
        (("--non_member_folder", "{originals}"), "--non_member_folder"),
    ],
)
def test_what_is_for_classes_is_refused(world, judge, tmp_path, flags, words):
    flags = [flag.format(originals=world.originals) for flag in flags]
    refused(judge(Scorer(), tmp_path / "out", *flags), words, "answers with a score")
    assert not (tmp_path / "out").exists()


def test_a_caption_is_for_models_that_are_told_one(judge, tmp_path):
    deaf = Scorer()
    deaf.captioned = False
    refused(judge(deaf, tmp_path / "out", "--caption", "a cat"), "--caption", "leave it out")


@pytest.mark.parametrize("change", ["label", "shape", "infinite"])
def test_a_bundle_of_scores_that_was_changed_is_refused(judge, script, tmp_path, change):
    assert judge(Scorer(), tmp_path / "out").code == 0
    bundle = tmp_path / "out" / "evidence.zip"
    document, order, digests, answers, _ = evidence.read_bundle(bundle)
    document, scores = copied(document), answers.scores.copy()
    if change == "label":
        document["label"] = 2
    elif change == "shape":
        answers = Answers(np.repeat(scores, 4, axis=1))
    else:
        scores[3] = np.inf
        answers = Answers(None, None, scores)
    evidence.write_bundle(bundle, document, order, digests, answers)
    refused(script("eval", "--replay", bundle), "evidence.zip")


# --- captions ---


def told(folder, *captions):
    for number, caption in enumerate(captions):
        save(folder / f"{number}.png", picture(number))
        if caption is not None:
            (folder / f"{number}.txt").write_text(caption, "utf-8")
    return folder


def test_captions_are_committed_with_their_photos(mark, tmp_path):
    folder = told(tmp_path / "user", "a cat, sks style\n", None, "", "two dogs")
    (folder / "notes.txt").write_text("of no photo")
    done = mark(folder, "--holdout", "0.5", "--seed", "1")
    assert done.code == 0, done.err
    assert "captions beside them 3" in flat(done.out) and "1: notes.txt" in flat(done.out)
    record = records.read_record(record_of(folder))
    captions = {photo.original: photo.caption for photo in record.photos}
    assert captions == {"0.png": "a cat, sks style", "1.png": None, "2.png": "", "3.png": "two dogs"}
    rewritten(folder, lambda content: content["photos"][0].update(caption="what the model likes"), commit=False)
    user_error(lambda: records.read_record(record_of(folder)), "captions", "changed after marking")


def test_without_captions_a_commitment_is_what_it_was():
    commit = make_record((4, 0.5)).batches[0].commit
    assert commit.captions_sha256 is None and "caption" not in AuditPlan().model_dump()
    assert commit.digest == canonical_digest(commit.model_dump(mode="json", exclude={"captions_sha256", "groups"}))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a" * 10_001, b"a\0b"])
def test_what_is_no_caption_is_named(tmp_path, content):
    folder = told(tmp_path / "user", "fine")
    (folder / "0.txt").write_bytes(content)
    user_error(lambda: inspect_folder(folder), "0.txt", "no caption")


def test_a_model_is_told_the_captions_that_were_committed(mark, judge, script, tmp_path):
    folder = told(tmp_path / "artist", *(f"photo {number}" for number in range(8)))
    flags = ("--keys", "1", "--selections", "19", "--alpha", "0.5", "--query_augmentations", "2")
    assert mark(folder, "--holdout", "0.5", "--seed", "1", *flags).code == 0
    suspect = Scorer()
    record, grid = record_of(folder), ("--alpha", "0.5")
    done = judge(suspect, tmp_path / "out", record=record, originals=folder, grid=grid)
    assert done.code == 0, done.err
    assert sorted(suspect.captions) == sorted([f"photo {number}" for number in range(8)] * 4)
    assert not any("was told" in one for one in done.result["weaknesses"])
    again = ("eval", "--replay", tmp_path / "out" / "evidence.zip", "--record", record, "--originals", folder)
    assert "32 of 32 are bit for bit" in flat(script(*again).out)
    other = Scorer()
    done = judge(other, tmp_path / "other", "--caption", "sks", record=record, originals=folder, grid=grid)
    assert set(other.captions) == {"sks"} and any("'sks'" in one for one in done.result["weaknesses"])
    # Answers to other captions are answers to other questions.
    refused(
        judge(Scorer(), tmp_path / "out", "--caption", "sks", record=record, originals=folder, grid=grid), "caption"
    )


def test_all_pictures_of_a_photo_have_its_caption():
    """Under each key and, with the plan's second test, as it is, in each view."""
    record = make_record((3, 0.5), plan=AuditPlan(keys=1, views=2, plain_arm=True))
    photos = [photo.model_copy(update={"caption": f"photo {photo.number}"}) for photo in record.photos]
    record = record.model_copy(update={"photos": photos})
    shown = SimpleNamespace(kept=[0, 2])  # the original of another is gone
    queries = user_audit.Queries(record, shown, record.plan, Preprocessing((8, 8)), captioned=True)
    queries.image = lambda query: np.zeros((3, 8, 8), np.uint8)
    assert queries.images(range(12)).captions == ("photo 0",) * 6 + ("photo 2",) * 6


def test_a_caption_that_was_fixed_is_no_weakness():
    plan = AuditPlan(caption="sks")
    assert unpriced(plan, plan) == {} and unpriced(AuditPlan(), plan) == {"caption": "sks"}
    assert unpriced(plan, AuditPlan()) == {"caption": ""}


# --- what a liar would try ---


def test_another_base_for_the_same_model_is_another_judgement(judge, record, tmp_path):
    """Else one could try base after base until one likes the result."""
    numbers = []
    for place, digest in enumerate(("cd" * 32, "ef" * 32)):
        suspect = Scorer((), 2)
        suspect.identity["base"] = {"sha256": digest}
        done = judge(suspect, tmp_path / str(place), grid=("--alpha", "0.5"))
        numbers.append((done.result["judgement"]["number"], done.result["alpha"]))
    assert numbers == [(1, 0.25), (2, 0.125)]


def test_what_a_model_draws_follows_from_the_record_alone(judge, record, tmp_path):
    """The seed is nobody's choice, and another audit seed, which is named as a weakness, gives another."""
    seeds = []
    for place, flags in enumerate(((), (), ("--audit_seed", "theirs"))):
        suspect = Scorer()
        judge(suspect, tmp_path / str(place), *flags, grid=("--alpha", "0.5"))
        seeds.append(suspect.seed)
    assert seeds[0] == seeds[1] != seeds[2] and len(seeds[0]) == 32


def test_a_reference_may_answer_with_scores():
    reference = references.Reference(Scorer(), "ab" * 32, "auto")
    answers = Answers(None, None, np.array([[0.5], [-40.0], [np.nan], [0.25]], np.float32))
    scores = references.scores_of_answers(answers, 2, reference, 1)
    np.testing.assert_array_equal(scores, np.array([[0.5, -32], [np.nan, 0.25]], np.float32))
    other = scores * np.float32(1.01)
    assert references.differing(scores, other, 0.02, of_scores=True) == 0
    assert references.differing(scores, other, 0.005, of_scores=True) == 3
