"""Public randomness that nobody can choose: rounds of drand, a beacon that many institutions run together.

Every `period` seconds drand signs the number of the round with a key that no member knows whole (threshold signatures,
BLS on BLS12-381). A round's number follows from the clock, so a round can be named before anybody can know its
signature; afterwards everybody can check that, offline, against the public key. Its SHA-256 is the randomness.

QUICKNET is the League of Entropy's chain of 3 seconds. Sources of what is pinned here: drand's own specification and
code (chain hash, round arithmetic, scheme bls-unchained-g1-rfc9380), and its client's list of chains.

Public: Chain, QUICKNET, read_chain, round_at, time_of, future_round, Round, verify, parse, read_round, fetch,
endpoints, ENDPOINTS, Unavailable.
"""

import hashlib
import json
import math
import os
import re
import sys
import time
from dataclasses import dataclass
from functools import lru_cache

from kit.errors import UserError, optional
from kit.progress import Progress
from kit.web import NoAnswer, ask, check_address

SCHEME = "bls-unchained-g1-rfc9380"
DST = b"BLS_SIG_BLS12381G1_XMD:SHA-256_SSWU_RO_NUL_"
KEY_BYTES, SIGNATURE_BYTES, DIGEST_BYTES = 96, 48, 32
ENDPOINTS = (
    "https://api.drand.sh",
    "https://api2.drand.sh",
    "https://api3.drand.sh",
    "https://drand.cloudflare.com",
)
VARIABLE = "MEMBERSHIPTRACKER_DRAND"
TIMEOUT, REPLY_BYTES, FILE_BYTES = 10.0, 4096, 2**16
# A relay may have a round a moment after the clock here says that it is out: it is asked again for ten seconds.
LATE, LATE_TRIES, LATE_PAUSE = (404, 425), 6, 2.0
LAST_ROUND = 2**63 - 1
PASTED = re.compile(r"\s*(\d{1,19})\s*:\s*([0-9a-fA-F]+)\s*", re.ASCII)


class Unavailable(UserError):
    """No relay gave the round. The advice says where to fetch it by hand and how to give it."""


@dataclass(frozen=True)
class Chain:
    """A drand chain: all that is needed to check its rounds.

    name: drand's beacon ID; public_key: hex, 96 bytes (a point of G2); genesis_time: unix seconds of round 1; period:
    seconds; group_hash: hex, 32 bytes, the hash of the founding group; hash: hex, 32 bytes. The hash commits to all the
    others: a chain whose hash does not follow from them can't be made. Raises UserError.
    """

    name: str
    hash: str
    public_key: str
    genesis_time: int
    period: int
    group_hash: str
    scheme: str = SCHEME

    def __post_init__(self):
        if self.scheme != SCHEME:
            raise UserError(f"the beacon's chain has the scheme {str(self.scheme)[:40]!r}", f"only {SCHEME} is known")
        if not (isinstance(self.name, str) and re.fullmatch(r"[\w.-]{1,64}", self.name, re.ASCII)):
            raise UserError("the beacon's chain has no proper name (its beacon ID)")
        _check_hex(self.public_key, KEY_BYTES, "the beacon's public key")
        _check_hex(self.group_hash, DIGEST_BYTES, "the group hash of the beacon's chain")
        _check_hex(self.hash, DIGEST_BYTES, "the hash of the beacon's chain")
        if not (type(self.period) is int and 0 < self.period < 2**32):
            raise UserError("the period of the beacon's chain must be a whole number of seconds above 0")
        if not (type(self.genesis_time) is int and 0 <= self.genesis_time < 2**40):
            raise UserError("the genesis time of the beacon's chain must be unix seconds")
        if self.hash != _chain_hash(self):
            raise UserError(f"the hash of the beacon's chain {self.name} does not follow from its other values")


def _check_hex(text, size, what):
    if not (isinstance(text, str) and re.fullmatch(rf"[0-9a-f]{{{2 * size}}}", text)):
        raise UserError(f"{what} must be {2 * size} hexadecimal digits (in lower case)")


def _chain_hash(chain):
    """drand's Info.Hash: SHA-256 of period (uint32), genesis time (int64), key, group hash and name (but "default")."""
    head = chain.period.to_bytes(4, "big") + chain.genesis_time.to_bytes(8, "big")
    name = b"" if chain.name == "default" else chain.name.encode()
    return hashlib.sha256(head + bytes.fromhex(chain.public_key + chain.group_hash) + name).hexdigest()


QUICKNET = Chain(
    name="quicknet",
    hash="52db9ba70e0cc0f6eaf7803dd07447a1f5477735fd3f661792ba94600c84e971",
    public_key="83cf0f2896adee7eb8b5f01fcad3912212c437e0073e911fb90022d3e760183c8c4b450b6a0a6c3ac6a5776a2d106451"
    "0d1fec758c921cc22b0e17e63aaf4bcb5ed66304de9cf809bd274ca73bab4af5a6e9c76a4bc09e76eae8991ef5ece45a",
    genesis_time=1692803367,
    period=3,
    group_hash="f477d5c89f21a17c863a7f937c6a6d15859414d2be09cd448d4279af331c5d3e",
)


