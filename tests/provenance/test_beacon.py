"""The public beacon: rounds follow from the clock, signatures are checked offline, and no relay is trusted."""

import json
import math
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit import web
from kit.errors import UserError
from kit.progress import watched
from provenance import beacon
from provenance.beacon import QUICKNET, Chain, Round, Unavailable
from tests.parts import ROOT, environment
from tests.provenance.drand import GENESIS, SECRET, Clock, answer, info_hash, own_chain, serving, sign

SIGNATURE = "b44679b9a59af2ec876b1a6b1ad52ea9b1615fc3982b19576350f93447cb1125e342b73a8dd2bacbe47e4b6b63ed5e39"
RANDOMNESS = "fe290beca10872ef2fb164d2aa4442de4566183ec51c56ff3cd603d930e54fdd"
THOUSAND = Round(1000, SIGNATURE)
INFINITE = "c0" + 47 * "00"
BACKENDS = {"drand_verify": "drand-verify (pip install drand-verify)", "py_ecc": "py_ecc (requirements.txt)"}


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    """Each of the two ways of checking a signature, alone."""
    pytest.importorskip(request.param, reason=f"needs {BACKENDS[request.param]}")
    (other,) = BACKENDS.keys() - {request.param}
    monkeypatch.setitem(sys.modules, other, None)
    beacon._signature_fits.cache_clear()
    yield request.param
    beacon._signature_fits.cache_clear()


@pytest.fixture(scope="module")
def chain():
    """The tests' own chain: only py_ecc checks it."""
    pytest.importorskip("py_ecc", reason=f"needs {BACKENDS['py_ecc']}")
    return own_chain()


@pytest.fixture(scope="module")
def seven(chain):
    return sign(7)


@pytest.fixture(autouse=True)
def _loopback(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv(beacon.VARIABLE, raising=False)
    monkeypatch.setattr(beacon, "TIMEOUT", 5.0)


def one_line(error, *parts):
    text = str(error.value)
    assert "\n" not in text and len(text) < 700 and "Traceback" not in text
    for part in parts:
        assert part in text
    return True


# --- the known answer ---


def test_a_published_round_of_quicknet_verifies(backend):
    beacon.verify(QUICKNET, THOUSAND)
    assert THOUSAND.randomness == RANDOMNESS


def test_wrong_rounds_of_quicknet_do_not(backend):
    from_other_key = "8d61d9100567de44682506aea1a7a6fa6e5491cd27a0a0ed349ef6910ac5ac20ff7bc3e09d7c046566c9f7f3c6f3b101"
    no_point = next(f"8{x:095x}" for x in range(1, 99) if not _on_curve(x))
    outside = next(f"8{x:095x}" for x in range(1, 99) if _on_curve(x))
    for number, signature in [(1001, SIGNATURE), (1000, INFINITE), (1000, no_point), (1000, outside)]:
        with pytest.raises(UserError) as error:
            beacon.verify(QUICKNET, Round(number, signature))
        assert one_line(error, "the signature of round")
    with pytest.raises(UserError):
        beacon.verify(QUICKNET, Round(1, from_other_key))


def _on_curve(x):
    prime = int("1a0111ea397fe69a4b1ba7b6434bacd764774b84f38512bf6730d2a0f6b0f6241eabfffeb153ffffb9feffffffffaaab", 16)
    return pow(x**3 + 4, (prime - 1) // 2, prime) == 1


def test_a_round_has_no_second_signature(backend):
    # b446... plus a point of the cofactor's order: where the subgroup is not checked, one round has many signatures.
    shifted = "8040abfd74fab602afb74441a076a35392519b6db1f6d8e6c55fd661d68da6f677837eefb8f5b10d37b19de61f465e7b"
    with pytest.raises(UserError):
        beacon.verify(QUICKNET, Round(1000, shifted))


def test_without_either_package_the_advice_says_what_to_install(monkeypatch):
    for name in ("drand_verify", "py_ecc", "py_ecc.bls.hash_to_curve"):
        monkeypatch.setitem(sys.modules, name, None)
    beacon._signature_fits.cache_clear()
    with pytest.raises(UserError) as error:
        beacon.verify(QUICKNET, THOUSAND)
    assert one_line(error, "pip install", "py_ecc")
    with pytest.raises(UserError, match="pip install"):
        beacon.fetch(QUICKNET, 1000, ["http://127.0.0.1:9"])


# --- chains ---


def test_the_hash_of_quicknet_follows_from_its_values():
    values = asdict(QUICKNET)
    assert values.pop("hash") == info_hash(**{k: v for k, v in values.items() if k != "scheme"})
    assert Chain(**asdict(QUICKNET)) == QUICKNET


@pytest.mark.parametrize(
    "change",
    [
        {"period": 30},
        {"genesis_time": 1692803368},
        {"name": "default"},
        {"group_hash": "00" * 32},
        {"hash": "00" * 32},
        {"public_key": "c0" + "00" * 95},
        {"public_key": QUICKNET.public_key[:-2]},
        {"public_key": QUICKNET.public_key.upper()},
        {"scheme": "pedersen-bls-chained"},
        {"scheme": None},
        {"period": 0},
        {"period": True},
        {"period": 3.0},
        {"genesis_time": -1},
        {"name": "a b"},
        {"hash": None},
    ],
)
def test_a_chain_with_another_value_can_not_be_made(change):
    with pytest.raises(UserError) as error:
        replace(QUICKNET, **change)
    assert one_line(error)


def info(version, **change):
    """QUICKNET as a relay of drand 1 or 2 shows it at /info."""
    values = {"public_key": QUICKNET.public_key, "period": 3, "genesis_time": 1692803367}
    if version == 1:
        values |= {"hash": QUICKNET.hash, "groupHash": QUICKNET.group_hash, "schemeID": QUICKNET.scheme}
        values |= {"metadata": {"beaconID": "quicknet"}}
    else:
        values |= {"chain_hash": QUICKNET.hash, "genesis_seed": QUICKNET.group_hash, "scheme": QUICKNET.scheme}
        values |= {"beacon_id": "quicknet"}
    return {**values, **change}


@pytest.mark.parametrize("version", [1, 2])
def test_a_chain_is_read_from_what_a_relay_shows(version, tmp_path):
    (tmp_path / "info.json").write_text(json.dumps(info(version)))
    assert beacon.read_chain(tmp_path / "info.json") == QUICKNET


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"period": ' + "9" * 5000 + "}",
        json.dumps(info(1, schemeID="pedersen-bls-unchained")),
        json.dumps(info(1, groupHash=None)),
        json.dumps(info(1, metadata=[])),
        json.dumps(info(1, period=4)),
        json.dumps(info(2, public_key=7)),
        "{" + " " * 2**17 + "}",
        b"\xff\xfe\x00",
    ],
)
def test_files_that_are_no_chain(text, tmp_path):
    path = tmp_path / "info.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        beacon.read_chain(path)
    assert one_line(error)
    with pytest.raises(UserError, match="does not exist"):
        beacon.read_chain(tmp_path / "nowhere.json")
    with pytest.raises(UserError):
        beacon.read_chain(tmp_path)


