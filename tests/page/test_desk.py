"""The parts of the page without a browser: jobs, uploads, who may come in, figures, runs to look at, app.py's flags."""

import csv
import io
import json
import re
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests
from conftest import ROOT, call
from page_world import served
from PIL import Image

from kit import files, progress
from kit.errors import UserError
from kit.progress import Progress

pytest.importorskip("gradio", reason="gradio is not installed (requirements/app.txt)")
from page_parts import desk, marked, picture, png, press, until, uploaded  # noqa: F401

from page import look, server
from page.desk import MARKER, Desk
from page.jobs import Cancelled, Jobs
from page.panel import Panel
from page.tabs import audit, check, power, protect
from provenance import record as records
from provenance.protect import mark_photo, resolve_settings

# --- progress that somebody watches ---


def test_watchers_hear_every_step_and_can_end_the_work():
    heard = []
    with progress.watched(lambda *step: heard.append(step)):
        assert list(Progress([5, 6, 7], "looking")) == [5, 6, 7]
        with Progress(desc="asking", total=10, initial=4) as bar:
            bar.update(3)
    assert heard == [
        ("looking", 0, 3),
        ("looking", 1, 3),
        ("looking", 2, 3),
        ("looking", 3, 3),
        ("asking", 4, 10),
        ("asking", 7, 10),
    ]
    list(Progress([1, 2], "unwatched"))
    assert len(heard) == 6

    def stop(_, done, __):
        if done == 2:
            raise Cancelled

    seen = []
    with pytest.raises(Cancelled), progress.watched(stop):
        for item in Progress(range(9), "working"):
            seen.append(item)
    assert seen == [0, 1]


