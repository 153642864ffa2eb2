"""A small network as after training, a photograph, and no proxy between the tests and their servers."""

import pytest

from networks import build_network
from tests.suspects.parts import stirred


@pytest.fixture(scope="module")
def smallnet():
    return stirred(build_network("smallnet", 7))


@pytest.fixture(scope="module")
def photo():
    """A real photograph that is not square, uint8 (384, 512, 3). Libraries round sides of other shapes differently."""
    from skimage.data import astronaut

    return astronaut()[:384]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
