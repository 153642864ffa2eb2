"""What an audit draws from a record: selections, keys, and the order of queries."""

import hashlib

import numpy as np
from scipy.stats import chisquare

from provenance import grid as user_audit
from provenance import record as records
from suspects.suspect import Answers
from tests.provenance.parts import make_record

BATCHES = [{"photos": 7, "published": 3}, {"photos": 2, "published": 2}, {"photos": 10, "published": 5}]


def test_row_0_is_what_was_published():
    for seed in range(20):
        record = make_record((9, 0.5), (4, 0), (10, 0.3), seed=seed)
        for audit_seed in ("", "court"):
            drawn = records.draw_selections(record.selection_key, record.batches, 30, audit_seed)
            assert (drawn[0] == record.published).all() and drawn.shape == (31, 23) and drawn.dtype == bool
            assert (drawn[:, :9].sum(1) == 5).all() and drawn[:, 9:13].all() and (drawn[:, 13:].sum(1) == 7).all()
            assert len({row.tobytes() for row in drawn}) > 25


def test_selections_are_the_same_bits_on_every_machine():
    drawn = records.draw_selections("ab" * 32, BATCHES, 50, "court")
    assert (
        hashlib.sha256(np.packbits(drawn).tobytes()).hexdigest()
        == "66c062e890990780cc7bf55ba3da979b8aa510a77602d55d0821661903306f64"
    )
    other = records.draw_selections("ab" * 32, BATCHES, 50, "")
    assert (drawn[0] == other[0]).all() and (drawn[1:] != other[1:]).any(axis=1).sum() > 40
    assert (records.draw_selections("ab" * 32, BATCHES, 9, "court") == drawn[:10]).all()
    assert (records.draw_selections("ac" * 32, BATCHES, 50, "court")[0] != drawn[0]).any()


def test_fresh_selections_are_uniform():
    """All 20 halves of 6 photos, and row 0 over many keys like any other row."""
    six = [{"photos": 6, "published": 3}]
    fresh = records.draw_selections("cd" * 32, six, 2000)[1:]
    own = np.concatenate([records.draw_selections(f"{number:064x}", six, 0) for number in range(2000)])
    for drawn in (fresh, own):
        counts = np.unique(drawn @ (1 << np.arange(6)), return_counts=True)[1]
        assert len(counts) == 20 and chisquare(counts).pvalue > 1e-4


def test_batches_draw_apart():
    """Two batches of the same size must not be cut in the same way: their halves would be dependent."""
    two = [{"photos": 12, "published": 6}] * 2
    drawn = records.draw_selections("ef" * 32, two, 200)
    assert (drawn[:, :12] == drawn[:, 12:]).all(axis=1).sum() <= 3


def test_audit_keys():
    record = make_record((4, 0.5))
    keys = records.audit_keys(record, 30)
    assert keys[0] == bytes.fromhex(record.key) and len(set(keys)) == 31 and all(len(key) == 32 for key in keys)
    assert records.audit_keys(record, 7) == keys[:8] and records.audit_keys(record, 0) == keys[:1]
    other = records.audit_keys(record, 30, "court")
    assert other[0] == keys[0] and not set(other[1:]) & set(keys)
    assert bytes.fromhex(record.selection_key) not in keys


def test_the_order_of_queries():
    record = make_record((4, 0.5))
    order = user_audit.query_order(record, 80, "")
    assert sorted(order) == list(range(80)) and (order == user_audit.query_order(record, 80, "")).all()
    assert (order != user_audit.query_order(record, 80, "court")).any() and order.tolist() != sorted(order)
    answers = Answers(order[:, None].astype(np.float32))  # query number q answers q
    assert user_audit.rows_of(answers, order, slice(None)).values.ravel().tolist() == list(range(80))
    assert user_audit.rows_of(answers, order, [40, 3]).values.ravel().tolist() == [40, 3]
