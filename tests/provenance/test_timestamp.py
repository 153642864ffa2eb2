"""Time stamps: only a genuine one over the very digest is worth something, and each fault is named in one line."""

import datetime
import hashlib
import importlib.metadata
import re
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kit.errors import UserError
from provenance import timestamp
from tests.provenance.drand import serving

pytest.importorskip("cryptography", reason="time stamps need cryptography (requirements.txt)")
pytest.importorskip("rfc3161_client", reason="time stamps need rfc3161-client (requirements.txt)")
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from tests.provenance.authority import DAY, NOW, POLICY, STAMPING, WEB, Authority, Issuer

DIGEST = hashlib.sha256(b"a commitment").hexdigest()
OTHER = hashlib.sha256(b"another one").hexdigest()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def token(authority):
    return authority.stamp(DIGEST)


@pytest.fixture(autouse=True)
def _loopback(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def refused(token, authority, match, digest=DIGEST):
    with pytest.raises(UserError, match=match) as error:
        timestamp.verify(token, digest, [authority.root_file])
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    return error.value


def with_certificates(token, change):
    """The token with change(list of certificates, DER) in place of its certificates, in that order."""
    ((_, response),) = timestamp._elements(token)
    status, (_, content) = timestamp._elements(response)
    (kind, _), (_, inside) = timestamp._elements(content)
    ((_, signed),) = timestamp._elements(inside)
    parts = []
    for part, body in timestamp._elements(signed):
        if part[0] == timestamp.CHOICE_0:
            part = timestamp._wrap(part[0], b"".join(change([one for one, _ in timestamp._elements(body)])))
        parts.append(part)
    signed = timestamp._wrap(timestamp.CHOICE_0, timestamp._wrap(timestamp.SEQUENCE, b"".join(parts)))
    return timestamp._wrap(timestamp.SEQUENCE, status[0] + timestamp._wrap(timestamp.SEQUENCE, kind + signed))


def der(issuer):
    return issuer.certificate.public_bytes(Encoding.DER)


# --- good ones ---


def test_a_good_stamp_says_when_and_by_whom(authority, token, tmp_path):
    before = NOW.replace(microsecond=0)
    stamp = timestamp.verify(token, DIGEST, [authority.root_file])
    assert before <= stamp.time <= datetime.datetime.now(datetime.timezone.utc)
    assert stamp.time.tzinfo is datetime.timezone.utc
    assert (stamp.authority, stamp.policy) == ("Test Stamps (Tests)", POLICY) and int(stamp.serial, 16) >= 10
    (tmp_path / "stamp.tsr").write_bytes(token)
    kept = timestamp.read(tmp_path / "stamp.tsr", DIGEST)
    assert timestamp.verify(kept, DIGEST, authority.root_file) == stamp


def test_other_forms_of_the_same_stamp(authority, token, tmp_path):
    stamp = timestamp.verify(token, DIGEST, [authority.root_file])
    (_, bare) = list(timestamp._elements(next(timestamp._elements(token))[1]))
    assert timestamp.verify(bare[0], DIGEST, [authority.root_file]) == stamp
    (tmp_path / "bare.der").write_bytes(bare[0])
    assert timestamp.verify(timestamp.read(tmp_path / "bare.der", DIGEST), DIGEST, [authority.root_file]) == stamp
    for order in (sorted, lambda found: sorted(found, reverse=True)):  # DER sorts them, many authorities do not
        assert timestamp.verify(with_certificates(token, order), DIGEST, [authority.root_file]) == stamp
    with_mods = token.replace(bytes.fromhex("020100"), bytes.fromhex("020101"), 1)  # status 1: granted, with changes
    assert timestamp.verify(with_mods, DIGEST, [authority.root_file]) == stamp


def test_a_stamp_outlives_its_certificate(tmp_path):
    """What counts is the time of the stamp: the signer's certificate ran out long ago, or is not yet valid now."""
    key = rsa.generate_private_key(65537, 2048)
    for valid in ((-100, -50), (50, 100)):
        authority = Authority(tmp_path / str(valid[0]), valid=valid, key=key)
        token, then = authority.stamp(DIGEST), NOW.replace(microsecond=0) + 75 * valid[0] // abs(valid[0]) * DAY
        stamp = timestamp.verify(redated(token, key, then), DIGEST, [authority.root_file])
        assert stamp.time == then
        refused(token, authority, "not valid at that time")
        refused(redated(token, key, then + 100 * DAY), authority, "not valid at that time")


def redated(token, key, when):
    """The token as the signer would have made it at another time. key: the signer's, RSA (signatures of one length)."""
    ((_, response),) = timestamp._elements(token)
    _, (_, content) = timestamp._elements(response)
    _, (_, inside) = timestamp._elements(content)
    ((_, signed),) = timestamp._elements(inside)
    parts = [body for _, body in timestamp._elements(signed)]
    ((_, info),) = timestamp._elements(list(timestamp._elements(parts[2]))[1][1])
    new = re.sub(rb"\d{14}Z", when.strftime("%Y%m%d%H%M%SZ").encode(), info, count=1)
    ((_, signer),) = timestamp._elements(parts[-1])
    _, _, _, (_, attributes), _, (_, signature) = timestamp._elements(signer)
    changed = attributes.replace(hashlib.sha256(info).digest(), hashlib.sha256(new).digest())
    again = key.sign(timestamp._wrap(timestamp.SET, changed), padding.PKCS1v15(), hashes.SHA256())
    return token.replace(info, new).replace(attributes, changed).replace(signature, again)


# --- bad ones ---


def test_a_stamp_over_something_else(authority, token):
    refused(token, authority, "something else", OTHER)
    query = authority.query(hashlib.sha512(b"a commitment").hexdigest(), "-sha512", "-cert")
    refused(authority.answer(query), authority, "something else")


def test_a_root_that_nobody_named(authority, token, tmp_path):
    error = refused(token, Authority(tmp_path, name="Other"), "does not lead to a trusted root")
    assert "--timestamp_roots" in error.command
    refused(token, Authority(tmp_path), "not from the authority that it names")
    with pytest.raises(UserError, match="does not lead to a trusted root"):
        timestamp.verify(token, DIGEST)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_changed_byte_is_found(authority, token, place, flip):
    changed = bytearray(token)
    changed[int(place * len(token))] ^= flip
    try:
        stamp = timestamp.verify(bytes(changed), DIGEST, [authority.root_file])
    except UserError as error:
        assert "\n" not in str(error)
    else:  # what is not signed (the status of the answer, the certificates beside) may change, what is said may not
        assert stamp == timestamp.verify(token, DIGEST, [authority.root_file])


def test_a_changed_signature_is_named(authority, token):
    refused(token[:-1] + bytes([token[-1] ^ 1]), authority, "signature is wrong")


@pytest.mark.parametrize("valid,reason", [((-10, -1), "not valid at that time"), ((1, 10), "not valid at that time")])
def test_a_certificate_that_was_not_valid(valid, reason, tmp_path, authority):
    late = Authority(tmp_path, valid=valid)
    refused(late.stamp(DIGEST), late, reason)


def test_a_certificate_for_something_else(authority, token):
    """The signer's key has a second certificate of the same number, which is for web servers or for nothing special."""
    for purpose in (WEB, None):
        serial = authority.signer.certificate.serial_number
        other = authority.issue(purpose=purpose, key=authority.signer.key, serial=serial)
        changed = with_certificates(token, lambda _, other=other: [der(other), der(authority.middle)])
        refused(changed, authority, "not one for time stamps")


def test_a_web_server_can_not_make_authorities(tmp_path):
    """Whoever has any certificate under a trusted root could otherwise issue a signer of their own."""
    made = []

    def signer(authority):
        made.append(authority.issue("www.example", purpose=WEB))
        return Issuer("Own Stamps", made[0], ca=False, purpose=STAMPING)

    authority = Authority(tmp_path, signer=signer)
    token = authority.stamp(DIGEST, chain=[made[0], authority.middle])
    refused(token, authority, "is worth nothing")


def test_a_stamp_without_its_certificate(authority):
    refused(authority.answer(authority.query(DIGEST, "-sha256")), authority, "signer's certificate inside")


def test_a_refusal_gives_the_reason(authority):
    refused(authority.answer(b"nonsense"), authority, "refused: .*[Bb]ad request")


@pytest.mark.parametrize(
    "token", [b"", b"0", b"\x30\x80\x00\x00", b"<html>", b"\x30\x00", b"\x30\x02\x30\x00", b"0" * 10**6]
)
def test_what_is_no_stamp(token, tmp_path):
    with pytest.raises(UserError, match=r"no time stamp of RFC 3161"):
        timestamp.verify(token, DIGEST)
    (tmp_path / "stamp.tsr").write_bytes(token)
    with pytest.raises(UserError, match=r"no time stamp of RFC 3161"):
        timestamp.read(tmp_path / "stamp.tsr", DIGEST)


@settings(max_examples=200)
@given(st.binary(max_size=60))
def test_any_bytes_are_refused_in_one_line(token):
    with pytest.raises(UserError):
        timestamp.verify(token, DIGEST)


def test_files_and_digests_that_are_not_there(authority, token, tmp_path):
    for path in (tmp_path / "nowhere.tsr", tmp_path):
        with pytest.raises(UserError, match="is no file"):
            timestamp.read(path, DIGEST)
        with pytest.raises(UserError, match=r"certificates|does not exist"):
            timestamp.verify(token, DIGEST, [path])
    (tmp_path / "empty.pem").write_text("nothing")
    for roots in ([tmp_path / "empty.pem"], []):
        with pytest.raises(UserError, match="certificates"):
            timestamp.verify(token, DIGEST, roots)
    for digest in (DIGEST[:-1], DIGEST.upper(), b"x", None):
        with pytest.raises(UserError, match="64 hexadecimal"):
            timestamp.verify(token, digest, [authority.root_file])


# --- asking for one ---


def test_an_authority_is_asked_over_http(authority):
    with serving(lambda method, path, body: (200, {}, authority.answer(body))) as (address, requests):
        token = timestamp.request(f"{address}/tsr", DIGEST)
        assert timestamp.verify(token, DIGEST, [authority.root_file]).authority == "Test Stamps (Tests)"
        assert timestamp.request(f"{address}/tsr", DIGEST) != token
    method, path, headers, body = requests[0]
    assert (method, path, headers["Content-Type"]) == ("POST", "/tsr", "application/timestamp-query")
    by_openssl = authority.query(DIGEST)
    assert body[2:] != requests[1][3][2:] and body[2:56] == by_openssl[2:56] and body[-3:] == by_openssl[-3:]


@pytest.mark.parametrize(
    "reply,reason",
    [
        ((500, {}, b""), "answered 500"),
        ((302, {"Location": "/other"}, b""), "answered 302"),
        ((200, {}, b"<html>"), "no time stamp of RFC 3161"),
        ((200, {}, b"0" * 10**6), "longer than"),
        (None, "no answer within"),
    ],
)
def test_authorities_that_give_none(reply, reason, monkeypatch):
    monkeypatch.setattr(timestamp, "TIMEOUT", 5.0 if reply else 0.3)
    with serving(lambda *_: reply) as (address, requests), pytest.raises(UserError, match=reason) as error:
        timestamp.request(address, DIGEST)
    assert len(requests) == 1 and "\n" not in str(error.value)


def test_an_old_answer_is_not_taken_for_a_new_one(authority, token):
    with serving(lambda *_: (200, {}, token)) as (address, _):
        with pytest.raises(UserError, match="answers another request"):
            timestamp.request(address, DIGEST)
        with pytest.raises(UserError, match="something else"):
            timestamp.request(address, OTHER)


@pytest.mark.parametrize("url", ["timestamp.example", "http://me:secret@host/", "file:///etc/passwd"])
def test_addresses_that_are_none(url):
    with pytest.raises(UserError, match="must be an address") as error:
        timestamp.request(url, DIGEST)
    assert "secret" not in str(error.value)


# --- what is trusted ---


def test_the_pinned_roots_are_the_ones_in_the_file():
    roots = x509.load_pem_x509_certificates(timestamp.ROOTS.read_bytes())
    assert [root.fingerprint(hashes.SHA256()).hex() for root in roots] == list(timestamp.PINNED)
    for root in roots:
        root.verify_directly_issued_by(root)
        assert root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_library_that_is_missing_or_takes_forgeries_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0.2")
    with pytest.raises(UserError, match="newer rfc3161-client"):
        timestamp.verify(b"", DIGEST)
    monkeypatch.setitem(sys.modules, "rfc3161_client", None)
    with pytest.raises(UserError, match="pip install rfc3161-client"):
        timestamp.verify(b"", DIGEST)
