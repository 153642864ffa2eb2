"""What follows from a secret, a commitment and the beacon: keys, selections, and the order of queries."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from scipy.stats import chisquare

from provenance import draw, protect
from provenance import grid as user_audit
from provenance import record as records
from provenance.commit import Public
from provenance.folder import inspect_folder
from suspects.suspect import Answers
from tests.provenance.drand import own_chain, sign
from tests.provenance.parts import SETTINGS, make_record, photo_entries, picture, save

CONTEXT = draw.context_of("12" * 32, "34" * 32)
BATCHES = [(b"a" * 32, CONTEXT, 7, 3, ()), (b"b" * 32, CONTEXT, 2, 2, ()), (b"c" * 32, CONTEXT, 10, 5, ())]


def drawn(entries, signature=None, beacon=None, seed=5, holdout=0.5, groups=None):
    """A record of one batch of photos, committed on some day with a known secret, and drawn."""
    if groups:
        entries = [{**entry, "group": group} for entry, group in zip(entries, groups, strict=True)]
    record = records.commit_batch(
        records.new_record(SETTINGS), entries, holdout, "in", "out", beacon=beacon, seed=seed, created="some day"
    )
    return records.draw_batch(record, {photo.number: f"{photo.number}.png" for photo in record.photos}, signature)


def published_contents(record):
    return {photo.original_sha256 for photo in record.photos if photo.published}


# --- names and numbers decide nothing ---


def test_renaming_and_reordering_files_before_the_commitment_changes_nothing():
    entries = photo_entries([f"{number}.png" for number in range(12)])
    before = drawn(entries)
    renamed = [{**entry, "original": f"z{place}/{entry['original'][::-1]}"} for place, entry in enumerate(entries)]
    for other in (renamed, renamed[::-1], renamed[5:] + renamed[:5]):
        after = drawn(other)
        assert after.commitments == before.commitments and after.keys(3) == before.keys(3)
        assert published_contents(after) == published_contents(before)
        assert (after.selections(20) == before.selections(20)).all()
        assert [photo.original_sha256 for photo in after.photos] == [photo.original_sha256 for photo in before.photos]


def test_renamed_files_on_disk_get_the_same_half_and_the_same_marks(tmp_path, mark, one_day):
    """The attack by names: the easy photos come first in the folder, and are published."""
    found = []
    for order in (range(10), [9, 3, 7, 1, 5, 0, 8, 2, 6, 4]):
        folder = tmp_path / f"{len(found)}" / "user"
        for place, number in enumerate(order):
            save(folder / f"{place}.png", picture(number))
        assert mark(folder, "--holdout", "0.5", "--seed", "4").code == 0
        record = records.read_record(folder.with_name("user_record"))
        marks = {
            photo.original_sha256: photo.marked_sha256 for photo in record.photos
        }  # the mark's noise follows from the number, which follows from the content
        found.append((record.commitments, marks))
    assert found[0] == found[1]


def test_another_photo_draws_everything_anew():
    """Nobody can keep a half that pleases and exchange photos in it."""
    entries = photo_entries([f"{number}.png" for number in range(12)])
    before, after = drawn(entries), drawn([*entries[:-1], *photo_entries(["other.png"])])
    assert before.keys(0) != after.keys(0) and (before.selections(200) != after.selections(200)).any(axis=1).sum() > 190


# --- nothing is known before the round ---


@pytest.fixture(scope="module")
def beacon():
    return records.BeaconRound.of(own_chain(), 1000)


def test_the_rounds_randomness_decides_key_and_half(beacon):
    """Before the round there is nothing in commitment and secret that the draw follows from."""
    entries = photo_entries([f"{number}.png" for number in range(20)])
    rounds = [sign(1000).signature, *(f"{number:096x}" for number in range(60))]
    records_drawn = [drawn(entries, signature, beacon) for signature in rounds]
    assert len({record.commitments[0] for record in records_drawn}) == 1, "one commitment for all"
    assert len({record.keys(0)[0] for record in records_drawn}) == len(rounds)
    halves = np.stack([record.published for record in records_drawn])
    assert len({half.tobytes() for half in halves}) == len(rounds)
    assert halves.mean(axis=0).min() > 0.3 and halves.mean(axis=0).max() < 0.7, "no photo is surer than others"


def test_the_same_secret_under_another_round_or_setting_is_another_draw(beacon):
    entries = photo_entries([f"{number}.png" for number in range(20)])
    signature = sign(1000).signature
    before = drawn(entries, signature, beacon)
    others = [
        drawn(entries, signature, beacon.model_copy(update={"round": 1001})),
        drawn(entries, signature, beacon.model_copy(update={"period": 4})),
        drawn(entries, signature, beacon, holdout=0.45),
        drawn(entries),
    ]
    assert len({record.keys(0)[0] for record in [before, *others]}) == 5


def test_a_batch_that_is_committed_is_not_drawn(beacon):
    record = records.commit_batch(records.new_record(SETTINGS), photo_entries("abcd"), 0.5, "in", "out", beacon=beacon)
    assert not record.published.any() and all(photo.published is None for photo in record.photos)
    with pytest.raises(ValueError):
        records.draw_batch(record, {})


# --- batches ---


def test_nothing_of_one_batch_says_anything_about_the_next(tmp_path, mark, script):
    """Who has record.json and evidence of batch 1 and knows every photo of batch 2 can't tell what is published."""
    folder = tmp_path / "user"
    for number in range(4):
        save(folder / f"{number}.png", picture(number))
    assert mark(folder, "--holdout", "0.5").code == 0
    place, halves, secrets = folder.with_name("user_record"), set(), set()
    first = (place / "record.json").read_text()
    for number in range(10, 16):
        save(folder / f"{number}.png", picture(number))
    for copy in range(8):
        other = shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-{copy}")) / "user"
        assert mark(other, "--record", other.with_name("user_record"), "--holdout", "0.5").code == 0
        record = records.read_record(other.with_name("user_record"))
        assert json.loads(first)["batches"][0]["secret"] == record.batches[0].secret
        secrets |= {record.batches[1].secret, record.batches[1].secrets[0].hex(), record.batches[1].secrets[1].hex()}
        halves.add(record.published[4:].tobytes())
    assert len(secrets) == 24 and not any(secret in first for secret in secrets)
    assert len(halves) > 1, "the same record and photos, and another half each time"


