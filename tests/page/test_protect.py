"""Marking through the page is marking by the command line."""

import json
import re
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kit.errors import UserError
from kit.files import file_digest
from kit.names import AS_IT_IS, VISIBILITIES
from page.panel import Panel
from page.tabs import marking, protect
from provenance import record as records
from provenance.folder import inspect_folder
from provenance.protect import mark_photo, resolve_settings
from tests.page.parts import CHOSEN, mark, picture, png, press, save_network, save_pictures, until, uploaded


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
    shown = marking.preview(draft, names["value"], "clear", 0.7, "perlin", 8)
    assert "<img src=x" not in shown and "&lt;img" in shown


def published(job):
    """(record, [(original's number, bytes of the original, bytes of what is published)]) of a finished job."""
    record, folder = records.read_record(job.result["record"]), Path(job.result["originals"])
    out = Path(job.result["marked_folder"])
    photos = [photo for photo in record.photos if photo.published]
    return record, [
        (photo.number, (folder / photo.original).read_bytes(), (out / photo.marked).read_bytes()) for photo in photos
    ]


def test_a_visibility_sets_the_sliders_and_shows_what_it_leaves_to_choose():
    for name, wanted in VISIBILITIES.items():
        found = dict(zip(marking.FOLLOWING, marking.following(name), strict=True))
        assert {part: found[part]["value"] for part in wanted} == wanted
        marked = name != "none"
        assert [found[part]["visible"] for part in (*wanted, "metadata")] == [marked] * 3 + [not marked]
        assert found["holdout"]["interactive"] == marked and found["holdout"].get("value", 0.5) == 0.5
    assert "value" not in dict(zip(marking.FOLLOWING, marking.following("faint"), strict=True))["holdout"]


def test_what_is_said_of_a_choice_is_of_no_mark_where_there_is_none():
    summary, tables = marking.costs("none", 0.7, 8)
    assert "blending ratio 1, noise norm 0" in summary and (summary, tables) == marking.costs("clear", 1, 0)
    assert "can prove nothing" in protect._proves({"count": 13}, 0.5, "none")
    assert (
        "You have 13 photos" in protect._proves({"count": 13}, 0.5, "faint")
        and protect._proves(None, 0.5, "none") == ""
    )


def test_a_faint_mark_is_that_of_the_command_line_and_its_sliders_count(desk, tmp_path):
    chosen = {"visibility": "faint", **VISIBILITIES["faint"]}
    faint = mark(desk, save_pictures(tmp_path / "a", 4), **chosen)
    other = mark(desk, save_pictures(tmp_path / "b", 4), **chosen | {"noise_norm": 3})
    settings = [published(job)[0].settings for job in (faint, other)]
    assert [(one.img_blending_ratio, one.noise_norm) for one in settings] == [(0.95, 2), (0.95, 3)]
    assert "the mark is" in protect._result(faint)


@pytest.mark.parametrize("kept, format", [("drop", "png"), ("keep", AS_IT_IS)])
def test_without_a_mark_nothing_changes_and_which_half_is_the_secret(desk, tmp_path, kept, format):
    # The sliders stand where they stood: they mean nothing beside this.
    job = mark(desk, save_pictures(tmp_path / "mine", 6), visibility="none", metadata=kept)
    record, photos = published(job)
    assert record.settings.unmarked and record.settings.format == format and len(photos) == 3
    assert (record.plan.keys, record.plan.selections, record.plan.views) == (0, 99_999, 18)
    assert not records.read_record(mark(desk, save_pictures(tmp_path / "b", 6)).result["record"]).settings.unmarked
    for number, original, file in photos:
        first, second = tmp_path / f"{number}-a.png", tmp_path / f"{number}-b.png"
        first.write_bytes(original), second.write_bytes(file)
        assert np.array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(second)))
        assert kept == "drop" or original == file
    shown = protect._result(job)
    assert "the mark is" not in shown and "3 photos are ready to be published, without a mark" in shown
    assert ("the very files" in shown) == (kept == "keep") and "unmarked originals" not in shown