def test_a_terminal_changes_nothing_for_watchers(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    heard, screen = [], Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with progress.watched(lambda *step: heard.append(step[1:])):
        assert list(Progress([5, 6], "looking", mininterval=0)) == [5, 6]
    assert heard == [(0, 2), (1, 2), (2, 2)] and "looking" in screen.getvalue()


def test_threads_have_watchers_of_their_own():
    heard = {"a": [], "b": []}

    def work(name):
        with progress.watched(lambda *step: heard[name].append(step[0])):
            list(Progress(range(2), name))

    threads = [threading.Thread(target=work, args=(name,)) for name in heard]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == {"a": ["a"] * 3, "b": ["b"] * 3}


# --- jobs ---


def test_a_job_goes_through_its_states_and_is_found_again(tmp_path):
    jobs, gate = Jobs(tmp_path), threading.Event()

    def work(job):
        for _ in Progress(range(3), "steps"):
            gate.wait(20)
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
    audits = [jobs.start(f"a{number}", "checks", "t", {}, lambda job: gate.wait(20) and {}) for number in range(3)]
    marked = jobs.start("p", "protected", "t", {}, lambda job: {"done": 1})
    until(lambda: marked.state == "done")
    assert [job.state for job in audits].count("waiting") == 1
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


@pytest.mark.parametrize("content", ["", "[]", "{", '{"id": "other"}', '{"id": "x", "kind": "checks", "surprise": 1}'])
def test_damaged_jobs_are_left_out(tmp_path, content):
    (tmp_path / "checks" / "x").mkdir(parents=True)
    (tmp_path / "checks" / "x" / "job.json").write_text(content)
    assert Jobs(tmp_path).all("checks") == []


# --- what is handed in, and what may be fetched ---


def test_uploads_become_photos_and_zips_are_unpacked(desk, tmp_path):
    bundle = tmp_path / "more.zip"
    with zipfile.ZipFile(bundle, "w") as out:
        out.writestr("holiday/beach.png", png(picture(1)))
        out.writestr("holiday/inner/sea.png", png(picture(2)))
    draft = desk.receive(
        desk.draft(),
        [
            uploaded(desk, "a.png", png(picture(3))),
            uploaded(desk, "a.png", b"other"),
            uploaded(desk, "more.zip", bundle.read_bytes()),
        ],
    )
    names = sorted(path.relative_to(draft.photos).as_posix() for path in draft.photos.rglob("*") if path.is_file())
    assert names == ["a (2).png", "a.png", "more/beach.png", "more/inner/sea.png"]
    assert draft.problems == []


@pytest.mark.parametrize(
    "name, words",
    [("../out.png", "leaves its folder"), ("/etc/x.png", "leaves its folder"), ("..\\out.png", "leaves its folder")],
)
def test_zips_that_reach_out_are_refused_by_name(desk, tmp_path, name, words):
    bundle = tmp_path / "evil.zip"
    with zipfile.ZipFile(bundle, "w") as out:
        out.writestr("good.png", b"x")
        info = zipfile.ZipInfo("x")
        info.filename = name
        out.writestr(info, b"x")
    draft = desk.receive(desk.draft(), [uploaded(desk, "evil.zip", bundle.read_bytes())])
    assert [problem[0] for problem in draft.problems] == ["evil.zip"] and words in draft.problems[0][1]
    assert not any(path.is_file() for path in draft.folder.rglob("*")) and not (desk.root / "out.png").exists()


def test_zip_bombs_are_refused_by_what_they_unpack_to(desk, tmp_path, monkeypatch):
    monkeypatch.setattr("page.desk.MOST_BYTES", 1 << 20)
    monkeypatch.setattr("page.desk.MOST_FILES", 5)
    for name, members in (
        ("big.zip", [("zeros.png", bytes(2 << 20))]),
        ("many.zip", [(f"{number}.png", b"") for number in range(6)]),
    ):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as out:
            for member, content in members:
                out.writestr(member, content)
        draft = desk.receive(desk.draft(), [uploaded(desk, name, (tmp_path / name).read_bytes())])
        assert len(draft.problems) == 1 and "more than" in draft.problems[0][1], draft.problems
        assert list(draft.photos.iterdir()) == []


def test_only_what_was_uploaded_is_taken(desk, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"x")
    with pytest.raises(UserError, match="not one of the files that were handed in"):
        desk.receive(desk.draft(), [str(secret)])


def test_downloads_are_those_of_jobs(desk):
    job = desk.jobs.start(
        "one", "protected", "t", {}, lambda job: {"files": {"a.zip": "a.zip", "up": "../../../x", "gone": "gone"}}
    )
    until(lambda: not job.active)
    (job.folder / "a.zip").write_bytes(b"1")
    (desk.root.parent / "x").write_bytes(b"2")
    assert desk.download("one", "a.zip") == job.folder / "a.zip"
    assert [
        desk.download(*place) for place in (("one", "job.json"), ("one", "up"), ("one", "gone"), ("two", "a.zip"))
    ] == [None] * 4


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    photo = tmp_path / "site" / "uploads" / "2023" / "holiday.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"x")
    before = (tmp_path / "site").stat().st_mode
    with pytest.raises(UserError, match="has other things in it"):
        Desk(tmp_path / "site")
    assert photo.read_bytes() == b"x" and (tmp_path / "site").stat().st_mode == before


def test_old_uploads_and_drafts_go_and_nothing_else(desk):
    import os

    old, new = desk.draft(), desk.draft()
    (desk.root / "uploads" / "file").write_bytes(b"x")
    (desk.root / "checks" / "audit").mkdir()
    for path in (old.folder, desk.root / "uploads" / "file", desk.root / "checks" / "audit"):
        os.utime(path, (1, 1))
    desk.draft()
    assert not old.folder.exists() and new.folder.exists() and (desk.root / "checks" / "audit").exists()
    assert not (desk.root / "uploads" / "file").exists() and (desk.root / MARKER).exists()


def test_the_folder_is_its_owners_alone(desk):
    assert {
        path.stat().st_mode & 0o777
        for path in (desk.root, *(desk.root / name for name in ("uploads", "drafts", "protected", "checks")))
    } == {0o700}


# --- marking through the page ---


def test_a_folder_is_marked_as_the_command_line_does(marked, desk):
    job, folder = marked
    record = records.read_record(job.result["record"])
    assert Path(job.result["record"]) == folder.parent / "holiday_record" / "record.json" and record.evidence
    assert int(record.published.sum()) == 3 and len(record.photos) == 6
    settings, bank = resolve_settings({})
    for photo in record.photos:
        path = folder.parent / "holiday_marked" / f"{photo.original}"
        assert path.exists() == photo.published
        if photo.published:
            expected = mark_photo(
                picture(int(photo.original[0])), bytes.fromhex(record.key), photo.number, settings.marking(bank)
            )
            assert np.array_equal(np.asarray(Image.open(path)), expected)
    with zipfile.ZipFile(desk.download(job.id, "photos-to-publish.zip")) as bundle:
        assert sorted(bundle.namelist()) == sorted(photo.marked for photo in record.photos if photo.published)
    with zipfile.ZipFile(desk.download(job.id, "PRIVATE-record-keep-secret.zip")) as bundle:
        assert {"record.json", "contact_sheet.png", "result.json"} <= set(bundle.namelist())
        assert json.loads(bundle.read("record.json"))["key"] == record.key
    assert desk.download(job.id, "PRIVATE-record-keep-secret.zip").stat().st_mode & 0o077 == 0
    shown = protect._result(job)
    assert record.commitments[-1] in shown and "torn.png" in shown and "3 are held out" in shown


def test_the_same_photos_are_not_marked_twice(marked, desk):
    job, folder = marked
    key = records.read_record(job.result["record"]).key
    draft, _, _ = protect._take(desk, None, str(folder), None)
    refused, _ = press(desk, draft)
    assert "marked already" in refused and records.read_record(job.result["record"]).key == key


def test_two_calls_at_once_leave_one_record(tmp_path):
    """Both looked before either had begun; the second must not replace the key that the first has written."""
    from provenance import protect as marking

    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(picture(1)))
    settings, bank = resolve_settings({})
    jobs = [marking.open_record(marking.inspect_folder(folder), settings, 0.0) for _ in range(2)]
    record, _ = marking.run(jobs[0], bank)
    with pytest.raises(UserError, match="written by another call meanwhile"):
        marking.run(jobs[1], bank)
    assert records.read_record(tmp_path / "mine_record").key == record.key != jobs[1].record.key


