"""Desks with finished jobs of marking, and a page in a browser with one person's story: photos, record, two models.

Without gradio there is no page, and without playwright no browser: what needs them is imported late.
"""

import zipfile
from types import SimpleNamespace

import pytest


@pytest.fixture
def desk(tmp_path):
    from page.desk import Desk

    made = Desk(tmp_path / "work")
    yield made
    made.jobs.close()


@pytest.fixture
def drawn(desk, tmp_path, monkeypatch):
    """The desk with a beacon of the tests' own: .requests of its relay, and the .clock that all go by. What a job waits
    for comes when the test says clock.pass_by(), however slow the machine is."""
    from page.tabs import protect
    from provenance import beacon, commit
    from tests.page.relay import SECONDS, Clock, quick_chain, relaying

    desk.chain, clock = quick_chain(), Clock(tmp_path / "later")
    monkeypatch.setattr(commit, "SECONDS", SECONDS)
    monkeypatch.setattr(protect, "time", SimpleNamespace(time=clock.now))
    monkeypatch.setitem(beacon.fetch.__kwdefaults__, "now", clock.now)
    with relaying(desk.chain, clock.now) as (address, requests):
        monkeypatch.setenv(beacon.VARIABLE, address)
        yield SimpleNamespace(requests=requests, clock=clock)


@pytest.fixture
def holiday(tmp_path):
    """A folder with six photos, and a damaged one."""
    from tests.page.parts import save_pictures

    folder = save_pictures(tmp_path / "holiday", 6)
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    return folder


@pytest.fixture
def marked(desk, holiday):
    """(job, folder) of the holiday's photos in a folder of one's own, marked with a hold-out and without a beacon."""
    from tests.page.parts import mark

    return mark(desk, holiday), holiday


@pytest.fixture
def album(desk, tmp_path):
    """(job, folder) of twenty photos, as many as an audit needs, marked in the same way."""
    from tests.page.parts import mark, save_pictures

    folder = save_pictures(tmp_path / "album", 20)
    return mark(desk, folder), folder


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """The path of a model of pictures that are nobody's: a run of train.py's functions, which says how it is fed."""
    from tests.provenance.test_references import train

    return train(tmp_path_factory.mktemp("reference") / "reference.safetensors", 7)


def pytest_collection_modifyitems(config, items):
    """All tests of the page in Chromium, and in Firefox those that are marked `every_browser`: the whole story, what is
    drawn and what is typed. What happens on the server is the same for both.
    """

    from tests.page import firefox

    there = firefox.installed() is not None

    def is_kept(item):
        chosen = getattr(item, "callspec", None)
        engine = chosen and chosen.params.get("engine")
        # Without a Firefox nothing is changed for it: each change of browsers ends the site, and the story begins anew.
        return engine != "firefox" or (there and item.get_closest_marker("every_browser"))

    config.hook.pytest_deselected(items=[item for item in items if not is_kept(item)])
    items[:] = [item for item in items if is_kept(item)]


@pytest.fixture(scope="session", params=["chromium", "firefox"])
def engine(request, tmp_path_factory):
    """Starts a browser: function of `sync_playwright` -> the browser. Each has a site and a story of its own."""
    from tests.page import browsing, firefox

    if request.param == "chromium":
        return browsing.launched
    if firefox.installed() is None:
        pytest.skip("there is no Firefox on this machine")
    folder = tmp_path_factory.mktemp("firefox")
    return lambda play: firefox.launched(play, folder)


@pytest.fixture(scope="session")
def site(engine, tmp_path_factory, finished_run):
    from tests.page.relay import Clock, quick_chain, relaying, write_chain
    from tests.page.world import served

    root, chain = tmp_path_factory.mktemp("page"), quick_chain()
    clock = Clock(root / "later")
    flags = ("--runs_folder", finished_run, "--beacon_chain", write_chain(root / "chain.json", chain))
    with (
        relaying(chain, clock.now) as (relay, _),
        served(root / "work", *flags, relay=relay, clock=clock) as (address, _),
    ):
        yield SimpleNamespace(root=root, work=root / "work", address=address, chain=chain, clock=clock)


def story_of(browser, site):
    """A person's real photos marked through the page, with a beacon, a damaged one among them: what was shown while the
    round was waited for and at the end, and the two files that were downloaded."""
    from tests.page import browsing, world

    data, user, strangers = world.crops(world.PHOTOS)
    paths = world.save_photos(site.root / "me", world.pixels_of(data, user))
    damaged = site.root / "me" / "torn.jpg"
    damaged.write_bytes(b"\xff\xd8\xff" + bytes(40))
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(browsing.LONG)
    page.goto(site.address)
    browsing.lay_down(page, [*paths, damaged])
    page.get_by_role("button", name="Mark the photos").click()
    browsing.expect(page.locator("#protected-view")).to_contain_text("of the public randomness")
    shown = page.locator("#protected-told").inner_text() + page.locator("#protected-view").inner_text()
    copied = browsing.selected_after_a_while(page, "#protected-told code")
    site.clock.pass_by()
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
        waiting=shown,
        copied=copied,
        originals=paths,
        data=data,
        user=user,
        strangers=strangers,
        published=site.root / "published",
        places=[
            path for path in (site.work / "protected").glob("*/*") if path.name in ("photos_marked", "photos_record")
        ],
        private=folder / "PRIVATE-record-keep-secret.zip",
    )


@pytest.fixture(scope="session")
def protected(site, engine):
    """See `story_of`."""
    from tests.page.browsing import sync_api

    with sync_api.sync_playwright() as play:
        browser = engine(play)
        told = story_of(browser, site)
        browser.close()
    return told


@pytest.fixture(scope="session")
def models(site, protected):
    """A model that was trained on the published photos among strangers' images, and one on the strangers' alone."""
    from tests.page.world import published_images, train

    people = protected.data, protected.user, protected.strangers
    marked = published_images(protected.published)
    return SimpleNamespace(
        guilty=train(site.root / "guilty.safetensors", *people, marked),
        innocent=train(site.root / "innocent.safetensors", *people),
    )


@pytest.fixture(scope="module")
def browser(protected, engine):
    """A browser, after the one of `protected` is closed: there can't be two at a time."""
    from tests.page.browsing import sync_api

    with sync_api.sync_playwright() as play:
        opened = engine(play)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, site):
    """visit(scheme, width) -> a page with everything that it asked for in .asked; closed at the end."""
    from tests.page.browsing import LONG

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
        page.on("console", lambda said: said.type == "error" and page.wrong.append(f"{said.text} {said.location}"))
        # Playwright can't tell an installed Firefox to be dark, so that Gradio is told.
        page.goto(f"{address}?__theme=dark" if scheme == "dark" else address)
        page.get_by_role("tab", name="Protect").wait_for()
        return page

    yield open_page
    for context in contexts:
        for page in context.pages:
            # Gradio's client says so of a stream that ends when a page is left on a slow machine.
            left = ("AbortError: signal is aborted", "Connection errored out")
            wrong = [text for text in page.wrong if not any(words in text for words in left)]
            assert wrong == [], wrong
        context.close()
