"""Signatures of exported folders: by a key, or as an identity that Sigstore vouches for. Needs no server.

Checking one needs the package `model-signing`, which comes with the extra `verify`, and with `service`. Where
it is missing, a folder that is signed does not pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from trephine.client.errors import (
    InvalidRequestError,
    SignatureKindError,
    SignatureUncheckedError,
    SigstoreUnreachableError,
)
from trephine.client.local_errors import LocalFileError
from trephine.client.plain_json import parse_json

SIGNATURE = "trephine.sig"
PUBLIC_KEY = "public_key.pem"
SUMS = "trephine.sha256"
_KEYS = "a server's own is signing.pub.pem in its state folder"
_INSTALL = "pip install 'trephine[verify]'"
_ISSUER = "1.3.6.1.4.1.57264.1.1"
"""Sigstore's extension of a certificate with the URL of who vouched for the identity."""
_DIFFERENCES = (
    (r"Hash mismatch for \\?'([^'\\]+)", "{} is not what was signed"),
    (r"Missing files in model .*?': (.*?)[\"'](?:,|\])", "{} was signed and is missing"),
    (r"Extra files found in model .*?': (.*?)[\"'](?:,|\])", "{} was not signed"),
)
"""How the library says that files differ, and how we do."""
_REASONS = (
    ("Key mismatch", "it was made with another key"),
    ("InvalidSignature", "it was altered, or made with another key"),
    ("JSONDecodeError", "it is no signature that can be read"),
    ("UnicodeDecodeError", "it is no signature that can be read"),
    ("KeyError", "it is no signature that can be read"),
    ("FileNotFoundError", f"the folder's own {PUBLIC_KEY} is missing"),
    ("PEM file", f"the folder's own {PUBLIC_KEY} is no public key"),
)
"""What its other errors mean, by what they say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Whose signature is asked for."""

    public_key: Path | None = None
    """PEM file of a key that is trusted; None: the one inside the folder."""
    identity: str | None = None
    """Who must have signed with Sigstore: an address, or the URI of a workflow."""
    identity_provider: str | None = None
    """URL of who must have vouched for the identity."""
    trust_config: Path | None = None
    """JSON file of another Sigstore than the public one."""

    @property
    def given(self) -> str:
        """What was given, for messages; empty: nothing."""
        return "a public key" if self.public_key else "an identity" if self.identity else ""

    def require_usable(self) -> None:
        """Refuse what cannot be asked.

        Raises:
            InvalidRequestError: If half of an identity is given, or both an identity and a key.
            LocalFileError: If a file cannot be read, or the key is none.
        """
        if (self.identity is None) != (self.identity_provider is None):
            raise InvalidRequestError(
                "identity and identity provider go together: who signed, and the URL of who vouches for it, "
                "as in --identity me@example.org --identity-provider https://accounts.google.com",
                field="identity" if self.identity is None else "identity_provider",
            )
        if self.identity is not None and self.public_key is not None:
            raise InvalidRequestError(
                "a folder has one signature: give a public key or an identity, not both", field="public_key"
            )
        if self.public_key is not None:
            _require_public_key(self.public_key)
        if self.trust_config is not None:
            _require_trust_config(self.trust_config)


def require_kind(root: Path, trust: Trust) -> None:
    """Refuse a question that the folder's signature cannot answer.

    Raises:
        SignatureKindError: If a key's signature is asked for an identity, or Sigstore's for a key.
    """
    kind = signature_kind(root / SIGNATURE)
    if kind == "key" and trust.identity is not None:
        raise SignatureKindError(
            f"{root.name} is signed with a key, which names no identity: verify it with --public-key FILE; "
            f"{_KEYS}"
        )
    if kind == "sigstore" and trust.public_key is not None:
        raise SignatureKindError(
            f"{root.name} is signed with Sigstore, as {_said(root)}, and not with a key: verify it with "
            "--identity and --identity-provider"
        )


def signature_kind(signature: Path) -> Literal["key", "sigstore"] | None:
    """Say what made a signature; None: there is none, or it is none that we know."""
    try:
        material = parse_json(signature.read_bytes())["verificationMaterial"]
        if "publicKey" in material:
            return "key"
        return "sigstore" if "certificate" in material else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def check_signature(root: Path, names: list[str], notes: list[str], trust: Trust) -> Iterator[str]:
    """Check the signature of a folder with these files; yield what does not hold, add what was not checked.

    Raises:
        SignatureUncheckedError: If there is one, and nothing here that could check it.
        SigstoreUnreachableError: If Sigstore's trust root is nowhere to be had.
    """
    if SIGNATURE not in names:
        notes.append("not signed: nothing proves who made this folder")
        if trust.given:
            yield f"{SIGNATURE}: missing, and {trust.given} was given"
        if PUBLIC_KEY in names:
            yield f"{SIGNATURE}: missing, though a public key was published"
        return
    try:
        from model_signing.verifying import Config
    except ImportError as error:
        raise SignatureUncheckedError(
            f"{root.name} is signed, and its signature cannot be checked here: {error}. Nothing vouches for "
            f"the folder until it is: {_INSTALL}, then verify again"
        ) from error
    if signature_kind(root / SIGNATURE) == "sigstore":
        yield from _check_sigstore(Config(), root, notes, trust)
        return
    if trust.public_key is None:
        notes.append("signed by the key inside the folder: whole, but only a key of your own proves by whom")
    verifier = Config().use_elliptic_key_verifier
    if trust.public_key is not None:
        _require_elliptic(verifier, trust.public_key)
    problems = list(_verified(lambda: verifier(public_key=trust.public_key or root / PUBLIC_KEY), root))
    if trust.public_key is not None and not problems:
        notes.append(f"signed with the key whose public half is {trust.public_key.name}")
    yield from problems


