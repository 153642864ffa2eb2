"""The page in a real browser: the whole way on real images, and faults."""

import json
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from attacks.exact import one_in
from provenance import beacon
from provenance import record as records
from tests.page.browsing import LONG, choose, count, depart, enter, expect, go, hand_in, lay_down, start, verdict
from tests.page.world import PHOTOS, pixels_of


def opened(protected):
    """(record, names of files) in the private zip."""
    with zipfile.ZipFile(protected.private) as bundle:
        bundle.extract("record.json", protected.private.parent)
        return records.read_record(protected.private.parent / "record.json"), bundle.namelist()


@pytest.mark.every_browser
def test_nobody_chose_and_the_commitment_was_shown_before_the_draw(protected, site):
    record, _ = opened(protected)
    (batch,) = record.batches
    named = batch.commit.beacon
    beacon.verify(site.chain, beacon.Round(named.round, batch.signature))
    assert "Post this number now" in protected.waiting and "seconds left" in protected.waiting
    assert record.commitments[0] in protected.waiting and protected.copied == record.commitments[0]
    assert "What this rests on" in protected.text and "rests on where it was posted" in protected.text


def test_photos_are_marked_and_both_files_can_be_kept(protected):
    assert f"{PHOTOS // 2} photos are marked" in protected.text and f"{PHOTOS // 2} are held out" in protected.text
    assert "the mark is" in protected.text and "PSNR" not in protected.text
    assert all(str(folder) in protected.text for folder in protected.places)
    assert "torn.jpg" in protected.text and "damaged" in protected.text  # named, and the rest is done
    assert "Keep the record" in protected.text
    record, names = opened(protected)
    assert record.commitments[-1] in protected.text and record.evidence
    assert sum(name.startswith("held_out/") for name in names) == PHOTOS // 2
    published = sorted(path.name for path in protected.published.rglob("*.png"))
    assert published == sorted(photo.marked for photo in record.photos if photo.published)
    assert not any(name.startswith("photo") for name in names)  # no marked photo in what is secret, and none published
    for path, image in zip(protected.originals, pixels_of(protected.data, protected.user), strict=True):
        assert np.array_equal(np.array(Image.open(path)), image.permute(1, 2, 0).numpy())  # never changed


@pytest.mark.every_browser
def test_the_guilty_model_is_found_and_the_innocent_one_is_not(visit, site, protected, models, script, tmp_path):
    page = visit()
    hand_in(page, protected, models.guilty)
    plan = count(page)
    assert f"{PHOTOS * 40:,} queries" in plan and "Nothing has been asked yet" in plan
    start(page)
    text = verdict(page, "guilty")
    assert "USED" in text and f"at least some of the {PHOTOS // 2} published photos" in text
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Download the evidence").click()
    waiting.value.save_as(tmp_path / "evidence.zip")
    replayed = script("eval", "--replay", tmp_path / "evidence.zip")
    page.locator("#checks-view summary", has_text="In figures").click()
    shown = re.search(r"exact p\s+([\d.e-]+)", page.locator("#checks-view").inner_text())[1]
    assert f"{one_in(float(shown))} audits of a model that never saw the photos" in text
    assert not re.search("exact p|p =|alpha", text)  # only where figures are asked for
    assert replayed.code == 0 and float(re.search(r"p recomputed\s+([\d.e-]+)", replayed.out)[1]) == pytest.approx(
        float(shown), rel=0.01
    )

    innocent = visit()
    hand_in(innocent, protected, models.innocent)
    count(innocent)
    start(innocent)
    text = verdict(innocent, "innocent")
    assert "Not shown" in text and "There is no proof" in text
    innocent.get_by_role("button", name="Delete", exact=True).click()
    innocent.get_by_role("button", name="Delete for good").click()
    expect(innocent.locator("#checks-view h2")).to_contain_text("guilty")  # the newest that is left
    assert len([*(site.work / "checks").glob("*/job.json")]) == 1
    assert all(url.startswith((page.url, "data:", "blob:")) for url in page.asked + innocent.asked)


def test_a_record_of_this_page_needs_no_file(visit, protected, models):
    page = visit()
    go(page, "Check")
    choose(page, "Record made on this page", f"photo 00 and {PHOTOS} more")  # with torn.jpg
    page.get_by_label("Or its path or address").fill(str(models.innocent))
    assert f"{PHOTOS * 40:,} queries" in count(page)
    depart(page)
    page.get_by_label("Most queries").fill("10")  # what was counted is void now
    start(page)
    expect(page.locator("#check-plan")).to_contain_text("has changed since the queries were counted")
    expect(page.get_by_role("button", name="Start the audit")).to_be_disabled()
    shown = count(page)
    assert (
        "departs from the committed plan" in shown
        and "“Most queries”" in shown
        and "--" not in page.locator("#check-plan").inner_text()
    )


