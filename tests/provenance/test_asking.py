"""Asking a model for all images of an audit: in any batches and any order, and what is there is never asked again."""

import json
import struct
import threading
import time
import zlib

import numpy as np
import pytest

from kit.errors import UserError
from provenance import evidence, witness
from provenance import grid as user_audit
from provenance.evidence import AnswerLog
from suspects.suspect import Answers, Preprocessing, Suspect

COUNT, SIDE = 50, 4
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 3, SIDE, SIDE), dtype=np.uint8)
SETTINGS = {"model": "m"}
LONG = 120  # seconds that nobody waits
OTHERS = 9 * (20 + 5 * (32 + 3 * 4) + 4)  # bytes of nine blocks of five answers


class Model(Suspect):
    """Answers with sums of pixels; slow in an order of its own; fails from the given call on.

    together: the first so many calls wait for each other, so that they are under way at once.
    """

    def __init__(self, batch_size=8, concurrency=1, fails_from=None, answer=None, together=0):
        self.preprocessing, self.batch_size, self.concurrency = Preprocessing((SIDE, SIDE)), batch_size, concurrency
        self.fails_from, self.asked, self.calls, self.most, self._now = fails_from, [], 0, 0, 0
        self._lock, self._answer = threading.Lock(), answer or self.values
        self._meeting, self._together = threading.Barrier(max(1, together)), together

    @staticmethod
    def values(images):
        return Answers(images.reshape(len(images), 3, -1).sum(axis=2).astype(np.float32))

    def ask(self, images):
        assert len(images) <= self.batch_size
        with self._lock:
            self.calls += 1
            number, self._now = self.calls, self._now + 1
            self.most = max(self.most, self._now)
        try:
            if number <= self._together:
                self._meeting.wait(timeout=LONG)  # BrokenBarrierError where fewer are ever under way
            if self.concurrency > 1:
                time.sleep(0.002 * (number % 5))
            if self.fails_from is not None and number > self.fails_from:
                raise UserError("the server is gone", advice="try again later")
            with self._lock:
                self.asked += [image.tobytes() for image in images]
            return self._answer(images)
        finally:
            with self._lock:
                self._now -= 1


def ask(folder, model, transcript=None, images=IMAGES):
    log = AnswerLog(folder, SETTINGS)
    return user_audit.ask_all(log, model, len(images), lambda places: images[places], "asking", transcript)


def until(condition):
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def right(found, images=IMAGES):
    digests, answers = found
    return (digests == user_audit.digests_of(images)).all() and (
        answers.values.tobytes() == Model.values(images).values.tobytes()
    )


