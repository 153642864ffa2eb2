"""The page in a real browser: the whole way on real images, faults, reloads, several tabs, accessibility."""

import json
import re
import signal
import time
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.page import world
from tests.page.world import PHOTOS, crops, pixels_of, published_images, save_photos, served, train
from tests.suspects.inference_server import make_app, running

pytest.importorskip("gradio", reason="gradio is not installed (requirements/app.txt)")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe_module = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
CHROMIUM = world.system_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
expect = sync_api.expect
expect.set_options(timeout=30_000)
BATCHES = PHOTOS * 20 // 40  # of the slow server
LONG = 60_000  # milliseconds; for work, which may share its processor with other tests


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        # Containers run as root, which Chromium's sandbox refuses.
        opened = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory, finished_run):
    root = tmp_path_factory.mktemp("page")
    with served(root / "work", "--runs_folder", finished_run) as (address, _):
        yield SimpleNamespace(root=root, work=root / "work", address=address)


@pytest.fixture
def visit(browser, site):
    """visit(scheme, width) -> a page with everything that it asked for in .asked; closed at the end."""
    contexts = []

    def open_page(scheme="light", width=1280, address=site.address):
        context = browser.new_context(
            color_scheme=scheme, viewport={"width": width, "height": 900}, accept_downloads=True
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(LONG)
        page.asked, page.wrong = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.goto(address)
        page.get_by_role("tab", name="Protect").wait_for()
        return page

    yield open_page
    for context in contexts:
        for page in context.pages:
            assert page.wrong == [], page.wrong
        context.close()


@pytest.fixture(scope="module")
def protected(browser, site):
    """A person's real photos marked through the page, a damaged one among them; the two files that were downloaded."""
    data, user, strangers = crops(PHOTOS)
    paths = save_photos(site.root / "me", pixels_of(data, user))
    damaged = site.root / "me" / "torn.jpg"
    damaged.write_bytes(b"\xff\xd8\xff" + bytes(40))
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(LONG)
    page.goto(site.address)
    page.locator("#protect-files input[type=file]").set_input_files([*paths, damaged])
    page.get_by_text(f"{PHOTOS + 1} photos found").wait_for()
    expect(page.locator("#protect-preview img")).to_have_count(3)  # nothing moves under the pointer any more
    page.get_by_role("button", name="Mark the photos").click()
    page.get_by_text("are marked and ready").wait_for()
    text = page.locator("#protected-view").inner_text()
    folder = site.root / "downloads"
    for name in ("Download what to publish", "Download the private record"):
        with page.expect_download() as waiting:
            page.get_by_role("link", name=name).click()
        waiting.value.save_as(folder / waiting.value.suggested_filename)
    context.close()
    with zipfile.ZipFile(folder / "photos-to-publish.zip") as bundle:
        bundle.extractall(site.root / "published")
    return SimpleNamespace(
        text=text,
        originals=paths,
        data=data,
        user=user,
        strangers=strangers,
        published=site.root / "published",
        private=folder / "PRIVATE-record-keep-secret.zip",
    )


@pytest.fixture(scope="module")
def models(site, protected):
    """A model that was trained on the published photos among strangers' images, and one on the strangers' alone."""
    people = protected.data, protected.user, protected.strangers
    marked = published_images(protected.published)
    return SimpleNamespace(
        guilty=train(site.root / "guilty.safetensors", *people, marked),
        innocent=train(site.root / "innocent.safetensors", *people),
    )


def go(page, tab):
    page.get_by_role("tab", name=tab, exact=True).click()


def choose(page, label, option):
    """Choose an option of a dropdown."""
    page.get_by_role("listbox", name=label).or_(page.get_by_label(label, exact=True)).first.click()
    page.get_by_role("option", name=re.compile(re.escape(option))).first.click()


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
    page.get_by_role("button", name="Count the queries").click()
    plan = page.locator("#check-plan")
    expect(plan).to_contain_text(re.compile("will be sent|needs"), timeout=LONG)
    return plan.inner_text()


def start(page):
    button = page.get_by_role("button", name="Start the audit")
    expect(button).to_be_enabled()
    button.click()


def verdict(page, name):
    view = page.locator("#checks-view")
    expect(view.locator("h2")).to_contain_text(name)
    expect(view).to_contain_text(re.compile("USED|Not shown|Could not"), timeout=2 * LONG)
    return view.inner_text()


# --- the whole way ---


def test_photos_are_marked_and_both_files_can_be_kept(protected):
    assert f"{PHOTOS // 2} photos are marked" in protected.text and f"{PHOTOS // 2} are held out" in protected.text
    assert "torn.jpg" in protected.text and "damaged" in protected.text  # named, and the rest is done
    assert "Keep the record" in protected.text
    with zipfile.ZipFile(protected.private) as bundle:
        record, names = json.loads(bundle.read("record.json")), bundle.namelist()
    assert record["commitments"][-1] in protected.text and record["evidence"]
    assert sum(name.startswith("held_out/") for name in names) == PHOTOS // 2
    published = sorted(path.name for path in protected.published.rglob("*.png"))
    assert published == sorted(photo["marked"] for photo in record["photos"] if photo["published"])
    assert not any(name.startswith("photo") for name in names)  # no marked photo in what is secret, and none published
    for path, image in zip(protected.originals, pixels_of(protected.data, protected.user), strict=True):
        assert np.array_equal(np.array(Image.open(path)), image.permute(1, 2, 0).numpy())  # never changed


def test_the_guilty_model_is_found_and_the_innocent_one_is_not(visit, protected, models, script, tmp_path):
    page = visit()
    hand_in(page, protected, models.guilty)
    plan = count(page)
    assert f"{PHOTOS * 20:,} queries" in plan and "Nothing has been asked yet" in plan
    start(page)
    text = verdict(page, "guilty")
    assert "USED" in text and f"trained on the {PHOTOS // 2} published photos" in text
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Download the evidence").click()
    waiting.value.save_as(tmp_path / "evidence.zip")
    replayed = script("eval", "--replay", tmp_path / "evidence.zip")
    shown = re.search(r"exact p\s+([\d.e-]+)", text)[1]
    assert replayed.code == 0 and float(re.search(r"p recomputed\s+(\S+)", replayed.out)[1]) == pytest.approx(
        float(shown), rel=0.01
    )

    innocent = visit()
    hand_in(innocent, protected, models.innocent)
    count(innocent)
    start(innocent)
    text = verdict(innocent, "innocent")
    assert "Not shown" in text and "There is no proof" in text
    assert all(url.startswith((page.url, "data:", "blob:")) for url in page.asked + innocent.asked)


def test_a_record_of_this_page_needs_no_file(visit, protected, models):
    page = visit()
    go(page, "Check")
    choose(page, "Record made on this page", "photo 00")
    page.get_by_label("Or its path or address").fill(str(models.innocent))
    assert f"{PHOTOS * 20:,} queries" in count(page)
    page.get_by_label("Most queries").fill("10")  # what was counted is void now
    start(page)
    expect(page.locator("#check-plan")).to_contain_text("has changed since the queries were counted")
    expect(page.get_by_role("button", name="Start the audit")).to_be_disabled()
    assert "“Most queries”" in count(page) and "--" not in page.locator("#check-plan").inner_text()


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
    expect(alert).to_contain_text(re.compile(words), timeout=2 * LONG)
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
    page.locator("#protect-files input[type=file]").set_input_files(protected.originals[:3])
    pictures = page.locator("#protect-preview img")
    expect(pictures).to_have_count(3)
    before, marked = (pictures.nth(place).get_attribute("src") for place in (0, 1))
    assert "before" in page.locator("#protect-preview").inner_text() and before != marked
    expect(page.locator("#protect-cost")).to_contain_text("This very choice was measured")
    slider = page.locator("#protect-ratio input[type=number]")
    slider.fill("")  # for a moment, while somebody types
    page.wait_for_timeout(300)
    slider.fill("1")
    slider.press("Enter")
    expect(pictures.nth(1)).not_to_have_attribute("src", marked)
    assert pictures.nth(0).get_attribute("src") == before
    expect(page.locator("#protect-cost")).to_contain_text("blending ratio 1, noise norm 8")
    norm = page.locator("#protect-norm input[type=number]")
    norm.fill("0")
    norm.press("Enter")
    expect(page.locator("#protect-preview [role=alert]")).to_contain_text("“Blending ratio” 1 without noise")
    assert page.get_by_test_id("toast-body").count() == 0  # none of gradio's own errors


# --- reloads, several tabs, restarts ---


@pytest.fixture
def slow_server(models):
    """A model behind the protocol whose answers take a while: (address, the app's log)."""
    from provenance import case

    suspect = case.open_suspect(models.guilty)

    def predict(images):
        time.sleep(0.2)
        return suspect.ask(np.clip(np.round(images * 255), 0, 255).astype(np.uint8)).values

    app = make_app(predict, input_shape=[-1, 3, 32, 32], name="net")
    with running(app) as server:
        yield server.url, server.log


def test_a_reload_and_a_second_tab_find_the_audit_again(visit, protected, slow_server):
    address, log = slow_server
    page = visit()
    hand_in(page, protected, address)
    go_more(page, "40")
    count(page)
    start(page)
    progress = page.locator("#checks-view progress")
    progress.wait_for()
    page.reload()
    go(page, "Check")
    progress.wait_for()
    other = visit()
    go(other, "Check")
    other.locator("#checks-view progress").wait_for()
    other.get_by_role("button", name="Cancel").click()
    expect(page.locator("#checks-view")).to_contain_text("Cancelled")
    asked = len(log)
    assert 0 < asked < BATCHES
    page.get_by_role("button", name="Go on").click()
    text = verdict(page, "net")
    assert "USED" in text
    expect(other.locator("#checks-view")).to_contain_text("USED")
    sent = [digest for entry in log for digest in entry["digests"]]
    assert len(sent) == PHOTOS * 20 and len(log) == BATCHES  # nothing was asked twice


def go_more(page, batch):
    page.get_by_role("button", name="More about the model and the photos").click()
    page.get_by_label("Input size").fill("32")
    page.get_by_label("Images a request").fill(batch)


def test_a_killed_page_goes_on_where_it_stopped(browser, tmp_path, protected, slow_server):
    address, log = slow_server
    with served(tmp_path / "work") as (url, process):
        page = browser.new_page()
        page.set_default_timeout(LONG)
        page.goto(url)
        hand_in(page, protected, address)
        go_more(page, "40")
        count(page)
        start(page)
        page.locator("#checks-view progress").wait_for()
        while len(log) < 5:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        page.close()
    with served(tmp_path / "work") as (url, _):
        page = browser.new_page()
        page.set_default_timeout(LONG)
        page.goto(url)
        go(page, "Check")
        expect(page.locator("#checks-view")).to_contain_text("Interrupted")
        page.get_by_role("button", name="Go on").click()
        assert "USED" in verdict(page, "net")
        page.close()
    # The batch that was on its way when the process died may have been answered unheard.
    assert BATCHES <= len(log) <= BATCHES + 1


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
    page.get_by_role("button", name="More about the model and the photos").click()
    count(page)
    found["Check"] = serious(page)
    go(page, "Audit")
    page.get_by_label("Or the folder of a run").fill(str(finished_run))
    page.get_by_role("button", name="Open", exact=True).click()
    expect(page.locator("#audit-exposed img").first).to_be_visible()
    expect(page.locator("#audit-rates table")).to_be_visible()
    found["Audit"] = serious(page)
    assert found == {"Protect": [], "Check": [], "Audit": []}
    for tab in found:
        go(page, tab)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{tab} is wider than the screen"


def test_keys_alone_are_enough(visit, protected):
    page = visit()
    page.locator("#protect-files input[type=file]").set_input_files(protected.originals[:4])
    page.get_by_text("4 photos found").wait_for()
    expect(page.locator("#protect-preview img")).to_have_count(3)
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