def test_the_very_files_are_published_whatever_the_file_format(desk, tmp_path):
    folder = save_pictures(tmp_path / "mine", 6)
    for path in folder.iterdir():
        Image.open(path).save(path.with_suffix(".jpg"), quality=70, comment=b"my garden")
        path.unlink()
    draft, _, _ = protect._take(desk, None, str(folder), None)
    refused, number = press(desk, draft, chosen={**CHOSEN, "visibility": "none", "metadata": "keep", "format": "jpeg"})
    assert refused == ""
    until(lambda: not desk.jobs.get(number).active)
    _, photos = published(desk.jobs.get(number))
    assert len(photos) == 3 and all(original == file and b"my garden" in file for _, original, file in photos)


def test_without_a_mark_all_can_not_be_published(desk, tmp_path):
    draft, _, _ = protect._take(desk, None, str(save_pictures(tmp_path / "mine", 6)), None)
    refused, _ = press(desk, draft, chosen={**CHOSEN, "visibility": "none", "holdout": 0.0})
    assert "“Hold-out”" in refused and "publish half of them" in refused and "--" not in refused
    assert not (tmp_path / "mine_record").exists()


def test_the_preview_without_a_mark_shows_that_nothing_changes(desk, tmp_path):
    draft, _, names = protect._take(desk, None, str(save_pictures(tmp_path / "mine", 2)), None)
    none, plain = (marking.preview(draft, names["value"], name, 0.7, "perlin", 8) for name in ("none", "clear"))
    pictures = [re.findall(r'src="([^"]+)"', shown) for shown in (none, plain)]
    assert pictures[0][0] == pictures[0][1] and pictures[1][0] != pictures[1][1]
    assert "Nothing changes" in none and "Your own stripes" not in none and "PSNR" not in none
    assert "Nothing changes" not in plain and "Your own stripes" in plain


@pytest.mark.parametrize("handed_in", [True, False])
def test_a_reference_is_fixed_with_the_photos_by_its_digest(desk, tmp_path, reference, handed_in):
    given = {"reference_path": str(reference)}
    if handed_in:
        given = {"reference": [uploaded(desk, "other name.safetensors", reference.read_bytes())]}
    job = mark(desk, save_pictures(tmp_path / "mine", 6), **given)
    plan, digest = published(job)[0].plan, file_digest(reference)
    assert plan.references == [digest] and (plan.label, plan.keys, plan.views) == ("auto", 19, 2)
    shown = protect._result(job)
    assert digest in shown and "An audit needs these very files" in shown
    assert list((desk.root / "drafts").iterdir()) == []
    assert published(mark(desk, save_pictures(tmp_path / "more", 2)))[0].plan.references == []


def test_a_reference_and_no_mark_go_together(desk, tmp_path, reference):
    job = mark(desk, save_pictures(tmp_path / "mine", 6), visibility="none", reference_path=str(reference))
    plan = published(job)[0].plan
    assert (plan.references, plan.keys, plan.views) == ([file_digest(reference)], 0, 18)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"reference_path": "/no/model.pt"}, "does not exist"),
        ({"reference": b"nothing"}, "“Reference models”"),
        ({"twice": True}, "one model is there twice"),
        ({"weights": True}, "give “Network of a reference”"),
    ],
)
def test_a_reference_that_can_not_be_asked_marks_nothing(desk, tmp_path, reference, given, words):
    folder = save_pictures(tmp_path / "mine", 6)
    if "reference" in given:
        given = {"reference": [uploaded(desk, "bad.safetensors", given["reference"])]}
    if "twice" in given:
        content = reference.read_bytes()
        given = {"reference": [uploaded(desk, "a.safetensors", content)], "reference_path": str(reference)}
    if "weights" in given:
        given = {"reference_path": save_network(tmp_path / "net.pt", 3)}
    draft, _, _ = protect._take(desk, None, str(folder), None)
    refused, _ = press(desk, draft, chosen={**CHOSEN, **given})
    assert words in refused and 'role="alert"' in refused and "--" not in refused and "defect" not in refused
    assert not (tmp_path / "mine_record").exists() and list((desk.root / "drafts").iterdir()) == []


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
