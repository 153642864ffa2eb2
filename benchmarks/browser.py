"""The page: how long until it can be seen, how long a 12-megapixel preview takes, and pictures of its tabs.

Example: python -m benchmarks.browser --out results/page/page.json --shots results/page --run demo
Needs requirements/dev.txt and a Chromium that is installed. Real photographs out of scikit-image are
marked, a small model is trained on what was published, and both it and an innocent one are checked, all in the page.
"""

import statistics
import tempfile
import time
from pathlib import Path

from PIL import Image
from skimage import data as pictures

from benchmarks import common
from kit import files
from kit.cli import show_rows
from kit.errors import UserError, run_script
from tests.page import relay, world

LARGE = (3000, 4000)  # 12 megapixels
BARS = {"first_paint_s": 3.0, "preview_s": 1.0}


def large_photo(path):
    """A real photograph at 12 megapixels, as a camera would keep it."""
    height, width = LARGE
    Image.fromarray(pictures.astronaut()).resize((width, height), Image.Resampling.LANCZOS).save(path, quality=92)
    return path


def opened(browser, address, scheme="light", width=1280, height=900):
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
    page = context.new_page()
    page.set_default_timeout(120_000)
    started = time.perf_counter()
    page.goto(address)
    page.get_by_role("tab", name="Protect").wait_for()
    page.locator("#protect-files").wait_for()
    return page, time.perf_counter() - started


def previewed(page, photo):
    """(seconds from handing in a photo until it is shown marked, seconds after a slider was moved)."""
    image = page.locator("#protect-preview img").nth(1)
    started = time.perf_counter()
    page.locator("#protect-files input[type=file]").set_input_files(photo)
    image.wait_for()
    first = time.perf_counter() - started
    before = image.get_attribute("src")
    field = page.locator("#protect-ratio input[type=number]")
    started = time.perf_counter()
    field.fill("0.5")
    field.press("Enter")
    page.wait_for_function("before => document.querySelectorAll('#protect-preview img')[1].src !== before", arg=before)
    return first, time.perf_counter() - started


def measure(browser, address, root, rounds):
    """Seconds of each round: lists first_paint_s, preview_s, slider_s."""
    found = {"first_paint_s": [], "preview_s": [], "slider_s": []}
    for number in range(rounds):
        page, paint = opened(browser, address)
        first, moved = previewed(page, large_photo(root / f"large {number}.jpg"))
        for name, value in (("first_paint_s", paint), ("preview_s", first), ("slider_s", moved)):
            found[name].append(value)
        page.context.close()
    return found


def tell_story(browser, address, root):
    """Mark, train, check an innocent and a guilty model, then the evidence: {model: the verdict's text}."""
    people = world.crops(world.PHOTOS)
    originals = world.save_photos(root / "my photos", world.pixels_of(*people[:2]))
    page, _ = opened(browser, address)
    page.locator("#protect-files input[type=file]").set_input_files(originals)
    page.locator("#protect-preview img").nth(2).wait_for()
    page.get_by_role("button", name="Mark the photos").click()
    page.get_by_text("are marked and ready").wait_for()
    marked = next((root / "work" / "protected").glob("*/photos_marked"))
    verdicts = {}
    for name, folder in (("innocent.safetensors", None), ("suspect.safetensors", marked)):
        path = world.train(root / name, *people, folder and world.published_images(folder))
        page.get_by_role("tab", name="Check").click()
        page.get_by_label("Or its path or address").fill(str(path))
        page.get_by_role("button", name="Count the queries").click()
        page.get_by_text("will be sent to the model").wait_for()
        page.get_by_role("button", name="Start the audit").click()
        view = page.locator("#checks-view", has_text=name)
        view.locator(".verdict").wait_for()
        verdicts[name] = view.locator(".verdict").inner_text()
        print(f"{name}: {verdicts[name]}")
    page.get_by_role("tab", name="Evidence").click()
    evidence = max((root / "work" / "checks").glob("*/evidence.zip"), key=lambda path: path.stat().st_mtime)
    page.locator("#evidence-bundle input[type=file]").set_input_files(evidence)
    page.locator("#evidence-bundle", has_text="evidence").wait_for()
    page.get_by_role("button", name="Check the evidence").click()
    page.locator("#replays-view", has_text="p recomputed").wait_for()
    page.context.close()
    return originals, verdicts


def shoot(browser, address, originals, run, folder):
    """Pictures of each tab, filled: its upper part at 1280 px (light), all of it at 400 px (dark)."""
    for scheme, width in (("light", 1280), ("dark", 400)):
        page, _ = opened(browser, address, scheme, width, 1800)
        page.locator("#protect-files input[type=file]").set_input_files(large_photo(originals[0].parent / "photo.jpg"))
        page.locator("#protect-preview img").nth(2).wait_for()
        for tab in ("Protect", "Check", "Evidence", "Audit"):
            page.get_by_role("tab", name=tab).click()
            if tab == "Check":
                page.locator("#checks-view .verdict").wait_for()
            if tab == "Audit" and run is not None:
                page.get_by_label("Or the folder of a run").fill(str(run))
                page.get_by_role("button", name="Open", exact=True).click()
                page.locator("#audit-exposed img").first.wait_for()
            page.wait_for_timeout(600)
            with files.atomic_path(folder / f"{tab.lower()}-{width}.png") as path:
                page.screenshot(path=path, full_page=width == 400)
        page.context.close()


def _said(name, median, seconds):
    wanted = f", wanted under {BARS[name]:g}" if name in BARS else ""
    return f"{median:.2f} ({min(seconds):.2f}-{max(seconds):.2f}){wanted}"


def main():
    flags = common.parser(__doc__)
    flags.add_argument("--shots", help="folder for pictures of the tabs")
    flags.add_argument("--run", help="folder of a finished run of train.py, to be shown in the tab Audit")
    args, device = common.start(flags)
    from playwright.sync_api import sync_playwright

    chromium = world.system_chromium()
    if chromium is None:
        raise UserError("there is no Chromium on this machine", advice="install one")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        root = Path(folder)
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        chain = relay.quick_chain()
        facts = relay.write_chain(root / "chain.json", chain)
        with (
            relay.relaying(chain) as (beacon, _),
            world.served(root / "work", "--beacon_chain", facts, relay=beacon) as (address, _),
        ):
            found = measure(browser, address, root, args.rounds)
            medians = {name: statistics.median(values) for name, values in found.items()}
            show_rows([(name, _said(name, value, found[name])) for name, value in medians.items()])
            result = {"seconds": found, "median": medians}
            if args.shots:
                originals, result["verdicts"] = tell_story(browser, address, root)
                shoot(browser, address, originals, args.run, Path(args.shots))
        browser.close()
    common.write(args, result, device)


if __name__ == "__main__":
    run_script(main)
