"""The way from a commitment to a draw, without a browser: it is shown, waited for, cancelled, gone on with, pasted."""

import re
from types import SimpleNamespace

import pytest

from page import look
from page.desk import Desk
from page.jobs import Jobs
from page.panel import Panel
from page.tabs import protect
from provenance import beacon
from provenance import record as records
from tests.page.parts import CHOSEN, press, until
from tests.page.relay import NOBODY
from tests.provenance.drand import sign

PUBLIC = {**CHOSEN, "beacon": "drand"}
TAB = SimpleNamespace(session_hash="tab")  # as a request has it


def begun(desk, folder, **chosen):
    """The job of marking a folder, just begun."""
    draft, _, _ = protect._take(desk, None, str(folder), None)
    refused, number = press(desk, draft, chosen={**PUBLIC, **chosen})
    assert refused == "", refused
    return desk.jobs.get(number)


def ended(job):
    until(lambda: not job.active)
    return job


def gone_on(desk, job, pasted="", stamp=""):
    protect._go_on(desk, job, pasted, stamp)
    return ended(desk.jobs.get(job.id))


def record_of(folder):
    return records.read_record(folder.parent / f"{folder.name}_record")


@pytest.fixture
def panel(desk):
    """The Panel of what was protected, outside the page."""
    import gradio as gr

    with gr.Blocks():
        return Panel(
            desk,
            "protected",
            "jobs",
            "nothing",
            protect._result,
            lambda job, *typed: protect._go_on(desk, job, *typed),
            tell=protect._told,
            asked=protect.ASKED,
            spare=lambda job: not protect._begun(job).exists(),
        )


def seen(panel, job):
    """What a tab shows of a job: its parts by name."""
    names = ("chosen", "view", "told", "round", "stamp", "cancel", "go on", "delete", "for good", "state")
    return dict(zip(names, panel.show(job.id, TAB), strict=True))


def test_the_commitment_is_shown_before_the_round_is_out(desk, drawn, holiday, panel):
    job = begun(desk, holiday)
    until(lambda: job.progress[0].startswith("waiting for round"))
    record = record_of(holiday)
    assert not record.batches[0].drawn and not (holiday.parent / "holiday_marked").exists()
    shown = seen(panel, job)
    assert record.commitments[0] in shown["told"] and "Post this number now" in shown["told"]
    assert re.search(r"Waiting for round \d+ of the public randomness: \d+ seconds left", shown["view"])
    assert (job.folder / "job.json").read_text().count(record.commitments[0]) == 1  # a reload finds it again
    assert shown["cancel"]["visible"] and not shown["go on"]["visible"]

    assert drawn.requests == []
    drawn.clock.pass_by()
    assert ended(job).state == "done", job.message
    record = record_of(holiday)
    named = record.batches[0].commit.beacon
    assert drawn.requests[-1][1] == f"/{desk.chain.hash}/public/{named.round}" and record.batches[0].drawn
    beacon.verify(desk.chain, beacon.Round(named.round, record.batches[0].signature))
    shown = seen(panel, job)
    assert shown["told"] == "" and record.commitments[0] in shown["view"] and "It had to be posted" in shown["view"]
    assert job.result["weaknesses"] == [
        sentence for sentence in job.result["weaknesses"] if sentence.startswith("the date of the commitment rests on")
    ]
    assert look.plain(job.result["weaknesses"][0]) in shown["view"].replace("&#x27;", "'")


def test_without_a_beacon_the_page_says_what_that_means(marked):
    job, _ = marked
    assert "the verdict holds only if the accuser is honest" in protect._result(job)


def test_the_class_of_the_photos_is_committed(desk, holiday):
    job = ended(begun(desk, holiday, beacon="none", label=" zebra "))
    assert job.state == "done", job.message
    assert record_of(holiday).plan.label == "zebra"


@pytest.mark.parametrize(
    "chosen, words",
    [
        ({"timestamp": "stamps.example"}, "“Time-stamp address” must be an address"),
        ({"label": "x" * 201}, "200 letters"),
    ],
)
def test_what_would_fail_after_the_commitment_is_refused_before(desk, holiday, chosen, words):
    draft, _, _ = protect._take(desk, None, str(holiday), None)
    refused, _ = press(desk, draft, chosen={**PUBLIC, **chosen})
    assert words in refused and desk.jobs.all("protected") == []
    assert not (holiday.parent / "holiday_record").exists()


def test_cancel_while_waiting_and_go_on_with_the_same_commitment(desk, drawn, holiday):
    job = begun(desk, holiday)
    until(lambda: job.progress[0].startswith("waiting for round") and job.progress[1] >= 1)
    desk.jobs.cancel(job.id)
    assert ended(job).state == "cancelled"  # long before the round is out
    first = record_of(holiday).commitments
    drawn.clock.pass_by()
    again = gone_on(desk, job)
    assert again.state == "done", again.message
    assert record_of(holiday).commitments == first and again.said == job.said