def test_batches_draw_apart():
    """Two batches of the same size must not be cut in the same way: their halves would be dependent."""
    record = make_record((12, 0.5), (12, 0.5))
    two = record.selections(200)
    assert (two[:, :12] == two[:, 12:]).all(axis=1).sum() <= 3
    assert len(set(record.keys(0)[0])) == 2 and record.batches[0].context != record.batches[1].context


# --- selections ---


def test_row_0_is_what_was_published():
    for seed in range(20):
        record = make_record((9, 0.5), (4, 0), (10, 0.3), seed=seed)
        for audit_seed in ("", "court"):
            rows = record.selections(30, audit_seed)
            assert (rows[0] == record.published).all() and rows.shape == (31, 23) and rows.dtype == bool
            assert (rows[:, :9].sum(1) == 5).all() and rows[:, 9:13].all() and (rows[:, 13:].sum(1) == 7).all()
            assert len({row.tobytes() for row in rows}) > 25


def test_draws_are_the_same_bits_on_every_machine():
    rows = records.selections_of(BATCHES, 50, "court")
    assert hashlib.sha256(np.packbits(rows).tobytes()).hexdigest() == (
        "3b12b04c773ff9fbad0198ef10ca20017e69dfd7ece94e1b531d640daef6c0f5"
    )
    keys = b"".join(draw.mark_key(b"d" * 32, CONTEXT, number, "court") for number in range(5))
    assert hashlib.sha256(keys).hexdigest() == ("7ac45143ad1cb184a63821385175cb3817409f3153d45c8a0b5f09458cee17f7")
    other = records.selections_of(BATCHES, 50, "")
    assert (rows[0] == other[0]).all() and (rows[1:] != other[1:]).any(axis=1).sum() > 40
    assert (records.selections_of(BATCHES, 9, "court") == rows[:10]).all()
    another = [(b"z" * 32, *batch[1:]) for batch in BATCHES]
    assert (records.selections_of(another, 50, "court")[0] != rows[0]).any()