def test_what_is_marked_is_what_is_filled_in(desk, tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png(picture(1)))
    draft, _, _ = protect._take(desk, None, str(tmp_path / "old"), None)
    refused, _ = press(desk, draft, protect._source(None, str(tmp_path / "new")))
    assert "still being looked at" in refused and not (tmp_path / "old_record").exists()
    both = protect._take(desk, [uploaded(desk, "a.png", b"x")], str(tmp_path / "old"), None)
    assert both[0] is None and "empty one of the two" in both[1]


@pytest.mark.parametrize("text", ["~nobody-of-this-name/x", "a\0b", "/no/such/folder"])
def test_folders_that_are_none_are_one_line(desk, text):
    draft, shown, _ = protect._take(desk, None, text, None)
    assert draft is None and 'role="alert"' in shown and "defect" not in shown


def test_a_job_that_died_before_its_zips_goes_on_under_the_same_key(marked, desk):
    job, _ = marked
    key = records.read_record(job.result["record"]).key
    for name in ("publish.zip", "private.zip"):
        (job.folder / name).unlink()
    protect._start(desk, job.id, job.title, job.details)
    again = desk.jobs.get(job.id)
    until(lambda: not again.active)
    assert again.state == "done", again.message
    assert records.read_record(job.result["record"]).key == key and (job.folder / "publish.zip").exists()


def test_names_are_text_and_no_markup(desk, tmp_path):
    folder = tmp_path / "<b>x"
    folder.mkdir()
    (folder / '<img src=x onerror="alert(1)">.png').write_bytes(b"no picture")
    draft, _, names = protect._take(desk, None, str(folder), None)
    shown = protect._preview(draft, names["value"], 0.7, 8, "perlin")
    assert "<img src=x" not in shown and "&lt;img" in shown


