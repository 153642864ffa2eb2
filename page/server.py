"""Who may come in, and the loop that serves the page.

The page holds secret records, so it is reached through 127.0.0.1 and below a path that nobody can guess, new at every
start: other users of the computer and other web pages don't know it. No cookie is set: browsers send those to every
port of the computer, also to somebody else's. Everything that a browser is sent says that nothing may be fetched from
elsewhere.

Public: serve, make_app, Guard.
"""

import contextlib
import hmac
import html
import os
import secrets
import socket
import sys
import threading
import webbrowser

from kit.errors import UserError
from kit.files import atomic_path, lock_folder
from provenance import beacon

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; media-src 'self' data: blob:; "
    "worker-src 'self' blob:; frame-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self'"
)
# A report may come from a stranger: shown as a picture would be, without scripts, forms and links to the page.
REPORT_POLICY = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"
NEXT_PORTS = 20


class Guard:
    """ASGI middleware: the secret path, the host's name, where a request comes from, and the headers of answers."""

    def __init__(self, app, token):
        self.app, self.token = app, token

    async def __call__(self, scope, receive, send):
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        first = scope["path"].split("/")[1:2]
        if not _is_local(headers.get("host", "")):
            await _answer(send, scope, 400, "This page answers to 127.0.0.1 and localhost only.")
        elif scope["path"] == "/favicon.ico" and scope["type"] == "http":
            # Browsers ask for it before they are told of the page's own, and call a refusal an error.
            await _answer(send, scope, 204, "")
        elif not first or not hmac.compare_digest(first[0].encode(), self.token.encode()):
            await _answer(
                send,
                scope,
                403,
                "Open the address that app.py printed, whole: the page holds secret "
                "records, and is for whoever started it.",
            )
        elif not _from_here(headers, scope.get("method")):
            await _answer(send, scope, 403, "Other pages may not use this one.")
        else:
            await self.app(scope, receive, self._with_headers(send))

    @staticmethod
    def _with_headers(send):
        async def wrapped(message):
            if message["type"] == "http.response.start":
                headers = [
                    (name, value)
                    for name, value in message.get("headers", [])
                    if not name.lower().startswith(b"access-control-")
                ]  # for nobody else
                if not any(name.lower() == b"content-security-policy" for name, _ in headers):
                    headers.append((b"content-security-policy", POLICY.encode()))
                message = {
                    **message,
                    "headers": [
                        *headers,
                        (b"referrer-policy", b"no-referrer"),
                        (b"x-content-type-options", b"nosniff"),
                    ],
                }
            await send(message)

        return wrapped


def _is_local(host):
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    return name in ("127.0.0.1", "localhost", "[::1]")


def _from_here(headers, method):
    """Whether a request comes from the page itself, or is somebody opening its address."""
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{headers['host']}":
        return False
    opened = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
    return opened or headers.get("sec-fetch-site", "none") in ("none", "same-origin")


async def _answer(send, scope, status, text, headers=()):
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    own = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": text.encode()})


def make_app(desk, found, token, max_upload=4.0):
    """The application: downloads, reports, and the tabs. desk: a `page.desk.Desk`; found: a `page.tabs.audit.Found`."""
    import gradio as gr
    from fastapi import FastAPI
    from fastapi.responses import FileResponse, PlainTextResponse

    from page import look
    from page.tabs import build

    app, base = FastAPI(docs_url=None, redoc_url=None, openapi_url=None), f"/{token}"

    @app.get(base + "/files/{job_id}/{name}")
    def download(job_id: str, name: str):
        path = desk.download(job_id, name)
        if path is None:
            return PlainTextResponse("There is no such file.", 404)
        return FileResponse(path, filename=name, headers={"cache-control": "no-store"})

    @app.get(base + "/report/{number}")
    def report(number: str):
        path = found.report(number)
        if path is None:
            return PlainTextResponse("There is no such report.", 404)
        return FileResponse(
            path,
            media_type="text/html",
            headers={"content-security-policy": REPORT_POLICY, "cache-control": "no-store"},
        )

    blocks = build.build(desk, found)
    gr.mount_gradio_app(
        app,
        blocks,
        path=base,
        theme=look.theme(),
        css=look.CSS,
        head=look.HEAD,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        show_error=True,
        pwa=False,
        enable_monitoring=False,
        max_file_size=int(max_upload * 2**30),
    )
    app.add_middleware(Guard, token=token)
    return app


def _socket(port):
    """A listening socket on the loopback; the wished port, or the next one that is free."""
    for wanted in [port] if port == 0 else range(port, min(port + NEXT_PORTS, 65536)):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", wanted))
            listener.listen()  # whoever reads the address before the server runs waits instead of being refused
            return listener
        except OSError:
            listener.close()
    raise UserError(
        f"ports {port} to {port + NEXT_PORTS - 1} of 127.0.0.1 are taken", advice="give another --port, or 0"
    )


def serve(work_folder, runs_folders, port, max_upload, browser, beacon_chain=None, roots=None):
    """Serve the page until Ctrl-C. Raises UserError where another page works in the same folder.

    beacon_chain: a file with the facts of another beacon than the usual one; roots: see `page.desk.Desk`.
    """
    chain = beacon.read_chain(beacon_chain) if beacon_chain else beacon.QUICKNET
    if roots is not None and not os.path.isfile(roots):
        raise UserError(f"--timestamp_roots {roots} is no file", "give certificates in PEM form")
    work_folder = work_folder.absolute()
    try:
        work_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--work_folder {work_folder} can't be made ({error.strerror})", advice="name another folder"
        ) from None
    os.environ["GRADIO_TEMP_DIR"] = str(work_folder / "uploads")  # read when gradio handles an upload
    import uvicorn

    from page.desk import Desk
    from page.tabs.audit import Found

    with lock_folder(work_folder):
        desk, token = Desk(work_folder, chain, roots), secrets.token_urlsafe(24)
        app = make_app(desk, Found(runs_folders), token, max_upload)
        listener = _socket(port)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/{token}/"
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
        print(
            f"The page is at {address}\nIt is for you alone; your files stay in {work_folder}. Ctrl-C ends it.",
            flush=True,
        )
        door = work_folder / "open-page.html"
        if browser:
            _write_door(door, address)
            threading.Timer(0.5, _open, [door.as_uri()]).start()
        try:
            server.run(sockets=[listener])
        finally:
            door.unlink(missing_ok=True)
            if desk.jobs.active:
                print("stopping; what runs now can be taken up at the next start", file=sys.stderr)
            desk.jobs.close()


def _write_door(path, address):
    """A file, for its owner alone, that leads to the address: others can read what a browser was started with."""
    with atomic_path(path) as temporary:
        temporary.chmod(0o600)
        temporary.write_text(
            "<!DOCTYPE html><title>MembershipTracker</title>"
            f'<meta http-equiv="refresh" content="0;url={html.escape(address)}">',
            encoding="utf-8",
        )
    path.chmod(0o600)


def _open(address):
    with contextlib.suppress(webbrowser.Error):
        webbrowser.open(address)
