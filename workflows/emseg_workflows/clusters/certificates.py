"""Certificates of one run alone: who holds their key may join its Dask cluster, nobody else."""

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
"""Longer than any run; what ends a certificate is that its scheduler has gone."""
CLOCK_SKEW = timedelta(days=1)
"""How far the clocks of a run's hosts may differ."""


@contextmanager
def run_security(folder: Path) -> Iterator[Security]:
    """TLS with a new key and certificate in a new folder, which is removed at the end.

    Workers on other hosts join with the same files, so the folder must be one that they see. Only this user can read it.

    Raises
    ------
    FileExistsError
        If there is such a folder already.
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
        shutil.rmtree(folder, ignore_errors=True)  # nothing accepts this key any more


def _key_and_certificate() -> tuple[bytes, bytes]:
    """A new private key and a certificate that it has signed itself, both PEM."""
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat  # noqa: PLC0415

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