TAB = SimpleNamespace(session_hash="tab")  # as a request has it


@pytest.fixture
def panel(desk):
    """The Panel of what was protected, outside the page."""
    import gradio as gr

    with gr.Blocks():
        return Panel(desk, "protected", "jobs", "nothing", lambda job: "result", lambda job: None)


def test_a_tab_that_lost_an_answer_is_told_again(marked, panel):
    import gradio as gr

    job, _ = marked
    panel.show(job.id, TAB)
    assert panel._tick(None, "", TAB) == [gr.skip()] * 5  # was on its way when the job was chosen
    chosen, view, *_ = panel._tick(None, "", TAB)
    assert chosen["value"] == job.id and "result" in view
    *_, seen = panel.show(job.id, TAB)
    assert panel._tick(job.id, seen, TAB) == [gr.skip()] * 5  # nothing has changed


def test_a_slow_tick_does_not_undo_what_was_chosen_meanwhile(marked, panel, monkeypatch):
    """Seen under load: the tab said "nothing has been checked yet" for good, beside an audit that ran."""
    job, _ = marked
    panel.show(None, TAB)
    state = panel._state

    def chosen_meanwhile(of):
        monkeypatch.setattr(panel, "_state", state)
        panel.show(job.id, TAB)
        return state(of)

    monkeypatch.setattr(panel, "_state", chosen_meanwhile)
    panel._tick(None, "an older state", TAB)
    told = [panel._tick(None, "an older state", TAB) for _ in range(2)]
    assert told[-1][0]["value"] == job.id and "result" in told[-1][1]
    assert "result" in panel._tick(job.id, "an older state", TAB)[1]


# --- figures, words, runs ---


def test_figures_are_those_of_the_result_files(tmp_path, monkeypatch):
    with open(ROOT / "results" / power.TABLE_8, newline="") as file:
        full = next(
            row for row in csv.DictReader(file) if row["marking"] == "blend and noise" and row["samples"] == "5"
        )
    stored = json.loads((ROOT / "results" / power.POWER).read_text())["detected"]["probabilities"]["0.001"]
    assert full["FPR@100%TPR"] in power.marking_table(0.7, 8) and "yours" in power.marking_table(0.7, 8)
    assert full["FPR@100%TPR"] in power.summary(0.7, 8) and "This very choice" in power.summary(0.7, 8)
    assert "nearest choice" in power.summary(0.72, 8) and "nearest" in power.marking_table(0.72, 8)
    assert f"{stored['hits']} of {stored['of']}" in power.summary(0.7, 8)
    assert f"{stored['hits']} of {stored['of']}" in power.holdout_table() and power.POWER in power.holdout_table()
    with open(ROOT / "results" / power.NOISE, newline="") as file:
        assert all(row["FPR@100%TPR"] in power.noise_table() for row in csv.DictReader(file))
    half = json.loads((ROOT / "results" / power.SURVIVAL).read_text())["detected"]["JPEG 75"]["0.001"]
    assert f"{half['hits']} of {half['of']}" in power.format_table()
    monkeypatch.setattr(power, "RESULTS", tmp_path)  # nothing measured: nothing shown
    assert "No figures were found" in power.summary(0.7, 8)
    assert power.marking_table(0.7, 8) == power.photos_table() == ""
    assert "No figures were found" in power.holdout_table() and power.noise_table() == power.format_table() == ""


def test_nearest_measured_choice():
    rows = [(0.5, 8.0), (0.7, 0.0), (0.7, 8.0), (0.9, 8.0), (1.0, 0.0)]
    assert [power.nearest(rows, *choice) for choice in ((0.55, 8), (0.7, 3), (0.7, 6), (0.85, 8), (1, 1))] == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_messages_speak_of_fields():
    assert look.plain("--max_queries allows 5; give --keys 3 or a larger --alpha") == (
        "“Most queries” allows 5; give keys 3 or a larger “Accept a wrong accusation in at most”"
    )
    source = "".join(path.read_text() for path in (ROOT / "page").glob("*.py") if path.name != "look.py")
    for name in set(look.FLAGS.values()):
        assert f'"{name.strip("“”")}' in source, f"{name} is no field of the page"


