"""A neutral party's transcript: what it signs, what it takes over after an interruption, and what it never does."""

import json
import os
import shutil
import stat

import numpy as np
import pytest

from provenance import evidence, judgements, witness
from provenance import grid as user_audit
from provenance.evidence import AnswerLog
from suspects.suspect import Answers
from tests.parts import user_error
from tests.provenance.parts import QUERIES, bundle_parts, bundle_record, flat, judged, refused, tree

pytestmark = pytest.mark.usefixtures("without_plots")

CONTEXT = "ab" * 32


# --- the key ---


def test_the_key_file_is_made_for_its_owner_alone(tmp_path, monkeypatch):
    """At no moment may others read it, whatever the umask."""
    before, seen, really = os.umask(0o000), [], os.open

    def opened(path, flags, mode=0o777, **rest):
        descriptor = really(path, flags, mode, **rest)
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return descriptor

    monkeypatch.setattr(witness.os, "open", opened)
    try:
        key = witness.read_key(tmp_path / "keys" / "witness.pem")
    finally:
        os.umask(before)
    assert seen == [0o600] and stat.S_IMODE((tmp_path / "keys" / "witness.pem").stat().st_mode) == 0o600
    again = witness.read_key(tmp_path / "keys" / "witness.pem")
    assert key.public_key() == again.public_key()


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_files_that_are_no_key(tmp_path, content):
    (tmp_path / "key.pem").write_bytes(content)
    user_error(lambda: witness.read_key(tmp_path / "key.pem"), "no private key")
    user_error(lambda: witness.read_key(tmp_path), "no private key")
    assert (tmp_path / "key.pem").read_bytes() == content


def test_a_key_of_another_kind(tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "key.pem").write_bytes(pem)
    user_error(lambda: witness.read_key(tmp_path / "key.pem"), "not an Ed25519 key")


# --- the transcript ---


@pytest.fixture
def key(tmp_path):
    return witness.read_key(tmp_path / "witness.pem")


def answers_of(seed, rows=4):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (rows, 32), dtype=np.uint8), Answers(rng.normal(size=(rows, 3)).astype(np.float32))


def filled(folder, key, context=CONTEXT, batches=(0, 4, 8)):
    """A transcript of some batches, and the log of their answers."""
    log, transcript = AnswerLog(folder, {"model": "m"}), witness.Transcript(folder, key, context)
    for first in batches:
        log.add(first, *answers_of(first))
        transcript.add(first, *log.blocks[first])
    return log, transcript


def test_a_transcript_fits_what_it_saw_and_nothing_else(tmp_path, key):
    log, transcript = filled(tmp_path / "a", key)
    signed, (digests, answers) = transcript.sign(), log.collect()
    line = witness.check(signed, CONTEXT, digests, answers, "x")
    assert line.startswith("12 requests and replies") and signed["public_key"] in line
    assert witness.check(None, CONTEXT, digests, answers, "x") is None
    for change in range(12):
        values, sent = answers.values.copy(), digests.copy()
        values[change, 1] += 1e-6
        sent[change, 0] ^= 1
        user_error(lambda values=values: witness.check(signed, CONTEXT, digests, Answers(values), "x"), "witness saw")
        user_error(lambda sent=sent: witness.check(signed, CONTEXT, sent, answers, "x"), "witness saw")
    user_error(lambda: witness.check(signed, "ac" * 32, digests, answers, "x"), "witness saw")
    user_error(lambda: witness.check(signed, CONTEXT, digests[:8], answers.rows(slice(0, 8)), "x"), "witness saw")


def test_every_changed_part_of_a_transcript_is_noticed(tmp_path, key):
    log, transcript = filled(tmp_path / "a", key)
    digests, answers = log.collect()
    other = witness.read_key(tmp_path / "other.pem")

    def noticed(change):
        signed = json.loads(json.dumps(transcript.sign()))
        change(signed)
        user_error(lambda: witness.check(signed, CONTEXT, digests, answers, "bundle"), "bundle", "witness")

    entry = {"first": 5, "rows": 3, "time": "2030-01-01T00:00:00.000+00:00", "content": "0" * 64, "link": "0" * 64}
    for place in range(3):
        for name, value in entry.items():
            noticed(lambda signed, p=place, n=name, v=value: signed["entries"][p].update({n: v}))
    noticed(lambda signed: signed["entries"].pop())
    noticed(lambda signed: signed["entries"].pop(0))
    noticed(lambda signed: signed["entries"].reverse())
    noticed(lambda signed: signed["entries"].append(signed["entries"][0]))
    noticed(lambda signed: signed.update(entries=[]))
    noticed(lambda signed: signed.update(signature="0" * 128))
    noticed(lambda signed: signed.update(signature="0"))
    noticed(lambda signed: signed.update(public_key="0" * 64))
    noticed(lambda signed: signed.update(public_key=filled(tmp_path / "b", other)[1].sign()["public_key"]))
    noticed(lambda signed: signed.update(more=1))
    noticed(lambda signed: signed["entries"][0].update(time="\x1b[2J" * 6))


