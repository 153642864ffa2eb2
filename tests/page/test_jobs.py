"""Jobs of the page: their states, and how they end."""

import json
import threading

import pytest

from kit.errors import UserError
from kit.progress import Progress
from page.jobs import Jobs
from tests.page.parts import until


def test_a_job_goes_through_its_states_and_is_found_again(tmp_path):
    jobs, gate = Jobs(tmp_path), threading.Event()

    def work(job):
        for _ in Progress(range(3), "steps"):
            gate.wait(300)
        return {"answer": 42}

    job = jobs.start("one", "checks", "First", {"model": "x"}, work)
    until(lambda: job.progress[0] == "steps")
    assert job.state == "running" and jobs.start("one", "checks", "First", {}, work) is job  # not a second time
    assert json.loads((tmp_path / "checks" / "one" / "job.json").read_text())["state"] == "running"
    assert [other.state for other in Jobs(tmp_path).all("checks")] == ["interrupted"]  # as after a kill
    gate.set()
    until(lambda: not job.active)
    assert (job.state, job.result) == ("done", {"answer": 42})
    found = Jobs(tmp_path).get("one")
    assert (found.state, found.result, found.details, found.title) == ("done", {"answer": 42}, {"model": "x"}, "First")
    assert jobs.all("protected") == []


def test_cancel_ends_a_job_at_its_next_step_and_it_can_go_on(tmp_path):
    jobs, steps = Jobs(tmp_path), []

    def work(job):
        for step in Progress(range(1000), "steps"):
            steps.append(step)
            job.sleep(0.01)
        return {}

    job = jobs.start("one", "checks", "t", {}, work)
    until(lambda: len(steps) >= 3)
    jobs.cancel("one")
    until(lambda: not job.active)
    assert job.state == "cancelled" and len(steps) < 1000
    again = jobs.start("one", "checks", "t", {}, lambda job: {"done": True})
    until(lambda: not again.active)
    assert again.state == "done" and again.created == job.created


def test_what_fails_is_one_line(tmp_path, capfd):
    jobs = Jobs(tmp_path)

    def user_error(job):
        raise UserError("the record is gone; restore it")

    def full(job):
        raise OSError(28, "No space left on device", "/photos/a.png")

    def defect(job):
        raise ZeroDivisionError("oops")

    found = {
        name: jobs.start(name, "checks", name, {}, work)
        for name, work in (("user_error", user_error), ("full", full), ("defect", defect))
    }
    until(lambda: not any(job.active for job in found.values()))
    assert {job.state for job in found.values()} == {"failed"}
    assert found["user_error"].message == "the record is gone; restore it"
    assert "no room left on the disk at /photos/a.png" in found["full"].message
    assert "ZeroDivisionError: oops" in found["defect"].message and "report" in found["defect"].message
    assert capfd.readouterr().err.count("Traceback") == 1  # of the defect alone, for who reports it


def test_a_job_that_waits_is_cancelled_at_once_and_kinds_do_not_block_each_other(tmp_path):
    jobs, gate = Jobs(tmp_path), threading.Event()
    audits = [jobs.start(f"a{number}", "checks", "t", {}, lambda job: gate.wait(300) and {}) for number in range(3)]
    marked = jobs.start("p", "protected", "t", {}, lambda job: {"done": 1})
    until(lambda: marked.state == "done")
    until(lambda: [job.state for job in audits].count("waiting") == 1)
    waiting = next(job for job in audits if job.state == "waiting")
    jobs.cancel(waiting.id)
    assert waiting.state == "cancelled"
    gate.set()
    until(lambda: not any(job.active for job in audits))
    assert waiting.state == "cancelled" and [job.state for job in audits].count("done") == 2


def test_closing_leaves_jobs_to_be_taken_up(tmp_path):
    jobs = Jobs(tmp_path)
    started = [jobs.start(str(number), "checks", "t", {}, lambda job: job.sleep(60)) for number in range(4)]
    until(lambda: sum(job.state == "running" for job in started) == 2)  # the others wait for their turn
    jobs.close()
    assert {job.state for job in Jobs(tmp_path).all("checks")} == {"interrupted"}


def test_a_job_is_deleted_with_its_folder_and_not_while_it_runs(tmp_path):
    jobs, gate = Jobs(tmp_path), threading.Event()
    job = jobs.start("one", "checks", "t", {}, lambda job: gate.wait(300) and {})
    until(lambda: job.state == "running")
    jobs.delete("one")
    assert jobs.get("one") is job and job.folder.exists()
    gate.set()
    until(lambda: not job.active)
    jobs.delete("one")
    jobs.delete("one")  # somebody else was faster
    assert jobs.get("one") is None and not any((tmp_path / "checks").iterdir())
    assert Jobs(tmp_path).all("checks") == []


@pytest.mark.parametrize("content", ["", "[]", "{", '{"id": "other"}', '{"id": "x", "kind": "checks", "surprise": 1}'])
def test_damaged_jobs_are_left_out(tmp_path, content):
    (tmp_path / "checks" / "x").mkdir(parents=True)
    (tmp_path / "checks" / "x" / "job.json").write_text(content)
    assert Jobs(tmp_path).all("checks") == []
