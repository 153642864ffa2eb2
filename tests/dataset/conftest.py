"""A cache folder for each test of the data sets."""

import pytest

from dataset import store


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(store, "CACHE_FOLDER", folder)
    return folder
