"""A key and a certificate with which a user's Rays on one machine know each other: whoever lacks the key says nothing to them.

Ray's token alone does not do: it is shown to whoever listens at the port of a head that has ended, and Ray 2.60 has a call that
ends its servers before they look at the token. With mutual TLS (`RAY_USE_TLS`) a server answers nobody, and a client tells
nobody anything, without the key. It is made once, in the user's home, and names 127.0.0.1 alone. Imports no Ray.
"""

import ipaddress
import logging
import shutil
import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path

from refbert.atomic import first_whole_folder
from vector_store.server.access import private

log = logging.getLogger(__name__)

FOLDER = Path(".ray") / "refbert-tls"
"""Where key and certificate are, below the user's home."""

KEY, CERTIFICATE = "key.pem", "certificate.pem"

LOOPBACK = "127.0.0.1"

VALID = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)
"""From a day before any clock of today to one after any Ray of today."""

SWITCH = "RAY_USE_TLS"
TLS_VARIABLES = (SWITCH, "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")
"""What Ray reads. The certificate vouches for itself."""


def tls_environment() -> dict[str, str]:
    """Return what a Ray on loopback is to see, by `TLS_VARIABLES`; makes key and certificate where they are missing or damaged.

    Empty, with a warning, where the home cannot have them: Ray's token is all that protects it then.
    """
    folder = Path.home() / FOLDER
    try:
        if not _are_whole(folder):
            _make(folder)
        for path in (folder, folder / KEY):
            if path.stat().st_mode & 0o077:
                path.chmod(0o700 if path.is_dir() else 0o600)
                log.warning(
                    "%s was open to other users of this machine: it is not any more, but who has read it may use it; delete "
                    "it when none of your Rays runs, and a new one is made", path,
                )  # fmt: skip
    except OSError as error:
        log.warning(
            "cannot make %s (%s): other users of this machine may end your Ray, and then read its token",
            folder,
            error.strerror,
        )
        return {}
    certificate = str(folder / CERTIFICATE)
    return dict(zip(TLS_VARIABLES, ("1", certificate, str(folder / KEY), certificate), strict=True))


def asks_for_our_key(host: str, port: int, timeout_s: float) -> bool:
    """Whether who listens there has this user's key, and so is a Ray of this user's that wants to see it.

    Raises TimeoutError where it accepts a connection and then says nothing.
    """
    folder = Path.home() / FOLDER
    if not _are_whole(folder):
        return False
    context = ssl.create_default_context(cafile=folder / CERTIFICATE)
    context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, port), timeout=timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return True
    except TimeoutError:
        raise
    except OSError:  # nobody listens, or it is no TLS or another's: ssl's errors are of this class
        return False


def _are_whole(folder: Path) -> bool:
    """Whether key and certificate are there, and belong together."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(folder / CERTIFICATE, folder / KEY)
    except OSError:  # ssl's errors, too
        return False
    return True


def _make(folder: Path) -> None:
    """Make both, in the place of damaged ones, unless another job was faster."""
    with first_whole_folder(folder) as draft:
        draft.chmod(0o700)
        for name, content in zip((KEY, CERTIFICATE), _key_and_certificate(), strict=True):
            with open(draft / name, "wb", opener=private) as file:
                file.write(content)
        if folder.exists() and not _are_whole(folder):
            shutil.rmtree(folder)


def _key_and_certificate() -> tuple[bytes, bytes]:
    """Return a new key and its certificate in PEM: for 127.0.0.1, of servers and clients."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "refbert")])
    names = [x509.IPAddress(ipaddress.ip_address(LOOPBACK)), x509.DNSName("localhost")]
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), *VALID)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private, certificate.public_bytes(pem)