def test_a_page_that_was_killed_while_waiting_goes_on(desk, drawn, holiday):
    job = begun(desk, holiday)
    until(lambda: job.progress[0].startswith("waiting for round"))
    desk.jobs.close()
    drawn.clock.pass_by()
    first = record_of(holiday).commitments
    later = Desk(desk.root, desk.chain)
    assert later.jobs.get(job.id).state == "interrupted" and later.jobs.get(job.id).said
    again = gone_on(later, later.jobs.get(job.id))
    assert again.state == "done", again.message
    assert record_of(holiday).commitments == first and record_of(holiday).batches[0].commit.redrawn == []
    later.jobs.close()


def test_a_job_that_died_before_it_was_said_still_shows_its_commitment(desk, drawn, holiday):
    job = begun(desk, holiday)
    until(lambda: job.progress[0].startswith("waiting for round"))
    desk.jobs.cancel(job.id)
    ended(job).said.clear()
    drawn.clock.pass_by()
    assert record_of(holiday).commitments[0] in "".join(gone_on(desk, job).said)


def test_without_a_network_the_round_is_pasted(desk, drawn, holiday, panel, monkeypatch):
    monkeypatch.setenv(beacon.VARIABLE, NOBODY)
    drawn.clock.pass_by()
    job = ended(begun(desk, holiday))
    named = record_of(holiday).batches[0].commit.beacon.round
    assert job.state == "failed" and f"{NOBODY}/{desk.chain.hash}/public/{named}" in job.message
    assert "--" not in job.message and job.message.startswith("“Round of the public randomness”")
    shown = seen(panel, job)
    assert shown["round"]["visible"] and shown["go on"]["visible"] and not shown["stamp"]["visible"]
    first = record_of(holiday).commitments
    assert first[0] in shown["told"]
    right, other = sign(named), sign(named + 1)
    forged = f"{named}:{other.signature}"
    for pasted, words in (
        ("hello", "must be ROUND:SIGNATURE"),
        (f"{other.round}:{other.signature}", f"names round {named}"),
        (forged, "is not that of the beacon"),
    ):
        again = gone_on(desk, job, pasted)
        assert again.state == "failed" and words in again.message, again.message
        assert seen(panel, again)["round"]["visible"] and not (holiday.parent / "holiday_marked").exists()
    pasted = f'{{"round": {named}, "signature": "{right.signature}"}}'
    again = gone_on(desk, job, pasted)
    assert again.state == "done", again.message
    assert record_of(holiday).commitments == first and record_of(holiday).batches[0].signature == right.signature
    shown = seen(panel, again)
    assert shown["round"] == {"visible": False, "value": "", "__type__": "update"}


def test_a_time_stamp_that_nobody_gives_can_be_left_out(desk, drawn, holiday, panel):
    job = ended(begun(desk, holiday, timestamp=f"{NOBODY}/tsr"))
    assert job.state == "failed" and job.message.startswith("“Time-stamp address”"), job.message
    shown = seen(panel, job)
    assert shown["stamp"]["visible"] and not shown["round"]["visible"]
    drawn.clock.pass_by()
    again = gone_on(desk, job)
    assert again.state == "done", again.message
    assert again.details["timestamp"] == "" and record_of(holiday).batches[0].timestamp is None


def test_a_time_stamp_that_would_come_too_late_is_not_asked_for(desk, drawn, holiday):
    job = ended(begun(desk, holiday, timestamp=f"{NOBODY}/tsr"))
    drawn.clock.pass_by()
    again = gone_on(desk, job, stamp=f"{NOBODY}/tsr")
    assert again.state == "done", again.message
    assert "would come too late" in again.said[-1]


def test_photos_are_drawn_once(desk, drawn, holiday, monkeypatch):
    monkeypatch.setenv(beacon.VARIABLE, NOBODY)
    drawn.clock.pass_by()
    ended(begun(desk, holiday))
    draft, _, _ = protect._take(desk, None, str(holiday), None)
    refused, _ = press(desk, draft, chosen=PUBLIC)
    assert "has begun already" in refused and len(desk.jobs.all("protected")) == 1


def test_a_record_is_never_deleted_and_a_job_without_one_may_be(desk, marked, panel, tmp_path):
    job, _ = marked
    assert not seen(panel, job)["delete"]["visible"]
    (tmp_path / "gone").mkdir()
    failed = ended(
        desk.jobs.start("x", "protected", "x", {**CHOSEN, "folder": str(tmp_path / "gone")}, lambda job: 1 / 0)
    )
    shown = seen(panel, failed)
    assert shown["delete"]["visible"] and not shown["for good"]["visible"]


def test_what_was_said_is_found_again(tmp_path):
    jobs = Jobs(tmp_path)
    job = jobs.start("one", "protected", "t", {}, lambda job: job.say("post this") or job.say("post this") or {})
    until(lambda: not job.active)
    assert Jobs(tmp_path).get("one").said == ["post this"]
    again = jobs.start("one", "protected", "t", {}, lambda job: {})
    until(lambda: not again.active)
    assert again.said == ["post this"]
