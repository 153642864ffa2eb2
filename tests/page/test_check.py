"""The tab Check without a browser: what is asked is what was counted, and nothing that was asked is hidden."""

import json

import pytest
import torch

from kit.errors import UserError
from networks import build_network
from page.tabs import check
from tests.page.parts import OnePanel, until, uploaded

pytest.importorskip("gradio", reason="gradio is not installed (requirements/app.txt)")

FIELDS = dict.fromkeys(check.INPUTS, "") | {
    "record": None,
    "originals": None,
    "model": None,
    "label": "auto",
    "alpha": 0.05,
    "label_only": False,
    "net_type": "smallnet",
    "input_size": "32",
    "mean": "0.5 0.5 0.5",
    "std": "0.25 0.25 0.25",
    "max_queries": "30",
}


def save_network(path, seed):
    torch.manual_seed(seed)
    torch.save(build_network("smallnet", 4).state_dict(), path)
    return str(path)


@pytest.fixture
def fields(marked, tmp_path):
    job, _ = marked
    return {**FIELDS, "known": job.id, "address": save_network(tmp_path / "net.pt", 1)}


def begun(desk, ready, fields):
    """(message, the job or None) of pressing Start."""
    text, _, _, *number = check._begin(desk, OnePanel(), None, ready, fields)
    job = desk.jobs.get(number[0]) if isinstance(number[0], str) else None
    if job is not None:
        until(lambda: not job.active)
    return text, job


def audited(desk, fields):
    shown, ready, _ = check._plan(desk, None, fields)
    assert ready is not None, shown
    text, job = begun(desk, ready, fields)
    assert job is not None and job.state == "done", (text, job and job.message)
    return job, shown


def test_an_audit_of_the_page_is_that_of_eval(desk, fields, marked, script, tmp_path):
    job, shown = audited(desk, fields)
    assert "30 queries" in shown and "Nothing has been asked yet" in shown
    result = json.loads((job.folder / "result.json").read_text())
    done = script(
        "eval",
        "--record",
        marked[0].result["record"],
        "--checkpoint",
        fields["address"],
        "--net_type",
        "smallnet",
        "--input_size",
        "32",
        "--mean",
        "0.5",
        "0.5",
        "0.5",
        "--std",
        "0.25",
        "0.25",
        "0.25",
        "--alpha",
        "0.05",
        "--max_queries",
        "30",
        "--device",
        "cpu",
        "--out",
        tmp_path / "by-eval",
    )
    assert done.code == 0, done.err
    same = json.loads((tmp_path / "by-eval" / "result.json").read_text())
    assert {name: result[name] for name in ("p_value", "statistic", "queries", "model", "audit")} == {
        name: same[name] for name in ("p_value", "statistic", "queries", "model", "audit")
    }
    assert f"{result['queries']:,}" in check._result(desk, job) and job.details["subject"]


def test_a_model_that_changed_after_the_count_is_not_asked(desk, fields):
    _, ready, _ = check._plan(desk, None, fields)
    save_network(fields["address"], 2)
    _, job = begun(desk, ready, fields)
    assert job.state == "failed" and "has changed since the queries were counted" in job.message
    assert not (job.folder / "answers.bin").exists()


def test_other_keys_are_another_audit_and_are_told(desk, fields):
    first, _ = audited(desk, fields)
    second, shown = audited(desk, {**fields, "audit_seed": "again"})
    assert first.id != second.id
    p = json.loads((first.folder / "result.json").read_text())["p_value"]
    for text in (shown, check._result(desk, second)):
        assert "audited before" in text and f"p = {p:.3g}" in text
    assert "of 2 audits" in check._result(desk, first)  # the first one's verdict knows of the second, too


def test_another_class_or_alpha_asks_nothing_again(desk, fields):
    job, _ = audited(desk, fields)
    answers = (job.folder / "answers.bin").read_bytes()
    again, shown = audited(desk, {**fields, "label": "2", "alpha": 0.1})
    assert again.id == job.id and (job.folder / "answers.bin").read_bytes() == answers
    assert "have been answered before" in shown
    assert json.loads((job.folder / "result.json").read_text())["label"] == 2


def test_an_audit_goes_on_though_its_inputs_have_moved(desk, fields, tmp_path):
    _, ready, _ = check._plan(desk, None, fields)
    moved = (tmp_path / "elsewhere").with_suffix(".pt")
    (tmp_path / "net.pt").rename(moved)
    _, job = begun(desk, ready, fields)
    assert job.state == "failed" and "does not exist" in job.message
    # The same model under another name is the same model, but the evidence says how the file was called.
    moved.rename(tmp_path / "sub.pt")
    (tmp_path / "away").mkdir()
    (tmp_path / "sub.pt").rename(tmp_path / "away" / "net.pt")
    again, _ = audited(desk, {**fields, "address": str(tmp_path / "away" / "net.pt")})
    assert again.id == job.id


def test_headers_go_to_their_own_server_alone():
    details = {"model": "http://localhost:8000/v2/models/a"}
    assert check._header_for(details, "X: secret", " http://localhost:8000/v2/models/a ") == "X: secret"
    assert check._header_for(details, "X: secret", "http://other/v2/models/a") == ""
    assert check._header_for(details, "X: secret", None) == ""


def test_no_header_is_kept(desk, fields):
    _, ready, _ = check._plan(desk, None, {**fields, "header": "Authorization: tops3cret"})
    begun(desk, ready, {**fields, "header": "Authorization: tops3cret"})
    assert not any(b"tops3cret" in path.read_bytes() for path in desk.root.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"known": ""}, "there is no record yet"),
        ({"known": "gone"}, "that record is gone"),
        ({"address": ""}, "there is no model yet"),
        ({"address": "/no/model.pt"}, "does not exist"),
        ({"address": "~nobody-of-this-name/x"}, "can&#x27;t be a path"),
        ({"input_size": "nan"}, "“Input size” takes"),
        ({"folder": "/no/originals"}, "is not a folder"),
        ({"net_type": "resnet18"}, 'class="box bad"'),
        ({"max_queries": "1"}, "“Most queries” allows 1"),
        ({"label": "zebra"}, "“Class of the photos” zebra"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(desk, fields, capfd, changes, words):
    shown, ready, _ = check._plan(desk, None, {**fields, **changes})
    assert ready is None and words in shown and 'role="alert"' in shown and "defect" not in shown
    assert list((desk.root / "drafts").iterdir()) == [] and capfd.readouterr().err == ""


def test_a_recount_leaves_one_draft(desk, fields):
    ready = None
    for _ in range(3):
        _, ready, _ = check._plan(desk, ready, fields)
    assert len(list((desk.root / "drafts").iterdir())) == 1


def test_damaged_uploads_are_one_line(desk, fields):
    torn = uploaded(desk, "record.zip", b"PK\x03\x04 torn")
    for changes in (
        {"record": torn},
        {"model": uploaded(desk, "model.zip", b"PK\x03\x04 torn")},
        {"record": uploaded(desk, "notes.txt", b"hello")},
        {"model": str(desk.root / "uploads" / "gone")},
    ):
        shown, ready, _ = check._plan(desk, None, {**fields, **changes})
        assert ready is None and 'role="alert"' in shown and "defect" not in shown, shown


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
