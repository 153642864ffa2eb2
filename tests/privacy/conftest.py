"""No launcher of the shell's, a finished audit of a small config, and a made-up world that leaks."""

import pytest

from privacy import attack, pdf, pipeline
from tests.privacy.parts import SETTINGS, config_of, world


@pytest.fixture(scope="package", autouse=True)
def chromium():
    """The Chromium of this machine, or None; reports of tests are printed without it: starting it takes long."""
    found = pdf.system_chromium()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pdf, "system_chromium", lambda: None)
        yield found


@pytest.fixture(autouse=True)
def _on_this_machine(monkeypatch):
    monkeypatch.delenv("LAUNCHER", raising=False)
    monkeypatch.delenv("JOBS", raising=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A config and its log folder after the stage signals. Tests must not change it."""
    folder = tmp_path_factory.mktemp("finished")
    config = config_of(folder)
    pipeline.run(config, "signals")
    return config, folder / "log"


@pytest.fixture(scope="module")
def leaking():
    signals = world()
    return signals, attack.run_attacks(signals, SETTINGS)