# --- several requests at once ---


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("batch_size", [1, 8, 50, 64])
def test_the_result_has_the_same_bits_in_any_batches_and_any_order(tmp_path, batch_size, concurrency):
    at_once = min(concurrency, -(-COUNT // batch_size))
    model = Model(batch_size, concurrency, together=at_once)
    assert right(ask(tmp_path / "log", model))
    assert model.most == at_once
    assert sorted(model.asked) == sorted(image.tobytes() for image in IMAGES)
    again = Model(batch_size, concurrency)
    assert right(ask(tmp_path / "log", again)) and again.calls == 0


def test_answers_are_on_disk_as_soon_as_they_come(tmp_path):
    """Also while another request takes its time, and while the next images are made."""
    seen, path = [], tmp_path / "log" / evidence.ANSWER_FILE

    class Slow(Model):
        def ask(self, images):
            if (images == IMAGES[:5]).all():
                until(lambda: path.exists() and path.stat().st_size >= OTHERS)
                seen.append(path.stat().st_size)
            return super().ask(images)

    assert right(ask(tmp_path / "log", Slow(5, 3)))
    assert seen == [OTHERS]


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_failure_in_the_middle_says_what_is_kept_and_the_same_call_goes_on(tmp_path, concurrency):
    with pytest.raises(UserError, match="the server is gone") as error:
        ask(tmp_path / "log", Model(8, concurrency, fails_from=3))
    kept = sum(len(answers) for _, answers in AnswerLog(tmp_path / "log", SETTINGS).blocks.values())
    assert kept == 24
    assert "try again later; the 24 of 50 answers that came are kept, and the same command goes on" in str(error.value)
    model = Model(8, concurrency)
    assert right(ask(tmp_path / "log", model)) and len(model.asked) == 26
    with pytest.raises(UserError) as error:  # where nothing came there is nothing to keep
        ask(tmp_path / "new", Model(8, concurrency, fails_from=0))
    assert "kept" not in str(error.value)


def test_nothing_is_stored_when_nobody_waits_any_more(tmp_path):
    """A job that was cancelled leaves its folder alone, though its requests are still under way."""
    gate, asking = threading.Event(), []

    class Late(Model):
        def ask(self, images):
            asking.append(threading.current_thread())
            if not (images == IMAGES[:8]).all():
                gate.wait(LONG)
            return super().ask(images)

    def prepare(places):
        if places[0] >= 24:
            until(lambda: len(asking) == 3)
            raise KeyboardInterrupt
        return IMAGES[places]

    log = AnswerLog(tmp_path / "log", SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        user_audit.ask_all(log, Late(8, 4), COUNT, prepare, "asking")
    before = (tmp_path / "log" / evidence.ANSWER_FILE).read_bytes() if log.path.exists() else b""
    gate.set()
    for thread in asking:
        thread.join(LONG)
        assert not thread.is_alive()
    assert (log.path.read_bytes() if log.path.exists() else b"") == before


# --- batches of another size ---


@pytest.mark.parametrize("first,then", [(8, 5), (8, 50), (7, 8), (1, 64)])
def test_another_batch_size_goes_on(tmp_path, first, then):
    with pytest.raises(UserError):
        ask(tmp_path / "log", Model(first, fails_from=2))
    model = Model(then)
    assert right(ask(tmp_path / "log", model)) and len(model.asked) == COUNT - 2 * first


def test_a_batch_size_that_shrinks_on_the_way(tmp_path):
    class Shrinking(Model):
        def ask(self, images):
            answers = super().ask(images)
            self.batch_size = max(1, self.batch_size - 1)
            return answers

    model = Shrinking(8)
    assert right(ask(tmp_path / "log", model)) and model.batch_size < 8 and len(model.asked) == COUNT


def old_block(number, images):
    """A block as earlier versions wrote it: with the number of its batch."""
    digests, answers = user_audit.digests_of(images), Model.values(images)
    block = struct.pack("<4sIIII", b"MTA2", number, len(images), 3, 0) + digests.tobytes() + answers.values.tobytes()
    return block + struct.pack("<I", zlib.crc32(block))


def old_folder(folder, batches, batch_size=8):
    folder.mkdir()
    (folder / "audit.json").write_text(json.dumps({**SETTINGS, "batch_size": batch_size}))
    parts = [IMAGES[number * batch_size : (number + 1) * batch_size] for number in batches]
    (folder / evidence.ANSWER_FILE).write_bytes(
        b"".join(old_block(number, part) for number, part in zip(batches, parts, strict=True))
    )
    return sum(map(len, parts))


@pytest.mark.parametrize("batches", [(0,), (0, 1, 2), (0, 1, 2, 3, 4, 5, 6)])
@pytest.mark.parametrize("batch_size", [8, 3])
def test_answers_of_earlier_versions_are_kept(tmp_path, batches, batch_size):
    there = old_folder(tmp_path / "log", batches)
    model = Model(batch_size)
    assert right(ask(tmp_path / "log", model)) and len(model.asked) == COUNT - there
    assert "batch_size" not in json.loads((tmp_path / "log" / "audit.json").read_text())
    assert right(ask(tmp_path / "log", Model(5, fails_from=0)))


def test_of_blocks_that_overlap_the_later_count(tmp_path):
    log = AnswerLog(tmp_path / "log", SETTINGS)
    for first, rows in ((0, 8), (8, 8), (16, 8), (4, 8)):
        log.add(first, user_audit.digests_of(IMAGES[first : first + rows]), Model.values(IMAGES[first : first + rows]))
    log = AnswerLog(tmp_path / "log", SETTINGS)
    log.drop_replaced()
    assert sorted(log.blocks) == [4, 16] and log.gaps(COUNT) == [(0, 4), (12, 16), (24, 50)]
    assert right(ask(tmp_path / "log", Model(8)))


# --- witnesses ---


def witnessed(folder, model, images=IMAGES):
    transcript = witness.Transcript(folder, witness.read_key(folder.parent / "key.pem"), "ab" * 32)
    digests, answers = ask(folder, model, transcript, images)
    return transcript.sign(), digests, answers


@pytest.mark.parametrize("batch_size,concurrency", [(8, 1), (8, 4), (1, 4), (50, 1)])
def test_a_transcript_fits_in_whatever_order_replies_came(tmp_path, batch_size, concurrency):
    signed, digests, answers = witnessed(tmp_path / "log", Model(batch_size, concurrency))
    assert f"{COUNT} requests and replies" in witness.check(signed, "ab" * 32, digests, answers, "x")
    firsts = [entry["first"] for entry in signed["entries"]]
    assert sorted(firsts) == list(range(0, COUNT, batch_size)) and "batch" not in signed["entries"][0]
    another = 0 if firsts[0] else 1  # the second reply may have come first
    for change in ({"first": another}, {"rows": 9}, {"first": None, "batch": None}, {"batch": 0}):
        wrong = {**signed, "entries": [{**signed["entries"][0], **change}, *signed["entries"][1:]]}
        with pytest.raises(UserError, match=r"saw|damaged"):
            witness.check(wrong, "ab" * 32, digests, answers, "x")


@pytest.mark.parametrize("then", [8, 5, 20])
def test_a_witness_asks_again_what_was_answered_behind_its_back(tmp_path, then):
    """One batch may have been stored just before an interruption; the next one may have another size."""
    with pytest.raises(UserError):
        witnessed(tmp_path / "log", Model(8, fails_from=3))
    path = tmp_path / "log" / witness.TRANSCRIPT_FILE
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError):
        witnessed(tmp_path / "log", Model(then, fails_from=1))
    signed, digests, answers = witnessed(tmp_path / "log", Model(7))
    assert right((digests, answers)) and witness.check(signed, "ab" * 32, digests, answers, "x")


# --- probabilities and logits ---


def test_both_among_the_answers_of_a_file_are_named(tmp_path, capsys):
    calls = []

    def either(images):
        calls.append(None)
        values = np.full((len(images), 2), [0.25, 0.75] if len(calls) % 2 else [-3, 5], np.float32)
        return Answers(values)

    ask(tmp_path / "log", Model(8, answer=either))
    assert "some replies" in capsys.readouterr().err
    ask(tmp_path / "other", Model(8))
    assert not capsys.readouterr().err


def test_a_model_hears_what_was_answered_before(tmp_path):
    heard = []

    class Listening(Model):
        def remember(self, answers):
            heard.append(answers)

    with pytest.raises(UserError):
        ask(tmp_path / "log", Listening(8, fails_from=2))
    assert not heard
    ask(tmp_path / "log", Listening(8))
    assert len(heard) == 1 and heard[0].values.shape == (8, 3)
