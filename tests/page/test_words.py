"""Messages of the command line in the words of the page."""

import pytest

from kit.errors import UserError
from kit.files import lock_folder
from page import words
from tests.parts import ROOT


def test_messages_speak_of_fields():
    assert words.plain("--max_queries allows 5; give --keys 3 or a larger --alpha") == (
        "“Most queries” allows 5; give “Other patterns” 3 or a larger “Accept a wrong accusation in at most”"
    )
    source = "".join(path.read_text() for path in (ROOT / "page").rglob("*.py") if path.name != "words.py")
    for name in set(words.FLAGS.values()):
        assert f'"{name.strip("“”")}' in source, f"{name} is no field of the page"


def test_paths_with_dashes_stay_as_they_are(tmp_path):
    assert words.plain("/home/me/my--photos_2024 can't be opened") == "/home/me/my--photos_2024 can't be opened"
    with lock_folder(tmp_path / "x"), pytest.raises(UserError) as caught, lock_folder(tmp_path / "x"):
        pass
    assert "--save_tag" in str(caught.value) and "--out" in str(caught.value)
    assert words.of_error(caught.value) == f"another process is working in {tmp_path / 'x'}; wait for it"


def test_waiting_for_a_round_counts_down():
    assert words.of_progress("waiting for round 12", 20, 61) == (
        "Waiting for round 12 of the public randomness: 41 seconds left"
    )
    assert words.of_progress("asking the model", 1200, 2400) == "Asking the model: 1,200 of 2,400"
    assert words.of_progress("Running", 0, None) == "Running"
