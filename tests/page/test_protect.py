"""Marking through the page is marking by the command line."""

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kit.errors import UserError
from page.panel import Panel
from page.tabs import marking, protect
from provenance import record as records
from provenance.folder import inspect_folder
from provenance.protect import mark_photo, resolve_settings
from tests.page.parts import picture, png, press, until, uploaded


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
                picture(int(photo.original[0])), record.key_of(photo), photo.number, settings.marking(bank)
            )
            assert np.array_equal(np.asarray(Image.open(path)), expected)
    with zipfile.ZipFile(desk.download(job.id, "photos-to-publish.zip")) as bundle:
        assert sorted(bundle.namelist()) == sorted(photo.marked for photo in record.photos if photo.published)
    with zipfile.ZipFile(desk.download(job.id, "PRIVATE-record-keep-secret.zip")) as bundle:
        assert {"record.json", "contact_sheet.png", "result.json"} <= set(bundle.namelist())
        assert json.loads(bundle.read("record.json"))["batches"][0]["secret"] == record.batches[0].secret
    assert desk.download(job.id, "PRIVATE-record-keep-secret.zip").stat().st_mode & 0o077 == 0
    shown = protect._result(job)
    assert record.commitments[-1] in shown and "torn.png" in shown and "3 are held out" in shown


def test_damaged_photos_are_counted_and_named(desk, holiday):
    draft, found, names = protect._take(desk, None, str(holiday), None)
    assert "7 photos found" in found and names["value"] == "0.png" and draft["title"] == "holiday"


def test_the_same_photos_are_not_marked_twice(marked, desk):
    job, folder = marked
    key = records.read_record(job.result["record"]).keys(0)
    draft, _, _ = protect._take(desk, None, str(folder), None)
    refused, _ = press(desk, draft)
    assert "marked already" in refused and records.read_record(job.result["record"]).keys(0) == key


def test_two_calls_at_once_leave_one_record(tmp_path):
    """Both looked before either had begun; the second must not replace the key that the first has written."""
    from provenance import protect as marking

    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(picture(1)))
    settings, bank = resolve_settings({})
    jobs = [marking.open_record(inspect_folder(folder), settings, 0.0) for _ in range(2)]
    record, _ = marking.run(jobs[0], bank)
    with pytest.raises(UserError, match="written by another call meanwhile"):
        marking.run(jobs[1], bank)
    stored = records.read_record(tmp_path / "mine_record")
    assert stored.batches[0].secret == record.batches[0].secret != jobs[1].record.batches[0].secret


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
    key = records.read_record(job.result["record"]).keys(0)
    for name in ("publish.zip", "private.zip"):
        (job.folder / name).unlink()
    protect._start(desk, job.id, job.title, job.details)
    again = desk.jobs.get(job.id)
    until(lambda: not again.active)
    assert again.state == "done", again.message
    assert records.read_record(job.result["record"]).keys(0) == key and (job.folder / "publish.zip").exists()


def test_names_are_text_and_no_markup(desk, tmp_path):
    folder = tmp_path / "<b>x"
    folder.mkdir()
    (folder / '<img src=x onerror="alert(1)">.png').write_bytes(b"no picture")
    draft, _, names = protect._take(desk, None, str(folder), None)
    shown = marking.preview(draft, names["value"], 0.7, 8, "perlin")
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
    assert panel._tick(None, "", TAB) == [gr.skip()] * len(panel.outputs)  # was on its way when the job was chosen
    chosen, view, *_ = panel._tick(None, "", TAB)
    assert chosen["value"] == job.id and "result" in view
    *_, seen = panel.show(job.id, TAB)
    assert panel._tick(job.id, seen, TAB) == [gr.skip()] * len(panel.outputs)  # nothing has changed


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
