"""A desk, and a finished job of marking at it. Without gradio there is no page: its modules are imported where used."""

import pytest


@pytest.fixture
def desk(tmp_path):
    from page.desk import Desk

    made = Desk(tmp_path / "work")
    yield made
    made.jobs.close()


@pytest.fixture
def marked(desk, tmp_path):
    """(job, folder) of six photos in a folder of one's own, one of them damaged, marked with a hold-out."""
    from page.tabs import protect
    from tests.page.parts import picture, png, press, until

    folder = tmp_path / "holiday"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.png").write_bytes(png(picture(number)))
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    draft, found, names = protect._take(desk, None, str(folder), None)
    assert "7 photos found" in found and names["value"] == "0.png"
    refused, number = press(desk, draft)
    assert refused == ""
    job = desk.jobs.get(number)
    until(lambda: not job.active)
    assert job.state == "done", job.message
    return job, folder