@pytest.mark.parametrize("groups", [(), (0, 1, 2, 3, 4, 5)])
def test_fresh_selections_are_uniform(groups):
    """All 20 halves of 6 photos, and row 0 over many secrets like any other row."""
    fresh = records.selections_of([(b"e" * 32, CONTEXT, 6, 3, groups)], 2000)[1:]
    own = np.stack(
        [draw.selection(number.to_bytes(32, "big"), CONTEXT, 0, 6, 3, groups=groups) for number in range(2000)]
    )
    for rows in (fresh, own):
        counts = np.unique(rows @ (1 << np.arange(6)), return_counts=True)[1]
        assert len(counts) == 20 and chisquare(counts).pvalue > 1e-4


def test_groups_are_drawn_as_one_and_row_0_like_every_other():
    groups = (0, 0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9)
    entries = photo_entries([f"{number}.png" for number in range(12)])
    record = drawn(entries, groups=groups)
    kept = record.batches[0].commit.groups
    rows = records.selections_of([(number.to_bytes(32, "big"), CONTEXT, 12, 6, kept) for number in range(1)], 3000)
    for group in set(kept):
        together = rows[:, [place for place, other in enumerate(kept) if other == group]]
        assert (together.all(axis=1) | ~together.any(axis=1)).all()
    own = np.stack(
        [draw.selection(number.to_bytes(32, "big"), CONTEXT, 0, 12, 6, groups=kept) for number in range(3000)]
    )
    assert np.abs(own.mean(axis=0) - rows[1:].mean(axis=0)).max() < 5 * np.sqrt(0.5 / 3000)
    assert (record.selections(5)[0] == record.published).all()


# --- keys and queries ---


def test_audit_keys():
    record = make_record((4, 0.5), (3, 0))
    keys = record.keys(30)
    flat = [key for pair in keys for key in pair]
    assert len(set(flat)) == 62 and all(len(key) == 32 for key in flat)
    assert [record.key_of(photo) for photo in record.photos] == [keys[0][0]] * 4 + [keys[0][1]] * 3
    assert record.keys(7) == keys[:8] and record.keys(0) == keys[:1]
    other = record.keys(30, "court")
    assert other[0] == keys[0] and not {key for pair in other[1:] for key in pair} & set(flat)
    secrets = {secret for batch in record.batches for secret in (bytes.fromhex(batch.secret), *batch.secrets)}
    assert not secrets & set(flat)


def test_the_order_of_queries():
    record = make_record((4, 0.5))
    order = user_audit.query_order(record, 80, "")
    assert sorted(order) == list(range(80)) and (order == user_audit.query_order(record, 80, "")).all()
    assert (order != user_audit.query_order(record, 80, "court")).any() and order.tolist() != sorted(order)
    answers = Answers(order[:, None].astype(np.float32))  # query number q answers q
    assert user_audit.in_order(answers, order).values.ravel().tolist() == list(range(80))
    assert user_audit.in_order(answers, order).rows([40, 3]).values.ravel().tolist() == [40, 3]


def test_a_job_names_a_round_that_is_not_out(tmp_path):
    """Wherever public randomness is wanted, what is committed names a round of the future."""
    for number in range(4):
        save(tmp_path / "user" / f"{number}.png", picture(number))
    found = inspect_folder(tmp_path / "user")
    begun = records.datetime.now().timestamp()
    job = protect.open_record(found, SETTINGS, 0.5, public=Public(own_chain()))
    named = job.record.batches[-1].commit.beacon
    assert begun + 50 < named.genesis_time + (named.round - 1) * named.period
    assert not job.record.batches[-1].drawn