@pytest.mark.parametrize("text, wanted", [("", None), (None, None), ("0.5, 0.4 0.3", (0.5, 0.4, 0.3))])
def test_numbers_of_a_field(text, wanted):
    assert check._numbers(text, "Mean", 3) == wanted


@pytest.mark.parametrize("text", ["a b c", "1 2", "1,2,3,4", "nan 1 2", "1 inf 2"])
def test_numbers_that_are_none_are_refused(text):
    with pytest.raises(UserError, match="“Mean” takes 3 numbers"):
        check._numbers(text, "Mean", 3)


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "many", "4097", "9" * 5000])
def test_whole_numbers_are_asked_for(text):
    with pytest.raises(UserError, match="“Images a request” takes a whole number from 1 to 4,096"):
        check._whole(text, "Images a request", 4096)


@pytest.mark.parametrize("text, wanted", [("", None), ("224", [224, 224]), ("224 x 160", [224, 160])])
def test_sizes(text, wanted):
    assert check._size(text) == wanted


@pytest.mark.parametrize("text", ["224.7", "nan", "1 2 3", "100000"])
def test_sizes_that_are_none_are_refused(text):
    with pytest.raises(UserError, match="“Input size” takes"):
        check._size(text)


def test_paths_with_dashes_stay_as_they_are():
    assert look.plain("/home/me/my--photos_2024 can't be opened") == "/home/me/my--photos_2024 can't be opened"
    assert look.plain("another process is working in /x; wait for it, or choose another --save_tag or --out") == (
        "another process is working in /x; wait for it"
    )


def test_runs_are_found_and_only_offered_reports_are_shown(tmp_path, finished_run):
    report = tmp_path / "log" / "report"
    report.mkdir(parents=True)
    (report / "report.html").write_text("<p>hello")
    (report / "result.json").write_text("{}")
    (tmp_path / "log" / ".hidden").mkdir()
    found = audit.Found([tmp_path, finished_run])
    assert sorted(path for _, path in found.choices()) == sorted([str(report), str(finished_run)])
    assert found.report("x") is None
    number = found.offer(report / "report.html").rpartition("/")[2]
    assert found.report(number) == report / "report.html"
    shown, *_ = audit._open(found, None, str(tmp_path / "log"))
    assert "neither train.py nor privacy-audit.py wrote" in shown  # an empty result.json


def test_folders_of_others_are_passed_over(tmp_path, finished_run, monkeypatch):
    real = Path.is_file
    (tmp_path / "lost+found").mkdir()

    def closed(path, **more):
        if "lost+found" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **more)

    monkeypatch.setattr(Path, "is_file", closed)
    assert [path for _, path in audit.Found([tmp_path, finished_run]).choices()] == [str(finished_run)]


def test_a_privacy_audit_can_be_looked_at():
    folder = ROOT / "results" / "privacy-audit"
    found = audit.Found([])
    shown, _, exposed, path = audit._open(found, None, str(folder))
    result = json.loads((folder / "result.json").read_text())
    for one in result["attacks"]:
        assert one["title"] in shown and f"{one['pooled']['auc']:.4f}" in shown
    number = re.search(r'<iframe src="report/(\w+)"[^>]* sandbox=""', shown)[1]
    assert found.report(number) == folder / "report.html" and path is None and exposed == ""


def test_results_of_other_scripts_are_named(finished_run):
    shown, *_ = audit._open(audit.Found([]), None, str(ROOT / "results" / "imagenet-rehearsal" / "audit"))
    assert "neither train.py nor privacy-audit.py wrote" in shown


