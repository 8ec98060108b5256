"""TLS in front of a server that has none, with certificates made for the test."""

import ssl
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from ipaddress import IPv4Address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self
from urllib.parse import quote

from statemgr.testing.proxy import Forwarder

if find_spec("cryptography") is None:
    raise ImportError(f"{__name__} needs cryptography: pip install 'statemgr[crypto]'")

from cryptography import x509  # only once it is known to be there
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class TlsProxy(Forwarder):
    """Take TLS connections on 127.0.0.1 and forward them to a plain port.

    The certificate names 127.0.0.1 and localhost, and is signed by a CA of its own that
    nobody else trusts. Entering makes both, leaving deletes them.

    Args:
        host: Where to forward to.
        port: Where to forward to.

    Attributes:
        port: Where it listens, once entered.
        ca_file: The CA's certificate, by which a client checks the server's.
    """

    ca_file: Path

    async def __aenter__(self) -> Self:
        self._directory = TemporaryDirectory(prefix="statemgr-tls-")
        self.ca_file = Path(self._directory.name, "ca.pem")
        try:
            return await super().__aenter__()
        except BaseException:
            self._directory.cleanup()
            raise

    async def __aexit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        try:
            await super().__aexit__(error_type)
        finally:
            self._directory.cleanup()

    @property
    def url(self) -> str:
        """Where a client of redis-py connects, and by what it checks the server."""
        return f"rediss://127.0.0.1:{self.port}?ssl_ca_certs={quote(str(self.ca_file))}"

    def tls_context(self) -> ssl.SSLContext:
        """Make the certificates, and return a context that shows the server's."""
        certificate = self.ca_file.with_name("server.pem")
        _write_certificates(self.ca_file, certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        return context


def _write_certificates(ca_file: Path, server_file: Path) -> None:
    """Write the CA's certificate, and the server's certificate with its key."""
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = _name("statemgr test CA")
    issued_by_ca = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    ca = (
        _certificate(ca_name, ca_name, ca_key.public_key(), is_ca=True)
        .add_extension(issued_by_ca, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))]
    server = (
        _certificate(_name("localhost"), ca_name, key.public_key(), is_ca=False)
        .add_extension(issued_by_ca, critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    ca_file.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    server_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + server.public_bytes(serialization.Encoding.PEM)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, is_ca: bool
) -> x509.CertificateBuilder:
    """Return a certificate to be signed, with all that Python 3.13 asks of one."""
    now = datetime.now(UTC)
    usage = x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )
