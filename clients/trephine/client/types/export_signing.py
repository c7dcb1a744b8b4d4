"""Who signed a published folder."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trephine.client.decoding import WireValue


class SignatureKind(StrEnum):
    """What a signature was made with."""

    UNSPECIFIED = "unspecified"
    KEY = "key"
    SIGSTORE = "sigstore"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedBy(WireValue):
    """Who signed a folder."""

    kind: SignatureKind
    identity: str = ""
    """Of Sigstore: an address, or the URI of a workflow."""
    identity_provider: str = ""
    """Of Sigstore: URL of who vouches for the identity."""

    def __str__(self) -> str:
        if self.kind is SignatureKind.SIGSTORE:
            return f"{self.identity}, for whom {self.identity_provider} vouches"
        return "the server's key"