def read_chain(path):
    """The Chain in a file: the JSON that a relay shows at /CHAINHASH/info, of drand 1 or 2. Raises UserError."""
    info = _json(_text(path, FILE_BYTES, "--beacon_chain"), f"{path} is no JSON object as drand shows it at /info")
    metadata = info.get("metadata") if isinstance(info.get("metadata"), dict) else {}
    missing = [name for name in ("public_key", "period", "genesis_time") if name not in info]
    if missing:
        raise UserError(f"{path} has no {', '.join(missing)}", "give what a relay shows at /CHAINHASH/info")
    return Chain(
        name=info.get("beacon_id", metadata.get("beaconID")) or "default",
        hash=info.get("chain_hash", info.get("hash")),
        public_key=info["public_key"],
        genesis_time=info["genesis_time"],
        period=info["period"],
        group_hash=info.get("genesis_seed", info.get("groupHash")),
        scheme=info.get("scheme", info.get("schemeID")),
    )


def _text(path, limit, flag):
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise UserError(f"{path} is longer than the {limit} bytes that it may have", flag=flag)
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", "check the path", flag=flag) from None
    except (UnicodeDecodeError, IsADirectoryError):
        raise UserError(f"{path} is no text file", flag=flag) from None


def _json(text, problem):
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(problem)
    return value


