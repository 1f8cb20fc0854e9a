"""Certificates of a single run: only processes with its key may join its Dask cluster."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from distributed import Security

VALIDITY = timedelta(days=90)
"""Longer than any run; a certificate becomes useless when its scheduler ends."""
CLOCK_SKEW = timedelta(days=1)
"""Maximum difference between the clocks of a run's hosts."""


@contextmanager
def run_security(folder: Path) -> Iterator[Security]:
    """Create a key and a certificate for TLS in a new folder, which is removed at the end of the ``with``.

    Workers on other hosts join with the same files, so they must see the folder. Only this user can read it.

    Parameters
    ----------
    folder
        Path of the new folder.

    Yields
    ------
    Security
        For client, scheduler and workers.

    Raises
    ------
    FileExistsError
        If the folder already exists.
    """
    folder.mkdir(mode=0o700)
    try:
        key, certificate = folder / "key.pem", folder / "certificate.pem"
        for path, content in zip((key, certificate), _key_and_certificate(), strict=True):
            with open(path, "xb", opener=partial(os.open, mode=0o600)) as file:
                file.write(content)
        roles = ("client", "scheduler", "worker")
        yield Security(
            require_encryption=True,
            tls_ca_file=str(certificate),
            **{f"tls_{role}_key": str(key) for role in roles},
            **{f"tls_{role}_cert": str(certificate) for role in roles},
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # nothing accepts this key from now on


def _key_and_certificate() -> tuple[bytes, bytes]:
    """Create a private key and a self-signed certificate, both in PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "emseg run")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + VALIDITY)
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), certificate.public_bytes(Encoding.PEM)
