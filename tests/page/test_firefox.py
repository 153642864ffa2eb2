"""Whether the tests of the page ran in Firefox, too: a line among what was skipped."""

import pytest

from tests.page import firefox


def test_there_is_a_firefox():
    """Without one, the tests that are marked every_browser run in Chromium alone."""
    if firefox.installed() is None:
        pytest.skip("there is no Firefox on this machine")
