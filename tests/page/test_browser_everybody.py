"""The page in a real browser: looking around in finished runs, and that nobody is left out."""

import json
import re

import pytest
from safetensors.torch import save_file

from networks import build_network
from tests.page.browsing import count, depart, enter, expect, go, hand_in, lay_down, more

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
    enter(page.locator("#audit-rate input[type=number]"), "5")
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


# Colours don't hang on the width, nor widths on the colours.
@pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 400)])
def test_nobody_is_left_out(visit, protected, models, finished_run, scheme, width):
    page = visit(scheme, width)
    lay_down(page, protected.originals[:2])
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


# What lies over what, of the tab that is shown: labels of file fields over their icons, names over arrows.
OVERLAPS = """() => {
  const shown = one => one.getClientRects().length > 0, box = one => one.getBoundingClientRect(), found = [];
  const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  for (const label of [...document.querySelectorAll("label[data-testid=block-label]")].filter(shown))
    for (const icon of label.parentElement.querySelectorAll(".icon-wrap"))
      if (meet(box(label), box(icon))) found.push(label.innerText);
  for (const name of [...document.querySelectorAll("input[aria-autocomplete=list]")].filter(shown))
    for (const arrow of name.closest(".wrap").querySelectorAll("svg, .icon-wrap"))
      if (meet(box(name), box(arrow))) found.push(name.ariaLabel || name.value);
  return found; }"""
# Heights of what is empty between two neighbours of a column, where more than a finger's breadth.
GAPS = """() => {
  const found = [];
  for (const column of document.querySelectorAll(".column")) {
    let end = null;
    for (const one of column.children) {
      const box = one.getBoundingClientRect();
      if (!box.height || getComputedStyle(one).visibility === "hidden") continue;
      if (end !== null && box.top - end > 64) found.push(box.top - end);
      end = box.bottom;
    }
  }
  return found; }"""


@pytest.mark.every_browser
def test_nothing_lies_over_anything_on_a_narrow_screen(visit, protected, models):
    """Before: a label over the icon of its field, names that went on below the arrow, room for a picture that is not
    there yet."""
    page = visit("light", 400)
    for tab in ("Protect", "Check", "Evidence", "Audit"):
        go(page, tab)
        page.wait_for_function(SETTLED)
        assert page.locator("[role=tab][aria-selected=true]").inner_text() == tab
        assert page.evaluate(OVERLAPS) == [], tab
        assert page.evaluate(GAPS) == [], tab


@pytest.mark.every_browser
def test_a_field_that_is_needed_is_shown(visit, protected, tmp_path):
    """A file of weights alone needs its architecture, which is behind a click as long as nobody needs it."""
    path = tmp_path / "bare.safetensors"
    save_file(build_network("smallnet", 10).state_dict(), path)
    page = visit()
    hand_in(page, protected, path)
    field = page.get_by_label("Architecture")
    expect(field.first).to_be_hidden()
    page.get_by_role("button", name="Count the queries").click()
    expect(page.locator("#check-plan [role=alert]")).to_contain_text("“Architecture”")
    expect(field.first).to_be_visible()


def test_keys_alone_are_enough(visit, protected):
    page = visit()
    lay_down(page, protected.originals[:4])
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
