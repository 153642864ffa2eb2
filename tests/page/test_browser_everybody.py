"""The page in a real browser: looking around in finished runs, and that nobody is left out."""

import json
import re

import pytest

from tests.page.browsing import count, depart, expect, go, hand_in, more

axe_module = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")


# --- looking around in finished runs ---


def test_a_run_of_train_can_be_looked_at(visit, finished_run):
    page = visit()
    go(page, "Audit")
    page.get_by_label("Or the folder of a run").fill(str(finished_run))
    page.get_by_role("button", name="Open", exact=True).click()
    view = page.locator("#audit-view")
    expect(view).to_contain_text("target 0")
    result = json.loads((finished_run / "result.json").read_text())
    assert f"{result['audit']['set']['auc']:.4f}" in view.inner_text()
    expect(view.locator("img")).to_have_count(3)
    assert page.locator("#audit-exposed img").count() == 8  # 2 users x 4 images
    rates = page.locator("#audit-rates")
    expect(rates).to_contain_text("At most 0.1 %")
    number = page.locator("#audit-rate input[type=number]")
    number.fill("5")
    number.press("Enter")
    expect(rates).to_contain_text("At most 5 %")
    assert re.search(r"3 of 60", rates.inner_text())  # 5 % of 60 non-member users


def test_a_folder_without_a_run_is_one_line(visit, tmp_path):
    page = visit()
    go(page, "Audit")
    page.get_by_label("Or the folder of a run").fill(str(tmp_path))
    page.get_by_role("button", name="Open", exact=True).click()
    expect(page.locator("#audit-view [role=alert]")).to_contain_text("no finished run")


# --- for everybody ---

# What gradio is still filling in is half transparent.
SETTLED = """() => [...document.querySelectorAll(".mt")].every(part => {
  for (let one = part; one; one = one.parentElement) if (getComputedStyle(one).opacity !== "1") return false;
  return true; })"""


def serious(page):
    page.wait_for_function(SETTLED)
    found = axe_module.Axe().run(page).response["violations"]
    return [
        (one["id"], [node["html"][:200] for node in one["nodes"]])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 1280), ("light", 400), ("dark", 400)])
def test_nobody_is_left_out(visit, protected, models, finished_run, scheme, width):
    page = visit(scheme, width)
    page.locator("#protect-files input[type=file]").set_input_files(protected.originals[:2])
    expect(page.locator("#protect-preview img")).to_have_count(3)
    expect(page.locator("#protected-view")).to_contain_text("are marked and ready")
    found = {"Protect": serious(page)}
    hand_in(page, protected, str(models.innocent))
    more(page)
    depart(page)
    count(page)
    found["Check"] = serious(page)
    go(page, "Evidence")
    page.get_by_role("button", name="More about the model, the witness").click()
    page.get_by_role("button", name="Check the evidence").click()
    expect(page.locator("#evidence-refused [role=alert]")).to_be_visible()
    found["Evidence"] = serious(page)
    go(page, "Audit")
    page.get_by_label("Or the folder of a run").fill(str(finished_run))
    page.get_by_role("button", name="Open", exact=True).click()
    expect(page.locator("#audit-exposed img").first).to_be_visible()
    expect(page.locator("#audit-rates table")).to_be_visible()
    found["Audit"] = serious(page)
    assert found == {"Protect": [], "Check": [], "Evidence": [], "Audit": []}
    for tab in found:
        go(page, tab)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{tab} is wider than the screen"


def test_keys_alone_are_enough(visit, protected):
    page = visit()
    page.locator("#protect-files input[type=file]").set_input_files(protected.originals[:4])
    page.get_by_text("4 photos found").wait_for()
    expect(page.locator("#protect-preview img")).to_have_count(3)
    page.get_by_text("None: the proof then holds if you are honest").click()
    page.get_by_role("tab", name="Protect").focus()
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "document.activeElement.innerText || document.activeElement.getAttribute("
                "'aria-label') || document.activeElement.type"
            )
        )
        if "Mark the photos" in str(reached[-1]):
            break
    assert "Mark the photos" in str(reached[-1]), reached
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"  # people see where they are
    page.keyboard.press("Enter")
    expect(page.locator("#protected-view")).to_contain_text("2 photos are marked and ready")
    page.get_by_role("tab", name="Protect").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("button", name="Count the queries")).to_be_visible()
