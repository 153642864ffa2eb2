"""The date of a commitment: time stamps of RFC 3161, which a public authority signs and anybody can check offline.

An authority signs "I saw this SHA-256 at this time". `request` asks one over HTTP; `read` takes a .tsr file that was
fetched elsewhere (openssl ts -query -digest DIGEST -sha256 -cert -out q.tsq; curl -H "Content-Type:
application/timestamp-query" --data-binary @q.tsq URL -o stamp.tsr); `verify` says what a stamp is worth.

Signature, certificate chain up to a trusted root, its validity at the stamp's time and its purpose are checked by
rfc3161-client (OpenSSL inside). That a certificate was withdrawn later is not: revocation lists need a network.

Public: request, read, verify, Stamp, PINNED.
"""

import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from kit.errors import UserError, optional
from kit.web import NoAnswer, ask, check_address

# Roots in Mozilla's list (by way of certifi) that public authorities for time stamps lead to, by SHA-256 of the
# certificate, kept in a file of our own: what was a root when a stamp was made is one for that stamp for ever.
ROOTS = Path(__file__).with_name("timestamp_roots.pem")
PINNED = {
    "552f7bdcf1a7af9e6ce672017f4f12abf77240c78e761ac203d1d9d20ac89988": "DigiCert G4: timestamp.digicert.com",
    "2cabeafe37d06ca22aba7391c0033d25982952c453647349763a3ab5ad6ccf69": "GlobalSign R6: timestamp.globalsign.com",
    "e793c9b02fd8aa13e21c31228accb08119643b749c898964b1746d46c3d4cbd2": "USERTrust RSA: timestamp.sectigo.com",
    "5d56499be4d2e08bcfcad08a3e38723d50503bde706948e42f55603019e528ae": "IdenTrust Commercial: timestamp.identrust.com",
    "30d0895a9a448a262091635522d1f52010b5867acae12c78ef958fd4f4389f2f": "IdenTrust Public: timestamp.identrust.com",
    "85666a562ee0be5ce925c1d8890a6f76a87ec16d4d7d5f29ea7419cf20123b69": "SSL.com Root RSA: ts.ssl.com",
    "b676f2eddae8775cd36cb0f63cd1d4603961f49e6265ba013a2f0307b6d0b804": "Certum Network 2: time.certum.pl",
}
SHA256 = "2.16.840.1.101.3.4.2.1"
IMPRINT = bytes.fromhex("3031300d060960864801650304020105000420")  # MessageImprint of a SHA-256, but for its 32 bytes
GRANTED, STATUS_GRANTED = (0, 1), bytes.fromhex("3003020100")
INTEGER, OID, SEQUENCE, SET, CHOICE_0, CHOICE_1 = 0x02, 0x06, 0x30, 0x31, 0xA0, 0xA1  # tags of DER
TOKEN_BYTES, TIMEOUT = 2**16, 30.0
OLDEST_LIBRARY = (1, 0, 6)  # before it, a stamp's own signature was not checked (CVE-2025-52556), nor whose it was
WHY = {
    "expired": "its certificate was not valid at that time",
    "not yet valid": "its certificate was not valid at that time",
    "issuer certificate": "its certificate does not lead to a trusted root",
    "self": "its certificate does not lead to a trusted root",
    "purpose": "its certificate is not one for time stamps",
    "certificate signature": "a certificate in its chain is not from the authority that it names",
    "invalid CA": "a certificate in its chain is not an authority's",
}


@dataclass(frozen=True)
class Stamp:
    """What a verified time stamp says.

    time: aware datetime, UTC; authority: whose certificate signed it, "name (organisation)"; serial: the stamp's number
    at the authority, hex; policy: the authority's rules, as a dotted object identifier.
    """

    time: datetime
    authority: str
    serial: str
    policy: str


