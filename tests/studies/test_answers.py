"""Answers of suspects and references that are kept, and what claims are made of them."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import log_softmax

import utils
from kit.names import MOST_VIEWS
from studies import answers, claims, common, statistic
from suspects.views import view_of
from tests.studies.conftest import KEYS, PHOTOS


def test_users_are_those_of_the_file(stored):
    path, found = stored
    users = answers.users_of(path)
    assert [user.kind for user in users] == list(answers.KINDS) and [user.label for user in users] == [2, 1, 3]
    assert all(set(user.references) == set(answers.CLAIMED_REFERENCES) for user in users)
    logits = found["suspect 1"].astype(np.float64)
    np.testing.assert_allclose(users[1].scores("suspect"), np.sqrt(-log_softmax(logits, axis=-1)[..., 1]))
    assert (users[1].wrong("suspect") == (logits.argmax(-1) != 1)).all()


def test_fewer_photos_are_half_published_and_keep_their_answers(stored):
    user = answers.users_of(stored[0])[0]
    fewer, kept = user.with_fewer(8)
    assert len(kept) == 8 and fewer.published.sum() == 4 and (fewer.published == user.published[kept]).all()
    assert len(user.published) == PHOTOS, "the user with all photos stays as it was"


def test_who_is_remembered_is_found_and_a_reference_helps(stored):
    users = answers.users_of(stored[0])
    with_reference, without = (claims.p_of(users[0], 18, names, False) for names in (claims.GOOD[:1], ()))
    assert with_reference < 0.001 and with_reference <= without
    assert claims.p_of(users[1], 18, claims.GOOD[:1], False) > 0.01 < claims.p_of(users[2], None, (), False)
    assert claims.p_of(users[0], 18, claims.GOOD[:1], False, photos=6) > with_reference


def test_claims_count_what_was_found():
    table = pd.DataFrame(
        {"kind": "marked", "test": "one", "p": [0.0005, 0.002, 0.00005, 0.5], "seed": 1, "user": range(4)}
    )
    text, found = claims.summary(table)
    assert found["marked"]["one"]["0.001"]["hits"] == 2 and found["marked"]["one"]["0.0001"]["hits"] == 1
    assert "0.5000" in text and f"{np.exp(np.log(table.p).mean()):.6f}" in text


def test_every_way_of_the_choice_has_the_form_of_the_scores(stored):
    for user in answers.users_of(stored[0])[:2]:
        for reference, way, left in statistic.ways(user):
            assert left.shape == (PHOTOS, KEYS) and np.isfinite(left).all(), (reference, way)
    slope = statistic.slope(np.array([[1.0], [3.0]]), np.array([[0.0], [1.0]]))
    assert slope == pytest.approx(2) and statistic.slope(np.array([[3.0], [1.0]]), np.array([[0.0], [1.0]])) == 0


def test_views_of_marked_pictures_are_asked_about_in_their_places():
    originals = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    keys, kind = [b"a" * 32, b"b" * 32], common.Kind()

    def query(images):
        return images.float().mean(dim=(2, 3))

    asked = common.ask_views({"one": query, "two": lambda images: -query(images)}, originals, keys, kind, batch=7)
    assert asked["one"].shape == (3, 2, MOST_VIEWS, 3)
    marked = utils.mark_images(originals, keys[1], np.zeros(3, int), np.arange(3), common.SETTINGS.marking()).numpy()
    expected = query(torch.from_numpy(view_of(marked, 5))).numpy()
    np.testing.assert_allclose(asked["one"][:, 1, 5], expected, rtol=1e-5)
    np.testing.assert_allclose(asked["two"], -asked["one"])


def test_pools_of_users_and_references_are_disjoint():
    data = common.load_dataset("photos")
    for half in ("choice", "claims"):
        ours, theirs = answers.pools(data, half)
        assert not set(ours) & set(theirs) and len(ours) and len(theirs)
        assert not data.is_test[torch.from_numpy(np.concatenate([ours, theirs]))].any()
    assert not set(answers.pools(data, "choice")[0]) & set(answers.pools(data, "claims")[0])