@pytest.mark.every_browser
def test_a_departure_and_a_second_judgement_are_told_first(visit, protected, models):
    page = visit()
    hand_in(page, protected, models.guilty)
    depart(page)
    page.get_by_label("A text that the other side adds").fill("court")
    assert "judgement 2 of this model" in count(page)
    page.get_by_label("A text that the other side adds").fill("")
    page.get_by_role("textbox", name=re.compile("^Other patterns")).fill("49")
    page.get_by_label("Other halves").fill("99999")
    plan = count(page)
    assert "49 keys instead of 19" in plan and "choices were open" in plan
    assert plan.index("This departs from the plan") < plan.index("will be sent to the model")


def test_evidence_is_checked_and_forged_evidence_refused(visit, site, protected, models):
    """After the guilty model was found."""
    page = visit()
    hand_in(page, protected, models.guilty)
    count(page)
    start(page)
    verdict(page, "guilty")
    bundle = next((site.work / "checks").glob("*/evidence.zip"))
    go(page, "Evidence")
    field = page.locator("#evidence-bundle input[type=file]")
    field.set_input_files(bundle)
    expect(page.locator("#evidence-bundle")).to_contain_text("evidence")
    page.get_by_role("button", name="Check the evidence").click()
    view = page.locator("#replays-view")
    expect(view).to_contain_text("p recomputed", timeout=LONG)
    text = view.inner_text()
    assert text.index("What this rests on") < text.index("could have made them up") < text.index("p recomputed")
    forged = site.root / "forged.zip"
    with zipfile.ZipFile(bundle) as good, zipfile.ZipFile(forged, "w") as bad:
        document = json.loads(good.read("bundle.json"))
        document["result"]["p_value"] /= 2  # no fixed number: that may be the very p of an honest audit
        bad.writestr("bundle.json", json.dumps(document))
        bad.writestr("answers.npz", good.read("answers.npz"))
    page.reload()
    go(page, "Evidence")
    field.set_input_files(forged)
    expect(page.locator("#evidence-bundle")).to_contain_text("forged")
    page.get_by_role("button", name="Check the evidence").click()
    expect(view).to_contain_text("This evidence proves nothing", timeout=LONG)
    expect(view).to_contain_text("somebody changed it")


# --- faults ---


@pytest.mark.parametrize(
    "address, words",
    [
        ("http://127.0.0.1:9/v2/models/net", "can't be reached|refused|no answer"),
        ("/no/such/model.pt", "does not exist"),
        ("", "there is no model yet"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(visit, protected, address, words):
    page = visit()
    hand_in(page, protected, address)
    page.get_by_role("button", name="Count the queries").click()
    alert = page.locator("#check-plan [role=alert]")
    expect(alert).to_contain_text(re.compile(words), timeout=LONG)
    assert "Traceback" not in alert.inner_text()
    expect(page.get_by_role("button", name="Start the audit")).to_be_disabled()


def test_nothing_to_mark_is_said(visit, tmp_path):
    page = visit()
    page.get_by_role("button", name="Mark the photos").click()
    page.get_by_text("There are no photos yet").wait_for()
    bad = tmp_path / "photos.zip"
    with zipfile.ZipFile(bad, "w") as bundle:
        bundle.writestr("../outside.png", b"x")
    page.locator("#protect-files input[type=file]").set_input_files(bad)
    expect(page.locator("#protect-found")).to_contain_text("leaves its folder")
    expect(page.locator("#protect-found")).to_contain_text("0 photos found")


def test_choices_change_preview_and_figures(visit, protected):
    page = visit()
    lay_down(page, protected.originals[:3])
    pictures = page.locator("#protect-preview img")
    before, marked = (pictures.nth(place).get_attribute("src") for place in (0, 1))
    assert "before" in page.locator("#protect-preview").inner_text() and before != marked
    page.get_by_role("button", name="What these choices cost").click()
    expect(page.locator("#protect-cost")).to_contain_text("This very choice was measured")
    slider = page.locator("#protect-ratio input[type=number]")
    slider.fill("")  # for a moment, while somebody types
    page.wait_for_timeout(300)
    enter(slider, "1")
    expect(pictures.nth(1)).not_to_have_attribute("src", marked)
    assert pictures.nth(0).get_attribute("src") == before
    expect(page.locator("#protect-cost")).to_contain_text("blending ratio 1, noise norm 8")
    enter(page.locator("#protect-norm input[type=number]"), "0")
    expect(page.locator("#protect-preview [role=alert]")).to_contain_text("“Blending ratio” 1 without noise")
    assert page.get_by_test_id("toast-body").count() == 0  # none of gradio's own errors
