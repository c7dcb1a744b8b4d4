"""Sign a folder as an identity, in a process of its own: one order on stdin, one answer on stdout.

    python -P -m trephine.server.sigstore_signing

It is a process because the libraries below it block on the network without a limit: this one can be killed.
The order comes by stdin, so that a token stands in no list of processes. The answer is one line of JSON: who
signs, or `{"error": {"reason": ..., "message": ...}}`. Nothing here opens a browser or asks on a terminal.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trephine.domain.disk import why_no_room
from trephine.domain.errors import (
    DiskFullError,
    SigningIdentityError,
    SigstoreUnreachableError,
    TrephineError,
)
from trephine.domain.signing import SIGNATURE_NAME, SIGSTORE_AUDIENCE, UNSIGNED

PROBE_SECONDS = 10.0
_ISSUER = "1.3.6.1.4.1.57264.1.1"
"""Fulcio's extension with the URL of who vouched for the identity, as plain bytes."""
_KEY = "a key file signs without a network: export again without Sigstore"
_SOURCES = (
    "run the server in a CI job that is granted identity tokens (id-token: write), give the server "
    "--sigstore-token-file, or give a token with the export"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be done."""

    folder: str | None = None
    """To be signed; None: only say whether it could be."""
    token: str | None = None
    """The identity token; None: the one in `token_file`, or what the environment offers."""
    token_file: str | None = None
    trust_config: str | None = None
    """Of another Sigstore than the public one."""


def carry_out(order: Order) -> dict[str, str]:
    """Sign, or only look whether it could be done; return identity and identity provider.

    Raises:
        SigningIdentityError: If there is no token, or one that is not good.
        SigstoreUnreachableError: If Sigstore does not answer.
    """
    token = _token(order)
    identity = _identity(token)
    if order.folder is None:
        _reach(order)
        return {"identity": identity.identity, "identity_provider": identity.issuer}
    return _sign(order, token)


def _token(order: Order) -> str:
    """The token as text: the one that is given, the file's, or the environment's."""
    if order.token is not None:
        return order.token
    if order.token_file is not None:
        try:
            return Path(order.token_file).read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise SigningIdentityError(
                f"the server's file with an identity token cannot be read ({type(error).__name__}); "
                "see its setting sigstore_token_file"
            ) from error
    from sigstore.oidc import detect_credential

    found = detect_credential(SIGSTORE_AUDIENCE)
    if found is None:
        raise SigningIdentityError(f"the server has no identity to sign as: {_SOURCES}")
    return found


def _identity(token: str) -> Any:
    from sigstore.oidc import IdentityToken

    return IdentityToken(token, SIGSTORE_AUDIENCE)


def _reach(order: Order) -> None:
    """Ask every service that a signature needs for an answer, whatever it is."""
    import requests

    services = _trust(order).signing_config
    for url in (services.get_fulcio().url, services.get_tlogs()[0].url):
        requests.get(url, timeout=PROBE_SECONDS, allow_redirects=False)


def _trust(order: Order) -> Any:
    from sigstore.models import ClientTrustConfig

    if order.trust_config is None:
        return ClientTrustConfig.production()
    try:
        return ClientTrustConfig.from_json(Path(order.trust_config).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SigstoreUnreachableError(
            "the server's file of another Sigstore cannot be read as a trust configuration "
            f"({type(error).__name__}); see its setting sigstore_trust_config, or export without Sigstore"
        ) from error


def _sign(order: Order, token: str) -> dict[str, str]:
    import model_signing
    from sigstore.models import Bundle

    folder = Path(order.folder or "")
    signature = folder / SIGNATURE_NAME
    hashing = model_signing.hashing.Config().set_ignored_paths(paths=UNSIGNED, ignore_git_paths=False)
    config = model_signing.signing.Config().set_hashing_config(hashing)
    trust = None if order.trust_config is None else Path(order.trust_config)
    config.use_sigstore_signer(identity_token=token, trust_config=trust).sign(folder, signature)
    return signer_of(Bundle.from_json(signature.read_bytes()).signing_certificate)


def signer_of(certificate: Any) -> dict[str, str]:
    """Read from a signing certificate as whom it signs, and who vouched for that."""
    from cryptography.x509 import ObjectIdentifier, SubjectAlternativeName

    names = list(certificate.extensions.get_extension_for_class(SubjectAlternativeName).value)
    issuer = certificate.extensions.get_extension_for_oid(ObjectIdentifier(_ISSUER)).value
    return {"identity": str(names[0].value), "identity_provider": issuer.value.decode()}


def translated(error: Exception) -> TrephineError:
    """Say in our words what the libraries raise; their own may quote what they were given."""
    from requests import RequestException
    from sigstore import errors, oidc
    from sigstore._internal.fulcio.client import ExpiredCertificate, FulcioClientError
    from sigstore._internal.rekor import RekorClientError

    if isinstance(error, TrephineError):
        return error
    why = why_no_room(error) if isinstance(error, OSError) else None
    if why is not None:
        return DiskFullError(
            f"no room for the signature: {why}; make room and export again, nothing was kept"
        )
    if isinstance(error, FulcioClientError) and not _is_outage(error):
        return SigningIdentityError(
            "Sigstore's certificate authority refused the identity token; get a new one, meant for the "
            f"audience {SIGSTORE_AUDIENCE!r}, and export again"
        )
    if isinstance(error, oidc.ExpiredIdentity | ExpiredCertificate | oidc.IdentityError):
        return SigningIdentityError(
            f"the identity token cannot be used: {_why(error)}. Tokens live for minutes and must be meant "
            f"for the audience {SIGSTORE_AUDIENCE!r}; where an export takes longer, let the server find its "
            "own when the folder is built: in CI, or with its setting sigstore_token_file"
        )
    if isinstance(error, RekorClientError | FulcioClientError):
        return SigstoreUnreachableError(
            f"Sigstore's services answer, but do not sign now, and nothing was published; {_KEY}, or try "
            "again later"
        )
    network = (errors.NetworkError, errors.TUFError, RequestException, oidc.IssuerError)
    if isinstance(error, network):
        return SigstoreUnreachableError(
            f"Sigstore cannot be reached ({type(error).__name__}), and nothing was published; {_KEY}, or try "
            "again where its services answer"
        )
    return SigstoreUnreachableError(
        f"Sigstore could not sign ({type(error).__name__}), and nothing was published; {_KEY}"
    )


def _is_outage(error: Exception) -> bool:
    """Whether a service answered that the fault is its own."""
    response = getattr(error.__cause__, "response", None)
    return response is not None and response.status_code >= 500


def _why(error: Exception) -> str:
    cause = error.__cause__
    if cause is not None and type(cause).__name__ == "ExpiredSignatureError":
        return "it has expired"
    return str(error).rstrip(".") or "it has expired"


def main() -> int:
    """Carry out the order on stdin; always answer with one line of JSON."""
    order = Order(**json.loads(sys.stdin.buffer.read()))
    try:
        answer: dict[str, Any] = carry_out(order)
    except Exception as error:  # whatever the libraries raise must come back as an answer
        said = translated(error)
        answer = {"error": {"reason": said.reason, "message": said.message}}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
