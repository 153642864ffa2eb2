"""A server as the model under audit: images a second with several requests at once, against one request at a time.

Example: python -m benchmarks.servers --out results/bench-servers.json
MLServer, KServe and Triton run on this machine with the settings of suspects/README.md (`make servers`), over HTTP and
over gRPC. What is timed is what an audit does: photos are marked and sent, and their answers stored. --wait adds what
the way to a server elsewhere would take, for each request. The answers of both ways must be the same, bit for bit.
"""

import importlib.util
import itertools
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import common
from kit import cli
from kit.errors import run_script
from provenance import grid
from provenance.evidence import AnswerLog
from provenance.protect import mark_photo
from suspects.server import open_server
from tests.suspects import real_servers
from utils import Marking

SIDE = 448  # of the photos, before they are scaled to the model's 224 pixels


class Far:
    """A suspect behind a way of so many seconds."""

    def __init__(self, suspect, seconds):
        self._suspect, self._seconds = suspect, seconds

    def __getattr__(self, name):
        return getattr(self._suspect, name)

    def ask(self, images):
        time.sleep(self._seconds)
        return self._suspect.ask(images)


def audit(suspect, photos, count, folder):
    """Answers for `count` marked photos, stored in a new folder: float32 (count, classes)."""

    def prepare(places):
        chosen = [(photos[place % len(photos)], place % len(photos)) for place in places]
        marked = [mark_photo(photo, b"key", number, Marking()) for photo, number in chosen]
        return np.stack([suspect.preprocessing.fit(photo) for photo in marked])

    return grid.ask_all(AnswerLog(folder, {"model": "m"}), suspect, count, prepare, "asking")[1].values


def measured(args, photos, name, address, wait, folder):
    """One row: the server `name` at an address, so many ms away."""
    ways, results = {}, {}
    for concurrency in (1, args.concurrency):
        near = open_server(address, overrides=real_servers.STATED, batch_size=args.query_batch, concurrency=concurrency)
        ways[concurrency] = Far(near, wait / 1000)

    def run(concurrency):
        results[concurrency] = audit(ways[concurrency], photos, args.images, tempfile.mkdtemp(dir=folder))

    found = common.alternate(lambda: run(1), lambda: run(args.concurrency), args.rounds)
    if results[1].tobytes() != results[args.concurrency].tobytes():
        raise AssertionError(f"{name}: other answers with several requests at once")
    row = {
        "server": name,
        "protocol": address.partition(":")[0],
        "wait_ms": wait,
        "query_batch": ways[1].batch_size,
        **common.summary(found),
    }
    for side, key in (("reference_s", "one_at_a_time"), ("ours_s", "several_at_once")):
        row[key] = args.images / float(np.median([each[side] for each in found]))
    low, high = row["ratios"]
    print(
        f"{name:<9} {row['protocol']:<5} {wait:>3g} ms away: one at a time {row['one_at_a_time']:5.1f} images/s, "
        f"{args.concurrency} at once {row['several_at_once']:5.1f}, ratio {row['median_ratio']:.2f} "
        f"({low:.2f} to {high:.2f})"
    )
    return row


def main():
    flags = common.parser(__doc__, rounds=3)
    flags.add_argument("--servers", nargs="+", choices=real_servers.SERVERS, default=real_servers.SERVERS)
    flags.add_argument("--images", type=common.COUNT, default=128)
    flags.add_argument("--concurrency", type=common.COUNT, default=4)
    flags.add_argument("--query_batch", type=common.COUNT, default=4)
    flags.add_argument(
        "--wait", nargs="+", type=cli.number(float, 0), default=[0.0, 50.0], help="ms (default 0 and 50)"
    )
    args, device = common.start(flags)
    photos = np.random.default_rng(0).integers(0, 256, (16, SIDE, SIDE, 3), dtype=np.uint8)
    rows = []
    with tempfile.TemporaryDirectory() as root:
        model = real_servers.onnx_model(Path(root) / "model.onnx")
        for name in args.servers:
            folder = Path(root) / name
            folder.mkdir()
            try:
                with real_servers.serving(name, model, folder) as running:
                    addresses = [running.url] + [running.grpc] * bool(importlib.util.find_spec("tritonclient"))
                    for address, wait in itertools.product(addresses, args.wait):
                        rows.append(measured(args, photos, name, address, wait, folder))
            except pytest.skip.Exception as why:
                print(f"{name} is left out: {why}", file=sys.stderr)
    common.write(
        args, {"what": "audit of a server, several requests at once", "images": args.images, "rows": rows}, device
    )


if __name__ == "__main__":
    run_script(main)
