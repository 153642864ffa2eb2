"""Who may come in, and the loop that serves the page.

The page holds secret records, so it is reached through 127.0.0.1 and with the token of its address alone, as notebooks
do it: other users of the computer and web pages in the same browser have neither. Everything that a browser is sent
says that nothing may be fetched from elsewhere.

Public: serve, make_app.
"""

import contextlib
import hmac
import os
import secrets
import socket
import sys
import threading
import webbrowser
from http.cookies import SimpleCookie
from urllib.parse import parse_qs

from runs import UserError, lock_folder

COOKIE = "membershiptracker"
POLICY = ("default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
          "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; media-src 'self' data: blob:; "
          "worker-src 'self' blob:; frame-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; "
          "frame-ancestors 'self'")
# A report may come from a stranger: shown as a picture would be, without scripts, forms and links to the page.
REPORT_POLICY = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"
NEXT_PORTS = 20


class Guard:
    """ASGI middleware: the token, the host's name, and the headers of every answer."""

    def __init__(self, app, token):
        self.app, self.token = app, token

    async def __call__(self, scope, receive, send):
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        if not _is_local(headers.get("host", "")):
            await _answer(send, scope, 400, "This page answers to 127.0.0.1 and localhost only.")
        elif given and self._right(given):
            # The token leaves the address bar, so that no screenshot and no bookmark has it.
            cookie = f"{COOKIE}={self.token}; Path=/; HttpOnly; SameSite=Strict"
            await _answer(send, scope, 303, "", [(b"location", scope["path"].encode()),
                                                 (b"set-cookie", cookie.encode())])
        elif not self._right(_cookie(headers.get("cookie", ""))):
            await _answer(send, scope, 403, "Open the address that app.py printed, with its token: the page holds "
                                            "secret records, and is for whoever started it.")
        else:
            await self.app(scope, receive, self._with_headers(send))

    def _right(self, text):
        return hmac.compare_digest(text.encode(), self.token.encode())

    @staticmethod
    def _with_headers(send):
        async def wrapped(message):
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", []))
                if not any(name.lower() == b"content-security-policy" for name, _ in headers):
                    headers.append((b"content-security-policy", POLICY.encode()))
                message = {**message, "headers": [*headers, (b"referrer-policy", b"no-referrer"),
                                                  (b"x-content-type-options", b"nosniff")]}
            await send(message)
        return wrapped


def _is_local(host):
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    return name in ("127.0.0.1", "localhost", "[::1]")


def _cookie(text):
    try:
        morsel = SimpleCookie(text).get(COOKIE)
    except Exception:  # other programs of this computer may set cookies that nobody can read
        return ""
    return morsel.value if morsel else ""


async def _answer(send, scope, status, text, headers=()):
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    own = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": text.encode()})


def make_app(desk, found, token, max_upload=4.0):
    """The application: downloads, reports, and the tabs. desk: a `page.desk.Desk`; found: a `page.audit.Found`."""
    import gradio as gr
    from fastapi import FastAPI
    from fastapi.responses import FileResponse, PlainTextResponse

    from page import look, tabs

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/files/{job_id}/{name}")
    def download(job_id: str, name: str):
        path = desk.download(job_id, name)
        if path is None:
            return PlainTextResponse("There is no such file.", 404)
        return FileResponse(path, filename=name, headers={"cache-control": "no-store"})

    @app.get("/report/{number}")
    def report(number: str):
        path = found.report(number)
        if path is None:
            return PlainTextResponse("There is no such report.", 404)
        return FileResponse(path, media_type="text/html",
                            headers={"content-security-policy": REPORT_POLICY, "cache-control": "no-store"})

    blocks = tabs.build(desk, found)
    blocks.queue(default_concurrency_limit=8)
    gr.mount_gradio_app(app, blocks, path="/", theme=look.theme(), css=look.CSS, head=look.HEAD, footer_links=[],
                        run_history=False, ssr_mode=False, show_error=True, pwa=False, enable_monitoring=False,
                        max_file_size=int(max_upload * 2**30))
    app.add_middleware(Guard, token=token)
    return app


def _socket(port):
    """A listening socket on the loopback; the wished port, or the next one that is free."""
    for wanted in [port] if port == 0 else range(port, min(port + NEXT_PORTS, 65536)):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", wanted))
            return listener
        except OSError:
            listener.close()
    raise UserError(f"ports {port} to {port + NEXT_PORTS - 1} of 127.0.0.1 are taken; give another --port, or 0")


def serve(work_folder, runs_folders, port, max_upload, browser):
    """Serve the page until Ctrl-C. Raises UserError where another page works in the same folder."""
    os.environ["GRADIO_TEMP_DIR"] = str(work_folder / "uploads")  # read when gradio handles an upload
    import uvicorn

    from page.audit import Found
    from page.desk import Desk

    with lock_folder(work_folder):
        desk, token = Desk(work_folder), secrets.token_urlsafe(24)
        app = make_app(desk, Found(runs_folders), token, max_upload)
        listener = _socket(port)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/?token={token}"
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
        print(f"The page is at {address}\nIt is for you alone; your files stay in {work_folder}. Ctrl-C ends it.",
              flush=True)
        if browser:
            threading.Timer(0.5, _open, [address]).start()
        try:
            server.run(sockets=[listener])
        finally:
            if any(job.active for kind in ("protected", "checks") for job in desk.jobs.all(kind)):
                print("stopping; what runs now can be taken up at the next start", file=sys.stderr)
            desk.jobs.close()


def _open(address):
    with contextlib.suppress(webbrowser.Error):
        webbrowser.open(address)
