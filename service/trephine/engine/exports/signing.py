"""Signing a checkpoint folder with a key, in the OpenSSF model-signing format (a bundle over all files).

Signatures as an identity are not made here: an engine has no network and sees no tokens.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from trephine.domain.errors import InvalidRequestError
from trephine.domain.signing import PUBLIC_KEY_NAME as PUBLIC_KEY_NAME
from trephine.domain.signing import SIGNATURE_NAME as SIGNATURE_NAME
from trephine.domain.signing import SUMS_NAME as SUMS_NAME
from trephine.domain.signing import UNSIGNED as UNSIGNED
from trephine.engine.models.staging import full_disk_refused

_POLL_SECONDS = 0.03


def write_public_key(private_key: Path, folder: Path) -> None:
    """Put the public half of a PEM private key (P-256, P-384 or P-521, without a password) into the folder.

    Raises:
        InvalidRequestError: If the file is no such key.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_private_key(private_key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise InvalidRequestError(
            "the signing key cannot be read: give a PEM file with an elliptic curve private key without a "
            f"password ({type(error).__name__})",
            field="signing_key",
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InvalidRequestError(
            "the signing key must be an elliptic curve key (P-256)", field="signing_key"
        )
    pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (folder / PUBLIC_KEY_NAME).write_bytes(pem)


def sign_folder(private_key: Path, folder: Path) -> Generator[None, None, None]:
    """Sign every file of the folder but `UNSIGNED`; the bundle is `trephine.sig` inside it.

    Hashing runs in a thread, because the library has no smaller piece of work than the whole folder.

    Raises:
        DiskFullError: If there is no room for the signature.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        signed = pool.submit(_sign, private_key, folder)
        while not signed.done():
            wait((signed,), timeout=_POLL_SECONDS)
            yield
    with full_disk_refused():
        signed.result()


def _sign(private_key: Path, folder: Path) -> None:
    import model_signing

    signature = folder / SIGNATURE_NAME
    hashing = model_signing.hashing.Config().set_ignored_paths(paths=UNSIGNED, ignore_git_paths=False)
    config = model_signing.signing.Config().set_hashing_config(hashing)
    config.use_elliptic_key_signer(private_key=private_key).sign(folder, signature)