def request(url, digest):
    """Ask the authority at `url` to stamp a SHA-256 (64 hex digits): bytes, a TimeStampResp in DER, as a .tsr file has.

    The answer is of this digest and of this question (its nonce came back); `verify` has to say whether it is genuine.
    Raises UserError.
    """
    check_address(url, "the address of the authority for time stamps", "--timestamp")
    nonce = secrets.randbits(63) | 1 << 62
    question = _query(bytes.fromhex(_checked(digest)), nonce)
    headers = {"Content-Type": "application/timestamp-query", "Accept": "application/timestamp-reply"}
    try:
        token = ask(url, TOKEN_BYTES, TIMEOUT, question, headers)
    except NoAnswer as problem:
        raise UserError(
            f"the authority for time stamps gave none: {problem}", "try again, or another one", flag="--timestamp"
        ) from None
    response = _opened(token, digest)
    if response.tst_info.nonce != nonce:
        raise UserError("the time stamp answers another request", "try again, or another one", flag="--timestamp")
    return response.as_bytes()


def read(path, digest):
    """A time stamp that was fetched elsewhere, of a SHA-256 (64 hex digits), as bytes: a TimeStampResp in DER.

    The file may also have the bare TimeStampToken inside, which is made a TimeStampResp here. Raises UserError.
    """
    try:
        with open(path, "rb") as file:
            token = file.read(TOKEN_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path} is no file", "give the authority's answer (.tsr)", flag="--timestamp") from None
    return _opened(token, _checked(digest)).as_bytes()


def verify(token, digest, roots=None):
    """The Stamp of a token (bytes: TimeStampResp or TimeStampToken, DER) over a SHA-256 (64 hex digits).

    roots: PEM files (paths) with the certificates to trust, None for PINNED. Raises UserError, which names the fault:
    it is of something else, or was changed; its certificate leads to no root, has another purpose or was not valid.
    """
    client = _library()
    response = _opened(token, _checked(digest))
    signer = _signer(response)
    verifier = client.VerifierBuilder(roots=_roots(roots)).build()
    try:
        verifier.verify(response, bytes.fromhex(digest))
    except Exception as error:  # whatever the library stumbles over, the stamp is not verified
        raise _refused(_name(signer), str(error)) from None
    info = response.tst_info
    return Stamp(info.gen_time, _name(signer), f"{info.serial_number:x}", info.policy.dotted_string)


def _checked(digest):
    if not (isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest)):
        raise UserError("what is stamped must be a SHA-256: 64 hexadecimal digits")
    return digest


def _query(digest, nonce):
    """TimeStampReq of RFC 3161, 2.4.1: version 1, imprint, nonce, certificates wanted."""
    number = _wrap(INTEGER, nonce.to_bytes(8, "big"))
    return _wrap(SEQUENCE, b"\x02\x01\x01" + IMPRINT + digest + number + b"\x01\x01\xff")


def _library():
    client = optional("rfc3161_client", "a time stamp", "rfc3161-client")
    from importlib.metadata import version

    numbers = tuple(int(number) for number in re.findall(r"\d+", version("rfc3161-client"))[:3])
    if numbers < OLDEST_LIBRARY:
        raise UserError("a time stamp needs a newer rfc3161-client: pip install --upgrade rfc3161-client")
    return client


def _opened(token, digest):
    """The library's TimeStampResponse of bytes, which is of this digest. Nothing else about it is checked here."""
    client = _library()
    try:
        response = client.decode_timestamp_response(_canonical(token))
        imprint = response.tst_info.message_imprint
    except (ValueError, IndexError):
        raise UserError(
            "that is no time stamp of RFC 3161 (DER)", "give the authority's answer (.tsr)", flag="--timestamp"
        ) from None
    if imprint.hash_algorithm.dotted_string != SHA256 or imprint.message.hex() != digest:
        raise UserError(
            "the time stamp is of something else",
            f"it must be of the SHA-256 {digest}, but is of {imprint.message.hex()[:128]}",
            flag="--timestamp",
        )
    return response