def test_batches_may_come_in_any_order(tmp_path, key):
    log, transcript = filled(tmp_path / "a", key, batches=(8, 0, 4))
    assert witness.check(transcript.sign(), CONTEXT, *log.collect(), "x")


# --- interruptions ---


def test_a_transcript_survives_interruptions(tmp_path, key):
    """Torn at any byte, twice: what was seen stays, one batch at most is asked again, the signature is right."""
    filled(tmp_path / "a", key)
    path, log_path = tmp_path / "a" / witness.TRANSCRIPT_FILE, tmp_path / "a" / "answers.bin"
    whole, answered = path.read_bytes(), log_path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in (last, last + 1, last + 100, len(whole) - 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        log_path.write_bytes(answered)
        log, transcript = AnswerLog(tmp_path / "a", {"model": "m"}), witness.Transcript(tmp_path / "a", key, CONTEXT)
        transcript.adopt(log)
        assert sorted(log.blocks) == [0, 4], "the last one was answered, and not yet seen"
        log.add(8, *answers_of(8))
        with open(path, "ab") as file:
            file.write(b'{"first": 8, "ro')  # and torn once more
        transcript = witness.Transcript(tmp_path / "a", key, CONTEXT)
        log = AnswerLog(tmp_path / "a", {"model": "m"})
        transcript.adopt(log)
        log.add(8, *answers_of(8))
        transcript.add(8, *log.blocks[8])
        again = witness.Transcript(tmp_path / "a", key, CONTEXT)
        kept = AnswerLog(tmp_path / "a", {"model": "m"})
        again.adopt(kept)
        assert sorted(kept.blocks) == [0, 4, 8]
        assert witness.check(again.sign(), CONTEXT, *kept.collect(), "x")


def test_an_interrupted_audit_with_a_witness_goes_on(audit, asked, tmp_path):
    flags = ("--query_batch", "16", "--witness", tmp_path / "w.pem")
    asked.after = 2
    assert audit(tmp_path / "out", *flags).code == 130
    first, asked.after, asked.images = list(asked.images), None, []
    done = audit(tmp_path / "out", *flags)
    assert done.code == 0 and len(asked.images) == QUERIES - len(first) and not set(first) & set(asked.images)
    document, order, digests, answers, _ = evidence.read_bundle(tmp_path / "out" / "evidence.zip")
    assert len(document["witness"]["entries"]) == 5
    context = witness.context_of(done.result["plan_sha256"], 2, order)
    assert witness.check(document["witness"], context, digests, answers, "x")
    before = (tmp_path / "out" / "evidence.zip").read_bytes()
    assert audit(tmp_path / "out", *flags).code == 0
    assert (tmp_path / "out" / "evidence.zip").read_bytes() == before


# --- folders that somebody else has filled ---


def test_answers_without_a_transcript_are_refused(tmp_path, key):
    log = AnswerLog(tmp_path / "a", {"model": "m"})
    for first in (0, 4):
        log.add(first, *answers_of(first))
    transcript = witness.Transcript(tmp_path / "a", key, CONTEXT)
    user_error(lambda: transcript.adopt(log), "not seen")


def test_a_transcript_of_the_accusers_own_making_is_refused(tmp_path, key):
    """Entries and links that fit the invented answers, as anybody can compute them: the witness would sign them."""
    filled(tmp_path / "a", witness.read_key(tmp_path / "accuser.pem"))
    user_error(lambda: witness.Transcript(tmp_path / "a", key, CONTEXT), "not what this witness wrote")
    path = tmp_path / "a" / witness.TRANSCRIPT_FILE
    for change in (lambda entry: entry.pop("signature"), lambda entry: entry.update(signature="")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for entry in lines:
            change(entry)
        path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
        user_error(lambda: witness.Transcript(tmp_path / "a", key, CONTEXT), "not what this witness wrote")


def test_what_the_witness_signed_in_another_audit_is_refused(tmp_path, key):
    filled(tmp_path / "a", key, context="cd" * 32)
    user_error(lambda: witness.Transcript(tmp_path / "a", key, CONTEXT), "not what this witness wrote")


def test_answers_that_were_changed_behind_the_witness_are_refused(tmp_path, key):
    filled(tmp_path / "a", key)
    (tmp_path / "a" / "answers.bin").unlink()
    log = AnswerLog(tmp_path / "a", {"model": "m"})
    for first in (0, 4, 8):
        log.add(first, *answers_of(first + (first == 4)))
    user_error(lambda: witness.Transcript(tmp_path / "a", key, CONTEXT).adopt(log), "not seen")
    user_error(
        lambda: witness.Transcript(tmp_path / "a", key, CONTEXT).adopt(AnswerLog(tmp_path / "b", {"model": "m"})),
        "not seen",
    )


def test_a_pre_filled_folder_is_refused_before_a_judgement_is_counted(audit, asked, record, tmp_path):
    """The accuser's own audit, in the folder that eval.py takes by itself, handed to the witness with the record."""
    assert audit(None, "--query_batch", "16").code == 0
    (folder,) = record.parent.glob("audit-*")
    before, asked.images = tree(record.parent), []
    done = audit(None, "--query_batch", "16", "--label", "1", "--witness", tmp_path / "w.pem", grid=("--device", "cpu"))
    refused(done, "not seen")
    done = audit(None, "--query_batch", "16", "--witness", tmp_path / "w.pem")
    refused(done, "not seen")
    assert asked.images == []
    assert {name: content for name, (content, _) in tree(record.parent).items()} == {
        name: content for name, (content, _) in before.items()
    }
    done = audit(tmp_path / "own", "--query_batch", "16", "--witness", tmp_path / "w.pem")
    assert done.code == 0 and len(asked.images) == QUERIES, "everything is asked anew"
    assert folder.exists()


# --- in a bundle ---


def witnessed_parts(tmp_path, forge=None):
    """A bundle with a genuine transcript. forge: what the accuser does with answers before a witness of his own."""
    document, order, digests, answers = bundle_parts()
    answers = answers if forge is None else forge(answers)
    document = judged(bundle_record(), order, answers)
    (entry,) = judgements.check_log(document["log"], "x")
    transcript = witness.Transcript(
        tmp_path / "t", witness.read_key(tmp_path / "w.pem"), witness.context_of(entry.digest, document["label"], order)
    )
    transcript.add(0, digests, answers)
    return {**document, "witness": transcript.sign()}, order, digests, answers


def test_a_replay_names_the_witness_and_believes_one_that_is_known(tmp_path, script):
    parts = witnessed_parts(tmp_path)
    evidence.write_bundle(tmp_path / "e.zip", *parts)
    signer = parts[0]["witness"]["public_key"]
    done = script("eval", "--replay", tmp_path / "e.zip", "--strict")
    assert done.code == 1 and done.out.startswith("! the answers are the word of a witness with the key")
    assert signer in flat(done.out) and "nothing shows" not in done.out
    done = script("eval", "--replay", tmp_path / "e.zip", "--witness_key", signer)
    assert done.code == 0 and "the word of a witness" not in done.out and f"signed by the key {signer}" in done.out
    done = script("eval", "--replay", tmp_path / "e.zip", "--witness_key", "0" * 64)
    refused(done, "no witness with the key")


def test_a_witness_of_the_forgers_own_making_is_named(tmp_path, script):
    """Anybody can make a key and sign invented answers with it."""
    parts = witnessed_parts(tmp_path, lambda answers: Answers(answers.values * 2))
    evidence.write_bundle(tmp_path / "e.zip", *parts)
    done = script("eval", "--replay", tmp_path / "e.zip", "--strict")
    assert done.code == 1 and "anybody could have made" in flat(done.out)


def test_a_bundle_without_a_witness_has_not_the_one_that_is_known(tmp_path, script):
    evidence.write_bundle(tmp_path / "e.zip", *bundle_parts())
    refused(script("eval", "--replay", tmp_path / "e.zip", "--witness_key", "ab" * 32), "no witness with the key")


def test_honest_answers_in_another_order_are_not_what_the_witness_saw(tmp_path, script):
    """Which answer belongs to which photo is not in the answers: who may say so afterwards can have any p."""
    document, order, digests, answers = witnessed_parts(tmp_path)
    best = order[np.argsort(order)]
    assert sorted(best) == list(range(50))
    moved = np.roll(order, 5)
    made = {**judged(bundle_record(), moved, answers), "witness": document["witness"]}
    evidence.write_bundle(tmp_path / "e.zip", made, moved, digests, answers)
    refused(script("eval", "--replay", tmp_path / "e.zip"), "witness saw")


def test_another_plan_or_class_than_the_witness_saw(tmp_path, script):
    document, order, digests, answers = witnessed_parts(tmp_path)
    for changes in ({"alpha": 0.05}, {"answers": "label only"}):
        made = {**judged(bundle_record(), order, answers, plan=changes), "witness": document["witness"]}
        evidence.write_bundle(tmp_path / "e.zip", made, order, digests, answers)
        refused(script("eval", "--replay", tmp_path / "e.zip"), "witness saw")
    named = bundle_record("cat")
    made = {**judged(named, order, answers, 2), "class_name": "cat", "witness": document["witness"]}
    evidence.write_bundle(tmp_path / "e.zip", made, order, digests, answers)
    refused(script("eval", "--replay", tmp_path / "e.zip"), "witness saw")
    assert witness.context_of("ab" * 32, 2, order) != witness.context_of("ab" * 32, 3, order)
    assert user_audit.query_order(bundle_record(), 50, "").tolist() == order.tolist()


def test_a_witness_can_be_any_folder_away(tmp_path, key):
    """The record's folder may be copied in between: nothing in a transcript hangs on a path."""
    filled(tmp_path / "a", key)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    transcript = witness.Transcript(tmp_path / "b", key, CONTEXT)
    assert witness.check(transcript.sign(), CONTEXT, *AnswerLog(tmp_path / "b", {"model": "m"}).collect(), "x")
