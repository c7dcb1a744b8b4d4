"""The key that exports of one state folder are signed with."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from trephine.app.storage.files import write_whole


def signing_key(folder: Path, given: Path | None = None) -> Path:
    """Return the PEM file of the P-256 private key that signs.

    Args:
        folder: Of the state. Its own key, `signing.pem`, is made once, readable by its owner alone. The
            public half of whichever key signs lies there as `signing.pub.pem`, for those who verify.
        given: A key from elsewhere, which signs instead.
    """
    private = given or folder / "signing.pem"
    if not given and not private.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        write_whole(private, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public, half = folder / "signing.pub.pem", public_half_of(private)
    if half is None:  # what it is worth is said by the first export; a key of before must not seem to be it
        public.unlink(missing_ok=True)
    elif not public.is_file() or public.read_bytes() != half:
        write_whole(public, half, mode=0o644)
    return private


def public_half_of(private: Path) -> bytes | None:
    """Return the public half of a private key's PEM file, as exports carry it; None: it cannot be read."""
    try:
        key = load_pem_private_key(private.read_bytes(), password=None)
    except (OSError, ValueError, TypeError):
        return None
    return _public_half(key) if isinstance(key, ec.EllipticCurvePrivateKey) else None


def _public_half(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