def _canonical(token):
    """A TimeStampResp or bare TimeStampToken as the library reads it: a granted TimeStampResp with its sets in order.

    Many authorities, DigiCert among them, do not sort the certificates as DER wants; the signature does not cover them.
    Raises ValueError for what is neither, UserError for a refusal.
    """
    if len(token) > TOKEN_BYTES:
        raise ValueError("too long")
    ((_, body),) = _elements(token)
    parts = list(_elements(body))
    if parts[0][0][0] != OID:  # a TimeStampResp: status, then the token
        status = list(_elements(parts[0][1]))
        if int.from_bytes(status[0][1], "big") not in GRANTED:
            raise _rejected(status)
        ((_, body),) = _elements(parts[1][0])
        parts = list(_elements(body))
    (kind, _), (_, content) = parts
    ((_, signed),) = _elements(content)
    signed = b"".join(_in_order(whole, inside) for whole, inside in _elements(signed))
    return _wrap(SEQUENCE, STATUS_GRANTED + _wrap(SEQUENCE, kind + _wrap(CHOICE_0, _wrap(SEQUENCE, signed))))


def _in_order(whole, inside):
    if whole[0] not in (SET, CHOICE_0, CHOICE_1):
        return whole
    return _wrap(whole[0], b"".join(sorted(element for element, _ in _elements(inside))))


def _elements(data):
    """(whole, content) of the DER values that stand one after another in `data`. Raises ValueError."""
    while data:
        size, start = data[1] if len(data) > 1 else 0, 2
        if size & 0x80:
            start += size & 0x7F
            if not 3 <= start <= 6:
                raise ValueError("no definite length")
            size = int.from_bytes(data[2:start], "big")
        if len(data) < start + size:
            raise ValueError("ends early")
        yield data[: start + size], data[start : start + size]
        data = data[start + size :]


def _wrap(tag, content):
    size = len(content)
    long = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, size] if size < 0x80 else [tag, 0x80 | len(long), *long]) + content


def _rejected(status):
    texts = [text for whole, inside in status[1:] if whole[0] == SEQUENCE for _, text in _elements(inside)]
    reason = _printable(b" ".join(texts).decode("utf-8", "replace")) or "no reason given"
    return UserError(
        f"the authority for time stamps refused: {reason[:200]}", "ask again, or another one", flag="--timestamp"
    )


def _signer(response):
    """The certificate that the stamp names as its signer's, from the stamp. Raises UserError."""
    from cryptography import x509

    try:
        (signer,) = response.signed_data.signer_infos
        found = [x509.load_der_x509_certificate(content) for content in response.signed_data.certificates]
        (found,) = [c for c in found if (c.issuer, c.serial_number) == (signer.issuer, signer.serial_number)]
    except Exception:  # none, several, or what cryptography can't read, for which it has many errors
        raise UserError(
            "the time stamp does not have its signer's certificate inside",
            "ask for it in the request (openssl ts -query ... -cert)",
            flag="--timestamp",
        ) from None
    return found


def _name(certificate):
    from cryptography.x509.oid import NameOID

    try:
        name, organisation = (
            _printable(" ".join(str(part.value) for part in certificate.subject.get_attributes_for_oid(kind)))
            for kind in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME)
        )
    except ValueError:  # names are read only now
        name = organisation = ""
    return (f"{name} ({organisation})" if name and organisation else name or organisation or "nobody")[:200]


def _printable(text):
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _roots(paths):
    """The certificates in PEM files."""
    from cryptography import x509

    roots = []
    for path in [ROOTS] if paths is None else [paths] if isinstance(paths, str | Path) else paths:
        try:
            roots += x509.load_pem_x509_certificates(Path(path).read_bytes())
        except FileNotFoundError:
            raise UserError(f"{path} does not exist", "check the path", flag="--timestamp_roots") from None
        except (ValueError, IsADirectoryError):
            raise UserError(f"{path} has no certificates in PEM form", flag="--timestamp_roots") from None
    if not roots:
        raise UserError("no root certificates are given", flag="--timestamp_roots")
    return roots


def _refused(authority, error):
    """The UserError about a stamp whose signature or certificates are wrong; `error` is the library's account."""
    found = re.search(r"Verify error: ([\w \-]+)", error)
    reason = next((why for part, why in WHY.items() if found and part in found[1]), None)
    reason = reason or (WHY["purpose"] if "EKU" in error else "its signature is wrong, or it was changed afterwards")
    unknown = reason == WHY["self"]
    return UserError(
        f"the time stamp in the name of {authority} is worth nothing: {reason}",
        "ask an authority whose root is known" if unknown else "ask for another one",
        "or name its root in --timestamp_roots" if unknown else None,
        flag="--timestamp",
    )
