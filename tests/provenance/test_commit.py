"""From a commitment to a draw: the round is named before it is out, the date is older, and draws that were thrown away
are counted."""

import base64
import json
import time

import numpy as np
import pytest

from provenance import beacon, commit, disclosed
from provenance import record as records
from provenance.commit import Public
from tests.parts import call, user_error
from tests.provenance.authority import Authority
from tests.provenance.drand import answer, own_chain, serving, sign
from tests.provenance.parts import (
    SETTINGS,
    contents,
    flat,
    loaded,
    marked_of,
    photo_entries,
    picture,
    record_of,
    refused,
    save,
    tree,
)

CHAIN = own_chain()


@pytest.fixture(scope="module")
def chain_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("chain") / "chain.json"
    info = {name: getattr(CHAIN, name) for name in ("public_key", "period", "genesis_time", "scheme", "hash")}
    path.write_text(json.dumps({**info, "groupHash": CHAIN.group_hash, "beacon_id": CHAIN.name}))
    return path


@pytest.fixture
def committed(photos, script, chain_file):
    """data_marking.py with the tests' own beacon: committed(*flags) -> code, out, err; `.round` the one it named.

    given: the round that --beacon has; without one, a round that is out and not the one that is named.
    """

    def run(*flags, given=None, folder=photos, chain=chain_file):
        given = given or sign(7)
        done = script(
            "data_marking",
            "--data_folder",
            folder,
            "--beacon",
            f"{given.round}:{given.signature}",
            *(("--beacon_chain", chain) if chain else ()),
            *flags,
        )
        done.round = record_of(folder).exists() and loaded(folder)["batches"][-1]["commit"]["beacon"]["round"]
        return done

    return run


def named_moment(number):
    return CHAIN.genesis_time + (number - 1) * CHAIN.period


# --- first the commitment, then the round ---


def test_the_commitment_is_there_before_anything_is_drawn(photos, committed):
    before, begun = tree(photos), time.time()
    done = committed("--holdout", "0.5")
    refused(done, f"names round {done.round}", "has round 7")
    (batch,) = loaded(photos)["batches"]
    assert not batch["drawn"] and not batch["finished"] and batch["signature"] is None
    assert all(photo["published"] is None and photo["marked"] is None for photo in loaded(photos)["photos"])
    assert not marked_of(photos).exists() and not (record_of(photos).parent / "held_out").exists()
    assert begun + 50 < named_moment(done.round) < time.time() + 70, "a round of the future"
    posted = (record_of(photos).parent / "commitment.txt").read_text()
    commitment = records.read_record(record_of(photos)).commitments[0]
    assert f"commitment {commitment}" in posted and str(done.round) in posted and "6 photos, 3 to publish" in posted
    assert posted in done.out and tree(photos) == before


def test_the_same_command_goes_on_with_the_round(photos, committed):
    first = committed("--holdout", "0.5")
    before = loaded(photos)["batches"][0]
    done = committed("--holdout", "0.5", given=sign(first.round))
    assert done.code == 0, done.err
    (batch,) = loaded(photos)["batches"]
    assert {**batch, "drawn": False, "finished": False, "signature": None} == before, "the commitment stays"
    assert batch["signature"] == sign(first.round).signature
    record = records.read_record(record_of(photos))
    assert record.published.sum() == 3 and set(contents(marked_of(photos))) == {
        photo.marked for photo in record.photos if photo.published
    }
    assert "no public randomness" not in flat(done.out) and "does not know" not in flat(done.out)
    assert f"older than round {first.round} of the beacon" in flat(done.out), "nobody stamped its date"
    posted = (record_of(photos).parent / "commitment.txt").read_text()
    assert posted.count("commitment ") == 1


def test_what_is_given_must_be_the_round_that_was_named(photos, committed, tmp_path):
    first = committed()
    number, undrawn = first.round, record_of(photos).read_bytes()
    other = sign(number + 1)
    refused(committed(given=other), f"names round {number}", f"has round {number + 1}")
    refused(committed(given=beacon.Round(number, other.signature)), "not that of the beacon")
    refused(committed(given=sign(number, secret=99)), "not that of the beacon")
    refused(committed(given=beacon.Round(number, "0" * 96)), "no point")
    another = own_chain(name="another")
    path = tmp_path / "another.json"
    info = {name: getattr(another, name) for name in ("public_key", "period", "genesis_time", "scheme", "hash")}
    path.write_text(json.dumps({**info, "groupHash": another.group_hash, "beacon_id": another.name}))
    refused(committed(given=sign(number), chain=path), "another beacon")
    refused(committed(given=sign(number), chain=None), "another beacon")
    assert record_of(photos).read_bytes() == undrawn and not marked_of(photos).exists()
    assert committed(given=sign(number)).code == 0


