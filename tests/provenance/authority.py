"""For tests: an authority for time stamps with its own root, whose stamps `openssl ts` makes."""

import datetime
import shutil
import subprocess
from functools import lru_cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)
STAMPING, WEB = [ExtendedKeyUsageOID.TIME_STAMPING], [ExtendedKeyUsageOID.SERVER_AUTH]
POLICY = "1.2.3.4.1"
CONFIGURATION = f"""
[tsa]
default_tsa = stamps
[stamps]
serial = {{folder}}/serial
signer_digest = sha256
default_policy = {POLICY}
other_policies = {POLICY}
digests = sha256, sha512
ordering = no
tsa_name = yes
ess_cert_id_alg = sha256
"""


@lru_cache
def have_openssl():
    """Whether this machine's openssl makes time stamps (very old ones and stand-ins do not)."""
    if shutil.which("openssl") is None:
        return False
    done = subprocess.run(["openssl", "ts", "-help"], capture_output=True, text=True)
    return done.returncode == 0 and "-queryfile" in done.stdout + done.stderr


class Issuer:
    """A certificate and its key, which issues further ones."""

    def __init__(self, name, issuer=None, ca=True, purpose=None, valid=(-10, 10), key=None, serial=None):
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, name),
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tests"),
            ]
        )
        issuer = issuer or self
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(issuer.name)
            .public_key(self.key.public_key())
            .serial_number(serial or x509.random_serial_number())
            .not_valid_before(NOW + valid[0] * DAY)
            .not_valid_after(NOW + valid[1] * DAY)
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
        )
        if purpose:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purpose), critical=True)
        self.certificate = builder.sign(issuer.key, hashes.SHA256())

    def save(self, path):
        """Write the certificate as PEM; returns the path."""
        path.write_bytes(self.certificate.public_bytes(Encoding.PEM))
        return path


class Authority:
    """Root, intermediate and signer in a folder. signer: an Issuer of one's own, None for a proper one.

    Skips the test where there is no openssl ts.
    """

    def __init__(self, folder, signer=None, name="Test", **settings):
        if not have_openssl():
            pytest.skip("the tests' authority needs the command openssl ts")
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.root = Issuer(f"{name} Root", valid=(-1000, 1000))
        self.middle = Issuer(f"{name} Middle", self.root, valid=(-1000, 1000))
        self.signer = signer(self) if signer else self.issue(**settings)
        self.root_file = self.root.save(folder / "root.pem")
        (folder / "serial").write_text("0A\n")
        (folder / "tsa.cnf").write_text(CONFIGURATION.format(folder=folder))

    def issue(self, name="Test Stamps", **settings):
        """A signer's certificate from the intermediate."""
        return Issuer(name, self.middle, **{"ca": False, "purpose": STAMPING, **settings})

    def query(self, digest, *flags):
        """A TimeStampReq over a hex digest, as openssl makes it."""
        flags = flags or ("-sha256", "-cert")
        self._run("-query", "-digest", digest, *flags, "-out", self.folder / "query.tsq")
        return (self.folder / "query.tsq").read_bytes()

    def answer(self, query, *flags, chain=None):
        """The TimeStampResp of a TimeStampReq, as openssl makes it; chain: the Issuers whose certificates go along."""
        (self.folder / "question.tsq").write_bytes(query)
        key = self.signer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (self.folder / "signer.key").write_bytes(key)
        signer = self.signer.save(self.folder / "signer.pem")
        pem = b"".join(i.certificate.public_bytes(Encoding.PEM) for i in chain or [self.middle])
        (self.folder / "chain.pem").write_bytes(pem)
        files = ["-config", self.folder / "tsa.cnf", "-queryfile", self.folder / "question.tsq", "-signer", signer]
        files += ["-inkey", self.folder / "signer.key", "-chain", self.folder / "chain.pem"]
        self._run("-reply", *files, *flags, "-out", self.folder / "answer.tsr")
        return (self.folder / "answer.tsr").read_bytes()

    def stamp(self, digest, *flags, **settings):
        """The TimeStampResp over a hex SHA-256."""
        return self.answer(self.query(digest), *flags, **settings)

    def _run(self, *arguments):
        done = subprocess.run(["openssl", "ts", *map(str, arguments)], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