def round_at(chain, when):
    """The number of the newest round at unix time `when` (seconds, int or float); 0 before the first."""
    return max(0, (math.floor(when) - chain.genesis_time) // chain.period + 1)


def time_of(chain, number):
    """The unix time, whole seconds, at which round `number` (1 or more) is due. Raises UserError."""
    _check_number(number)
    return chain.genesis_time + (number - 1) * chain.period


def future_round(chain, now, seconds=60):
    """The number of the first round that is due at unix time now + seconds or later."""
    return max(1, -(-(math.ceil(now + seconds) - chain.genesis_time) // chain.period) + 1)


def _check_number(number):
    if not (type(number) is int and 1 <= number <= LAST_ROUND):
        raise UserError("the number of a beacon's round must be a whole number from 1 on", flag="--beacon")


@dataclass(frozen=True)
class Round:
    """A round as drand publishes it: number, and signature in hex (48 bytes, a point of G1). Raises UserError.

    That the signature is right says only `verify`.
    """

    round: int
    signature: str

    def __post_init__(self):
        _check_number(self.round)
        _check_hex(self.signature, SIGNATURE_BYTES, f"the signature of round {self.round}")

    @property
    def randomness(self):
        """SHA-256 of the signature, hex: what drand publishes as the round's randomness."""
        return hashlib.sha256(bytes.fromhex(self.signature)).hexdigest()


def verify(chain, round):
    """Raise UserError unless the signature of a Round is that of its number under the chain's public key.

    BLS over SHA-256 of the number (8 bytes, big endian), hashed to G1 as RFC 9380 says with the suffix _NUL_. Some 2 ms
    with the package drand-verify, 0.3 s with py_ecc. One number has one signature: there is nothing to choose from.
    """
    if not _signature_fits(chain.public_key, round.round, round.signature):
        raise UserError(
            f"the signature of round {round.round} is not that of the beacon {chain.name} ({chain.hash[:8]}...)",
            f"fetch the round again: {_place(ENDPOINTS[0], chain, round.round)}",
            flag="--beacon",
        )


@lru_cache(maxsize=1024)
def _signature_fits(public_key, number, signature):
    # drand-verify stops its process on a key that is no point: it gets the pinned key alone.
    if public_key == QUICKNET.public_key and (fast := _fast_verifier()):
        try:
            fast(number, signature, public_key)
        except ValueError:
            return False
        return True
    return _pairing_fits(public_key, number, signature)


def _fast_verifier():
    try:
        from drand_verify import verify_bls_unchained_g1_rfc9380
    except ImportError:
        return None
    return verify_bls_unchained_g1_rfc9380


def _need_py_ecc():
    limit = sys.getrecursionlimit()
    try:
        curve = optional("py_ecc.bls.hash_to_curve", "checking a round of the beacon", "'py_ecc>=8'")
    finally:
        # py_ecc asks for 100,000, which it does not need: a stranger's nested JSON would then crash the process.
        sys.setrecursionlimit(limit)
    if not hasattr(curve, "hash_to_G1"):
        raise UserError("checking a round of the beacon needs a newer py_ecc: pip install 'py_ecc>=8'")


def _pairing_fits(public_key, number, signature):
    """e(signature, g2) = e(H(number), public key), with points that are checked first: py_ecc's pairing does not."""
    _need_py_ecc()
    from py_ecc.bls.hash_to_curve import hash_to_G1
    from py_ecc.bls.point_compression import decompress_G1, decompress_G2
    from py_ecc.optimized_bls12_381 import FQ12, G2, final_exponentiate, neg, pairing

    key = _point(decompress_G2, (int(public_key[:96], 16), int(public_key[96:], 16)), "the beacon's public key")
    point = _point(decompress_G1, int(signature, 16), f"the signature of round {number}")
    message = hash_to_G1(hashlib.sha256(number.to_bytes(8, "big")).digest(), DST, hashlib.sha256)
    product = pairing(G2, point, final_exponentiate=False) * pairing(key, neg(message), final_exponentiate=False)
    return final_exponentiate(product) == FQ12.one()


def _point(decompress, compressed, what):
    """A point of the group of prime order other than its zero. Raises UserError."""
    from py_ecc.bls.g2_primitives import subgroup_check
    from py_ecc.optimized_bls12_381 import is_inf

    try:
        point = decompress(compressed)
        if not is_inf(point) and subgroup_check(point):
            return point
    except (ValueError, ArithmeticError):
        pass
    raise UserError(f"{what} is no point of its curve's group", "check that it was copied whole", flag="--beacon")


def parse(text):
    """The Round in what people paste: a relay's JSON (round, signature), or ROUND:SIGNATURE. Raises UserError.

    Randomness that is given beside must be the signature's SHA-256. The signature itself is not checked here.
    """
    if match := PASTED.fullmatch(text):
        return Round(int(match[1]), match[2].lower())
    value = _json(text, 'a round of the beacon must be ROUND:SIGNATURE or {"round": 1000, "signature": "b446..."}')
    signature, randomness = value.get("signature"), value.get("randomness")
    parsed = Round(value.get("round"), signature.lower() if isinstance(signature, str) else signature)
    if randomness is not None and str(randomness).lower() != parsed.randomness:
        raise UserError(
            f"the randomness given with round {parsed.round} is not the SHA-256 of its signature",
            "copy the relay's answer again",
            flag="--beacon",
        )
    return parsed


def read_round(value):
    """The Round that --beacon names: what `parse` takes, or a file with that inside. Raises UserError."""
    pasted = PASTED.fullmatch(value) or value.lstrip().startswith("{")
    return parse(value if pasted else _text(value, FILE_BYTES, "--beacon"))


def endpoints():
    """The relays to ask, in this order: those in the environment variable VARIABLE (comma separated), or ENDPOINTS."""
    given = [address.strip().rstrip("/") for address in os.environ.get(VARIABLE, "").split(",") if address.strip()]
    for address in given:
        check_address(address, f"each address in {VARIABLE}")
    return tuple(given) or ENDPOINTS


def fetch(chain, number, relays=None, *, now=time.time, sleep=time.sleep, progress=Progress):
    """Wait until round `number` is due, fetch it from the first relay that has it, and return the verified Round.

    relays: addresses, None for `endpoints()`; now, sleep: the clock; progress: the bar, in seconds, which a page can
    watch and cancel. Raises Unavailable where no relay gives the round.
    """
    if chain.public_key != QUICKNET.public_key or not _fast_verifier():
        _need_py_ecc()  # said before anybody waits
    pending, reasons = endpoints() if relays is None else tuple(relays), {}
    first = pending[0]
    _wait(chain, number, now, sleep, progress)
    for attempt in range(LATE_TRIES):
        if attempt:
            sleep(LATE_PAUSE)
        late = []
        for relay in pending:
            try:
                return _ask(chain, number, relay)
            except NoAnswer as problem:
                reasons[relay] = str(problem)
                late += [relay] if problem.status in LATE else []
            except UserError as problem:
                reasons[relay] = problem.problem
        if not (pending := late):
            break
    raise _unavailable(chain, number, first, reasons)


def _wait(chain, number, now, sleep, progress):
    due = time_of(chain, number)
    total, done = math.ceil(due - now()), 0
    if total <= 0:
        return
    with progress(desc=f"waiting for round {number}", total=total, unit="s") as bar:
        while (left := due - now()) > 0:
            sleep(min(left, 1.0))
            passed = min(total, max(done, total - math.ceil(due - now())))
            bar.update(passed - done)
            done = passed


def _place(relay, chain, number):
    return f"{relay}/{chain.hash}/public/{number}"


def _ask(chain, number, relay):
    answer = parse(ask(_place(relay, chain, number), REPLY_BYTES, TIMEOUT).decode("utf-8", "replace"))
    if answer.round != number:
        raise UserError(f"it answered with round {answer.round}")
    verify(chain, answer)
    return answer


def _unavailable(chain, number, relay, reasons):
    listing = "; ".join(f"{address.partition('//')[2]}: {reason}" for address, reason in reasons.items())
    return Unavailable(
        f"no relay gave round {number} of the beacon {chain.name} ({listing})",
        f"open {_place(relay, chain, number)} on a machine with a network and bring back what it shows",
        "with --beacon FILE or --beacon ROUND:SIGNATURE",
        flag="--beacon",
    )