def test_a_named_round_can_not_be_taken_back(photos, committed, mark):
    """Who does not like what the round gave, and goes on without a beacon or with another seed."""
    committed()
    refused(mark(photos), "can't be taken back", "counted")
    refused(mark(photos, "--seed", "3"), "--seed")
    refused(committed("--holdout", "0.5"), "holdout")


def test_a_relay_gives_the_round_when_it_is_out(photos, chain_file, monkeypatch, script):
    """The whole way in one command, from a relay on loopback; the clock is not waited for here."""
    monkeypatch.setattr(beacon, "_wait", lambda *_: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def reply(method, path, body):
        assert path.startswith(f"/{CHAIN.hash}/public/")
        return 200, {}, answer(sign(int(path.rpartition("/")[2])))

    with serving(reply) as (address, requests):
        monkeypatch.setenv(beacon.VARIABLE, address)
        done = script("data_marking", "--data_folder", photos, "--holdout", "0.5", "--beacon_chain", chain_file)
    assert done.code == 0, done.err
    named = loaded(photos)["batches"][0]["commit"]["beacon"]["round"]
    assert [path for _, path, _, _ in requests] == [f"/{CHAIN.hash}/public/{named}"]
    assert loaded(photos)["batches"][0]["signature"] == sign(named).signature
    done = script("data_marking", "--verify", record_of(photos), "--beacon_chain", chain_file)
    assert done.code == 0 and "The record is right" in done.out
    done = script("data_marking", "--verify", record_of(photos))
    assert "which this program does not know" in flat(done.out)


def test_without_a_network_the_commitment_stays(photos, chain_file, monkeypatch, script, committed):
    monkeypatch.setattr(beacon, "_wait", lambda *_: None)
    with serving(lambda *_: (503, {}, b"")) as (address, _):
        monkeypatch.setenv(beacon.VARIABLE, address)
        done = script("data_marking", "--data_folder", photos, "--beacon_chain", chain_file)
    named = loaded(photos)["batches"][0]["commit"]["beacon"]["round"]
    refused(done, f"round {named}", "--beacon ROUND:SIGNATURE")
    assert committed(given=sign(named)).code == 0


def test_no_beacon_says_so_everywhere(photos, mark, script):
    done = mark(photos, "--holdout", "0.5")
    assert done.code == 0 and "the verdict holds only if the accuser is honest" in flat(done.out)
    assert "drawn without public randomness" in (record_of(photos).parent / "commitment.txt").read_text()
    done = script("data_marking", "--verify", record_of(photos))
    assert done.code == 0 and "used no public randomness" in flat(done.out)
    assert loaded(photos)["batches"][0]["commit"]["beacon"] is None


@pytest.mark.parametrize("text", ["", "7", "7:zz", "0:" + "ab" * 48, "-1:" + "ab" * 48, "nowhere.json", "{}"])
def test_beacons_that_can_not_be(photos, script, text):
    before = tree(photos.parent)
    refused(script("data_marking", "--data_folder", photos, f"--beacon={text}"))
    refused(script("data_marking", "--data_folder", photos, "--beacon", "none", "--beacon_chain", "x.json"), "--beacon")
    assert tree(photos.parent) == before


# --- rounds that are out ---


def job_record(number):
    named = records.BeaconRound.of(CHAIN, number)
    return records.commit_batch(records.new_record(SETTINGS), photo_entries("abcdef"), 0.5, "in", "out", beacon=named)


@pytest.mark.parametrize("late", [-4, 0, 1, 1000])
def test_a_commitment_that_is_not_on_disk_before_its_round_is_refused(tmp_path, late):
    """Nobody may name a round that is known, and nothing may take so long that it is known when it is written."""
    record, said = job_record(1000), []
    now = named_moment(1000) + late
    user_error(lambda: commit.date(record, Public(CHAIN), tmp_path, said.append, now=now), "came out before")
    assert said == [] and not (tmp_path / commit.COMMITMENT_FILE).exists()
    assert commit.date(record, Public(CHAIN), tmp_path, said.append, now=named_moment(1000) - 10) == record
    assert len(said) == 1 and record.commitments[0] in (tmp_path / commit.COMMITMENT_FILE).read_text()
    # Once it was written in time, the work may go on whenever it will.
    assert commit.date(record, Public(CHAIN), tmp_path, said.append, now=now) == record and len(said) == 1


def test_the_named_round_is_always_one_of_the_future():
    for now in (CHAIN.genesis_time, CHAIN.genesis_time + 0.5, 1.8e9, 1.8e9 + 2.999):
        named = commit.named_round(Public(CHAIN), now)
        assert 60 <= named_moment(named.round) - now < 60 + 2 * CHAIN.period
    assert commit.named_round(Public(None)) is None


# --- the date ---


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


def stamped(record, authority):
    token = authority.stamp(record.commitments[-1])
    return records.changed_batch(record, timestamp=base64.b64encode(token).decode())


def drawn(record):
    named = record.batches[-1].commit.beacon
    record = records.draw_batch(
        record, {photo.number: photo.original for photo in record.photos}, sign(named.round).signature
    )
    return records.finish_batch(record, {photo.number: "0" * 64 for photo in record.photos if photo.published})


def test_a_stamp_before_the_round_leaves_nothing_to_be_believed(authority):
    begun = int(time.time())  # a stamp has whole seconds
    record = drawn(stamped(job_record(beacon.future_round(CHAIN, begun, 3600)), authority))
    assert disclosed.weaknesses(record, "x", authority.root_file, CHAIN) == []
    (date,) = disclosed.check(disclosed.disclose(record), "x", authority.root_file, CHAIN).dates
    assert begun <= date.time.timestamp() <= time.time()


def test_a_stamp_after_the_round_is_flagged(authority):
    """Committed when the round was known: secrets can be tried until it gives what pleases."""
    record = drawn(stamped(job_record(beacon.round_at(CHAIN, time.time()) - 100), authority))
    (found,) = disclosed.weaknesses(record, "x", authority.root_file, CHAIN)
    assert found.startswith(disclosed.HONEST) and "after the beacon's round was out" in found


@pytest.mark.parametrize("how", ["unknown root", "another digest", "damaged", "no base64", "not ascii", "empty"])
def test_a_stamp_that_is_worth_nothing_is_flagged(authority, how):
    record = stamped(job_record(beacon.future_round(CHAIN, time.time(), 3600)), authority)
    token = base64.b64decode(record.batches[0].timestamp)
    other = base64.b64encode(authority.stamp("ab" * 32)).decode()
    text = {
        "unknown root": record.batches[0].timestamp,
        "another digest": other,
        "damaged": base64.b64encode(token[:-40] + bytes(40)).decode(),
        "no base64": "???",
        "not ascii": "\u00e9",
        "empty": "",
    }[how]
    record = drawn(records.changed_batch(record, timestamp=text))
    roots = None if how == "unknown root" else authority.root_file
    (found,) = disclosed.weaknesses(record, "x", roots, CHAIN)
    assert "can't be relied on" in found and "\n" not in found


def test_a_stamp_from_a_file_that_was_fetched_elsewhere(photos, committed, authority, tmp_path):
    first = committed()
    commitment = records.read_record(record_of(photos)).commitments[0]
    (tmp_path / "stamp.tsr").write_bytes(authority.stamp(commitment))
    flags = ("--timestamp", tmp_path / "stamp.tsr", "--timestamp_roots", authority.root_file)
    (tmp_path / "other.tsr").write_bytes(authority.stamp("ab" * 32))
    refused(committed("--timestamp", tmp_path / "other.tsr"), "something else")
    refused(committed("--timestamp", tmp_path / "stamp.tsr", given=sign(first.round)), "trusted root")
    done = committed(*flags, given=sign(first.round))
    assert done.code == 0, done.err
    assert "the commitment is dated" in done.out and "! " not in done.out, "nothing is left to be believed"
    assert loaded(photos)["batches"][0]["timestamp"]


# --- draws that were thrown away ---


def redrawn(folder):
    return loaded(folder)["batches"][0]["commit"]["redrawn"]


def test_overwriting_is_counted_in_the_next_commitment(photos, mark, script):
    posted = []
    for count in range(3):
        done = mark(photos, "--holdout", "0.5", *(("--overwrite",) if count else ()))
        assert done.code == 0 and redrawn(photos) == posted
        if count:
            draws = "1 earlier draw over this folder was" if count == 1 else "2 earlier draws over this folder were"
            assert f"{draws} thrown away" in flat(done.out)
        posted.append(records.read_record(record_of(photos)).commitments[0])
    assert len(set(posted)) == 3
    done = script("data_marking", "--verify", record_of(photos))
    assert "2 earlier draws over this folder were thrown away" in flat(done.out)
    content = loaded(photos)
    content["batches"][0]["commit"]["redrawn"] = []
    record_of(photos).write_text(json.dumps(content))
    done = script("data_marking", "--verify", record_of(photos))
    assert done.code in (1, 2), "the count can't be taken out: the draw follows from it"


def test_unfinished_runs_are_counted_too(photos, committed):
    """Who sees the round and does not like what it gives, before a single photo is marked."""
    posted = []
    for count in range(3):
        done = committed("--holdout", "0.5", *(("--overwrite",) if count else ()))
        assert done.code == 2 and redrawn(photos) == posted
        posted.append(records.read_record(record_of(photos)).commitments[0])
    assert committed("--holdout", "0.5", given=sign(done.round)).code == 0
    assert redrawn(photos) == posted[:2] and len(set(posted)) == 3
    assert (record_of(photos).parent / "commitment.txt").read_text().count("commitment ") == 3


def test_an_overwritten_record_with_further_batches_counts_all(photos, mark):
    assert mark(photos).code == 0
    save(photos / "later.png", picture(70))
    assert mark(photos, "--record", record_of(photos)).code == 0
    before = records.read_record(record_of(photos)).commitments
    assert mark(photos, "--overwrite").code == 0
    assert redrawn(photos) == before and len(before) == 2


def test_a_killed_run_goes_on_with_the_same_commitment(photos, committed, chain_file):
    """Between commitment and draw, between draw and marks: nothing is drawn anew."""
    first = committed("--holdout", "0.5")
    round_ = sign(first.round)
    code = (
        "import os, signal\nfrom provenance import protect\n"
        "protect.encode_photo = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
    )
    flags = ("--beacon", f"{round_.round}:{round_.signature}", "--beacon_chain", chain_file, "--holdout", "0.5")
    done = call("data_marking.py", "--data_folder", photos, *flags, code=code)
    assert done.returncode == -9, done.stderr
    half = loaded(photos)
    assert half["batches"][0]["drawn"] and not half["batches"][0]["finished"]
    done = committed("--holdout", "0.5", given=round_)
    assert done.code == 0, done.err
    assert [photo["published"] for photo in loaded(photos)["photos"]] == [
        photo["published"] for photo in half["photos"]
    ]
    assert {**loaded(photos)["batches"][0], "finished": False} == half["batches"][0]


# --- batches ---


def test_every_batch_has_a_round_and_a_commitment_of_its_own(photos, committed):
    first = committed("--holdout", "0.5")
    assert committed("--holdout", "0.5", given=sign(first.round)).code == 0
    for number in range(4):
        save(photos / f"later{number}.png", picture(80 + number))
    further = ("--holdout", "0.5", "--record", record_of(photos))
    second = committed(*further)
    assert second.code == 2 and second.round >= first.round
    done = committed(*further, given=sign(second.round))
    assert done.code == 0, done.err
    record = records.read_record(record_of(photos))
    one, two = record.batches
    assert two.commit.previous == [one.commitment] and one.secret != two.secret and two.commit.redrawn == []
    assert two.signature == sign(second.round).signature
    assert (record.selections(0)[0] == record.published).all() and record.published.sum() == 5


def test_the_draw_is_fair_over_rounds():
    """400 rounds for one commitment: each photo is published half of the time, and no pair is tied."""
    record = job_record(1000)
    halves = np.stack(
        [
            records.draw_batch(record, {p.number: p.original for p in record.photos}, f"{number:096x}").published
            for number in range(400)
        ]
    )
    assert (halves.sum(axis=1) == 3).all() and np.abs(halves.mean(axis=0) - 0.5).max() < 0.1
