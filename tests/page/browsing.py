"""What tests of the page in a browser share: its fields and buttons as people use them."""

import re

import pytest

from tests.page import world

pytest.importorskip("gradio", reason="gradio is not installed (requirements/app.txt)")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if world.system_chromium() is None:
    pytest.skip("there is no Chromium on this machine", allow_module_level=True)
expect = sync_api.expect
expect.set_options(timeout=300_000)
LONG = 300_000  # milliseconds; nobody waits for it on a machine that is idle


def launched(play):
    """A Chromium of `sync_playwright`. Containers run as root, which its sandbox refuses."""
    return play.chromium.launch(executable_path=world.system_chromium(), args=["--no-sandbox"])


def go(page, tab):
    page.get_by_role("tab", name=tab, exact=True).click()


def choose(page, label, option):
    """Choose an option of a dropdown."""
    page.get_by_role("listbox", name=label).or_(page.get_by_label(label, exact=True)).first.click()
    page.get_by_role("option", name=re.compile(re.escape(option))).first.click()


def enter(field, number):
    """Put another number into a field, with the keys that people press: `fill` appends to it in Firefox."""
    field.press("Control+a")
    field.press_sequentially(number)
    field.press("Enter")


def lay_down(page, paths):
    """Fill the tab Protect, and wait for all that it says of the photos: what comes late pushes its buttons down, and a
    button that moves away under the pointer is not pressed."""
    page.locator("#protect-files input[type=file]").set_input_files(paths)
    page.get_by_text(f"{len(paths)} photos found").wait_for()
    expect(page.locator("#protect-preview img")).to_have_count(3)
    expect(page.locator("#protect-proves")).to_contain_text(re.compile(f"{len(paths)} photos"))


def hand_in(page, protected, model):
    """Fill the tab Check with the downloaded record, the originals and a model, a path or an address."""
    go(page, "Check")
    page.locator("#check-record input[type=file]").set_input_files(protected.private)
    page.locator("#check-originals input[type=file]").set_input_files(protected.originals)
    expect(page.locator("#check-originals")).to_contain_text("photo 00")
    expect(page.locator("#check-record")).to_contain_text("PRIVATE")
    if isinstance(model, str):
        page.get_by_label("Or its path or address").fill(model)
    else:
        page.locator("#check-model input[type=file]").set_input_files(model)
        expect(page.locator("#check-model")).to_contain_text(model.stem[:6])


def count(page):
    """Press the button; what is said then, and not what was said before."""
    page.evaluate("document.querySelector('#check-plan .mt')?.setAttribute('data-old', '')")
    page.get_by_role("button", name="Count the queries").click()
    plan = page.locator("#check-plan .mt:not([data-old])")
    expect(plan).to_contain_text(re.compile("will be sent|departs from the committed plan"), timeout=LONG)
    return plan.inner_text()


def depart(page):
    page.get_by_role("button", name="Depart from the committed plan").click()


def start(page):
    button = page.get_by_role("button", name="Start the audit")
    expect(button).to_be_enabled()
    button.click()


def verdict(page, name):
    view = page.locator("#checks-view")
    expect(view.locator("h2")).to_contain_text(name)
    expect(view).to_contain_text(re.compile("USED|Not shown|Could not"), timeout=LONG)
    return view.inner_text()


def more(page):
    page.get_by_role("button", name="More about the model").click()


def go_more(page, batch):
    more(page)
    page.get_by_label("Input size").fill("32")
    page.get_by_label("Mean").fill("0 0 0")
    page.get_by_label("Std").fill("1 1 1")
    page.get_by_label("Images a request").fill(batch)


def selected_after_a_while(page, where):
    """What is still selected of an element two seconds after it was: people copy by hand."""
    page.evaluate("where => getSelection().selectAllChildren(document.querySelector(where))", where)
    page.wait_for_timeout(2000)
    return page.evaluate("getSelection().toString()")
