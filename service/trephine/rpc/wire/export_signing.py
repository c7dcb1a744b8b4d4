"""Who signs a published folder, and who signed it. A token is read here once and goes on in memory."""

from __future__ import annotations

from trephine.domain.errors import InvalidRequestError
from trephine.domain.signing import SignedBy
from trephine.rpc.wire.fields import clean
from trephine.v1 import edit_service_pb2, export_signing_pb2

_KINDS = {
    "key": export_signing_pb2.SIGNATURE_KIND_KEY,
    "sigstore": export_signing_pb2.SIGNATURE_KIND_SIGSTORE,
}
_LONGEST_TOKEN = 16 << 10
_LONGEST_NAME = 2048


def signed_by_to_wire(signed_by: SignedBy | None) -> export_signing_pb2.SignedBy | None:
    """Write who signed a folder."""
    if signed_by is None:
        return None
    return export_signing_pb2.SignedBy(
        kind=_KINDS[signed_by.kind],
        identity=clean(signed_by.identity),
        identity_provider=clean(signed_by.identity_provider),
    )


def identity_token(request: edit_service_pb2.ExportCheckpointRequest) -> str | None:
    """Read the token that an export is to be signed with; None: the request brings none.

    Raises:
        InvalidRequestError: If it is no token; the message never quotes it.
    """
    if not request.sigstore.HasField("identity_token"):
        return None
    token: str = request.sigstore.identity_token.strip()
    if not token.isascii() or token.count(".") != 2 or len(token) > _LONGEST_TOKEN:
        raise InvalidRequestError(
            "the identity token must be an OpenID Connect token: three parts of base64, joined by dots",
            field="sigstore.identity_token",
        )
    return token


def wanted_signer(request: edit_service_pb2.VerifyExportRequest) -> SignedBy | None:
    """Read who must have signed an export; None: anybody.

    Raises:
        InvalidRequestError: If half of an identity is given.
    """
    if not request.identity and not request.identity_provider:
        return None
    for field, value in (("identity", request.identity), ("identity_provider", request.identity_provider)):
        if not value or not value.isprintable() or len(value) > _LONGEST_NAME:
            raise InvalidRequestError(
                "identity and identity_provider go together, each a line of text: who signed, and the URL of "
                "who vouches for it",
                field=field,
            )
    return SignedBy(kind="sigstore", identity=request.identity, identity_provider=request.identity_provider)
