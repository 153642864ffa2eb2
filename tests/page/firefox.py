"""A Firefox that is installed, driven by playwright over WebDriver BiDi.

Playwright sets the colour scheme of every new page with a command that Firefox ESR does not know, and gives up when it
is refused. So this program stands between the two: it starts Firefox, names an address of its own instead of Firefox's,
and asks for the status where that command would come. All else passes as it is.

Public: installed, launched.
"""

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

UNKNOWN = "emulation.setMediaFeaturesOverride"
LISTENS = re.compile(r"WebDriver BiDi listening on ws://([\d.]+):(\d+)")


def installed():
    """The path of a Firefox, or None."""
    return next(filter(None, map(shutil.which, ("firefox-esr", "firefox"))), None)


def launched(play, folder):
    """The Firefox of `sync_playwright`; folder: for the command that starts it."""
    command = folder / "firefox"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" "{installed()}" "$@"\n')
    command.chmod(0o700)
    return play.firefox.launch(channel="moz-firefox", executable_path=command)


def whole(source, count):
    """So many bytes of a socket's file; EOFError where it ends before."""
    data = source.read(count)
    if len(data) < count:
        raise EOFError
    return data


def frame_of(source):
    """(head without mask, mask, unmasked payload) of a WebSocket frame that a client sent."""
    head = whole(source, 2)
    wide = {126: 2, 127: 8}.get(head[1] & 127, 0)
    length = int.from_bytes(whole(source, wide), "big") if wide else head[1] & 127
    mask = whole(source, 4)
    return head[0], mask, xor(whole(source, length), mask)


def xor(data, mask):
    """The bytes masked or unmasked; as one large number, since files are sent in such frames."""
    key = (mask * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(key, "big")).to_bytes(len(data), "big")


def framed(first, mask, payload):
    """The bytes of such a frame."""
    size = len(payload)
    wide = 0 if size < 126 else 2 if size < 65536 else 8
    length = bytes([128 | {0: size, 2: 126, 8: 127}[wide]]) + (size.to_bytes(wide, "big") if wide else b"")
    return bytes([first]) + length + mask + xor(payload, mask)


def known(payload):
    """The same command, or one that does nothing in place of the unknown one."""
    if UNKNOWN.encode() not in payload[:200] and UNKNOWN.encode() not in payload[-200:]:
        return payload
    command = json.loads(payload)
    if command.get("method") != UNKNOWN:
        return payload
    return json.dumps({"id": command["id"], "method": "session.status", "params": {}}).encode()


def copy(source, target):
    """Firefox's answers, as they are."""
    while data := source.recv(1 << 16):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)


def pass_on(client, place):
    """One connection of playwright's."""
    with client, socket.create_connection(place) as firefox, client.makefile("rb") as source:
        threading.Thread(target=copy, args=(firefox, client), daemon=True).start()
        line = None
        while line != b"\r\n":  # the request that opens it
            line = source.readline()
            # Firefox takes requests for its own address alone.
            firefox.sendall(b"Host: %s:%d\r\n" % (place[0].encode(), place[1]) if line.startswith(b"Host:") else line)
        try:
            while True:
                first, mask, payload = frame_of(source)
                firefox.sendall(framed(first, mask, known(payload)))
        except (EOFError, OSError):
            return


def accept(server, place):
    while True:
        threading.Thread(target=pass_on, args=(server.accept()[0], place), daemon=True).start()


def main(command):
    """Start Firefox; what it says is passed on, but for its address."""
    server = socket.create_server(("127.0.0.1", 0))
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as firefox:
        for line in firefox.stderr:
            if found := LISTENS.search(line):
                place = found[1], int(found[2])
                threading.Thread(target=accept, args=(server, place), daemon=True).start()
                line = line.replace(found[0], f"WebDriver BiDi listening on ws://127.0.0.1:{server.getsockname()[1]}")
            print(line, end="", file=sys.stderr, flush=True)
    return firefox.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
