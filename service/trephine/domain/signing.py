"""Signing of published folders: with the server's key, or as an identity that Sigstore vouches for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

SIGNATURE_NAME = "trephine.sig"
PUBLIC_KEY_NAME = "public_key.pem"
SUMS_NAME = "trephine.sha256"
UNSIGNED = (SIGNATURE_NAME, SUMS_NAME)
"""The signature cannot cover itself, nor the list of digests that covers the signature."""

SIGSTORE_AUDIENCE = "sigstore"
"""Whom an identity token must be meant for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedBy:
    """Who signed a folder."""

    kind: Literal["key", "sigstore"] = "key"
    identity: str = ""
    """Of Sigstore: an address, or the URI of a workflow. Empty for keys."""
    identity_provider: str = ""
    """Of Sigstore: URL of who vouches for the identity. Empty for keys."""


class IdentitySigner(Protocol):
    """Signs as an identity. Tokens go from memory to memory: none is written, logged or told to an engine.

    Where no token is given, the signer has one of its own or finds what its machine offers, anew each time.
    """

    async def require(self, token: str | None) -> SignedBy:
        """Say as whom it would sign now, before any work.

        Raises:
            SigningIdentityError: If there is no token, or one that is not good.
            SigstoreUnreachableError: If a signature could not be made now.
        """
        ...

    async def sign(self, folder: Path, token: str | None) -> SignedBy:
        """Write the folder's signature, over every file but `UNSIGNED`.

        Raises:
            TrephineError: As `require` does; nothing is written then.
        """
        ...