# --- rounds and time ---


def test_rounds_of_quicknet_at_known_times():
    assert beacon.round_at(QUICKNET, 1692803366.9) == 0 and beacon.round_at(QUICKNET, 1692803367) == 1
    assert beacon.time_of(QUICKNET, 1000) == 1692806364 == QUICKNET.genesis_time + 999 * 3
    assert beacon.round_at(QUICKNET, 1776643200) == 27946612  # 2026-04-20 00:00 UTC, published with a Ruby client
    assert beacon.future_round(QUICKNET, 0) == 1


def stand_in(genesis_time, period):
    values = {"name": "x", "public_key": "ab" * 96, "genesis_time": genesis_time, "period": period}
    values["group_hash"] = "cd" * 32
    return Chain(**values, hash=info_hash(**values))


CHAINS = st.builds(stand_in, st.integers(0, 2**33), st.integers(1, 10**5))
TIMES = st.integers(0, 2**34) | st.floats(0, 2**34)


@given(CHAINS, TIMES)
def test_the_round_at_a_time_is_the_last_one_that_is_due(chain, when):
    number = beacon.round_at(chain, when)
    assert number == 0 or beacon.time_of(chain, number) <= when
    assert beacon.time_of(chain, number + 1) > when


@given(CHAINS, TIMES, st.integers(0, 10**6))
def test_the_future_round_is_the_first_one_that_is_late_enough(chain, now, seconds):
    number = beacon.future_round(chain, now, seconds)
    assert beacon.time_of(chain, number) >= now + seconds
    assert number == 1 or beacon.time_of(chain, number - 1) < math.ceil(now + seconds)


@given(CHAINS, st.integers(1, 2**40))
def test_a_round_is_current_from_its_time_on(chain, number):
    due = beacon.time_of(chain, number)
    assert beacon.round_at(chain, due) == number == beacon.future_round(chain, due, 0)
    assert beacon.round_at(chain, due + chain.period - 1) == number