def test_exposed_images_are_those_with_the_lowest_loss(finished_run):
    arrays = files.read_arrays(finished_run / "losses.npz")
    losses = arrays["target_cross_entropy"]
    shown = [float(text) for text in re.findall(r"loss ([\d.]+)", audit._exposed(finished_run))]
    assert shown == [round(value, 4) for value in sorted(losses.ravel())]


def test_rates_at_an_allowed_share(finished_run):
    arrays = files.read_arrays(finished_run / "losses.npz")
    others = np.sort(arrays["non_member_cross_entropy"].mean(axis=1))
    table = audit._at_rate(str(finished_run), 5)
    assert f"{others[3]:.4g}" in table and "3 of 60" in table  # 5 % of 60 users may lie below the threshold
    hits = (arrays["target_cross_entropy"].mean(axis=1) < others[3]).sum()
    assert f"{hits} of 2" in table


# --- who may come in ---


@pytest.mark.parametrize(
    "host, local",
    [
        ("127.0.0.1:7860", True),
        ("localhost", True),
        ("[::1]:7860", True),
        ("evil.example:7860", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
    ],
)
def test_only_names_of_this_computer(host, local):
    assert server._is_local(host) is local


def test_nobody_comes_in_without_the_token(tmp_path):
    with served(tmp_path / "work", "--max_upload", "0.001") as (address, _):
        root, _, token = address.rstrip("/").rpartition("/")
        for path in ("", "/", "/wrong/", f"/{token[:-1]}/", "/gradio_api/info", f"/x/{token}/"):
            plain = requests.get(root + path, timeout=20)
            assert plain.status_code == 403 and "address that app.py printed" in plain.text, path
        page = requests.get(address, timeout=20)
        assert page.status_code == 200 and "frame-ancestors 'self'" in page.headers["content-security-policy"]
        assert not page.cookies and page.headers["referrer-policy"] == "no-referrer"
        for wrong in (
            {"Host": "evil.example"},
            {"Origin": "http://127.0.0.1:9999"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
            {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        ):
            found = requests.get(f"{address}config", headers=wrong, timeout=20)
            assert found.status_code in (400, 403) and "access-control-allow-origin" not in found.headers, wrong
        own = requests.get(f"{address}config", headers={"Origin": root, "Sec-Fetch-Site": "same-origin"}, timeout=20)
        assert own.status_code == 200 and "access-control-allow-origin" not in own.headers
        assert requests.get(f"{address}files/none/x", timeout=20).status_code == 404
        assert requests.get(f"{address}report/none", timeout=20).status_code == 404
        for size, status in ((100_000, 200), (2 << 20, 413)):
            sent = requests.post(f"{address}gradio_api/upload", files={"files": ("a.png", bytes(size))}, timeout=20)
            assert sent.status_code == status, sent.text
        # A second page in the same folder would give two answers to one question.
        second = call("app.py", "--work_folder", tmp_path / "work", "--port", "0", "--no_browser")
        assert second.returncode == 2 and "another process is working" in second.stderr


def test_the_browser_is_started_with_a_file_of_ones_own(tmp_path):
    server._write_door(tmp_path / "open.html", "http://127.0.0.1:1/secret/")
    assert (tmp_path / "open.html").stat().st_mode & 0o777 == 0o600
    assert "url=http://127.0.0.1:1/secret/" in (tmp_path / "open.html").read_text()


def test_guard_passes_other_scopes():
    import asyncio

    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    asyncio.run(server.Guard(app, "t")({"type": "lifespan"}, None, None))
    assert seen == ["lifespan"]


# --- app.py ---


def test_sharing_is_refused_and_says_why(script):
    done = script("app", "--share")
    assert done.code == 2 and "secret records" in done.err and "ssh -L" in done.err and done.err.count("\n") == 1


def test_without_gradio_one_line_says_what_to_do(tmp_path):
    done = call("app.py", "--work_folder", tmp_path / "work", code="import sys; sys.modules['gradio'] = None")
    assert done.returncode == 2 and "pip install -r requirements/app.txt" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "work").exists()
