"""The tab Check without a browser: what is asked is what was counted, and nothing that was asked is hidden."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from attacks.exact import one_in
from kit.errors import UserError
from kit.files import file_digest
from page.tabs import check, inputs
from provenance import evidence, judgements
from tests.page.parts import OnePanel, mark, save_network, save_pictures, until, uploaded
from tests.suspects import tiny

gr = pytest.importorskip("gradio", reason="gradio is not installed (requirements/app.txt)")

FIELDS = dict.fromkeys(check.INPUTS, "") | {
    "record": None,
    "originals": None,
    "model": None,
    "reference": None,
    "without_references": False,
    "label_only": False,
    "net_type": "smallnet",
    "input_size": "32",
    "mean": "0.5 0.5 0.5",
    "std": "0.25 0.25 0.25",
}
QUERIES = 20 * 20 * 2  # photos, keys, views
STRONG = {"selections": "99,999"}  # makes up for a departure


@pytest.fixture
def fields(album, tmp_path):
    job, _ = album
    return {**FIELDS, "known": job.id, "address": save_network(tmp_path / "net.pt", 1)}


def begun(desk, ready, fields):
    """(message, the job or None) of pressing Start."""
    text, _, _, *number = check._begin(desk, OnePanel(), None, ready, fields)
    job = desk.jobs.get(number[0]) if isinstance(number[0], str) else None
    if job is not None:
        until(lambda: not job.active)
    return text, job


def audited(desk, fields):
    shown, ready, *_ = check._plan(desk, None, fields)
    assert ready is not None, shown
    text, job = begun(desk, ready, fields)
    assert job is not None and job.state == "done", (text, job and job.message)
    return job, shown


def results(job):
    return json.loads((job.folder / "result.json").read_text())


def same_as_eval(result, script, album, fields, out, *flags):
    """Whether eval.py gives a result of the page, its times aside; flags: more of it."""
    (log := judgements.place_of_log(album[1].parent / "album_record", out)).unlink()  # as if it had never been
    done = script(
        "eval",
        "--record",
        album[0].result["record"],
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
        "--device",
        "cpu",
        "--out",
        out,
        *flags,
    )
    assert done.code == 0, done.err
    same, times = json.loads((out / "result.json").read_text()), ("judgement", "plan_sha256")
    assert {name: value for name, value in result.items() if name not in times} == {
        name: value for name, value in same.items() if name not in times
    }
    assert {**result["judgement"], "begun": ""} == {**same["judgement"], "begun": ""}
    assert len(judgements.read_log(log)) == 1
    return True


def test_an_audit_of_the_page_is_that_of_eval(desk, fields, album, script, tmp_path):
    job, shown = audited(desk, fields)
    assert f"{QUERIES} queries" in shown and "Nothing has been asked yet" in shown
    assert same_as_eval(result := results(job), script, album, fields, tmp_path / "by-eval")
    shown = check._result(job)
    assert f"{result['queries']:,}" in shown and one_in(result["p_value"]) in shown


def test_what_a_verdict_rests_on_comes_first(desk, fields):
    job, _ = audited(desk, fields)
    shown, result = check._result(job), results(job)
    assert len(result["weaknesses"]) >= 2
    places = [shown.index(words) for words in ("What this rests on", "only if the accuser is honest", "Not shown")]
    assert places == sorted(places)
    before_a_click = shown[: shown.index("<details>")]
    assert "p =" not in before_a_click and "exact p" not in before_a_click and "exact p" in shown
    assert f"of {20} patterns that could have been drawn" in shown  # the marks' own statement


def test_a_model_that_changed_after_the_count_is_not_asked(desk, fields):
    _, ready, *_ = check._plan(desk, None, fields)
    save_network(fields["address"], 2)
    _, job = begun(desk, ready, fields)
    assert job.state == "failed" and "has changed since the queries were counted" in job.message
    assert not (job.folder / "answers.bin").exists()


def test_fields_left_empty_are_as_committed(desk, album, fields):
    shown, ready, *_ = check._plan(desk, None, fields)
    assert ready["details"]["options"] | {"publications": []} == {
        **dict.fromkeys(
            (
                "label",
                "caption",
                "keys",
                "query_augmentations",
                "selections",
                "alpha",
                "max_queries",
                "audit_seed",
                "top_k",
                "sequential",
            )
        ),
        "label_only": False,
        "num_of_non_member_user": 1000,
        "verdict_fpr": 0.001,
        "publications": [],
    }
    assert "departs" not in shown and "judgement 1 of this model" in shown
    assert f"at most {one_in(0.0005)} audits; the strongest that can come out is 1 of 200,000" in shown


def test_a_departure_is_shown_before_anything_is_asked(desk, fields):
    shown, ready, *_ = check._plan(desk, None, {**fields, "label": "2", **STRONG})
    factor = 2 * 8 * 4 * (4 + 1)  # see provenance/plan.py: judged as committed or not, parts, selections, labels
    alpha = 0.001 / 2 / factor
    assert shown.index("This departs from the plan") < shown.index("will be sent to the model")
    assert "label 2 instead of auto" in shown and "99999 selections instead of 9999" in shown
    assert f"{factor} choices" in shown and f"{one_in(alpha)} audits, instead of {one_in(0.0005)}" in shown
    assert ready["details"]["alpha"] == alpha and "judgement 1 of this model" in shown
    _, job = begun(desk, ready, {**fields, "label": "2", **STRONG})
    assert job.state == "done", job.message
    assert results(job)["alpha"] == alpha and results(job)["label"] == 2
    assert "the audit departs from the committed plan" in check._result(job)


def test_a_departure_that_can_prove_nothing_is_refused(desk, fields):
    shown, ready, *_ = check._plan(desk, None, {**fields, "label": "2"})
    assert ready is None and "label 2 instead of auto" in shown and "keep to the committed plan" in shown
    assert "--" not in shown


def test_other_keys_are_another_audit_and_are_told(desk, fields):
    first, shown = audited(desk, fields)
    assert "Judgements with this record so far" not in shown and "All judgements" not in check._result(first)
    second, shown = audited(desk, {**fields, "audit_seed": "again"})
    assert first.id != second.id and "judgement 2 of this model" in shown
    p = results(first)["p_value"]
    for text in (shown, check._result(second)):
        assert "udgements with this record" in text and one_in(p) in text
    assert results(second)["alpha"] == results(first)["alpha"] / 2 == 0.00025
    assert "was added to the draw" in check._result(second)  # by whom, the page can't know
    # The first one's verdict knows of the second, too.
    assert "All judgements with this record" in check._result(first)
    assert one_in(results(second)["p_value"]) in check._result(first)


def test_another_class_asks_nothing_again_and_is_another_judgement(desk, fields):
    job, _ = audited(desk, fields)
    answers, p = (job.folder / "answers.bin").read_bytes(), results(job)["p_value"]
    again, shown = audited(desk, {**fields, "label": "2", **STRONG, "keys": "19"})
    assert again.id == job.id and (job.folder / "answers.bin").read_bytes() == answers
    assert "have been answered before" in shown and "judgement 2 of this model" in shown
    assert results(job)["label"] == 2 and results(job)["judgement"]["asking"] == 1
    shown = check._result(desk.jobs.get(job.id))
    assert "Evidence of judgement 1" in shown and one_in(p) in shown
    assert desk.download(job.id, "evidence-judgement-1.zip").exists()
    # The first plan again is no new judgement.
    third, shown = audited(desk, fields)
    assert "judgement 1 of this model" in shown and results(third)["p_value"] == p


def test_a_judgement_that_came_between_is_not_passed_over(desk, fields):
    _, ready, *_ = check._plan(desk, None, fields)
    audited(desk, {**fields, "audit_seed": "again"})
    _, job = begun(desk, ready, fields)
    assert job.state == "failed" and "came between" in job.message and not (job.folder / "answers.bin").exists()


def handed_in(desk, album, tmp_path, fields, **more):
    """The fields with the record as a file, as somebody has it who did not mark on this page."""
    copy = tmp_path / "elsewhere"
    if not copy.exists():
        shutil.copytree(album[0].result["record"].removesuffix("/record.json"), copy)
    record = uploaded(desk, "record.json", (copy / "record.json").read_bytes())
    return {**fields, "known": "", "record": record, "folder": str(album[1]), **more}


def test_a_record_that_the_page_offers_after_the_count_changes_nothing(desk, fields, album, tmp_path):
    wanted = handed_in(desk, album, tmp_path, fields)

    def filled_in(**now):
        return check._filled_in([{**wanted, **now}[name] for name in check.INPUTS])

    _, ready, *_ = check._plan(desk, None, filled_in())
    text, job = begun(desk, ready, filled_in(known=album[0].id))
    assert job is not None and job.state == "done", text


@pytest.mark.parametrize("made_here", [True, False])
def test_copies_of_a_record_share_their_judgements(desk, fields, album, tmp_path, made_here):
    first = handed_in(desk, album, tmp_path, fields)
    if made_here:
        audited(desk, fields)
    else:
        del desk.jobs._jobs[album[0].id]
        audited(desk, first)
    _, shown = audited(desk, handed_in(desk, album, tmp_path, fields, audit_seed="again"))
    assert "judgement 2 of this model" in shown


def test_judgements_that_come_with_a_record_count(desk, fields, album, tmp_path):
    audited(desk, fields)
    folder = album[1].parent / "album_record"
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as bundle:
        for name in ("record.json", "judgements.json"):
            bundle.write(folder / name, name)
    content = (tmp_path / "whole.zip").read_bytes()
    (folder / "judgements.json").unlink()
    wanted = handed_in(desk, album, tmp_path, fields, audit_seed="again")
    wanted["record"] = uploaded(desk, "whole.zip", content)
    _, shown = audited(desk, wanted)
    assert "judgement 2 of this model" in shown
    # Another history of the same record is nobody's to choose.
    (folder / "judgements.json").unlink()
    audited(desk, {**fields, "audit_seed": "something else"})
    wanted["record"] = uploaded(desk, "whole.zip", content)
    shown, ready, *_ = check._plan(desk, None, wanted)
    assert ready is None and "whoever removes judgements proves nothing" in shown


def test_lost_originals_are_told_before_anything_is_asked(desk, fields, album):
    (album[1] / "3.png").unlink()
    for path in (album[1].parent / "album_record").rglob("3.png"):
        path.unlink()
    shown, *_ = check._plan(desk, None, fields)
    assert "1 of 20 photos are left out" in shown and "760 queries" in shown


def test_the_only_record_is_chosen(desk, album, tmp_path):
    job, _ = album
    assert check._offered(desk, None)["value"] == job.id
    mark(desk, save_pictures(tmp_path / "more", 2))
    assert check._offered(desk, None)["value"] is None and len(check._offered(desk, None)["choices"]) == 2
    assert check._offered(desk, job.id)["value"] == job.id and check._offered(desk, "gone")["value"] is None


def test_an_audit_that_stopped_early_has_the_plot_of_its_bets_alone(desk, fields):
    """It made no grid, and has no number of pairs."""
    job, _ = audited(desk, fields)
    whole = results(job)
    (job.folder / "grid.png").rename(job.folder / "wealth.png")
    bets = {"wealth": [2.0, 900.0], "p": 0.001}
    early = {**whole, **dict.fromkeys(("statistic", "pairs", "at_most", "key_p_value")), "sequential": bets}
    (job.folder / "result.json").write_text(json.dumps(early))
    shown = check._result(job)
    assert "Evidence after each of 2 photos" in shown and "Histogram" not in shown
    assert "p, photo by photo" in shown and "pairs of patterns" not in shown


def test_where_photos_were_published_goes_into_the_evidence(desk, fields):
    job, _ = audited(desk, {**fields, "publications": " https://example.org/a \n\nhttps://example.org/b"})
    with zipfile.ZipFile(job.folder / "evidence.zip") as bundle:
        document = json.loads(bundle.read("bundle.json"))
    assert document["publications"] == ["https://example.org/a", "https://example.org/b"]


def test_an_audit_goes_on_though_its_inputs_have_moved(desk, fields, tmp_path):
    _, ready, *_ = check._plan(desk, None, fields)
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
    assert inputs.header_for(details, "X: secret", " http://localhost:8000/v2/models/a ") == "X: secret"
    assert inputs.header_for(details, "X: secret", "http://other/v2/models/a") == ""
    assert inputs.header_for(details, "X: secret", None) == ""


def test_no_header_is_kept(desk, fields):
    _, ready, *_ = check._plan(desk, None, {**fields, "header": "Authorization: tops3cret"})
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
        ({"max_queries": "1"}, "more than “Most queries” 1"),
        ({"label": "zebra"}, "“Class of the photos” zebra"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(desk, fields, capfd, changes, words):
    shown, ready, *_ = check._plan(desk, None, {**fields, **changes})
    assert ready is None and words in shown and 'role="alert"' in shown and "defect" not in shown
    assert list((desk.root / "drafts").iterdir()) == [] and capfd.readouterr().err == ""


def test_a_recount_leaves_one_draft(desk, fields):
    ready = None
    for _ in range(3):
        _, ready, *_ = check._plan(desk, ready, fields)
    assert len(list((desk.root / "drafts").iterdir())) == 1


def test_damaged_uploads_are_one_line(desk, fields):
    torn = uploaded(desk, "record.zip", b"PK\x03\x04 torn")
    for changes in (
        {"record": torn},
        {"model": uploaded(desk, "model.zip", b"PK\x03\x04 torn")},
        {"record": uploaded(desk, "notes.txt", b"hello")},
        {"model": str(desk.root / "uploads" / "gone")},
    ):
        shown, ready, *_ = check._plan(desk, None, {**fields, **changes})
        assert ready is None and 'role="alert"' in shown and "defect" not in shown, shown


# --- references, views, photos without a mark ---


def test_an_audit_with_a_reference_is_that_of_eval(desk, fields, album, script, reference, tmp_path):
    alone, shown = audited(desk, fields)
    assert "each reference" not in shown and "taken out of the comparison" not in check._result(alone)
    handed_in = [uploaded(desk, reference.name, reference.read_bytes())]
    job, shown = audited(desk, {**fields, "reference": handed_in})
    assert "go to each reference first (reference.safetensors)" in shown and "instead of no reference" in shown
    # What is sent to the model is the same, so that nothing is asked twice.
    assert job.id == alone.id and "have been answered before" in shown
    result = results(job)
    assert result["references"][0]["digest"] == file_digest(reference) and result["queries"] == QUERIES
    assert evidence.read_bundle(job.folder / "evidence.zip")[-1].shape == (1, 20, 20)  # its scores
    found = check._result(job)
    assert "reference.safetensors: taken not to have seen the photos" in found and file_digest(reference) in found
    assert "<dt>views of each photo</dt><dd>2</dd>" in found and "were not fixed with the photos" in found
    assert "--" not in found[: found.index("<details>")]
    # A first judgement on both sides.
    desk.jobs.delete(job.id)
    judgements.place_of_log(album[1].parent / "album_record", tmp_path).unlink()
    job, _ = audited(desk, {**fields, "reference_path": str(reference)})
    flags = ("--reference", reference)
    assert same_as_eval(results(job), script, album, fields, tmp_path / "by-eval", *flags)


def test_an_audit_with_a_reference_is_taken_up_after_a_restart(desk, fields, reference):
    handed_in = [uploaded(desk, reference.name, reference.read_bytes())]
    job, _ = audited(desk, {**fields, "reference": handed_in})
    wanted = results(job)
    shutil.rmtree(Path(handed_in[0]).parent)
    for name in ("result.json", "evidence.zip"):
        (job.folder / name).unlink()
    desk.jobs.close()
    again = type(desk)(desk.root, desk.chain)
    check._start(again, again.jobs.get(job.id), "")
    until(lambda: not again.jobs.get(job.id).active)
    job = again.jobs.get(job.id)
    assert job.state == "done", job.message
    assert results(job) == wanted and wanted["references"][0]["name"] == reference.name
    again.jobs.close()


@pytest.fixture
def referred(desk, tmp_path, reference):
    """The fields of an audit with a record that was committed with a reference."""
    job = mark(desk, save_pictures(tmp_path / "referred", 20), reference_path=str(reference))
    return {**FIELDS, "known": job.id, "address": save_network(tmp_path / "net.pt", 1)}


def test_a_committed_reference_that_is_missing_is_told_before_anything_is_asked(desk, referred, reference):
    shown, ready, button, *opened = check._plan(desk, None, referred)
    assert ready is None and not button["interactive"] and "--" not in shown and 'role="alert"' in shown
    assert "the plan was committed with references" in shown and file_digest(reference)[:16] in shown
    assert "give them with “Reference models”" in shown
    more, beside = opened
    assert beside["open"] is True and more == gr.skip()
    assert not (desk.root / "checks").exists() or list((desk.root / "checks").iterdir()) == []
    # With the very file nothing departs.
    shown, ready, *opened = check._plan(desk, None, {**referred, "reference_path": str(reference)})
    assert "departs" not in shown and ready["details"]["alpha"] == 0.0005 and opened[1:] == [gr.skip()] * 2
    text, job = begun(desk, ready, {**referred, "reference_path": str(reference)})
    assert job.state == "done", text
    assert "were not fixed with the photos" not in check._result(job)


def test_without_the_references_that_were_fixed_is_a_departure(desk, referred, reference):
    shown, ready, *_ = check._plan(desk, None, {**referred, "without_references": True})
    assert "no reference instead of references" in shown and "each reference" not in shown
    assert ready["details"]["alpha"] == 0.001 / 2 / (2 * 8 * 2 * 2)
    both = {**referred, "without_references": True, "reference_path": str(reference)}
    shown, ready, *_ = check._plan(desk, None, both)
    assert ready is None and "leave one out" in shown and "--" not in shown


def test_views_are_a_departure_and_another_audit(desk, fields):
    first, _ = audited(desk, fields)
    shown, ready, *_ = check._plan(desk, None, {**fields, "query_augmentations": "4", **STRONG})
    assert "4 views instead of 2" in shown and f"{2 * QUERIES:,} queries" in shown
    assert ready["number"] != first.id and "Nothing has been asked yet" in shown
    shown, ready, *_ = check._plan(desk, None, {**fields, "query_augmentations": "19"})
    assert ready is None and "“Views of each photo” takes a whole number from 1 to 18" in shown


@pytest.mark.parametrize(
    "given, words",
    [
        ({"reference_path": "/no/model.pt"}, "does not exist"),
        ({"reference_path": "net.pt"}, "give “Network of a reference”"),
        ({"reference_path": "net.pt", "reference_net_type": "nonsense"}, "“Network of a reference”"),
    ],
)
def test_a_reference_that_can_not_be_opened_is_one_line(desk, fields, tmp_path, given, words):
    if given["reference_path"] == "net.pt":
        given = {**given, "reference_path": save_network(tmp_path / "ref.pt", 5)}
    shown, ready, _, _, beside = check._plan(desk, None, {**fields, **given})
    assert ready is None and words in shown and "“Architecture”" not in shown and "defect" not in shown
    assert beside["open"] is True and list((desk.root / "drafts").iterdir()) == []


def test_photos_without_a_mark_are_audited_as_planned(desk, tmp_path):
    job = mark(desk, save_pictures(tmp_path / "plain", 20), visibility="none")
    wanted = {**FIELDS, "known": job.id, "address": save_network(tmp_path / "net.pt", 1)}
    job, shown = audited(desk, wanted)
    assert "360 queries" in shown and "departs" not in shown  # 20 photos, 18 views, no other patterns
    result = results(job)
    assert result["pairs"] == 100_000 and result["queries"] == 360 and result["key_p_value"] is None
    shown = check._result(job)
    assert "the marks themselves" not in shown and "<dt>views of each photo</dt><dd>18</dd>" in shown


@pytest.mark.parametrize("text, wanted", [("", None), (None, None), ("0.5, 0.4 0.3", (0.5, 0.4, 0.3))])
def test_numbers_of_a_field(text, wanted):
    assert inputs.numbers(text, "Mean", 3) == wanted


@pytest.mark.parametrize("text", ["a b c", "1 2", "1,2,3,4", "nan 1 2", "1 inf 2"])
def test_numbers_that_are_none_are_refused(text):
    with pytest.raises(UserError, match="“Mean” takes 3 numbers"):
        inputs.numbers(text, "Mean", 3)


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "many", "4097", "9" * 5000])
def test_whole_numbers_are_asked_for(text):
    with pytest.raises(UserError, match="“Images a request” takes a whole number from 1 to 4,096"):
        inputs.whole(text, "Images a request", 4096)


@pytest.mark.parametrize("text, wanted", [("", None), ("224", [224, 224]), ("224 x 160", [224, 160])])
def test_sizes(text, wanted):
    assert inputs.size(text) == wanted


@pytest.mark.parametrize("text", ["224.7", "nan", "1 2 3", "100000"])
def test_sizes_that_are_none_are_refused(text):
    with pytest.raises(UserError, match="“Input size” takes"):
        inputs.size(text)


def lora(path):
    """The file of a LoRA of the tiny pixel models below."""
    draws = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 3, 3, 3, generator=draws), torch.randn(8, 2, 1, 1, generator=draws)
    layer = {"unet.conv_in": (down, up)}
    return tiny.save_lora(path, layer, "diffusers")


@tiny.NEEDED
@pytest.mark.parametrize("kind", ["in full", "LoRA"])
def test_a_generator_is_asked_beside_what_it_was_made_of(desk, album, tmp_path, kind):
    narrow = {"block_out_channels": (8, 8), "down_block_types": ("DownBlock2D",) * 2}
    narrow |= {"up_block_types": ("UpBlock2D",) * 2, "add_attention": False}
    base, tuned = (
        tiny.pixel_pipeline(tmp_path / name, tiny.pixel_unet(seed, **narrow)) for seed, name in enumerate("bt")
    )
    tuned = lora(tmp_path / "style.safetensors") if kind == "LoRA" else tuned
    empty = dict.fromkeys(("net_type", "input_size", "mean", "std"), "")
    few = {"query_augmentations": "1", **STRONG}
    fields = {**FIELDS, **empty, **few, "known": album[0].id, "address": str(tuned), "base_model": str(base)}
    job, shown = audited(desk, fields)
    assert "400 queries" in shown and "answers with a score" in shown and "That takes about" in shown
    result = results(job)
    assert result["queries"] == 400 and any("is said to be made of it" in text for text in result["weaknesses"])
    assert job.details["base_model"] == str(base) and (kind in shown) == (kind == "LoRA")
    shown, ready, *_ = check._plan(desk, None, {**fields, "base_model": str(tuned)})
    assert ready is None and "“Base model”" in shown


@tiny.NEEDED
def test_a_caption_is_for_models_that_are_told_one(desk, album, tmp_path):
    pipe = tiny.pixel_pipeline(tmp_path / "pipe")
    empty = dict.fromkeys(("net_type", "input_size", "mean", "std"), "")
    fields = {**FIELDS, **empty, "known": album[0].id, "address": str(pipe), "caption": "a cat"}
    shown, ready, *_ = check._plan(desk, None, fields)
    assert ready is None and "“What every photo shows”" in shown