def _check_sigstore(config: Any, root: Path, notes: list[str], trust: Trust) -> Iterator[str]:
    if trust.identity is None:
        notes.append(
            f"signed with Sigstore; who signed was not checked: the signature says {_said(root)}. Give "
            "--identity and --identity-provider to check it"
        )
        return
    with TemporaryDirectory() as folder:
        trust_root = trust.trust_config or _public_trust(Path(folder), notes)
        problems = list(
            _verified(
                lambda: config.use_sigstore_verifier(
                    identity=trust.identity, oidc_issuer=trust.identity_provider, trust_config=trust_root
                ),
                root,
            )
        )
    if not problems:
        notes.append(f"signed by {trust.identity}, for whom {trust.identity_provider} vouches")
    yield from problems


def _verified(configured: Any, root: Path) -> Iterator[str]:
    from model_signing.hashing import Config as Hashing

    try:
        hashing = Hashing().set_ignored_paths(paths=(SIGNATURE, SUMS), ignore_git_paths=False)
        # The library hashes no link, be it the name of the folder itself: links inside are refused by then.
        whole = root.resolve()
        configured().set_hashing_config(hashing).verify(whole, whole / SIGNATURE)
    except Exception as error:  # the library raises whatever its parsers raise; all of it means "no"
        yield f"{SIGNATURE}: {_unsigned(error)}"


def _public_trust(folder: Path, notes: list[str]) -> Path:
    """Write what the public Sigstore's signatures are held against; without a network, what is at hand.

    Raises:
        SigstoreUnreachableError: If nothing is.
    """
    from sigstore.errors import TUFError
    from sigstore.models import ClientTrustConfig

    try:
        try:
            found = ClientTrustConfig.production()
        except TUFError:
            found = ClientTrustConfig.production(offline=True)
            notes.append(
                "Sigstore could not be reached: checked against the trust root that this machine has"
            )
        path = folder / "trust.json"
        path.write_text(found._inner.to_json(), encoding="utf-8")
    except (OSError, ValueError, TUFError) as error:
        raise SigstoreUnreachableError(
            "Sigstore's trust root cannot be fetched, and this machine has none: verify where its services "
            "answer, or give one with --sigstore-trust-config FILE"
        ) from error
    return path


def _said(root: Path) -> str:
    """As whom a signature says that it was made; unchecked, for people."""
    try:
        from cryptography.x509 import ObjectIdentifier, SubjectAlternativeName
        from sigstore.models import Bundle

        certificate = Bundle.from_json((root / SIGNATURE).read_bytes()).signing_certificate
        names = list(certificate.extensions.get_extension_for_class(SubjectAlternativeName).value)
        issuer: Any = certificate.extensions.get_extension_for_oid(ObjectIdentifier(_ISSUER)).value
        return f"{names[0].value} ({issuer.value.decode()})"
    except Exception:  # whatever cannot be read names nobody; the check itself says what does not hold
        return "nobody that can be read"


def _require_public_key(path: Path) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LocalFileError(f"the public key {path} cannot be read: {error.strerror}; {_KEYS}") from error
    if b"-----BEGIN PUBLIC KEY-----" not in content:
        raise LocalFileError(f"{path} is no PEM file of a public key; {_KEYS}")


def _require_elliptic(verifier: Any, path: Path) -> None:
    """Refuse a key that signs no export: that a signature is not by it says nothing of the folder."""
    try:
        verifier(public_key=path)
    except Exception as error:  # whatever the parsers below raise of what is no such key
        raise LocalFileError(
            f"{path} is no public key of the kind that signs exports, an elliptic curve's (P-256); {_KEYS}"
        ) from error


def _require_trust_config(path: Path) -> None:
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise LocalFileError(f"the Sigstore trust configuration {path} cannot be read: {error}") from error
    if not isinstance(content, dict) or "trustedRoot" not in content:
        raise LocalFileError(f"{path} is no Sigstore trust configuration: it holds no trustedRoot")


def _unsigned(error: Exception) -> str:
    """Say in a sentence why a signature does not hold; the library's own words list digests and paths."""
    text = str(error)
    wrong = [
        said.format(", ".join(sorted(set(re.findall(pattern, text)))))
        for pattern, said in _DIFFERENCES
        if re.search(pattern, text)
    ]
    if not wrong:
        wrong = [said for words, said in _REASONS if words in f"{type(error).__name__}: {text}"]
    if wrong:
        return f"does not hold: {'; '.join(wrong)}"
    first = text.splitlines()[0][:160] if text else "no reason given"
    return f"does not hold ({type(error).__name__}: {first})"
