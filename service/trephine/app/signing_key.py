"""The key that exports of one state folder are signed with."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from trephine.app.files import write_whole


def signing_key(folder: Path) -> Path:
    """Return the PEM file of the folder's P-256 private key, made once, readable by its owner alone.

    The public half lies beside it as `signing.pub.pem`, for those who verify.
    """
    private = folder / "signing.pem"
    if not private.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        write_whole(folder / "signing.pub.pem", public, mode=0o644)
        write_whole(private, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return private
