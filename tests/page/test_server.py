"""Who may come in to the page, and how app.py starts it."""

import pytest
import requests

from page import server
from tests.page.world import served
from tests.parts import call

# --- who may come in ---


@pytest.mark.parametrize(
    "host, local",
    [
        ("127.0.0.1:7860", True),
        ("localhost", True),
        ("[::1]:7860", True),
        ("evil.example:7860", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
    ],
)
def test_only_names_of_this_computer(host, local):
    assert server._is_local(host) is local


def test_nobody_comes_in_without_the_token(tmp_path):
    with served(tmp_path / "work", "--max_upload", "0.001") as (address, _):
        root, _, token = address.rstrip("/").rpartition("/")
        for path in ("", "/", "/wrong/", f"/{token[:-1]}/", "/gradio_api/info", f"/x/{token}/"):
            plain = requests.get(root + path, timeout=120)
            assert plain.status_code == 403 and "address that app.py printed" in plain.text, path
        icon = requests.get(f"{root}/favicon.ico", timeout=120)  # browsers ask by themselves, and no error is shown
        assert icon.status_code == 204 and not icon.content
        page = requests.get(address, timeout=120)
        assert page.status_code == 200 and "frame-ancestors 'self'" in page.headers["content-security-policy"]
        assert not page.cookies and page.headers["referrer-policy"] == "no-referrer"
        for wrong in (
            {"Host": "evil.example"},
            {"Origin": "http://127.0.0.1:9999"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
            {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        ):
            found = requests.get(f"{address}config", headers=wrong, timeout=120)
            assert found.status_code in (400, 403) and "access-control-allow-origin" not in found.headers, wrong
        own = requests.get(f"{address}config", headers={"Origin": root, "Sec-Fetch-Site": "same-origin"}, timeout=120)
        assert own.status_code == 200 and "access-control-allow-origin" not in own.headers
        # An answer that comes by a stream can be lost when the stream before it closes, and the page waits for ever.
        asked = own.json()["dependencies"]
        assert len(asked) > 20 and not [one["targets"] for one in asked if one["queue"] is not False]
        assert requests.get(f"{address}files/none/x", timeout=120).status_code == 404
        assert requests.get(f"{address}report/none", timeout=120).status_code == 404
        for size, status in ((100_000, 200), (2 << 20, 413)):
            sent = requests.post(f"{address}gradio_api/upload", files={"files": ("a.png", bytes(size))}, timeout=120)
            assert sent.status_code == status, sent.text
        # A second page in the same folder would give two answers to one question.
        second = call("app.py", "--work_folder", tmp_path / "work", "--port", "0", "--no_browser")
        assert second.returncode == 75 and "another process is working" in second.stderr


def test_the_browser_is_started_with_a_file_of_ones_own(tmp_path):
    server._write_door(tmp_path / "open.html", "http://127.0.0.1:1/secret/")
    assert (tmp_path / "open.html").stat().st_mode & 0o777 == 0o600
    assert "url=http://127.0.0.1:1/secret/" in (tmp_path / "open.html").read_text()


def test_guard_passes_other_scopes():
    import asyncio

    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    asyncio.run(server.Guard(app, "t")({"type": "lifespan"}, None, None))
    assert seen == ["lifespan"]


# --- app.py ---


def test_sharing_is_refused_and_says_why(script):
    done = script("app", "--share")
    assert done.code == 2 and "secret records" in done.err and "ssh -L" in done.err and done.err.count("\n") == 1


def test_without_gradio_one_line_says_what_to_do(tmp_path):
    done = call("app.py", "--work_folder", tmp_path / "work", code="import sys; sys.modules['gradio'] = None")
    assert done.returncode == 2 and "pip install -r requirements/app.txt" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "work").exists()
