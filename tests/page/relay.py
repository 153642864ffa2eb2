"""A beacon of the tests' own, for the page: its facts in a file, and a relay on loopback that has what is out."""

import json
import time
from contextlib import contextmanager

from provenance import beacon
from tests.provenance.drand import answer, own_chain, serving, sign

NOBODY = "http://127.0.0.1:9"  # a relay that is not there
SECONDS, LATER = 600, 3600  # from a commitment to its round where there is a Clock, and what it moves on

# Before app.py: its beacon goes by the Clock of a path.
GO_BY = """
from pathlib import Path
from provenance import beacon, commit
from tests.page.relay import Clock, SECONDS
commit.SECONDS = SECONDS
beacon.fetch.__kwdefaults__["now"] = Clock(Path(%r)).now
"""


class Clock:
    """A clock that a test moves on when it has seen enough of the waiting, in any process: by a file at `path`."""

    def __init__(self, path):
        self.path = path

    def now(self):
        return time.time() + (LATER if self.path.exists() else 0)

    def pass_by(self):
        """From now on every round that has been named is out."""
        self.path.touch()


def quick_chain():
    """A Chain with a round every second."""
    return own_chain(period=1)


def write_chain(path, chain):
    """The facts of a Chain as a relay shows them at /info; returns the path."""
    facts = {
        "public_key": chain.public_key,
        "period": chain.period,
        "genesis_time": chain.genesis_time,
        "hash": chain.hash,
        "groupHash": chain.group_hash,
        "schemeID": chain.scheme,
        "metadata": {"beaconID": chain.name},
    }
    path.write_text(json.dumps(facts))
    return path


@contextmanager
def relaying(chain, now=time.time):
    """(address, requests) of a relay that has every round of the chain that is out, and no other. now: its clock."""

    def reply(method, path, body):
        number = int(path.rpartition("/")[2])
        if not path.startswith(f"/{chain.hash}/") or number > beacon.round_at(chain, now()):
            return 404, {}, b""
        return 200, {"Content-Type": "application/json"}, answer(sign(number))

    with serving(reply) as (address, requests):
        yield address, requests
