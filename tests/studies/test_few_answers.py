"""studies/few_answers.py counts the queries of the very audits: all at once, and photo by photo until it is enough."""

import numpy as np
import pandas as pd
import pytest

from attacks import sequential as bets
from studies import answers, claims, few_answers
from tests.studies.conftest import PHOTOS

FILE, SERVER, REFERENCE = few_answers.FILE, few_answers.SERVER, few_answers.REFERENCE


@pytest.fixture(scope="module")
def users(stored):
    """A remembered user and an innocent one, both marked in some way, and an innocent one who is not."""
    return answers.users_of(stored[0])


def asked(user, beside=REFERENCE, one_by_one=True, model=FILE, views=18):
    return few_answers.judge_user(user, few_answers.record_of(user), views, False, beside, one_by_one, model)


@pytest.mark.parametrize("beside", [(), REFERENCE])
def test_all_at_once_is_what_the_claims_say(users, beside):
    for user in users[:2]:
        p, queries, stopped = asked(user, beside, one_by_one=False)
        assert p == pytest.approx(claims.p_of(user, 18, beside, False)) and stopped is None
        assert queries == user.scores("suspect").size


def test_the_bets_end_where_the_wealth_has_grown_enough(users, monkeypatch):
    """Worked out a second time from scores, in the order of what the reference finds hard."""
    monkeypatch.setattr(few_answers, "ALPHA", 0.02)  # which twenty photos can reach
    user, record = users[0], few_answers.record_of(users[0])
    p, queries, stopped = asked(user)
    scores, hard = (user.scores(name)[:, 0].mean(axis=1) for name in ("suspect", *REFERENCE))
    order = record.sequence()
    steps = np.round((hard - hard.mean()) / hard.std() * 8) / 8
    order = order[bets.hardest_first(steps[order])]
    run = bets.run(scores[order], user.published[order], hard[order], few_answers.ALPHA / 2)
    assert run.photos and run.photos < PHOTOS
    assert queries == stopped == 18 * run.photos and p <= few_answers.ALPHA
    assert asked(user, model=SERVER)[1:] == (queries, stopped), "until then a file is asked as a server is"


def test_who_is_not_remembered_costs_all_that_may_be_asked(users):
    whole = users[1].scores("suspect").size
    p, queries, stopped = asked(users[1])
    assert p > 0.01 and (queries, stopped) == (whole, None)
    assert asked(users[1], model=SERVER)[1:] == (18 * PHOTOS, None)
    assert asked(users[2])[1:] == (18 * PHOTOS, None)


def test_the_table_counts_those_that_were_found():
    one = {"kind": "marked", "way": "2 views", "reference": True, "asked": "photo by photo, a file"}
    numbers = [(0.0001, 100, 100), (0.0009, 300, np.nan), (0.2, 1000, np.nan), (0.001, 200, 200)]
    table = pd.DataFrame([{**one, "p": p, "queries": queries, "bets": some} for p, queries, some in numbers])
    text, (found,) = few_answers.summary(table)
    assert (found["found"]["hits"], found["found"]["of"], found["by the bets"]["hits"]) == (3, 4, 2)
    assert (found["median"], found["quantile"], found["mean"], found["most"]) == (200, 280, 400, 1000)
    assert "| 2 of 4 | 200 | 280 | 400 | 1,000 |" in text
