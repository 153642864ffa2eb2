"""The page in a real browser: reloads, several tabs, restarts, no network."""

import itertools
import re
import signal
import threading

import numpy as np
import pytest

from tests.page.browsing import LONG, count, expect, go, go_more, hand_in, lay_down, start, verdict
from tests.page.parts import until
from tests.page.relay import Clock
from tests.page.world import PHOTOS, served
from tests.provenance.drand import sign
from tests.suspects.inference_server import make_app, running

BATCHES = PHOTOS * 40 // 40  # of the slow server
IN_FLIGHT = 4  # requests that are under way at once; their answers are lost when an audit is stopped


@pytest.fixture
def slow_server(models):
    """A model behind the protocol: (address, the app's log, `hurry`). An audit takes minutes until `hurry` is set, so
    that there is time to look at it on the slowest machine; jobs that are cancelled end at their next answer."""
    from provenance import opening

    suspect, hurry, answers = opening.open_suspect(models.guilty), threading.Event(), itertools.count()

    def predict(images):
        if next(answers) > 5:
            hurry.wait(2)  # for all together: the server asks the model for one batch after the other
        return suspect.ask(np.clip(np.round(images * 255), 0, 255).astype(np.uint8)).values

    app = make_app(predict, input_shape=[-1, 3, 32, 32], name="net")
    with running(app) as server:
        yield server.url, server.log, hurry


def test_a_reload_and_a_second_tab_find_the_audit_again(visit, protected, slow_server):
    address, log, hurry = slow_server
    page = visit()
    hand_in(page, protected, address)
    go_more(page, "40")
    count(page)
    start(page)
    progress = page.locator("#checks-view progress")
    progress.wait_for()
    page.reload()
    go(page, "Check")
    page.wrong.clear()  # what the page that was left says of its broken streams
    progress.wait_for()
    other = visit()
    go(other, "Check")
    other.locator("#checks-view progress").wait_for()
    other.get_by_role("button", name="Cancel").click()
    expect(page.locator("#checks-view")).to_contain_text("Cancelled")
    asked = len(log)
    assert 0 < asked < BATCHES
    hurry.set()
    page.get_by_role("button", name="Go on").click()
    text = verdict(page, "net")
    assert "USED" in text
    expect(other.locator("#checks-view")).to_contain_text("USED")
    sent = [digest for entry in log for digest in entry["digests"]]
    assert len(set(sent)) == PHOTOS * 40 and BATCHES <= len(log) <= BATCHES + IN_FLIGHT  # no answer was asked for twice


def test_a_killed_page_goes_on_where_it_stopped(browser, tmp_path, protected, slow_server):
    address, log, hurry = slow_server
    with served(tmp_path / "work") as (url, process):
        page = browser.new_page()
        page.set_default_timeout(LONG)
        page.goto(url)
        hand_in(page, protected, address)
        go_more(page, "40")
        count(page)
        start(page)
        page.locator("#checks-view progress").wait_for()
        until(lambda: len(log) >= 5)
        process.send_signal(signal.SIGKILL)
        process.wait()
        page.close()
    hurry.set()
    with served(tmp_path / "work") as (url, _):
        page = browser.new_page()
        page.set_default_timeout(LONG)
        page.goto(url)
        go(page, "Check")
        expect(page.locator("#checks-view")).to_contain_text("Interrupted")
        page.get_by_role("button", name="Go on").click()
        assert "USED" in verdict(page, "net")
        page.close()
    # What was on its way when the process died may have been answered unheard.
    assert BATCHES <= len(log) <= BATCHES + IN_FLIGHT


def test_without_a_network_the_round_is_brought_by_hand(browser, site, protected, tmp_path):
    """Waiting is cancelled and gone on with; the round is pasted; the commitment is the same all the while."""
    clock = Clock(tmp_path / "later")
    with served(tmp_path / "work", "--beacon_chain", site.root / "chain.json", clock=clock) as (url, _):
        page = browser.new_page()
        page.set_default_timeout(LONG)
        page.goto(url)
        lay_down(page, protected.originals[:4])
        page.get_by_role("button", name="Mark the photos").click()
        expect(page.locator("#protected-view")).to_contain_text("of the public randomness")
        commitment = page.locator("#protected-told code").inner_text()
        page.get_by_role("button", name="Cancel").click()
        view = page.locator("#protected-view")
        expect(view).to_contain_text("Cancelled")
        clock.pass_by()
        page.get_by_role("button", name="Go on").click()
        pasted = page.get_by_label("Round of the public randomness")
        pasted.wait_for()
        assert page.locator("#protected-told code").inner_text() == commitment
        number = int(re.search(r"no relay gave round (\d+)", view.inner_text())[1])
        pasted.fill(f"{number}:{'ab' * 48}")
        page.get_by_role("button", name="Go on").click()
        expect(view).to_contain_text("is no point of its curve")
        pasted.fill(f"{number}:{sign(number).signature}")
        page.get_by_role("button", name="Go on").click()
        expect(view).to_contain_text("2 photos are marked and ready")
        assert commitment in view.inner_text()
        expect(pasted).to_be_hidden()
        page.close()