@pytest.mark.parametrize("number", [0, -1, 1.0, True, None, "1", 2**63])
def test_numbers_that_are_no_round(number):
    with pytest.raises(UserError, match="whole number from 1 on"):
        beacon.time_of(QUICKNET, number)
    with pytest.raises(UserError, match="whole number from 1 on"):
        Round(number, SIGNATURE)


# --- what people paste ---


@pytest.mark.parametrize(
    "text",
    [
        f"1000:{SIGNATURE}",
        f" 1000 : {SIGNATURE.upper()}\n",
        json.dumps({"round": 1000, "signature": SIGNATURE}),
        answer(THOUSAND).decode(),
        json.dumps({"round": 1000, "signature": SIGNATURE.upper(), "randomness": RANDOMNESS.upper(), "more": 1}),
    ],
)
def test_rounds_are_pasted_or_in_a_file(text, tmp_path):
    assert beacon.parse(text) == beacon.read_round(text) == THOUSAND
    (tmp_path / "round.json").write_text("\ufeff" + text)
    assert beacon.read_round(str(tmp_path / "round.json")) == THOUSAND


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1000",
        f"0:{SIGNATURE}",
        f"1000:{SIGNATURE[:-2]}",
        f"1000:{SIGNATURE}00",
        f"-1:{SIGNATURE}",
        "{}",
        "{" * 10**5,
        json.dumps({"round": "1000", "signature": SIGNATURE}),
        json.dumps({"round": 1000, "signature": 5}),
        json.dumps({"round": 1000, "signature": SIGNATURE, "randomness": "00" * 32}),
        json.dumps({"round": 1000, "signature": SIGNATURE, "randomness": 5}),
    ],
)
def test_what_is_no_round(text):
    with pytest.raises(UserError) as error:
        beacon.parse(text)
    assert one_line(error)


def test_a_file_that_is_not_there():
    with pytest.raises(UserError, match=r"nowhere\.json does not exist"):
        beacon.read_round("nowhere.json")


# --- other chains ---


def test_a_chain_of_our_own_signs(chain, seven):
    beacon.verify(chain, seven)
    for wrong in (sign(8).signature, sign(7, SECRET + 1).signature, INFINITE):
        with pytest.raises(UserError) as error:
            beacon.verify(chain, Round(7, wrong))
        assert one_line(error, "round 7")


def test_keys_that_are_no_point_are_named(seven):
    # The point at infinity would accept the signature at infinity for every round.
    values = asdict(QUICKNET)
    for key in ("c0" + "00" * 95, "00" * 96, "ff" * 96, "80" + "00" * 94 + "05", "80" + "00" * 94 + "02"):
        values |= {"name": "x", "public_key": key}
        values["hash"] = info_hash(**{k: v for k, v in values.items() if k not in ("hash", "scheme")})
        with pytest.raises(UserError) as error:
            beacon.verify(Chain(**values), Round(7, INFINITE))
        assert one_line(error, "public key", "no point")


# --- fetching ---


def fetch(chain, *relays, clock=None):
    clock = clock or Clock(GENESIS + 10**6)
    return beacon.fetch(chain, 7, relays or None, now=clock.now, sleep=clock.sleep)


def test_a_relay_gives_the_round(chain, seven, monkeypatch):
    with serving(lambda *_: (200, {"Content-Type": "application/json"}, answer(seven))) as (address, requests):
        assert fetch(chain, address) == seven
        monkeypatch.setenv(beacon.VARIABLE, f"http://127.0.0.1:9/, {address}/drand/")
        assert fetch(chain) == seven
    paths = [(method, path) for method, path, *_ in requests]
    assert paths == [("GET", f"/{chain.hash}/public/7"), ("GET", f"/drand/{chain.hash}/public/7")]


