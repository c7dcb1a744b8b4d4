"""Ways in which signing with an identity can refuse: out of reach, nobody to sign as, the other kind."""

from __future__ import annotations

from trephine.domain.error_root import ErrorKind, TrephineError


class SigstoreUnreachableError(TrephineError):
    """Sigstore does not answer, or does not finish; a key file signs without a network."""

    kind = ErrorKind.UNAVAILABLE
    reason = "SIGSTORE_UNREACHABLE"


class SigningIdentityError(TrephineError):
    """No identity token, or one that is expired, lost or refused; the message says where tokens come from."""

    kind = ErrorKind.PRECONDITION
    reason = "SIGNING_IDENTITY"


class SignatureKindError(TrephineError):
    """A folder signed with a key is asked for an identity, or the other way round."""

    kind = ErrorKind.PRECONDITION
    reason = "SIGNATURE_KIND"
