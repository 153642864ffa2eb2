"""For tests: a beacon of our own, whose secret is known, and a relay on loopback that serves whatever a test wants."""

import hashlib
import json
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from provenance import beacon
from provenance.beacon import DST, Chain, Round

GENESIS = 1_700_000_000
SECRET = 0x1F2E3D4C5B6A798897A6B5C4D3E2F101


def own_chain(secret=SECRET, name="test-chain", genesis_time=GENESIS, period=3):
    """A Chain whose secret key is a number that everybody knows. Needs py_ecc."""
    beacon._need_py_ecc()
    from py_ecc.bls.point_compression import compress_G2
    from py_ecc.optimized_bls12_381 import G2, multiply

    key = "".join(f"{part:096x}" for part in compress_G2(multiply(G2, secret)))
    info = {"name": name, "public_key": key, "genesis_time": genesis_time, "period": period, "group_hash": "ab" * 32}
    return Chain(**info, hash=info_hash(**info))


def info_hash(name, public_key, genesis_time, period, group_hash):
    """What drand calls the chain's hash, written out a second time."""
    content = b"".join(
        [
            period.to_bytes(4, "big"),
            genesis_time.to_bytes(8, "big"),
            bytes.fromhex(public_key),
            bytes.fromhex(group_hash),
            name.encode(),
        ]
    )
    return hashlib.sha256(content).hexdigest()


def sign(number, secret=SECRET):
    """The Round that the chain of this secret publishes. Needs py_ecc."""
    beacon._need_py_ecc()
    from py_ecc.bls.hash_to_curve import hash_to_G1
    from py_ecc.bls.point_compression import compress_G1
    from py_ecc.optimized_bls12_381 import multiply

    point = hash_to_G1(hashlib.sha256(number.to_bytes(8, "big")).digest(), DST, hashlib.sha256)
    return Round(number, f"{compress_G1(multiply(point, secret)):096x}")


def answer(round):
    """A relay's JSON for a Round, as bytes."""
    return json.dumps({"round": round.round, "randomness": round.randomness, "signature": round.signature}).encode()


class Clock:
    """A clock that only moves when somebody sleeps."""

    def __init__(self, now):
        self.time, self.slept = now, []

    def now(self):
        return self.time

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.time += seconds


@contextmanager
def serving(reply):
    """(address, requests) of a server on loopback that sends reply(method, path, body): (status, headers, content).

    content: bytes, or bytes after bytes that a generator takes its time for.
    requests: the (method, path, headers, body) so far. A reply of None: the server keeps the line open without a word.
    """
    requests, done = [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            requests.append((self.command, self.path, dict(self.headers), body))
            if (answered := reply(self.command, self.path, body)) is None:
                done.wait(600)
                return
            status, headers, content = answered
            self.send_response(status)
            if isinstance(content, bytes):
                headers, content = {"Content-Length": len(content), **headers}, [content]
            for name, value in headers.items():
                self.send_header(name, str(value))
            self.end_headers()
            for part in content:
                self.wfile.write(part)

        do_GET = do_POST = handle_any

        def log_message(self, *_):
            pass

        def handle(self):
            # The client has left, as it should where the answer is too long, perhaps in the middle of its question.
            with suppress(OSError, UnicodeDecodeError):
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        done.set()
        server.shutdown()
        server.server_close()
        thread.join()