def test_bad_relays_are_passed_over(chain, seven, monkeypatch):
    """Half a minute passes between the bytes of one; the one that says nothing is given up soon, and all others have as
    long as they need."""
    elsewhere, really_ask, clock = [], beacon.ask, SimpleNamespace(now=0.0, step=0.0)

    def monotonic():
        clock.now += clock.step
        return clock.now

    def ask(url, limit, timeout):
        relay = url.removeprefix(address).split("/")[1]
        reason = list(replies)[int(relay)] if url.startswith(address) else ""
        clock.step = 30 if reason == "takes too long" else 0
        return really_ask(url, limit, 0.3 if reason == "no answer within" else 120)

    monkeypatch.setattr(beacon, "ask", ask)
    monkeypatch.setattr(web, "time", SimpleNamespace(monotonic=monotonic))
    replies = {
        "the signature of round 7 is not": (200, {}, answer(Round(7, sign(8).signature))),
        "answered with round 8": (200, {}, answer(sign(8))),
        "longer than 4096": (200, {}, answer(seven) + b" " * 10**6),
        "compressed": (200, {"Content-Encoding": "gzip"}, answer(seven)),
        "answered 302": (302, {"Location": "/elsewhere"}, b""),
        "answered 500": (500, {}, b"<html>"),
        "must be ROUND:SIGNATURE": (200, {}, b"\xff\x00 hello"),
        "takes too long": (200, {}, b"." * 100),
        "no answer within": None,
    }

    def reply(method, path, body):
        elsewhere.append(path)
        return list(replies.values())[int(path.split("/")[1])]

    with serving(reply) as (address, _), serving(lambda *_: (200, {}, answer(seven))) as (good, _):
        bad = [f"{address}/{index}" for index in range(len(replies))]
        assert fetch(chain, *bad, good) == seven
        with pytest.raises(Unavailable) as error:
            fetch(chain, *bad)
    for reason in replies:
        assert reason in str(error.value)
    assert not any("elsewhere" in path for path in elsewhere)
    assert "\n" not in str(error.value)


def test_a_round_that_is_a_moment_late_is_asked_for_again(chain, seven):
    replies = iter([(404, {}, b""), (425, {}, b""), (200, {}, answer(seven))])
    clock = Clock(GENESIS + 10**6)
    with serving(lambda *_: next(replies)) as (address, _):
        assert fetch(chain, address, clock=clock) == seven
    assert clock.slept == [beacon.LATE_PAUSE] * 2


def test_with_all_relays_down_the_advice_is_the_way_by_hand(chain):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
        clock = Clock(GENESIS + 10**6)
        with pytest.raises(Unavailable) as error:
            fetch(chain, address, address + "/second", clock=clock)
    assert clock.slept == []
    assert one_line(error, f"{address}/{chain.hash}/public/7", "--beacon FILE or --beacon ROUND:SIGNATURE", "/second")
    assert error.value.flag == "--beacon" and isinstance(error.value, UserError)


@pytest.mark.parametrize("value", ["nonsense", "ftp://x", "http://user:secret@host", "http://host/?a", "http://a b"])
def test_relays_that_are_no_address(value, monkeypatch):
    monkeypatch.setenv(beacon.VARIABLE, value)
    with pytest.raises(UserError, match=beacon.VARIABLE) as error:
        beacon.endpoints()
    assert "secret" not in str(error.value)


def test_the_public_relays_are_asked_where_no_others_are_named(monkeypatch):
    monkeypatch.setenv(beacon.VARIABLE, " , ")
    assert beacon.endpoints() == beacon.ENDPOINTS and len(beacon.ENDPOINTS) == 4


def test_the_wait_shows_its_seconds_and_can_be_cancelled(chain, seven):
    clock, seen = Clock(beacon.time_of(chain, 7) - 4.5), []
    with serving(lambda *_: (200, {}, answer(seven))) as (address, requests):
        with watched(lambda *step: seen.append(step)):
            assert fetch(chain, address, clock=clock) == seven
        assert [(done, total) for _, done, total in seen] == [(n, 5) for n in range(6)]
        assert {label for label, *_ in seen} == {"waiting for round 7"}
        assert sum(clock.slept) == 4.5 and len(requests) == 1

        def cancel(_, done, __):
            if done == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), watched(cancel):
            fetch(chain, address, clock=Clock(beacon.time_of(chain, 7) - 60))
    assert len(requests) == 1


def test_checking_a_round_leaves_the_limit_of_recursion_as_it_was():
    """py_ecc raises it to 100,000, with which nested JSON from a stranger crashes the process that reads it next."""
    code = (
        "import json, sys\nfrom provenance import beacon\nfrom tests.provenance.drand import own_chain, sign\n"
        "chain, limit = own_chain(), sys.getrecursionlimit()\nbeacon.verify(chain, sign(7))\n"
        "assert sys.getrecursionlimit() == limit < 5000\n"
        "try:\n    json.loads('[' * 100_000)\nexcept RecursionError:\n    print('one line')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment())
    assert done.returncode == 0 and done.stdout == "one line\n", done.stderr
